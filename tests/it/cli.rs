//! The command line's contract: what scripts rely on.

use std::path::Path;

use crate::common;
use crate::common::command::{command, run};
use crate::common::{greedy, too_long, translator};
use beamfuse::DecodeOptions;
use serde_json::{Map, Value};

fn keys(object: &Value) -> Vec<&str> {
    object.as_object().expect("an object").keys().map(String::as_str).collect()
}

const HYPOTHESIS_FIELDS: [&str; 11] = [
    "text",
    "token_ids",
    "tokens",
    "token_log_probs",
    "log_prob",
    "search_log_prob",
    "length",
    "length_penalty",
    "coverage_penalty",
    "score",
    "truncated",
];

#[test]
fn text_has_one_line_per_line_in_order() {
    let sources = common::lines("own/own.en");
    let input = format!("{}\r\n\n   \n{}\n{}", sources[0], sources[1], sources[2]);
    let output = run(&["translate", "--beam-size", "1"], input.as_bytes()).ok();
    assert_eq!(output.out, format!("{}\n\n\n{}\n{}\n", greedy()[0], greedy()[1], greedy()[2]));
    assert_eq!(run(&["translate"], b"").ok().out, "");
}

#[test]
fn texts_as_arguments_are_one_sentence_each() {
    let output = run(&["translate", "A dog runs.\nA cat sleeps.", "", "A dog runs."], b"").ok();
    let options = DecodeOptions::default();
    let expected =
        translator().translate(&["A dog runs.\nA cat sleeps.", "", "A dog runs."], &options).expect("options");
    assert_eq!(output.lines(), expected.iter().map(|t| t.text()).collect::<Vec<_>>());
}

#[test]
fn output_goes_to_a_file_and_files_are_read() {
    let dir = tempfile::tempdir().expect("a directory");
    let (input, output) = (dir.path().join("in"), dir.path().join("out"));
    std::fs::write(&input, "A man is riding a bike.\n").expect("a file");
    let path = |path: &Path| path.to_str().expect("UTF-8").to_string();
    let finished = run(&["translate", "-i", &path(&input), "-o", &path(&output), "--beam-size", "1"], b"").ok();
    assert_eq!(finished.out, "");
    assert_eq!(std::fs::read_to_string(output).expect("written"), format!("{}\n", greedy()[0]));
}

#[test]
fn json_lines_have_the_contract_s_fields_in_order() {
    let input = r#"{"z": 1, "source": "Two dogs run.", "id": 12345678901234567890123, "ratio": 1.50, "nested": {"b": [null], "a": "ü"}, "error": 3, "hypotheses": 4}
{"source": ""}
"#;
    let output = run(&["translate", "--format", "jsonl", "--n-best", "3"], input.as_bytes()).ok();
    let passed = r#"{"source":"Two dogs run.","z":1,"id":12345678901234567890123,"ratio":1.50,"nested":{"b": [null], "a": "ü"},"hypotheses":[{"text":""#;
    assert!(output.out.starts_with(passed), "{}", output.out);
    let objects = output.objects();
    let hypotheses = objects[0]["hypotheses"].as_array().expect("a list");
    assert_eq!(hypotheses.len(), 3);
    let expected = translator()
        .translate(&["Two dogs run."], &DecodeOptions::default().with(|o| o.n_best = 3))
        .expect("valid options");
    for (object, expected) in hypotheses.iter().zip(&expected[0].hypotheses) {
        assert_eq!(keys(object), HYPOTHESIS_FIELDS);
        assert_eq!(object["text"], expected.text.as_str());
        assert_eq!(object["token_ids"].as_array().map(Vec::len), object["length"].as_u64().map(|n| n as usize));
        assert_eq!(object["score"].to_string().parse(), Ok(expected.score));
    }
    // A blank line costs nothing, and the model is not asked.
    assert_eq!(keys(&Value::Object(objects[1].clone())), ["source", "hypotheses"]);
    let blank = &objects[1]["hypotheses"][0];
    assert_eq!(
        (blank["text"].as_str(), blank["score"].as_f64(), blank["length"].as_u64()),
        (Some(""), Some(0.0), Some(0))
    );
}

