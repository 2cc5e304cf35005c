"""Batch jobs over Parquet: rows, order, errors, kills."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import beamfuse
from conftest import LINES, MODEL, command

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

FAST = ["--options", '{"beam_size": 1}']


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    texts: list[str | None] = [*LINES[:7], None, "", "dog " * 400]
    for number in range(4):
        ids = list(range(len(texts)))
        table = pa.table({"id": ids, "source": texts[number:] + texts[:number], "tags": [[f"t{each}"] for each in ids]})
        path = tmp_path / "in" / ("sub" if number == 3 else "") / f"{number}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path, row_group_size=3)
    return tmp_path


def batch(corpus: Path, out: str, *more: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "beamfuse.batch", "--model", MODEL, "--input", corpus / "in", "--output", corpus / out, *FAST, *more]
    return subprocess.run(line, capture_output=True, text=True, timeout=240)


def tables(directory: Path) -> dict[str, Any]:
    paths = [path for path in directory.rglob("*") if path.is_file() and ".beamfuse" not in path.parts]
    return {str(path.relative_to(directory)): pq.read_table(path) for path in paths if path.suffix != ".partial"}


def test_each_row_has_its_row(corpus: Path, translator: beamfuse.Translator) -> None:
    ended = batch(corpus, "out")
    assert ended.returncode == 1 and "40 rows, 8 of them with errors" in ended.stderr, ended.stderr
    made, given = tables(corpus / "out"), tables(corpus / "in")
    assert made.keys() == given.keys()
    for name, table in made.items():
        assert table.select(["id", "source", "tags"]).equals(given[name])
        for row in table.to_pylist():
            if row["error"] is not None:
                assert row["error"]["kind"] == ("null" if row["source"] is None else "input_too_long") and row["translation"] is None
            else:
                [found] = translator.translate([row["source"]], beam_size=1)
                assert row["translation"] == found.text == row["hypotheses"][0]["text"]
    verified = command("translate", "--verify", "--output", corpus / "out")
    assert verified.returncode == 0, verified.stderr
    assert batch(corpus, "out").returncode == 2
    assert batch(corpus, "out", "--resume").returncode == 1
    refused = batch(corpus, "out", "--resume", "--dtype", "i8")
    assert refused.returncode == 2 and "expected dtype" in refused.stderr
    for shard in ["2/2", "1/2"]:
        batch(corpus, "shared", "--shard", shard)
    assert all(table.equals(made[name]) for name, table in tables(corpus / "shared").items())
    assert tables(corpus / "shared").keys() == made.keys()


def test_kills_lose_no_row_and_double_none(corpus: Path) -> None:
    begun = time.monotonic()
    batch(corpus, "whole")
    whole_run = time.monotonic() - begun
    expected = tables(corpus / "whole")
    line = [sys.executable, "-m", "beamfuse.batch", "--model", MODEL, "--input", corpus / "in", "--output", corpus / "killed", *FAST, "--resume"]
    generator = random.Random(3)
    for _ in range(8):
        child = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(generator.random() * whole_run)
        child.kill()
        child.wait()
        assert all(table.equals(expected[name]) for name, table in tables(corpus / "killed").items())
    assert batch(corpus, "killed", "--resume").returncode == 1
    assert tables(corpus / "killed").keys() == expected.keys()
    assert all(table.equals(expected[name]) for name, table in tables(corpus / "killed").items())
    assert command("translate", "--verify", "--output", corpus / "killed").returncode == 0


def test_other_files_are_refused_by_name(corpus: Path) -> None:
    (corpus / "in" / "x.txt").write_text("A dog runs.\n")
    ended = batch(corpus, "out")
    assert ended.returncode == 2 and "x.txt" in ended.stderr and "beamfuse translate" in ended.stderr
    (corpus / "in" / "x.txt").unlink()
    assert "column 'text'" in batch(corpus, "out", "--column", "text").stderr
    pq.write_table(pa.table({"source": ["a"], "error": ["b"]}), corpus / "in" / "y.parquet")
    assert "column 'error'" in batch(corpus, "out").stderr
    assert not (corpus / "out").exists()


def test_languages_are_the_jobs(corpus: Path) -> None:
    model = ["--model", MODEL.parents[1] / "tests" / "data" / "families" / "nllb-legacy", "--source-lang", "eng_Latn"]
    german = batch(corpus, "out", *map(str, model), "--target-lang", "deu_Latn", "--options", '{"beam_size": 1, "max_length": 4}')
    assert german.returncode == 1 and "40 rows" in german.stderr, german.stderr
    french = batch(corpus, "out", *map(str, model), "--target-lang", "fra_Latn", "--options", '{"beam_size": 1, "max_length": 4}', "--resume")
    assert french.returncode == 2 and "target_lang" in french.stderr, french.stderr
