//! A whole cluster: control plane, nodes with real kubelets and containerd, a router and a server outside, all of them
//! hosts of the lab. What runs on a host dies with it, so a power cut and taking down need nothing else.

use crate::api_server::tail;
use crate::credentials::{ADMIN, Credentials};
use crate::error::io;
use crate::kubectl::Kubectl;
use crate::node::{self, BUSYBOX_IMAGE, HERE};
use crate::server::{AUDIT_POLICY, Endpoint, SERVICE_ADDRESSES};
use crate::topology::CONTROL_PLANE;
use crate::{ClusterError, Programs, groups};
use egret_lab::layout::{HostLayout, Layout};
use egret_lab::process::{run, wait_for};
use egret_lab::{Lab, LabError, Place, Topology, UpOptions};
use std::fs::File;
use std::net::IpAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Longest wait for the API server, and for all nodes to be ready; 20 s on two idle cores.
const TIMEOUT: Duration = Duration::from_secs(180);
/// Longest wait for containerd to listen.
const CONTAINERD_TIMEOUT: Duration = Duration::from_secs(60);
/// Port of the API server.
const PORT: u16 = 6443;
/// Ports of etcd, on the control plane's loopback.
const ETCD_PORTS: [u16; 2] = [2379, 2380];
/// Prepares a host.
const NODE_SCRIPT: &str = include_str!("node.sh");

/// A cluster that is up. Dropping the value leaves it up; see [`Cluster::owned`].
#[derive(Debug)]
pub struct Cluster {
    lab: Lab,
    programs: Programs,
    credentials: Credentials,
}

/// A cluster that goes down when this value is dropped, also by a panic.
#[derive(Debug)]
pub struct OwnedCluster(Cluster);

impl std::ops::Deref for OwnedCluster {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.0
    }
}

impl Drop for OwnedCluster {
    fn drop(&mut self) {
        if let Err(error) = Cluster::down(self.0.lab.name()) {
            eprintln!("taking the cluster {} down: {error}", self.0.lab.name());
        }
    }
}

impl Cluster {
    /// Brings a cluster up and waits until its nodes are ready. `egret` is the program whose answering server runs on
    /// the host `server`. What was built is taken down again on failure.
    ///
    /// # Errors
    /// Kubernetes is not built, a cluster of this name is up, or anything that the system refuses.
    pub fn up(name: &str, topology: &Topology, egret: Option<&Path>) -> Result<Self, ClusterError> {
        let programs = Programs::find()?;
        let options = UpOptions {
            egret: egret.unwrap_or(Path::new("egret")).to_owned(),
            agent_args: Vec::new(),
            agents: false,
            standing_server: egret.is_some(),
        };
        let lab = Lab::up(name, topology, &options)?;
        let own = lab.place(CONTROL_PLANE)?.netns_path()?;
        match Self::build(lab.clone(), programs) {
            Ok(cluster) => Ok(cluster),
            Err(error) => {
                // Somebody may have taken this one down meanwhile, which is why it failed, and brought up another.
                let place = lab.place(CONTROL_PLANE);
                let is_own =
                    place.is_ok_and(|place| place.netns_path().is_ok_and(|now| now == own));
                if !is_own {
                    return Err(error);
                }
                if let Err(remains) = Self::down(name) {
                    eprintln!("cleaning up after a failed start: {remains}");
                }
                Err(error)
            }
        }
    }

