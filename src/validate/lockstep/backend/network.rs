//! A network's operations on both sides: what bounds their differences, and what is compared.

use std::sync::Arc;

use super::{Floats, Lockstep};
use crate::Result;
use crate::backend::{Activation, CrossCache, Dtype, Heads, NetworkOps, NormKind, Row, Rows, Scores, SelfCache};
use crate::check::Tolerance;
use crate::cpu::Cpu;
use crate::cuda::element::{Element, with_element};
use crate::cuda::testing::tolerance_of as tolerance;
use crate::cuda::{self, Buffer, Cuda};
use crate::validate::lockstep::both::{Both, Words, with_cross, with_rows, with_self};

type Tensor = Both<Vec<f32>, cuda::Tensor>;

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

/// As a type of activations has them.
fn rounded(dtype: Dtype, values: &[f32]) -> Vec<f32> {
    with_element!(dtype, T => values.iter().map(|&value| T::from_f32(value).to_f32()).collect())
}

fn largest(values: &[f32]) -> f64 {
    f64::from(values.iter().fold(0.0f32, |most, value| most.max(value.abs())))
}

fn length(values: &[f32]) -> f64 {
    values.iter().map(|value| f64::from(*value) * f64::from(*value)).sum::<f64>().sqrt()
}

impl Lockstep {
    /// `computed`, the error of the f32 arithmetic, and the rounding of activations.
    fn tolerance(&self, computed: f64) -> Tolerance {
        tolerance(self.device.dtype(), computed)
    }

    /// Holds a tensor on the device to the CPU's, and takes it over.
    fn settle(&self, operation: &str, (cpu, device): (&mut [f32], &cuda::Tensor), tolerance: Tolerance) -> Result<()> {
        let actual = device.download(&self.context, 0..cpu.len())?;
        self.take(operation, cpu, &actual, tolerance);
        Ok(())
    }

    /// As [`Lockstep::settle`], of what is f32 whatever the activations are.
    fn settle_floats(
        &self,
        operation: &str,
        (cpu, device): (&mut [f32], &Buffer<f32>),
        tolerance: Tolerance,
    ) -> Result<()> {
        let actual = self.context.download(device.view().slice(0..cpu.len())?)?;
        self.take(operation, cpu, &actual, tolerance);
        Ok(())
    }

    /// Name and tolerance of a linear layer of `x`, `[rows, in_dim]`, whose outputs are of a type.
    fn linear_bounds(
        &self,
        matrix: &<Self as NetworkOps>::Matrix,
        (rows, x): (usize, &[f32]),
        activation: Activation,
        out: Dtype,
    ) -> (String, Tolerance) {
        // No activation magnifies a difference by more than this.
        const STEEPEST: f64 = 1.2;
        let &Matrix { out_dim, in_dim, longest, .. } = matrix;
        let x = x.chunks(in_dim).take(rows).map(length).fold(0.0, f64::max);
        // Both sides sum in f32: k products and additions each err by at most a unit in the last place of the sum of
        // magnitudes, which is at most the product of lengths (Cauchy).
        let sums = 2.0 * (in_dim + 2) as f64 * 2f64.powi(-23) * (x + 1.0) * longest;
        let rounding = tolerance(out, 1e-6);
        let tolerance = match activation {
            Activation::None | Activation::Relu if self.is_quantized() => Tolerance::EXACT,
            // What remains is the activation's own.
            _ if self.is_quantized() => rounding,
            _ => Tolerance::new(rounding.abs + STEEPEST * sums, rounding.rel),
        };
        (format!("linear {in_dim} to {out_dim}"), tolerance)
    }

    /// Holds what a store left at its rows' places to what it was given.
    fn settle_store(
        &self,
        (operation, rows): (&str, &[Row]),
        place: impl Fn(&Row) -> usize,
        (width, stride, offset): (usize, usize, usize),
        from: &[f32],
        (keys, values): (&cuda::Tensor, &cuda::Tensor),
    ) -> Result<()> {
        let (mut actual, mut expected) = (Vec::new(), Vec::new());
        for (r, row) in rows.iter().enumerate() {
            let at = place(row) * width;
            for (half, cache) in [keys, values].into_iter().enumerate() {
                actual.extend(cache.download(&self.context, at..at + width)?);
                expected.extend(rounded(cache.dtype(), &from[r * stride + offset + half * width..][..width]));
            }
        }
        self.log().compare(operation, &actual, &expected, Tolerance::EXACT);
        Ok(())
    }
}

/// How scores are made on either side.
fn sides(scores: Scores<'_, Lockstep>) -> (Scores<'_, Cpu>, Scores<'_, Cuda>) {
    let Scores { heads, bias } = scores;
    let (cpu, device) = (bias.map(|bias| &bias.cpu), bias.map(|bias| &bias.device));
    (Scores { heads, bias: cpu }, Scores { heads, bias: device })
}

