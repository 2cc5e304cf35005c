//! Encoder self-attention, decoder self-attention through the ancestry table, cross-attention, and the store beneath them.

use super::UNTOUCHED;
use crate::Result;
use crate::backend::{Heads, Row, SlotOptions};
use crate::check::Tolerance;
use crate::cpu::attention::reference;
use crate::cuda::attention::{Cache, Cross, Encoder, Own, Relative, Store, StoreOwn};
use crate::cuda::testing::{DeviceRows, Values, stored, tolerance};
use crate::cuda::{Buffer, Context, Element, View, ViewMut};
use crate::validate::cases::Distribution;
use crate::validate::probe::{Case, Probe};

/// Head shapes: odd and even, one element, a warp, more than a warp, the widest.
const HEADS: [Heads; 6] =
    [Heads::new(1, 1), Heads::new(3, 7), Heads::new(4, 32), Heads::new(9, 16), Heads::new(2, 72), Heads::new(1, 256)];
const LARGE: [Heads; 2] = [Heads::new(8, 64), Heads::new(16, 64)];
const BLOCKS: [u32; 4] = [32, 96, 160, 256];

/// In every storage type.
pub fn check(probe: &mut Probe<'_>) -> Result<()> {
    check_as::<f32>(probe)?;
    check_as::<half::f16>(probe)?;
    check_as::<half::bf16>(probe)?;
    check_kept_in_bf16(probe)
}

/// Activations in f32, keys and values in bf16.
pub fn check_kept_in_bf16(probe: &mut Probe<'_>) -> Result<()> {
    sweep::<f32>(probe, "store bf16", store::<f32, half::bf16>)?;
    sweep::<f32>(probe, "self of bf16", own::<f32, half::bf16>)?;
    sweep::<f32>(probe, "store_self bf16", store_own::<f32, half::bf16>)?;
    sweep::<f32>(probe, "cross of bf16", cross::<f32, half::bf16>)
}

/// In one.
pub fn check_as<T: Element>(probe: &mut Probe<'_>) -> Result<()> {
    check_encoder::<T>(probe)?;
    check_store::<T>(probe)?;
    check_self::<T>(probe)?;
    check_store_self::<T>(probe)?;
    check_cross::<T>(probe)
}

/// Encoder self-attention.
pub fn check_encoder<T: Element>(probe: &mut Probe<'_>) -> Result<()> {
    sweep::<T>(probe, "encoder", encoder::<T>)
}

/// Decoder self-attention, after the store.
pub fn check_self<T: Element>(probe: &mut Probe<'_>) -> Result<()> {
    sweep::<T>(probe, "self", own::<T, T>)
}

/// Bias, store and decoder self-attention in one launch, against the three.
pub fn check_store_self<T: Element>(probe: &mut Probe<'_>) -> Result<()> {
    sweep::<T>(probe, "store_self", store_own::<T, T>)
}

/// The store alone.
pub fn check_store<T: Element>(probe: &mut Probe<'_>) -> Result<()> {
    sweep::<T>(probe, "store", store::<T, T>)
}

/// Cross-attention, after the store.
pub fn check_cross<T: Element>(probe: &mut Probe<'_>) -> Result<()> {
    sweep::<T>(probe, "cross", cross::<T, T>)
}

/// Rows of a bucket that are not live: most cases have some, and some have none.
fn idle_rows(distribution: Distribution, some: usize) -> usize {
    if distribution == Distribution::Equal { 0 } else { some }
}

type Run = fn(&mut Case<'_>, Scoring, Distribution, u32) -> Result<()>;

/// The largest distance that a bias tells apart, where there is one: within all sequences, within none, beyond them.
const FAR: [Option<usize>; 4] = [None, Some(0), Some(5), Some(70)];

/// The heads of a case and its bias.
#[derive(Clone, Copy)]
struct Scoring {
    heads: Heads,
    far: Option<usize>,
}

impl Scoring {
    /// The bias, `[num_heads, 2 * far + 1]`; empty without one.
    fn bias(self) -> Vec<f32> {
        let len = self.far.map_or(0, |far| self.heads.num_heads * (2 * far + 1));
        Values::new(17).elements(len, 0.0, 2.0)
    }

    /// What the bias adds for a head and two positions, by the definition.
    fn at(self, bias: &[f32], head: usize, query: usize, key: usize) -> f32 {
        let Some(far) = self.far.map(|far| far as i64) else { return 0.0 };
        let distance = (key as i64 - query as i64).clamp(-far, far);
        bias[(head as i64 * (2 * far + 1) + distance + far) as usize]
    }

    fn relative(self, bias: &Buffer<f32>) -> Option<Relative<'_>> {
        self.far.map(|max_distance| Relative { values: bias.view(), max_distance })
    }
}