    fn build(lab: Lab, programs: Programs) -> Result<Self, ClusterError> {
        let layout = lab.layout()?;
        let control = layout.host(CONTROL_PLANE).ok_or_else(|| {
            ClusterError::NotUp(format!("{} without the host {CONTROL_PLANE}", lab.name()))
        })?;
        let nodes: Vec<&HostLayout> = layout.hosts.iter().filter(|host| host.is_node()).collect();
        let names: Vec<&str> = nodes.iter().map(|node| node.name.as_str()).collect();
        let addresses: Vec<IpAddr> = control
            .node_addresses()
            .chain(SERVICE_ADDRESSES.map(|address| address.parse().expect("a literal address")))
            .chain(["127.0.0.1".parse().expect("a literal address")])
            .collect();
        let folder = folder(&lab);
        let credentials = Credentials::make(&folder, &addresses, &names)?;
        programs.write(&folder)?;
        let cluster = Self {
            lab,
            programs,
            credentials,
        };
        cluster.make_image(&folder.join("busybox.tar"))?;
        cluster.start_control_plane(control)?;
        let objects: String = nodes.iter().map(|node| node::object(node)).collect();
        cluster.kubectl()?.apply(&objects)?;
        in_parallel(&nodes, |node| cluster.start_node_of(node))?;
        cluster.wait_ready(&names)?;
        // Until the controller manager has made it, no pod is accepted.
        let account = ["get", "serviceaccount", "default"];
        let what = "the service account of pods";
        let kubectl = cluster.kubectl()?;
        kubectl.wait_until(what, TIMEOUT, &account, |said| said.success)?;
        Ok(cluster)
    }

    /// A cluster that is up.
    ///
    /// # Errors
    /// It is not.
    pub fn open(name: &str) -> Result<Self, ClusterError> {
        let not_up = |error| match error {
            LabError::NotUp(name) => ClusterError::NotUp(name),
            other => other.into(),
        };
        let lab = Lab::open(name).map_err(not_up)?;
        let credentials = Credentials::open(&folder(&lab))
            .map_err(|_| ClusterError::NotUp(format!("{name} (a lab without Kubernetes)")))?;
        Ok(Self {
            programs: Programs::read(&folder(&lab))?,
            lab,
            credentials,
        })
    }

    /// Takes a cluster down, also what a crash left of it.
    ///
    /// # Errors
    /// It is not up, or something could not be removed; everything else is.
    pub fn down(name: &str) -> Result<(), ClusterError> {
        let had_groups = !groups::folders(name).is_empty();
        let down = Lab::down(name);
        // Empty once the processes are gone.
        groups::remove(name)?;
        match down {
            Ok(()) => Ok(()),
            Err(LabError::NotUp(_)) if had_groups => Ok(()),
            Err(LabError::NotUp(name)) => Err(ClusterError::NotUp(name)),
            Err(error) => Err(error.into()),
        }
    }

    /// Ties the life of the cluster to the value.
    pub fn owned(self) -> OwnedCluster {
        OwnedCluster(self)
    }

    /// The hosts and segments below it: captures, commands inside of hosts, power cuts.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// The programs, for example `helm`.
    pub fn programs(&self) -> &Programs {
        &self.programs
    }

    /// kubectl as the user who may do everything. It sees the machine's files and the cluster's network.
    ///
    /// # Errors
    /// The control plane's host is off.
    pub fn kubectl(&self) -> Result<Kubectl, ClusterError> {
        self.client("kubectl")
    }

    /// helm in the same way; only [`Kubectl::command`] makes sense of it.
    ///
    /// # Errors
    /// The control plane's host is off.
    pub fn helm(&self) -> Result<Kubectl, ClusterError> {
        self.client("helm")
    }

    fn client(&self, program: &str) -> Result<Kubectl, ClusterError> {
        let netns = self.place(CONTROL_PLANE)?.netns_path()?;
        Ok(Kubectl {
            prefix: vec![
                "nsenter".to_owned(),
                format!("--net={}", netns.display()),
                self.programs.kubernetes(program).display().to_string(),
            ],
            kubeconfig: self.credentials.path(&format!("{ADMIN}.kubeconfig")),
        })
    }

    /// The audit log of the API server: one JSON object per line and finished request.
    ///
    /// # Errors
    /// The control plane's host is off.
    pub fn audit_log(&self) -> Result<PathBuf, ClusterError> {
        let inside = format!("{HERE}/audit.log");
        Ok(self.place(CONTROL_PLANE)?.root()?.join(&inside[1..]))
    }

