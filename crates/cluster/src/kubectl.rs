//! Runs kubectl and returns its output.

use crate::ClusterError;
use crate::error::io;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Poll interval for a condition. Every poll is a process of its own.
const POLL: Duration = Duration::from_millis(100);

/// kubectl as one user of one cluster.
#[derive(Debug, Clone)]
pub struct Kubectl {
    /// The command up to kubectl's own arguments: namespaces, program, kubeconfig.
    pub(crate) prefix: Vec<String>,
    pub(crate) kubeconfig: PathBuf,
}

/// Output and success of a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// It succeeded.
    pub success: bool,
    /// Standard output.
    pub out: String,
    /// Standard error, without blanks at its ends.
    pub err: String,
}

impl Kubectl {
    /// The kubeconfig file that it uses.
    pub fn kubeconfig(&self) -> &PathBuf {
        &self.kubeconfig
    }

    /// The command, for adding arguments and streams.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.prefix[0]);
        command
            .args(&self.prefix[1..])
            .env("KUBECONFIG", &self.kubeconfig)
            // Without caches and preferences of the user who runs the test.
            .env("HOME", self.kubeconfig.with_extension("home"))
            .env("KUBERC", "off");
        command
    }

    /// Runs it with `input` on its standard input; a failure of the program is no error.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn try_run(&self, arguments: &[&str], input: &str) -> Result<Said, ClusterError> {
        let mut child = self
            .command()
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(io("running kubectl"))?;
        let mut stdin = child.stdin.take().expect("standard input was asked for");
        // A kubectl that refuses its arguments reads nothing; its output matters more.
        let _ = stdin.write_all(input.as_bytes());
        drop(stdin);
        let output = child
            .wait_with_output()
            .map_err(io("waiting for kubectl"))?;
        Ok(Said {
            success: output.status.success(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        })
    }

    /// Runs it and returns its standard output.
    ///
    /// # Errors
    /// It cannot be started or fails.
    pub fn run(&self, arguments: &[&str]) -> Result<String, ClusterError> {
        self.run_with(arguments, "")
    }

    /// [`Self::run`] with standard input.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_with(&self, arguments: &[&str], input: &str) -> Result<String, ClusterError> {
        let said = self.try_run(arguments, input)?;
        if said.success {
            return Ok(said.out);
        }
        Err(ClusterError::Kubectl {
            arguments: arguments.join(" "),
            said: said.err,
        })
    }

    /// Applies manifests.
    ///
    /// # Errors
    /// The API server refuses one of them.
    pub fn apply(&self, manifests: &str) -> Result<String, ClusterError> {
        self.run_with(&["apply", "--server-side", "-f", "-"], manifests)
    }

    /// Applies CustomResourceDefinitions, a file or a folder of them, and waits until their kinds can be used.
    ///
    /// # Errors
    /// The API server refuses one of them, or one of its rules.
    pub fn define(&self, definitions: &Path) -> Result<(), ClusterError> {
        let path = definitions.display().to_string();
        self.run(&["apply", "--server-side", "-f", &path])?;
        let wait = ["wait", "--for=condition=Established", "--timeout=60s", "-f"];
        self.run(&[&wait[..], &[&path]].concat())?;
        Ok(())
    }

    /// Runs it repeatedly until its output satisfies `condition`.
    ///
    /// # Errors
    /// It does not within `timeout`; the error has the last answer.
    pub fn wait_until(
        &self,
        what: &str,
        timeout: Duration,
        arguments: &[&str],
        mut condition: impl FnMut(&Said) -> bool,
    ) -> Result<Said, ClusterError> {
        let deadline = Instant::now() + timeout;
        loop {
            let said = self.try_run(arguments, "")?;
            if condition(&said) {
                return Ok(said);
            }
            if Instant::now() > deadline {
                return Err(ClusterError::Timeout {
                    what: what.to_owned(),
                    seconds: timeout.as_secs(),
                    said: format!("{}{}", said.out, said.err),
                });
            }
            std::thread::sleep(POLL);
        }
    }
}