/// Head shapes by block sizes by distributions.
fn sweep<T: Element>(probe: &mut Probe<'_>, variant: &'static str, run: Run) -> Result<()> {
    let heads = probe.grid().shapes(&HEADS, &LARGE);
    for [shape, block, distribution, far] in
        probe.grid().combine([heads.len(), BLOCKS.len(), Distribution::FINITE.len() + 1, FAR.len()])
    {
        let distribution = Distribution::FINITE.get(distribution).copied().unwrap_or(Distribution::NotANumber);
        let (heads, threads, far) = (heads[shape], BLOCKS[block], FAR[far]);
        let scores = Scoring { heads, far };
        let Heads { num_heads, head_dim, .. } = heads;
        let bias = far.map_or_else(String::new, |far| format!(", biased to distance {far}"));
        let what = format!("{num_heads} heads of {head_dim}{bias}, {distribution}, {threads} threads");
        probe.case(variant, T::DTYPE, what, |case| run(case, scores, distribution, threads))?;
    }
    Ok(())
}

fn untouched<T: Element>(context: &Context, len: usize) -> Result<Buffer<T>> {
    context.upload(&vec![T::from_f32(UNTOUCHED); len])
}

/// A row of the decoder.
pub fn row(slot: usize, beam: usize, position: usize) -> Row {
    Row { slot: slot as u32, beam: beam as u32, position: position as u32, token: 0 }
}

/// The `which`-th part of `width` elements of row `r`, of `parts` parts.
fn part(values: &[f32], width: usize, parts: usize, r: usize, which: usize) -> &[f32] {
    &values[(parts * r + which) * width..][..width]
}

// ---- Encoder ----

fn encoder<T: Element>(case: &mut Case<'_>, scores: Scoring, distribution: Distribution, threads: u32) -> Result<()> {
    let heads = scores.heads;
    let (context, width) = (case.context, heads.width());
    let starts = [0u32, 1, 12, 12, 47];
    let live = 47;
    let bucket = live + idle_rows(distribution, 6);
    let mut qkv: Vec<T> = distribution.draw(&mut Values::new(width as u64), live * 3 * width, 0.0, 1.0);
    // A sentence whose scores lie beyond what exp can take, and for each row all alike; a bias would be lost in them.
    let extreme = if scores.far.is_some() { 0 } else { 12 };
    for row in qkv[..extreme * 3 * width].chunks_mut(3 * width).skip(1) {
        row[..width].fill(T::from_f32(32.0));
        row[width..2 * width].fill(T::from_f32(16.0));
    }
    let bias = scores.bias();
    // Beyond the live rows lies what would show.
    qkv.resize(bucket * 3 * width, T::from_f32(f32::NAN));
    let plain = stored(&qkv);
    let mut expected = vec![UNTOUCHED; bucket * width];
    for sentence in starts.windows(2) {
        let (first, end) = (sentence[0] as usize, sentence[1] as usize);
        for r in first..end {
            let key = |t: usize| part(&plain, width, 3, first + t, 1);
            let value = |t: usize| part(&plain, width, 3, first + t, 2);
            let query = part(&plain, width, 3, r, 0);
            let bias = |head: usize, t: usize| scores.at(&bias, head, r - first, t);
            reference(heads, bias, query, end - first, key, value, &mut expected[r * width..][..width]);
        }
    }
    let rows = DeviceRows::upload(context, &vec![Row::default(); bucket], live)?;
    let (qkv, starts) = (context.upload(&qkv)?, context.upload(&starts)?);
    let mut out = untouched::<T>(context, bucket * width)?;
    let bias = context.upload(&bias)?;
    let relative = scores.relative(&bias);
    let kernel = Encoder { rows: rows.list(), starts: starts.view(), qkv: qkv.view(), relative, out: out.view_mut() };
    case.launch(4 * live * width * size_of::<T>(), |context| kernel.launch_with(context, heads, threads))?;
    case.close("out", &stored(&context.download(out.view())?), &expected, tolerance::<T>(2e-5));
    Ok(())
}

