//! What each malformed file of a model directory gets: an error of the right kind that names what is wrong, and no panic.

use std::process::{Command, Stdio};

use crate::common::command::run_command;
use crate::common::tiny::{D_MODEL, Tensor, Tiny, VOCAB};
use beamfuse::cpu::Cpu;
use beamfuse::model::Transformer;
use beamfuse::{DecodeOptions, Error, Preset, Translator};
use safetensors::Dtype;
use serde_json::{Value, json};

/// Opens a model that must fail: the error's kind must be `kind`, and its message must hold every one of `parts`.
#[track_caller]
fn refused(tiny: &Tiny, kind: &str, parts: &[&str]) {
    let Err(error) = Translator::open(tiny.dir()) else { panic!("it opened") };
    assert_error(&error, kind, parts);
}

#[track_caller]
fn assert_error(error: &Error, kind: &str, parts: &[&str]) {
    let message = error.to_string();
    assert_eq!(error.kind(), kind, "{message}");
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in {message:?}");
    }
}

/// As [`refused`], by the model alone: without the time that a tokenizer takes to load.
#[track_caller]
fn weights_refused(tiny: &Tiny, kind: &str, parts: &[&str]) {
    let cpu = Cpu::new(1, beamfuse::Dtype::F32).expect("a thread starts");
    let Err(error) = Transformer::open(&cpu, tiny.dir()) else { panic!("it opened") };
    assert_error(&error, kind, parts);
}

/// Refused by the library, and by the command with exit code 2 and nothing on standard output.
#[track_caller]
fn refused_by_the_command_too(tiny: &Tiny, kind: &str, parts: &[&str]) {
    refused(tiny, kind, parts);
    let mut command = Command::new(env!("CARGO_BIN_EXE_beamfuse"));
    let output = command.args(["translate", "A dog runs.", "--model"]).arg(tiny.dir()).output().expect("it starts");
    let err = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{err}");
    assert!(err.starts_with("beamfuse: ") && err.lines().count() == 1 && err.contains(parts[0]), "{err}");
}

fn write(tiny: &Tiny, name: &str, content: impl AsRef<[u8]>) {
    std::fs::write(tiny.path(name), content).expect("written");
}

/// A model whose configuration has `field` set to `value`.
fn configured(field: &str, value: Value) -> Tiny {
    let mut tiny = Tiny::new();
    tiny.config.insert(field.into(), value);
    tiny.write_config();
    tiny
}

/// A model with one tensor replaced, or dropped.
fn with_tensor(name: &str, tensor: Option<Tensor>) -> Tiny {
    let mut tiny = Tiny::new();
    tiny.tensors.remove(name).expect("a tensor of this name");
    tiny.tensors.extend(tensor.map(|tensor| (name.to_string(), tensor)));
    tiny.write_weights();
    tiny
}

/// A weights file of this header and data.
fn with_header(header: &Value, data: usize) -> Tiny {
    let tiny = Tiny::new();
    let header = header.to_string();
    let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; data]].concat();
    write(&tiny, "model.safetensors", file);
    tiny
}

#[test]
fn the_tiny_model_is_valid() {
    let tiny = Tiny::new();
    let translator = Translator::open(tiny.dir()).expect("it opens");
    let options = DecodeOptions::default().with(|o| o.n_best = 4);
    let translations = translator.translate(&["A dog runs."], &options).expect("valid options");
    assert_eq!(translations[0].hypotheses.len(), 4);
}

#[test]
fn missing_files() {
    for name in ["config.json", "model.safetensors", "source.spm", "target.spm", "vocab.json"] {
        let tiny = Tiny::new();
        std::fs::remove_file(tiny.path(name)).expect("it was there");
        refused_by_the_command_too(&tiny, "io", &[name]);
    }
    for name in ["generation_config.json", "tokenizer_config.json"] {
        let tiny = Tiny::new();
        std::fs::remove_file(tiny.path(name)).expect("it was there");
        assert!(Translator::open(tiny.dir()).is_ok(), "{name} need not exist");
    }
}

