//! The step distribution of contrastive decoding, expert minus amateur.

use super::UNTOUCHED;
use std::time::{Duration, Instant};

use crate::Result;
use crate::backend::{ContrastiveForm, ContrastiveOptions, Dtype, Row, SlotOptions};
use crate::check::Tolerance;
use crate::cpu::contrastive::reference;
use crate::cuda::contrastive::Contrastive;
use crate::cuda::testing::{Values, stored};
use crate::cuda::{Context, Element};
use crate::validate::probe::{Case, Probe};

/// All forms.
pub const FORMS: [ContrastiveForm; 4] =
    [ContrastiveForm::Logits, ContrastiveForm::Li, ContrastiveForm::Obrien, ContrastiveForm::Source];
/// Rows of every case.
pub const ROWS: usize = 11;
const LIVE: usize = 9;
/// End of sentence of every case.
pub const EOS: u32 = 1;
/// Tokens, elements from row to row, threads.
const SHAPES: [(usize, usize, u32); 6] =
    [(2, 2, 32), (31, 31, 64), (64, 64, 96), (61, 64, 32), (257, 264, 1024), (1003, 1008, 256)];
const LARGE: [(usize, usize, u32); 1] = [(58101, 58104, 1024)];

/// How logits are spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// Quarter steps: ties, also at V_head's line; outliers, and tokens that are ruled out.
    Ties,
    /// The same for all.
    Equal,
    /// As ties; the expert has NaN at the end of the first row, +infinity at that of the second, and nothing but -infinity in the
    /// third. The amateur has NaN, then +infinity, where the expert's fourth and fifth rows are best, and nothing but -infinity in
    /// the sixth.
    NotFinite,
}

const SPREADS: [Spread; 3] = [Spread::Ties, Spread::Equal, Spread::NotFinite];

/// A form at a shape.
#[derive(Clone, Copy, Debug)]
pub struct Rows {
    /// Of all slots.
    pub form: ContrastiveForm,
    /// Tokens.
    pub vocab_size: usize,
    /// From row to row.
    pub stride: usize,
    /// Of a block.
    pub threads: u32,
    /// Whether the amateur stands in `out`.
    pub in_place: bool,
    /// Whether all rows are live.
    pub all_live: bool,
}

/// In every storage type.
pub fn check(probe: &mut Probe<'_>) -> Result<()> {
    check_as::<f32>(probe)?;
    check_as::<half::f16>(probe)?;
    check_as::<half::bf16>(probe)
}

/// In one.
pub fn check_as<T: Element>(probe: &mut Probe<'_>) -> Result<()> {
    let shapes = probe.grid().shapes(&SHAPES, &LARGE);
    // Only f32 can stand in `out`.
    let places = if T::DTYPE == Dtype::F32 { 2 } else { 1 };
    for [form, shape, spread, place] in probe.grid().combine([FORMS.len(), shapes.len(), SPREADS.len(), places]) {
        let ((vocab_size, stride, threads), spread) = (shapes[shape], SPREADS[spread]);
        let (form, in_place, all_live) = (FORMS[form], place == 1, spread == Spread::Equal);
        let rows = Rows { form, vocab_size, stride, threads, in_place, all_live };
        let variant = match form {
            ContrastiveForm::Logits => "logits",
            ContrastiveForm::Li => "li",
            ContrastiveForm::Obrien => "obrien",
            ContrastiveForm::Source => "source",
        };
        probe.case(variant, T::DTYPE, format!("{spread:?} logits, {rows:?}"), |case| rows.run::<T>(case, spread))?;
    }
    for form in [ContrastiveForm::Li, ContrastiveForm::Obrien, ContrastiveForm::Source] {
        let what = format!("{form:?}, given tokens, lengths that are cut, slots of other scorers");
        probe.case("joined", T::DTYPE, what, |case| joined::<T>(case, form))?;
    }
    Ok(())
}

/// The first of the largest.
fn best(row: &[f32]) -> usize {
    (0..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best })
}

