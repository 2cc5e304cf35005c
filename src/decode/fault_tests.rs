//! The engine on a device that fails: every request gets an answer, nothing leaks, and the next request is served.

use std::sync::{Arc, mpsc};
use std::time::Duration;

use super::engine::{Outcome, Reply};
use super::request::Request;
use super::*;
use crate::backend::{Backend, Row, Rows, SessionShape, SpecialIds, Stages};
use crate::cuda::{self, Context, Cuda, Fault};
use crate::model::Seq2Seq;
use crate::{Error, Result};

const VOCAB: usize = 9;
const WIDTH: usize = 4;
const MAX_LEN: usize = 40;

/// A small model that lies on a device as a real one does: a token's embedding at its position, projected to logits.
struct Mini<B: Backend> {
    table: B::Embedding,
    positions: B::Positions,
    output: B::Matrix,
}

struct MiniState<B: Backend> {
    sources: Rows<B>,
    x: B::Tensor,
    logits: B::Buffer<f32>,
    attention: B::Buffer<f32>,
}

/// Reproducible numbers in -1..1.
fn numbers(len: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

impl<B: Backend> Mini<B> {
    fn new(backend: &B) -> Result<Self> {
        let table = backend.embeddings(&numbers(VOCAB * WIDTH, 1), None, 1.0, WIDTH)?;
        let positions = backend.positions(MAX_LEN, WIDTH, None, || numbers(MAX_LEN * WIDTH, 2))?;
        let bias = numbers(VOCAB, 3);
        Ok(Mini { table, positions, output: backend.matrix(&numbers(VOCAB * WIDTH, 4), Some(&bias), VOCAB, WIDTH)? })
    }
}

impl<B: Backend> Seq2Seq<B> for Mini<B> {
    type State = MiniState<B>;

    fn vocab_size(&self) -> usize {
        VOCAB
    }

    fn ids(&self) -> SpecialIds {
        SpecialIds { eos_id: 0, pad_id: 1, decoder_start_id: 2 }
    }

    fn max_len(&self) -> usize {
        MAX_LEN
    }

    fn open(&self, backend: &B, shape: SessionShape) -> Result<MiniState<B>> {
        Ok(MiniState {
            sources: Rows::with_capacity(backend, shape.slots * shape.max_src_len)?,
            x: backend.tensor(shape.rows.max(shape.slots * shape.max_src_len) * WIDTH)?,
            logits: backend.zeros::<f32>(shape.rows * backend.logits_stride(VOCAB))?,
            attention: backend.zeros::<f32>(shape.rows * shape.max_src_len)?,
        })
    }

    fn encode(&self, backend: &B, state: &mut MiniState<B>, sources: &[(u32, &[u32])]) -> Result<()> {
        let row = |slot: u32, (position, token): (usize, &u32)| Row {
            slot,
            beam: 0,
            position: position as u32,
            token: token % VOCAB as u32,
        };
        let rows: Vec<Row> =
            sources.iter().flat_map(|&(slot, ids)| ids.iter().enumerate().map(move |at| row(slot, at))).collect();
        state.sources.set(backend, &rows)?;
        backend.embedding(&self.table, Some(&self.positions), &state.sources, &mut state.x)
    }

    fn step(
        &self,
        backend: &B,
        state: &mut MiniState<B>,
        rows: &Rows<B>,
        _: &B::Buffer<u32>,
        _: &B::Buffer<u32>,
    ) -> Result<()> {
        backend.embedding(&self.table, Some(&self.positions), rows, &mut state.x)?;
        backend.logits(&self.output, rows, &state.x, &mut state.logits)
    }

    fn logits<'a>(&self, state: &'a MiniState<B>) -> &'a B::Buffer<f32> {
        &state.logits
    }

    fn attention<'a>(&self, state: &'a MiniState<B>) -> &'a B::Buffer<f32> {
        &state.attention
    }
}

