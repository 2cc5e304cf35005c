//! What to make of the differences from the null: which rules fire, what to run next, and what that should change.

use std::fmt;

use serde::Serialize;

use super::estimate::Estimate;
use super::inference::{self, Compared, LEVEL, Test};
use super::report::shown;
use super::sums::{Rule, Statistic};

/// Fewer lines get no verdict: differences as large as matter are not told from chance by them.
pub const VERDICT_LINES: usize = 100;

/// How the diagnosis was called, to fill in the commands of findings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Call {
    /// The model, as it was named; none for the default one.
    pub model: Option<String>,
    /// The file of sources.
    pub source: String,
    /// The file of references.
    pub reference: String,
    /// The oracle, as it was named.
    pub oracle: Option<String>,
}

/// A statistic whose difference decides.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Seen {
    /// Its name.
    pub name: String,
    /// Of the test set's references.
    pub value: Estimate,
    /// Of references that the model sampled; none for what needs no references.
    pub null: Option<Estimate>,
    /// The one less the other.
    pub difference: Estimate,
}

/// A rule, and what came of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// The rule.
    pub rule: Rule,
    /// What it says where it fires.
    pub says: &'static str,
    /// Whether it fires.
    pub holds: bool,
    /// The p-value of its test, before and after Holm's correction; none where it was not tested.
    pub p: Option<f64>,
    /// After it.
    pub adjusted_p: Option<f64>,
    /// The statistic with the largest standardised difference.
    pub seen: Option<Seen>,
    /// What to run next, where it fires.
    pub next: Option<String>,
    /// What that is expected to change.
    pub expect: Option<&'static str>,
}

/// All findings and warnings.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Verdict {
    /// Why there is none; none where there is.
    pub withheld: Option<String>,
    /// Every rule that could be tested, those that fire first.
    pub findings: Vec<Finding>,
    /// What was not tested, and why.
    pub not_tested: Vec<String>,
    /// What to run where no rule fires.
    pub otherwise: Option<String>,
    /// Anti-patterns.
    pub warnings: Vec<String>,
}

/// What a rule says, and what its remedy is expected to change.
fn wording(rule: Rule) -> (&'static str, &'static str) {
    match rule {
        Rule::Gap => (
            "The gap is there: own prefixes cost more than gold ones do.",
            "own minus gold accuracy and the area behind a wrong pick move towards the null's; BLEU need not rise",
        ),
        Rule::Lengths => (
            "Some lengths are translated worse than others.",
            "on joined lines the difference grows if length is the cause; then train on joined lines, too",
        ),
        Rule::Source => (
            "The source is not heard.",
            "fewer flagged lines; if chrF2 does not fall, minimum risk training is worth its cost",
        ),
        Rule::Short => (
            "Translations are too short, or wide beams lose.",
            "the length ratio moves towards 1; choose alpha by chrF2 on a development set",
        ),
        Rule::Repetition => {
            ("Translations repeat themselves.", "repetition beyond the references' moves towards the null's")
        }
        Rule::Search => ("Search misses better translations.", "fewer search errors; keep it only if chrF2 rises, too"),
        Rule::Oracle => (
            "On its own prefixes the model is further from the oracle.",
            "the excess accumulated error moves towards 0",
        ),
    }
}

/// A word of a command, as a shell reads it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./:=@+,".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

impl Call {
    fn model(&self) -> String {
        self.model.as_ref().map_or(String::new(), |model| format!(" --model {}", quoted(model)))
    }

    fn eval(&self, options: &str) -> String {
        let (source, reference) = (quoted(&self.source), quoted(&self.reference));
        format!("beamfuse eval{} --input {source} --reference {reference} {options}", self.model())
    }

    fn train(&self, name: &str, options: &str) -> String {
        let (source, reference) = (quoted(&self.source), quoted(&self.reference));
        format!(
            "beamfuse train{} --source train.source --target train.target --validation-source {source} \
             --validation-target {reference} --output {name} {options}",
            self.model()
        )
    }

