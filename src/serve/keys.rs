//! Who may ask, and for how much: the file of keys, which holds their hashes alone.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::failure::Failure;
use crate::{Error, Result};

/// A key as the file has it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    /// The key's SHA-256, in hexadecimal digits.
    sha256: String,
    #[serde(default)]
    admin: bool,
    models: Option<Vec<String>>,
    characters_per_minute: Option<u64>,
    /// Sentences under way at once.
    sentences: Option<usize>,
}

/// A key that is known.
#[derive(Debug)]
pub(super) struct Key {
    pub name: String,
    pub is_admin: bool,
    digest: [u8; 32],
    models: Option<Vec<String>>,
    characters_per_minute: Option<u64>,
    sentences: Option<usize>,
    under_way: AtomicUsize,
    /// Characters of all its requests.
    pub used: AtomicU64,
    lately: Mutex<VecDeque<(Instant, u64)>>,
}

/// Sentences of a key that are under way; dropped, they are no more.
#[derive(Debug)]
pub(super) struct UnderWay {
    key: Arc<Key>,
    count: usize,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.key.under_way.fetch_sub(self.count, Ordering::AcqRel);
    }
}

const MINUTE: Duration = Duration::from_secs(60);

/// The keys of a file: a JSON array of objects.
pub(super) fn read(path: &Path) -> Result<Vec<Arc<Key>>> {
    let text = std::fs::read_to_string(path);
    let text = text.map_err(|source| Error::Io { operation: "read", path: path.to_path_buf(), source })?;
    let entries: Vec<Entry> =
        serde_json::from_str(&text).map_err(|source| Error::Json { path: path.to_path_buf(), source })?;
    let wrong = |field: String, expected: &str, got: String| Error::Config {
        path: path.to_path_buf(),
        field,
        expected: expected.to_owned(),
        got,
    };
    if entries.is_empty() {
        return Err(wrong("keys".to_owned(), "at least one", "none".to_owned()));
    }
    let mut keys: Vec<Arc<Key>> = Vec::new();
    for (at, entry) in entries.into_iter().enumerate() {
        let Entry { name, sha256, admin, models, characters_per_minute, sentences } = entry;
        // What stands there is not repeated: it may be the key itself.
        let digest = digest(&sha256).ok_or_else(|| {
            wrong(format!("{at}.sha256"), "64 hexadecimal digits", format!("{} characters", sha256.chars().count()))
        })?;
        if keys.iter().any(|other| other.name == name) {
            return Err(wrong(format!("{at}.name"), "a name of its own", format!("{name:?} again")));
        }
        keys.push(Arc::new(Key {
            name,
            is_admin: admin,
            digest,
            models,
            characters_per_minute,
            sentences,
            under_way: AtomicUsize::new(0),
            used: AtomicU64::new(0),
            lately: Mutex::default(),
        }));
    }
    Ok(keys)
}

