//! Translations, hypotheses and scores: frozen, and read from the library's own when they are asked for.

use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyTuple};

/// A sentence and its translations, best first.
#[pyclass(frozen, module = "beamfuse")]
pub(crate) struct Translation(pub Arc<beamfuse::Translation>);

#[pymethods]
impl Translation {
    /// The text as given.
    #[getter]
    fn source(&self) -> &str {
        &self.0.source
    }

    /// The source's ids, end of sentence included, as the model read them.
    #[getter]
    fn source_ids(&self) -> Vec<u32> {
        self.0.source_ids.clone()
    }

    /// Whether the source was longer than the position table and has been cut.
    #[getter]
    fn source_truncated(&self) -> bool {
        self.0.source_truncated
    }

    /// The best translation's text.
    #[getter]
    fn text(&self) -> &str {
        self.0.text()
    }

    /// At least one; best first, samples in the order of their numbers.
    #[getter]
    fn hypotheses<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        let all = 0..self.0.hypotheses.len();
        PyTuple::new(py, all.map(|at| Hypothesis { of: self.0.clone(), at }).collect::<Vec<_>>())
    }

    fn __eq__(&self, other: &Bound<'_, PyAny>) -> bool {
        other.cast::<Translation>().is_ok_and(|other| other.get().0 == self.0)
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let (source, text) = (quoted(py, &self.0.source)?, quoted(py, self.0.text())?);
        Ok(format!("Translation(source={source}, text={text})"))
    }
}

/// A translation, its tokens and its scores.
#[pyclass(frozen, module = "beamfuse")]
pub(crate) struct Hypothesis {
    of: Arc<beamfuse::Translation>,
    at: usize,
}

impl Hypothesis {
    fn own(&self) -> &beamfuse::TextHypothesis {
        &self.of.hypotheses[self.at]
    }
}

#[pymethods]
impl Hypothesis {
    /// The text.
    #[getter]
    fn text(&self) -> &str {
        &self.own().text
    }

    /// The pieces of token_ids.
    #[getter]
    fn tokens(&self) -> Vec<String> {
        self.own().tokens.clone()
    }

    /// Generated tokens, end of sentence included.
    #[getter]
    fn token_ids(&self) -> Vec<u32> {
        self.own().token_ids.clone()
    }

    /// The model's log-probability of each token, natural logarithm.
    #[getter]
    fn token_log_probs(&self) -> Vec<f32> {
        self.own().token_log_probs.clone()
    }

    /// Their sum.
    #[getter]
    fn log_prob(&self) -> f32 {
        self.own().log_prob
    }

    /// The sum of what the search ranked.
    #[getter]
    fn search_log_prob(&self) -> f32 {
        self.own().search_log_prob
    }

    /// Number of generated tokens, end of sentence included.
    #[getter]
    fn length(&self) -> usize {
        self.own().length
    }

    /// What divides search_log_prob in the score.
    #[getter]
    fn length_penalty(&self) -> f32 {
        self.own().length_penalty
    }

    /// What coverage adds to the score; 0 or less.
    #[getter]
    fn coverage_penalty(&self) -> f32 {
        self.own().coverage_penalty
    }

    /// What it was ranked by.
    #[getter]
    fn score(&self) -> f32 {
        self.own().score
    }

    /// Whether the length limit ended it.
    #[getter]
    fn truncated(&self) -> bool {
        self.own().truncated
    }

    /// Its mean utility against all candidates, 0 to 100, under mbr.
    #[getter]
    fn utility(&self) -> Option<f64> {
        self.own().utility
    }

    /// Per generated token the attention to each source token: a memoryview of 32-bit floats of two dimensions, which
    /// numpy.asarray takes as it is. None unless asked for by attention=True.
    #[getter]
    fn attention<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let Some(rows) = &self.own().attention else { return Ok(None) };
        let columns = rows.first().map_or(0, Vec::len);
        let bytes: Vec<u8> = rows.iter().flatten().flat_map(|weight| weight.to_ne_bytes()).collect();
        let view = py.import("builtins")?.getattr("memoryview")?.call1((PyBytes::new(py, &bytes),))?;
        view.call_method1("cast", ("f", [rows.len(), columns])).map(Some)
    }

    /// For each generated token the source position that it attends to most. None unless asked for by attention=True.
    #[getter]
    fn alignment(&self) -> Option<Vec<usize>> {
        self.own().alignment()
    }

    fn __eq__(&self, other: &Bound<'_, PyAny>) -> bool {
        other.cast::<Hypothesis>().is_ok_and(|other| other.get().own() == self.own())
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        Ok(format!("Hypothesis(text={}, score={})", quoted(py, &self.own().text)?, self.own().score))
    }
}

/// A given target's teacher-forced score.
#[pyclass(frozen, module = "beamfuse")]
pub(crate) struct Score {
    /// The target's ids, end of sentence included.
    #[pyo3(get)]
    pub token_ids: Vec<u32>,
    /// The pieces of token_ids.
    #[pyo3(get)]
    pub tokens: Vec<String>,
    /// The log-probability of each, natural logarithm.
    #[pyo3(get)]
    pub token_log_probs: Vec<f32>,
    /// Their sum.
    #[pyo3(get)]
    pub log_prob: f32,
}

#[pymethods]
impl Score {
    fn __repr__(&self) -> String {
        format!("Score(log_prob={}, tokens={:?})", self.log_prob, self.tokens)
    }
}

fn quoted(py: Python<'_>, text: &str) -> PyResult<String> {
    text.into_pyobject(py)?.repr()?.extract()
}
