//! Models by name from a Hugging Face hub, through the cache that the hub's other tools use.
//!
//! [`Hub::fetch`] asks the hub which commit a revision is and which files it has, downloads those that a translation model needs
//! and the cache lacks, and gives the directory where they lie, ready for [`Translator::open`](crate::Translator::open). A file
//! enters that directory whole and checked, never in parts; what a broken connection left is continued the next time.

mod cache;
mod checksum;
mod client;

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::{Error, Result, read};
use cache::Snapshots;
pub use checksum::damaged;
use client::{Client, Failure};

/// A model's name on the hub, `owner/name`, and a branch, tag or commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelId {
    repository: String,
    revision: String,
}

impl ModelId {
    /// The id `owner/name` or `owner/name@revision`; without a revision it is `main`.
    ///
    /// # Errors
    /// [`Error::Option`] if it is not of this form.
    pub fn parse(id: &str) -> Result<Self> {
        let (repository, revision) = id.split_once('@').unwrap_or((id, "main"));
        let wrong =
            |option, expected: &str, got: &str| Error::Option { option, expected: expected.into(), got: got.into() };
        if !repository.split_once('/').is_some_and(|(owner, name)| is_name(owner) && is_name(name)) {
            return Err(wrong("model", "an existing directory or a hub id owner/name", id));
        }
        // It becomes part of paths and addresses.
        if !revision.split('/').all(is_name) {
            return Err(wrong("revision", "a branch, tag or commit", revision));
        }
        Ok(ModelId { repository: repository.into(), revision: revision.into() })
    }

    /// The same model at another revision.
    ///
    /// # Errors
    /// [`Error::Option`] if that cannot be the name of one.
    pub fn at(&self, revision: &str) -> Result<Self> {
        ModelId::parse(&format!("{}@{revision}", self.repository))
    }
}

impl fmt::Display for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.repository, self.revision)
    }
}

/// Whether a text is a file name on every system and means itself in an address.
fn is_name(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    !text.is_empty() && text.len() <= 128 && text.chars().all(plain) && !text.starts_with('.') && !text.contains("..")
}

/// Whether a text is a commit's full name.
fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Hears how a download goes.
pub trait Progress {
    /// A file of `size` bytes begins, `done` of which are there from an earlier try.
    fn start(&mut self, file: &str, size: u64, done: u64);
    /// So many bytes of it have come.
    fn advance(&mut self, bytes: u64);
    /// Something that a user should know and that is not an error.
    fn note(&mut self, message: &str);
}

/// Tells nobody.
impl Progress for () {
    fn start(&mut self, _file: &str, _size: u64, _done: u64) {}
    fn advance(&mut self, _bytes: u64) {}
    fn note(&mut self, _message: &str) {}
}

/// Where models come from and where they are kept.
#[derive(Clone)]
pub struct Hub {
    /// Address of the hub, without a slash at its end.
    pub endpoint: String,
    /// The cache directory.
    pub cache: PathBuf,
    /// Sent to the endpoint, and to no host that it refers to.
    pub token: Option<String>,
    /// Whether the network must not be used.
    pub offline: bool,
}

/// Without the token.
impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Hub { endpoint, cache, token, offline } = self;
        let token = token.as_ref().map(|_| "...");
        f.debug_struct("Hub")
            .field("endpoint", endpoint)
            .field("cache", cache)
            .field("token", &token)
            .field("offline", offline)
            .finish()
    }
}

