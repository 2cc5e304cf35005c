//! Answers that come bit by bit.

use std::collections::BTreeMap;
use std::io::Read;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::server::{Server, ask};

/// The events of an answer.
fn events(server: &Server, body: &Value) -> Vec<(String, Value)> {
    let answer = server.post("/v1/translate", body);
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("text/event-stream")), "{answer:?}");
    let event = |block: &str| {
        let (name, data) = block.split_once('\n').expect("two lines");
        let name = name.strip_prefix("event: ").expect("a name").to_owned();
        (name, serde_json::from_str(data.strip_prefix("data: ").expect("data")).expect("JSON"))
    };
    answer.body.split("\n\n").filter(|block| !block.is_empty()).map(event).collect()
}

#[test]
fn deltas_put_together_are_the_translation_and_each_item_is_the_whole_answers() {
    let server = Server::start(&["--no-log"]);
    let mut items: Vec<Value> =
        crate::common::lines("own/own.en")[..12].iter().map(|line| json!({ "source": line })).collect();
    items[3] = json!({ "source": "Two dogs run.\n\nA man sleeps.\n" });
    items[5] = json!({ "source": "A dog.", "options": { "beam_size": 0 } });
    items[7] = json!({ "source": "Two cats.", "options": { "sample": true, "seed": 3 } });
    items[8] = json!({ "source": "Two cats sleep on the sofa.", "options": { "beam_size": 1 } });
    let whole = server.post("/v1/translate", &json!({ "items": items, "segment": true })).json()["items"].clone();
    for stream in ["items", "tokens"] {
        let events = events(&server, &json!({ "items": items, "segment": true, "stream": stream }));
        let (last, others) = events.split_last().expect("some");
        assert_eq!((last.0.as_str(), &last.1["model"]), ("done", &json!("en-de")));
        let mut told: BTreeMap<(u64, u64), String> = BTreeMap::new();
        let mut ended = 0;
        for (name, data) in others {
            let place = (data["index"].as_u64().expect("an index"), data["segment"].as_u64().expect("a segment"));
            if name == "delta" {
                let text = data["text"].as_str().expect("a text");
                assert!(!text.is_empty());
                told.entry(place).or_default().push_str(text);
                continue;
            }
            assert_eq!(name, "item");
            ended += 1;
            if place.0 == 5 {
                assert_eq!(data["error"], whole[5]["error"]);
                continue;
            }
            let segment = &whole[place.0 as usize]["segments"][place.1 as usize];
            assert_eq!(data["result"]["hypotheses"], segment["hypotheses"]);
            assert_eq!(data["text"], segment["hypotheses"][0]["text"]);
            if stream == "tokens" {
                assert_eq!(told[&place], data["text"].as_str().expect("a text"), "{place:?}");
            }
        }
        assert_eq!(ended, 13, "{stream}");
        assert_eq!(told.is_empty(), stream == "items");
    }
    // Long enough that a reader who comes late, on a busy machine, does not find all of it.
    let long = json!({ "source": "Two cats sleep on the sofa.", "options": { "beam_size": 1, "min_length": 200, "max_length": 200 } });
    let deltas = events(&server, &json!({ "items": [long], "stream": "tokens" }));
    assert!(deltas.iter().filter(|(name, _)| name == "delta").count() > 1, "greedy search settles token by token");
}

#[test]
fn what_is_not_known_before_the_end_is_no_stream_of_tokens() {
    let server = Server::start(&["--no-log"]);
    for options in [
        json!({ "n_best": 2 }),
        json!({ "mbr": "chrf" }),
        json!({ "beam_groups": 2 }),
        json!({ "sample": true, "samples": 2 }),
    ] {
        let body = json!({ "items": [{ "source": "A dog." }], "stream": "tokens", "options": options });
        assert_eq!(server.post("/v1/translate", &body).kind(), (400, "conflict".to_owned()), "{options}");
        let body = json!({ "items": [{ "source": "A dog." }], "stream": "items", "options": options });
        assert_eq!(events(&server, &body).last().expect("some").0, "done");
    }
}

#[test]
fn a_reader_that_has_gone_frees_the_slots_and_the_end_of_the_service_is_an_event() {
    let server = Server::start(&["--threads", "1", "--max-wait", "60", "--drain-delay", "0", "--drain-timeout", "1"]);
    let text = "A man in a blue shirt is standing on a ladder cleaning a window while two dogs run through the snow.";
    let items: Vec<Value> = (0..300).map(|_| json!({ "source": text, "options": { "beam_size": 8 } })).collect();
    let body = json!({ "items": items, "stream": "tokens" }).to_string();
    let json = ["content-type: application/json"];
    let mut stream = server.connect();
    ask(&mut stream, "POST", "/v1/translate", &json, body.as_bytes());
    let mut first = [0; 64];
    assert!(stream.read(&mut first).is_ok_and(|count| count > 0));
    drop(stream);
    let start = Instant::now();
    while server.metric("beamfuse_queue_depth{model=\"en-de\",class=\"interactive\"}") != Some(0.0) {
        assert!(start.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut stream = server.connect();
    ask(&mut stream, "POST", "/v1/translate", &json, body.as_bytes());
    assert!(stream.read(&mut first).is_ok_and(|count| count > 0));
    server.signal("TERM");
    let mut rest = String::new();
    let _ = stream.read_to_string(&mut rest);
    let last = rest.split("event: ").last().expect("some");
    assert!(last.starts_with("error") && last.contains("\"draining\""), "{last}");
    assert_eq!(server.end().0, Some(0));
}
