//! The CUDA backend: each method of [`Backend`](crate::backend::Backend) as a launch or a matrix product, on a GPU or emulated.
//!
//! Every grid is sized by [`Rows::bucket`]; how many of these rows are live lies on the device. Matrix products, their epilogues
//! and layer norms compute the whole bucket, the other kernels its live rows.

use std::collections::HashMap;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

use half::bf16;

use super::beam_step::{BeamStep, BeamStepScratch, SearchViews, StartSlots};
use super::buffer::{Buffer, Pinned, View, ViewMut};
use super::context::{Context, Recording};
use super::element::Element;
use super::layer_norm::LayerNorm;
use super::matrix::{Finish, Matrix, ProductScratch, Weights};
use super::quantize::QuantizedRows;
use super::rows::RowList;
use super::{attention, contrastive, embedding, ensemble, gate, gather, processors, sample, stats};
use crate::Result;
use crate::backend::{
    Activation, CrossCache, Device, Dtype, Heads, NetworkOps, NormKind, Part, Row, Rows, Scores, Search, SearchOps,
    SelfCache, SessionShape, SlotOptions, StepKey, TokenStats, Value, WeightRows, rows_of, words,
};
use crate::error::room;

/// A CUDA device, real or emulated, that stores weights and activations as `T`.
#[derive(Debug)]
pub struct Cuda<T> {
    context: Context,
    /// Whether the weights of products are 8-bit integers, whatever `T`.
    is_quantized: bool,
    element: PhantomData<T>,
}

impl Cuda<f32> {
    /// The backend over an open device, with activations in f32 and the weights of products in 8 bits.
    pub fn quantized(context: Context) -> Self {
        Cuda { is_quantized: true, ..Cuda::new(context) }
    }
}

impl<T: Element> Cuda<T> {
    /// The backend over an open device.
    pub fn new(context: Context) -> Self {
        Cuda { context, is_quantized: false, element: PhantomData }
    }

    /// The device.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// What the weights of products are stored in.
    pub fn dtype(&self) -> Dtype {
        if self.is_quantized { Dtype::I8 } else { T::DTYPE }
    }

    /// Allocates `values` rounded to `T`.
    fn upload(&self, values: &[f32]) -> Result<Buffer<T>> {
        let rounded: Vec<T> = values.iter().map(|&value| T::from_f32(value)).collect();
        self.context.upload(&rounded)
    }
}

/// Host memory that words are copied to, and where on the device they are brought together before.
#[derive(Debug)]
pub struct Report {
    pinned: Pinned<u32>,
    gathered: Buffer<u32>,
}

/// A norm's parameters.
#[derive(Debug)]
pub struct Norm<T> {
    kind: NormKind,
    gain: Buffer<T>,
    bias: Option<Buffer<T>>,
    eps: f32,
}

/// Token embeddings.
#[derive(Debug)]
pub struct Embedding<T> {
    tokens: Weights<T>,
    scale: f32,
    width: usize,
}

/// A table of positions.
#[derive(Debug)]
pub struct Positions<T> {
    table: Buffer<T>,
    pad_id: Option<u32>,
}

/// What is added to an attention's scores by how far the key lies from the query.
#[derive(Debug)]
pub struct RelativeBias {
    values: Buffer<f32>,
    max_distance: usize,
}

/// For a launcher.
fn relative<'a, T: Element>(scores: Scores<'a, Cuda<T>>) -> Option<attention::Relative<'a>> {
    let relative =
        |bias: &'a RelativeBias| attention::Relative { values: bias.values.view(), max_distance: bias.max_distance };
    scores.bias.map(relative)
}

/// The first `len` elements, to read.
fn head<T>(buffer: &Buffer<T>, len: usize) -> Result<View<'_, T>> {
    buffer.view().slice(0..len)
}

/// The first `len` elements, to write.
fn head_mut<T>(buffer: &mut Buffer<T>, len: usize) -> Result<ViewMut<'_, T>> {
    buffer.view_mut().slice(0..len)
}

/// Elements between the starts of two rows of logits: all rows start at multiples of 16 bytes.
fn logits_stride(vocab_size: usize) -> usize {
    vocab_size.next_multiple_of(4)
}

