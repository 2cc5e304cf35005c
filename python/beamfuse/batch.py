"""`python -m beamfuse.batch`: batch jobs over Parquet files. Those over text, JSON lines and TSV are `beamfuse translate`'s.

Each file becomes a part, committed by the same protocol: written aside, brought to the disk, renamed, then its record. A part has
the rows of its input in their order, all of their columns, and three more: `translation` (the best one's text), `hypotheses` (a list
of text, score and log_prob) and `error` (kind and message; null where there is none). Needs pyarrow.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from . import _native
from .errors import Error
from .translator import Translator

ADDED = ["translation", "hypotheses", "error"]

LANGUAGES = ["source_lang", "target_lang", "source_prefix"]
"""What a job's texts have in common, and what its record names where it is said."""

ROWS = 4096
"""Rows that are in memory at once."""


Unit = tuple[str, str, int, str]
"""A file: its path, its name within the input, its SHA-256 and its bytes."""


class ParquetJob:
    """A job's parts, made one by one; several processes may share a job. Its arguments are those of `run`."""

    def __init__(
        self,
        translator: Translator,
        output: str | os.PathLike[str],
        *,
        column: str = "source",
        resume: bool = False,
        **options: Any,
    ) -> None:
        self._translator, self._column, self._options = translator, column, options
        resolved = json.loads(translator._engine.options(json.dumps(options)).json())
        said = {name: translator._arguments[name] for name in LANGUAGES}
        arguments = {name: translator._arguments[name] for name in ("device", "dtype")}
        arguments |= {name: value for name, value in said.items() if value is not None}
        identity = {**resolved, **arguments, "format": "parquet", "column": column}
        self._job = _native.Job(output, json.dumps(identity), translator.version, resume)

    def done(self, unit: Unit) -> tuple[int, int] | None:
        """The rows and failed rows of a part that is there already; None if it has to be made. Raises where it is another job's."""
        _, name, size, sha256 = unit
        return self._job.done(name, size, sha256, name)

    def make(self, unit: Unit) -> tuple[int, int]:
        """Makes a part; gives its rows and failed rows."""
        path, name, size, sha256 = unit
        part = self._job.begin(name, size, sha256, name)
        try:
            counts = _write(self._translator, Path(path), Path(part.path), self._column, self._options)
            part.commit(*counts)
            return counts
        finally:
            part.discard()


def units(input: str | os.PathLike[str], column: str, shard: str | None) -> list[Unit]:
    """The files of a job, or of a share of it; raises for those that cannot be parts."""
    planned = [(os.fspath(path), name) for path, name in _native.plan(input, shard)]
    for path, _ in planned:
        _check(Path(path), column)
    digests = [_native.digest_file(path) for path, _ in planned]
    return [(path, name, size, sha256) for (path, name), (sha256, size) in zip(planned, digests, strict=True)]


def run(
    translator: Translator,
    input: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    column: str = "source",
    resume: bool = False,
    shard: str | None = None,
    **options: Any,
) -> tuple[int, int]:
    """Translates the column of every Parquet file of a directory or a pattern; gives the rows and failed rows of all parts.

    `translator` has neither amateur nor ensemble: the record would not name them.
    """
    job = ParquetJob(translator, output, column=column, resume=resume, **options)
    # All are looked at before the first is made.
    planned = [(unit, job.done(unit)) for unit in units(input, column, shard)]
    counts = [job.make(unit) if done is None else done for unit, done in planned]
    return sum(rows for rows, _ in counts), sum(failed for _, failed in counts)


def _check(path: Path, column: str) -> None:
    """Refuses files that are no Parquet, lack the column of texts, or have one that is to be added."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"read {path}: expected a Parquet file (others are for beamfuse translate): {error}") from None
    if column not in schema.names or not (pa.types.is_string(schema.field(column).type) or pa.types.is_large_string(schema.field(column).type)):
        raise ValueError(f"read {path}: expected a column {column!r} of strings, got {schema.names}")
    taken = [name for name in ADDED if name in schema.names]
    if taken:
        raise ValueError(f"read {path}: expected no column {taken[0]!r}, which is added")


def _write(translator: Translator, source: Path, part: Path, column: str, options: dict[str, Any]) -> tuple[int, int]:
    """Writes the rows of a part; gives how many there are, and how many failed."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = failed = 0
    with pq.ParquetFile(source) as file:
        schema = file.schema_arrow
        for name, kind in zip(ADDED, _added(), strict=True):
            schema = schema.append(pa.field(name, kind))
        with pq.ParquetWriter(part, schema, compression="zstd") as writer:
            for batch in file.iter_batches(ROWS):
                columns = _columns(translator, batch.column(column).to_pylist(), options)
                arrays = [pa.array(values, schema.field(name).type) for name, values in zip(ADDED, columns, strict=True)]
                writer.write_table(pa.Table.from_arrays([*batch.columns, *arrays], schema=schema))
                rows += batch.num_rows
                failed += sum(each is not None for each in columns[2])
    return rows, failed


