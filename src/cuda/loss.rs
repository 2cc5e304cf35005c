//! Launchers of `kernels/loss.cu`: what rows of logits cost in training, and the gradient in place of the logits.

use bytemuck::{Pod, Zeroable};

use super::buffer::{View, ViewMut};
use super::context::{Context, check_len, to_u32};
use super::contrastive::check_stride;
use super::element::{Element, symbol};
use super::layout::{Layout, layout};
use super::{Launch, is_vectorizable};
use crate::Result;
use crate::backend::{Divergence, RowShape, SmoothedTarget};

const THREADS: u32 = 512;

/// The weighted negative log-likelihood of each row, and its gradient in place of the logits.
///
/// As [`crate::cpu::loss::weighted_nll`], but that a target outside the vocabulary gives NaN.
pub struct WeightedNll<'a, T> {
    /// `[rows, stride]`: logits, then gradient.
    pub logits: ViewMut<'a, T>,
    /// `[rows]`.
    pub targets: View<'a, u32>,
    /// `[rows]`: 0 leaves a row out.
    pub mask: View<'a, u32>,
    /// `[rows]`.
    pub weights: View<'a, f32>,
    /// `[rows]`.
    pub loss: ViewMut<'a, f32>,
}

/// Mirrors `NllArguments`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct NllArguments {
    logits: u64,
    targets: u64,
    mask: u64,
    weights: u64,
    loss: u64,
    vocab_size: u32,
    stride: u32,
    vectorized: u32,
    on: f32,
    off: f32,
    unused: u32,
}

impl<T: Element> WeightedNll<'_, T> {
    /// Enqueues the kernel.
    ///
    /// # Errors
    /// A tensor of a size that does not fit; a smoothing outside 0..1; the device failed.
    pub fn launch(self, context: &Context, shape: RowShape, smoothing: f32) -> Result<()> {
        self.launch_with(context, shape, smoothing, THREADS)
    }

    /// As [`WeightedNll::launch`], with blocks of `threads`, a multiple of 32.
    pub(crate) fn launch_with(self, context: &Context, shape: RowShape, smoothing: f32, threads: u32) -> Result<()> {
        const OPERATION: &str = "weighted_nll";
        let (rows, RowShape { vocab_size, stride }) = (self.mask.len(), shape);
        check_stride(OPERATION, vocab_size, stride)?;
        check_len(OPERATION, "logits", rows * stride, self.logits.len())?;
        check_len(OPERATION, "targets", rows, self.targets.len())?;
        check_len(OPERATION, "weights", rows, self.weights.len())?;
        check_len(OPERATION, "loss", rows, self.loss.len())?;
        let SmoothedTarget { on, off } = SmoothedTarget::new(smoothing, vocab_size)?;
        if rows == 0 {
            return Ok(());
        }
        let logits = context.address_mut(&self.logits)?;
        let arguments = NllArguments {
            logits,
            targets: context.address(&self.targets)?,
            mask: context.address(&self.mask)?,
            weights: context.address(&self.weights)?,
            loss: context.address_mut(&self.loss)?,
            vocab_size: to_u32(OPERATION, "vocab_size", vocab_size)?,
            stride: to_u32(OPERATION, "stride", stride)?,
            vectorized: is_vectorizable::<T>(stride, &[logits]).into(),
            on,
            off,
            unused: 0,
        };
        let grid = [to_u32(OPERATION, "rows", rows)?, 1, 1];
        let launch = Launch { symbol: symbol!("loss_nll", T), grid, block: threads, shared: 0 };
        // SAFETY: mirrors `loss_nll_<dtype>(NllArguments)`. There is a block for each row, which touches that row alone and compares
        // its target with `vocab_size`; the lengths were checked above; `logits` and `loss` are borrowed mutably.
        unsafe { context.launch(&launch, &arguments) }
    }
}

/// The divergence of each student row from the teacher's, and its gradient in place of the student's logits.
///
/// As [`crate::cpu::loss::tempered_divergence`].
pub struct TemperedDivergence<'a, T> {
    /// `[rows, stride]`: logits, then gradient.
    pub student: ViewMut<'a, T>,
    /// `[rows, stride]`.
    pub teacher: View<'a, T>,
    /// `[rows]`: 0 leaves a row out.
    pub mask: View<'a, u32>,
    /// `[rows]`.
    pub weights: View<'a, f32>,
    /// `[rows]`.
    pub loss: ViewMut<'a, f32>,
}

/// Mirrors `DivergenceArguments`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct DivergenceArguments {
    student: u64,
    teacher: u64,
    mask: u64,
    weights: u64,
    loss: u64,
    vocab_size: u32,
    stride: u32,
    vectorized: u32,
    temperature: f32,
    beta: f32,
    unused: u32,
}

