"""`Translator` with the methods, argument names and results of CTranslate2's.

The model is a directory in Hugging Face form: nothing is converted. Tokens go in and come out, and the search is that of the preset
`ctranslate2`. Arguments that size batches or queues are taken and change nothing: no result depends on a batch here. What is not
there raises NotImplementedError and says its name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence

from .. import _native
from ..translator import Translator as _Translator

TYPE_CHECKING = False
if TYPE_CHECKING:
    from concurrent.futures import Future
    from typing import Any, Generic, TypeVar

    _Result = TypeVar("_Result")
else:
    _Result = None

    class Generic:
        """As typing's, which few need at run time."""

        def __class_getitem__(cls, _: object) -> object:
            return object


_DTYPES = {
    "default": "f32",
    "auto": "f32",
    "float32": "f32",
    "int8": "i8",
    "int8_float32": "i8",
    "bfloat16": "bf16",
    "float16": "f16",
}

_NAMES = {"f32": "float32", "i8": "int8_float32", "bf16": "bfloat16", "f16": "float16"}


class _Record:
    """A result whose fields do not change."""

    __slots__: tuple[str, ...] = ()

    def __init__(self, *values: object) -> None:
        for name, value in zip(self.__slots__, values, strict=True):
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"can't set attribute {name!r} of {type(self).__name__}")

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and repr(other) == repr(self)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__slots__)
        return f"{type(self).__name__}({fields})"


class TranslationResult(_Record):
    """Hypotheses in tokens, best first; scores if they were asked for."""

    __slots__ = ("hypotheses", "scores", "attention", "logits")
    hypotheses: list[list[str]]
    scores: list[float]
    attention: list[list[list[float]]]
    logits: list[list[float]]


class ScoringResult(_Record):
    """The target's tokens, end of sentence included, and the log-probability of each."""

    __slots__ = ("tokens", "log_probs")
    tokens: list[str]
    log_probs: list[float]


class GenerationStepResult(_Record):
    """A token of a translation."""

    __slots__ = ("step", "batch_id", "token_id", "hypothesis_id", "token", "log_prob", "logits", "is_last")
    step: int
    batch_id: int
    token_id: int
    hypothesis_id: int
    token: str
    log_prob: float | None
    logits: None
    is_last: bool


class AsyncResult(Generic[_Result]):
    """A result to come."""

    def __init__(self, future: Future[list[_Result]], at: int) -> None:
        self._future, self._at = future, at

    def result(self) -> _Result:
        """Waits for it."""
        return self._future.result()[self._at]

    def done(self) -> bool:
        """Whether it is there."""
        return self._future.done()


def _refuse(given: dict[str, tuple[object, object]]) -> None:
    """Raises for arguments that are not there: name, value, the only value that is taken."""
    for name, (value, taken) in given.items():
        if value != taken:
            raise NotImplementedError(f"beamfuse.compat.ctranslate2 has no {name}: expected {taken!r}, got {value!r}")


