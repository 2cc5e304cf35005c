//! `serve`: translations over HTTP.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::cli::counts::count;
use crate::cli::model_dir::{EngineArguments, ModelName};
use crate::cli::output::print;
use crate::cli::values::reader;
use crate::cli::{Ending, complain};
use crate::counts;
use crate::serve::{Config, Ended, Limits, Source};
use crate::{Error, Overrides, Result};

/// Serve translations over HTTP: the interfaces of LibreTranslate and DeepL, and one of its own, see docs/serve.md.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit codes: 0 ended by a signal, with all work answered; 1 an engine has failed for good; 2 wrong \
                        options, model or files; 130 ended at once by a second signal."
)]
pub(super) struct Arguments {
    /// A model and the name that requests call it by, as in en-de=DIR: a directory, or a hub id owner/name[@REVISION]; may be given
    /// several times. Without a name the directory's [default: the demo model, English to German].
    #[arg(long, value_name = "NAME=DIR|ID")]
    model: Vec<String>,
    /// Address to listen on; port 0 takes any that is free.
    #[arg(long, value_name = "ADDRESS:PORT", default_value_t = crate::serve::DEFAULT_LISTEN)]
    listen: SocketAddr,
    /// File of keys: a JSON array of objects with name and sha256, and, if wanted, admin, models, characters_per_minute and sentences.
    #[arg(long, value_name = "FILE", conflicts_with = "anonymous")]
    api_keys: Option<PathBuf>,
    /// Origin whose pages may ask, such as `https://example.org`, or * for all; may be given several times [default: none].
    #[arg(long, value_name = "ORIGIN")]
    cors_origin: Vec<String>,
    /// Serve whoever can reach the address, without keys.
    #[arg(long)]
    anonymous: bool,
    /// Take the last address of the header X-Forwarded-For for the caller's: only behind a proxy that sets it.
    #[arg(long)]
    trust_proxy: bool,
    /// Options of search that those of a request stand over, as a JSON object: '{"preset": "production"}'.
    #[arg(long, value_name = "JSON", value_parser = reader(options))]
    options: Option<Overrides>,
    /// Write no line for each request to standard error.
    #[arg(long)]
    no_log: bool,
    #[command(flatten)]
    engine: EngineArguments,
    #[command(flatten)]
    limits: LimitArguments,
}

/// What a request may ask for.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Limits")]
struct LimitArguments {
    /// Bytes of a request's body.
    #[arg(long, value_name = "N", default_value_t = Limits::default().body, value_parser = count(counts::BODY))]
    max_body: usize,
    /// Items of a request.
    #[arg(long, value_name = "N", default_value_t = Limits::default().items, value_parser = count(counts::ITEMS))]
    max_items: usize,
    /// Characters of an item.
    #[arg(long, value_name = "N", default_value_t = Limits::default().item_characters, value_parser = count(counts::CHARACTERS))]
    max_item_characters: usize,
    /// Characters of a request.
    #[arg(long, value_name = "N", default_value_t = Limits::default().characters, value_parser = count(counts::CHARACTERS))]
    max_characters: usize,
    /// Beams and samples of a sentence, and its translations.
    #[arg(long, value_name = "K", default_value_t = Limits::default().beam, value_parser = count(counts::HYPOTHESES))]
    max_beam: usize,
    /// Connections at once.
    #[arg(long, value_name = "N", default_value_t = Limits::default().connections, value_parser = count(counts::CONNECTIONS))]
    max_connections: usize,
    /// Seconds within which a request's first sentence must be expected to end, where others wait: else it is refused.
    #[arg(long, value_name = "S", default_value_t = 5, value_parser = count(counts::SECONDS))]
    max_wait: u32,
    /// Seconds that a request may take where it does not ask for less.
    #[arg(long, value_name = "S", default_value_t = 30, value_parser = count(counts::SECONDS))]
    deadline: u32,
    /// Seconds that a request's headers may take to come, and that a connection may stay idle.
    #[arg(long, value_name = "S", default_value_t = 10, value_parser = count(counts::SECONDS))]
    header_timeout: u32,
    /// Seconds that a request's body may take to come, and that a client may take to read on.
    #[arg(long, value_name = "S", default_value_t = 30, value_parser = count(counts::SECONDS))]
    body_timeout: u32,
    /// After a signal, seconds in which connections are still accepted.
    #[arg(long, value_name = "S", default_value_t = 5, value_parser = count(counts::or_none(&counts::SECONDS, 0)))]
    drain_delay: u32,
    /// Seconds after these that work may take to end.
    #[arg(long, value_name = "S", default_value_t = 30, value_parser = count(counts::SECONDS))]
    drain_timeout: u32,
}

