//! What several targets need.

pub mod targets;

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use tempfile::TempDir;

/// A model directory that a target fills anew for every input; set `TMPDIR` to a memory file system for speed.
pub struct ModelDir {
    dir: TempDir,
}

impl ModelDir {
    /// An empty directory.
    ///
    /// # Panics
    /// If there can be none.
    pub fn new() -> Self {
        ModelDir { dir: tempfile::tempdir().expect("a temporary directory") }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Writes a file, or removes it for `None`.
    ///
    /// # Panics
    /// If that fails.
    pub fn set(&self, name: &str, content: Option<&[u8]>) {
        let path = self.dir.path().join(name);
        match content {
            // A new file and not an old one cut short: an earlier input's may still be open.
            Some(content) => {
                let _ = std::fs::remove_file(&path);
                std::fs::write(path, content).expect("the file can be written");
            }
            None => drop(std::fs::remove_file(path)),
        }
    }
}

impl Default for ModelDir {
    fn default() -> Self {
        Self::new()
    }
}

/// A seed file's content.
///
/// # Panics
/// If it is missing.
pub fn seed(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(name)).expect("the seed is there")
}

/// The demo model's directory.
pub fn demo_model() -> &'static Path {
    static PATH: LazyLock<PathBuf> =
        LazyLock::new(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/m30k-en-de"));
    &PATH
}

/// Splits an input at the byte 0xff, which no text of UTF-8 holds, into at most `N` parts; those that lack are `None`.
pub fn parts<const N: usize>(data: &[u8]) -> [Option<&[u8]>; N] {
    let mut parts = data.splitn(N, |byte| *byte == 0xff);
    std::array::from_fn(|_| parts.next())
}
