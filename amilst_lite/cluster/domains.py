"""From an embedding to domains: one of three clusterings, ordered by size."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch

from ..config import ClusterConfig
from ..errors import AmilstWarning, InputError
from .kmeans import KMeans
from .leiden import leiden, neighbor_graph, neighbor_vote
from .mixture import GaussianMixture

__all__ = ["Domains", "find_domains"]


@dataclass(frozen=True)
class Domains:
    """Labels and how sure they are.

    Attributes
    ----------
    labels : ndarray of int64, (N,)
        0..K-1, the largest domain first.
    probabilities : ndarray of float32, (N, K)
        Rows sum to one. For a mixture the posterior, flattened by the ``temperature`` of the settings: a
        mixture takes the columns for independent evidence, which filtered expression is not, and is far
        surer than it is right. For k-means and Leiden, which have no posterior, the share of each domain
        among the spot and its neighbours in the embedding.
    """

    labels: np.ndarray
    probabilities: np.ndarray

    @property
    def confidence(self) -> np.ndarray:
        """Probability of the spot's own domain: (N,) float32."""
        return self.probabilities[np.arange(len(self.labels)), self.labels]


def find_domains(
    embedding: np.ndarray | torch.Tensor,
    n_domains: int,
    config: ClusterConfig | None = None,
    *,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> Domains:
    """Cluster an embedding into K domains.

    Parameters
    ----------
    embedding : ndarray or Tensor, (N, C), float32
        One row a spot.
    n_domains : int
        K, at least 2.
    config : ClusterConfig
        Method and its settings.
    seed : int
        For the random starts.
    device : str or torch.device
        Where a mixture or k-means runs.

    Raises
    ------
    InputError
        The embedding has fewer distinct rows than K.
    MissingExtraError
        Leiden was asked for and igraph is not installed.

    Warns
    -----
    AmilstWarning
        Fewer than K domains have spots.
    """
    config = ClusterConfig() if config is None else config
    n_distinct = len(torch.as_tensor(embedding[: 50 * n_domains]).unique(dim=0))
    if n_distinct < n_domains:
        n_distinct = len(torch.as_tensor(embedding).unique(dim=0))
    if n_distinct < n_domains:
        raise InputError(
            f"{n_domains} domains were asked for, but the spots have only {n_distinct} different profiles."
        )
    if config.method == "gmm":
        mixture = GaussianMixture(
            n_domains,
            covariance_type=config.covariance_type,
            n_init=config.n_init,
            covariance_prior=config.covariance_prior,
            random_state=seed,
            device=device,
        )
        with warnings.catch_warnings():
            # empty domains are counted below, once, in the words of a user who asked for domains
            warnings.simplefilter("ignore", AmilstWarning)
            labels = mixture.fit_predict(embedding)
        probabilities = _flattened(mixture.predict_proba(embedding), config.temperature)
    else:
        if isinstance(embedding, torch.Tensor):
            embedding = embedding.cpu().numpy()
        graph = neighbor_graph(embedding, config.leiden_neighbors, seed)
        if config.method == "leiden":
            labels = leiden(graph, n_domains, embedding, seed)
        else:
            kmeans = KMeans(n_domains, n_init=config.n_init, random_state=seed, device=device)
            labels = kmeans.fit_predict(embedding)
        probabilities = neighbor_vote(graph, labels, n_domains)
    sizes = np.bincount(labels, minlength=n_domains)
    if (sizes == 0).any():
        warnings.warn(
            f"{n_domains} domains were asked for, but {(sizes == 0).sum()} of them have no spots. "
            "Ask for fewer, or for more random starts (n_init).",
            AmilstWarning,
            stacklevel=2,
        )
    by_size = np.argsort(-sizes, kind="stable")
    return Domains(np.argsort(by_size)[labels], probabilities[:, by_size])


def _flattened(posterior: np.ndarray, temperature: float) -> np.ndarray:
    """The posterior (N, K) with its log odds divided by the temperature; float32."""
    np.power(posterior, 1.0 / temperature, out=posterior)
    posterior /= posterior.sum(1, keepdims=True)
    return posterior.astype(np.float32)
