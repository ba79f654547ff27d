//! Operations on a whole lab: up, down, and changes in between.

use crate::LabError;
use crate::error::io;
use crate::host;
use crate::layout::{CONTROL, HostLayout, Layout};
use crate::manifest;
use crate::namespace::{Place, PlaceName};
use crate::process::wait_for;
use crate::state::{HostProcesses, State, StateDir};
use crate::topology::{Pod, Role, Topology};
use crate::traffic::server::ECHO_PORTS;
use crate::{ready, teardown};
use std::collections::BTreeMap;
use std::net::{Ipv6Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Longest wait for the standing server to listen.
const SERVER_TIMEOUT: Duration = Duration::from_secs(60);

/// Options of a new lab.
#[derive(Debug, Clone)]
pub struct UpOptions {
    /// The program `egret`, started as `egret agent ...` and `egret controller ...`.
    pub egret: PathBuf,
    /// Arguments of every agent after those of the lab.
    pub agent_args: Vec<String>,
    /// Start agents and controller; without them the lab is raw, for tests of the data path.
    pub agents: bool,
    /// Start `egret lab serve` in the first server host, for manual clients.
    pub standing_server: bool,
}

/// A lab that is up. Dropping the value leaves it up; see [`Lab::owned`].
#[derive(Debug, Clone)]
pub struct Lab {
    pub(crate) dir: StateDir,
}

/// A lab that goes down when this value is dropped, also by a panic.
#[derive(Debug)]
pub struct OwnedLab(Lab);

impl std::ops::Deref for OwnedLab {
    type Target = Lab;

    fn deref(&self) -> &Lab {
        &self.0
    }
}

impl Drop for OwnedLab {
    fn drop(&mut self) {
        match Lab::down(self.0.name()) {
            Ok(()) | Err(LabError::NotUp(_)) => {}
            Err(error) => tracing::error!("taking lab {} down: {error}", self.0.name()),
        }
    }
}

/// Settings that agents and controller must share: in a lab any policy may use any address.
const SETTINGS: [&str; 2] = ["--unpooled-addresses", "Allow"];

impl Lab {
    /// Builds a lab and waits until its hosts reach their routers. After a failure everything is taken down again.
    ///
    /// # Errors
    /// An invalid name or topology, a lab of this name exists already, or the system refuses an operation.
    pub fn up(name: &str, topology: &Topology, options: &UpOptions) -> Result<Self, LabError> {
        Self::up_with(name, topology, options, &[])
    }

    /// As [`Lab::up`] with further settings that agents and controller must share (`egret controller --help`).
    ///
    /// # Errors
    /// As [`Lab::up`].
    pub fn up_with(
        name: &str,
        topology: &Topology,
        options: &UpOptions,
        settings: &[&str],
    ) -> Result<Self, LabError> {
        topology.validate()?;
        let dir = StateDir::new(name)?;
        let egret = visible_program(options)?;
        let _lock = dir.lock()?;
        if dir.exists() {
            return Err(LabError::IsUp(name.to_owned()));
        }
        let state = State {
            topology: topology.clone(),
            egret,
            agent_args: options.agent_args.clone(),
            settings: SETTINGS
                .iter()
                .chain(settings)
                .map(ToString::to_string)
                .collect(),
            agents: options.agents,
            hosts: BTreeMap::new(),
            remains: BTreeMap::new(),
            controller: None,
            server: None,
        };
        let lab = Self { dir };
        match lab.build(state, options) {
            Ok(()) => Ok(lab),
            Err(error) => {
                if let Err(remains) = teardown::down(&lab.dir) {
                    tracing::error!("cleaning up after a failed start: {remains}");
                }
                Err(error)
            }
        }
    }

    fn build(&self, mut state: State, options: &UpOptions) -> Result<(), LabError> {
        let layout = state.layout();
        for folder in [
            self.dir.objects(),
            self.dir.log(),
            self.dir.path().join("mnt"),
        ] {
            std::fs::create_dir_all(&folder)
                .map_err(io(format!("creating {}", folder.display())))?;
        }
        self.dir.write(&state)?;
        manifest::write_cluster(&self.dir.objects(), &layout)?;
        self.start_namespaces(&mut state, &layout)?;
        let control = state.init_of(CONTROL)?;
        host::build_bridges(control, &layout.bridges)?;
        let all: Vec<&HostLayout> = layout.hosts.iter().collect();
        self.connect(&state, &layout, &all)?;
        if options.agents {
            for name in layout
                .hosts
                .iter()
                .filter(|host| host.is_node())
                .map(|host| &host.name)
            {
                self.start_agent(&mut state, name)?;
            }
            self.start_controller(&mut state)?;
        }
        if options.standing_server {
            self.start_server(&mut state, &layout)?;
        }
        Ok(())
    }

    /// Starts the namespaces of all hosts at once.
    fn start_namespaces(&self, state: &mut State, layout: &Layout) -> Result<(), LabError> {
        let mut wanted = vec![(CONTROL.to_owned(), host::control_sysctls())];
        wanted.extend(
            layout
                .hosts
                .iter()
                .map(|host| (host.name.clone(), host::sysctls(host))),
        );
        let dir = &self.dir;
        let started: Vec<(String, Result<HostProcesses, LabError>)> = std::thread::scope(|scope| {
            let threads: Vec<_> = wanted
                .into_iter()
                .map(|(name, sysctls)| {
                    scope.spawn(move || {
                        let result = host::start(dir, &name, &sysctls);
                        (name, result)
                    })
                })
                .collect();
            let joined = threads.into_iter().map(|thread| thread.join());
            joined
                .map(|result| result.expect("starting a host does not panic"))
                .collect()
        });
        let mut failure = Ok(());
        for (name, result) in started {
            match result {
                Ok(processes) => drop(state.hosts.insert(name, processes)),
                Err(error) => failure = Err(error),
            }
        }
        self.dir.write(state)?;
        failure
    }

    /// Plugs hosts in, configures them and waits until their routers answer.
    pub(crate) fn connect(
        &self,
        state: &State,
        layout: &Layout,
        hosts: &[&HostLayout],
    ) -> Result<(), LabError> {
        let mut inits = Vec::new();
        for host in hosts {
            inits.push((*host, state.init_of(&host.name)?));
        }
        let control = state.init_of(CONTROL)?;
        host::plug(control, inits.iter().copied())?;
        in_parallel(&inits, |(host, init)| {
            host::configure(host, *init, &layout.pod_cidrs)
        })?;
        in_parallel(&inits, |(host, init)| {
            ready::wait_joined(host, control, &layout.bridges)?;
            ready::wait(host, *init)
        })
    }

    pub(crate) fn start_agent(&self, state: &mut State, name: &str) -> Result<(), LabError> {
        let mut arguments = vec!["agent".to_owned(), "--node".to_owned(), name.to_owned()];
        arguments.extend(["--source".to_owned(), self.source()]);
        arguments.extend(state.settings.iter().chain(&state.agent_args).cloned());
        let init = state.init_of(name)?;
        let daemon = host::start_agent(&self.dir, name, init, &state.egret, &arguments)?;
        if let Some(processes) = state.hosts.get_mut(name) {
            processes.agent = Some(daemon);
        }
        self.dir.write(state)
    }

    pub(crate) fn start_controller(&self, state: &mut State) -> Result<(), LabError> {
        let source = self.source();
        let mut arguments = ["controller", "--source", &source]
            .map(str::to_owned)
            .to_vec();
        arguments.extend(state.settings.iter().cloned());
        let init = state.init_of(CONTROL)?;
        let daemon = host::start_daemon(&self.dir, CONTROL, init, &state.egret, &arguments)?;
        state.controller = Some(daemon);
        self.dir.write(state)
    }

    pub(crate) fn start_server(&self, state: &mut State, layout: &Layout) -> Result<(), LabError> {
        let Some(server) = layout
            .hosts
            .iter()
            .find(|host| host.roles.contains(&Role::Server))
        else {
            return Ok(());
        };
        let init = state.init_of(&server.name)?;
        let arguments = ["lab", "serve"].map(str::to_owned);
        let daemon = host::start_daemon(&self.dir, &server.name, init, &state.egret, &arguments)?;
        state.server = Some(daemon);
        self.dir.write(state)?;
        let port = *ECHO_PORTS.last().expect("there are echo ports");
        let answers = || TcpStream::connect((Ipv6Addr::LOCALHOST, port)).is_ok();
        let mut is_up = false;
        host::run_inside(init, || {
            wait_for("the answering server", SERVER_TIMEOUT, || {
                is_up = answers();
                is_up || !daemon.process.is_alive()
            })
        })??;
        let what = "the answering server".to_owned();
        is_up.then_some(()).ok_or(LabError::Ended { what })
    }

    fn source(&self) -> String {
        format!("dir:{}", self.dir.objects().display())
    }

    /// Opens a lab that is up.
    ///
    /// # Errors
    /// It is not up.
    pub fn open(name: &str) -> Result<Self, LabError> {
        let dir = StateDir::new(name)?;
        dir.read()?;
        Ok(Self { dir })
    }

    /// Ties the life of the lab to the value.
    pub fn owned(self) -> OwnedLab {
        OwnedLab(self)
    }

    /// Takes a lab down, even one whose start or processes crashed. Does not wait for processes inside it.
    ///
    /// # Errors
    /// It is not up, or a part could not be removed; all others are.
    pub fn down(name: &str) -> Result<(), LabError> {
        let dir = StateDir::new(name)?;
        let _lock = dir.lock()?;
        if !dir.exists() {
            return Err(LabError::NotUp(name.to_owned()));
        }
        teardown::down(&dir)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.dir.name()
    }

    /// Its state folder.
    pub fn dir(&self) -> &StateDir {
        &self.dir
    }

    /// Devices, addresses and routes of every host and pod.
    ///
    /// # Errors
    /// It is not up.
    pub fn layout(&self) -> Result<Layout, LabError> {
        Ok(self.dir.read()?.layout())
    }

    /// A host (`worker1`, also `control`) or pod (`pod/default/a1`).
    ///
    /// # Errors
    /// There is no such place in this lab.
    pub fn place(&self, name: &str) -> Result<Place, LabError> {
        let name: PlaceName = name.parse()?;
        let state = self.dir.read()?;
        match &name {
            PlaceName::Host(host) | PlaceName::Netns(host, _) => state.check_host(host)?,
            PlaceName::Pod(namespace, pod) => {
                let found = state.layout().pod(namespace, pod).is_some();
                let name = format!("{namespace}/{pod}");
                found.then_some(()).ok_or(LabError::NoSuchPod(name))?;
            }
        }
        Ok(Place {
            state_dir: self.dir.clone(),
            name,
        })
    }

    /// A command that runs a program inside a host or pod; the caller sets its arguments and streams.
    ///
    /// # Errors
    /// The host is off.
    pub fn exec(
        &self,
        place: &Place,
        program: impl AsRef<std::ffi::OsStr>,
    ) -> Result<Command, LabError> {
        let state = self.dir.read()?;
        let mut command = Command::new("nsenter");
        let enter = |command: &mut Command, pid: i32| {
            command.args(["-t", &pid.to_string(), "-m", "-n", "-u", "-p", "--"]);
        };
        match &place.name {
            PlaceName::Host(host) => enter(&mut command, state.init_of(host)?.pid),
            PlaceName::Pod(namespace, name) => {
                let layout = state.layout();
                let no_pod = || LabError::NoSuchPod(format!("{namespace}/{name}"));
                let (host, pod) = layout.pod(namespace, name).ok_or_else(no_pod)?;
                enter(&mut command, state.init_of(&host.name)?.pid);
                command.args(["ip", "netns", "exec", &pod.netns()]);
            }
            PlaceName::Netns(host, name) => {
                enter(&mut command, state.init_of(host)?.pid);
                command.args(["ip", "netns", "exec", name]);
            }
        }
        let (marker, value) = self.dir.marker();
        command.arg(program).env(marker, value).current_dir("/");
        Ok(command)
    }

    /// Adds a pod to a running node, with the next free addresses: first its Pod object without address, as Kubernetes
    /// does once it is bound, then its network, then the object with its addresses.
    ///
    /// # Errors
    /// No such host, it is off, or the pod cannot be there.
    pub fn add_pod(&self, host: &str, pod: Pod) -> Result<Place, LabError> {
        let (namespace, name) = (pod.namespace.clone(), pod.name.clone());
        let place = self.begin_pod(host, pod)?;
        self.publish_pod(&namespace, &name)?;
        Ok(place)
    }

    /// The first part of [`Lab::add_pod`]: the pod is bound and has its network, and its Pod object shows no address yet.
    ///
    /// # Errors
    /// As [`Lab::add_pod`].
    pub fn begin_pod(&self, host: &str, pod: Pod) -> Result<Place, LabError> {
        let _lock = self.dir.lock()?;
        let mut state = self.dir.read()?;
        let init = state.init_of(host)?;
        let name = PlaceName::Pod(pod.namespace.clone(), pod.name.clone());
        let mut hosts = state.topology.hosts.iter_mut();
        let wanted = hosts.find(|wanted| wanted.name == host);
        wanted.ok_or(LabError::NotControl)?.pods.push(pod);
        state.topology.validate()?;
        let layout = state.layout();
        let host = layout.host(host).ok_or(LabError::NotControl)?;
        let pod = host.pods.last().expect("it was just added");
        manifest::write_pod(&self.dir.objects(), host, pod, false)?;
        host::add_pods(init, std::slice::from_ref(pod))?;
        self.dir.write(&state)?;
        Ok(Place {
            state_dir: self.dir.clone(),
            name,
        })
    }

    /// The second part of [`Lab::add_pod`]: the Pod object shows the addresses.
    ///
    /// # Errors
    /// No such pod.
    pub fn publish_pod(&self, namespace: &str, name: &str) -> Result<(), LabError> {
        let _lock = self.dir.lock()?;
        let layout = self.dir.read()?.layout();
        let (host, pod) = layout
            .pod(namespace, name)
            .ok_or_else(|| LabError::NoSuchPod(format!("{namespace}/{name}")))?;
        manifest::write_pod(&self.dir.objects(), host, pod, true)
    }

    /// Removes the network of the pod that was added to a node last, so that the next one gets its addresses. Its Pod
    /// object stays, like that of a terminating pod; see [`Lab::delete`].
    ///
    /// # Errors
    /// No such host, it is off, or it has no pod.
    pub fn end_last_pod(&self, host: &str) -> Result<(), LabError> {
        let _lock = self.dir.lock()?;
        let mut state = self.dir.read()?;
        let init = state.init_of(host)?;
        let layout = state.layout();
        let last = layout.host(host).and_then(|host| host.pods.last());
        let last = last.ok_or_else(|| LabError::NoSuchPod(format!("the last one of {host}")))?;
        host::remove_pod(init, last)?;
        let mut hosts = state.topology.hosts.iter_mut();
        if let Some(found) = hosts.find(|found| found.name == host) {
            found.pods.pop();
        }
        self.dir.write(&state)
    }

    /// Writes every object of a manifest file into the source directory; returns their names.
    ///
    /// # Errors
    /// A document without kind or name; then no object is written.
    pub fn apply(&self, file: &Path) -> Result<Vec<String>, LabError> {
        let _lock = self.dir.lock()?;
        manifest::apply(&self.dir.objects(), file)
    }

    /// Removes every object of a manifest file from the source directory; returns those that existed.
    ///
    /// # Errors
    /// As [`Lab::apply`].
    pub fn delete(&self, file: &Path) -> Result<Vec<String>, LabError> {
        let _lock = self.dir.lock()?;
        manifest::delete(&self.dir.objects(), file)
    }
}

/// Rejects a program that hosts cannot access.
fn visible_program(options: &UpOptions) -> Result<PathBuf, LabError> {
    if !options.agents && !options.standing_server {
        return Ok(options.egret.clone());
    }
    let path = std::fs::canonicalize(&options.egret).map_err(io(format!(
        "looking for the program {}",
        options.egret.display()
    )))?;
    if path.starts_with("/run") || path.starts_with("/var/lib") {
        return Err(LabError::HiddenProgram(path));
    }
    Ok(path)
}

fn in_parallel<T: Sync>(
    items: &[T],
    work: impl Fn(&T) -> Result<(), LabError> + Sync,
) -> Result<(), LabError> {
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
