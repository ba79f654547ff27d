//! What a gateway does that no other gateway answers (design section 6). Either it is the last one, or it is cut off from
//! the rest of the cluster while others serve: then nothing must come to it.
//!
//! Nothing inside the node tells the two apart, but the external network does: whoever announces an address answers for
//! it there. So such a gateway asks, by ARP and ND, who has each address that others may announce.
//!
//! ```text
//!   workers reach it by the tunnel     announces at once, and goes on asking
//!   nobody reaches it                  announces nothing; after some questions without answer it does: nobody else is
//!                                      there, and nothing is lost by it (fail static)
//!   another machine answers            announces that address no more; after more questions without answer, the more
//!                                      the later it comes in the order of announcers, it does again: two that are both
//!                                      cut off leave one
//! ```
//! As for [`super::Liveness`], only questions that were sent count, never time alone. Tell what was sent and answered before
//! calling `handle_deadline`.

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
    /// This node's place among those that may announce the address, from 1, and how many they are.
    place: (u32, u32),
    /// Another machine has answered for it since this node is alone.
    taken: bool,
    /// The last question was sent and is not answered yet.
    asked: bool,
    /// Questions in a row that had their time and no answer.
    unanswered: u32,
    next_ms: u64,
}

impl Contest {
    fn is_given_up(&self, reached: bool) -> bool {
        let (place, places) = self.place;
        // Of several that are alone those that others reach come first.
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
    /// After a burst of questions the next ones wait for this.
    not_before_ms: u64,
    questions: Vec<IpAddr>,
}

impl Isolation {
    /// For this node.
    pub fn new(me: NodeName) -> Self {
        Self {
            me,
            reached: false,
            contests: BTreeMap::new(),
            not_before_ms: 0,
            questions: Vec::new(),
        }
    }

    /// Decides anew. `addresses`: those that this node may announce, each with all nodes that may. `alone`: there are
    /// other gateways, and none answers this node. `reached`: packets of others come in by the tunnel.
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

    /// Another machine on the external network has said that it has this address.
    pub fn answered(&mut self, address: IpAddr) {
        if let Some(contest) = self.contests.get_mut(&address) {
            contest.taken = true;
            contest.asked = false;
            contest.unanswered = 0;
        }
    }

    /// Asks what is due.
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
            // Asked again where the question is never sent.
            contest.next_ms = now_ms.saturating_add(again_ms);
            self.questions.push(address);
        }
    }

    fn stretch(&self) -> u64 {
        self.contests.len().div_ceil(ISOLATION_ASKS_AT_ONCE).max(1) as u64
    }

    /// The question about this address has been sent: from now on it has its time to be answered.
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

    /// When to call `handle_deadline` next.
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

    /// Addresses that this node must not announce, in spite of being the first that it sees alive.
    pub fn given_up(&self) -> BTreeSet<IpAddr> {
        let given_up = |(_, contest): &(&IpAddr, &Contest)| contest.is_given_up(self.reached);
        let all = self.contests.iter().filter(given_up);
        all.map(|(address, _)| *address).collect()
    }

    /// One of them that another machine has answered for.
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
