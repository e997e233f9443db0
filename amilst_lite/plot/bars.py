"""Composition of sections: the share of each domain."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .. import keys
from .colors import MISSING, Labels, sections_of, stored_colors
from .figure import (
    INK,
    QUIET_INK,
    SIZE,
    as_written,
    left_out,
    legend_below,
    literal,
    new_figure,
    require_matplotlib,
    text_inches,
)
from .slots import obs_column, recorded_sections

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.figure import Figure

__all__ = ["composition"]

# Inches: length of the bars, distance from bar to bar, height of all bars
_LENGTH = 4.2
_THINNEST, _THICKEST = 0.12, 0.28
_HIGHEST = 14.0
_MOST_BARS = 200


def composition(adata: AnnData, sample_key: str | None = None, key: str = keys.ResultKeys().domain) -> Figure:
    """Draw the share of the spots of each section in every domain, as stacked bars.

    Parameters
    ----------
    adata : AnnData
    sample_key : str, optional
        Column of ``obs`` with the section of each spot. Default: the column with which `identify_domains`
        found the domains; without one, all spots are one section.
    key : str
        Column of ``obs`` with the domains; they have the colors that `domains` gives them.

    Returns
    -------
    matplotlib.figure.Figure
        A bar for each section, in the order of the categories or of first appearance, from above, labeled
        with the number of spots. Spots without a domain are gray. Of more than 200 sections the first 200 are
        drawn.

    Raises
    ------
    MissingKeyError
        A column is missing.
    InputError
        A spot has no section.
    MissingExtraError
        matplotlib is not installed.
    """
    require_matplotlib()  # before any other error
    domains = Labels.of(obs_column(adata, key))
    colors = domains.colors(stored_colors(adata, key))
    column = recorded_sections(adata, key, sample_key)
    sections = sections_of(["all spots"] * adata.n_obs if column is None else column)
    counts = np.zeros((len(sections.names), len(domains.names) + 1), dtype=np.int64)
    np.add.at(counts, (sections.codes, domains.codes), 1)  # -1, missing, is the last column
    sizes = counts.sum(axis=1)
    n_bars = min(len(counts), _MOST_BARS)
    shares = (counts / sizes[:, None])[:n_bars]  # (bars, domains + 1)
    names = [
        f"{literal(name, 40)}  ({size:,})" for name, size in zip(sections.drawn[:n_bars], sizes, strict=False)
    ]

    entries = domains.legend(colors)
    pitch = float(np.clip(_HIGHEST / n_bars, _THINNEST, _THICKEST))
    height = n_bars * pitch + 0.1
    figure = new_figure(text_inches(max(names, key=text_inches)) + _LENGTH + 0.2, height + 0.6)
    axis = figure.subplots()
    rows = np.arange(n_bars)
    ends = np.cumsum(shares, axis=1)
    for i, (name, color) in enumerate(
        zip((*domains.names, "none"), (*(colors[name] for name in domains.names), MISSING), strict=True)
    ):
        if shares[:, i].any():
            axis.barh(
                rows,
                shares[:, i],
                left=ends[:, i] - shares[:, i],
                height=0.8,
                color=color,
                edgecolor="white",
                linewidth=0.5 if pitch > 0.15 else 0,
            ).set_label(name)
    axis.set(xlim=(0, 1), ylim=(n_bars - 0.5, -0.5))
    axis.set_yticks(rows, names, fontsize=min(SIZE, 60 * pitch), color=INK, **as_written("".join(names)))
    axis.set_xlabel("share of spots", fontsize=SIZE, color=INK)
    axis.tick_params(axis="x", labelsize=SIZE - 1, length=2, colors=INK)
    axis.tick_params(axis="y", length=0)
    axis.spines[:].set_visible(False)
    legend_below(axis, entries, (_LENGTH, height), 0.5)
    if n_bars < len(counts):
        axis.set_title(left_out(n_bars, len(counts)), loc="left", fontsize=SIZE - 1, color=QUIET_INK)
    return figure
