//! The 13a tokens that BLEU counts: those of NIST's `mteval-v13a.pl`, as sacrebleu reproduces them.

/// White space where Python's `str.split` splits, which is where sacrebleu does: Unicode's, and the separators 1c to 1f.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// Splits a line into 13a tokens.
///
/// ASCII symbols other than `'`, `,`, `-` and `.` stand alone; periods and commas do unless between digits; a dash does after
/// a digit. Beyond ASCII only white space splits. Four HTML entities are decoded; `<skipped>` is removed.
pub fn tokenize_13a(text: &str) -> Vec<String> {
    let mut line = text.trim_end_matches(is_space).replace("<skipped>", "").replace("-\n", "").replace('\n', " ");
    if line.contains('&') {
        // In this order: `&amp;lt;` becomes `<`, `&amp;quot;` becomes `&quot;`.
        for (entity, symbol) in [("&quot;", "\""), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">")] {
            line = line.replace(entity, symbol);
        }
    }
    let line = space_out_symbols(&format!(" {line} "));
    let digit = |c: char| c.is_ascii_digit();
    let point = |c: char| matches!(c, '.' | ',');
    let line = part_pairs(&line, |a, b| !digit(a) && point(b), "", " ");
    let line = part_pairs(&line, |a, b| point(a) && !digit(b), " ", "");
    let line = part_pairs(&line, |a, b| digit(a) && b == '-', "", " ");
    line.split(is_space).filter(|token| !token.is_empty()).map(String::from).collect()
}

/// Puts a space on both sides of every ASCII symbol that always stands alone.
fn space_out_symbols(line: &str) -> String {
    let mut out = String::with_capacity(line.len() * 2);
    for c in line.chars() {
        if c.is_ascii_punctuation() && !matches!(c, '\'' | ',' | '-' | '.') {
            out.extend([' ', c, ' ']);
        } else {
            out.push(c);
        }
    }
    out
}

/// Parts two neighbours with a space where `hit` says so, and puts `before` and `after` around them.
///
/// Goes left to right, and the second of a pair is not the first of another, as with `re.sub`: so `...` is parted only in
/// every other place by one rule, and the next rule does the rest.
fn part_pairs(line: &str, hit: impl Fn(char, char) -> bool, before: &str, after: &str) -> String {
    let mut out = String::with_capacity(line.len() * 2);
    let mut chars = line.chars().peekable();
    while let Some(a) = chars.next() {
        match chars.next_if(|&b| hit(a, b)) {
            Some(b) => {
                out.push_str(before);
                out.extend([a, ' ', b]);
                out.push_str(after);
            }
            None => out.push(a),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_stay_between_digits_only() {
        assert_eq!(
            tokenize_13a("Es kostet 1,234.5 Euro, ja..."),
            ["Es", "kostet", "1,234.5", "Euro", ",", "ja", ".", ".", "."]
        );
    }

    #[test]
    fn white_space_alone_has_no_tokens() {
        assert!(tokenize_13a(" \t\u{a0}\u{1f}\n").is_empty());
    }
}
