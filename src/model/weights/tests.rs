//! Checkpoints that PyTorch wrote, whole and damaged; tests/data/checkpoints/make.py made them.

use std::io::Write;
use std::path::{Path, PathBuf};

use zip::write::SimpleFileOptions;

use super::*;
use crate::backend::NetworkOps;
use crate::cpu::Cpu;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/checkpoints").join(name)
}

fn bytes(form: &str) -> Vec<u8> {
    std::fs::read(data(form).join("pytorch_model.bin")).expect("the test data is there")
}

/// The error's text; empty for none.
fn error(bytes: &[u8]) -> String {
    pytorch::read(Path::new("x.bin"), bytes).err().map(|e| e.to_string()).unwrap_or_default()
}

#[test]
fn every_form_holds_the_same_numbers() {
    let expected = Weights::open(&data("safetensors")).expect("safetensors open");
    assert_eq!(expected.tensors().count(), 44);
    for (form, source, dtype) in [
        ("zip", "pytorch_model.bin", "F32"),
        ("legacy", "pytorch_model.bin", "F32"),
        ("sharded", "pytorch_model.bin.index.json", "F16"),
    ] {
        let weights = Weights::open(&data(form)).expect(form);
        assert_eq!(weights.source(), data(form).join(source));
        assert_eq!(weights.dtype(), dtype, "{form}");
        for (name, shape) in expected.tensors() {
            let (a, b) = (expected.get(name, shape).expect(name), weights.get(name, shape).expect(name));
            assert_eq!(a, b, "{form}: {name}");
        }
    }
}

#[test]
fn tensors_that_share_their_bytes_count_once() {
    // The safetensors file has embeddings and output once, the others under four names.
    let [safetensors, zip, legacy] =
        ["safetensors", "zip", "legacy"].map(|form| Weights::open(&data(form)).expect(form));
    assert!(zip.tensors().count() > safetensors.tensors().count());
    assert_eq!(zip.parameters(), safetensors.parameters());
    // It also has the two position tables, 8 by 8.
    assert_eq!(legacy.parameters(), safetensors.parameters() + 2 * 8 * 8);
}

#[test]
fn safetensors_come_first() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::copy(data("safetensors/model.safetensors"), dir.path().join("model.safetensors")).expect("copied");
    std::fs::write(dir.path().join("pytorch_model.bin"), "not a checkpoint").expect("written");
    let weights = Weights::open(dir.path()).expect("the other file is not opened");
    assert_eq!(weights.source(), dir.path().join("model.safetensors"));
}

#[test]
fn a_directory_without_weights_names_what_is_looked_for() {
    let dir = tempfile::tempdir().expect("a directory");
    let error = Weights::open(dir.path()).expect_err("nothing there").to_string();
    assert!(error.contains("model.safetensors") && error.contains("pytorch_model.bin"), "{error}");
}

#[test]
fn no_cut_file_opens() {
    for form in ["zip", "legacy"] {
        let bytes = bytes(form);
        assert_eq!(error(&bytes), "");
        for len in 0..bytes.len() {
            assert_ne!(error(&bytes[..len]), "", "{form} cut at {len}");
        }
    }
}

#[test]
fn no_damaged_byte_panics() {
    for form in ["zip", "legacy"] {
        let mut bytes = bytes(form);
        let mut refused = 0;
        for at in 0..bytes.len() {
            let before = bytes[at];
            bytes[at] ^= [0x01, 0x80, 0xff][at % 3];
            let read = pytorch::read(Path::new("x.bin"), &bytes);
            refused += usize::from(read.is_err());
            let inside = |entry: &Entry| entry.range.start <= entry.range.end && entry.range.end <= bytes.len();
            assert!(read.iter().flatten().all(|(_, entry)| inside(entry)), "{form}: byte {at}");
            bytes[at] = before;
        }
        assert!(refused > 1000, "{form}: {refused}");
    }
}

/// An archive as torch writes it, with one storage of 4 floats.
fn archive(pickle: &[u8], order: &str) -> Vec<u8> {
    archive_of(pickle, order, &[0; 16])
}

