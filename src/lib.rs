#![doc = include_str!("../README.md")]

pub mod backend;
pub mod check;
#[doc(hidden)]
pub mod cli;
pub mod cpu;
pub mod cuda;
pub mod decode;
pub mod diagnose;
pub mod error;
pub mod hub;
pub mod metrics;
pub mod model;
pub mod plot;
pub mod text;
pub mod train;
pub mod translator;
pub mod validate;

pub use backend::{ContrastiveForm, Dtype};
pub use decode::{
    Bans, Canceller, Contrastive, DecodeOptions, Hypothesis, LengthPenalty, MaxLength, Preset, Priority, Progress,
    Sampling, Stop, Terms,
};
pub use error::{Error, Result};
pub use translator::{
    Device, DeviceChoice, EngineOptions, Score, Sentence, TextHypothesis, Translation, TranslationHandle, Translator,
};
