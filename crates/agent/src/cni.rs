//! The CNI: the plugin `egret-cni` announces pods and their end before the API shows it.
//!
//! ```text
//! runtime -> egret-cni -> socket thread --PendingCall--> main loop: PendingCalls --answer--> egret-cni
//!                                                    |  lays announced addresses over the view
//!                                                    +- writes the plugin's file: pods that may start without an agent
//! installer thread: chains the plugin into the runtime's configuration, and repairs it there
//! ```

mod chain;
mod install;
mod pending;
mod state_files;

pub(crate) use install::{keep_installed, uninstall};
pub(crate) use pending::{PendingCalls, Round};
pub(crate) use state_files::forget;

use crate::error::AgentError;
use crate::threads::{Notify, spawn};
use crate::unix_socket;
use egret_wire::cni::{Answer, Call, LINE_BYTES_MAX, Request, VERSION};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Longest wait for a request after the plugin has connected, and for it to receive an answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// Paths of the CNI socket and of the plugin's installation.
#[derive(Clone, Debug)]
pub struct CniConfig {
    /// Socket for the plugin.
    pub socket: PathBuf,
    /// Where to install the plugin; `None`: no installation, existing files are not touched.
    pub install: Option<InstallConfig>,
}

/// Paths of the plugin's installation.
#[derive(Clone, Debug)]
pub struct InstallConfig {
    /// The runtime's CNI configuration directory, usually /etc/cni/net.d.
    pub conf_directory: PathBuf,
    /// The runtime's plugin directory.
    pub bin_directory: PathBuf,
    /// The plugin's executable as shipped with the agent.
    pub plugin: PathBuf,
    /// Remove the installation of an earlier agent instead of installing.
    pub remove: bool,
}

/// A call of the plugin on its way to the main loop, with its reply channel.
pub(crate) struct PendingCall {
    pub(crate) call: Call,
    stream: Option<UnixStream>,
}

impl PendingCall {
    /// Answers and closes the connection. The caller may have disconnected.
    pub(crate) fn answer(mut self, answer: &Answer) {
        if let Some(mut stream) = self.stream.take() {
            let _ = stream.write_all(answer.to_line().as_bytes());
        }
    }

    #[cfg(test)]
    pub(crate) fn from_test(call: Call, stream: UnixStream) -> Self {
        let stream = Some(stream);
        Self { call, stream }
    }
}

/// Listens for the plugin. Only root may connect.
pub(crate) fn listen(path: &Path, notify: Notify<PendingCall>) -> Result<(), AgentError> {
    let listener = unix_socket::bind(path).map_err(|source| AgentError::Io {
        doing: "listening on the socket for the CNI plugin",
        source,
    })?;
    spawn("cni", move || {
        for stream in listener.incoming().flatten() {
            match read(stream) {
                Ok(pending) => {
                    if !notify(pending) {
                        return;
                    }
                }
                Err(error) => tracing::warn!(%error, "a call of the CNI plugin cannot be read"),
            }
        }
    })
}

fn read(stream: UnixStream) -> io::Result<PendingCall> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    BufReader::new((&stream).take(LINE_BYTES_MAX)).read_line(&mut line)?;
    let refused = |why: String| Answer::Refused { why };
    let answer = match Request::from_line(&line) {
        Ok(request) if request.version == VERSION => {
            let (call, stream) = (request.call, Some(stream));
            return Ok(PendingCall { call, stream });
        }
        Ok(request) => refused(format!(
            "this agent speaks version {VERSION} and not {}",
            request.version
        )),
        Err(error) => refused(egret_core::error::with_causes(&error)),
    };
    let _ = (&stream).write_all(answer.to_line().as_bytes());
    Err(io::Error::other(format!("{answer:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_those_of_the_plugin() {
        assert_eq!(egret_core::numbers::CNI_SOCKET, egret_wire::cni::SOCKET);
        let state = Path::new(egret_core::numbers::STATE_DIR);
        assert_eq!(
            state_files::known_file(state),
            Path::new(egret_wire::cni::KNOWN_FILE)
        );
        let longest = egret_core::numbers::CNI_OBJECT_SECS.max(egret_core::numbers::CNI_LEASE_SECS);
        assert!(longest < egret_wire::cni::ANSWER_SECS);
    }

    #[test]
    fn requests_of_another_version_are_refused_with_a_reason() {
        for line in ["{\"version\":9,\"call\":{\"status\":{}}}\n", "nonsense\n"] {
            let (mut plugin, agent) = UnixStream::pair().unwrap();
            plugin.write_all(line.as_bytes()).unwrap();
            assert!(read(agent).is_err());
            let mut answer = String::new();
            plugin.read_to_string(&mut answer).unwrap();
            let answer = Answer::from_line(&answer).unwrap();
            assert!(matches!(answer, Answer::Refused { .. }), "{answer:?}");
        }
    }
}
