"""What k-means and the mixture share: checks at the door, blocks of rows, a common working scale."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from numbers import Integral, Real
from typing import Any, TypeVar

import numpy as np
import torch

from ..errors import InputError, NotFittedError
from ..runtime import threads_for

try:  # scikit-learn >= 1.6
    from sklearn.utils.validation import validate_data
except ImportError:  # pragma: no cover - the same check, where older versions keep it

    def validate_data(estimator: Any, X: Any, **options: Any) -> Any:
        """Check ``X`` and the names and number of its columns."""
        return estimator._validate_data(X, **options)


T = TypeVar("T")

CPU = torch.device("cpu")
_CPU_BLOCK, _DEVICE_BLOCK = 1 << 19, 1 << 25
"""Entries of the largest temporary in a blocked product: on a CPU 2 MiB of float32, which stay in its cache."""


def check_matrix(estimator: Any, X: Any, *, reset: bool) -> torch.Tensor:
    """Check a matrix of observations and return it as a tensor, shared where that is possible.

    Parameters
    ----------
    estimator : object
        Learns ``n_features_in_`` (and ``feature_names_in_``) when ``reset``, else is compared with them.
    X : array-like or torch.Tensor of shape (n_samples, n_features)
        Finite real numbers.
    reset : bool
        True in ``fit``.

    Returns
    -------
    torch.Tensor of shape (n_samples, n_features), float32 or float64
        On the CPU for arrays, on its own device for a tensor.

    Raises
    ------
    InputError
        NaN, infinity, no rows or columns, not two-dimensional, or another number of columns than in ``fit``.
    """
    if isinstance(X, torch.Tensor):
        return _check_tensor(estimator, X.detach(), reset=reset)
    try:
        array = validate_data(
            estimator, X, reset=reset, dtype=[np.float32, np.float64], order="C", accept_sparse=False
        )
    except ValueError as error:
        raise InputError(str(error)) from error
    # torch cannot mark a tensor read-only: a read-only map of a file is copied instead of shared
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _check_tensor(estimator: Any, X: torch.Tensor, *, reset: bool) -> torch.Tensor:
    if X.dtype not in (torch.float32, torch.float64):
        X = X.to(torch.float32)
    if X.ndim != 2 or 0 in X.shape:
        raise InputError(
            f"Expected a 2D tensor with at least one row and one column; found {tuple(X.shape)}."
        )
    if not bool(torch.isfinite(X).all()):
        raise InputError("Input contains NaN or infinity. Remove or fill these entries first.")
    if reset:
        estimator.n_features_in_ = X.shape[1]
        if hasattr(estimator, "feature_names_in_"):
            del estimator.feature_names_in_
    elif X.shape[1] != estimator.n_features_in_:
        raise InputError(
            f"X has {X.shape[1]} features, but {type(estimator).__name__} is expecting "
            f"{estimator.n_features_in_} features as input."
        )
    return X.contiguous()


def check_number(name: str, value: Any, low: float, *, integer: bool = False, strict: bool = False) -> None:
    """Check that a parameter is a number at or (``strict``) above ``low``; raise `InputError` otherwise."""
    number = isinstance(value, Integral if integer else Real) and not isinstance(value, bool)
    if not number or not (float(value) > low if strict else float(value) >= low):
        what = "an integer" if integer else "a number"
        raise InputError(f"{name} must be {what} {'>' if strict else '>='} {low:g}; found {value!r}.")


def check_fitted(estimator: Any, attribute: str) -> None:
    """Raise `NotFittedError` unless ``fit`` has left ``attribute``."""
    if not hasattr(estimator, attribute):
        name = type(estimator).__name__
        raise NotFittedError(f"This {name} instance is not fitted yet. Call 'fit' first.")


def base_seed(random_state: int | None) -> int:
    """The seed of a fit: ``random_state``, or fresh entropy of the operating system for None."""
    if random_state is None:
        return int(np.random.SeedSequence().generate_state(1)[0])
    if not isinstance(random_state, Integral) or isinstance(random_state, bool) or random_state < 0:
        raise InputError(f"random_state must be None or an integer >= 0; found {random_state!r}.")
    return int(random_state)


def wide_float(device: torch.device) -> torch.dtype:
    """The widest float of ``device``: float64, but float32 on Apple's mps, which has no other."""
    return torch.float32 if device.type == "mps" else torch.float64


