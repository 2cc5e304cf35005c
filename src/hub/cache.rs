//! The hub's cache as all its tools lay it out: for each repository `blobs/ETAG` holds contents, `snapshots/COMMIT/FILE` links to
//! them, and `refs/REVISION` holds the commit that a branch or tag was.

use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::{Hub, is_commit};
use crate::files::{io, read_bounded, write_whole};
use crate::{Error, Result};

impl Hub {
    /// The hub and cache that the environment names, as in the hub's other tools: `HF_ENDPOINT`, `HF_HUB_CACHE` (else `hub` in
    /// `HF_HOME`, else `huggingface/hub` in `XDG_CACHE_HOME`, else in `~/.cache`), `HF_TOKEN` (else the file `HF_TOKEN_PATH`,
    /// else `token` in `HF_HOME`), `HF_HUB_OFFLINE`.
    ///
    /// # Errors
    /// [`Error::Option`] if nothing says where the cache is, or the endpoint is no address.
    pub fn from_env() -> Result<Self> {
        let variable = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
        let text = |name: &str| variable(name).and_then(|value| value.into_string().ok());
        let user_cache = || match variable("XDG_CACHE_HOME") {
            Some(dir) => Some(PathBuf::from(dir)),
            None => env::home_dir().map(|home| home.join(".cache")),
        };
        let home = variable("HF_HOME").map(PathBuf::from).or_else(|| Some(user_cache()?.join("huggingface")));
        let cache = variable("HF_HUB_CACHE").map(PathBuf::from).or_else(|| Some(home.as_ref()?.join("hub")));
        let cache =
            cache.ok_or_else(|| wrong("HF_HUB_CACHE", "a directory, where there is no home directory", "nothing"))?;
        let token_file = variable("HF_TOKEN_PATH").map(PathBuf::from).or_else(|| Some(home?.join("token")));
        let token = text("HF_TOKEN").or_else(|| small_text(&token_file?));
        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        if !["http://", "https://"].iter().any(|scheme| endpoint.starts_with(scheme)) {
            return Err(wrong("HF_ENDPOINT", "an address that begins with https:// or http://", &endpoint));
        }
        Ok(Hub {
            endpoint: endpoint.trim_end_matches('/').into(),
            cache,
            token: token.map(|token| token.trim().to_string()).filter(|token| !token.is_empty()),
            offline: variable("HF_HUB_OFFLINE").is_some_and(is_yes),
        })
    }
}

fn is_yes(value: OsString) -> bool {
    ["1", "ON", "YES", "TRUE"].iter().any(|yes| value.eq_ignore_ascii_case(yes))
}

fn wrong(option: &'static str, expected: &str, got: &str) -> Error {
    Error::Option { option, expected: expected.into(), got: got.into() }
}

/// The text of a file that has a line at most.
fn small_text(path: &Path) -> Option<String> {
    String::from_utf8(read_bounded(path, 1 << 16).ok()?).ok()
}

/// One repository's part of the cache.
pub(super) struct Snapshots {
    root: PathBuf,
    locks: PathBuf,
}

impl Snapshots {
    pub(super) fn new(cache: &Path, repository: &str) -> Self {
        let name = format!("models--{}", repository.replace('/', "--"));
        Snapshots { root: cache.join(&name), locks: cache.join(".locks").join(name) }
    }

    /// The directory of a commit's files, which need not exist.
    pub(super) fn dir(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    /// The directory of a revision, by what it was the last time.
    pub(super) fn find(&self, revision: &str) -> Option<PathBuf> {
        if is_commit(revision) {
            return Some(self.dir(revision));
        }
        let commit = small_text(&self.root.join("refs").join(revision))?;
        is_commit(commit.trim()).then(|| self.dir(commit.trim()))
    }

    /// The directory of the only commit that anything is there of, such as a first download that broke off.
    pub(super) fn only(&self) -> Option<PathBuf> {
        let mut all = fs::read_dir(self.root.join("snapshots")).ok()?.flatten();
        let first = all.next()?.path();
        all.next().is_none().then_some(first)
    }

    /// Notes which commit a branch or tag is.
    pub(super) fn remember(&self, revision: &str, commit: &str) -> Result<()> {
        if is_commit(revision) {
            return Ok(());
        }
        let path = self.root.join("refs").join(revision);
        create_parent(&path)?;
        let _lock = self.lock("refs")?;
        write_whole(&path, commit.as_bytes())
    }

    /// Where the contents with this tag belong.
    pub(super) fn blob(&self, etag: &str) -> Result<PathBuf> {
        let path = self.root.join("blobs").join(etag);
        create_parent(&path)?;
        Ok(path)
    }

    /// Waits until nobody else writes these contents (or `refs`); others wait until the file is dropped.
    pub(super) fn lock(&self, etag: &str) -> Result<File> {
        let path = self.locks.join(format!("{etag}.lock"));
        create_parent(&path)?;
        let file = File::create(&path).map_err(io("create", &path))?;
        file.lock().map_err(io("lock", &path))?;
        Ok(file)
    }
}

/// Makes `link` another name of `blob`, where it is not one already. The contents must be locked.
pub(super) fn link(blob: &Path, link: &Path) -> Result<()> {
    if link.exists() {
        return Ok(());
    }
    create_parent(link)?;
    // What may stand there all the same is a link to contents that are gone.
    _ = fs::remove_file(link);
    #[cfg(unix)]
    let linked = std::os::unix::fs::symlink(Path::new("../../blobs").join(blob.file_name().unwrap_or_default()), link);
    // Links need a privilege elsewhere.
    #[cfg(not(unix))]
    let linked = fs::hard_link(blob, link);
    linked.map_err(io("link", link))
}

fn create_parent(path: &Path) -> Result<()> {
    let parent = path.parent().unwrap_or(path);
    fs::create_dir_all(parent).map_err(io("create", parent))
}
