//! A hub of one repository on this machine: it answers as huggingface.co does, and misbehaves as told.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use sha2::{Digest, Sha256};

/// The repository and its commit.
pub const REPOSITORY: &str = "owner/tiny-en-de";
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the server does wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Fault {
    #[default]
    None,
    /// Large files end in the middle, of the length that was announced.
    Cut,
    /// Large files end in the middle, of no announced length.
    CutUnannounced,
    /// Large files come whole whatever range is asked for.
    IgnoreRange,
    /// Large files have a byte that is wrong.
    Spoilt,
    /// Small files have.
    SpoiltSmall,
    /// Small files are far longer than any configuration.
    Long,
    /// Everything is answered with this status.
    Status(u16),
    /// This file is listed and not found.
    Missing(&'static str),
    /// Tags lead out of the directory.
    EvilTag,
    /// The list names a commit that leads out of the directory.
    EvilCommit,
    /// Redirects lead back to themselves.
    Circle,
}

#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub token: Option<String>,
    pub range: Option<u64>,
}

#[derive(Default)]
struct State {
    files: BTreeMap<String, Vec<u8>>,
    fault: Fault,
    requests: Vec<Request>,
}

/// The hub on one port, its storage for large files on another.
pub struct Server {
    pub endpoint: String,
    state: Arc<Mutex<State>>,
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The name that git gives contents.
fn git_sha1(bytes: &[u8]) -> String {
    let sum = sha1::Sha1::new_with_prefix(format!("blob {}\0", bytes.len())).chain_update(bytes).finalize();
    sum.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether the hub keeps a file in its storage.
fn is_large(name: &str) -> bool {
    !name.ends_with(".json")
}

impl Server {
    pub fn start(files: BTreeMap<String, Vec<u8>>) -> Self {
        let state = Arc::new(Mutex::new(State { files, ..State::default() }));
        let listen = || TcpListener::bind("127.0.0.1:0").expect("a free port");
        let (hub, storage) = (listen(), listen());
        let address = |listener: &TcpListener| format!("http://{}", listener.local_addr().expect("bound"));
        let (endpoint, storage_address) = (address(&hub), address(&storage));
        for (listener, large) in [(hub, None), (storage, Some(()))] {
            let (state, storage) = (state.clone(), storage_address.clone());
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    // A client that went away is its own affair.
                    _ = answer(stream, &state, large.is_some(), &storage);
                }
            });
        }
        Server { endpoint, state }
    }

    pub fn fault(&self, fault: Fault) {
        self.state.lock().expect("no panic").fault = fault;
    }

    /// The requests since the last call.
    pub fn requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.state.lock().expect("no panic").requests)
    }
}

fn read_request(stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next()?.ok()?;
    let mut words = first.split(' ').map(str::to_string);
    let (method, path) = (words.next()?, words.next()?);
    let mut request = Request { method, path, token: None, range: None };
    for line in lines.map_while(Result::ok).take_while(|line| !line.is_empty()) {
        let (name, value) = line.split_once(": ")?;
        match name.to_ascii_lowercase().as_str() {
            "authorization" => request.token = Some(value.to_string()),
            "range" => request.range = value.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok(),
            _ => {}
        }
    }
    Some(request)
}

