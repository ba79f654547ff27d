//! A controller that runs on a directory of manifests, and a guard that is asked before each of its writes.

use egret_controller::Health;
use egret_core::model::{
    AddressRecord, GatewayName, NodeName, NodeRecord, ObjectRef, PoolName, Settings,
    UnpooledAddresses,
};
use egret_objects::dir::{self, DirSource};
use egret_objects::{
    AddressStatus, GatewayStatus, NodeReport, PolicyStatus, PoolStatus, Source, SourceError, View,
};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Maximum time to wait for the controller.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// A directory of manifests.
pub fn open(path: &Path) -> DirSource {
    let installation = Settings {
        unpooled_addresses: UnpooledAddresses::Allow,
        never_destinations: Vec::new(),
        service_cidrs: Vec::new(),
        hold_down_secs: 0,
    };
    let settings = dir::Settings {
        installation,
        ..Default::default()
    };
    DirSource::open(path, settings).expect("a directory")
}

/// A controller in a thread, which ends when the value is dropped.
pub struct Running {
    /// The same directory, read by the test.
    pub source: DirSource,
    /// Health of the controller.
    pub health: Arc<Health>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    /// Starts a controller.
    pub fn start(path: &Path) -> Self {
        Self::start_with(path, Box::new(open(path)))
    }

    /// Starts a controller that reads and writes through `source`.
    pub fn start_with(path: &Path, source: Box<dyn Source + Send>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let health = Arc::new(Health::default());
        let (flag, shown) = (stop.clone(), health.clone());
        let thread = std::thread::spawn(move || egret_controller::run(source, &shown, &flag));
        Self {
            source: open(path),
            health,
            stop,
            thread: Some(thread),
        }
    }

    /// Waits until the condition holds for the directory's view.
    pub fn wait(&mut self, what: &str, condition: impl Fn(&View) -> bool) -> View {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let view = self.source.snapshot().expect("readable");
            if condition(&view) {
                return view;
            }
            assert!(
                Instant::now() < deadline,
                "{what} did not happen: {view:#?}"
            );
            self.source
                .wait(Duration::from_millis(200))
                .expect("waiting");
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(ended.is_none_or(|result| result.is_ok()) || std::thread::panicking());
    }
}

/// Decides whether a controller's writes succeed.
pub trait Guard: Send {
    /// Decides whether a write of this object succeeds: `spec EgressAddress`, `status Egress`, ...
    fn admit(&mut self, write: &str, object: &str) -> Result<(), SourceError>;

    /// Called when the controller is idle; returns whether its wait ends at once.
    fn rests(&mut self) -> bool {
        false
    }
}

/// A directory with a guard over the writes.
pub struct Guarded<G> {
    /// The directory.
    pub source: DirSource,
    /// The guard.
    pub guard: G,
}

impl<G: Guard> Guarded<G> {
    fn admit(&mut self, write: &str, object: &str) -> Result<&mut DirSource, SourceError> {
        self.guard.admit(write, object)?;
        Ok(&mut self.source)
    }
}

impl<G: Guard> Source for Guarded<G> {
    fn snapshot(&mut self) -> Result<View, SourceError> {
        self.source.snapshot()
    }

    fn wait(&mut self, timeout: Duration) -> Result<bool, SourceError> {
        match self.guard.rests() {
            true => Ok(true),
            false => self.source.wait(timeout),
        }
    }

    fn write_address(&mut self, record: &AddressRecord) -> Result<u64, SourceError> {
        let name = record.address.to_string();
        self.admit("spec EgressAddress", &name)?
            .write_address(record)
    }

    fn delete_address(&mut self, address: IpAddr, version: u64) -> Result<(), SourceError> {
        self.admit("delete EgressAddress", &address.to_string())?
            .delete_address(address, version)
    }

    fn write_node_spec(&mut self, record: &NodeRecord) -> Result<u64, SourceError> {
        let name = record.node.0.clone();
        self.admit("spec EgressNode", &name)?
            .write_node_spec(record)
    }

    fn write_node_status(
        &mut self,
        record: &NodeRecord,
        report: &NodeReport,
        now_secs: i64,
    ) -> Result<u64, SourceError> {
        self.admit("status EgressNode", &record.node.0)?
            .write_node_status(record, report, now_secs)
    }

    fn delete_node(&mut self, node: &NodeName) -> Result<(), SourceError> {
        self.admit("delete EgressNode", &node.0)?.delete_node(node)
    }

    fn write_policy_status(
        &mut self,
        object: &ObjectRef,
        status: &PolicyStatus,
        now_secs: i64,
    ) -> Result<bool, SourceError> {
        self.admit("status Egress", &object.name)?
            .write_policy_status(object, status, now_secs)
    }

    fn write_gateway_status(
        &mut self,
        gateway: &GatewayName,
        status: &GatewayStatus,
        now_secs: i64,
    ) -> Result<bool, SourceError> {
        self.admit("status EgressGateway", &gateway.0)?
            .write_gateway_status(gateway, status, now_secs)
    }

    fn write_pool_status(
        &mut self,
        pool: &PoolName,
        status: &PoolStatus,
        now_secs: i64,
    ) -> Result<bool, SourceError> {
        self.admit("status EgressPool", &pool.0)?
            .write_pool_status(pool, status, now_secs)
    }

    fn write_address_status(
        &mut self,
        address: IpAddr,
        status: &AddressStatus,
        now_secs: i64,
    ) -> Result<bool, SourceError> {
        self.admit("status EgressAddress", &address.to_string())?
            .write_address_status(address, status, now_secs)
    }

    fn write_front_end_status(
        &mut self,
        object: &ObjectRef,
        before: &serde_json::Value,
        status: &serde_json::Value,
    ) -> Result<bool, SourceError> {
        self.admit("status of a front-end", &object.name)?
            .write_front_end_status(object, before, status)
    }
}
