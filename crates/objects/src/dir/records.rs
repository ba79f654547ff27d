//! `EgressAddress` and `EgressNode` under `PATH/status`, which only Egret writes. An unreadable record stays in the
//! view as far as it is known; its file is never overwritten.

use super::effective::{Effective, Merged};
use super::object::{Converted, is_record, is_whole};
use super::store::Store;
use crate::convert::{Gaps, Reading, reading, unread};
use egret_core::model::{Finding, Kind, ObjectRef};
use serde_json::Value;
use std::sync::Arc;

/// Adds all records, with their findings.
pub(super) fn add(store: &Store, merged: &mut Merged) {
    let copies = store.copies.iter().filter(|(key, _)| is_record(key.kind));
    for (key, copy) in copies {
        match &copy.result {
            Ok(converted) => {
                merged.findings.extend_from_slice(findings(converted));
                let whole = is_whole(converted);
                let kept = store.last_good.get(key).filter(|_| !whole);
                let converted = match kept {
                    Some(good) => Arc::new(kept_of(good, converted)),
                    None => Arc::clone(converted),
                };
                let whole = Arc::clone(&copy.value);
                let effective = Effective { converted, whole };
                merged.objects.insert(key.clone(), effective);
            }
            Err(why) => merged.findings.push(broken(key, why)),
        }
    }
    let broken_files = store.broken.iter().filter(|(key, _)| is_record(key.kind));
    for (key, why) in broken_files {
        merged.findings.push(broken(key, why));
        let Some(blank) = blank(key) else { continue };
        let converted = match store.last_good.get(key) {
            Some(good) => kept_of(good, &blank),
            None => blank,
        };
        let effective = Effective {
            converted: Arc::new(converted),
            whole: Arc::new(Value::Null),
        };
        merged.objects.insert(key.clone(), effective);
    }
}

fn findings(converted: &Converted) -> &[Finding] {
    match converted {
        Converted::Address(reading) => &reading.findings,
        Converted::NodeRecord(reading) => &reading.findings,
        _ => &[],
    }
}

/// An empty record for an unreadable file; `None` if its name is not valid.
fn blank(key: &ObjectRef) -> Option<Converted> {
    match key.kind {
        Kind::EgressAddress => {
            let reading = unread::unread_address(key, Vec::new()).ok()?;
            Some(Converted::Address(reading))
        }
        _ => Some(Converted::NodeRecord(Box::new(Reading {
            record: None,
            gaps: Gaps {
                spec: true,
                demand: true,
            },
            findings: Vec::new(),
        }))),
    }
}

/// The last good content of a record, with the gaps of the present one: kernels continue with it.
fn kept_of(good: &Converted, now: &Converted) -> Converted {
    match (good, now) {
        (Converted::Address(good), Converted::Address(now)) => Converted::Address(Reading {
            record: good.record.clone(),
            ..now.clone()
        }),
        (Converted::NodeRecord(good), Converted::NodeRecord(now)) => {
            let record = match (&good.record, &now.record) {
                (Some(good), Some(now)) => Some(reading::with_spec_of(now, good)),
                (good, now) => good.clone().or(now.clone()),
            };
            let now = now.as_ref().clone();
            Converted::NodeRecord(Box::new(Reading { record, ..now }))
        }
        _ => now.clone(),
    }
}

fn broken(key: &ObjectRef, why: &str) -> Finding {
    Finding {
        object: key.clone(),
        field: String::new(),
        value: String::new(),
        remedy: format!(
            "restore the file of this object under status/; an address may be deleted only when no node uses it any more: {why}"
        ),
    }
}
