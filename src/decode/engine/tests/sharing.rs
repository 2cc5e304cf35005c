//! Sentences of several owners, wide ones and light ones: who has which share of the steps, counted in decoder rows.

use std::sync::atomic::AtomicBool;

use super::*;

/// A model that goes on to the limit, the rows that it has computed, and what its first step waits for: whatever comes until then is
/// there from the second step on.
fn counting_rows() -> (Scripted, Arc<AtomicUsize>, Arc<Barrier>) {
    let (total, begun) = (Arc::new(AtomicUsize::new(0)), Arc::new(Barrier::new(2)));
    let (rows, waits) = (total.clone(), begun.clone());
    let hook = move |sources: &[u64], _| {
        if rows.fetch_add(sources.len(), Ordering::Relaxed) == 0 {
            waits.wait();
        }
    };
    (Scripted { eos_bonus: -30.0, hook: Some(Hook(Arc::new(hook))), ..MODEL }, total, begun)
}

/// Rows that had been computed when each of the regular sentences ended, with or without a wide one beside them.
fn completions(wide: bool) -> Vec<usize> {
    let (model, total, begun) = counting_rows();
    let engine = start(model, 32);
    let ends: Arc<Mutex<Vec<usize>>> = Arc::default();
    let submit = |i: u32, options: &DecodeOptions, counts: bool| {
        let (ends, total) = (ends.clone(), total.clone());
        let reply = move |result: Result<Vec<Hypothesis>>| {
            assert!(result.is_ok());
            if counts {
                ends.lock().expect("no panic").push(total.load(Ordering::Relaxed));
            }
        };
        engine.submit(search(source(i), options), Terms::new(), reply).expect("it fits");
    };
    (0..31).for_each(|i| submit(i, &options(4, 20 + i as usize % 10), true));
    if wide {
        submit(99, &options(64, 30), false);
    }
    begun.wait();
    drop(engine);
    let mut ends = std::mem::take(&mut *ends.lock().expect("no panic"));
    assert_eq!(ends.len(), 31);
    ends.sort_unstable();
    ends
}

#[test]
fn a_wide_search_takes_its_share_and_no_more() {
    let (alone, beside) = (completions(false), completions(true));
    let (alone, beside) = (alone[15] as f64, beside[15] as f64);
    // A quarter of the steps at most: the others take 4/3 of their time.
    assert!(beside > 1.05 * alone && beside < 1.35 * alone, "median {beside} rows after {alone}");
}

/// Rows that had been computed when the sentences of other owners ended, one each, which came when one owner had much waiting.
fn ends_beside_much(others: u64, slots: usize) -> Vec<usize> {
    let (model, total, begun) = counting_rows();
    let options = options(4, 20);
    let alone = translate_one(&Scripted { hook: None, ..model.clone() }, &source(500), &options);
    let cpu = Cpu::new(1, Dtype::F32).expect("a thread starts");
    let engine = Engine::start(vec![cpu], vec![model], 256, slots, 4096).expect("a thread starts");
    let much: Vec<_> = (0..400)
        .map(|i| engine.ask(search(source(i), &options), Terms::new().owner(1)).expect("there is room"))
        .collect();
    let ends: Arc<Mutex<Vec<usize>>> = Arc::default();
    for owner in 2..2 + others {
        let (ends, total, alone) = (ends.clone(), total.clone(), alone.clone());
        let reply = move |result: Result<Vec<Hypothesis>>| {
            assert_eq!(result.expect("it is translated"), alone);
            ends.lock().expect("no panic").push(total.load(Ordering::Relaxed));
        };
        engine.submit(search(source(500), &options), Terms::new().owner(owner), reply).expect("there is room");
    }
    begun.wait();
    much.into_iter().for_each(|handle| assert!(handle.wait().is_ok()));
    drop(engine);
    std::mem::take(&mut *ends.lock().expect("no panic"))
}

#[test]
fn an_owner_with_much_to_do_does_not_slow_down_the_steps_of_another() {
    // 20 steps of 4 rows and one or two of 128; among 31 others they would be 20 of 128.
    let ends = ends_beside_much(1, 32);
    assert!(ends.len() == 1 && ends[0] < 400, "{ends:?}");
    // More than its session has slots for: they have a share of the others' as well. In turn with all of the first one's these are 56,000
    // rows.
    let ends = ends_beside_much(40, 32);
    assert!(ends.len() == 40 && ends[39] < 12_000, "{ends:?}");
    // A session of one slot is empty behind each of them, and they have their share for all that: all of them in one go would be 3,300
    // rows.
    let ends = ends_beside_much(40, 8);
    assert!(ends.len() == 40 && ends[39] > 5_000 && ends[39] < 12_000, "{ends:?}");
}

