//! The engine as a service meets it: giving up, deadlines, crowds, wide requests, broken workers. The hook of the scripted model
//! runs on the worker's thread before each step, so that what happens when is up to the test.

mod arrivals;
mod sharing;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, OnceLock};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

use super::*;
use crate::Dtype;
use crate::cpu::Cpu;
use crate::decode::tests::{Hook, MODEL, Scripted, asked, source, translate_one};
use crate::decode::{DecodeOptions, MaxLength};

/// Sources of the rows of each step, searches apart from scoring.
#[derive(Default)]
struct Log(Mutex<Vec<(Vec<u64>, bool)>>);

impl Log {
    fn steps(&self) -> Vec<(Vec<u64>, bool)> {
        self.0.lock().expect("no test panics here").clone()
    }

    /// Whether a source was in each search step.
    fn presence(&self, source: &[u32]) -> Vec<bool> {
        let number = Scripted::number(source);
        self.steps().iter().filter(|step| step.1).map(|(rows, _)| rows.contains(&number)).collect()
    }
}

/// A model that goes on to the limit, logs its steps, and calls `hook` with the number of the search step, from 1.
fn endless(log: &Arc<Log>, hook: impl Fn(usize) + Send + Sync + 'static) -> Scripted {
    let (log, steps) = (log.clone(), AtomicUsize::new(0));
    let hook = Hook(Arc::new(move |sources: &[u64], is_search| {
        log.0.lock().expect("no test panics here").push((sources.to_vec(), is_search));
        if is_search {
            hook(1 + steps.fetch_add(1, Ordering::Relaxed));
        }
    }));
    Scripted { eos_bonus: -30.0, hook: Some(hook), ..MODEL }
}

fn start(model: Scripted, slots: usize) -> Engine {
    let cpu = Cpu::new(1, Dtype::F32).expect("a thread starts");
    Engine::start(vec![cpu], vec![model], 256, slots, 64).expect("a thread starts")
}

fn options(beam_size: usize, length: usize) -> DecodeOptions {
    DecodeOptions { beam_size, max_length: MaxLength::Absolute(length), ..DecodeOptions::default() }
}

fn search(source: Vec<u32>, options: &DecodeOptions) -> Search {
    Search(asked(options, source))
}

#[test]
fn a_sentence_given_up_frees_its_slot_after_the_step_under_way() {
    let log = Arc::new(Log::default());
    let canceller: Arc<OnceLock<Canceller>> = Arc::default();
    let cancels = canceller.clone();
    let ready = Arc::new(Barrier::new(2));
    let waits = ready.clone();
    let model = endless(&log, move |step| match step {
        1 => drop(waits.wait()),
        5 => cancels.wait().cancel(),
        _ => {}
    });
    let engine = start(model.clone(), 1);
    let gone = engine.ask(search(source(1), &options(4, 30)), Terms::new()).expect("it fits");
    let next = engine.ask(search(source(2), &options(4, 8)), Terms::new()).expect("it fits");
    canceller.set(gone.canceller().expect("it is not done")).expect("it is set once");
    ready.wait();
    assert!(matches!(gone.wait(), Err(Error::Cancelled)));
    let found = next.wait().expect("it has its slot");
    drop(engine);
    assert_eq!(found, translate_one(&Scripted { hook: None, ..model }, &source(2), &options(4, 8)));
    let expected = |present: usize, of: usize| (0..of).map(|step| step < present).collect::<Vec<_>>();
    assert_eq!(log.presence(&source(1)), expected(5, 13));
    assert_eq!(log.presence(&source(2)), expected(5, 13).iter().map(|there| !there).collect::<Vec<_>>());
}

