//! Compares our table in the kernel with what was applied.
//!
//! ```text
//! verify_quick  names of chains and sets, number of rules; without an owner also each rule and hook
//! verify_full   elements of every set with fixed content, where others can change them
//! ```
//!
//! Nobody else can change a table with an owner (Linux 6.9): there, names are compared only because it is cheap.

use super::apply::Nftables;
use super::attributes::{named, number, text};
use super::error::NftError;
use super::message as m;
use super::table::{ElementKey, Set, Shown, Table, Value};
use crate::difference::first_changed;
use crate::netlink::{Attrs, attributes};
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

const GETSETELEM: u16 = 13;

impl Nftables {
    /// Whether the table equals what was applied: [`Self::verify_quick`] without the text.
    pub fn is_intact(&mut self) -> Result<bool, NftError> {
        if self.applied.is_none() {
            return Ok(false);
        }
        Ok(self.verify_quick()?.is_none())
    }

    /// The first chain, rule or set that drifted. Drift forgets the table, so that the next [`Self::apply`] replaces
    /// everything. Costs one small message while nobody changes any table of the namespace.
    pub fn verify_quick(&mut self) -> Result<Option<String>, NftError> {
        let Some(applied) = self.applied.take() else {
            return Ok(Some(format!("table {} is not applied", self.name())));
        };
        let drift = self.other_rules(&applied);
        self.forget_drifted(applied, drift)
    }

    /// The first set whose elements drifted. Drift forgets the table. Reads every element if anything changed since the
    /// last call; reads nothing where the table has an owner.
    pub fn verify_full(&mut self) -> Result<Option<String>, NftError> {
        if self.owned() {
            return Ok(None);
        }
        let Some(applied) = self.applied.take() else {
            return Ok(None);
        };
        let drift = self.other_content(&applied);
        self.forget_drifted(applied, drift)
    }

    /// Forgets a drifted table. A failed read is no drift: others' changes of their tables interrupt a dump of ours.
    fn forget_drifted(
        &mut self,
        applied: Table,
        drift: Result<Option<String>, NftError>,
    ) -> Result<Option<String>, NftError> {
        self.applied = (!matches!(drift, Ok(Some(_)))).then_some(applied);
        drift
    }

    fn other_rules(&mut self, applied: &Table) -> Result<Option<String>, NftError> {
        let generation = self.read_generation()?;
        let drift = match generation == self.generation {
            true => None,
            false => self.other_chains(applied)?,
        };
        self.generation = generation;
        Ok(drift)
    }

    fn other_content(&mut self, applied: &Table) -> Result<Option<String>, NftError> {
        let generation = self.read_generation()?;
        if self.compared != Some(generation) {
            for (name, set) in applied.sets.iter().filter(|(_, set)| is_fixed(set)) {
                if let Some(drift) = self.other_elements(name, set)? {
                    return Ok(Some(drift));
                }
            }
        }
        self.compared = Some(generation);
        Ok(None)
    }

    /// Chains and their rules as the kernel returns them now.
    pub(super) fn show(&mut self) -> Result<Shown, NftError> {
        /// Hook, policy, type, flags (`NFTA_CHAIN_*`).
        const CHAIN: [u16; 4] = [4, 5, 7, 10];
        /// `NFTA_RULE_EXPRESSIONS`.
        const RULE: [u16; 1] = [4];
        let table = self.name().to_owned();
        let mut shown = Shown::new();
        for chain in self.dump(m::GETCHAIN, Attrs::default())? {
            if text(&chain, 1) == table {
                shown.insert(text(&chain, 3), vec![hash(&chain, &CHAIN)]);
            }
        }
        let ours = Attrs::default().text(1, &table);
        for rule in self.dump(m::GETRULE, ours)? {
            if text(&rule, 1) == table {
                let rules = shown.entry(text(&rule, 2)).or_default();
                rules.push(hash(&rule, &RULE));
            }
        }
        Ok(shown)
    }

    fn other_chains(&mut self, applied: &Table) -> Result<Option<String>, NftError> {
        let shown = self.show()?;
        let count = |(name, hashes): (&String, &Vec<u64>)| (name.clone(), hashes.len());
        let wanted: BTreeMap<String, usize> = applied
            .chains
            .iter()
            .map(|(name, chain)| (name.clone(), chain.rules.len() + 1))
            .collect();
        let name = |name: &String| format!("chain {name}");
        let found: BTreeMap<String, usize> = shown.iter().map(count).collect();
        let mut drift = first_changed(&wanted, &found, name);
        if let (None, Some(before), false) = (&drift, &self.shown, self.owned()) {
            drift = first_changed(before, &shown, name);
        }
        match drift {
            Some(what) => Ok(Some(what)),
            None => self.other_sets(applied),
        }
    }

