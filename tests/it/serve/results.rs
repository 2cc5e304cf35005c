//! What comes over HTTP is what the command line writes, to the last bit, whatever else is going on.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::server::Server;
use crate::common::command::run;
use crate::common::{lines, own_text};

type Raw = BTreeMap<String, Box<RawValue>>;

fn raw(text: &str) -> Raw {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// The command line's JSON lines for these items.
fn by_command(args: &[&str], items: &[Value]) -> Vec<String> {
    let input: String = items.iter().map(|item| format!("{item}\n")).collect();
    let finished = run(args, input.as_bytes());
    assert!(matches!(finished.code, Some(0 | 1)), "{}", finished.err);
    finished.out.lines().map(str::to_owned).collect()
}

/// Options that differ in what they ask of a session.
fn options(at: usize) -> Value {
    match at % 8 {
        0 => json!({}),
        1 => json!({ "beam_size": 1 }),
        2 => json!({ "beam_size": 8, "n_best": 8 }),
        3 => json!({ "sample": true, "samples": 3, "top_k": 20, "seed": at }),
        4 => json!({ "preset": "production", "n_best": 2 }),
        5 => json!({ "attention": true }),
        6 => json!({ "beam_size": 4, "beam_groups": 2, "max_length": 12 }),
        _ => json!({ "sample": true, "samples": 4, "mbr": "chrf" }),
    }
}

/// Options of a search at random, none of which the service refuses.
fn random_options(at: u64) -> Value {
    // SplitMix64.
    let mut state = at.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut below = |n: u64| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    };
    let (beams, penalty) = (1 + below(8), below(20) as f64 / 10.0);
    let mut options = match below(4) {
        0 => {
            json!({ "sample": true, "samples": beams, "top_k": below(50), "temperature": 0.5 + penalty / 2.0, "seed": at })
        }
        1 => json!({ "sample": true, "samples": beams, "mbr": "chrf", "seed": below(9) }),
        2 => json!({ "beam_size": 2 * (1 + below(4)), "beam_groups": 2, "diversity": penalty }),
        _ => json!({ "beam_size": beams, "n_best": 1 + below(beams), "alpha": penalty }),
    };
    let others = options.as_object_mut().expect("an object");
    if below(3) == 0 {
        others.insert("max_length".into(), (1 + below(60)).into());
    }
    if below(4) == 0 {
        others.insert("no_repeat_ngram".into(), (1 + below(4)).into());
    }
    if below(4) == 0 {
        others.insert("attention".into(), true.into());
    }
    options
}

#[test]
fn answers_are_the_command_lines_under_any_interleaving() {
    let sources = lines("own/own.en");
    let mut items: Vec<Value> = (0..160)
        .map(|at| {
            let source = &sources[at * 7 % sources.len()];
            json!({ "source": source, "id": at, "options": options(at), "target_prefix": (at % 5 == 0).then_some("Ein") })
        })
        .collect();
    items.push(json!({ "source": "", "id": "blank" }));
    items.push(json!({ "source": "dog ".repeat(300), "id": "long" }));
    items.push(json!({ "source": "A dog.", "options": { "beam_size": 0 } }));
    items.push(json!({ "sauce": "A dog." }));
    items.push(json!({ "source": "A dog </s> runs." }));
    check_interleaved(&items, 160, 16);
}

#[test]
#[ignore = "takes minutes: 2,000 requests over 64 connections"]
fn two_thousand_answers_are_the_command_lines() {
    let sources = lines("own/own.en");
    let item = |at: usize| {
        let source = &sources[at * 7 % sources.len()];
        let prefix = (at.is_multiple_of(7)).then_some("Ein");
        json!({ "source": source, "id": at, "options": random_options(at as u64), "target_prefix": prefix })
    };
    let items: Vec<Value> = (0..2000).map(item).collect();
    check_interleaved(&items, 2000, 64);
}

/// Asks for all items, in requests of one to five from so many connections at once, several times over, and compares.
fn check_interleaved(items: &[Value], requests: usize, connections: usize) {
    let expected = by_command(&["translate", "--format", "jsonl", "--input-format", "jsonl"], items);
    assert_eq!(expected.len(), items.len());
    // However slow the machine, nothing is refused.
    let server = Server::start(&["--no-log", "--max-wait", "600", "--deadline", "600"]);
    let next = AtomicUsize::new(0);
    let failed = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..connections {
            scope.spawn(|| {
                loop {
                    let turn = next.fetch_add(1, Ordering::Relaxed);
                    if turn >= requests {
                        return;
                    }
                    // The first is another one each time.
                    let chosen: Vec<usize> = (0..1 + turn % 5).map(|i| (turn * 13 + i * 31) % items.len()).collect();
                    let asked: Vec<&Value> = chosen.iter().map(|at| &items[*at]).collect();
                    let answer = server.post("/v1/translate", &json!({ "items": asked }));
                    assert_eq!(answer.status, 200, "{answer:?}");
                    let got: Vec<Box<RawValue>> =
                        serde_json::from_str(raw(&answer.body)["items"].get()).expect("an array");
                    assert_eq!(got.len(), chosen.len());
                    chosen.iter().zip(got).for_each(|(at, item)| {
                        let (line, item) = (raw(&expected[*at]), raw(item.get()));
                        failed.fetch_add(usize::from(line.contains_key("error")), Ordering::Relaxed);
                        check_item(&line, &item);
                    });
                }
            });
        }
    });
    // An error says little about a search: few are.
    let failed = failed.into_inner();
    assert!(failed < requests, "{failed} of about {} items are errors", 3 * requests);
    server.lives();
}

