//! The program against a real API server: daemons as processes, roles from `docs/kubernetes.md`, the audit log, and a
//! connection to the API server that can be cut.

use anyhow::{Context, bail};
use egret_cluster::{ApiServer, Cluster, Kubectl};
use egret_lab::process::Process;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Folder of the CustomResourceDefinitions.
pub const CRDS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/crds");
/// The page with the rights.
const RIGHTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/kubernetes.md");
/// Poll interval of a condition.
const POLL: Duration = Duration::from_millis(50);

/// Path of the kubeconfig of [`start_on`] in a host of a cluster.
const KUBECONFIG: &str = "run/egret-test.kubeconfig";

/// Starts `egret` on a host of a real cluster, against its API server; addresses in no pool may be used.
///
/// # Errors
/// No such host, or it cannot be started.
pub fn start_on(cluster: &Cluster, host: &str, arguments: &[&str]) -> anyhow::Result<Daemon> {
    let lab = cluster.lab();
    let place = lab.place(host)?;
    let text = std::fs::read_to_string(cluster.kubectl()?.kubeconfig())?;
    std::fs::write(place.root()?.join(KUBECONFIG), text)?;
    let mut command = lab.exec(&place, crate::egret()?)?;
    command
        .args(arguments)
        .args(["--source", &format!("kube:/{KUBECONFIG}")])
        .args(["--unpooled-addresses", "Allow", "--http-port", "0"]);
    let log = format!("{host}.{}.log", arguments.first().unwrap_or(&"egret"));
    Daemon::spawn(&lab.dir().log().join(log), command)
}

/// Names of the pods with this label.
///
/// # Errors
/// The API server does not answer.
pub fn pods(kubectl: &Kubectl, label: &str) -> anyhow::Result<Vec<String>> {
    let form = "jsonpath={range .items[*]}{.metadata.name}{\"\\n\"}{end}";
    let said = kubectl.run(&["get", "pods", "-l", label, "-o", form])?;
    Ok(said.lines().map(str::to_owned).collect())
}

/// A running program of Egret. It ends with the value.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts `egret` with these arguments; its log goes into a file.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(log: &Path, arguments: &[&str]) -> anyhow::Result<Self> {
        let mut command = Command::new(crate::egret()?);
        command.args(arguments);
        Self::spawn(log, command)
    }

    /// As [`Self::start`], for any command.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn(log: &Path, mut command: Command) -> anyhow::Result<Self> {
        let file = File::create(log).with_context(|| format!("creating {}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stderr(file.try_clone()?)
            .stdout(file)
            .spawn()
            .context("starting egret")?;
        Ok(Self {
            child,
            log: log.to_owned(),
        })
    }

    /// Its log.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Process id of the program itself: one that was started inside a host has nsenter as its parent.
    ///
    /// # Errors
    /// It has ended.
    pub fn program(&self) -> anyhow::Result<i32> {
        let pid = i32::try_from(self.child.id())?;
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm"))?;
        if name.trim() == "egret" {
            return Ok(pid);
        }
        let parent = Process::of(pid).context("the program has ended")?;
        Ok(parent.first_child("egret")?.pid)
    }

    /// Ends it like Kubernetes does (SIGTERM), and waits.
    ///
    /// # Errors
    /// It does not end within 20 s.
    pub fn end(&mut self) -> anyhow::Result<()> {
        self.signal(nix::sys::signal::Signal::SIGTERM)?;
        let child = &mut self.child;
        until("egret ends", Duration::from_secs(20), || {
            Ok(child.try_wait()?.is_some())
        })
    }

    /// Sends a signal, for example to freeze it.
    ///
    /// # Errors
    /// It has ended.
    pub fn signal(&self, signal: nix::sys::signal::Signal) -> anyhow::Result<()> {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id())?);
        Ok(nix::sys::signal::kill(pid, signal)?)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("---- {}\n{}", self.log.display(), self.log());
        }
    }
}

