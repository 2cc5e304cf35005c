//! Op `attention`: encoder self-attention, decoder self-attention through the ancestry table, cross-attention; and the
//! stores that fill their caches. Scaled dot-product attention, Vaswani et al. 2017, eq. 1.

mod attend;

use crate::backend::{CrossCache, Dtype, Heads, Row, Scores, SelfCache, SlotOptions};
use crate::cpu::Cpu;
use crate::cpu::simd;
use attend::{Attention, Positions};

/// What is added to scores by how far the key lies from the query.
#[derive(Clone, Debug)]
pub struct RelativeBias {
    /// `[num_heads, 2 * max_distance + 1]`: by the key's position less the query's, from `-max_distance` on.
    pub values: Vec<f32>,
    /// What lies farther counts as lying so far.
    pub max_distance: usize,
}

impl RelativeBias {
    /// What head `head` adds for a query and a key at these positions.
    fn at(&self, head: usize, query: usize, key: usize) -> f32 {
        let far = self.max_distance;
        let distance = (key + far).saturating_sub(query).min(2 * far);
        self.values[head * (2 * far + 1) + distance]
    }
}

/// The naive computation for one row, in f64: what all three fast paths are held to.
///
/// `query` and `out` `[width]`; `key(t)` and `value(t)` give the rows of the `len` positions attended to; `bias(head, t)` is added
/// to a score. Returns the attention, mean over heads.
pub fn reference<'a>(
    heads: Heads,
    bias: impl Fn(usize, usize) -> f32,
    query: &[f32],
    len: usize,
    key: impl Fn(usize) -> &'a [f32],
    value: impl Fn(usize) -> &'a [f32],
    out: &mut [f32],
) -> Vec<f32> {
    let mut mean = vec![0.0f64; len];
    for h in 0..heads.num_heads {
        let part = h * heads.head_dim..(h + 1) * heads.head_dim;
        let score = |t: usize| {
            let products = query[part.clone()].iter().zip(&key(t)[part.clone()]);
            let product = products.map(|(q, k)| f64::from(*q) * f64::from(*k)).sum::<f64>();
            product * f64::from(heads.scale()) + f64::from(bias(h, t))
        };
        let scores: Vec<f64> = (0..len).map(score).collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
        let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp() / sum).collect();
        for i in part {
            out[i] = (0..len).map(|t| weights[t] * f64::from(value(t)[i])).sum::<f64>() as f32;
        }
        for (m, w) in mean.iter_mut().zip(&weights) {
            *m += w / heads.num_heads as f64;
        }
    }
    mean.iter().map(|m| *m as f32).collect()
}

/// In what the caches hold keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheType {
    /// As they come.
    F32,
    /// Rounded to bf16, two to a word from the front: half of the bytes to read.
    Bf16,
}

impl CacheType {
    /// That of a backend that computes in `dtype`: what rounds its products may round keys and values.
    pub fn of(dtype: Dtype) -> Self {
        if dtype == Dtype::F32 { CacheType::F32 } else { CacheType::Bf16 }
    }

    /// Words of f32 that so many values take.
    pub fn words(self, len: usize) -> usize {
        match self {
            CacheType::F32 => len,
            CacheType::Bf16 => len.div_ceil(2),
        }
    }

    /// Stores one position's `values` at its place, `at` values from the start.
    fn store(self, cache: &mut [f32], at: usize, values: &[f32]) {
        match self {
            CacheType::F32 => cache[at..at + values.len()].copy_from_slice(values),
            CacheType::Bf16 => simd::to_bf16(values, &mut bf16_mut(cache)[at..at + values.len()]),
        }
    }
}

/// A cache that holds bf16.
fn bf16(cache: &[f32]) -> &[u16] {
    bytemuck::cast_slice(cache)
}

fn bf16_mut(cache: &mut [f32]) -> &mut [u16] {
    bytemuck::cast_slice_mut(cache)
}

/// Every row attends to all rows of its own sentence; sentence i is rows `starts[i]..starts[i + 1]`.
///
/// `qkv` `[rows, 3 * width]`, `out` `[rows, width]`.
pub fn encoder_attention(scores: Scores<'_, Cpu>, rows: usize, starts: &[u32], qkv: &[f32], out: &mut [f32]) {
    let (width, positions) = (scores.heads.width(), EncoderPositions { starts, width: scores.heads.width() });
    // Keys and values are behind the queries; where there are no rows, there is nothing.
    let (keys, values) = (&qkv[width.min(qkv.len())..], &qkv[(2 * width).min(qkv.len())..]);
    let cached = CacheType::F32;
    Attention { scores, queries: qkv, query_stride: 3 * width, cached, keys, values, positions }.run(rows, None, out);
}

struct EncoderPositions<'a> {
    starts: &'a [u32],
    width: usize,
}

impl EncoderPositions<'_> {
    /// The sentence of a row.
    fn sentence(&self, row: usize) -> usize {
        self.starts.partition_point(|start| *start as usize <= row) - 1
    }
}

