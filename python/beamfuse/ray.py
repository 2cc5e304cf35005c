"""Batch jobs over Parquet on Ray: each actor opens the model and makes one part at a time, by the protocol of all jobs.

An actor that dies is started again, and its part is made again: parts are whole or not there. Needs ray and pyarrow.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from .batch import ADDED, ParquetJob, Unit, _columns, units
from .errors import Error, RequestError
from .translator import Translator

TRIES = 5
"""Actors that may die over a part before the job is given up."""


class _Maker:
    """An actor: a model and the job. What it does may be done twice."""

    def __init__(self, model: str, output: str, engine: dict[str, Any], job: dict[str, Any]) -> None:
        self._arguments = model, output, engine, job
        self._opened: ParquetJob | None = None

    @property
    def _job(self) -> ParquetJob:
        # Not in the constructor, whose errors Ray would take for the actor's death.
        if self._opened is None:
            model, output, engine, job = self._arguments
            self._opened = ParquetJob(Translator(model, **engine), output, **job)
        return self._opened

    def done(self, unit: Unit) -> tuple[int, int] | None:
        return self._job.done(unit)

    def make(self, unit: Unit) -> tuple[int, int]:
        """Makes a part, unless an actor that died behind its commit has made it."""
        return self._job.done(unit) or self._job.make(unit)


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
        room = _room(ray, threads, gpus)
        if room < max(actors, 1):
            taken = f"{actors or 1} of {threads} CPUs and {gpus} GPUs"
            raise RequestError(f"start actors: expected as many as the cluster has room for, {room}, got {taken}", "option")
        maker = ray.remote(num_cpus=threads, num_gpus=gpus, max_restarts=-1, max_task_retries=TRIES - 1)(_Maker)
        paths = [os.path.abspath(model) if os.path.isdir(model) else os.fspath(model), os.path.abspath(output)]
        first = maker.remote(*paths, engine, {"column": column, "resume": resume, **options})
        done = _get(ray, [first.done.remote(unit) for unit in planned])
        ray.kill(first)
        open_units = [unit for unit, counts in zip(planned, done, strict=True) if counts is None]
        # What is there now has been seen to be this job's.
        resumed = {"column": column, "resume": True, **options}
        makers = [maker.remote(*paths, engine, resumed) for _ in range(min(actors or room, len(open_units)))]
        counts = [each for each in done if each is not None] + list(_spread(ray, makers, open_units))
    finally:
        ray.shutdown()
    return sum(rows for rows, _ in counts), sum(failed for _, failed in counts)


def _room(ray: Any, threads: int, gpus: int) -> int:
    """Actors that fit on the cluster's machines."""
    room = 0
    for node in ray.nodes():
        if node["Alive"]:
            fit = node["Resources"].get("CPU", 0) // threads
            room += int(min(fit, node["Resources"].get("GPU", 0)) if gpus else fit)
    return room


def _get(ray: Any, asked: Any) -> Any:
    """What actors came to; their errors are raised as they were there."""
    try:
        return ray.get(asked)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayActorError as error:
        raise Error(f"make parts: {TRIES} actors have died over the same one, the last one: {error}", "worker_lost") from None


def _spread(ray: Any, makers: list[Any], open_units: list[Unit]) -> Iterator[tuple[int, int]]:
    """Gives each actor a part as it gets free. After an error those that are under way are still made."""
    free, waiting = list(makers), list(reversed(open_units))
    under_way: dict[Any, Any] = {}
    failure: BaseException | None = None
    while waiting or under_way:
        while free and waiting:
            maker = free.pop()
            under_way[maker.make.remote(waiting.pop())] = maker
        [ended], _ = ray.wait(list(under_way), num_returns=1)
        free.append(under_way.pop(ended))
        try:
            yield _get(ray, ended)
        except (Error, ValueError, OSError) as error:
            failure = failure or error
            waiting.clear()
    if failure is not None:
        raise failure


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
