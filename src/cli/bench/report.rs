//! The table on standard output and the JSON file.

use std::time::Duration;

use serde::Serialize;

use crate::Result;
use crate::cli::bench::machine::{Machine, peak_memory};
use crate::cli::bench::measure::Measured;
use crate::cli::output::{Output, print};
use crate::jsonl::json;
use crate::translator::{Counters, ModelInfo};

/// Everything that goes into the JSON file.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    version: &'static str,
    command: Vec<String>,
    machine: Machine,
    model: Model,
    repeat: usize,
    warmup: usize,
    /// What the figures leave out.
    excluded: &'static str,
    results: Vec<Row>,
    /// Of the whole process, all shapes together; `None` where the system does not say.
    peak_memory_bytes: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Model {
    dir: String,
    parameters: usize,
    /// Element type of the checkpoint.
    checkpoint_dtype: String,
    /// Element type of the computation.
    dtype: &'static str,
    d_model: usize,
    encoder_layers: usize,
    decoder_layers: usize,
    vocab_size: usize,
}

/// What was run.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Shape {
    pub threads: usize,
    /// Sessions side by side, which share the threads and the batch.
    pub workers: usize,
    pub batch_size: usize,
    pub beam_size: usize,
    /// Tokens of every source and every translation; `None` for text.
    pub length: Option<usize>,
    pub sentences: usize,
}

/// A shape and its figures.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    #[serde(flatten)]
    shape: Shape,
    /// Of the best translations of one run.
    tokens: usize,
    seconds: Vec<f64>,
    /// By the median of `seconds`; so the next.
    sentences_per_second: f64,
    tokens_per_second: f64,
    /// `None` where it was not measured.
    latency_ms: Option<Percentiles>,
    /// `None` on the CPU.
    per_step: Option<PerStep>,
}

/// What a device did per decoding step, over all runs that count: encoding and answering are part of it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct PerStep {
    steps: u64,
    /// Launches, products, copies and fills that a step is made of.
    graph_nodes: f64,
    /// Calls that start work on the device: a graph counts once.
    launches: f64,
    /// Times that the host waited for everything it had enqueued.
    syncs: f64,
    /// On the device and of page-locked memory.
    allocations: f64,
}

impl PerStep {
    fn of(counters: Counters) -> Option<Self> {
        let Counters { steps, step_nodes, launches, gemms, replays, copies, waits, allocations, .. } = counters;
        let per_step = |count: u64| count as f64 / steps as f64;
        (steps > 0).then(|| PerStep {
            steps,
            graph_nodes: per_step(step_nodes),
            launches: per_step(launches + gemms + replays + copies),
            syncs: per_step(waits),
            allocations: per_step(allocations),
        })
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
struct Percentiles {
    p50: f64,
    p90: f64,
    p99: f64,
    max: f64,
}

impl Percentiles {
    /// Nearest rank: the smallest value that at least that share of the values do not exceed.
    fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_unstable_by(f64::total_cmp);
        let at = |percent: usize| {
            let rank = (values.len() * percent).div_ceil(100).max(1);
            values.get(rank - 1).copied()
        };
        Some(Percentiles { p50: at(50)?, p90: at(90)?, p99: at(99)?, max: at(100)? })
    }
}

impl Row {
    pub(super) fn new(shape: Shape, measured: &Measured) -> Self {
        let seconds: Vec<f64> = measured.runs.iter().map(Duration::as_secs_f64).collect();
        let median = Percentiles::of(seconds.clone()).map_or(0.0, |runs| runs.p50).max(f64::MIN_POSITIVE);
        Row {
            sentences_per_second: shape.sentences as f64 / median,
            tokens_per_second: measured.tokens as f64 / median,
            tokens: measured.tokens,
            latency_ms: Percentiles::of(measured.latencies.iter().map(|l| l.as_secs_f64() * 1e3).collect()),
            per_step: measured.counters.and_then(PerStep::of),
            seconds,
            shape,
        }
    }
}

impl Report {
    pub(super) fn new(info: ModelInfo, dtype: &'static str, repeat: usize, warmup: usize) -> Self {
        let model = Model {
            dir: info.dir.display().to_string(),
            parameters: info.parameters,
            checkpoint_dtype: info.dtype.to_lowercase(),
            dtype,
            d_model: info.config.d_model,
            encoder_layers: info.config.encoder.layers,
            decoder_layers: info.config.decoder.layers,
            vocab_size: info.config.decoder_vocab_size,
        };
        Report {
            version: env!("CARGO_PKG_VERSION"),
            command: std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect(),
            machine: Machine::this(),
            model,
            repeat,
            warmup,
            excluded: "loading, tokenization",
            results: Vec::new(),
            peak_memory_bytes: None,
        }
    }

