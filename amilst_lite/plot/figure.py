"""Creating figures, drawing text literally, legends, saving."""

from __future__ import annotations

import functools
import io
import math
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "DPI",
    "INK",
    "LITERAL",
    "RASTERIZE_FROM",
    "characters",
    "left_out",
    "legend",
    "legend_inches",
    "literal",
    "new_figure",
    "require_matplotlib",
    "save",
    "set_figure_title",
    "set_title",
    "title_inches",
]

INK = "#333333"
DPI = 200
RASTERIZE_FROM = 20_000  # spots; viewers fail to open SVG and PDF files with more of them as vectors
LITERAL: dict[str, Any] = {
    "parse_math": False,
    "usetex": False,
}  # options of a text that comes from the data or the caller
_FORMATS = ("png", "svg", "pdf")
_LEGEND_ROWS = 16


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
    figure.savefig(buffer, format="png", dpi=100, bbox_inches="tight")
    return buffer.getvalue()


def literal(text: str, longest: int = 60) -> str:
    """Return the text as one line of at most ``longest`` characters (before escaping).

    The middle of a longer text is left out: a label of 5,000 characters makes a figure wider than matplotlib
    can render. Control characters, line separators and surrogates, which no font can draw and SVG does not
    allow, are written as escape sequences.
    """
    if len(text) > longest:
        end = min(19, longest // 3)
        text = f"{text[: longest - 1 - end]}…{text[-end:]}"
    return "".join(
        char.encode("unicode_escape").decode()
        if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp")
        else char
        for char in text
    )


def set_title(axis: Axes, text: str, size: float = 11, pad: float | None = None) -> None:
    """Set the title of a panel, left-aligned."""
    axis.set_title(literal(text), loc="left", fontsize=size, color=INK, pad=pad, **LITERAL)


def characters(inches: float, size: float) -> int:
    """Return about how many characters of a font size (points) fit into a width."""
    return int(inches / (0.0078 * size))


def left_out(n_drawn: int, n_sections: int) -> str:
    """Return the note of a figure that does not draw all sections."""
    return f"The first {n_drawn} of {n_sections:,} sections; {n_sections - n_drawn:,} are left out."


def title_inches(title: str | None) -> float:
    """Height of the title of a figure."""
    return 0.1 + 0.25 * len(title.splitlines()) if title else 0.0


def set_figure_title(figure: Figure, title: str, **position: float) -> None:
    """Set the title of a figure, left-aligned; it may have several lines."""
    text = "\n".join(literal(line, 120) for line in title.splitlines())
    figure.suptitle(text, ha="left", fontsize=13, color=INK, **position, **LITERAL)


def legend(
    axis: Axes,
    entries: Sequence[tuple[str, int, str]],
    *,
    title: str | None = None,
    anchor: tuple[float, float] = (1.0, 1.0),
    rows: int = _LEGEND_ROWS,
) -> None:
    """Draw labels with their number of spots; entries are (label, number, color).

    The upper left corner is at ``anchor`` in the axes' own coordinates: to the right of a panel, unless given.
    """
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], linestyle="", marker="o", markersize=7, markeredgewidth=0, color=color)
        for *_, color in entries
    ]
    drawn = axis.legend(
        handles,
        # Replaced below: matplotlib < 3.10 leaves out labels that begin with an underscore
        ["?"] * len(entries),
        title=title,
        title_fontsize=9,
        alignment="left",
        loc="upper left",
        bbox_to_anchor=anchor,
        borderaxespad=0,
        frameon=False,
        fontsize=8,
        labelcolor=INK,
        handletextpad=0.2,
        labelspacing=0.45,
        columnspacing=1.0,
        ncols=math.ceil(len(entries) / rows),
    )
    drawn.get_title().set_color(INK)
    for text, (label, number, _) in zip(drawn.get_texts(), entries, strict=True):
        text.set(text=f"{literal(label)}  ({number:,})", **LITERAL)


def legend_inches(labels: Sequence[str], rows: int = _LEGEND_ROWS) -> float:
    """Estimate the width of a legend with these labels, in columns of at most ``rows``."""
    longest = max(len(literal(label)) for label in labels) + 8
    return math.ceil(len(labels) / rows) * (0.3 + 0.07 * longest)


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
    No date is written: the same figure gives the same bytes.
    """
    path = Path(path)
    extension = path.suffix.lower().removeprefix(".")
    if extension not in _FORMATS:
        raise InputError(f"The file name of a figure must end in .png, .svg or .pdf; found {path.name!r}.")
    if not path.parent.is_dir():
        raise InputError(f"The folder {path.parent} does not exist; create it first.")
    import matplotlib

    undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(extension)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with matplotlib.rc_context({"svg.hashsalt": "amilst_lite"}):
            figure.savefig(
                partial, format=extension, dpi=dpi, bbox_inches="tight", pad_inches=0.1, metadata=undated
            )
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
