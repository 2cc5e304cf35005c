"""Batch jobs on Ray: bytes as without it, whatever is killed. Needs `pip install ./python[test,ray]`."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from conftest import LINES, MODEL, command

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("ray")

FAST = ["--options", '{"beam_size": 1}']


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for number in range(8):
        pq.write_table(pa.table({"source": [None, *LINES[number : number + 9]]}), tmp_path / "in" / f"{number}.parquet")
    return tmp_path


def line(corpus: Path, out: str, *more: str) -> list[str]:
    given = ["--model", MODEL, "--input", corpus / "in", "--output", corpus / out, *FAST, *more]
    return [sys.executable, "-m", "beamfuse.batch", *map(str, given)]


ON_RAY = ["--ray", "--actors", "2", "--threads", "1"]


def parts(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.glob("*.parquet")}


def makers(driver: int) -> list[int]:
    """The processes of the actors of a driver's own cluster."""
    tree = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    rows = [row.split(None, 2) for row in tree.splitlines()[1:]]
    below = {driver}
    for _ in range(6):
        below |= {int(pid) for pid, parent, _ in rows if int(parent) in below}
    return [int(pid) for pid, _, name in rows if int(pid) in below and "_Maker" in name]


def end(process: subprocess.Popen[bytes]) -> None:
    """Kills a driver and what it has started."""
    tree = subprocess.run(["ps", "-eo", "pid,pgid"], capture_output=True, text=True, check=True).stdout
    own = [int(pid) for pid, group in (row.split() for row in tree.splitlines()[1:]) if int(group) == process.pid]
    for pid in [process.pid, *own]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    process.wait()


def test_bytes_are_those_without_ray_whatever_is_killed(corpus: Path) -> None:
    assert subprocess.run(line(corpus, "whole"), capture_output=True).returncode == 1
    expected = parts(corpus / "whole")
    generator = random.Random(11)
    for killed in ["actors", "driver", "actors"]:
        process = subprocess.Popen(line(corpus, "killed", "--resume", *ON_RAY), stderr=subprocess.PIPE, start_new_session=True)
        deadline = time.monotonic() + 120
        while not makers(process.pid) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        for _ in range(3):
            time.sleep(generator.random())
            if killed == "driver":
                end(process)
                break
            for pid in makers(process.pid)[:1]:
                os.kill(pid, signal.SIGKILL)
        if killed == "actors":
            assert process.wait(timeout=240) == 1, process.stderr and process.stderr.read()
        if process.stderr:
            process.stderr.close()
        assert all(expected[name] == part for name, part in parts(corpus / "killed").items())
    assert parts(corpus / "killed") == expected
    assert command("translate", "--verify", "--output", corpus / "killed").returncode == 0


def test_a_stage_adds_the_columns(corpus: Path) -> None:
    import ray

    from beamfuse.ray import BeamfuseStage

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        dataset = ray.data.read_parquet(str(corpus / "in" / "0.parquet"))
        staged = dataset.map_batches(
            BeamfuseStage, fn_constructor_args=[str(MODEL)], fn_constructor_kwargs={"engine": {"threads": 1}, "beam_size": 1},
            batch_format="pyarrow", concurrency=1,
        )  # fmt: skip
        rows: list[dict[str, Any]] = staged.take_all()
    finally:
        ray.shutdown()
    subprocess.run(line(corpus, "whole"), capture_output=True)
    expected = pq.read_table(corpus / "whole" / "0.parquet").to_pylist()
    assert sorted(rows, key=repr) == sorted(expected, key=repr)
