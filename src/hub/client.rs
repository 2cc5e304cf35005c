//! Requests to the hub and downloads.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use ureq::http::{Response, Uri};
use ureq::{Agent, Body};

use super::cache::{Snapshots, link};
use super::checksum::{is_sha256, sum};
use super::{Hub, ModelId, Progress, is_name};
use crate::Error;
use crate::files::{MAX_CONFIG, MAX_VOCABULARY, io};

/// Why a request gave nothing.
#[derive(Debug)]
pub(super) enum Failure {
    /// The hub could not be reached or is out of order: the cache may serve.
    Unavailable { expected: String, got: String },
    /// The hub has answered, and what it said does not serve.
    Refused { expected: String, got: String },
    /// The cache.
    Local(Error),
}

impl Failure {
    pub(super) fn refused(expected: &str, got: &str) -> Self {
        Failure::Refused { expected: expected.into(), got: got.into() }
    }

    pub(super) fn into_error(self, id: &ModelId, file: &str) -> Error {
        match self {
            Failure::Unavailable { expected, got } | Failure::Refused { expected, got } => {
                super::error(id, file, &expected, &got)
            }
            Failure::Local(error) => error,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Local(error)
    }
}

/// An address may lead to others; more than this is a circle.
const MAX_REDIRECTS: usize = 10;
/// The longest list of files that is read, in bytes.
const MAX_LIST: u64 = 16 << 20;
/// How long to wait for a connection, and for the next bytes of an answer.
const CONNECT: Duration = Duration::from_secs(20);
const SILENCE: Duration = Duration::from_secs(60);
/// The longest file of weights that is downloaded, in bytes.
const MAX_WEIGHTS: u64 = 1 << 40;
/// Bytes a second, on the mean of so long, below which a download is given up.
const LEAST_RATE: u64 = 1000;
const RATE_OVER: Duration = Duration::from_secs(30);

pub(super) struct Client<'a> {
    hub: &'a Hub,
    agent: Agent,
}

#[derive(Clone, Copy, PartialEq)]
enum Method {
    Head,
    Get,
}

/// What the hub says about a file's contents.
struct Metadata {
    /// Names the contents. Large files have their SHA-256 here.
    etag: String,
    size: u64,
}

impl<'a> Client<'a> {
    pub(super) fn new(hub: &'a Hub) -> Self {
        let config = Agent::config_builder()
            .user_agent(concat!("beamfuse/", env!("CARGO_PKG_VERSION")))
            // Redirects are followed here, since some carry headers of their own, and the token stays with the endpoint.
            .max_redirects(0)
            .http_status_as_error(false)
            // A compressed answer would have another length.
            .accept_encoding("identity")
            .timeout_connect(Some(CONNECT))
            .timeout_recv_response(Some(SILENCE))
            .timeout_per_read(Some(SILENCE));
        Client { hub, agent: config.build().new_agent() }
    }

    /// A short document under the endpoint.
    pub(super) fn get(&self, path: &str) -> Result<Vec<u8>, Failure> {
        let address = format!("{}/{path}", self.hub.endpoint);
        let (mut response, _) = self.request(Method::Get, &address, 0)?;
        let mut bytes = Vec::new();
        let ended = paced(response.body_mut().as_reader(), Pace::new(LEAST_RATE, RATE_OVER), |piece| {
            bytes.extend_from_slice(piece);
            Ok(bytes.len() as u64 <= MAX_LIST)
        });
        match ended {
            Ok(()) if bytes.len() as u64 <= MAX_LIST => Ok(bytes),
            Ok(()) => Err(Failure::refused(&format!("at most {MAX_LIST} bytes"), "more")),
            Err(Stop::Broken(reason)) => Err(self.unavailable(&reason)),
            Err(Stop::Failed(failure)) => Err(failure),
        }
    }

    /// Puts a file of the endpoint into the cache and links `target` to it.
    pub(super) fn download(
        &self,
        path: &str,
        name: &str,
        snapshots: &Snapshots,
        target: &Path,
        progress: &mut dyn Progress,
    ) -> Result<(), Failure> {
        let address = format!("{}/{path}", self.hub.endpoint);
        let (_, metadata) = self.request(Method::Head, &address, 0)?;
        let metadata = metadata.ok_or_else(|| Failure::refused("headers with ETag and length", "others"))?;
        let most = longest(name);
        if metadata.size > most {
            return Err(Failure::refused(&format!("at most {most} bytes"), &metadata.size.to_string()));
        }
        let blob = snapshots.blob(&metadata.etag)?;
        let _lock = snapshots.lock(&metadata.etag)?;
        if !holds(&blob, &metadata)? {
            let part = blob.with_added_extension("incomplete");
            self.complete(&address, name, &metadata, &part, progress)?;
            std::fs::rename(&part, &blob).map_err(io("rename", &part))?;
        }
        link(&blob, target)?;
        Ok(())
    }

