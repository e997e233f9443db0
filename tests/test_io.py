"""Readers and writers: every format written by the test itself, real files, scanpy as the oracle."""

from __future__ import annotations

import builtins
import gzip
import json
import shutil
import warnings
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import io as scipy_io
from scipy import sparse

from amilst_lite import io
from amilst_lite.errors import AmilstWarning, InputError, MissingExtraError
from amilst_lite.io.coordinates import SpotTable
from amilst_lite.io.files import examples, existing, reading
from amilst_lite.preprocess import CountRows, is_on_disk

N_SPOTS, N_GENES = 12, 7
BARCODES = [f"{'ACGT'[i % 4]}{'ACGT'[i // 4]}GATTACA-1" for i in range(N_SPOTS)]
GENES = [f"Gene{j}" for j in range(N_GENES)]
GENE_IDS = [f"ENSG{j:03d}" for j in range(N_GENES)]
COUNTS = np.random.default_rng(0).poisson(0.7, (N_SPOTS, N_GENES)).astype(np.float32)


# --- writers of small files -------------------------------------------------------------------


def write_10x_h5(
    path: Path, counts=COUNTS, barcodes=BARCODES, genes=GENES, gene_ids=None, **features
) -> Path:
    """A matrix as Cell Ranger 3+ writes it; ``features`` are further columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    matrix = sparse.csr_matrix(counts)  # spots × genes in CSR is genes × spots in CSC
    with h5py.File(path, "w") as file:
        file.attrs["library_ids"] = np.array([b"lib1"])
        file.attrs["software_version"] = "spaceranger-2.0.0"
        group = file.create_group("matrix")
        group["barcodes"] = np.array(barcodes, dtype="S")
        group["data"], group["indices"], group["indptr"] = (
            matrix.data.astype(np.int32),
            matrix.indices,
            matrix.indptr,
        )
        group["shape"] = matrix.shape[::-1]
        group["features/name"] = np.array(genes, dtype="S")
        group["features/id"] = np.array(gene_ids or [f"ENSG{j:03d}" for j in range(len(genes))], dtype="S")
        columns = {
            "feature_type": ["Gene Expression"] * len(genes),
            "genome": ["GRCh38"] * len(genes),
        } | features
        for name, values in columns.items():
            group[f"features/{name}"] = np.array(values, dtype="S" if isinstance(values[0], str) else None)
    return path


def write_legacy_h5(path: Path, genomes: dict[str, np.ndarray]) -> Path:
    """Matrices as Cell Ranger 1 and 2 wrote them, a group for each genome."""
    with h5py.File(path, "w") as file:
        for genome, counts in genomes.items():
            matrix = sparse.csr_matrix(counts)
            group = file.create_group(genome)
            group["barcodes"] = np.array(BARCODES, dtype="S")
            group["genes"], group["gene_names"] = np.array(GENE_IDS, dtype="S"), np.array(GENES, dtype="S")
            group["data"], group["indices"], group["indptr"] = matrix.data, matrix.indices, matrix.indptr
            group["shape"] = matrix.shape[::-1]
    return path


def write_text(path: Path, text: str, gzipped: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if gzipped else text.encode())
    return path


def write_mtx(
    folder: Path, *, version: int = 3, prefix: str = "", types=("Gene Expression",) * N_GENES
) -> Path:
    """A Matrix Market folder of Cell Ranger 1, 2 (plain, genes.tsv) or 3+ (gzipped, features.tsv)."""
    folder.mkdir(parents=True, exist_ok=True)
    gz = ".gz" if version >= 3 else ""
    stem = "features" if version >= 3 else "genes"
    plain = folder / "plain.mtx"
    scipy_io.mmwrite(plain, sparse.coo_matrix(COUNTS.T), field="integer")
    write_text(folder / f"{prefix}matrix.mtx{gz}", plain.read_text(), bool(gz))
    plain.unlink()
    rows = zip(GENE_IDS, GENES, types, strict=True)
    lines = ["\t".join(row[:3] if version >= 3 else row[:2]) for row in rows]
    write_text(folder / f"{prefix}{stem}.tsv{gz}", "\n".join(lines) + "\n", bool(gz))
    write_text(folder / f"{prefix}barcodes.tsv{gz}", "\n".join(BARCODES) + "\n", bool(gz))
    return folder


def positions_text(header: bool, off_tissue=()) -> str:
    """Space Ranger's positions: two spots more than have counts, one of them in tissue, in another order."""
    lines = ["barcode,in_tissue,array_row,array_col,pxl_row_in_fullres,pxl_col_in_fullres"] if header else []
    lines += ["TTTTTTTTT-1,0,90,90,9000,9001", "GGGGGGGGG-1,1,91,91,9100,9101"]
    for i in reversed(range(N_SPOTS)):
        lines.append(
            f"{BARCODES[i]},{int(i not in off_tissue)},{i // 4},{i % 4},{100 * (i // 4)},{10 + 50 * (i % 4)}"
        )
    return "\n".join(lines) + "\n"