fn archive_of(pickle: &[u8], order: &str, storage: &[u8]) -> Vec<u8> {
    let options = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, bytes) in [("m/data.pkl", pickle), ("m/byteorder", order.as_bytes()), ("m/data/0", storage)] {
        writer.start_file(name, options).expect("a file in memory");
        writer.write_all(bytes).expect("a file in memory");
    }
    writer.finish().expect("a file in memory").into_inner()
}

/// Pickles a string.
fn text(text: &str) -> Vec<u8> {
    [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat()
}

/// Pickles `{"w": tensor}` with the tensor's class of storage, offset, shape and strides given as pickle code.
fn tensor(class: &str, offset: &[u8], shape: &[u8], strides: &[u8]) -> Vec<u8> {
    let class = format!("ctorch\n{class}\n");
    let storage = [b"((", &text("storage")[..], class.as_bytes(), &text("0"), &text("cpu"), b"K\x04tQ"].concat();
    let start = [b"\x80\x02}(", &text("w")[..], b"ctorch._utils\n_rebuild_tensor_v2\n"].concat();
    [&start[..], &storage, offset, shape, strides, b"\x89)tRu."].concat()
}

#[test]
fn the_tensor_that_the_other_tests_spoil_is_read() {
    let pickle = tensor("FloatStorage", b"K\x00", b"K\x02K\x02\x86", b"K\x02K\x01\x86");
    let entries = pytorch::read(Path::new("x.bin"), &archive(&pickle, "little")).expect("well formed");
    let entry = &entries["w"];
    assert_eq!((entry.dtype, &entry.shape[..], entry.range.len()), (Dtype::F32, &[2, 2][..], 16));
}

#[test]
fn tensors_outside_their_storage_are_refused() {
    let max = &b"J\xff\xff\xff\x7f"[..];
    let long = &b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f"[..];
    let pair = |a: &[u8], b: &[u8]| [a, b, b"\x86"].concat();
    let (flat, one) = (&b"K\x04\x85"[..], &b"K\x01\x85"[..]);
    let (float, square) = ("FloatStorage", pair(b"K\x02", b"K\x02"));
    for (pickle, expected) in [
        (tensor(float, b"K\x01", flat, one), "expected at most 4 values, got shape [4] with strides [1] from value 1"),
        (tensor("DoubleStorage", b"K\x00", flat, one), "expected at most 2 values"),
        (tensor(float, b"K\x00", &pair(max, max), &pair(max, b"K\x01")), "expected at most 4 values"),
        (tensor(float, b"K\x00", &pair(long, long), &pair(long, b"K\x01")), "expected at most 4 values"),
        (tensor(float, long, flat, one), "expected at most 4 values"),
        (tensor(float, b"J\xff\xff\xff\xff", flat, one), "expected a size, got -1"),
        (
            tensor(float, b"K\x00", &square, &pair(b"K\x01", b"K\x03")),
            "expected at most 4 values, got shape [2, 2] with strides [1, 3]",
        ),
        (tensor(float, b"K\x00", &square, &pair(long, b"K\x01")), "expected at most 4 values"),
        (tensor(float, b"K\x00", &square, &pair(b"J\xff\xff\xff\xff", b"K\x01")), "expected a size, got -1"),
        (tensor(float, b"K\x00", flat, b")"), "expected a stride for each size"),
        (tensor(float, b"K\x00", &[b"(", &b"K\x01".repeat(9)[..], b"t"].concat(), one), "at most 8 dimensions"),
        (tensor("QInt8Storage", b"K\x00", flat, one), "got QInt8Storage"),
        (tensor(float, b"N", flat, one), "expected a size"),
    ] {
        let error = error(&archive(&pickle, "little"));
        assert!(error.starts_with("load tensor w: ") && error.contains(expected), "{expected}: {error}");
    }
}

/// The tensor of a pickle whose storage holds 0, 1, 2, 3.
fn values(pickle: &[u8], shape: &[usize]) -> Vec<f32> {
    let dir = tempfile::tempdir().expect("a directory");
    let storage = [0.0f32, 1.0, 2.0, 3.0].map(f32::to_le_bytes).concat();
    std::fs::write(dir.path().join("pytorch_model.bin"), archive_of(pickle, "little", &storage)).expect("written");
    Weights::open(dir.path()).expect("well formed").get("w", shape).expect("finite")
}

#[test]
fn tensors_lie_as_their_strides_say() {
    let pair = |a: u8, b: u8| [b'K', a, b'K', b, 0x86];
    let read = |offset: u8, shape: [usize; 2], strides: (u8, u8)| {
        let sizes = pair(shape[0] as u8, shape[1] as u8);
        values(&tensor("FloatStorage", &[b'K', offset], &sizes, &pair(strides.0, strides.1)), &shape)
    };
    assert_eq!(read(0, [2, 2], (2, 1)), [0.0, 1.0, 2.0, 3.0]);
    assert_eq!(read(0, [2, 2], (1, 2)), [0.0, 2.0, 1.0, 3.0], "transposed");
    assert_eq!(read(1, [2, 1], (2, 1)), [1.0, 3.0], "every second one");
    assert_eq!(read(2, [3, 2], (0, 1)), [2.0, 3.0, 2.0, 3.0, 2.0, 3.0], "one row for all");
    assert_eq!(read(0, [2, 3], (1, 1)), [0.0, 1.0, 2.0, 1.0, 2.0, 3.0], "overlapping");
}

#[test]
fn a_parameter_and_a_tensor_with_attributes_are_tensors() {
    let plain = tensor("FloatStorage", b"K\x00", b"K\x02\x85", b"K\x02\x85");
    let call = b"ctorch._utils\n_rebuild_tensor_v2\n";
    let at = plain.windows(call.len()).position(|bytes| bytes == call).expect("the call");
    let (start, rest) = (&plain[..at], &plain[at..]);
    let arguments = &rest[call.len()..rest.len() - 3];
    let body = &rest[..rest.len() - 2];
    for wrapped in [
        [b"ctorch._utils\n_rebuild_parameter\n(", body, b"\x88}tR"].concat(),
        [b"ctorch._utils\n_rebuild_parameter_with_state\n(", body, b"\x88}}tR"].concat(),
        [b"ctorch._tensor\n_rebuild_from_type_v2\n(", &call[..], b"ctorch\nTensor\n", arguments, b"}tR"].concat(),
    ] {
        assert_eq!(values(&[start, &wrapped, b"u."].concat(), &[2]), [0.0, 2.0]);
    }
}

#[test]
fn names_without_model_are_those_of_a_base_model() {
    let dir = tempfile::tempdir().expect("a directory");
    let whole = Weights::open(&data("safetensors")).expect("safetensors open");
    let bytes = std::fs::read(data("safetensors/model.safetensors")).expect("the test data is there");
    let file = ::safetensors::SafeTensors::deserialize(&bytes).expect("well formed");
    let saved = file.tensors().into_iter().filter(|(name, _)| name.starts_with("model."));
    let base = saved.map(|(name, tensor)| (name["model.".len()..].to_owned(), tensor));
    std::fs::write(dir.path().join("model.safetensors"), ::safetensors::serialize(base, None).expect("consistent"))
        .expect("written");
    let bare = Weights::open(dir.path()).expect("the base model opens");
    let names = |weights: &Weights| weights.tensors().map(|(name, _)| name.to_owned()).collect::<Vec<_>>();
    let expected: Vec<String> = names(&whole).into_iter().filter(|name| name.starts_with("model.")).collect();
    assert_eq!(names(&bare), expected);
    assert!(expected.len() > 40);
}

#[test]
fn a_pointer_in_place_of_weights_is_called_that() {
    let dir = tempfile::tempdir().expect("a directory");
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n";
    for name in ["pytorch_model.bin", "model.safetensors"] {
        std::fs::write(dir.path().join(name), pointer).expect("written");
        let error = Weights::open(dir.path()).expect_err("no weights").to_string();
        assert!(error.contains(name) && error.contains("git lfs pull"), "{error}");
    }
}

#[test]
fn hostile_pickles_are_refused() {
    let deep = [b"\x80\x02}", &b"\x85".repeat(900_000)[..], b"."].concat();
    // Each level holds the one before twice: 2^60 values if they were copied.
    let doubling = [b"\x80\x02}q\x00", &b"h\x00h\x00\x86q\x00".repeat(60)[..], b"."].concat();
    let cycle = b"\x80\x02}q\x00(".iter().chain(&text("a")).chain(b"h\x00u.").copied().collect();
    for (pickle, expected) in [
        (deep, "expected a dictionary of tensors, got none"),
        (doubling, "expected a dictionary of tensors, got none"),
        (cycle, "expected a dictionary of tensors, got none"),
        (b"\x80\x02)R.".to_vec(), "expected a value on the stack"),
        (b"\x80\x02}(\x85.".to_vec(), "expected 1 values on the stack, got 0"),
        (b"\x80\x02X\xff\xff\xff\xffabc.".to_vec(), "expected 4294967295 bytes"),
        (b"\x80\x02X\x01\x00\x00\x00\xff.".to_vec(), "expected text in UTF-8"),
        ([b"\x80\x02\x8a\xff", &[1; 255][..], b"."].concat(), "expected a dictionary of tensors"),
        (b"\x80\x02h\x07.".to_vec(), "expected a value that was stored, got number 7"),
        (b"\x80\x02}t.".to_vec(), "expected a mark on the stack"),
        (b"\x80\x02}(K\x01u.".to_vec(), "expected a dictionary and pairs"),
        (b"\x80\x02K\x01K\x01a.".to_vec(), "expected a list to append to"),
        (b"\x80\x02NQ.".to_vec(), "expected a persistent id"),
        (b"cos\nsystem".to_vec(), "expected a line"),
        (b"\x80\x04\x95.".to_vec(), "got operation 0x95 at byte 2"),
        (b"N".repeat(1_000_001), "at most 1000000 operations"),
        (Vec::new(), "expected 1 bytes"),
    ] {
        let error = error(&archive(&pickle, "little"));
        assert!(error.starts_with("read x.bin: ") && error.contains(expected), "{expected}: {error}");
    }
}

#[test]
fn a_tensor_without_its_arguments_is_refused() {
    let pickle = [b"\x80\x02}(", &text("w")[..], b"ctorch._utils\n_rebuild_tensor_v2\nK\x01\x85Ru."].concat();
    assert!(error(&archive(&pickle, "little")).contains("expected storage, offset, shape and strides"));
}

#[test]
fn other_files_are_refused() {
    let pickle = tensor("FloatStorage", b"K\x00", b"K\x04\x85", b"K\x01\x85");
    assert_eq!(error(&archive(&pickle, "little")), "");
    assert!(error(&archive(&pickle, "big")).contains("expected byte order little, got big"));
    assert!(error(b"<html>").contains("a file that begins with [3c, 68, 74, 6d]"));
    assert!(error(b"").contains("not a valid PyTorch checkpoint"));
}

#[test]
fn a_value_that_is_not_finite_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let pickle = tensor("FloatStorage", b"K\x00", b"K\x04\x85", b"K\x01\x85");
    let mut file = archive(&pickle, "little");
    let entry = pytorch::read(Path::new("x.bin"), &file).expect("well formed")["w"].clone();
    file[entry.range.start + 4..entry.range.start + 8].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(dir.path().join("pytorch_model.bin"), file).expect("written");
    let weights = Weights::open(dir.path()).expect("values are checked when they are taken");
    let error = |shape: &[usize]| weights.get("w", shape).expect_err("spoilt").to_string();
    assert_eq!(error(&[4]), "load tensor w: expected finite values, got NaN at index 1");
    assert_eq!(error(&[2, 2]), "load tensor w: expected shape [2, 2], got [4]");
}