/// What a request asks for.
#[derive(Clone, Copy)]
enum Ask {
    Search { length: usize, beam_size: usize },
    Score { length: usize },
}

fn engine(context: &Context, replicas: usize) -> Engine {
    let replica = |_| {
        let backend = Cuda::<f32>::new(context.clone());
        let models: Arc<[_]> = Arc::from(vec![Mini::new(&backend)?]);
        Ok::<_, Error>((backend, models))
    };
    let replicas: Result<Vec<_>> = (0..replicas).map(replica).collect();
    Engine::start_replicas(replicas.expect("the model fits"), VOCAB, 2).expect("a thread starts")
}

fn source(length: usize) -> Vec<u32> {
    (1..length as u32).map(|i| 3 + i * 5 % 6).chain([0]).collect()
}

fn submit(engine: &Engine, tag: u64, ask: Ask, reply: &mpsc::Sender<Reply>, caller: &Arc<()>) {
    let work = match ask {
        Ask::Search { length, beam_size } => {
            let options = DecodeOptions { beam_size, max_length: MaxLength::Absolute(6), ..DecodeOptions::default() };
            let (source, options) = (source(length), options.for_slot(length, MAX_LEN));
            Work::Search(Box::new(Request { source, options, n_best: 1, ..Request::default() }))
        }
        Ask::Score { length } => Work::Score { source: source(3), target: source(length), inputs: None },
    };
    let job = Job { tag, work, reply: reply.clone(), caller: Arc::downgrade(caller) };
    engine.submit(job).expect("the engine takes it");
}

/// The answers, by the order of asking; each must come.
fn ask(engine: &Engine, asks: &[Ask]) -> Vec<Result<Vec<Vec<u32>>>> {
    let (reply, replies) = mpsc::channel();
    let caller = Arc::new(());
    asks.iter().enumerate().for_each(|(tag, &ask)| submit(engine, tag as u64, ask, &reply, &caller));
    let mut answers: Vec<(u64, Result<Vec<Vec<u32>>>)> = asks
        .iter()
        .map(|_| {
            let Reply { tag, outcome, .. } =
                replies.recv_timeout(Duration::from_secs(60)).expect("every job is answered");
            let bits = outcome.map(|outcome| match outcome {
                Outcome::Hypotheses(found) => found.into_iter().map(|hypothesis| hypothesis.token_ids).collect(),
                Outcome::TokenStats(stats) => vec![stats.into_iter().map(|s| s.log_prob.to_bits()).collect()],
                Outcome::Explained(_) => unreachable!("nobody asked for that"),
            });
            (tag, bits)
        })
        .collect();
    answers.sort_by_key(|(tag, _)| *tag);
    answers.into_iter().map(|(_, answer)| answer).collect()
}

fn all_well(answers: Vec<Result<Vec<Vec<u32>>>>) -> Vec<Vec<Vec<u32>>> {
    answers.into_iter().map(|answer| answer.expect("no fault is planned")).collect()
}

/// A short decode: more sentences than slots, of different sizes.
const SHORT: [Ask; 3] = [
    Ask::Search { length: 3, beam_size: 2 },
    Ask::Search { length: 5, beam_size: 1 },
    Ask::Search { length: 2, beam_size: 2 },
];

/// Fails the n-th call of a kind, for every n that a short decode or a scoring pass reaches; returns how many that are.
fn fail_each(fault: Fault) -> u64 {
    // Apart: a pass that finds no memory beside a session is run again when that has gone, and nobody notices.
    fail_each_of(fault, &SHORT) + fail_each_of(fault, &[Ask::Score { length: 4 }])
}

