"""h5ad files, and counts that stay on disk."""

import gzip
import warnings
from types import SimpleNamespace

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from input_files import (
    BARCODES,
    COUNTS,
    GENES,
    N_GENES,
    N_SPOTS,
    PIXELS,
    assert_is_section,
    replace_dataset,
    truncate,
    write_10x_h5,
    write_coordinates,
    write_legacy_h5,
)
from scipy import sparse

from amilst_lite import io
from amilst_lite.errors import AmilstWarning, InputError
from amilst_lite.io.h5ad import is_h5ad, refuse_lazy
from amilst_lite.preprocess import CountRows, is_on_disk
from amilst_lite.runtime import limited_memory


@pytest.mark.parametrize(
    "form",
    [
        np.asarray,
        sparse.csr_matrix,
        sparse.csc_matrix,
        lambda x: x.astype(np.float64),
        lambda x: x.astype(np.int64),
    ],
)
def test_h5ad_in_any_form(tmp_path, form):
    adata = anndata.AnnData(
        form(COUNTS), obs=pd.DataFrame({"t": "a"}, index=BARCODES), var=pd.DataFrame(index=GENES)
    )
    adata.obsm["spatial"] = PIXELS
    adata.write_h5ad(tmp_path / "s.h5ad")
    back = io.read(tmp_path)  # the only input in the folder
    assert_is_section(back)
    np.testing.assert_array_equal(back.obsm["spatial"], PIXELS)
    assert list(back.obs["t"]) == ["a"] * N_SPOTS


def test_h5ad_without_counts_is_unchanged(tmp_path):
    for values in (COUNTS - 0.5, np.log1p(COUNTS), np.where(COUNTS == 0, np.nan, COUNTS)):
        anndata.AnnData(values).write_h5ad(tmp_path / "s.h5ad")
        back = io.read_h5ad(tmp_path / "s.h5ad")
        assert isinstance(back.X, np.ndarray)
        np.testing.assert_array_equal(back.X, values)


def test_h5ad_with_coordinates_from_a_table(tmp_path):
    adata = anndata.AnnData(COUNTS, obs=pd.DataFrame(index=BARCODES), var=pd.DataFrame(index=GENES))
    adata.write_h5ad(tmp_path / "s.h5ad")
    assert "spatial" not in io.read(tmp_path / "s.h5ad").obsm
    back = io.read(tmp_path / "s.h5ad", coordinates=write_coordinates(tmp_path / "xy.csv"))
    assert_is_section(back)
    assert back.obsm["spatial"][3].tolist() == [3.5, 6]


# --- left on disk -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["h5ad", "10x", "10x of Cell Ranger 1"])
def test_counts_stay_on_disk(tmp_path, kind):
    if kind == "h5ad":
        path = tmp_path / "s.h5ad"
        var = pd.DataFrame(index=GENES)
        adata = anndata.AnnData(sparse.csr_matrix(COUNTS), obs=pd.DataFrame(index=BARCODES), var=var)
        adata.write_h5ad(path)
    elif kind == "10x":
        path = write_10x_h5(tmp_path / "m.h5")
    else:
        path = write_legacy_h5(tmp_path / "m.h5", {"hg19": COUNTS})
    back = io.read(path, coordinates=write_coordinates(tmp_path / "xy.csv"), backed=True)
    rows = CountRows(back.X)
    assert is_on_disk(back.X) and rows.shape == COUNTS.shape
    np.testing.assert_array_equal(rows[:].toarray(), COUNTS)
    np.testing.assert_array_equal(rows[3:5].toarray(), COUNTS[3:5])
    assert list(back.obs_names) == BARCODES and list(back.var_names) == GENES
    assert back.obsm["spatial"][3].tolist() == [3.5, 6]


@pytest.mark.filterwarnings("ignore:.*9 of 12 spots left out")
@pytest.mark.parametrize("kind", ["h5ad", "10x"])
def test_backed_matrix_with_spots_to_leave_out_is_read_into_memory(tmp_path, kind):
    path = tmp_path / "s.h5ad"
    if kind == "h5ad":
        adata = anndata.AnnData(sparse.csr_matrix(COUNTS), obs=pd.DataFrame(index=BARCODES))
        adata.write_h5ad(path)
    else:
        write_10x_h5(path)
    back = io.read(path, coordinates=write_coordinates(tmp_path / "xy.csv", BARCODES[3:6]), backed=True)
    assert list(back.obs_names) == BARCODES[3:6]
    np.testing.assert_array_equal(CountRows(back.X)[:].toarray(), COUNTS[3:6])


def test_backed_matrix_with_features_to_leave_out_is_read_into_memory(tmp_path):
    types = ["Gene Expression"] * (N_GENES - 2) + ["Antibody Capture"] * 2
    back = io.read_10x_h5(write_10x_h5(tmp_path / "m.h5", feature_type=types), backed=True)
    np.testing.assert_array_equal(CountRows(back.X)[:].toarray(), COUNTS[:, :-2])


