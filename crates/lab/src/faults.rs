//! Faults of a running lab, and their repair.

use crate::host;
use crate::layout::{CONTROL, HostLayout};
use crate::state::{Daemon, State};
use crate::{Lab, LabError};
use crate::{ready, teardown};
use nix::sys::signal::Signal;

/// How a host or its agent is hurt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Hurt {
    /// The machine loses its power: everything in it ends, and its kernel state with it.
    Power,
    /// All its cables are pulled: it runs on without carrier.
    Links,
    /// Its agent is killed.
    Agent,
    /// Its agent is stopped and stays there.
    Freeze,
}

impl Lab {
    /// Injects a fault into a host or its agent; the agent of [`CONTROL`] is the controller. A repeated fault changes
    /// nothing.
    ///
    /// # Errors
    /// No such host, it is off, or it has no agent.
    pub fn kill(&self, host: &str, how: Hurt) -> Result<(), LabError> {
        let _lock = self.dir.lock()?;
        let mut state = self.dir.read()?;
        state.check_host(host)?;
        match how {
            Hurt::Power => self.power_off(&mut state, host),
            Hurt::Links => {
                let layout = state.layout();
                let target = layout.host(host).ok_or(LabError::NotControl)?;
                state.init_of(host)?;
                host::set_carrier(state.init_of(CONTROL)?, target, false)
            }
            Hurt::Agent => {
                let agent = agent_of(&state, host)?;
                agent.process.kill()?;
                agent.launcher.kill()
            }
            Hurt::Freeze => {
                let stopped = agent_of(&state, host)?.process.signal(Signal::SIGSTOP);
                let no_agent = || LabError::NoAgent(host.to_owned());
                stopped.then_some(()).ok_or_else(no_agent)
            }
        }
    }

    fn power_off(&self, state: &mut State, host: &str) -> Result<(), LabError> {
        let layout = state.layout();
        let target = layout.host(host).ok_or(LabError::NotControl)?;
        let Some(processes) = state.hosts.get(host).copied() else {
            return Ok(());
        };
        let remains = host::keep_network(&self.dir, processes.init)?;
        state.hosts.remove(host);
        state.remains.insert(host.to_owned(), remains);
        host::set_carrier(state.init_of(CONTROL)?, target, false)?;
        processes.init.signal(Signal::SIGKILL);
        processes.launcher.signal(Signal::SIGKILL);
        if let Some(agent) = processes.agent {
            // The launcher of a frozen agent is stopped itself.
            agent.launcher.signal(Signal::SIGKILL);
        }
        teardown::reap(&processes)?;
        self.dir.write(state)
    }

    /// Reverts [`Lab::kill`]: power with the same addresses and pods, cables, the agent, the standing server. Waits
    /// until the host reaches its router.
    ///
    /// # Errors
    /// The host does not exist, or cannot be built again.
    pub fn start(&self, host: &str) -> Result<(), LabError> {
        let _lock = self.dir.lock()?;
        let mut state = self.dir.read()?;
        let layout = state.layout();
        state.check_host(host)?;
        let control = state.init_of(CONTROL)?;
        if let Some(target) = layout.host(host) {
            if let Ok(init) = state.init_of(host) {
                host::set_carrier(control, target, true)?;
                ready::wait(target, init)?;
            } else {
                host::unplug(control, target)?;
                if let Some(remains) = state.remains.remove(host) {
                    remains.kill()?;
                }
                let processes = host::start(&self.dir, host, &host::sysctls(target))?;
                state.hosts.insert(host.to_owned(), processes);
                self.dir.write(&state)?;
                self.connect(&state, &layout, &[target])?;
            }
            if state
                .server
                .is_some_and(|server| !server.process.is_alive())
            {
                self.start_server(&mut state, &layout)?;
            }
        }
        match agent_of(&state, host) {
            Ok(agent) if agent.process.signal(Signal::SIGCONT) => {
                // nsenter stops itself with its child, and a stopped parent would never reap it.
                agent.launcher.signal(Signal::SIGCONT);
                Ok(())
            }
            _ if !state.agents => Ok(()),
            _ if host == CONTROL => self.start_controller(&mut state),
            _ if layout.host(host).is_some_and(HostLayout::is_node) => {
                self.start_agent(&mut state, host)
            }
            _ => Ok(()),
        }
    }
}

fn agent_of(state: &State, host: &str) -> Result<Daemon, LabError> {
    state.init_of(host)?;
    let agent = match host {
        CONTROL => state.controller,
        _ => state.hosts.get(host).and_then(|host| host.agent),
    };
    agent.ok_or_else(|| LabError::NoAgent(host.to_owned()))
}