class Translator:
    """In the shape of `ctranslate2.Translator`."""

    def __init__(
        self,
        model_path: str | os.PathLike[str],
        device: str = "cpu",
        *,
        device_index: int | Sequence[int] = 0,
        compute_type: str = "default",
        inter_threads: int = 1,
        intra_threads: int = 0,
        max_queued_batches: int = 0,
        flash_attention: bool = False,
        tensor_parallel: bool = False,
        files: object = None,
    ) -> None:
        _refuse(
            {
                "flash_attention": (flash_attention, False),
                "tensor_parallel": (tensor_parallel, False),
                "files": (files, None),
            }
        )
        if compute_type not in _DTYPES:
            raise NotImplementedError(f"beamfuse.compat.ctranslate2 has no compute_type {compute_type!r}: expected one of {[*_DTYPES]}")
        indices = [device_index] if isinstance(device_index, int) else list(device_index)
        place = device if device != "cuda" else "cuda:" + ",".join(map(str, indices))
        self._device, self._indices, self._dtype = device, indices, _DTYPES[compute_type]
        self._inter_threads = inter_threads
        threads = inter_threads * intra_threads
        self._translator = _Translator(model_path, device=place, dtype=self._dtype, threads=threads, workers=inter_threads)

    @property
    def device(self) -> str:
        """As it was given."""
        return self._device

    @property
    def device_index(self) -> list[int]:
        """As they were given."""
        return self._indices

    @property
    def compute_type(self) -> str:
        """What weights are kept in."""
        return _NAMES[self._dtype]

    @property
    def num_translators(self) -> int:
        """Sessions that decode side by side."""
        return self._translator._engine.workers

    def translate_batch(
        self,
        source: Sequence[Sequence[str]],
        target_prefix: Sequence[Sequence[str] | None] | None = None,
        *,
        max_batch_size: int = 0,
        batch_type: str = "examples",
        asynchronous: bool = False,
        beam_size: int = 2,
        patience: float = 1,
        num_hypotheses: int = 1,
        length_penalty: float = 1,
        coverage_penalty: float = 0,
        repetition_penalty: float = 1,
        no_repeat_ngram_size: int = 0,
        disable_unk: bool = False,
        suppress_sequences: Sequence[Sequence[str]] | None = None,
        end_token: str | Sequence[str] | Sequence[int] | None = None,
        return_end_token: bool = False,
        prefix_bias_beta: float = 0,
        max_input_length: int = 1024,
        max_decoding_length: int = 256,
        min_decoding_length: int = 1,
        use_vmap: bool = False,
        return_scores: bool = False,
        return_logits_vocab: bool = False,
        return_attention: bool = False,
        return_alternatives: bool = False,
        min_alternative_expansion_prob: float = 0,
        sampling_topk: int = 1,
        sampling_topp: float = 1,
        sampling_temperature: float = 1,
        replace_unknowns: bool = False,
        callback: Callable[[GenerationStepResult], bool] | None = None,
    ) -> list[TranslationResult] | list[AsyncResult[TranslationResult]]:
        """Translates tokens; the results stand in their order."""
        _refuse(
            {
                "coverage_penalty": (coverage_penalty, 0),
                "end_token": (end_token, None),
                "prefix_bias_beta": (prefix_bias_beta, 0),
                "use_vmap": (use_vmap, False),
                "return_logits_vocab": (return_logits_vocab, False),
                "return_attention": (return_attention, False),
                "return_alternatives": (return_alternatives, False),
                "min_alternative_expansion_prob": (min_alternative_expansion_prob, 0),
                "sampling_topk": (sampling_topk, 1),
                "sampling_topp": (sampling_topp, 1),
                "sampling_temperature": (sampling_temperature, 1),
                "replace_unknowns": (replace_unknowns, False),
                "callback": (callback, None),
            }
        )
        prefixes = _prefixes(len(source), target_prefix)
        if any(prefixes) and beam_size > 1 and length_penalty != 0:
            # There, the prefix counts in lengths and not in sums: other hypotheses win.
            raise NotImplementedError(
                "beamfuse.compat.ctranslate2 has no target_prefix with a beam_size above 1 and a length_penalty other than 0"
            )
        options = {
            "preset": "ctranslate2",
            "beam_size": beam_size,
            "patience": patience,
            "n_best": num_hypotheses,
            "alpha": length_penalty,
            "repetition_penalty": repetition_penalty,
            "no_repeat_ngram": no_repeat_ngram_size,
            "max_length": max_decoding_length,
            "min_length": _least(min_decoding_length, max_decoding_length),
        }
        resolved = self._options(options, disable_unk, suppress_sequences)
        sentences = [(_cut(tokens, max_input_length), self._prefix(prefix)) for tokens, prefix in zip(source, prefixes, strict=True)]
        # Without tokens, or with no room behind the prefix, there is nothing to ask the model.
        is_asked = [bool(tokens) and len(prefix) < max_decoding_length for tokens, prefix in sentences]
        asked = [sentence for sentence, is_one in zip(sentences, is_asked) if is_one]

        def translate() -> list[TranslationResult]:
            found = self._translator._engine.translate_pieces(asked, resolved)
            spent = self._prefix_sums(asked, options, disable_unk, suppress_sequences) if return_scores else [0.0] * len(asked)
            results = zip(asked, found, spent, strict=True)
            return [
                self._result(*next(results), length_penalty, return_end_token, return_scores)
                if is_one
                else TranslationResult(
                    [prefix[:max_decoding_length]] * num_hypotheses, [0.0] * num_hypotheses if return_scores else [], [], []
                )
                for (_, prefix), is_one in zip(sentences, is_asked)
            ]

        return _later(translate, len(source)) if asynchronous else translate()

    def translate_iterable(
        self,
        source: Iterable[Sequence[str]],
        target_prefix: Iterable[Sequence[str]] | None = None,
        max_batch_size: int = 32,
        batch_type: str = "examples",
        **kwargs: Any,
    ) -> Iterator[TranslationResult]:
        """Translates tokens as they come; the results come in their order."""
        streams = [source] if target_prefix is None else [source, target_prefix]
        for batch in _batches(streams, max_batch_size):
            yield from self.translate_batch(*batch, **kwargs)  # type: ignore[misc]

    def score_batch(
        self,
        source: Sequence[Sequence[str]],
        target: Sequence[Sequence[str]],
        *,
        max_batch_size: int = 0,
        batch_type: str = "examples",
        max_input_length: int = 1024,
        offset: int = 0,
        asynchronous: bool = False,
    ) -> list[ScoringResult] | list[AsyncResult[ScoringResult]]:
        """The log-probabilities of targets under their sources."""
        _refuse({"offset": (offset, 0)})
        if len(source) != len(target):
            raise ValueError(f"expected as many targets as sources, {len(source)}, got {len(target)}")
        if any(len(tokens) > max_input_length > 0 for tokens in target):
            raise NotImplementedError("beamfuse.compat.ctranslate2 has no targets longer than max_input_length")
        pairs = [(_cut(one, max_input_length), list(other)) for one, other in zip(source, target)]

        def score() -> list[ScoringResult]:
            scored = iter(self._translator._engine.score_pieces([pair for pair in pairs if pair[0]]))
            # Without a source there is nothing to ask the model.
            silent = ([*self._known(target), self._translator._engine.special_pieces()[0]] for tokens, target in pairs if not tokens)
            return [
                ScoringResult(*next(scored)) if tokens else ScoringResult(ended := next(silent), [0.0] * len(ended))
                for tokens, _ in pairs
            ]

        return _later(score, len(source)) if asynchronous else score()

    def score_iterable(
        self,
        source: Iterable[Sequence[str]],
        target: Iterable[Sequence[str]],
        max_batch_size: int = 64,
        batch_type: str = "examples",
        **kwargs: Any,
    ) -> Iterator[ScoringResult]:
        """Scores pairs as they come."""
        for batch in _batches([source, target], max_batch_size):
            yield from self.score_batch(*batch, **kwargs)  # type: ignore[misc]

    def generate_tokens(
        self,
        source: Sequence[str],
        target_prefix: Sequence[str] | None = None,
        *,
        max_decoding_length: int = 256,
        min_decoding_length: int = 1,
        sampling_topk: int = 1,
        sampling_topp: float = 1,
        sampling_temperature: float = 1,
        return_log_prob: bool = False,
        repetition_penalty: float = 1,
        no_repeat_ngram_size: int = 0,
        disable_unk: bool = False,
        suppress_sequences: Sequence[Sequence[str]] | None = None,
        end_token: str | Sequence[str] | Sequence[int] | None = None,
        max_input_length: int = 1024,
        use_vmap: bool = False,
    ) -> Iterator[GenerationStepResult]:
        """The tokens of a greedy translation. They come once it is whole."""
        _refuse(
            {
                "sampling_topk": (sampling_topk, 1),
                "sampling_topp": (sampling_topp, 1),
                "sampling_temperature": (sampling_temperature, 1),
                "end_token": (end_token, None),
                "use_vmap": (use_vmap, False),
            }
        )
        sentence = (_cut(source, max_input_length), self._prefix(target_prefix or ()))
        if not sentence[0]:
            return
        options = {
            "preset": "ctranslate2",
            "beam_size": 1,
            "repetition_penalty": repetition_penalty,
            "no_repeat_ngram": no_repeat_ngram_size,
            # A search goes beyond its prefix.
            "max_length": max(max_decoding_length, len(sentence[1]) + 1),
            "min_length": _least(min_decoding_length, max_decoding_length),
        }
        resolved = self._options(options, disable_unk, suppress_sequences)
        [found] = self._translator._engine.rank_pieces([sentence], resolved)
        tokens, ids, log_probs = (each[:max_decoding_length] for each in found)
        for step, (token, token_id, log_prob) in enumerate(zip(tokens, ids, log_probs, strict=True)):
            told = log_prob if return_log_prob else None
            yield GenerationStepResult(step, 0, token_id, 0, token, told, None, step + 1 == len(tokens))

    def __getattr__(self, name: str) -> object:
        if name in ("load_model", "unload_model", "translate_file", "score_file", "model_is_loaded", "num_active_batches",
                    "num_queued_batches", "tensor_parallel"):  # fmt: skip
            raise NotImplementedError(f"beamfuse.compat.ctranslate2 has no {name}")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def _options(
        self, options: dict[str, Any], disable_unk: bool, suppress_sequences: Sequence[Sequence[str]] | None
    ) -> _native.Options:
        from json import dumps

        engine = self._translator._engine
        _, unknown = engine.special_ids()
        if not disable_unk and not suppress_sequences:
            return engine.options(dumps(options))
        sequences = [[self._id(token) for token in sequence] for sequence in suppress_sequences or ()]
        single = [sequence[0] for sequence in sequences if len(sequence) == 1]
        banned = [*single, *([unknown] if disable_unk else [])]
        return engine.options_with_bans(dumps(options), banned, [each for each in sequences if len(each) > 1])

    def _id(self, token: str) -> int:
        found = self._translator._engine.piece_id(token)
        if found is None:
            raise ValueError(f"option suppress_sequences: expected tokens of the vocabulary, got {token!r}")
        return found

    def _known(self, tokens: Sequence[str]) -> list[str]:
        """As the model reads them: what its vocabulary lacks is the unknown token."""
        engine = self._translator._engine
        _, unknown = engine.special_pieces()
        return [token if engine.piece_id(token) is not None else unknown for token in tokens]

    def _prefix(self, tokens: Sequence[str]) -> list[str]:
        if self._translator._engine.special_pieces()[0] in tokens:
            raise NotImplementedError("beamfuse.compat.ctranslate2 has no target_prefix with the end of sentence")
        return self._known(tokens)

    def _prefix_sums(
        self,
        sentences: Sequence[tuple[list[str], list[str]]],
        options: dict[str, Any],
        disable_unk: bool,
        suppress_sequences: Sequence[Sequence[str]] | None,
    ) -> list[float]:
        """What the search adds up over each prefix: it costs nothing there."""
        sums = [0.0] * len(sentences)
        for at, (tokens, prefix) in enumerate(sentences):
            if prefix:
                # The shortest search that goes through the prefix.
                length = max(len(prefix) + 1, options["min_length"])
                own = self._options({**options, "beam_size": 1, "n_best": 1, "max_length": length}, disable_unk, suppress_sequences)
                [(_, _, ranked)] = self._translator._engine.rank_pieces([(tokens, prefix)], own)
                sums[at] = sum(ranked[: len(prefix)])
        return sums

    def _result(
        self,
        sentence: tuple[list[str], list[str]],
        found: list[tuple[list[str], list[int], float, float]],
        spent: float,
        length_penalty: float,
        return_end_token: bool,
        return_scores: bool,
    ) -> TranslationResult:
        _, prefix = sentence
        end, _ = self._translator._engine.special_ids()
        hypotheses, scores = [], []
        for tokens, ids, score, total in found:
            if prefix:
                # What was given costs nothing there, and counts in the length.
                score = (total - spent) / len(ids) ** length_penalty
            ended = bool(ids) and ids[-1] == end
            hypotheses.append(tokens[: len(tokens) - (ended and not return_end_token)])
            scores.append(score)
        return TranslationResult(hypotheses, scores if return_scores else [], [], [])


