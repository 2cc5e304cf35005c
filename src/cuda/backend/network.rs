//! [`NetworkOps`] on a device: each method picks the types of its launch by what the backend computes in.

use std::sync::Arc;

use super::{Cuda, head, head_mut, list, logits_stride};
use crate::Result;
use crate::backend::{
    Activation, CrossCache, Dtype, Heads, NetworkOps, NormKind, Rows, Scores, SelfCache, WeightRows, rows_of,
};
use crate::cuda::element::{Element, with_element};
use crate::cuda::layer_norm::LayerNorm;
use crate::cuda::matrix::{Finish, Matrix, ProductScratch, Weights};
use crate::cuda::quantize::QuantizedRows;
use crate::cuda::{Buffer, Tensor, View, attention, embedding, gate};
use crate::error::room;

/// A norm's parameters.
#[derive(Debug)]
pub struct Norm {
    kind: NormKind,
    gain: Tensor,
    bias: Option<Tensor>,
    eps: f32,
}

/// Token embeddings.
#[derive(Debug)]
pub struct Embedding {
    tokens: Weights,
    scale: f32,
    width: usize,
}

/// A table of positions.
#[derive(Debug)]
pub struct Positions {
    table: Tensor,
    pad_id: Option<u32>,
}

/// What is added to an attention's scores by how far the key lies from the query.
#[derive(Debug)]
pub struct RelativeBias {
    values: Buffer<f32>,
    max_distance: usize,
}

/// For a launcher.
fn relative(scores: Scores<'_, Cuda>) -> Option<attention::Relative<'_>> {
    scores.bias.map(|bias| attention::Relative { values: bias.values.view(), max_distance: bias.max_distance })
}

impl Norm {
    /// The norm of each of `rows` rows, for a launcher.
    fn of<'a, T: Element>(
        &'a self,
        rows: usize,
        delta: Option<&'a Tensor>,
        sum: Option<&'a mut Buffer<f32>>,
        x: &'a mut Tensor,
    ) -> Result<LayerNorm<'a, T>> {
        let width = self.gain.len();
        Ok(LayerNorm {
            x: x.head_mut(rows * width)?,
            sum: sum.map(|sum| head_mut(sum, rows * width)).transpose()?,
            delta: delta.map(|delta| delta.head(rows * width)).transpose()?,
            delta_bias: None,
            gain: self.gain.view()?,
            bias: self.bias.as_ref().map(Tensor::view).transpose()?,
            kind: self.kind,
            eps: self.eps,
        })
    }
}

impl Cuda {
    /// Rounds `values` to the type of activations.
    fn upload(&self, values: &[f32]) -> Result<Tensor> {
        Tensor::upload(&self.context, self.dtype, values)
    }

    /// `out = x W^T` over the bucket, and what is to be done with it.
    fn product(
        &self,
        matrix: &Matrix,
        (rows, x): (usize, &Tensor),
        scratch: &mut ProductScratch,
        finish: Finish<'_>,
        out: &mut Tensor,
    ) -> Result<()> {
        let &Matrix { out_dim, in_dim, .. } = matrix;
        with_element!(self.dtype, T => {
            let (x, out) = (x.head::<T>(rows * in_dim)?, out.head_mut::<T>(rows * out_dim)?);
            matrix.multiply(&self.context, (rows, x), scratch, finish, (out, out_dim))
        })
    }

    /// Attention to the source, after adding a bias that the queries still lack.
    #[expect(clippy::too_many_arguments, reason = "a kernel's operands, each a plain buffer")]
    fn cross(
        &self,
        heads: Heads,
        rows: &Rows<Self>,
        (queries, bias): (&Tensor, Option<View<'_, f32>>),
        cache: &CrossCache<Self>,
        options: &Buffer<u32>,
        weights: Option<&mut Buffer<f32>>,
        out: &mut Tensor,
    ) -> Result<()> {
        let (len, max_len) = (rows.bucket * heads.width(), cache.max_src_len);
        let weights = weights.map(|weights| head_mut(weights, rows.bucket * max_len)).transpose()?;
        let (rows, options) = (list(rows), options.view());
        with_element!(self.dtype, T, C => {
            let (queries, out) = (queries.head::<T>(len)?, out.head_mut::<T>(len)?);
            let (keys, values) = (cache.keys.view::<C>()?, cache.values.view::<C>()?);
            let cache = attention::Cache { keys, values, max_len, beam_size: 1 };
            attention::Cross { rows, queries, bias, cache, options, weights, out }.launch(&self.context, heads)
        })
    }
}

impl NetworkOps for Cuda {
    type Tensor = Tensor;
    type Matrix = Matrix;
    type Norm = Norm;
    type Embedding = Embedding;
    type Positions = Positions;
    type RelativeBias = RelativeBias;
    type ProductScratch = ProductScratch;

