//! The emulated device's memory: host allocations between guards, filled with NaN.

use std::alloc::{Layout, alloc, dealloc};
use std::collections::BTreeMap;

use super::ffi;

/// What memory holds before anything is written: NaN in every floating point type, an index out of every range.
pub const FILL: u8 = 0xFF;
/// Bytes before and after an allocation that no kernel may touch. A read finds NaN there, a write is noticed.
const GUARD: usize = 256;

/// What guards hold: halfwords that are NaN as f16 and as bf16, and in pairs as f32, all different from their neighbours.
/// Each allocation's guards start elsewhere in here, so that NaN read from one guard and written to another shows.
const GUARD_BYTES: [u8; GUARD + STARTS] = {
    let mut bytes = [0; GUARD + STARTS];
    let mut i = 0;
    while i < bytes.len() {
        bytes[i] = if i.is_multiple_of(2) { 0xC0 | (i / 2 * 29 % 64) as u8 } else { 0xFF };
        i += 1;
    }
    bytes
};
const STARTS: usize = 64;

/// What the guards of an allocation hold.
fn guard_of(id: u64) -> &'static [u8] {
    let start = (id % (STARTS as u64 / 2) * 2) as usize;
    &GUARD_BYTES[start..start + GUARD]
}

struct Allocation {
    /// The first guard.
    base: *mut u8,
    layout: Layout,
    bytes: usize,
    /// Tells it from others that had the same address.
    id: u64,
}

/// The live allocations by address.
#[derive(Default)]
pub struct Memory {
    live: BTreeMap<u64, Allocation>,
    next_id: u64,
    /// Bytes of all live allocations.
    used: u64,
    /// What they may come to; no more than the host has if there is no number.
    pub capacity: Option<u64>,
}

// SAFETY: the allocations belong to the map alone.
unsafe impl Send for Memory {}

impl Memory {
    /// Allocates; none if memory is short.
    pub fn allocate(&mut self, bytes: usize) -> Option<u64> {
        if self.free_bytes().is_some_and(|free| bytes as u64 > free) {
            return None;
        }
        let size = bytes.checked_add(2 * GUARD)?;
        let layout = Layout::from_size_align(size, GUARD).ok()?;
        // SAFETY: the size is not 0.
        let base = unsafe { alloc(layout) };
        if base.is_null() {
            return None;
        }
        self.next_id += 1;
        let guard = guard_of(self.next_id).as_ptr();
        // SAFETY: `size` bytes were allocated, a guard's length at either end among them.
        unsafe {
            base.write_bytes(FILL, size);
            base.copy_from_nonoverlapping(guard, GUARD);
            base.add(GUARD + bytes).copy_from_nonoverlapping(guard, GUARD);
        }
        let address = base as u64 + GUARD as u64;
        ffi::poison(base, GUARD);
        ffi::poison(base.wrapping_add(GUARD + bytes), GUARD);
        self.used += bytes as u64;
        self.live.insert(address, Allocation { base, layout, bytes, id: self.next_id });
        Some(address)
    }

    /// What the capacity leaves.
    pub fn free_bytes(&self) -> Option<u64> {
        self.capacity.map(|capacity| capacity.saturating_sub(self.used))
    }

    /// Frees; an address that is not live is ignored.
    pub fn free(&mut self, address: u64) {
        if let Some(allocation) = self.live.remove(&address) {
            self.used -= allocation.bytes as u64;
            release(&allocation);
        }
    }

    /// The identity of the allocation that an address lies in, its end included.
    pub fn id_of(&self, address: u64) -> Option<u64> {
        let (&start, allocation) = self.live.range(..=address).next_back()?;
        (address - start <= allocation.bytes as u64).then_some(allocation.id)
    }

    /// A pointer to a range that lies inside one allocation.
    pub fn range(&self, address: u64, bytes: usize) -> Result<*mut u8, String> {
        let inside = self.live.range(..=address).next_back().filter(|&(start, allocation)| {
            usize::try_from(address - start)
                .is_ok_and(|offset| offset <= allocation.bytes && bytes <= allocation.bytes - offset)
        });
        match inside {
            Some((start, allocation)) => {
                Ok(allocation.base.wrapping_add(GUARD).wrapping_add((address - start) as usize))
            }
            None => Err(format!("{bytes} bytes at {address:#x} lie outside every allocation")),
        }
    }

    /// Whether all guards are as they were. A sanitized build watches them itself.
    pub fn check_guards(&self) -> Result<(), String> {
        if cfg!(sanitized) {
            return Ok(());
        }
        for allocation in self.live.values() {
            for (start, side) in [(0, "before"), (GUARD + allocation.bytes, "after")] {
                // SAFETY: both guards lie inside the allocation, which only C++ code that has returned could write to.
                let guard = unsafe { std::slice::from_raw_parts(allocation.base.add(start), GUARD) };
                let expected = guard_of(allocation.id);
                if guard == expected {
                    continue;
                }
                if let Some(offset) = guard.iter().zip(expected).position(|(byte, expected)| byte != expected) {
                    let distance = if start == 0 { GUARD - offset } else { offset + 1 };
                    return Err(format!(
                        "wrote up to {distance} bytes {side} an allocation of {} bytes",
                        allocation.bytes
                    ));
                }
            }
        }
        Ok(())
    }
}

fn release(allocation: &Allocation) {
    ffi::unpoison(allocation.base, allocation.layout.size());
    // SAFETY: allocated with this layout, and removed from the map by the caller.
    unsafe { dealloc(allocation.base, allocation.layout) };
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.live.values().for_each(release);
    }
}
