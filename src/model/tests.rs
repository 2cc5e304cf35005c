//! Models of every family against what transformers computes from them: searches' ids and scores, teacher-forced scores, and
//! probes of the encoder and of the first step. The data says where it comes from: tests/data/families/README.md.
//!
//! `BEAMFUSE_FAMILIES` names another directory of the same form, all of which is run.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::config::ModelConfig;
use super::{Seq2Seq, Transformer};
use crate::Result;
use crate::backend::{Backend, Device as _, Dtype, Row, Rows, SessionShape, SlotOptions, words};
use crate::check::{Tolerance, assert_close};
use crate::cpu::Cpu;
use crate::cuda::{Cuda, Tensor, open_emulated};
use crate::decode::session::{Admission, Receive};
use crate::decode::{DecodeOptions, Hypothesis, LengthPenalty, Limits, MaxLength, Request, SentenceIds, Session, Stop};

/// A model's directory and what is expected of it.
struct Golden {
    dir: PathBuf,
    items: Vec<Value>,
}

/// All models of the directory that the environment names, or of the project's own.
fn all() -> Vec<Golden> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/families");
    let root = std::env::var_os("BEAMFUSE_FAMILIES").map_or(own, PathBuf::from);
    let entries = std::fs::read_dir(&root).expect("a directory of families");
    let mut dirs: Vec<PathBuf> = entries.map(|entry| entry.expect("it can be listed").path()).collect();
    dirs.retain(|dir| dir.join("expected.jsonl").exists());
    dirs.sort();
    assert!(dirs.len() >= 6, "{} holds {} models", root.display(), dirs.len());
    dirs.into_iter().map(Golden::open).collect()
}

impl Golden {
    fn open(dir: PathBuf) -> Self {
        let text = std::fs::read_to_string(dir.join("expected.jsonl")).expect("what is expected");
        let items = text.lines().map(|line| serde_json::from_str(line).expect("a JSON object")).collect();
        Golden { dir, items }
    }

    fn name(&self) -> &str {
        self.dir.file_name().and_then(|name| name.to_str()).unwrap_or_default()
    }

    fn of_kind(&self, kind: &str) -> Vec<&Value> {
        self.items.iter().filter(|item| item["kind"] == kind).collect()
    }

    /// What is passed to `generate` or, where that is nothing, said by the directory.
    fn setting(&self, item: &Value, name: &str) -> Value {
        let passed = &item["settings"][name];
        if !passed.is_null() {
            return passed.clone();
        }
        let read = |file: &str| -> Option<Value> {
            let text = std::fs::read_to_string(self.dir.join(file)).ok()?;
            Some(serde_json::from_str(&text).expect("a JSON object"))
        };
        match read("generation_config.json") {
            Some(generation) => generation[name].clone(),
            None => read("config.json").map_or(Value::Null, |config| config[name].clone()),
        }
    }

    /// The search that a `generate` item asks for.
    fn request(&self, item: &Value, config: &ModelConfig) -> Request {
        let number = |name: &str, default: u64| self.setting(item, name).as_u64().unwrap_or(default) as usize;
        let beam_size = number("num_beams", 1);
        let options = DecodeOptions {
            beam_size,
            n_best: number("num_return_sequences", 1),
            length_penalty: LengthPenalty::Power,
            alpha: self.setting(item, "length_penalty").as_f64().unwrap_or(1.0) as f32,
            stop: match self.setting(item, "early_stopping").as_bool() {
                _ if beam_size == 1 => Some(Stop::First),
                Some(true) => Some(Stop::First),
                _ => Some(Stop::Heuristic),
            },
            // It counts what the decoder reads first, but for the default.
            max_length: MaxLength::Absolute(number("max_length", 21) - 1),
            min_length: number("min_length", 0),
            no_repeat_ngram: number("no_repeat_ngram_size", 0),
            forced_bos: self.setting(item, "forced_bos_token_id").as_u64().map(|id| id as u32),
            forced_free: true,
            cut: self.setting(item, "forced_eos_token_id").is_null(),
            ..DecodeOptions::default()
        };
        options.validate().expect("settings within bounds");
        let sentence = SentenceIds { start: Some(start(item, config)), ..ids(&item["input_ids"]).into() };
        Request::new(&options, sentence, Limits { table: config.longest(), amateur: 1 }).expect("a search")
    }
}

