"""AnnData in h5ad, h5ad.gz and zarr, with counts in X, in a layer or in raw."""

import gzip
import shutil
import warnings

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from input_files import BARCODES, COUNTS, GENES, N_SPOTS, PIXELS, assert_is_section, truncate
from scipy import sparse

from amilst_lite import io
from amilst_lite.errors import AmilstWarning, InputError, MissingExtraError
from amilst_lite.io.anndata_store import is_anndata_zarr

LOG = np.log1p(COUNTS)


def make(matrix=COUNTS, **parts):
    return anndata.AnnData(
        sparse.csr_matrix(matrix),
        obs=pd.DataFrame({"layer": ["a", "b"] * (N_SPOTS // 2)}, index=BARCODES),
        var=pd.DataFrame(index=GENES),
        obsm={"spatial": PIXELS},
        **parts,
    )


def with_raw(matrix=LOG, genes=GENES, counts=COUNTS):
    adata = make(matrix)
    adata.raw = anndata.AnnData(sparse.csr_matrix(counts), obs=adata.obs, var=pd.DataFrame(index=genes))
    return adata


def write(adata, path, form):
    if form in (2, 3):
        pytest.importorskip("zarr")
        with anndata.settings.override(zarr_write_format=form), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # zarr's and anndata's, of defaults to come
            adata.write_zarr(path)
        return path
    adata.write_h5ad(path)
    if form == "gz":
        content = path.read_bytes()
        path.write_bytes(gzip.compress(content))
    return path


FORMS = pytest.mark.parametrize("form", ["gz", 3])


@pytest.mark.parametrize("form", ["h5ad", "gz", 2, 3])
def test_every_form(tmp_path, form):
    adata = io.read(write(make(), tmp_path / "section", form))
    assert_is_section(adata)
    np.testing.assert_array_equal(adata.obsm["spatial"], PIXELS)
    assert list(adata.obs["layer"]) == ["a", "b"] * (N_SPOTS // 2)
    names = {"h5ad": "h5ad", "gz": "h5ad_gz"}
    assert adata.uns["amilst_input"]["platform"] == names.get(form, "anndata_zarr")
    # what `read` knew of the input remains in the file
    adata.uns["amilst_input"]["platform"] = "xenium"
    again = io.read(write(adata, tmp_path / "again", form))
    assert again.uns["amilst_input"]["platform"] == "xenium"


@FORMS
@pytest.mark.parametrize(("dtype", "matrix_type"), [(np.int64, sparse.csc_matrix), (np.float64, np.asarray)])
def test_every_matrix_is_canonical_csr(tmp_path, form, dtype, matrix_type):
    adata = make()
    adata.X = matrix_type(COUNTS.astype(dtype))
    assert_is_section(io.read(write(adata, tmp_path / "section", form)))


@FORMS
def test_counts_in_a_layer(tmp_path, form):
    path = write(make(LOG, layers={"umi": sparse.csc_matrix(COUNTS.astype(int))}), tmp_path / "section", form)
    with pytest.warns(AmilstWarning, match=r"X does not hold counts.*layers\['umi'\] does.*--layer umi"):
        plain = io.read(path)
    np.testing.assert_array_equal(plain.X.toarray(), LOG)
    adata = io.read(path, layer="umi")
    counts = adata.layers["counts"]
    assert set(adata.layers) - {None} == {"counts"}  # anndata 0.13 lists X as None
    assert isinstance(counts, sparse.csr_matrix)
    assert counts.dtype == np.float32
    np.testing.assert_array_equal(counts.toarray(), COUNTS)
    np.testing.assert_array_equal(adata.X.toarray(), LOG)
    with pytest.raises(InputError, match=r"has no layer 'UMI'; it has 'umi'\."):
        io.read(path, layer="UMI")


@FORMS
def test_counts_in_raw_with_the_same_genes(tmp_path, form):
    path = write(with_raw(), tmp_path / "section", form)
    with pytest.warns(
        AmilstWarning, match=r"X does not hold counts.*but raw does.*layer='raw' \(--layer raw\)"
    ):
        io.read(path)
    adata = io.read(path, layer="raw")
    np.testing.assert_array_equal(adata.layers["counts"].toarray(), COUNTS)
    np.testing.assert_array_equal(adata.X.toarray(), LOG)


@FORMS
def test_counts_in_raw_with_more_genes(tmp_path, form):
    counts = np.hstack([COUNTS, COUNTS[:, :2]])
    genes = [*GENES, "More1", "More2"]
    adata = io.read(write(with_raw(LOG, genes, counts), tmp_path / "section", form), layer="raw")
    assert_is_section(adata, genes=genes, counts=counts)
    np.testing.assert_array_equal(adata.obsm["spatial"], PIXELS)
    assert "layer" in adata.obs
    assert adata.raw is None


def test_no_warning_where_the_counts_are_known(tmp_path):
    adata = with_raw()
    adata.layers["counts"] = sparse.csr_matrix(COUNTS)
    np.testing.assert_array_equal(
        io.read(write(adata, tmp_path / "a.h5ad", "h5ad")).layers["counts"].toarray(), COUNTS
    )
    normalized = with_raw(counts=LOG)  # nowhere
    np.testing.assert_array_equal(io.read(write(normalized, tmp_path / "b.h5ad", "h5ad")).X.toarray(), LOG)


@FORMS
def test_without_x(tmp_path, form):
    adata = make(layers={"umi": sparse.csr_matrix(COUNTS)})
    adata.X = None
    path = write(adata, tmp_path / "section", form)
    with pytest.raises(
        InputError, match=r"has no expression matrix.*found no X, and 'umi'. Choose one with layer='umi'"
    ):
        io.read(path)
    np.testing.assert_array_equal(io.read(path, layer="umi").layers["counts"].toarray(), COUNTS)


@FORMS
def test_repeated_names(tmp_path, form):
    adata = make()
    adata.var_names = [*GENES[:-1], GENES[0]]
    path = write(adata, tmp_path / "section", form)
    with pytest.warns(AmilstWarning, match=r"section: 1 of 7 gene names repeat"):
        assert list(io.read(path).var_names)[-1] == f"{GENES[0]}-1"


@pytest.mark.parametrize("form", FORMS.args[1])
def test_coordinates_in_other_places(tmp_path, caplog, form):
    adata = make()
    del adata.obsm["spatial"]
    adata.obs["x"], adata.obs["y"] = PIXELS.T
    with caplog.at_level("INFO", "amilst_lite"):
        found = io.read(write(adata, tmp_path / "a", form))
    np.testing.assert_array_equal(found.obsm["spatial"], PIXELS)
    assert "coordinates are obs[['x', 'y']]" in caplog.text
    adata.obsm["X_spatial"] = PIXELS + 1
    np.testing.assert_array_equal(io.read(write(adata, tmp_path / "b", form)).obsm["spatial"], PIXELS + 1)
    adata.obsm["spatial"] = PIXELS + 2
    np.testing.assert_array_equal(io.read(write(adata, tmp_path / "c", form)).obsm["spatial"], PIXELS + 2)


@pytest.mark.parametrize("wrong", [np.nan, "east"])
def test_columns_that_are_no_coordinates(tmp_path, wrong):
    adata = make()
    del adata.obsm["spatial"]
    adata.obs["y"] = 1.0
    adata.obs["x"] = [wrong, *(["1"] if wrong == "east" else [1.0]) * (N_SPOTS - 1)]
    assert "spatial" not in io.read(write(adata, tmp_path / "a.h5ad", "h5ad")).obsm


def test_options_that_exclude_each_other(tmp_path):
    path = write(make(), tmp_path / "a.h5ad", "h5ad")
    with pytest.raises(InputError, match="layer='raw' and backed=True exclude each other"):
        io.read(path, layer="raw", backed=True)
    compressed = write(make(), tmp_path / "a.h5ad.gz", "gz")
    with pytest.raises(InputError, match=r"is compressed and cannot be left on disk.*gunzip a\.h5ad\.gz"):
        io.read_h5ad(compressed, backed=True)
    with pytest.raises(InputError, match="backed=True applies to"):
        io.read(compressed, backed=True)
    assert io.read(compressed, backed="auto").n_obs == N_SPOTS
    assert not list(tmp_path.glob("amilst-*"))


@pytest.mark.parametrize("share", [0.3, 0.95])
def test_truncated_files_name_the_file_given(tmp_path, share):
    path = write(make(), tmp_path / "a.h5ad.gz", "gz")
    truncate(path, share)
    with pytest.raises(InputError, match=r"a\.h5ad\.gz cannot be read as an h5ad file"):
        io.read(path, platform="h5ad_gz")
    inside = write(make(), tmp_path / "b.h5ad", "h5ad")
    truncate(inside, share)
    whole = tmp_path / "b.h5ad.gz"
    whole.write_bytes(gzip.compress(inside.read_bytes()))
    with pytest.raises(InputError, match=rf"{whole} cannot be read as an h5ad file"):
        io.read(whole)


def test_compressed_file_of_another_format(tmp_path):
    path = tmp_path / "a.h5.gz"
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["numbers"] = np.arange(3)
    path.write_bytes(gzip.compress((tmp_path / "a.h5").read_bytes()))
    with pytest.raises(
        InputError, match=r"a\.h5\.gz is not an h5ad file: expected 'X', 'obs', 'var', found 'numbers'"
    ):
        io.read(path)


@pytest.mark.parametrize("form", [2, 3])
@pytest.mark.parametrize("name", ["data", "indices"])
def test_missing_chunks(tmp_path, form, name):
    path = write(make(), tmp_path / "a.zarr", form)
    array = path / "X" / name
    chunk = next(
        file
        for file in array.rglob("*")
        if file.is_file() and file.name not in (".zarray", ".zattrs", "zarr.json")
    )
    chunk.unlink()
    with pytest.raises(InputError, match=rf"a\.zarr is incomplete: 1 of 1 chunks of X/{name} are missing"):
        io.read(path)


@pytest.mark.parametrize("form", [2, 3])
def test_broken_zarr(tmp_path, form):
    path = write(make(), tmp_path / "a.zarr", form)
    with pytest.raises(InputError, match=r"The folder above is an input .*AnnData \(zarr\)"):
        io.read(path / "obs")
    shutil.rmtree(path / "obsm")
    shutil.rmtree(path / "X")
    with pytest.raises(InputError, match=r"a\.zarr"):
        io.read(path)
    shutil.rmtree(path / "var")
    assert not is_anndata_zarr(path)
    with pytest.raises(
        InputError, match="is not an AnnData in zarr format: expected a folder with 'X', 'obs' and 'var'"
    ):
        io.read(path, platform="anndata_zarr")


def test_without_zarr(tmp_path, without_package):
    path = write(make(), tmp_path / "a.zarr", 2)
    without_package("zarr")
    with pytest.raises(MissingExtraError, match=r"a\.zarr needs the package 'zarr'"):
        io.read(path)


@pytest.mark.parametrize("slot", ["obs", "var"])
def test_repeated_columns(tmp_path, slot):
    adata = make()
    getattr(adata, slot)["size"] = 1.0
    path = write(adata, tmp_path / "section.h5ad", "h5ad")
    with h5py.File(path, "r+") as file:
        file[slot].attrs["column-order"] = ["size", "size"]
    with pytest.raises(InputError, match=rf"columns 'size' of {slot} are there more than once"):
        io.read(path)


def test_external_link_in_h5ad(tmp_path):
    write(make(), tmp_path / "a.h5ad", "h5ad")
    with h5py.File(write(make(), tmp_path / "b.h5ad", "h5ad"), "a") as file:
        del file["X"]
        file["X"] = h5py.ExternalLink("a.h5ad", "/X")
    with pytest.raises(
        InputError, match=r"/X is a link into another file \('a\.h5ad'\), which is not followed"
    ):
        io.read(tmp_path / "b.h5ad")


@FORMS
def test_no_spots(tmp_path, form):
    with pytest.raises(InputError, match="has 0 spots and 7 genes; expected at least one of each"):
        io.read(write(make()[:0].copy(), tmp_path / "a", form))
