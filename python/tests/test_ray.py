"""Batch jobs on Ray: bytes as without it, whatever is killed, full or refused. Needs `pip install ./python[test,ray]`.

BEAMFUSE_RAY_KILLS is how many actors and drivers are killed; each costs some ten seconds.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import LINES, MODEL, command

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("ray")

KILLS = int(os.environ.get("BEAMFUSE_RAY_KILLS", "4"))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for number in range(8):
        texts = [None, *LINES[number : number + 30]]
        pq.write_table(pa.table({"id": range(len(texts)), "source": texts}), tmp_path / "in" / f"{number}.parquet")
    pq.write_table(pa.table({"id": range(300), "source": [f"{LINES[0]} {number}" for number in range(300)]}), tmp_path / "in" / "z.parquet")
    assert run(tmp_path, "whole").returncode == 1
    return tmp_path


def line(corpus: Path, out: str, *more: str) -> list[str]:
    given = ["--model", MODEL, "--input", corpus / "in", "--output", corpus / out, "--options", '{"beam_size": 1}', *more]
    return [sys.executable, "-m", "beamfuse.batch", *map(str, given)]


ON_RAY = ["--resume", "--ray", "--actors", "2", "--threads", "1"]


def run(corpus: Path, out: str, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(line(corpus, out, *more), capture_output=True, text=True, timeout=240)


def start(corpus: Path, out: str) -> subprocess.Popen[str]:
    return subprocess.Popen(line(corpus, out, *ON_RAY), stderr=subprocess.PIPE, text=True)


def parts(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.glob("*.parquet") if path.is_file()}


def is_whole(corpus: Path, out: str) -> bool:
    """All parts, each byte of them as without Ray, and each row once."""
    expected = parts(corpus / "whole")
    ids = [pq.read_table(path, columns=["id"]).column("id").to_pylist() for path in sorted((corpus / out).glob("*.parquet"))]
    return parts(corpus / out) == expected and ids == [list(range(31))] * 8 + [list(range(300))]


def has_only_whole_parts(corpus: Path, out: str) -> bool:
    expected = parts(corpus / "whole")
    return all(expected[name] == part for name, part in parts(corpus / out).items())


def makers(driver: int) -> list[int]:
    """The processes of the actors of a driver's own cluster."""
    tree = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    rows = [row.split(None, 2) for row in tree.splitlines()[1:]]
    below = {driver}
    for _ in range(6):
        below |= {int(pid) for pid, parent, _ in rows if int(parent) in below}
    return [int(pid) for pid, _, name in rows if int(pid) in below and "_Maker" in name]


def wait_until(is_so: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_kills_lose_no_row_and_double_none(corpus: Path) -> None:
    generator, kills = random.Random(11), {"actor": 0, "driver": 0}
    while sum(kills.values()) < KILLS:
        process = start(corpus, "killed")
        wait_until(lambda: bool(makers(process.pid)) or process.poll() is not None)
        killed = min(kills, key=lambda which: kills[which])
        for _ in range(3 if killed == "actor" else 1):
            time.sleep(3 * generator.random())
            found = makers(process.pid)
            if process.poll() is not None or not found:
                break
            if killed == "actor":
                os.kill(generator.choice(found), signal.SIGKILL)
            else:
                process.kill()
                # Ray ends them some time later.
                wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in found))
            kills[killed] += 1
        _, said = process.communicate(timeout=240)
        assert has_only_whole_parts(corpus, "killed")
        if process.returncode != -signal.SIGKILL:
            assert process.returncode == 1 and is_whole(corpus, "killed"), said
            shutil.rmtree(corpus / "killed")
    assert min(kills.values()) > 0
    last = run(corpus, "killed", *ON_RAY)
    assert last.returncode == 1 and is_whole(corpus, "killed"), last.stderr
    assert command("translate", "--verify", "--output", corpus / "killed").returncode == 0


def is_mended(corpus: Path, out: str) -> bool:
    """Nothing but whole parts is there, and resuming makes the rest."""
    assert has_only_whole_parts(corpus, out) and "z.parquet" not in parts(corpus / out)
    assert command("translate", "--verify", "--output", corpus / out).returncode == 0
    last = run(corpus, out, *ON_RAY)
    assert last.returncode == 1, last.stderr
    return is_whole(corpus, out)


def test_a_full_disk_ends_the_job_and_resuming_completes_it(corpus: Path) -> None:
    sizes = {name: len(part) for name, part in parts(corpus / "whole").items()}
    room = sizes.pop("z.parquet") - 100
    assert room > max(sizes.values())
    process = start(corpus, "full")
    limited: set[int] = set()

    def limit() -> bool:
        for pid in set(makers(process.pid)) - limited:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (room, room))
            limited.add(pid)
        return process.poll() is not None

    wait_until(limit)
    _, said = process.communicate()
    assert len(limited) >= 2 and process.returncode == 2 and "beamfuse: " in said and "Traceback" not in said, said
    assert is_mended(corpus, "full")


def test_a_rename_that_fails_ends_the_job_and_resuming_completes_it(corpus: Path) -> None:
    process = start(corpus, "blocked")
    wait_until(lambda: bool(parts(corpus / "blocked")) or process.poll() is not None)
    # A directory that is not empty stands in the way.
    (corpus / "blocked" / "z.parquet" / "x").mkdir(parents=True)
    _, said = process.communicate(timeout=240)
    assert process.returncode == 2 and "z.parquet" in said and "Traceback" not in said, said
    shutil.rmtree(corpus / "blocked" / "z.parquet")
    assert is_mended(corpus, "blocked")


def test_errors_are_those_without_ray(corpus: Path) -> None:
    for more in [["--model", "no/such/model"], ["--dtype", "f8"], ["--column", "text"], ["--actors", "100000"]]:
        ended = run(corpus, "out", *ON_RAY, *more)
        assert ended.returncode == 2 and "Traceback" not in ended.stderr, ended.stderr
        said = ended.stderr.splitlines()[-1]
        assert said in run(corpus, "out", *more).stderr if more[0] != "--actors" else "expected as many as the cluster" in said, said
    refused = run(corpus, "whole", *ON_RAY[1:])
    assert refused.returncode == 2 and "--resume" in refused.stderr and "Traceback" not in refused.stderr


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
    expected = pq.read_table(corpus / "whole" / "0.parquet").to_pylist()
    assert sorted(rows, key=repr) == sorted(expected, key=repr)