    /// Puts a container image on every node that is on; `archive` is what `tests/kubernetes/image` or `docker save`
    /// writes.
    ///
    /// # Errors
    /// containerd refuses it.
    pub fn load_image(&self, archive: &Path) -> Result<(), ClusterError> {
        let layout = self.lab.layout()?;
        let nodes: Vec<&HostLayout> = layout.hosts.iter().filter(|host| host.is_node()).collect();
        in_parallel(&nodes, |node| self.import(&node.name, archive))
    }

    /// Starts the programs of a node whose host was switched off and on again (`Lab::start`).
    ///
    /// # Errors
    /// No such node, its host is off, or a program ends.
    pub fn start_node(&self, name: &str) -> Result<(), ClusterError> {
        let layout = self.lab.layout()?;
        let node = layout.host(name).filter(|host| host.is_node());
        let node = node.ok_or_else(|| LabError::NoSuchHost {
            host: name.to_owned(),
            known: names_of(&layout),
        })?;
        self.start_node_of(node)
    }

    /// Waits until these nodes are ready.
    ///
    /// # Errors
    /// One of them is not after three minutes.
    pub fn wait_ready(&self, nodes: &[&str]) -> Result<(), ClusterError> {
        let mut arguments = vec!["wait", "--for=condition=Ready", "--timeout=180s"];
        let names: Vec<String> = nodes.iter().map(|node| format!("node/{node}")).collect();
        arguments.extend(names.iter().map(String::as_str));
        self.kubectl()?.run(&arguments)?;
        Ok(())
    }

    fn place(&self, host: &str) -> Result<Place, ClusterError> {
        Ok(self.lab.place(host)?)
    }

    /// The credentials as a host sees them.
    fn inside(&self) -> Credentials {
        self.credentials.seen_in(Path::new(HERE))
    }

    fn start_control_plane(&self, host: &HostLayout) -> Result<(), ClusterError> {
        let address = host.node_addresses().find(IpAddr::is_ipv4);
        let inside = self.inside();
        let endpoint = Endpoint {
            address: address.ok_or_else(|| ClusterError::NotUp(self.lab.name().to_owned()))?,
            port: PORT,
            etcd: ETCD_PORTS,
            folder: Path::new(HERE),
            credentials: &inside,
            has_nodes: true,
        };
        let url = endpoint.url();
        self.credentials.write_kubeconfig(ADMIN, &url)?;
        let place = self.place(CONTROL_PLANE)?;
        for name in [
            "ca.crt",
            "apiserver.crt",
            "apiserver.key",
            "accounts.key",
            "tokens.csv",
            "kubelet-client.crt",
            "kubelet-client.key",
        ] {
            let text = std::fs::read_to_string(self.credentials.path(name));
            self.put(&place, name, &text.map_err(io(format!("reading {name}")))?)?;
        }
        self.put(&place, "audit-policy.yaml", AUDIT_POLICY)?;
        for user in ["kube-controller-manager", "kube-scheduler"] {
            let text = self
                .credentials
                .kubeconfig(&format!("system:{user}"), &url)?;
            self.put(&place, &format!("{user}.kubeconfig"), &text)?;
        }
        let kubernetes = |name: &str| self.programs.kubernetes(name);
        self.start(
            CONTROL_PLANE,
            "etcd",
            &self.programs.etcd(),
            &endpoint.etcd(),
        )?;
        self.start(
            CONTROL_PLANE,
            "kube-apiserver",
            &kubernetes("kube-apiserver"),
            &endpoint.api_server(),
        )?;
        let log = self.log(CONTROL_PLANE, "kube-apiserver");
        let kubectl = self.kubectl()?;
        let ready = kubectl.wait_until(
            "the API server",
            TIMEOUT,
            &["get", "--raw", "/readyz"],
            |said| said.success,
        );
        ready.map_err(|error| match error {
            ClusterError::Timeout {
                what,
                seconds,
                said,
            } => ClusterError::Timeout {
                what,
                seconds,
                said: format!("{said}\n{}", tail(&log)),
            },
            other => other,
        })?;
        let (manager, scheduler) = ("kube-controller-manager", "kube-scheduler");
        self.start(
            CONTROL_PLANE,
            manager,
            &kubernetes(manager),
            &manager_arguments(),
        )?;
        self.start(
            CONTROL_PLANE,
            scheduler,
            &kubernetes(scheduler),
            &client_arguments(scheduler),
        )
    }

