use super::*;
use crate::backend::{Activation, Row};
use crate::check::{assert_close, assert_same_bits};
use crate::cpu::attention::reference;
use crate::cuda::testing::{DeviceRows, Values, device_tests, stored, tolerance};
use crate::cuda::{Buffer, linear};

const UNTOUCHED: f32 = -77.0;

/// Head shapes: odd and even, one element, a warp, more than a warp, the widest.
const HEADS: [Heads; 6] = [
    Heads { num_heads: 1, head_dim: 1 },
    Heads { num_heads: 3, head_dim: 7 },
    Heads { num_heads: 4, head_dim: 32 },
    Heads { num_heads: 9, head_dim: 16 },
    Heads { num_heads: 2, head_dim: 72 },
    Heads { num_heads: 1, head_dim: 256 },
];
const BLOCKS: [u32; 4] = [32, 96, 256, 1024];

fn untouched<T: Element>(context: &Context, len: usize) -> Result<Buffer<T>> {
    context.upload(&vec![T::from_f32(UNTOUCHED); len])
}

fn row(slot: usize, beam: usize, position: usize) -> Row {
    Row { slot: slot as u32, beam: beam as u32, position: position as u32, token: 0 }
}

/// The `which`-th part of `width` elements of row `r`, of `parts` parts.
fn part(values: &[f32], width: usize, parts: usize, r: usize, which: usize) -> &[f32] {
    &values[(parts * r + which) * width..][..width]
}

// ---- Encoder ----

fn check_encoder<T: Element>(context: &Context, heads: Heads, threads: u32) -> Result<()> {
    let width = heads.width();
    let starts = [0u32, 1, 12, 12, 47];
    let (bucket, live) = (53, 47);
    let qkv: Vec<T> = Values::new(width as u64).elements(bucket * 3 * width, 0.0, 1.0);
    let plain = stored(&qkv);
    let mut expected = vec![UNTOUCHED; bucket * width];
    for sentence in starts.windows(2) {
        let (first, end) = (sentence[0] as usize, sentence[1] as usize);
        for r in first..end {
            let key = |t: usize| part(&plain, width, 3, first + t, 1);
            let value = |t: usize| part(&plain, width, 3, first + t, 2);
            let query = part(&plain, width, 3, r, 0);
            reference(heads, query, end - first, key, value, &mut expected[r * width..][..width]);
        }
    }
    let rows = DeviceRows::upload(context, &vec![Row::default(); bucket], live)?;
    let (qkv, starts) = (context.upload(&qkv)?, context.upload(&starts)?);
    let mut out = untouched::<T>(context, bucket * width)?;
    Encoder { rows: rows.list(), starts: starts.view(), qkv: qkv.view(), out: out.view_mut() }
        .launch_with(context, heads, threads)?;
    assert_close(&stored(&context.download(out.view())?), &expected, tolerance::<T>(2e-5));
    Ok(())
}

// ---- Decoder ----

const SLOTS: usize = 3;
const BEAMS: usize = 3;
const MAX_LEN: usize = 41;

/// A self-attention cache filled by the store kernel, row by row of `stored`, and the other way round: which row lies where.
struct Prefixes<T> {
    keys: Buffer<T>,
    values: Buffer<T>,
    qkv: Vec<f32>,
    rows: Vec<Row>,
}

impl<T: Element> Prefixes<T> {
    fn store(context: &Context, heads: Heads, threads: u32) -> Result<Self> {
        let width = heads.width();
        let places = (0..MAX_LEN).flat_map(|t| (0..SLOTS * BEAMS).map(move |i| row(i / BEAMS, i % BEAMS, t)));
        let rows: Vec<Row> = places.collect();
        let qkv: Vec<T> = Values::new(3 + width as u64).elements(rows.len() * 3 * width, 0.0, 1.0);
        let list = DeviceRows::upload(context, &rows, rows.len())?;
        let from = context.upload(&qkv)?;
        let (mut keys, mut values) =
            (context.allocate(rows.len() * width)?, context.allocate::<T>(rows.len() * width)?);
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
        Ok(Prefixes { keys, values, qkv: stored(&qkv), rows })
    }

