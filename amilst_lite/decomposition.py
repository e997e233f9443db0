"""Principal components of dense, sparse or on-disk matrices, without ever holding a dense copy.

Everything is a pass over blocks of rows. A block is made dense and brought to
``z = clip((x − mean) / scale)`` when its turn comes, is used, and is dropped; nothing as large as the
matrix is made. Three ways lead to the components: the covariance of the columns in full; for few rows and
many columns, the products of the rows, from blocks of columns; or a block Krylov space of the covariance,
which costs a few thin products.

Sources: Halko, Martinsson and Tropp 2011 (randomised subspaces); Musco and Musco 2015 (block Krylov);
Chan, Golub and LeVeque 1983 (sums of squares about a shift).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from numbers import Integral
from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse
import scipy.sparse.linalg
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_array

from .errors import InputError, NotFittedError
from .runtime import make_generator, resolve_device

try:  # scikit-learn >= 1.6
    from sklearn.utils.validation import validate_data
except ImportError:  # pragma: no cover - the same check, where older versions keep it

    def validate_data(estimator: Any, X: Any, **options: Any) -> Any:
        """Check ``X`` and the names and number of its columns."""
        return estimator._validate_data(X, **options)


__all__ = ["PCA"]

Blocks = Callable[[], Iterable[Any]]
"""Starts a pass: every call gives the same row blocks, dense or CSR, in the same order."""

Columns = Callable[[], Iterable[tuple[slice, Any]]]
"""The same for blocks of columns of all rows, and where they stand."""

_BLOCK_ELEMENTS = 1 << 22
"""Entries of a dense block: 16 MiB of float32."""
_EXACT_SIDE = 3000
"""Longest side of a covariance that is worth computing in full."""
_GRAM_ROWS = 2000
"""Most rows for which the rows' own Gram matrix is made; no matrix of all spots by all spots ever is."""
_OVERSAMPLING, _KRYLOV_DEPTH = 10, 3


