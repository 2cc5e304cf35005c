//! Which device a translator computes on, and opening it: the one place that names both backends.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::EngineOptions;
use super::memory::weight_bytes;
use crate::backend::{Backend, Dtype};
use crate::cpu::Cpu;
use crate::cuda::{self, Context, Cuda};
use crate::decode::engine::Engine;
use crate::model::config::ModelConfig;
use crate::model::weights::Weights;
use crate::model::{PackUse, Transformer};
use crate::{Error, Result};

/// Where a [`Translator`](crate::Translator) computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The CPU, in f32, bf16 or i8.
    #[default]
    Cpu,
    /// The GPU with this number, in f32, f16, bf16 or i8.
    Cuda(usize),
    /// Several GPUs, each with the whole model; a sentence goes to whichever has room.
    Cudas(Gpus),
    /// The CUDA kernels run on the host, one thread at a time: for checking them, not for speed.
    Emulated,
    /// So many emulated devices, as several GPUs would be used: 2 to 8.
    EmulatedReplicas(usize),
    /// The first GPU if it can be used in the element type asked for, else the CPU.
    Auto,
}

/// Which GPUs, by number: a bit each, all bits for all that are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gpus(u64);

impl Gpus {
    /// All that are there.
    pub const ALL: Gpus = Gpus(u64::MAX);

    /// These; none if a number is above 62 or there twice, or there is no number.
    pub fn new(ordinals: &[usize]) -> Option<Self> {
        let add = |set: u64, &ordinal: &usize| (ordinal < 63 && set & (1 << ordinal) == 0).then(|| set | 1 << ordinal);
        ordinals.iter().try_fold(0, add).filter(|set| *set != 0).map(Gpus)
    }

    /// The numbers, in order; of `count` GPUs if all are meant.
    fn ordinals(self, count: usize) -> Vec<usize> {
        if self == Gpus::ALL {
            return (0..count).collect();
        }
        (0..63).filter(|ordinal| self.0 & (1 << ordinal) != 0).collect()
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
            Device::Cudas(Gpus::ALL) => f.write_str("cuda:all"),
            Device::Cudas(gpus) => {
                let numbers: Vec<String> = gpus.ordinals(0).iter().map(usize::to_string).collect();
                write!(f, "cuda:{}", numbers.join(","))
            }
            Device::Emulated => f.write_str("emulated"),
            Device::EmulatedReplicas(count) => write!(f, "emulated:{count}"),
            Device::Auto => f.write_str("auto"),
        }
    }
}

impl FromStr for Device {
    type Err = Error;

    /// `cpu`, `cuda` (the first), `cuda:1`, `cuda:0,1`, `cuda:all`, `emulated`, `emulated:2` or `auto`.
    fn from_str(text: &str) -> Result<Self> {
        let gpus = |list: &str| {
            let ordinals = list.split(',').map(|number| number.parse().ok()).collect::<Option<Vec<usize>>>()?;
            match ordinals[..] {
                [ordinal] => Some(Device::Cuda(ordinal)),
                _ => Gpus::new(&ordinals).map(Device::Cudas),
            }
        };
        let replicas = |count: &str| count.parse().ok().filter(|count| (2..=8).contains(count));
        let device = match text.split_once(':') {
            None => match text {
                "cpu" => Some(Device::Cpu),
                "cuda" => Some(Device::Cuda(0)),
                "emulated" => Some(Device::Emulated),
                "auto" => Some(Device::Auto),
                _ => None,
            },
            Some(("cuda", "all")) => Some(Device::Cudas(Gpus::ALL)),
            Some(("cuda", list)) => gpus(list),
            Some(("emulated", count)) => replicas(count).map(Device::EmulatedReplicas),
            Some(_) => None,
        };
        device.ok_or_else(|| Error::Option { option: "device", expected: NAMES.to_owned(), got: text.to_owned() })
    }
}

/// What a device is called.
const NAMES: &str = "cpu, cuda, cuda:N, cuda:N,N.., cuda:all, emulated, emulated:N of 2 to 8, or auto";

/// The device that a translator runs on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceChoice {
    /// Never [`Device::Auto`].
    pub device: Device,
    /// Why it was chosen, where [`Device::Auto`] was asked for.
    pub reason: Option<String>,
}

/// A device that is there.
enum Opened {
    /// One for each worker.
    Cpu(Vec<Cpu>),
    /// One for each device.
    Cuda(Vec<Context>),
}