_POOL: ContextVar[ThreadPoolExecutor | None] = ContextVar("amilst_lite_block_threads", default=None)


@contextmanager
def block_threads() -> Iterator[None]:
    """Within: as many blocks are worked on at a time as torch has threads, each by one thread.

    Torch's own way, several threads inside every operation, makes them wait for each other dozens of times
    a millisecond: where other programs hold a core, a hundred times slower was measured. The sums do not
    depend on the number of threads either.
    """
    workers = torch.get_num_threads()
    with threads_for(0):
        if workers == 1:
            yield
            return
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            token = _POOL.set(pool)
            try:
                yield
            finally:
                _POOL.reset(token)


def over_blocks(
    function: Callable[[slice], T], n_rows: int, width: int, device: torch.device = CPU
) -> Iterator[T]:
    """``function`` of slices over ``n_rows``, in order.

    A block of ``width`` columns is as large as serves ``device`` best. Within `block_threads`, blocks on a
    CPU are worked on side by side.
    """
    step = max(256, (_CPU_BLOCK if device.type == "cpu" else _DEVICE_BLOCK) // max(width, 1))
    blocks = [slice(start, min(start + step, n_rows)) for start in range(0, n_rows, step)]
    pool = _POOL.get()
    if pool is None or len(blocks) == 1 or device.type != "cpu":
        return map(function, blocks)
    return pool.map(function, blocks)


def sum_over_blocks(
    function: Callable[[slice], tuple[torch.Tensor, ...]], n_rows: int, width: int, device: torch.device = CPU
) -> tuple[torch.Tensor, ...]:
    """Sums of what ``function`` returns for `over_blocks`, in the widest float."""
    totals: tuple[torch.Tensor, ...] = ()
    for parts in over_blocks(function, n_rows, width, device):
        if not totals:
            totals = tuple(part.to(wide_float(device), copy=True) for part in parts)
        else:
            for total, part in zip(totals, parts, strict=True):
                total += part
    return totals


def column_moments(X: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance (ddof 0) of the columns of (n, d) ``X``, in the widest float; each (d,)."""
    n, d = X.shape
    wide = wide_float(X.device)
    mean = sum_over_blocks(lambda rows: (X[rows].to(wide).sum(0),), n, d, X.device)[0] / n
    squares = sum_over_blocks(lambda rows: ((X[rows].to(wide) - mean).square().sum(0),), n, d, X.device)[0]
    return mean, squares / n


def scatter(X: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Sum over the rows of (x − shift)(x − shift)ᵀ: (d, d) in the widest float."""
    wide = wide_float(X.device)
    shift = shift.to(X.device, wide)

    def products(rows: slice) -> tuple[torch.Tensor]:
        centred = X[rows].to(wide) - shift
        return (centred.T @ centred,)

    return sum_over_blocks(products, len(X), X.shape[1], X.device)[0]


def affine(X: torch.Tensor, shift: torch.Tensor, matrix: torch.Tensor, out: torch.Tensor) -> None:
    """Write ``(X − shift) @ matrix`` (n, d') into ``out``, computed block by block in the widest float.

    The shift is taken off before anything is rounded to float32, so that data far from the origin keep
    their digits. ``out`` may be on another device than ``X``.
    """
    wide = wide_float(X.device)
    shift, matrix = shift.to(X.device, wide), matrix.to(X.device, wide)

    def write(rows: slice) -> None:
        out[rows] = ((X[rows].to(wide) - shift) @ matrix).to(out.device, out.dtype)

    for _ in over_blocks(write, len(X), X.shape[1], X.device):
        pass
