"""The HTML report: content, escaping, arrays, size; its JavaScript in Node.js; its behavior in Chromium.

Tests that need Node.js, or Chromium with its driver, are skipped where these are not installed.
"""

import base64
import csv
import hashlib
import itertools
import json
import re
import shutil
import subprocess
import time
import zlib
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from chromium import Browser, installed
from scipy import stats
from scipy.spatial import cKDTree

import amilst_lite as amilst
from amilst_lite import report
from amilst_lite.errors import InputError, MissingKeyError
from amilst_lite.report import charts, markup, spots
from amilst_lite.report.expression import expression_of

QUICK = {"epochs": 3, "n_networks": 1, "n_init": 4}
ASSETS = Path(report.__file__).parent
FADED = "#eff1f3"
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&amp;"


@pytest.fixture(scope="module")
def joint():
    """Two sections after a joint run, with a table as if it had chosen K, regions that some spots lack, a UMAP."""
    parts = {name: amilst.simulate_section(260, 40, 3, seed=seed) for name, seed in (("first", 1), ("b", 2))}
    adata = ad.concat(parts, label="section", index_unique="-")
    adata.obsm["spatial"][260:] += 50_000
    amilst.identify_domains(adata, 4, sample_key="section", **QUICK)
    adata.uns["amilst"]["selection"] = {
        "n_domains": np.arange(3, 7),
        "log_likelihood": np.array([1.5, 2.5, 2.6, 2.4]),
    }
    region = adata.obs["ground_truth"].astype(object)
    region.iloc[:7] = None
    adata.obs["region"] = pd.Categorical(region)
    adata.obsm["X_umap"] = adata.obsm["X_amilst"][:, :2] * [1.0, 2.0]
    return adata


@pytest.fixture(scope="module")
def page(joint, tmp_path_factory):
    command = "amilst run first.h5ad b.h5ad -o out --seed 0"
    path = tmp_path_factory.mktemp("report") / "report.html"
    assert report.write_report(joint, path, annotation="region", command=command) == path
    return path


class Document(HTMLParser):
    """The elements of a page with their attributes and text, by a parser that is not ours."""

    VOID = frozenset({"br", "col", "img", "input", "link", "meta"})

    def __init__(self, path):
        super().__init__(convert_charrefs=True)
        self.elements, self.open = [], []
        self.feed(path.read_text(encoding="utf-8"))
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        one = {"tag": tag, "attrs": dict(attrs), "text": "", "inside": [other["tag"] for other in self.open]}
        self.elements.append(one)
        if tag not in self.VOID:
            self.open.append(one)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1]["tag"] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data):
        for one in self.open:
            one["text"] += data

    def all(self, *tags):
        return [one for one in self.elements if one["tag"] in tags]

    def by_id(self, name):
        (one,) = [one for one in self.elements if one["attrs"].get("id") == name]
        return one

    @property
    def meta(self):
        return json.loads(self.by_id("meta")["text"])

    def arrays(self):
        """The arrays, decoded as `fields` describes them."""
        data = zlib.decompress(base64.b64decode(self.by_id("arrays")["text"]))
        found = {}
        for name, field in self.meta["fields"].items():
            part, data = data[: field["bytes"]], data[field["bytes"] :]
            found[name] = json.loads(part) if field["type"] == "json" else np.frombuffer(part, field["type"])
        assert data == b""
        return found

    def rows(self, caption):
        """The cells of the table with this caption."""
        start = next(
            i for i, one in enumerate(self.elements) if one["tag"] == "caption" and caption in one["text"]
        )
        rows = []
        for one in self.elements[start + 1 :]:
            if one["tag"] == "table":
                break
            if one["tag"] == "tr":
                rows.append([])
            elif one["tag"] in ("td", "th") and rows:
                rows[-1].append(one["text"])
        return rows


@pytest.fixture(scope="module")
def document(page):
    return Document(page)


def view_of(meta, name):
    (view,) = [view for view in meta["views"] if view["name"] == name]
    return view


# --------------------------------------------------------------------------------------- one closed file


