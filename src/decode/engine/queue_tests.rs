use std::sync::Arc;

use super::*;
use crate::decode::engine::handle::Reply;
use crate::decode::engine::job::{Search, Work};
use crate::decode::{DecodeOptions, Hypothesis, Limits, Request};

/// A queue, and what became of the jobs that were answered without having been taken.
struct Bench {
    queue: Arc<Queue>,
    answers: std::sync::mpsc::Receiver<(usize, Result<Vec<Hypothesis>>)>,
    sender: std::sync::mpsc::Sender<(usize, Result<Vec<Hypothesis>>)>,
}

impl Bench {
    fn new(capacity: usize) -> Self {
        let (sender, answers) = std::sync::mpsc::channel();
        Bench { queue: Arc::new(Queue::new(capacity)), answers, sender }
    }

    /// A sentence of so many tokens; its number of tokens is its name.
    fn job(&self, length: usize, terms: Terms) -> Job {
        let options = DecodeOptions { beam_size: 1, ..DecodeOptions::default() };
        let limits = Limits { table: 1000, amateur: 1 };
        let request = Request::new(&options, vec![3; length].into(), limits).expect("a search that can be");
        let sender = self.sender.clone();
        let reply = Reply::new(move |result| drop(sender.send((length, result))));
        Job::new(Search(request).task(reply), terms, Canceller::new(&self.queue))
    }

    fn push(&self, length: usize, terms: Terms) -> Canceller {
        let job = self.job(length, terms);
        let canceller = job.canceller.clone();
        self.queue.push(job, false).expect("there is room");
        canceller
    }

    fn take(&self, count: usize) -> Vec<usize> {
        self.take_of(Kind::Regular, count)
    }

    fn take_of(&self, kind: Kind, count: usize) -> Vec<usize> {
        let taken = self.queue.take(kind, count, |_| true);
        let name = |job: Job| {
            let length = job.cost as usize / 2;
            job.forget();
            length
        };
        taken.into_iter().map(name).collect()
    }
}

#[test]
fn first_come_first_served_within_an_owner() {
    let bench = Bench::new(100);
    let terms = Terms::new();
    (1..=9).for_each(|length| drop(bench.push(length, terms)));
    assert_eq!(bench.take(4), [1, 2, 3, 4]);
    assert_eq!(bench.take(100), [5, 6, 7, 8, 9]);
    assert_eq!(bench.queue.load(), Load::default());
}

#[test]
fn owners_take_turns_by_cost() {
    let bench = Bench::new(1000);
    // One with more to do, and one with a single sentence that comes last.
    (0..7).for_each(|_| drop(bench.push(100, Terms::new().owner(1))));
    bench.push(7, Terms::new().owner(2));
    let first = bench.take(5);
    assert!(first.contains(&7), "{first:?}");
    // Two that have as much to do, one in long sentences, get the same number of tokens.
    let bench = Bench::new(1000);
    bench.push(100, Terms::new().owner(2));
    (0..200).for_each(|_| drop(bench.push(10, Terms::new().owner(1))));
    (0..19).for_each(|_| drop(bench.push(100, Terms::new().owner(2))));
    let taken = bench.take(110);
    let short: usize = taken.iter().filter(|length| **length == 10).sum();
    let long: usize = taken.iter().filter(|length| **length == 100).sum();
    assert!(short.abs_diff(long) <= 300, "{short} and {long} tokens");
}

#[test]
fn little_work_beside_much_waits_apart() {
    let bench = Bench::new(1000);
    let [much, little, other] = [1, 2, 3].map(|owner| Terms::new().owner(owner));
    bench.push(1, little);
    (0..10).for_each(|_| drop(bench.push(100, much)));
    // In order: its first one waits among the others.
    bench.push(2, little);
    bench.push(3, other);
    assert_eq!(bench.take_of(Kind::Light, 9), [3]);
    let batch = Terms::new().priority(Priority::Batch);
    bench.push(4, batch);
    assert_eq!(bench.take(3), [1, 2, 100]);
    bench.push(5, little);
    // More than little.
    (0..4).for_each(|_| drop(bench.push(90, other)));
    (0..2).for_each(|_| drop(bench.push(91, other)));
    assert_eq!(bench.take_of(Kind::Light, 99), [5, 90, 90, 90, 90]);
    let cancelled = bench.push(6, little);
    cancelled.cancel();
    bench.queue.sweep(Instant::now());
    assert!(bench.take_of(Kind::Light, 9).is_empty());
    // What has begun counts until it ends; then there is no longer much.
    let begun = bench.queue.take(Kind::Regular, 99, |_| true);
    bench.push(7, little);
    assert_eq!(bench.take_of(Kind::Light, 9), [7]);
    begun.into_iter().for_each(Job::forget);
    bench.push(8, little);
    assert_eq!((bench.take_of(Kind::Light, 9), bench.take(9)), (vec![], vec![8]));
}

