//! Weights kept in a pack: the same bits as without it, and never needed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use beamfuse::translator::PackUse;
use beamfuse::{DecodeOptions, Dtype, EngineOptions, Sentence, Terms, Translator};

use crate::common;
use crate::common::command::run;

const TEXTS: [&str; 3] = ["A dog runs.", "two men 12", "."];

/// Translations with their scores to the last bit, and what became of the pack.
fn translate(dir: &Path, dtype: Dtype, packs: Option<&Path>) -> (String, Vec<PackUse>) {
    let engine = EngineOptions::default().with(|o| {
        (o.dtype, o.threads) = (dtype, 1);
        o.pack_cache = packs.map(Path::to_path_buf);
    });
    let translator = Translator::open_with(dir, &engine).expect("the model opens");
    let options = DecodeOptions::default().with(|o| {
        (o.beam_size, o.n_best) = (3, 3);
        o.max_length = beamfuse::MaxLength::Absolute(12);
    });
    let language = |code: &str| translator.tokenizer().languages().map(|_| code.to_owned());
    let translated = |text: &str| {
        let (source_lang, target_lang) = (language("eng_Latn"), language("deu_Latn"));
        let sentence = Sentence { source: text.to_owned(), source_lang, target_lang, ..Sentence::default() };
        translator.submit(sentence, &options, Terms::new()).and_then(|handle| handle.wait()).expect("it is translated")
    };
    let translations = TEXTS.map(translated);
    (format!("{translations:?}"), translator.packs().to_vec())
}

fn one(packs: Vec<PackUse>) -> PackUse {
    assert_eq!(packs.len(), 1);
    packs.into_iter().next().expect("one")
}

/// A model of a family, small enough to be opened often.
fn small() -> PathBuf {
    common::data("families/flan-t5")
}

fn copy(from: &Path) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    for entry in fs::read_dir(from).expect("the test data is there") {
        let path = entry.expect("a file").path();
        fs::copy(&path, dir.path().join(path.file_name().expect("a name"))).expect("copied");
    }
    dir
}

#[test]
fn a_pack_gives_the_bits_of_the_weights() {
    let packs = tempfile::tempdir().expect("a directory");
    let families = ["flan-t5", "nllb-legacy", "t5-silu", "umt5"].map(|name| common::data("families").join(name));
    for dir in families.into_iter().chain([common::demo_model()]) {
        let [i8, bf16] = [Dtype::I8, Dtype::Bf16].map(|dtype| {
            let name = format!("{}, {dtype:?}", dir.display());
            let (plain, none) = translate(&dir, dtype, None);
            assert!(none.is_empty());
            let (first, written) = translate(&dir, dtype, Some(packs.path()));
            let (again, read) = translate(&dir, dtype, Some(packs.path()));
            let (written, read) = (one(written), one(read));
            assert!(first == plain && again == plain, "{name}");
            assert!(written.written.is_some() && written.read.is_none(), "{name}: {written:?}");
            assert_eq!((read.read, read.written), (written.written, None), "{name}");
            assert_eq!((written.warning, read.warning), (None, None), "{name}");
            plain
        });
        assert_ne!(i8, bf16);
    }
    assert_eq!(fs::read_dir(packs.path()).expect("there").count(), 10);
}

#[test]
fn whatever_is_wrong_with_a_pack_the_model_loads_from_its_weights() {
    let packs = tempfile::tempdir().expect("a directory");
    let (right, written) = translate(&small(), Dtype::I8, Some(packs.path()));
    let path = one(written).written.expect("a pack");
    let whole = fs::read(&path).expect("there");
    let len = whole.len();
    assert!(len > 50_000, "{len}");
    let cuts = [0, 1, 15, 16, 17, 27, 43, 44, 45, len - 29, len - 28, len - 27, len - 1].into_iter();
    let truncated = cuts.chain((1..20).map(|i| len * i / 20)).map(|len| whole[..len].to_vec());
    let flipped = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        bytes
    };
    let flips = (0..20).chain(len - 40..len).chain((1..60).map(|i| len * i / 60)).map(flipped);
    let longer = [whole.as_slice(), b"x"].concat();
    for (i, bytes) in truncated.chain(flips).chain([longer, vec![0; len]]).enumerate() {
        fs::write(&path, bytes).expect("written");
        let (translated, used) = translate(&small(), Dtype::I8, Some(packs.path()));
        let used = one(used);
        assert!(translated == right, "damage {i}");
        assert!(used.read.is_none() && used.written.is_some(), "damage {i}: {used:?}");
        let warning = used.warning.expect("it says so");
        assert!(warning.starts_with("the pack of weights was not used: "), "damage {i}: {warning}");
        assert!(fs::read(&path).expect("there") == whole, "damage {i} is mended");
    }
}

