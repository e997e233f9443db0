"""Counts by blocks of rows, from memory or from disk."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy import sparse

from ..errors import InputError

__all__ = ["BLOCK_ENTRIES", "CountRows", "is_on_disk"]

BLOCK_ENTRIES = 4_000_000  # entries of a block, dense (16 MB) or stored (32 MB)


def is_on_disk(counts: Any) -> bool:
    """Whether a matrix is a file on disk that is read on access."""
    return not (sparse.issparse(counts) or isinstance(counts, np.ndarray))


class CountRows:
    """Counts by blocks of rows, from memory or from disk.

    Parameters
    ----------
    counts : scipy sparse, ndarray, backed AnnData matrix or HDF5 dataset, (n_spots, n_genes)
        CSR and dense matrices are used without a copy, on disk too. Other sparse formats are converted once,
        and entries of one spot and gene that are stored more than once are summed in a copy.

    Attributes
    ----------
    shape : (int, int)
    n_entries : int
        Number of stored counts; of all counts for a dense matrix.

    Raises
    ------
    InputError
        No spots, no genes, or not two axes; later, when they are read, corrupt entries on disk.
    """

    def __init__(self, counts: Any) -> None:
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
        self.shape: tuple[int, int] = counts.shape
        self._on_disk = is_on_disk(counts)
        # the three arrays of a CSR matrix; those on disk are read slice by slice
        self._arrays: tuple[Any, Any, np.ndarray] | None = None
        if sparse.issparse(counts):
            self._arrays = counts.data, counts.indices, counts.indptr
        elif hasattr(counts, "group"):  # anndata's, on disk
            self._arrays = counts.group["data"], counts.group["indices"], counts.group["indptr"][:]
        self.n_entries = self.shape[0] * self.shape[1] if self._arrays is None else len(self._arrays[0])
        self._step = int(max(1, BLOCK_ENTRIES * self.shape[0] // max(self.n_entries, 1)))

    def __getitem__(self, rows: slice) -> sparse.csr_matrix:
        """The counts of some spots, CSR float32; a view of the whole where possible."""
        if self._arrays is None:
            return sparse.csr_matrix(self.counts[rows], dtype=np.float32)
        data, indices, indptr = self._arrays
        start, stop, _ = rows.indices(self.shape[0])
        stored = slice(int(indptr[start]), int(indptr[stop]))
        # scipy would copy the entries of a slice
        values = data[stored].astype(np.float32, copy=False)
        ends = indptr[start : stop + 1] - indptr[start]
        block = sparse.csr_matrix((values, indices[stored], ends), shape=(stop - start, self.shape[1]))
        if self._on_disk:
            try:
                block.check_format(full_check=True)  # a file may contain anything
            except ValueError as error:
                raise InputError(
                    f"the counts of spots {start} to {stop - 1} on disk are corrupt ({error}). Check that the "
                    "file is complete, and download it again if in doubt."
                ) from error
            block.sum_duplicates()
        return block

    def __iter__(self) -> Iterator[tuple[slice, sparse.csr_matrix]]:
        for start in range(0, self.shape[0], self._step):
            rows = slice(start, min(start + self._step, self.shape[0]))
            yield rows, self[rows]

    def totals(self, genes: np.ndarray | None = None) -> np.ndarray:
        """Total count of each spot (n_spots,), float64, over the genes in the mask (n_genes,) or all."""
        marks = np.ones(self.shape[1]) if genes is None else genes.astype(np.float64)
        return np.concatenate([block @ marks for _, block in self])
