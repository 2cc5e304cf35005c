//! Tensors of a safetensors file: a JSON header says where each lies.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::SafeTensors;

use super::Entry;
use crate::{Error, Result};

/// Finds the tensors of the file `bytes`; its errors name `path`.
///
/// # Errors
/// [`Error::Safetensors`].
pub(super) fn read(path: &Path, bytes: &[u8]) -> Result<BTreeMap<String, Entry>> {
    let invalid = |source| Error::Safetensors { path: path.to_path_buf(), source };
    let view = SafeTensors::deserialize(bytes).map_err(invalid)?;
    let entries = view.iter().map(|(name, tensor)| {
        let start = tensor.data().as_ptr() as usize - bytes.as_ptr() as usize;
        let range = start..start + tensor.data().len();
        (name.to_string(), Entry { dtype: tensor.dtype(), shape: tensor.shape().to_vec(), strides: None, range })
    });
    Ok(entries.collect())
}
