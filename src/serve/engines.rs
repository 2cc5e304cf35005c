//! The engines' own distributions, for Prometheus.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

use super::metrics::ByModel;
use crate::decode::engine::{Distribution, Statistics};

/// What the engine of each model has done; a reload starts anew.
#[derive(Debug, Default)]
pub(super) struct Engines(Mutex<Vec<(ByModel, Statistics)>>);

/// One of the distributions: name, help, unit, and where it stands.
type Named = (&'static str, &'static str, Option<&'static Unit>, fn(&Statistics) -> &Distribution);

const ALL: [Named; 4] = [
    ("queue_wait", "Time that sentences wait for a slot.", Some(&Unit::Seconds), |all| &all.waits),
    ("decode", "Time from the slot to the translation.", Some(&Unit::Seconds), |all| &all.searches),
    ("step", "Time of a decoding step.", Some(&Unit::Seconds), |all| &all.steps),
    ("step_rows", "Decoder rows of a step.", None, |all| &all.rows),
];

impl Engines {
    pub fn set(&self, all: Vec<(ByModel, Statistics)>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = all;
    }
}

impl Collector for Engines {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, help, unit, of) in ALL {
            let mut family = encoder.encode_descriptor(name, help, unit, MetricType::Histogram)?;
            for (model, statistics) in all.iter() {
                let Distribution { bounds, counts, sum } = of(statistics);
                let bounds = bounds.iter().copied().chain([f64::INFINITY]);
                let buckets: Vec<(f64, u64)> = bounds.zip(counts.iter().copied()).collect();
                let count = counts.iter().sum();
                family.encode_family(model)?.encode_histogram::<NoLabelSet>(*sum, count, &buckets, None)?;
            }
        }
        Ok(())
    }
}
