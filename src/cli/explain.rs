//! `translate --explain`: one sentence's search as an HTML page that needs nothing but itself.

mod attention_map;
mod search_graph;

use std::fmt;

use crate::text::Tokenizer;
use crate::translator::Explanation;
use crate::{DecodeOptions, LengthPenalty, Stop, TextHypothesis};
use attention_map::AttentionMap;
use search_graph::SearchGraph;

/// The page.
pub(super) struct Page<'a> {
    pub explanation: &'a Explanation,
    pub options: &'a DecodeOptions,
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
        if let Some(weights) = &translation.hypotheses[0].hypothesis.attention {
            f.write_str("<h2>Attention</h2>\n<p class=\"quiet\">Where the last decoder layer looks in the source (across) for each \
                         token of the best translation (down), mean over its heads.</p>\n<div class=\"scroll\">\n")?;
            let (source, target) = (&self.explanation.source_pieces, &translation.hypotheses[0].tokens);
            writeln!(f, "{}</div>", AttentionMap { source, target, weights })?;
        }
        f.write_str("</body>\n</html>")
    }
}

impl Page<'_> {
    fn options(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DecodeOptions { beam_size, coverage_penalty, word_reward, min_length, .. } = self.options;
        let penalty = match self.options.length_penalty {
            LengthPenalty::None => "none".to_string(),
            LengthPenalty::Gnmt { alpha } => format!("((5 + length) / 6)^{alpha}"),
            LengthPenalty::Power { alpha } => format!("length^{alpha}"),
            LengthPenalty::PowerOfAll { alpha } => format!("length^{alpha}, of the reward too"),
        };
        let stop = match self.options.stop {
            Stop::First => "first",
            Stop::Heuristic => "heuristic",
            Stop::Exact => "exact",
            Stop::Top => "top",
        };
        f.write_str("<ul class=\"options\">\n")?;
        for (name, value) in [
            ("beams", beam_size.to_string()),
            ("length penalty", penalty),
            ("coverage penalty", coverage_penalty.to_string()),
            ("word reward", word_reward.to_string()),
            ("stop", stop.to_string()),
            ("minimum length", min_length.to_string()),
            ("maximum length", self.explanation.max_length.to_string()),
        ] {
            writeln!(f, "<li class=\"quiet\">{name} <b>{value}</b></li>")?;
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
        if translation.hypotheses.len() < needed || self.options.shrink {
            return format!("Ended after step {count}: no hypothesis was left to extend.");
        }
        let reason = match self.options.stop {
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
        for (rank, TextHypothesis { text, hypothesis: h, .. }) in
            self.explanation.translation.hypotheses.iter().enumerate()
        {
            let class = if rank == 0 { " class=\"best\"" } else { "" };
            let reward = self.options.word_reward * h.length as f32;
            let finished = if h.truncated { "cut at" } else { "step" };
            writeln!(
                f,
                "<tr{class}><td>{}</td><td class=\"text\">{}</td><td>{:.4}</td><td>{}</td><td>{:.4}</td><td>{:.4}</td>\
                 <td>{reward:.4}</td><td>{:.4}</td><td>{finished} {}</td></tr>",
                rank + 1,
                Escaped(text),
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