PIXELS = np.array([[10 + 50 * (i % 4), 100 * (i // 4)] for i in range(N_SPOTS)], dtype=float)


def write_visium(folder: Path, *, counts: str = "h5", header: bool = True, off_tissue=()) -> Path:
    if counts == "h5":
        write_10x_h5(folder / "filtered_feature_bc_matrix.h5")
    elif counts == "mtx":
        write_mtx(folder / "filtered_feature_bc_matrix")
    name = "tissue_positions.csv" if header else "tissue_positions_list.csv"
    write_text(folder / "spatial" / name, positions_text(header, off_tissue))
    factors = {"spot_diameter_fullres": 45.0, "tissue_hires_scalef": 0.5, "tissue_lowres_scalef": 0.1}
    write_text(folder / "spatial" / "scalefactors_json.json", json.dumps(factors))
    return folder


def write_counts_table(
    path: Path, *, genes_first: bool = False, separator: str = "\t", r_style: bool = False
) -> Path:
    values, rows, columns = (COUNTS.T, GENES, BARCODES) if genes_first else (COUNTS, BARCODES, GENES)
    lines = [separator.join(columns if r_style else ["", *columns])]
    lines += [
        separator.join([name, *(f"{v:g}" for v in row)]) for name, row in zip(rows, values, strict=True)
    ]
    return write_text(path, "\n".join(lines) + "\n", path.suffix == ".gz")


def write_coordinates(path: Path, names=BARCODES, header="spot,x,y,layer") -> Path:
    lines = [f"{name},{i}.5,{2 * i},L{i % 2}" for i, name in enumerate(names)]
    return write_text(path, "\n".join([header, *lines]) + "\n")


def assert_is_section(adata, names=BARCODES, genes=GENES, counts=COUNTS):
    """The counts of this file, in the form in which every reader hands them over."""
    assert isinstance(adata.X, sparse.csr_matrix)
    assert adata.X.dtype == np.float32
    assert adata.X.has_canonical_format
    np.testing.assert_array_equal(adata.X.toarray(), counts)
    assert list(adata.obs_names) == list(names)
    assert list(adata.var_names) == list(genes)


# --- 10x --------------------------------------------------------------------------------------


def test_10x_h5_of_cell_ranger_3(tmp_path):
    adata = io.read_10x_h5(write_10x_h5(tmp_path / "m.h5"))
    assert_is_section(adata)
    assert list(adata.var["gene_ids"]) == GENE_IDS
    assert set(adata.var["feature_types"]) == {"Gene Expression"}
    assert set(adata.var["genome"]) == {"GRCh38"}


def test_10x_h5_keeps_gene_expression_unless_asked(tmp_path):
    types = ["Gene Expression"] * (N_GENES - 2) + ["Antibody Capture"] * 2
    path = write_10x_h5(tmp_path / "m.h5", feature_type=types)
    assert_is_section(io.read_10x_h5(path), genes=GENES[:-2], counts=COUNTS[:, :-2])
    assert_is_section(io.read_10x_h5(path, gene_expression_only=False))
    with pytest.raises(InputError, match=r"no features of the type 'Gene Expression'.*'Antibody Capture'"):
        io.read_10x_h5(write_10x_h5(tmp_path / "a.h5", feature_type=["Antibody Capture"] * N_GENES))


def test_10x_h5_genomes(tmp_path):
    genomes = ["GRCh38"] * 4 + ["mm10"] * (N_GENES - 4)
    path = write_10x_h5(tmp_path / "m.h5", genome=genomes)
    assert_is_section(io.read_10x_h5(path))
    assert_is_section(io.read_10x_h5(path, genome="mm10"), genes=GENES[4:], counts=COUNTS[:, 4:])
    with pytest.raises(InputError, match=r"holds the genome.*'GRCh38', 'mm10'; there is no genome='hg19'"):
        io.read_10x_h5(path, genome="hg19")


def test_10x_h5_of_cell_ranger_1(tmp_path):
    assert_is_section(io.read_10x_h5(write_legacy_h5(tmp_path / "one.h5", {"hg19": COUNTS})))
    path = write_legacy_h5(tmp_path / "two.h5", {"hg19": COUNTS, "mm10": 2 * COUNTS})
    adata = io.read_10x_h5(path, genome="mm10")
    assert_is_section(adata, counts=2 * COUNTS)
    assert set(adata.var["genome"]) == {"mm10"}
    assert list(adata.var["gene_ids"]) == GENE_IDS
    with pytest.raises(InputError, match=r"'hg19', 'mm10'; choose one with genome='hg19'"):
        io.read_10x_h5(path)
    with pytest.raises(InputError, match="there is no genome='rn7'"):
        io.read_10x_h5(path, genome="rn7")


def test_10x_probe_matrix(tmp_path):
    probes = [f"{gene}|{j:04x}" for j, gene in enumerate(GENES)]
    path = write_10x_h5(
        tmp_path / "p.h5",
        genes=probes,
        gene_ids=[f"{g}|x" for g in GENE_IDS],
        gene_id=GENE_IDS,
        gene_name=GENES,
    )
    with h5py.File(path, "a") as file:
        file["matrix/features/filtered_probes"] = np.arange(N_GENES) % 2 == 0
        file["matrix/filtered_barcodes"] = np.arange(N_SPOTS) < 3
    adata = io.read_10x_h5(path)
    assert_is_section(adata, genes=probes)
    assert list(adata.var["gene_ids"]) == GENE_IDS
    assert adata.var["probe_ids"].iloc[0] == "ENSG000|x"
    assert adata.var["filtered_probes"].dtype == bool
    assert adata.obs["filtered_barcodes"].sum() == 3


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("prefix", ["", "GSM1_"])
def test_10x_matrix_market(tmp_path, version, prefix):
    folder = write_mtx(tmp_path / "m", version=version, prefix=prefix)
    adata = io.read_10x_mtx(folder)
    assert_is_section(adata)
    assert list(adata.var["gene_ids"]) == GENE_IDS
    assert set(adata.var["feature_types"]) == {"Gene Expression"}
    matrix = next(folder.glob("*.mtx*"))
    assert_is_section(io.read_10x_mtx(matrix))


def test_10x_matrix_market_feature_types_and_single_column_of_genes(tmp_path):
    folder = write_mtx(tmp_path / "m", types=["Gene Expression"] * 6 + ["Custom"])
    assert_is_section(io.read_10x_mtx(folder), genes=GENES[:6], counts=COUNTS[:, :6])
    assert_is_section(io.read_10x_mtx(folder, gene_expression_only=False))
    folder = write_mtx(tmp_path / "n", version=1)
    write_text(folder / "genes.tsv", "\n".join(["NA", "NaN", "5'x\"", *GENES[3:]]) + "\n")
    assert list(io.read_10x_mtx(folder).var_names[:3]) == ["NA", "NaN", "5'x\""]


def test_10x_matrix_market_with_parts_missing_or_at_odds(tmp_path):
    folder = write_mtx(tmp_path / "m")
    (folder / "barcodes.tsv.gz").unlink()
    with pytest.raises(InputError, match=r"there is no barcodes\.tsv\.gz or barcodes\.tsv"):
        io.read_10x_mtx(folder)
    write_text(folder / "barcodes.tsv", "A\nB\n")
    with pytest.raises(InputError, match=r"12 spots × 7 genes, but 2 spots and 7 genes are named"):
        io.read_10x_mtx(folder)
    with pytest.raises(InputError, match="no Matrix Market folder"):
        io.read_10x_mtx(tmp_path)
    write_mtx(tmp_path / "flat", prefix="GSM1_")
    write_mtx(tmp_path / "flat", prefix="GSM2_")
    with pytest.raises(InputError, match=r"2 files ending in 'matrix\.mtx\.gz'.*'GSM1_"):
        io.read_10x_mtx(tmp_path / "flat")
    assert_is_section(io.read_10x_mtx(tmp_path / "flat" / "GSM2_matrix.mtx.gz"))


def test_repeated_names_are_told_apart_with_a_warning(tmp_path):
    path = write_10x_h5(tmp_path / "m.h5", genes=["A", "A", "A", *GENES[3:]])
    with pytest.warns(AmilstWarning, match=r"2 of 7 gene names repeat an earlier one \(e\.g\. 'A'\)"):
        adata = io.read_10x_h5(path)
    assert list(adata.var_names[:3]) == ["A", "A-1", "A-2"]
    path = write_10x_h5(tmp_path / "n.h5", barcodes=[BARCODES[0], *BARCODES[:-1]])
    with pytest.warns(AmilstWarning, match="1 of 12 spot names repeat"):
        assert io.read_10x_h5(path).obs_names.is_unique


def _cut(path: Path, share: float = 0.5) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def _set(path: Path, name: str, value) -> None:
    with h5py.File(path, "a") as file:
        del file[name]
        if value is not None:
            file[name] = value


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_cut, "cannot be read as"),
        (lambda path: path.write_bytes(b""), r"is empty \(0 bytes\)"),
        (lambda path: path.write_bytes(b"nonsense"), "cannot be read as"),
        (lambda path: _set(path, "matrix/indptr", None), "cannot be read as a 10x HDF5 matrix"),
        (lambda path: _set(path, "matrix/features", None), "is no 10x matrix.*found 'matrix'"),
        (lambda path: _set(path, "matrix/barcodes", np.array([b"A"])), "cannot be read as"),
        (lambda path: _set(path, "matrix/features/name", np.array([b"A"])), "cannot be read as"),
        (lambda path: _set(path, "matrix/data", np.ones(3)), "cannot be read as"),
        (
            lambda path: _set(path, "matrix/indices", -np.ones(np.count_nonzero(COUNTS), dtype=int)),
            "cannot be read as.*ind",
        ),
        (
            lambda path: _set(path, "matrix/indices", np.full(np.count_nonzero(COUNTS), 99)),
            "cannot be read as.*ind",
        ),
    ],
)
def test_broken_10x_h5(tmp_path, damage, message):
    path = write_10x_h5(tmp_path / "broken.h5")
    damage(path)
    with pytest.raises(InputError, match=message) as caught:
        io.read_10x_h5(path)
    assert "broken.h5" in str(caught.value)


@pytest.mark.parametrize("name", ["matrix.mtx.gz", "features.tsv.gz", "barcodes.tsv.gz"])
@pytest.mark.parametrize("damage", [_cut, lambda path: path.write_bytes(b"")])
def test_broken_matrix_market(tmp_path, name, damage):
    folder = write_mtx(tmp_path / "m")
    damage(folder / name)
    with pytest.raises(InputError, match=name):
        io.read_10x_mtx(folder)


def test_negative_index_in_matrix_market(tmp_path):
    folder = write_mtx(tmp_path / "m", version=1)
    write_text(
        folder / "matrix.mtx", f"%%MatrixMarket matrix coordinate integer general\n{N_GENES} 12 1\n-1 2 3\n"
    )
    with pytest.raises(InputError, match=r"matrix\.mtx cannot be read"):
        io.read_10x_mtx(folder)


# --- Visium -----------------------------------------------------------------------------------


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
    # what was read can be written, images left on disk included
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
    with pytest.raises(InputError, match="None remains; is this the table of another section"):
        io.read(folder)
    write_text(
        folder / "spatial" / "tissue_positions.csv", positions_text(True).replace("GATTACA", "CCCCCCC")
    )
    with pytest.raises(InputError, match="0 of the 12 spots match one of its 14 rows"):
        io.read(folder)


@pytest.mark.parametrize("inside", ["filtered_feature_bc_matrix.h5", "filtered_feature_bc_matrix", ""])
def test_visium_is_found_from_its_matrix_and_from_the_folder_around_it(tmp_path, inside):
    folder = write_visium(tmp_path / "sections" / "s", counts="mtx" if inside.endswith("matrix") else "h5")
    adata = io.read(folder / inside if inside else tmp_path / "sections")
    assert_is_section(adata)
    assert "spatial" in adata.uns


def test_visium_in_outs_and_flat_with_prefixes_as_archives_have_it(tmp_path):
    write_visium(tmp_path / "run" / "s" / "outs")
    assert_is_section(io.read(tmp_path / "run"))
    flat = tmp_path / "flat"
    write_10x_h5(flat / "GSM1_filtered_feature_bc_matrix.h5")
    write_text(flat / "GSM1_tissue_positions_list.csv.gz", positions_text(header=False), gzipped=True)
    write_text(flat / "GSM1_scalefactors_json.json.gz", '{"spot_diameter_fullres": 3}', gzipped=True)
    adata = io.read(flat)
    assert_is_section(adata)
    assert adata.uns["spatial"]["lib1"]["scalefactors"] == {"spot_diameter_fullres": 3.0}
    # a name of its own will do, as long as there is no other
    (flat / "GSM1_filtered_feature_bc_matrix.h5").rename(flat / "counts.h5")
    (flat / "GSM1_scalefactors_json.json.gz").unlink()
    adata = io.read(flat)
    assert_is_section(adata)
    assert adata.uns["spatial"]["lib1"]["scalefactors"] == {}
    write_10x_h5(flat / "more.h5")
    with pytest.raises(InputError, match=r"2 files ending in '\.h5'"):
        io.read(flat)
    assert_is_section(io.read(flat / "more.h5"))


def test_visium_with_parts_missing(tmp_path):
    folder = write_visium(tmp_path / "s", counts="none")
    write_text(folder / "metadata.tsv", "barcode\tlayer\n")
    with pytest.raises(
        InputError, match=r"positions of spots but no counts.*found 'metadata\.tsv', 'spatial'"
    ):
        io.read(folder)
    write_10x_h5(folder / "filtered_feature_bc_matrix.h5")
    (folder / "spatial" / "tissue_positions.csv").unlink()
    with pytest.raises(InputError, match="holds no positions of the spots"):
        io.read(folder)
    (folder / "spatial" / "scalefactors_json.json").unlink()
    (folder / "spatial").rmdir()
    with pytest.raises(InputError, match="holds counts but no coordinates"):
        io.read(folder)


def test_visium_with_broken_scale_factors(tmp_path):
    folder = write_visium(tmp_path / "s")
    write_text(folder / "spatial" / "scalefactors_json.json", '{"spot_diameter')
    with pytest.raises(InputError, match=r"scalefactors_json\.json cannot be read as scale factors"):
        io.read(folder)


def test_seed_layout_joins_metadata_by_barcode(tmp_path):
    folder = write_visium(tmp_path / "sections" / "151673", header=False)
    # in another order, with a label missing and a barcode that has no counts
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
    # none of them
    write_text(folder / "metadata.tsv", "barcode\tlayer\nAAA\tx\nCCC\ty\n")
    with pytest.raises(InputError, match=r"metadata\.tsv: 0 of the 12 spots match"):
        io.read(folder)


def test_several_sections_are_listed(tmp_path):
    write_visium(tmp_path / "a")
    write_visium(tmp_path / "b")
    write_10x_h5(tmp_path / "c.h5")
    with pytest.raises(InputError, match=r"holds 3 inputs: 'a', 'b', 'c\.h5'\. Name one of them"):
        io.read(tmp_path)


def test_positions_in_parquet(tmp_path, monkeypatch):
    folder = write_visium(tmp_path / "s")
    csv = folder / "spatial" / "tissue_positions.csv"
    frame = pd.read_csv(csv)
    csv.unlink()
    write_text(folder / "spatial" / "tissue_positions.parquet", "PAR1 and so on")

    def no_engine(path):
        raise ImportError("no pyarrow")

    monkeypatch.setattr(pd, "read_parquet", no_engine)
    with pytest.raises(
        InputError, match=r"neither pyarrow nor fastparquet is installed.*pip install pyarrow"
    ):
        io.read(folder)
    monkeypatch.setattr(pd, "read_parquet", lambda path: frame)
    np.testing.assert_array_equal(io.read(folder).obsm["spatial"], PIXELS)

    def broken(path):
        raise OSError("no footer")

    monkeypatch.setattr(pd, "read_parquet", broken)
    with pytest.raises(InputError, match=r"cannot be read as a parquet table \(no footer\)"):
        io.read(folder)


# --- images -----------------------------------------------------------------------------------


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
    with pytest.warns(AmilstWarning, match="no longer there"):
        image, scale = io.load_image(adata)
    assert image.shape[:2] == (4, 4)
    assert scale == 0.1
    adata.uns["spatial"]["lib1"]["images"]["hires"] = np.ones((3, 3, 3))
    assert io.load_image(adata, "lib1")[0].shape == (3, 3, 3)
    with pytest.raises(InputError, match="library_id must be one of 'lib1'; found 'other'"):
        io.load_image(adata, "other")


def test_no_image(tmp_path, monkeypatch):
    folder = write_visium(tmp_path / "s")
    adata = io.read(folder)
    assert io.load_image(adata) is None
    assert io.load_image(anndata.AnnData(COUNTS)) is None
    write_text(folder / "spatial" / "tissue_lowres_image.png", "no image")
    adata = io.read(folder)
    with pytest.raises(InputError, match=r"tissue_lowres_image\.png cannot be read as an image"):
        io.load_image(adata)
    real_import = builtins.__import__

    def without_matplotlib(name, *arguments):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real_import(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without_matplotlib)
    with pytest.raises(MissingExtraError, match="plot"):
        io.load_image(adata)


# --- tables of counts -------------------------------------------------------------------------


@pytest.mark.parametrize("genes_first", [False, True])
@pytest.mark.parametrize("separator", ["\t", ",", ";", " ", "   "])
@pytest.mark.parametrize("r_style", [False, True])
def test_table_of_counts_either_way_round(tmp_path, genes_first, separator, r_style):
    r_style = r_style or (separator.isspace() and separator != "\t")  # blanks cannot lead
    counts = write_counts_table(
        tmp_path / "c.txt", genes_first=genes_first, separator=separator, r_style=r_style
    )
    adata = io.read(counts, coordinates=write_coordinates(tmp_path / "xy.csv"))
    assert_is_section(adata)
    np.testing.assert_array_equal(adata.obsm["spatial"], [[i + 0.5, 2 * i] for i in range(N_SPOTS)])
    assert list(adata.obs) == ["layer"]
    assert list(adata.obs["layer"][:2]) == ["L0", "L1"]


def test_table_gzipped_quoted_with_a_byte_order_mark_and_blank_lines(tmp_path):
    lines = ['"","A","B, or C"', "", '"s1",1,0', '"s2",0,2.5', ""]
    counts = write_text(tmp_path / "c.csv", "\ufeff" + "\r\n".join(lines), gzipped=True)  # no .gz in its name
    adata = io.read_table(counts, write_text(tmp_path / "xy.txt", "\n x   y  id\n1 2 s1\n3 4   s2\n"))
    assert_is_section(adata, ["s1", "s2"], ["A", "B, or C"], [[1, 0], [0, 2.5]])
    np.testing.assert_array_equal(adata.obsm["spatial"], [[1, 2], [3, 4]])


def test_spots_named_by_their_place(tmp_path):
    """HER2ST: counts of spot "10x13", coordinates without names; or with names that mean something else."""
    counts = write_text(
        tmp_path / "A1.tsv.gz", "\tA\tB\n10x13\t1\t0\n10x14\t2\t0\n9x2\t0\t1\n8x8\t5\t5\n", True
    )
    selection = write_text(
        tmp_path / "A1_selection.tsv",
        "x\ty\tnew_x\tnew_y\tselected\n9\t2\t9.1\t2.1\t0\n10\t13\t9.9\t13.1\t1\n10\t14\t9.9\t14\t1\n1\t1\t1\t1\t1\n",
    )
    with pytest.warns(
        AmilstWarning,
        match=r"2 of 4 spots left out: 1 have no row \(e\.g\. '8x8'\), 1 are marked 0 in 'selected'",
    ):
        adata = io.read(counts, coordinates=selection)
    assert_is_section(adata, ["10x13", "10x14"], ["A", "B"], [[1, 0], [2, 0]])
    np.testing.assert_array_equal(adata.obsm["spatial"], [[10, 13], [10, 14]])
    assert list(adata.obs) == ["new_x", "new_y", "selected"]
    labeled = write_text(
        tmp_path / "A1_labeled.tsv",
        "Row.names\tx\ty\tlabel\n100x200\t9.9\t13.2\tinvasive cancer\n1x2\t10.02\t13.98\tfat\n"
        "3x4\t9.02\t2.01\tfat\n5x6\t8\t7.99\t\n7x8\t-0.2\tNA\tfat\n",
    )
    adata = io.read(counts, coordinates=labeled)
    np.testing.assert_array_equal(
        adata.obsm["spatial"], [[9.9, 13.2], [10.02, 13.98], [9.02, 2.01], [8, 7.99]]
    )
    assert list(adata.obs["label"][:3]) == ["invasive cancer", "fat", "fat"]
    assert adata.obs["label"].isna().sum() == 1


def test_tables_whose_names_do_not_match(tmp_path):
    counts = write_counts_table(tmp_path / "c.tsv")
    with pytest.raises(
        InputError,
        match=r"Neither the rows of .*'AAGATTACA-1'.* nor its columns .*'Gene0'.*0 of 12 rows and 0 of 7",
    ) as caught:
        io.read(counts, coordinates=write_coordinates(tmp_path / "xy.csv", [f"s{i}" for i in range(5)]))
    assert "suffix" not in str(caught.value)
    bare = write_coordinates(tmp_path / "xy.csv", [name.removesuffix("-1") for name in BARCODES])
    with pytest.raises(InputError, match=r"12 would match without the suffix \('-1'\)"):
        io.read(counts, coordinates=bare)
    with pytest.raises(
        InputError, match=r"0 of the 12 spots match.*'AAGATTACA-1'.*'AAGATTACA'.*12 would match"
    ):
        io.read(write_10x_h5(tmp_path / "m.h5"), coordinates=bare)
    with pytest.warns(AmilstWarning, match="9 of 12 spots left out: 9 have no row"):
        assert io.read(counts, coordinates=write_coordinates(tmp_path / "xy.csv", BARCODES[:3])).n_obs == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("\n\n", r"holds 0 line\(s\) of text"),
        (",A,B\n", r"holds 1 line\(s\) of text"),
        ("just words\nand again some more\n", "is no text table"),
        (",A,B\ns0,1,2\ns1,1\n", "row 's1' has 2 fields, the first has 3.*cut off"),
        (",A,B\ns0,1,2\ns1,1,n/a\n", "counts must be numbers; row 's1'.*n/a"),
        (",A,B\ns0,1,2\ns1,1,\n", "counts must be numbers; row 's1'"),
    ],
)
def test_broken_table_of_counts(tmp_path, text, message):
    path = write_text(tmp_path / "broken.csv", text)
    with pytest.raises(InputError, match=message) as caught:
        io.read_table(path, write_coordinates(tmp_path / "xy.csv", ["s0", "s1"]))
    assert "broken.csv" in str(caught.value)


