//! Questions of the command line to the agent of the same node: one line of JSON each way. They change nothing.

use super::cli_status::Status;
use super::path_view::{measured, paths};
use crate::error::AgentError;
use crate::observe::canary::Shown;
use crate::threads::{Notify, spawn};
use crate::unix_socket;
use egret_core::explain::{Explanation, Leaves, Stage, Step};
use egret_core::machines::GatewayLiveness;
use egret_core::node::{CanaryEnd, NodeOutcome};
use egret_objects::View;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{self, Sender};
use std::time::Duration;

/// Longest question, bytes.
const QUESTION_BYTES_MAX: u64 = 4096;
/// Longest wait for either side.
const PATIENCE: Duration = Duration::from_secs(3);

/// Question to the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "camelCase")]
pub enum Question {
    /// Status of the cluster, as this node sees it.
    Status,
    /// Last measurement of this node's paths.
    Paths,
    /// Treatment of a pod's traffic.
    Explain {
        /// Namespace of the pod.
        namespace: String,
        /// Name of the pod.
        pod: String,
        /// Destination of the traffic.
        to: Option<IpAddr>,
    },
}

/// A question on its way to the main loop, with its reply channel.
pub(crate) struct Query {
    question: Question,
    reply: Sender<String>,
}

impl Query {
    pub(crate) fn answer(
        &self,
        view: Option<&View>,
        outcome: &Option<NodeOutcome>,
        (seen, canaries): (&GatewayLiveness, &Shown),
    ) {
        let Some(view) = view else {
            let _ = self
                .reply
                .send(r#"{"error":"the agent has read no objects yet"}"#.into());
            return;
        };
        let answer = match &self.question {
            Question::Status => {
                let mut status = Status::of_agent(view, outcome.as_ref(), seen);
                status.paths = paths(canaries);
                to_json(&status)
            }
            Question::Paths => to_json(&paths(canaries)),
            Question::Explain { namespace, pod, to } => {
                let mut explained = egret_core::explain::explain(
                    &view.snapshot,
                    outcome.as_ref(),
                    (namespace, pod),
                    *to,
                );
                add_measured(&mut explained, outcome.as_ref(), canaries);
                to_json(&explained)
            }
        };
        // The caller may have disconnected.
        let _ = self.reply.send(answer);
    }
}

/// Adds to the paths of an explanation when they were last measured.
fn add_measured(explained: &mut Explanation, outcome: Option<&NodeOutcome>, canaries: &Shown) {
    let (Some(outcome), Leaves::From(addresses)) = (outcome, &explained.leaves) else {
        return;
    };
    let targets = outcome.state.worker.targets.iter();
    let groups: BTreeSet<_> = targets
        .filter(|(_, target)| addresses.contains(&target.address))
        .filter_map(|(id, target)| Some((outcome.target_groups.get(id)?, target.address.is_ipv6())))
        .collect();
    let verdict = explained.steps.len().saturating_sub(1);
    for one in measured(canaries) {
        let (group, v6) = (&one.path.group, one.path.egress.is_ipv6());
        if !groups.contains(&(group, v6)) {
            continue;
        }
        let result = match (one.broken, one.path.end) {
            (None, CanaryEnd::Gateway) => "packets of our own came back from it".to_owned(),
            (None, CanaryEnd::Guard) => {
                "packets of our own passed every hook of this node, and were not sent further"
                    .to_owned()
            }
            (Some(broken), _) => format!("packets of our own do not come back from it: {broken}"),
        };
        let family = if v6 { "IPv6" } else { "IPv4" };
        let (name, ago) = (&group.gateway.0, one.secs_ago);
        let step = Step {
            stage: Stage::Gateway,
            ok: one.broken.is_none(),
            text: format!("EgressGateway {name}, {family}: {result}, measured {ago} s ago"),
        };
        explained.steps.insert(verdict, step);
    }
}

fn to_json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).unwrap_or_else(|error| format!(r#"{{"error":"{error}"}}"#))
}

/// Listens for questions.
pub(crate) fn listen(path: &Path, notify: Notify<Query>) -> Result<(), AgentError> {
    let listener = unix_socket::bind(path).map_err(|source| AgentError::Io {
        doing: "listening on the agent's socket",
        source,
    })?;
    spawn("socket", move || {
        for stream in listener.incoming().flatten() {
            if let Err(error) = serve(stream, &notify) {
                tracing::debug!(%error, "a question was not answered");
            }
        }
    })
}

fn serve(mut stream: UnixStream, notify: &Notify<Query>) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    BufReader::new((&stream).take(QUESTION_BYTES_MAX)).read_line(&mut line)?;
    let answer = match serde_json::from_str(&line) {
        Ok(question) => {
            let (reply, inbox) = mpsc::channel();
            // If the receiver is gone, the reply channel is dropped and the question stays unanswered.
            let _ = notify(Query { question, reply });
            inbox.recv_timeout(PATIENCE).map_err(io::Error::other)?
        }
        Err(error) => to_json(&serde_json::json!({ "error": error.to_string() })),
    };
    stream.write_all(answer.as_bytes())?;
    stream.write_all(b"\n")
}

/// Asks the agent that listens at `path`; the answer is JSON.
///
/// # Errors
/// No agent listens there, or it does not answer in time.
pub fn ask(path: &Path, question: &Question) -> io::Result<String> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(serde_json::to_string(question)?.as_bytes())?;
    stream.write_all(b"\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
