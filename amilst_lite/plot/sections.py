"""Domains on the section, or on each of several sections."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from .. import keys
from ..errors import InputError, MissingKeyError
from ..io.visium import tissue_image
from ..metrics import adjusted_rand_index
from ..spatial.neighbors import check_coordinates, typical_spacing
from .colors import Labels, matched_colors, sections_of, stored_colors
from .figure import DPI, INK, RASTERIZE_FROM, left_out, legend, legend_inches, require_matplotlib
from .panels import Block, Panels, one_section, several_sections

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["domains", "draw_domains", "obs_column", "recorded_sections"]

MOST_SECTIONS = 48  # with more, and three panels each, a panel would be narrower than an inch
_SPOTS_OF_A_PLANE = 3  # on average; with fewer, z is a coordinate and not the number of a plane


@dataclass(frozen=True)
class _Slide:
    """What lies below the spots of a section, and their size in the unit of the coordinates."""

    image: np.ndarray | None = None
    image_scale: float = 1.0
    spot_diameter: float | None = None


@dataclass(frozen=True)
class _Kind:
    """What one panel of every section shows: labels, or numbers."""

    name: str
    per_spot: dict[str, np.ndarray]  # options of the discs, one entry for each spot
    groups: Labels | None = None
    colors: dict[str, str] = field(default_factory=dict)
    common: dict[str, Any] = field(default_factory=dict)  # options of all discs
    in_legend: bool = True  # of several sections; the refined domains usually have the colors of the domains

    @classmethod
    def of(cls, name: str, groups: Labels, colors: dict[str, str], in_legend: bool = True) -> _Kind:
        return cls(name, {"facecolors": groups.spot_colors(colors)}, groups, colors, in_legend=in_legend)

    @property
    def entries(self) -> list[tuple[str, int, str]] | None:
        return None if self.groups is None else self.groups.entries(self.colors)


def domains(
    adata: AnnData,
    key: str = keys.ResultKeys().domain,
    *,
    refined: str | None = None,
    annotation: str | None = None,
    confidence: str | None = None,
    sample_key: str | None = None,
    basis: str = keys.SPATIAL,
    image: str | bool = "auto",
    library_id: str | None = None,
    spot_diameter: float | None = None,
    colors: Mapping[str, str] | None = None,
    title: str | None = None,
) -> Figure:
    """Draw the domains at the positions of the spots, over the tissue image if there is one.

    Several sections are drawn in panels of one spatial scale, in the order of their categories or of first
    appearance, with one legend. Of more than 48 sections the first 48 are drawn.

    Parameters
    ----------
    adata : AnnData
        One or several sections, with coordinates in ``obsm[basis]``.
    key : str
        Column of ``obs`` with the domains.
    refined, annotation : str, optional
        Columns of ``obs`` to draw in further panels: the refined domains, and an annotation. With an
        annotation, the title of each panel gives the agreement of its domains with it (adjusted Rand index),
        of the spots of the section.
    confidence : str, optional
        Column of ``obs`` with numbers in [0, 1], drawn in a further panel.
    sample_key : str, optional
        Column of ``obs`` with the section of each spot. Default: the column with which `identify_domains`
        found the domains, if there was one.
    basis : str
        Key of ``obsm``; of three coordinates the first two are drawn. Without sections, each value of the
        third is a section if it takes at most 48 values, each for three spots on average.
    image : {"auto"} or bool
        Draw over the tissue image: if there is one, always, never. The image is taken from
        ``uns["spatial"][library]``: an array as in scanpy, or the file whose path `read_visium` recorded,
        with its scale factor.
    library_id : str, optional
        Entry of ``uns["spatial"]`` with image and spot size of all spots; needed if there are several and
        they are not named like the sections. Default: for each section the entry with its name; if no
        section has one, the only entry.
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
        There is no image although ``image=True``, ``library_id`` is unknown, a coordinate is not finite, or a
        spot has no section.
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
    if image not in ("auto", True, False):
        raise InputError(f"image must be 'auto', True or False; found {image!r}.")
    columns = {"labels": key, "refined": refined, "annotation": annotation, "confidence": confidence}
    values: dict[str, Any] = {
        name: None if column is None else obs_column(adata, column) for name, column in columns.items()
    }
    sections = split_sections(points, recorded_sections(adata, key, sample_key))
    libraries = _libraries(adata, library_id, sections.names)

    def slide(section: int, spots: np.ndarray) -> _Slide:
        library = libraries[section]
        found = tissue_image(library) if image else None
        if image is True and found is None:
            raise InputError(
                f"image=True, but uns[{keys.SPATIAL!r}] has no image that can be read"
                f"{f' for section {sections.names[section]!r}' if len(libraries) > 1 else ''}. "
                "Use image='auto' or False."
            )
        recorded = library.get("scalefactors", {}).get("spot_diameter_fullres")
        pixels, scale = found or (None, 1.0)
        return _Slide(pixels, scale, spot_diameter or _plausible(recorded, spots))

    return _draw(
        points,
        sections,
        slide,
        **values,
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
    sections: ArrayLike | None = None,
    image: np.ndarray | None = None,
    image_scale: float = 1.0,
    spot_diameter: float | None = None,
    colors: Mapping[str, str] | None = None,
    refined_colors: Mapping[str, str] | None = None,
    annotation_colors: Mapping[str, str] | None = None,
    title: str | None = None,
) -> Figure:
    """Draw the domains of one or several sections from arrays, as `domains` does from an AnnData.

    Parameters
    ----------
    coordinates : ndarray, shape (n_spots, 2) or (n_spots, 3)
        x and y, y downwards as in an image. A third coordinate is not drawn; it separates the planes of a
        stack, as in `domains`.
    labels, refined : array-like, shape (n_spots,)
        Domains. A label has the same color in every figure: integers count from 0, strings
        "1", "2", ... from 1, other labels in the order of their categories or alphabetically.
    annotation : array-like, shape (n_spots,)
        Spots without one (None, NaN, "") are drawn in gray.
    confidence : array-like, shape (n_spots,)
        Numbers in [0, 1].
    sections : array-like, shape (n_spots,)
        The section of each spot.
    image : ndarray, shape (height, width, 3 or 4), optional
        uint8, or floats in [0, 1]; below all sections.
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
        The lengths differ, a coordinate is not finite, a spot has no section, or a color is unknown.
    MissingExtraError
        matplotlib is not installed.
    """
    require_matplotlib()  # before any other error
    points = check_coordinates(coordinates)
    for name, values in (
        ("labels", labels), ("refined", refined), ("annotation", annotation), ("confidence", confidence),
        ("sections", sections),
    ):  # fmt: skip
        if values is not None and np.shape(values) != (len(points),):
            raise InputError(
                f"{name} must have one entry for each of the {len(points)} spots; found {np.shape(values)}."
            )
    return _draw(
        points,
        split_sections(points, sections),
        lambda *_: _Slide(image, image_scale, spot_diameter),
        labels=labels,
        refined=refined,
        annotation=annotation,
        confidence=confidence,
        colors=colors,
        refined_colors=refined_colors,
        annotation_colors=annotation_colors,
        title=title,
    )


