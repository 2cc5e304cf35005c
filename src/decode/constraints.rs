//! Phrases that every translation of a sentence must contain.

use crate::backend::{Constraints, FinishKind, MAX_CONSTRAINT_TOKENS};
use crate::decode::hypothesis::Hypothesis;
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

impl Request {
    /// Asks for hypotheses that contain these phrases, whatever else the options ask for. A phrase counts once, however often it
    /// is listed; two may share tokens, and a given prefix may hold some.
    ///
    /// # Errors
    /// [`Error::Option`] beside sampling, groups of beams, contrastive decoding or a beam that shrinks; [`Error::Input`] for a
    /// phrase without tokens, for more than [`MAX_CONSTRAINT_TOKENS`] tokens, and for more than the length limit has room for.
    pub fn constrain(&mut self, constraints: Vec<Constraint>) -> Result<()> {
        for constraint in constraints {
            if self.constraints.iter().all(|other| other.ids != constraint.ids) {
                self.constraints.push(constraint);
            }
        }
        if self.constraints.is_empty() {
            return Ok(());
        }
        let others = [
            ("sample", self.options.samples()),
            ("beam-groups", self.options.groups > 1),
            ("contrastive", self.options.contrast.form != 0),
            ("shrink", self.options.finish == FinishKind::Shrink as u32),
        ];
        if let Some((other, _)) = others.into_iter().find(|(_, given)| *given) {
            let expected = "beam search without sample, beam-groups, contrastive or shrink".into();
            return Err(Error::Option { option: "constraints", expected, got: format!("constraints and {other}") });
        }
        let wrong = |expected: String, got: String| Err(Error::Input { operation: "constrain", expected, got });
        if let Some(empty) = self.constraints.iter().find(|constraint| constraint.ids.is_empty()) {
            return wrong("phrases of at least one token".into(), format!("\"{}\"", empty.text));
        }
        let tokens: usize = self.constraints.iter().map(|constraint| constraint.ids.len()).sum();
        if tokens > MAX_CONSTRAINT_TOKENS {
            return wrong(format!("phrases of at most {MAX_CONSTRAINT_TOKENS} tokens in all"), tokens.to_string());
        }
        let room = self.options.max_len as usize - usize::from(self.options.cut == 0);
        if tokens > room {
            let limit = self.options.max_len;
            return wrong(
                format!("phrases of at most {room} tokens in all, for the maximum length of {limit}"),
                tokens.to_string(),
            );
        }
        (self.options.constraints, self.options.banned) = (tokens as u32, 1);
        Ok(())
    }

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
    use crate::backend::{ContrastiveOptions, SlotOptions, Strategy};

    fn constraint(text: &str, ids: &[u32]) -> Constraint {
        Constraint { text: text.to_owned(), ids: ids.to_vec() }
    }

    fn request(change: impl Fn(&mut SlotOptions)) -> Request {
        let mut options = SlotOptions { beam_size: 4, max_len: 4, ..SlotOptions::default() };
        change(&mut options);
        Request { options, ..Request::default() }
    }

    #[test]
    fn what_cannot_be_is_refused_with_both_options_named() {
        let refused = |request: Request| {
            let mut request = request;
            request.constrain(vec![constraint("ein Hund", &[7, 8])]).map_err(|error| error.to_string()).err()
        };
        let contrast = ContrastiveOptions { form: 1, ..ContrastiveOptions::default() };
        for (name, request) in [
            ("sample", request(|o| o.strategy = Strategy::Sample as u32)),
            ("beam-groups", request(|o| o.groups = 2)),
            ("contrastive", request(|o| o.contrast = contrast)),
            ("shrink", request(|o| o.finish = FinishKind::Shrink as u32)),
        ] {
            let message = refused(request).expect("it is refused");
            assert!(message.starts_with("option constraints: ") && message.contains(name), "{message}");
        }
        assert_eq!(refused(request(|_| {})), None);
    }

    #[test]
    fn phrases_are_counted_once_and_have_to_fit() {
        let mut twice = request(|_| {});
        twice
            .constrain(vec![constraint("a", &[7, 8]), constraint("a", &[7, 8]), constraint("b", &[8])])
            .expect("3 of 3");
        assert_eq!((twice.options.constraints, twice.options.banned), (3, 1));
        let table = twice.constraint_table();
        assert_eq!(table.phrases().collect::<Vec<_>>(), [&[7, 8][..], &[8]]);
        assert_eq!(table.tokens(), [7, 8]);
        let error = |constraints: Vec<Constraint>, max_len: u32| {
            request(|o| o.max_len = max_len).constrain(constraints).map_err(|error| error.to_string()).err()
        };
        let long = error(vec![constraint("a", &[7, 8, 9, 9])], 4).expect("it is too long");
        assert!(long.contains("at most 3 tokens") && long.ends_with("got 4"), "{long}");
        let long = error(vec![constraint("a", &[7; 65])], 100).expect("it is too long");
        assert!(long.contains("at most 64 tokens"), "{long}");
        assert!(error(vec![constraint(" ", &[])], 4).is_some_and(|e| e.contains("at least one token")));
        assert_eq!(error(vec![], 4), None);
    }

    #[test]
    fn hypotheses_that_lack_a_phrase_are_dropped_and_the_phrases_named() {
        let with = |ids: &[u32]| Hypothesis { token_ids: ids.to_vec(), ..Hypothesis::empty() };
        let mut request = request(|o| o.max_len = 20);
        request.constrain(vec![constraint("a", &[7, 8]), constraint("b", &[9])]).expect("they fit");
        let kept = request.keep_met(vec![with(&[7, 9, 8, 0]), with(&[9, 7, 8, 0])]).expect("one has both");
        assert_eq!(kept, [with(&[9, 7, 8, 0])]);
        let unmet = request.keep_met(vec![with(&[7, 9, 8, 0])]).map_err(|error| error.to_string());
        assert_eq!(unmet.err().as_deref(), Some("decode: expected a translation that contains \"a\", got none"));
    }
}
