//! Translation over HTTP: `beamfuse serve`.
//!
//! One process, any number of models by name, each with an engine whose sentences come from all connections. A request is read
//! whole (`http.rs`), its caller is told apart (`caller.rs`), its sentences are admitted (`admission.rs`) and handed to the engine
//! (`work.rs`); who gives up, or whose time is over, frees its slots. `native.rs`, `libretranslate.rs` and `deepl.rs` are three
//! ways to say the same. docs/serve.md is the contract.

mod admission;
mod caller;
mod config;
mod deepl;
mod detect;
mod engines;
mod failure;
mod given;
mod http;
mod keys;
mod libretranslate;
mod listen;
mod log;
mod metrics;
mod models;
mod native;
mod page;
mod patient;
mod routes;
mod status;
mod stream;
mod work;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::{Error, Result};
use admission::Admission;
use metrics::Metrics;
use models::{Model, Models};

pub(crate) use config::DEFAULT_LISTEN;
pub use config::{Config, Limits, Source};
pub use listen::Ended;

/// What all requests share.
#[derive(Debug)]
struct Server {
    config: Config,
    models: Models,
    /// None where nobody needs one.
    keys: Option<Vec<Arc<keys::Key>>>,
    admission: Arc<Admission>,
    metrics: Metrics,
    phase: watch::Receiver<Phase>,
}

/// How far the service is from its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Serving,
    /// It ends soon: balancers are told to send no more.
    Draining,
    /// No more connections.
    Closing,
    /// What has not ended by now gets an error.
    Expired,
}

/// Waits until the service has come so far.
async fn reached(phase: &mut watch::Receiver<Phase>, least: Phase) {
    // An error means that it is over.
    let _ = phase.wait_for(|phase| *phase >= least).await;
}

impl Server {
    /// Opens the models; with what tells all parts of the service how far it is from its end.
    fn open(config: Config, keys: Option<Vec<Arc<keys::Key>>>) -> Result<(Arc<Self>, watch::Sender<Phase>)> {
        let models = Models::open(&config)?;
        let (phases, phase) = watch::channel(Phase::Serving);
        let admission = Arc::new(Admission::new(config.limits.max_wait));
        let server = Arc::new(Server { models, keys, admission, metrics: Metrics::new(), phase, config });
        for model in server.models.all() {
            server.metrics.add_model(&model);
        }
        Ok((server, phases))
    }

    fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Opens the models anew beside those that are served, and lets them take their place if all is well.
    async fn reload(self: &Arc<Self>) -> Result<Vec<Arc<Model>>, String> {
        let work = self.clone();
        let opened = tokio::task::spawn_blocking(move || work.models.reload()).await;
        let result = match opened {
            Ok(result) => result.map_err(|error| error.to_string()),
            Err(panic) => Err(panic.to_string()),
        };
        let reason = match &result {
            Ok(models) => {
                self.metrics.set_models(models);
                log::event("reload", "all models have been opened anew");
                "done"
            }
            Err(message) => {
                log::event("reload_failed", message);
                "failed"
            }
        };
        self.metrics.reloads.get_or_create(&metrics::Reason { reason }).inc();
        result
    }
}

/// Threads for work that blocks, of which a burst of requests would otherwise start hundreds: they read and split texts, which takes a
/// processor and no waiting.
const BLOCKING_THREADS: usize = 16;

/// They stay.
const KEEP_ALIVE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Opens the models and serves until a signal, or the loss of an engine, ends it. `ready` is told the address.
///
/// # Errors
/// What is wrong with the options, the models or the address.
pub fn run(config: Config, ready: impl FnOnce(std::net::SocketAddr)) -> Result<Ended> {
    config.validate()?;
    let keys = config.api_keys.as_deref().map(keys::read).transpose()?;
    let io = |operation, path: &str| {
        let path = path.into();
        move |source| Error::Io { operation, path, source }
    };
    let threads = std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 4);
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.worker_threads(threads).max_blocking_threads(BLOCKING_THREADS).thread_keep_alive(KEEP_ALIVE);
    let runtime = runtime.enable_all().build();
    let runtime = runtime.map_err(io("start the runtime", "tokio"))?;
    // While there is one thread for work that blocks, such work waits for it where the system gives no other; without any it panics.
    let first = runtime.block_on(runtime.spawn_blocking(|| ()));
    first.map_err(|panic| io("start the runtime", "tokio")(std::io::Error::other(panic)))?;
    // The address first: a model may take long to load, and an address in use is known at once.
    let listener = runtime.block_on(tokio::net::TcpListener::bind(config.listen));
    let listener = listener.map_err(io("listen on", &config.listen.to_string()))?;
    let address = listener.local_addr().map_err(io("listen on", &config.listen.to_string()))?;
    let (server, phases) = Server::open(config, keys)?;
    let ended = runtime.block_on(async {
        let signals = listen::signals()?;
        ready(address);
        Ok(listen::serve(server, listener, phases, signals).await)
    });
    runtime.shutdown_timeout(Duration::from_secs(1));
    ended
}

#[cfg(test)]
mod tests;
