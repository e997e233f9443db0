"""Where and how a run happens: device, random numbers, threads, versions, memory."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .errors import InputError

__all__ = [
    "make_generator",
    "n_threads",
    "peak_memory",
    "resolve_device",
    "spawn_seeds",
    "synchronize",
    "threads_for",
    "total_memory",
    "versions",
]

_ROWS_PER_THREAD = 50_000
_PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "anndata", "h5py", "pandas", "pynndescent")


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """Turn ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"mps"`` into a usable device.

    ``"auto"`` takes CUDA when there is one, else the CPU; Apple's mps only when asked for by
    name, since it lacks operations that then fall back silently.

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
        raise InputError(f"device must be auto, cpu, cuda, cuda:N or mps; found {device!r}.") from error
    if resolved.type == "cuda":
        available = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (resolved.index or 0) >= available:
            raise InputError(
                f"device {device!r} was asked for, but this build of torch ({torch.__version__}) sees "
                f"{available} CUDA device(s). Use device='cpu', or install a CUDA build of torch."
            )
    elif resolved.type == "mps":
        if not torch.backends.mps.is_available():
            raise InputError(
                "device 'mps' was asked for, but torch sees no Apple GPU here. Use device='cpu'."
            )
    elif resolved.type != "cpu":
        raise InputError(f"device must be auto, cpu, cuda, cuda:N or mps; found {device!r}.")
    return resolved


def make_generator(seed: int, device: str | torch.device = "cpu") -> torch.Generator:
    """A generator of its own for ``device``; torch's global one is left as it was."""
    generator = torch.Generator(device=device)
    generator.manual_seed(int(seed))
    return generator


def spawn_seeds(seed: int, n: int) -> list[int]:
    """``n`` independent seeds that follow from ``seed`` (numpy's ``SeedSequence``)."""
    return [int(word) for word in np.random.SeedSequence(int(seed)).generate_state(n, dtype=np.uint32)]


def n_threads() -> int:
    """How many threads this process may use: what OMP_NUM_THREADS or ``torch.set_num_threads`` gave."""
    return torch.get_num_threads()


@contextmanager
def threads_for(n_rows: int) -> Iterator[None]:
    """Within: no more of torch's threads than ``n_rows`` rows of some dozens of columns can feed.

    Small operations gain nothing from a second thread, and wait for it: on a machine that others use
    too, a small section trained ten times slower with two threads than with one. Never raises the
    number that OMP_NUM_THREADS or ``torch.set_num_threads`` gave, and restores it.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, 1 + n_rows // _ROWS_PER_THREAD))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def synchronize(device: torch.device) -> None:
    """Wait until ``device`` has done what was queued, so that a clock read means something."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


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
    """Memory in bytes that this process may use at all: the machine's or its container's, or a GPU's.

    None where the system does not tell.
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
    """Largest memory held so far, in bytes: this process's RAM, and the GPU's when there is one.

    RAM is None where the system does not tell (Windows).
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