#[test]
fn n_best_lists_name_their_line() {
    let output = run(&["translate", "--format", "nbest", "--n-best", "2"], b"A dog runs.\n\xff\nA cat sleeps.\n");
    assert_eq!(output.code, Some(1));
    let numbers: Vec<&str> = output.lines().iter().map(|line| line.split(" ||| ").next().expect("a part")).collect();
    assert_eq!(numbers, ["0", "0", "", "2", "2"]);
    let parts: Vec<&str> = output.lines()[0].split(" ||| ").collect();
    assert_eq!((parts.len(), &parts[2][..4]), (4, "F0= "));
    assert!(parts[3].parse::<f32>().expect("a score") < 0.0);
}

#[test]
fn alignment_stands_behind_the_text() {
    let hard = run(&["translate", "--alignment", "hard", "--beam-size", "1"], b"A dog runs.\n\n").ok();
    let options = DecodeOptions::default().with(|o| {
        o.beam_size = 1;
        o.attention = true;
    });
    let translation = &translator().translate(&["A dog runs."], &options).expect("options")[0].hypotheses[0];
    let alignment = translation.alignment().expect("attention");
    let mut pairs: Vec<(usize, usize)> = alignment.into_iter().zip(0..).collect();
    pairs.sort_unstable();
    let pairs: Vec<String> = pairs.iter().map(|(source, target)| format!("{source}-{target}")).collect();
    assert_eq!(hard.lines(), [format!("{} ||| {}", translation.text, pairs.join(" ")), " ||| ".to_string()]);
    let soft = run(&["translate", "--alignment", "soft", "--format", "nbest", "--beam-size", "1"], b"A dog runs.").ok();
    let parts: Vec<&str> = soft.out.trim_end().split(" ||| ").collect();
    assert_eq!((parts.len(), parts[0], parts[1]), (5, "0", translation.text.as_str()));
    let weights: Vec<Vec<f32>> =
        parts[2].split(' ').map(|row| row.split(',').map(|w| w.parse().expect("a weight")).collect()).collect();
    assert_eq!(Some(weights), translation.attention);
}

#[test]
fn attention_is_added_on_request() {
    let input = br#"{"source": "A dog runs."}"#;
    let output = run(&["translate", "--format", "jsonl", "--attention"], input).ok();
    let hypothesis = &output.objects()[0]["hypotheses"][0];
    assert_eq!(keys(hypothesis)[11..], ["attention", "alignment"]);
    assert_eq!(hypothesis["alignment"].as_array().map(Vec::len), hypothesis["token_ids"].as_array().map(Vec::len));
}

#[test]
fn a_bad_line_of_text_is_empty_and_the_rest_carries_on() {
    let long = "x".repeat((1 << 20) + 1);
    let (long, words) = (long.as_bytes(), too_long());
    let good: &[u8] = b"A man is riding a bike.";
    let lines = [good, b"caf\xe9", long, words.as_bytes(), b"", good];
    let output = run(&["translate", "--beam-size", "1"], &lines.join(&b"\n"[..]));
    assert_eq!(output.code, Some(1));
    assert_eq!(output.lines(), [&greedy()[0], "", "", "", "", &greedy()[0]]);
    let reasons: Vec<&str> = output.err.lines().collect();
    assert_eq!(reasons.len(), 3, "{}", output.err);
    assert!(
        reasons[0].starts_with("beamfuse: line 2: read line: expected UTF-8, got an invalid byte at offset 3; "),
        "{reasons:?}"
    );
    assert_eq!(reasons[1], "beamfuse: line 3: read line: expected at most 1048576 bytes, got 1048578");
    assert!(
        reasons[2].starts_with("beamfuse: line 4: encode source: expected at most 256 tokens, got 3"),
        "{reasons:?}"
    );
}

