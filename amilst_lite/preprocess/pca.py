"""Principal components of dense, sparse or on-disk matrices, without a dense copy.

Everything is a pass over blocks of rows. Each block is made dense, standardized to
``z = clip((x − mean) / scale)``, used and dropped; nothing of the size of the matrix is allocated. The
components come from the covariance of the columns (at most 3,000), or, with at most 2,000 rows and more
columns than rows, from the n × n products of the rows, both exact; else from a block Krylov space of the
covariance, which needs five passes.

Sources: Halko, Martinsson and Tropp 2011 (randomized subspaces); Musco and Musco 2015 (block Krylov);
Chan, Golub and LeVeque 1983 (sums of squares about a shift).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import scipy.linalg
import scipy.linalg.blas
import scipy.sparse
import scipy.sparse.linalg
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin

from ..distributed import alone, ranks
from ..errors import InputError
from ..runtime import make_generator, resolve_device, standard_math, threads_for
from ..validation import check_array, check_fitted, check_number, check_random_state
from .counts import dense_block

__all__ = ["PCA"]

Blocks = Callable[[], Iterable[Any]]
"""Starts a pass: every call returns the same row blocks, dense or CSR, in the same order."""

Columns = Callable[[], Iterable[tuple[slice, Any]]]
"""The same for blocks of columns of all rows, with their positions."""

_CPU_BLOCK, _DEVICE_BLOCK = 1 << 19, 1 << 25
"""Entries of a dense block (on a CPU: 2 MiB of float32, which fit its cache); at most eight times as many
where the matrix has so many columns that a block would have few rows."""
_READ_BLOCK = 1 << 22
"""Entries that are read at a time from a source on disk."""
_FLUSH = 16
"""Blocks whose products are summed in their own precision before they are added to a float64 sum."""
_EXACT_SIDE = 3000
"""Most columns for which ``solver="auto"`` computes the covariance in full."""
_GRAM_ROWS = 2000
"""Most rows for which the n × n products of the rows are computed."""
_OVERSAMPLING, _KRYLOV_BLOCKS = 10, 5
_EQUAL = 1e-4
"""Relative difference up to which two entries of a component count as equal in size."""


class PCA(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Principal component analysis, following scikit-learn's conventions.

    Columns are standardized to ``z = clip((x − mean) / scale, ±clip)``, z is centered again where clipping
    has changed its mean, and the components are the leading eigenvectors of its covariance (ddof 1).

    A sparse matrix is made dense one block of rows (2 to 16 MiB) at a time, so that clipping, which maps
    a zero to ``clip(−mean / scale)``, is exact.

    Parameters
    ----------
    n_components : int
        At most the smaller side of the matrix is computed; see ``n_components_``.
    center, scale : bool
        Subtract the means of the columns; divide by their standard deviations (ddof 1; 1 for constant ones).
    clip : float or None
        Largest absolute value of z.
    solver : {"auto", "exact", "randomized"}
        ``"randomized"``: a block Krylov space of 5 blocks with 10 additional columns. ``"auto"``: exact
        unless the smaller side is too long or it needs many times more operations.
    random_state : int or None
        Seed of the randomized solver, >= 0 and < 2**32; None uses a new one from the operating system.
        Global generators are not used.
    device : str or torch.device
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.

    Attributes
    ----------
    components_ : ndarray of shape (n_components_, n_features)
        Orthonormal rows; the entry of largest absolute value of each, the first of equals, is positive.
    explained_variance_ : ndarray of shape (n_components_,)
        Variances of the scores (ddof 1).
    explained_variance_ratio_ : ndarray of shape (n_components_,)
        Their shares of the variance of z.
    singular_values_ : ndarray of shape (n_components_,)
    mean_, scale_ : ndarray of shape (n_features,), float64
        Subtracted from the columns and divided by; zeros and ones without ``center`` and ``scale``.
    clipped_mean_ : ndarray of shape (n_features,), float64
        Mean of z, subtracted before projection; zero without clipping.
    solver_ : str
        The solver that ran.
    n_components_, n_features_in_, n_samples_ : int
    """

    def __init__(
        self,
        n_components: int = 30,
        *,
        center: bool = True,
        scale: bool = False,
        clip: float | None = None,
        solver: str = "auto",
        random_state: int | None = 0,
        device: str | torch.device = "cpu",
    ):
        self.n_components = n_components
        self.center = center
        self.scale = scale
        self.clip = clip
        self.solver = solver
        self.random_state = random_state
        self.device = device

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def fit(self, X: Any, y: Any = None) -> PCA:
        """Find the components of ``X`` (n_samples, n_features): array, tensor, or scipy sparse matrix.

        Raises
        ------
        InputError
            NaN or infinite entries, a single row, or parameters out of range.
        """
        self._check_parameters()
        matrix = self._check(X, reset=True)
        with alone():
            return self._fit_blocks(_row_blocks(matrix, self._block()), matrix.dtype, matrix)

    def fit_chunks(self, source: Any) -> PCA:
        """Fit from blocks of rows that are read again in each pass, such as a matrix on disk.

        Within `amilst_lite.distributed.together`, the rows are those of all ranks.

        Parameters
        ----------
        source : callable, or object with ``shape`` and slicing by rows
            A callable without arguments that starts a pass over row blocks (dense or scipy sparse); or an
            HDF5 dataset, a memory map or a backed AnnData matrix.

        Raises
        ------
        InputError
            No blocks, NaN or infinite entries, or parameters out of range.
        """
        self._check_parameters()
        blocks = self._checked_blocks(source)
        first = next(iter(blocks()), None)
        if first is None:
            raise InputError(
                "Expected row blocks; found none. Pass a callable that starts a new pass at each call."
            )
        self.n_features_in_ = first.shape[1]
        return self._fit_blocks(blocks, first.dtype)

    def _checked_blocks(self, source: Any) -> Blocks:
        """Passes over ``source`` in checked blocks of the size for the device."""
        if callable(source):
            start: Blocks = source
        else:  # as many whole blocks of the device at a time as are read quickly
            n_blocks = max(1, _READ_BLOCK // self._block())
            start = _row_blocks(source, self._block(), n_blocks)

        def blocks() -> Iterator[Any]:
            for block in start():
                checked = check_array(block, accept_sparse="csr", ensure_min_samples=0)
                yield from _row_blocks(checked, self._block())()

        return blocks

    def _block(self) -> int:
        """Entries of a block on the device."""
        return _CPU_BLOCK if resolve_device(self.device).type == "cpu" else _DEVICE_BLOCK

    def _fit_blocks(self, blocks: Blocks, dtype: Any, matrix: Any = None) -> PCA:
        """Fit from passes over ``blocks``, or over the columns of ``matrix`` if that is given and wide."""
        device = resolve_device(self.device)
        z = _Standardized(self, device, dtype)
        n, d = (None, self.n_features_in_) if matrix is None else matrix.shape
        if n == 1 and self.center:
            raise InputError("Expected at least 2 rows; found n_samples=1.")
        few_rows = n is not None and n < d and n <= _GRAM_ROWS
        self.solver_ = self._choose_solver(n, d, few_rows)
        k = self.n_components
        # numpy computes the products of the exact solver; threads of torch would compete with its own
        by_numpy = device.type == "cpu" and self.solver_ == "exact"
        with standard_math(), threads_for(0 if by_numpy else 10**9 if n is None else n * d // 100):
            if self.solver_ == "randomized":
                seed = check_random_state(self.random_state)
                values, vectors, total = _from_krylov_space(z, blocks, k, seed)
            elif few_rows:
                values, vectors, total = _from_rows(z, _column_blocks(matrix, self._block()), k)
            else:
                values, vectors, total = _from_covariance(z, blocks, k)
        self.n_components_, self.n_samples_, self._n_features_out = len(values), z.n, len(values)
        self.mean_, self.scale_, self.clipped_mean_ = z.shift.numpy(), z.divisor.numpy(), z.mean.numpy()
        values = np.maximum(values, 0)
        self.components_ = _deterministic_signs(vectors.T).astype(dtype)
        self.explained_variance_ = (values / max(z.n - 1, 1)).astype(dtype)
        self.explained_variance_ratio_ = (values / (total or 1.0)).astype(dtype)
        self.singular_values_ = np.sqrt(values).astype(dtype)
        return self

    def _check_parameters(self) -> None:
        check_number("n_components", self.n_components, 1, integer=True)
        if self.clip is not None:
            check_number("clip", self.clip, 0, strict=True)
        if self.solver not in ("auto", "exact", "randomized"):
            raise InputError(f"solver must be 'auto', 'exact' or 'randomized'; found {self.solver!r}.")
        check_random_state(self.random_state)
        resolve_device(self.device)

    def _choose_solver(self, n: int | None, d: int, few_rows: bool) -> str:
        """The solver that runs: for "auto", exact if the side of its matrix and the cost allow it."""
        if self.solver != "auto":
            return self.solver
        if n is None:  # from disk, where passes are most expensive: the exact solver needs one
            return "exact" if d <= _EXACT_SIDE else "randomized"
        side = n if few_rows else d
        exact = n * d * side / 2  # the result is symmetric
        randomized = n * d * (self.n_components + _OVERSAMPLING) * 2 * _KRYLOV_BLOCKS
        return "exact" if side <= _EXACT_SIDE and exact <= max(1.5 * randomized, 1e10) else "randomized"

    def _check(self, X: Any, *, reset: bool) -> Any:
        """``X`` as a float32 or float64 array or CSR matrix."""
        return check_array(X, self, reset=reset, accept_sparse="csr")

    def transform(self, X: Any) -> np.ndarray:
        """Scores of the rows of ``X``; (n_samples, n_components)."""
        check_fitted(self, "components_")
        matrix = self._check(X, reset=False)
        return self._scores(_row_blocks(matrix, self._block()), matrix.shape[0])

    def transform_chunks(self, source: Any) -> np.ndarray:
        """Scores of the rows of a source such as `fit_chunks` accepts; (n_samples, n_components)."""
        check_fitted(self, "components_")
        return self._scores(self._checked_blocks(source), None if callable(source) else source.shape[0])

    def _scores(self, blocks: Blocks, n: int | None) -> np.ndarray:
        """Scores of the rows of the blocks, ``n`` in all, if that is known."""
        z = _Standardized(self, resolve_device(self.device), self.components_.dtype)
        z.use(self.mean_, self.scale_, self.clipped_mean_)
        axes = torch.from_numpy(self.components_.T.copy()).to(z.device)
        with standard_math():
            found = ((z(block) @ axes).cpu().numpy() for block in blocks())
            if n is None:
                parts = list(found)
                return (
                    np.concatenate(parts) if parts else np.empty((0, axes.shape[1]), self.components_.dtype)
                )
            scores = np.empty((n, axes.shape[1]), self.components_.dtype)
            at = 0
            for part in found:  # no list of parts beside the whole
                scores[at : at + len(part)] = part
                at += len(part)
        return scores

    def fit_transform(self, X: Any, y: Any = None) -> np.ndarray:
        """``fit(X).transform(X)``."""
        return self.fit(X).transform(X)

    def inverse_transform(self, X: Any) -> np.ndarray:
        """Rows with the scores ``X`` (n_samples, n_components), in the units of the data; clipping remains."""
        check_fitted(self, "components_")
        scores = check_array(X)
        if scores.shape[1] != len(self.components_):
            raise InputError(f"Expected {len(self.components_)} columns of scores; found {scores.shape[1]}.")
        z = scores @ self.components_ + self.clipped_mean_
        return (z * self.scale_ + self.mean_).astype(self.components_.dtype)


class _Standardized:
    """Standardizes blocks to z, dense on the device, and computes the parameters of that.

    ``shift``, ``divisor`` and ``mean`` (d,), float64 on the CPU: subtracted first, divided by, and the
    mean of the clipped values; ``n`` is the number of rows.
    """

    def __init__(self, pca: PCA, device: torch.device, dtype: Any):
        self.device, self.dtype = device, torch.float64 if dtype == np.float64 else torch.float32
        self.center, self.scale, self.clip = pca.center, pca.scale, pca.clip
        self.n = 0

    def use(self, shift: Any, divisor: Any, mean: Any) -> None:
        """Set ``shift``, ``divisor`` and ``mean``."""
        self.shift, self.divisor, self.mean = (
            torch.as_tensor(values, dtype=torch.float64) for values in (shift, divisor, mean)
        )
        self._factor = (1 / self.divisor).to(self.dtype).to(self.device)
        self._mean = self.mean.to(self.dtype).to(self.device)
        self._shift = self.shift.to(self.device)

    def learn(self, mean: torch.Tensor, squares: torch.Tensor) -> None:
        """Set the parameters from the means and sums of squared deviations of the columns, (d,)."""
        deviation = (squares / max(self.n - 1, 1)).sqrt()
        # a constant column can have a deviation of the size of rounding
        varies = deviation > 1e-12 * mean.abs()
        divisor = torch.where(varies, deviation, 1.0) if self.scale else torch.ones_like(mean)
        self.use(mean if self.center else torch.zeros_like(mean), divisor, torch.zeros_like(mean))

    def learn_from(self, blocks: Blocks) -> float:
        """Set the parameters in one pass over the rows, two with clipping; return the trace of the scatter of z."""
        self.n, mean, squares = _sums(dense_block(block, self.device) for block in blocks())
        self.learn(mean, squares)
        mean, squares = mean / self.divisor, squares / self.divisor**2
        if self.clip is not None:
            _, mean, squares = _sums(self(block) for block in blocks())
            if self.center:
                self.use(self.shift, self.divisor, mean)
        return float(squares.sum() + (0 if self.center else self.n * mean.square().sum()))

    def __call__(self, block: Any, columns: slice = slice(None)) -> torch.Tensor:
        """z of a block of rows, or of some columns of all rows, minus its mean."""
        z = dense_block(block, self.device)
        if self.center:  # in the precision of the block, before anything is rounded
            z = z - self._shift[columns].to(z.dtype)
        z = z.to(self.dtype)
        if self.scale:
            z = z * self._factor[columns]
        if self.clip is not None:
            z = z.clamp(-self.clip, self.clip)
        return z - self._mean[columns] if self.center and self.clip is not None else z


Leading = tuple[np.ndarray, np.ndarray, float]
"""The ``k`` leading eigenvalues of the scatter matrix of z, descending; eigenvectors (d, k); its trace."""


def _from_covariance(z: _Standardized, blocks: Blocks, k: int) -> Leading:
    """From the full scatter matrix (d, d): one pass over the rows, two with clipping."""
    if z.clip is None:
        # centering and scaling can be done on the small matrix
        z.n, mean, scatter = _scatter(z, (dense_block(block, z.device) for block in blocks()))
        z.learn(mean, scatter.diagonal().clamp(min=0))
        scatter /= torch.outer(z.divisor, z.divisor)
        mean = mean / z.divisor
    else:
        z.n, mean, squares = _sums(dense_block(block, z.device) for block in blocks())
        z.learn(mean, squares)
        _, mean, scatter = _scatter(z, (z(block) for block in blocks()))
        if z.center:
            z.use(z.shift, z.divisor, mean)
    if not z.center:
        scatter += z.n * torch.outer(mean, mean)
    matrix = scatter.numpy()
    values, vectors = _leading(matrix, min(k, z.n, len(matrix)))
    return values, vectors, float(np.trace(matrix))


def _from_rows(z: _Standardized, columns: Columns, k: int) -> Leading:
    """From the products of the rows (n, n), for few rows and many columns."""
    moments = [_sums([dense_block(block, z.device)]) for _, block in columns()]
    z.n = moments[0][0]
    z.learn(torch.cat([mean for _, mean, _ in moments]), torch.cat([squares for _, _, squares in moments]))
    if z.center and z.clip is not None:
        z.use(z.shift, z.divisor, torch.cat([_sums([z(block, place)])[1] for place, block in columns()]))
    gram = torch.zeros(z.n, z.n, dtype=torch.float64, device=z.device)
    for place, block in columns():
        _add_products(gram, z(block, place).T)
    matrix = gram.cpu().numpy()
    values, left = _leading(matrix, min(k, z.n))
    axes = torch.from_numpy(left).to(z.dtype).to(z.device)
    vectors = torch.cat([z(block, place).T @ axes for place, block in columns()])  # (d, k)
    return values, _orthonormal(vectors.cpu().double().numpy(), values), float(np.trace(matrix))


def _from_krylov_space(z: _Standardized, blocks: Blocks, k: int, seed: int) -> Leading:
    """From a block Krylov space of the scatter matrix; each power of it is one pass over the rows."""
    total = z.learn_from(blocks)
    d = len(z.shift)
    k = min(k, z.n, d)
    width = min(k + _OVERSAMPLING, d)
    # the space is small: it is built in float64 on the CPU for every device
    q = torch.randn(d, width, generator=make_generator(seed), dtype=torch.float64)
    basis, products = q[:, :0], []
    largest = 0.0
    for _ in range(_KRYLOV_BLOCKS):
        q, r = torch.linalg.qr(q - basis @ (basis.T @ q))
        sizes = r.diagonal().abs()
        largest = max(largest, float(sizes.max()))
        # directions that the space already contains leave only rounding
        q = q[:, sizes > 1e-10 * largest][:, : d - basis.shape[1]]
        if q.shape[1] == 0:
            break
        q = torch.linalg.qr(q - basis @ (basis.T @ q))[0]  # again, for orthogonality in floating point
        basis = torch.cat([basis, q], 1)
        q = _scatter_times(z, blocks, q)
        products.append(q)
    # Rayleigh-Ritz: the scatter matrix restricted to the space
    small = (basis.T @ torch.cat(products, 1)).numpy()
    values, vectors = _leading((small + small.T) / 2, k)
    return values, basis.numpy() @ vectors, total


def _orthonormal(vectors: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Columns scaled to unit length; those without variance are replaced by orthogonal ones."""
    weak = np.flatnonzero(values <= 1e-10 * max(values[0], 1e-300))
    vectors[:, weak] = 0
    # any direction is valid: the coordinate axes with the smallest entries, orthogonalized by the QR below
    unused = np.argsort(np.square(vectors).sum(1), kind="stable")[: len(weak)]
    vectors[unused, weak] = 1
    q, r = (part.numpy() for part in torch.linalg.qr(torch.from_numpy(vectors)))
    return np.asarray(q * np.where(r.diagonal() < 0, -1, 1))


def _scatter_times(z: _Standardized, blocks: Blocks, q: torch.Tensor) -> torch.Tensor:
    """The scatter matrix of z times ``q`` (d, l), in one pass; float64 on the CPU."""
    there = q.to(z.dtype).to(z.device)
    product = torch.zeros(q.shape, dtype=torch.float64, device=z.device)
    for block in blocks():
        dense = z(block)
        product += dense.T @ (dense @ there)
    return ranks().total(product)[0].cpu()


def _leading(matrix: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The ``k`` largest eigenvalues of a symmetric matrix, descending, and their eigenvectors in columns."""
    side = len(matrix)
    if side > 500 and k < side // 10 and matrix.any():
        start = np.random.default_rng(0).standard_normal(side)
        # a product with half of the matrix takes a third of the time: it is bound by memory
        operator = scipy.sparse.linalg.LinearOperator(
            matrix.shape, partial(scipy.linalg.blas.dsymv, 1.0, matrix.T), dtype=matrix.dtype
        )
        values, vectors = scipy.sparse.linalg.eigsh(operator, k, v0=start)
        order = np.argsort(values)[::-1]
        return values[order], vectors[:, order].copy()
    if side <= 500:
        # by torch: the threads of scipy's BLAS busy-wait and slow down what runs beside this
        values, vectors = (part.numpy() for part in torch.linalg.eigh(torch.from_numpy(matrix)))
    else:
        values, vectors = scipy.linalg.eigh(matrix, subset_by_index=[side - k, side - 1])
    return values[: -k - 1 : -1].copy(), vectors[:, : -k - 1 : -1].copy()


def _deterministic_signs(components: np.ndarray) -> np.ndarray:
    """Rows with signs such that the entry of largest absolute value is positive, the first of equals.

    Of two types that differ in one gene each, a component has two opposite entries of equal size, and without
    the tolerance rounding would decide its sign.
    """
    sizes = np.abs(components)
    largest = (sizes >= (1 - _EQUAL) * sizes.max(1, keepdims=True)).argmax(1)
    signs = np.sign(components[np.arange(len(components)), largest])
    return components * np.where(signs == 0, 1, signs)[:, None]


def _sums(blocks: Iterable[torch.Tensor]) -> tuple[int, torch.Tensor, torch.Tensor]:
    """Number of rows, means of the columns, and sums of squared deviations from them; (d,), float64 on the CPU.

    Where the mean of the first block is far from zero it is subtracted first, against cancellation.
    """
    n = 0
    for block in blocks:
        if n == 0:
            shift = _shift(block)
            total, squares = torch.zeros((2, len(shift)), dtype=torch.float64, device=shift.device)
        about = block - shift
        total += about.sum(0)
        squares += about.square().sum(0)
        n += len(block)
    total, squares = total.cpu(), squares.cpu()
    mean, squares = shift.cpu().double() + total / n, (squares - total.square() / n).clamp(min=0)
    n_all, mean, step = _of_all_ranks(n, mean)
    return n_all, mean, ranks().total(squares + n * step.square())[0]


def _scatter(z: _Standardized, blocks: Iterable[torch.Tensor]) -> tuple[int, torch.Tensor, torch.Tensor]:
    """Number of rows, means of the columns (d,), and scatter matrix about them (d, d), in one pass.

    As `_sums`; products are summed over `_FLUSH` blocks in the precision of the blocks, then in float64.
    """
    n = pending = 0
    for block in blocks:
        if n == 0:
            shift = _shift(block)
            total = torch.zeros(len(shift), dtype=torch.float64, device=z.device)
            scatter = torch.zeros(len(shift), len(shift), dtype=torch.float64, device=z.device)
            part = torch.zeros(scatter.shape, dtype=z.dtype, device=z.device)
            shifted = bool(shift.any())
        about = (block - shift if shifted else block).to(z.dtype)
        total += about.sum(0)
        _add_products(part, about)
        n += len(block)
        pending += 1
        if pending == _FLUSH:
            scatter += part
            part.zero_()
            pending = 0
    scatter += part
    total, scatter = total.cpu(), scatter.cpu()
    n_all, mean, step = _of_all_ranks(n, shift.cpu().double() + total / n)
    scatter -= torch.outer(total, total) / n
    return n_all, mean, ranks().total(scatter + n * torch.outer(step, step))[0]


def _of_all_ranks(n: int, mean: torch.Tensor) -> tuple[int, torch.Tensor, torch.Tensor]:
    """Rows and means (d,) of all ranks, and the difference of this rank's means from them."""
    group = ranks()
    if group.size == 1:
        return n, mean, torch.zeros_like(mean)
    n_all = group.sum(n)
    of_all = group.total(n * mean)[0] / n_all
    return n_all, of_all, mean - of_all


def _add_products(part: torch.Tensor, about: torch.Tensor) -> None:
    """Add the products of the columns of ``about`` (b, d) to ``part`` (d, d)."""
    if part.device.type == "cpu":  # numpy detects the symmetry and computes only half of the product
        array = about.numpy()
        part += torch.from_numpy(array.T @ array)
    else:
        part += about.T @ about


def _shift(block: torch.Tensor) -> torch.Tensor:
    """Means of the columns that exceed three standard deviations, else zero, from the first rows; (d,)."""
    rows = block[:256]
    mean = rows.mean(0, dtype=torch.float64)
    variance = (rows - mean.to(rows.dtype)).square().mean(0)
    return torch.where(mean.square() > 9 * variance, mean, 0).to(block.dtype)


def _row_blocks(matrix: Any, elements: int, times: int = 1) -> Blocks:
    """Passes over a matrix that can be sliced by rows, in blocks of ``times`` about ``elements`` entries."""

    def blocks() -> Iterator[Any]:
        n, d = matrix.shape
        for rows in _slices(n, d, elements, times):
            yield matrix[rows]

    return blocks


def _column_blocks(matrix: Any, elements: int) -> Columns:
    """Passes over the columns of a matrix in memory."""
    by_column = matrix.tocsc() if scipy.sparse.issparse(matrix) else matrix

    def columns() -> Iterator[tuple[slice, Any]]:
        n, d = by_column.shape
        for place in _slices(d, n, elements):
            yield place, by_column[:, place]

    return columns


def _slices(n: int, width: int, elements: int, times: int = 1) -> Iterator[slice]:
    # products of many columns over few rows are slow
    step = times * max(1, elements // max(width, 1), min(2 * width, 8 * elements // max(width, 1)))
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))
