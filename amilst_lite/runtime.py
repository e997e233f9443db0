"""Devices, random numbers, threads, package versions and memory."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from contextvars import ContextVar, copy_context
from numbers import Integral
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from .errors import InputError

__all__ = [
    "Abandoned",
    "beside",
    "check_needed",
    "check_seed",
    "limited_memory",
    "make_generator",
    "memory_limit",
    "n_threads",
    "peak_memory",
    "resolve_device",
    "spawn_seeds",
    "stage_seed",
    "standard_math",
    "synchronize",
    "threads_for",
    "total_memory",
    "use_threads",
    "versions",
]

T = TypeVar("T")

_ROWS_PER_THREAD = 50_000
_FREE_SHARE = 0.6  # of the free memory that a run may use, unless it is told how much
_MEMORY_LIMIT: ContextVar[int | None] = ContextVar("amilst_lite_memory_limit", default=None)
_STAGES = ("filter", "train", "cluster", "prepare", "share", "correct")
_PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "anndata", "h5py", "pandas", "pynndescent")


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """Turn ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"`` into a usable device.

    ``"auto"`` is CUDA where available, else the CPU.

    Raises
    ------
    InputError
        The name is unknown, or this machine or this build of torch has no such device.
    """
    if isinstance(device, str) and device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"device must be auto, cpu, cuda or cuda:N; found {device!r}.") from error
    if resolved.type == "cuda":
        available = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (resolved.index or 0) >= available:
            advice = (
                f"The last one is cuda:{available - 1}."
                if available
                else f"Use device='cpu', or install a CUDA build of torch (this is {torch.__version__})."
            )
            raise InputError(
                f"device {str(device)!r} was requested, but torch finds {available} CUDA device(s). {advice}"
            )
    elif resolved.type != "cpu":
        raise InputError(f"device must be auto, cpu, cuda or cuda:N; found {str(device)!r}.")
    return resolved


def check_seed(seed: Any) -> int:
    """The seed as an int in [0, 2**32), the range that numpy, torch and igraph all accept.

    Raises
    ------
    InputError
        It is not an integer in this range.
    """
    if isinstance(seed, bool | np.bool_) or not isinstance(seed, Integral) or not 0 <= int(seed) < 2**32:
        raise InputError(f"seed (--seed) must be an integer >= 0 and < 2**32; found {seed!r}.")
    return int(seed)


@contextmanager
def standard_math() -> Iterator[None]:
    """Within: gradients on, float32 as default dtype and in matrix products, on the CPU unless a device is named.

    Whatever the caller has set: ``torch.no_grad``, ``inference_mode``, ``autocast``, ``set_default_dtype``,
    ``set_default_device``, ``set_float32_matmul_precision``, ``set_flush_denormal`` and ``numpy.errstate`` of the
    caller would make fitting fail or change its results. All are as before afterwards.

    Default dtype and precision are those of the whole process. With several threads within, the first one sets
    and the last one restores them. A process that was forked has one thread from then on.
    """
    flushes = sys.float_info.min / 2 == 0
    elsewhere = torch.empty(0).device.type != "cpu"
    with (
        _PROCESS_WIDE,
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False),
        torch.device("cpu") if elsewhere else nullcontext(),  # which slows down every operation
        np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"),
    ):
        if flushes:
            torch.set_flush_denormal(False)
        try:
            yield
        finally:
            if flushes:
                torch.set_flush_denormal(True)


class _ProcessWide:
    """Settings of torch that all threads share: set by the first thread that enters, restored by the last."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.entered = 0
        self.stack = ExitStack()
        self.is_fork = False

    def after_fork(self) -> None:
        """In the new process: another thread, which it does not have, may hold the lock."""
        self.lock = threading.Lock()
        self.is_fork = True

    def __enter__(self) -> None:
        with self.lock:
            if self.entered == 0:
                self._set()
            self.entered += 1
            if self.is_fork:  # torch would wait forever for the threads of the process that was forked
                torch.set_num_threads(1)
            torch.get_num_threads()  # a new thread takes over the number of the process, see `use_threads`

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.entered -= 1
            if self.entered == 0:
                self.stack.close()

    def _set(self) -> None:
        self.stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        try:
            self.stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
        except RuntimeError:  # the caller has set it backend by backend, with the newer interface of torch
            for backend in (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul):  # type: ignore[attr-defined]
                self.stack.callback(setattr, backend, "fp32_precision", backend.fp32_precision)
            self.stack.callback(torch.set_float32_matmul_precision, "highest")
        torch.set_default_dtype(torch.float32)
        torch.set_float32_matmul_precision("highest")


_PROCESS_WIDE = _ProcessWide()
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_PROCESS_WIDE.after_fork)


def make_generator(seed: int, device: str | torch.device = "cpu") -> torch.Generator:
    """A new generator for ``device``; torch's global one is not touched."""
    generator = torch.Generator(device=device)
    generator.manual_seed(int(seed))
    return generator


def spawn_seeds(seed: int, n: int) -> list[int]:
    """``n`` independent seeds derived from ``seed`` (numpy's ``SeedSequence``)."""
    return [int(word) for word in np.random.SeedSequence(int(seed)).generate_state(n, dtype=np.uint32)]


