"""Coordinate systems of the elements of a SpatialData store, from the metadata of the elements.

Source: OME-NGFF, "coordinateTransformations" (RFC 5), in the form in which spatialdata writes it, and spatialdata's
design document.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_AXES = ("x", "y", "z")
_MICROMETERS = {
    "nanometer": 0.001, "nm": 0.001, "micrometer": 1.0, "micron": 1.0, "um": 1.0, "µm": 1.0,
    "millimeter": 1000.0, "mm": 1000.0,
}  # fmt: skip
"""Size in µm of the units that axes may have. spatialdata itself writes "unit", which says nothing."""
_MOST_LEVELS = 32


@dataclass(frozen=True)
class Placement:
    """Where an element lies in a coordinate system.

    Attributes
    ----------
    matrix : ndarray, (4, 4)
        From the element's own x, y, z, 1 to those of the coordinate system.
    unit : str or None
        Unit of x and y in the coordinate system; None if the store does not tell it.
    """

    matrix: np.ndarray
    unit: str | None = None

    @property
    def is_identity(self) -> bool:
        """Whether the coordinates stay as they are."""
        return np.array_equal(self.matrix, np.eye(4))

    def apply(self, points: np.ndarray) -> np.ndarray:
        """Points (n, 2 or 3) in the coordinate system; those without z have z = 0, and remain without."""
        d = points.shape[1]
        return points @ self.matrix[:d, :d].T + self.matrix[:d, 3]

    def description(self) -> dict[str, Any]:
        """Entries of ``uns["amilst_input"]`` that state the unit."""
        if self.unit == "pixel":
            return {"coordinate_unit": "pixel"}
        size = _MICROMETERS.get(self.unit or "")
        if size == 1:
            return {"coordinate_unit": "micrometer"}
        return {} if size is None else {"micrometers_per_unit": size}


OWN = Placement(np.eye(4))
"""The coordinates of the element itself."""


def placements(attributes: Mapping[str, Any]) -> dict[str, Placement]:
    """Name of a coordinate system → where the element lies in it.

    Parameters
    ----------
    attributes
        Of the zarr group of shapes, points or labels. Without transformations, the element lies in "global" as it
        is, which is spatialdata's default.

    Raises
    ------
    ValueError, KeyError, TypeError
        A transformation is of an unknown type, or incomplete.
    """
    image = attributes.get("ome", attributes)
    described = image["multiscales"][0] if "multiscales" in image else attributes
    documents = described.get("coordinateTransformations")
    if not documents:
        return {"global": OWN}
    found = {}
    for one in documents:
        output = one.get("output")
        name = output.get("name") if isinstance(output, dict) else output
        matrix = _matrix(one, _names_of_axes(described) or _AXES, 0)
        if not np.isfinite(matrix).all() or np.linalg.det(matrix[:2, :2]) == 0:
            raise ValueError(
                f"the transformation to the coordinate system {name!r} is not invertible: {matrix.tolist()}"
            )
        found[str(name or "global")] = Placement(matrix, _unit(output))
    return found


def _matrix(document: Mapping[str, Any], before: Sequence[str], level: int) -> np.ndarray:
    """The matrix (4, 4) over x, y, z, 1; ``before`` names the axes that arrive, where the document does not."""
    kind = document["type"]
    inputs = _names_of_axes(document.get("input")) or before
    outputs = _names_of_axes(document.get("output")) or inputs
    if level > _MOST_LEVELS:
        raise ValueError(f"transformations are nested in more than {_MOST_LEVELS} levels")
    if kind == "sequence":
        matrix, axes = np.eye(4), inputs
        for one in document["transformations"]:
            matrix = _matrix(one, axes, level + 1) @ matrix
            axes = _names_of_axes(one.get("output")) or axes
        return matrix
    if kind == "byDimension":
        matrix = np.eye(4)
        for one in document["transformations"]:
            axes = [axis for axis in _names_of_axes(one["output"]) or () if axis in _AXES]
            rows = [_AXES.index(axis) for axis in axes]
            matrix[rows] = _matrix(one, inputs, level + 1)[rows]
        return matrix
    if kind == "mapAxis":
        mapped = document["mapAxis"]
        return _embedded(np.eye(len(mapped)), list(mapped.values()), list(mapped))
    if kind == "identity":
        return np.eye(4)
    if kind not in ("scale", "translation", "affine", "rotation"):
        raise ValueError(f"unknown type {kind!r} of a transformation")
    values = np.asarray(document[kind], dtype=np.float64)  # "scale": [...] and so on
    if kind == "scale":
        return _embedded(np.diag(values), inputs, inputs)
    if kind == "translation":
        return _embedded(np.column_stack([np.eye(len(values)), values]), outputs, outputs)
    return _embedded(values[: len(outputs)], inputs, outputs)


def _embedded(values: np.ndarray, inputs: Sequence[str], outputs: Sequence[str]) -> np.ndarray:
    """Coefficients (outputs, inputs), with a constant in another column or not, as a matrix over x, y, z, 1."""
    if values.shape not in ((len(outputs), len(inputs)), (len(outputs), len(inputs) + 1)):
        raise ValueError(f"a transformation of shape {values.shape} from {inputs} to {outputs}")
    matrix = np.eye(4)
    for name, row in zip(outputs, values, strict=True):
        if name not in _AXES:  # channels
            continue
        at = _AXES.index(name)
        matrix[at] = 0
        for axis, value in zip(inputs, row, strict=False):
            if axis in _AXES:
                matrix[at, _AXES.index(axis)] = value
        matrix[at, 3] = row[len(inputs)] if len(row) > len(inputs) else 0
    return matrix


def _names_of_axes(system: Any) -> list[str] | None:
    """The axes of a coordinate system, or of an image; None if they are not listed."""
    axes = system.get("axes") if isinstance(system, dict) else None
    return [one["name"] if isinstance(one, dict) else str(one) for one in axes] if axes else None


def _unit(system: Any) -> str | None:
    """The unit of x and y, if it is the same and one that is known."""
    axes = system.get("axes", ()) if isinstance(system, dict) else ()
    units = {
        str(one.get("unit")).lower()
        for one in axes
        if isinstance(one, dict) and one.get("name") in ("x", "y")
    }
    unit = units.pop() if len(units) == 1 else ""
    return unit if unit == "pixel" or unit in _MICROMETERS else None
