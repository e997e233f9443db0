"""Images of the tissue below the spots, and the unit of the coordinates."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import keys
from ..errors import MissingExtraError
from ..io.visium import tissue_image
from ..plot.colors import Labels
from ..plot.image import as_rgb, reduced
from ..plot.sections import libraries_of, plausible_diameter
from ..plot.units import micrometers_of

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["images_of", "spot_diameter_of", "units_of"]

_SIDE = 1600  # pixels of the longer side of an image, of several sections together of a square of this side
_BYTES = 2_000_000  # of all images
_QUALITY = 82  # of JPEG
_MARGIN = 0.03  # of the image around the spots, as a share of the section


def units_of(adata: AnnData, sections: Labels, points: np.ndarray) -> np.ndarray | None:
    """Return the micrometers per unit of the coordinates of each section; None unless all are known."""
    libraries = libraries_of(adata, None, sections.names)
    found = [
        micrometers_of(adata, library, points, sections.codes == i, basis=keys.SPATIAL)
        for i, library in enumerate(libraries)
    ]
    known = [unit for unit in found if unit]
    return np.array(known) if len(known) == len(found) else None


def spot_diameter_of(
    adata: AnnData, sections: Labels, points: np.ndarray, units: np.ndarray | None
) -> float | None:
    """Return the recorded diameter of the spots on the map, if it is plausible, for spots over an image."""
    told = []
    for i, library in enumerate(libraries_of(adata, None, sections.names)):
        recorded = library.get("scalefactors", {}).get("spot_diameter_fullres")
        diameter = plausible_diameter(recorded, points[sections.codes == i])
        if diameter is not None:
            told.append(diameter * (1.0 if units is None else units[i]))
    return float(np.median(told)) if told else None


def images_of(adata: AnnData, sections: Labels, placed: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the images of the sections, as JPEG of limited size.

    Parameters
    ----------
    adata : AnnData
    sections : Labels
    placed : sequence of mapping
        `Layout.sections`.

    Returns
    -------
    list of dict
        ``section``; ``box``: x0, y0, x1, y1 on the map; ``src``: a data URL. Empty without images, or without
        matplotlib, which reads and writes them.

    Warns
    -----
    AmilstWarning
        An image file is missing or cannot be read.
    """
    images: list[dict[str, Any]] = []
    libraries = libraries_of(adata, None, sections.names)
    n_images = sum(bool(library.get("scalefactors")) for library in libraries)
    found: tuple[np.ndarray, float] | None = None
    previous = None
    try:
        for i, (library, section) in enumerate(zip(libraries, placed, strict=True)):
            if library is not previous:  # sections of one slide share an image
                found, previous = tissue_image(library), library
            if found is not None:
                images += [{"section": i, **one} for one in _cut(*found, section, max(n_images, 1))]
    except (MissingExtraError, ImportError):
        return []
    return images


def _cut(image: np.ndarray, scale: float, section: Mapping[str, Any], n_images: int) -> list[dict[str, Any]]:
    """The part of an image that shows the section, none if there is none."""
    low, place, unit = (np.asarray(section[name], dtype=np.float64) for name in ("low", "place", "unit"))
    frame = np.reshape(section["frame"], (2, 2))  # corners on the map
    margin = _MARGIN * float(np.ptp(frame, axis=0).max())
    size = np.array(image.shape[1::-1])  # width, height

    def pixels(on_map: np.ndarray) -> np.ndarray:
        return ((on_map - place) / unit + low) * scale

    start = np.clip(np.floor(pixels(frame[0] - margin)), 0, size).astype(int)
    stop = np.clip(np.ceil(pixels(frame[1] + margin)), 0, size).astype(int)
    if (stop - start < 2).any():
        return []
    part = image[start[1] : stop[1], start[0] : stop[0]]
    factor = math.ceil((stop - start).max() / (_SIDE / math.sqrt(n_images)))
    data = _jpeg(part, factor)
    while len(data) > _BYTES / n_images and factor < (stop - start).min():
        factor += 1
        data = _jpeg(part, factor)
    stop = start + (stop - start) // factor * factor  # pixels at the edge that fill no square are left out
    box = [((corner / scale - low) * unit + place).tolist() for corner in (start, stop)]
    return [{"box": [*box[0], *box[1]], "src": f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"}]


def _jpeg(image: np.ndarray, factor: int) -> bytes:
    from matplotlib.image import imsave

    file = io.BytesIO()
    pixels = image if factor == 1 else reduced(image, factor)
    if np.issubdtype(image.dtype, np.integer):
        pixels = np.rint(pixels).astype(image.dtype)  # the range of integers differs from that of floats
    imsave(file, as_rgb(pixels), format="jpeg", pil_kwargs={"quality": _QUALITY})
    return file.getvalue()