def test_truncated_gzip(tmp_path):
    counts = write_counts_table(tmp_path / "c.tsv.gz")
    _cut(counts, 0.8)
    with pytest.raises(InputError, match=r"c\.tsv\.gz cannot be read as"):
        io.read(counts, coordinates=write_coordinates(tmp_path / "xy.csv"))


# --- coordinate tables ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "columns"),
    [
        ("x,y", ("x", "y")),
        ("Y,X", ("X", "Y")),
        ("x,y,pixel_x,pixel_y", ("x", "y")),
        ("imagerow,imagecol", ("imagecol", "imagerow")),
        (
            "pxl_row_in_fullres,pxl_col_in_fullres,array_row,array_col",
            ("pxl_col_in_fullres", "pxl_row_in_fullres"),
        ),
        ("pixel_x,pixel_y,new_x,new_y", ("pixel_x", "pixel_y")),
        ("new_x,new_y", ("new_x", "new_y")),
        ("X.Centroid,Y.Centroid", ("X.Centroid", "Y.Centroid")),
        ("array_row,array_col", ("array_col", "array_row")),
        ("row,col", ("col", "row")),
    ],
)
def test_names_of_coordinate_columns(tmp_path, header, columns):
    n = header.count(",") + 1
    path = write_text(tmp_path / "xy.csv", f"id,{header}\ns0,{','.join(map(str, range(n)))}\n")
    table = SpotTable.read(path)
    assert table.coordinate_columns() == columns
    names = header.split(",")
    np.testing.assert_array_equal(table.coordinates(), [[names.index(column) for column in columns]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("spot,a,b\ns0,1,2\n", r"has no coordinates: expected two columns.*x/y.*found 'spot', 'a', 'b'"),
        (
            "spot,x,y\ns0,1,2\ns1,left,2\ns2,,2\n",
            r"coordinates must be numbers; column 'x' holds 'left' \(1 of 3",
        ),
        (
            "spot,x,y\ns0,1,2\ns1,1,2\ns1,1,3\n",
            r"1 spots have more than one row \(column 'spot', e\.g\. 's1'\)",
        ),
        ("s0,1,2,3\ns1,1,2,3\n", "has no header, and its 4 columns"),
        ("s0,7,2,3,4,5\ns1,1,2,3,4,5\n", "has no header, and its 6 columns"),
        ("spot,x,x,y\ns0,1,2,3\n", "cannot be read as a table of spots"),
        ("spot,x,y\ns0,1,2\ns1,1,2,3,4\n", "cannot be read as a table of spots"),
        ("", "is empty"),
        ("spot,x,y\n", r"holds 1 line\(s\)"),
    ],
)
def test_broken_table_of_coordinates(tmp_path, text, message):
    path = write_text(tmp_path / "xy.csv", text)
    adata = anndata.AnnData(np.ones((3, 1)), obs=pd.DataFrame(index=["s0", "s1", "s2"]))
    with pytest.raises(InputError, match=message) as caught:
        io.join_coordinates(adata, path)
    assert "xy.csv" in str(caught.value)
    assert "spatial" not in adata.obsm


