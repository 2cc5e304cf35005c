//! Added tokens: what a tokenizer takes out of the raw text before anything else sees it.

use std::collections::HashMap;

use super::sentencepiece::Trie;

/// A token that is found in raw text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddedToken {
    /// Its text.
    pub content: String,
    /// Its id.
    pub id: u32,
    /// Whether it takes the white space before it.
    pub lstrip: bool,
    /// Whether it takes the white space behind it.
    pub rstrip: bool,
    /// Whether it is one only between spaces.
    pub single_word: bool,
    /// Whether it is found in normalised text too, where the tokenizer has a normaliser of its own.
    pub normalized: bool,
    /// Whether it is left out of a translation's text.
    pub special: bool,
}

impl AddedToken {
    /// A token that strips nothing.
    pub fn new(content: &str, id: u32, special: bool) -> Self {
        AddedToken {
            content: content.into(),
            id,
            lstrip: false,
            rstrip: false,
            single_word: false,
            normalized: !special,
            special,
        }
    }
}

/// A stretch of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// What the tokenizer proper is for.
    Text(String),
    /// An added token's id.
    Token(u32),
}

/// The added tokens of a tokenizer.
#[derive(Debug)]
pub struct AddedTokens {
    tokens: Vec<AddedToken>,
    by_content: HashMap<String, usize>,
    by_id: HashMap<u32, usize>,
    /// Of those that are found in text.
    trie: Trie,
}

impl AddedTokens {
    /// These tokens, of which the `found` ones are looked for in text. Of two with the same text or the same id the later counts.
    pub fn new(tokens: Vec<AddedToken>, found: impl Fn(&AddedToken) -> bool) -> Self {
        let by_content = tokens.iter().enumerate().map(|(i, token)| (token.content.clone(), i)).collect();
        let by_id = tokens.iter().enumerate().map(|(i, token)| (token.id, i)).collect();
        let keys = tokens.iter().enumerate().filter(|(_, token)| !token.content.is_empty() && found(token));
        let trie = Trie::new(keys.map(|(i, token)| (token.content.as_bytes(), i as u32)).collect());
        AddedTokens { by_content, by_id, trie, tokens }
    }

    /// All tokens.
    pub fn tokens(&self) -> &[AddedToken] {
        &self.tokens
    }

    /// The token with this text.
    pub fn named(&self, content: &str) -> Option<&AddedToken> {
        self.by_content.get(content).map(|i| &self.tokens[*i])
    }

    /// The token with this id.
    pub fn with_id(&self, id: u32) -> Option<&AddedToken> {
        self.by_id.get(&id).map(|i| &self.tokens[*i])
    }

    /// Cuts a text at the tokens in it: the leftmost first, of those that begin there the longest.
    pub fn split(&self, text: &str) -> Vec<Part> {
        let mut parts = self.cut(text);
        for i in 0..parts.len() {
            let Some(token) = self.found(&parts[i]).map(|at| self.tokens[at].clone()) else { continue };
            let (left, right) = (i.checked_sub(1), Some(i + 1).filter(|right| *right < parts.len()));
            if let Some(right) = right.filter(|_| token.rstrip) {
                parts[right] = parts[right].trim_start_matches(is_space).to_owned();
            }
            if let Some(left) = left.filter(|_| token.lstrip) {
                parts[left] = parts[left].trim_end_matches(is_space).to_owned();
            }
            if !token.single_word {
                continue;
            }
            let touches = |part: Option<char>| part.is_some_and(|c| c != ' ');
            if let Some(left) = left.filter(|left| touches(parts[*left].chars().last())) {
                parts[left].push_str(&token.content);
                parts[i].clear();
            } else if let Some(right) = right.filter(|right| touches(parts[*right].chars().next())) {
                parts[right].insert_str(0, &token.content);
                parts[i].clear();
            }
        }
        let named = |part: String| match self.found(&part) {
            Some(at) => Part::Token(self.tokens[at].id),
            None => Part::Text(part),
        };
        parts.into_iter().filter(|part| !part.is_empty()).map(named).collect()
    }

