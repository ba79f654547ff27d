//! etcd and kube-apiserver on loopback, with temporary data.
//!
//! Both are children of a shell that is the first process of a process namespace and waits for the end of its standard
//! input. This value owns the other end of that pipe: when a test ends, panics or is killed, the shell ends and the
//! kernel ends the namespace. A killed test leaves its folder, which the next test removes.

use crate::credentials::{ADMIN, Credentials};
use crate::error::io;
use crate::kubectl::{Kubectl, Said};
use crate::server::{AUDIT_POLICY, Endpoint};
use crate::{ClusterError, Programs};
use egret_lab::process::Process;
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Folder of all API servers. In memory: etcd syncs every write.
const ROOT: &str = "/run/egret-api";
/// Longest wait for the API server to be ready; it takes 3 to 5 s on two idle cores.
const READY_TIMEOUT: Duration = Duration::from_secs(120);
/// Poll interval for readiness.
const POLL: Duration = Duration::from_millis(50);
/// Attempts to start, in case ports that were free are taken meanwhile.
const ATTEMPTS: usize = 3;

/// A running API server. It ends with the value.
#[derive(Debug)]
pub struct ApiServer {
    folder: PathBuf,
    credentials: Credentials,
    url: String,
    programs: Programs,
    admin: Kubectl,
    keeper: Child,
}

impl ApiServer {
    /// Starts both and waits until the API server is ready.
    ///
    /// # Errors
    /// The programs are not built ([`ClusterError::NotBuilt`]), or one of them ends or is not ready in time.
    pub fn start() -> Result<Self, ClusterError> {
        Self::start_with(&[])
    }

    /// [`Self::start`] with further users besides `admin`, who has all rights: names and groups.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with(users: &[(&str, &[&str])]) -> Result<Self, ClusterError> {
        let programs = Programs::find()?;
        remove_remains();
        let mut attempt = 1;
        loop {
            match Self::try_start(&programs, users) {
                Err(ClusterError::Ended { tail, .. })
                    if attempt < ATTEMPTS && tail.contains("address already in use") =>
                {
                    attempt += 1;
                }
                result => return result,
            }
        }
    }

    fn try_start(programs: &Programs, users: &[(&str, &[&str])]) -> Result<Self, ClusterError> {
        let folder = new_folder()?;
        let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let mut credentials = Credentials::make(&folder, &[address], &[])?;
        for (name, groups) in users {
            credentials.add(name, groups)?;
        }
        std::fs::write(folder.join("audit-policy.yaml"), AUDIT_POLICY)
            .map_err(io("writing the audit policy"))?;
        let [port, clients, members] = free_ports()?;
        let endpoint = Endpoint {
            address,
            port,
            etcd: [clients, members],
            folder: &folder,
            credentials: &credentials,
            has_nodes: false,
        };
        let url = endpoint.url();
        let commands = [
            ("etcd", programs.etcd(), endpoint.etcd()),
            (
                "kube-apiserver",
                programs.kubernetes("kube-apiserver"),
                endpoint.api_server(),
            ),
        ];
        let script: String = commands.iter().map(background).collect();
        let keeper = Command::new("unshare")
            .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"])
            .args(["sh", "-c", &format!("{script}read -r _")])
            .current_dir(&folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(io("running unshare"))?;
        let kubeconfig = credentials.write_kubeconfig(ADMIN, &url)?;
        let server = Self {
            admin: Kubectl {
                prefix: vec![programs.kubernetes("kubectl").display().to_string()],
                kubeconfig,
            },
            folder,
            credentials,
            url,
            programs: programs.clone(),
            keeper,
        };
        server.wait()?;
        Ok(server)
    }

    fn wait(&self) -> Result<(), ClusterError> {
        let deadline = Instant::now() + READY_TIMEOUT;
        let mut said = String::new();
        while Instant::now() < deadline {
            for program in ["etcd", "kube-apiserver"] {
                if self.folder.join(format!("{program}.ended")).exists() {
                    let log = self.folder.join(format!("{program}.log"));
                    return Err(ClusterError::Ended {
                        what: program.to_owned(),
                        tail: tail(&log),
                        log,
                    });
                }
            }
            // A kubectl call costs a process, so only once the port is open.
            let address = self.url.trim_start_matches("https://");
            if std::net::TcpStream::connect(address).is_ok() {
                let Said { success, out, err } =
                    self.admin.try_run(&["get", "--raw", "/readyz"], "")?;
                if success {
                    return Ok(());
                }
                said = out + &err;
            }
            std::thread::sleep(POLL);
        }
        Err(ClusterError::Timeout {
            what: "the API server".to_owned(),
            seconds: READY_TIMEOUT.as_secs(),
            said: said + "\n" + &tail(&self.folder.join("kube-apiserver.log")),
        })
    }

    /// kubectl as the user with all rights.
    pub fn kubectl(&self) -> &Kubectl {
        &self.admin
    }

    /// kubectl as another user of [`Self::start_with`].
    ///
    /// # Errors
    /// Its kubeconfig cannot be written.
    pub fn kubectl_as(&self, user: &str) -> Result<Kubectl, ClusterError> {
        Ok(Kubectl {
            kubeconfig: self.credentials.write_kubeconfig(user, &self.url)?,
            ..self.admin.clone()
        })
    }

    /// `https://127.0.0.1:PORT`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The programs, for example `helm`.
    pub fn programs(&self) -> &Programs {
        &self.programs
    }

    /// The audit log: one JSON object per line and finished request, with verb, user and resource.
    pub fn audit_log(&self) -> PathBuf {
        self.folder.join("audit.log")
    }

    /// Folder of data and logs.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        // `unshare --kill-child` takes the shell with it, and the kernel everything in its process namespace.
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
        let _ = std::fs::remove_dir(ROOT);
    }
}

/// Shell text that runs a program in the background and leaves a file when it ends.
fn background((name, program, arguments): &(&str, PathBuf, Vec<String>)) -> String {
    let quote = |text: &str| format!("'{}'", text.replace('\'', r"'\''"));
    let words: Vec<String> = std::iter::once(program.display().to_string())
        .chain(arguments.iter().cloned())
        .map(|word| quote(&word))
        .collect();
    format!(
        "({} >{name}.log 2>&1; : >{name}.ended) &\n",
        words.join(" ")
    )
}

/// Ports of loopback that are unused at the moment.
fn free_ports<const N: usize>() -> Result<[u16; N], ClusterError> {
    // All at once, so that they differ.
    let mut listeners = Vec::new();
    let mut ports = [0; N];
    for port in &mut ports {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
        let listener = listener.map_err(io("looking for a free port"))?;
        *port = listener
            .local_addr()
            .map_err(io("asking for a port"))?
            .port();
        listeners.push(listener);
    }
    Ok(ports)
}

/// A folder whose name identifies its owner: process id, start time, number.
fn new_folder() -> Result<PathBuf, ClusterError> {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let own = Process::of(std::process::id() as i32).expect("this process lives");
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let folder = Path::new(ROOT).join(format!("{}-{}-{number}", own.pid, own.started));
    std::fs::create_dir_all(&folder).map_err(io(format!("creating {}", folder.display())))?;
    Ok(folder)
}

/// Removes folders of processes that were killed.
fn remove_remains() {
    for entry in std::fs::read_dir(ROOT).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let mut parts = name.to_str().unwrap_or_default().split('-');
        let owner = (|| {
            let pid = parts.next()?.parse().ok()?;
            let started = parts.next()?.parse().ok()?;
            Some(Process { pid, started })
        })();
        if owner.is_some_and(|owner| !owner.is_alive()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// Last lines of a log.
pub(crate) fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}
