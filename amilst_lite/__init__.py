"""Spatial domains in spatial transcriptomics: AMIL-ST on plain PyTorch.

    import amilst_lite as amilst

    adata = amilst.read("151673/")
    amilst.identify_domains(adata, n_domains=7, seed=0)
    amilst.score(adata, "layer_guess")

Names are loaded on first use, so that importing the package is fast, and so that the classes on arrays
(`AMILST`, `PCA`, `KMeans`, `GaussianMixture`, `SpatialGraph`) never import anndata.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from . import analysis, io, plot
    from .analysis import denoise
    from .cluster import GaussianMixture, KMeans
    from .config import PRESETS, Config
    from .errors import (
        AmilstError,
        AmilstWarning,
        InputError,
        MissingExtraError,
        MissingKeyError,
        NotFittedError,
        TrainingDivergedError,
    )
    from .estimator import AMILST
    from .io import (
        read,
        read_10x_h5,
        read_10x_mtx,
        read_cosmx,
        read_h5ad,
        read_long_table,
        read_loom,
        read_merscope,
        read_sections,
        read_seqfish,
        read_slideseq,
        read_spatialdata,
        read_st,
        read_stereoseq,
        read_table,
        read_visium,
        read_visium_hd,
        read_xenium,
        read_zarr,
        write_labels,
    )
    from .pipeline import apply_model, identify_domains, simulate_section
    from .preprocess import PCA
    from .progress import show_progress
    from .results import write_results
    from .spatial import SpatialGraph
    from .summary import score

_HOMES = {
    "AMILST": "estimator",
    "AmilstError": "errors",
    "AmilstWarning": "errors",
    "Config": "config",
    "GaussianMixture": "cluster",
    "InputError": "errors",
    "KMeans": "cluster",
    "MissingExtraError": "errors",
    "MissingKeyError": "errors",
    "NotFittedError": "errors",
    "PCA": "preprocess",
    "PRESETS": "config",
    "SpatialGraph": "spatial",
    "TrainingDivergedError": "errors",
    "apply_model": "pipeline",
    "denoise": "analysis",
    "identify_domains": "pipeline",
    "read": "io",
    "read_10x_h5": "io",
    "read_10x_mtx": "io",
    "read_cosmx": "io",
    "read_h5ad": "io",
    "read_long_table": "io",
    "read_loom": "io",
    "read_merscope": "io",
    "read_sections": "io",
    "read_seqfish": "io",
    "read_slideseq": "io",
    "read_spatialdata": "io",
    "read_st": "io",
    "read_stereoseq": "io",
    "read_table": "io",
    "read_visium": "io",
    "read_visium_hd": "io",
    "read_xenium": "io",
    "read_zarr": "io",
    "score": "summary",
    "show_progress": "progress",
    "simulate_section": "pipeline",
    "write_labels": "io",
    "write_results": "results",
}
_SUBPACKAGES = ("analysis", "io", "plot")

__all__ = [
    "AMILST",
    "PCA",
    "PRESETS",
    "AmilstError",
    "AmilstWarning",
    "Config",
    "GaussianMixture",
    "InputError",
    "KMeans",
    "MissingExtraError",
    "MissingKeyError",
    "NotFittedError",
    "SpatialGraph",
    "TrainingDivergedError",
    "__version__",
    "analysis",
    "apply_model",
    "denoise",
    "identify_domains",
    "io",
    "plot",
    "read",
    "read_10x_h5",
    "read_10x_mtx",
    "read_cosmx",
    "read_h5ad",
    "read_long_table",
    "read_loom",
    "read_merscope",
    "read_sections",
    "read_seqfish",
    "read_slideseq",
    "read_spatialdata",
    "read_st",
    "read_stereoseq",
    "read_table",
    "read_visium",
    "read_visium_hd",
    "read_xenium",
    "read_zarr",
    "score",
    "show_progress",
    "simulate_section",
    "write_labels",
    "write_results",
]


def __getattr__(name: str) -> Any:
    if name in _SUBPACKAGES:
        return import_module(f".{name}", __name__)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
