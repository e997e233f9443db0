"""What a notebook shows of `AMILST`."""

from html.parser import HTMLParser

import numpy as np
import pytest

import amilst_lite as amilst

QUICK = {"epochs": 3, "n_networks": 1, "n_init": 4}


class Page(HTMLParser):
    """Rows of tables, and tags that were opened but not closed."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.open, self.text = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def fitted():
    rng = np.random.default_rng(0)
    points = rng.uniform(size=(150, 2))
    X = rng.normal(size=(150, 6)) + 6 * (points[:, :1] > 0.5)
    return amilst.AMILST(2, settings=QUICK).fit(X, coordinates=points)


def test_a_fitted_model_shows_its_domains(fitted):
    page = Page(fitted._repr_html_())
    assert page.open == []
    assert page.text[0] == "AMILST: 2 domains, 150 spots, 6 features"
    assert page.rows[0] == ["domain", "spots", "share", "", "mean confidence"]
    for k, row in enumerate(page.rows[1:3]):
        inside = fitted.labels_ == k
        shown = [
            str(k),
            str(inside.sum()),
            f"{100 * inside.mean():.1f} %",
            "",
            f"{fitted.confidence_[inside].mean():.2f}",
        ]
        assert row == shown
    rows = {row[0]: row[1] for row in page.rows if len(row) == 2}
    assert rows["seed"] == "0" and rows["settings"] == str(QUICK)
    assert {"filter", "train", "cluster"} <= set(rows)  # seconds
    bundle = fitted._repr_mimebundle_()
    assert bundle["text/html"] == fitted._repr_html_() and bundle["text/plain"] == repr(fitted)


def test_a_loaded_model_has_no_spots(fitted, tmp_path):
    fitted.save(tmp_path / "model.h5")
    page = Page(amilst.AMILST.load(tmp_path / "model.h5")._repr_html_())
    assert page.text[0] == "AMILST: 2 domains, loaded, without the spots of training, 6 features"


def test_before_the_fit_there_is_the_diagram_of_scikit_learn():
    page = amilst.AMILST(7)._repr_html_()
    assert "sk-" in page and "AMILST" in page


def test_text_is_escaped(fitted):
    hostile = amilst.AMILST(2, preset="<script>alert(1)</script>")
    hostile.__dict__.update({name: value for name, value in vars(fitted).items() if name.endswith("_")})
    page = hostile._repr_html_()
    assert "<script" not in page and "&lt;script&gt;" in page
