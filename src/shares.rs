//! Work over a long slice, divided among threads of its own: for what is done once, as loading is, while the threads that decode may
//! be busy for others.

use std::panic::resume_unwind;
use std::sync::{Mutex, PoisonError};
use std::thread;

use crate::threads;

/// More threads than this do not read memory faster.
const MAX_THREADS: usize = 8;

/// Calls `work` with shares of `data`, each of `len` elements but the last, and with where each begins; the results stand in the order
/// of the shares. Where the system gives no further threads this one does it all.
pub(crate) fn in_shares<T: Send, R: Send>(
    data: &mut [T],
    len: usize,
    work: impl Fn(usize, &mut [T]) -> R + Sync,
) -> Vec<R> {
    let len = len.max(1);
    let threads = match data.len().div_ceil(len) {
        // Of how many processors there are the system is asked only where it matters: that reads files.
        0 | 1 => 1,
        shares => shares.min(thread::available_parallelism().map_or(1, usize::from)).min(MAX_THREADS),
    };
    let shares = Mutex::new(data.chunks_mut(len).enumerate());
    let next = || shares.lock().unwrap_or_else(PoisonError::into_inner).next();
    let run = || {
        let mut done = Vec::new();
        while let Some((number, share)) = next() {
            done.push((number, work(number * len, share)));
        }
        done
    };
    let mut done = thread::scope(|scope| {
        let begin = |_| threads::room().and_then(|()| thread::Builder::new().spawn_scoped(scope, run)).ok();
        let helpers: Vec<_> = (1..threads).filter_map(begin).collect();
        let mut done = run();
        for helper in helpers {
            done.extend(helper.join().unwrap_or_else(|panic| resume_unwind(panic)));
        }
        done
    });
    done.sort_unstable_by_key(|(number, _)| *number);
    done.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::in_shares;

    #[test]
    fn every_element_is_worked_on_once_and_results_keep_their_order() {
        for (len, share) in [(0, 4), (1, 4), (4, 4), (1001, 7), (50, 0)] {
            let mut data: Vec<usize> = (0..len).collect();
            let sums = in_shares(&mut data, share, |at, part| {
                assert_eq!(part.first(), Some(&at));
                // So that several threads take shares by turns.
                std::thread::sleep(std::time::Duration::from_millis(1));
                part.iter_mut().for_each(|value| *value += 1);
                (at, part.len())
            });
            assert!(data.iter().enumerate().all(|(i, value)| *value == i + 1));
            assert!(sums.windows(2).all(|pair| pair[0].0 + pair[0].1 == pair[1].0));
            assert_eq!(sums.iter().map(|(_, len)| len).sum::<usize>(), len);
        }
    }

    #[test]
    #[should_panic(expected = "share 9")]
    fn a_panic_is_the_callers() {
        in_shares(&mut [0; 10], 1, |at, _| assert_ne!(at, 9, "share 9"));
    }
}
