//! Whether what is wrong is found.

use super::*;
use crate::backend::Heads;
use crate::cuda::{Cuda, kernel_ops};
use crate::model::config::ModelConfig;

/// Kernels that `bench --kernels` does not measure: what measures the ceiling, and copies of a few words.
const NOT_MEASURED: [&str; 2] = ["checksum", "gather"];

#[test]
fn every_kernel_file_has_its_cases() {
    let known: Vec<&str> = OPS.iter().map(|op| op.name).collect();
    let missing: Vec<&&str> = kernel_ops().iter().filter(|op| !known.contains(*op)).collect();
    assert!(missing.is_empty(), "no cases in src/validate/kernels for {missing:?}");
}

#[test]
fn shards_share_the_cases_out() -> Result<()> {
    let context = cuda::open_dry();
    let cases = |shard: &str| -> Result<Vec<usize>> {
        let shard: Shard =
            shard.parse().map_err(|expected| Error::Option { option: "shard", expected, got: String::new() })?;
        let beat = Beat::default();
        let mut probe = Probe::new(&context, Grid::Full, "op", &beat).of(shard);
        let mut run = Vec::new();
        (0..10).try_for_each(|i| {
            probe.case("", Dtype::F32, i, |_| {
                run.push(i);
                Ok(())
            })
        })?;
        Ok(run)
    };
    assert_eq!(cases("1/3")?, [0, 3, 6, 9]);
    assert_eq!(cases("3/3")?, [2, 5, 8]);
    assert_eq!(cases("1/1")?.len(), 10);
    for wrong in ["0/3", "4/3", "1", "1/0", "a/b", "1/2/3", "1/18446744073709551616"] {
        assert!(wrong.parse::<Shard>().is_err(), "{wrong}");
    }
    Ok(())
}

#[test]
fn checks_that_are_to_end_skip_what_is_left() -> Result<()> {
    let (context, beat) = (cuda::open_dry(), Beat::until(|| true));
    let mut probe = Probe::new(&context, Grid::Full, "op", &beat);
    probe.case("", Dtype::F32, "a case", |_| panic!("it is run"))?;
    assert!(probe.finish(Ok(())).is_empty());
    Ok(())
}

/// Each kernel in turn loses the last block of every launch: a wrong grid, or a kernel that stops too early.
#[test]
#[cfg_attr(not(emulated), ignore = "needs a C++ compiler")]
fn a_kernel_that_loses_its_last_block_fails_and_is_named() -> Result<()> {
    for op in OPS {
        let context = open(Device::Emulated)?;
        context.lose_blocks_of(op.name);
        let mut found = Report::new(context.name().to_owned(), false, false);
        found.kernels = check_op_on(&context, Grid::Pairwise, Shard::default(), op, &Beat::default());
        assert_eq!(found.failed(), [op.name]);
        let told = found.kernels.iter().flat_map(|row| &row.failures).next();
        assert!(told.is_some_and(|what| !what.is_empty()), "{}: nothing is said about it", op.name);
    }
    Ok(())
}

#[test]
#[cfg_attr(not(emulated), ignore = "needs a C++ compiler")]
fn a_decode_with_a_broken_kernel_names_the_step_the_layer_and_the_operation() -> Result<()> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/m30k-en-de");
    // As many as slots, so that the last block is never an idle one's.
    let tokenizer = Tokenizer::open(&dir)?;
    let sources = ["Two dogs run.", "A man sleeps.", "A child sings."].map(|line| tokenizer.encode_source(line));
    let decode = Decode { dir: &dir, sources: &sources, requests: Requests::Plain, beat: &Beat::default() };
    let first = |op: &'static str| -> Result<String> {
        let context = open(Device::Emulated)?;
        context.lose_blocks_of(op);
        Ok(lockstep::check(Cuda::new(context, Dtype::F32), decode)?.failures.swap_remove(0))
    };
    let starts = |op, place: &str| first(op).map(|what| assert!(what.starts_with(place), "{op}: {what}"));
    starts("layer_norm", "encoding, encoder layer 1, layer_norm: ")?;
    // In the first step a sentence has one beam.
    starts("attention_self", "step 2, decoder layer 1, self_attention: ")?;
    starts("attention_cross", "step 2, decoder layer 1, cross_attention: ")?;
    starts("attention_store", "encoding, cross keys and values, store_cross: ")?;
    starts("start_slots", "encoding, start_slots: ")?;
    starts("beam_step", "step 1, beam_step: ")?;
    let sound = lockstep::check(Cuda::new(open(Device::Emulated)?, Dtype::F32), decode)?;
    assert!(sound.failures.is_empty() && sound.compared > 200, "{sound:?}");
    let context = open(Device::Emulated)?;
    let quantized = Cuda::new(context.clone(), Dtype::I8);
    context.lose_blocks_of("quantize");
    let found = lockstep::check(quantized, decode)?.failures;
    // Weights are quantised by the same kernel, the vocabulary projection's first: it is the table of embeddings, too.
    assert!(
        found.first().is_some_and(|what| what.starts_with("encoding, encoder layer 1, linear 256 to ")),
        "{found:?}"
    );
    let sound = lockstep::check(Cuda::new(open(Device::Emulated)?, Dtype::I8), decode)?;
    assert!(sound.failures.is_empty() && sound.compared > 200, "{sound:?}");
    Ok(())
}

