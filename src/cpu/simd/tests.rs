use super::*;
use crate::check::{Tolerance, compare};
use crate::cpu::philox::philox;

/// A reproducible stream of values that are neither symmetric nor of one magnitude.
fn values(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 24) as f32
    };
    (0..len).map(|i| (next() - 0.3) * if i % 37 == 5 { 40.0 } else { 3.0 }).collect()
}

/// Around every boundary of the blocking, and the sizes that models have.
fn lengths() -> impl Iterator<Item = usize> {
    (0..=200).chain([251, 256, 257, 511, 512, 1023, 8001])
}

#[track_caller]
fn assert_close(actual: f32, expected: f64, tolerance: f64) {
    compare(&[actual], &[expected as f32], Tolerance::new(tolerance, tolerance)).unwrap();
}

#[test]
fn reductions_match_f64_sums() {
    for isa in Isa::available() {
        for len in lengths() {
            let (a, b) = (values(len, 1), values(len, 2));
            let wide = |x: &[f32]| x.iter().map(|&v| f64::from(v)).collect::<Vec<_>>();
            let (wa, wb) = (wide(&a), wide(&b));
            // Bounds follow the sum of magnitudes; a lane adds at most a sixteenth of the values one after the other.
            let bound = |terms: &[f64]| 1e-6 * terms.iter().map(|t| t.abs()).sum::<f64>() + 1e-30;
            let products: Vec<f64> = wa.iter().zip(&wb).map(|(x, y)| x * y).collect();
            assert_close(isa.dot(&a, &b), products.iter().sum(), bound(&products));
            assert_close(isa.sum(&a), wa.iter().sum(), bound(&wa));
            let squares: Vec<f64> = wa.iter().map(|x| (x - 0.75).powi(2)).collect();
            assert_close(isa.sum_sq_diff(&a, 0.75), squares.iter().sum(), bound(&squares));
            let exps: Vec<f64> = wa.iter().map(|x| (x - 3.5).exp()).collect();
            assert_close(isa.sum_exp(&a, 3.5), exps.iter().sum(), 3.0 * bound(&exps));
            let expected = a.iter().fold(f32::NEG_INFINITY, |m, &x| m.max(x));
            assert_eq!(isa.max(&a), expected, "{} len {len}", isa.name());
            let expected = a.iter().fold(0.0f32, |m, &x| m.max(x.abs()));
            assert_eq!(isa.max_abs(&a), expected, "{} len {len}", isa.name());
        }
    }
}

#[test]
fn elementwise_loops_match_the_formula() {
    for isa in Isa::available() {
        for len in lengths() {
            let (x, y, g) = (values(len, 3), values(len, 4), values(len, 5));
            let check = |name: &str, actual: &[f32], expected: Vec<f64>| {
                let expected: Vec<f32> = expected.into_iter().map(|v| v as f32).collect();
                compare(actual, &expected, Tolerance::new(2e-5, 1e-6))
                    .unwrap_or_else(|e| panic!("{name} {} len {len}: {e}", isa.name()));
            };
            let of = |f: &dyn Fn(f64, f64, f64) -> f64| -> Vec<f64> {
                (0..len).map(|i| f(x[i].into(), y[i].into(), g[i].into())).collect()
            };
            let mut out = y.clone();
            isa.axpy(1.25, &x, &mut out);
            check("axpy", &out, of(&|x, y, _| y + 1.25 * x));
            let mut out = y.clone();
            isa.add_in_place(&mut out, &x);
            check("add", &out, of(&|x, y, _| x + y));
            let mut out = y.clone();
            isa.scale(&mut out, -0.375);
            check("scale", &out, of(&|_, y, _| -0.375 * y));
            let mut out = vec![f32::NAN; len];
            out.copy_from_slice(&x);
            isa.normalize_in_place(&mut out, 0.5, 1.75, &g, &y);
            check("normalize", &out, of(&|x, y, g| (x - 0.5) * 1.75 * g + y));
        }
    }
}

