use super::*;
use crate::check::{Tolerance, assert_close, assert_same_bits};

const DIVERGENCES: [Divergence; 5] = [
    Divergence { temperature: 1.0, beta: 0.0 },
    Divergence { temperature: 2.0, beta: 0.0 },
    Divergence { temperature: 2.0, beta: 1.0 },
    Divergence { temperature: 0.7, beta: 0.5 },
    Divergence { temperature: 2.0, beta: 0.1 },
];

fn logits(seed: usize, len: usize) -> Vec<f32> {
    (0..len).map(|i| (i * (7919 + 2 * seed) % 1013) as f32 * 0.01 - 5.0).collect()
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|z| f64::from(*z)).collect()
}

fn narrow(values: &[f64]) -> Vec<f32> {
    values.iter().map(|z| *z as f32).collect()
}

/// Gradients are held to a part of the largest of them.
fn assert_gradient(actual: &[f32], expected: &[f64]) {
    let largest = expected.iter().fold(0.0, |max: f64, g| max.max(g.abs()));
    assert_close(actual, &narrow(expected), Tolerance::new(1e-4 * largest, 0.0));
}

/// The largest difference of `gradient` from central differences of the sum of the losses.
fn worst_difference(logits: &[f64], gradient: &[f64], loss: impl Fn(&[f64]) -> f64) -> f64 {
    let step = 1e-5;
    let difference = |i: usize| {
        let at = |offset: f64| {
            let mut moved = logits.to_vec();
            moved[i] += offset;
            loss(&moved)
        };
        ((at(step) - at(-step)) / (2.0 * step) - gradient[i]).abs()
    };
    (0..logits.len()).map(difference).fold(0.0, f64::max)
}

#[test]
fn the_gradient_of_the_likelihood_is_its_derivative() {
    for (vocab_size, smoothing) in [(1, 0.1), (2, 0.0), (7, 0.0), (7, 0.1), (13, 0.4)] {
        let rows = 3;
        let logits = wide(&logits(vocab_size, rows * vocab_size));
        let targets: Vec<u32> = (0..rows).map(|r| (r * 5 % vocab_size) as u32).collect();
        let (mask, weights) = ([1, 0, 1], [1.0, 1.0, -0.75]);
        let run = |logits: &[f64]| reference_nll(vocab_size, smoothing, logits, &targets, &mask, &weights);
        let worst = worst_difference(&logits, &run(&logits).1, |z| run(z).0.iter().sum());
        assert!(worst < 1e-6, "{vocab_size} tokens, smoothing {smoothing}: {worst}");
    }
}

#[test]
fn the_gradient_of_each_divergence_is_its_derivative() {
    for divergence in DIVERGENCES {
        let (student, teacher) = (wide(&logits(1, 3 * 7)), wide(&logits(2, 3 * 7)));
        let (mask, weights) = ([1, 0, 1], [1.0, 1.0, 0.25]);
        let run = |student: &[f64]| reference_divergence(7, divergence, student, &teacher, &mask, &weights);
        let worst = worst_difference(&student, &run(&student).1, |z| run(z).0.iter().sum());
        assert!(worst < 1e-6, "{divergence:?}: {worst}");
    }
}

#[test]
fn losses_by_hand() {
    // p = (1/4, 3/4).
    let logits = [0.0, 3f64.ln()];
    let (loss, gradient) = reference_nll(2, 0.0, &logits, &[0], &[1], &[2.0]);
    assert!((loss[0] - 2.0 * 4f64.ln()).abs() < 1e-12);
    assert!((gradient[0] + 1.5).abs() < 1e-12 && (gradient[1] - 1.5).abs() < 1e-12);
    // Smoothing 0.2 leaves 0.8 for the target.
    let (loss, _) = reference_nll(2, 0.2, &logits, &[0], &[1], &[1.0]);
    assert!((loss[0] - (0.8 * 4f64.ln() + 0.2 * (4.0 / 3f64).ln())).abs() < 1e-12);
    // Teacher (1/2, 1/2): KL(p || q) = log 2 - (log 3) / 2, KL(q || p) = 3/4 log 3 - log 2.
    let divergence = |beta| {
        let of = Divergence { temperature: 1.0, beta };
        reference_divergence(2, of, &logits, &[1.0, 1.0], &[1], &[1.0]).0[0]
    };
    assert!((divergence(0.0) - (2f64.ln() - 3f64.ln() / 2.0)).abs() < 1e-12);
    assert!((divergence(1.0) - (0.75 * 3f64.ln() - 2f64.ln())).abs() < 1e-12);
    // m = (3/8, 5/8).
    let jensen = 0.5 * (0.5 * (4.0 / 3f64).ln() + 0.5 * 0.8f64.ln())
        + 0.5 * (0.25 * (2.0 / 3f64).ln() + 0.75 * (6.0 / 5f64).ln());
    assert!((divergence(0.5) - jensen).abs() < 1e-12);
}

