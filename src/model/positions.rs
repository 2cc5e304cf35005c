//! Positions that are computed: sines and cosines, and the buckets of relative distances.

use std::ops::Range;

use super::config::{ModelConfig, RelativeConfig};
use super::names::Side;

/// Marian's position table `[len, width]`: the sine half, then the cosine half (Vaswani et al. 2017, section 3.5, give them
/// interleaved).
pub fn marian_sinusoids(len: usize, width: usize) -> Vec<f32> {
    let sines = width.div_ceil(2);
    let angle = |position: usize, i: usize| position as f64 / 10_000f64.powf(2.0 * i as f64 / width as f64);
    let value = |position: usize, column: usize| match column.checked_sub(sines) {
        None => angle(position, column).sin(),
        Some(i) => angle(position, i).cos(),
    };
    (0..len * width).map(|at| value(at / width, at % width) as f32).collect()
}

/// fairseq's positions `[positions, width]`: `width / 2` sines, as many cosines, and a zero where the width is odd. The last
/// wavelength is 2 pi * 10000, where Vaswani et al. (2017) stay below that.
pub fn fairseq_sinusoids(positions: Range<usize>, width: usize) -> Vec<f32> {
    let half = width / 2;
    let frequency = |i: usize| 10_000f64.powf(-(i as f64) / (half as f64 - 1.0).max(1.0));
    let value = |position: usize, column: usize| match column / half.max(1) {
        0 if half > 0 => (position as f64 * frequency(column)).sin(),
        1 => (position as f64 * frequency(column - half)).cos(),
        _ => 0.0,
    };
    positions.flat_map(|position| (0..width).map(move |column| value(position, column) as f32)).collect()
}

/// What a self-attention adds to its scores, `[heads, 2 * max_distance + 1]`: by the key's position less the query's, from
/// `-max_distance` on. `table` `[buckets, heads]`.
pub fn relative_bias(relative: RelativeConfig, side: Side, table: &[f32]) -> Vec<f32> {
    let (heads, buckets) = (table.len() / relative.buckets, buckets_by_distance(relative, side));
    (0..heads).flat_map(|head| buckets.iter().map(move |bucket| table[*bucket as usize * heads + head])).collect()
}

/// The bucket of each distance from `-max_distance` to `max_distance`.
pub fn buckets_by_distance(relative: RelativeConfig, side: Side) -> Vec<u32> {
    let far = relative.max_distance as i64;
    (-far..=far).map(|distance| bucket(relative, side, distance) as u32).collect()
}

/// The bucket of a distance (Raffel et al. 2020, section 2.1, as their code has it): one each up to a half of the buckets, then
/// logarithmic up to `max_distance`, then one for all. The encoder has keys behind the query in the upper half of the buckets; to
/// the decoder they are at distance 0.
fn bucket(relative: RelativeConfig, side: Side, distance: i64) -> usize {
    let (buckets, exact) = ModelConfig::buckets(relative, side == Side::Encoder);
    let (offset, distance) = match side {
        Side::Encoder if distance > 0 => (buckets, distance as usize),
        Side::Encoder | Side::Decoder => (0, (-distance).max(0) as usize),
    };
    if distance < exact {
        return offset + distance;
    }
    let ratio = (distance as f64 / exact as f64).ln() / (relative.max_distance as f64 / exact as f64).ln();
    offset + (exact + (ratio * (buckets - exact) as f64) as usize).min(buckets - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values are those of transformers 4.57's `_relative_position_bucket`.
    #[test]
    fn distances_fall_into_the_buckets_of_transformers() {
        let of = |buckets: usize, max_distance: usize, side: Side, distances: &[i64]| -> Vec<usize> {
            let relative = RelativeConfig { buckets, max_distance, per_layer: false };
            distances.iter().map(|distance| bucket(relative, side, *distance)).collect()
        };
        let distances = [-200, -128, -64, -16, -9, -8, -7, -1, 0, 1, 7, 8, 9, 16, 64, 127, 128, 200];
        assert_eq!(of(32, 128, Side::Encoder, &distances), ENCODER_32_128,);
        assert_eq!(of(32, 128, Side::Decoder, &distances), DECODER_32_128);
        assert_eq!(of(10, 24, Side::Encoder, &distances), ENCODER_10_24);
        assert_eq!(of(10, 24, Side::Decoder, &distances), DECODER_10_24);
    }

    const ENCODER_32_128: [usize; 18] = [15, 15, 14, 10, 8, 8, 7, 1, 0, 17, 23, 24, 24, 26, 30, 31, 31, 31];
    const DECODER_32_128: [usize; 18] = [31, 31, 26, 16, 9, 8, 7, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    const ENCODER_10_24: [usize; 18] = [4, 4, 4, 4, 3, 3, 3, 1, 0, 6, 8, 8, 8, 9, 9, 9, 9, 9];
    const DECODER_10_24: [usize; 18] = [9, 9, 9, 8, 6, 6, 6, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

    #[test]
    fn a_bias_is_its_table_by_distance() {
        let relative = RelativeConfig { buckets: 4, max_distance: 3, per_layer: false };
        let table = [0.0, 10.0, 1.0, 11.0, 2.0, 12.0, 3.0, 13.0];
        // Two buckets for each direction: distance 0, and all others.
        let encoder = [1.0, 1.0, 1.0, 0.0, 3.0, 3.0, 3.0, 11.0, 11.0, 11.0, 10.0, 13.0, 13.0, 13.0];
        assert_eq!(relative_bias(relative, Side::Encoder, &table), encoder);
    }

    #[test]
    fn fairseq_counts_from_where_it_is_told_and_ends_at_one_wavelength() {
        let table = fairseq_sinusoids(2..4, 5);
        let expected = [2f64.sin(), 2e-4f64.sin(), 2f64.cos(), 2e-4f64.cos(), 0.0];
        assert!(table[..5].iter().zip(expected).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-7), "{table:?}");
        assert!((f64::from(table[5]) - 3f64.sin()).abs() < 1e-7);
    }
}
