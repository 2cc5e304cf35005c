use super::*;
use crate::check::{Tolerance, compare};

/// A reproducible stream of values with a few outliers.
pub(super) fn values(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 24) as f32
    };
    (0..len).map(|i| (next() - 0.45) * if i % 101 == 7 { 8.0 } else { 1.0 }).collect()
}

pub(super) const ACTIVATIONS: [Activation; 5] =
    [Activation::None, Activation::Relu, Activation::Silu, Activation::GeluTanh, Activation::GeluErf];

pub(super) fn pool(threads: usize) -> rayon::ThreadPool {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap()
}

/// Dense layers of the models that matter, `(n, k)`, the vocabularies cut to a prime.
pub(super) const MODEL_SHAPES: [(usize, usize); 10] = [
    (768, 256),
    (256, 256),
    (1024, 256),
    (256, 1024),
    (997, 256),
    (1536, 512),
    (512, 512),
    (2048, 512),
    (512, 2048),
    (997, 512),
];

#[test]
fn matches_the_reference_on_odd_shapes() {
    for isa in Isa::available() {
        for (n, k) in [(1, 1), (7, 1), (31, 13), (32, 32), (33, 5), (67, 131), (130, 257), (290, 64), (5, 0)] {
            for rows in [0, 1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 24, 25, 53, 97] {
                let (x, weights, bias) = (values(rows * k, 1), values(n * k, 2), values(n, 3));
                let residual = values(rows * n, 4);
                let packed = PackedMatrix::pack(&weights, n, k);
                let activation = ACTIVATIONS[(rows + n) % 5];
                let epilogue = Epilogue { bias: Some(&bias), activation, residual: Some(&residual) };
                let (mut expected, mut out) = (vec![0.0; rows * n], vec![f32::NAN; rows * n]);
                reference(&x, rows, &weights, n, k, &epilogue, &mut expected);
                gemm_on(isa, &x, rows, &packed, &epilogue, &mut out);
                compare(&out, &expected, Tolerance::new(2e-5, 2e-6))
                    .unwrap_or_else(|e| panic!("{} [{rows}, {k}] x [{n}, {k}]: {e}", isa.name()));
            }
        }
    }
}

#[test]
fn matches_the_reference_with_every_epilogue() {
    let (rows, n, k) = (5, 71, 37);
    let (x, weights, bias, residual) = (values(rows * k, 5), values(n * k, 6), values(n, 7), values(rows * n, 8));
    let packed = PackedMatrix::pack(&weights, n, k);
    for isa in Isa::available() {
        for activation in ACTIVATIONS {
            for bias in [None, Some(bias.as_slice())] {
                for residual in [None, Some(residual.as_slice())] {
                    let epilogue = Epilogue { bias, activation, residual };
                    let (mut expected, mut out) = (vec![0.0; rows * n], vec![f32::NAN; rows * n]);
                    reference(&x, rows, &weights, n, k, &epilogue, &mut expected);
                    gemm_on(isa, &x, rows, &packed, &epilogue, &mut out);
                    compare(&out, &expected, Tolerance::new(5e-6, 2e-6))
                        .unwrap_or_else(|e| panic!("{} {activation:?}: {e}", isa.name()));
                }
            }
        }
    }
}

#[test]
fn the_reference_computes_what_a_hand_does() {
    let epilogue = Epilogue { bias: Some(&[0.5, -20.0]), activation: Activation::Relu, residual: Some(&[1.0, 2.0]) };
    let mut out = [0.0; 2];
    reference(&[1.0, 2.0, 3.0], 1, &[1.0, 0.0, -1.0, 2.0, 3.0, 1.0], 2, 3, &epilogue, &mut out);
    assert_eq!(out, [1.0, 2.0]); // relu(1 - 3 + 0.5) + 1, relu(2 + 6 + 3 - 20) + 2
    let epilogue = Epilogue { bias: Some(&[0.5, -10.0]), ..Epilogue::default() };
    reference(&[1.0, 2.0, 3.0], 1, &[1.0, 0.0, -1.0, 2.0, 3.0, 1.0], 2, 3, &epilogue, &mut out);
    assert_eq!(out, [-1.5, 1.0]);
}