/// Waits for a condition.
///
/// # Errors
/// It does not hold in time, or the check fails.
pub fn until(
    what: &str,
    timeout: Duration,
    mut condition: impl FnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + timeout;
    while !condition()? {
        if Instant::now() > deadline {
            bail!("not within {} s: {what}", timeout.as_secs());
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}

/// One right: API group, resource, verb.
pub type Right = (String, String, String);

/// The rights that `docs/kubernetes.md` lists for a component, and whether they are for its own namespace only.
///
/// # Panics
/// The page has no such table.
pub fn rights(component: &str) -> BTreeSet<(Right, bool)> {
    let page = std::fs::read_to_string(RIGHTS).expect("the page is in the repository");
    let title = format!("\n{component}:\n");
    let (_, after) = page.split_once(&title).expect("the component has a table");
    let names = |cell: &str| -> Vec<String> {
        let quoted = cell.split('`').skip(1).step_by(2);
        quoted
            .map(|name| name.trim_matches('"').to_owned())
            .collect()
    };
    let mut all = BTreeSet::new();
    let rows = after
        .trim_start()
        .lines()
        .take_while(|l| l.starts_with('|'));
    for row in rows.skip(2) {
        let cells: Vec<&str> = row.trim_matches('|').split('|').collect();
        let group = names(cells[0]).remove(0);
        for resource in names(cells[1]) {
            for verb in names(cells[2]) {
                let right = (group.clone(), resource.clone(), verb);
                all.insert((right, cells[1].contains("own namespace")));
            }
        }
    }
    assert!(!all.is_empty(), "{component} has no rights");
    all
}

/// A ClusterRole and its binding to a user, with the rights of a component.
pub fn role(component: &str, user: &str) -> String {
    role_named(user, component, user)
}

/// As [`role`], with its own name, for a user with several roles.
pub fn role_named(name: &str, component: &str, user: &str) -> String {
    let mut rules = String::new();
    for ((group, resource, verb), _) in rights(component) {
        let _ = writeln!(
            rules,
            "- {{apiGroups: [{group:?}], resources: [{resource:?}], verbs: [{verb:?}]}}"
        );
    }
    format!(
        "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata: {{name: {name}}}\nrules:\n{rules}---\n\
         apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRoleBinding\nmetadata: {{name: {name}}}\n\
         roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: {name}}}\n\
         subjects: [{{apiGroup: rbac.authorization.k8s.io, kind: User, name: {user}}}]\n"
    )
}

/// Requests of a user that the audit log has, from a line number on; and the number of lines.
///
/// # Errors
/// The log cannot be read.
pub fn requests(log: &Path, user: &str, from: usize) -> anyhow::Result<(Vec<Value>, usize)> {
    let text = std::fs::read_to_string(log)?;
    let lines: Vec<&str> = text.lines().collect();
    let fresh = lines.iter().skip(from);
    let parsed = fresh.filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let own = parsed.filter(|line| line["user"]["username"] == user);
    Ok((own.collect(), lines.len()))
}

/// Requests of all users in the audit log from a byte on that begins a line, for logs too long to be read completely.
///
/// # Errors
/// The log cannot be read.
pub fn requests_between(log: &Path, from: u64) -> anyhow::Result<Vec<Value>> {
    let mut file = File::open(log)?;
    file.seek(SeekFrom::Start(from))?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    let parsed = text
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok());
    Ok(parsed.collect())
}

/// The right that a request used.
pub fn right_of(request: &Value) -> Right {
    let object = &request["objectRef"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let resource = match object["subresource"].as_str() {
        Some(part) => format!("{}/{part}", text(&object["resource"])),
        None => text(&object["resource"]),
    };
    (text(&object["apiGroup"]), resource, text(&request["verb"]))
}

/// A relay on loopback to an API server, which can be cut: connections end, and new ones are refused.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    cut: Arc<AtomicBool>,
    streams: Arc<Mutex<Vec<TcpStream>>>,
    received: Arc<AtomicU64>,
}

impl Relay {
    /// A relay to this API server.
    ///
    /// # Errors
    /// No port is free.
    pub fn to(server: &ApiServer) -> anyhow::Result<Self> {
        Self::listening(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?, server)
    }

    /// The same, on a socket that may be in another network namespace.
    ///
    /// # Errors
    /// The socket has no address.
    pub fn listening(listener: TcpListener, server: &ApiServer) -> anyhow::Result<Self> {
        let target: SocketAddr = server.url().trim_start_matches("https://").parse()?;
        let relay = Self {
            address: listener.local_addr()?,
            cut: Arc::default(),
            streams: Arc::default(),
            received: Arc::default(),
        };
        let (cut, streams) = (relay.cut.clone(), relay.streams.clone());
        let (received, sent) = (relay.received.clone(), Arc::default());
        std::thread::spawn(move || {
            // Ends with the test's process.
            for near in listener.incoming().flatten() {
                if cut.load(Ordering::SeqCst) {
                    continue;
                }
                let Ok(far) = TcpStream::connect(target) else {
                    continue;
                };
                let mut all = streams.lock().expect("nobody panics with it");
                all.extend([&near, &far].into_iter().flat_map(TcpStream::try_clone));
                drop(all);
                pump(&near, &far, &sent);
                pump(&far, &near, &received);
            }
        });
        Ok(relay)
    }

    /// A kubeconfig of a user through this relay.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn kubeconfig(&self, kubectl: &Kubectl, server: &ApiServer) -> anyhow::Result<PathBuf> {
        let text = std::fs::read_to_string(kubectl.kubeconfig())?;
        let text = text.replace(server.url(), &format!("https://{}", self.address));
        let path = kubectl.kubeconfig().with_extension("relay");
        std::fs::write(&path, text)?;
        Ok(path)
    }

    /// Closes every connection and refuses new ones.
    pub fn cut(&self) {
        self.cut.store(true, Ordering::SeqCst);
        for stream in self
            .streams
            .lock()
            .expect("nobody panics with it")
            .drain(..)
        {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Bytes from the API server so far, encrypted.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Accepts connections again.
    pub fn mend(&self) {
        self.cut.store(false, Ordering::SeqCst);
    }
}

fn pump(from: &TcpStream, to: &TcpStream, bytes: &Arc<AtomicU64>) {
    let bytes = bytes.clone();
    let (Ok(mut from), Ok(mut to)) = (from.try_clone(), to.try_clone()) else {
        return;
    };
    std::thread::spawn(move || {
        let mut buffer = [0; 16 * 1024];
        while let Ok(read) = from.read(&mut buffer) {
            bytes.fetch_add(read as u64, Ordering::Relaxed);
            if read == 0 || to.write_all(&buffer[..read]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    });
}
