//! A backend that runs each operation on the CPU and on a device, holds one to the other, and goes on with the device's result on
//! both: so every operation is compared on equal inputs, and the first difference is where the error is.

use std::ops::Range;
use std::sync::Arc;
use std::sync::{Mutex, MutexGuard, PoisonError};

use half::bf16;

use super::both::{Both, Words, take_over, with_cross, with_rows, with_searches, with_self};
use super::log::Log;
use crate::Result;
use crate::backend::{
    Activation, ContrastiveForm, CrossCache, Device, Dtype, Heads, NetworkOps, NormKind, Row, Rows, SamplePick, Scores,
    Search, SearchOps, SelfCache, SessionShape, SlotOptions, StepKey, TokenStats, Value, words,
};
use crate::check::Tolerance;
use crate::cpu::Cpu;
use crate::cpu::simd::Isa;
use crate::cuda::testing::tolerance;
use crate::cuda::{Buffer, Context, Cuda, Element, View};
use crate::validate::kernels::beam_step::compare_states;

/// The CPU and a device that stores weights and activations as `T`.
#[derive(Debug)]
pub struct Lockstep<T> {
    cpu: Cpu,
    device: Cuda<T>,
    /// Whether products are of 8-bit integers.
    is_quantized: bool,
    /// Whether a network's operations have the same bits on both: of f32 all sums are in one order, of integers they are exact.
    has_same_bits: bool,
    context: Context,
    log: Mutex<Log>,
}

type Tensor<T> = Both<Vec<f32>, Buffer<T>>;
type Floats = Both<Vec<f32>, Buffer<f32>>;

/// A linear layer on both.
#[derive(Debug)]
pub struct Matrix<C, D> {
    cpu: Arc<C>,
    device: Arc<D>,
    out_dim: usize,
    in_dim: usize,
    /// The largest Euclidean length of a row of weights, bias included.
    longest: f64,
}

/// A norm on both.
#[derive(Debug)]
pub struct Norms<C, D> {
    cpu: C,
    device: D,
    width: usize,
    /// What the sums' errors are multiplied by, at least 1.
    largest_gain: f64,
}

/// Something else that is prepared on both, and its width where it has one.
#[derive(Debug)]
pub struct Sides<C, D> {
    cpu: C,
    device: D,
    width: usize,
}

/// What f32 sums of attention and layer norms err by, relative to values around 1; as in the kernels' own cases.
const ATTENTION: f64 = 2e-5;
const LAYER_NORM: f64 = 2e-4;
/// What ranks, over logits of up to a few tens; as in the kernels' own cases.
const RANKED: Tolerance = Tolerance::new(1e-5, 2e-6);

fn rounded<T: Element>(values: &[f32]) -> Vec<f32> {
    values.iter().map(|&value| T::from_f32(value).to_f32()).collect()
}

fn largest(values: &[f32]) -> f64 {
    f64::from(values.iter().fold(0.0f32, |most, value| most.max(value.abs())))
}

fn length(values: &[f32]) -> f64 {
    values.iter().map(|value| f64::from(*value) * f64::from(*value)).sum::<f64>().sqrt()
}

impl<T: Element> Lockstep<T> {
    /// Over a device, and the CPU with the same weights: 8-bit integers where the device has those, else what its are in f32.
    ///
    /// # Errors
    /// The CPU's threads do not start.
    pub fn new(device: Cuda<T>, log: Log) -> Result<Self> {
        let (context, is_quantized) = (device.context().clone(), device.dtype() == Dtype::I8);
        let cpu = Cpu::new(0, if is_quantized { Dtype::I8 } else { Dtype::F32 })?;
        let has_same_bits = T::DTYPE == Dtype::F32 && Isa::best().fuses_multiply_add();
        Ok(Lockstep { cpu, device, is_quantized, has_same_bits, context, log: Mutex::new(log) })
    }