// ---- Decoder ----

/// Slots of the caches.
pub const SLOTS: usize = 3;
const BEAMS: usize = 3;
const MAX_LEN: usize = 41;

/// A self-attention cache filled by the store kernel, row by row of `qkv`, which is rounded as the cache is, and the other way round: which
/// row lies where.
pub struct Prefixes<C> {
    keys: Buffer<C>,
    values: Buffer<C>,
    qkv: Vec<f32>,
    rows: Vec<Row>,
}

impl<C: Element> Prefixes<C> {
    /// Fills every place, from keys and values in `T`.
    ///
    /// # Errors
    /// The device failed.
    pub fn store<T: Element>(
        context: &Context,
        heads: Heads,
        distribution: Distribution,
        threads: u32,
    ) -> Result<Self> {
        let width = heads.width();
        let places = (0..MAX_LEN).flat_map(|t| (0..SLOTS * BEAMS).map(move |i| row(i / BEAMS, i % BEAMS, t)));
        let rows: Vec<Row> = places.collect();
        let qkv: Vec<T> = distribution.draw(&mut Values::new(3 + width as u64), rows.len() * 3 * width, 0.0, 1.0);
        let list = DeviceRows::upload(context, &rows, rows.len())?;
        let from = context.upload(&qkv)?;
        let (mut keys, mut values) =
            (context.allocate(rows.len() * width)?, context.allocate::<C>(rows.len() * width)?);
        Store {
            rows: list.list(),
            from: from.view(),
            stride: 3 * width,
            key_offset: width,
            keys: keys.view_mut(),
            values: values.view_mut(),
            max_len: MAX_LEN,
            beam_size: BEAMS,
        }
        .launch_with(context, width, threads)?;
        Ok(Prefixes { keys, values, qkv: kept::<C>(&stored(&qkv)), rows })
    }

    /// The stored row of a place: they were stored by position, then slot, then beam.
    fn find(&self, place: Row) -> usize {
        let at = (place.position as usize * SLOTS + place.slot as usize) * BEAMS + place.beam as usize;
        debug_assert_eq!(self.rows[at], place);
        at
    }

    /// For a launcher.
    pub fn cache(&self) -> Cache<'_, C> {
        Cache { keys: self.keys.view(), values: self.values.view(), max_len: MAX_LEN, beam_size: BEAMS }
    }
}

/// Values rounded as a cache keeps them.
fn kept<C: Element>(values: &[f32]) -> Vec<f32> {
    values.iter().map(|&value| C::from_f32(value).to_f32()).collect()
}

/// Beam b of every slot has its ancestor at position t in beam (b + t) mod 3.
pub fn ancestry() -> Vec<u32> {
    (0..SLOTS * BEAMS * MAX_LEN).map(|i| ((i / MAX_LEN + i % MAX_LEN) % BEAMS) as u32).collect()
}

