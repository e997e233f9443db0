"""Stereo-seq: gem (text) and gef (HDF5) files of the SAW pipeline, square bins and cell bins."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pandas as pd
from scipy import sparse

from .. import keys
from ..errors import InputError
from .entries import EntryMatrix, Names, Progress, check_counts, read_lines
from .files import PathLike, examples, existing_file, hdf5_has, open_text, reading, text_head
from .hdf5 import open_hdf5
from .matrix import assemble, to_csr
from .platform import Platform

if TYPE_CHECKING:
    from anndata import AnnData

DEFAULT_BIN_SIZE = 100
"""DNBs; 50 µm, about the size of a Visium spot, and the default of stereopy."""

GEF_VERSIONS = (2, 3, 4)
"""Values of the attribute ``version`` of gef files with the layout described in `read_stereoseq`."""

_AXIS_BITS = 21  # of the key of a bin, for each coordinate
_LARGEST_COORDINATE = 2**_AXIS_BITS - 1
_BLOCK = 2**18  # records of an HDF5 file that are read at a time

_COLUMNS = {
    "gene_id": ("geneid", "gene"),
    "gene_name": ("genename",),
    "x": ("x",),
    "y": ("y",),
    "count": ("midcount", "midcounts", "umicount", "umicounts"),
    "cell": ("cellid", "cell", "label"),
}
"""Our name of a column → the names that it has in gem files, in lower case."""


def read_stereoseq(
    path: PathLike, *, bin_size: int | None = None, progress: Progress | None = None
) -> AnnData:
    """Read a Stereo-seq section: gem or gef, in square bins or in cells.

    Parameters
    ----------
    path
        - gem or gem.gz: lines ``geneID x y MIDCount [ExonCount] [CellID]`` separated by tabs, after comments
          that begin with ``#``. It is read in chunks; bins are summed as the lines arrive.
        - gef, square bins: ``/geneExp/binN/expression`` (x, y, count) and ``gene`` (gene or geneName,
          offset, count).
        - gef, cells: ``/cellBin/cell`` (id, x, y, offset, geneCount), ``cellExp`` (geneID, count), ``gene``.
    bin_size
        Edge length of the square bins in DNBs (0.5 µm on most chips): bin 50 is 25 µm. By default cells where
        the file assigns them, and otherwise bins of `DEFAULT_BIN_SIZE`, or of the size that the file has. Memory is
        that of the result: 10 bytes for each bin and gene, and 200 for each bin, most of them for its name. Of single
        DNBs (1) there are nearly as many as lines; 20 million took 4 GB.
    progress
        Called with the bytes read and the size of the file, for gem files.

    Returns
    -------
    AnnData
        n bins or cells × d genes. ``X``: molecules (MID), CSR, float32. ``obsm["spatial"]``: (n, 2), float64,
        in DNBs as in the file: centers of the bins, which begin at multiples of the bin size; of cells the
        centroid of their molecules (gem) or of their area (gef). Bins without molecules are not listed.
        ``var``: named by gene name where there is one, then with ``gene_ids``. ``uns["amilst_input"]``: the
        size of a DNB in µm (``micrometers_per_unit``) where the file states it.

    Raises
    ------
    InputError
        The file is missing, broken, truncated or of another version; a coordinate is negative or a count too
        large for float32; ``bin_size`` does not fit the file; or nothing is left.

    References
    ----------
    Chen A, et al. Cell 185:1777 (2022). STOmics, "GEF and GEM file formats", SAW user manual.
    """
    path = existing_file(path, "a gem or gef file")
    if bin_size is not None and (isinstance(bin_size, bool) or int(bin_size) != bin_size or bin_size < 1):
        raise InputError(f"bin_size must be a positive integer (DNBs); found {bin_size!r}.")
    if not h5py.is_hdf5(path):
        return _read_gem(path, bin_size, progress)
    with open_hdf5(path, "a gef file") as file:
        _check_version(file, path)
        if "cellBin" in file and (bin_size is None or "geneExp" not in file):
            return _read_cells(file, path, bin_size)
        return _read_bins(file, path, bin_size)


# --- gem ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _GemHeader:
    """The comments and the column names of a gem file."""

    n_lines: int
    columns: dict[str, int]  # our name → position
    bin_size: int

    @classmethod
    def parse(cls, lines: Iterable[str]) -> _GemHeader:
        bin_size, n_lines, line = 1, 0, ""
        for line in lines:
            n_lines += 1
            if not line.startswith("#"):
                break
            name, _, value = line[1:].partition("=")
            if name.strip().lower() == "binsize":
                bin_size = int(value)
        names = [name.strip().lower() for name in line.split("\t")]
        columns = {
            ours: names.index(theirs)
            for ours, spellings in _COLUMNS.items()
            for theirs in spellings
            if theirs in names
        }
        return cls(n_lines, columns, bin_size)

    @property
    def is_complete(self) -> bool:
        return {"x", "y", "count"} <= set(self.columns) and bool({"gene_id", "gene_name"} & set(self.columns))


def _read_gem(path: Path, bin_size: int | None, progress: Progress | None) -> AnnData:
    with reading(path, "a gem file"), open_text(path) as handle:
        header = _GemHeader.parse(handle)
    if not header.is_complete:
        raise InputError(
            f"{path} is not a gem file: expected the columns geneID, x, y and MIDCount, separated by tabs; found "
            f"{examples(header.columns, 12)} after {header.n_lines - 1} lines of comments."
        )
    in_cells = "cell" in header.columns and bin_size is None
    bins = _Bins.fitting(path, bin_size, header.bin_size)
    # the name of a gene identifies it, and its identifier is kept
    gene = "gene_name" if "gene_name" in header.columns else "gene_id"
    dtypes: dict[str, Any] = {gene: "category", "x": np.int64, "y": np.int64, "count": np.int64}
    if gene == "gene_name" and "gene_id" in header.columns:
        dtypes["gene_id"] = "category"
        gene = "gene_id"
    if in_cells:
        dtypes["cell"] = "category"
    wanted = {header.columns[name]: (name, dtype) for name, dtype in dtypes.items()}

    entries, genes, cells = EntryMatrix(), Names(), Names()
    gene_names: dict[str, str] = {}
    centroids, n_outside = _Centroids(), 0
    for lines in read_lines(path, wanted, separator="\t", skip=header.n_lines, progress=progress):
        frame = lines.frame
        check_counts(path, lines, positions=("x", "y"))
        if "gene_name" in frame:
            pairs = frame[["gene_id", "gene_name"]].drop_duplicates("gene_id").astype(str)
            gene_names.update(zip(pairs["gene_id"], pairs["gene_name"], strict=True))
        x, y, counts = (frame[name].to_numpy() for name in ("x", "y", "count"))
        columns = genes.encode(frame[gene])
        with reading(path, "a gem file"):
            if in_cells:
                inside = ~frame["cell"].isin(("0", "", "-1")).to_numpy()
                n_outside += int(counts[~inside].sum())
                rows = cells.encode(frame["cell"])[inside]
                centroids.add(rows, x[inside], y[inside], counts[inside])
                entries.add(rows, columns[inside], counts[inside])
            else:
                entries.add(bins.keys(x, y), columns, counts)

    with reading(path, "a gem file"):
        matrix = entries.finish(len(genes))
    if not matrix.shape[0]:
        raise InputError(
            f"{path} has no molecules{' inside cells' if in_cells else ''}: expected lines of geneID, x, y, "
            f"MIDCount, found {'only lines without a cell' if in_cells else 'none'}. Is the file complete?"
        )
    var = _gene_table(
        genes.index, [gene_names.get(name, name) for name in genes.index] if gene_names else None
    )
    if in_cells:
        left_out = {"molecules outside cells": n_outside}
        names, spatial = cells.index[entries.rows], centroids.mean()[entries.rows]
        return _finish(matrix, names, spatial, var, path, geometry="free", left_out=left_out)
    return _finish(matrix, *bins.positions(entries.rows), var, path, geometry="square")


class _Centroids:
    """Mean position of the molecules of each cell."""

    def __init__(self) -> None:
        self._sums: np.ndarray = np.zeros((0, 3))  # Σ counts, Σ counts x, Σ counts y

    def add(self, rows: np.ndarray, x: np.ndarray, y: np.ndarray, counts: np.ndarray) -> None:
        n_rows = max(int(rows.max(initial=-1)) + 1, len(self._sums))
        sums = [np.bincount(rows, weights, n_rows) for weights in (counts, counts * x, counts * y)]
        earlier = np.pad(self._sums, ((0, n_rows - len(self._sums)), (0, 0)))
        self._sums = earlier + np.column_stack(sums)

    def mean(self) -> np.ndarray:
        return self._sums[:, 1:] / np.maximum(self._sums[:, :1], 1)


# --- gef ------------------------------------------------------------------------------------


def _check_version(file: h5py.File, path: Path) -> None:
    if not {"geneExp", "cellBin"} & set(file):
        raise InputError(
            f"{path} is not a gef file of a supported version: expected /geneExp or /cellBin, found "
            f"{examples(file, 8)}. Files of SAW before version 5 have another layout: convert them to gem."
        )
    version = file.attrs.get("version")
    if version is not None and int(np.ravel(version)[0]) not in GEF_VERSIONS:
        raise InputError(
            f"{path} is a gef file of version {int(np.ravel(version)[0])}; expected one of "
            f"{', '.join(map(str, GEF_VERSIONS))}. Convert it to gem (geftools bgef2gem or cgef2gem), or write it "
            "again with another version of SAW."
        )


def _read_bins(file: h5py.File, path: Path, bin_size: int | None) -> AnnData:
    """Square bins, summed from the smallest bins in the file."""
    sizes = sorted(int(name[3:]) for name in file["geneExp"] if name[:3] == "bin" and name[3:].isdigit())
    if not sizes:
        raise InputError(f"{path}: expected /geneExp/bin1; found {examples(file['geneExp'], 8)}.")
    source = 1 if 1 in sizes else bin_size if bin_size in sizes else sizes[0]
    bins = _Bins.fitting(path, bin_size, source)
    group = file[f"geneExp/bin{source}"]
    expression, gene = group["expression"], group["gene"][:]
    _check_fields(path, expression, "x", "y", "count")
    ends = np.cumsum(gene["count"].astype(np.int64))
    offsets = ends - gene["count"]
    if len(expression) != (ends[-1] if len(ends) else 0) or not np.array_equal(offsets, gene["offset"]):
        raise InputError(
            f"{path} is inconsistent: the genes list {ends[-1] if len(ends) else 0} records, but there are "
            f"{len(expression)}, or their offsets do not follow each other. Download it again."
        )
    entries = EntryMatrix()
    for start in range(0, len(expression), _BLOCK):
        block = expression[start : start + _BLOCK]
        x, y = block["x"].astype(np.int64), block["y"].astype(np.int64)
        if min(x.min(), y.min()) < 0:
            raise InputError(
                f"{path}: expected coordinates that are not negative; found {min(x.min(), y.min())}."
            )
        columns = np.searchsorted(ends, np.arange(start, start + len(block)), side="right")
        entries.add(bins.keys(x, y), columns, block["count"])
    if not len(expression):
        raise InputError(f"{path} has no molecules: /geneExp/bin{source}/expression is empty.")
    matrix = entries.finish(len(gene))
    names, spatial = bins.positions(entries.rows)
    resolution = expression.attrs.get("resolution", file.attrs.get("resolution"))
    return _finish(matrix, names, spatial, _gef_genes(gene), path, geometry="square", resolution=resolution)


def _read_cells(file: h5py.File, path: Path, bin_size: int | None) -> AnnData:
    if bin_size is not None:
        raise InputError(
            f"{path} holds cells and no bins: bin_size={bin_size} applies to files with /geneExp. Leave it out, or "
            "read the gef of square bins (.tissue.gef)."
        )
    group = file["cellBin"]
    expression, cell, gene = group["cellExp"], group["cell"][:], group["gene"][:]
    _check_fields(path, expression, "geneID", "count")
    indptr = np.concatenate([[0], np.cumsum(cell["geneCount"].astype(np.int64))])
    if not len(cell):
        raise InputError(f"{path} has no cells: /cellBin/cell is empty.")
    if indptr[-1] != len(expression) or not np.array_equal(indptr[:-1], cell["offset"]):
        raise InputError(
            f"{path} is inconsistent: the cells list {indptr[-1]} records, but there are {len(expression)}, or "
            "their offsets do not follow each other. Download it again."
        )
    columns, counts = np.empty(len(expression), np.int32), np.empty(len(expression), np.float32)
    for start in range(0, len(expression), _BLOCK):
        block = expression[start : start + _BLOCK]
        columns[start : start + _BLOCK], counts[start : start + _BLOCK] = block["geneID"], block["count"]
    matrix = to_csr(sparse.csr_matrix((counts, columns, indptr), shape=(len(cell), len(gene))))
    spatial = np.column_stack([cell["x"], cell["y"]]).astype(np.float64)
    names = pd.Index(cell["id"].astype(str), dtype=object)
    adata = _finish(
        matrix,
        names,
        spatial,
        _gef_genes(gene),
        path,
        geometry="free",
        resolution=file.attrs.get("resolution"),
    )
    adata.obs["area"] = cell["area"].astype(np.int64)
    return adata


def _check_fields(path: Path, dataset: h5py.Dataset, *names: str) -> None:
    found = dataset.dtype.names or ()
    if not set(names) <= set(found):
        raise InputError(
            f"{path}: {dataset.name} has the fields {examples(found, 8)}; expected {', '.join(names)}. Is it a "
            "gef file of another version?"
        )


def _gef_genes(gene: np.ndarray) -> pd.DataFrame:
    def text(field: str) -> pd.Index:
        return pd.Index(np.char.decode(gene[field], "utf-8"), dtype=object)

    fields = [name for name in ("geneID", "gene", "geneName") if name in (gene.dtype.names or ())]
    return _gene_table(text(fields[0]), text(fields[-1]) if len(fields) > 1 else None)


# --- both -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Bins:
    """Square bins of ``size`` DNBs, made from those of ``in_file`` DNBs in a file."""

    size: int
    in_file: int

    @classmethod
    def fitting(cls, path: Path, bin_size: int | None, in_file: int) -> _Bins:
        size = int(bin_size or (DEFAULT_BIN_SIZE if in_file == 1 else in_file))
        if in_file not in (1, size):
            raise InputError(
                f"{path} holds bins of {in_file} DNBs, from which bins of {size} cannot be made exactly. Leave "
                f"bin_size out, or set it to {in_file}, or read a file of single DNBs (bin 1)."
            )
        return cls(size, in_file)

    def keys(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Keys of the bins (m,), ordered by y, then x."""
        if self.in_file == 1:
            x, y = x // self.size, y // self.size
        if max(x.max(), y.max()) > _LARGEST_COORDINATE:
            raise ValueError(f"a coordinate lies beyond {_LARGEST_COORDINATE} bins, more than any chip has")
        return (y << _AXIS_BITS) | x

    def positions(self, bins: np.ndarray) -> tuple[pd.Index, np.ndarray]:
        """Names ``x_y`` by the first DNB, and centers (n, 2), of bins."""
        corners = np.column_stack([bins & _LARGEST_COORDINATE, bins >> _AXIS_BITS])
        # files of larger bins give the first DNB, or the number of the bin
        if self.in_file == 1 or (corners % self.size).any():
            corners *= self.size
        names = np.empty(len(bins), dtype=object)  # of single DNBs there are millions
        for start in range(0, len(bins), _BLOCK):
            block = corners[start : start + _BLOCK].tolist()
            names[start : start + _BLOCK] = [f"{x}_{y}" for x, y in block]
        return pd.Index(names), corners + (self.size - 1) / 2


