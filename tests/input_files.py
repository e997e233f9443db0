"""Small files in every input format, written by the tests themselves."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import h5py
import numpy as np
from scipy import io as scipy_io
from scipy import sparse

N_SPOTS, N_GENES = 12, 7
BARCODES = [f"{'ACGT'[i % 4]}{'ACGT'[i // 4]}GATTACA-1" for i in range(N_SPOTS)]
GENES = [f"Gene{j}" for j in range(N_GENES)]
GENE_IDS = [f"ENSG{j:03d}" for j in range(N_GENES)]
COUNTS = np.random.default_rng(0).poisson(0.7, (N_SPOTS, N_GENES)).astype(np.float32)


def write_10x_h5(
    path: Path, counts=COUNTS, barcodes=BARCODES, genes=GENES, gene_ids=None, **features
) -> Path:
    """A matrix in the layout of Cell Ranger 3+; ``features`` are additional columns."""
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
    """Matrices in the layout of Cell Ranger 1 and 2, one group per genome."""
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
    """Positions of Space Ranger in another order than the counts, with two spots that have no counts."""
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
    """Check the counts written here, and the matrix type that every reader returns."""
    assert isinstance(adata.X, sparse.csr_matrix)
    assert adata.X.dtype == np.float32
    assert adata.X.has_canonical_format
    np.testing.assert_array_equal(adata.X.toarray(), counts)
    assert list(adata.obs_names) == list(names)
    assert list(adata.var_names) == list(genes)


def truncate(path: Path, share: float = 0.5) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def replace_dataset(path: Path, name: str, value) -> None:
    with h5py.File(path, "a") as file:
        del file[name]
        if value is not None:
            file[name] = value