fn fail_each_of(fault: Fault, asks: &[Ask]) -> u64 {
    let device = || cuda::open_emulated().expect("there is an emulator");
    let expected = all_well(ask(&engine(&device(), 1), asks));
    for n in 0.. {
        let context = device();
        let engine = engine(&context, 1);
        context.fail_after(fault, n);
        let answers = ask(&engine, asks);
        let failed = answers.iter().filter(|answer| answer.is_err()).count();
        for (answer, expected) in answers.into_iter().zip(&expected) {
            match answer {
                Ok(answer) => assert_eq!(answer, *expected, "{fault:?} {n}"),
                Err(error) => {
                    let kind = if fault == Fault::Allocation { "out_of_memory" } else { "device_operation" };
                    assert!(error.kind() == kind || error.kind() == "device_operation", "{fault:?} {n}: {error}");
                }
            }
        }
        if context.take_fault(fault) {
            assert_eq!(failed, 0, "{fault:?} {n} was never reached");
            return n;
        }
        assert!(failed > 0, "{fault:?} {n} went unnoticed");
        assert_eq!(all_well(ask(&engine, asks)), expected, "after {fault:?} {n}");
        drop(engine);
        let left = context.counters();
        assert_eq!((left.live_bytes, left.pinned_bytes), (0, 0), "after {fault:?} {n}");
    }
    unreachable!("a short decode ends")
}

#[test]
#[cfg_attr(not(emulated), ignore = "needs a C++ compiler")]
fn every_failed_allocation_is_an_error_and_the_engine_serves_on() {
    let reached = fail_each(Fault::Allocation);
    assert!(reached > 30, "{reached} allocations");
}

#[test]
#[cfg_attr(not(emulated), ignore = "needs a C++ compiler")]
fn every_failed_copy_is_an_error_and_the_engine_serves_on() {
    let reached = fail_each(Fault::Copy);
    assert!(reached > 50, "{reached} copies");
}

#[test]
#[cfg_attr(not(emulated), ignore = "needs a C++ compiler")]
fn every_failed_launch_is_an_error_and_the_engine_serves_on() {
    let reached = fail_each(Fault::Launch);
    assert!(reached > 10, "{reached} launches");
}

#[test]
#[cfg_attr(not(emulated), ignore = "needs a C++ compiler")]
fn a_lost_device_is_said_to_be_lost() {
    for n in [0, 3, 12] {
        let context = cuda::open_emulated().expect("there is an emulator");
        let engine = engine(&context, 1);
        context.fail_after(Fault::Loss, n);
        let first = ask(&engine, &SHORT);
        assert!(first.iter().any(Result::is_err), "loss after {n} launches");
        for answer in ask(&engine, &SHORT) {
            let error = answer.expect_err("the device is lost");
            assert_eq!(error.kind(), "device_lost", "{error}");
        }
        assert!(engine.is_running());
    }
}

#[test]
#[cfg_attr(not(emulated), ignore = "needs a C++ compiler")]
fn replicas_share_a_queue_and_go_on_without_a_lost_one() {
    let contexts = [0; 2].map(|_| cuda::open_emulated().expect("there is an emulator"));
    let replica = |context: &Context| {
        let backend = Cuda::<f32>::new(context.clone());
        let models: Arc<[_]> = Arc::from(vec![Mini::new(&backend).expect("the model fits")]);
        (backend, models)
    };
    let engine = Engine::start_replicas(contexts.iter().map(replica).collect(), VOCAB, 1).expect("threads start");
    let asks = [Ask::Search { length: 3, beam_size: 2 }; 24];
    let expected = all_well(ask(&engine, &asks[..1])).remove(0);
    // Whichever device is free takes the next sentence: with enough of them both have some.
    while contexts.iter().any(|context| context.counters().steps == 0) {
        assert!(all_well(ask(&engine, &asks)).iter().all(|answer| *answer == expected));
    }
    contexts[0].fail_after(Fault::Loss, 0);
    while engine.running_workers() == 2 {
        ask(&engine, &asks);
    }
    assert!(engine.is_running());
    assert!(all_well(ask(&engine, &asks)).iter().all(|answer| *answer == expected));
}

