//! Which device a translator computes on, and opening it: the one place that names both backends.

use std::fmt;
use std::str::FromStr;

use half::{bf16, f16};

use super::EngineOptions;
use crate::backend::{Backend, Dtype};
use crate::cpu::Cpu;
use crate::cuda::{self, Context, Cuda};
use crate::decode::engine::Engine;
use crate::model::Marian;
use crate::model::config::ModelConfig;
use crate::model::weights::Weights;
use crate::{Error, Result};

/// Where a [`Translator`](crate::Translator) computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The CPU, in f32 or i8.
    #[default]
    Cpu,
    /// The GPU with this number, in f32, f16 or bf16.
    Cuda(usize),
    /// The CUDA kernels run on the host, one thread at a time: for checking them, not for speed.
    Emulated,
    /// The first GPU if it can be used in the element type asked for, else the CPU.
    Auto,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
            Device::Emulated => f.write_str("emulated"),
            Device::Auto => f.write_str("auto"),
        }
    }
}

impl FromStr for Device {
    type Err = Error;

    /// `cpu`, `cuda` (the first), `cuda:1`, `emulated` or `auto`.
    fn from_str(text: &str) -> Result<Self> {
        let ordinal = text.strip_prefix("cuda:").and_then(|number| number.parse().ok());
        match (text, ordinal) {
            ("cpu", _) => Ok(Device::Cpu),
            ("cuda", _) => Ok(Device::Cuda(0)),
            ("emulated", _) => Ok(Device::Emulated),
            ("auto", _) => Ok(Device::Auto),
            (_, Some(ordinal)) => Ok(Device::Cuda(ordinal)),
            _ => {
                let expected = "cpu, cuda, cuda:N, emulated or auto".to_owned();
                Err(Error::Option { option: "device", expected, got: text.to_owned() })
            }
        }
    }
}

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
    Cuda(Context),
}

/// Starts an engine over a model on the device that the options ask for.
pub(super) fn start(
    options: &EngineOptions,
    config: &ModelConfig,
    weights: &Weights,
) -> Result<(Engine, DeviceChoice)> {
    let (opened, choice) = open(options)?;
    let (slots, dtype) = (options.slots, options.dtype);
    let engine = match opened {
        Opened::Cpu(workers) => start_on(workers, config, weights, slots),
        Opened::Cuda(context) => match dtype {
            Dtype::F32 => start_on(vec![Cuda::<f32>::new(context)], config, weights, slots),
            Dtype::F16 => start_on(vec![Cuda::<f16>::new(context)], config, weights, slots),
            Dtype::Bf16 => start_on(vec![Cuda::<bf16>::new(context)], config, weights, slots),
            Dtype::I8 => Err(no_i8(choice.device)),
        },
    }?;
    Ok((engine, choice))
}

fn start_on<B: Backend>(workers: Vec<B>, config: &ModelConfig, weights: &Weights, slots: usize) -> Result<Engine> {
    let model = Marian::new(&workers[0], config, weights)?;
    Engine::start(workers, vec![model], config.vocab_size, slots)
}

fn open(options: &EngineOptions) -> Result<(Opened, DeviceChoice)> {
    let EngineOptions { device, dtype, .. } = *options;
    let chosen = |opened: Opened, device: Device| (opened, DeviceChoice { device, reason: None });
    match device {
        Device::Cpu => Ok(chosen(Opened::Cpu(open_cpu(options)?), device)),
        Device::Cuda(_) | Device::Emulated => Ok(chosen(Opened::Cuda(open_cuda(device, dtype)?), device)),
        Device::Auto => {
            let (opened, device, reason) = open_any(Device::Cuda(0), options)?;
            Ok((opened, DeviceChoice { device, reason: Some(reason) }))
        }
    }
}

/// The GPU if it can be used, else the CPU, and why.
fn open_any(gpu: Device, options: &EngineOptions) -> Result<(Opened, Device, String)> {
    match open_cuda(gpu, options.dtype) {
        Ok(context) => Ok((Opened::Cuda(context), gpu, "it can be used".to_owned())),
        // What the CPU cannot compute in was meant for the GPU.
        Err(error) if matches!(options.dtype, Dtype::F16 | Dtype::Bf16) => Err(error),
        Err(error) => Ok((Opened::Cpu(open_cpu(options)?), Device::Cpu, error.to_string())),
    }
}

/// The CPU, once for each worker: a share of the threads each.
fn open_cpu(options: &EngineOptions) -> Result<Vec<Cpu>> {
    let threads = match options.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    };
    let most = threads.min(options.slots);
    let workers = if options.workers == 0 { most } else { options.workers.min(most) };
    (0..workers).map(|i| Cpu::new((threads + i) / workers, options.dtype)).collect()
}

fn open_cuda(device: Device, dtype: Dtype) -> Result<Context> {
    match device {
        _ if dtype == Dtype::I8 => Err(no_i8(device)),
        Device::Cuda(ordinal) => cuda::open(ordinal),
        _ => cuda::open_emulated(),
    }
}

fn no_i8(device: Device) -> Error {
    Error::Option { option: "dtype", expected: format!("f32, f16 or bf16 on {device}"), got: "i8".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for device in [Device::Cpu, Device::Cuda(0), Device::Cuda(3), Device::Emulated, Device::Auto] {
            assert_eq!(device.to_string().parse::<Device>().ok(), Some(device));
        }
        assert_eq!("cuda".parse::<Device>().ok(), Some(Device::Cuda(0)));
        for wrong in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "CPU"] {
            let error = wrong.parse::<Device>().unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("option device: expected cpu, cuda, cuda:N, emulated or auto, got {wrong}")
            );
        }
    }

    fn refusal(device: Device, dtype: Dtype) -> String {
        let options = EngineOptions { device, dtype, threads: 1, ..EngineOptions::default() };
        open(&options).err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn a_type_that_the_device_does_not_compute_in_is_refused() {
        assert_eq!(refusal(Device::Cpu, Dtype::F16), "option dtype: expected f32 or i8 on the CPU, got f16");
        assert_eq!(refusal(Device::Cpu, Dtype::Bf16), "option dtype: expected f32 or i8 on the CPU, got bf16");
        assert_eq!(refusal(Device::Emulated, Dtype::I8), "option dtype: expected f32, f16 or bf16 on emulated, got i8");
        assert_eq!(refusal(Device::Cuda(2), Dtype::I8), "option dtype: expected f32, f16 or bf16 on cuda:2, got i8");
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
        let (_, device, reason) = open_any(missing, &with(Dtype::I8)).expect("the CPU is there");
        assert_eq!((device, reason.as_str()), (Device::Cpu, refusal(missing, Dtype::I8).as_str()));
        assert!(open_any(missing, &with(Dtype::F16)).is_err_and(|error| error.kind() == "device"));
    }
}
