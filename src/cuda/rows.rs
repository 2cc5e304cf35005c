//! The row list of a step as the launchers take it.

use super::buffer::View;
use super::context::{Context, check_len, to_u32};
use crate::Result;
use crate::backend::Row;

/// Words of an entry.
const ROW_WORDS: usize = size_of::<Row>() / size_of::<u32>();

/// Which rows of a step's activations are live, and what they belong to: [`crate::backend::Rows`] on the device.
#[derive(Clone, Copy)]
pub struct RowList<'a> {
    /// [`Row`] entries, at least `bucket` of 4 words each.
    pub entries: View<'a, u32>,
    /// `[1]`: how many entries are live. Kernels leave the rows from there on alone.
    pub count: View<'a, u32>,
    /// Rows that a grid is sized for; no more are live.
    pub bucket: usize,
}

/// A row list as kernels take it.
pub(super) struct RowArguments {
    pub entries: u64,
    pub count: u64,
    pub bucket: u32,
}

impl RowList<'_> {
    /// Checks the lengths.
    pub(super) fn arguments(&self, operation: &'static str, context: &Context) -> Result<RowArguments> {
        let entries = self.entries.slice(0..self.bucket * ROW_WORDS)?;
        check_len(operation, "count", 1, self.count.len())?;
        Ok(RowArguments {
            entries: context.address(&entries)?,
            count: context.address(&self.count)?,
            bucket: to_u32(operation, "rows", self.bucket)?,
        })
    }
}