def test_nothing_is_loaded_from_elsewhere(page, document):
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(", text.replace("// ", ""))
    for one in document.elements:
        for name in ("src", "href", "action", "srcset"):
            assert one["attrs"].get(name, "#").startswith(("#", "data:,")), one


def test_the_policy_allows_our_script_and_style_only(document):
    (policy,) = [
        one["attrs"]["content"] for one in document.all("meta") if one["attrs"].get("http-equiv") is not None
    ]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'" and "connect-src" not in rules
    for rule, tag in (("script-src", "script"), ("style-src", "style")):
        (code,) = [one["text"] for one in document.all(tag) if "type" not in one["attrs"]]
        digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"
    # Attributes with code or style would be blocked
    assert not [name for one in document.elements for name in one["attrs"] if re.match("on|style", name)]


def test_the_same_input_gives_the_same_bytes(joint, page, tmp_path):
    command = "amilst run first.h5ad b.h5ad -o out --seed 0"
    again = report.write_report(joint.copy(), tmp_path / "again.html", annotation="region", command=command)
    assert again.read_bytes() == page.read_bytes()


def test_text_from_data_cannot_become_markup(joint, page, tmp_path):
    hostile = joint.copy()
    hostile.var_names = [f"{HOSTILE}{i}" for i in range(hostile.n_vars)]
    hostile.obs_names = [f"{HOSTILE}{i}" for i in range(hostile.n_obs)]
    hostile.obs["region"] = hostile.obs["region"].cat.rename_categories(lambda name: name + HOSTILE)
    hostile.obs["section"] = hostile.obs["section"].cat.rename_categories(lambda name: name + HOSTILE)
    hostile.uns["amilst"]["warnings"] = np.array([HOSTILE], dtype=object)
    hostile.obs[HOSTILE] = hostile.obs["region"]
    markers = pd.DataFrame({"domain": ["1", "2"], "gene": [hostile.var_names[3]] * 2, HOSTILE: [HOSTILE] * 2})
    analyses = {HOSTILE: markers, "markers": markers}
    path = report.write_report(
        hostile, tmp_path / "r.html", annotation=HOSTILE, command=HOSTILE, analyses=analyses
    )
    found, plain = Document(path), Document(page)
    assert len(found.all("script")) == len(plain.all("script")) == 3
    assert not found.all("img") and not plain.all("img")
    assert found.by_id("command")["text"] == HOSTILE
    assert HOSTILE in next(one["text"] for one in found.all("aside"))
    assert {f"{HOSTILE}3"} <= {view["name"] for view in found.meta["views"]}
    assert found.arrays()["names"][5] == f"{HOSTILE}5"
    assert found.meta["sections"][0]["name"].endswith(HOSTILE)


@pytest.mark.parametrize("value", [HOSTILE, "<!--", "]]>", "\u2028", "\ud800", "x" * 3])
def test_embedded_json(value):
    text = markup.embedded_json({value: [value]})
    assert not set("<>&") & set(text) and json.loads(text) == {value: [value]}


def test_elements_escape_text_and_attributes():
    inner = markup.element("b", "1 < 2", title='"&')
    assert inner == '<b title="&quot;&amp;">1 &lt; 2</b>'
    assert markup.element("p", inner, [None, "&"], class_="a", hidden=True, id=None) == (
        f'<p class="a" hidden>{inner}&amp;</p>'
    )
    assert markup.element("", str(inner) + "<") == markup.element("", inner + "<")  # a sum is text again


@pytest.mark.parametrize(
    ("value", "shown"),
    [(1234567, "1,234,567"), (0.123456, "0.123"), (np.nan, "–"), (True, "yes"), (-2.5, "−2.5"), (12345.6, "12,346"),
     (1e-30, "1e-30"), ("a", "a"), (np.int32(7), "7")],
)  # fmt: skip
def test_numbers(value, shown):
    assert markup.number(value) == shown


# ---------------------------------------------------------------------------------------- accessibility


def test_landmarks_headings_and_names(document):
    assert document.all("html")[0]["attrs"]["lang"] == "en"
    assert document.all("title")[0]["text"].startswith("Spatial domains")
    for tag in ("header", "nav", "main", "footer", "h1"):
        assert len(document.all(tag)) == 1, tag
    ids = Counter(one["attrs"]["id"] for one in document.elements if "id" in one["attrs"])
    assert max(ids.values()) == 1
    for one in document.elements:
        attrs = one["attrs"]
        for name in ("aria-labelledby", "aria-describedby"):
            assert name not in attrs or attrs[name] in ids
        if one["tag"] == "a":
            assert attrs["href"][1:] in ids and one["text"].strip()
        if one["tag"] == "svg":
            assert attrs.get("aria-hidden") == "true" or (attrs["role"] == "img" and attrs["aria-label"])
        if one["tag"] == "button":
            assert one["text"].strip() or attrs.get("aria-label")
        if one["tag"] == "select":
            assert "label" in one["inside"]
        if one["tag"] == "canvas":
            assert attrs.get("aria-hidden") == "true" or (attrs["aria-label"] and attrs["tabindex"] == "0")
        if one["tag"] == "table":
            assert "div" in one["inside"]
    assert len(document.all("caption")) == len(document.all("table"))
    levels = [int(one["tag"][1]) for one in document.all("h1", "h2", "h3")]
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def themes():
    """The custom properties of the style sheet on light and on dark pages."""
    text = (ASSETS / "report.css").read_text(encoding="utf-8")
    blocks = [
        dict(re.findall(r"--([\w-]+): (#\w{6});", block))
        for block in re.findall(r":root \{(.*?)\}", text, re.DOTALL)
    ]
    assert len(blocks) == 3
    return {"light": blocks[0], "dark": blocks[1], "print": {**blocks[0], **blocks[2]}}


@pytest.mark.parametrize("theme", ["light", "dark", "print"])
def test_contrast(theme):
    """Web Content Accessibility Guidelines 2.2, 1.4.3 and 1.4.11."""
    colors = themes()[theme]

    def luminance(name):
        parts = np.array([int(colors[name][i : i + 2], 16) for i in (1, 3, 5)]) / 255
        return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ [
            0.2126,
            0.7152,
            0.0722,
        ]

    def ratio(one, other):
        low, high = sorted((luminance(one), luminance(other)))
        return (high + 0.05) / (low + 0.05)

    for text in ("ink", "quiet", "accent"):
        for ground in ("page", "card", "stage", "accent-soft", "warn"):
            assert ratio(text, ground) >= 4.5, (text, ground)
    for curve in ("s0", "s1", "s2", "s3", "s4", "s5"):
        assert ratio(curve, "card") >= 3, curve


def test_the_script_knows_the_colors_of_the_stage():
    script = (ASSETS / "report.js").read_text(encoding="utf-8")
    assert re.findall(r'stage: "(#\w+)"', script) == [themes()["light"]["stage"], themes()["dark"]["stage"]]


# ------------------------------------------------------------------------------------------- the arrays


def test_arrays_hold_the_spots(joint, document):
    meta, arrays = document.meta, document.arrays()
    n = joint.n_obs
    assert meta["n_spots"] == meta["n_drawn"] == n and meta["n_far"] == 0
    assert arrays["names"] == list(joint.obs_names)
    for name, field, column in (
        ("Domains", "domain", "amilst_domain"), ("Refined domains", "refined", "amilst_domain_refined"),
        ("Annotation: region", "annotation", "region"), ("Sections", "section", "section"),
    ):  # fmt: skip
        view = view_of(meta, name)
        labels = np.array([*view["labels"], *[None] * (256 - len(view["labels"]))], dtype=object)
        expected = joint.obs[column].astype(object)
        assert list(labels[arrays[field]]) == list(expected.where(expected.notna(), None))
        assert view["sizes"] == [int((joint.obs[column] == label).sum()) for label in view["labels"]]
        assert view["missing"] == joint.obs[column].isna().sum()
    assert view_of(meta, "Domains")["colors"] == list(joint.uns["amilst_domain_colors"])
    np.testing.assert_allclose(
        arrays["confidence"] / 254, joint.obs["amilst_confidence"], atol=0.5 / 254 + 1e-6
    )
    umap = arrays["umap"].reshape(2, n).T.astype(float)
    scale = np.ptp(joint.obsm["X_umap"], axis=0).max() / 65535
    np.testing.assert_allclose(
        umap * scale + joint.obsm["X_umap"].min(axis=0), joint.obsm["X_umap"], atol=0.51 * scale
    )


def test_sections_are_side_by_side_at_one_scale(joint, document):
    meta, arrays = document.meta, document.arrays()
    levels = arrays["position"].reshape(2, -1).T.astype(float)
    on_map = np.empty_like(levels)
    for i, section in enumerate(meta["sections"]):
        rows = arrays["section"] == i
        assert section["size"] == rows.sum()
        truth = np.asarray(joint.obsm["spatial"])[rows]
        np.testing.assert_allclose(
            levels[rows] * section["step"] + section["low"], truth, atol=0.51 * section["step"]
        )
        on_map[rows] = levels[rows] * section["step"] + section["place"]
        x0, y0, x1, y1 = section["frame"]
        assert (on_map[rows] >= [x0 - 1, y0 - 1]).all() and (on_map[rows] <= [x1 + 1, y1 + 1]).all()
    (ax0, _, ax1, _), (bx0, _, _, _) = (section["frame"] for section in meta["sections"])
    assert ax0 < ax1 < bx0  # 50,000 apart in the data, beside each other on the map
    assert bx0 - ax1 < 0.3 * (ax1 - ax0)


def test_one_remote_spot_does_not_shrink_the_section():
    rng = np.random.default_rng(0)
    points = np.vstack([rng.uniform(0, 100, (3000, 2)), [[9000, 50]]])
    labels = report.page.Labels(np.zeros(3001, dtype=int), ("",), zero_based=False)
    layout = spots.arrange(points, labels, np.arange(3001))
    x0, _, x1, _ = layout.sections[0]["frame"]
    assert x1 - x0 < 120 and layout.n_far == 1


@pytest.mark.parametrize("n", [1, 2, 5, 12, 40])
def test_sections_do_not_overlap(n):
    rng = np.random.default_rng(n)
    codes = np.arange(n).repeat(6)
    points = rng.normal(size=(6 * n, 2)) * rng.uniform(1, 5, n)[codes][:, None]
    layout = spots.arrange(
        points, report.page.Labels(codes, tuple("abc"[i % 3] * i for i in range(n)), False), np.arange(6 * n)
    )
    frames = np.array([section["frame"] for section in layout.sections])
    for a, b in itertools.combinations(frames, 2):
        assert a[2] < b[0] or b[2] < a[0] or a[3] < b[1] or b[3] < a[1]
    width, height = frames[:, 2:].max(axis=0) - frames[:, :2].min(axis=0)
    assert n < 5 or 0.5 < width / height < 3.5


def test_thinning_is_even_and_independent_of_the_order():
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 100, (20_000, 2))
    sections = (rng.random(20_000) < 0.2).astype(int)
    kept = spots.thinned(points, sections, most=4000)
    assert (np.diff(kept) > 0).all() and 3990 <= len(kept) <= 4000
    assert abs(sections[kept].mean() - sections.mean()) < 0.002
    # The share kept in each of 100 squares varies less than that of a random choice (standard deviation 5.6)
    squares = (points // 10).astype(int) @ [10, 1]
    counts = np.bincount(squares[kept], minlength=100)
    assert np.abs(counts - 0.2 * np.bincount(squares, minlength=100)).std() < 2.5
    order = rng.permutation(20_000)
    again = order[spots.thinned(points[order], sections[order], most=4000)]
    assert set(again) == set(kept)
    np.testing.assert_array_equal(spots.thinned(points, sections, most=20_000), np.arange(20_000))


def test_a_thinned_report_says_so(joint, tmp_path, monkeypatch):
    monkeypatch.setattr(report.page, "thinned", lambda points, codes: spots.thinned(points, codes, most=100))
    found = Document(report.write_report(joint, tmp_path / "r.html"))
    meta = found.meta
    assert 98 <= meta["n_drawn"] <= 100 and meta["n_spots"] == joint.n_obs
    assert f"draws {meta['n_drawn']} of 520 spots" in found.by_id("map")["text"]
    assert len(found.arrays()["names"]) == meta["n_drawn"]
    assert sum(view_of(meta, "Domains")["sizes"]) == joint.n_obs  # sizes are those of all spots
    assert sum(int(row[1]) for row in found.rows("Domains: size")[1:]) == joint.n_obs


def test_labels_take_as_few_bytes_as_needed():
    arrays = spots.Arrays()
    for n, kind in ((254, "uint8"), (255, "uint16"), (65_534, "uint16"), (65_535, "uint32")):
        arrays.add_labels(kind, np.array([0, n - 1, -1]), n)
        assert arrays.fields[kind]["type"] == kind
    data = zlib.decompress(base64.b64decode(arrays.encoded()))
    assert list(np.frombuffer(data[-12:], "<u4")) == [0, 65_534, 2**32 - 1]


# ------------------------------------------------------------------------------------------------ genes


def test_genes_against_dense_formulas(joint):
    counts = np.asarray(joint.X.todense(), dtype=float)
    drawn = np.arange(0, joint.n_obs, 3)
    domains = joint.obs["amilst_domain"].cat.codes.to_numpy()[drawn]
    n_domains = domains.max() + 1
    found = expression_of(joint.X, drawn, domains, n_domains, most_genes=7)
    counts = counts[drawn]
    normalized = np.log1p(1e4 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1e-30))
    best = []
    for k in range(n_domains):
        t = stats.ttest_ind(normalized[domains == k], normalized[domains != k], equal_var=False).statistic
        t = np.nan_to_num(t)
        assert (t[found.ranking[k]] > 0).all() and len(found.ranking[k]) == (t > 0).sum()
        assert (np.diff(t[found.ranking[k]]) <= 1e-4).all()
        best.append(found.ranking[k][0])
    assert len(set(found.genes)) == len(found.genes) <= 7 and set(best[:7]) <= set(found.genes)
    for gene, values, highest in zip(found.genes, found.values, found.highest, strict=True):
        assert highest == pytest.approx(
            np.quantile(normalized[:, gene][normalized[:, gene] > 0], 0.99), rel=1e-5
        )
        np.testing.assert_allclose(
            values * highest / 254, np.minimum(normalized[:, gene], highest), atol=0.51 * highest / 254
        )
    expected = np.outer(counts.sum(axis=1), counts.sum(axis=0) / counts.sum())
    with np.errstate(divide="ignore", invalid="ignore"):
        deviance = np.where(counts > expected, counts * np.log(counts / expected) - (counts - expected), 0)
    top = -np.sort(-deviance, axis=1)[:, :3]
    chosen = np.take_along_axis(deviance, np.maximum(found.leading, 0), axis=1) * (found.leading >= 0)
    np.testing.assert_allclose(chosen, top, rtol=1e-9, atol=1e-9)


