//! What stands in a text beside its sentences: list markers, pictographs, addresses.

/// Bytes of the markers that a line begins with, the white space behind them included: bullets, numbers as in `1.`, `2)`, `(iv)`,
/// `[3]`, letters as in `a)`, check boxes, the signs of quoted lines and headings. 0 for a line without any, or with nothing else.
///
/// `is_ordinal` says of a number with a full stop, and of the word behind it, that they belong together, as in "1. Mai".
pub(super) fn markers(line: &str, is_ordinal: impl Fn(&str) -> bool) -> usize {
    let mut at = 0;
    // Quoted lines are nested, and have lists; a line of nothing but such signs has no end of them.
    for _ in 0..8 {
        let rest = &line[at..];
        let token = match rest.starts_with("[ ]") {
            true => &rest[..3],
            false => rest.split(char::is_whitespace).next().unwrap_or_default(),
        };
        let behind = rest[token.len()..].trim_start();
        let ordinal = token.ends_with('.') && is_ordinal(first_word(behind));
        let is_spaced = rest.len() > token.len() + behind.len();
        if behind.is_empty() || !is_spaced || !is_marker(token) || ordinal {
            break;
        }
        at = line.len() - behind.len();
    }
    at
}

fn is_marker(token: &str) -> bool {
    let bullets = "-–—*+•‣◦▪▫■□●○⁃∙·※>|☐☑☒✓✔✗✘";
    let mut letters = token.chars();
    if let (Some(only), None) = (letters.next(), letters.next()) {
        return bullets.contains(only) || only == '#';
    }
    let heading = token.len() <= 6 && token.chars().all(|c| c == '#') || token.chars().all(|c| c == '>');
    heading || ["[ ]", "[x]", "[X]", "[]", "--"].contains(&token) || is_enumerator(token)
}

/// Whether this counts the items of a list.
fn is_enumerator(token: &str) -> bool {
    let inner = token.strip_prefix('(').and_then(|token| token.strip_suffix(')'));
    let inner = inner.or_else(|| token.strip_prefix('[').and_then(|token| token.strip_suffix(']')));
    let closed = inner.or_else(|| token.strip_suffix(')'));
    let digits = |part: &str| (1..=3).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit());
    let number = |number: &str| number.split('.').all(digits);
    let roman = |part: &str| part.len() <= 5 && part.bytes().all(|b| b"ivxIVX".contains(&b));
    let letter = |part: &str| part.chars().count() == 1 && part.chars().all(char::is_alphabetic);
    match (closed, token.strip_suffix('.')) {
        (Some(inner), _) => !inner.is_empty() && (number(inner) || roman(inner) || letter(inner)),
        // A capital letter is more likely an initial.
        (None, Some(inner)) => number(inner) || letter(inner) && inner.chars().all(char::is_lowercase),
        (None, None) => false,
    }
}

/// The word, or the number, that a text begins with, behind quotes and brackets.
pub(super) fn first_word(text: &str) -> &str {
    let text = text.trim_start_matches(|c: char| !c.is_alphanumeric() && !c.is_whitespace());
    let end = text.find(|c: char| !c.is_alphanumeric()).unwrap_or(text.len());
    &text[..end]
}

/// The range of a sentence within the pictographs and white space around it.
pub(super) fn without_pictographs(text: &str) -> std::ops::Range<usize> {
    let beside = |c: char| is_pictograph(c) || c.is_whitespace();
    let start = text.len() - text.trim_start_matches(beside).len();
    let end = start + text[start..].trim_end_matches(beside).len();
    start..end
}

/// Emoji, arrows, dingbats and what joins and colours them.
fn is_pictograph(c: char) -> bool {
    matches!(c, '\u{1f000}'..='\u{1faff}' | '\u{2190}'..='\u{21ff}' | '\u{2300}'..='\u{23ff}' | '\u{2460}'..='\u{27bf}'
        | '\u{2900}'..='\u{297f}' | '\u{2b00}'..='\u{2bff}' | '\u{fe0e}' | '\u{fe0f}' | '\u{200d}' | '\u{20e3}'
        | '\u{e0020}'..='\u{e007f}')
        && !c.is_alphabetic()
}