#[test]
#[cfg_attr(not(emulated), ignore = "needs a C++ compiler")]
fn memory_returns_to_its_baseline_after_a_thousand_mixed_calls() {
    let context = cuda::open_emulated().expect("there is an emulator");
    let engine = engine(&context, 1);
    let mixed = |i: usize| match i % 7 {
        0 => Ask::Score { length: 1 + i % 9 },
        _ => Ask::Search { length: 1 + i % 11, beam_size: 1 + i % 4 },
    };
    // The largest shape of all.
    let largest = [Ask::Search { length: 11, beam_size: 4 }; 3];
    all_well(ask(&engine, &largest));
    let baseline = context.counters();
    let (reply, _) = mpsc::channel();
    for round in 0..50 {
        // A caller that hangs up, and now and then a failure of each kind.
        let gone = Arc::new(());
        submit(&engine, 0, mixed(round), &reply, &gone);
        drop(gone);
        match round % 10 {
            3 => context.fail_after(Fault::Launch, 5),
            5 => context.fail_after(Fault::Copy, 9),
            7 => context.fail_after(Fault::Allocation, 0),
            _ => {}
        }
        let asks: Vec<Ask> = (0..20).map(|i| mixed(20 * round + i)).collect();
        let answers = ask(&engine, &asks);
        let failed = answers.iter().filter(|answer| answer.is_err()).count();
        assert!(failed == 0 || matches!(round % 10, 3 | 5 | 7), "round {round}: {failed} failures");
    }
    all_well(ask(&engine, &largest));
    let after = context.counters();
    assert_eq!(after.live_bytes, baseline.live_bytes);
    assert!(after.pinned_bytes <= 2 * baseline.pinned_bytes, "{after:?}, at first {baseline:?}");
    drop(engine);
    let left = context.counters();
    assert_eq!((left.live_bytes, left.pinned_bytes), (0, 0));
}

#[test]
#[cfg_attr(not(emulated), ignore = "needs a C++ compiler")]
fn too_little_memory_means_fewer_slots_or_an_error_with_both_numbers() {
    let full = cuda::open_emulated().expect("there is an emulator");
    let asks = [Ask::Search { length: 11, beam_size: 4 }; 3];
    let expected = all_well(ask(&engine(&full, 1), &asks));
    let backend = Cuda::<f32>::new(full);
    let models = [Mini::new(&backend).expect("it fits")];
    let shape = |slots: usize| SessionShape {
        slots,
        beam_size: 4,
        max_len: 32,
        max_src_len: 32,
        rows: 4 * slots,
        keep_attention: false,
    };
    let bytes = |slots: usize| {
        let bytes = Session::bytes(&backend, &models, shape(slots), Stages::default());
        bytes.expect("the shape is right").expect("a device plans")
    };
    let model_bytes = 4 * (VOCAB * WIDTH * 2 + MAX_LEN * WIDTH + VOCAB) as u64;
    for (memory, fits) in [(bytes(2), true), (bytes(2) - 1, true), (bytes(1), true), (bytes(1) - 1, false)] {
        let context = cuda::open_emulated_with(Some(model_bytes + memory)).expect("there is an emulator");
        let engine = engine(&context, 1);
        let answers = ask(&engine, &asks);
        if fits {
            assert_eq!(all_well(answers), expected);
            let session = if memory == bytes(2) { bytes(2) } else { bytes(1) };
            assert_eq!(context.counters().live_bytes, model_bytes + session);
            continue;
        }
        for answer in answers {
            match answer.expect_err("there is no room") {
                Error::OutOfMemory { needed, available, .. } => assert_eq!((needed, available), (bytes(1), memory)),
                error => panic!("{error}"),
            }
        }
        // What is smaller still fits.
        all_well(ask(&engine, &[Ask::Search { length: 2, beam_size: 1 }]));
    }
}
