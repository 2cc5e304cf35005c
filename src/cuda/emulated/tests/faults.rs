//! That each fault planted in a kernel is caught.

use super::{Planted, message, ramp};
use crate::Result;

#[test]
fn a_missing_barrier_is_caught() -> Result<()> {
    for seed in 0..20 {
        let mut planted = Planted::new(seed, &ramp(64), 64, 1)?;
        planted.launch("planted_reverse", [1; 3], 64, 64, 1)?;
        assert!(planted.out()?.iter().any(|value| value.is_nan()), "seed {seed}");
    }
    Ok(())
}

#[test]
fn a_missing_barrier_before_shared_memory_is_used_again_is_caught() -> Result<()> {
    for seed in 0..20 {
        let mut planted = Planted::new(seed, &[1.0; 128], 128, 1)?;
        planted.launch("planted_sum_twice", [1; 3], 128, 128, 1)?;
        assert!(planted.out()?.iter().any(|&value| value != 21.0 * 128.0), "seed {seed}");
    }
    Ok(())
}

#[test]
fn a_divergent_barrier_is_caught() -> Result<()> {
    for (fault, expected) in [(2, "have returned"), (2, "returned while"), (3, "while others wait at")] {
        let mut seen = Vec::new();
        for seed in 0..20 {
            let mut planted = Planted::new(seed, &ramp(64), 64, 1)?;
            planted.launch("planted_reverse", [1; 3], 64, 64, fault)?;
            seen.push(message(planted.out()));
        }
        assert!(seen.iter().all(|text| text.starts_with("planted_reverse: block (0, 0, 0), thread (")), "{seen:?}");
        assert!(seen.iter().all(|text| text.contains("divergent barrier") && text.contains("planted.cu:")), "{seen:?}");
        assert!(seen.iter().any(|text| text.contains(expected)), "{expected}: {seen:?}");
    }
    Ok(())
}

#[test]
fn a_divergent_warp_is_caught() -> Result<()> {
    for (fault, expected) in [
        (1, "divergent warp: the exchange at"),
        (2, "reads lane 20, which takes no part in it"),
        (3, "meet in different exchanges"),
        (4, "divergent warp: the exchange at"),
    ] {
        for seed in 0..5 {
            let mut planted = Planted::new(seed, &[], 64, 1)?;
            planted.launch("planted_exchanges", [1; 3], 64, 0, fault)?;
            let text = message(planted.out());
            assert!(text.contains(expected), "{text}");
        }
    }
    Ok(())
}

#[test]
fn an_operation_that_not_all_of_a_warp_come_to_is_caught() -> Result<()> {
    for (fault, expected) in [(1, "an operation of the whole warp"), (2, "in different operations")] {
        for seed in 0..5 {
            let mut planted = Planted::new(seed, &[1.0; 384], 128, 1)?;
            planted.launch("planted_products", [1; 3], 32, 0, fault)?;
            let text = message(planted.out());
            assert!(text.contains("divergent warp") && text.contains(expected), "{text}");
        }
    }
    Ok(())
}

#[test]
fn a_copy_that_is_not_waited_for_is_caught() -> Result<()> {
    for seed in 0..5 {
        let launch = |fault: u32| -> Result<Planted> {
            let mut planted = Planted::new(seed, &ramp(260), 256, 1)?;
            planted.launch("planted_copies", [1; 3], 64, 64, fault)?;
            Ok(planted)
        };
        let text = message(launch(1)?.out());
        assert!(text.contains("returned while 1 of its copies were under way"), "{text}");
        // Those who go on first read what others have not waited for.
        assert!(launch(2)?.out()?.iter().any(|value| value.is_nan()), "seed {seed}");
        assert!(launch(3)?.out()?.iter().any(|value| value.is_nan()), "seed {seed}");
        let text = message(launch(4)?.out());
        assert!(text.contains("misaligned: a copy of 16 bytes"), "{text}");
    }
    Ok(())
}

