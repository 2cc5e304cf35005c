//! Loops over f32 slices that layer norm, attention, softmax and beam search are built from.
//!
//! Numerics: sums run in four accumulators of sixteen lanes over blocks of 64 values, then in the first of them over blocks of
//! 16, then over a padded rest, and end in a fixed tree. A result therefore depends on the slice alone: not on its address,
//! on what is computed around it, or on the instruction set (where that fuses multiply and add, see
//! [`Isa::fuses_multiply_add`]).

pub(in crate::cpu) mod lanes;

pub use lanes::Isa;

pub(in crate::cpu) use lanes::LANES;

use super::philox::philox_each;
use super::portable_math;
use crate::backend::Activation;
use lanes::{Simd, bf16_bits, dispatch, prefetch_line};

/// For each line, a method of [`Isa`] that runs `body` on that instruction set, and a function that runs it on the best one.
macro_rules! primitives {
    ($($(#[$doc:meta])* $name:ident = $body:ident($($arg:ident: $ty:ty),*) $(-> $ret:ty)?;)*) => {
        impl Isa {
            $(
                #[doc = concat!("[`", stringify!($name), "`] on this instruction set.")]
                #[inline]
                pub fn $name(self, $($arg: $ty),*) $(-> $ret)? {
                    dispatch!(self, $body, ($($arg: $ty),*) $(-> $ret)?)
                }
            )*
        }
        $(
            $(#[$doc])*
            #[inline]
            pub fn $name($($arg: $ty),*) $(-> $ret)? {
                Isa::best().$name($($arg),*)
            }
        )*
    };
}

primitives! {
    /// The dot product of two slices of one length.
    dot = dot_body(a: &[f32], b: &[f32]) -> f32;
    /// `y += alpha * x`, each element rounded once.
    axpy = axpy_body(alpha: f32, x: &[f32], y: &mut [f32]);
    /// `x *= factor`.
    scale = scale_body(x: &mut [f32], factor: f32);
    /// `y += x`.
    add_in_place = add_body(y: &mut [f32], x: &[f32]);
    /// The largest value; NaN if any is NaN, -inf if there is none.
    max = max_body(x: &[f32]) -> f32;
    /// The largest magnitude; NaN if any value is NaN, 0 if there is none.
    max_abs = max_abs_body(x: &[f32]) -> f32;
    /// The sum.
    sum = sum_body(x: &[f32]) -> f32;
    /// The sum of `(x - mean)^2`.
    sum_sq_diff = sum_sq_diff_body(x: &[f32], mean: f32) -> f32;
    /// The sum of `exp(x - shift)`, with the `exp` of [`exp_shift_in_place`].
    sum_exp = sum_exp_body(x: &[f32], shift: f32) -> f32;
    /// The sum of `exp(x - shift) * (x - shift)`, with the `exp` of [`exp_shift_in_place`]; -infinity adds nothing.
    sum_exp_times = sum_exp_times_body(x: &[f32], shift: f32) -> f32;
    /// Replaces x by `exp(x - shift)` and returns the sum of the results.
    ///
    /// The exponential is within 1.5 units in the last place of its argument's, and exactly 0 where `x - shift < -86.9` (where
    /// it is below 2e-38), so that no subnormal number appears.
    exp_shift_in_place = exp_shift_body(x: &mut [f32], shift: f32) -> f32;
    /// Replaces each row of `len` values by its softmax: by [`max`], [`exp_shift_in_place`] and [`scale`], with the same bits.
    softmax_of_each = softmax_of_each_body(rows: &mut [f32], len: usize);
    /// Applies the activation to each element.
    ///
    /// The result f(x) is within `3e-7 * max(|f(x)|, 1e-6)` for SiLU and the erf form of GELU (1e-6 on a CPU without fused
    /// multiply-add), and within `3e-7 * max(|f(x)|, 1)` for the tanh form, whose left tail magnifies rounding.
    /// NaN stays NaN; at -inf the smooth ones are NaN, as 0 * inf is.
    activate = activate_body(activation: Activation, x: &mut [f32]);
    /// `y *= x`.
    multiply_in_place = multiply_body(y: &mut [f32], x: &[f32]);
    /// The last pass of layer normalisation: `x = (x - mean) * inv_std * gain + bias`, all slices of one length.
    normalize_in_place = normalize_body(x: &mut [f32], mean: f32, inv_std: f32, gain: &[f32], bias: &[f32]);
    /// Rounds to bf16, ties to even; NaN stays NaN, subnormal numbers become zero.
    to_bf16 = to_bf16_body(x: &[f32], out: &mut [u16]);
    /// The first index at or after `from` whose value is greater than `threshold`, or the length if there is none.
    position_above = position_above_body(x: &[f32], from: usize, threshold: f32) -> usize;
    /// As [`portable_math::sum_masses`].
    sum_masses = sum_masses_body(z: &[f32], max: f32, inverse_temperature: f32) -> u64;
    /// Random words, as [`philox_each`].
    random_words = random_words_body(key: u64, counter: [u32; 4]) -> [[u32; LANES]; 4];
}

/// Calls `keep(index, value)` for each `x[index] > threshold` in index order. `keep` returns the threshold that holds from
/// the next index on, so a top-k collector raises it to its worst kept value. NaN is never above anything.
#[inline]
pub fn scan_above(x: &[f32], mut threshold: f32, mut keep: impl FnMut(usize, f32) -> f32) {
    let isa = Isa::best();
    let mut index = isa.position_above(x, 0, threshold);
    while index < x.len() {
        threshold = keep(index, x[index]);
        index = isa.position_above(x, index + 1, threshold);
    }
}

/// Folds slices of one length, given as `[x, y, ...]`, into one `f32` in the order that the module's documentation describes.
/// `$fill` pads each slice's rest, `$lanes` gives the result of the sixteen lanes. Macros rather than closures, since a closure would not
/// inherit the instruction set.
macro_rules! fold {
    ($s:ident, [$($x:ident = $fill:expr),+], $init:expr, |$acc:ident $(, $v:ident)+| $step:expr, $combine:ident, $lanes:ident) => {{
        let mut accumulators = [$s.splat($init); 4];
        $(let ($v, $x) = $x.as_chunks::<LANES>();)+
        let chunks = [$($v.len()),+][0];
        let in_blocks = chunks / 4 * 4;
        for block in (0..in_blocks).step_by(4) {
            for i in 0..4 {
                $(let $v = $s.load(&$v[block + i]);)+
                let $acc = accumulators[i];
                accumulators[i] = $step;
            }
        }
        for single in in_blocks..chunks {
            $(let $v = $s.load(&$v[single]);)+
            let $acc = accumulators[0];
            accumulators[0] = $step;
        }
        if ![$($x.is_empty()),+][0] {
            $(let $v = $s.load_partial($x, $fill);)+
            let $acc = accumulators[0];
            accumulators[0] = $step;
        }
        let [a, b, c, d] = accumulators;
        $lanes($s, $combine($s, $combine($s, a, b), $combine($s, c, d)))
    }};
}

/// Replaces each element of `y` by an expression of it and of the elements of further slices of the same length.
macro_rules! map {
    ($s:ident, $y:ident, |$v:ident $(, $w:ident = $x:ident)*| $e:expr) => {{
        let (chunks, rest) = $y.as_chunks_mut::<LANES>();
        $(let ($w, $x) = $x.as_chunks::<LANES>();)*
        for i in 0..chunks.len() {
            let $v = $s.load(&chunks[i]);
            $(let $w = $s.load(&$w[i]);)*
            $s.store($e, &mut chunks[i]);
        }
        if !rest.is_empty() {
            let $v = $s.load_partial(rest, 0.0);
            $(let $w = $s.load_partial($x, 0.0);)*
            $s.store_partial($e, rest);
        }
    }};
}

#[inline(always)]
fn plus<S: Simd>(s: S, a: S::V, b: S::V) -> S::V {
    s.add(a, b)
}

#[inline(always)]
fn larger<S: Simd>(s: S, seen: S::V, v: S::V) -> S::V {
    s.larger(seen, v)
}

#[inline(always)]
fn sum_lanes<S: Simd>(s: S, v: S::V) -> f32 {
    s.sum_lanes(v)
}

#[inline(always)]
fn as_it_is<S: Simd>(_: S, v: S::V) -> S::V {
    v
}

#[inline(always)]
fn largest_lane<S: Simd>(s: S, v: S::V) -> f32 {
    s.largest_lane(v)
}

#[inline(always)]
pub(in crate::cpu) fn dot_body<S: Simd>(s: S, a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "dot: lengths differ");
    fold!(s, [a = 0.0, b = 0.0], 0.0, |acc, x, y| s.mul_add(x, y, acc), plus, sum_lanes)
}

#[inline(always)]
pub(in crate::cpu) fn to_bf16_body<S: Simd>(s: S, x: &[f32], out: &mut [u16]) {
    assert_eq!(x.len(), out.len(), "to_bf16: lengths differ");
    let ((chunks, rest), (narrow, narrow_rest)) = (x.as_chunks::<LANES>(), out.as_chunks_mut::<LANES>());
    for (i, narrow) in narrow.iter_mut().enumerate() {
        *narrow = s.to_bf16(s.load(&chunks[i]));
    }
    for (i, bits) in narrow_rest.iter_mut().enumerate() {
        *bits = bf16_bits(rest[i]);
    }
}

/// What attention reads, in the type that it is stored in.
pub(in crate::cpu) trait Stored: Copy {
    /// Sixteen of them.
    fn load<S: Simd>(s: S, x: &[Self; LANES]) -> S::V;
    /// Up to sixteen, zeros behind them.
    fn load_partial<S: Simd>(s: S, x: &[Self]) -> S::V;
}

impl Stored for f32 {
    #[inline(always)]
    fn load<S: Simd>(s: S, x: &[f32; LANES]) -> S::V {
        s.load(x)
    }

    #[inline(always)]
    fn load_partial<S: Simd>(s: S, x: &[f32]) -> S::V {
        s.load_partial(x, 0.0)
    }
}

/// bf16, by its bits.
impl Stored for u16 {
    #[inline(always)]
    fn load<S: Simd>(s: S, x: &[u16; LANES]) -> S::V {
        s.load_bf16(x)
    }

    #[inline(always)]
    fn load_partial<S: Simd>(s: S, x: &[u16]) -> S::V {
        let mut padded = [0; LANES];
        padded[..x.len()].copy_from_slice(x);
        s.load_bf16(&padded)
    }
}

/// Asks for values that are read soon.
#[inline(always)]
pub(in crate::cpu) fn prefetch<T>(values: &[T]) {
    for line in 0..size_of_val(values).div_ceil(64) {
        prefetch_line(values.as_ptr().cast::<u8>().wrapping_add(64 * line));
    }
}

/// The dot products of some slices with one before their lanes are summed: `dot = sum_lanes(dot_lanes)`, with the same bits.
#[inline(always)]
pub(in crate::cpu) fn dot_lanes_body<S: Simd, E: Stored, const N: usize>(s: S, a: [&[f32]; N], b: &[E]) -> [S::V; N] {
    let mut sums = [[s.splat(0.0); 4]; N];
    let (chunks, rest) = b.as_chunks::<LANES>();
    let in_blocks = chunks.len() / 4 * 4;
    for block in (0..in_blocks).step_by(4) {
        let mut values = [s.splat(0.0); 4];
        for (i, value) in values.iter_mut().enumerate() {
            *value = E::load(s, &chunks[block + i]);
        }
        for (row, sums) in sums.iter_mut().enumerate() {
            let a = &a[row].as_chunks::<LANES>().0[block..block + 4];
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = s.mul_add(s.load(&a[i]), values[i], *sum);
            }
        }
    }
    for (single, chunk) in chunks.iter().enumerate().skip(in_blocks) {
        let value = E::load(s, chunk);
        for (row, sums) in sums.iter_mut().enumerate() {
            sums[0] = s.mul_add(s.load(&a[row].as_chunks::<LANES>().0[single]), value, sums[0]);
        }
    }
    if !rest.is_empty() {
        let value = E::load_partial(s, rest);
        for (row, sums) in sums.iter_mut().enumerate() {
            let a = &a[row][chunks.len() * LANES..][..rest.len()];
            sums[0] = s.mul_add(s.load_partial(a, 0.0), value, sums[0]);
        }
    }
    let mut lanes = [s.splat(0.0); N];
    for (row, lanes) in lanes.iter_mut().enumerate() {
        let [a, b, c, d] = sums[row];
        *lanes = s.add(s.add(a, b), s.add(c, d));
    }
    lanes
}

#[inline(always)]
fn axpy_body<S: Simd>(s: S, alpha: f32, x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "axpy: lengths differ");
    let alpha = s.splat(alpha);
    map!(s, y, |v, w = x| s.mul_add(alpha, w, v));
}

