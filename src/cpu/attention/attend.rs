//! The computation of attention: up to four rows of a sentence at a time, so that keys and values that they share are read once.

use std::cell::RefCell;

use super::{CacheType, RelativeBias, bf16};
use crate::backend::{Heads, Scores};
use crate::cpu::simd::lanes::{LANES, Simd, dispatch};
use crate::cpu::simd::{
    Isa, Stored, add_body, add_weighted_body, dot_lanes_body, prefetch, scale_body, softmax_of_each_body,
};
use crate::cpu::{Cpu, for_each_task, for_each_task_pair};

/// What the rows of an op attend to.
pub(super) trait Positions: Sync {
    /// Whether two rows are of one sentence and attend to as many positions.
    fn together(&self, row: usize, other: usize) -> bool;
    /// Appends where the keys and the values of each position begin that a row attends to.
    fn places(&self, row: usize, places: &mut Vec<usize>);
    /// The position of a row itself, from which a relative bias measures.
    fn own(&self, row: usize) -> usize;
}

/// The attention of some rows.
pub(super) struct Attention<'a, P> {
    pub scores: Scores<'a, Cpu>,
    /// `[rows, query_stride]`, each row's query first.
    pub queries: &'a [f32],
    pub query_stride: usize,
    pub cached: CacheType,
    pub keys: &'a [f32],
    pub values: &'a [f32],
    pub positions: P,
}

/// Where what some rows attend to lies.
#[derive(Default)]
struct Places {
    rows: usize,
    len: usize,
    /// `[rows, len]`: where the keys and the values of each row's positions begin.
    at: Vec<usize>,
    /// In so many positions, from the first on, all rows attend to the same.
    shared: usize,
}

impl Places {
    /// Those of the rows from `first` on that are computed together, all before `end`.
    fn find(&mut self, positions: &impl Positions, first: usize, end: usize) {
        let same = (first + 1..end.min(first + 4)).take_while(|row| positions.together(first, *row)).count();
        self.rows = match same {
            _ if first >= end => 0,
            0 => 1,
            1 | 2 => 2,
            _ => 4,
        };
        self.at.clear();
        (first..first + self.rows).for_each(|row| positions.places(row, &mut self.at));
        self.len = self.at.len() / self.rows.max(1);
        let same = |t: &usize| (1..self.rows).all(|row| self.at[row * self.len + t] == self.at[*t]);
        self.shared = (0..self.len).take_while(same).count();
    }

    /// Asks for up to sixteen positions from `first` on, `len` values of each from `from` on.
    #[inline(always)]
    fn prefetch<E>(&self, all: &[E], first: usize, from: usize, len: usize) {
        for row in 0..self.rows {
            let begin = if row == 0 { first } else { first.max(self.shared) };
            for t in begin..self.len.min(first + LANES) {
                prefetch(&all[self.at[row * self.len + t] + from..][..len]);
            }
        }
    }
}

thread_local! {
    /// Attention scores of the rows at hand, `[rows, num_heads, len]`; grows to the longest and stays.
    static SCORES: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    /// The places of the rows at hand, and of those that come next.
    static PLACES: RefCell<[Places; 2]> = RefCell::default();
}

