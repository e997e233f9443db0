"""The arrays that the map draws: thinned, quantized and compressed."""

from __future__ import annotations

import base64
import json
import math
import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..plot.colors import Labels
from ..spatial.neighbors import space_filling_order, typical_spacing

__all__ = ["MOST_SPOTS", "Arrays", "Layout", "arrange", "thinned"]

MOST_SPOTS = (
    200_000  # drawn at most: three screens full of pixels would not show more, and 15 MB not hold them
)
_LEVELS = 65_535  # of a coordinate
_GAP = 0.08  # between sections, as a share of their size
_FAR = 1.5  # the view leaves out the most remote 0.1 % if the section is this much larger with them
_ASPECT = 1.4  # width by height of the map


class Arrays:
    """Named arrays in one compressed buffer, read by ``decode`` of ``report.js``."""

    def __init__(self) -> None:
        self.fields: dict[str, dict[str, Any]] = {}
        self._parts: list[bytes] = []

    def add(self, name: str, values: np.ndarray) -> str:
        """Append an array of unsigned integers, row by row; returns its name."""
        values = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
        self._append(name, values.dtype.name, values.tobytes())
        return name

    def add_labels(self, name: str, codes: np.ndarray, n_labels: int) -> str:
        """Append labels 0..n_labels-1 with as few bytes as possible; -1, missing, becomes the largest number."""
        kind = next(one for one in (np.uint8, np.uint16, np.uint32) if n_labels < np.iinfo(one).max)
        return self.add(name, np.where(codes < 0, np.iinfo(kind).max, codes).astype(kind))

    def add_texts(self, name: str, texts: list[str]) -> str:
        """Append texts."""
        self._append(name, "json", json.dumps(texts, separators=(",", ":")).encode("ascii"))
        return name

    def _append(self, name: str, kind: str, data: bytes) -> None:
        self.fields[name] = {"type": kind, "bytes": len(data)}
        self._parts.append(data)

    def encoded(self) -> str:
        """All arrays one after the other, as zlib data in base64."""
        return base64.b64encode(zlib.compress(b"".join(self._parts), 5)).decode("ascii")


@dataclass(frozen=True)
class Layout:
    """Sections side by side, at a common scale.

    Attributes
    ----------
    quantized : ndarray of uint16, (2, n)
        Coordinates of each spot within its section.
    sections : list of dict
        ``name``; ``low`` and ``step``: coordinate = low + step · quantized; ``place``: what is added to
        unit · step · quantized on the map; ``unit``: that of the coordinates on the map; ``frame``: x0, y0, x1, y1 of
        the section on the map; ``size``: spots.
    spacing : float
        Typical distance of neighboring spots that are drawn.
    n_far : int
        Spots outside the frames.
    """

    quantized: np.ndarray
    sections: list[dict[str, Any]] = field(default_factory=list)
    spacing: float = 1.0
    n_far: int = 0


def thinned(points: np.ndarray, sections: np.ndarray, most: int = MOST_SPOTS) -> np.ndarray:
    """Rows to draw, ascending: all, or about ``most``, the same share of each section and part of it.

    Every m-th along a space-filling curve, so that the choice does not depend on the order of the rows.
    """
    n = len(points)
    if n <= most:
        return np.arange(n)
    kept = []
    for section in np.unique(sections):
        rows = np.flatnonzero(sections == section)
        share = max(1, most * len(rows) // n)
        along = rows[space_filling_order(points[rows])]
        kept.append(along[np.arange(share) * len(rows) // share])
    return np.sort(np.concatenate(kept))


def arrange(
    points: np.ndarray, sections: Labels, drawn: np.ndarray, units: np.ndarray | None = None
) -> Layout:
    """Place the sections of the ``drawn`` spots; ``points`` (N, 2) and ``sections`` are those of all spots.

    ``units``, (n_sections,), are the sizes of the unit of the coordinates, which may differ from section to section;
    default: 1.
    """
    codes = sections.codes[drawn]
    units = np.ones(len(sections.names)) if units is None else units
    points = points[drawn] * units[codes][:, None]
    members = [np.flatnonzero(codes == i) for i in range(len(sections.names))]
    frames = [_frame(points[rows]) for rows in members]
    extent = np.maximum(np.max([high - low for low, high in frames], axis=0), 1e-9)
    pitch = extent + _GAP * extent.max()
    n_across = _columns(len(frames), pitch)
    quantized = np.zeros((2, len(points)), dtype=np.uint16)
    sizes = np.bincount(sections.codes, minlength=len(members))
    placed: list[dict[str, Any]] = []
    far = 0
    for i, (rows, (low, high)) in enumerate(zip(members, frames, strict=True)):
        # Centered in its cell of the grid
        corner = np.array([i % n_across, i // n_across]) * pitch + (extent - (high - low)) / 2
        origin = points[rows].min(axis=0)
        step = float(np.ptp(points[rows], axis=0).max()) / _LEVELS or 1.0
        quantized[:, rows] = np.rint((points[rows] - origin) / step).T
        placed.append(
            {
                "name": sections.names[i],
                "low": (origin / units[i]).tolist(),
                "step": step / units[i],
                "unit": float(units[i]),
                "place": (corner - low + origin).tolist(),
                "frame": [*corner.tolist(), *(corner + high - low).tolist()],
                "size": int(sizes[i]),
            }
        )
        far += int(((points[rows] < low) | (points[rows] > high)).any(axis=1).sum())
    told = [typical_spacing(points[rows], 3) for rows in members if len(rows) > 3]
    spacing = float(np.median([one for one in told if one] or [extent.max() / 20]))
    return Layout(quantized, placed, spacing, far)


def _frame(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Corners of a section: of all spots, or without 0.1 % at each side that would make it much larger."""
    low, high = points.min(axis=0), points.max(axis=0)
    inner_low, inner_high = np.quantile(points, [0.001, 0.999], axis=0)
    if len(points) > 20 and ((high - low) > _FAR * (inner_high - inner_low)).any():
        margin = 0.05 * (inner_high - inner_low).max()
        return np.maximum(low, inner_low - margin), np.minimum(high, inner_high + margin)
    return low, high


def _columns(n: int, pitch: np.ndarray) -> int:
    """The number of sections side by side for which the map is about 1.4 times as wide as high."""

    def cost(across: int) -> float:
        aspect = across * pitch[0] / (math.ceil(n / across) * pitch[1])
        return abs(math.log(aspect / _ASPECT)) + (-n % across) / n

    return min(range(1, n + 1), key=cost)