    /// The stored row of a place.
    fn find(&self, place: Row) -> usize {
        self.rows.iter().position(|row| *row == place).expect("every place is stored")
    }

    fn cache(&self) -> Cache<'_, T> {
        Cache { keys: self.keys.view(), values: self.values.view(), max_len: MAX_LEN, beam_size: BEAMS }
    }
}

/// Beam b of every slot has its ancestor at position t in beam (b + t) mod 3.
fn ancestry() -> Vec<u32> {
    (0..SLOTS * BEAMS * MAX_LEN).map(|i| ((i / MAX_LEN + i % MAX_LEN) % BEAMS) as u32).collect()
}

fn check_self<T: Element>(context: &Context, heads: Heads, threads: u32) -> Result<()> {
    let width = heads.width();
    let prefixes = Prefixes::<T>::store(context, heads, threads)?;
    let mut rows =
        vec![row(2, 1, 40), row(0, 0, 0), row(1, 2, 32), row(0, 1, 31), row(0, 2, 6), row(1, 0, 9), row(0, 0, 0)];
    let live = 6;
    let queries: Vec<T> = Values::new(5).elements(rows.len() * 3 * width, 0.0, 1.0);
    let plain = stored(&queries);
    let mut expected = vec![UNTOUCHED; rows.len() * width];
    for (r, own) in rows.iter().enumerate().take(live) {
        let at = |t: usize| {
            let beam = if t == own.position as usize { own.beam as usize } else { (own.beam as usize + t) % BEAMS };
            prefixes.find(row(own.slot as usize, beam, t))
        };
        let (key, value) =
            (|t: usize| part(&prefixes.qkv, width, 3, at(t), 1), |t: usize| part(&prefixes.qkv, width, 3, at(t), 2));
        let query = part(&plain, width, 3, r, 0);
        reference(heads, query, own.position as usize + 1, key, value, &mut expected[r * width..][..width]);
    }
    // A slot and an ancestor that are not there.
    rows[4].slot = SLOTS as u32;
    let mut ancestry = ancestry();
    ancestry[BEAMS * MAX_LEN + 4] = BEAMS as u32;
    expected[4 * width..6 * width].fill(f32::NAN);
    let (list, qkv) = (DeviceRows::upload(context, &rows, live)?, context.upload(&queries)?);
    let ancestry = context.upload(&ancestry)?;
    let mut out = untouched::<T>(context, rows.len() * width)?;
    Own { rows: list.list(), qkv: qkv.view(), cache: prefixes.cache(), ancestry: ancestry.view(), out: out.view_mut() }
        .launch_with(context, heads, threads)?;
    assert_close(&stored(&context.download(out.view())?), &expected, tolerance::<T>(2e-5));
    Ok(())
}

