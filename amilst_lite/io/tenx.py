"""10x Genomics matrices: HDF5 files of Cell Ranger 1, 2 and 3+, and Matrix Market folders."""

from __future__ import annotations

import csv
from collections import UserDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pandas as pd
from scipy import sparse

from ..errors import InputError
from .entries import read_matrix_market
from .files import (
    PathLike,
    examples,
    existing,
    existing_file,
    find_one,
    hdf5_has,
    holds,
    listing,
    open_text,
    reading,
    text_head,
)
from .hdf5 import open_hdf5, own_group
from .matrix import assemble, to_csr
from .platform import Platform

if TYPE_CHECKING:
    from anndata import AnnData

GENE_EXPRESSION = "Gene Expression"
MATRIX_NAMES = ("matrix.mtx.gz", "matrix.mtx")

# columns of /matrix/features that have another name in var, or are not copied
_RENAMED_FEATURES = {"name", "id", "gene_id", "feature_type", "_all_tag_keys"}


def legacy_genomes(file: h5py.File) -> list[str]:
    """Names of the groups that hold a matrix in the layout of Cell Ranger 1 and 2, one per genome."""
    needed = {"barcodes", "genes", "data", "indices", "indptr"}
    return [name for name in file if (group := own_group(file, name)) is not None and needed <= set(group)]


def is_10x(file: h5py.File) -> bool:
    """Whether an open HDF5 file contains a 10x matrix of any version."""
    matrix = own_group(file, "matrix")
    return (matrix is not None and "features" in matrix) or bool(legacy_genomes(file))


class _CSRGroup(h5py.Group):
    """A 10x matrix with the attributes by which anndata recognizes a CSR matrix on disk.

    ``anndata.io.sparse_dataset`` takes shape and format from the attributes of the group alone. A 10x file
    has none of them, and it is opened read-only.
    """

    @property
    def attrs(self) -> UserDict[str, Any]:
        shape = self["shape"][:] if "shape" in self else (len(self["genes"]), len(self["barcodes"]))
        encoding = {"encoding-type": "csr_matrix", "encoding-version": "0.1.0"}
        # stored as genes × barcodes in CSC, which is barcodes × genes in CSR
        return UserDict({**encoding, "shape": (int(shape[1]), int(shape[0]))})


def read_10x_h5(
    path: PathLike,
    *,
    genome: str | None = None,
    gene_expression_only: bool = True,
    backed: bool = False,
) -> AnnData:
    """Read a 10x HDF5 matrix (Cell Ranger 1, 2 or 3+, Space Ranger; also probe matrices).

    Parameters
    ----------
    path
        E.g. ``filtered_feature_bc_matrix.h5``.
    genome
        Keep only the genes of this genome. Files of Cell Ranger 1 and 2 have one matrix per genome; if
        there are several, one must be chosen.
    gene_expression_only
        Leave out features that are not genes (antibodies, guides, ...).
    backed
        Leave ``X`` on disk, to be read in blocks of rows. If features have to be left out, ``X`` is read
        into memory nevertheless.

    Returns
    -------
    AnnData
        n barcodes × d genes. ``X``: counts, CSR, float32. ``var``: named by gene symbol (by probe in
        a probe matrix); ``gene_ids``, ``feature_types``, ``genome`` and the other feature columns of the
        file (``probe_ids``, ``filtered_probes``, ``probe_region``). ``obs``: ``filtered_barcodes`` in a
        probe matrix.

    Raises
    ------
    InputError
        The file is missing, a folder, broken or not a 10x matrix; or the genome is missing or ambiguous.

    References
    ----------
    10x Genomics, "Feature-Barcode Matrices in HDF5 format", Cell Ranger documentation.
    """
    path = existing_file(path, "a 10x HDF5 file")
    with open_hdf5(path, "a 10x HDF5 matrix") as file:
        if not is_10x(file):
            raise InputError(
                f"{path} is not a 10x matrix: expected a group 'matrix' with 'features' (Cell Ranger 3+) or "
                f"one group per genome (Cell Ranger 1, 2), found {examples(file, 8)}."
            )
        if "matrix" in file:
            group, genes = file["matrix"], "features/id"
            features = group["features"]
            var = pd.DataFrame(index=_text(features["name"]))
            var["gene_ids"] = _text(features.get("gene_id", features["id"]))
            if "gene_id" in features:
                var["probe_ids"] = _text(features["id"])
            var["feature_types"] = _text(features["feature_type"])
            for name, column in features.items():
                if isinstance(column, h5py.Dataset) and name not in _RENAMED_FEATURES:
                    var[name] = column[:].astype(bool) if column.dtype.kind == "b" else _text(column)
        else:
            group, genes = file[_choose_genome(legacy_genomes(file), genome, path)], "genes"
            var = pd.DataFrame(index=_text(group["gene_names"]))
            var["gene_ids"] = _text(group["genes"])
            var["feature_types"] = GENE_EXPRESSION
            var["genome"] = group.name.strip("/")
        obs = pd.DataFrame(index=_text(group["barcodes"]))
        if "filtered_barcodes" in group:
            obs["filtered_barcodes"] = group["filtered_barcodes"][:].astype(bool)
        if backed:
            matrix = _on_disk(path, group.name)
        else:
            # stored as genes × barcodes in CSC, which is barcodes × genes in CSR
            # in the types of the result; HDF5 converts while it reads, and what is out of range to the largest
            arrays = (
                group["data"].astype(np.float32)[:],
                group["indices"].astype(np.int32)[:],
                group["indptr"][:],
            )
            matrix = to_csr(sparse.csr_matrix(arrays, shape=(len(group["barcodes"]), len(group[genes]))))
    return _select(assemble(matrix, obs, var, path), path, TENX_H5, genome, gene_expression_only)


