//! What a context counts.

use std::sync::atomic::{AtomicU64, Ordering};

/// What a context has done since it was opened. What a graph replays is not counted, only the replay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Kernel launches.
    pub launches: u64,
    /// Matrix products.
    pub gemms: u64,
    /// Graphs recorded.
    pub captures: u64,
    /// Replays of a graph.
    pub replays: u64,
    /// Copies of any kind, and fills.
    pub copies: u64,
    /// Bytes copied from the host or to it.
    pub host_bytes: u64,
    /// Times that the host waited for all that was enqueued.
    pub waits: u64,
    /// Reads of words copied to the host earlier: they wait for that copy alone, with later work enqueued behind it.
    pub late_reads: u64,
    /// Allocations, on the device and of page-locked memory.
    pub allocations: u64,
    /// Frees of device memory.
    pub frees: u64,
    /// Bytes of device memory allocated and not freed.
    pub live_bytes: u64,
    /// Bytes of page-locked memory allocated and not freed.
    pub pinned_bytes: u64,
    /// Decoding steps.
    pub steps: u64,
    /// Launches, products, copies and fills of these steps, replayed or not: the nodes of their graphs.
    pub step_nodes: u64,
}

impl Counters {
    /// What has been done since `earlier`; what is allocated stays as it is.
    pub fn since(&self, earlier: &Counters) -> Counters {
        let Counters { live_bytes, pinned_bytes, .. } = *self;
        Counters { live_bytes, pinned_bytes, ..self.combine(earlier, u64::wrapping_sub) }
    }

    /// What two devices have done.
    pub fn plus(&self, other: &Counters) -> Counters {
        self.combine(other, |one, other| one + other)
    }

    fn combine(&self, other: &Counters, of: impl Fn(u64, u64) -> u64) -> Counters {
        Counters {
            launches: of(self.launches, other.launches),
            gemms: of(self.gemms, other.gemms),
            captures: of(self.captures, other.captures),
            replays: of(self.replays, other.replays),
            copies: of(self.copies, other.copies),
            host_bytes: of(self.host_bytes, other.host_bytes),
            waits: of(self.waits, other.waits),
            late_reads: of(self.late_reads, other.late_reads),
            allocations: of(self.allocations, other.allocations),
            frees: of(self.frees, other.frees),
            live_bytes: of(self.live_bytes, other.live_bytes),
            pinned_bytes: of(self.pinned_bytes, other.pinned_bytes),
            steps: of(self.steps, other.steps),
            step_nodes: of(self.step_nodes, other.step_nodes),
        }
    }

    /// What a graph of the work enqueued so far would hold.
    pub fn nodes(&self) -> u64 {
        self.launches + self.gemms + self.copies
    }
}

pub(super) const LAUNCHES: usize = 0;
pub(super) const GEMMS: usize = 1;
pub(super) const CAPTURES: usize = 2;
pub(super) const REPLAYS: usize = 3;
pub(super) const COPIES: usize = 4;
pub(super) const HOST_BYTES: usize = 5;
pub(super) const WAITS: usize = 6;
pub(super) const LATE_READS: usize = 7;
pub(super) const ALLOCATIONS: usize = 8;
pub(super) const FREES: usize = 9;
pub(super) const LIVE_BYTES: usize = 10;
pub(super) const PINNED_BYTES: usize = 11;
pub(super) const STEPS: usize = 12;
pub(super) const STEP_NODES: usize = 13;
pub(super) const COUNTS: usize = 14;

/// The counts, changed from any thread.
#[derive(Default)]
pub(super) struct Tally([AtomicU64; COUNTS]);

impl Tally {
    /// Adds to one of them.
    pub fn add(&self, index: usize, by: usize) {
        self.0[index].fetch_add(by as u64, Ordering::Relaxed);
    }

    /// Takes from one of them.
    pub fn subtract(&self, index: usize, by: usize) {
        self.0[index].fetch_sub(by as u64, Ordering::Relaxed);
    }

    /// One of them.
    pub fn get(&self, index: usize) -> u64 {
        self.0[index].load(Ordering::Relaxed)
    }

    /// All of them.
    pub fn read(&self) -> Counters {
        let count = |index| self.get(index);
        Counters {
            launches: count(LAUNCHES),
            gemms: count(GEMMS),
            captures: count(CAPTURES),
            replays: count(REPLAYS),
            copies: count(COPIES),
            host_bytes: count(HOST_BYTES),
            waits: count(WAITS),
            late_reads: count(LATE_READS),
            allocations: count(ALLOCATIONS),
            frees: count(FREES),
            live_bytes: count(LIVE_BYTES),
            pinned_bytes: count(PINNED_BYTES),
            steps: count(STEPS),
            step_nodes: count(STEP_NODES),
        }
    }
}
