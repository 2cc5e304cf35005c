//! What can go wrong, one variant per kind of failure.
//!
//! A message is lower case, names the operation first, and says what was expected and what came. The command line and any
//! service print it unchanged; the underlying cause is kept as `source` and printed after it.

pub(crate) mod room;

use std::path::PathBuf;

/// The result of every fallible operation of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that this crate reports as an error.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or stream could not be read or written.
    #[error("{operation} {}: {source}", path.display())]
    Io {
        /// What was being done, as in "read".
        operation: &'static str,
        /// The file, or `-` for a standard stream.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// A file that should hold JSON does not.
    #[error("parse {}: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why parsing stopped.
        source: serde_json::Error,
    },
    /// A file holds the address that Git LFS keeps in its place.
    #[error("read {}: expected the file itself, got a Git LFS pointer to it; run `git lfs pull` in its repository, or download the file", path.display())]
    LfsPointer {
        /// The file.
        path: PathBuf,
    },
    /// A field of a configuration file is missing, malformed, contradicts another, or asks for a computation that this crate
    /// does not do.
    #[error("read {}: {field}: expected {expected}, got {got}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// The field.
        field: String,
        /// What would have been accepted.
        expected: String,
        /// What stands there.
        got: String,
    },
    /// A weights file is not a valid safetensors file.
    #[error("read {}: not a valid safetensors file: {source}", path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What is wrong with its header.
        source: safetensors::SafeTensorError,
    },
    /// A weights file is not what `torch.save` writes for a dictionary of tensors.
    #[error("read {}: not a valid PyTorch checkpoint: expected {expected}, got {got}", path.display())]
    PyTorch {
        /// The file.
        path: PathBuf,
        /// What would have been accepted.
        expected: String,
        /// What stands there.
        got: String,
    },
    /// A tensor is missing, or has another shape or element type, or holds NaN or infinity.
    #[error("load tensor {name}: expected {expected}, got {got}")]
    Tensor {
        /// The tensor's name in the checkpoint.
        name: String,
        /// The shape, type or property that the configuration asks for.
        expected: String,
        /// What the checkpoint holds.
        got: String,
    },
    /// A tokenizer file is malformed or contradicts the model.
    #[error("read tokenizer {}: expected {expected}, got {got}", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What would have been accepted.
        expected: String,
        /// What stands there.
        got: String,
    },
    /// An option, or a combination of options, is not allowed.
    #[error("option {option}: expected {expected}, got {got}")]
    Option {
        /// The option's name.
        option: &'static str,
        /// What would have been accepted.
        expected: String,
        /// What was given.
        got: String,
    },
    /// Two options exclude each other.
    #[error("option {option}{}{value} cannot be combined with {with}", if value.is_empty() { "" } else { " " })]
    Conflict {
        /// The option's name.
        option: &'static str,
        /// Its value, or nothing where the option itself is in the way.
        value: String,
        /// The other option, its value with it where that matters.
        with: String,
    },
    /// A sentence is longer than the model's position table.
    #[error("encode {side}: expected at most {limit} tokens, got {length}")]
    InputTooLong {
        /// `source` or `target`.
        side: &'static str,
        /// Tokens in the sentence, end of sentence included.
        length: usize,
        /// Rows of the position table.
        limit: usize,
    },
    /// Token ids given from outside do not fit the model.
    #[error("{operation}: expected {expected}, got {got}")]
    Input {
        /// What was being done.
        operation: &'static str,
        /// What would have been accepted.
        expected: String,
        /// What was given.
        got: String,
    },
    /// No hypothesis contains all the phrases that were asked for.
    #[error("decode: expected a translation that contains {}, got none", phrases.iter().map(|p| format!("\"{p}\"")).collect::<Vec<_>>().join(" and "))]
    UnmetConstraint {
        /// The phrases that the best hypothesis lacks.
        phrases: Vec<String>,
    },
    /// The model produced NaN or +infinity.
    #[error("decode: expected finite logits, got {value} at step {step}, slot {slot}, row {row}")]
    NonFiniteLogits {
        /// Generated tokens including the one being chosen.
        step: usize,
        /// The sentence slot.
        slot: usize,
        /// The beam within the slot.
        row: usize,
        /// The value found.
        value: f32,
    },
    /// A score that is not a finite number: a token of probability 0, or a sum beyond what f32 holds.
    #[error("{operation}: expected a finite score, got {value} at token {position} (id {token})")]
    NonFiniteScore {
        /// What was being done.
        operation: &'static str,
        /// The score.
        value: f32,
        /// The token, counted from 1, at which the sum of log-probabilities leaves the finite numbers; the last one where
        /// penalties make the score what it is.
        position: usize,
        /// Its id.
        token: u32,
    },
    /// No model directory was named, and none of the usual places holds the demo model.
    #[error("find the demo model: expected config.json in one of {}; name a model directory", searched.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", "))]
    NoModel {
        /// The directories that were tried.
        searched: Vec<PathBuf>,
    },
    /// A model could not be fetched from a hub.
    #[error("fetch {id}{}{file}: expected {expected}, got {got}", if file.is_empty() { "" } else { ": " })]
    Hub {
        /// `owner/name@revision`.
        id: String,
        /// The file, or nothing if it is about the whole repository.
        file: String,
        /// What would have been accepted.
        expected: String,
        /// What came.
        got: String,
    },
    /// A device cannot be used.
    #[error("open device {device}: {reason}")]
    Device {
        /// The device as the user named it.
        device: String,
        /// Why it cannot be used, and what would help.
        reason: String,
    },
    /// An operation on an open device failed.
    #[error("{operation} on device {device}: {reason}")]
    DeviceOperation {
        /// What was being done, as in "allocate".
        operation: &'static str,
        /// The device.
        device: String,
        /// What the driver, or the emulator, said.
        reason: String,
    },
    /// A device's memory, or the share of it that was allowed, is too small.
    #[error(
        "{operation} on device {device}: expected {needed} bytes of free memory, got {}; {hint}",
        available.map_or("fewer".to_owned(), |bytes| bytes.to_string()),
        hint = "a smaller batch, beam or maximum length needs less"
    )]
    OutOfMemory {
        /// What was being done, as in "allocate".
        operation: &'static str,
        /// The device.
        device: String,
        /// Bytes asked for.
        needed: u64,
        /// Bytes that were free, where that is known.
        available: Option<u64>,
    },
    /// A device has failed in a way that it does not recover from.
    #[error("decode on device {device}: the device is lost: {reason}")]
    DeviceLost {
        /// The device.
        device: String,
        /// What was said of the failure.
        reason: String,
    },
    /// Tensors given to an operation do not fit together.
    #[error("{operation}: {tensor}: expected {expected}, got {got}")]
    Shape {
        /// The operation.
        operation: &'static str,
        /// The tensor, or the number, that does not fit.
        tensor: &'static str,
        /// What would fit.
        expected: String,
        /// What was given.
        got: String,
    },
    /// An operation of training failed.
    #[error("train: {0}")]
    Autograd(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// This build leaves out what was asked for.
    #[error(
        "{operation}: expected a build with the feature {feature}, got one without; build with --features {feature}"
    )]
    NotBuilt {
        /// What was being done.
        operation: &'static str,
        /// The cargo feature that brings it.
        feature: &'static str,
    },
    /// The engine takes no more work.
    #[error("translate: the engine has stopped")]
    EngineStopped,
    /// The engine's workers have failed too often.
    #[error(
        "translate: the engine has stopped after {deaths} failures of its workers in {minutes} minutes, the last one: {reason}"
    )]
    EngineFailed {
        /// Workers that have failed.
        deaths: usize,
        /// Within so many minutes.
        minutes: u64,
        /// What the last one said.
        reason: String,
    },
    /// The worker that decoded the sentence has failed; another one serves on.
    #[error("decode: the worker has failed, and what it decoded is lost: {reason}")]
    WorkerLost {
        /// What it said.
        reason: String,
    },
    /// The queue is full.
    #[error("submit a sentence: expected fewer than {limit} waiting, got {waiting}")]
    Overloaded {
        /// Sentences that wait.
        waiting: usize,
        /// The most that may wait.
        limit: usize,
    },
    /// The deadline has passed.
    #[error("decode: the deadline has passed")]
    DeadlineExceeded,
    /// The caller has given the work up.
    #[error("decode: the caller has given up")]
    Cancelled,
}