#[test]
fn a_dropped_handle_gives_its_sentence_up_and_leaves_the_others_alone() {
    let log = Arc::new(Log::default());
    let ready = Arc::new(Barrier::new(2));
    let waits = ready.clone();
    let model = endless(&log, move |step| {
        if step <= 2 {
            waits.wait();
        }
    });
    let engine = start(model.clone(), 4);
    let asked: Vec<_> = (0..4).map(|i| (i, engine.ask(search(source(i), &options(3, 20)), Terms::new()))).collect();
    ready.wait();
    let kept: Vec<_> = asked.into_iter().filter(|(i, _)| i % 2 == 0).collect();
    ready.wait();
    for (i, handle) in kept {
        let found = handle.expect("it fits").wait().expect("it is still wanted");
        assert_eq!(found, translate_one(&Scripted { hook: None, ..model.clone() }, &source(i), &options(3, 20)));
    }
    drop(engine);
    for i in [1, 3] {
        assert!(log.presence(&source(i)).iter().filter(|there| **there).count() <= 3, "{i}");
    }
}

#[test]
fn a_deadline_ends_what_runs_and_what_waits() {
    let log = Arc::new(Log::default());
    let model = endless(&log, |_| std::thread::sleep(Duration::from_millis(5)));
    let engine = start(model, 1);
    let soon = Terms::new().within(Duration::from_millis(40));
    let running = engine.ask(search(source(1), &options(2, 40)), soon).expect("it fits");
    let waiting = engine.ask(search(source(2), &options(2, 40)), soon).expect("it fits");
    let patient = engine.ask(search(source(3), &options(2, 4)), Terms::new()).expect("it fits");
    assert!(matches!(running.wait(), Err(Error::DeadlineExceeded)));
    assert!(matches!(waiting.wait(), Err(Error::DeadlineExceeded)));
    assert!(patient.wait().is_ok());
    drop(engine);
    assert!(log.steps().len() < 40, "{} steps", log.steps().len());
    assert!(!log.presence(&source(2)).contains(&true));
}

#[test]
fn a_full_queue_refuses_or_lets_wait_and_giving_up_makes_room() {
    let ready = Arc::new(Barrier::new(2));
    let waits = ready.clone();
    let model = endless(&Arc::default(), move |step| {
        if step <= 2 {
            waits.wait();
        }
    });
    let cpu = Cpu::new(1, Dtype::F32).expect("a thread starts");
    let engine = Engine::start(vec![cpu], vec![model], 256, 1, 2).expect("a thread starts");
    let ask = |i| engine.ask(search(source(i), &options(1, 3)), Terms::new());
    let running = ask(0).expect("there is room");
    // It has left the queue once it is in its first step.
    while engine.load().waiting > 0 {
        std::thread::yield_now();
    }
    let waiting = [1, 2].map(|i| ask(i).expect("there is room"));
    let refused = ask(3).expect_err("the queue is full");
    assert!(matches!(refused, Error::Overloaded { waiting: 2, limit: 2 }), "{refused}");
    let (sender, replies) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let patient = scope.spawn(|| {
            let reply = move |result: Result<Vec<Hypothesis>>| sender.send(result.is_ok()).expect("the test waits");
            engine.submit(search(source(4), &options(1, 3)), Terms::new(), reply).expect("it waits for room")
        });
        let [first, second] = waiting;
        drop(first);
        ready.wait();
        patient.join().expect("it has been accepted");
        ready.wait();
        assert!(running.wait().is_ok() && second.wait().is_ok());
    });
    assert_eq!(replies.recv(), Ok(true));
}