/// Compares an item of an answer with the line that the command writes.
fn check_item(line: &Raw, item: &Raw) {
    if let Some(error) = line.get("error") {
        // Where it was read is another matter.
        let own = item["error"].get().replace("read item:", "read line:");
        assert_eq!(own, error.get());
        return;
    }
    let segments: Vec<Box<RawValue>> = serde_json::from_str(item["segments"].get()).expect("an array");
    assert_eq!(segments.len(), 1);
    let segment = raw(segments[0].get());
    for field in ["source", "hypotheses"] {
        assert_eq!(segment[field].get(), line[field].get(), "{field}");
    }
    let text = |raw: &Raw, field: &str| raw.get(field).map(|raw| raw.get().to_owned());
    assert_eq!(text(&segment, "warnings"), text(line, "warnings"));
    assert_eq!(text(item, "id"), text(line, "id"));
    let hypotheses: Vec<Value> = serde_json::from_str(segment["hypotheses"].get()).expect("an array");
    let best: Value = serde_json::from_str(item["text"].get()).expect("a string");
    assert_eq!(best, hypotheses[0]["text"]);
}

#[test]
fn scores_are_the_command_lines() {
    let (sources, targets) = (lines("own/own.en"), crate::common::greedy());
    let mut items: Vec<Value> = (0..12)
        .map(|at| json!({ "source": sources[at], "target": targets[(at * 5) % targets.len()], "id": at }))
        .collect();
    items.push(json!({ "source": "A dog." }));
    let expected = by_command(&["score", "--input-format", "jsonl"], &items);
    let server = Server::start(&["--no-log"]);
    let answer = server.post("/v1/score", &json!({ "items": items }));
    assert_eq!(answer.status, 200, "{answer:?}");
    let got: Vec<Box<RawValue>> = serde_json::from_str(raw(&answer.body)["items"].get()).expect("an array");
    for (item, line) in got.iter().zip(&expected) {
        assert_eq!(item.get().replace("read item:", "read line:"), *line);
    }
    assert_eq!(got.len(), expected.len());
    let usage = &answer.json()["usage"];
    assert!(usage["output_tokens"].as_u64().is_some_and(|tokens| tokens > 12), "{usage}");
}

#[test]
fn no_sentence_of_a_text_is_dropped() {
    let server = Server::start(&["--no-log"]);
    let text = "A dog runs.  Two cats sleep!\nA man is riding a bike.";
    let each = run(&["translate"], b"A dog runs.\nTwo cats sleep!\nA man is riding a bike.\n").ok();
    let [first, second, third] = each.lines()[..] else { panic!("three lines") };
    let expected = format!("{first}  {second}\n{third}");
    let answer = server.post("/translate", &json!({ "q": text, "source": "en", "target": "de" })).json();
    assert_eq!(answer["translatedText"], expected);
    let answer = server.post("/v2/translate", &json!({ "text": [text], "target_lang": "DE" })).json();
    assert_eq!(answer["translations"][0]["text"], expected);
    let answer = server.post("/v1/translate", &json!({ "items": [{ "source": text }], "segment": true })).json();
    assert_eq!(answer["items"][0]["text"], expected);
}

#[test]
fn lines_of_a_text_are_translated_one_by_one_and_what_parts_them_stays() {
    let server = Server::start(&["--no-log"]);
    let text = own_text().lines().take(3).collect::<Vec<_>>().join("\r\n") + "\n\n";
    let by_line: Vec<String> = run(&["translate"], text.replace('\r', "").as_bytes()).ok().lines()[..3]
        .iter()
        .map(|line| line.to_string())
        .collect();
    let expected = by_line.join("\r\n") + "\n\n";
    let item = server.post("/v1/translate", &json!({ "items": [{ "source": text }], "segment": true }));
    assert_eq!(item.json()["items"][0]["text"], expected);
    assert_eq!(item.json()["items"][0]["segments"].as_array().map(Vec::len), Some(3));
    let libre = json!({ "q": [text, "A dog runs."], "source": "en", "target": "de", "alternatives": 2 });
    let answer = server.post("/translate", &libre).json();
    assert_eq!(answer["translatedText"], json!([expected, "Ein Hund rennt."]));
    assert_eq!(answer["alternatives"][1].as_array().map(Vec::len), Some(2), "{answer}");
    assert_ne!(answer["alternatives"][1][0], "Ein Hund rennt.");
}

#[test]
fn libretranslates_clients_find_its_forms() {
    let server = Server::start(&["--no-log"]);
    let form = "content-type: application/x-www-form-urlencoded";
    for answer in [
        server.send("POST", "/translate", &[form], b"q=A+dog+runs.&source=en&target=de"),
        server.post("/translate", &json!({ "q": "A dog runs.", "source": "EN-GB", "target": "deu", "format": "text" })),
        server.send("POST", "/translate?q=A%20dog%20runs.&source=en&target=de", &[], b""),
    ] {
        assert_eq!(answer.json(), json!({ "translatedText": "Ein Hund rennt." }), "{answer:?}");
    }
    let auto = server.post("/translate", &json!({ "q": "A dog runs.", "source": "auto", "target": "de" })).json();
    assert_eq!(auto["detectedLanguage"], json!({ "confidence": 100, "language": "en" }));
    let languages = server.get("/languages").json();
    assert_eq!(languages, json!([{ "code": "en", "name": "English", "targets": ["de"] }]));
    assert_eq!(server.get("/health").json(), json!({ "status": "ok" }));
    assert_eq!(server.get("/frontend/settings").json()["language"]["target"]["code"], "de");
    let refused = server.post("/translate", &json!({ "q": "A dog.", "source": "fr", "target": "de" }));
    assert_eq!(refused.status, 400);
    assert!(refused.json()["error"].as_str().is_some_and(|text| text.contains("\"fr\" to \"de\"")), "{refused:?}");
    assert_eq!(server.post("/suggest", &json!({})).status, 403);
}
