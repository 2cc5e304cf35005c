//! The structs and numbers that launchers and kernels share, as either side has them, compared by name.
//!
//! A kernel file exports its side with `LAYOUT` (see `kernels/common.cuh`), its launcher with [`layout!`]. Both macros refuse to
//! compile if a field is left out, so what compares equal has the same fields at the same places. The emulator's tables are
//! compared by a test, a GPU's when its modules are loaded.

#![cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "only a GPU's modules are compared outside of tests"))]

use std::collections::BTreeMap;

use super::gemm::Tile;
use crate::backend::{
    Activation, BANK_WORDS, Constraints, ContrastiveForm, ContrastiveOptions, ExpectedRisk, Failure, FinishKind,
    Finished, LengthPenaltyKind, MAX_CONSTRAINT_TOKENS, MAX_SCORERS, Row, SampleOptions, SamplePick, Schedule,
    SlotOptions, StopKind, Strategy, TokenPlace, TokenStats, words,
};

/// A struct as a launcher has it.
pub(super) struct Layout {
    /// The kernels' name of it.
    pub name: &'static str,
    /// Bytes.
    pub size: usize,
    /// Name, offset and bytes of each field.
    pub fields: &'static [(&'static str, usize, usize)],
}

/// The [`Layout`] of a struct, all of whose fields are named, with the kernels' name of it: `layout!(Struct as "Name" { field, ... })`.
macro_rules! layout {
    ($struct:ident as $name:literal { $($field:ident),* $(,)? }) => {{
        const _: fn($struct) = |whole| {
            let $struct { $($field: _),* } = whole;
        };
        $crate::cuda::layout::Layout {
            name: $name,
            size: size_of::<$struct>(),
            fields: &[$((
                stringify!($field),
                std::mem::offset_of!($struct, $field),
                $crate::cuda::layout::size_of_field(|whole: &$struct| &whole.$field),
            )),*],
        }
    }};
}
pub(super) use layout;

/// Bytes of what a function takes out of a struct.
pub(super) const fn size_of_field<S, F>(_field: fn(&S) -> &F) -> usize {
    size_of::<F>()
}

/// What lies in device memory, beside the arguments of kernels.
const LAYOUTS: &[Layout] = &[
    layout!(ContrastiveOptions as "ContrastiveOptions" {
        form, scorer, weight, log_mask, temperature
    }),
    layout!(SampleOptions as "SampleOptions" {
        seed_low, seed_high, temperature, top_k, top_p, min_p, epsilon
    }),
    layout!(SlotOptions as "SlotOptions" {
        beam_size, length_penalty, alpha, coverage_penalty, word_reward, stop, min_len, max_len, forced_eos,
        free_first, renormalize, src_len, strategy, cut, patience, finish, banned, prefix_len, no_repeat_ngram,
        ranked, repetition_penalty, penalizes_logits, takes_pad, counts_start, contrast, ensemble, groups, diversity,
        constraints, start, sampling
    }),
    layout!(SamplePick as "SamplePick" {
        token, log_prob, ranked_log_prob
    }),
    layout!(Finished as "Finished" {
        score, search_log_prob, coverage_penalty, eos_log_prob, length, beam, has_eos, truncated
    }),
    layout!(Failure as "Failure" {
        failed, step, beam, value
    }),
    layout!(Constraints as "Constraints" {
        phrases, num_tokens, ends, ids, tokens
    }),
    layout!(ExpectedRisk as "ExpectedRisk" {
        risk, effective_samples
    }),
    layout!(TokenStats as "TokenStats" {
        log_prob, entropy, max_log_prob, rank, argmax
    }),
    layout!(TokenPlace as "TokenPlace" {
        sentence, position
    }),
    layout!(Schedule as "Schedule" {
        gold_probability, update
    }),
    layout!(Row as "ContrastiveRow" {
        slot, beam, position, token
    }),
];

/// What random numbers of the kernels are for; a test holds them to the CPU's, which this module may not name.
const PURPOSES: [u32; 3] = [0, 1, 2];

