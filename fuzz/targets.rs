//! What the targets do with an input; `drive` runs them without libFuzzer.

use std::cell::RefCell;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;

use beamfuse::cli::fuzzing::{read_lines, read_options};
use beamfuse::cpu::Cpu;
use beamfuse::decode::Request;
use beamfuse::decode::engine::{Engine, Search};
use beamfuse::document::{Form, Plan, Reading, Rendered, Rules, Splitting, Wording};
use beamfuse::model::Transformer;
use beamfuse::model::config::ModelConfig;
use beamfuse::model::generation::GenerationConfig;
use beamfuse::model::weights::Weights;
use beamfuse::serve;
use beamfuse::text::Tokenizer;
use beamfuse::text::sentencepiece::SentencePiece;
use beamfuse::train::autograd::AutogradModel;
use beamfuse::train::checkpoint::State;
use beamfuse::{DecodeOptions, Error, Preset, Terms};

use crate::{ModelDir, demo_model, parts, seed};

/// A target: its name, and what it does with an input.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 10] = [
    ("weights", weights),
    ("config", config),
    ("tokenizer", tokenizer),
    ("text", text),
    ("json_lines", json_lines),
    ("json_options", json_options),
    ("hub", hub),
    ("training_state", training_state),
    ("document", document),
    ("http", http),
];

thread_local! {
    static WEIGHTS: RefCell<ModelDir> = RefCell::new(ModelDir::new());
}

/// Threads are dear: inputs that do not open, nearly all, share these.
static PROBE: LazyLock<Cpu> = LazyLock::new(|| Cpu::new(1, beamfuse::Dtype::F32).expect("a thread starts"));

/// A checkpoint and the configuration that it is read under: `config.json`, 0xff, `model.safetensors`.
///
/// What opens must translate: a model that has been accepted may give bad translations, but not end the engine.
pub fn weights(data: &[u8]) {
    let [config, weights] = parts(data);
    WEIGHTS.with_borrow(|dir| {
        dir.set("config.json", config);
        dir.set("model.safetensors", weights);
        if let Ok(weights) = Weights::open(dir.path()) {
            let _ = (weights.parameters(), weights.dtype(), weights.contains("final_logits_bias"));
        }
        if Transformer::open(&*PROBE, dir.path()).is_err() {
            return;
        }
        let backend = Cpu::new(1, beamfuse::Dtype::F32).expect("a thread starts");
        let model = Transformer::open(&backend, dir.path()).expect("what has opened opens again");
        let config = model.config().clone();
        let engine = Engine::start(vec![backend], vec![model], config.vocab_size, 2, 2).expect("a thread starts");
        let options = DecodeOptions::default()
            .with(|options| (options.beam_size, options.max_length) = (2, beamfuse::MaxLength::Absolute(4)));
        let source = vec![0, config.vocab_size as u32 - 1, config.ids.eos_id];
        let (reply, replies) = std::sync::mpsc::channel();
        let options = options.for_slot(source.len(), engine.max_len());
        let search = Search(Request { source, options, n_best: 2, attention: true, ..Request::default() });
        match engine.submit(search, Terms::new(), move |result| drop(reply.send(result))) {
            Ok(_) => match replies.recv().expect("the engine answers") {
                Ok(_) | Err(Error::NonFiniteLogits { .. }) => {}
                Err(error) => panic!("{error}"),
            },
            Err(error) => assert!(matches!(error, Error::InputTooLong { .. }), "{error}"),
        }
    });
}

thread_local! {
    static CONFIG: RefCell<ModelDir> = RefCell::new({
        let dir = ModelDir::new();
        let spm = seed("unigram.spm");
        dir.set("source.spm", Some(&spm));
        dir.set("target.spm", Some(&spm));
        dir
    });
}

const FILES: [&str; 5] =
    ["config.json", "generation_config.json", "tokenizer_config.json", "vocab.json", "model.safetensors.index.json"];

/// The JSON files of a model directory, with 0xff between them: config, generation config, tokenizer config, vocabulary, and the
/// index of a checkpoint in shards.
pub fn config(data: &[u8]) {
    CONFIG.with_borrow(|dir| {
        for (name, content) in FILES.into_iter().zip(parts::<5>(data)) {
            dir.set(name, content);
        }
        if let Ok(config) = ModelConfig::open(dir.path()) {
            if let Ok(generation) = GenerationConfig::open(dir.path(), &config)
                && let Ok(options) = DecodeOptions::preset(Preset::Hf, &generation)
                && options.validate().is_ok()
            {
                let slot = options.for_slot(7, config.longest());
                assert!(1 <= slot.max_len && slot.max_len as usize <= config.longest());
            }
        }
        if let Ok(tokenizer) = Tokenizer::open(dir.path()) {
            let ids = tokenizer.encode_source(">>de<< A dog\u{0} runs.");
            assert!(ids.iter().all(|id| (*id as usize) < tokenizer.source_vocab_size()));
            let _ = (tokenizer.detokenize(&ids), tokenizer.summary().to_string(), tokenizer.piece_table_hash());
        }
        let _ = Weights::open(dir.path());
    });
}

