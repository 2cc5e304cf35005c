//! A device without anything behind it. What is allocated on it is counted by its context, so that a plan of memory comes from
//! the code that allocates.

use std::sync::atomic::{AtomicU64, Ordering};

use super::device::{Device, Gemm, GraphId, Launch, PinnedId};
use super::linear_norm::GemmNorm;
use crate::Result;

/// Memory is told apart by addresses that nothing lies at; all else does nothing.
#[derive(Default)]
pub struct DryDevice {
    allocated: AtomicU64,
}

/// Where the first allocation lies: no address is 0, and all are multiples of this.
const ALIGNMENT: u64 = 256;

impl Device for DryDevice {
    fn name(&self) -> &str {
        "dry"
    }

    fn is_dry(&self) -> bool {
        true
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        let room = (bytes as u64).next_multiple_of(ALIGNMENT) + ALIGNMENT;
        Ok(ALIGNMENT + self.allocated.fetch_add(room, Ordering::Relaxed))
    }

    fn free_memory(&self) -> Result<Option<u64>> {
        Ok(None)
    }

    unsafe fn free(&self, _: u64) {}

    unsafe fn upload(&self, _: u64, _: &[u8]) -> Result<()> {
        Ok(())
    }

    unsafe fn download(&self, _: u64, bytes: &mut [u8]) -> Result<()> {
        bytes.fill(0);
        Ok(())
    }

    unsafe fn copy(&self, _: u64, _: u64, _: usize) -> Result<()> {
        Ok(())
    }

    unsafe fn fill(&self, _: u64, _: u8, _: usize) -> Result<()> {
        Ok(())
    }

    unsafe fn launch(&self, _: &Launch, _: &[u8]) -> Result<()> {
        Ok(())
    }

    unsafe fn gemm(&self, _: &Gemm) -> Result<()> {
        Ok(())
    }

    unsafe fn gemm_norm(&self, _: &GemmNorm) -> Result<()> {
        Ok(())
    }

    fn begin_capture(&self) -> Result<()> {
        Ok(())
    }

    fn end_capture(&self) -> Result<GraphId> {
        Ok(GraphId(0))
    }

    unsafe fn replay(&self, _: GraphId) -> Result<()> {
        Ok(())
    }

    fn graph_nodes(&self, _: GraphId) -> usize {
        0
    }

    fn drop_graph(&self, _: GraphId) {}

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn allocate_pinned(&self, _: usize) -> Result<PinnedId> {
        Ok(PinnedId(0))
    }

    unsafe fn post(&self, _: u64, _: usize, _: PinnedId, _: usize) -> Result<()> {
        Ok(())
    }

    fn wait_readback(&self, _: PinnedId, bytes: &mut [u8]) -> Result<()> {
        bytes.fill(0);
        Ok(())
    }

    fn free_pinned(&self, _: PinnedId) {}
}

#[cfg(test)]
mod tests {
    use super::super::Context;
    use super::*;

    #[test]
    fn a_limit_counts_what_is_allocated() -> Result<()> {
        let context = Context::new(Box::new(DryDevice::default()));
        assert_eq!(context.free_memory()?, None);
        context.limit_memory(400);
        assert_eq!(context.free_memory()?, Some(400));
        let some = context.allocate::<u8>(300)?;
        let error = context.allocate::<u8>(101).expect_err("100 are left");
        assert!(error.to_string().contains("101") && error.to_string().contains("100"), "{error}");
        drop(some);
        context.allocate::<u8>(400)?;
        let _kept = context.allocate::<u8>(300)?;
        context.limit_memory(200);
        assert_eq!(context.free_memory()?, Some(0));
        Ok(())
    }
}
