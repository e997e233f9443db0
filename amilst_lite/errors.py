"""Everything amilst_lite raises or warns about.

The tree::

    AmilstError
    ├── InputError (ValueError)              what was handed in cannot be used
    ├── MissingKeyError (KeyError)           a column, layer or matrix is not there
    ├── MissingExtraError (ImportError)      an optional package is not installed
    ├── NotFittedError (sklearn's)           used before ``fit``
    ├── InsufficientMemoryError (MemoryError) what is asked for cannot fit
    └── TrainingDivergedError (RuntimeError) a loss stopped being a finite number

    AmilstWarning (UserWarning)              usable, but probably not what was meant

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
    """Root of every exception that amilst_lite raises on purpose."""


class InputError(AmilstError, ValueError):
    """The input cannot be used as it is."""


class InsufficientMemoryError(AmilstError, MemoryError):
    """The machine is too small for what is asked of it; the message says what would fit."""


class MissingKeyError(AmilstError, KeyError):
    """A named column, layer or matrix is missing."""

    # KeyError shows the repr of its argument: a sentence would come out in quotes.
    __str__ = Exception.__str__


class MissingExtraError(AmilstError, ImportError):
    """An optional package is needed; the message names the extra that brings it."""

    @classmethod
    def for_package(cls, package: str, extra: str, purpose: str) -> MissingExtraError:
        """Word the error: ``purpose`` needs ``package``, which ``extra`` installs."""
        return cls(
            f"{purpose} needs the package {package!r}, which is not installed. "
            f'Install it with: pip install "amilst-lite[{extra}]"'
        )


class NotFittedError(AmilstError, _SklearnNotFittedError):
    """An estimator was used before ``fit``."""


class TrainingDivergedError(AmilstError, RuntimeError):
    """A term of the objective is no longer finite; the message names it and its epoch."""


class AmilstWarning(UserWarning):
    """The input is usable, but probably not what was meant."""