/// Whose an error is, and so what may help.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Fault {
    /// What was asked for cannot be done: another request may.
    Caller,
    /// A file, a stream or a hub is not what it should be.
    Files,
    /// There was no room or no time: later, or for less, it may work.
    Capacity,
    /// The device, or this program, has failed.
    Device,
}

impl Error {
    /// Whose fault it is.
    pub fn fault(&self) -> Fault {
        match self {
            Error::Option { .. }
            | Error::Conflict { .. }
            | Error::Input { .. }
            | Error::InputTooLong { .. }
            | Error::UnmetConstraint { .. }
            | Error::Shape { .. }
            | Error::NotBuilt { .. }
            | Error::Cancelled => Fault::Caller,
            Error::OutOfMemory { .. } | Error::Overloaded { .. } | Error::DeadlineExceeded | Error::EngineStopped => {
                Fault::Capacity
            }
            Error::Device { .. }
            | Error::DeviceOperation { .. }
            | Error::DeviceLost { .. }
            | Error::WorkerLost { .. }
            | Error::EngineFailed { .. }
            | Error::Autograd(_) => Fault::Device,
            Error::Io { .. }
            | Error::Json { .. }
            | Error::LfsPointer { .. }
            | Error::Config { .. }
            | Error::Safetensors { .. }
            | Error::PyTorch { .. }
            | Error::Tensor { .. }
            | Error::Tokenizer { .. }
            | Error::NonFiniteLogits { .. }
            | Error::NonFiniteScore { .. }
            | Error::NoModel { .. }
            | Error::Hub { .. } => Fault::Files,
        }
    }