/// Rows with outliers and tokens that are ruled out; every fourth row is left out by its mask.
struct Case {
    shape: RowShape,
    student: Vec<f32>,
    teacher: Vec<f32>,
    targets: Vec<u32>,
    mask: Vec<u32>,
    weights: Vec<f32>,
}

const ROWS: usize = 11;

impl Case {
    fn new(vocab_size: usize, stride: usize) -> Case {
        let mut student = logits(3, ROWS * stride);
        student.iter_mut().skip(1).step_by(89).for_each(|z| *z += 8.0);
        // A teacher of much the same opinion, elsewhere on the scale.
        let noise = logits(4, ROWS * stride);
        let mut teacher: Vec<f32> = student.iter().zip(noise).map(|(z, noise)| 0.8 * z + 0.4 * noise - 9.0).collect();
        // Ruled out by both, so that divergences stay finite.
        for i in (0..student.len()).skip(7).step_by(23) {
            student[i] = f32::NEG_INFINITY;
            teacher[i] = f32::NEG_INFINITY;
        }
        let targets = (0..ROWS).map(|r| (0..vocab_size).rev().find(|v| student[r * stride + v].is_finite()));
        Case {
            shape: RowShape { vocab_size, stride },
            targets: targets.map(|v| v.unwrap_or(0) as u32).collect(),
            mask: (0..ROWS).map(|r| u32::from(r % 4 != 1)).collect(),
            weights: (0..ROWS).map(|r| [1.0, -0.5, 0.001, 0.0, 3.0][r % 5]).collect(),
            student,
            teacher,
        }
    }

    fn packed(&self, values: &[f32]) -> Vec<f32> {
        values.chunks(self.shape.stride).flat_map(|row| &row[..self.shape.vocab_size]).copied().collect()
    }

    fn nll(&self, smoothing: f32) -> (Vec<f32>, Vec<f32>) {
        let (mut gradient, mut loss) = (self.student.clone(), vec![7.0; ROWS]);
        let Case { shape, targets, mask, weights, .. } = self;
        weighted_nll(*shape, smoothing, &mut gradient, targets, mask, weights, &mut loss).expect("a fitting call");
        (loss, gradient)
    }

    fn divergence(&self, divergence: Divergence) -> (Vec<f32>, Vec<f32>) {
        let (mut gradient, mut loss) = (self.student.clone(), vec![7.0; ROWS]);
        let Case { shape, teacher, mask, weights, .. } = self;
        tempered_divergence(*shape, divergence, &mut gradient, teacher, mask, weights, &mut loss).expect("it fits");
        (loss, gradient)
    }
}

const SHAPES: [(usize, usize); 6] = [(1, 1), (2, 3), (31, 31), (61, 64), (997, 1000), (8001, 8004)];

