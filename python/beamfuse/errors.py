"""Exceptions. All are `Error`; each is also the built-in exception that a caller without knowledge of this package would catch."""

from __future__ import annotations


class Error(Exception):
    """What went wrong: the text of the library, unchanged, and `kind`, its short stable name, as in JSON lines."""

    kind: str

    def __init__(self, message: str, kind: str = "error") -> None:
        super().__init__(message)
        self.kind = kind

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (str(self), self.kind)


class RequestError(Error, ValueError):
    """What was asked for cannot be done: options, languages, sentences that are too long or malformed."""


class ModelError(Error, ValueError):
    """A file of a model is not what it should be."""


class CapacityError(Error, MemoryError):
    """There was no room."""


class FileError(Error, OSError):
    """A file, a stream or a hub failed. `errno` is the operating system's, where it said one."""

    def __init__(self, message: str, kind: str = "io", errno: int | None = None) -> None:
        super().__init__(message, kind)
        self.errno = errno

    def __str__(self) -> str:
        return str(self.args[0])

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (str(self), self.kind, self.errno)


_CLASSES: dict[str, type[Error]] = {
    **dict.fromkeys(
        ["option", "conflict", "input", "input_too_long", "unmet_constraint", "shape", "utf8", "not_built", "closed"], RequestError
    ),
    **dict.fromkeys(["json", "config", "safetensors", "pytorch", "tensor", "tokenizer", "lfs_pointer"], ModelError),
    "out_of_memory": CapacityError,
    **dict.fromkeys(["io", "hub", "no_model"], FileError),
}


def _make(kind: str, message: str, errno: int | None) -> Error:
    """The exception for an error of the library."""
    found = _CLASSES.get(kind, Error)
    if issubclass(found, FileError):
        return found(message, kind, errno)
    return found(message, kind)
