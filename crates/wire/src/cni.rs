//! What the CNI plugin `egret-cni` and the agent of the same node say to each other, and what the plugin reads where no
//! agent answers.
//!
//! One connection per call, one line of JSON each way: [`Request`], then [`Answer`]. The format is frozen by its
//! [`VERSION`]: fields may be added, and are ignored by those who do not know them.
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
/// The agent's socket for the plugin, unless the plugin's configuration names another one.
pub const SOCKET: &str = "/run/egret/cni.sock";
/// Where the agent keeps [`Known`], unless the plugin's configuration names another file.
pub const KNOWN_FILE: &str = "/var/lib/egret/cni/known.json";
/// Longest request or answer in bytes: a garbage collection that names 2000 attachments takes about half of it.
pub const LINE_BYTES_MAX: u64 = 512 * 1024;
/// The agent answers within this many seconds, if only to say that the pod must wait.
pub const ANSWER_SECS: u64 = 12;
/// Versions of the CNI specification that the plugin speaks.
pub const SPEC_VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// Name of the plugin: its file, and the `type` in a configuration.
pub const PLUGIN: &str = "egret-cni";

/// What the plugin asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// [`VERSION`] of the plugin.
    pub version: u32,
    /// What it is about.
    pub call: Call,
}

/// A call of the runtime (CNI specification, section 2 "Execution Protocol").
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Call {
    /// A pod has got these addresses. Answered when the kernel treats them right.
    Add(Attachment),
    /// Does the kernel still treat them right?
    Check(Attachment),
    /// They are the pod's no more. Answered when the kernel knows; a second time changes nothing.
    Del(Attachment),
    /// Everything but these is gone.
    Gc {
        /// What is still there.
        valid: Vec<AttachmentId>,
    },
    /// Can pods be added?
    Status {},
}

/// Names an attachment of a container to the network (CNI specification: `CNI_CONTAINERID`, `CNI_IFNAME`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AttachmentId {
    /// The container, which for Kubernetes is the pod's sandbox.
    pub container: String,
    /// The device in it.
    pub interface: String,
}

/// An attachment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    /// Its name.
    pub id: AttachmentId,
    /// Whose it is; `None` for containers that are no pods.
    pub pod: Option<PodId>,
    /// The addresses that plugins before this one gave. May be empty in [`Call::Del`].
    pub addresses: Vec<IpAddr>,
}

/// Names a pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PodId {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid, where the runtime tells.
    pub uid: Option<String>,
}

impl std::fmt::Display for PodId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What the agent says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Answer {
    /// The kernel is as asked.
    Done {},
    /// Not yet: the runtime shall try again.
    Later {
        /// For people.
        why: String,
    },
    /// The request makes no sense to this agent.
    Refused {
        /// For people.
        why: String,
    },
}

/// A line that is not what it should be.
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

    /// As sent.
    pub fn to_line(&self) -> String {
        line(self)
    }

    /// As received.
    ///
    /// # Errors
    /// It is none, or of a version with other calls.
    pub fn from_line(text: &str) -> Result<Self, LineError> {
        let what = "a request";
        serde_json::from_str(text).map_err(|source| LineError { what, source })
    }
}

impl Answer {
    /// As sent.
    pub fn to_line(&self) -> String {
        line(self)
    }

    /// As received.
    ///
    /// # Errors
    /// It is none.
    pub fn from_line(text: &str) -> Result<Self, LineError> {
        let what = "an answer";
        serde_json::from_str(text).map_err(|source| LineError { what, source })
    }
}

/// What an agent leaves on disk for the plugin, so that a pod which no policy can select starts without it.
///
/// A pod's labels are known to the agent alone, so without it the question is put by namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Known {
    /// [`VERSION`] of who wrote it.
    pub version: u32,
    /// Namespaces in which a policy may select pods of this node.
    pub waiting: BTreeSet<String>,
    /// Namespaces in which none does, although `others_wait`.
    pub free: BTreeSet<String>,
    /// Pods of namespaces in neither list may be selected.
    pub others_wait: bool,
    /// Pods of this node that no policy selects, whatever their namespace: `namespace/name/uid`.
    pub free_pods: BTreeSet<String>,
    /// Addresses that the kernel treats as those of selected pods.
    pub addresses: BTreeSet<IpAddr>,
}

impl Known {
    /// How a pod is named in `free_pods`.
    pub fn pod(namespace: &str, name: &str, uid: &str) -> String {
        format!("{namespace}/{name}/{uid}")
    }

    /// Why a pod must not start before an agent has seen to it; `None`: it may.
    pub fn reason_to_wait(&self, pod: Option<&PodId>, addresses: &[IpAddr]) -> Option<String> {
        if let Some(address) = addresses.iter().find(|a| self.addresses.contains(a)) {
            return Some(format!(
                "its address {address} is still that of a selected pod in the kernel"
            ));
        }
        // Containers that are no pods are selected by nothing.
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

    /// As kept on disk.
    pub fn to_text(&self) -> String {
        line(self)
    }

    /// As read from disk.
    ///
    /// # Errors
    /// It is damaged.
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
        // A pod of the same name that came later may have other labels.
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
