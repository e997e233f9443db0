"""Where the panels, legends, titles and notes of a figure of sections stand; all sizes in inches.

Figures are as wide as the text of a journal page (180 mm), so that text of 7 to 9 points is legible in print and
on a screen; what does not fit makes them longer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .figure import (
    INK,
    QUIET_INK,
    SIZE,
    as_written,
    characters,
    legend,
    legend_columns,
    legend_inches,
    literal,
    new_figure,
    note_lines,
    set_figure_title,
    set_title,
    title_inches,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["MOST_PANELS", "Block", "Panels", "arrange", "letter"]

MOST_PANELS = 96
_WIDTHS, _HEIGHT = (
    (7.1, 9.6),
    8.5,
)  # of all panels together; they are wider, and higher, if they would be too small
_LARGEST = (4.5, 3.4)  # longer side of a panel: of the only one, of several
_SMALLEST = 1.05
_NARROWEST = 0.35  # shorter side of a panel, as a share of the longer one
_TITLE = {"name": 0.9, "score": 1.08, "long score": 1.9}  # least space for the title of a panel
_TITLE_SIZE = 9
_LINE = 0.19  # height of a line of titles
_ABOVE = 0.09  # between titles and what is above them
_GAP = 0.08  # between the panels of a section
_SECTION_GAP = 0.25  # between sections side by side
_LEGEND_GAP = 0.3
_ENTRY = 0.17  # height of an entry of a legend
_HEADING = 0.22  # height of the title of a legend
_COLOR_BAR = (1.7, 0.55)  # with its title and numbers
_NOTE = 0.16
_LETTER = (0.19, 0.29)  # width of the letter of a panel; of two letters, if there are more than 26


@dataclass(frozen=True)
class Block:
    """A legend shared by all panels: a title and entries (label, number, color), or no entries: a color bar."""

    title: str
    entries: Sequence[tuple[str, int, str]] | None

    def size(self, rows: int) -> tuple[float, float]:
        """Width and height with at most this number of rows."""
        if self.entries is None:
            return _COLOR_BAR
        rows = math.ceil(len(self.entries) / legend_columns(len(self.entries), rows))
        return legend_inches(self.entries, rows), _HEADING + rows * _ENTRY

    def rows(self, width: float) -> int:
        """Least number of rows with which it fits into a width."""
        if self.entries is None:
            return 1
        n = len(self.entries)
        return next((rows for rows in range(1, n) if self.size(rows)[0] <= width), n)


@dataclass(frozen=True)
class Panels:
    """A figure with empty panels."""

    figure: Figure
    axes: list[list[Axes]]  # by section, then by what is drawn
    longer_side: float
    letter_width: float  # 0: without letters
    color_bar: Axes | None = None  # where the color bar goes

    def set_titles(self, section: int, titles: Sequence[str], name: str | None = None) -> None:
        """Set the titles of the panels of a section; its name goes above the first, if there are several."""
        axes = self.axes[section]
        if name is None:
            for i, (axis, title) in enumerate(zip(axes, titles, strict=True)):
                self._set_title(axis, title, _TITLE_SIZE, i)
            return
        width = axes[-1].get_position().x1 - axes[0].get_position().x0  # share of the figure
        name = literal(
            name, max(8, characters(width * self.figure.get_figwidth() - self.letter_width, _TITLE_SIZE))
        )
        if len(axes) == 1:
            self._set_title(axes[0], name, _TITLE_SIZE, section)
            return
        for axis, title in zip(axes, titles, strict=True):
            self._set_title(axis, title, SIZE - 1)
        self._annotate(axes[0], name, self.letter_width, 1)
        self._set_letter(axes[0], section, 1)

    def _set_title(self, axis: Axes, title: str, size: float, i: int | None = None) -> None:
        width = axis.get_position().width * self.figure.get_figwidth()
        set_title(axis, title, size, pad=3, indent=0 if i is None else self.letter_width / width)
        if i is not None:
            self._set_letter(axis, i, 0)

    def _set_letter(self, axis: Axes, i: int, line: int) -> None:
        if self.letter_width:
            self._annotate(axis, letter(i), 0, line)

    def _annotate(self, axis: Axes, text: str, x: float, line: int) -> None:
        """Bold text above a panel."""
        axis.annotate(
            text,
            (0, 1),
            xycoords="axes fraction",
            xytext=(72 * x, 3 + 72 * _LINE * line),
            textcoords="offset points",
            fontsize=_TITLE_SIZE,
            fontweight="bold",
            color=INK,
            annotation_clip=False,
            **as_written(text),
        )


def letter(i: int) -> str:
    """Return the letter of a panel: a, b, ..., z, aa, ab, ..."""
    before, own = divmod(i, 26)
    return (letter(before - 1) if before else "") + chr(ord("a") + own)


def arrange(
    n_sections: int,
    n_kinds: int,
    extent: np.ndarray,
    blocks: Sequence[Block],
    *,
    named: bool,
    scored: bool,
    title: str | None = None,
    notes: Sequence[str] = (),
    scale_bar: tuple[float, str] | None = None,
) -> Panels:
    """Panels of one size; below them the scale bar and notes, and below these the legends.

    The panels of a section stand side by side, and sections in rows, several in one if the panels would otherwise
    be small. The panels of a single section, without a name, are arranged like sections.

    Parameters
    ----------
    n_sections, n_kinds
        Number of sections, and of panels of each.
    extent : ndarray, shape (2,)
        Width and height of what a panel shows.
    blocks
        The legends.
    named
        Whether the sections have names.
    scored
        Whether titles of panels have a score.
    title, notes
        Of the figure.
    scale_bar
        Length, in units of ``extent``, and label.
    """
    proportions = np.clip(extent / extent.max(), _NARROWEST, 1)
    kind_title = _TITLE["name" if not scored else "score" if named else "long score"]
    n_items, per_item = (n_sections, n_kinds) if named else (n_kinds, 1)
    grid = _Grid(n_items, per_item, proportions, kind_title, 2 if named and n_kinds > 1 else 1)
    n_across, longer_side = grid.arrangement()
    width, height = longer_side * proportions
    item_width, row_height = grid.item_width(width), grid.row_height(height)
    top = title_inches(title)
    right = n_across * item_width - _SECTION_GAP
    below = top + math.ceil(n_items / n_across) * row_height
    legends = _Legends.of(blocks, max(right, 3.2))
    figure_width = max(right, legends.width)
    lines = note_lines(notes, figure_width)
    bar_height = 0.27 if scale_bar else 0.0
    legends_top = below + bar_height + len(lines) * _NOTE + 0.12
    figure_height = legends_top + legends.height
    figure = new_figure(figure_width, figure_height, layout="none")

    def add(x: float, y: float, w: float, h: float) -> Axes:
        """Axes whose upper left corner is at x, y; y downwards."""
        return figure.add_axes(
            (x / figure_width, 1 - (y + h) / figure_height, w / figure_width, h / figure_height)
        )

    axes = [
        add(
            item % n_across * item_width + panel * grid.panel_width(width),
            top + item // n_across * row_height + row_height - height,
            width,
            height,
        )
        for item in range(n_items)
        for panel in range(per_item)
    ]
    color_bar = None
    for block, (x, y, w, h, rows) in zip(blocks, legends.places, strict=True):
        if block.entries is None:
            color_bar = add(x + 0.1, legends_top + y + _HEADING, w - 0.2, 0.1)
            figure.text(
                x / figure_width, 1 - (legends_top + y) / figure_height, block.title,
                fontsize=SIZE, fontweight="bold", color=INK, va="top",
            )  # fmt: skip
        else:
            axis = add(x, legends_top + y, w, h)
            axis.set_axis_off()
            legend(axis, block.entries, title=block.title, anchor=(0, 1), rows=rows)
    if scale_bar:
        length = scale_bar[0] / extent.max() * longer_side
        _draw_scale_bar(figure, length, scale_bar[1], 1 - (below + 0.14) / figure_height)
    for i, line in enumerate(lines):
        y = 1 - (below + bar_height + 0.04 + i * _NOTE) / figure_height
        figure.text(0, y, line, fontsize=SIZE - 1, color=QUIET_INK, va="top", **as_written(line))
    if title:
        set_figure_title(figure, title, x=0, y=1 - 0.03 / figure_height)
    by_section = [axes[i * n_kinds : (i + 1) * n_kinds] for i in range(n_sections)]
    return Panels(figure, by_section, longer_side, grid.letter_width, color_bar)


def _draw_scale_bar(figure: Figure, length: float, label: str, y: float) -> None:
    """A bar of a length in inches and its label, at the left."""
    from matplotlib.lines import Line2D

    end = length / figure.get_figwidth()
    bar = Line2D(
        [0, end], [y, y], color=INK, linewidth=2, solid_capstyle="butt", transform=figure.transFigure
    )
    bar.set_gid("scale bar")
    figure.add_artist(bar)
    x = end + 0.07 / figure.get_figwidth()
    figure.text(x, y, label, fontsize=SIZE, color=INK, va="center", **as_written(label))


@dataclass(frozen=True)
class _Candidate:
    """An arrangement: items side by side, longer side of a panel, cost, and height as a multiple of a page."""

    n_across: int
    longer_side: float
    cost: float
    overflow: float


@dataclass(frozen=True)
class _Grid:
    """Items of one size, in rows: each has panels side by side, and lines of titles above them."""

    n_items: int
    per_item: int
    proportions: np.ndarray  # width and height of a panel, the longer one 1
    title: float
    n_lines: int

    def row_height(self, height: float) -> float:
        return height + self.n_lines * _LINE + _ABOVE

    @property
    def letter_width(self) -> float:
        return 0.0 if self.n_items == 1 else _LETTER[self.n_items > 26]

    def panel_width(self, width: float) -> float:
        letter = self.letter_width if self.n_lines == 1 else 0.0
        return max(width, self.title + letter) + _GAP

    def item_width(self, width: float) -> float:
        return self.per_item * self.panel_width(width) - _GAP + _SECTION_GAP

    def arrangement(self) -> tuple[int, float]:
        """Number of items side by side, and the longer side of a panel."""
        for page_width in _WIDTHS:
            candidates = self._candidates(page_width)
            overflow = min(one.overflow for one in candidates)
            if overflow < 1.3:
                break
        candidates = [one for one in candidates if one.overflow <= 1.05 * overflow]
        largest = max(one.longer_side for one in candidates)
        share = 0.6 if self.per_item == 1 else 0.85
        best = min(
            (one for one in candidates if one.longer_side >= share * largest),
            key=lambda one: (one.cost, one.n_across),
        )
        return best.n_across, best.longer_side

    def _candidates(self, page_width: float) -> list[_Candidate]:
        candidates: list[_Candidate] = []
        cap = _LARGEST[self.n_items * self.per_item > 1]
        for n_across in range(1, self.n_items + 1):
            n_down = math.ceil(self.n_items / n_across)
            gaps = (self.per_item - 1) * _GAP + _SECTION_GAP
            across = ((page_width + _SECTION_GAP) / n_across - gaps) / self.per_item / self.proportions[0]
            down = (_HEIGHT / n_down - self.row_height(0)) / self.proportions[1]
            too_wide = n_across * self.item_width(0) > page_width + _SECTION_GAP
            if n_across > 1 and (too_wide or across < _SMALLEST):
                break
            longer_side = min(cap, across, max(down, _SMALLEST))
            width, height = longer_side * self.proportions
            rows_height = n_down * self.row_height(height)
            empty = (n_across * n_down - self.n_items) / self.n_items
            aspect = n_across * self.item_width(width) / rows_height
            # Single panels: wider than high, without empty places; several: a row for each section, if they fit
            cost = 2 * empty + abs(math.log(aspect / 1.5)) if self.per_item == 1 else float(n_across)
            candidates.append(_Candidate(n_across, longer_side, cost, max(rows_height / _HEIGHT, 1.0)))
        return candidates


@dataclass(frozen=True)
class _Legends:
    """Places (x, y, width, height, rows) of the legends, and their total width and height."""

    places: list[tuple[float, float, float, float, int]]
    width: float
    height: float

    @classmethod
    def of(cls, blocks: Sequence[Block], width: float) -> _Legends:
        """Side by side with as few rows as possible, or below each other if that takes less height."""
        side_by_side = cls._side_by_side(blocks, width)
        stacked = cls._stacked(blocks, width)
        if side_by_side is None or stacked.height < side_by_side.height:
            return stacked
        return side_by_side

    @classmethod
    def _side_by_side(cls, blocks: Sequence[Block], width: float) -> _Legends | None:
        most = max((len(block.entries) for block in blocks if block.entries), default=1)
        for rows in range(1, most + 1):
            sizes = [block.size(rows) for block in blocks]
            if sum(w for w, _ in sizes) + (len(sizes) - 1) * _LEGEND_GAP <= width:
                ends = np.cumsum([w + _LEGEND_GAP for w, _ in sizes]).tolist()
                places = [
                    (end - w - _LEGEND_GAP, 0.0, w, h, rows) for end, (w, h) in zip(ends, sizes, strict=True)
                ]
                return cls(places, ends[-1] - _LEGEND_GAP, max(h for _, h in sizes))
        return None

    @classmethod
    def _stacked(cls, blocks: Sequence[Block], width: float) -> _Legends:
        places, y, widest = [], 0.0, 0.0
        for block in blocks:
            rows = block.rows(width)
            w, h = block.size(rows)
            places.append((0.0, y, w, h, rows))
            y, widest = y + h + 0.1, max(widest, w)
        return cls(places, widest, y)