#[inline(always)]
pub(in crate::cpu) fn scale_body<S: Simd>(s: S, x: &mut [f32], factor: f32) {
    let factor = s.splat(factor);
    map!(s, x, |v| s.mul(v, factor));
}

#[inline(always)]
pub(in crate::cpu) fn add_body<S: Simd>(s: S, y: &mut [f32], x: &[f32]) {
    assert_eq!(x.len(), y.len(), "add_in_place: lengths differ");
    map!(s, y, |v, w = x| s.add(v, w));
}

#[inline(always)]
pub(in crate::cpu) fn multiply_body<S: Simd>(s: S, y: &mut [f32], x: &[f32]) {
    assert_eq!(x.len(), y.len(), "multiply_in_place: lengths differ");
    map!(s, y, |v, w = x| s.mul(v, w));
}

#[inline(always)]
fn max_body<S: Simd>(s: S, x: &[f32]) -> f32 {
    s.largest_lane(max_to_lanes_body(s, x))
}

#[inline(always)]
pub(in crate::cpu) fn max_abs_body<S: Simd>(s: S, x: &[f32]) -> f32 {
    fold!(s, [x = 0.0], 0.0, |acc, v| s.larger_magnitude(acc, v), larger, largest_lane)
}

#[inline(always)]
pub(in crate::cpu) fn sum_body<S: Simd>(s: S, x: &[f32]) -> f32 {
    s.sum_lanes(sum_to_lanes_body(s, x))
}

