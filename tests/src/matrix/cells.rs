//! Factors of users' environments, and which values can be combined.

use super::pairs::{Row, cross, table};
use egret_lab::topology::{Cni, Forward, RpFilter};

/// Number of nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Nodes {
    /// Workers, and separate gateways.
    Many,
    /// One node has both roles.
    One,
}

/// Network to which gateways send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ExternalLink {
    /// The segment of the nodes.
    NodeSegment,
    /// A segment of their own, by a second interface.
    OwnInterface,
}

/// Families of the segment of the nodes; pods and the world outside always have both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Underlay {
    /// Both.
    Dual,
    /// IPv6 only.
    Ipv6,
}

/// Component whose marks the packets of the pod have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Marks {
    /// None.
    None,
    /// kube-proxy's bits 0xc000: the masquerade bit, with its masquerade.
    KubeProxy,
    /// Calico's mask 0xffff0000; Egret uses 0x00ff0000 as well.
    Calico,
    /// Cilium's mask 0x0f00.
    Cilium,
}

/// Families of the policy that selects the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Policy {
    /// Addresses of both.
    Dual,
    /// IPv4 only.
    Ipv4,
    /// IPv6 only.
    Ipv6,
}

/// Factors that a whole lab shares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ground {
    /// How many nodes.
    pub nodes: Nodes,
    /// Network to which gateways send.
    pub external: ExternalLink,
    /// Families of the underlay.
    pub underlay: Underlay,
    /// Whether segments filter IPv6 multicast (RFC 4541), with a querier.
    pub mld_snooping: bool,
}

/// Factors of one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Node {
    /// Component that masquerades.
    pub cni: Cni,
    /// Policy of the forward chain.
    pub forward: Forward,
    /// Reverse path filter.
    pub rp_filter: RpFilter,
    /// `src_valid_mark`.
    pub src_valid_mark: bool,
}

impl Node {
    /// Whether only the operator can open the forward chain: it belongs to the legacy ip_tables.
    pub fn is_blocked(&self) -> bool {
        self.cni == Cni::IptablesLegacy && self.forward == Forward::Drop
    }
}

/// One environment of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cell {
    /// Its lab.
    pub ground: Ground,
    /// Its node.
    pub node: Node,
    /// Marks on its packets.
    pub marks: Marks,
    /// Its policy.
    pub policy: Policy,
}

const NODES: [Nodes; 2] = [Nodes::Many, Nodes::One];
const EXTERNAL_LINKS: [ExternalLink; 2] = [ExternalLink::NodeSegment, ExternalLink::OwnInterface];
const UNDERLAYS: [Underlay; 2] = [Underlay::Dual, Underlay::Ipv6];
const CNIS: [Cni; 4] = [Cni::IptablesNft, Cni::Nft, Cni::IptablesLegacy, Cni::None];
const FORWARDS: [Forward; 2] = [Forward::Accept, Forward::Drop];
const RP_FILTERS: [RpFilter; 2] = [RpFilter::Strict, RpFilter::Loose];
const MARKS: [Marks; 4] = [Marks::None, Marks::KubeProxy, Marks::Calico, Marks::Cilium];
const POLICIES: [Policy; 3] = [Policy::Dual, Policy::Ipv4, Policy::Ipv6];
/// Values of each factor, in the order of [`cell`].
const COUNTS: [usize; 10] = [2, 2, 2, 2, 4, 2, 2, 2, 4, 3];
/// Number of leading factors that belong to the [`Ground`].
const GROUND_FACTORS: usize = 4;

fn cell(row: &[usize]) -> Cell {
    Cell {
        ground: Ground {
            nodes: NODES[row[0]],
            external: EXTERNAL_LINKS[row[1]],
            underlay: UNDERLAYS[row[2]],
            mld_snooping: row[3] == 1,
        },
        node: Node {
            cni: CNIS[row[4]],
            forward: FORWARDS[row[5]],
            rp_filter: RP_FILTERS[row[6]],
            src_valid_mark: row[7] == 1,
        },
        marks: MARKS[row[8]],
        policy: POLICIES[row[9]],
    }
}

/// Why a cell is impossible; `None` if it is possible.
pub fn impossible(cell: &Cell) -> Option<&'static str> {
    let Ground {
        nodes,
        external,
        underlay,
        ..
    } = cell.ground;
    if underlay == Underlay::Dual || cell.policy == Policy::Ipv6 {
        return None;
    }
    if external == ExternalLink::NodeSegment {
        return Some(
            "gateways on a segment without IPv4 have no neighbour that could be told of an IPv4 egress address",
        );
    }
    // See docs/requirements.md; it works where the filter is off.
    (nodes == Nodes::Many).then_some(
        "a worker without any IPv4 route drops what comes back to it over IPv4: its reverse path filter, also a loose \
         one, asks for a route to the source",
    )
}

/// All possible cells.
pub fn all() -> Vec<Cell> {
    rows().iter().map(|row| cell(row)).collect()
}

/// Three values that must be combined although pairs would suffice: a solicitation for an egress address crosses a
/// segment that filters multicast only if the gateway is on that segment and the policy has an IPv6 address.
fn is_needed(cell: &Cell) -> bool {
    let Ground {
        nodes,
        external,
        underlay,
        mld_snooping,
    } = cell.ground;
    (nodes, external, underlay) == (Nodes::Many, ExternalLink::NodeSegment, Underlay::Dual)
        && mld_snooping
        && cell.policy == Policy::Dual
}

/// Few cells that contain every possible pair of values, and all that `is_needed` selects.
pub fn pairwise() -> Vec<Cell> {
    let table = pairwise_rows();
    table.iter().map(|row| cell(row)).collect()
}

fn pairwise_rows() -> Vec<Row> {
    let rows = rows();
    let needed: Vec<Row> = rows
        .iter()
        .filter(|row| is_needed(&cell(row)))
        .take(1)
        .cloned()
        .collect();
    table(&rows, GROUND_FACTORS, &needed)
}

fn rows() -> Vec<Row> {
    cross(&COUNTS, |row| impossible(&cell(row)).is_none())
}

#[cfg(test)]
mod tests {
    use super::super::pairs::pairs;
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_pair_of_values_is_in_a_cell_also_those_of_impossible_triples() {
        let table = pairwise_rows();
        let covered: BTreeSet<_> = table.iter().flat_map(|row| pairs(row)).collect();
        // Each impossible combination has three values; any two of them occur elsewhere. So no pair is missing.
        let anything = cross(&COUNTS, |_| true);
        let wanted: BTreeSet<_> = anything.iter().flat_map(|row| pairs(row)).collect();
        let missing: Vec<_> = wanted.difference(&covered).collect();
        assert!(missing.is_empty(), "{missing:?}");
        assert!(table.len() <= 24, "{} cells are many", table.len());
    }

    #[test]
    fn a_solicitation_for_an_ipv6_egress_address_crosses_a_segment_that_filters_multicast() {
        assert!(pairwise().iter().any(is_needed));
    }

    #[test]
    fn the_cross_leaves_out_what_has_a_reason() {
        let count: usize = COUNTS.iter().product();
        let without = cross(&COUNTS, |_| true)
            .iter()
            .filter(|row| impossible(&cell(row)).is_some())
            .count();
        assert_eq!(all().len(), count - without);
        // Snooping, four settings of the node and marks are free, one underlay, two policies of three; and both externals
        // where there are many nodes, one where there is one.
        assert_eq!(without, 3 * 2 * (4 * 2 * 2 * 2) * 4 * 2);
    }
}