def test_genes_of_counts_read_in_blocks(joint, monkeypatch):
    from amilst_lite.preprocess import counts as module

    drawn = np.arange(1, joint.n_obs, 2)
    domains = joint.obs["amilst_domain"].cat.codes.to_numpy()[drawn]
    whole = expression_of(joint.X, drawn, domains, domains.max() + 1, most_genes=9)
    monkeypatch.setattr(module, "BLOCK_ENTRIES", 500)
    parts = expression_of(joint.X, drawn, domains, domains.max() + 1, most_genes=9)
    np.testing.assert_array_equal(parts.leading, whole.leading)
    np.testing.assert_array_equal(parts.values, whole.values)


def test_a_table_of_markers_decides_which_genes_are_offered(joint, tmp_path):
    names = list(joint.var_names)
    markers = pd.DataFrame(
        {"domain": ["1", "2", "1", "3"], "gene": [names[5], names[9], names[7], "unknown"], "p_naive": 0.01}
    )
    found = Document(report.write_report(joint, tmp_path / "r.html", analyses={"markers": markers}))
    genes = {view["name"]: view["of"] for view in found.meta["views"] if view["kind"] == "gene"}
    assert genes == {names[5]: "1", names[9]: "2", names[7]: "1"}
    assert found.rows("Domains: size")[1][-1] == f"{names[5]}, {names[7]}"
    assert found.rows("markers")[:2] == [["domain", "gene", "p naive"], ["1", names[5], "0.01"]]
    text = found.by_id("analyses")["text"]
    assert "therefore too small" in text and "0.5 is no difference" not in text  # there is no such column
    assert "therefore too small" in found.by_id("analyses")["text"]


def test_without_counts_there_are_no_genes(joint, tmp_path):
    for change in ({"X": None}, {"X": joint.X * -1}):
        adata = joint.copy()
        adata.X = change["X"]
        found = Document(report.write_report(adata, tmp_path / "r.html"))
        assert {view["kind"] for view in found.meta["views"]} == {"labels", "confidence"}
        assert "No genes are shown" in found.by_id("domains")["text"]


# --------------------------------------------------------------------------------------------- contents


def test_tables_count_what_pandas_counts(joint, document):
    domains = joint.obs["amilst_domain"]
    rows = document.rows("Domains: size")[1:]
    assert [row[0] for row in rows] == list(domains.cat.categories)
    for row in rows:
        inside = domains == row[0]
        assert row[1] == str(inside.sum()) and row[2] == f"{100 * inside.mean():.1f} %"
        assert row[3] == str((joint.obs["amilst_domain_refined"] == row[0]).sum())
        assert float(row[4]) == pytest.approx(joint.obs["amilst_confidence"][inside].mean(), rel=5e-3)
    table = pd.crosstab(joint.obs["section"], domains)
    for row in document.rows("Spots of each section and domain")[1:]:
        assert list(map(int, row[1:])) == table.loc[row[0]].tolist()
    table = pd.crosstab(joint.obs["region"], domains)
    for row in document.rows("Spots of each annotated region")[1:]:
        assert (
            list(map(int, row[1:]))
            == table.loc[row[0]].reindex(domains.cat.categories, fill_value=0).tolist()
        )