#[test]
fn batch_work_waits_but_does_not_starve() {
    let bench = Bench::new(1000);
    (0..100).for_each(|_| drop(bench.push(2, Terms::new().owner(1).priority(Priority::Batch))));
    (0..100).for_each(|_| drop(bench.push(1, Terms::new().owner(2))));
    let taken = bench.take(50);
    assert_eq!(taken.iter().filter(|length| **length == 2).count(), 5, "{taken:?}");
    // What has waited for long is promoted.
    let mut old = bench.job(3, Terms::new().owner(1).priority(Priority::Batch));
    old.accepted = old.accepted.checked_sub(PROMOTION).expect("the machine has been up for longer");
    let fresh = Bench::new(10);
    fresh.queue.push(old, false).expect("there is room");
    (0..5).for_each(|_| drop(fresh.push(1, Terms::new())));
    assert_eq!(fresh.take(2)[0], 3);
}

#[test]
fn what_is_given_up_or_late_leaves_and_makes_room() {
    let bench = Bench::new(3);
    let given_up = bench.push(1, Terms::new());
    bench.push(2, Terms::new().within(Duration::from_millis(10)));
    bench.push(3, Terms::new().priority(Priority::Batch));
    let full = bench.queue.push(bench.job(4, Terms::new()), false).expect_err("it is full");
    assert!(matches!(full, Error::Overloaded { waiting: 3, limit: 3 }));
    bench.queue.sweep(Instant::now());
    let Load { waiting, batch, .. } = bench.queue.load();
    assert_eq!((waiting, batch), (3, 1));
    given_up.cancel();
    bench.queue.sweep(Instant::now());
    assert!(matches!(bench.answers.try_recv(), Ok((1, Err(Error::Cancelled)))));
    bench.queue.sweep(Instant::now() + Duration::from_millis(20));
    assert!(matches!(bench.answers.try_recv(), Ok((2, Err(Error::DeadlineExceeded)))));
    assert_eq!(bench.take(9), [3]);
    assert_eq!(bench.queue.load(), Load::default());
    // Nobody answers for a job that was refused: its caller has the error.
    assert!(bench.answers.try_recv().is_err());
}

#[test]
fn a_worker_without_work_finds_some() {
    let bench = Bench::new(100);
    let queue = bench.queue.clone();
    let idle = std::thread::spawn(move || queue.wait());
    while bench.queue.state().idle == 0 {
        std::thread::yield_now();
    }
    {
        // Both at once, before the idle one wakes.
        let mut state = bench.queue.state();
        (1..=6).for_each(|length| state.accept(bench.job(length, Terms::new().owner(1))));
    }
    assert_eq!(bench.take(100), [1, 2, 3]);
    bench.queue.work.notify_all();
    assert!(idle.join().expect("no panic"));
}

#[test]
fn a_failed_queue_answers_all_and_refuses_all() {
    let bench = Bench::new(10);
    bench.push(1, Terms::new());
    bench.queue.fail(Error::DeviceLost { device: "cuda:0".into(), reason: "gone".into() });
    assert!(matches!(bench.answers.try_recv(), Ok((1, Err(Error::DeviceLost { .. })))));
    let refused = bench.queue.push(bench.job(2, Terms::new()), true);
    assert!(matches!(refused, Err(Error::DeviceLost { .. })));
    bench.queue.put_back(vec![bench.job(3, Terms::new())]);
    assert!(matches!(bench.answers.try_recv(), Ok((3, Err(Error::DeviceLost { .. })))));
    assert!(!bench.queue.wait());
}
