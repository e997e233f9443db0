import itertools
import os
import subprocess
import sys
import textwrap

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from amilst_lite import plot
from amilst_lite.errors import AmilstWarning, InputError, MissingExtraError, MissingKeyError
from amilst_lite.metrics import adjusted_rand_index
from amilst_lite.simulate import simulate_tissue

matplotlib = pytest.importorskip("matplotlib")

from matplotlib.collections import EllipseCollection  # noqa: E402
from matplotlib.colors import to_hex  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.image import imread, imsave  # noqa: E402


@pytest.fixture(scope="module")
def tissue():
    return simulate_tissue(300, 30, 4, seed=1)


@pytest.fixture
def adata(tissue):
    """A section after a run: domains "1".."4" with some mistakes, refined ones, an annotation with gaps."""
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
    return ad.AnnData(tissue.counts, obs=obs, obsm={"spatial": tissue.coordinates})


def _titles(figure):
    return [axis.get_title(loc="left") for axis in figure.axes if axis.get_title(loc="left")]


def _panel(figure, title):
    return next(axis for axis in figure.axes if axis.get_title(loc="left").startswith(title))


def _discs(axis):
    return next(item for item in axis.collections if isinstance(item, EllipseCollection))


def _spot_colors(axis):
    return np.array([to_hex(color).upper() for color in _discs(axis).get_facecolors()])


def _legend(axis):
    legend = axis.get_legend()
    return {
        text.get_text().rsplit("  (", 1)[0]: to_hex(handle.get_markerfacecolor()).upper()
        for text, handle in zip(legend.get_texts(), legend.legend_handles, strict=True)
    }


def _pixels(figure, path, dpi=60):
    plot.save(figure, path, dpi=dpi)
    return imread(path)


# ----------------------------------------------------------------------------------- the section's figure


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


def test_every_spot_is_where_it_is_in_its_domains_colour(adata):
    axis = _panel(plot.domains(adata), "Domains")
    np.testing.assert_allclose(_discs(axis).get_offsets(), adata.obsm["spatial"])
    expected = np.array(plot.palette(4))[adata.obs["amilst_domain"].astype(int) - 1]
    np.testing.assert_array_equal(_spot_colors(axis), expected)
    assert _legend(axis) == dict(zip("1234", plot.palette(4), strict=True))
    sizes = [int(text.get_text().split("(")[1][:-1]) for text in axis.get_legend().get_texts()]
    assert sizes == list(adata.obs["amilst_domain"].value_counts(sort=False))


def test_y_runs_downwards_and_no_axis_is_stretched(adata):
    axis = _panel(plot.domains(adata), "Domains")
    bottom, top = axis.get_ylim()
    assert bottom > top and axis.get_xlim()[0] < axis.get_xlim()[1]
    assert axis.get_aspect() == 1
    low, high = adata.obsm["spatial"].min(axis=0), adata.obsm["spatial"].max(axis=0)
    assert axis.get_xlim()[0] < low[0] and axis.get_xlim()[1] > high[0]
    assert top < low[1] and bottom > high[1]


def test_the_picture_shows_the_colours_where_the_spots_are(tmp_path):
    """Four big spots at the corners of a square, read back from the PNG itself."""
    corners = np.array([[0.0, 0], [10, 0], [0, 10], [10, 10]])
    figure = plot.draw_domains(corners, ["1", "2", "3", "4"], spot_diameter=9.0)
    pixels = _pixels(figure, tmp_path / "corners.png")[..., :3]
    centre = {}
    for name, color in zip("1234", plot.palette(4), strict=True):
        wanted = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        rows, columns = np.nonzero((np.abs(pixels - wanted) < 0.02).all(axis=-1))
        keep = columns < 0.7 * pixels.shape[1]  # the legend lies to the right
        centre[name] = np.array([columns[keep].mean(), rows[keep].mean()])
    across, down = centre["2"] - centre["1"], centre["3"] - centre["1"]
    assert across[0] > 50 and abs(across[1]) < 3
    assert down[1] == pytest.approx(across[0], rel=0.05) and abs(down[0]) < 3  # y downwards, equal scale
    np.testing.assert_allclose(centre["4"], centre["1"] + across + down, atol=3)


def test_annotation_takes_the_colours_of_the_domains_it_overlaps(adata):
    figure = plot.domains(adata, annotation="layer")
    colors = _legend(_panel(figure, "Annotation"))
    domains = _legend(_panel(figure, "Domains"))
    assert {f"layer {k}": domains[str(k)] for k in range(1, 5)}.items() <= colors.items()
    assert colors["none"] == "#D9D9D9"
    assert (_spot_colors(_panel(figure, "Annotation"))[:20] == "#D9D9D9").all()