fn answer(mut stream: TcpStream, state: &Mutex<State>, storage: bool, storage_address: &str) -> std::io::Result<()> {
    let Some(request) = read_request(&stream) else { return Ok(()) };
    let (files, fault) = {
        let mut state = state.lock().expect("no panic");
        state.requests.push(request.clone());
        (state.files.clone(), state.fault)
    };
    let response = match storage {
        true => from_storage(&request, &files, fault),
        false => from_hub(&request, &files, fault, storage_address),
    };
    let Response { status, headers, body } = response;
    let mut head = format!("HTTP/1.1 {status} X\r\nConnection: close\r\n");
    for (name, value) in headers {
        write!(head, "{name}: {value}\r\n").expect("text");
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    if request.method == "GET" {
        stream.write_all(&body)?;
    }
    stream.flush()
}

struct Response {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

fn plain(status: u16, body: Vec<u8>) -> Response {
    Response { status, headers: vec![("Content-Length", body.len().to_string())], body }
}

fn from_hub(request: &Request, files: &BTreeMap<String, Vec<u8>>, fault: Fault, storage: &str) -> Response {
    if let Fault::Status(status) = fault {
        return plain(status, b"no".to_vec());
    }
    let listed = format!("/api/models/{REPOSITORY}/revision/");
    if let Some(revision) = request.path.strip_prefix(&listed) {
        if !["main", "refs%2Fpr%2F1", COMMIT].contains(&revision) {
            return plain(404, Vec::new());
        }
        let siblings: Vec<_> = files.keys().map(|name| serde_json::json!({ "rfilename": name })).collect();
        let sha = if fault == Fault::EvilCommit { "../../../../evil" } else { COMMIT };
        return plain(200, serde_json::json!({ "sha": sha, "siblings": siblings }).to_string().into());
    }
    let file = request.path.strip_prefix(&format!("/{REPOSITORY}/resolve/{COMMIT}/"));
    let Some((name, bytes)) = file.and_then(|name| files.get_key_value(name)) else { return plain(404, Vec::new()) };
    if fault == Fault::Missing(name_of(name)) {
        return plain(404, Vec::new());
    }
    let tag = match is_large(name) {
        _ if fault == Fault::EvilTag => "../../../evil".to_string(),
        true => sha256(bytes),
        false => git_sha1(bytes),
    };
    match is_large(name) {
        false => {
            let mut bytes = bytes.clone();
            match fault {
                Fault::SpoiltSmall => *bytes.last_mut().expect("no small file is empty") ^= 1,
                Fault::Long => bytes.resize((16 << 20) + 1, b' '),
                _ => {}
            }
            let mut response = plain(200, bytes);
            response.headers.extend([("ETag", format!("\"{tag}\"")), ("X-Repo-Commit", COMMIT.to_string())]);
            response
        }
        true if fault == Fault::Circle => {
            Response { status: 302, headers: vec![("Location", request.path.clone())], body: Vec::new() }
        }
        true => {
            let location = ("Location", format!("{storage}/{name}"));
            let linked = [("X-Linked-ETag", format!("\"{tag}\"")), ("X-Linked-Size", bytes.len().to_string())];
            let headers = vec![location, linked[0].clone(), linked[1].clone(), ("Content-Length", "0".into())];
            Response { status: 302, headers, body: Vec::new() }
        }
    }
}

/// The static name of a file that tests call missing.
fn name_of(name: &str) -> &'static str {
    ["config.json", "source.spm", "model.safetensors"].into_iter().find(|known| *known == name).unwrap_or("")
}

fn from_storage(request: &Request, files: &BTreeMap<String, Vec<u8>>, fault: Fault) -> Response {
    let Some(bytes) = files.get(request.path.trim_start_matches('/')) else { return plain(404, Vec::new()) };
    let mut bytes = bytes.clone();
    if let (Fault::Spoilt, Some(last)) = (fault, bytes.last_mut()) {
        *last ^= 1;
    }
    let size = bytes.len();
    let start = request.range.filter(|_| fault != Fault::IgnoreRange).map_or(0, |start| start as usize);
    let rest = bytes.split_off(start.min(size));
    let mut response = plain(if start > 0 { 206 } else { 200 }, rest);
    if start > 0 {
        response.headers.push(("Content-Range", format!("bytes {start}-{}/{size}", size - 1)));
    }
    if matches!(fault, Fault::Cut | Fault::CutUnannounced) {
        response.body.truncate(response.body.len() / 2);
    }
    if fault == Fault::CutUnannounced {
        response.headers.retain(|(name, _)| *name != "Content-Length");
    }
    response
}
