//! SHA-256 of files and of models.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::Result;
use crate::files::{io, open_regular};

/// The SHA-256 of bytes, in hexadecimal digits.
pub fn digest_bytes(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// The SHA-256 of a regular file, in hexadecimal digits, and its length in bytes.
///
/// # Errors
/// [`Error::Io`](crate::Error::Io).
pub fn digest_file(path: &Path) -> Result<(String, u64)> {
    let (file, _) = open_regular("read", path)?;
    digest_open(file, path)
}

fn digest_open(mut file: File, path: &Path) -> Result<(String, u64)> {
    let (mut hash, mut length) = (Sha256::new(), 0);
    let mut chunk = vec![0; 1 << 20];
    loop {
        match file.read(&mut chunk) {
            Ok(0) => return Ok((hex(&hash.finalize()), length)),
            Ok(count) => {
                hash.update(&chunk[..count]);
                length += count as u64;
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(io("read", path)(error)),
        }
    }
}

/// The version of a model: the SHA-256 of the names and digests of the files in its directory, in the order of their names. What tells
/// people about the model, `*.md`, hidden files and packs of weights, `*.pack`, do not count.
///
/// # Errors
/// [`Error::Io`](crate::Error::Io).
pub fn digest_model(directory: &Path) -> Result<String> {
    list(directory, |file| digest_file(file).map(|(digest, _)| digest))
}

/// What tells cheaply whether a model is still the same, by all appearances: as [`digest_model`], with the files' lengths and times in
/// the place of their digests.
///
/// # Errors
/// [`Error::Io`](crate::Error::Io).
pub fn stamp_model(directory: &Path) -> Result<String> {
    list(directory, stamp_file)
}

/// A file's length in bytes, and when it was changed, in nanoseconds since 1970.
///
/// # Errors
/// [`Error::Io`](crate::Error::Io).
pub fn stamp_file(file: &Path) -> Result<String> {
    let metadata = file.metadata().map_err(io("read", file))?;
    let modified = metadata.modified().ok().and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
    Ok(format!("{} {}", metadata.len(), modified.unwrap_or_default().as_nanos()))
}

/// The SHA-256 of what `tell` tells of each file of a model, and of its name.
fn list(directory: &Path, tell: impl Fn(&Path) -> Result<String>) -> Result<String> {
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(io("read", directory))? {
        let path = entry.map_err(io("read", directory))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // A pack says nothing that the weights do not, and may come and go.
        let is_pack = name.ends_with(".pack") || name.ends_with(".pack.partial");
        if path.is_file() && !name.starts_with('.') && !name.ends_with(".md") && !is_pack {
            files.push(path);
        }
    }
    files.sort();
    let mut all = Sha256::new();
    for file in &files {
        let told = tell(file)?;
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        all.update(format!("{told}  {name}\n"));
    }
    Ok(hex(&all.finalize()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_those_of_sha256sum() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("x");
        std::fs::write(&path, "hello\n").expect("written");
        // echo hello | sha256sum
        let expected = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
        assert_eq!(digest_file(&path).expect("there"), (expected.to_owned(), 6));
        assert_eq!(digest_bytes(b"hello\n"), expected);
        assert!(digest_file(dir.path()).is_err());
    }

    #[test]
    fn a_model_is_its_files_and_their_names() {
        let dir = tempfile::tempdir().expect("a directory");
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).expect("written");
        write("config.json", "{}");
        write("model.safetensors", "x");
        let first = digest_model(dir.path()).expect("there");
        let stamp = stamp_model(dir.path()).expect("there");
        for name in ["README.md", ".gitattributes", "model-0-i8.pack", "model-0-i8.pack.partial"] {
            write(name, "a card");
        }
        assert_eq!(digest_model(dir.path()).expect("there"), first);
        assert_eq!(stamp_model(dir.path()).expect("there"), stamp);
        write("config.json", "{ }");
        let second = digest_model(dir.path()).expect("there");
        assert_ne!(first, second);
        std::fs::rename(dir.path().join("config.json"), dir.path().join("other.json")).expect("renamed");
        assert_ne!(digest_model(dir.path()).expect("there"), second);
    }
}
