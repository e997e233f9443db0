"""What a reader declares about its platform: how its files are recognized and what they yield."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy import sparse

from .. import keys
from ..errors import InputError
from .files import examples, find_one, holds, listing

if TYPE_CHECKING:
    from anndata import AnnData

_log = logging.getLogger("amilst_lite")

FIELDS = "fields"
"""Key of ``uns["amilst_input"]``: what was done where coordinates are those within fields of view."""

COORDINATE_SYSTEM = "coordinate_system"
"""Key of ``uns["amilst_input"]``: name of the coordinate system, where the input has such names."""

_GEOMETRIES = {
    "hexagonal": "hexagonal grid, 6 neighbors",
    "square": "square grid, 8 neighbors (6 and all that tie)",
    "free": "free; neighbors by number (--n-neighbors) or distance (--radius)",
}

_SECTION_COLUMNS = ("section", "section_id", "sample", "sample_id", "library_id", "slice", "slice_id")
_MOST_SECTIONS = 100


@dataclass(frozen=True, kw_only=True)
class Platform:
    """A platform and its reader, as registered in `dispatch`.

    Attributes
    ----------
    name : str
        Value of ``platform=`` and ``--platform``, in lower case.
    title : str
        Name in messages and tables.
    files : str
        The files that are expected, for messages and for the table of inputs in README.md.
    read : callable
        ``read(path, **options)``, which returns the AnnData.
    recognizes : callable
        Whether an existing file or folder is of this platform. Looks at names and first bytes only, and
        raises nothing on files that cannot be read.
    options : tuple of str
        Keyword options that ``read`` accepts.
    unit : str
        Unit of the coordinates: "micrometer", "pixel", "spot" (grid positions) or "unknown" (as in the file).
    geometry : {"hexagonal", "square", "free"}
        Arrangement of the spots: a hexagonal grid (6 neighbors), a square grid (8, ties included), or any.
    needs_coordinates : bool
        The files hold counts only: a table of coordinates has to be given.
    """

    name: str
    title: str
    files: str
    read: Callable[..., AnnData]
    recognizes: Callable[[Path], bool]
    options: tuple[str, ...] = ()
    unit: str = "unknown"
    geometry: Literal["hexagonal", "square", "free"] = "free"
    needs_coordinates: bool = False

    def describe(
        self, adata: AnnData, path: Path, *, left_out: Mapping[str, int] | None = None, **details: Any
    ) -> AnnData:
        """Store what is known about the input in ``uns["amilst_input"]``; log what was left out, and empty spots.

        Parameters
        ----------
        adata
            Changed in place.
        path
            The input, for the message.
        left_out
            What was left out → how many, such as ``{"control probes": 41}``; zeros are dropped.
        **details
            Replace or add entries, such as ``coordinate_unit`` or ``geometry`` where they depend on the file, or
            ``micrometers_per_unit`` where the file states it.

        Returns
        -------
        AnnData
            ``adata``.
        """
        counted = {what: int(count) for what, count in (left_out or {}).items() if count}
        adata.uns[keys.INPUT] = {
            "platform": self.name,
            "coordinate_unit": self.unit,
            "geometry": self.geometry,
            **details,
            "left_out": counted,
        }
        if counted:
            parts = ", ".join(f"{count} {what}" for what, count in counted.items())
            _log.info("%s (%s): left out %s", path, self.title, parts)
        if sparse.issparse(adata.X):
            empty = np.diff(adata.X.tocsr(copy=False).indptr) == 0
            if empty.any():
                _log.info(
                    "%s: %d of %d spots have no counts and are kept: %s",
                    path,
                    empty.sum(),
                    len(empty),
                    examples(adata.obs_names[empty], 8),
                )
        return adata


def recognizes_pair(counts: Sequence[str], places: Sequence[str]) -> Callable[[Path], bool]:
    """A function for `Platform`: whether a path is a folder with two files, or the first of them beside the second.

    Parameters
    ----------
    counts, places
        Endings of the names of the files with the counts, and of those with the places of the spots or cells.
    """

    def recognizes(path: Path) -> bool:
        if path.is_dir():
            return holds(path, counts, places)
        return path.name.endswith(tuple(counts)) and holds(path.parent, places)

    return recognizes


def find_pair(
    path: Path, platform: Platform, counts: Sequence[str], places: Sequence[str], *, same_prefix: bool = True
) -> tuple[Path, Path]:
    """The files that `recognizes_pair` is about.

    Parameters
    ----------
    path
        The folder, or the file with the counts.
    platform, counts, places
        See `recognizes_pair`.
    same_prefix
        The names begin alike, so that one folder may hold several sections. If not, a place file whose name begins
        like that of the counts (``Puck_1.`` and ``Puck_1_``) is preferred.

    Raises
    ------
    InputError
        A file is missing, or several match.
    """
    folder = path if path.is_dir() else path.parent
    found = find_one(folder, counts) if path.is_dir() else path
    prefix, partner = "", None
    if found is not None:
        prefix = next((found.name.removesuffix(name) for name in counts if found.name.endswith(name)), "")
    if prefix and not same_prefix:
        stem = prefix.rstrip("._-")
        alike = sorted(
            entry
            for entry in folder.iterdir()
            if entry.name.endswith(tuple(places))
            and entry.name.startswith((f"{stem}_", f"{stem}.", f"{stem}-"))
        )
        partner, prefix = alike[0] if len(alike) == 1 else None, ""
    if partner is None:
        partner = find_one(folder, [prefix + name for name in places])
    if found is None or partner is None:
        raise missing_files(platform, folder)
    return found, partner


def missing_files(platform: Platform, folder: Path) -> InputError:
    """The error for a folder that lacks files of a platform."""
    return InputError(
        f"{folder} is no folder of {platform.title}: expected {platform.files}; found {listing(folder)}. "
        "Give the folder that holds both."
    )


def micrometers_per_unit(adata: AnnData) -> float | None:
    """Size of the unit of ``obsm["spatial"]`` in µm; None where the input does not state it."""
    source = adata.uns.get(keys.INPUT, {})
    if source.get("coordinate_unit") == "micrometer":
        return 1.0
    size = source.get("micrometers_per_unit")
    return None if size is None else float(size)


def unit_of(adata: AnnData) -> dict[str, Any]:
    """The unit of the coordinates, for the record of a run.

    Returns
    -------
    dict
        ``coordinate_unit``, "micrometer", "pixel", "spot", "mixed" or "unknown"; and ``micrometers_per_unit`` and
        ``coordinate_system``, where the input states them.
    """
    size = micrometers_per_unit(adata)
    source = adata.uns.get(keys.INPUT, {})
    unit: dict[str, Any] = {"coordinate_unit": str(source.get("coordinate_unit", "unknown"))}
    if COORDINATE_SYSTEM in source:
        unit[COORDINATE_SYSTEM] = str(source[COORDINATE_SYSTEM])
    return unit if size is None else {**unit, "micrometers_per_unit": size}


def input_lines(adata: AnnData, spacing: float) -> list[str]:
    """What the reader knows about an input, one line each, for people.

    Parameters
    ----------
    adata
        As read.
    spacing
        Distance of neighboring spots, in the unit of the coordinates.
    """
    source = adata.uns.get(keys.INPUT, {})
    size = micrometers_per_unit(adata)
    unit = str(source.get("coordinate_unit", "unknown"))
    if size is not None and unit != "micrometer":
        unit += f" of {size:g} µm; spacing {spacing * size:.3g} µm"
    left_out = ", ".join(f"{count} {what}" for what, count in source.get("left_out", {}).items())
    geometry = str(source.get("geometry", "unknown"))
    lines = [
        f"platform: {source.get('platform', 'unknown')}",
        f"unit of the coordinates: {unit}",
        f"geometry: {_GEOMETRIES.get(geometry, geometry)}",
        f"left out: {left_out or 'nothing'}",
    ]
    titles = {COORDINATE_SYSTEM: "coordinate system", FIELDS: "fields of view"}
    return lines + [f"{title}: {source[name]}" for name, title in titles.items() if name in source]


def recommended_command(adata: AnnData, path: str, options: Mapping[str, Any]) -> str:
    """The command line of a run on an input, for people to copy.

    Parameters
    ----------
    adata
        As read.
    path
        The input as given.
    options
        Options of `read` that were given, such as ``coordinates`` and ``bin_size``.
    """
    command = ["amilst", "run", shlex.quote(path), "-o", "OUT"]
    for name, value in options.items():
        if value is not None:
            command += [f"--{name.replace('_', '-')}", shlex.quote(str(value))]
    column = "fov" if FIELDS in adata.uns.get(keys.INPUT, {}) else _section_column(adata)
    return " ".join([*command, *(["--sample-key", shlex.quote(column)] if column else [])])


def _section_column(adata: AnnData) -> str | None:
    """The column of ``obs`` that names several sections, by its name."""
    for column in adata.obs.columns:
        if str(column).lower() in _SECTION_COLUMNS and 1 < adata.obs[column].nunique() <= _MOST_SECTIONS:
            return str(column)
    return None