fn check_cross<T: Element>(context: &Context, heads: Heads, threads: u32) -> Result<()> {
    let (width, max_len) = (heads.width(), 67);
    let lengths = [67u32, 1, 33];
    let source: Vec<Row> = (0..SLOTS).flat_map(|s| (0..lengths[s] as usize).map(move |t| row(s, 0, t))).collect();
    let mut values = Values::new(7 + width as u64);
    let kv: Vec<T> = values.elements(source.len() * 2 * width, 0.0, 1.0);
    let mut rows: Vec<Row> = (0..7).map(|i| row(i % SLOTS, i % BEAMS, 5)).collect();
    let live = 6;
    let queries: Vec<T> = values.elements(rows.len() * width, 0.0, 1.0);
    let (plain_kv, plain) = (stored(&kv), stored(&queries));
    let mut expected = vec![UNTOUCHED; rows.len() * width];
    let mut expected_weights = vec![UNTOUCHED; rows.len() * max_len];
    for (r, own) in rows.iter().enumerate().take(live) {
        let first = lengths[..own.slot as usize].iter().sum::<u32>() as usize;
        let (key, value) =
            (|t: usize| part(&plain_kv, width, 2, first + t, 0), |t: usize| part(&plain_kv, width, 2, first + t, 1));
        let (query, len) = (part(&plain, width, 1, r, 0), lengths[own.slot as usize] as usize);
        let mut mean = reference(heads, query, len, key, value, &mut expected[r * width..][..width]);
        mean.resize(max_len, 0.0);
        expected_weights[r * max_len..][..max_len].copy_from_slice(&mean);
    }
    // A slot that is not there.
    rows[4].slot = SLOTS as u32;
    expected[4 * width..5 * width].fill(f32::NAN);
    expected_weights[4 * max_len..5 * max_len].fill(f32::NAN);

    let (source_rows, from) = (DeviceRows::upload(context, &source, source.len())?, context.upload(&kv)?);
    let len = SLOTS * max_len * width;
    let (mut keys, mut kept) = (context.allocate(len)?, context.allocate(len)?);
    Store {
        rows: source_rows.list(),
        from: from.view(),
        stride: 2 * width,
        key_offset: 0,
        keys: keys.view_mut(),
        values: kept.view_mut(),
        max_len,
        beam_size: 1,
    }
    .launch_with(context, width, threads)?;
    let options: Vec<SlotOptions> =
        lengths.iter().map(|&src_len| SlotOptions { src_len, ..bytemuck::Zeroable::zeroed() }).collect();
    let options = context.upload(bytemuck::cast_slice::<_, u32>(&options))?;
    let (list, queries) = (DeviceRows::upload(context, &rows, live)?, context.upload(&queries)?);
    let mut weights = context.upload(&vec![UNTOUCHED; rows.len() * max_len])?;
    let attend = |weights: Option<ViewMut<'_, f32>>| {
        let mut out = untouched::<T>(context, rows.len() * width)?;
        let cache = Cache { keys: keys.view(), values: kept.view(), max_len, beam_size: 1 };
        let (queries, options) = (queries.view(), options.view());
        Cross { rows: list.list(), queries, bias: None, cache, options, weights, out: out.view_mut() }
            .launch_with(context, heads, threads)?;
        context.download(out.view()).map(|out| stored(&out))
    };
    let with = attend(Some(weights.view_mut()))?;
    assert_close(&with, &expected, tolerance::<T>(2e-5));
    assert_close(&context.download(weights.view())?, &expected_weights, tolerance::<f32>(2e-6));
    let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&attend(None)?), bits(&with), "asking for the weights changed the result");
    Ok(())
}

/// One launch must leave the bits of three: the bias as an epilogue of its own, the store, the attention.
fn check_fused<T: Element>(context: &Context, heads: Heads, threads: u32) -> Result<()> {
    let width = heads.width();
    let rows: Vec<Row> = [(2, 1, 40), (0, 0, 6), (1, 2, 32), (0, 1, 6), (0, 2, 6), (1, 0, 32)]
        .map(|(slot, beam, position)| row(slot, beam, position))
        .to_vec();
    let (live, bucket) = (rows.len() - 1, rows.len());
    let mut numbers = Values::new(11 + width as u64);
    let qkv: Vec<T> = numbers.elements(bucket * 3 * width, 0.0, 1.0);
    let bias: Vec<f32> = numbers.elements(3 * width, 0.0, 1.0);
    let list = DeviceRows::upload(context, &rows, live)?;
    let (bias, ancestry) = (context.upload(&bias)?, context.upload(&ancestry())?);
    let run = |fused: bool| {
        let Prefixes { mut keys, mut values, .. } = Prefixes::<T>::store(context, heads, threads)?;
        let (mut qkv, mut out) = (context.upload(&qkv)?, untouched::<T>(context, bucket * width)?);
        let (rows, ancestry, max_len, beam_size) = (list.list(), ancestry.view(), MAX_LEN, BEAMS);
        if fused {
            let (qkv, bias, out) = (qkv.view(), Some(bias.view()), out.view_mut());
            let (keys, values) = (keys.view_mut(), values.view_mut());
            StoreOwn { rows, qkv, bias, keys, values, max_len, beam_size, ancestry, out }
                .launch_with(context, heads, threads)?;
        } else {
            let x = qkv.view_mut();
            linear::Epilogue { x, bias: Some(bias.view()), activation: Activation::None, residual: None }.launch(
                context,
                bucket,
                3 * width,
            )?;
            let (from, stride, key_offset) = (qkv.view(), 3 * width, width);
            let (to_keys, to_values) = (keys.view_mut(), values.view_mut());
            Store { rows, from, stride, key_offset, keys: to_keys, values: to_values, max_len, beam_size }
                .launch(context, width)?;
            let cache = Cache { keys: keys.view(), values: values.view(), max_len, beam_size };
            Own { rows, qkv: qkv.view(), cache, ancestry, out: out.view_mut() }.launch_with(context, heads, threads)?;
        }
        let parts = [context.download(out.view())?, context.download(keys.view())?, context.download(values.view())?];
        Ok::<_, crate::Error>(parts.map(|part| stored(&part)))
    };
    for (fused, separate) in run(true)?.iter().zip(&run(false)?) {
        assert_same_bits(fused, separate);
    }
    Ok(())
}

