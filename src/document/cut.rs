//! Sentences that are longer than a model reads.

use std::ops::Range;

use unicode_segmentation::GraphemeCursor;

use super::split::trim;

/// Cuts a text into parts that fit: each as long as it can be, up to a clause mark in its second half, else up to white space, else
/// within a word. The parts have no white space around them, and nothing else lies between them. A character that does not fit alone
/// is a part all the same.
pub(super) fn cut(text: &str, fits: impl Fn(&str) -> bool) -> Vec<Range<usize>> {
    let mut parts = Vec::new();
    let mut start = 0;
    loop {
        let rest = text[start..].trim_start();
        if rest.is_empty() {
            return parts;
        }
        start = text.len() - rest.len();
        let longest = longest(rest, &fits);
        let end = start + if longest == rest.len() { longest } else { good_end(rest, longest) };
        parts.push(trim(text, start..end));
        start = end;
    }
}

/// The longest beginning that fits, at least a character. It is looked for from the short end: texts may be much longer.
fn longest(text: &str, fits: impl Fn(&str) -> bool) -> usize {
    let mut low = text.chars().next().map_or(0, char::len_utf8);
    let mut high = 64;
    loop {
        high = text.floor_char_boundary(high).max(low);
        if high > low && !fits(&text[..high]) {
            break;
        }
        low = high;
        if high == text.len() {
            return high;
        }
        high *= 2;
    }
    loop {
        let middle = text.floor_char_boundary(low.midpoint(high));
        // No character lies between them.
        let middle = if middle > low { middle } else { text.ceil_char_boundary(low + 1) };
        if middle >= high {
            return low;
        }
        if fits(&text[..middle]) { low = middle } else { high = middle }
    }
}

/// Where to cut a text that goes on behind `longest`.
fn good_end(text: &str, longest: usize) -> usize {
    let is_mark = |c: char| ",;:–—)".contains(c);
    let is_wide_mark = |c: char| "，；：、。！？…".contains(c);
    let mut ends = text[..longest].char_indices().rev();
    let mark = ends.find(|(at, c)| {
        let behind = &text[at + c.len_utf8()..];
        *at >= longest / 2 && (is_wide_mark(*c) || is_mark(*c) && behind.starts_with(char::is_whitespace))
    });
    if let Some((at, mark)) = mark {
        return at + mark.len_utf8();
    }
    if text[longest..].starts_with(char::is_whitespace) {
        return longest;
    }
    if let Some(space) = text[..longest].rfind(char::is_whitespace).filter(|space| *space > 0) {
        return space;
    }
    let mut cursor = GraphemeCursor::new(longest, text.len(), true);
    match (cursor.is_boundary(text, 0), cursor.prev_boundary(text, 0)) {
        (Ok(false), Ok(Some(before))) if before > 0 => before,
        _ => longest,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(text: &str, limit: usize) -> Vec<&str> {
        cut(text, |part| part.chars().count() <= limit).into_iter().map(|range| &text[range]).collect()
    }

    #[test]
    fn clause_marks_are_better_than_spaces_and_spaces_better_than_words() {
        assert_eq!(parts("One dog, two cats and three birds", 12), ["One dog,", "two cats and", "three birds"]);
        assert_eq!(parts("One, two dogs and", 16), ["One, two dogs", "and"]);
        assert_eq!(parts("abcdefgh", 3), ["abc", "def", "gh"]);
        assert_eq!(parts("犬が走る、猫が寝る", 6), ["犬が走る、", "猫が寝る"]);
        assert_eq!(parts("short", 12), ["short"]);
        assert_eq!(parts("", 12), [""; 0]);
        // A letter keeps its accents.
        assert_eq!(parts("ae\u{301}e\u{301}", 4), ["ae\u{301}", "e\u{301}"]);
    }

    #[test]
    fn a_character_too_many_is_a_part() {
        assert_eq!(parts("äö", 0), ["ä", "ö"]);
    }

    #[test]
    fn nothing_but_white_space_lies_between_the_parts() {
        let text = "ä b,  c 犬。".repeat(97);
        for limit in 1..40 {
            let mut at = 0;
            for part in cut(&text, |part| part.chars().count() <= limit) {
                assert!(text[at..part.start].trim().is_empty() && text[part.clone()].chars().count() <= limit);
                at = part.end;
            }
            assert!(text[at..].trim().is_empty());
        }
    }
}
