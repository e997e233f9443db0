"""Images of the tissue in the report, and the unit of its map."""

import base64
import io
import json
import re

import numpy as np
import pytest

import amilst_lite as amilst
from amilst_lite import report
from amilst_lite.errors import AmilstWarning
from amilst_lite.plot.image import as_rgb, reduced
from amilst_lite.report import tissue

image_module = pytest.importorskip("matplotlib.image")

QUICK = {"epochs": 3, "n_networks": 1, "n_init": 4}
PIXEL = 0.25  # µm of a pixel, in which the coordinates are
SCALE = 0.1  # pixels of the image for one of these


def painted(points, colors, size):
    """A white image with a square of 21 × 21 pixels around each spot in its color."""
    image = np.ones((*size[::-1], 3), dtype=np.float32)
    for (x, y), color in zip(np.rint(points * SCALE - 0.5).astype(int), colors, strict=True):
        image[y - 10 : y + 11, x - 10 : x + 11] = color
    return image


@pytest.fixture(scope="module")
def run():
    """A section whose image shows the true domain of every spot, red in one and blue in the others."""
    adata = amilst.simulate_section(200, 40, 3, seed=1)
    points = adata.obsm["spatial"]
    adata.obsm["spatial"] = (points - points.min(axis=0) + 300) / PIXEL
    size = np.ceil((np.ptp(points, axis=0) + 600) / PIXEL * SCALE).astype(int)
    inside = adata.obs["ground_truth"] == adata.obs["ground_truth"].cat.categories[0]
    colors = np.where(inside.to_numpy()[:, None], [0.8, 0.1, 0.1], [0.1, 0.1, 0.8])
    adata.uns["spatial"] = {
        "slide": {
            "images": {"hires": painted(adata.obsm["spatial"], colors, size)},
            "scalefactors": {"tissue_hires_scalef": SCALE, "spot_diameter_fullres": 55 / PIXEL},
        }
    }
    adata.uns["amilst_input"] = {"micrometers_per_unit": PIXEL, "coordinate_unit": "pixel"}
    amilst.identify_domains(adata, 3, **QUICK)
    return adata


def meta_of(path):
    return json.loads(re.search(r'id="meta">(.*?)</script>', path.read_text())[1])


def decoded(one):
    return image_module.imread(io.BytesIO(base64.b64decode(one["src"].split(",")[1])), format="jpeg")


def places_of(adata, meta):
    """Where the spots are on the map."""
    (section,) = meta["sections"]
    return (adata.obsm["spatial"] - section["low"]) * section["unit"] + section["place"]


@pytest.mark.parametrize("side", [1600, 120])
def test_the_image_lies_below_the_spots(run, tmp_path, monkeypatch, side):
    """Whole, and reduced three times or more."""
    monkeypatch.setattr(tissue, "_SIDE", side)
    meta = meta_of(report.write_report(run, tmp_path / "r.html"))
    (one,) = meta["images"]
    image = decoded(one)
    x0, y0, x1, y1 = one["box"]
    height, width = image.shape[:2]
    assert max(height, width) <= side and (x1 - x0) / width == pytest.approx((y1 - y0) / height)
    at = ((places_of(run, meta) - [x0, y0]) / [x1 - x0, y1 - y0] * [width, height]).astype(int)
    found = image[at[:, 1], at[:, 0]].astype(float)
    inside = (run.obs["ground_truth"] == run.obs["ground_truth"].cat.categories[0]).to_numpy()
    assert (found[inside, 0] > found[inside, 2] + 40).all() and (
        found[~inside, 0] < found[~inside, 2] - 40
    ).all()
    assert meta["diameter_over_image"] == pytest.approx(55) and meta["scaled"]


def test_a_large_image_becomes_small(run, tmp_path, monkeypatch):
    noisy = run.copy()
    noise = np.random.default_rng(0).integers(0, 256, (1100, 1300, 3), dtype=np.uint8)
    noisy.uns["spatial"]["slide"]["images"]["hires"] = noise
    whole = len(meta_of(report.write_report(noisy, tmp_path / "r.html"))["images"][0]["src"])
    assert whole > 300_000
    monkeypatch.setattr(tissue, "_BYTES", 100_000)
    (one,) = meta_of(report.write_report(noisy, tmp_path / "r.html"))["images"]
    assert len(base64.b64decode(one["src"].split(",")[1])) <= 100_000


