//! The command while it runs: interrupts, closed pipes, and questions one at a time.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command};
use std::time::Duration;

use crate::common;
use crate::common::command::command;
use crate::common::{greedy, own_text};

/// Kills a child that hangs, so that a broken build fails instead of waiting for ever.
fn watch(child: &Child) {
    let id = child.id().to_string();
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_secs(240));
        Command::new("kill").args(["-KILL", &id]).status()
    });
}

#[test]
fn whoever_closes_the_output_ends_the_work_with_an_error() {
    let mut child = command(&["translate", "--beam-size", "1"]).spawn().expect("the binary starts");
    watch(&child);
    let (mut stdin, stdout) = (child.stdin.take().expect("a pipe"), child.stdout.take().expect("a pipe"));
    let writer = std::thread::spawn(move || {
        let text = own_text();
        while stdin.write_all(text.as_bytes()).is_ok() {}
    });
    let mut first = String::new();
    BufReader::with_capacity(64, stdout).read_line(&mut first).expect("a line");
    assert_eq!(first.trim_end(), greedy()[0]);
    let output = child.wait_with_output().expect("the command ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && said.starts_with("beamfuse: write -: "), "{:?}: {said}", output.status);
    writer.join().expect("no panic");
}

#[test]
fn closed_stderr_stops_nothing() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let mut child = command(&["translate", "--beam-size", "1"]).stderr(writer).spawn().expect("the binary starts");
    child.stdin.take().expect("a pipe").write_all(b"\xff\nA man is riding a bike.\n").expect("it reads");
    let output = child.wait_with_output().expect("the command ends");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("\n{}\n", greedy()[0]));
}

#[test]
fn an_interrupt_leaves_whole_lines_and_gives_up_the_others() {
    let mut child = command(&["translate", "--beam-size", "1"]).spawn().expect("the binary starts");
    watch(&child);
    let (mut stdin, stdout) = (child.stdin.take().expect("a pipe"), child.stdout.take().expect("a pipe"));
    let writer = std::thread::spawn(move || {
        let text = own_text();
        while stdin.write_all(text.as_bytes()).is_ok() {}
    });
    let mut stdout = BufReader::new(stdout);
    let mut out = String::new();
    stdout.read_line(&mut out).expect("a line");
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill starts");
    assert!(killed.success());
    let asked = std::time::Instant::now();
    stdout.read_to_string(&mut out).expect("the rest");
    // It takes a moment; the margin is for busy machines.
    assert!(asked.elapsed() < std::time::Duration::from_secs(20), "{:?}", asked.elapsed());
    let output = child.wait_with_output().expect("the command ends");
    assert_eq!(output.status.code(), Some(130));
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        "beamfuse: interrupted: giving up the lines that are not done; interrupt again to quit at once\n"
    );
    assert!(out.ends_with('\n'));
    for (line, expected) in out.lines().zip(greedy().iter().cycle()) {
        assert_eq!(line, expected);
    }
    writer.join().expect("no panic");
}

#[test]
fn an_interrupt_is_seen_while_input_is_awaited() {
    let mut child = command(&["translate", "--beam-size", "1"]).spawn().expect("the binary starts");
    watch(&child);
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(b"A man is riding a bike.\n").expect("it reads");
    let mut stdout = BufReader::new(child.stdout.take().expect("a pipe"));
    let mut out = String::new();
    stdout.read_line(&mut out).expect("a line");
    Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill starts");
    stdout.read_to_string(&mut out).expect("the rest");
    assert_eq!(child.wait().expect("the command ends").code(), Some(130));
    assert_eq!(out.trim_end(), greedy()[0]);
    drop(stdin);
}

#[test]
fn each_answer_comes_before_the_next_question() {
    for (args, question) in
        [(["translate", "--beam-size", "1"], None), (["score", "--threads", "1"], Some("\tEin Hund."))]
    {
        let mut child = command(&args).spawn().expect("the binary starts");
        watch(&child);
        let mut stdin = child.stdin.take().expect("a pipe");
        let mut stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        for (source, expected) in common::lines("own/own.en").iter().zip(greedy()).take(4) {
            writeln!(stdin, "{source}{}", question.unwrap_or("")).expect("it reads");
            let mut answer = String::new();
            stdout.read_line(&mut answer).expect("an answer");
            match question {
                None => assert_eq!(answer.trim_end(), expected),
                Some(_) => assert!(answer.contains("\"log_prob\":-"), "{answer}"),
            }
        }
        drop(stdin);
        assert_eq!(child.wait().expect("the command ends").code(), Some(0));
    }
}