/// The same for what may not be taken and what repeats itself, in sentences that ask for different things.
#[test]
#[cfg_attr(not(emulated), ignore = "needs a C++ compiler")]
fn a_mixed_decode_with_a_broken_kernel_names_the_step_and_the_operation() -> Result<()> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/m30k-en-de");
    let tokenizer = Tokenizer::open(&dir)?;
    let lines =
        ["Two dogs run.", "A man sleeps.", "A child sings.", "It rains.", "A red car.", "Snow falls.", "A boat."];
    let sources = lines.map(|line| tokenizer.encode_source(line));
    let decode = Decode { dir: &dir, sources: &sources, requests: Requests::Mixed, beat: &Beat::default() };
    let sound = lockstep::check(Cuda::new(open(Device::Emulated)?, Dtype::F32), decode)?;
    assert!(sound.failures.is_empty() && sound.compared > 1000, "{sound:?}");
    for (symbol, kind, operation) in [
        ("processors_u32", 0, "processors"),
        ("processors_repetition", 1, "repetition_penalty"),
        ("contrastive", 2, "contrastive"),
        ("contrastive", 3, "contrastive"),
        ("ensemble", 4, "ensemble"),
        ("sample", 5, "sample"),
    ] {
        let context = open(Device::Emulated)?;
        context.lose_blocks_of(symbol);
        // Alike, so that now and then the last block is that of a row which takes part.
        let decode = Decode { requests: Requests::Alike(kind), ..decode };
        let found = lockstep::check(Cuda::new(context, Dtype::F32), decode)?.failures;
        let is_named = |what: &String| what.starts_with("step ") && what.contains(&format!(", {operation}: "));
        assert!(found.first().is_some_and(is_named), "{symbol}, kind {kind}: {found:?}");
    }
    Ok(())
}

/// What it prints means nothing here; that every kernel can be launched as it is measured does.
#[test]
#[cfg_attr(not(emulated), ignore = "needs a C++ compiler")]
fn every_kernel_can_be_measured() -> Result<()> {
    let effort = speed::Effort {
        ceiling_bytes: 1 << 12,
        heads: Heads::new(2, 64),
        ffn: 192,
        rows: vec![5],
        logit_rows: vec![5],
        vocab_size: 103,
        launches: 1,
        repeats: 1,
    };
    let mut ops: Vec<&str> = Vec::new();
    let found = speed::measure(&open(Device::Emulated)?, &effort, |row| {
        ops.push(row.op);
        Ok(())
    })?;
    assert!(found.kernels.iter().all(|row| row.bytes > 0 && row.microseconds > 0.0), "{found:?}");
    ops.extend(NOT_MEASURED);
    let missing: Vec<&&str> = kernel_ops().iter().filter(|op| !ops.contains(*op)).collect();
    assert!(missing.is_empty(), "not measured: {missing:?}");
    Ok(())
}

/// Every operation of every family, on a device that keeps the residual path of pre-norm models in f32.
#[test]
#[cfg_attr(not(emulated), ignore = "needs a C++ compiler")]
fn models_of_every_family_decode_in_lockstep() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/families");
    for name in ["nllb-legacy", "mbart-en-ro", "fsmt", "flan-t5", "umt5", "t5-silu"] {
        let dir = root.join(name);
        let vocab_size = ModelConfig::open(&dir)?.vocab_size as u32;
        let eos_id = ModelConfig::open(&dir)?.ids.eos_id;
        let source =
            |i: u32| (0..4 + 3 * i).map(|t| 3 + (i * 31 + t * 17) % (vocab_size - 3)).chain([eos_id]).collect();
        let sources: Vec<Vec<u32>> = (0..4).map(source).collect();
        let decode = Decode { dir: &dir, sources: &sources, requests: Requests::Plain, beat: &Beat::default() };
        let sound = lockstep::check(Cuda::new(open(Device::Emulated)?, Dtype::F32), decode)?;
        assert!(sound.failures.is_empty() && sound.compared > 200, "{name}: {sound:?}");
        let sound = lockstep::check(Cuda::new(open(Device::Emulated)?, Dtype::F16), decode)?;
        assert!(sound.failures.is_empty() && sound.compared > 100, "{name}: {sound:?}");
        let sound = lockstep::check(Cuda::new(open(Device::Emulated)?, Dtype::I8), decode)?;
        assert!(sound.failures.is_empty() && sound.compared > 200, "{name}: {sound:?}");
    }
    Ok(())
}
