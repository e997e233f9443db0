"""Devices, random numbers, threads, package versions and memory."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .errors import InputError

__all__ = [
    "check_seed",
    "make_generator",
    "n_threads",
    "peak_memory",
    "resolve_device",
    "spawn_seeds",
    "stage_seed",
    "standard_math",
    "synchronize",
    "threads_for",
    "total_memory",
    "versions",
]

_ROWS_PER_THREAD = 50_000
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
    """Within: gradients on, float32 as default dtype and in matrix products, whatever the caller has set.

    ``torch.no_grad``, ``inference_mode``, ``autocast``, ``set_default_dtype`` and
    ``set_float32_matmul_precision`` of the caller would make fitting fail or change its results.
    """
    dtype = torch.get_default_dtype()
    backends: list[tuple[Any, str]] = []
    try:
        precision = torch.get_float32_matmul_precision()
    except RuntimeError:  # the caller has set it backend by backend, with the newer interface of torch
        precision = "highest"
        backends = [
            (backend, backend.fp32_precision)
            for backend in (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
        ]
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False),
    ):
        torch.set_default_dtype(torch.float32)
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)
            torch.set_float32_matmul_precision(precision)
            for backend, value in backends:
                backend.fp32_precision = value


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
    return torch.get_num_threads()


@contextmanager
def threads_for(n_rows: int) -> Iterator[None]:
    """Within: at most one of torch's threads, and one more for every 50,000 rows.

    Small operations gain nothing from a second thread and wait for it: on a shared machine a small section
    trained ten times slower with two threads than with one. Never exceeds the number set by OMP_NUM_THREADS
    or ``torch.set_num_threads``, and restores it.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, 1 + n_rows // _ROWS_PER_THREAD))
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