    /// Where the decode is, and what has been found.
    pub fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Holds the device's elements to the CPU's, and takes them over.
    fn settle<E: Element>(
        &self,
        operation: &str,
        (cpu, device): (&mut [f32], View<'_, E>),
        tolerance: Tolerance,
    ) -> Result<()> {
        let len = cpu.len();
        self.settle_rows(operation, (cpu, device), (len, len), tolerance)
    }

    /// As [`Lockstep::settle`], of rows of `width` elements that lie `stride` apart on the device.
    fn settle_rows<E: Element>(
        &self,
        operation: &str,
        (cpu, device): (&mut [f32], View<'_, E>),
        (width, stride): (usize, usize),
        tolerance: Tolerance,
    ) -> Result<()> {
        let tolerance = if self.has_same_bits { Tolerance::EXACT } else { tolerance };
        let rows = cpu.len() / width.max(1);
        let apart = self.context.download(device.slice(0..rows * stride)?)?;
        let rows = apart.chunks(stride.max(1)).flat_map(|row| &row[..width]);
        let actual: Vec<f32> = rows.map(|value| value.to_f32()).collect();
        self.log().compare(operation, &actual, cpu, tolerance);
        cpu.copy_from_slice(&actual);
        Ok(())
    }

    /// Settles a linear layer; `stride` is what lies from row to row on the device.
    fn settle_linear<E: Element>(
        &self,
        matrix: &<Self as NetworkOps>::Matrix,
        (rows, x): (usize, &[f32]),
        activation: Activation,
        stride: usize,
        out: &mut (Vec<f32>, Buffer<E>),
    ) -> Result<()> {
        // No activation magnifies a difference by more than this.
        const STEEPEST: f64 = 1.2;
        let &Matrix { out_dim, in_dim, longest, .. } = matrix;
        let x = x.chunks(in_dim).take(rows).map(length).fold(0.0, f64::max);
        // Both sides sum in f32: k products and additions each err by at most a unit in the last place of the sum of
        // magnitudes, which is at most the product of lengths (Cauchy).
        let sums = 2.0 * (in_dim + 2) as f64 * 2f64.powi(-23) * (x + 1.0) * longest;
        let rounding = tolerance::<E>(1e-6);
        let tolerance = match activation {
            Activation::None | Activation::Relu if self.is_quantized => Tolerance::EXACT,
            // What remains is the activation's own.
            _ if self.is_quantized => rounding,
            _ => Tolerance::new(rounding.abs + STEEPEST * sums, rounding.rel),
        };
        let name = format!("linear {in_dim} to {out_dim}");
        let (cpu, device) = out;
        self.settle_rows(&name, (&mut cpu[..rows * out_dim], device.view()), (out_dim, stride), tolerance)
    }

    /// Holds what a store left at its rows' places to what it was given.
    fn settle_store(
        &self,
        (operation, rows): (&str, &[Row]),
        place: impl Fn(&Row) -> usize,
        (width, stride, offset): (usize, usize, usize),
        from: &[f32],
        (keys, values): (&Buffer<T>, &Buffer<T>),
    ) -> Result<()> {
        let (mut actual, mut expected) = (Vec::new(), Vec::new());
        for (r, row) in rows.iter().enumerate() {
            let at = place(row) * width;
            for (half, cache) in [keys, values].into_iter().enumerate() {
                let given = &from[r * stride + offset + half * width..][..width];
                if self.is_quantized {
                    let stored = self.context.download(cache.view().as_bf16().slice(at..at + width)?)?;
                    actual.extend(stored.iter().map(|value| value.to_f32()));
                    expected.extend(rounded::<bf16>(given));
                } else {
                    let stored = self.context.download(cache.view().slice(at..at + width)?)?;
                    actual.extend(stored.iter().map(|value| value.to_f32()));
                    expected.extend_from_slice(given);
                }
            }
        }
        self.log().compare(operation, &actual, &expected, Tolerance::EXACT);
        Ok(())
    }
}

impl<T: Element> Lockstep<T> {
    /// Holds what ranks the rows of the slots that an operation writes for to the CPU's, and takes it over.
    fn settle_ranked(
        &self,
        operation: &str,
        cpu: &mut Search<Cpu>,
        device: &Search<Cuda<T>>,
        is_written: impl Fn(&SlotOptions) -> bool,
    ) -> Result<()> {
        let (vocab_size, stride) = (cpu.vocab_size, self.device.logits_stride(cpu.vocab_size));
        let options: Vec<SlotOptions> = bytemuck::cast_slice(&cpu.options).to_vec();
        let rows = cpu.rows.live().iter().map(|row| options[row.slot as usize]).collect::<Vec<_>>();
        let apart = self.context.download(device.ranked.view())?;
        let (mut actual, mut expected) = (Vec::new(), Vec::new());
        for (r, options) in rows.iter().enumerate().filter(|(_, options)| is_written(options)) {
            let own = &apart[r * stride..][..vocab_size];
            let ranked = &mut cpu.ranked[r * vocab_size..][..vocab_size];
            // A difference of two probabilities has an absolute error, as in the kernel's own cases.
            let is_share = options.contrast.form == ContrastiveForm::Source as u32;
            let shown = |z: &f32| if is_share { z.exp() } else { *z };
            actual.extend(own.iter().map(shown));
            expected.extend(ranked.iter().map(shown));
            ranked.copy_from_slice(own);
        }
        let mut log = self.log();
        log.leave_layers();
        if !actual.is_empty() {
            log.compare(operation, &actual, &expected, RANKED);
        }
        Ok(())
    }

    /// Holds what the rows of the slots that ban tokens may not take to the CPU's.
    fn settle_bans(&self, cpu: &Search<Cpu>, device: &Search<Cuda<T>>) -> Result<()> {
        let words = cpu.vocab_size.div_ceil(32);
        let options: &[SlotOptions] = bytemuck::cast_slice(&cpu.options);
        let found = self.context.download(device.bans.view())?;
        let mut log = self.log();
        log.leave_layers();
        let bans = |row: &Row| options[row.slot as usize].banned != 0;
        for r in (0..cpu.rows.live().len()).filter(|&r| bans(&cpu.rows.live()[r])) {
            let (own, expected) = (&found[r * words..][..words], &cpu.bans[r * words..][..words]);
            let wrong = own.iter().zip(expected).position(|(own, expected)| own != expected);
            let said =
                |at: usize| format!("row {r}, tokens from {}: {:#x}, on the CPU {:#x}", at * 32, own[at], expected[at]);
            log.keep("processors", wrong.map_or(Ok(()), |at| Err(said(at))));
        }
        Ok(())
    }

    /// Holds the device's search to the CPU's, and takes its state over.
    fn settle_search(&self, operation: &str, cpu: &mut Search<Cpu>, device: &Search<Cuda<T>>) -> Result<()> {
        let expected = take_over(&self.context, device, cpu)?;
        let mut log = self.log();
        log.leave_layers();
        log.keep(operation, compare_states(cpu, &expected).map(drop));
        Ok(())
    }
}

/// How scores are made on either side.
fn sides<T: Element>(scores: Scores<'_, Lockstep<T>>) -> (Scores<'_, Cpu>, Scores<'_, Cuda<T>>) {
    let Scores { heads, bias } = scores;
    let (cpu, device) = (bias.map(|bias| &bias.cpu), bias.map(|bias| &bias.device));
    (Scores { heads, bias: cpu }, Scores { heads, bias: device })
}

impl<T: Element> Device for Lockstep<T> {
    type Buffer<V: Value> = Both<Vec<V>, Buffer<V>>;
    type GraphCache = ();
    type Readback = Vec<u32>;

    const READBACK_DEPTH: usize = 0;

    // Compared as it goes, so never recorded.
    fn replay_or_record(&self, (): &mut (), _: StepKey, enqueue: impl FnOnce() -> Result<()>) -> Result<()> {
        enqueue()
    }

    fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.cpu.run(work)
    }

    fn zeros<V: Value>(&self, len: usize) -> Result<Both<Vec<V>, Buffer<V>>> {
        Ok(Both::new(self.cpu.zeros(len)?, self.device.zeros(len)?))
    }

    fn write<V: Value>(&self, to: &mut Both<Vec<V>, Buffer<V>>, offset: usize, values: &[V]) -> Result<()> {
        let (cpu, device) = &mut *to.get_mut();
        self.cpu.write(cpu, offset, values)?;
        self.device.write(device, offset, values)
    }

    fn read<V: Value>(&self, from: &Both<Vec<V>, Buffer<V>>, offset: usize, values: &mut [V]) -> Result<()> {
        self.device.read(&from.get().1, offset, values)
    }

    fn enqueue_read<V: Value>(
        &self,
        from: &Both<Vec<V>, Buffer<V>>,
        range: Range<usize>,
        to: &mut Vec<u32>,
        offset: usize,
    ) -> Result<()> {
        let mut values = vec![V::zeroed(); range.len()];
        self.read(from, range.start, &mut values)?;
        let bits: &[u32] = bytemuck::cast_slice(&values);
        to[offset..offset + bits.len()].copy_from_slice(bits);
        Ok(())
    }

    fn readback(&self, words: usize) -> Result<Vec<u32>> {
        self.cpu.readback(words)
    }

    fn wait_readback(&self, readback: &Vec<u32>, words: &mut [u32]) -> Result<()> {
        self.cpu.wait_readback(readback, words)
    }
}

impl<T: Element> NetworkOps for Lockstep<T> {
    type Tensor = Tensor<T>;
    type Matrix = Matrix<<Cpu as NetworkOps>::Matrix, <Cuda<T> as NetworkOps>::Matrix>;
    type Norm = Norms<<Cpu as NetworkOps>::Norm, <Cuda<T> as NetworkOps>::Norm>;
    type Embedding = Sides<<Cpu as NetworkOps>::Embedding, <Cuda<T> as NetworkOps>::Embedding>;
    type Positions = Sides<<Cpu as NetworkOps>::Positions, <Cuda<T> as NetworkOps>::Positions>;
    type RelativeBias = Sides<<Cpu as NetworkOps>::RelativeBias, <Cuda<T> as NetworkOps>::RelativeBias>;
    type ProductScratch = (<Cpu as NetworkOps>::ProductScratch, <Cuda<T> as NetworkOps>::ProductScratch);