def test_markup_is_not_shown_as_text(document):
    assert not [one for one in document.all("th", "td", "li", "p") if "</" in one["text"]]
    assert [one for one in document.all("svg") if "tbody" in one["inside"]]


def test_scores_curves_settings_and_command_are_there(joint, document):
    record = joint.uns["amilst"]
    scores = {row[0]: row[1] for row in document.rows("Scores of the domains")}
    assert scores["ari"] == markup.number(amilst.score(joint, "region")["ari"])
    titles = [one["text"] for one in document.all("strong") if "figcaption" in one["inside"]]
    for name in ("Number of domains", "Shrinkage of the covariance", "Reconstruction"):
        assert name in titles
    settings = dict(document.rows("Settings as used")[1:])
    assert settings["train.epochs"] == "3" and settings["cluster.n_init"] == "4"
    assert dict(document.rows("Versions")[1:])["amilst-lite"] == record["versions"]["amilst-lite"]
    assert document.by_id("command")["text"] == "amilst run first.h5ad b.h5ad -o out --seed 0"
    assert "chosen by held-out spots" in document.all("header")[0]["text"]


def test_a_summary_replaces_what_is_computed(joint, tmp_path):
    summary = {
        "input": "151673/", "scores": {"domain": {"ari": 0.4321}, "refined": {"ari": 0.5}}, "warnings": ["low depth"],
        "left_out": ["umap.png: no umap"], "seconds": {"total": 3.5}, "peak_memory": {"ram_bytes": 2 * 10**9},
    }  # fmt: skip
    found = Document(report.write_report(joint, tmp_path / "r.html", summary=summary))
    assert found.all("h1")[0]["text"] == "151673/" and "low depth" in found.all("aside")[0]["text"]
    assert found.rows("Scores of the domains")[1][:3] == ["ari", "0.432", "0.5"]
    assert ["peak ram (MB)", "2,000"] in found.rows("Time and memory on")
    assert "umap.png: no umap" in found.by_id("run")["text"]


def test_a_single_section_with_given_k_after_a_round_trip(tmp_path):
    adata = amilst.simulate_section(150, 30, 3, seed=0)
    amilst.identify_domains(adata, 3, **QUICK)
    adata.write_h5ad(tmp_path / "a.h5ad")
    found = Document(report.write_report(ad.read_h5ad(tmp_path / "a.h5ad"), tmp_path / "r.html"))
    assert "3 (as given)" in found.all("header")[0]["text"]
    assert [view["name"] for view in found.meta["views"]][:3] == ["Domains", "Refined domains", "Confidence"]
    assert not found.meta["umap"] and len(found.meta["sections"]) == 1
    assert "composition" not in {one["attrs"].get("id") for one in found.elements}
    assert "Number of domains" not in {one["text"] for one in found.all("strong")}
    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    report.write_report(backed, tmp_path / "backed.html")
    assert (tmp_path / "backed.html").read_bytes() == (tmp_path / "r.html").read_bytes()


def test_matrices_of_domains_are_shaded(joint, tmp_path):
    names = list(joint.obs["amilst_domain"].cat.categories)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i:]]
    enrichment = pd.DataFrame(pairs, columns=["domain", "other"])
    enrichment["z"] = [10.0 if a == b else -2.5 for a, b in pairs]
    enrichment.loc[1, "z"] = -5.0  # of the first two
    connectivity = pd.DataFrame(np.eye(4), index=pd.Index(names, name="domain"), columns=names)
    analyses = {"enrichment": enrichment, "connectivity": connectivity}
    found = Document(report.write_report(joint, tmp_path / "r.html", analyses=analyses))
    assert found.rows("z scores of the contacts") == [
        ["domain", *names],
        ["1", "10", "−5", "−2.5", "−2.5"],
        ["2", "−5", "10", "−2.5", "−2.5"],
        ["3", "−2.5", "−2.5", "10", "−2.5"],
        ["4", "−2.5", "−2.5", "−2.5", "10"],
    ]
    assert found.rows("connectivity")[1] == ["1", "1", "0", "0", "0"]
    assert "relative to those expected" in found.by_id("analyses")["text"]
    inside = [one["attrs"].get("class") for one in found.all("td")]
    # relative to the largest number of two different domains
    assert [inside.count(f"number {shade}") for shade in ("m10", "m5", "h10")] == [2, 10, 8]


def test_without_matplotlib_domains_have_the_colors_of_the_palette(joint, page, tmp_path, monkeypatch):
    def refuse(*_):
        raise amilst.MissingExtraError("matplotlib")

    monkeypatch.setattr(report.page.plot, "stored_colors", refuse)
    found = Document(report.write_report(joint, tmp_path / "r.html"))
    assert view_of(found.meta, "Domains")["colors"] == list(joint.uns["amilst_domain_colors"])


def test_planes_of_a_stack_are_sections(tmp_path):
    adata = amilst.simulate_section(200, 30, 3, seed=0)
    z = np.repeat([0.0, 10.0], 100)[:, None]
    adata.obsm["spatial"] = np.hstack([adata.obsm["spatial"], z])
    amilst.identify_domains(adata, 3, **QUICK)
    found = Document(report.write_report(adata, tmp_path / "r.html"))
    assert [section["name"] for section in found.meta["sections"]] == ["z = 0", "z = 10"]
    np.testing.assert_array_equal(found.arrays()["section"], np.repeat([0, 1], 100))


def test_long_tables_are_cut_and_say_so(joint, tmp_path):
    wide = pd.DataFrame({"gene": [f"g{i}" for i in range(3000)], "moran": np.linspace(1, 0, 3000)})
    found = Document(report.write_report(joint, tmp_path / "r.html", analyses={"spatial genes": wide}))
    assert "the first 400 of 3,000 rows" in found.by_id("analyses")["text"]
    assert len(found.rows("spatial genes (")) == 401


def test_colors_stored_by_scanpy_are_used(joint, tmp_path):
    adata = joint.copy()
    adata.uns["region_colors"] = ["#111111", "#222222", "#333333"]
    found = Document(report.write_report(adata, tmp_path / "r.html", annotation="region"))
    assert view_of(found.meta, "Annotation: region")["colors"] == ["#111111", "#222222", "#333333"]


def test_what_is_refused(joint, tmp_path):
    with pytest.raises(MissingKeyError, match="no results under key_added='other'"):
        report.write_report(joint, tmp_path / "r.html", key_added="other")
    with pytest.raises(MissingKeyError, match="nothing"):
        report.write_report(joint, tmp_path / "r.html", annotation="nothing")
    with pytest.raises(InputError, match="'markers' is list"):
        report.write_report(joint, tmp_path / "r.html", analyses={"markers": []})
    with pytest.raises(InputError, match="cannot be written"):
        report.write_report(joint, tmp_path / "no folder" / "r.html")


