//! How much of each owner's work has been accepted and has not ended.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// An owner has much to do from so many jobs on.
pub(super) const MUCH: usize = 8;

/// Counts jobs by owner; what has ended leaves by itself.
#[derive(Debug, Default)]
pub(super) struct Owners {
    unended: HashMap<u64, Arc<AtomicUsize>>,
    /// Owners with [`MUCH`] to do.
    busy: Arc<AtomicUsize>,
    /// Owners without work are forgotten when so many are known.
    limit: usize,
}

/// A job's part in its owner's count, for as long as the job lives.
#[derive(Debug)]
pub(super) struct Mark {
    unended: Arc<AtomicUsize>,
    busy: Arc<AtomicUsize>,
}

impl Owners {
    /// Counts a job of an owner.
    pub(super) fn mark(&mut self, owner: u64) -> Mark {
        if self.unended.len() >= self.limit {
            self.unended.retain(|_, count| count.load(Ordering::Relaxed) > 0);
            self.limit = (2 * self.unended.len()).max(64);
        }
        let unended = self.unended.entry(owner).or_default().clone();
        if unended.fetch_add(1, Ordering::Relaxed) + 1 == MUCH {
            self.busy.fetch_add(1, Ordering::Relaxed);
        }
        Mark { unended, busy: self.busy.clone() }
    }

    /// Jobs of an owner that have not ended.
    pub(super) fn unended(&self, owner: u64) -> usize {
        self.unended.get(&owner).map_or(0, |count| count.load(Ordering::Relaxed))
    }

    /// Whether another owner has much to do.
    pub(super) fn is_beside_much(&self, owner: u64) -> bool {
        self.busy.load(Ordering::Relaxed) > usize::from(self.unended(owner) >= MUCH)
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        if self.unended.fetch_sub(1, Ordering::Relaxed) == MUCH {
            self.busy.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn much_is_counted_until_it_ends() {
        let mut owners = Owners::default();
        let mut marks: Vec<Mark> = (0..MUCH).map(|_| owners.mark(1)).collect();
        let other = owners.mark(2);
        assert_eq!((owners.unended(1), owners.unended(2), owners.unended(3)), (MUCH, 1, 0));
        // Its own work is not another's.
        assert!(!owners.is_beside_much(1) && owners.is_beside_much(2) && owners.is_beside_much(3));
        marks.pop();
        assert!(!owners.is_beside_much(2));
        marks.push(owners.mark(1));
        assert!(owners.is_beside_much(2));
        drop((marks, other));
        assert_eq!((owners.unended(1), owners.busy.load(Ordering::Relaxed)), (0, 0));
        // Who has nothing to do is forgotten now and then.
        (0..1000).for_each(|owner| drop(owners.mark(owner)));
        assert!(owners.unended.len() <= 64, "{}", owners.unended.len());
    }
}
