//! Translations under way: waited for by a thread that looks for signals, or by a callback.

use std::future::Future;
use std::pin::Pin;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use beamfuse::{Canceller, TranslationHandle};
use pyo3::prelude::*;

use crate::errors::{Failure, raised};
use crate::results::Translation;

/// How often a wait looks for signals.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A translation that has been asked for. When it is dropped, the sentence is given up.
#[pyclass(frozen, module = "beamfuse._native")]
pub(crate) struct Pending {
    handle: Mutex<TranslationHandle>,
    canceller: Option<Canceller>,
    process: u32,
}

impl Pending {
    pub(crate) fn new(handle: TranslationHandle) -> Self {
        Pending { canceller: handle.canceller(), handle: Mutex::new(handle), process: std::process::id() }
    }

    fn locked(&self) -> PyResult<MutexGuard<'_, TranslationHandle>> {
        match std::process::id() == self.process {
            true => Ok(self.handle.lock().unwrap_or_else(PoisonError::into_inner)),
            false => Err(forked().into()),
        }
    }
}

/// What is said in a child of the process that opened the model: threads do not survive a fork.
pub(crate) fn forked() -> Failure {
    let message =
        "translate: expected the process that opened the translator, got a fork of it; open one in each process";
    Failure::new("forked", message)
}

#[pymethods]
impl Pending {
    /// Waits for the translation, so many seconds at most; None if it has not come by then.
    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Option<Translation>> {
        let end = timeout.map(|seconds| Instant::now() + Duration::from_secs_f64(seconds.clamp(0.0, 1e9)));
        loop {
            let left = end.map_or(LOOK_EVERY, |end| end.saturating_duration_since(Instant::now()).min(LOOK_EVERY));
            let found = py.detach(|| Ok::<_, PyErr>(self.locked()?.wait_for(left)))?;
            if let Some(found) = found {
                return found.map(|found| Some(Translation(Arc::new(found)))).map_err(raised);
            }
            py.check_signals()?;
            if end.is_some_and(|end| Instant::now() >= end) {
                return Ok(None);
            }
        }
    }

    /// The translation if it is there; else None, and `wake` is called, on another thread, when there is something to see.
    fn poll(&self, wake: Py<PyAny>) -> PyResult<Option<Translation>> {
        let waker = Waker::from(Arc::new(Call(wake)));
        let mut handle = self.locked()?;
        match Pin::new(&mut *handle).poll(&mut Context::from_waker(&waker)) {
            Poll::Pending => Ok(None),
            Poll::Ready(found) => found.map(|found| Some(Translation(Arc::new(found)))).map_err(raised),
        }
    }

    /// Gives the sentence up.
    fn cancel(&self) {
        self.canceller.iter().for_each(|canceller| canceller.cancel());
    }
}

/// A function of Python's to be called. The engine's own threads never wait for the interpreter: one thread calls for them all.
struct Call(Py<PyAny>);

/// The thread that calls, and the process that it runs in.
static CALLER: Mutex<Option<(u32, Sender<Arc<Call>>)>> = Mutex::new(None);

impl Wake for Call {
    fn wake(self: Arc<Self>) {
        let mut caller = CALLER.lock().unwrap_or_else(PoisonError::into_inner);
        let process = std::process::id();
        let sender = match &*caller {
            Some((of, sender)) if *of == process => sender.clone(),
            _ => {
                let (sender, calls) = channel::<Arc<Call>>();
                let run = move || {
                    // None once the interpreter ends. What a callback raises concerns nobody: its loop has been closed.
                    calls
                        .iter()
                        .take_while(|call| Python::try_attach(|py| drop(call.0.call0(py))).is_some())
                        .for_each(drop);
                };
                // Without a thread nobody is told, and whoever waits looks again by itself.
                _ = std::thread::Builder::new().name("beamfuse-wake".into()).spawn(run);
                *caller = Some((process, sender.clone()));
                sender
            }
        };
        drop(caller);
        _ = sender.send(self);
    }
}
