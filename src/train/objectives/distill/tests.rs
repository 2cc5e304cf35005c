use std::path::Path;

use super::*;
use crate::text::SentenceDefaults;
use crate::train::data::Pair;

fn dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/m30k-en-de")
}

fn pairs() -> Vec<Pair> {
    let tokenizer = Tokenizer::open(&dir()).expect("a tokenizer");
    let pair = |source: &str, target: &str| Pair {
        source: tokenizer.encode_source(source),
        target: tokenizer.encode_target(target),
        text: target.to_owned(),
        source_text: source.to_owned(),
        line: 1,
    };
    vec![
        pair("A man is riding a bike.", "Ein Mann fährt mit dem Rad."),
        pair("Two dogs run through the snow.", "Zwei Hunde rennen im Schnee."),
        pair("A woman sings.", "Eine Frau singt."),
    ]
}

fn options(teacher: Teacher, prefixes: Prefixes) -> Options {
    let divergence = Divergence { temperature: 2.0, beta: 0.0 };
    Options { teacher, prefixes, student_draw: Draw::Beam, teacher_draw: Draw::Beam, divergence, gold: 0.0 }
}

fn distill(options: Options) -> Distill {
    let session = || Rollouts::open(&dir(), &SentenceDefaults::default()).expect("a session");
    Distill::new(options, AutogradModel::open(&dir()).expect("a model"), session(), session())
}

fn examples(pairs: &[Pair]) -> Vec<Example<'_>> {
    pairs.iter().zip(0..).map(|(pair, number)| Example { number, pair }).collect()
}

fn update(model: &AutogradModel, dropout: f32) -> Update<'_> {
    let dropout = crate::train::autograd::Rates::of_sublayers(dropout);
    Update { model, number: 1, seed: 5, dropout, smoothing: 0.1, tokens: 25, sentences: 3 }
}

fn scaled(model: &AutogradModel, factor: f32) -> AutogradModel {
    let mut other = model.copy().expect("a copy");
    let values = other.parameters().values().expect("values");
    let values = values.iter().map(|v| v.iter().map(|x| x * factor).collect()).collect();
    other.parameters_mut().set_values(values).expect("set");
    other
}

#[test]
fn a_teacher_that_equals_the_student_is_refused() {
    let model = AutogradModel::open(&dir()).expect("a model");
    let pairs = pairs();
    let mut same = distill(options(Teacher::Frozen, Prefixes::Gold));
    let message = same.gradients(&update(&model, 0.0), &examples(&pairs), &mut Sum::default()).unwrap_err().to_string();
    assert!(message.ends_with("got a divergence of 0, which has no gradient"), "{message}");
    // Dropout tells the two apart.
    let mut sum = Sum::default();
    same.gradients(&update(&model, 0.1), &examples(&pairs), &mut sum).expect("gradients");
    assert!(sum.loss > 0.0);
}

#[test]
fn prefixes_are_whose_they_should_be() {
    let model = AutogradModel::open(&dir()).expect("a model");
    let pairs = pairs();
    let examples = examples(&pairs);
    let student = scaled(&model, 0.5);
    let said = |model: &AutogradModel| {
        let mut rollouts = Rollouts::open(&dir(), &SentenceDefaults::default()).expect("a session");
        rollouts.follow(model, 1).expect("followed");
        let drawn = rollouts.draw(&examples, 1, Draw::Beam, 0).expect("drawn");
        drawn.into_iter().map(|d| d[0].ids.clone()).collect::<Vec<_>>()
    };
    let (by_teacher, by_student) = (said(&model), said(&student));
    assert_ne!(by_teacher, by_student);
    let gold: Vec<Vec<u32>> = pairs.iter().map(|p| p.target.clone()).collect();
    for (prefixes, expected) in [
        (Prefixes::Gold, &gold),
        (Prefixes::Teacher, &by_teacher),
        (Prefixes::Student, &by_student),
        (Prefixes::Mix(1.0), &by_student),
        (Prefixes::Mix(0.0), &by_teacher),
    ] {
        let mut distill = distill(options(Teacher::Frozen, prefixes));
        assert_eq!(&distill.sentences(&update(&student, 0.0), &examples).expect("sentences"), expected, "{prefixes:?}");
    }
}

