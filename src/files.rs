//! Files that are read within bounds and written whole or not at all.

use std::ffi::OsString;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// The most bytes of a configuration, an index of shards or another document of a model that is parsed as JSON.
pub const MAX_CONFIG: u64 = 16 << 20;
/// The most bytes of a vocabulary or a tokenizer.
pub const MAX_VOCABULARY: u64 = 256 << 20;

/// Makes an error of an operation on a file.
pub fn io(operation: &'static str, path: &Path) -> impl Fn(std::io::Error) -> Error {
    move |source| Error::Io { operation, path: path.to_path_buf(), source }
}

/// Opens a regular file to be read; its errors name `operation`. Anything else is refused by its kind: opening a FIFO would wait for a writer.
///
/// # Errors
/// [`Error::Io`].
pub fn open_regular(operation: &'static str, path: &Path) -> Result<(File, Metadata)> {
    let refuse = |metadata: &Metadata| match kind(metadata) {
        None => Ok(()),
        Some("a directory") => Err(io(operation, path)(ErrorKind::IsADirectory.into())),
        Some(kind) => {
            let reason = format!("expected a regular file, got {kind}");
            Err(io(operation, path)(std::io::Error::new(ErrorKind::InvalidInput, reason)))
        }
    };
    refuse(&path.metadata().map_err(io(operation, path))?)?;
    let file = File::open(path).map_err(io(operation, path))?;
    let metadata = file.metadata().map_err(io(operation, path))?;
    refuse(&metadata)?;
    Ok((file, metadata))
}

/// What a file is that is not regular.
fn kind(metadata: &Metadata) -> Option<&'static str> {
    let file_type = metadata.file_type();
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        let kinds = [
            (file_type.is_fifo(), "a FIFO"),
            (file_type.is_socket(), "a socket"),
            (file_type.is_char_device() || file_type.is_block_device(), "a device"),
        ];
        if let Some((_, kind)) = kinds.into_iter().find(|(is, _)| *is) {
            return Some(kind);
        }
    }
    match file_type.is_file() {
        true => None,
        false if file_type.is_dir() => Some("a directory"),
        false => Some("another kind of file"),
    }
}

/// Reads a regular file of at most `most` bytes.
///
/// # Errors
/// [`Error::Io`], also for a longer file, of which nothing is kept in memory.
pub fn read_bounded(path: &Path, most: u64) -> Result<Vec<u8>> {
    let (file, metadata) = open_regular("read", path)?;
    let too_long = |got: String| {
        let reason = format!("expected at most {most} bytes, got {got}");
        Err(io("read", path)(std::io::Error::new(ErrorKind::FileTooLarge, reason)))
    };
    if metadata.len() > most {
        return too_long(metadata.len().to_string());
    }
    let mut bytes = Vec::with_capacity(metadata.len() as usize);
    // It may grow meanwhile.
    file.take(most + 1).read_to_end(&mut bytes).map_err(io("read", path))?;
    match bytes.len() as u64 > most {
        true => too_long("more".into()),
        false => Ok(bytes),
    }
}

/// What tells whether a file has been written to: its size and times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    size: u64,
    modified: Option<std::time::SystemTime>,
    /// Seconds and nanoseconds of the last change of anything, which no program can set back.
    changed: (i64, i64),
}

impl Stamp {
    /// That of an open file.
    pub fn of(metadata: &Metadata) -> Self {
        #[cfg(unix)]
        let changed = {
            use std::os::unix::fs::MetadataExt;
            (metadata.ctime(), metadata.ctime_nsec())
        };
        #[cfg(not(unix))]
        let changed = (0, 0);
        Stamp { size: metadata.len(), modified: metadata.modified().ok(), changed }
    }
}

/// A file's place on disk: two names with one place are one file.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Place {
    /// Device and inode of a file that is there.
    There(u64, u64),
    /// The directory, and the name, of one that is not.
    Missing(PathBuf, OsString),
}

impl Place {
    /// The place of a path, links followed; `None` where the directory does not exist either, or it is no regular file: what is
    /// written to a pipe or a terminal destroys nothing.
    pub fn of(path: &Path) -> Option<Self> {
        match path.metadata() {
            Ok(metadata) => metadata.is_file().then(|| Self::there(&metadata, path))?,
            Err(_) => {
                let path = follow(path);
                let directory = parent(&path).canonicalize().ok()?;
                Some(Place::Missing(directory, path.file_name()?.to_owned()))
            }
        }
    }

