"""Scale bars: where the unit of the coordinates is known, and how long they are."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from amilst_lite import io, plot
from amilst_lite.errors import InputError

pytest.importorskip("matplotlib")

from amilst_lite.plot.units import micrometers_of, scale_bar


def _bar(figure):
    """Length in inches and label of the scale bar; None without one."""
    bars = [line for line in figure.findobj() if line.get_gid() == "scale bar"]
    if not bars:
        return None
    label = next(
        text.get_text() for text in figure.texts if text.get_text().endswith(" mm") or "µm" in text.get_text()
    )
    return float(np.ptp(bars[0].get_xdata())) * figure.get_figwidth(), label


def _units_per_inch(axis):
    axis.figure.draw_without_rendering()
    return float(np.ptp(axis.get_xlim()) / axis.get_window_extent().width * axis.figure.dpi)


@pytest.mark.parametrize(
    ("extent", "length", "label"),
    [
        (6500, 1000, "1 mm"),
        (8000, 2000, "2 mm"),
        (400, 100, "100 µm"),
        (90, 20, "20 µm"),
        (1.5, 0.2, "200 nm"),
    ],
)
def test_length_and_label(extent, length, label):
    found, text = scale_bar(extent)
    assert found == pytest.approx(length) and text == label


@pytest.mark.parametrize("extent", np.geomspace(0.01, 1e6, 41))
def test_a_bar_is_a_round_share_of_the_extent(extent):
    length, _ = scale_bar(extent)
    assert extent / 10 - 1e-9 <= length <= extent / 4
    assert f"{length:e}"[0] in "125" and float(f"{length:.0e}") == pytest.approx(length)


@pytest.mark.parametrize("size", [1.0, 0.37])
def test_the_bar_has_its_length_in_the_scale_of_the_panels(size):
    points = np.random.default_rng(0).uniform(size=(200, 2)) * [4000, 2500]
    figure = plot.draw_domains(
        points, np.arange(200) % 3, refined=np.arange(200) % 3, micrometers_per_unit=size
    )
    inches, label = _bar(figure)
    micrometers = {"1 mm": 1000, "200 µm": 200}[label]
    assert inches * _units_per_inch(figure.axes[0]) * size == pytest.approx(micrometers)


def test_no_bar_without_a_unit():
    assert _bar(plot.draw_domains(np.random.default_rng(0).uniform(size=(50, 2)), np.arange(50) % 3)) is None
    with pytest.raises(InputError, match="micrometers_per_unit must be positive"):
        plot.draw_domains(np.zeros((3, 2)), [0, 1, 1], micrometers_per_unit=0.0)
    with pytest.raises(InputError, match="micrometers_per_unit must be positive"):
        plot.domains(_visium(), "domain", micrometers_per_unit=float("nan"))


def _visium(pitch=137.9, angle=0.1):
    """20 × 10 spots of a Visium slide, rotated, in pixels; the recorded diameter is 70 % of the distance."""
    row, column = np.divmod(np.arange(200), 10)
    column = 2 * column + row % 2
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    points = np.column_stack([column / 2, row * np.sqrt(0.75)]) @ turn * pitch + 1000
    adata = ad.AnnData(
        np.zeros((200, 1), dtype=np.float32),
        obs=pd.DataFrame(
            {"array_row": row, "array_col": column, "domain": (row > 9).astype(str)},
            index=[f"spot{i}" for i in range(200)],
        ),
        obsm={"spatial": points},
    )
    adata.uns["spatial"] = {"lib": {"scalefactors": {"spot_diameter_fullres": 0.7 * pitch}}}
    return adata


def _found(adata, basis="spatial"):
    library = adata.uns["spatial"]["lib"]
    return micrometers_of(adata, library, adata.obsm["spatial"], np.ones(adata.n_obs, bool), basis=basis)


def test_visium_by_the_distance_of_its_spots():
    """The recorded diameter is not that of a spot, 55 µm."""
    assert _found(_visium()) == pytest.approx(100 / 137.9, rel=1e-9)
    figure = plot.domains(_visium(), "domain")
    inches, label = _bar(figure)
    assert label == "200 µm"
    assert inches * _units_per_inch(figure.axes[0]) == pytest.approx(2 * 137.9)


@pytest.mark.parametrize(
    "change", ["grid", "indices", "shuffled", "no scale factors", "no columns", "missing", "other basis"]
)
def test_no_unit_is_guessed(change):
    adata = _visium()
    if change == "grid":  # spots at every place
        adata.obs["array_col"] = np.arange(200) % 10
    elif change == "indices":
        adata.obsm["spatial"] = adata.obs[["array_col", "array_row"]].to_numpy(dtype=float)
    elif change == "shuffled":
        adata.obsm["spatial"] = np.random.default_rng(0).permutation(adata.obsm["spatial"])
    elif change == "no scale factors":
        adata.uns["spatial"] = {"lib": {}}
    elif change == "no columns":
        del adata.obs["array_row"]
    elif change == "missing":
        adata.obs["array_row"] = np.append(np.nan, np.arange(199))
    assert _found(adata, "X_umap" if change == "other basis" else "spatial") is None


@pytest.mark.parametrize(
    ("source", "factors", "expected"),
    [
        ({"coordinate_unit": "micrometer"}, {}, 1.0),
        ({"coordinate_unit": "pixel", "micrometers_per_unit": 0.27}, {}, 0.27),
        ({"coordinate_unit": "pixel"}, {"microns_per_pixel": 0.5}, 0.5),
        ({"coordinate_unit": "pixel"}, {}, None),
        ({"coordinate_unit": "spot"}, {}, None),
        ({"coordinate_unit": "unknown"}, {"spot_diameter_fullres": 55.0}, None),
        ({}, {}, None),
    ],
)
def test_recorded_units(source, factors, expected):
    adata = _visium()
    del adata.obs["array_row"]
    adata.uns["amilst_input"] = source
    adata.uns["spatial"] = {"lib": {"scalefactors": factors}}
    assert _found(adata) == expected
    assert (_bar(plot.domains(adata, "domain")) is None) == (expected is None)


def test_sections_of_different_units_have_one_physical_scale():
    """The same section in pixels of two sizes is drawn at the same size."""
    parts = {"a": _visium(100.0, 0.0), "b": _visium(300.0, 0.0)}
    adata = ad.concat(parts, label="section", index_unique="-")
    adata.uns["spatial"] = {name: {"scalefactors": {"spot_diameter_fullres": 55.0}} for name in parts}
    figure = plot.domains(adata, "domain", sample_key="section")
    first, second = (_units_per_inch(axis) for axis in figure.axes[:2])
    assert second == pytest.approx(3 * first)
    inches, label = _bar(figure)
    assert label == "200 µm" and inches * first == pytest.approx(200)
    # a section of an unknown unit: no common scale
    del adata.uns["spatial"]["b"]["scalefactors"]
    figure = plot.domains(adata, "domain", sample_key="section")
    assert _bar(figure) is None
    first, second = (_units_per_inch(axis) for axis in figure.axes[:2])
    assert second == pytest.approx(first)


def test_a_real_visium_section(shared_dir):
    adata = io.read(shared_dir / "formats" / "visium_spaceranger1")
    adata.obs["domain"] = "1"
    recorded = _bar(plot.domains(adata, "domain", image=False))
    assert recorded[1] == "1 mm"
    del adata.uns["amilst_input"]  # as scanpy reads it
    assert _bar(plot.domains(adata, "domain", image=False)) == (pytest.approx(recorded[0], rel=1e-3), "1 mm")
