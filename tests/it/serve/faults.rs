//! What goes wrong outside: clients that are slow, mad or many, and signals. The service lives through all of it.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::server::{Server, ask, read_answer};

#[test]
fn slow_and_broken_clients_are_answered_or_dropped() {
    let server = Server::start(&["--no-log", "--header-timeout", "1", "--body-timeout", "1"]);
    // Half a header, and nothing at all.
    for start in ["GET /livez HTTP/1.1\r\nhost: x\r\nx-half: ", ""] {
        let mut stream = server.connect();
        stream.write_all(start.as_bytes()).expect("it listens");
        let begun = Instant::now();
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        assert!(begun.elapsed() > Duration::from_millis(800), "{:?}", begun.elapsed());
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    }
    // Half a body.
    let mut stream = server.connect();
    let head = "POST /v1/translate HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n";
    stream.write_all(format!("{head}content-length: 100\r\n\r\n{{\"items\"").as_bytes()).expect("it listens");
    let answer = read_answer(&mut stream).expect("an answer");
    assert_eq!(answer.kind(), (408, "slow_body".to_owned()));
    // A client that closes its side has gone, with or without a whole request.
    for body in ["{\"items\"", "{\"items\": [{\"source\": \"A dog runs.\"}]}"] {
        let mut stream = server.connect();
        stream.write_all(format!("{head}content-length: 40\r\n\r\n{body}").as_bytes()).expect("it listens");
        stream.shutdown(Shutdown::Write).expect("a socket");
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
    }
    // No HTTP.
    let mut stream = server.connect();
    stream.write_all(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello\r\n\r\n").expect("it listens");
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    // Too many headers.
    let header = format!("x-long: {}", "y".repeat(20_000));
    assert_eq!(server.send("GET", "/livez", &[&header], b"").status, 431);
    server.lives();
}

#[test]
fn bodies_of_any_kind_are_answered() {
    let server = Server::start(&["--no-log"]);
    let json = ["content-type: application/json"];
    // A gigabyte, as it is announced and as it comes.
    let mut stream = server.connect();
    let head = "POST /v1/translate HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n";
    stream.write_all(format!("{head}content-length: 1073741824\r\n\r\n").as_bytes()).expect("it listens");
    stream.write_all(&[b' '; 1000]).expect("it listens");
    assert_eq!(read_answer(&mut stream).expect("an answer").kind(), (413, "body_too_large".to_owned()));
    let mut stream = server.connect();
    stream.write_all(format!("{head}transfer-encoding: chunked\r\n\r\n").as_bytes()).expect("it listens");
    let chunk = [b"10000\r\n".as_slice(), &[b' '; 0x10000], b"\r\n"].concat();
    let begun = Instant::now();
    // It stops reading long before the end.
    let taken = (0..16 * 1024).take_while(|_| stream.write_all(&chunk).is_ok()).count();
    assert!(taken < 16 * 1024 && begun.elapsed() < Duration::from_secs(60), "{taken}");
    let over = vec![b' '; (1 << 20) + 1];
    assert_eq!(server.send("POST", "/v1/translate", &json, &over).kind(), (413, "body_too_large".to_owned()));
    // No text, and JSON that goes deep, is broken, or says little often.
    let invalid = server.send("POST", "/v1/translate", &json, b"{\"items\": [{\"source\": \"\xff\"}]}");
    assert_eq!(invalid.kind(), (400, "json".to_owned()));
    let deep = "[".repeat(400_000);
    for body in
        [deep.clone(), format!("{{\"items\": {deep}"), format!("{{\"items\": [{{\"source\": {deep}"), String::new()]
    {
        assert_eq!(server.post_text("/v1/translate", &body).kind(), (400, "json".to_owned()));
    }
    let nested =
        format!("{{\"items\": [{{\"source\": \"A dog.\", \"x\": {}{}}}]}}", "[".repeat(100_000), "]".repeat(100_000));
    let answer = server.post_text("/v1/translate", &nested);
    assert!(matches!(answer.status, 200 | 400), "{answer:?}");
    let many = format!("{{\"items\": [{}0]}}", "0,".repeat(500_000));
    assert_eq!(server.post_text("/v1/translate", &many).kind(), (413, "request_too_large".to_owned()));
    let texts = json!({ "q": vec!["a"; 200_000], "source": "en", "target": "de" });
    assert_eq!(server.post("/translate", &texts).status, 413);
    let lines = json!({ "q": "a\n".repeat(10_000), "source": "en", "target": "de" });
    assert_eq!(server.post("/translate", &lines).status, 413, "each line is an item");
    let form = ["content-type: application/x-www-form-urlencoded"];
    assert_eq!(server.send("POST", "/translate", &form, b"q=%ff%fe&source=en&target=de").status, 200);
    server.lives();
}

#[test]
fn a_million_items_are_refused_at_once_and_leave_no_memory_behind() {
    let server = Server::start(&["--no-log", "--max-body", "16777216"]);
    let numbers = format!("{{\"items\": [{}0]}}", "0,".repeat(999_999));
    let texts = format!("{{\"q\": [{}\"a\"], \"source\": \"en\", \"target\": \"de\"}}", "\"a\",".repeat(999_999));
    let form = format!("source=en&target=de{}", "&q=a".repeat(1_000_000));
    let lines = json!({ "q": "a\n".repeat(1_000_000), "source": "en", "target": "de" }).to_string();
    let urlencoded = ["content-type: application/x-www-form-urlencoded"];
    for _ in 0..3 {
        for (path, body) in
            [("/v1/translate", &numbers), ("/translate", &texts), ("/detect", &texts), ("/translate", &lines)]
        {
            let begun = Instant::now();
            assert_eq!(server.post_text(path, body).status, 413, "{path}");
            assert!(begun.elapsed() < Duration::from_secs(20), "{path}: {:?}", begun.elapsed());
        }
        assert_eq!(server.send("POST", "/translate", &urlencoded, form.as_bytes()).status, 413);
    }
    if let Some(peak) = server.peak_mib() {
        assert!(peak < 1024, "{peak} MiB");
    }
    server.lives();
}

#[test]
fn idle_connections_keep_nobody_out_for_long() {
    let server = Server::start(&["--no-log", "--max-connections", "20", "--header-timeout", "2"]);
    let idle: Vec<_> = (0..100).map(|_| server.connect()).collect();
    // Those that are too many are told so at once.
    let mut refused = idle.last().expect("some").try_clone().expect("a socket");
    let answer = read_answer(&mut refused).expect("an answer");
    assert_eq!(answer.kind(), (503, "connections".to_owned()));
    let begun = Instant::now();
    while server.get("/livez").status != 200 {
        assert!(begun.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(100));
    }
    server.lives();
}

fn long_request(items: usize) -> Value {
    let text = "A man in a blue shirt is standing on a ladder cleaning a window while two dogs run through the snow.";
    let items: Vec<Value> =
        (0..items).map(|at| json!({ "source": text, "options": { "beam_size": 4 + at % 4 } })).collect();
    json!({ "items": items })
}

#[test]
fn a_signal_lets_all_that_was_accepted_end() {
    let server = Server::start(&["--drain-delay", "1"]);
    let body = long_request(12);
    let json = ["content-type: application/json"];
    let mut streams: Vec<_> = (0..6).map(|_| server.connect()).collect();
    streams.iter_mut().for_each(|stream| ask(stream, "POST", "/v1/translate", &json, body.to_string().as_bytes()));
    std::thread::sleep(Duration::from_millis(100));
    let mut idle = server.connect();
    server.signal("TERM");
    std::thread::sleep(Duration::from_millis(200));
    // Balancers hear of it while requests are still served.
    assert_eq!(server.get("/readyz").kind(), (503, "draining".to_owned()));
    assert_eq!(server.get("/livez").status, 200);
    for mut stream in streams {
        let answer = read_answer(&mut stream).expect("an answer");
        assert_eq!(answer.status, 200, "{answer:?}");
        let items = answer.json()["items"].clone();
        assert_eq!(items.as_array().map(Vec::len), Some(12));
        assert!(items.as_array().is_some_and(|items| items.iter().all(|item| item["text"].is_string())));
    }
    let mut rest = Vec::new();
    let _ = idle.read_to_end(&mut rest);
    let (code, log) = server.end();
    assert_eq!(code, Some(0), "{log:?}");
}

#[test]
fn work_that_does_not_end_in_time_gets_an_error_and_a_second_signal_waits_for_nothing() {
    let server = Server::start(&["--drain-delay", "0", "--drain-timeout", "1", "--threads", "1", "--max-wait", "60"]);
    let body = long_request(300).to_string();
    let mut stream = server.connect();
    ask(&mut stream, "POST", "/v1/translate", &["content-type: application/json"], body.as_bytes());
    std::thread::sleep(Duration::from_millis(200));
    server.signal("TERM");
    assert_eq!(read_answer(&mut stream).expect("an answer").kind(), (503, "draining".to_owned()));
    assert_eq!(server.end().0, Some(0));

    let server = Server::start(&["--drain-delay", "60"]);
    let begun = Instant::now();
    server.signal("TERM");
    std::thread::sleep(Duration::from_millis(200));
    server.signal("INT");
    assert_eq!(server.end().0, Some(130));
    assert!(begun.elapsed() < Duration::from_secs(20));
}

#[test]
fn a_reload_under_load_loses_nothing() {
    let server = Server::start(&["--max-wait", "60"]);
    let body = long_request(4);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| (0..6).map(|_| server.post("/v1/translate", &body).json()).collect::<Vec<_>>()))
            .collect();
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(100));
            server.signal("HUP");
        }
        let answers: Vec<Value> = threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect();
        assert_eq!(answers.len(), 24);
        // The same bits from the old ones and from the new ones.
        assert!(answers.iter().all(|answer| answer["items"] == answers[0]["items"]));
    });
    let begun = Instant::now();
    while server.metric("beamfuse_reloads_total{reason=\"done\"}").is_none() {
        assert!(begun.elapsed() < Duration::from_secs(30));
        std::thread::sleep(Duration::from_millis(50));
    }
    server.lives();
}

