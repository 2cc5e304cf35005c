//! Tensors of a file that `torch.save` wrote: a pickle says which tensor lies where in which storage.
//!
//! Since PyTorch 1.6 the file is a zip archive, uncompressed: `NAME/data.pkl`, and a file `NAME/data/KEY` per storage. Before, it was
//! a row of pickles (a magic number, the version, facts about the machine, the tensors, the storages' keys), then per storage the
//! number of its elements as 64 bits and its bytes. Both are described by PyTorch's `torch/serialization.py` alone.

use std::collections::{BTreeMap, HashMap};
use std::io::BufReader;
use std::ops::Range;
use std::path::Path;

use safetensors::Dtype;
use zip::{CompressionMethod, ZipArchive};

use super::Entry;
use super::cursor::Cursor;
use super::pickle::{self, Malformed, Pickle, Value};
use super::source::Source;
use crate::{Error, Result};

/// How a zip archive begins.
const ZIP: &[u8] = b"PK\x03\x04";
/// How a file of the older format begins: the pickled number 0x1950a86a20f9469cfc6c.
const LEGACY: &[u8] = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.";
/// More than any layer has; a shape is copied wherever a pickle refers to it.
const MAX_DIMENSIONS: usize = 8;

/// The most bytes of a pickle: it names tensors, their values lie elsewhere.
const MAX_PICKLE: usize = 64 << 20;

/// Finds the tensors of a file; its errors name `path`. Whatever else the dictionary holds is passed over.
///
/// # Errors
/// [`Error::PyTorch`] for a malformed file, [`Error::Tensor`] for a tensor that lies outside its storage or
/// has an element type that safetensors do not know.
pub(super) fn read(path: &Path, source: &(impl Source + ?Sized)) -> Result<BTreeMap<String, Entry>> {
    let malformed = |Malformed { expected, got }| Error::PyTorch { path: path.to_path_buf(), expected, got };
    let start = piece(source, 0..source.len().min(LEGACY.len())).map_err(malformed)?;
    let (pickle, storages) = if start == LEGACY {
        legacy(source).map_err(malformed)?
    } else if start.starts_with(ZIP) {
        archive(source).map_err(malformed)?
    } else {
        let got = format!("a file that begins with {:02x?}", &start[..start.len().min(4)]);
        return Err(malformed(Malformed::new("a zip archive or pickles, as torch.save writes", got)));
    };
    let pickle = pickle::read(&pickle).map_err(malformed)?;
    let mut entries = BTreeMap::new();
    for (name, value) in pickle.dict(pickle.root).unwrap_or_default() {
        let Value::Text(name) = *name else { continue };
        let Some(arguments) = tensor(&pickle, *value) else { continue };
        let entry = place(&pickle, arguments, &storages);
        let wrong = |Malformed { expected, got }| Error::Tensor { name: name.to_string(), expected, got };
        entries.insert(name, entry.map_err(wrong)?);
    }
    if entries.is_empty() {
        return Err(malformed(Malformed::new("a dictionary of tensors", "none")));
    }
    Ok(entries.into_iter().map(|(name, entry)| (name.to_string(), entry)).collect())
}

/// Bytes of the file, as many as a pickle may have.
fn piece(source: &(impl Source + ?Sized), range: Range<usize>) -> Result<Vec<u8>, Malformed> {
    if range.len() > MAX_PICKLE {
        return Err(Malformed::new(format!("a pickle of at most {MAX_PICKLE} bytes"), range.len().to_string()));
    }
    source.read(range).map_err(|error| Malformed::new("bytes that can be read", error.to_string()))
}

/// The bytes of each storage within the file, by its key.
type Storages = HashMap<String, Range<usize>>;