    /// The token that is looked for and that this is.
    fn found(&self, part: &str) -> Option<usize> {
        let at = self.trie.prefixes(part.as_bytes()).last()?;
        (at.0 == part.len()).then_some(at.1 as usize)
    }

    /// The text's pieces at the tokens' borders.
    fn cut(&self, text: &str) -> Vec<String> {
        let (mut parts, mut start, mut at) = (Vec::new(), 0, 0);
        while at < text.len() {
            match self.trie.prefixes(&text.as_bytes()[at..]).last() {
                Some((len, _)) => {
                    parts.extend((start < at).then(|| text[start..at].to_owned()));
                    parts.push(text[at..at + len].to_owned());
                    at += len;
                    start = at;
                }
                None => at += text[at..].chars().next().map_or(1, char::len_utf8),
            }
        }
        parts.extend((start < text.len()).then(|| text[start..].to_owned()));
        parts
    }
}

/// What Python's `str.strip` takes off.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(list: &[(&str, &str)]) -> AddedTokens {
        let token = |(id, (content, flags)): (usize, &(&str, &str))| AddedToken {
            lstrip: flags.contains('l'),
            rstrip: flags.contains('r'),
            single_word: flags.contains('w'),
            ..AddedToken::new(content, id as u32, flags.contains('s'))
        };
        AddedTokens::new(list.iter().enumerate().map(token).collect(), |token| !token.special)
    }

    fn split(tokens: &AddedTokens, text: &str) -> String {
        let show = |part: &Part| match part {
            Part::Text(text) => format!("'{text}'"),
            Part::Token(id) => id.to_string(),
        };
        tokens.split(text).iter().map(show).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_leftmost_and_longest_token_is_taken() {
        let tokens = tokens(&[("<a>", ""), ("<a>b", ""), ("bc", ""), ("abcd", ""), ("\u{e4}\u{f6}", ""), ("<s>", "s")]);
        for (text, expected) in [
            ("", ""),
            ("plain", "'plain'"),
            ("<a>", "0"),
            ("x<a>b<a>", "'x' 1 0"),
            ("<a><a> <a>", "0 0 ' ' 0"),
            ("abcx", "'a' 2 'x'"),
            ("abcd", "3"),
            ("\u{e4}\u{e4}\u{f6}\u{f6}", "'\u{e4}' 4 '\u{f6}'"),
            ("a <s> b", "'a <s> b'"),
        ] {
            assert_eq!(split(&tokens, text), expected, "{text}");
        }
    }

    #[test]
    fn tokens_take_the_white_space_that_they_ask_for() {
        let tokens = tokens(&[("<l>", "l"), ("<r>", "r"), ("<b>", "lr"), ("<n>", "")]);
        for (text, expected) in [
            ("a  <l>  b", "'a' 0 '  b'"),
            ("a  <r>  b", "'a  ' 1 'b'"),
            ("a \t\u{a0}<b>\u{1f}\u{3000}b", "'a' 2 'b'"),
            (" <b> ", "2"),
            ("a <n> b", "'a ' 3 ' b'"),
            ("<r> <l>", "1 0"),
        ] {
            assert_eq!(split(&tokens, text), expected, "{text}");
        }
    }

    #[test]
    fn a_single_word_stands_between_spaces() {
        let tokens = tokens(&[("dog", "w")]);
        for (text, expected) in [
            ("dog", "0"),
            ("a dog runs", "'a ' 0 ' runs'"),
            ("hotdog runs", "'hotdog' ' runs'"),
            ("a dogs", "'a ' 'dogs'"),
            ("dog, dog", "'dog, ' 0"),
        ] {
            assert_eq!(split(&tokens, text), expected, "{text}");
        }
    }
}
