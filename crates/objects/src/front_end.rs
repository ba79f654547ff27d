//! Front-ends: translate objects of earlier systems into the model; nothing behind the model knows that they exist.
//!
//! ```text
//!  any source:  foreign manifests --Foreign::of--> [Foreign]
//!                                                     | apply (after everything else is in the view)
//!                                                     v
//!                     View.snapshot.policies, .gateways (where there are none), settings; findings
//!                     View.front_ends: the translation of each object, for its status
//!  controller:  plan --status()--> each object's status in its own form, by Source::write_front_end_status
//! ```
//!
//! Everything here is a pure function of objects and settings, so that controller and agents see the same policies.
//! Front-ends are off by default. While another controller may still run, an object is adopted only with the annotation
//! [`ADOPT_ANNOTATION`]; others are never written to.

mod egress_mapper;
mod field;
mod gateway;
mod served;
mod static_egress_ip;
mod status;

pub use served::{FrontEnds, Object, Problem};
pub(crate) use status::conditions_of;
pub use status::{Told, Written, status};

use crate::source::View;
use crate::status::PolicyStatus;
use egret_core::model::{Finding, Kind, ObjectRef, Policy};
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fmt;

/// Annotation that hands an object of an earlier system over to Egret, with the value `"true"`.
pub const ADOPT_ANNOTATION: &str = "egret.dev/adopt";

/// An earlier system whose objects can be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FrontEnd {
    /// `StaticEgressIP` of kube-static-egress-ip, both groups.
    StaticEgressIp,
    /// `Egress`, `Vip` and `EgressMapper` of egress-mapper.
    EgressMapper,
}

impl FrontEnd {
    /// Every front-end.
    pub const ALL: [FrontEnd; 2] = [FrontEnd::StaticEgressIp, FrontEnd::EgressMapper];

    /// Name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            FrontEnd::StaticEgressIp => "staticegressip",
            FrontEnd::EgressMapper => "egressmapper",
        }
    }
}

impl fmt::Display for FrontEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for FrontEnd {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = FrontEnd::ALL.into_iter().find(|one| one.name() == text);
        found.ok_or_else(|| "write staticegressip or egressmapper".to_owned())
    }
}

/// A kind of an earlier system, with its names in manifests and in the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForeignKind {
    /// Unique kind inside Egret.
    pub kind: Kind,
    /// The front-end that it belongs to.
    pub front_end: FrontEnd,
    /// `apiVersion`.
    pub api_version: &'static str,
    /// `kind`.
    pub name: &'static str,
    /// Plural in API paths.
    pub plural: &'static str,
}

/// All kinds; all of them are namespaced.
pub const KINDS: [ForeignKind; 5] = [
    ForeignKind {
        kind: Kind::NirmataStaticEgressIP,
        front_end: FrontEnd::StaticEgressIp,
        api_version: "staticegressips.nirmata.io/v1alpha1",
        name: "StaticEgressIP",
        plural: "staticegressips",
    },
    ForeignKind {
        kind: Kind::StaticEgressIP,
        front_end: FrontEnd::StaticEgressIp,
        api_version: "staticegressips.io/v1alpha1",
        name: "StaticEgressIP",
        plural: "staticegressips",
    },
    ForeignKind {
        kind: Kind::MapperEgress,
        front_end: FrontEnd::EgressMapper,
        api_version: "egress.mapper.com/v1alpha1",
        name: "Egress",
        plural: "egresses",
    },
    ForeignKind {
        kind: Kind::MapperVip,
        front_end: FrontEnd::EgressMapper,
        api_version: "egress.mapper.com/v1alpha1",
        name: "Vip",
        plural: "vips",
    },
    ForeignKind {
        kind: Kind::MapperSettings,
        front_end: FrontEnd::EgressMapper,
        api_version: "egress.mapper.com/v1alpha1",
        name: "EgressMapper",
        plural: "egressmappers",
    },
];

/// Names of a front-end's kind; `None` for every other kind.
pub fn foreign_kind(kind: Kind) -> Option<&'static ForeignKind> {
    KINDS.iter().find(|known| known.kind == kind)
}

/// Enabled front-ends and their rights: the same for the controller and every agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Enabled front-ends; empty by default.
    pub enabled: BTreeSet<FrontEnd>,
    /// Adopt objects without [`ADOPT_ANNOTATION`]: no other controller runs.
    pub adopt_all: bool,
    /// Namespaces whose objects may affect others: an egress-mapper `Egress` there may name pods of any namespace, its
    /// `Vip`s serve every namespace, and its `EgressMapper` is the effective one.
    pub admin_namespaces: BTreeSet<String>,
}

