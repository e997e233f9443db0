"""Curves: losses over the epochs, stability against the number of domains."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from ..errors import InputError
from .colors import OKABE_ITO
from .figure import INK, new_figure, set_title

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["losses", "selection_curve"]


def losses(history: Mapping[str, ArrayLike]) -> Figure:
    """Draw every term of the objective over the epochs, each in a panel with its own scale.

    Parameters
    ----------
    history : mapping of str to sequence of float
        One value per epoch for each term; NaN where a term was not in use. ``"epoch"``, if present, holds the
        numbers of the epochs; otherwise they count from 1.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    InputError
        No term has a finite value.
    MissingExtraError
        matplotlib is not installed.
    """
    curves = {name: np.asarray(values, dtype=np.float64).ravel() for name, values in history.items()}
    numbers = curves.pop("epoch", None)
    curves = {name: values for name, values in curves.items() if np.isfinite(values).any()}
    if not curves:
        raise InputError(
            "history must hold at least one finite loss; found none. Pass history_ of a fitted AMILST."
        )
    longest = max(map(len, curves.values()))
    epochs = numbers if numbers is not None and len(numbers) >= longest else np.arange(1, longest + 1)
    n_columns = min(4, len(curves))
    n_rows = math.ceil(len(curves) / n_columns)
    figure = new_figure(0.4 + 2.6 * n_columns, 0.3 + 1.9 * n_rows)
    axes = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
    for axis, (name, values) in zip(axes, curves.items(), strict=False):
        axis.plot(epochs[: len(values)], values, color=OKABE_ITO[0], linewidth=1.2)
        set_title(axis, name.replace("_", " "), size=9)
        axis.tick_params(labelsize=7, colors=INK, length=2)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_xlim(0, 1.02 * max(epochs.max(), 1))
        axis.locator_params(nbins=4)
        axis.yaxis.set_major_formatter("{x:.3g}")
    for axis in axes[len(curves) :]:
        axis.set_visible(False)
    figure.supxlabel("epoch", fontsize=9, color=INK)
    return figure


def selection_curve(table: Mapping[str, ArrayLike], chosen: int) -> Figure:
    """Draw the stability of the labels against the number of domains and mark the chosen number.

    Parameters
    ----------
    table : mapping
        Columns ``n_domains``, ``stability`` and ``stability_error``, as in
        `amilst_lite.cluster.Selection`.
    chosen : int
        The number of domains chosen.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    MissingExtraError
        matplotlib is not installed.
    """
    k, stability, error = (
        np.asarray(table[name], dtype=float) for name in ("n_domains", "stability", "stability_error")
    )
    figure = new_figure(5.0, 3.2)
    axis = figure.subplots()
    axis.errorbar(k, stability, yerr=error, color=OKABE_ITO[0], marker="o", markersize=4, capsize=2)
    axis.axvline(chosen, color=OKABE_ITO[5], linestyle=":", label=f"chosen: {chosen}")
    axis.set_xlabel("number of domains", fontsize=9, color=INK)
    axis.set_ylabel("stability (adjusted mutual information)", fontsize=9, color=INK)
    axis.set_xticks(k)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=9)
    return figure
