//! Reading a model's files, with a word for what is often there in their place.

use std::path::Path;

use serde::de::DeserializeOwned;

use crate::files::{MAX_CONFIG, MAX_VOCABULARY, read_bounded};
use crate::{Error, Result};

/// How the text file begins that Git keeps in place of a large one
/// (<https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md>).
const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";

/// As many bytes as it takes to know such a file.
pub const POINTER_BYTES: usize = LFS_POINTER.len();

/// Refuses the contents of `path` if they are a Git LFS pointer.
///
/// # Errors
/// [`Error::LfsPointer`].
pub fn refuse_pointer(path: &Path, bytes: &[u8]) -> Result<()> {
    match bytes.starts_with(LFS_POINTER) {
        true => Err(Error::LfsPointer { path: path.to_path_buf() }),
        false => Ok(()),
    }
}

/// The contents of a file.
///
/// # Errors
/// [`Error::Io`], or [`Error::LfsPointer`] for a file that Git LFS has not fetched.
pub fn bytes(path: &Path) -> Result<Vec<u8>> {
    // A vocabulary may be large, other files of JSON are small.
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let is_small = name.ends_with("config.json") || name.ends_with(".index.json");
    let bytes = read_bounded(path, if is_small { MAX_CONFIG } else { MAX_VOCABULARY })?;
    refuse_pointer(path, &bytes)?;
    Ok(bytes)
}

/// The value of a JSON file.
///
/// # Errors
/// As [`bytes`], and [`Error::Json`].
pub fn json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    serde_json::from_slice(&bytes(path)?).map_err(|source| Error::Json { path: path.into(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pointer_is_called_that() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("config.json");
        std::fs::write(&path, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n").expect("written");
        let error = json::<serde_json::Value>(&path).expect_err("no JSON");
        assert_eq!(error.kind(), "lfs_pointer");
        let message = error.to_string();
        assert!(message.contains("config.json") && message.contains("git lfs pull"), "{message}");
        std::fs::write(&path, "{\"a\": 1}").expect("written");
        assert_eq!(json::<serde_json::Value>(&path).expect("JSON")["a"], 1);
    }
}
