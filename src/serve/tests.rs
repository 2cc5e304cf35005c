//! A service whose workers panic.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::*;

/// No answer takes so long.
const PATIENCE: Duration = Duration::from_secs(120);

/// Status and body of an answer.
fn ask(address: SocketAddr, head: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a limit");
    let length = body.len();
    let kind = "content-type: application/json\r\nconnection: close";
    let request = format!("{head} HTTP/1.1\r\nhost: x\r\n{kind}\r\ncontent-length: {length}\r\n\r\n{body}");
    stream.write_all(request.as_bytes()).expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("headers and a body");
    (head[9..12].parse().expect("a status"), body.to_owned())
}

/// Status and first item, or error, of a translation of this source with these options.
fn translate(address: SocketAddr, source: &str, options: Value) -> (u16, Value) {
    let body = json!({ "items": [{ "source": source }], "options": options }).to_string();
    let (status, body) = ask(address, "POST /v1/translate", &body);
    let mut answer: Value = serde_json::from_str(&body).expect("JSON");
    (status, if status == 200 { answer["items"][0].take() } else { answer["error"].take() })
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let since = Instant::now();
    while !is_so() {
        assert!(since.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_worker_that_panics_loses_what_it_decodes_and_no_more_and_three_end_the_service() {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/m30k-en-de");
    let mut config = Config::new(vec![Source { name: "demo".into(), dir: demo }]);
    (config.log, config.engine.threads) = (false, 1);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).expect("a port");
    let address = listener.local_addr().expect("an address");
    let (server, phases) = Server::open(config, None).expect("the demo model");
    let (_stop, signals) = mpsc::channel(1);
    let serving = runtime.spawn(listen::serve(server.clone(), listener, phases, signals));
    let [model] = &server.models.all()[..] else { panic!("one model") };

    let expected = translate(address, "A dog runs.", json!({}));
    assert_eq!(expected.0, 200);
    let long = json!({ "min_length": 200, "max_length": 210, "beam_size": 4 });
    let long_expected = translate(address, "Two cats sleep.", long.clone());
    for death in 1..=3 {
        let (lost, whole) = std::thread::scope(|scope| {
            let callers: Vec<_> =
                (0..6).map(|_| scope.spawn(|| translate(address, "Two cats sleep.", long.clone()))).collect();
            until("they begin", || server.admission.sentences() == 6 && model.translator.load().waiting == 0);
            model.translator.let_a_worker_panic();
            let answers: Vec<_> = callers.into_iter().map(|caller| caller.join().expect("an answer")).collect();
            let (whole, failed): (Vec<_>, Vec<_>) = answers.into_iter().partition(|(status, _)| *status == 200);
            assert!(whole.iter().all(|answer| *answer == long_expected));
            let kinds: Vec<_> = failed.iter().map(|(status, error)| (*status, error["kind"].as_str())).collect();
            let is_named = |kind: &(u16, Option<&str>)| {
                *kind == (500, Some("worker_lost")) || (death == 3 && *kind == (503, Some("engine_failed")))
            };
            assert!(kinds.iter().all(is_named), "{kinds:?}");
            (failed.len(), whole.len())
        });
        assert!(lost > 0 && lost + whole == 6);
        assert_eq!(server.admission.sentences(), 0);
        if death < 3 {
            assert_eq!(translate(address, "A dog runs.", json!({})), expected);
            assert_eq!(ask(address, "GET /livez", "").0, 200);
        }
    }
    let (_, metrics) = ask(address, "GET /metrics", "");
    let outcome = |line: &&str| line.starts_with("beamfuse_sentences_total") && line.contains("worker_lost");
    assert!(metrics.lines().any(|line| outcome(&line)), "{metrics}");
    // The service is about to see it, and to end.
    assert!(ask(address, "GET /readyz", "").0 >= 500);
    let (status, error) = translate(address, "A dog runs.", json!({}));
    assert!(status == 503 && [json!("engine_failed"), json!("draining")].contains(&error["kind"]), "{error}");
    assert_eq!(runtime.block_on(serving).expect("it ends"), Ended::EngineFailed);
}
