"""Figures: domains on the section, training curves, the embedding.

matplotlib (extra ``plot``) is imported when a figure is drawn, and never through pyplot: the caller's
backend, style and open figures are left alone. Every function returns a `matplotlib.figure.Figure`,
which a notebook shows and `save` writes.
"""

from __future__ import annotations

import functools
import io
import math
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.optimize import linear_sum_assignment
from scipy.spatial import cKDTree

from . import keys
from .errors import AmilstWarning, InputError, MissingExtraError, MissingKeyError
from .metrics import adjusted_rand_index

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["domains", "draw_domains", "losses", "palette", "save", "selection_curve", "umap"]

_OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
_MISSING = "#D9D9D9"
_INK = "#333333"
_FORMATS = ("png", "svg", "pdf")
_RASTERIZE_FROM = 20_000  # spots; more of them as vectors make an SVG or PDF that no viewer opens
_DPI = 200
_PANEL = 4.0  # inches, the longer side of a section


# ------------------------------------------------------------------------------------------- domains


def domains(
    adata: AnnData,
    key: str = keys.ResultKeys().domain,
    *,
    refined: str | None = None,
    annotation: str | None = None,
    confidence: str | None = None,
    basis: str = keys.SPATIAL,
    image: str | bool = "auto",
    library_id: str | None = None,
    spot_diameter: float | None = None,
    colors: Mapping[str, str] | None = None,
    title: str | None = None,
) -> Figure:
    """Draw the domains of a section where they lie, over its image when there is one.

    Parameters
    ----------
    adata : AnnData
        One section, with coordinates in ``obsm[basis]``.
    key : str
        Column of ``obs`` with the domains.
    refined, annotation : str, optional
        Columns of ``obs`` to draw beside them: the refined domains, and an annotation. With an
        annotation each panel's title says how well its domains agree with it (adjusted Rand index),
        and regions take the colour of the domain they overlap most.
    confidence : str, optional
        Column of ``obs`` with numbers in [0, 1], drawn as a further panel.
    basis : str
        Key of ``obsm``; of three coordinates the first two are drawn.
    image : {"auto"} or bool
        Over the tissue's image: if there is one, always, never. Images are taken from
        ``uns["spatial"][library]``: arrays as scanpy keeps them, or the files whose paths our reader
        recorded, with their scale factors.
    library_id : str, optional
        Which entry of ``uns["spatial"]`` tells image and spot size; needed if there are several.
    spot_diameter : float, optional
        In the unit of the coordinates. Default: as recorded in ``uns["spatial"]``, else from the
        distance between neighbouring spots.
    colors : mapping, optional
        Colours of domains by label, for those that should differ from :func:`palette`.
    title : str, optional
        Stands above the panels.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    MissingKeyError
        A column or matrix is not there.
    InputError
        There is no image although one was asked for, or ``library_id`` is not one of those there.
    MissingExtraError
        matplotlib is not installed.

    Warns
    -----
    AmilstWarning
        The file of the recorded image is no longer there.
    """
    _figure_classes()  # if matplotlib is absent, say that first
    if basis not in adata.obsm:
        raise MissingKeyError(f"obsm[{basis!r}] holds no coordinates; found {_some(adata.obsm)}.")
    library = _library(adata, library_id)
    if image not in ("auto", True, False):
        raise InputError(f"image must be 'auto', True or False; found {image!r}.")
    drawn = _tissue_image(library) if image else None
    if image is True and drawn is None:
        raise InputError(
            f"image=True, but uns[{keys.SPATIAL!r}] has no image that can be read. Use image='auto' or False."
        )
    if spot_diameter is None:
        spot_diameter = library.get("scalefactors", {}).get("spot_diameter_fullres")
        spot_diameter = _plausible(spot_diameter, np.asarray(adata.obsm[basis])[:, :2])
    return draw_domains(
        np.asarray(adata.obsm[basis]),
        _column(adata, key),
        refined=None if refined is None else _column(adata, refined),
        annotation=None if annotation is None else _column(adata, annotation),
        confidence=None if confidence is None else _column(adata, confidence),
        image=None if drawn is None else drawn[0],
        image_scale=1.0 if drawn is None else drawn[1],
        spot_diameter=spot_diameter,
        colors=colors,
        title=title,
    )


