import itertools
import os
import re
import subprocess
import sys
import textwrap
from xml.etree import ElementTree

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from amilst_lite import plot
from amilst_lite.cluster.shrinkage import Evidence
from amilst_lite.errors import AmilstWarning, InputError, MissingExtraError, MissingKeyError
from amilst_lite.estimator import AMILST
from amilst_lite.metrics import adjusted_rand_index
from amilst_lite.simulate import simulate_tissue

matplotlib = pytest.importorskip("matplotlib")

from matplotlib.collections import EllipseCollection  # noqa: E402
from matplotlib.colors import to_hex  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.image import imread, imsave  # noqa: E402
from scipy.spatial.distance import cdist  # noqa: E402

from amilst_lite.plot.colors import quiet_palette  # noqa: E402
from amilst_lite.plot.panels import letter as panel_letter  # noqa: E402


@pytest.fixture(scope="module")
def tissue():
    return simulate_tissue(300, 30, 4, seed=1)


@pytest.fixture
def adata(tissue):
    """A section after a run: domains "1".."4" with errors, refined domains, an incomplete annotation."""
    rng = np.random.default_rng(0)
    found = np.where(rng.random(300) < 0.1, rng.integers(0, 4, 300), tissue.domains) + 1
    annotation = tissue.annotation.astype(object)
    annotation[:20] = None
    obs = pd.DataFrame(
        {
            "amilst_domain": pd.Categorical(found.astype(str)),
            "amilst_domain_refined": pd.Categorical((tissue.domains + 1).astype(str)),
            "amilst_confidence": rng.uniform(0.4, 1, 300),
            "layer": pd.Categorical(annotation),
        },
        index=tissue.spot_names,
    )
    return ad.AnnData(tissue.counts, obs=obs, obsm={"spatial": tissue.coordinates.copy()})


def _titles(figure):
    return [axis.get_title(loc="left") for axis in figure.axes if axis.get_title(loc="left")]


def _panel(figure, title):
    return next(axis for axis in figure.axes if axis.get_title(loc="left").startswith(title))


def _discs(axis):
    return next(item for item in axis.collections if isinstance(item, EllipseCollection))


def _spot_colors(axis):
    return np.array([to_hex(color).upper() for color in _discs(axis).get_facecolors()])


def _legend(axis):
    """Label → color."""
    legend = axis.get_legend()
    return {
        text.get_text().rsplit("  (", 1)[0]: to_hex(handle.get_markerfacecolor()).upper()
        for text, handle in zip(legend.get_texts(), legend.legend_handles, strict=True)
    }


def _legends(figure):
    """Title of a legend → its labels and colors."""
    return {
        axis.get_legend().get_title().get_text(): _legend(axis) for axis in figure.axes if axis.get_legend()
    }


def _pixels(figure, path, dpi=60):
    plot.save(figure, path, dpi=dpi)
    return imread(path)


# ---------------------------------------------------------------------------------- domains on the section


def test_panels_titles_and_scores(adata):
    figure = plot.domains(
        adata, refined="amilst_domain_refined", annotation="layer", confidence="amilst_confidence", title="S1"
    )
    assert isinstance(figure, Figure)
    score = adjusted_rand_index(adata.obs["layer"], adata.obs["amilst_domain"])
    assert _titles(figure) == [
        "Annotation", f"Domains  ·  ARI {score:.2f}", "Refined domains  ·  ARI 1.00", "Confidence",
    ]  # fmt: skip
    assert figure.get_suptitle() == "S1"
    assert _titles(plot.domains(adata)) == ["Domains"]


def test_spots_have_their_positions_and_the_colors_of_their_domains(adata):
    figure = plot.domains(adata)
    axis = _panel(figure, "Domains")
    np.testing.assert_allclose(_discs(axis).get_offsets(), adata.obsm["spatial"])
    expected = np.array(plot.palette(4))[adata.obs["amilst_domain"].astype(int) - 1]
    np.testing.assert_array_equal(_spot_colors(axis), expected)
    assert _legends(figure) == {"Domains": dict(zip("1234", plot.palette(4), strict=True))}
    texts = figure.axes[-1].get_legend().get_texts()
    sizes = [int(text.get_text().split("(")[1][:-1]) for text in texts]
    assert sizes == list(adata.obs["amilst_domain"].value_counts(sort=False))


def test_y_points_downwards_and_both_axes_have_one_scale(adata):
    axis = _panel(plot.domains(adata), "Domains")
    bottom, top = axis.get_ylim()
    assert bottom > top and axis.get_xlim()[0] < axis.get_xlim()[1]
    assert axis.get_aspect() == 1
    low, high = adata.obsm["spatial"].min(axis=0), adata.obsm["spatial"].max(axis=0)
    assert axis.get_xlim()[0] < low[0] and axis.get_xlim()[1] > high[0]
    assert top < low[1] and bottom > high[1]


def test_rendered_pixels_have_the_colors_of_the_spots(tmp_path):
    """Four large spots at the corners of a square, located in the pixels of the PNG file."""
    corners = np.array([[0.0, 0], [10, 0], [0, 10], [10, 10]])
    figure = plot.draw_domains(corners, ["1", "2", "3", "4"], spot_diameter=9.0)
    pixels = _pixels(figure, tmp_path / "corners.png")[..., :3]
    center = {}
    for name, color in zip("1234", plot.palette(4), strict=True):
        wanted = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        rows, columns = np.nonzero((np.abs(pixels - wanted) < 0.02).all(axis=-1))
        keep = columns < 0.7 * pixels.shape[1]  # the legend is to the right
        center[name] = np.array([columns[keep].mean(), rows[keep].mean()])
    across, down = center["2"] - center["1"], center["3"] - center["1"]
    assert across[0] > 50 and abs(across[1]) < 3
    assert down[1] == pytest.approx(across[0], rel=0.05) and abs(down[0]) < 3  # y downwards, equal scale
    np.testing.assert_allclose(center["4"], center["1"] + across + down, atol=3)


def test_annotated_regions_have_the_colors_of_the_domains_they_overlap(adata):
    figure = plot.domains(adata, annotation="layer")
    colors = _legends(figure)["Annotation"]
    domains = _legends(figure)["Domains"]
    assert {f"layer {k}": domains[str(k)] for k in range(1, 5)}.items() <= colors.items()
    assert colors["none"] == "#D9D9D9"
    assert (_spot_colors(_panel(figure, "Annotation"))[:20] == "#D9D9D9").all()


def test_regions_without_a_domain_have_distinct_colors():
    coordinates = np.random.default_rng(0).uniform(size=(60, 2))
    regions = np.repeat(list("abcdef"), 10)
    domains = np.repeat([0, 1], 30)
    colors = _legends(plot.draw_domains(coordinates, domains, annotation=regions))["Annotation"]
    assert len(set(colors.values())) == 6
    spare = [np.hypot(*_lab(color)[1:]) for color in set(colors.values()) - set(plot.palette(2))]
    assert len(spare) == 4 and max(spare) < 25  # grayish: the chroma of the colors of domains is 40 and more
    # one-to-one: the color of each domain is used for one of the regions it covers
    assert next(name for name, color in colors.items() if color == plot.palette(2)[0]) in "abc"
    assert next(name for name, color in colors.items() if color == plot.palette(2)[1]) in "def"


def test_color_of_a_domain_does_not_depend_on_other_domains(adata):
    part = adata[adata.obs["amilst_domain"] != "1"].copy()
    part.obs["amilst_domain"] = part.obs["amilst_domain"].astype(str)  # removes the category as well
    whole, less = (_legends(plot.domains(a))["Domains"] for a in (adata, part))
    assert less == {name: color for name, color in whole.items() if name != "1"}
    # integers, as estimators return them, count from zero
    codes = adata.obs["amilst_domain"].astype(int).to_numpy() - 1
    drawn = plot.draw_domains(adata.obsm["spatial"][codes > 0], codes[codes > 0])
    assert _legends(drawn)["Domains"] == dict(zip("123", plot.palette(4)[1:], strict=True))


def test_colors_option(adata):
    colors = _legends(plot.domains(adata, colors={"2": "red"}))["Domains"]
    assert colors["2"] == "#FF0000" and colors["1"] == plot.palette(1)[0]
    with pytest.raises(InputError, match="colors"):
        plot.domains(adata, colors={"2": "no such color"})


def test_confidence_panel(adata):
    axis = _panel(plot.domains(adata, confidence="amilst_confidence"), "Confidence")
    np.testing.assert_array_equal(_discs(axis).get_array(), adata.obs["amilst_confidence"])
    low, high = _discs(axis).get_clim()
    assert low == pytest.approx(0.4) and high == 1


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["10", "2", "1", ""], ["1", "2", "10", "none"]),
        (["domain 10", "domain 9", None, "domain 9"], ["domain 9", "domain 10", "none"]),
        ([2.0, 1.0, np.nan, 1.0], ["1", "2", "none"]),
        (pd.Categorical(["b", "a", "b", "a"], categories=["b", "unused", "a"]), ["b", "a"]),
    ],
)
def test_order_of_legend_entries(labels, expected):
    figure = plot.draw_domains(np.arange(8.0).reshape(4, 2), labels)
    assert list(_legends(figure)["Domains"]) == expected


