"""Unit of the coordinates and scale bar. A unit is taken from what is recorded, never from the coordinates alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import keys
from ..errors import InputError
from ..io.coordinates import visium_pixel_size
from ..io.platform import micrometers_per_unit

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["check_micrometers", "micrometers_of", "scale_bar"]


def check_micrometers(micrometers_per_unit: float | None) -> None:
    """Refuse a unit that is not a positive number.

    Raises
    ------
    InputError
    """
    if micrometers_per_unit is not None and not (
        micrometers_per_unit > 0 and math.isfinite(micrometers_per_unit)
    ):
        raise InputError(f"micrometers_per_unit must be positive; found {micrometers_per_unit!r}.")


def micrometers_of(
    adata: AnnData, library: Mapping[str, Any], points: np.ndarray, spots: np.ndarray, *, basis: str
) -> float | None:
    """Return the micrometers per unit of the coordinates of a section, or None if they are not known.

    Parameters
    ----------
    adata : AnnData
    library : mapping
        Its entry of ``uns["spatial"]``.
    points : ndarray, shape (n_spots, 2)
        Coordinates of all spots.
    spots : ndarray of bool, shape (n_spots,)
        The spots of the section.
    basis : str
        Where the coordinates are from; what is recorded is about ``obsm["spatial"]``.
    """
    if basis != keys.SPATIAL:
        return None
    factors = library.get("scalefactors", {})
    recorded = factors.get("microns_per_pixel", micrometers_per_unit(adata))
    if recorded is not None:
        return float(recorded) if float(recorded) > 0 else None
    is_visium = (
        adata.uns.get(keys.INPUT, {}).get("platform") == "visium" or "spot_diameter_fullres" in factors
    )
    if not is_visium or not {"array_row", "array_col"} <= set(adata.obs):
        return None
    size = visium_pixel_size(points[spots], adata.obs["array_row"][spots], adata.obs["array_col"][spots])
    return None if size is None else abs(size)


def scale_bar(extent: float) -> tuple[float, str]:
    """Return the length of a scale bar in µm, about a fifth of the extent, and its label."""
    power = 10.0 ** math.floor(math.log10(extent / 4))
    length = max(step * power for step in (1, 2, 5) if step * power <= extent / 4)
    sizes = {"mm": 1000.0, "µm": 1.0, "nm": 0.001}
    unit = next((unit for unit, size in sizes.items() if length >= 0.999 * size), "nm")
    return length, f"{length / sizes[unit]:.6g} {unit}"
