//! The engine on a device that fails: every request gets an answer, nothing leaks, and the next request is served.

use std::sync::Arc;
use std::time::Duration;

use super::engine::DEFAULT_QUEUE;
use super::request::Request;
use super::*;
use crate::backend::{Backend, Dtype, Row, Rows, SessionShape, SpecialIds, Stages};
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
    scratch: B::ProductScratch,
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
        let table = backend.embeddings(&numbers(VOCAB * WIDTH, 1), 1.0, WIDTH)?;
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
            scratch: backend.product_scratch(shape.rows, WIDTH)?,
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
        backend.logits(&self.output, rows, &state.x, &mut state.scratch, &mut state.logits)
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
        let backend = Cuda::new(context.clone(), Dtype::F32);
        let models: Arc<[_]> = Arc::from(vec![Mini::new(&backend)?]);
        Ok::<_, Error>((backend, models))
    };
    let replicas: Result<Vec<_>> = (0..replicas).map(replica).collect();
    Engine::start_replicas(replicas.expect("the model fits"), VOCAB, 2, DEFAULT_QUEUE).expect("a thread starts")
}

fn source(length: usize) -> Vec<u32> {
    (1..length as u32).map(|i| 3 + i * 5 % 6).chain([0]).collect()
}

fn searched(options: &DecodeOptions, source: Vec<u32>) -> Request {
    Request::new(options, source.into(), super::tests::limits(MAX_LEN)).expect("a search that can be")
}

/// What has been asked for.
enum Asked {
    Search(Handle<Vec<Hypothesis>>),
    Score(Handle<Vec<crate::backend::TokenStats>>),
}

fn submit(engine: &Engine, ask: Ask) -> Result<Asked> {
    match ask {
        Ask::Search { length, beam_size } => {
            let options = DecodeOptions { beam_size, max_length: MaxLength::Absolute(6), ..DecodeOptions::default() };
            let request = searched(&options, source(length));
            engine.ask(Search(request), Terms::new()).map(Asked::Search)
        }
        Ask::Score { length } => {
            let scoring = Scoring { source: source(3), target: source(length), inputs: None };
            engine.ask(scoring, Terms::new()).map(Asked::Score)
        }
    }
}

/// The answers, by the order of asking; each must come.
fn ask(engine: &Engine, asks: &[Ask]) -> Vec<Result<Vec<Vec<u32>>>> {
    const LONG: Duration = Duration::from_secs(60);
    let asked: Vec<Result<Asked>> = asks.iter().map(|&ask| submit(engine, ask)).collect();
    let answer = |asked: Result<Asked>| match asked? {
        Asked::Search(mut handle) => {
            let found = handle.wait_for(LONG).expect("every search is answered")?;
            Ok(found.into_iter().map(|hypothesis| hypothesis.token_ids).collect())
        }
        Asked::Score(mut handle) => {
            let stats = handle.wait_for(LONG).expect("every target is answered")?;
            Ok(vec![stats.into_iter().map(|s| s.log_prob.to_bits()).collect()])
        }
    };
    asked.into_iter().map(answer).collect()
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
        // A session that does not fit is opened with fewer slots.
        assert!(failed > 0 || fault == Fault::Allocation, "{fault:?} {n} went unnoticed");
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
        assert!(!engine.is_running());
    }
}

#[test]
#[cfg_attr(not(emulated), ignore = "needs a C++ compiler")]
fn replicas_share_a_queue_and_go_on_without_a_lost_one() {
    let contexts = [0; 2].map(|_| cuda::open_emulated().expect("there is an emulator"));
    let replica = |context: &Context| {
        let backend = Cuda::new(context.clone(), Dtype::F32);
        let models: Arc<[_]> = Arc::from(vec![Mini::new(&backend).expect("the model fits")]);
        (backend, models)
    };
    let engine =
        Engine::start_replicas(contexts.iter().map(replica).collect(), VOCAB, 1, DEFAULT_QUEUE).expect("threads start");
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
    for round in 0..50 {
        // A caller that hangs up, and now and then a failure of each kind.
        drop(submit(&engine, mixed(round)).expect("it fits"));
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
    let backend = Cuda::new(full, Dtype::F32);
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
                Error::OutOfMemory { needed, available, .. } => {
                    assert_eq!((needed, available), (bytes(1), Some(memory)))
                }
                error => panic!("{error}"),
            }
        }
        // What is smaller still fits.
        all_well(ask(&engine, &[Ask::Search { length: 2, beam_size: 1 }]));
    }
}

/// Collects what comes out of a session.
#[derive(Default)]
struct Collected {
    steps: Vec<(u64, usize)>,
    ended: Vec<(u64, Vec<Vec<u32>>)>,
}

impl session::Receive for Collected {
    fn step(&mut self, ticket: u64, observation: observation::Observation) {
        self.steps.push((ticket, observation.step));
    }