/// A row's bits in any batch, at any position, with any number of threads, equal those in one large batch; and every
/// instruction set that fuses multiply and add gives the same ones.
#[test]
fn bits_do_not_depend_on_rows_threads_or_instruction_set() {
    const ROWS: usize = 300;
    let pools: Vec<_> = [1, 2, 3].into_iter().map(pool).collect();
    for (shape, (n, k)) in MODEL_SHAPES.into_iter().enumerate() {
        let (weights, bias) = (values(n * k, 9), values(n, 10));
        let (x, residual) = (values(ROWS * k, 11), values(ROWS * n, 12));
        let packed = PackedMatrix::pack(&weights, n, k);
        let run = |isa: Isa, first: usize, rows: usize, out: &mut [f32]| {
            let epilogue = Epilogue {
                bias: Some(&bias),
                activation: ACTIVATIONS[shape % 5],
                residual: Some(&residual[first * n..(first + rows) * n]),
            };
            gemm_on(isa, &x[first * k..(first + rows) * k], rows, &packed, &epilogue, out);
        };
        let mut all = vec![f32::NAN; ROWS * n];
        pools[0].install(|| run(Isa::best(), 0, ROWS, &mut all));
        let mut out = vec![f32::NAN; ROWS * n];
        let mut check = |isa: Isa, threads: usize, first: usize, rows: usize| {
            let out = &mut out[..rows * n];
            out.fill(f32::NAN);
            pools[threads - 1].install(|| run(isa, first, rows, out));
            let same = out.iter().zip(&all[first * n..]).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same, "{} [{n}, {k}], rows {first}..{}, {threads} threads", isa.name(), first + rows);
        };
        let every = if n * k <= 256 * 256 { 1 } else { 23 };
        for rows in (1..=ROWS).filter(|rows| *rows <= 26 || rows % every == 0) {
            check(Isa::best(), 1 + rows % 3, (rows * 7) % (ROWS - rows + 1), rows);
        }
        for isa in Isa::available().into_iter().filter(|isa| isa.fuses_multiply_add()) {
            for rows in [1, 2, 3, 4, 5, 7, 13, 29, 127] {
                check(isa, 1 + rows % 3, ROWS - rows, rows);
            }
        }
        for threads in [1, 2, 3] {
            check(Isa::best(), threads, 0, ROWS);
        }
    }
}

/// Where fused multiply-add is missing too, a row has one answer.
#[test]
fn bits_do_not_depend_on_rows_on_any_instruction_set() {
    let (n, k, rows) = (83, 61, 50);
    let (x, weights) = (values(rows * k, 13), values(n * k, 14));
    let packed = PackedMatrix::pack(&weights, n, k);
    for isa in Isa::available() {
        let mut all = vec![f32::NAN; rows * n];
        gemm_on(isa, &x, rows, &packed, &Epilogue::default(), &mut all);
        for count in 1..rows {
            for first in [0, 1, rows - count] {
                if first + count > rows {
                    continue;
                }
                let mut out = vec![f32::NAN; count * n];
                gemm_on(isa, &x[first * k..(first + count) * k], count, &packed, &Epilogue::default(), &mut out);
                assert_eq!(out, all[first * n..(first + count) * n], "{} rows {first}+{count}", isa.name());
            }
        }
    }
}

#[test]
fn nan_and_infinity_reach_exactly_the_outputs_they_concern() {
    let (rows, n, k) = (6, 70, 40);
    for isa in Isa::available() {
        for poison in [f32::NAN, f32::INFINITY] {
            let (mut x, mut weights) = (values(rows * k, 15), values(n * k, 16));
            x[2 * k + 11] = poison;
            weights[69 * k + 3] = poison;
            let packed = PackedMatrix::pack(&weights, n, k);
            let mut out = vec![0.0; rows * n];
            gemm_on(isa, &x, rows, &packed, &Epilogue::default(), &mut out);
            for row in 0..rows {
                for column in 0..n {
                    let hit = row == 2 || column == 69;
                    assert_eq!(out[row * n + column].is_finite(), !hit, "{} ({row}, {column})", isa.name());
                }
            }
        }
    }
}

#[test]
fn packing_reports_its_size() {
    let packed = PackedMatrix::pack(&values(33 * 5, 17), 33, 5);
    assert_eq!((packed.n(), packed.k(), packed.bytes()), (33, 5, 64 * 5 * 4));
}

#[test]
#[should_panic(expected = "x is not [rows, k]")]
fn a_wrong_length_is_refused() {
    gemm(&[0.0; 7], 2, &PackedMatrix::pack(&[0.0; 12], 3, 4), &Epilogue::default(), &mut [0.0; 6]);
}
