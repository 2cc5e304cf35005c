//! Search: options, the session that runs it, hypotheses, scoring of given targets, and the engine that threads share.

mod bans;
mod constraints;
#[cfg(test)]
mod constraints_tests;
pub mod engine;
#[cfg(test)]
mod fault_tests;
mod hypothesis;
pub mod observation;
pub mod options;
#[cfg(test)]
mod preset_tests;
pub mod presets;
mod request;
#[cfg(test)]
mod sampling_tests;
mod score;
pub mod session;
mod settled;
#[cfg(test)]
mod tests;
pub mod trace;

pub use bans::Bans;
pub use constraints::Constraint;
pub use engine::{Canceller, Engine, Explain, Handle, Priority, Progress, Scoring, Search, Terms, Work};
pub use hypothesis::{Hypothesis, finite_sum};
pub use options::{DecodeOptions, LengthPenalty, MaxLength, Overrides, Stop};
pub use presets::Preset;
pub use request::{Limits, Request, SentenceIds};
pub use session::Session;
pub use trace::Trace;
