"""Loom files, as osmFISH published them."""

import h5py
import numpy as np
import pytest
from input_files import (
    COUNTS,
    GENES,
    N_SPOTS,
    assert_is_section,
    replace_dataset,
    truncate,
    write_coordinates,
)

import amilst_lite as amilst
from amilst_lite.errors import AmilstWarning, InputError
from amilst_lite.io import loom

CELLS = [str(1000 + i) for i in range(N_SPOTS)]
XY = np.array([[1500.5 * i, 70.25 * (i % 5)] for i in range(N_SPOTS)])


def write_loom(path, *, x="X", y="Y"):
    with h5py.File(path, "w") as file:
        file["matrix"] = COUNTS.T  # genes × cells
        file["row_attrs/Gene"] = np.array(GENES, dtype="S")
        file["row_attrs/Hybridization"] = np.arange(len(GENES))
        file["col_attrs/CellID"] = np.array(CELLS, dtype="S")
        file[f"col_attrs/{x}"], file[f"col_attrs/{y}"] = XY[:, 0], XY[:, 1]
        file["col_attrs/Region"] = np.array([f"Layer {i % 3}" for i in range(N_SPOTS)], dtype="S")
        file["col_attrs/Valid"] = np.arange(N_SPOTS) % 2
        file["col_attrs/tSNE"] = np.zeros((N_SPOTS, 2))
        file.create_group("layers")
    return path


@pytest.mark.parametrize("block", [1, 1_000_000])
def test_osmfish(tmp_path, monkeypatch, block):
    monkeypatch.setattr(loom, "_BLOCK", block)
    adata = amilst.read(write_loom(tmp_path / "osmFISH.loom"))
    assert_is_section(adata, CELLS)
    np.testing.assert_array_equal(adata.obsm["spatial"], XY)
    assert set(adata.obs) == {"Region", "Valid"} and list(adata.var) == ["Hybridization"]
    assert adata.obs["Region"].iloc[4] == "Layer 1"
    assert adata.uns["amilst_input"]["platform"] == "loom"


def test_loom_is_found_in_its_folder(tmp_path):
    write_loom(tmp_path / "osmFISH.loom")
    assert_is_section(amilst.read(tmp_path), CELLS)


def test_loom_without_coordinates(tmp_path):
    path = write_loom(tmp_path / "a.loom", x="tSNE_1", y="tSNE_2")
    with pytest.raises(InputError, match=r"no coordinates: expected X and Y in col_attrs, found .*'tSNE_1'"):
        amilst.read(path)
    adata = amilst.read(path, coordinates=write_coordinates(tmp_path / "xy.csv", CELLS))
    assert_is_section(adata, CELLS)
    assert adata.obsm["spatial"][3].tolist() == [3.5, 6]


def test_names_of_attributes(tmp_path):
    path = write_loom(tmp_path / "a.loom")
    with pytest.raises(InputError, match=r"no names of genes: expected 'Symbol' in row_attrs, found 'Gene'"):
        amilst.read_loom(path, var_names="Symbol")
    with pytest.warns(AmilstWarning, match="10 of 12 spot names repeat"):
        assert amilst.read_loom(path, obs_names="Valid").obs_names[:3].tolist() == ["0", "1", "0-1"]


def test_numbers_in_the_byte_order_of_another_machine(tmp_path):
    path = write_loom(tmp_path / "a.loom")
    for name, value in (
        ("matrix", COUNTS.T.astype(">f4")),
        ("col_attrs/Valid", np.arange(N_SPOTS).astype(">i4")),
    ):
        replace_dataset(path, name, value)
    adata = amilst.read(path, coordinates=write_coordinates(tmp_path / "xy.csv", CELLS[::-1]))
    assert_is_section(adata, CELLS)
    assert adata.obs["Valid"].tolist() == list(range(N_SPOTS))


def test_broken_loom(tmp_path):
    path = write_loom(tmp_path / "a.loom")
    replace_dataset(path, "col_attrs/X", np.array(["left"] * N_SPOTS, dtype="S"))
    with pytest.raises(InputError, match=r"column 'X' contains 'left'"):
        amilst.read(path)
    replace_dataset(path, "col_attrs/X", np.where(np.arange(N_SPOTS) == 2, np.nan, 1.0))
    with pytest.raises(InputError, match="1 of 12 spots have missing or infinite coordinates: '1002'"):
        amilst.read(path)
    replace_dataset(path, "matrix", np.zeros((len(GENES), 0)))
    with pytest.raises(InputError, match=r"a\.loom"):
        amilst.read(path)
    truncate(write_loom(path))
    with pytest.raises(InputError, match="cannot be read as an HDF5 file"):
        amilst.read(path)
    with pytest.raises(InputError, match="cannot be read as a loom file"):
        amilst.read_loom(path)
    with h5py.File(path, "w") as file:
        file["X"] = 1
    with pytest.raises(
        InputError, match="is not a loom file: expected 'matrix', 'row_attrs' and 'col_attrs', found 'X'"
    ):
        amilst.read_loom(path)
