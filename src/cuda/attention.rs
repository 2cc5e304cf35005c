//! Launchers of `kernels/attention.cu`: encoder self-attention, decoder self-attention through the ancestry table,
//! cross-attention, and the store that fills the caches.

use bytemuck::{Pod, Zeroable};

use super::buffer::{View, ViewMut};
use super::context::{Context, check_len, to_u32};
use super::element::{Element, symbol};
use super::layout::{Layout, layout};
use super::rows::RowList;
use super::{Launch, is_vectorizable, pack_size};
use crate::backend::{Dtype, Heads, SlotOptions, words};
use crate::{Error, Result};

const OPERATION: &str = "attention";
const STORE: &str = "store keys and values";
/// At most a warp for each of 8 heads.
const THREADS: u32 = 256;
const STORE_THREADS: u32 = 128;
/// Dynamic shared memory that every device grants without being asked.
const SHARED_BYTES: usize = 48 * 1024;
/// Words of an options entry, and where in it `src_len` stands.
const OPTION_WORDS: usize = words::<SlotOptions>();
const SRC_LEN_WORD: usize = std::mem::offset_of!(SlotOptions, src_len) / size_of::<u32>();

/// The keys and values of a decoder layer, `[slots, max_len, beam_size, width]` each.
#[derive(Clone, Copy)]
pub struct Cache<'a, C> {
    /// Keys.
    pub keys: View<'a, C>,
    /// Values.
    pub values: View<'a, C>,
    /// Positions per slot.
    pub max_len: usize,
    /// Beams per slot; 1 for the source's.
    pub beam_size: usize,
}

/// What is added to scores by how far the key lies from the query.
#[derive(Clone, Copy)]
pub struct Relative<'a> {
    /// `[num_heads, 2 * max_distance + 1]`: by the key's position less the query's, from `-max_distance` on.
    pub values: View<'a, f32>,
    /// What lies farther counts as lying so far.
    pub max_distance: usize,
}

impl<C> Cache<'_, C> {
    /// How many slots the cache has.
    fn slots(&self, width: usize) -> Result<usize> {
        slots_of(OPERATION, self.keys.len(), self.values.len(), self.max_len * self.beam_size * width)
    }
}

/// The slots of a cache from the lengths of its halves.
fn slots_of(operation: &'static str, keys: usize, values: usize, slot: usize) -> Result<usize> {
    check_len(operation, "values", keys, values)?;
    if slot == 0 || !keys.is_multiple_of(slot) {
        let expected = format!("slots of {slot} elements");
        return Err(Error::Shape { operation, tensor: "keys", expected, got: format!("{keys} elements") });
    }
    Ok(keys / slot)
}

/// Every row attends to all rows of its own sentence.
pub struct Encoder<'a, T> {
    /// The rows.
    pub rows: RowList<'a>,
    /// `[sentences + 1]`: sentence i is rows `starts[i]..starts[i + 1]`.
    pub starts: View<'a, u32>,
    /// `[bucket, 3 * width]`: query, key and value side by side.
    pub qkv: View<'a, T>,
    /// Added to scores.
    pub relative: Option<Relative<'a>>,
    /// `[bucket, width]`.
    pub out: ViewMut<'a, T>,
}

/// Every row attends to the positions of its own prefix, its own included.
pub struct Own<'a, T, C> {
    /// The rows.
    pub rows: RowList<'a>,
    /// `[bucket, 3 * width]`; the queries are the first third.
    pub qkv: View<'a, T>,
    /// Where keys and values lie.
    pub cache: Cache<'a, C>,
    /// `[slots, beam_size, max_len]`: the beam that holds each position of a prefix.
    pub ancestry: View<'a, u32>,
    /// Added to scores.
    pub relative: Option<Relative<'a>>,
    /// `[bucket, width]`.
    pub out: ViewMut<'a, T>,
}

