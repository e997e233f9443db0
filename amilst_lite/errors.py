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
"""

from __future__ import annotations

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
]


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
