"""Exceptions and warnings of amilst_lite.

The tree::

    AmilstError
    ├── InputError (ValueError)              the input cannot be used
    ├── MissingKeyError (KeyError)           a column, layer or matrix is missing
    ├── MissingExtraError (ImportError)      an optional package is not installed
    ├── NotFittedError (sklearn's)           used before ``fit``
    ├── InsufficientMemoryError (MemoryError) the run exceeds the available memory
    └── TrainingDivergedError (RuntimeError) a loss is no longer finite

    AmilstWarning (UserWarning)              the input is usable, but probably not as intended

Each message says what was expected, what was found and what to do next.

Warnings are issued by `warn` and recorded by `recorded_warnings`. Both work in several threads at once, other than
``warnings.catch_warnings``, which exchanges the filters of the whole process.
"""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from sklearn.exceptions import NotFittedError as _SklearnNotFittedError

__all__ = [
    "AmilstError",
    "AmilstWarning",
    "InputError",
    "InsufficientMemoryError",
    "MissingExtraError",
    "MissingKeyError",
    "NotFittedError",
    "TrainingDivergedError",
    "muted_warnings",
    "recorded_warnings",
    "warn",
]

_OURS = (os.path.join(os.path.dirname(os.path.abspath(__file__)), ""), contextlib.__file__)
_listeners: ContextVar[tuple[list[str], ...]] = ContextVar("amilst_lite_listeners", default=())
_muted: ContextVar[bool] = ContextVar("amilst_lite_muted", default=False)


class AmilstError(Exception):
    """Base class of the exceptions raised by amilst_lite."""


class InputError(AmilstError, ValueError):
    """The input cannot be used as it is."""


class InsufficientMemoryError(AmilstError, MemoryError):
    """Estimated memory exceeds available memory; the message says how to reduce it."""


class MissingKeyError(AmilstError, KeyError):
    """A named column, layer or matrix is missing."""

    # KeyError shows the repr of its argument, which puts a sentence in quotes
    __str__ = Exception.__str__


class MissingExtraError(AmilstError, ImportError):
    """An optional package is missing; the message names the extra that installs it."""

    @classmethod
    def for_package(cls, package: str, extra: str, purpose: str) -> MissingExtraError:
        """The error for ``purpose``, which needs ``package``, which ``extra`` installs."""
        return cls(
            f"{purpose} needs the package {package!r}, which is not installed. "
            f'Install it with: pip install "amilst-lite[{extra}]"'
        )


class NotFittedError(AmilstError, _SklearnNotFittedError):
    """An estimator was used before ``fit``."""


class TrainingDivergedError(AmilstError, RuntimeError):
    """A term of the objective is no longer finite; the message names it and its epoch."""


class AmilstWarning(UserWarning):
    """The input is usable, but probably not as intended."""


def warn(message: str) -> None:
    """Issue an `AmilstWarning` at the line outside of the package from which it was called.

    It is shown every time, not once for each line: every run has its own warnings. The filters of the caller decide
    as usual whether it is shown, ignored or raised.

    Parameters
    ----------
    message : str
    """
    if _muted.get():
        return
    for texts in _listeners.get():
        texts.append(" ".join(message.split()))
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_OURS):
        frame = frame.f_back
    warnings.warn_explicit(
        message,
        AmilstWarning,
        frame.f_code.co_filename,
        frame.f_lineno,
        module=frame.f_globals.get("__name__"),
    )


@contextmanager
def recorded_warnings() -> Iterator[list[str]]:
    """Collect the texts of what `warn` issues in the body, in this thread; they are shown as usual."""
    texts: list[str] = []
    token = _listeners.set((*_listeners.get(), texts))
    try:
        yield texts
    finally:
        _listeners.reset(token)


@contextmanager
def muted_warnings() -> Iterator[None]:
    """Within, in this thread: `warn` does nothing."""
    token = _muted.set(True)
    try:
        yield
    finally:
        _muted.reset(token)
