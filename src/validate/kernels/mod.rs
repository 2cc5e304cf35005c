//! Each op's cases: the same for the kernel tests and for `validate`.
//!
//! A new op gets a file here, with a function that runs its cases through a [`Probe`], and a line in [`OPS`].

pub mod attention;
pub mod beam_step;
pub mod checksum;
pub mod contrastive;
pub mod embedding;
pub mod ensemble;
pub mod gate;
pub mod gather;
pub mod gemm;
pub mod layer_norm;
pub mod linear_norm;
pub mod loss;
pub mod near_ties;
pub mod processors;
pub mod quantize;
pub mod risk;
pub mod sample;
pub mod scheduled_sampling;
pub mod start_slots;
pub mod stats;

use super::probe::Probe;
use crate::Result;

/// An op and what runs its cases in all storage types.
pub struct Op {
    /// As in `kernels/<name>.cu`.
    pub name: &'static str,
    /// Runs its cases.
    pub check: fn(&mut Probe<'_>) -> Result<()>,
}

/// All ops.
pub const OPS: &[Op] = &[
    Op { name: "embedding", check: embedding::check },
    Op { name: "gate", check: gate::check },
    Op { name: "gemm", check: gemm::check },
    Op { name: "quantize", check: quantize::check },
    Op { name: "layer_norm", check: layer_norm::check },
    Op { name: "linear_norm", check: linear_norm::check },
    Op { name: "attention", check: attention::check },
    Op { name: "stats", check: stats::check },
    Op { name: "contrastive", check: contrastive::check },
    Op { name: "ensemble", check: ensemble::check },
    Op { name: "processors", check: processors::check },
    Op { name: "beam_step", check: beam_step_and_start },
    Op { name: "sample", check: sample::check },
    Op { name: "scheduled_sampling", check: scheduled_sampling::check },
    Op { name: "loss", check: loss::check },
    Op { name: "risk", check: risk::check },
    Op { name: "gather", check: gather::check },
    Op { name: "checksum", check: checksum::check },
];

/// Both kernels of `kernels/beam_step.cu`.
fn beam_step_and_start(probe: &mut Probe<'_>) -> Result<()> {
    beam_step::check(probe)?;
    start_slots::check(probe)
}

/// What stands where a kernel may not write.
const UNTOUCHED: f32 = -77.0;
