//! Front-ends: objects of earlier systems, translated into the model; nothing behind the model knows that they exist.
//!
//! ```text
//!  any source:  foreign manifests --Foreign::of--> [Foreign]
//!                                                     | apply (after everything else is in the view)
//!                                                     v
//!                     View.snapshot.policies, .gateways (where there are none), settings; findings
//!                     View.front_ends: what each object became, for its status
//!  controller:  plan --status()--> each object's status in its own form, by Source::write_front_end_status
//! ```
//!
//! Everything here is a pure function of objects and settings, so that controller and agents see the same policies.
//! Off until enabled. While another controller may still be there, an object is taken only with the annotation
//! [`ADOPT_ANNOTATION`]; what is not taken is never written to.

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

/// Says, with the value `"true"`, that an object of an earlier system belongs to Egret now.
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

    /// How people name it on the command line.
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

/// A kind of an earlier system, as its manifests and the API name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForeignKind {
    /// Our name for it, which is unique.
    pub kind: Kind,
    /// The front-end that it belongs to.
    pub front_end: FrontEnd,
    /// `apiVersion`.
    pub api_version: &'static str,
    /// `kind`.
    pub name: &'static str,
    /// The plural that paths of the API have.
    pub plural: &'static str,
}

/// Every kind; all of them are namespaced.
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

/// What is known of a kind of a front-end; `None` for every other kind.
pub fn foreign_kind(kind: Kind) -> Option<&'static ForeignKind> {
    KINDS.iter().find(|known| known.kind == kind)
}

/// Which front-ends serve, and what they may: the same for the controller and every agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Those that serve; empty by default.
    pub enabled: BTreeSet<FrontEnd>,
    /// Objects are taken without [`ADOPT_ANNOTATION`]: no other controller is there.
    pub adopt_all: bool,
    /// Namespaces whose objects may speak for others: an egress-mapper `Egress` there may name pods of any namespace,
    /// its `Vip`s are for every namespace, and its `EgressMapper` is the one that counts.
    pub admin_namespaces: BTreeSet<String>,
}

impl Default for Settings {
    /// Nothing serves. `default` is the namespace that egress-mapper had built in.
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

/// An object of an earlier system, as it was read.
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
    /// It carries [`ADOPT_ANNOTATION`].
    pub adopted: bool,
    /// `spec`; null if there is none.
    pub spec: Value,
    /// `status`; null if there is none.
    pub status: Value,
}

impl Foreign {
    /// Out of a whole manifest.
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

/// What the translation of one object gives.
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
    // Older first, then by name: what decides between two objects must not depend on who reads them.
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

/// A policy's status as the last written status of its object has it.
type Said = PolicyStatus;
