//! The CPU backend: one file per op, each with a naive `reference` and the fast path.
//!
//! Only live rows are computed. Every row's result is computed from that row alone, in an order of operations that depends on
//! neither the number of rows nor the number of threads, so a sentence gets the same bits in any batch.

pub mod attention;
pub mod beam_step;
pub mod checksum;
pub mod contrastive;
pub mod embedding;
pub mod ensemble;
pub mod gate;
pub mod gemm;
pub mod layer_norm;
pub mod linear;
pub mod loss;
pub mod philox;
mod pool;
pub mod portable_math;
pub mod processors;
pub mod risk;
pub mod sample;
pub mod scheduled_sampling;
pub mod simd;
pub mod stats;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;

use crate::backend::{
    Activation, CrossCache, Device, Dtype, Heads, NetworkOps, NormKind, Row, Rows, Scores, Search, SearchOps,
    SelfCache, SessionShape, SlotOptions, StepKey, TokenStats, Value, WeightRows,
};
use crate::error::room;
use crate::{Error, Result};
use attention::CacheType;
use gemm::Refused;
pub use gemm::{PATH_VARIABLE, Path};

/// The CPU and its thread pool.
#[derive(Debug)]
pub struct Cpu {
    pool: Arc<pool::Pool>,
    dtype: Dtype,
    /// Bytes that the buffers of a session may take.
    limit: Option<u64>,
    /// Bytes counted instead of allocated, where nothing is to be computed.
    counted: Option<AtomicU64>,
}

impl Cpu {
    /// A backend with `threads` threads of its own (0 takes one per core) that computes linear layers in `dtype`.
    ///
    /// # Errors
    /// [`Error::Option`] for a type that the CPU does not compute in, or a choice of [`Path`] that cannot be followed here;
    /// [`Error::Device`] if the threads cannot be started.
    pub fn new(threads: usize, dtype: Dtype) -> Result<Self> {
        Self::on(|| pool::Pool::start(threads), dtype)
    }

    /// As [`Cpu::new`], with threads that all backends at this place with as many threads share, in turns.
    ///
    /// # Errors
    /// As [`Cpu::new`].
    pub fn shared(place: usize, threads: usize, dtype: Dtype) -> Result<Self> {
        Self::on(|| pool::Pool::shared(place, threads), dtype)
    }

    fn on(pool: impl FnOnce() -> Result<Arc<pool::Pool>>, dtype: Dtype) -> Result<Self> {
        if dtype == Dtype::F16 {
            let (expected, got) = ("f32, bf16 or i8 on the CPU".to_owned(), dtype.name().to_owned());
            return Err(Error::Option { option: "dtype", expected, got });
        }
        chosen_path()?;
        Ok(Cpu { pool: pool()?, dtype, limit: None, counted: None })
    }

    /// Lets the buffers of a session take no more than `bytes`.
    #[must_use]
    pub fn with_limit(self, bytes: u64) -> Self {
        Cpu { limit: Some(bytes), ..self }
    }

    /// Makes sure that there is room for a matrix.
    fn require(&self, out_dim: usize, in_dim: usize) -> Result<()> {
        // Packed, and on the way there in whole panels.
        let packed = out_dim.saturating_add(64).saturating_mul(in_dim).saturating_mul(self.dtype.size());
        room::require("pack weights", packed.saturating_add(16 * (out_dim + in_dim)))
    }

    /// Threads that compute.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }
}

/// The instructions that the CPU computes with: those of the path that [`PATH_VARIABLE`] names, or the best.
///
/// # Errors
/// [`Error::Option`] if the variable names no path that can be used here.
pub fn chosen_path() -> Result<Path> {
    Path::chosen().map_err(|Refused { expected, got }| Error::Option { option: PATH_VARIABLE, expected, got })
}

impl Rows<Cpu> {
    /// The live rows.
    #[inline]
    pub fn live(&self) -> &[Row] {
        &bytemuck::cast_slice(&self.entries)[..self.count[0] as usize]
    }
}

/// Rows that one task takes: fewer cost more in handing out than they gain.
const ROWS_PER_TASK: usize = 8;

/// Calls `work(row index, output row)` for each of the first `rows` rows of `out`, spread over the pool's threads.
fn for_each_row(out: &mut [f32], width: usize, rows: usize, work: impl Fn(usize, &mut [f32]) + Sync) {
    for_each_task(out, width, rows, |first, out| {
        for (i, out) in out.chunks_exact_mut(width).enumerate() {
            work(first + i, out);
        }
    });
}

