//! What a model and a search will take, before anything is allocated.

use half::{bf16, f16};

use super::Device;
use crate::backend::{Backend, Dtype, Search, SessionShape};
use crate::cpu::Cpu;
use crate::cuda::{self, Cuda};
use crate::model::MarianState;
use crate::model::config::ModelConfig;
use crate::model::size::WeightCounts;
use crate::{Error, Result};

/// Bytes by what they hold. A device allocates exactly these; on the CPU `weights` is about right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryPlan {
    /// The model.
    pub weights: u64,
    /// Keys and values of the sentences being decoded.
    pub caches: u64,
    /// A step's logits.
    pub logits: u64,
    /// The other buffers of a step and of the encoder.
    pub activations: u64,
    /// Hypotheses, histories, and the search's working memory.
    pub search: u64,
    /// What the library of matrix products works in.
    pub workspace: u64,
}

impl MemoryPlan {
    /// The plan of `slots` sentences at `beam_size` beams, sources and translations of at most `length` tokens, `keep_attention`
    /// whether their attention is kept.
    ///
    /// # Errors
    /// [`Error::Option`] for a type that the device does not compute in.
    pub fn new(config: &ModelConfig, device: Device, dtype: Dtype, size: SearchSize) -> Result<Self> {
        let shape = size.shape();
        let element = dtype.size() as u64;
        let weights = WeightCounts::of(config);
        if device == Device::Cpu {
            let dry = Cpu::new(1, dtype)?.dry();
            let plan = dry.map_or(Ok(MemoryPlan::default()), |dry| session(&dry, config, 4, shape))?;
            return Ok(MemoryPlan { weights: weights.on_cpu(element), ..plan });
        }
        let plan = match dtype {
            Dtype::F32 => session(&Cuda::<f32>::new(cuda::open_dry()), config, element, shape),
            Dtype::F16 => session(&Cuda::<f16>::new(cuda::open_dry()), config, element, shape),
            Dtype::Bf16 => session(&Cuda::<bf16>::new(cuda::open_dry()), config, element, shape),
            Dtype::I8 => Err(super::device::no_i8(device)),
        }?;
        let on_gpu = matches!(device, Device::Cuda(_) | Device::Cudas(_));
        let workspace = if on_gpu { (cuda::WORKSPACES * cuda::WORKSPACE_BYTES) as u64 } else { 0 };
        Ok(MemoryPlan { weights: weights.on_device(element), workspace, ..plan })
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        let MemoryPlan { weights, caches, logits, activations, search, workspace } = self;
        weights + caches + logits + activations + search + workspace
    }

    /// The most sentences, up to those of `size`, that `budget` bytes have room for; 0 if not even one fits.
    ///
    /// # Errors
    /// As [`MemoryPlan::new`].
    pub fn slots_within(
        config: &ModelConfig,
        device: Device,
        dtype: Dtype,
        size: SearchSize,
        budget: u64,
    ) -> Result<usize> {
        let fits = |slots: usize| {
            Ok::<_, Error>(Self::new(config, device, dtype, SearchSize { slots, ..size })?.total() <= budget)
        };
        let (mut fit, mut too_many) = (0, size.slots + 1);
        while too_many - fit > 1 {
            let middle = fit + (too_many - fit) / 2;
            if fits(middle)? { fit = middle } else { too_many = middle }
        }
        Ok(fit)
    }
}

/// What a session is planned for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SearchSize {
    /// Sentences decoded at once.
    pub slots: usize,
    /// Hypotheses kept alive per sentence.
    pub beam_size: usize,
    /// Tokens of a source, and of a translation.
    pub length: usize,
}

impl SearchSize {
    fn shape(self) -> SessionShape {
        let SearchSize { slots, beam_size, length } = self;
        let rows = slots * beam_size;
        SessionShape { slots, beam_size, max_len: length, max_src_len: length, rows, keep_attention: false }
    }
}

/// The parts of a plan that a session takes, from the code that allocates it.
fn session<B: Backend>(dry: &B, config: &ModelConfig, element: u64, shape: SessionShape) -> Result<MemoryPlan> {
    let state = MarianState::open(dry, config, shape)?;
    let model = dry.allocated();
    let search = Search::open(dry, shape, config.decoder_vocab_size, config.ids)?;
    let total = dry.allocated();
    drop((state, search));
    let SessionShape { slots, beam_size, max_len, max_src_len, rows, .. } = shape;
    let positions = (config.decoder.layers * slots * (beam_size * max_len + max_src_len)) as u64;
    let caches = 2 * positions * config.d_model as u64 * element;
    let logits = (rows * dry.logits_stride(config.decoder_vocab_size)) as u64 * 4;
    let (activations, search) = (model - caches - logits, total - model);
    Ok(MemoryPlan { caches, logits, activations, search, ..MemoryPlan::default() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::Element;
    use crate::decode::Session;
    use crate::model::Marian;

    fn demo() -> std::path::PathBuf {
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("models/m30k-en-de")
    }

    const SIZE: SearchSize = SearchSize { slots: 7, beam_size: 3, length: 20 };

    fn a_plan_is_what_is_allocated<T: Element>() {
        let config = ModelConfig::open(&demo()).expect("the demo model is there");
        let plan = MemoryPlan::new(&config, Device::Emulated, T::DTYPE, SIZE).expect("a type of the device");
        let context = cuda::open_emulated().expect("there is an emulator");
        let backend = Cuda::<T>::new(context.clone());
        let model = Marian::open(&backend, &demo()).expect("it fits");
        assert_eq!(context.counters().live_bytes, plan.weights);
        let models = [model];
        let session = Session::open(&backend, &models, SIZE.shape()).expect("it fits");
        assert_eq!(context.counters().live_bytes, plan.total());
        assert!(plan.activations > 0 && plan.search > 0, "{plan:?}");
        drop((session, models));
        assert_eq!(context.counters().live_bytes, 0);
    }

    #[test]
    #[cfg_attr(not(emulated), ignore = "needs a C++ compiler")]
    fn a_plan_is_what_is_allocated_in_f32() {
        a_plan_is_what_is_allocated::<f32>();
    }

    #[test]
    #[cfg_attr(not(emulated), ignore = "needs a C++ compiler")]
    fn a_plan_is_what_is_allocated_in_f16() {
        a_plan_is_what_is_allocated::<f16>();
    }

    #[test]
    fn a_budget_gives_the_most_sentences_that_fit() {
        let config = ModelConfig::open(&demo()).expect("the demo model is there");
        for (device, dtype) in [(Device::Cuda(0), Dtype::F16), (Device::Cpu, Dtype::I8), (Device::Cpu, Dtype::F32)] {
            let total = |slots: usize| {
                MemoryPlan::new(&config, device, dtype, SearchSize { slots, ..SIZE })
                    .expect("a type of the device")
                    .total()
            };
            let within = |budget: u64| {
                MemoryPlan::slots_within(&config, device, dtype, SIZE, budget).expect("a type of the device")
            };
            assert!(total(3) < total(4));
            assert_eq!([within(total(4)), within(total(4) - 1), within(total(7)), within(u64::MAX)], [4, 3, 7, 7]);
            assert_eq!([within(total(1) - 1), within(0)], [0, 0]);
        }
        assert!(
            MemoryPlan::new(&config, Device::Cuda(0), Dtype::I8, SIZE).is_err_and(|error| error.kind() == "option")
        );
    }
}
