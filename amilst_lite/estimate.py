"""What a run will need, before it begins: how it is cut to size, memory, time.

The coefficients were fitted to ``benchmarks/scaling.py`` (two CPU cores, 3,000 to 1,000,000 cells, panels of
300 and 2,000 genes, torch 2.13); memory came out within 15 % of what was measured there. Times are of that
machine: elsewhere they say the order of magnitude. Memory of a GPU was counted from the arrays, not measured.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from .config import Config, TrainConfig
from .errors import InsufficientMemoryError
from .runtime import total_memory

__all__ = ["Estimate", "batch_size", "check_memory", "estimate", "limit_members"]

_STEP_ROWS = 40_000  # spots in one step, at most, unless a batch size is asked for
_MEMBER_ROWS = 20_000  # spots × networks in one step, at most, where there is more than one network
_STEP_SHARE = 8  # a step may take one part in so many of the memory
_MIB = 2**20

_BASE = 390 * _MIB  # Python, torch and the other packages
_ENTRY = 8  # bytes of a stored count: float32 and int32
_SPOT = 2000  # bytes a spot of graph, features, embedding and mixture, at 30 components and 20 domains
_SPOT_VRAM = 1400  # of these on a GPU
_STEP_ROW = 8700  # bytes a spot and network in a training step, with the default widths
_SEARCH, _SEARCH_SPOT, _SEARCH_SPOTS = 250 * _MIB, 14_500, 20_000  # the mixture's restarts
_ON_GPU = 0.05  # time of what runs on a GPU, as a share of a CPU's


@dataclass(frozen=True)
class Estimate:
    """What a run will need.

    Attributes
    ----------
    ram_bytes : int
        Peak of the process.
    vram_bytes : int or None
        Peak on the GPU.
    seconds : float
        Wall-clock time from the start to the written results.
    """

    ram_bytes: int
    vram_bytes: int | None
    seconds: float

    def __str__(self) -> str:
        parts = [f"{self.ram_bytes / 2**30:.1f} GiB of memory"]
        if self.vram_bytes is not None:
            parts.append(f"{self.vram_bytes / 2**30:.1f} GiB of the GPU's")
        time = f"{self.seconds:.0f} s" if self.seconds < 100 else f"{self.seconds / 60:.0f} min"
        return f"about {', '.join(parts)}, {time}"


def batch_size(config: TrainConfig, device: torch.device) -> int:
    """Spots of one training step: those asked for, or as many as leave a small machine's memory in peace.

    Decided by the memory that the machine has, not by what is free: the same seed gives the same result.
    """
    if config.batch_size is not None:
        return config.batch_size
    memory = total_memory(device)
    return _STEP_ROWS if memory is None else max(1000, min(_STEP_ROWS, memory // _STEP_SHARE // _STEP_ROW))


def limit_members(config: TrainConfig, n_spots: int) -> TrainConfig:
    """Fewer networks where there are many spots: they cost as much as spots, and vary less there."""
    return dataclasses.replace(config, members=min(config.members, max(1, _MEMBER_ROWS // n_spots)))


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
        Size of the section: spots, and counts that are not zero.
    config : Config
        The settings.
    n_domains : int, optional
        None: it will be chosen.
    n_genes : int, optional
        Genes in the section, of which some will be chosen.
    on_disk : bool
        The counts stay on disk, but for those of the genes chosen.
    device : str or torch.device
        Where the run happens.
    """
    config = Config() if config is None else config
    device = torch.device(device)
    train = limit_members(config.train, n_spots)
    step_rows = min(n_spots, batch_size(config.train, device)) * train.members
    n_epochs = train.epochs + 3 * train.adversarial_epochs
    width = config.preprocess.n_components / 30
    domains = 20 if n_domains is None else n_domains

    n_top = config.preprocess.n_top_genes
    all_kept = n_genes is None or n_top is None or n_genes <= n_top
    chosen = n_entries if all_kept else 0.7 * n_entries  # what varies is most of what is seen
    held = 0 if on_disk else n_entries
    counts = _ENTRY * (held + (0 if all_kept and not on_disk else chosen))
    spots = n_spots * (_SPOT + 600 * (width - 1) + 16 * (domains - 20))
    step = step_rows * _STEP_ROW
    search = _SEARCH + _SEARCH_SPOT * min(n_spots, _SEARCH_SPOTS)
    work = spots + max(step, search)
    on_gpu = device.type == "cuda"
    vram = n_spots * (_SPOT_VRAM + 600 * (width - 1) + 16 * (domains - 20)) + max(step, search)

    search_seconds = (1.2 + 2.4e-4 * min(n_spots, _SEARCH_SPOTS)) * domains / 20 * config.cluster.n_init / 160
    movable = (
        5e-8 * chosen
        + 2.2e-5 * n_spots * width * (config.filter.noise_band is not None)
        + 4.5e-6 * n_epochs * step_rows
        + 5e-6 * n_spots * train.members
        + search_seconds * (1 if n_domains is not None else 20)
        + 4e-6 * n_spots
    )
    fixed = 4.0 + 7e-8 * n_entries + 4.7e-5 * n_spots
    return Estimate(
        ram_bytes=int(_BASE + counts + (0.6 * spots if on_gpu else work)),
        vram_bytes=int(vram) if on_gpu else None,
        seconds=fixed + movable * (_ON_GPU if on_gpu else 1.0),
    )


def check_memory(needed: Estimate, device: torch.device, advice: str) -> None:
    """Refuse what cannot fit, before the work begins.

    Parameters
    ----------
    needed : Estimate
        By `estimate`. Up to 1.3 times the memory there is, it is let through: it may be off by as much.
    advice : str
        What would fit.

    Raises
    ------
    InsufficientMemoryError
        The machine, its container or its GPU is too small.
    """
    wanted = [("", needed.ram_bytes, total_memory())]
    if needed.vram_bytes is not None:
        wanted.append(("GPU ", needed.vram_bytes, total_memory(device)))
    for name, bytes_needed, there in wanted:
        if there is not None and bytes_needed > 1.3 * there:
            raise InsufficientMemoryError(
                f"this run needs about {bytes_needed / 2**30:.1f} GiB of {name}memory, and there are "
                f"{there / 2**30:.1f} GiB. {advice}"
            )
