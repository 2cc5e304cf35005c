//! Batch jobs: bytes as the plain command's, whatever is killed, full or changed.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::command::{Finished, command, run};
use crate::common::{self, demo_model};

/// Search options that are the same everywhere: fast ones.
const SEARCH: [&str; 3] = ["--beam-size", "1", "--max-length=1*S+4"];

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

fn unpacked(path: &Path) -> String {
    let bytes = std::fs::read(path).expect("there");
    let mut text = String::new();
    match path.extension().and_then(|ending| ending.to_str()) {
        Some("gz") => flate2::read::MultiGzDecoder::new(&bytes[..]).read_to_string(&mut text),
        Some("zst") => ruzstd::decoding::StreamingDecoder::new(&bytes[..]).expect("zstd").read_to_string(&mut text),
        _ => (&bytes[..]).read_to_string(&mut text),
    }
    .expect("UTF-8");
    text
}

/// Every file below a directory that is not hidden, by its name within it.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for path in std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()) {
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        match path.is_dir() {
            _ if name.starts_with('.') => {}
            true => found.extend(files(&path).into_iter().map(|(inner, bytes)| (format!("{name}/{inner}"), bytes))),
            false => _ = found.insert(name, std::fs::read(&path).expect("readable")),
        }
    }
    found
}

struct Corpus {
    dir: tempfile::TempDir,
}

