//! A checkpoint and the configuration that it is read under: `config.json`, 0xff, `model.safetensors`.
//!
//! What opens must translate: a model that has been accepted may give bad translations, but not end the engine.
#![no_main]

use std::cell::RefCell;
use std::sync::{Arc, LazyLock};

use beamfuse::cpu::Cpu;
use beamfuse::decode::Request;
use beamfuse::decode::engine::{Engine, Job, Work};
use beamfuse::model::Transformer;
use beamfuse::model::weights::Weights;
use beamfuse::{DecodeOptions, Error};
use beamfuse_fuzz::{ModelDir, parts};
use libfuzzer_sys::fuzz_target;

thread_local! {
    static DIR: RefCell<ModelDir> = RefCell::new(ModelDir::new());
}

/// Threads are dear: inputs that do not open, nearly all, share these.
static PROBE: LazyLock<Cpu> = LazyLock::new(|| Cpu::new(1, beamfuse::Dtype::F32).expect("a thread starts"));

fuzz_target!(|data: &[u8]| {
    let [config, weights] = parts(data);
    DIR.with_borrow(|dir| {
        dir.set("config.json", config);
        dir.set("model.safetensors", weights);
        if let Ok(weights) = Weights::open(dir.path()) {
            let _ = (weights.parameters(), weights.dtype(), weights.contains("final_logits_bias"));
        }
        if Transformer::open(&*PROBE, dir.path()).is_err() {
            return;
        }
        let backend = Cpu::new(1, beamfuse::Dtype::F32).expect("a thread starts");
        let model = Transformer::open(&backend, dir.path()).expect("what has opened opens again");
        let config = model.config().clone();
        let engine = Engine::start(vec![backend], vec![model], config.vocab_size, 2).expect("a thread starts");
        let options =
            DecodeOptions { beam_size: 2, max_length: beamfuse::MaxLength::Absolute(4), ..Default::default() };
        let source = vec![0, config.vocab_size as u32 - 1, config.ids.eos_id];
        let (reply, replies) = std::sync::mpsc::channel();
        let options = options.for_slot(source.len(), engine.max_len());
        let work = Work::Search(Box::new(Request { source, options, n_best: 2, attention: true, ..Request::default() }));
        let caller = Arc::new(());
        match engine.submit(Job { tag: 7, work, reply, caller: Arc::downgrade(&caller) }) {
            Ok(()) => match replies.recv().expect("the engine answers").outcome {
                Ok(_) | Err(Error::NonFiniteLogits { .. }) => {}
                Err(error) => panic!("{error}"),
            },
            Err(error) => assert!(matches!(error, Error::InputTooLong { .. }), "{error}"),
        }
    });
});