    pub(super) fn print_head(&self) -> Result<()> {
        let Machine { cpu, cores, isa, .. } = &self.machine;
        let Model { dir, checkpoint_dtype, dtype, .. } = &self.model;
        print(&format!("machine  {}, {cores} cores, {isa}", cpu.as_deref().unwrap_or("unknown processor")))?;
        print(&format!("model    {dir}, {checkpoint_dtype} computed in {dtype}"))?;
        print(&format!("runs     {} after {} to warm up; without {}", self.repeat, self.warmup, self.excluded))?;
        print("")?;
        let (shape, rates) = ("threads  workers  batch  beam  length  sentences", "sentences/s  tokens/s");
        print(&format!("{shape}  {rates}  p50 ms  p90 ms  p99 ms"))
    }

    /// Prints and keeps a row.
    pub(super) fn add(&mut self, row: Row) -> Result<()> {
        let Shape { threads, workers, batch_size, beam_size, length, sentences } = &row.shape;
        let length = length.map_or("text".into(), |length| length.to_string());
        let [p50, p90, p99] = row.latency_ms.map_or([const { String::new() }; 3], |latency| {
            [latency.p50, latency.p90, latency.p99].map(|time| format!("{time:.1}"))
        });
        print(&format!(
            "{threads:>7}  {workers:>7}  {batch_size:>5}  {beam_size:>4}  {length:>6}  {sentences:>9}  {:>11.1}  {:>8.0}  {p50:>6}  {p90:>6}  \
             {p99:>6}",
            row.sentences_per_second, row.tokens_per_second
        ))?;
        if let Some(PerStep { steps, graph_nodes, launches, syncs, allocations }) = row.per_step {
            print(&format!(
                "         {steps} steps; per step {graph_nodes:.1} graph nodes, {launches:.1} launches, {syncs:.3} syncs, {allocations:.3} \
                 allocations"
            ))?;
        }
        self.results.push(row);
        Ok(())
    }

    /// Prints the memory and writes the JSON file.
    pub(super) fn finish(mut self, output: Option<Output>) -> Result<()> {
        self.peak_memory_bytes = peak_memory();
        if let Some(bytes) = self.peak_memory_bytes {
            print(&format!("\npeak memory {:.0} MiB, all shapes together", bytes as f64 / f64::from(1 << 20)))?;
        }
        if let Some(mut output) = output {
            output.line(&json(&self)?)?;
            output.finish()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_take_the_nearest_rank() {
        let of = |count: usize| Percentiles::of((1..=count).rev().map(|v| v as f64).collect());
        assert_eq!(of(100), Some(Percentiles { p50: 50.0, p90: 90.0, p99: 99.0, max: 100.0 }));
        assert_eq!(of(3), Some(Percentiles { p50: 2.0, p90: 3.0, p99: 3.0, max: 3.0 }));
        assert_eq!(of(1), Some(Percentiles { p50: 1.0, p90: 1.0, p99: 1.0, max: 1.0 }));
        assert_eq!(of(0), None);
    }

    #[test]
    fn what_a_device_did_is_told_per_step() {
        let counters = Counters {
            steps: 4,
            step_nodes: 300,
            launches: 75,
            gemms: 5,
            replays: 3,
            copies: 1,
            ..Counters::default()
        };
        let per_step = PerStep::of(Counters { waits: 2, allocations: 1, ..counters });
        let expected = PerStep { steps: 4, graph_nodes: 75.0, launches: 21.0, syncs: 0.5, allocations: 0.25 };
        assert_eq!(per_step, Some(expected));
        assert_eq!(PerStep::of(Counters::default()), None);
    }

    #[test]
    fn rates_follow_from_the_median_run() {
        let shape = Shape { threads: 1, workers: 1, batch_size: 2, beam_size: 3, length: None, sentences: 10 };
        let runs = [4, 1, 2].map(Duration::from_secs).to_vec();
        let row =
            Row::new(shape, &Measured { tokens: 60, runs, latencies: vec![Duration::from_millis(7)], counters: None });
        assert_eq!((row.sentences_per_second, row.tokens_per_second), (5.0, 30.0));
        assert_eq!(row.latency_ms.map(|latency| latency.p50), Some(7.0));
    }
}