def draw_domains(
    coordinates: np.ndarray,
    labels: ArrayLike,
    *,
    refined: ArrayLike | None = None,
    annotation: ArrayLike | None = None,
    confidence: ArrayLike | None = None,
    image: np.ndarray | None = None,
    image_scale: float = 1.0,
    spot_diameter: float | None = None,
    colors: Mapping[str, str] | None = None,
    title: str | None = None,
) -> Figure:
    """Draw the domains of a section from arrays; what :func:`domains` does for an AnnData.

    Parameters
    ----------
    coordinates : ndarray, shape (n_spots, 2) or (n_spots, 3)
        x and y, y downwards as in an image; a third coordinate is not drawn.
    labels, refined : array-like, shape (n_spots,)
        Domains. A label has the same colour in every figure: whole numbers count from 0, strings
        "1", "2", ... from 1, other labels in the order of their categories or of the alphabet.
    annotation : array-like, shape (n_spots,)
        Spots without one (None, NaN, "") are drawn in grey.
    confidence : array-like, shape (n_spots,)
        Numbers in [0, 1].
    image : ndarray, shape (height, width, 3 or 4), optional
        uint8, or floats in [0, 1].
    image_scale : float
        Takes the coordinates to pixels of ``image``.
    spot_diameter, colors, title
        As in :func:`domains`.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    InputError
        The lengths disagree, or a coordinate is not finite.
    MissingExtraError
        matplotlib is not installed.
    """
    _figure_classes()  # if matplotlib is absent, say that first
    points = np.asarray(coordinates, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] < 2 or not len(points):
        raise InputError(f"coordinates must be n × 2 or n × 3; found shape {points.shape}.")
    points = points[:, :2]
    if not np.isfinite(points).all():
        raise InputError("coordinates must be finite; found NaN or infinite values. Remove those spots.")
    for name, values in (
        ("labels", labels), ("refined", refined), ("annotation", annotation), ("confidence", confidence)
    ):  # fmt: skip
        if values is not None and np.shape(values) != (len(points),):
            raise InputError(
                f"{name} must have one entry for each of the {len(points)} spots; found {np.shape(values)}."
            )

    own = _Groups.of(labels)
    own_colors = own.colors() | {str(k): v for k, v in (colors or {}).items()}
    panels: list[tuple[str, _Groups, dict[str, str]]] = [("Domains", own, own_colors)]
    if refined is not None:
        groups = _Groups.of(refined)
        panels.append(("Refined domains", groups, groups.colors() | own_colors))
    if annotation is not None:
        truth = _Groups.of(annotation)
        panels = [(f"{name}  ·  ARI {_ari(truth, groups):.2f}", groups, c) for name, groups, c in panels]
        panels.insert(0, ("Annotation", truth, _matched_colors(truth, own, own_colors)))

    n_panels = len(panels) + (confidence is not None)
    spacing = _spacing(points)
    low, high = _frame(points, spacing)
    figure, axes = _grid(n_panels, high - low, _legend_inches([groups for _, groups, _ in panels]), title)
    # Discs much smaller than a dot of the picture would fade into the page
    smallest = 1.5 * float((high - low).max()) / (_PANEL * _DPI)
    diameter = max(spot_diameter or 0.95 * spacing, smallest)
    for axis, (name, groups, chosen) in zip(axes, panels, strict=False):
        shades = _shades(groups, chosen)
        _draw_section(axis, points, diameter, low, high, image, image_scale, facecolors=shades)
        axis.set_title(name, loc="left", fontsize=11, color=_INK)
        _legend(axis, groups, chosen)
    if confidence is not None:
        values = np.asarray(confidence, dtype=np.float64)
        dots = _draw_section(
            axes[-1], points, diameter, low, high, image, image_scale, array=values, cmap=_doubt()
        )
        finite = values[np.isfinite(values)]
        floor = float(np.floor(10 * np.quantile(finite, 0.02)) / 10) if len(finite) else 0.0
        dots.set_clim(min(floor, 0.9), 1.0)
        axes[-1].set_title("Confidence", loc="left", fontsize=11, color=_INK)
        bar = figure.colorbar(
            dots, ax=axes[-1], shrink=0.6, aspect=18, pad=0.02, extend="min" if floor > 0 else "neither"
        )
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=8, length=0, colors=_INK)
    return figure


