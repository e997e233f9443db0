"""Checks of arguments and input that the estimators of `preprocess` and `cluster` share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from numbers import Integral, Real
from typing import Any

import numpy as np
import sklearn.utils.validation as sklearn_validation
import torch

from .errors import InputError, NotFittedError

__all__ = [
    "check_array",
    "check_fitted",
    "check_model_arrays",
    "check_number",
    "check_random_state",
    "check_tensor",
]


def check_array(X: Any, estimator: Any = None, *, reset: bool = False, **options: Any) -> Any:
    """Check a matrix of observations and return it as a numpy array or a scipy sparse matrix.

    Parameters
    ----------
    X : array-like, sparse matrix or torch.Tensor of shape (n_samples, n_features)
        Finite real numbers. A tensor is copied from its device.
    estimator : object, optional
        Its ``n_features_in_`` and ``feature_names_in_`` are set if ``reset``, compared with X otherwise.
    reset : bool
        True in ``fit``.
    **options
        Passed to `sklearn.utils.validation.check_array`.

    Returns
    -------
    ndarray or sparse matrix of shape (n_samples, n_features), float32 or float64
        Other dtypes are converted to float64. Shares memory with ``X`` where possible.

    Raises
    ------
    InputError
        NaN, infinity, no rows or columns, not two-dimensional, or another number of columns than in ``fit``.
    """
    if isinstance(X, torch.Tensor):
        X = _float_tensor(X).cpu().numpy()
    if estimator is None:
        check = sklearn_validation.check_array
    else:
        check = partial(sklearn_validation.validate_data, estimator, reset=reset)
    try:
        return check(X, dtype=[np.float64, np.float32], **options)
    except ValueError as error:
        raise InputError(str(error)) from error


def check_tensor(X: Any, estimator: Any, *, reset: bool) -> torch.Tensor:
    """Check a dense matrix of observations and return it as a tensor; see `check_array`.

    Returns
    -------
    torch.Tensor of shape (n_samples, n_features), float32 or float64
        Contiguous; on the CPU for arrays, on its own device for a tensor.
    """
    if not isinstance(X, torch.Tensor):
        array = check_array(X, estimator, reset=reset, order="C")
        # torch has no read-only tensors: a read-only array, such as a memory map, is copied
        return torch.from_numpy(array if array.flags.writeable else array.copy())
    X = _float_tensor(X)
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


def _float_tensor(X: torch.Tensor) -> torch.Tensor:
    X = X.detach()
    return X if X.dtype in (torch.float32, torch.float64) else X.to(torch.float64)


def check_number(name: str, value: Any, low: float, *, integer: bool = False, strict: bool = False) -> None:
    """Raise `InputError` unless ``value`` is a finite number >= ``low`` (``strict``: > ``low``)."""
    number = isinstance(value, Integral if integer else Real) and not isinstance(value, bool | np.bool_)
    if not number or not math.isfinite(value) or not (value > low if strict else value >= low):
        what = "an integer" if integer else "a finite number"
        raise InputError(f"{name} must be {what} {'>' if strict else '>='} {low:g}; found {value!r}.")


def check_fitted(estimator: Any, attribute: str) -> None:
    """Raise `NotFittedError` unless ``fit`` has set ``attribute``."""
    if not hasattr(estimator, attribute):
        name = type(estimator).__name__
        raise NotFittedError(f"This {name} instance is not fitted yet. Call 'fit' first.")


def check_random_state(random_state: Any) -> int:
    """The seed of a fit: ``random_state``, or a new one from the operating system for None.

    Raises
    ------
    InputError
        Neither None nor an integer >= 0 and < 2**32.
    """
    if random_state is None:
        return int(np.random.SeedSequence().generate_state(1)[0])
    integer = isinstance(random_state, Integral) and not isinstance(random_state, bool | np.bool_)
    if not integer or not 0 <= random_state < 2**32:
        raise InputError(f"random_state must be None or an integer >= 0 and < 2**32; found {random_state!r}.")
    return int(random_state)


def check_model_arrays(
    arrays: Mapping[str, Any], shapes: Mapping[str, str], owner: str, *, integers: tuple[str, ...] = ()
) -> dict[str, int]:
    """Check the arrays of a part of a saved model, which may come from a file that somebody else has written.

    Parameters
    ----------
    arrays : mapping of str to ndarray
    shapes : mapping of str to str
        The names expected, and for each the names of its dimensions, separated by spaces, such as ``"K C"``;
        ``""`` for a number. Dimensions of one name have one length.
    owner : str
        The part, for the messages.
    integers : tuple of str
        The arrays of integers; the others are float32 or float64 and finite.

    Returns
    -------
    dict of str to int
        The lengths, each at least one, by the names of the dimensions.

    Raises
    ------
    InputError
        Other names, numbers of dimensions, lengths or dtypes; entries that are not finite.
    """

    def refuse(expected: str, found: str) -> InputError:
        return InputError(f"{owner} of the model must have {expected}; found {found}. Save the model again.")

    if set(arrays) != set(shapes):
        raise refuse(f"the arrays {', '.join(sorted(shapes))}", ", ".join(sorted(arrays)) or "none")
    lengths: dict[str, int] = {}
    for name, shape in shapes.items():
        array, dimensions = arrays[name], shape.split()
        if not isinstance(array, np.ndarray | np.generic) or array.ndim != len(dimensions):
            found = type(array).__name__ if not hasattr(array, "shape") else f"shape {array.shape}"
            raise refuse(f"{name!r} as an array of {len(dimensions)} dimensions", found)
        if name in integers:
            if array.dtype.kind not in "iu":
                raise refuse(f"integers in {name!r}", str(array.dtype))
        elif array.dtype not in (np.float32, np.float64):
            raise refuse(f"float32 or float64 in {name!r}", str(array.dtype))
        elif not np.isfinite(array).all():
            raise refuse(f"finite numbers in {name!r}", "NaN or infinity")
        for dimension, length in zip(dimensions, array.shape, strict=True):
            if length < 1 or lengths.setdefault(dimension, length) != length:
                raise refuse(f"one length {dimension} >= 1 in all arrays", f"{name!r} of shape {array.shape}")
    return lengths
