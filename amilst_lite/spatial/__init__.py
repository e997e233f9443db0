"""Coordinates: neighbor graph, spectral filter, spatial autocorrelation, refinement of labels."""

from .autocorrelation import gearys_c, morans_i
from .graph import SpatialGraph
from .refine import majority_vote
from .spectral_filter import wiener_filter

__all__ = ["SpatialGraph", "gearys_c", "majority_vote", "morans_i", "wiener_filter"]
