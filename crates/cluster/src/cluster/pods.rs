//! Networks of running pods, so that tests can act inside them as inside the lab's own.

use super::Cluster;
use crate::ClusterError;
use crate::error::io;
use egret_lab::Place;

impl Cluster {
    /// Network of a running pod that does not use its node's. Unusable once the pod ends.
    ///
    /// # Errors
    /// No such pod, it has no address yet, or it uses its node's network.
    pub fn pod(&self, namespace: &str, name: &str) -> Result<Place, ClusterError> {
        let form = "jsonpath={.spec.nodeName} {.status.podIP}";
        let get = ["get", "pod", name, "-n", namespace, "-o", form];
        let said = self.kubectl()?.run(&get)?;
        let none = || ClusterError::NoNetwork(format!("{namespace}/{name} ({said})"));
        let (node, address) = said.split_once(' ').ok_or_else(none)?;
        // The kernel's format of a local address.
        let listed = format!("|-- {address}\n");
        let folder = self.place(node)?.root()?.join("run/netns");
        let entries = std::fs::read_dir(&folder);
        let entries = entries.map_err(io(format!("reading {}", folder.display())))?;
        for file in entries.flatten().map(|entry| entry.file_name()) {
            let place = self
                .lab
                .place(&format!("netns/{node}/{}", file.to_string_lossy()))?;
            // Namespaces of other pods come and go.
            let routes = place.run(|| std::fs::read_to_string("/proc/thread-self/net/fib_trie"));
            if matches!(routes, Ok(Ok(text)) if text.contains(&listed)) {
                return Ok(place);
            }
        }
        Err(none())
    }
}
