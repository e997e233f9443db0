"""Reductions over blocks of rows, on the CPU several blocks at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from typing import TypeVar

import torch

from ..distributed import ranks
from ..runtime import n_threads, standard_math, threads_for, use_threads

T = TypeVar("T")

CPU = torch.device("cpu")
_CPU_BLOCK, _DEVICE_BLOCK = 1 << 19, 1 << 25
"""Entries of the largest temporary of a block. On a CPU: 2 MiB of float32, which fit its cache."""

_POOL: ContextVar[ThreadPoolExecutor | None] = ContextVar("amilst_lite_block_threads", default=None)


@contextmanager
def block_threads() -> Iterator[None]:
    """Within: standard arithmetic, and as many blocks at a time as torch has threads, each by one thread.

    Several threads inside each operation, torch's default, synchronize dozens of times per millisecond:
    where other programs occupy a core, this was up to a hundred times slower. Sums over blocks do not
    depend on the number of threads.
    """
    workers = n_threads()
    with standard_math(), threads_for(0):
        if workers == 1:
            yield
            return
        with ThreadPoolExecutor(workers, initializer=use_threads, initargs=(1,)) as pool:
            token = _POOL.set(pool)
            try:
                yield
            finally:
                _POOL.reset(token)


def concurrently(functions: Sequence[Callable[[], T]], device: torch.device = CPU) -> list[T]:
    """Results of functions that do not depend on each other, in order.

    Within `block_threads`, on a CPU, each is called in a thread of its own, which works on one block after the other:
    for few rows, this takes less time than several blocks of one function at a time.
    """
    pool = _POOL.get()
    if pool is None or device.type != "cpu":
        return [function() for function in functions]
    contexts = [copy_context() for _ in functions]
    for context in contexts:
        context.run(_POOL.set, None)
    return list(pool.map(lambda context, function: context.run(function), contexts, functions))


def over_blocks(
    function: Callable[[slice], T], n_rows: int, width: int, device: torch.device = CPU
) -> Iterator[T]:
    """``function`` of slices over ``n_rows``, in order.

    The number of rows of a block depends on ``width``, the columns of its largest temporary, and on
    ``device``. Within `block_threads`, blocks on a CPU are processed in parallel.
    """
    step = max(256, (_CPU_BLOCK if device.type == "cpu" else _DEVICE_BLOCK) // max(width, 1))
    blocks = [slice(start, min(start + step, n_rows)) for start in range(0, n_rows, step)]
    pool = _POOL.get()
    if pool is None or len(blocks) == 1 or device.type != "cpu":
        return map(function, blocks)
    return pool.map(function, blocks)


def sum_over_blocks(
    function: Callable[[slice], tuple[torch.Tensor, ...]], n_rows: int, width: int, device: torch.device = CPU
) -> tuple[torch.Tensor, ...]:
    """Sums of what ``function`` returns for the blocks of `over_blocks`, in float64; over the rows of all ranks."""
    totals: tuple[torch.Tensor, ...] = ()
    for parts in over_blocks(function, n_rows, width, device):
        if not totals:
            totals = tuple(part.to(torch.float64, copy=True) for part in parts)
        else:
            for total, part in zip(totals, parts, strict=True):
                total += part
    return ranks().total(*totals)


def column_moments(X: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance (ddof 0) of the columns of (n, d) ``X``; each (d,), float64."""
    n, d = X.shape
    n_all = ranks().sum(n)
    mean = sum_over_blocks(lambda rows: (X[rows].double().sum(0),), n, d, X.device)[0] / n_all
    squares = sum_over_blocks(lambda rows: ((X[rows].double() - mean).square().sum(0),), n, d, X.device)[0]
    return mean, squares / n_all


def scatter(X: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Sum over the rows of (x − shift)(x − shift)ᵀ: (d, d), float64."""
    shift = shift.to(X.device, torch.float64)

    def products(rows: slice) -> tuple[torch.Tensor]:
        centered = X[rows].double() - shift
        return (centered.T @ centered,)

    return sum_over_blocks(products, len(X), X.shape[1], X.device)[0]


def affine(X: torch.Tensor, shift: torch.Tensor, matrix: torch.Tensor, out: torch.Tensor) -> None:
    """Write ``(X − shift) @ matrix`` (n, d'), computed in float64 block by block, into ``out``.

    The shift is subtracted before anything is rounded to the dtype of ``out``, so that data far from the
    origin keep their precision. ``out`` may be on another device than ``X``.
    """
    shift, matrix = shift.to(X.device, torch.float64), matrix.to(X.device, torch.float64)

    def write(rows: slice) -> None:
        out[rows] = ((X[rows].double() - shift) @ matrix).to(out.device, out.dtype)

    for _ in over_blocks(write, len(X), X.shape[1], X.device):
        pass
