//! What a model and a search will take, before anything is allocated.

use super::Device;
use crate::backend::{Backend, Device as _, Dtype, Search, SessionShape, Stages};
use crate::cpu::Cpu;
use crate::cuda::{self, Cuda};
use crate::model::TransformerState;
use crate::model::config::ModelConfig;
use crate::model::size::WeightCounts;
use crate::{Error, Result};

/// Bytes by what they hold. A device allocates exactly these; on the CPU `weights` is about right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryPlan {
    /// The models.
    pub weights: u64,
    /// Keys and values of the sentences being decoded.
    pub caches: u64,
    /// A step's logits.
    pub logits: u64,
    /// The other buffers of a step and of the encoder.
    pub activations: u64,
    /// Hypotheses, histories, and the search's working memory.
    pub search: u64,
}

impl MemoryPlan {
    /// The plan for a search of this size; `models` are the translator's own, then those that every sentence ranks by as well.
    ///
    /// # Errors
    /// [`Error::Option`] for a type that the device does not compute in; [`Error::Input`] without any model.
    pub fn new(models: &[&ModelConfig], device: Device, dtype: Dtype, size: SearchSize) -> Result<Self> {
        let shape = size.shape();
        let weights = weight_bytes(models, device, dtype);
        let kept = if dtype == Dtype::F32 { 4 } else { 2 };
        if device == Device::Cpu {
            let dry = Cpu::new(1, dtype)?.dry();
            let plan = dry.map_or(Ok(MemoryPlan::default()), |dry| session(&dry, models, kept, shape))?;
            return Ok(MemoryPlan { weights, ..plan });
        }
        let plan = session(&Cuda::new(cuda::open_dry(), dtype), models, kept, shape)?;
        Ok(MemoryPlan { weights, ..plan })
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        let MemoryPlan { weights, caches, logits, activations, search } = self;
        weights + caches + logits + activations + search
    }

    /// The most sentences, up to those of `size`, that `budget` bytes have room for; 0 if not even one fits.
    ///
    /// # Errors
    /// As [`MemoryPlan::new`].
    pub fn slots_within(
        models: &[&ModelConfig],
        device: Device,
        dtype: Dtype,
        size: SearchSize,
        budget: u64,
    ) -> Result<usize> {
        let fits = |slots: usize| {
            Ok::<_, Error>(Self::new(models, device, dtype, SearchSize { slots, ..size })?.total() <= budget)
        };
        let (mut fit, mut too_many) = (0, size.slots + 1);
        while too_many - fit > 1 {
            let middle = fit + (too_many - fit) / 2;
            if fits(middle)? { fit = middle } else { too_many = middle }
        }
        Ok(fit)
    }
}

