//! Launcher of `kernels/contrastive.cu`: the step distribution of contrastive decoding, expert minus amateur.

use bytemuck::{Pod, Zeroable};

use super::buffer::{View, ViewMut};
use super::context::{Context, check_len, to_u32};
use super::element::{Element, symbol};
use super::layout::{Layout, layout};
use super::{Launch, is_vectorizable};
use crate::backend::Dtype;
use crate::backend::{Row, SlotOptions};
use crate::{Error, Result};

const OPERATION: &str = "contrastive";
/// A row of 58,000 logits keeps 1024 threads busy for 15 loads of 16 bytes.
const THREADS: u32 = 1024;

/// `out[r] = log_softmax(s)` for the first `count` rows, with s as [`crate::backend::ContrastiveForm`] says.
///
/// Rows lie `stride` elements apart, of which the first `vocab_size` are used. Rows from `count` on are not written.
pub struct Contrastive<'a, T> {
    /// `[bucket]`: the slot of each row, and its position, which says whether it is at its length limit.
    pub rows: View<'a, Row>,
    /// `[1]`: how many of the rows are live.
    pub count: View<'a, u32>,
    /// `[slots]`. A row of a slot that is not there becomes NaN.
    pub options: View<'a, SlotOptions>,
    /// `[bucket, stride]`: the expert's logits.
    pub expert: View<'a, T>,
    /// `[bucket, stride]`: the amateur's logits, or the expert's of another source. None: they stand in `out`, and `T` is f32.
    pub amateur: Option<View<'a, T>>,
    /// `[bucket, stride]`: the contrastive log-probabilities.
    pub out: ViewMut<'a, f32>,
    /// `[bucket]`: log(sum(exp(expert))), where asked for.
    pub normalizers: Option<ViewMut<'a, f32>>,
    /// End of sentence, which joins the tokens that may be taken at the length limit.
    pub eos_id: u32,
    /// The given first tokens of each slot `[slots, max_len]`, the next of which joins them too; with `max_len`.
    pub prefixes: Option<(View<'a, u32>, usize)>,
    /// Rows whose slots have another amateur are left alone; 0: whichever it is.
    pub scorer: u32,
}

/// Mirrors `ContrastiveArguments`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Arguments {
    expert: u64,
    amateur: u64,
    out: u64,
    normalizers: u64,
    options: u64,
    rows: u64,
    count: u64,
    prefixes: u64,
    bucket: u32,
    slots: u32,
    vocab_size: u32,
    stride: u32,
    eos_id: u32,
    vectorized: u32,
    max_len: u32,
    scorer: u32,
}

/// What [`layout`](super::layout) compares with the kernel file.
pub(super) const LAYOUTS: &[Layout] = &[layout!(Arguments as "ContrastiveArguments" {
    expert, amateur, out, normalizers, options, rows, count, prefixes, bucket, slots, vocab_size, stride,
    eos_id, vectorized, max_len, scorer
})];

