"""The output folder of a run."""

import errno
import json
import math
import os
import sys

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import amilst_lite as amilst
from amilst_lite import results
from amilst_lite.errors import AmilstWarning, InputError, MissingKeyError

QUICK = {"epochs": 3, "n_networks": 1, "n_init": 4}
TABLES = {"markers.csv", "enrichment.csv", "shapes.csv", "composition.csv", "connectivity.csv"}
DATA = {"result.h5ad", "domains.csv", "run.json"} | TABLES
FIGURES = {"domains.png", "losses.png", "markers.png", "shrinkage.png"}
ALL = DATA | FIGURES | {"report.html"}


@pytest.fixture(scope="module")
def section():
    return amilst.simulate_section(200, 40, 3, seed=1)


@pytest.fixture(scope="module")
def done(section):
    adata = section.copy()
    amilst.identify_domains(adata, 3, **QUICK)
    return adata


def read_record(folder):
    """run.json by a strict parser."""

    def refuse(constant):
        raise ValueError(f"{constant} is not JSON")

    return json.loads((folder / "run.json").read_text(encoding="utf-8"), parse_constant=refuse)


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_files_and_record(done, tmp_path):
    summary = amilst.write_results(done, tmp_path, source="here", annotation="ground_truth")
    assert names(tmp_path) == ALL
    table = pd.read_csv(tmp_path / "domains.csv", dtype={"domain": str})
    assert list(table.columns) == ["spot", "domain", "refined_domain", "probability"]
    assert list(table["domain"]) == list(done.obs["amilst_domain"])
    record = read_record(tmp_path)
    assert record["scores"]["domain"]["ari"] == pytest.approx(summary["scores"]["domain"]["ari"])
    assert record["scores"]["domain"] == amilst.score(done, "ground_truth")
    assert {"config", "versions", "device", "seconds", "peak_memory", "estimate"} <= set(record)
    assert record["selection"] == {}
    for name in ("shrinkage", "network_share"):
        found = done.uns["amilst"][name]
        assert set(record[name]) == set(found)
        for key, value in found.items():
            written = np.array(record[name][key], dtype=float)
            np.testing.assert_allclose(written, value, err_msg=key)
    assert record["input"] == "here" and record["seed"] == 0
    assert record["sample_key"] is None and record["warnings"] == record["left_out"] == []
    assert set(record["files"]) == ALL


@pytest.fixture(scope="module")
def joint(section):
    """Two sections after a joint run."""
    adata = ad.concat({"first": section, "second": section}, label="section", index_unique="-")
    amilst.identify_domains(adata, 3, sample_key="section", **QUICK)
    return adata


def test_figures_of_several_sections(joint, tmp_path, monkeypatch):
    drawn = {}
    save = results.plot.save

    def keep(figure, path):
        drawn[path.name] = figure
        save(figure, path)

    monkeypatch.setattr(results.plot, "save", keep)
    summary = amilst.write_results(joint, tmp_path, annotation="ground_truth")
    assert names(tmp_path) == ALL | {"composition.png"} and summary["left_out"] == []
    assert "composition.png" in read_record(tmp_path)["files"]
    panels = [axis for axis in drawn["domains.png"].axes if axis.collections]
    # annotation, domains, refined domains and confidence of each section, and the color bar
    assert len(panels) == 2 * 4 + 1
    assert [axis.texts[0].get_text() for axis in panels[:8:4]] == ["first", "second"]
    bars = drawn["composition.png"].axes[0]
    assert [text.get_text() for text in bars.get_yticklabels()] == ["first  (200)", "second  (200)"]


def test_no_composition_of_one_section(joint, tmp_path, light_figures):
    adata = joint[joint.obs["section"] == "first"].copy()
    (tmp_path / "composition.png").write_bytes(b"of other domains")
    assert amilst.write_results(adata, tmp_path)["left_out"] == []
    assert names(tmp_path) == ALL


def test_missing_folder_is_created(done, tmp_path, light_figures):
    amilst.write_results(done, tmp_path / "a" / "b")
    assert names(tmp_path / "a" / "b") == ALL
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file; expected the name of a folder"):
        amilst.write_results(done, tmp_path / "file")


