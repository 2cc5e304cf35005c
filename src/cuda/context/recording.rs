//! Steps recorded into graphs, and replayed.

use super::{Context, Fault, Graph};
use crate::Result;
use crate::cuda::counters::{CAPTURES, REPLAYS, STEP_NODES, STEPS};

/// What is known of a step that is repeated, from one [`Context::step`] to the next.
#[derive(Debug, Default)]
pub enum Recording {
    /// It has not run.
    #[default]
    None,
    /// It has run, without being recorded.
    Seen,
    /// It is replayed.
    Graph(Graph),
}

impl Context {
    /// Records what `step` enqueues, without running it, as a graph.
    ///
    /// # Errors
    /// What `step` returns; it allocated, waited, or copied from or to the host.
    pub fn capture(&self, step: impl FnOnce() -> Result<()>) -> Result<Graph> {
        let frees = self.frees();
        self.0.device.begin_capture()?;
        let outcome = step();
        let ended = self.0.device.end_capture();
        // The graph of a failed step is of no use, and the step's error says more than the failure to end its recording.
        match (outcome, ended) {
            (Ok(()), Ok(id)) => {
                self.count(CAPTURES, 1);
                Ok(Graph { context: self.clone(), id, nodes: self.0.device.graph_nodes(id), frees })
            }
            (Err(error), ended) => {
                if let Ok(id) = ended {
                    self.0.device.drop_graph(id);
                }
                Err(error)
            }
            (Ok(()), Err(error)) => Err(error),
        }
    }

    /// Enqueues all that a graph recorded.
    ///
    /// # Errors
    /// The graph belongs to another device; the device failed.
    ///
    /// # Safety
    /// Every buffer that the graph names is still there, and nobody else uses what it writes.
    pub unsafe fn replay(&self, graph: &Graph) -> Result<()> {
        self.check_owner(graph.context.id())?;
        self.check_fault(Fault::Launch, "replay")?;
        self.count(REPLAYS, 1);
        // SAFETY: the caller's promise.
        unsafe { self.0.device.replay(graph.id) }
    }

    /// Runs a decoding step that enqueues what `enqueue` does: from the second step under the same recording on as a graph.
    ///
    /// The first step runs as it is: it may load kernels and make plans, which a capture cannot. A graph that may name freed
    /// memory is recorded anew.
    ///
    /// # Errors
    /// What `enqueue` returns; it allocated, waited, or copied from or to the host; the device failed.
    pub fn step(&self, recording: &mut Recording, enqueue: impl FnOnce() -> Result<()>) -> Result<()> {
        if let Recording::Graph(graph) = recording
            && !graph.is_intact()
        {
            *recording = Recording::Seen;
        }
        let nodes = match recording {
            Recording::None => {
                let before = self.counters().nodes();
                enqueue()?;
                *recording = Recording::Seen;
                self.counters().nodes() - before
            }
            Recording::Seen => {
                let graph = self.capture(enqueue)?;
                self.replay_intact(&graph)?;
                let nodes = graph.nodes;
                *recording = Recording::Graph(graph);
                nodes as u64
            }
            Recording::Graph(graph) => {
                self.replay_intact(graph)?;
                graph.nodes as u64
            }
        };
        self.count(STEPS, 1);
        self.count(STEP_NODES, nodes as usize);
        Ok(())
    }

    fn replay_intact(&self, graph: &Graph) -> Result<()> {
        if !graph.is_intact() {
            return Err(self.failure("replay", "memory was freed while the step was recorded".to_owned()));
        }
        // SAFETY: nothing was freed since the recording began, so all that the graph names is there. Work on the one stream runs
        // in order, whoever enqueued it.
        unsafe { self.replay(graph) }
    }
}