    #[cfg(unix)]
    fn there(metadata: &Metadata, _path: &Path) -> Option<Self> {
        use std::os::unix::fs::MetadataExt;
        Some(Place::There(metadata.dev(), metadata.ino()))
    }

    #[cfg(not(unix))]
    fn there(_metadata: &Metadata, path: &Path) -> Option<Self> {
        let path = path.canonicalize().ok()?;
        Some(Place::Missing(parent(&path).to_path_buf(), path.file_name()?.to_owned()))
    }
}

/// The directory of a path.
fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// More links in a row than this are a circle.
const MAX_LINKS: usize = 40;

/// The path that symbolic links lead to, whether there is anything or not.
fn follow(path: &Path) -> PathBuf {
    let mut path = path.to_path_buf();
    for _ in 0..MAX_LINKS {
        match path.read_link() {
            Ok(target) => path = parent(&path).join(target),
            Err(_) => break,
        }
    }
    path
}

/// The name under which a file is written until it is whole.
pub fn partial(path: &Path) -> PathBuf {
    follow(path).with_added_extension("partial")
}

/// A file that is written under the name [`partial`] and gets its own when it is whole: a reader, and a crash at any moment, finds
/// the old contents or the new. Nobody else writes it meanwhile.
#[derive(Debug)]
pub struct Aside {
    path: PathBuf,
    partial: PathBuf,
    file: File,
    /// Whether what is there stays when this is dropped.
    keep: bool,
}

impl Aside {
    /// Creates the file aside, empty. If it does not become whole, it is removed again.
    ///
    /// # Errors
    /// [`Error::Io`], also if another process is writing it.
    pub fn create(path: &Path) -> Result<Self> {
        let mut aside = Self::open(path)?;
        aside.keep = false;
        aside.file.set_len(0).map_err(io("create", &aside.partial))?;
        Ok(aside)
    }

    /// Opens the file aside with what an earlier try has left, or creates it. If it does not become whole, it is kept.
    ///
    /// # Errors
    /// As [`Aside::create`].
    pub fn open(path: &Path) -> Result<Self> {
        let path = follow(path);
        let partial = partial(&path);
        if let Some(kind) = partial.metadata().ok().as_ref().and_then(kind) {
            let reason = format!("expected a regular file, got {kind}");
            return Err(io("create", &partial)(std::io::Error::new(ErrorKind::InvalidInput, reason)));
        }
        let old = path.metadata().ok();
        if old.as_ref().is_some_and(|old| old.permissions().readonly()) {
            // A new file of that name would need the directory's permission only.
            return Err(io("create", &path)(ErrorKind::PermissionDenied.into()));
        }
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&partial);
        let file = opened.map_err(io("create", &partial))?;
        lock(&file, &partial)?;
        // Whoever had the lock before may have given the file its own name.
        let own = file.metadata().ok().and_then(|metadata| Place::there(&metadata, &partial));
        if own != Place::of(&partial) {
            return Err(in_use(&partial));
        }
        // As far as it can be had, the access that the old file gave.
        if let Some(old) = old {
            _ = file.set_permissions(old.permissions());
        }
        Ok(Aside { path, partial, file, keep: true })
    }

    /// The name that it has for the time being, and the file.
    pub fn parts(&mut self) -> (&Path, &mut File) {
        (&self.partial, &mut self.file)
    }

    /// Gives the file its own name, once it has reached the disk.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn finish(mut self) -> Result<()> {
        self.file.sync_all().map_err(io("write", &self.partial))?;
        std::fs::rename(&self.partial, &self.path).map_err(io("write", &self.path))?;
        self.keep = true;
        // The new name is safe once the directory is.
        #[cfg(unix)]
        File::open(parent(&self.path)).and_then(|directory| directory.sync_all()).map_err(io("write", &self.path))?;
        Ok(())
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        if !self.keep {
            _ = std::fs::remove_file(&self.partial);
        }
    }
}

/// Locks a file that one process may write at a time; the lock goes with the file.
///
/// # Errors
/// [`Error::Io`] if another one has it.
pub fn lock(file: &File, path: &Path) -> Result<()> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(std::fs::TryLockError::WouldBlock) => Err(in_use(path)),
        // Not every file system has locks.
        Err(std::fs::TryLockError::Error(error)) if error.kind() == ErrorKind::Unsupported => Ok(()),
        Err(std::fs::TryLockError::Error(error)) => Err(io("lock", path)(error)),
    }
}