    /// The command that follows from a rule.
    fn next(&self, rule: Rule) -> String {
        let (source, reference) = (quoted(&self.source), quoted(&self.reference));
        match rule {
            Rule::Gap => self.train("scheduled", "--objective scheduled-sampling"),
            Rule::Lengths => format!(
                "paste -d ' ' - - < {source} > joined.source; paste -d ' ' - - < {reference} > joined.reference; \
                 beamfuse diagnose{} --source joined.source --reference joined.reference",
                self.model()
            ),
            Rule::Source => format!(
                "beamfuse translate{} --input {source} --contrastive source --output contrastive.txt && beamfuse eval \
                 --hypotheses contrastive.txt --input {source} --reference {reference}",
                self.model()
            ),
            Rule::Short => self.eval("--length-penalty gnmt --alpha 1"),
            Rule::Repetition => self.train("distilled", "--objective distill --teacher frozen --prefixes student"),
            Rule::Search => self.eval("--beam-size 16 --stop exact"),
            Rule::Oracle => {
                let oracle = self.oracle.as_deref().map_or_else(|| "ORACLE".to_owned(), quoted);
                self.train("distilled", &format!("--objective distill --teacher {oracle} --prefixes student"))
            }
        }
    }

    /// The command where nothing was found.
    fn otherwise(&self) -> String {
        self.eval("--beam-size 8 --length-penalty gnmt --alpha 0.7")
    }
}

/// What a test saw, and whether its rule fires.
#[derive(Clone, Debug)]
pub(super) struct Outcome {
    pub test: Test,
    pub seen: Option<Seen>,
    /// Whether the interval of the difference lies on the worse side of 0.
    pub clear: bool,
}

impl Outcome {
    /// Of a test over statistics.
    pub fn of(test: Test, statistics: &[Statistic], compared: &[Compared]) -> Self {
        let Some(at) = test.largest else { return Outcome { test, seen: None, clear: false } };
        let Compared { value, null, difference } = compared[at];
        let seen = Seen { name: statistics[at].name.clone(), value, null: Some(null), difference };
        Outcome { test, seen: Some(seen), clear: inference::clear(&statistics[at], &difference) }
    }
}

impl Verdict {
    /// Draws the conclusions from tests that Holm's correction has seen together.
    pub(super) fn new(
        lines: usize,
        outcomes: &[Outcome],
        not_tested: Vec<String>,
        warnings: Vec<String>,
        call: &Call,
    ) -> Self {
        if lines < VERDICT_LINES {
            let withheld = format!("{lines} lines are too few for a verdict, which needs {VERDICT_LINES}");
            return Verdict { withheld: Some(withheld), not_tested, warnings, ..Verdict::default() };
        }
        let mut not_tested = not_tested;
        let mut findings = Vec::new();
        for Outcome { test, seen, clear } in outcomes {
            let (rule, (says, expect)) = (test.rule, wording(test.rule));
            if seen.is_none() {
                not_tested.push(format!("{says} n/a: nothing to compute it from"));
                continue;
            }
            let holds = *clear && test.adjusted_p <= LEVEL;
            findings.push(Finding {
                rule,
                says,
                holds,
                p: Some(test.p),
                adjusted_p: Some(test.adjusted_p),
                seen: seen.clone(),
                next: holds.then(|| call.next(rule)),
                expect: holds.then_some(expect),
            });
        }
        findings.sort_by_key(|finding| !finding.holds);
        let otherwise = (!findings.iter().any(|finding| finding.holds)).then(|| call.otherwise());
        Verdict { withheld: None, findings, not_tested, otherwise, warnings }
    }
}