#[test]
fn a_shard_index_may_not_leave_its_directory() {
    let dir = tempfile::tempdir().expect("a directory");
    let index = r#"{"weight_map": {"w": "../pytorch_model.bin"}}"#;
    std::fs::write(dir.path().join("pytorch_model.bin.index.json"), index).expect("written");
    assert!(matches!(Weights::open(dir.path()), Err(Error::Config { .. })));
}

/// Weights `a`, `b`, ... of this shape with numbers of their own.
fn stacked(count: u8, shape: [usize; 2]) -> (Vec<String>, Weights) {
    let names: Vec<String> = (0..count).map(|i| char::from(b'a' + i).to_string()).collect();
    let value = |tensor: usize, i: usize| ((tensor * 7919 + i * 31) % 257) as f32 / 64.0 - 2.0;
    let values = |tensor| (0..shape[0] * shape[1]).map(|i| value(tensor, i)).collect();
    let tensors = names.iter().enumerate().map(|(i, name)| (name.clone(), (shape.to_vec(), values(i))));
    (names.clone(), Weights::from_tensors(tensors.collect()))
}

#[test]
fn a_matrix_of_several_tensors_has_their_rows_one_behind_the_other() {
    for dtype in [crate::Dtype::F32, crate::Dtype::Bf16, crate::Dtype::I8] {
        let cpu = Cpu::new(1, dtype).expect("a thread");
        // Panels of 32 rows begin in one tensor and end in another.
        for (count, rows, width) in [(1, 1, 1), (1, 70, 5), (2, 16, 64), (3, 33, 17), (3, 40, 130), (2, 5000, 16)] {
            let (names, mut weights) = stacked(count, [rows, width]);
            let all = [rows * names.len(), width];
            let bias: Vec<f32> = (0..all[0]).map(|i| i as f32).collect();
            let mut values: Vec<f32> =
                names.iter().flat_map(|name| weights.get(name, &[rows, width]).expect("there")).collect();
            let check = |weights: &Weights, values: &[f32]| {
                let expected = cpu.matrix(values, Some(&bias), all[0], all[1]).expect("it fits");
                let found = weights.matrix(&cpu, &names, all, || Ok(Some(bias.clone()))).expect("it fits");
                let weights_of = |matrix: &crate::cpu::linear::Matrix, output| {
                    let mut weights = vec![0.0; width];
                    matrix.weights_of(output, &mut weights);
                    weights
                };
                let differ = (0..all[0]).find(|output| weights_of(&found, *output) != weights_of(&expected, *output));
                assert_eq!(differ, None, "{dtype:?}, {count} of {rows} x {width}");
                assert_eq!(cpu.matrix_parts(&found), cpu.matrix_parts(&expected));
            };
            check(&weights, &values);
            // One that lies by columns.
            let last = names.last().expect("one at least").clone();
            weights.tensors.get_mut(&last).expect("there").1.strides = Some(vec![1, rows]);
            let start = values.len() - rows * width;
            let columns = values.split_off(start);
            values.extend((0..rows * width).map(|i| columns[i % width * rows + i / width]));
            check(&weights, &values);
        }
    }
}

#[test]
fn the_tensor_of_a_matrix_that_is_wrong_is_named() {
    let cpu = Cpu::new(1, crate::Dtype::F32).expect("a thread");
    let refused = |(names, weights): &(Vec<String>, Weights), rows| {
        weights.matrix(&cpu, names, [rows, 3], || Ok(None)).expect_err("it is wrong").to_string()
    };
    let mut spoilt = stacked(3, [40, 3]);
    let Bytes::Memory(bytes) = &mut spoilt.1.shards[0].bytes else { unreachable!("they never were in a file") };
    bytes[(40 * 3 + 77) * 4..][..4].copy_from_slice(&f32::NEG_INFINITY.to_le_bytes());
    let said = refused(&spoilt, 120);
    assert!(said.contains("tensor b") && said.contains("-inf at index 77"), "{said}");
    let said = refused(&stacked(2, [40, 3]), 82);
    assert!(said.contains("tensor a") && said.contains("[41, 3]") && said.contains("[40, 3]"), "{said}");
    let (mut names, weights) = stacked(2, [40, 3]);
    names[1] = "elsewhere".into();
    let said = refused(&(names, weights), 80);
    assert!(said.contains("elsewhere") && said.contains("no such tensor"), "{said}");
}