    /// Downloads what `part` lacks, and checks the whole. A part that is wrong is removed, one that is too short kept for later.
    fn complete(
        &self,
        address: &str,
        name: &str,
        metadata: &Metadata,
        part: &Path,
        progress: &mut dyn Progress,
    ) -> Result<(), Failure> {
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(part);
        let mut file = open.map_err(io("open", part))?;
        let mut done = file.metadata().map_err(io("read", part))?.len();
        if done > metadata.size {
            done = 0;
        }
        if done < metadata.size || metadata.size == 0 {
            let (mut response, _) = self.request(Method::Get, address, done)?;
            if done > 0 && !continues(&response, done) {
                done = 0;
            }
            progress.start(name, metadata.size, done);
            file.set_len(done).and_then(|()| file.seek(std::io::SeekFrom::End(0))).map_err(io("write", part))?;
            let body = response.body_mut().as_reader();
            done = copy(body, &mut file, done, metadata.size, part, progress)?;
        }
        let expected = format!("{} bytes", metadata.size);
        if done < metadata.size {
            return Err(Failure::refused(
                &expected,
                &format!("{done} before the connection broke; run again to continue"),
            ));
        }
        let wrong = |expected: &str, got: String| {
            _ = std::fs::remove_file(part);
            Err(Failure::refused(expected, &got))
        };
        if done > metadata.size {
            return wrong(&expected, "more".into());
        }
        if let Some(sum) = sum(&mut file, &metadata.etag).map_err(io("read", part))?
            && sum != metadata.etag
        {
            let kind = if is_sha256(&metadata.etag) { "SHA-256" } else { "SHA-1 as git's" };
            return wrong(&format!("{kind} {}", metadata.etag), sum);
        }
        file.sync_all().map_err(io("write", part))?;
        Ok(())
    }

    /// Asks for an address from byte `start` on, follows redirects, and reads what they say about the contents.
    fn request(
        &self,
        method: Method,
        address: &str,
        start: u64,
    ) -> Result<(Response<Body>, Option<Metadata>), Failure> {
        let mut address = address.to_string();
        let mut linked = None;
        for _ in 0..MAX_REDIRECTS {
            let mut request = match method {
                Method::Head => self.agent.head(&address),
                Method::Get => self.agent.get(&address),
            };
            if start > 0 {
                request = request.header("Range", format!("bytes={start}-"));
            }
            if let Some(token) = self.hub.token.as_ref().filter(|_| same_origin(&address, &self.hub.endpoint)) {
                request = request.header("Authorization", format!("Bearer {token}"));
            }
            let response = request.call().map_err(|error| self.unavailable(&error.to_string()))?;
            linked = linked.or_else(|| linked_metadata(&response));
            match response.status().as_u16() {
                200 | 206 => {
                    let metadata = linked.or_else(|| own_metadata(&response));
                    return Ok((response, metadata));
                }
                // The redirect has said it all, and the host it leads to may not answer this method.
                301 | 302 | 303 | 307 | 308 if method == Method::Head && linked.is_some() => {
                    return Ok((response, linked));
                }
                301 | 302 | 303 | 307 | 308 => address = redirect(&address, &response)?,
                status => return Err(self.refused(status, &response)),
            }
        }
        Err(Failure::refused(&format!("at most {MAX_REDIRECTS} redirects"), "more"))
    }

    fn unavailable(&self, got: &str) -> Failure {
        Failure::Unavailable { expected: format!("an answer from {}", self.hub.endpoint), got: got.into() }
    }

