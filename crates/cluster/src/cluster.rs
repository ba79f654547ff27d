//! A whole cluster: control plane, nodes with real kubelets and containerd, a router and a server outside, all of them
//! hosts of the lab. All processes of a host end with it, so power cuts and taking down need nothing else.

mod control_plane;
mod nodes;
mod pods;

use crate::credentials::{ADMIN, Credentials};
use crate::error::io;
use crate::kubectl::Kubectl;
use crate::node::{self, HERE};
use crate::server::SERVICE_ADDRESSES;
use crate::topology::CONTROL_PLANE;
use crate::{ClusterError, Programs, groups};
use egret_lab::layout::HostLayout;
use egret_lab::{Lab, LabError, Place, Topology, UpOptions};
use std::fs::File;
use std::net::IpAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

/// Longest wait for the API server, and for all nodes to become ready; 20 s on two idle cores.
const TIMEOUT: Duration = Duration::from_secs(180);

/// A running cluster. Dropping the value leaves it up; see [`Cluster::owned`].
#[derive(Debug)]
pub struct Cluster {
    lab: Lab,
    programs: Programs,
    credentials: Credentials,
}

/// A cluster that is taken down when this value is dropped, also by a panic.
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
    /// the host `server`. A failure takes everything down again.
    ///
    /// # Errors
    /// Kubernetes is not built, a cluster of this name is up, or the system refuses an operation.
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
                // Another process may have taken this one down meanwhile, which is why it failed, and brought up
                // another.
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
        cluster.start_control_plane()?;
        let objects: String = nodes.iter().map(|node| node::object(node)).collect();
        cluster.kubectl()?.apply(&objects)?;
        in_parallel(&nodes, |node| cluster.start_node_of(node))?;
        cluster.wait_ready(&names)?;
        // The API server accepts no pod until the controller manager has made the account.
        let account = ["get", "serviceaccount", "default"];
        let what = "the service account of pods";
        let kubectl = cluster.kubectl()?;
        kubectl.wait_until(what, TIMEOUT, &account, |said| said.success)?;
        Ok(cluster)
    }

    /// Opens a running cluster.
    ///
    /// # Errors
    /// The cluster is not up.
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

    /// Takes a cluster down, including the remains of a crash.
    ///
    /// # Errors
    /// The cluster is not up, or something could not be removed; everything else is.
    pub fn down(name: &str) -> Result<(), ClusterError> {
        let had_groups = !groups::folders(name).is_empty();
        let down = Lab::down(name);
        // The groups are empty once the processes are gone.
        groups::remove(name)?;
        match down {
            Ok(()) => Ok(()),
            Err(LabError::NotUp(_)) if had_groups => Ok(()),
            Err(LabError::NotUp(name)) => Err(ClusterError::NotUp(name)),
            Err(error) => Err(error.into()),
        }
    }

    /// Ties the lifetime of the cluster to the value.
    pub fn owned(self) -> OwnedCluster {
        OwnedCluster(self)
    }

    /// The hosts and segments of the cluster: captures, commands inside hosts, power cuts.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// The programs, for example `helm`.
    pub fn programs(&self) -> &Programs {
        &self.programs
    }

    /// kubectl as the user with all rights. It sees the machine's files and the cluster's network.
    ///
    /// # Errors
    /// The control plane's host is off.
    pub fn kubectl(&self) -> Result<Kubectl, ClusterError> {
        self.client("kubectl")
    }

    /// helm as the same user; usable only through [`Kubectl::command`].
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

    fn place(&self, host: &str) -> Result<Place, ClusterError> {
        Ok(self.lab.place(host)?)
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
            // Ctrl-C at the terminal must not reach the cluster, only the command that started it.
            .process_group(0)
            .spawn()
            .map_err(io(format!("running {}", program.display())))?;
        Ok(())
    }
}

/// Folder of credentials and images: inside the lab's, so that it is removed with it.
fn folder(lab: &Lab) -> PathBuf {
    lab.dir().path().join("cluster")
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
