//! Text of HTML as characters, and characters as text of HTML.

use std::borrow::Cow;

use html5gum::Token;

use super::scan::tokenizer;

/// The longest character reference, `&CounterClockwiseContourIntegral;`, has 33 bytes.
const LONGEST_REFERENCE: usize = 40;

/// Calls `each` with every character of a text, or the few that a reference stands for, and the bytes that it takes.
pub(super) fn decode(text: &str, mut each: impl FnMut(&str, usize)) {
    let mut at = 0;
    while let Some(c) = text[at..].chars().next() {
        let rest = &text[at..];
        let length = match reference(rest) {
            Some((decoded, length)) => {
                each(&decoded, length);
                length
            }
            None => {
                each(&rest[..c.len_utf8()], c.len_utf8());
                c.len_utf8()
            }
        };
        at += length;
    }
}

/// The character reference that a text begins with, and its bytes.
fn reference(text: &str) -> Option<(String, usize)> {
    let body = text.strip_prefix('&')?;
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '#';
    let named = body.find(|c| !is_part(c)).unwrap_or(body.len()).min(LONGEST_REFERENCE);
    let whole = &text[..1 + named + usize::from(body[named..].starts_with(';'))];
    let decoded = decode_all(whole)?;
    // Without a semicolon the name may end before the letters do.
    let is_all = |end: &usize| {
        let (name, rest) = whole.split_at(*end);
        decode_all(name).is_some_and(|name| format!("{name}{rest}") == decoded)
    };
    let end = if whole.ends_with(';') { whole.len() } else { (2..whole.len()).find(is_all).unwrap_or(whole.len()) };
    Some((decode_all(&whole[..end])?, end))
}

/// The characters of a text with a reference; none if it has none.
fn decode_all(text: &str) -> Option<String> {
    let strings = tokenizer(text).filter_map(|token| match token {
        Ok(Token::String(text)) => Some(String::from_utf8_lossy(&text.value).into_owned()),
        _ => None,
    });
    Some(strings.collect::<String>()).filter(|decoded| decoded != text)
}

/// Writes a text as it stands in HTML.
pub(in crate::document) fn encode(text: &str) -> Cow<'_, str> {
    if !text.contains(['&', '<', '>', '\u{a0}']) {
        return text.into();
    }
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('\u{a0}', "&nbsp;").into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decoded(html: &str) -> Vec<(String, usize)> {
        let mut found = Vec::new();
        decode(html, |text, bytes| found.push((text.to_owned(), bytes)));
        found
    }

    #[test]
    fn references_are_the_characters_that_they_stand_for() {
        let pair = |text: &str, bytes| (text.to_owned(), bytes);
        assert_eq!(decoded("&amp;ä&#228;"), [pair("&", 5), pair("ä", 2), pair("ä", 6)]);
        assert_eq!(decoded("&ampx"), [pair("&", 4), pair("x", 1)]);
        assert_eq!(decoded("&x;"), [pair("&", 1), pair("x", 1), pair(";", 1)]);
        assert_eq!(decoded("&#x1F600;&NotEqualTilde;"), [pair("😀", 9), pair("≂\u{338}", 15)]);
        assert_eq!(decoded("&#0;&"), [pair("\u{fffd}", 4), pair("&", 1)]);
        assert_eq!(decoded("&nbsp;&CounterClockwiseContourIntegral;"), [pair("\u{a0}", 6), pair("∳", 33)]);
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(text in "[a-z&;#<> \u{a0}ä0-9]{0,20}") {
            let encoded = encode(&text).into_owned();
            prop_assert!(!encoded.contains(['<', '>']));
            prop_assert_eq!(decoded(&encoded).into_iter().map(|(text, _)| text).collect::<String>(), text);
        }

        #[test]
        fn every_byte_belongs_to_a_character(html in "(&(amp|lt|notit|#x?[0-9]{0,9}|[a-z]{0,50});?|.){0,20}") {
            prop_assert_eq!(decoded(&html).into_iter().map(|(_, bytes)| bytes).sum::<usize>(), html.len());
        }
    }
}
