//! What the figures say: which remedy fits, and why. The thresholds are starting points, not laws, and are printed with it.

use std::fmt;

use serde::Serialize;

/// The numbers that a verdict is made of; not finite where there is none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evidence {
    /// Length in model tokens that 95% of the references do not exceed.
    pub reference_length: f64,
    /// chrF of continuations of gold prefixes over that of own prefixes.
    pub prefix_ratio: f64,
    /// Of a corrupted token's effect, in tokens.
    pub half_life: f64,
    /// How far BLEU falls below that of references of 9 to 32 tokens, in the worst bucket.
    pub bucket_drop: f64,
    /// Lower bound of the slope of excess accumulated error.
    pub excess_error_slope: f64,
    /// Share of lines flagged.
    pub flagged: f64,
    /// How many those are.
    pub flagged_lines: usize,
    /// Nats per token by which a line's own source makes its reference more probable than another source does.
    pub distractor_gap: f64,
    /// Hypothesis tokens per reference token.
    pub length_ratio: f64,
    /// BLEU of 16 beams below that of 4, with the length penalty that is searched with.
    pub beam_loss: f64,
    /// Share of translations without any token.
    pub empty: f64,
    /// Repetition over that of the references.
    pub repetition: f64,
    /// Share of lines whose reference is more probable than what was found.
    pub search_errors: f64,
    /// BLEU of beam search above that of greedy search.
    pub beam_gain: f64,
    /// How much more accuracy falls along the sentence on own prefixes than on gold ones, if its interval excludes 0; else 0.
    pub slope_gap: f64,
    /// BLEU that beam search loses without a length penalty.
    pub penalty_gain: f64,
    /// The length ratio of beam search without a length penalty.
    pub bare_length_ratio: f64,
}

/// One line of the table: what was seen, and what it says.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// The remedy.
    pub says: &'static str,
    /// The rule, with its thresholds.
    pub rule: &'static str,
    /// Whether it holds.
    pub holds: bool,
    /// The numbers behind it.
    pub reasons: Vec<String>,
}

/// All findings and warnings.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Verdict {
    /// Every rule, whether it holds or not.
    pub findings: Vec<Finding>,
    /// Anti-patterns.
    pub warnings: Vec<String>,
}

/// Fewer flagged lines say nothing, whatever share of a small set they are.
const FLAGGED_LINES: usize = 3;

/// A condition of a rule, as printed, and whether it holds; what cannot be computed does not.
fn condition(name: &str, value: f64, holds: bool) -> (String, bool) {
    let value = if value.is_finite() { format!("{value:.3}") } else { "n/a".to_owned() };
    (format!("{name} {value}"), holds)
}

fn finding(says: &'static str, rule: &'static str, all: bool, conditions: Vec<(String, bool)>) -> Finding {
    let holds =
        if all { conditions.iter().all(|(_, holds)| *holds) } else { conditions.iter().any(|(_, holds)| *holds) };
    let mark = |(text, holds): (String, bool)| format!("{text}{}", if holds { "" } else { " (not so)" });
    Finding { says, rule, holds, reasons: conditions.into_iter().map(mark).collect() }
}

