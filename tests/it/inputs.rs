//! What input may be: byte order marks, other encodings, compression, and formats apart from those of the output.

use std::io::Write;

use serde_json::Value;

use crate::common::command::{Finished, run};
use crate::common::{greedy, lines};

const MARK: &[u8] = b"\xef\xbb\xbf";
const GREEDY: [&str; 3] = ["translate", "--beam-size", "1"];

fn marked(text: &[u8]) -> Vec<u8> {
    [MARK, text].concat()
}

fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

/// A directory of files that vanishes with this.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Files(tempfile::tempdir().expect("a directory"))
    }

    fn write(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.0.path().join(name);
        std::fs::write(&path, bytes).expect("written");
        path.to_str().expect("UTF-8").to_string()
    }
}

/// Wrong as a whole: exit code 2, one line on stderr, nothing on stdout.
#[track_caller]
fn refused(done: &Finished, parts: &[&str]) {
    assert_eq!((done.code, done.out.as_str(), done.err.lines().count()), (Some(2), "", 1), "{}", done.err);
    parts.iter().for_each(|part| assert!(done.err.contains(part), "{part:?} is not in {}", done.err));
}

#[test]
fn a_byte_order_mark_changes_no_translation() {
    let source = lines("own/own.en")[0].clone();
    let expected = format!("{}\n", greedy()[0]);
    let files = Files::new();
    let text = marked(format!("{source}\n").as_bytes());
    assert_eq!(run(&GREEDY, &text).ok().out, expected);
    let path = files.write("marked.txt", &text);
    assert_eq!(run(&[&GREEDY[..], &["-i", &path]].concat(), b"").ok().out, expected);
    assert_eq!(run(&[&GREEDY[..], &[&format!("\u{feff}{source}")]].concat(), b"").ok().out, expected);
    let json = marked(serde_json::json!({ "source": source }).to_string().as_bytes());
    for format in ["auto", "jsonl"] {
        let args = [&GREEDY[..], &["--format", "jsonl", "--input-format", format]].concat();
        let object = &run(&args, &json).ok().objects()[0];
        assert_eq!(
            (&object["source"], &object["hypotheses"][0]["text"]),
            (&source.clone().into(), &greedy()[0].clone().into())
        );
    }
    // A second one is text.
    assert_eq!(
        run(&[&GREEDY[..], &["--format", "jsonl"]].concat(), &marked(&text)).ok().objects()[0]["source"],
        format!("\u{feff}{source}")
    );
}

#[test]
fn a_byte_order_mark_changes_no_score_and_no_list() {
    let files = Files::new();
    let pair = "A dog runs.\tEin Hund rennt.\n".as_bytes();
    assert_eq!(run(&["score"], &marked(pair)).ok().out, run(&["score"], pair).ok().out);
    let eval = |hypotheses: &[u8], reference: &[u8]| {
        let (h, r) = (files.write("h", hypotheses), files.write("r", reference));
        run(&["eval", "--hypotheses", &h, "--reference", &r, "--format", "json", "--resamples", "2"], b"").ok().out
    };
    let text = "Ein Hund rennt.\nZwei Hunde.\n".as_bytes();
    assert_eq!(eval(&marked(text), text), eval(text, text));
    assert_eq!(eval(text, &marked(text)), eval(text, text));
    for (option, list) in [("--bad-texts", "Hund\n"), ("--shortlist", "\u{2581}Ein\n.\n")] {
        let of = |bytes: &[u8]| {
            run(&[&GREEDY[..], &[option, &files.write("list", bytes), "A dog runs."]].concat(), b"").ok().out
        };
        assert_eq!(of(&marked(list.as_bytes())), of(list.as_bytes()), "{option}");
    }
}

