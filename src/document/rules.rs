//! What is known of a language's abbreviations, beyond the rules of Unicode.

use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;

/// The data, which says itself how to read it.
const DATA: &str = include_str!("abbreviations.txt");

/// Where the sentences of one language do not end.
#[derive(Debug, Default)]
pub struct Rules {
    never: HashSet<&'static str>,
    number: HashSet<&'static str>,
    starters: HashSet<&'static str>,
    ordinals: HashSet<&'static str>,
}

/// The rules of each language under each of its codes, and those of all together.
struct Table {
    languages: HashMap<&'static str, Rules>,
    /// The first code for each further one.
    codes: HashMap<&'static str, &'static str>,
    all: Rules,
}

static TABLE: LazyLock<Table> = LazyLock::new(|| Table::read(DATA));

impl Table {
    fn read(data: &'static str) -> Self {
        let mut table = Table { languages: HashMap::new(), codes: HashMap::new(), all: Rules::default() };
        let mut language = "";
        for line in data.lines().filter(|line| !line.starts_with('#')) {
            if let Some(codes) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
                language = codes.split(' ').next().unwrap_or_default();
                table.codes.extend(codes.split(' ').map(|code| (code, language)));
            }
            let Some((list, words)) = line.split_once(' ').filter(|(list, _)| !list.starts_with('[')) else { continue };
            let rules = table.languages.entry(language).or_default();
            for rules in [rules, &mut table.all] {
                if let Some(set) = rules.list(list) {
                    set.extend(words.split(' '));
                }
            }
        }
        // Where the language is not known, "3. Mai" may as well be the end of a sentence and a beginning.
        table.all.ordinals.clear();
        table
    }
}

impl Rules {
    /// The rules of a language: a code such as `de`, `deu`, `de_DE` or `deu_Latn`. For a language that is not listed, or none, the
    /// abbreviations of all languages together.
    pub fn of(language: Option<&str>) -> &'static Self {
        let code = language.and_then(|code| code.split(['_', '-']).next()).unwrap_or_default().to_lowercase();
        let found = TABLE.codes.get(code.as_str()).and_then(|code| TABLE.languages.get(code));
        found.unwrap_or(&TABLE.all)
    }

    /// Whether there is a list for this language.
    pub fn has(language: &str) -> bool {
        !std::ptr::eq(Self::of(Some(language)), &TABLE.all)
    }

    fn list(&mut self, name: &str) -> Option<&mut HashSet<&'static str>> {
        match name {
            "never" => Some(&mut self.never),
            "number" => Some(&mut self.number),
            "starters" => Some(&mut self.starters),
            "ordinals" => Some(&mut self.ordinals),
            _ => None,
        }
    }

    /// Whether this abbreviation, without its last full stop, ends no sentence before this word or number.
    pub(super) fn goes_on(&self, abbreviation: &str, following: &str) -> bool {
        let before_number = following.starts_with(|c: char| c.is_numeric());
        // An abbreviation of some language may be a word of another.
        let doubtful = std::ptr::eq(self, &TABLE.all) && self.starts(following);
        (contains(&self.never, abbreviation) && !doubtful) || (before_number && contains(&self.number, abbreviation))
    }

    /// Whether a sentence begins with this word, whatever stands before it.
    pub(super) fn starts(&self, word: &str) -> bool {
        self.starters.contains(word)
    }

    /// Whether the language writes ordinal numbers with a full stop.
    pub(super) fn has_ordinals(&self) -> bool {
        !self.ordinals.is_empty()
    }

    /// Whether an ordinal number is what stands before this word.
    pub(super) fn follows_ordinal(&self, word: &str) -> bool {
        self.ordinals.contains(word)
    }
}

/// Whether a list has the word, or the word with a small first letter.
fn contains(list: &HashSet<&'static str>, word: &str) -> bool {
    let mut letters = word.chars();
    let small = || letters.next().map(|first| first.to_lowercase().chain(letters).collect::<String>());
    list.contains(word) || small().is_some_and(|word| list.contains(word.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_data_is_read() {
        let lists = DATA.lines().filter(|line| !line.is_empty() && !line.starts_with(['#', '[']));
        for line in lists {
            let name = line.split(' ').next().unwrap_or_default();
            assert!(Rules::default().list(name).is_some(), "{line}");
            assert!(!line.contains("  ") && !line.ends_with(' '), "{line}");
        }
        assert_eq!(TABLE.languages.len(), DATA.lines().filter(|line| line.starts_with('[')).count());
        for (code, rules) in &TABLE.languages {
            assert!(!rules.never.is_empty() && !rules.number.is_empty() && !rules.starters.is_empty(), "{code}");
        }
    }

    #[test]
    fn a_language_has_many_codes() {
        let german = Rules::of(Some("de"));
        for code in ["deu", "ger", "de_DE", "DE", "de-AT", "deu_Latn"] {
            assert!(std::ptr::eq(Rules::of(Some(code)), german), "{code}");
        }
        assert!(german.has_ordinals() && !Rules::of(Some("en")).has_ordinals());
        assert!(std::ptr::eq(Rules::of(None), Rules::of(Some("tlh"))) && !Rules::has("tlh") && Rules::has("ru"));
    }
}