# ------------------------------------------------------------------------------------ other pictures


def losses(history: Mapping[str, ArrayLike]) -> Figure:
    """Draw every term of the objective over the epochs, each on a scale of its own.

    Parameters
    ----------
    history : mapping of str to sequence of float
        One value per epoch for each term; NaN where a term was not in use. ``"epoch"``, if there, is
        no term but the epochs' numbers; else they count from 1.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    InputError
        There is nothing to draw.
    MissingExtraError
        matplotlib is not installed.
    """
    curves = {name: np.asarray(values, dtype=np.float64).ravel() for name, values in history.items()}
    numbers = curves.pop("epoch", None)
    curves = {name: values for name, values in curves.items() if np.isfinite(values).any()}
    if not curves:
        raise InputError("history holds no losses. Train first; the estimator keeps them in history_.")
    longest = max(map(len, curves.values()))
    epochs = numbers if numbers is not None and len(numbers) >= longest else np.arange(1, longest + 1)
    n_columns = min(4, len(curves))
    n_rows = math.ceil(len(curves) / n_columns)
    figure = _new_figure(0.4 + 2.6 * n_columns, 0.3 + 1.9 * n_rows)
    axes = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
    for axis, (name, values) in zip(axes, curves.items(), strict=False):
        axis.plot(epochs[: len(values)], values, color=_OKABE_ITO[0], linewidth=1.2)
        axis.set_title(name.replace("_", " "), loc="left", fontsize=9, color=_INK)
        axis.tick_params(labelsize=7, colors=_INK, length=2)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_xlim(0, 1.02 * max(epochs.max(), 1))
        axis.locator_params(nbins=4)
        axis.yaxis.set_major_formatter("{x:.3g}")
    for axis in axes[len(curves) :]:
        axis.set_visible(False)
    figure.supxlabel("epoch", fontsize=9, color=_INK)
    return figure


