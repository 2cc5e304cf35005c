//! Each stem's cases: the same for the kernel tests and for `validate`.
//!
//! A new stem gets a file here, with a function that runs its cases through a [`Probe`], and a line in [`STEMS`].

pub mod attention;
pub mod beam_step;
pub mod checksum;
pub mod contrastive;
pub mod embedding;
pub mod ensemble;
pub mod layer_norm;
pub mod linear;
pub mod loss;
pub mod near_ties;
pub mod processors;
pub mod risk;
pub mod sample;
pub mod scheduled_sampling;
pub mod start_slots;
pub mod stats;

use super::probe::Probe;
use crate::Result;

/// A stem and what runs its cases in all storage types.
pub struct Stem {
    /// As in `kernels/<name>.cu`.
    pub name: &'static str,
    /// Runs its cases.
    pub check: fn(&mut Probe<'_>) -> Result<()>,
}

/// All stems.
pub const STEMS: &[Stem] = &[
    Stem { name: "embedding", check: embedding::check },
    Stem { name: "linear", check: linear::check },
    Stem { name: "layer_norm", check: layer_norm::check },
    Stem { name: "attention", check: attention::check },
    Stem { name: "stats", check: stats::check },
    Stem { name: "contrastive", check: contrastive::check },
    Stem { name: "ensemble", check: ensemble::check },
    Stem { name: "processors", check: processors::check },
    Stem { name: "beam_step", check: beam_step_and_start },
    Stem { name: "sample", check: sample::check },
    Stem { name: "scheduled_sampling", check: scheduled_sampling::check },
    Stem { name: "loss", check: loss::check },
    Stem { name: "risk", check: risk::check },
    Stem { name: "checksum", check: checksum::check },
];

/// Both kernels of `kernels/beam_step.cu`.
fn beam_step_and_start(probe: &mut Probe<'_>) -> Result<()> {
    beam_step::check(probe)?;
    start_slots::check(probe)
}

/// What stands where a kernel may not write.
const UNTOUCHED: f32 = -77.0;