/// As [`Store`] and then [`Own`], in one launch, after adding the bias of the product that made `qkv`. No row may attend to
/// what another one stores: each beam has at most one row.
pub struct StoreOwn<'a, T, C> {
    /// The rows.
    pub rows: RowList<'a>,
    /// `[bucket, 3 * width]`: query, key and value side by side.
    pub qkv: View<'a, T>,
    /// `[3 * width]`; added and rounded to the type first.
    pub bias: Option<View<'a, f32>>,
    /// `[slots, max_len, beam_size, width]`.
    pub keys: ViewMut<'a, C>,
    /// `[slots, max_len, beam_size, width]`.
    pub values: ViewMut<'a, C>,
    /// Positions per slot.
    pub max_len: usize,
    /// Beams per slot.
    pub beam_size: usize,
    /// `[slots, beam_size, max_len]`: the beam that holds each position of a prefix.
    pub ancestry: View<'a, u32>,
    /// Added to scores.
    pub relative: Option<Relative<'a>>,
    /// `[bucket, width]`.
    pub out: ViewMut<'a, T>,
}

/// Every row attends to the source of its slot.
pub struct Cross<'a, T, C> {
    /// The rows.
    pub rows: RowList<'a>,
    /// `[bucket, width]`.
    pub queries: View<'a, T>,
    /// `[width]`; added to the queries and rounded to the type first.
    pub bias: Option<View<'a, f32>>,
    /// Where keys and values lie; its beam size is 1.
    pub cache: Cache<'a, C>,
    /// [`SlotOptions`] `[slots]`, for the source's length.
    pub options: View<'a, u32>,
    /// `[bucket, max_len]`: takes the attention, mean over heads, zero beyond the source.
    pub weights: Option<ViewMut<'a, f32>>,
    /// `[bucket, width]`.
    pub out: ViewMut<'a, T>,
}

/// Mirrors `AttentionArguments`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Arguments {
    queries: u64,
    keys: u64,
    values: u64,
    rows: u64,
    count: u64,
    table: u64,
    bias: u64,
    relative: u64,
    own_keys: u64,
    own_values: u64,
    weights: u64,
    out: u64,
    bucket: u32,
    num_heads: u32,
    head_dim: u32,
    query_stride: u32,
    kv_stride: u32,
    slots: u32,
    max_len: u32,
    beam_size: u32,
    option_words: u32,
    capacity: u32,
    scale: f32,
    max_distance: u32,
    distances: u32,
    vectorized: u32,
}

/// The kernel symbol for activations of one type and keys and values of another, which are the same or f32 and bf16.
macro_rules! cached_symbol {
    ($name:literal, $element:ty, $cached:ty) => {
        match (<$element as Element>::DTYPE, <$cached as Element>::DTYPE) {
            (one, other) if one == other => Ok(symbol!($name, $element)),
            (Dtype::F32, Dtype::Bf16) => Ok(concat!($name, "_f32_of_bf16")),
            (one, other) => {
                let (expected, got) = (format!("{one:?}, or Bf16 beside F32"), format!("{other:?}"));
                Err(Error::Shape { operation: OPERATION, tensor: "keys", expected, got })
            }
        }
    };
}

/// What the three kinds of attention have in common, checked.
struct Parts<'a, T, C> {
    rows: &'a RowList<'a>,
    queries: View<'a, T>,
    query_stride: usize,
    keys: View<'a, C>,
    values: View<'a, C>,
    kv_stride: usize,
    table: View<'a, u32>,
    relative: Option<Relative<'a>>,
    out: &'a ViewMut<'a, T>,
    slots: usize,
    max_len: usize,
    beam_size: usize,
    /// Positions that a row can attend to.
    capacity: usize,
}

