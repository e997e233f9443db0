"""Visium folders and tissue images: files written by the tests, public files, scanpy as the oracle."""

import shutil
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from input_files import (
    BARCODES,
    COUNTS,
    N_SPOTS,
    PIXELS,
    assert_is_section,
    positions_text,
    truncate,
    write_10x_h5,
    write_text,
    write_visium,
)
from scipy import sparse

from amilst_lite import io
from amilst_lite.errors import AmilstWarning, InputError, MissingExtraError


@pytest.mark.parametrize("counts", ["h5", "mtx"])
@pytest.mark.parametrize("header", [False, True])
def test_visium_folder(tmp_path, counts, header):
    adata = io.read(write_visium(tmp_path / "151673", counts=counts, header=header))
    assert_is_section(adata)
    np.testing.assert_array_equal(adata.obsm["spatial"], PIXELS)
    assert adata.obsm["spatial"].dtype == np.float64
    assert list(adata.obs) == ["in_tissue", "array_row", "array_col"]
    assert (adata.obs["in_tissue"] == 1).all()
    assert list(adata.obs["array_col"][:5]) == [0, 1, 2, 3, 0]
    library = "lib1" if counts == "h5" else "151673"
    assert list(adata.uns["spatial"]) == [library]
    assert adata.uns["spatial"][library]["scalefactors"]["spot_diameter_fullres"] == 45.0
    if counts == "h5":
        assert adata.uns["spatial"][library]["metadata"] == {"software_version": "spaceranger-2.0.0"}
    # the result can be written, including the paths of images
    adata.write_h5ad(tmp_path / "again.h5ad")
    again = io.read(tmp_path / "again.h5ad")
    assert_is_section(again)
    np.testing.assert_array_equal(again.obsm["spatial"], PIXELS)


def test_visium_keeps_only_spots_in_tissue(tmp_path):
    folder = write_visium(tmp_path / "s", off_tissue=(0, 5))
    kept = [i for i in range(N_SPOTS) if i not in (0, 5)]
    with pytest.warns(AmilstWarning, match=r"2 of 12 spots left out: 2 are marked 0 in 'in_tissue'"):
        adata = io.read_visium(folder, library_id="mine")
    assert_is_section(adata, names=np.array(BARCODES)[kept], counts=COUNTS[kept])
    np.testing.assert_array_equal(adata.obsm["spatial"], PIXELS[kept])
    assert list(adata.uns["spatial"]) == ["mine"]


def test_visium_of_another_section(tmp_path):
    folder = write_visium(tmp_path / "s", off_tissue=range(N_SPOTS))
    with pytest.raises(InputError, match="No spot remains; is this the table of another section"):
        io.read(folder)
    write_text(
        folder / "spatial" / "tissue_positions.csv", positions_text(True).replace("GATTACA", "CCCCCCC")
    )
    with pytest.raises(InputError, match="0 of 12 spots match one of its 14 rows"):
        io.read(folder)


@pytest.mark.parametrize("inside", ["filtered_feature_bc_matrix.h5", "filtered_feature_bc_matrix", ""])
def test_visium_is_found_from_its_matrix_and_from_its_parent_folder(tmp_path, inside):
    folder = write_visium(tmp_path / "sections" / "s", counts="mtx" if inside.endswith("matrix") else "h5")
    adata = io.read(folder / inside if inside else tmp_path / "sections")
    assert_is_section(adata)
    assert "spatial" in adata.uns


def test_visium_in_outs_and_in_one_folder_with_prefixes(tmp_path):
    write_visium(tmp_path / "run" / "s" / "outs")
    assert_is_section(io.read(tmp_path / "run"))
    flat = tmp_path / "flat"
    write_10x_h5(flat / "GSM1_filtered_feature_bc_matrix.h5")
    write_text(flat / "GSM1_tissue_positions_list.csv.gz", positions_text(header=False), gzipped=True)
    write_text(flat / "GSM1_scalefactors_json.json.gz", '{"spot_diameter_fullres": 3}', gzipped=True)
    adata = io.read(flat)
    assert_is_section(adata)
    assert adata.uns["spatial"]["lib1"]["scalefactors"] == {"spot_diameter_fullres": 3.0}
    # any other name is accepted if there is only one such file
    (flat / "GSM1_filtered_feature_bc_matrix.h5").rename(flat / "counts.h5")
    (flat / "GSM1_scalefactors_json.json.gz").unlink()
    adata = io.read(flat)
    assert_is_section(adata)
    assert adata.uns["spatial"]["lib1"]["scalefactors"] == {}
    write_10x_h5(flat / "more.h5")
    with pytest.raises(InputError, match=r"2 files whose names end in '\.h5'"):
        io.read(flat)
    assert_is_section(io.read(flat / "more.h5"))