    fn tensor(&self, len: usize) -> Result<Tensor<T>> {
        // NaN on both: rows of slots that a scorer does not listen to read places that nothing was stored at.
        Ok(Both::new(vec![f32::NAN; len], self.context.upload(&vec![T::from_f32(f32::NAN); len])?))
    }

    fn cache(&self, len: usize) -> Result<Tensor<T>> {
        self.tensor(if self.is_quantized { len.div_ceil(2) } else { len })
    }

    fn product_scratch(&self, rows: usize, widest: usize) -> Result<Self::ProductScratch> {
        Ok((self.cpu.product_scratch(rows, widest)?, self.device.product_scratch(rows, widest)?))
    }

    fn matrix(&self, weights: &[f32], bias: Option<&[f32]>, out_dim: usize, in_dim: usize) -> Result<Self::Matrix> {
        let weights = rounded::<T>(weights);
        let bias_of = |row: usize| bias.map_or(0.0, |bias| f64::from(bias[row].abs()));
        let lengths = weights.chunks(in_dim).enumerate().map(|(row, weights)| length(weights) + bias_of(row));
        Ok(Matrix {
            longest: lengths.fold(0.0, f64::max),
            cpu: Arc::new(self.cpu.matrix(&weights, bias, out_dim, in_dim)?),
            device: Arc::new(self.device.matrix(&weights, bias, out_dim, in_dim)?),
            out_dim,
            in_dim,
        })
    }

