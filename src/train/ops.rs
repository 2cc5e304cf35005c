//! The op `loss` as operations that candle differentiates, on the CPU, in f32 by the fast path and in f64 by the reference.
//!
//! A loss is `[rows]`, one number for each row of logits `[rows, vocab_size]`: rows that the mask leaves out have loss 0 and gradient 0
//! exactly. Summing them, with weights that hold the mean's divisor, gives what a step minimises. The backward pass reads the logits
//! again; the probabilities are never kept.

use candle_core::{CpuStorage, CustomOp1, Error, Layout, Result, Shape, Tensor};

use crate::backend::{Divergence, RowShape};
use crate::cpu::loss;

/// `weight * -sum(t * log_softmax(logits))` for each row, t being 1 - smoothing at the target and the rest spread over the other tokens.
///
/// `logits` `[rows, vocab_size]`, contiguous; `targets`, `mask` (0 leaves a row out) and `weights` one for each row.
///
/// # Errors
/// Another shape or type; what [`loss::weighted_nll`] refuses.
pub fn weighted_nll(logits: &Tensor, targets: &[u32], mask: &[u32], weights: &[f32], smoothing: f32) -> Result<Tensor> {
    let op = Nll { rows: Rows::new(mask, weights), targets: targets.to_vec(), smoothing };
    logits.apply_op1(op)
}

/// The divergence of each row of a student from a teacher's, times its weight and the squared temperature; see [`Divergence`].
///
/// `student` and `teacher` `[rows, vocab_size]`, contiguous and of one type; the teacher gets no gradient. `mask` and `weights` as in
/// [`weighted_nll`].
///
/// # Errors
/// Another shape or type; what [`loss::tempered_divergence`] refuses.
pub fn tempered_divergence(
    student: &Tensor,
    teacher: &Tensor,
    mask: &[u32],
    weights: &[f32],
    divergence: Divergence,
) -> Result<Tensor> {
    divergence.validate().map_err(Error::wrap)?;
    if student.dims() != teacher.dims() || student.dtype() != teacher.dtype() {
        let describe = |tensor: &Tensor| format!("{:?} of {:?}", tensor.dims(), tensor.dtype());
        candle_core::bail!("tempered_divergence: expected a teacher {}, got {}", describe(student), describe(teacher));
    }
    student.apply_op1(DivergenceOp { rows: Rows::new(mask, weights), teacher: teacher.detach(), divergence })
}

/// What both operations know of their rows.
struct Rows {
    mask: Vec<u32>,
    weights: Vec<f32>,
}

impl Rows {
    fn new(mask: &[u32], weights: &[f32]) -> Self {
        Rows { mask: mask.to_vec(), weights: weights.to_vec() }
    }

    /// The weights times what comes from above.
    fn weights_f64(&self, above: Option<&[f64]>) -> Vec<f64> {
        let factor = |r: usize| above.map_or(1.0, |above| above[r]);
        self.weights.iter().enumerate().map(|(r, w)| f64::from(*w) * factor(r)).collect()
    }

    /// The shape of `[rows, vocab_size]` logits.
    fn shape(&self, operation: &'static str, shape: &Shape) -> Result<RowShape> {
        let (rows, vocab_size) = shape.dims2()?;
        if rows != self.mask.len() || rows != self.weights.len() {
            let (masks, weights) = (self.mask.len(), self.weights.len());
            candle_core::bail!("{operation}: expected {rows} masks and weights, got {masks} and {weights}");
        }
        Ok(RowShape { vocab_size, stride: vocab_size })
    }
}

/// A contiguous tensor's values.
enum Values<'a> {
    F32(&'a [f32]),
    F64(&'a [f64]),
}

fn values<'a>(operation: &'static str, storage: &'a CpuStorage, layout: &Layout) -> Result<Values<'a>> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        candle_core::bail!("{operation}: expected a contiguous tensor, got strides {:?}", layout.stride());
    };
    match storage {
        CpuStorage::F32(values) => Ok(Values::F32(&values[start..end])),
        CpuStorage::F64(values) => Ok(Values::F64(&values[start..end])),
        other => candle_core::bail!("{operation}: expected f32 or f64, got {:?}", dtype_of(other)),
    }
}