fn list<T: Element>(rows: &Rows<Cuda<T>>) -> RowList<'_> {
    RowList { entries: rows.entries.view(), count: rows.count.view(), bucket: rows.bucket }
}

/// Evaluates an expression with a cache's keys and values as views of what they are: bf16 beside weights of 8 bits, as on the CPU, else in
/// the activations' type.
macro_rules! with_cached {
    ($backend:expr, $cache:expr, $view:ident, |$keys:ident, $values:ident| $expression:expr) => {
        if $backend.is_quantized {
            let ($keys, $values) = ($cache.keys.$view().as_bf16(), $cache.values.$view().as_bf16());
            $expression
        } else {
            let ($keys, $values) = ($cache.keys.$view(), $cache.values.$view());
            $expression
        }
    };
}

/// What the processors alone read of a search.
struct Controls<'a> {
    always_banned: View<'a, u32>,
    prefixes: View<'a, u32>,
    sequences: View<'a, u32>,
}

/// The parts of a search as the launchers of its kernels take them.
fn views<T: Element>(search: &mut Search<Cuda<T>>) -> (SearchViews<'_>, &mut BeamStepScratch, Controls<'_>) {
    let controls = Controls {
        always_banned: search.always_banned.view(),
        prefixes: search.prefixes.view(),
        sequences: search.sequences.view(),
    };
    let views = SearchViews {
        shape: search.shape,
        vocab_size: search.vocab_size,
        ids: search.ids,
        options: search.options.view_mut(),
        step: search.step.view_mut(),
        live: search.live.view_mut(),
        cum_log_probs: search.cum_log_probs.view_mut(),
        tokens: search.tokens.view_mut(),
        parents: search.parents.view_mut(),
        log_probs: search.log_probs.view_mut(),
        ancestry: search.ancestry.view_mut(),
        coverage: search.coverage.view_mut(),
        attention: search.attention.view_mut(),
        finished: search.finished.view_mut(),
        finished_count: search.finished_count.view_mut(),
        failures: search.failures.view_mut(),
        rows: search.rows.entries.view_mut(),
        row_count: search.rows.count.view_mut(),
        ranked: search.ranked.view_mut(),
        bans: search.bans.view_mut(),
        constraints: search.constraints.view_mut(),
        banks: search.banks.view_mut(),
        picks: search.picks.view_mut(),
    };
    (views, &mut search.scratch, controls)
}

impl<T: Element> Cuda<T> {
    /// `out = x W^T` over the bucket, and what is to be done with it.
    fn product(
        &self,
        matrix: &Matrix<T>,
        (rows, x): (usize, &Buffer<T>),
        scratch: &mut ProductScratch,
        finish: Finish<'_>,
        out: &mut Buffer<T>,
    ) -> Result<()> {
        let &Matrix { out_dim, in_dim, .. } = matrix;
        let (x, out) = (head(x, rows * in_dim)?, head_mut(out, rows * out_dim)?);
        matrix.multiply(&self.context, (rows, x), scratch, finish, (out, out_dim))
    }
}

