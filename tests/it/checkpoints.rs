//! Whole models from every form of checkpoint; tests/data/checkpoints/make.py made them.

use crate::common;
use beamfuse::cpu::Cpu;
use beamfuse::model::Transformer;

#[test]
fn marian_loads_from_every_form() {
    let backend = Cpu::new(1, beamfuse::Dtype::F32).expect("one thread");
    for form in ["safetensors", "zip", "legacy", "sharded"] {
        let dir = tempfile::tempdir().expect("a directory");
        let config = common::data("checkpoints/safetensors/config.json");
        std::fs::copy(config, dir.path().join("config.json")).expect("the test data is there");
        for file in std::fs::read_dir(common::data("checkpoints").join(form)).expect("the test data is there") {
            let file = file.expect("the test data is there");
            std::fs::copy(file.path(), dir.path().join(file.file_name())).expect("copied");
        }
        let model = Transformer::open(&backend, dir.path()).unwrap_or_else(|error| panic!("{form}: {error}"));
        assert_eq!(model.config().d_model, 8);
    }
}
