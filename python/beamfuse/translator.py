"""`Translator`: a model, opened once and shared by all threads of a process."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence

from . import _native
from .errors import Error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any, Literal, Self

    OnError = Literal["raise", "return"]
    Sentence = str | Mapping[str, Any]


class Translator:
    """A model and the threads that decode with it.

    `model` is a directory in Hugging Face form, or a hub id `owner/name`, downloaded once. The other arguments are those of the
    command line: `device` (cpu, cuda, cuda:N, auto, ..), `dtype` (f32, i8, bf16, f16), `threads` and `workers` (0: one per core),
    `slots` (sentences decoded at once), `memory_budget` in bytes; `amateur` and `ensemble` are directories of further models.
    `source_lang`, `target_lang` and `source_prefix` (the task of a T5 model, as in `"summarize: "`) are those of texts that bring none
    of their own.

    Threads may share one translator. A process that was forked cannot use it: it raises there. Pickled, it is its arguments, and is
    opened again where it is unpickled.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        device: str = "cpu",
        dtype: str = "f32",
        threads: int = 0,
        workers: int = 0,
        slots: int = 32,
        memory_budget: int | None = None,
        amateur: str | os.PathLike[str] | None = None,
        ensemble: Sequence[str | os.PathLike[str]] = (),
        source_lang: str | None = None,
        target_lang: str | None = None,
        source_prefix: str | None = None,
    ) -> None:
        self._arguments = {
            "device": device,
            "dtype": dtype,
            "threads": threads,
            "workers": workers,
            "slots": slots,
            "memory_budget": memory_budget,
            "amateur": amateur,
            "ensemble": tuple(ensemble),
            "source_lang": source_lang,
            "target_lang": target_lang,
            "source_prefix": source_prefix,
        }
        self._model = model
        languages = source_lang, target_lang, source_prefix
        self._engine = _native.Engine(
            model, device, dtype, threads, workers, slots, memory_budget, amateur, list(ensemble), languages
        )

    def translate(self, texts: Iterable[Sentence], *, on_error: OnError = "raise", **options: Any) -> list[_native.Translation]:
        """Translates all texts; the results stand in their order.

        A text is a string, or a dict with what is its own: `source`, and any of `target_prefix`, `constraints`, `contrast_source`,
        `seed`, `source_prefix`, `source_lang`, `target_lang`, `source_ids` and `options`. `options` are those of the command line and of JSON
        lines: `beam_size`, `n_best`, `preset`, `sample`, `attention` and so on.

        The first error is raised; with `on_error="return"` each error stands in the place of its text instead.
        """
        collect = _collects(on_error)
        return self._engine.translate(_items(texts), self._options(options), collect)

    def translate_iter(
        self, texts: Iterable[Sentence], *, ahead: int = 256, on_error: OnError = "raise", **options: Any
    ) -> Iterator[_native.Translation]:
        """Translates texts as they come, and gives the results in their order.

        At most `ahead` texts are taken from `texts` before their results are: memory does not grow. Whoever closes the generator, or
        drops it, gives up what is under way.
        """
        if ahead < 1:
            raise ValueError(f"option ahead: expected at least 1, got {ahead}")
        collect = _collects(on_error)
        return self._iterate(iter(_iter_items(texts)), ahead, collect, self._options(options))

    def _iterate(
        self, items: Iterator[str | bytes], ahead: int, collect: bool, options: _native.Options
    ) -> Iterator[_native.Translation]:
        under_way: deque[_native.Pending | Error] = deque()
        ended = False
        try:
            while True:
                while not ended and len(under_way) < ahead:
                    item = next(items, None)
                    if item is None:
                        ended = True
                    else:
                        under_way.append(self._submit(item, options))
                if not under_way:
                    return
                first = under_way.popleft()
                found: Any = first
                if not isinstance(first, Error):
                    try:
                        found = first.wait()
                    except Error as error:
                        found = error
                    except BaseException:
                        # An interrupt.
                        first.cancel()
                        raise
                if isinstance(found, Error) and not collect:
                    raise found
                yield found
        finally:
            for rest in under_way:
                if not isinstance(rest, Error):
                    rest.cancel()

    def _submit(self, item: str | bytes, options: _native.Options) -> _native.Pending | Error:
        """Asks for a translation, where the queue is full as soon as there is room."""
        from time import sleep

        while True:
            try:
                return self._engine.submit(item, options)
            except Error as error:
                if error.kind != "overloaded":
                    return error
            sleep(0.005)

    async def translate_async(
        self, texts: Iterable[Sentence], *, on_error: OnError = "raise", **options: Any
    ) -> list[_native.Translation]:
        """As `translate`, in a coroutine: no thread waits. If the task is cancelled, what is under way is given up."""
        import asyncio

        loop = asyncio.get_running_loop()
        collect = _collects(on_error)
        resolved = self._options(options)
        asked: list[_native.Pending | Error] = []
        try:
            for item in _iter_items(texts):
                while True:
                    try:
                        asked.append(self._engine.submit(item, resolved))
                    except Error as error:
                        if error.kind == "overloaded":
                            await asyncio.sleep(0.005)
                            continue
                        if not collect:
                            raise
                        asked.append(error)
                    break
            results: list[Any] = []
            for pending in asked:
                try:
                    results.append(pending if isinstance(pending, Error) else await _arrival(loop, pending))
                except Error as error:
                    if not collect:
                        raise
                    results.append(error)
            return results
        finally:
            for pending in asked:
                if not isinstance(pending, Error):
                    pending.cancel()

    def score(
        self, pairs: Iterable[tuple[Sentence, str]], *, on_error: OnError = "raise"
    ) -> list[_native.Score]:
        """The log-probabilities that the model gives to translations: pairs of a source, a text or dict as in `translate`, and a target."""
        asked = [(source if isinstance(source, str) else _item(source), target) for source, target in pairs]
        return self._engine.score(asked, _collects(on_error))

    def preset(self, name: str) -> dict[str, Any]:
        """All options of a preset, by name; `hf` follows the model's generation config."""
        from json import loads

        return loads(self._engine.preset(name))  # type: ignore[no-any-return]

    def close(self) -> None:
        """Gives model and threads back, once what is under way has ended. What is asked for later raises."""
        self._engine.close()

    @property
    def model(self) -> str:
        """The model's directory."""
        return os.fspath(self._engine.directory)

    @property
    def device(self) -> str:
        """The device that it runs on."""
        return self._engine.device

    @property
    def version(self) -> str:
        """The model's version: a digest of its files, as records of batch jobs have it."""
        return self._engine.version()

    def _options(self, options: Mapping[str, Any]) -> _native.Options:
        return self._engine.options(_json(options) if options else "{}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[object, ...]:
        return _open, (self._model, self._arguments)

    def __repr__(self) -> str:
        state = " (closed)" if self._engine.closed else ""
        return f"Translator({os.fspath(self._model)!r}){state}"


def _open(model: str | os.PathLike[str], arguments: dict[str, Any]) -> Translator:
    return Translator(model, **arguments)


async def _arrival(loop: Any, pending: _native.Pending) -> _native.Translation:
    """Waits until a translation is there."""
    while True:
        there = loop.create_future()

        def wake(there: Any = there) -> None:
            loop.call_soon_threadsafe(_set, there)

        found = pending.poll(wake)
        if found is not None:
            return found
        await there


def _set(future: Any) -> None:
    if not future.done():
        future.set_result(None)


def _collects(on_error: str) -> bool:
    if on_error not in ("raise", "return"):
        raise ValueError(f"option on_error: expected raise or return, got {on_error!r}")
    return on_error == "return"


def _json(value: Mapping[str, Any]) -> str:
    from json import dumps

    return dumps(dict(value), allow_nan=False)


def _iter_items(texts: Iterable[Sentence]) -> Iterator[str | bytes]:
    if isinstance(texts, (str, bytes, Mapping)):
        raise TypeError(f"expected several texts, as in [text], got a {type(texts).__name__}")
    return (text if isinstance(text, str) else _item(text) for text in texts)


def _items(texts: Iterable[Sentence]) -> list[str | bytes]:
    return list(_iter_items(texts))


def _item(sentence: object) -> bytes:
    if not isinstance(sentence, Mapping):
        raise TypeError(f"expected a text or a dict, got {type(sentence).__name__}")
    return _json(sentence).encode("utf-8", "surrogatepass")
