//! Leftovers of earlier systems on one node: found, and removed on request.

use crate::earlier::{Action, Finding, System, find};
use crate::files;
use crate::legacy::{Kernel, LegacyError};
use egret_core::error::with_causes;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The kernel of the calling thread's network namespace, and the files of its node.
pub struct Leftovers {
    kernel: Kernel,
    root: PathBuf,
}

/// An object that could not be removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// First object of the failed step.
    pub object: String,
    /// The error.
    pub why: String,
}

/// Result of a removal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removal {
    /// Leftovers that are gone.
    pub removed: Vec<Finding>,
    /// Leftovers that remain, of all systems.
    pub left: Vec<Finding>,
    /// Leftovers that could not be removed.
    pub failed: Vec<Failure>,
    /// Parts of the node that could not be read, for people.
    pub unseen: Vec<String>,
}

impl Leftovers {
    /// Opens the kernel's interfaces. `root` is the root of the node's file system.
    ///
    /// # Errors
    /// Permission denied.
    pub fn open(root: &Path) -> Result<Self, LegacyError> {
        Ok(Leftovers {
            kernel: Kernel::open(root.join("run/xtables.lock"))?,
            root: root.to_owned(),
        })
    }

    /// Reads the node; returns what earlier systems left, and what could not be read, for people.
    ///
    /// # Errors
    /// The kernel cannot be read.
    pub fn find(&mut self) -> Result<(Vec<Finding>, Vec<String>), LegacyError> {
        let (mut node, mut unseen) = self.kernel.read()?;
        files::read(&self.root, &mut node, &mut unseen);
        Ok((find(&node), unseen))
    }

    /// Removes the leftovers of these systems, and reads the node again.
    ///
    /// # Errors
    /// The kernel cannot be read. Objects that cannot be removed are no error; the answer lists them.
    pub fn remove(&mut self, systems: &BTreeSet<System>) -> Result<Removal, LegacyError> {
        let (before, _) = self.find()?;
        let asked: Vec<Finding> = before
            .into_iter()
            .filter(|one| systems.contains(&one.system) && one.is_removable())
            .collect();
        let actions: Vec<&Action> = asked.iter().map(|finding| &finding.action).collect();
        let mut failed: Vec<(Action, String)> = self
            .kernel
            .remove(&actions)
            .into_iter()
            .map(|(action, error)| (action, with_causes(&error)))
            .collect();
        for action in actions {
            if let Err(error) = files::remove(action) {
                failed.push((action.clone(), error.to_string()));
            }
        }
        let (left, unseen) = self.find()?;
        let failed = failed
            .into_iter()
            .map(|(action, why)| {
                let of = asked.iter().find(|finding| finding.action == action);
                let object = of.map_or_else(String::new, |finding| finding.object.clone());
                Failure { object, why }
            })
            .collect();
        let is_there = |one: &Finding| left.iter().any(|left| left.object == one.object);
        let removed = asked.into_iter().filter(|one| !is_there(one)).collect();
        Ok(Removal {
            removed,
            left,
            failed,
            unseen,
        })
    }
}
