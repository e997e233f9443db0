"""10x HDF5 and Matrix Market: files written by the tests, public files, scanpy as the oracle."""

import h5py
import numpy as np
import pandas as pd
import pytest
from input_files import (
    BARCODES,
    COUNTS,
    GENE_IDS,
    GENES,
    N_GENES,
    N_SPOTS,
    assert_is_section,
    replace_dataset,
    truncate,
    write_10x_h5,
    write_legacy_h5,
    write_mtx,
    write_text,
)

from amilst_lite import io
from amilst_lite.errors import AmilstWarning, InputError


def test_10x_h5_of_cell_ranger_3(tmp_path):
    adata = io.read_10x_h5(write_10x_h5(tmp_path / "m.h5"))
    assert_is_section(adata)
    assert list(adata.var["gene_ids"]) == GENE_IDS
    assert set(adata.var["feature_types"]) == {"Gene Expression"}
    assert set(adata.var["genome"]) == {"GRCh38"}


def test_10x_h5_keeps_only_gene_expression_by_default(tmp_path):
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
    with pytest.raises(InputError, match=r"contains the genome.*'GRCh38', 'mm10'; there is no genome='hg19'"):
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


def test_10x_matrix_market_with_missing_or_inconsistent_parts(tmp_path):
    folder = write_mtx(tmp_path / "m")
    (folder / "barcodes.tsv.gz").unlink()
    with pytest.raises(InputError, match=r"there is no barcodes\.tsv\.gz or barcodes\.tsv"):
        io.read_10x_mtx(folder)
    write_text(folder / "barcodes.tsv", "A\nB\n")
    with pytest.raises(InputError, match=r"12 spots × 7 genes, but there are names of 2 spots and 7 genes"):
        io.read_10x_mtx(folder)
    with pytest.raises(InputError, match="not a Matrix Market folder"):
        io.read_10x_mtx(tmp_path)
    write_mtx(tmp_path / "flat", prefix="GSM1_")
    write_mtx(tmp_path / "flat", prefix="GSM2_")
    with pytest.raises(InputError, match=r"2 files whose names end in 'matrix\.mtx\.gz'.*'GSM1_"):
        io.read_10x_mtx(tmp_path / "flat")
    assert_is_section(io.read_10x_mtx(tmp_path / "flat" / "GSM2_matrix.mtx.gz"))


def test_repeated_names_are_made_unique_with_a_warning(tmp_path):
    path = write_10x_h5(tmp_path / "m.h5", genes=["A", "A", "A", *GENES[3:]])
    with pytest.warns(AmilstWarning, match=r"2 of 7 gene names repeat an earlier one \(e\.g\. 'A'\)"):
        adata = io.read_10x_h5(path)
    assert list(adata.var_names[:3]) == ["A", "A-1", "A-2"]
    path = write_10x_h5(tmp_path / "n.h5", barcodes=[BARCODES[0], *BARCODES[:-1]])
    with pytest.warns(AmilstWarning, match="1 of 12 spot names repeat"):
        assert io.read_10x_h5(path).obs_names.is_unique


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "cannot be read as"),
        (lambda path: path.write_bytes(b""), r"is empty \(0 bytes\)"),
        (lambda path: path.write_bytes(b"nonsense"), "cannot be read as"),
        (lambda path: replace_dataset(path, "matrix/indptr", None), "cannot be read as a 10x HDF5 matrix"),
        (lambda path: replace_dataset(path, "matrix/features", None), "is not a 10x matrix.*found 'matrix'"),
        (lambda path: replace_dataset(path, "matrix/barcodes", np.array([b"A"])), "cannot be read as"),
        (lambda path: replace_dataset(path, "matrix/features/name", np.array([b"A"])), "cannot be read as"),
        (lambda path: replace_dataset(path, "matrix/data", np.ones(3)), "cannot be read as"),
        (
            lambda path: replace_dataset(
                path, "matrix/indices", -np.ones(np.count_nonzero(COUNTS), dtype=int)
            ),
            "cannot be read as.*ind",
        ),
        (
            lambda path: replace_dataset(path, "matrix/indices", np.full(np.count_nonzero(COUNTS), 99)),
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
@pytest.mark.parametrize("damage", [truncate, lambda path: path.write_bytes(b"")])
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


def test_duplicate_entries_are_summed(tmp_path):
    """Entries in a random order, each stored as two halves of the count."""
    row, column = np.nonzero(COUNTS)
    halves = np.concatenate([np.ceil(COUNTS[row, column] / 2), np.floor(COUNTS[row, column] / 2)])
    row, column = np.tile(row, 2), np.tile(column, 2)
    order = np.argsort(row + np.random.default_rng(1).random(len(row)))  # any order within a row
    path = write_10x_h5(tmp_path / "m.h5")
    for name, values in {
        "data": halves[order].astype(np.int32),
        "indices": column[order],
        "indptr": np.searchsorted(row[order], np.arange(N_SPOTS + 1)),
    }.items():
        replace_dataset(path, f"matrix/{name}", values)
    assert_is_section(io.read_10x_h5(path))
    folder = write_mtx(tmp_path / "m", version=2)
    entries = [
        f"{j + 1} {i + 1} {n:g}" for i, j, n in zip(row[order], column[order], halves[order], strict=True)
    ]
    head = f"%%MatrixMarket matrix coordinate integer general\n{N_GENES} {N_SPOTS} {len(entries)}\n"
    write_text(folder / "matrix.mtx", head + "\n".join(entries) + "\n")
    assert_is_section(io.read_10x_mtx(folder))
