"""Domains on the section."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from .. import keys
from ..errors import InputError, MissingKeyError
from ..io.visium import tissue_image
from ..metrics import adjusted_rand_index
from ..spatial.neighbors import check_coordinates, typical_spacing
from .colors import Labels, matched_colors, stored_colors
from .figure import (
    DPI,
    INK,
    LITERAL,
    RASTERIZE_FROM,
    legend,
    legend_inches,
    literal,
    new_figure,
    require_matplotlib,
    set_title,
)

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["domains", "draw_domains"]

_PANEL = 4.0  # inches, the longer side of a section


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
    """Draw the domains of a section at the positions of the spots, over the tissue image if there is one.

    Parameters
    ----------
    adata : AnnData
        One section, with coordinates in ``obsm[basis]``.
    key : str
        Column of ``obs`` with the domains.
    refined, annotation : str, optional
        Columns of ``obs`` to draw in further panels: the refined domains, and an annotation. With an
        annotation, the title of each panel gives the agreement of its domains with it (adjusted Rand index).
    confidence : str, optional
        Column of ``obs`` with numbers in [0, 1], drawn in a further panel.
    basis : str
        Key of ``obsm``; of three coordinates the first two are drawn.
    image : {"auto"} or bool
        Draw over the tissue image: if there is one, always, never. The image is taken from
        ``uns["spatial"][library]``: an array as in scanpy, or the file whose path `read_visium` recorded,
        with its scale factor.
    library_id : str, optional
        Entry of ``uns["spatial"]`` with image and spot size; needed if there are several.
    spot_diameter : float, optional
        In the unit of the coordinates. Default: the value in ``uns["spatial"]``, else derived from the
        distance between neighboring spots.
    colors : mapping, optional
        Colors of domains by label. Labels not in it have the colors in ``uns["<column>_colors"]`` (scanpy's
        convention) if these are valid, else those of `palette`; regions of an annotation without stored
        colors have the color of the domain with which they overlap most.
    title : str, optional
        Title of the figure.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    MissingKeyError
        A column or matrix is missing.
    InputError
        There is no image although ``image=True``, ``library_id`` is unknown, or a coordinate is not finite.
    MissingExtraError
        matplotlib is not installed.

    Warns
    -----
    AmilstWarning
        The file of the recorded image is missing or cannot be read; the figure is drawn without it.
    """
    require_matplotlib()  # before any other error
    if basis not in adata.obsm:
        raise MissingKeyError(f"obsm[{basis!r}] with coordinates is missing; found {_some(adata.obsm)}.")
    points = check_coordinates(adata.obsm[basis])
    library = _library(adata, library_id)
    if image not in ("auto", True, False):
        raise InputError(f"image must be 'auto', True or False; found {image!r}.")
    found = tissue_image(library) if image else None
    if image is True and found is None:
        raise InputError(
            f"image=True, but uns[{keys.SPATIAL!r}] has no image that can be read. Use image='auto' or False."
        )
    pixels, image_scale = found or (None, 1.0)
    if spot_diameter is None:
        spot_diameter = _plausible(library.get("scalefactors", {}).get("spot_diameter_fullres"), points)
    columns = {"labels": key, "refined": refined, "annotation": annotation, "confidence": confidence}
    values: dict[str, Any] = {
        name: None if column is None else _column(adata, column) for name, column in columns.items()
    }
    return draw_domains(
        points,
        **values,
        image=pixels,
        image_scale=image_scale,
        spot_diameter=spot_diameter,
        colors={**stored_colors(adata, key), **(colors or {})},
        refined_colors={**stored_colors(adata, refined), **(colors or {})} if refined else None,
        annotation_colors=stored_colors(adata, annotation) if annotation else None,
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
    refined_colors: Mapping[str, str] | None = None,
    annotation_colors: Mapping[str, str] | None = None,
    title: str | None = None,
) -> Figure:
    """Draw the domains of a section from arrays, as `domains` does from an AnnData.

    Parameters
    ----------
    coordinates : ndarray, shape (n_spots, 2) or (n_spots, 3)
        x and y, y downwards as in an image; a third coordinate is not drawn.
    labels, refined : array-like, shape (n_spots,)
        Domains. A label has the same color in every figure: integers count from 0, strings
        "1", "2", ... from 1, other labels in the order of their categories or alphabetically.
    annotation : array-like, shape (n_spots,)
        Spots without one (None, NaN, "") are drawn in gray.
    confidence : array-like, shape (n_spots,)
        Numbers in [0, 1].
    image : ndarray, shape (height, width, 3 or 4), optional
        uint8, or floats in [0, 1].
    image_scale : float
        Factor from coordinates to pixels of ``image``.
    spot_diameter, title
        As in `domains`.
    colors, refined_colors, annotation_colors : mapping, optional
        Colors by label. Default of refined domains: as the domains; of annotated regions: as the domain with
        which they overlap most.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    InputError
        The lengths differ, a coordinate is not finite, or a color is unknown.
    MissingExtraError
        matplotlib is not installed.
    """
    require_matplotlib()  # before any other error
    points = check_coordinates(coordinates)[:, :2]
    for name, values in (
        ("labels", labels), ("refined", refined), ("annotation", annotation), ("confidence", confidence)
    ):  # fmt: skip
        if values is not None and np.shape(values) != (len(points),):
            raise InputError(
                f"{name} must have one entry for each of the {len(points)} spots; found {np.shape(values)}."
            )

    own = Labels.of(labels)
    own_colors = own.colors(colors)
    panels: list[tuple[str, Labels, dict[str, str]]] = [("Domains", own, own_colors)]
    if refined is not None:
        groups = Labels.of(refined)
        panels.append(("Refined domains", groups, groups.colors({**own_colors, **(refined_colors or {})})))
    if annotation is not None:
        truth = Labels.of(annotation)
        panels = [(f"{name}  ·  ARI {_ari(truth, groups):.2f}", groups, c) for name, groups, c in panels]
        truth_colors = truth.colors({**matched_colors(truth, own, own_colors), **(annotation_colors or {})})
        panels.insert(0, ("Annotation", truth, truth_colors))

    n_panels = len(panels) + (confidence is not None)
    spacing = _spacing(points)
    low, high = _frame(points, spacing)
    widest = max(legend_inches(groups.names) for _, groups, _ in panels)
    figure, axes = _grid(n_panels, high - low, widest, title)
    # Discs much smaller than a pixel would be nearly invisible
    smallest = 1.5 * float((high - low).max()) / (_PANEL * DPI)
    diameter = max(spot_diameter or 0.95 * spacing, smallest)
    draw = functools.partial(
        _draw_section,
        points=points,
        diameter=diameter,
        low=low,
        high=high,
        image=image,
        image_scale=image_scale,
    )
    for axis, (name, groups, chosen) in zip(axes, panels, strict=False):
        draw(axis, facecolors=groups.spot_colors(chosen))
        set_title(axis, name)
        legend(axis, groups.entries(chosen))
    if confidence is not None:
        values = np.asarray(confidence, dtype=np.float64)
        discs = draw(axes[-1], array=values, cmap=_confidence_colormap())
        finite = values[np.isfinite(values)]
        floor = float(np.floor(10 * np.quantile(finite, 0.02)) / 10) if len(finite) else 0.0
        discs.set_clim(min(floor, 0.9), 1.0)
        set_title(axes[-1], "Confidence")
        bar = figure.colorbar(
            discs, ax=axes[-1], shrink=0.6, aspect=18, pad=0.02, extend="min" if floor > 0 else "neither"
        )
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=8, length=0, colors=INK)
    return figure


def _ari(truth: Labels, groups: Labels) -> float:
    names = [np.array([*one.names, None], dtype=object)[one.codes] for one in (truth, groups)]
    return adjusted_rand_index(*names)


# ------------------------------------------------------------------------------------------------ panels


def _grid(
    n_panels: int, extent: np.ndarray, legend_width: float, title: str | None
) -> tuple[Figure, list[Axes]]:
    """A figure with panels in the proportions of the section, and space for a legend beside each (inches)."""
    n_columns = n_panels if n_panels <= 3 else 2
    n_rows = math.ceil(n_panels / n_columns)
    width, height = np.clip(_PANEL * extent / extent.max(), 0.35 * _PANEL, _PANEL)
    figure = new_figure(n_columns * (width + legend_width) + 0.2, n_rows * (height + 0.45) + 0.1)
    axes = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
    for axis in axes[n_panels:]:
        axis.set_visible(False)
    if title:
        text = "\n".join(literal(line, 120) for line in title.splitlines())
        figure.suptitle(text, x=0.01, ha="left", fontsize=13, color=INK, **LITERAL)
    return figure, list(axes[:n_panels])


def _draw_section(
    axis: Axes,
    *,
    points: np.ndarray,
    diameter: float,
    low: np.ndarray,
    high: np.ndarray,
    image: np.ndarray | None,
    image_scale: float,
    **style: Any,
) -> Any:
    """Draw spots as discs whose size is in the unit of the coordinates; returns their collection."""
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
        rasterized=len(points) > RASTERIZE_FROM,
        **style,
    )
    discs.set_in_layout(False)  # all discs are inside the axes: the layout need not measure them
    axis.add_collection(discs, autolim=False)
    axis.set(xlim=(low[0], high[0]), ylim=(high[1], low[1]), aspect="equal")  # y downwards
    axis.set_axis_off()
    return discs


def _confidence_colormap() -> Any:
    """Light for confident spots, dark for uncertain ones."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("confidence", ["#3F1052", "#8E3A7A", "#D58AA5", "#E9DFE3"])


