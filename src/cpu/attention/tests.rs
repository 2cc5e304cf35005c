use super::*;
use crate::check::{Tolerance, assert_close};

const HEADS: Heads = Heads::new(3, 5);
const WIDTH: usize = 15;
const CLOSE: Tolerance = Tolerance::new(2e-5, 1e-5);

/// Asymmetric values with a few outliers that make some softmax rows sharp.
fn values(len: usize, seed: usize) -> Vec<f32> {
    let value = |i: usize| ((i * 7919 + seed * 104_729) % 1009) as f32 * 0.004 - 2.0;
    (0..len).map(|i| if i % 53 == 7 { value(i) * 9.0 } else { value(i) }).collect()
}

fn options(src_len: u32) -> SlotOptions {
    SlotOptions { src_len, ..bytemuck::Zeroable::zeroed() }
}

/// Heads that scale without a bias, and heads that do not, with one that is another at every distance, near ones below others.
fn kinds() -> [(Heads, Option<RelativeBias>); 3] {
    let bias = |max_distance: usize| {
        let len = HEADS.num_heads * (2 * max_distance + 1);
        Some(RelativeBias { values: (0..len).map(|i| (i * 37 % 19) as f32 * 0.3 - 2.0).collect(), max_distance })
    };
    let unscaled = Heads { scaled: false, ..HEADS };
    [(HEADS, None), (unscaled, bias(3)), (HEADS, bias(40))]
}

/// By the definition: the distance, clamped.
fn bias_at(bias: Option<&RelativeBias>, head: usize, query: usize, key: usize) -> f32 {
    let Some(bias) = bias else { return 0.0 };
    let far = bias.max_distance as i64;
    let distance = (key as i64 - query as i64).clamp(-far, far);
    bias.values[(head as i64 * (2 * far + 1) + distance + far) as usize]
}

#[test]
fn encoder_attention_equals_reference_and_stays_within_the_sentence() {
    let starts = [0u32, 1, 12, 12, 31];
    let rows = 31;
    let qkv = values(rows * 3 * WIDTH, 1);
    let part = |r: usize, which: usize| &qkv[(3 * r + which) * WIDTH..][..WIDTH];
    for (heads, bias) in kinds() {
        let (bias, mut actual) = (bias.as_ref(), vec![f32::NAN; rows * WIDTH]);
        encoder_attention(Scores { heads, bias }, rows, &starts, &qkv, &mut actual);
        for sentence in starts.windows(2) {
            let (first, last) = (sentence[0] as usize, sentence[1] as usize);
            for r in first..last {
                let mut expected = [f32::NAN; WIDTH];
                let (key, value) = (|t| part(first + t, 1), |t| part(first + t, 2));
                let bias = |head: usize, t: usize| bias_at(bias, head, r - first, t);
                reference(heads, bias, part(r, 0), last - first, key, value, &mut expected);
                assert_close(&actual[r * WIDTH..][..WIDTH], &expected, CLOSE);
            }
        }
    }
}

/// Rows that are computed together have the bits of each alone, in every number and on any number of threads.
#[test]
fn a_row_does_not_depend_on_those_it_is_computed_with() {
    let (slots, max_src_len) = (8, 21);
    let heads = Heads::new(2, 72);
    let width = heads.width();
    let source: Vec<Row> = (0..slots as u32)
        .flat_map(|slot| (0..max_src_len as u32).map(move |position| Row { slot, position, ..Row::default() }))
        .collect();
    let kv = values(source.len() * 2 * width, 6);
    let options: Vec<SlotOptions> = (0..slots as u32).map(|slot| options(max_src_len as u32 - slot)).collect();
    let rows: Vec<Row> =
        (0..slots as u32).flat_map(|slot| (0..slot).map(move |beam| Row { slot, beam, ..Row::default() })).collect();
    let queries = values(rows.len() * width, 7);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().expect("a pool");
    for cached in [CacheType::F32, CacheType::Bf16] {
        let room = vec![f32::NAN; slots * max_src_len * width];
        let mut cache = CrossCache::<Cpu> { keys: room.clone(), values: room, max_src_len };
        store_cross(cached, heads, &source, &kv, &mut cache);
        let compute = |rows: &[Row], queries: &[f32]| {
            let mut out = vec![f32::NAN; rows.len() * width];
            let (mut weighted, mut weights) = (out.clone(), vec![f32::NAN; rows.len() * max_src_len]);
            cross_attention(cached, heads, rows, queries, &cache, &options, None, &mut out);
            cross_attention(cached, heads, rows, queries, &cache, &options, Some(&mut weights), &mut weighted);
            crate::check::assert_same_bits(&out, &weighted);
            (out, weights)
        };
        let each = rows.chunks(1).zip(queries.chunks(width)).map(|(row, query)| compute(row, query));
        let (out, weights): (Vec<_>, Vec<_>) = each.unzip();
        for (all, all_weights) in [compute(&rows, &queries), pool.install(|| compute(&rows, &queries))] {
            crate::check::assert_same_bits(&all, &out.concat());
            crate::check::assert_same_bits(&all_weights, &weights.concat());
        }
    }
}

