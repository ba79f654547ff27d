//! Rules of others' firewalls as values, and their evaluation for one packet.
//!
//! Three-valued: a condition that is not understood, or tests an unknown property of the packet, may hold or not. A
//! refusal is certain only if no earlier rule can have prevented it.

use ipnet::IpNet;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Maximum depth of jumps in the kernel (`NFT_JUMP_STACK_SIZE`).
const DEPTH_MAX: usize = 16;

/// States of connection tracking, as bits of `ct state` (`NF_CT_STATE_BIT`).
pub mod state {
    /// Connection tracking could not classify the packet.
    pub const INVALID: u32 = 1;
    /// Of a connection with packets in both directions.
    pub const ESTABLISHED: u32 = 2;
    /// Expected by another connection.
    pub const RELATED: u32 = 4;
    /// First packet of a connection.
    pub const NEW: u32 = 8;
    /// Excluded from connection tracking.
    pub const UNTRACKED: u32 = 64;
}

/// One test of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Test {
    /// Name of the input device; a trailing `*` matches any suffix.
    Input(String),
    /// Name of the output device.
    Output(String),
    /// The packet is IPv4 (else IPv6).
    IsV4,
    /// Its source is in this network.
    Source(IpNet),
    /// Its destination is in this network.
    Destination(IpNet),
    /// Its protocol.
    Protocol(u8),
    /// Its destination port is in this range, first and last.
    DestinationPort(u16, u16),
    /// Its connection is in one of these states ([`state`]).
    State(u32),
    /// Its mark under a mask.
    Mark {
        /// The mark.
        value: u32,
        /// The mask.
        mask: u32,
    },
    /// A route leads back to its source: by the input device, or (loose) by any device.
    ReversePath {
        /// By any device.
        loose: bool,
    },
    /// Condition that none of our packets meets, in the syntax of the tool.
    Never(String),
    /// Any other condition, in the syntax of the tool.
    Other(String),
}

/// A test, possibly negated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// The test.
    pub test: Test,
    /// The test must fail.
    pub negated: bool,
}

impl From<Test> for Condition {
    fn from(test: Test) -> Self {
        Condition {
            test,
            negated: false,
        }
    }
}

/// Action of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing that matters here: counting, logging.
    Continue,
    /// The packet leaves the chain's hook.
    Accept,
    /// The packet is dropped silently.
    Drop,
    /// The packet is dropped, and its sender gets an error.
    Reject,
    /// Return to the chain that jumped here.
    Return,
    /// Jump to another chain, with return.
    Jump(String),
    /// Jump to another chain, without return.
    Goto(String),
    /// May change these bits of the mark.
    Mark(u32),
    /// Anything else that may end the packet's path here, in the syntax of the tool.
    Other(String),
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Conditions that must all hold.
    pub conditions: Vec<Condition>,
    /// Action if they hold.
    pub action: Action,
    /// Its nftables handle; 0 in legacy tables.
    pub handle: u64,
}

impl Rule {
    /// Whether it refuses everything that reaches it.
    pub fn refuses_all(&self) -> bool {
        self.conditions.is_empty() && matches!(self.action, Action::Drop | Action::Reject)
    }

    /// Whether it refuses nothing.
    pub fn only_lets_go(&self) -> bool {
        matches!(
            self.action,
            Action::Continue | Action::Accept | Action::Mark(_)
        )
    }
}

/// Input or output device of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// The device of this name.
    Named(&'static str),
    /// Any device except ours and the loopback device.
    Other,
    /// No device at this hook.
    None,
}

/// Known properties of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// It is IPv4.
    pub is_v4: bool,
    /// Its input device.
    pub input: Device,
    /// Its output device.
    pub output: Device,
    /// Its source, where known.
    pub source: Option<IpAddr>,
    /// Its destination, where known.
    pub destination: Option<IpAddr>,
    /// Its protocol.
    pub protocol: u8,
    /// Its destination port, where known.
    pub port: Option<u16>,
    /// State of its connection ([`state`]).
    pub state: u32,
    /// Bits of its mark that may be set; all others are 0.
    pub mark: u32,
}