/// What a translator computes with.
pub(super) struct Started {
    pub engine: Engine,
    pub device: DeviceChoice,
    /// The devices' handles where they have counters.
    pub contexts: Vec<Context>,
    /// What became of the packs of the models.
    pub packs: Vec<PackUse>,
}

/// Starts an engine over a model on the device that the options ask for.
pub(super) fn start(options: &EngineOptions, config: &ModelConfig, weights: &Weights) -> Result<Started> {
    let (opened, choice) = open(options)?;
    let companions = options.companions().map(ModelConfig::open).collect::<Result<Vec<_>>>()?;
    let all: Vec<&ModelConfig> = std::iter::once(config).chain(&companions).collect();
    let needed = weight_bytes(&all, choice.device, options.dtype);
    match opened {
        Opened::Cpu(workers) => {
            let workers = limited(workers, needed, options.memory_budget)?;
            let (models, packs) = models(&workers[0], options, config, weights)?;
            let engine = Engine::start(workers, models, config.vocab_size, options.slots, options.queue)?;
            Ok(Started { engine, device: choice, contexts: Vec::new(), packs })
        }
        Opened::Cuda(contexts) => {
            if let Some(budget) = options.memory_budget {
                contexts.iter().for_each(|context| context.limit_memory(budget));
            }
            contexts.iter().try_for_each(|context| check_room(context, needed))?;
            let (engine, packs) = start_on(&contexts, options, config, weights)?;
            Ok(Started { engine, device: choice, contexts, packs })
        }
    }
}

/// The model, then those that its sentences may rank by as well; and what became of their packs.
fn models<B: Backend>(
    backend: &B,
    options: &EngineOptions,
    config: &ModelConfig,
    weights: &Weights,
) -> Result<(Vec<Transformer<B>>, Vec<PackUse>)> {
    let mut packs = Vec::new();
    let mut open = |config: &ModelConfig, weights: &Weights| match &options.pack_cache {
        // Weights that are in memory come from training: the next update has others.
        Some(directory) if weights.is_in_files() => {
            let (model, pack) = Transformer::packed(backend, config, weights, directory)?;
            packs.push(pack);
            Ok(model)
        }
        _ => Transformer::new(backend, config, weights),
    };
    let mut models = vec![open(config, weights)?];
    for dir in options.companions() {
        models.push(open(&ModelConfig::open(dir)?, &Weights::open(dir)?)?);
    }
    Ok((models, packs))
}

/// A worker per device, each with its own copy of the models.
fn start_on(
    contexts: &[Context],
    options: &EngineOptions,
    config: &ModelConfig,
    weights: &Weights,
) -> Result<(Engine, Vec<PackUse>)> {
    let mut packs = Vec::new();
    let mut replica = |context: &Context| {
        let backend = Cuda::new(context.clone(), options.dtype);
        let (models, used) = models(&backend, options, config, weights)?;
        packs = used;
        Ok((backend, Arc::from(models)))
    };
    let replicas = contexts.iter().map(&mut replica).collect::<Result<_>>()?;
    Ok((Engine::start_replicas(replicas, config.vocab_size, options.slots, options.queue)?, packs))
}

/// Checks that a device has room for the models.
fn check_room(context: &Context, needed: u64) -> Result<()> {
    match context.free_memory()? {
        Some(available) if available < needed => Err(no_room(context.name(), needed, available)),
        _ => Ok(()),
    }
}

/// The CPU's workers, each with its share of what the models leave of the budget.
fn limited(workers: Vec<Cpu>, weights: u64, budget: Option<u64>) -> Result<Vec<Cpu>> {
    let Some(budget) = budget else { return Ok(workers) };
    let left = budget.checked_sub(weights).ok_or_else(|| no_room("cpu", weights, budget))?;
    let share = left / workers.len() as u64;
    Ok(workers.into_iter().map(|cpu| cpu.with_limit(share)).collect())
}

fn no_room(device: &str, needed: u64, available: u64) -> Error {
    Error::OutOfMemory { operation: "load the model", device: device.to_owned(), needed, available: Some(available) }
}

fn open(options: &EngineOptions) -> Result<(Opened, DeviceChoice)> {
    let device = options.device;
    let chosen = |opened: Opened, device: Device| (opened, DeviceChoice { device, reason: None });
    match device {
        Device::Cpu => Ok(chosen(Opened::Cpu(open_cpu(options)?), device)),
        Device::Auto => {
            let (opened, device, reason) = open_any(Device::Cuda(0), options)?;
            Ok((opened, DeviceChoice { device, reason: Some(reason) }))
        }
        _ => Ok(chosen(Opened::Cuda(open_cuda(device)?), device)),
    }
}