#[test]
fn directories_in_place_of_files() {
    for name in ["config.json", "model.safetensors", "source.spm", "vocab.json", "tokenizer_config.json"] {
        let tiny = Tiny::new();
        std::fs::remove_file(tiny.path(name)).expect("it was there");
        std::fs::create_dir(tiny.path(name)).expect("a directory");
        refused(&tiny, "io", &[name]);
    }
}

#[test]
fn bad_json() {
    for name in ["config.json", "generation_config.json", "vocab.json", "tokenizer_config.json"] {
        for (content, kind) in [(&b""[..], "json"), (b"{\"a\":", "json"), (b"\xff", "json"), (&[b'['; 1000], "json")] {
            let tiny = Tiny::new();
            write(&tiny, name, content);
            refused(&tiny, kind, &[name]);
        }
        let tiny = Tiny::new();
        write(&tiny, name, "[1, 2]");
        let Err(error) = Translator::open(tiny.dir()) else { panic!("{name}: it opened") };
        assert!(["json", "config", "tokenizer"].contains(&error.kind()) && error.to_string().contains(name), "{error}");
    }
    let tiny = Tiny::new();
    write(&tiny, "config.json", "{");
    refused_by_the_command_too(&tiny, "json", &["config.json"]);
}

#[test]
fn truncated_weights() {
    let tiny = Tiny::new();
    let whole = tiny.weights();
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().expect("8 bytes")) as usize;
    let cuts = (0..16).chain((16..header).step_by(97)).chain([header - 1, header, header + 1]);
    for cut in cuts.chain((header..whole.len()).step_by(whole.len() / 7)).chain([whole.len() - 1]) {
        write(&tiny, "model.safetensors", &whole[..cut]);
        weights_refused(&tiny, "safetensors", &["model.safetensors"]);
    }
    refused_by_the_command_too(&tiny, "safetensors", &["model.safetensors"]);
}

#[test]
fn damaged_header_bytes_never_panic() {
    let tiny = Tiny::new();
    let whole = tiny.weights();
    let cpu = Cpu::new(1, beamfuse::Dtype::F32).expect("a thread starts");
    for at in (0..2000).step_by(41) {
        for byte in [0, b'"', b'9', 0xff] {
            let mut damaged = whole.clone();
            damaged[at] = byte;
            write(&tiny, "model.safetensors", damaged);
            // It may still be valid, by luck.
            let _ = Transformer::open(&cpu, tiny.dir());
        }
    }
}

#[test]
fn lying_headers() {
    for length in [u64::MAX, 1 << 40, 1 << 63, 100_000_001] {
        let tiny = Tiny::new();
        let mut file = tiny.weights();
        file[..8].copy_from_slice(&length.to_le_bytes());
        write(&tiny, "model.safetensors", file);
        weights_refused(&tiny, "safetensors", &["model.safetensors"]);
    }
    let cpu = Cpu::new(1, beamfuse::Dtype::F32).expect("a thread starts");
    let entry =
        |shape: Value, from: u64, to: u64| json!({ "dtype": "F32", "shape": shape, "data_offsets": [from, to] });
    for (what, header, data) in [
        ("behind the end", json!({ "a": entry(json!([4]), 0, 16) }), 12),
        ("far behind the end", json!({ "a": entry(json!([4]), u64::MAX - 16, u64::MAX) }), 16),
        ("backwards", json!({ "a": entry(json!([4]), 16, 0) }), 16),
        ("overlapping", json!({ "a": entry(json!([4]), 0, 16), "b": entry(json!([4]), 8, 24) }), 24),
        ("a gap", json!({ "a": entry(json!([2]), 0, 8), "b": entry(json!([2]), 16, 24) }), 24),
        ("shape against bytes", json!({ "a": entry(json!([5]), 0, 16) }), 16),
        ("shape overflows", json!({ "a": entry(json!([1u64 << 40, 1u64 << 40]), 0, 16) }), 16),
        ("shape overflows before a zero", json!({ "a": entry(json!([1u64 << 40, 1u64 << 40, 0]), 0, 0) }), 0),
        ("unknown type", json!({ "a": { "dtype": "F99", "shape": [4], "data_offsets": [0, 16] } }), 16),
        ("negative", json!({ "a": { "dtype": "F32", "shape": [-4], "data_offsets": [0, 16] } }), 16),
        ("unused bytes", json!({ "a": entry(json!([4]), 0, 16) }), 20),
        ("not an object", json!([1]), 16),
    ] {
        let tiny = with_header(&header, data);
        let Err(error) = Transformer::open(&cpu, tiny.dir()) else { panic!("{what}: it opened") };
        assert_eq!(error.kind(), "safetensors", "{what}: {error}");
        assert!(error.to_string().contains("model.safetensors"), "{what}: {error}");
    }
    refused_by_the_command_too(&with_header(&json!({}), 0), "tensor", &["model.shared.weight"]);
}

