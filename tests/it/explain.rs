//! The page that draws one sentence's search.

use crate::common::command::run;
use crate::common::{too_long, translator};
use beamfuse::DecodeOptions;

#[test]
fn explain_draws_the_search_in_one_page_that_runs_and_loads_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let page = dir.path().join("page.html").to_str().expect("UTF-8").to_string();
    let source = "A dog </svg><script>alert(1)</script> \"runs\" & jumps.";
    let output = run(&["translate", "--explain", &page, source], b"").ok();
    let translations = translator().explain(source, &DecodeOptions::default()).expect("valid options").translation;
    assert_eq!(output.lines(), [translations.text()]);
    let html = std::fs::read_to_string(&page).expect("written");
    assert!(html.contains("A dog &lt;/svg&gt;&lt;script&gt;alert(1)&lt;/script&gt; &quot;runs&quot; &amp; jumps."));
    for absent in ["<script", "http:", "https:", "url(", "@import", "src=", "href=", "onload"] {
        assert!(!html.contains(absent), "{absent}");
    }
    for present in
        ["prefers-color-scheme: dark", "default-src 'none'", "aria-label=\"beam search\"", ">step 1<", "</html>"]
    {
        assert!(html.contains(present), "{present}");
    }
    assert_eq!(html.matches("<svg").count(), 2);
    assert_eq!(html.matches("<svg").count(), html.matches("</svg>").count());
    for hypothesis in &translations.hypotheses {
        assert!(html.contains(&format!("<td>{:.4}</td>", hypothesis.score)), "{hypothesis:?}");
        assert!(html.contains(&format!("score {:.3}<", hypothesis.score)), "{hypothesis:?}");
    }
    // The first line's own options, and what else it brings, are the search that is drawn.
    let line = br#"{"source": "A dog runs.", "target_prefix": "Zwei", "constraints": ["schnell"], "seed": 7, "options": {"beam_size": 3, "word_reward": 0.5}}
{"source": "Two men sit."}"#;
    let first = run(&["translate", "--explain", &page, "--format", "jsonl", "--patience", "1.5"], line).ok().objects();
    let html = std::fs::read_to_string(&page).expect("written");
    let text = first[0]["hypotheses"][0]["text"].as_str().expect("a text");
    for present in [
        &format!("<h1>{text}</h1>"),
        "beam size <b>3</b>",
        "word reward <b>0.5</b>",
        "patience <b>1.5</b>",
        "prefix <b>Zwei</b>",
        "seed of the sentence <b>7</b>",
        "must contain <b>schnell</b>",
    ] {
        assert!(html.contains(present), "{present}");
    }
    assert!(text.starts_with("Zwei") && text.contains("schnell") && !html.contains("coverage penalty <b>"), "{text}");
    // A sentence that cannot be translated has its error, and no page.
    std::fs::remove_file(&page).expect("it was there");
    let failed = run(&["translate", "--explain", &page, &too_long()], b"");
    assert_eq!((failed.code, failed.out.as_str()), (Some(1), "\n"));
    assert!(!std::path::Path::new(&page).exists());
}

#[test]
fn the_page_of_a_constrained_search_draws_only_what_it_kept() {
    let dir = tempfile::tempdir().expect("a directory");
    let page = dir.path().join("page.html").to_str().expect("UTF-8").to_string();
    let arguments = ["translate", "--explain", &page, "--format", "jsonl", "--n-best", "4"];
    let line = br#"{"source": "A dog runs.", "constraints": ["schnell"]}"#;
    let found = run(&arguments, line).ok().objects();
    let html = std::fs::read_to_string(&page).expect("written");
    for hypothesis in found[0]["hypotheses"].as_array().expect("hypotheses") {
        assert!(hypothesis["text"].as_str().is_some_and(|text| text.contains("schnell")), "{hypothesis}");
        let score = hypothesis["score"].as_f64().expect("a score");
        assert!(html.contains(&format!("score {score:.3}<")), "{hypothesis}");
    }
    // What cannot be met has its error.
    let unmet = run(&[&arguments[..], &["--suppress", "▁schnell"]].concat(), line);
    assert_eq!((unmet.code, &unmet.objects()[0]["error"]["kind"]), (Some(1), &"unmet_constraint".into()));
}