impl NetworkOps for Lockstep {
    type Tensor = Tensor;
    type Matrix = Matrix<<Cpu as NetworkOps>::Matrix, <Cuda as NetworkOps>::Matrix>;
    type Norm = Norms<<Cpu as NetworkOps>::Norm, <Cuda as NetworkOps>::Norm>;
    type Embedding = Sides<<Cpu as NetworkOps>::Embedding, <Cuda as NetworkOps>::Embedding>;
    type Positions = Sides<<Cpu as NetworkOps>::Positions, <Cuda as NetworkOps>::Positions>;
    type RelativeBias = Sides<<Cpu as NetworkOps>::RelativeBias, <Cuda as NetworkOps>::RelativeBias>;
    type ProductScratch = (<Cpu as NetworkOps>::ProductScratch, <Cuda as NetworkOps>::ProductScratch);

    fn tensor(&self, len: usize) -> Result<Tensor> {
        // NaN on both: rows of slots that a scorer does not listen to read places that nothing was stored at.
        let cpu = vec![f32::NAN; len];
        let device = cuda::Tensor::upload(&self.context, self.device.dtype(), &cpu)?;
        Ok(Both::new(cpu, device))
    }

    fn cache(&self, len: usize) -> Result<Tensor> {
        let mut cpu = self.cpu.cache(len)?;
        cpu.fill(f32::NAN);
        let nothing = vec![f32::NAN; len];
        Ok(Both::new(cpu, cuda::Tensor::upload(&self.context, self.device.cache_dtype(), &nothing)?))
    }

    fn product_scratch(&self, rows: usize, widest: usize) -> Result<Self::ProductScratch> {
        Ok((self.cpu.product_scratch(rows, widest)?, self.device.product_scratch(rows, widest)?))
    }

    fn matrix(&self, weights: &[f32], bias: Option<&[f32]>, out_dim: usize, in_dim: usize) -> Result<Self::Matrix> {
        let weights = rounded(self.device.dtype(), weights);
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
        let dtype = self.device.dtype();
        let (gain, bias) = (rounded(dtype, gain), bias.map(|bias| rounded(dtype, bias)));
        let cpu = self.cpu.norm(kind, &gain, bias.as_deref(), eps)?;
        let device = self.device.norm(kind, &gain, bias.as_deref(), eps)?;
        Ok(Norms { cpu, device, width: gain.len(), largest_gain: largest(&gain).max(1.0) })
    }

    fn embeddings(&self, tokens: &[f32], scale: f32, width: usize) -> Result<Self::Embedding> {
        let tokens = rounded(self.device.dtype(), tokens);
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
        let values = rounded(self.device.dtype(), &values());
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
        out: &mut Tensor,
    ) -> Result<()> {
        self.log().begin_pass();
        with_rows(rows, |cpu_rows, rows| {
            let (cpu, device) = &mut *out.get_mut();
            self.cpu.embedding(&table.cpu, positions.map(|positions| &positions.cpu), cpu_rows, cpu)?;
            self.device.embedding(&table.device, positions.map(|positions| &positions.device), rows, device)?;
            let cpu = &mut cpu[..cpu_rows.live().len() * table.width];
            let tolerance = self.tolerance(1e-6 * largest(cpu).max(1.0));
            self.settle("embedding", (cpu, device), tolerance)
        })
    }

