use super::*;
use crate::backend::rows_of;
use crate::check::assert_same_bits;
use crate::cuda::quantize::QuantizedRows;
use crate::cuda::testing::{Values, device_tests, stored};
use crate::validate::kernels::gemm as cases;
use crate::validate::probe::assert_all_pass;

/// Whatever the tile and the number of rows: of several slices of k, the last of them short.
fn a_row_does_not_depend_on_the_others<T: Element>(context: &Context, tiles: &[Tile]) -> Result<()> {
    let (n, k, most) = (70, 1160, 131);
    let mut values = Values::new(9);
    let (x, weight) = (values.elements::<T>(most * k, 0.0, 1.0), values.elements::<T>(n * k, 0.0, 1.0));
    let (x, weight) = (context.upload(&x)?, context.upload(&weight)?);
    let product = |rows: usize, tile: Tile| -> Result<Vec<f32>> {
        let (mut out, x) = (context.allocate(rows * n)?, x.view().slice(0..rows * k)?);
        let nothing = (None, Activation::None);
        launch(context, [rows, n, k], x, weight.view(), nothing, out.view_mut(), n, tile)?;
        context.download(out.view())
    };
    let all = product(most, tiles[0])?;
    for (i, &tile) in tiles.iter().enumerate() {
        for rows in [1, 5 + i, 16, 33, 64 + i, 100 + i, most] {
            assert_same_bits(&product(rows, tile)?, &all[..rows * n]);
        }
    }
    Ok(())
}

/// Every number of rows, and so every tile that is chosen for one.
fn a_row_of_integers_does_not_depend_on_the_others(context: &Context) -> Result<()> {
    let (n, k, most) = (70, 1160, 131);
    let mut values = Values::new(9);
    let (x, weight) = (values.elements::<f32>(most * k, 0.0, 1.0), values.elements::<f32>(n * k, 0.0, 1.0));
    let weight = QuantizedRows::of_matrix(context, rows_of(&weight, k), n, k)?;
    let (device_x, mut x_rows) = (context.upload(&x)?, QuantizedRows::with_capacity(context, most, k)?);
    x_rows.fill(context, device_x.view(), most, k)?;
    let product = |rows: usize, tile: Tile| -> Result<Vec<f32>> {
        let mut out = context.allocate(rows * n)?;
        let (x, weight) = (x_rows.view(rows, k)?, weight.view(n, k)?);
        launch_int8(context, [rows, n, k], x, weight, (None, Activation::None), out.view_mut(), n, tile)?;
        context.download(out.view())
    };
    let all = product(most, Tile::Small)?;
    for (i, tile) in Tile::ON_TENSOR_CORES.into_iter().enumerate() {
        for rows in [1, 5 + i, 16, 33, 64 + i, 100 + i, most] {
            assert_same_bits(&product(rows, tile)?, &all[..rows * n]);
        }
    }
    Ok(())
}

/// An infinity in one row or column, and what lies between the rows of `out`.
fn bad_values_stay_in_their_row<T: Element>(context: &Context, tiles: &[Tile]) -> Result<()> {
    let numbers = |values: &[f32]| values.iter().map(|&value| T::from_f32(value)).collect::<Vec<T>>();
    let (mut x, weight) = ([1.0f32; 3 * 40], numbers(&[0.5; 2 * 40]));
    x[40] = f32::INFINITY;
    let (x, weight) = (context.upload(&numbers(&x))?, context.upload(&weight)?);
    for &tile in tiles {
        let mut out = context.upload(&numbers(&[-7.0; 3 * 5]))?;
        let nothing = (None, Activation::None);
        launch(context, [3, 2, 40], x.view(), weight.view(), nothing, out.view_mut(), 5, tile)?;
        let out = stored(&context.download(out.view())?);
        let (row, inf) = ([20.0, 20.0, -7.0, -7.0, -7.0], f32::INFINITY);
        assert_eq!(out, [row, [inf, inf, -7.0, -7.0, -7.0], row].concat(), "{tile:?}");
    }
    Ok(())
}

device_tests! {
    f32: |context| assert_all_pass(context, OPERATION, cases::check_as::<f32>);
    f16: |context| assert_all_pass(context, OPERATION, cases::check_as::<half::f16>);
    bf16: |context| assert_all_pass(context, OPERATION, cases::check_as::<half::bf16>);
    i8: |context| assert_all_pass(context, OPERATION, cases::check_int8);
    rows_i8: a_row_of_integers_does_not_depend_on_the_others;
    rows_f32: |context| a_row_does_not_depend_on_the_others::<f32>(context, &Tile::ON_ORDINARY_UNITS);
    rows_bf16: |context| a_row_does_not_depend_on_the_others::<half::bf16>(context, &Tile::ON_TENSOR_CORES);
    rows_f16: |context| a_row_does_not_depend_on_the_others::<half::f16>(context, &Tile::ON_TENSOR_CORES);
    bad_values_f32: |context| bad_values_stay_in_their_row::<f32>(context, &Tile::ON_ORDINARY_UNITS);
    bad_values_f16: |context| bad_values_stay_in_their_row::<half::f16>(context, &Tile::ON_TENSOR_CORES);
}

#[test]
fn a_tile_is_as_large_as_the_rows_and_the_gpu_allow() {
    let gemm = |input, rows, n, k| Gemm {
        rows,
        n,
        k,
        out_stride: n,
        input,
        output: input,
        x: 256,
        weight: 512,
        x_scales: 0,
        weight_scales: 0,
        bias: 0,
        activation: Activation::None,
        out: 1024,
    };
    let choose = |rows, n, k| Tile::choose(&gemm(Dtype::F16, rows, n, k));
    assert_eq!(choose(4, 512, 512), Tile::Small);
    assert_eq!(choose(4, 512, 2048), Tile::Deep);
    assert_eq!(choose(4, 58_101, 512), Tile::Small);
    assert_eq!(choose(128, 58_101, 512), Tile::Huge);
    assert_eq!(choose(4096, 512, 2048), Tile::Huge);
    assert_eq!(choose(1024, 512, 512), Tile::Large);
    assert_eq!(choose(32, 58_101, 512), Tile::Middle);
    // Integers are half as wide.
    assert_eq!(Tile::choose(&gemm(Dtype::I8, 4, 512, 1024)), Tile::Small);
    assert_eq!(Tile::choose(&gemm(Dtype::I8, 4, 512, 2048)), Tile::Deep);
    assert_eq!(Tile::choose(&gemm(Dtype::I8, 4096, 512, 2048)), Tile::Huge);
    // Where a product goes on with the norm behind it.
    let normalizes = |input, rows| Tile::choose(&gemm(input, rows, 512, 512)).normalizes();
    assert_eq!([480, 481].map(|rows| normalizes(Dtype::Bf16, rows)), [true, false]);
    assert_eq!([960, 961].map(|rows| normalizes(Dtype::F32, rows)), [true, false]);
    // What tensor cores do not take.
    assert_eq!(choose(4, 512, 31), Tile::Square32);
    assert_eq!(Tile::choose(&Gemm { x: 258, ..gemm(Dtype::F16, 4, 512, 512) }), Tile::Square32);
    assert_eq!(Tile::choose(&gemm(Dtype::F32, 4096, 2048, 512)), Tile::Square128);
}
