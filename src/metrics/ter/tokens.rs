//! Words as tercom's normaliser makes them.

use crate::metrics::tokenize::{is_space, part_pairs, space_out, space_out_symbols};

/// What happens to text before its words are compared; the names are those of sacrebleu's options.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TerOptions {
    /// Part punctuation from words, decode entities; with `asian_support` Chinese characters become words, too. Default no.
    pub normalized: bool,
    /// Remove punctuation; with `asian_support` that of East Asian scripts, too. Default no.
    pub no_punct: bool,
    /// See the two above; without them it does nothing. Default no.
    pub asian_support: bool,
    /// Tell capitals from small letters. Default no.
    pub case_sensitive: bool,
}

impl TerOptions {
    /// The settings in the form of sacrebleu's signatures.
    pub fn signature(&self) -> String {
        let case = if self.case_sensitive { "mixed" } else { "lc" };
        let yes = |yes: bool| if yes { "yes" } else { "no" };
        let (norm, punct, asian) = (yes(self.normalized), yes(!self.no_punct), yes(self.asian_support));
        format!("case:{case}|tok:tercom|norm:{norm}|punct:{punct}|asian:{asian}")
    }

    /// The words of a text.
    pub fn words(&self, text: &str) -> Vec<String> {
        let mut text = match self.case_sensitive {
            true => text.trim_end_matches(is_space).to_owned(),
            false => text.trim_end_matches(is_space).to_lowercase(),
        };
        if text.is_empty() {
            return Vec::new();
        }
        if self.normalized {
            text = normalize_western(&text);
            if self.asian_support {
                text = space_out(&text, is_asian);
            }
        }
        if self.no_punct {
            let removed = |c| ".,?:;!\"()".contains(c) || self.asian_support && is_asian_punctuation(c);
            text.retain(|c| !removed(c));
        }
        text.split(is_space).filter(|word| !word.is_empty()).map(str::to_owned).collect()
    }
}

fn normalize_western(text: &str) -> String {
    let mut text = text.replace("\n-", "").replace('\n', " ");
    // In this order: `&amp;lt;` becomes `<`.
    for (entity, symbol) in [("&quot;", "\""), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">")] {
        text = text.replace(entity, symbol);
    }
    let text = space_out_symbols(&format!(" {text} ")).replace("'s ", " 's ");
    let digit = |c: char| c.is_ascii_digit();
    let point = |c: char| matches!(c, '.' | ',');
    let text = part_pairs(&text, |a, b| !digit(a) && point(b), "", " ");
    let text = part_pairs(&text, |a, b| point(a) && !digit(b), " ", "");
    part_pairs(&text, |a, b| digit(a) && b == '-', "", " ")
}

/// Characters that are words of their own: Chinese ones, strokes and radicals, compatibility forms, enclosed ones (the range ends
/// inside the ideographs of extension A, which are all in it), punctuation. Kana are left together.
fn is_asian(c: char) -> bool {
    matches!(c, '\u{2e80}'..='\u{2eff}' | '\u{31c0}'..='\u{31ef}' | '\u{3200}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}')
        || matches!(c, '\u{f900}'..='\u{faff}' | '\u{fe30}'..='\u{fe4f}')
        || is_asian_punctuation(c)
}

fn is_asian_punctuation(c: char) -> bool {
    matches!(c, '\u{3001}' | '\u{3002}' | '\u{3008}'..='\u{3011}' | '\u{3014}'..='\u{301f}' | '\u{ff61}'..='\u{ff65}')
        || matches!(c, '\u{30fb}' | '\u{ff0e}' | '\u{ff0c}' | '\u{ff1f}' | '\u{ff1a}' | '\u{ff1b}' | '\u{ff01}')
        || matches!(c, '\u{ff02}' | '\u{ff08}' | '\u{ff09}')
}