    fn other_sets(&mut self, applied: &Table) -> Result<Option<String>, NftError> {
        let ours = Attrs::default().text(1, self.name());
        let sets = match self.dump(m::GETSET, ours) {
            Ok(sets) => sets,
            Err(NftError::Netlink { source, .. }) if source.errno() == Some(libc::ENOENT) => {
                return Ok(Some(format!("table {} is gone", self.name())));
            }
            Err(error) => return Err(error),
        };
        let ours = sets.iter().filter(|set| text(set, 1) == self.name());
        let found: BTreeMap<String, ()> = ours.map(|set| (text(set, 2), ())).collect();
        let wanted: BTreeMap<String, ()> =
            applied.sets.keys().map(|name| (name.clone(), ())).collect();
        Ok(first_changed(&wanted, &found, |name| format!("set {name}")))
    }

    fn other_elements(&mut self, name: &str, set: &Set) -> Result<Option<String>, NftError> {
        const ELEMENTS: u16 = 3;
        let attrs = Attrs::default().text(1, self.name()).text(2, name);
        let messages = match self.dump(GETSETELEM, attrs) {
            Err(NftError::Netlink { source, .. }) if source.errno() == Some(libc::ENOENT) => {
                return Ok(Some(format!("set {name} is gone")));
            }
            found => found?,
        };
        let lists = messages.iter().filter_map(|message| message.get(&ELEMENTS));
        let found: BTreeSet<Vec<u8>> = lists
            .flat_map(|list| attributes(list))
            .map(|(_, element)| content(element))
            .collect();
        let [_, wanted] = set.changed(None);
        let wanted: BTreeSet<Vec<u8>> = wanted
            .iter()
            .flat_map(|(key, value)| sent(set, key, value))
            .collect();
        let is_same = found == wanted;
        Ok((!is_same).then(|| {
            let gone = wanted.difference(&found).count();
            let strange = found.difference(&wanted).count();
            format!("set {name} lacks {gone} elements and has {strange} that are not of this agent's making")
        }))
    }
}

/// Whether only this process changes the set's content.
fn is_fixed(set: &Set) -> bool {
    set.runtime_max.is_none() && !set.by_packets
}

fn hash(object: &BTreeMap<u16, Vec<u8>>, kinds: &[u16]) -> u64 {
    // Hashes are compared within this process alone.
    let mut hash = DefaultHasher::new();
    for kind in kinds {
        object.get(kind).hash(&mut hash);
    }
    hash.finish()
}

/// An element as one string of bytes: first key, last key, whether it is an end, verdict and its chain, or the name of
/// its counter.
fn line(first: &[u8], last: &[u8], is_end: bool, code: i32, chain: &str) -> Vec<u8> {
    let mut line = first.to_vec();
    line.extend(last);
    line.push(u8::from(is_end));
    line.extend(code.to_be_bytes());
    line.extend(chain.as_bytes());
    line
}

/// An element as the kernel returns it (`NFTA_SET_ELEM_*`).
fn content(element: &[u8]) -> Vec<u8> {
    const KEY: u16 = 1;
    const DATA: u16 = 2;
    const FLAGS: u16 = 3;
    const COUNTER: u16 = 9;
    const KEY_END: u16 = 10;
    const VERDICT: u16 = 2;
    let attrs: BTreeMap<u16, &[u8]> = attributes(element).collect();
    let inner = |kind: u16| -> &[u8] {
        let value = attrs.get(&kind).and_then(|value| attributes(value).next());
        value.map_or(&[], |(_, bytes)| bytes)
    };
    let is_end = attrs
        .get(&FLAGS)
        .is_some_and(|flags| flags.last() == Some(&1));
    let verdict = attrs.get(&DATA).and_then(|data| {
        let verdict = attributes(data).find(|(kind, _)| *kind == VERDICT)?;
        // `named` expects the header of a message first.
        Some(named(&[&[0; 4], verdict.1].concat()))
    });
    let counter = attrs.get(&COUNTER).map(|name| {
        let name = name.strip_suffix(&[0]).unwrap_or(name);
        String::from_utf8_lossy(name).into_owned()
    });
    let (code, chain) = match verdict {
        Some(verdict) => (number(&verdict, 1) as i32, text(&verdict, 2)),
        None => (0, counter.unwrap_or_default()),
    };
    line(inner(KEY), inner(KEY_END), is_end, code, &chain)
}

/// The elements in the kernel's form that one of ours was sent as.
fn sent(set: &Set, key: &ElementKey, value: &Value) -> Vec<Vec<u8>> {
    let (code, chain) = match value {
        Value::Member => (0, ""),
        Value::Verdict(code, chain) => (*code, chain.as_deref().unwrap_or_default()),
        Value::Counter(name) => (0, name.as_str()),
    };
    if set.key.len() > 1 {
        let last: &[u8] = if set.interval { &key.last } else { &[] };
        return vec![line(&key.first, last, false, code, chain)];
    }
    let length = set.key[0].bytes() as usize;
    let mut lines = vec![line(&key.first[..length], &[], false, code, chain)];
    if let (true, Some(end)) = (set.interval, m::successor(&key.last[..length])) {
        lines.push(line(&end, &[], true, 0, ""));
    }
    lines
}