#[inline(always)]
pub(in crate::cpu) fn sum_sq_diff_body<S: Simd>(s: S, x: &[f32], mean: f32) -> f32 {
    let m = s.splat(mean);
    fold!(
        s,
        [x = mean],
        0.0,
        |acc, v| {
            let difference = s.sub(v, m);
            s.mul_add(difference, difference, acc)
        },
        plus,
        sum_lanes
    )
}

#[inline(always)]
#[expect(unused_assignments, reason = "nothing comes behind the last step of a fold")]
fn sum_exp_body<S: Simd>(s: S, x: &[f32], shift: f32) -> f32 {
    let by = s.splat(shift);
    // Rows of logits lie one behind another and fill more than the second-level cache: the next one arrives while this one's
    // exponentials are computed.
    let mut behind = x.as_ptr_range().end.cast::<u8>();
    fold!(
        s,
        [x = f32::NEG_INFINITY],
        0.0,
        |acc, v| {
            prefetch_line(behind);
            behind = behind.wrapping_add(64);
            s.add(acc, exp(s, s.sub(v, by)))
        },
        plus,
        sum_lanes
    )
}

#[inline(always)]
fn sum_exp_times_body<S: Simd>(s: S, x: &[f32], shift: f32) -> f32 {
    let by = s.splat(shift);
    fold!(
        s,
        [x = f32::NEG_INFINITY],
        0.0,
        |acc, v| {
            let below = s.sub(v, by);
            // Where the exponential is 0 a finite factor keeps the product from being NaN.
            s.mul_add(exp(s, below), s.max(s.splat(-100.0), below), acc)
        },
        plus,
        sum_lanes
    )
}