@pytest.mark.parametrize("change", ["no image", "no scale", "elsewhere", "no matplotlib"])
def test_without_an_image(run, tmp_path, monkeypatch, change):
    adata = run.copy()
    library = adata.uns["spatial"]["slide"]
    if change == "no image":
        library["images"] = {}
    elif change == "no scale":
        del library["scalefactors"]["tissue_hires_scalef"]
    elif change == "elsewhere":  # the image of another section
        adata.obsm["spatial"] = adata.obsm["spatial"] + 10**6
    else:
        monkeypatch.setitem(__import__("sys").modules, "matplotlib.image", None)
    meta = meta_of(report.write_report(adata, tmp_path / "r.html"))
    assert meta["images"] == []


def test_an_image_that_cannot_be_read_is_left_out_with_a_warning(run, tmp_path):
    adata = run.copy()
    library = adata.uns["spatial"]["slide"]
    library["images"] = {}
    library["metadata"] = {"hires_image_path": str(tmp_path / "missing.png")}
    with pytest.warns(AmilstWarning, match="tissue image is not used"):
        meta = meta_of(report.write_report(adata, tmp_path / "r.html"))
    assert meta["images"] == []


def test_sections_have_their_images_and_one_physical_scale(run, tmp_path):
    """The second section was scanned at twice the resolution; on the map it is as large as the first."""
    import anndata as ad

    parts = {"a": run, "b": run.copy()}
    parts["b"].obsm["spatial"] = parts["b"].obsm["spatial"] * 2
    adata = ad.concat(parts, label="section", index_unique="-")
    library = run.uns["spatial"]["slide"]
    factors = library["scalefactors"]
    adata.uns["spatial"] = {
        "a": library | {"scalefactors": factors | {"microns_per_pixel": PIXEL}},
        "b": library
        | {"scalefactors": factors | {"microns_per_pixel": PIXEL / 2, "tissue_hires_scalef": SCALE / 2}},
    }
    amilst.identify_domains(adata, 3, sample_key="section", key_added="joint", **QUICK)
    meta = meta_of(report.write_report(adata, tmp_path / "r.html", key_added="joint"))
    sizes = [np.ptp(np.reshape(section["frame"], (2, 2)), axis=0) for section in meta["sections"]]
    np.testing.assert_allclose(sizes[0], sizes[1], rtol=1e-3)
    np.testing.assert_allclose(sizes[0], np.ptp(run.obsm["spatial"], axis=0) * PIXEL, rtol=1e-3)
    assert [one["section"] for one in meta["images"]] == [0, 1] and meta["scaled"]
    boxes = [np.subtract(one["box"][2:], one["box"][:2]) for one in meta["images"]]
    np.testing.assert_allclose(boxes[0], boxes[1], rtol=0.02)
    # exported coordinates remain those of the data
    for section, part in zip(meta["sections"], parts.values(), strict=True):
        np.testing.assert_allclose(section["low"], part.obsm["spatial"].min(axis=0))
        assert section["step"] * 65_535 == pytest.approx(np.ptp(part.obsm["spatial"], axis=0).max())
    del adata.uns["spatial"]["b"]["scalefactors"]["microns_per_pixel"]
    meta = meta_of(report.write_report(adata, tmp_path / "r.html", key_added="joint"))
    assert not meta["scaled"]  # of one section the unit is unknown


def test_images_of_all_kinds_are_rgb():
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (6, 5, 3), dtype=np.uint8)
    np.testing.assert_array_equal(as_rgb(rgb), rgb)
    np.testing.assert_array_equal(as_rgb(rgb / np.float32(255)), rgb)
    gray = rgb[:, :, 0]
    for one in (gray, gray[:, :, None], gray / 255):
        np.testing.assert_array_equal(as_rgb(one), np.repeat(gray[:, :, None], 3, axis=2))
    opacity = np.full((6, 5, 1), 0, dtype=np.uint8)
    opacity[2:] = 255
    over_white = as_rgb(np.concatenate([rgb, opacity], axis=2))
    assert (over_white[:2] == 255).all() and (over_white[2:] == rgb[2:]).all()
    deep = rng.integers(0, 4096, (60, 50), dtype=np.uint16)  # a fluorescence image of 12 bits
    shown = as_rgb(deep)[:, :, 0]
    assert shown.max() == 255 and np.corrcoef(shown.ravel(), deep.ravel())[0, 1] > 0.999


def test_reduced_images_are_means_of_squares():
    image = np.random.default_rng(0).random((13, 11, 3))
    found = reduced(image, 4)
    assert found.shape == (3, 2, 3)
    np.testing.assert_allclose(found[1, 0], image[4:8, :4].mean(axis=(0, 1)), rtol=1e-6)
    assert reduced(image[:, :, 0], 4).shape == (3, 2, 1)