impl<T: Element, C: Element> Parts<'_, T, C> {
    fn arguments(&self, context: &Context, heads: Heads) -> Result<Arguments> {
        let size = |number: &'static str, value: usize| to_u32(OPERATION, number, value);
        // Places are numbered in 32 bits.
        size("cache", self.slots * self.max_len * self.beam_size)?;
        check_len(OPERATION, "out", self.rows.bucket * heads.width(), self.out.len())?;
        let rows = self.rows.arguments(OPERATION, context)?;
        let (keys, values) = (context.address(&self.keys)?, context.address(&self.values)?);
        let max_distance = self.relative.map_or(0, |relative| relative.max_distance);
        let distances = 2 * max_distance + 1;
        if let Some(relative) = &self.relative {
            check_len(OPERATION, "relative", heads.num_heads * distances, relative.values.len())?;
        }
        let aligned = self.kv_stride.is_multiple_of(pack_size::<C>());
        Ok(Arguments {
            queries: context.address(&self.queries)?,
            keys,
            values,
            rows: rows.entries,
            count: rows.count,
            table: context.address(&self.table)?,
            bias: 0,
            relative: context.address_or_null(self.relative.as_ref().map(|relative| &relative.values))?,
            own_keys: 0,
            own_values: 0,
            weights: 0,
            out: context.address_mut(self.out)?,
            bucket: rows.bucket,
            num_heads: size("heads", heads.num_heads)?,
            head_dim: size("head_dim", heads.head_dim)?,
            query_stride: size("queries", self.query_stride)?,
            kv_stride: size("keys", self.kv_stride)?,
            slots: size("slots", self.slots)?,
            max_len: size("positions", self.max_len)?,
            beam_size: size("beams", self.beam_size)?,
            option_words: OPTION_WORDS as u32,
            capacity: size("positions", self.capacity)?,
            scale: heads.scale(),
            max_distance: size("max_distance", max_distance)?,
            distances: size("distances", distances)?,
            vectorized: (aligned && is_vectorizable::<C>(heads.head_dim, &[keys, values])).into(),
        })
    }
}

/// The launch for these arguments: as many warps as heads, threads and shared memory allow.
fn launch_of(symbol: &'static str, arguments: &Arguments, threads: u32) -> Result<Launch> {
    let (capacity, head_dim) = (arguments.capacity as usize, arguments.head_dim as usize);
    let shared = |warps: u32| (capacity + warps as usize * (capacity + head_dim)) * size_of::<f32>();
    let wanted = (threads / 32).min(arguments.num_heads).max(1);
    let Some(warps) = (1..=wanted).rev().find(|&warps| shared(warps) <= SHARED_BYTES) else {
        let most = (SHARED_BYTES / size_of::<f32>() - head_dim) / 2;
        let (expected, got) = (format!("at most {most}"), capacity.to_string());
        return Err(Error::Shape { operation: OPERATION, tensor: "positions", expected, got });
    };
    Ok(Launch { symbol, grid: [arguments.bucket, 1, 1], block: warps * 32, shared: shared(warps) })
}

fn check_heads(heads: Heads) -> Result<()> {
    const MOST: usize = 256;
    if heads.num_heads > 0 && (1..=MOST).contains(&heads.head_dim) {
        return Ok(());
    }
    let expected = format!("heads of 1 to {MOST} elements");
    Err(Error::Shape { operation: OPERATION, tensor: "heads", expected, got: format!("{heads:?}") })
}

impl<T: Element> Encoder<'_, T> {
    /// Enqueues the kernel.
    ///
    /// # Errors
    /// A tensor of a size that does not fit; the device failed.
    pub fn launch(self, context: &Context, heads: Heads) -> Result<()> {
        self.launch_with(context, heads, THREADS)
    }

    /// As [`Encoder::launch`], with blocks of at most `threads`, a multiple of 32.
    pub(crate) fn launch_with(self, context: &Context, heads: Heads, threads: u32) -> Result<()> {
        check_heads(heads)?;
        let (bucket, width) = (self.rows.bucket, heads.width());
        check_len(OPERATION, "qkv", bucket * 3 * width, self.qkv.len())?;
        if self.starts.len() < 2 {
            let expected = "at least 2 elements".to_owned();
            let got = format!("{} elements", self.starts.len());
            return Err(Error::Shape { operation: OPERATION, tensor: "starts", expected, got });
        }
        if bucket == 0 {
            return Ok(());
        }
        let arguments = Parts {
            rows: &self.rows,
            queries: self.qkv,
            query_stride: 3 * width,
            keys: self.qkv.slice(width..self.qkv.len())?,
            values: self.qkv.slice(2 * width..self.qkv.len())?,
            kv_stride: 3 * width,
            table: self.starts,
            relative: self.relative,
            out: &self.out,
            slots: self.starts.len() - 1,
            max_len: bucket,
            beam_size: 1,
            capacity: bucket,
        }
        .arguments(context, heads)?;
        let launch = launch_of(symbol!("attention_encoder", T), &arguments, threads)?;
        // SAFETY: mirrors `attention_encoder_<dtype>(AttentionArguments)`. A block writes its own row of `out`, below `bucket`; it
        // reads `starts` up to the number of sentences and rows of `qkv` that it has compared with `bucket`; shared memory is sized
        // by `capacity`, which the kernel compares with a sentence's length; `out` is borrowed mutably.
        unsafe { context.launch(&launch, &arguments) }
    }
}