def split_sections(points: np.ndarray, sections: ArrayLike | None) -> Labels:
    """The section of every spot: as given, else the planes of a stack, else one section without a name."""
    if sections is not None:
        return sections_of(sections)
    if points.shape[1] == 3:
        planes, codes = np.unique(points[:, 2], return_inverse=True)
        if len(planes) <= min(MOST_SECTIONS, len(points) // _SPOTS_OF_A_PLANE):
            names = tuple(f"z = {np.format_float_positional(z, trim='-')}" for z in planes)
            return Labels(codes.ravel(), names, zero_based=False)
    return Labels(np.zeros(len(points), dtype=np.int64), ("",), zero_based=False)


# --------------------------------------------------------------------------------------------- the figure


def _draw(
    points: np.ndarray,
    sections: Labels,
    slide: Callable[[int, np.ndarray], _Slide],
    *,
    labels: ArrayLike,
    refined: ArrayLike | None,
    annotation: ArrayLike | None,
    confidence: ArrayLike | None,
    colors: Mapping[str, str] | None,
    refined_colors: Mapping[str, str] | None,
    annotation_colors: Mapping[str, str] | None,
    title: str | None,
) -> Figure:
    """Draw panels by section and kind; ``slide`` returns what belongs to a section and its spots."""
    several = len(sections.names) > 1
    own = Labels.of(labels)
    own_colors = own.colors(colors)
    kinds = [_Kind.of("Domains", own, own_colors)]
    if refined is not None:
        groups = Labels.of(refined)
        chosen = groups.colors({**own_colors, **(refined_colors or {})})
        name = "Refined" if several else "Refined domains"
        kinds.append(_Kind.of(name, groups, chosen, not chosen.items() <= own_colors.items()))
    truth = None
    if annotation is not None:
        truth = Labels.of(annotation)
        chosen = truth.colors({**matched_colors(truth, own, own_colors), **(annotation_colors or {})})
        kinds.insert(0, _Kind.of("Annotation", truth, chosen))
    if confidence is not None:
        kinds.append(_confidence(np.asarray(confidence, dtype=np.float64)))

    points = points[:, :2]
    drawn = [np.flatnonzero(sections.codes == i) for i in range(min(len(sections.names), MOST_SECTIONS))]
    spacings = _spacings([points[spots] for spots in drawn])
    frames = [_frame(points[spots], spacing) for spots, spacing in zip(drawn, spacings, strict=True)]
    # The same extent in all panels, so that they have the same scale
    extent = np.max([high - low for low, high in frames], axis=0)
    panels = _panels(kinds, sections, extent, title)
    # Discs much smaller than a pixel would be nearly invisible
    smallest = 1.5 * float(extent.max()) / (panels.longer_side * DPI)
    for i, (spots, spacing, (low, high)) in enumerate(zip(drawn, spacings, frames, strict=True)):
        below = slide(i, points[spots])
        middle = (low + high) / 2
        discs = [
            _draw_section(
                axis,
                points=points[spots],
                diameter=max(below.spot_diameter or 0.95 * spacing, smallest),
                low=middle - extent / 2,
                high=middle + extent / 2,
                slide=below,
                rasterized=len(points) > RASTERIZE_FROM,
                **{name: values[spots] for name, values in kind.per_spot.items()},
                **kind.common,
            )
            for axis, kind in zip(panels.axes[i], kinds, strict=True)
        ]
        titles = [kind.name + _agreement(truth, kind.groups, spots) for kind in kinds]
        panels.set_titles(i, titles, sections.names[i] if several else None)
    if confidence is not None:
        place: dict[str, Any] = {"cax": panels.color_bar}
        if panels.color_bar is None:
            place = {"ax": panels.axes[0][-1], "shrink": 0.6, "aspect": 18, "pad": 0.02}
        clipped = "min" if kinds[-1].common["norm"].vmin > 0 else "neither"
        bar = panels.figure.colorbar(discs[-1], extend=clipped, **place)
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=8, length=0, colors=INK)
    return panels.figure


