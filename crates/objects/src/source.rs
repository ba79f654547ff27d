//! The interface of all sources of objects.

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

/// Content of a source at one moment. Copies share unchanged parts.
#[derive(Clone, Debug, PartialEq)]
pub struct View {
    /// The objects, validated.
    pub snapshot: Snapshot,
    /// Findings about objects; sorted.
    pub findings: Vec<Finding>,
    /// Last written status of policies.
    pub policies: SharedMap<ObjectRef, PolicyStatus>,
    /// Status of gateways.
    pub gateways: BTreeMap<GatewayName, GatewayStatus>,
    /// Status of pools.
    pub pools: BTreeMap<PoolName, PoolStatus>,
    /// Status of addresses.
    pub addresses: SharedMap<IpAddr, AddressStatus>,
    /// Agents' reports beside their [`NodeRecord`].
    pub nodes: SharedMap<NodeName, NodeReport>,
    /// Objects of earlier systems and their translations.
    pub front_ends: FrontEnds,
}

impl View {
    /// A view with settings only.
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

/// Error of a source.
#[derive(Debug, Error)]
pub enum SourceError {
    /// Another writer changed the object first: read it again and decide again.
    #[error("{object} has version {found}, expected {expected} (0: absent)")]
    Conflict {
        /// The object.
        object: String,
        /// The version that the caller had read; 0: none.
        expected: u64,
        /// The current version; 0: none.
        found: u64,
    },
    /// The object to change does not exist.
    #[error("{object} does not exist")]
    NotFound {
        /// The object.
        object: String,
    },
    /// A stored object is unreadable, so a change could destroy its content.
    #[error("{object} cannot be read and is therefore not overwritten: {why}")]
    Unreadable {
        /// The object.
        object: String,
        /// The cause.
        why: String,
    },
    /// The lock of the status directory was not released in time.
    #[error("{path} stays locked by another process")]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// The source was opened for reading only.
    #[error("the source was opened for reading only")]
    ReadOnly,
    /// This controller is not the leader, so it must not write.
    #[error("another controller leads")]
    NotLeader,
    /// The objects have not been read completely yet.
    #[error("waiting for {what} from the Kubernetes API: {why}")]
    NotYet {
        /// The missing part.
        what: String,
        /// The cause, as far as known.
        why: String,
    },
    /// The API server, or an admission policy, refuses a write of this object; writes of others may succeed.
    #[error("{object} is refused: {why}")]
    Refused {
        /// The object.
        object: String,
        /// Answer of the API server.
        why: String,
    },
    /// A write of this object got no answer in time.
    #[error("no answer in time about {object}")]
    Unanswered {
        /// The object.
        object: String,
    },
    /// The API server or the connection failed.
    #[error("{doing}: {why}")]
    Api {
        /// The operation.
        doing: String,
        /// The error.
        why: String,
    },
    /// A file operation failed.
    #[error("{doing} {path}")]
    Io {
        /// The operation, for example "reading".
        doing: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

/// Something that a source has to write on its own, independent of any plan.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Notice {
    /// A user's object is invalid: write that into its status.
    Invalid(ObjectRef),
    /// The gateway label on a node's record is wrong: set it, or remove it.
    GatewayLabel(NodeName, bool),
}

/// A place from which objects are read and to which status is written.
///
/// Writes contain the desired content; a write that would change nothing is skipped. `now_secs` (seconds since the Unix
/// epoch) becomes the transition time of conditions that changed.
pub trait Source: Send {
    /// Reads the latest view.
    fn snapshot(&mut self) -> Result<View, SourceError>;

    /// Blocks until something may have changed since the last [`Source::snapshot`] (`true`) or the timeout expires
    /// (`false`).
    fn wait(&mut self, timeout: Duration) -> Result<bool, SourceError>;

    /// Whether the caller may write: false while another controller leads. It must not plan either, since written
    /// objects change concurrently.
    fn leads(&self) -> bool {
        true
    }

    /// Notices to write beside the plan; each separately, so that a refused one stops no other.
    fn notices(&mut self) -> Vec<Notice> {
        Vec::new()
    }

    /// Writes one of [`Source::notices`]. Returns whether anything changed.
    fn write_notice(&mut self, _notice: &Notice, _now_secs: i64) -> Result<bool, SourceError> {
        Ok(false)
    }

    /// Writes an `EgressAddress` if its version is still `record.resource_version` (0: it must not exist), and returns
    /// the new version. Fails with [`SourceError::Conflict`].
    fn write_address(&mut self, record: &AddressRecord) -> Result<u64, SourceError>;

    /// Deletes an `EgressAddress` if its version is still this. Fails with [`SourceError::Conflict`].
    fn delete_address(&mut self, address: IpAddr, resource_version: u64)
    -> Result<(), SourceError>;

    /// Writes the controller's part of an `EgressNode` (tunnel index, grants), creates the object if necessary, and
    /// leaves the agent's part unchanged. Returns its version.
    fn write_node_spec(&mut self, record: &NodeRecord) -> Result<u64, SourceError>;

    /// Writes the agent's part of an `EgressNode` and leaves the controller's part unchanged. Fails with
    /// [`SourceError::NotFound`] until the controller has created it. Returns its version.
    fn write_node_status(
        &mut self,
        record: &NodeRecord,
        report: &NodeReport,
        now_secs: i64,
    ) -> Result<u64, SourceError>;

    /// Deletes the `EgressNode` of a removed node. No error if there is none.
    fn delete_node(&mut self, node: &NodeName) -> Result<(), SourceError>;

    /// Writes the status of an `Egress` or `ClusterEgress`. Returns whether anything changed; a deleted object is
    /// ignored.
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

    /// Writes the whole status of an object of a front-end, as [`crate::front_end::status`] computes it. `before` is
    /// the last written status: the object's own may have fewer fields, where its CRD is not ours. Returns whether
    /// anything changed; a deleted object is ignored.
    fn write_front_end_status(
        &mut self,
        object: &ObjectRef,
        before: &serde_json::Value,
        status: &serde_json::Value,
    ) -> Result<bool, SourceError>;
}

/// Sets the times of conditions: the old time where the status is unchanged, otherwise `now_secs`.
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