def _gene_table(identifiers: pd.Index, names: Any) -> pd.DataFrame:
    if names is None:
        return pd.DataFrame(index=identifiers)
    shown = [name or identifier for name, identifier in zip(names, identifiers, strict=True)]
    return pd.DataFrame({"gene_ids": identifiers.to_numpy()}, index=pd.Index(shown, dtype=object))


def _finish(
    matrix: sparse.csr_matrix,
    names: pd.Index,
    spatial: np.ndarray,
    var: pd.DataFrame,
    path: Path,
    *,
    geometry: str,
    left_out: dict[str, int] | None = None,
    resolution: Any = None,
) -> AnnData:
    adata = assemble(matrix, pd.DataFrame(index=names), var, path)
    adata.obsm[keys.SPATIAL] = spatial
    STEREOSEQ.describe(adata, path, geometry=geometry, left_out=left_out)
    if resolution is not None and np.ravel(resolution)[0] > 0:
        adata.uns[keys.INPUT]["micrometers_per_unit"] = float(np.ravel(resolution)[0]) / 1000  # nm
    return adata


def _recognizes(path: Path) -> bool:
    if hdf5_has(path, lambda file: bool({"geneExp", "cellBin"} & set(file))):
        return True
    try:
        return _GemHeader.parse((text_head(path) or "").splitlines()).is_complete
    except ValueError:  # BinSize
        return False


STEREOSEQ = Platform(
    name="stereoseq",
    title="Stereo-seq",
    files="`*.gem[.gz]` (geneID, x, y, MIDCount[, CellID]) or `*.gef` (square bins or cell bins)",
    read=read_stereoseq,
    recognizes=_recognizes,
    options=("bin_size",),
    unit="spot",
    geometry="square",
)