def selection_curve(table: Mapping[str, ArrayLike], chosen: int) -> Figure:
    """Stability of the labels against the number of domains, with the choice marked.

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
    figure = _new_figure(5.0, 3.2)
    axis = figure.subplots()
    axis.errorbar(k, stability, yerr=error, color=_OKABE_ITO[0], marker="o", markersize=4, capsize=2)
    axis.axvline(chosen, color=_OKABE_ITO[5], linestyle=":", label=f"chosen: {chosen}")
    axis.set_xlabel("number of domains", fontsize=9, color=_INK)
    axis.set_ylabel("stability (adjusted mutual information)", fontsize=9, color=_INK)
    axis.set_xticks(k)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=9)
    return figure


def umap(
    embedding: np.ndarray,
    labels: ArrayLike,
    *,
    n_neighbors: int = 15,
    min_dist: float = 0.3,
    seed: int = 0,
    colors: Mapping[str, str] | None = None,
) -> Figure:
    """Draw the embedding in two dimensions (UMAP), coloured as :func:`domains` colours the section.

    Parameters
    ----------
    embedding : ndarray, shape (n_spots, n_dimensions)
    labels : array-like, shape (n_spots,)
        Domains, or an annotation.
    n_neighbors, min_dist
        UMAP's own: how many neighbours it keeps near, and how tightly it packs them.
    seed : int
        UMAP's random state: the same picture each time (and one thread).
    colors : mapping, optional
        As in :func:`domains`.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    InputError
        The lengths disagree, a value is not finite, or there are too few spots for ``n_neighbors``.
    MissingExtraError
        umap-learn or matplotlib is not installed.

    References
    ----------
    McInnes, Healy and Melville, arXiv:1802.03426.
    """
    values = np.asarray(embedding, dtype=np.float32)
    groups = _Groups.of(labels)
    if values.ndim != 2 or len(values) != len(groups.codes):
        raise InputError(
            f"embedding must be n × d for {len(groups.codes)} labels; found shape {values.shape}."
        )
    if not np.isfinite(values).all():
        raise InputError("embedding must be finite; found NaN or infinite values.")
    if not 2 <= n_neighbors < len(values):
        raise InputError(
            f"n_neighbors must lie in [2, {len(values) - 1}] for {len(values)} spots; found {n_neighbors}."
        )
    figure = _new_figure(5.2 + _legend_inches([groups]), 5.0)
    try:
        from umap import UMAP
    except ImportError as error:
        raise MissingExtraError.for_package("umap-learn", "umap", "drawing a UMAP") from error
    reducer = UMAP(n_neighbors=n_neighbors, min_dist=min_dist, random_state=seed, n_jobs=1)
    points = reducer.fit_transform(values)  # n×2
    chosen = groups.colors() | {str(k): v for k, v in (colors or {}).items()}
    axis = figure.subplots()
    # in random order, lest the last domain hide the others
    order = np.random.default_rng(seed).permutation(len(points))
    axis.scatter(
        points[order, 0],
        points[order, 1],
        c=_shades(groups, chosen)[order],
        s=float(np.clip(12_000 / len(points), 0.3, 14)),
        linewidths=0,
        rasterized=len(points) > _RASTERIZE_FROM,
    )
    axis.set(xticks=[], yticks=[])
    axis.set_xlabel("UMAP 1", loc="left", fontsize=9, color=_INK)
    axis.set_ylabel("UMAP 2", loc="bottom", fontsize=9, color=_INK)
    axis.spines[["top", "right"]].set_visible(False)
    _legend(axis, groups, chosen)
    return figure


def save(figure: Figure, path: str | os.PathLike[str], dpi: int = _DPI) -> None:
    """Write a figure as PNG, SVG or PDF, whole or not at all.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
    path : path-like
        Its ending tells the format. A file of that name is replaced once the new one is complete.
    dpi : int
        Dots per inch, of the picture or of what is drawn as dots in SVG and PDF.

    Raises
    ------
    InputError
        The ending is not one of .png, .svg and .pdf, or the folder is not there.

    Notes
    -----
    No time of day goes into the file: the same figure gives the same bytes.
    """
    path = Path(path)
    ending = path.suffix.lower().removeprefix(".")
    if ending not in _FORMATS:
        raise InputError(f"A figure's name must end in .png, .svg or .pdf; found {path.name!r}.")
    if not path.parent.is_dir():
        raise InputError(f"The folder {path.parent} does not exist; make it first.")
    import matplotlib

    undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(ending)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with matplotlib.rc_context({"svg.hashsalt": "amilst_lite"}):
            figure.savefig(
                unfinished, format=ending, dpi=dpi, bbox_inches="tight", pad_inches=0.1, metadata=undated
            )
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------- colours


@functools.lru_cache(maxsize=8)
def palette(n: int) -> tuple[str, ...]:
    """``n`` colours that can be told apart, the first of them always the same.

    The first eight are Okabe and Ito's, safe for colour-blind readers. Each further one is that of a
    fixed grid of colours whose nearest neighbour among those chosen (and white and grey) is farthest,
    by distance in OKLab (Ottosson 2020), to normal and to red- and green-blind eyes (Machado et al.,
    IEEE TVCG 2009). Nothing is random.

    Parameters
    ----------
    n : int
        At least 0. Up to about 30 the colours stay easy to tell apart.

    Returns
    -------
    tuple of str
        ``#RRGGBB``.
    """
    if n <= len(_OKABE_ITO):
        return _OKABE_ITO[:n]
    levels = np.linspace(0, 1, 12)
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    seen = _as_seen(grid)  # eyes × colours × Lab
    lightness = seen[0, :, 0]
    chroma = np.hypot(seen[0, :, 1], seen[0, :, 2])
    # neither lost on the page nor taken for black, nor glaring
    usable = (lightness > 0.38) & (lightness < 0.92) & (chroma < 0.2)
    grid, seen = grid[usable], seen[:, usable]
    chosen = list(_OKABE_ITO)
    nearest = np.full(len(grid), np.inf)
    for color in (*_OKABE_ITO, "#FFFFFF", _MISSING):
        nearest = np.minimum(nearest, _difference(seen, _as_seen(_rgb(color)[None])))
    while len(chosen) < n:
        best = int(np.argmax(nearest))
        chosen.append("#" + "".join(f"{round(255 * part):02X}" for part in grid[best]))
        nearest = np.minimum(nearest, _difference(seen, seen[:, best : best + 1]))
    return tuple(chosen)


# From linear RGB to what is left of it without the red-sensitive or the green-sensitive cones
_PROTANOPIA = (
    (0.152286, 1.052583, -0.204868),
    (0.114503, 0.786281, 0.099216),
    (-0.003882, -0.048116, 1.051998),
)
_DEUTERANOPIA = (
    (0.367322, 0.860646, -0.227968),
    (0.280085, 0.672501, 0.047413),
    (-0.011820, 0.042940, 0.968881),
)
# From linear RGB to OKLab: cone responses, cube root, opponent colours
_TO_CONES = (
    (0.4122214708, 0.5363325363, 0.0514459929),
    (0.2119034982, 0.6806995451, 0.1073969566),
    (0.0883024619, 0.2817188376, 0.6299787005),
)
_TO_LAB = (
    (0.2104542553, 0.7936177850, -0.0040720468),
    (1.9779984951, -2.4285922050, 0.4505937099),
    (0.0259040371, 0.7827717662, -0.8086757660),
)


def _rgb(color: str) -> np.ndarray:
    """``#RRGGBB`` as three numbers in [0, 1]."""
    return np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255