/// The token that V_head admits in any case: the given one, end of sentence at the limit, none where the length is cut; and rows of
/// slots that contrast with another scorer, or not at all.
fn joined<T: Element>(case: &mut Case<'_>, form: ContrastiveForm) -> Result<()> {
    const STRIDE: usize = 64;
    const VOCAB: usize = 61;
    const MAX_LEN: usize = 9;
    let contrast = ContrastiveOptions { log_mask: -2.0, scorer: 1, ..ContrastiveOptions::new(form, 0.625, 0.1, 0.75) };
    let own = SlotOptions { contrast, max_len: MAX_LEN as u32, ..SlotOptions::default() };
    let other = ContrastiveOptions { scorer: 2, ..contrast };
    let options = [
        SlotOptions { prefix_len: 3, ..own },
        SlotOptions { max_len: 4, cut: 1, ..own },
        SlotOptions { contrast: other, ..own },
        SlotOptions { contrast: bytemuck::Zeroable::zeroed(), ..own },
    ];
    let places: [(u32, u32); 8] = [(0, 0), (0, 2), (0, 3), (0, 8), (1, 2), (1, 3), (2, 0), (3, 0)];
    let rows: Vec<Row> = places.map(|(slot, position)| Row { slot, position, ..Row::default() }).to_vec();
    let draw = |seed, ruled_out| logits::<T>(Spread::Ties, seed, STRIDE, ruled_out)[..rows.len() * STRIDE].to_vec();
    let (expert, amateur) = (draw(1, f32::NEG_INFINITY), draw(2, 3.0));
    let (plain, plain_amateur) = (stored(&expert), stored(&amateur));
    let (mut prefixes, mut expected) = (vec![0u32; options.len() * MAX_LEN], vec![UNTOUCHED; amateur.len()]);
    for (r, row) in rows.iter().enumerate().take(6) {
        let z = &plain[r * STRIDE..][..VOCAB];
        // Far outside of V_head.
        let given = (0..VOCAB).filter(|v| z[*v].is_finite()).min_by(|a, b| z[*a].total_cmp(&z[*b])).unwrap_or(0) as u32;
        prefixes[row.slot as usize * MAX_LEN + row.position as usize] = given;
        let (joins, at_limit) = match places[r] {
            (0, position) if position < 3 => (given, true),
            (0, 8) => (EOS, true),
            _ => (0, false),
        };
        // To the reference a token joins at the limit alone.
        let alone = SlotOptions { max_len: if at_limit { 1 } else { 99 }, ..own };
        let out = &mut expected[r * STRIDE..][..VOCAB];
        out.copy_from_slice(&plain_amateur[r * STRIDE..][..VOCAB]);
        reference(&[Row::default()], &[alone], VOCAB, joins, z, out, &mut [0.0]);
    }
    let context = case.context;
    let (row_list, count) = (context.upload(&rows)?, context.upload(&[rows.len() as u32])?);
    let (options, prefixes) = (context.upload(&options)?, context.upload(&prefixes)?);
    let (expert, amateur) = (context.upload(&expert)?, context.upload(&amateur)?);
    let mut out = context.upload(&vec![UNTOUCHED; expected.len()])?;
    let kernel = Contrastive {
        rows: row_list.view(),
        count: count.view(),
        options: options.view(),
        expert: expert.view(),
        amateur: Some(amateur.view()),
        out: out.view_mut(),
        normalizers: None,
        eos_id: EOS,
        prefixes: Some((prefixes.view(), MAX_LEN)),
        scorer: 1,
    };
    let bytes = rows.len() * VOCAB * (2 * size_of::<T>() + size_of::<f32>());
    case.launch(bytes, |context| kernel.launch_with(context, VOCAB, STRIDE, 32))?;
    // As shares: what `source` leaves of a difference has an absolute error. What is untouched has none to speak of, so it stays.
    let share = |values: &[f32]| values.iter().map(|l| if *l == UNTOUCHED { *l } else { l.exp() }).collect::<Vec<_>>();
    case.close("out, as shares", &share(&context.download(out.view())?), &share(&expected), Tolerance::new(1e-6, 1e-5));
    Ok(())
}

/// `[ROWS, stride]` logits.
pub fn logits<T: Element>(spread: Spread, seed: u64, stride: usize, ruled_out: f32) -> Vec<T> {
    if spread == Spread::Equal {
        return vec![T::from_f32(1.5); ROWS * stride];
    }
    let mut values = Values::new(seed);
    let mut draw = || (values.uniform() * 40.0).floor() * 0.25 - 5.0;
    let mut row: Vec<f32> = (0..ROWS * stride).map(|_| draw()).collect();
    row.iter_mut().skip(3).step_by(11).for_each(|z| *z = ruled_out);
    row.iter_mut().skip(5).step_by(97).for_each(|z| *z += 12.0);
    row.into_iter().map(T::from_f32).collect()
}

fn options(form: ContrastiveForm) -> Vec<SlotOptions> {
    let strict = ContrastiveOptions { log_mask: -2.0, ..ContrastiveOptions::new(form, 0.625, 0.1, 0.75) };
    [(strict, 4), (ContrastiveOptions::new(form, 0.5, 0.0, 1.0), 99), (ContrastiveOptions::new(form, 0.5, 1.0, 1.0), 3)]
        .map(|(contrast, max_len)| SlotOptions { contrast, max_len, ..SlotOptions::default() })
        .to_vec()
}

fn rows() -> Vec<Row> {
    (0..ROWS as u32).map(|r| Row { slot: r * 2 % 3, beam: r, position: r % 5, token: 0 }).collect()
}

