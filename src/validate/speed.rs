//! How fast kernels move the bytes that they have to move, against how fast the device's memory can be read and copied.

use std::time::Instant;

use half::{bf16, f16};
use serde::Serialize;

use super::kernels::beam_step::{Fixture, options};
use crate::backend::{
    Activation, Backend, ContrastiveForm, ContrastiveOptions, Divergence, ExpectedRisk, Heads, Pick, Row, RowShape,
    SampleOptions, SamplePick, Schedule, ScheduledSampling, Search, SessionShape, SlotOptions, SpecialIds, Stages,
    Strategy, TokenPlace, TokenStats, words,
};
use crate::cuda::attention::{Cache, Cross, Encoder, Own, Store};
use crate::cuda::checksum::Checksum;
use crate::cuda::contrastive::Contrastive;
use crate::cuda::embedding::Embedding;
use crate::cuda::layer_norm::LayerNorm;
use crate::cuda::linear::Epilogue;
use crate::cuda::loss::{TemperedDivergence, WeightedNll};
use crate::cuda::risk::Risk;
use crate::cuda::sample::Sample;
use crate::cuda::scheduled_sampling::Selection;
use crate::cuda::stats::TokenStatistics;
use crate::cuda::testing::{DeviceRows, Values};
use crate::cuda::{Buffer, Context, Cuda, Element, Recording};
use crate::{Device, Error, Result};

/// How much is run.
#[derive(Clone, Debug)]
pub struct Effort {
    /// Of the buffers that are read and copied for the ceilings.
    pub ceiling_bytes: usize,
    /// Rows of activations: live beams.
    pub rows: Vec<usize>,
    /// Rows of logits.
    pub logit_rows: Vec<usize>,
    /// Tokens.
    pub vocab_size: usize,
    /// Launches timed together.
    pub launches: usize,
    /// Times that this is timed; the median counts.
    pub repeats: usize,
}

impl Default for Effort {
    fn default() -> Self {
        Effort {
            ceiling_bytes: 1 << 30,
            rows: vec![128, 1024, 4096],
            logit_rows: vec![4, 128, 512],
            vocab_size: 58101,
            launches: 20,
            repeats: 9,
        }
    }
}

/// A kernel at a shape.
#[derive(Clone, Debug, Serialize)]
pub struct SpeedRow {
    /// The stem.
    pub stem: &'static str,
    /// Which kernel of it.
    pub variant: &'static str,
    /// Storage type.
    pub dtype: &'static str,
    /// What it ran on.
    pub shape: String,
    /// What any kernel for this has to read and write.
    pub bytes: usize,
    /// Time of a launch.
    pub microseconds: f64,
    /// Bytes over time, in units of 10^9.
    pub gb_per_second: f64,
    /// Share of the ceiling: that of reading for kernels that write next to nothing, else that of copying.
    pub of_ceiling: f64,
}

/// All that was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Speed {
    /// This crate's version.
    pub version: &'static str,
    /// The device's name.
    pub device: String,
    /// Bytes read per second at most, in units of 10^9.
    pub read_ceiling: f64,
    /// Bytes read and written per second by a copy, in units of 10^9.
    pub copy_ceiling: f64,
    /// By kernel and shape.
    pub kernels: Vec<SpeedRow>,
}

/// Opens the GPU that is to be measured.
///
/// # Errors
/// [`Error::Option`] for anything else: times on an emulated device say nothing about a GPU; [`Error::Device`] if it is not
/// there.
pub fn open(device: Device) -> Result<Context> {
    match device {
        Device::Cuda(ordinal) => crate::cuda::open(ordinal),
        _ => {
            let expected = "cuda or cuda:N, the only ones whose kernel times mean anything".to_owned();
            Err(Error::Option { option: "device", expected, got: device.to_string() })
        }
    }
}

/// The head shape of OPUS-MT base, its feed-forward width, and the tokens of a source and of a prefix.
const HEADS: Heads = Heads { num_heads: 8, head_dim: 64 };
const FFN: usize = 2048;
const LEN: usize = 32;
const BEAMS: usize = 4;
/// Turns until a recording is replayed, and one more.
const WARM_UPS: usize = 3;
/// Blocks that read for the ceiling: enough for any GPU's multiprocessors, several times over.
const READERS: usize = 2048;

