//! Attention over sentences side by side, without padding, with its gradient. Probabilities are computed again on the way back
//! instead of being kept.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::ops::Drop;
use super::real::{Real, by_dtype, storage, tensor, values, with_values};
use crate::backend::Heads;

/// Which rows attend to which.
#[derive(Clone, Debug)]
pub(super) struct Attention {
    pub heads: Heads,
    /// Whether a token sees only the tokens up to itself.
    pub causal: bool,
    /// First row of each querying sentence, and the end of the last.
    pub queries: Arc<[usize]>,
    /// First row of each sentence that is attended to, and the end of the last.
    pub keys: Arc<[usize]>,
    /// For each querying sentence the one that it attends to; never falls.
    pub key_of: Arc<[usize]>,
    /// What drops weights.
    pub drop: Option<Drop>,
}

/// Columns `offset..offset + width` of rows `stride` apart.
#[derive(Clone, Copy)]
struct View<'a, T> {
    values: &'a [T],
    stride: usize,
    offset: usize,
}

impl<'a, T> View<'a, T> {
    fn head(&self, row: usize, head: usize, head_dim: usize) -> &'a [T] {
        &self.values[row * self.stride + self.offset + head * head_dim..][..head_dim]
    }
}

/// Queries, keys and values.
#[derive(Clone, Copy)]
struct Inputs<'a, T> {
    query: View<'a, T>,
    key: View<'a, T>,
    value: View<'a, T>,
}

impl<'a, T> Inputs<'a, T> {
    /// From one product `[rows, 3 * width]`.
    fn own(qkv: &'a [T], width: usize) -> Self {
        let view = |part: usize| View { values: qkv, stride: 3 * width, offset: part * width };
        Inputs { query: view(0), key: view(1), value: view(2) }
    }

    /// From queries `[rows, width]` and one product `[source rows, 2 * width]`.
    fn cross(query: &'a [T], kv: &'a [T], width: usize) -> Self {
        let view = |part: usize| View { values: kv, stride: 2 * width, offset: part * width };
        Inputs { query: View { values: query, stride: width, offset: 0 }, key: view(0), value: view(1) }
    }
}

/// The gradients of queries, keys and values, `[rows, width]` each.
struct Gradients<T> {
    query: Vec<T>,
    key: Vec<T>,
    value: Vec<T>,
}

/// Splits a slice into consecutive parts of the given lengths.
fn split<T>(mut rest: &mut [T], lengths: impl Iterator<Item = usize>) -> Vec<&mut [T]> {
    let mut parts = Vec::new();
    for length in lengths {
        let (part, after) = rest.split_at_mut(length);
        parts.push(part);
        rest = after;
    }
    parts
}

impl Attention {
    fn query_rows(&self, sentence: usize) -> Range<usize> {
        self.queries[sentence]..self.queries[sentence + 1]
    }

    fn key_rows(&self, sentence: usize) -> Range<usize> {
        self.keys[sentence]..self.keys[sentence + 1]
    }

    /// The probabilities with which `row` of a querying sentence attends to the rows from `keys.start` on.
    fn probabilities<T: Real>(
        &self,
        inputs: Inputs<'_, T>,
        row: usize,
        head: usize,
        keys: Range<usize>,
        out: &mut Vec<T>,
    ) {
        let head_dim = self.heads.head_dim;
        let scale = T::from_f64(f64::from(self.heads.scale()));
        let query = inputs.query.head(row, head, head_dim);
        out.clear();
        out.extend(keys.map(|key| T::dot(query, inputs.key.head(key, head, head_dim)) * scale));
        let max = T::largest(out);
        let sum = T::exp_shift(out, max);
        out.iter_mut().for_each(|p| *p /= sum);
    }

    fn drop_weights<T: Real>(&self, row: usize, head: usize, weights: &mut [T]) {
        if let Some(drop) = &self.drop {
            drop.weights(row, head, weights);
        }
    }

    /// The rows that `row` sees.
    fn seen(&self, sentence: usize, row: usize) -> Range<usize> {
        let keys = self.key_rows(self.key_of[sentence]);
        let end = if self.causal { keys.start + row - self.queries[sentence] + 1 } else { keys.end };
        keys.start..end
    }

    fn forward<T: Real>(&self, inputs: Inputs<'_, T>) -> Vec<T> {
        let (width, head_dim) = (self.heads.width(), self.heads.head_dim);
        let sentences = self.queries.len() - 1;
        let mut out = vec![T::ZERO; self.queries[sentences] * width];
        let parts = split(&mut out, (0..sentences).map(|s| self.query_rows(s).len() * width));
        parts.into_par_iter().enumerate().for_each(|(sentence, out)| {
            let mut probabilities = Vec::new();
            for (row, out) in self.query_rows(sentence).zip(out.chunks_exact_mut(width)) {
                for (head, out) in out.chunks_exact_mut(head_dim).enumerate() {
                    let keys = self.seen(sentence, row);
                    self.probabilities(inputs, row, head, keys.clone(), &mut probabilities);
                    self.drop_weights(row, head, &mut probabilities);
                    for (key, p) in keys.zip(&probabilities) {
                        T::axpy(*p, inputs.value.head(key, head, head_dim), out);
                    }
                }
            }
        });
        out
    }

