"""Labels in any script: no warnings, no boxes."""

import logging
import warnings

import numpy as np
import pytest

from amilst_lite import plot

matplotlib = pytest.importorskip("matplotlib")

from matplotlib import font_manager  # noqa: E402
from matplotlib.ft2font import FT2Font  # noqa: E402

from amilst_lite.plot import fonts  # noqa: E402
from amilst_lite.plot.figure import literal  # noqa: E402

NOWHERE = "\U0010fffd"  # a private character that no font has


def _draw(labels, tmp_path):
    """Draw labels in all places and formats; every warning is an error."""
    points = np.random.default_rng(0).uniform(size=(4 * len(labels), 2))
    names = np.repeat(np.array(labels, dtype=object), 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = plot.draw_domains(points, names, annotation=names, sections=names, title=" ".join(labels))
        for ending in ("png", "svg", "pdf"):
            plot.save(figure, tmp_path / f"figure.{ending}", dpi=50)
    return figure


def _texts(figure):
    return " ".join(text.get_text() for text in figure.findobj(matplotlib.text.Text))


def test_labels_of_many_scripts_are_drawn_without_a_warning(tmp_path):
    labels = ["大脑皮层", "皮質 L2", "кора", "قشرة", "हिन्दी", "뇌", "🧠", "ß\u0301", "a\u200db", NOWHERE]
    shown = _texts(_draw(labels, tmp_path))
    assert all(literal(label) in shown for label in labels)


def test_characters_without_a_font_are_escaped_and_logged_once(tmp_path, caplog):
    fonts._family.cache_clear()
    with caplog.at_level(logging.INFO, logger="amilst_lite"):
        assert literal(f"a{NOWHERE}b{NOWHERE}") == r"a\U0010fffdb\U0010fffd"
    assert [record.getMessage().count("U+10FFFD") for record in caplog.records] == [1]
    assert r"\U0010fffd" in _texts(_draw([NOWHERE, "x"], tmp_path))


def test_escape_sequences_are_not_cut():
    text = literal(NOWHERE * 40, 60)
    head, tail = text.split("…")
    assert head == r"\U0010fffd" * 4 and tail == r"\U0010fffd" and len(text) <= 60
    assert literal("x" * 60, 60) == "x" * 60 and literal("x" * 10**6, 60) == "x" * 40 + "…" + "x" * 19


def test_a_font_that_has_the_character_is_used(tmp_path):
    """STIX comes with matplotlib and has characters that DejaVu Sans lacks."""
    path = font_manager.findfont("STIXGeneral")
    default = font_manager.findfont("DejaVu Sans")
    missing = sorted(set(FT2Font(path).get_charmap()) - set(FT2Font(default).get_charmap()))
    char = next(chr(code) for code in missing if fonts._family(chr(code), default) == "STIXGeneral")
    assert literal(char) == char and fonts.families(f"x{char}") == [
        *matplotlib.rcParams["font.family"],
        "STIXGeneral",
    ]
    assert fonts.families("xyz ß") == matplotlib.rcParams["font.family"]
    figure = _draw([f"gene {char}", "other"], tmp_path)
    assert char in _texts(figure)

    # it is drawn, and not as a box: as STIX alone draws it
    def pixels(family):
        drawn = plot.figure.new_figure(1, 1)
        drawn.text(0.3, 0.3, char, fontsize=30, fontfamily=family)
        drawn.canvas.draw()
        return np.asarray(drawn.canvas.buffer_rgba())

    np.testing.assert_array_equal(pixels(fonts.families(char)), pixels(["STIXGeneral"]))
    assert (pixels(["STIXGeneral"]) < 255).any()


def test_the_default_font_of_the_caller_is_respected():
    char = "ж"
    assert fonts.families(char) == matplotlib.rcParams["font.family"]
    with matplotlib.rc_context({"font.family": ["cmr10"]}):  # TeX's font of Latin letters only
        assert fonts.families(char) == ["cmr10", "DejaVu Sans"] and literal(char) == char


def test_a_font_file_that_cannot_be_read_has_no_characters(tmp_path):
    (tmp_path / "broken.ttf").write_bytes(b"text")
    assert fonts._characters(str(tmp_path / "broken.ttf")) == frozenset()
    assert fonts._characters(str(tmp_path / "missing.ttf")) == frozenset()