    fn norm(&self, kind: NormKind, gain: &[f32], bias: Option<&[f32]>, eps: f32) -> Result<Self::Norm> {
        let (gain, bias) = (rounded::<T>(gain), bias.map(rounded::<T>));
        let cpu = self.cpu.norm(kind, &gain, bias.as_deref(), eps)?;
        let device = self.device.norm(kind, &gain, bias.as_deref(), eps)?;
        Ok(Norms { cpu, device, width: gain.len(), largest_gain: largest(&gain).max(1.0) })
    }

    fn embeddings(&self, tokens: &[f32], scale: f32, width: usize) -> Result<Self::Embedding> {
        let tokens = rounded::<T>(tokens);
        let cpu = self.cpu.embeddings(&tokens, scale, width)?;
        Ok(Sides { cpu, device: self.device.embeddings(&tokens, scale, width)?, width })
    }

    fn tied_embeddings(&self, product: &Arc<Self::Matrix>, scale: f32, width: usize) -> Result<Self::Embedding> {
        let cpu = self.cpu.tied_embeddings(&product.cpu, scale, width)?;
        Ok(Sides { cpu, device: self.device.tied_embeddings(&product.device, scale, width)?, width })
    }

    fn positions(
        &self,
        len: usize,
        width: usize,
        pad_id: Option<u32>,
        values: impl FnOnce() -> Vec<f32>,
    ) -> Result<Self::Positions> {
        let values = rounded::<T>(&values());
        let cpu = self.cpu.positions(len, width, pad_id, || values.clone())?;
        Ok(Sides { cpu, device: self.device.positions(len, width, pad_id, || values)?, width })
    }