/// Rows that had been computed when the last of `links` light sentences ended, of which each came a step of the others after the one
/// before it had ended, when their session had been closed.
fn end_of_a_chain_beside_much(links: usize, slots: usize) -> usize {
    let (total, begun) = (Arc::new(AtomicUsize::new(0)), Arc::new(Barrier::new(2)));
    let engine: Arc<Mutex<Option<Engine>>> = Arc::default();
    let (is_free, ended, end) =
        (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)), Arc::new(OnceLock::new()));
    let options = options(4, 20);
    let submit = {
        let (engine, total, is_free, ended, end) =
            (engine.clone(), total.clone(), is_free.clone(), ended.clone(), end.clone());
        let options = options.clone();
        move || {
            let (total, is_free, ended, end) = (total.clone(), is_free.clone(), ended.clone(), end.clone());
            let reply = move |result: Result<Vec<Hypothesis>>| {
                assert!(result.is_ok());
                if ended.fetch_add(1, Ordering::Relaxed) + 1 == links {
                    end.set(total.load(Ordering::Relaxed)).expect("one is the last");
                } else {
                    is_free.store(true, Ordering::Relaxed);
                }
            };
            if let Some(engine) = &*engine.lock().expect("no panic") {
                engine.submit(search(source(500), &options), Terms::new().owner(2), reply).expect("there is room");
            }
        }
    };
    let (rows, waits, light) = (total.clone(), begun.clone(), Scripted::number(&source(500)));
    let hook = move |sources: &[u64], _| {
        if rows.fetch_add(sources.len(), Ordering::Relaxed) == 0 {
            waits.wait();
        }
        if !sources.contains(&light) && is_free.swap(false, Ordering::Relaxed) {
            submit();
        }
    };
    let model = Scripted { eos_bonus: -30.0, hook: Some(Hook(Arc::new(hook))), ..MODEL };
    let cpu = Cpu::new(1, Dtype::F32).expect("a thread starts");
    let started = Engine::start(vec![cpu], vec![model], 256, slots, 4096).expect("a thread starts");
    let ask = |i| started.ask(search(source(i), &options), Terms::new().owner(1)).expect("there is room");
    let much: Vec<_> = (0..400).map(ask).collect();
    *engine.lock().expect("no panic") = Some(started);
    begun.wait();
    much.into_iter().for_each(|handle| assert!(handle.wait().is_ok()));
    let started = engine.lock().expect("no panic").take();
    drop(started);
    *end.get().expect("all have ended before the others")
}

#[test]
fn an_owner_whose_sentences_come_one_after_another_has_its_share_and_no_more() {
    // 3,200 rows of its own; as much time goes to the others meanwhile. Were each let in with a head start of its own, they would have
    // no more than a step behind each: 4,500 rows in all.
    let end = end_of_a_chain_beside_much(40, 8);
    assert!(end > 8_000 && end < 16_000, "{end}");
}

#[test]
fn nothing_is_let_in_beside_the_others_while_a_light_sentence_goes_before_them() {
    let (begun, encoded, seen) =
        (Arc::new(Barrier::new(2)), Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
    let (waits, counted, notes, light) = (begun.clone(), encoded.clone(), seen.clone(), Scripted::number(&source(500)));
    let hook = move |sources: &[u64], _| {
        let mut seen = notes.lock().expect("no panic");
        if seen.is_empty() {
            waits.wait();
        }
        seen.push((sources.contains(&light), counted.load(Ordering::Relaxed)));
    };
    let model = Scripted { eos_bonus: -30.0, hook: Some(Hook(Arc::new(hook))), encoded: Some(encoded), ..MODEL };
    let engine = start(model, 8);
    let ask = |i, owner, length| {
        engine.ask(search(source(i), &options(4, length)), Terms::new().owner(owner)).expect("there is room")
    };
    // Those that run are done after a step, so that there is room for eight more.
    let much: Vec<_> = (0..40).map(|i| ask(i, 1, 1)).collect();
    let one = ask(500, 2, 20);
    begun.wait();
    much.into_iter().chain([one]).for_each(|handle| assert!(handle.wait().is_ok()));
    drop(engine);
    let seen = seen.lock().expect("no panic");
    // What comes in does so before the others' own steps.
    let turns = seen.windows(2).filter(|pair| !pair[0].0 && pair[1].0).count();
    let late = seen.windows(2).filter(|pair| pair[1].0 && pair[0].1 < pair[1].1).count();
    assert!(turns > 2 && late == 0, "{seen:?}");
}
