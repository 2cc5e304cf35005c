//! Numbers that nobody means: every option of every subcommand, at the ends of its range and far behind them, with little memory.
//! The options are those of the parser itself, so that a new one is tried without being named here.

use std::any::TypeId;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use clap::Arg;

use crate::common::tiny::Tiny;

/// Bytes of address space that a command gets.
const MEMORY: u64 = 4 << 30;

/// A command that is still at work after this has got over its options.
const LONG_ENOUGH: Duration = Duration::from_secs(2);

/// What an option takes.
#[derive(Clone, Debug, PartialEq)]
enum Kind {
    Count {
        least: String,
        most: String,
    },
    Number,
    /// Text, of which some is read as numbers later.
    Other,
}

fn kind(arg: &Arg) -> Option<Kind> {
    let parser = arg.get_value_parser();
    let is = |types: &[TypeId]| types.iter().any(|of| parser.type_id() == *of);
    if !arg.get_action().takes_values() || is(&[TypeId::of::<std::path::PathBuf>()]) {
        return None;
    }
    let possible: Vec<_> = parser.possible_values().into_iter().flatten().collect();
    match &possible[..] {
        [range] => {
            let (least, most) = range.get_name().split_once(" to ")?;
            Some(Kind::Count { least: least.to_owned(), most: most.to_owned() })
        }
        [] if is(&[TypeId::of::<f32>(), TypeId::of::<f64>()]) => Some(Kind::Number),
        [] => Some(Kind::Other),
        _ => None,
    }
}

/// What lets an option have an effect at all.
fn beside(subcommand: &str, option: &str) -> &'static [&'static str] {
    match (subcommand, option) {
        ("bench", "seed" | "sentences") => &["--lengths=4"],
        ("train", _) if option.starts_with("mrt") => &["--objective=mrt"],
        ("train", _) if option.starts_with("ss") => &["--force"],
        ("train", "distill-temperature" | "distill-beta" | "distill-gold" | "student-share") => {
            &["--objective=distill"]
        }
        ("train", "ema-decay" | "teacher-top-p") => &["--objective=distill", "--prefixes=teacher"],
        ("train", _) => &["--objective=mle"],
        (_, "samples" | "temperature" | "top-k" | "top-p" | "min-p" | "epsilon" | "seed") => &["--sample"],
        (_, "diversity") => &["--beam-groups=2"],
        (_, "alternatives") => &["--format=nbest"],
        (_, "min-alternative-prob") => &["--format=nbest", "--alternatives=2"],
        (_, _) if option.starts_with("contrastive-") => &["--contrastive=source"],
        _ => &[],
    }
}

/// A run of each subcommand that is done soon.
fn base(subcommand: &str, dir: &Path, model: &Path) -> Vec<String> {
    let file = |name: &str| dir.join(name).display().to_string();
    let (en, de) = (file("two.en"), file("two.de"));
    let with = |own: &[(&str, &str)]| own.iter().map(|(name, value)| format!("--{name}={value}")).collect::<Vec<_>>();
    let mut base = match subcommand {
        "translate" => with(&[("input", &en), ("threads", "1")]),
        "score" => with(&[("input", &file("two.tsv")), ("threads", "1")]),
        "eval" => with(&[("input", &en), ("reference", &de), ("resamples", "2"), ("threads", "1")]),
        "bench" => {
            let small = ["sentences", "batch-size", "beam-size", "repeat", "threads"].map(|name| (name, "1"));
            with(&[&small[..], &[("warmup", "0")]].concat())
        }
        "diagnose" => {
            let small = ["probe-lines", "sweep-lines", "null-draws", "permutations", "threads", "batch-size"]
                .map(|name| (name, "1"));
            with(&[&small[..], &[("resamples", "2"), ("source", &en), ("reference", &de)]].concat())
        }
        "train" => with(&[("data", &file("two.tsv")), ("updates", "1"), ("output", &file("out"))]),
        "validate" => with(&[("kernel", "checksum")]),
        "serve" => with(&[("listen", "127.0.0.1:0"), ("threads", "1")]),
        "info" => Vec::new(),
        // They have no options.
        "completions" | "man" => return Vec::new(),
        other => panic!("no run of {other}: add one"),
    };
    base.push(format!("--model={}", model.display()));
    base
}

/// The command with this option: those that stand in its way are left out.
fn arguments(command: &clap::Command, arg: &Arg, value: &str, base: &[String]) -> Vec<String> {
    let (subcommand, option) = (command.get_name(), arg.get_long().expect("options are long"));
    let name = |given: &str| given.trim_start_matches("--").split('=').next().unwrap_or_default().to_owned();
    let beside = beside(subcommand, option);
    let conflicts: Vec<String> =
        command.get_arg_conflicts_with(arg).iter().filter_map(|other| other.get_long().map(str::to_owned)).collect();
    let is_free = |given: &String| {
        let own = name(given);
        own != option && !conflicts.contains(&own) && !beside.iter().any(|other| name(other) == own)
    };
    let kept = base.iter().filter(|given| is_free(given)).cloned();
    let mut all = vec![subcommand.to_owned()];
    all.extend(kept);
    all.extend(beside.iter().map(|given| (*given).to_owned()));
    all.push(format!("--{option}={value}"));
    all
}

