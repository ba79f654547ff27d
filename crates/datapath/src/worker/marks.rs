//! Lifetime of our mark: from classification, the last chain before routing, to the first chain after it. No foreign
//! rule sees it. Marks of others come through unchanged, and none of their values leads into our routing tables.
//!
//! A packet that arrives with one of our group numbers in a foreign mark gets one more bit, which no group number has.
//! Classification then overwrites the bits of selected packets. After routing our numbers are cleared and that bit is
//! removed.

use super::names::GROUP_SETS;
#[cfg(test)]
use egret_core::numbers::GROUPS_MAX;
use egret_core::numbers::{FOREIGN_MARK_BIT, MARK_MASK, MARK_SHIFT};
use egret_kernel::nft::rule::rule;
use egret_kernel::nft::{ElementKey, Rule, Set, SetType, Table, Value};

/// Adds the sets of the marks that our routing rules match, and of the values that stand for them in foreign marks.
pub(crate) fn sets(numbers: impl Iterator<Item = u8>, table: &mut Table) {
    let marks: Vec<u32> = numbers
        .map(|number| u32::from(number) << MARK_SHIFT)
        .collect();
    let foreign = marks
        .iter()
        .map(|mark| mark | FOREIGN_MARK_BIT)
        .filter(|mark| !marks.contains(mark))
        .collect();
    for (name, content) in GROUP_SETS.into_iter().zip([marks.clone(), foreign]) {
        let mut set = Set::new(&[SetType::Mark]);
        for mark in content {
            let key = ElementKey::single(&[&mark.to_ne_bytes()]);
            set.elements.insert(key, Value::Member);
        }
        table.sets.insert(name.into(), set);
    }
}

/// Before classification: sets aside a foreign mark that contains one of our numbers.
pub(crate) fn set_aside() -> Rule {
    let [groups, _] = GROUP_SETS;
    rule()
        .mark_in(MARK_MASK, groups)
        .set_mark(FOREIGN_MARK_BIT, FOREIGN_MARK_BIT)
        .done()
}

/// After routing: clears our numbers and restores foreign marks that were set aside.
pub(crate) fn restore() -> Vec<Rule> {
    let [groups, foreign] = GROUP_SETS;
    vec![
        rule()
            .mark_in(MARK_MASK, groups)
            .set_mark(MARK_MASK, 0)
            .accept(),
        rule()
            .mark_in(MARK_MASK, foreign)
            .set_mark(FOREIGN_MARK_BIT, 0)
            .done(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use egret_kernel::nft::{Expression, MetaKey};
    use std::collections::BTreeSet;

    /// Evaluates the few expressions of these rules as the kernel does (nft_meta, nft_bitwise, nft_cmp, nft_lookup).
    fn carry_out(rules: &[Rule], table: &Table, mut mark: u32) -> u32 {
        'rules: for rule in rules {
            let mut register = 0u32;
            for expression in rule {
                let number = |bytes: &[u8]| u32::from_ne_bytes(bytes.try_into().unwrap());
                match expression {
                    Expression::Meta(MetaKey::Mark, 0) => register = mark,
                    Expression::Bitwise { mask, xor, .. } => {
                        register = register & number(mask) ^ number(xor);
                    }
                    Expression::Compare { negated, bytes, .. } => {
                        if (register == number(bytes)) == *negated {
                            continue 'rules;
                        }
                    }
                    Expression::InSet { set, negated, .. } => {
                        let key = ElementKey::single(&[&register.to_ne_bytes()]);
                        if table.sets[set].elements.contains_key(&key) == *negated {
                            continue 'rules;
                        }
                    }
                    Expression::SetMark(0) => mark = register,
                    Expression::Verdict(1, None) => return mark,
                    other => panic!("not in these rules: {other:?}"),
                }
            }
        }
        mark
    }

    fn tables() -> Vec<BTreeSet<u8>> {
        let one = (1..=GROUPS_MAX).map(|number| BTreeSet::from([number]));
        let some = [
            vec![],
            vec![1, 2, 4],
            vec![1, 2, 3, 8, 64],
            (1..=GROUPS_MAX).collect(),
        ];
        one.chain(some.into_iter().map(|all| all.into_iter().collect()))
            .collect()
    }

    /// All values of our bits, with foreign bits around them.
    fn marks() -> impl Iterator<Item = u32> {
        let around = [0, 0x4000, 0x0f00, 0xff00_ffff, 0xab00_4e00, 1];
        (0..=0xff_u32).flat_map(move |bits| around.map(|rest| bits << MARK_SHIFT | rest))
    }

    #[test]
    fn no_mark_of_others_meets_a_routing_rule_and_each_arrives_as_it_was() {
        for numbers in tables() {
            let mut table = Table::default();
            sets(numbers.iter().copied(), &mut table);
            let asked: BTreeSet<u32> = numbers
                .iter()
                .map(|number| u32::from(*number) << MARK_SHIFT)
                .collect();
            for mark in marks() {
                let routed = carry_out(&[set_aside()], &table, mark);
                assert!(
                    !asked.contains(&(routed & MARK_MASK)),
                    "{mark:#x} is led astray"
                );
                assert_eq!(
                    routed & !MARK_MASK,
                    mark & !MARK_MASK,
                    "{mark:#x}: bits of others"
                );
                let arrived = carry_out(&restore(), &table, routed);
                let in_use = asked.contains(&(mark & MARK_MASK & !FOREIGN_MARK_BIT));
                // A number in use together with the extra bit is indistinguishable from a mark set aside (decision
                // 103).
                let is_twin = in_use && mark & FOREIGN_MARK_BIT != 0;
                let expected = if is_twin {
                    mark & !FOREIGN_MARK_BIT
                } else {
                    mark
                };
                assert_eq!(arrived, expected, "{mark:#x}");
            }
        }
    }

    #[test]
    fn of_our_own_mark_nothing_is_left_behind_routing() {
        for numbers in tables() {
            let mut table = Table::default();
            sets(numbers.iter().copied(), &mut table);
            for number in &numbers {
                let ours = u32::from(*number) << MARK_SHIFT;
                for rest in [0, 0x4000, 0xff00_ffff] {
                    assert_eq!(carry_out(&restore(), &table, ours | rest), rest);
                }
            }
        }
    }
}
