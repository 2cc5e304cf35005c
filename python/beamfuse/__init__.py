"""Translate with sequence-to-sequence models: the same sentence gives the same tokens and scores in any batch.

>>> import beamfuse
>>> beamfuse.Translator("models/m30k-en-de").translate(["A dog runs."])[0].text
'Ein Hund rennt.'
"""

from __future__ import annotations

from ._native import Hypothesis, Score, Translation, __version__
from .errors import CapacityError, Error, FileError, ModelError, RequestError
from .pipelines import pipeline
from .translator import Translator

__all__ = [
    "CapacityError",
    "Error",
    "FileError",
    "Hypothesis",
    "ModelError",
    "RequestError",
    "Score",
    "Translation",
    "Translator",
    "__version__",
    "diagnose",
    "evaluate",
    "pipeline",
    "train",
]


def __getattr__(name: str) -> object:
    # What few need is imported when it is asked for.
    if name in ("diagnose", "evaluate", "train"):
        from . import tools

        return getattr(tools, name)
    raise AttributeError(f"module 'beamfuse' has no attribute {name!r}")
