//! The CUDA backend: kernels of its own, on a GPU or emulated on the host.
//!
//! | file | what |
//! |---|---|
//! | `device` | the narrow layer: allocate, copy, launch, multiply, capture |
//! | `driver` | that layer on a GPU: CUDA driver, graphs |
//! | `emulated` | that layer on the host: the same kernels, run by `kernels/host` |
//! | `dry` | that layer without a device: plans of memory count what would be allocated |
//! | `context`, `buffer` | what makes it safe: typed buffers and views, graphs, injected faults; `counters` beside it |
//! | `tensor` | buffers whose type of element is known at run time |
//! | `layout` | structs and numbers that launchers and kernels share, compared |
//! | `matrix` | the weights of linear layers, and products with them |
//! | `rows` | which rows of a step are live, as launchers take it |
//! | `backend` | the `Backend` over all that |
//! | one per kernel family | its launcher: shapes are checked there, then it is `unsafe` |
//!
//! [`open`] and [`open_emulated`] say clearly why a device is not there; nothing panics where no driver is installed.

mod buffer;
mod context;
mod counters;
mod device;
#[cfg(feature = "cuda")]
mod driver;
mod dry;
pub(crate) mod element;
#[cfg(emulated)]
pub mod emulated;
mod layout;
pub(crate) mod matrix;
mod rows;
mod tensor;

pub mod attention;
pub mod backend;
pub mod beam_step;
pub mod checksum;
pub mod contrastive;
pub mod embedding;
pub mod ensemble;
pub mod gate;
pub mod gather;
pub mod gemm;
pub mod layer_norm;
pub mod linear_norm;
pub mod loss;
pub mod processors;
pub mod quantize;
pub mod risk;
pub mod sample;
pub mod scheduled_sampling;
pub mod stats;
pub(crate) mod testing;

pub use backend::Cuda;
pub use buffer::{Buffer, Graph, Pinned, View, ViewMut};
pub use context::{Context, Fault, Recording};
pub use counters::Counters;
pub use device::{Device, Gemm, GraphId, Launch, PinnedId};
pub use element::Element;
pub use rows::RowList;
pub use tensor::Tensor;

use crate::Result;

/// What nvcc made of one file in `kernels/`.
#[cfg(all(feature = "cuda", any(device_code, emulated)))]
struct DeviceCode {
    /// The file's name.
    op: &'static str,
    /// Machine code for each architecture, and PTX for later ones.
    fatbin: &'static [u8],
    /// What the assembler said about registers, stack and spills.
    #[cfg_attr(not(all(test, device_code)), allow(dead_code))]
    report: &'static str,
}

/// Written by build.rs: the kernel files, and what each was compiled to.
mod generated {
    include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
}

/// The kernel families of this build: the names of the files in `kernels/`.
pub fn kernel_ops() -> &'static [&'static str] {
    generated::OPS
}

/// Elements of a 16-byte pack.
fn pack_size<T>() -> usize {
    16 / size_of::<T>()
}

/// Whether a kernel may move rows of `len` elements in packs of 16 bytes. Null addresses do not matter.
fn is_vectorizable<T>(len: usize, addresses: &[u64]) -> bool {
    len.is_multiple_of(pack_size::<T>()) && addresses.iter().all(|address| address.is_multiple_of(16))
}

/// Opens the GPU with this number.
///
/// # Errors
/// [`Error::Device`](crate::Error::Device) if this build holds no device code, or no driver or no such GPU is
/// there, or the GPU is older than compute capability 8.0.
pub fn open(ordinal: usize) -> Result<Context> {
    #[cfg(feature = "cuda")]
    return Ok(Context::new(Box::new(driver::CudaDevice::open(ordinal)?)));
    #[cfg(not(feature = "cuda"))]
    Err(crate::Error::Device {
        device: format!("cuda:{ordinal}"),
        reason: "this build leaves GPUs out; build with --features cuda".to_owned(),
    })
}