    fn tensor(&self, len: usize) -> Result<Tensor> {
        Tensor::allocate(&self.context, self.dtype, len)
    }

    fn cache(&self, len: usize) -> Result<Tensor> {
        Tensor::allocate(&self.context, self.cache_dtype(), len)
    }

    fn product_scratch(&self, rows: usize, widest: usize) -> Result<ProductScratch> {
        ProductScratch::new(&self.context, rows, widest, self.dtype == Dtype::I8)
    }

    fn matrix(&self, weights: &[f32], bias: Option<&[f32]>, out_dim: usize, in_dim: usize) -> Result<Matrix> {
        self.matrix_of_rows(&rows_of(weights, in_dim), bias, out_dim, in_dim)
    }

    fn matrix_of_rows(
        &self,
        weights: &WeightRows<'_>,
        bias: Option<&[f32]>,
        out_dim: usize,
        in_dim: usize,
    ) -> Result<Matrix> {
        let bias = bias.map(|bias| self.context.upload(bias)).transpose()?;
        let weights = if self.dtype == Dtype::I8 {
            Weights::Quantized(Arc::new(QuantizedRows::of_matrix(&self.context, weights, out_dim, in_dim)?))
        } else {
            let mut all = room::zeros("load weights", out_dim * in_dim)?;
            weights(0, &mut all)?;
            Weights::Plain(Arc::new(self.upload(&all)?))
        };
        Ok(Matrix { weights, bias, out_dim, in_dim })
    }

    fn norm(&self, kind: NormKind, gain: &[f32], bias: Option<&[f32]>, eps: f32) -> Result<Norm> {
        let bias = bias.map(|bias| self.upload(bias)).transpose()?;
        Ok(Norm { kind, gain: self.upload(gain)?, bias, eps })
    }

    fn embeddings(&self, tokens: &[f32], scale: f32, width: usize) -> Result<Embedding> {
        Ok(Embedding { tokens: Weights::Plain(Arc::new(self.upload(tokens)?)), scale, width })
    }

    fn tied_embeddings(&self, product: &Arc<Matrix>, scale: f32, width: usize) -> Result<Embedding> {
        Ok(Embedding { tokens: product.weights.clone(), scale, width })
    }

    fn positions(
        &self,
        len: usize,
        width: usize,
        pad_id: Option<u32>,
        values: impl FnOnce() -> Vec<f32>,
    ) -> Result<Positions> {
        let table = match self.context.is_dry() {
            true => self.tensor(len * width)?,
            false => self.upload(&values())?,
        };
        Ok(Positions { table, pad_id })
    }

    fn relative_bias(&self, values: &[f32], _heads: usize, max_distance: usize) -> Result<RelativeBias> {
        Ok(RelativeBias { values: self.context.upload(values)?, max_distance })
    }

    fn embedding(
        &self,
        table: &Embedding,
        positions: Option<&Positions>,
        rows: &Rows<Self>,
        out: &mut Tensor,
    ) -> Result<()> {
        with_element!(self.dtype, T => {
            embedding::Embedding {
                table: table.tokens.table::<T>(table.width)?,
                positions: positions.map(|positions| positions.table.view()).transpose()?,
                pad_id: positions.and_then(|positions| positions.pad_id),
                scale: table.scale,
                rows: list(rows),
                out: out.head_mut(rows.bucket * table.width)?,
            }
            .launch(&self.context, table.width)
        })
    }