#[inline(always)]
fn exp_shift_body<S: Simd>(s: S, x: &mut [f32], shift: f32) -> f32 {
    let by = s.splat(shift);
    map!(s, x, |v| exp(s, s.sub(v, by)));
    sum_body(s, x)
}

/// Replaces each row of `len` values by its softmax. Sixteen rows take each step at a time: none of them waits for its own last one.
#[inline(always)]
pub(in crate::cpu) fn softmax_of_each_body<S: Simd>(s: S, rows: &mut [f32], len: usize) {
    for rows in rows.chunks_mut(LANES * len.max(1)) {
        let mut lanes = [s.splat(0.0); LANES];
        for (i, row) in rows.chunks_exact(len).enumerate() {
            lanes[i] = max_to_lanes_body(s, row);
        }
        let max = s.to_array(s.largest_lane_of_each(&lanes));
        for (i, row) in rows.chunks_exact_mut(len).enumerate() {
            let by = s.splat(max[i]);
            map!(s, row, |v| exp(s, s.sub(v, by)));
            lanes[i] = sum_to_lanes_body(s, row);
        }
        let factors = s.to_array(s.div(s.splat(1.0), s.sum_lanes_of_each(&lanes)));
        for (i, row) in rows.chunks_exact_mut(len).enumerate() {
            scale_body(s, row, factors[i]);
        }
    }
}