def test_more_regions_than_domains_have_colours_of_their_own():
    coordinates = np.random.default_rng(0).uniform(size=(60, 2))
    regions = np.repeat(list("abcdef"), 10)
    domains = np.repeat([0, 1], 30)
    colors = _legend(_panel(plot.draw_domains(coordinates, domains, annotation=regions), "Annotation"))
    assert len(set(colors.values())) == 6
    # one to one: each domain lends its colour once, to one of the regions it covers
    assert next(name for name, color in colors.items() if color == plot.palette(2)[0]) in "abc"
    assert next(name for name, color in colors.items() if color == plot.palette(2)[1]) in "def"


def test_a_domain_keeps_its_colour_whatever_else_is_there(adata):
    part = adata[adata.obs["amilst_domain"] != "1"].copy()
    part.obs["amilst_domain"] = part.obs["amilst_domain"].astype(str)  # the category is forgotten as well
    whole, less = (_legend(_panel(plot.domains(a), "Domains")) for a in (adata, part))
    assert less == {name: color for name, color in whole.items() if name != "1"}
    # whole numbers, as estimators give them, count from zero
    codes = adata.obs["amilst_domain"].astype(int).to_numpy() - 1
    drawn = _panel(plot.draw_domains(adata.obsm["spatial"][codes > 0], codes[codes > 0]), "Domains")
    assert _legend(drawn) == dict(zip("123", plot.palette(4)[1:], strict=True))


def test_colours_can_be_chosen(adata):
    colors = _legend(_panel(plot.domains(adata, colors={"2": "red"}), "Domains"))
    assert colors["2"] == "#FF0000" and colors["1"] == plot.palette(1)[0]
    with pytest.raises(InputError, match="colours"):
        plot.domains(adata, colors={"2": "no such colour"})


def test_confidence_is_drawn_as_numbers(adata):
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
def test_legends_are_in_the_order_a_reader_expects(labels, expected):
    figure = plot.draw_domains(np.arange(8.0).reshape(4, 2), labels)
    assert list(_legend(figure.axes[0])) == expected


def test_three_coordinates_few_spots_and_doubles():
    for coordinates in (
        np.zeros((1, 2)),
        np.zeros((9, 3)),
        np.arange(6.0).reshape(2, 3),
        np.eye(2)[[0] * 8 + [1]],
    ):
        figure = plot.draw_domains(coordinates, np.arange(len(coordinates)))
        np.testing.assert_allclose(_discs(figure.axes[0]).get_offsets(), coordinates[:, :2])
        assert np.isfinite(_diameter(figure)) and _diameter(figure) > 0


# ------------------------------------------------------------------------------------- size and image


def _diameter(figure):
    return 2 * float(_discs(figure.axes[0])._widths[0])  # matplotlib keeps half of it


def test_spot_size_from_the_grid_from_the_record_and_by_hand(adata):
    assert _diameter(plot.domains(adata)) == pytest.approx(95, abs=0.1)  # 100 µm apart
    adata.uns["spatial"] = {"lib": {"scalefactors": {"spot_diameter_fullres": 55.0}}}
    assert _diameter(plot.domains(adata)) == pytest.approx(55)
    assert _diameter(plot.domains(adata, spot_diameter=70)) == pytest.approx(70)
    # a record in another unit than the coordinates is no use
    adata.obsm["spatial"] = adata.obsm["spatial"] / 100
    assert _diameter(plot.domains(adata)) == pytest.approx(0.95, abs=0.001)


@pytest.fixture
def over_image(adata):
    """The section with an image at a twentieth of its resolution: red left of x = 1000, green right of it."""
    pixels = np.zeros((120, 120, 3), dtype=np.uint8)
    pixels[:, :50, 0] = pixels[:, 50:, 1] = 255
    adata.uns["spatial"] = {
        "lib": {
            "images": {"hires": pixels},
            "scalefactors": {"tissue_hires_scalef": 0.05, "spot_diameter_fullres": 55.0},
        }
    }
    return adata


