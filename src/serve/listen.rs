//! Connections: accepted, bounded in number and in patience, and ended in good order.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};

use super::http::Peer;
use super::patient::Patient;
use super::{Phase, Server, log, reached, routes};
use crate::{Error, Result};

/// How a service ended that had begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// A signal asked for it, and all work was done or answered.
    Drained,
    /// A second signal came.
    Interrupted,
    /// An engine has failed for good.
    EngineFailed,
}

/// Bytes that a request's headers may have.
const HEADER_BYTES: usize = 16 << 10;

/// How often the engines are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How long answers to work that did not end in time may take to be written.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// What comes from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signal {
    Stop,
    Reload,
}

/// Serves until a signal, or the loss of an engine, ends it.
pub(super) async fn serve(
    server: Arc<Server>,
    listener: TcpListener,
    phases: watch::Sender<Phase>,
    mut signals: mpsc::Receiver<Signal>,
) -> Ended {
    let most = server.config.limits.connections;
    let connections = Arc::new(Semaphore::new(most));
    let accepting = tokio::spawn(accept(server.clone(), listener, connections.clone()));
    let mut look = tokio::time::interval(LOOK_EVERY);
    loop {
        tokio::select! {
            signal = signals.recv() => match signal {
                Some(Signal::Reload) => {
                    let server = server.clone();
                    tokio::spawn(async move { server.reload().await });
                }
                Some(Signal::Stop) | None => break,
            },
            _ = look.tick() => {
                if !server.models.are_running() {
                    log::event("engine_failed", "an engine has failed for good");
                    end(&server, &phases, Phase::Expired).await;
                    tokio::time::sleep(LAST_WORDS).await;
                    return Ended::EngineFailed;
                }
            }
        }
    }
    let drained = drain(&server, &phases, &connections, most);
    let ended = tokio::select! {
        () = drained => Ended::Drained,
        () = second(&mut signals) => Ended::Interrupted,
    };
    accepting.abort();
    ended
}

async fn second(signals: &mut mpsc::Receiver<Signal>) {
    while let Some(signal) = signals.recv().await {
        if signal == Signal::Stop {
            return;
        }
    }
    std::future::pending().await
}

/// Ends the service in good order: no more requests are asked for, then no more connections are taken, then what has not ended gets an
/// error.
async fn drain(server: &Server, phases: &watch::Sender<Phase>, connections: &Semaphore, most: usize) {
    let limits = &server.config.limits;
    end(server, phases, Phase::Draining).await;
    tokio::time::sleep(limits.drain_delay).await;
    end(server, phases, Phase::Closing).await;
    let all = u32::try_from(most).unwrap_or(u32::MAX);
    if tokio::time::timeout(limits.drain_time, connections.acquire_many(all)).await.is_ok() {
        return;
    }
    end(server, phases, Phase::Expired).await;
    let _ = tokio::time::timeout(LAST_WORDS, connections.acquire_many(all)).await;
}

async fn end(server: &Server, phases: &watch::Sender<Phase>, phase: Phase) {
    if server.config.log {
        log::event("phase", &format!("{phase:?}").to_lowercase());
    }
    phases.send_replace(phase);
}

async fn accept(server: Arc<Server>, listener: TcpListener, connections: Arc<Semaphore>) {
    let router = routes::router(&server);
    let mut phase = server.phase.clone();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = reached(&mut phase, Phase::Closing) => return,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Too many open files, or a client that has gone already: others can be served before long.
                log::event("accept_failed", &error.to_string());
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        // Small answers are not held back.
        let _ = stream.set_nodelay(true);
        match connections.clone().try_acquire_owned() {
            Ok(permit) => drop(tokio::spawn(connection(server.clone(), router.clone(), stream, Peer(address), permit))),
            Err(_) => drop(tokio::spawn(refuse(server.clone(), stream))),
        }
    }
}

/// Answers a connection that is one too many.
async fn refuse(server: Arc<Server>, mut stream: TcpStream) {
    server.metrics.rejected.get_or_create(&super::metrics::Reason { reason: "connections" }).inc();
    let message = "accept a connection: expected fewer open ones, got as many as this service holds";
    let body = serde_json::json!({ "error": { "kind": "connections", "message": message } }).to_string();
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\nconnection: \
         close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let told = async {
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await
    };
    let _ = tokio::time::timeout(LAST_WORDS, told).await;
}

async fn connection(server: Arc<Server>, router: Router, stream: TcpStream, peer: Peer, permit: OwnedSemaphorePermit) {
    server.metrics.connections.inc();
    let limits = &server.config.limits;
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(peer);
        router.call(request.map(Body::new))
    });
    let io = TokioIo::new(Patient::new(stream, limits.body_time));
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(limits.header_time).max_buf_size(HEADER_BYTES);
    let mut connection = std::pin::pin!(builder.serve_connection(io, service));
    let mut phase = server.phase.clone();
    // Errors are the client's: it is told where that is possible, and there is nobody else to tell.
    tokio::select! {
        _ = connection.as_mut() => {}
        () = reached(&mut phase, Phase::Closing) => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
    server.metrics.connections.dec();
    drop(permit);
}

/// The process's signals.
pub(super) fn signals() -> Result<mpsc::Receiver<Signal>> {
    let (to, signals) = mpsc::channel(4);
    pass_on(to).map_err(|source| Error::Io { operation: "listen for", path: "signals".into(), source })?;
    Ok(signals)
}

#[cfg(unix)]
fn pass_on(to: mpsc::Sender<Signal>) -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let kinds = [
        (SignalKind::terminate(), Signal::Stop),
        (SignalKind::interrupt(), Signal::Stop),
        (SignalKind::hangup(), Signal::Reload),
    ];
    for (kind, meaning) in kinds {
        let (mut incoming, to) = (signal(kind)?, to.clone());
        tokio::spawn(async move { while incoming.recv().await.is_some() && to.send(meaning).await.is_ok() {} });
    }
    Ok(())
}

#[cfg(not(unix))]
fn pass_on(to: mpsc::Sender<Signal>) -> std::io::Result<()> {
    tokio::spawn(async move { while tokio::signal::ctrl_c().await.is_ok() && to.send(Signal::Stop).await.is_ok() {} });
    Ok(())
}