def test_three_coordinates_few_spots_and_duplicate_positions():
    for coordinates in (
        np.zeros((1, 2)),
        np.zeros((9, 3)),
        np.arange(6.0).reshape(2, 3),
        np.eye(2)[[0] * 8 + [1]],
    ):
        figure = plot.draw_domains(coordinates, np.arange(len(coordinates)))
        np.testing.assert_allclose(_discs(figure.axes[0]).get_offsets(), coordinates[:, :2])
        assert np.isfinite(_diameter(figure)) and _diameter(figure) > 0


# ------------------------------------------------------------------------------------------- literal text

NAMES = [
    (r"$\frac{0}$", r"$\frac{0}$"),
    (r"a \$5 $b$", r"a \$5 $b$"),
    ("_hidden", "_hidden"),
    ("two\nlines", r"two\nlines"),
    ("two\u2028lines", r"two\u2028lines"),
    ("tab\tx", r"tab\tx"),
    ("null\0", r"null\x00"),
    ("surrogate\udc80", r"surrogate\udc80"),
    ("Großhirn β-Zelle кора", "Großhirn β-Zelle кора"),
    ("<b> & -- </b>", "<b> & -- </b>"),
    ("x" * 5000, "x" * 40 + "…" + "x" * 19),
    ("7" * 5000, "7" * 40 + "…" + "7" * 19),
]
NAME_IDS = [name[:20] for name, _ in NAMES]


def _texts(figure):
    """Every text with content: titles, labels and legends."""
    return [text for text in figure.findobj(matplotlib.text.Text) if text.get_text()]


def _check_literal(figure, tmp_path, expected):
    drawn = [text for text in _texts(figure) if expected in text.get_text()]
    assert drawn
    assert not any(text.get_parse_math() or text.get_usetex() for text in drawn)
    height, width, _ = _pixels(figure, tmp_path / "figure.png").shape
    assert height < 1000 and width < 1000
    plot.save(figure, tmp_path / "figure.svg")
    ElementTree.parse(tmp_path / "figure.svg")  # well-formed


@pytest.mark.parametrize(
    ("column", "name", "expected"),
    [("labels", *one) for one in NAMES]
    + [(c, *one) for c in ("refined", "annotation") for one in NAMES[::4]],
)
def test_labels_are_drawn_literally(column, name, expected, tmp_path):
    columns = {"labels": ["1", "1", "2", "2"], column: ["other", name, "other", name]}
    figure = plot.draw_domains(np.arange(8.0).reshape(4, 2), **columns)
    title = {"labels": "Domains", "refined": "Refined domains", "annotation": "Annotation"}[column]
    assert set(_legends(figure)[title]) == {"other", expected}
    _check_literal(figure, tmp_path, expected)


@pytest.mark.parametrize(("name", "expected"), NAMES[:10], ids=NAME_IDS[:10])
def test_titles_are_drawn_literally(name, expected, tmp_path):
    coordinates, labels = np.arange(8.0).reshape(4, 2), ["1", "1", "2", "2"]
    figure = plot.draw_domains(coordinates, labels, title=f"Section {name}")
    expected = expected.replace(r"two\nlines", "two\nlines").replace(r"two\u2028lines", "two\nlines")
    _check_literal(figure, tmp_path, f"Section {expected}")  # a title may have several lines
    history = plot.losses({name: [2.0, 1.0]})
    assert len(_titles(history)) == 1
    _check_literal(history, tmp_path, _titles(history)[0])


def test_a_very_long_title_fits(tmp_path):
    figure = plot.draw_domains(np.arange(8.0).reshape(4, 2), [0, 0, 1, 1], title="x" * 5000)
    _check_literal(figure, tmp_path, "x" * 100 + "…")


def test_underscores_and_dollars_in_a_umap_legend(monkeypatch, tmp_path):
    reducer = type("UMAP", (), {"__init__": lambda self, **_: None, "fit_transform": lambda self, x: x})
    monkeypatch.setitem(sys.modules, "umap", type(sys)("umap"))
    sys.modules["umap"].UMAP = reducer
    names = ["_hidden", r"$\frac{0}$"]
    figure = plot.umap(np.random.default_rng(0).normal(size=(40, 2)), np.repeat(names, 20))
    assert set(_legend(figure.axes[0])) == set(names)
    _check_literal(figure, tmp_path, r"$\frac{0}$")


def test_labels_are_drawn_literally_with_usetex_in_rcparams():
    with matplotlib.rc_context({"text.usetex": True}):
        figure = plot.draw_domains(np.arange(8.0).reshape(4, 2), ["a_b", "a_b", "$", "$"], title="50 %")
        texts = [text for text in _texts(figure) if re.search(r"a_b|\$|50 %|Domains", text.get_text())]
    assert len(texts) == 5 and not any(text.get_usetex() for text in texts)


# ------------------------------------------------------------------------------------------ stored colors


def test_stored_colors_are_used(adata):
    adata.uns["amilst_domain_colors"] = np.array(["red", "#00FF00", "#0000ff80", "0.5"], dtype=object)
    adata.uns["layer_colors"] = ["#111111", "#222222", "#333333", "#444444"]
    figure = plot.domains(
        adata, refined="amilst_domain_refined", annotation="layer", colors={"1": "#ABCDEF", 9: "red"}
    )
    expected = {"1": "#ABCDEF", "2": "#00FF00", "3": "#0000FF", "4": "#808080"}
    assert _legends(figure)["Domains"] == expected
    assert "Refined domains" not in _legends(figure)  # no stored colors of their own
    np.testing.assert_array_equal(
        _spot_colors(_panel(figure, "Refined")),
        pd.Series(expected)[adata.obs["amilst_domain_refined"].astype(str)],
    )
    assert set(_spot_colors(_panel(figure, "Domains"))) == set(expected.values())
    regions = dict(zip(adata.obs["layer"].cat.categories, adata.uns["layer_colors"], strict=True))
    assert _legends(figure)["Annotation"] == regions | {"none": "#D9D9D9"}
    adata.uns["amilst_domain_refined_colors"] = ["#555555", "#666666", "#777777", "#888888"]
    figure = plot.domains(adata, refined="amilst_domain_refined")
    assert list(_legends(figure)["Refined domains"].values()) == adata.uns["amilst_domain_refined_colors"]


def test_stored_colors_follow_the_categories_and_not_the_spots(adata):
    """Unused categories keep their color, and float categories are named as integers."""
    codes = adata.obs["amilst_domain"].astype(float)
    adata.obs["number"] = pd.Categorical(codes, categories=[4.0, 3.0, 7.0, 2.0, 1.0])
    adata.uns["number_colors"] = ["#444444", "#333333", "#777777", "#222222", "#111111"]
    drawn = _legends(plot.domains(adata, "number"))["Domains"]
    assert drawn == {name: f"#{name * 6}" for name in "1234"}


@pytest.mark.parametrize(
    "stored",
    [
        ["red", "green", "blue"],
        ["red"] * 5,
        ["red", "green", "blue", "no such color"],
        ["red", "green", "blue", None],
        [1, 2, 3, 4],
        np.full((4, 3), 0.5),
        "rgbk",
        {"1": "red"},
        None,
    ],
    ids=str,
)
def test_invalid_stored_colors_are_ignored(adata, stored):
    adata.uns["amilst_domain_colors"] = stored
    assert plot.stored_colors(adata, "amilst_domain") == {}
    drawn = _legends(plot.domains(adata))["Domains"]
    assert drawn == dict(zip("1234", plot.palette(4), strict=True))


def test_stored_colors_of_a_column_that_is_not_categorical_are_ignored(adata):
    adata.obs["amilst_domain"] = adata.obs["amilst_domain"].astype(str)
    adata.uns["amilst_domain_colors"] = ["red", "green", "blue", "black"]
    assert plot.stored_colors(adata, "amilst_domain") == {}


@pytest.mark.parametrize(
    "categories",
    [
        ["1", "2", "3", "4"],
        ["1", "2", "10"],
        ["4", "2", "unused"],
        list("abcdefghijkl"),
        ["", "x"],
        [0, 1, 5],
        [],
    ],
    ids=str,
)
def test_domain_colors_are_those_of_the_figures(categories):
    """Storing the colors in ``uns`` does not change a figure."""
    colors = plot.domain_colors(categories)
    assert len(colors) == len(categories)
    assert all(re.fullmatch("#[0-9A-F]{6}", color) for color in colors)
    if not categories:
        return
    column = pd.Categorical.from_codes(np.arange(30) % len(categories), categories)
    adata = ad.AnnData(
        np.zeros((30, 1), dtype=np.float32),
        obs=pd.DataFrame({"x": column}, index=[f"spot{i}" for i in range(30)]),
        obsm={"spatial": np.random.default_rng(0).uniform(size=(30, 2))},
    )
    without = _spot_colors(plot.domains(adata, "x").axes[0])
    np.testing.assert_array_equal(without, np.array(colors)[column.codes])
    adata.uns["x_colors"] = colors
    np.testing.assert_array_equal(_spot_colors(plot.domains(adata, "x").axes[0]), without)