/// The values of [`max_body`] in its lanes: `max = largest_lane(max_to_lanes)`.
#[inline(always)]
fn max_to_lanes_body<S: Simd>(s: S, x: &[f32]) -> S::V {
    fold!(s, [x = f32::NEG_INFINITY], f32::NEG_INFINITY, |acc, v| larger(s, acc, v), larger, as_it_is)
}

/// The sums of [`sum_body`] in its lanes: `sum = sum_lanes(sum_to_lanes)`.
#[inline(always)]
fn sum_to_lanes_body<S: Simd>(s: S, x: &[f32]) -> S::V {
    fold!(s, [x = 0.0], 0.0, |acc, v| s.add(acc, v), plus, as_it_is)
}

#[inline(always)]
pub(in crate::cpu) fn activate_body<S: Simd>(s: S, activation: Activation, x: &mut [f32]) {
    match activation {
        Activation::None => {}
        Activation::Relu => map!(s, x, |v| activate_vector(s, Activation::Relu, v)),
        Activation::Silu => map!(s, x, |v| activate_vector(s, Activation::Silu, v)),
        Activation::GeluTanh => map!(s, x, |v| activate_vector(s, Activation::GeluTanh, v)),
        Activation::GeluErf => map!(s, x, |v| activate_vector(s, Activation::GeluErf, v)),
    }
}

/// [`activate`] for one vector.
#[inline(always)]
pub(in crate::cpu) fn activate_vector<S: Simd>(s: S, activation: Activation, v: S::V) -> S::V {
    let one = s.splat(1.0);
    match activation {
        Activation::None => v,
        Activation::Relu => s.max(s.splat(0.0), v),
        Activation::Silu => s.div(v, s.add(one, exp(s, s.mul(v, s.splat(-1.0))))),
        Activation::GeluTanh => s.div(v, s.add(one, exp(s, gelu_tanh_exponent(s, v)))),
        Activation::GeluErf => s.mul(v, normal_cdf(s, v)),
    }
}

/// `out[row] += sum over t of weights[row][t] * value(t)`, each element's terms added in the order of t. A row of `out` is as long as
/// the values, `len`, and begins `stride` after the one before it.
#[inline(always)]
pub(in crate::cpu) fn add_weighted_body<'a, S: Simd, E: Stored + 'a, const N: usize>(
    s: S,
    weights: [&[f32]; N],
    value: impl Fn(usize) -> &'a [E],
    len: usize,
    out: &mut [f32],
    stride: usize,
) {
    let (mut done, count) = (0, weights[0].len());
    if count == 0 {
        return;
    }
    while done + 4 * LANES <= len {
        let mut sums = [[s.splat(0.0); 4]; N];
        for (row, sums) in sums.iter_mut().enumerate() {
            let parts = out[row * stride + done..][..4 * LANES].as_chunks::<LANES>().0;
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = s.load(&parts[i]);
            }
        }
        #[expect(clippy::needless_range_loop, reason = "a value is one of every row's")]
        for t in 0..count {
            let parts = value(t)[done..done + 4 * LANES].as_chunks::<LANES>().0;
            let mut values = [s.splat(0.0); 4];
            for (i, value) in values.iter_mut().enumerate() {
                *value = E::load(s, &parts[i]);
            }
            for (row, sums) in sums.iter_mut().enumerate() {
                let weight = s.splat(weights[row][t]);
                for (i, sum) in sums.iter_mut().enumerate() {
                    *sum = s.mul_add(weight, values[i], *sum);
                }
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            let parts = out[row * stride + done..][..4 * LANES].as_chunks_mut::<LANES>().0;
            for (i, part) in parts.iter_mut().enumerate() {
                s.store(sums[i], part);
            }
        }
        done += 4 * LANES;
    }
    while done < len {
        let end = len.min(done + LANES);
        for (row, weights) in weights.iter().enumerate() {
            let out = &mut out[row * stride..][done..end];
            let mut sum = s.load_partial(out, 0.0);
            for (t, &weight) in weights.iter().enumerate() {
                sum = s.mul_add(s.splat(weight), E::load_partial(s, &value(t)[done..end]), sum);
            }
            s.store_partial(sum, out);
        }
        done = end;
    }
}