/// So do those of beams whose prefixes part somewhere, nowhere, or at once.
#[test]
fn a_beam_does_not_depend_on_those_it_is_computed_with() {
    let (slots, beam_size, max_len) = (5, 7, 40);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().expect("a pool");
    for heads in [Heads::new(2, 64), Heads::new(2, 72)] {
        let width = heads.width();
        let all: Vec<Row> = (0..slots * max_len * beam_size)
            .map(|i| (i / beam_size / max_len, i / beam_size % max_len, i % beam_size))
            .map(|(slot, position, beam)| Row {
                slot: slot as u32,
                beam: beam as u32,
                position: position as u32,
                token: 0,
            })
            .collect();
        let stored = values(all.len() * 3 * width, 9);
        let parted_at = |slot: usize| [0, 5, 16, 21, max_len][slot];
        let ancestor = |i: usize| (i / max_len % beam_size, i % max_len, parted_at(i / max_len / beam_size));
        let ancestry: Vec<u32> = (0..slots * beam_size * max_len)
            .map(ancestor)
            .map(|(beam, t, parted_at)| if t < parted_at { 3 } else { beam as u32 })
            .collect();
        let rows: Vec<Row> = all.iter().filter(|row| row.position == 19 + row.slot % 3).copied().collect();
        let qkv = values(rows.len() * 3 * width, 10);
        let bias =
            RelativeBias { values: (0..2 * 13).map(|i| (i * 37 % 19) as f32 * 0.3 - 2.0).collect(), max_distance: 6 };
        for (cached, bias) in [(CacheType::F32, Some(&bias)), (CacheType::Bf16, None)] {
            let room = vec![f32::NAN; all.len() * width];
            let mut cache = SelfCache::<Cpu> { keys: room.clone(), values: room, max_len, beam_size };
            store_self(cached, heads, &all, &stored, &mut cache);
            let compute = |rows: &[Row], qkv: &[f32]| {
                let mut out = vec![f32::NAN; rows.len() * width];
                self_attention(cached, Scores { heads, bias }, rows, qkv, &cache, &ancestry, &mut out);
                out
            };
            let each: Vec<Vec<f32>> =
                rows.chunks(1).zip(qkv.chunks(3 * width)).map(|(row, qkv)| compute(row, qkv)).collect();
            for together in [compute(&rows, &qkv), pool.install(|| compute(&rows, &qkv))] {
                crate::check::assert_same_bits(&together, &each.concat());
            }
        }
    }
}

/// Every row of a sentence is computed as one that attends to it as a source.
#[test]
fn the_encoder_gives_a_row_the_bits_of_a_query_alone() {
    let (heads, starts) = (Heads::new(2, 72), [0u32, 1, 4, 11, 31]);
    let (width, rows) = (heads.width(), 31);
    let qkv = values(rows * 3 * width, 8);
    let mut actual = vec![f32::NAN; rows * width];
    encoder_attention(Scores { heads, bias: None }, rows, &starts, &qkv, &mut actual);
    for sentence in starts.windows(2) {
        let (first, max_src_len) = (sentence[0] as usize, (sentence[1] - sentence[0]) as usize);
        let source: Vec<Row> = (0..max_src_len as u32).map(|position| Row { position, ..Row::default() }).collect();
        let of = |r: usize| &qkv[(first + r) * 3 * width..][..3 * width];
        let kv: Vec<f32> = (0..max_src_len).flat_map(|r| of(r)[width..].to_vec()).collect();
        let room = vec![f32::NAN; max_src_len * width];
        let mut cache = CrossCache::<Cpu> { keys: room.clone(), values: room, max_src_len };
        store_cross(CacheType::F32, heads, &source, &kv, &mut cache);
        for r in 0..max_src_len {
            let mut alone = vec![f32::NAN; width];
            let (row, options) = ([Row::default()], [options(max_src_len as u32)]);
            let query = &of(r)[..width];
            cross_attention(CacheType::F32, heads, &row, query, &cache, &options, None, &mut alone);
            crate::check::assert_same_bits(&actual[(first + r) * width..][..width], &alone);
        }
    }
}

/// Values as a cache gives them back.
fn kept(cached: CacheType, values: &[f32]) -> Vec<f32> {
    let round = |v: &f32| half::bf16::from_f32(*v).to_f32();
    if cached == CacheType::F32 { values.to_vec() } else { values.iter().map(round).collect() }
}

#[test]
fn self_attention_reads_the_ancestors() {
    for cached in [CacheType::F32, CacheType::Bf16] {
        kinds().iter().for_each(|(heads, bias)| check_self_attention(cached, *heads, bias.as_ref()));
    }
}

