"""`pipeline("translation", model)`, in the shape of the one that transformers had until version 4."""

from __future__ import annotations

import os
from collections.abc import Iterable

from .translator import Translator

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class TranslationPipeline:
    """Texts in, `[{"translation_text": ...}]` out. The search is that of the model's generation config (preset `hf`)."""

    def __init__(self, translator: Translator, src_lang: str | None, tgt_lang: str | None) -> None:
        self.translator = translator
        self._languages = src_lang, tgt_lang

    def __call__(
        self,
        texts: str | Iterable[str],
        *,
        src_lang: str | None = None,
        tgt_lang: str | None = None,
        num_beams: int | None = None,
        num_return_sequences: int | None = None,
        max_length: int | None = None,
        **options: Any,
    ) -> list[Any]:
        """Translates a text or several; options are those of `Translator.translate`, and some by generate's names.

        A text gives a list of its translations; several give one list, or, with `num_return_sequences` above 1, a list for each.
        """
        # generate counts the decoder's start token, too.
        length = None if max_length is None else max_length - 1
        renamed = {"beam_size": num_beams, "n_best": num_return_sequences, "max_length": length}
        chosen = {"preset": "hf", **{name: value for name, value in renamed.items() if value is not None}, **options}
        languages = {"source_lang": src_lang or self._languages[0], "target_lang": tgt_lang or self._languages[1]}
        own = {name: code for name, code in languages.items() if code is not None}
        several = [texts] if isinstance(texts, str) else list(texts)
        items: list[Any] = [{"source": text, **own} for text in several] if own else several
        translations = self.translator.translate(items, **chosen)
        found = [[{"translation_text": hypothesis.text} for hypothesis in of.hypotheses] for of in translations]
        if isinstance(texts, str):
            return found[0]
        return found if chosen.get("n_best", 1) > 1 else [one for each in found for one in each]


def pipeline(
    task: str,
    model: str | os.PathLike[str] | Translator | None = None,
    *,
    src_lang: str | None = None,
    tgt_lang: str | None = None,
    **arguments: Any,
) -> TranslationPipeline:
    """A pipeline for the task `translation`, or one named `translation_XX_to_YY`.

    `model` is a directory, a hub id, or a `Translator`; `arguments` are those of `Translator`. A multilingual model is told its
    languages by `src_lang` and `tgt_lang`, here or in each call, by the model's own codes.
    """
    if task != "translation" and not (task.startswith("translation_") and task.count("_to_") == 1):
        raise ValueError(f"option task: expected translation or translation_XX_to_YY, got {task!r}")
    if model is None:
        raise ValueError("option model: expected a model directory or a hub id, got none")
    translator = model if isinstance(model, Translator) else Translator(model, **arguments)
    return TranslationPipeline(translator, src_lang, tgt_lang)