/// What the hub says about a revision.
#[derive(Deserialize)]
struct Revision {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

/// The part of a shard index that names the shards.
#[derive(Deserialize)]
struct Index {
    weight_map: std::collections::BTreeMap<String, String>,
}

/// [`Hub::fetch`] with [`Hub::from_env`]: the directory of the model `id` (`owner/name` or `owner/name@revision`).
///
/// # Errors
/// [`Error::Option`] for an id of another form, and those of [`Hub::fetch`].
pub fn fetch(id: &str, progress: &mut dyn Progress) -> Result<PathBuf> {
    Hub::from_env()?.fetch(&ModelId::parse(id)?, progress)
}

impl Hub {
    /// The directory of a model's files, downloaded where they are not in the cache.
    ///
    /// A commit that is in the cache needs no network. Offline, or if the hub cannot be reached or is out of order, a revision
    /// is what it was the last time; in the latter cases `progress` is told so.
    ///
    /// # Errors
    /// [`Error::Hub`] with the reason: the hub cannot be reached and the cache lacks the model, the repository, revision or a file
    /// does not exist or is not for this user, or a download broke off; [`Error::Io`] for the cache.
    pub fn fetch(&self, id: &ModelId, progress: &mut dyn Progress) -> Result<PathBuf> {
        let snapshots = Snapshots::new(&self.cache, &id.repository);
        let cached = snapshots.find(&id.revision).filter(|dir| missing_file(dir).is_none());
        if let Some(dir) = cached.as_ref().filter(|_| self.offline || is_commit(&id.revision)) {
            return Ok(dir.clone());
        }
        if self.offline {
            let expected = format!("the model in the cache {}, as the hub may not be asked", self.cache.display());
            let begun = snapshots.find(&id.revision).filter(|dir| dir.is_dir()).or_else(|| snapshots.only());
            let missing = begun.and_then(|dir| missing_file(&dir));
            let got = missing.map_or("none".to_owned(), |file| format!("a part of it, without {file}"));
            return Err(error(id, "", &expected, &got));
        }
        let client = Client::new(self);
        let revision = match revision(&client, id) {
            Ok(revision) => revision,
            Err(Failure::Unavailable { expected, got }) => {
                let dir = cached.ok_or_else(|| error(id, "", &expected, &got))?;
                progress.note(&format!("{id}: {got}: using the files of an earlier download"));
                return Ok(dir);
            }
            Err(failure) => return Err(failure.into_error(id, "")),
        };
        let dir = snapshots.dir(&revision.sha);
        let names = revision.siblings.into_iter().map(|sibling| sibling.rfilename).collect();
        let mut get = |file: &str| match dir.join(file).exists() {
            true => Ok(()),
            false => {
                let path = format!("{}/resolve/{}/{file}", id.repository, revision.sha);
                let got = client.download(&path, file, &snapshots, &dir.join(file), progress);
                got.map_err(|failure| failure.into_error(id, file))
            }
        };
        let missing = |file| error(id, "", &format!("a translation model with {file}"), "none in the repository");
        let wanted = Wanted::choose(&names, false).map_err(missing)?;
        wanted.first.iter().try_for_each(|file| get(file))?;
        wanted.weights(&dir)?.iter().try_for_each(|file| get(file))?;
        snapshots.remember(&id.revision, &revision.sha)?;
        Ok(dir)
    }
}

/// Asks which commit a revision is and which files it has.
fn revision(client: &Client, id: &ModelId) -> Result<Revision, Failure> {
    let path = format!("api/models/{}/revision/{}", id.repository, id.revision.replace('/', "%2F"));
    let body = client.get(&path)?;
    let invalid = |got: String| Failure::refused("a list of the repository's files", &got);
    let revision: Revision = serde_json::from_slice(&body).map_err(|error| invalid(error.to_string()))?;
    match is_commit(&revision.sha) {
        true => Ok(revision),
        false => Err(invalid(format!("commit {:?}", revision.sha))),
    }
}

/// Which of a repository's files a translation model needs.
struct Wanted {
    /// All but weights, which come last: where they are, everything is.
    first: Vec<&'static str>,
    /// The checkpoint or its index.
    weights: &'static str,
}

/// Weights in the order of preference, each with the index of its shards.
const WEIGHTS: [&str; 4] =
    ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"];

/// Files beside the weights that some family has, in the order in which they are fetched.
const SMALL: [&str; 14] = [
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "source.spm",
    "target.spm",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "source_vocab.json",
    "target_vocab.json",
    "merges.txt",
    "tokenizer.json",
];

impl Wanted {
    /// What is wanted of the files with these names, of a Marian model if that is known; an error says what is missing.
    fn choose(names: &BTreeSet<String>, is_marian: bool) -> Result<Self, String> {
        let has = |file: &str| names.contains(file);
        let need = |files: &[&str]| match files.iter().any(|file| has(file)) {
            true => Ok(()),
            false => Err(files.join(" or ")),
        };
        need(&["config.json"])?;
        // ByT5 has no pieces, but a configuration.
        let other =
            ["tokenizer.json", "spiece.model", "sentencepiece.bpe.model", "merges.txt", "tokenizer_config.json"];
        let is_marian = is_marian || has("source.spm") || has("target.spm");
        if is_marian || !other.iter().any(|file| has(file)) {
            need(&["source.spm"])?;
            need(&["target.spm"])?;
            need(&["vocab.json", "source_vocab.json"])?;
        }
        let weights = WEIGHTS.into_iter().find(|file| has(file)).ok_or("model.safetensors or pytorch_model.bin")?;
        let mut first: Vec<&str> = SMALL.into_iter().filter(|file| has(file)).collect();
        first.extend(Some(weights).filter(|file| file.ends_with(".json")));
        Ok(Wanted { first, weights })
    }

