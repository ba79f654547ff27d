//! A rule of iptables, from either backend, and its text in the syntax of iptables.

use super::{Backend, RuleId};
use ipnet::Ipv4Net;
use std::fmt;
use std::net::Ipv4Addr;

/// A rule of iptables. Negated or unknown matches become [`Match::Other`], so that a rule is never taken for a simpler
/// one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its backend.
    pub backend: Backend,
    /// Its table.
    pub table: String,
    /// Its chain, and its position in it.
    pub id: RuleId,
    /// `-s`.
    pub source: Option<Ipv4Net>,
    /// `-d`.
    pub destination: Option<Ipv4Net>,
    /// `-i`.
    pub input: Option<String>,
    /// `-o`.
    pub output: Option<String>,
    /// `-p`.
    pub protocol: Option<u8>,
    /// Other matches, in order.
    pub matches: Vec<Match>,
    /// Its target.
    pub target: Target,
    /// Packets that it has counted.
    pub packets: u64,
}

/// A match of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    /// `-m mark --mark VALUE/MASK`.
    Mark(u32, u32),
    /// `-m set --match-set NAME src|dst,...`.
    Set(String, String),
    /// `-m comment --comment`.
    Comment(String),
    /// Another match, as text.
    Other(String),
}

/// Target of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// No target: it only counts.
    None,
    /// `ACCEPT`, `DROP`, `RETURN`.
    Verdict(&'static str),
    /// `-j CHAIN` or `-g CHAIN`.
    Jump(String),
    /// `MARK --set-xmark VALUE/MASK`.
    Mark(u32, u32),
    /// `SNAT --to-source` of one address, without ports.
    Snat(Ipv4Addr),
    /// Another target, by name.
    Other(String),
}

impl Rule {
    /// A rule without matches, for tests and for readers that complete it.
    pub fn empty(backend: Backend, table: &str, chain: &str, handle: u64) -> Self {
        let chain = chain.to_owned();
        Rule {
            backend,
            table: table.to_owned(),
            id: RuleId { chain, handle },
            source: None,
            destination: None,
            input: None,
            output: None,
            protocol: None,
            matches: Vec::new(),
            target: Target::None,
            packets: 0,
        }
    }

    /// Its chain.
    pub fn chain(&self) -> &str {
        &self.id.chain
    }

    /// The command that appends it (`A`) or deletes it (`D`).
    pub fn command(&self, verb: char) -> String {
        let program = self.backend.program();
        format!("{program} -t {} -{verb} {self}", self.table)
    }

    /// Names of the sets that it matches.
    pub(super) fn sets(&self) -> impl Iterator<Item = &str> {
        self.matches.iter().filter_map(|one| match one {
            Match::Set(name, _) => Some(name.as_str()),
            _ => None,
        })
    }

    /// Whether it matches only addresses and devices (and has comments).
    pub(super) fn is_simple(&self) -> bool {
        let plain = |one: &Match| matches!(one, Match::Comment(_));
        self.protocol.is_none() && self.matches.iter().all(plain)
    }

    /// Whether it matches no device.
    pub(super) fn no_device(&self) -> bool {
        self.input.is_none() && self.output.is_none()
    }
}

impl fmt::Display for Rule {
    /// Writes the rule in the syntax of `iptables -S`, after the verb.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.id.chain)?;
        let nets = [("-s", &self.source), ("-d", &self.destination)];
        for (flag, net) in nets {
            if let Some(net) = net {
                write!(f, " {flag} {net}")?;
            }
        }
        for (flag, device) in [("-i", &self.input), ("-o", &self.output)] {
            if let Some(device) = device {
                write!(f, " {flag} {device}")?;
            }
        }
        if let Some(protocol) = self.protocol {
            write!(f, " -p {protocol}")?;
        }
        self.matches
            .iter()
            .try_for_each(|one| write!(f, " {one}"))?;
        write!(f, "{}", self.target)
    }
}

impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Match::Mark(value, u32::MAX) => write!(f, "-m mark --mark {value:#x}"),
            Match::Mark(value, mask) => write!(f, "-m mark --mark {value:#x}/{mask:#x}"),
            Match::Set(name, directions) => write!(f, "-m set --match-set {name} {directions}"),
            Match::Comment(text) => write!(f, "-m comment --comment {text:?}"),
            Match::Other(text) => f.write_str(text),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::None => Ok(()),
            Target::Verdict(name) => write!(f, " -j {name}"),
            Target::Jump(name) | Target::Other(name) => write!(f, " -j {name}"),
            Target::Mark(value, mask) => write!(f, " -j MARK --set-xmark {value:#x}/{mask:#x}"),
            Target::Snat(address) => write!(f, " -j SNAT --to-source {address}"),
        }
    }
}