def read_10x_mtx(path: PathLike, *, gene_expression_only: bool = True) -> AnnData:
    """Read a 10x Matrix Market folder: matrix, barcodes, and genes (Cell Ranger 1, 2) or features (3+).

    Parameters
    ----------
    path
        The folder, or the ``matrix.mtx[.gz]`` in it. Each of the three files may be compressed with gzip,
        and they may have a common prefix (``GSM123_matrix.mtx.gz``).
    gene_expression_only
        Leave out features that are not genes (antibodies, guides, ...).

    Returns
    -------
    AnnData
        n barcodes × d genes. ``X``: counts, CSR, float32. ``var``: named by gene symbol; ``gene_ids``,
        ``feature_types``.

    Raises
    ------
    InputError
        The folder or one of the files is missing or broken, or their lengths disagree.
    """
    path = existing(path)
    matrix_path = find_one(path, MATRIX_NAMES) if path.is_dir() else path
    if matrix_path is None:
        raise InputError(
            f"{path} is not a Matrix Market folder: expected matrix.mtx or matrix.mtx.gz, found "
            f"{listing(path)}."
        )
    if not matrix_path.name.endswith(MATRIX_NAMES):
        raise InputError(f"{path} is not a Matrix Market file: expected a name ending in matrix.mtx[.gz].")
    prefix = matrix_path.name.removesuffix(".gz").removesuffix("matrix.mtx")
    barcodes = _read_names(matrix_path, prefix, ("barcodes",))
    features = _read_names(matrix_path, prefix, ("features", "genes"))
    matrix = read_matrix_market(existing(matrix_path))  # stored as genes × barcodes
    var = pd.DataFrame(index=pd.Index(features.iloc[:, min(1, features.shape[1] - 1)]))
    var["gene_ids"] = features[0].to_numpy()
    var["feature_types"] = features[2].to_numpy() if features.shape[1] > 2 else GENE_EXPRESSION
    adata = assemble(matrix, pd.DataFrame(index=pd.Index(barcodes[0])), var, matrix_path)
    return _select(adata, matrix_path, TENX_MTX, None, gene_expression_only)


def _on_disk(path: Path, group: str) -> Any:
    """The matrix in ``group`` of a file, barcodes × genes, on disk; the file remains open."""
    from anndata.io import sparse_dataset

    return sparse_dataset(_CSRGroup(h5py.File(path, "r")[group].id))


def _text(dataset: h5py.Dataset) -> np.ndarray:
    return dataset.asstr()[:].astype(object)


def _choose_genome(genomes: list[str], genome: str | None, path: Path) -> str:
    if genome is None and len(genomes) == 1:
        return genomes[0]
    if genome not in genomes:
        raise InputError(
            f"{path} contains the genome(s) {examples(genomes, 8)}; "
            f"{'choose one with' if genome is None else 'there is no'} genome={genome or genomes[0]!r}."
        )
    return genome


def _read_names(matrix_path: Path, prefix: str, stems: tuple[str, ...]) -> pd.DataFrame:
    """The text file next to the matrix with the names of one axis, without header; all columns as text."""
    names = [f"{prefix}{stem}.tsv{ending}" for stem in stems for ending in (".gz", "")]
    path = next((matrix_path.with_name(name) for name in names if matrix_path.with_name(name).exists()), None)
    if path is None:
        raise InputError(f"Next to {matrix_path} there is no {' or '.join(names)}; expected one of them.")
    # there are genes named NA and NaN, and genes with a prime
    with reading(path, "tab-separated names"), open_text(existing(path), at_once=True) as handle:
        return pd.read_csv(handle, sep="\t", header=None, dtype=str, na_filter=False, quoting=csv.QUOTE_NONE)


def _select(
    adata: AnnData, path: Path, platform: Platform, genome: str | None, gene_expression_only: bool
) -> AnnData:
    """Keep the requested genome and feature type."""
    wanted = np.ones(adata.n_vars, dtype=bool)
    types = adata.var["feature_types"]
    if genome is not None:
        genomes = adata.var["genome"]
        wanted &= (genomes == _choose_genome(list(genomes.unique()), genome, path)).to_numpy()
    if gene_expression_only:
        wanted &= (types == GENE_EXPRESSION).to_numpy()
    if not wanted.any():
        raise InputError(
            f"{path} has no features of the type {GENE_EXPRESSION!r}, only {examples(types.unique())}. "
            "read_10x_h5 and read_10x_mtx keep them with gene_expression_only=False."
        )
    left_out = types[~wanted].where(types != GENE_EXPRESSION, "genes of other genomes").value_counts()
    adata = adata if wanted.all() else adata[:, wanted].copy()
    return platform.describe(adata, path, left_out=dict(left_out))


def is_10x_mtx(path: Path) -> bool:
    """Whether ``path`` is a Matrix Market file or a folder that contains one."""
    return holds(path, MATRIX_NAMES) or (text_head(path) or "").startswith("%%MatrixMarket")


TENX_H5 = Platform(
    name="10x_h5",
    title="10x HDF5",
    files="`filtered_feature_bc_matrix.h5` of Cell Ranger 1 and later, with `--coordinates TABLE`",
    read=read_10x_h5,
    recognizes=lambda path: hdf5_has(path, is_10x),
    options=("genome", "backed"),
    needs_coordinates=True,
)
TENX_MTX = Platform(
    name="10x_mtx",
    title="10x Matrix Market",
    files="`matrix.mtx`, `barcodes.tsv` and `features.tsv` or `genes.tsv`, `.gz` or not, with `--coordinates TABLE`",
    read=read_10x_mtx,
    recognizes=is_10x_mtx,
    needs_coordinates=True,
)
