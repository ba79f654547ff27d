//! The uplink programs of one node, and facts from the kernel about how its pods' packets leave.

use crate::drift::DriftReport;
use crate::gateway::Attachment;
use crate::uplink::{Delivered, LookError, Looker, UplinkDriver, UplinkError};
use egret_core::error::with_causes;
use egret_core::machines::ProgramRefusal;
use egret_core::node::{PathFacts, WorkerState};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Poll interval for others' programs, and for retries after a refusal: the kernel notifies neither.
const LOOK_AT_PROGRAMS: Duration = Duration::from_secs(5);
/// Most new pods that are looked up one by one; with more, everything is read.
const ASKED_MAX: usize = 64;

/// The uplink part of one node's data path.
pub struct NodeUplink {
    pin_directory: PathBuf,
    /// Attach by filters also where the kernel has tcx.
    filters: bool,
    looker: Option<Looker>,
    /// Last observed facts, the pods they were observed for, and when programs were last read.
    seen: PathFacts,
    delivered: Delivered,
    looked: Option<Instant>,
    refusal: ProgramRefusal,
    driver: Option<UplinkDriver>,
    /// Nothing of an earlier agent is left to remove.
    clean: bool,
}

impl NodeUplink {
    /// Creates the part without opening anything.
    pub(super) fn new(pin_directory: &Path, filters: bool) -> Self {
        NodeUplink {
            pin_directory: pin_directory.into(),
            filters,
            looker: None,
            seen: PathFacts::default(),
            delivered: Delivered::new(),
            looked: None,
            refusal: ProgramRefusal::default(),
            driver: None,
            clean: false,
        }
    }

    /// Marks devices, addresses or routes as changed: the next [`Self::look`] reads everything.
    pub fn invalidate(&mut self) {
        self.looked = None;
    }

    /// Observes how pods' packets leave, and whether the kernel refuses our programs. `pods` are the addresses of this
    /// node's pods. Reads only what may have changed. The operator's choice stays at its default in the result.
    ///
    /// # Errors
    /// [`LookError`].
    pub fn look(&mut self, pods: &BTreeSet<IpAddr>) -> Result<PathFacts, LookError> {
        self.delivered.retain(|pod, _| pods.contains(pod));
        let is_new = |pod: &&IpAddr| !self.delivered.contains_key(*pod);
        let new: BTreeSet<IpAddr> = pods.iter().filter(is_new).copied().collect();
        if self.looked.is_none() || new.len() > ASKED_MAX {
            (self.seen, self.delivered) = self.looker()?.look(pods)?;
            self.looked = Some(Instant::now());
        } else if !new.is_empty() {
            // A new pod's device may be the first with a program; the other pods' devices are known.
            let found = self.looker()?.look_towards(&new)?;
            self.delivered.extend(found.delivered);
            for (device, programmed) in found.devices {
                match programmed {
                    true => self.seen.programs.insert(device),
                    false => self.seen.programs.remove(&device),
                };
            }
        }
        let devices: BTreeSet<&Option<String>> = self.delivered.values().collect();
        Ok(PathFacts {
            refused: self.refusal.reason().map(str::to_owned),
            delivered: devices.into_iter().cloned().collect(),
            ..self.seen.clone()
        })
    }

    fn looker(&mut self) -> Result<&mut Looker, LookError> {
        if self.looker.is_none() {
            self.looker = Some(Looker::open()?);
        }
        Ok(self.looker.as_mut().expect("just opened"))
    }

    /// Whether others attached or removed programs since the last look, or the kernel accepts ours again after a
    /// refusal; then [`Self::look`] returns other facts. Reads at most every 5 seconds, and never before
    /// [`Self::look`].
    pub fn programs_changed(&mut self) -> bool {
        let due = self
            .looked
            .is_some_and(|at| at.elapsed() >= LOOK_AT_PROGRAMS);
        if !due {
            return false;
        }
        self.looked = Some(Instant::now());
        if self.refusal.reason().is_some() && self.open().is_ok() {
            self.refusal.loaded_again();
            return true;
        }
        match self.looker().and_then(Looker::look_at_programs) {
            Ok(programs) if programs == self.seen.programs => false,
            Ok(_) => {
                self.invalidate();
                true
            }
            Err(error) => {
                tracing::warn!(error = %with_causes(&error), "cannot read programs of others");
                false
            }
        }
    }

    /// Applies the tables and programs that must be there before the ruleset changes.
    pub(super) fn prepare(&mut self, worker: &WorkerState) -> Result<(), UplinkError> {
        if !worker.reinject.is_empty() {
            self.clean = false;
            return self.attempt(|driver| driver.prepare(worker));
        }
        if !self.clean && !worker.keep_uplinks {
            self.driver = None;
            if UplinkDriver::remove(&self.pin_directory)? {
                tracing::info!("uplink programs removed: pods' packets take the host stack");
            }
            self.clean = true;
        }
        Ok(())
    }

    /// Applies the tables and programs that must follow the change of the ruleset.
    pub(super) fn settle(&mut self, worker: &WorkerState) -> Result<(), UplinkError> {
        if worker.reinject.is_empty() {
            return Ok(());
        }
        self.attempt(|driver| driver.settle(worker))
    }

    fn open(&self) -> Result<UplinkDriver, UplinkError> {
        match self.filters {
            true => UplinkDriver::open_with(&self.pin_directory, Attachment::Clsact),
            false => UplinkDriver::open(&self.pin_directory),
        }
    }

    /// Runs one step; after an error the driver is opened anew.
    fn attempt(
        &mut self,
        work: impl FnOnce(&mut UplinkDriver) -> Result<(), UplinkError>,
    ) -> Result<(), UplinkError> {
        let opened = match self.driver.take() {
            Some(driver) => Ok(driver),
            None => self.open(),
        };
        let done = opened.and_then(|mut driver| {
            work(&mut driver)?;
            Ok(driver)
        });
        match done {
            Ok(driver) => {
                self.driver = Some(driver);
                self.refusal.succeeded();
                Ok(())
            }
            Err(error) => {
                let text = with_causes(&error);
                tracing::error!(error = text, "cannot reinject pods' packets");
                self.refusal.failed(&text);
                Err(error)
            }
        }
    }

    /// Detects drift; the next [`Self::prepare`] repairs it. `deep` compares the tables.
    pub(super) fn verify(&mut self, deep: bool) -> DriftReport {
        let mut drift = DriftReport::new();
        let Some(driver) = &mut self.driver else {
            return drift;
        };
        match driver.verify(deep) {
            Ok(found) => drift.extend(found),
            Err(error) => tracing::warn!(error = %with_causes(&error), "cannot verify the uplinks"),
        }
        if !drift.is_empty() {
            self.driver = None;
        }
        drift
    }

    /// Packets by outcome; empty without programs.
    pub(super) fn counters(&self) -> BTreeMap<&'static str, u64> {
        let counters = self.driver.as_ref().map(UplinkDriver::counters);
        counters.and_then(Result::ok).unwrap_or_default()
    }
}
