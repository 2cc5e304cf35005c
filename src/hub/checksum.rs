//! Checksums of contents, which the hub gives as their tags: SHA-256 of large files, git's SHA-1 of others.

use std::fs::File;
use std::io::{Read, Result, Seek};
use std::path::{Path, PathBuf};

use sha1::Sha1;
use sha2::{Digest, Sha256};

fn is_hex(tag: &str, len: usize) -> bool {
    tag.len() == len && tag.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// Whether a tag is a SHA-256.
pub(super) fn is_sha256(tag: &str) -> bool {
    is_hex(tag, 64)
}

/// The checksum of a file, of the kind that the tag is of; none for a tag that is no checksum.
pub(super) fn sum(file: &mut File, tag: &str) -> Result<Option<String>> {
    match tag {
        _ if is_sha256(tag) => hash(Sha256::new(), file).map(Some),
        // As git names a file's contents: they follow a header.
        _ if is_hex(tag, 40) => {
            let header = format!("blob {}\0", file.metadata()?.len());
            hash(Sha1::new_with_prefix(header), file).map(Some)
        }
        _ => Ok(None),
    }
}

fn hash(mut sum: impl Digest, file: &mut File) -> Result<String> {
    let mut buffer = vec![0; 1 << 16];
    file.rewind()?;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(sum.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
            count => sum.update(&buffer[..count]),
        }
    }
}

/// The files of a model's directory in the cache whose contents are not those that their tags name: the blobs themselves.
pub fn damaged(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = dir.read_dir() else { return Vec::new() };
    let blob = |path: PathBuf| path.read_link().ok().map(|target| dir.join(target));
    let blobs = entries.flatten().filter_map(|entry| blob(entry.path()));
    let is_damaged = |blob: &PathBuf| {
        let tag = blob.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let sum = File::open(blob).and_then(|mut file| sum(&mut file, &tag));
        // What cannot be read is no better.
        sum.map_or(true, |sum| sum.is_some_and(|sum| sum != tag))
    };
    blobs.filter(is_damaged).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_those_of_git_and_of_large_files() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("x");
        std::fs::write(&path, "hello\n").expect("written");
        let mut file = File::open(&path).expect("there");
        // echo hello | git hash-object --stdin; echo hello | sha256sum
        let git = "ce013625030ba8dba906f756967f9e9ca394464a";
        let sha256 = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
        for tag in [git, sha256] {
            assert_eq!(sum(&mut file, tag).expect("read").as_deref(), Some(tag));
        }
        assert_eq!(sum(&mut file, "W5").expect("read"), None);
    }

    #[cfg(unix)]
    #[test]
    fn a_flipped_bit_in_the_cache_is_found() {
        let dir = tempfile::tempdir().expect("a directory");
        let blob = dir.path().join("ce013625030ba8dba906f756967f9e9ca394464a");
        let snapshot = dir.path().join("snapshot");
        std::fs::create_dir(&snapshot).expect("created");
        std::os::unix::fs::symlink(
            Path::new("..").join(blob.file_name().expect("a name")),
            snapshot.join("config.json"),
        )
        .expect("linked");
        std::fs::write(&blob, "hello\n").expect("written");
        assert!(damaged(&snapshot).is_empty());
        std::fs::write(&blob, "hellp\n").expect("written");
        let found = damaged(&snapshot);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].canonicalize().expect("there"), blob.canonicalize().expect("there"));
    }
}