    fn relative_bias(&self, values: &[f32], num_heads: usize, max_distance: usize) -> Result<Self::RelativeBias> {
        let cpu = self.cpu.relative_bias(values, num_heads, max_distance)?;
        let device = self.device.relative_bias(values, num_heads, max_distance)?;
        Ok(Sides { cpu, device, width: values.len() / num_heads.max(1) })
    }

    fn embedding(
        &self,
        table: &Self::Embedding,
        positions: Option<&Self::Positions>,
        rows: &Rows<Self>,
        out: &mut Tensor<T>,
    ) -> Result<()> {
        self.log().begin_pass();
        with_rows(rows, |cpu_rows, rows| {
            let (cpu, device) = &mut *out.get_mut();
            self.cpu.embedding(&table.cpu, positions.map(|positions| &positions.cpu), cpu_rows, cpu)?;
            self.device.embedding(&table.device, positions.map(|positions| &positions.device), rows, device)?;
            let cpu = &mut cpu[..cpu_rows.live().len() * table.width];
            let tolerance = tolerance::<T>(1e-6 * largest(cpu).max(1.0));
            self.settle("embedding", (cpu, device.view()), tolerance)
        })
    }

    fn linear(
        &self,
        matrix: &Self::Matrix,
        rows: &Rows<Self>,
        x: &Tensor<T>,
        activation: Activation,
        scratch: &mut Self::ProductScratch,
        out: &mut Tensor<T>,
    ) -> Result<()> {
        with_rows(rows, |cpu_rows, rows| {
            let (x, out) = (&*x.get(), &mut *out.get_mut());
            let live = cpu_rows.live().len();
            self.cpu.linear(&matrix.cpu, cpu_rows, &x.0, activation, &mut scratch.0, &mut out.0)?;
            self.device.linear(&matrix.device, rows, &x.1, activation, &mut scratch.1, &mut out.1)?;
            self.settle_linear(matrix, (live, &x.0), activation, matrix.out_dim, out)
        })
    }

    // The CPU's rows lie closer together, at the front of buffers of the same size.
    fn logits_stride(&self, vocab_size: usize) -> usize {
        self.device.logits_stride(vocab_size)
    }

    fn logits(
        &self,
        matrix: &Self::Matrix,
        rows: &Rows<Self>,
        x: &Tensor<T>,
        scratch: &mut Self::ProductScratch,
        out: &mut Floats,
    ) -> Result<()> {
        with_rows(rows, |cpu_rows, rows| {
            let (x, out) = (&*x.get(), &mut *out.get_mut());
            self.cpu.logits(&matrix.cpu, cpu_rows, &x.0, &mut scratch.0, &mut out.0)?;
            self.device.logits(&matrix.device, rows, &x.1, &mut scratch.1, &mut out.1)?;
            self.log().leave_layers();
            let live = cpu_rows.live().len();
            let stride = self.device.logits_stride(matrix.out_dim);
            self.settle_linear(matrix, (live, &x.0), Activation::None, stride, out)
        })
    }

