#![doc = include_str!("../README.md")]

pub mod backend;
#[cfg(feature = "cli")]
pub mod batch;
pub mod check;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod cli;
pub mod counts;
pub mod cpu;
pub mod cuda;
pub mod decode;
pub mod diagnose;
#[cfg(feature = "documents")]
pub mod document;
pub mod error;
#[cfg(feature = "cli")]
mod explain;
#[doc(hidden)]
pub mod files;
#[cfg(feature = "hub")]
pub mod hub;
#[cfg(any(feature = "cli", feature = "train"))]
mod input;
#[cfg(feature = "cli")]
mod jsonl;
pub mod metrics;
pub mod model;
#[cfg(feature = "report")]
pub mod plot;
pub mod read;
#[cfg(feature = "serve")]
#[doc(hidden)]
pub mod serve;
mod shares;
pub mod text;
mod threads;
#[cfg(feature = "train")]
pub mod train;
pub mod translator;
pub mod validate;

pub use backend::{ContrastiveForm, Dtype};
pub use decode::{
    Bans, Canceller, DecodeOptions, Hypothesis, LengthPenalty, MaxLength, Overrides, Preset, Priority, Progress, Stop,
    Terms,
};
pub use error::{Error, Result};
pub use text::SentenceDefaults;
pub use translator::{
    Device, DeviceChoice, EngineOptions, Score, Sentence, TextHypothesis, Translation, TranslationHandle, Translator,
};