/// What the decoder reads first: as an item says, or its settings, or the model.
fn start(item: &Value, config: &ModelConfig) -> u32 {
    let said = [&item["decoder_start_token_id"], &item["settings"]["decoder_start_token_id"]];
    said.iter().find_map(|value| value.as_u64()).map_or(config.ids.decoder_start_id, |id| id as u32)
}

fn ids(value: &Value) -> Vec<u32> {
    let ids = value.as_array().expect("a list of ids").iter();
    ids.map(|id| id.as_u64().expect("an id") as u32).collect()
}

fn numbers(value: &Value) -> Vec<f32> {
    let numbers = value.as_array().expect("a list of numbers").iter();
    numbers.map(|number| number.as_f64().expect("a number") as f32).collect()
}

/// Hypotheses by ticket.
struct Found(Vec<Vec<Hypothesis>>);

impl Receive for Found {
    fn ended(&mut self, ticket: u64, result: Result<Vec<Hypothesis>>) {
        self.0[ticket as usize] = result.expect("a search that ends");
    }
}

/// Runs searches in a session of so many slots; the results in their order.
fn search<B: Backend>(
    backend: &B,
    model: &Transformer<B>,
    slots: usize,
    requests: &[Request],
) -> Result<Vec<Vec<Hypothesis>>> {
    let most = |of: fn(&Request) -> usize| requests.iter().map(of).max().unwrap_or(1);
    let beam_size = most(|request| request.options.beam_size as usize);
    let shape = SessionShape {
        slots,
        beam_size,
        max_len: most(|request| request.options.max_len as usize),
        max_src_len: most(|request| request.source.len()),
        rows: slots * beam_size,
        keep_attention: false,
    };
    let models = std::slice::from_ref(model);
    let mut session = Session::open(backend, models, shape)?;
    let mut waiting: VecDeque<usize> = (0..requests.len()).collect();
    let mut results = Found(vec![Vec::new(); requests.len()]);
    while !waiting.is_empty() || !session.is_empty() {
        let free: Vec<usize> = session.free_slots().collect();
        let mut admissions = Vec::new();
        for slot in free {
            let Some(next) = waiting.pop_front() else { break };
            admissions.push(Admission { slot, ticket: next as u64, request: &requests[next], watched: false });
        }
        if !admissions.is_empty() {
            backend.run(|| session.admit(backend, models, &admissions))?;
        }
        backend.run(|| session.step(backend, models))?;
        session.harvest(backend, &mut results)?;
    }
    let trimmed = results.0.into_iter().zip(requests).map(|(mut found, request)| {
        found.truncate(request.n_best);
        found
    });
    Ok(trimmed.collect())
}

/// The encoder's rows and the logits of a target's positions, `[1 + target, vocab_size]`.
fn forced<B: Backend>(
    backend: &B,
    model: &Transformer<B>,
    values: &impl Fn(&B::Tensor) -> Vec<f32>,
    (source, start, target): (&[u32], u32, &[u32]),
) -> Result<(Vec<f32>, Vec<f32>)> {
    let rows = target.len() + 1;
    let shape =
        SessionShape { slots: 1, beam_size: 1, max_len: rows, max_src_len: source.len(), rows, keep_attention: false };
    let mut state = model.open(backend, shape)?;
    model.encode(backend, &mut state, &[(0, source)])?;
    let mut encoded = values(&state.encoder.stream.x);
    encoded.truncate(source.len() * model.config().d_model);
    let options = SlotOptions { src_len: source.len() as u32, ..SlotOptions::default() };
    let mut device_options = backend.zeros::<u32>(words::<SlotOptions>())?;
    backend.write(&mut device_options, 0, bytemuck::cast_slice(&[options]))?;
    let ancestry = backend.zeros::<u32>(rows)?;
    let tokens = std::iter::once(&start).chain(target);
    let list: Vec<Row> =
        tokens.enumerate().map(|(t, &token)| Row { position: t as u32, token, ..Row::default() }).collect();
    let mut device_rows = Rows::with_capacity(backend, rows)?;
    device_rows.set(backend, &list)?;
    model.step(backend, &mut state, &device_rows, &ancestry, &device_options)?;
    let vocab_size = model.vocab_size();
    let stride = backend.logits_stride(vocab_size);
    let mut apart = vec![0.0; rows * stride];
    backend.read(model.logits(&state), 0, &mut apart)?;
    Ok((encoded, apart.chunks(stride).flat_map(|row| &row[..vocab_size]).copied().collect()))
}