/// Runs this very test in another process, where AddressSanitizer may end it; returns what it said.
#[cfg(sanitized)]
fn run_in_child(test: &str) -> String {
    let this = std::env::current_exe().expect("the test binary has a path");
    let child = std::process::Command::new(this).args(["--exact", test]).env("BEAMFUSE_PLANTED_CHILD", "1").output();
    let output = child.expect("the test binary runs");
    assert!(!output.status.success(), "AddressSanitizer found nothing");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// In a sanitized build, runs the faulty launch in a child process and expects AddressSanitizer to end it there; returns
/// whether this is the child, or another build, which is to run the launch itself.
fn runs_here(_test: &str) -> bool {
    #[cfg(sanitized)]
    if std::env::var_os("BEAMFUSE_PLANTED_CHILD").is_none() {
        let said = run_in_child(&format!("cuda::emulated::tests::faults::{_test}"));
        // UndefinedBehaviorSanitizer sees an index past the end of an array before AddressSanitizer sees the access.
        let caught = said.contains("AddressSanitizer: use-after-poison") || said.contains("out of bounds for type");
        assert!(caught, "{said}");
        return false;
    }
    true
}

#[test]
fn a_write_past_an_allocation_is_caught() -> Result<()> {
    if !runs_here("a_write_past_an_allocation_is_caught") {
        return Ok(());
    }
    let mut planted = Planted::new(0, &ramp(33), 33, 1)?;
    planted.launch("planted_twice", [2, 1, 1], 32, 33, 0)?;
    planted.context.synchronize()?;
    planted.launch("planted_twice", [2, 1, 1], 32, 33, 1)?;
    let text = message(planted.out());
    assert!(
        text.starts_with("planted_twice: wrote up to") && text.ends_with("after an allocation of 132 bytes"),
        "{text}"
    );
    Ok(())
}

#[test]
fn a_read_past_an_allocation_is_caught() -> Result<()> {
    if !runs_here("a_read_past_an_allocation_is_caught") {
        return Ok(());
    }
    let mut planted = Planted::new(0, &ramp(33), 33, 1)?;
    planted.launch("planted_twice", [2, 1, 1], 32, 33, 2)?;
    let out = planted.out()?;
    assert_eq!(out[..32], (1..33).map(|i| 2.0 * i as f32).collect::<Vec<_>>());
    assert!(out[32].is_nan());
    Ok(())
}

#[test]
fn a_write_past_a_shared_array_is_caught() -> Result<()> {
    if !runs_here("a_write_past_a_shared_array_is_caught") {
        return Ok(());
    }
    let mut planted = Planted::new(0, &ramp(256), 256, 1)?;
    planted.launch("planted_reverse", [1; 3], 256, 256, 4)?;
    let text = message(planted.out());
    assert!(text.ends_with("write outside a shared array of 1024 bytes"), "{text}");
    Ok(())
}

#[test]
fn a_misaligned_vector_is_caught() -> Result<()> {
    for (fault, way) in [(1, "packs"), (2, "reads past the cache"), (3, "writes past the cache")] {
        let mut planted = Planted::new(0, &ramp(64), 64, 1)?;
        planted.launch("planted_vectors", [1; 3], 32, 4, 0)?;
        assert_eq!(planted.out()?[..12], [4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0]);
        planted.launch("planted_vectors", [1; 3], 32, 4, fault)?;
        let text = message(planted.out());
        assert!(
            text.starts_with("planted_vectors: block (0, 0, 0), thread (0, 0, 0): misaligned: 16 bytes"),
            "{way}: {text}"
        );
    }
    Ok(())
}

/// An address far from all memory, and a division that processors refuse: the launch fails, the process goes on.
#[test]
#[cfg(not(sanitized))]
fn an_access_far_from_all_memory_is_caught() -> Result<()> {
    let refused = if cfg!(target_arch = "x86_64") { 2 } else { 1 };
    for (fault, expected) in
        [(1, "access to memory that is not there at"), (2, "division by zero at")].iter().take(refused)
    {
        // Again and again: the handler must be as ready for the last as for the first.
        for seed in 0..3 {
            let mut planted = Planted::new(seed, &ramp(64), 64, 1)?;
            planted.launch("planted_wild", [2, 1, 1], 64, 0, *fault)?;
            let text = message(planted.out());
            assert!(text.starts_with("planted_wild: block (") && text.contains(expected), "{text}");
        }
    }
    // From another thread, whose stack is another.
    let elsewhere = std::thread::spawn(|| -> Result<String> {
        let mut planted = Planted::new(0, &ramp(64), 64, 1)?;
        planted.launch("planted_wild", [1; 3], 64, 0, 1)?;
        Ok(message(planted.out()))
    });
    assert!(elsewhere.join().expect("no panic")?.contains("memory that is not there"));
    Ok(())
}

#[test]
fn a_failure_sticks_and_the_next_device_is_sound() -> Result<()> {
    let mut planted = Planted::new(0, &ramp(64), 64, 1)?;
    planted.launch("planted_reverse", [1; 3], 64, 64, 2)?;
    let first = message(planted.out());
    assert_eq!(message(planted.out()), first);
    assert_eq!(planted.launch("planted_reverse", [1; 3], 64, 64, 0).unwrap_err().kind(), "device_operation");
    assert_eq!(planted.context.allocate::<f32>(1).err().map(|error| error.kind()), Some("device_operation"));
    let mut next = Planted::new(0, &ramp(64), 64, 1)?;
    next.launch("planted_reverse", [1; 3], 64, 64, 0)?;
    assert_eq!(next.out()?[0], 63.0);
    Ok(())
}