    fn linear(
        &self,
        matrix: &Self::Matrix,
        rows: &Rows<Self>,
        x: &Tensor,
        activation: Activation,
        scratch: &mut Self::ProductScratch,
        out: &mut Tensor,
    ) -> Result<()> {
        with_rows(rows, |cpu_rows, rows| {
            let (x, out) = (&*x.get(), &mut *out.get_mut());
            let live = cpu_rows.live().len();
            self.cpu.linear(&matrix.cpu, cpu_rows, &x.0, activation, &mut scratch.0, &mut out.0)?;
            self.device.linear(&matrix.device, rows, &x.1, activation, &mut scratch.1, &mut out.1)?;
            let (name, tolerance) = self.linear_bounds(matrix, (live, &x.0), activation, self.device.dtype());
            self.settle(&name, (&mut out.0[..live * matrix.out_dim], &out.1), tolerance)
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
        x: &Tensor,
        scratch: &mut Self::ProductScratch,
        out: &mut Floats,
    ) -> Result<()> {
        with_rows(rows, |cpu_rows, rows| {
            let (x, out) = (&*x.get(), &mut *out.get_mut());
            self.cpu.logits(&matrix.cpu, cpu_rows, &x.0, &mut scratch.0, &mut out.0)?;
            self.device.logits(&matrix.device, rows, &x.1, &mut scratch.1, &mut out.1)?;
            self.log().leave_layers();
            let live = cpu_rows.live().len();
            let (name, tolerance) = self.linear_bounds(matrix, (live, &x.0), Activation::None, Dtype::F32);
            let stride = self.device.logits_stride(matrix.out_dim);
            // Its rows lie farther apart than the CPU's.
            let apart = self.context.download(out.1.view().slice(0..live * stride)?)?;
            let rows = apart.chunks(stride).flat_map(|row| &row[..matrix.out_dim]);
            let actual: Vec<f32> = rows.copied().collect();
            self.take(&name, &mut out.0[..actual.len()], &actual, tolerance);
            Ok(())
        })
    }

    fn layer_norm(
        &self,
        norm: &Self::Norm,
        rows: &Rows<Self>,
        delta: Option<&Tensor>,
        sum: Option<&mut Floats>,
        x: &mut Tensor,
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
                let tolerance = tolerance(Dtype::F32, 1e-6 * largest(cpu).max(1.0));
                self.settle_floats("layer_norm's sum", (cpu, device), tolerance)?;
            }
            let tolerance = self.tolerance(LAYER_NORM * norm.largest_gain);
            self.settle("layer_norm", (&mut cpu[..len], device), tolerance)
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
        both: &Tensor,
        activation: Activation,
        out: &mut Tensor,
    ) -> Result<()> {
        with_rows(rows, |cpu_rows, rows| {
            let (both, (cpu, device)) = (&*both.get(), &mut *out.get_mut());
            self.cpu.gate(width, cpu_rows, &both.0, activation, cpu)?;
            self.device.gate(width, rows, &both.1, activation, device)?;
            let cpu = &mut cpu[..cpu_rows.live().len() * width];
            let tolerance = self.tolerance(1e-5 * largest(cpu).max(1.0));
            self.settle("gate", (cpu, device), tolerance)
        })
    }

    fn encoder_attention(
        &self,
        scores: Scores<'_, Self>,
        rows: &Rows<Self>,
        starts: &Words,
        sentences: usize,
        qkv: &Tensor,
        out: &mut Tensor,
    ) -> Result<()> {
        let heads = scores.heads;
        let (cpu_scores, own_scores) = sides(scores);
        with_rows(rows, |cpu_rows, rows| {
            let (starts, qkv, (cpu, device)) = (&*starts.get(), &*qkv.get(), &mut *out.get_mut());
            self.cpu.encoder_attention(cpu_scores, cpu_rows, &starts.0, sentences, &qkv.0, cpu)?;
            self.device.encoder_attention(own_scores, rows, &starts.1, sentences, &qkv.1, device)?;
            let live = cpu_rows.live().len();
            let tolerance = self.tolerance(ATTENTION * largest(&qkv.0[..live * 3 * heads.width()]).max(1.0));
            self.settle("encoder_attention", (&mut cpu[..live * heads.width()], device), tolerance)
        })
    }

    fn store_cross(&self, heads: Heads, rows: &Rows<Self>, kv: &Tensor, cache: &mut CrossCache<Self>) -> Result<()> {
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

    fn store_self(&self, heads: Heads, rows: &Rows<Self>, qkv: &Tensor, cache: &mut SelfCache<Self>) -> Result<()> {
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
        qkv: &Tensor,
        cache: &SelfCache<Self>,
        ancestry: &Words,
        out: &mut Tensor,
    ) -> Result<()> {
        let heads = scores.heads;
        let (cpu_scores, own_scores) = sides(scores);
        with_self(cache, |cpu_cache, cache| {
            with_rows(rows, |cpu_rows, rows| {
                let (ancestry, qkv, (cpu, device)) = (&*ancestry.get(), &*qkv.get(), &mut *out.get_mut());
                self.cpu.self_attention(cpu_scores, cpu_rows, &qkv.0, cpu_cache, &ancestry.0, cpu)?;
                self.device.self_attention(own_scores, rows, &qkv.1, cache, &ancestry.1, device)?;
                let live = cpu_rows.live().len();
                let tolerance = self.tolerance(ATTENTION * largest(&qkv.0[..live * 3 * heads.width()]).max(1.0));
                self.settle("self_attention", (&mut cpu[..live * heads.width()], device), tolerance)
            })
        })
    }

    fn cross_attention(
        &self,
        heads: Heads,
        rows: &Rows<Self>,
        queries: &Tensor,
        cache: &CrossCache<Self>,
        options: &Words,
        weights: Option<&mut Floats>,
        out: &mut Tensor,
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
                let tolerance = self.tolerance(ATTENTION * largest(&cpu_cache.values).max(1.0));
                self.settle("cross_attention", (&mut cpu[..live * heads.width()], device), tolerance)?;
                let Some((cpu, device)) = weights.as_deref_mut().map(|both| (&mut both.0, &both.1)) else {
                    return Ok(());
                };
                let tolerance = Tolerance::new(ATTENTION, ATTENTION);
                self.settle_floats("cross_attention's weights", (&mut cpu[..live * max_src_len], device), tolerance)
            })
        })
    }
}
