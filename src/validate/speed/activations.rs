//! What works on rows of activations.

use super::{BEAMS, Bench, LEN, Moves, SpeedRow};
use crate::Result;
use crate::backend::{Activation, Dtype, NetworkOps, NormKind, Row, Rows, SlotOptions};
use crate::cuda::attention::{Cache, Cross, Encoder, Own, Store};
use crate::cuda::embedding::{Embedding, Table};
use crate::cuda::gate::Gate;
use crate::cuda::gemm::{self, Tile};
use crate::cuda::layer_norm::LayerNorm;
use crate::cuda::testing::DeviceRows;
use crate::cuda::{Cuda, Element};

impl<F: FnMut(&SpeedRow) -> Result<()>> Bench<'_, F> {
    /// All of it, in a storage type.
    pub(super) fn activations<T: Element>(&mut self) -> Result<()> {
        self.products::<T>(BEAMS)?;
        self.linear_norm::<T>(BEAMS, &Cuda::new(self.context.clone(), T::DTYPE))?;
        for rows in self.effort.rows.clone() {
            self.products::<T>(rows)?;
            self.embedding::<T>(rows)?;
            self.gate::<T>(rows)?;
            self.layer_norm::<T>(rows)?;
            self.linear_norm::<T>(rows, &Cuda::new(self.context.clone(), T::DTYPE))?;
            self.encoder_attention::<T>(rows)?;
            self.decoder_attention::<T>(rows)?;
        }
        Ok(())
    }

    fn embedding<T: Element>(&mut self, rows: usize) -> Result<()> {
        let (context, width, vocab) = (self.context, self.effort.heads.width(), self.effort.vocab_size);
        let (table, positions) = (self.numbers::<T>(vocab * width)?, self.numbers::<T>(LEN * width)?);
        let row = |r: usize| Row { position: (r % LEN) as u32, token: (r * 7919 % vocab) as u32, ..Row::default() };
        let list = DeviceRows::upload(context, &(0..rows).map(row).collect::<Vec<_>>(), rows)?;
        let mut out = context.allocate::<T>(rows * width)?;
        let seconds = self.time(|| {
            let (table, positions) = (Table::Plain(table.view()), positions.view());
            Embedding {
                table,
                positions: Some(positions),
                pad_id: None,
                scale: 16.0,
                rows: list.list(),
                out: out.view_mut(),
            }
            .launch(context, width)
        })?;
        // The positions' rows are few, and read from the cache.
        let moved = (Moves::ReadsAndWrites, 2 * rows * width * size_of::<T>());
        self.add(("embedding", "", T::DTYPE.name()), format!("{rows} x {width}"), moved, seconds)
    }

    /// Those of a layer.
    fn products<T: Element>(&mut self, rows: usize) -> Result<()> {
        let (width, ffn) = (self.effort.heads.width(), self.effort.ffn);
        for [n, k] in [[3 * width, width], [width; 2], [ffn, width], [width, ffn]] {
            self.product::<T>([rows, n, k])?;
        }
        Ok(())
    }

    /// The tile that the device chooses, then each of the others.
    fn product<T: Element>(&mut self, [rows, n, k]: [usize; 3]) -> Result<()> {
        let context = self.context;
        let (x, weights) = (self.numbers::<T>(rows * k)?, self.numbers::<T>(n * k)?);
        let (bias, mut out) = (context.zeros::<f32>(n)?, context.allocate::<T>(rows * n)?);
        let is_f32 = T::DTYPE == Dtype::F32;
        let tiles = if is_f32 { &Tile::ON_ORDINARY_UNITS[..] } else { &Tile::ON_TENSOR_CORES[..] };
        for tile in std::iter::once(None).chain(tiles.iter().copied().map(Some)) {
            let seconds = self.time(|| {
                let finish = (Some(bias.view()), Activation::Relu);
                let (x, weights, out) = (x.view(), weights.view(), out.view_mut());
                match tile {
                    None => context.gemm([rows, n, k], x, weights, finish, out, n),
                    Some(tile) => gemm::launch(context, [rows, n, k], x, weights, finish, out, n, tile),
                }
            })?;
            let moved = (Moves::ReadsAndWrites, (rows * k + n * k + rows * n) * size_of::<T>());
            let variant = tile.map_or("", Tile::name);
            self.add(("gemm", variant, T::DTYPE.name()), format!("{rows} x {n} x {k}"), moved, seconds)?;
        }
        Ok(())
    }

    fn gate<T: Element>(&mut self, rows: usize) -> Result<()> {
        let (context, ffn) = (self.context, self.effort.ffn);
        let (both, mut out) = (self.numbers::<T>(2 * rows * ffn)?, context.allocate::<T>(rows * ffn)?);
        let seconds = self.time(|| {
            let (both, out) = (both.view(), out.view_mut());
            Gate { both, activation: Activation::GeluTanh, out }.launch(context, rows, ffn)
        })?;
        let moved = (Moves::ReadsAndWrites, 3 * rows * ffn * size_of::<T>());
        self.add(("gate", "", T::DTYPE.name()), format!("{rows} x {ffn}"), moved, seconds)
    }

    fn layer_norm<T: Element>(&mut self, rows: usize) -> Result<()> {
        let (context, width) = (self.context, self.effort.heads.width());
        let (mut x, delta) = (self.numbers::<T>(rows * width)?, self.numbers::<T>(rows * width)?);
        let (gain, bias) = (self.numbers::<T>(width)?, self.numbers::<T>(width)?);
        let seconds = self.time(|| {
            let (x, delta, gain, bias) = (x.view_mut(), delta.view(), gain.view(), bias.view());
            LayerNorm {
                x,
                sum: None,
                delta: Some(delta),
                delta_bias: None,
                gain,
                bias: Some(bias),
                kind: NormKind::Layer,
                eps: 1e-5,
            }
            .launch(context, rows, width)
        })?;
        let moved = (Moves::ReadsAndWrites, 3 * rows * width * size_of::<T>());
        self.add(("layer_norm", "", T::DTYPE.name()), format!("{rows} x {width}"), moved, seconds)
    }

    /// The products that end a sublayer and the norm behind them: as the device chooses, and in two launches.
    pub(super) fn linear_norm<T: Element>(&mut self, rows: usize, backend: &Cuda) -> Result<()> {
        let (width, dtype) = (self.effort.heads.width(), backend.dtype());
        for inputs in [width, self.effort.ffn] {
            let matrix = backend.matrix(&vec![1.0; width * inputs], Some(&vec![0.0; width]), width, inputs)?;
            let norm = backend.norm(NormKind::Layer, &vec![1.0; width], Some(&vec![0.0; width]), 1e-5)?;
            let mut scratch = backend.product_scratch(rows, inputs)?;
            let mut list = Rows::with_capacity(backend, rows)?;
            list.set(backend, &vec![Row::default(); rows])?;
            let tensor = |len: usize| self.numbers::<T>(len).map(T::tensor);
            let (from, mut x, mut delta) = (tensor(rows * inputs)?, tensor(rows * width)?, tensor(rows * width)?);
            let moved = (width * inputs) * dtype.size() + rows * (inputs + 3 * width) * size_of::<T>();
            for variant in ["", "apart"] {
                let seconds = self.time(|| {
                    let (from, scratch, delta) = (&from, &mut scratch, &mut delta);
                    if variant.is_empty() {
                        return backend.linear_norm(&matrix, &norm, &list, from, scratch, delta, None, &mut x);
                    }
                    backend.linear(&matrix, &list, from, Activation::None, scratch, delta)?;
                    backend.layer_norm(&norm, &list, Some(delta), None, &mut x)
                })?;
                let (kernel, shape) = (("linear_norm", variant, dtype.name()), format!("{rows} x {width} x {inputs}"));
                self.add(kernel, shape, (Moves::ReadsAndWrites, moved), seconds)?;
            }
        }
        Ok(())
    }

    /// Sentences of [`LEN`] tokens.
    fn encoder_attention<T: Element>(&mut self, rows: usize) -> Result<()> {
        let (context, width) = (self.context, self.effort.heads.width());
        // The kernel sizes its memory by the rows: at most as many as the encoder takes in one pass.
        let live = rows.next_multiple_of(LEN).min(1024);
        let starts: Vec<u32> = (0..=live / LEN).map(|sentence| (sentence * LEN) as u32).collect();
        let list = DeviceRows::upload(context, &vec![Row::default(); live], live)?;
        let (starts, qkv) = (context.upload(&starts)?, self.numbers::<T>(live * 3 * width)?);
        let mut out = context.allocate::<T>(live * width)?;
        let seconds = self.time(|| {
            let (starts, qkv) = (starts.view(), qkv.view());
            Encoder { rows: list.list(), starts, qkv, relative: None, out: out.view_mut() }
                .launch(context, self.effort.heads)
        })?;
        let moved = (Moves::ReadsAndWrites, 4 * live * width * size_of::<T>());
        let shape = format!("{live} rows in sentences of {LEN}, {width}");
        self.add(("attention", "encoder", T::DTYPE.name()), shape, moved, seconds)
    }

    /// Every beam of every slot at the last position.
    fn decoder_attention<T: Element>(&mut self, rows: usize) -> Result<()> {
        let (context, width, slots) = (self.context, self.effort.heads.width(), rows.div_ceil(BEAMS));
        let rows = slots * BEAMS;
        let row = |r: usize| Row {
            slot: (r / BEAMS) as u32,
            beam: (r % BEAMS) as u32,
            position: LEN as u32 - 1,
            ..Row::default()
        };
        let list = DeviceRows::upload(context, &(0..rows).map(row).collect::<Vec<_>>(), rows)?;
        let qkv = self.numbers::<T>(rows * 3 * width)?;
        let mut keys = self.numbers::<T>(rows * LEN * width)?;
        let mut values = self.numbers::<T>(rows * LEN * width)?;
        let mut out = context.allocate::<T>(rows * width)?;
        let dtype = T::DTYPE.name();
        let row_bytes = rows * width * size_of::<T>();
        let seconds = self.time(|| {
            let (keys, values) = (keys.view_mut(), values.view_mut());
            let (stride, key_offset) = (3 * width, width);
            let (rows, from) = (list.list(), qkv.view());
            Store { rows, from, stride, key_offset, keys, values, max_len: LEN, beam_size: BEAMS }
                .launch(context, width)
        })?;
        let shape = format!("{rows} rows, {width}");
        self.add(("attention", "store", dtype), shape, (Moves::ReadsAndWrites, 4 * row_bytes), seconds)?;

        // A prefix of its own for every beam: no position is shared.
        let ancestry: Vec<u32> = (0..rows * LEN).map(|i| (i / LEN % BEAMS) as u32).collect();
        let ancestry = context.upload(&ancestry)?;
        let seconds = self.time(|| {
            let cache = Cache { keys: keys.view(), values: values.view(), max_len: LEN, beam_size: BEAMS };
            let (ancestry, qkv) = (ancestry.view(), qkv.view());
            Own { rows: list.list(), qkv, cache, ancestry, relative: None, out: out.view_mut() }
                .launch(context, self.effort.heads)
        })?;
        let shape = format!("{rows} rows at position {LEN}, {width}");
        self.add(("attention", "self", dtype), shape.clone(), (Moves::Reads, (2 * LEN + 2) * row_bytes), seconds)?;

        let options: Vec<SlotOptions> = vec![SlotOptions { src_len: LEN as u32, ..SlotOptions::default() }; slots];
        let options = context.upload(bytemuck::cast_slice::<_, u32>(&options))?;
        let source = slots * LEN * width;
        let seconds = self.time(|| {
            let (keys, values) = (keys.view().slice(0..source)?, values.view().slice(0..source)?);
            let cache = Cache { keys, values, max_len: LEN, beam_size: 1 };
            let (queries, options) = (qkv.view().slice(0..rows * width)?, options.view());
            let out = out.view_mut();
            Cross { rows: list.list(), queries, bias: None, cache, options, weights: None, out }
                .launch(context, self.effort.heads)
        })?;
        let bytes = 2 * source * size_of::<T>() + 2 * row_bytes;
        self.add(("attention", "cross", dtype), shape, (Moves::Reads, bytes), seconds)
    }
}