def _as_seen(rgb: np.ndarray) -> np.ndarray:
    """OKLab of colours (m×3, sRGB) to normal, red-blind and green-blind eyes; 3×m×3."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    eyes = np.stack([linear, linear @ np.transpose(_PROTANOPIA), linear @ np.transpose(_DEUTERANOPIA)])
    return np.cbrt(np.clip(eyes, 0, 1) @ np.transpose(_TO_CONES)) @ np.transpose(_TO_LAB)


def _difference(seen: np.ndarray, other: np.ndarray) -> np.ndarray:
    """How far colours lie from another: mostly to normal eyes, in part to the worst-off ones."""
    distance = np.linalg.norm(seen - other, axis=-1)  # eyes × colours
    return 0.7 * distance[0] + 0.3 * distance.min(axis=0)


@dataclass(frozen=True)
class _Groups:
    """A labelling ready to draw."""

    codes: np.ndarray  # n, index into levels, -1 where missing
    levels: tuple[str, ...]
    zero_based: bool  # whole numbers, as estimators give them, rather than names

    @classmethod
    def of(cls, labels: ArrayLike) -> _Groups:
        column = labels if isinstance(labels, pd.Series) else pd.Series(labels)
        if not isinstance(column.dtype, pd.CategoricalDtype):
            found = column.dropna().unique()
            column = column.astype(pd.CategoricalDtype(sorted(found, key=_natural)))
        categories = column.cat.categories
        if pd.api.types.is_float_dtype(categories.dtype) and (categories == np.floor(categories)).all():
            names = [str(int(value)) for value in categories]  # an integer column with gaps becomes float
        else:
            names = [str(value) for value in categories]
        # "" is a missing label too
        kept = [i for i, name in enumerate(names) if name.strip()]
        renumber = np.full(len(names) + 1, -1)
        renumber[kept] = np.arange(len(kept))
        return cls(
            codes=renumber[column.cat.codes.to_numpy()],
            levels=tuple(names[i] for i in kept),
            zero_based=pd.api.types.is_integer_dtype(categories.dtype),
        )

    def sizes(self) -> np.ndarray:
        return np.bincount(self.codes[self.codes >= 0], minlength=len(self.levels))

    def colors(self) -> dict[str, str]:
        """Each level's colour: by number, which never changes, if all are numbers; else by place."""
        slots = list(range(len(self.levels)))
        if self.levels and all(level.isdecimal() for level in self.levels):
            numbers = [int(level) for level in self.levels]
            first = 0 if self.zero_based or min(numbers) == 0 else 1
            if max(numbers) < 100:
                slots = [number - first for number in numbers]
        # one and the same palette for all usual numbers of domains: made once
        shades = palette(max([len(_OKABE_ITO) - 1, *slots]) + 1)
        return {level: shades[slot] for level, slot in zip(self.levels, slots, strict=True)}


def _natural(value: Any) -> tuple[Any, ...]:
    """Sorts "domain 2" before "domain 10", and any mixture of types."""
    parts = re.split(r"(\d+)", str(value))
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part)