#[test]
fn utf16_is_named_once_and_nothing_is_written() {
    let files = Files::new();
    let plain = utf16("A dog runs.\r\nTwo dogs run.\r\n");
    let with_mark = [b"\xff\xfe", &plain[..]].concat();
    for bytes in [&plain, &with_mark] {
        let path = files.write("utf16.txt", bytes);
        let right = files.write("utf8.txt", b"Ein Hund.\nZwei Hunde.\n");
        let parts = ["expected UTF-8", "UTF-16", "iconv -f UTF-16"];
        refused(&run(&GREEDY, bytes), &parts);
        refused(&run(&[&GREEDY[..], &["-i", &path]].concat(), b""), &["utf16.txt", "UTF-16", "iconv -f UTF-16"]);
        refused(&run(&[&GREEDY[..], &["--format", "jsonl"]].concat(), bytes), &parts);
        refused(&run(&["score"], bytes), &parts);
        for option in ["--bad-texts", "--shortlist"] {
            refused(&run(&[&GREEDY[..], &[option, &path, "A dog runs."]].concat(), b""), &parts);
        }
        for (hypotheses, reference) in [(&path, &right), (&right, &path)] {
            refused(&run(&["eval", "--hypotheses", hypotheses, "--reference", reference], b""), &parts);
        }
        refused(&run(&["diagnose", "-s", &path, "-r", &right], b""), &parts);
        refused(&run(&["bench", "-i", &path], b""), &parts);
    }
    // Its first line has gone through before the sign comes.
    let late = [b"A dog runs.\n".repeat(10), plain.clone()].concat();
    refused(&run(&GREEDY, &late), &["UTF-16"]);
}

#[test]
fn other_invalid_text_is_an_error_of_its_line() {
    let done = run(&GREEDY, b"A dog runs.\nUn caf\xe9.\nA dog runs.\n");
    assert_eq!(done.code, Some(1));
    let lines = done.lines();
    assert!(lines.len() == 3 && lines[0] == lines[2] && lines[1].is_empty(), "{lines:?}");
    assert!(done.err.contains("line 2: ") && done.err.contains("iconv -f"), "{}", done.err);
}

#[test]
fn compressed_input_is_translated_as_it_is_uncompressed() {
    let files = Files::new();
    let text = "A dog runs.\nTwo dogs run through the snow.\n".as_bytes();
    let expected = run(&GREEDY, text).ok().out;
    for (name, packed) in [("text.gz", gzip(text)), ("text.zst", zstd(text)), ("marked.gz", gzip(&marked(text)))] {
        assert_eq!(run(&GREEDY, &packed).ok().out, expected, "{name}");
        let path = files.write(name, &packed);
        assert_eq!(run(&[&GREEDY[..], &["-i", &path]].concat(), b"").ok().out, expected, "{name}");
    }
    let german = files.write("de", expected.as_bytes());
    let packed = files.write("de.zst", &zstd(expected.as_bytes()));
    let eval = |hypotheses: &str, reference: &str| {
        run(&["eval", "--hypotheses", hypotheses, "--reference", reference], b"").ok().out
    };
    assert_eq!(eval(&packed, &german), eval(&german, &german));
    assert_eq!(eval(&german, &packed), eval(&german, &german));
    let cut = gzip(text);
    let done = run(&GREEDY, &cut[..cut.len() - 4]);
    assert_eq!(done.code, Some(2), "{}", done.err);
    refused(&run(&GREEDY, b"\xfd7zXZ\0..."), &["xz", "decompress"]);
}

