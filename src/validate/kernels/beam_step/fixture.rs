//! A search on a device, with what its next step reads.

use super::{IDS, on_cpu};
use crate::Result;
use crate::backend::{Search, SessionShape, SlotOptions};
use crate::cpu::Cpu;
use crate::cuda::beam_step::{BeamStep, BeamStepScratch, SearchViews, StartSlots};
use crate::cuda::{Buffer, Context};

/// Declares the buffers of a search under the names that `Search` and `SearchViews` both give them.
macro_rules! state {
    ($($field:ident: $element:ty),*) => {
        struct State {
            $($field: Buffer<$element>,)*
            rows: Buffer<u32>,
            row_count: Buffer<u32>,
            ranked: Buffer<f32>,
            bans: Buffer<u32>,
            constraints: Buffer<u32>,
            banks: Buffer<u32>,
            picks: Buffer<u32>,
        }

        impl State {
            fn upload(context: &Context, search: &Search<Cpu>, stride: usize) -> Result<Self> {
                Ok(State {
                    $($field: context.upload(&search.$field)?,)*
                    rows: context.upload(&search.rows.entries)?,
                    row_count: context.upload(&search.rows.count)?,
                    ranked: context.zeros(search.shape.rows * stride)?,
                    bans: context.upload(&search.bans)?,
                    constraints: context.upload(&search.constraints)?,
                    banks: context.upload(&search.banks)?,
                    picks: context.upload(&search.picks)?,
                })
            }

            fn download(&self, context: &Context, search: &mut Search<Cpu>) -> Result<()> {
                $(search.$field = context.download(self.$field.view())?;)*
                search.rows.entries = context.download(self.rows.view())?;
                search.rows.count = context.download(self.row_count.view())?;
                Ok(())
            }

            fn views(&mut self, shape: SessionShape, vocab_size: usize) -> SearchViews<'_> {
                SearchViews {
                    shape,
                    vocab_size,
                    ids: IDS,
                    $($field: self.$field.view_mut(),)*
                    rows: self.rows.view_mut(),
                    row_count: self.row_count.view_mut(),
                    ranked: self.ranked.view_mut(),
                    bans: self.bans.view_mut(),
                    constraints: self.constraints.view_mut(),
                    banks: self.banks.view_mut(),
                    picks: self.picks.view_mut(),
                }
            }
        }
    };
}

state! {
    options: u32, step: u32, live: u32, cum_log_probs: f32, tokens: u32, parents: u32, log_probs: f32, ancestry: u32,
    coverage: f32, attention: f32, finished: u32, finished_count: u32, failures: u32
}

/// A search on a device, with what its next step reads.
pub struct Fixture {
    /// The device.
    pub context: Context,
    /// The search's sizes.
    pub shape: SessionShape,
    /// Tokens.
    pub vocab_size: usize,
    /// Elements between two rows of logits.
    pub stride: usize,
    /// What the next step reads.
    pub logits: Buffer<f32>,
    attention: Buffer<f32>,
    state: State,
    scratch: BeamStepScratch,
}

impl Fixture {
    /// An empty search whose logits lie without gaps.
    ///
    /// # Errors
    /// The device failed; so for all methods.
    pub fn new(context: &Context, shape: SessionShape, vocab_size: usize, threads: u32) -> Result<Self> {
        Self::with_stride(context, shape, vocab_size, vocab_size, threads)
    }

    /// An empty search.
    ///
    /// # Errors
    /// As [`Fixture::new`].
    pub fn with_stride(
        context: &Context,
        shape: SessionShape,
        vocab_size: usize,
        stride: usize,
        threads: u32,
    ) -> Result<Self> {
        Ok(Fixture {
            context: context.clone(),
            shape,
            vocab_size,
            stride,
            logits: context.allocate(shape.rows * stride)?,
            attention: context.allocate(shape.rows * shape.max_src_len)?,
            state: State::upload(context, &on_cpu(shape, vocab_size)?, stride)?,
            scratch: BeamStepScratch::with_threads(context, shape, vocab_size, threads)?,
        })
    }

    /// Takes slots into the search.
    ///
    /// # Errors
    /// As [`Fixture::new`].
    pub fn start(&mut self, slots: &[(u32, SlotOptions)]) -> Result<()> {
        let search = self.state.views(self.shape, self.vocab_size);
        StartSlots { search, scratch: &mut self.scratch, slots }.launch(&self.context)
    }

    /// Sets what the next step reads, with NaN between the rows.
    ///
    /// # Errors
    /// As [`Fixture::new`].
    pub fn write(&mut self, logits: &[f32], attention: &[f32]) -> Result<()> {
        let logits = self.apart(logits);
        self.context.write(self.logits.view_mut(), &logits)?;
        self.context.write(self.attention.view_mut(), attention)
    }

    /// Rows a stride apart, with NaN between them.
    fn apart(&self, rows: &[f32]) -> Vec<f32> {
        let mut apart = vec![f32::NAN; self.shape.rows * self.stride];
        for (to, from) in apart.chunks_mut(self.stride).zip(rows.chunks(self.vocab_size)) {
            to[..self.vocab_size].copy_from_slice(from);
        }
        apart
    }

    /// Sets what the next step may read beside the logits.
    ///
    /// # Errors
    /// As [`Fixture::new`].
    pub fn write_extras(&mut self, from: &Search<Cpu>) -> Result<()> {
        let ranked = self.apart(&from.ranked);
        self.context.write(self.state.ranked.view_mut(), &ranked)?;
        self.context.write(self.state.bans.view_mut(), &from.bans)?;
        self.context.write(self.state.constraints.view_mut(), &from.constraints)?;
        self.context.write(self.state.banks.view_mut(), &from.banks)?;
        self.context.write(self.state.picks.view_mut(), &from.picks)
    }

    /// One step, of at most `bucket` live slots.
    ///
    /// # Errors
    /// As [`Fixture::new`].
    pub fn step(&mut self, bucket: usize) -> Result<()> {
        BeamStep {
            search: self.state.views(self.shape, self.vocab_size),
            scratch: &mut self.scratch,
            logits: self.logits.view(),
            logits_stride: self.stride,
            attention: self.attention.view(),
            bucket,
        }
        .launch(&self.context)
    }

    /// Slots that live.
    ///
    /// # Errors
    /// As [`Fixture::new`].
    pub fn live_slots(&self) -> Result<usize> {
        Ok(self.context.download(self.state.live.view())?.into_iter().filter(|live| *live > 0).count())
    }

    /// The state, as the CPU holds one.
    ///
    /// # Errors
    /// As [`Fixture::new`].
    pub fn download(&self) -> Result<Search<Cpu>> {
        let mut search = on_cpu(self.shape, self.vocab_size)?;
        self.state.download(&self.context, &mut search)?;
        Ok(search)
    }
}