def test_stored_colors_survive_h5ad(adata, tmp_path):
    adata.uns["amilst_domain_colors"] = plot.domain_colors(adata.obs["amilst_domain"].cat.categories)
    adata.write_h5ad(tmp_path / "section.h5ad")
    stored = plot.stored_colors(ad.read_h5ad(tmp_path / "section.h5ad"), "amilst_domain")
    assert stored == dict(zip("1234", plot.palette(4), strict=True))


# ------------------------------------------------------------------------------------- size and image


def _diameter(figure):
    return 2 * float(_discs(figure.axes[0])._widths[0])  # matplotlib keeps half of it


def test_spot_diameter_from_spacing_scale_factors_and_option(over_image):
    assert _diameter(plot.domains(over_image)) == pytest.approx(55)
    # without an image there is nothing to see between the spots, which are 100 µm apart
    assert _diameter(plot.domains(over_image, image=False)) == pytest.approx(95, abs=0.1)
    assert _diameter(plot.domains(over_image, spot_diameter=70)) == pytest.approx(70)
    # a diameter in another unit than the coordinates is ignored
    over_image.obsm["spatial"] = over_image.obsm["spatial"] / 100
    assert _diameter(plot.domains(over_image)) == pytest.approx(0.95, abs=0.001)


@pytest.mark.parametrize("n_copies", [1, 2])
def test_spot_diameter_is_derived_from_the_third_neighbor(n_copies):
    """Brute-force oracle; two spots at each position have their copy as first neighbor."""
    points = np.repeat(np.random.default_rng(0).uniform(size=(200, 2)), n_copies, axis=0)
    expected = np.median(np.sort(cdist(points, points), axis=1)[:, 3])
    assert _diameter(plot.draw_domains(points, np.zeros(len(points)))) == pytest.approx(0.95 * expected)


def test_infinite_coordinates_are_refused_by_name(adata):
    adata.uns["spatial"] = {"lib": {"scalefactors": {"spot_diameter_fullres": 55.0}}}
    adata.obsm["spatial"][7, 1] = np.inf
    with pytest.raises(InputError, match="1 of 300 spots .*7"):
        plot.domains(adata)


@pytest.fixture
def over_image(adata):
    """The section with an image of scale 0.05: red for x < 1000, green for x > 1000."""
    pixels = np.zeros((120, 120, 3), dtype=np.uint8)
    pixels[:, :50, 0] = pixels[:, 50:, 1] = 255
    adata.uns["spatial"] = {
        "lib": {
            "images": {"hires": pixels},
            "scalefactors": {"tissue_hires_scalef": 0.05, "spot_diameter_fullres": 55.0},
        }
    }
    return adata


def test_image_is_below_the_spots_and_scaled(over_image, tmp_path):
    figure = plot.domains(over_image, spot_diameter=5.0)
    axis = figure.axes[0]
    assert axis.images[0].get_extent() == [0, 2400, 2400, 0]
    assert axis.images[0].get_zorder() < _discs(axis).get_zorder()
    pixels = _pixels(figure, tmp_path / "image.png", dpi=100)[..., :3]
    # alpha 0.75 on white: find the border between red and green in the rendered pixels
    red = (pixels[..., 0] > 0.95) & (pixels[..., 1] < 0.35)
    green = (pixels[..., 1] > 0.95) & (pixels[..., 0] < 0.35)
    edge = 0.5 * (np.nonzero(red)[1].max() + np.nonzero(green)[1].min())
    left, right = np.nonzero(red)[1].min(), np.nonzero(green)[1].max()
    low, high = axis.get_xlim()
    assert (edge - left) / (right - left) == pytest.approx((1000 - low) / (high - low), abs=0.02)


def test_image_option(over_image):
    assert not plot.domains(over_image, image=False).axes[0].images
    over_image.uns["spatial"]["lib"]["images"] = {}
    assert not plot.domains(over_image).axes[0].images
    with pytest.raises(InputError, match="no image"):
        plot.domains(over_image, image=True)
    with pytest.raises(InputError, match="'auto', True or False"):
        plot.domains(over_image, image="yes")


def test_images_in_files(over_image, tmp_path):
    library = over_image.uns["spatial"]["lib"]
    path = tmp_path / "tissue_lowres_image.png"
    imsave(path, library["images"].pop("hires"))
    library["scalefactors"]["tissue_lowres_scalef"] = 0.05
    library["metadata"] = {"lowres_image_path": str(path)}
    axis = plot.domains(over_image).axes[0]
    assert axis.images[0].get_extent() == [0, 2400, 2400, 0]
    path.unlink()
    with pytest.warns(AmilstWarning, match=r"no file or folder .*tissue_lowres_image\.png"):
        assert not plot.domains(over_image).axes[0].images


