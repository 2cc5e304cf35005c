use super::super::reference;
use super::super::tests::{ACTIVATIONS, MODEL_SHAPES, pool, values};
use super::*;
use crate::backend::Activation;
use crate::check::{Tolerance, compare};

#[test]
fn matches_the_reference_on_odd_shapes() {
    let mut scratch = RowScratch::default();
    for isa in Int8Isa::available() {
        for (n, k) in [(1, 1), (7, 1), (31, 13), (32, 32), (33, 5), (67, 131), (130, 257), (290, 64), (5, 0)] {
            for rows in [0, 1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 16, 17, 24, 25, 33, 53, 97] {
                let (x, weights, bias) = (values(rows * k, 1), values(n * k, 2), values(n, 3));
                let residual = values(rows * n, 4);
                let packed = PackedInt8::pack(&weights, n, k);
                let activation = ACTIVATIONS[(rows + n) % 5];
                let epilogue = Epilogue { bias: Some(&bias), activation, residual: Some(&residual) };
                let (mut expected, mut out) = (vec![0.0; rows * n], vec![f32::NAN; rows * n]);
                reference_int8(&x, rows, &weights, n, k, &epilogue, &mut expected);
                gemm_int8_on(isa, &x, rows, &packed, &epilogue, &mut scratch, &mut out);
                // The integers are exact: what remains is the rounding of a few f32 operations.
                compare(&out, &expected, Tolerance::new(1e-5, 1e-6))
                    .unwrap_or_else(|e| panic!("{} [{rows}, {k}] x [{n}, {k}]: {e}", isa.name()));
            }
        }
    }
}

#[test]
fn matches_the_reference_with_every_epilogue() {
    let (rows, n, k) = (5, 71, 37);
    let (x, weights, bias, residual) = (values(rows * k, 5), values(n * k, 6), values(n, 7), values(rows * n, 8));
    let packed = PackedInt8::pack(&weights, n, k);
    let mut scratch = RowScratch::default();
    for isa in Int8Isa::available() {
        for activation in ACTIVATIONS {
            for bias in [None, Some(bias.as_slice())] {
                for residual in [None, Some(residual.as_slice())] {
                    let epilogue = Epilogue { bias, activation, residual };
                    let (mut expected, mut out) = (vec![0.0; rows * n], vec![f32::NAN; rows * n]);
                    reference_int8(&x, rows, &weights, n, k, &epilogue, &mut expected);
                    gemm_int8_on(isa, &x, rows, &packed, &epilogue, &mut scratch, &mut out);
                    compare(&out, &expected, Tolerance::new(3e-6, 1e-6))
                        .unwrap_or_else(|e| panic!("{} {activation:?}: {e}", isa.name()));
                }
            }
        }
    }
}

/// The error against the unquantised product is what rounding to steps of max / 127 allows: per product at most
/// |x| dw / 2 + |w| dx / 2 + dx dw / 4 with steps dx and dw.
#[test]
fn the_quantisation_error_is_within_its_bound() {
    let (rows, n, k) = (9, 45, 512);
    let (x, weights) = (values(rows * k, 9), values(n * k, 10));
    let (mut exact, mut out) = (vec![0.0; rows * n], vec![f32::NAN; rows * n]);
    reference(&x, rows, &weights, n, k, &Epilogue::default(), &mut exact);
    let packed = PackedInt8::pack(&weights, n, k);
    gemm_int8(&x, rows, &packed, &Epilogue::default(), &mut RowScratch::default(), &mut out);
    let largest = |v: &[f32]| v.iter().fold(0.0f64, |m, &v| m.max(f64::from(v).abs()));
    let total = |v: &[f32]| v.iter().map(|&v| f64::from(v).abs()).sum::<f64>();
    let mut differ = 0;
    for row in 0..rows {
        for column in 0..n {
            let (vx, vw) = (&x[row * k..(row + 1) * k], &weights[column * k..(column + 1) * k]);
            let (dx, dw) = (largest(vx) / 127.0, largest(vw) / 127.0);
            let bound = (total(vx) * dw + total(vw) * dx) / 2.0 + k as f64 * dx * dw / 4.0;
            let error = f64::from(out[row * n + column] - exact[row * n + column]).abs();
            assert!(error <= bound * 1.0001, "({row}, {column}): {error} > {bound}");
            differ += usize::from(error > 0.0);
        }
    }
    assert!(differ > rows * n / 2, "nothing was quantised");
}

#[test]
fn extreme_sums_are_exact() {
    let k = 4096;
    let mut scratch = RowScratch::default();
    for isa in Int8Isa::available() {
        for (sign_x, sign_w) in [(1.0, 1.0), (1.0, -1.0), (-1.0, 1.0), (-1.0, -1.0)] {
            let packed = PackedInt8::pack(&vec![sign_w * 127.0; 3 * k], 3, k);
            let mut out = [f32::NAN; 3];
            gemm_int8_on(isa, &vec![sign_x * 127.0; k], 1, &packed, &Epilogue::default(), &mut scratch, &mut out);
            assert_eq!(out, [sign_x * sign_w * (127 * 127 * k) as f32; 3], "{}", isa.name());
        }
    }
}

