//! Programs of a node: containerd, kubelet, kube-proxy, and their configuration.

use crate::groups;
use egret_lab::layout::HostLayout;
use std::net::IpAddr;
use std::path::Path;

/// Folder for our files on a host, in its own /run.
pub(crate) const HERE: &str = "/run/kubernetes";
/// Image of the sandbox of every pod, and for pods that need a shell.
pub(crate) const BUSYBOX_IMAGE: &str = "egret.dev/busybox:1";
/// Prefixes of all pods.
const POD_CIDRS: &str = "10.244.0.0/16,fd00:244::/32";

/// Control group of a node below the root of every hierarchy.
pub(crate) fn group(cluster: &str, node: &str) -> String {
    format!("{}/{node}", groups::of_cluster(cluster))
}

/// The Node object, made before the kubelet registers: only its creator can set pod CIDRs.
pub(crate) fn object(node: &HostLayout) -> String {
    let cidrs: Vec<String> = node
        .pod_cidrs
        .iter()
        .map(|cidr| format!("{:?}", cidr.to_string()))
        .collect();
    let labels: String = node
        .labels
        .iter()
        .map(|(key, value)| format!("    {key}: {value:?}\n"))
        .collect();
    format!(
        "apiVersion: v1\nkind: Node\nmetadata:\n  name: {0}\n  labels:\n    kubernetes.io/hostname: {0}\n{labels}\
         spec: {{podCIDR: {1}, podCIDRs: [{2}]}}\n---\n",
        node.name,
        cidrs[0],
        cidrs.join(", ")
    )
}

/// containerd's configuration, in the format of 1.x that 2.x still accepts.
pub(crate) fn containerd(programs: &Path) -> String {
    format!(
        r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{BUSYBOX_IMAGE}"
  # Without CAP_SYS_RESOURCE no process may be protected from the kernel's out-of-memory killer.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        BinaryName = "{}"
        SystemdCgroup = false
"#,
        programs.join("runc").display()
    )
}

/// The CNI configuration: a link of its own for every pod, addresses from the node's prefixes. The lab masquerades; on
/// many clusters, too, it is not the plugin that does.
pub(crate) fn network(node: &HostLayout) -> String {
    let ranges: Vec<String> = node
        .pod_cidrs
        .iter()
        .map(|cidr| format!("[{{\"subnet\": \"{cidr}\"}}]"))
        .collect();
    format!(
        r#"{{
  "cniVersion": "0.4.0",
  "name": "pods",
  "plugins": [
    {{"type": "ptp", "ipMasq": false,
     "ipam": {{"type": "host-local", "dataDir": "/run/cni", "ranges": [{}],
              "routes": [{{"dst": "0.0.0.0/0"}}, {{"dst": "::/0"}}]}}}},
    {{"type": "portmap", "capabilities": {{"portMappings": true}}}}
  ]
}}
"#,
        ranges.join(", ")
    )
}

/// The kubelet's configuration.
pub(crate) fn kubelet(cluster: &str, node: &HostLayout) -> String {
    format!(
        "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n\
         authentication: {{anonymous: {{enabled: false}}, webhook: {{enabled: true}}, x509: {{clientCAFile: {HERE}/ca.crt}}}}\n\
         authorization: {{mode: Webhook}}\n\
         cgroupDriver: cgroupfs\ncgroupRoot: /{group}\nfailCgroupV1: false\nfailSwapOn: false\n\
         containerRuntimeEndpoint: unix:///run/containerd/containerd.sock\n\
         resolvConf: {HERE}/resolv.conf\n\
         oomScoreAdj: 0\nmakeIPTablesUtilChains: false\nenforceNodeAllocatable: [none]\n\
         localStorageCapacityIsolation: false\n\
         evictionHard: {{memory.available: \"0%\", nodefs.available: \"0%\", nodefs.inodesFree: \"0%\", imagefs.available: \"0%\"}}\n\
         imageGCHighThresholdPercent: 100\n\
         nodeStatusUpdateFrequency: 5s\nsyncFrequency: 10s\nshutdownGracePeriod: 0s\n",
        group = group(cluster, &node.name)
    )
}

/// kube-proxy's configuration.
pub(crate) fn proxy(node: &HostLayout) -> String {
    format!(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: nftables\n\
         hostnameOverride: {}\nclusterCIDR: {POD_CIDRS}\n\
         clientConnection: {{kubeconfig: {HERE}/kube-proxy.kubeconfig}}\n\
         conntrack: {{maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}}\n",
        node.name
    )
}

/// The kubelet's command line.
pub(crate) fn kubelet_arguments(node: &HostLayout) -> Vec<String> {
    let addresses: Vec<String> = node
        .node_addresses()
        .map(|address: IpAddr| address.to_string())
        .collect();
    vec![
        format!("--config={HERE}/kubelet.yaml"),
        format!("--kubeconfig={HERE}/kubelet.kubeconfig"),
        format!("--hostname-override={}", node.name),
        format!("--node-ip={}", addresses.join(",")),
        "--cert-dir=/var/lib/kubelet/pki".to_owned(),
        "--root-dir=/var/lib/kubelet".to_owned(),
    ]
}