def _panels(kinds: list[_Kind], sections: Labels, extent: np.ndarray, title: str | None) -> Panels:
    """Empty panels with their legends: one beside each panel, or one for all sections."""
    n_sections = len(sections.names)
    if n_sections == 1:
        widest = max(legend_inches([*kind.groups.names, "none"]) for kind in kinds if kind.groups is not None)
        panels = one_section(len(kinds), extent, widest, title)
        for axis, kind in zip(panels.axes[0], kinds, strict=True):
            if kind.entries is not None:
                legend(axis, kind.entries)
        return panels
    blocks = [Block(kind.name, kind.entries) for kind in kinds if kind.in_legend]
    n_drawn = min(n_sections, MOST_SECTIONS)
    note = left_out(n_drawn, n_sections) if n_drawn < n_sections else None
    return several_sections(n_drawn, len(kinds), extent, blocks, title, note)


def _confidence(values: np.ndarray) -> _Kind:
    """Light for confident spots, dark for uncertain ones."""
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    finite = values[np.isfinite(values)]
    floor = float(np.floor(10 * np.quantile(finite, 0.02)) / 10) if len(finite) else 0.0
    shades = LinearSegmentedColormap.from_list("confidence", ["#3F1052", "#8E3A7A", "#D58AA5", "#E9DFE3"])
    scale = {"cmap": shades, "norm": Normalize(min(floor, 0.9), 1.0)}
    return _Kind("Confidence", {"array": values}, common=scale)


