"""Fonts for labels in any script: the reader's default font, else an installed one that has the characters."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from ..errors import warn

__all__ = ["drawable", "families", "has_glyph"]

ESCAPED = ("Cc", "Cs", "Zl", "Zp")
"""Unicode categories without a picture: control characters, surrogates, separators of lines and paragraphs."""
_NAMED = 5  # labels that a warning names

# Fonts of many scripts that systems and packages install; to look into every installed font takes seconds
_KNOWN = re.compile(
    r"^(Noto (Sans|Serif)|Source Han|WenQuanYi|Droid Sans|PingFang|Hiragino|Heiti|Songti|Yu Gothic|Meiryo|MS Gothic"
    r"|Microsoft|SimSun|SimHei|Malgun|Gulim|Apple ?(SD|Gothic)|Nanum|IPA|Takao|VL Gothic|AR PL|Arial Unicode|Segoe UI"
    r"|Tahoma|Nirmala|Leelawadee|Unifont|Free(Sans|Serif)|DejaVu|STIX)"
)


def drawable(labels: Sequence[str]) -> tuple[str, ...]:
    """Return the labels as figures show them: those that no installed font can draw are numbered.

    Parameters
    ----------
    labels : sequence of str

    Returns
    -------
    tuple of str
        ``"label 3"`` for the third one, if no font has one of its characters.

    Warns
    -----
    AmilstWarning
        There is such a label; the message says which number is which label, and which font to install.
    """
    numbered = {i: f"label {i + 1}" for i, label in enumerate(labels) if not all(map(_can_be_shown, label))}
    if numbered:
        named = ", ".join(f"{new} is {labels[i]}" for i, new in list(numbered.items())[:_NAMED])
        more = f", and {len(numbered) - _NAMED} more" if len(numbered) > _NAMED else ""
        scripts = "".join(char for i in numbered for char in labels[i] if not _can_be_shown(char))
        warn(
            f"figures show labels by numbers, because no installed font has their characters: {named}{more}. Install "
            f"{_font_for(scripts)}, delete matplotlib's list of fonts (fontlist-*.json in "
            "matplotlib.get_cachedir()), and draw again."
        )
    return tuple(numbered.get(i, label) for i, label in enumerate(labels))


def _font_for(characters: str) -> str:
    """Fonts that have most characters of these scripts, and the package of Debian and Ubuntu."""
    east_asian = any(
        unicodedata.name(char, "").startswith(("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO"))
        for char in characters
    )
    return (
        "Noto Sans CJK (Debian, Ubuntu: fonts-noto-cjk)"
        if east_asian
        else "Noto Sans (Debian, Ubuntu: fonts-noto)"
    )


def _can_be_shown(char: str) -> bool:
    """Whether there is a font, or the character is written as an escape sequence in any case."""
    return unicodedata.category(char) in ESCAPED or has_glyph(char)


def has_glyph(char: str) -> bool:
    """Whether a font with this character is installed."""
    return ord(char) < 128 or _family(char, _default()) is not None


def families(text: str) -> list[str]:
    """Font families for a text: the default ones, then those needed for characters that they do not have."""
    from matplotlib import rcParams

    default = _default()
    others = {_family(char, default) for char in text if ord(char) >= 128} - {None, ""}
    return [*rcParams["font.family"], *sorted(name for name in others if name)]


def _default() -> str:
    """File of the default font."""
    from matplotlib import font_manager

    path: str = font_manager.findfont(font_manager.FontProperties())
    return path


@functools.lru_cache(maxsize=10_000)
def _family(char: str, default: str) -> str | None:
    """The font family that has a character: "" for the default one, None if there is none."""
    if ord(char) in _characters(default):
        return ""
    for name, path in _installed():
        if ord(char) in _characters(path):
            return name
    return None


@functools.lru_cache(maxsize=1)
def _installed() -> list[tuple[str, str]]:
    """Family and file of the known fonts, in a fixed order: DejaVu Sans, which matplotlib brings, first."""
    from matplotlib.font_manager import fontManager

    regular: dict[str, Any] = {}
    for entry in sorted(fontManager.ttflist, key=lambda entry: (abs(_weight(entry) - 400), entry.fname)):
        if _KNOWN.match(entry.name) and entry.style == "normal" and "Emoji" not in entry.name:
            regular.setdefault(entry.name, entry.fname)
    return sorted(regular.items(), key=lambda item: (item[0] != "DejaVu Sans", item[0]))


def _weight(entry: Any) -> int:
    return (
        entry.weight if isinstance(entry.weight, int) else {"normal": 400, "bold": 700}.get(entry.weight, 500)
    )


@functools.lru_cache(maxsize=256)
def _characters(path: str) -> frozenset[int]:
    """The characters of a font file; none if it cannot be read."""
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()