/// As [`for_each_row`], with all rows that a task computes, from the first one on.
fn for_each_task(out: &mut [f32], width: usize, rows: usize, work: impl Fn(usize, &mut [f32]) + Sync) {
    let out = &mut out[..rows * width];
    if rows <= ROWS_PER_TASK || rayon::current_num_threads() == 1 {
        work(0, out);
    } else {
        out.par_chunks_mut(width * ROWS_PER_TASK).enumerate().for_each(|(task, out)| work(task * ROWS_PER_TASK, out));
    }
}

/// [`for_each_task`] over two outputs at once.
fn for_each_task_pair(
    a: &mut [f32],
    a_width: usize,
    b: &mut [f32],
    b_width: usize,
    rows: usize,
    work: impl Fn(usize, &mut [f32], &mut [f32]) + Sync,
) {
    let (a, b) = (&mut a[..rows * a_width], &mut b[..rows * b_width]);
    if rows <= ROWS_PER_TASK || rayon::current_num_threads() == 1 {
        work(0, a, b);
    } else {
        a.par_chunks_mut(a_width * ROWS_PER_TASK)
            .zip(b.par_chunks_mut(b_width * ROWS_PER_TASK))
            .enumerate()
            .for_each(|(task, (a, b))| work(task * ROWS_PER_TASK, a, b));
    }
}

impl Device for Cpu {
    type Buffer<V: Value> = Vec<V>;
    type GraphCache = ();
    type Readback = Vec<u32>;

    const READBACK_DEPTH: usize = 0;

    fn replay_or_record(&self, (): &mut (), _: StepKey, enqueue: impl FnOnce() -> Result<()>) -> Result<()> {
        enqueue()
    }

    fn dry(&self) -> Option<Self> {
        let (pool, counted) = (self.pool.clone(), Some(AtomicU64::new(0)));
        Some(Cpu { pool, limit: None, counted, ..*self })
    }

    fn allocated(&self) -> u64 {
        self.counted.as_ref().map_or(0, |counted| counted.load(Ordering::Relaxed))
    }

    fn free_memory(&self) -> Result<Option<u64>> {
        Ok(self.limit)
    }

    fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.pool.run(work)
    }

    fn is_wanted(&self) -> bool {
        self.pool.is_wanted()
    }

    fn zeros<V: Value>(&self, len: usize) -> Result<Vec<V>> {
        let Some(counted) = &self.counted else { return room::zeros("allocate", len) };
        counted.fetch_add(len.saturating_mul(size_of::<V>()) as u64, Ordering::Relaxed);
        Ok(Vec::new())
    }

    fn write<V: Value>(&self, to: &mut Vec<V>, offset: usize, values: &[V]) -> Result<()> {
        to[offset..offset + values.len()].copy_from_slice(values);
        Ok(())
    }

    fn read<V: Value>(&self, from: &Vec<V>, offset: usize, values: &mut [V]) -> Result<()> {
        values.copy_from_slice(&from[offset..offset + values.len()]);
        Ok(())
    }

    fn enqueue_read<V: Value>(
        &self,
        from: &Vec<V>,
        range: Range<usize>,
        to: &mut Vec<u32>,
        offset: usize,
    ) -> Result<()> {
        let bits: &[u32] = bytemuck::cast_slice(&from[range]);
        to[offset..offset + bits.len()].copy_from_slice(bits);
        Ok(())
    }

    fn readback(&self, words: usize) -> Result<Vec<u32>> {
        self.zeros(words)
    }

    fn wait_readback(&self, readback: &Vec<u32>, words: &mut [u32]) -> Result<()> {
        words.copy_from_slice(&readback[..words.len()]);
        Ok(())
    }
}

impl NetworkOps for Cpu {
    type Tensor = Vec<f32>;
    type Matrix = linear::Matrix;
    type Norm = layer_norm::Norm;
    type Embedding = embedding::Embedding;
    type Positions = embedding::Positions;
    type RelativeBias = attention::RelativeBias;
    type ProductScratch = gemm::RowScratch;

    fn tensor(&self, len: usize) -> Result<Vec<f32>> {
        self.zeros(len)
    }

    fn cache(&self, len: usize) -> Result<Vec<f32>> {
        self.zeros(CacheType::of(self.dtype).words(len))
    }

    // It grows with the first products, which few sessions have as large as they might.
    fn product_scratch(&self, _rows: usize, _widest: usize) -> Result<gemm::RowScratch> {
        Ok(gemm::RowScratch::default())
    }

