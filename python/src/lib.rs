//! What the Python package does in Rust: the engine, its results, the command line, and the commits of batch jobs.
//!
//! The package's own code wraps these classes; `_native.pyi` says their types.

mod engine;
mod errors;
mod jobs;
mod pending;
mod results;

use std::ffi::OsString;

use pyo3::prelude::*;

/// Runs the command line with these arguments, the command's name first; gives the exit code.
#[pyfunction]
fn run_command(py: Python<'_>, arguments: Vec<OsString>) -> u8 {
    py.detach(|| beamfuse::cli::main_with(arguments))
}

#[pymodule(gil_used = true)]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add("features", features())?;
    module.add_class::<engine::Engine>()?;
    module.add_class::<engine::Options>()?;
    module.add_class::<pending::Pending>()?;
    module.add_class::<results::Translation>()?;
    module.add_class::<results::Hypothesis>()?;
    module.add_class::<results::Score>()?;
    module.add_class::<jobs::Job>()?;
    module.add_class::<jobs::Part>()?;
    module.add_function(wrap_pyfunction!(run_command, module)?)?;
    module.add_function(wrap_pyfunction!(jobs::digest_file, module)?)?;
    module.add_function(wrap_pyfunction!(jobs::plan, module)?)?;
    Ok(())
}

/// What this build has beside the base.
fn features() -> Vec<&'static str> {
    let all = [("cuda", cfg!(feature = "cuda")), ("train", cfg!(feature = "train"))];
    all.into_iter().filter(|(_, built)| *built).map(|(name, _)| name).collect()
}
