//! Stem `linear`: a matrix product with bias and activation.

use crate::backend::Activation;
use crate::cpu::gemm::{Epilogue, PackedMatrix, gemm};

pub use crate::cpu::gemm::reference;

/// A linear layer's weights, packed for the GEMM, and its bias.
#[derive(Debug)]
pub struct Matrix {
    packed: PackedMatrix,
    bias: Option<Vec<f32>>,
}

impl Matrix {
    /// Packs weights `[out_dim, in_dim]` and bias `[out_dim]`.
    pub fn new(weights: &[f32], bias: Option<&[f32]>, out_dim: usize, in_dim: usize) -> Self {
        Matrix { packed: PackedMatrix::pack(weights, out_dim, in_dim), bias: bias.map(<[f32]>::to_vec) }
    }
}

/// `out = activation(x W^T + bias)`, `x` `[rows, in_dim]`, `out` `[rows, out_dim]`.
pub fn linear(matrix: &Matrix, rows: usize, x: &[f32], activation: Activation, out: &mut [f32]) {
    let epilogue = Epilogue { bias: matrix.bias.as_deref(), activation, residual: None };
    let (n, k) = (matrix.packed.n(), matrix.packed.k());
    gemm(&x[..rows * k], rows, &matrix.packed, &epilogue, &mut out[..rows * n]);
}
