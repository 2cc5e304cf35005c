//! Presets: a program that overrides their options gets the search that the command line gets.

use crate::common::command::run;
use crate::common::translator;
use beamfuse::{DecodeOptions, LengthPenalty, Overrides, Preset, Stop};

const PRESETS: [(Preset, &str); 6] = [
    (Preset::Default, "default"),
    (Preset::Production, "production"),
    (Preset::Hf, "hf"),
    (Preset::CTranslate2, "ctranslate2"),
    (Preset::Fairseq, "fairseq"),
    (Preset::Marian, "marian"),
];

const SENTENCES: [&str; 4] = [
    "A dog runs.",
    "Two men sit on a bench and read a newspaper.",
    "A woman in a red coat waits for the train, and the train does not come, and she waits.",
    "The the the the the the.",
];

/// What is overridden: flags, and the same on fields.
type Change = (&'static [&'static str], fn(&mut DecodeOptions));

const CHANGES: [Change; 4] = [
    (&[], |_| ()),
    (&["--length-penalty", "none"], |o| o.length_penalty = LengthPenalty::None),
    (&["--repetition-penalty", "1.5"], |o| o.repetition_penalty = 1.5),
    (&["--stop", "heuristic"], |o| o.stop = Some(Stop::Heuristic)),
];

#[test]
fn a_program_and_the_command_line_search_alike_under_every_preset() {
    let input = SENTENCES.join("\n");
    for (preset, name) in PRESETS {
        for (beam, (flags, change)) in [1, 4].into_iter().flat_map(|beam| CHANGES.map(|change| (beam, change))) {
            let options = translator().preset(preset).expect("a preset").with(change).with(|o| o.beam_size = beam);
            let count = beam.to_string();
            let head = ["translate", "--format", "nbest", "--preset", name, "--beam-size", &count];
            let output = run(&[&head[..], flags].concat(), input.as_bytes()).ok();
            let translations = translator().translate(&SENTENCES, &options).expect("valid options");
            for (line, translation) in output.lines().iter().zip(&translations) {
                let (best, parts) = (&translation.hypotheses[0], line.split(" ||| ").collect::<Vec<_>>());
                let (log_prob, score) = (format!("F0= {}", best.log_prob), best.score.to_string());
                assert_eq!(parts[1..], [&best.text, &log_prob, &score], "{name}, {beam} beams, {flags:?}");
            }
            assert_eq!(output.lines().len(), translations.len());
        }
    }
}

#[test]
fn options_by_name_are_those_of_a_program() {
    for (preset, name) in PRESETS {
        for beam in [1, 4] {
            let mut set = Overrides::default();
            set.set("preset", name);
            set.set("beam_size", beam);
            let by_name = translator().options(&set).expect("options");
            let by_field = translator().preset(preset).expect("a preset").with(|o| o.beam_size = beam);
            assert_eq!(by_name, by_field, "{name}");
        }
    }
}

#[test]
fn what_a_preset_does_follows_the_beam_and_the_penalties() {
    let rule = |preset, change: fn(&mut DecodeOptions)| {
        let options = translator().preset(preset).expect("a preset").with(change);
        (options.stop_rule(), options.penalizes_logits())
    };
    assert_eq!(rule(Preset::Hf, |o| o.beam_size = 1), (Stop::First, true));
    assert!(!rule(Preset::Hf, |o| o.beam_size = 4).1);
    assert_eq!(rule(Preset::Hf, |o| (o.beam_size, o.stop) = (1, Some(Stop::Exact))), (Stop::Exact, true));
    assert_eq!(rule(Preset::CTranslate2, |_| ()), (Stop::First, true));
    assert_eq!(rule(Preset::CTranslate2, |o| o.alpha = 0.0), (Stop::Top, true));
    assert_eq!(rule(Preset::CTranslate2, |o| (o.alpha, o.beam_size) = (0.0, 1)), (Stop::First, true));
    assert_eq!(rule(Preset::Marian, |o| o.beam_size = 1), (Stop::First, false));
    assert_eq!(rule(Preset::Default, |o| o.beam_size = 1), (Stop::Heuristic, false));
}