#[test]
fn a_dead_worker_is_replaced_and_three_deaths_end_the_engine() {
    // The poisoned source kills the worker at its third step.
    let poisoned = Scripted::number(&source(7));
    let (count, ready) = (AtomicUsize::new(0), Arc::new(Barrier::new(2)));
    let waits = ready.clone();
    let hook = move |sources: &[u64], _| {
        if sources.contains(&poisoned) {
            match count.fetch_add(1, Ordering::Relaxed) % 3 {
                0 => drop(waits.wait()),
                1 => {}
                _ => panic!("the model has a bad day"),
            }
        }
    };
    let model = Scripted { eos_bonus: -30.0, hook: Some(Hook(Arc::new(hook))), ..MODEL };
    let engine = start(model, 2);
    let ask = |i, length| engine.ask(search(source(i), &options(2, length)), Terms::new());
    for death in 1..=3 {
        let asked = [7, 1, 2].map(|i| ask(i, 9).expect("the engine runs"));
        ready.wait();
        let [killer, beside, after] = asked.map(Handle::wait);
        for lost in [killer, beside] {
            let error = lost.expect_err("its worker died");
            assert!(matches!(&error, Error::WorkerLost { reason } if reason == "the model has a bad day"), "{error}");
        }
        match after {
            Ok(_) => assert!(death < 3),
            Err(error) => assert!(death == 3 && matches!(error, Error::EngineFailed { deaths: 3, .. }), "{error}"),
        }
    }
    assert!(!engine.is_running());
    let refused = ask(1, 9).expect_err("the engine has failed");
    assert_eq!(refused.kind(), "engine_failed");
}

#[test]
fn wide_searches_alone_have_all_slots_that_their_rows_allow() {
    let log = Arc::new(Log::default());
    let engine = start(endless(&log, |_| {}), 4);
    let asked: Vec<_> = (0..6).map(|i| engine.ask(search(source(i), &options(32, 6)), Terms::new())).collect();
    asked.into_iter().for_each(|handle| assert!(handle.expect("it fits").wait().is_ok()));
    drop(engine);
    // 4 * 16 rows: two sentences of 32.
    assert_eq!(log.steps().iter().map(|(rows, _)| rows.len()).max(), Some(64));
}

#[test]
fn a_longer_sentence_does_not_wait_for_slots_to_run_dry() {
    let log = Arc::new(Log::default());
    let begun = Arc::new(Barrier::new(2));
    let waits = begun.clone();
    let model = endless(&log, move |step| {
        if step == 1 {
            waits.wait();
        }
    });
    let engine = start(model, 8);
    let short: Vec<_> = (0..3).map(|i| engine.ask(search(source(i), &options(2, 30)), Terms::new())).collect();
    let attention = DecodeOptions { attention: true, ..options(8, 38) };
    let larger = engine.ask(search(source(9), &attention), Terms::new()).expect("it fits");
    begun.wait();
    short.into_iter().for_each(|handle| assert!(handle.expect("it fits").wait().is_ok()));
    assert!(larger.wait().is_ok());
    drop(engine);
    // It had begun when the shorter ones were at their second step.
    assert!(log.presence(&source(9)).iter().position(|there| *there).is_some_and(|first| first <= 3));
}

#[test]
fn scoring_and_explaining_never_hold_a_search_for_longer_than_a_step() {
    let log = Arc::new(Log::default());
    let begun = Arc::new(Barrier::new(2));
    let waits = begun.clone();
    let model = endless(&log, move |step| {
        if step == 1 {
            waits.wait();
        }
    });
    let engine = start(model, 4);
    let searches: Vec<_> = (0..4).map(|i| engine.ask(search(source(i), &options(4, 30)), Terms::new())).collect();
    let explained = Explain(asked(&options(4, 38), source(50)));
    let explained = engine.ask(explained, Terms::new()).expect("it fits");
    let pair = |i: u32| Scoring { source: source(i), target: vec![3; 39], inputs: None };
    let scored: Vec<_> = (60..80).map(|i| engine.ask(pair(i), Terms::new())).collect();
    begun.wait();
    searches.into_iter().for_each(|handle| assert!(handle.expect("it fits").wait().is_ok()));
    explained.wait().expect("it ends");
    scored.into_iter().for_each(|handle| assert!(handle.expect("it fits").wait().is_ok()));
    drop(engine);
    let steps = log.steps();
    let regular: Vec<u64> = (0..4).map(|i| Scripted::number(&source(i))).collect();
    let is_regular = |(rows, _): &(Vec<u64>, bool)| rows.iter().any(|row| regular.contains(row));
    let searched = steps.iter().rposition(is_regular).expect("they were searched for");
    let mut between = 0;
    for (rows, is_search) in &steps[1..searched] {
        if rows.iter().any(|row| regular.contains(row)) {
            between = 0;
        } else {
            // A pass takes no more rows than the fewest that are worth it.
            assert!(*is_search || rows.len() <= 32, "{} rows at once", rows.len());
            between += rows.len();
            assert!(between <= 32 + 4, "{between} rows of others between two steps");
        }
    }
    assert!(steps[..searched].iter().any(|step| !step.1), "nothing was scored beside the searches");
}

