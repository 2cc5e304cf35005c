//! A service in a process of its own, and a client that writes what it is told to.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::Value;

use crate::common::command::command;

/// No answer takes so long.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A running service, ended when it is dropped.
pub struct Server {
    process: Child,
    pub address: SocketAddr,
    log: Mutex<Receiver<String>>,
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str())
    }

    /// The status, and the kind of the error in a body of our own form.
    pub fn kind(&self) -> (u16, String) {
        (self.status, self.json()["error"]["kind"].as_str().unwrap_or_default().to_owned())
    }
}

impl Server {
    /// Starts the demo model on a free port.
    pub fn start(options: &[&str]) -> Self {
        let mut command = command(&[]);
        command.args(["serve", "--listen", "127.0.0.1:0"]).args(options);
        command.stdin(Stdio::null());
        let mut process = command.spawn().expect("the binary starts");
        let mut first = String::new();
        let mut stdout = BufReader::new(process.stdout.take().expect("a pipe"));
        stdout.read_line(&mut first).expect("the address is told");
        let (to, log) = channel();
        let stderr = BufReader::new(process.stderr.take().expect("a pipe"));
        std::thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| to.send(line)));
        let Some(address) = first.trim().rsplit("http://").next().and_then(|address| address.parse().ok()) else {
            let said: Vec<String> = log.iter().collect();
            panic!("no address in {first:?}; {said:?}");
        };
        Server { process, address, log: Mutex::new(log) }
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).expect("the service listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        stream.set_write_timeout(Some(PATIENCE)).expect("a socket");
        stream
    }

    pub fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], b"")
    }

    /// Posts JSON.
    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.post_text(path, &body.to_string())
    }

    pub fn post_text(&self, path: &str, body: &str) -> Answer {
        self.send("POST", path, &["content-type: application/json"], body.as_bytes())
    }

    pub fn send(&self, method: &str, path: &str, headers: &[&str], body: &[u8]) -> Answer {
        let mut stream = self.connect();
        ask(&mut stream, method, path, headers, body);
        read_answer(&mut stream).expect("an answer")
    }

    /// Whether it lives: after whatever was done to it, this has to hold.
    pub fn lives(&self) {
        assert_eq!(self.get("/livez").status, 200);
        let answer = self.post("/v1/translate", &serde_json::json!({ "items": [{ "source": "A dog runs." }] }));
        assert_eq!(answer.json()["items"][0]["text"], "Ein Hund rennt.", "{answer:?}");
    }

    pub fn signal(&self, name: &str) {
        let pid = self.process.id().to_string();
        let sent = Command::new("kill").args([&format!("-{name}"), &pid]).status().expect("kill runs");
        assert!(sent.success());
    }

    /// A line of the kernel's account of the process, in MiB; none where there is no such account.
    fn status_mib(&self, name: &str) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? / 1024)
    }

    /// What it has mapped.
    pub fn address_space_mib(&self) -> u64 {
        self.status_mib("VmSize").expect("an account")
    }

    /// Sets how large its address space may grow from here on.
    pub fn limit_address_space(&self, mib: Option<u64>) {
        let limit = mib.map_or("unlimited".to_owned(), |mib| (mib << 20).to_string());
        let pid = self.process.id().to_string();
        let set =
            Command::new("prlimit").args(["--pid", &pid, &format!("--as={limit}:")]).status().expect("prlimit runs");
        assert!(set.success());
    }

    /// The most memory that it has held so far.
    pub fn peak_mib(&self) -> Option<u64> {
        self.status_mib("VmHWM")
    }

    /// Waits for the end; the exit code and what has been logged.
    pub fn end(mut self) -> (Option<i32>, Vec<String>) {
        let code = self.process.wait().expect("it ends").code();
        let log = self.log.lock().expect("no panic").iter().collect();
        (code, log)
    }

    /// A sample of a metric: the line's number.
    pub fn metric(&self, line: &str) -> Option<f64> {
        let text = self.get("/metrics").body;
        text.lines().find_map(|own| own.strip_prefix(line)?.trim().parse().ok())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Writes a request that closes the connection behind it.
pub fn ask(stream: &mut TcpStream, method: &str, path: &str, headers: &[&str], body: &[u8]) {
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n");
    headers.iter().for_each(|header| head.push_str(&format!("{header}\r\n")));
    head.push_str(&format!("content-length: {}\r\n\r\n", body.len()));
    // One that is refused early is not read to its end.
    let _ = stream.write_all(&[head.as_bytes(), body].concat());
}

/// Reads an answer up to the end of the connection; none if there is none.
pub fn read_answer(stream: &mut TcpStream) -> Option<Answer> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 1 << 16];
    // A connection that is reset behind the answer is as good as one that ends.
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        bytes.extend_from_slice(&buffer[..count]);
    }
    let text = String::from_utf8(bytes).expect("answers are UTF-8");
    let (head, body) = text.split_once("\r\n\r\n")?;
    let mut lines = head.lines();
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let is_chunked = headers.iter().any(|(name, value)| name == "transfer-encoding" && value == "chunked");
    let body = if is_chunked { unchunked(body) } else { body.to_owned() };
    Some(Answer { status, headers, body })
}

fn unchunked(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((length, rest)) = body.split_once("\r\n") {
        let length = usize::from_str_radix(length, 16).expect("a length");
        whole.push_str(&rest[..length]);
        body = &rest[length + 2..];
    }
    whole
}