#[test]
fn a_bad_json_line_has_an_error_object_in_its_place() {
    let mut input = br#"{"source": "A dog runs.", "id": 1}
{"id": 2, "source": "#
        .to_vec();
    input.extend(format!("\"{}\", \"error\": \"old\"}}\n", too_long()).bytes());
    input.extend(b"{\"source\": \"caf\xe9\"}\nnot JSON\n[1]\n{\"id\": 3}\n{\"source\": 3}\n\n");
    input.extend(br#"{"source": "A dog runs.", "seed": -7}"#);
    input.extend(b"\n{\"source\": \"A dog runs.\"}");
    let output = run(&["translate", "--format", "jsonl"], &input);
    assert_eq!(output.code, Some(1));
    let objects = output.objects();
    let kinds: Vec<&str> =
        objects.iter().map(|o| o.get("error").map_or("ok", |e| e["kind"].as_str().expect("a name"))).collect();
    let bad = ["utf8", "json", "json", "json", "json", "json", "json"];
    assert_eq!(kinds, [&["ok", "input_too_long"], &bad[..], &["ok"]].concat());
    assert_eq!(keys(&Value::Object(objects[1].clone())), ["source", "id", "error"]);
    assert_eq!(objects[1]["source"].as_str(), Some(too_long().as_str()));
    for object in &objects[1..9] {
        assert_eq!(keys(&object["error"]), ["kind", "message"]);
    }
    let numbers: Vec<&str> = output.err.lines().filter_map(|line| line.split(": ").nth(1)).collect();
    assert_eq!(numbers, ["line 2", "line 3", "line 4", "line 5", "line 6", "line 7", "line 8", "line 9"]);
}

#[test]
fn truncate_cuts_a_long_source_and_says_so() {
    let input = serde_json::json!({ "source": too_long() }).to_string() + "\n{\"source\": \"A dog runs.\"}\n";
    let args = ["translate", "--format", "jsonl", "--truncate", "--beam-size", "1", "--max-length", "4"];
    let output = run(&args, input.as_bytes()).ok();
    let objects = output.objects();
    assert_eq!(keys(&Value::Object(objects[0].clone())), ["source", "source_truncated", "hypotheses"]);
    assert_eq!(
        (&objects[0]["source_truncated"], objects[0]["source"].as_str()),
        (&Value::Bool(true), Some(too_long().as_str()))
    );
    assert_eq!(keys(&Value::Object(objects[1].clone())), ["source", "hypotheses"]);
}

#[test]
fn what_cannot_be_done_is_refused_before_any_output() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name).to_str().expect("UTF-8").to_string();
    let (kept, empty_model) = (path("kept"), path("model"));
    std::fs::write(&kept, "kept\n").expect("a file");
    std::fs::create_dir(&empty_model).expect("a directory");
    let missing = path("missing");
    for (args, reason) in [
        (vec!["--beam-size", "0"], "option beam-size: expected 1 to 64, got 0"),
        (vec!["--beam-size", "65"], "option beam-size"),
        (vec!["--n-best", "5"], "option n-best: expected 1 to beam-size 4, got 5"),
        (vec!["--alpha", "NaN"], "option alpha"),
        (vec!["--alpha", "1e30"], "option alpha"),
        (vec!["--coverage-penalty", "-1"], "option coverage-penalty"),
        (vec!["--word-reward", "inf"], "option word-reward"),
        (vec!["--max-length", "0"], "option max-length"),
        (vec!["--max-length", "2*T"], "option max-length"),
        (vec!["--max-length", "5", "--min-length", "6"], "option min-length"),
        (vec!["--beam-groups", "3"], "option beam-groups: expected a divisor of beam-size 4, got 3"),
        (vec!["--sample", "--top-p", "0"], "option top-p"),
        (
            vec!["--sample", "--n-best", "2"],
            "option n-best 2 cannot be combined with sample, which returns all samples",
        ),
        (vec!["--temperature", "0.5"], "option temperature: expected sample beside it, got 0.5"),
        (
            vec!["--sample=false", "--top-k", "5", "--diversity", "1"],
            "option diversity: expected beam-groups of 2 or more",
        ),
        (vec!["--batch-size", "0"], "option batch-size"),
        (vec!["--batch-size", "18446744073709551615"], "option batch-size"),
        (vec!["--threads", "9999"], "option threads"),
        (vec!["--preset", "none"], "--preset"),
        (vec!["--format", "xml"], "--format"),
        (vec!["--no-such-option"], "--no-such-option"),
        (vec!["--alignment", "1.5"], "option alignment: expected hard, soft, or a weight from 0 to below 1, got 1.5"),
        (vec!["--alignment", "hard", "--format", "jsonl"], "option alignment cannot be combined with format jsonl"),
        (vec!["--explain", &missing, "A dog runs.", "Two dogs run."], "option explain: expected one sentence, got 2"),
        (vec!["--explain", &kept, "A dog runs."], "option explain: expected a file other than the output"),
        (vec!["--input", &kept, "A dog runs."], "--input"),
        (vec!["--input", &missing], "missing"),
        (vec!["--input", &empty_model], "option output: expected a directory, as for all jobs"),
        (vec!["--model", &missing], "expected an existing directory or a hub id"),
        (vec!["--model", &empty_model], "config.json"),
    ] {
        let output = run(&[&["translate", "--output", &kept], &args[..]].concat(), b"A dog runs.\n");
        assert_eq!((output.code, output.out.as_str()), (Some(2), ""), "{args:?}");
        assert!(output.err.contains(reason), "{args:?}: {}", output.err);
        assert_eq!(std::fs::read_to_string(&kept).expect("still there"), "kept\n", "{args:?}");
    }
    let unwritable = path("no/such/folder");
    let output = run(&["translate", "--output", &unwritable], b"A dog runs.\n");
    assert_eq!((output.code, output.out.as_str()), (Some(2), ""));
    assert!(output.err.contains(&unwritable), "{}", output.err);
    for args in [vec!["score", "--model", &missing], vec!["info", "--model", &missing], vec![], vec!["fly"]] {
        let output = run(&args, b"");
        assert_eq!((output.code, output.out.as_str()), (Some(2), ""), "{args:?}");
        assert!(!output.err.is_empty(), "{args:?}");
    }
}