impl<P: Positions> Attention<'_, P> {
    /// Computes all rows of `out` `[rows, width]`, and, where given, of `weights` `[rows, stride]`: the mean over heads.
    pub fn run(&self, rows: usize, weights: Option<(&mut [f32], usize)>, out: &mut [f32]) {
        let width = self.scores.heads.width();
        match weights {
            None => for_each_task(out, width, rows, |first, out| self.run_rows(first, None, out)),
            Some((weights, stride)) => for_each_task_pair(out, width, weights, stride, rows, |first, out, weights| {
                self.run_rows(first, Some((weights, stride)), out);
            }),
        }
    }

    /// Computes the rows of `out` from `first` on.
    fn run_rows(&self, first: usize, mut weights: Option<(&mut [f32], usize)>, out: &mut [f32]) {
        let width = self.scores.heads.width();
        let (mut row, end) = (first, first + out.len() / width);
        PLACES.with_borrow_mut(|[places, next]| {
            places.find(&self.positions, first, end);
            self.prefetch_keys(places);
            while row < end {
                next.find(&self.positions, row + places.rows, end);
                let (done, count) = (row - first, places.rows);
                let out = &mut out[done * width..][..count * width];
                let weights =
                    weights.as_mut().map(|(weights, stride)| &mut weights[done * *stride..][..count * *stride]);
                match count {
                    1 => self.attend::<1>(row, places, next, weights, out),
                    2 => self.attend::<2>(row, places, next, weights, out),
                    _ => self.attend::<4>(row, places, next, weights, out),
                }
                row += count;
                std::mem::swap(places, next);
            }
        });
    }

    /// Asks for the first keys of a task.
    fn prefetch_keys(&self, places: &Places) {
        let width = self.scores.heads.width();
        match self.cached {
            CacheType::F32 => places.prefetch(self.keys, 0, 0, width),
            CacheType::Bf16 => places.prefetch(bf16(self.keys), 0, 0, width),
        }
    }

    fn attend<const N: usize>(
        &self,
        first: usize,
        places: &Places,
        next: &Places,
        weights: Option<&mut [f32]>,
        out: &mut [f32],
    ) {
        let Scores { heads, bias } = self.scores;
        let bias = bias.map(|bias| (bias, std::array::from_fn(|i| self.positions.own(first + i))));
        let queries = std::array::from_fn(|i| &self.queries[(first + i) * self.query_stride..][..heads.width()]);
        let (keys, values) = (self.keys, self.values);
        match self.cached {
            CacheType::F32 => {
                attend(&Attended::<_, N> { heads, bias, queries, keys, values, places, next }, weights, out)
            }
            CacheType::Bf16 => {
                let (keys, values) = (bf16(keys), bf16(values));
                attend(&Attended::<_, N> { heads, bias, queries, keys, values, places, next }, weights, out);
            }
        }
    }
}

