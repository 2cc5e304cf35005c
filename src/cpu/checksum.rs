//! Op `checksum`: the exclusive or of words. It serves to measure how fast memory is read.

/// The exclusive or of all words.
pub fn reference(words: &[u32]) -> u32 {
    words.iter().fold(0, |sum, word| sum ^ word)
}
