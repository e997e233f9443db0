"""Memory and time of a run, estimated before it begins.

The coefficients were fitted to ``benchmarks/scaling.py`` (two CPU cores, 3,000 to 1,000,000 cells, panels of
300 and 2,000 genes, torch 2.13); estimates of memory agreed with the measurements to 15 %. Times hold for that
machine and give the order of magnitude elsewhere. GPU memory was derived from the array sizes, not measured.
An estimate never changes a setting.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .config import Config
from .errors import InsufficientMemoryError
from .runtime import total_memory

__all__ = ["Estimate", "check_memory", "estimate"]

_MIB = 2**20
_TOLERANCE = 1.3  # an estimate may be this much too high

_BASE = 390 * _MIB  # Python, torch and the other packages
_ENTRY = 8  # bytes per stored count: float32 and int32
_SPOT = 2000  # bytes per spot of graph, features, embedding and mixture, with 30 components and 20 domains
_SPOT_VRAM = 1400  # the part of these on a GPU
_STEP_ROW = 8700  # bytes per spot and network in a training step, with the default widths
_SEARCH, _SEARCH_SPOT, _SEARCH_SPOTS = 250 * _MIB, 14_500, 20_000  # restarts of the mixture
_ON_GPU = 0.05  # time on a GPU as a share of the time on a CPU

_ADVICE = (
    "Leave the counts on disk (amilst run --backed; in Python read(path, backed=True)), lower --n-top-genes, "
    "--n-components or --batch-size, or run each section separately."
)


@dataclass(frozen=True)
class Estimate:
    """Resources that a run needs.

    Attributes
    ----------
    ram_bytes : int
        Peak memory of the process.
    vram_bytes : int or None
        Peak memory on the GPU; None without one.
    seconds : float
        Wall-clock time, including writing the results.
    """

    ram_bytes: int
    vram_bytes: int | None
    seconds: float

    def __str__(self) -> str:
        parts = [f"{self.ram_bytes / 2**30:.1f} GiB of memory"]
        if self.vram_bytes is not None:
            parts.append(f"{self.vram_bytes / 2**30:.1f} GiB of GPU memory")
        time = f"{self.seconds:.0f} s" if self.seconds < 100 else f"{self.seconds / 60:.0f} min"
        return f"about {', '.join(parts)}, {time}"


def estimate(
    n_spots: int,
    n_entries: int,
    config: Config | None = None,
    *,
    n_domains: int | None = None,
    n_genes: int | None = None,
    on_disk: bool = False,
    device: torch.device | str = "cpu",
) -> Estimate:
    """Peak memory and time of `amilst_lite.identify_domains` and of writing its results.

    Parameters
    ----------
    n_spots, n_entries : int
        Number of spots, and of nonzero counts.
    config : Config, optional
        The settings; the default preset's if not given.
    n_domains : int, optional
        Number of domains; None if it will be chosen.
    n_genes : int, optional
        Number of genes before gene selection.
    on_disk : bool
        The counts stay on disk; only those of the selected genes are loaded.
    device : str or torch.device
        Device of the run.
    """
    config = Config() if config is None else config
    device = torch.device(device)
    n_networks = config.train.n_networks
    step_rows = min(n_spots, config.train.batch_size) * n_networks
    # the second phase of the published recipe adds the steps of discriminator and generator
    n_steps = config.train.epochs * (4 if config.train.recipe == "published" else 1)
    width = config.preprocess.n_components / 30
    domains = 20 if n_domains is None else n_domains

    n_top = config.preprocess.n_top_genes
    all_kept = n_genes is None or n_top is None or n_genes <= n_top
    chosen = n_entries if all_kept else 0.7 * n_entries  # variable genes hold most of the nonzero counts
    held = 0 if on_disk else n_entries
    counts = _ENTRY * (held + (0 if all_kept and not on_disk else chosen))
    spots = n_spots * (_SPOT + 600 * (width - 1) + 16 * (domains - 20))
    step = step_rows * _STEP_ROW
    search = _SEARCH + _SEARCH_SPOT * min(n_spots, _SEARCH_SPOTS)
    work = spots + max(step, search)
    on_gpu = device.type == "cuda"
    vram = n_spots * (_SPOT_VRAM + 600 * (width - 1) + 16 * (domains - 20)) + max(step, search)

    search_seconds = (
        (1.0 + 5e-4 * min(n_spots, _SEARCH_SPOTS)) * (1 + domains / 10) / 2 * config.cluster.n_init / 32
    )
    movable = (
        5e-8 * chosen
        + 2.2e-5 * n_spots * width * (config.filter.noise_band is not None)
        + 4.5e-6 * n_steps * step_rows
        + 5e-6 * n_spots * n_networks
        + search_seconds * (1 if n_domains is not None else 3)
        + 4e-6 * n_spots
    )
    # the network's share is decided on a part of the section
    decided = 1.0 if config.cluster.network_share is None and config.train.recipe == "default" else 0.0
    fixed = 4.0 + decided + 7e-8 * n_entries + 4.7e-5 * n_spots
    return Estimate(
        ram_bytes=int(_BASE + counts + (0.6 * spots if on_gpu else work)),
        vram_bytes=int(vram) if on_gpu else None,
        seconds=fixed + movable * (_ON_GPU if on_gpu else 1.0),
    )


def check_memory(needed: Estimate, device: torch.device) -> None:
    """Refuse a run that cannot fit in memory.

    Estimates up to 1.3 times the available memory pass, because an estimate may be too high by as much.

    Raises
    ------
    InsufficientMemoryError
        The machine, its container or its GPU has too little memory.
    """
    wanted = [("memory", needed.ram_bytes, total_memory())]
    if needed.vram_bytes is not None:
        wanted.append(("GPU memory", needed.vram_bytes, total_memory(device)))
    for name, bytes_needed, available in wanted:
        if available is not None and bytes_needed > _TOLERANCE * available:
            raise InsufficientMemoryError(
                f"Estimated memory exceeds available memory: this run needs about "
                f"{bytes_needed / 2**30:.1f} GiB of {name}, {available / 2**30:.1f} GiB are available. {_ADVICE}"
            )