impl<T: Element> Cuda<T> {
    /// Attention to the source, after adding a bias that the queries still lack.
    #[expect(clippy::too_many_arguments, reason = "a kernel's operands, each a plain buffer")]
    fn cross(
        &self,
        heads: Heads,
        rows: &Rows<Self>,
        (queries, bias): (&Buffer<T>, Option<View<'_, f32>>),
        cache: &CrossCache<Self>,
        options: &Buffer<u32>,
        weights: Option<&mut Buffer<f32>>,
        out: &mut Buffer<T>,
    ) -> Result<()> {
        let (len, max_len, beam_size) = (rows.bucket * heads.width(), cache.max_src_len, 1);
        let (queries, out, options) = (head(queries, len)?, head_mut(out, len)?, options.view());
        let weights = weights.map(|weights| head_mut(weights, rows.bucket * max_len)).transpose()?;
        let rows = list(rows);
        with_cached!(self, cache, view, |keys, values| {
            let cache = attention::Cache { keys, values, max_len, beam_size };
            attention::Cross { rows, queries, bias, cache, options, weights, out }.launch(&self.context, heads)
        })
    }
}

impl<T: Element> Norm<T> {
    /// The norm of each of `rows` rows, for a launcher.
    fn of<'a>(
        &'a self,
        rows: usize,
        delta: Option<&'a Buffer<T>>,
        sum: Option<&'a mut Buffer<f32>>,
        x: &'a mut Buffer<T>,
    ) -> Result<LayerNorm<'a, T>> {
        let width = self.gain.len();
        Ok(LayerNorm {
            x: head_mut(x, rows * width)?,
            sum: sum.map(|sum| head_mut(sum, rows * width)).transpose()?,
            delta: delta.map(|delta| head(delta, rows * width)).transpose()?,
            delta_bias: None,
            gain: self.gain.view(),
            bias: self.bias.as_ref().map(Buffer::view),
            kind: self.kind,
            eps: self.eps,
        })
    }
}

impl<T: Element> Device for Cuda<T> {
    type Buffer<V: Value> = Buffer<V>;
    type GraphCache = HashMap<StepKey, Recording>;
    type Readback = Report;

    // Two steps enqueued behind the one looked at: the device has work while the host answers and admits.
    const READBACK_DEPTH: usize = 2;

    fn replay_or_record(
        &self,
        graphs: &mut HashMap<StepKey, Recording>,
        key: StepKey,
        enqueue: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        self.context.step(graphs.entry(key).or_default(), enqueue)
    }

    fn aside(&self, work: impl FnOnce() -> Result<()>) -> Result<()> {
        self.context.aside(work)
    }

    fn join_aside(&self) -> Result<()> {
        self.context.join_aside()
    }

    fn name(&self) -> String {
        self.context.name().to_owned()
    }

    fn dry(&self) -> Option<Self> {
        Some(Cuda { context: super::open_dry(), ..*self })
    }

    fn allocated(&self) -> u64 {
        self.context.counters().live_bytes
    }

    fn free_memory(&self) -> Result<Option<u64>> {
        self.context.free_memory()
    }

    fn check(&self) -> Result<()> {
        self.context.synchronize()
    }

    fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        work()
    }

    fn zeros<V: Value>(&self, len: usize) -> Result<Buffer<V>> {
        self.context.zeros(len)
    }

    fn write<V: Value>(&self, to: &mut Buffer<V>, offset: usize, values: &[V]) -> Result<()> {
        self.context.write(to.view_mut().slice(offset..offset + values.len())?, values)
    }

    fn read<V: Value>(&self, from: &Buffer<V>, offset: usize, values: &mut [V]) -> Result<()> {
        values.copy_from_slice(&self.context.download(from.view().slice(offset..offset + values.len())?)?);
        Ok(())
    }

    fn enqueue_read<V: Value>(
        &self,
        from: &Buffer<V>,
        range: Range<usize>,
        to: &mut Report,
        offset: usize,
    ) -> Result<()> {
        self.context.post(from.view().slice(range)?.bits()?, &mut to.pinned, offset)
    }

    fn readback(&self, words: usize) -> Result<Report> {
        Ok(Report { pinned: self.context.pinned(words)?, gathered: self.context.allocate(words)? })
    }

    fn enqueue_read_parts(&self, parts: &[Part<'_, Self>], to: &mut Report) -> Result<()> {
        let mut views = Vec::with_capacity(parts.len());
        for part in parts {
            views.push(match part {
                Part::Ints(from, range) => from.view().slice(range.clone())?,
                Part::Floats(from, range) => from.view().slice(range.clone())?.bits()?,
            });
        }
        let total = parts.iter().map(Part::len).sum();
        let out = to.gathered.view_mut().slice(0..total)?;
        gather::Gather { parts: &views, out }.launch(&self.context)?;
        self.context.post(to.gathered.view().slice(0..total)?, &mut to.pinned, 0)
    }

    fn wait_readback(&self, readback: &Report, words: &mut [u32]) -> Result<()> {
        self.context.wait_readback(&readback.pinned, words)
    }
}