def test_anndata_without_a_run_is_refused(section, done, tmp_path):
    with pytest.raises(MissingKeyError, match="no results under key_added='amilst'.*identify_domains first"):
        amilst.write_results(section, tmp_path / "out")
    with pytest.raises(MissingKeyError, match="no results under key_added='other'"):
        amilst.write_results(done, tmp_path / "out", key_added="other")
    with pytest.raises(MissingKeyError, match="no column 'layer'"):
        amilst.write_results(done, tmp_path / "out", annotation="layer")
    assert not (tmp_path / "out").exists()


def test_result_of_a_gpu_is_written_on_any_machine(done, tmp_path, light_figures):
    adata = done.copy()
    adata.uns["amilst"] |= {"device": "cuda:7", "peak_memory": {"ram_bytes": 11, "vram_bytes": 22}}
    amilst.write_results(adata, tmp_path)
    record = read_record(tmp_path)
    assert record["device"] == "cuda:7" and record["peak_memory"] == {"ram_bytes": 11, "vram_bytes": 22}


@pytest.mark.filterwarnings("ignore:.*csv was left out")  # one domain has no markers and no contacts
def test_undefined_numbers_become_null(done, tmp_path, light_figures):
    adata = done.copy()
    table = {"n_domains": [2, 3], "log_likelihood": [np.nan, -0.5]}
    adata.uns["amilst"]["selection"] = {name: np.array(column) for name, column in table.items()}
    adata.obs["amilst_domain"] = pd.Categorical(["1"] * 200)  # one domain has no silhouette
    amilst.write_results(adata, tmp_path)
    record = read_record(tmp_path)
    assert record["scores"]["domain"]["silhouette"] is None
    assert record["selection"]["log_likelihood"] == [None, -0.5]
    found = np.array(record["shrinkage"]["log_likelihood"], dtype=float)
    np.testing.assert_array_equal(found, adata.uns["amilst"]["shrinkage"]["log_likelihood"])
    assert np.isnan(found).any()  # shares that were not tried


def test_records_of_earlier_versions_are_written(done, tmp_path, light_figures):
    adata = done.copy()
    for name in ("shrinkage", "network_share"):
        del adata.uns["amilst"][name]
    amilst.write_results(adata, tmp_path)
    record = read_record(tmp_path)
    assert record["shrinkage"] == record["network_share"] == {} and record["left_out"] == []


def test_json_of_every_type(tmp_path):
    value = {
        1: (np.float32(0.5), np.int64(2), np.bool_(True), math.inf, -math.inf, math.nan),
        "array": np.array([[1.0, np.nan]]),
        "path": tmp_path,
        "text": "µm",
        "none": None,
    }
    assert json.loads(results.to_json(value)) == {
        "1": [0.5, 2, True, None, None, None],
        "array": [[1.0, None]],
        "path": str(tmp_path),
        "text": "µm",
        "none": None,
    }


def test_warnings_are_recorded(section, tmp_path, light_figures):
    adata = section.copy()
    adata.X = adata.X.log1p()
    with pytest.warns(AmilstWarning, match="integers"):
        amilst.identify_domains(adata, 3, **QUICK)
    adata.write_h5ad(tmp_path / "a.h5ad")
    adata = ad.read_h5ad(tmp_path / "a.h5ad")
    amilst.write_results(adata, tmp_path / "out", earlier_warnings=["while reading"])
    first, second = read_record(tmp_path / "out")["warnings"]
    assert first == "while reading" and "integers" in second


# --- side products that fail ----------------------------------------------------------------


def fail(*_, **__):
    raise RuntimeError("the pen\nis empty")


@pytest.mark.parametrize(
    ("module", "function", "file"),
    [
        (results.plot, "domains", "domains.png"),
        (results.plot, "losses", "losses.png"),
        (results.analysis, "umap", "umap.png"),
    ],
)
def test_failed_figure_is_left_out_with_a_warning(
    done, tmp_path, monkeypatch, module, function, file, light_figures
):
    monkeypatch.setattr(module, function, fail)
    with pytest.warns(AmilstWarning, match=f"{file} was left out: the pen is empty"):
        summary = amilst.write_results(done, tmp_path, umap=function == "umap")
    assert names(tmp_path) == ALL - {file}
    record = read_record(tmp_path)
    assert record["left_out"] == [f"{file}: the pen is empty"]
    assert record["warnings"] == [f"{file} was left out: the pen is empty"]
    assert set(record["files"]) == set(summary["files"]) == names(tmp_path)