/// How many GPUs the driver knows; 0 without a driver.
pub fn count() -> usize {
    #[cfg(feature = "cuda")]
    return driver::count();
    #[cfg(not(feature = "cuda"))]
    0
}

/// Opens a device on which nothing happens: its counters say what would be allocated.
pub fn open_dry() -> Context {
    Context::new(Box::new(dry::DryDevice::default()))
}

/// Opens a new emulated device.
///
/// # Errors
/// [`Error::Device`](crate::Error::Device) if this build has no emulator, or memory is short.
pub fn open_emulated() -> Result<Context> {
    open_emulated_with(None)
}

/// As [`open_emulated`], with so many bytes of memory, if a number is given.
///
/// # Errors
/// As [`open_emulated`].
pub fn open_emulated_with(_memory: Option<u64>) -> Result<Context> {
    #[cfg(emulated)]
    return Ok(Context::new(Box::new(emulated::EmulatedDevice::new(0)?.with_memory(_memory))));
    #[cfg(not(emulated))]
    Err(crate::Error::Device {
        device: "emulated".to_owned(),
        reason: match cfg!(feature = "emulator") {
            true => "this build has no emulator, because no C++17 compiler was found when it was built".to_owned(),
            false => "this build leaves the emulator out; build with --features emulator".to_owned(),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the assembler says about one kernel on one architecture.
    #[cfg(device_code)]
    fn entries(report: &str) -> Vec<(&str, &str)> {
        // "Compiling entry function 'layer_norm_f32' for 'sm_90'", then lines about it.
        report
            .split("Compiling entry function ")
            .skip(1)
            .map(|entry| entry.split_once('\n').unwrap_or((entry, "")))
            .collect()
    }

    #[test]
    #[cfg_attr(not(device_code), ignore = "needs nvcc")]
    fn no_kernel_spills_or_uses_a_stack() {
        #[cfg(device_code)]
        for code in generated::DEVICE_CODE {
            let entries = entries(code.report);
            assert!(!entries.is_empty(), "{}: the report names no kernel:\n{}", code.op, code.report);
            for (name, about) in entries {
                let clean = about.contains("    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads");
                assert!(clean, "{name}\n{about}");
            }
        }
    }

    #[test]
    #[cfg_attr(not(device_code), ignore = "needs nvcc")]
    fn every_op_is_compiled_for_every_architecture() {
        #[cfg(device_code)]
        {
            let ops: Vec<&str> = generated::DEVICE_CODE.iter().map(|code| code.op).collect();
            assert_eq!(ops, kernel_ops());
            let architectures: Vec<&str> = env!("BEAMFUSE_DEVICE_ARCHITECTURES").split(',').collect();
            for code in generated::DEVICE_CODE {
                // Names and architectures: 'layer_norm_f32' for 'sm_90'.
                let names = |architecture: &str| -> Vec<&str> {
                    let suffix = format!("' for 'sm_{architecture}'");
                    let mut names: Vec<&str> = entries(code.report)
                        .iter()
                        .filter_map(|(entry, _)| entry.trim().strip_suffix(&suffix))
                        .collect();
                    names.sort_unstable();
                    names
                };
                let first = names(architectures[0]);
                assert!(first.iter().any(|name| name.ends_with("_f32")), "{}: kernels {first:?}", code.op);
                for architecture in &architectures {
                    assert_eq!(names(architecture), first, "{} on {architecture}", code.op);
                }
            }
        }
    }

    #[test]
    fn every_kernel_file_has_its_launcher() {
        let here = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cuda");
        assert!(!kernel_ops().is_empty());
        for op in kernel_ops() {
            assert!(here.join(format!("{op}.rs")).is_file(), "kernels/{op}.cu has no src/cuda/{op}.rs");
        }
    }

    #[test]
    #[cfg_attr(emulated, ignore = "needs a build without a C++ compiler")]
    fn a_missing_emulator_is_an_error() {
        assert_eq!(open_emulated().err().map(|error| error.kind()), Some("device"));
    }
}