impl<T: Element> NetworkOps for Cuda<T> {
    type Tensor = Buffer<T>;
    type Matrix = Matrix<T>;
    type Norm = Norm<T>;
    type Embedding = Embedding<T>;
    type Positions = Positions<T>;
    type RelativeBias = RelativeBias;
    type ProductScratch = ProductScratch;

    fn tensor(&self, len: usize) -> Result<Buffer<T>> {
        self.context.allocate(len)
    }

    fn cache(&self, len: usize) -> Result<Buffer<T>> {
        let bytes = if self.is_quantized { len * size_of::<bf16>() } else { len * size_of::<T>() };
        self.context.allocate(bytes.div_ceil(size_of::<T>()))
    }

    fn product_scratch(&self, rows: usize, widest: usize) -> Result<ProductScratch> {
        ProductScratch::new(&self.context, rows, widest, self.is_quantized)
    }

    fn matrix(&self, weights: &[f32], bias: Option<&[f32]>, out_dim: usize, in_dim: usize) -> Result<Matrix<T>> {
        self.matrix_of_rows(&rows_of(weights, in_dim), bias, out_dim, in_dim)
    }

    fn matrix_of_rows(
        &self,
        weights: &WeightRows<'_>,
        bias: Option<&[f32]>,
        out_dim: usize,
        in_dim: usize,
    ) -> Result<Matrix<T>> {
        let bias = bias.map(|bias| self.context.upload(bias)).transpose()?;
        let weights = if self.is_quantized {
            Weights::Quantized(Arc::new(QuantizedRows::of_matrix(&self.context, weights, out_dim, in_dim)?))
        } else {
            let mut all = room::zeros("load weights", out_dim * in_dim)?;
            weights(0, &mut all)?;
            Weights::Plain(Arc::new(self.upload(&all)?))
        };
        Ok(Matrix { weights, bias, out_dim, in_dim })
    }

    fn norm(&self, kind: NormKind, gain: &[f32], bias: Option<&[f32]>, eps: f32) -> Result<Norm<T>> {
        let bias = bias.map(|bias| self.upload(bias)).transpose()?;
        Ok(Norm { kind, gain: self.upload(gain)?, bias, eps })
    }

    fn embeddings(&self, tokens: &[f32], scale: f32, width: usize) -> Result<Embedding<T>> {
        Ok(Embedding { tokens: Weights::Plain(Arc::new(self.upload(tokens)?)), scale, width })
    }

    fn tied_embeddings(&self, product: &Arc<Matrix<T>>, scale: f32, width: usize) -> Result<Embedding<T>> {
        Ok(Embedding { tokens: product.weights.clone(), scale, width })
    }

    fn positions(
        &self,
        len: usize,
        width: usize,
        pad_id: Option<u32>,
        values: impl FnOnce() -> Vec<f32>,
    ) -> Result<Positions<T>> {
        let table = match self.context.is_dry() {
            true => self.context.allocate(len * width)?,
            false => self.upload(&values())?,
        };
        Ok(Positions { table, pad_id })
    }

    fn relative_bias(&self, values: &[f32], _heads: usize, max_distance: usize) -> Result<RelativeBias> {
        Ok(RelativeBias { values: self.context.upload(values)?, max_distance })
    }

    fn embedding(
        &self,
        table: &Embedding<T>,
        positions: Option<&Positions<T>>,
        rows: &Rows<Self>,
        out: &mut Buffer<T>,
    ) -> Result<()> {
        embedding::Embedding {
            table: table.tokens.table(table.width)?,
            positions: positions.map(|positions| positions.table.view()),
            pad_id: positions.and_then(|positions| positions.pad_id),
            scale: table.scale,
            rows: list(rows),
            out: head_mut(out, rows.bucket * table.width)?,
        }
        .launch(&self.context, table.width)
    }

    fn linear(
        &self,
        matrix: &Matrix<T>,
        rows: &Rows<Self>,
        x: &Buffer<T>,
        activation: Activation,
        scratch: &mut ProductScratch,
        out: &mut Buffer<T>,
    ) -> Result<()> {
        let finish = (matrix.bias.as_ref().map(Buffer::view), activation);
        self.product(matrix, (rows.bucket, x), scratch, finish, out)
    }

