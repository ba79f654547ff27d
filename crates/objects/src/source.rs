//! What every source of objects can do.

use crate::front_end::FrontEnds;
use crate::status::{
    AddressStatus, Condition, GatewayStatus, NodeReport, PolicyStatus, PoolStatus,
};
use egret_core::model::{
    AddressRecord, Finding, GatewayName, NodeName, NodeRecord, ObjectRef, PoolName, Settings,
    SharedMap, Snapshot,
};
use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;
use thiserror::Error;

/// Everything that a source knows at one moment. Copies share what is the same in both.
#[derive(Clone, Debug, PartialEq)]
pub struct View {
    /// The objects, validated.
    pub snapshot: Snapshot,
    /// What is wrong with objects; sorted.
    pub findings: Vec<Finding>,
    /// Status of policies, as it was last written.
    pub policies: SharedMap<ObjectRef, PolicyStatus>,
    /// Status of gateways.
    pub gateways: BTreeMap<GatewayName, GatewayStatus>,
    /// Status of pools.
    pub pools: BTreeMap<PoolName, PoolStatus>,
    /// Status of addresses.
    pub addresses: SharedMap<IpAddr, AddressStatus>,
    /// What agents report beside their [`NodeRecord`].
    pub nodes: SharedMap<NodeName, NodeReport>,
    /// Objects of earlier systems and what they became.
    pub front_ends: FrontEnds,
}

impl View {
    /// Nothing but settings.
    pub(crate) fn empty(settings: &Settings) -> Self {
        View {
            snapshot: Snapshot::empty(settings.clone()),
            findings: Vec::new(),
            policies: SharedMap::new(),
            gateways: BTreeMap::new(),
            pools: BTreeMap::new(),
            addresses: SharedMap::new(),
            nodes: SharedMap::new(),
            front_ends: FrontEnds::default(),
        }
    }
}