const QUERY: &str = "model.decoder.layers.0.self_attn.q_proj.weight";

#[test]
fn wrong_tensors() {
    let values = [0.5; D_MODEL * D_MODEL];
    refused_by_the_command_too(&with_tensor(QUERY, None), "tensor", &[QUERY, "shape [8, 8]", "no such tensor"]);
    let flat = Tensor::f32(&[D_MODEL * D_MODEL], &values);
    refused_by_the_command_too(&with_tensor(QUERY, Some(flat)), "tensor", &[QUERY, "shape [8, 8]", "[64]"]);
    let bytes = vec![0; 8 * values.len()];
    for dtype in [Dtype::I64, Dtype::BOOL, Dtype::F8_E4M3] {
        let bytes = bytes[..values.len() * dtype.bitsize() / 8].to_vec();
        let tensor = Tensor { dtype, shape: vec![D_MODEL, D_MODEL], bytes };
        refused(&with_tensor(QUERY, Some(tensor)), "tensor", &[QUERY, "F32, F16 or BF16", &format!("{dtype:?}")]);
    }
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut values = values;
        values[37] = value;
        let tensor = Tensor::f32(&[D_MODEL, D_MODEL], &values);
        refused_by_the_command_too(&with_tensor(QUERY, Some(tensor)), "tensor", &[QUERY, "finite", "index 37"]);
        let half = values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect();
        let tensor = Tensor { dtype: Dtype::BF16, shape: vec![D_MODEL, D_MODEL], bytes: half };
        refused(&with_tensor(QUERY, Some(tensor)), "tensor", &[QUERY, "finite", "index 37"]);
    }
}

#[test]
fn every_tensor_is_checked() {
    let names: Vec<String> = Tiny::new().tensors.into_keys().collect();
    assert!(names.len() > 40);
    for name in &names {
        // Without it the bias is zero.
        if name != "final_logits_bias" {
            weights_refused(&with_tensor(name, None), "tensor", &[name, "no such tensor"]);
        }
        weights_refused(
            &with_tensor(name, Some(Tensor::f32(&[3], &[0.5; 3]))),
            "tensor",
            &[name, "expected shape", "[3]"],
        );
    }
}

#[test]
fn extra_tensors_do_no_harm() {
    let mut tiny = Tiny::new();
    tiny.tensors.insert("extra".into(), Tensor { dtype: Dtype::I64, shape: vec![1], bytes: vec![0; 8] });
    tiny.write_weights();
    assert!(Translator::open(tiny.dir()).is_ok());
}

