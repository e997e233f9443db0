"""What the scores share: labels of spots as codes, and silhouettes."""

from __future__ import annotations

import numpy as np
import pandas as pd
import sklearn
from numpy.typing import ArrayLike
from sklearn import metrics as _sklearn

from ..errors import InputError

__all__ = ["codes_of", "codes_of_both", "silhouettes"]


def codes_of(values: ArrayLike) -> np.ndarray:
    """Codes 0, 1, ... of the distinct labels, -1 where missing (None, NaN, ""); (n,), int64."""
    dtype = getattr(values, "dtype", None)
    if isinstance(dtype, pd.CategoricalDtype):  # nothing to look up: of millions of strings it takes seconds
        column = pd.Series(values)
        named = [not (isinstance(level, str) and not level.strip()) for level in dtype.categories]
        renumbered = np.where(named, np.arange(len(named)), -1)
        return np.append(renumbered, -1)[column.cat.codes.to_numpy()].astype(np.int64)
    array: np.ndarray = np.asarray(values)
    if array.ndim != 1:
        raise InputError(f"Labels must be one-dimensional, one per spot; found shape {array.shape}.")
    codes, levels = pd.factorize(array)
    empty = np.flatnonzero([isinstance(level, str) and not level.strip() for level in levels])
    return np.where(np.isin(codes, empty), -1, codes).astype(np.int64)


def codes_of_both(truth: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """The codes of the spots that have both labels."""
    first, second = codes_of(truth), codes_of(labels)
    if len(first) != len(second):
        raise InputError(
            f"truth and labels must describe the same spots; found {len(first)} and {len(second)}."
        )
    both = (first >= 0) & (second >= 0)
    if both.sum() < 2:
        raise InputError(
            f"Agreement needs at least 2 spots with both labels; found {int(both.sum())} of {len(both)}. "
            "Check that the annotation belongs to this section and has the same spot names."
        )
    return first[both], second[both]


def silhouettes(codes: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The silhouette of each spot, (n,), with Euclidean distances; for at least two codes and fewer than spots."""
    with sklearn.config_context(working_memory=64):  # MiB of distances in memory at a time
        widths: np.ndarray = _sklearn.silhouette_samples(points, codes)
    return widths
