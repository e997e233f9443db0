"""Curves: losses over the epochs, and the likelihood of held-out blocks by which K and the shrinkage are chosen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from ..errors import InputError
from .colors import OKABE_ITO
from .figure import INK, new_figure, set_title

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["losses", "selection_curve", "shrinkage_curve"]


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
    """Draw the held-out likelihood against the number of domains and mark the chosen number.

    Parameters
    ----------
    table : mapping
        Columns ``n_domains`` and ``log_likelihood``, as in `amilst_lite.cluster.Selection`.
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
    k, likelihood = (np.asarray(table[name], dtype=float) for name in ("n_domains", "log_likelihood"))
    figure, axis = _likelihood_axis()
    axis.plot(k, likelihood, color=OKABE_ITO[0], marker="o", markersize=4)
    axis.axvline(chosen, color=OKABE_ITO[5], linestyle=":", label=f"chosen: {chosen}")
    axis.set_xlabel("number of domains", fontsize=9, color=INK)
    axis.set_xticks(k)
    axis.legend(frameon=False, fontsize=9)
    return figure


def shrinkage_curve(evidence: Any) -> Figure:
    """Draw how well mixtures describe held-out blocks, by how far their covariance is shrunken.

    Parameters
    ----------
    evidence : Evidence, mapping or None
        ``evidence_`` of a fitted `AMILST`, or ``adata.uns["amilst"]["shrinkage"]``.

    Returns
    -------
    matplotlib.figure.Figure
        One curve for each number of principal axes, relative to its best value; filled markers are the fits that
        were averaged.

    Raises
    ------
    InputError
        Nothing was compared: the shrinkage was given, or the clustering was not a mixture.
    MissingExtraError
        matplotlib is not installed.
    """
    values = evidence if isinstance(evidence, Mapping) else vars(evidence) if evidence is not None else {}
    shares = np.asarray(values.get("shares", ()), dtype=float)
    if len(shares) < 2:
        raise InputError(
            "expected the evidence of a run that chose its shrinkage; found none. Run with method='gmm' and "
            "without the setting shrinkage."
        )
    figure, axis = _likelihood_axis()
    for color, width, likelihood, weights in zip(
        OKABE_ITO,
        np.asarray(values["columns"]),
        np.asarray(values["log_likelihood"]),
        np.asarray(values["weights"]),
        strict=False,
    ):
        relative = likelihood - np.nanmax(likelihood)
        axis.plot(shares, relative, color=color, linewidth=1.2, label=f"{width} principal axes")
        used = weights > 0
        axis.plot(shares[used], relative[used], "o", color=color, markersize=5)
        axis.plot(shares[~used], relative[~used], "o", color=color, markersize=4, fillstyle="none")
    axis.set_xscale("log")
    axis.set_ylim(bottom=-10)
    axis.set_xlabel("share of the spherical covariance", fontsize=9, color=INK)
    axis.legend(frameon=False, fontsize=8)
    return figure


def _likelihood_axis() -> tuple[Figure, Any]:
    figure = new_figure(5.0, 3.2)
    axis = figure.subplots()
    axis.set_ylabel("log-likelihood of a held-out spot", fontsize=9, color=INK)
    axis.spines[["top", "right"]].set_visible(False)
    return figure, axis