fn in_use(path: &Path) -> Error {
    io("lock", path)(std::io::Error::new(ErrorKind::ResourceBusy, "another process is writing it"))
}

/// Writes a file in one piece.
///
/// # Errors
/// [`Error::Io`]. What was there before is there still.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut aside = Aside::create(path)?;
    aside.file.write_all(bytes).map_err(io("write", &aside.partial))?;
    aside.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(result: Result<impl std::fmt::Debug>) -> String {
        result.expect_err("refused").to_string()
    }

    #[test]
    fn what_is_no_regular_file_is_refused_by_its_kind() {
        let dir = tempfile::tempdir().expect("a directory");
        assert!(reason(read_bounded(dir.path(), 9)).contains("directory"));
        assert!(reason(read_bounded(&dir.path().join("x"), 9)).starts_with("read "));
        #[cfg(unix)]
        {
            let fifo = dir.path().join("fifo");
            let made = std::process::Command::new("mkfifo").arg(&fifo).status().expect("mkfifo starts");
            assert!(made.success());
            assert!(reason(read_bounded(&fifo, 9)).ends_with("fifo: expected a regular file, got a FIFO"));
            assert!(reason(read_bounded(Path::new("/dev/zero"), 9)).ends_with("got a device"));
            assert!(
                reason(Aside::create(&dir.path().join("x")).and_then(|_| {
                    std::fs::rename(&fifo, dir.path().join("x.partial")).expect("renamed");
                    Aside::create(&dir.path().join("x"))
                }))
                .ends_with("x.partial: expected a regular file, got a FIFO")
            );
        }
    }

    #[test]
    fn a_file_longer_than_its_bound_is_not_read() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("x");
        File::create(&path).and_then(|file| file.set_len(1 << 40)).expect("a sparse file");
        assert!(
            reason(read_bounded(&path, MAX_CONFIG)).ends_with("expected at most 16777216 bytes, got 1099511627776")
        );
        std::fs::write(&path, "1234").expect("written");
        assert_eq!(read_bounded(&path, 4).expect("it fits"), b"1234");
        assert!(reason(read_bounded(&path, 3)).ends_with("expected at most 3 bytes, got 4"));
    }

    #[test]
    fn names_of_one_file_have_one_place() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("a"), "x").expect("written");
        std::fs::hard_link(path("a"), path("hard")).expect("linked");
        assert_eq!(Place::of(&path("a")), Place::of(&path("hard")));
        assert_eq!(Place::of(&path("b")), Place::of(&path("./b")));
        assert_ne!(Place::of(&path("b")), Place::of(&path("a")));
        assert_eq!(Place::of(&path("no/b")), None);
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink("a", path("soft")).expect("linked");
            std::os::unix::fs::symlink("b", path("dangling")).expect("linked");
            assert_eq!(Place::of(&path("soft")), Place::of(&path("a")));
            assert_eq!(Place::of(&path("dangling")), Place::of(&path("b")));
            assert_eq!(Place::of(Path::new("/dev/null")), None);
        }
    }

    #[test]
    fn a_file_is_whole_or_as_it_was() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("x");
        write_whole(&path, b"old").expect("written");
        {
            let mut aside = Aside::create(&path).expect("created");
            aside.file.write_all(b"ne").expect("written");
            assert!(reason(Aside::create(&path)).ends_with("x.partial: another process is writing it"));
            assert!(reason(write_whole(&path, b"other")).starts_with("lock "));
        }
        assert_eq!(std::fs::read(&path).expect("there"), b"old");
        assert_eq!(std::fs::read_dir(dir.path()).expect("there").count(), 1);
        let mut aside = Aside::open(&path).expect("created");
        aside.file.write_all(b"new").expect("written");
        drop(aside);
        assert_eq!(std::fs::read(partial(&path)).expect("kept"), b"new");
        Aside::open(&path).expect("opened").finish().expect("renamed");
        assert_eq!(std::fs::read(&path).expect("there"), b"new");
    }

    #[cfg(unix)]
    #[test]
    fn links_stay_links_and_access_stays_as_it_was() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("a directory");
        let (path, link) = (dir.path().join("x"), dir.path().join("link"));
        write_whole(&path, b"old").expect("written");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).expect("ours");
        std::os::unix::fs::symlink("x", &link).expect("linked");
        write_whole(&link, b"new").expect("written");
        assert!(link.is_symlink());
        assert_eq!(std::fs::read(&path).expect("there"), b"new");
        assert_eq!(path.metadata().expect("there").permissions().mode() & 0o777, 0o600);
    }
}
