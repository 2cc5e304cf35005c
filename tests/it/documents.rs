//! Lines of several sentences, and HTML: what the command makes of them.

use std::io::Write;

use serde_json::{Value, json};

use crate::common::command::{Finished, run};

const GREEDY: [&str; 3] = ["translate", "--beam-size", "1"];

fn translate(options: &[&str], input: impl AsRef<[u8]>) -> Finished {
    run(&[&GREEDY[..], options].concat(), input.as_ref())
}

/// What becomes of sentences by themselves.
fn alone<const N: usize>(sentences: [&str; N]) -> [String; N] {
    let out = translate(&[], sentences.join("\n") + "\n").ok().out;
    let lines: Vec<String> = out.lines().map(str::to_owned).collect();
    lines.try_into().expect("a line for each")
}

/// Wrong as a whole: exit code 2, one line on stderr, nothing on stdout.
#[track_caller]
fn refused(done: &Finished, parts: &[&str]) {
    assert_eq!((done.code, done.out.as_str(), done.err.lines().count()), (Some(2), "", 1), "{}", done.err);
    parts.iter().for_each(|part| assert!(done.err.contains(part), "{part:?} is not in {}", done.err));
}

#[test]
fn the_second_sentence_of_a_line_is_translated_too() {
    let [dog, cats] = alone(["A dog runs in the snow.", "Two cats sleep on a bed."]);
    let text = "A dog runs in the snow. Two cats sleep on a bed.";
    assert_eq!(translate(&["--segment"], text).ok().out, format!("{dog} {cats}"));
    assert_eq!(translate(&["--segment", text], "").ok().out, format!("{dog} {cats}\n"));
    // Arguments may have line breaks, which stay.
    assert_eq!(translate(&["--segment", &text.replace(". ", ".\n")], "").ok().out, format!("{dog}\n{cats}\n"));
    // Without it the model is left alone with two.
    assert_ne!(translate(&[], text).ok().out, format!("{dog} {cats}\n"));
}

#[test]
fn what_stands_between_sentences_stays() {
    let [dog, cats, man] = alone(["A dog runs.", "Two cats sleep.", "Mr. Smith sings."]);
    let text = " - A dog runs.  Two cats sleep.\r\n\n\t\n3.5\r\n1) Mr. Smith sings. 😀\u{2028}A dog runs.";
    let expected = format!(" - {dog}  {cats}\r\n\n\t\n3.5\r\n1) {man} 😀\u{2028}{dog}");
    assert_eq!(translate(&["--segment"], text).ok().out, expected);
    assert_eq!(translate(&["--segment"], format!("{text}\n")).ok().out, format!("{expected}\n"));
    assert_eq!(translate(&["--segment"], "").ok().out, "");
}

#[test]
fn json_lines_have_their_sentences() {
    let whole = translate(&["--format", "jsonl"], "A dog runs.\nTwo cats sleep.\n").ok().objects();
    let line = json!({ "source": "A dog runs. Two cats sleep.", "id": 7, "text": "mine", "segments": 1 });
    let options = ["--segment", "--format", "jsonl", "--n-best", "2", "--beam-size", "2"];
    let one = |options: &[&str], line: &Value| translate(options, line.to_string()).ok().objects().remove(0);
    let object = one(&["--segment", "--format", "jsonl"], &line);
    assert_eq!(object.keys().collect::<Vec<_>>(), ["text", "segments", "id"]);
    assert_eq!(object["segments"], json!(whole));
    let texts: Vec<&str> = whole.iter().filter_map(|line| line["hypotheses"][0]["text"].as_str()).collect();
    assert_eq!(object["text"], texts.join(" "));
    let two = run(&[&["translate"], &options[..]].concat(), line.to_string().as_bytes()).ok().objects().remove(0);
    assert_eq!(two["segments"][1]["hypotheses"].as_array().map(Vec::len), Some(2));
    // Ids are one sentence, whatever they mean.
    let ids = json!({ "source": "A dog runs. Two cats sleep.", "source_ids": whole[0]["hypotheses"][0]["token_ids"] });
    assert!(one(&["--segment", "--format", "jsonl"], &ids)["hypotheses"].is_array());
    for (field, value) in
        [("target_prefix", json!("Ein")), ("constraints", json!(["Hund"])), ("contrast_source", json!("A cat."))]
    {
        let mut line = line.clone();
        line[field] = value;
        let done = translate(&["--segment", "--format", "jsonl"], format!("{line}\n{}", json!({ "source": "" })));
        assert_eq!(done.code, Some(1));
        let objects = done.objects();
        assert_eq!(objects[0]["error"]["kind"], "conflict", "{field}");
        assert!(objects[0]["error"]["message"].to_string().contains(field), "{:?}", objects[0]);
        assert_eq!(json!(objects[1]), json!({ "text": "", "segments": [] }));
    }
}