/// Some rows that are computed together.
struct Attended<'a, E, const N: usize> {
    heads: Heads,
    /// With the rows' own positions.
    bias: Option<(&'a RelativeBias, [usize; N])>,
    queries: [&'a [f32]; N],
    keys: &'a [E],
    values: &'a [E],
    places: &'a Places,
    /// Those of the rows that come next.
    next: &'a Places,
}

/// Computes `out` `[N, width]` and, where given, `weights` `[N, at least len]`, the mean over heads.
fn attend<E: Stored, const N: usize>(rows: &Attended<'_, E, N>, weights: Option<&mut [f32]>, out: &mut [f32]) {
    SCORES.with_borrow_mut(|scores| {
        let count = N * rows.heads.num_heads * rows.places.len;
        if scores.len() < count {
            scores.resize(count, 0.0);
        }
        attend_on(Isa::best(), rows, &mut scores[..count], weights, out);
    });
}

fn attend_on<E: Stored, const N: usize>(
    isa: Isa,
    rows: &Attended<'_, E, N>,
    scores: &mut [f32],
    weights: Option<&mut [f32]>,
    out: &mut [f32],
) {
    dispatch!(isa, attend_body, [<E: Stored, const N: usize>],
        (rows: &Attended<'_, E, N>, scores: &mut [f32], weights: Option<&mut [f32]>, out: &mut [f32]))
}

#[inline(always)]
fn attend_body<S: Simd, E: Stored, const N: usize>(
    s: S,
    rows: &Attended<'_, E, N>,
    scores: &mut [f32],
    weights: Option<&mut [f32]>,
    out: &mut [f32],
) {
    // Almost all models have heads of 64. A compiler that knows it makes one stretch of each loop over a head.
    match rows.heads.head_dim {
        64 => attend_heads_body(s, rows, 64, scores, weights, out),
        head_dim => attend_heads_body(s, rows, head_dim, scores, weights, out),
    }
}

#[inline(always)]
fn attend_heads_body<S: Simd, E: Stored, const N: usize>(
    s: S,
    rows: &Attended<'_, E, N>,
    head_dim: usize,
    scores: &mut [f32],
    weights: Option<&mut [f32]>,
    out: &mut [f32],
) {
    let (len, num_heads) = (rows.places.len, rows.heads.num_heads);
    // Sixteen positions at a time, as keys and values lie in memory.
    for first in (0..len).step_by(LANES) {
        score_block(s, rows, head_dim, first, scores);
    }
    if let Some((bias, own)) = rows.bias {
        for (i, scores) in scores.chunks_exact_mut(len.max(1)).enumerate() {
            let (row, h) = (i / num_heads, i % num_heads);
            scores.iter_mut().enumerate().for_each(|(t, score)| *score += bias.at(h, own[row], t));
        }
    }
    softmax_of_each_body(s, scores, len);
    out.fill(0.0);
    for first in (0..len).step_by(LANES) {
        weigh_block(s, rows, head_dim, first, scores, out);
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

/// Up to sixteen positions of some rows.
struct Block<'a, E, const N: usize> {
    /// What each row attends to there; for all but the first row, only from `shared` on.
    found: [[&'a [E]; LANES]; N],
    count: usize,
    /// In so many of them, from the first on, all rows attend to the same.
    shared: usize,
}

impl<'a, E, const N: usize> Block<'a, E, N> {
    /// Those of `all`, keys or values, from position `first` on.
    #[inline(always)]
    fn new(all: &'a [E], width: usize, places: &Places, first: usize) -> Self {
        let count = LANES.min(places.len - first);
        let shared = places.shared.saturating_sub(first).min(count);
        let mut found: [[&[E]; LANES]; N] = [[&[]; LANES]; N];
        for (row, found) in found.iter_mut().enumerate() {
            for t in if row == 0 { 0 } else { shared }..count {
                found[t] = &all[places.at[row * places.len + first + t]..][..width];
            }
        }
        Block { found, count, shared }
    }
}

/// The scores of up to sixteen positions from `first` on. The caches of a batch fill more than the processor's first two levels, so what
/// is read next is asked for meanwhile: keys, and after the last of them values.
#[inline(always)]
fn score_block<S: Simd, E: Stored, const N: usize>(
    s: S,
    rows: &Attended<'_, E, N>,
    head_dim: usize,
    first: usize,
    scores: &mut [f32],
) {
    let (heads, places, scale) = (rows.heads, rows.places, s.splat(rows.heads.scale()));
    let (num_heads, len) = (heads.num_heads, places.len);
    let Block { found: keys, count, shared } = Block::<_, N>::new(rows.keys, heads.width(), places, first);
    let (read_next, from) = if first + count < len { (rows.keys, first + count) } else { (rows.values, 0) };
    let mut products = [[s.splat(0.0); LANES]; N];
    for h in 0..num_heads {
        let part = h * head_dim;
        places.prefetch(read_next, from, part, head_dim);
        let mut queries = rows.queries;
        queries.iter_mut().for_each(|query| *query = &query[part..][..head_dim]);
        for t in 0..shared {
            let of_each = dot_lanes_body(s, queries, &keys[0][t][part..][..head_dim]);
            for (row, products) in products.iter_mut().enumerate() {
                products[t] = of_each[row];
            }
        }
        for (row, products) in products.iter_mut().enumerate() {
            for t in shared..count {
                [products[t]] = dot_lanes_body(s, [queries[row]], &keys[row][t][part..][..head_dim]);
            }
            let sums = s.mul(s.sum_lanes_of_each(products), scale);
            s.store_partial(sums, &mut scores[(row * num_heads + h) * len + first..][..count]);
        }
    }
}

/// Adds the values of up to sixteen positions from `first` on, weighted; asks for more of them meanwhile, and after the last for the keys
/// of the next rows.
#[inline(always)]
fn weigh_block<S: Simd, E: Stored, const N: usize>(
    s: S,
    rows: &Attended<'_, E, N>,
    head_dim: usize,
    first: usize,
    scores: &[f32],
    out: &mut [f32],
) {
    let (places, num_heads, width) = (rows.places, rows.heads.num_heads, rows.heads.width());
    let Block { found: values, count, shared } = Block::<_, N>::new(rows.values, width, places, first);
    let more = first + count < places.len;
    for h in 0..num_heads {
        let part = h * head_dim;
        if more {
            places.prefetch(rows.values, first + count, part, head_dim);
        } else {
            rows.next.prefetch(rows.keys, 0, part, head_dim);
        }
        let (mut together, mut apart) = ([&scores[..0]; N], [&scores[..0]; N]);
        for row in 0..N {
            let weights = &scores[(row * num_heads + h) * places.len + first..][..count];
            (together[row], apart[row]) = weights.split_at(shared);
        }
        add_weighted_body(s, together, |t| &values[0][t][part..][..head_dim], head_dim, &mut out[part..], width);
        for (row, values) in values.iter().enumerate() {
            let value = |t: usize| &values[shared + t][part..][..head_dim];
            add_weighted_body(s, [apart[row]], value, head_dim, &mut out[row * width + part..], width);
        }
    }
}
