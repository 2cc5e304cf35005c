//! The ops of a network: embeddings, products, norms, attention.

use std::fmt::Debug;
use std::sync::Arc;

use super::{Activation, CrossCache, Device, Heads, NormKind, Rows, Scores, SelfCache};
use crate::error::room;
use crate::{Error, Result};

/// Gives the weights of some outputs of a linear layer, from this one on: whole rows of `in_dim` values. It may be asked by several
/// threads at once.
pub type WeightRows<'a, E = Error> = dyn Fn(usize, &mut [f32]) -> std::result::Result<(), E> + Sync + 'a;

/// Rows of weights `[out_dim, in_dim]` in memory.
pub fn rows_of<E>(
    weights: &[f32],
    in_dim: usize,
) -> impl Fn(usize, &mut [f32]) -> std::result::Result<(), E> + Sync + '_ {
    move |first, rows| {
        rows.copy_from_slice(&weights[first * in_dim..][..rows.len()]);
        Ok(())
    }
}

/// What a model's encoder and decoder are made of.
pub trait NetworkOps: Device {
    /// Activations, in the type that the backend computes in. No [`Device::Buffer`]: one that runs two devices side by side
    /// holds two types of element in it.
    type Tensor: Send + Debug;
    /// The weights and bias of a linear layer, prepared for [`NetworkOps::linear`].
    type Matrix: Send + Sync + Debug;
    /// Gain and bias of a norm.
    type Norm: Send + Sync + Debug;
    /// Token embeddings.
    type Embedding: Send + Sync + Debug;
    /// A table of positions.
    type Positions: Send + Sync + Debug;
    /// What an attention adds to its scores by how far the key lies from the query (Raffel et al. 2020, section 2.1).
    type RelativeBias: Send + Sync + Debug;
    /// Where products keep their inputs as they are multiplied: rounded, or quantised. Of no meaning from one operation to the next.
    type ProductScratch: Send + Debug;

