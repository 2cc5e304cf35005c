//! The commits of batch jobs, for parts that Python writes: the library's own protocol.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::PoisonError;

use beamfuse::batch::{self, Counts, Input, Shard, State};
use pyo3::prelude::*;

use crate::errors::{Failure, raised};

/// An output directory, and what all of its parts have in common.
#[pyclass(frozen, module = "beamfuse._native")]
pub(crate) struct Job(batch::Job);

#[pymethods]
impl Job {
    /// `options`: a JSON object of all that rows depend on beside inputs and model.
    #[new]
    fn new(directory: PathBuf, options: &str, model: String, resume: bool) -> PyResult<Self> {
        let options =
            serde_json::from_str(options).map_err(|error| Failure::new("input", format!("read options: {error}")))?;
        Ok(Job(batch::Job::new(&directory, options, model, resume)))
    }

    /// The rows and the failed rows of a part that is there already, made by this job of this input; else None.
    fn done(&self, py: Python<'_>, name: &str, bytes: u64, sha256: &str, part: &str) -> PyResult<Option<(u64, u64)>> {
        let input = Input { name: name.to_owned(), bytes, sha256: sha256.to_owned() };
        match py.detach(|| self.0.state(&input, part)).map_err(raised)? {
            State::Open => Ok(None),
            State::Done(Counts { rows, failed }) => Ok(Some((rows, failed))),
        }
    }

    /// Begins a part, aside.
    fn begin(&self, name: &str, bytes: u64, sha256: &str, part: &str) -> PyResult<Part> {
        let input = Input { name: name.to_owned(), bytes, sha256: sha256.to_owned() };
        let mut begun = self.0.begin(input, part).map_err(raised)?;
        Ok(Part { path: begun.parts().0.to_path_buf(), part: Mutex::new(Some(begun)) })
    }
}

/// A part that is being written, to `path`. Unless it is committed, it leaves nothing.
#[pyclass(frozen, module = "beamfuse._native")]
pub(crate) struct Part {
    path: PathBuf,
    part: Mutex<Option<batch::Part>>,
}

#[pymethods]
impl Part {
    /// Where it is written, for the time being.
    #[getter]
    fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the record, and gives part and record their names.
    fn commit(&self, py: Python<'_>, rows: u64, failed: u64) -> PyResult<()> {
        let taken = self.part.lock().unwrap_or_else(PoisonError::into_inner).take();
        let part = taken.ok_or_else(|| Failure::new("closed", "commit: the part has been committed or given up"))?;
        py.detach(|| part.commit(Counts { rows, failed })).map_err(raised)
    }

    /// Gives it up.
    fn discard(&self) {
        drop(self.part.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

/// The files that an input stands for, those of this shard, in order: paths, and names within the input. A single file is one.
#[pyfunction]
pub(crate) fn plan(input: PathBuf, shard: Option<&str>) -> PyResult<Vec<(PathBuf, String)>> {
    let shard: Shard = shard.map_or(Ok(Shard::default()), str::parse).map_err(raised)?;
    if !batch::is_many(&input) {
        let name = input.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        return Ok(vec![(input, name)]);
    }
    let units = batch::plan(&input).map_err(raised)?;
    Ok(units.into_iter().enumerate().filter(|(at, _)| shard.has(*at)).map(|(_, unit)| (unit.path, unit.name)).collect())
}

/// SHA-256 of a file in hexadecimal digits, and its bytes.
#[pyfunction]
pub(crate) fn digest_file(py: Python<'_>, path: PathBuf) -> PyResult<(String, u64)> {
    py.detach(|| batch::digest_file(&path)).map_err(raised)
}