#[test]
fn wrong_configurations() {
    for (field, value) in [
        ("model_type", json!("whisper")),
        ("model_type", Value::Null),
        ("model_type", json!(7)),
        ("activation_function", json!("swiglu")),
        ("activation_function", json!(3)),
        ("quantization_config", json!({ "bits": 4 })),
        ("is_encoder_decoder", json!(false)),
        ("tie_encoder_decoder", json!(true)),
        ("scale_embedding", json!("yes")),
        ("encoder_attention_heads", json!(3)),
        ("decoder_attention_heads", json!(16)),
        ("encoder_attention_heads", json!(0)),
        ("encoder_layers", json!(1_000_000_000)),
        ("decoder_layers", json!(0)),
        ("d_model", json!(1u64 << 40)),
        ("d_model", json!(-8)),
        ("d_model", json!(8.5)),
        ("d_model", json!(0)),
        ("encoder_ffn_dim", json!(1u64 << 62)),
        ("max_position_embeddings", json!(1u64 << 50)),
        ("vocab_size", json!(u64::MAX)),
        ("decoder_vocab_size", json!(7000)),
        ("pad_token_id", json!(8001)),
        ("eos_token_id", json!(-1)),
        ("eos_token_id", json!([0, 1])),
        ("decoder_start_token_id", json!(1u64 << 32)),
        ("normalize_before", json!("maybe")),
    ] {
        let tiny = configured(field, value.clone());
        let mut parts = vec![field, "config.json", "expected"];
        let got = format!("got {value}");
        if !value.is_null() {
            parts.push(&got);
        }
        refused(&tiny, "config", &parts);
    }
    let known = ["marian", "m2m_100", "bart", "mbart", "pegasus", "plbart", "fsmt", "t5", "mt5", "umt5"];
    let parts = [&["model_type", "nllb-moe"][..], &known].concat();
    refused_by_the_command_too(&configured("model_type", json!("nllb-moe")), "config", &parts);
    refused_by_the_command_too(&configured("d_model", json!(1u64 << 40)), "config", &["d_model"]);
    let mut tiny = Tiny::new();
    tiny.config.remove("decoder_start_token_id");
    tiny.write_config();
    refused(&tiny, "config", &["decoder_start_token_id", "below 8001"]);
}

/// Sizes that are allowed but that the weights do not have: refused before anything of that size is allocated.
#[test]
fn large_sizes_without_the_weights_for_them() {
    for (field, value, tensor) in [
        ("d_model", 65536, "model.shared.weight"),
        ("encoder_layers", 1024, "model.encoder.layers.1."),
        ("decoder_layers", 1024, "model.decoder.layers.1."),
        ("encoder_ffn_dim", 65536, "model.encoder.layers.0.fc1.weight"),
        ("decoder_ffn_dim", 65536, "model.decoder.layers.0.fc1.weight"),
    ] {
        refused(&configured(field, json!(value)), "tensor", &[tensor]);
    }
    let mut tiny = configured("share_encoder_decoder_embeddings", json!(false));
    tiny.config.insert("tie_word_embeddings".into(), json!(false));
    tiny.write_config();
    refused(&tiny, "tensor", &["model.decoder.embed_tokens.weight"]);
    refused(&configured("tie_word_embeddings", json!(false)), "tensor", &["lm_head.weight"]);
}

