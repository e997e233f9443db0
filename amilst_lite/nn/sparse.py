"""The product Â·H of a sparse symmetric matrix with a dense one, and its gradient.

Every graph layer of the package is this product. Three properties make it fast and reproducible:

* **Gather instead of scatter.** Row i of the result is a weighted sum of the rows of H at the non-zero
  columns of row i of Â, so each row is written once: no atomic additions, one order of summation, the same
  bits in every run, on a GPU too. ``torch.nn.functional.embedding_bag`` is that operation, vectorized on the
  CPU and one thread per output element on CUDA. (PyTorch's product over the COO tensor itself is
  30 times slower on a CPU; cuSPARSE promises reproducible sums only for an algorithm that PyTorch
  does not select, see "cusparseSpMM" in NVIDIA's cuSPARSE documentation.)
* **Â is its own transpose**, so the gradient with respect to H is the same product again: backward
  is forward again, needs no second matrix, and can itself be differentiated.
* **Row offsets and 32-bit indices are made once**, when the matrix is wrapped in
  :class:`SymmetricAdjacency`.

Measured with ``benchmarks/kernels.py``; nodes should be stored in a space-filling order
(``SpatialGraph`` does so), which is worth a factor 2 to 6.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import InputError

__all__ = ["SymmetricAdjacency", "propagate"]

# Up to this many columns MKL's product of a CSR matrix beats embedding_bag on a CPU, by a third to a
# half; from 20 on it loses, by a half and more at 32 (benchmarks/kernels.py).
_NARROW = 16


class SymmetricAdjacency:
    """A sparse symmetric matrix Â, prepared for :func:`propagate`.

    Parameters
    ----------
    coo : Tensor
        Coalesced sparse COO tensor, N × N, float32 or float64. It **must be symmetric**, in its
        pattern and its values: the gradient relies on it. :meth:`check_symmetric` verifies it.

    Attributes
    ----------
    n_nodes : int
        Number of rows, N.
    offsets : Tensor
        (N + 1,), where each row's entries begin; int32 unless there are 2³¹ entries or more.
    columns : Tensor
        (E,), the column of each entry, same dtype as ``offsets``.
    values : Tensor
        (E,), the value of each entry.

    Raises
    ------
    InputError
        ``coo`` is not a square, coalesced, real sparse COO tensor.
    """

    def __init__(self, coo: Tensor) -> None:
        if coo.layout != torch.sparse_coo or coo.dim() != 2 or coo.shape[0] != coo.shape[1]:
            raise InputError(
                "expected a square sparse COO tensor, such as SpatialGraph.adjacency() returns; "
                f"found layout {coo.layout} and shape {tuple(coo.shape)}."
            )
        if not coo.is_coalesced():
            raise InputError("the sparse tensor is not coalesced; call .coalesce() on it first.")
        if coo.dtype not in (torch.float32, torch.float64):
            raise InputError(f"expected float32 or float64 values; found {coo.dtype}.")
        rows, columns = coo.indices()  # sorted by row, then column, since coalesced
        integer = torch.int32 if coo._nnz() < 2**31 else torch.int64
        boundaries = torch.arange(coo.shape[0] + 1, device=coo.device)
        offsets = torch.searchsorted(rows.contiguous(), boundaries).to(integer)
        self._set(offsets, columns.to(integer), coo.values().detach())

    @classmethod
    def of_csr(cls, offsets: Tensor, columns: Tensor, values: Tensor) -> SymmetricAdjacency:
        """The matrix with these arrays, as they are described above: columns ascending in each row, none twice."""
        matrix = cls.__new__(cls)
        matrix._set(offsets, columns, values)
        return matrix

    def rows_alone(self, start: int, stop: int) -> SymmetricAdjacency:
        """The part of the rows from ``start`` to ``stop`` (exclusive), which no entry connects with others."""
        offsets = self.offsets[start : stop + 1]
        at = slice(int(offsets[0]), int(offsets[-1]))
        return SymmetricAdjacency.of_csr(offsets - offsets[0], self.columns[at] - start, self.values[at])

    def _set(self, offsets: Tensor, columns: Tensor, values: Tensor) -> None:
        self.n_nodes = len(offsets) - 1
        self.offsets, self.columns, self.values = offsets, columns, values  # (N + 1,), (E,), (E,)
        self._csr = self._make_csr() if _uses_mkl(values.device) else None

    def _make_csr(self) -> Tensor:
        """The same matrix as a CSR tensor, sharing memory with ``offsets``, ``columns``, ``values``."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
            return torch.sparse_csr_tensor(
                self.offsets, self.columns, self.values, (self.n_nodes,) * 2, check_invariants=False
            )

    @property
    def device(self) -> torch.device:
        """Device of the matrix."""
        return self.values.device

    @property
    def rows(self) -> Tensor:
        """(E,) int64, the row of each entry."""
        index = torch.arange(self.n_nodes, device=self.device)
        return torch.repeat_interleave(index, self.offsets.diff(), output_size=len(self.values))

    @property
    def coo(self) -> Tensor:
        """The matrix as a coalesced sparse COO tensor, built on access, since it takes 20 bytes per entry."""
        indices = torch.stack([self.rows, self.columns.long()])
        return torch.sparse_coo_tensor(
            indices, self.values, (self.n_nodes,) * 2, check_invariants=False, is_coalesced=True
        )

    def to(self, device: str | torch.device) -> SymmetricAdjacency:
        """The same matrix on ``device``; itself if it is already there."""
        return self if torch.device(device) == self.device else SymmetricAdjacency(self.coo.to(device))

    def check_symmetric(self, tolerance: float = 1e-6) -> None:
        """Raise unless Â equals its transpose, to ``tolerance`` times its largest entry. Takes a sort.

        Raises
        ------
        InputError
            The two differ; the message gives the largest difference.
        """
        coo = self.coo
        difference = (coo - coo.t()).coalesce().values().abs()
        largest = float(difference.max()) if len(difference) else 0.0
        scale = float(self.values.abs().max()) if len(self.values) else 0.0
        if not largest <= tolerance * scale:
            raise InputError(
                f"the matrix is not symmetric: an entry differs from its mirror image by {largest:.3g}. "
                "Symmetrize it first, for example with (A + A.t()) / 2."
            )

    def _multiply(self, features: Tensor) -> Tensor:
        """Â·H by the fastest reproducible kernel. ``features``: (N, C), float32 or float64; no autograd."""
        features = features.contiguous()
        if features.numel() == 0:
            return torch.zeros_like(features)
        narrow = features.shape[1] <= _NARROW or features.dtype == torch.float64
        if self._csr is not None and narrow:
            if not torch.is_autocast_enabled("cpu"):
                return self._csr.to(features.dtype) @ features
            # It would round both sides of a matrix product to bfloat16.
            with torch.autocast("cpu", enabled=False):
                return self._csr.to(features.dtype) @ features
        return functional.embedding_bag(
            self.columns,
            features,
            self.offsets,
            mode="sum",
            per_sample_weights=self.values.to(features.dtype),  # no copy in the usual case
            include_last_offset=True,
        )


