//! A value on the CPU and its counterpart on a device.

use std::cell::{Ref, RefCell, RefMut};

use super::backend::Lockstep;
use crate::Result;
use crate::backend::{CrossCache, Device, NetworkOps, Rows, Search, SearchOps, SelfCache};
use crate::cpu::Cpu;
use crate::cuda::{Buffer, Context, Cuda, Tensor};

/// Both of them. They can be taken out for a moment, since [`Rows`] and [`Search`] of a backend own what they hold.
#[derive(Debug)]
pub struct Both<C, D>(RefCell<Option<(C, D)>>);

const AWAY: &str = "an operation names a buffer twice";

impl<C, D> Both<C, D> {
    /// The pair.
    pub fn new(cpu: C, device: D) -> Self {
        Both(RefCell::new(Some((cpu, device))))
    }

    /// To read.
    ///
    /// # Panics
    /// While it is taken out; so below.
    pub fn get(&self) -> Ref<'_, (C, D)> {
        Ref::map(self.0.borrow(), |both| both.as_ref().expect(AWAY))
    }

    /// To write.
    pub fn get_mut(&self) -> RefMut<'_, (C, D)> {
        RefMut::map(self.0.borrow_mut(), |both| both.as_mut().expect(AWAY))
    }

    fn take(&self) -> (C, D) {
        self.0.borrow_mut().take().expect(AWAY)
    }

    fn put(&self, cpu: C, device: D) {
        *self.0.borrow_mut() = Some((cpu, device));
    }
}

/// Words on both.
pub type Words = Both<Vec<u32>, Buffer<u32>>;

/// Calls `work` with a row list as each of both backends has it.
pub fn with_rows<B, R>(rows: &Rows<B>, work: impl FnOnce(&Rows<Cpu>, &Rows<Cuda>) -> Result<R>) -> Result<R>
where
    B: Device<Buffer<u32> = Words>,
{
    let ((cpu_entries, entries), (cpu_count, count)) = (rows.entries.take(), rows.count.take());
    let one_per_beam = rows.one_per_beam;
    let cpu = Rows { entries: cpu_entries, count: cpu_count, bucket: rows.bucket, one_per_beam };
    let device = Rows { entries, count, bucket: rows.bucket, one_per_beam };
    let result = work(&cpu, &device);
    rows.entries.put(cpu.entries, device.entries);
    rows.count.put(cpu.count, device.count);
    result
}

/// Calls `work` with a cache as each of both backends has it.
pub fn with_self<B, R>(
    cache: &SelfCache<B>,
    work: impl FnOnce(&mut SelfCache<Cpu>, &mut SelfCache<Cuda>) -> Result<R>,
) -> Result<R>
where
    B: NetworkOps<Tensor = Both<Vec<f32>, Tensor>>,
{
    let &SelfCache { max_len, beam_size, .. } = cache;
    let ((cpu_keys, keys), (cpu_values, values)) = (cache.keys.take(), cache.values.take());
    let mut cpu = SelfCache { keys: cpu_keys, values: cpu_values, max_len, beam_size };
    let mut device = SelfCache { keys, values, max_len, beam_size };
    let result = work(&mut cpu, &mut device);
    cache.keys.put(cpu.keys, device.keys);
    cache.values.put(cpu.values, device.values);
    result
}

/// Calls `work` with a cache as each of both backends has it.
pub fn with_cross<B, R>(
    cache: &CrossCache<B>,
    work: impl FnOnce(&mut CrossCache<Cpu>, &mut CrossCache<Cuda>) -> Result<R>,
) -> Result<R>
where
    B: NetworkOps<Tensor = Both<Vec<f32>, Tensor>>,
{
    let max_src_len = cache.max_src_len;
    let ((cpu_keys, keys), (cpu_values, values)) = (cache.keys.take(), cache.values.take());
    let mut cpu = CrossCache { keys: cpu_keys, values: cpu_values, max_src_len };
    let mut device = CrossCache { keys, values, max_src_len };
    let result = work(&mut cpu, &mut device);
    cache.keys.put(cpu.keys, device.keys);
    cache.values.put(cpu.values, device.values);
    result
}

