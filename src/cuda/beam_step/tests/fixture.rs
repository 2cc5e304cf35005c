//! A search on a device, and the same one on the CPU, twice.

use crate::Result;
use crate::backend::{Dtype, Search, SessionShape, SlotOptions, SpecialIds};
use crate::cpu::beam_step::tests::{assert_same_state, draw_extras, equipped};
use crate::cpu::{Cpu, beam_step as cpu};
use crate::cuda::beam_step::{BeamStep, BeamStepScratch, SearchViews, StartSlots};
use crate::cuda::testing::Values;
use crate::cuda::{Buffer, Context};

pub const SHAPE: SessionShape =
    SessionShape { slots: 3, beam_size: 5, max_len: 11, max_src_len: 7, rows: 15, keep_attention: true };
pub const IDS: SpecialIds = SpecialIds { eos_id: 2, pad_id: 0, decoder_start_id: 1 };

/// An empty search on the CPU.
pub fn on_cpu(shape: SessionShape, vocab_size: usize) -> Result<Search<Cpu>> {
    Ok(equipped(Search::open(&Cpu::new(1, Dtype::F32)?, shape, vocab_size, IDS)?))
}

/// Declares the buffers of a search under the names that `Search` and `SearchViews` both give them.
macro_rules! state {
    ($($field:ident: $element:ty),*) => {
        struct State {
            $($field: Buffer<$element>,)*
            rows: Buffer<u32>,
            row_count: Buffer<u32>,
            ranked: Buffer<f32>,
            bans: Buffer<u32>,
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
    pub context: Context,
    pub shape: SessionShape,
    pub vocab_size: usize,
    pub stride: usize,
    pub logits: Buffer<f32>,
    attention: Buffer<f32>,
    state: State,
    scratch: BeamStepScratch,
}

impl Fixture {
    /// An empty search whose logits lie without gaps.
    pub fn new(context: &Context, shape: SessionShape, vocab_size: usize, threads: u32) -> Result<Self> {
        Self::with_stride(context, shape, vocab_size, vocab_size, threads)
    }

    /// An empty search.
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

    pub fn start(&mut self, slots: &[(u32, SlotOptions)]) -> Result<()> {
        let search = self.state.views(self.shape, self.vocab_size);
        StartSlots { search, scratch: &mut self.scratch, slots }.launch(&self.context)
    }

    /// Sets what the next step reads, with NaN between the rows.
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
    pub fn write_extras(&mut self, from: &Search<Cpu>) -> Result<()> {
        let ranked = self.apart(&from.ranked);
        self.context.write(self.state.ranked.view_mut(), &ranked)?;
        self.context.write(self.state.bans.view_mut(), &from.bans)?;
        self.context.write(self.state.picks.view_mut(), &from.picks)
    }

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

    pub fn live_slots(&self) -> Result<usize> {
        Ok(self.context.download(self.state.live.view())?.into_iter().filter(|live| *live > 0).count())
    }

    pub fn download(&self) -> Result<Search<Cpu>> {
        let mut search = on_cpu(self.shape, self.vocab_size)?;
        self.state.download(&self.context, &mut search)?;
        Ok(search)
    }
}

/// What a model might say.
pub struct Data(Values);

impl Data {
    pub fn new(seed: u64) -> Self {
        Data(Values::new(seed))
    }

    /// Logits with outliers, -inf and an end of sentence that is likely at times; attention.
    pub fn draw(&mut self, shape: SessionShape, vocab_size: usize) -> (Vec<f32>, Vec<f32>) {
        let mut logits: Vec<f32> = self.0.elements(shape.rows * vocab_size, 1.0, 1.5);
        for (i, z) in logits.iter_mut().enumerate() {
            if i % 29 == 3 {
                *z = f32::NEG_INFINITY;
            }
            if i % vocab_size == IDS.eos_id as usize && self.0.uniform() < 0.4 {
                *z = 16.0;
            }
        }
        let attention = (0..shape.rows * shape.max_src_len).map(|_| self.0.uniform() * 0.3).collect();
        (logits, attention)
    }
}

/// Runs a search to its end on the device, on the CPU and by its reference; returns the number of steps. `change` may change
/// what was drawn for a step.
pub fn run_all(
    mut device: Fixture,
    slots: &[(u32, SlotOptions)],
    seed: u64,
    change: impl Fn(usize, &mut [f32]),
) -> Result<usize> {
    let (shape, vocab_size) = (device.shape, device.vocab_size);
    let (mut fast, mut naive) = (on_cpu(shape, vocab_size)?, on_cpu(shape, vocab_size)?);
    cpu::start_slots(slots, &mut fast);
    cpu::start_slots(slots, &mut naive);
    device.start(slots)?;
    assert_same_state(&device.download()?, &naive);
    let (mut data, mut steps) = (Data::new(seed), 0);
    while !fast.rows.live().is_empty() {
        let (mut logits, attention) = data.draw(shape, vocab_size);
        change(steps, &mut logits);
        draw_extras(&mut fast, steps as u64);
        draw_extras(&mut naive, steps as u64);
        device.write_extras(&fast)?;
        cpu::beam_step(&logits, &attention, &mut fast);
        cpu::reference(&logits, &attention, &mut naive);
        device.write(&logits, &attention)?;
        device.step(shape.slots)?;
        let state = device.download()?;
        assert_same_state(&state, &naive);
        assert_same_state(&state, &fast);
        steps += 1;
        assert!(steps <= shape.max_len, "the search does not end");
    }
    Ok(steps)
}