/// Measures every kernel; `tell` gets each row as it is done.
///
/// # Errors
/// The device failed, or has too little memory.
pub fn measure(context: &Context, effort: &Effort, tell: impl FnMut(&SpeedRow) -> Result<()>) -> Result<Speed> {
    let mut bench = Bench { context, effort, read: 0.0, copy: 0.0, rows: Vec::new(), tell };
    bench.ceilings()?;
    bench.activations::<f32>()?;
    bench.activations::<f16>()?;
    bench.activations::<bf16>()?;
    bench.stats()?;
    bench.contrastive::<f32>()?;
    bench.ensemble()?;
    bench.processors()?;
    bench.beam_step()?;
    bench.losses::<f32>()?;
    bench.losses::<bf16>()?;
    bench.risk()?;
    bench.sample()?;
    bench.scheduled_sampling::<f32>()?;
    bench.scheduled_sampling::<bf16>()?;
    Ok(Speed {
        version: env!("CARGO_PKG_VERSION"),
        device: context.name().to_owned(),
        read_ceiling: bench.read,
        copy_ceiling: bench.copy,
        kernels: bench.rows,
    })
}

struct Bench<'a, F> {
    context: &'a Context,
    effort: &'a Effort,
    read: f64,
    copy: f64,
    rows: Vec<SpeedRow>,
    tell: F,
}

/// Which ceiling a kernel is held to.
#[derive(Clone, Copy)]
enum Moves {
    Reads,
    ReadsAndWrites,
}

