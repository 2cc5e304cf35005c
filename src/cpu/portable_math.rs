//! `exp` and `ln` whose bits are the same on every device, where a library's would differ in the last place: additions and
//! multiplications of f32 alone, each rounded, in a fixed order. Polynomials: Moshier, Cephes (`expf`, `logf`). The kernels' model
//! is `kernels/portable_math.cuh`.

const LOG2_E: f32 = std::f32::consts::LOG2_E;
/// ln 2 in two parts, the first of which times a small integer is exact.
const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
/// Adding and subtracting it rounds to an integer.
const ROUNDING: f32 = 12_582_912.0;

/// `a * b + c`, rounded twice.
#[inline(always)]
fn mul_add(a: f32, b: f32, c: f32) -> f32 {
    a * b + c
}

/// exp(x) for x <= 0, within two units in the last place; 1 at 0, and 0 below -80.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Its last bits are the integer.
    let rounded = mul_add(x, LOG2_E, ROUNDING);
    let n = rounded - ROUNDING;
    let r = mul_add(n, -LN_2[1], mul_add(n, -LN_2[0], x));
    let mut p = 1.987_569_1e-4;
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_66, 0.5] {
        p = mul_add(p, r, coefficient);
    }
    let y = mul_add(p, r * r, r) + 1.0;
    let y = y * f32::from_bits(rounded.to_bits().wrapping_sub(ROUNDING.to_bits()).wrapping_add(127) << 23);
    if x < -80.0 { 0.0 } else { y }
}

/// floor(2^40 * exp(x)) for x <= 0.
pub fn mass(x: f32) -> u64 {
    (exp(x) * 2f32.powi(40)) as u64
}

/// The sum of the [`mass`]es of `(z - max) * inverse_temperature`, of 0 in place of what is more.
#[inline(always)]
pub fn sum_masses(z: &[f32], max: f32, inverse_temperature: f32) -> u64 {
    const HALF: f32 = (1 << 20) as f32;
    // Two halves of 20 bits: in 32 bits there is room for those of many.
    let of_some = |some: &[f32]| {
        let (mut high, mut low) = (0u32, 0u32);
        for &z in some {
            let x = (z - max) * inverse_temperature;
            let scaled = exp(if x > 0.0 { 0.0 } else { x }) * HALF;
            let (whole, count) = floor(scaled);
            high += count;
            low += floor((scaled - whole) * HALF).1;
        }
        (u64::from(high) << 20) + u64::from(low)
    };
    let (chunks, rest) = z.as_chunks::<64>();
    chunks.iter().map(|chunk| of_some(chunk)).sum::<u64>() + of_some(rest)
}

/// The largest integer that is no larger, as such and as a number; 0 <= x < 2^22. In steps that every lane of a vector can take.
#[inline(always)]
fn floor(x: f32) -> (f32, u32) {
    const SHIFT: f32 = (1 << 23) as f32;
    let near = (x + SHIFT) - SHIFT;
    let whole = if near > x { near - 1.0 } else { near };
    (whole, (whole + SHIFT).to_bits() & 0x7f_ffff)
}

/// ln(x) for a normal number above 0, within two units in the last place.
pub fn ln(x: f32) -> f32 {
    let bits = x.to_bits();
    let mut e = ((bits >> 23) as i32 - 126) as f32;
    let m = f32::from_bits(bits & 0x007f_ffff | 0x3f00_0000);
    let r = if m < std::f32::consts::FRAC_1_SQRT_2 {
        e -= 1.0;
        m + m - 1.0
    } else {
        m - 1.0
    };
    let z = r * r;
    let mut p = 7.037_683_6e-2;
    for coefficient in [
        -0.115_146_1,
        0.116_769_984,
        -0.124_201_41,
        0.142_493_23,
        -0.166_680_58,
        0.200_007_15,
        -0.249_999_94,
        0.333_333_3,
    ] {
        p = mul_add(p, r, coefficient);
    }
    let y = mul_add(z, -0.5, mul_add(e, LN_2[1], p * r * z));
    mul_add(e, LN_2[0], r + y)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_are_within_two_units_in_the_last_place() {
        assert_eq!((exp(0.0), exp(-80.5), exp(f32::NEG_INFINITY), ln(1.0)), (1.0, 0.0, 0.0, 0.0));
        let units = |computed: f32, exact: f64| (f64::from(computed) / exact - 1.0).abs() * 2f64.powi(23);
        for i in 1..200_000u32 {
            let x = i as f32 * -4e-4;
            assert!(units(exp(x), f64::from(x).exp()) < 2.0, "exp({x}) = {}", exp(x));
        }
        let mut x = f32::MIN_POSITIVE;
        while x < 1e30 {
            if x != 1.0 {
                assert!(units(ln(x), f64::from(x).ln()) < 2.0, "ln({x}) = {}", ln(x));
            }
            x = if (0.5..2.0).contains(&x) { x * (1.0 + 3e-6) } else { x * 1.000_7 };
        }
    }
}