/// What the store kernel leaves: each key and value at its place, and nothing anywhere else.
fn store<T: Element, C: Element>(
    case: &mut Case<'_>,
    scores: Scoring,
    distribution: Distribution,
    threads: u32,
) -> Result<()> {
    let heads = scores.heads;
    let (context, width) = (case.context, heads.width());
    let (max_len, stride) = (5, 3 * width + 3);
    // The last is not live; the one before names a slot that is not there.
    let rows = [row(2, 2, 4), row(0, 0, 0), row(1, 2, 3), row(0, 1, 4), row(SLOTS, 0, 0), row(1, 1, 1)];
    let live = rows.len() - idle_rows(distribution, 1);
    let from: Vec<T> = distribution.draw(&mut Values::new(11), rows.len() * stride, 0.0, 1.0);
    let plain = kept::<C>(&stored(&from));
    let len = SLOTS * max_len * BEAMS * width;
    let mut expected = [vec![UNTOUCHED; len], vec![UNTOUCHED; len]];
    for (r, place) in rows.iter().enumerate().take(live).filter(|(_, place)| (place.slot as usize) < SLOTS) {
        let at = ((place.slot as usize * max_len + place.position as usize) * BEAMS + place.beam as usize) * width;
        for (half, expected) in expected.iter_mut().enumerate() {
            let start = r * stride + width + half * width;
            expected[at..at + width].copy_from_slice(&plain[start..start + width]);
        }
    }
    let (list, from) = (DeviceRows::upload(context, &rows, live)?, context.upload(&from)?);
    let (mut keys, mut values) = (untouched::<C>(context, len)?, untouched::<C>(context, len)?);
    let kernel = Store {
        rows: list.list(),
        from: from.view(),
        stride,
        key_offset: width,
        keys: keys.view_mut(),
        values: values.view_mut(),
        max_len,
        beam_size: BEAMS,
    };
    case.launch(4 * live * width * size_of::<T>(), |context| kernel.launch_with(context, width, threads))?;
    case.close("keys", &stored(&context.download(keys.view())?), &expected[0], Tolerance::EXACT);
    case.close("values", &stored(&context.download(values.view())?), &expected[1], Tolerance::EXACT);
    Ok(())
}

fn own<T: Element, C: Element>(
    case: &mut Case<'_>,
    scores: Scoring,
    distribution: Distribution,
    threads: u32,
) -> Result<()> {
    let heads = scores.heads;
    let (context, width) = (case.context, heads.width());
    let prefixes = Prefixes::<C>::store::<T>(context, heads, distribution, threads)?;
    let mut rows =
        vec![row(2, 1, 40), row(0, 0, 0), row(1, 2, 32), row(0, 1, 31), row(0, 2, 6), row(1, 0, 9), row(0, 0, 0)];
    rows.truncate(6 + idle_rows(distribution, 1));
    let live = 6;
    let queries: Vec<T> = Values::new(5).elements(rows.len() * 3 * width, 0.0, 1.0);
    let (plain, bias) = (stored(&queries), scores.bias());
    let mut expected = vec![UNTOUCHED; rows.len() * width];
    for (r, own) in rows.iter().enumerate().take(live) {
        let at = |t: usize| {
            let beam = if t == own.position as usize { own.beam as usize } else { (own.beam as usize + t) % BEAMS };
            prefixes.find(row(own.slot as usize, beam, t))
        };
        let (key, value) =
            (|t: usize| part(&prefixes.qkv, width, 3, at(t), 1), |t: usize| part(&prefixes.qkv, width, 3, at(t), 2));
        let query = part(&plain, width, 3, r, 0);
        let position = own.position as usize;
        let bias = |head: usize, t: usize| scores.at(&bias, head, position, t);
        reference(heads, bias, query, position + 1, key, value, &mut expected[r * width..][..width]);
    }
    let positions: usize = rows[..live].iter().map(|row| row.position as usize + 1).sum();
    // A slot and an ancestor that are not there.
    rows[4].slot = SLOTS as u32;
    let mut ancestry = ancestry();
    ancestry[BEAMS * MAX_LEN + 4] = BEAMS as u32;
    expected[4 * width..6 * width].fill(f32::NAN);
    let (list, qkv) = (DeviceRows::upload(context, &rows, live)?, context.upload(&queries)?);
    let ancestry = context.upload(&ancestry)?;
    let mut out = untouched::<T>(context, rows.len() * width)?;
    let (cache, ancestry) = (prefixes.cache(), ancestry.view());
    let bias = context.upload(&bias)?;
    let relative = scores.relative(&bias);
    let kernel = Own { rows: list.list(), qkv: qkv.view(), cache, ancestry, relative, out: out.view_mut() };
    case.launch(2 * positions * width * size_of::<T>(), |context| kernel.launch_with(context, heads, threads))?;
    case.close("out", &stored(&context.download(out.view())?), &expected, tolerance::<T>(2e-5));
    Ok(())
}