def test_the_image_lies_under_the_spots_at_its_scale(over_image, tmp_path):
    figure = plot.domains(over_image, spot_diameter=5.0)
    axis = figure.axes[0]
    assert axis.images[0].get_extent() == [0, 2400, 2400, 0]
    assert axis.images[0].get_zorder() < _discs(axis).get_zorder()
    pixels = _pixels(figure, tmp_path / "image.png", dpi=100)[..., :3]
    # over white at three quarters: the border from red to green, read back from the picture
    red = (pixels[..., 0] > 0.95) & (pixels[..., 1] < 0.35)
    green = (pixels[..., 1] > 0.95) & (pixels[..., 0] < 0.35)
    edge = 0.5 * (np.nonzero(red)[1].max() + np.nonzero(green)[1].min())
    left, right = np.nonzero(red)[1].min(), np.nonzero(green)[1].max()
    low, high = axis.get_xlim()
    assert (edge - left) / (right - left) == pytest.approx((1000 - low) / (high - low), abs=0.02)


def test_image_only_if_wanted_and_there(over_image):
    assert not plot.domains(over_image, image=False).axes[0].images
    over_image.uns["spatial"]["lib"]["images"] = {}
    assert not plot.domains(over_image).axes[0].images
    with pytest.raises(InputError, match="no image"):
        plot.domains(over_image, image=True)
    with pytest.raises(InputError, match="'auto', True or False"):
        plot.domains(over_image, image="yes")


def test_images_recorded_as_files(over_image, tmp_path):
    library = over_image.uns["spatial"]["lib"]
    path = tmp_path / "tissue_lowres_image.png"
    imsave(path, library["images"].pop("hires"))
    library["scalefactors"]["tissue_lowres_scalef"] = 0.05
    library["metadata"] = {"lowres_image_path": str(path)}
    axis = plot.domains(over_image).axes[0]
    assert axis.images[0].get_extent() == [0, 2400, 2400, 0]
    path.unlink()
    with pytest.warns(AmilstWarning, match="no longer there"):
        assert not plot.domains(over_image).axes[0].images


def test_several_libraries_need_a_name(over_image):
    over_image.uns["spatial"]["other"] = {"scalefactors": {"spot_diameter_fullres": 60.0}}
    figure = plot.domains(over_image)  # neither is taken for the section's
    assert not figure.axes[0].images and _diameter(figure) == pytest.approx(95, abs=0.1)
    assert plot.domains(over_image, library_id="lib").axes[0].images
    assert _diameter(plot.domains(over_image, library_id="other")) == pytest.approx(60)
    with pytest.raises(InputError, match="lib, other"):
        plot.domains(over_image, library_id="third")