#[test]
fn input_and_output_formats_are_apart() {
    let best = |object: &serde_json::Map<String, Value>| object["hypotheses"][0]["text"].clone();
    let with = |args: &[&str], input: &str| run(&[&GREEDY[..], args].concat(), input.as_bytes());
    let expected = Value::from(with(&[], "A dog runs.\n").ok().out.trim_end());
    // Text in, JSON lines out.
    for input_format in [&["--input-format", "text"][..], &["--input-format", "auto"], &[]] {
        let objects = with(&[&["--format", "jsonl"], input_format].concat(), "A dog runs.\n\n").ok().objects();
        assert_eq!((best(&objects[0]), best(&objects[1])), (expected.clone(), "".into()));
        assert_eq!(objects[0]["source"], "A dog runs.");
    }
    // JSON lines in, text and n-best out.
    let json = "{\"source\": \"A dog runs.\", \"id\": 3}\n";
    assert_eq!(with(&["--input-format", "jsonl"], json).ok().out.trim_end(), expected);
    let n_best = with(&["--input-format", "jsonl", "--format", "nbest"], json).ok().out;
    assert!(n_best.starts_with(&format!("0 ||| {} ||| ", expected.as_str().unwrap())), "{n_best}");
    // Without a word about it, text is text, whatever it looks like.
    assert_ne!(with(&[], json).ok().out.trim_end(), expected);
    let object = &with(&["--input-format", "text", "--format", "jsonl"], json).ok().objects()[0];
    assert_eq!(object["source"], json.trim_end());
    // TSV in.
    let tsv = "A dog runs.\tx\ty\nA dog runs.\n";
    assert_eq!(with(&["--input-format", "tsv"], tsv).ok().lines(), [expected.as_str().unwrap(); 2]);
    let objects = with(&["--input-format", "tsv", "--format", "jsonl"], tsv).ok().objects();
    assert_eq!((&objects[0]["columns"], objects[1].get("columns")), (&serde_json::json!(["x", "y"]), None));
    assert_eq!((&objects[0]["source"], best(&objects[0])), (&"A dog runs.".into(), expected));
}

#[test]
fn pairs_to_score_may_be_json_lines() {
    let tsv = run(&["score"], b"A dog runs.\tEin Hund rennt.\n").ok().objects();
    let json = b"{\"id\": 7, \"source\": \"A dog runs.\", \"target\": \"Ein Hund rennt.\", \"log_prob\": \"old\"}\n{\"source\": \"a\"}\n\n";
    for args in [&["score"][..], &["score", "--input-format", "jsonl"]] {
        let done = run(args, json);
        assert_eq!(done.code, Some(1), "{}", done.err);
        let objects = done.objects();
        assert_eq!((&objects[0]["id"], &objects[0]["log_prob"]), (&7.into(), &tsv[0]["log_prob"]));
        assert_eq!(objects[1]["error"]["message"], "read line: expected a field \"target\", got none");
        assert_eq!(objects[2]["error"]["kind"], "json");
    }
    let done = run(&["score", "--input-format", "tsv"], json);
    assert!(done.objects().iter().all(|object| object["error"]["kind"] == "columns"), "{}", done.out);
    let text = run(&["score", "--format", "text"], b"A dog runs.\tEin Hund rennt.\na\n");
    assert_eq!((text.code, text.lines()), (Some(1), vec![tsv[0]["log_prob"].to_string().as_str(), ""]));
}

#[test]
fn half_a_surrogate_pair_is_called_that() {
    let input = br#"{"source": "A \ud83d dog"}
{"source": "A dog runs."}
"#;
    let done = run(&["translate", "--format", "jsonl", "--beam-size", "1"], input);
    assert_eq!(done.code, Some(1));
    let objects = done.objects();
    let message = objects[0]["error"]["message"].as_str().expect("a message");
    assert!(message.contains("\\ud83d, a lone surrogate"), "{message}");
    assert!(objects[1].contains_key("hypotheses"));
}

#[test]
#[cfg(feature = "train")]
fn training_reads_marks_and_compression() {
    let files = Files::new();
    let model = crate::common::demo_model();
    let pairs = "A dog runs.\tEin Hund rennt.\n".repeat(4);
    let data: std::path::PathBuf = files.write("data.tsv.gz", &gzip(&marked(pairs.as_bytes()))).into();
    let out = files.0.path().join("tuned");
    let args = ["train", "--model", model.to_str().unwrap(), "--data", data.to_str().unwrap()];
    let done = run(&[&args[..], &["--output", out.to_str().unwrap(), "--updates", "1", "--warmup", "1"]].concat(), b"");
    assert_eq!(done.code, Some(0), "{}", done.err);
    assert!(done.err.contains("4 pairs"), "{}", done.err);
}
