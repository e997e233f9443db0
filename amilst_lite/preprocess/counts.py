"""Counts by blocks of rows, from memory or from disk."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from scipy import sparse

from ..errors import InputError

__all__ = ["BLOCK_ENTRIES", "CountRows", "dense_block", "is_on_disk"]

BLOCK_ENTRIES = 4_000_000  # entries of a block, dense (16 MB) or stored (32 MB)

LARGEST_COUNT = 2**24
"""float32 represents all integers below. The same as of the readers (``io.matrix``), which must not import torch."""


def is_on_disk(counts: Any) -> bool:
    """Whether a matrix is a file on disk that is read on access."""
    return not (sparse.issparse(counts) or isinstance(counts, np.ndarray))


def dense_block(block: Any, device: torch.device) -> torch.Tensor:
    """An array, or a scipy sparse matrix, as a dense tensor on a device.

    Only the entries of a sparse matrix are copied to a GPU, a few times less than the zeros between them.
    """
    if not sparse.issparse(block):
        array = np.ascontiguousarray(block)
        return torch.from_numpy(array if array.flags.writeable else array.copy()).to(device)
    if device.type == "cpu":
        return torch.from_numpy(block.toarray())
    if not block.has_canonical_format:
        block = block.copy()
        block.sum_duplicates()
    lengths, inner, values = (
        torch.from_numpy(part).to(device) for part in (np.diff(block.indptr), block.indices, block.data)
    )
    outer = torch.repeat_interleave(lengths, output_size=len(values))
    by_row = block.format == "csr"
    dense = torch.zeros(block.shape, dtype=values.dtype, device=device)
    dense[(outer, inner.long()) if by_row else (inner.long(), outer)] = values
    return dense


class CountRows:
    """Counts by blocks of rows, from memory or from disk.

    Parameters
    ----------
    counts : scipy sparse, ndarray, backed AnnData matrix or HDF5 dataset, (n_spots, n_genes)
        CSR and dense matrices are used without a copy, on disk too. Other sparse formats are converted once,
        and entries of one spot and gene that are stored more than once are summed in a copy.
    genes : ndarray of bool, (n_genes,), optional
        The genes to take of each block; all if not given.

    Attributes
    ----------
    shape : (int, int)
        Spots and genes taken.
    n_entries : int
        Number of stored counts of all genes; of all counts for a dense matrix.

    Raises
    ------
    InputError
        No spots, no genes, not two axes, or a count from `LARGEST_COUNT` on; later, when they are read, corrupt or
        too large entries on disk.
    """

    def __init__(self, counts: Any, genes: np.ndarray | None = None) -> None:
        if len(counts.shape) != 2 or 0 in counts.shape:
            raise InputError(f"expected counts of spots × genes; found an array of shape {counts.shape}.")
        if sparse.issparse(counts):
            if counts.format != "csr":
                counts = sparse.csr_matrix(counts)
            if not counts.has_canonical_format:  # scipy looks at the entries, and keeps the answer
                counts = counts.copy()
                counts.sum_duplicates()
        if getattr(counts, "format", None) == "csc":
            raise InputError(
                "the counts on disk are stored by genes (CSC), from which spots cannot be read in blocks. "
                "Read the file into memory, or store it by spots (CSR)."
            )
        self.counts = counts
        self._columns = None if genes is None or genes.all() else np.flatnonzero(genes)
        n_spots, n_genes = counts.shape
        self.shape: tuple[int, int] = n_spots, n_genes if self._columns is None else len(self._columns)
        self._on_disk = is_on_disk(counts)
        # the three arrays of a CSR matrix; those on disk are read slice by slice
        self._arrays: tuple[Any, Any, np.ndarray] | None = None
        if sparse.issparse(counts):
            self._arrays = counts.data, counts.indices, counts.indptr
        elif hasattr(counts, "group"):  # anndata's, on disk
            self._arrays = counts.group["data"], counts.group["indices"], counts.group["indptr"][:]
        if self._on_disk and self._arrays is not None and self._arrays[2].shape != (n_spots + 1,):
            raise InputError(
                f"the counts on disk are corrupt: expected {n_spots + 1} row pointers; found {self._arrays[2].shape}. "
                "Download the file again."
            )
        self.n_entries = n_spots * n_genes if self._arrays is None else len(self._arrays[0])
        if not self._on_disk:
            _refuse_large(self.counts)
        self._step = int(max(1, BLOCK_ENTRIES * self.shape[0] // max(self.n_entries, 1)))

    def __getitem__(self, rows: slice) -> sparse.csr_matrix:
        """The counts of some spots, CSR float32; a view of the whole where possible."""
        block = self._all_genes(rows)
        return block if self._columns is None else block[:, self._columns]

    def _all_genes(self, rows: slice) -> sparse.csr_matrix:
        if self._arrays is None:
            dense = self.counts[rows]
            if self._on_disk:
                _refuse_large(dense, rows.indices(self.shape[0])[0])
            return sparse.csr_matrix(dense, dtype=np.float32)
        data, indices, indptr = self._arrays
        start, stop, _ = rows.indices(self.shape[0])
        stored = slice(int(indptr[start]), int(indptr[stop]))
        # scipy would copy the entries of a slice
        values = data[stored].astype(np.float32, copy=False)
        ends = indptr[start : stop + 1] - indptr[start]
        block = sparse.csr_matrix((values, indices[stored], ends), shape=(stop - start, self.counts.shape[1]))
        if self._on_disk:
            try:
                block.check_format(full_check=True)  # a file may contain anything
            except ValueError as error:
                raise InputError(
                    f"the counts of spots {start} to {stop - 1} on disk are corrupt ({error}). Check that the "
                    "file is complete, and download it again if in doubt."
                ) from error
            block.sum_duplicates()
            _refuse_large(block, start)
        return block

    def __iter__(self) -> Iterator[tuple[slice, sparse.csr_matrix]]:
        for rows in self._slices():
            yield rows, self[rows]

    def _slices(self) -> Iterator[slice]:
        for start in range(0, self.shape[0], self._step):
            yield slice(start, min(start + self._step, self.shape[0]))

    def take(self, spots: np.ndarray) -> sparse.csr_matrix:
        """The counts of some spots in the order given, CSR float32; blocks without any of them are not read."""
        ascending = np.sort(spots)
        parts = []
        for rows in self._slices():
            first, last = np.searchsorted(ascending, [rows.start, rows.stop])
            if first < last:
                parts.append(self[rows][ascending[first:last] - rows.start])
        if not parts:
            return self[:0]
        taken = parts[0] if len(parts) == 1 else sparse.vstack(parts, format="csr")
        return taken if np.array_equal(spots, ascending) else taken[np.searchsorted(ascending, spots)]

    def totals(self, genes: np.ndarray | None = None) -> np.ndarray:
        """Total count of each spot (n_spots,), float64, over the genes in the mask (n_genes,) or all."""
        marks = np.ones(self.shape[1]) if genes is None else genes.astype(np.float64)
        return np.concatenate([block @ marks for _, block in self])


def _refuse_large(counts: Any, first: int = 0) -> None:
    """Refuse counts of which float32 would drop digits; a pass without a copy.

    Parameters
    ----------
    counts : csr_matrix or ndarray, (n_spots, n_genes)
        In memory. Infinite ones are left to `normalize.survey`.
    first : int
        Number of the first spot, for the message.
    """
    values = counts.data if sparse.issparse(counts) else counts
    largest = float(values.max(initial=0))
    if not LARGEST_COUNT <= largest < np.inf:  # NaN, too
        return
    at = int(values.argmax())
    spot = (
        np.searchsorted(counts.indptr, at, side="right") - 1
        if sparse.issparse(counts)
        else at // counts.shape[1]
    )
    raise InputError(
        f"expected counts below {LARGEST_COUNT:,}, up to which float32 represents integers; found {largest:.15g} in "
        f"spot {first + spot} (from 0). Correct it, or leave out the spot or the gene. Is a column not a gene?"
    )
