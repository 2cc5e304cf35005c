use super::super::tests::{ACTIVATIONS, MODEL_SHAPES, pool, values};
use super::*;
use crate::backend::Activation;
use crate::check::{Tolerance, compare};

#[test]
fn matches_the_reference_on_odd_shapes() {
    let mut scratch = RowScratch::default();
    for isa in Bf16Isa::available() {
        for (n, k) in [(1, 1), (7, 1), (31, 13), (32, 32), (33, 5), (67, 131), (130, 257), (290, 64), (5, 0)] {
            for rows in [0, 1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 16, 17, 24, 25, 33, 53, 97] {
                let (x, weights, bias) = (values(rows * k, 1), values(n * k, 2), values(n, 3));
                let residual = values(rows * n, 4);
                let packed = PackedBf16::pack(&weights, n, k);
                let activation = ACTIVATIONS[(rows + n) % 5];
                let epilogue = Epilogue { bias: Some(&bias), activation, residual: Some(&residual) };
                let (mut expected, mut out) = (vec![0.0; rows * n], vec![f32::NAN; rows * n]);
                reference_bf16(&x, rows, &weights, n, k, &epilogue, &mut expected);
                gemm_bf16_on(isa, &x, rows, &packed, &epilogue, &mut scratch, &mut out);
                // Products of bf16 are exact in f32: what remains is the rounding of the sums, as in f32.
                compare(&out, &expected, Tolerance::new(2e-5, 2e-6))
                    .unwrap_or_else(|e| panic!("{} [{rows}, {k}] x [{n}, {k}]: {e}", isa.name()));
            }
        }
    }
}

/// The order of the module's documentation, one operation after the other.
#[test]
fn sums_run_in_the_order_of_matrix_tiles() {
    let (rows, n, k) = (19, 45, 333);
    let (x, weights) = (values(rows * k, 5), values(n * k, 6));
    let packed = PackedBf16::pack(&weights, n, k);
    let value = |x: f32| half::bf16::from_f32(x).to_f32();
    let mut expected = vec![0.0f32; rows * n];
    for (at, expected) in expected.iter_mut().enumerate() {
        let (x, w) = (&x[at / n * k..][..k], &weights[at % n * k..][..k]);
        for (x, w) in x.chunks(32).zip(w.chunks(32)) {
            let mut sums = [0.0f32; 2];
            for (i, (x, w)) in x.iter().zip(w).enumerate() {
                sums[i % 2] = value(*x).mul_add(value(*w), sums[i % 2]);
            }
            *expected += sums[0] + sums[1];
        }
    }
    let mut tried = 0;
    for isa in Bf16Isa::available().into_iter().filter(|isa| isa.adds_as_tiles()) {
        let mut out = vec![f32::NAN; rows * n];
        gemm_bf16_on(isa, &x, rows, &packed, &Epilogue::default(), &mut RowScratch::default(), &mut out);
        assert_eq!(out, expected, "{}", isa.name());
        tried += 1;
    }
    assert!(tried > 0 || !Isa::available()[0].fuses_multiply_add());
}

#[test]
fn bits_do_not_depend_on_rows_or_threads_nor_on_the_instruction_set_that_adds_as_tiles_do() {
    const ROWS: usize = 133;
    let pools: Vec<_> = [1, 2, 3].into_iter().map(pool).collect();
    let mut scratch = RowScratch::default();
    // A few of the shapes: all instruction sets take all row counts.
    for (shape, (n, k)) in MODEL_SHAPES.into_iter().enumerate().skip(1).step_by(3) {
        let (weights, bias) = (values(n * k, 11), values(n, 12));
        let (x, residual) = (values(ROWS * k, 13), values(ROWS * n, 14));
        let packed = PackedBf16::pack(&weights, n, k);
        let activation = ACTIVATIONS[shape % 5];
        let run = |isa: Bf16Isa, first: usize, rows: usize, scratch: &mut RowScratch, out: &mut [f32]| {
            let residual = Some(&residual[first * n..(first + rows) * n]);
            let epilogue = Epilogue { bias: Some(&bias), activation, residual };
            gemm_bf16_on(isa, &x[first * k..(first + rows) * k], rows, &packed, &epilogue, scratch, out);
        };
        let mut out = vec![f32::NAN; ROWS * n];
        let mut as_tiles: Option<Vec<f32>> = None;
        for isa in Bf16Isa::available() {
            let mut all = vec![f32::NAN; ROWS * n];
            pools[0].install(|| run(isa, 0, ROWS, &mut scratch, &mut all));
            for rows in (1..=ROWS).filter(|rows| *rows <= 5 || rows % 16 <= 1 || *rows == 133) {
                let (first, threads) = ((rows * 7) % (ROWS - rows + 1), 1 + rows % 3);
                let out = &mut out[..rows * n];
                out.fill(f32::NAN);
                pools[threads - 1].install(|| run(isa, first, rows, &mut scratch, out));
                let same = out.iter().zip(&all[first * n..]).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "{} [{n}, {k}], rows {first}..{}, {threads} threads", isa.name(), first + rows);
            }
            if isa.adds_as_tiles() {
                let first = as_tiles.get_or_insert_with(|| all.clone());
                assert!(all.iter().zip(first).all(|(a, b)| a.to_bits() == b.to_bits()), "{} [{n}, {k}]", isa.name());
            }
        }
    }
}

#[test]
fn nan_and_infinity_reach_exactly_the_outputs_they_concern() {
    let (rows, n, k) = (6, 70, 40);
    for isa in Bf16Isa::available() {
        for poison in [f32::NAN, f32::INFINITY] {
            let (mut x, mut weights) = (values(rows * k, 15), values(n * k, 16));
            x[2 * k + 11] = poison;
            weights[69 * k + 3] = poison;
            let packed = PackedBf16::pack(&weights, n, k);
            let mut out = vec![0.0; rows * n];
            let epilogue = Epilogue { activation: Activation::None, ..Epilogue::default() };
            gemm_bf16_on(isa, &x, rows, &packed, &epilogue, &mut RowScratch::default(), &mut out);
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
fn packing_is_half_of_the_size() {
    let packed = PackedBf16::pack(&values(33 * 64, 22), 33, 64);
    assert_eq!((packed.n(), packed.k(), packed.bytes()), (33, 64, 64 * 64 * 2));
    // Padded to whole matrix tiles.
    assert_eq!(PackedBf16::pack(&values(33 * 5, 22), 33, 5).bytes(), 64 * 32 * 2);
}
