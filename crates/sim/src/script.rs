//! Scripts: a cluster, and the steps that are taken in it, as text.

use crate::step::Step;
use std::fmt;
use std::str::FromStr;

/// The cluster that a script begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// Nodes 0..workers run pods only.
    pub workers: usize,
    /// The next nodes are gateways.
    pub gateways: usize,
    /// Pods run on gateways too.
    pub mixed: bool,
    /// Egress addresses. There is one policy more than addresses: the last one shares the first address.
    pub addresses: usize,
    /// First grant, ports.
    pub ports: u16,
    /// Packets leave by the announcer of their address only.
    pub announcer_only: bool,
    /// Blocks of each address that are not another cluster part's for ever, so that freed ones are soon leased again; 0:
    /// all.
    pub free: usize,
}

impl Cluster {
    /// Number of nodes.
    pub fn nodes(&self) -> usize {
        self.workers + self.gateways
    }

    /// Number of policies.
    pub fn policies(&self) -> usize {
        self.addresses + 1
    }

    /// Whether the node is a gateway.
    pub fn is_gateway(&self, node: usize) -> bool {
        node >= self.workers
    }
}

/// A cluster and what happens to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script {
    /// The cluster.
    pub cluster: Cluster,
    /// The steps.
    pub steps: Vec<Step>,
}

impl fmt::Display for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Cluster {
            workers,
            gateways,
            mixed,
            addresses,
            ports,
            announcer_only,
            free,
        } = self.cluster;
        writeln!(
            f,
            "cluster {workers} {gateways} {mixed} {addresses} {ports} {announcer_only} {free}"
        )?;
        self.steps.iter().try_for_each(|step| writeln!(f, "{step}"))
    }
}

/// `cluster WORKERS GATEWAYS MIXED ADDRESSES PORTS ANNOUNCER_ONLY FREE`, then one step a line; `#` begins a comment.
impl FromStr for Script {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let lines = text.lines().enumerate();
        let lines = lines.map(|(number, line)| (number + 1, line.split('#').next().unwrap_or("")));
        let mut lines = lines.filter(|(_, line)| !line.trim().is_empty());
        let (_, first) = lines.next().ok_or("the script is empty")?;
        let words: Vec<&str> = first.split_whitespace().collect();
        let [
            "cluster",
            workers,
            gateways,
            mixed,
            addresses,
            ports,
            announcer_only,
            free,
        ] = words[..]
        else {
            return Err("the first line is no cluster".to_owned());
        };
        let cluster = Cluster {
            workers: read(workers)?,
            gateways: read(gateways)?,
            mixed: read(mixed)?,
            addresses: read(addresses)?,
            ports: read(ports)?,
            announcer_only: read(announcer_only)?,
            free: read(free)?,
        };
        let step = |(number, line): (usize, &str)| {
            let step: Result<Step, String> = line.parse();
            step.map_err(|error| format!("line {number}: {error}"))
        };
        let steps: Result<Vec<Step>, String> = lines.map(step).collect();
        Ok(Self {
            cluster,
            steps: steps?,
        })
    }
}

fn read<T: FromStr>(word: &str) -> Result<T, String> {
    word.parse().map_err(|_| format!("{word} cannot be read"))
}