#[test]
fn every_instruction_set_gives_the_same_bits() {
    let isas: Vec<Isa> = Isa::available().into_iter().filter(|isa| isa.fuses_multiply_add()).collect();
    let run = |isa: Isa, len: usize| -> Vec<u32> {
        let (x, y) = (values(len, 6), values(len, 7));
        let mut all = vec![isa.dot(&x, &y), isa.sum(&x), isa.sum_sq_diff(&x, 0.3), isa.sum_exp(&x, 2.0), isa.max(&x)];
        let mut each = x.clone();
        all.push(isa.exp_shift_in_place(&mut each, 2.0));
        all.append(&mut each);
        for activation in ACTIVATIONS {
            let mut each = x.clone();
            isa.activate(activation, &mut each);
            all.append(&mut each);
        }
        all.push(isa.max_abs(&x));
        // Which zero is the largest.
        let zeros =
            |positive: f32| x.iter().map(|x| if *x * positive > 0.0 { 0.0 } else { -0.0 }).collect::<Vec<f32>>();
        all.extend([1.0, -1.0].map(zeros).iter().flat_map(|zeros| [isa.max(zeros), isa.max_abs(zeros)]));
        let mut each = y.clone();
        isa.axpy(0.7, &x, &mut each);
        isa.scale(&mut each, 1.1);
        isa.add_in_place(&mut each, &x);
        all.append(&mut each);
        let mut each = vec![0.0; len];
        each.copy_from_slice(&x);
        isa.normalize_in_place(&mut each, 0.1, 2.2, &y, &x);
        all.append(&mut each);
        all.iter().map(|v| v.to_bits()).collect()
    };
    for len in lengths() {
        let expected = run(isas[0], len);
        for &isa in &isas[1..] {
            assert!(run(isa, len) == expected, "{} differs from {} at len {len}", isa.name(), isas[0].name());
        }
    }
}

#[test]
fn results_do_not_depend_on_the_address() {
    for isa in Isa::available() {
        let x = values(200, 8);
        for start in 1..16 {
            let mut moved = vec![f32::NAN; start];
            moved.extend_from_slice(&x);
            let view = &moved[start..];
            assert_eq!(isa.sum(view).to_bits(), isa.sum(&x).to_bits());
            assert_eq!(isa.dot(view, &x).to_bits(), isa.dot(&x, &x).to_bits());
        }
    }
}

#[test]
fn nan_and_infinity_propagate() {
    for isa in Isa::available() {
        assert_eq!(isa.max(&[]), f32::NEG_INFINITY);
        assert_eq!(isa.sum(&[]), 0.0);
        assert_eq!(isa.sum_exp(&[f32::NEG_INFINITY; 33], 1.0), 0.0);
        for len in [1, 15, 16, 17, 64, 65, 100, 257] {
            for at in (0..len).step_by(1 + len / 20) {
                let mut x = values(len, 9);
                x[at] = f32::INFINITY;
                assert_eq!(isa.max(&x), f32::INFINITY);
                assert_eq!(isa.sum_exp(&x, 0.0), f32::INFINITY);
                x[at] = f32::NEG_INFINITY;
                assert_eq!(isa.sum(&x), f32::NEG_INFINITY);
                x[at] = f32::NAN;
                assert!(isa.max_abs(&x).is_nan(), "{} len {len} at {at}", isa.name());
                assert!(isa.max(&x).is_nan(), "{} len {len} at {at}", isa.name());
                assert!(isa.sum(&x).is_nan() && isa.dot(&x, &x).is_nan() && isa.sum_exp(&x, 0.0).is_nan());
                for activation in ACTIVATIONS {
                    let mut y = x.clone();
                    isa.activate(activation, &mut y);
                    let nans: Vec<usize> = (0..len).filter(|&i| y[i].is_nan()).collect();
                    assert_eq!(nans, [at], "{activation:?}");
                }
            }
        }
    }
}