#[test]
fn the_input_is_never_written_over() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("text");
    std::fs::write(&file, "A dog runs.\n").expect("a file");
    let name = file.to_str().expect("UTF-8");
    let alias = format!("{}/./text", dir.path().to_str().expect("UTF-8"));
    for subcommand in ["translate", "score"] {
        let output = run(&[subcommand, "--input", name, "--output", &alias], b"");
        assert_eq!((output.code, output.out.as_str()), (Some(2), ""));
        assert!(output.err.contains("option output: expected a file other than the input"), "{}", output.err);
    }
    if Path::new("/dev/stdin").exists() {
        let mut redirected = command(&["translate", "--output", name]);
        let status = redirected.stdin(std::fs::File::open(&file).expect("a file")).status().expect("the binary starts");
        assert_eq!(status.code(), Some(2));
    }
    assert_eq!(std::fs::read_to_string(&file).expect("still there"), "A dog runs.\n");
}

#[test]
fn score_gives_a_line_s_log_probs_and_an_error_for_each_bad_line() {
    let mut input = b"A dog runs.\tEin Hund l\xc3\xa4uft.\r\nA dog runs.\n\xff\ta\na\tb\tc\n".to_vec();
    input.extend(format!("{}\tb\na\t{}\n\t\n", too_long(), too_long()).bytes());
    let output = run(&["score"], &input);
    assert_eq!(output.code, Some(1));
    let objects = output.objects();
    let fields = ["source", "target", "token_ids", "token_log_probs", "log_prob"];
    assert_eq!(keys(&Value::Object(objects[0].clone())), fields);
    assert_eq!(
        (objects[0]["source"].as_str(), objects[0]["target"].as_str()),
        (Some("A dog runs."), Some("Ein Hund läuft."))
    );
    let kinds: Vec<&str> =
        objects.iter().map(|o| o.get("error").map_or("ok", |e| e["kind"].as_str().expect("a name"))).collect();
    assert_eq!(kinds, ["ok", "columns", "utf8", "columns", "input_too_long", "input_too_long", "ok"]);
    assert_eq!(keys(&Value::Object(objects[1].clone())), ["source", "error"]);
    assert_eq!(output.err.lines().count(), 5, "{}", output.err);
    assert!(output.err.starts_with("beamfuse: line 2: read line: expected source TAB target, got 1 columns\n"));
    // An empty target is its end of sentence alone.
    assert_eq!(objects[6]["token_ids"].as_array().map(Vec::len), Some(1));
}

