"""Marker genes: their expression in every domain."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .. import keys
from ..errors import InputError, MissingKeyError
from ..preprocess import NormalizedCounts
from .colors import Labels, stored_colors
from .figure import INK, SIZE, as_written, literal, new_figure, require_matplotlib, text_inches
from .slots import obs_column, some

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["marker_genes"]

_BLOCK = 20_000  # spots at a time
_CELL = 0.2  # inches
_LEGEND = 1.35  # width, inches
_DOT = 0.85  # diameter of the largest dot, as a share of a cell
_MOST_GENES = 200
_SHADES = ("#F4F1F3", "#D58AA5", "#8E3A7A", "#3F1052")


def marker_genes(
    adata: AnnData,
    n_genes: int = 4,
    *,
    genes: str | Sequence[str] | None = None,
    kind: str = "dots",
    symbols: str | None = None,
    key: str | None = None,
    key_added: str = keys.DEFAULT_KEY,
) -> Figure:
    """Draw the expression of marker genes in every domain.

    Parameters
    ----------
    adata : AnnData
        Raw counts in ``layers["counts"]`` or ``X``, and the table of `amilst_lite.analysis.marker_genes` in
        ``uns["amilst_markers"]``.
    n_genes : int
        For each domain, the leading genes of the table that are expressed more in it than elsewhere. A gene is drawn
        once, with the first of its domains.
    genes : str or sequence of str, optional
        Genes to draw instead; no table is needed.
    kind : {"dots", "heatmap"}
        Whether the share of spots with the gene is drawn too, as the area of a dot.
    symbols : str, optional
        Column of ``var`` with the names to write instead of ``var_names``.
    key : str, optional
        Column of ``obs`` with the domains. Default: that of the run.
    key_added : str
        As in `identify_domains`.

    Returns
    -------
    matplotlib.figure.Figure
        A row for each domain and a column for each gene, in the order of the domains. Colors: mean of log(1 + x) of
        the counts, scaled to their median total; of each gene relative to its largest mean.

    Raises
    ------
    MissingKeyError
        There are no counts, no domains, no table, or no such gene or column.
    InputError
        ``kind`` is unknown, ``n_genes`` is no integer, there are more than 200 genes or none, or the counts are
        unusable.
    MissingExtraError
        matplotlib is not installed.
    """
    require_matplotlib()
    if genes is None and not isinstance(n_genes, Integral):
        raise InputError(f"n_genes must be an integer; found {n_genes!r}. Name genes with genes=[...].")
    if isinstance(genes, str):
        genes = [genes]
    if kind not in ("dots", "heatmap"):
        raise InputError(f"kind must be 'dots' or 'heatmap'; found {kind!r}.")
    names = keys.ResultKeys(key_added)
    key = names.domain if key is None else key
    labels = Labels.of(obs_column(adata, key))
    chosen = (
        _leading(adata, names.markers, labels.names, n_genes) if genes is None else list(dict.fromkeys(genes))
    )
    if not 0 < len(chosen) <= _MOST_GENES:
        raise InputError(f"expected 1 to {_MOST_GENES} genes; found {len(chosen)}.")
    columns = adata.var_names.get_indexer(pd.Index(chosen))
    if (columns < 0).any():
        absent = [gene for gene, column in zip(chosen, columns, strict=True) if column < 0]
        raise MissingKeyError(f"var_names lacks {some(absent)}; found {some(adata.var_names)}.")
    if symbols is not None:
        if symbols not in adata.var:
            raise MissingKeyError(f"var[{symbols!r}] is missing; found {some(adata.var)}.")
        chosen = adata.var[symbols].astype(str).to_numpy()[columns].tolist()
    counts = adata.layers.get(keys.COUNTS, adata.X)
    if counts is None:
        raise MissingKeyError(
            f'no counts: expected raw counts in layers["{keys.COUNTS}"] or X, found neither.'
        )
    sizes = np.bincount(labels.codes[labels.codes >= 0], minlength=len(labels.names))
    present = np.flatnonzero(sizes)
    mean, share = (
        sums[present] / sizes[present, None]
        for sums in _sums(counts, labels.codes, len(labels.names), columns)
    )
    highest = mean.max(axis=0)
    relative = np.divide(mean, highest, out=np.zeros_like(mean), where=highest > 0)
    shown = [labels.names[code] for code in present]
    colors = labels.colors(stored_colors(adata, key))
    drawn = [labels.drawn[code] for code in present]
    return _draw(relative, share if kind == "dots" else None, chosen, drawn, [colors[name] for name in shown])


def _leading(adata: AnnData, slot: str, domains: Sequence[str], n_genes: int) -> list[str]:
    """The leading genes of each domain, in the order of the domains, each once."""
    if not isinstance(adata.uns.get(slot), pd.DataFrame):
        raise MissingKeyError(
            f"uns has no table {slot!r}. Run amilst_lite.analysis.marker_genes first, or name the genes (genes)."
        )
    table = adata.uns[slot]
    table = table[(table["z"] > 0) & (table["log2_fold_change"] > 0)]
    found: dict[str, None] = {}
    for domain in domains:
        found |= dict.fromkeys(table.loc[table["domain"].astype(str) == domain, "gene"].astype(str)[:n_genes])
    return list(found)


def _sums(counts: Any, codes: np.ndarray, n_domains: int, genes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum of the normalized expression, and number of spots with any; (n_domains, n_genes)."""
    normalized = NormalizedCounts(counts)
    total, n_seen = np.zeros((2, n_domains, len(genes)))
    for start in range(0, len(codes), _BLOCK):
        rows = slice(start, start + _BLOCK)
        block = normalized[rows].tocsc()[:, genes].tocoo()
        domain = codes[rows][block.row]
        labeled = (domain >= 0) & (block.data > 0)
        place = domain[labeled], block.col[labeled]
        np.add.at(total, place, block.data[labeled])
        np.add.at(n_seen, place, 1)
    return total, n_seen


