"""Clustering in torch: k-means and Gaussian mixtures."""

from .kmeans import KMeans
from .mixture import GaussianMixture
from .selection import Selection, select_n_domains

__all__ = ["GaussianMixture", "KMeans", "Selection", "select_n_domains"]