impl Corpus {
    /// Plain text, JSON lines and TSV, packed and not, with blank lines and lines that fail.
    fn new() -> Self {
        let corpus = Corpus { dir: tempfile::tempdir().expect("a directory") };
        let own = common::lines("own/own.en");
        let text = |from: usize, count: usize| own[from..from + count].join("\n") + "\n";
        let json: String = own[20..24].iter().map(|line| format!("{{\"id\": 1, \"source\": \"{line}\"}}\n")).collect();
        let tsv: String = own[24..27].iter().map(|line| format!("{line}\tmore\n")).collect();
        corpus.write("a.txt", text(0, 5).as_bytes());
        corpus.write("b.en.gz", &gzip([text(5, 4).as_bytes(), b"\n \n\xff\n"].concat().as_slice()));
        corpus.write("sub/c.jsonl.zst", &zstd([json.as_bytes(), b"{\"source\": 3}\n{\n"].concat().as_slice()));
        corpus.write("sub/d.tsv", tsv.as_bytes());
        corpus.write("sub/deep/e.txt", text(30, 5).trim_end().as_bytes());
        corpus.write("empty.txt", b"");
        corpus
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn input(&self) -> PathBuf {
        self.path("in")
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        let path = self.input().join(name);
        std::fs::create_dir_all(path.parent().expect("a directory")).expect("created");
        std::fs::write(path, bytes).expect("written");
    }

    fn args(&self, out: &str, more: &[&str]) -> Vec<String> {
        let (input, out) = (self.input().display().to_string(), self.path(out).display().to_string());
        let fixed = ["translate", "--input", &input, "--output", &out].map(String::from);
        fixed.into_iter().chain(SEARCH.iter().chain(more).map(|arg| arg.to_string())).collect()
    }

    fn job(&self, out: &str, more: &[&str]) -> Finished {
        let args = self.args(out, more);
        run(&args.iter().map(String::as_str).collect::<Vec<_>>(), b"")
    }

    fn verify(&self, out: &str) -> Finished {
        run(&["translate", "--verify", "--output", &self.path(out).display().to_string()], b"")
    }
}

/// What the plain command writes for a file.
fn plain(input: &Path, format: &str, form: &str) -> String {
    let args = ["translate", "--input", &input.display().to_string(), "--format", format, "--input-format", form];
    run(&[&args[..], &SEARCH[..]].concat(), b"").out
}

#[test]
fn parts_hold_what_the_plain_command_writes() {
    let corpus = Corpus::new();
    let inputs = [
        ("a.txt", "text", "a", ""),
        ("b.en.gz", "text", "b.en", ".gz"),
        ("empty.txt", "text", "empty", ""),
        ("sub/c.jsonl.zst", "jsonl", "sub/c", ".zst"),
        ("sub/d.tsv", "tsv", "sub/d", ""),
        ("sub/deep/e.txt", "text", "sub/deep/e", ""),
    ];
    for (format, ending) in [("text", "txt"), ("jsonl", "jsonl"), ("nbest", "nbest")] {
        let done = corpus.job(format, &["--format", format]);
        assert_eq!(done.code, Some(1), "{}", done.err);
        assert!(done.err.contains("6 parts made, 0 were there; 26 rows in all, 3 of them with errors"), "{}", done.err);
        let mut expected: Vec<String> = Vec::new();
        for (input, form, stem, packed) in inputs {
            let part = match (stem, ending) {
                ("b.en", "txt") => "b.en.gz".to_owned(),
                _ => format!("{stem}.{ending}{packed}"),
            };
            let written = unpacked(&corpus.path(format).join(&part));
            assert_eq!(written, plain(&corpus.input().join(input), format, form), "{part}");
            expected.push(part);
        }
        assert_eq!(files(&corpus.path(format)).keys().collect::<Vec<_>>(), expected.iter().collect::<Vec<_>>());
        assert_eq!(corpus.verify(format).code, Some(0));
    }
    let packed = corpus.job("packed", &["--compress", "zstd"]);
    assert_eq!(packed.code, Some(1), "{}", packed.err);
    for (name, bytes) in files(&corpus.path("packed")) {
        let plain_name = name.strip_suffix(".zst").expect("all are compressed");
        let other = [plain_name.to_owned(), format!("{plain_name}.gz"), format!("{plain_name}.zst")];
        let other = other.iter().map(|name| corpus.path("text").join(name)).find(|path| path.exists());
        assert_eq!(unpacked(&corpus.path("packed").join(&name)), unpacked(&other.expect("the same part")));
        assert!(bytes.starts_with(b"\x28\xb5\x2f\xfd"));
    }
}

#[test]
fn shards_and_patterns_do_their_files_and_no_others() {
    let corpus = Corpus::new();
    corpus.job("whole", &[]);
    for shard in ["3/4", "1/4", "4/4", "2/4"] {
        let done = corpus.job("shared", &["--shard", shard, "--threads", "1"]);
        assert!(matches!(done.code, Some(0 | 1)), "{}", done.err);
    }
    assert_eq!(files(&corpus.path("shared")), files(&corpus.path("whole")));
    let pattern = corpus.input().join("sub/*.tsv").display().to_string();
    let out = corpus.path("pattern").display().to_string();
    let done = run(&[&["translate", "--input", &pattern, "--output", &out][..], &SEARCH].concat(), b"");
    assert_eq!(done.code, Some(0), "{}", done.err);
    assert_eq!(files(&corpus.path("pattern"))["d.txt"], files(&corpus.path("whole"))["sub/d.txt"]);
}

/// A generator of numbers, the same each time.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

#[test]
fn kills_at_any_moment_lose_nothing_and_double_nothing() {
    let corpus = Corpus::new();
    let begun = Instant::now();
    corpus.job("whole", &["--format", "jsonl"]);
    let whole_run = begun.elapsed().as_micros() as u64;
    let expected = files(&corpus.path("whole"));
    let args = corpus.args("killed", &["--format", "jsonl", "--resume"]);
    let (mut state, mut kills, mut ended) = (7, 0, 0);
    while kills < 20 && ended < 40 {
        let mut child = Command::new(env!("CARGO_BIN_EXE_beamfuse"));
        let child = child.args(&args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = child.spawn().expect("the binary starts");
        std::thread::sleep(Duration::from_micros(random(&mut state) % whole_run));
        match child.try_wait().expect("a child") {
            None => {
                child.kill().expect("it runs");
                child.wait().expect("it has ended");
                kills += 1;
            }
            Some(status) => {
                // It had been resumed until nothing was left: from the beginning.
                assert_eq!(status.code(), Some(1));
                assert_eq!(files(&corpus.path("killed")), expected);
                std::fs::remove_dir_all(corpus.path("killed")).expect("there");
                ended += 1;
            }
        }
        for (name, bytes) in files(&corpus.path("killed")).iter().filter(|(name, _)| !name.ends_with(".partial")) {
            assert!(bytes == &expected[name], "{name} after {kills} kills");
        }
    }
    assert_eq!(kills, 20);
    let done = corpus.job("killed", &["--format", "jsonl", "--resume"]);
    assert_eq!(done.code, Some(1), "{}", done.err);
    assert_eq!(files(&corpus.path("killed")), expected);
    let verified = corpus.verify("killed");
    assert_eq!(verified.code, Some(0), "{}", verified.err);
}

#[test]
fn an_interrupt_leaves_whole_parts_alone() {
    let corpus = Corpus::new();
    corpus.write("z.txt", common::own_text().repeat(50).as_bytes());
    let args = corpus.args("out", &[]);
    let mut child = command(&args.iter().map(String::as_str).collect::<Vec<_>>()).spawn().expect("the binary starts");
    let deadline = Instant::now() + Duration::from_secs(120);
    while !corpus.path("out/z.txt.partial").exists() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill starts");
    assert_eq!(child.wait().expect("it ends").code(), Some(130));
    let left = files(&corpus.path("out"));
    assert!(left.len() == 6 && left.keys().all(|name| !name.starts_with('z')), "{:?}", left.keys());
    assert_eq!(corpus.verify("out").code, Some(0));
}

#[test]
fn a_full_disk_stops_the_job_and_resuming_completes_it() {
    let corpus = Corpus::new();
    corpus.write("z.txt", common::own_text().as_bytes());
    corpus.job("whole", &["--format", "jsonl"]);
    let expected = files(&corpus.path("whole"));
    let limit = expected["sub/deep/e.jsonl"].len() / 512 + 4;
    assert!(expected["z.jsonl"].len() > 512 * limit);
    let mut limited = Command::new("sh");
    limited.args(["-c", &format!("ulimit -f {limit}; exec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_beamfuse")]);
    let output = limited.args(corpus.args("full", &["--format", "jsonl"])).stdin(Stdio::null()).output();
    let output = output.expect("the command ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && said.contains("write ") && said.contains("z.jsonl"), "{said}");
    let left = files(&corpus.path("full"));
    assert!(!left.is_empty() && left.iter().all(|(name, bytes)| bytes == &expected[name]), "{:?}", left.keys());
    assert_eq!(corpus.verify("full").code, Some(0));
    assert_eq!(corpus.job("full", &["--format", "jsonl", "--resume"]).code, Some(1));
    assert_eq!(files(&corpus.path("full")), expected);
}

#[test]
fn what_does_not_match_is_refused_by_name() {
    let corpus = Corpus::new();
    corpus.job("out", &[]);
    let before = files(&corpus.path("out"));
    let again = corpus.job("out", &[]);
    assert!(again.code == Some(2) && again.err.contains("--resume"), "{}", again.err);
    let resumed = corpus.job("out", &["--resume", "--batch-size", "3", "--threads", "1"]);
    assert_eq!(resumed.code, Some(1), "{}", resumed.err);
    assert!(
        resumed.err.contains("0 parts made, 6 were there; 26 rows in all, 3 of them with errors"),
        "{}",
        resumed.err
    );
    for (more, named) in [
        (&["--alpha", "0.5"][..], "alpha"),
        (&["--target-prefix", "Ein"], "target_prefix"),
        (&["--dtype", "i8"], "dtype"),
        (&["--suppress", "."], "suppress"),
        (&["--alignment", "hard"], "a"),
        (&["--preset", "marian"], ""),
    ] {
        let refused = corpus.job("out", &[&["--resume"], more].concat());
        let expected = format!("beamfuse: resume: expected {named}");
        assert!(refused.code == Some(2) && refused.err.starts_with(&expected), "{more:?}: {}", refused.err);
    }
    let other = tempfile::tempdir().expect("a directory");
    for file in std::fs::read_dir(demo_model()).expect("there").flatten() {
        std::fs::copy(file.path(), other.path().join(file.file_name())).expect("a copy");
    }
    let model = other.path().display().to_string();
    assert_eq!(corpus.job("out", &["--resume", "--model", &model]).code, Some(1), "a copy is the same model");
    std::fs::write(other.path().join("note.txt"), "x").expect("written");
    let refused = corpus.job("out", &["--resume", "--model", &model]);
    assert!(refused.code == Some(2) && refused.err.contains("expected model "), "{}", refused.err);
    corpus.write("a.txt", b"A dog runs.\n");
    let refused = corpus.job("out", &["--resume"]);
    assert!(refused.code == Some(2) && refused.err.contains("expected digest of the input"), "{}", refused.err);
    let verified = corpus.job("out", &["--verify"]);
    assert!(verified.code == Some(1) && verified.err.contains("a.txt: expected the input"), "{}", verified.err);
    assert_eq!(files(&corpus.path("out")), before);
    std::fs::write(corpus.path("out/a.txt"), "x\n").expect("written");
    let verified = corpus.verify("out");
    assert!(verified.code == Some(1) && verified.err.contains("a.txt: expected "), "{}", verified.err);
}

#[test]
fn an_input_that_cannot_be_read_has_no_part_and_stops_no_other() {
    let corpus = Corpus::new();
    let packed = gzip(common::own_text().as_bytes());
    corpus.write("aa.txt.gz", &packed[..packed.len() / 2]);
    corpus.write("ab.txt", b"\xff\xfea\0\n\0");
    let done = corpus.job("out", &[]);
    assert_eq!(done.code, Some(2), "{}", done.err);
    assert!(done.err.contains("2 that cannot be read, the first of them aa.txt.gz"), "{}", done.err);
    let made = files(&corpus.path("out"));
    assert!(made.len() == 6 && !made.keys().any(|name| name.starts_with("aa") || name.starts_with("ab")));
    let verified = corpus.job("out", &["--verify"]);
    assert!(verified.code == Some(1) && verified.err.contains("aa.txt.gz: expected a part"), "{}", verified.err);
    corpus.write("aa.txt.gz", &packed);
    corpus.write("ab.txt", b"a\n");
    let done = corpus.job("out", &["--resume"]);
    assert!(done.code == Some(1) && done.err.contains("2 parts made"), "{}", done.err);
}

#[test]
fn jobs_that_would_destroy_or_confuse_are_refused() {
    let corpus = Corpus::new();
    let input = corpus.input().display().to_string();
    let before = files(&corpus.input());
    for (out, expected) in [
        (corpus.input(), "a directory apart from the inputs"),
        (corpus.input().join("sub/new"), "a directory apart from the inputs"),
        (corpus.dir.path().to_path_buf(), "a directory apart from the inputs"),
        (corpus.input().join("a.txt"), "expected a file other than the input"),
    ] {
        let done = run(&["translate", "--input", &input, "--output", &out.display().to_string()], b"");
        assert!(done.code == Some(2) && done.err.contains(expected), "{}: {}", out.display(), done.err);
    }
    let done = run(&["translate", "--input", &input], b"");
    assert!(done.code == Some(2) && done.err.contains("option output"), "{}", done.err);
    let (file, out) = (corpus.input().join("a.txt").display().to_string(), corpus.path("x").display().to_string());
    for more in [["--shard", "1/2"], ["--compress", "gzip"]] {
        let done = run(&[&["translate", "--input", &file, "--output", &out][..], &more].concat(), b"");
        assert!(done.code == Some(2) && done.err.contains("a directory or a pattern"), "{}", done.err);
    }
    assert!(!corpus.input().join("sub/new").exists());
    assert_eq!(files(&corpus.input()), before);
    corpus.write("a.tsv", b"A dog.\n");
    let done = corpus.job("out", &[]);
    assert!(done.code == Some(2) && done.err.contains("a.txt of both a.tsv and a.txt"), "{}", done.err);
}
