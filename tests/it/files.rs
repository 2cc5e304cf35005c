//! Files under attack: outputs that are inputs, kills, full disks, files that change while they are read, and what is no file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use clap::Arg;

use crate::common;
use crate::common::command::{Finished, command, run};
use crate::common::tiny::Tiny;

/// The command by way of a shell, which redirects and limits.
fn shell(script: &str, args: &[&str]) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", script, env!("CARGO_BIN_EXE_beamfuse")]).args(args);
    shell.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    shell
}

fn finished(mut command: Command) -> Finished {
    let output = command.output().expect("the command ends");
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    Finished { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
}

/// Every file below a directory, with its contents.
fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for path in std::fs::read_dir(dir).expect("a directory").flatten().map(|entry| entry.path()) {
        match path.is_dir() {
            true => found.extend(contents(&path)),
            false => _ = found.insert(path.clone(), std::fs::read(&path).expect("readable")),
        }
    }
    found
}

/// A directory of inputs for every subcommand.
struct Inputs {
    dir: tempfile::TempDir,
    model: Tiny,
}

const LINES: usize = 40;

impl Inputs {
    fn new() -> Self {
        let inputs = Inputs { dir: tempfile::tempdir().expect("a directory"), model: Tiny::new() };
        let (en, de) = ("A dog runs.\n".repeat(LINES), "Ein Hund.\n".repeat(LINES));
        let pairs = "A dog runs.\tEin Hund.\n".repeat(LINES);
        for (name, text) in [("en", &en), ("de", &de), ("tsv", &pairs)] {
            std::fs::write(inputs.path(name), text).expect("written");
        }
        inputs
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn name(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// A file for an option that is read.
    fn value(&self, option: &str) -> Option<String> {
        match option {
            "model" | "amateur" | "ensemble" | "oracle" | "teacher" | "pack-cache" => {
                Some(self.model.dir().display().to_string())
            }
            "data" | "validation" => Some(self.name("tsv")),
            "spm-model" => Some(self.model.dir().join("source.spm").display().to_string()),
            "reference" | "target" | "validation-target" | "hypotheses" | "compare" => Some(self.name("de")),
            "input" | "source" | "validation-source" | "bad-texts" | "shortlist" | "train-log" => Some(self.name("en")),
            _ => None,
        }
    }

    /// Options without which a subcommand does not run.
    fn base(&self, subcommand: &str) -> Vec<(&'static str, String)> {
        let needed: &[&str] = match subcommand {
            "eval" => &["input", "reference"],
            "diagnose" => &["source", "reference"],
            "train" => &["data", "output"],
            "translate" | "score" => &["input"],
            _ => &[],
        };
        let value = |option: &&'static str| (*option, self.value(option).unwrap_or_else(|| self.name("out")));
        let mut base: Vec<_> = needed.iter().map(value).collect();
        base.push(("model", self.model.dir().display().to_string()));
        base
    }
}

/// Names of a file that is there under another: the same, by a detour, a hard link, a symbolic one, and one to a hard link.
fn aliases(dir: &Path, file: &Path) -> Vec<PathBuf> {
    let name = file.file_name().expect("a file").to_string_lossy().into_owned();
    let detour = file.parent().expect("a directory").join(".").join(&name);
    let [hard, soft, both] = ["hard", "soft", "both"].map(|kind| dir.join(format!("{kind}-{name}")));
    for link in [&hard, &soft, &both] {
        _ = std::fs::remove_file(link);
    }
    std::fs::hard_link(file, &hard).expect("one file system");
    std::os::unix::fs::symlink(file, &soft).expect("linked");
    std::os::unix::fs::symlink(&hard, &both).expect("linked");
    vec![file.to_path_buf(), detour, hard, soft, both]
}

fn paths(command: &clap::Command) -> Vec<&Arg> {
    let is_path = |arg: &&Arg| arg.get_value_parser().type_id() == std::any::TypeId::of::<PathBuf>();
    command.get_arguments().filter(|arg| arg.get_action().takes_values()).filter(is_path).collect()
}

/// What a subcommand writes, by its help.
fn is_output(arg: &Arg) -> bool {
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    ["Write", "Output", "Draw", "Directory to write"].iter().any(|verb| help.starts_with(verb))
}

#[test]
fn no_output_is_ever_an_input_by_whatever_name() {
    let (inputs, links) = (Inputs::new(), tempfile::tempdir().expect("a directory"));
    let before = (contents(inputs.dir.path()), contents(inputs.model.dir()));
    let mut tried = 0;
    for subcommand in beamfuse::cli::command().get_subcommands() {
        let (outputs, read): (Vec<&Arg>, Vec<&Arg>) = paths(subcommand).into_iter().partition(|arg| is_output(arg));
        let base = inputs.base(subcommand.get_name());
        for (output, input) in outputs.iter().flat_map(|output| read.iter().map(move |input| (output, input))) {
            let (output_name, input_name) = (output.get_long().expect("long"), input.get_long().expect("long"));
            let value = inputs.value(input_name).unwrap_or_else(|| panic!("no file for --{input_name}: add one"));
            let conflicts = subcommand.get_arg_conflicts_with(input);
            if conflicts.iter().any(|other| other.get_id() == output.get_id()) {
                continue;
            }
            let stands = |name: &str| conflicts.iter().all(|other| other.get_long() != Some(name));
            let mut base: Vec<_> = base
                .iter()
                .filter(|(name, _)| ![output_name, input_name].contains(name) && stands(name))
                .cloned()
                .collect();
            // Two files that go together.
            if let Some(other) = [("source", "target"), ("validation-source", "validation-target")]
                .iter()
                .find_map(|(a, b)| [(a, b), (b, a)].into_iter().find(|(a, _)| **a == input_name))
                .map(|(_, other)| *other)
                .filter(|_| subcommand.get_name() == "train")
            {
                base.push((other, inputs.value(other).expect("a file")));
            }
            if input_name == "teacher" {
                base.push(("objective", "distill".to_owned()));
            }
            // The file itself, or one of the model's.
            let file =
                if Path::new(&value).is_dir() { Path::new(&value).join("config.json") } else { value.clone().into() };
            for alias in aliases(links.path(), &file) {
                // A run writes to files of a directory: it may not be the model's.
                let target = match subcommand.get_name() {
                    "train" if Path::new(&value).is_dir() => value.clone(),
                    "train" => continue,
                    _ => alias.display().to_string(),
                };
                let given = base.iter().cloned().chain([(input_name, value.clone()), (output_name, target)]);
                let mut args = vec![subcommand.get_name().to_owned()];
                args.extend(given.map(|(name, value)| format!("--{name}={value}")));
                let args: Vec<&str> = args.iter().map(String::as_str).collect();
                let ended = run(&args, b"");
                assert_eq!((ended.code, ended.out.as_str()), (Some(2), ""), "{args:?}: {}", ended.err);
                assert!(ended.err.contains(": expected a file other than the "), "{args:?}: {}", ended.err);
                tried += 1;
            }
        }
    }
    assert!(tried > 150, "{tried} combinations only");
    assert_eq!((contents(inputs.dir.path()), contents(inputs.model.dir())), before);
}

#[test]
fn outputs_and_redirections_are_held_to_each_other() {
    let inputs = Inputs::new();
    let (en, out, model) = (inputs.name("en"), inputs.name("out"), inputs.model.dir().display().to_string());
    let before = contents(inputs.dir.path());
    let (partial, noted) = (inputs.name("en.partial"), inputs.name("en.partial.json"));
    let both = |script: &str, args: &[&str]| finished(shell(script, &[args, &["--model", &model]].concat()));
    for (script, args) in [
        (format!("exec \"$0\" \"$@\" <'{en}' >>'{en}'"), vec!["translate"]),
        (format!("exec \"$0\" \"$@\" >>'{en}'"), vec!["translate", "--input", &en]),
        (format!("exec \"$0\" \"$@\" <'{en}'"), vec!["translate", "--output", &en]),
        ("exec \"$0\" \"$@\"".into(), vec!["translate", "--output", &out, "--explain", &out, "A dog."]),
        (format!("exec \"$0\" \"$@\" >>'{out}'"), vec!["translate", "--explain", &out, "A dog."]),
        // The name that an output has until it is whole.
        (
            format!("cp '{en}' '{partial}' && exec \"$0\" \"$@\""),
            vec!["translate", "--input", &partial, "--output", &en],
        ),
        (
            format!("cp '{en}' '{partial}.json' && exec \"$0\" \"$@\""),
            vec!["translate", "--input", &noted, "--output", &en],
        ),
    ] {
        let ended = both(&script, &args);
        assert_eq!(ended.code, Some(2), "{script} {args:?}: {}", ended.err);
        assert!(ended.err.contains(": expected a file other than the "), "{script} {args:?}: {}", ended.err);
        for copy in [&partial, &noted].into_iter().filter(|copy| Path::new(copy).exists()) {
            assert_eq!(std::fs::read(copy).expect("there"), before[&inputs.path("en")]);
            std::fs::remove_file(copy).expect("ours");
        }
        _ = std::fs::remove_file(&out);
        assert_eq!(contents(inputs.dir.path()), before, "{script} {args:?}");
    }
}

#[test]
fn what_is_no_regular_file_is_written_directly() {
    let inputs = Inputs::new();
    let (en, model) = (inputs.name("en"), inputs.model.dir().display().to_string());
    let args = ["translate", "--model", &model, "--input", &en, "--output"];
    let expected = run(&[&args[..5], &["--beam-size", "4"]].concat(), b"").ok().out;
    assert_eq!(expected.lines().count(), LINES);
    assert_eq!(run(&[&args[..], &["/dev/stdout"]].concat(), b"").ok().out, expected);
    assert_eq!(run(&[&args[..], &["/dev/null"]].concat(), b"").ok().out, "");
    let fifo = inputs.name("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().expect("mkfifo starts").success());
    let script = format!("cat '{fifo}' & \"$0\" \"$@\" >&2; wait");
    let ended = finished(shell(&script, &[&args[..], &[&fifo]].concat()));
    assert_eq!((ended.out, ended.err.as_str()), (expected, ""));
}

const FORMATS: [&str; 3] = ["text", "jsonl", "nbest"];

/// Arguments that translate a file into another.
fn streamed<'a>(inputs: &'a str, output: &'a str, format: &'a str, model: &'a str) -> Vec<&'a str> {
    let search = ["--beam-size", "3", "--n-best", "3", "--batch-size", "2"];
    [&["translate", "--model", model, "--input", inputs, "--output", output, "--format", format], &search[..]].concat()
}

#[test]
fn a_stream_is_continued_from_wherever_it_was_cut() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name).display().to_string();
    let model = Tiny::new();
    let model = model.dir().display().to_string();
    for format in FORMATS {
        let mut lines = common::lines("own/own.en")[..7].to_vec();
        lines.insert(3, "\u{1}".repeat(1 << 20) + "too long");
        lines.push(common::too_long());
        let text = match format {
            "jsonl" => lines.iter().map(|line| format!("{}\n", serde_json::json!({ "source": line }))).collect(),
            _ => lines.join("\n"),
        };
        std::fs::write(path("in"), text).expect("written");
        let (input, out, partial) = (path("in"), path("out"), path("out.partial"));
        let args = streamed(&input, &out, format, &model);
        let ended = run(&args, b"");
        assert_eq!(ended.code, Some(1), "{format}: {}", ended.err);
        let whole = std::fs::read(&out).expect("written");
        assert!(!Path::new(&partial).exists());
        let again = run(&[&args[..], &["--resume"]].concat(), b"");
        assert!(again.code == Some(0) && again.err.contains("is complete: nothing to resume"), "{}", again.err);
        std::fs::remove_file(&out).expect("ours");
        for cut in [0, 1, whole.len() / 3, whole.len() / 2, whole.len() * 2 / 3, whole.len() - 1, whole.len()] {
            std::fs::write(&partial, &whole[..cut]).expect("written");
            let ended = run(&[&args[..], &["--resume"]].concat(), b"");
            assert!(matches!(ended.code, Some(0 | 1)), "{format} cut at {cut}: {}", ended.err);
            assert!(std::fs::read(&out).expect("written") == whole, "{format} cut at {cut}");
            assert!(!Path::new(&partial).exists());
            std::fs::remove_file(&out).expect("ours");
        }
        std::fs::write(&partial, "x\n".repeat(99)).expect("written");
        if format != "nbest" {
            let ended = run(&[&args[..], &["--resume"]].concat(), b"");
            assert!(ended.err.contains("resume: expected at least 99 lines of input"), "{}", ended.err);
        }
        std::fs::remove_file(&partial).expect("ours");
    }
}

#[test]
fn scores_are_a_stream_too() {
    let inputs = Inputs::new();
    let (tsv, out, model) = (inputs.name("tsv"), inputs.name("out"), inputs.model.dir().display().to_string());
    let args = ["score", "--model", &model, "--input", &tsv, "--output", &out];
    run(&args, b"").ok();
    let whole = std::fs::read(&out).expect("written");
    assert_eq!(whole.iter().filter(|byte| **byte == b'\n').count(), LINES);
    std::fs::remove_file(&out).expect("ours");
    std::fs::write(inputs.path("out.partial"), &whole[..whole.len() / 2]).expect("written");
    let ended = run(&[&args[..], &["--resume"]].concat(), b"");
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    assert!(std::fs::read(&out).expect("written") == whole);
}

/// Runs a stream until the limit on file sizes cuts it, and returns what it has left.
fn cut(args: &[&str], partial: &Path) -> Vec<u8> {
    let ended = finished(shell("ulimit -f 4; exec \"$0\" \"$@\"", args));
    assert_eq!(ended.code, Some(2), "{}", ended.err);
    let left = std::fs::read(partial).expect("left");
    assert!(left.len() > 500, "{}", ended.err);
    left
}

#[test]
fn a_stream_goes_on_with_what_it_was_begun_with_alone() {
    let inputs = Inputs::new();
    let (en, out) = (inputs.name("en"), inputs.name("out"));
    let (model, other) = (inputs.model.dir().display().to_string(), Tiny::new());
    let (partial, noted) = (inputs.path("out.partial"), inputs.path("out.partial.json"));
    let args = streamed(&en, &out, "jsonl", &model);
    let left = cut(&args, &partial);
    let other_model = other.dir().display().to_string();
    let copy = inputs.name("copy");
    std::fs::copy(&en, &copy).expect("copied");
    let same = [&args[..], &["--resume"]].concat();
    for (changed, name) in [
        (vec!["--alpha", "0.3"], "alpha"),
        (vec!["--attention"], "attention"),
        (vec!["--dtype", "i8"], "dtype"),
        (vec!["--device", "emulated"], "device"),
        (vec!["--prefix", "x"], "prefix"),
        (vec!["--input-format", "text"], "input_format"),
        (vec!["--ensemble", &other_model], "ensemble_weights"),
    ] {
        let ended = run(&[&same[..], &changed].concat(), b"");
        let expected = format!("resume: expected what the lines so far were made with: {name} ");
        assert!(ended.code == Some(2) && ended.err.contains(&expected), "{changed:?}: {}", ended.err);
        assert_eq!(std::fs::read(&partial).expect("kept"), left, "{changed:?}");
    }
    let before = std::fs::read(&noted).expect("there");
    for (at, value, name) in [(2, &other_model, "model"), (4, &copy, "input")] {
        let mut args = same.clone();
        args[at] = value;
        let ended = run(&args, b"");
        assert!(ended.err.contains(&format!("made with: {name} ")), "{}", ended.err);
    }
    // In place, of the same length.
    let text = std::fs::read_to_string(&en).expect("there");
    std::fs::write(&en, text.replace("dog", "cat")).expect("written");
    let ended = run(&same, b"");
    assert!(ended.err.contains("length and time of the input"), "{}", ended.err);
    assert_eq!((std::fs::read(&partial).expect("kept"), std::fs::read(&noted).expect("kept")), (left, before));
    // From the start, it may be anything.
    run(&[&args[..], &["--alpha", "0.3"]].concat(), b"").ok();
    assert!(!partial.exists() && !noted.exists());
    std::fs::remove_file(&out).expect("ours");
    cut(&args, &partial);
    let ended = run(&[&same[..], &["--threads", "1"]].concat(), b"");
    assert!(ended.code == Some(0) && ended.err.contains("resuming behind line "), "{}", ended.err);
    assert!(!partial.exists() && !noted.exists());
    assert_eq!(std::fs::read_to_string(&out).expect("whole").lines().count(), LINES);
}

#[test]
fn scores_go_on_with_what_they_were_begun_with_alone() {
    let inputs = Inputs::new();
    let (tsv, out, model) = (inputs.name("tsv"), inputs.name("out"), inputs.model.dir().display().to_string());
    let args = ["score", "--model", &model, "--input", &tsv, "--output", &out];
    let left = cut(&args, &inputs.path("out.partial"));
    for (changed, name) in [(["--format", "text"], "format"), (["--dtype", "bf16"], "dtype")] {
        let ended = run(&[&args[..], &["--resume"], &changed].concat(), b"");
        assert!(ended.err.contains(&format!("made with: {name} ")), "{}", ended.err);
        assert_eq!(std::fs::read(inputs.path("out.partial")).expect("kept"), left);
    }
    let ended = run(&[&args[..], &["--resume"]].concat(), b"");
    assert!(ended.code == Some(0) && ended.err.contains("resuming behind line "), "{}", ended.err);
    assert!(!inputs.path("out.partial.json").exists());
}

/// Runs the command on input without end until it has written something aside, then sends it a signal.
fn signalled(signal: &str, output: &Path) -> Finished {
    let out = output.display().to_string();
    let mut child = command(&["translate", "--beam-size", "1", "--output", &out]).spawn().expect("the binary starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    let writer = std::thread::spawn(move || {
        let text = common::own_text();
        while std::io::Write::write_all(&mut stdin, text.as_bytes()).is_ok() {}
    });
    let partial = output.with_added_extension("partial");
    while partial.metadata().map_or(0, |metadata| metadata.len()) == 0 {
        assert!(child.try_wait().expect("ours").is_none(), "it ended early");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(!output.exists());
    let sent = Command::new("kill").args([signal, &child.id().to_string()]).status().expect("kill starts");
    assert!(sent.success());
    let output = child.wait_with_output().expect("the command ends");
    writer.join().expect("no panic");
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    Finished { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
}

#[test]
fn a_request_to_terminate_is_an_interrupt_and_a_kill_loses_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let (out, partial) = (dir.path().join("out"), dir.path().join("out.partial"));
    for signal in ["-TERM", "-HUP", "-KILL"] {
        let ended = signalled(signal, &out);
        assert_eq!(ended.code, (signal != "-KILL").then_some(130), "{signal}: {}", ended.err);
        let told = ended.err.contains("the lines so far are in") && ended.err.contains("--resume continues");
        assert_eq!(told, signal != "-KILL", "{}", ended.err);
        let text = std::fs::read_to_string(&partial).expect("there");
        let whole = text.lines().zip(common::greedy().iter().cycle()).filter(|(line, expected)| line == expected);
        let lines = text.matches('\n').count();
        assert!(lines > 0 && whole.count() >= lines && !out.exists(), "{signal}");
        std::fs::remove_file(&partial).expect("ours");
    }
}

#[test]
fn a_full_disk_leaves_whole_lines_and_what_was_there() {
    let inputs = Inputs::new();
    let (en, out, model) = (inputs.name("en"), inputs.name("out"), inputs.model.dir().display().to_string());
    std::fs::write(&out, "kept\n").expect("written");
    // A limit on file sizes, in blocks of 512 bytes, fails as a full disk does.
    let limited = "ulimit -f 1; exec \"$0\" \"$@\"";
    for format in FORMATS {
        let ended = finished(shell(limited, &streamed(&en, &out, format, &model)));
        assert_eq!(ended.code, Some(2), "{format}: {}", ended.err);
        assert!(ended.err.contains("out.partial: "), "{format}: {}", ended.err);
        let partial = std::fs::read_to_string(inputs.path("out.partial")).expect("there");
        assert!(partial.is_empty() || partial.ends_with('\n'), "{format}: {partial:?}");
        assert!(format != "text" || partial.len() > 300, "{partial:?}");
        let args = [&streamed(&en, &out, format, &model)[..], &["--resume"]].concat();
        run(&args, b"");
        assert!(!std::fs::read_to_string(&out).expect("there").is_empty());
        std::fs::write(&out, "kept\n").expect("written");
        // Redirected, the file is not ours to name, and half a line in it would look whole.
        let redirected = format!("ulimit -f 1; exec \"$0\" \"$@\" >'{}'", inputs.name("redirected"));
        let mut args = streamed(&en, &out, format, &model);
        args.drain(5..7);
        let ended = finished(shell(&redirected, &args));
        assert_eq!(ended.code, Some(2), "{format}: {}", ended.err);
        let text = std::fs::read_to_string(inputs.path("redirected")).expect("there");
        assert!(text.is_empty() || text.ends_with('\n'), "{format}: {text:?}");
    }
    for args in [
        vec!["translate", "--explain", &out, "A dog runs."],
        vec!["bench", "--json", &out, "--sentences", "1", "--repeat", "1", "--batch-size", "1", "--beam-size", "1"],
    ] {
        let ended = finished(shell("ulimit -f 0; exec \"$0\" \"$@\"", &[&args[..], &["--model", &model]].concat()));
        assert_eq!(ended.code, Some(2), "{args:?}: {}", ended.err);
        assert_eq!(std::fs::read_to_string(&out).expect("there"), "kept\n", "{args:?}");
        assert!(!inputs.path("out.partial").exists(), "{args:?}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_closed_standard_output_is_an_error() {
    let inputs = Inputs::new();
    let (en, de, model) = (inputs.name("en"), inputs.name("de"), inputs.model.dir().display().to_string());
    for args in [
        vec!["translate", "--input", &en],
        vec!["score", "--input", &en],
        vec!["info"],
        vec!["eval", "--hypotheses", &de, "--reference", &de],
    ] {
        let model = ["--model", &model];
        let args = [&args[..], if args[0] == "eval" { &[] } else { &model }].concat();
        let ended = finished(shell("exec \"$0\" \"$@\" >&-", &args));
        assert_eq!(ended.code, Some(2), "{args:?}: {}", ended.err);
        assert!(ended.err.contains("write -: standard output is closed"), "{args:?}: {}", ended.err);
    }
    let out = inputs.name("out");
    let ended = finished(shell("exec \"$0\" \"$@\" >&-", &["translate", "-i", &en, "-o", &out, "--model", &model]));
    assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""));
    assert_eq!(std::fs::read_to_string(&out).expect("written").lines().count(), LINES);
}

#[test]
fn weights_that_change_while_they_are_loaded_end_in_an_error_or_in_the_right_translation() {
    let dir = tempfile::tempdir().expect("a directory");
    for file in std::fs::read_dir(common::demo_model()).expect("there").flatten() {
        std::fs::copy(file.path(), dir.path().join(file.file_name())).expect("copied");
    }
    let path = dir.path().join("model.safetensors");
    let bytes = std::fs::read(&path).expect("there");
    let model = dir.path().display().to_string();
    let args = ["translate", "--model", &model, "--beam-size", "1", "A man is riding a bike."];
    let expected = run(&args, b"").ok().out;
    // The same header, other weights: read as a whole they are a model, too.
    let mut others = bytes.clone();
    others[bytes.len() / 2..].fill(0);
    std::fs::write(&path, &others).expect("written");
    let of_others = run(&args, b"").ok().out;
    assert_ne!(of_others, expected);
    let tsv = dir.path().join("train.tsv");
    std::fs::write(&tsv, "A dog runs.\tEin Hund.\n").expect("written");
    let mut refused = 0;
    for attempt in 0..24u64 {
        std::fs::write(&path, &bytes).expect("written");
        std::thread::sleep(Duration::from_millis(20));
        let output = dir.path().join(format!("out{attempt}")).display().to_string();
        let data = tsv.display().to_string();
        let train = ["train", "--model", &model, "--data", &data, "--output", &output, "--updates", "1", "--force"];
        let args = if attempt % 4 == 3 { &train[..] } else { &args[..] };
        let child = command(args).spawn().expect("the binary starts");
        std::thread::sleep(Duration::from_millis(3 * (attempt / 2)));
        match attempt % 2 {
            0 => File::options().write(true).open(&path).and_then(|file| file.set_len(1000)).expect("ours"),
            _ => std::fs::write(&path, &others).expect("written"),
        }
        let ended = child.wait_with_output().expect("it ends");
        let said = String::from_utf8_lossy(&ended.stderr);
        match ended.status.code() {
            Some(2) => refused += 1,
            Some(0) if attempt % 4 == 3 => {}
            code => {
                let out = String::from_utf8_lossy(&ended.stdout);
                assert!(code == Some(0) && [&*expected, &*of_others].contains(&&*out), "{code:?} {out} {said}");
            }
        }
    }
    assert!(refused > 0, "the file was never changed in time");
}

use std::fs::File;

#[test]
fn files_without_bounds_and_what_is_no_file_are_refused_within_little_memory() {
    for name in ["config.json", "source.spm", "target.spm", "vocab.json", "generation_config.json", "model.safetensors"]
    {
        let model = Tiny::new();
        let (path, dir) = (model.path(name), model.dir().display().to_string());
        let refused = |kind: &str| {
            // A file that is not needed may be passed over, but not waited for.
            let limited = "ulimit -v 1500000; exec timeout 20 \"$0\" \"$@\"";
            let ended = finished(shell(limited, &["translate", "--threads", "1", "--model", &dir, "A dog."]));
            assert_eq!(ended.code, Some(2), "{name} as {kind}: {}", ended.err);
            assert!(ended.err.contains(name) && !ended.err.contains("memory"), "{name} as {kind}: {}", ended.err);
            ended.err
        };
        let replace = |make: &dyn Fn()| {
            _ = std::fs::remove_file(&path);
            make();
        };
        replace(&|| File::create(&path).and_then(|file| file.set_len(5 << 30)).expect("a sparse file"));
        refused("5 GiB of zeros");
        replace(&|| std::os::unix::fs::symlink("/dev/zero", &path).expect("linked"));
        assert!(refused("a device").contains("expected a regular file, got a device"));
        replace(&|| assert!(Command::new("mkfifo").arg(&path).status().expect("mkfifo starts").success()));
        assert!(refused("a FIFO").contains("expected a regular file, got a FIFO"));
        replace(&|| std::fs::create_dir(&path).expect("created"));
        assert!(refused("a directory").contains("is a directory"));
        std::fs::remove_dir(&path).expect("ours");
    }
}

#[test]
fn inputs_may_be_pipes() {
    let inputs = Inputs::new();
    let (model, out) = (inputs.model.dir().display().to_string(), inputs.name("out"));
    let piped = |args: &[&str], file: &str| {
        let script = format!("cat '{}' | \"$0\" \"$@\"", inputs.name(file));
        finished(shell(&script, &[args, &["--model", &model]].concat()))
    };
    assert_eq!(piped(&["translate", "--input", "/dev/stdin"], "en").ok().lines().len(), LINES);
    let train = ["train", "--data", "/dev/stdin", "--output", &out, "--updates", "1", "--objective", "mle"];
    let ended = piped(&train, "tsv");
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    assert!(ended.err.contains("40 pairs"), "{}", ended.err);
}