    fn linear(
        &self,
        matrix: &Matrix,
        rows: &Rows<Self>,
        x: &Tensor,
        activation: Activation,
        scratch: &mut ProductScratch,
        out: &mut Tensor,
    ) -> Result<()> {
        let finish = (matrix.bias.as_ref().map(Buffer::view), activation);
        self.product(matrix, (rows.bucket, x), scratch, finish, out)
    }

    fn gate(
        &self,
        width: usize,
        rows: &Rows<Self>,
        both: &Tensor,
        activation: Activation,
        out: &mut Tensor,
    ) -> Result<()> {
        let rows = rows.bucket;
        with_element!(self.dtype, T => {
            let (both, out) = (both.head::<T>(2 * rows * width)?, out.head_mut::<T>(rows * width)?);
            gate::Gate { both, activation, out }.launch(&self.context, rows, width)
        })
    }

    fn logits_stride(&self, vocab_size: usize) -> usize {
        logits_stride(vocab_size)
    }

    fn logits(
        &self,
        matrix: &Matrix,
        rows: &Rows<Self>,
        x: &Tensor,
        scratch: &mut ProductScratch,
        out: &mut Buffer<f32>,
    ) -> Result<()> {
        let (&Matrix { out_dim, in_dim, .. }, rows) = (matrix, rows.bucket);
        let stride = logits_stride(out_dim);
        let out = head_mut(out, rows * stride)?;
        let finish = (matrix.bias.as_ref().map(Buffer::view), Activation::None);
        with_element!(self.dtype, T => {
            let x = x.head::<T>(rows * in_dim)?;
            matrix.multiply(&self.context, (rows, x), scratch, finish, (out, stride))
        })
    }

    fn layer_norm(
        &self,
        norm: &Norm,
        rows: &Rows<Self>,
        delta: Option<&Tensor>,
        sum: Option<&mut Buffer<f32>>,
        x: &mut Tensor,
    ) -> Result<()> {
        let (rows, width) = (rows.bucket, norm.gain.len());
        with_element!(self.dtype, T => norm.of::<T>(rows, delta, sum, x)?.launch(&self.context, rows, width))
    }

    fn linear_norm(
        &self,
        matrix: &Matrix,
        norm: &Norm,
        rows: &Rows<Self>,
        from: &Tensor,
        scratch: &mut ProductScratch,
        delta: &mut Tensor,
        sum: Option<&mut Buffer<f32>>,
        x: &mut Tensor,
    ) -> Result<()> {
        let (&Matrix { out_dim, in_dim, .. }, rows) = (matrix, rows.bucket);
        with_element!(self.dtype, T => {
            let (from, delta) = (from.head::<T>(rows * in_dim)?, delta.head_mut::<T>(rows * out_dim)?);
            let norm = norm.of(rows, None, sum, x)?;
            matrix.multiply_norm(&self.context, (rows, from), scratch, norm, &delta, None)
        })
    }

    fn encoder_attention(
        &self,
        scores: Scores<'_, Self>,
        rows: &Rows<Self>,
        starts: &Buffer<u32>,
        sentences: usize,
        qkv: &Tensor,
        out: &mut Tensor,
    ) -> Result<()> {
        let (heads, starts) = (scores.heads, head(starts, sentences + 1)?);
        let len = rows.bucket * heads.width();
        let (rows, relative) = (list(rows), relative(scores));
        with_element!(self.dtype, T => {
            let (qkv, out) = (qkv.head::<T>(3 * len)?, out.head_mut::<T>(len)?);
            attention::Encoder { rows, starts, qkv, relative, out }.launch(&self.context, heads)
        })
    }

    fn store_cross(&self, heads: Heads, rows: &Rows<Self>, kv: &Tensor, cache: &mut CrossCache<Self>) -> Result<()> {
        let (stride, max_len) = (2 * heads.width(), cache.max_src_len);
        let (len, rows) = (rows.bucket * stride, list(rows));
        with_element!(self.dtype, T, C => {
            let from = kv.head::<T>(len)?;
            let (keys, values) = (cache.keys.view_mut::<C>()?, cache.values.view_mut::<C>()?);
            attention::Store { rows, from, stride, key_offset: 0, keys, values, max_len, beam_size: 1 }
                .launch(&self.context, heads.width())
        })
    }

