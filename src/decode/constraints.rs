//! Phrases that every translation of a sentence must contain.

use crate::backend::{Constraints, MAX_CONSTRAINT_TOKENS};
use crate::decode::hypothesis::Hypothesis;
use crate::decode::options::DecodeOptions;
use crate::decode::request::Request;
use crate::{Error, Result};

/// A phrase that a translation must contain, its tokens side by side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Constraint {
    /// What errors call it.
    pub text: String,
    /// Its tokens, at least one, none of them end of sentence.
    pub ids: Vec<u32>,
}

impl Constraint {
    fn is_in(&self, tokens: &[u32]) -> bool {
        tokens.windows(self.ids.len()).any(|part| part == self.ids)
    }
}

impl DecodeOptions {
    /// Checks that a search with these options and this maximum length can have phrases, each listed once.
    ///
    /// # Errors
    /// [`Error::Conflict`] beside sampling, groups of beams, contrastive decoding or a beam that shrinks; [`Error::Input`] for a
    /// phrase without tokens, for more than [`MAX_CONSTRAINT_TOKENS`] tokens, and for more than the length has room for.
    pub(super) fn check_constraints(&self, constraints: &[Constraint], max_length: usize) -> Result<()> {
        if constraints.is_empty() {
            return Ok(());
        }
        let others = [
            ("sample", self.sample),
            ("beam-groups", self.beam_groups > 1),
            ("contrastive", self.contrastive.is_some()),
            ("shrink", self.shrink),
        ];
        if let Some((other, _)) = others.into_iter().find(|(_, given)| *given) {
            return Err(Error::conflict("constraints", "", other));
        }
        let wrong = |expected: String, got: String| Err(Error::Input { operation: "constrain", expected, got });
        if let Some(empty) = constraints.iter().find(|constraint| constraint.ids.is_empty()) {
            return wrong("phrases of at least one token".into(), format!("\"{}\"", empty.text));
        }
        let tokens: usize = constraints.iter().map(|constraint| constraint.ids.len()).sum();
        if tokens > MAX_CONSTRAINT_TOKENS {
            return wrong(format!("phrases of at most {MAX_CONSTRAINT_TOKENS} tokens in all"), tokens.to_string());
        }
        let room = max_length - usize::from(!self.cut);
        if tokens > room {
            return wrong(
                format!("phrases of at most {room} tokens in all, for the maximum length of {max_length}"),
                tokens.to_string(),
            );
        }
        Ok(())
    }
}

impl Request {
    /// The phrases as the device reads them.
    pub(super) fn constraint_table(&self) -> Constraints {
        Constraints::new(self.constraints.iter().map(|constraint| constraint.ids.as_slice()))
    }

    /// The hypotheses that contain all phrases.
    ///
    /// # Errors
    /// [`Error::UnmetConstraint`] if none does, with the phrases that the first one lacks.
    pub(super) fn keep_met(&self, mut hypotheses: Vec<Hypothesis>) -> Result<Vec<Hypothesis>> {
        let lacks = |h: &Hypothesis| self.constraints.iter().filter(|c| !c.is_in(&h.token_ids)).collect::<Vec<_>>();
        let first = hypotheses.first().map(lacks).unwrap_or_default();
        hypotheses.retain(|hypothesis| lacks(hypothesis).is_empty());
        if hypotheses.is_empty() && !first.is_empty() {
            let phrases = first.into_iter().map(|constraint| constraint.text.clone()).collect();
            return Err(Error::UnmetConstraint { phrases });
        }
        Ok(hypotheses)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::ContrastiveForm;
    use crate::decode::request::{Limits, SentenceIds};
    use crate::decode::{MaxLength, Stop};

    fn constraint(text: &str, ids: &[u32]) -> Constraint {
        Constraint { text: text.to_owned(), ids: ids.to_vec() }
    }

    fn request(
        constraints: Vec<Constraint>,
        max_length: usize,
        change: impl Fn(&mut DecodeOptions),
    ) -> Result<Request, String> {
        let max_length = MaxLength::Absolute(max_length);
        let options = DecodeOptions { max_length, stop: Some(Stop::First), ..DecodeOptions::default() }.with(change);
        let sentence = SentenceIds { constraints, ..SentenceIds::from(vec![5, 0]) };
        Request::new(&options, sentence, Limits { table: 100, amateur: 1 }).map_err(|error| error.to_string())
    }

    #[test]
    fn what_cannot_be_is_refused_with_both_options_named() {
        type Change = fn(&mut DecodeOptions);
        let refused: [(&str, Change); 4] = [
            ("sample", |o| o.sample = true),
            ("beam-groups", |o| o.beam_groups = 2),
            ("contrastive", |o| o.contrastive = Some(ContrastiveForm::Li)),
            ("shrink", |o| o.shrink = true),
        ];
        let phrase = || vec![constraint("ein Hund", &[7, 8])];
        for (name, change) in refused {
            let message = request(phrase(), 4, change).expect_err("it is refused");
            assert_eq!(message, format!("option constraints cannot be combined with {name}"));
            assert!(request(vec![], 4, change).is_ok());
        }
        assert!(request(phrase(), 4, |_| ()).is_ok());
    }

    #[test]
    fn phrases_are_counted_once_and_have_to_fit() {
        let listed = vec![constraint("a", &[7, 8]), constraint("a", &[7, 8]), constraint("b", &[8])];
        let twice = request(listed, 4, |_| ()).expect("3 of 3");
        assert_eq!((twice.options.constraints, twice.options.banned), (3, 1));
        let table = twice.constraint_table();
        assert_eq!(table.phrases().collect::<Vec<_>>(), [&[7, 8][..], &[8]]);
        assert_eq!(table.tokens(), [7, 8]);
        let error = |constraints, max_length| request(constraints, max_length, |_| ()).err();
        let long = error(vec![constraint("a", &[7, 8, 9, 9])], 4).expect("it is too long");
        assert!(long.contains("at most 3 tokens") && long.ends_with("got 4"), "{long}");
        let long = error(vec![constraint("a", &[7; 65])], 100).expect("it is too long");
        assert!(long.contains("at most 64 tokens"), "{long}");
        assert!(error(vec![constraint(" ", &[])], 4).is_some_and(|e| e.contains("at least one token")));
        assert_eq!(error(vec![], 4), None);
    }

    #[test]
    fn a_minimum_length_that_cannot_be_met_is_refused() {
        let error = request(vec![], 9, |o| o.min_length = 10).expect_err("it cannot be met");
        assert_eq!(error, "option min-length: expected at most 9, the maximum length of this sentence, got 10");
        assert!(request(vec![], 9, |o| o.min_length = 9).is_ok());
    }

    #[test]
    fn hypotheses_that_lack_a_phrase_are_dropped_and_the_phrases_named() {
        let with = |ids: &[u32]| Hypothesis { token_ids: ids.to_vec(), ..Hypothesis::empty() };
        let request = request(vec![constraint("a", &[7, 8]), constraint("b", &[9])], 20, |_| ()).expect("they fit");
        let kept = request.keep_met(vec![with(&[7, 9, 8, 0]), with(&[9, 7, 8, 0])]).expect("one has both");
        assert_eq!(kept, [with(&[9, 7, 8, 0])]);
        let unmet = request.keep_met(vec![with(&[7, 9, 8, 0])]).map_err(|error| error.to_string());
        assert_eq!(unmet.err().as_deref(), Some("decode: expected a translation that contains \"a\", got none"));
    }
}
