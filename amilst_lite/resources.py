"""Memory and time of a run, estimated before it begins.

The coefficients were fitted to ``benchmarks/scaling.py`` (two CPU cores, 3,000 to 1,000,000 cells in one section and in
40, panels of 300 and 2,000 genes, torch 2.13); estimates of memory agreed with the measurements to 15 %. Times hold for
that machine and give the order of magnitude elsewhere. GPU memory was derived from the array sizes, not measured.
An estimate never changes a setting.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .cluster.shrinkage import SHARES
from .config import Config
from .errors import InsufficientMemoryError
from .runtime import memory_limit, total_memory

__all__ = ["Estimate", "check_memory", "estimate"]

_MIB = 2**20
_TOLERANCE = 1.3  # an estimate may be this much too high

_BASE = 390 * _MIB  # Python, torch and the other packages
_ENTRY = 8  # bytes per stored count: float32 and int32
# Bytes per spot, with 30 components and 20 domains, of what the stages hold: names, coordinates, graph, and three
# arrays of components from training on.
_TRAIN_SPOT, _CLUSTER_SPOT, _REFINE_SPOT, _RESULTS_SPOT = 670, 600, 950, 820
_TILE_SPOT, _TILES = 170, 32  # of the tiles that are kept, and how many are
_FIT_SPOT, _FIT_SPOTS = 365, 1_000_000  # of the spots that the mixture is fitted to
_RESULTS, _DRAWN_SPOT, _DRAWN_SPOTS = 250 * _MIB, 2200, 200_000  # figures and report
_COUNTS_IN_MEMORY = 20_000_000  # counts of selected genes, up to which those on disk are loaded
_RESULT_SPOT, _CHECKPOINT_SPOT = 560, 520  # bytes on disk
# On a GPU, in bytes, from tests/simulated_cuda.py. Per spot: the graph, and an array of 30 components.
_SPOT_VRAM, _ARRAY_VRAM = 200, 120
_GRID_VRAM, _GRID_SPOT_VRAM = 300 * _MIB, 1300  # places compared at a time: at most, and per spot
_PROBES_VRAM = 10**7  # random vectors of the filter, in a small section
_STEP_ROW_VRAM = 3400  # as _STEP_ROW, without what an allocator on a CPU adds
_EM_VRAM, _DOUBLE_VRAM = 200 * _MIB, 800 * _MIB  # a block of an EM step, and of features in float64
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
    disk_bytes : int
        Space for the results of ``amilst run`` and for what it keeps until they are complete (``--resume``).
    """

    ram_bytes: int
    vram_bytes: int | None
    seconds: float
    disk_bytes: int

    def __str__(self) -> str:
        parts = [f"{self.ram_bytes / 2**30:.1f} GiB of memory"]
        if self.vram_bytes is not None:
            parts.append(f"{self.vram_bytes / 2**30:.1f} GiB of GPU memory")
        parts.append(f"{self.disk_bytes / 2**30:.1f} GiB of disk space")
        time = f"{self.seconds:.0f} s" if self.seconds < 100 else f"{self.seconds / 60:.0f} min"
        return f"about {', '.join(parts)}, {time}"


