//! Models from a hub: a server on this machine serves a repository, breaks off, refuses, and goes away.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use crate::common;
use crate::common::hub_server::{COMMIT, Fault, REPOSITORY, Server, sha256};
use beamfuse::hub::{Hub, ModelId, Progress};
use beamfuse::{Error, Result, Translator};

/// The demo model's tokenizer with a tiny checkpoint, and files that no translation needs.
fn repository(checkpoint: &str) -> BTreeMap<String, Vec<u8>> {
    let mut files: BTreeMap<String, Vec<u8>> = [("README.md", "# A model"), ("tf_model.h5", "large")]
        .map(|(name, text)| (name.to_string(), text.into()))
        .into();
    let mut add = |dir: &Path| {
        for file in std::fs::read_dir(dir).expect("the data is there").flatten() {
            let name = file.file_name().to_string_lossy().into_owned();
            files.insert(name, std::fs::read(file.path()).expect("the data is there"));
        }
    };
    add(&common::demo_model());
    add(&common::data("checkpoints/safetensors"));
    if checkpoint != "safetensors" {
        add(&common::data("checkpoints").join(checkpoint));
        files.remove("model.safetensors");
    }
    files
}

struct Fixture {
    server: Server,
    files: BTreeMap<String, Vec<u8>>,
    cache: tempfile::TempDir,
}

/// What a fetch told.
#[derive(Default)]
struct Told {
    started: Vec<(String, u64, u64)>,
    bytes: u64,
    notes: Vec<String>,
}

impl Progress for Told {
    fn start(&mut self, file: &str, size: u64, done: u64) {
        self.started.push((file.into(), size, done));
    }

    fn advance(&mut self, bytes: u64) {
        self.bytes += bytes;
    }

    fn note(&mut self, message: &str) {
        self.notes.push(message.into());
    }
}

impl Fixture {
    fn new(checkpoint: &str) -> Self {
        let files = repository(checkpoint);
        Fixture { server: Server::start(files.clone()), files, cache: tempfile::tempdir().expect("a directory") }
    }

    fn hub(&self) -> Hub {
        let (endpoint, cache) = (self.server.endpoint.clone(), self.cache.path().join("hub"));
        Hub { endpoint, cache, token: Some("secret".into()), offline: false }
    }

    /// The hub where nobody listens.
    fn gone(&self) -> Hub {
        Hub { endpoint: "http://127.0.0.1:1".into(), ..self.hub() }
    }

    fn fetch(&self, hub: &Hub) -> (Result<std::path::PathBuf>, Told) {
        let mut told = Told::default();
        (hub.fetch(&ModelId::parse(REPOSITORY).expect("an id"), &mut told), told)
    }

    fn error(&self, hub: &Hub) -> String {
        self.fetch(hub).0.expect_err("a fault").to_string()
    }

    /// Checks that every file there is whole, and gives their names.
    fn check(&self, dir: &Path) -> Vec<String> {
        let mut names = Vec::new();
        for file in std::fs::read_dir(dir).expect("the snapshot is there").flatten() {
            let name = file.file_name().to_string_lossy().into_owned();
            assert_eq!(sha256(&std::fs::read(file.path()).expect("readable")), sha256(&self.files[&name]), "{name}");
            names.push(name);
        }
        names.sort();
        names
    }

    /// Bytes of these files; contents that two of them share count once.
    fn size(&self, names: &[String]) -> u64 {
        let contents: BTreeSet<&Vec<u8>> = names.iter().map(|name| &self.files[name]).collect();
        contents.into_iter().map(|bytes| bytes.len() as u64).sum()
    }

    fn snapshot(&self) -> std::path::PathBuf {
        let repository = format!("models--{}", REPOSITORY.replace('/', "--"));
        self.cache.path().join("hub").join(repository).join("snapshots").join(COMMIT)
    }
}

const SMALL: [&str; 6] =
    ["config.json", "generation_config.json", "source.spm", "target.spm", "tokenizer_config.json", "vocab.json"];

fn with_weights(weights: &[&str]) -> Vec<String> {
    let mut names: Vec<String> = SMALL.iter().chain(weights).map(|name| name.to_string()).collect();
    names.sort();
    names
}