def test_table_of_coordinates_without_header(tmp_path):
    path = write_text(tmp_path / "xy.tsv", "s1\t1\t2\ns0\t3\t4.5\n")
    adata = anndata.AnnData(np.ones((2, 1)), obs=pd.DataFrame({"kept": [1, 2]}, index=["s0", "s1"]))
    joined = io.join_coordinates(adata, path)
    np.testing.assert_array_equal(joined.obsm["spatial"], [[3, 4.5], [1, 2]])
    assert list(joined.obs) == ["kept"]
    assert "spatial" not in adata.obsm  # a copy


def test_coordinates_are_no_names(tmp_path):
    """Spots called "0", "1", ...: the column of names is taken, not an x or a flag that looks like them."""
    path = write_text(tmp_path / "xy.csv", "x,y,selected,name\n1,5,1,n0\n0,6,1,n1\n")
    adata = anndata.AnnData(np.ones((2, 1)))
    with pytest.raises(InputError, match="0 of the 2 spots match"):
        io.join_coordinates(adata, path)
    path = write_text(tmp_path / "xy.csv", ",x,y\n1,7,5\n0,8,6\n")
    np.testing.assert_array_equal(io.join_coordinates(adata, path).obsm["spatial"], [[8, 6], [7, 5]])


def test_missing_and_infinite_coordinates_are_left_to_who_uses_them(tmp_path):
    path = write_text(tmp_path / "xy.csv", "n,x,y\n0,,5\n1,inf,6\n")
    joined = io.join_coordinates(anndata.AnnData(np.ones((2, 1))), path)
    np.testing.assert_array_equal(joined.obsm["spatial"], [[np.nan, 5], [np.inf, 6]])