    fn layer_norm(
        &self,
        norm: &Self::Norm,
        rows: &Rows<Self>,
        delta: Option<&Tensor<T>>,
        sum: Option<&mut Floats>,
        x: &mut Tensor<T>,
    ) -> Result<()> {
        with_rows(rows, |cpu_rows, rows| {
            let (delta, (cpu, device)) = (delta.map(|delta| delta.get()), &mut *x.get_mut());
            let mut sum = sum.map(|sum| sum.get_mut());
            let cpu_sum = sum.as_mut().map(|sum| &mut sum.0);
            self.cpu.layer_norm(&norm.cpu, cpu_rows, delta.as_ref().map(|delta| &delta.0), cpu_sum, cpu)?;
            let own_sum = sum.as_mut().map(|sum| &mut sum.1);
            self.device.layer_norm(&norm.device, rows, delta.as_ref().map(|delta| &delta.1), own_sum, device)?;
            let len = cpu_rows.live().len() * norm.width;
            if let Some((cpu, device)) = sum.as_deref_mut().map(|both| (&mut both.0[..len], &both.1)) {
                let tolerance = crate::cuda::testing::tolerance::<f32>(1e-6 * largest(cpu).max(1.0));
                self.settle("layer_norm's sum", (cpu, device.view()), tolerance)?;
            }
            let tolerance = tolerance::<T>(LAYER_NORM * norm.largest_gain);
            self.settle("layer_norm", (&mut cpu[..len], device.view()), tolerance)
        })?;
        if delta.is_some() {
            self.log().end_sublayer();
        }
        Ok(())
    }

    fn gate(
        &self,
        width: usize,
        rows: &Rows<Self>,
        both: &Tensor<T>,
        activation: Activation,
        out: &mut Tensor<T>,
    ) -> Result<()> {
        with_rows(rows, |cpu_rows, rows| {
            let (both, (cpu, device)) = (&*both.get(), &mut *out.get_mut());
            self.cpu.gate(width, cpu_rows, &both.0, activation, cpu)?;
            self.device.gate(width, rows, &both.1, activation, device)?;
            let cpu = &mut cpu[..cpu_rows.live().len() * width];
            let tolerance = tolerance::<T>(1e-5 * largest(cpu).max(1.0));
            self.settle("gate", (cpu, device.view()), tolerance)
        })
    }

    fn encoder_attention(
        &self,
        scores: Scores<'_, Self>,
        rows: &Rows<Self>,
        starts: &Words,
        sentences: usize,
        qkv: &Tensor<T>,
        out: &mut Tensor<T>,
    ) -> Result<()> {
        let heads = scores.heads;
        let (cpu_scores, own_scores) = sides(scores);
        with_rows(rows, |cpu_rows, rows| {
            let (starts, qkv, (cpu, device)) = (&*starts.get(), &*qkv.get(), &mut *out.get_mut());
            self.cpu.encoder_attention(cpu_scores, cpu_rows, &starts.0, sentences, &qkv.0, cpu)?;
            self.device.encoder_attention(own_scores, rows, &starts.1, sentences, &qkv.1, device)?;
            let live = cpu_rows.live().len();
            let tolerance = tolerance::<T>(ATTENTION * largest(&qkv.0[..live * 3 * heads.width()]).max(1.0));
            self.settle("encoder_attention", (&mut cpu[..live * heads.width()], device.view()), tolerance)
        })
    }

    fn store_cross(&self, heads: Heads, rows: &Rows<Self>, kv: &Tensor<T>, cache: &mut CrossCache<Self>) -> Result<()> {
        let (width, max_src_len) = (heads.width(), cache.max_src_len);
        with_cross(cache, |cpu_cache, cache| {
            with_rows(rows, |cpu_rows, rows| {
                let kv = &*kv.get();
                self.cpu.store_cross(heads, cpu_rows, &kv.0, cpu_cache)?;
                self.device.store_cross(heads, rows, &kv.1, cache)?;
                let place = |row: &Row| row.slot as usize * max_src_len + row.position as usize;
                let (rows, layout) = (("store_cross", cpu_rows.live()), (width, 2 * width, 0));
                self.settle_store(rows, place, layout, &kv.0, (&cache.keys, &cache.values))
            })
        })
    }

    fn store_self(&self, heads: Heads, rows: &Rows<Self>, qkv: &Tensor<T>, cache: &mut SelfCache<Self>) -> Result<()> {
        let (width, max_len, beams) = (heads.width(), cache.max_len, cache.beam_size);
        with_self(cache, |cpu_cache, cache| {
            with_rows(rows, |cpu_rows, rows| {
                let qkv = &*qkv.get();
                self.cpu.store_self(heads, cpu_rows, &qkv.0, cpu_cache)?;
                self.device.store_self(heads, rows, &qkv.1, cache)?;
                let place =
                    |row: &Row| (row.slot as usize * max_len + row.position as usize) * beams + row.beam as usize;
                let (rows, layout) = (("store_self", cpu_rows.live()), (width, 3 * width, width));
                self.settle_store(rows, place, layout, &qkv.0, (&cache.keys, &cache.values))
            })
        })
    }