/// The pickled dictionary and the storages of a zip archive.
fn archive(source: &(impl Source + ?Sized)) -> Result<(Vec<u8>, Storages), Malformed> {
    let broken = |error: zip::result::ZipError| Malformed::new("a whole zip archive", error.to_string());
    let mut archive = ZipArchive::new(BufReader::new(Cursor::new(source))).map_err(broken)?;
    let mut files = HashMap::new();
    for index in 0..archive.len() {
        let file = archive.by_index_raw(index).map_err(broken)?;
        let name = file.name().map_err(broken)?.into_owned();
        let stored = file.compression() == CompressionMethod::Stored && !file.encrypted();
        let start = file.data_start().and_then(|start| usize::try_from(start).ok());
        let end = start.zip(usize::try_from(file.size()).ok()).and_then(|(start, len)| start.checked_add(len));
        match start.zip(end) {
            Some((start, end)) if stored && end <= source.len() => _ = files.insert(name, start..end),
            _ => return Err(Malformed::new("files that are stored whole in the archive", name)),
        }
    }
    let roots: Vec<&str> = files.keys().filter_map(|name| name.strip_suffix("data.pkl")).collect();
    let [root] = roots[..] else {
        return Err(Malformed::new("one data.pkl in the archive", roots.len().to_string()));
    };
    let file = |name: &str| files.get(&format!("{root}{name}")).map(|range| piece(source, range.clone())).transpose();
    // Files of the first versions do not say; they were little-endian wherever this runs.
    if let Some(order) = file("byteorder")?.filter(|order| order != b"little") {
        return Err(Malformed::new("byte order little", String::from_utf8_lossy(&order)));
    }
    let pickle = file("data.pkl")?.unwrap_or_default();
    let prefix = format!("{root}data/");
    let storage =
        |(name, range): (&String, &Range<usize>)| Some((name.strip_prefix(&prefix)?.to_string(), range.clone()));
    let storages = files.iter().filter_map(storage).collect();
    Ok((pickle, storages))
}

/// The pickled dictionary and the storages of the older format.
fn legacy(source: &(impl Source + ?Sized)) -> Result<(Vec<u8>, Storages), Malformed> {
    // The pickles come first.
    let bytes = piece(source, 0..source.len().min(MAX_PICKLE))?;
    let mut at = LEGACY.len();
    let mut next = || {
        let start = at;
        let pickle = pickle::read(&bytes[start..])?;
        at += pickle.len;
        Ok((pickle, start..at))
    };
    let ((version, _), (machine, _), (tensors, pickle), (keys, _)) = (next()?, next()?, next()?, next()?);
    if version.root != Value::Int(1001) {
        return Err(Malformed::new("version 1001 of the format", version.root.to_string()));
    }
    let facts = machine.dict(machine.root).unwrap_or_default();
    if !facts.contains(&(Value::Text("little_endian"), Value::Bool(true))) {
        return Err(Malformed::new("byte order little", "another"));
    }
    let keys = keys.list(keys.root).ok_or_else(|| Malformed::new("a list of storages", keys.root.to_string()))?;
    let sizes = element_sizes(&tensors);
    let mut storages = HashMap::new();
    for key in keys {
        let Value::Text(key) = *key else {
            return Err(Malformed::new("the key of a storage", key.to_string()));
        };
        // A storage that no tensor lies in has an unknown element size; what follows it cannot be found.
        let size = sizes.get(key).ok_or_else(|| Malformed::new("storages that tensors lie in", key))?;
        let mut count = [0; size_of::<i64>()];
        let count = source.fill(at, &mut count).ok().and_then(|()| usize::try_from(i64::from_le_bytes(count)).ok());
        let start = at + size_of::<i64>();
        let end = count.and_then(|count| start.checked_add(count.checked_mul(*size)?));
        let end = end.filter(|end| *end <= source.len());
        at = end.ok_or_else(|| Malformed::new(format!("the values of storage {key}"), "the end of the file"))?;
        storages.insert(key.to_string(), start..at);
    }
    Ok((bytes[pickle].to_vec(), storages))
}

/// Bytes per element of the storages that the dictionary's tensors lie in.
fn element_sizes<'a>(pickle: &Pickle<'a>) -> HashMap<&'a str, usize> {
    let storage = |(_, value): &(Value<'a>, Value<'a>)| {
        let storage = Storage::of(pickle, *tensor(pickle, *value)?.first()?).ok()?;
        Some((storage.key, storage.dtype.bitsize() / 8))
    };
    pickle.dict(pickle.root).unwrap_or_default().iter().filter_map(storage).collect()
}

/// The function that makes a tensor of a storage, offset, shape and strides.
const REBUILD_TENSOR: &str = "_rebuild_tensor_v2";

/// The arguments that a tensor is rebuilt from, if the value is a tensor or a parameter.
fn tensor<'p, 'a>(pickle: &'p Pickle<'a>, value: Value<'a>) -> Option<&'p [Value<'a>]> {
    match pickle.call(value)? {
        ("torch._utils", REBUILD_TENSOR, arguments) => Some(arguments),
        ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state", arguments) => {
            match pickle.call(*arguments.first()?)? {
                ("torch._utils", REBUILD_TENSOR, arguments) => Some(arguments),
                _ => None,
            }
        }
        // A tensor with attributes of its own: function, class, the function's arguments, attributes.
        ("torch._tensor", "_rebuild_from_type_v2", &[function, _, arguments, ..]) => {
            (function == Value::Global("torch._utils", REBUILD_TENSOR)).then(|| pickle.list(arguments))?
        }
        _ => None,
    }
}