/// The log-probability of each of a target's tokens under the logits of its positions.
fn log_probs_of(target: &[u32], vocab_size: usize, logits: Vec<f32>) -> Vec<f32> {
    let log_prob = |(row, token): (&[f32], &u32)| {
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = row.iter().map(|z| f64::from(z - max).exp()).sum();
        (f64::from(row[*token as usize] - max) - sum.ln()) as f32
    };
    logits.chunks(vocab_size).zip(target).map(log_prob).collect()
}

/// Holds a model to all that is expected of it; returns how much that was.
fn check<B: Backend>(golden: &Golden, backend: &B, values: &impl Fn(&B::Tensor) -> Vec<f32>) -> Result<usize> {
    let model = Transformer::open(backend, &golden.dir)?;
    let config = model.config();
    let name = golden.name();
    // FSMT's with the cache of transformers 4.57 are those of another model; the test data's README says why.
    let is_sound = |item: &&Value| config.model_type != "fsmt" || item["settings"]["use_cache"] == false;
    let generate: Vec<&Value> = golden.of_kind("generate").into_iter().filter(is_sound).collect();
    let requests: Vec<Request> = generate.iter().map(|item| golden.request(item, config)).collect();
    for ((item, found), request) in generate.iter().zip(search(backend, &model, 3, &requests)?).zip(&requests) {
        let what = format!("{name}, {} of {}", item["name"], item["source"]);
        let expected = item["hypotheses"].as_array().expect("hypotheses");
        assert_eq!(found.len(), expected.len(), "{what}");
        for (found, expected) in found.iter().zip(expected) {
            assert_eq!(found.token_ids, ids(&expected["token_ids"]), "{what}");
            if let Some(score) = expected["score"].as_f64().filter(|_| request.options.beam_size > 1) {
                assert!((f64::from(found.score) - score).abs() <= 1e-3, "{what}: {} for {score}", found.score);
            }
        }
    }
    for item in golden.of_kind("score") {
        let (source, target) = (ids(&item["input_ids"]), ids(&item["token_ids"]));
        let (_, logits) = forced(backend, &model, values, (&source, start(item, config), &target))?;
        let found = log_probs_of(&target, model.vocab_size(), logits);
        assert_close(&found, &numbers(&item["token_log_probs"]), Tolerance::new(5e-4, 1e-4));
    }
    for item in golden.of_kind("probe") {
        let source = ids(&item["input_ids"]);
        let (encoded, logits) = forced(backend, &model, values, (&source, start(item, config), &[]))?;
        let rows = [&encoded[..4], &encoded[encoded.len() - config.d_model..][..4]];
        for (found, expected) in rows.into_iter().zip(["encoder_first", "encoder_last"]) {
            assert_close(found, &numbers(&item[expected]), Tolerance::new(1e-4, 1e-4));
        }
        let largest = item["first_logits"].as_array().expect("pairs").iter();
        let (at, expected): (Vec<usize>, Vec<f32>) = largest
            .map(|pair| (pair[0].as_u64().expect("an id") as usize, pair[1].as_f64().expect("a number") as f32))
            .unzip();
        let found: Vec<f32> = at.iter().map(|id| logits[*id]).collect();
        assert_close(&found, &expected, Tolerance::new(5e-4, 1e-4));
    }
    Ok(golden.items.iter().filter(|item| item["kind"] != "tokens" && item["kind"] != "target").count())
}

#[test]
fn every_family_computes_what_transformers_does() {
    let backend = Cpu::new(1, Dtype::F32).expect("a thread");
    for golden in all() {
        let items = check(&golden, &backend, &Vec::clone).expect("a model that is read");
        assert!(items >= 5, "{}: {items} items", golden.name());
    }
}

#[test]
#[cfg_attr(not(emulated), ignore = "needs a C++ compiler")]
fn every_family_computes_it_on_a_device_too() {
    let context = open_emulated().expect("an emulator");
    let backend = Cuda::new(context.clone(), Dtype::F32);
    for golden in all() {
        let values = |tensor: &Tensor| tensor.download(&context, 0..tensor.len()).expect("a copy");
        check(&golden, &backend, &values).expect("a model that is read");
    }
}