    fn ended(&mut self, ticket: u64, result: Result<Vec<Hypothesis>>) {
        let found = result.expect("finite logits");
        self.ended.push((ticket, found.into_iter().map(|hypothesis| hypothesis.token_ids).collect()));
    }
}

/// A sentence is evicted at every point of its way, another takes its slot at once, and the rest never notice.
fn evict_at_any_time<B: Backend>(backend: &B) {
    let models = [Mini::new(backend).expect("it fits")];
    let options = DecodeOptions { beam_size: 3, min_length: 9, ..DecodeOptions::default() };
    let request = |length: usize| searched(&options, source(length));
    let requests = [request(3), request(6), request(4)];
    let shape = requests.iter().fold(None, |shape, request| Some(request.grown(shape, 2))).expect("some");
    let run = |evicted_after: Option<usize>| {
        let mut session = Session::open(backend, &models, shape).expect("it fits");
        let admission = |slot, ticket: usize, watched| session::Admission {
            slot,
            ticket: ticket as u64,
            request: &requests[ticket],
            watched,
        };
        let mut collected = Collected::default();
        session.admit(backend, &models, &[admission(0, 0, false)]).expect("it fits");
        session.step(backend, &models).expect("no fault is planned");
        if let Some(after) = evicted_after {
            // Its encoding is on the way beside the first one's steps.
            session.admit(backend, &models, &[admission(1, 1, true)]).expect("it fits");
            for _ in 0..after {
                session.step(backend, &models).expect("no fault is planned");
                session.harvest(backend, &mut collected).expect("no fault is planned");
            }
            session.evict(backend, &[1, 77]).expect("no fault is planned");
            assert_eq!(session.free_slots().filter(|slot| *slot == 1).count(), 1);
            assert!(session.rows() <= 3);
        }
        let heard = collected.steps.len();
        session.admit(backend, &models, &[admission(1, 2, false)]).expect("it fits");
        while !session.is_empty() {
            session.step(backend, &models).expect("no fault is planned");
            session.harvest(backend, &mut collected).expect("no fault is planned");
        }
        assert_eq!(collected.steps.len(), heard, "nothing more is heard of it");
        collected.ended.retain(|(ticket, _)| *ticket != 1);
        collected.ended.sort();
        collected.ended
    };
    let expected = run(None);
    assert_eq!(expected.len(), 2);
    for after in 0..9 {
        assert_eq!(run(Some(after)), expected, "evicted after {after} steps");
    }
}

#[test]
fn eviction_frees_a_slot_at_once_and_disturbs_nobody_on_the_cpu() {
    evict_at_any_time(&crate::cpu::Cpu::new(1, Dtype::F32).expect("a thread starts"));
}

#[test]
#[cfg_attr(not(emulated), ignore = "needs a C++ compiler")]
fn eviction_frees_a_slot_at_once_and_disturbs_nobody_on_a_device() {
    evict_at_any_time(&Cuda::new(cuda::open_emulated().expect("there is an emulator"), Dtype::F32));
}

#[test]
#[cfg_attr(not(emulated), ignore = "needs a C++ compiler")]
fn whatever_comes_and_goes_on_a_device_a_result_is_what_it_is_alone() {
    let context = cuda::open_emulated().expect("there is an emulator");
    let crowd = engine(&context, 1);
    let ask = |engine: &Engine, i: usize| {
        let beam_size = [2, 1, 4, 20][i % 4];
        let options =
            DecodeOptions { beam_size, attention: i.is_multiple_of(5), min_length: i % 9, ..DecodeOptions::default() };
        let request = searched(&options, source(1 + i % 11));
        match i % 6 {
            0 => engine.ask_watched(request, Terms::new()),
            _ => engine.ask(Search(request), Terms::new()),
        }
    };
    let mut asked = Vec::new();
    for i in 0..60 {
        asked.push((i, ask(&crowd, i).expect("it fits")));
        if i % 3 == 2 {
            // Given up while it waits, runs or has ended, as it happens.
            std::thread::sleep(Duration::from_micros(150 * i as u64));
            asked.remove(asked.len() - 2);
        }
    }
    let told = |handle: &mut Handle<Vec<Hypothesis>>| -> Vec<u32> {
        handle.progress().flat_map(|progress| progress.tokens).collect()
    };
    for (i, mut handle) in asked {
        let tokens = told(&mut handle);
        let found = handle.wait().expect("nothing fails");
        let alone = engine(&cuda::open_emulated().expect("there is an emulator"), 1);
        assert_eq!(found, ask(&alone, i).expect("it fits").wait().expect("nothing fails"), "sentence {i}");
        assert!(i % 6 != 0 || tokens == found[0].token_ids, "sentence {i}");
    }
    drop(crowd);
    let left = context.counters();
    assert_eq!((left.live_bytes, left.pinned_bytes), (0, 0));
}