def _matched_colors(truth: _Groups, own: _Groups, own_colors: Mapping[str, str]) -> dict[str, str]:
    """Colours for an annotation: each region that of the domain it overlaps most, one to one."""
    both = (truth.codes >= 0) & (own.codes >= 0)
    overlap = np.zeros((len(truth.levels), len(own.levels)), dtype=np.int64)
    np.add.at(overlap, (truth.codes[both], own.codes[both]), 1)
    chosen = {
        truth.levels[region]: own_colors[own.levels[domain]]
        for region, domain in zip(*linear_sum_assignment(-overlap), strict=True)
        if overlap[region, domain]
    }
    used = set(own_colors.values())
    spare = iter([shade for shade in palette(len(truth.levels) + len(used) + 8) if shade not in used])
    return {level: chosen.get(level) or next(spare) for level in truth.levels}


def _ari(truth: _Groups, groups: _Groups) -> float:
    names = [np.array([*one.levels, None], dtype=object)[one.codes] for one in (truth, groups)]
    return adjusted_rand_index(*names)


# ------------------------------------------------------------------------------------- panels, legends


def _figure_classes() -> tuple[Any, Any]:
    """matplotlib's Figure and Agg canvas; the one place where matplotlib comes in."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError.for_package("matplotlib", "plot", "drawing figures") from error
    return Figure, FigureCanvasAgg


def _new_figure(width: float, height: float) -> Figure:
    """An empty white figure, in inches, that belongs to no backend but its own canvas."""
    figure_class, canvas_class = _figure_classes()
    figure = figure_class(figsize=(width, height), layout="constrained", facecolor="white")
    canvas_class(figure)
    # Notebooks draw figures by themselves only once pyplot was imported, which we never do
    figure.__dict__["_repr_png_"] = functools.partial(_as_png, figure)
    return figure


def _as_png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100, bbox_inches="tight")
    return buffer.getvalue()


def _grid(n_panels: int, extent: np.ndarray, legend: float, title: str | None) -> tuple[Figure, list[Axes]]:
    """A figure with room for the panels, in the proportions of the section, and for their legends."""
    n_columns = n_panels if n_panels <= 3 else 2
    n_rows = math.ceil(n_panels / n_columns)
    width, height = np.clip(_PANEL * extent / extent.max(), 0.35 * _PANEL, _PANEL)
    figure = _new_figure(n_columns * (width + legend) + 0.2, n_rows * (height + 0.45) + 0.1)
    axes = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
    for axis in axes[n_panels:]:
        axis.set_visible(False)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=13, color=_INK)
    return figure, list(axes[:n_panels])


def _draw_section(
    axis: Axes,
    points: np.ndarray,
    diameter: float,
    low: np.ndarray,
    high: np.ndarray,
    image: np.ndarray | None,
    image_scale: float,
    **style: Any,
) -> Any:
    """Spots as discs whose size is in the unit of the coordinates; returns their collection."""
    from matplotlib.collections import EllipseCollection

    if image is not None:
        height, width = np.shape(image)[:2]
        axis.imshow(image, extent=(0, width / image_scale, height / image_scale, 0), alpha=0.75)
    discs = EllipseCollection(
        [diameter],
        [diameter],
        [0],
        units="xy",
        offsets=points,
        offset_transform=axis.transData,
        linewidths=0,
        rasterized=len(points) > _RASTERIZE_FROM,
        **style,
    )
    discs.set_in_layout(False)  # it lies within the axes: no need to measure every disc
    axis.add_collection(discs, autolim=False)
    axis.set(xlim=(low[0], high[0]), ylim=(high[1], low[1]), aspect="equal")  # y downwards
    axis.set_axis_off()
    return discs


def _doubt() -> Any:
    """Colours of confidence: sure spots recede, doubtful ones stand out."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("doubt", ["#3F1052", "#8E3A7A", "#D58AA5", "#E9DFE3"])


def _shades(groups: _Groups, chosen: Mapping[str, str]) -> np.ndarray:
    """The colour of every spot, n×3 in [0, 1]."""
    from matplotlib.colors import to_rgb

    try:
        table = np.array([to_rgb(chosen[level]) for level in groups.levels] + [to_rgb(_MISSING)])
    except ValueError as error:
        raise InputError(f"colors must map labels to colours that matplotlib knows: {error}.") from error
    return table[groups.codes]  # -1, missing, is the last


