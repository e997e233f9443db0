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
from .figure import DPI, INK, RASTERIZE_FROM, SIZE, as_written, left_out, literal, require_matplotlib
from .image import as_rgb
from .panels import MOST_PANELS, Block, arrange
from .slots import obs_column, recorded_sections, some
from .units import check_micrometers, micrometers_of, scale_bar

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["domains", "draw_domains", "libraries_of", "plausible_diameter", "split_sections"]

MOST_SECTIONS = 48
_SPOTS_OF_A_PLANE = 3  # on average; with fewer, z is a coordinate and not the number of a plane
_FRAMED_FROM = 20  # spots; in smaller sections none is far away
_FAR = 1.0  # beyond the outer 1 % of the spots by more than this share of the extent of the others
_MOST_DRAWN = 500_000  # spots of all sections together; a figure has no more pixels to show them
_GAPLESS = 1.5  # diameter of the disc of a spot that stands for a square, as a multiple of its side
_NUMBERED_FROM = 21  # labels; so many colors are hard to match with a legend
_LABEL = 0.25  # width of the longest label written on the tissue, inches


@dataclass(frozen=True)
class _Slide:
    """What lies below the spots of a section, and their size and unit."""

    image: np.ndarray | None = None
    image_scale: float = 1.0
    spot_diameter: float | None = None  # in the unit of the coordinates
    micrometers_per_unit: float | None = None


@dataclass(frozen=True)
class _Frame:
    """What of a section is drawn, in the unit of its coordinates."""

    low: np.ndarray
    high: np.ndarray
    n_outside: int  # spots far away from all others