    fn start_node_of(&self, node: &HostLayout) -> Result<(), ClusterError> {
        let name = node.name.as_str();
        let place = self.place(name)?;
        let mut prepare = self.lab.exec(&place, "sh")?;
        prepare
            .args([
                "-c",
                NODE_SCRIPT,
                "prepare-node",
                &node::group(self.lab.name(), name),
            ])
            .arg(self.programs.cni());
        run(&mut prepare, "")?;
        let url = self.url()?;
        let authority = std::fs::read_to_string(self.credentials.path("ca.crt"));
        self.put(&place, "ca.crt", &authority.map_err(io("reading ca.crt"))?)?;
        self.put(
            &place,
            "containerd.toml",
            &node::containerd(&self.programs.others()),
        )?;
        self.put(
            &place,
            "kubelet.yaml",
            &node::kubelet(self.lab.name(), node),
        )?;
        self.put(&place, "kube-proxy.yaml", &node::proxy(node))?;
        let kubeconfig = self
            .credentials
            .kubeconfig(&format!("system:node:{name}"), &url)?;
        self.put(&place, "kubelet.kubeconfig", &kubeconfig)?;
        let kubeconfig = self.credentials.kubeconfig("system:kube-proxy", &url)?;
        self.put(&place, "kube-proxy.kubeconfig", &kubeconfig)?;
        let network = place.root()?.join("etc/cni/net.d/10-pods.conflist");
        std::fs::write(&network, node::network(node))
            .map_err(io("writing the CNI configuration"))?;

        let containerd = self.programs.other("containerd");
        let configuration = format!("--config={HERE}/containerd.toml");
        self.start(name, "containerd", &containerd, &[configuration])?;
        self.wait_for_containerd(name)?;
        self.import(name, &folder(&self.lab).join("busybox.tar"))?;
        let kubelet = self.programs.kubernetes("kubelet");
        self.start(name, "kubelet", &kubelet, &node::kubelet_arguments(node))?;
        let proxy = self.programs.kubernetes("kube-proxy");
        let configuration = format!("--config={HERE}/kube-proxy.yaml");
        self.start(name, "kube-proxy", &proxy, &[configuration])
    }

    fn url(&self) -> Result<String, ClusterError> {
        let layout = self.lab.layout()?;
        let control = layout.host(CONTROL_PLANE);
        let address = control.and_then(|host| host.node_addresses().find(IpAddr::is_ipv4));
        let address = address.ok_or_else(|| ClusterError::NotUp(self.lab.name().to_owned()))?;
        Ok(format!("https://{address}:{PORT}"))
    }

    fn wait_for_containerd(&self, host: &str) -> Result<(), ClusterError> {
        let place = self.place(host)?;
        let control = self.programs.other("ctr");
        let mut refused = String::new();
        let answers = wait_for("containerd", CONTAINERD_TIMEOUT, || {
            let version = self
                .lab
                .exec(&place, &control)
                .map(|mut command| run(command.arg("version"), ""));
            match version {
                Ok(Ok(_)) => return true,
                Ok(Err(error)) | Err(error) => refused = error.to_string(),
            }
            false
        });
        let log = self.log(host, "containerd");
        answers.map_err(|_| ClusterError::Ended {
            what: format!("containerd on {host} ({refused})"),
            tail: tail(&log),
            log,
        })
    }

    fn make_image(&self, archive: &Path) -> Result<(), ClusterError> {
        let mut command = Command::new(crate::programs::script("image"));
        command.arg(BUSYBOX_IMAGE).arg(archive);
        command.args(["--run", "/bin/sleep", "--run", "2147483647"]);
        let busybox = self.programs.other("busybox");
        run(
            command.arg(format!("{}=/bin/busybox", busybox.display())),
            "",
        )?;
        Ok(())
    }

