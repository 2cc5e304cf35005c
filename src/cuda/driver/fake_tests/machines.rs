//! Machines that are not as they should be.

use std::os::unix::fs::symlink;
use std::path::Path;

use super::{FAKE, Run, is_child, run, run_with};
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
            context.gemm([8, 8, 8], x.view(), x.view(), Some(bias.view()), buffer.view_mut(), 8)?;
            assert_eq!(context.download(buffer.view())?, [10.0; 64]);
        }
        println!("plans: {:?}", context.gemm_plans());
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
    says(
        "memory=1000000000,taken=990000000",
        &["expected 64 MiB of free GPU memory to start", "of 953 MiB", "other processes"],
    );
}

#[test]
fn a_device_that_is_lost_is_named_at_every_call_from_then_on() {
    says("lose=1,algorithms=0", &["cuda:0", "CUDA_ERROR_ECC_UNCORRECTABLE"]);
    says("lose=2,algorithms=0", &["cuda:0", "CUDA_ERROR_ECC_UNCORRECTABLE"]);
}

#[test]
fn products_without_a_plan_of_cublaslt_are_computed_all_the_same() {
    let run = run("algorithms=0", &[OPENS.to_owned()]);
    assert_eq!(outcome(&run), "it works");
    assert!(run.output.contains("with bias: own kernel"), "{}", run.output);
    let run = super::run("", &[OPENS.to_owned()]);
    assert!(run.output.contains("cuBLASLt algorithm 20, tile 15, stages 12, split 1"), "{}", run.output);
}

#[test]
fn missing_libraries_are_named() {
    let empty = tempfile::tempdir().expect("a directory");
    // SAFETY: asks the dynamic loader only.
    let (has_driver, has_products) =
        unsafe { (cudarc::driver::sys::is_culib_present(), cudarc::cublaslt::sys::is_culib_present()) };
    if !has_driver {
        let run = run_with(empty.path(), "", &[OPENS.to_owned()]);
        assert_eq!(outcome(&run), "open device cuda:0: no NVIDIA driver found (libcuda)");
    }
    if !has_products {
        for name in ["libcuda.so", "libcuda.so.1"] {
            symlink(Path::new(FAKE).join("libcuda.so.1"), empty.path().join(name)).expect("a link");
        }
        let run = run_with(empty.path(), "", &[OPENS.to_owned()]);
        let said = outcome(&run);
        assert!(said.starts_with("open device cuda:0: no cuBLASLt found (libcublasLt of CUDA 13)"), "{said}");
    }
}
