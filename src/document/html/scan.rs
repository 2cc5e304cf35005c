//! Where the tags and the text of an HTML document lie.
//!
//! The tokenizer is html5gum's; of what it finds only the places are used, so that all that is not translated stays as it is, byte for
//! byte.

use std::ops::Range;

use super::names;
use html5gum::emitters::default::DefaultEmitter;
use html5gum::{EndTag, HtmlString, StartTag, StringReader, Tokenizer};

/// A stretch of a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Token {
    /// In bytes.
    pub range: Range<usize>,
    pub kind: TokenKind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum TokenKind {
    /// Text, with character references in it.
    Text,
    Start {
        name: String,
        /// Whether the element is said not to be translated: `translate="no"`, or of the class `notranslate`.
        untranslated: bool,
    },
    End {
        name: String,
    },
    /// Comments, document types, and what an HTML reader drops, such as half a tag at the end.
    Other,
}

/// Everything of HTML is read by a tokenizer of this one type, as it is long to compile.
pub(super) fn tokenizer(html: &str) -> Tokenizer<StringReader<'_>, DefaultEmitter<usize>> {
    let mut emitter = DefaultEmitter::<usize>::new_with_span();
    emitter.naively_switch_states(true);
    Tokenizer::new_with_emitter(html, emitter)
}

/// Splits a document, from this byte on, into tokens that follow one another without a gap.
pub(super) fn scan(html: &str, start: usize) -> Vec<Token> {
    let mut tokens = Tokens { html, found: Vec::new(), at: start, in_raw_text: false };
    let at = |span: html5gum::Span<usize>| start + span.start..start + span.end;
    for Ok(token) in tokenizer(&html[start..]) {
        match token {
            html5gum::Token::StartTag(StartTag { name, span, attributes, .. }) => {
                let value = |name: &[u8]| attributes.get(name).map(|value| lower(&value.value));
                let is_off = |value: String| value.trim() == "no";
                let class = value(b"class").unwrap_or_default();
                let untranslated = value(b"translate").is_some_and(is_off)
                    || class.split_whitespace().any(|class| class == "notranslate");
                tokens.push(at(span), TokenKind::Start { name: lower(&name), untranslated });
            }
            html5gum::Token::EndTag(EndTag { name, span }) => {
                tokens.push(at(span), TokenKind::End { name: lower(&name) });
            }
            html5gum::Token::Comment(comment) => tokens.push(at(comment.span), TokenKind::Other),
            html5gum::Token::Doctype(doctype) => tokens.push(at(doctype.span), TokenKind::Other),
            // Text is what lies between.
            html5gum::Token::String(_) | html5gum::Token::Error(_) => {}
        }
    }
    tokens.text_to(html.len());
    tokens.found
}

fn lower(text: &HtmlString) -> String {
    String::from_utf8_lossy(text).to_lowercase()
}

struct Tokens<'a> {
    html: &'a str,
    found: Vec<Token>,
    at: usize,
    /// Whether the last tag began an element in which tags are text.
    in_raw_text: bool,
}

impl Tokens<'_> {
    /// Adds a tag or a comment, and the text before it. One that does not lie where a tag can lie is left for text.
    fn push(&mut self, range: Range<usize>, kind: TokenKind) {
        let is_tag = |tag: &str| tag.starts_with('<') && tag.len() > 1;
        if range.start < self.at || !self.html.get(range.clone()).is_some_and(is_tag) {
            return;
        }
        self.text_to(range.start);
        self.at = range.end;
        self.in_raw_text = matches!(&kind, TokenKind::Start { name, .. } if names::is_raw_text(name));
        self.found.push(Token { range, kind });
    }

    /// Adds what lies before `end`: text, but for what begins as a tag and has come to none.
    fn text_to(&mut self, end: usize) {
        while self.at < end {
            let text = &self.html[self.at..end];
            let tag = if self.in_raw_text { None } else { dropped(text) };
            let (text, dropped) = tag.unwrap_or((text.len(), 0));
            for (length, kind) in [(text, TokenKind::Text), (dropped, TokenKind::Other)] {
                if length > 0 {
                    self.found.push(Token { range: self.at..self.at + length, kind });
                    self.at += length;
                }
            }
        }
    }
}