def repeated(adata, rows):
    """The spots of these rows, without the neighbor graph."""
    obs = adata.obs.iloc[rows].reset_index(drop=True)
    obs.index = obs.index.astype(str)
    return ad.AnnData(adata.X[rows], obs=obs, var=adata.var, uns=dict(adata.uns))


def test_5000_spots_take_less_than_5_mb(joint, tmp_path):
    rng = np.random.default_rng(0)
    adata = repeated(joint, rng.integers(0, joint.n_obs, 5000))
    adata.obs_names = ["".join(letters) for letters in rng.choice(list("ACGTacgt0123"), (5000, 36))]
    adata.obsm["spatial"] = rng.uniform(0, 1e4, (5000, 2))
    adata.obsm["X_umap"] = rng.normal(size=(5000, 2))
    path = report.write_report(adata, tmp_path / "r.html", annotation="region", summary={"scores": {}})
    assert path.stat().st_size < 1_000_000


@pytest.mark.slow
def test_a_million_cells_take_less_than_15_mb(joint, tmp_path):
    rng = np.random.default_rng(0)
    adata = repeated(joint, rng.integers(0, joint.n_obs, 1_000_000))
    adata.obs_names = [
        f"{one:016x}{other:016x}" for one, other in rng.integers(0, 2**62, (1_000_000, 2)).tolist()
    ]
    adata.obsm["spatial"] = rng.uniform(0, 1e5, (1_000_000, 2))
    adata.obsm["X_umap"] = rng.normal(size=(1_000_000, 2))
    path = report.write_report(adata, tmp_path / "r.html", annotation="region", summary={"scores": {}})
    assert path.stat().st_size < 15_000_000
    assert 199_990 <= Document(path).meta["n_drawn"] <= 200_000


def test_error_bars_are_inside_of_the_axes():
    y, error = np.array([669.66, 669.63, 670.0]), np.array([0.0, 0.04, 0.09])
    drawn = charts.chart([charts.Curve("a", np.arange(3.0), y, None, error)], title="t", description="d")
    lines = re.findall(
        r'<line x1="([^"]*)" x2="([^"]*)" y1="([^"]*)" y2="([^"]*)" class="(grid|line c0)"', drawn
    )
    grid = [float(line[2]) for line in lines if line[4] == "grid"]
    bars = [float(end) for line in lines if line[4] == "line c0" for end in line[2:4]]
    assert len(bars) == 6 and min(grid) <= min(bars) and max(bars) <= max(grid)


@pytest.mark.parametrize(
    ("ticks", "shown"),
    [
        ([1237.5, 1238.0, 1238.5], ["1237.5", "1238", "1238.5"]),
        ([0.1 * i for i in range(4)], ["0", "0.1", "0.2", "0.3"]),
        ([-2e6, 0.0, 2e6], ["−2,000,000", "0", "2,000,000"]),
        ([123_456.75, 123_457.0], ["123456.75", "123457"]),
        ([5.0], ["5"]),
        ([], []),
    ],
)
def test_ticks_are_told_apart(ticks, shown):
    assert charts._texts(ticks) == shown


def test_axes_end_at_ticks_or_at_the_data():
    text = charts.chart(
        [charts.Curve("a", np.array([1.0, 50.0]), np.array([0.13, 0.94]), np.array([True, False]))],
        title="T", description="D",
    )  # fmt: skip
    shown = re.findall(r">([−\d.]+)</text>", text)
    assert shown == ["0", "0.25", "0.5", "0.75", "1", "20", "40"]
    points = re.search(r'points="([\d.]+),([\d.]+) ([\d.]+),([\d.]+)"', text)
    x0, y0, x1, y1 = map(float, points.groups())
    assert (
        (x0, x1) == (46, 410)
        and y0 == pytest.approx(206 - 0.13 * 196, abs=0.06)
        and y1 == pytest.approx(206 - 0.94 * 196, abs=0.06)
    )


# ------------------------------------------------------------------------------------- functions in Node


@pytest.fixture(scope="module")
def node():
    """Run JavaScript with the functions of report.js in ``c`` and arguments in ``a``; returns its value."""
    program = shutil.which("node")
    if program is None:
        pytest.skip("Node.js is not installed")

    def run(code, *arguments):
        whole = (
            f"const c = require({json.dumps(str(ASSETS / 'report.js'))});"
            "const a = JSON.parse(require('fs').readFileSync(0));"
            f"(async () => {{ {code} }})().then((value) => console.log(JSON.stringify(value)));"
        )
        done = subprocess.run(
            [program, "-e", whole], input=json.dumps(arguments), capture_output=True, text=True, check=True
        )
        return json.loads(done.stdout)

    return run


def test_the_script_decodes_what_python_encodes(node, document):
    decoded = node(
        "const found = await c.decode(...a);"
        "return Object.fromEntries(Object.entries(found).map(([name, values]) => [name, [...values]]))",
        document.by_id("arrays")["text"], document.meta["fields"],
    )  # fmt: skip
    for name, values in document.arrays().items():
        assert decoded[name] == list(values)


def test_discs_cover_their_area(node):
    radius, width = 4.3, 40
    pixels = node(
        "const px = new Int32Array(1600).fill(c.packed([255, 255, 255]));"
        "const paint = [c.packed([0, 0, 0]), 0];"
        "c.rasterize(px, 40, 40, [5.2, 99], [7.6, 99], [0, 1], paint, { x: 5, y: 7, scale: 2 }, a[0]);"
        "return [...px]", radius,
    )  # fmt: skip
    share = 1 - (np.array(pixels).reshape(width, width) & 255) / 255
    assert share.sum() == pytest.approx(np.pi * radius**2, rel=0.02)
    rows, columns = np.indices(share.shape) + 0.5
    center = (share * columns).sum() / share.sum(), (share * rows).sum() / share.sum()
    assert center == pytest.approx((20.4, 21.2), abs=0.15)  # rounded to quarters of a pixel
    assert share[np.hypot(columns - 20.4, rows - 21.2) < radius - 0.8].min() == 1


def test_discs_at_the_edge_stay_inside_and_the_last_is_on_top(node):
    pixels = node(
        "const px = new Int32Array(24).fill(-1); const [red, blue] = [c.packed([255, 0, 0]), c.packed([0, 0, 255])];"
        "c.rasterize(px, 6, 4, [0, 0.2, -9], [0, 0.2, 0], [0, 1, 2], [red, blue, red], { x: 3, y: 2, scale: 1 }, 2);"
        "return [[...px], red, blue]",
    )  # fmt: skip
    image, red, blue = np.array(pixels[0]).reshape(4, 6), pixels[1], pixels[2]
    assert image[0, 0] == blue and image[3, 5] == -1 and red not in image


@pytest.mark.parametrize("radius", [0.4, 3.0])
def test_transparent_discs_let_the_image_through(node, radius):
    pixels = node(
        "const px = new Int32Array(81).fill(c.packed([250, 200, 100]));"
        "c.rasterize(px, 9, 9, [4.5], [4.5], [0], [c.packed([50, 0, 200])], { x: 4.5, y: 4.5, scale: 1 }, ...a);"
        "return [px[4 * 9 + 4], px[0]].map((one) => [one & 255, (one >> 8) & 255, (one >> 16) & 255])", radius, 0.25,
    )  # fmt: skip
    assert pixels == [[200, 150, 125], [250, 200, 100]]


