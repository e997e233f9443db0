"""Images of the tissue, as they are drawn."""

from __future__ import annotations

import numpy as np

__all__ = ["as_rgb", "reduced"]


def as_rgb(image: np.ndarray) -> np.ndarray:
    """Return an image as uint8 RGB, (height, width, 3).

    Parameters
    ----------
    image : ndarray, (height, width), (height, width, 1), (height, width, 3) or (height, width, 4)
        Integers up to 255, floats up to 1, or any larger range, whose brightest 0.1 % become white. One channel is
        gray; a fourth one is the opacity, over white.
    """
    values = np.atleast_3d(np.asarray(image))
    whole = np.issubdtype(values.dtype, np.integer)
    shown = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0).astype(np.float32)
    brightest = float(shown[..., :3].max(initial=0.0))
    top = 255.0 if whole else 1.0
    if brightest > top:
        top = max(float(np.quantile(shown[..., :3], 0.999)), top)
    color = np.clip(shown[..., :3] / top, 0, 1)
    if shown.shape[2] == 4:
        opacity = np.clip(shown[..., 3:] / (np.iinfo(values.dtype).max if whole else 1.0), 0, 1)
        color = color * opacity + 1 - opacity
    return np.rint(
        255 * np.broadcast_to(color if color.shape[2] == 3 else color[..., :1], (*color.shape[:2], 3))
    ).astype(np.uint8)


def reduced(image: np.ndarray, factor: int) -> np.ndarray:
    """Return the means of squares of pixels, (height // factor, width // factor, channels), float32.

    Row by row, so that no array of the size of the image arises.
    """
    values = np.atleast_3d(image)
    height, width = (size // factor for size in values.shape[:2])
    means = np.empty((height, width, values.shape[2]), dtype=np.float32)
    for i in range(height):
        rows = values[i * factor : (i + 1) * factor, : width * factor]
        means[i] = rows.reshape(factor, width, factor, -1).mean(axis=(0, 2), dtype=np.float32)
    return means