def _agreement(truth: Labels | None, groups: Labels | None, spots: np.ndarray) -> str:
    """The adjusted Rand index of ``groups``, for a title; nothing where fewer than two spots have both labels."""
    if truth is None or groups is None or groups is truth:
        return ""
    codes = truth.codes[spots], groups.codes[spots]
    both = (codes[0] >= 0) & (codes[1] >= 0)
    if both.sum() < 2:
        return ""
    return f"  ·  ARI {adjusted_rand_index(codes[0][both], codes[1][both]):.2f}"


def _draw_section(
    axis: Axes,
    *,
    points: np.ndarray,
    diameter: float,
    low: np.ndarray,
    high: np.ndarray,
    slide: _Slide,
    **style: Any,
) -> Any:
    """Draw spots as discs whose size is in the unit of the coordinates; returns their collection."""
    from matplotlib.collections import EllipseCollection

    if slide.image is not None:
        height, width = np.array(np.shape(slide.image)[:2]) / slide.image_scale
        axis.imshow(slide.image, extent=(0, width, height, 0), alpha=0.75)
    discs = EllipseCollection(
        [diameter],
        [diameter],
        [0],
        units="xy",
        offsets=points,
        offset_transform=axis.transData,
        linewidths=0,
        **style,
    )
    discs.set_in_layout(False)  # all discs are inside the axes: the layout need not measure them
    axis.add_collection(discs, autolim=False)
    axis.set(xlim=(low[0], high[0]), ylim=(high[1], low[1]), aspect="equal")  # y downwards
    axis.set_axis_off()
    return discs


def _frame(points: np.ndarray, spacing: float) -> tuple[np.ndarray, np.ndarray]:
    """Corners of the drawn area: the bounding box of the spots and a margin."""
    low, high = points.min(axis=0), points.max(axis=0)
    margin = max(0.03 * float((high - low).max()), spacing)
    return low - margin, high + margin


def _spacing(points: np.ndarray) -> float:
    """Typical distance from a spot to its third neighbor: the pitch of a grid."""
    return typical_spacing(points, 3) or 1.0


def _spacings(sections: list[np.ndarray]) -> list[float]:
    """The spacing in each section; where there are too few spots to tell, the median of the others."""
    told = [typical_spacing(points, 3) if len(points) > 3 else 0.0 for points in sections]
    usual = float(np.median([one for one in told if one] or [0.0]))
    return [one or usual or _spacing(points) for one, points in zip(told, sections, strict=True)]


def _plausible(diameter: float | None, points: np.ndarray) -> float | None:
    """The recorded diameter of a spot, or None if it is not in the unit of the coordinates."""
    if diameter is None:
        return None
    spacing = _spacing(points[:, :2])
    return float(diameter) if spacing / 20 < float(diameter) < 3 * spacing else None


# ----------------------------------------------------------------------------------------------- AnnData


def recorded_sections(adata: AnnData, key: str, sample_key: str | None) -> pd.Series | None:
    """The column with the sections: the given one, else that of the run that wrote the column ``key``, if any."""
    if sample_key is None:
        record = adata.uns.get(key.removesuffix("_refined").removesuffix("_domain"))
        recorded = record.get("sample_key") if isinstance(record, Mapping) else None
        # None, "none", or the name of a column that was removed since
        return adata.obs[recorded] if isinstance(recorded, str) and recorded in adata.obs else None
    return obs_column(adata, sample_key)


def obs_column(adata: AnnData, key: str) -> pd.Series:
    """A column of ``obs``."""
    if key not in adata.obs:
        raise MissingKeyError(f"obs[{key!r}] is missing; found {_some(adata.obs)}.")
    return adata.obs[key]


def _some(names: Any) -> str:
    """The first names, for a message."""
    names = [str(name) for name in names]
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "") if names else "none"


def _libraries(adata: AnnData, library_id: str | None, sections: tuple[str, ...]) -> list[Mapping[str, Any]]:
    """The entry of ``uns["spatial"]`` (images, scale factors, metadata) of each section, or an empty one."""
    libraries = adata.uns.get(keys.SPATIAL, {})
    if library_id is not None and library_id not in libraries:
        raise InputError(
            f"library_id {library_id!r} is not in uns[{keys.SPATIAL!r}]; found {_some(libraries)}."
        )
    if library_id is None and any(name in libraries for name in sections):
        return [libraries.get(name, {}) for name in sections]
    if library_id is None and len(libraries) == 1:
        library_id = next(iter(libraries))
    return [{} if library_id is None else libraries[library_id]] * len(sections)
