"""Principal components of dense, sparse or on-disk matrices, without ever holding a dense copy.

Everything is a pass over blocks of rows. A block is brought to ``z = clip((x − mean) / scale)`` when its
turn comes, is used, and is dropped; nothing as large as the matrix is made. Two ways lead to the
components: the covariance (or, for few rows, the Gram matrix of the rows) in full, or a block Krylov
space of it, which costs a few thin products.

Sources: Halko, Martinsson and Tropp 2011 (randomised subspaces); Musco and Musco 2015 (block Krylov);
Chan, Golub and LeVeque 1983 (variances merged over blocks).
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
        Mean of z, not zero only where clipping has moved it (or without centring, where it is not used).
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
        matrix = self._check(X, reset=True)
        return self._fit_blocks(_row_blocks(matrix), np.dtype(matrix.dtype), gram=True)

    def fit_chunks(self, source: Any) -> PCA:
        """Fit from blocks of rows that are read anew in each pass, such as a matrix on disk.

        Parameters
        ----------
        source : callable, or object with ``shape`` and slicing by rows
            A callable of no arguments that starts a pass over row blocks (dense or scipy sparse); or an
            HDF5 dataset, a memory map or a backed AnnData matrix.
        """
        blocks = self._checked_blocks(source)
        first = next(iter(blocks()), None)
        if first is None:
            raise InputError(
                "fit_chunks was given no row blocks. Give a callable that starts a new pass each time."
            )
        self.n_features_in_ = first.shape[1]
        return self._fit_blocks(blocks, np.dtype(first.dtype), gram=False)

    def _checked_blocks(self, source: Any) -> Blocks:
        """Each block checked as it passes by."""
        start: Blocks = source if callable(source) else _row_blocks(source)

        def blocks() -> Iterator[Any]:
            for block in start():
                yield _check_array(check_array, block, ensure_min_samples=0)

        return blocks

    def _fit_blocks(self, blocks: Blocks, dtype: np.dtype, gram: bool) -> PCA:
        device = resolve_device(self.device)
        self._check_parameters()
        n, d = self._fit_scale(blocks)
        k = min(self.n_components, n, d)
        self.n_components_, self.n_samples_ = k, n
        self.solver_ = self._choose_solver(n, d, gram)
        # float64 in, float64 inside, where the device has it
        tensor_dtype = torch.float64 if dtype == np.float64 and device.type != "mps" else torch.float32
        passes = _Passes(self, blocks, device, tensor_dtype)
        if self.solver_ == "randomized":
            values, vectors, total = _krylov(passes, d, k, int(self.random_state))
        elif gram and n < d and n <= _GRAM_ROWS:
            values, vectors, total = _gram(passes, n, k)
        else:
            values, vectors, total = _covariance(passes, d, k)
        self.clipped_mean_ = passes.mean.double().cpu().numpy()
        values = np.maximum(values, 0)
        self.components_ = _deterministic_signs(vectors.T).astype(dtype)
        degrees = max(n - 1, 1)
        self.explained_variance_ = (values / degrees).astype(dtype)
        self.explained_variance_ratio_ = (values / (total or 1.0)).astype(dtype)
        self.singular_values_ = np.sqrt(values).astype(dtype)
        self._n_features_out = k
        return self

    def _check_parameters(self) -> None:
        if not isinstance(self.n_components, Integral) or self.n_components < 1:
            raise InputError(f"n_components must be an integer >= 1; found {self.n_components!r}.")
        if self.clip is not None and not self.clip > 0:
            raise InputError(f"clip must be None or a number > 0; found {self.clip!r}.")
        if self.solver not in ("auto", "exact", "randomized"):
            raise InputError(f"solver must be 'auto', 'exact' or 'randomized'; found {self.solver!r}.")

    def _fit_scale(self, blocks: Blocks) -> tuple[int, int]:
        """Set ``mean_`` and ``scale_``; return the shape of the matrix."""
        n, mean, scatter = _column_scatter(blocks)
        deviation = np.sqrt(scatter / max(n - 1, 1))
        # what rounding leaves of a constant column is not a variance
        deviation[deviation <= 1e-12 * np.abs(mean)] = 0
        self.mean_ = mean if self.center else np.zeros_like(mean)
        self.scale_ = np.where(deviation > 0, deviation, 1.0) if self.scale else np.ones_like(mean)
        return n, len(mean)

    def _choose_solver(self, n: int, d: int, gram: bool) -> str:
        if self.solver != "auto":
            return self.solver
        side = n if gram and n < d and n <= _GRAM_ROWS else d
        exact = n * d * side
        randomized = n * d * (self.n_components + _OVERSAMPLING) * 2 * (_KRYLOV_DEPTH + 1)
        return "exact" if side <= _EXACT_SIDE and exact <= max(4 * randomized, 1e11) else "randomized"

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
        dtype = (
            torch.float64 if self.components_.dtype == np.float64 and device.type != "mps" else torch.float32
        )
        passes = _Passes(self, blocks, device, dtype)
        axes = torch.from_numpy(self.components_.T.copy()).to(device, dtype)
        shift = torch.from_numpy(self.clipped_mean_ if self.center else 0 * self.mean_).to(device, dtype)
        scores = [(block @ axes - shift @ axes).cpu().numpy() for block in passes]
        return np.concatenate(scores)

    def fit_transform(self, X: Any, y: Any = None) -> np.ndarray:
        """``fit(X).transform(X)``."""
        return self.fit(X).transform(X)

    def inverse_transform(self, X: Any) -> np.ndarray:
        """Rows whose scores are ``X`` (n_samples, n_components), in the data's units; clipping is not undone."""
        self._check_fitted()
        scores = X.detach().cpu().numpy() if isinstance(X, torch.Tensor) else check_array(X)
        if scores.shape[1] != len(self.components_):
            raise InputError(f"Expected {len(self.components_)} columns of scores; found {scores.shape[1]}.")
        z = scores @ self.components_ + (self.clipped_mean_ if self.center else 0)
        return (z * self.scale_ + self.mean_).astype(self.components_.dtype)

    def _check_fitted(self) -> None:
        if not hasattr(self, "components_"):
            raise NotFittedError(f"This {type(self).__name__} instance is not fitted yet. Call 'fit' first.")