    fn self_attention(
        &self,
        scores: Scores<'_, Self>,
        rows: &Rows<Self>,
        qkv: &Tensor<T>,
        cache: &SelfCache<Self>,
        ancestry: &Words,
        out: &mut Tensor<T>,
    ) -> Result<()> {
        let heads = scores.heads;
        let (cpu_scores, own_scores) = sides(scores);
        with_self(cache, |cpu_cache, cache| {
            with_rows(rows, |cpu_rows, rows| {
                let (ancestry, qkv, (cpu, device)) = (&*ancestry.get(), &*qkv.get(), &mut *out.get_mut());
                self.cpu.self_attention(cpu_scores, cpu_rows, &qkv.0, cpu_cache, &ancestry.0, cpu)?;
                self.device.self_attention(own_scores, rows, &qkv.1, cache, &ancestry.1, device)?;
                let live = cpu_rows.live().len();
                let tolerance = tolerance::<T>(ATTENTION * largest(&qkv.0[..live * 3 * heads.width()]).max(1.0));
                self.settle("self_attention", (&mut cpu[..live * heads.width()], device.view()), tolerance)
            })
        })
    }

    fn cross_attention(
        &self,
        heads: Heads,
        rows: &Rows<Self>,
        queries: &Tensor<T>,
        cache: &CrossCache<Self>,
        options: &Words,
        weights: Option<&mut Floats>,
        out: &mut Tensor<T>,
    ) -> Result<()> {
        let max_src_len = cache.max_src_len;
        with_cross(cache, |cpu_cache, cache| {
            with_rows(rows, |cpu_rows, rows| {
                let (queries, options, (cpu, device)) = (&*queries.get(), &*options.get(), &mut *out.get_mut());
                let mut weights = weights.map(|weights| weights.get_mut());
                let cpu_weights = weights.as_mut().map(|weights| &mut weights.0);
                self.cpu.cross_attention(heads, cpu_rows, &queries.0, cpu_cache, &options.0, cpu_weights, cpu)?;
                let own_weights = weights.as_mut().map(|weights| &mut weights.1);
                self.device.cross_attention(heads, rows, &queries.1, cache, &options.1, own_weights, device)?;
                let live = cpu_rows.live().len();
                let tolerance = tolerance::<T>(ATTENTION * largest(&cpu_cache.values).max(1.0));
                self.settle("cross_attention", (&mut cpu[..live * heads.width()], device.view()), tolerance)?;
                let Some((cpu, device)) = weights.as_deref_mut().map(|both| (&mut both.0, &both.1)) else {
                    return Ok(());
                };
                let tolerance = Tolerance::new(ATTENTION, ATTENTION);
                self.settle("cross_attention's weights", (&mut cpu[..live * max_src_len], device.view()), tolerance)
            })
        })
    }
}

impl<T: Element> SearchOps for Lockstep<T> {
    type SearchScratch = Both<<Cpu as SearchOps>::SearchScratch, <Cuda<T> as SearchOps>::SearchScratch>;

    fn search_scratch(&self, shape: SessionShape, vocab_size: usize) -> Result<Self::SearchScratch> {
        let cpu = self.cpu.search_scratch(shape, vocab_size)?;
        Ok(Both::new(cpu, self.device.search_scratch(shape, vocab_size)?))
    }

    fn start_slots(&self, slots: &[(u32, SlotOptions)], search: &mut Search<Self>) -> Result<()> {
        with_searches(search, |cpu, device| {
            self.cpu.start_slots(slots, cpu)?;
            self.device.start_slots(slots, device)?;
            self.settle_search("start_slots", cpu, device)
        })
    }

    fn processors(&self, search: &mut Search<Self>) -> Result<()> {
        with_searches(search, |cpu, device| {
            self.cpu.processors(cpu)?;
            self.device.processors(device)?;
            self.settle_bans(cpu, device)
        })
    }

