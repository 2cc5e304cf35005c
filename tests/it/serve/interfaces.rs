//! DeepL's interface, the page, the drawing, the description.

use serde_json::json;

use super::server::Server;

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
