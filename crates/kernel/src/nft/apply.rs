//! Turns the wanted table into transactions, and sends them.

use super::attributes::{named, number, text};
use super::error::NftError;
use super::expression::{Expression, MetaKey};
use super::message as m;
use super::table::Value;
use super::table::{
    Chain, Count, Counts, Element, ElementKey, Set, SetType, Shown, Table, TableFamily,
};
use crate::netlink::{Attrs, NetlinkError, NetlinkSocket, Reply, Request};
use std::collections::BTreeMap;

/// One nftables table of family inet in the namespace of the thread that opened it.
///
/// The table is owned by this socket and persists when it closes (Linux 6.9), so that a foreign `nft flush ruleset` does
/// not touch it and traffic survives the process; on older kernels it is an ordinary table.
pub struct Nftables {
    socket: NetlinkSocket,
    name: String,
    family: TableFamily,
    flags: u32,
    pub(super) applied: Option<Table>,
    /// The kernel's generation when the table was last applied or verified.
    pub(super) generation: u32,
    /// Chains and rules as the kernel returned them after they were applied.
    pub(super) shown: Option<Shown>,
    /// The kernel's generation at the last comparison of elements.
    pub(super) compared: Option<u32>,
}

impl Nftables {
    /// Opens the socket; changes nothing yet.
    pub fn open(name: &str) -> Result<Self, NftError> {
        Self::open_family(name, TableFamily::Inet)
    }

    /// [`Self::open`] for a table of another family.
    pub fn open_family(name: &str, family: TableFamily) -> Result<Self, NftError> {
        let socket = NetlinkSocket::open(libc::NETLINK_NETFILTER);
        let socket = socket.map_err(|source| NftError::Netlink {
            table: name.into(),
            source,
        })?;
        let flags = m::TABLE_OWNER_PERSIST;
        Ok(Nftables {
            socket,
            name: name.into(),
            family,
            flags,
            applied: None,
            generation: 0,
            shown: None,
            compared: None,
        })
    }

