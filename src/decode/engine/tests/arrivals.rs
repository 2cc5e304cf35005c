//! Whatever comes, in which order and whatever is given up meanwhile: a result is what it is alone.

use proptest::prelude::*;

use super::*;
use crate::decode::Trace;

/// What someone asks for, and how it ends.
#[derive(Clone, Debug)]
struct Arrival {
    sentence: u32,
    options: usize,
    kind: u8,
    priority: bool,
    owner: u64,
    /// Given up after so many microseconds.
    given_up: Option<u64>,
    pause: u64,
}

fn arrival() -> impl Strategy<Value = Arrival> {
    let given_up = prop_oneof![2 => Just(None), 1 => (0u64..1500).prop_map(Some)];
    (0u32..200, 0usize..8, 0u8..8, any::<bool>(), 0u64..4, given_up, 0u64..300).prop_map(
        |(sentence, options, kind, priority, owner, given_up, pause)| Arrival {
            sentence,
            options,
            kind,
            priority,
            owner,
            given_up,
            pause,
        },
    )
}

fn kinds() -> [DecodeOptions; 8] {
    [
        options(4, 20),
        options(1, 35),
        options(20, 12),
        options(64, 8),
        DecodeOptions { attention: true, ..options(3, 25) },
        DecodeOptions { sample: true, samples: 5, seed: 3, ..options(4, 30) },
        DecodeOptions { beam_groups: 2, diversity: 0.3, ..options(4, 16) },
        DecodeOptions { no_repeat_ngram: 2, repetition_penalty: 1.3, ..options(2, 38) },
    ]
}

enum Asked {
    Search(Handle<Vec<Hypothesis>>),
    Explain(Handle<Trace>),
    Score(Handle<Vec<crate::backend::TokenStats>>),
}

#[derive(Debug, PartialEq)]
enum Bits {
    Found(Vec<Hypothesis>),
    Traced(Trace),
    Scored(Vec<u32>),
}

impl Arrival {
    fn ask(&self, engine: &Engine) -> Result<Asked> {
        let priority = if self.priority { Priority::Interactive } else { Priority::Batch };
        let terms = Terms::new().owner(self.owner).priority(priority);
        let request = asked(&kinds()[self.options], source(self.sentence));
        match self.kind {
            0 => engine.ask(Explain(request), terms).map(Asked::Explain),
            1 => {
                let target = (0..1 + self.sentence % 39).map(|i| 3 + i % 5).collect();
                let scoring = Scoring { source: source(self.sentence), target, inputs: None };
                engine.ask(scoring, terms).map(Asked::Score)
            }
            2 => engine.ask_watched(request, terms).map(Asked::Search),
            _ => engine.ask(Search(request), terms).map(Asked::Search),
        }
    }
}

impl Asked {
    fn cancel(&self) {
        match self {
            Asked::Search(handle) => handle.cancel(),
            Asked::Explain(handle) => handle.cancel(),
            Asked::Score(handle) => handle.cancel(),
        }
    }

    fn wait(self) -> Result<Bits> {
        Ok(match self {
            Asked::Search(handle) => Bits::Found(handle.wait()?),
            Asked::Explain(handle) => Bits::Traced(handle.wait()?),
            Asked::Score(handle) => Bits::Scored(handle.wait()?.iter().map(|s| s.log_prob.to_bits()).collect()),
        })
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn whatever_comes_and_goes_a_result_is_what_it_is_alone(
        arrivals in proptest::collection::vec(arrival(), 1..40),
        slots in 1usize..12,
        workers in 1usize..3,
    ) {
        let cpus = (0..workers).map(|_| Cpu::new(1, Dtype::F32).expect("a thread starts")).collect();
        let engine = Engine::start(cpus, vec![MODEL], 256, slots, 4096).expect("threads start");
        let mut asked = Vec::new();
        for arrival in &arrivals {
            std::thread::sleep(Duration::from_micros(arrival.pause));
            asked.push((arrival, arrival.ask(&engine).expect("there is room"), Instant::now()));
        }
        let mut given_up: Vec<_> = asked.iter().filter(|(arrival, ..)| arrival.given_up.is_some()).collect();
        given_up.sort_by_key(|(arrival, _, at)| *at + Duration::from_micros(arrival.given_up.unwrap_or(0)));
        for (arrival, handle, at) in given_up {
            let due = *at + Duration::from_micros(arrival.given_up.unwrap_or(0));
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            handle.cancel();
        }
        let alone = start(MODEL, 1);
        for (arrival, handle, _) in asked {
            match handle.wait() {
                Ok(bits) => {
                    let solo = arrival.ask(&alone).expect("there is room").wait().expect("nothing disturbs it");
                    prop_assert_eq!(bits, solo, "{:?}", arrival);
                }
                Err(error) => prop_assert!(matches!(error, Error::Cancelled) && arrival.given_up.is_some(), "{error}"),
            }
        }
        // What was given up leaves the queue, too.
        while engine.load() != Load::default() {
            std::thread::yield_now();
        }
    }
}
