"""Colors of domains and annotations: palette, scanpy's stored colors, matching of two labelings."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.optimize import linear_sum_assignment

from ..errors import InputError
from .figure import require_matplotlib
from .fonts import drawable

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = [
    "COLORS",
    "MISSING",
    "Labels",
    "domain_colors",
    "gradual_palette",
    "matched_colors",
    "palette",
    "quiet_palette",
    "sections_of",
    "stored_colors",
]

# The colors of Okabe and Ito (2008) but black, pink last because stained tissue is pink. The others maximize, on a grid
# of sRGB without dark, pale and glaring colors, the smallest difference (CIEDE2000; half of it counts for readers with
# protanopia, deuteranopia or tritanopia) between any two, and lie apart from white, from dark pages and from gray.
COLORS = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#F0E442", "#CC79A7", "#96005A", "#4B5A3C", "#87F096",
    "#8778FF", "#695A78", "#693C0F", "#B4B487", "#FFC3F0", "#96784B", "#965A5A", "#C3A5A5", "#698787", "#4B3CB4",
)  # fmt: skip
MISSING = "#D9D9D9"  # spots without a label
_MOST_NUMBERS = 100
"""With decimals, such as layers 2.5 and 3.5; measurements have more, and no legend holds them."""


# ----------------------------------------------------------------------------------------------- palette


@functools.lru_cache(maxsize=8)
def palette(n: int) -> tuple[str, ...]:
    """Return ``n`` distinct colors; ``palette(n)`` is the beginning of ``palette(n + 1)``.

    The first seven are those of Okabe and Ito; the first twenty can be told apart by color-blind readers too, and
    are neither black nor nearly white. Each further color is the color of a fixed grid whose distance to its nearest
    neighbor among those already chosen (and white and gray) is largest. Distances are Euclidean in OKLab (Ottosson
    2020), for normal vision, protanopia and deuteranopia (Machado et al., IEEE TVCG 2009). The palette is
    deterministic.

    Parameters
    ----------
    n : int
        Number of colors, >= 0. Up to about 30 colors are easy to distinguish.

    Returns
    -------
    tuple of str
        ``#RRGGBB``.
    """
    if n <= len(COLORS):
        return COLORS[:n]
    # Not close to white or black, and not very saturated
    return COLORS + _most_different(n - len(COLORS), COLORS, (0.38, 0.92), 0.2)


@functools.lru_cache(maxsize=8)
def quiet_palette(n: int, used: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Return ``n`` distinct grayish colors of middle lightness that differ from the ``used`` ones."""
    # More than a few cannot be told apart without some color
    return _most_different(n, used, (0.6, 0.86), 0.045 if n <= 6 else 0.09)


def _most_different(
    n: int, used: Sequence[str], lightness: tuple[float, float], chroma: float
) -> tuple[str, ...]:
    """Colors of a grid within bounds (OKLab), each as different as possible from those before, white and gray."""
    levels = np.linspace(0, 1, 12)
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    seen = _as_seen(grid)  # (3, colors, 3)
    low, high = lightness
    usable = (
        (seen[0, :, 0] > low) & (seen[0, :, 0] < high) & (np.hypot(seen[0, :, 1], seen[0, :, 2]) < chroma)
    )
    grid, seen = grid[usable], seen[:, usable]
    nearest = np.full(len(grid), np.inf)
    for color in (*used, "#FFFFFF", MISSING):
        nearest = np.minimum(nearest, _difference(seen, _as_seen(_rgb(color)[None])))
    chosen = []
    for _ in range(n):
        best = int(np.argmax(nearest))
        chosen.append("#" + "".join(f"{round(255 * part):02X}" for part in grid[best]))
        nearest = np.minimum(nearest, _difference(seen, seen[:, best : best + 1]))
    return tuple(chosen)


def gradual_palette(n: int) -> list[str]:
    """Return ``n`` colors in an order, from dark blue to light green (viridis): neighbors are alike.

    Raises
    ------
    MissingExtraError
        matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(colormaps["viridis"](0.95 * i / max(n - 1, 1))).upper() for i in range(n)]


# Linear RGB as seen with protanopia and deuteranopia (Machado et al. 2009, severity 1)
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
# Linear RGB to OKLab (Ottosson 2020): cone responses, cube root, opponent colors
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
    """OKLab of sRGB colors (m, 3) for normal vision, protanopia and deuteranopia: (3, m, 3)."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    by_vision = np.stack([linear, linear @ np.transpose(_PROTANOPIA), linear @ np.transpose(_DEUTERANOPIA)])
    return np.cbrt(np.clip(by_vision, 0, 1) @ np.transpose(_TO_CONES)) @ np.transpose(_TO_LAB)