#[test]
fn bits_do_not_depend_on_rows_threads_or_instruction_set() {
    const ROWS: usize = 300;
    let pools: Vec<_> = [1, 2, 3].into_iter().map(pool).collect();
    let mut scratch = RowScratch::default();
    for (shape, (n, k)) in MODEL_SHAPES.into_iter().enumerate() {
        let (weights, bias) = (values(n * k, 11), values(n, 12));
        let (x, residual) = (values(ROWS * k, 13), values(ROWS * n, 14));
        let packed = PackedInt8::pack(&weights, n, k);
        let activation = ACTIVATIONS[shape % 5];
        let run = |isa: Int8Isa, first: usize, rows: usize, scratch: &mut RowScratch, out: &mut [f32]| {
            let residual = Some(&residual[first * n..(first + rows) * n]);
            let epilogue = Epilogue { bias: Some(&bias), activation, residual };
            gemm_int8_on(isa, &x[first * k..(first + rows) * k], rows, &packed, &epilogue, scratch, out);
        };
        let mut all = vec![f32::NAN; ROWS * n];
        pools[0].install(|| run(Int8Isa::best(), 0, ROWS, &mut scratch, &mut all));
        let mut out = vec![f32::NAN; ROWS * n];
        let mut check = |isa: Int8Isa, threads: usize, first: usize, rows: usize| {
            let out = &mut out[..rows * n];
            out.fill(f32::NAN);
            pools[threads - 1].install(|| run(isa, first, rows, &mut scratch, out));
            let same = out.iter().zip(&all[first * n..]).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same, "{} [{n}, {k}], rows {first}..{}, {threads} threads", isa.name(), first + rows);
        };
        let every = if n * k <= 256 * 256 { 1 } else { 23 };
        for rows in (1..=ROWS).filter(|rows| *rows <= 26 || rows % every == 0) {
            check(Int8Isa::best(), 1 + rows % 3, (rows * 7) % (ROWS - rows + 1), rows);
        }
        // Integer sums are exact everywhere; only the smooth activations need fused multiply-add to agree.
        let smooth = !matches!(activation, Activation::None | Activation::Relu);
        for isa in Int8Isa::available().into_iter().filter(|isa| !smooth || isa.lanes().fuses_multiply_add()) {
            for rows in [1, 2, 3, 4, 5, 7, 13, 16, 17, 29, 33, 127] {
                check(isa, 1 + rows % 3, ROWS - rows, rows);
            }
        }
        for threads in [1, 2, 3] {
            check(Int8Isa::best(), threads, 0, ROWS);
        }
    }
}

#[test]
fn what_cannot_be_quantised_is_nan_and_nothing_else_is() {
    let (rows, n, k) = (6, 70, 40);
    for isa in Int8Isa::available() {
        for poison in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let (mut x, mut weights) = (values(rows * k, 15), values(n * k, 16));
            x[2 * k + 11] = poison;
            weights[69 * k + 3] = poison;
            let packed = PackedInt8::pack(&weights, n, k);
            let mut out = vec![0.0; rows * n];
            let epilogue = Epilogue { activation: Activation::Relu, ..Epilogue::default() };
            gemm_int8_on(isa, &x, rows, &packed, &epilogue, &mut RowScratch::default(), &mut out);
            for row in 0..rows {
                for column in 0..n {
                    let hit = row == 2 || column == 69;
                    assert_eq!(out[row * n + column].is_nan(), hit, "{} ({row}, {column})", isa.name());
                }
            }
        }
    }
}

#[test]
fn zeros_and_tiny_rows_give_the_bias() {
    let (n, k) = (3, 9);
    let packed = PackedInt8::pack(&values(n * k, 17), n, k);
    for fill in [0.0, -0.0, 1e-40, -9e-36] {
        let mut out = [f32::NAN; 3];
        let epilogue = Epilogue { bias: Some(&[1.0, -2.0, 3.0]), ..Epilogue::default() };
        gemm_int8(&[fill; 9], 1, &packed, &epilogue, &mut RowScratch::default(), &mut out);
        assert_eq!(out, [1.0, -2.0, 3.0]);
    }
}

#[test]
fn the_scratch_is_not_remembered() {
    let (n, k) = (40, 30);
    let packed = PackedInt8::pack(&values(n * k, 18), n, k);
    let x = values(2 * k, 19);
    let (mut fresh, mut used) = (vec![0.0; 2 * n], vec![0.0; 2 * n]);
    gemm_int8(&x, 2, &packed, &Epilogue::default(), &mut RowScratch::default(), &mut fresh);
    let mut scratch = RowScratch::default();
    let larger = PackedInt8::pack(&values(5 * 333, 20), 5, 333);
    gemm_int8(&values(7 * 333, 21), 7, &larger, &Epilogue::default(), &mut scratch, &mut [0.0; 35]);
    gemm_int8(&x, 2, &packed, &Epilogue::default(), &mut scratch, &mut used);
    assert_eq!(fresh, used);
}

#[test]
fn packing_is_a_quarter_of_the_size() {
    let packed = PackedInt8::pack(&values(33 * 64, 22), 33, 64);
    assert_eq!((packed.n(), packed.k(), packed.bytes()), (33, 64, 64 * 64 + 64 * 8));
    // Padded to whole matrix tiles.
    assert_eq!(PackedInt8::pack(&values(33 * 5, 22), 33, 5).bytes(), 64 * 64 + 64 * 8);
}
