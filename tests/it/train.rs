//! Training through the library: what a run writes, and that it continues bit for bit.

use std::cell::Cell;
use std::path::{Path, PathBuf};

use crate::common::tiny::Tiny;
use beamfuse::backend::Pick;
use beamfuse::train::autograd::Rates;
use beamfuse::train::objectives::scheduled_sampling;
use beamfuse::train::optimizer::AdamOptions;
use beamfuse::train::schedule::{Decay, GoldSchedule, Shape};
use beamfuse::train::trainer::state_file;
use beamfuse::train::{
    Corpus, Ending, Keep, Metric, ObjectiveOptions, Observer, Places, Report, TrainOptions, Trainer,
};
use beamfuse::{DecodeOptions, SentenceDefaults, Translator};

/// Watches, and interrupts before the update that follows `stop_after`.
struct Watch {
    stop_after: u32,
    done: Cell<u32>,
    losses: Vec<f64>,
    notes: Vec<String>,
}

impl Watch {
    fn until(stop_after: u32) -> Self {
        Watch { stop_after, done: Cell::new(0), losses: Vec::new(), notes: Vec::new() }
    }
}

impl Observer for Watch {
    fn interrupted(&self) -> bool {
        self.done.get() >= self.stop_after
    }

    fn updated(&mut self, report: &Report) {
        self.done.set(report.update);
        self.losses.push(report.loss);
    }

    fn note(&mut self, line: &str) {
        self.notes.push(line.to_owned());
    }
}

const LINES: [(&str, &str); 6] = [
    ("A dog runs.", "Ein Hund läuft."),
    ("Two cats sleep.", "Zwei Katzen schlafen."),
    ("A man rides.", "Ein Mann fährt."),
    ("A woman sings.", "Eine Frau singt."),
    ("The child plays.", "Das Kind spielt."),
    ("A bird flies.", "Ein Vogel fliegt."),
];

