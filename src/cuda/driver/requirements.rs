//! What the engine needs of a machine: a driver and a GPU that are new enough, and kernels in the build.

use cudarc::driver::result;
use cudarc::driver::sys;

use super::text;

/// The oldest compute capability that the kernels are compiled for.
const OLDEST_ARCHITECTURE: (i32, i32) = (8, 0);
/// The oldest driver whose functions are called, as `cuDriverGetVersion` numbers it.
const OLDEST_DRIVER: i32 = 12_000;
/// Whether a driver, as `cuDriverGetVersion` numbers it, has the functions that are called.
pub(super) fn check_driver(version: i32) -> Result<(), String> {
    if version >= OLDEST_DRIVER {
        return Ok(());
    }
    let number = |version: i32| format!("{}.{}", version / 1000, version % 1000 / 10);
    Err(format!("expected a driver for CUDA {} or later, got {}", number(OLDEST_DRIVER), number(version)))
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

#[cfg(device_code)]
pub(super) fn images() -> Result<Vec<Image>, String> {
    let copy = |bytes: &[u8]| {
        let mut words = vec![0u64; bytes.len().div_ceil(8)];
        bytemuck::cast_slice_mut(&mut words)[..bytes.len()].copy_from_slice(bytes);
        words.into_boxed_slice()
    };
    let codes = crate::cuda::generated::DEVICE_CODE.iter();
    Ok(codes.map(|code| Image { op: code.op, words: copy(code.fatbin) }).collect())
}

#[cfg(not(device_code))]
pub(super) fn images() -> Result<Vec<Image>, String> {
    Err("this build holds no device code, because no nvcc was found when it was built".to_owned())
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
        assert_eq!(check_driver(11_080), Err("expected a driver for CUDA 12.0 or later, got 11.8".to_owned()));
    }
}
