//! `translate --explain`: one sentence's search as an HTML page that needs nothing but itself.

mod attention_map;
mod search_graph;

use std::fmt;

use crate::text::Tokenizer;
use crate::translator::{Explanation, Sentence};
use crate::{Contrastive, DecodeOptions, LengthPenalty, Sampling, Stop, TextHypothesis};
use attention_map::AttentionMap;
use search_graph::SearchGraph;

/// The page.
pub(super) struct Page<'a> {
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

/// How many of [`listed`] a page always shows.
const ALWAYS: usize = 3;

/// All options in words.
fn listed(options: &DecodeOptions) -> Vec<(&'static str, String)> {
    let DecodeOptions {
        beam_size,
        n_best,
        length_penalty,
        coverage_penalty,
        word_reward,
        stop,
        patience,
        shrink,
        max_length: _, // as it came out for this sentence
        min_length,
        forced_bos,
        forced_free,
        allow_padding,
        count_start,
        renormalize,
        contrastive,
        repetition_penalty,
        penalize_logits,
        no_repeat_ngram,
        bans,
        ensemble,
        attention: _, // always drawn
        cut,
        groups,
        diversity,
        sampling,
        mbr,
        truncate_source,
    } = options;
    let penalty = match length_penalty {
        LengthPenalty::None => "none".to_string(),
        LengthPenalty::Gnmt { alpha } => format!("((5 + length) / 6)^{alpha}"),
        LengthPenalty::Power { alpha } => format!("length^{alpha}"),
        LengthPenalty::PowerOfAll { alpha } => format!("length^{alpha}, of the reward too"),
    };
    let stop = match stop {
        Stop::First => "first",
        Stop::Heuristic => "heuristic",
        Stop::Exact => "exact",
        Stop::Top => "top",
    };
    let contrast = contrastive.map_or("none".to_string(), |Contrastive { form, weight, mask, temperature }| {
        let form = format!("{form:?}").to_lowercase();
        format!("{form}, weight {weight}, mask {mask}, temperature of the amateur {temperature}")
    });
    let draws = sampling.as_ref().map_or("none".to_string(), |sampling| {
        let Sampling { samples, temperature, top_k, top_p, min_p, epsilon, seed } = sampling;
        format!(
            "{samples} samples, temperature {temperature}, top-k {top_k}, top-p {top_p}, min-p {min_p}, epsilon {epsilon}, \
             seed {seed}"
        )
    });
    let weights = ensemble.iter().map(f32::to_string).collect::<Vec<_>>().join(", ");
    vec![
        ("beams", beam_size.to_string()),
        ("length penalty", penalty),
        ("stop", stop.to_string()),
        ("n-best", n_best.to_string()),
        ("coverage penalty", coverage_penalty.to_string()),
        ("word reward", word_reward.to_string()),
        ("patience", patience.to_string()),
        ("shrinking beam", shrink.to_string()),
        ("minimum length", min_length.to_string()),
        ("first token", forced_bos.map_or("any".to_string(), |id| format!("id {id}"))),
        ("forced tokens free", forced_free.to_string()),
        ("padding allowed", allow_padding.to_string()),
        ("start token counts", count_start.to_string()),
        ("renormalized", renormalize.to_string()),
        ("contrast", contrast),
        ("repetition penalty", repetition_penalty.to_string()),
        ("penalty on logits", penalize_logits.to_string()),
        ("no n-gram twice, n", no_repeat_ngram.to_string()),
        ("bans", if bans.is_some() { "some" } else { "none" }.to_string()),
        ("ensemble, weights", weights),
        ("cut", cut.to_string()),
        ("beam groups", groups.to_string()),
        ("diversity", diversity.to_string()),
        ("sampling", draws),
        ("minimum Bayes risk", mbr.map_or("no".to_string(), |utility| format!("{utility:?}").to_lowercase())),
        ("cuts long sources", truncate_source.to_string()),
    ]
}

impl Page<'_> {
    /// The options that say most about a search, the others where they are not the default, and what the sentence brings.
    fn options(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let default = listed(&DecodeOptions::default());
        let own = listed(self.options).into_iter().zip(default).enumerate();
        let mut shown: Vec<(&str, String)> =
            own.filter(|(at, (own, default))| *at < ALWAYS || own != default).map(|(_, (own, _))| own).collect();
        shown.insert(ALWAYS, ("maximum length", self.explanation.max_length.to_string()));
        let Sentence { prefix, contrast_source, constraints, seed, source_lang, target_lang, .. } = self.sentence;
        shown.extend(source_lang.clone().map(|code| ("source language", code)));
        shown.extend(target_lang.clone().map(|code| ("target language", code)));
        shown.extend(prefix.clone().map(|text| ("prefix", text)));
        shown.extend(constraints.iter().map(|phrase| ("must contain", phrase.clone())));
        shown.extend(contrast_source.clone().map(|text| ("contrasted with", text)));
        shown.extend(seed.map(|seed| ("seed of the sentence", seed.to_string())));
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
        if self.options.sampling.is_some() {
            return format!("Ended after step {count}: all samples had ended.");
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