impl Seen {
    /// In one line, for people.
    pub(super) fn shown(&self) -> String {
        let null = self.null.as_ref().map_or(String::new(), |null| format!(", null {}", shown(null)));
        format!("{} {}{null}, difference {}", self.name, shown(&self.value), shown(&self.difference))
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "verdict")?;
        if let Some(why) = &self.withheld {
            writeln!(f, "  none: {why}")?;
        }
        let (found, others): (Vec<&Finding>, Vec<&Finding>) = self.findings.iter().partition(|finding| finding.holds);
        for finding in found {
            writeln!(f, "  FOUND: {}", finding.says)?;
            if let Some(seen) = &finding.seen {
                writeln!(f, "      seen: {}; p {:.3}", seen.shown(), finding.adjusted_p.unwrap_or(1.0))?;
            }
            writeln!(f, "      next: {}", finding.next.as_deref().unwrap_or_default())?;
            writeln!(f, "      expect: {}", finding.expect.unwrap_or_default())?;
        }
        if let Some(next) = &self.otherwise {
            writeln!(f, "  Nothing is told from what the model's own samples give. What is left is the decoder:")?;
            writeln!(f, "      next: {next}")?;
        }
        if !others.is_empty() {
            let p = |finding: &Finding| finding.adjusted_p.unwrap_or(1.0);
            let name = |finding: &&Finding| format!("{} (p {:.2})", rule_name(finding.rule), p(finding));
            writeln!(f, "  not found: {}", others.iter().map(name).collect::<Vec<_>>().join(", "))?;
        }
        for what in &self.not_tested {
            writeln!(f, "  not tested: {what}")?;
        }
        for warning in &self.warnings {
            writeln!(f, "  warning: {warning}")?;
        }
        Ok(())
    }
}

/// A rule in a word or two.
pub(super) fn rule_name(rule: Rule) -> &'static str {
    match rule {
        Rule::Gap => "gap",
        Rule::Lengths => "lengths",
        Rule::Source => "source",
        Rule::Short => "short",
        Rule::Repetition => "repetition",
        Rule::Search => "search",
        Rule::Oracle => "oracle",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(rule: Rule, p: f64, clear: bool) -> Outcome {
        let estimate = |value| Estimate { value, low: value - 0.1, high: value + 0.1 };
        let (value, null, difference) = (estimate(1.5), Some(estimate(1.0)), estimate(0.5));
        let seen = Some(Seen { name: "area".into(), value, null, difference });
        Outcome { test: Test { rule, p, adjusted_p: p, largest: Some(0), standardised: 3.0 }, seen, clear }
    }

    fn call() -> Call {
        Call { model: Some("my model".into()), source: "dev.en".into(), reference: "dev.de".into(), oracle: None }
    }

    #[test]
    fn a_rule_fires_on_its_test_and_its_interval_together() {
        let holding = |p, clear| {
            let verdict = Verdict::new(300, &[outcome(Rule::Gap, p, clear)], Vec::new(), Vec::new(), &call());
            verdict.findings[0].holds
        };
        assert!(holding(0.05, true));
        assert!(!holding(0.051, true) && !holding(0.01, false));
    }

    #[test]
    fn every_finding_has_its_command_filled_in() {
        for rule in Rule::OF_REFERENCES.into_iter().chain([Rule::Oracle]) {
            let verdict = Verdict::new(300, &[outcome(rule, 0.01, true)], Vec::new(), Vec::new(), &call());
            let text = verdict.to_string();
            let next = verdict.findings[0].next.clone().expect("a command");
            assert!(next.contains("beamfuse ") && next.contains("dev.en") && next.contains("dev.de"), "{next}");
            assert!(next.contains("--model 'my model'"), "{next}");
            assert!(text.contains("FOUND") && text.contains(&next) && text.contains("expect: "), "{text}");
            assert_eq!(verdict.otherwise, None);
        }
    }

    #[test]
    fn what_does_not_hold_does_not_look_like_a_finding() {
        let verdict = Verdict::new(300, &[outcome(Rule::Gap, 0.4, true)], Vec::new(), Vec::new(), &call());
        let text = verdict.to_string();
        assert!(!text.contains("FOUND") && !text.contains("The gap is there"), "{text}");
        assert!(text.contains("not found: gap (p 0.40)") && text.contains("next: beamfuse eval"), "{text}");
    }

    #[test]
    fn few_lines_get_no_verdict() {
        let outcomes = [outcome(Rule::Gap, 0.001, true)];
        let verdict = Verdict::new(VERDICT_LINES - 1, &outcomes, Vec::new(), Vec::new(), &call());
        assert!(verdict.findings.is_empty() && verdict.to_string().contains("99 lines are too few"), "{verdict}");
        assert_eq!(Verdict::new(VERDICT_LINES, &outcomes, Vec::new(), Vec::new(), &call()).findings.len(), 1);
    }

    #[test]
    fn words_are_quoted_for_a_shell() {
        assert_eq!(["a/b.c", "a b", "it's", ""].map(quoted), ["a/b.c", "'a b'", "'it'\\''s'", "''"]);
    }
}
