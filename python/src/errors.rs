//! Errors of the library as exceptions of Python: their classes are those of `beamfuse.errors`.

use beamfuse::Error;
use pyo3::prelude::*;

/// An error on its way to Python: its kind, its text, and what the operating system calls it.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    kind: &'static str,
    message: String,
    errno: Option<i32>,
}

impl Failure {
    pub(crate) fn new(kind: &'static str, message: impl Into<String>) -> Self {
        Failure { kind, message: message.into(), errno: None }
    }

    /// The exception itself, not raised.
    pub(crate) fn exception<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let make = py.import("beamfuse.errors")?.getattr("_make")?;
        make.call1((self.kind, &self.message, self.errno))
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let errno = match &error {
            Error::Io { source, .. } => source.raw_os_error(),
            _ => None,
        };
        Failure { kind: error.kind(), message: error.to_string(), errno }
    }
}

impl From<Failure> for PyErr {
    fn from(failure: Failure) -> Self {
        Python::attach(|py| match failure.exception(py) {
            Ok(exception) => PyErr::from_value(exception),
            Err(error) => error,
        })
    }
}

/// An error of the library as an exception.
pub(crate) fn raised(error: Error) -> PyErr {
    Failure::from(error).into()
}