/// The bias within the launch must leave the bits of a bias before it.
fn a_bias_of_the_queries_is_an_epilogue(context: &Context) -> Result<()> {
    let heads = Heads { num_heads: 3, head_dim: 16 };
    let (width, bucket, max_len) = (heads.width(), 4, 9);
    let mut numbers = Values::new(12);
    let mut elements = |len: usize| numbers.elements::<half::f16>(len, 0.0, 1.0);
    let (queries, keys, values) = (elements(bucket * width), elements(max_len * width), elements(max_len * width));
    let bias = context.upload(&stored(&elements(width)))?;
    let (keys, values) = (context.upload(&keys)?, context.upload(&values)?);
    let list = DeviceRows::upload(context, &vec![Row::default(); bucket], bucket)?;
    let options = [SlotOptions { src_len: max_len as u32, ..bytemuck::Zeroable::zeroed() }];
    let options = context.upload(bytemuck::cast_slice::<_, u32>(&options))?;
    let attend = |queries: &Buffer<half::f16>, bias: Option<View<'_, f32>>| {
        let mut out = context.allocate::<half::f16>(bucket * width)?;
        let cache = Cache { keys: keys.view(), values: values.view(), max_len, beam_size: 1 };
        let (rows, queries, options) = (list.list(), queries.view(), options.view());
        Cross { rows, queries, bias, cache, options, weights: None, out: out.view_mut() }.launch(context, heads)?;
        context.download(out.view()).map(|out| stored(&out))
    };
    let mut queries = context.upload(&queries)?;
    let within = attend(&queries, Some(bias.view()))?;
    linear::Epilogue { x: queries.view_mut(), bias: Some(bias.view()), activation: Activation::None, residual: None }
        .launch(context, bucket, width)?;
    assert_same_bits(&within, &attend(&queries, None)?);
    Ok(())
}

/// Every head shape with every block size.
fn sweep(context: &Context, check: fn(&Context, Heads, u32) -> Result<()>) -> Result<()> {
    HEADS
        .into_iter()
        .flat_map(|heads| BLOCKS.map(|threads| (heads, threads)))
        .try_for_each(|(heads, threads)| check(context, heads, threads))
}

// ---- Properties ----

/// A row's bits must depend neither on the rows beside it nor on the block size, and a cache's unused part must not be read.
fn a_row_is_the_same_alone(context: &Context) -> Result<()> {
    let heads = Heads { num_heads: 5, head_dim: 24 };
    let prefixes = Prefixes::<f32>::store(context, heads, 128)?;
    let (width, ancestry) = (heads.width(), context.upload(&ancestry())?);
    let queries: Vec<f32> = Values::new(8).elements(6 * 3 * width, 0.0, 1.0);
    let rows: Vec<Row> = (0..6).map(|i| row(i % SLOTS, i / SLOTS, 6 * i + 2)).collect();
    let attend = |rows: &[Row], queries: &[f32], threads: u32| {
        let (list, qkv) = (DeviceRows::upload(context, rows, rows.len())?, context.upload(queries)?);
        let mut out = context.allocate::<f32>(rows.len() * width)?;
        let (cache, ancestry) = (prefixes.cache(), ancestry.view());
        Own { rows: list.list(), qkv: qkv.view(), cache, ancestry, out: out.view_mut() }
            .launch_with(context, heads, threads)?;
        context.download(out.view())
    };
    let together = attend(&rows, &queries, 160)?;
    for (r, own) in rows.iter().enumerate() {
        let alone = attend(&[*own], &queries[r * 3 * width..][..3 * width], 32)?;
        assert_same_bits(&alone, &together[r * width..][..width]);
    }
    Ok(())
}

