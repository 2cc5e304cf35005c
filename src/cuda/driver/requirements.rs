//! What the engine needs of a machine: a driver and a GPU that are new enough, and kernels in the build.

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;

use super::text;

/// The oldest compute capability that the kernels are compiled for.
const OLDEST_ARCHITECTURE: (i32, i32) = (8, 0);
/// The oldest driver that loads what CUDA 13 compiles, as `cuDriverGetVersion` numbers it: that of release 580.
const OLDEST_DRIVER: i32 = 13_000;

/// Whether a driver, as `cuDriverGetVersion` numbers it, has the functions that are called.
fn check_driver(version: i32) -> Result<(), String> {
    if version >= OLDEST_DRIVER {
        return Ok(());
    }
    let number = |version: i32| format!("{}.{}", version / 1000, version % 1000 / 10);
    Err(format!("expected a driver for CUDA {} or later (release 580), got {}", number(OLDEST_DRIVER), number(version)))
}

pub(super) fn check_device(device: sys::CUdevice) -> Result<(), String> {
    use sys::CUdevice_attribute::{
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
    };
    let read = |attribute| {
        // SAFETY: the device exists.
        unsafe { result::device::get_attribute(device, attribute) }
            .map_err(|error| format!("CUDA driver: {}", text(error)))
    };
    check_architecture((
        read(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
        read(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
    ))
}

/// Whether kernels were compiled for a compute capability.
fn check_architecture((major, minor): (i32, i32)) -> Result<(), String> {
    if (major, minor) >= OLDEST_ARCHITECTURE {
        return Ok(());
    }
    let (oldest_major, oldest_minor) = OLDEST_ARCHITECTURE;
    Err(format!("expected compute capability {oldest_major}.{oldest_minor} or later, got {major}.{minor}"))
}

/// The compiled kernels of one file.
pub(super) struct Image {
    pub op: &'static str,
    /// The fatbin, aligned as the driver wants it.
    pub words: Box<[u64]>,
}

#[cfg(any(device_code, emulated))]
pub(super) fn images() -> Result<Vec<Image>, String> {
    let copy = |bytes: &[u8]| {
        let mut words = vec![0u64; bytes.len().div_ceil(8)];
        bytemuck::cast_slice_mut(&mut words)[..bytes.len()].copy_from_slice(bytes);
        words.into_boxed_slice()
    };
    let codes = crate::cuda::generated::DEVICE_CODE.iter();
    Ok(codes.map(|code| Image { op: code.op, words: copy(code.fatbin) }).collect())
}

#[cfg(not(any(device_code, emulated)))]
pub(super) fn images() -> Result<Vec<Image>, String> {
    Err(NO_DEVICE_CODE.to_owned())
}

/// Why kernels do not load in a build whose images name what they would hold, for the fake driver alone.
pub(super) const NO_DEVICE_CODE: &str = "this build holds no device code, because no nvcc was found when it was built";

/// The driver's functions that are called. cudarc panics where one is missing, so they are asked for first.
pub(super) const DRIVER_SYMBOLS: &[&str] = &[
    "cuCtxSetCurrent",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetMemPool",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDriverGetVersion",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuFuncGetParamInfo",
    "cuFuncSetAttribute",
    "cuGetErrorString",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuGraphGetNodes",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuInit",
    "cuLaunchKernel",
    "cuMemAllocAsync",
    "cuMemAlloc_v2",
    "cuMemFreeAsync",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuMemGetInfo_v2",
    "cuMemHostAlloc",
    "cuMemPoolGetAttribute",
    "cuMemPoolSetAttribute",
    "cuMemcpyDtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyDtoH_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemsetD8Async",
    "cuModuleGetFunction",
    "cuModuleGetGlobal_v2",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuStreamBeginCapture_v2",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamEndCapture",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
];
/// Whether the driver is there, new enough, and has all functions.
pub(super) fn check_library() -> Result<(), String> {
    type Function = unsafe extern "C" fn();
    let mut version = 0;
    // SAFETY: asks the dynamic loader, then the driver for one number.
    unsafe {
        if !sys::is_culib_present() {
            return Err("no NVIDIA driver found (libcuda)".to_owned());
        }
        let has = |name: &str| sys::culib().get::<Function>(name.as_bytes()).is_ok();
        check_symbols(&["cuDriverGetVersion"], has)?;
        sys::cuDriverGetVersion(&mut version).result().map_err(|error| format!("CUDA driver: {:?}", error.0))?;
        check_driver(version)?;
        check_symbols(DRIVER_SYMBOLS, has)
    }
}

/// Whether the driver has these functions.
fn check_symbols(symbols: &[&str], has: impl Fn(&str) -> bool) -> Result<(), String> {
    let missing: Vec<&str> = symbols.iter().copied().filter(|symbol| !has(symbol)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(format!("expected a libcuda with all functions that are called, got one without {}", missing.join(", ")))
}

/// What a failure to take the device means, in words.
pub(super) fn describe_refusal(device: sys::CUdevice, error: DriverError) -> String {
    use sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_MODE;
    use sys::cudaError_enum::{CUDA_ERROR_DEVICE_UNAVAILABLE, CUDA_ERROR_OUT_OF_MEMORY};
    let said = text(error);
    match error.0 {
        CUDA_ERROR_DEVICE_UNAVAILABLE => {
            // SAFETY: the device exists.
            let mode = unsafe { result::device::get_attribute(device, CU_DEVICE_ATTRIBUTE_COMPUTE_MODE) };
            let mode = match mode {
                Ok(3) => "it is in exclusive mode, and another process has it",
                Ok(2) => "its compute mode prohibits every process",
                _ => "another process has it, or it has failed",
            };
            format!("expected a GPU that can be shared, got one that cannot be had: {mode} ({said})")
        }
        CUDA_ERROR_OUT_OF_MEMORY => {
            format!("expected free GPU memory, got none for a context: other processes hold it ({said})")
        }
        _ => format!("CUDA driver: {said}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_old_is_named_with_what_would_do() {
        assert_eq!(check_architecture((8, 0)), Ok(()));
        assert_eq!(check_architecture((12, 0)), Ok(()));
        let refused = Err("expected compute capability 8.0 or later, got 7.5".to_owned());
        assert_eq!(check_architecture((7, 5)), refused);
        assert_eq!(check_driver(13_000), Ok(()));
        let has = |name: &str| name != "cuFuncGetParamInfo" && name != "cuInit";
        let missing =
            "expected a libcuda with all functions that are called, got one without cuFuncGetParamInfo, cuInit";
        assert_eq!(check_symbols(DRIVER_SYMBOLS, has), Err(missing.to_owned()));
        assert_eq!(check_symbols(DRIVER_SYMBOLS, |_| true), Ok(()));
        assert_eq!(
            check_driver(11_080),
            Err("expected a driver for CUDA 13.0 or later (release 580), got 11.8".to_owned())
        );
    }
}