    fn matrix(&self, weights: &[f32], bias: Option<&[f32]>, out_dim: usize, in_dim: usize) -> Result<linear::Matrix> {
        self.require(out_dim, in_dim)?;
        Ok(linear::Matrix::new(weights, bias, out_dim, in_dim, self.dtype))
    }

    fn matrix_of_rows(
        &self,
        weights: &WeightRows<'_>,
        bias: Option<&[f32]>,
        out_dim: usize,
        in_dim: usize,
    ) -> Result<linear::Matrix> {
        self.require(out_dim, in_dim)?;
        linear::Matrix::of_rows(weights, bias, out_dim, in_dim, self.dtype)
    }

    fn norm(&self, kind: NormKind, gain: &[f32], bias: Option<&[f32]>, eps: f32) -> Result<layer_norm::Norm> {
        let copy = |values| room::copy("load weights", values);
        let bias = bias.map_or_else(|| Ok(vec![0.0; gain.len()]), copy)?;
        Ok(layer_norm::Norm { kind, gain: copy(gain)?, bias, eps })
    }

    fn layout(&self) -> Option<&'static str> {
        linear::layout(self.dtype)
    }

    fn matrix_parts<'a>(&self, matrix: &'a linear::Matrix) -> Vec<&'a [u8]> {
        matrix.parts()
    }

    fn matrix_of_parts(
        &self,
        out_dim: usize,
        in_dim: usize,
        biased: bool,
        fill: &mut dyn FnMut(&mut [u8]) -> Result<()>,
    ) -> Result<Option<linear::Matrix>> {
        if self.layout().is_none() {
            return Ok(None);
        }
        self.require(out_dim, in_dim)?;
        let mut matrix = linear::Matrix::zeroed(out_dim, in_dim, biased, self.dtype);
        matrix.parts_mut().into_iter().try_for_each(fill)?;
        Ok(Some(matrix))
    }

    fn embeddings(&self, tokens: &[f32], scale: f32, width: usize) -> Result<embedding::Embedding> {
        let tokens = embedding::Tokens::Own(room::copy("load weights", tokens)?);
        Ok(embedding::Embedding { tokens, scale, width })
    }

    fn tied_embeddings(&self, product: &Arc<linear::Matrix>, scale: f32, width: usize) -> Result<embedding::Embedding> {
        Ok(embedding::Embedding { tokens: embedding::Tokens::Product(product.clone()), scale, width })
    }

    fn positions(
        &self,
        len: usize,
        width: usize,
        pad_id: Option<u32>,
        values: impl FnOnce() -> Vec<f32>,
    ) -> Result<embedding::Positions> {
        let mut table = self.zeros(len * width)?;
        if self.counted.is_none() {
            table = values();
        }
        Ok(embedding::Positions { table, pad_id })
    }

    fn relative_bias(&self, values: &[f32], _heads: usize, max_distance: usize) -> Result<attention::RelativeBias> {
        Ok(attention::RelativeBias { values: values.to_vec(), max_distance })
    }

    fn embedding(
        &self,
        table: &embedding::Embedding,
        positions: Option<&embedding::Positions>,
        rows: &Rows<Self>,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        embedding::embedding(table, positions, rows.live(), out);
        Ok(())
    }

    fn linear(
        &self,
        matrix: &linear::Matrix,
        rows: &Rows<Self>,
        x: &Vec<f32>,
        activation: Activation,
        scratch: &mut gemm::RowScratch,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        linear::linear(matrix, rows.live().len(), x, activation, scratch, out);
        Ok(())
    }

    fn gate(
        &self,
        width: usize,
        rows: &Rows<Self>,
        both: &Vec<f32>,
        activation: Activation,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        gate::gate(activation, width, rows.live().len(), both, out);
        Ok(())
    }

    fn logits(
        &self,
        matrix: &linear::Matrix,
        rows: &Rows<Self>,
        x: &Vec<f32>,
        scratch: &mut gemm::RowScratch,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        linear::linear(matrix, rows.live().len(), x, Activation::None, scratch, out);
        Ok(())
    }

    fn layer_norm(
        &self,
        norm: &layer_norm::Norm,
        rows: &Rows<Self>,
        delta: Option<&Vec<f32>>,
        sum: Option<&mut Vec<f32>>,
        x: &mut Vec<f32>,
    ) -> Result<()> {
        layer_norm::layer_norm(norm, rows.live().len(), delta.map(|d| &d[..]), sum.map(|s| &mut s[..]), x);
        Ok(())
    }

    fn encoder_attention(
        &self,
        scores: Scores<'_, Self>,
        rows: &Rows<Self>,
        starts: &Vec<u32>,
        sentences: usize,
        qkv: &Vec<f32>,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        attention::encoder_attention(scores, rows.live().len(), &starts[..=sentences], qkv, out);
        Ok(())
    }

    fn store_cross(&self, heads: Heads, rows: &Rows<Self>, kv: &Vec<f32>, cache: &mut CrossCache<Self>) -> Result<()> {
        attention::store_cross(CacheType::of(self.dtype), heads, rows.live(), kv, cache);
        Ok(())
    }

    fn store_self(&self, heads: Heads, rows: &Rows<Self>, qkv: &Vec<f32>, cache: &mut SelfCache<Self>) -> Result<()> {
        attention::store_self(CacheType::of(self.dtype), heads, rows.live(), qkv, cache);
        Ok(())
    }

    fn self_attention(
        &self,
        scores: Scores<'_, Self>,
        rows: &Rows<Self>,
        qkv: &Vec<f32>,
        cache: &SelfCache<Self>,
        ancestry: &Vec<u32>,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        attention::self_attention(CacheType::of(self.dtype), scores, rows.live(), qkv, cache, ancestry, out);
        Ok(())
    }

    fn cross_attention(
        &self,
        heads: Heads,
        rows: &Rows<Self>,
        queries: &Vec<f32>,
        cache: &CrossCache<Self>,
        options: &Vec<u32>,
        weights: Option<&mut Vec<f32>>,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        attention::cross_attention(
            CacheType::of(self.dtype),
            heads,
            rows.live(),
            queries,
            cache,
            bytemuck::cast_slice(options),
            weights.map(|w| &mut w[..]),
            out,
        );
        Ok(())
    }
}