fn dtype_of(storage: &CpuStorage) -> candle_core::DType {
    use candle_core::backend::BackendStorage;
    storage.dtype()
}

/// Runs `work` on the values of a tensor on the CPU.
fn with_values<R>(operation: &'static str, tensor: &Tensor, work: impl FnOnce(Values<'_>) -> Result<R>) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        candle_core::Storage::Cpu(storage) => work(values(operation, storage, layout)?),
        _ => candle_core::bail!("{operation}: expected a tensor on the CPU, got one on {:?}", tensor.device()),
    }
}

struct Nll {
    rows: Rows,
    targets: Vec<u32>,
    smoothing: f32,
}

const NLL: &str = "weighted_nll";

impl Nll {
    /// Losses and gradient in f64; the checks are those of the fast path.
    fn reference(&self, shape: RowShape, logits: &[f64], weights: &[f64]) -> Result<loss::LossAndGradient> {
        let Nll { rows: Rows { mask, .. }, targets, smoothing } = self;
        let fits = targets.len() == mask.len() && (0.0..1.0).contains(smoothing);
        let inside = targets.iter().zip(mask).all(|(t, m)| *m == 0 || (*t as usize) < shape.vocab_size);
        if !fits || !inside {
            let (rows, vocab_size) = (mask.len(), shape.vocab_size);
            candle_core::bail!("{NLL}: expected {rows} targets below {vocab_size} and a label smoothing in 0..1");
        }
        Ok(loss::reference_nll(shape.vocab_size, f64::from(*smoothing), logits, targets, mask, weights))
    }
}

impl CustomOp1 for Nll {
    fn name(&self) -> &'static str {
        NLL
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let shape = self.rows.shape(NLL, layout.shape())?;
        let Nll { rows: Rows { mask, weights }, targets, smoothing } = self;
        let result = match values(NLL, storage, layout)? {
            Values::F32(logits) => {
                let mut loss = vec![0.0; mask.len()];
                loss::weighted_nll_loss(shape, *smoothing, logits, targets, mask, weights, &mut loss)
                    .map_err(Error::wrap)?;
                CpuStorage::F32(loss)
            }
            Values::F64(logits) => CpuStorage::F64(self.reference(shape, logits, &self.rows.weights_f64(None))?.0),
        };
        Ok((result, Shape::from(mask.len())))
    }

    fn bwd(&self, logits: &Tensor, _loss: &Tensor, above: &Tensor) -> Result<Option<Tensor>> {
        let shape = self.rows.shape(NLL, logits.shape())?;
        let Nll { rows: Rows { mask, weights }, targets, smoothing } = self;
        with_values(NLL, logits, |values| match values {
            Values::F32(values) => {
                let weights: Vec<f32> = above.to_vec1::<f32>()?.iter().zip(weights).map(|(g, w)| g * w).collect();
                let (mut gradient, mut loss) = (values.to_vec(), vec![0.0; mask.len()]);
                loss::weighted_nll(shape, *smoothing, &mut gradient, targets, mask, &weights, &mut loss)
                    .map_err(Error::wrap)?;
                Tensor::from_vec(gradient, logits.shape(), logits.device()).map(Some)
            }
            Values::F64(values) => {
                let weights = self.rows.weights_f64(Some(&above.to_vec1::<f64>()?));
                let (_, gradient) = self.reference(shape, values, &weights)?;
                Tensor::from_vec(gradient, logits.shape(), logits.device()).map(Some)
            }
        })
    }
}

struct DivergenceOp {
    rows: Rows,
    teacher: Tensor,
    divergence: Divergence,
}

const DIVERGENCE: &str = "tempered_divergence";

impl DivergenceOp {
    /// Losses and gradient in f64.
    fn reference(&self, shape: RowShape, student: &[f64], weights: &[f64]) -> Result<loss::LossAndGradient> {
        with_values(DIVERGENCE, &self.teacher, |teacher| match teacher {
            Values::F64(teacher) => Ok(loss::reference_divergence(
                shape.vocab_size,
                self.divergence,
                student,
                teacher,
                &self.rows.mask,
                weights,
            )),
            Values::F32(_) => candle_core::bail!("{DIVERGENCE}: expected a teacher of f64, got f32"),
        })
    }