#[test]
fn a_sentence_gets_the_same_bits_in_any_batch_and_on_any_number_of_threads() {
    for golden in all() {
        for dtype in [Dtype::F32, Dtype::I8] {
            let run = |threads: usize, slots: usize| {
                let backend = Cpu::new(threads, dtype).expect("threads");
                let model = Transformer::open(&backend, &golden.dir).expect("a model that is read");
                let generate = golden.of_kind("generate");
                let requests: Vec<Request> = generate.iter().map(|item| golden.request(item, model.config())).collect();
                search(&backend, &model, slots, &requests).expect("searches")
            };
            let (alone, together) = (run(1, 1), run(3, 5));
            assert_eq!(alone, together, "{} in {dtype:?}", golden.name());
        }
    }
}

/// Searches of all models in a narrower type beside those in f32.
#[derive(Default)]
struct Agreement {
    searches: usize,
    /// Whose best hypothesis is another.
    others: usize,
    /// By how much f32 scores the other hypothesis lower than its own, per token.
    worse: Vec<f32>,
    /// How far the log-probabilities of given targets' tokens are from f32's.
    apart: Vec<f32>,
}

impl Agreement {
    /// Adds a model's.
    fn add<B: Backend>(&mut self, golden: &Golden, backend: &B, values: &impl Fn(&B::Tensor) -> Vec<f32>) {
        let exact_backend = Cpu::new(1, Dtype::F32).expect("a thread");
        let exact = Transformer::open(&exact_backend, &golden.dir).expect("a model that is read");
        let model = Transformer::open(backend, &golden.dir).expect("a model that is read");
        let config = model.config();
        let exact_log_probs = |source: &[u32], start: u32, target: &[u32]| {
            let given = (source, start, target);
            log_probs_of(
                target,
                exact.vocab_size(),
                forced(&exact_backend, &exact, &Vec::clone, given).expect("logits").1,
            )
        };
        let generate = golden.of_kind("generate");
        let requests: Vec<Request> = generate.iter().map(|item| golden.request(item, config)).collect();
        let own = search(&exact_backend, &exact, 3, &requests).expect("searches");
        let found = search(backend, &model, 3, &requests).expect("searches");
        for (((item, request), own), found) in generate.iter().zip(&requests).zip(&own).zip(&found) {
            self.searches += 1;
            let (own, found) = (&own[0].token_ids, &found[0].token_ids);
            if own != found {
                self.others += 1;
                let mean = |ids: &[u32]| {
                    let log_probs = exact_log_probs(&request.source, start(item, config), ids);
                    log_probs.iter().sum::<f32>() / log_probs.len() as f32
                };
                self.worse.push(mean(own) - mean(found));
            }
        }
        for item in golden.of_kind("score") {
            let (source, start, target) = (ids(&item["input_ids"]), start(item, config), ids(&item["token_ids"]));
            let (_, logits) = forced(backend, &model, values, (&source, start, &target)).expect("logits");
            let found = log_probs_of(&target, model.vocab_size(), logits);
            let exact = exact_log_probs(&source, start, &target);
            self.apart.extend(found.iter().zip(&exact).map(|(found, exact)| (found - exact).abs()));
        }
    }
}