#[test]
fn exp_is_accurate_and_exactly_zero_at_minus_infinity() {
    for isa in Isa::available() {
        let mut worst = 0.0f64;
        for step in 0..2_000_003 {
            let x = -86.9 + step as f32 * (175.6 / 2_000_000.0);
            if x > 88.72 {
                break;
            }
            let mut y = [x];
            isa.exp_shift_in_place(&mut y, 0.0);
            let exact = f64::from(x).exp();
            let ulp = f64::from((exact as f32).next_up()) - f64::from(exact as f32);
            worst = worst.max((f64::from(y[0]) - exact).abs() / ulp);
        }
        println!("{}: worst error of exp {worst:.3} units in the last place", isa.name());
        assert!(worst < 1.5, "{}: {worst}", isa.name());
        let mut edges = [f32::NEG_INFINITY, -1e30, -87.0, 0.0, 88.8, 1e30, f32::INFINITY];
        let sum = isa.exp_shift_in_place(&mut edges, 0.0);
        assert_eq!(edges, [0.0, 0.0, 0.0, 1.0, f32::INFINITY, f32::INFINITY, f32::INFINITY]);
        assert_eq!(sum, f32::INFINITY);
    }
}

#[test]
fn the_sum_of_exponentials_is_one_number() {
    for len in lengths() {
        let mut x = values(len, 10);
        let separate = sum_exp(&x, 1.5);
        assert_eq!(exp_shift_in_place(&mut x, 1.5).to_bits(), separate.to_bits(), "len {len}");
    }
}

const ACTIVATIONS: [Activation; 5] =
    [Activation::None, Activation::Relu, Activation::Silu, Activation::GeluTanh, Activation::GeluErf];

#[test]
fn activations_are_within_their_stated_errors() {
    for isa in Isa::available() {
        for activation in ACTIVATIONS {
            let floor = if activation == Activation::GeluTanh { 1.0 } else { 1e-6 };
            let bound = if activation == Activation::GeluErf && !isa.fuses_multiply_add() { 1e-6 } else { 3e-7 };
            let mut worst = (0.0, 0.0);
            for step in 0..400_001 {
                let x = -20.0 + step as f32 * 1e-4;
                let mut y = [x];
                isa.activate(activation, &mut y);
                let exact = reference_activation(activation, x.into());
                let error = (f64::from(y[0]) - exact).abs() / exact.abs().max(floor);
                if error > worst.0 {
                    worst = (error, x);
                }
            }
            println!("{} {activation:?}: worst {:.2e} at {}", isa.name(), worst.0, worst.1);
            assert!(worst.0 < bound, "{} {activation:?}: {worst:?}", isa.name());
        }
    }
}

#[test]
fn scan_visits_what_a_loop_would() {
    for isa in Isa::available() {
        for len in lengths() {
            let mut x = values(len, 11);
            if len > 3 {
                (x[1], x[len / 2], x[len - 1]) = (f32::NAN, f32::INFINITY, 7.5);
            }
            for threshold in [f32::NEG_INFINITY, 0.0, 1.7, f32::INFINITY, f32::NAN] {
                for from in [0, 1, len / 3, len].into_iter().filter(|&from| from <= len) {
                    let expected = (from..len).find(|&i| x[i] > threshold).unwrap_or(len);
                    assert_eq!(isa.position_above(&x, from, threshold), expected);
                }
            }
        }
    }
}

#[test]
fn scan_keeps_the_best_when_the_threshold_rises() {
    for len in lengths() {
        let x = values(len, 12);
        let mut best: Vec<(usize, f32)> = Vec::new();
        let mut visits = 0;
        scan_above(&x, f32::NEG_INFINITY, |index, value| {
            visits += 1;
            let at = best.partition_point(|&(_, kept)| kept >= value);
            best.insert(at, (index, value));
            best.truncate(5);
            if best.len() < 5 { f32::NEG_INFINITY } else { best[4].1 }
        });
        let mut sorted: Vec<(usize, f32)> = x.iter().copied().enumerate().collect();
        sorted.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        sorted.truncate(5);
        assert_eq!(best, sorted, "len {len}");
        assert!(len < 1000 || visits < len / 10, "{visits} visits for {len} values");
    }
}

#[test]
fn sums_of_masses_are_exact() {
    for isa in Isa::available() {
        for len in lengths() {
            let mut z = values(len, 21);
            z.iter_mut().step_by(11).for_each(|z| *z = f32::NEG_INFINITY);
            for (max, inverse_temperature) in [(5.0, 1.0), (60.0, 0.4), (35.0, 3.0)] {
                let x = |z: &f32| ((z - max) * inverse_temperature).min(0.0);
                let expected: u64 = z.iter().map(|z| portable_math::mass(x(z))).sum();
                assert_eq!(isa.sum_masses(&z, max, inverse_temperature), expected, "{isa:?}, len {len}, max {max}");
            }
        }
    }
}

