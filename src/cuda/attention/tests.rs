use super::*;
use crate::backend::Row;
use crate::check::assert_same_bits;
use crate::cuda::testing::{DeviceRows, Values, device_tests};
use crate::validate::cases::Distribution;
use crate::validate::kernels::attention::{self as cases, Prefixes, SLOTS, ancestry, row};
use crate::validate::probe::{Probe, assert_all_pass};

fn sweep(context: &Context, check: fn(&mut Probe<'_>) -> Result<()>) -> Result<()> {
    assert_all_pass(context, "attention", check)
}

// ---- Properties ----

/// A row's bits must depend neither on the rows beside it nor on the block size, and a cache's unused part must not be read.
fn a_row_is_the_same_alone(context: &Context) -> Result<()> {
    let heads = Heads::new(5, 24);
    let prefixes = Prefixes::<f32>::store::<f32>(context, heads, Distribution::Outliers, 128)?;
    let (width, ancestry) = (heads.width(), context.upload(&ancestry())?);
    let queries: Vec<f32> = Values::new(8).elements(6 * 3 * width, 0.0, 1.0);
    let rows: Vec<Row> = (0..6).map(|i| row(i % SLOTS, i / SLOTS, 6 * i + 2)).collect();
    let attend = |rows: &[Row], queries: &[f32], threads: u32| {
        let (list, qkv) = (DeviceRows::upload(context, rows, rows.len())?, context.upload(queries)?);
        let mut out = context.allocate::<f32>(rows.len() * width)?;
        let (cache, ancestry) = (prefixes.cache(), ancestry.view());
        Own { rows: list.list(), qkv: qkv.view(), cache, ancestry, relative: None, out: out.view_mut() }
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
    let heads = Heads::new(2, 4);
    let launch = |bucket: usize| {
        let rows = DeviceRows::upload(context, &vec![Row::default(); bucket], 0)?;
        let starts = context.upload(&[0u32, 0])?;
        let (qkv, mut out) = (context.allocate::<f32>(bucket * 24)?, context.allocate(bucket * 8)?);
        Encoder { rows: rows.list(), starts: starts.view(), qkv: qkv.view(), relative: None, out: out.view_mut() }
            .launch(context, heads)
    };
    launch(6142)?;
    let error = launch(6143).unwrap_err();
    assert_eq!(error.to_string(), "attention: positions: expected at most 6142, got 6143");
    Ok(())
}

fn wrong_shapes_are_refused(context: &Context) -> Result<()> {
    let heads = Heads::new(2, 4);
    let rows = DeviceRows::upload(context, &[Row::default()], 1)?;
    let (keys, ancestry) = (context.zeros::<f32>(2 * 3 * 8)?, context.zeros(6)?);
    let (qkv, mut out) = (context.zeros::<f32>(24)?, context.allocate(8)?);
    let mut launch = |heads: Heads, keys_len: usize, ancestry_len: usize| {
        let cache = Cache { keys: keys.view().slice(0..keys_len)?, values: keys.view(), max_len: 3, beam_size: 1 };
        let ancestry = ancestry.view().slice(0..ancestry_len)?;
        Own { rows: rows.list(), qkv: qkv.view(), cache, ancestry, relative: None, out: out.view_mut() }
            .launch(context, heads)
    };
    launch(heads, 48, 6)?;
    let mut refused = |heads: Heads, keys_len: usize, ancestry_len: usize| {
        launch(heads, keys_len, ancestry_len).unwrap_err().to_string()
    };
    assert_eq!(refused(heads, 47, 6), "attention: values: expected 47 elements, got 48 elements");
    assert_eq!(refused(heads, 48, 5), "attention: ancestry: expected 6 elements, got 5 elements");
    let wide = Heads::new(1, 257);
    assert!(refused(wide, 48, 6).starts_with("attention: heads: expected heads of 1 to 256 elements"));
    let values = context.zeros::<f32>(9)?;
    let starts = context.upload(&[0u32, 1])?;
    let relative = Some(Relative { values: values.view(), max_distance: 2 });
    let error = Encoder { rows: rows.list(), starts: starts.view(), qkv: qkv.view(), relative, out: out.view_mut() }
        .launch(context, heads)
        .unwrap_err();
    assert_eq!(error.to_string(), "attention: relative: expected 10 elements, got 9 elements");
    Ok(())
}

device_tests! {
    encoder_f32: |context| sweep(context, cases::check_encoder::<f32>);
    encoder_f16: |context| sweep(context, cases::check_encoder::<half::f16>);
    encoder_bf16: |context| sweep(context, cases::check_encoder::<half::bf16>);
    store_f32: |context| sweep(context, cases::check_store::<f32>);
    store_f16: |context| sweep(context, cases::check_store::<half::f16>);
    store_bf16: |context| sweep(context, cases::check_store::<half::bf16>);
    self_f32: |context| sweep(context, cases::check_self::<f32>);
    self_f16: |context| sweep(context, cases::check_self::<half::f16>);
    self_bf16: |context| sweep(context, cases::check_self::<half::bf16>);
    store_self_f32: |context| sweep(context, cases::check_store_self::<f32>);
    store_self_f16: |context| sweep(context, cases::check_store_self::<half::f16>);
    store_self_bf16: |context| sweep(context, cases::check_store_self::<half::bf16>);
    cross_f32: |context| sweep(context, cases::check_cross::<f32>);
    cross_f16: |context| sweep(context, cases::check_cross::<half::f16>);
    cross_bf16: |context| sweep(context, cases::check_cross::<half::bf16>);
    kept_in_bf16: |context| sweep(context, cases::check_kept_in_bf16);
    alone: a_row_is_the_same_alone;
    longest: a_length_beyond_shared_memory_is_refused;
    shapes: wrong_shapes_are_refused;
}