def _added() -> list[Any]:
    """The types of the columns that are added."""
    import pyarrow as pa

    hypothesis = pa.struct({"text": pa.string(), "score": pa.float32(), "log_prob": pa.float32()})
    return [pa.string(), pa.list_(hypothesis), pa.struct({"kind": pa.string(), "message": pa.string()})]


def _columns(translator: Translator, texts: list[str | None], options: dict[str, Any]) -> list[list[Any]]:
    found: Iterator[Any] = iter(
        translator.translate([text for text in texts if text is not None], on_error="return", **options)
    )
    columns: list[list[Any]] = [[], [], []]
    for text in texts:
        result = Error("read row: expected a text, got null", "null") if text is None else next(found)
        if isinstance(result, Error):
            row: list[Any] = [None, None, {"kind": result.kind, "message": str(result)}]
        else:
            told = [{"text": each.text, "score": each.score, "log_prob": each.log_prob} for each in result.hypotheses]
            row = [result.text, told, None]
        for values, value in zip(columns, row, strict=True):
            values.append(value)
    return columns


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m beamfuse.batch", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="model directory or hub id")
    parser.add_argument("--input", required=True, metavar="FILE|DIR", help="Parquet file, directory of such, or pattern in quotes")
    parser.add_argument("--output", required=True, metavar="DIR", help="directory of the parts")
    parser.add_argument("--column", default="source", help="the column of texts [default: source]")
    parser.add_argument("--resume", action="store_true", help="make the parts that are not there")
    parser.add_argument("--shard", metavar="I/N", help="do the I-th of N shares of the files")
    parser.add_argument("--device", default="cpu", help="as of beamfuse translate")
    parser.add_argument("--dtype", default="f32", help="as of beamfuse translate")
    parser.add_argument("--threads", type=int, default=0, help="threads that compute on the CPU [default: one per core]")
    parser.add_argument("--slots", type=int, default=32, help="sentences decoded at once [default: 32]")
    parser.add_argument("--source-lang", metavar="CODE", help="as of beamfuse translate")
    parser.add_argument("--target-lang", metavar="CODE", help="as of beamfuse translate")
    parser.add_argument("--prefix", dest="source_prefix", metavar="TEXT", help="as of beamfuse translate")
    parser.add_argument("--ray", nargs="?", const="", metavar="ADDRESS", help="spread the files over a Ray cluster [default: this machine]")
    parser.add_argument("--actors", type=int, default=0, metavar="N", help="with --ray: processes, of --threads each [default: as many as there is room for]")
    parser.add_argument("--options", type=json.loads, default={}, metavar="JSON", help="options of the search, as {\"beam_size\": 1}")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; gives its exit code, which is that of beamfuse translate."""
    given = _parser().parse_args(arguments)
    try:
        engine = {name: getattr(given, name) for name in ("device", "dtype", "threads", "slots", *LANGUAGES)}
        job = {name: getattr(given, name) for name in ("column", "resume", "shard")}
        if given.ray is not None:
            from . import ray

            rows, failed = ray.run(given.model, given.input, given.output, address=given.ray or None, actors=given.actors, engine=engine, **job, **given.options)  # fmt: skip
        else:
            with Translator(given.model, **engine) as translator:
                rows, failed = run(translator, given.input, given.output, **job, **given.options)
    except KeyboardInterrupt:
        print("beamfuse: the parts so far are whole; the same command with --resume continues", file=sys.stderr)
        return 130
    except ImportError as error:
        print(f"beamfuse: run the job: expected pyarrow, and ray for --ray (pip install beamfuse[parquet,ray]): {error}", file=sys.stderr)
        return 2
    except (Error, ValueError, OSError) as error:
        print(f"beamfuse: {error}", file=sys.stderr)
        return 2
    print(f"beamfuse: {rows} rows, {failed} of them with errors", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