#[test]
fn score_repeats_what_translate_printed_bit_for_bit() {
    let input: String = common::lines("own/own.en")
        .iter()
        .take(30)
        .map(|s| serde_json::json!({ "source": s }).to_string() + "\n")
        .collect();
    let translated = run(&["translate", "--format", "jsonl", "--beam-size", "2"], input.as_bytes()).ok().objects();
    let pairs: String = translated
        .iter()
        .map(|o| {
            format!("{}\t{}\n", o["source"].as_str().expect("text"), o["hypotheses"][0]["text"].as_str().expect("text"))
        })
        .collect();
    let scored = run(&["score", "--threads", "1"], pairs.as_bytes()).ok().objects();
    let mut compared = 0;
    for (translated, scored) in translated.iter().zip(&scored) {
        let hypothesis = &translated["hypotheses"][0];
        // A text may have been generated in other pieces than it splits into.
        if hypothesis["token_ids"] == scored["token_ids"] {
            assert_eq!(hypothesis["token_log_probs"].to_string(), scored["token_log_probs"].to_string());
            assert_eq!(hypothesis["log_prob"].to_string(), scored["log_prob"].to_string());
            compared += 1;
        }
    }
    assert!(compared >= 25, "only {compared} of {} texts split as they were generated", scored.len());
}

#[test]
fn batch_order_and_threads_change_no_byte() {
    let line = |source: &String| serde_json::json!({ "source": source }).to_string() + "\n";
    let lines: Vec<String> = common::lines("own/own.en").iter().map(line).collect();
    let args = |batch: &'static str, threads: &'static str| {
        ["translate", "--format", "jsonl", "--beam-size", "2", "--batch-size", batch, "--threads", threads]
    };
    let expected = run(&args("32", "2"), lines.concat().as_bytes()).ok();
    assert_eq!(expected.lines().len(), lines.len());
    for (batch, threads) in [("1", "1"), ("7", "2"), ("256", "1")] {
        let actual = run(&args(batch, threads), lines.concat().as_bytes()).ok();
        assert_eq!(actual.lines(), expected.lines(), "--batch-size {batch} --threads {threads}");
    }
    // Multiplying by a number coprime to the count is a permutation.
    let order: Vec<usize> = (0..lines.len()).map(|i| i * 37 % lines.len()).collect();
    let shuffled: String = order.iter().map(|i| lines[*i].as_str()).collect();
    let actual = run(&args("7", "1"), shuffled.as_bytes()).ok();
    assert_eq!(actual.lines(), order.iter().map(|i| expected.lines()[*i]).collect::<Vec<_>>());
}