#[inline(always)]
pub(in crate::cpu) fn normalize_body<S: Simd>(
    s: S,
    x: &mut [f32],
    mean: f32,
    inv_std: f32,
    gain: &[f32],
    bias: &[f32],
) {
    assert!(gain.len() == x.len() && bias.len() == x.len(), "normalize: lengths differ");
    let (mean, inv_std) = (s.splat(mean), s.splat(inv_std));
    map!(s, x, |v, g = gain, b = bias| s.mul_add(s.mul(s.sub(v, mean), inv_std), g, b));
}

#[inline(always)]
fn position_above_body<S: Simd>(s: S, x: &[f32], from: usize, threshold: f32) -> usize {
    let bound = s.splat(threshold);
    let mut at = from;
    for block in x[from..].as_chunks::<{ 4 * LANES }>().0 {
        let mut mask = 0;
        for (i, chunk) in block.as_chunks().0.iter().enumerate() {
            mask |= s.mask_gt(s.load(chunk), bound) << (i * LANES);
        }
        if mask != 0 {
            return at + mask.trailing_zeros() as usize;
        }
        at += 4 * LANES;
    }
    while at < x.len() {
        let rest = &x[at..x.len().min(at + LANES)];
        let mask = s.mask_gt(s.load_partial(rest, f32::NEG_INFINITY), bound);
        if mask != 0 {
            return at + mask.trailing_zeros() as usize;
        }
        at += rest.len();
    }
    x.len()
}

#[inline(always)]
fn sum_masses_body<S: Simd>(_: S, z: &[f32], max: f32, inverse_temperature: f32) -> u64 {
    portable_math::sum_masses(z, max, inverse_temperature)
}

#[inline(always)]
fn random_words_body<S: Simd>(_: S, key: u64, counter: [u32; 4]) -> [[u32; LANES]; 4] {
    philox_each(key, counter)
}

/// `c[0] + c[1] x + c[2] x^2 + ...` by Horner's rule.
#[inline(always)]
fn polynomial<S: Simd, const N: usize>(s: S, x: S::V, coefficients: [f32; N]) -> S::V {
    let mut value = s.splat(coefficients[N - 1]);
    for i in (0..N - 1).rev() {
        value = s.mul_add(value, x, s.splat(coefficients[i]));
    }
    value
}

/// `exp(x)`: 0 below -86.9, infinity above 88.73.
///
/// With n the integer nearest to x / ln 2 and r = x - n ln 2, it is 2^n (1 + r + r^2 q(r)), where q is the minimax polynomial
/// of degree 4 for the relative error of the whole (3.3e-9) on |r| <= 0.35. Adding `BIAS` rounds to an integer and leaves
/// n + 126 in the low bits; the missing factor of two keeps 2^n representable up to n = 128.
#[inline(always)]
fn exp<S: Simd>(s: S, x: S::V) -> S::V {
    const LOWEST: f32 = -86.9;
    const BIAS: f32 = 12_582_912.0 + 126.0; // 1.5 * 2^23: the unit in the last place is one
    const LN2_HIGH: f32 = 355.0 / 512.0; // nine bits, so n * LN2_HIGH is exact
    const LN2_LOW: f32 = -2.121_944_4e-4;
    const Q: [f32; 5] = [0.499_999_94, 0.166_665_15, 0.041_668_456, 0.008_369_419, 0.001_381_314_2];

    // NaN passes through min and max as their second argument.
    let clamped = s.min(s.splat(89.0), s.max(s.splat(LOWEST), x));
    let biased = s.mul_add(clamped, s.splat(std::f32::consts::LOG2_E), s.splat(BIAS));
    let n = s.sub(biased, s.splat(BIAS));
    let r = s.mul_add(n, s.splat(-LN2_HIGH), clamped);
    let r = s.mul_add(n, s.splat(-LN2_LOW), r);
    let mantissa = s.add(s.splat(1.0), s.mul_add(s.mul(r, r), polynomial(s, r, Q), r));
    let value = s.mul(s.add(mantissa, mantissa), s.low_bits_to_exponent(biased));
    s.select_lt(x, s.splat(LOWEST), s.splat(0.0), value)
}

