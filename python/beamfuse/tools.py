"""`evaluate`, `diagnose` and `train`: the commands of these names, in a process of their own, with their results as objects.

Texts may be given as files, or as lists of lines. Options are those of the command line with underscores: `beam_size=4` is
`--beam-size 4`, `skip_bad=True` is `--skip-bad`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .errors import Error, _make

Texts = str | os.PathLike[str] | Iterable[str]


class Report:
    """What `diagnose` found.

    `data` is all of it, as the command's JSON has it; `figures`, `curves`, `buckets` and `sweep` are lists of flat dicts, which
    `pandas.DataFrame(..)` takes as they are. In a notebook it shows its charts.
    """

    def __init__(self, data: dict[str, Any], page: str, text: str) -> None:
        self.data = data
        self.text = text
        self.page = page

    @property
    def figures(self) -> list[dict[str, Any]]:
        """One dict for each figure: its name, value and interval."""
        return [_flat(figure) for figure in self.data.get("figures", [])]

    @property
    def curves(self) -> list[dict[str, Any]]:
        """One dict for each point of each curve."""
        rows = []
        for curve in self.data.get("curves", []):
            for series in curve.get("series", []):
                of = {"curve": curve.get("name"), "series": series.get("name")}
                rows += [{**of, **_flat(point)} for point in series.get("points", [])]
        return rows

    @property
    def verdict(self) -> Any:
        """What to make of it, as the command's JSON has it."""
        return self.data["verdict"]

    @property
    def buckets(self) -> list[dict[str, Any]]:
        """One dict for each range of reference lengths."""
        return [_flat(bucket) for bucket in self.data.get("buckets", [])]

    @property
    def sweep(self) -> list[dict[str, Any]]:
        """One dict for each beam size and length penalty that was tried."""
        return [_flat(each) for each in self.data.get("sweep", [])]

    @property
    def charts(self) -> list[str]:
        """The charts, each an SVG."""
        return re.findall(r"<svg\b.*?</svg>", self.page, flags=re.DOTALL)

    def _repr_html_(self) -> str:
        from html import escape

        return "".join([f"<pre>{escape(self.text)}</pre>", *self.charts])

    def __repr__(self) -> str:
        return self.text


def evaluate(
    *,
    references: Texts,
    further_references: Sequence[Texts] = (),
    sources: Texts | None = None,
    hypotheses: Texts | None = None,
    **options: Any,
) -> dict[str, Any]:
    """BLEU, chrF2 and the other scores of `beamfuse eval`, as its JSON has them.

    With `hypotheses` these are scored, else `sources` are translated, by `model=`. `further_references` give each line several
    references.
    """
    with _Files() as files:
        arguments = ["eval", "--format", "json"]
        for each in [references, *further_references]:
            arguments += ["--reference", files.path(each)]
        for flag, texts in (("--input", sources), ("--hypotheses", hypotheses)):
            if texts is not None:
                arguments += [flag, files.path(texts)]
        found: dict[str, Any] = json.loads(_run([*arguments, *_flags(options)]))
        return found


def diagnose(*, sources: Texts, references: Texts, **options: Any) -> Report:
    """Whether a model has exposure bias, and which remedy fits: `beamfuse diagnose`."""
    with _Files() as files:
        data, page = files.new("report.json"), files.new("report.html")
        arguments = ["diagnose", "--source", files.path(sources), "--reference", files.path(references)]
        text = _run([*arguments, "--json", data, "--html", page, *_flags(options)])
        return Report(json.loads(Path(data).read_text("utf-8")), Path(page).read_text("utf-8"), text)


def train(*, data: Texts, output: str | os.PathLike[str], **options: Any) -> list[dict[str, Any]]:
    """Fine-tunes `model=` on pairs, a TSV file or its lines, and writes another directory: `beamfuse train`.

    Gives the log: a dict for each entry, which `pandas.DataFrame(..)` takes. What is said meanwhile goes to stderr.
    """
    with _Files() as files:
        _run(["train", "--data", files.path(data), "--output", os.fspath(output), *_flags(options)], quiet=False)
    log = Path(output, "training", "log.jsonl").read_text("utf-8")
    return [json.loads(line) for line in log.splitlines()]


class _Files:
    """Lists of lines as files, for as long as a command runs."""

    def __enter__(self) -> _Files:
        self._directory = tempfile.TemporaryDirectory(prefix="beamfuse-")
        self._count = 0
        return self

    def __exit__(self, *_: object) -> None:
        self._directory.cleanup()

    def new(self, name: str) -> str:
        self._count += 1
        return os.path.join(self._directory.name, f"{self._count}-{name}")

    def path(self, texts: Texts) -> str:
        if isinstance(texts, (str, os.PathLike)):
            return os.fspath(texts)
        lines = list(texts)
        broken = next((line for line in lines if "\n" in line), None)
        if broken is not None:
            raise ValueError(f"expected lines, got a text with a line break: {broken!r}")
        path = self.new("lines")
        Path(path).write_text("".join(f"{line}\n" for line in lines), "utf-8")
        return path


def _flat(value: dict[str, Any]) -> dict[str, Any]:
    """Without dicts in the dict: their fields, their name in front."""
    flat: dict[str, Any] = {}
    for name, inner in value.items():
        if isinstance(inner, dict):
            flat.update({f"{name}_{key}": each for key, each in inner.items()})
        else:
            flat[name] = inner
    return flat


def _flags(options: dict[str, Any]) -> list[str]:
    flags = []
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        if value is True:
            flags.append(flag)
        elif isinstance(value, (list, tuple)):
            flags += [f"{flag}={os.fspath(each) if isinstance(each, os.PathLike) else each}" for each in value]
        elif value is not None and value is not False:
            flags.append(f"{flag}={os.fspath(value) if isinstance(value, os.PathLike) else value}")
    return flags


def _run(arguments: list[str], quiet: bool = True) -> str:
    """Runs a command; its errors are raised with the text that it said last."""
    command = [sys.executable, "-m", "beamfuse", *arguments]
    ended = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE if quiet else None, encoding="utf-8")
    if ended.returncode in (0, 1):
        return ended.stdout
    if ended.returncode == 130:
        raise KeyboardInterrupt
    said = (ended.stderr or "").strip().removeprefix("beamfuse: ")
    if ended.returncode == 2:
        raise _make("option", said or f"{arguments[0]} failed; what it said is on stderr", None)
    raise Error(f"{arguments[0]}: ended with code {ended.returncode}: {said}", "worker_lost")
