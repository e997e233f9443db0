"""What readers have returned, in checkpoints."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import amilst_lite as amilst
from amilst_lite import io
from amilst_lite.checkpoint import Checkpoint
from amilst_lite.errors import AmilstWarning, warn
from amilst_lite.io import sections


def section(shift=0.0):
    adata = amilst.simulate_section(40, 60, 2, seed=0)
    adata.obsm["spatial"] = adata.obsm["spatial"] + shift
    adata.obs["n"], adata.obs["text"] = (
        np.arange(40, dtype=np.int32),
        pd.Series(["a", None] * 20, dtype=object).values,
    )
    adata.var["id"] = [f"ENSG{j}" for j in range(60)]
    adata.layers["counts"] = adata.X.copy()
    adata.obsm["more"] = pd.DataFrame({"x": np.arange(40.0)}, index=adata.obs_names)
    adata.uns["amilst_input"] = {
        "platform": "table",
        "left_out": {"spots": 3},
        "image": np.zeros((2, 2, 3), np.uint8),
    }
    return adata


def equal(found, expected):
    for place in ("obs", "var"):
        pd.testing.assert_frame_equal(getattr(found, place), getattr(expected, place))
    for mine, other in ((found.X, expected.X), (found.layers["counts"], expected.layers["counts"])):
        for part in ("data", "indices", "indptr"):
            np.testing.assert_array_equal(getattr(mine, part), getattr(other, part), strict=True)
    np.testing.assert_array_equal(found.obsm["spatial"], expected.obsm["spatial"], strict=True)
    pd.testing.assert_frame_equal(found.obsm["more"], expected.obsm["more"])
    assert repr(dict(found.uns)) == repr(dict(expected.uns))


def fail(*_, **__):
    raise AssertionError("it was read again")


def test_a_section_is_read_once(tmp_path):
    def read():
        warn("some spots were left out")
        return section()

    for reader in (read, fail):
        with pytest.warns(AmilstWarning, match="left out"):
            found = io.read_once(reader, Checkpoint(tmp_path, interval=0.0, stamp="a"), "read")
        equal(found, section())
    with pytest.raises(AssertionError, match="again"):
        io.read_once(fail, Checkpoint(tmp_path, interval=0.0, stamp="another file"), "read")
    equal(io.read_once(section, None, "read"), section())


def test_what_only_binary_files_have_is_read_again(tmp_path):
    whole, graph = section(), section()
    whole.raw = whole
    graph.obsp["distances"] = sparse.eye(40, format="csr")
    section().write_h5ad(tmp_path / "a.h5ad")
    for adata in (whole, graph, ad.read_h5ad(tmp_path / "a.h5ad", backed="r")):
        checkpoint = Checkpoint(tmp_path / "checkpoint", interval=0.0)
        assert io.read_once(lambda adata=adata: adata, checkpoint, "read") is adata
        assert not checkpoint.exists


def test_each_of_several_sections_is_read_once(tmp_path, monkeypatch):
    paths = [tmp_path / f"{name}.h5ad" for name in "ab"]
    for shift, path in enumerate(paths):
        section(shift).write_h5ad(path)
    expected = io.read_sections(paths)
    io.read_sections(paths[:1], checkpoint=Checkpoint(tmp_path / "checkpoint", interval=0.0))
    read, again = sections.read, []
    monkeypatch.setattr(sections, "read", lambda path, **options: again.append(path) or read(path, **options))
    for _ in range(2):
        found = io.read_sections(paths, checkpoint=Checkpoint(tmp_path / "checkpoint", interval=0.0))
        pd.testing.assert_frame_equal(found.obs, expected.obs)
        assert (found.X != expected.X).nnz == 0
    assert again == [paths[1]]