impl<T: Element, C: Element> Own<'_, T, C> {
    /// The checked arguments; none without rows.
    fn arguments(&self, context: &Context, heads: Heads) -> Result<Option<Arguments>> {
        check_heads(heads)?;
        let (bucket, width) = (self.rows.bucket, heads.width());
        let Cache { keys, values, max_len, beam_size } = self.cache;
        let slots = self.cache.slots(width)?;
        check_len(OPERATION, "qkv", bucket * 3 * width, self.qkv.len())?;
        check_len(OPERATION, "ancestry", slots * beam_size * max_len, self.ancestry.len())?;
        if bucket == 0 {
            return Ok(None);
        }
        let parts = Parts {
            rows: &self.rows,
            queries: self.qkv,
            query_stride: 3 * width,
            keys,
            values,
            kv_stride: width,
            table: self.ancestry,
            relative: self.relative,
            out: &self.out,
            slots,
            max_len,
            beam_size,
            capacity: max_len,
        };
        parts.arguments(context, heads).map(Some)
    }

    /// Enqueues the kernel.
    ///
    /// # Errors
    /// A tensor of a size that does not fit; the device failed.
    pub fn launch(self, context: &Context, heads: Heads) -> Result<()> {
        self.launch_with(context, heads, THREADS)
    }

    /// As [`Own::launch`], with blocks of at most `threads`, a multiple of 32.
    pub(crate) fn launch_with(self, context: &Context, heads: Heads, threads: u32) -> Result<()> {
        let Some(arguments) = self.arguments(context, heads)? else { return Ok(()) };
        let launch = launch_of(cached_symbol!("attention_self", T, C)?, &arguments, threads)?;
        // SAFETY: mirrors `attention_self_<dtype>(AttentionArguments)`. A block writes its own row of `out`, below `bucket`; the
        // kernel compares slot, beam, position and every ancestor with the sizes given, which were checked above, before it reads
        // the ancestry or the cache; `out` is borrowed mutably.
        unsafe { context.launch(&launch, &arguments) }
    }
}

impl<T: Element, C: Element> StoreOwn<'_, T, C> {
    /// Enqueues the kernel.
    ///
    /// # Errors
    /// A tensor of a size that does not fit; the device failed.
    pub fn launch(self, context: &Context, heads: Heads) -> Result<()> {
        self.launch_with(context, heads, THREADS)
    }

    /// As [`StoreOwn::launch`], with blocks of at most `threads`, a multiple of 32.
    pub(crate) fn launch_with(self, context: &Context, heads: Heads, threads: u32) -> Result<()> {
        let StoreOwn { rows, qkv, bias, keys, values, max_len, beam_size, ancestry, relative, out } = self;
        check_len(OPERATION, "bias", 3 * heads.width(), bias.map_or(3 * heads.width(), |bias| bias.len()))?;
        let cache = Cache { keys: keys.as_view(), values: values.as_view(), max_len, beam_size };
        let attention = Own { rows, qkv, cache, ancestry, relative, out };
        let Some(mut arguments) = attention.arguments(context, heads)? else { return Ok(()) };
        arguments.bias = context.address_or_null(bias.as_ref())?;
        arguments.own_keys = context.address_mut(&keys)?;
        arguments.own_values = context.address_mut(&values)?;
        let launch = launch_of(cached_symbol!("attention_self", T, C)?, &arguments, threads)?;
        // SAFETY: as for `Own`; a block also writes the place of its own row, within the caches after the same comparisons; the
        // caches are borrowed mutably.
        unsafe { context.launch(&launch, &arguments) }
    }
}

