"""Xenium: the output folder of Xenium Onboard Analysis and Xenium Ranger."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from ..errors import InputError
from .coordinates import SpotTable
from .files import PathLike, examples, existing, find_one, holds, listing, reading
from .matrix import assemble, leave_out, to_csr
from .platform import Platform
from .tables import join_cells
from .tenx import GENE_EXPRESSION, read_10x_h5, read_10x_mtx
from .zarr_store import open_zarr

if TYPE_CHECKING:
    from anndata import AnnData

_COUNTS = (
    "cell_feature_matrix.h5",
    "cell_feature_matrix",
    "cell_feature_matrix.zarr.zip",
    "cell_feature_matrix.zarr",
)
# as text before those that need a package; bundles for Xenium Explorer (xe_outs) have zarr only
_CELLS = ("cells.csv.gz", "cells.csv", "cells.parquet", "cells.zarr.zip", "cells.zarr")

# the panels of the first releases list their controls as genes
_CONTROLS = {
    "control probes": r"^(?:NegControlProbe|antisense)_",
    "control codewords": r"^NegControlCodeword_",
    "unassigned codewords": r"^(?:UnassignedCodeword|DeprecatedCodeword|BLANK)_",
}


def read_xenium(path: PathLike) -> AnnData:
    """Read the cells of a Xenium section.

    Parameters
    ----------
    path
        Output folder with ``cell_feature_matrix.h5`` (or the folder of that name, or ``.zarr.zip``) and
        ``cells.csv.gz`` (or ``cells.parquet`` or ``cells.zarr.zip``); or the matrix in it, to choose one. A prefix
        of the file names is accepted, as in public archives.

    Returns
    -------
    AnnData
        n cells × d genes. ``X``: transcript counts, CSR, float32. ``obsm["spatial"]``: cell centroids, (n, 2),
        float64, µm. ``obs``: the other columns of the cell table. Features other than genes (control probes,
        control codewords, unassigned codewords, ...) are left out and counted in ``uns["amilst_input"]``.

    Warns
    -----
    AmilstWarning
        Cells have no position or no counts and were left out, or names repeat.

    Raises
    ------
    InputError
        Counts or cells are missing or broken, or not of one section.
    MissingExtraError
        There is only a parquet table, and pyarrow is not installed.

    References
    ----------
    10x Genomics, "Understanding Xenium Outputs", Xenium Onboard Analysis documentation.
    """
    path = existing(path)
    is_matrix = path.name.endswith(_COUNTS) and not _is_folder(path)
    folder = path.parent if is_matrix else path
    counts, cells = path if is_matrix else find_one(folder, _COUNTS), find_one(folder, _CELLS)
    if counts is None or cells is None:
        what = "counts: expected cell_feature_matrix.h5" if counts is None else "cells: expected cells.csv.gz"
        raise InputError(
            f"{folder} has no {what} (or one of {examples(_COUNTS if counts is None else _CELLS, 4)}) as written "
            f"by Xenium; found {listing(folder)}. Give the folder that holds both."
        )
    if ".zarr" in cells.name:
        table = _read_cells(cells)
    else:
        axes = ["x_centroid", "y_centroid"]
        table = SpotTable.read_known(cells, ["cell_id"], axes, "Xenium's table of cells")
    table.coordinates()  # report errors in a small file before reading a large one
    if ".zarr" in counts.name:
        adata = _read_zarr(counts)
    elif counts.is_dir():
        adata = read_10x_mtx(counts, gene_expression_only=False)
    else:
        adata = read_10x_h5(counts, gene_expression_only=False)
    types = adata.var["feature_types"].astype(str)
    adata, controls = leave_out(adata, counts, _CONTROLS, types.where(types != GENE_EXPRESSION))
    return XENIUM.describe(join_cells(adata, table, counts), path, left_out=controls)


def _is_folder(path: Path) -> bool:
    return holds(path, _COUNTS, _CELLS)


def _recognizes(path: Path) -> bool:
    return _is_folder(path) or (path.name.endswith(_COUNTS) and holds(path.parent, _COUNTS, _CELLS))


def _read_cells(path: Path) -> SpotTable:
    """The table of cells in a zarr store."""
    with reading(path, "Xenium's zarr table of cells"):
        group: Any = open_zarr(path)
        summary = group["cell_summary"]
        frame = pd.DataFrame(np.asarray(summary[:]), columns=list(summary.attrs["column_names"]))
        names = cell_names(np.asarray(group["cell_id"][:]))
        axes = ("cell_centroid_x", "cell_centroid_y")
        if len(names) != len(frame) or not set(axes) <= set(frame):
            raise ValueError(
                f"expected {axes[0]} and {axes[1]} of each of {len(names)} cells; found {len(frame)} rows of "
                f"{examples(frame, 12)}"
            )
    return SpotTable(path, frame, identifier=pd.Index(names, dtype=object, name="cell_id"), axes=axes)


def _read_zarr(path: Path) -> AnnData:
    """The matrix of a zarr store: features × cells as CSR, and the two numbers of each cell's name."""
    with reading(path, "Xenium's zarr matrix"):
        group: Any = open_zarr(path)["cell_features"]
        arrays = tuple(np.asarray(group[name][:]) for name in ("data", "indices", "indptr"))
        names, ids, types = (list(group.attrs[f"feature_{name}"]) for name in ("keys", "ids", "types"))
        cells = pd.Index(cell_names(np.asarray(group["cell_id"][:])))
        if len(arrays[2]) != len(names) + 1:
            raise InputError(
                f"{path}: expected a matrix of {len(names)} features × cells; found {len(arrays[2]) - 1} rows. "
                "Use cell_feature_matrix.h5 of the same section."
            )
        counts = to_csr(sparse.csr_matrix(arrays, shape=(len(names), len(cells))).T)
    # the names of the types are those of the HDF5 file in lower case: gene, negative_control_probe, ...
    words = pd.Series(types).astype(str).str.replace("_", " ")
    var = pd.DataFrame({"gene_ids": ids}, index=pd.Index(names))
    var["feature_types"] = words.where(~words.isin(["gene", "gene expression"]), GENE_EXPRESSION).to_numpy()
    return assemble(counts, pd.DataFrame(index=cells), var, path)


def cell_names(numbers: np.ndarray) -> list[str]:
    """Names of cells, as in the table of cells.

    Parameters
    ----------
    numbers
        (n, 2): 32 bits, written in hexadecimal digits a to p, and the section, as in ``"aaaabcde-1"``; or (n,) or
        (n, 1), numbers that are the names (Xenium Onboard Analysis 1.0 to 1.2).
    """
    if numbers.ndim == 1 or numbers.shape[1] == 1:
        return [str(number) for number in numbers.ravel().tolist()]
    digits = str.maketrans("0123456789abcdef", "abcdefghijklmnop")
    return [f"{first:08x}".translate(digits) + f"-{second}" for first, second in numbers.tolist()]


XENIUM = Platform(
    name="xenium",
    title="Xenium",
    files=(
        "output folder: `cell_feature_matrix.h5`, folder or `.zarr.zip`, and `cells.csv.gz`, `.parquet` or `.zarr.zip`"
    ),
    read=read_xenium,
    recognizes=_recognizes,
    unit="micrometer",
)
