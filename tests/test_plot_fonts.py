"""Labels in any script: no warnings, no boxes."""

import warnings

import numpy as np
import pytest

from amilst_lite import plot
from amilst_lite.errors import AmilstWarning

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
        warnings.simplefilter("ignore", AmilstWarning)  # of labels that have no font here
        figure = plot.draw_domains(points, names, annotation=names, sections=names, title=" ".join(labels))
        for ending in ("png", "svg", "pdf"):
            plot.save(figure, tmp_path / f"figure.{ending}", dpi=50)
    return figure


def _texts(figure):
    return " ".join(text.get_text() for text in figure.findobj(matplotlib.text.Text))


def test_labels_of_many_scripts_are_drawn_without_a_warning(tmp_path):
    labels = ["大脑皮层", "皮質 L2", "кора", "قشرة", "हिन्दी", "뇌", "🧠", "ß\u0301", "a\u200db", NOWHERE]
    figure = _draw(labels, tmp_path)
    shown = _texts(figure)
    order = sorted(labels)
    for label in labels:
        has_font = all(map(fonts.has_glyph, label))
        assert (literal(label) if has_font else f"label {order.index(label) + 1}") in shown


def test_labels_without_a_font_are_numbered_and_the_warning_says_which_they_are(tmp_path, monkeypatch):
    labels = ["大脑皮层", "cortex", NOWHERE, "髓质"]
    with monkeypatch.context() as patched:
        patched.setattr(fonts, "has_glyph", str.isascii)
        with pytest.warns(AmilstWarning) as caught:
            shown = fonts.drawable(labels)
        assert shown == ("label 1", "cortex", "label 3", "label 4")
        (message,) = (str(one.message) for one in caught)
        assert f"label 1 is 大脑皮层, label 3 is {NOWHERE}, label 4 is 髓质. Install Noto Sans CJK" in message
        assert "fonts-noto-cjk" in message
        with pytest.warns(AmilstWarning, match="label 5 is x5́, and 3 more. Install Noto Sans .*fonts-noto"):
            fonts.drawable([f"x{i}\u0301" for i in range(1, 9)])
    assert fonts.drawable(["cortex", "1"]) == ("cortex", "1")
    points = np.random.default_rng(0).uniform(size=(30, 2))
    names = np.repeat(["a", NOWHERE, "b"], 10)
    with pytest.warns(AmilstWarning, match=f"label 3 is {NOWHERE}"):
        figure = plot.draw_domains(points, names, colors={NOWHERE: "#112233"})
    assert r"\U0010fffd" not in _texts(figure)
    entries = figure.axes[-1].get_legend()
    assert [text.get_text() for text in entries.get_texts()] == ["a  (10)", "b  (10)", "label 3  (10)"]


def test_other_text_is_escaped():
    assert literal(f"a{NOWHERE}b{NOWHERE}") == r"a\U0010fffdb\U0010fffd"


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
