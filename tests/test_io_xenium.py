"""Xenium folders as Xenium Onboard Analysis writes them."""

import gzip
import logging
import shutil

import numpy as np
import pandas as pd
import pytest
from input_files import (
    COUNTS,
    GENES,
    N_SPOTS,
    assert_is_section,
    replace_dataset,
    truncate,
    write_10x_h5,
    write_mtx,
    write_text,
)

import amilst_lite as amilst
from amilst_lite.errors import AmilstWarning, InputError, MissingExtraError
from amilst_lite.io.xenium import cell_names

CELLS = [f"aaaa{'abcdefghijklmnop'[i]}bcd-1" for i in range(N_SPOTS)]
CENTROIDS = np.array([[100.5 + 7 * i, 2000.25 - 3 * i] for i in range(N_SPOTS)])
CONTROLS = {
    "NegControlProbe_00042": "Negative Control Probe",
    "NegControlCodeword_0500": "Negative Control Codeword",
    "UnassignedCodeword_0001": "Unassigned Codeword",
    "UnassignedCodeword_0002": "Unassigned Codeword",
    "DeprecatedCodeword_0003": "Deprecated Codeword",
}
HEADER = "cell_id,x_centroid,y_centroid,transcript_counts,control_probe_counts,cell_area,segmentation_method"


def cells_text(order=None, header=HEADER):
    rows = [f'"{CELLS[i]}",{x},{y},{i},0,{20 + i / 8},"Boundary"' for i, (x, y) in enumerate(CENTROIDS)]
    return "\n".join([header, *(rows[i] for i in order or range(N_SPOTS))]) + "\n"


def write_counts(path, types=True, cells=CELLS):
    counts = np.column_stack([COUNTS, np.full((N_SPOTS, len(CONTROLS)), 3)])
    names = [*GENES, *CONTROLS]
    kinds = (
        ["Gene Expression"] * len(GENES) + list(CONTROLS.values())
        if types
        else ["Gene Expression"] * len(names)
    )
    return write_10x_h5(path, counts, cells, names, feature_type=kinds)


def write_xenium(folder, *, prefix=""):
    write_counts(folder / f"{prefix}cell_feature_matrix.h5")
    write_text(folder / f"{prefix}cells.csv.gz", cells_text(range(N_SPOTS - 1, -1, -1)), gzipped=True)
    write_text(folder / "experiment.xenium", "{}")
    return folder


def assert_is_xenium(adata):
    assert_is_section(adata, CELLS)
    assert adata.obsm["spatial"].dtype == np.float64
    np.testing.assert_array_equal(adata.obsm["spatial"], CENTROIDS)
    described = adata.uns["amilst_input"]
    assert described["platform"] == "xenium" and described["coordinate_unit"] == "micrometer"
    assert described["geometry"] == "free"


@pytest.mark.parametrize("prefix", ["", "Xenium_V1_"])
@pytest.mark.parametrize("inside", ["", "cell_feature_matrix.h5", ".."])
def test_xenium_folder(tmp_path, caplog, prefix, inside):
    folder = write_xenium(tmp_path / "run" / "output-XETG", prefix=prefix)
    path = folder / inside if inside != "cell_feature_matrix.h5" else folder / f"{prefix}{inside}"
    with caplog.at_level(logging.INFO, "amilst_lite"):
        adata = amilst.read(path)
    assert_is_xenium(adata)
    assert adata.uns["amilst_input"]["left_out"] == {
        "Negative Control Probe": 1,
        "Negative Control Codeword": 1,
        "Unassigned Codeword": 2,
        "Deprecated Codeword": 1,
    }
    assert any("left out 2 Unassigned Codeword" in message for message in caplog.messages)
    assert list(adata.obs) == [
        "transcript_counts",
        "control_probe_counts",
        "cell_area",
        "segmentation_method",
    ]
    assert adata.obs["cell_area"].iloc[8] == 21
    assert adata.obs["transcript_counts"].tolist() == list(range(N_SPOTS))


def test_controls_without_a_type(tmp_path):
    """Panels of the first releases list their controls as genes."""
    folder = write_xenium(tmp_path)
    (folder / "cell_feature_matrix.h5").unlink()
    write_counts(folder / "cell_feature_matrix.h5", types=False)
    adata = amilst.read_xenium(folder)
    assert_is_xenium(adata)
    assert adata.uns["amilst_input"]["left_out"] == {
        "control probes": 1,
        "control codewords": 1,
        "unassigned codewords": 3,
    }