#[test]
fn html_keeps_all_that_is_no_text() {
    let [title, dog, cats, men] =
        alone(["A dog & a cat", "A dog runs in the snow.", "Two cats sleep on a bed.", "Three men talk."]);
    let title = title.replace('&', "&amp;");
    let page = |[title, dog, cats, men]: [&str; 4]| {
        format!(
            "\u{feff}<!DOCTYPE html>\r\n<html lang=en>\n<head><title>{title}</title>\n<style>p {{ color: red }} /* A dog. */</style>\n\
             <script>if (1<2) {{ \"<p>A dog.</p>\" }}</script><meta name=description content=\"A dog runs.\">\n</head>\n\
             <BODY onload='a(\"b > c\")'>\n  <!-- A dog runs. -->\n  <p class=\"x  y\"\n id=1>\n    {dog}\n    {cats}\n  </p>\n\
             <ul><li>{men}<li>42\n</ul><pre>{dog}\n  {cats}</pre>\n<p translate=no>A dog runs.</p>\n<br/>\
             <code>a dog</code><img alt='A dog' src=dog.png>\n</BODY>\n</html>\n\n"
        )
    };
    let html = page(["A dog &amp; a cat", "A dog runs in the snow.", "Two cats sleep on a bed.", "Three men talk."]);
    let expected = page([&title, &dog, &cats, &men]);
    assert_eq!(translate(&["--input-format", "html"], &html).ok().out, expected);
    // White space within a sentence is what a browser makes of it.
    let wrapped = html.replace("    A dog runs in the snow.", "    A dog\n      runs in\tthe snow.");
    assert_eq!(translate(&["--input-format", "html"], wrapped).ok().out, expected);
    // By way of files, one of them packed.
    let dir = tempfile::tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name).to_str().expect("UTF-8").to_owned();
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    packed.write_all(html.as_bytes()).expect("memory");
    std::fs::write(path("page.html.gz"), packed.finish().expect("memory")).expect("written");
    let args = ["--input-format", "html", "-i", &path("page.html.gz"), "-o", &path("out.html")];
    assert_eq!(translate(&args, "").ok().out, "");
    assert_eq!(std::fs::read_to_string(path("out.html")).expect("written"), expected);
    assert_eq!(translate(&["--input-format", "html"], "").ok().out, "");
}

#[test]
fn tags_come_back_around_their_words() {
    for (html, expected) in [
        ("A man in a <b>red</b> shirt.", "Ein Mann in einem <b>roten</b> Hemd."),
        (
            "A <a href='x&y'>black dog</a> runs in the <i>snow</i>.",
            "Ein <a href='x&y'>schwarzer Hund</a> rennt im <i>Schnee</i>.",
        ),
        ("<b>A dog runs.</b>", "<b>Ein Hund rennt.</b>"),
        ("Two <i>young <b>men</b></i> are <u>playing</u>.", "Zwei <i>junge <b>Männer</b></i> <u>spielen</u>."),
        (
            "A <b>little girl</b> in a <i>pink dress</i> is climbing a <u>wooden cabin</u>.",
            "Ein <b>kleines Mädchen</b> in einem <i>rosa Kleid</i> klettert auf einen <u>Holzbogen</u>.",
        ),
    ] {
        assert_eq!(translate(&["--input-format", "html"], html).ok().out, expected);
    }
}