/// The GPU if it can be used, else the CPU, and why.
fn open_any(gpu: Device, options: &EngineOptions) -> Result<(Opened, Device, String)> {
    match open_cuda(gpu) {
        Ok(contexts) => Ok((Opened::Cuda(contexts), gpu, "it can be used".to_owned())),
        // What the CPU cannot compute in was meant for the GPU.
        Err(error) if options.dtype == Dtype::F16 => Err(error),
        Err(error) => Ok((Opened::Cpu(open_cpu(options)?), Device::Cpu, error.to_string())),
    }
}

/// The CPU, once for each worker: a share of the threads each, which other engines with as many share.
fn open_cpu(options: &EngineOptions) -> Result<Vec<Cpu>> {
    let threads = match options.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    };
    let most = threads.min(options.slots);
    let workers = if options.workers == 0 { most } else { options.workers.min(most) };
    (0..workers).map(|i| Cpu::shared(i, (threads + i) / workers, options.dtype)).collect()
}

fn open_cuda(device: Device) -> Result<Vec<Context>> {
    match device {
        Device::Cuda(ordinal) => Ok(vec![cuda::open(ordinal)?]),
        Device::Cudas(gpus) => match gpus.ordinals(cuda::count()) {
            // Opening the first says why there is none.
            none if none.is_empty() => Ok(vec![cuda::open(0)?]),
            some => some.into_iter().map(cuda::open).collect(),
        },
        Device::EmulatedReplicas(count) => (0..count).map(|_| cuda::open_emulated()).collect(),
        _ => Ok(vec![cuda::open_emulated()?]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        let several = |ordinals: &[usize]| Device::Cudas(Gpus::new(ordinals).expect("these are different numbers"));
        for device in [
            Device::Cpu,
            Device::Cuda(0),
            Device::Cuda(3),
            several(&[0, 1]),
            several(&[2, 5, 62]),
            Device::Cudas(Gpus::ALL),
            Device::Emulated,
            Device::EmulatedReplicas(2),
            Device::Auto,
        ] {
            assert_eq!(device.to_string().parse::<Device>().ok(), Some(device));
        }
        assert_eq!("cuda".parse::<Device>().ok(), Some(Device::Cuda(0)));
        assert_eq!("cuda:1,0".parse::<Device>().ok(), Some(several(&[0, 1])));
        for wrong in [
            "",
            "gpu",
            "cuda:",
            "cuda:x",
            "cuda:-1",
            "CPU",
            "cuda:0,0",
            "cuda:0,63",
            "cuda:0,",
            "emulated:1",
            "emulated:9",
            "cpu:1",
        ] {
            let error = wrong.parse::<Device>().unwrap_err();
            assert_eq!(error.to_string(), format!("option device: expected {NAMES}, got {wrong}"));
        }
    }

    fn refusal(device: Device, dtype: Dtype) -> String {
        let options = EngineOptions { device, dtype, threads: 1, ..EngineOptions::default() };
        open(&options).err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn a_type_that_the_device_does_not_compute_in_is_refused() {
        assert_eq!(refusal(Device::Cpu, Dtype::F16), "option dtype: expected f32, bf16 or i8 on the CPU, got f16");
    }

    #[test]
    fn workers_divide_the_threads_and_are_no_more_than_threads_or_slots() {
        let threads = |threads, slots, workers| -> Vec<usize> {
            let options = EngineOptions { threads, slots, workers, ..EngineOptions::default() };
            open_cpu(&options).expect("threads start").iter().map(Cpu::threads).collect()
        };
        assert_eq!(threads(5, 32, 2), [2, 3]);
        assert_eq!(threads(3, 2, 8), [1, 2]);
        assert_eq!(threads(2, 1, 0), [2]);
        assert_eq!(threads(1, 32, 4), [1]);
    }

    #[test]
    fn without_a_gpu_auto_falls_back_and_says_why() {
        // No machine has a GPU of this number.
        let missing = Device::Cuda(9999);
        let with = |dtype| EngineOptions { dtype, threads: 1, ..EngineOptions::default() };
        let (opened, device, reason) = open_any(missing, &with(Dtype::F32)).expect("the CPU is there");
        assert!(matches!(opened, Opened::Cpu(_)));
        assert_eq!(device, Device::Cpu);
        assert!(reason.starts_with("open device cuda:9999: "), "{reason}");
        assert!(open_any(missing, &with(Dtype::F16)).is_err_and(|error| error.kind() == "device"));
    }
}