@pytest.mark.parametrize("damage", ["truncated", "no image", "empty"])
def test_figure_is_drawn_without_an_image_that_cannot_be_read(over_image, tmp_path, damage):
    library = over_image.uns["spatial"]["lib"]
    broken, intact = tmp_path / "tissue_hires_image.png", tmp_path / "tissue_lowres_image.png"
    pixels = np.random.default_rng(0).integers(0, 256, (120, 120, 3), dtype=np.uint8)
    imsave(intact, pixels)
    content = intact.read_bytes()
    broken.write_bytes({"truncated": content[: len(content) // 2], "no image": b"text", "empty": b""}[damage])
    library["images"] = {}
    library["metadata"] = {"hires_image_path": str(broken)}
    with pytest.warns(AmilstWarning, match=r"tissue image is not used: .*tissue_hires_image\.png"):
        figure = plot.domains(over_image)
    assert not figure.axes[0].images and len(_discs(figure.axes[0]).get_offsets()) == 300
    # the low resolution is used if it can be read
    library["metadata"]["lowres_image_path"] = str(intact)
    library["scalefactors"]["tissue_lowres_scalef"] = 0.1
    with pytest.warns(AmilstWarning, match="tissue_hires_image"):
        assert plot.domains(over_image).axes[0].images[0].get_extent() == [0, 1200, 1200, 0]


def test_several_libraries_need_library_id(over_image):
    library = over_image.uns["spatial"]["lib"]
    factors = library["scalefactors"] | {"spot_diameter_fullres": 60.0}
    over_image.uns["spatial"]["other"] = {"images": library["images"], "scalefactors": factors}
    figure = plot.domains(over_image)  # neither is used
    assert not figure.axes[0].images and _diameter(figure) == pytest.approx(95, abs=0.1)
    assert plot.domains(over_image, library_id="lib").axes[0].images
    assert _diameter(plot.domains(over_image, library_id="other")) == pytest.approx(60)
    with pytest.raises(InputError, match="lib, other"):
        plot.domains(over_image, library_id="third")


def test_her2st_section(shared_dir):
    a = ad.read_h5ad(shared_dir / "data" / "her2st_B1.h5ad")
    a.obs["domain"] = pd.Categorical((np.asarray(a.obsm["spatial"])[:, 0] // 8).astype(int).astype(str))
    figure = plot.domains(a, "domain", annotation="ground_truth")
    assert _diameter(figure) == pytest.approx(0.95)  # array units
    assert "none" in _legends(figure)["Annotation"]


# -------------------------------------------------------------------------------------- several sections


@pytest.fixture
def joint(adata):
    """Sections "b" (200 spots), "a" (70) and "c" (30, without annotation); "b" comes first."""
    adata.obs["section"] = np.repeat(["b", "a", "c"], [200, 70, 30])
    adata.obs.loc[adata.obs["section"] == "c", "layer"] = None
    return adata


def _panels(figure):
    """The axes with spots; the others hold legends or a color bar."""
    return [axis for axis in figure.axes if any(isinstance(i, EllipseCollection) for i in axis.collections)]


def _inch(axis):
    """Data units per inch along both axes, as drawn, and the extent of the limits."""
    axis.figure.draw_without_rendering()
    box = axis.get_window_extent()
    extent = np.abs([np.diff(axis.get_xlim())[0], np.diff(axis.get_ylim())[0]])
    return [*(extent / [box.width, box.height] * axis.figure.dpi), *extent]


def test_each_section_has_a_panel_with_its_spots_and_name(joint):
    figure = plot.domains(joint, sample_key="section")
    panels = _panels(figure)
    assert len(figure.axes) == 4 and _titles(figure) == ["b", "a", "c"]  # in order of first appearance
    for axis, name in zip(panels, "bac", strict=True):
        part = joint[joint.obs["section"] == name]
        np.testing.assert_array_equal(_discs(axis).get_offsets(), part.obsm["spatial"])
        expected = np.array(plot.palette(4))[part.obs["amilst_domain"].astype(int) - 1]
        np.testing.assert_array_equal(_spot_colors(axis), expected)
        (left, right), (bottom, top) = axis.get_xlim(), axis.get_ylim()
        assert left < part.obsm["spatial"][:, 0].min() and part.obsm["spatial"][:, 0].max() < right
        assert top < part.obsm["spatial"][:, 1].min() and part.obsm["spatial"][:, 1].max() < bottom
    assert _legends(figure) == {"Domains": dict(zip("1234", plot.palette(4), strict=True))}


def test_sections_in_the_order_of_their_categories(joint):
    joint.obs["section"] = pd.Categorical(joint.obs["section"], ["c", "unused", "b", "a"])
    assert _titles(plot.domains(joint, sample_key="section")) == ["c", "b", "a"]
    joint.obs["number"] = np.repeat([10.0, 2.0], 150)
    assert _titles(plot.domains(joint, sample_key="number")) == ["10", "2"]


@pytest.mark.parametrize("annotation", [None, "layer"])
def test_sections_have_the_same_scale(joint, annotation, tmp_path):
    joint.obsm["spatial"][:200] *= [3.0, 1.5]
    joint.obsm["spatial"][200:270] += 1e5
    figure = plot.domains(joint, sample_key="section", annotation=annotation, title="two\nlines")
    plot.save(figure, tmp_path / "figure.png", dpi=50)
    scales = np.array([_inch(axis) for axis in _panels(figure)])
    np.testing.assert_allclose(scales, np.tile(scales[0], (len(scales), 1)), rtol=1e-6)
    assert scales[0, 0] == pytest.approx(scales[0, 1], rel=1e-6)


def test_panels_of_several_sections_and_columns(joint):
    figure = plot.domains(
        joint, sample_key="section", refined="amilst_domain_refined", annotation="layer",
        confidence="amilst_confidence", title="S",
    )  # fmt: skip
    panels = np.array(_panels(figure)).reshape(3, 4)
    assert len(figure.axes) == 12 + 3 and figure.get_suptitle() == "S"
    for row, name in zip(panels, "bac", strict=True):
        part = joint[joint.obs["section"] == name].obs
        titles = [axis.get_title(loc="left") for axis in row]
        if name == "c":  # there is nothing to compare with
            assert titles == ["Annotation", "Domains", "Refined", "Confidence"]
        else:
            own, refined = (
                adjusted_rand_index(part["layer"], part[column])
                for column in ("amilst_domain", "amilst_domain_refined")
            )
            assert titles == [
                "Annotation", f"Domains  ·  ARI {own:.2f}", f"Refined  ·  ARI {refined:.2f}", "Confidence"
            ]  # fmt: skip
        letter = "abc"["bac".index(name)]
        assert [text.get_text() for text in row[0].texts] == [name, letter] and not row[1].texts
        assert np.ptp([axis.get_position().y0 for axis in row]) < 1e-9
        np.testing.assert_array_equal(_discs(row[3]).get_array(), part["amilst_confidence"])
        assert _discs(row[3]).get_clim() == _discs(panels[0, 3]).get_clim()
    # one legend for both columns of domains, one for the annotation
    legends = _legends(figure)
    domains = dict(zip("1234", plot.palette(4), strict=True))
    regions = {f"layer {k}": domains[str(k)] for k in range(1, 5)}
    assert legends == {"Annotation": regions | {"none": "#D9D9D9"}, "Domains": domains}
    assert [text.get_text() for text in figure.texts] == ["Confidence", "S"]  # title of the color bar


def test_refined_domains_with_other_colors_have_a_legend(joint):
    joint.uns["amilst_domain_refined_colors"] = ["#555555", "#666666", "#777777", "#888888"]
    legends = _legends(plot.domains(joint, sample_key="section", refined="amilst_domain_refined"))
    assert list(legends) == ["Domains", "Refined"]
    assert list(legends["Refined"].values()) == joint.uns["amilst_domain_refined_colors"]


def test_default_sections_are_those_of_the_run(joint):
    joint.uns["amilst"] = {"sample_key": "section", "versions": {}}
    for key in ("amilst_domain", "amilst_domain_refined"):
        assert _titles(plot.domains(joint, key)) == ["b", "a", "c"]
    assert _titles(plot.domains(joint, "layer")) == ["Domains"]  # not of this run
    part = joint[joint.obs["section"] == "a"].copy()
    assert _titles(plot.domains(part)) == ["Domains"]
    for record in ({"sample_key": "none"}, {"sample_key": "removed"}, {}, "text"):
        joint.uns["amilst"] = record
        assert _titles(plot.domains(joint)) == ["Domains"]
    with pytest.raises(MissingKeyError, match="'removed'"):
        plot.domains(joint, sample_key="removed")


@pytest.mark.parametrize("missing", [None, np.nan, ""])
def test_spots_without_a_section_are_refused(joint, missing):
    joint.obs["section"] = joint.obs["section"].astype(object)
    joint.obs.iloc[:3, joint.obs.columns.get_loc("section")] = missing
    for draw in (plot.domains, plot.composition):
        with pytest.raises(InputError, match="each of the 300 spots; 3 have none. Fill in"):
            draw(joint, sample_key="section")


def test_sections_of_few_spots_do_not_change_the_scale(joint):
    """Without neighbors, the spacing is that of the other sections."""
    joint.obs["section"] = np.repeat(["b", "one", "two", "c"], [150, 1, 2, 147])
    panels = _panels(plot.domains(joint, sample_key="section"))
    joint = joint[[*range(150), *range(153, 300)]]
    expected = _panels(plot.domains(joint.copy(), sample_key="section"))
    np.testing.assert_allclose(_inch(panels[0])[2:], _inch(expected[0])[2:])
    widths = [2 * float(_discs(axis)._widths[0]) for axis in panels]
    np.testing.assert_allclose(widths, 95, rtol=0.05)


def test_one_section_is_drawn_as_without_a_sample_key(adata, tmp_path):
    adata.obs["section"] = "only"
    options = {"refined": "amilst_domain_refined", "annotation": "layer", "confidence": "amilst_confidence"}
    figures = [plot.domains(adata, **options), plot.domains(adata, sample_key="section", **options)]
    first, second = (_pixels(figure, tmp_path / "figure.png") for figure in figures)
    np.testing.assert_array_equal(first, second)
    assert [_titles(figure)[0] for figure in figures] == ["Annotation"] * 2


@pytest.mark.parametrize("third", [np.array([0.1 + 0.2, -2.0, 40.0]), np.array([1e-3, 0, 5e5])])
def test_planes_of_a_stack(adata, third):
    z = np.resize(third, 300)
    points = np.column_stack([adata.obsm["spatial"], z])
    names = {third[0]: "0.30000000000000004" if third[0] > 0.1 else "0.001"}
    expected = [f"z = {names.get(value, f'{value:.0f}')}" for value in np.sort(third)]
    adata.obsm["spatial"] = points
    for figure in (plot.domains(adata), plot.draw_domains(points, adata.obs["amilst_domain"])):
        assert _titles(figure) == expected
        for axis, value in zip(_panels(figure), np.sort(third), strict=True):
            np.testing.assert_array_equal(_discs(axis).get_offsets(), points[z == value, :2])
    # given sections come first
    adata.obs["section"] = np.repeat(["b", "a"], 150)
    assert _titles(plot.domains(adata, sample_key="section")) == ["b", "a"]


@pytest.mark.parametrize("n_planes", [1, 48, 49, 300])
def test_only_few_planes_are_panels(adata, n_planes):
    adata.obsm["spatial"] = np.column_stack([adata.obsm["spatial"], np.arange(300) % n_planes])
    figure = plot.domains(adata)
    assert len(_panels(figure)) == (48 if n_planes == 48 else 1)


@pytest.mark.parametrize(
    ("n_sections", "columns"),
    [(20, {}), (60, {}), (40, {"annotation": "layer", "refined": "amilst_domain_refined"})],
)
def test_many_sections_fit_into_one_figure(adata, n_sections, columns, tmp_path):
    adata.obs["section"] = np.arange(300) * n_sections // 300
    figure = plot.domains(adata, sample_key="section", **columns)
    panels = _panels(figure)
    n_drawn = min(n_sections, 32 if columns else 48)  # at most 96 panels
    assert len(panels) == n_drawn * (1 + len(columns))
    width, height = figure.get_size_inches()
    assert width < 10 and height < 26
    plot.save(figure, tmp_path / "figure.png", dpi=20)
    boxes = [axis.get_window_extent() for axis in panels]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert min(max(box.width, box.height) for box in boxes) / figure.dpi > 1.0  # inches
    assert min(text.get_fontsize() for text in _texts(figure)) >= 7
    notes = [text.get_text() for text in figure.texts if "left out" in text.get_text()]
    left_out = f"The first {n_drawn} of {n_sections} sections; {n_sections - n_drawn} are left out."
    assert notes == ([] if n_drawn == n_sections else [left_out])
    # the colors and the legend are those of all spots
    assert _legends(figure)["Domains"] == dict(zip("1234", plot.palette(4), strict=True))


@pytest.mark.parametrize(
    ("shape", "n_sections", "n_labels", "name", "annotated"),
    [
        ((1, 0.3), 3, 3, "section " * 20, False),
        ((1, 0.3), 3, 3, "section " * 20, True),
        ((1, 0.3), 3, 70, "s", True),
        ((0.2, 1), 3, 3, "section " * 20, True),
        ((0.2, 1), 48, 3, "section " * 20, False),
        ((0.2, 1), 12, 3, "section " * 20, True),
    ],
)
def test_texts_of_several_sections_do_not_overlap(shape, n_sections, n_labels, name, annotated, tmp_path):
    points = np.random.default_rng(0).uniform(size=(480, 2)) * shape
    labels = np.arange(480) % n_labels
    regions = [f"region {label}" for label in labels] if annotated else None
    figure = plot.draw_domains(
        points,
        labels,
        annotation=regions,
        refined=labels if annotated else None,
        sections=[f"{name}{i}" for i in np.arange(480) * n_sections // 480],
        title="T",
    )
    plot.save(figure, tmp_path / "figure.png", dpi=50)
    figure.draw_without_rendering()
    hidden = {text for axis in figure.axes for part in (axis.xaxis, axis.yaxis) for text in _texts(part)}
    shown = [text for text in _texts(figure) if text not in hidden]
    boxes = [text.get_window_extent() for text in shown]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    boxes = [
        box for text, box in zip(shown, boxes, strict=True) if not text.get_path_effects()
    ]  # not on the tissue
    panels = [axis.get_window_extent() for axis in _panels(figure)]
    assert not any(text.overlaps(panel) for text in boxes for panel in panels)
    width, height = figure.get_size_inches()
    assert width < 10 and height < 26


def test_sections_have_the_images_and_spot_sizes_of_their_libraries(joint):
    def library(red, diameter):
        pixels = np.zeros((40, 40, 3), dtype=np.uint8)
        pixels[..., 0] = red
        factors = {"tissue_hires_scalef": 0.02, "spot_diameter_fullres": diameter}
        return {"images": {"hires": pixels}, "scalefactors": factors}

    joint.uns["spatial"] = {"a": library(10, 55.0), "b": library(20, 65.0)}
    panels = _panels(plot.domains(joint, sample_key="section"))
    assert [[image.get_array()[0, 0, 0] for image in axis.images] for axis in panels] == [[20], [10], []]
    assert [2 * float(_discs(axis)._widths[0]) for axis in panels[:2]] == [65, 55]
    with pytest.raises(InputError, match="no image that can be read for section 'c'"):
        plot.domains(joint, sample_key="section", image=True)
    drawn = plot.domains(joint, sample_key="section", library_id="a", image=True, spot_diameter=70.0)
    for axis in _panels(drawn):
        assert axis.images[0].get_array()[0, 0, 0] == 10 and 2 * float(_discs(axis)._widths[0]) == 70
    # one slide with several pieces of tissue
    joint.uns["spatial"] = {"slide": library(30, 55.0)}
    assert all(axis.images for axis in _panels(plot.domains(joint, sample_key="section")))
    # a section that is drawn alone has its own image
    joint.uns |= {
        "amilst": {"sample_key": "section"},
        "spatial": {"a": library(10, 55.0), "b": library(20, 65.0)},
    }
    alone = plot.domains(joint[joint.obs["section"] == "a"].copy())
    assert alone.axes[0].images[0].get_array()[0, 0, 0] == 10


@pytest.mark.parametrize(("name", "expected"), NAMES, ids=NAME_IDS)
def test_names_of_sections_are_drawn_literally(name, expected, tmp_path):
    points, labels, sections = np.arange(16.0).reshape(8, 2), ["1", "1", "2", "2"] * 2, ["x"] * 4 + [name] * 4
    shown = expected if len(name) < 100 else expected[:10]
    for annotation in (None, labels):
        _check_literal(
            plot.draw_domains(points, labels, annotation=annotation, sections=sections), tmp_path, shown
        )
    # as objects, because the strings of pandas 3 refuse lone surrogates
    obs = pd.DataFrame({"d": labels, "s": sections}, index=[f"spot{i}" for i in range(8)], dtype=object)
    _check_literal(plot.composition(ad.AnnData(obs=obs), "s", "d"), tmp_path, shown)


# ------------------------------------------------------------------------------------------- composition


def _bars(figure):
    """Table of the lengths of the bars (sections × domains), and the color of each domain."""
    axis = figure.axes[0]
    names = [text.get_text().rsplit("  (", 1)[0] for text in axis.get_yticklabels()]
    lengths = {c.get_label(): [bar.get_width() for bar in c.patches] for c in axis.containers}
    colors = {c.get_label(): to_hex(c.patches[0].get_facecolor()).upper() for c in axis.containers}
    for i in range(len(names)):  # each bar begins where the one before ends
        edges = np.array([(c.patches[i].get_x(), c.patches[i].get_width()) for c in axis.containers])
        np.testing.assert_allclose(edges[1:, 0], edges.cumsum(axis=0)[:-1, 1], atol=1e-12)
        assert edges[0, 0] == 0 and edges[:, 1].sum() == pytest.approx(1)
        assert len({round(c.patches[i].get_y(), 9) for c in axis.containers}) == 1
    return pd.DataFrame(lengths, index=names), colors


def test_composition_is_the_share_of_each_domain(joint):
    figure = plot.composition(joint, "section")
    table, colors = _bars(figure)
    expected = pd.crosstab(joint.obs["section"], joint.obs["amilst_domain"], normalize="index")
    assert list(table.index) == ["b", "a", "c"] and list(table.columns) == list("1234")
    np.testing.assert_allclose(table, expected.loc[table.index, table.columns])
    assert colors == _legend(figure.axes[0]) == dict(zip("1234", plot.palette(4), strict=True))
    bottom, top = figure.axes[0].get_ylim()
    assert bottom > top  # the first section is above
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == [
        "b  (200)",
        "a  (70)",
        "c  (30)",
    ]
    # the same colors as on the sections
    joint.uns["amilst_domain_colors"] = ["#111111", "#222222", "#333333", "#444444"]
    _, colors = _bars(plot.composition(joint, "section"))
    assert colors == _legends(plot.domains(joint, sample_key="section"))["Domains"]


def test_composition_with_spots_without_a_label(joint):
    table, colors = _bars(plot.composition(joint, "section", key="layer"))
    labels = joint.obs["layer"].astype(object).fillna("none")
    expected = pd.crosstab(joint.obs["section"], labels, normalize="index")
    np.testing.assert_allclose(table, expected.loc[table.index, table.columns])
    assert table.loc["c", "none"] == 1 and colors["none"] == "#D9D9D9"


def test_default_sections_of_the_composition(joint):
    assert list(_bars(plot.composition(joint))[0].index) == ["all spots"]
    joint.uns["amilst"] = {"sample_key": "section"}
    assert list(_bars(plot.composition(joint))[0].index) == ["b", "a", "c"]
    with pytest.raises(MissingKeyError, match="'x'"):
        plot.composition(joint, sample_key="x")
    with pytest.raises(MissingKeyError, match="'x'"):
        plot.composition(joint, key="x")


@pytest.mark.parametrize("n_sections", [2, 60, 300])
def test_composition_of_many_sections(adata, n_sections, tmp_path):
    adata.obs["section"] = [f"section {i}" for i in np.arange(300) * n_sections // 300]
    figure = plot.composition(adata, "section")
    table, _ = _bars(figure)
    assert len(table) == min(n_sections, 200)
    assert max(figure.get_size_inches()) < 26
    plot.save(figure, tmp_path / "figure.png", dpi=50)
    figure.draw_without_rendering()
    names = [text.get_window_extent() for text in figure.axes[0].get_yticklabels()]
    assert not any(a.overlaps(b) for a, b in itertools.pairwise(names))
    assert min(text.get_fontsize() for text in figure.axes[0].get_yticklabels()) >= 7
    note = figure.axes[0].get_title(loc="left")
    assert note == ("The first 200 of 300 sections; 100 are left out." if n_sections == 300 else "")


# ------------------------------------------------------------------------- frame, letters, size, many labels


def _limits(figure):
    return np.array([[*axis.get_xlim(), *axis.get_ylim()] for axis in _panels(figure)])


def _notes(figure):
    return [text.get_text() for text in figure.texts if "outside the frame" in text.get_text()]


def test_a_spot_far_away_is_outside_the_frame(adata):
    expected = _limits(plot.domains(adata[1:].copy()))
    adata.obsm["spatial"][0] = [1e6, 0]
    figure = plot.domains(adata)
    np.testing.assert_allclose(_limits(figure), expected)
    assert _notes(figure) == ["1 spot lies far from all others and outside the frame."]
    assert len(_discs(figure.axes[0]).get_offsets()) == 300  # it appears in an interactive viewer
    adata.obs["section"] = np.repeat(["a", "b"], 150)
    adata.obsm["spatial"][[1, 299]] = [[0, -1e6], [1e6, 1e6]]
    note = "3 spots lie far from all others and outside the frame (a, b)."
    assert _notes(plot.domains(adata, sample_key="section")) == [note]


def test_a_second_piece_of_tissue_and_small_sections_are_framed_whole(adata):
    points = adata.obsm["spatial"]
    extent = np.ptp(points[:, 0])
    points[:10, 0] += 20 * extent  # 3 % of the spots
    few = np.random.default_rng(0).uniform(size=(19, 2))
    few[0] = [500, 0]
    for figure in (plot.domains(adata), plot.draw_domains(few, np.arange(19) % 2)):
        axis = figure.axes[0]
        offsets = np.asarray(_discs(axis).get_offsets())
        assert axis.get_xlim()[0] < offsets[:, 0].min() and offsets[:, 0].max() < axis.get_xlim()[1]
        assert not _notes(figure)


def test_panels_have_letters(adata):
    def letters(figure):
        return [
            text.get_text()
            for axis in _panels(figure)
            for text in axis.texts
            if text.get_fontweight() == "bold"
        ]

    assert letters(plot.domains(adata)) == []
    columns = {"refined": "amilst_domain_refined", "annotation": "layer", "confidence": "amilst_confidence"}
    assert letters(plot.domains(adata, **columns)) == ["a", "b", "c", "d"]
    adata.obs["section"] = np.arange(300) * 30 // 300
    assert letters(plot.domains(adata, sample_key="section"))[24:28] == ["y", "z", "aa", "ab"]
    assert [panel_letter(i) for i in (0, 25, 26, 701, 702)] == ["a", "z", "aa", "zz", "aaa"]


@pytest.mark.parametrize(
    ("n_sections", "shape"),
    [(1, (1, 1)), (1, (1, 0.3)), (1, (0.3, 1)), (4, (1, 1)), (12, (1, 0.3)), (12, (0.3, 1))],
)
def test_figures_have_the_width_of_a_page(n_sections, shape, tmp_path):
    """What `amilst run` draws beside an annotation is legible at the width of a page, 180 mm."""
    points = np.random.default_rng(0).uniform(size=(240, 2)) * shape
    labels = np.arange(240) % 7
    figure = plot.draw_domains(
        points,
        labels,
        refined=labels,
        annotation=[f"region {label}" for label in labels],
        confidence=np.linspace(0.3, 1, 240),
        sections=np.arange(240) * n_sections // 240,
    )
    width, height = figure.get_size_inches()
    assert width <= (7.2 if n_sections <= 4 else 9.6) and height < 12
    plot.save(figure, tmp_path / "figure.png", dpi=50)
    assert imread(tmp_path / "figure.png").shape[1] <= 50 * (width + 0.3)  # nothing sticks out
    assert min(text.get_fontsize() for text in _texts(figure)) >= 7
    legends = [axis for axis in figure.axes if axis.get_legend()]
    lowest = min(axis.get_position().y0 for axis in _panels(figure))
    assert len(legends) == 2 and all(axis.get_position().y1 <= lowest for axis in legends)


def test_more_than_twenty_labels_are_written_on_the_tissue(adata):
    points = adata.obsm["spatial"]
    rank = (
        np.argsort(np.argsort(points[:, 0])) * 6 // 300 * 6 + np.argsort(np.argsort(points[:, 1])) * 6 // 300
    )
    figure = plot.draw_domains(points, rank)
    axis = figure.axes[0]
    assert {text.get_text() for text in axis.texts} == {str(name) for name in np.unique(rank)}
    for text in axis.texts:  # each in its own domain
        (spot,) = np.flatnonzero((points == text.get_position()).all(axis=1))
        assert str(rank[spot]) == text.get_text()
    assert len(set(_legends(figure)["Domains"].values())) == len(np.unique(rank)) > 20
    assert not plot.draw_domains(points, rank % 20).axes[0].texts
    assert not plot.draw_domains(points, [f"region {name}" for name in rank]).axes[0].texts
    # no label covers another
    mixed = plot.draw_domains(points, np.arange(300) % 60)
    mixed.draw_without_rendering()
    boxes = [text.get_window_extent() for text in mixed.axes[0].texts]
    assert boxes and not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


# --------------------------------------------------------------------------------------- large sections


def test_large_sections_are_rasterized(tmp_path):
    tissue = simulate_tissue(50_000, 100, 20, layout="blobs", arrangement="cells", median_counts=2)
    figure = plot.draw_domains(tissue.coordinates, tissue.domains)
    assert _discs(figure.axes[0]).get_rasterized()
    plot.save(figure, tmp_path / "large.svg", dpi=100)
    assert (tmp_path / "large.svg").stat().st_size < 2e6
    # no disc is much smaller than a pixel
    inches = figure.axes[0].get_window_extent().width / figure.dpi
    low, high = figure.axes[0].get_xlim()
    assert _diameter(figure) > (high - low) / (inches * 200)
    assert not _discs(
        plot.draw_domains(tissue.coordinates[:500], tissue.domains[:500]).axes[0]
    ).get_rasterized()


# --------------------------------------------------------------------------------------------- palette


def test_palettes_are_nested_and_begin_with_okabe_and_ito():
    assert plot.palette(0) == ()
    assert plot.palette(3) == ("#0072B2", "#E69F00", "#009E73")
    for n in (8, 19, 20, 21, 40):
        assert plot.palette(n) == plot.palette(41)[:n]
    assert len(set(plot.palette(60))) == 60


def _linear(color):
    rgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def _lab(color):
    """CIELAB under D65; further colors of the palette are computed in OKLab."""
    return _lab_of(_linear(color))


def _lab_of(linear):
    to_xyz = [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
    x, y, z = np.array(to_xyz) @ linear / [0.95047, 1.0, 1.08883]
    f = [np.cbrt(v) if v > 216 / 24389 else (24389 / 27 * v + 16) / 116 for v in (x, y, z)]
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def test_thirty_colors_are_distinguishable():
    colors = [_lab(color) for color in (*plot.palette(30), "#FFFFFF", "#D9D9D9")]
    closest = min(np.linalg.norm(a - b) for a, b in itertools.combinations(colors, 2))
    assert closest > 12  # about 2 is just noticeable


# Linear RGB as seen with protanopia, deuteranopia and tritanopia (Machado et al. 2009, severity 1)
_VISIONS = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}  # fmt: skip


def _ciede2000(first, second):
    """Difference of two CIELAB colors (Sharma, Wu and Dalal 2005)."""
    (l1, a1, b1), (l2, a2, b2) = first, second
    mean = (np.hypot(a1, b1) + np.hypot(a2, b2)) / 2
    stretch = 1 + 0.5 * (1 - np.sqrt(mean**7 / (mean**7 + 25.0**7)))
    c1, c2 = np.hypot(stretch * a1, b1), np.hypot(stretch * a2, b2)
    h1, h2 = (np.degrees(np.arctan2(b, stretch * a)) % 360 for a, b in ((a1, b1), (a2, b2)))
    turn = (h2 - h1 + 180) % 360 - 180
    hue = np.radians((h1 + turn / 2) % 360)
    lightness, chroma = (l1 + l2) / 2, (c1 + c2) / 2
    t = (
        1 - 0.17 * np.cos(hue - np.radians(30)) + 0.24 * np.cos(2 * hue) + 0.32 * np.cos(3 * hue + np.radians(6))
        - 0.2 * np.cos(4 * hue - np.radians(63))
    )  # fmt: skip
    rotation = -2 * np.sqrt(chroma**7 / (chroma**7 + 25.0**7)) * np.sin(
        np.radians(60) * np.exp(-(((np.degrees(hue) - 275) / 25) ** 2))
    )  # fmt: skip
    dl = (l2 - l1) / (1 + 0.015 * (lightness - 50) ** 2 / np.sqrt(20 + (lightness - 50) ** 2))
    dc = (c2 - c1) / (1 + 0.045 * chroma)
    dh = 2 * np.sqrt(c1 * c2) * np.sin(np.radians(turn / 2)) / (1 + 0.015 * chroma * t)
    return np.sqrt(dl**2 + dc**2 + dh**2 + rotation * dc * dh)


def test_the_difference_of_colors_against_published_pairs():
    """From the table of Sharma, Wu and Dalal (2005)."""
    for first, second, expected in (
        ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
        ((50, 2.5, 0), (58, 24, 15), 19.4535),
        ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
        ((2.0776, 0.0795, -1.135), (0.9033, -0.0636, -0.5514), 0.9082),
    ):
        assert _ciede2000(first, second) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("vision", "least"), [(name, 17.0 if name == "normal" else 8.5) for name in _VISIONS]
)
def test_twenty_colors_can_be_told_apart(vision, least):
    """By everyone, from each other and from the pages of the figures and the report, light and dark."""
    seen = [_lab_of(np.clip(_VISIONS[vision] @ _linear(color), 0, 1)) for color in plot.palette(20)]
    assert min(itertools.starmap(_ciede2000, itertools.combinations(seen, 2))) > least
    if vision == "normal":  # neither black nor nearly white
        assert all(28 < lightness < 90 for lightness, *_ in seen)
    for page, apart in (("#FFFFFF", 18), ("#20262D", 18), ("#D9D9D9", 8), ("#59616B", 8)):
        there = _lab_of(np.clip(_VISIONS[vision] @ _linear(page), 0, 1))
        assert min(_ciede2000(color, there) for color in seen) > (apart if vision == "normal" else apart / 2)


# ----------------------------------------------------------------------------------------- other figures


def test_quiet_colors_are_grayish_light_and_distinct():
    used = plot.palette(8)
    for n, chroma in ((1, 22), (6, 22), (20, 40)):
        colors = [_lab(color) for color in quiet_palette(n, used)]
        assert max(np.hypot(*lab[1:]) for lab in colors) < chroma and min(lab[0] for lab in colors) > 45
        others = [*colors, *(_lab(color) for color in (*used, "#FFFFFF", "#D9D9D9"))]
        assert min(np.linalg.norm(a - b) for a in colors for b in others if a is not b) > 4


@pytest.fixture
def with_run(adata):
    """The record of a run that chose its settings."""
    adata.obsm["X_amilst"] = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
    adata.uns["amilst"] = {
        "losses": {"epoch": np.array([1, 2, 3]), "links": np.array([3.0, 2.0, 1.0])},
        "selection": {"n_domains": np.array([3, 4, 5]), "log_likelihood": np.array([-2.0, -1.5, -1.0])},
        "shrinkage": evidence(),
        "n_domains": 4,
    }
    return adata


def test_figures_of_a_run(with_run, monkeypatch):
    """An AnnData gives the figure that its parts give."""
    reducer = type(
        "UMAP", (), {"__init__": lambda self, **_: None, "fit_transform": lambda self, x: x[:, :2]}
    )
    monkeypatch.setitem(sys.modules, "umap", type(sys)("umap"))
    sys.modules["umap"].UMAP = reducer
    with_run.uns["amilst_domain_colors"] = ["#111111", "#222222", "#333333", "#444444"]
    record = with_run.uns["amilst"]
    domains = with_run.obs["amilst_domain"]
    pairs = [
        (plot.losses(with_run), plot.losses(record["losses"])),
        (plot.selection_curve(with_run), plot.selection_curve(record["selection"], 4)),
        (plot.shrinkage_curve(with_run), plot.shrinkage_curve(record["shrinkage"])),
        (
            plot.umap(with_run),
            plot.umap(
                with_run.obsm["X_amilst"], domains, colors=plot.stored_colors(with_run, "amilst_domain")
            ),
        ),
    ]
    for first, second in pairs:
        assert first._repr_png_() == second._repr_png_()
    assert set(_legend(plot.umap(with_run, "layer").axes[0])) == {
        *with_run.obs["layer"].cat.categories,
        "none",
    }
    colors = _legend(plot.umap(with_run, colors={"2": "#ABCDEF"}).axes[0])
    assert colors == {"1": "#111111", "2": "#ABCDEF", "3": "#333333", "4": "#444444"}
    # under another key
    with_run.uns["second"] = record | {"losses": {"kl": np.array([1.0, 2.0])}}
    assert _titles(plot.losses(with_run, key_added="second")) == ["KL divergence"]


def test_figures_of_a_run_without_what_they_show(with_run):
    for draw in (plot.losses, plot.selection_curve, plot.shrinkage_curve):
        with pytest.raises(MissingKeyError, match="no results under key_added='other'"):
            draw(with_run, key_added="other")
    with pytest.raises(MissingKeyError, match="X_other"):
        plot.umap(with_run, key_added="other")
    with pytest.raises(MissingKeyError, match="'leiden'"):
        plot.umap(with_run, "leiden")
    with_run.uns["amilst"] |= {"losses": {}, "selection": {}, "shrinkage": {}}
    with pytest.raises(InputError, match="at least one finite loss"):
        plot.losses(with_run)
    with pytest.raises(InputError, match="without n_domains"):
        plot.selection_curve(with_run)
    with pytest.raises(InputError, match="chose its shrinkage"):
        plot.shrinkage_curve(with_run)
    with pytest.raises(InputError, match="a label for each row"):
        plot.umap(np.eye(30))


def test_losses_say_which_way_is_good(adata):
    """Every term that training records has a caption."""
    recorded = set()
    for preset in ("default", "published"):
        model = AMILST(4, preset=preset, settings={"epochs": 2})
        recorded |= set(
            model.fit(adata.X[:80].toarray(), coordinates=adata.obsm["spatial"][:80]).history_
        ) - {"epoch"}
    figure = plot.losses({name: [2.0, 1.0] for name in recorded})
    captions = {axis.get_title(loc="left"): axis.texts[0].get_text() for axis in figure.axes if axis.lines}
    assert len(captions) == len(recorded) and all(captions.values())
    assert captions["links"] == "lower is better" and captions["mutual information"] == "higher is better"


def test_losses_panels(tmp_path):
    history = {
        "epoch": [1, 2, 3, 4],
        "reconstruction": [4.0, 3.0, 2.0, 1.0],
        "links": np.array([1e-6, 2e-6, 1e-6, 1e-6]),
        "clusters": [float("nan"), float("nan"), 1.0, 0.5],
        "unused": [float("nan")] * 4,
    }
    figure = plot.losses(history)
    drawn = {axis.get_title(loc="left"): axis.lines[0] for axis in figure.axes if axis.lines}
    assert set(drawn) == {"reconstruction", "links", "clusters"}
    np.testing.assert_array_equal(drawn["clusters"].get_ydata(), history["clusters"])
    np.testing.assert_array_equal(drawn["links"].get_xdata(), [1, 2, 3, 4])
    for nothing in ({}, {"epoch": [1]}, {"links": []}, {"links": [float("nan")]}):
        with pytest.raises(InputError, match="at least one finite loss"):
            plot.losses(nothing)


def test_selection_curve():
    table = {"n_domains": [2, 3, 5], "log_likelihood": [-9.0, -4.0, -4.5], "agreement": [0.5, 0.9, 0.7]}
    axis = plot.selection_curve(table, 3).axes[0]
    curve, chosen = axis.lines
    np.testing.assert_array_equal(curve.get_xydata(), [[2, -9], [3, -4], [5, -4.5]])
    assert set(chosen.get_xdata()) == {3} and axis.get_legend().get_texts()[0].get_text() == "chosen: 3"
    assert "held-out" in axis.get_ylabel() and "higher is better" in axis.get_ylabel()
    smallest = plot.selection_curve(table | {"log_likelihood": [-4.5, -4.0, -5.0]}, 2).axes[0]
    label = smallest.get_legend().get_texts()[0].get_text()
    assert label.startswith("chosen: 2, the smallest number") and "almost as good" in label


def evidence(**changes):
    values = {
        "columns": np.array([4, 8]),
        "shares": np.array([0.01, 0.1, 0.9]),
        "log_likelihood": np.array([[-7.0, -5.0, -5.5], [np.nan, -3.0, -8.0]]),
        "weights": np.array([[0, 0.4, 0.2], [0, 0.4, 0]]),
        "agreement": np.array([0.8, 0.7]),
        "temperature": 2.0,
    }
    return values | changes


@pytest.mark.parametrize("form", [dict, lambda values: Evidence(**values)], ids=["mapping", "Evidence"])
def test_shrinkage_curve(form):
    axis = plot.shrinkage_curve(form(evidence())).axes[0]
    labels = [text.get_text() for text in axis.get_legend().get_texts()]
    assert labels == ["4 principal axes", "8 principal axes", "averaged", "not used"]
    assert axis.get_xscale() == "log" and axis.get_ylim() == pytest.approx((-5.25, 0.2625))
    for lines, relative, used in zip(
        (axis.lines[:3], axis.lines[3:]), ([-2, 0, -0.5], [np.nan, 0, -5]), ([1, 2], [1]), strict=True
    ):
        curve, filled, hollow = lines
        np.testing.assert_array_equal(curve.get_ydata(), relative)
        np.testing.assert_array_equal(filled.get_xdata(), np.array([0.01, 0.1, 0.9])[used])
        assert filled.get_fillstyle() == "full" and hollow.get_fillstyle() == "none"
        assert len(hollow.get_xdata()) == 3 - len(used)


@pytest.mark.parametrize("nothing", [None, {}, evidence(shares=np.array([0.3]))])
def test_shrinkage_curve_without_a_comparison(nothing):
    with pytest.raises(InputError, match="chose its shrinkage; found none"):
        plot.shrinkage_curve(nothing)


def test_umap_parameters_and_points(monkeypatch):
    """The class UMAP is replaced, because compiling it takes long."""
    import types

    asked = {}

    class Fake:
        def __init__(self, **options):
            asked.update(options)

        def fit_transform(self, values):
            return values[:, :2]

    monkeypatch.setitem(sys.modules, "umap", types.SimpleNamespace(UMAP=Fake))
    embedding = np.random.default_rng(0).normal(size=(40, 5))
    labels = np.repeat(["1", "2"], 20)
    figure = plot.umap(embedding, labels, seed=7)
    assert asked == {"n_neighbors": 15, "min_dist": 0.3, "random_state": 7, "n_jobs": 1}
    dots = figure.axes[0].collections[0]
    order = np.lexsort(np.asarray(dots.get_offsets()).T)
    expected = np.lexsort(embedding[:, :2].astype(np.float32).T)
    colors = np.array([to_hex(color).upper() for color in dots.get_facecolors()])
    np.testing.assert_array_equal(
        colors[order], np.array(plot.palette(2))[(labels == "2").astype(int)][expected]
    )
    for bad, match in ((embedding[:-1], "40 labels"), (embedding * np.nan, "finite")):
        with pytest.raises(InputError, match=match):
            plot.umap(bad, labels)
    with pytest.raises(InputError, match="n_neighbors"):
        plot.umap(embedding, labels, n_neighbors=40)
    asked.clear()
    with pytest.raises(InputError, match="colors"):
        plot.umap(embedding, labels, colors={"1": "no such color"})
    assert not asked  # refused before UMAP runs


@pytest.mark.slow
def test_umap_is_reproducible():
    pytest.importorskip("umap")
    embedding = np.random.default_rng(0).normal(size=(200, 5)) + np.repeat([0, 8], 100)[:, None]
    first, again = (plot.umap(embedding, np.repeat([0, 1], 100)).axes[0].collections[0] for _ in range(2))
    np.testing.assert_array_equal(first.get_offsets(), again.get_offsets())


# ----------------------------------------------------------------------------------------------- saving


@pytest.mark.parametrize("ending", ["png", "svg", "pdf", "PNG"])
def test_save_replaces_the_file_and_is_reproducible(adata, tmp_path, ending):
    path = tmp_path / f"figure.{ending}"
    path.write_bytes(b"old")
    contents = []
    for _ in range(2):
        plot.save(plot.domains(adata, annotation="layer"), path, dpi=50)
        contents.append(path.read_bytes())
    magic = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[ending.lower()]
    assert contents[0].startswith(magic)
    assert contents[0] == contents[1]
    assert os.listdir(tmp_path) == [path.name]


def test_failed_save_keeps_the_old_file_and_removes_the_partial_one(adata, tmp_path, monkeypatch):
    path = tmp_path / "figure.png"
    path.write_bytes(b"old")
    figure = plot.domains(adata)

    def broken(handle, **_):
        with open(handle, "wb") as file:
            file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(figure, "savefig", broken)
    with pytest.raises(OSError, match="disk full"):
        plot.save(figure, path)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["figure.png"]


def test_save_refuses_unknown_formats_and_missing_folders(adata, tmp_path):
    figure = plot.domains(adata)
    with pytest.raises(InputError, match=r"\.png, \.svg or \.pdf"):
        plot.save(figure, tmp_path / "figure.jpeg")
    with pytest.raises(InputError, match="does not exist"):
        plot.save(figure, tmp_path / "nowhere" / "figure.png")


def test_notebook_representation(adata):
    assert plot.domains(adata)._repr_png_().startswith(b"\x89PNG")


# --------------------------------------------------------------------------------- imports and side effects


def test_namespace_has_only_public_names():
    assert dir(plot) == sorted(plot.__all__)
    assert all(callable(getattr(plot, name)) for name in plot.__all__)


def test_matplotlib_is_imported_lazily_and_pyplot_never():
    program = textwrap.dedent("""
        import sys
        import numpy as np
        from amilst_lite import plot
        assert "matplotlib" not in sys.modules
        figure = plot.draw_domains(np.random.default_rng(0).uniform(size=(30, 2)), np.arange(30) % 3)
        figure._repr_png_()
        assert "matplotlib" in sys.modules and "matplotlib.pyplot" not in sys.modules
        assert "anndata" not in sys.modules and "umap" not in sys.modules
    """)
    subprocess.run([sys.executable, "-c", program], check=True, env={**os.environ, "MPLBACKEND": "qtagg"})


def test_rcparams_are_unchanged(adata, tmp_path):
    before = dict(matplotlib.rcParams)
    plot.save(plot.domains(adata), tmp_path / "figure.svg", dpi=40)
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(
    ("missing", "extra", "draw"),
    [
        ("matplotlib.figure", "plot", lambda a: plot.domains(a)),
        ("matplotlib.figure", "plot", lambda a: plot.composition(a, "no such column")),
        ("matplotlib.figure", "plot", lambda a: plot.losses({"links": [1.0]})),
        ("umap", "umap", lambda a: plot.umap(np.eye(30), np.arange(30))),
    ],
)
def test_missing_extra(adata, monkeypatch, missing, extra, draw):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(MissingExtraError, match=rf'pip install "amilst-lite\[{extra}\]"'):
        draw(adata)


def test_adata_is_unchanged(over_image):
    before = over_image.copy()
    plot.domains(
        over_image, refined="amilst_domain_refined", annotation="layer", confidence="amilst_confidence"
    )
    pd.testing.assert_frame_equal(over_image.obs, before.obs)
    assert over_image.uns["spatial"].keys() == before.uns["spatial"].keys() and list(over_image.uns) == [
        "spatial"
    ]
    np.testing.assert_array_equal(over_image.obsm["spatial"], before.obsm["spatial"])


def test_missing_keys(adata):
    with pytest.raises(MissingKeyError, match="amilst_domain_refined"):
        plot.domains(adata, "leiden")
    with pytest.raises(MissingKeyError, match="spatial"):
        plot.domains(adata, basis="X_umap")
    with pytest.raises(InputError, match="an AnnData; found csr_matrix"):
        plot.domains(adata.X)
    for options in ({"refined": "x"}, {"annotation": "x"}, {"confidence": "x"}):
        with pytest.raises(MissingKeyError, match="'x'"):
            plot.domains(adata, **options)


@pytest.mark.parametrize(
    ("coordinates", "options", "match"),
    [
        (np.zeros((3, 1)), {}, "2 or 3 columns"),
        (np.zeros((0, 2)), {}, "2 or 3 columns"),
        (np.full((3, 2), np.nan), {}, "infinite"),
        (np.zeros((4, 2)), {}, "labels"),
        (np.zeros((3, 2)), {"refined": [1]}, "refined"),
        (np.zeros((3, 2)), {"annotation": [1]}, "annotation"),
        (np.zeros((3, 2)), {"confidence": [1]}, "confidence"),
        (np.zeros((3, 2)), {"sections": [1]}, "sections"),
        (np.zeros((3, 2)), {"confidence": ["1", "2", "1"]}, r"in \[0, 1\]; found 1, 2\."),
        (np.zeros((3, 2)), {"confidence": [1, 2, np.nan]}, r"in \[0, 1\]; found 1\.0, 2\.0"),
    ],
)
def test_invalid_arrays(coordinates, options, match):
    with pytest.raises(InputError, match=match):
        plot.draw_domains(coordinates, [0, 1, 1], **options)


def test_measurements_are_no_labels():
    points = np.arange(202).reshape(101, 2)
    plot.draw_domains(points, np.arange(101.0))
    plot.draw_domains(points, np.arange(101) // 2 / 2)
    with pytest.raises(InputError, match=r"found 101 different numbers, such as 0\.5"):
        plot.draw_domains(points, np.arange(101) + 0.5)


def test_large_sections_are_thinned_evenly_and_say_so(monkeypatch):
    from amilst_lite.plot import sections as module

    rng = np.random.default_rng(0)
    # a disc of uniform density and a smaller, denser one
    points = np.concatenate([_disc(rng, 6000, 1.0), _disc(rng, 2000, 0.3)])
    codes = np.repeat([0, 1], [6000, 2000])
    monkeypatch.setattr(module, "_MOST_DRAWN", 1000)
    shown, sides = module._thinned(points, [np.flatnonzero(codes == i) for i in (0, 1)])
    for own, side, n_own in zip(shown, sides, (6000, 2000), strict=True):
        assert 0.75 * n_own / 8 <= len(own) <= n_own / 8 and (np.diff(own) > 0).all()
        cells = np.floor((points[own] - points[codes == codes[own[0]]].min(axis=0)) / side)
        assert len(np.unique(cells, axis=0)) == len(own)  # one in each square
        # no spot is farther from a drawn one than the diagonal of a square: the discs leave no gaps
        distance = np.linalg.norm(points[codes == codes[own[0]]][:, None] - points[own], axis=2).min(axis=1)
        assert distance.max() <= np.sqrt(2) * side
    figure = plot.draw_domains(points, codes, sections=np.array(["large", "small"])[codes])
    notes = [text.get_text() for text in figure.texts]
    n_drawn = sum(map(len, shown))
    assert any(f"{n_drawn:,} of 8,000 spots are drawn" in note for note in notes)
    drawn = [axis.collections[0] for axis in figure.axes if axis.collections]
    assert sum(len(discs.get_offsets()) for discs in drawn) == n_drawn
    legend = [text.get_text() for axis in figure.axes for text in _legend_texts(axis)]
    assert {"0  (6,000)", "1  (2,000)"} <= set(legend)  # numbers count all spots
    monkeypatch.setattr(module, "_MOST_DRAWN", 8000)
    assert module._thinned(points, [np.arange(8000)])[1] == [0.0]


def _disc(rng, n, radius):
    angle, distance = 2 * np.pi * rng.random(n), radius * np.sqrt(rng.random(n))
    return np.stack([distance * np.cos(angle), distance * np.sin(angle)], axis=1)


def _legend_texts(axis):
    return [] if axis.get_legend() is None else axis.get_legend().get_texts()