impl Default for Settings {
    /// No front-end is enabled. `default` is the namespace that egress-mapper had built in.
    fn default() -> Self {
        Self {
            enabled: BTreeSet::new(),
            adopt_all: false,
            admin_namespaces: BTreeSet::from(["default".to_owned()]),
        }
    }
}

impl Settings {
    /// Whether objects of this kind are read.
    pub fn reads(&self, kind: Kind) -> bool {
        foreign_kind(kind).is_some_and(|known| self.enabled.contains(&known.front_end))
    }
}

/// An object of an earlier system, as read.
#[derive(Clone, Debug, PartialEq)]
pub struct Foreign {
    /// Its name.
    pub object: ObjectRef,
    /// Its uid.
    pub uid: String,
    /// Its `metadata.generation`.
    pub generation: i64,
    /// Seconds since the epoch at which it was created.
    pub created_secs: i64,
    /// Whether it carries [`ADOPT_ANNOTATION`].
    pub adopted: bool,
    /// `spec`; null if there is none.
    pub spec: Value,
    /// `status`; null if there is none.
    pub status: Value,
}

impl Foreign {
    /// Reads it from a whole manifest.
    pub fn of(object: ObjectRef, whole: &Value) -> Self {
        let metadata = &whole["metadata"];
        let created = metadata["creationTimestamp"].as_str();
        let created = created.and_then(|text| text.parse::<Timestamp>().ok());
        Self {
            object,
            uid: metadata["uid"].as_str().unwrap_or_default().to_owned(),
            generation: metadata["generation"].as_i64().unwrap_or(0),
            created_secs: created.map_or(0, Timestamp::as_second),
            adopted: metadata["annotations"][ADOPT_ANNOTATION] == "true",
            spec: whole["spec"].clone(),
            status: whole["status"].clone(),
        }
    }
}

/// Result of translating one object.
struct Translation {
    object: Object,
    policies: Vec<Policy>,
}

/// Translates the objects of enabled front-ends into the view, which must be complete but for them.
pub fn apply(view: &mut View, foreign: Vec<Foreign>, settings: &Settings) {
    if settings.enabled.is_empty() {
        return;
    }
    let mut taken: Vec<Foreign> = Vec::new();
    for one in foreign {
        if !settings.reads(one.object.kind) {
            continue;
        }
        if settings.adopt_all || one.adopted {
            taken.push(one);
        } else {
            view.findings.push(not_taken(&one));
        }
    }
    // Older first, then by name: precedence between two objects must not depend on the reader.
    taken.sort_by(|a, b| (a.created_secs, &a.object).cmp(&(b.created_secs, &b.object)));
    let synthesized = gateway::Choice::of(&view.snapshot);
    let mut all = static_egress_ip::translate(&view.snapshot, &taken, &synthesized);
    let mapper = egress_mapper::translate(&taken, settings, &synthesized);
    all.extend(mapper.objects);
    let snapshot = &mut view.snapshot;
    snapshot.settings.never_destinations.extend(mapper.pods);
    snapshot.settings.service_cidrs.extend(mapper.services);
    synthesized.add_to(snapshot, &all, mapper.interface.as_deref());
    for (object, translation) in all {
        for problem in &translation.object.problems {
            view.findings.push(problem.finding(&object));
        }
        for policy in translation.policies {
            let name = policy.object.clone();
            view.front_ends.origins.insert(name.clone(), object.clone());
            if let Some(said) = status::said_of(&translation.object.status, &name) {
                view.policies.insert(name, said);
            }
            view.snapshot.policies.push(policy);
        }
        view.front_ends.objects.insert(object, translation.object);
    }
    view.findings.sort();
    view.findings.dedup();
}

fn not_taken(one: &Foreign) -> Finding {
    Finding {
        object: one.object.clone(),
        field: format!("metadata.annotations[{ADOPT_ANNOTATION}]"),
        value: String::new(),
        remedy: "it is not served, because another controller may serve it: write \"true\" here when that one no \
                 longer does, or start controller and agents with --front-end-adopt-all"
            .to_owned(),
    }
}

/// A policy's status, read from the status of its object.
type Said = PolicyStatus;
