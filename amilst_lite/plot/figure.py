"""Creating figures, drawing text literally, legends, saving."""

from __future__ import annotations

import functools
import io
import itertools
import math
import os
import textwrap
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, MissingExtraError
from ..partial import replacing
from .fonts import ESCAPED, families, has_glyph

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "DPI",
    "INK",
    "QUIET_INK",
    "RASTERIZE_FROM",
    "SIZE",
    "as_written",
    "characters",
    "left_out",
    "legend",
    "legend_below",
    "legend_columns",
    "legend_inches",
    "literal",
    "new_figure",
    "note_lines",
    "require_matplotlib",
    "save",
    "set_figure_title",
    "set_title",
    "text_inches",
    "title_inches",
]

INK = "#333333"
QUIET_INK = "#666666"
SIZE = 8  # points, of text in legends and on axes; figures are as wide as a journal page, so this is legible
DPI = 300
RASTERIZE_FROM = 20_000  # spots; viewers fail to open SVG and PDF files with more of them as vectors
_FORMATS = ("png", "svg", "pdf")
_HANDLE = 0.27  # inches, of the marker of an entry and the space after its column


def require_matplotlib() -> tuple[Any, Any]:
    """Return matplotlib's Figure and Agg canvas.

    Raises
    ------
    MissingExtraError
        matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError.for_package("matplotlib", "plot", "drawing figures") from error
    return Figure, FigureCanvasAgg


def new_figure(width: float, height: float, layout: str = "constrained") -> Figure:
    """Return an empty white figure, sizes in inches, with an Agg canvas of its own."""
    figure_class, canvas_class = require_matplotlib()
    figure = figure_class(figsize=(width, height), layout=layout, facecolor="white")
    canvas_class(figure)
    # IPython displays figures only after an import of pyplot, unless they have this method
    figure.__dict__["_repr_png_"] = functools.partial(_as_png, figure)
    return figure


def _as_png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144, bbox_inches="tight")
    return buffer.getvalue()


# -------------------------------------------------------------------------------------------------- text


def literal(text: str, longest: int = 60) -> str:
    """Return the text as one line of at most ``longest`` characters.

    The middle of a longer text is left out: a label of 5,000 characters makes a figure wider than matplotlib
    can render. What cannot be drawn is written as escape sequences: control characters, line separators and
    surrogates, which SVG does not allow, and characters that no installed font has.
    """
    if len(text) > 2 * longest:
        text = text[:longest] + text[-longest:]
    pieces = [_drawable(char) for char in text]
    if sum(map(len, pieces)) <= longest:
        return "".join(pieces)
    end = min(19, longest // 3)
    tail = _fitting(pieces[::-1], end)
    return "".join([*_fitting(pieces, longest - 1 - end), "…", *tail[::-1]])


def _drawable(char: str) -> str:
    if unicodedata.category(char) in ESCAPED or not has_glyph(char):
        return char.encode("unicode_escape").decode()
    return char


def _fitting(pieces: Sequence[str], length: int) -> list[str]:
    """The first pieces, at most ``length`` characters."""
    kept = []
    for piece in pieces:
        length -= len(piece)
        if length < 0:
            break
        kept.append(piece)
    return kept


def as_written(text: str) -> dict[str, Any]:
    """Return the options of a text that comes from the data or the caller: no formulas, fonts with its glyphs."""
    return {"parse_math": False, "usetex": False, "fontfamily": families(text)}


def set_title(axis: Axes, text: str, size: float = 9, pad: float | None = None, indent: float = 0) -> None:
    """Set the title of a panel, left-aligned; ``indent`` is a share of the width of the panel."""
    text = literal(text)
    axis.set_title(text, loc="left", fontsize=size, color=INK, pad=pad, x=indent, **as_written(text))


def characters(inches: float, size: float) -> int:
    """Return about how many characters of a font size (points) fit into a width."""
    return int(inches / (0.0078 * size))


def text_inches(text: str) -> float:
    """Return the width of a text of size `SIZE`."""
    from matplotlib.font_manager import FontProperties

    font = FontProperties(family=families(text), size=SIZE)
    return float(_renderer().get_text_width_height_descent(text, font, False)[0]) / 100


@functools.lru_cache(maxsize=1)
def _renderer() -> Any:
    """To measure text, at 100 dots per inch."""
    from matplotlib.backends.backend_agg import RendererAgg

    return RendererAgg(1, 1, 100)


def left_out(n_drawn: int, n_sections: int) -> str:
    """Return the note of a figure that does not draw all sections."""
    return f"The first {n_drawn} of {n_sections:,} sections; {n_sections - n_drawn:,} are left out."


def note_lines(notes: Sequence[str], width: float) -> list[str]:
    """Break notes into lines that fit into a width in inches."""
    longest = max(20, characters(width, SIZE - 1))
    return [line for note in notes for line in textwrap.wrap(literal(note, 400), longest)]


def title_inches(title: str | None) -> float:
    """Height of the title of a figure."""
    return 0.04 + 0.2 * len(title.splitlines()) if title else 0.0


def set_figure_title(figure: Figure, title: str, **position: float) -> None:
    """Set the title of a figure, left-aligned; it may have several lines."""
    text = "\n".join(literal(line, 120) for line in title.splitlines())
    figure.suptitle(text, ha="left", fontsize=11, color=INK, **position, **as_written(text))


# ----------------------------------------------------------------------------------------------- legends


def _entry(label: str, number: int) -> str:
    return f"{literal(label)}  ({number:,})"


def legend(
    axis: Axes,
    entries: Sequence[tuple[str, int, str]],
    *,
    title: str | None = None,
    anchor: tuple[float, float],
    rows: int,
) -> None:
    """Draw labels with their number of spots; entries are (label, number, color).

    The upper left corner is at ``anchor`` in the axes' own coordinates.
    """
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], linestyle="", marker="o", markersize=6, markeredgewidth=0, color=color)
        for *_, color in entries
    ]
    drawn = axis.legend(
        handles,
        # Replaced below: matplotlib < 3.10 leaves out labels that begin with an underscore
        ["?"] * len(entries),
        title=title,
        title_fontproperties={"size": SIZE, "weight": "bold"},
        alignment="left",
        loc="upper left",
        bbox_to_anchor=anchor,
        borderaxespad=0,
        borderpad=0,
        frameon=False,
        fontsize=SIZE,
        labelcolor=INK,
        handlelength=1.0,
        handletextpad=0.3,
        labelspacing=0.45,
        columnspacing=1.0,
        ncols=legend_columns(len(entries), rows),
    )
    drawn.get_title().set(color=INK, **as_written(title or ""))
    for text, (label, number, _) in zip(drawn.get_texts(), entries, strict=True):
        text.set(text=_entry(label, number), **as_written(_entry(label, number)))


def legend_below(
    axis: Axes, entries: Sequence[tuple[str, int, str]], size: tuple[float, float], gap: float
) -> None:
    """Draw a legend below axes of about this size, at a distance, in inches."""
    width, height = size
    rows = next((n for n in range(1, len(entries)) if legend_inches(entries, n) <= width), len(entries))
    legend(axis, entries, anchor=(0, -gap / height), rows=rows)


def legend_columns(n_entries: int, rows: int) -> int:
    """Return the number of columns of a legend of at most ``rows``."""
    return math.ceil(n_entries / rows)


def legend_inches(entries: Sequence[tuple[str, int, str]], rows: int) -> float:
    """Return the width of a legend, in columns of at most ``rows``."""
    widths = [text_inches(_entry(label, number)) for label, number, _ in entries]
    n_columns = legend_columns(len(entries), rows)
    # as matplotlib fills them: the first columns have one entry more, if they cannot all have the same number
    fewest, n_longer = divmod(len(widths), n_columns)
    starts = [i * fewest + min(i, n_longer) for i in range(n_columns + 1)]
    return sum(_HANDLE + max(widths[a:b]) for a, b in itertools.pairwise(starts))


# ------------------------------------------------------------------------------------------------ saving


def save(figure: Figure, path: str | os.PathLike[str], dpi: int = DPI) -> None:
    """Write a figure as PNG, SVG or PDF; an interrupted or failed save leaves no partial file.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
    path : path-like
        The extension selects the format. An existing file is replaced once the new one is complete.
    dpi : int
        Dots per inch of a PNG file and of rasterized parts of SVG and PDF files.

    Raises
    ------
    InputError
        The extension is not .png, .svg or .pdf, or the folder does not exist.

    Notes
    -----
    No date is written: the same figure gives the same bytes. Text in PDF files is editable (TrueType fonts).
    """
    path = Path(path)
    extension = path.suffix.lower().removeprefix(".")
    if extension not in _FORMATS:
        raise InputError(f"The file name of a figure must end in .png, .svg or .pdf; found {path.name!r}.")
    if not path.parent.is_dir():
        raise InputError(f"The folder {path.parent} does not exist; create it first.")
    import matplotlib

    undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(extension)
    with (
        replacing(path) as partial,
        matplotlib.rc_context({"svg.hashsalt": "amilst_lite", "pdf.fonttype": 42}),
    ):
        figure.savefig(
            partial, format=extension, dpi=dpi, bbox_inches="tight", pad_inches=0.1, metadata=undated
        )
