//! Each status, what brings it about, and the forms of errors.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::server::Server;
use crate::common::command::run;

fn dog() -> Value {
    json!([{ "source": "A dog runs." }])
}

#[test]
fn what_is_wrong_with_a_request_is_said_with_the_status_of_its_kind() {
    let server =
        Server::start(&["--no-log", "--max-items", "3", "--max-item-characters", "50", "--max-characters", "80"]);
    let long = "x".repeat(45);
    for (body, status, kind) in [
        (json!({ "items": dog(), "model": "nope" }), 404, "model"),
        (json!({ "items": dog(), "target_lang": "fr" }), 400, "language_pair"),
        (json!({ "items": dog(), "options": { "beam_size": 65 } }), 400, "option"),
        (json!({ "items": dog(), "options": { "beem": 1 } }), 400, "input"),
        (json!({ "items": dog(), "sauce": 1 }), 400, "json"),
        (json!({ "items": [1, 2, 3, 4] }), 413, "request_too_large"),
        (json!({ "items": [{ "source": "x".repeat(51) }] }), 413, "request_too_large"),
        (json!({ "items": [{ "source": long }, { "source": long }] }), 413, "request_too_large"),
        (json!({ "items": dog(), "deadline_ms": 0 }), 504, "deadline_exceeded"),
        (json!([1]), 400, "json"),
    ] {
        let answer = server.post("/v1/translate", &body);
        assert_eq!(answer.kind(), (status, kind.to_owned()), "{body}: {answer:?}");
        let id = answer.header("x-request-id").expect("an id").to_owned();
        assert_eq!(answer.json()["error"]["request_id"], id);
    }
    // Of an item alone: the others have their answers.
    let mixed =
        json!({ "items": [{ "source": "A dog runs." }, { "source": "A dog.", "options": { "beam_size": 9 } }, 7] });
    let answer = server.post("/v1/translate", &mixed);
    assert_eq!(answer.status, 200);
    let items = answer.json()["items"].clone();
    assert_eq!(items[0]["text"], "Ein Hund rennt.");
    assert_eq!((&items[1]["error"]["kind"], &items[2]["error"]["kind"]), (&json!("option"), &json!("json")), "{items}");
    let typed = |headers: &[&str], body: &[u8]| server.send("POST", "/v1/translate", headers, body).kind();
    assert_eq!(typed(&["content-type: text/plain"], b"{}"), (415, "media_type".to_owned()));
    let latin = "content-type: application/json; charset=latin-1";
    assert_eq!(typed(&[latin], b"{}"), (415, "media_type".to_owned()));
    let deadline = ["content-type: application/json", "x-deadline-ms: soon"];
    assert_eq!(typed(&deadline, json!({ "items": dog() }).to_string().as_bytes()), (400, "input".to_owned()));
    assert_eq!(server.get("/nothing").kind(), (404, "not_found".to_owned()));
    let method = server.get("/v1/translate");
    assert_eq!(method.kind(), (405, "method".to_owned()));
    assert_eq!(method.header("allow"), Some("POST"));
    assert_eq!(server.send("HEAD", "/livez", &[], b"").status, 200);
    // Too long for the model is another matter than too long for the service.
    let server = Server::start(&["--no-log"]);
    let long = "dog ".repeat(300);
    let answer = server.post("/v1/translate", &json!({ "items": [{ "source": long }] }));
    assert_eq!(answer.json()["items"][0]["error"]["kind"], "input_too_long", "{answer:?}");
    // A document's sentence is cut.
    assert_eq!(server.post("/translate", &json!({ "q": long, "source": "en", "target": "de" })).status, 200);
    server.lives();
}