def _least(min_decoding_length: int, max_decoding_length: int) -> int:
    """The minimum length: there the end of sentence does not count."""
    if min_decoding_length > 0 and min_decoding_length >= max_decoding_length:
        raise NotImplementedError("beamfuse.compat.ctranslate2 has no min_decoding_length of max_decoding_length or more")
    return min_decoding_length + 1 if min_decoding_length > 0 else 0


def _prefixes(count: int, given: Sequence[Sequence[str] | None] | None) -> list[list[str]]:
    if given is None:
        return [[] for _ in range(count)]
    if len(given) != count:
        raise ValueError(f"expected as many target prefixes as sources, {count}, got {len(given)}")
    return [list(prefix or ()) for prefix in given]


def _cut(tokens: Sequence[str], most: int) -> list[str]:
    """So many of a source's tokens; an end of sentence stays the last one."""
    if most <= 0 or len(tokens) <= most:
        return list(tokens)
    return [*tokens[: most - 1], tokens[-1] if tokens[-1] == "</s>" else tokens[most - 1]]


def _batches(streams: Sequence[Iterable[Sequence[str]]], size: int) -> Iterator[list[list[Sequence[str]]]]:
    from itertools import islice

    rows = zip(*streams)
    while batch := list(islice(rows, max(size, 1))):
        yield [list(column) for column in zip(*batch)]


def _later(work: Callable[[], list[_Result]], count: int) -> list[AsyncResult[_Result]]:
    from concurrent.futures import ThreadPoolExecutor

    executor = ThreadPoolExecutor(1, "beamfuse-async")
    future = executor.submit(work)
    executor.shutdown(wait=False)
    return [AsyncResult(future, at) for at in range(count)]