#[test]
fn the_likelihood_equals_the_reference() {
    for ((vocab_size, stride), smoothing) in SHAPES.into_iter().flat_map(|shape| [(shape, 0.0), (shape, 0.1)]) {
        let mut case = Case::new(vocab_size, stride);
        if smoothing > 0.0 {
            // A smoothed loss is infinite where a token is ruled out.
            case.student.iter_mut().for_each(|z| *z = z.max(-9.0));
        }
        let (loss, gradient) = case.nll(smoothing);
        let student = wide(&case.packed(&case.student));
        let (expected, expected_gradient) =
            reference_nll(vocab_size, f64::from(smoothing), &student, &case.targets, &case.mask, &wide(&case.weights));
        assert_close(&loss, &narrow(&expected), Tolerance::new(2e-5, 2e-6));
        assert_gradient(&case.packed(&gradient), &expected_gradient);
        let mut alone = vec![7.0; ROWS];
        let Case { shape, student, targets, mask, weights, .. } = &case;
        weighted_nll_loss(*shape, smoothing, student, targets, mask, weights, &mut alone).expect("a fitting call");
        assert_same_bits(&alone, &loss);
    }
}

#[test]
fn the_divergences_equal_the_reference() {
    for ((vocab_size, stride), divergence) in
        SHAPES.into_iter().flat_map(|shape| DIVERGENCES.map(|divergence| (shape, divergence)))
    {
        let case = Case::new(vocab_size, stride);
        let (loss, gradient) = case.divergence(divergence);
        let (student, teacher) = (wide(&case.packed(&case.student)), wide(&case.packed(&case.teacher)));
        let (expected, expected_gradient) =
            reference_divergence(vocab_size, divergence, &student, &teacher, &case.mask, &wide(&case.weights));
        assert_close(&loss, &narrow(&expected), Tolerance::new(1e-4, 2e-5));
        assert_gradient(&case.packed(&gradient), &expected_gradient);
        let mut alone = vec![7.0; ROWS];
        let Case { shape, student, teacher, mask, weights, .. } = &case;
        tempered_divergence_loss(*shape, divergence, student, teacher, mask, weights, &mut alone).expect("it fits");
        assert_same_bits(&alone, &loss);
    }
}

#[test]
fn what_is_left_out_is_exactly_zero() {
    let mut case = Case::new(61, 64);
    // Row 1 is masked, row 3 has weight 0; the columns beyond the vocabulary are not touched.
    for row in [1, 3] {
        case.student[row * 64..row * 64 + 61].fill(f32::NAN);
        case.targets[row] = u32::MAX * u32::from(row == 1);
    }
    let mut outcomes = vec![case.nll(0.0), case.nll(0.1)];
    outcomes.extend(DIVERGENCES.map(|divergence| case.divergence(divergence)));
    for (loss, gradient) in outcomes {
        for row in [1, 3] {
            assert!(loss[row] == 0.0 && gradient[row * 64..row * 64 + 61].iter().all(|g| *g == 0.0));
        }
        for row in 0..ROWS {
            assert_same_bits(&gradient[row * 64 + 61..(row + 1) * 64], &case.student[row * 64 + 61..(row + 1) * 64]);
        }
        assert!(gradient[..61].iter().any(|g| *g != 0.0), "the first row takes part");
    }
}

#[test]
fn equal_models_do_not_diverge_at_all() {
    let mut case = Case::new(997, 1000);
    case.teacher.clone_from(&case.student);
    for beta in [0.0, 0.1, 0.3, 0.5, 0.9, 1.0] {
        for temperature in [0.7, 1.0, 2.0] {
            let (loss, gradient) = case.divergence(Divergence { temperature, beta });
            assert!(loss.iter().chain(&case.packed(&gradient)).all(|x| *x == 0.0), "beta {beta}");
        }
    }
}

#[test]
fn a_row_does_not_depend_on_the_others() {
    let case = Case::new(61, 64);
    let divergence = DIVERGENCES[3];
    let ((nll, nll_gradient), (loss, gradient)) = (case.nll(0.0), case.divergence(divergence));
    for r in 0..ROWS {
        let part = r * 64..(r + 1) * 64;
        let alone = Case {
            shape: case.shape,
            student: case.student[part.clone()].to_vec(),
            teacher: case.teacher[part.clone()].to_vec(),
            targets: vec![case.targets[r]],
            mask: vec![case.mask[r]],
            weights: vec![case.weights[r]],
        };
        let (mut own, mut own_loss) = (alone.student.clone(), [0.0]);
        weighted_nll(alone.shape, 0.0, &mut own, &alone.targets, &alone.mask, &alone.weights, &mut own_loss)
            .expect("a fitting call");
        assert_same_bits(&own_loss, &nll[r..=r]);
        assert_same_bits(&own, &nll_gradient[part.clone()]);
        own.clone_from(&alone.student);
        tempered_divergence(
            alone.shape,
            divergence,
            &mut own,
            &alone.teacher,
            &alone.mask,
            &alone.weights,
            &mut own_loss,
        )
        .expect("a fitting call");
        assert_same_bits(&own_loss, &loss[r..=r]);
        assert_same_bits(&own, &gradient[part]);
    }
}

