//! Taking things away from a running lab, and giving them back.

use crate::host;
use crate::layout::CONTROL;
use crate::state::HostProcesses;
use crate::teardown;
use crate::{Lab, LabError};
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
    /// Hurts a host or its agent. Hurting what is hurt already changes nothing.
    ///
    /// # Errors
    /// No such host, it is off, or it has no agent.
    pub fn kill(&self, host: &str, how: Hurt) -> Result<(), LabError> {
        let _lock = self.dir.lock()?;
        let mut state = self.dir.read()?;
        let layout = state.layout();
        state.check_host(host)?;
        let target = layout
            .host(host)
            .ok_or_else(|| LabError::Off(host.to_owned()))?;
        match how {
            Hurt::Power => {
                let Some(processes) = state.hosts.remove(host) else {
                    return Ok(());
                };
                power_off(&processes);
                // Whoever still has a foot in the dead host's namespace must not keep it on the wire.
                host::unplug(state.init_of(CONTROL)?, target)?;
                teardown::reap(&processes)?;
                self.dir.write(&state)
            }
            Hurt::Links => {
                state.init_of(host)?;
                host::set_carrier(state.init_of(CONTROL)?, target, false)
            }
            Hurt::Agent | Hurt::Freeze => {
                state.init_of(host)?;
                let no_agent = || LabError::NoAgent(host.to_owned());
                let agent = state
                    .hosts
                    .get(host)
                    .and_then(|host| host.agent)
                    .ok_or_else(no_agent)?;
                if how == Hurt::Freeze {
                    return agent
                        .process
                        .signal(Signal::SIGSTOP)
                        .then_some(())
                        .ok_or_else(no_agent);
                }
                agent.process.kill()?;
                agent.launcher.kill()
            }
        }
    }

    /// Undoes [`Lab::kill`]: power with the same addresses and pods, cables, the agent.
    ///
    /// # Errors
    /// No such host, or it cannot be built again.
    pub fn start(&self, host: &str) -> Result<(), LabError> {
        let _lock = self.dir.lock()?;
        let mut state = self.dir.read()?;
        let layout = state.layout();
        state.check_host(host)?;
        let Some(target) = layout.host(host) else {
            return Ok(());
        };
        let control = state.init_of(CONTROL)?;
        if state.init_of(host).is_err() {
            host::unplug(control, target)?;
            let processes = host::start(&self.dir, host, &host::sysctls(target))?;
            state.hosts.insert(host.to_owned(), processes);
            self.dir.write(&state)?;
            self.connect(&state, &layout, &[target])?;
        } else {
            host::set_carrier(control, target, true)?;
        }
        let agent = state.hosts.get(host).and_then(|host| host.agent);
        match agent {
            Some(agent) if agent.process.is_alive() => {
                agent.process.signal(Signal::SIGCONT);
                Ok(())
            }
            _ if state.agents && target.is_node() => self.start_agent(&mut state, host),
            _ => Ok(()),
        }
    }
}

fn power_off(processes: &HostProcesses) {
    processes.init.signal(Signal::SIGKILL);
    processes.launcher.signal(Signal::SIGKILL);
}
