//! Protocol between the CNI plugin `egret-cni` and the agent of the same node, and the file that the plugin reads where
//! no agent answers.
//!
//! One connection per call, one line of JSON each way: [`Request`], then [`Answer`]. The format is frozen by its
//! [`VERSION`]: fields may be added, and readers ignore unknown ones.
//!
//! ```
//! use egret_wire::cni::{Answer, Call, Request};
//! let request = Request::new(Call::Status {});
//! let line = request.to_line();
//! assert_eq!(line, "{\"version\":1,\"call\":{\"status\":{}}}\n");
//! assert_eq!(Request::from_line(&line).unwrap(), request);
//! assert_eq!(Answer::from_line("{\"done\":{}}\n").unwrap(), Answer::Done {});
//! ```

use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Version of request, answer and [`Known`].
pub const VERSION: u32 = 1;
/// Default path of the agent's socket for the plugin; the plugin's configuration can name another one.
pub const SOCKET: &str = "/run/egret/cni.sock";
/// Default path of the file with [`Known`], written by the agent; the plugin's configuration can name another one.
pub const KNOWN_FILE: &str = "/var/lib/egret/cni/known.json";
/// Maximum length of a request or answer in bytes: a garbage collection that names 2000 attachments takes about half of
/// it.
pub const LINE_BYTES_MAX: u64 = 512 * 1024;
/// Seconds within which the agent answers, at least that the pod must wait.
pub const ANSWER_SECS: u64 = 12;
/// Versions of the CNI specification that the plugin supports.
pub const SPEC_VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// Name of the plugin: its file, and the `type` in a configuration.
pub const PLUGIN: &str = "egret-cni";

/// Request of the plugin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// [`VERSION`] of the plugin.
    pub version: u32,
    /// The call.
    pub call: Call,
}

/// A call of the runtime (CNI specification, section 2 "Execution Protocol").
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Call {
    /// A pod got these addresses. Answered when the kernel treats them correctly.
    Add(Attachment),
    /// Checks that the kernel still treats the addresses correctly.
    Check(Attachment),
    /// The addresses are no longer the pod's. Answered when the kernel has been updated; idempotent.
    Del(Attachment),
    /// Removes every attachment except these.
    Gc {
        /// Attachments that still exist.
        valid: Vec<AttachmentId>,
    },
    /// Checks that pods can be added.
    Status {},
}

/// Identifies an attachment of a container to the network (CNI specification: `CNI_CONTAINERID`, `CNI_IFNAME`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AttachmentId {
    /// Id of the container, which for Kubernetes is the pod's sandbox.
    pub container: String,
    /// Name of the device inside it.
    pub interface: String,
}

/// An attachment with its pod and addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    /// Its id.
    pub id: AttachmentId,
    /// Pod of the container; `None` for containers that are no pods.
    pub pod: Option<PodId>,
    /// Addresses that earlier plugins of the chain assigned. May be empty in [`Call::Del`].
    pub addresses: Vec<IpAddr>,
}

/// Identifies a pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PodId {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid, where the runtime passes it.
    pub uid: Option<String>,
}

impl std::fmt::Display for PodId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Answer of the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Answer {
    /// The kernel is as requested.
    Done {},
    /// Not yet: the runtime must try again.
    Later {
        /// Reason, for people.
        why: String,
    },
    /// This agent cannot interpret the request.
    Refused {
        /// Reason, for people.
        why: String,
    },
}

/// Error of a line that cannot be parsed.
#[derive(Debug, thiserror::Error)]
#[error("reading {what} of version {VERSION}")]
pub struct LineError {
    what: &'static str,
    #[source]
    source: serde_json::Error,
}

fn line(value: &impl Serialize) -> String {
    let mut text = serde_json::to_string(value).expect("these types have no maps with odd keys");
    text.push('\n');
    text
}

impl Request {
    /// A request of this version.
    pub fn new(call: Call) -> Self {
        Self {
            version: VERSION,
            call,
        }
    }

    /// The line to send.
    pub fn to_line(&self) -> String {
        line(self)
    }

    /// Parses a received line.
    ///
    /// # Errors
    /// It is no request, or of a version with other calls.
    pub fn from_line(text: &str) -> Result<Self, LineError> {
        let what = "a request";
        serde_json::from_str(text).map_err(|source| LineError { what, source })
    }
}

impl Answer {
    /// The line to send.
    pub fn to_line(&self) -> String {
        line(self)
    }

    /// Parses a received line.
    ///
    /// # Errors
    /// It is no answer.
    pub fn from_line(text: &str) -> Result<Self, LineError> {
        let what = "an answer";
        serde_json::from_str(text).map_err(|source| LineError { what, source })
    }
}

/// State that an agent leaves on disk for the plugin, so that a pod which no policy can select starts without the
/// agent.
///
/// Only the agent knows a pod's labels, so without it the decision is made by namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Known {
    /// [`VERSION`] of the writer.
    pub version: u32,
    /// Namespaces in which a policy may select pods of this node.
    pub waiting: BTreeSet<String>,
    /// Namespaces without selected pods, although `others_wait` is set.
    pub free: BTreeSet<String>,
    /// Pods of namespaces in neither list may be selected.
    pub others_wait: bool,
    /// Pods of this node that no policy selects, whatever their namespace: `namespace/name/uid`.
    pub free_pods: BTreeSet<String>,
    /// Addresses that the kernel treats as selected pods'.
    pub addresses: BTreeSet<IpAddr>,
}