struct Fixture {
    model: Tiny,
    dir: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let text: String = LINES.iter().map(|(s, t)| format!("{s}\t{t}\n")).collect();
        std::fs::write(dir.path().join("train.tsv"), text).expect("written");
        Fixture { model: Tiny::new(), dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn places(&self, output: &str, resume: bool) -> Places {
        let data = Corpus::Tsv(self.path("train.tsv"));
        Places {
            model: self.model.dir().to_path_buf(),
            output: self.path(output),
            validation: Some(data.clone()),
            data,
            defaults: SentenceDefaults::default(),
            skip_bad: false,
            resume,
        }
    }
}

fn options(objective: ObjectiveOptions) -> TrainOptions {
    TrainOptions {
        objective,
        updates: 12,
        batch_tokens: 16,
        accumulate: 2,
        learning_rate: 0.01,
        warmup: 2,
        decay: Decay::InverseSqrt,
        adam: AdamOptions { weight_decay: 0.01, ..AdamOptions::default() },
        dropout: Rates { sublayers: 0.1, attention: 0.05, activation: 0.1 },
        label_smoothing: 0.1,
        seed: 3,
        validate_every: 5,
        patience: 0,
        metric: Metric::Chrf,
        validation_beam: 1,
        keep: Keep::Last,
        checkpoint_every: 4,
        from_scratch: None,
    }
}

fn own_inputs() -> ObjectiveOptions {
    let schedule = GoldSchedule::new(Shape::Linear, 1, 6, 0.3).expect("a schedule");
    let pick = Pick::Sample { temperature: 1.0 };
    ObjectiveOptions::ScheduledSampling(scheduled_sampling::Options { schedule, raise: 0.25, pick, passes: 2 })
}

fn weights(dir: &Path) -> Vec<u8> {
    std::fs::read(dir.join("model.safetensors")).expect("weights")
}

fn log(dir: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(dir.join("training/log.jsonl")).expect("a log");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[test]
fn an_interrupted_run_continues_bit_for_bit() {
    let fixture = Fixture::new();
    for objective in [ObjectiveOptions::Mle, own_inputs()] {
        let name = objective.name();
        let (whole, parts) = (format!("{name}-whole"), format!("{name}-parts"));
        let options = options(objective);
        let mut watch = Watch::until(u32::MAX);
        let mut trainer = Trainer::open(fixture.places(&whole, false), options.clone()).expect("a run");
        assert_eq!(trainer.run(&mut watch).expect("trained"), Ending::Complete);
        let mut losses = Vec::new();
        // Between checkpoints, at one, and in another epoch than it began.
        for (stop, resume) in [(3, false), (8, true), (11, true), (u32::MAX, true)] {
            let mut watch = Watch::until(stop);
            let mut trainer = Trainer::open(fixture.places(&parts, resume), options.clone()).expect("a run");
            let ending = trainer.run(&mut watch).expect("trained");
            assert_eq!(ending, if stop == u32::MAX { Ending::Complete } else { Ending::Interrupted });
            losses.extend(watch.losses);
        }
        assert_eq!(losses, watch.losses, "{name}");
        assert!(weights(&fixture.path(&parts)) == weights(&fixture.path(&whole)), "{name}");
        let state = |output: &str| std::fs::read(state_file(&fixture.path(output))).expect("a state");
        assert!(state(&parts) == state(&whole), "{name}");
        let updates = |output: &str| log(&fixture.path(output)).iter().map(|l| l["update"].clone()).collect::<Vec<_>>();
        assert_eq!(updates(&parts), updates(&whole), "{name}");
    }
}

#[test]
fn a_crash_costs_what_came_after_the_last_checkpoint_only() {
    let fixture = Fixture::new();
    let options = options(ObjectiveOptions::Mle);
    Trainer::open(fixture.places("whole", false), options.clone())
        .and_then(|mut trainer| trainer.run(&mut Watch::until(u32::MAX)))
        .expect("trained");
    // Update 8 was saved; 9 and 10 were logged, and the write of a further state was under way.
    let mut trainer = Trainer::open(fixture.places("crashed", false), options.clone()).expect("a run");
    trainer.run(&mut Watch::until(8)).expect("trained");
    let saved = std::fs::read(state_file(&fixture.path("crashed"))).expect("a state");
    // A run holds its directory's lock.
    drop(trainer);
    let mut trainer = Trainer::open(fixture.places("crashed", true), options.clone()).expect("a run");
    trainer.run(&mut Watch::until(10)).expect("trained");
    drop(trainer);
    std::fs::write(state_file(&fixture.path("crashed")), &saved).expect("written");
    std::fs::write(state_file(&fixture.path("crashed")).with_extension("partial"), b"half a state").expect("written");
    let mut trainer = Trainer::open(fixture.places("crashed", true), options).expect("a run");
    assert_eq!(trainer.updates_done(), 8);
    trainer.run(&mut Watch::until(u32::MAX)).expect("trained");
    assert!(weights(&fixture.path("crashed")) == weights(&fixture.path("whole")));
    assert_eq!(log(&fixture.path("crashed")).len(), log(&fixture.path("whole")).len());
}

#[test]
fn training_lowers_the_loss_and_the_written_model_translates() {
    let fixture = Fixture::new();
    let mut options = options(ObjectiveOptions::Mle);
    (options.updates, options.dropout, options.keep) = (150, Rates::default(), Keep::Best);
    options.learning_rate = 0.04;
    let mut watch = Watch::until(u32::MAX);
    let mut trainer = Trainer::open(fixture.places("out", false), options).expect("a run");
    trainer.run(&mut watch).expect("trained");
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    assert!(mean(&watch.losses[140..]) < 0.5 * mean(&watch.losses[..5]), "{:?}", watch.losses);
    // The best model of the run, whatever came after it.
    let (score, _) = trainer.best().expect("validated");
    let translator = Translator::open(fixture.path("out")).expect("the written model");
    let greedy = DecodeOptions::default().with(|o| o.beam_size = 1);
    let sources: Vec<&str> = LINES.iter().map(|(source, _)| *source).collect();
    let texts: Vec<String> =
        translator.translate(&sources, &greedy).expect("translations").iter().map(|t| t.text().to_owned()).collect();
    let references: Vec<&str> = LINES.iter().map(|(_, target)| *target).collect();
    let counts = beamfuse::metrics::chrf_counts(&texts, &beamfuse::metrics::one_each(&references)).expect("counts");
    assert_eq!(beamfuse::metrics::corpus_score(&counts), score);
    for name in ["loss.svg", "validation.svg"] {
        let svg = std::fs::read_to_string(fixture.path("out").join("training").join(name)).expect("a chart");
        assert!(svg.starts_with("<svg") && svg.contains("<style>") && !svg.contains("no data"), "{svg}");
    }
    assert!(watch.notes.len() > 2 && watch.notes[0].starts_with("update 0: validation BLEU"), "{:?}", watch.notes);
}

#[test]
fn a_written_model_has_every_file_and_says_its_type() {
    let fixture = Fixture::new();
    let mut options = options(ObjectiveOptions::Mle);
    options.updates = 1;
    let mut trainer = Trainer::open(fixture.places("out", false), options).expect("a run");
    trainer.run(&mut Watch::until(u32::MAX)).expect("trained");
    for name in
        ["config.json", "generation_config.json", "source.spm", "target.spm", "vocab.json", "tokenizer_config.json"]
    {
        assert!(fixture.path("out").join(name).exists(), "{name}");
    }
    let bytes = weights(&fixture.path("out"));
    let header = safetensors::SafeTensors::read_metadata(&bytes).expect("a header").1;
    assert_eq!(header.metadata().as_ref().and_then(|m| m.get("format")).map(String::as_str), Some("pt"));
    let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("tensors");
    let mut names: Vec<&str> = tensors.names().into_iter().collect();
    names.sort_unstable();
    let expected: Vec<&str> = fixture.model.tensors.keys().map(String::as_str).collect();
    assert_eq!(names, expected);
    // One update has changed every tensor but the output's bias and the keys' biases, whose gradient is zero but for rounding.
    for (name, before) in &fixture.model.tensors {
        let changed = tensors.tensor(name).expect("a tensor").data() != before.bytes;
        assert!(changed || name == "final_logits_bias" || name.ends_with("k_proj.bias"), "{name}");
        assert!(!(changed && name == "final_logits_bias"));
    }
    // The padding row, from which the decoder starts, stays.
    let row = crate::common::tiny::D_MODEL * 4;
    let pad = (crate::common::tiny::VOCAB - 1) * row..crate::common::tiny::VOCAB * row;
    let table = tensors.tensor("model.shared.weight").expect("a table").data();
    assert_eq!(table[pad.clone()], fixture.model.tensors["model.shared.weight"].bytes[pad]);
}

#[test]
fn what_does_not_continue_a_run_is_refused() {
    let fixture = Fixture::new();
    let open =
        |output: &str, resume: bool, options: TrainOptions| Trainer::open(fixture.places(output, resume), options);
    let base = || options(ObjectiveOptions::Mle);
    let message = |result: beamfuse::Result<Trainer>| result.map(drop).unwrap_err().to_string();
    assert!(message(open("none", true, base())).contains("state.safetensors"), "there is no run to continue");
    open("out", false, base()).and_then(|mut t| t.run(&mut Watch::until(2))).expect("trained");
    assert!(message(open("out", false, base())).starts_with("option output: expected another directory, or --resume"));
    let other = TrainOptions { seed: 4, ..base() };
    assert_eq!(
        message(open("out", true, other)),
        "resume training: expected seed 3, as the run was started with, got 4"
    );
    std::fs::write(fixture.path("train.tsv"), "A dog.\tEin Hund.\n").expect("written");
    assert!(message(open("out", true, base())).starts_with("resume training: expected training data 6 pairs"));
    let state = state_file(&fixture.path("out"));
    let bytes = std::fs::read(&state).expect("a state");
    std::fs::write(&state, &bytes[..bytes.len() - 1]).expect("written");
    assert!(message(open("out", true, base())).contains("not a valid safetensors file"));
    std::fs::copy(fixture.model.path("model.safetensors"), &state).expect("copied");
    assert!(message(open("out", true, base())).contains("expected the state of a training run"));
}

#[test]
fn another_models_state_is_refused() {
    let fixture = Fixture::new();
    let open = |fixture: &Fixture, resume| Trainer::open(fixture.places("out", resume), options(ObjectiveOptions::Mle));
    open(&fixture, false).and_then(|mut t| t.run(&mut Watch::until(2))).expect("trained");
    let mut other = Fixture { model: Tiny::new(), dir: fixture.dir };
    let shared = other.model.tensors.get_mut("model.shared.weight").expect("a table");
    shared.bytes[0] ^= 1;
    other.model.write_weights();
    let message = open(&other, true).map(drop).unwrap_err().to_string();
    assert!(message.starts_with("resume training: expected model weights of hash"), "{message}");
}

#[test]
fn a_run_from_scratch_owes_nothing_to_the_weights_it_finds() {
    let mut fixture = Fixture::new();
    let mut options = options(ObjectiveOptions::Mle);
    (options.updates, options.from_scratch) = (1, Some(0.02));
    // The output's bias is not trained and stays the model's.
    fixture.model.tensors.get_mut("final_logits_bias").expect("a bias").bytes.fill(0);
    fixture.model.write_weights();
    let train = |fixture: &Fixture, output: &str| {
        let run = Trainer::open(fixture.places(output, false), options.clone());
        run.and_then(|mut trainer| trainer.run(&mut Watch::until(u32::MAX))).expect("trained");
        weights(&fixture.path(output))
    };
    let first = train(&fixture, "first");
    fixture.model.tensors.values_mut().for_each(|tensor| tensor.bytes.fill(0));
    fixture.model.write_weights();
    assert!(train(&fixture, "second") == first);
    let tensors = safetensors::SafeTensors::deserialize(&first).expect("tensors");
    let values = |name: &str| -> Vec<f32> {
        let data = tensors.tensor(name).expect("a tensor").data();
        data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    };
    let up = values("model.encoder.layers.0.fc1.weight");
    let deviation = (up.iter().map(|x| x * x).sum::<f32>() / up.len() as f32).sqrt();
    assert!((0.01..0.04).contains(&deviation), "{deviation}");
    let gains = values("model.encoder.layers.0.final_layer_norm.weight");
    assert!(gains.iter().all(|g| (g - 1.0).abs() < 0.02), "{gains:?}");
}

#[test]
fn patience_ends_a_run() {
    let fixture = Fixture::new();
    let mut options = options(ObjectiveOptions::Mle);
    // At this rate nothing gets better.
    (options.learning_rate, options.validate_every, options.patience, options.keep) = (1e-12, 1, 3, Keep::Best);
    let mut watch = Watch::until(u32::MAX);
    let mut trainer = Trainer::open(fixture.places("out", false), options).expect("a run");
    assert_eq!(trainer.run(&mut watch).expect("trained"), Ending::Stopped);
    assert_eq!((trainer.updates_done(), trainer.best().map(|(_, update)| update)), (3, Some(0)));
}

#[test]
fn options_out_of_range_are_refused_before_anything_is_read() {
    let base = || options(ObjectiveOptions::Mle);
    let places = Places {
        model: "missing".into(),
        output: "missing".into(),
        data: Corpus::Tsv("missing".into()),
        validation: None,
        defaults: SentenceDefaults::default(),
        skip_bad: false,
        resume: false,
    };
    for (options, name) in [
        (TrainOptions { updates: 0, ..base() }, "updates"),
        (TrainOptions { batch_tokens: 0, ..base() }, "batch-tokens"),
        (TrainOptions { accumulate: 0, ..base() }, "accumulate"),
        (TrainOptions { learning_rate: 0.0, ..base() }, "learning-rate"),
        (TrainOptions { learning_rate: f64::NAN, ..base() }, "learning-rate"),
        (TrainOptions { dropout: Rates::of_sublayers(1.0), ..base() }, "dropout"),
        (TrainOptions { dropout: Rates { attention: -0.1, ..Rates::default() }, ..base() }, "attention-dropout"),
        (TrainOptions { dropout: Rates { activation: f32::NAN, ..Rates::default() }, ..base() }, "activation-dropout"),
        (TrainOptions { label_smoothing: -0.1, ..base() }, "label-smoothing"),
        (TrainOptions { validation_beam: 65, ..base() }, "validation-beam"),
        (TrainOptions { adam: AdamOptions { beta2: 1.0, ..AdamOptions::default() }, ..base() }, "beta2"),
        (TrainOptions { adam: AdamOptions { clip: 0.0, ..AdamOptions::default() }, ..base() }, "clip"),
        (TrainOptions { from_scratch: Some(0.0), ..base() }, "from-scratch"),
        (TrainOptions { patience: 1, keep: Keep::Best, ..base() }, "patience"),
    ] {
        let message = Trainer::open(places.clone(), options).map(drop).unwrap_err().to_string();
        assert!(message.starts_with(&format!("option {name}: ")), "{name}: {message}");
    }
}

/// Runs the command; its exit code and what it said.
fn command(fixture: &Fixture, more: &[&str]) -> (Option<i32>, String) {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_beamfuse"))
        .arg("train")
        .args([
            "--model".as_ref(),
            fixture.model.dir().as_os_str(),
            "--output".as_ref(),
            fixture.path("out").as_os_str(),
        ])
        .args(more)
        .current_dir(fixture.dir.path())
        .output()
        .expect("the binary starts");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn the_command_refuses_before_it_writes() {
    let fixture = Fixture::new();
    std::fs::write(fixture.path("a.en"), "A dog.\nA cat.\n").expect("written");
    std::fs::write(fixture.path("a.de"), "Ein Hund.\n").expect("written");
    let data = ["--data", "train.tsv"];
    for (more, expected) in [
        (&["--source", "a.en", "--target", "a.de"][..], "expected 2 lines in a.de as in a.en, got 1"),
        (&["--data", "none.tsv"], "open none.tsv: "),
        (&["--learning-rate", "2"], "option learning-rate: expected a number above 0, up to 1, got 2"),
        (
            &["--ss-floor", "0.97"],
            "option ss-schedule: expected to end at 0.95 or less, or --force, got 0.970 at the last",
        ),
        (&["--updates", "100", "--ss-warmup", "99", "--ss-end", "1000"], "option ss-schedule: expected to end at 0.95"),
        (&["--ss-end", "5"], "option ss-end: expected an update behind the warm-up of 1000, got 5"),
        (&["--ss-passes", "0"], "option ss-passes: "),
        (&["--ss-raise", "1.5"], "option ss-raise: expected a number from 0 to 1, got 1.5"),
        (&["--ss-temperature", "0"], "option ss-temperature: "),
        (&["--objective", "mrt", "--mrt-alpha", "0"], "option mrt-alpha: "),
        (&["--objective", "mrt", "--mrt-samples", "1"], "option mrt-samples: "),
        (&["--objective", "mrt", "--mrt-mix", "1"], "option mrt-mix: "),
        (&["--objective", "distill", "--distill-temperature", "0"], "option temperature: "),
        (&["--objective", "distill", "--ema-decay", "1"], "option ema-decay: "),
        (&["--objective", "distill", "--teacher", "none"], "none"),
        (&["--objective", "mle", "--teacher", "none"], "option teacher cannot be combined with objective mle"),
        (&["--mrt-alpha", "0.1"], "option mrt-alpha cannot be combined with objective scheduled-sampling"),
        (&["--objective", "mrt", "--force"], "option force cannot be combined with objective mrt"),
        (&["--resume"], "state.safetensors"),
    ] {
        let arguments =
            if more[0] == "--source" || more[0] == "--data" { more.to_vec() } else { [&data, more].concat() };
        let (code, said) = command(&fixture, &arguments);
        assert_eq!(code, Some(2), "{arguments:?}: {said}");
        assert!(said.contains(expected), "{arguments:?}: {said}");
        assert!(!fixture.path("out").exists(), "{arguments:?}");
    }
}

#[test]
fn an_interrupt_saves_the_state_and_says_how_to_go_on() {
    let fixture = Fixture::new();
    let arguments = ["--data", "train.tsv", "--objective", "mle", "--batch-tokens", "16", "--log-every", "1"];
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_beamfuse"))
        .arg("train")
        .args([
            "--model".as_ref(),
            fixture.model.dir().as_os_str(),
            "--output".as_ref(),
            fixture.path("out").as_os_str(),
        ])
        .args(arguments)
        .args(["--updates", "1000000"])
        .current_dir(fixture.dir.path())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let mut said = std::io::BufReader::new(child.stderr.take().expect("a pipe"));
    let (mut line, mut begun) = (String::new(), String::new());
    while !line.contains("update 3/") {
        line.clear();
        assert!(std::io::BufRead::read_line(&mut said, &mut line).expect("a line") > 0, "it ended early");
        begun.push_str(&line);
    }
    // What likelihood alone leaves open is said once.
    assert_eq!(begun.matches("is left open").count(), 1, "{begun}");
    let killed = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(killed.expect("kill starts").success());
    let mut rest = String::new();
    std::io::Read::read_to_string(&mut said, &mut rest).expect("text");
    assert_eq!(child.wait().expect("the command ends").code(), Some(130));
    assert!(rest.contains("interrupted: finishing the update under way"), "{rest}");
    assert!(rest.contains("; the same command with --resume continues"), "{rest}");
    assert!(state_file(&fixture.path("out")).exists() && !fixture.path("out").join("model.safetensors").exists());
}

/// Trains by the command line; kills the process after `patience`, if one is given. Whether it came to its end.
fn train(fixture: &Fixture, output: &str, extra: &[&str], patience: Option<std::time::Duration>) -> bool {
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_beamfuse"))
        .args([
            "train",
            "--data",
            "train.tsv",
            "--validation",
            "train.tsv",
            "--objective",
            "mle",
            "--batch-tokens",
            "16",
        ])
        .args(["--updates", "40", "--validate-every", "7", "--checkpoint-every", "9", "--learning-rate", "0.01"])
        .args(["--validation-beam", "1", "--output", output])
        .arg("--model")
        .arg(fixture.model.dir())
        .args(extra)
        .current_dir(fixture.dir.path())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("the binary starts");
    if let Some(patience) = patience {
        std::thread::sleep(patience);
        // It may have ended.
        _ = child.kill();
    }
    child.wait().expect("it ends").success()
}

#[test]
fn a_run_that_is_killed_again_and_again_has_the_log_and_the_weights_of_one_that_never_was() {
    let fixture = Fixture::new();
    let started = std::time::Instant::now();
    assert!(train(&fixture, "whole", &[], None));
    let whole = started.elapsed();
    let text = |output: &str| std::fs::read_to_string(fixture.path(output).join("training/log.jsonl")).expect("a log");
    assert_eq!(text("whole").lines().count(), 40 + 7);
    let mut all = 0;
    for run in 0..3 {
        let output = format!("killed{run}");
        let mut kills = 0;
        loop {
            let resume: &[&str] = if state_file(&fixture.path(&output)).exists() { &["--resume"] } else { &[] };
            // Each time a little later, so that it comes to an end.
            let patience = whole.mul_f64(0.1 + 0.05 * f64::from(kills + run));
            if train(&fixture, &output, resume, Some(patience)) {
                break;
            }
            kills += 1;
        }
        all += kills;
        assert_eq!(text(&output), text("whole"), "after {kills} kills");
        assert_eq!(weights(&fixture.path(&output)), weights(&fixture.path("whole")));
    }
    // How many depends on how busy the machine is.
    assert!(all > 2, "{all} kills");
}

#[test]
fn two_runs_may_not_share_a_directory() {
    let fixture = Fixture::new();
    let mut first = Trainer::open(fixture.places("out", false), options(ObjectiveOptions::Mle)).expect("a run");
    for resume in [false, true] {
        let second = Trainer::open(fixture.places("out", resume), options(ObjectiveOptions::Mle)).err();
        let message = second.expect("refused").to_string();
        assert!(message.contains("training/lock: another process is writing it"), "{message}");
    }
    first.run(&mut Watch::until(0)).expect("interrupted at once");
    drop(first);
    assert!(state_file(&fixture.path("out")).exists());
    Trainer::open(fixture.places("out", true), options(ObjectiveOptions::Mle)).expect("the run goes on");
}

#[test]
fn the_first_state_is_there_before_the_first_update() {
    let fixture = Fixture::new();
    let mut trainer = Trainer::open(fixture.places("out", false), options(ObjectiveOptions::Mle)).expect("a run");
    assert_eq!(trainer.run(&mut Watch::until(0)).expect("interrupted"), Ending::Interrupted);
    // Interrupted behind the validation, which is not repeated.
    assert_eq!(log(&fixture.path("out")).len(), 1);
    drop(trainer);
    let mut trainer = Trainer::open(fixture.places("out", true), options(ObjectiveOptions::Mle)).expect("a run");
    assert_eq!(trainer.run(&mut Watch::until(1)).expect("interrupted"), Ending::Interrupted);
    assert_eq!(log(&fixture.path("out")).len(), 2);
}