def stage_seed(seed: int, stage: str) -> int:
    """The seed of one stage of a run, independent of those of the others.

    Parameters
    ----------
    seed : int
        The seed of the run.
    stage : {"filter", "train", "cluster", "prepare", "share", "correct"}
    """
    return spawn_seeds(seed, len(_STAGES))[_STAGES.index(stage)]


def n_threads() -> int:
    """Number of threads this process may use, as set by OMP_NUM_THREADS or ``torch.set_num_threads``."""
    with _PROCESS_WIDE.lock:  # where `use_threads` has them changed for a moment
        return torch.get_num_threads()


@contextmanager
def threads_for(n_rows: int) -> Iterator[None]:
    """Within: at most one of torch's threads, and one more for every 50,000 rows.

    Small operations gain nothing from a second thread and wait for it: on a shared machine a small section
    trained ten times slower with two threads than with one. Never exceeds the number set by OMP_NUM_THREADS
    or ``torch.set_num_threads``, and restores it.
    """
    before = n_threads()
    use_threads(min(before, 1 + n_rows // _ROWS_PER_THREAD))
    try:
        yield
    finally:
        use_threads(before)


def use_threads(n: int) -> None:
    """``torch.set_num_threads`` for the calling thread alone.

    That function sets the number for the calling thread and for all threads that use torch for the first time later.
    The latter is undone, so that threads which start meanwhile have as many as the caller has set.
    """
    if n == torch.get_num_threads():
        return
    with _PROCESS_WIDE.lock, ThreadPoolExecutor(1) as new_thread:
        of_process = new_thread.submit(torch.get_num_threads).result()
        torch.set_num_threads(n)
        if n != of_process:
            new_thread.submit(torch.set_num_threads, of_process).result()


class Abandoned(Exception):
    """What runs `beside` a body is not needed any more."""


_abandoned: ContextVar[threading.Event | None] = ContextVar("amilst_lite_abandoned", default=None)


def check_needed() -> None:
    """Raise `Abandoned` in a function that runs `beside` a body which has failed; for long loops."""
    event = _abandoned.get()
    if event is not None and event.is_set():
        raise Abandoned


@contextmanager
def beside(function: Callable[[], T]) -> Iterator[Callable[[], T]]:
    """Within: the function runs in a thread of its own, with standard arithmetic and one of torch's threads.

    The body has the rest of them, at least one. Yields a function that waits for the result and returns it, or raises
    what was raised. The body is left when both have ended; if it fails, `check_needed` ends the function.
    """
    before, abandoned = n_threads(), threading.Event()

    def run() -> T:
        _abandoned.set(abandoned)
        with standard_math(), threads_for(0):
            return function()

    with ThreadPoolExecutor(1) as thread:
        result = thread.submit(copy_context().run, run).result
        use_threads(max(1, before - 1))
        try:
            yield result
        except BaseException:
            abandoned.set()
            raise
        finally:
            use_threads(before)


def synchronize(device: torch.device) -> None:
    """Wait until ``device`` has finished its queue, so that wall-clock times are right."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def versions() -> dict[str, str]:
    """Versions of amilst_lite, Python and every run-time package."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in ("amilst-lite", *_PACKAGES):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def total_memory(device: torch.device | None = None) -> int | None:
    """Total memory in bytes available to this process: of the machine or its container, or of a GPU.

    None where the system does not report it.
    """
    if device is not None and device.type == "cuda":
        if not torch.cuda.is_available():
            return None
        return int(torch.cuda.get_device_properties(device).total_memory)
    limits = []
    with suppress(AttributeError, ValueError, OSError):  # Windows has no sysconf
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # of a container: cgroups v2, v1
        try:
            text = Path("/sys/fs/cgroup", name).read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            limits.append(int(text))
    return min(limits, default=None)


def memory_limit() -> tuple[int | None, bool]:
    """Bytes that a run may use, None where the system does not report any; and whether `limited_memory` has set them.

    Otherwise 60 % of what is free.
    """
    given = _MEMORY_LIMIT.get()
    if given is not None:
        return given, True
    free = [total] if (total := total_memory()) is not None else []
    with suppress(OSError, StopIteration, ValueError):  # of Linux
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(line for line in lines if line.startswith("MemAvailable:"))
        free.append(1024 * int(available.split()[1]))
    return int(_FREE_SHARE * min(free)) if free else None, False


@contextmanager
def limited_memory(gib: float | None) -> Iterator[None]:
    """Within: a run may use this much memory, in GiB; None: see `memory_limit`."""
    token = _MEMORY_LIMIT.set(None if gib is None else int(gib * 2**30))
    try:
        yield
    finally:
        _MEMORY_LIMIT.reset(token)


def peak_memory(device: torch.device | None = None) -> dict[str, Any]:
    """Peak memory so far, in bytes: RAM of this process, and GPU memory for a CUDA ``device``.

    RAM is None where the system does not report it (Windows).
    """
    peak: dict[str, Any] = {"ram_bytes": None}
    try:
        import resource
    except ImportError:  # Windows has no resource module
        pass
    else:
        # Linux counts kibibytes, macOS bytes
        unit = 1 if sys.platform == "darwin" else 1024
        peak["ram_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    if device is not None and device.type == "cuda":
        peak["vram_bytes"] = torch.cuda.max_memory_allocated(device)
    return peak