    /// Makes a table that other processes may change, as on kernels before 6.9.
    pub fn without_owner(mut self) -> Self {
        self.flags = 0;
        self
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    fn batch(&mut self, requests: &[Request]) -> Result<(), NetlinkError> {
        if self.family == TableFamily::Inet {
            return self.socket.batch(requests); // which requests are made for
        }
        let requests: Vec<Request> = requests.iter().map(|one| self.addressed(one)).collect();
        self.socket.batch(&requests)
    }

    fn query(&mut self, request: &Request) -> Result<Reply, NetlinkError> {
        let request = self.addressed(request);
        self.socket.query(&request)
    }

    pub(super) fn dump_all(&mut self, request: &Request) -> Result<Vec<Reply>, NetlinkError> {
        let request = self.addressed(request);
        self.socket.dump(&request)
    }

    /// The request with our family, the first byte of every nfnetlink message.
    fn addressed(&self, request: &Request) -> Request {
        let mut request = request.clone();
        request.body[0] = self.family as u8;
        request
    }

    /// Whether the kernel prevents other processes from changing our table.
    pub fn owned(&self) -> bool {
        self.flags != 0
    }

    /// Makes the kernel's table equal to `wanted`; every packet meets the old rules or the new ones. The first call
    /// replaces an earlier process's table, later ones send only the difference. Content of run-time sets survives
    /// later calls.
    ///
    /// One transaction does not suffice: the kernel switches rules at once, but shows the content of maps of ranges
    /// (pipapo) only at the end of the commit, and a packet in between finds them empty. So new objects are made first,
    /// where no packet meets them, and a whole table is replaced under the cover of a second one with the same rules.
    ///
    /// Returns whether the whole table is new, with empty run-time sets.
    pub fn apply(&mut self, wanted: &Table) -> Result<bool, NftError> {
        let before = self.applied.take();
        let is_new = before.is_none();
        let same_rules = before
            .as_ref()
            .is_some_and(|before| before.chains == wanted.chains);
        match before {
            Some(applied) if applied == *wanted => {
                self.applied = Some(applied);
                return Ok(false);
            }
            Some(applied) => {
                let change = difference(&self.name, &applied, wanted, &Counts::new());
                for step in [change.prepare, change.switch, change.retire] {
                    let result = self.batch(&step);
                    self.error(result)?;
                }
            }
            None => self.replace(wanted)?,
        }
        self.applied = Some(wanted.clone());
        // A table with an owner cannot be changed by others.
        if !self.owned() && !same_rules {
            self.shown = Some(self.show()?);
        }
        self.generation = self.read_generation()?;
        Ok(is_new)
    }

    /// Whether the kernel counts connections ([`super::Expression::CountConnections`], `CONFIG_NFT_CONNLIMIT`). Tried with a
    /// table that the same transaction deletes, so that nobody sees it.
    pub fn counts_connections(&mut self) -> Result<bool, NftError> {
        const NAME: &str = "count";
        let table = format!("{}-try", self.name);
        let mut set = Set::new(&[SetType::Protocol]);
        (set.runtime_max, set.by_packets) = (Some(1), true);
        set.counts_connections = true;
        let chain = Chain {
            hook: None,
            rules: Vec::new(),
        };
        let rule = vec![
            Expression::Meta(MetaKey::L4Proto, 0),
            Expression::CountConnections {
                set: NAME.into(),
                register: 0,
                over: 1,
            },
        ];
        let result = self.batch(&[
            m::new_table(&table, 0),
            m::new_set(&table, NAME, 1, &set),
            m::new_chain(&table, NAME, &chain),
            m::new_rule(&table, NAME, 0, &rule),
            m::delete_table(&table),
        ]);
        match result {
            Err(error) if matches!(error.errno(), Some(libc::ENOENT | libc::EOPNOTSUPP)) => {
                Ok(false)
            }
            result => self.error(result).map(|()| true),
        }
    }

    /// Adds elements to a run-time set, as many as fit; existing ones keep their timeout. Returns how many did not fit.
    pub fn remember(&mut self, set: &str, elements: &[Element]) -> Result<usize, NftError> {
        /// Elements of one transaction: if one does not fit, the kernel refuses its whole transaction.
        const AT_ONCE: usize = 1024;
        let Some(shape) = self
            .applied
            .as_ref()
            .and_then(|table| table.sets.get(set).cloned())
        else {
            return Ok(0);
        };
        let mut missing = 0;
        for some in elements.chunks(AT_ONCE) {
            let content = some
                .iter()
                .map(|e| (&e.key, &Value::Member, Some(e.timeout_secs)));
            let requests = m::elements(&self.name, set, &shape, content, false);
            match self.batch(&requests) {
                Err(error) if error.errno() == Some(libc::ENFILE) => missing += some.len(),
                Err(error) => return self.error(Err(error)),
                Ok(()) => {}
            }
        }
        Ok(missing)
    }

    /// Replaces the content of a run-time set by these elements, each with its full timeout from now on, in one
    /// transaction. Does nothing if the table does not exist yet.
    pub fn hold(&mut self, set: &str, elements: &[Element]) -> Result<(), NftError> {
        let Some(shape) = self.applied.as_ref().and_then(|table| table.sets.get(set)) else {
            return Ok(());
        };
        let content = elements
            .iter()
            .map(|e| (&e.key, &Value::Member, Some(e.timeout_secs)));
        let mut requests = vec![m::flush_set(&self.name, set)];
        requests.extend(m::elements(&self.name, set, shape, content, false));
        let result = self.batch(&requests);
        self.error(result)?;
        self.generation = self.read_generation()?;
        Ok(())
    }

    /// Removes the table, if it exists. Returns whether it did.
    pub fn remove(&mut self) -> Result<bool, NftError> {
        self.applied = None;
        self.take_away(&self.cover())?;
        self.take_away(&self.name.clone())
    }

    /// Name of the table that covers for ours during its replacement.
    fn cover(&self) -> String {
        format!("{}_cover", self.name)
    }

    fn replace(&mut self, wanted: &Table) -> Result<(), NftError> {
        let (name, cover) = (self.name.clone(), self.cover());
        let is_there = self.owner_of(&name)?.is_some();
        if is_there {
            // Adopted before anything is made: the table may belong to another process. Kernels without owners refuse
            // only the flags.
            match self.batch(&[m::new_table(&name, self.flags)]) {
                Err(error) if error.errno() == Some(libc::EPERM) => self.error(Err(error))?,
                _ => {}
            }
            self.lay(&cover, wanted, &Counts::new())?;
        }
        // Read at the last moment: packets until the new table counts are not counted.
        let counts = match is_there && !wanted.traffic.is_empty() {
            // Repeats a dump that a change of any table interrupts. A table without old counts is better than none.
            true => (0..5).find_map(|_| self.counts().ok()).unwrap_or_default(),
            false => Counts::new(),
        };
        self.lay(&name, wanted, &counts)?;
        // Also removes the cover of a process that was killed in between.
        self.take_away(&cover)?;
        Ok(())
    }

    /// Makes a whole table, replacing an existing one: first complete, then its hooks. Traffic counters start at
    /// `counts`.
    fn lay(&mut self, table: &str, wanted: &Table, counts: &Counts) -> Result<(), NftError> {
        self.take_away(table)?;
        let change = difference(table, &Table::default(), wanted, counts);
        let whole = |flags| {
            let make = m::new_table(table, flags);
            std::iter::once(make).chain(change.prepare.iter().cloned())
        };
        let result = match self.batch(&whole(self.flags).collect::<Vec<_>>()) {
            Err(NetlinkError::Refused {
                errno: libc::EOPNOTSUPP | libc::EINVAL,
                ..
            }) if self.flags != 0 => {
                self.flags = 0;
                self.batch(&whole(0).collect::<Vec<_>>())
            }
            result => result,
        };
        let result = result.and_then(|()| self.batch(&change.switch));
        self.error(result)
    }

    /// Removes a table, if it exists: first the base chains, so that no packet meets half of it.
    fn take_away(&mut self, table: &str) -> Result<bool, NftError> {
        if self.owner_of(table)?.is_none() {
            return Ok(false);
        }
        let hooks: Vec<Request> = self
            .dump(m::GETCHAIN, Attrs::default())?
            .iter()
            .filter(|chain| text(chain, 1) == table && chain.contains_key(&4))
            .map(|chain| m::delete_chain(table, &text(chain, 3)))
            .collect();
        // Adopts the table, if its owner is dead.
        let adopted = [vec![m::new_table(table, self.flags)], hooks.clone()].concat();
        let result = self.batch(&adopted);
        let result = result.or_else(|_| self.batch(&hooks));
        let result = result.and_then(|()| self.batch(&[m::delete_table(table)]));
        self.error(result)?;
        Ok(true)
    }

    /// Owner of a table; `None`: there is no such table.
    fn owner_of(&mut self, name: &str) -> Result<Option<u32>, NftError> {
        let attrs = Attrs::default().text(1, name);
        let request = m::request(m::GETTABLE, 0, attrs, format!("table {name}"));
        match self.query(&request) {
            Ok(reply) => Ok(Some(number(&named(&reply.body), 7))),
            Err(error) if error.errno() == Some(libc::ENOENT) => Ok(None),
            Err(error) => self.error(Err(error)),
        }
    }

    /// Generation of the ruleset, which changes with every change of any nftables table (`NFT_MSG_GETGEN`); changes of
    /// the old ip_tables do not count.
    pub fn ruleset_generation(&mut self) -> Result<u32, NftError> {
        self.read_generation()
    }

    pub(super) fn read_generation(&mut self) -> Result<u32, NftError> {
        const GETGEN: u16 = 16;
        let request = m::request(GETGEN, 0, Attrs::default(), "generation".into());
        let reply = self.query(&request);
        let reply = self.error(reply)?;
        Ok(number(&named(&reply.body), 1))
    }

    pub(super) fn dump(
        &mut self,
        kind: u16,
        attrs: Attrs,
    ) -> Result<Vec<BTreeMap<u16, Vec<u8>>>, NftError> {
        let request = m::request(kind, 0, attrs, "nftables dump".into());
        let replies = self.dump_all(&request);
        Ok(self
            .error(replies)?
            .iter()
            .map(|reply| named(&reply.body))
            .collect())
    }

    pub(super) fn error<T>(&mut self, result: Result<T, NetlinkError>) -> Result<T, NftError> {
        let source = match result {
            Ok(value) => return Ok(value),
            Err(source) => source,
        };
        if source.errno() == Some(libc::EPERM)
            && let Ok(Some(owner)) = self.owner_of(&self.name.clone())
            && owner != 0
        {
            return Err(NftError::Owned {
                table: self.name.clone(),
                owner,
            });
        }
        Err(NftError::Netlink {
            table: self.name.clone(),
            source,
        })
    }
}

/// Requests that turn one table into another, in three steps.
struct Change {
    /// New objects that no packet meets yet.
    prepare: Vec<Request>,
    /// Rules that direct packets to the new objects.
    switch: Vec<Request>,
    /// Old objects that no packet meets any more.
    retire: Vec<Request>,
}

/// The requests that turn `old` into `new`: objects that others refer to are made first and removed last.
fn difference(table: &str, old: &Table, new: &Table, counts: &Counts) -> Change {
    let mut prepare = Vec::new();
    let counters = new.counters.iter();
    for counter in counters.filter(|counter| !old.counters.contains(counter)) {
        prepare.push(m::new_counter(table, counter, Count::default()));
    }
    for counter in new.traffic.difference(&old.traffic) {
        let from = counts.get(counter).copied().unwrap_or_default();
        prepare.push(m::new_counter(table, counter, from));
    }
    let is_new = |name: &&String| !old.tunnels.contains_key(*name);
    for name in new.tunnels.keys().filter(is_new) {
        prepare.push(m::new_tunnel(table, name, new.tunnels[name]));
    }
    for (id, (name, set)) in new.sets.iter().enumerate() {
        match old.sets.get(name) {
            Some(before) => assert!(before.same_shape(set), "set {name} never changes its shape"),
            None => prepare.push(m::new_set(table, name, id as u32 + 1, set)),
        }
    }
    let is_new = |name: &String| !old.chains.contains_key(name);
    for (name, chain) in new.chains.iter().filter(|(name, _)| is_new(name)) {
        if chain.hook.is_none() {
            prepare.push(m::new_chain(table, name, chain));
        }
    }
    for (name, chain) in new.chains.iter().filter(|(name, _)| is_new(name)) {
        if chain.hook.is_none() {
            let rules = chain.rules.iter().enumerate();
            prepare.extend(rules.map(|(number, rule)| m::new_rule(table, name, number, rule)));
        }
    }
    for (name, set) in new
        .sets
        .iter()
        .filter(|(name, _)| !old.sets.contains_key(*name))
    {
        prepare.extend(changed_elements(table, name, None, set));
    }
    Change {
        prepare,
        switch: switch(table, old, new),
        retire: retire(table, old, new),
    }
}

fn switch(table: &str, old: &Table, new: &Table) -> Vec<Request> {
    let mut requests = Vec::new();
    for (name, chain) in &new.chains {
        let before = old.chains.get(name);
        match (before, chain.hook) {
            (None, None) => continue,
            (None, Some(_)) => requests.push(m::new_chain(table, name, chain)),
            (Some(before), _) if before.rules == chain.rules => continue,
            (Some(before), _) if before.rules.is_empty() => {}
            (Some(_), _) => requests.push(m::flush_chain(table, name)),
        }
        for (number, rule) in chain.rules.iter().enumerate() {
            requests.push(m::new_rule(table, name, number, rule));
        }
    }
    for (name, set) in &new.sets {
        if let Some(before) = old.sets.get(name) {
            requests.extend(changed_elements(table, name, Some(before), set));
        }
    }
    requests
}

fn retire(table: &str, old: &Table, new: &Table) -> Vec<Request> {
    let mut requests = Vec::new();
    for (name, chain) in &old.chains {
        if !new.chains.contains_key(name) && !chain.rules.is_empty() {
            requests.push(m::flush_chain(table, name));
        }
    }
    for name in old.sets.keys().filter(|name| !new.sets.contains_key(*name)) {
        requests.push(m::delete_set(table, name));
    }
    for name in old
        .chains
        .keys()
        .filter(|name| !new.chains.contains_key(*name))
    {
        requests.push(m::delete_chain(table, name));
    }
    for counter in old.traffic.difference(&new.traffic) {
        requests.push(m::delete_counter(table, counter));
    }
    let is_gone = |name: &&String| !new.tunnels.contains_key(*name);
    for name in old.tunnels.keys().filter(is_gone) {
        requests.push(m::delete_tunnel(table, name));
    }
    requests
}

fn changed_elements(table: &str, name: &str, old: Option<&Set>, new: &Set) -> Vec<Request> {
    let [gone, added] = new.changed(old);
    let of = |all: &[(ElementKey, Value)], delete| {
        let content = all.iter().map(|(key, value)| (key, value, None));
        m::elements(table, name, new, content, delete)
    };
    let mut requests = of(&gone, true);
    requests.extend(of(&added, false));
    requests
}
