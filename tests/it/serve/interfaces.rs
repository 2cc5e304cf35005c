//! DeepL's interface, the page, the drawing, the description.

use serde_json::{Value, json};

use super::server::Server;
use crate::common::command::run;

#[test]
fn deepls_clients_find_its_forms() {
    let server = Server::start(&["--no-log"]);
    let translated = json!([{ "detected_source_language": "EN", "text": "Ein Hund rennt." }]);
    let form = "content-type: application/x-www-form-urlencoded";
    for answer in [
        server.post("/v2/translate", &json!({ "text": ["A dog runs."], "target_lang": "DE", "source_lang": "EN" })),
        server.post(
            "/v2/translate",
            &json!({ "text": ["A dog runs."], "target_lang": "de", "formality": "prefer_more" }),
        ),
        server.send("POST", "/v2/translate", &[form], b"text=A+dog+runs.&target_lang=DE"),
    ] {
        assert_eq!(answer.json(), json!({ "translations": translated }), "{answer:?}");
    }
    let two = server.send("POST", "/v2/translate", &[form], b"text=A+dog+runs.&text=Two+cats.&target_lang=DE").json();
    assert_eq!(two["translations"].as_array().map(Vec::len), Some(2), "{two}");
    let billed = json!({ "text": ["A dog runs."], "target_lang": "DE", "show_billed_characters": true });
    assert_eq!(server.post("/v2/translate", &billed).json()["translations"][0]["billed_characters"], 11);
    assert_eq!(server.get("/v2/languages").json(), json!([{ "language": "EN", "name": "English" }]));
    let targets = server.get("/v2/languages?type=target").json();
    assert_eq!(targets, json!([{ "language": "DE", "name": "German", "supports_formality": false }]));
    assert!(server.get("/v2/usage").json()["character_limit"].is_u64());
    for (body, status) in [
        (json!({ "text": ["A dog."], "target_lang": "DE", "formality": "more" }), 400),
        (json!({ "text": ["A dog."], "target_lang": "DE", "glossary_id": "x" }), 400),
        (json!({ "text": ["A dog."], "target_lang": "DE", "split_sentences": "2" }), 400),
        (json!({ "text": ["A dog."], "target_lang": "FR" }), 400),
        (json!({ "text": [1], "target_lang": "DE" }), 400),
        (json!({ "text": ["A dog."] }), 400),
        (json!({ "text": vec!["a"; 51], "target_lang": "DE" }), 413),
    ] {
        let answer = server.post("/v2/translate", &body);
        assert_eq!(answer.status, status, "{body}: {answer:?}");
        assert!(answer.json()["message"].is_string(), "{answer:?}");
    }
}

#[test]
fn the_page_needs_nothing_but_the_service() {
    let server = Server::start(&["--no-log"]);
    let page = server.get("/");
    let policy = page.header("content-security-policy").expect("a policy").to_owned();
    let nonce = policy.split("'nonce-").nth(1).and_then(|rest| rest.split('\'').next()).expect("a nonce");
    assert!(page.body.contains(&format!("<script nonce=\"{nonce}\">")), "{policy}");
    assert_ne!(server.get("/").header("content-security-policy"), Some(policy.as_str()), "each page has its own");
    for outside in ["http://", "https://", "//cdn", "@import", "url("] {
        assert!(!page.body.contains(outside), "{outside}");
    }
    let drawn =
        server.post("/v1/explain", &json!({ "items": [{ "source": "A <dog> runs." }], "options": { "beam_size": 3 } }));
    assert_eq!((drawn.status, drawn.header("content-type")), (200, Some("text/html; charset=utf-8")));
    assert!(
        drawn.body.contains("<svg") && drawn.body.contains("A &lt;dog&gt; runs.") && !drawn.body.contains("<script")
    );
    for (body, status) in [
        (json!({ "items": [] }), 400),
        (json!({ "items": [{ "source": "" }] }), 400),
        (json!({ "items": [{ "source": "A dog.", "options": { "beam_size": 9 } }] }), 400),
        (json!({ "items": [{ "source": "dog ".repeat(300) }] }), 422),
    ] {
        assert_eq!(server.post("/v1/explain", &body).status, status, "{body}");
    }
    let described = server.get("/openapi.json").json();
    assert_eq!(described["openapi"], "3.0.3");
    assert_eq!(server.get("/spec").json(), described);
}