impl Verdict {
    /// Draws the conclusions; `settings` are warnings that follow from the model's own settings.
    pub fn new(e: &Evidence, settings: Vec<String>) -> Self {
        let findings = vec![
            finding(
                "Teacher forcing suffices: tune the decoder.",
                "95% of references below 32 tokens, prefix-switch ratio below 1.03, half-life at most 2",
                true,
                vec![
                    condition(
                        "95% of references have at most this many tokens:",
                        e.reference_length,
                        e.reference_length < 32.0,
                    ),
                    condition("prefix-switch ratio", e.prefix_ratio, e.prefix_ratio < 1.03),
                    condition("half-life", e.half_life, e.half_life <= 2.0),
                ],
            ),
            finding(
                "The gap is there: scheduled sampling, then minimum risk training.",
                "BLEU of a length bucket more than 3 below that of 9-32, or half-life above 4, or excess error grows",
                false,
                vec![
                    condition("largest fall of BLEU by length", e.bucket_drop, e.bucket_drop > 3.0),
                    condition("half-life", e.half_life, e.half_life > 4.0),
                    condition(
                        "lower bound of the excess error's slope",
                        e.excess_error_slope,
                        e.excess_error_slope > 0.0,
                    ),
                ],
            ),
            finding(
                "The source is not heard: minimum risk training; contrastive decoding of form source at test time.",
                "more than 2% of lines flagged and at least 3, or a distractor gap below 0.5 nats per token",
                false,
                vec![
                    condition(
                        &format!("{} lines flagged, a share of", e.flagged_lines),
                        e.flagged,
                        e.flagged > 0.02 && e.flagged_lines >= FLAGGED_LINES,
                    ),
                    condition("distractor gap", e.distractor_gap, e.distractor_gap < 0.5),
                ],
            ),
            finding(
                "Length is off: tune the length penalty on a development set; coverage penalty if words are left out.",
                "length ratio below 0.95, or 16 beams lose more than 0.3 BLEU against 4, or empty translations",
                false,
                vec![
                    condition("length ratio", e.length_ratio, e.length_ratio < 0.95),
                    condition("BLEU lost from 4 beams to 16", e.beam_loss, e.beam_loss > 0.3),
                    condition("share of empty translations", e.empty, e.empty > 0.0),
                ],
            ),
            finding(
                "It repeats itself: contrastive decoding, or distillation on own prefixes.",
                "repetition above twice the references', and outputs longer than the references",
                true,
                vec![
                    condition("repetition over the references'", e.repetition, e.repetition > 2.0),
                    condition("length ratio", e.length_ratio, e.length_ratio > 1.0),
                ],
            ),
            finding(
                "Search misses better translations: a wider beam, or the exact stop rule.",
                "the reference is more probable than the translation for more than 5% of lines",
                true,
                vec![condition("share of such lines", e.search_errors, e.search_errors > 0.05)],
            ),
        ];
        let nothing = finding(
            "Nothing to fix.",
            "greedy search within 0.2 BLEU of beam search, and accuracy on own prefixes falls no faster than on gold ones",
            true,
            vec![
                condition("BLEU that beam search gains", e.beam_gain, e.beam_gain.abs() <= 0.2),
                condition("fall of accuracy on own prefixes beyond gold ones", e.slope_gap, e.slope_gap <= 0.0),
            ],
        );
        let mut warnings = settings;
        if e.beam_gain > 0.2 {
            warnings.push(format!("greedy search alone would lose {:.2} BLEU against beam search here", e.beam_gain));
        }
        if e.penalty_gain > 0.3 || e.bare_length_ratio < 0.95 {
            warnings.push(format!(
                "beam search without a length penalty would lose {:.2} BLEU here, at a length ratio of {:.3}",
                e.penalty_gain, e.bare_length_ratio
            ));
        }
        Verdict { findings: findings.into_iter().chain([nothing]).collect(), warnings }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "verdict (thresholds are starting points, not laws)")?;
        for finding in &self.findings {
            writeln!(f, "  [{}] {}", if finding.holds { "x" } else { " " }, finding.says)?;
            writeln!(f, "      rule: {}", finding.rule)?;
            writeln!(f, "      seen: {}", finding.reasons.join("; "))?;
        }
        if !self.findings.iter().any(|finding| finding.holds) {
            writeln!(f, "  No rule holds: look at the curves.")?;
        }
        for warning in &self.warnings {
            writeln!(f, "  warning: {warning}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A model that has nothing wrong with it.
    const GOOD: Evidence = Evidence {
        reference_length: 20.0,
        prefix_ratio: 1.01,
        half_life: 1.0,
        bucket_drop: 1.0,
        excess_error_slope: f64::NAN,
        flagged: 0.0,
        flagged_lines: 0,
        distractor_gap: 3.0,
        length_ratio: 0.99,
        beam_loss: 0.1,
        empty: 0.0,
        repetition: 1.0,
        search_errors: 0.01,
        beam_gain: 0.1,
        slope_gap: 0.0,
        penalty_gain: 0.0,
        bare_length_ratio: 0.98,
    };

    fn holding(evidence: &Evidence) -> Vec<usize> {
        let verdict = Verdict::new(evidence, Vec::new());
        verdict.findings.iter().enumerate().filter(|(_, f)| f.holds).map(|(i, _)| i).collect()
    }

    #[test]
    fn each_rule_holds_by_its_own_numbers() {
        assert_eq!(holding(&GOOD), [0, 6]);
        assert_eq!(holding(&Evidence { prefix_ratio: 1.04, ..GOOD }), [6]);
        assert_eq!(holding(&Evidence { half_life: 2.5, ..GOOD }), [6]);
        assert_eq!(holding(&Evidence { half_life: 5.0, ..GOOD }), [1, 6]);
        assert_eq!(holding(&Evidence { bucket_drop: 3.5, ..GOOD }), [0, 1, 6]);
        assert_eq!(holding(&Evidence { excess_error_slope: 0.1, ..GOOD }), [0, 1, 6]);
        assert_eq!(holding(&Evidence { flagged: 0.03, flagged_lines: 3, ..GOOD }), [0, 2, 6]);
        assert_eq!(holding(&Evidence { flagged: 0.05, flagged_lines: 2, ..GOOD }), [0, 6]);
        assert_eq!(holding(&Evidence { distractor_gap: 0.2, ..GOOD }), [0, 2, 6]);
        assert_eq!(holding(&Evidence { length_ratio: 0.9, ..GOOD }), [0, 3, 6]);
        assert_eq!(holding(&Evidence { beam_loss: 0.5, ..GOOD }), [0, 3, 6]);
        assert_eq!(holding(&Evidence { repetition: 2.5, length_ratio: 1.2, ..GOOD }), [0, 4, 6]);
        assert_eq!(holding(&Evidence { repetition: 2.5, ..GOOD }), [0, 6]);
        assert_eq!(holding(&Evidence { search_errors: 0.2, ..GOOD }), [0, 5, 6]);
        assert_eq!(holding(&Evidence { beam_gain: 0.5, ..GOOD }), [0]);
        assert_eq!(holding(&Evidence { slope_gap: 0.1, ..GOOD }), [0]);
    }

    #[test]
    fn what_is_not_known_holds_nothing() {
        let nan = f64::NAN;
        let unknown = Evidence {
            reference_length: nan,
            prefix_ratio: nan,
            half_life: nan,
            bucket_drop: nan,
            excess_error_slope: nan,
            flagged: nan,
            flagged_lines: 0,
            distractor_gap: nan,
            length_ratio: nan,
            beam_loss: nan,
            empty: nan,
            repetition: nan,
            search_errors: nan,
            beam_gain: nan,
            slope_gap: nan,
            penalty_gain: nan,
            bare_length_ratio: nan,
        };
        assert!(holding(&unknown).is_empty());
        let text = Verdict::new(&unknown, Vec::new()).to_string();
        assert!(text.contains("half-life n/a (not so)") && text.contains("No rule holds"), "{text}");
    }

    #[test]
    fn warnings_name_what_is_lost() {
        let evidence = Evidence { beam_gain: 0.75, penalty_gain: 0.4, ..GOOD };
        let warnings = Verdict::new(&evidence, vec!["own".into()]).warnings;
        assert_eq!(warnings[0], "own");
        assert!(warnings[1].contains("lose 0.75 BLEU") && warnings[2].contains("lose 0.40 BLEU"));
        assert!(Verdict::new(&GOOD, Vec::new()).warnings.is_empty());
    }
}