/// How a command ended, with what it said; `None` if it was still at work.
fn outcome(arguments: &[String]) -> Option<(Option<i32>, String)> {
    let limited = format!("ulimit -v {} && exec \"$0\" \"$@\"", MEMORY >> 10);
    let mut command = Command::new("sh");
    command.args(["-c", &limited, env!("CARGO_BIN_EXE_beamfuse")]).args(arguments);
    // A service says where it listens when it has got over its options, and never ends.
    let serves = arguments[0] == "serve";
    let mut child: Child = command
        .stdin(Stdio::null())
        .stdout(if serves { Stdio::piped() } else { Stdio::null() })
        .stderr(Stdio::piped())
        .spawn()
        .expect("a shell and the binary");
    let mut stderr = child.stderr.take().expect("a pipe");
    let said = std::thread::spawn(move || {
        let mut text = Vec::new();
        std::io::Read::read_to_end(&mut stderr, &mut text).map(|_| String::from_utf8_lossy(&text).into_owned())
    });
    let listens = Arc::new(AtomicBool::new(false));
    if let Some(mut stdout) = child.stdout.take() {
        let listens = listens.clone();
        std::thread::spawn(move || {
            let line = std::io::Read::read(&mut stdout, &mut [0; 100]);
            listens.store(line.is_ok_and(|len| len > 0), Ordering::Relaxed);
        });
    }
    let started = Instant::now();
    let status = loop {
        match child.try_wait().expect("a child of ours") {
            Some(status) => break Some(status),
            None if listens.load(Ordering::Relaxed) || started.elapsed() > LONG_ENOUGH => break None,
            None => std::thread::sleep(Duration::from_millis(3)),
        }
    };
    if status.is_none() {
        child.kill().expect("a child of ours");
        child.wait().expect("a child of ours");
    }
    let said = said.join().expect("no panic").expect("a pipe");
    status.map(|status| (status.code(), said))
}

/// What is wrong with an outcome, if anything.
fn complaint(kind: &Kind, value: &str, outcome: Option<(Option<i32>, String)>) -> Option<String> {
    let (code, said) = match outcome {
        None if ["nan", "inf"].contains(&value) && *kind != Kind::Other => return Some("went to work".to_owned()),
        None => return None,
        Some(ended) => ended,
    };
    if said.contains("panicked") || !code.is_some_and(|code| (0..=2).contains(&code)) {
        return Some(format!("ended with {code:?}: {said}"));
    }
    let refused = |expected: &str| code == Some(2) && said.contains(expected);
    let ok = match kind {
        Kind::Other => true,
        Kind::Number => !["nan", "inf"].contains(&value) || refused("a finite number"),
        Kind::Count { least, most } => {
            let [number, least_number, most_number] = [value, least, most].map(|text| text.parse::<u128>().ok());
            let inside = number.is_some_and(|n| Some(n) >= least_number && Some(n) <= most_number);
            inside || refused(&format!("expected {least} to {most}, got {value}"))
        }
    };
    (!ok).then(|| format!("expected a refusal that names the range, got {code:?}: {said}"))
}

#[test]
fn numbers_far_out_of_range_are_refused_within_little_memory() {
    let model = Tiny::new();
    let dir = tempfile::tempdir().expect("a directory");
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).expect("written");
    write("two.en", "A dog runs.\nA cat.\n");
    write("two.de", "Ein Hund.\nEine Katze.\n");
    write("two.tsv", "A dog runs.\tEin Hund.\nA cat.\tEine Katze.\n");
    let mut cases = Vec::new();
    for command in beamfuse::cli::command().get_subcommands() {
        let base = base(command.get_name(), dir.path(), model.dir());
        for arg in command.get_arguments().filter(|arg| !arg.is_positional()) {
            let Some(kind) = kind(arg) else { continue };
            let mut values = ["0", "1", "-1", "nan", "inf"].map(str::to_owned).to_vec();
            values.extend([1 << 32, 1 << 63, u64::MAX].map(|value: u64| value.to_string()));
            if let Kind::Count { least, most } = &kind {
                let after: u128 = most.parse::<u128>().expect("a number") + 1;
                values.extend([least.clone(), most.clone(), after.to_string()]);
            }
            values.sort();
            values.dedup();
            for value in values {
                cases.push((kind.clone(), value.clone(), arguments(command, arg, &value, &base)));
            }
        }
    }
    let tried = cases.len();
    assert!(tried > 1000, "{tried} cases only");
    let (cases, complaints) = (Mutex::new(cases.into_iter().enumerate()), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while let Some((number, (kind, value, mut given))) = { cases.lock().expect("no panic").next() } {
                    // A directory for each run, where one is written.
                    given.iter_mut().filter(|arg| arg.starts_with("--output=")).for_each(|arg| {
                        arg.push_str(&number.to_string());
                    });
                    if let Some(wrong) = complaint(&kind, &value, outcome(&given)) {
                        complaints.lock().expect("no panic").push(format!("{}\n  {wrong}", given.join(" ")));
                    }
                }
            });
        }
    });
    let complaints = complaints.into_inner().expect("no panic");
    assert!(complaints.is_empty(), "{} of {tried}:\n{}", complaints.len(), complaints.join("\n"));
}

/// A count without a range would be tried above only where a range makes a difference.
#[test]
fn every_count_names_its_range() {
    let types = [TypeId::of::<usize>(), TypeId::of::<u64>(), TypeId::of::<u32>(), TypeId::of::<u16>()];
    for command in beamfuse::cli::command().get_subcommands() {
        let arguments = command.get_arguments();
        for arg in arguments.filter(|arg| types.iter().any(|of| arg.get_value_parser().type_id() == *of)) {
            let is_bytes = arg.get_value_names().is_some_and(|names| names[0] == "BYTES");
            let range = matches!(kind(arg), Some(Kind::Count { .. }));
            assert!(range || is_bytes, "{} {} has no range", command.get_name(), arg.get_id());
        }
    }
}