/// The middle one.
fn median(values: &mut [f32]) -> f32 {
    values.sort_unstable_by(f32::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

impl Agreement {
    /// Checks that no more than a part of the searches find another hypothesis, which f32 ranks no lower by more than 0.05 a token in
    /// the median, and how far given targets' tokens may be apart in the median.
    fn check(mut self, others: f64, apart: f32) {
        assert!(self.searches >= 60 && self.apart.len() >= 400, "{} searches", self.searches);
        assert!(self.others as f64 <= others * self.searches as f64, "{} of {}", self.others, self.searches);
        let (worse, by) = (median(&mut self.worse), median(&mut self.apart));
        assert!(worse <= 0.05 && by <= apart, "other hypotheses are {worse} worse, tokens {by} apart");
    }
}

/// The weights of these models are large, so that every mistake shows: what rounding does to them is many times what it does to a trained
/// model, and the bounds are what it does, not what it may do.
#[test]
fn i8_and_bf16_stay_near_f32_in_every_family() {
    for (dtype, others, apart) in [(Dtype::I8, 0.65, 0.08), (Dtype::Bf16, 0.35, 0.03)] {
        let mut agreement = Agreement::default();
        let backend = Cpu::new(1, dtype).expect("a thread");
        all().iter().for_each(|golden| agreement.add(golden, &backend, &Vec::clone));
        agreement.check(others, apart);
    }
}

#[test]
#[cfg_attr(not(emulated), ignore = "needs a C++ compiler")]
fn f16_stays_near_f32_in_every_family() {
    let context = open_emulated().expect("an emulator");
    let backend = Cuda::new(context.clone(), Dtype::F16);
    let values = |tensor: &Tensor| tensor.download(&context, 0..tensor.len()).expect("a copy");
    let mut agreement = Agreement::default();
    all().iter().for_each(|golden| agreement.add(golden, &backend, &values));
    agreement.check(0.15, 0.005);
}

/// A pre-norm layer takes no more launches than a post-norm one: the product that closes a sublayer goes on with the next one's norm.
#[test]
#[cfg_attr(not(emulated), ignore = "needs a C++ compiler")]
fn a_layer_of_any_family_takes_eight_launches_and_one_for_a_gate() {
    let context = open_emulated().expect("an emulator");
    let backend = Cuda::new(context.clone(), Dtype::F16);
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/families");
    // What comes once: the embedding, the norm behind it, the norm before the first layer, the logits.
    for (name, once) in
        [("nllb-legacy", 3), ("mbart-en-ro", 4), ("plbart", 3), ("fsmt", 2), ("flan-t5", 3), ("t5-silu", 3)]
    {
        let model = Transformer::open(&backend, &own.join(name)).expect("a model that is read");
        let shape = SessionShape { slots: 1, beam_size: 1, max_len: 2, max_src_len: 2, rows: 1, keep_attention: false };
        let mut state = model.open(&backend, shape).expect("it fits");
        model.encode(&backend, &mut state, &[(0, &[3, model.config().ids.eos_id])]).expect("a source");
        let options = backend.zeros::<u32>(words::<SlotOptions>()).expect("it fits");
        let ancestry = backend.zeros::<u32>(2).expect("it fits");
        let mut rows = Rows { one_per_beam: true, ..Rows::with_capacity(&backend, 1).expect("it fits") };
        rows.set(&backend, &[Row::default()]).expect("a row");
        let before = context.counters().nodes();
        model.step(&backend, &mut state, &rows, &ancestry, &options).expect("a step");
        let launches = context.counters().nodes() - before;
        let of_a_layer = if model.config().gated { 9 } else { 8 };
        assert_eq!(launches, of_a_layer * model.config().decoder.layers as u64 + once, "{name}");
    }
}

/// A table of another shape, positions that are not there, a projection that is missing: the tensor is named.
#[test]
fn tensors_that_do_not_fit_are_named() {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/families");
    let backend = Cpu::new(1, Dtype::F32).expect("a thread");
    let refused = |name: &str, change: &dyn Fn(&mut ModelConfig)| {
        let dir = own.join(name);
        let mut config = ModelConfig::open(&dir).expect("a configuration");
        change(&mut config);
        let weights = super::weights::Weights::open(&dir).expect("weights");
        Transformer::new(&backend, &config, &weights).expect_err("it does not fit").to_string()
    };
    let buckets = refused("umt5", &|config| {
        config.relative = config.relative.map(|relative| super::config::RelativeConfig { buckets: 16, ..relative });
    });
    assert!(buckets.contains("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"), "{buckets}");
    assert!(buckets.contains("expected shape [16, 4], got [32, 4]"), "{buckets}");
    let positions = refused("plbart", &|config| config.max_len = Some(40));
    assert!(positions.contains("model.encoder.embed_positions.weight: expected shape [42, 32]"), "{positions}");
    // Not tied: then nothing else takes the projection's place.
    let output = refused("t5-silu", &|config| config.tie_word_embeddings = false);
    assert!(output.contains("lm_head.weight") && output.contains("no such tensor"), "{output}");
    let layers = refused("flan-t5", &|config| config.decoder.layers = 3);
    assert!(layers.contains("decoder.block.2.layer."), "{layers}");
}

/// Copies a model, with its configuration changed.
fn changed(name: &str, change: impl Fn(&mut serde_json::Map<String, Value>)) -> tempfile::TempDir {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/families").join(name);
    let copy = tempfile::tempdir().expect("a directory");
    for entry in std::fs::read_dir(&own).expect("a model") {
        let entry = entry.expect("it can be listed");
        std::fs::copy(entry.path(), copy.path().join(entry.file_name())).expect("a copy");
    }
    let path = copy.path().join("config.json");
    let mut config = crate::read::json(&path).expect("a configuration");
    change(&mut config);
    std::fs::write(&path, Value::Object(config).to_string()).expect("it is written");
    copy
}

#[test]
fn keys_that_are_absent_have_the_familys_defaults() {
    let absent = |name: &str, keys: &[&str]| {
        let dir = changed(name, |config| keys.iter().for_each(|key| drop(config.remove(*key))));
        ModelConfig::open(dir.path()).expect("defaults")
    };
    let fsmt = absent("fsmt", &["src_vocab_size", "scale_embedding", "activation_function", "d_model"]);
    assert_eq!((fsmt.vocab_size, fsmt.embedding_scale, fsmt.d_model), (42024, 32.0, 1024));
    let plbart = absent("plbart", &["scale_embedding", "encoder_layers", "d_model", "encoder_ffn_dim", "vocab_size"]);
    let sizes = (plbart.encoder.layers, plbart.d_model, plbart.encoder.ffn_dim, plbart.vocab_size);
    assert_eq!((sizes, plbart.ids.decoder_start_id), ((6, 768, 3072, 50005), 0));
    let t5 = absent(
        "t5-silu",
        &["num_decoder_layers", "d_kv", "d_ff", "num_heads", "feed_forward_proj", "layer_norm_epsilon"],
    );
    assert_eq!((t5.encoder.heads.head_dim, t5.encoder.ffn_dim, t5.encoder.heads.num_heads), (64, 2048, 8));
    assert_eq!((t5.gated, t5.norm.eps, t5.decoder.layers), (false, 1e-6, t5.encoder.layers));
    let umt5 =
        absent("umt5", &["tie_word_embeddings", "d_ff", "num_layers", "num_decoder_layers", "feed_forward_proj"]);
    assert!(umt5.tie_word_embeddings && umt5.gated && umt5.output_scale < 1.0);
    assert_eq!((umt5.encoder.layers, umt5.encoder.ffn_dim, umt5.encoder.heads.num_heads), (8, 1024, 4));
}

#[test]
fn what_is_no_model_of_these_families_is_refused_by_name() {
    let refused = |name: &str, key: &str, value: Value| {
        let dir = changed(name, |config| drop(config.insert(key.to_owned(), value.clone())));
        ModelConfig::open(dir.path()).expect_err("it is refused").to_string()
    };
    let whisper = refused("umt5", "model_type", "whisper".into());
    assert!(whisper.contains("expected one of marian, m2m_100, bart") && whisper.contains("whisper"), "{whisper}");
    let quantized = refused("umt5", "quantization_config", serde_json::json!({"bits": 4}));
    assert!(quantized.contains("quantization_config"), "{quantized}");
    let near = refused("umt5", "relative_attention_max_distance", 16.into());
    assert!(near.contains("relative_attention_max_distance") && near.contains("16"), "{near}");
    let projection = refused("t5-silu", "feed_forward_proj", "gated-maxout".into());
    assert!(projection.contains("feed_forward_proj") && projection.contains("gated-maxout"), "{projection}");
    let adapter = tempfile::tempdir().expect("a directory");
    std::fs::write(adapter.path().join("adapter_config.json"), "{}").expect("it is written");
    let adapter = ModelConfig::open(adapter.path()).expect_err("an adapter").to_string();
    assert!(adapter.contains("adapter_config.json") && adapter.contains("PEFT"), "{adapter}");
}

/// Newer files say that embeddings are tied whether they are or not, and the truth elsewhere.
#[test]
fn what_transformers_5_writes_is_read_as_it_is_meant() {
    let backend = Cpu::new(1, Dtype::F32).expect("a thread");
    for (name, scales) in [("flan-t5", false), ("t5-silu", true)] {
        let dir = changed(name, |config| {
            config.insert("tie_word_embeddings".into(), true.into());
            config.insert("scale_decoder_outputs".into(), scales.into());
        });
        check(&Golden::open(dir.path().to_owned()), &backend, &Vec::clone).expect("a model that is read");
    }
}