def test_figure_that_fails_while_it_is_saved_leaves_no_file(done, tmp_path, monkeypatch):
    def save(figure, path):
        path.write_bytes(b"half a figure")
        raise ValueError("mathtext")

    monkeypatch.setattr(results.plot, "save", save)
    with pytest.warns(AmilstWarning, match="mathtext"):
        amilst.write_results(done, tmp_path)
    assert names(tmp_path) == ALL - FIGURES


@pytest.mark.filterwarnings("ignore::amilst_lite.errors.AmilstWarning")
def test_labels_and_images_that_cannot_be_drawn_do_not_lose_the_run(done, tmp_path):
    adata = done.copy()
    labels = np.where(np.arange(200) < 100, r"$\frac{0}$", "b")
    adata.obs["layer"] = pd.Categorical(labels)
    (tmp_path / "image.png").write_bytes(b"\x89PNG truncated")
    library = adata.uns["spatial"]["simulated"]
    library["images"] = {"hires": str(tmp_path / "image.png")}
    library["metadata"] = {"source_image_path": str(tmp_path / "image.png")}
    amilst.write_results(adata, tmp_path / "out", annotation="layer")
    assert {"result.h5ad", "domains.csv", "run.json"} <= names(tmp_path / "out")
    assert read_record(tmp_path / "out")["scores"]["domain"]["n_scored"] == 200


def test_an_interrupted_write_changes_nothing(done, tmp_path, monkeypatch):
    (tmp_path / "run.json").write_text("earlier")
    (tmp_path / "notes.txt").write_text("kept")

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(results.plot, "domains", interrupt)
    with pytest.raises(KeyboardInterrupt):
        amilst.write_results(done, tmp_path)
    assert names(tmp_path) == {"run.json", "notes.txt"}
    assert (tmp_path / "run.json").read_text() == "earlier"