    /// Calls `work` with the teacher's logits in f32.
    fn with_teacher<R>(&self, work: impl FnOnce(&[f32]) -> crate::Result<R>) -> Result<R> {
        with_values(DIVERGENCE, &self.teacher, |teacher| match teacher {
            Values::F32(teacher) => work(teacher).map_err(Error::wrap),
            Values::F64(_) => candle_core::bail!("{DIVERGENCE}: expected a teacher of f32, got f64"),
        })
    }
}

impl CustomOp1 for DivergenceOp {
    fn name(&self) -> &'static str {
        DIVERGENCE
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let shape = self.rows.shape(DIVERGENCE, layout.shape())?;
        let Rows { mask, weights } = &self.rows;
        let result = match values(DIVERGENCE, storage, layout)? {
            Values::F32(student) => {
                let mut loss = vec![0.0; mask.len()];
                self.with_teacher(|teacher| {
                    let Self { divergence, .. } = *self;
                    loss::tempered_divergence_loss(shape, divergence, student, teacher, mask, weights, &mut loss)
                })?;
                CpuStorage::F32(loss)
            }
            Values::F64(student) => CpuStorage::F64(self.reference(shape, student, &self.rows.weights_f64(None))?.0),
        };
        Ok((result, Shape::from(mask.len())))
    }

    fn bwd(&self, student: &Tensor, _loss: &Tensor, above: &Tensor) -> Result<Option<Tensor>> {
        let shape = self.rows.shape(DIVERGENCE, student.shape())?;
        let Rows { mask, weights } = &self.rows;
        with_values(DIVERGENCE, student, |values| match values {
            Values::F32(values) => {
                let weights: Vec<f32> = above.to_vec1::<f32>()?.iter().zip(weights).map(|(g, w)| g * w).collect();
                let (mut gradient, mut loss) = (values.to_vec(), vec![0.0; mask.len()]);
                self.with_teacher(|teacher| {
                    let Self { divergence, .. } = *self;
                    loss::tempered_divergence(shape, divergence, &mut gradient, teacher, mask, &weights, &mut loss)
                })?;
                Tensor::from_vec(gradient, student.shape(), student.device()).map(Some)
            }
            Values::F64(values) => {
                let weights = self.rows.weights_f64(Some(&above.to_vec1::<f64>()?));
                let (_, gradient) = self.reference(shape, values, &weights)?;
                Tensor::from_vec(gradient, student.shape(), student.device()).map(Some)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device, Var};

    const ROWS: usize = 4;
    const VOCAB: usize = 7;
    const MASK: [u32; ROWS] = [1, 0, 1, 1];
    const WEIGHTS: [f32; ROWS] = [1.0, 1.0, -0.5, 0.25];
    const TARGETS: [u32; ROWS] = [3, 0, 6, 2];

    fn logits(seed: usize) -> Vec<f64> {
        (0..ROWS * VOCAB).map(|i| ((i * 7919 + seed * 31) % 101) as f64 * 0.05 - 2.5).collect()
    }

    fn tensor(values: &[f64], dtype: DType) -> Tensor {
        Tensor::from_slice(values, (ROWS, VOCAB), &Device::Cpu).and_then(|t| t.to_dtype(dtype)).expect("a tensor")
    }

    type Loss<'a> = &'a dyn Fn(&Tensor) -> Result<Tensor>;

    /// The sum of squares of the losses of `2 * logits`, so that gradients pass through other operations on both sides.
    fn objective(logits: &Tensor, loss: Loss<'_>) -> Result<Tensor> {
        loss(&(logits * 2.0)?)?.sqr()?.sum_all()
    }

    fn gradient(values: &[f64], dtype: DType, loss: Loss<'_>) -> Result<Vec<f64>> {
        let logits = Var::from_tensor(&tensor(values, dtype))?;
        let gradients = objective(logits.as_tensor(), loss)?.backward()?;
        let found = gradients.get(&logits).expect("the logits have a gradient").to_dtype(DType::F64)?;
        found.flatten_all()?.to_vec1()
    }

    fn check(loss: Loss<'_>) -> Result<()> {
        let values = logits(1);
        let exact = gradient(&values, DType::F64, loss)?;
        for i in 0..values.len() {
            let at = |offset: f64| -> Result<f64> {
                let mut moved = values.clone();
                moved[i] += offset;
                objective(&tensor(&moved, DType::F64), loss)?.to_scalar()
            };
            let difference = (at(1e-5)? - at(-1e-5)?) / 2e-5;
            assert!((difference - exact[i]).abs() < 1e-6, "[{i}] {difference} {}", exact[i]);
        }
        assert!(exact[VOCAB..2 * VOCAB].iter().all(|g| *g == 0.0) && exact[0] != 0.0);
        let largest = exact.iter().fold(0.0, |max: f64, g| max.max(g.abs()));
        for (fast, exact) in gradient(&values, DType::F32, loss)?.iter().zip(&exact) {
            assert!((fast - exact).abs() <= 1e-4 * largest, "{fast} {exact}");
        }
        Ok(())
    }

    #[test]
    fn candle_differentiates_the_likelihood() -> Result<()> {
        for smoothing in [0.0, 0.1] {
            check(&|logits| weighted_nll(logits, &TARGETS, &MASK, &WEIGHTS, smoothing))?;
        }
        Ok(())
    }

    #[test]
    fn candle_differentiates_the_divergences() -> Result<()> {
        for beta in [0.0, 0.5, 1.0] {
            let divergence = Divergence { temperature: 2.0, beta };
            check(&|student| {
                let teacher = tensor(&logits(2), student.dtype());
                tempered_divergence(student, &teacher, &MASK, &WEIGHTS, divergence)
            })?;
        }
        Ok(())
    }

    /// Against candle's own log-softmax, which candle differentiates itself.
    #[test]
    fn the_likelihood_is_candles_cross_entropy() -> Result<()> {
        let values = logits(3);
        let own = |logits: &Tensor| -> Result<Tensor> {
            let shifted = logits.broadcast_sub(&logits.max_keepdim(1)?.detach())?;
            let log_probs = shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(1)?.log()?)?;
            let targets = Tensor::from_slice(&TARGETS, (ROWS, 1), &Device::Cpu)?;
            let weights: Vec<f64> = WEIGHTS.iter().zip(MASK).map(|(w, m)| -f64::from(*w) * f64::from(m)).collect();
            log_probs.gather(&targets, 1)?.squeeze(1)?.mul(&Tensor::from_vec(weights, ROWS, &Device::Cpu)?)
        };
        let expected = gradient(&values, DType::F64, &own)?;
        let found = gradient(&values, DType::F64, &|z| weighted_nll(z, &TARGETS, &MASK, &WEIGHTS, 0.0))?;
        assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-12), "{found:?} {expected:?}");
        Ok(())
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let logits = tensor(&logits(1), DType::F32);
        let message = |outcome: Result<Tensor>| outcome.err().map_or_else(String::new, |error| error.to_string());
        let nll = |targets: &[u32], mask: &[u32]| message(weighted_nll(&logits, targets, mask, &WEIGHTS, 0.0));
        assert!(nll(&TARGETS, &MASK[1..]).contains("expected 4 masks and weights, got 3 and 4"));
        assert!(nll(&[0, 0, 0, 7], &MASK).contains("expected targets below 7, got 7"));
        let turned = logits.t().expect("a matrix");
        let outcome = weighted_nll(&turned, &[0; VOCAB], &[1; VOCAB], &[1.0; VOCAB], 0.0);
        assert!(message(outcome).contains("expected a contiguous tensor"));
        let teacher = logits.to_dtype(DType::F64).expect("f64");
        let divergence = Divergence { temperature: 1.0, beta: 0.0 };
        let outcome = tempered_divergence(&logits, &teacher, &MASK, &WEIGHTS, divergence);
        assert!(message(outcome).contains("expected a teacher [4, 7] of F32, got [4, 7] of F64"));
    }
}
