"""What the tests share: the demo model, lines, and the command line of the same package."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import beamfuse

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "models" / "m30k-en-de"
LINES = (ROOT / "tests" / "data" / "own" / "own.en").read_text("utf-8").splitlines()


def command(*arguments: object, stdin: bytes = b"", timeout: float = 240) -> subprocess.CompletedProcess[bytes]:
    """Runs `python -m beamfuse`."""
    line = [sys.executable, "-m", "beamfuse", *map(str, arguments)]
    return subprocess.run(line, input=stdin, capture_output=True, timeout=timeout)


def command_json(lines: list[str], *flags: object) -> list[dict[str, Any]]:
    """What the command line says of lines, in JSON."""
    ended = command("translate", "--model", MODEL, "--format", "jsonl", "--input-format", "text", *flags,
                    stdin="".join(f"{line}\n" for line in lines).encode())  # fmt: skip
    return [json.loads(line) for line in ended.stdout.splitlines()]


@pytest.fixture(scope="session")
def translator() -> Iterator[beamfuse.Translator]:
    with beamfuse.Translator(MODEL) as opened:
        yield opened
