"""Curves: losses over the epochs, and the likelihood of held-out blocks by which K and the shrinkage are chosen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from .. import keys
from ..errors import InputError
from .colors import COLORS
from .figure import INK, QUIET_INK, SIZE, new_figure, set_title
from .slots import is_anndata, record_of

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.figure import Figure

__all__ = ["losses", "selection_curve", "shrinkage_curve"]

_LOWEST = -10.0  # worse fits are cut off, so that those near the best can be told apart
_BETTER = {
    "reconstruction": "lower is better",
    "links": "lower is better",
    "kl": "lower: closer to the prior",
    "network": "the sum: lower is better",
    "clustering": "lower is better",
    "mutual_information": "higher is better",
    "adversarial": "the network lowers it",
    "discriminator": "the discriminator lowers it",
    "generator": "the generator lowers it",
    "prior": "the discriminator lowers it",
}
"""Term of the objective → which way is good. Adversaries have no better or worse: one's gain is another's loss."""


def losses(history: AnnData | Mapping[str, ArrayLike], *, key_added: str = keys.DEFAULT_KEY) -> Figure:
    """Draw every term of the objective over the epochs, each in a panel with its own scale.

    A caption below the name of a term says which way is good.

    Parameters
    ----------
    history : AnnData or mapping of str to sequence of float
        With the results of a run; or ``history_`` of a fitted `AMILST`: one value per epoch for each term, NaN where
        a term was not in use. ``"epoch"``, if present, holds the numbers of the epochs; otherwise they count from 1.
    key_added : str
        As in `identify_domains`, for an AnnData.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    InputError
        No term has a finite value, as after a run without training.
    MissingKeyError
        The AnnData has no results.
    MissingExtraError
        matplotlib is not installed.
    """
    history = record_of(history, key_added).get("losses", {}) if is_anndata(history) else history
    curves = {name: np.asarray(values, dtype=np.float64).ravel() for name, values in history.items()}
    numbers = curves.pop("epoch", None)
    curves = {name: values for name, values in curves.items() if np.isfinite(values).any()}
    if not curves:
        raise InputError(
            "history must hold at least one finite loss; found none. Pass history_ of a fitted AMILST, or the AnnData "
            "of a run that trained networks."
        )
    longest = max(map(len, curves.values()))
    epochs = numbers if numbers is not None and len(numbers) >= longest else np.arange(1, longest + 1)
    n_columns = min(4, len(curves))
    n_rows = math.ceil(len(curves) / n_columns)
    figure = new_figure(0.3 + 1.7 * n_columns, 0.3 + 1.55 * n_rows)
    axes = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
    for axis, (name, values) in zip(axes, curves.items(), strict=False):
        axis.plot(epochs[: len(values)], values, color=COLORS[0], linewidth=1.2)
        set_title(axis, "KL divergence" if name == "kl" else name.replace("_", " "), size=SIZE, pad=14)
        axis.annotate(
            _BETTER.get(name, ""), (0, 1), xycoords="axes fraction", xytext=(0, 4), textcoords="offset points",
            fontsize=SIZE - 1.5, color=QUIET_INK,
        )  # fmt: skip
        axis.tick_params(labelsize=SIZE - 1, colors=INK, length=2)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_xlim(0, 1.02 * max(epochs.max(), 1))
        axis.locator_params(nbins=4)
        axis.yaxis.set_major_formatter("{x:.3g}")
    for axis in axes[len(curves) :]:
        axis.set_visible(False)
    figure.supxlabel("epoch", fontsize=SIZE, color=INK)
    return figure


def selection_curve(
    table: AnnData | Mapping[str, ArrayLike], chosen: int | None = None, *, key_added: str = keys.DEFAULT_KEY
) -> Figure:
    """Draw the held-out likelihood against the number of domains and mark the chosen number.

    Parameters
    ----------
    table : AnnData or mapping
        With the results of a run that chose the number of domains; or columns ``n_domains`` and ``log_likelihood``,
        as in `amilst_lite.cluster.Selection`.
    chosen : int, optional
        The number of domains chosen. Default: that of the run.
    key_added : str
        As in `identify_domains`, for an AnnData.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    MissingKeyError
        The AnnData has no results.
    InputError
        The number of domains was given, so that none were compared; or ``chosen`` is missing for a mapping.
    MissingExtraError
        matplotlib is not installed.
    """
    if is_anndata(table):
        record = record_of(table, key_added)
        table, chosen = record.get("selection", {}), record.get("n_domains") if chosen is None else chosen
    if "n_domains" not in table or chosen is None:
        raise InputError(
            "expected the table of a run that chose the number of domains, and the number chosen; found none. Run "
            "without n_domains."
        )
    k, likelihood = (np.asarray(table[name], dtype=float) for name in ("n_domains", "log_likelihood"))
    figure, axis = _likelihood_axis("log-likelihood of a held-out spot\n(higher is better)")
    axis.plot(k, likelihood, color=COLORS[0], marker="o", markersize=4, linewidth=1.2)
    better = not np.isin(chosen, k[likelihood == likelihood.max()])
    reason = ", the smallest number\nalmost as good as the best" if better else ""
    axis.axvline(chosen, color=COLORS[3], linestyle=":", label=f"chosen: {chosen}{reason}")
    axis.set_xlabel("number of domains", fontsize=SIZE, color=INK)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend(frameon=False, fontsize=SIZE, labelcolor=INK)
    return figure


def shrinkage_curve(evidence: Any, *, key_added: str = keys.DEFAULT_KEY) -> Figure:
    """Draw how well mixtures describe held-out blocks, by how far their covariance is shrunken.

    Parameters
    ----------
    evidence : AnnData, Evidence, mapping or None
        With the results of a run; ``evidence_`` of a fitted `AMILST`; or ``adata.uns["amilst"]["shrinkage"]``.
    key_added : str
        As in `identify_domains`, for an AnnData.

    Returns
    -------
    matplotlib.figure.Figure
        One curve for each number of principal axes, relative to its best value; filled markers are the fits that
        were averaged.

    Raises
    ------
    InputError
        Nothing was compared: the shrinkage was given, or the clustering was not a mixture.
    MissingKeyError
        The AnnData has no results.
    MissingExtraError
        matplotlib is not installed.
    """
    if is_anndata(evidence):
        evidence = record_of(evidence, key_added).get("shrinkage")
    values = evidence if isinstance(evidence, Mapping) else vars(evidence) if evidence is not None else {}
    shares = np.asarray(values.get("shares", ()), dtype=float)
    if len(shares) < 2:
        raise InputError(
            "expected the evidence of a run that chose its shrinkage; found none. Run with method='gmm' and "
            "without the setting shrinkage."
        )
    figure, axis = _likelihood_axis(
        "log-likelihood of a held-out spot,\nrelative to the best (higher is better)"
    )
    from matplotlib.lines import Line2D

    lowest = 0.0
    for color, width, likelihood, weights in zip(
        COLORS,
        np.asarray(values["columns"]),
        np.asarray(values["log_likelihood"]),
        np.asarray(values["weights"]),
        strict=False,
    ):
        relative = likelihood - np.nanmax(likelihood)
        lowest = min(lowest, float(np.nanmin(relative)))
        axis.plot(shares, relative, color=color, linewidth=1.2, label=f"{width} principal axes")
        used = weights > 0
        axis.plot(shares[used], relative[used], "o", color=color, markersize=5)
        axis.plot(shares[~used], relative[~used], "o", color=color, markersize=4, fillstyle="none")
    axis.set_xscale("log")
    lowest = max(1.05 * lowest, _LOWEST) or -1.0
    axis.set_ylim(lowest, -0.05 * lowest)
    axis.set_xlabel("share of the spherical covariance", fontsize=SIZE, color=INK)
    marker: dict[str, Any] = {"linestyle": "", "marker": "o", "color": QUIET_INK}
    handles = [
        *axis.get_legend_handles_labels()[0],
        Line2D([], [], markersize=5, label="averaged", **marker),
        Line2D([], [], markersize=4, fillstyle="none", label="not used", **marker),
    ]
    axis.legend(handles=handles, frameon=False, fontsize=SIZE, labelcolor=INK)
    return figure


def _likelihood_axis(label: str) -> tuple[Figure, Any]:
    figure = new_figure(4.2, 2.8)
    axis = figure.subplots()
    axis.set_ylabel(label, fontsize=SIZE, color=INK)
    axis.tick_params(labelsize=SIZE - 1, colors=INK, length=2)
    axis.spines[["top", "right"]].set_visible(False)
    return figure, axis
