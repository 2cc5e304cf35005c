//! Ranking where constraints hold: each candidate stands in the bank of the constraint tokens met with it, and the banks share
//! the beams (Post & Vilar 2018, "Fast Lexically Constrained Decoding with Dynamic Beam Allocation").

use super::rank::{Rules, SlotRows, rank_group};
use super::{Candidate, Ranking};
use crate::backend::{BANK_WORDS, SlotOptions};

/// Ranks the candidates of a slot's beams, `cum` `[live]` and `banks` `[live, BANK_WORDS]`. What is left counts, all of it: of each
/// bank in turn, the highest first, what ends and what goes on.
pub(super) fn rank(
    rules: &Rules,
    options: &SlotOptions,
    cum: &[f32],
    rows: &SlotRows<'_>,
    banks: &[u32],
    ranking: &mut Ranking,
) {
    let (beams, highest) = (options.beam_size as usize, options.constraints as usize);
    let mut in_bank: Vec<Vec<Candidate>> = vec![Vec::new(); highest + 1];
    for (beam, banks) in banks.chunks_exact(BANK_WORDS).enumerate() {
        // More than a bank can take of any beam, but for the tokens of constraints, which stand apart.
        rank_group(rules, beam..beam + 1, cum, rows, ranking);
        if ranking.failure.failed != 0 {
            return;
        }
        for candidate in ranking.candidates.drain(..) {
            if candidate.token as usize != rules.eos || banks[0] == options.constraints {
                in_bank[banks[0] as usize].push(candidate);
            }
        }
        for (place, candidate) in ranking.apart.drain(..) {
            in_bank[banks[1 + place] as usize].push(candidate);
        }
        ranking.picked.clear();
    }
    let ends = |candidate: &Candidate| candidate.token as usize == rules.eos;
    for bank in &mut in_bank {
        let order = |c: &Candidate| (c.beam, c.token);
        bank.sort_by(|a, b| b.cum_log_prob.total_cmp(&a.cum_log_prob).then(order(a).cmp(&order(b))));
    }
    let at_limit = rules.step >= options.max_len;
    let available: Vec<usize> =
        in_bank.iter().rev().map(|bank| bank.iter().filter(|candidate| !ends(candidate)).count()).collect();
    let shares: Vec<usize> = match at_limit {
        true => (0..=highest).map(|i| if i == 0 { beams } else { 0 }).collect(),
        false => options.bank_shares().map(|share| share as usize).collect(),
    };
    let got = share(&shares, &available, !at_limit);
    for (i, (bank, got)) in in_bank.iter().rev().zip(got).enumerate() {
        let cuts = at_limit && options.cut != 0;
        let mut living = 0;
        for (rank, candidate) in bank.iter().enumerate() {
            let counts =
                if ends(candidate) { i == 0 && rank < beams } else { living < got && !(cuts && rank >= beams) };
            living += usize::from(!ends(candidate));
            if counts {
                ranking.candidates.push(*candidate);
            }
        }
    }
}

/// What each bank gets of what it has a claim to and what others before it could not use, the first twice in turn; only what is
/// their own unless it moves on.
fn share(claims: &[usize], available: &[usize], moves_on: bool) -> Vec<usize> {
    let mut got = vec![0; claims.len()];
    let mut left = 0;
    for round in 0..if moves_on { 2 } else { 1 } {
        for (bank, claim) in claims.iter().enumerate() {
            left += if round == 0 { *claim } else { 0 };
            let more = left.min(available[bank] - got[bank]);
            got[bank] += more;
            left -= more;
            if !moves_on {
                left = 0;
            }
        }
    }
    got
}

#[cfg(test)]
mod tests {
    use super::share;

    #[test]
    fn what_a_bank_cannot_use_goes_down_and_then_to_the_highest() {
        assert_eq!(share(&[3, 1, 1], &[9, 9, 9], true), [3, 1, 1]);
        assert_eq!(share(&[3, 1, 1], &[0, 9, 9], true), [0, 4, 1]);
        assert_eq!(share(&[3, 1, 1], &[9, 0, 0], true), [5, 0, 0]);
        assert_eq!(share(&[3, 1, 1], &[1, 0, 2], true), [1, 0, 2]);
        assert_eq!(share(&[5, 0, 0, 0], &[0, 0, 9, 9], true), [0, 0, 5, 0]);
        assert_eq!(share(&[2, 1, 1], &[3, 0, 0], true), [3, 0, 0]);
        assert_eq!(share(&[4, 0, 0], &[1, 9, 9], false), [1, 0, 0]);
    }
}