/// Result of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Truth {
    No,
    Maybe,
    Yes,
}

impl From<bool> for Truth {
    fn from(holds: bool) -> Self {
        match holds {
            true => Truth::Yes,
            false => Truth::No,
        }
    }
}

impl Packet {
    fn holds(&self, condition: &Condition) -> Truth {
        let truth = self.passes(&condition.test);
        match (truth, condition.negated) {
            (Truth::Yes, true) => Truth::No,
            (Truth::No, true) => Truth::Yes,
            (truth, _) => truth,
        }
    }

    fn passes(&self, test: &Test) -> Truth {
        let in_network = |address: Option<IpAddr>, network: &IpNet| match address {
            _ if network.addr().is_ipv4() != self.is_v4 => Truth::No,
            _ if network.prefix_len() == 0 => Truth::Yes,
            Some(address) => network.contains(&address).into(),
            None => Truth::Maybe,
        };
        match test {
            Test::Input(name) => self.input.is(name),
            Test::Output(name) => self.output.is(name),
            Test::IsV4 => self.is_v4.into(),
            Test::Source(network) => in_network(self.source, network),
            Test::Destination(network) => in_network(self.destination, network),
            Test::Protocol(protocol) => (self.protocol == *protocol).into(),
            Test::DestinationPort(first, last) => match self.port {
                Some(port) => (*first..=*last).contains(&port).into(),
                None => Truth::Maybe,
            },
            Test::State(states) => (self.state & states != 0).into(),
            Test::Mark { value, mask } => match (value & !self.mark & mask, self.mark & mask) {
                // The rule tests a bit that is never set.
                (1.., _) => Truth::No,
                (0, 0) => Truth::Yes,
                (0, _) => Truth::Maybe,
            },
            // Packets from the tunnel have sources anywhere outside, and the routes there use other devices.
            Test::ReversePath { loose } => (*loose).into(),
            Test::Never(_) => Truth::No,
            Test::Other(_) => Truth::Maybe,
        }
    }
}

impl Device {
    fn is(self, wanted: &str) -> Truth {
        match (self, wanted.strip_suffix('*')) {
            (Device::None, _) => Truth::No,
            (Device::Named(name), Some(start)) => name.starts_with(start).into(),
            (Device::Named(name), None) => (name == wanted).into(),
            (Device::Other, Some("")) => Truth::Yes,
            (Device::Other, None) if is_known(wanted) => Truth::No,
            (Device::Other, _) => Truth::Maybe,
        }
    }
}

fn is_known(device: &str) -> bool {
    use crate::numbers::{REINJECT_DEVICE, TUNNEL_DEVICE};
    [TUNNEL_DEVICE, REINJECT_DEVICE, "lo"].contains(&device)
}

/// Rule or policy that refuses a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The chain.
    pub chain: String,
    /// Position of the rule in it, from 0; `None`: the policy.
    pub rule: Option<usize>,
    /// No earlier rule can have accepted the packet.
    pub is_certain: bool,
    /// A rule on the path matches addresses or ports, so the refusal is intended.
    pub is_meant: bool,
    /// This rule or an earlier one tested the route back to the packet's source.
    pub by_reverse_path: bool,
}

/// Result of evaluating a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// This chain must be read before the result is known.
    Unread(String),
    /// The packet passes, as far as known.
    Passes,
    /// The packet is refused.
    Refused(Refusal),
}

/// Rules of each chain of one table.
pub type Chains = BTreeMap<String, Vec<Rule>>;