def test_matrix_market_folder(tmp_path):
    folder = write_xenium(tmp_path / "x")
    (folder / "cell_feature_matrix.h5").unlink()
    write_mtx(folder / "cell_feature_matrix", types=["Gene Expression"] * 6 + ["Negative Control Probe"])
    write_text(folder / "cell_feature_matrix" / "barcodes.tsv.gz", "\n".join(CELLS) + "\n", gzipped=True)
    for path in (folder, folder / "cell_feature_matrix"):
        adata = amilst.read(path)
        assert_is_section(adata, CELLS, GENES[:6], COUNTS[:, :6])
        np.testing.assert_array_equal(adata.obsm["spatial"], CENTROIDS)
        assert adata.uns["amilst_input"]["left_out"] == {"Negative Control Probe": 1}


@pytest.mark.parametrize("cell_id", [str, str.encode])
def test_cells_in_parquet(tmp_path, cell_id):
    pytest.importorskip("pyarrow")
    folder = write_xenium(tmp_path)
    with gzip.open(folder / "cells.csv.gz", "rt") as handle:
        frame = pd.read_csv(handle)
    frame["cell_id"] = frame["cell_id"].map(cell_id)  # bytes in the first releases
    frame.to_parquet(folder / "cells.parquet")
    (folder / "cells.csv.gz").unlink()
    adata = amilst.read(folder)
    assert_is_xenium(adata)
    assert adata.obs["transcript_counts"].tolist() == list(range(N_SPOTS))


def test_parquet_without_pyarrow(tmp_path, without_package):
    folder = write_xenium(tmp_path)
    (folder / "cells.csv.gz").unlink()
    write_text(folder / "cells.parquet", "PAR1 and so on")
    without_package("pyarrow")
    with pytest.raises(
        MissingExtraError, match=r"cells\.parquet needs the package 'pyarrow'.*amilst-lite\[parquet\]"
    ):
        amilst.read(folder)


def test_names_of_cells_of_the_first_releases():
    assert cell_names(np.array([1, 2, 30], dtype=np.uint32)) == ["1", "2", "30"]
    assert cell_names(np.array([[1], [2], [30]], dtype=np.uint32)) == ["1", "2", "30"]


def test_names_of_cells():
    """The example of 10x's documentation: 1437536272 and 1 are the cell "ffkpbaba-1"."""
    assert cell_names(np.array([[1437536272, 1], [0, 12]], dtype=np.uint32)) == ["ffkpbaba-1", "aaaaaaaa-12"]


def write_zarr(folder, name, zipped, make):
    """A store of zarr format 2, as a folder or zipped."""
    zarr = pytest.importorskip("zarr", minversion="3")
    path = folder / (f"{name}.zarr.zip" if zipped else f"{name}.zarr")
    make(zarr.open_group(str(folder / "made"), mode="w", zarr_format=2))
    if zipped:
        shutil.make_archive(path.with_suffix(""), "zip", folder / "made")
        shutil.rmtree(folder / "made")
    else:
        (folder / "made").rename(path)
    return path


def numbers_of_cells(cells=CELLS):
    letters = "abcdefghijklmnop"
    first = [int("".join(f"{letters.index(one):x}" for one in cell[:8]), 16) for cell in cells]
    return np.array([[one, 1] for one in first], dtype=np.uint32)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("release", [1, 2])
def test_bundle_for_the_explorer(tmp_path, zipped, release):
    """Matrix and cells in zarr only; release 1 numbers the cells."""
    folder = write_xenium(tmp_path)
    names = CELLS if release == 2 else [str(i + 1) for i in range(N_SPOTS)]
    write_counts(folder / "cell_feature_matrix.h5", cells=names)
    (folder / "cells.csv.gz").unlink()
    columns = ["cell_centroid_x", "cell_centroid_y", "cell_area"]

    def make(group, columns=columns):
        numbers = numbers_of_cells() if release == 2 else np.arange(1, N_SPOTS + 1, dtype=np.uint32)
        group.create_array("cell_id", data=numbers[::-1])
        summary = np.column_stack([CENTROIDS, np.full(N_SPOTS, 20.5)])[::-1]
        group.create_array("cell_summary", data=summary).attrs["column_names"] = columns

    path = write_zarr(folder, "cells", zipped, make)
    adata = amilst.read(folder)
    assert_is_section(adata, names)
    np.testing.assert_array_equal(adata.obsm["spatial"], CENTROIDS)
    assert list(adata.obs) == ["cell_area"]
    path.unlink() if zipped else shutil.rmtree(path)
    write_zarr(folder, "cells", zipped, lambda group: make(group, ["a", "b", "c"]))
    with pytest.raises(
        InputError, match=r"zarr table of cells \(expected cell_centroid_x and cell_centroid_y"
    ):
        amilst.read(folder)


