//! What Prometheus reads. No label holds an address, a key or a text.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use super::Server;
use super::engines::Engines;
use super::models::Model;
use crate::decode::engine::Load;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(super) struct Answer {
    pub endpoint: &'static str,
    pub status: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(super) struct Endpoint {
    pub endpoint: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(super) struct Outcome {
    pub model: String,
    pub outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(super) struct ByModel {
    pub model: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(super) struct Class {
    pub model: String,
    pub class: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(super) struct Version {
    pub model: String,
    pub version: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(super) struct Reason {
    pub reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(super) struct State {
    pub model: String,
    pub state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(super) struct Kind {
    pub kind: &'static str,
}

/// Seconds: from a short sentence to the longest deadline.
fn seconds() -> Histogram {
    Histogram::new([0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0])
}

type Seconds<L> = Family<L, Histogram, fn() -> Histogram>;

/// All counts of the service.
#[derive(Debug)]
pub(super) struct Metrics {
    registry: Registry,
    pub requests: Family<Answer, Counter>,
    pub request_seconds: Seconds<Endpoint>,
    pub sentences: Family<Outcome, Counter>,
    pub sentence_seconds: Seconds<ByModel>,
    pub source_tokens: Family<ByModel, Counter>,
    pub output_tokens: Family<ByModel, Counter>,
    pub rejected: Family<Reason, Counter>,
    pub cancelled: Family<Reason, Counter>,
    pub reloads: Family<Reason, Counter>,
    pub connections: Gauge,
    queue_depth: Family<Class, Gauge>,
    engines: Arc<Engines>,
    slots: Family<State, Gauge>,
    models: Family<Version, Gauge>,
    memory: Family<Kind, Gauge<u64, AtomicU64>>,
}

impl Metrics {
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("beamfuse");
        macro_rules! register {
            ($name:literal, $help:literal, $metric:expr) => {{
                let metric = $metric;
                registry.register($name, $help, metric.clone());
                metric
            }};
        }
        let requests = register!("http_requests", "Requests answered", Family::default());
        let sentences = register!("sentences", "Sentences by what became of them", Family::default());
        let source_tokens = register!("source_tokens", "Tokens read", Family::default());
        let output_tokens = register!("output_tokens", "Tokens of the translations returned", Family::default());
        let rejected = register!("rejected", "Requests refused before anything was done for them", Family::default());
        let cancelled = register!("cancelled", "Requests given up", Family::default());
        let reloads = register!("reloads", "Reloads of the models", Family::default());
        let connections = register!("connections", "Open connections", Gauge::default());
        let queue_depth = register!("queue_depth", "Sentences that wait for a slot", Family::default());
        let slots = register!("slots", "Slots for sentences", Family::default());
        let models = register!("model_info", "Models that are served", Family::default());
        let request_seconds = Family::new_with_constructor(seconds as fn() -> Histogram);
        let sentence_seconds = Family::new_with_constructor(seconds as fn() -> Histogram);
        let memory: Family<Kind, Gauge<u64, AtomicU64>> = Family::default();
        registry.register_with_unit(
            "http_request_duration",
            "Time to the answer",
            Unit::Seconds,
            request_seconds.clone(),
        );
        let help = "Time from a sentence's admission to its translation";
        registry.register_with_unit("sentence_duration", help, Unit::Seconds, sentence_seconds.clone());
        let engines = Arc::new(Engines::default());
        registry.register_collector(Box::new(engines.clone()));
        registry.register_with_unit("memory", "Memory in use", Unit::Bytes, memory.clone());
        Metrics {
            registry,
            requests,
            request_seconds,
            sentences,
            sentence_seconds,
            source_tokens,
            output_tokens,
            rejected,
            cancelled,
            reloads,
            connections,
            queue_depth,
            engines,
            slots,
            models,
            memory,
        }
    }

    /// Names a model that is served from now on.
    pub fn add_model(&self, model: &Arc<Model>) {
        let version = Version { model: model.name.clone(), version: model.version.clone() };
        self.models.get_or_create(&version).set(1);
    }

    /// Names the models that are served from now on, and none that was before.
    pub fn set_models(&self, models: &[Arc<Model>]) {
        self.models.clear();
        models.iter().for_each(|model| self.add_model(model));
    }

    /// All metrics as text.
    pub fn text(&self, server: &Server) -> String {
        let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        let (mut all_waiting, mut engines) = (0, Vec::new());
        for model in server.models.all() {
            let Load { waiting, batch, .. } = model.translator.load();
            all_waiting += waiting;
            for (class, count) in [("interactive", waiting - batch), ("batch", batch)] {
                let class = Class { model: model.name.clone(), class };
                self.queue_depth.get_or_create(&class).set(gauge(count));
            }
            engines.push((ByModel { model: model.name.clone() }, model.translator.statistics()));
            let slots = State { model: model.name.clone(), state: "all" };
            self.slots.get_or_create(&slots).set(gauge(server.config.engine.slots));
        }
        self.engines.set(engines);
        let busy = State { model: String::new(), state: "busy" };
        self.slots.get_or_create(&busy).set(gauge(server.admission.sentences().saturating_sub(all_waiting)));
        if let Some(bytes) = resident() {
            self.memory.get_or_create(&Kind { kind: "resident" }).set(bytes);
        }
        let mut text = String::new();
        // A string takes whatever is written to it.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

/// Bytes of this process in memory, where the system tells.
fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}