/// Numbers that both sides must agree on.
const CONSTANTS: &[(&str, u32)] = &[
    ("LengthPenaltyKind::Gnmt", LengthPenaltyKind::Gnmt as u32),
    ("LengthPenaltyKind::Power", LengthPenaltyKind::Power as u32),
    ("LengthPenaltyKind::PowerOfAll", LengthPenaltyKind::PowerOfAll as u32),
    ("StopKind::First", StopKind::First as u32),
    ("StopKind::Heuristic", StopKind::Heuristic as u32),
    ("StopKind::Top", StopKind::Top as u32),
    ("FinishKind::Shrink", FinishKind::Shrink as u32),
    ("Strategy::Sample", Strategy::Sample as u32),
    ("ContrastiveForm::Logits", ContrastiveForm::Logits as u32),
    ("ContrastiveForm::Li", ContrastiveForm::Li as u32),
    ("ContrastiveForm::Obrien", ContrastiveForm::Obrien as u32),
    ("ContrastiveForm::Source", ContrastiveForm::Source as u32),
    ("Activation::None", Activation::None as u32),
    ("Activation::Relu", Activation::Relu as u32),
    ("Activation::Silu", Activation::Silu as u32),
    ("Activation::GeluTanh", Activation::GeluTanh as u32),
    ("Activation::GeluErf", Activation::GeluErf as u32),
    ("Purpose::Coin", PURPOSES[0]),
    ("Purpose::Noise", PURPOSES[1]),
    ("Purpose::Draw", PURPOSES[2]),
    ("gather::MAX_PARTS", super::gather::MAX_PARTS as u32),
    ("gemm::SLICE", super::gemm::SLICE),
    ("quantize::ALIGNMENT", super::quantize::ALIGNMENT as u32),
    ("Small::SHARED_BYTES", Tile::Small.shared()),
    ("Deep::SHARED_BYTES", Tile::Deep.shared()),
    ("Middle::SHARED_BYTES", Tile::Middle.shared()),
    ("Large::SHARED_BYTES", Tile::Large.shared()),
    ("Huge::SHARED_BYTES", Tile::Huge.shared()),
    ("Row::WORDS", words::<Row>() as u32),
    ("SamplePick::NONE", SamplePick::NONE),
    ("MAX_BEAMS", super::beam_step::MAX_BEAMS as u32),
    ("MAX_SCORERS", MAX_SCORERS as u32),
    ("MAX_CONSTRAINT_TOKENS", MAX_CONSTRAINT_TOKENS as u32),
    ("BANK_WORDS", BANK_WORDS as u32),
    ("beam_step::THREADS", super::beam_step::THREADS),
    ("beam_step::ELEMENTS", super::beam_step::ELEMENTS),
    ("sample::ELEMENTS", super::sample::ELEMENTS),
    ("stats::ELEMENTS", super::stats::ELEMENTS),
];

/// The launchers' own.
fn launchers() -> [&'static [Layout]; 18] {
    [
        super::attention::LAYOUTS,
        super::beam_step::LAYOUTS,
        super::checksum::LAYOUTS,
        super::contrastive::LAYOUTS,
        super::embedding::LAYOUTS,
        super::ensemble::LAYOUTS,
        super::gate::LAYOUTS,
        super::gather::LAYOUTS,
        super::gemm::LAYOUTS,
        super::layer_norm::LAYOUTS,
        super::linear_norm::LAYOUTS,
        super::loss::LAYOUTS,
        super::processors::LAYOUTS,
        super::quantize::LAYOUTS,
        super::risk::LAYOUTS,
        super::sample::LAYOUTS,
        super::scheduled_sampling::LAYOUTS,
        super::stats::LAYOUTS,
    ]
}

/// An entry of a kernel file's table; mirrors `LayoutEntry`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct Entry {
    /// Ends with zeros.
    name: [u8; 56],
    place: u32,
    size: u32,
}

/// The place of an entry that stands for a whole struct.
const WHOLE: u32 = u32::MAX;

/// Place and size by name.
type Table = BTreeMap<String, (u32, u32)>;

fn describe((place, size): (u32, u32)) -> String {
    match (place, size) {
        (value, 0) => format!("{value}"),
        (WHOLE, size) => format!("{size} bytes"),
        (offset, size) => format!("{size} bytes at byte {offset}"),
    }
}

