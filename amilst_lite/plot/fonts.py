"""Fonts for labels in any script: the reader's default font, else an installed one that has the characters."""

from __future__ import annotations

import functools
import logging
import re
from typing import Any

__all__ = ["families", "has_glyph"]

logger = logging.getLogger("amilst_lite")

# Fonts of many scripts that systems and packages install; to look into every installed font takes seconds
_KNOWN = re.compile(
    r"^(Noto (Sans|Serif)|Source Han|WenQuanYi|Droid Sans|PingFang|Hiragino|Heiti|Songti|Yu Gothic|Meiryo|MS Gothic"
    r"|Microsoft|SimSun|SimHei|Malgun|Gulim|Apple ?(SD|Gothic)|Nanum|IPA|Takao|VL Gothic|AR PL|Arial Unicode|Segoe UI"
    r"|Tahoma|Nirmala|Leelawadee|Unifont|Free(Sans|Serif)|DejaVu|STIX)"
)


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
    logger.info(
        "no installed font has %s (U+%04X), which figures show as an escape sequence; fonts such as Noto Sans CJK "
        "have most characters",
        ascii(char),
        ord(char),
    )
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