/// Whether a word without white space is an address: of a page, of a person, of a file.
pub(super) fn is_address(word: &str) -> bool {
    let word = word.trim_matches(|c: char| "<>()[]{}\"'“”‘’«»,;.!?".contains(c));
    let scheme = word.split_once("://").or_else(|| word.split_once("mailto:"));
    let is_scheme = |name: &str| name.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
    let host = |host: &str| host.contains('.') && host.split('.').all(|part| !part.is_empty());
    let at = word.split_once('@').is_some_and(|(user, at)| !user.is_empty() && host(at));
    let path = || {
        let (before, _) = word.split_once(['/', '?', '#', '\\']).unwrap_or((word, ""));
        let from_root = word.starts_with('/') && word.len() > 1;
        word.len() > before.len() && (host(before) || from_root || before.ends_with(':'))
    };
    scheme.is_some_and(|(name, rest)| is_scheme(name) && !rest.is_empty())
        || word.starts_with("www.")
        || at
        || word.is_ascii() && path()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_have_markers() {
        let length = |line: &str| markers(line, |word| word == "Mai");
        for (marker, rest) in [
            ("- ", "Milk"),
            ("* ", "Milk"),
            ("•\t", "Milk"),
            ("1. ", "Milk"),
            ("12) ", "Milk"),
            ("(3)  ", "Milk"),
            ("a) ", "Milk"),
            ("(b) ", "Milk"),
            ("iv) ", "Milk"),
            ("2.1. ", "Milk"),
            ("> > - ", "Milk"),
            ("## ", "Milk"),
            ("- [ ] ", "Milk"),
            ("- [x] ", "Milk"),
            ("[2] ", "Milk"),
            ("a. ", "milk"),
            ("— ", "Hello."),
            ("1. ", "Maier"),
        ] {
            assert_eq!(length(&format!("{marker}{rest}")), marker.len(), "{marker}");
        }
        for line in [
            "",
            "-",
            "- ",
            "1.",
            "-5 degrees",
            "1.5 l",
            "A. Smith",
            "1. Mai",
            "1990. A",
            "a dog",
            "(see",
            "(the) dog",
            "...",
            "#tag",
        ] {
            assert_eq!(length(line), 0, "{line}");
        }
    }

    #[test]
    fn addresses_are_told_from_words() {
        for address in [
            "https://example.com/?q=a",
            "www.example.com",
            "me@example.com",
            "(me@example.com).",
            "example.com/a",
            "ftp://a",
            "/usr/bin/env",
            "C:\\a\\b",
            "http://[::1]/",
            "mailto:me@a.b",
            "a.b/?x=1&y=2",
        ] {
            assert!(is_address(address), "{address}");
        }
        for word in [
            "dog",
            "and/or",
            "24/7",
            "What?Now",
            "Hello!How",
            "@dog",
            "#dog",
            "e.g.",
            "3.14",
            "he/she",
            "...",
            "Dog.Cat",
            "::",
            "",
        ] {
            assert!(!is_address(word), "{word}");
        }
    }

    #[test]
    fn pictographs_stand_beside_a_sentence() {
        let inner = |text: &str| text[without_pictographs(text)].to_owned();
        assert_eq!(inner("😀 A dog 🐕‍🦺❤️"), "A dog");
        assert_eq!(inner("→ next ©"), "next ©");
        assert_eq!(inner("👩🏽‍🚀🇩🇪 1️⃣"), "1");
        assert_eq!(inner("🎉 🎉"), "");
        assert_eq!(inner("a 😀 b"), "a 😀 b");
    }
}
