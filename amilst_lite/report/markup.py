"""HTML and SVG in which text cannot become markup."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

__all__ = ["Markup", "element", "embedded_json", "frame_of", "number", "table"]

_LONG = 25  # rows; of longer tables a part is visible at a time
_VOID = {"br", "col", "input", "link", "meta"}


class Markup(str):
    """Markup made by `element`. A plain str is text and is escaped wherever it is inserted."""

    __slots__ = ()


def element(tag: str, /, *children: Any, **attributes: Any) -> Markup:
    """Return an element of HTML or SVG.

    Parameters
    ----------
    tag : str
        Name of the element; ``""`` for its children alone.
    *children
        `Markup` is inserted as it is, sequences item by item, None not at all; the text of anything else is
        escaped.
    **attributes
        Names are written with ``-`` for ``_`` (``aria_label``), without a final ``_`` (``class_``). True is an
        attribute without a value; attributes that are None or False are left out.
    """
    inside = "".join(_inserted(child) for child in children)
    if not tag:
        return Markup(inside)
    parts = [tag]
    for name, value in attributes.items():
        name = name.rstrip("_").replace("_", "-")
        if value is True:
            parts.append(name)
        elif value is not None and value is not False:
            parts.append(f'{name}="{html.escape(_text(value))}"')
    opened = f"<{' '.join(parts)}>"
    return Markup(opened if tag in _VOID else f"{opened}{inside}</{tag}>")


def _inserted(child: Any) -> str:
    if child is None:
        return ""
    if isinstance(child, Markup):
        return child
    if isinstance(child, list | tuple):
        return "".join(map(_inserted, child))
    return html.escape(_text(child))


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"  # coordinates of SVG
    return str(value)


def embedded_json(value: Any) -> Markup:
    """JSON for a ``script`` element: it contains no ``<``, so that no text in it ends the element."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def number(value: Any, digits: int = 3) -> str:
    """A number as it is shown: integers with separators, others with three digits; anything else as text."""
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return f"{value:,}"
    if isinstance(value, float | np.floating):
        if not math.isfinite(value):
            return "–" if math.isnan(value) else str(value)
        rounded = f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"
        return rounded.replace("-", "−") if "e" not in rounded else rounded
    return str(value)


def frame_of(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """A table of rows with the same cells, some of which are `Markup`: pandas 3 takes it for text when it infers types.

    Parameters
    ----------
    rows : sequence of mappings
        Name of the column → cell.
    """
    columns = {name: [row[name] for row in rows] for name in next(iter(rows), {})}
    return pd.DataFrame(
        {
            name: pd.Series(cells, dtype=object if any(isinstance(cell, Markup) for cell in cells) else None)
            for name, cells in columns.items()
        }
    )


def table(
    frame: pd.DataFrame,
    caption: str,
    *,
    most_rows: int | None = None,
    digits: int = 3,
    shades: np.ndarray | None = None,
    hidden_caption: bool = False,
) -> Markup:
    """A table whose first column names the rows.

    Parameters
    ----------
    frame : DataFrame
        Its index is not shown. Cells are numbers, text or `Markup`.
    caption : str
    most_rows : int, optional
        Of longer tables the first ``most_rows`` are shown, and the caption says so.
    digits : int
        Of numbers that are not integers.
    shades : ndarray of float, (n_rows, n_columns - 1), optional
        Shade of each cell but the first of a row, from -1 to 1.
    hidden_caption : bool
        For screen readers only, where a heading above says the same.
    """
    shown = frame if most_rows is None else frame.head(most_rows)
    if len(shown) < len(frame):
        caption, hidden_caption = f"{caption} (the first {len(shown):,} of {len(frame):,} rows)", False
    kinds = ["number" if pd.api.types.is_numeric_dtype(kind) else None for kind in frame.dtypes]
    body = []
    for i, (first, *cells) in enumerate(shown.itertuples(index=False, name=None)):
        row = [element("th", _cell(first, digits), scope="row", class_=kinds[0])]
        for j, (value, kind) in enumerate(zip(cells, kinds[1:], strict=True)):
            shade = None if shades is None else _shade(shades[i, j])
            classes = " ".join(filter(None, (kind, shade)))
            row.append(element("td", _cell(value, digits), class_=classes or None))
        body.append(element("tr", row))
    heads = [
        element("th", name, scope="col", class_=kind) for name, kind in zip(frame.columns, kinds, strict=True)
    ]
    return element(
        "div",
        element(
            "table",
            element("caption", caption, class_="hidden" if hidden_caption else None),
            element("thead", element("tr", *heads)),
            element("tbody", *body),
        ),
        # A wide table scrolls by itself, also with the keyboard
        class_="scroll long" if len(shown) > _LONG else "scroll",
        tabindex=0,
        role="group",
        aria_label=caption,
    )


def _shade(share: float) -> str | None:
    """The class of the style sheet for a shade from -1 to 1."""
    level = round(10 * share) if math.isfinite(share) else 0
    return None if level == 0 else f"{'h' if level > 0 else 'm'}{min(abs(level), 10)}"


def _cell(value: Any, digits: int) -> Any:
    return value if isinstance(value, Markup) else number(value, digits)
