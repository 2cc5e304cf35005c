//! The compiled normalisation rules of a SentencePiece model.
//!
//! The blob is a 32-bit little-endian size, a double-array trie of that size in the format of the Darts-clone library, and
//! the replacement texts, each ended by a zero byte. A key's value is the offset of its replacement.
//!
//! A unit of the double array is 32 bits: a label (the low byte, plus bit 31 which marks a value), bit 8 "a key ends here",
//! and an offset (bits 10 up, shifted by 8 when bit 9 is set). The child of the unit at `p` for byte `b` is the unit at
//! `p ^ offset ^ b` if its label is `b`; the value of a key that ends at `p` stands at `p ^ offset`.

/// Keys longer than this are not looked for: it bounds the walk in a damaged trie. The longest key of the rules that come
/// with SentencePiece has 54 bytes.
const MAX_KEY_BYTES: usize = 1024;
/// The library looks at this many keys, shortest first, at one place in the text.
const MAX_KEYS: usize = 32;
/// A replacement may not be longer than this: with it a text can grow at most so many times when it is normalised. The longest
/// replacement of the rules that come with SentencePiece has 33 bytes.
const MAX_REPLACEMENT_BYTES: usize = 256;

/// Maps the longest known key at the start of a text to its replacement.
#[derive(Debug)]
pub(super) struct CharsMap {
    units: Vec<u32>,
    replacements: String,
}

impl CharsMap {
    /// Reads the blob; an error is a pair (expected, got).
    pub fn new(blob: &[u8]) -> Result<Self, (String, String)> {
        let error = |expected: &str, got: String| (format!("a character map {expected}"), got);
        let Some((size, rest)) = blob.split_first_chunk::<4>() else {
            return Err(error("of at least 4 bytes", blob.len().to_string()));
        };
        let size = u32::from_le_bytes(*size) as usize;
        if size == 0 || !size.is_multiple_of(4) {
            return Err(error("whose trie has whole 4-byte units", format!("{size} bytes")));
        }
        let Some((units, replacements)) = rest.split_at_checked(size) else {
            return Err(error(&format!("with a trie of {size} bytes"), rest.len().to_string()));
        };
        let units =
            units.chunks_exact(4).map(|unit| u32::from_le_bytes([unit[0], unit[1], unit[2], unit[3]])).collect();
        let replacements =
            String::from_utf8(replacements.to_vec()).map_err(|cause| error("in utf-8", cause.to_string()))?;
        if !replacements.ends_with('\0') {
            return Err(error(
                "that ends with a zero byte",
                replacements.chars().next_back().map_or("nothing".into(), |last| format!("{last:?}")),
            ));
        }
        if let Some(long) = replacements.split('\0').find(|text| text.len() > MAX_REPLACEMENT_BYTES) {
            let expected = format!("whose replacements have at most {MAX_REPLACEMENT_BYTES} bytes");
            return Err(error(&expected, long.len().to_string()));
        }
        Ok(CharsMap { units, replacements })
    }

    /// Bytes of `text` that the longest key covers, and what replaces them.
    pub fn longest(&self, text: &str) -> Option<(usize, &str)> {
        let mut longest = None;
        let mut found = 0;
        let mut position = offset(*self.units.first()?) as usize;
        for (index, &byte) in text.as_bytes().iter().take(MAX_KEY_BYTES).enumerate() {
            position ^= usize::from(byte);
            let Some(&unit) = self.units.get(position) else { break };
            if unit & 0x8000_00ff != u32::from(byte) {
                break;
            }
            position ^= offset(unit) as usize;
            if unit & 0x100 != 0 {
                let Some(&value) = self.units.get(position) else { break };
                longest = Some((index + 1, (value & 0x7fff_ffff) as usize));
                found += 1;
                if found == MAX_KEYS {
                    break;
                }
            }
        }
        // Outside a damaged map a key ends where a character ends and its value is the start of a replacement.
        let (length, start) = longest.filter(|(length, _)| text.is_char_boundary(*length))?;
        let (replacement, _) = self.replacements.get(start..)?.split_once('\0')?;
        Some((length, replacement))
    }
}

fn offset(unit: u32) -> u32 {
    (unit >> 10) << ((unit & 0x200) >> 6)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The units of a double array with the keys "a" -> 0 and "ab" -> 2, laid out by hand.
    fn blob(replacements: &[u8]) -> Vec<u8> {
        let mut units = [0u32; 512];
        units[0] = 256 << 10; // root: children at 256 ^ byte
        let a = 256 ^ usize::from(b'a');
        units[a] = u32::from(b'a') | 0x100 | (128 << 10); // children at a ^ 128 ^ byte
        units[a ^ 128] = 0x8000_0000;
        let ab = a ^ 128 ^ usize::from(b'b');
        units[ab] = u32::from(b'b') | 0x100 | (64 << 10);
        units[ab ^ 64] = 0x8000_0002;
        let mut blob = (units.len() as u32 * 4).to_le_bytes().to_vec();
        blob.extend(units.iter().flat_map(|unit| unit.to_le_bytes()));
        blob.extend_from_slice(replacements);
        blob
    }

    #[test]
    fn replaces_the_longest_key() {
        let map = CharsMap::new(&blob(b"x\0yz\0")).unwrap();
        assert_eq!(map.longest("abb"), Some((2, "yz")));
        assert_eq!(map.longest("aab"), Some((1, "x")));
        assert_eq!(map.longest("b"), None);
        assert_eq!(map.longest(""), None);
    }

    #[test]
    fn offsets_may_be_extended_by_eight_bits() {
        assert_eq!((offset(3 << 10 | 0x1ff), offset(3 << 10 | 0x3ff)), (3, 3 << 8));
    }

    #[test]
    fn a_damaged_map_is_refused_or_finds_nothing() {
        let whole = blob(b"x\0yz\0");
        for cut in (0..2048 + 4).chain([whole.len() - 1]) {
            assert!(CharsMap::new(&whole[..cut]).is_err(), "{cut}");
        }
        assert!(CharsMap::new(&blob(b"x\0\xff\0")).is_err());
        // The value of "ab" lies behind the replacements.
        assert_eq!(CharsMap::new(&blob(b"\0")).unwrap().longest("ab"), None);
    }

    #[test]
    fn a_replacement_has_a_longest_length() {
        let with = |length: usize| blob(&["x\0".as_bytes(), &vec![b'y'; length], b"\0"].concat());
        let map = CharsMap::new(&with(MAX_REPLACEMENT_BYTES)).unwrap();
        assert_eq!(map.longest("ab").unwrap().1.len(), MAX_REPLACEMENT_BYTES);
        let (expected, got) = CharsMap::new(&with(MAX_REPLACEMENT_BYTES + 1)).unwrap_err();
        assert_eq!(expected, "a character map whose replacements have at most 256 bytes");
        assert_eq!(got, "257");
    }

    #[test]
    fn a_trie_with_a_cycle_ends() {
        // Every unit is its own child for byte 'a' and no key ends anywhere.
        let units = [u32::from(b'a') | (u32::from(b'a') << 10); 256];
        let mut blob = 1024u32.to_le_bytes().to_vec();
        blob.extend(units.iter().flat_map(|unit| unit.to_le_bytes()));
        blob.push(0);
        assert_eq!(CharsMap::new(&blob).unwrap().longest(&"a".repeat(1 << 20)), None);
    }
}
