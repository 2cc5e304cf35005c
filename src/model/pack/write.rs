//! Writing a pack.

use std::io::Write;
use std::path::{Path, PathBuf};

use super::{Entry, Index, MAGIC};
use crate::Result;
use crate::files::{Aside, io};

/// A pack that is written aside while a model is loaded. What goes wrong is told at the end.
pub(super) struct Writer {
    path: PathBuf,
    aside: Result<Aside>,
    index: Index,
    /// Bytes written so far.
    len: usize,
}

impl Writer {
    /// Begins the pack of this name; its directory is made if it is not there.
    pub fn create(path: PathBuf, index: Index) -> Self {
        let directory = path.parent().unwrap_or(Path::new("."));
        let made = std::fs::create_dir_all(directory).map_err(io("create", directory));
        let mut writer = Writer { aside: made.and_then(|()| Aside::create(&path)), path, index, len: 0 };
        writer.write(MAGIC);
        writer
    }

    fn write(&mut self, bytes: &[u8]) {
        if let Ok(aside) = &mut self.aside {
            let written = aside.parts().1.write_all(bytes).map_err(io("write", &self.path));
            self.len += bytes.len();
            // Dropped, it is removed: a full disk is not filled any longer than it takes to notice.
            if let Err(error) = written {
                self.aside = Err(error);
            }
        }
    }

    /// Adds values.
    pub fn add(&mut self, name: String, shape: &[usize], bytes: &[u8]) {
        let entry = Entry { shape: shape.to_vec(), start: self.len, len: bytes.len(), crc: crc32fast::hash(bytes) };
        self.index.entries.insert(name, entry);
        self.write(bytes);
    }

    /// Writes the index and gives the pack its name.
    pub fn finish(mut self) -> Result<()> {
        let start = self.len as u64;
        let index =
            serde_json::to_vec(&self.index).map_err(|source| crate::Error::Json { path: self.path.clone(), source })?;
        self.write(&index);
        self.write(&[MAGIC, &start.to_le_bytes()[..], &crc32fast::hash(&index).to_le_bytes()[..]].concat());
        self.aside?.finish()
    }
}
