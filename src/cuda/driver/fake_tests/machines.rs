//! Machines that are not as they should be.

use super::{Run, is_child, run, run_with};
use crate::backend::Activation;
use crate::cuda;

const OPENS: &str = "cuda::driver::fake_tests::machines::opens_and_works";

/// Opens the device and works on it until something fails.
#[test]
#[ignore = "run on the fake driver by other tests"]
fn opens_and_works() {
    if !is_child() {
        return;
    }
    let work = || -> crate::Result<()> {
        let context = cuda::open(0)?;
        for _ in 0..4 {
            let mut buffer = context.zeros::<f32>(64)?;
            let (x, bias) = (context.upload(&[1.0f32; 64])?, context.upload(&[2.0f32; 8])?);
            context.gemm([8, 8, 8], x.view(), x.view(), (Some(bias.view()), Activation::None), buffer.view_mut(), 8)?;
            assert_eq!(context.download(buffer.view())?, [10.0; 64]);
        }
        Ok(())
    };
    match work() {
        Ok(()) => println!("outcome: it works"),
        Err(error) => println!("outcome: {error}"),
    }
}

fn outcome(run: &Run) -> &str {
    assert!(run.passed && run.broken.is_empty(), "{run:#?}");
    run.output.lines().find_map(|line| line.split_once("outcome: ")).map_or("", |(_, said)| said)
}

/// What opening a machine with these settings says must have all parts.
#[track_caller]
fn says(settings: &str, parts: &[&str]) {
    let run = run(settings, &[OPENS.to_owned()]);
    let said = outcome(&run);
    for part in parts {
        assert!(said.contains(part), "{settings}: {part:?} is not in {said:?}");
    }
}

#[test]
fn a_sound_machine_works() {
    says("", &["it works"]);
    // A slice of a GPU under MIG is a GPU with less of everything.
    says("memory=5000000000", &["it works"]);
    says("capability=80", &["it works"]);
    says("capability=120", &["it works"]);
}

#[test]
fn what_a_machine_lacks_is_named_with_what_is_needed() {
    says("driver=12080", &["open device cuda:0", "CUDA 13.0 or later", "release 580", "got 12.8"]);
    says("capability=75", &["open device cuda:0", "compute capability 8.0 or later", "got 7.5"]);
    says("devices=0", &["open device cuda:0", "expected a GPU, got none", "CUDA_ERROR_NO_DEVICE", "MIG"]);
    says("exclusive=1", &["open device cuda:0", "exclusive mode", "CUDA_ERROR_DEVICE_UNAVAILABLE"]);
    says("memory=1000000000,taken=1000000000", &["open device cuda:0", "other processes hold it"]);
}

#[test]
fn a_device_that_is_lost_is_named_at_every_call_from_then_on() {
    says("lose=1", &["cuda:0", "CUDA_ERROR_ECC_UNCORRECTABLE"]);
    says("lose=2", &["cuda:0", "CUDA_ERROR_ECC_UNCORRECTABLE"]);
}

#[test]
fn a_missing_driver_is_named() {
    let empty = tempfile::tempdir().expect("a directory");
    // SAFETY: asks the dynamic loader only.
    if !unsafe { cudarc::driver::sys::is_culib_present() } {
        let run = run_with(empty.path(), "", &[OPENS.to_owned()]);
        assert_eq!(outcome(&run), "open device cuda:0: no NVIDIA driver found (libcuda)");
    }
}