    /// The error of two options that exclude each other; `value` may be empty.
    pub(crate) fn conflict(option: &'static str, value: impl ToString, with: impl ToString) -> Self {
        Error::Conflict { option, value: value.to_string(), with: with.to_string() }
    }

    /// An operation of training that failed.
    #[cfg(feature = "train")]
    pub(crate) fn autograd(source: candle_core::Error) -> Self {
        Error::Autograd(Box::new(source))
    }

    /// A short stable name of the variant, as in the `error.kind` field of JSON lines.
    pub fn kind(&self) -> &'static str {
        match self {
            Error::Io { .. } => "io",
            Error::Json { .. } => "json",
            Error::LfsPointer { .. } => "lfs_pointer",
            Error::Config { .. } => "config",
            Error::Safetensors { .. } => "safetensors",
            Error::PyTorch { .. } => "pytorch",
            Error::Tensor { .. } => "tensor",
            Error::Tokenizer { .. } => "tokenizer",
            Error::Option { .. } => "option",
            Error::Conflict { .. } => "conflict",
            Error::InputTooLong { .. } => "input_too_long",
            Error::Input { .. } => "input",
            Error::UnmetConstraint { .. } => "unmet_constraint",
            Error::NonFiniteLogits { .. } => "non_finite_logits",
            Error::NonFiniteScore { .. } => "non_finite_score",
            Error::NoModel { .. } => "no_model",
            Error::Hub { .. } => "hub",
            Error::Device { .. } => "device",
            Error::DeviceOperation { .. } => "device_operation",
            Error::OutOfMemory { .. } => "out_of_memory",
            Error::DeviceLost { .. } => "device_lost",
            Error::Shape { .. } => "shape",
            Error::Autograd(_) => "autograd",
            Error::NotBuilt { .. } => "not_built",
            Error::EngineStopped => "engine_stopped",
            Error::EngineFailed { .. } => "engine_failed",
            Error::WorkerLost { .. } => "worker_lost",
            Error::Overloaded { .. } => "overloaded",
            Error::DeadlineExceeded => "deadline_exceeded",
            Error::Cancelled => "cancelled",
        }
    }
}