#[test]
fn random_words_are_those_of_one_counter_after_the_other() {
    for isa in Isa::available() {
        // The last word runs over.
        for (key, counter) in [(0, [0; 4]), (0x0123_4567_89ab_cdef, [7, u32::MAX, 2, u32::MAX - 5])] {
            let words = isa.random_words(key, counter);
            for i in 0..LANES {
                let [a, b, c, d] = counter;
                let one = philox(key, [a, b, c, d.wrapping_add(i as u32)]);
                assert_eq!(words.map(|word| word[i]), one, "{isa:?}, counter {i}");
            }
        }
    }
}

#[test]
fn rounding_is_to_the_nearest_ties_to_even_and_flushes_what_is_subnormal() {
    let numbers =
        (0..=u32::MAX).step_by(65_521).chain([0, 1 << 31, 0x007f_ffff, 0x0080_0000, 0x7f80_0000, 0xff80_0000]);
    let x: Vec<f32> = numbers.map(f32::from_bits).collect();
    for x in &x {
        let expected =
            if x.is_subnormal() { half::bf16::from_f32(0f32.copysign(*x)) } else { half::bf16::from_f32(*x) };
        if x.is_nan() {
            assert!(half::bf16::from_bits(bf16_bits(*x)).is_nan(), "{:x}", x.to_bits());
        } else {
            assert_eq!(bf16_bits(*x), expected.to_bits(), "{:x}", x.to_bits());
        }
    }
    let expected: Vec<u16> = x.iter().map(|x| bf16_bits(*x)).collect();
    for isa in Isa::available() {
        for len in [x.len(), x.len() / LANES * LANES, LANES + 1, LANES - 1] {
            let mut out = vec![0; len];
            isa.to_bf16(&x[..len], &mut out);
            assert!(out == expected[..len], "{isa:?}, len {len}");
        }
    }
}

#[test]
fn lanes_folded_side_by_side_are_those_of_each() {
    #[inline(always)]
    fn both<S: Simd>(s: S, x: &[[f32; LANES]; LANES], together: &mut [[f32; LANES]; 2], apart: &mut [[f32; LANES]; 2]) {
        let vectors = x.map(|lanes| s.load(&lanes));
        *together = [s.to_array(s.sum_lanes_of_each(&vectors)), s.to_array(s.largest_lane_of_each(&vectors))];
        *apart = [vectors.map(|v| s.sum_lanes(v)), vectors.map(|v| s.largest_lane(v))];
    }
    let value = |i: usize| ((i * 7919 + 31) % 1009) as f32 * 0.37 - 170.0;
    let mut x: [[f32; LANES]; LANES] = std::array::from_fn(|i| std::array::from_fn(|j| value(16 * i + j)));
    x[3][9] = f32::NAN;
    x[5] = [f32::NEG_INFINITY; LANES];
    x[6] = std::array::from_fn(|j| if j % 2 == 0 { 0.0 } else { -0.0 });
    for isa in Isa::available() {
        let (mut together, mut apart) = ([[0.0; LANES]; 2], [[1.0; LANES]; 2]);
        let (x, to, of_each) = (&x, &mut together, &mut apart);
        dispatch!(isa, both, (x: &[[f32; LANES]; LANES], to: &mut [[f32; LANES]; 2], of_each: &mut [[f32; LANES]; 2]));
        crate::check::assert_same_bits(together.as_flattened(), apart.as_flattened());
    }
}

#[test]
fn softmax_of_many_rows_is_that_of_each() {
    for isa in Isa::available() {
        for len in lengths().filter(|len| *len > 0) {
            let mut rows = values(19 * len, 9);
            rows[4 * len] = f32::NAN;
            rows[5 * len..6 * len].fill(f32::NEG_INFINITY);
            let mut expected = rows.clone();
            for row in expected.chunks_exact_mut(len) {
                let max = isa.max(row);
                let sum = isa.exp_shift_in_place(row, max);
                isa.scale(row, 1.0 / sum);
            }
            isa.softmax_of_each(&mut rows, len);
            crate::check::assert_same_bits(&rows, &expected);
        }
        isa.softmax_of_each(&mut [], 0);
    }
}