/// -2u with u = sqrt(2 / pi) (x + 0.044715 x^3), since (1 + tanh u) / 2 = 1 / (1 + exp(-2u)).
#[inline(always)]
fn gelu_tanh_exponent<S: Simd>(s: S, x: S::V) -> S::V {
    const LINEAR: f32 = -1.595_769; // -2 sqrt(2 / pi)
    const CUBIC: f32 = -0.071_354_82; // the same times 0.044715
    s.mul(x, s.mul_add(s.mul(x, x), s.splat(CUBIC), s.splat(LINEAR)))
}

/// (1 + erf(x / sqrt(2))) / 2, accurate in the left tail too.
///
/// For a = |x| the tail is exp(-a^2 / 2) g(a), and g is smooth in t = (a - 3) / (a + 3) (the substitution of Shepherd and
/// Laframboise, "Chebyshev approximation of (1 + 2x) exp(x^2) erfc x", 1981): the minimax polynomial of degree 9 on
/// 0 <= a <= 14 has a relative error of 7.8e-9. Beyond 14 the exponential is 0.
#[inline(always)]
fn normal_cdf<S: Simd>(s: S, x: S::V) -> S::V {
    const G: [f32; 10] = [
        0.121_513_95,
        -0.206_402_61,
        0.123_225_03,
        -0.046_213_29,
        0.006_132_071_4,
        0.002_904_563_4,
        -0.000_983_762_3,
        -0.000_339_500_43,
        0.000_115_549_03,
        0.000_053_683_558,
    ];
    let zero = s.splat(0.0);
    let three = s.splat(3.0);
    let a = s.min(s.splat(14.0), s.max(s.sub(zero, x), x));
    let t = s.div(s.sub(a, three), s.add(a, three));
    // a^2 as a rounded part and the rest: exp magnifies the rounding of its argument.
    let square = s.mul(a, a);
    let rest = s.mul_add(a, a, s.sub(zero, square));
    let tail = s.mul(polynomial(s, t, G), exp(s, s.mul(square, s.splat(-0.5))));
    let tail = s.mul_add(s.mul(rest, s.splat(-0.5)), tail, tail);
    s.select_lt(x, zero, tail, s.sub(s.splat(1.0), tail))
}

/// [`activate`] for one value in f64, by the formulas.
pub fn reference_activation(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::None => x,
        Activation::Relu if x < 0.0 => 0.0,
        Activation::Relu => x,
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => {
            x / 2.0 * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
        }
        Activation::GeluErf => x / 2.0 * erfc(-x / 2f64.sqrt()),
    }
}

/// 1 - erf(z) by its Taylor series or its continued fraction (Abramowitz and Stegun 7.1.5 and 7.1.14), far beyond f32.
fn erfc(z: f64) -> f64 {
    if z < 0.0 {
        return 2.0 - erfc(-z);
    }
    if z < 2.5 {
        let (mut term, mut sum) = (z, z);
        for n in 1..120 {
            term *= -z * z / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        return 1.0 - sum * 2.0 / std::f64::consts::PI.sqrt();
    }
    let mut fraction = 0.0;
    for n in (1..200).rev() {
        fraction = f64::from(n) / 2.0 / (z + fraction);
    }
    (-z * z).exp() / ((z + fraction) * std::f64::consts::PI.sqrt())
}

#[cfg(test)]
mod tests;