#[test]
fn a_pack_of_other_weights_is_not_used() {
    let packs = tempfile::tempdir().expect("a directory");
    let other = one(translate(&common::data("families/nllb-legacy"), Dtype::I8, Some(packs.path())).1);
    let (right, own) = translate(&small(), Dtype::I8, Some(packs.path()));
    let (other, own) = (other.written.expect("a pack"), one(own).written.expect("a pack"));
    let whole = fs::read(&own).expect("there");
    fs::copy(&other, &own).expect("copied");
    let (translated, used) = translate(&small(), Dtype::I8, Some(packs.path()));
    assert!(translated == right);
    assert_eq!(one(used), PackUse { written: Some(own.clone()), ..PackUse::default() });
    assert!(fs::read(&own).expect("there") == whole);
    // One in another type, under the name of this.
    let bf16 = one(translate(&small(), Dtype::Bf16, Some(packs.path())).1).written.expect("a pack");
    fs::copy(&bf16, &own).expect("copied");
    let (translated, used) = translate(&small(), Dtype::I8, Some(packs.path()));
    assert!(translated == right);
    assert_eq!(one(used).read, None);
}

#[test]
#[cfg(unix)]
fn weights_that_were_written_over_in_place_are_read_again() {
    let (model, packs) = (copy(&small()), tempfile::tempdir().expect("a directory"));
    let (before, _) = translate(model.path(), Dtype::I8, Some(packs.path()));
    let file = model.path().join("model.safetensors");
    let modified = fs::metadata(&file).and_then(|metadata| metadata.modified()).expect("a time");
    let mut bytes = fs::read(&file).expect("there");
    // The values stand at the end of the file.
    let (_, values) = bytes.as_rchunks_mut::<4>();
    let half = values.len() / 2;
    values[half..].iter_mut().for_each(|value| *value = (f32::from_le_bytes(*value) * -0.5).to_le_bytes());
    // The same size, and the time set back.
    let mut open = File::options().write(true).open(&file).expect("ours");
    std::io::Write::write_all(&mut open, &bytes).expect("written");
    open.set_modified(modified).expect("ours");
    drop(open);
    let (right, _) = translate(model.path(), Dtype::I8, None);
    assert_ne!(right, before);
    let (after, used) = translate(model.path(), Dtype::I8, Some(packs.path()));
    assert!(after == right);
    assert_eq!((one(used.clone()).read, one(used).warning), (None, None));
    let (again, used) = translate(model.path(), Dtype::I8, Some(packs.path()));
    assert!(again == right);
    assert!(one(used).read.is_some());
}

#[test]
fn where_no_pack_can_be_written_or_used_the_model_opens_all_the_same() {
    let packs = tempfile::tempdir().expect("a directory");
    let file = packs.path().join("file");
    fs::write(&file, "x").expect("written");
    let (right, _) = translate(&small(), Dtype::I8, None);
    let (translated, used) = translate(&small(), Dtype::I8, Some(&file.join("packs")));
    let warning = one(used).warning.expect("it says so");
    assert!(translated == right);
    assert!(warning.contains("no pack of weights was written: create "), "{warning}");
    // A directory has the pack's name.
    let path = one(translate(&small(), Dtype::I8, Some(packs.path())).1).written.expect("a pack");
    fs::remove_file(&path).and_then(|()| fs::create_dir(&path)).expect("ours");
    let (translated, used) = translate(&small(), Dtype::I8, Some(packs.path()));
    assert!(translated == right);
    assert!(one(used).warning.is_some_and(|warning| warning.contains("; no pack of weights was written: ")));
    let used = one(translate(&small(), Dtype::F32, Some(packs.path())).1);
    assert!(used.warning.is_some_and(|warning| warning.contains("expected weights in i8 or bf16")));
}

#[test]
fn processes_that_open_a_model_for_the_first_time_at_once_agree() {
    let packs = tempfile::tempdir().expect("a directory");
    let directory = packs.path().to_str().expect("text");
    let args = ["translate", "-v", "--dtype", "i8", "--pack-cache", directory, "A dog runs."];
    let plain = run(&["translate", "--dtype", "i8", "A dog runs."], b"").ok().out;
    std::thread::scope(|scope| {
        let first: Vec<_> = (0..4).map(|_| scope.spawn(|| run(&args, b""))).collect();
        for finished in first.into_iter().map(|first| first.join().expect("it ends")) {
            assert_eq!((finished.code, finished.out.as_str()), (Some(0), plain.as_str()), "{}", finished.err);
        }
    });
    let left: Vec<_> = fs::read_dir(packs.path()).expect("there").map(|entry| entry.expect("a file").path()).collect();
    assert_eq!(left.len(), 1, "{left:?}");
    let again = run(&args, b"");
    assert_eq!(again.out, plain);
    assert!(again.err.contains(&format!("read the weights from {}", left[0].display())), "{}", again.err);
}
