//! Canaries: packets of our own that take the path of a pod's packets, through all hooks, to a gateway and back. This
//! module decides what is sent, and derives from the hooks' counters where a packet was lost.

use crate::condition::Reason;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Packet types that are sent along a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum CanaryKind {
    /// A TCP SYN, which is answered by SYN and ACK.
    Tcp,
    /// A small UDP datagram.
    Udp,
    /// An ICMP or ICMPv6 echo request.
    Echo,
    /// A UDP datagram as large as the tunnel carries, not to be fragmented: finds black holes (RFC 2923 section 2.1).
    FullSize,
}

impl CanaryKind {
    /// Every kind, in the order in which they are sent.
    pub const ALL: [CanaryKind; 4] = [
        CanaryKind::Tcp,
        CanaryKind::Udp,
        CanaryKind::Echo,
        CanaryKind::FullSize,
    ];
}

impl fmt::Display for CanaryKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            CanaryKind::Tcp => "TCP",
            CanaryKind::Udp => "UDP",
            CanaryKind::Echo => "ping",
            CanaryKind::FullSize => "full-size UDP",
        })
    }
}

macro_rules! hooks {
    ($($name:ident: $counter:literal, $meaning:literal;)+) => {
        /// Places of our own ruleset that count canaries, in the order in which a packet passes them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum CanaryHook { $(#[doc = $meaning] $name,)+ }

        impl CanaryHook {
            /// Every hook, in order.
            pub const ALL: &'static [CanaryHook] = &[$(CanaryHook::$name,)+];

            /// Name of its counter in the kernel.
            pub fn counter(self) -> &'static str {
                match self { $(CanaryHook::$name => $counter,)+ }
            }
        }
    };
}

hooks! {
    Entered: "canary_entered", "First in prerouting: it has come in by the canary device.";
    Classified: "canary_classified", "Last in prerouting: routing is next.";
    Routed: "canary_routed", "First in the forward hook.";
    Forwarded: "canary_forwarded", "Last in the forward hook.";
    Leaving: "canary_leaving", "First in postrouting.";
    Guarded: "canary_guarded", "At the guard, behind every translation.";
    Sent: "canary_sent", "The guard has let it into the tunnel, with a leased source.";
    Arrived: "canary_arrived", "First in prerouting: a tunnel packet with an answer has come to this node.";
    Unwrapped: "canary_unwrapped", "First in prerouting: the answer has come out of the tunnel.";
    Answered: "canary_answered", "Last in prerouting: the answer is known as one, and routing is next.";
    AnswerRouted: "canary_answer_routed", "First in the forward hook.";
    AnswerForwarded: "canary_answer_forwarded", "Last in the forward hook.";
}

/// Packets that each hook has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CanaryCounts([u64; CanaryHook::ALL.len()]);

impl CanaryCounts {
    /// Reads the named counters of the ruleset.
    pub fn new(count: impl Fn(&str) -> Option<u64>) -> Self {
        let mut counts = Self::default();
        for hook in CanaryHook::ALL {
            counts.0[*hook as usize] = count(hook.counter()).unwrap_or(0);
        }
        counts
    }

    fn grew(&self, before: &Self, hook: CanaryHook) -> bool {
        self.0[hook as usize] > before.0[hook as usize]
    }
}

/// Where canaries of a path are lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Lost {
    /// Before prerouting: by a program at the device, or because there is no ruleset.
    BeforeTheRuleset,
    /// In prerouting: by raw or mangle rules, or rules about the reverse path.
    Prerouting,
    /// Between prerouting and the forward hook: the kernel has no route for it, or its reverse-path filter drops it.
    Routing,
    /// In the forward hook.
    Forward,
    /// Between the forward hook and the guard: by postrouting rules of others, or because it is too big for the device.
    Postrouting,
    /// At the guard: it was translated by somebody else, or not at all.
    Translation,
    /// After it has left by the tunnel; no answer reached this node: a firewall in between, the gateway's input, the
    /// gateway.
    Gateway,
    /// The answer reached this node but did not leave the tunnel: the input hook of this node.
    TunnelInput,
    /// The answer left the tunnel and is lost in prerouting: rules about the reverse path, connection tracking.
    AnswerPrerouting,
    /// The answer is lost between prerouting and the forward hook: the kernel's reverse-path filter.
    AnswerRouting,
    /// The answer is lost in the forward hook.
    AnswerForward,
    /// The answer is lost after the forward hook.
    AnswerDelivery,
}

