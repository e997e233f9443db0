"""Clustering: k-means, Gaussian mixtures and Leiden, and the number of domains."""

from .kmeans import KMeans
from .mixture import GaussianMixture
from .selection import Selection, select_n_domains

__all__ = ["GaussianMixture", "KMeans", "Selection", "select_n_domains"]
