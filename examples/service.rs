//! A service in miniature, on tokio: several models in one process, requests with deadlines, callers that give up. It serves a
//! crowd and says what a small request had to wait for beside it.
//!
//! `cargo run --release --example service [NAME=MODEL_DIR ..]`

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use beamfuse::{DecodeOptions, Error, Priority, Result, Terms, Translator};

/// What a caller sends.
#[derive(Clone)]
struct Request {
    model: String,
    text: String,
    beam_size: usize,
    /// Whose it is: callers get equal shares.
    caller: u64,
    /// When the answer is of no more use.
    deadline: Duration,
}

/// Models by name. They share the process's threads: their steps take turns.
struct Service {
    models: BTreeMap<String, Translator>,
}

impl Service {
    fn open(arguments: impl Iterator<Item = String>) -> Result<Self> {
        let mut named: Vec<String> = arguments.collect();
        if named.is_empty() {
            named = ["en-de=models/m30k-en-de", "small=models/m30k-en-de-amateur"].map(str::to_owned).to_vec();
        }
        let mut models = BTreeMap::new();
        for argument in named {
            let (name, dir) = argument.split_once('=').unwrap_or((&argument, &argument));
            models.insert(name.to_owned(), Translator::open(dir)?);
        }
        Ok(Service { models })
    }

    /// The translation. Dropped, as by a timeout, it gives the sentence up; no thread waits for it.
    async fn translate(&self, request: Request) -> Result<String> {
        let Some(model) = self.models.get(&request.model) else {
            let (expected, got) = (format!("one of {:?}", self.models.keys()), request.model);
            return Err(Error::Input { operation: "find the model", expected, got });
        };
        let options = DecodeOptions::default().with(|options| options.beam_size = request.beam_size);
        let terms = Terms::new().owner(request.caller).priority(Priority::Interactive).within(request.deadline);
        Ok(model.submit(request.text, &options, terms)?.await?.text().to_owned())
    }
}

/// The time that a request takes.
async fn timed(service: &Service, request: &Request) -> Result<Duration> {
    let start = Instant::now();
    service.translate(request.clone()).await?;
    Ok(start.elapsed())
}

/// When each of 31 sentences of beam 4 is done that come at once, with or without one of beam 64 that comes a little later.
async fn beside(service: &std::rc::Rc<Service>, small: &Request, wide: Option<&Request>) -> Result<Duration> {
    let spawn = |request: Request| {
        let service = service.clone();
        tokio::task::spawn_local(async move { timed(&service, &request).await })
    };
    let tasks: Vec<_> = (0..31).map(|caller| spawn(Request { caller, ..small.clone() })).collect();
    tokio::time::sleep(Duration::from_millis(2)).await;
    let wide = wide.map(|wide| spawn(wide.clone()));
    let mut times = Vec::new();
    for task in tasks {
        times.push(task.await.unwrap_or(Err(Error::Cancelled))?);
    }
    if let Some(wide) = wide {
        wide.await.unwrap_or(Err(Error::Cancelled))?;
    }
    Ok(median(times))
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// Requests of a crowd, and how long each of its callers waits.
const CROWD: usize = 200;
const PATIENCE: Duration = Duration::from_millis(300);

async fn run(service: Service) -> Result<()> {
    let service = std::rc::Rc::new(service);
    let models: Vec<String> = service.models.keys().cloned().collect();
    let long = "A man in a blue shirt is standing on a ladder cleaning a window while two dogs run through the snow.";
    let request = |model: &String, text: &str, beam_size, caller| Request {
        model: model.clone(),
        text: text.to_owned(),
        beam_size,
        caller,
        deadline: Duration::from_secs(30),
    };
    for model in &models {
        let small = request(model, "Two dogs run through the snow.", 4, 1);
        let mut idle = Vec::new();
        for _ in 0..21 {
            idle.push(timed(&service, &small).await?);
        }
        let idle = median(idle);

        // Every model has its crowd: callers that give up after a while, which drops their handles.
        let crowd = models.iter().flat_map(|model| (0..CROWD).map(move |caller| (model, 2 + caller as u64)));
        let tasks: Vec<_> = crowd
            .map(|(model, caller)| {
                let (service, wide) = (service.clone(), request(model, long, 32, caller));
                tokio::task::spawn_local(async move {
                    tokio::time::timeout(PATIENCE, service.translate(wide)).await.is_ok_and(|answer| answer.is_ok())
                })
            })
            .collect();
        // A small request in the middle of it, and one as soon as all have given up.
        tokio::time::sleep(PATIENCE / 2).await;
        let amid = timed(&service, &small).await?;
        let mut answered = 0;
        for task in tasks {
            answered += usize::from(task.await.unwrap_or(false));
        }
        let after = timed(&service, &small).await?;
        println!(
            "{model}: a small request takes {idle:.1?} on an idle engine (median of 21), {amid:.1?} amid {} requests of 32 \
             beams, and {after:.1?} when these were given up after {PATIENCE:?}, {answered} of them answered",
            CROWD * models.len(),
        );
    }
    let (small, wide) = (request(&models[0], long, 4, 1), request(&models[0], long, 64, 99));
    let (mut alone, mut crowded) = (Vec::new(), Vec::new());
    for _ in 0..7 {
        alone.push(beside(&service, &small, None).await?);
        crowded.push(beside(&service, &small, Some(&wide)).await?);
    }
    let (alone, crowded) = (median(alone), median(crowded));
    let ratio = crowded.as_secs_f64() / alone.as_secs_f64();
    println!(
        "{}: 31 sentences of beam 4 take {alone:.1?} (median of each run, median of 7 runs), {crowded:.1?} when one of beam 64 \
         comes in: {ratio:.2} times as long",
        models[0]
    );
    // A deadline that cannot be met is an error of its own kind.
    let late = Request { deadline: Duration::from_micros(50), ..request(&models[0], long, 32, 1) };
    match service.translate(late).await {
        Ok(text) => println!("50 us were enough: {text}"),
        Err(error) => println!("within 50 us: {error} ({})", error.kind()),
    }
    Ok(())
}

fn main() -> Result<()> {
    let service = Service::open(std::env::args().skip(1))?;
    let start = |source| Error::Io { operation: "start the runtime", path: "tokio".into(), source };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(start)?;
    tokio::task::LocalSet::new().block_on(&runtime, run(service))
}