    fn backward<T: Real>(&self, inputs: Inputs<'_, T>, gradient: &[T]) -> Gradients<T> {
        let width = self.heads.width();
        let (sentences, groups) = (self.queries.len() - 1, self.keys.len() - 1);
        let zeros = |starts: &[usize]| vec![T::ZERO; starts[starts.len() - 1] * width];
        let mut sums = Gradients { query: zeros(&self.queries), key: zeros(&self.keys), value: zeros(&self.keys) };
        // The querying sentences of each group, which share its keys.
        let first = |group: usize| self.key_of.partition_point(|key| *key < group);
        let querying = |group: usize| first(group)..first(group + 1);
        let query_rows = |group: usize| {
            let sentences = querying(group);
            self.queries[sentences.end.min(self.queries.len() - 1)] - self.queries[sentences.start]
        };
        debug_assert!(self.key_of.len() == sentences && self.key_of.is_sorted());
        let queries = split(&mut sums.query, (0..groups).map(|g| query_rows(g) * width));
        let keys = split(&mut sums.key, (0..groups).map(|g| self.key_rows(g).len() * width));
        let values = split(&mut sums.value, (0..groups).map(|g| self.key_rows(g).len() * width));
        let parts = queries.into_par_iter().zip(keys).zip(values).enumerate();
        parts.for_each(|(group, ((query, key), value))| {
            for sentence in querying(group) {
                let first_row = self.queries[querying(group).start];
                self.sentence_backward(inputs, gradient, sentence, first_row, [query, key, value]);
            }
        });
        sums
    }

    /// Adds one querying sentence's gradients: to its queries, whose slice starts at `first_row`, and to its group's keys and
    /// values.
    fn sentence_backward<T: Real>(
        &self,
        inputs: Inputs<'_, T>,
        gradient: &[T],
        sentence: usize,
        first_row: usize,
        [to_query, to_key, to_value]: [&mut [T]; 3],
    ) {
        let Heads { num_heads, head_dim } = self.heads;
        let width = self.heads.width();
        let scale = T::from_f64(f64::from(self.heads.scale()));
        let (mut probabilities, mut kept, mut slopes) = (Vec::new(), Vec::new(), Vec::new());
        for row in self.query_rows(sentence) {
            for head in 0..num_heads {
                let keys = self.seen(sentence, row);
                self.probabilities(inputs, row, head, keys.clone(), &mut probabilities);
                let gradient = &gradient[row * width + head * head_dim..][..head_dim];
                slopes.clear();
                slopes.extend(keys.clone().map(|key| T::dot(gradient, inputs.value.head(key, head, head_dim))));
                kept.clone_from(&probabilities);
                self.drop_weights(row, head, &mut kept);
                self.drop_weights(row, head, &mut slopes);
                let mean = T::dot(&slopes, &probabilities);
                let to_query = &mut to_query[(row - first_row) * width + head * head_dim..][..head_dim];
                for (i, key) in keys.enumerate() {
                    let at = i * width + head * head_dim;
                    T::axpy(kept[i], gradient, &mut to_value[at..at + head_dim]);
                    let slope = probabilities[i] * (slopes[i] - mean) * scale;
                    T::axpy(slope, inputs.key.head(key, head, head_dim), to_query);
                    T::axpy(slope, inputs.query.head(row, head, head_dim), &mut to_key[at..at + head_dim]);
                }
            }
        }
    }
}

/// Rows of several matrices `[rows, width]` side by side.
fn side_by_side<T: Real>(parts: &[&[T]], width: usize) -> Vec<T> {
    let rows = parts[0].len() / width;
    let mut out = Vec::with_capacity(rows * width * parts.len());
    for row in 0..rows {
        parts.iter().for_each(|part| out.extend_from_slice(&part[row * width..(row + 1) * width]));
    }
    out
}

/// Self-attention over `[rows, 3 * width]`: query, key and value side by side.
impl CustomOp1 for Attention {
    fn name(&self) -> &'static str {
        "self_attention"
    }

    fn cpu_fwd(&self, qkv: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, width) = (layout.shape().dims2()?.0, self.heads.width());
        by_dtype!(candle_core::backend::BackendStorage::dtype(qkv), T => {
            let out = self.forward(Inputs::own(values::<T>(qkv, layout)?, width));
            Ok((storage(out), Shape::from((rows, width))))
        })
    }

    fn bwd(&self, qkv: &Tensor, _result: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let width = self.heads.width();
        by_dtype!(qkv.dtype(), T => {
            let out = with_values::<T, _, 2>([qkv, gradient], |[qkv, gradient]| {
                let Gradients { query, key, value } = self.backward(Inputs::own(qkv, width), gradient);
                side_by_side(&[&query, &key, &value], width)
            })?;
            Ok(Some(tensor(out, qkv.dims())?))
        })
    }
}

/// Cross-attention: queries `[rows, width]` over `[source rows, 2 * width]`, key and value side by side.
impl CustomOp2 for Attention {
    fn name(&self) -> &'static str {
        "cross_attention"
    }

    fn cpu_fwd(
        &self,
        query: &CpuStorage,
        query_layout: &Layout,
        kv: &CpuStorage,
        kv_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let width = self.heads.width();
        by_dtype!(candle_core::backend::BackendStorage::dtype(query), T => {
            let inputs = Inputs::cross(values::<T>(query, query_layout)?, values::<T>(kv, kv_layout)?, width);
            Ok((storage(self.forward(inputs)), query_layout.shape().clone()))
        })
    }

    fn bwd(
        &self,
        query: &Tensor,
        kv: &Tensor,
        _result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let width = self.heads.width();
        by_dtype!(query.dtype(), T => {
            let (to_query, to_kv) = with_values::<T, _, 3>([query, kv, gradient], |[q, kv, gradient]| {
                let Gradients { query, key, value } = self.backward(Inputs::cross(q, kv, width), gradient);
                (query, side_by_side(&[&key, &value], width))
            })?;
            Ok((Some(tensor(to_query, query.dims())?), Some(tensor(to_kv, kv.dims())?)))
        })
    }
}