fn store_own<T: Element, C: Element>(
    case: &mut Case<'_>,
    scores: Scoring,
    distribution: Distribution,
    threads: u32,
) -> Result<()> {
    let heads = scores.heads;
    let (context, width) = (case.context, heads.width());
    // The last is not live.
    let rows = [row(2, 1, 40), row(0, 0, 6), row(1, 2, 32), row(0, 1, 6), row(0, 2, 6), row(1, 0, 32)];
    let (live, bucket) = (rows.len() - 1, rows.len());
    let mut numbers = Values::new(11 + width as u64);
    let qkv: Vec<T> = distribution.draw(&mut numbers, bucket * 3 * width, 0.0, 1.0);
    let bias = context.upload(&numbers.elements::<f32>(3 * width, 0.0, 1.0))?;
    let (list, ancestry) = (DeviceRows::upload(context, &rows, live)?, context.upload(&ancestry())?);
    let positions: usize = rows[..live].iter().map(|row| row.position as usize + 1).sum();
    let relative = context.upload(&scores.bias())?;
    let relative = scores.relative(&relative);
    let mut run = |fused: bool| {
        let Prefixes { mut keys, mut values, .. } =
            Prefixes::<C>::store::<T>(context, heads, Distribution::Outliers, threads)?;
        let (mut qkv, mut out) = (context.upload(&qkv)?, untouched::<T>(context, bucket * width)?);
        let (rows, ancestry, max_len, beam_size) = (list.list(), ancestry.view(), MAX_LEN, BEAMS);
        if fused {
            let (qkv, bias, out) = (qkv.view(), Some(bias.view()), out.view_mut());
            let (keys, values) = (keys.view_mut(), values.view_mut());
            let kernel = StoreOwn { rows, qkv, bias, keys, values, max_len, beam_size, ancestry, relative, out };
            let bytes = 2 * positions * width * size_of::<T>();
            case.launch(bytes, |context| kernel.launch_with(context, heads, threads))?;
        } else {
            add_bias(context, &mut qkv, &bias)?;
            let (from, stride, key_offset) = (qkv.view(), 3 * width, width);
            let (to_keys, to_values) = (keys.view_mut(), values.view_mut());
            Store { rows, from, stride, key_offset, keys: to_keys, values: to_values, max_len, beam_size }
                .launch(context, width)?;
            let cache = Cache { keys: keys.view(), values: values.view(), max_len, beam_size };
            Own { rows, qkv: qkv.view(), cache, ancestry, relative, out: out.view_mut() }
                .launch_with(context, heads, threads)?;
        }
        let (keys, values) = (context.download(keys.view())?, context.download(values.view())?);
        Ok::<_, crate::Error>([stored(&context.download(out.view())?), stored(&keys), stored(&values)])
    };
    let (fused, separate) = (run(true)?, run(false)?);
    for ((name, fused), separate) in ["out", "keys", "values"].into_iter().zip(&fused).zip(&separate) {
        case.same_bits(name, fused, separate);
    }
    Ok(())
}

/// Adds a bias to each row, rounded once, as the kernels that take one do.
fn add_bias<T: Element>(context: &Context, x: &mut Buffer<T>, bias: &Buffer<f32>) -> Result<()> {
    let (values, bias) = (context.download(x.view())?, context.download(bias.view())?);
    let biased = |(value, bias): (&T, &f32)| T::from_f32(value.to_f32() + bias);
    let biased: Vec<T> = values.iter().zip(bias.iter().cycle()).map(biased).collect();
    context.write(x.view_mut(), &biased)
}