def test_annotation_of_a_table(tmp_path):
    adata = anndata.AnnData(np.ones((4, 1)))
    text = "n,size,label,comment\n3,1.5,b,w\n2,2,a,v\n1,3,a,u\n0,4,b,t\n"
    assert io.join_annotation(adata, write_text(tmp_path / "a.csv", text)) == "label"
    assert list(adata.obs["label"]) == ["b", "a", "a", "b"]
    assert list(adata.obs["size"]) == [4, 3, 2, 1.5]
    assert (
        io.join_annotation(adata, write_text(tmp_path / "a.csv", "n,cluster\n0,1\n1,1\n2,2\n3,2\n"))
        == "cluster"
    )
    two = "n,a,b\n0,p,q\n1,p,q\n2,x,y\n3,x,y\n"
    with pytest.raises(InputError, match=r"expected one column of labels, found 'a', 'b'"):
        io.join_annotation(adata, write_text(tmp_path / "a.csv", two))
    assert "a" not in adata.obs
    numbers = write_text(tmp_path / "a.csv", "n,a,b\n" + "".join(f"{i},1,2\n" for i in range(4)))
    with pytest.raises(InputError, match="found nothing among the columns 'a', 'b'"):
        io.join_annotation(adata, numbers)
    # columns that look like coordinates but are none do not disturb
    path = write_text(tmp_path / "a.csv", "n,x,y\n" + "".join(f"{i},l,m\n" for i in range(4)))
    assert io.join_columns(adata, path) == ["x", "y"]