class _Passes:
    """Passes over the standardised blocks: each iteration yields (b, d) tensors on the device."""

    def __init__(self, pca: PCA, blocks: Blocks, device: torch.device, dtype: torch.dtype):
        self.blocks = blocks
        self.device = device
        self.dtype = dtype
        self.center = pca.center
        self.clip = pca.clip
        self.shift = torch.from_numpy(pca.mean_)
        self.divide = bool((pca.scale_ != 1).any())
        self.inverse_scale = torch.from_numpy(1 / pca.scale_).to(device, dtype)
        self.wide = torch.float32 if device.type == "mps" else torch.float64
        self.mean = torch.zeros(len(pca.mean_), dtype=self.wide, device=device)
        self.n = 0

    def __iter__(self) -> Iterator[torch.Tensor]:
        for block in self.blocks():
            for rows in _slices(*block.shape):
                dense = _dense(block[rows])
                # the mean leaves in the block's own precision, before anything is rounded
                z = dense - self.shift.to(dense.dtype) if self.center else dense
                z = z.to(self.device, self.dtype)
                if self.divide:
                    z = z * self.inverse_scale
                yield z if self.clip is None else z.clamp(-self.clip, self.clip)

    def fit_mean(self) -> None:
        """Mean of z, which clipping may have moved from zero."""
        total = torch.zeros_like(self.mean)
        self.n = 0
        for block in self:
            total += block.sum(0, dtype=self.wide)
            self.n += len(block)
        self.mean = total / self.n

    @property
    def offset(self) -> torch.Tensor:
        """What is still to be subtracted from z."""
        return self.mean if self.center else torch.zeros_like(self.mean)