def test_visium_with_missing_parts(tmp_path):
    folder = write_visium(tmp_path / "s", counts="none")
    write_text(folder / "metadata.tsv", "barcode\tlayer\n")
    with pytest.raises(
        InputError, match=r"positions of spots but no counts.*found 'metadata\.tsv', 'spatial'"
    ):
        io.read(folder)
    write_10x_h5(folder / "filtered_feature_bc_matrix.h5")
    (folder / "spatial" / "tissue_positions.csv").unlink()
    with pytest.raises(InputError, match="has no positions of the spots"):
        io.read(folder)
    (folder / "spatial" / "scalefactors_json.json").unlink()
    (folder / "spatial").rmdir()
    with pytest.raises(InputError, match="has counts but no coordinates"):
        io.read(folder)


def test_visium_with_broken_scale_factors(tmp_path):
    folder = write_visium(tmp_path / "s")
    write_text(folder / "spatial" / "scalefactors_json.json", '{"spot_diameter')
    with pytest.raises(InputError, match=r"scalefactors_json\.json cannot be read as scale factors"):
        io.read(folder)


def test_visium_metadata_is_joined_by_barcode(tmp_path):
    folder = write_visium(tmp_path / "sections" / "151673", header=False)
    # another order, a missing label and a barcode without counts
    lines = [
        f"{BARCODES[i]}\t{i % 4}\t{i}\t{'NA' if i == 2 else f'Layer{i % 3}'}"
        for i in reversed(range(N_SPOTS))
    ]
    lines = ["barcode\trow\tsum_umi\tlayer_guess", "CCCCCCCCC-1\t1\t1\tWM", *lines]
    write_text(folder / "metadata.tsv", "\n".join(lines))
    adata = io.read(tmp_path / "sections")
    assert list(adata.obs) == ["in_tissue", "array_row", "array_col", "row", "sum_umi", "layer_guess"]
    assert list(adata.obs["sum_umi"]) == list(range(N_SPOTS))
    assert adata.obs["layer_guess"].isna().sum() == 1
    assert adata.obs["layer_guess"].iloc[4] == "Layer1"
    # spots without metadata
    write_text(folder / "metadata.tsv", "\n".join(lines[:-3]))
    with pytest.warns(
        AmilstWarning, match=rf"3 of 12 spots have no row \(e\.g\. '{BARCODES[0]}'.*missing \(NaN\)"
    ):
        adata = io.read(tmp_path / "sections")
    assert adata.obs[["sum_umi", "layer_guess"]].isna().to_numpy()[:3].all()
    adata.write_h5ad(tmp_path / "with_missing.h5ad")
    # no spot has metadata
    write_text(folder / "metadata.tsv", "barcode\tlayer\nAAA\tx\nCCC\ty\n")
    with pytest.raises(InputError, match=r"metadata\.tsv: 0 of 12 spots match"):
        io.read(folder)


def test_several_sections_are_listed(tmp_path):
    write_visium(tmp_path / "a")
    write_visium(tmp_path / "b")
    write_10x_h5(tmp_path / "c.h5")
    with pytest.raises(InputError, match=r"contains 3 inputs: 'a', 'b', 'c\.h5'\. Choose one of them"):
        io.read(tmp_path)