    fn store_self(&self, heads: Heads, rows: &Rows<Self>, qkv: &Tensor, cache: &mut SelfCache<Self>) -> Result<()> {
        let (stride, key_offset) = (3 * heads.width(), heads.width());
        let &mut SelfCache { max_len, beam_size, .. } = cache;
        let (len, rows) = (rows.bucket * stride, list(rows));
        with_element!(self.dtype, T, C => {
            let from = qkv.head::<T>(len)?;
            let (keys, values) = (cache.keys.view_mut::<C>()?, cache.values.view_mut::<C>()?);
            attention::Store { rows, from, stride, key_offset, keys, values, max_len, beam_size }
                .launch(&self.context, heads.width())
        })
    }

    fn self_attention(
        &self,
        scores: Scores<'_, Self>,
        rows: &Rows<Self>,
        qkv: &Tensor,
        cache: &SelfCache<Self>,
        ancestry: &Buffer<u32>,
        out: &mut Tensor,
    ) -> Result<()> {
        let (heads, &SelfCache { max_len, beam_size, .. }) = (scores.heads, cache);
        let len = rows.bucket * heads.width();
        let (rows, ancestry, relative) = (list(rows), ancestry.view(), relative(scores));
        with_element!(self.dtype, T, C => {
            let (qkv, out) = (qkv.head::<T>(3 * len)?, out.head_mut::<T>(len)?);
            let (keys, values) = (cache.keys.view::<C>()?, cache.values.view::<C>()?);
            let cache = attention::Cache { keys, values, max_len, beam_size };
            attention::Own { rows, qkv, cache, ancestry, relative, out }.launch(&self.context, heads)
        })
    }

    fn cross_attention(
        &self,
        heads: Heads,
        rows: &Rows<Self>,
        queries: &Tensor,
        cache: &CrossCache<Self>,
        options: &Buffer<u32>,
        weights: Option<&mut Buffer<f32>>,
        out: &mut Tensor,
    ) -> Result<()> {
        self.cross(heads, rows, (queries, None), cache, options, weights, out)
    }

    fn attend_to_prefix(
        &self,
        scores: Scores<'_, Self>,
        matrix: &Matrix,
        rows: &Rows<Self>,
        x: &Tensor,
        scratch: &mut ProductScratch,
        qkv: &mut Tensor,
        cache: &mut SelfCache<Self>,
        ancestry: &Buffer<u32>,
        out: &mut Tensor,
    ) -> Result<()> {
        let heads = scores.heads;
        if !rows.one_per_beam {
            self.linear(matrix, rows, x, Activation::None, scratch, qkv)?;
            self.store_self(heads, rows, qkv, cache)?;
            return self.self_attention(scores, rows, qkv, cache, ancestry, out);
        }
        self.product(matrix, (rows.bucket, x), scratch, (None, Activation::None), qkv)?;
        let &mut SelfCache { max_len, beam_size, .. } = cache;
        let (len, bias) = (rows.bucket * heads.width(), matrix.bias.as_ref().map(Buffer::view));
        let (rows, ancestry, relative) = (list(rows), ancestry.view(), relative(scores));
        with_element!(self.dtype, T, C => {
            let (qkv, out) = (qkv.head::<T>(3 * len)?, out.head_mut::<T>(len)?);
            let (keys, values) = (cache.keys.view_mut::<C>()?, cache.values.view_mut::<C>()?);
            attention::StoreOwn { rows, qkv, bias, keys, values, max_len, beam_size, ancestry, relative, out }
                .launch(&self.context, heads)
        })
    }

    fn attend_to_source(
        &self,
        heads: Heads,
        matrix: &Matrix,
        rows: &Rows<Self>,
        x: &Tensor,
        scratch: &mut ProductScratch,
        queries: &mut Tensor,
        cache: &CrossCache<Self>,
        options: &Buffer<u32>,
        weights: Option<&mut Buffer<f32>>,
        out: &mut Tensor,
    ) -> Result<()> {
        self.product(matrix, (rows.bucket, x), scratch, (None, Activation::None), queries)?;
        let bias = matrix.bias.as_ref().map(Buffer::view);
        self.cross(heads, rows, (queries, bias), cache, options, weights, out)
    }
}