#[test]
fn every_interface_reads_html() {
    let server = Server::start(&["--no-log"]);
    let html = "<p>\n A man in a <b class='x'>red</b> shirt.  A dog runs.</p><script>a < b</script>";
    let one = "<p>\n Ein Mann in einem <b class='x'>roten</b> Hemd.  Ein Hund rennt.</p><script>a < b</script>";
    let command = run(&["translate", "--input-format", "html"], html.as_bytes()).ok();
    assert_eq!(command.out, one);
    let libre = json!({ "q": [html, "1 &lt; 2"], "source": "en", "target": "de", "format": "html", "alternatives": 1 });
    let answer = server.post("/translate", &libre).json();
    assert_eq!(answer["translatedText"], json!([one, "1 &lt; 2"]));
    let other = answer["alternatives"][0][0].as_str().expect("an alternative");
    assert!(other != one && other.contains("</b>") && other.ends_with("</p><script>a < b</script>"), "{other}");
    let deepl = json!({ "text": [html], "target_lang": "DE", "tag_handling": "html" });
    assert_eq!(server.post("/v2/translate", &deepl).json()["translations"][0]["text"], one);
    let mut ignoring = deepl.clone();
    ignoring["ignore_tags"] = json!("i, p");
    assert_eq!(server.post("/v2/translate", &ignoring).json()["translations"][0]["text"], html);
    let own = |more: Value| {
        let mut body = json!({ "items": [{ "source": html }], "format": "html" });
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        server.post("/v1/translate", &body)
    };
    let item = own(json!({})).json()["items"][0].clone();
    assert_eq!((item["text"].as_str(), item["segments"].as_array().map(Vec::len)), (Some(one), Some(2)));
    assert_eq!(item["segments"][0]["source"], "A man in a red shirt.");
    assert_eq!(item["segments"][0]["hypotheses"][0]["attention"], Value::Null, "nobody asked for it");
    let shown = own(json!({ "options": { "attention": true } })).json();
    assert!(shown["items"][0]["segments"][0]["hypotheses"][0]["attention"].is_array(), "{shown}");
    assert_eq!(own(json!({ "stream": "items" })).kind(), (400, "option".to_owned()));
    let prefix = json!({ "items": [{ "source": html, "target_prefix": "Ein" }], "format": "html" });
    assert_eq!(server.post("/v1/translate", &prefix).json()["items"][0]["error"]["kind"], "conflict");
    for body in [
        json!({ "text": [html], "target_lang": "DE", "tag_handling": "xml" }),
        json!({ "text": [html], "target_lang": "DE", "ignore_tags": ["p"] }),
    ] {
        assert_eq!(server.post("/v2/translate", &body).status, 400, "{body}");
    }
    let markdown = json!({ "q": "a", "source": "en", "target": "de", "format": "markdown" });
    assert_eq!(server.post("/translate", &markdown).status, 400);
}

#[test]
fn deepls_clients_say_what_ends_a_sentence() {
    let server = Server::start(&["--no-log"]);
    let text = "A dog runs.\nTwo cats\nsleep.";
    let translated = |splitting: &str| {
        let body = json!({ "text": [text], "target_lang": "DE", "split_sentences": splitting });
        server.post("/v2/translate", &body).json()["translations"][0]["text"].as_str().map(str::to_owned)
    };
    let lines =
        run(&["translate"], b"A dog runs.\nTwo cats\nsleep.\nTwo cats sleep.\nA dog runs. Two cats sleep.\n").ok();
    let [dog, two, sleep, cats, all] = lines.lines()[..] else { panic!("five lines") };
    assert_eq!(translated("1"), Some(format!("{dog}\n{two}\n{sleep}")));
    assert_eq!(translated("nonewlines"), Some(format!("{dog}\n{cats}")));
    assert_eq!(translated("0"), Some(all.to_owned()));
}

#[test]
fn what_is_protected_stays_and_a_glossary_is_followed() {
    let server = Server::start(&["--no-log"]);
    let ask = |body: Value| server.post("/v1/translate", &body).json()["items"][0].clone();
    let text = |item: &Value| item["text"].as_str().map(str::to_owned).unwrap_or_else(|| panic!("{item}"));
    let protect = [r"\{\{.*?\}\}", "Berlin"];
    let item = ask(json!({ "items": [{ "source": "A dog {{name}} runs in Berlin.", "id": 7 }], "protect": protect }));
    assert!(text(&item).contains("{{name}}") && text(&item).contains("Berlin"), "{item}");
    let segment = &item["segments"][0];
    assert_eq!(
        (&segment["source"], &segment["placed"], &item["id"]),
        (&json!("A dog runs in Berlin."), &json!(["{{name}}"]), &json!(7))
    );
    assert_eq!(segment["hypotheses"][0]["attention"], Value::Null);
    let html =
        json!({ "items": [{ "source": "<p>A <b>dog</b> {{&amp;}} runs.</p>" }], "protect": protect, "format": "html" });
    let item = ask(html);
    assert!(text(&item).contains("{{&amp;}}") && text(&item).contains("<b>Hund</b>"), "{item}");
    let glossary = json!({ "dog": "Pudel", "cat": "Kater" });
    let item =
        ask(json!({ "items": [{ "source": "A dog runs.\nTwo cats sleep." }], "segment": true, "glossary": glossary }));
    let plain = run(&["translate"], b"Two cats sleep.\n").ok().out;
    assert!(text(&item).contains("Pudel") && text(&item).ends_with(&format!("\n{}", plain.trim_end())), "{item}");
    let single = ask(json!({ "items": [{ "source": "A dog runs. Two cats." }], "glossary": glossary }));
    assert!(
        text(&single).contains("Pudel") && single["segments"].as_array().is_some_and(|all| all.len() == 1),
        "{single}"
    );
    let with = |name: &str, value: Value| {
        let mut body = json!({ "items": [{ "source": "A dog." }], "glossary": glossary });
        body[name] = value;
        body
    };
    for body in [
        with("protect", json!(["("])),
        with("protect", json!(vec!["a"; 9])),
        with("glossary", json!({ "": "x" })),
        json!({ "items": [{ "source": "A dog." }], "protect": ["x"], "stream": "items" }),
    ] {
        assert_eq!(server.post("/v1/translate", &body).kind(), (400, "option".to_owned()), "{body}");
    }
    for path in ["/v1/score", "/v1/explain"] {
        assert_eq!(server.post(path, &with("priority", json!("batch"))).kind(), (400, "option".to_owned()), "{path}");
    }
    for body in [
        with("options", json!({ "sample": true })),
        with("items", json!([{ "source": "A dog.", "target_prefix": "Ein" }])),
    ] {
        assert_eq!(ask(body.clone())["error"]["kind"], "conflict", "{body}");
    }
}