#[test]
fn the_gradient_draws_the_student_to_the_teacher() {
    let model = AutogradModel::open(&dir()).expect("a model");
    let pairs = pairs();
    let mut student = scaled(&model, 0.9);
    let mut distill = distill(options(Teacher::Frozen, Prefixes::Student));
    let mut adam = crate::train::optimizer::AdamW::new(Default::default(), student.parameters());
    let mut losses = Vec::new();
    for _ in 0..4 {
        let mut sum = Sum::default();
        distill.gradients(&update(&student, 0.0), &examples(&pairs), &mut sum).expect("gradients");
        losses.push(sum.loss);
        adam.update(student.parameters_mut(), &sum.gradients.expect("gradients"), 3e-4).expect("updated");
    }
    assert!(losses[3] < 0.8 * losses[0], "{losses:?}");
}

#[test]
fn a_moving_average_follows_and_is_saved() {
    let model = AutogradModel::open(&dir()).expect("a model");
    let student = scaled(&model, 0.9);
    let mut ema = distill(options(Teacher::Ema(0.75), Prefixes::Gold));
    ema.updated(&student).expect("updated");
    let values = |model: &AutogradModel| model.parameters().values().expect("values").concat();
    for ((mean, first), now) in values(&ema.teacher).iter().zip(values(&model)).zip(values(&student)) {
        assert!((mean - (0.75 * first + 0.25 * now)).abs() <= 1e-6 * (1.0 + first.abs()));
    }
    let mut tensors = Tensors::new();
    ema.save(&mut tensors).expect("saved");
    let mut resumed = distill(options(Teacher::Ema(0.75), Prefixes::Gold));
    resumed.restore(&tensors).expect("restored");
    crate::check::assert_same_bits(&values(&resumed.teacher), &values(&ema.teacher));
    assert!(resumed.restore(&Tensors::new()).is_err());
    // A teacher that stays is not saved.
    let mut tensors = Tensors::new();
    distill(options(Teacher::Frozen, Prefixes::Gold)).save(&mut tensors).expect("saved");
    assert!(tensors.is_empty());
}

#[test]
fn several_teachers_are_one_of_their_mean_weights() {
    let (root, tokenizer) = (Path::new(env!("CARGO_MANIFEST_DIR")), Tokenizer::open(&dir()).expect("a tokenizer"));
    let other = tempfile::tempdir().expect("a directory");
    let model = AutogradModel::open(&dir()).expect("a model");
    let doubled = scaled(&model, 2.0);
    crate::train::checkpoint::write_model(&dir(), other.path(), doubled.parameters().tensors().expect("tensors"))
        .expect("written");
    let mean = average(&[dir(), other.path().to_path_buf()], &tokenizer).expect("a teacher");
    let values = |model: &AutogradModel| model.parameters().values().expect("values").concat();
    for (mean, own) in values(&mean).iter().zip(values(&model)) {
        assert!((mean - 1.5 * own).abs() <= 1e-6 * own.abs());
    }
    // Its own sentences are those of the mean, too, not those of the first.
    let pairs = pairs();
    let teachers = |dirs: &[PathBuf]| average(dirs, &tokenizer).expect("a teacher");
    let said = |teacher: AutogradModel| {
        let session = || Rollouts::open(&dir(), &SentenceDefaults::default()).expect("a session");
        let models = Teacher::Models(vec![dir()]);
        let mut distill = Distill::new(options(models, Prefixes::Teacher), teacher, session(), session());
        distill.sentences(&update(&model, 0.0), &examples(&pairs)).expect("sentences")
    };
    assert_eq!(said(teachers(&[dir()])), said(teachers(&[dir(), dir()])));
    assert_eq!(said(scaled(&model, 0.5)), said(teachers(&[dir(), zeroed(&model, other.path())])));
    let amateur = root.join("models/m30k-en-de-amateur");
    let message = average(&[dir(), amateur], &tokenizer).map(drop).unwrap_err().to_string();
    assert!(message.starts_with("average teachers: expected models of the architecture of "), "{message}");
}

/// Writes a model all of whose weights are 0.
fn zeroed(model: &AutogradModel, dir_of: &Path) -> PathBuf {
    let zeros = scaled(model, 0.0);
    crate::train::checkpoint::write_model(&dir(), dir_of, zeros.parameters().tensors().expect("tensors"))
        .expect("written");
    dir_of.to_path_buf()
}

#[test]
fn other_pieces_are_refused() {
    let ours = Tokenizer::open(&dir()).expect("a tokenizer");
    let theirs = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/variants/tokenizer-separate");
    let message = check_pieces(&ours, &Tokenizer::open(&theirs).expect("a tokenizer")).unwrap_err().to_string();
    assert!(message.starts_with("distill: expected a teacher with the student's pieces, got id "), "{message}");
    assert!(check_pieces(&ours, &Tokenizer::open(&dir()).expect("a tokenizer")).is_ok());
}
