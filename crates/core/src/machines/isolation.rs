//! Isolation of a gateway that no other gateway answers (design section 6). Either it is the last one, or it is cut off
//! from the rest of the cluster while others serve: then no traffic must come to it.
//!
//! Nothing inside the node distinguishes the two cases, but the external network does: the announcer of an address
//! answers for it there. So such a gateway asks, by ARP and ND, who has each address that other gateways may announce.
//!
//! ```text
//!   workers reach it by the tunnel     announces at once, and goes on asking
//!   nobody reaches it                  announces nothing; after some questions without answer it does: nobody else is
//!                                      there, and nothing is lost by it (fail static)
//!   another machine answers            announces that address no more; after more questions without answer, the more
//!                                      the later it comes in the order of announcers, it does again: two that are both
//!                                      cut off leave one
//! ```
//!
//! As for [`super::Liveness`], only questions that were sent count, never time alone. Record sent questions and answers
//! before calling `handle_deadline`.

use crate::model::NodeName;
use crate::numbers::{
    ISOLATION_ASK_AGAIN_MS, ISOLATION_ASK_FIRST_MS, ISOLATION_ASK_MS, ISOLATION_ASKS,
    ISOLATION_ASKS_AT_ONCE,
};
use crate::rendezvous::announcer_order;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Questions about one address.
#[derive(Debug)]
struct Contest {
    /// Position of this node among the nodes that may announce the address, from 1, and their number.
    place: (u32, u32),
    /// Another machine has answered for the address since this node has been alone.
    taken: bool,
    /// The last question was sent and not answered yet.
    asked: bool,
    /// Number of consecutive questions that timed out without answer.
    unanswered: u32,
    next_ms: u64,
}

impl Contest {
    fn is_given_up(&self, reached: bool) -> bool {
        let (place, places) = self.place;
        // Of several isolated gateways, those that other nodes reach come first.
        let times = match (self.taken, reached) {
            (false, true) => 0,
            (false, false) => 1,
            (true, true) => place,
            (true, false) => place.saturating_add(places),
        };
        self.unanswered < ISOLATION_ASKS.saturating_mul(times)
    }
}

/// The contests of one gateway node; none while another gateway answers it.
#[derive(Debug)]
pub struct Isolation {
    me: NodeName,
    reached: bool,
    contests: BTreeMap<IpAddr, Contest>,
    /// Earliest time of the next questions after a burst.
    not_before_ms: u64,
    questions: Vec<IpAddr>,
}

impl Isolation {
    /// The contests of this node.
    pub fn new(me: NodeName) -> Self {
        Self {
            me,
            reached: false,
            contests: BTreeMap::new(),
            not_before_ms: 0,
            questions: Vec::new(),
        }
    }

    /// Decides again. `addresses`: those that this node may announce, each with all nodes that may. `alone`: other
    /// gateways exist, and none answers this node. `reached`: packets of other nodes arrive by the tunnel.
    pub fn update(
        &mut self,
        addresses: &BTreeMap<IpAddr, BTreeSet<NodeName>>,
        alone: bool,
        reached: bool,
        now_ms: u64,
    ) {
        self.reached = reached;
        let contested = |nodes: &BTreeSet<NodeName>| {
            alone && nodes.contains(&self.me) && nodes.iter().any(|node| *node != self.me)
        };
        self.contests
            .retain(|address, _| addresses.get(address).is_some_and(contested));
        for (address, nodes) in addresses.iter().filter(|(_, nodes)| contested(nodes)) {
            let order = announcer_order(*address, nodes);
            let before = order.iter().take_while(|node| ***node != self.me).count();
            let place = (number(before + 1), number(order.len()));
            let contest = self.contests.entry(*address).or_insert(Contest {
                place,
                taken: false,
                asked: false,
                unanswered: 0,
                next_ms: now_ms,
            });
            contest.place = place;
        }
    }

    /// Records that another machine on the external network answers for this address.
    pub fn answered(&mut self, address: IpAddr) {
        if let Some(contest) = self.contests.get_mut(&address) {
            contest.taken = true;
            contest.asked = false;
            contest.unanswered = 0;
        }
    }

    /// Asks the questions that are due.
    pub fn handle_deadline(&mut self, now_ms: u64) {
        if now_ms < self.not_before_ms {
            return;
        }
        let due = self
            .contests
            .iter()
            .map(|(a, contest)| (contest.next_ms, *a));
        let mut due: Vec<(u64, IpAddr)> = due.filter(|(at, _)| *at <= now_ms).collect();
        due.sort_unstable();
        if due.len() > ISOLATION_ASKS_AT_ONCE {
            self.not_before_ms = now_ms.saturating_add(ISOLATION_ASK_FIRST_MS);
            due.truncate(ISOLATION_ASKS_AT_ONCE);
        }
        let again_ms = ISOLATION_ASK_AGAIN_MS.saturating_mul(self.stretch());
        for (_, address) in due {
            let Some(contest) = self.contests.get_mut(&address) else {
                continue;
            };
            if std::mem::take(&mut contest.asked) {
                contest.unanswered = contest.unanswered.saturating_add(1);
            }
            // Repeated if the question is never sent.
            contest.next_ms = now_ms.saturating_add(again_ms);
            self.questions.push(address);
        }
    }

    fn stretch(&self) -> u64 {
        self.contests.len().div_ceil(ISOLATION_ASKS_AT_ONCE).max(1) as u64
    }

    /// Records that the question was sent: its time for an answer begins.
    pub fn asked(&mut self, address: IpAddr, now_ms: u64) {
        let stretch = self.stretch();
        let Some(contest) = self.contests.get_mut(&address) else {
            return;
        };
        contest.asked = true;
        let wait_ms = match (contest.taken, contest.is_given_up(self.reached)) {
            (false, _) if contest.unanswered < ISOLATION_ASKS => ISOLATION_ASK_FIRST_MS,
            (_, true) => ISOLATION_ASK_AGAIN_MS.saturating_mul(stretch),
            (_, false) => ISOLATION_ASK_MS.saturating_mul(stretch),
        };
        contest.next_ms = now_ms.saturating_add(wait_ms);
    }

    /// Latest time of the next call of `handle_deadline`.
    pub fn next_deadline(&self) -> Option<u64> {
        let due = self
            .contests
            .values()
            .map(|contest| contest.next_ms)
            .min()?;
        Some(due.max(self.not_before_ms))
    }

    /// Addresses to ask for on the external network.
    pub fn drain(&mut self) -> Vec<IpAddr> {
        std::mem::take(&mut self.questions)
    }

    /// Addresses that this node must not announce, although it is the first that it sees alive.
    pub fn given_up(&self) -> BTreeSet<IpAddr> {
        let given_up = |(_, contest): &(&IpAddr, &Contest)| contest.is_given_up(self.reached);
        let all = self.contests.iter().filter(given_up);
        all.map(|(address, _)| *address).collect()
    }

    /// One address that another machine has answered for.
    pub fn taken(&self) -> Option<IpAddr> {
        let mut all = self.contests.iter();
        let taken = all.find(|(_, contest)| contest.taken && contest.is_given_up(self.reached));
        taken.map(|(address, _)| *address)
    }
}

fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