class PCA(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Principal component analysis with scikit-learn's manners.

    Columns are brought to ``z = clip((x − mean) / scale, ±clip)``, z is centred once more where clipping
    moved its mean, and the components are the leading eigenvectors of its covariance (ddof 1).

    A sparse matrix stays sparse: only the block of rows in hand (16 MiB) is made dense, so clipping, whose
    result at a zero, ``clip(−mean / scale)``, differs from column to column, is exact and needs no case of
    its own.

    Parameters
    ----------
    n_components : int
        Taken down to the smaller side of the matrix where that is less; see ``n_components_``.
    center, scale : bool
        Subtract the columns' means; divide by their standard deviations (ddof 1; 1 for constant columns).
    clip : float or None
        Largest absolute value of z.
    solver : str
        ``"exact"``, ``"randomized"`` (a block Krylov space of depth 3 with 10 spare columns), or
        ``"auto"``: exact where the smaller side allows it and it does not cost many times more.
    random_state : int
        Seed of the randomised solver. No global generator is read or moved.
    device : str or torch.device
        ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:N"`` or ``"mps"``.

    Attributes
    ----------
    components_ : ndarray of shape (n_components_, n_features)
        Orthonormal rows; the entry of largest absolute value of each is positive.
    explained_variance_ : ndarray of shape (n_components_,)
        Variances of the scores (ddof 1).
    explained_variance_ratio_ : ndarray of shape (n_components_,)
        Their shares of the variance of z.
    singular_values_ : ndarray of shape (n_components_,)
    mean_, scale_ : ndarray of shape (n_features,), float64
        What is subtracted and divided by; zeros and ones where not asked for.
    clipped_mean_ : ndarray of shape (n_features,), float64
        What is subtracted from z before it is projected: its mean where clipping has moved it, else zero.
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
        random_state: int = 0,
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
        """Find the components of ``X`` (n_samples, n_features): array, tensor, or scipy sparse matrix."""
        self._check_parameters()
        matrix = self._check(X, reset=True)
        return self._fit_blocks(_row_blocks(matrix), np.dtype(matrix.dtype), _column_blocks(matrix))

    def fit_chunks(self, source: Any) -> PCA:
        """Fit from blocks of rows that are read anew in each pass, such as a matrix on disk.

        Parameters
        ----------
        source : callable, or object with ``shape`` and slicing by rows
            A callable of no arguments that starts a pass over row blocks (dense or scipy sparse); or an
            HDF5 dataset, a memory map or a backed AnnData matrix.
        """
        self._check_parameters()
        blocks = self._checked_blocks(source)
        first = next(iter(blocks()), None)
        if first is None:
            raise InputError(
                "fit_chunks was given no row blocks. Give a callable that starts a new pass each time."
            )
        self.n_features_in_ = first.shape[1]
        return self._fit_blocks(blocks, np.dtype(first.dtype), None)

    def _checked_blocks(self, source: Any) -> Blocks:
        """Each block checked as it passes by."""
        start: Blocks = source if callable(source) else _row_blocks(source)

        def blocks() -> Iterator[Any]:
            for block in start():
                checked = _check_array(check_array, block, ensure_min_samples=0)
                for rows in _slices(*checked.shape):
                    yield checked[rows]

        return blocks

    def _fit_blocks(self, blocks: Blocks, dtype: np.dtype, columns: Columns | None) -> PCA:
        device = resolve_device(self.device)
        # float64 in, float64 inside, where the device has it
        inside = torch.float64 if dtype == np.float64 and device.type != "mps" else torch.float32
        n, mean, squares = _column_sums(blocks)
        d = len(mean)
        if n < 2 and self.center:
            raise InputError("Principal components need at least 2 rows; found n_samples=1.")
        k = min(self.n_components, n, d)
        self.n_components_, self.n_samples_, self._n_features_out = k, n, k
        self.solver_ = self._choose_solver(n, d, columns is not None)
        self._set_scale(n, mean, squares)
        z = _Standardised(self, device, inside)
        if self.solver_ == "randomized":
            values, vectors, total = _krylov(z, blocks, d, k, self.random_state)
        elif columns is not None and n < d and n <= _GRAM_ROWS:
            values, vectors, total = _gram(z, columns, n, k)
        else:
            values, vectors, total = _covariance(z, blocks, k)
        self.clipped_mean_ = z.mean.double().cpu().numpy()
        values = np.maximum(values, 0)
        self.components_ = _deterministic_signs(vectors.T).astype(dtype)
        self.explained_variance_ = (values / max(n - 1, 1)).astype(dtype)
        self.explained_variance_ratio_ = (values / (total or 1.0)).astype(dtype)
        self.singular_values_ = np.sqrt(values).astype(dtype)
        return self

    def _check_parameters(self) -> None:
        if not isinstance(self.n_components, Integral) or self.n_components < 1:
            raise InputError(f"n_components must be an integer >= 1; found {self.n_components!r}.")
        if self.clip is not None and not self.clip > 0:
            raise InputError(f"clip must be None or a number > 0; found {self.clip!r}.")
        if self.solver not in ("auto", "exact", "randomized"):
            raise InputError(f"solver must be 'auto', 'exact' or 'randomized'; found {self.solver!r}.")
        if not isinstance(self.random_state, Integral) or self.random_state < 0:
            raise InputError(f"random_state must be an integer >= 0; found {self.random_state!r}.")

    def _set_scale(self, n: int, mean: np.ndarray, squares: np.ndarray) -> None:
        deviation = np.sqrt(squares / max(n - 1, 1))
        # what rounding leaves of a constant column is not a variance
        deviation[deviation <= 1e-12 * np.abs(mean)] = 0
        self.mean_ = mean if self.center else np.zeros_like(mean)
        self.scale_ = np.where(deviation > 0, deviation, 1.0) if self.scale else np.ones_like(mean)

    def _choose_solver(self, n: int, d: int, in_memory: bool) -> str:
        if self.solver != "auto":
            return self.solver
        side = n if in_memory and n < d and n <= _GRAM_ROWS else d
        exact = n * d * side
        randomized = n * d * (self.n_components + _OVERSAMPLING) * 4 * _KRYLOV_DEPTH
        return "exact" if side <= _EXACT_SIDE and exact <= max(1.5 * randomized, 2e10) else "randomized"

    def _check(self, X: Any, *, reset: bool) -> Any:
        """``X`` as a float32 or float64 array or CSR matrix."""
        if isinstance(X, torch.Tensor):
            X = X.detach().cpu().numpy()

        def check(values: Any, **options: Any) -> Any:
            return validate_data(self, values, reset=reset, **options)

        return _check_array(check, X)

    def transform(self, X: Any) -> np.ndarray:
        """Scores of the rows of ``X``; (n_samples, n_components)."""
        self._check_fitted()
        return self._scores(_row_blocks(self._check(X, reset=False)))

    def transform_chunks(self, source: Any) -> np.ndarray:
        """Scores of the rows of a source as `fit_chunks` takes it; (n_samples, n_components)."""
        self._check_fitted()
        return self._scores(self._checked_blocks(source))

    def _scores(self, blocks: Blocks) -> np.ndarray:
        device = resolve_device(self.device)
        wide = self.components_.dtype == np.float64 and device.type != "mps"
        z = _Standardised(self, device, torch.float64 if wide else torch.float32)
        axes = torch.from_numpy(self.components_.T.copy()).to(device, z.dtype)
        shift = torch.from_numpy(self.clipped_mean_).to(device, z.dtype) @ axes
        return np.concatenate([(z(block) @ axes - shift).cpu().numpy() for block in blocks()])

    def fit_transform(self, X: Any, y: Any = None) -> np.ndarray:
        """``fit(X).transform(X)``."""
        return self.fit(X).transform(X)

    def inverse_transform(self, X: Any) -> np.ndarray:
        """Rows whose scores are ``X`` (n_samples, n_components), in the data's units; clipping is not undone."""
        self._check_fitted()
        scores = X.detach().cpu().numpy() if isinstance(X, torch.Tensor) else check_array(X)
        if scores.shape[1] != len(self.components_):
            raise InputError(f"Expected {len(self.components_)} columns of scores; found {scores.shape[1]}.")
        z = scores @ self.components_ + self.clipped_mean_
        return (z * self.scale_ + self.mean_).astype(self.components_.dtype)

    def _check_fitted(self) -> None:
        if not hasattr(self, "components_"):
            raise NotFittedError(f"This {type(self).__name__} instance is not fitted yet. Call 'fit' first.")


class _Standardised:
    """Brings a block to z, dense on the device; ``mean`` (d,) is what remains to be subtracted."""

    def __init__(self, pca: PCA, device: torch.device, dtype: torch.dtype):
        self.device, self.dtype = device, dtype
        self.wide = torch.float32 if device.type == "mps" else torch.float64
        self.center, self.clip = pca.center, pca.clip
        self.shift = torch.from_numpy(pca.mean_)
        self.factor = torch.from_numpy(1 / pca.scale_).to(device, dtype) if pca.scale else None
        self.mean = torch.zeros(len(pca.mean_), dtype=self.wide, device=device)

    def __call__(self, block: Any, columns: slice = slice(None)) -> torch.Tensor:
        """z of a block of rows, or of some columns of all rows."""
        dense = _dense(block)
        # the mean leaves in the block's own precision, before anything is rounded
        z = (dense - self.shift[columns].to(dense.dtype) if self.center else dense).to(
            self.device, self.dtype
        )
        if self.factor is not None:
            z = z * self.factor[columns]
        return z if self.clip is None else z.clamp(-self.clip, self.clip)

    def fit_mean(self, blocks: Blocks) -> None:
        """Set ``mean``; only clipping moves it from zero."""
        if self.center and self.clip is not None:
            n = 0
            for block in blocks():
                z = self(block)
                self.mean += z.sum(0, dtype=self.wide)
                n += len(z)
            self.mean /= n


Leading = tuple[np.ndarray, np.ndarray, float]
"""The ``k`` leading eigenvalues of the scatter matrix of z, descending; eigenvectors (d, k); its trace."""


def _covariance(z: _Standardised, blocks: Blocks, k: int) -> Leading:
    """From the scatter matrix (d, d) in full."""
    d = len(z.mean)
    scatter = torch.zeros(d, d, dtype=z.wide, device=z.device)
    total = torch.zeros_like(z.mean)
    n = 0
    for block in blocks():
        dense = z(block)
        scatter += dense.T @ dense
        total += dense.sum(0, dtype=z.wide)
        n += len(dense)
    if z.center:
        if z.clip is not None:
            z.mean = total / n
        # the mean in hand is rounded as the blocks are: what is left of it goes here
        scatter -= torch.outer(total, total) / n
    matrix = scatter.cpu().double().numpy()
    return *_leading(matrix, k), float(np.trace(matrix))


def _gram(z: _Standardised, columns: Columns, n: int, k: int) -> Leading:
    """From the products of the rows (n, n), for fewer rows than columns."""
    gram = torch.zeros(n, n, dtype=z.wide, device=z.device)
    for place, block in columns():
        dense = z(block, place)
        if z.center:
            z.mean[place] = dense.mean(0, dtype=z.wide) if z.clip is not None else 0
            dense = dense - dense.mean(0)
        gram += dense @ dense.T
    matrix = gram.cpu().double().numpy()
    values, left = _leading(matrix, k)
    axes = torch.from_numpy(left).to(z.dtype).to(z.device)
    right = [(z(block, place) - z.mean[place].to(z.dtype)).T @ axes for place, block in columns()]
    vectors = torch.cat(right).cpu().double().numpy()  # (d, k)
    return values, _orthonormal(vectors, values), float(np.trace(matrix))


def _orthonormal(vectors: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Columns of unit length; those of no variance are filled so that all are orthogonal."""
    weak = np.flatnonzero(values <= 1e-10 * max(values[0], 1e-300))
    vectors[:, weak] = 0
    # any directions will do: axes that the others touch least, made orthogonal to them by the QR below
    unused = np.argsort(np.square(vectors).sum(1), kind="stable")[: len(weak)]
    vectors[unused, weak] = 1
    q, r = np.linalg.qr(vectors)
    return q * np.where(r.diagonal() < 0, -1, 1)


def _krylov(z: _Standardised, blocks: Blocks, d: int, k: int, seed: int) -> Leading:
    """From a block Krylov space of the scatter matrix; each power of it is one pass over the rows."""
    z.fit_mean(blocks)
    start = torch.randn(d, min(k + _OVERSAMPLING, d), generator=make_generator(seed))
    q = torch.linalg.qr(start.to(z.device, z.dtype))[0]
    basis = []
    for _ in range(_KRYLOV_DEPTH):
        q = torch.linalg.qr(_scatter_times(z, blocks, q)[0].to(z.dtype))[0]
        basis.append(q)
    q = torch.linalg.qr(torch.cat(basis, 1))[0]  # (d, at most d)
    product, total = _scatter_times(z, blocks, q)
    small = (q.to(z.wide).T @ product).cpu().double().numpy()
    values, vectors = _leading((small + small.T) / 2, k)
    return values, q.cpu().double().numpy() @ vectors, total


def _scatter_times(z: _Standardised, blocks: Blocks, q: torch.Tensor) -> tuple[torch.Tensor, float]:
    """The scatter matrix of z times (d, l) ``q``, and its trace, in one pass."""
    product = torch.zeros(q.shape, dtype=z.wide, device=z.device)
    trace = torch.zeros((), dtype=z.wide, device=z.device)
    mean = z.mean.to(z.dtype)
    for block in blocks():
        dense = z(block) - mean
        product += dense.T @ (dense @ q)
        trace += dense.square().sum(dtype=z.wide)
    return product, float(trace)


def _leading(matrix: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The ``k`` largest eigenvalues of a symmetric matrix, descending, and their eigenvectors in columns."""
    side = len(matrix)
    if side > 500 and k < side // 10 and matrix.any():
        start = np.random.default_rng(0).standard_normal(side)
        values, vectors = scipy.sparse.linalg.eigsh(matrix, k, v0=start)
        order = np.argsort(values)[::-1]
        return values[order], vectors[:, order].copy()
    values, vectors = scipy.linalg.eigh(matrix, subset_by_index=[side - k, side - 1])
    return values[::-1].copy(), vectors[:, ::-1].copy()


def _deterministic_signs(components: np.ndarray) -> np.ndarray:
    """Each row turned so that its entry of largest absolute value is positive."""
    largest = np.abs(components).argmax(1)
    signs = np.sign(components[np.arange(len(components)), largest])
    return components * np.where(signs == 0, 1, signs)[:, None]


def _column_sums(blocks: Blocks) -> tuple[int, np.ndarray, np.ndarray]:
    """Number of rows, columns' means, and sums of squared deviations: one pass, sums in float64.

    Values are taken about the mean of the first block, so that squares of large values do not cancel.
    """
    n = 0
    for block in blocks():
        dense = _dense(block)
        if n == 0:
            shift = dense.mean(0, dtype=torch.float64).to(dense.dtype)
            total, squares = (
                torch.zeros_like(shift, dtype=torch.float64),
                torch.zeros_like(shift, dtype=torch.float64),
            )
        dense = dense - shift.to(dense.dtype)
        total += dense.sum(0, dtype=torch.float64)
        squares += dense.square().sum(0, dtype=torch.float64)
        n += len(dense)
    mean = total / n
    squares = (squares - n * mean.square()).clamp_(min=0)
    return n, (shift.double() + mean).numpy(), squares.numpy()


def _slices(n: int, d: int) -> Iterator[slice]:
    step = max(1, _BLOCK_ELEMENTS // max(d, 1))
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))


def _row_blocks(matrix: Any) -> Blocks:
    """Passes over a matrix that slices by rows."""

    def blocks() -> Iterator[Any]:
        for rows in _slices(*matrix.shape):
            yield matrix[rows]

    return blocks


def _column_blocks(matrix: Any) -> Columns:
    """Passes over a matrix in memory by columns."""

    def columns() -> Iterator[tuple[slice, Any]]:
        by_column = matrix.tocsc() if scipy.sparse.issparse(matrix) else matrix
        for place in _slices(*matrix.shape[::-1]):
            yield place, by_column[:, place]

    return columns


def _dense(block: Any) -> torch.Tensor:
    array = block.toarray() if scipy.sparse.issparse(block) else np.ascontiguousarray(block)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _check_array(check: Callable[..., Any], X: Any, **options: Any) -> Any:
    """Finite float32 or float64 values, dense or CSR; `InputError` otherwise."""
    try:
        return check(X, dtype=[np.float64, np.float32], accept_sparse="csr", **options)
    except ValueError as error:
        raise InputError(str(error)) from error