/// Bytes of the weights of all models.
pub(super) fn weight_bytes(models: &[&ModelConfig], device: Device, dtype: Dtype) -> u64 {
    let element = dtype.size() as u64;
    let bytes = |counts: WeightCounts| match (device, dtype) {
        (Device::Cpu, _) => counts.on_cpu(element),
        (_, Dtype::I8) => counts.quantized_on_device(),
        _ => counts.on_device(element),
    };
    models.iter().map(|config| bytes(WeightCounts::of(config))).sum()
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

/// The parts of a plan that a session takes, from the code that allocates it; keys and values take `kept` bytes each.
fn session<B: Backend>(dry: &B, models: &[&ModelConfig], kept: u64, shape: SessionShape) -> Result<MemoryPlan> {
    let Some(own) = models.first() else {
        let (expected, got) = ("at least one model".into(), "none".into());
        return Err(Error::Input { operation: "plan memory", expected, got });
    };
    let states: Vec<_> =
        models.iter().map(|config| TransformerState::open(dry, config, shape)).collect::<Result<_>>()?;
    let scorers = dry.allocated();
    let mut search = Search::open(dry, shape, own.decoder_vocab_size, own.ids)?;
    if models.len() > 1 {
        search.reserve(dry, Stages { ranked: true, ..Stages::default() })?;
    }
    let readbacks = crate::decode::session::readbacks(dry, shape)?;
    let total = dry.allocated();
    drop((states, search, readbacks));
    let SessionShape { slots, beam_size, max_len, max_src_len, rows, .. } = shape;
    let positions = |config: &ModelConfig| config.decoder.layers * slots * (beam_size * max_len + max_src_len);
    let caches = |config: &ModelConfig| (2 * positions(config) * config.decoder.heads.width()) as u64 * kept;
    let logits = |config: &ModelConfig| (rows * dry.logits_stride(config.decoder_vocab_size)) as u64 * 4;
    let caches = models.iter().map(|config| caches(config)).sum();
    let logits = models.iter().map(|config| logits(config)).sum();
    let (activations, search) = (scorers - caches - logits, total - scorers);
    Ok(MemoryPlan { caches, logits, activations, search, ..MemoryPlan::default() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::session::Admission;
    use crate::decode::{DecodeOptions, Limits, Request, Session};
    use crate::model::Transformer;

    fn demo() -> std::path::PathBuf {
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("models/m30k-en-de")
    }

    const SIZE: SearchSize = SearchSize { slots: 7, beam_size: 3, length: 20 };

    fn a_plan_is_what_is_allocated(dtype: Dtype) {
        let families = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/families");
        let names = ["nllb-legacy", "mbart-en-ro", "plbart", "fsmt", "flan-t5", "umt5", "t5-silu"];
        names.iter().for_each(|name| allocates_as_planned(&families.join(name), dtype));
        allocates_as_planned(&demo(), dtype);
    }

    fn allocates_as_planned(dir: &std::path::Path, dtype: Dtype) {
        let config = ModelConfig::open(dir).expect("the model is there");
        let plan = MemoryPlan::new(&[&config], Device::Emulated, dtype, SIZE).expect("a type of the device");
        let context = cuda::open_emulated().expect("there is an emulator");
        let backend = Cuda::new(context.clone(), dtype);
        let model = Transformer::open(&backend, dir).expect("it fits");
        assert_eq!(context.counters().live_bytes, plan.weights, "{}", dir.display());
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
        a_plan_is_what_is_allocated(Dtype::F32);
    }

    #[test]
    #[cfg_attr(not(emulated), ignore = "needs a C++ compiler")]
    fn a_plan_is_what_is_allocated_in_f16() {
        a_plan_is_what_is_allocated(Dtype::F16);
    }

    #[test]
    #[cfg_attr(not(emulated), ignore = "needs a C++ compiler")]
    fn a_plan_is_what_is_allocated_in_i8() {
        a_plan_is_what_is_allocated(Dtype::I8);
    }

    #[test]
    #[cfg_attr(not(emulated), ignore = "needs a C++ compiler")]
    fn a_plan_of_several_models_is_what_is_allocated_once_they_rank() {
        let dirs = [demo(), demo().with_file_name("m30k-en-de-amateur")];
        let configs = dirs.clone().map(|dir| ModelConfig::open(&dir).expect("the model is there"));
        let plan = |models: &[&ModelConfig]| {
            MemoryPlan::new(models, Device::Emulated, Dtype::F16, SIZE).expect("a type of the device")
        };
        let (one, both) = (plan(&[&configs[0]]), plan(&[&configs[0], &configs[1]]));
        assert!(both.weights > one.weights && both.caches > one.caches && both.activations > one.activations);
        assert_eq!(both.logits, 2 * one.logits);

        let context = cuda::open_emulated().expect("there is an emulator");
        let backend = Cuda::new(context.clone(), Dtype::F16);
        let models = dirs.map(|dir| Transformer::open(&backend, &dir).expect("it fits"));
        assert_eq!(context.counters().live_bytes, both.weights);
        let mut session = Session::open(&backend, &models, SIZE.shape()).expect("it fits");
        let options = DecodeOptions { beam_size: SIZE.beam_size, ensemble: vec![0.5, 0.5], ..DecodeOptions::default() };
        let mut request = Request::unchecked(&options, vec![5, 6, 0].into(), Limits { table: SIZE.length, amateur: 1 });
        request.options.max_len = request.options.max_len.min(SIZE.length as u32);
        let admission = Admission { slot: 0, ticket: 0, request: &request, watched: false };
        session.admit(&backend, &models, &[admission]).expect("it fits");
        assert_eq!(context.counters().live_bytes, both.total());
    }

    #[test]
    fn a_budget_gives_the_most_sentences_that_fit() {
        let config = ModelConfig::open(&demo()).expect("the demo model is there");
        for (device, dtype) in [(Device::Cuda(0), Dtype::F16), (Device::Cuda(0), Dtype::I8), (Device::Cpu, Dtype::I8)] {
            let total = |slots: usize| {
                MemoryPlan::new(&[&config], device, dtype, SearchSize { slots, ..SIZE })
                    .expect("a type of the device")
                    .total()
            };
            let within = |budget: u64| {
                MemoryPlan::slots_within(&[&config], device, dtype, SIZE, budget).expect("a type of the device")
            };
            assert!(total(3) < total(4));
            assert_eq!([within(total(4)), within(total(4) - 1), within(total(7)), within(u64::MAX)], [4, 3, 7, 7]);
            assert_eq!([within(total(1) - 1), within(0)], [0, 0]);
        }
        assert!(
            MemoryPlan::new(&[&config], Device::Cpu, Dtype::F16, SIZE).is_err_and(|error| error.kind() == "option")
        );
        assert!(MemoryPlan::new(&[], Device::Cpu, Dtype::F32, SIZE).is_err_and(|error| error.kind() == "input"));
    }
}