impl Lost {
    /// Where an unanswered canary was lost, from the counters before and after it was sent.
    pub fn between(before: &CanaryCounts, after: &CanaryCounts) -> Self {
        use CanaryHook::*;
        let last = CanaryHook::ALL.iter().rev().copied();
        let last = last.into_iter().find(|hook| after.grew(before, *hook));
        match last {
            None => Lost::BeforeTheRuleset,
            Some(Entered) => Lost::Prerouting,
            Some(Classified) => Lost::Routing,
            Some(Routed) => Lost::Forward,
            Some(Forwarded | Leaving) => Lost::Postrouting,
            Some(Guarded) => Lost::Translation,
            Some(Sent) => Lost::Gateway,
            Some(Arrived) => Lost::TunnelInput,
            Some(Unwrapped) => Lost::AnswerPrerouting,
            Some(Answered) => Lost::AnswerRouting,
            Some(AnswerRouted) => Lost::AnswerForward,
            Some(AnswerForwarded) => Lost::AnswerDelivery,
        }
    }

    /// The same for a canary that ends at the guard of its node; `None` if it reached the guard.
    pub fn before_the_guard(before: &CanaryCounts, after: &CanaryCounts) -> Option<Self> {
        (!after.grew(before, CanaryHook::Sent)).then(|| Self::between(before, after))
    }

    /// Reason of the node's condition for this loss.
    pub fn reason(self) -> Reason {
        match self {
            Lost::BeforeTheRuleset | Lost::Prerouting => Reason::LostInPrerouting,
            Lost::Routing => Reason::NotRouted,
            Lost::Forward => Reason::NotForwarded,
            Lost::Postrouting => Reason::LostInPostrouting,
            Lost::Translation => Reason::NotTranslated,
            Lost::Gateway => Reason::NotAnsweredByGateway,
            Lost::TunnelInput => Reason::LostInTunnelInput,
            Lost::AnswerPrerouting | Lost::AnswerRouting => Reason::AnswerLostOnReversePath,
            Lost::AnswerForward | Lost::AnswerDelivery => Reason::AnswerNotForwarded,
        }
    }
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Lost::BeforeTheRuleset => "lost before the prerouting hook",
            Lost::Prerouting => "lost in the prerouting hook, before routing",
            Lost::Routing => "not routed: no way, or the reverse-path filter of the kernel",
            Lost::Forward => "not forwarded: lost in the forward hook",
            Lost::Postrouting => "lost behind the forward hook, before the translation was checked",
            Lost::Translation => "not translated: a rule of others translates it first",
            Lost::Gateway => "not answered: lost on the way to the gateway, there, or on the way back",
            Lost::TunnelInput => "the answer is lost in the input hook of this node",
            Lost::AnswerPrerouting => {
                "the answer is lost in the prerouting hook behind the tunnel, as rules about the reverse path do it"
            }
            Lost::AnswerRouting => "the answer is not routed behind the tunnel: the reverse-path filter of the kernel",
            Lost::AnswerForward => "the answer is not forwarded: lost in the forward hook",
            Lost::AnswerDelivery => "the answer is lost behind the forward hook",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(hooks: &[CanaryHook]) -> CanaryCounts {
        CanaryCounts::new(|name| hooks.iter().any(|h| h.counter() == name).then_some(7))
    }

    #[test]
    fn the_last_hook_that_counted_says_where_it_was_lost() {
        let none = CanaryCounts::default();
        let mut places = Vec::new();
        for upto in 0..=CanaryHook::ALL.len() {
            places.push(Lost::between(&none, &counted(&CanaryHook::ALL[..upto])));
        }
        let mut sorted = places.clone();
        sorted.sort_unstable();
        assert_eq!(places, sorted, "a later hook is never an earlier place");
        assert_eq!(places.first(), Some(&Lost::BeforeTheRuleset));
        assert_eq!(places.last(), Some(&Lost::AnswerDelivery));
        assert_eq!(
            Lost::between(&none, &counted(&[CanaryHook::Routed])),
            Lost::Forward
        );
    }

    #[test]
    fn a_canary_that_ends_at_the_guard_is_lost_before_it_or_not_at_all() {
        let none = CanaryCounts::default();
        let upto = |hook: CanaryHook| counted(&CanaryHook::ALL[..=hook as usize]);
        for hook in CanaryHook::ALL
            .iter()
            .filter(|hook| **hook < CanaryHook::Sent)
        {
            let lost = Lost::before_the_guard(&none, &upto(*hook));
            assert!(lost.is_some_and(|lost| lost < Lost::Gateway), "{hook:?}");
        }
        assert_eq!(Lost::before_the_guard(&none, &upto(CanaryHook::Sent)), None);
    }

    #[test]
    fn what_was_counted_before_says_nothing() {
        let all = counted(CanaryHook::ALL);
        assert_eq!(Lost::between(&all, &all), Lost::BeforeTheRuleset);
    }

    #[test]
    fn counters_have_names_of_their_own() {
        let names: std::collections::BTreeSet<_> =
            CanaryHook::ALL.iter().map(|hook| hook.counter()).collect();
        assert_eq!(names.len(), CanaryHook::ALL.len());
    }
}