    fn gate(
        &self,
        width: usize,
        rows: &Rows<Self>,
        both: &Buffer<T>,
        activation: Activation,
        out: &mut Buffer<T>,
    ) -> Result<()> {
        let rows = rows.bucket;
        let (both, out) = (head(both, 2 * rows * width)?, head_mut(out, rows * width)?);
        gate::Gate { both, activation, out }.launch(&self.context, rows, width)
    }

    fn logits_stride(&self, vocab_size: usize) -> usize {
        logits_stride(vocab_size)
    }

    fn logits(
        &self,
        matrix: &Matrix<T>,
        rows: &Rows<Self>,
        x: &Buffer<T>,
        scratch: &mut ProductScratch,
        out: &mut Buffer<f32>,
    ) -> Result<()> {
        let (&Matrix { out_dim, in_dim, .. }, rows) = (matrix, rows.bucket);
        let stride = logits_stride(out_dim);
        let (x, out) = (head(x, rows * in_dim)?, head_mut(out, rows * stride)?);
        let finish = (matrix.bias.as_ref().map(Buffer::view), Activation::None);
        matrix.multiply(&self.context, (rows, x), scratch, finish, (out, stride))
    }

    fn layer_norm(
        &self,
        norm: &Norm<T>,
        rows: &Rows<Self>,
        delta: Option<&Buffer<T>>,
        sum: Option<&mut Buffer<f32>>,
        x: &mut Buffer<T>,
    ) -> Result<()> {
        norm.of(rows.bucket, delta, sum, x)?.launch(&self.context, rows.bucket, norm.gain.len())
    }

    fn linear_norm(
        &self,
        matrix: &Matrix<T>,
        norm: &Norm<T>,
        rows: &Rows<Self>,
        from: &Buffer<T>,
        scratch: &mut ProductScratch,
        delta: &mut Buffer<T>,
        sum: Option<&mut Buffer<f32>>,
        x: &mut Buffer<T>,
    ) -> Result<()> {
        let (&Matrix { out_dim, in_dim, .. }, rows) = (matrix, rows.bucket);
        let (from, delta) = (head(from, rows * in_dim)?, head_mut(delta, rows * out_dim)?);
        matrix.multiply_norm(&self.context, (rows, from), scratch, norm.of(rows, None, sum, x)?, &delta, None)
    }

    fn encoder_attention(
        &self,
        scores: Scores<'_, Self>,
        rows: &Rows<Self>,
        starts: &Buffer<u32>,
        sentences: usize,
        qkv: &Buffer<T>,
        out: &mut Buffer<T>,
    ) -> Result<()> {
        let heads = scores.heads;
        attention::Encoder {
            rows: list(rows),
            starts: head(starts, sentences + 1)?,
            qkv: head(qkv, rows.bucket * 3 * heads.width())?,
            relative: relative(scores),
            out: head_mut(out, rows.bucket * heads.width())?,
        }
        .launch(&self.context, heads)
    }

    fn store_cross(&self, heads: Heads, rows: &Rows<Self>, kv: &Buffer<T>, cache: &mut CrossCache<Self>) -> Result<()> {
        let (stride, max_len) = (2 * heads.width(), cache.max_src_len);
        let (rows, from) = (list(rows), head(kv, rows.bucket * stride)?);
        with_cached!(self, cache, view_mut, |keys, values| {
            attention::Store { rows, from, stride, key_offset: 0, keys, values, max_len, beam_size: 1 }
                .launch(&self.context, heads.width())
        })
    }

    fn store_self(&self, heads: Heads, rows: &Rows<Self>, qkv: &Buffer<T>, cache: &mut SelfCache<Self>) -> Result<()> {
        let (stride, key_offset) = (3 * heads.width(), heads.width());
        let &mut SelfCache { max_len, beam_size, .. } = cache;
        let (rows, from) = (list(rows), head(qkv, rows.bucket * stride)?);
        with_cached!(self, cache, view_mut, |keys, values| {
            attention::Store { rows, from, stride, key_offset, keys, values, max_len, beam_size }
                .launch(&self.context, heads.width())
        })
    }