impl Known {
    /// Key of a pod in `free_pods`.
    pub fn pod(namespace: &str, name: &str, uid: &str) -> String {
        format!("{namespace}/{name}/{uid}")
    }

    /// Why a pod must not start before an agent has handled it; `None`: it may start.
    pub fn reason_to_wait(&self, pod: Option<&PodId>, addresses: &[IpAddr]) -> Option<String> {
        if let Some(address) = addresses.iter().find(|a| self.addresses.contains(a)) {
            return Some(format!(
                "its address {address} is still that of a selected pod in the kernel"
            ));
        }
        // Containers that are no pods are never selected.
        let pod = pod?;
        let uid = pod.uid.as_deref().unwrap_or_default();
        let free = self
            .free_pods
            .contains(&Self::pod(&pod.namespace, &pod.name, uid));
        if free || self.free.contains(&pod.namespace) {
            return None;
        }
        let waits = self.others_wait || self.waiting.contains(&pod.namespace);
        waits.then(|| {
            format!(
                "an egress policy may select pods of the namespace {}",
                pod.namespace
            )
        })
    }

    /// Text of the file.
    pub fn to_text(&self) -> String {
        line(self)
    }

    /// Parses the text of the file.
    ///
    /// # Errors
    /// The file is damaged.
    pub fn from_text(text: &str) -> Result<Self, LineError> {
        let what = "what is known of pods";
        serde_json::from_str(text).map_err(|source| LineError { what, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(namespace: &str, uid: Option<&str>) -> PodId {
        PodId {
            namespace: namespace.into(),
            name: "p".into(),
            uid: uid.map(str::to_owned),
        }
    }

    #[test]
    fn every_call_has_one_form_of_bytes() {
        let attachment = Attachment {
            id: AttachmentId {
                container: "c1".into(),
                interface: "eth0".into(),
            },
            pod: Some(pod("default", Some("u1"))),
            addresses: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
        };
        let add = Request::new(Call::Add(attachment.clone())).to_line();
        assert_eq!(
            add,
            "{\"version\":1,\"call\":{\"add\":{\"id\":{\"container\":\"c1\",\"interface\":\"eth0\"},\
             \"pod\":{\"namespace\":\"default\",\"name\":\"p\",\"uid\":\"u1\"},\
             \"addresses\":[\"10.0.0.1\",\"fd00::1\"]}}}\n"
        );
        for call in [
            Call::Add(attachment.clone()),
            Call::Check(attachment.clone()),
            Call::Del(attachment.clone()),
            Call::Gc {
                valid: vec![attachment.id],
            },
            Call::Status {},
        ] {
            let request = Request::new(call);
            assert_eq!(Request::from_line(&request.to_line()).unwrap(), request);
        }
        assert!(Request::from_line("{}").is_err());
        let later = Answer::Later { why: "x".into() };
        assert_eq!(later.to_line(), "{\"later\":{\"why\":\"x\"}}\n");
        assert_eq!(Answer::from_line(&later.to_line()).unwrap(), later);
    }

    #[test]
    fn fields_of_later_versions_are_no_trouble() {
        let text = "{\"version\":1,\"call\":{\"status\":{\"new\":1}},\"more\":true}";
        assert_eq!(Request::from_line(text).unwrap().call, Call::Status {});
    }

    #[test]
    fn without_an_agent_the_namespace_decides_unless_the_pod_is_known() {
        let address: IpAddr = "10.0.0.1".parse().unwrap();
        let mut known = Known::default();
        assert_eq!(
            known.reason_to_wait(Some(&pod("a", None)), &[address]),
            None
        );
        known.waiting.insert("a".into());
        assert!(
            known
                .reason_to_wait(Some(&pod("a", Some("u"))), &[])
                .is_some()
        );
        assert_eq!(known.reason_to_wait(Some(&pod("b", None)), &[]), None);
        known.free_pods.insert(Known::pod("a", "p", "u"));
        assert_eq!(known.reason_to_wait(Some(&pod("a", Some("u"))), &[]), None);
        // A later pod of the same name may have other labels.
        assert!(
            known
                .reason_to_wait(Some(&pod("a", Some("v"))), &[])
                .is_some()
        );
        known.others_wait = true;
        assert!(known.reason_to_wait(Some(&pod("b", None)), &[]).is_some());
        known.free.insert("b".into());
        assert_eq!(known.reason_to_wait(Some(&pod("b", None)), &[]), None);
        known.addresses.insert(address);
        assert!(
            known
                .reason_to_wait(Some(&pod("b", None)), &[address])
                .is_some()
        );
        assert!(known.reason_to_wait(None, &[address]).is_some());
        assert_eq!(known.reason_to_wait(None, &[]), None);
        assert_eq!(Known::from_text(&known.to_text()).unwrap(), known);
    }
}