impl<T: Element, C: Element> Cross<'_, T, C> {
    /// Enqueues the kernel.
    ///
    /// # Errors
    /// A tensor of a size that does not fit; the device failed.
    pub fn launch(self, context: &Context, heads: Heads) -> Result<()> {
        self.launch_with(context, heads, THREADS)
    }

    /// As [`Cross::launch`], with blocks of at most `threads`, a multiple of 32.
    pub(crate) fn launch_with(self, context: &Context, heads: Heads, threads: u32) -> Result<()> {
        check_heads(heads)?;
        let (bucket, width) = (self.rows.bucket, heads.width());
        let Cache { keys, values, max_len, beam_size } = self.cache;
        let slots = self.cache.slots(width)?;
        check_len(OPERATION, "beam_size", 1, beam_size)?;
        check_len(OPERATION, "queries", bucket * width, self.queries.len())?;
        check_len(OPERATION, "bias", width, self.bias.map_or(width, |bias| bias.len()))?;
        check_len(OPERATION, "options", slots * OPTION_WORDS, self.options.len())?;
        let weights_len = self.weights.as_ref().map_or(bucket * max_len, ViewMut::len);
        check_len(OPERATION, "weights", bucket * max_len, weights_len)?;
        if bucket == 0 {
            return Ok(());
        }
        let parts = Parts {
            rows: &self.rows,
            queries: self.queries,
            query_stride: width,
            keys,
            values,
            kv_stride: width,
            // From the first slot's source length on.
            table: self.options.slice(SRC_LEN_WORD..self.options.len())?,
            relative: None,
            out: &self.out,
            slots,
            max_len,
            beam_size,
            capacity: max_len,
        };
        let mut arguments = parts.arguments(context, heads)?;
        arguments.bias = context.address_or_null(self.bias.as_ref())?;
        arguments.weights = self.weights.as_ref().map_or(Ok(0), |weights| context.address_mut(weights))?;
        let launch = launch_of(cached_symbol!("attention_cross", T, C)?, &arguments, threads)?;
        // SAFETY: mirrors `attention_cross_<dtype>(AttentionArguments)`. A block writes its own row of `out` and `weights`, below
        // `bucket`; the kernel compares the slot and the source's length with the sizes given, which were checked above, before it
        // reads the cache; `out` and `weights` are borrowed mutably.
        unsafe { context.launch(&launch, &arguments) }
    }
}

/// Copies each row's key and value to its slot, position and beam.
pub struct Store<'a, T, C> {
    /// The rows.
    pub rows: RowList<'a>,
    /// `[bucket, stride]`.
    pub from: View<'a, T>,
    /// Elements from one row of `from` to the next.
    pub stride: usize,
    /// Where a row's key starts within it; its value follows at once.
    pub key_offset: usize,
    /// `[slots, max_len, beam_size, width]`.
    pub keys: ViewMut<'a, C>,
    /// `[slots, max_len, beam_size, width]`.
    pub values: ViewMut<'a, C>,
    /// Positions per slot.
    pub max_len: usize,
    /// Beams per slot; 1 for the source's.
    pub beam_size: usize,
}

/// Mirrors `AttentionStoreArguments`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct StoreArguments {
    from: u64,
    rows: u64,
    count: u64,
    keys: u64,
    values: u64,
    bucket: u32,
    width: u32,
    from_stride: u32,
    key_offset: u32,
    slots: u32,
    max_len: u32,
    beam_size: u32,
    vectorized: u32,
}