/// Reads an object of options.
fn options(text: &str) -> Result<Overrides> {
    serde_json::from_str(text).map_err(|error| Error::Option {
        option: "options",
        expected: "a JSON object of options".to_owned(),
        got: format!("{text}: {error}"),
    })
}

/// Sentences that may wait: how long they wait is bounded by --max-wait.
const QUEUE: usize = 1 << 16;

pub(super) fn run(arguments: Arguments) -> Result<Ending> {
    let mut config = Config::new(arguments.sources()?);
    config.listen = arguments.listen;
    config.engine = arguments.engine.options();
    config.engine.queue = QUEUE;
    config.options = arguments.options.unwrap_or_default();
    config.limits = arguments.limits.limits();
    config.api_keys = arguments.api_keys;
    config.cors_origins = arguments.cors_origin;
    config.anonymous = arguments.anonymous;
    config.trust_proxy = arguments.trust_proxy;
    config.log = !arguments.no_log;
    let names: Vec<String> = config.models.iter().map(|source| source.name.clone()).collect();
    let ready = |address: SocketAddr| {
        // Without anybody to read it, it serves all the same.
        let _ = print(&format!("serving {} on http://{address}", names.join(", ")));
    };
    match crate::serve::run(config, ready)? {
        Ended::Drained => Ok(Ending::Complete),
        Ended::Interrupted => Ok(Ending::Interrupted),
        Ended::EngineFailed => {
            complain("an engine has failed for good");
            Ok(Ending::Failed)
        }
    }
}

impl Arguments {
    fn sources(&self) -> Result<Vec<Source>> {
        let source = |given: &String| {
            // A name has no slash; a directory's may have an equals sign.
            let named = given.split_once('=').filter(|(name, _)| !name.contains('/'));
            let (name, model) = named.map_or((None, given.as_str()), |(name, model)| (Some(name), model));
            let dir = ModelName { model: Some(PathBuf::from(model)), revision: None }.resolve()?;
            let last = model.split(['/', '@']).rfind(|part| !part.is_empty()).unwrap_or(model);
            let last = PathBuf::from(last);
            let name = name.map_or_else(|| last.to_string_lossy().into_owned(), str::to_owned);
            Ok(Source { name, dir })
        };
        match self.model.is_empty() {
            false => self.model.iter().map(source).collect(),
            true => {
                let dir = ModelName { model: None, revision: None }.resolve()?;
                Ok(vec![Source { name: "en-de".to_owned(), dir }])
            }
        }
    }
}

impl LimitArguments {
    fn limits(&self) -> Limits {
        let seconds = |count: u32| Duration::from_secs(count.into());
        Limits {
            body: self.max_body,
            items: self.max_items,
            item_characters: self.max_item_characters,
            characters: self.max_characters,
            beam: self.max_beam,
            connections: self.max_connections,
            max_wait: seconds(self.max_wait),
            deadline: seconds(self.deadline),
            header_time: seconds(self.header_timeout),
            body_time: seconds(self.body_timeout),
            drain_delay: seconds(self.drain_delay),
            drain_time: seconds(self.drain_timeout),
        }
    }
}