impl Positions for EncoderPositions<'_> {
    fn together(&self, row: usize, other: usize) -> bool {
        self.sentence(row) == self.sentence(other)
    }

    fn places(&self, row: usize, places: &mut Vec<usize>) {
        let sentence = self.sentence(row);
        places.extend((self.starts[sentence]..self.starts[sentence + 1]).map(|row| 3 * row as usize * self.width));
    }

    fn own(&self, row: usize) -> usize {
        row - self.starts[self.sentence(row)] as usize
    }
}

/// Stores the keys and values of `kv` `[rows, 2 * width]` at each row's slot and position.
pub fn store_cross(cached: CacheType, heads: Heads, rows: &[Row], kv: &[f32], cache: &mut CrossCache<Cpu>) {
    let width = heads.width();
    for (row, kv) in rows.iter().zip(kv.chunks_exact(2 * width)) {
        let at = (row.slot as usize * cache.max_src_len + row.position as usize) * width;
        cached.store(&mut cache.keys, at, &kv[..width]);
        cached.store(&mut cache.values, at, &kv[width..]);
    }
}

/// Where a self-attention cache holds one position of one beam.
fn self_offset(cache: &SelfCache<Cpu>, width: usize, slot: usize, position: usize, beam: usize) -> usize {
    ((slot * cache.max_len + position) * cache.beam_size + beam) * width
}

/// Stores the keys and values within `qkv` `[rows, 3 * width]` at each row's slot, position and beam.
pub fn store_self(cached: CacheType, heads: Heads, rows: &[Row], qkv: &[f32], cache: &mut SelfCache<Cpu>) {
    let width = heads.width();
    for (row, qkv) in rows.iter().zip(qkv.chunks_exact(3 * width)) {
        let at = self_offset(cache, width, row.slot as usize, row.position as usize, row.beam as usize);
        cached.store(&mut cache.keys, at, &qkv[width..2 * width]);
        cached.store(&mut cache.values, at, &qkv[2 * width..]);
    }
}

/// Every row attends to its own prefix, its own position included, through `ancestry` `[slots, beam_size, max_len]`.
pub fn self_attention(
    cached: CacheType,
    scores: Scores<'_, Cpu>,
    rows: &[Row],
    qkv: &[f32],
    cache: &SelfCache<Cpu>,
    ancestry: &[u32],
    out: &mut [f32],
) {
    let width = scores.heads.width();
    let (keys, values, positions) = (&cache.keys, &cache.values, SelfPositions { rows, width, cache, ancestry });
    Attention { scores, queries: qkv, query_stride: 3 * width, cached, keys, values, positions }.run(
        rows.len(),
        None,
        out,
    );
}

struct SelfPositions<'a> {
    rows: &'a [Row],
    width: usize,
    cache: &'a SelfCache<Cpu>,
    ancestry: &'a [u32],
}

impl Positions for SelfPositions<'_> {
    fn together(&self, row: usize, other: usize) -> bool {
        let (row, other) = (&self.rows[row], &self.rows[other]);
        (row.slot, row.position) == (other.slot, other.position)
    }

    fn places(&self, row: usize, places: &mut Vec<usize>) {
        let Row { slot, beam, position, .. } = self.rows[row];
        let (slot, beam, position) = (slot as usize, beam as usize, position as usize);
        let SelfCache { beam_size, max_len, .. } = *self.cache;
        let ancestors = &self.ancestry[(slot * beam_size + beam) * max_len..][..position];
        let place = |t, beam| self_offset(self.cache, self.width, slot, t, beam);
        places.extend(ancestors.iter().enumerate().map(|(t, ancestor)| place(t, *ancestor as usize)));
        places.push(place(position, beam));
    }

    fn own(&self, row: usize) -> usize {
        self.rows[row].position as usize
    }
}

/// Every row attends to its slot's source; `weights` `[rows, max_src_len]`, where given, receives the mean over heads.
#[expect(clippy::too_many_arguments, reason = "the op's operands, and how the cache holds them")]
pub fn cross_attention(
    cached: CacheType,
    heads: Heads,
    rows: &[Row],
    queries: &[f32],
    cache: &CrossCache<Cpu>,
    options: &[SlotOptions],
    weights: Option<&mut [f32]>,
    out: &mut [f32],
) {
    let (width, scores) = (heads.width(), Scores { heads, bias: None });
    let (keys, values, max_src_len) = (&cache.keys, &cache.values, cache.max_src_len);
    let positions = CrossPositions { rows, width, max_src_len, options };
    let weights = weights.map(|weights| (weights, max_src_len));
    Attention { scores, queries, query_stride: width, cached, keys, values, positions }.run(rows.len(), weights, out);
}

struct CrossPositions<'a> {
    rows: &'a [Row],
    width: usize,
    max_src_len: usize,
    options: &'a [SlotOptions],
}

impl Positions for CrossPositions<'_> {
    fn together(&self, row: usize, other: usize) -> bool {
        self.rows[row].slot == self.rows[other].slot
    }

    fn places(&self, row: usize, places: &mut Vec<usize>) {
        let slot = self.rows[row].slot as usize;
        places.extend((0..self.options[slot].src_len as usize).map(|t| (slot * self.max_src_len + t) * self.width));
    }

    fn own(&self, row: usize) -> usize {
        self.rows[row].position as usize
    }
}

#[cfg(test)]
mod tests;
