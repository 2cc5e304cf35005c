//! One sentence's search as an HTML page that needs nothing but itself.

mod attention_map;
mod search_graph;

use std::fmt;

use indexmap::IndexMap;
use serde_json::Value;

use crate::text::Tokenizer;
use crate::translator::{Explanation, Sentence};
use crate::{DecodeOptions, Stop};
use attention_map::AttentionMap;
use search_graph::SearchGraph;

/// The page.
pub(crate) struct Page<'a> {
    pub explanation: &'a Explanation,
    pub options: &'a DecodeOptions,
    pub sentence: &'a Sentence,
    pub tokenizer: &'a Tokenizer,
}

/// Text that stands in HTML, in an element or in quotes.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            '&' => f.write_str("&amp;"),
            '<' => f.write_str("&lt;"),
            '>' => f.write_str("&gt;"),
            '"' => f.write_str("&quot;"),
            '\'' => f.write_str("&#39;"),
            // Not allowed in HTML, whatever the way to write it.
            c if c.is_control() && !matches!(c, '\t' | '\n' | '\r') => f.write_str("\u{FFFD}"),
            c => write!(f, "{c}"),
        })
    }
}

/// A value in words: text without quotes.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// A token that fits into `limit` characters.
fn shortened(token: &str, limit: usize) -> String {
    match token.chars().count() > limit {
        true => token.chars().take(limit - 1).chain(['…']).collect(),
        false => token.to_string(),
    }
}

impl fmt::Display for Page<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let translation = &self.explanation.translation;
        let (source, best) = (Escaped(&translation.source), Escaped(translation.text()));
        // Its policy is a second lock beside the escaping: nothing on the page may run or load anything.
        f.write_str(include_str!("explain/head.html"))?;
        writeln!(f, "<title>Search: {source}</title>")?;
        write!(f, "<style>\n{}</style>\n</head>\n<body>\n", include_str!("explain/page.css"))?;
        write!(f, "<p class=\"source\">{source}</p>\n<h1>{best}</h1>\n")?;
        self.options(f)?;
        self.search(f)?;
        self.ranking(f)?;
        if let Some(weights) = &translation.hypotheses[0].attention {
            f.write_str("<h2>Attention</h2>\n<p class=\"quiet\">Where the last decoder layer looks in the source (across) for each \
                         token of the best translation (down), mean over its heads.</p>\n<div class=\"scroll\">\n")?;
            let (source, target) = (&self.explanation.source_pieces, &translation.hypotheses[0].tokens);
            writeln!(f, "{}</div>", AttentionMap { source, target, weights })?;
        }
        f.write_str("</body>\n</html>")
    }
}

/// The options that a page always shows.
const ALWAYS: [&str; 3] = ["beam_size", "length_penalty", "alpha"];

/// What a page shows in other words, or in another place.
const ELSEWHERE: [&str; 4] = ["preset", "stop", "max_length", "attention"];

/// All options by name, in the order of their fields.
fn listed(options: &DecodeOptions) -> IndexMap<String, Value> {
    // Through text: a map of the JSON library's own does not keep the order in every build.
    let text = serde_json::to_string(options).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}