def test_positions_in_parquet(tmp_path):
    pytest.importorskip("pyarrow")
    folder = write_visium(tmp_path / "s")
    csv = folder / "spatial" / "tissue_positions.csv"
    frame = pd.read_csv(csv)
    csv.unlink()
    frame["region"] = [None, "a"] * (len(frame) // 2)
    positions = folder / "spatial" / "tissue_positions.parquet"
    frame.to_parquet(positions)
    adata = io.read(folder)
    np.testing.assert_array_equal(adata.obsm["spatial"], PIXELS)
    assert adata.obs["region"].dropna().unique().tolist() == ["a"]
    assert adata.obs["region"].isna().sum() == N_SPOTS / 2
    truncate(positions)
    with pytest.raises(InputError, match=r"positions\.parquet cannot be read as a parquet table"):
        io.read(folder)


def test_positions_in_parquet_without_pyarrow(tmp_path, without_package):
    folder = write_visium(tmp_path / "s")
    (folder / "spatial" / "tissue_positions.csv").unlink()
    write_text(folder / "spatial" / "tissue_positions.parquet", "PAR1 and so on")
    without_package("pyarrow")
    with pytest.raises(MissingExtraError, match=r"tissue_positions\.parquet needs .*'pyarrow'.*\[parquet\]"):
        io.read(folder)


def test_image_is_read_from_its_path(tmp_path):
    pyplot = pytest.importorskip("matplotlib.image")
    folder = write_visium(tmp_path / "s")
    for name, size in (("hires", 20), ("lowres", 4)):
        pyplot.imsave(folder / "spatial" / f"tissue_{name}_image.png", np.zeros((size, size, 3)))
    adata = io.read(folder)
    assert adata.uns["spatial"]["lib1"]["images"] == {}
    image, scale = io.load_image(adata)
    assert image.shape[:2] == (20, 20)
    assert scale == 0.5
    Path(adata.uns["spatial"]["lib1"]["metadata"]["hires_image_path"]).unlink()
    with pytest.warns(AmilstWarning, match=r"not used: There is no file .*tissue_hires_image\.png"):
        image, scale = io.load_image(adata)
    assert image.shape[:2] == (4, 4)
    assert scale == 0.1
    adata.uns["spatial"]["lib1"]["images"]["hires"] = np.ones((3, 3, 3))
    assert io.load_image(adata, "lib1")[0].shape == (3, 3, 3)
    with pytest.raises(InputError, match="library_id must be one of 'lib1'; found 'other'"):
        io.load_image(adata, "other")


def test_no_image(tmp_path, without_package):
    folder = write_visium(tmp_path / "s")
    adata = io.read(folder)
    assert io.load_image(adata) is None
    assert io.load_image(anndata.AnnData(COUNTS)) is None
    write_text(folder / "spatial" / "tissue_lowres_image.png", "no image")
    adata = io.read(folder)
    without_package("matplotlib")
    with pytest.raises(MissingExtraError, match="plot"):
        io.load_image(adata)


@pytest.mark.parametrize("damage", [truncate, lambda path: path.write_bytes(b""), lambda path: path.unlink()])
def test_broken_image_is_a_warning(tmp_path, damage):
    pyplot = pytest.importorskip("matplotlib.image")
    folder = write_visium(tmp_path / "s")
    path = folder / "spatial" / "tissue_hires_image.png"
    pyplot.imsave(path, np.random.default_rng(0).random((40, 40, 3)))
    adata = io.read(folder)
    damage(path)
    with pytest.warns(AmilstWarning, match=r"The tissue image is not used: .*tissue_hires_image\.png"):
        assert io.load_image(adata) is None


def test_real_visium_section(shared_dir):
    adata = io.read(shared_dir / "formats" / "visium_spaceranger1")
    assert adata.shape == (100, 100)
    assert adata.X.dtype == np.float32
    spatial = adata.uns["spatial"]["custom"]
    assert spatial["scalefactors"]["spot_diameter_fullres"] == pytest.approx(89.4275)
    assert spatial["metadata"]["software_version"] == "spaceranger-1.0.0"
    positions = pd.read_csv(
        shared_dir / "formats" / "visium_spaceranger1" / "spatial" / "tissue_positions_list.csv",
        header=None,
        index_col=0,
    ).loc[adata.obs_names]
    np.testing.assert_array_equal(adata.obsm["spatial"], positions[[5, 4]])
    np.testing.assert_array_equal(adata.obs, positions[[1, 2, 3]])
    pytest.importorskip("matplotlib")
    assert io.load_image(adata)[0].ndim == 3


def write_array(folder, points):
    """Four rows of three spots on Visium's array, with pixels (12, 2)."""
    write_visium(folder)
    rows = [
        f"{name},1,{i // 3},{2 * (i % 3) + i // 3 % 2},{y},{x}"
        for i, (name, (x, y)) in enumerate(zip(BARCODES, points, strict=True))
    ]
    header = positions_text(True).splitlines()[0]
    write_text(folder / "spatial" / "tissue_positions.csv", "\n".join([header, *rows]) + "\n")
    return folder


# places of the spots in µm: 100 apart
ARRAY = np.array([[100 * (i % 3) + 50 * (i // 3 % 2), 50 * 3**0.5 * (i // 3)] for i in range(N_SPOTS)])


@pytest.mark.parametrize("angle", [0, 0.01, np.pi / 2, 2.5])
def test_size_of_a_pixel(tmp_path, angle):
    turned = ARRAY @ [[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]] / 0.7
    adata = io.read(write_array(tmp_path / "s", turned))  # without a warning
    assert adata.uns["amilst_input"]["micrometers_per_unit"] == pytest.approx(0.7, rel=1e-12)
    distances = np.linalg.norm(np.diff(adata.obsm["spatial"][:3], axis=0), axis=1)
    np.testing.assert_allclose(distances * 0.7, 100)


def test_swapped_x_and_y(tmp_path):
    folder = write_array(tmp_path / "s", ARRAY[:, ::-1] / 0.7)
    with pytest.warns(
        AmilstWarning, match=r"tissue_positions\.csv: x and y of the spots appear to be swapped"
    ):
        adata = io.read(folder)
    assert adata.uns["amilst_input"]["micrometers_per_unit"] == pytest.approx(0.7, rel=1e-12)
    (folder / "spatial" / "cytassist_image.tiff").touch()  # which may be mirrored
    io.read(folder)  # without a warning


@pytest.mark.parametrize("section", ["dlpfc_151673", "dlpfc_151507"])
def test_real_positions_and_metadata(shared_dir, tmp_path, section):
    """Real barcodes, positions and layer labels with simulated counts."""
    real = shared_dir / "formats" / section
    with pytest.raises(InputError, match="positions of spots but no counts"):
        io.read(real)
    folder = tmp_path / "DLPFC" / section
    shutil.copytree(real, folder)
    metadata = pd.read_csv(real / "metadata.tsv", sep="\t", index_col="barcode")
    counts = sparse.random(
        len(metadata), 50, 0.2, random_state=0, data_rvs=lambda n: np.arange(1, n + 1) % 9 + 1.0
    )
    write_10x_h5(
        folder / "filtered_feature_bc_matrix.h5",
        counts.tocsr(),
        list(metadata.index),
        [f"G{j}" for j in range(50)],
    )
    adata = io.read(tmp_path / "DLPFC")
    assert adata.n_obs == len(metadata)
    np.testing.assert_array_equal(adata.X.toarray(), counts.toarray())
    pd.testing.assert_series_equal(adata.obs["layer_guess"], metadata["layer_guess"], check_names=False)
    assert adata.obs["layer_guess"].nunique() == 7
    np.testing.assert_array_equal(adata.obs["array_row"], metadata["row"])
    np.testing.assert_array_equal(adata.obs["array_col"], metadata["col"])
    # spots have a pitch of 137 or 138 pixels, which is 100 µm
    assert adata.uns["amilst_input"]["micrometers_per_unit"] == pytest.approx(100 / 137.9, rel=2e-3)
    # array columns run along x, rows along y
    assert np.corrcoef(adata.obs["array_col"], adata.obsm["spatial"][:, 0])[0, 1] > 0.999
    assert np.corrcoef(adata.obs["array_row"], adata.obsm["spatial"][:, 1])[0, 1] > 0.999


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Use `squidpy:FutureWarning")
def test_visium_as_scanpy_reads_it(shared_dir):
    scanpy = pytest.importorskip("scanpy")
    path = shared_dir / "formats" / "visium_spaceranger1"
    ours, theirs = io.read_visium(path), scanpy.read_visium(path)
    theirs.var_names_make_unique()
    assert (ours.X != theirs.X).nnz == 0
    assert list(ours.obs_names) == list(theirs.obs_names)
    np.testing.assert_array_equal(ours.obsm["spatial"], theirs.obsm["spatial"])
    np.testing.assert_array_equal(ours.obs[list(theirs.obs)], theirs.obs)
    (library,) = theirs.uns["spatial"]
    assert ours.uns["spatial"][library]["scalefactors"] == theirs.uns["spatial"][library]["scalefactors"]
    image, _ = io.load_image(ours)
    np.testing.assert_array_equal(image, theirs.uns["spatial"][library]["images"]["hires"])