impl SearchOps for Cpu {
    type SearchScratch = beam_step::Scratch;

    fn search_scratch(&self, shape: SessionShape, _vocab_size: usize) -> Result<beam_step::Scratch> {
        room::require("allocate", beam_step::Scratch::bytes(shape))?;
        Ok(beam_step::Scratch::new(shape))
    }

    fn start_slots(&self, slots: &[(u32, SlotOptions)], search: &mut Search<Self>) -> Result<()> {
        beam_step::start_slots(slots, search);
        Ok(())
    }

    fn processors(&self, search: &mut Search<Self>) -> Result<()> {
        processors::processors(search);
        Ok(())
    }

    fn contrastive(&self, expert: &Vec<f32>, amateur: &Vec<f32>, scorer: u32, search: &mut Search<Self>) -> Result<()> {
        contrastive::contrast_scorer(expert, amateur, scorer, search);
        Ok(())
    }

    fn ensemble(&self, scorers: &[Option<&Vec<f32>>], search: &mut Search<Self>) -> Result<()> {
        ensemble::ensemble(scorers, search);
        Ok(())
    }

    fn repetition_penalty(&self, logits: &Vec<f32>, search: &mut Search<Self>) -> Result<()> {
        processors::repetition_penalty(logits, search);
        Ok(())
    }

    fn beam_step(&self, logits: &Vec<f32>, attention: &Vec<f32>, search: &mut Search<Self>) -> Result<()> {
        beam_step::beam_step(logits, attention, search);
        Ok(())
    }

    fn sample(&self, logits: &Vec<f32>, search: &mut Search<Self>) -> Result<()> {
        let step = sample::Step {
            rows: search.rows.live(),
            options: bytemuck::cast_slice(&search.options),
            ancestry: &search.ancestry,
            logits,
            ranked: &search.ranked,
            bans: &search.bans,
            vocab_size: search.vocab_size,
            stride: self.logits_stride(search.vocab_size),
            beam_size: search.shape.beam_size,
            max_len: search.shape.max_len,
            ids: search.ids,
        };
        sample::sample(&step, bytemuck::cast_slice_mut(&mut search.picks));
        Ok(())
    }

    fn token_stats(
        &self,
        rows: &Rows<Self>,
        logits: &Vec<f32>,
        vocab_size: usize,
        gold: &Vec<u32>,
        out: &mut Vec<u32>,
    ) -> Result<()> {
        let count = rows.live().len();
        let words = std::mem::size_of::<TokenStats>() / std::mem::size_of::<u32>();
        stats::token_stats(logits, vocab_size, &gold[..count], bytemuck::cast_slice_mut(&mut out[..count * words]));
        Ok(())
    }
}