/// What [`layout`](super::layout) compares with the kernel file.
pub(super) const LAYOUTS: &[Layout] = &[
    layout!(Arguments as "AttentionF32" {
        queries, keys, values, rows, count, table, bias, relative, own_keys, own_values, weights, out, bucket, num_heads,
        head_dim, query_stride, kv_stride, slots, max_len, beam_size, option_words, capacity, scale, max_distance,
        distances, vectorized
    }),
    layout!(Arguments as "AttentionF16" {
        queries, keys, values, rows, count, table, bias, relative, own_keys, own_values, weights, out, bucket, num_heads,
        head_dim, query_stride, kv_stride, slots, max_len, beam_size, option_words, capacity, scale, max_distance,
        distances, vectorized
    }),
    layout!(Arguments as "AttentionBf16" {
        queries, keys, values, rows, count, table, bias, relative, own_keys, own_values, weights, out, bucket, num_heads,
        head_dim, query_stride, kv_stride, slots, max_len, beam_size, option_words, capacity, scale, max_distance,
        distances, vectorized
    }),
    layout!(Arguments as "AttentionF32OfBf16" {
        queries, keys, values, rows, count, table, bias, relative, own_keys, own_values, weights, out, bucket, num_heads,
        head_dim, query_stride, kv_stride, slots, max_len, beam_size, option_words, capacity, scale, max_distance,
        distances, vectorized
    }),
    layout!(StoreArguments as "AttentionStoreF32" {
        from, rows, count, keys, values, bucket, width, from_stride, key_offset, slots, max_len, beam_size,
        vectorized
    }),
    layout!(StoreArguments as "AttentionStoreF16" {
        from, rows, count, keys, values, bucket, width, from_stride, key_offset, slots, max_len, beam_size,
        vectorized
    }),
    layout!(StoreArguments as "AttentionStoreBf16" {
        from, rows, count, keys, values, bucket, width, from_stride, key_offset, slots, max_len, beam_size,
        vectorized
    }),
    layout!(StoreArguments as "AttentionStoreF32AsBf16" {
        from, rows, count, keys, values, bucket, width, from_stride, key_offset, slots, max_len, beam_size,
        vectorized
    }),
];

impl<T: Element, C: Element> Store<'_, T, C> {
    /// Enqueues the kernel for keys of `width` elements.
    ///
    /// # Errors
    /// A tensor of a size that does not fit; the device failed.
    pub fn launch(self, context: &Context, width: usize) -> Result<()> {
        self.launch_with(context, width, STORE_THREADS)
    }

    /// As [`Store::launch`], with blocks of `threads`, a multiple of 32.
    pub(crate) fn launch_with(self, context: &Context, width: usize, threads: u32) -> Result<()> {
        let slots = slots_of(STORE, self.keys.len(), self.values.len(), self.max_len * self.beam_size * width)?;
        check_len(STORE, "from", self.rows.bucket * self.stride, self.from.len())?;
        if self.stride < self.key_offset + 2 * width {
            let expected = format!("room for {} elements", self.key_offset + 2 * width);
            return Err(Error::Shape { operation: STORE, tensor: "stride", expected, got: self.stride.to_string() });
        }
        let rows = self.rows.arguments(STORE, context)?;
        if rows.bucket == 0 {
            return Ok(());
        }
        let (from, keys, values) =
            (context.address(&self.from)?, context.address_mut(&self.keys)?, context.address_mut(&self.values)?);
        let size = |number: &'static str, value: usize| to_u32(STORE, number, value);
        let aligned = [self.stride, self.key_offset].iter().all(|len| len.is_multiple_of(pack_size::<T>()));
        let arguments = StoreArguments {
            from,
            rows: rows.entries,
            count: rows.count,
            keys,
            values,
            bucket: rows.bucket,
            width: size("width", width)?,
            from_stride: size("stride", self.stride)?,
            key_offset: size("key_offset", self.key_offset)?,
            slots: size("slots", slots)?,
            max_len: size("positions", self.max_len)?,
            beam_size: size("beams", self.beam_size)?,
            vectorized: (aligned && is_vectorizable::<T>(width, &[from, keys, values])).into(),
        };
        let launch = Launch {
            symbol: cached_symbol!("attention_store", T, C)?,
            grid: [rows.bucket, 1, 1],
            block: threads,
            shared: 0,
        };
        // SAFETY: mirrors `attention_store_<dtype>(AttentionStoreArguments)`. A block reads its own row of `from`, below `bucket`; the
        // kernel compares slot, position and beam with the sizes given, which were checked above; the caches are borrowed mutably.
        unsafe { context.launch(&launch, &arguments) }
    }
}

#[cfg(test)]
mod tests;