impl Page<'_> {
    /// The options that say most about a search, the others where they are not the default, and what the sentence brings.
    fn options(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown: Vec<(String, String)> = Vec::new();
        let default = listed(&DecodeOptions::default());
        for (name, value) in listed(self.options) {
            let is_shown = ALWAYS.contains(&name.as_str()) || default.get(&name) != Some(&value);
            if is_shown && !ELSEWHERE.contains(&name.as_str()) {
                shown.push((name.replace('_', " "), plain(&value)));
            }
        }
        let stop = serde_json::to_value(self.options.stop_rule()).unwrap_or_default();
        shown.insert(ALWAYS.len(), ("stop".to_owned(), plain(&stop)));
        shown.insert(ALWAYS.len() + 1, ("maximum length".to_owned(), self.explanation.max_length.to_string()));
        let mut add = |name: &str, value: String| shown.push((name.to_owned(), value));
        if self.options.bans.is_some() {
            add("bans", "some".to_owned());
        }
        if !self.options.ensemble.is_empty() {
            let weights: Vec<String> = self.options.ensemble.iter().map(f32::to_string).collect();
            add("ensemble, weights", weights.join(", "));
        }
        let Sentence { prefix, contrast_source, constraints, seed, .. } = self.sentence;
        let Sentence { source_prefix, source_lang, target_lang, .. } = self.sentence;
        source_prefix.iter().for_each(|text| add("source prefix", text.clone()));
        source_lang.iter().for_each(|code| add("source language", code.clone()));
        target_lang.iter().for_each(|code| add("target language", code.clone()));
        prefix.iter().for_each(|text| add("prefix", text.clone()));
        constraints.iter().for_each(|phrase| add("must contain", phrase.clone()));
        contrast_source.iter().for_each(|text| add("contrasted with", text.clone()));
        seed.iter().for_each(|seed| add("seed of the sentence", seed.to_string()));
        f.write_str("<ul class=\"options\">\n")?;
        for (name, value) in shown {
            writeln!(f, "<li class=\"quiet\">{name} <b>{}</b></li>", Escaped(&value))?;
        }
        f.write_str("</ul>\n")
    }

    fn search(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Explanation { steps, translation, .. } = self.explanation;
        write!(f, "<h2>Search</h2>\n<p>{}</p>\n", self.ending())?;
        f.write_str(
            "<p class=\"legend\"><span><i class=\"key best\"></i>the best translation</span>\
             <span><i class=\"key kept\"></i>leads to a translation of the final list</span>\
             <span><i class=\"key\"></i>given up</span>\
             <span><i class=\"key end\"></i>finished, with its score</span>\
             <span>under a token: the sum of log-probabilities up to there</span></p>\n<div class=\"scroll\">\n",
        )?;
        let graph = SearchGraph { steps, tokenizer: self.tokenizer, hypotheses: &translation.hypotheses };
        writeln!(f, "{graph}</div>")
    }

    /// Why the search ended when it did.
    fn ending(&self) -> String {
        let Explanation { steps, translation, max_length, .. } = self.explanation;
        let (count, needed) = (steps.len(), self.options.finished_needed());
        if count >= *max_length {
            return format!("Ended after step {count}, the maximum length.");
        }
        if self.options.sample {
            return format!("Ended after step {count}: all samples had ended.");
        }
        if translation.hypotheses.len() < needed || self.options.shrink {
            return format!("Ended after step {count}: no hypothesis was left to extend.");
        }
        let reason = match self.options.stop_rule() {
            Stop::First => "that is enough",
            Stop::Heuristic => "none that was alive could beat the last of them if it ended there",
            Stop::Exact => "none that was alive could beat the last of them at any length",
            Stop::Top => "an end of sentence had ranked first",
        };
        format!("Ended after step {count}: {needed} had finished, and {reason}.")
    }

    fn ranking(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "<h2>Ranking</h2>\n<p class=\"quiet\">score = sum of log-probabilities / length penalty + coverage penalty + word \
             reward × length</p>\n<div class=\"scroll\">\n<table>\n<tr><th></th><th class=\"text\">translation</th><th>sum</th>\
             <th>length</th><th>length penalty</th><th>coverage</th><th>reward</th><th>score</th><th>finished</th></tr>\n",
        )?;
        for (rank, h) in self.explanation.translation.hypotheses.iter().enumerate() {
            let class = if rank == 0 { " class=\"best\"" } else { "" };
            let reward = self.options.word_reward * h.length as f32;
            let finished = if h.truncated { "cut at" } else { "step" };
            writeln!(
                f,
                "<tr{class}><td>{}</td><td class=\"text\">{}</td><td>{:.4}</td><td>{}</td><td>{:.4}</td><td>{:.4}</td>\
                 <td>{reward:.4}</td><td>{:.4}</td><td>{finished} {}</td></tr>",
                rank + 1,
                Escaped(&h.text),
                h.search_log_prob,
                h.length,
                h.length_penalty,
                h.coverage_penalty,
                h.score,
                h.length
            )?;
        }
        f.write_str("</table>\n</div>\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_leave_its_place() {
        assert_eq!(Escaped("a<b>&\"'\u{0}\n").to_string(), "a&lt;b&gt;&amp;&quot;&#39;\u{FFFD}\n");
        assert_eq!(shortened("▁Fahrrad", 8), "▁Fahrrad");
        assert_eq!(shortened("▁Fahrräder", 8), "▁Fahrrä…");
    }
}
