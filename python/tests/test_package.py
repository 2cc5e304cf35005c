"""The package around the translator: types, the command, the pipeline, the tools of a notebook."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import beamfuse
from beamfuse import _native
from conftest import LINES, MODEL, ROOT, command


def test_stubs_say_what_is_there() -> None:
    pytest.importorskip("mypy")
    settings = ROOT / "python" / "pyproject.toml"
    for line in [["mypy.stubtest", "beamfuse._native"], ["mypy", "--config-file", settings, "-p", "beamfuse"]]:
        command = [sys.executable, "-m", *map(str, line)]
        ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT / "python" / "tests")
        assert ended.returncode == 0, ended.stdout


def test_the_module_is_the_command() -> None:
    ended = command("translate", "--model", MODEL, "--beam-size", 1, stdin=b"A dog runs.\n\n")
    assert (ended.returncode, ended.stdout) == (0, b"Ein Hund rennt.\n\n"), ended.stderr
    assert command("--version").stdout.decode().split() == ["beamfuse", beamfuse.__version__]
    assert command("translate", "--beam-size", "0").returncode == 2
    failed = command("translate", "--model", MODEL, stdin=b"\xff\n")
    assert (failed.returncode, failed.stdout) == (1, b"\n")


def test_the_pipeline_is_that_of_transformers(translator: beamfuse.Translator) -> None:
    translate = beamfuse.pipeline("translation", translator)
    assert translate("A dog runs.") == [{"translation_text": "Ein Hund rennt."}]
    several = translate(["A dog runs.", "Two cats."])
    assert [list(each) for each in several] == [["translation_text"]] * 2
    nested = translate(["A dog runs.", "Two cats."], num_beams=3, num_return_sequences=2)
    assert [len(each) for each in nested] == [2, 2]
    assert len(translate("A dog runs.", num_beams=3, num_return_sequences=2)) == 2
    hf = translator.translate(LINES[:10], preset="hf")
    assert translate(LINES[:10]) == [{"translation_text": found.text} for found in hf]
    assert len(translator.translate([LINES[0]], max_length=4)[0].hypotheses[0].tokens) <= 4
    for wrong in [("summarization", translator), ("translation", None)]:
        with pytest.raises(ValueError):
            beamfuse.pipeline(*wrong)


def test_evaluate_gives_the_scores_of_the_command() -> None:
    lines = ["Ein Hund rennt.", "Zwei Katzen."]
    perfect = beamfuse.evaluate(hypotheses=lines, references=lines, resamples=10)
    assert perfect["bleu"]["score"] == pytest.approx(100) and perfect["lines"] == 2
    found = beamfuse.evaluate(sources=["A dog runs.", "Two cats."], references=lines, model=MODEL, resamples=10, beam_size=1)
    assert 0 < found["chrf2"]["score"] <= 100
    with pytest.raises(beamfuse.Error) as raised:
        beamfuse.evaluate(hypotheses=lines[:1], references=lines)
    assert isinstance(raised.value, ValueError) and "expected 1 lines" in str(raised.value)
    with pytest.raises(ValueError, match="line break"):
        beamfuse.evaluate(hypotheses=["a\nb"], references=lines)


def test_a_report_is_numbers_and_charts(translator: beamfuse.Translator) -> None:
    sources = LINES[:12]
    references = [found.text for found in translator.translate(sources, beam_size=1)]
    report = beamfuse.diagnose(sources=sources, references=references, model=MODEL, resamples=10, probe_lines=4, sweep_lines=2, beam_size=1)
    assert json.loads(json.dumps(report.data)) == report.data and report.verdict
    for rows in (report.figures, report.curves, report.sweep):
        assert rows and not any(isinstance(value, dict) for row in rows for value in row.values())
    assert report.charts and all(chart.startswith("<svg") and chart.endswith("</svg>") for chart in report.charts)
    assert report.charts[0] in report._repr_html_() and repr(report) == report.text != ""


@pytest.mark.skipif("train" not in _native.features, reason="this build has no feature train")
def test_training_writes_a_model_and_a_log(tmp_path: Path) -> None:
    pairs = ["A dog runs.\tEin Hund rennt."] * 8
    log = beamfuse.train(data=pairs, output=tmp_path / "tuned", model=MODEL, updates=2, batch_tokens=64)
    assert log and all(isinstance(entry, dict) for entry in log)
    with beamfuse.Translator(tmp_path / "tuned") as tuned:
        assert tuned.translate(["A dog runs."])[0].text
