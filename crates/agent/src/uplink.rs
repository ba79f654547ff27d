//! How pods' packets leave this node, and what takes them back where they leave past the stack.

use crate::error::chain;
use crate::path::GatewayDatapath;
use egret_core::model::{NodeName, Snapshot};
use egret_core::node::{CniPath, NodeOutcome, PathFacts, PodsPath};
use egret_datapath::damage::Found;
use egret_datapath::gateway::Attachment;
use egret_datapath::uplink::{Delivered, LookError, Looker, UplinkDriver, UplinkError};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Nobody tells when a program is attached to a device: it is looked for this often. What is refused is tried again.
const LOOK_AT_PROGRAMS: Duration = Duration::from_secs(5);
/// Failures in a row after which the programs count as refused; before, somebody may just be at work there.
const FAILURES: u32 = 3;
/// More new pods than this are not asked for one by one: everything is looked at.
const ASKED_MAX: usize = 64;

pub(crate) struct Uplink {
    pin_directory: PathBuf,
    choice: CniPath,
    /// Attach by filters also where the kernel has tcx.
    filters: bool,
    looker: Option<Looker>,
    /// What was seen, where the pods were, and when programs were looked for.
    seen: PathFacts,
    delivered: Delivered,
    looked: Option<Instant>,
    /// Why the programs cannot be used.
    refused: Option<String>,
    /// Failures in a row.
    failures: u32,
    driver: Option<UplinkDriver>,
    /// Nothing of an earlier agent is left.
    clean: bool,
}

impl Uplink {
    pub(crate) fn new(pin_directory: &Path, choice: CniPath, datapath: GatewayDatapath) -> Self {
        Uplink {
            pin_directory: pin_directory.to_owned(),
            choice,
            filters: datapath == GatewayDatapath::Clsact,
            looker: None,
            seen: PathFacts::default(),
            delivered: Delivered::new(),
            looked: None,
            refused: None,
            failures: 0,
            driver: None,
            clean: false,
        }
    }

    /// Devices, addresses or routes have changed: what was seen is old.
    pub(crate) fn stir(&mut self) {
        self.looked = None;
    }

    /// As `core` wants it; looks where anything may have changed.
    pub(crate) fn facts(
        &mut self,
        snapshot: &Snapshot,
        node: &NodeName,
    ) -> Result<PathFacts, LookError> {
        let own = snapshot.pods.values().filter(|pod| pod.node == *node);
        let own = own.filter(|pod| !pod.host_network && !pod.finished);
        let pods: BTreeSet<IpAddr> = own.flat_map(|pod| &pod.addresses).copied().collect();
        if self.choice != CniPath::Netfilter {
            self.follow(pods)?;
        }
        let devices: BTreeSet<&Option<String>> = self.delivered.values().collect();
        Ok(PathFacts {
            choice: self.choice,
            refused: self.refused.clone(),
            delivered: devices.into_iter().cloned().collect(),
            ..self.seen.clone()
        })
    }

    fn follow(&mut self, pods: BTreeSet<IpAddr>) -> Result<(), LookError> {
        self.delivered.retain(|pod, _| pods.contains(pod));
        let is_new = |pod: &&IpAddr| !self.delivered.contains_key(*pod);
        let new: BTreeSet<IpAddr> = pods.iter().filter(is_new).copied().collect();
        if self.looked.is_none() || new.len() > ASKED_MAX {
            (self.seen, self.delivered) = self.looker()?.look(&pods)?;
            self.looked = Some(Instant::now());
        } else if !new.is_empty() {
            // A new pod's device may be the first with a program; where the others are is known.
            let found = self.looker()?.look_towards(&new)?;
            self.delivered.extend(found.delivered);
            for (device, programmed) in found.devices {
                match programmed {
                    true => self.seen.programs.insert(device),
                    false => self.seen.programs.remove(&device),
                };
            }
        }
        Ok(())
    }

    fn looker(&mut self) -> Result<&mut Looker, LookError> {
        if self.looker.is_none() {
            self.looker = Some(Looker::open()?);
        }
        Ok(self.looker.as_mut().expect("just opened"))
    }

    /// Whether others have attached or removed programs since the last look; then the next round must look anew.
    pub(crate) fn programs_changed(&mut self) -> bool {
        let due = self
            .looked
            .is_some_and(|at| at.elapsed() >= LOOK_AT_PROGRAMS);
        if !due || self.choice == CniPath::Netfilter {
            return false;
        }
        self.looked = Some(Instant::now());
        if self.refused.is_some() && self.open().is_ok() {
            self.refused = None;
            return true;
        }
        match self.looker().and_then(Looker::look_at_programs) {
            Ok(programs) if programs == self.seen.programs => false,
            Ok(_) => {
                self.stir();
                true
            }
            Err(error) => {
                tracing::warn!(error = %chain(&error), "looking for programs of others");
                false
            }
        }
    }

    /// What must be there before the ruleset changes. After several errors in a row the programs count as refused, which
    /// the next round knows; until then nothing changes.
    pub(crate) fn prepare(&mut self, outcome: &NodeOutcome) -> Result<(), String> {
        let worker = &outcome.state.worker;
        if !worker.lift.is_empty() {
            self.clean = false;
            return self.attempt(|driver| driver.prepare(worker));
        }
        // In an unknown way, what is still attached drops what it sees: that is better than nothing.
        if !self.clean && outcome.pods_path == PodsPath::Netfilter {
            self.driver = None;
            if UplinkDriver::remove(&self.pin_directory).map_err(|error| chain(&error))? {
                tracing::info!("uplink programs removed: pods' packets pass the stack");
            }
            self.clean = true;
        }
        Ok(())
    }

    /// What must follow the change of the ruleset.
    pub(crate) fn settle(&mut self, outcome: &NodeOutcome) -> Result<(), String> {
        let worker = &outcome.state.worker;
        if worker.lift.is_empty() {
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

    fn attempt(
        &mut self,
        work: impl FnOnce(&mut UplinkDriver) -> Result<(), UplinkError>,
    ) -> Result<(), String> {
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
                self.failures = 0;
                Ok(())
            }
            Err(error) => {
                let text = chain(&error);
                tracing::error!(error = text, "pods' packets cannot be taken back");
                self.failures += 1;
                if self.failures >= FAILURES {
                    self.refused = Some(text.clone());
                }
                Err(text)
            }
        }
    }

    /// What others have done; the next round mends it. `deep` compares the tables.
    pub(crate) fn verify(&mut self, deep: bool) -> Found {
        let mut damage = Found::new();
        let Some(driver) = &mut self.driver else {
            return damage;
        };
        match driver.verify(deep) {
            Ok(found) => damage.extend(found),
            Err(error) => tracing::warn!(error = %chain(&error), "looking the uplinks over"),
        }
        if !damage.is_empty() {
            self.driver = None;
        }
        damage
    }

    pub(crate) fn counters(&self) -> BTreeMap<&'static str, u64> {
        let counters = self.driver.as_ref().map(UplinkDriver::counters);
        counters.and_then(Result::ok).unwrap_or_default()
    }
}