#[test]
fn a_model_is_fetched_once_and_only_what_it_needs() {
    let fixture = Fixture::new("safetensors");
    let (dir, told) = fixture.fetch(&fixture.hub());
    let dir = dir.expect("fetched");
    assert_eq!(dir, fixture.snapshot());
    assert_eq!(fixture.check(&dir), with_weights(&["model.safetensors"]));
    assert_eq!(told.bytes, fixture.size(&with_weights(&["model.safetensors"])));
    assert_eq!(told.started.last().map(|(file, ..)| file.as_str()), Some("model.safetensors"), "weights come last");
    fixture.server.requests();
    let (again, told) = fixture.fetch(&fixture.hub());
    assert_eq!(again.expect("cached"), dir);
    assert!(told.started.is_empty());
    let requests = fixture.server.requests();
    assert_eq!(requests.len(), 1, "only which commit main is: {requests:?}");
}

#[test]
fn the_cache_is_laid_out_as_by_the_hubs_other_tools() {
    let fixture = Fixture::new("safetensors");
    let dir = fixture.fetch(&fixture.hub()).0.expect("fetched");
    let root = dir.ancestors().nth(2).expect("snapshots/COMMIT");
    assert_eq!(std::fs::read_to_string(root.join("refs/main")).expect("a reference"), COMMIT);
    let blob = sha256(&fixture.files["model.safetensors"]);
    assert!(root.join("blobs").join(&blob).is_file());
    #[cfg(unix)]
    assert_eq!(std::fs::read_link(dir.join("model.safetensors")).expect("a link"), Path::new("../../blobs").join(blob));
}

#[test]
fn the_token_goes_to_the_hub_alone() {
    let fixture = Fixture::new("safetensors");
    fixture.fetch(&fixture.hub()).0.expect("fetched");
    let requests = fixture.server.requests();
    let (hub, storage): (Vec<_>, Vec<_>) = requests.iter().partition(|r| r.path.contains(REPOSITORY));
    assert!(hub.len() > 7 && storage.len() == 2, "{requests:?}");
    assert!(hub.iter().all(|request| request.token.as_deref() == Some("Bearer secret")));
    assert!(storage.iter().all(|request| request.token.is_none() && request.method == "GET"));
    assert!(!format!("{:?}", fixture.hub()).contains("secret"));
}

#[test]
fn checkpoints_of_every_form_are_found() {
    for (form, weights) in [
        ("zip", &["pytorch_model.bin"][..]),
        (
            "sharded",
            &[
                "pytorch_model-00001-of-00003.bin",
                "pytorch_model-00002-of-00003.bin",
                "pytorch_model-00003-of-00003.bin",
                "pytorch_model.bin.index.json",
            ],
        ),
    ] {
        let fixture = Fixture::new(form);
        let dir = fixture.fetch(&fixture.hub()).0.expect(form);
        assert_eq!(fixture.check(&dir), with_weights(weights));
        // Everything that is asked of a cached model holds for shards, too.
        assert_eq!(fixture.fetch(&fixture.gone()).0.expect(form), dir);
    }
}

#[test]
fn a_cut_download_is_no_file_and_is_continued() {
    for fault in [Fault::Cut, Fault::CutUnannounced] {
        let fixture = Fixture::new("safetensors");
        fixture.server.fault(fault);
        let size = fixture.files["source.spm"].len() as u64;
        let error = fixture.error(&fixture.hub());
        assert!(error.contains(&format!("source.spm: expected {size} bytes, got {} before", size / 2)), "{error}");
        assert!(error.starts_with(&format!("fetch {REPOSITORY}@main: ")), "{error}");
        // What is there is whole, and it is not taken for the model.
        assert_eq!(
            fixture.check(&fixture.snapshot()),
            ["config.json", "generation_config.json", "tokenizer_config.json"]
        );
        let offline = Hub { offline: true, ..fixture.hub() };
        let error = fixture.error(&offline);
        assert!(error.contains("expected the model in the cache"), "{error}");
        assert!(error.contains("got a part of it, without source.spm"), "{error}");
        fixture.server.fault(Fault::None);
        fixture.server.requests();
        let (dir, told) = fixture.fetch(&fixture.hub());
        assert_eq!(fixture.check(&dir.expect("recovered")), with_weights(&["model.safetensors"]));
        assert_eq!(told.started[0], ("source.spm".into(), size, size / 2));
        let continued = fixture.server.requests().into_iter().find(|request| request.path == "/source.spm");
        assert_eq!(continued.and_then(|request| request.range), Some(size / 2));
    }
}