fn cross<T: Element, C: Element>(
    case: &mut Case<'_>,
    scores: Scoring,
    distribution: Distribution,
    threads: u32,
) -> Result<()> {
    let heads = scores.heads;
    let (context, width, max_len) = (case.context, heads.width(), 67);
    let lengths = [67u32, 1, 33];
    let source: Vec<Row> = (0..SLOTS).flat_map(|s| (0..lengths[s] as usize).map(move |t| row(s, 0, t))).collect();
    let mut values = Values::new(7 + width as u64);
    let kv: Vec<T> = distribution.draw(&mut values, source.len() * 2 * width, 0.0, 1.0);
    let live = 6;
    let count = live + idle_rows(distribution, 1);
    let mut rows: Vec<Row> = (0..count).map(|i| row(i % SLOTS, i % BEAMS, 5)).collect();
    let queries: Vec<T> = values.elements(rows.len() * width, 0.0, 1.0);
    let (plain_kv, plain) = (kept::<C>(&stored(&kv)), stored(&queries));
    let mut expected = vec![UNTOUCHED; rows.len() * width];
    let mut expected_weights = vec![UNTOUCHED; rows.len() * max_len];
    for (r, own) in rows.iter().enumerate().take(live) {
        let first = lengths[..own.slot as usize].iter().sum::<u32>() as usize;
        let (key, value) =
            (|t: usize| part(&plain_kv, width, 2, first + t, 0), |t: usize| part(&plain_kv, width, 2, first + t, 1));
        let (query, len) = (part(&plain, width, 1, r, 0), lengths[own.slot as usize] as usize);
        let mut mean = reference(heads, |_, _| 0.0, query, len, key, value, &mut expected[r * width..][..width]);
        mean.resize(max_len, 0.0);
        expected_weights[r * max_len..][..max_len].copy_from_slice(&mean);
    }
    // A slot that is not there, and one whose source is longer than there is room for.
    (rows[4].slot, rows[5].slot) = (SLOTS as u32 + 1, SLOTS as u32);
    expected[4 * width..6 * width].fill(f32::NAN);
    expected_weights[4 * max_len..6 * max_len].fill(f32::NAN);

    let (source_rows, from) = (DeviceRows::upload(context, &source, source.len())?, context.upload(&kv)?);
    let len = (SLOTS + 1) * max_len * width;
    let (mut keys, mut kept_values) = (context.allocate::<C>(len)?, context.allocate::<C>(len)?);
    Store {
        rows: source_rows.list(),
        from: from.view(),
        stride: 2 * width,
        key_offset: 0,
        keys: keys.view_mut(),
        values: kept_values.view_mut(),
        max_len,
        beam_size: 1,
    }
    .launch_with(context, width, threads)?;
    let mut options: Vec<SlotOptions> =
        lengths.iter().map(|&src_len| SlotOptions { src_len, ..bytemuck::Zeroable::zeroed() }).collect();
    options.push(SlotOptions { src_len: max_len as u32 + 1, ..bytemuck::Zeroable::zeroed() });
    let options = context.upload(bytemuck::cast_slice::<_, u32>(&options))?;
    let (list, mut queries) = (DeviceRows::upload(context, &rows, live)?, context.upload(&queries)?);
    let mut weights = context.upload(&vec![UNTOUCHED; rows.len() * max_len])?;
    let bytes = 2 * source.len() * width * size_of::<T>();
    let mut attend = |queries: &Buffer<T>, bias: Option<View<'_, f32>>, weights: Option<ViewMut<'_, f32>>| {
        let mut out = untouched::<T>(context, rows.len() * width)?;
        let cache = Cache { keys: keys.view(), values: kept_values.view(), max_len, beam_size: 1 };
        let (queries, options) = (queries.view(), options.view());
        let kernel = Cross { rows: list.list(), queries, bias, cache, options, weights, out: out.view_mut() };
        case.launch(bytes, |context| kernel.launch_with(context, heads, threads))?;
        context.download(out.view()).map(|out| stored(&out))
    };
    let with = attend(&queries, None, Some(weights.view_mut()))?;
    let without = attend(&queries, None, None)?;
    let bias = context.upload(&values.elements::<f32>(width, 0.0, 1.0))?;
    let biased = attend(&queries, Some(bias.view()), None)?;
    add_bias(context, &mut queries, &bias)?;
    let moved = attend(&queries, None, None)?;
    case.close("out", &with, &expected, tolerance::<T>(2e-5));
    case.close("weights", &context.download(weights.view())?, &expected_weights, tolerance::<f32>(2e-6));
    case.same_bits("out without weights", &without, &with);
    case.same_bits("out with a bias", &biased, &moved);
    Ok(())
}