fn check_self_attention(cached: CacheType, heads: Heads, bias: Option<&RelativeBias>) {
    let (slots, beam_size, max_len) = (2, 3, 7);
    let mut cache = SelfCache::<Cpu> {
        keys: vec![f32::NAN; slots * max_len * beam_size * WIDTH],
        values: vec![f32::NAN; slots * max_len * beam_size * WIDTH],
        max_len,
        beam_size,
    };
    // Position t of slot s, beam b, holds marked values; ancestry sends beam b at position t to (b + t) mod 3.
    let mut all = Vec::new();
    for position in 0..5u32 {
        for slot in 0..2u32 {
            for beam in 0..3u32 {
                all.push(Row { slot, beam, position, token: 0 });
            }
        }
    }
    let stored = values(all.len() * 3 * WIDTH, 2);
    store_self(cached, HEADS, &all, &stored, &mut cache);
    let stored = kept(cached, &stored);
    let ancestry: Vec<u32> =
        (0..slots * beam_size * max_len).map(|i| ((i / max_len + i % max_len) % beam_size) as u32).collect();
    let rows: Vec<Row> = (0..12u32).map(|i| Row { slot: i % 2, beam: i % 3, position: i % 5, token: 0 }).collect();
    let qkv = values(rows.len() * 3 * WIDTH, 3);
    let mut actual = vec![f32::NAN; rows.len() * WIDTH];
    self_attention(cached, Scores { heads, bias }, &rows, &qkv, &cache, &ancestry, &mut actual);
    for (r, row) in rows.iter().enumerate() {
        let stored_row = |t: usize| {
            let own = t == row.position as usize;
            let beam = if own { row.beam as usize } else { (row.slot as usize * 3 + row.beam as usize + t) % 3 };
            (t * 2 + row.slot as usize) * 3 + beam
        };
        let part = |t: usize, which: usize| &stored[(3 * stored_row(t) + which) * WIDTH..][..WIDTH];
        let mut expected = [f32::NAN; WIDTH];
        let query = &qkv[3 * r * WIDTH..][..WIDTH];
        let position = row.position as usize;
        let bias = |head: usize, t: usize| bias_at(bias, head, position, t);
        reference(heads, bias, query, position + 1, |t| part(t, 1), |t| part(t, 2), &mut expected);
        assert_close(&actual[r * WIDTH..][..WIDTH], &expected, CLOSE);
    }
}

#[test]
fn cross_attention_equals_reference_and_reports_its_mean() {
    [CacheType::F32, CacheType::Bf16].into_iter().for_each(check_cross_attention);
}

fn check_cross_attention(cached: CacheType) {
    let (slots, max_src_len) = (3, 41);
    let lengths = [41u32, 1, 16];
    let mut cache = CrossCache::<Cpu> {
        keys: vec![f32::NAN; slots * max_src_len * WIDTH],
        values: vec![f32::NAN; slots * max_src_len * WIDTH],
        max_src_len,
    };
    let source: Vec<Row> = (0..3u32)
        .flat_map(|slot| (0..lengths[slot as usize]).map(move |position| Row { slot, position, ..Row::default() }))
        .collect();
    let kv = values(source.len() * 2 * WIDTH, 4);
    store_cross(cached, HEADS, &source, &kv, &mut cache);
    let kv = kept(cached, &kv);
    let rows: Vec<Row> = (0..19u32).map(|i| Row { slot: i % 3, beam: i % 2, ..Row::default() }).collect();
    let queries = values(rows.len() * WIDTH, 5);
    let options: Vec<SlotOptions> = lengths.iter().map(|l| options(*l)).collect();
    let mut weights = vec![f32::NAN; rows.len() * max_src_len];
    let mut actual = vec![f32::NAN; rows.len() * WIDTH];
    let mut without = actual.clone();
    cross_attention(cached, HEADS, &rows, &queries, &cache, &options, Some(&mut weights), &mut actual);
    cross_attention(cached, HEADS, &rows, &queries, &cache, &options, None, &mut without);
    crate::check::assert_same_bits(&actual, &without);
    for (r, row) in rows.iter().enumerate() {
        let len = lengths[row.slot as usize] as usize;
        let first = lengths[..row.slot as usize].iter().sum::<u32>() as usize;
        let part = |t: usize, which: usize| &kv[(2 * (first + t) + which) * WIDTH..][..WIDTH];
        let mut expected = [f32::NAN; WIDTH];
        let query = &queries[r * WIDTH..][..WIDTH];
        let mut mean = reference(HEADS, |_, _| 0.0, query, len, |t| part(t, 0), |t| part(t, 1), &mut expected);
        mean.resize(max_src_len, 0.0);
        assert_close(&actual[r * WIDTH..][..WIDTH], &expected, CLOSE);
        assert_close(&weights[r * max_src_len..][..max_src_len], &mean, CLOSE);
    }
}
