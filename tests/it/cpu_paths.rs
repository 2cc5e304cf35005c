//! Each choice of the CPU's instructions gives a sentence the same bits whatever it is decoded with, and those of the other choices
//! where that is promised.

use std::sync::LazyLock;

use crate::common;
use crate::common::command::{Finished, command, run_command};
use beamfuse::cpu::{PATH_VARIABLE, Path};

/// Few: every path takes its turn, the slow ones, too.
const LINES: usize = 16;

fn run_on(path: &str, args: &[&str], input: &[u8]) -> Finished {
    let mut command = command(args);
    command.env(PATH_VARIABLE, path);
    run_command(command, input)
}

/// Translations with all scores, which JSON carries to the last bit.
fn translate(path: &str, dtype: &str, more: &[&str]) -> String {
    let base = ["translate", "--format", "jsonl", "--beam-size", "2", "--n-best", "2", "--dtype", dtype];
    let text = common::own_text();
    let lines: String =
        text.lines().take(LINES).map(|line| serde_json::json!({ "source": line }).to_string() + "\n").collect();
    run_on(path, &[&base[..], more].concat(), lines.as_bytes()).ok().out
}

const DTYPES: [&str; 3] = ["f32", "bf16", "i8"];

/// What other paths are held to, where this one can be used.
static BY_AVX2: LazyLock<[String; 3]> =
    LazyLock::new(|| DTYPES.map(|dtype| translate("avx2", dtype, &["--batch-size", "32", "--threads", "1"])));

/// A sentence in any batch, on any number of threads.
fn check(path: Path) {
    assert_eq!(path.missing(), None, "this machine is not the one that the tests were built on");
    for (which, dtype) in DTYPES.into_iter().enumerate() {
        let alone = translate(path.name(), dtype, &["--batch-size", "1", "--threads", "1"]);
        assert_eq!(alone.lines().count(), LINES);
        for (batch, threads, workers) in [("5", "2", "1"), ("16", "3", "2")] {
            let more = ["--batch-size", batch, "--threads", threads, "--workers", workers];
            assert_eq!(translate(path.name(), dtype, &more), alone, "{path:?}, {dtype}, {more:?}");
        }
        // Without fused multiply-add, or adding in another order, other bits are allowed.
        let apart = path == Path::Portable || (path == Path::Avx512Bf16 && dtype == "bf16");
        if !apart && Path::Avx2.missing().is_none() {
            assert_eq!(BY_AVX2[which], alone, "{path:?}, {dtype}");
        }
    }
}

/// One test for each path, ignored where the machine lacks it.
macro_rules! paths {
    ($($test:ident $name:literal $path:expr;)+) => {$(
        #[test]
        #[cfg_attr(not(cpu_path = $name), ignore = concat!("this machine has no path ", $name))]
        fn $test() {
            check($path);
        }
    )+};
}

paths! {
    amx "amx" Path::Amx;
    avx512_bf16 "avx512-bf16" Path::Avx512Bf16;
    avx512_vnni "avx512-vnni" Path::Avx512Vnni;
    avx512 "avx512" Path::Avx512;
    avx_vnni "avx-vnni" Path::AvxVnni;
    avx2 "avx2" Path::Avx2;
    portable "portable" Path::Portable;
}

#[test]
fn a_path_that_cannot_be_used_is_refused_by_name() {
    let refused = run_on("sse9", &["translate"], b"A dog.\n");
    let here: Vec<&str> = Path::available().map(Path::name).collect();
    let expected = format!("option {PATH_VARIABLE}: expected one of {}, got sse9", here.join(", "));
    assert_eq!(refused.code, Some(2), "{refused:?}");
    assert!(refused.err.contains(&expected), "{refused:?}");
    for path in Path::ALL {
        let Some(reason) = path.missing() else { continue };
        let refused = run_on(path.name(), &["translate"], b"A dog.\n");
        assert!(refused.code == Some(2) && refused.err.contains(&reason), "{refused:?}");
    }
}

#[test]
fn info_lists_the_paths_and_says_why_one_is_missing() {
    let first = Path::available().next().expect("the portable path is everywhere");
    let text = run_on("", &["info"], b"").ok().out;
    assert!(text.contains(&format!("{}, the best here", first.name())), "{text}");
    for path in Path::ALL {
        let line = text.lines().find(|line| line.trim().starts_with(&format!("{}: ", path.name())));
        let line = line.unwrap_or_else(|| panic!("{}: {text}", path.name()));
        let expected = path.missing().map_or("can be used".to_owned(), |reason| format!("missing: {reason}"));
        assert!(line.ends_with(&expected), "{line}");
    }
    let text = run_on("portable", &["info"], b"").ok().out;
    assert!(text.contains(&format!("portable, chosen by {PATH_VARIABLE}")), "{text}");
}
