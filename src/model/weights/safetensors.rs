//! Tensors of a safetensors file: a JSON header says where each lies.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use safetensors::SafeTensorError as Invalid;
use safetensors::tensor::{Metadata, TensorInfo};

use super::Entry;
use super::source::Source;
use crate::files::io;
use crate::{Error, Result};

/// Bytes of the header's length.
const START: usize = 8;
/// The longest header that the format allows.
const MAX_HEADER: usize = 100_000_000;

#[derive(serde::Deserialize)]
struct Header {
    #[serde(rename = "__metadata__")]
    metadata: Option<HashMap<String, String>>,
    #[serde(flatten)]
    tensors: HashMap<String, TensorInfo>,
}

/// Finds the tensors of a file; its errors name `path`.
///
/// # Errors
/// [`Error::Safetensors`], [`Error::Io`].
pub(super) fn read(path: &Path, source: &(impl Source + ?Sized)) -> Result<BTreeMap<String, Entry>> {
    let invalid = |source| Error::Safetensors { path: path.to_path_buf(), source };
    let mut len = [0; START];
    if source.len() < START {
        return Err(invalid(Invalid::HeaderTooSmall));
    }
    source.fill(0, &mut len).map_err(io("read", path))?;
    let len = usize::try_from(u64::from_le_bytes(len)).ok().filter(|len| *len <= MAX_HEADER);
    let len = len.ok_or_else(|| invalid(Invalid::HeaderTooLarge))?;
    let data = START + len;
    if data > source.len() {
        return Err(invalid(Invalid::InvalidHeaderLength));
    }
    let header = source.read(START..data).map_err(io("read", path))?;
    let metadata = metadata(&header).map_err(invalid)?;
    if metadata.data_len() != source.len() - data {
        return Err(invalid(Invalid::MetadataIncompleteBuffer));
    }
    let entries = metadata.tensors().into_iter().map(|(name, info)| {
        let (start, end) = info.data_offsets;
        (name, Entry { dtype: info.dtype, shape: info.shape.clone(), strides: None, range: data + start..data + end })
    });
    Ok(entries.collect())
}

/// The tensors of a header, which lie one behind the other.
fn metadata(header: &[u8]) -> Result<Metadata, Invalid> {
    let text = std::str::from_utf8(header).map_err(Invalid::InvalidHeader)?;
    let Header { metadata, tensors } = serde_json::from_str(text).map_err(Invalid::InvalidHeaderDeserialization)?;
    let mut tensors: Vec<(String, TensorInfo)> = tensors.into_iter().collect();
    tensors.sort_by_key(|(_, info)| info.data_offsets);
    Metadata::new(metadata, tensors)
}
