//! Op `attention`: encoder self-attention, decoder self-attention through the ancestry table, cross-attention; and the
//! stores that fill their caches. Scaled dot-product attention, Vaswani et al. 2017, eq. 1.

use std::cell::RefCell;

use crate::backend::{CrossCache, Dtype, Heads, Row, Scores, SelfCache, SlotOptions};
use crate::cpu::simd::lanes::{LANES, Simd, dispatch};
use crate::cpu::simd::{
    self, Isa, Stored, add_body, add_weighted_body, dot_lanes_body, exp_shift_body, max_body, prefetch, scale_body,
};
use crate::cpu::{Cpu, for_each_row, for_each_task, for_each_task_pair};

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

/// The heads of some rows, and the bias of their scores with the positions of the queries that they are for.
#[derive(Clone, Copy)]
struct Scoring<'a, const N: usize> {
    heads: Heads,
    bias: Option<(&'a RelativeBias, [usize; N])>,
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

thread_local! {
    /// Attention scores of the rows at hand, `[rows, num_heads, len]`; grows to the longest and stays.
    static SCORES: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// The attention of some rows over the same `len` positions; `out` `[N, width]`. `weights` `[N, at least len]`, where given, receives the
/// mean over heads.
fn attend<'a, E: Stored + 'a, const N: usize>(
    scoring: Scoring<'_, N>,
    queries: [&[f32]; N],
    len: usize,
    key: impl Fn(usize) -> &'a [E],
    value: impl Fn(usize) -> &'a [E],
    weights: Option<&mut [f32]>,
    out: &mut [f32],
) {
    SCORES.with_borrow_mut(|scores| {
        let count = N * scoring.heads.num_heads * len;
        if scores.len() < count {
            scores.resize(count, 0.0);
        }
        let rows = Attended { scoring, queries, key, value };
        attend_on(Isa::best(), &rows, &mut scores[..count], len, weights, out);
    });
}

/// What some rows attend to.
struct Attended<'q, K, V, const N: usize> {
    scoring: Scoring<'q, N>,
    queries: [&'q [f32]; N],
    key: K,
    value: V,
}

fn attend_on<'a, E: Stored + 'a, K: Fn(usize) -> &'a [E], V: Fn(usize) -> &'a [E], const N: usize>(
    isa: Isa,
    rows: &Attended<'_, K, V, N>,
    scores: &mut [f32],
    len: usize,
    weights: Option<&mut [f32]>,
    out: &mut [f32],
) {
    dispatch!(isa, attend_body, [<'a, E: Stored + 'a, K: Fn(usize) -> &'a [E], V: Fn(usize) -> &'a [E], const N: usize>],
        (rows: &Attended<'_, K, V, N>, scores: &mut [f32], len: usize, weights: Option<&mut [f32]>, out: &mut [f32]))
}

#[inline(always)]
fn attend_body<'a, S: Simd, E: Stored + 'a, K: Fn(usize) -> &'a [E], V: Fn(usize) -> &'a [E], const N: usize>(
    s: S,
    rows: &Attended<'_, K, V, N>,
    scores: &mut [f32],
    len: usize,
    weights: Option<&mut [f32]>,
    out: &mut [f32],
) {
    let Scoring { heads, bias } = rows.scoring;
    let Heads { num_heads, head_dim, .. } = heads;
    let scale = s.splat(heads.scale());
    let mut products = [[s.splat(0.0); LANES]; N];
    // Sixteen positions at a time, as keys and values lie in memory.
    for first in (0..len).step_by(LANES) {
        let count = LANES.min(len - first);
        let keys = gather(&rows.key, first, count);
        // All that the block needs is asked for at once; the caches of a batch fill more than the processor's first two levels.
        keys[..count].iter().for_each(|key| prefetch(key));
        (first..first + count).for_each(|t| prefetch((rows.value)(t)));
        for h in 0..num_heads {
            let part = h * head_dim..(h + 1) * head_dim;
            let queries = rows.queries.map(|query| &query[part.clone()]);
            for (t, key) in keys[..count].iter().enumerate() {
                let of_each = dot_lanes_body(s, queries, &key[part.clone()]);
                for (row, products) in products.iter_mut().enumerate() {
                    products[t] = of_each[row];
                }
            }
            for (row, products) in products.iter().enumerate() {
                let sums = s.mul(s.sum_lanes_of_each(products), scale);
                s.store_partial(sums, &mut scores[(row * num_heads + h) * len + first..][..count]);
            }
        }
    }
    for (i, scores) in scores.chunks_exact_mut(len.max(1)).enumerate() {
        if let Some((bias, queries)) = bias {
            let (row, h) = (i / num_heads, i % num_heads);
            scores.iter_mut().enumerate().for_each(|(t, score)| *score += bias.at(h, queries[row], t));
        }
        let max = max_body(s, scores);
        let sum = exp_shift_body(s, scores, max);
        scale_body(s, scores, 1.0 / sum);
    }
    let width = heads.width();
    out.fill(0.0);
    for first in (0..len).step_by(LANES) {
        let count = LANES.min(len - first);
        let values = gather(&rows.value, first, count);
        for h in 0..num_heads {
            let part = h * head_dim..(h + 1) * head_dim;
            let mut weights = [&scores[..0]; N];
            for (row, weights) in weights.iter_mut().enumerate() {
                *weights = &scores[(row * num_heads + h) * len + first..][..count];
            }
            add_weighted_body(s, weights, |t| &values[t][part.clone()], head_dim, &mut out[part.start..], width);
        }
    }
    if let Some(weights) = weights {
        let stride = weights.len() / N;
        for (row, weights) in weights.chunks_exact_mut(stride.max(1)).enumerate() {
            weights.fill(0.0);
            for h in 0..num_heads {
                add_body(s, &mut weights[..len], &scores[(row * num_heads + h) * len..][..len]);
            }
            scale_body(s, &mut weights[..len], 1.0 / num_heads as f32);
        }
    }
}

/// Attention of which some rows may attend to the same positions.
trait Attention: Sync {
    /// Whether two rows attend to the same positions.
    fn same(&self, row: usize, other: usize) -> bool;
    /// Computes N rows from `first` on, which attend to the same positions; their weights, where asked for, are the mean over heads.
    fn attend<const N: usize>(&self, first: usize, weights: Option<&mut [f32]>, out: &mut [f32]);
}

/// Computes all rows of `out` `[rows, width]`, and of `weights`, where given.
fn attend_all(
    attention: &impl Attention,
    rows: usize,
    width: usize,
    weights: Option<(&mut [f32], usize)>,
    out: &mut [f32],
) {
    match weights {
        None => for_each_task(out, width, rows, |first, out| attend_together(attention, first, width, None, out)),
        Some((weights, stride)) => for_each_task_pair(out, width, weights, stride, rows, |first, out, weights| {
            attend_together(attention, first, width, Some((weights, stride)), out);
        }),
    }
}

/// Computes the rows of `out` from `first` on, those with the same positions four or two at a time: their keys and values are read once.
fn attend_together(
    attention: &impl Attention,
    first: usize,
    width: usize,
    mut weights: Option<(&mut [f32], usize)>,
    out: &mut [f32],
) {
    let (mut done, rows) = (0, out.len() / width);
    while done < rows {
        let (row, out) = (first + done, &mut out[done * width..]);
        let weights = weights.as_mut().map(|(weights, stride)| (&mut weights[done * *stride..], *stride));
        let same = (1..4.min(rows - done)).take_while(|next| attention.same(row, row + next)).count();
        done += match same {
            0 => attend_some::<1>(attention, row, width, weights, out),
            1 | 2 => attend_some::<2>(attention, row, width, weights, out),
            _ => attend_some::<4>(attention, row, width, weights, out),
        };
    }
}

fn attend_some<const N: usize>(
    attention: &impl Attention,
    row: usize,
    width: usize,
    weights: Option<(&mut [f32], usize)>,
    out: &mut [f32],
) -> usize {
    attention.attend::<N>(row, weights.map(|(weights, stride)| &mut weights[..N * stride]), &mut out[..N * width]);
    N
}

/// What `at` gives for `count` positions from `first` on.
#[inline(always)]
fn gather<'a, E>(at: &impl Fn(usize) -> &'a [E], first: usize, count: usize) -> [&'a [E]; LANES] {
    let mut found: [&[E]; LANES] = [&[]; LANES];
    for (t, found) in found[..count].iter_mut().enumerate() {
        *found = at(first + t);
    }
    found
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
    attend_all(&EncoderAttention { scores, starts, qkv }, rows, scores.heads.width(), None, out);
}

struct EncoderAttention<'a> {
    scores: Scores<'a, Cpu>,
    starts: &'a [u32],
    qkv: &'a [f32],
}

impl EncoderAttention<'_> {
    /// The sentence of a row.
    fn sentence(&self, row: usize) -> usize {
        self.starts.partition_point(|start| *start as usize <= row) - 1
    }

    /// Queries, keys or values of a row.
    fn part(&self, row: usize, which: usize) -> &[f32] {
        let width = self.scores.heads.width();
        &self.qkv[(3 * row + which) * width..][..width]
    }
}

impl Attention for EncoderAttention<'_> {
    fn same(&self, row: usize, other: usize) -> bool {
        self.sentence(row) == self.sentence(other)
    }

    fn attend<const N: usize>(&self, first: usize, _: Option<&mut [f32]>, out: &mut [f32]) {
        let sentence = self.sentence(first);
        let start = self.starts[sentence] as usize;
        let len = self.starts[sentence + 1] as usize - start;
        let Scores { heads, bias } = self.scores;
        let rows: [usize; N] = std::array::from_fn(|i| first + i);
        let scoring = Scoring { heads, bias: bias.map(|bias| (bias, rows.map(|row| row - start))) };
        let (key, value) = (|t| self.part(start + t, 1), |t| self.part(start + t, 2));
        attend(scoring, rows.map(|row| self.part(row, 0)), len, key, value, None, out);
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
    let Scores { heads, bias } = scores;
    let width = heads.width();
    for_each_row(out, width, rows.len(), |r, out| {
        let Row { slot, beam, position, .. } = rows[r];
        let (slot, beam, position) = (slot as usize, beam as usize, position as usize);
        let ancestry = &ancestry[(slot * cache.beam_size + beam) * cache.max_len..][..cache.max_len];
        let at = |t: usize| {
            let beam = if t == position { beam } else { ancestry[t] as usize };
            self_offset(cache, width, slot, t, beam)
        };
        let query = &qkv[3 * r * width..][..width];
        let (len, scoring) = (position + 1, Scoring { heads, bias: bias.map(|bias| (bias, [position])) });
        match cached {
            CacheType::F32 => {
                let (key, value) = (|t| &cache.keys[at(t)..][..width], |t| &cache.values[at(t)..][..width]);
                attend(scoring, [query], len, key, value, None, out);
            }
            CacheType::Bf16 => {
                let (keys, values) = (bf16(&cache.keys), bf16(&cache.values));
                attend(scoring, [query], len, |t| &keys[at(t)..][..width], |t| &values[at(t)..][..width], None, out);
            }
        }
    });
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
    let attention = CrossAttention { cached, heads, rows, queries, cache, options };
    let weights = weights.map(|weights| (weights, cache.max_src_len));
    attend_all(&attention, rows.len(), heads.width(), weights, out);
}

struct CrossAttention<'a> {
    cached: CacheType,
    heads: Heads,
    rows: &'a [Row],
    queries: &'a [f32],
    cache: &'a CrossCache<Cpu>,
    options: &'a [SlotOptions],
}

impl Attention for CrossAttention<'_> {
    fn same(&self, row: usize, other: usize) -> bool {
        self.rows[row].slot == self.rows[other].slot
    }

    fn attend<const N: usize>(&self, first: usize, weights: Option<&mut [f32]>, out: &mut [f32]) {
        let (cache, width) = (self.cache, self.heads.width());
        let slot = self.rows[first].slot as usize;
        let len = self.options[slot].src_len as usize;
        let at = |t: usize| (slot * cache.max_src_len + t) * width;
        let queries = std::array::from_fn::<_, N, _>(|i| &self.queries[(first + i) * width..][..width]);
        let scoring = Scoring { heads: self.heads, bias: None };
        match self.cached {
            CacheType::F32 => {
                let (key, value) = (|t| &cache.keys[at(t)..][..width], |t| &cache.values[at(t)..][..width]);
                attend(scoring, queries, len, key, value, weights, out);
            }
            CacheType::Bf16 => {
                let (keys, values) = (bf16(&cache.keys), bf16(&cache.values));
                attend(scoring, queries, len, |t| &keys[at(t)..][..width], |t| &values[at(t)..][..width], weights, out);
            }
        }
    }
}

#[cfg(test)]
mod tests;
