"""Stereo-seq files written by the tests; the sums of a data frame are the oracle."""

import subprocess
import sys

import h5py
import numpy as np
import pandas as pd
import pytest
from input_files import truncate, write_text

from amilst_lite import io
from amilst_lite.errors import InputError
from amilst_lite.io.stereoseq import STEREOSEQ, read_stereoseq

RNG = np.random.default_rng(0)
N = 400
LINES = pd.DataFrame(
    {
        "geneID": [f"Gene{i}" for i in np.sort(RNG.integers(0, 6, N))],
        "x": RNG.integers(1000, 1120, N),
        "y": RNG.integers(2000, 2090, N),
        "MIDCount": RNG.integers(1, 5, N),
    }
).drop_duplicates(["geneID", "x", "y"])
LINES["ExonCount"] = 1
LINES["CellID"] = (LINES["x"] // 40) % 3 + 10 * (LINES["y"] // 45 % 2)  # cell 0 is the background
GENES = sorted(set(LINES["geneID"]))
HEADER = "#FileFormat=GEMv0.1\n#SortedBy=None\n#BinSize=1\n#STOmicsChip=A01\n"


def write_gem(path, frame=LINES, header=HEADER, columns=("geneID", "x", "y", "MIDCount", "ExonCount")):
    return write_text(path, header + frame[list(columns)].to_csv(sep="\t", index=False), path.suffix == ".gz")


def write_gef(path, frame=LINES, version=4, bins=(1,), scale=None, resolution=500):
    """Square bins; ``scale`` is that of the coordinates of larger bins: DNBs (default) or bins (1)."""
    with h5py.File(path, "w") as file:
        file.attrs["version"] = np.array([version], dtype=np.uint32)
        for size in bins:
            binned = frame.assign(x=frame["x"] // size, y=frame["y"] // size)
            binned = binned.groupby(["geneID", "x", "y"], as_index=False)["MIDCount"].sum()
            group = file.create_group(f"geneExp/bin{size}")
            factor = size if scale is None else scale
            expression = np.zeros(len(binned), dtype=[("x", "<u4"), ("y", "<u4"), ("count", "u1")])
            expression["x"], expression["y"] = binned["x"] * factor, binned["y"] * factor
            expression["count"] = binned["MIDCount"]
            group["expression"] = expression
            group["expression"].attrs["resolution"] = np.array([resolution], dtype=np.uint32)
            counts = binned.groupby("geneID").size()
            gene = np.zeros(
                len(counts), [("geneID", "S64"), ("geneName", "S64"), ("offset", "<u4"), ("count", "<u4")]
            )
            gene["geneID"], gene["geneName"] = (
                [f"ENS{i}" for i in range(len(counts))],
                counts.index.to_numpy("S64"),
            )
            gene["count"], gene["offset"] = counts, np.cumsum(counts) - counts
            group["gene"] = gene
    return path


CELL = [("id", "u4"), ("x", "i4"), ("y", "i4"), ("offset", "u4"), ("geneCount", "u2"), ("area", "u2")]


def write_cell_gef(path, version=4):
    inside = LINES[LINES["CellID"] > 0]
    table = inside.groupby(["CellID", "geneID"], as_index=False)["MIDCount"].sum()
    sizes = table.groupby("CellID").size()
    cell = np.zeros(len(sizes), dtype=CELL)
    cell["id"], cell["geneCount"], cell["offset"] = sizes.index, sizes, np.cumsum(sizes) - sizes
    cell["x"], cell["y"], cell["area"] = np.arange(len(sizes)) * 10, np.arange(len(sizes)) - 3, 7
    expression = np.zeros(len(table), dtype=[("geneID", "<u4"), ("count", "<u2")])
    expression["geneID"], expression["count"] = table["geneID"].str[4:].astype(int), table["MIDCount"]
    with h5py.File(path, "w") as file:
        file.attrs["version"], file.attrs["resolution"] = np.uint32([version]), np.uint32([500])
        file["cellBin/cell"], file["cellBin/cellExp"] = cell, expression
        file["cellBin/gene"] = np.array([(name.encode(),) for name in GENES], dtype=[("geneName", "S32")])
    return path


def expected(frame, key):
    """Sums of counts, rows by name and columns by gene."""
    return frame.assign(key=key).pivot_table("MIDCount", "key", "geneID", "sum", fill_value=0)


def bin_names(size, frame=LINES):
    return [f"{x // size * size}_{y // size * size}" for x, y in zip(frame["x"], frame["y"], strict=True)]


def assert_counts(adata, table):
    assert set(adata.obs_names) == set(table.index)
    assert set(adata.var_names) == set(table.columns)
    np.testing.assert_array_equal(adata.to_df().loc[table.index, table.columns], table)
    assert adata.X.dtype == np.float32
    assert adata.X.has_canonical_format


def assert_centers(adata, size):
    corners = np.array([name.split("_") for name in adata.obs_names], dtype=float)
    np.testing.assert_array_equal(adata.obsm["spatial"], corners + (size - 1) / 2)


@pytest.mark.parametrize("size", [1, 7, 50])
@pytest.mark.parametrize("name", ["a.gem", "a.gem.gz", "a.gef"])
def test_bins(tmp_path, monkeypatch, name, size):
    monkeypatch.setattr("amilst_lite.io.entries.CHUNK_LINES", 90)
    monkeypatch.setattr("amilst_lite.io.stereoseq._BLOCK", 90)
    path = (write_gef if name.endswith("gef") else write_gem)(tmp_path / name)
    adata = io.read(path, bin_size=size)
    assert_counts(adata, expected(LINES, bin_names(size)))
    assert_centers(adata, size)
    record = adata.uns["amilst_input"]
    assert (record["platform"], record["coordinate_unit"], record["geometry"]) == (
        "stereoseq",
        "spot",
        "square",
    )
    assert record.get("micrometers_per_unit") == (0.5 if name.endswith("gef") else None)
    adata.write_h5ad(tmp_path / "again.h5ad")


def test_default_bins_and_order_of_lines(tmp_path):
    default = io.read(write_gem(tmp_path / "a.gem"))
    assert_counts(default, expected(LINES, bin_names(100)))
    shuffled = io.read(write_gem(tmp_path / "b.gem", LINES.sample(frac=1, random_state=0)))
    assert list(shuffled.obs_names) == list(default.obs_names)
    np.testing.assert_array_equal(shuffled[:, GENES].X.toarray(), default[:, GENES].X.toarray())


@pytest.mark.parametrize("spelling", ["MIDCounts", "UMICount"])
def test_spellings_and_gene_names(tmp_path, spelling):
    frame = LINES.rename(columns={"MIDCount": spelling}).assign(geneName=LINES["geneID"].str.upper())
    adata = io.read(write_gem(tmp_path / "a.gem", frame, "", ("geneID", "geneName", "x", "y", spelling)))
    assert set(adata.var_names) == {name.upper() for name in GENES}
    assert [name.upper() for name in adata.var["gene_ids"]] == list(adata.var_names)
    assert adata.X.sum() == LINES["MIDCount"].sum()


@pytest.mark.parametrize("version", [2, 3, 4])
def test_gef_versions(tmp_path, version):
    adata = io.read(write_gef(tmp_path / "a.gef", version=version), bin_size=20)
    assert_counts(adata, expected(LINES, bin_names(20)))
    assert set(adata.var["gene_ids"]) == {f"ENS{i}" for i in range(6)}
    cells = io.read(write_cell_gef(tmp_path / "b.gef", version))
    assert cells.n_obs == LINES.loc[LINES["CellID"] > 0, "CellID"].nunique()


@pytest.mark.parametrize("scale", [None, 1])
def test_gef_of_larger_bins_only(tmp_path, scale):
    path = write_gef(tmp_path / "a.gef", bins=(20,), scale=scale)
    for size in (None, 20):
        adata = io.read(path, bin_size=size)
        assert_counts(adata, expected(LINES, bin_names(20)))
        assert_centers(adata, 20)
    with pytest.raises(InputError, match="holds bins of 20 DNBs, from which bins of 50 cannot be made"):
        io.read(path, bin_size=50)


def test_gem_of_larger_bins(tmp_path):
    binned = LINES.assign(x=LINES["x"] // 20 * 20, y=LINES["y"] // 20 * 20)
    path = write_gem(tmp_path / "a.gem", binned, "#BinSize=20\n")
    assert_counts(io.read(path), expected(LINES, bin_names(20)))
    assert_centers(io.read(path), 20)


def test_cells_of_a_gem(tmp_path, monkeypatch):
    monkeypatch.setattr("amilst_lite.io.entries.CHUNK_LINES", 90)
    path = write_gem(tmp_path / "a.gem.gz", columns=("geneID", "x", "y", "MIDCount", "ExonCount", "CellID"))
    adata = io.read(path)
    inside = LINES[LINES["CellID"] > 0]
    assert_counts(adata, expected(inside, inside["CellID"].astype(str)))
    for cell, group in inside.groupby("CellID"):
        center = np.average(group[["x", "y"]], axis=0, weights=group["MIDCount"])
        np.testing.assert_allclose(adata.obsm["spatial"][adata.obs_names.get_loc(str(cell))], center)
    outside = LINES.loc[LINES["CellID"] == 0, "MIDCount"].sum()
    assert adata.uns["amilst_input"]["left_out"] == {"molecules outside cells": outside}
    assert adata.uns["amilst_input"]["geometry"] == "free"
    # bins on request
    assert_counts(io.read(path, bin_size=50), expected(LINES, bin_names(50)))
    nobody = LINES.assign(CellID=0)
    with pytest.raises(InputError, match="has no molecules inside cells"):
        io.read(write_gem(tmp_path / "b.gem", nobody, columns=("geneID", "x", "y", "MIDCount", "CellID")))


def test_cells_of_a_gef(tmp_path):
    adata = io.read(write_cell_gef(tmp_path / "a.gef"))
    inside = LINES[LINES["CellID"] > 0]
    assert_counts(adata, expected(inside, inside["CellID"].astype(str)))
    np.testing.assert_array_equal(adata.obsm["spatial"][:, 0], np.arange(adata.n_obs) * 10)
    assert adata.uns["amilst_input"]["micrometers_per_unit"] == 0.5
    with pytest.raises(InputError, match="holds cells and no bins: bin_size=50"):
        io.read(tmp_path / "a.gef", bin_size=50)


def test_progress(tmp_path):
    path, seen = write_gem(tmp_path / "a.gem"), []
    read_stereoseq(path, progress=lambda done, size: seen.append((done, size)))
    assert seen[-1] == (path.stat().st_size, path.stat().st_size)


def test_recognition(tmp_path):
    assert STEREOSEQ.recognizes(write_gem(tmp_path / "a"))
    assert STEREOSEQ.recognizes(write_gem(tmp_path / "a.gz"))
    assert STEREOSEQ.recognizes(write_gef(tmp_path / "b"))
    assert not STEREOSEQ.recognizes(write_text(tmp_path / "c", "geneID\tx\ty\n"))
    assert not STEREOSEQ.recognizes(write_text(tmp_path / "d", "#BinSize=x\ngeneID\tx\ty\tMIDCount\n"))
    (tmp_path / "e").write_bytes(bytes(range(256)))
    assert not STEREOSEQ.recognizes(tmp_path / "e")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": -1}, "expected coordinates that are not negative; found gene_id Gene"),
        ({"MIDCount": -1}, "expected counts from 0 to 16,777,215"),
        ({"MIDCount": 10**9}, "expected counts from 0 to 16,777,215; found .*count 1000000000"),
        ({"MIDCount": 2**62}, "expected counts from 0 to 16,777,215"),
        ({"x": 2**40}, "a coordinate lies beyond"),
        ({"MIDCount": 2**23}, "adds up to 16777216 or more"),
        ({"y": "12,5"}, "cannot be read as a table of counts .*12,5"),
    ],
)
def test_wrong_values_in_a_gem(tmp_path, change, message):
    path = write_gem(tmp_path / "a.gem", LINES.assign(**change))
    with pytest.raises(InputError, match=message):
        io.read(path)


def test_broken_gem(tmp_path):
    path = write_gem(tmp_path / "a.gem.gz", pd.concat([LINES] * 200))
    truncate(path)
    with pytest.raises(InputError, match=r"a\.gem\.gz cannot be read as a table of counts"):
        io.read(path)
    whole = write_gem(tmp_path / "b.gem").read_text()
    with pytest.raises(InputError, match="cannot be read as a table of counts"):
        io.read(write_text(tmp_path / "c.gem", whole[: whole.rindex("\t") - 2]))
    with pytest.raises(InputError, match="has no molecules: expected lines"):
        io.read(write_text(tmp_path / "d.gem", HEADER + "geneID\tx\ty\tMIDCount\n"))
    with pytest.raises(InputError, match="not a gem file: expected the columns geneID, x, y and MIDCount"):
        io.read(
            write_text(tmp_path / "e.gem", HEADER + "geneID,x,y,MIDCount\nG,1,2,3\n"), platform="stereoseq"
        )
    with pytest.raises(InputError, match="bin_size must be a positive integer"):
        io.read(write_gem(tmp_path / "f.gem"), bin_size=0)


def test_broken_gef(tmp_path):
    with pytest.raises(
        InputError, match=r"a gef file of version 9; expected one of 2, 3, 4. Convert it to gem"
    ):
        io.read(write_gef(tmp_path / "a.gef", version=9))
    path = write_gef(tmp_path / "b.gef")
    with h5py.File(path, "a") as file:
        genes = file["geneExp/bin1/gene"][:]
        genes["count"][0] += 1
        file["geneExp/bin1/gene"][:] = genes
    with pytest.raises(InputError, match="inconsistent: the genes list .* records"):
        io.read(path)
    with h5py.File(path, "a") as file:
        del file["geneExp/bin1/expression"]
        file["geneExp/bin1/expression"] = np.zeros(3, dtype=[("x", "u4"), ("n", "u4")])
    with pytest.raises(InputError, match="has the fields 'x', 'n'; expected x, y, count"):
        io.read(path)
    path = write_gef(tmp_path / "c.gef")
    truncate(path)
    with pytest.raises(InputError, match=r"c\.gef"):
        io.read(path, platform="stereoseq")
    with h5py.File(tmp_path / "d.gef", "w") as file:
        file["cellData/x"] = np.zeros(3)
    with pytest.raises(
        InputError, match="not a gef file of a supported version: expected /geneExp or /cellBin"
    ):
        io.read(tmp_path / "d.gef", platform="stereoseq")
    path = write_cell_gef(tmp_path / "e.gef")
    with h5py.File(path, "a") as file:
        file["cellBin/cell"][:] = np.roll(file["cellBin/cell"][:], 1)
    with pytest.raises(InputError, match="offsets do not follow each other"):
        io.read(path)
    path = write_cell_gef(tmp_path / "f.gef")
    with h5py.File(path, "a") as file:
        expression = file["cellBin/cellExp"][:]
        expression["geneID"][3] = 77
        file["cellBin/cellExp"][:] = expression
    with pytest.raises(InputError, match=r"f\.gef cannot be read as a gef file"):
        io.read(path)


def test_gef_with_an_external_link(tmp_path):
    write_gef(tmp_path / "a.gef")
    with h5py.File(tmp_path / "b.gef", "w") as file:
        file["geneExp/bin1"] = h5py.ExternalLink("a.gef", "/geneExp/bin1")
    with pytest.raises(InputError, match="is a link into another file"):
        io.read(tmp_path / "b.gef")


@pytest.mark.slow
def test_memory_of_single_dnbs(tmp_path):
    """Millions of names are the larger part of the result; only a chunk is needed beside it."""
    n, rng = 1_000_000, np.random.default_rng(0)
    x, y, gene = rng.integers(0, 4000, n), rng.integers(0, 4000, n), rng.integers(0, 500, n)
    path = tmp_path / "a.gem"
    table = pd.DataFrame({"geneID": gene, "x": x, "y": y, "MIDCount": 1})
    table.to_csv(path, sep="\t", index=False)
    read = f"io.read({str(path)!r}, bin_size=%d)"
    code = (
        "import resource, sys; from amilst_lite import io\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        f"{read % 100}; before = peak(); adata = {read % 1}\n"
        "parts = adata.X.data, adata.X.indices, adata.X.indptr, adata.obsm['spatial']\n"
        "names = sum(sys.getsizeof(name) + 8 for name in adata.obs_names)\n"
        "print(adata.n_obs, peak() - before, names + sum(part.nbytes for part in parts))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300
    )
    n_bins, peak, result = map(int, done.stdout.split())
    assert n_bins == len(np.unique(x * 4000 + y))
    assert peak < 2 * result  # and the table of names by which AnnData finds rows


def test_identical_content_in_gem_and_gef(tmp_path):
    gem, gef = (
        io.read(path, bin_size=30) for path in (write_gem(tmp_path / "a.gem"), write_gef(tmp_path / "a.gef"))
    )
    assert list(gem.obs_names) == list(gef.obs_names)
    np.testing.assert_array_equal(gem[:, GENES].X.toarray(), gef[:, GENES].X.toarray())