# --- h5ad -------------------------------------------------------------------------------------


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


def test_h5ad_that_holds_no_counts_is_left_alone(tmp_path):
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
def test_counts_left_on_disk(tmp_path, kind):
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


def test_features_to_leave_out_are_left_out_in_memory(tmp_path):
    types = ["Gene Expression"] * (N_GENES - 2) + ["Antibody Capture"] * 2
    back = io.read_10x_h5(write_10x_h5(tmp_path / "m.h5", feature_type=types), backed=True)
    np.testing.assert_array_equal(CountRows(back.X)[:].toarray(), COUNTS[:, :-2])


def test_what_fills_the_memory_stays_on_disk_by_itself(tmp_path, monkeypatch):
    path = write_10x_h5(tmp_path / "m.h5")
    table = write_coordinates(tmp_path / "xy.csv")
    assert not is_on_disk(io.read(path, coordinates=table, backed="auto").X)
    monkeypatch.setattr("amilst_lite.io.dispatch.total_memory", lambda: 1000)
    assert is_on_disk(io.read(path, coordinates=table, backed="auto").X)
    monkeypatch.setattr("amilst_lite.io.dispatch.total_memory", lambda: None)
    assert not is_on_disk(io.read(path, coordinates=table, backed="auto").X)


def test_only_hdf5_can_stay_on_disk(tmp_path):
    path = tmp_path / "counts.csv"
    pd.DataFrame(COUNTS, index=BARCODES, columns=GENES).to_csv(path)
    with pytest.raises(InputError, match="backed=True is for .h5ad and 10x HDF5 files"):
        io.read(path, coordinates=write_coordinates(tmp_path / "xy.csv"), backed=True)