impl<T: Element> Contrastive<'_, T> {
    /// Enqueues the kernel for a bucket of `rows.len()` rows of `vocab_size` tokens, `stride` elements apart.
    ///
    /// # Errors
    /// A tensor of a size that does not fit; an amateur in `out` whose type is not f32; the device failed.
    pub fn launch(self, context: &Context, vocab_size: usize, stride: usize) -> Result<()> {
        self.launch_with(context, vocab_size, stride, THREADS)
    }

    /// As [`Contrastive::launch`], with blocks of `threads`, a multiple of 32.
    pub(crate) fn launch_with(self, context: &Context, vocab_size: usize, stride: usize, threads: u32) -> Result<()> {
        let bucket = self.rows.len();
        check_stride(OPERATION, vocab_size, stride)?;
        check_len(OPERATION, "expert", bucket * stride, self.expert.len())?;
        check_len(OPERATION, "out", bucket * stride, self.out.len())?;
        check_len(
            OPERATION,
            "amateur",
            bucket * stride,
            self.amateur.map_or(bucket * stride, |amateur| amateur.len()),
        )?;
        check_len(OPERATION, "normalizers", bucket, self.normalizers.as_ref().map_or(bucket, ViewMut::len))?;
        let (prefixes, max_len) = self.prefixes.unzip();
        let max_len = max_len.unwrap_or(0);
        check_len(OPERATION, "prefixes", self.options.len() * max_len, prefixes.map_or(0, |prefixes| prefixes.len()))?;
        check_len(OPERATION, "count", 1, self.count.len())?;
        if self.amateur.is_none() && T::DTYPE != Dtype::F32 {
            let (expected, got) = ("f32, to stand in out".to_owned(), format!("{:?}", T::DTYPE));
            return Err(Error::Shape { operation: OPERATION, tensor: "amateur", expected, got });
        }
        if bucket == 0 {
            return Ok(());
        }
        let out = context.address_mut(&self.out)?;
        let mut arguments = Arguments {
            expert: context.address(&self.expert)?,
            amateur: self.amateur.map_or(Ok(out), |amateur| context.address(&amateur))?,
            out,
            normalizers: self.normalizers.as_ref().map_or(Ok(0), |view| context.address_mut(view))?,
            options: context.address(&self.options)?,
            rows: context.address(&self.rows)?,
            count: context.address(&self.count)?,
            prefixes: context.address_or_null(prefixes.as_ref())?,
            bucket: to_u32(OPERATION, "rows", bucket)?,
            slots: to_u32(OPERATION, "options", self.options.len())?,
            vocab_size: to_u32(OPERATION, "vocab_size", vocab_size)?,
            stride: to_u32(OPERATION, "stride", stride)?,
            eos_id: self.eos_id,
            vectorized: 0,
            max_len: to_u32(OPERATION, "max_len", max_len)?,
            scorer: self.scorer,
        };
        let Arguments { expert, amateur, .. } = arguments;
        arguments.vectorized = is_vectorizable::<T>(stride, &[expert, amateur, out]).into();
        let launch =
            Launch { symbol: symbol!("contrastive", T), grid: [arguments.bucket, 1, 1], block: threads, shared: 0 };
        // SAFETY: mirrors `contrastive_<dtype>(ContrastiveArguments)`. A block touches its own row, below `bucket`, and the
        // options of a slot that it has checked; lengths were checked above. `out` and `normalizers` are borrowed mutably; where
        // `out` is the amateur too, T is f32 and each element is written by the thread that read it, after its last read.
        unsafe { context.launch(&launch, &arguments) }
    }
}

