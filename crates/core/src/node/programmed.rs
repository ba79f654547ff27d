//! The list of programmed policies in a node's status is bounded. A namespace with very many policies must not take the
//! places of others.

use crate::model::Programmed;
use std::collections::BTreeMap;

/// The first `limit` of these in their order, and how many are left out. Places are given in turns, one per namespace
/// and turn; the policies of the cluster count as one namespace.
pub fn bounded_programmed(all: &[Programmed], limit: usize) -> (Vec<Programmed>, usize) {
    if all.len() <= limit {
        return (all.to_vec(), 0);
    }
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    let turns = all.iter().enumerate().map(|(position, one)| {
        let turn = seen.entry(one.policy.namespace.as_str()).or_default();
        *turn += 1;
        (*turn, position)
    });
    let mut order: Vec<(usize, usize)> = turns.collect();
    order.sort_unstable();
    let mut chosen: Vec<usize> = order.iter().take(limit).map(|(_, at)| *at).collect();
    chosen.sort_unstable();
    let named = chosen.into_iter().map(|position| all[position].clone());
    (named.collect(), all.len() - limit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Kind, ObjectRef};

    fn policies(namespace: &str, count: usize) -> Vec<Programmed> {
        let one = |number| Programmed {
            policy: ObjectRef {
                kind: Kind::Egress,
                namespace: namespace.into(),
                name: format!("p{number}"),
            },
            generation: 1,
            pods: 1,
        };
        (0..count).map(one).collect()
    }

    #[test]
    fn up_to_the_limit_all_are_named() {
        let all = policies("a", 7);
        assert_eq!(bounded_programmed(&all, 7), (all.clone(), 0));
        assert_eq!(bounded_programmed(&all, 6), (all[..6].to_vec(), 1));
    }

    #[test]
    fn a_namespace_with_many_policies_takes_no_place_of_others() {
        let mut all = policies("a", 50);
        all.extend(policies("b", 2));
        all.extend(policies("c", 1));
        let (named, left_out) = bounded_programmed(&all, 10);
        let of = |namespace: &str| {
            let named = named.iter();
            let own = named.filter(|one| one.policy.namespace == namespace);
            own.count()
        };
        assert_eq!((of("a"), of("b"), of("c"), left_out), (7, 2, 1, 43));
    }
}