/// Bytes of text before the first thing that a reader drops, and bytes of that.
fn dropped(text: &str) -> Option<(usize, usize)> {
    let begins = |(at, _): &(usize, &str)| {
        let mut behind = text[at + 1..].chars();
        let tag = |c: char| c.is_ascii_alphabetic() || c == '!' || c == '?';
        match behind.next() {
            Some('/') => behind.next().is_some_and(|c| c == '>' || tag(c)),
            next => next.is_some_and(tag),
        }
    };
    let (at, _) = text.match_indices('<').find(begins)?;
    let length = if text[at..].starts_with("</>") { 3 } else { text.len() - at };
    Some((at, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each token's first letter and its text.
    fn tokens(html: &str) -> Vec<String> {
        let mut at = 0;
        let shown = scan(html, 0).into_iter().map(|Token { range, kind }| {
            assert!(range.start == at && range.end > at, "{html:?}");
            at = range.end;
            let letter = match kind {
                TokenKind::Text => 'T',
                TokenKind::Start { untranslated: true, .. } => 'N',
                TokenKind::Start { .. } => 'S',
                TokenKind::End { .. } => 'E',
                TokenKind::Other => 'O',
            };
            format!("{letter}{}", &html[range])
        });
        let shown: Vec<String> = shown.collect();
        assert_eq!(at, html.len());
        shown
    }

    #[test]
    fn tokens_are_the_document() {
        assert_eq!(
            tokens("<!DOCTYPE html><p\r\n CLASS='a>b'>A &amp; <B>ö</B\n><!-- <p> --><br/>&lt;"),
            [
                "O<!DOCTYPE html>",
                "S<p\r\n CLASS='a>b'>",
                "TA &amp; ",
                "S<B>",
                "Tö",
                "E</B\n>",
                "O<!-- <p> -->",
                "S<br/>",
                "T&lt;"
            ]
        );
        assert_eq!(
            tokens("<script>if (a<b) {'</p>'}</script>x"),
            ["S<script>", "Tif (a<b) {'</p>'}", "E</script>", "Tx"][..]
                .to_vec()
                .iter()
                .map(|s| s.to_string())
                .collect::<Vec<_>>()
        );
    }

    #[test]
    fn what_is_no_tag_is_text_and_what_is_half_a_tag_is_kept() {
        assert_eq!(tokens("a < b <3 </ x>"), ["Ta < b <3 ", "O</ x>"]);
        assert_eq!(tokens("a</>b<i class=\"x"), ["Ta", "O</>", "Tb", "O<i class=\"x"]);
        assert_eq!(tokens("<title>a <b>c</b></title>d"), ["S<title>", "Ta <b>c</b>", "E</title>", "Td"]);
        assert_eq!(tokens("a<!-- b"), ["Ta", "O<!-- b"]);
        assert_eq!(tokens("a<?php b ?>c<![CDATA[d]]>e"), ["Ta", "O<?php b ?>", "Tc", "O<![CDATA[d]]>", "Te"]);
        assert_eq!(tokens(""), [""; 0]);
        assert_eq!(tokens("a<"), ["Ta<"]);
    }

    #[test]
    fn elements_say_that_they_are_not_translated() {
        for tag in ["<p translate=no>", "<p TRANSLATE=\"NO\">", "<p class='a notranslate b'>"] {
            assert_eq!(tokens(tag), [format!("N{tag}")]);
        }
        for tag in ["<p translate=yes>", "<p translate>", "<p class=translate>", "<p data-x='translate=no'>"] {
            assert_eq!(tokens(tag), [format!("S{tag}")]);
        }
    }
}
