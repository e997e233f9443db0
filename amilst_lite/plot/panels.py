"""Where the panels, legends and titles of a figure of sections stand; all sizes in inches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .figure import (
    INK,
    LITERAL,
    characters,
    legend,
    legend_inches,
    literal,
    new_figure,
    set_figure_title,
    set_title,
    title_inches,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Block", "Panels", "one_section", "several_sections"]

_PANEL = 4.0  # the longer side of a section that is drawn alone
_PANEL_OF_SEVERAL = 3.0
_LARGEST = 16.0  # width and height of the panels of several sections together
_NARROWEST = 0.35  # shorter side of a panel, as a share of the longer one
_TITLE = (0.6, 1.1)  # least space for the title of a panel: a short name; "Refined  ·  ARI 0.50"
_GAP = 0.08  # between the panels of a section
_SECTION_GAP = 0.25  # between sections side by side
_LEGEND_GAP = 0.2
_ENTRY = 0.17  # height of an entry of a legend
_HEADING = 0.26  # height of the title of a legend
_COLOR_BAR = (0.9, 1.9)  # width with its numbers, height with its title
_NOTE = 0.3


@dataclass(frozen=True)
class Block:
    """A legend shared by all sections: a title and entries (label, number, color), or no entries: a color bar."""

    title: str
    entries: Sequence[tuple[str, int, str]] | None

    def size(self, height: float) -> tuple[float, float, int]:
        """Width and height if at most ``height`` is available, and the number of rows."""
        if self.entries is None:
            return *_COLOR_BAR, 0
        rows = min(len(self.entries), max(1, int((height - _HEADING) / _ENTRY)))
        width = legend_inches([label for label, *_ in self.entries], rows)
        return width, _HEADING + rows * _ENTRY + 0.1, rows


@dataclass(frozen=True)
class Panels:
    """A figure with empty panels."""

    figure: Figure
    axes: list[list[Axes]]  # by section, then by what is drawn
    longer_side: float
    title_size: float
    color_bar: Axes | None = None  # where a shared color bar goes

    def set_titles(self, section: int, titles: Sequence[str], name: str | None = None) -> None:
        """Set the titles of the panels of a section; its name goes above the first, if there are several."""
        axes = self.axes[section]
        if name is None:
            for axis, title in zip(axes, titles, strict=True):
                set_title(axis, title)
            return
        width = axes[-1].get_position().x1 - axes[0].get_position().x0  # share of the figure
        name = literal(name, max(8, characters(width * self.figure.get_figwidth(), self.title_size)))
        if len(axes) == 1:
            set_title(axes[0], name, self.title_size, pad=3)
            return
        for axis, title in zip(axes, titles, strict=True):
            set_title(axis, title, self.title_size - 1, pad=3)
        axes[0].annotate(
            name,
            (0, 1),
            xycoords="axes fraction",
            xytext=(0, 6 + self.title_size),
            textcoords="offset points",
            fontsize=self.title_size,
            fontweight="bold",
            color=INK,
            annotation_clip=False,
            **LITERAL,
        )


def one_section(n_kinds: int, extent: np.ndarray, legend_width: float, title: str | None) -> Panels:
    """Panels in the proportions of the section, with space for a legend beside each."""
    n_columns = n_kinds if n_kinds <= 3 else 2
    n_rows = math.ceil(n_kinds / n_columns)
    width, height = _PANEL * _proportions(extent)
    figure = new_figure(n_columns * (width + legend_width) + 0.2, n_rows * (height + 0.45) + 0.1)
    axes = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
    for axis in axes[n_kinds:]:
        axis.set_visible(False)
    if title:
        set_figure_title(figure, title, x=0.01)
    return Panels(figure, [list(axes[:n_kinds])], _PANEL, 11)


def several_sections(
    n_sections: int,
    n_kinds: int,
    extent: np.ndarray,
    blocks: Sequence[Block],
    title: str | None,
    note: str | None,
) -> Panels:
    """Panels of one size for all sections, and the shared legends at the right.

    The panels of a section stand side by side. Sections stand in rows, several in one if the panels would
    otherwise be small; the panels together are at most 16 inches wide and high.
    """
    proportions = _proportions(extent)
    n_across, longer_side = _arrangement(n_sections, n_kinds, proportions)
    width, height = longer_side * proportions
    section_width = _section_width(n_kinds, width)
    row_height = height + _titles_height(n_kinds)
    top = title_inches(title)
    right = n_across * section_width - _SECTION_GAP
    bottom = top + math.ceil(n_sections / n_across) * row_height
    places, legends_width = _pack(blocks, bottom - top)
    figure_width = right + _LEGEND_GAP + legends_width
    figure_height = bottom + (_NOTE if note else 0.0)
    figure = new_figure(figure_width, figure_height, layout="none")

    def add(x: float, y: float, w: float, h: float) -> Axes:
        """Axes whose upper left corner is at x, y; y downwards."""
        return figure.add_axes(
            (x / figure_width, 1 - (y + h) / figure_height, w / figure_width, h / figure_height)
        )

    axes = [
        [
            add(
                section % n_across * section_width + kind * _panel_width(n_kinds, width),
                top + section // n_across * row_height + _titles_height(n_kinds),
                width,
                height,
            )
            for kind in range(n_kinds)
        ]
        for section in range(n_sections)
    ]
    color_bar = None
    for block, (x, y, w, h, rows) in zip(blocks, places, strict=True):
        x, y = right + _LEGEND_GAP + x, top + y
        if block.entries is None:
            color_bar = add(x, y + _HEADING, 0.12, h - _HEADING - 0.2)
            set_title(color_bar, block.title, 9)
        else:
            axis = add(x, y, w, h)
            axis.set_axis_off()
            legend(axis, block.entries, title=block.title, anchor=(0, 1), rows=rows)
    if title:
        set_figure_title(figure, title, x=0, y=1 - 0.05 / figure_height)
    if note:
        figure.text(0, 0.05 / figure_height, note, fontsize=9, color=INK, va="bottom", **LITERAL)
    return Panels(figure, axes, longer_side, float(np.clip(4 * width, 8, 10)), color_bar)


def _proportions(extent: np.ndarray) -> np.ndarray:
    """Width and height of a panel, the longer one 1."""
    return np.clip(extent / extent.max(), _NARROWEST, 1)


def _titles_height(n_kinds: int) -> float:
    return 0.28 if n_kinds == 1 else 0.46  # one line or two


def _panel_width(n_kinds: int, width: float) -> float:
    return max(width, _TITLE[n_kinds > 1]) + _GAP


def _section_width(n_kinds: int, width: float) -> float:
    return n_kinds * _panel_width(n_kinds, width) - _GAP + _SECTION_GAP


def _arrangement(n_sections: int, n_kinds: int, proportions: np.ndarray) -> tuple[int, float]:
    """Number of sections side by side, and the longer side of a panel."""
    candidates = []
    for n_across in range(1, n_sections + 1):
        n_down = math.ceil(n_sections / n_across)
        if n_across > 1 and n_across * _section_width(n_kinds, 0) > _LARGEST:
            break
        gaps = (n_kinds - 1) * _GAP + _SECTION_GAP
        across = (_LARGEST / n_across - gaps) / n_kinds / proportions[0]
        down = (_LARGEST / n_down - _titles_height(n_kinds)) / proportions[1]
        longer_side = min(_PANEL_OF_SEVERAL, across, down)
        width, height = longer_side * proportions
        aspect = n_across * _section_width(n_kinds, width) / (n_down * (height + _titles_height(n_kinds)))
        empty = (n_across * n_down - n_sections) / n_sections
        # Single panels: twice as wide as high; otherwise a row for each section
        cost = empty + abs(math.log(aspect / 2)) if n_kinds == 1 else n_across
        candidates.append((n_across, longer_side, cost))
    largest = max(longer_side for _, longer_side, _ in candidates)
    n_across, longer_side, _ = min(
        (one for one in candidates if one[1] >= 0.85 * largest), key=lambda one: (one[2], one[0])
    )
    return n_across, longer_side


def _pack(
    blocks: Sequence[Block], height: float
) -> tuple[list[tuple[float, float, float, float, int]], float]:
    """Place (x, y, width, height, rows) of each block, below each other while there is space; total width."""
    places = []
    x = y = widest = 0.0
    for block in blocks:
        block_width, block_height, rows = block.size(height)
        if y and y + block_height > height:
            x, y, widest = x + widest + _LEGEND_GAP, 0.0, 0.0
        places.append((x, y, block_width, block_height, rows))
        y += block_height
        widest = max(widest, block_width)
    return places, x + widest