    /// Allocates activations; their content is undefined.
    ///
    /// # Errors
    /// The device has no memory left; so for every allocation below.
    fn tensor(&self, len: usize) -> Result<Self::Tensor>;
    /// Allocates the keys or values of a [`SelfCache`] or [`CrossCache`], which a backend may keep in a narrower type.
    fn cache(&self, len: usize) -> Result<Self::Tensor> {
        self.tensor(len)
    }
    /// For products of up to `rows` rows of at most `widest` inputs.
    fn product_scratch(&self, rows: usize, widest: usize) -> Result<Self::ProductScratch>;
    /// Prepares the weights `[out_dim, in_dim]` and the bias `[out_dim]` of a linear layer.
    fn matrix(&self, weights: &[f32], bias: Option<&[f32]>, out_dim: usize, in_dim: usize) -> Result<Self::Matrix>;
    /// As [`NetworkOps::matrix`], with weights that are asked for piece by piece where that saves holding them twice.
    ///
    /// # Errors
    /// Those of `weights`, too.
    fn matrix_of_rows(
        &self,
        weights: &WeightRows<'_>,
        bias: Option<&[f32]>,
        out_dim: usize,
        in_dim: usize,
    ) -> Result<Self::Matrix> {
        let mut all = room::zeros("load weights", out_dim * in_dim)?;
        weights(0, &mut all)?;
        self.matrix(&all, bias, out_dim, in_dim)
    }
    /// Prepares a norm's gain and bias, `[width]` each; `eps` is added to the variance, or to the mean square.
    fn norm(&self, kind: NormKind, gain: &[f32], bias: Option<&[f32]>, eps: f32) -> Result<Self::Norm>;
    /// How matrices that have been prepared lie in memory, if a file can keep them so: bytes of one layout are a matrix again, on any
    /// machine, that computes the same bits.
    fn layout(&self) -> Option<&'static str> {
        None
    }
    /// The bytes of a matrix in this layout, in parts.
    fn matrix_parts<'a>(&self, _matrix: &'a Self::Matrix) -> Vec<&'a [u8]> {
        Vec::new()
    }
    /// The matrix whose parts `fill` writes one after the other, each in full; none where there is no layout.
    ///
    /// # Errors
    /// Those of `fill`.
    fn matrix_of_parts(
        &self,
        _out_dim: usize,
        _in_dim: usize,
        _biased: bool,
        _fill: &mut dyn FnMut(&mut [u8]) -> Result<()>,
    ) -> Result<Option<Self::Matrix>> {
        Ok(None)
    }
    /// Prepares token embeddings `[vocab_size, width]`, each row to be multiplied by `scale`.
    fn embeddings(&self, tokens: &[f32], scale: f32, width: usize) -> Result<Self::Embedding>;
    /// Token embeddings that are the weights of a product, rounded as that takes them: they are not held twice.
    fn tied_embeddings(&self, product: &Arc<Self::Matrix>, scale: f32, width: usize) -> Result<Self::Embedding>;
    /// Prepares a table of `len` positions, `[len, width]`; `values` is not called where nothing is to be computed. `pad_id` is a
    /// token that no position is added to.
    fn positions(
        &self,
        len: usize,
        width: usize,
        pad_id: Option<u32>,
        values: impl FnOnce() -> Vec<f32>,
    ) -> Result<Self::Positions>;
    /// Prepares a bias of scores, `[num_heads, 2 * max_distance + 1]`: by the key's position less the query's, from
    /// `-max_distance` on; what lies farther counts as lying so far.
    fn relative_bias(&self, values: &[f32], num_heads: usize, max_distance: usize) -> Result<Self::RelativeBias>;

    /// Op `embedding`: `out[r] = token_row(rows[r].token) * scale + position_row(rows[r].position)`, `out` `[rows, width]`.
    ///
    /// Tokens and positions lie within the tables: the caller has checked them.
    fn embedding(
        &self,
        table: &Self::Embedding,
        positions: Option<&Self::Positions>,
        rows: &Rows<Self>,
        out: &mut Self::Tensor,
    ) -> Result<()>;

    /// Op `linear`: `out = activation(x W^T + bias)`, `x` `[rows, in_dim]`, `out` `[rows, out_dim]`.
    ///
    /// The bits of an output row depend on its input row and the weights alone: not on the number of rows, nor on their order.
    fn linear(
        &self,
        matrix: &Self::Matrix,
        rows: &Rows<Self>,
        x: &Self::Tensor,
        activation: Activation,
        scratch: &mut Self::ProductScratch,
        out: &mut Self::Tensor,
    ) -> Result<()>;

    /// Op `gate`: `out = activation(a) * b`, where `both` `[rows, 2 * width]` holds a and b side by side (Shazeer 2020); `out`
    /// `[rows, width]`.
    fn gate(
        &self,
        width: usize,
        rows: &Rows<Self>,
        both: &Self::Tensor,
        activation: Activation,
        out: &mut Self::Tensor,
    ) -> Result<()>;

    /// Elements between the starts of two rows of logits: at least `vocab_size`. What lies between is undefined.
    fn logits_stride(&self, vocab_size: usize) -> usize {
        vocab_size
    }

    /// Op `linear`, into f32: `out = x W^T + bias`, `out` `[rows, vocab_size]`, rows [`NetworkOps::logits_stride`] apart.
    fn logits(
        &self,
        matrix: &Self::Matrix,
        rows: &Rows<Self>,
        x: &Self::Tensor,
        scratch: &mut Self::ProductScratch,
        out: &mut Self::Buffer<f32>,
    ) -> Result<()>;

    /// Op `layer_norm`: `x[r] = gain * (h - mean(h)) / sqrt(var(h) + eps) + bias` (Ba et al. 2016), the variance being that of
    /// the whole row, in two passes and in f32; or `gain * h / sqrt(mean(h^2) + eps) + bias` (Zhang & Sennrich 2019). All
    /// `[rows, width]`.
    ///
    /// `h = x[r] + delta[r]`, or `x[r]` without a delta. With `sum`, a residual path that is not normalised, `h` is stored there,
    /// and is `sum[r] + delta[r]` where there is a delta.
    fn layer_norm(
        &self,
        norm: &Self::Norm,
        rows: &Rows<Self>,
        delta: Option<&Self::Tensor>,
        sum: Option<&mut Self::Buffer<f32>>,
        x: &mut Self::Tensor,
    ) -> Result<()>;

    /// Op `attention`: every row attends to all rows of its own sentence.
    ///
    /// `qkv` `[rows, 3 * width]` holds query, key and value side by side; sentence i is rows `starts[i]..starts[i + 1]`;
    /// `out` `[rows, width]`.
    fn encoder_attention(
        &self,
        scores: Scores<'_, Self>,
        rows: &Rows<Self>,
        starts: &Self::Buffer<u32>,
        sentences: usize,
        qkv: &Self::Tensor,
        out: &mut Self::Tensor,
    ) -> Result<()>;

    /// Op `attention`: stores the keys and values of `kv` `[rows, 2 * width]` at each row's slot and position.
    fn store_cross(
        &self,
        heads: Heads,
        rows: &Rows<Self>,
        kv: &Self::Tensor,
        cache: &mut CrossCache<Self>,
    ) -> Result<()>;

    /// Op `attention`: stores the keys and values within `qkv` `[rows, 3 * width]` at each row's slot, position and beam.
    fn store_self(
        &self,
        heads: Heads,
        rows: &Rows<Self>,
        qkv: &Self::Tensor,
        cache: &mut SelfCache<Self>,
    ) -> Result<()>;

    /// Op `attention`: every row attends to the positions of its own prefix, its own position included.
    ///
    /// Position t below the row's own is read from beam `ancestry[slot, beam, t]`, shape `[slots, beam_size, max_len]`; the
    /// queries are the first third of `qkv`; `out` `[rows, width]`.
    fn self_attention(
        &self,
        scores: Scores<'_, Self>,
        rows: &Rows<Self>,
        qkv: &Self::Tensor,
        cache: &SelfCache<Self>,
        ancestry: &Self::Buffer<u32>,
        out: &mut Self::Tensor,
    ) -> Result<()>;

    /// Op `attention`: every row attends to its slot's source, `options[slot].src_len` positions.
    ///
    /// `queries` `[rows, width]`, `out` `[rows, width]`. `weights` `[rows, max_src_len]`, where asked for, receives the
    /// attention, mean over heads, zero beyond the source.
    #[expect(clippy::too_many_arguments, reason = "a kernel's operands, each a plain buffer")]
    fn cross_attention(
        &self,
        heads: Heads,
        rows: &Rows<Self>,
        queries: &Self::Tensor,
        cache: &CrossCache<Self>,
        options: &Self::Buffer<u32>,
        weights: Option<&mut Self::Buffer<f32>>,
        out: &mut Self::Tensor,
    ) -> Result<()>;

    /// [`NetworkOps::linear`], then [`NetworkOps::layer_norm`] with `from W^T + bias` as its delta; `delta`, `[rows, width]`, is
    /// working memory.
    #[expect(clippy::too_many_arguments, reason = "a kernel's operands, each a plain buffer")]
    fn linear_norm(
        &self,
        matrix: &Self::Matrix,
        norm: &Self::Norm,
        rows: &Rows<Self>,
        from: &Self::Tensor,
        scratch: &mut Self::ProductScratch,
        delta: &mut Self::Tensor,
        sum: Option<&mut Self::Buffer<f32>>,
        x: &mut Self::Tensor,
    ) -> Result<()> {
        self.linear(matrix, rows, from, Activation::None, scratch, delta)?;
        self.layer_norm(norm, rows, Some(delta), sum, x)
    }

    /// [`NetworkOps::linear`] into `qkv` `[rows, 3 * width]`, [`NetworkOps::store_self`], [`NetworkOps::self_attention`]. What `qkv` holds
    /// afterwards is undefined; where [`Rows::one_per_beam`] holds, a device may do it all in one pass. The bits are the same.
    #[expect(clippy::too_many_arguments, reason = "a kernel's operands, each a plain buffer")]
    fn attend_to_prefix(
        &self,
        scores: Scores<'_, Self>,
        matrix: &Self::Matrix,
        rows: &Rows<Self>,
        x: &Self::Tensor,
        scratch: &mut Self::ProductScratch,
        qkv: &mut Self::Tensor,
        cache: &mut SelfCache<Self>,
        ancestry: &Self::Buffer<u32>,
        out: &mut Self::Tensor,
    ) -> Result<()> {
        self.linear(matrix, rows, x, Activation::None, scratch, qkv)?;
        self.store_self(scores.heads, rows, qkv, cache)?;
        self.self_attention(scores, rows, qkv, cache, ancestry, out)
    }

    /// [`NetworkOps::linear`] into `queries` `[rows, width]`, [`NetworkOps::cross_attention`]. What `queries` holds afterwards is
    /// undefined.
    #[expect(clippy::too_many_arguments, reason = "a kernel's operands, each a plain buffer")]
    fn attend_to_source(
        &self,
        heads: Heads,
        matrix: &Self::Matrix,
        rows: &Rows<Self>,
        x: &Self::Tensor,
        scratch: &mut Self::ProductScratch,
        queries: &mut Self::Tensor,
        cache: &CrossCache<Self>,
        options: &Self::Buffer<u32>,
        weights: Option<&mut Self::Buffer<f32>>,
        out: &mut Self::Tensor,
    ) -> Result<()> {
        self.linear(matrix, rows, x, Activation::None, scratch, queries)?;
        self.cross_attention(heads, rows, queries, cache, options, weights, out)
    }
}