def _difference(seen: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Distance of colors to another: 0.7 for normal vision plus 0.3 for the vision with the smallest."""
    distance = np.linalg.norm(seen - other, axis=-1)  # (3, colors)
    return 0.7 * distance[0] + 0.3 * distance.min(axis=0)


# ------------------------------------------------------------------------------------------------ labels


@dataclass(frozen=True)
class Labels:
    """A labeling as it is drawn: the name of each label, and which spot has which."""

    codes: np.ndarray  # (n,), index into names, -1 where missing
    names: tuple[str, ...]
    zero_based: bool  # integers, as estimators return them

    @classmethod
    def of(cls, values: ArrayLike) -> Labels:
        """Labels of spots; None, NaN and empty strings are missing, and the order is that of the legend.

        Raises
        ------
        InputError
            There are more than 100 different numbers with decimals: a measurement.
        """
        column = _column(values)
        if (
            pd.api.types.is_float_dtype(column)
            and column.nunique() > _MOST_NUMBERS
            and (column % 1 > 0).any()
        ):
            raise InputError(
                f"expected labels; found {column.nunique():,} different numbers, such as {column.dropna().iloc[0]}. "
                "Name a column of labels; numbers in [0, 1] are drawn as confidence."
            )
        if not isinstance(column.dtype, pd.CategoricalDtype):
            column = _categorical(column, sorted(column.dropna().unique(), key=_natural))
        names = _names(column.cat.categories)
        kept = [i for i, name in enumerate(names) if name.strip()]
        renumber = np.full(len(names) + 1, -1)
        renumber[kept] = np.arange(len(kept))
        return cls(
            codes=renumber[column.cat.codes.to_numpy()],
            names=tuple(names[i] for i in kept),
            zero_based=pd.api.types.is_integer_dtype(column.cat.categories.dtype),
        )

    def colors(self, chosen: Mapping[str, str] | None = None) -> dict[str, str]:
        """Color of each name: as chosen; else by number if all names are numbers < 100; else by position."""
        slots = list(range(len(self.names)))
        if self.names and all(name.isdecimal() and len(name) < 3 for name in self.names):
            numbers = [int(name) for name in self.names]
            first = 0 if self.zero_based or min(numbers) == 0 else 1
            slots = [number - first for number in numbers]
        available = palette(max(slots, default=0) + 1)
        colors = {name: available[slot] for name, slot in zip(self.names, slots, strict=True)}
        return colors | {str(name): color for name, color in (chosen or {}).items()}

    def spot_colors(self, colors: Mapping[str, str]) -> np.ndarray:
        """The color of every spot, (n, 3), RGB in [0, 1]; see `table`."""
        return self.table(colors)[self.codes]

    def table(self, colors: Mapping[str, str]) -> np.ndarray:
        """The color of each name, and last of missing labels, whose code is -1: (n_names + 1, 3), RGB in [0, 1].

        Raises
        ------
        InputError
            matplotlib does not know a color.
        """
        from matplotlib.colors import to_rgb

        try:
            return np.array([to_rgb(colors[name]) for name in self.names] + [to_rgb(MISSING)])
        except ValueError as error:
            raise InputError(f"colors must map labels to colors that matplotlib knows: {error}.") from error

    def entries(self, colors: Mapping[str, str]) -> list[tuple[str, int, str]]:
        """Entries of a legend: name, number of spots and color of each label that occurs."""
        sizes = np.bincount(self.codes[self.codes >= 0], minlength=len(self.names)).tolist()
        entries = [(name, size, colors[name]) for name, size in zip(self.names, sizes, strict=True)]
        entries.append(("none", int((self.codes < 0).sum()), MISSING))
        return [entry for entry in entries if entry[1]]

    def legend(self, colors: Mapping[str, str]) -> list[tuple[str, int, str]]:
        """The entries with names that can be drawn; see `drawable`."""
        shown = dict(zip(self.names, self.drawn, strict=True))
        return [(shown.get(name, name), size, color) for name, size, color in self.entries(colors)]

    @functools.cached_property
    def drawn(self) -> tuple[str, ...]:
        """The names as figures show them."""
        return drawable(self.names)


def sections_of(values: ArrayLike) -> Labels:
    """The section of every spot, in the order of the categories, otherwise that of first appearance.

    Raises
    ------
    InputError
        A spot has no section.
    """
    column = _column(values)
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.cat.remove_unused_categories()
    else:
        column = _categorical(column, column.dropna().unique())
    sections = Labels.of(column)
    missing = int((sections.codes < 0).sum())
    if missing:
        raise InputError(
            f"expected a section for each of the {len(column)} spots; {missing} have none. Fill in their "
            "section or drop them."
        )
    return sections


def _column(values: ArrayLike) -> pd.Series:
    return values if isinstance(values, pd.Series) else pd.Series(values, dtype=_dtype(values))


def _categorical(column: pd.Series, levels: ArrayLike) -> pd.Series:
    return pd.Series(pd.Categorical(column, pd.Index(levels, dtype=_dtype(levels))))


def _dtype(values: ArrayLike) -> type | None:
    """That of text is object: the strings of pandas 3 refuse lone surrogates. None: what pandas infers."""
    return object if pd.api.types.infer_dtype(values) == "string" else None


def _names(categories: pd.Index) -> list[str]:
    if pd.api.types.is_float_dtype(categories.dtype) and (categories == np.floor(categories)).all():
        return [f"{value:.0f}" for value in categories]  # an integer column with missing values is float
    return [str(value) for value in categories]


def _natural(value: Any) -> tuple[Any, ...]:
    """Sort key: "domain 2" before "domain 10", for any mixture of types."""
    # Digits are compared as text, by length first: int() refuses more than 4,300 of them
    key: list[tuple[int, int, str]] = []
    for part in re.split(r"(\d+)", str(value)):
        digits = part.lstrip("0")
        if part:
            key.append((0, len(digits), digits) if part.isdecimal() else (1, 0, part))
    return tuple(key)


# -------------------------------------------------------------------------------------- colors of columns


def domain_colors(categories: ArrayLike) -> list[str]:
    """Return the colors that the figures give to the categories of a column.

    Stored in ``uns["<column>_colors"]`` (scanpy's convention) they make scanpy, squidpy and this package draw
    the same colors.

    Parameters
    ----------
    categories : array-like, shape (n_categories,)
        As in ``adata.obs[column].cat.categories``: distinct, in that order.

    Returns
    -------
    list of str
        One ``#RRGGBB`` for each category.
    """
    index = pd.Index(categories, dtype=_dtype(categories))
    colors = Labels.of(pd.Series(pd.Categorical.from_codes(np.arange(len(index)), index))).colors()
    return [colors.get(name, MISSING) for name in _names(index)]


def stored_colors(adata: AnnData, column: str) -> dict[str, str]:
    """Return the colors in ``uns["<column>_colors"]`` by label.

    Parameters
    ----------
    adata : AnnData
    column : str
        A categorical column of ``obs``. The stored colors are in the order of its categories.

    Returns
    -------
    dict of str to str
        ``#RRGGBB`` by the name of the category. Empty if there are no stored colors, if the column is not
        categorical, if the numbers of colors and categories differ, or if matplotlib does not know a color.

    Raises
    ------
    MissingExtraError
        matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.colors import to_hex

    values = adata.obs[column]
    stored = np.asarray(adata.uns.get(f"{column}_colors", []), dtype=object).ravel()
    if not isinstance(values.dtype, pd.CategoricalDtype) or len(stored) != len(values.cat.categories):
        return {}
    try:
        colors = [to_hex(color).upper() for color in stored]
    except (TypeError, ValueError):
        return {}
    return dict(zip(_names(values.cat.categories), colors, strict=True))


def matched_colors(truth: Labels, own: Labels, own_colors: Mapping[str, str]) -> dict[str, str]:
    """Colors of an annotation: one-to-one assignment of regions to domains that maximizes their overlap.

    Regions without a domain get grayish colors, so that those with one stand out.
    """
    both = (truth.codes >= 0) & (own.codes >= 0)
    overlap = np.zeros((len(truth.names), len(own.names)), dtype=np.int64)
    np.add.at(overlap, (truth.codes[both], own.codes[both]), 1)
    matched = {
        truth.names[region]: own_colors[own.names[domain]]
        for region, domain in zip(*linear_sum_assignment(-overlap), strict=True)
        if overlap[region, domain]
    }
    others = [name for name in truth.names if name not in matched]
    used = tuple(
        sorted({color for color in own_colors.values() if color.startswith("#") and len(color) == 7})
    )
    return matched | dict(zip(others, quiet_palette(len(others), used), strict=True))
