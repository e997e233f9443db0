"""Several processes that fit one model, each to sections of its own, by ``torch.distributed``.

No edge crosses sections, so a section is the unit of distribution: every process (rank) holds whole sections, and what
is learned from all spots, such as covariances, spectra, gradients and the moments of the mixture, is summed over the
ranks. What is decided on a sample of at most 20,000 spots is gathered, and computed by every rank in the same way.

The rows of all ranks together are those of rank 0, then those of rank 1, and so on; a *place* is a position among
them. Without `together` there is one rank, and everything here leaves its arguments as they are.

All ranks have to come to the same collective operations in the same order. What depends on data therefore depends on
sums over all ranks, and a rank that fails ends, by which ``torchrun`` ends the others.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from .errors import AmilstError, InputError

__all__ = [
    "Ranks",
    "alone",
    "column_means",
    "deal",
    "launched",
    "median",
    "ranks",
    "restarted",
    "sampled",
    "together",
]

T = TypeVar("T")

_TIMEOUT = timedelta(hours=2)
"""Longest wait for another rank, which may be reading a large file; a rank that fails ends the others at once."""


_RESTARTS = "TORCHELASTIC_RESTART_COUNT"
"""Environment variable in which ``torchrun`` counts how often it has started the processes again."""


class Ranks:
    """The processes of a run, by default one.

    Attributes
    ----------
    rank : int
        Of this process, in [0, size).
    size : int
        Number of processes.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    def total(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Sums over the ranks of tensors of equal shapes, float64 where they are floating-point numbers.

        In one transfer; the sums are the same bits on every rank.
        """
        if self.size == 1:
            return tensors
        together = torch.cat([tensor.detach().double().flatten() for tensor in tensors])
        torch.distributed.all_reduce(together)
        parts = together.split([tensor.numel() for tensor in tensors])
        return tuple(
            part.view(tensor.shape).to(torch.float64 if tensor.is_floating_point() else tensor.dtype)
            for part, tensor in zip(parts, tensors, strict=True)
        )

    def sum(self, values: Any) -> Any:
        """The sum over the ranks of an array or a number: ndarray of float64 or int64, or float."""
        if self.size == 1:
            return values
        array = np.asarray(values)
        exact = array.dtype.kind in "iub"
        tensor = torch.from_numpy(np.array(array, dtype=np.int64 if exact else np.float64))
        torch.distributed.all_reduce(tensor)
        return tensor.numpy() if array.ndim else tensor.item()

    def largest(self, value: int) -> int:
        """The largest of the values of the ranks."""
        return max(self.objects(value))

    def objects(self, value: T) -> list[T]:
        """The values of all ranks, in their order; for small ones."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(values, value)
        return values

    def same(self, value: T) -> T:
        """The value of rank 0."""
        if self.size == 1:
            return value
        values = [value]
        torch.distributed.broadcast_object_list(values)
        return values[0]

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """The rows of all ranks, in their order; the number of rows may differ."""
        if self.size == 1:
            return rows
        sizes = self.objects(len(rows))
        own = torch.from_numpy(np.ascontiguousarray(rows))
        flag = own.dtype == torch.bool
        own = own.to(torch.uint8) if flag else own
        parts = [own.new_empty((size, *own.shape[1:])) for size in sizes]
        # of unequal sizes: each rank sends its own
        for source, part in enumerate(parts):
            if source == self.rank:
                part.copy_(own)
            torch.distributed.broadcast(part, source)
        whole = torch.cat(parts)
        return (whole.bool() if flag else whole).numpy()

    def to_first(self, value: T) -> list[T] | None:
        """The values of all ranks on rank 0, None on the others; for large ones."""
        if self.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.size if self.rank == 0 else None
        torch.distributed.gather_object(value, values)
        return values

    def wait(self) -> None:
        """Wait until all ranks have come here."""
        if self.size > 1:
            torch.distributed.barrier()

    def place(self, n_rows: int) -> tuple[int, int]:
        """Where the rows of this rank begin among those of all ranks, and how many all have."""
        if self.size == 1:
            return 0, n_rows
        sizes = self.objects(n_rows)
        return sum(sizes[: self.rank]), sum(sizes)

    def own(self, places: np.ndarray, n_rows: int) -> np.ndarray:
        """Of ascending places, those in the rows of this rank, counted from its first row."""
        start, _ = self.place(n_rows)
        first, last = np.searchsorted(places, [start, start + n_rows])
        return places[first:last] - start

    def take(self, rows: np.ndarray, places: np.ndarray) -> np.ndarray:
        """The rows at ascending places, (len(places), ...), on every rank."""
        return self.gather(rows[self.own(places, len(rows))])

    def numbered(self, codes: np.ndarray) -> np.ndarray:
        """Codes 0..S-1 of the sections of this rank as codes among the sections of all ranks."""
        if self.size == 1:
            return codes
        return codes + sum(self.objects(int(codes.max()) + 1)[: self.rank])


def column_means(rows: Tensor) -> Tensor:
    """Means of the columns over the rows of all ranks, (C,), dtype of the rows (N, C)."""
    group = ranks()
    if group.size == 1:
        return rows.mean(0)
    total, n = group.total(rows.double().sum(0), torch.tensor(len(rows), device=rows.device))
    return (total / n).to(rows.dtype)


def median(values: np.ndarray, *, lower: bool = False) -> float:
    """The median of the values >= 0 of all ranks, (n,) float64; 0 if there are none.

    ``lower``: of two values in the middle the lower one, instead of their mean.

    By bisection of the bits of the numbers: each of 63 steps sums one number over the ranks, whatever n is.
    """
    group = ranks()
    if group.size == 1 and not lower:
        return float(np.median(values)) if len(values) else 0.0
    # the order of floating-point numbers >= 0 is that of their bits
    bits = np.sort(np.asarray(values, dtype=np.float64).view(np.int64))
    n = group.sum(len(bits))
    if n == 0:
        return 0.0

    def smallest(place: int) -> float:
        low, high = 0, np.iinfo(np.int64).max
        while low < high:
            middle = low + (high - low) // 2
            if group.sum(int(np.searchsorted(bits, middle, side="right"))) > place:
                high = middle
            else:
                low = middle + 1
        return float(np.int64(low).view(np.float64))

    low = smallest((n - 1) // 2)
    return low if n % 2 or lower else (low + smallest(n // 2)) / 2


def sampled(*arrays: np.ndarray, most: int = 1_000_000) -> list[np.ndarray]:
    """The rows of all ranks at evenly spaced places, at least ``most`` where there are as many."""
    group = ranks()
    n = group.sum(len(arrays[0]))
    places = np.arange(0, n, max(1, n // most))
    return [group.take(array, places) for array in arrays]


_RANKS: ContextVar[Ranks] = ContextVar("amilst_lite_ranks", default=Ranks())  # noqa: B039  # it holds no state


def ranks() -> Ranks:
    """The ranks that fit together here; one, if `together` was not entered."""
    return _RANKS.get()


@contextmanager
def alone() -> Iterator[None]:
    """Within: one rank. For what every rank computes from the same rows."""
    token = _RANKS.set(Ranks())
    try:
        yield
    finally:
        _RANKS.reset(token)


def restarted() -> bool:
    """Whether ``torchrun`` has started the processes again because one of them ended (``--max-restarts``)."""
    return int(os.environ.get(_RESTARTS, "0")) > 0


def deal(sizes: Sequence[int] | np.ndarray, n_ranks: int) -> list[np.ndarray]:
    """The sections of each rank, as their places among ``sizes``: runs of about equal size, none empty.

    Raises
    ------
    InputError
        There are fewer sections than ranks.
    """
    n = len(sizes)
    if n < n_ranks:
        raise InputError(
            f"{n_ranks} processes need at least as many sections, which are not divided; found {n}. Start at most "
            f"{n} (torchrun --nproc-per-node)."
        )
    middles = np.cumsum(sizes) - np.asarray(sizes) / 2
    owner = np.minimum((n_ranks * middles / np.sum(sizes)).astype(int), n_ranks - 1)
    for place in range(n):
        owner[place] = max(owner[place], n_ranks - (n - place))
        owner[place] = min(owner[place], owner[place - 1] + 1 if place else 0)
    return [np.flatnonzero(owner == rank) for rank in range(n_ranks)]


def launched() -> int:
    """Number of processes that ``torchrun`` has launched for this run; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


@contextmanager
def together() -> Iterator[Ranks]:
    """Within: fits are those of all processes that ``torchrun`` has launched, each with sections of its own.

    The process group is made, with gloo on CPUs and NCCL on GPUs, unless the caller has made it.

    Raises
    ------
    InputError
        The other processes could not be reached.
    AmilstError
        Another process ended.

    Examples
    --------
    Started by ``torchrun --nproc-per-node 4 program.py``:

    >>> with together() as ranks:
    ...     labels = AMILST(20).fit_predict(X[ranks.rank], coordinates=coordinates[ranks.rank])
    """
    available = torch.distributed.is_available()
    ours = not (available and torch.distributed.is_initialized())
    if ours:
        if launched() == 1:
            yield Ranks()
            return
        if not available:
            raise InputError(
                "this build of torch has no torch.distributed. Run as one process, or install another build."
            )
        from torch.distributed import PrefixStore, rendezvous  # type: ignore[attr-defined]

        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        try:
            store, rank, size = next(rendezvous("env://", timeout=_TIMEOUT))
            # processes that were started again must not find the addresses of those before them
            store = PrefixStore(f"attempt {os.environ.get(_RESTARTS, '0')}", store)
            torch.distributed.init_process_group(
                backend, store=store, rank=rank, world_size=size, timeout=_TIMEOUT
            )
        except (RuntimeError, ValueError) as error:
            raise InputError(
                f"the processes of this run could not be connected: {' '.join(str(error).split())}. Start them "
                "with torchrun, and check that the hosts reach the address given as --rdzv-endpoint."
            ) from error
    found = Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size())
    token = _RANKS.set(found)
    try:
        yield found
        if ours:
            torch.distributed.destroy_process_group()  # not after an error: it waits for the others
    except RuntimeError as error:
        if "gloo" not in str(error) and not isinstance(error, torch.distributed.DistError):
            raise
        raise AmilstError(
            "another process of this run ended, so this one cannot go on. The message of the other process says why."
        ) from error
    finally:
        _RANKS.reset(token)
