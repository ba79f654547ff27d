//! Pairwise tables: most faults need the combination of only two settings, and all pairs fit into few rows.

use std::collections::BTreeSet;

/// One value of one factor: number of the factor, number of the value.
type Value = (usize, usize);
/// One value for each factor.
pub type Row = Vec<usize>;

/// All possible rows of the full cross. `counts`: number of values of each factor.
pub fn cross(counts: &[usize], is_possible: impl Fn(&[usize]) -> bool) -> Vec<Row> {
    let mut rows = vec![Row::new()];
    for count in counts {
        let longer = rows.iter().flat_map(|row| {
            (0..*count).map(move |value| row.iter().copied().chain([value]).collect())
        });
        rows = longer.collect();
    }
    rows.retain(|row| is_possible(row));
    rows
}

/// Pairs of values in a row.
pub fn pairs(row: &[usize]) -> impl Iterator<Item = (Value, Value)> {
    (0..row.len()).flat_map(move |first| {
        (first + 1..row.len()).map(move |second| ((first, row[first]), (second, row[second])))
    })
}

/// A few of the rows that contain every pair of any row. Greedy: always the row with most new pairs; of several the one
/// whose first `kept` values are there already, then the first. The same rows give the same table. `needed`: rows that
/// are always included.
pub fn table(rows: &[Row], kept: usize, needed: &[Row]) -> Vec<Row> {
    let mut missing: BTreeSet<(Value, Value)> = rows.iter().flat_map(|row| pairs(row)).collect();
    let mut heads: BTreeSet<&[usize]> = needed.iter().map(|row| &row[..kept]).collect();
    let mut table = needed.to_vec();
    for pair in needed.iter().flat_map(|row| pairs(row)) {
        missing.remove(&pair);
    }
    while !missing.is_empty() {
        let gain = |row: &Row| pairs(row).filter(|pair| missing.contains(pair)).count();
        // Of equals `max_by_key` takes the last, so it iterates in reverse.
        let best = rows
            .iter()
            .rev()
            .max_by_key(|row| (gain(row), heads.contains(&row[..kept])))
            .expect("a pair is missing, so there is a row that has it");
        for pair in pairs(best) {
            missing.remove(&pair);
        }
        heads.insert(&best[..kept]);
        table.push(best.clone());
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_pairs(rows: &[Row]) -> BTreeSet<(Value, Value)> {
        rows.iter().flat_map(|row| pairs(row)).collect()
    }

    #[test]
    fn every_pair_of_the_cross_is_in_the_table() {
        for counts in [vec![2, 2, 2], vec![3, 4, 2, 2], vec![4, 4, 3, 2, 2, 2]] {
            let rows = cross(&counts, |_| true);
            assert_eq!(rows.len(), counts.iter().product::<usize>());
            let table = table(&rows, 1, &[]);
            assert_eq!(all_pairs(&table), all_pairs(&rows));
            assert!(table.len() < rows.len(), "{counts:?}: {}", table.len());
        }
    }

    #[test]
    fn what_is_impossible_is_in_no_row_and_costs_no_other_pair() {
        let rows = cross(&[3, 3, 3], |row| !(row[0] == 0 && row[1] == 2));
        let table = table(&rows, 1, &[]);
        assert!(table.iter().all(|row| !(row[0] == 0 && row[1] == 2)));
        // 27 pairs of values, minus the impossible one.
        assert_eq!(all_pairs(&table).len(), 26);
    }

    #[test]
    fn the_table_is_always_the_same() {
        let rows = cross(&[4, 3, 2, 2], |_| true);
        assert_eq!(table(&rows, 2, &[]), table(&rows, 2, &[]));
    }

    #[test]
    fn a_row_that_is_needed_is_there_and_takes_the_place_of_others() {
        let rows = cross(&[2, 2, 2], |_| true);
        let needed = vec![vec![1, 1, 1]];
        let table = table(&rows, 1, &needed);
        assert_eq!(table[0], needed[0]);
        assert_eq!(all_pairs(&table), all_pairs(&rows));
        assert!(table.len() <= 5, "{}", table.len());
    }
}