#[test]
fn info_plans_memory_for_a_device_that_need_not_be_there() {
    let plan = |arguments: &[&str]| run(&[&["info"], arguments].concat(), b"").ok().out;
    let text =
        plan(&["--device", "cuda", "--dtype", "f16", "--batch-size", "64", "--beam-size", "4", "--length", "100"]);
    assert!(text.contains("on cuda:0 in f16 to decode 64 sentences of 100 tokens at beam 4"), "{text}");
    for part in ["weights", "caches", "logits", "activations", "search"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let text = plan(&["--batch-size", "4096", "--memory-budget", "1G"]);
    let line = text.lines().find(|line| line.contains("of 4096 sentences at once fit 1024.0 MiB")).expect("a line");
    let fit: usize = line.split_whitespace().next().and_then(|number| number.parse().ok()).expect("a number");
    assert!((1..4096).contains(&fit), "{text}");
    let mebibytes = |text: &str, part: &str| -> f64 {
        let number = text.split(&format!("{part} ")).skip(1).find_map(|rest| rest.split(' ').next()?.parse().ok());
        number.unwrap_or_else(|| panic!("{part}: {text}"))
    };
    let alone = plan(&["--device", "cuda"]);
    let demo = common::demo_model();
    let amateur = demo.with_file_name("m30k-en-de-amateur");
    let (demo, amateur) = (demo.to_str().expect("UTF-8"), amateur.to_str().expect("UTF-8"));
    let all = plan(&["--device", "cuda", "--ensemble", demo, "--amateur", amateur]);
    let (one, three) = (mebibytes(&alone, "weights"), mebibytes(&all, "weights"));
    assert!(three > 2.0 * one + 1.0, "{alone}{all}");
    assert!((mebibytes(&all, "logits") - 3.0 * mebibytes(&alone, "logits")).abs() < 0.2, "{alone}{all}");
    let narrow = |dtype: &str| mebibytes(&plan(&["--device", "cuda", "--dtype", dtype]), "weights");
    assert!(narrow("i8") < narrow("f16"), "{} and {}", narrow("i8"), narrow("f16"));
    for wrong in [&["--memory-budget", "much"][..], &["--beam-size", "0"], &["--device", "cpu", "--dtype", "f16"]] {
        assert_eq!(run(&[&["info"], wrong].concat(), b"").code, Some(2), "{wrong:?}");
    }
}

#[test]
fn info_says_what_a_model_is() {
    let output = run(&["info"], b"").ok();
    for part in [
        "m30k-en-de",
        "marian, d_model 256",
        "3 layers, 4 heads",
        "7585857 in F16",
        "MiB",
        "unigram",
        "256 tokens per source",
    ] {
        assert!(output.out.contains(part), "{part}: {}", output.out);
    }
}

#[test]
fn samples_are_repeated_from_their_seed_and_change_with_it() {
    let sample = |seed: &str, more: &[&str], input: &[u8]| {
        let base = ["translate", "--format", "jsonl", "--sample", "--samples", "4", "--top-p", "0.9", "--seed", seed];
        run(&[&base[..], more].concat(), input).ok()
    };
    let input = b"{\"source\": \"Two dogs run.\"}\n{\"source\": \"A man sleeps.\", \"seed\": 9}\n";
    let first = sample("1", &[], input);
    let hypotheses = |line: &Map<String, Value>| line["hypotheses"].as_array().expect("a list").clone();
    let lines = first.objects();
    assert_eq!(lines.iter().map(|line| hypotheses(line).len()).collect::<Vec<_>>(), [4, 4]);
    assert_eq!(sample("1", &["--batch-size", "1"], input).out, first.out);
    let other = sample("2", &[], input).objects();
    assert_ne!(hypotheses(&other[0]), hypotheses(&lines[0]));
    // A line's own seed rules.
    assert_eq!(hypotheses(&other[1]), hypotheses(&lines[1]));
    // Minimum Bayes risk keeps one of these, and says how close it is to the others.
    let chosen = sample("1", &["--mbr", "chrf"], input).objects();
    for (line, all) in chosen.iter().zip(&lines) {
        let mut chosen = hypotheses(line);
        assert_eq!(chosen.len(), 1);
        let utility = chosen[0].as_object_mut().and_then(|h| h.remove("utility")).expect("its utility");
        assert!((25.0..=100.0).contains(&utility.as_f64().expect("a number")), "{utility}");
        assert!(hypotheses(all).contains(&chosen[0]));
    }
}

#[test]
fn help_names_every_option() {
    let options = [
        "--input",
        "--output",
        "--model",
        "--threads",
        "--batch-size",
        "--format",
        "--preset",
        "--beam-size",
        "--n-best",
        "--length-penalty",
        "--alpha",
        "--coverage-penalty",
        "--stop",
        "--max-length",
        "--min-length",
        "--truncate",
        "--sample",
        "--samples",
        "--temperature",
        "--top-k",
        "--top-p",
        "--min-p",
        "--epsilon",
        "--seed",
        "--mbr",
        "--beam-groups",
        "--diversity",
    ];
    for (args, parts) in [
        (vec!["--help"], &["translate", "score", "info", "--version"][..]),
        (vec!["translate", "--help"], &options[..]),
        (vec!["score", "--help"], &options[..5]),
        (vec!["info", "--help"], &["--model"][..]),
        (vec!["--version"], &[env!("CARGO_PKG_VERSION")][..]),
    ] {
        let output = run(&args, b"").ok();
        for part in parts {
            assert!(output.out.contains(part), "{args:?}: {part}: {}", output.out);
        }
    }
}