def _frame(points: np.ndarray, spacing: float) -> tuple[np.ndarray, np.ndarray]:
    """Corners of the drawn area: the bounding box of the spots and a margin."""
    low, high = points.min(axis=0), points.max(axis=0)
    margin = max(0.03 * float((high - low).max()), spacing)
    return low - margin, high + margin


def _spacing(points: np.ndarray) -> float:
    """Typical distance from a spot to its third neighbor: the pitch of a grid."""
    return typical_spacing(points, 3) or 1.0


def _plausible(diameter: float | None, points: np.ndarray) -> float | None:
    """The recorded diameter of a spot, or None if it is not in the unit of the coordinates."""
    if diameter is None:
        return None
    spacing = _spacing(points[:, :2])
    return float(diameter) if spacing / 20 < float(diameter) < 3 * spacing else None


# ----------------------------------------------------------------------------------------------- AnnData


def _column(adata: AnnData, key: str) -> pd.Series:
    if key not in adata.obs:
        raise MissingKeyError(f"obs[{key!r}] is missing; found {_some(adata.obs)}.")
    return adata.obs[key]


def _some(names: Any) -> str:
    """The first names, for a message."""
    names = [str(name) for name in names]
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "") if names else "none"


def _library(adata: AnnData, library_id: str | None) -> Mapping[str, Any]:
    """The entry of ``uns["spatial"]`` for the section (images, scale factors, metadata), or an empty one."""
    libraries = adata.uns.get(keys.SPATIAL, {})
    if library_id is None:
        return next(iter(libraries.values())) if len(libraries) == 1 else {}
    if library_id not in libraries:
        raise InputError(
            f"library_id {library_id!r} is not in uns[{keys.SPATIAL!r}]; found {_some(libraries)}."
        )
    return libraries[library_id]
