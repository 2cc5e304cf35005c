//! Keys, what each is good for, and pages of other origins.

use serde_json::{Value, json};

use super::server::{Answer, Server};
use crate::common::command::run;

/// The SHA-256 of "abc" (FIPS 180-4, appendix), of "root key", and of "hello world".
const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
const ROOT: &str = "adba1ce1a33040f83f16ac2a8feb77eb34bf925101edda4a5b10e567ba4eb9dc";
const HELLO: &str = "b94d27b9934d3e08a52e52d7da7dabfac484efe37a5380ee9088f7ace2efcde9";

struct Keyed {
    server: Server,
    _dir: tempfile::TempDir,
}

fn keyed(keys: &Value, options: &[&str]) -> Keyed {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("keys.json");
    std::fs::write(&path, keys.to_string()).expect("a file");
    let path = path.display().to_string();
    let server = Server::start(&[&["--api-keys", path.as_str()], options].concat());
    Keyed { server, _dir: dir }
}

impl Keyed {
    fn translate(&self, headers: &[&str]) -> Answer {
        let body = json!({ "items": [{ "source": "A dog runs." }] }).to_string();
        let headers = [&["content-type: application/json"], headers].concat();
        self.server.send("POST", "/v1/translate", &headers, body.as_bytes())
    }
}

#[test]
fn where_there_are_keys_one_is_needed_and_its_rights_hold() {
    let keys = json!([
        { "name": "one", "sha256": ABC },
        { "name": "other", "sha256": HELLO, "models": ["another"] },
        { "name": "root", "sha256": ROOT, "admin": true },
    ]);
    let keyed = keyed(&keys, &[]);
    let server = &keyed.server;
    let none = keyed.translate(&[]);
    assert_eq!(none.kind(), (401, "key".to_owned()));
    assert_eq!(none.header("www-authenticate"), Some("Bearer"));
    assert_eq!(keyed.translate(&["authorization: Bearer abd"]).kind(), (403, "key".to_owned()));
    assert_eq!(keyed.translate(&[&format!("authorization: Bearer {ABC}")]).status, 403, "a hash is no key");
    assert_eq!(keyed.translate(&["authorization: Basic abc"]).status, 401);
    assert_eq!(keyed.translate(&["authorization: Bearer abc"]).status, 200);
    assert_eq!(keyed.translate(&["authorization: DeepL-Auth-Key abc"]).status, 200);
    assert_eq!(keyed.translate(&["authorization: Bearer hello world"]).kind(), (403, "key".to_owned()));
    let libre = |key: &str| {
        server.post("/translate", &json!({ "q": "A dog runs.", "source": "en", "target": "de", "api_key": key }))
    };
    assert_eq!((libre("abc").status, libre("abd").status), (200, 403));
    assert!(libre("abd").json()["error"].is_string());
    let deepl =
        |key: &str| server.post("/v2/translate", &json!({ "text": ["A dog."], "target_lang": "DE", "auth_key": key }));
    assert_eq!((deepl("abc").status, deepl("abd").status), (200, 403));
    assert!(deepl("abd").json()["message"].is_string());
    for open in ["/livez", "/readyz", "/health", "/languages", "/metrics", "/openapi.json", "/"] {
        assert_eq!(server.get(open).status, 200, "{open}");
    }
    assert_eq!(server.get("/v1/models").status, 401);
    let reload = |header: &str| server.send("POST", "/v1/admin/reload", &[header], b"");
    assert_eq!(reload("authorization: Bearer abc").kind(), (403, "key".to_owned()));
    assert_eq!(reload("authorization: Bearer root key").json()["models"][0]["name"], "en-de");
    assert_eq!(server.metric("beamfuse_reloads_total{reason=\"done\"}"), Some(1.0));
    // Neither metrics nor logs hold a key.
    assert!(!server.get("/metrics").body.contains("\"one\""));
    server.signal("TERM");
    server.signal("TERM");
    let (_, log) = keyed.server.end();
    assert!(log.iter().any(|line| line.contains("\"key\":\"one\"")), "{log:?}");
    // A request's own name is random: it may spell anything.
    let told: Vec<&str> =
        log.iter().map(|line| line.split_once("\"endpoint\"").map_or(&**line, |(_, rest)| rest)).collect();
    let is_secret = |line: &&str| ["abc", "hello", "root key"].iter().any(|key| line.contains(key));
    assert!(!told.iter().any(is_secret), "{log:?}");
}

#[test]
fn without_keys_nobody_administers_and_files_of_keys_are_checked() {
    let server = Server::start(&["--no-log"]);
    assert_eq!(server.send("POST", "/v1/admin/reload", &[], b"").kind(), (403, "key".to_owned()));
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("keys.json");
    std::fs::write(&path, r#"[{"name": "a", "sha256": "my secret"}]"#).expect("a file");
    let finished = run(&["serve", "--listen", "127.0.0.1:0", "--api-keys", &path.display().to_string()], b"");
    assert_eq!(finished.code, Some(2));
    assert!(finished.err.contains("sha256") && !finished.err.contains("secret"), "{}", finished.err);
}

#[test]
fn a_key_that_has_used_up_its_share_is_told_when_to_come_again() {
    let keys = json!([
        { "name": "few", "sha256": ABC, "characters_per_minute": 25 },
        { "name": "one", "sha256": HELLO, "sentences": 1 },
    ]);
    let keyed = keyed(&keys, &["--no-log"]);
    let few = || keyed.translate(&["authorization: Bearer abc"]);
    assert_eq!((few().status, few().status), (200, 200));
    let refused = few();
    assert_eq!(refused.kind(), (429, "rate".to_owned()));
    assert!(refused.header("retry-after").is_some_and(|wait| wait.parse::<u64>().is_ok_and(|wait| wait > 50)));
    assert_eq!(keyed.translate(&["authorization: Bearer hello world"]).status, 200);
    let two = json!({ "items": [{ "source": "A" }, { "source": "B" }] }).to_string();
    let headers = ["content-type: application/json", "authorization: Bearer hello world"];
    assert_eq!(keyed.server.send("POST", "/v1/translate", &headers, two.as_bytes()).status, 429);
    // Refused work is not charged.
    let usage = keyed.server.send("GET", "/v2/usage", &["authorization: DeepL-Auth-Key abc"], b"").json();
    assert_eq!(usage["character_count"], 22);
}

#[test]
fn pages_of_other_origins_ask_where_they_are_allowed_to() {
    let server = Server::start(&["--no-log", "--cors-origin", "https://example.org"]);
    let from = |origin: &str| server.send("GET", "/livez", &[&format!("origin: {origin}")], b"");
    assert_eq!(from("https://example.org").header("access-control-allow-origin"), Some("https://example.org"));
    assert_eq!(from("https://example.com").header("access-control-allow-origin"), None);
    let asked = ["origin: https://example.org", "access-control-request-method: POST"];
    let preflight = server.send("OPTIONS", "/v1/translate", &asked, b"");
    assert_eq!(preflight.status, 204);
    assert!(preflight.header("access-control-allow-headers").is_some_and(|names| names.contains("authorization")));
    let other = ["origin: https://example.com", "access-control-request-method: POST"];
    assert_eq!(server.send("OPTIONS", "/v1/translate", &other, b"").status, 405);
    let closed = Server::start(&["--no-log"]);
    assert_eq!(closed.send("GET", "/livez", &["origin: https://example.org"], b"").header("vary"), None);
}