    fn contrastive(&self, expert: &Floats, amateur: &Floats, scorer: u32, search: &mut Search<Self>) -> Result<()> {
        let (expert, amateur) = (&*expert.get(), &*amateur.get());
        with_searches(search, |cpu, device| {
            self.cpu.contrastive(&expert.0, &amateur.0, scorer, cpu)?;
            self.device.contrastive(&expert.1, &amateur.1, scorer, device)?;
            let is_written = |options: &SlotOptions| options.contrast.form != 0 && options.contrast.scorer == scorer;
            self.settle_ranked("contrastive", cpu, device, is_written)
        })
    }

    fn ensemble(&self, scorers: &[Option<&Floats>], search: &mut Search<Self>) -> Result<()> {
        let scorers: Vec<_> = scorers.iter().map(|scorer| scorer.map(|scorer| scorer.get())).collect();
        let cpu_scorers: Vec<_> = scorers.iter().map(|scorer| scorer.as_ref().map(|scorer| &scorer.0)).collect();
        let own_scorers: Vec<_> = scorers.iter().map(|scorer| scorer.as_ref().map(|scorer| &scorer.1)).collect();
        with_searches(search, |cpu, device| {
            self.cpu.ensemble(&cpu_scorers, cpu)?;
            self.device.ensemble(&own_scorers, device)?;
            let is_written = |options: &SlotOptions| options.ranked != 0 && options.contrast.form == 0;
            self.settle_ranked("ensemble", cpu, device, is_written)
        })
    }

    fn repetition_penalty(&self, logits: &Floats, search: &mut Search<Self>) -> Result<()> {
        let logits = &*logits.get();
        with_searches(search, |cpu, device| {
            self.cpu.repetition_penalty(&logits.0, cpu)?;
            self.device.repetition_penalty(&logits.1, device)?;
            self.settle_ranked("repetition_penalty", cpu, device, |options| options.repetition_penalty != 0.0)
        })
    }

    fn beam_step(&self, logits: &Floats, attention: &Floats, search: &mut Search<Self>) -> Result<()> {
        let (logits, attention) = (&*logits.get(), &*attention.get());
        with_searches(search, |cpu, device| {
            self.cpu.beam_step(&logits.0, &attention.0, cpu)?;
            self.device.beam_step(&logits.1, &attention.1, device)?;
            self.settle_search("beam_step", cpu, device)
        })
    }

    fn sample(&self, logits: &Floats, search: &mut Search<Self>) -> Result<()> {
        let logits = &*logits.get();
        with_searches(search, |cpu, device| {
            self.cpu.sample(&logits.0, cpu)?;
            self.device.sample(&logits.1, device)?;
            let picks = self.context.download(device.picks.view())?;
            let tokens = |picks: &[u32]| -> Vec<u32> {
                bytemuck::cast_slice::<_, SamplePick>(picks).iter().map(|pick| pick.token).collect()
            };
            let (actual, expected) = (tokens(&picks), tokens(&cpu.picks));
            let same = if actual == expected { Ok(()) } else { Err(format!("expected {expected:?}, got {actual:?}")) };
            self.log().keep("sample", same);
            self.settle_search("sample", cpu, device)
        })
    }

    fn token_stats(
        &self,
        rows: &Rows<Self>,
        logits: &Floats,
        vocab_size: usize,
        gold: &Words,
        out: &mut Words,
    ) -> Result<()> {
        with_rows(rows, |cpu_rows, rows| {
            let (logits, gold, (cpu, device)) = (&*logits.get(), &*gold.get(), &mut *out.get_mut());
            self.cpu.token_stats(cpu_rows, &logits.0, vocab_size, &gold.0, cpu)?;
            self.device.token_stats(rows, &logits.1, vocab_size, &gold.1, device)?;
            let cpu = &mut cpu[..cpu_rows.live().len() * words::<TokenStats>()];
            let actual = self.context.download(device.view().slice(0..cpu.len())?)?;
            let numbers = |words: &[u32]| -> Vec<f32> {
                let stats: &[TokenStats] = bytemuck::cast_slice(words);
                stats.iter().flat_map(|s| [s.log_prob, s.entropy, s.max_log_prob]).collect()
            };
            self.log().compare("token_stats", &numbers(&actual), &numbers(cpu), Tolerance::new(2e-5, 1e-6));
            cpu.copy_from_slice(&actual);
            Ok(())
        })
    }
}