impl Rows {
    fn live(&self) -> usize {
        if self.all_live { ROWS } else { LIVE }
    }

    /// The used part of each live row.
    fn used(&self, values: &[f32]) -> Vec<f32> {
        values.chunks(self.stride).take(self.live()).flat_map(|row| row[..self.vocab_size].to_vec()).collect()
    }

    /// Launches over `[ROWS, stride]` tensors; returns `out` and the normalisers, whole, and the launch's time.
    ///
    /// # Errors
    /// The device failed.
    pub fn launch<T: Element>(
        &self,
        context: &Context,
        expert: &[T],
        amateur: &[T],
    ) -> Result<([Vec<f32>; 2], Duration)> {
        let (rows, count) = (context.upload(&rows())?, context.upload(&[self.live() as u32])?);
        let options = context.upload(&options(self.form))?;
        let mut out = context.upload(&self.before(amateur))?;
        let (expert, amateur) = (context.upload(expert)?, context.upload(amateur)?);
        let mut normalizers = context.upload(&[UNTOUCHED; ROWS])?;
        let kernel = Contrastive {
            rows: rows.view(),
            count: count.view(),
            options: options.view(),
            expert: expert.view(),
            amateur: (!self.in_place).then(|| amateur.view()),
            out: out.view_mut(),
            normalizers: Some(normalizers.view_mut()),
            eos_id: EOS,
            prefixes: None,
            scorer: 0,
        };
        context.synchronize()?;
        let start = Instant::now();
        kernel.launch_with(context, self.vocab_size, self.stride, self.threads)?;
        context.synchronize()?;
        let time = start.elapsed();
        Ok(([context.download(out.view())?, context.download(normalizers.view())?], time))
    }

    /// What `out` holds before.
    fn before<T: Element>(&self, amateur: &[T]) -> Vec<f32> {
        if self.in_place { stored(amateur) } else { vec![UNTOUCHED; amateur.len()] }
    }

    fn run<T: Element>(&self, case: &mut Case<'_>, spread: Spread) -> Result<()> {
        let &Rows { form, vocab_size, stride, .. } = self;
        let mut expert: Vec<T> = logits(spread, stride as u64, stride, f32::NEG_INFINITY);
        let mut amateur: Vec<T> = logits(spread, stride as u64 + 1, stride, 3.0);
        if spread == Spread::NotFinite {
            expert[vocab_size - 1] = T::from_f32(f32::NAN);
            expert[stride + vocab_size - 1] = T::from_f32(f32::INFINITY);
            expert[2 * stride..2 * stride + vocab_size].fill(T::from_f32(f32::NEG_INFINITY));
            // Where V_head is: beyond it what the amateur holds may go unseen.
            for (row, value) in [(3, f32::NAN), (4, f32::INFINITY)] {
                amateur[row * stride + best(&stored(&expert[row * stride..][..vocab_size]))] = T::from_f32(value);
            }
            amateur[5 * stride..5 * stride + vocab_size].fill(T::from_f32(f32::NEG_INFINITY));
        }
        let ([out, normalizers], time) = self.launch(case.context, &expert, &amateur)?;
        let bytes = self.live() * vocab_size * (2 * size_of::<T>() + size_of::<f32>());
        case.add_time(bytes, time);

        let mut expected = self.used(&stored(&amateur));
        let mut expected_normalizers = [UNTOUCHED; ROWS];
        let (expert, live) = (self.used(&stored(&expert)), self.live());
        let (rows, options) = (rows(), options(form));
        let live_normalizers = &mut expected_normalizers[..live];
        reference(&rows[..live], &options, vocab_size, EOS, &expert, &mut expected, live_normalizers);
        let actual = self.used(&out);
        case.close("normalizers", &normalizers, &expected_normalizers, Tolerance::new(2e-6, 1e-6));
        if form == ContrastiveForm::Source {
            // A difference of two probabilities has an absolute error, and so has what it is a share of.
            let share = |values: &[f32]| values.iter().map(|l| l.exp()).collect::<Vec<_>>();
            case.close("out, as shares", &share(&actual), &share(&expected), Tolerance::new(1e-6, 1e-5));
            let gone = |values: &[f32]| values.iter().map(|l| *l == f32::NEG_INFINITY).collect::<Vec<_>>();
            case.same("out at -inf", &gone(&actual), &gone(&expected));
        } else {
            case.close("out", &actual, &expected, Tolerance::new(1e-5, 2e-6));
        }
        // Neither rows that are not live nor what lies between rows is written.
        let is_used = |i: usize| i / stride < live && i % stride < vocab_size;
        let rest = |values: &[f32]| (0..values.len()).filter(|i| !is_used(*i)).map(|i| values[i]).collect::<Vec<_>>();
        case.same_bits("what is not used", &rest(&out), &rest(&self.before(&amateur)));
        Ok(())
    }
}