fn a_length_beyond_shared_memory_is_refused(context: &Context) -> Result<()> {
    let heads = Heads { num_heads: 2, head_dim: 4 };
    let launch = |bucket: usize| {
        let rows = DeviceRows::upload(context, &vec![Row::default(); bucket], 0)?;
        let starts = context.upload(&[0u32, 0])?;
        let (qkv, mut out) = (context.allocate::<f32>(bucket * 24)?, context.allocate(bucket * 8)?);
        Encoder { rows: rows.list(), starts: starts.view(), qkv: qkv.view(), out: out.view_mut() }
            .launch(context, heads)
    };
    launch(6142)?;
    let error = launch(6143).unwrap_err();
    assert_eq!(error.to_string(), "attention: positions: expected at most 6142, got 6143");
    Ok(())
}

fn wrong_shapes_are_refused(context: &Context) -> Result<()> {
    let heads = Heads { num_heads: 2, head_dim: 4 };
    let rows = DeviceRows::upload(context, &[Row::default()], 1)?;
    let (keys, ancestry) = (context.zeros::<f32>(2 * 3 * 8)?, context.zeros(6)?);
    let (qkv, mut out) = (context.zeros::<f32>(24)?, context.allocate(8)?);
    let mut launch = |heads: Heads, keys_len: usize, ancestry_len: usize| {
        let cache = Cache { keys: keys.view().slice(0..keys_len)?, values: keys.view(), max_len: 3, beam_size: 1 };
        let ancestry = ancestry.view().slice(0..ancestry_len)?;
        Own { rows: rows.list(), qkv: qkv.view(), cache, ancestry, out: out.view_mut() }.launch(context, heads)
    };
    launch(heads, 48, 6)?;
    let mut refused = |heads: Heads, keys_len: usize, ancestry_len: usize| {
        launch(heads, keys_len, ancestry_len).unwrap_err().to_string()
    };
    assert_eq!(refused(heads, 47, 6), "attention: values: expected 47 elements, got 48 elements");
    assert_eq!(refused(heads, 48, 5), "attention: ancestry: expected 6 elements, got 5 elements");
    let wide = Heads { num_heads: 1, head_dim: 257 };
    assert!(refused(wide, 48, 6).starts_with("attention: heads: expected heads of 1 to 256 elements"));
    Ok(())
}

device_tests! {
    encoder_f32: |context| sweep(context, check_encoder::<f32>);
    encoder_f16: |context| sweep(context, check_encoder::<half::f16>);
    encoder_bf16: |context| sweep(context, check_encoder::<half::bf16>);
    self_f32: |context| sweep(context, check_self::<f32>);
    self_f16: |context| sweep(context, check_self::<half::f16>);
    self_bf16: |context| sweep(context, check_self::<half::bf16>);
    cross_f32: |context| sweep(context, check_cross::<f32>);
    cross_f16: |context| sweep(context, check_cross::<half::f16>);
    cross_bf16: |context| sweep(context, check_cross::<half::bf16>);
    fused_f32: |context| sweep(context, check_fused::<f32>);
    fused_f16: |context| sweep(context, check_fused::<half::f16>);
    fused_bf16: |context| sweep(context, check_fused::<half::bf16>);
    query_bias: a_bias_of_the_queries_is_an_epilogue;
    alone: a_row_is_the_same_alone;
    longest: a_length_beyond_shared_memory_is_refused;
    shapes: wrong_shapes_are_refused;
}
