//! Whether a row of a matrix product, and of the norm that follows some, has the same bits alone and among any number of others.

use std::path::Path;
use std::time::Instant;

use super::report::CheckRow;
use super::watch::Beat;
use crate::Result;
use crate::backend::{Activation, Device, NetworkOps, NormKind, Row, Rows};
use crate::cuda::testing::Values;
use crate::cuda::{Cuda, Tensor};
use crate::model::config::ModelConfig;

/// Outputs, inputs, and what becomes of the outputs.
type Shape = (usize, usize, Use);

/// What a product is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Use {
    Logits,
    /// Another operation of a sublayer.
    Inner,
    /// The norm that ends a sublayer.
    Norm,
}

/// The matrix products of a model, each once.
fn shapes(config: &ModelConfig) -> Vec<Shape> {
    let d_model = config.d_model;
    let mut shapes = vec![(config.decoder_vocab_size, d_model, Use::Logits)];
    for stack in [&config.encoder, &config.decoder] {
        let (width, up) = (stack.heads.width(), if config.gated { 2 * stack.ffn_dim } else { stack.ffn_dim });
        shapes.extend([3 * width, 2 * width, width, up].map(|outputs| (outputs, d_model, Use::Inner)));
        shapes.extend([(d_model, width, Use::Norm), (d_model, stack.ffn_dim, Use::Norm)]);
    }
    shapes.sort_unstable();
    shapes.dedup();
    shapes
}

/// Multiplies 1 to `most` rows by a matrix of every shape of the model, through the backend's own linear layers.
///
/// # Errors
/// The model's configuration cannot be read; the device failed.
pub fn check(backend: &Cuda, dir: &Path, most: usize, beat: &Beat) -> Result<CheckRow> {
    let start = Instant::now();
    let name = format!("row bits {}", backend.dtype().name());
    let shapes = shapes(&ModelConfig::open(dir)?);
    let (mut compared, mut failures) = (0, Vec::new());
    for &shape in &shapes {
        if beat.is_over() {
            break;
        }
        let (rows, wrong) = check_shape(backend, shape, most, |place| beat.now(&name, place))?;
        compared += rows;
        failures.extend(wrong);
    }
    Ok(CheckRow {
        name,
        compared,
        unit: "rows",
        seconds: start.elapsed().as_secs_f64(),
        notes: vec![format!("1 to {most} rows of {} shapes", shapes.len())],
        failures,
        algorithms: backend.context().gemm_plans(),
    })
}

/// Rows compared, and the first number of rows at which one differs.
fn check_shape(backend: &Cuda, shape: Shape, most: usize, beat: impl Fn(String)) -> Result<(usize, Option<String>)> {
    let ((out_dim, in_dim, purpose), context) = (shape, backend.context());
    let mut values = Values::new((out_dim * 31 + in_dim) as u64);
    let weights: Vec<f32> = values.elements(out_dim * in_dim, 0.0, 0.1);
    let bias: Vec<f32> = values.elements(out_dim, 0.0, 0.5);
    let matrix = backend.matrix(&weights, Some(&bias), out_dim, in_dim)?;
    let x = Tensor::upload(context, backend.dtype(), &values.elements::<f32>(most * in_dim, 0.0, 1.0))?;
    let norm = backend.norm(NormKind::Layer, &vec![1.0; out_dim], Some(&bias), 1e-5)?;
    let mut scratch = backend.product_scratch(most, in_dim)?;
    let mut product = |rows: usize| -> Result<Vec<u32>> {
        beat(format!("linear {in_dim} to {out_dim}, {rows} rows"));
        let mut list = Rows::with_capacity(backend, rows)?;
        list.set(backend, &vec![Row::default(); rows])?;
        let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect();
        if purpose == Use::Norm {
            let mut delta = backend.tensor(rows * out_dim)?;
            let mut out = Tensor::upload(context, backend.dtype(), &vec![0.0; rows * out_dim])?;
            backend.linear_norm(&matrix, &norm, &list, &x, &mut scratch, &mut delta, None, &mut out)?;
            return Ok(bits(out.download(context, 0..out.len())?));
        }
        if purpose == Use::Logits {
            let stride = backend.logits_stride(out_dim);
            let mut out = backend.zeros::<f32>(rows * stride)?;
            backend.logits(&matrix, &list, &x, &mut scratch, &mut out)?;
            let apart = context.download(out.view())?;
            return Ok(bits(apart.chunks(stride).flat_map(|row| &row[..out_dim]).copied().collect()));
        }
        let mut out = backend.tensor(rows * out_dim)?;
        backend.linear(&matrix, &list, &x, Activation::Silu, &mut scratch, &mut out)?;
        Ok(bits(out.download(context, 0..out.len())?))
    };
    let all = product(most)?;
    let mut compared = 0;
    for rows in 1..most {
        let some = product(rows)?;
        compared += rows;
        if let Some(at) = some.iter().zip(&all).position(|(some, all)| some != all) {
            let (row, column) = (at / out_dim, at % out_dim);
            let wrong = format!(
                "linear {in_dim} to {out_dim}: row {row}, column {column} is {:08x} among {rows} rows, {:08x} among {most}",
                some[at], all[at]
            );
            return Ok((compared, Some(wrong)));
        }
    }
    Ok((compared, None))
}