#[test]
fn vocabulary_and_model_of_different_sizes() {
    let tiny = configured("vocab_size", json!(8002));
    refused_by_the_command_too(&tiny, "tensor", &["model.shared.weight", "[8002, 8]", "[8001, 8]"]);
    let cut = |from: &str, to: &str| {
        let tiny = Tiny::new();
        let text = std::fs::read_to_string(tiny.path("vocab.json")).expect("it was there");
        assert!(text.contains(from), "{from}");
        write(&tiny, "vocab.json", text.replacen(from, to, 1));
        tiny
    };
    refused(&cut("\"</s>\": 0", "\"</s>\": 1"), "tokenizer", &["vocab.json", "distinct ids"]);
    refused(&cut("\"</s>\": 0", "\"</s>\": 8001"), "tokenizer", &["</s> to be eos_token_id 0", "got 8001"]);
    refused(&cut("\"</s>\": 0", "\"</s>\": -1"), "tokenizer", &["vocab.json", "ids from 0 on", "-1 for"]);
    refused(&cut("\"</s>\": 0", "\"</s>\": \"0\""), "tokenizer", &["vocab.json", "\"</s>\""]);
    refused(&cut("\"</s>\": 0", "\"</t>\": 0"), "tokenizer", &["vocab.json", "\"</s>\""]);
    let empty = Tiny::new();
    write(&empty, "vocab.json", "{}");
    refused(&empty, "tokenizer", &["vocab.json"]);
    refused(&configured("eos_token_id", json!(5)), "tokenizer", &["eos_token_id 5", "got 0"]);
    let separate = Tiny::new();
    write(&separate, "tokenizer_config.json", r#"{"separate_vocabs": true}"#);
    refused(&separate, "io", &["target_vocab.json"]);
    write(&separate, "tokenizer_config.json", r#"{"separate_vocabs": 1}"#);
    refused(&separate, "config", &["separate_vocabs"]);
}

#[test]
fn damaged_sentencepiece_models() {
    for name in ["source.spm", "target.spm"] {
        let tiny = Tiny::new();
        let whole = std::fs::read(tiny.path(name)).expect("it was there");
        for cut in [0, 1, 2, 10, 100, 1000, whole.len() / 3, whole.len() / 2, whole.len() - 1] {
            write(&tiny, name, &whole[..cut]);
            refused(&tiny, "tokenizer", &[name]);
        }
        refused_by_the_command_too(&tiny, "tokenizer", &[name]);
        write(&tiny, name, b"this is no model");
        refused(&tiny, "tokenizer", &[name]);
    }
    // Damage within may go unnoticed, but nothing panics, neither while loading nor while encoding.
    let tiny = Tiny::new();
    let whole = std::fs::read(tiny.path("source.spm")).expect("it was there");
    for at in (0..whole.len()).step_by(whole.len() / 150) {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x55;
        if let Ok(model) = beamfuse::text::sentencepiece::SentencePiece::from_bytes(&damaged, "damaged".as_ref()) {
            model.encode("Ein \u{ff21}bc 1\u{2075} dog\u{301} ⁇ \u{0}\u{fffd} runs");
        }
    }
}

#[test]
fn bad_shard_indexes() {
    let sharded = |edit: &dyn Fn(&mut serde_json::Map<String, Value>)| {
        let tiny = Tiny::new();
        std::fs::rename(tiny.path("model.safetensors"), tiny.path("one.safetensors")).expect("it was there");
        let mut map = tiny.tensors.keys().map(|name| (name.clone(), json!("one.safetensors"))).collect();
        edit(&mut map);
        write(&tiny, "model.safetensors.index.json", json!({ "weight_map": map }).to_string());
        tiny
    };
    let place = |file: &'static str| {
        move |map: &mut serde_json::Map<String, Value>| drop(map.insert(QUERY.into(), json!(file)))
    };
    assert!(Translator::open(sharded(&|_| ()).dir()).is_ok());
    for escape in ["../one.safetensors", "/etc/passwd", "a/../one.safetensors", "..", ".", "", "./one.safetensors"] {
        refused(&sharded(&place(escape)), "config", &["index.json", "weight_map", "without directories", escape]);
    }
    refused_by_the_command_too(&sharded(&place("two.safetensors")), "io", &["two.safetensors"]);
    let listed = sharded(&|map| drop(map.insert("extra".into(), json!("one.safetensors"))));
    refused(&listed, "config", &["index.json", "extra", "one.safetensors"]);
    refused(&sharded(&|map| drop(map.remove(QUERY))), "tensor", &[QUERY, "no such tensor"]);
    // The file is there, and the tensor stands in another one.
    let elsewhere = sharded(&place("two.safetensors"));
    let extra = [("extra", Tensor::f32(&[1], &[0.5]))];
    write(&elsewhere, "two.safetensors", safetensors::serialize(extra, None).expect("consistent"));
    refused(&elsewhere, "config", &["index.json", QUERY, "two.safetensors"]);
    for index in ["{}", "[]", r#"{"weight_map": 3}"#, r#"{"weight_map": {"a": 3}}"#] {
        let tiny = sharded(&|_| ());
        write(&tiny, "model.safetensors.index.json", index);
        refused(&tiny, "json", &["model.safetensors.index.json"]);
    }
}

#[test]
fn searches_that_the_hf_preset_does_not_do() {
    for (field, value) in [
        ("do_sample", json!(true)),
        ("num_beam_groups", json!(2)),
        ("bad_words_ids", json!([[VOCAB - 1], [VOCAB]])),
        ("suppress_tokens", json!([3, 0])),
        ("forced_bos_token_id", json!(VOCAB)),
        ("forced_bos_token_id", json!([4, 5])),
        ("forced_eos_token_id", json!(7)),
        ("eos_token_id", json!([0, 2])),
        ("decoder_start_token_id", json!(0)),
    ] {
        let tiny = Tiny::new();
        let mut generation = json!({ "bad_words_ids": [[VOCAB - 1]], "forced_eos_token_id": 0, "num_beams": 2 });
        write(&tiny, "generation_config.json", generation.to_string());
        let translator = Translator::open(tiny.dir()).expect("it opens");
        assert!(translator.preset(Preset::Hf).is_ok_and(|options| options.beam_size == 2));
        generation[field] = value.clone();
        write(&tiny, "generation_config.json", generation.to_string());
        let translator = Translator::open(tiny.dir()).expect("the other presets ignore it");
        let Err(error) = translator.preset(Preset::Hf) else { panic!("{field}: accepted") };
        assert_error(&error, "option", &["preset", &format!("{field} = {value}")]);
    }
    for (field, value) in [
        ("num_beams", json!(0)),
        ("early_stopping", json!("soon")),
        ("length_penalty", json!("x")),
        ("no_repeat_ngram_size", json!(-1)),
        ("repetition_penalty", json!([1])),
        ("bad_words_ids", json!([[]])),
        ("suppress_tokens", json!("x")),
    ] {
        let tiny = Tiny::new();
        write(&tiny, "generation_config.json", json!({ field: value }).to_string());
        refused(&tiny, "config", &["generation_config.json", field]);
    }
}

#[test]
#[cfg_attr(not(target_os = "linux"), ignore = "needs a limit that holds")]
fn a_search_too_large_for_the_memory_is_an_error_of_its_sentences() {
    let tiny = configured("max_position_embeddings", json!(65536));
    let limited = format!("ulimit -v {} && exec \"$0\" \"$@\"", 240 << 10);
    let mut command = Command::new("sh");
    command.args(["-c", &limited, env!("CARGO_BIN_EXE_beamfuse")]).args([
        "translate",
        "--threads",
        "1",
        "--format",
        "jsonl",
        "--model",
    ]);
    command.arg(tiny.dir()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let line = |options: Value| format!("{}\n", json!({ "source": "A dog runs.", "options": options }));
    let lines = [json!({ "beam_size": 64, "max_length": 65536 }), json!({ "beam_size": 1, "max_length": 2 })].map(line);
    let done = run_command(command, lines.concat().as_bytes());
    let objects = done.objects();
    assert_eq!((done.code, objects.len()), (Some(1), 2), "{}", done.err);
    let message = objects[0]["error"]["message"].as_str().expect("an error");
    assert!(message.contains("free memory") || message.contains("llocate memory"), "{message}");
    assert!(objects[1]["hypotheses"][0]["text"].is_string(), "the engine goes on");
}