#[test]
fn tags_change_no_translation() {
    let [dog] = alone(["A black dog runs in the snow."]);
    let html = "A <b>black</b> dog <i>runs</i> in the snow.";
    let done = translate(&["--input-format", "html", "--format", "jsonl"], html).ok();
    let object = done.objects().remove(0);
    let plain = translate(&["--format", "jsonl"], "A black dog runs in the snow.").ok().objects().remove(0);
    assert_eq!(object["segments"], json!([plain]), "attention that nobody asked for is not shown");
    let without: String = object["text"].as_str().expect("a text").replace(['b', 'i', '<', '>', '/'], "");
    assert_eq!(without, dog.replace(['b', 'i'], ""));
    let shown =
        translate(&["--input-format", "html", "--format", "jsonl", "--attention"], html).ok().objects().remove(0);
    assert!(shown["segments"][0]["hypotheses"][0]["attention"].is_array());
}

#[test]
fn a_sentence_of_a_page_that_fails_stays_as_it_was() {
    let limits = ["--max-length", "1*S+3", "--min-length", "8"];
    let html = "<p>A <b>dog</b>.</p><p>Two young men in red shirts are playing on the beach.</p>";
    let done = translate(&[&["--input-format", "html"], &limits[..]].concat(), html);
    assert_eq!((done.code, done.err.lines().count()), (Some(1), 1), "{}", done.err);
    assert!(done.out.starts_with("<p>A <b>dog</b>.</p><p>Zwei"), "{}", done.out);
    // Elsewhere the line fails.
    let done = translate(&[&["--segment"], &limits[..]].concat(), "A dog. Two young men in red shirts.\r\n");
    assert_eq!((done.code, done.out.as_str()), (Some(1), "\r\n"), "{}", done.err);
}

#[test]
fn what_makes_no_sense_is_refused() {
    for (options, parts) in [
        (&["--segment", "--format", "nbest"][..], &["format nbest", "segment"][..]),
        (&["--segment", "--alignment", "hard"], &["alignment", "segment"]),
        (&["--segment", "--format", "jsonl", "--alternatives", "2"], &["alternatives", "segment"]),
        (&["--segment", "--explain", "x.html"], &["explain", "segment"]),
        (&["--segment", "--target-prefix", "Ein"], &["target-prefix", "segment"]),
        (&["--segment", "--contrastive", "source"], &["contrastive source", "segment"]),
        (&["--input-format", "html", "--format", "nbest"], &["format nbest", "input-format html"]),
        (&["--input-format", "html", "--segment"], &["segment", "input-format html"]),
        (&["--input-format", "html", "--resume", "-o", "x.html"], &["resume", "input-format html"]),
    ] {
        refused(&translate(options, "A dog."), parts);
    }
    refused(&translate(&["--input-format", "html"], b"<p>\xff"), &["UTF-8", "offset 3"]);
    let html = run(&["score", "--input-format", "html"], b"<p>");
    refused(&html, &["input-format", "html"]);
}

#[test]
fn a_directory_of_pages_is_a_job() {
    let [dog, cats] = alone(["A dog runs.", "Two cats sleep."]);
    let dir = tempfile::tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name).to_str().expect("UTF-8").to_owned();
    std::fs::create_dir(path("in")).expect("made");
    std::fs::write(path("in/a.html"), "<p>\nA dog runs. Two cats sleep.</p>").expect("written");
    std::fs::write(path("in/b.htm"), "<p>A dog runs.<br>\n</p>\n\n").expect("written");
    let args = ["--input-format", "html", "-i", &path("in"), "-o", &path("out")];
    assert_eq!(translate(&args, "").code, Some(0));
    let read = |name: &str| std::fs::read_to_string(path(name)).expect("there");
    assert_eq!(read("out/a.html"), format!("<p>\n{dog} {cats}</p>"));
    assert_eq!(read("out/b.htm"), format!("<p>{dog}<br>\n</p>\n\n"));
    let verified = translate(&[&args[..], &["--verify"]].concat(), "");
    assert_eq!(verified.code, Some(0), "{}", verified.err);
}
