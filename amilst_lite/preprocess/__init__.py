"""From counts to features: gene selection, normalization, principal components."""

from .counts import CountRows, is_on_disk
from .fitted_preparation import FittedPreparation
from .normalize import NormalizedCounts, Preparation, normalize, prepare, select_genes, survey
from .pca import PCA

__all__ = [
    "PCA",
    "CountRows",
    "FittedPreparation",
    "NormalizedCounts",
    "Preparation",
    "is_on_disk",
    "normalize",
    "prepare",
    "select_genes",
    "survey",
]