/// Where a tensor lies, given what it is rebuilt from: storage, offset, shape and strides in elements, and more that does not
/// matter here.
fn place<'a>(pickle: &Pickle<'a>, arguments: &[Value<'a>], storages: &Storages) -> Result<Entry, Malformed> {
    let &[storage, offset, shape, strides, ..] = arguments else {
        return Err(Malformed::new("storage, offset, shape and strides", format!("{} values", arguments.len())));
    };
    let Storage { key, dtype } = Storage::of(pickle, storage)?;
    let storage = storages.get(key).ok_or_else(|| Malformed::new(format!("storage {key}"), "no such storage"))?;
    let (shape, strides) = (sizes(pickle, shape)?, sizes(pickle, strides)?);
    let offset = size(offset)?;
    if shape.len() != strides.len() {
        return Err(Malformed::new("a stride for each size", format!("shape {shape:?} with strides {strides:?}")));
    }
    let size = dtype.bitsize() / 8;
    let start = offset.checked_mul(size);
    let end = span(&shape, &strides).and_then(|span| span.checked_mul(size)).and_then(|len| start?.checked_add(len));
    match start.zip(end) {
        Some((start, end)) if end <= storage.len() => {
            let strides = (!contiguous(&shape, &strides)).then_some(strides);
            Ok(Entry { dtype, range: storage.start + start..storage.start + end, strides, shape })
        }
        _ => Err(Malformed::new(
            format!("at most {} values", storage.len() / size),
            format!("shape {shape:?} with strides {strides:?} from value {offset}"),
        )),
    }
}

/// Elements from the first value to the last, both included; none if that is too large a number.
fn span(shape: &[usize], strides: &[usize]) -> Option<usize> {
    if shape.contains(&0) {
        return Some(0);
    }
    let last = |(size, stride): (&usize, &usize)| (size - 1).checked_mul(*stride);
    shape.iter().zip(strides).try_fold(1, |span: usize, dimension| span.checked_add(last(dimension)?))
}

/// Whether values lie in the order of their indices. Strides of dimensions of size 1, or of no values at all, mean nothing.
fn contiguous(shape: &[usize], strides: &[usize]) -> bool {
    let mut expected = 1usize;
    let in_order = |(size, stride): (&usize, &usize)| {
        let right = *size == 1 || *stride == expected;
        expected = expected.saturating_mul(*size);
        right
    };
    shape.contains(&0) || shape.iter().zip(strides).rev().all(in_order)
}

struct Storage<'a> {
    key: &'a str,
    dtype: Dtype,
}

impl<'a> Storage<'a> {
    /// From `("storage", class, key, device, elements)`; the older format adds what the storage is a view of.
    fn of(pickle: &Pickle<'a>, value: Value<'a>) -> Result<Self, Malformed> {
        let id = pickle.persistent(value).unwrap_or_default();
        let (class, key) = match *id {
            [Value::Text("storage"), Value::Global("torch", class), Value::Text(key), _, _] => (class, key),
            [Value::Text("storage"), Value::Global("torch", class), Value::Text(key), _, _, Value::None] => {
                (class, key)
            }
            _ => return Err(Malformed::new("a storage that is no view", value.to_string())),
        };
        let dtype = match class {
            "FloatStorage" => Dtype::F32,
            "HalfStorage" => Dtype::F16,
            "BFloat16Storage" => Dtype::BF16,
            "DoubleStorage" => Dtype::F64,
            "LongStorage" => Dtype::I64,
            "IntStorage" => Dtype::I32,
            "ShortStorage" => Dtype::I16,
            "CharStorage" => Dtype::I8,
            "ByteStorage" => Dtype::U8,
            "BoolStorage" => Dtype::BOOL,
            other => return Err(Malformed::new("a storage of floats, integers or booleans", other)),
        };
        Ok(Storage { key, dtype })
    }
}

fn size(value: Value) -> Result<usize, Malformed> {
    match value {
        Value::Int(size) => usize::try_from(size).map_err(|_| Malformed::new("a size", size.to_string())),
        other => Err(Malformed::new("a size", other.to_string())),
    }
}

fn sizes<'a>(pickle: &Pickle<'a>, value: Value<'a>) -> Result<Vec<usize>, Malformed> {
    let values = pickle.list(value).ok_or_else(|| Malformed::new("a tuple of sizes", value.to_string()))?;
    if values.len() > MAX_DIMENSIONS {
        return Err(Malformed::new(format!("at most {MAX_DIMENSIONS} dimensions"), values.len().to_string()));
    }
    values.iter().map(|value| size(*value)).collect()
}