fn digest(hexadecimal: &str) -> Option<[u8; 32]> {
    let bytes = hexadecimal.as_bytes();
    if bytes.len() != 64 {
        return None;
    }
    let mut digest = [0; 32];
    for (byte, pair) in digest.iter_mut().zip(bytes.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(digest)
}

/// The key that was shown. All are compared, each to its last byte, so that the time tells nothing.
pub(super) fn find(keys: &[Arc<Key>], shown: &str) -> Option<Arc<Key>> {
    let shown = Sha256::digest(shown.as_bytes());
    let mut found = None;
    for key in keys {
        let difference = key.digest.iter().zip(shown.iter()).fold(0, |all, (a, b)| all | (a ^ b));
        if std::hint::black_box(difference) == 0 {
            found = Some(key.clone());
        }
    }
    found
}

impl Key {
    /// Whether the key is good for a model.
    pub fn may_use(&self, model: &str) -> bool {
        self.models.as_ref().is_none_or(|models| models.iter().any(|own| own == model))
    }

    /// Charges the key with a request.
    ///
    /// # Errors
    /// 429, with the time after which there is room.
    pub fn charge(self: &Arc<Self>, characters: u64, sentences: usize) -> Result<UnderWay, Failure> {
        if let Some(most) = self.sentences {
            let before = self.under_way.fetch_add(sentences, Ordering::AcqRel);
            if before + sentences > most {
                self.under_way.fetch_sub(sentences, Ordering::AcqRel);
                let message = format!(
                    "admit the request: expected at most {most} sentences of this key under way, got {before} and {sentences} more"
                );
                return Err(too_much(message, Duration::from_secs(1)));
            }
        } else {
            self.under_way.fetch_add(sentences, Ordering::AcqRel);
        }
        let under_way = UnderWay { key: self.clone(), count: sentences };
        self.charge_characters(characters, Instant::now())?;
        self.used.fetch_add(characters, Ordering::Relaxed);
        Ok(under_way)
    }

    fn charge_characters(&self, characters: u64, now: Instant) -> Result<(), Failure> {
        let Some(most) = self.characters_per_minute else { return Ok(()) };
        let mut lately = self.lately.lock().unwrap_or_else(PoisonError::into_inner);
        while lately.front().is_some_and(|(when, _)| now.duration_since(*when) >= MINUTE) {
            lately.pop_front();
        }
        let mut sum: u64 = lately.iter().map(|(_, count)| count).sum();
        if sum + characters <= most {
            lately.push_back((now, characters));
            return Ok(());
        }
        let message = format!(
            "admit the request: expected at most {most} characters of this key a minute, got {sum} and {characters} more"
        );
        // When so many of them are a minute old that it fits; one that never fits may as well be tried then.
        let mut wait = MINUTE;
        for (when, count) in lately.iter() {
            sum -= count;
            if sum + characters <= most {
                wait = MINUTE.saturating_sub(now.duration_since(*when));
                break;
            }
        }
        Err(too_much(message, wait))
    }
}

fn too_much(message: String, wait: Duration) -> Failure {
    Failure { retry_after: Some(wait), ..Failure::new(StatusCode::TOO_MANY_REQUESTS, "rate", message) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(json: &str) -> Result<Vec<Arc<Key>>> {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("keys.json");
        std::fs::write(&path, json).expect("a file");
        read(&path)
    }

    /// The SHA-256 of "abc" (FIPS 180-4, appendix).
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn keys_are_known_by_their_hash_alone() {
        let known = keys(&format!(r#"[{{"name": "a", "sha256": "{ABC}", "models": ["m"]}}]"#)).expect("keys");
        let key = find(&known, "abc").expect("it is there");
        assert!(key.name == "a" && !key.is_admin && key.may_use("m") && !key.may_use("n"));
        for shown in ["", "abd", "abc ", ABC] {
            assert!(find(&known, shown).is_none(), "{shown}");
        }
        let twice = format!(r#"[{{"name": "a", "sha256": "{ABC}"}}, {{"name": "a", "sha256": "{ABC}"}}]"#);
        for wrong in ["[]", "{", r#"[{"name": "a", "sha256": "abc"}]"#, &twice, r#"[{"name": "a"}]"#] {
            let error = keys(wrong).expect_err("it is wrong").to_string();
            assert!(!error.contains("\"abc\""), "{error}");
        }
    }

    #[test]
    fn a_key_has_its_characters_each_minute() {
        let json = format!(r#"[{{"name": "a", "sha256": "{ABC}", "characters_per_minute": 100}}]"#);
        let key = keys(&json).expect("keys").remove(0);
        let start = Instant::now();
        let charge = |characters, seconds| {
            let charged = key.charge_characters(characters, start + Duration::from_secs(seconds));
            charged.map_err(|failure| failure.retry_after.map(|wait| wait.as_secs()))
        };
        assert_eq!(charge(60, 0), Ok(()));
        assert_eq!(charge(40, 20), Ok(()));
        assert_eq!(charge(1, 30), Err(Some(30)));
        assert_eq!(charge(61, 30), Err(Some(50)));
        assert_eq!(charge(101, 30), Err(Some(60)));
        assert_eq!(charge(60, 60), Ok(()));
    }

    #[test]
    fn a_key_has_its_sentences_at_once() {
        let json = format!(r#"[{{"name": "a", "sha256": "{ABC}", "sentences": 3}}]"#);
        let key = keys(&json).expect("keys").remove(0);
        let two = key.charge(1, 2).expect("there is room");
        assert_eq!(key.charge(1, 2).expect_err("no room").status, StatusCode::TOO_MANY_REQUESTS);
        drop(two);
        assert!(key.charge(1, 3).is_ok());
        assert_eq!(key.under_way.load(Ordering::Acquire), 0);
    }
}