    fn self_attention(
        &self,
        scores: Scores<'_, Self>,
        rows: &Rows<Self>,
        qkv: &Buffer<T>,
        cache: &SelfCache<Self>,
        ancestry: &Buffer<u32>,
        out: &mut Buffer<T>,
    ) -> Result<()> {
        let heads = scores.heads;
        let &SelfCache { max_len, beam_size, .. } = cache;
        let (qkv, out) = (head(qkv, rows.bucket * 3 * heads.width())?, head_mut(out, rows.bucket * heads.width())?);
        let (rows, ancestry, relative) = (list(rows), ancestry.view(), relative(scores));
        with_cached!(self, cache, view, |keys, values| {
            let cache = attention::Cache { keys, values, max_len, beam_size };
            attention::Own { rows, qkv, cache, ancestry, relative, out }.launch(&self.context, heads)
        })
    }

    fn cross_attention(
        &self,
        heads: Heads,
        rows: &Rows<Self>,
        queries: &Buffer<T>,
        cache: &CrossCache<Self>,
        options: &Buffer<u32>,
        weights: Option<&mut Buffer<f32>>,
        out: &mut Buffer<T>,
    ) -> Result<()> {
        self.cross(heads, rows, (queries, None), cache, options, weights, out)
    }

    fn attend_to_prefix(
        &self,
        scores: Scores<'_, Self>,
        matrix: &Matrix<T>,
        rows: &Rows<Self>,
        x: &Buffer<T>,
        scratch: &mut ProductScratch,
        qkv: &mut Buffer<T>,
        cache: &mut SelfCache<Self>,
        ancestry: &Buffer<u32>,
        out: &mut Buffer<T>,
    ) -> Result<()> {
        let heads = scores.heads;
        if !rows.one_per_beam {
            self.linear(matrix, rows, x, Activation::None, scratch, qkv)?;
            self.store_self(heads, rows, qkv, cache)?;
            return self.self_attention(scores, rows, qkv, cache, ancestry, out);
        }
        self.product(matrix, (rows.bucket, x), scratch, (None, Activation::None), qkv)?;
        let &mut SelfCache { max_len, beam_size, .. } = cache;
        let (qkv, out) = (head(qkv, rows.bucket * 3 * heads.width())?, head_mut(out, rows.bucket * heads.width())?);
        let (rows, ancestry, relative) = (list(rows), ancestry.view(), relative(scores));
        let bias = matrix.bias.as_ref().map(Buffer::view);
        with_cached!(self, cache, view_mut, |keys, values| {
            attention::StoreOwn { rows, qkv, bias, keys, values, max_len, beam_size, ancestry, relative, out }
                .launch(&self.context, heads)
        })
    }

    fn attend_to_source(
        &self,
        heads: Heads,
        matrix: &Matrix<T>,
        rows: &Rows<Self>,
        x: &Buffer<T>,
        scratch: &mut ProductScratch,
        queries: &mut Buffer<T>,
        cache: &CrossCache<Self>,
        options: &Buffer<u32>,
        weights: Option<&mut Buffer<f32>>,
        out: &mut Buffer<T>,
    ) -> Result<()> {
        self.product(matrix, (rows.bucket, x), scratch, (None, Activation::None), queries)?;
        let bias = matrix.bias.as_ref().map(Buffer::view);
        self.cross(heads, rows, (queries, bias), cache, options, weights, out)
    }
}

impl<T: Element> SearchOps for Cuda<T> {
    type SearchScratch = BeamStepScratch;

    fn search_scratch(&self, shape: SessionShape, vocab_size: usize) -> Result<BeamStepScratch> {
        BeamStepScratch::new(&self.context, shape, vocab_size)
    }

    fn start_slots(&self, slots: &[(u32, SlotOptions)], search: &mut Search<Self>) -> Result<()> {
        let (search, scratch, _) = views(search);
        StartSlots { search, scratch, slots }.launch(&self.context)
    }