#[test]
fn a_reload_that_fails_keeps_what_is_served() {
    let dir = tempfile::tempdir().expect("a directory");
    for entry in std::fs::read_dir(crate::common::demo_model()).expect("the demo model").flatten() {
        std::fs::copy(entry.path(), dir.path().join(entry.file_name())).expect("a copy");
    }
    let model = format!("m={}", dir.path().display());
    let server = Server::start(&["--model", &model]);
    std::fs::write(dir.path().join("config.json"), "{").expect("a file");
    server.signal("HUP");
    let begun = Instant::now();
    while server.metric("beamfuse_reloads_total{reason=\"failed\"}") != Some(1.0) {
        assert!(begun.elapsed() < Duration::from_secs(30));
        std::thread::sleep(Duration::from_millis(50));
    }
    server.lives();
}

#[test]
#[cfg_attr(not(target_os = "linux"), ignore = "needs a limit that holds")]
fn requests_that_find_no_memory_get_a_typed_error_and_the_service_lives() {
    let server = Server::start(&["--no-log", "--max-body", "16777216"]);
    let large = json!({ "items": vec![json!({ "source": "A dog runs." }); 500_000] });
    // No room for a thread's stack, nor for what such a body comes to.
    server.limit_address_space(Some(server.address_space_mib() + 1));
    for _ in 0..3 {
        let answer = server.post("/v1/translate", &large);
        assert_eq!(answer.kind(), (503, "out_of_memory".to_owned()), "{answer:?}");
        server.lives();
    }
    server.limit_address_space(None);
    assert_eq!(server.post("/v1/translate", &large).kind(), (413, "request_too_large".to_owned()));
    server.lives();
}