def test_a_real_section(shared_dir):
    a = ad.read_h5ad(shared_dir / "data" / "her2st_B1.h5ad")
    a.obs["domain"] = pd.Categorical((np.asarray(a.obsm["spatial"])[:, 0] // 8).astype(int).astype(str))
    figure = plot.domains(a, "domain", annotation="ground_truth")
    assert _diameter(figure) == pytest.approx(0.95)  # array units
    assert "none" in _legend(_panel(figure, "Annotation"))


# --------------------------------------------------------------------------------------- large sections


def test_a_large_section_is_dots_in_a_small_file(tmp_path):
    tissue = simulate_tissue(50_000, 100, 20, layout="blobs", arrangement="cells", median_counts=2)
    figure = plot.draw_domains(tissue.coordinates, tissue.domains)
    assert _discs(figure.axes[0]).get_rasterized()
    plot.save(figure, tmp_path / "large.svg", dpi=100)
    assert (tmp_path / "large.svg").stat().st_size < 2e6
    # no disc is so small that it fades into the page
    inches = figure.axes[0].get_window_extent().width / figure.dpi
    low, high = figure.axes[0].get_xlim()
    assert _diameter(figure) > (high - low) / (inches * 200)
    assert not _discs(
        plot.draw_domains(tissue.coordinates[:500], tissue.domains[:500]).axes[0]
    ).get_rasterized()


# --------------------------------------------------------------------------------------------- palette


def test_the_palette_begins_with_okabe_and_ito_and_never_changes_its_mind():
    assert plot.palette(0) == ()
    assert plot.palette(3) == ("#0072B2", "#E69F00", "#009E73")
    for n in (8, 9, 20, 40):
        assert plot.palette(n) == plot.palette(41)[:n]
    assert len(set(plot.palette(60))) == 60


def _linear(color):
    rgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def _lab(color):
    """CIELAB under D65, another space than the palette was made in."""
    to_xyz = [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
    x, y, z = np.array(to_xyz) @ _linear(color) / [0.95047, 1.0, 1.08883]
    f = [np.cbrt(v) if v > 216 / 24389 else (24389 / 27 * v + 16) / 116 for v in (x, y, z)]
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def test_thirty_colours_can_be_told_apart():
    colors = [_lab(color) for color in (*plot.palette(30), "#FFFFFF", "#D9D9D9")]
    closest = min(np.linalg.norm(a - b) for a, b in itertools.combinations(colors, 2))
    assert closest > 12  # about 2 is just noticeable


# ----------------------------------------------------------------------------------------- other figures


def test_losses_have_a_panel_each(tmp_path):
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
        with pytest.raises(InputError, match="no losses"):
            plot.losses(nothing)


def test_umap_hands_over_and_draws(monkeypatch):
    """Without the wait for UMAP's compiler: the class is replaced."""
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


@pytest.mark.slow
def test_umap_itself_is_the_same_twice():
    pytest.importorskip("umap")
    embedding = np.random.default_rng(0).normal(size=(200, 5)) + np.repeat([0, 8], 100)[:, None]
    first, again = (plot.umap(embedding, np.repeat([0, 1], 100)).axes[0].collections[0] for _ in range(2))
    np.testing.assert_array_equal(first.get_offsets(), again.get_offsets())


# ----------------------------------------------------------------------------------------------- saving


@pytest.mark.parametrize("ending", ["png", "svg", "pdf", "PNG"])
def test_saving_replaces_whole_files_with_the_same_bytes(adata, tmp_path, ending):
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


def test_a_failed_save_leaves_the_old_file_and_nothing_else(adata, tmp_path, monkeypatch):
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


def test_names_that_cannot_be_saved_to(adata, tmp_path):
    figure = plot.domains(adata)
    with pytest.raises(InputError, match=r"\.png, \.svg or \.pdf"):
        plot.save(figure, tmp_path / "figure.jpeg")
    with pytest.raises(InputError, match="does not exist"):
        plot.save(figure, tmp_path / "nowhere" / "figure.png")


def test_notebooks_can_show_it(adata):
    assert plot.domains(adata)._repr_png_().startswith(b"\x89PNG")


# ------------------------------------------------------------------------------------------------ manners


def test_matplotlib_comes_late_and_pyplot_never():
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


def test_the_callers_settings_are_untouched(adata, tmp_path):
    before = dict(matplotlib.rcParams)
    plot.save(plot.domains(adata), tmp_path / "figure.svg", dpi=40)
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(
    ("missing", "extra", "draw"),
    [
        ("matplotlib.figure", "plot", lambda a: plot.domains(a)),
        ("matplotlib.figure", "plot", lambda a: plot.losses({"links": [1.0]})),
        ("umap", "umap", lambda a: plot.umap(np.eye(30), np.arange(30))),
    ],
)
def test_a_missing_extra_is_named(adata, monkeypatch, missing, extra, draw):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(MissingExtraError, match=rf'pip install "amilst-lite\[{extra}\]"'):
        draw(adata)


def test_the_section_is_left_as_it_was(over_image):
    before = over_image.copy()
    plot.domains(
        over_image, refined="amilst_domain_refined", annotation="layer", confidence="amilst_confidence"
    )
    pd.testing.assert_frame_equal(over_image.obs, before.obs)
    assert over_image.uns["spatial"].keys() == before.uns["spatial"].keys() and list(over_image.uns) == [
        "spatial"
    ]
    np.testing.assert_array_equal(over_image.obsm["spatial"], before.obsm["spatial"])


def test_what_is_not_there_is_named(adata):
    with pytest.raises(MissingKeyError, match="amilst_domain_refined"):
        plot.domains(adata, "leiden")
    with pytest.raises(MissingKeyError, match="spatial"):
        plot.domains(adata, basis="X_umap")
    for options in ({"refined": "x"}, {"annotation": "x"}, {"confidence": "x"}):
        with pytest.raises(MissingKeyError, match="'x'"):
            plot.domains(adata, **options)


@pytest.mark.parametrize(
    ("coordinates", "options", "match"),
    [
        (np.zeros((3, 1)), {}, "n × 2"),
        (np.zeros((0, 2)), {}, "n × 2"),
        (np.full((3, 2), np.nan), {}, "finite"),
        (np.zeros((4, 2)), {}, "labels"),
        (np.zeros((3, 2)), {"refined": [1]}, "refined"),
        (np.zeros((3, 2)), {"annotation": [1]}, "annotation"),
        (np.zeros((3, 2)), {"confidence": [1]}, "confidence"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(coordinates, options, match):
    with pytest.raises(InputError, match=match):
        plot.draw_domains(coordinates, [0, 1, 1], **options)
