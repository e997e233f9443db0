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
    from . import io, plot
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
    from .io import read, read_10x_h5, read_10x_mtx, read_h5ad, read_sections, read_table, read_visium
    from .pipeline import identify_domains, score, simulate_section
    from .preprocess import PCA
    from .results import write_results
    from .spatial import SpatialGraph

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
    "identify_domains": "pipeline",
    "read": "io",
    "read_10x_h5": "io",
    "read_10x_mtx": "io",
    "read_h5ad": "io",
    "read_sections": "io",
    "read_table": "io",
    "read_visium": "io",
    "score": "pipeline",
    "simulate_section": "pipeline",
    "write_results": "results",
}
_SUBPACKAGES = ("io", "plot")

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
    "identify_domains",
    "io",
    "plot",
    "read",
    "read_10x_h5",
    "read_10x_mtx",
    "read_h5ad",
    "read_sections",
    "read_table",
    "read_visium",
    "score",
    "simulate_section",
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
