//! The command, run with pipes.

use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::{Map, Value};

/// What a finished command left.
#[derive(Debug)]
pub struct Finished {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Finished {
    pub fn lines(&self) -> Vec<&str> {
        self.out.lines().collect()
    }

    pub fn objects(&self) -> Vec<Map<String, Value>> {
        self.out.lines().map(|line| serde_json::from_str(line).expect("a JSON object")).collect()
    }

    pub fn ok(self) -> Self {
        assert_eq!((self.code, self.err.as_str()), (Some(0), ""), "{}", self.out);
        self
    }
}

pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_beamfuse"));
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs the command to its end with `input` as standard input.
pub fn run(args: &[&str], input: &[u8]) -> Finished {
    run_command(command(args), input)
}

/// Runs a command of [`command`], set up further, to its end with `input` as standard input.
pub fn run_command(mut command: Command, input: &[u8]) -> Finished {
    let mut child = command.spawn().expect("the binary starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    std::thread::scope(|scope| {
        // A command that refuses its options never reads.
        scope.spawn(move || drop(stdin.write_all(input)));
        let output = child.wait_with_output().expect("the command ends");
        let text = |bytes| String::from_utf8(bytes).expect("output is UTF-8");
        Finished { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    })
}