    fn processors(&self, search: &mut Search<Self>) -> Result<()> {
        let bucket = search.rows.bucket;
        let (views, scratch, controls) = views(search);
        let Controls { always_banned: always, prefixes, sequences } = controls;
        processors::Processors { search: views, scratch, always, prefixes, sequences, bucket }.launch(&self.context)
    }

    fn contrastive(
        &self,
        expert: &Buffer<f32>,
        amateur: &Buffer<f32>,
        scorer: u32,
        search: &mut Search<Self>,
    ) -> Result<()> {
        let (bucket, stride) = (search.rows.bucket, logits_stride(search.vocab_size));
        let prefixes = (!search.prefixes.is_empty()).then(|| (search.prefixes.view(), search.shape.max_len));
        contrastive::Contrastive {
            rows: head(&search.rows.entries, bucket * words::<Row>())?.cast()?,
            count: search.rows.count.view(),
            options: search.options.view().cast()?,
            expert: head(expert, bucket * stride)?,
            amateur: Some(head(amateur, bucket * stride)?),
            out: head_mut(&mut search.ranked, bucket * stride)?,
            normalizers: None,
            eos_id: search.ids.eos_id,
            prefixes,
            scorer,
        }
        .launch(&self.context, search.vocab_size, stride)
    }

    fn ensemble(&self, logits: &[Option<&Buffer<f32>>], search: &mut Search<Self>) -> Result<()> {
        let (bucket, stride) = (search.rows.bucket, logits_stride(search.vocab_size));
        let scorers = std::array::from_fn(|scorer| logits.get(scorer).copied().flatten().map(Buffer::view));
        let (search, scratch, _) = views(search);
        ensemble::Ensemble { search, scratch, scorers, stride, bucket }.launch(&self.context)
    }

    fn repetition_penalty(&self, logits: &Buffer<f32>, search: &mut Search<Self>) -> Result<()> {
        let (bucket, stride) = (search.rows.bucket, logits_stride(search.vocab_size));
        let (search, scratch, _) = views(search);
        processors::RepetitionPenalty { search, scratch, logits: logits.view(), stride, bucket }.launch(&self.context)
    }

    fn beam_step(&self, logits: &Buffer<f32>, attention: &Buffer<f32>, search: &mut Search<Self>) -> Result<()> {
        let bucket = search.rows.bucket.min(search.shape.slots);
        let (search, scratch, _) = views(search);
        let logits_stride = self.logits_stride(search.vocab_size);
        let (logits, attention) = (logits.view(), attention.view());
        BeamStep { search, scratch, logits, logits_stride, attention, bucket }.launch(&self.context)
    }

    fn sample(&self, logits: &Buffer<f32>, search: &mut Search<Self>) -> Result<()> {
        let (vocab_size, rows) = (search.vocab_size, search.rows.bucket);
        let (stride, reserved) = (logits_stride(vocab_size), search.reserved);
        sample::Sample {
            rows: list(&search.rows),
            options: search.options.view(),
            ancestry: search.ancestry.view(),
            logits: head(logits, rows * stride)?,
            ranked: reserved.ranked.then(|| head(&search.ranked, rows * stride)).transpose()?,
            bans: reserved.bans.then(|| head(&search.bans, rows * vocab_size.div_ceil(32))).transpose()?,
            picks: search.picks.view_mut(),
            beam_size: search.shape.beam_size,
            ids: search.ids,
        }
        .launch(&self.context, vocab_size, stride)
    }

    fn token_stats(
        &self,
        rows: &Rows<Self>,
        logits: &Buffer<f32>,
        vocab_size: usize,
        gold: &Buffer<u32>,
        out: &mut Buffer<u32>,
    ) -> Result<()> {
        let stride = logits_stride(vocab_size);
        let words = size_of::<TokenStats>() / size_of::<u32>();
        stats::TokenStatistics {
            rows: list(rows),
            logits: head(logits, rows.bucket * stride)?,
            gold: head(gold, rows.bucket)?,
            out: head_mut(out, rows.bucket * words)?,
        }
        .launch(&self.context, vocab_size, stride)
    }
}