#[test]
fn a_server_that_sends_all_again_does_no_harm() {
    let fixture = Fixture::new("safetensors");
    fixture.server.fault(Fault::Cut);
    fixture.error(&fixture.hub());
    fixture.server.fault(Fault::IgnoreRange);
    let (dir, told) = fixture.fetch(&fixture.hub());
    fixture.check(&dir.expect("recovered"));
    assert_eq!(told.started[0].2, 0);
}

#[test]
fn wrong_bytes_are_refused_and_fetched_anew() {
    let fixture = Fixture::new("safetensors");
    fixture.server.fault(Fault::Spoilt);
    let error = fixture.error(&fixture.hub());
    assert!(error.contains("source.spm: expected SHA-256 "), "{error}");
    assert!(!fixture.snapshot().join("source.spm").exists());
    fixture.server.fault(Fault::None);
    let (dir, told) = fixture.fetch(&fixture.hub());
    fixture.check(&dir.expect("recovered"));
    assert_eq!(told.started[0].2, 0);
}

#[test]
fn small_files_are_checked_as_git_does_and_have_a_longest_size() {
    let fixture = Fixture::new("safetensors");
    for (fault, reason) in [
        (Fault::SpoiltSmall, "config.json: expected SHA-1 as git's "),
        (Fault::Long, "config.json: expected at most 16777216 bytes, got 16777217"),
    ] {
        fixture.server.fault(fault);
        let error = fixture.error(&fixture.hub());
        assert!(error.contains(reason), "{error}");
        assert!(!fixture.snapshot().join("config.json").exists());
    }
    fixture.server.fault(Fault::None);
    fixture.check(&fixture.fetch(&fixture.hub()).0.expect("recovered"));
}

#[test]
fn a_flipped_bit_in_the_cache_is_mended_or_the_file_is_named() {
    for file in ["config.json", "model.safetensors"] {
        let fixture = Fixture::new("safetensors");
        assert!(command(&fixture, &["info", "--model", REPOSITORY]).0);
        let blob = std::fs::canonicalize(fixture.snapshot().join(file)).expect("there");
        let spoil = || {
            let mut bytes = std::fs::read(&blob).expect("there");
            bytes[9] ^= 0xff;
            std::fs::write(&blob, bytes).expect("ours");
        };
        spoil();
        let (ok, _, err) = command(&fixture, &["info", "--model", REPOSITORY, "--offline"]);
        assert!(!ok && err.contains(&format!("others in {}", blob.display())) && err.contains("delete it"), "{err}");
        assert!(blob.exists());
        let (ok, _, err) = command(&fixture, &["info", "--model", REPOSITORY]);
        assert!(ok && err.contains("is damaged: fetching it again"), "{err}");
        fixture.check(&fixture.snapshot());
    }
}

#[test]
fn a_half_file_that_another_tool_left_is_replaced() {
    let fixture = Fixture::new("safetensors");
    let dir = fixture.fetch(&fixture.hub()).0.expect("fetched");
    let blob = std::fs::canonicalize(dir.join("model.safetensors")).expect("there");
    std::fs::remove_file(dir.join("model.safetensors")).expect("removed");
    std::fs::write(&blob, "half").expect("written");
    fixture.fetch(&fixture.hub()).0.expect("fetched");
    fixture.check(&dir);
    // A link to nothing is no file either.
    std::fs::remove_file(blob).expect("removed");
    assert!(fixture.error(&fixture.gone()).contains("expected an answer"));
    fixture.fetch(&fixture.hub()).0.expect("fetched");
    fixture.check(&dir);
}

#[test]
fn without_the_hub_the_cache_serves() {
    let fixture = Fixture::new("safetensors");
    let offline = Hub { offline: true, ..fixture.gone() };
    let error = fixture.error(&fixture.gone());
    assert!(error.contains("expected an answer from http://127.0.0.1:1, got "), "{error}");
    assert!(fixture.error(&offline).contains("expected the model in the cache"));
    let dir = fixture.fetch(&fixture.hub()).0.expect("fetched");
    let (cached, told) = fixture.fetch(&fixture.gone());
    assert_eq!(cached.expect("cached"), dir);
    assert!(told.notes[0].contains("using the files of an earlier download"), "{:?}", told.notes);
    let (cached, told) = fixture.fetch(&offline);
    assert_eq!(cached.expect("cached"), dir);
    assert!(told.notes.is_empty());
    fixture.server.fault(Fault::Status(503));
    assert_eq!(fixture.fetch(&fixture.hub()).0.expect("cached"), dir);
    // A commit is what it is: nobody needs to be asked.
    let commit = ModelId::parse(&format!("{REPOSITORY}@{COMMIT}")).expect("an id");
    let mut told = Told::default();
    assert_eq!(fixture.gone().fetch(&commit, &mut told).expect("cached"), dir);
    assert!(told.notes.is_empty(), "{:?}", told.notes);
}

