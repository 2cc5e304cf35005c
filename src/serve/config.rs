//! What a service is started with.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use crate::{EngineOptions, Error, Overrides, Result};

/// A model to serve.
#[derive(Clone, Debug)]
pub struct Source {
    /// The name that requests call it by.
    pub name: String,
    /// Its directory.
    pub dir: PathBuf,
}

/// What a service is started with.
#[derive(Clone, Debug)]
pub struct Config {
    /// The address to listen on; port 0 takes any.
    pub listen: SocketAddr,
    /// The models; the first that knows a language pair translates it.
    pub models: Vec<Source>,
    /// How their engines run.
    pub engine: EngineOptions,
    /// Options of search that those of a request stand over.
    pub options: Overrides,
    /// What a request may ask for.
    pub limits: Limits,
    /// The file of keys; without one nobody needs a key.
    pub api_keys: Option<PathBuf>,
    /// Origins whose pages may ask: `https://example.org`, or `*` for all.
    pub cors_origins: Vec<String>,
    /// Whether an address that others can reach is served without keys.
    pub anonymous: bool,
    /// Whether the last address of X-Forwarded-For is taken for the caller's.
    pub trust_proxy: bool,
    /// Whether a JSON line is logged for each request.
    pub log: bool,
}

/// What a request may ask for, and how long things may take.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of a body.
    pub body: usize,
    /// Items, or texts, of a request.
    pub items: usize,
    /// Characters of an item.
    pub item_characters: usize,
    /// Characters of a request.
    pub characters: usize,
    /// Beams and samples of a sentence, and translations returned.
    pub beam: usize,
    /// Connections at once.
    pub connections: usize,
    /// How long a request may have to wait before it begins.
    pub max_wait: Duration,
    /// How long it may take altogether, where it does not say.
    pub deadline: Duration,
    /// How long headers may take to come, and how long a connection may stay idle.
    pub header_time: Duration,
    /// How long a body may take to come, and a client to read.
    pub body_time: Duration,
    /// After the first signal, how long connections are still accepted.
    pub drain_delay: Duration,
    /// After that, how long work may take to end.
    pub drain_time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            body: 1 << 20,
            items: 1000,
            item_characters: 20_000,
            characters: 100_000,
            beam: 8,
            connections: 1024,
            max_wait: Duration::from_secs(5),
            deadline: Duration::from_secs(30),
            header_time: Duration::from_secs(10),
            body_time: Duration::from_secs(30),
            drain_delay: Duration::from_secs(5),
            drain_time: Duration::from_secs(30),
        }
    }
}

/// Where a service listens unless told otherwise.
pub(crate) const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 5000);

impl Config {
    /// A service of these models on the default address.
    pub fn new(models: Vec<Source>) -> Self {
        Config {
            listen: DEFAULT_LISTEN,
            models,
            engine: EngineOptions::default(),
            options: Overrides::default(),
            limits: Limits::default(),
            api_keys: None,
            cors_origins: Vec::new(),
            anonymous: false,
            trust_proxy: false,
            log: true,
        }
    }

    /// Checks what can be checked before anything is opened.
    ///
    /// # Errors
    /// [`Error::Option`].
    pub(super) fn validate(&self) -> Result<()> {
        let refuse =
            |option, expected: &str, got: String| Err(Error::Option { option, expected: expected.to_owned(), got });
        for (at, Source { name, .. }) in self.models.iter().enumerate() {
            let is_plain = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
            if !is_plain || name.len() > 64 {
                return refuse("model", "a name of up to 64 letters, digits, - _ and .", format!("{name:?}"));
            }
            if self.models[..at].iter().any(|other| other.name == *name) {
                return refuse("model", "a name for each model", format!("{name} twice"));
            }
        }
        if self.models.is_empty() {
            return refuse("model", "at least one", "none".to_owned());
        }
        if !self.listen.ip().is_loopback() && !self.anonymous && self.api_keys.is_none() {
            let expected =
                "an address of this machine alone, or --api-keys, or --anonymous to serve whoever can reach it";
            return refuse("listen", expected, self.listen.to_string());
        }
        self.engine.validate()
    }
}