def _covariance(passes: _Passes, d: int, k: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Leading ``k`` eigenvalues, eigenvectors (d, k) and trace of the scatter matrix (d, d)."""
    scatter = torch.zeros(d, d, dtype=passes.wide, device=passes.device)
    total = torch.zeros(d, dtype=passes.wide, device=passes.device)
    n = 0
    for block in passes:
        scatter += block.T @ block
        total += block.sum(0, dtype=passes.wide)
        n += len(block)
    passes.mean = total / n
    scatter -= n * torch.outer(passes.offset, passes.offset)
    matrix = scatter.double().cpu().numpy() if passes.device.type != "mps" else scatter.cpu().double().numpy()
    values, vectors = _leading(matrix, k)
    return values, vectors, float(np.trace(matrix))


def _gram(passes: _Passes, n: int, k: int) -> tuple[np.ndarray, np.ndarray, float]:
    """The same from the (n, n) products of the rows, for fewer rows than columns."""
    passes.fit_mean()
    z = torch.cat(list(passes)) - passes.offset.to(passes.dtype)
    gram = (z @ z.T).cpu().double().numpy()
    values, left = _leading(gram, k)
    vectors = (z.T @ torch.from_numpy(left).to(z)).cpu().double().numpy()  # (d, k)
    return values, _orthonormal(vectors, values), float(np.trace(gram))


def _orthonormal(vectors: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Columns of unit length; those of no variance are filled so that all are orthogonal."""
    weak = values <= 1e-10 * values[0] if values[0] > 0 else np.ones(len(values), dtype=bool)
    filled = np.where(weak, 0, vectors)
    # any directions will do: the first axes, made orthogonal to the rest by the QR below
    filled[np.arange(len(values))[weak], np.nonzero(weak)[0]] = 1
    q, r = np.linalg.qr(filled)
    return q * np.where(r.diagonal() < 0, -1, 1)


def _krylov(passes: _Passes, d: int, k: int, seed: int) -> tuple[np.ndarray, np.ndarray, float]:
    """The same from a block Krylov space of the scatter matrix; one pass over the rows for each depth."""
    passes.fit_mean()
    offset = passes.offset.to(passes.dtype)
    generator = make_generator(seed)
    width = min(k + _OVERSAMPLING, d)
    q = torch.randn(d, width, generator=generator, dtype=torch.float32).to(passes.device, passes.dtype)
    q = torch.linalg.qr(q)[0]
    basis = []
    total = 0.0
    for depth in range(_KRYLOV_DEPTH + 2):
        last = depth == _KRYLOV_DEPTH + 1
        if last:
            q = torch.linalg.qr(torch.cat(basis[1:], 1))[0][:, :d]
        product = torch.zeros(d, q.shape[1], dtype=passes.wide, device=passes.device)
        for block in passes:
            block = block - offset
            product += block.T @ (block @ q)
            if last:
                total += float(block.square().sum(dtype=passes.wide))
        if last:
            small = (q.to(passes.wide).T @ product).cpu().double().numpy()
            values, vectors = _leading((small + small.T) / 2, k)
            return values, q.cpu().double().numpy() @ vectors, total
        basis.append(q)
        q = torch.linalg.qr(product.to(passes.dtype))[0]
    raise AssertionError  # pragma: no cover


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


def _column_scatter(blocks: Blocks) -> tuple[int, np.ndarray, np.ndarray]:
    """Number of rows, columns' means, and sums of squared deviations, in one pass and float64."""
    n = 0
    mean: Any = 0.0
    scatter: Any = 0.0
    for block in blocks():
        for rows in _slices(*block.shape):
            part = block[rows]
            size = part.shape[0]
            part_mean = np.asarray(part.mean(0, dtype=np.float64)).ravel()
            if scipy.sparse.issparse(part):
                squares = np.bincount(
                    part.indices,
                    (part.data - part_mean[part.indices]) ** 2,
                    minlength=part.shape[1],
                )
                stored = np.bincount(part.indices, minlength=part.shape[1])
                part_scatter = squares + (size - stored) * part_mean**2
            else:
                part_scatter = np.square(part - part_mean).sum(0)
            step = part_mean - mean
            scatter = scatter + part_scatter + step**2 * (n * size / (n + size))
            mean = mean + step * (size / (n + size))
            n += size
    return n, np.asarray(mean), np.asarray(scatter)


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


def _dense(block: Any) -> torch.Tensor:
    array = block.toarray() if scipy.sparse.issparse(block) else np.ascontiguousarray(block)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _check_array(check: Callable[..., Any], X: Any, **options: Any) -> Any:
    """Finite float32 or float64 values, dense or CSR; `InputError` otherwise."""
    try:
        return check(X, dtype=[np.float64, np.float32], accept_sparse="csr", **options)
    except ValueError as error:
        raise InputError(str(error)) from error