def _legend(axis: Axes, groups: _Groups, chosen: Mapping[str, str]) -> None:
    """Labels with their number of spots, to the right of a panel."""
    from matplotlib.lines import Line2D

    entries = [
        (f"{level}  ({size:,})", chosen[level])
        for level, size in zip(groups.levels, groups.sizes(), strict=True)
        if size
    ]
    if missing := int((groups.codes < 0).sum()):
        entries.append((f"none  ({missing:,})", _MISSING))
    axis.legend(
        handles=[
            Line2D([], [], linestyle="", marker="o", markersize=7, markeredgewidth=0, color=shade, label=text)
            for text, shade in entries
        ],
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
        borderaxespad=0,
        frameon=False,
        fontsize=8,
        labelcolor=_INK,
        handletextpad=0.2,
        labelspacing=0.45,
        columnspacing=1.0,
        ncols=math.ceil(len(entries) / 16),
    )


def _legend_inches(groups: Sequence[_Groups]) -> float:
    """Room for the widest legend."""
    widest = 0.0
    for one in groups:
        longest = max([len(level) for level in one.levels] + [4]) + 8
        widest = max(widest, math.ceil((len(one.levels) + 1) / 16) * (0.3 + 0.07 * longest))
    return widest


def _frame(points: np.ndarray, spacing: float) -> tuple[np.ndarray, np.ndarray]:
    """The corners of what is shown: the spots and a margin."""
    low, high = points.min(axis=0), points.max(axis=0)
    margin = max(0.03 * float((high - low).max()), spacing)
    return low - margin, high + margin


def _spacing(points: np.ndarray) -> float:
    """Median distance from a spot to its third neighbour: the pitch of any grid, a fair size for cells."""
    places = points
    for _ in range(2):
        tree = cKDTree(places)
        if tree.n == 1:
            break
        distance, _ = tree.query(places[:: max(1, tree.n // 20_000)], k=min(4, tree.n))
        if (median := float(np.median(distance[:, -1]))) > 0:
            return median
        places = np.unique(points, axis=0)  # most spots have doubles at the very same place
    return 1.0


def _plausible(diameter: float | None, points: np.ndarray) -> float | None:
    """The recorded diameter of a spot, unless the coordinates are in another unit than it is."""
    if diameter is None:
        return None
    spacing = _spacing(points)
    return float(diameter) if spacing / 20 < float(diameter) < 3 * spacing else None


# ------------------------------------------------------------------------------------------- AnnData


def _column(adata: AnnData, key: str) -> pd.Series:
    if key not in adata.obs:
        raise MissingKeyError(f"obs[{key!r}] is not there; found {_some(adata.obs)}.")
    return adata.obs[key]


def _some(names: Any) -> str:
    """The first names, for a message."""
    names = [str(name) for name in names]
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "") if names else "none"


def _library(adata: AnnData, library_id: str | None) -> Mapping[str, Any]:
    """What ``uns["spatial"]`` says about the section: images, scale factors, metadata; or nothing."""
    libraries = adata.uns.get(keys.SPATIAL, {})
    if library_id is None:
        return next(iter(libraries.values())) if len(libraries) == 1 else {}
    if library_id not in libraries:
        raise InputError(
            f"library_id {library_id!r} is not in uns[{keys.SPATIAL!r}]; found {_some(libraries)}."
        )
    return libraries[library_id]


def _tissue_image(library: Mapping[str, Any]) -> tuple[np.ndarray, float] | None:
    """The image and the factor from coordinates to its pixels; high resolution before low."""
    for resolution in ("hires", "lowres"):
        scale = library.get("scalefactors", {}).get(f"tissue_{resolution}_scalef")
        if scale is None:
            continue
        pixels = library.get("images", {}).get(resolution)
        if pixels is not None:
            return np.asarray(pixels), float(scale)
        path = library.get("metadata", {}).get(f"{resolution}_image_path")
        if path is not None and Path(path).is_file():
            from matplotlib.image import imread

            return imread(path), float(scale)
        if path is not None:
            warnings.warn(
                f"The image {path} is no longer there; drawing without it.", AmilstWarning, stacklevel=4
            )
    return None
