//! Where a decode in lockstep is, and what has differed so far.

use crate::check::{Tolerance, compare};
use crate::validate::watch::Beat;

/// How many differences are told in words.
const TOLD: usize = 3;

/// Where the decode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Taking sentences in.
    Encode,
    /// This step, counted from 1.
    Step(usize),
}

/// What has been compared.
#[derive(Debug)]
pub struct Log {
    name: String,
    beat: Beat,
    phase: Phase,
    encoder_layers: usize,
    /// Passes over a model's layers since the phase began: one for each scorer that takes part.
    passes: usize,
    /// Sublayers that have ended since the pass began: a layer norm ends each.
    sublayers: usize,
    /// Whether the pass has left the layers for the logits and the search.
    is_past_layers: bool,
    /// Operations compared.
    pub compared: usize,
    /// The first differences, in words.
    pub differences: Vec<String>,
}

impl Log {
    /// Of the check of this name, of a model with so many encoder layers; what has been compared is said to `beat`.
    pub fn new(name: String, encoder_layers: usize, beat: Beat) -> Self {
        Log {
            name,
            beat,
            phase: Phase::Encode,
            encoder_layers,
            passes: 0,
            sublayers: 0,
            is_past_layers: false,
            compared: 0,
            differences: Vec::new(),
        }
    }

    /// What follows is of this phase.
    pub fn begin(&mut self, phase: Phase) {
        (self.phase, self.passes, self.sublayers, self.is_past_layers) = (phase, 0, 0, false);
        self.beat.now(&self.name, self.phase());
    }

    /// A pass over a model's layers begins.
    pub fn begin_pass(&mut self) {
        (self.passes, self.sublayers, self.is_past_layers) = (self.passes + 1, 0, false);
    }

    /// A layer norm has been run.
    pub fn end_sublayer(&mut self) {
        self.sublayers += 1;
    }

    /// What follows belongs to no layer.
    pub fn leave_layers(&mut self) {
        self.is_past_layers = true;
    }

    /// An encoder layer has two sublayers, a decoder layer three (Vaswani et al. 2017, section 3.1).
    fn layer(&self) -> Option<String> {
        match self.phase {
            _ if self.is_past_layers => None,
            Phase::Encode if self.sublayers == 2 * self.encoder_layers => Some("cross keys and values".to_owned()),
            Phase::Encode => Some(format!("encoder layer {}", self.sublayers / 2 + 1)),
            Phase::Step(_) => Some(format!("decoder layer {}", self.sublayers / 3 + 1)),
        }
    }

    fn phase(&self) -> String {
        match self.phase {
            Phase::Encode => "encoding".to_owned(),
            Phase::Step(step) => format!("step {step}"),
        }
    }

    /// The step, layer and operation, in words.
    fn place(&self, operation: &str) -> String {
        let phase = self.phase();
        let layer = self.layer().map(|layer| format!(", {layer}")).unwrap_or_default();
        let scorer =
            if self.passes > 1 && !self.is_past_layers { format!(", scorer {}", self.passes) } else { String::new() };
        format!("{phase}{scorer}{layer}, {operation}")
    }

    /// Holds numbers to the CPU's.
    pub fn compare(&mut self, operation: &str, actual: &[f32], expected: &[f32], tolerance: Tolerance) {
        let outcome = compare(actual, expected, tolerance).map(drop).map_err(|mismatch| mismatch.to_string());
        self.keep(operation, outcome);
    }

    /// Keeps the outcome of a comparison.
    pub fn keep(&mut self, operation: &str, outcome: Result<(), String>) {
        self.compared += 1;
        self.beat.now(&self.name, format_args!("behind {}", self.place(operation)));
        if let Err(what) = outcome
            && self.differences.len() < TOLD
        {
            self.differences.push(format!("{}: {what}", self.place(operation)));
        }
    }
}