#[test]
fn models_and_limits_are_what_the_options_say() {
    let demo = crate::common::demo_model();
    let model = |name: &str| format!("{name}={}", demo.display());
    let (a, b) = (model("a"), model("b.2"));
    let options = ["--no-log", "--model", &a, "--model", &b, "--options", "{\"n_best\": 2}", "--max-beam", "4"];
    let server = Server::start(&options);
    let models = server.get("/v1/models").json()["models"].clone();
    assert_eq!((&models[0]["name"], &models[1]["name"]), (&json!("a"), &json!("b.2")));
    assert_eq!(models[0]["source_languages"], json!(["en"]));
    assert_eq!(models[0]["version"], models[1]["version"], "they are the same files");
    let neither = server.post("/v1/translate", &json!({ "items": dog() }));
    assert_eq!(neither.kind(), (400, "language_pair".to_owned()));
    let named = server.post("/v1/translate", &json!({ "items": dog(), "model": "b.2" })).json();
    assert_eq!(named["model"], "b.2");
    assert_eq!(named["items"][0]["segments"][0]["hypotheses"].as_array().map(Vec::len), Some(2));
    let by_language =
        server.post("/v1/translate", &json!({ "items": dog(), "source_lang": "en", "target_lang": "DE" }));
    assert_eq!(by_language.json()["model"], "a");
    let wide = server.post("/v1/translate", &json!({ "items": dog(), "model": "a", "options": { "beam_size": 5 } }));
    assert_eq!(wide.json()["items"][0]["error"]["kind"], "option", "{wide:?}");
}

#[test]
fn options_that_cannot_be_served_are_refused_before_anything_is_opened() {
    for (args, said) in [
        (vec!["--listen", "0.0.0.0:0"], "option listen: expected an address of this machine alone"),
        (vec!["--options", "{\"beem\": 1}"], "expected names of options"),
        (vec!["--options", "[1]"], "option options: expected a JSON object of options"),
        (vec!["--model", "a b=models/m30k-en-de"], "option model: "),
        (vec!["--max-items", "0"], "option max-items: expected 1 to"),
    ] {
        let args: Vec<&str> = [vec!["serve"], args].concat();
        let finished = run(&args, b"");
        assert_eq!(finished.code, Some(2), "{args:?}");
        assert!(finished.err.contains(said), "{args:?}: {}", finished.err);
    }
}

#[test]
fn more_than_can_be_done_in_time_is_refused_at_once_and_all_else_is_answered() {
    let server = Server::start(&["--no-log", "--max-wait", "1"]);
    let text = "A man in a blue shirt is standing on a ladder cleaning a window while two dogs run through the snow.";
    let items: Vec<Value> = (0..40).map(|_| json!({ "source": text, "options": { "beam_size": 8 } })).collect();
    let body = json!({ "items": items });
    // What the engine can do is known once it has had more to do than it could take.
    let first: Vec<Value> = items.iter().cycle().take(160).cloned().collect();
    assert_eq!(server.post("/v1/translate", &json!({ "items": first })).status, 200);
    let answers = std::thread::scope(|scope| {
        let ask = || {
            let start = Instant::now();
            (server.post("/v1/translate", &body), start.elapsed())
        };
        let threads: Vec<_> = (0..48).map(|_| scope.spawn(ask)).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect::<Vec<_>>()
    });
    let (done, refused): (Vec<_>, Vec<_>) = answers.iter().partition(|(answer, _)| answer.status == 200);
    assert!(!done.is_empty() && !refused.is_empty(), "{} done", done.len());
    for (answer, _) in &refused {
        assert_eq!(answer.kind(), (503, "overloaded".to_owned()));
        assert!(answer.header("retry-after").is_some_and(|value| value.parse::<u64>().is_ok_and(|s| s >= 1)));
    }
    let rejected = server.metric("beamfuse_rejected_total{reason=\"overloaded\"}");
    assert_eq!(rejected, Some(refused.len() as f64));
    server.lives();
}