#[test]
fn refusals_say_why() {
    let fixture = Fixture::new("safetensors");
    for (fault, expected) in [
        (Fault::Status(401), "status 401 (no such repository, or not for everybody, and the token was refused"),
        (Fault::Status(403), "status 403 (no such repository, or not for everybody, and the token was refused"),
        (Fault::Status(404), "status 404 (no such repository"),
        (Fault::Status(429), "status 429 (too many requests)"),
        (Fault::Status(500), "status 500 (the hub is out of order)"),
        (Fault::Missing("config.json"), "main: config.json: expected a file from http://127.0.0.1:"),
        (Fault::EvilTag, "expected headers with ETag"),
        (Fault::EvilCommit, "got commit \"../../../../evil\""),
        (Fault::Circle, "expected at most 10 redirects"),
    ] {
        fixture.server.fault(fault);
        let error = fixture.error(&fixture.hub());
        assert!(error.starts_with("fetch owner/tiny-en-de@main") && error.contains(expected), "{fault:?}: {error}");
    }
    fixture.server.fault(Fault::Status(401));
    let error = fixture.error(&Hub { token: None, ..fixture.hub() });
    assert!(error.contains("no token was given: set HF_TOKEN"), "{error}");
    assert_eq!(std::fs::read_dir(fixture.cache.path()).expect("a directory").count(), 1, "only the cache itself");
    // What the hub refuses, an earlier download does not grant.
    fixture.server.fault(Fault::None);
    fixture.fetch(&fixture.hub()).0.expect("fetched");
    fixture.server.fault(Fault::Status(404));
    assert!(fixture.error(&fixture.hub()).contains("status 404"));
}

