//! Multisets of n-grams as sorted lists: built once per text, compared by one walk over both.

use std::cmp::Ordering;

/// The distinct items of a list and how often each stands there, sorted.
pub(super) fn count_runs<T: Ord + Copy>(mut items: Vec<T>) -> Vec<(T, u32)> {
    items.sort_unstable();
    items.chunk_by(|a, b| a == b).map(|run| (run[0], run.len() as u32)).collect()
}

/// Calls `found(i, j)` for every `a[i]` that equals `b[j]`; both lists are sorted by `order` and free of duplicates.
pub(super) fn for_each_common<T>(
    a: &[T],
    b: &[T],
    order: impl Fn(&T, &T) -> Ordering,
    mut found: impl FnMut(usize, usize),
) {
    let (mut i, mut j) = (0, 0);
    while i < a.len() && j < b.len() {
        match order(&a[i], &b[j]) {
            Ordering::Less => i += 1,
            Ordering::Greater => j += 1,
            Ordering::Equal => {
                found(i, j);
                i += 1;
                j += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_sorted_and_counted() {
        assert_eq!(count_runs(vec![3, 1, 3, 2, 3, 1]), [(1, 2), (2, 1), (3, 3)]);
        assert_eq!(count_runs(Vec::<u8>::new()), []);
    }

    #[test]
    fn common_items_are_found_wherever_they_stand() {
        let mut found = Vec::new();
        for_each_common(&[1, 2, 4, 7, 9], &[0, 2, 3, 7, 8, 9], Ord::cmp, |i, j| found.push((i, j)));
        assert_eq!(found, [(1, 1), (3, 3), (4, 5)]);
        for_each_common(&[], &[1], Ord::cmp, |_, _| panic!("an empty list has nothing in common"));
    }
}
