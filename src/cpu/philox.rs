//! Philox4x32-10: random numbers as a function of a key and a counter (Salmon et al. 2011, "Parallel random numbers: as easy as
//! 1, 2, 3"), so that what a token draws depends on neither batch, order nor device. The kernels' version is `kernels/philox.cuh`.

const ROUNDS: usize = 10;
const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const KEY_STEPS: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// What a random number is for: numbers of different purposes are independent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Purpose {
    /// Whether scheduled sampling keeps the gold token.
    Coin = 0,
    /// The noise with which it samples another.
    Noise = 1,
    /// The noise with which a search samples a token.
    Draw = 2,
    /// Which elements dropout drops in training.
    Dropout = 8,
    /// The order of the training data.
    Order = 9,
    /// Whose prefix distillation reads.
    Prefix = 10,
    /// The weights of a model that has learnt nothing.
    Start = 11,
}

/// The four words of a counter under a key.
pub fn philox(key: u64, counter: [u32; 4]) -> [u32; 4] {
    philox_each::<1>(key, counter).map(|[word]| word)
}

/// The words of `N` counters, which follow each other in the last word: those of counter i are `[..][i]`.
#[inline(always)]
pub fn philox_each<const N: usize>(key: u64, counter: [u32; 4]) -> [[u32; N]; 4] {
    let mut key = [key as u32, (key >> 32) as u32];
    let mut words = counter.map(|word| [word; N]);
    words[3].iter_mut().zip(0..).for_each(|(word, i)| *word = word.wrapping_add(i));
    for _ in 0..ROUNDS {
        let [a, b, c, d] = words;
        for i in 0..N {
            let first = u64::from(MULTIPLIERS[0]) * u64::from(a[i]);
            let second = u64::from(MULTIPLIERS[1]) * u64::from(c[i]);
            words[0][i] = (second >> 32) as u32 ^ b[i] ^ key[0];
            words[1][i] = second as u32;
            words[2][i] = (first >> 32) as u32 ^ d[i] ^ key[1];
            words[3][i] = first as u32;
        }
        key = [key[0].wrapping_add(KEY_STEPS[0]), key[1].wrapping_add(KEY_STEPS[1])];
    }
    words
}

/// A random word as a uniform number in 0 <= x < 1, a multiple of 2^-24.
pub fn uniform(word: u32) -> f32 {
    (word >> 8) as f32 * 2f32.powi(-24)
}

/// A random word as a uniform number in 0 < x < 1, an odd multiple of 2^-24: it has a finite logarithm, and so has 1 - x.
pub fn open_uniform(word: u32) -> f32 {
    ((word >> 9) as f32 + 0.5) * 2f32.powi(-23)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers that the authors publish with Random123 (`kat_vectors`).
    #[test]
    fn known_answers() {
        let ones = u32::MAX;
        let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        for (key, counter, expected) in [
            (0, [0; 4], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            (u64::MAX, [ones; 4], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (0x299f_31d0_a409_3822, pi, [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]),
        ] {
            assert_eq!(philox(key, counter), expected);
        }
    }

    #[test]
    fn uniform_numbers_keep_to_their_range() {
        assert_eq!((uniform(0), uniform(u32::MAX)), (0.0, 1.0 - 2f32.powi(-24)));
        assert_eq!((open_uniform(0), open_uniform(u32::MAX)), (2f32.powi(-24), 1.0 - 2f32.powi(-24)));
    }
}