#[test]
fn a_repository_without_a_needed_file_is_named() {
    for (gone, expected) in [
        ("source.spm", "expected a translation model with source.spm, got none in the repository"),
        ("vocab.json", "vocab.json or source_vocab.json"),
        ("model.safetensors", "model.safetensors or pytorch_model.bin"),
    ] {
        let mut fixture = Fixture::new("safetensors");
        fixture.files.remove(gone);
        fixture.server = Server::start(fixture.files.clone());
        let error = fixture.error(&fixture.hub());
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn revisions() {
    let fixture = Fixture::new("safetensors");
    let at = |revision: &str| ModelId::parse(REPOSITORY).expect("an id").at(revision).expect("a revision");
    let dir = fixture.hub().fetch(&at("refs/pr/1"), &mut ()).expect("fetched");
    assert_eq!(fixture.gone().fetch(&at("refs/pr/1"), &mut ()).expect("cached"), dir);
    let error = fixture.hub().fetch(&at("v9"), &mut ()).expect_err("no such revision").to_string();
    assert!(error.starts_with("fetch owner/tiny-en-de@v9: ") && error.contains("404"), "{error}");
    for (id, option) in [
        ("opus", "model"),
        ("a/b/c", "model"),
        ("../x", "model"),
        ("./x", "model"),
        ("/x", "model"),
        ("a/", "model"),
        ("a/b c", "model"),
        ("a/..", "model"),
        ("a/b@", "revision"),
        ("a/b@../x", "revision"),
        ("a/b@x//y", "revision"),
        ("a/b@x?y", "revision"),
    ] {
        let error = ModelId::parse(id).expect_err(id);
        assert!(matches!(error, Error::Option { option: found, .. } if found == option), "{id}: {error}");
    }
}

#[test]
fn two_at_once_share_a_download() {
    let fixture = Fixture::new("safetensors");
    let fetched: Vec<u64> = std::thread::scope(|scope| {
        let fetch = || {
            let (dir, told) = fixture.fetch(&fixture.hub());
            fixture.check(&dir.expect("fetched"));
            told.bytes
        };
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(fetch)).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    let size = fixture.size(&fixture.check(&fixture.snapshot()));
    assert_eq!(fetched.iter().sum::<u64>(), size, "each file once");
}

/// The command with the fixture's hub in its environment.
fn command(fixture: &Fixture, arguments: &[&str]) -> (bool, String, String) {
    run_command(Command::new(env!("CARGO_BIN_EXE_beamfuse")), fixture, arguments)
}

fn run_command(mut command: Command, fixture: &Fixture, arguments: &[&str]) -> (bool, String, String) {
    for name in ["HF_HUB_CACHE", "HF_TOKEN_PATH", "HF_HUB_OFFLINE", "HF_TOKEN", "http_proxy", "HTTP_PROXY", "ALL_PROXY"]
    {
        command.env_remove(name);
    }
    command.env("HF_HOME", fixture.cache.path()).env("HF_ENDPOINT", &fixture.server.endpoint);
    if arguments.contains(&"--offline") {
        command.env("HF_HUB_OFFLINE", "1");
    }
    let arguments = arguments.iter().filter(|argument| **argument != "--offline");
    let output = command.args(arguments).current_dir(fixture.cache.path()).output().expect("the command runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn the_command_takes_ids() {
    let fixture = Fixture::new("zip");
    std::fs::write(fixture.cache.path().join("token"), "from-file\n").expect("written");
    let (ok, out, err) = command(&fixture, &["info", "--model", REPOSITORY, "--revision", "refs/pr/1"]);
    assert!(ok && out.contains("pytorch_model.bin") && err.is_empty(), "{out}{err}");
    assert!(fixture.snapshot().is_dir());
    assert_eq!(fixture.server.requests()[0].token.as_deref(), Some("Bearer from-file"));
    let (ok, ..) = command(&fixture, &["info", "--model", &format!("{REPOSITORY}@refs/pr/1"), "--offline"]);
    assert!(ok);
    let (ok, _, err) = command(&fixture, &["info", "--model", REPOSITORY, "--offline"]);
    assert!(!ok && err.contains("expected the model in the cache"), "{err}");
    let (ok, _, err) = command(&fixture, &["info", "--model", "nowhere"]);
    assert!(!ok && err.contains("expected an existing directory or a hub id owner/name, got nowhere"), "{err}");
    let (ok, _, err) = command(&fixture, &["info", "--model", "a/b@main", "--revision", "main"]);
    assert!(!ok && err.contains("option revision"), "{err}");
    let (ok, _, err) = command(&fixture, &["info", "--model", ".", "--revision", "main"]);
    assert!(!ok && err.contains("expected a hub id as the model, got the directory ."), "{err}");
    // A directory of that name wins.
    std::fs::create_dir_all(fixture.cache.path().join(REPOSITORY)).expect("created");
    let (ok, _, err) = command(&fixture, &["info", "--model", REPOSITORY]);
    assert!(!ok && err.contains("read owner/tiny-en-de/config.json"), "{err}");
}

#[test]
#[cfg_attr(not(target_os = "linux"), ignore = "needs a limit on files' sizes")]
fn a_full_disk_leaves_no_part_behind() {
    let fixture = Fixture::new("safetensors");
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -f 16 && exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_beamfuse")]);
    let (ok, _, err) = run_command(limited, &fixture, &["info", "--model", REPOSITORY]);
    assert!(!ok && err.contains("write") && !err.contains("panicked"), "{err}");
    let blobs = fixture.snapshot().join("../../blobs");
    let left: Vec<_> = std::fs::read_dir(blobs).expect("the cache is there").flatten().map(|e| e.path()).collect();
    assert!(left.iter().all(|path| path.extension().is_none_or(|e| e != "incomplete")), "{left:?}");
    let (ok, _, err) = command(&fixture, &["info", "--model", REPOSITORY]);
    assert!(ok, "{err}");
    fixture.check(&fixture.snapshot());
}

#[test]
fn a_fetched_model_translates() {
    let mut fixture = Fixture::new("safetensors");
    for file in ["config.json", "model.safetensors"] {
        let bytes = std::fs::read(common::demo_model().join(file)).expect("the demo model is there");
        fixture.files.insert(file.into(), bytes);
    }
    fixture.server = Server::start(fixture.files.clone());
    let dir = fixture.fetch(&fixture.hub()).0.expect("fetched");
    let translate = |dir: &Path| {
        let translator = Translator::open(dir).expect("it opens");
        translator.translate(&["A dog runs."], &Default::default()).expect("it translates")[0].text().to_string()
    };
    assert_eq!(translate(&dir), translate(&common::demo_model()));
    let (ok, out, err) = command(&fixture, &["translate", "--model", REPOSITORY, "A dog runs."]);
    assert!(ok && err.is_empty(), "{err}");
    assert_eq!(out.trim_end(), translate(&dir));
}