def test_large_counts_stay_on_disk_automatically(tmp_path, monkeypatch):
    path = write_10x_h5(tmp_path / "m.h5")
    table = write_coordinates(tmp_path / "xy.csv")
    assert not is_on_disk(io.read(path, coordinates=table, backed="auto").X)
    with limited_memory(5e-7):
        assert is_on_disk(io.read(path, coordinates=table, backed="auto").X)
    monkeypatch.setattr("amilst_lite.io.dispatch.memory_limit", lambda: (700, False))
    assert is_on_disk(io.read(path, coordinates=table, backed="auto").X)
    monkeypatch.setattr("amilst_lite.io.dispatch.memory_limit", lambda: (None, False))
    assert not is_on_disk(io.read(path, coordinates=table, backed="auto").X)


def test_backed_is_for_hdf5_only(tmp_path):
    path = tmp_path / "counts.csv"
    pd.DataFrame(COUNTS, index=BARCODES, columns=GENES).to_csv(path)
    message = "backed=True applies to AnnData, 10x HDF5 only; .*counts.csv is read as table of counts"
    with pytest.raises(InputError, match=message):
        io.read(path, coordinates=write_coordinates(tmp_path / "xy.csv"), backed=True)


def test_h5ad_with_repeated_names(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anndata warns when such an object is created
        adata = anndata.AnnData(
            COUNTS, obs=pd.DataFrame(index=["s"] * N_SPOTS), var=pd.DataFrame(index=["g"] * N_GENES)
        )
        adata.write_h5ad(tmp_path / "s.h5ad")
    with pytest.warns(AmilstWarning) as caught:
        back = io.read_h5ad(tmp_path / "s.h5ad")
    messages = [str(w.message) for w in caught if w.category is AmilstWarning]
    assert "11 of 12 spot names repeat" in messages[0]
    assert "6 of 7 gene names repeat" in messages[1]
    assert len(messages) == 2
    assert not any("not unique" in str(w.message) for w in caught)  # anndata does not repeat it
    assert back.obs_names.is_unique
    assert back.var_names.is_unique


def test_h5ad_without_expression(tmp_path):
    adata = anndata.AnnData(obs=pd.DataFrame(index=BARCODES), var=pd.DataFrame(index=GENES))
    adata.write_h5ad(tmp_path / "s.h5ad")
    with pytest.raises(InputError, match="has no expression matrix"):
        io.read_h5ad(tmp_path / "s.h5ad")
    adata.layers["counts"] = COUNTS
    adata.write_h5ad(tmp_path / "s.h5ad")
    assert io.read_h5ad(tmp_path / "s.h5ad").X is None


def test_broken_h5ad(tmp_path):
    path = tmp_path / "s.h5ad"
    anndata.AnnData(COUNTS).write_h5ad(path)
    whole = path.read_bytes()
    truncate(path)
    for reader in (io.read, io.read_h5ad):
        with pytest.raises(InputError, match=r"s\.h5ad cannot be read as"):
            reader(path)
    path.write_bytes(whole)
    replace_dataset(path, "obs", None)
    with pytest.raises(InputError, match=r"s\.h5ad"):
        io.read_h5ad(path)
    with pytest.raises(InputError, match=r"is not an h5ad file.*found 'matrix'"):
        io.read_h5ad(write_10x_h5(tmp_path / "m.h5"))


def test_real_h5ad(shared_dir):
    adata = io.read(shared_dir / "data" / "mOB.h5ad")
    assert adata.shape == (262, 15928)
    assert adata.obsm["spatial"].shape == (262, 2)
    with pytest.raises(InputError, match=r"contains [0-9]+ inputs.*'mOB\.h5ad'"):
        io.read(shared_dir / "data")


@pytest.mark.parametrize("place", ["X", "layers"])
@pytest.mark.parametrize("form", [sparse.csr_matrix, sparse.csc_matrix])
def test_duplicate_entries_in_h5ad_are_summed(tmp_path, place, form):
    indices, indptr = np.array([1, 1, 0, 1, 0]), np.array([0, 2, 5])
    matrix = form((np.array([1.0, 2, 3, 4, 5]), indices, indptr), shape=(2, 2))
    expected = np.array([[0, 3], [8, 4]])
    adata = anndata.AnnData(matrix if place == "X" else np.zeros((2, 2)))
    if place == "layers":
        adata.layers["counts"] = matrix
    adata.write_h5ad(tmp_path / "s.h5ad")
    back = io.read_h5ad(tmp_path / "s.h5ad")
    counts = back.X if place == "X" else back.layers["counts"]
    assert isinstance(counts, sparse.csr_matrix) and counts.dtype == np.float32
    assert counts.has_canonical_format and counts.nnz == 3
    np.testing.assert_array_equal(counts.toarray(), expected if form is sparse.csr_matrix else expected.T)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("X/indptr", np.arange(5), "declares the shape .* and has 5 row pointers"),
        ("X/indptr", np.arange(13).reshape(13, 1) + 0.5, "X is corrupt|cannot be read"),
        (
            "X/indices",
            np.full(np.count_nonzero(COUNTS), np.nan),
            "X is corrupt .indices must be integers; found float",
        ),
        # of scipy, by its version
        ("X/data", np.full(np.count_nonzero(COUNTS), b"a"), r"X has the dtype \|S1|cannot be read"),
        ("X/data", np.ones(3, np.float32), "X is corrupt|cannot be read"),
        ("obsp/links/indices", np.full(12, 77), r"obsp\['links'\] is corrupt"),
        (
            "layers/more/data",
            np.full(np.count_nonzero(COUNTS), 1j),
            r"layers\['more'\] has the dtype complex128",
        ),
    ],
)
def test_h5ad_with_corrupt_matrices(tmp_path, name, value, message):
    path = tmp_path / "s.h5ad"
    adata = anndata.AnnData(sparse.csr_matrix(COUNTS))
    adata.layers["more"], adata.obsp["links"] = adata.X.copy(), sparse.eye(12, format="csr")
    adata.write_h5ad(path)
    assert io.read_h5ad(path).shape == COUNTS.shape
    replace_dataset(path, name, value)
    with pytest.raises(InputError, match=message):
        io.read_h5ad(path)