impl<F: FnMut(&SpeedRow) -> Result<()>> Bench<'_, F> {
    /// Seconds of one call of `enqueue`: the median over repeats of many recorded calls, replayed together.
    fn time(&self, mut enqueue: impl FnMut() -> Result<()>) -> Result<f64> {
        let &Effort { launches, repeats, .. } = self.effort;
        let mut recording = Recording::default();
        let mut seconds = Vec::with_capacity(repeats);
        for turn in 0..repeats + WARM_UPS {
            self.context.synchronize()?;
            let start = Instant::now();
            self.context.step(&mut recording, || (0..launches).try_for_each(|_| enqueue()))?;
            self.context.synchronize()?;
            if turn >= WARM_UPS {
                seconds.push(start.elapsed().as_secs_f64() / launches as f64);
            }
        }
        Ok(median(seconds))
    }

    fn ceilings(&mut self) -> Result<()> {
        let words = self.effort.ceiling_bytes / 4;
        let from = self.context.zeros::<u32>(words)?;
        let mut to = self.context.zeros::<u32>(words)?;
        let mut out = self.context.zeros::<u32>(READERS)?;
        let context = self.context;
        let read = self.time(|| Checksum { words: from.view(), out: out.view_mut() }.launch(context))?;
        let copy = self.time(|| context.copy(from.view(), to.view_mut()))?;
        let rate = |bytes: usize, seconds: f64| bytes as f64 / seconds / 1e9;
        (self.read, self.copy) = (rate(4 * words, read), rate(8 * words, copy));
        Ok(())
    }

    fn add(
        &mut self,
        (stem, variant, dtype): (&'static str, &'static str, &'static str),
        shape: String,
        (moves, bytes): (Moves, usize),
        seconds: f64,
    ) -> Result<()> {
        let gb_per_second = bytes as f64 / seconds / 1e9;
        let ceiling = match moves {
            Moves::Reads => self.read,
            Moves::ReadsAndWrites => self.copy,
        };
        let of_ceiling = gb_per_second / ceiling;
        let microseconds = seconds * 1e6;
        let row = SpeedRow { stem, variant, dtype, shape, bytes, microseconds, gb_per_second, of_ceiling };
        (self.tell)(&row)?;
        self.rows.push(row);
        Ok(())
    }

    /// What works on rows of activations.
    fn activations<T: Element>(&mut self) -> Result<()> {
        for rows in self.effort.rows.clone() {
            self.embedding::<T>(rows)?;
            self.linear::<T>(rows)?;
            self.layer_norm::<T>(rows)?;
            self.encoder_attention::<T>(rows)?;
            self.decoder_attention::<T>(rows)?;
        }
        Ok(())
    }

    fn numbers<T: Element>(&self, len: usize) -> Result<Buffer<T>> {
        // Few of them, over and over: what they are does not matter, and drawing gigabytes would take long.
        let some: Vec<T> = Values::new(len as u64).elements(len.min(1 << 16), 0.0, 1.0);
        let all: Vec<T> = some.iter().copied().cycle().take(len).collect();
        self.context.upload(&all)
    }

    fn embedding<T: Element>(&mut self, rows: usize) -> Result<()> {
        let (context, width, vocab) = (self.context, HEADS.width(), self.effort.vocab_size);
        let (table, positions) = (self.numbers::<T>(vocab * width)?, self.numbers::<T>(LEN * width)?);
        let row = |r: usize| Row { position: (r % LEN) as u32, token: (r * 7919 % vocab) as u32, ..Row::default() };
        let list = DeviceRows::upload(context, &(0..rows).map(row).collect::<Vec<_>>(), rows)?;
        let mut out = context.allocate::<T>(rows * width)?;
        let seconds = self.time(|| {
            let (table, positions) = (table.view(), positions.view());
            Embedding { table, positions, scale: 16.0, rows: list.list(), out: out.view_mut() }.launch(context, width)
        })?;
        // The positions' rows are few, and read from the cache.
        let moved = (Moves::ReadsAndWrites, 2 * rows * width * size_of::<T>());
        self.add(("embedding", "", T::DTYPE.name()), format!("{rows} x {width}"), moved, seconds)
    }

    fn linear<T: Element>(&mut self, rows: usize) -> Result<()> {
        let context = self.context;
        let (mut x, bias) = (self.numbers::<T>(rows * FFN)?, context.zeros::<f32>(FFN)?);
        let seconds = self.time(|| {
            let (x, bias) = (x.view_mut(), Some(bias.view()));
            Epilogue { x, bias, activation: Activation::Silu, residual: None }.launch(context, rows, FFN)
        })?;
        let moved = (Moves::ReadsAndWrites, 2 * rows * FFN * size_of::<T>());
        self.add(("linear", "epilogue", T::DTYPE.name()), format!("{rows} x {FFN}"), moved, seconds)
    }

    fn layer_norm<T: Element>(&mut self, rows: usize) -> Result<()> {
        let (context, width) = (self.context, HEADS.width());
        let (mut x, delta) = (self.numbers::<T>(rows * width)?, self.numbers::<T>(rows * width)?);
        let (gain, bias) = (self.numbers::<T>(width)?, self.numbers::<T>(width)?);
        let seconds = self.time(|| {
            let (x, delta, gain, bias) = (x.view_mut(), delta.view(), gain.view(), bias.view());
            LayerNorm { x, delta, delta_bias: None, gain, bias, eps: 1e-5 }.launch(context, rows, width)
        })?;
        let moved = (Moves::ReadsAndWrites, 3 * rows * width * size_of::<T>());
        self.add(("layer_norm", "", T::DTYPE.name()), format!("{rows} x {width}"), moved, seconds)
    }

    /// Sentences of [`LEN`] tokens.
    fn encoder_attention<T: Element>(&mut self, rows: usize) -> Result<()> {
        let (context, width) = (self.context, HEADS.width());
        // The kernel sizes its memory by the rows: at most as many as the encoder takes in one pass.
        let live = rows.next_multiple_of(LEN).min(1024);
        let starts: Vec<u32> = (0..=live / LEN).map(|sentence| (sentence * LEN) as u32).collect();
        let list = DeviceRows::upload(context, &vec![Row::default(); live], live)?;
        let (starts, qkv) = (context.upload(&starts)?, self.numbers::<T>(live * 3 * width)?);
        let mut out = context.allocate::<T>(live * width)?;
        let seconds = self.time(|| {
            let (starts, qkv) = (starts.view(), qkv.view());
            Encoder { rows: list.list(), starts, qkv, out: out.view_mut() }.launch(context, HEADS)
        })?;
        let moved = (Moves::ReadsAndWrites, 4 * live * width * size_of::<T>());
        let shape = format!("{live} rows in sentences of {LEN}, {width}");
        self.add(("attention", "encoder", T::DTYPE.name()), shape, moved, seconds)
    }

    /// Every beam of every slot at the last position.
    fn decoder_attention<T: Element>(&mut self, rows: usize) -> Result<()> {
        let (context, width, slots) = (self.context, HEADS.width(), rows.div_ceil(BEAMS));
        let rows = slots * BEAMS;
        let row = |r: usize| Row {
            slot: (r / BEAMS) as u32,
            beam: (r % BEAMS) as u32,
            position: LEN as u32 - 1,
            ..Row::default()
        };
        let list = DeviceRows::upload(context, &(0..rows).map(row).collect::<Vec<_>>(), rows)?;
        let qkv = self.numbers::<T>(rows * 3 * width)?;
        let mut keys = self.numbers::<T>(rows * LEN * width)?;
        let mut values = self.numbers::<T>(rows * LEN * width)?;
        let mut out = context.allocate::<T>(rows * width)?;
        let dtype = T::DTYPE.name();
        let row_bytes = rows * width * size_of::<T>();
        let seconds = self.time(|| {
            let (keys, values) = (keys.view_mut(), values.view_mut());
            let (stride, key_offset) = (3 * width, width);
            let (rows, from) = (list.list(), qkv.view());
            Store { rows, from, stride, key_offset, keys, values, max_len: LEN, beam_size: BEAMS }
                .launch(context, width)
        })?;
        let shape = format!("{rows} rows, {width}");
        self.add(("attention", "store", dtype), shape, (Moves::ReadsAndWrites, 4 * row_bytes), seconds)?;

        // A prefix of its own for every beam: no position is shared.
        let ancestry: Vec<u32> = (0..rows * LEN).map(|i| (i / LEN % BEAMS) as u32).collect();
        let ancestry = context.upload(&ancestry)?;
        let seconds = self.time(|| {
            let cache = Cache { keys: keys.view(), values: values.view(), max_len: LEN, beam_size: BEAMS };
            let (ancestry, qkv) = (ancestry.view(), qkv.view());
            Own { rows: list.list(), qkv, cache, ancestry, out: out.view_mut() }.launch(context, HEADS)
        })?;
        let shape = format!("{rows} rows at position {LEN}, {width}");
        self.add(("attention", "self", dtype), shape.clone(), (Moves::Reads, (2 * LEN + 2) * row_bytes), seconds)?;

        let options: Vec<SlotOptions> = vec![SlotOptions { src_len: LEN as u32, ..SlotOptions::default() }; slots];
        let options = context.upload(bytemuck::cast_slice::<_, u32>(&options))?;
        let source = slots * LEN * width;
        let seconds = self.time(|| {
            let (keys, values) = (keys.view().slice(0..source)?, values.view().slice(0..source)?);
            let cache = Cache { keys, values, max_len: LEN, beam_size: 1 };
            let (queries, options) = (qkv.view().slice(0..rows * width)?, options.view());
            let out = out.view_mut();
            Cross { rows: list.list(), queries, bias: None, cache, options, weights: None, out }.launch(context, HEADS)
        })?;
        let bytes = 2 * source * size_of::<T>() + 2 * row_bytes;
        self.add(("attention", "cross", dtype), shape, (Moves::Reads, bytes), seconds)
    }

    /// A step of a search that goes on: end of sentence is not allowed before the last.
    fn beam_step(&mut self) -> Result<()> {
        let (context, vocab_size) = (self.context, self.effort.vocab_size);
        let steps = self.effort.launches;
        for rows in self.effort.logit_rows.clone() {
            let slots = rows.div_ceil(BEAMS);
            let shape = SessionShape {
                slots,
                beam_size: BEAMS,
                max_len: steps + 2,
                max_src_len: LEN,
                rows: slots * BEAMS,
                keep_attention: false,
            };
            let stride = vocab_size.next_multiple_of(4);
            let mut search = Fixture::with_stride(context, shape, vocab_size, stride, 128)?;
            let logits: Vec<f32> = Values::new(1).elements(shape.rows * vocab_size, 0.0, 4.0);
            search.write(&logits, &vec![1.0 / LEN as f32; shape.rows * LEN])?;
            let limit = shape.max_len as u32;
            let own = SlotOptions {
                beam_size: BEAMS as u32,
                src_len: LEN as u32,
                min_len: limit,
                max_len: limit,
                ..options()
            };
            let all: Vec<(u32, SlotOptions)> = (0..slots as u32).map(|slot| (slot, own)).collect();
            let mut seconds = Vec::new();
            for turn in 0..self.effort.repeats + 1 {
                search.start(&all)?;
                // The first step has one beam a slot.
                search.step(slots)?;
                context.synchronize()?;
                let start = Instant::now();
                (0..steps).try_for_each(|_| search.step(slots))?;
                context.synchronize()?;
                if turn > 0 {
                    seconds.push(start.elapsed().as_secs_f64() / steps as f64);
                }
            }
            let bytes = shape.rows * vocab_size * size_of::<f32>();
            let what = format!("{} x {vocab_size}, beam {BEAMS}", shape.rows);
            self.add(("beam_step", "", "f32"), what, (Moves::Reads, bytes), median(seconds))?;
        }
        Ok(())
    }

    /// Numbers as logits: `[rows, stride]`, and a row list of one slot each.
    fn logits<T: Element>(&self, rows: usize) -> Result<(Buffer<T>, DeviceRows, usize)> {
        let stride = self.effort.vocab_size.next_multiple_of(8);
        let row = |r: usize| Row { slot: r as u32, position: 1, ..Row::default() };
        let list = DeviceRows::upload(self.context, &(0..rows).map(row).collect::<Vec<_>>(), rows)?;
        Ok((self.numbers(rows * stride)?, list, stride))
    }

    fn stats(&mut self) -> Result<()> {
        let (context, vocab_size) = (self.context, self.effort.vocab_size);
        for rows in self.effort.logit_rows.clone() {
            let (logits, list, stride) = self.logits::<f32>(rows)?;
            let gold = context.upload(&vec![7u32; rows])?;
            let mut out = context.zeros::<u32>(rows * words::<TokenStats>())?;
            let seconds = self.time(|| {
                let (logits, gold, out) = (logits.view(), gold.view(), out.view_mut());
                TokenStatistics { rows: list.list(), logits, gold, out }.launch(context, vocab_size, stride)
            })?;
            let moved = (Moves::Reads, rows * vocab_size * size_of::<f32>());
            self.add(("stats", "tokens", "f32"), format!("{rows} x {vocab_size}"), moved, seconds)?;
        }
        Ok(())
    }

    /// An expert and an amateur, without V_head: all of both is read.
    fn contrastive<T: Element>(&mut self) -> Result<()> {
        let (context, vocab_size) = (self.context, self.effort.vocab_size);
        for rows in self.effort.logit_rows.clone() {
            let (expert, _, stride) = self.logits::<T>(rows)?;
            let (amateur, _, _) = self.logits::<T>(rows)?;
            let contrast = ContrastiveOptions::new(ContrastiveForm::Seed, 0.5, 0.1, 1.0);
            let own = SlotOptions { contrast, max_len: 99, ..SlotOptions::default() };
            let options = context.upload(&vec![own; rows])?;
            let list: Vec<Row> = (0..rows as u32).map(|slot| Row { slot, ..Row::default() }).collect();
            let (list, count) = (context.upload(&list)?, context.upload(&[rows as u32])?);
            let (mut out, mut normalizers) = (context.zeros::<f32>(rows * stride)?, context.zeros::<f32>(rows)?);
            let seconds = self.time(|| {
                Contrastive {
                    rows: list.view(),
                    count: count.view(),
                    options: options.view(),
                    expert: expert.view(),
                    amateur: Some(amateur.view()),
                    out: out.view_mut(),
                    normalizers: Some(normalizers.view_mut()),
                    eos_id: 0,
                    prefixes: None,
                    voice: 0,
                }
                .launch(context, vocab_size, stride)
            })?;
            let bytes = rows * vocab_size * (2 * size_of::<T>() + size_of::<f32>());
            let moved = (Moves::ReadsAndWrites, bytes);
            self.add(("contrastive", "seed", T::DTYPE.name()), format!("{rows} x {vocab_size}"), moved, seconds)?;
        }
        Ok(())
    }

    /// The gradient in place of the logits: both are read twice, and one is written. Launched again, they are logits again.
    fn losses<T: Element>(&mut self) -> Result<()> {
        let (context, vocab_size) = (self.context, self.effort.vocab_size);
        for rows in self.effort.logit_rows.clone() {
            let (mut logits, _, stride) = self.logits::<T>(rows)?;
            let (teacher, _, _) = self.logits::<T>(rows)?;
            let (targets, mask) = (context.upload(&vec![7u32; rows])?, context.upload(&vec![1u32; rows])?);
            let (weights, mut loss) = (context.upload(&vec![1.0f32; rows])?, context.zeros::<f32>(rows)?);
            let shape = RowShape { vocab_size, stride };
            let seconds = self.time(|| {
                let (mask, weights, loss) = (mask.view(), weights.view(), loss.view_mut());
                WeightedNll { logits: logits.view_mut(), targets: targets.view(), mask, weights, loss }
                    .launch(context, shape, 0.1)
            })?;
            let (what, row_bytes) = (format!("{rows} x {vocab_size}"), rows * vocab_size * size_of::<T>());
            let moved = (Moves::ReadsAndWrites, 2 * row_bytes);
            self.add(("loss", "nll", T::DTYPE.name()), what.clone(), moved, seconds)?;
            let seconds =
                self.time(|| {
                    let (mask, weights, loss) = (mask.view(), weights.view(), loss.view_mut());
                    TemperedDivergence { student: logits.view_mut(), teacher: teacher.view(), mask, weights, loss }
                        .launch(context, shape, Divergence { temperature: 2.0, beta: 0.0 })
                })?;
            let moved = (Moves::ReadsAndWrites, 3 * row_bytes);
            self.add(("loss", "divergence", T::DTYPE.name()), what, moved, seconds)?;
        }
        Ok(())
    }

    /// Sixteen candidates a source.
    fn risk(&mut self) -> Result<()> {
        const CANDIDATES: usize = 16;
        let context = self.context;
        for sources in self.effort.logit_rows.clone() {
            let count = sources * CANDIDATES;
            let (log_probs, risks) = (self.numbers::<f32>(count)?, self.numbers::<f32>(count)?);
            let starts: Vec<u32> = (0..=sources).map(|i| (i * CANDIDATES) as u32).collect();
            let starts = context.upload(&starts)?;
            let (mut coefficients, mut outcomes) =
                (context.zeros::<f32>(count)?, context.zeros::<ExpectedRisk>(sources)?);
            let seconds = self.time(|| {
                Risk {
                    log_probs: log_probs.view(),
                    risks: risks.view(),
                    starts: starts.view(),
                    coefficients: coefficients.view_mut(),
                    outcomes: outcomes.view_mut(),
                }
                .launch(context, 0.005)
            })?;
            let moved = (Moves::ReadsAndWrites, 3 * count * size_of::<f32>());
            self.add(("risk", "", "f32"), format!("{sources} sources of {CANDIDATES}"), moved, seconds)?;
        }
        Ok(())
    }

    /// A search with `rows` slots of one beam, of which each asks for what `own` says.
    fn search(&self, rows: usize, own: SlotOptions) -> Result<(Cuda<f32>, Search<Cuda<f32>>)> {
        let cuda = Cuda::<f32>::new(self.context.clone());
        let (max_len, keep_attention) = (LEN, false);
        let shape = SessionShape { slots: rows, beam_size: 1, max_len, max_src_len: LEN, rows, keep_attention };
        let ids = SpecialIds { eos_id: 0, pad_id: 1, decoder_start_id: 1 };
        let mut search = Search::open(&cuda, shape, self.effort.vocab_size, ids)?;
        search.equip(&cuda, Stages { bans: true, ranked: true, ..Stages::default() })?;
        let slots: Vec<(u32, SlotOptions)> = (0..rows as u32).map(|slot| (slot, own)).collect();
        cuda.start_slots(&slots, &mut search)?;
        Ok((cuda, search))
    }

    /// Two models.
    fn ensemble(&mut self) -> Result<()> {
        let vocab_size = self.effort.vocab_size;
        let weights = std::array::from_fn(|voice| if voice < 2 { 0.5 } else { 0.0 });
        let own = SlotOptions {
            beam_size: 1,
            max_len: LEN as u32,
            src_len: 1,
            ranked: 1,
            ensemble: weights,
            ..SlotOptions::default()
        };
        for rows in self.effort.logit_rows.clone() {
            let (cuda, mut search) = self.search(rows, own)?;
            let stride = cuda.logits_stride(vocab_size);
            let (one, other) = (self.numbers::<f32>(rows * stride)?, self.numbers::<f32>(rows * stride)?);
            let seconds = self.time(|| cuda.ensemble(&[Some(&one), Some(&other)], &mut search))?;
            let moved = (Moves::ReadsAndWrites, 3 * rows * vocab_size * size_of::<f32>());
            self.add(("ensemble", "", "f32"), format!("{rows} x {vocab_size}"), moved, seconds)?;
        }
        Ok(())
    }

    /// Bans alone: no history yet.
    fn processors(&mut self) -> Result<()> {
        let words = self.effort.vocab_size.div_ceil(32);
        let own = SlotOptions {
            beam_size: 1,
            max_len: LEN as u32,
            src_len: 1,
            banned: 1,
            no_repeat_ngram: 3,
            ..SlotOptions::default()
        };
        for rows in self.effort.logit_rows.clone() {
            let (cuda, mut search) = self.search(rows, own)?;
            let seconds = self.time(|| cuda.processors(&mut search))?;
            let moved = (Moves::ReadsAndWrites, 2 * rows * words * size_of::<u32>());
            self.add(("processors", "bans", "u32"), format!("{rows} x {words} words"), moved, seconds)?;
        }
        Ok(())
    }

    /// Every row a sample of its own, with top-k and top-p.
    fn sample(&mut self) -> Result<()> {
        let (context, vocab_size) = (self.context, self.effort.vocab_size);
        for rows in self.effort.logit_rows.clone() {
            let (logits, list, stride) = self.logits::<f32>(rows)?;
            let sampling =
                SampleOptions { temperature: 1.0, top_k: 40, top_p: 0.9, min_p: 0.0, ..SampleOptions::default() };
            let own = SlotOptions {
                strategy: Strategy::Sample as u32,
                beam_size: 1,
                max_len: 99,
                sampling,
                ..SlotOptions::default()
            };
            let options = context.upload(bytemuck::cast_slice::<_, u32>(&vec![own; rows]))?;
            let ancestry = context.zeros::<u32>(rows * LEN)?;
            let mut picks = context.zeros::<u32>(rows * words::<SamplePick>())?;
            let ids = SpecialIds { eos_id: 0, pad_id: 1, decoder_start_id: 1 };
            let seconds = self.time(|| {
                Sample {
                    rows: list.list(),
                    options: options.view(),
                    ancestry: ancestry.view(),
                    logits: logits.view(),
                    ranked: None,
                    bans: None,
                    picks: picks.view_mut(),
                    beam_size: 1,
                    ids,
                }
                .launch(context, vocab_size, stride)
            })?;
            let moved = (Moves::Reads, rows * vocab_size * size_of::<f32>());
            self.add(("sample", "", "f32"), format!("{rows} x {vocab_size}, top-k, top-p"), moved, seconds)?;
        }
        Ok(())
    }

    /// Half of the rows keep gold, and are not read.
    fn scheduled_sampling<T: Element>(&mut self) -> Result<()> {
        let (context, vocab_size) = (self.context, self.effort.vocab_size);
        for rows in self.effort.logit_rows.clone() {
            let (logits, _, stride) = self.logits::<T>(rows)?;
            let gold = context.upload(&vec![7u32; rows])?;
            let places: Vec<TokenPlace> =
                (0..rows as u32).map(|r| TokenPlace { sentence: r / 32, position: r % 32 }).collect();
            let places = context.upload(&places)?;
            let schedule = context.upload(&[Schedule { gold_probability: 0.5, update: 1 }])?;
            let (mut chosen, mut counts) = (context.zeros::<u32>(rows)?, context.zeros::<u32>(2)?);
            let ids = SpecialIds { eos_id: 0, pad_id: 1, decoder_start_id: 1 };
            let run = ScheduledSampling { pick: Pick::Argmax, seed: 1, ids };
            let seconds = self.time(|| {
                let (logits, gold, places, schedule) = (logits.view(), gold.view(), places.view(), schedule.view());
                let (chosen, counts) = (chosen.view_mut(), counts.view_mut());
                Selection { logits, gold, places, schedule, chosen, counts }.launch(context, &run, vocab_size, stride)
            })?;
            // Counted by the kernel in every launch: which rows it read.
            let launches = (self.effort.repeats + WARM_UPS) * self.effort.launches;
            let read = context.download(counts.view())?[0] as usize / launches.max(1);
            let bytes = read * vocab_size * size_of::<T>();
            let what = format!("{rows} x {vocab_size}, half gold");
            self.add(("scheduled_sampling", "", T::DTYPE.name()), what, (Moves::Reads, bytes), seconds)?;
        }
        Ok(())
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