/// A SentencePiece model and a text for it: two bytes with the model's size, the model, the text.
pub fn tokenizer(data: &[u8]) {
    let Some((size, rest)) = data.split_first_chunk() else { return };
    let (model, text) = rest.split_at(rest.len().min(u16::from_le_bytes(*size).into()));
    let Ok(model) = SentencePiece::from_bytes(model, Path::new("fuzzed.spm")) else { return };
    let text = String::from_utf8_lossy(text);
    let pieces = model.encode(&text);
    let _ = model.decode(pieces.iter().map(String::as_str));
    let _ = (model.model_type(), model.piece_count(), model.normalization());
}

static TOKENIZER: LazyLock<Tokenizer> =
    LazyLock::new(|| Tokenizer::open(demo_model()).expect("the demo model is there"));

/// Any text through the demo model's tokenizer.
pub fn text(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let ids = TOKENIZER.encode_source(&text);
    assert_eq!(ids.last(), Some(&TOKENIZER.eos_id()));
    assert!(ids.iter().all(|id| (*id as usize) < TOKENIZER.source_vocab_size()));
    let ids = TOKENIZER.encode_target(&text);
    assert!(ids.iter().all(|id| (*id as usize) < TOKENIZER.target_vocab_size()));
    let _ = TOKENIZER.detokenize(&ids);
}