@dataclass(frozen=True)
class _Kind:
    """What one panel of every section shows: labels, or numbers."""

    name: str
    per_spot: Callable[
        [np.ndarray], dict[str, np.ndarray]
    ]  # spots → options of their discs, one entry for each
    groups: Labels | None = None
    colors: dict[str, str] = field(default_factory=dict)
    common: dict[str, Any] = field(default_factory=dict)  # options of all discs
    in_legend: bool = True  # of several sections; the refined domains usually have the colors of the domains

    @classmethod
    def of(cls, name: str, groups: Labels, colors: dict[str, str], in_legend: bool = True) -> _Kind:
        table = groups.table(colors)
        return cls(
            name,
            lambda spots: {"facecolors": table[groups.codes[spots]]},
            groups,
            colors,
            in_legend=in_legend,
        )

    @property
    def entries(self) -> list[tuple[str, int, str]] | None:
        return None if self.groups is None else self.groups.legend(self.colors)


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
    micrometers_per_unit: float | None = None,
    title: str | None = None,
) -> Figure:
    """Draw the domains at the positions of the spots, over the tissue image if there is one.

    Several sections are drawn in panels of one spatial scale, in the order of their categories or of first
    appearance, with one legend. At most 48 sections and 96 panels are drawn. With more than 20 labels of at most
    four characters, each is also written on the tissue, where there is space. If a few spots (up to 1 % at each
    side) lie farther from the others than the extent of these, they are left outside the frame, and a note below
    the panels says so.

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
        In the unit of the coordinates. Default: over an image, the value in ``uns["spatial"]``; otherwise spots
        fill the distance between neighbors, so that colors are easy to see.
    colors : mapping, optional
        Colors of domains by label. Labels not in it have the colors in ``uns["<column>_colors"]`` (scanpy's
        convention) if these are valid, else those of `palette`; regions of an annotation without stored
        colors have the color of the domain with which they overlap most, each color being used once, and a
        grayish color if there is none.
    micrometers_per_unit : float, optional
        Of the coordinates, for the scale bar. Default: what is recorded in ``uns``, ``micrometers_per_unit`` or
        ``coordinate_unit`` in ``uns["amilst_input"]`` or ``microns_per_pixel`` in the scale factors; for Visium,
        100 µm between neighboring spots, by ``array_row`` and ``array_col``. Without any of these there is no
        scale bar.
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
        There is no image although ``image=True``, ``library_id`` is unknown, a coordinate is not finite, a
        spot has no section, a confidence is no number in [0, 1], or ``micrometers_per_unit`` is not positive.
    MissingExtraError
        matplotlib is not installed.

    Warns
    -----
    AmilstWarning
        The file of the recorded image is missing or cannot be read; the figure is drawn without it.
    """
    require_matplotlib()  # before any other error
    columns = {"labels": key, "refined": refined, "annotation": annotation, "confidence": confidence}
    values: dict[str, Any] = {
        name: None if column is None else obs_column(adata, column) for name, column in columns.items()
    }
    if basis not in adata.obsm:
        raise MissingKeyError(f"obsm[{basis!r}] with coordinates is missing; found {some(adata.obsm)}.")
    points = check_coordinates(adata.obsm[basis])
    if image not in ("auto", True, False):
        raise InputError(f"image must be 'auto', True or False; found {image!r}.")
    sections = split_sections(points, recorded_sections(adata, key, sample_key))
    libraries = libraries_of(adata, library_id, sections.names)
    check_micrometers(micrometers_per_unit)

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
        unit = micrometers_per_unit or micrometers_of(
            adata, library, points[:, :2], sections.codes == section, basis=basis
        )
        diameter = spot_diameter or (plausible_diameter(recorded, spots) if found else None)
        return _Slide(pixels, scale, diameter, unit)

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
    micrometers_per_unit: float | None = None,
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
    micrometers_per_unit : float, optional
        Of the coordinates, for the scale bar; without it there is none.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    InputError
        The lengths differ, a coordinate is not finite, a spot has no section, a confidence is no number in [0, 1],
        a color is unknown, or ``micrometers_per_unit`` is not positive.
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
    check_micrometers(micrometers_per_unit)
    return _draw(
        points,
        split_sections(points, sections),
        lambda *_: _Slide(image, image_scale, spot_diameter, micrometers_per_unit),
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
        kinds.append(_confidence(_numbers(confidence)))

    points = points[:, :2]
    n_drawn = min(len(sections.names), MOST_SECTIONS, MOST_PANELS // len(kinds))
    drawn = [np.flatnonzero(sections.codes == i) for i in range(n_drawn)]
    shown, sides = _thinned(points, drawn)
    spacings = _spacings([points[spots] for spots in drawn])
    frames = [_frame(points[spots], spacing) for spots, spacing in zip(drawn, spacings, strict=True)]
    slides = [slide(i, points[spots]) for i, spots in enumerate(drawn)]
    # Known units may differ from section to section, as pixels of images do
    found = [below.micrometers_per_unit for below in slides]
    units = np.array([unit for unit in found if unit])
    known = len(units) == n_drawn
    if not known:
        units = np.ones(n_drawn)
    # The same extent in all panels, so that they have the same scale
    extent = np.max([(one.high - one.low) * unit for one, unit in zip(frames, units, strict=True)], axis=0)
    panels = arrange(
        n_drawn,
        len(kinds),
        extent,
        [Block(kind.name, kind.entries) for kind in kinds if kind.in_legend],
        named=several,
        scored=truth is not None,
        title=title,
        notes=_notes(n_drawn, sections, frames, sum(map(len, shown)), sum(map(len, drawn))),
        scale_bar=scale_bar(float(extent.max())) if known else None,
    )
    inch = float(extent.max()) / panels.longer_side
    smallest = 1.5 * inch / DPI  # discs much smaller than a pixel would be nearly invisible
    closest = _LABEL * inch
    for i, (spots, chosen, side, spacing, frame, below, unit) in enumerate(
        zip(drawn, shown, sides, spacings, frames, slides, units.tolist(), strict=True)
    ):
        middle, half = (frame.low + frame.high) / 2, extent / unit / 2
        discs = [
            _draw_section(
                axis,
                points=points[chosen],
                diameter=max(below.spot_diameter or 0.95 * spacing, smallest / unit, _GAPLESS * side),
                low=middle - half,
                high=middle + half,
                slide=below,
                rasterized=len(points) > RASTERIZE_FROM,
                **kind.per_spot(chosen),
                **kind.common,
            )
            for axis, kind in zip(panels.axes[i], kinds, strict=True)
        ]
        for axis, kind in zip(panels.axes[i], kinds, strict=True):
            if kind.groups is not None:
                _write_labels(axis, points[chosen], kind.groups, kind.groups.codes[chosen], closest / unit)
        titles = [kind.name + _agreement(truth, kind.groups, spots) for kind in kinds]
        panels.set_titles(i, titles, sections.drawn[i] if several else None)
    if panels.color_bar is not None:
        clipped = "min" if kinds[-1].common["norm"].vmin > 0 else "neither"
        bar = panels.figure.colorbar(
            discs[-1], cax=panels.color_bar, orientation="horizontal", extend=clipped
        )
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=SIZE - 1, length=0, pad=2, colors=INK)
    return panels.figure


def _thinned(points: np.ndarray, sections: list[np.ndarray]) -> tuple[list[np.ndarray], list[float]]:
    """The spots to draw of each section, and the sides of the squares that each of them stands for.

    All, and zero, up to `_MOST_DRAWN`. Of more, one at random in each square of a grid, the same share of each section:
    a sample without the gaps and clumps of one that ignores where the spots are.
    """
    n_spots = sum(map(len, sections))
    if n_spots <= _MOST_DRAWN:
        return sections, [0.0] * len(sections)
    shown, sides = [], []
    for number, spots in enumerate(sections):
        wanted = max(1, len(spots) * _MOST_DRAWN // n_spots)
        mixed = np.random.default_rng(number).permutation(len(spots))
        own = points[spots[mixed]]
        low = own.min(axis=0)
        side = float(np.sqrt(np.maximum(np.ptp(own, axis=0), 1e-12).prod() / wanted))
        for _ in range(3):  # tissue does not fill the rectangle around it
            cells = ((own - low) / side).astype(np.int64)
            _, first = np.unique(cells[:, 0] * (cells[:, 1].max() + 1) + cells[:, 1], return_index=True)
            if 0.9 * wanted <= len(first) <= wanted:
                break
            side *= float(np.sqrt(len(first) / (0.95 * wanted)))
        shown.append(np.sort(spots[mixed[first]]))
        sides.append(side)
    return shown, sides


def _notes(n_drawn: int, sections: Labels, frames: list[_Frame], n_shown: int, n_spots: int) -> list[str]:
    """What the figure does not show."""
    notes = []
    if n_shown < n_spots:
        notes.append(
            f"{n_shown:,} of {n_spots:,} spots are drawn, one at random in each of as many squares; numbers count all."
        )
    if n_drawn < len(sections.names):
        notes.append(left_out(n_drawn, len(sections.names)))
    cut = [
        (name, frame.n_outside)
        for name, frame in zip(sections.names, frames, strict=False)
        if frame.n_outside
    ]
    if cut:
        n_spots = sum(n for _, n in cut)
        where = f" ({', '.join(name for name, _ in cut)})" if len(sections.names) > 1 else ""
        verb = "spot lies" if n_spots == 1 else "spots lie"
        notes.append(f"{n_spots:,} {verb} far from all others and outside the frame{where}.")
    return notes


def _write_labels(axis: Axes, points: np.ndarray, groups: Labels, codes: np.ndarray, closest: float) -> None:
    """Write many short labels on the tissue, each in the middle of its spots unless it would cover another."""
    if len(groups.names) < _NUMBERED_FROM or max(map(len, groups.drawn)) > 4:
        return
    from matplotlib.patheffects import withStroke

    sizes = np.bincount(codes[codes >= 0], minlength=len(groups.names))
    written = np.empty((0, 2))
    for code in np.argsort(-sizes, kind="stable")[: np.count_nonzero(sizes)]:
        own = points[codes == code]
        middle = own[np.argmin(((own - np.median(own, axis=0)) ** 2).sum(axis=1))]
        if (np.hypot(*(written - middle).T) < closest).any():
            continue
        written = np.vstack([written, middle])
        text = literal(groups.drawn[code])
        axis.text(
            float(middle[0]), float(middle[1]), text, fontsize=SIZE - 2, color="black", ha="center", va="center",
            clip_on=True, path_effects=[withStroke(linewidth=1.5, foreground="white")], **as_written(text),
        )  # fmt: skip


def _numbers(confidence: ArrayLike) -> np.ndarray:
    """Confidences as float64; NaN, where there is none, is allowed."""
    given = pd.Series(confidence)
    if pd.api.types.is_numeric_dtype(given):
        values = given.to_numpy(np.float64, na_value=np.nan)
        if not ((values < 0) | (values > 1)).any():
            return values
    raise InputError(f"confidence must hold numbers in [0, 1]; found {some(given.drop_duplicates())}.")


def _confidence(values: np.ndarray) -> _Kind:
    """Light for confident spots, dark for uncertain ones."""
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    finite = values[np.isfinite(values)]
    floor = float(np.floor(10 * np.quantile(finite, 0.02)) / 10) if len(finite) else 0.0
    shades = LinearSegmentedColormap.from_list("confidence", ["#3F1052", "#8E3A7A", "#D58AA5", "#E9DFE3"])
    scale = {"cmap": shades, "norm": Normalize(min(floor, 0.9), 1.0)}
    return _Kind("Confidence", lambda spots: {"array": values[spots]}, common=scale)


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
        axis.imshow(as_rgb(slide.image), extent=(0, width, height, 0), alpha=0.75)
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


def _frame(points: np.ndarray, spacing: float) -> _Frame:
    """The drawn area: the bounding box of the spots, without the few that lie far away, and a margin."""
    inside = np.ones(len(points), dtype=bool)
    if len(points) >= _FRAMED_FROM:
        low = np.quantile(points, 0.01, axis=0, method="higher")
        high = np.quantile(points, 0.99, axis=0, method="lower")
        far = _FAR * float((high - low).max())
        if far > 0:
            inside = ((points >= low - far) & (points <= high + far)).all(axis=1)
    low, high = points[inside].min(axis=0), points[inside].max(axis=0)
    margin = max(0.03 * float((high - low).max()), spacing)
    return _Frame(low - margin, high + margin, int((~inside).sum()))


def _spacing(points: np.ndarray) -> float:
    """Typical distance from a spot to its third neighbor: the pitch of a grid."""
    return typical_spacing(points, 3) or 1.0


def _spacings(sections: list[np.ndarray]) -> list[float]:
    """The spacing in each section; where there are too few spots to tell, the median of the others."""
    told = [typical_spacing(points, 3) if len(points) > 3 else 0.0 for points in sections]
    usual = float(np.median([one for one in told if one] or [0.0]))
    return [one or usual or _spacing(points) for one, points in zip(told, sections, strict=True)]


def plausible_diameter(diameter: float | None, points: np.ndarray) -> float | None:
    """The recorded diameter of a spot, or None if it is not in the unit of the coordinates."""
    if diameter is None:
        return None
    spacing = _spacing(points[:, :2])
    return float(diameter) if spacing / 20 < float(diameter) < 3 * spacing else None


# ----------------------------------------------------------------------------------------------- AnnData


def libraries_of(
    adata: AnnData, library_id: str | None, sections: tuple[str, ...]
) -> list[Mapping[str, Any]]:
    """The entry of ``uns["spatial"]`` (images, scale factors, metadata) of each section, or an empty one."""
    libraries = adata.uns.get(keys.SPATIAL, {})
    if library_id is not None and library_id not in libraries:
        raise InputError(
            f"library_id {library_id!r} is not in uns[{keys.SPATIAL!r}]; found {some(libraries)}."
        )
    if library_id is None and any(name in libraries for name in sections):
        return [libraries.get(name, {}) for name in sections]
    if library_id is None and len(libraries) == 1:
        library_id = next(iter(libraries))
    return [{} if library_id is None else libraries[library_id]] * len(sections)