/// Why a source could not do as asked.
#[derive(Debug, Error)]
pub enum SourceError {
    /// Somebody else wrote the object first: read it again and decide again.
    #[error("{object} has version {found}, expected {expected} (0: absent)")]
    Conflict {
        /// The object.
        object: String,
        /// The version that the caller had seen; 0: none.
        expected: u64,
        /// The version that is there; 0: none.
        found: u64,
    },
    /// The object that should be changed is not there.
    #[error("{object} does not exist")]
    NotFound {
        /// The object.
        object: String,
    },
    /// A stored object cannot be read, so changing it could destroy what it says.
    #[error("{object} cannot be read and is therefore not overwritten: {why}")]
    Unreadable {
        /// The object.
        object: String,
        /// What is wrong with it.
        why: String,
    },
    /// The lock of the status directory did not come free in time.
    #[error("{path} stays locked by another process")]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// The source was opened for reading only.
    #[error("the source was opened for reading only")]
    ReadOnly,
    /// This controller does not lead, so it must not write.
    #[error("another controller leads")]
    NotLeader,
    /// Not everything has been read yet.
    #[error("waiting for {what} from the Kubernetes API: {why}")]
    NotYet {
        /// What is missing.
        what: String,
        /// Why, as far as that is known.
        why: String,
    },
    /// The API server, or a policy of the cluster, refuses to write this object; others it may take.
    #[error("{object} is refused: {why}")]
    Refused {
        /// The object.
        object: String,
        /// What was said.
        why: String,
    },
    /// A write of this object was not answered in time.
    #[error("no answer in time about {object}")]
    Unanswered {
        /// The object.
        object: String,
    },
    /// The API server, or the way to it, refused.
    #[error("{doing}: {why}")]
    Api {
        /// What was being done.
        doing: String,
        /// What was said.
        why: String,
    },
    /// The file system refused.
    #[error("{doing} {path}")]
    Io {
        /// What was being done, for example "reading".
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Something that a source writes down by itself, whatever is planned.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Notice {
    /// A person's object cannot be understood: its status says why.
    Invalid(ObjectRef),
    /// The label of gateways, put on the record of a node or taken from it.
    GatewayLabel(NodeName, bool),
}

/// A place that objects are read from and that status is written to.
///
/// Writes say what should be there; a write that would change nothing is left out. `now_secs` (seconds since the
/// epoch) becomes the transition time of conditions that changed.
pub trait Source: Send {
    /// Reads the newest view.
    fn snapshot(&mut self) -> Result<View, SourceError>;

    /// Blocks until something may have changed since the last [`Source::snapshot`] (`true`) or the time is over
    /// (`false`).
    fn wait(&mut self, timeout: Duration) -> Result<bool, SourceError>;

    /// Whether the caller may write: false while another controller leads. It must not plan either, for then what is
    /// written changes under it.
    fn leads(&self) -> bool {
        true
    }

    /// What has to be written down beside what is planned; each by itself, so that one that is refused stops no other.
    fn notices(&mut self) -> Vec<Notice> {
        Vec::new()
    }

    /// Writes one of [`Source::notices`]. Returns whether anything changed.
    fn write_notice(&mut self, _notice: &Notice, _now_secs: i64) -> Result<bool, SourceError> {
        Ok(false)
    }

    /// Writes an `EgressAddress` if its version is still `record.resource_version` (0: if it does not exist) and
    /// returns the new version. Fails with [`SourceError::Conflict`].
    fn write_address(&mut self, record: &AddressRecord) -> Result<u64, SourceError>;

    /// Deletes an `EgressAddress` if its version is still this. Fails with [`SourceError::Conflict`].
    fn delete_address(&mut self, address: IpAddr, resource_version: u64)
    -> Result<(), SourceError>;

    /// Writes the controller's part of an `EgressNode` (tunnel index, grants), making it if it is not there, and
    /// leaves the agent's part as it is. Returns its version.
    fn write_node_spec(&mut self, record: &NodeRecord) -> Result<u64, SourceError>;

    /// Writes the agent's part of an `EgressNode` and leaves the controller's part as it is. Fails with
    /// [`SourceError::NotFound`] until the controller has made it. Returns its version.
    fn write_node_status(
        &mut self,
        record: &NodeRecord,
        report: &NodeReport,
        now_secs: i64,
    ) -> Result<u64, SourceError>;

    /// Deletes the `EgressNode` of a node that is gone. No error if there is none.
    fn delete_node(&mut self, node: &NodeName) -> Result<(), SourceError>;

    /// Writes the status of an `Egress` or `ClusterEgress`. Returns whether anything changed; an object that is
    /// gone is left alone.
    fn write_policy_status(
        &mut self,
        object: &ObjectRef,
        status: &PolicyStatus,
        now_secs: i64,
    ) -> Result<bool, SourceError>;

    /// Writes the status of an `EgressGateway`.
    fn write_gateway_status(
        &mut self,
        gateway: &GatewayName,
        status: &GatewayStatus,
        now_secs: i64,
    ) -> Result<bool, SourceError>;

    /// Writes the status of an `EgressPool`.
    fn write_pool_status(
        &mut self,
        pool: &PoolName,
        status: &PoolStatus,
        now_secs: i64,
    ) -> Result<bool, SourceError>;

    /// Writes the status of an `EgressAddress`. Raises its version like every write.
    fn write_address_status(
        &mut self,
        address: IpAddr,
        status: &AddressStatus,
        now_secs: i64,
    ) -> Result<bool, SourceError>;

    /// Writes the whole status of an object of a front-end, as [`crate::front_end::status`] gives it. `before` is what was
    /// written last: what the object has may be less, where its definition is not ours. Returns whether anything changed;
    /// an object that is gone is left alone.
    fn write_front_end_status(
        &mut self,
        object: &ObjectRef,
        before: &serde_json::Value,
        status: &serde_json::Value,
    ) -> Result<bool, SourceError>;
}

/// The conditions that should be there, each with the time at which its status last changed: the old time where the
/// status is the same, `now_secs` where it is not.
pub fn carry_transition_times(
    old: &[Condition],
    new: &[Condition],
    now_secs: i64,
) -> Vec<Condition> {
    let since = |wanted: &Condition| {
        old.iter()
            .find(|c| c.kind == wanted.kind && c.status == wanted.status)
            .map_or(now_secs, |c| c.since_secs)
    };
    let mut conditions: Vec<Condition> = new
        .iter()
        .map(|c| Condition {
            since_secs: since(c),
            ..c.clone()
        })
        .collect();
    conditions.sort_by(|a, b| a.kind.cmp(&b.kind));
    conditions
}