def test_h5ad_whose_attributes_declare_a_huge_shape(tmp_path):
    """anndata allocates row pointers of that number before it reads any."""
    path = tmp_path / "s.h5ad"
    anndata.AnnData(sparse.csr_matrix(COUNTS), uns={"more": {"m": sparse.csr_matrix(COUNTS)}}).write_h5ad(
        path
    )
    for place in ("X", "uns/more/m"):
        with h5py.File(path, "r+") as file:
            file[place].attrs["shape"] = np.array([2**40, 7])
        name = place.rpartition("/")[2]
        with pytest.raises(
            InputError, match=rf"{name} declares the shape \(1099511627776, 7\) and has 13 row pointers"
        ):
            io.read_h5ad(path)
        with h5py.File(path, "r+") as file:
            file[place].attrs["shape"] = np.array(COUNTS.shape)
    assert io.read_h5ad(path).shape == COUNTS.shape


def test_recognition_reads_no_value(tmp_path):
    """Attributes may refer to anything; their names are enough."""
    path = tmp_path / "s.h5ad"
    anndata.AnnData(sparse.csr_matrix(COUNTS)).write_h5ad(path)
    with h5py.File(path, "r+") as file:
        file.attrs["encoding-type"] = np.array(["a", "b"], dtype=object)
        assert is_h5ad(file)
        file.create_group("mod")  # MuData
        assert not is_h5ad(file)


def test_compressed_h5ad_that_fills_the_disk(tmp_path, monkeypatch):
    path = tmp_path / "s.h5ad.gz"
    path.write_bytes(gzip.compress(b"\x89HDF\r\n\x1a\n" + bytes(3 * 2**20)))
    monkeypatch.setattr("amilst_lite.io.anndata_store.most_memory", lambda size: 2**20)
    with pytest.raises(
        InputError, match=r"s\.h5ad\.gz holds more than 1,048,576 bytes in [\d,]+, as no file"
    ):
        io.read(path)


@pytest.mark.parametrize("form", [sparse.csr_matrix, sparse.csc_matrix])
@pytest.mark.parametrize("index", [-1, 10**6])
def test_h5ad_with_indices_out_of_range(tmp_path, form, index):
    path = tmp_path / "s.h5ad"
    anndata.AnnData(form(COUNTS)).write_h5ad(path)
    replace_dataset(path, "X/indices", np.full(np.count_nonzero(COUNTS), index, dtype=np.int32))
    with pytest.raises(InputError, match=r"s\.h5ad: X is corrupt \(.*ind"):
        io.read_h5ad(path)


def test_lazily_read(tmp_path):
    pytest.importorskip("dask")
    pytest.importorskip("xarray")
    read_lazy = pytest.importorskip("anndata.experimental").read_lazy
    adata = anndata.AnnData(sparse.csr_matrix(COUNTS), obsm={"spatial": PIXELS})
    adata.obs["label"] = "a"
    adata.write_h5ad(tmp_path / "a.h5ad")
    refuse_lazy(adata)
    with pytest.raises(InputError, match=r"lazily \(X, obs, obsm\['spatial'\]\).*to_memory.*backed=True"):
        refuse_lazy(read_lazy(tmp_path / "a.h5ad"))


def test_parts_that_are_lazy():
    """Without dask and xarray: what `read_lazy` returns is recognized by its types."""
    array = type("Array", (), {"__module__": "dask.array.core"})()
    table = type("Dataset2D", (), {"__module__": "anndata._core.xarray"})()
    plain = SimpleNamespace(X=np.zeros((1, 1)), obs=pd.DataFrame(), obsm={"spatial": np.zeros((1, 2))})
    refuse_lazy(plain)
    with pytest.raises(InputError, match=r"read lazily \(X, obs\), and results"):
        refuse_lazy(SimpleNamespace(X=array, obs=table, obsm=plain.obsm))