/// Evaluates a packet in a base chain. Afterwards its mark contains the bits that may be set.
pub fn walk(chains: &Chains, base: &str, policy_drops: bool, packet: &mut Packet) -> Fate {
    let mut walk = Walk {
        chains,
        packet,
        may_pass: false,
        by_reverse_path: false,
        unread: None,
    };
    let end = walk.chain(base, 0, (false, true));
    let (may_pass, by_reverse_path) = (walk.may_pass, walk.by_reverse_path);
    if let Some(name) = walk.unread {
        return Fate::Unread(name);
    }
    let refused = |chain, rule, is_meant| {
        Fate::Refused(Refusal {
            chain,
            rule,
            is_certain: !may_pass,
            is_meant,
            by_reverse_path,
        })
    };
    match end {
        End::Refused(chain, rule, is_meant) => refused(chain, Some(rule), is_meant),
        End::Fell if policy_drops => refused(base.to_owned(), None, false),
        End::Fell | End::Accepted => Fate::Passes,
    }
}

/// How the evaluation of a chain ends.
enum End {
    /// At the end of the chain.
    Fell,
    Accepted,
    Refused(String, usize, bool),
}

struct Walk<'a> {
    chains: &'a Chains,
    packet: &'a mut Packet,
    may_pass: bool,
    by_reverse_path: bool,
    unread: Option<String>,
}

impl Walk<'_> {
    /// `certain`: the packet certainly reaches this chain.
    fn chain(&mut self, name: &str, depth: usize, (is_meant, certain): (bool, bool)) -> End {
        let chains = self.chains;
        let Some(rules) = chains.get(name).filter(|_| depth < DEPTH_MAX) else {
            match certain && depth < DEPTH_MAX {
                true => drop(self.unread.get_or_insert_with(|| name.to_owned())),
                // A chain that may not be reached is not read: whatever it does, no result is certain any more.
                false => (self.may_pass, self.packet.mark) = (true, u32::MAX),
            }
            return End::Fell;
        };
        for (position, rule) in rules.iter().enumerate() {
            let truth = self.truth(rule);
            if truth == Truth::No {
                continue;
            }
            let is_meant = is_meant || rule.conditions.iter().any(Condition::is_specific);
            let certain = certain && truth == Truth::Yes;
            match &rule.action {
                Action::Continue => {}
                Action::Mark(bits) => self.packet.mark |= bits,
                Action::Accept if truth == Truth::Yes => return End::Accepted,
                Action::Accept | Action::Other(_) => self.may_pass = true,
                Action::Drop | Action::Reject if truth == Truth::Yes => {
                    return End::Refused(name.to_owned(), position, is_meant);
                }
                Action::Return if truth == Truth::Yes => return End::Fell,
                // The packet may end here, or the following rules may not be reached: the rest decides.
                Action::Drop | Action::Reject => {}
                Action::Return => {
                    // The caller's following rules may accept what ours would refuse.
                    self.may_pass = true;
                }
                Action::Jump(to) | Action::Goto(to) => {
                    let end = self.chain(to, depth + 1, (is_meant, certain));
                    let ends = matches!(rule.action, Action::Goto(_));
                    match (end, truth == Truth::Yes) {
                        (End::Fell, true) if ends => return End::Fell,
                        (End::Fell, _) => {}
                        (End::Accepted, false) => self.may_pass = true,
                        (End::Refused(..), false) => {}
                        (end, true) => return end,
                    }
                }
            }
        }
        End::Fell
    }

    fn truth(&mut self, rule: &Rule) -> Truth {
        let mut truth = Truth::Yes;
        for condition in &rule.conditions {
            let holds = self.packet.holds(condition);
            truth = truth.min(holds);
            if holds == Truth::No && !condition.is_reverse_path() {
                return Truth::No;
            }
        }
        let is_strict =
            |one: &Condition| one.is_reverse_path() && self.packet.passes(&one.test) == Truth::No;
        if rule.conditions.iter().any(is_strict) {
            self.by_reverse_path = true;
        }
        truth
    }
}

impl Condition {
    fn is_reverse_path(&self) -> bool {
        matches!(self.test, Test::ReversePath { .. })
    }

    /// Whether it tests addresses or ports.
    fn is_specific(&self) -> bool {
        match &self.test {
            Test::Source(network) | Test::Destination(network) => network.prefix_len() > 0,
            Test::DestinationPort(first, last) => (*first, *last) != (0, u16::MAX),
            _ => false,
        }
    }
}