    /// The files of weights, the index read from `dir`.
    fn weights(&self, dir: &Path) -> Result<Vec<String>> {
        if !self.weights.ends_with(".json") {
            return Ok(vec![self.weights.to_string()]);
        }
        let path = dir.join(self.weights);
        let index: Index = read::json(&path)?;
        index.shards().map_err(|file| {
            let expected = "file names without directories".into();
            Error::Config { path, field: "weight_map".into(), expected, got: file }
        })
    }
}

impl Index {
    /// The files of shards, or a name that leads elsewhere.
    fn shards(self) -> Result<Vec<String>, String> {
        let shards: BTreeSet<String> = self.weight_map.into_values().collect();
        match shards.iter().find(|shard| !is_name(shard)) {
            Some(shard) => Err(shard.clone()),
            None => Ok(shards.into_iter().collect()),
        }
    }
}

/// What a directory of the cache lacks of a model, if anything.
fn missing_file(dir: &Path) -> Option<String> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Some("its directory".into()) };
    // A link whose target is gone does not count.
    let (present, broken): (Vec<_>, Vec<_>) = entries.flatten().partition(|entry| entry.path().exists());
    let name = |entry: &std::fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
    if let Some(broken) = broken.iter().map(name).find(|name| SMALL.contains(&name.as_str())) {
        return Some(broken);
    }
    let names: BTreeSet<String> = present.iter().map(name).collect();
    let config: Option<serde_json::Value> = read::json(&dir.join("config.json")).ok();
    let is_marian = config.is_some_and(|config| config["model_type"] == "marian");
    match Wanted::choose(&names, is_marian).map(|wanted| (wanted.weights(dir), wanted.weights)) {
        Err(missing) => Some(missing),
        Ok((Err(_), index)) => Some(format!("a readable {index}")),
        Ok((Ok(shards), _)) => shards.into_iter().find(|file| !names.contains(file)),
    }
}

fn error(id: &ModelId, file: &str, expected: &str, got: &str) -> Error {
    Error::Hub { id: id.to_string(), file: file.into(), expected: expected.into(), got: got.into() }
}

/// What the fuzz targets reach of this module.
#[doc(hidden)]
pub mod fuzzing {
    use super::{Index, Revision, Wanted};

    /// The files that would be fetched of a repository with this list, and of a checkpoint with this index.
    pub fn files(list: &[u8], index: &[u8]) -> Vec<String> {
        let names = serde_json::from_slice::<Revision>(list).map(|revision| match super::is_commit(&revision.sha) {
            true => revision.siblings.into_iter().map(|sibling| sibling.rfilename).collect(),
            false => std::collections::BTreeSet::new(),
        });
        let wanted = names.ok().and_then(|names| Wanted::choose(&names, false).ok());
        let shards = serde_json::from_slice::<Index>(index).ok().and_then(|index| index.shards().ok());
        let first = wanted.map(|wanted| wanted.first).unwrap_or_default();
        first.into_iter().map(str::to_owned).chain(shards.unwrap_or_default()).collect()
    }

    pub use super::client::headers;
}