/// What [`layout`](super::layout) compares with the kernel file.
pub(super) const LAYOUTS: &[Layout] = &[
    layout!(NllArguments as "NllArguments" {
        logits, targets, mask, weights, loss, vocab_size, stride, vectorized, on, off, unused
    }),
    layout!(DivergenceArguments as "DivergenceArguments" {
        student, teacher, mask, weights, loss, vocab_size, stride, vectorized, temperature, beta, unused
    }),
];

impl<T: Element> TemperedDivergence<'_, T> {
    /// Enqueues the kernel.
    ///
    /// # Errors
    /// A tensor of a size that does not fit; a temperature or beta out of range; the device failed.
    pub fn launch(self, context: &Context, shape: RowShape, divergence: Divergence) -> Result<()> {
        self.launch_with(context, shape, divergence, THREADS)
    }

    /// As [`TemperedDivergence::launch`], with blocks of `threads`, a multiple of 32.
    pub(crate) fn launch_with(
        self,
        context: &Context,
        shape: RowShape,
        divergence: Divergence,
        threads: u32,
    ) -> Result<()> {
        const OPERATION: &str = "tempered_divergence";
        let (rows, RowShape { vocab_size, stride }) = (self.mask.len(), shape);
        check_stride(OPERATION, vocab_size, stride)?;
        check_len(OPERATION, "student", rows * stride, self.student.len())?;
        check_len(OPERATION, "teacher", rows * stride, self.teacher.len())?;
        check_len(OPERATION, "weights", rows, self.weights.len())?;
        check_len(OPERATION, "loss", rows, self.loss.len())?;
        divergence.validate()?;
        if rows == 0 {
            return Ok(());
        }
        let (student, teacher) = (context.address_mut(&self.student)?, context.address(&self.teacher)?);
        let arguments = DivergenceArguments {
            student,
            teacher,
            mask: context.address(&self.mask)?,
            weights: context.address(&self.weights)?,
            loss: context.address_mut(&self.loss)?,
            vocab_size: to_u32(OPERATION, "vocab_size", vocab_size)?,
            stride: to_u32(OPERATION, "stride", stride)?,
            vectorized: is_vectorizable::<T>(stride, &[student, teacher]).into(),
            temperature: divergence.temperature,
            beta: divergence.beta,
            unused: 0,
        };
        let grid = [to_u32(OPERATION, "rows", rows)?, 1, 1];
        let launch = Launch { symbol: symbol!("loss_divergence", T), grid, block: threads, shared: 0 };
        // SAFETY: mirrors `loss_divergence_<dtype>(DivergenceArguments)`. There is a block for each row, which touches that row of each
        // tensor alone; the lengths were checked above; `student` and `loss` are borrowed mutably.
        unsafe { context.launch(&launch, &arguments) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check;
    use crate::cuda::testing::{device_tests, stored};
    use crate::validate::kernels::loss::{
        self as cases, DIVERGENCES, MASK, ROWS, SHAPES, WEIGHTS, launch_divergence, launch_nll, rows, shape,
    };
    use crate::validate::probe::assert_all_pass;

    fn equal_models_do_not_diverge(context: &Context) -> Result<()> {
        for (case, divergence) in SHAPES.into_iter().flat_map(|case| DIVERGENCES.map(|d| (case, d))) {
            let shape = shape(case);
            let (student, _) = rows::<f32>(shape);
            let (gradient, loss) = launch_divergence(context, shape, (&student, &student), divergence, case.2)?;
            assert!(loss.iter().all(|l| *l == 0.0), "{divergence:?}: {loss:?}");
            let used = |row: &[f32]| row[..shape.vocab_size].iter().all(|g| *g == 0.0);
            assert!(stored(&gradient).chunks(shape.stride).all(used), "{divergence:?}");
        }
        Ok(())
    }

    fn what_cannot_be_normalised_shows(context: &Context) -> Result<()> {
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        let shape = RowShape { vocab_size: 40, stride: 40 };
        let mut logits = vec![1.0f32; ROWS * 40];
        logits[39] = nan;
        logits[2 * 40 + 7] = inf;
        logits[4 * 40..5 * 40].fill(-inf);
        let mut targets = vec![3u32; ROWS];
        targets[5] = 40;
        let (gradient, loss) = launch_nll(context, shape, &logits, &targets, 0.1, 64)?;
        let finite = vec![1.0f32; ROWS * 40];
        let ours = launch_divergence(context, shape, (&logits, &finite), DIVERGENCES[2], 64)?;
        let theirs = launch_divergence(context, shape, (&finite, &logits), DIVERGENCES[0], 64)?;
        for (gradient, loss, broken) in
            [(gradient, loss, vec![0, 2, 4, 5]), (ours.0, ours.1, vec![0, 2, 4]), (theirs.0, theirs.1, vec![0, 2, 4])]
        {
            for row in 0..ROWS {
                let is_broken = broken.contains(&row);
                assert_eq!(loss[row].is_nan(), is_broken, "row {row}");
                assert!(gradient[row * 40..(row + 1) * 40].iter().all(|g| g.is_nan() == is_broken), "row {row}");
            }
        }
        Ok(())
    }

    fn a_row_does_not_depend_on_its_place(context: &Context) -> Result<()> {
        let shape = RowShape { vocab_size: 61, stride: 64 };
        let (student, teacher) = rows::<f32>(shape);
        let turned = |values: &[f32]| [&values[6 * 64..], &values[..6 * 64]].concat();
        let targets = vec![5; ROWS];
        let (gradient, loss) = launch_nll(context, shape, &student, &targets, 0.1, 96)?;
        // The last row, of weight 1, first.
        let (other, other_loss) = launch_nll(context, shape, &turned(&student), &targets, 0.1, 96)?;
        check::assert_same_bits(&other[..61], &gradient[6 * 64..6 * 64 + 61]);
        check::assert_same_bits(&other_loss[..1], &loss[6..]);
        for divergence in DIVERGENCES {
            let (gradient, loss) = launch_divergence(context, shape, (&student, &teacher), divergence, 96)?;
            let pair = (turned(&student), turned(&teacher));
            let (other, other_loss) = launch_divergence(context, shape, (&pair.0, &pair.1), divergence, 96)?;
            check::assert_same_bits(&other[..61], &gradient[6 * 64..6 * 64 + 61]);
            check::assert_same_bits(&other_loss[..1], &loss[6..]);
        }
        Ok(())
    }

    /// Rows left out are not read; the likelihood reads the others twice, and their gold logits once more.
    fn rows_are_read_as_often_as_promised(context: &Context) -> Result<()> {
        let shape = RowShape { vocab_size: 4096, stride: 4096 };
        let mut logits = context.upload(&vec![0.25f32; ROWS * 4096])?;
        let teacher = context.upload(&vec![0.5f32; ROWS * 4096])?;
        let (targets, mask, weights) =
            (context.upload(&[1u32; ROWS])?, context.upload(&MASK)?, context.upload(&WEIGHTS)?);
        let mut loss = context.upload(&[0.0f32; ROWS])?;
        let row_bytes = 5 * 4096 * 4;
        context.watch(logits.view())?;
        WeightedNll {
            logits: logits.view_mut(),
            targets: targets.view(),
            mask: mask.view(),
            weights: weights.view(),
            loss: loss.view_mut(),
        }
        .launch(context, shape, 0.0)?;
        assert_eq!(context.watched_bytes()?, 2 * row_bytes);
        for (beta, passes) in [(0.0, 2), (1.0, 3), (0.5, 3)] {
            context.watch(teacher.view())?;
            TemperedDivergence {
                student: logits.view_mut(),
                teacher: teacher.view(),
                mask: mask.view(),
                weights: weights.view(),
                loss: loss.view_mut(),
            }
            .launch(context, shape, Divergence { temperature: 1.0, beta })?;
            assert_eq!(context.watched_bytes()?, passes * row_bytes, "beta {beta}");
        }
        Ok(())
    }

    fn what_does_not_fit_is_refused(context: &Context) -> Result<()> {
        let shape = RowShape { vocab_size: 3, stride: 4 };
        let refused = |logits: usize, smoothing| {
            let outcome = launch_nll(context, shape, &vec![0.0f32; logits], &[0; ROWS], smoothing, 32);
            outcome.err().map_or_else(String::new, |error| error.to_string())
        };
        assert_eq!(refused(ROWS * 4, 0.1), "");
        assert_eq!(refused(27, 0.1), "weighted_nll: logits: expected 28 elements, got 27 elements");
        assert!(refused(ROWS * 4, 1.0).starts_with("option label-smoothing: "));
        let pair = (&[0.0f32; ROWS * 4][..], &[0.0f32; ROWS * 4][..]);
        let hot = Divergence { temperature: f32::INFINITY, beta: 0.0 };
        let outcome = launch_divergence(context, shape, pair, hot, 32);
        assert!(outcome.is_err_and(|error| error.to_string().starts_with("option temperature: ")));
        Ok(())
    }

    device_tests! {
        f32: |context| assert_all_pass(context, "loss", cases::check_as::<f32>);
        f16: |context| assert_all_pass(context, "loss", cases::check_as::<half::f16>);
        bf16: |context| assert_all_pass(context, "loss", cases::check_as::<half::bf16>);
        equal_models: equal_models_do_not_diverge;
        bad_values: what_cannot_be_normalised_shows;
        invariance: a_row_does_not_depend_on_its_place;
        shapes: what_does_not_fit_is_refused;
    }

    /// Counting reads takes the emulator.
    #[test]
    #[cfg_attr(not(emulated), ignore = "needs a C++ compiler")]
    fn reads() {
        crate::cuda::testing::run_emulated(rows_are_read_as_often_as_promised);
    }
}