    fn import(&self, host: &str, archive: &Path) -> Result<(), ClusterError> {
        // The host has a /run of its own, and the archive may be below the machine's.
        let file = File::open(archive).map_err(io(format!("opening {}", archive.display())))?;
        let mut command = self
            .lab
            .exec(&self.place(host)?, self.programs.other("ctr"))?;
        command
            .args(["-n", "k8s.io", "images", "import", "-"])
            .stdin(file);
        let output = command.output().map_err(io("running ctr"))?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        let what = format!("importing {} on {host}", archive.display());
        let input = String::new();
        Err(LabError::Command { what, said, input }.into())
    }

    /// Writes a file into the host's folder.
    fn put(&self, place: &Place, name: &str, text: &str) -> Result<(), ClusterError> {
        let folder = place.root()?.join(&HERE[1..]);
        std::fs::create_dir_all(&folder)
            .and_then(|()| std::fs::write(folder.join(name), text))
            .map_err(io(format!("writing {name} into host {}", place.name())))
    }

    fn log(&self, host: &str, program: &str) -> PathBuf {
        self.lab.dir().log().join(format!("{host}.{program}.log"))
    }

    /// Starts a standing program inside a host. It dies with the host.
    fn start(
        &self,
        host: &str,
        name: &str,
        program: &Path,
        arguments: &[String],
    ) -> Result<(), ClusterError> {
        let path = self.log(host, name);
        let log = File::options().create(true).append(true).open(&path);
        let log = log.map_err(io(format!("opening {}", path.display())))?;
        let errors = log.try_clone().map_err(io("sharing a log file"))?;
        let mut command = self.lab.exec(&self.place(host)?, program)?;
        command
            .args(arguments)
            .env(
                "PATH",
                format!(
                    "{}:/usr/sbin:/usr/bin:/sbin:/bin",
                    self.programs.others().display()
                ),
            )
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            // Ctrl-C at the terminal is for whoever started the cluster, not for the cluster.
            .process_group(0)
            .spawn()
            .map_err(io(format!("running {}", program.display())))?;
        Ok(())
    }
}

/// Folder of credentials and images: inside the lab's, so that it goes with it.
fn folder(lab: &Lab) -> PathBuf {
    lab.dir().path().join("cluster")
}

fn names_of(layout: &Layout) -> String {
    let names: Vec<&str> = layout.hosts.iter().map(|host| host.name.as_str()).collect();
    names.join(", ")
}

fn client_arguments(name: &str) -> Vec<String> {
    let kubeconfig = format!("{HERE}/{name}.kubeconfig");
    let mut arguments: Vec<String> = [
        "kubeconfig",
        "authentication-kubeconfig",
        "authorization-kubeconfig",
    ]
    .map(|flag| format!("--{flag}={kubeconfig}"))
    .to_vec();
    arguments.extend(["--leader-elect=false", "--profiling=false"].map(str::to_owned));
    arguments
}

fn manager_arguments() -> Vec<String> {
    let mut arguments = client_arguments("kube-controller-manager");
    arguments.push(format!("--root-ca-file={HERE}/ca.crt"));
    arguments.push(format!(
        "--service-account-private-key-file={HERE}/accounts.key"
    ));
    arguments.extend(
        [
            "--use-service-account-credentials=true",
            "--allocate-node-cidrs=false",
            // A node that lost power is NotReady after this; the default is 50 s.
            "--node-monitor-grace-period=20s",
            "--node-monitor-period=2s",
        ]
        .map(str::to_owned),
    );
    arguments
}

fn in_parallel<T: Sync>(
    items: &[T],
    work: impl Fn(&T) -> Result<(), ClusterError> + Sync,
) -> Result<(), ClusterError> {
    std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = items
            .iter()
            .map(|item| scope.spawn(move || work(item)))
            .collect();
        let results = threads.into_iter().map(|thread| match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        results.collect::<Vec<_>>().into_iter().collect()
    })
}
