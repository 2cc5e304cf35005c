//! Which elements are open, and where one ends whose content is not translated.

use std::collections::HashMap;

use super::names;
use super::scan::{Token, TokenKind};

/// The block elements that are open. What has no end tag ends with what it stands in.
#[derive(Debug, Default)]
pub(super) struct Open {
    names: Vec<String>,
    counts: HashMap<String, usize>,
}

impl Open {
    pub fn begin(&mut self, name: &str) {
        self.names.push(name.to_owned());
        *self.counts.entry(name.to_owned()).or_default() += 1;
    }

    pub fn end(&mut self, name: &str) {
        // Names that are not open are not looked for: there may be as many of them as there are open ones.
        while self.has(name)
            && let Some(last) = self.names.pop()
        {
            self.counts.entry(last.clone()).and_modify(|count| *count -= 1);
            if last == name {
                return;
            }
        }
    }

    pub fn has(&self, name: &str) -> bool {
        self.counts.get(name).is_some_and(|count| *count > 0)
    }

    /// Whether white space is shown as it stands.
    pub fn keeps_space(&self) -> bool {
        self.has("pre") || self.has("listing")
    }
}

/// The token behind an element whose content is not translated: behind its end tag; before what implies its end, such as the end of
/// what it stands in; else behind all.
pub(super) fn end_of(tokens: &[Token], start: usize, name: &str, open: &Open) -> usize {
    let is_implied = names::is_closed_by_next(name);
    // Elements that are open within; of those that implied ends separate, the lists and tables alone.
    let mut within: HashMap<&str, usize> = HashMap::new();
    let mut containers = 0usize;
    for (at, token) in tokens.iter().enumerate().skip(start + 1) {
        match &token.kind {
            TokenKind::Start { name: next, .. } if is_implied && containers == 0 && ends_before(name, next) => {
                return at;
            }
            TokenKind::Start { name: next, .. } if next != name || !is_implied => {
                *within.entry(next).or_default() += usize::from(!names::is_void(next));
                containers += usize::from(is_container(next));
            }
            TokenKind::End { name: ended } => {
                containers = containers.saturating_sub(usize::from(is_container(ended)));
                match within.get_mut(ended.as_str()) {
                    Some(count) if *count > 0 => *count -= 1,
                    _ if ended == name && containers == 0 => return at + 1,
                    _ if ended != name && (open.has(ended) || is_implied && is_container(ended)) => return at,
                    _ => {}
                }
            }
            _ => {}
        }
    }
    tokens.len()
}

fn is_container(name: &str) -> bool {
    ["ul", "ol", "dl", "menu", "table", "select", "optgroup"].contains(&name)
}

/// Whether an element whose end tag may be left out ends before one of this name.
fn ends_before(name: &str, next: &str) -> bool {
    let alike = [["dd", "dt"], ["td", "th"]];
    name == next
        || (name == "p" && names::is_block(next))
        || alike.iter().any(|pair| pair.contains(&name) && pair.contains(&next))
}
