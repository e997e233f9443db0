"""Clustering in torch: k-means and Gaussian mixtures."""

from .kmeans import KMeans
from .mixture import GaussianMixture

__all__ = ["GaussianMixture", "KMeans"]