@pytest.mark.parametrize("zipped", [True, False])
def test_zarr(tmp_path, zipped):
    from scipy import sparse

    folder = write_xenium(tmp_path)
    (folder / "cell_feature_matrix.h5").unlink()
    matrix = sparse.csr_matrix(np.column_stack([COUNTS, np.ones(N_SPOTS)]).T)

    def make(root):
        group = root.create_group("cell_features")
        for name in ("data", "indices", "indptr"):
            group.create_array(name, data=getattr(matrix, name).astype(np.uint32))
        group.create_array("cell_id", data=numbers_of_cells())
        group.attrs.update(
            {
                "feature_keys": [*GENES, "NegControlProbe_1"],
                "feature_ids": [*GENES, "NegControlProbe_1"],
                "feature_types": ["gene"] * len(GENES) + ["negative_control_probe"],
            }
        )

    path = write_zarr(folder, "cell_feature_matrix", zipped, make)
    adata = amilst.read(folder)
    assert_is_xenium(adata)
    assert adata.uns["amilst_input"]["left_out"] == {"negative control probe": 1}
    if zipped:
        truncate(path)
        with pytest.raises(
            InputError, match=r"cell_feature_matrix\.zarr\.zip cannot be read as Xenium's zarr"
        ):
            amilst.read(folder)


def test_cells_without_counts_or_position(tmp_path):
    folder = write_xenium(tmp_path)
    write_text(folder / "cells.csv.gz", cells_text([0, 1, 2, 3, 4, 5, 6, 7, 8, 9]))
    with pytest.warns(AmilstWarning, match=rf"2 of 12 spots left out: 2 have no row \(e\.g\. '{CELLS[10]}'"):
        assert amilst.read(folder).n_obs == 10
    write_text(folder / "cells.csv.gz", cells_text() + '"lost-1",1,2,3,4,5,"x"\n')
    with pytest.warns(AmilstWarning, match=r"lists 13: 1 have no counts \(e\.g\. 'lost-1'\)"):
        assert amilst.read(folder).n_obs == N_SPOTS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            cells_text(header=HEADER.replace("x_centroid", "x")),
            "no column 'x_centroid': expected Xenium's table",
        ),
        (
            cells_text().split("\n", 1)[1],
            r"line 1: expected names of columns, each once; .* Is the header missing",
        ),
        (cells_text().replace("100.5,", "100;5,"), r"column 'x_centroid' contains '100;5' \(1 of 12 rows\)"),
        (
            cells_text().replace("100.5,", ","),
            rf"1 of 12 spots have missing or infinite coordinates: '{CELLS[0]}'",
        ),
        (cells_text().replace("-1", "-2"), r"0 of 12 spots match.*suffix"),
        (cells_text() + cells_text([0]).split("\n", 1)[1], r"1 spots have more than one row"),
        (HEADER + "\n", r"contains 1 line\(s\) of text"),
        ("", "is empty"),
    ],
)
def test_wrong_cells(tmp_path, text, message):
    folder = write_xenium(tmp_path)
    write_text(folder / "cells.csv.gz", text)
    with pytest.raises(InputError, match=message) as caught:
        amilst.read(folder)
    assert "cells.csv.gz" in str(caught.value) or "missing" in message


def test_missing_and_broken_files(tmp_path):
    folder = write_xenium(tmp_path)
    truncate(folder / "cells.csv.gz")
    with pytest.raises(InputError, match=r"cells\.csv\.gz cannot be read"):
        amilst.read(folder)
    folder = write_xenium(tmp_path)
    truncate(folder / "cell_feature_matrix.h5")
    with pytest.raises(InputError, match=r"cell_feature_matrix\.h5 cannot be read as a 10x HDF5 matrix"):
        amilst.read(folder)
    folder = write_xenium(tmp_path)
    (folder / "cells.csv.gz").unlink()
    with pytest.raises(InputError, match=r"has no cells: expected cells\.csv\.gz .*cell_feature_matrix\.h5"):
        amilst.read(folder, platform="xenium")
    write_xenium(tmp_path)
    (folder / "cell_feature_matrix.h5").unlink()
    with pytest.raises(InputError, match=r"has no counts: expected cell_feature_matrix\.h5"):
        amilst.read_xenium(folder)


def test_only_controls(tmp_path):
    folder = write_xenium(tmp_path)
    replace_dataset(
        folder / "cell_feature_matrix.h5", "matrix/features/feature_type", np.array(["Blank"] * 12, dtype="S")
    )
    with pytest.raises(InputError, match="has no genes: all 12 features are controls"):
        amilst.read(folder)
