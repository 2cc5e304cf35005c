//! Text normalisation, as SentencePiece does it before segmentation.

use super::charsmap::CharsMap;
use super::proto::NormalizerProto;
use super::trie::Trie;

/// U+2581, which stands for a space inside pieces.
pub(in crate::text) const SPACE: &str = "\u{2581}";

/// Rewrites characters by rule and makes spaces uniform.
#[derive(Debug)]
pub(super) struct Normalizer {
    charsmap: Option<CharsMap>,
    pub(super) name: String,
    pub(super) add_dummy_prefix: bool,
    pub(super) remove_extra_whitespaces: bool,
    space: &'static str,
    space_as_suffix: bool,
}

impl Normalizer {
    /// The normaliser of a specification; an error is a pair (expected, got).
    pub fn new(spec: &NormalizerProto, space_as_suffix: bool) -> Result<Self, (String, String)> {
        let charsmap = match spec.charsmap() {
            [] => None,
            blob => Some(CharsMap::new(blob)?),
        };
        Ok(Normalizer {
            charsmap,
            name: spec.name().to_owned(),
            add_dummy_prefix: spec.add_dummy_prefix(),
            remove_extra_whitespaces: spec.remove_extra_whitespaces(),
            space: if spec.escape_whitespaces() { SPACE } else { " " },
            space_as_suffix,
        })
    }

    /// `text` normalised; the keys of `verbatim` pass unchanged, except that their spaces are escaped.
    pub fn normalize(&self, text: &str, verbatim: &Trie) -> String {
        self.normalize_with(text, verbatim, self.add_dummy_prefix)
    }

    /// The same without a space that is put in front or behind.
    pub fn normalize_attached(&self, text: &str, verbatim: &Trie) -> String {
        self.normalize_with(text, verbatim, false)
    }

    fn normalize_with<'a>(&'a self, mut text: &'a str, verbatim: &Trie, add_space: bool) -> String {
        if self.remove_extra_whitespaces {
            while let Some((" ", rest)) = self.next(text, verbatim) {
                text = rest;
            }
        }
        if text.is_empty() {
            return String::new();
        }
        let mut out = String::with_capacity(text.len() + text.len() / 2);
        if add_space && !self.space_as_suffix {
            out.push_str(self.space);
        }
        let mut after_space = self.remove_extra_whitespaces;
        while let Some((mut chunk, rest)) = self.next(text, verbatim) {
            text = rest;
            if after_space {
                chunk = chunk.trim_start_matches(' ');
            }
            // A chunk of nothing but spaces leaves `after_space` as it is, so that the next one is trimmed too.
            if !chunk.is_empty() {
                self.push(&mut out, chunk);
                after_space = self.remove_extra_whitespaces && chunk.ends_with(' ');
            }
        }
        if self.remove_extra_whitespaces {
            out.truncate(out.trim_end_matches(self.space).len());
        }
        if add_space && self.space_as_suffix {
            out.push_str(self.space);
        }
        out
    }

    fn push(&self, out: &mut String, chunk: &str) {
        for (index, part) in chunk.split(' ').enumerate() {
            if index > 0 {
                out.push_str(self.space);
            }
            out.push_str(part);
        }
    }

    /// The replacement of what `text` starts with, and what follows; nothing at its end.
    fn next<'a>(&'a self, text: &'a str, verbatim: &Trie) -> Option<(&'a str, &'a str)> {
        let first = text.chars().next()?;
        if let Some(length) = verbatim.longest(text.as_bytes()) {
            return text.split_at_checked(length);
        }
        match self.charsmap.as_ref().and_then(|map| map.longest(text)) {
            Some((length, replacement)) => Some((replacement, text.get(length..)?)),
            None => text.split_at_checked(first.len_utf8()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normalize(text: &str, verbatim: &[&str], spec: NormalizerProto, space_as_suffix: bool) -> String {
        let verbatim = Trie::new(verbatim.iter().map(|key| (key.as_bytes(), 0)).collect());
        Normalizer::new(&spec, space_as_suffix).unwrap().normalize(text, &verbatim)
    }

    #[test]
    fn spaces_are_collapsed_trimmed_and_escaped() {
        let spec = NormalizerProto::default;
        assert_eq!(normalize("  a  b c ", &[], spec(), false), "▁a▁b▁c");
        assert_eq!(normalize("  a  b c ", &[], spec(), true), "a▁b▁c▁");
        assert_eq!(normalize(" a▁▁", &[], spec(), false), "▁a");
        assert_eq!(normalize("   ", &[], spec(), false), "");
        assert_eq!(normalize("", &[], spec(), false), "");
    }

    #[test]
    fn options_keep_spaces() {
        let keep = NormalizerProto { remove_extra_whitespaces: Some(false), ..Default::default() };
        assert_eq!(normalize(" a  b ", &[], keep.clone(), false), "▁▁a▁▁b▁");
        let bare = NormalizerProto { add_dummy_prefix: Some(false), escape_whitespaces: Some(false), ..keep };
        assert_eq!(normalize(" a  b ", &[], bare, false), " a  b ");
    }

    #[test]
    fn a_verbatim_key_keeps_its_inner_spaces() {
        assert_eq!(normalize("a  x  y  b", &["x  y"], NormalizerProto::default(), false), "▁a▁x▁▁y▁b");
    }
}