@pytest.mark.parametrize(
    ("scale", "length", "label"),
    [(1, 100, "100 µm"), (0.031, 5000, "5 mm"), (0.1, 1000, "1 mm"), (0.15, 1000, "1 mm"), (0.8, 200, "200 µm"),
     (30, 5, "5 µm"), (900, 0.1, "100 nm")],
)  # fmt: skip
def test_the_scale_bar_has_a_round_length(node, scale, length, label):
    bar = node("return c.scaleBar(...a)", scale, 160)
    assert bar["length"] == pytest.approx(length) and bar["label"] == label
    assert bar["pixels"] == pytest.approx(length * scale) and 64 * 0.99 <= bar["pixels"] <= 160.001


def test_mixing_colors(node):
    rng = np.random.default_rng(0)
    colors = rng.integers(0, 256, (200, 2, 3))
    shares = rng.integers(1, 257, 200)
    mixed = node(
        "return a[0].map(([one, other], i) => c.mixed(c.packed(one), c.packed(other), a[1][i]))",
        colors.tolist(), shares.tolist(),
    )  # fmt: skip
    found = np.array(mixed)[:, None] >> np.array([0, 8, 16]) & 255
    expected = (colors[:, 0] * shares[:, None] + colors[:, 1] * (256 - shares[:, None])) / 256
    assert np.abs(found - expected).max() <= 1
    assert (np.array(mixed) >> 24 & 255 == 255).all()


def test_the_nearest_spot_is_that_of_a_search_tree(node):
    rng = np.random.default_rng(0)
    points, queries = rng.normal(size=(500, 2)), rng.normal(size=(100, 2)) * 1.5
    found = node(
        "const grid = new c.Grid(Float32Array.from(a[0]), Float32Array.from(a[1]));"
        "const odd = (i) => i % 2;"
        "return a[2].map(([x, y]) => [[Infinity], [0.1], [Infinity, odd]].map((rest) => grid.nearest(x, y, ...rest)))",
        *points.T.tolist(), queries.tolist(),
    )  # fmt: skip
    distance, nearest = cKDTree(points).query(queries)
    odd = 2 * cKDTree(points[1::2]).query(queries)[1] + 1
    np.testing.assert_array_equal(np.array(found)[:, 0], nearest)
    np.testing.assert_array_equal(np.array(found)[:, 1], np.where(distance <= 0.1, nearest, -1))
    np.testing.assert_array_equal(np.array(found)[:, 2], odd)


@pytest.mark.parametrize("points", [[[1, 1]], [[1, 1]] * 4, [[0, 0], [0, 5], [0, 9]]])
def test_the_grid_of_few_or_equal_spots(node, points):
    xs, ys = np.array(points).T.tolist()
    assert node("return new c.Grid(a[0], a[1]).nearest(0, 1.2, 100)", xs, ys) in range(len(points))


def test_a_lasso_selects_what_matplotlib_selects(node):
    from matplotlib.path import Path as Polygon

    rng = np.random.default_rng(0)
    angles = np.sort(rng.uniform(0, 2 * np.pi, 40))
    polygon = np.c_[np.cos(angles), np.sin(angles)] * rng.uniform(0.3, 1, (40, 1))  # not convex
    points = rng.uniform(-1, 1, (2000, 2))
    found = node(
        "return a[0].map(([x, y]) => c.inPolygon(x, y, a[1], a[2]))", points.tolist(), *polygon.T.tolist()
    )
    np.testing.assert_array_equal(found, Polygon(polygon).contains_points(points))


def test_csv_is_read_by_python(node):
    rows = [["spot", 'a"b', "c,d"], ["e\nf", "", "γ"], ["=1+1", " x ", "\r"]]
    text = node("return c.csv(a[0])", rows)
    assert list(csv.reader(text.splitlines(keepends=True))) == rows
    assert node("return [c.coordinate(100, 0.25, 3), c.coordinate(0, 3e-5, 1), c.coordinate(5, 12, 2)]") == [
        "100.8",
        "0.00003",
        "29",
    ]


