"""What a platform declares, and a run of the command on the files of each."""

import logging

import anndata
import numpy as np
import pandas as pd
import pytest
from input_files import BARCODES, write_text, write_visium
from scipy import sparse
from test_io_arrays import spots_by_genes, write_slideseq
from test_io_imaging import write_cosmx, write_merscope, write_seqfish, write_seqfish_plus
from test_io_loom import write_loom
from test_io_xenium import write_xenium

from amilst_lite.cli import main
from amilst_lite.io import Platform


def platform(**options):
    return Platform(
        name="name",
        title="Title",
        files="files",
        read=anndata.read_h5ad,
        recognizes=lambda path: False,
        **options,
    )


def test_description(tmp_path, caplog):
    counts = sparse.csr_matrix(np.array([[1, 0], [0, 0], [0, 2], [0, 0]], dtype=np.float32))
    adata = anndata.AnnData(counts, obs=pd.DataFrame(index=list("abcd")))
    with caplog.at_level(logging.INFO, "amilst_lite"):
        described = platform(unit="pixel", geometry="square").describe(
            adata,
            tmp_path,
            left_out={"blanks": np.int64(3), "controls": 0},
            coordinate_unit="micrometer",
            more="x",
        )
    assert described is adata
    assert adata.uns["amilst_input"] == {
        "platform": "name",
        "coordinate_unit": "micrometer",
        "geometry": "square",
        "more": "x",
        "left_out": {"blanks": 3},
    }
    assert caplog.messages == [
        f"{tmp_path} (Title): left out 3 blanks",
        f"{tmp_path}: 2 of 4 spots have no counts and are kept: 'b', 'd'",
    ]
    adata.write_h5ad(tmp_path / "a.h5ad")
    assert anndata.read_h5ad(tmp_path / "a.h5ad").uns["amilst_input"]["left_out"] == {"blanks": 3}


def write_st(folder):
    return write_text(
        folder / "mOB.tsv.gz", spots_by_genes([f"{i % 4}x{i // 4}" for i in range(len(BARCODES))]), True
    )


WRITERS = {
    "merscope": write_merscope,
    "xenium": write_xenium,
    "cosmx": write_cosmx,
    "seqfish": write_seqfish,
    "seqfish_plus": write_seqfish_plus,
    "slideseq": write_slideseq,
    "st": write_st,
    "loom": lambda folder: write_loom(folder / "a.loom"),
    "visium": write_visium,
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name != "merscope" else []) for name in WRITERS]
)
def test_files_of_the_vendor_to_domains_and_figure(tmp_path, name):
    (tmp_path / "input").mkdir()
    path = WRITERS[name](tmp_path / "input")
    out = tmp_path / "out"
    assert main(["run", str(path), "-k", "2", "-o", str(out), "--epochs", "2", "--n-init", "2", "-q"]) == 0
    result = anndata.read_h5ad(out / "result.h5ad")
    assert set(result.obs["amilst_domain"]) == {"1", "2"}
    assert result.uns["amilst_input"]["platform"] == name.removesuffix("_plus")
    assert len(pd.read_csv(out / "domains.csv")) == result.n_obs == len(BARCODES)
    assert (out / "domains.png").stat().st_size > 1000
