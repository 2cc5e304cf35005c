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

/// Queries, keys and values, and what is added to scores.
#[derive(Clone, Copy)]
struct Inputs<'a, T> {
    query: View<'a, T>,
    key: View<'a, T>,
    value: View<'a, T>,
    /// `[num_heads, 2 * furthest + 1]`, by the key's position less the query's; empty without one.
    bias: &'a [T],
}

impl<'a, T> Inputs<'a, T> {
    /// From one product `[rows, 3 * width]`.
    fn own(qkv: &'a [T], width: usize, bias: &'a [T]) -> Self {
        let view = |part: usize| View { values: qkv, stride: 3 * width, offset: part * width };
        Inputs { query: view(0), key: view(1), value: view(2), bias }
    }

    /// From queries `[rows, width]` and one product `[source rows, 2 * width]`.
    fn cross(query: &'a [T], kv: &'a [T], width: usize) -> Self {
        let view = |part: usize| View { values: kv, stride: 2 * width, offset: part * width };
        Inputs { query: View { values: query, stride: width, offset: 0 }, key: view(0), value: view(1), bias: &[] }
    }
}

/// The gradients of queries, keys and values, `[rows, width]` each, and of what is added to scores.
struct Gradients<T> {
    query: Vec<T>,
    key: Vec<T>,
    value: Vec<T>,
    bias: Vec<T>,
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

    /// Where in the bias that which a key adds to a query's score stands, by their positions.
    fn bias_at(&self, bias: usize, head: usize, query: usize, key: usize) -> usize {
        let distances = bias / self.heads.num_heads;
        head * distances + (key + distances / 2).saturating_sub(query).min(distances - 1)
    }

    /// The probabilities with which `row`, at `position` of a querying sentence, attends to the rows from `keys.start` on.
    fn probabilities<T: Real>(
        &self,
        inputs: Inputs<'_, T>,
        (row, position): (usize, usize),
        head: usize,
        keys: Range<usize>,
        out: &mut Vec<T>,
    ) {
        let head_dim = self.heads.head_dim;
        let scale = T::from_f64(f64::from(self.heads.scale()));
        let query = inputs.query.head(row, head, head_dim);
        out.clear();
        out.extend(keys.map(|key| T::dot(query, inputs.key.head(key, head, head_dim)) * scale));
        if !inputs.bias.is_empty() {
            let at = |key: usize| self.bias_at(inputs.bias.len(), head, position, key);
            out.iter_mut().enumerate().for_each(|(key, score)| *score += inputs.bias[at(key)]);
        }
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
                    let place = (row, row - self.queries[sentence]);
                    self.probabilities(inputs, place, head, keys.clone(), &mut probabilities);
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
        let mut sums = Gradients {
            query: zeros(&self.queries),
            key: zeros(&self.keys),
            value: zeros(&self.keys),
            bias: vec![T::ZERO; inputs.bias.len()],
        };
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
        let biases: Vec<Vec<T>> = parts
            .map(|(group, ((query, key), value))| {
                let mut bias = vec![T::ZERO; inputs.bias.len()];
                for sentence in querying(group) {
                    let first_row = self.queries[querying(group).start];
                    self.sentence_backward(inputs, gradient, sentence, first_row, [query, key, value, &mut bias]);
                }
                bias
            })
            .collect();
        biases.iter().for_each(|bias| T::axpy(T::ONE, bias, &mut sums.bias));
        sums
    }

    /// Adds one querying sentence's gradients: to its queries, whose slice starts at `first_row`, to its group's keys and values,
    /// and to the bias.
    fn sentence_backward<T: Real>(
        &self,
        inputs: Inputs<'_, T>,
        gradient: &[T],
        sentence: usize,
        first_row: usize,
        [to_query, to_key, to_value, to_bias]: [&mut [T]; 4],
    ) {
        let Heads { num_heads, head_dim, .. } = self.heads;
        let width = self.heads.width();
        let scale = T::from_f64(f64::from(self.heads.scale()));
        let (mut probabilities, mut kept, mut slopes) = (Vec::new(), Vec::new(), Vec::new());
        for row in self.query_rows(sentence) {
            for head in 0..num_heads {
                let keys = self.seen(sentence, row);
                let position = row - self.queries[sentence];
                self.probabilities(inputs, (row, position), head, keys.clone(), &mut probabilities);
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
                    let slope = probabilities[i] * (slopes[i] - mean);
                    if !to_bias.is_empty() {
                        let at = self.bias_at(to_bias.len(), head, position, i);
                        to_bias[at] += slope;
                    }
                    let slope = slope * scale;
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
            let out = self.forward(Inputs::own(values::<T>(qkv, layout)?, width, &[]));
            Ok((storage(out), Shape::from((rows, width))))
        })
    }

    fn bwd(&self, qkv: &Tensor, _result: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let width = self.heads.width();
        by_dtype!(qkv.dtype(), T => {
            let out = with_values::<T, _, 2>([qkv, gradient], |[qkv, gradient]| {
                let Gradients { query, key, value, .. } = self.backward(Inputs::own(qkv, width, &[]), gradient);
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
                let Gradients { query, key, value, .. } = self.backward(Inputs::cross(q, kv, width), gradient);
                (query, side_by_side(&[&key, &value], width))
            })?;
            Ok((Some(tensor(to_query, query.dims())?), Some(tensor(to_kv, kv.dims())?)))
        })
    }
}

/// Self-attention over `[rows, 3 * width]` whose scores are moved by distance: bias `[num_heads, 2 * furthest + 1]`.
pub(super) struct Biased(pub Attention);

impl CustomOp2 for Biased {
    fn name(&self) -> &'static str {
        "biased_self_attention"
    }

    fn cpu_fwd(
        &self,
        qkv: &CpuStorage,
        layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (rows, width) = (layout.shape().dims2()?.0, self.0.heads.width());
        by_dtype!(candle_core::backend::BackendStorage::dtype(qkv), T => {
            let inputs = Inputs::own(values::<T>(qkv, layout)?, width, values::<T>(bias, bias_layout)?);
            Ok((storage(self.0.forward(inputs)), Shape::from((rows, width))))
        })
    }

    fn bwd(
        &self,
        qkv: &Tensor,
        bias: &Tensor,
        _result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let width = self.0.heads.width();
        by_dtype!(qkv.dtype(), T => {
            let (to_qkv, to_bias) = with_values::<T, _, 3>([qkv, bias, gradient], |[qkv, bias, gradient]| {
                let Gradients { query, key, value, bias } = self.0.backward(Inputs::own(qkv, width, bias), gradient);
                (side_by_side(&[&query, &key, &value], width), bias)
            })?;
            Ok((Some(tensor(to_qkv, qkv.dims())?), Some(tensor(to_bias, bias.dims())?)))
        })
    }
}
