"""Batch jobs over Parquet on Ray: each actor opens the model and makes one part at a time, by the protocol of all jobs.

An actor that dies is started again, and its part is made again: parts are whole or not there. Needs ray and pyarrow.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from .batch import ADDED, ParquetJob, Unit, _columns, units
from .errors import Error
from .translator import Translator


class _Maker:
    """An actor: a model and the job."""

    def __init__(self, model: str, output: str, engine: dict[str, Any], job: dict[str, Any]) -> None:
        self._job = ParquetJob(Translator(model, **engine), output, **job)

    def done(self, unit: Unit) -> tuple[int, int] | None:
        return self._job.done(unit)

    def make(self, unit: Unit, again: bool) -> tuple[int, int]:
        """Makes a part; one that the same task has made before it was lost is done."""
        return (self._job.done(unit) if again else None) or self._job.make(unit)


def run(
    model: str | os.PathLike[str],
    input: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    address: str | None = None,
    actors: int = 0,
    engine: dict[str, Any] | None = None,
    column: str = "source",
    resume: bool = False,
    shard: str | None = None,
    **options: Any,
) -> tuple[int, int]:
    """As `beamfuse.batch.run`, spread over a cluster; paths are those of all its machines.

    `engine` are arguments of `Translator`; an actor takes its `threads` of the cluster's CPUs, and a GPU where its device is one.
    Without `actors` there are as many as there is room for, and no more than parts to make.
    """
    import ray as untyped

    ray: Any = untyped
    engine = dict(engine or {})
    threads = engine["threads"] = engine.get("threads") or 1
    ray.init(address=address, ignore_reinit_error=True, log_to_driver=False, include_dashboard=False)
    try:
        planned = units(input, column, shard)
        gpus = 1 if str(engine.get("device", "cpu")).startswith("cuda") else 0
        # An actor that is started again looks at its part with resume: the task may have ended with the part there.
        job = {"column": column, "resume": resume, **options}
        maker = ray.remote(num_cpus=threads, num_gpus=gpus, max_restarts=-1)(_Maker)
        paths = [os.path.abspath(model) if os.path.isdir(model) else os.fspath(model), os.path.abspath(output)]
        first = maker.remote(*paths, engine, job)
        done = ray.get([first.done.remote(unit) for unit in planned])
        open_units = [unit for unit, counts in zip(planned, done, strict=True) if counts is None]
        room = int(ray.cluster_resources().get("CPU", 1)) // threads
        count = max(1, min(actors or room, len(open_units)))
        resumed = {**job, "resume": True}
        ray.kill(first)
        makers = [maker.remote(*paths, engine, resumed) for _ in range(count)]
        counts = [each for each in done if each is not None] + list(_spread(ray, makers, open_units))
    finally:
        ray.shutdown()
    return sum(rows for rows, _ in counts), sum(failed for _, failed in counts)


TRIES = 5
"""Actors that may die over a part before the job is given up."""


def _spread(ray: Any, makers: list[Any], open_units: list[Unit]) -> Iterator[tuple[int, int]]:
    """Gives each actor a part as it gets free; a part whose actor died is given out again."""
    free, waiting = list(makers), [(unit, 1) for unit in reversed(open_units)]
    under_way: dict[Any, tuple[Any, Unit, int]] = {}
    while waiting or under_way:
        while free and waiting:
            maker, (unit, time) = free.pop(), waiting.pop()
            under_way[maker.make.remote(unit, time > 1)] = maker, unit, time
        [ended], _ = ray.wait(list(under_way), num_returns=1)
        maker, unit, time = under_way.pop(ended)
        free.append(maker)
        try:
            yield ray.get(ended)
        except ray.exceptions.RayActorError as error:
            if time == TRIES:
                raise Error(f"make {unit[1]}: {TRIES} actors have died over it, the last one: {error}", "worker_lost") from None
            waiting.append((unit, time + 1))


class BeamfuseStage:
    """A stage for Ray Data: `dataset.map_batches(BeamfuseStage, fn_constructor_args=[model], batch_format="pyarrow", concurrency=2)`.

    Adds the columns that `beamfuse.batch` adds. `engine` are arguments of `Translator`, `options` those of its `translate`.
    """

    def __init__(
        self, model: str | os.PathLike[str], column: str = "source", engine: dict[str, Any] | None = None, **options: Any
    ) -> None:
        self._translator = Translator(model, **(engine or {}))
        self._column, self._options = column, options

    def __call__(self, batch: Any) -> Any:
        """Translates a pyarrow table."""
        import pyarrow as pa

        from .batch import _added

        columns = _columns(self._translator, batch.column(self._column).to_pylist(), self._options)
        for name, kind, values in zip(ADDED, _added(), columns, strict=True):
            batch = batch.append_column(name, pa.array(values, kind))
        return batch