/// Names the buffers of a search: `search_fields!(macro, ...)` calls `macro!(..., [names])`.
macro_rules! search_fields {
    ($callback:ident, $($rest:tt)*) => {
        $callback!($($rest)*, [
            options, step, live, cum_log_probs, tokens, parents, log_probs, ancestry, coverage, attention, finished,
            finished_count, failures, ranked, bans, always_banned, prefixes, sequences, constraints,
            banks, picks
        ])
    };
}

macro_rules! take_fields {
    ($search:ident, [$($field:ident),*]) => {{
        let &Search { shape, vocab_size, ids, reserved, .. } = $search;
        let Search { rows, scratch, $($field),*, .. } = $search;
        let ((cpu_entries, entries), (cpu_count, count)) = (rows.entries.take(), rows.count.take());
        let (cpu_scratch, own_scratch) = scratch.take();
        let cpu_rows = Rows { entries: cpu_entries, count: cpu_count, bucket: rows.bucket, one_per_beam: true };
        let own_rows = Rows { entries, count, bucket: rows.bucket, one_per_beam: true };
        $(let $field = $field.take();)*
        let cpu = Search::<Cpu> {
            shape, vocab_size, ids, reserved, rows: cpu_rows, scratch: cpu_scratch, $($field: $field.0),*
        };
        let device = Search::<Cuda> {
            shape, vocab_size, ids, reserved, rows: own_rows, scratch: own_scratch, $($field: $field.1),*
        };
        (cpu, device)
    }};
}

macro_rules! put_fields {
    ($search:ident, $cpu:ident, $device:ident, [$($field:ident),*]) => {{
        $($search.$field.put($cpu.$field, $device.$field);)*
        $search.rows.entries.put($cpu.rows.entries, $device.rows.entries);
        $search.rows.count.put($cpu.rows.count, $device.rows.count);
        $search.scratch.put($cpu.scratch, $device.scratch);
    }};
}

/// Calls `work` with a search as each of both backends has it.
pub fn with_searches<R>(
    search: &mut Search<Lockstep>,
    work: impl FnOnce(&mut Search<Cpu>, &mut Search<Cuda>) -> Result<R>,
) -> Result<R> {
    let (mut cpu, mut device) = take_searches(search);
    let result = work(&mut cpu, &mut device);
    put_searches(search, cpu, device);
    result
}

// Apart from `with_searches`, of which there is one for each `work`.
fn take_searches(search: &Search<Lockstep>) -> (Search<Cpu>, Search<Cuda>) {
    search_fields!(take_fields, search)
}

fn put_searches(search: &Search<Lockstep>, cpu: Search<Cpu>, device: Search<Cuda>) {
    search_fields!(put_fields, search, cpu, device)
}

macro_rules! swap_fields {
    ($context:ident, $device:ident, $cpu:ident, [$($field:ident),*]) => {{
        let before = Search::<Cpu> {
            shape: $cpu.shape,
            vocab_size: $cpu.vocab_size,
            ids: $cpu.ids,
            reserved: $cpu.reserved,
            rows: Rows {
                entries: std::mem::replace(&mut $cpu.rows.entries, $context.download($device.rows.entries.view())?),
                count: std::mem::replace(&mut $cpu.rows.count, $context.download($device.rows.count.view())?),
                bucket: $cpu.rows.bucket,
                one_per_beam: $cpu.rows.one_per_beam,
            },
            scratch: <Cpu as SearchOps>::SearchScratch::new($cpu.shape),
            $($field: std::mem::replace(&mut $cpu.$field, $context.download($device.$field.view())?)),*
        };
        Ok(before)
    }};
}

/// Puts the device's state into the CPU's search; returns the CPU's own.
///
/// # Errors
/// The device failed.
pub fn take_over(context: &Context, device: &Search<Cuda>, cpu: &mut Search<Cpu>) -> Result<Search<Cpu>> {
    let before: Result<Search<Cpu>> = search_fields!(swap_fields, context, device, cpu);
    // Its rows lie differently far apart: it is settled where it is written.
    before.inspect(|before| cpu.ranked.clone_from(&before.ranked))
}