/// The launchers' side.
fn ours() -> Table {
    let layouts = launchers().into_iter().flatten().chain(LAYOUTS);
    let mut table: Table = CONSTANTS.iter().map(|&(name, value)| (name.to_owned(), (value, 0))).collect();
    for layout in layouts {
        table.insert(layout.name.to_owned(), (WHOLE, layout.size as u32));
        let fields = layout.fields.iter();
        table.extend(
            fields.map(|&(field, offset, size)| (format!("{}.{field}", layout.name), (offset as u32, size as u32))),
        );
    }
    table
}

/// The kernels' side: the tables of all files. A template's struct goes without its type, as all of them are alike.
fn theirs(entries: &[Entry]) -> Table {
    let name = |entry: &Entry| {
        let text = String::from_utf8_lossy(&entry.name);
        let text = text.trim_end_matches('\0');
        match (text.find('<'), text.find('>')) {
            (Some(open), Some(close)) if open < close => format!("{}{}", &text[..open], &text[close + 1..]),
            _ => text.to_owned(),
        }
    };
    entries.iter().map(|entry| (name(entry), (entry.place, entry.size))).collect()
}

/// Whether the tables that the kernel files export say what the launchers take for granted, and nothing else.
///
/// # Errors
/// The first difference.
pub(super) fn check(entries: &[Entry]) -> Result<(), String> {
    let (ours, theirs) = (ours(), theirs(entries));
    for (name, &expected) in &ours {
        match theirs.get(name) {
            Some(&got) if got == expected => {}
            Some(&got) => {
                return Err(format!("layout of {name}: expected {}, got {}", describe(expected), describe(got)));
            }
            None => return Err(format!("layout of {name}: expected {}, but no kernel exports it", describe(expected))),
        }
    }
    match theirs.iter().find(|(name, _)| !ours.contains_key(*name)) {
        Some((name, &got)) => Err(format!("layout of {name}: no launcher knows it, got {}", describe(got))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::philox::Purpose;
    #[cfg(emulated)]
    use crate::cuda::emulated;

    #[test]
    fn random_numbers_are_for_the_same_purposes_as_on_the_cpu() {
        assert_eq!(PURPOSES, [Purpose::Coin, Purpose::Noise, Purpose::Draw].map(|purpose| purpose as u32));
    }

    #[test]
    #[cfg(emulated)]
    fn kernels_and_launchers_agree() {
        assert_eq!(check(&emulated::layout_entries()), Ok(()));
    }

    #[test]
    #[cfg(emulated)]
    fn every_kernel_exports_the_layout_of_its_arguments() {
        let known = theirs(&emulated::layout_entries());
        let kernels = emulated::argument_types();
        assert!(kernels.len() > 30, "{kernels:?}");
        for (kernel, arguments) in kernels.iter().filter(|(kernel, _)| !kernel.starts_with("planted_")) {
            let arguments = arguments.split('<').next().unwrap_or_default();
            assert!(known.contains_key(arguments), "{kernel}: {arguments} is not in its file's LAYOUT");
        }
    }

    #[test]
    #[cfg(emulated)]
    fn every_difference_is_found_and_named() {
        let entries = emulated::layout_entries();
        for i in 0..entries.len() {
            let name = theirs(&entries[i..=i]).into_keys().next().unwrap_or_default();
            for change in [|entry: &mut Entry| entry.place ^= 4, |entry: &mut Entry| entry.size += 4] {
                let mut changed = entries.clone();
                change(&mut changed[i]);
                assert!(check(&changed).is_err_and(|said| said.starts_with(&format!("layout of {name}: "))), "{name}");
            }
            let mut lacking = entries.clone();
            lacking.remove(i);
            assert!(check(&lacking).is_err_and(|said| said.contains(&name)), "{name}");
        }
        let mut more = entries.clone();
        let mut entry = entries[0];
        entry.name[..4].copy_from_slice(b"New\0");
        more.push(entry);
        assert!(check(&more).is_err_and(|said| said.contains("no launcher knows it")));
    }
}
