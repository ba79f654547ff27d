//! Matches that count connections.

use super::{Builder, End, Family};
use crate::nft::{Expression, MetaKey};

impl Builder {
    /// Counts connections by source, destination, protocol and destination port in a set that packets fill; matches if
    /// there are more than `most`.
    pub fn connections_of_source_over(self, family: Family, set: &str, most: u32) -> Self {
        let width = if family == Family::V4 { 1 } else { 4 };
        self.family(family)
            .address(family, End::Source, 0)
            .address(family, End::Destination, width)
            .push(Expression::Meta(MetaKey::L4Proto, 2 * width))
            .load_port(End::Destination, 2 * width + 1)
            .count_connections(set, most)
    }

    /// Counts connections by destination, protocol and destination port in a set that packets fill; matches if there are
    /// more than `most`.
    pub fn connections_over(self, family: Family, set: &str, most: u32) -> Self {
        let width = if family == Family::V4 { 1 } else { 4 };
        self.family(family)
            .address(family, End::Destination, 0)
            .push(Expression::Meta(MetaKey::L4Proto, width))
            .load_port(End::Destination, width + 1)
            .count_connections(set, most)
    }

    fn count_connections(self, set: &str, over: u32) -> Self {
        self.push(Expression::CountConnections {
            set: set.into(),
            register: 0,
            over,
        })
    }
}