#[test]
fn what_cannot_be_normalised_shows() {
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    let shape = RowShape { vocab_size: 3, stride: 3 };
    for bad in [[1.0, nan, 0.0], [1.0, inf, 0.0], [-inf; 3]] {
        let (mut gradient, mut loss) = (bad, [0.0]);
        weighted_nll(shape, 0.1, &mut gradient, &[0], &[1], &[1.0], &mut loss).expect("a fitting call");
        assert!(loss[0].is_nan() && gradient.iter().all(|g| g.is_nan()), "{bad:?}");
        for (student, teacher) in [(bad, [0.0; 3]), ([0.0; 3], bad)] {
            let mut gradient = student;
            tempered_divergence(shape, DIVERGENCES[1], &mut gradient, &teacher, &[1], &[1.0], &mut loss).expect("fits");
            assert!(loss[0].is_nan() && gradient.iter().all(|g| g.is_nan()), "{student:?} {teacher:?}");
        }
    }
    // A target, or a token of the teacher's, of probability 0.
    let (mut gradient, mut loss) = ([0.0, -inf, 0.0], [0.0]);
    weighted_nll(shape, 0.0, &mut gradient, &[1], &[1], &[1.0], &mut loss).expect("a fitting call");
    assert_eq!((loss[0], gradient), (inf, [0.5, -1.0, 0.5]));
    let mut gradient = [0.0, -inf, 0.0];
    let forward = Divergence { temperature: 1.0, beta: 0.0 };
    tempered_divergence(shape, forward, &mut gradient, &[-inf, 0.0, -inf], &[1], &[1.0], &mut loss).expect("fits");
    assert_eq!((loss[0], gradient), (inf, [0.5, -1.0, 0.5]));
}

#[test]
fn what_does_not_fit_is_refused() {
    let shape = RowShape { vocab_size: 3, stride: 4 };
    let nll = |shape, smoothing, logits: usize, target| {
        let (mut logits, mut loss) = (vec![0.0; logits], [0.0; 2]);
        let outcome = weighted_nll(shape, smoothing, &mut logits, &[0, target], &[1, 1], &[1.0; 2], &mut loss);
        outcome.err().map_or_else(String::new, |error| error.to_string())
    };
    assert_eq!(nll(shape, 0.0, 8, 2), "");
    assert_eq!(nll(shape, 0.0, 7, 2), "weighted_nll: logits: expected 8 elements, got 7 elements");
    assert_eq!(nll(shape, 0.0, 8, 3), "weighted_nll: expected targets below 3, got 3");
    assert_eq!(nll(shape, 1.0, 8, 2), "option label-smoothing: expected 0 or more, below 1, got 1");
    assert!(nll(RowShape { vocab_size: 5, stride: 4 }, 0.0, 8, 2).contains("5 tokens, 4 apart"));
    let divergence = |temperature, beta, teacher: usize| {
        let of = Divergence { temperature, beta };
        let outcome =
            tempered_divergence(shape, of, &mut [0.0; 8], &vec![0.0; teacher], &[1, 1], &[1.0; 2], &mut [0.0; 2]);
        outcome.err().map_or_else(String::new, |error| error.to_string())
    };
    assert_eq!(divergence(1.0, 0.5, 8), "");
    assert!(divergence(0.0, 0.5, 8).starts_with("option temperature: expected a finite number above 0, got 0"));
    assert_eq!(divergence(1.0, 1.5, 8), "option beta: expected 0 to 1, got 1.5");
    assert_eq!(divergence(1.0, 0.5, 4), "tempered_divergence: teacher: expected 8 elements, got 4 elements");
}