@pytest.mark.parametrize("place", ["table", "figure", "h5ad", "model"])
def test_a_full_disk_changes_nothing(done, tmp_path, monkeypatch, place):
    (tmp_path / "run.json").write_text("earlier")

    def fail(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fail_with_message(*_, **__):
        try:
            fail()
        except OSError as error:
            raise InputError("cannot be saved") from error

    owner, name, action = {
        "table": (pd.DataFrame, "to_csv", fail),
        "figure": (results.plot, "save", fail_with_message),
        "h5ad": (results.io, "write_h5ad", fail),
        "model": (amilst.AMILST, "save", fail_with_message),
    }[place]
    monkeypatch.setattr(owner, name, action)
    model = amilst.AMILST(3)
    model.fitted_ = object()  # `save` is replaced
    if place != "model":
        model = None
    with pytest.raises(InputError, match=r"cannot be written \(No space left on device\)\. Free some space"):
        amilst.write_results(done, tmp_path, model=model)
    assert names(tmp_path) == {"run.json"}
    assert (tmp_path / "run.json").read_text() == "earlier"


def test_files_that_disappear_meanwhile_are_noticed(done, tmp_path, monkeypatch, light_figures):
    """As when OUT is removed while its last files are being written."""
    out = tmp_path / "out"

    def removing(adata, path, **_):
        (path.parent / "result.h5ad").unlink()

    monkeypatch.setattr(results, "write_report", removing)
    with pytest.raises(InputError, match=r"out cannot be written \(its files have disappeared\)"):
        amilst.write_results(done, out)
    assert not out.exists() and list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore::amilst_lite.errors.AmilstWarning")
def test_failed_scores_do_not_lose_the_run(done, tmp_path, light_figures):
    adata = done.copy()
    adata.obs["sparse"] = pd.Series([None] * 199 + ["a"], index=adata.obs_names, dtype=object)
    amilst.write_results(adata, tmp_path, annotation="sparse")
    assert {"result.h5ad", "domains.csv", "run.json"} <= names(tmp_path)
    record = read_record(tmp_path)
    assert record["scores"] == {}
    assert "scores: Agreement needs at least 2 spots" in record["left_out"][0]


def test_data_that_h5ad_cannot_hold_leaves_the_rest(done, tmp_path, light_figures):
    adata = done.copy()
    adata.uns["mine"] = object()
    with pytest.warns(AmilstWarning, match=r"result\.h5ad was left out"):
        amilst.write_results(adata, tmp_path)
    assert names(tmp_path) == ALL - {"result.h5ad"}


def test_without_matplotlib_the_rest_is_written(done, tmp_path, monkeypatch):
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.warns(AmilstWarning, match=r"amilst-lite\[plot\]"):
        summary = amilst.write_results(done, tmp_path)
    assert names(tmp_path) == ALL - FIGURES
    assert len(summary["left_out"]) == len(FIGURES)


def test_files_of_an_earlier_run_do_not_remain(done, tmp_path, light_figures):
    (tmp_path / "umap.png").write_bytes(b"of other domains")
    (tmp_path / "notes.txt").write_text("of the user")
    amilst.write_results(done, tmp_path)
    assert names(tmp_path) == ALL | {"notes.txt"}
    assert "notes.txt" not in read_record(tmp_path)["files"]


# --- data on disk ---------------------------------------------------------------------------


def test_counts_on_disk_give_the_same_and_are_not_copied(section, done, tmp_path, light_figures):
    with_raw = section.copy()
    with_raw.raw = section
    with_raw.layers["other"] = section.X
    with_raw.write_h5ad(tmp_path / "section.h5ad")
    adata = ad.read_h5ad(tmp_path / "section.h5ad", backed="r")
    amilst.identify_domains(adata, 3, **QUICK)
    np.testing.assert_array_equal(adata.obsm["X_amilst"], done.obsm["X_amilst"])
    summary = amilst.write_results(adata, tmp_path / "out")
    expected = ["markers.csv", "shapes.csv", "X in result.h5ad", "raw in result.h5ad"]
    assert [line.split(":")[0] for line in summary["left_out"]] == expected
    back = ad.read_h5ad(tmp_path / "out" / "result.h5ad")
    assert back.X is None and back.shape == adata.shape
    assert (back.layers["other"] != section.X).nnz == 0
    np.testing.assert_array_equal(back.obsm["X_amilst"], done.obsm["X_amilst"])


def test_raw_in_memory_is_kept_beside_counts_on_disk(done, section, tmp_path, light_figures):
    import h5py

    with h5py.File(tmp_path / "counts.h5", "w") as file:
        dataset = file.create_dataset("X", data=section.X.toarray())
        raw = {"X": section.X, "var": section.var.assign(length=1.0), "varm": {"w": np.ones((40, 2))}}
        slots = {"obsm": done.obsm, "obsp": done.obsp, "uns": done.uns}
        adata = ad.AnnData(dataset, obs=done.obs, var=done.var, raw=raw, **slots)
        summary = amilst.write_results(adata, tmp_path / "out")
    assert [line.split(":")[0] for line in summary["left_out"]] == [
        "markers.csv",
        "shapes.csv",
        "X in result.h5ad",
    ]
    back = ad.read_h5ad(tmp_path / "out" / "result.h5ad")
    assert back.X is None and (back.raw.X != section.X).nnz == 0
    assert list(back.raw.var["length"]) == [1.0] * 40
    np.testing.assert_array_equal(back.raw.varm["w"], np.ones((40, 2)))


def test_file_that_is_read_is_not_overwritten(section, tmp_path):
    section.write_h5ad(tmp_path / "result.h5ad")
    before = (tmp_path / "result.h5ad").read_bytes()
    adata = ad.read_h5ad(tmp_path / "result.h5ad", backed="r")
    amilst.identify_domains(adata, 3, **QUICK)
    with pytest.raises(InputError, match="would be overwritten"):
        amilst.write_results(adata, tmp_path)
    assert (tmp_path / "result.h5ad").read_bytes() == before


def test_table_of_spots_is_written_in_blocks(tmp_path, monkeypatch):
    from amilst_lite import keys

    names = keys.ResultKeys()
    obs = pd.DataFrame(
        {
            names.domain: pd.Categorical(["1", "2", "1", "1", "2"]),
            names.refined: pd.Categorical(["1", "2", "2", "1", "2"]),
            names.confidence: np.array([0.5, 0.25, 1.0, 0.125, 0.75], np.float32),
        },
        index=[f"spot, {i}" for i in range(5)],
    )
    adata = ad.AnnData(obs=obs)
    results._write_domains(adata, names, tmp_path / "whole.csv")
    monkeypatch.setattr(results, "_ROWS", 2)
    results._write_domains(adata, names, tmp_path / "blocks.csv")
    assert (tmp_path / "blocks.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    table = pd.read_csv(tmp_path / "blocks.csv", dtype={"domain": str, "refined_domain": str})
    assert table["spot"].tolist() == list(adata.obs_names)
    assert table["refined_domain"].tolist() == ["1", "2", "2", "1", "2"]
    np.testing.assert_array_equal(table["probability"], obs[names.confidence])