#[test]
fn metrics_are_well_formed_and_logs_hold_no_text() {
    let server = Server::start(&[]);
    let secret = "A secret dog runs.";
    let body = json!({ "items": [{ "source": secret }, 7] }).to_string();
    let headers = ["content-type: application/json", "x-request-id: mine-1"];
    assert_eq!(server.send("POST", "/v1/translate", &headers, body.as_bytes()).header("x-request-id"), Some("mine-1"));
    let forged = server.send("GET", "/livez", &["x-request-id: {\"a\": 1}"], b"");
    assert_ne!(forged.header("x-request-id"), Some("{\"a\": 1}"));
    let text = server.get("/metrics").body;
    assert!(text.ends_with("# EOF\n"));
    let mut families = Vec::new();
    for line in text.lines().filter(|line| *line != "# EOF") {
        if let Some(comment) = line.strip_prefix("# ") {
            let mut words = comment.split(' ');
            let (kind, name) = (words.next(), words.next().expect("a name"));
            assert!(matches!(kind, Some("HELP" | "TYPE" | "UNIT")), "{line}");
            families.push(name.to_owned());
            continue;
        }
        let (name, value) = line.rsplit_once(' ').expect("a value");
        assert!(value.parse::<f64>().is_ok(), "{line}");
        let name = name.split('{').next().expect("a name");
        assert!(families.iter().any(|family| name.starts_with(family.as_str())), "{line}");
        assert!(!line.contains("dog") && !line.contains("127.0.0.1"), "{line}");
    }
    for (line, expected) in [
        ("beamfuse_http_requests_total{endpoint=\"/v1/translate\",status=\"200\"}", 1.0),
        ("beamfuse_sentences_total{model=\"en-de\",outcome=\"done\"}", 1.0),
        ("beamfuse_sentences_total{model=\"en-de\",outcome=\"json\"}", 1.0),
        ("beamfuse_sentence_duration_seconds_count{model=\"en-de\"}", 1.0),
        // This one, and the one that the model was tried with.
        ("beamfuse_queue_wait_seconds_count{model=\"en-de\"}", 2.0),
        ("beamfuse_decode_seconds_bucket{le=\"+Inf\",model=\"en-de\"}", 2.0),
        ("beamfuse_queue_depth{model=\"en-de\",class=\"batch\"}", 0.0),
    ] {
        assert_eq!(server.metric(line), Some(expected), "{line} in {text}");
    }
    // Each of the sentence's tokens takes a step of a row for each beam, four at most.
    let steps = server.metric("beamfuse_step_seconds_count{model=\"en-de\"}").expect("steps");
    let rows = server.metric("beamfuse_step_rows_sum{model=\"en-de\"}").expect("rows");
    assert!(steps >= 4.0 && rows > steps && rows <= 4.0 * steps, "{steps} steps, {rows} rows");
    server.signal("TERM");
    server.signal("TERM");
    let (_, log) = server.end();
    assert!(log.iter().all(|line| !line.contains("secret") && !line.contains("127.0.0.1")), "{log:?}");
    let entries: Vec<Value> = log.iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let own = entries.iter().find(|entry| entry["request_id"] == "mine-1").expect("a line of its own");
    assert_eq!((&own["endpoint"], &own["status"], &own["items"]), (&json!("/v1/translate"), &json!(200), &json!(2)));
    assert_eq!((&own["failed"], &own["model"], &own["characters"]), (&json!(1), &json!("en-de"), &json!(18)));
}

#[test]
fn who_gives_up_frees_the_slots() {
    let server = Server::start(&["--no-log"]);
    let text = "A man in a blue shirt is standing on a ladder cleaning a window while two dogs run through the snow.";
    let items: Vec<Value> = (0..200).map(|_| json!({ "source": text, "options": { "beam_size": 8 } })).collect();
    let body = json!({ "items": items }).to_string();
    let mut stream = server.connect();
    super::server::ask(&mut stream, "POST", "/v1/translate", &["content-type: application/json"], body.as_bytes());
    std::thread::sleep(Duration::from_millis(100));
    drop(stream);
    let gone = "beamfuse_cancelled_total{reason=\"client_gone\"}";
    let start = Instant::now();
    while server.metric(gone) != Some(1.0) {
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}", server.get("/metrics"));
        std::thread::sleep(Duration::from_millis(20));
    }
    server.lives();
    assert_eq!(server.metric("beamfuse_queue_depth{model=\"en-de\",class=\"interactive\"}"), Some(0.0));
}
