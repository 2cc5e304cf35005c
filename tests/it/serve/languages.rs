//! Texts whose language nobody said.

use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::server::Server;
use crate::common::command::run;
use crate::common::{demo_model, t5_with_tasks};

const ENGLISH: &str = "Two dogs are playing in the snow.";
const FRENCH: &str = "Deux chiens jouent dans la neige.";

/// The demo model as one whose languages its name says.
fn nameless() -> TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    for entry in std::fs::read_dir(demo_model()).expect("the demo model").flatten() {
        std::fs::copy(entry.path(), dir.path().join(entry.file_name())).expect("a copy");
    }
    let config = dir.path().join("tokenizer_config.json");
    let mut value: Value = serde_json::from_slice(&std::fs::read(&config).expect("a file")).expect("JSON");
    let fields = value.as_object_mut().expect("an object");
    fields.remove("source_lang");
    fields.remove("target_lang");
    std::fs::write(config, value.to_string()).expect("a file");
    dir
}

/// A service of English and French into German, with one and the same weights.
fn english_and_french(dir: &Path) -> Server {
    let model = |name: &str| format!("{name}={}", dir.display());
    Server::start(&["--no-log", "--model", &model("en-de"), "--model", &model("fr-de")])
}

/// What the command line makes of a line.
fn translated(line: &str) -> String {
    run(&["translate"], format!("{line}\n").as_bytes()).ok().out.trim_end().to_owned()
}

#[test]
fn a_single_language_is_what_every_text_is_in() {
    let server = Server::start(&["--no-log"]);
    let certain = json!({ "confidence": 100, "language": "en" });
    assert_eq!(server.post("/detect", &json!({ "q": FRENCH })).json(), json!([certain]));
    assert_eq!(server.post("/detect", &json!({ "q": [FRENCH, ""] })).json(), json!([[certain], [certain]]));
    assert_eq!(server.post("/detect", &json!({ "q": [] })).json(), json!([]));
    let texts = json!({ "q": ["A dog runs.", ""], "source": "auto", "target": "de" });
    let answer = server.post("/translate", &texts).json();
    assert_eq!(answer["detectedLanguage"], json!([certain, certain]));
    let body = json!({ "items": [{ "source": "A dog runs.", "id": 7 }], "source_lang": "auto" });
    let item = server.post("/v1/translate", &body).json()["items"][0].clone();
    assert_eq!((&item["detected_language"], &item["id"]), (&certain, &json!(7)));
    let said = server.post("/v1/translate", &json!({ "items": [{ "source": "A dog." }], "source_lang": "en" })).json();
    assert_eq!(said["items"][0]["detected_language"], Value::Null);
    assert_eq!(server.post("/detect", &json!({ "q": vec!["a"; 1001] })).status, 413);
    assert_eq!(server.post("/detect", &json!({ "q": "a".repeat(20_001) })).status, 413);
    assert_eq!(server.post("/detect", &json!({ "q": 7 })).status, 400);
    assert_eq!(server.post("/detect", &json!({})).status, 400);
}

#[test]
fn the_translations_that_a_model_names_as_tasks_are_routes() {
    let (t5, demo) = (t5_with_tasks(), nameless());
    let models = [format!("t5={}", t5.path().display()), format!("fr-de={}", demo.path().display())];
    let server = Server::start(&["--no-log", "--model", &models[0], "--model", &models[1]]);
    let listed = server.get("/v1/models").json();
    let t5_model = listed["models"].as_array().expect("a list").iter().find(|model| model["name"] == "t5").cloned();
    let t5_model = t5_model.expect("it is listed");
    assert_eq!((&t5_model["source_languages"], &t5_model["target_languages"]), (&json!(["en"]), &json!(["de"])));
    let body = json!({ "items": [{ "source": "A dog runs." }], "source_lang": "eng", "target_lang": "DE", "options": { "max_length": 8 } });
    let routed = server.post("/v1/translate", &body).json();
    assert_eq!(routed["model"], "t5");
    let task = ["--model", &t5.path().display().to_string(), "--max-length", "8"];
    let command = [&["translate", "--source-lang", "en", "--target-lang", "de"], &task[..]].concat();
    let expected = run(&command, b"A dog runs.\n").ok().out;
    assert_eq!(routed["items"][0]["text"].as_str().map(|text| format!("{text}\n")), Some(expected));
    let scored = json!({ "items": [{ "source": "A dog runs.", "target": "Two dogs." }], "source_lang": "en", "target_lang": "de" });
    let scored = server.post("/v1/score", &scored).json()["items"][0]["log_prob"].clone();
    let command = [&["score", "--source-lang", "en", "--target-lang", "de"], &task[..2]].concat();
    assert_eq!(run(&command, b"A dog runs.\tTwo dogs.\n").ok().objects()[0]["log_prob"], scored);
    let unknown = json!({ "items": [{ "source": "A dog runs." }], "source_lang": "en", "target_lang": "fr" });
    assert_eq!(server.post("/v1/translate", &unknown).kind(), (400, "language_pair".to_owned()));
}