    fn refused(&self, status: u16, response: &Response<Body>) -> Failure {
        let token = match self.hub.token {
            None => "no token was given: set HF_TOKEN",
            Some(_) => "the token was refused or does not allow it",
        };
        // The hub says which of its reasons it was; it answers 401 for what does not exist, too.
        let code = header(response, "x-error-code").unwrap_or_default();
        let meaning = match (status, code) {
            (_, "GatedRepo") => format!("the model's terms have not been accepted, or {token}"),
            (_, "RepoNotFound") => format!("no such repository, or it is private and {token}"),
            (_, "RevisionNotFound") => "no such revision".to_string(),
            (_, "EntryNotFound") => "no such file".to_string(),
            (401 | 403, _) => format!("no such repository, or not for everybody, and {token}"),
            (404, _) => "no such repository, revision or file".to_string(),
            (429, _) => "too many requests".to_string(),
            (500.., _) => "the hub is out of order".to_string(),
            _ => "the hub does not take the request".to_string(),
        };
        let got = format!("status {status} ({meaning})");
        match status {
            429 | 500.. => self.unavailable(&got),
            _ => Failure::Refused { expected: format!("a file from {}", self.hub.endpoint), got },
        }
    }
}

fn header<'r>(response: &'r Response<Body>, name: &str) -> Option<&'r str> {
    response.headers().get(name)?.to_str().ok()
}

/// The file's tag and size as a redirect to another host gives them.
fn linked_metadata(response: &Response<Body>) -> Option<Metadata> {
    let etag = etag(header(response, "x-linked-etag")?)?;
    Some(Metadata { etag, size: header(response, "x-linked-size")?.parse().ok()? })
}

fn own_metadata(response: &Response<Body>) -> Option<Metadata> {
    let etag = etag(header(response, "etag")?)?;
    Some(Metadata { etag, size: header(response, "content-length")?.parse().ok()? })
}

/// The tag itself; it becomes a file name.
fn etag(header: &str) -> Option<String> {
    let tag = header.strip_prefix("W/").unwrap_or(header).trim_matches('"');
    is_name(tag).then(|| tag.to_string())
}

/// The most bytes of a file of this name: far more than any model has, and few enough for a disk or for memory.
fn longest(name: &str) -> u64 {
    match name {
        "vocab.json" | "source_vocab.json" | "target_vocab.json" | "tokenizer.json" => MAX_VOCABULARY,
        _ if name.ends_with(".json") => MAX_CONFIG,
        _ if name.ends_with(".safetensors") || name.ends_with(".bin") => MAX_WEIGHTS,
        _ => MAX_VOCABULARY,
    }
}

/// Whether a file of the cache holds these contents. What is short is hashed again, weights are not.
fn holds(blob: &Path, metadata: &Metadata) -> Result<bool, Error> {
    if blob.metadata().map(|found| found.len()).ok() != Some(metadata.size) {
        return Ok(false);
    }
    if metadata.size > MAX_VOCABULARY {
        return Ok(true);
    }
    let mut file = File::open(blob).map_err(io("open", blob))?;
    let sum = sum(&mut file, &metadata.etag).map_err(io("read", blob))?;
    Ok(sum.is_none_or(|sum| sum == metadata.etag))
}

/// Whether an answer goes on where it was asked to; a server may send everything instead.
fn continues(response: &Response<Body>, start: u64) -> bool {
    let range = header(response, "content-range").and_then(|range| range.strip_prefix("bytes "));
    response.status() == 206 && range.is_some_and(|range| range.starts_with(&format!("{start}-")))
}

/// Where a redirect leads. It may not go from https to http.
fn redirect(from: &str, response: &Response<Body>) -> Result<String, Failure> {
    let to = header(response, "location").unwrap_or_default();
    let target = match to.starts_with('/') && !to.starts_with("//") {
        true => format!("{}{to}", origin(from).unwrap_or_default()),
        false => to.to_string(),
    };
    let allowed = target.starts_with("https://") || (target.starts_with("http://") && from.starts_with("http://"));
    allowed.then_some(target).ok_or_else(|| Failure::refused("a redirect to https", &format!("{to:?}")))
}

/// Scheme, host and port.
fn origin(address: &str) -> Option<String> {
    let uri: Uri = address.parse().ok()?;
    Some(format!("{}://{}", uri.scheme_str()?, uri.authority()?))
}

fn same_origin(a: &str, b: &str) -> bool {
    origin(a).is_some() && origin(a) == origin(b)
}

/// How fast bytes have come since a moment.
struct Pace {
    least: u64,
    over: Duration,
    since: Instant,
    bytes: u64,
}

impl Pace {
    fn new(least: u64, over: Duration) -> Self {
        Pace { least, over, since: Instant::now(), bytes: 0 }
    }