def _uses_mkl(device: torch.device) -> bool:
    return device.type == "cpu" and torch.backends.mkl.is_available()


def _product(features: Tensor, adjacency: SymmetricAdjacency) -> Tensor:
    """Â·H in the dtype of the features; no autograd."""
    # Sums are float32 (or float64) whatever autocast is set to; bfloat16 and float16 features
    # are widened for the sums and their results rounded once, at the end.
    wide = features.dtype if features.dtype == torch.float64 else torch.float32
    return adjacency._multiply(features.to(wide)).to(features.dtype)


class _Propagate(torch.autograd.Function):
    """H ↦ Â·H; the gradient of a loss with respect to H is Âᵀ·(∂loss/∂Y) = Â·(∂loss/∂Y)."""

    @staticmethod
    def forward(ctx, features: Tensor, adjacency: SymmetricAdjacency) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.adjacency = adjacency
        return _product(features, adjacency)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        # With create_graph, a second derivative is then the same product once more.
        return propagate(ctx.adjacency, gradient), None


def propagate(adjacency: SymmetricAdjacency | Tensor, features: Tensor) -> Tensor:
    """Y = Â·H, differentiable any number of times with respect to H.

    Parameters
    ----------
    adjacency : SymmetricAdjacency or Tensor
        Â, N × N, symmetric. A coalesced sparse COO tensor is wrapped on every call, which costs
        about as much as the product: wrap it once where the product is repeated.
    features : Tensor
        H, (N, C), on the same device, any strides; float64, float32, bfloat16 or float16.

    Returns
    -------
    Tensor
        (N, C), dtype of ``features``. Sums are float64 for float64, float32 for all others, under
        autocast as well. The same bits on every run on one machine with one number of threads,
        with or without ``torch.use_deterministic_algorithms(True)``.

    Raises
    ------
    InputError
        Shapes, devices or dtypes do not match.

    Notes
    -----
    No gradient flows to the values of Â: the graph is given, not learned.
    """
    if not isinstance(adjacency, SymmetricAdjacency):
        adjacency = SymmetricAdjacency(adjacency)
    if features.dim() != 2 or features.shape[0] != adjacency.n_nodes:
        raise InputError(
            f"features must be a matrix with one row for each of the {adjacency.n_nodes} nodes; "
            f"found shape {tuple(features.shape)}."
        )
    if features.device != adjacency.device:
        raise InputError(
            f"features are on {features.device}, the adjacency on {adjacency.device}; "
            "move one of them with .to(device)."
        )
    if not features.is_floating_point():
        raise InputError(f"features must be floating-point numbers; found {features.dtype}.")
    if not features.requires_grad:  # what autograd costs is a tenth of a narrow product of 10,000 nodes
        return _product(features, adjacency)
    return _Propagate.apply(features, adjacency)