def _draw(
    relative: np.ndarray,
    share: np.ndarray | None,
    genes: Sequence[str],
    domains: Sequence[str],
    colors: Sequence[str],
) -> Figure:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap

    rows, columns = ([literal(name, 30) for name in names] for names in (domains, genes))
    left = 0.55 + max(map(text_inches, rows))
    bottom = 0.1 + max(map(text_inches, columns))
    width, height = _CELL * len(columns), _CELL * len(rows)
    figure_width, figure_height = left + width + _LEGEND, max(bottom + height, 1.9) + 0.05

    def add(x: float, y: float, w: float, h: float) -> Axes:
        """Axes whose lower left corner is at x, y; y from the top of the cells, downwards."""
        return figure.add_axes(
            (x / figure_width, 1 - (0.05 + y) / figure_height, w / figure_width, h / figure_height)
        )

    figure = new_figure(figure_width, figure_height, layout="none")
    axis = add(left, height, width, height)
    shades = LinearSegmentedColormap.from_list("expression", _SHADES)
    axis.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) - 0.5, -0.5))
    if share is None:
        axis.imshow(relative, cmap=shades, vmin=0, vmax=1, interpolation="nearest", aspect="auto")
    else:
        y, x = np.indices(share.shape)
        _draw_dots(axis, x.ravel(), y.ravel(), share.ravel(), shades(relative.ravel()))
        size = (_LEGEND - 0.1, 0.85)
        _draw_sizes(add(left + width + 0.1, 1.75, *size), size)
    # The colors of the domains on the tissue
    axis.scatter([-0.85] * len(rows), range(len(rows)), c=list(colors), s=30, linewidths=0, clip_on=False)
    axis.set_yticks(range(len(rows)), rows, fontsize=SIZE, color=INK, **as_written("".join(rows)))
    axis.set_xticks(
        range(len(columns)), columns, fontsize=SIZE - 1, rotation=90, fontstyle="italic", color=INK,
        **as_written("".join(columns)),
    )  # fmt: skip
    axis.tick_params(axis="y", length=0, pad=14)
    axis.tick_params(axis="x", length=0, pad=3)
    axis.spines[:].set_visible(False)
    axis.set_ylabel("domain", fontsize=SIZE, color=INK)
    place = add(left + width + 0.18, 0.48, 0.9, 0.1)
    bar = figure.colorbar(ScalarMappable(cmap=shades), cax=place, orientation="horizontal", ticks=[0, 1])
    _set_heading(place, "mean expression,\nrelative to highest")
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=SIZE - 1, length=0, pad=2, colors=INK)
    return figure


def _set_heading(axis: Axes, text: str) -> None:
    axis.set_title(text, loc="left", fontsize=SIZE - 1, color=INK, pad=4)


def _draw_dots(axis: Axes, x: np.ndarray, y: np.ndarray, share: np.ndarray, colors: Any) -> None:
    """Dots whose area is the share of spots."""
    from matplotlib.collections import EllipseCollection

    diameter = _DOT * np.sqrt(share)
    dots = EllipseCollection(
        diameter, diameter, np.zeros(len(share)), units="xy", offsets=np.column_stack([x, y]),
        offset_transform=axis.transData, facecolors=colors, edgecolors=INK, linewidths=0.3,
    )  # fmt: skip
    axis.add_collection(dots, autolim=False)


def _draw_sizes(axis: Axes, size: tuple[float, float]) -> None:
    """The legend of the sizes, on the scale of the dots."""
    shares = np.array([0.25, 0.5, 1.0])
    axis.set(xlim=(0, size[0] / _CELL), ylim=(size[1] / _CELL, 0))
    _set_heading(axis, "share of spots")
    x = 0.9 + 1.7 * np.arange(len(shares))
    _draw_dots(axis, x, np.full(len(x), 0.7), shares, "#BBBBBB")
    for at, share in zip(x, shares, strict=True):
        axis.text(at, 1.8, f"{share:.0%}", fontsize=SIZE - 1, color=INK, ha="center", va="center")
    axis.set_axis_off()