def test_h5ad_with_repeated_names(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anndata's own, on making such a thing
        adata = anndata.AnnData(
            COUNTS, obs=pd.DataFrame(index=["s"] * N_SPOTS), var=pd.DataFrame(index=["g"] * N_GENES)
        )
        adata.write_h5ad(tmp_path / "s.h5ad")
    with pytest.warns(AmilstWarning) as caught:
        back = io.read_h5ad(tmp_path / "s.h5ad")
    messages = [str(w.message) for w in caught if w.category is AmilstWarning]
    assert "11 of 12 spot names repeat" in messages[0]
    assert "6 of 7 gene names repeat" in messages[1]
    assert len(caught) == 2  # anndata does not repeat it
    assert back.obs_names.is_unique
    assert back.var_names.is_unique


def test_h5ad_without_expression(tmp_path):
    adata = anndata.AnnData(obs=pd.DataFrame(index=BARCODES), var=pd.DataFrame(index=GENES))
    adata.write_h5ad(tmp_path / "s.h5ad")
    with pytest.raises(InputError, match="holds no expression"):
        io.read_h5ad(tmp_path / "s.h5ad")
    adata.layers["counts"] = COUNTS
    adata.write_h5ad(tmp_path / "s.h5ad")
    assert io.read_h5ad(tmp_path / "s.h5ad").X is None


def test_broken_h5ad(tmp_path):
    path = tmp_path / "s.h5ad"
    anndata.AnnData(COUNTS).write_h5ad(path)
    whole = path.read_bytes()
    _cut(path)
    for reader in (io.read, io.read_h5ad):
        with pytest.raises(InputError, match=r"s\.h5ad cannot be read as"):
            reader(path)
    path.write_bytes(whole)
    _set(path, "obs", None)
    with pytest.raises(InputError, match=r"s\.h5ad"):
        io.read_h5ad(path)
    with pytest.raises(InputError, match=r"is no h5ad file.*found 'matrix'"):
        io.read_h5ad(write_10x_h5(tmp_path / "m.h5"))


# --- the one door -----------------------------------------------------------------------------


@pytest.mark.parametrize("write", [lambda p: write_10x_h5(p / "m.h5"), lambda p: write_mtx(p / "m")])
def test_10x_with_a_table_of_coordinates(tmp_path, write):
    path = write(tmp_path)
    with pytest.raises(InputError, match=r"counts but no coordinates.*--coordinates TABLE"):
        io.read(path)
    adata = io.read(path, coordinates=write_coordinates(tmp_path / "xy.csv"))
    assert_is_section(adata)
    assert adata.obsm["spatial"].shape == (N_SPOTS, 2)
    positions = write_text(tmp_path / "p.csv", positions_text(header=False))
    np.testing.assert_array_equal(io.read(path, coordinates=positions).obsm["spatial"], PIXELS)


def test_content_counts_not_the_name(tmp_path):
    xy = write_coordinates(tmp_path / "xy.csv")
    path = write_10x_h5(tmp_path / "counts.h5ad")
    assert_is_section(io.read(path, coordinates=xy))
    anndata.AnnData(COUNTS, obs=pd.DataFrame(index=BARCODES), var=pd.DataFrame(index=GENES)).write_h5ad(
        tmp_path / "a.h5"
    )
    assert_is_section(io.read(tmp_path / "a.h5"))
    assert_is_section(io.read(write_mtx(tmp_path / "m") / "matrix.mtx.gz", coordinates=xy))
    assert_is_section(io.read(write_counts_table(tmp_path / "c.dat"), coordinates=xy))
    with pytest.raises(InputError, match="holds counts but no coordinates"):
        io.read(tmp_path / "c.dat")


def test_coordinates_given_take_the_place_of_those_there(tmp_path):
    folder = write_visium(tmp_path / "s")
    adata = io.read(folder, coordinates=write_coordinates(tmp_path / "xy.csv"))
    assert adata.obsm["spatial"][3].tolist() == [3.5, 6]
    assert adata.uns["spatial"]


def test_no_such_file(tmp_path):
    write_10x_h5(tmp_path / "151673.h5")
    with pytest.raises(InputError, match=r"no file or folder .*151637\.h5.*Did you mean '151673\.h5'\?"):
        io.read(tmp_path / "151637.h5")
    with pytest.raises(InputError, match=r"holds '151673\.h5'"):
        io.read(tmp_path / "something else")
    with pytest.raises(InputError, match=r"its folder .*nowhere does not exist"):
        io.read(str(tmp_path / "nowhere" / "x.h5"))
    with pytest.raises(InputError, match="no file or folder"):
        io.read(tmp_path / "151673.h5", coordinates=tmp_path / "none.csv")
    with pytest.raises(InputError, match="is a folder; expected a table"):
        io.read(tmp_path / "151673.h5", coordinates=tmp_path)


@pytest.mark.parametrize(
    "content", [b"\x89PNG\r\n\x1a\n\x00\x00", b"\xff\xfe\xfa\x80", gzip.compress(b"RDX3\n\xff\x00")]
)
def test_unknown_format(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(InputError, match=r"is of no known format\. Expected an \.h5ad file, a Visium folder"):
        io.read(tmp_path / "file")


def test_hdf5_of_another_kind(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["layers/spliced"], file["row_attrs"] = 1, 2
    with pytest.raises(InputError, match=r"neither h5ad .* nor a 10x matrix .*holds 'layers', 'row_attrs'"):
        io.read(tmp_path / "x.h5")
    with pytest.raises(InputError, match=r"is no 10x matrix.*found 'layers', 'row_attrs'"):
        io.read_10x_h5(tmp_path / "x.h5")


def test_damaged_files_through_the_door(tmp_path):
    path = write_10x_h5(tmp_path / "m.h5")
    _cut(path)
    with pytest.raises(InputError, match=r"m\.h5 cannot be read as an HDF5 file"):
        io.read(path)
    counts = write_counts_table(tmp_path / "c.tsv.gz")
    counts.write_bytes(counts.read_bytes()[:15])
    with pytest.raises(InputError, match=r"c\.tsv\.gz cannot be read as text"):
        io.read(counts)


def test_folder_without_input(tmp_path):
    with pytest.raises(InputError, match="no input of a known format, but nothing"):
        io.read(tmp_path)
    write_text(tmp_path / "notes.txt", "hello")
    with pytest.raises(InputError, match=r"but 'notes\.txt'\. Expected"):
        io.read(tmp_path)


def test_options_that_an_input_cannot_heed(tmp_path):
    anndata.AnnData(COUNTS).write_h5ad(tmp_path / "s.h5ad")
    with pytest.raises(InputError, match="genome='hg19' was asked for, but only 10x HDF5"):
        io.read(tmp_path / "s.h5ad", genome="hg19")
    with pytest.raises(InputError, match=r"library_id='x' was given, but .* is no Visium folder"):
        io.read(tmp_path / "s.h5ad", library_id="x")
    path = write_legacy_h5(tmp_path / "m.h5", {"a": COUNTS, "b": 2 * COUNTS})
    assert_is_section(
        io.read(path, coordinates=write_coordinates(tmp_path / "xy.csv"), genome="b"), counts=2 * COUNTS
    )
    assert list(io.read(write_visium(tmp_path / "v"), library_id="x", genome="GRCh38").uns["spatial"]) == [
        "x"
    ]


# --- small parts ------------------------------------------------------------------------------


def test_examples():
    assert examples([]) == "nothing"
    assert examples("abc") == "'a', 'b', 'c'"
    assert examples("abcd") == "'a', 'b', 'c', ..."


def test_lack_of_memory_is_not_blamed_on_the_file(tmp_path):
    with pytest.raises(MemoryError), reading(tmp_path, "anything"):
        raise MemoryError
    with (
        pytest.raises(InputError, match=r"cannot be read as anything \(EOFError\)"),
        reading(tmp_path, "anything"),
    ):
        raise EOFError


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    write_text(tmp_path / "a.txt", "x")
    assert existing("~/a.txt") == tmp_path / "a.txt"


# --- writing ----------------------------------------------------------------------------------


def write_half(context, error):
    with context as path:
        (path / "a" if path.is_dir() else path).write_text("half")
        raise error


def test_file_appears_only_when_whole(tmp_path):
    target = tmp_path / "new" / "deep" / "a.csv"
    with pytest.raises(RuntimeError):
        write_half(io.atomic_path(target), RuntimeError)
    assert list(tmp_path.iterdir()) == []
    with io.atomic_path(target) as path:
        assert path.suffix == ".csv"
        path.write_text("whole")
        assert not target.exists()
    assert [p.name for p in target.parent.iterdir()] == ["a.csv"]
    with (
        pytest.raises(InputError, match=r"exists\. Choose another name, or overwrite it \(--force\)"),
        io.atomic_path(target),
    ):
        pass
    with pytest.raises(KeyboardInterrupt):
        write_half(io.atomic_path(target, overwrite=True), KeyboardInterrupt)
    assert target.read_text() == "whole"
    with io.atomic_path(target, overwrite=True) as path:
        path.write_text("other")
    assert target.read_text() == "other"
    with pytest.raises(InputError, match="is a folder"), io.atomic_path(target.parent):
        pass


def test_folder_appears_only_when_whole(tmp_path):
    target = tmp_path / "new" / "OUT"
    with pytest.raises(RuntimeError):
        write_half(io.atomic_folder(target), RuntimeError)
    assert list(tmp_path.iterdir()) == []
    with io.atomic_folder(target) as folder:
        (folder / "a").write_text("1")
        assert not target.exists()
    with pytest.raises(InputError, match=r"not empty \(it holds 'a'\)"), io.atomic_folder(target):
        pass
    (target / "mine").write_text("keep")
    with pytest.raises(RuntimeError):
        write_half(io.atomic_folder(target, overwrite=True), RuntimeError)
    with io.atomic_folder(target, overwrite=True) as folder:
        (folder / "a").write_text("2")
        (folder / "sub").mkdir()
        (folder / "sub" / "b").write_text("3")
    found = {str(p.relative_to(target)): p.read_text() for p in target.rglob("*") if p.is_file()}
    assert found == {"a": "2", "mine": "keep", str(Path("sub", "b")): "3"}
    assert list(target.parent.iterdir()) == [target]
    (tmp_path / "empty").mkdir()
    with io.atomic_folder(tmp_path / "empty") as folder:
        (folder / "a").write_text("1")
    assert (tmp_path / "empty" / "a").read_text() == "1"


def test_places_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(InputError, match="is a file; expected the name of a folder"),
        io.atomic_folder(tmp_path / "file"),
    ):
        pass
    with pytest.raises(InputError, match="cannot be written"), io.atomic_folder(tmp_path / "file" / "OUT"):
        pass
    with pytest.raises(InputError, match="cannot be written"), io.atomic_path(tmp_path / "file" / "a.csv"):
        pass
    (tmp_path / "OUT").mkdir()
    # permissions do not bind root, as whom tests may run
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(InputError, match="no permission to write"), io.atomic_path(tmp_path / "a.csv"):
        pass
    with pytest.raises(InputError, match="OUT cannot be written"), io.atomic_folder(tmp_path / "OUT"):
        pass


# --- real files -------------------------------------------------------------------------------


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


@pytest.mark.parametrize("section", ["dlpfc_151673", "dlpfc_151507"])
def test_real_seed_layout(shared_dir, tmp_path, section):
    """The real barcodes, positions and layer labels, with simulated counts in 10x format."""
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
    # columns of the array run along x, rows along y
    assert np.corrcoef(adata.obs["array_col"], adata.obsm["spatial"][:, 0])[0, 1] > 0.999
    assert np.corrcoef(adata.obs["array_row"], adata.obsm["spatial"][:, 1])[0, 1] > 0.999


@pytest.mark.parametrize("table", ["A1_selection.tsv", "A1_labeled_coordinates.tsv"])
def test_real_text_tables(shared_dir, table):
    """HER2ST as published, against the same section as h5ad."""
    raw = shared_dir / "formats" / "her2st_raw"
    adata = io.read(raw / "A1.tsv.gz", coordinates=raw / table)
    expected = io.read(shared_dir / "data" / "her2st_A1.h5ad")
    assert list(adata.obs_names) == list(expected.obs_names)
    assert list(adata.var_names) == list(expected.var_names)
    assert (adata.X != expected.X).nnz == 0
    if "label" in adata.obs:
        np.testing.assert_array_equal(np.rint(adata.obsm["spatial"]), expected.obsm["spatial"])
        known = expected.obs["ground_truth"].notna().to_numpy()
        assert (
            adata.obs["label"].to_numpy()[known] == expected.obs["ground_truth"].astype(str).to_numpy()[known]
        ).all()
    else:
        np.testing.assert_array_equal(adata.obsm["spatial"], expected.obsm["spatial"])


def test_real_table_with_those_of_another_section(shared_dir):
    raw = shared_dir / "formats" / "her2st_raw"
    with pytest.warns(AmilstWarning, match=r"275 of 603 spots left out: 275 have no row"):
        io.read(raw / "H2.tsv.gz", coordinates=raw / "A1_selection.tsv")


def test_real_h5ad(shared_dir):
    adata = io.read(shared_dir / "data" / "mOB.h5ad")
    assert adata.shape == (262, 15928)
    assert adata.obsm["spatial"].shape == (262, 2)
    with pytest.raises(InputError, match=r"holds 9 inputs.*'mOB\.h5ad'"):
        io.read(shared_dir / "data")


TENX = [
    ("cellranger1_filtered_gene_bc_matrices.h5", (12, 343)),
    ("cellranger3_filtered_feature_bc_matrix.h5", (1107, 507)),
    ("raw_probe_bc_matrix.h5", (4987, 1000)),
    ("cellranger1_mtx", (12, 343)),
    ("cellranger3_mtx", (1107, 507)),
]


@pytest.mark.parametrize(("name", "shape"), TENX)
def test_real_10x(shared_dir, name, shape):
    reader = io.read_10x_h5 if name.endswith(".h5") else io.read_10x_mtx
    assert reader(shared_dir / "formats" / "tenx" / name).shape == shape


def test_real_10x_h5_and_matrix_market_agree(shared_dir):
    tenx = shared_dir / "formats" / "tenx"
    from_h5 = io.read_10x_h5(tenx / "cellranger3_filtered_feature_bc_matrix.h5")
    from_mtx = io.read_10x_mtx(tenx / "cellranger3_mtx")
    assert (from_h5.X != from_mtx.X).nnz == 0
    pd.testing.assert_frame_equal(from_h5.obs, from_mtx.obs)
    pd.testing.assert_frame_equal(from_h5.var[["gene_ids", "feature_types"]], from_mtx.var)


def test_real_10x_with_several_genomes(shared_dir):
    path = shared_dir / "formats" / "tenx" / "cellranger1_multiple_genomes.h5"
    with pytest.raises(InputError, match=r"'another_genome', 'hg19_chr21'; choose one"):
        io.read_10x_h5(path)
    assert io.read_10x_h5(path, genome="another_genome").var_names[0] == "gene_0"
    assert io.read_10x_h5(path, genome="hg19_chr21").var_names[0] == "DSCAM"


# --- scanpy as the oracle ---------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, _ in TENX])
def test_10x_as_scanpy_reads_it(shared_dir, name):
    scanpy = pytest.importorskip("scanpy")
    path = shared_dir / "formats" / "tenx" / name
    if name.endswith(".h5"):
        ours, theirs = io.read_10x_h5(path), scanpy.read_10x_h5(path)
    else:
        ours, theirs = io.read_10x_mtx(path), scanpy.read_10x_mtx(path)
    assert (ours.X != theirs.X).nnz == 0
    assert list(ours.obs_names) == list(theirs.obs_names)
    assert list(ours.var_names) == list(theirs.var_names)
    for column in theirs.var:
        np.testing.assert_array_equal(ours.var[column], theirs.var[column])
    pd.testing.assert_frame_equal(ours.obs, theirs.obs)


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