/// Whether rows of `vocab_size` elements, at least one, fit into `stride`.
pub(super) fn check_stride(operation: &'static str, vocab_size: usize, stride: usize) -> Result<()> {
    if vocab_size > 0 && stride >= vocab_size {
        return Ok(());
    }
    let expected = "a stride of at least vocab_size, which is at least 1".to_owned();
    Err(Error::Shape { operation, tensor: "logits", expected, got: format!("{vocab_size} tokens, {stride} apart") })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{ContrastiveForm, ContrastiveOptions};
    use crate::check::{self, Tolerance, assert_close};
    use crate::cuda::testing::device_tests;
    use crate::validate::kernels::contrastive::{self as cases, EOS, FORMS, ROWS, Rows, Spread};
    use crate::validate::probe::assert_all_pass;

    fn what_cannot_be_ranked_shows(context: &Context) -> Result<()> {
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        for form in FORMS {
            let (mut expert, mut amateur) = (vec![0.0f32; ROWS * 40], vec![1.0f32; ROWS * 40]);
            expert[..40].fill(-inf);
            expert[40 + 39] = nan;
            expert[2 * 40 + 7] = inf;
            amateur[3 * 40 + 38] = nan;
            amateur[4 * 40] = inf;
            let rows = Rows { form, vocab_size: 40, stride: 40, threads: 64, in_place: false, all_live: true };
            let ([out, normalizers], _) = rows.launch(context, &expert, &amateur)?;
            let ln = 40f32.ln();
            let expected: Vec<f32> = [-inf, nan, nan, nan, nan, -ln].iter().flat_map(|value| [*value; 40]).collect();
            assert_close(&out[..6 * 40], &expected, Tolerance::new(1e-6, 1e-6));
            assert_close(&normalizers[..6], &[-inf, nan, nan, ln, ln, ln], Tolerance::new(1e-6, 1e-6));
        }
        Ok(())
    }

    fn a_row_does_not_depend_on_its_place(context: &Context) -> Result<()> {
        for form in FORMS {
            let rows = Rows { form, vocab_size: 61, stride: 64, threads: 96, in_place: false, all_live: true };
            let logits = |seed: u64, ruled_out: f32| cases::logits::<f32>(Spread::Ties, seed, 64, ruled_out);
            let (one, other) = (logits(7, f32::NEG_INFINITY), logits(8, 0.0));
            let ([first, first_normalizers], _) = rows.launch(context, &one, &other)?;
            // Row 0 again as row 6, which has the same slot and is below its limit too, among other rows.
            let (mut expert, mut amateur) = (logits(9, 0.0), logits(10, 0.0));
            expert[6 * 64..7 * 64].copy_from_slice(&one[..64]);
            amateur[6 * 64..7 * 64].copy_from_slice(&other[..64]);
            let ([again, again_normalizers], _) = rows.launch(context, &expert, &amateur)?;
            check::assert_same_bits(&again[6 * 64..6 * 64 + 61], &first[..61]);
            check::assert_same_bits(&again_normalizers[6..7], &first_normalizers[..1]);
        }
        Ok(())
    }

    /// The amateur is read where the expert's V_head is, and nowhere else.
    fn the_amateur_is_read_on_the_head_alone(context: &Context) -> Result<()> {
        let (vocab_size, bucket) = (4096, 1);
        let mut expert = vec![-20.0f32; vocab_size];
        (expert[17], expert[18], expert[3000]) = (1.0, 0.5, 1.5);
        let (expert, amateur) = (context.upload(&expert)?, context.upload(&vec![0.0f32; vocab_size])?);
        let (mut out, mut normalizers) = (context.allocate(vocab_size)?, context.allocate(bucket)?);
        let (rows, count) = (context.upload(&[Row::default()])?, context.upload(&[1u32])?);
        let options = context.upload(&[SlotOptions {
            contrast: ContrastiveOptions::new(ContrastiveForm::Li, 0.5, 0.1, 1.0),
            max_len: 99,
            ..SlotOptions::default()
        }])?;
        context.watch(amateur.view())?;
        Contrastive {
            rows: rows.view(),
            count: count.view(),
            options: options.view(),
            expert: expert.view(),
            amateur: Some(amateur.view()),
            out: out.view_mut(),
            normalizers: Some(normalizers.view_mut()),
            eos_id: EOS,
            prefixes: None,
            scorer: 0,
        }
        .launch(context, vocab_size, vocab_size)?;
        // Two passes over two packs of 16 bytes.
        assert_eq!(context.watched_bytes()?, 2 * 2 * 16);
        Ok(())
    }

    fn wrong_shapes_are_refused(context: &Context) -> Result<()> {
        let (rows, count) = (context.upload(&[Row::default(); 2])?, context.upload(&[2u32])?);
        let options = context.upload(&[SlotOptions::default(); 3])?;
        let halves = context.upload(&[half::f16::ONE; 16])?;
        let (mut out, mut normalizers) = (context.allocate(16)?, context.allocate(2)?);
        let mut refused = |amateur: Option<usize>, vocab_size: usize| -> Result<String> {
            let amateur = amateur.map(|len| halves.view().slice(0..len)).transpose()?;
            let case = Contrastive {
                rows: rows.view(),
                count: count.view(),
                options: options.view(),
                expert: halves.view(),
                amateur,
                out: out.view_mut(),
                normalizers: Some(normalizers.view_mut()),
                eos_id: EOS,
                prefixes: None,
                scorer: 0,
            };
            Ok(case.launch(context, vocab_size, 8).err().map_or_else(String::new, |error| error.to_string()))
        };
        assert_eq!(refused(Some(15), 8)?, "contrastive: amateur: expected 16 elements, got 15 elements");
        assert_eq!(refused(None, 8)?, "contrastive: amateur: expected f32, to stand in out, got F16");
        assert_eq!(
            refused(Some(16), 9)?,
            "contrastive: logits: expected a stride of at least vocab_size, which is at least 1, got 9 tokens, 8 apart"
        );
        assert_eq!(refused(Some(16), 8)?, "");
        Ok(())
    }

    device_tests! {
        f32: |context| assert_all_pass(context, OPERATION, cases::check_as::<f32>);
        f16: |context| assert_all_pass(context, OPERATION, cases::check_as::<half::f16>);
        bf16: |context| assert_all_pass(context, OPERATION, cases::check_as::<half::bf16>);
        bad_values: what_cannot_be_ranked_shows;
        invariance: a_row_does_not_depend_on_its_place;
        shapes: wrong_shapes_are_refused;
    }

    /// Counting reads takes the emulator.
    #[test]
    #[cfg_attr(not(emulated), ignore = "needs a C++ compiler")]
    fn reads() {
        crate::cuda::testing::run_emulated(the_amateur_is_read_on_the_head_alone);
    }
}