#[test]
#[cfg(not(feature = "detect"))]
fn several_languages_are_told_apart_by_a_build_that_can() {
    let dir = nameless();
    let server = english_and_french(dir.path());
    let refused = [
        server.post("/detect", &json!({ "q": ENGLISH })).json()["error"].clone(),
        server.post("/translate", &json!({ "q": ENGLISH, "source": "auto", "target": "de" })).json()["error"].clone(),
        server.post("/v2/translate", &json!({ "text": [ENGLISH], "target_lang": "DE" })).json()["message"].clone(),
    ];
    for message in &refused {
        assert!(message.as_str().is_some_and(|text| text.contains("--features detect")), "{refused:?}");
    }
    let own = server.post("/v1/translate", &json!({ "items": [{ "source": ENGLISH }], "source_lang": "auto" }));
    assert_eq!(own.kind(), (400, "not_built".to_owned()));
    let said = json!({ "q": ENGLISH, "source": "fr", "target": "de" });
    assert_eq!(server.post("/translate", &said).json(), json!({ "translatedText": translated(ENGLISH) }));
}

#[test]
#[cfg(feature = "detect")]
fn each_text_is_told_by_itself_and_goes_to_the_model_of_its_language() {
    let dir = nameless();
    let server = english_and_french(dir.path());
    let language = |found: &Value| found["language"].as_str().map(str::to_owned).unwrap_or_default();
    let found = server.post("/detect", &json!({ "q": FRENCH })).json();
    assert!(language(&found[0]) == "fr" && found[0]["confidence"].as_u64() > Some(50), "{found}");
    let none = json!({ "confidence": 0, "language": "en" });
    let all = server.post("/detect", &json!({ "q": [ENGLISH, FRENCH, "", "12 + 30"] })).json();
    let best: Vec<String> = all.as_array().expect("an array").iter().map(|found| language(&found[0])).collect();
    assert_eq!(best, ["en", "fr", "en", "en"]);
    assert_eq!((&all[2], &all[3]), (&json!([none]), &json!([none])));
    let form = "content-type: application/x-www-form-urlencoded";
    let posted = server.send("POST", "/detect", &[form], b"q=Deux+chiens+jouent+dans+la+neige.").json();
    assert_eq!(posted, found);

    let texts = [FRENCH, ENGLISH, "", FRENCH];
    let expected = json!([translated(FRENCH), translated(ENGLISH), "", translated(FRENCH)]);
    let libre = json!({ "q": texts, "source": "auto", "target": "de", "alternatives": 1 });
    let answer = server.post("/translate", &libre).json();
    assert_eq!(answer["translatedText"], expected);
    let best: Vec<String> = answer["detectedLanguage"].as_array().expect("an array").iter().map(language).collect();
    assert_eq!(best, ["fr", "en", "en", "fr"]);
    let one = server.post("/translate", &json!({ "q": FRENCH, "source": "auto", "target": "de" })).json();
    assert_eq!(one["detectedLanguage"], answer["detectedLanguage"][0]);
    let html = json!({ "q": "<p title='Two dogs are playing with the other dogs'>Deux chiens jouent.</p>", "source": "auto", "target": "de", "format": "html" });
    assert_eq!(language(&server.post("/translate", &html).json()["detectedLanguage"]), "fr");

    let deepl = server.post("/v2/translate", &json!({ "text": texts, "target_lang": "DE" })).json();
    let parts = |field: &str| -> Vec<Value> {
        deepl["translations"].as_array().expect("an array").iter().map(|one| one[field].clone()).collect()
    };
    assert_eq!(json!(parts("detected_source_language")), json!(["FR", "EN", "EN", "FR"]));
    assert_eq!(json!(parts("text")), expected);

    // Each model has had its own texts.
    let done = |model: &str| server.metric(&format!("beamfuse_sentences_total{{model=\"{model}\",outcome=\"done\"}}"));
    assert!(done("en-de") >= Some(2.0) && done("fr-de") >= Some(5.0), "{:?} {:?}", done("en-de"), done("fr-de"));
    assert_eq!(server.post("/translate", &json!({ "q": FRENCH, "source": "auto", "target": "it" })).status, 400);
    let long = json!({ "q": "a".repeat(20_001), "source": "auto", "target": "de" });
    assert_eq!(server.post("/translate", &long).status, 413);
}

#[test]
#[cfg(feature = "detect")]
fn our_own_requests_go_to_the_one_model_that_all_items_are_for() {
    let dir = nameless();
    let server = english_and_french(dir.path());
    let ask = |items: Value| {
        server.post("/v1/translate", &json!({ "items": items, "source_lang": "auto", "target_lang": "de" }))
    };
    let french = ask(json!([{ "source": FRENCH, "id": 1 }, { "source": FRENCH, "source_lang": "fr" }, 7])).json();
    assert_eq!(french["model"], "fr-de", "{french}");
    assert_eq!(french["items"][0]["detected_language"]["language"], "fr");
    assert_eq!(french["items"][0]["text"], translated(FRENCH));
    assert_eq!(french["items"][1]["detected_language"], Value::Null, "it said so itself");
    assert_eq!(french["items"][2]["error"]["kind"], "json");
    assert_eq!(ask(json!([{ "source": FRENCH }, { "source": ENGLISH }])).kind(), (400, "language_pair".to_owned()));
    let named = json!({ "items": [{ "source": FRENCH }, { "source": ENGLISH }], "source_lang": "auto", "target_lang": "de", "model": "en-de" });
    assert_eq!(server.post("/v1/translate", &named).json()["items"][0]["detected_language"]["language"], "en");
    let drawn = json!({ "items": [{ "source": FRENCH }], "source_lang": "auto", "target_lang": "de" });
    assert_eq!(server.post("/v1/explain", &drawn).status, 200);
}