def test_order_and_colors(node):
    order = node("return [...c.shuffled(1000)]")
    assert sorted(order) == list(range(1000)) and np.corrcoef(order, range(1000))[0, 1] < 0.1
    assert node("return c.ramp(['#000000', '#ffffff', '#ff0000'], 5).map(c.hexOf)") == [
        "#000000", "#808080", "#ffffff", "#ff8080", "#ff0000"
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------- in Chromium


@pytest.fixture(scope="module")
def downloads(tmp_path_factory):
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def browser(downloads):
    if not all(installed()):
        pytest.skip("Chromium and chromedriver are not installed (Debian: chromium, chromium-driver)")
    browser = Browser(downloads)
    yield browser
    browser.close()


@pytest.fixture
def opened(browser, page):
    browser.open(page)
    return browser


def test_it_loads_from_disk_without_errors_or_requests(browser, page):
    browser.log("performance")
    for options in ({}, {"dark": True}, {"width": 390, "height": 844, "mobile": True}):
        browser.open(page, **options)
        assert browser.log("browser") == []
        # Nothing is wider than the window
        assert browser.run("return document.documentElement.scrollWidth <= window.innerWidth")
    messages = [json.loads(entry["message"])["message"] for entry in browser.log("performance")]
    asked = {
        one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent"
    }
    assert {url for url in asked if not url.startswith("data:")} == {page.as_uri()}


def test_the_policy_blocks_requests(opened):
    opened.run("fetch('http://127.0.0.1:9/x').catch(() => {}); new Image().src = 'http://127.0.0.1:9/y'")
    blocked = 0
    for _ in range(100):
        blocked += sum("Content Security Policy" in entry["message"] for entry in opened.log("browser"))
        if blocked >= 2:
            break
        time.sleep(0.05)
    assert blocked >= 2


def test_spots_have_the_color_of_their_domain(opened, joint):
    domains = joint.obs["amilst_domain"]
    colors = dict(zip(domains.cat.categories, joint.uns["amilst_domain_colors"], strict=True))
    for spot in (0, 100, 300, 519):
        assert opened.color(spot) == colors[domains.iloc[spot]].lower()


def test_hover_shows_the_spot_in_both_plots(opened, joint):
    opened.mouse(("move", *opened.place(137)))
    name, *lines = opened.until("tooltip()").splitlines()
    row = joint.obs.iloc[137]
    assert name == joint.obs_names[137]
    facts = dict(zip(lines[::2], lines[1::2], strict=True))
    assert facts["domain"] == row["amilst_domain"] and facts["section"] == row["section"]
    assert facts["annotation"] == row["region"]
    assert float(facts["confidence"]) == pytest.approx(row["amilst_confidence"], abs=0.0071)
    assert set(facts["top genes"].split(", ")) <= set(joint.var_names)
    ring = (
        "const plot = report.plots[arguments[0]]; const [x, y] = onScreen(137, arguments[0]);"
        "return pixel(plot.marks, x + Math.max(plot.radius + 2, 5), y)[3]"
    )
    assert opened.run(ring, 0) > 100 and opened.run(ring, 1) > 100
    opened.mouse(("move", 5, 5))
    opened.until("$('tooltip').hidden")
    assert opened.run(ring, 0) == 0


def test_the_legend_isolates_a_domain(opened, joint):
    domains = joint.obs["amilst_domain"]
    inside = int(np.flatnonzero(domains == "2")[0])
    outside = int(np.flatnonzero(domains == "3")[0])
    before = opened.color(outside)
    opened.run("all('#legend button')[1].click()")
    assert opened.run("return all('#legend button').map((one) => one.ariaPressed)")[:3] == [
        "false",
        "true",
        "false",
    ]
    assert (
        opened.color(outside) == FADED != opened.color(inside) == joint.uns["amilst_domain_colors"][1].lower()
    )
    opened.until("$('announcement').textContent === 'Domains: only 2'")
    # A faded spot is not pointed to, nor selected
    opened.run("report.select(() => true)")
    assert opened.run("return report.rows().length") == (domains == "2").sum() + 1
    opened.run(
        "report.clear(); all('#legend button')[2].dispatchEvent(new MouseEvent('click', { shiftKey: true }))"
    )
    assert opened.color(outside) == before
    opened.click("show-all")
    assert opened.run("return all('#legend [aria-pressed=true]').length") == 0


def test_switching_what_is_colored(opened, joint):
    names = opened.run("return all('#view option').map((option) => option.text)")
    assert names[:5] == ["Domains", "Refined domains", "Annotation: region", "Sections", "Confidence"]
    assert len(names) > 8 and all(name.startswith("gene") for name in names[5:])
    opened.run("choose('view', 2)")
    entries = opened.run("return all('#legend button').map((one) => one.innerText)")
    assert entries[-1].split() == ["none", "7"] and len(entries) == 4
    assert opened.color(0) == "#d9d9d9"
    opened.run("choose('view', 3)")
    assert opened.color(0) != opened.color(300)
    opened.run("choose('view', 4)")
    assert opened.run("return !$('scale').hidden && $('legend').hidden")
    confidence = joint.obs["amilst_confidence"].to_numpy()
    dark, light = (opened.color(int(spot)) for spot in (confidence.argmin(), confidence.argmax()))
    assert int(dark[1:3], 16) < int(light[1:3], 16) - 40
    opened.run("choose('view', 5)")
    name = opened.run("return report.view.name")
    counts = np.asarray(joint[:, name].X.todense()).ravel()
    high, low = int(counts.argmax()), int(counts.argmin())
    assert opened.color(high) != opened.color(low) == "#d9dde2"
    opened.mouse(("move", *opened.place(high)))
    assert name in opened.until("tooltip()").splitlines()


def test_zoom_and_pan_keep_the_spot_under_the_pointer(opened):
    before = opened.run("return report.plots[0].camera")
    x, y = opened.place(50)
    opened.mouse(("move", x, y), ("wheel", x, y, -300))
    assert opened.run("return report.plots[0].camera") == before  # without the focus, the page scrolls
    x, y = opened.place(50)
    opened.mouse(("move", x, y), ("down",), ("up",), ("wheel", x, y, -300))
    opened.until("report.plots[0].camera.scale > arguments[0]", 1.5 * before["scale"])
    assert opened.place(50) == pytest.approx((x, y), abs=2)
    opened.mouse(("move", x, y), ("down",), ("move", x + 40, y - 25), ("up",))
    assert opened.place(50) == pytest.approx((x + 40, y - 25), abs=2)
    opened.click("fit")
    assert opened.run("return report.plots[0].camera")["scale"] == pytest.approx(before["scale"], rel=1e-6)


def test_one_section_fills_the_map(opened):
    opened.run("choose('section', 1)")
    seen = opened.run(
        "const { width, height } = report.plots[0].spots; const found = [0, 0];"
        "for (let i = 0; i < report.n; i++) { const [x, y] = onScreen(i);"
        "if (x > 0 && y > 0 && x < width && y < height) found[report.arrays.section[i]]++; }"
        "return found"
    )
    assert seen[1] == 260 and seen[0] < 200


def test_a_lasso_is_downloaded_as_csv(opened, joint, downloads):
    opened.click("lasso")
    # Around spot 400: a square of 120 pixels, drawn by hand
    x, y = opened.place(400)
    corners = [(x - 60, y - 60), (x + 60, y - 60), (x + 60, y + 60), (x - 60, y + 60)]
    opened.mouse(("move", *corners[0]), ("down",), *(("move", *corner) for corner in corners[1:]), ("up",))
    places = np.array(opened.run("return Array.from({ length: report.n }, (_, i) => inWindow(i))"))
    expected = np.flatnonzero((np.abs(places - [x, y]) < 60).all(axis=1))
    assert 400 in expected and 3 < len(expected) < 500
    assert opened.run("return $('selected').textContent") == f"{len(expected)} spots selected"
    opened.click("download")
    path = downloads / "selected_spots.csv"
    for _ in range(200):
        if path.exists():
            break
        time.sleep(0.05)
    table = pd.read_csv(path, dtype={"domain": str, "refined_domain": str})
    rows = joint.obs.iloc[expected]
    assert list(table["spot"]) == list(rows.index)
    assert list(table["domain"]) == list(rows["amilst_domain"])
    assert list(table["refined_domain"]) == list(rows["amilst_domain_refined"])
    assert list(table["section"]) == list(rows["section"])
    assert list(table["annotation"].fillna("none")) == list(rows["region"].astype(object).fillna("none"))
    # Two digits of a multiple of 1/254
    np.testing.assert_allclose(table["confidence"], rows["amilst_confidence"], atol=0.0071)
    np.testing.assert_allclose(table[["x", "y"]], joint.obsm["spatial"][expected], atol=0.2)
    outside = next(i for i in range(joint.n_obs) if i not in expected)
    assert opened.color(outside) == FADED
    opened.click("clear")
    assert opened.color(outside) != FADED


def test_the_keyboard_reaches_everything(opened, joint):
    opened.run("$('tissue').focus()")
    before = opened.run("return report.plots[0].camera")
    opened.press("+", "\ue014", "\ue015")  # right, down
    after = opened.run("return report.plots[0].camera")
    assert after["scale"] == pytest.approx(1.4 * before["scale"])
    assert after["x"] > before["x"] and after["y"] > before["y"]
    spoken = opened.until("$('announcement').textContent")
    assert spoken.split(", ")[0] in joint.obs_names and ", domain " in spoken
    opened.press("0")
    opened.click("select-view")
    assert opened.run("return report.rows().length") == joint.n_obs + 1
    opened.run("$('tissue').focus()")
    opened.press("\ue00c")  # escape
    assert opened.run("return $('selection').hidden")
    order = opened.run(
        "const reached = all('#map button, #map select, #map .marks').filter((one) => one.checkVisibility());"
        "return reached.map((one) => one.tabIndex)"
    )
    assert len(order) > 10 and set(order) == {0}


def test_paper_shows_the_drawing_in_light_colors_and_opens_details(browser, page):
    browser.open(page, dark=True)
    closed = browser.run("return closed()")
    browser.run("window.dispatchEvent(new Event('beforeprint'))")
    assert browser.run("return closed()") == 0
    assert (
        browser.run("return all('.paper').map((one) => one.src.slice(0, 22))")
        == ["data:image/png;base64,"] * 2
    )
    assert browser.run("return pixel(report.plots[0].spots, 0, 0)") == [255] * 4
    browser.run("window.dispatchEvent(new Event('afterprint'))")
    assert browser.run("return closed()") == closed > 0
    assert (
        browser.run("return hexOf(pixel(report.plots[0].spots, 0, 0).slice(0, 3))")
        == themes()["dark"]["stage"]
    )


@pytest.fixture(scope="module")
def page_with_image(joint, tmp_path_factory):
    """One section over a green image, in µm."""
    adata = joint[:260].copy()
    size = np.ceil(np.ptp(adata.obsm["spatial"], axis=0) / 10).astype(int) + 40
    adata.obsm["spatial"] = adata.obsm["spatial"] - adata.obsm["spatial"].min(axis=0) + 200
    image = np.tile(np.array([20, 200, 40], dtype=np.uint8), (size[1], size[0], 1))
    factors = {"tissue_hires_scalef": 0.1, "spot_diameter_fullres": 55.0}
    adata.uns["spatial"] = {"slide": {"images": {"hires": image}, "scalefactors": factors}}
    adata.uns["amilst_input"] = {"micrometers_per_unit": 1.0}
    return report.write_report(adata, tmp_path_factory.mktemp("image") / "report.html")


@pytest.mark.parametrize("dark", [False, True])
def test_spots_are_drawn_over_the_image(browser, page_with_image, joint, dark):
    browser.open(page_with_image, dark=dark)
    assert browser.log("browser") == []
    own = joint.uns["amilst_domain_colors"][joint.obs["amilst_domain"].cat.codes.iloc[100]]
    channels = np.array([[int(color[i : i + 2], 16) for i in (1, 3, 5)] for color in (own, "#14c828")])

    def shown():
        browser.run("report.plots[0].draw()")
        beside = browser.run(
            "const plot = report.plots[0]; const [x0, y0] = plot.screen(...report.meta.images[0].box);"
            "return pixel(plot.spots, x0 + 3, y0 + 3).slice(0, 3)"
        )
        return np.array([int(browser.color(100)[i : i + 2], 16) for i in (1, 3, 5)]), beside

    at_spot, beside = shown()
    np.testing.assert_allclose(beside, channels[1], atol=6)  # JPEG
    np.testing.assert_allclose(at_spot, 0.7 * channels[0] + 0.3 * channels[1], atol=6)
    browser.run("$('opacity').value = 100; $('opacity').dispatchEvent(new Event('input'))")
    np.testing.assert_allclose(shown()[0], channels[0], atol=1)
    browser.run("$('opacity').value = 0; $('opacity').dispatchEvent(new Event('input'))")
    np.testing.assert_allclose(shown()[0], channels[1], atol=6)
    browser.click("image")
    at_spot, beside = shown()
    np.testing.assert_allclose(at_spot, channels[0], atol=1)
    assert hex_of(beside) == themes()["dark" if dark else "light"]["stage"]
    assert browser.run("return $('opacity').disabled")


def hex_of(color):
    return "#" + "".join(f"{part:02x}" for part in color)


def test_isolated_spots_leave_the_tissue_visible(browser, page_with_image, joint):
    browser.open(page_with_image)
    domains = joint.obs["amilst_domain"].iloc[:260]
    outside = int(np.flatnonzero(domains == "3")[0])
    browser.run("all('#legend button')[0].click()")
    color = browser.color(outside)
    np.testing.assert_allclose([int(color[i : i + 2], 16) for i in (1, 3, 5)], [20, 200, 40], atol=6)


def test_the_scale_bar_follows_the_zoom(browser, page, page_with_image):
    """Its length on the canvas of the marks is that of its label."""
    browser.open(page_with_image)
    measure = """
        const plot = report.plots[0];
        plot.mark();
        const [x, y] = [12 * plot.ratio, plot.marks.height - 13 * plot.ratio];
        const inked = (at) => {
          const [r, g, b, a] = pixel(plot.marks, at, y);
          return a > 250 && r + g + b < 200;
        };
        let length = 0;
        while (inked(x + length)) length++;
        const most = Math.min(160 * plot.ratio, plot.marks.width / 3);
        return [length, scaleBar(plot.camera.scale, most), plot.camera.scale];
    """
    before = browser.run(measure)
    browser.run("report.plots[0].zoom(4)")
    after = browser.run(measure)
    for length, bar, scale in (before, after):
        assert length == pytest.approx(bar["length"] * scale, abs=1.5)
    assert after[1]["length"] < before[1]["length"]
    browser.open(page)  # without a known unit there is none
    assert (
        browser.run("const { marks } = report.plots[0]; return pixel(marks, 12, marks.height - 13)[3]") == 0
    )


def test_text_from_data_stays_text_in_the_browser(browser, joint, tmp_path):
    hostile = joint.copy()
    hostile.var_names = [f"{HOSTILE}{i}" for i in range(hostile.n_vars)]
    hostile.obs_names = [f"{HOSTILE}{i}" for i in range(hostile.n_obs)]
    hostile.obs["region"] = hostile.obs["region"].cat.rename_categories(lambda name: name + HOSTILE)
    browser.open(report.write_report(hostile, tmp_path / "r.html", annotation="region"))
    assert browser.log("browser") == []
    browser.run("choose('view', 2)")
    browser.mouse(("move", *browser.place(20)))
    assert browser.until("tooltip()").startswith(f"{HOSTILE}20")
    assert browser.run("return document.images.length + document.scripts.length") == 3
    assert HOSTILE in browser.run("return $('legend').innerText")


def test_a_tap_shows_the_spot(browser, page, joint):
    browser.open(page, width=390, height=844, mobile=True)
    x, y = browser.place(300)
    move = {"type": "pointerMove", "x": x, "y": y, "duration": 0}
    actions = [move, {"type": "pointerDown", "button": 0}, {"type": "pointerUp", "button": 0}]
    finger = {"type": "pointer", "id": "finger", "parameters": {"pointerType": "touch"}, "actions": actions}
    browser.send("/actions", {"actions": [finger]})
    shown = browser.until("tooltip()").splitlines()[0]
    assert browser.run("return tooltip()").splitlines()[0] == shown  # it stays
    places = np.array(browser.run("return Array.from({ length: report.n }, (_, i) => inWindow(i))"))
    assert shown == joint.obs_names[np.hypot(*(places - [x, y]).T).argmin()]


def test_while_moving_the_last_drawing_is_shown(opened):
    """Of many spots; when the map has come to rest, it is drawn anew."""
    opened.run("report.plots[0].budget = 0; report.plots[0].drawSpots()")
    before, during = opened.run(
        "const plot = report.plots[0]; const spots = [50, 150, 250]; const before = spots.map((i) => color(i));"
        "plot.zoom(1.5); plot.shift(7, -11); plot.shiftStill(); return [before, spots.map((i) => color(i))]"
    )
    assert before == during
    opened.until("!report.plots[0].moving && !report.plots[0].waiting")
    assert [opened.color(spot) for spot in (50, 150, 250)] == before


def test_one_finger_scrolls_the_page_unless_the_map_is_zoomed(browser, page):
    browser.open(page, width=390, height=844, mobile=True)
    style = "return report.plots[0].marks.style.touchAction"
    assert browser.run(style) == "pan-y"  # the page can be scrolled past the map
    browser.click("lasso")
    assert browser.run(style) == "none"
    browser.click("pan")
    browser.click("zoom-in")
    assert browser.run(style) == "none"
    browser.click("fit")
    assert browser.run(style) == "pan-y"