/// Input lines, as text and as JSON: each line has one outcome, and an outcome can be written; where the input is neither compressed
/// nor marked, each byte belongs to one line.
pub fn json_lines(data: &[u8]) {
    let lines = data.split_inclusive(|byte| *byte == b'\n').count();
    for json in [false, true] {
        // What is no text is refused as a whole.
        let Ok(read) = read_lines(data, json) else { return };
        let changed: [&[u8]; 3] = [b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xef\xbb\xbf"];
        if !changed.iter().any(|magic| data.starts_with(magic)) {
            assert_eq!(read.len(), lines);
            assert_eq!(read.iter().map(|line| line.bytes).sum::<u64>(), data.len() as u64);
        }
        for (number, line) in (1..).zip(&read) {
            assert_eq!(line.number, number);
            assert!(!line.written.contains('\n'));
        }
    }
}

/// The object of options that a JSON line brings.
pub fn json_options(data: &[u8]) {
    if let Ok(Ok(options)) = std::str::from_utf8(data).map(|text| read_options(demo_model(), text)) {
        options.validate().expect("what is accepted is allowed");
    }
}

/// What a hub answers, with 0xff between: the list of a repository's files, the index of a checkpoint in shards, and the headers
/// ETag, Location and Content-Range.
pub fn hub(data: &[u8]) {
    let [list, index, etag, location, range] = parts::<5>(data).map(Option::unwrap_or_default);
    let plain = |name: &str| !name.contains('/') && !name.contains("..");
    for name in beamfuse::hub::fuzzing::files(list, index) {
        assert!(plain(&name), "{name}");
    }
    let (etag, location) = beamfuse::hub::fuzzing::headers(etag, location, range);
    assert!(etag.is_none_or(|etag| plain(&etag)));
    assert!(location.is_none_or(|location| location.starts_with("https://")));
}

thread_local! {
    static TRAINING: RefCell<(ModelDir, AutogradModel)> = RefCell::new({
        let dir = ModelDir::new();
        for (name, content) in ["config.json", "model.safetensors"].into_iter().zip(parts::<2>(&seed("weights/f32"))) {
            dir.set(name, content);
        }
        let model = AutogradModel::open(dir.path()).expect("the seed is a model");
        (dir, model)
    });
}

/// The state of a training run before its first update.
///
/// # Panics
/// If it cannot be written.
pub fn fresh_state() -> Vec<u8> {
    TRAINING.with_borrow(|(dir, model)| {
        let progress = r#"{"update": 0, "epoch": 0, "batch": 0, "best": null, "worse": 0, "logged": 0, "fingerprint": {"seed": "1"}}"#;
        let zeros = |size: usize| [vec![0.0; size], vec![0.0; size]];
        let state = State {
            progress: serde_json::from_str(progress).expect("a run's progress"),
            tensors: model.parameters().tensors().expect("the parameters"),
            moments: model.parameters().iter().map(|parameter| zeros(parameter.tensor().elem_count())).collect(),
        };
        let path = dir.path().join("fresh.safetensors");
        state.write(&path, model.parameters()).expect("written");
        std::fs::read(path).expect("written")
    })
}

/// The state of a training run.
pub fn training_state(data: &[u8]) {
    TRAINING.with_borrow_mut(|(dir, model)| {
        dir.set("state.safetensors", Some(data));
        if let Ok(state) = State::read(&dir.path().join("state.safetensors"), model.parameters()) {
            _ = model.parameters_mut().set_tensors(&state.tensors);
        }
    });
}

/// A document: a byte that says how it is read, and its text. HTML is read twice: what is put together of it must be a document again.
///
/// The model reads one token a word, and twelve at once.
pub fn document(data: &[u8]) {
    let Some((how, text)) = data.split_first() else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    let splitting = [Splitting::Full, Splitting::WithoutLines, Splitting::Off][usize::from(how >> 1) % 3];
    let pattern = if how & 8 == 0 { "[0-9]+" } else { r"\{[^}]*\}|^a.*?b" };
    let glossary = [("dog".to_owned(), "Hund".to_owned())];
    let wording = Wording::new(&[pattern.to_owned()], glossary).expect("a pattern and a word");
    let form = Form { html: how & 1 == 1, splitting, ignored: vec!["x".to_owned()], wording };
    let rules = Rules::of(["en", "de", "ja", ""].get(usize::from(how >> 4) % 4).copied());
    let encode = |text: &str| text.split_whitespace().map(|word| word.len() as u32 + 1).chain([0]).collect();
    let reading = Reading::by(encode, 12);
    let plan = Plan::of(text, &form, rules, &reading);
    assert_eq!(plan.assemble(&[]), text);
    let sources: Vec<&str> = plan.segments().iter().map(|segment| segment.text.as_str()).collect();
    assert!(sources.iter().all(|source| source.contains(|c: char| !c.is_whitespace())), "{sources:?}");
    let reversed = |source: &&str| source.split_whitespace().rev().collect::<Vec<_>>().join(" ");
    let translations: Vec<String> = sources.iter().map(reversed).collect();
    let rendered = |translations: &[String]| {
        plan.assemble(&translations.iter().map(|text| Some(Rendered::text(text))).collect::<Vec<_>>())
    };
    let document = rendered(&translations);
    // Tags are what begins with a bracket; in a text it is written as a reference.
    let brackets = |text: &str| text.bytes().filter(|byte| *byte == b'<').count();
    let in_sources: usize = sources.iter().map(|source| brackets(source)).sum();
    if form.html {
        assert!(brackets(&document) + in_sources >= brackets(text), "{text:?} -> {document:?}");
        _ = Plan::of(&document, &form, rules, &reading);
    }
    _ = rendered(&vec![String::new(); sources.len()]);
}

/// The address of a service of the demo model, which lasts as long as the process.
static SERVICE: LazyLock<SocketAddr> = LazyLock::new(|| {
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let model = serve::Source { name: "en-de".to_owned(), dir: demo_model().to_owned() };
        let mut config = serve::Config::new(vec![model]);
        config.listen.set_port(0);
        config.log = false;
        // Little work, and all of it done.
        (config.limits.items, config.limits.item_characters, config.limits.characters) = (4, 40, 80);
        (config.limits.max_wait, config.limits.deadline) = (Duration::from_secs(600), Duration::from_secs(600));
        serve::run(config, |address| tell.send(address).expect("someone waits")).expect("it serves until the end");
    });
    told.recv().expect("the service starts")
});

/// A request's body: a byte that says where it goes and what it claims to be, and the rest.
///
/// Whatever it is, it has one answer, which is no failure of the service.
pub fn http(data: &[u8]) {
    let Some((how, body)) = data.split_first() else { return };
    let paths = ["/translate", "/v2/translate", "/v1/translate", "/v1/score", "/v1/explain", "/detect"];
    let path = paths[usize::from(*how) % paths.len()];
    let kind = if how & 0x80 == 0 { "application/json" } else { "application/x-www-form-urlencoded" };
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let mut stream = TcpStream::connect(*SERVICE).expect("the service lives");
    let mut answer = Vec::new();
    // A body that is refused need not be read to its end.
    let _ = stream.write_all(&[head.as_bytes(), body].concat());
    let read = stream.read_to_end(&mut answer);
    let status = answer.get(9..12).and_then(|status| std::str::from_utf8(status).ok()?.parse::<u16>().ok());
    assert!(
        status.is_some_and(|status| status < 500 || status == 503),
        "{read:?}: {}",
        String::from_utf8_lossy(&answer)
    );
}