def estimate(
    n_spots: int,
    n_entries: int,
    config: Config | None = None,
    *,
    n_domains: int | None = None,
    n_genes: int | None = None,
    n_sections: int = 1,
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
    n_sections : int
        Number of sections.
    on_disk : bool
        The counts stay on disk, and are read in blocks.
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
    loaded = 0 if all_kept and not on_disk else chosen
    if on_disk and loaded > _COUNTS_IN_MEMORY:
        loaded = 0
    counts = _ENTRY * (held + loaded)
    more = 400 * (width - 1) + 8 * (domains - 20)  # of each spot
    step = step_rows * _STEP_ROW
    search = _SEARCH + _SEARCH_SPOT * min(n_spots, _SEARCH_SPOTS)
    results = _RESULTS + n_spots * (_RESULTS_SPOT + more) + _DRAWN_SPOT * min(n_spots, _DRAWN_SPOTS)
    work = max(
        n_spots * (_TRAIN_SPOT + more) + _TILE_SPOT * min(n_spots, _TILES * config.train.batch_size) + step,
        n_spots * (_CLUSTER_SPOT + more) + _FIT_SPOT * min(n_spots, _FIT_SPOTS) * min(width, 1) + search,
        n_spots * (_REFINE_SPOT + more) + _RESULTS,
        results,
    )
    on_gpu = device.type == "cuda"
    n_shares = 1 if config.cluster.shrinkage is not None else len(SHARES)
    fits = config.cluster.n_init * n_shares * domains
    array = n_spots * width * _ARRAY_VRAM
    vram = n_spots * _SPOT_VRAM + max(
        min(_GRID_VRAM, n_spots * _GRID_SPOT_VRAM),
        max(7 * array, 3 * array + _PROBES_VRAM),  # filter
        2 * array + step_rows * _STEP_ROW_VRAM,
        2 * array + min(_EM_VRAM, 1.2 * fits * min(n_spots, _SEARCH_SPOTS)) + min(_DOUBLE_VRAM, 9 * array),
    )

    search_seconds = (
        (1.0 + 5e-4 * min(n_spots, _SEARCH_SPOTS)) * (1 + domains / 10) / 2 * config.cluster.n_init / 32
    )
    if n_spots > _SEARCH_SPOTS:  # fewer numbers of columns for many domains, and one share each
        search_seconds *= 0.6
    filtered = config.filter.noise_band is not None
    movable = (
        5e-8 * chosen
        # parts of the graph that fit into the cache, and fewer probes for many spots, take half of the time
        + (2.2e-5 if n_spots / n_sections > 100_000 and n_spots < 500_000 else 1.1e-5)
        * n_spots
        * width
        * filtered
        + 4.5e-6 * n_steps * step_rows
        + 5e-6 * n_spots * n_networks
        + search_seconds * (1 if n_domains is not None else 3)
        + 4e-6 * n_spots
    )
    # the network's share is decided on a part of the section
    decided = 1.0 if config.cluster.network_share is None and config.train.recipe == "default" else 0.0
    fixed = 4.0 + decided + (1.2e-7 if on_disk else 7e-8) * n_entries
    fixed += 2.6e-5 * n_spots + 2.4e-5 * min(n_spots, 500_000)  # figures draw at most so many
    if n_sections > 1:  # section effects, and the scores of the integration
        fixed += 15.0 + 0.4 * min(n_sections, 4) * min(n_spots / n_sections / 5000, 1.0) ** 2
    return Estimate(
        ram_bytes=int(_BASE + counts + (results if on_gpu else work)),
        vram_bytes=int(vram) if on_gpu else None,
        seconds=fixed + movable * (_ON_GPU if on_gpu else 1.0),
        disk_bytes=int(n_spots * (_RESULT_SPOT + _CHECKPOINT_SPOT) * (1 + width) / 2 + _ENTRY * held),
    )


def check_memory(needed: Estimate, device: torch.device) -> None:
    """Refuse a run that cannot fit in memory.

    Estimates up to 1.3 times the available memory pass, because an estimate may be too high by as much. What is
    available is what `amilst_lite.runtime.limited_memory` (``--memory``) allows, else all of the machine.

    Raises
    ------
    InsufficientMemoryError
        The machine, its container or its GPU has too little memory.
    """
    limit, is_given = memory_limit()
    wanted = [("memory", needed.ram_bytes, limit if is_given else total_memory())]
    if needed.vram_bytes is not None:
        wanted.append(("GPU memory", needed.vram_bytes, total_memory(device)))
    for name, bytes_needed, available in wanted:
        if available is not None and bytes_needed > _TOLERANCE * available:
            raise InsufficientMemoryError(
                f"Estimated memory exceeds available memory: this run needs about "
                f"{bytes_needed / 2**30:.1f} GiB of {name}, {available / 2**30:.1f} GiB are available. {_ADVICE}"
            )
