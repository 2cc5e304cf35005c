//! Training: closing the gap between a gold prefix and the model's own.
//!
//! A [`Trainer`] reads parallel text, turns batches into gradients by an objective, and writes a model directory. What it computes
//! is a function of its options, its data and the model that it starts from: a run that was interrupted continues bit for bit.

pub mod autograd;
pub mod checkpoint;
pub mod data;
pub mod log;
pub mod objectives;
pub mod ops;
pub mod optimizer;
pub mod options;
pub mod rollouts;
pub mod schedule;
pub mod trainer;
pub mod validation;

pub use data::{Corpus, Data, Pair};
pub use options::{Keep, Metric, ObjectiveOptions, TrainOptions};
pub use trainer::{Ending, Observer, Places, Report, Trainer};