#[test]
fn progress_is_never_taken_back_and_makes_the_result() {
    let sampling = |samples| DecodeOptions { sample: true, samples, seed: 5, ..options(4, 30) };
    let all = [
        options(1, 30),
        options(4, 30),
        DecodeOptions { n_best: 6, beam_groups: 3, diversity: 0.5, ..options(6, 30) },
        sampling(1),
        sampling(3),
        DecodeOptions { cut: true, ..options(5, 4) },
    ];
    let engine = start(MODEL, 4);
    let mut early = 0;
    for options in &all {
        options.validate().expect("the test's options are valid");
        for i in 0..12 {
            let request = asked(options, source(i));
            let mut handle = engine.ask_watched(request, Terms::new()).expect("it fits");
            let mut told = Vec::new();
            let mut last = 0;
            for Progress { step, limit, tokens } in handle.progress() {
                assert!(step >= last && step <= limit);
                last = step;
                early += usize::from(told.is_empty() && !tokens.is_empty() && step < 12);
                told.extend(tokens);
            }
            let found = handle.wait().expect("it ends");
            assert_eq!(told, found[0].token_ids, "{options:?}");
            assert_eq!(found, translate_one(&MODEL, &source(i), options));
        }
    }
    assert!(early > all.len(), "{early} told before the end");
}

#[test]
fn greedy_search_settles_each_token_with_its_step() {
    let log = Arc::new(Log::default());
    let (engine, length) = (start(endless(&log, |_| std::thread::sleep(Duration::from_millis(3))), 1), 12);
    let request = asked(&options(1, length), source(3));
    let mut handle = engine.ask_watched(request, Terms::new()).expect("it fits");
    let told: Vec<Progress> = handle.progress().collect();
    let tokens: usize = told.iter().map(|progress| progress.tokens.len()).sum();
    assert_eq!(tokens, length);
    // Some may have been merged on a machine that is busy with something else.
    assert!(told.len() > 3, "{told:?}");
    assert!(told[..told.len() - 1].iter().all(|progress| progress.tokens.len() <= progress.step));
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// The least that an executor is.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(value) => return value,
            Poll::Pending => std::thread::park(),
        }
    }
}

#[test]
fn handles_are_futures_that_can_be_moved() {
    let engine = start(MODEL, 2);
    let ask = |i| engine.ask(search(source(i), &options(4, 20)), Terms::new()).expect("it fits");
    let handles: Vec<_> = (0..6).map(|i| (i, ask(i))).collect();
    let threads = handles.into_iter().map(|(i, handle)| std::thread::spawn(move || (i, block_on(handle))));
    for thread in threads.collect::<Vec<_>>() {
        let (i, found) = thread.join().expect("no panic");
        assert_eq!(found.expect("it ends"), translate_one(&MODEL, &source(i), &options(4, 20)));
    }
    let mut handle = engine.ask_watched(asked(&options(2, 20), source(1)), Terms::new()).expect("fits");
    let mut told = Vec::new();
    while let Some(progress) = block_on(std::future::poll_fn(|context| handle.poll_progress(context))) {
        told.extend(progress.tokens);
    }
    assert_eq!(told, block_on(handle).expect("it ends")[0].token_ids);
}

#[test]
fn dropping_the_engine_finishes_what_it_has_accepted() {
    let engine = start(MODEL, 2);
    let asked: Vec<_> = (0..20).map(|i| engine.ask(search(source(i), &options(4, 20)), Terms::new())).collect();
    drop(engine);
    asked.into_iter().for_each(|handle| assert!(handle.expect("it fits").wait().is_ok()));
}