    /// Counts bytes; an error if too few have come in the time.
    fn add(&mut self, count: usize) -> Result<(), Failure> {
        self.bytes += count as u64;
        let passed = self.since.elapsed();
        if passed < self.over {
            return Ok(());
        }
        let rate = self.bytes as f64 / passed.as_secs_f64();
        if rate < self.least as f64 {
            let expected = format!("at least {} bytes a second", self.least);
            return Err(Failure::refused(&expected, &format!("{rate:.0}; run again to continue")));
        }
        *self = Pace::new(self.least, self.over);
        Ok(())
    }
}

/// Why a body was not read to its end.
enum Stop {
    /// The connection broke.
    Broken(String),
    Failed(Failure),
}

/// Reads a body piece by piece until it ends or `take` wants no more.
fn paced(
    mut body: impl Read,
    mut pace: Pace,
    mut take: impl FnMut(&[u8]) -> Result<bool, Failure>,
) -> Result<(), Stop> {
    let mut buffer = vec![0; 1 << 16];
    loop {
        let count = body.read(&mut buffer).map_err(|error| Stop::Broken(error.to_string()))?;
        if count == 0 || !take(&buffer[..count]).map_err(Stop::Failed)? {
            return Ok(());
        }
        pace.add(count).map_err(Stop::Failed)?;
    }
}

/// Copies a body behind the `done` bytes of a file until it ends, breaks, or passes `size`; gives the file's new length. A part for
/// which there is no room is removed.
fn copy(
    body: impl Read,
    file: &mut File,
    mut done: u64,
    size: u64,
    path: &Path,
    progress: &mut dyn Progress,
) -> Result<u64, Failure> {
    let ended = paced(body, Pace::new(LEAST_RATE, RATE_OVER), |piece| {
        file.write_all(piece).map_err(|source| {
            if matches!(source.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge) {
                _ = std::fs::remove_file(path);
            }
            io("write", path)(source)
        })?;
        done += piece.len() as u64;
        progress.advance(piece.len() as u64);
        Ok(done <= size)
    });
    match ended {
        // A body that breaks is a short one: the caller compares lengths.
        Ok(()) | Err(Stop::Broken(_)) => Ok(done),
        Err(Stop::Failed(failure)) => Err(failure),
    }
}

/// What is made of headers that a server sends: the tag and the address of a redirect from https.
#[doc(hidden)]
pub fn headers(etag: &[u8], location: &[u8], range: &[u8]) -> (Option<String>, Option<String>) {
    let response = Response::builder().status(206).header("etag", etag).header("x-linked-etag", etag);
    let response = response.header("x-linked-size", range).header("location", location).header("content-range", range);
    let Ok(response) = response.body(Body::builder().data(Vec::new())) else { return (None, None) };
    _ = (own_metadata(&response), continues(&response, 7));
    let tag =
        linked_metadata(&response).map(|metadata| metadata.etag).or_else(|| self::etag(header(&response, "etag")?));
    (tag, redirect("https://hub.example/a", &response).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A byte at a time.
    struct Drip {
        left: usize,
        pause: Duration,
    }

    impl Read for Drip {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            std::thread::sleep(self.pause);
            let count = self.left.min(1);
            buffer[..count].fill(b'x');
            self.left -= count;
            Ok(count)
        }
    }

    #[test]
    fn a_body_that_drips_is_given_up() {
        let read = |pause: u64, least: u64| {
            let mut bytes = 0;
            let body = Drip { left: 40, pause: Duration::from_millis(pause) };
            let ended = paced(body, Pace::new(least, Duration::from_millis(50)), |piece| {
                bytes += piece.len();
                Ok(true)
            });
            (ended.is_ok(), bytes)
        };
        assert_eq!(read(5, 1), (true, 40));
        let (ended, bytes) = read(5, 10_000);
        assert!(!ended && bytes < 40, "{bytes} bytes");
    }

    #[test]
    fn each_kind_of_file_has_a_longest() {
        assert_eq!(longest("config.json"), 16 << 20);
        assert_eq!(longest("model.safetensors.index.json"), 16 << 20);
        assert_eq!(longest("vocab.json"), 256 << 20);
        assert_eq!(longest("source.spm"), 256 << 20);
        assert_eq!(longest("model-00001-of-00002.safetensors"), 1 << 40);
    }
}
