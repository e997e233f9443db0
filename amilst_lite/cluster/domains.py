"""Domains from an embedding: clustering, probabilities, labels in order of size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..checkpoint import Checkpoint
from ..config import ClusterConfig
from ..distributed import ranks
from ..errors import InputError, TrainingDivergedError, warn
from .averaging import FittedAverage, PrincipalAxes
from .kmeans import KMeans
from .leiden import leiden, neighbor_graph, neighbor_vote
from .shrinkage import Evidence, fit_average

__all__ = ["Domains", "find_domains"]

_NEIGHBORS = 20
"""Neighbors of each spot in the embedding, for Leiden and for the probabilities of k-means and Leiden."""


@dataclass(frozen=True)
class Domains:
    """Labels and their probabilities.

    Attributes
    ----------
    labels : ndarray of int64, (N,)
        0..K-1, the largest domain first.
    probabilities : ndarray of float32, (N, K)
        Rows sum to one. For the mixture, see `MixtureAverage`. For k-means and Leiden, which have no
        posterior, the share of each domain among the spot and its 20 nearest neighbors in the embedding.
    evidence : Evidence or None
        For the mixture, how the shrinkage of its covariance was chosen.
    mixture : FittedAverage or None
        For the mixture, what gives the probabilities of the same domains for other rows; those of training get
        the same bits.
    """

    labels: np.ndarray
    probabilities: np.ndarray
    evidence: Evidence | None = None
    mixture: FittedAverage | None = None

    @property
    def confidence(self) -> np.ndarray:
        """Probability of the domain of each spot: (N,) float32."""
        return self.probabilities[np.arange(len(self.labels)), self.labels]

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> Domains:
        """The domains of which a `Checkpoint` has kept the fields."""
        evidence, mixture = fields["evidence"], fields["mixture"]
        if mixture is not None:
            mixture = FittedAverage(**{**mixture, "axes": PrincipalAxes(**mixture["axes"])})
        evidence = None if evidence is None else Evidence(**evidence)
        return cls(fields["labels"], fields["probabilities"], evidence, mixture)


def find_domains(
    embedding: np.ndarray | torch.Tensor,
    n_domains: int,
    config: ClusterConfig | None = None,
    *,
    seed: int = 0,
    device: str | torch.device = "cpu",
    checkpoint: Checkpoint | None = None,
) -> Domains:
    """Cluster an embedding into K domains.

    Parameters
    ----------
    embedding : ndarray or Tensor, (N, C), float32
        One row per spot, in an order in which neighbors in space are near each other (``SpatialGraph.order``):
        the mixture holds out blocks of consecutive rows.
    n_domains : int
        K, >= 2.
    config : ClusterConfig
        Method and its settings; the defaults if None.
    seed : int
        In [0, 2**32); for the random starts.
    device : str or torch.device
        Device of the mixture or k-means.
    checkpoint : Checkpoint, optional
        Keeps parts of the mixture.

    Returns
    -------
    Domains

    Raises
    ------
    InputError
        The embedding has fewer distinct rows than K.
    MissingExtraError
        The method is Leiden and igraph is not installed.
    TrainingDivergedError
        Probabilities of the mixture are not finite.

    Warns
    -----
    AmilstWarning
        Fewer than K domains have spots.
    """
    config = ClusterConfig() if config is None else config
    if isinstance(embedding, torch.Tensor):
        embedding = embedding.detach()
    n_distinct = ranks().largest(len(torch.as_tensor(embedding[: 50 * n_domains]).unique(dim=0)))
    if n_distinct < n_domains:
        n_distinct = ranks().largest(len(torch.as_tensor(embedding).unique(dim=0)))
    if n_distinct < n_domains:
        raise InputError(
            f"Expected at least n_domains={n_domains} distinct rows in the embedding; found {n_distinct}. "
            f"Set n_domains (--n-domains) to at most {n_distinct}."
        )
    evidence = mixture = None
    if isinstance(embedding, torch.Tensor):
        embedding = embedding.cpu().numpy()
    if config.method == "gmm":
        average = fit_average(
            embedding,
            n_domains,
            covariance_type=config.covariance_type,
            shrinkage=config.shrinkage,
            n_init=config.n_init,
            seed=seed,
            device=device,
            checkpoint=checkpoint,
        )
        labels, probabilities = average.labels, average.probabilities
        evidence, mixture = average.evidence, average.fitted
        if not np.isfinite(probabilities.sum(dtype=np.float64)):
            raise TrainingDivergedError(
                f"the mixture of {n_domains} domains has probabilities that are not finite. Check the embedding for "
                "extreme values, or set fewer domains (--n-domains)."
            )
    else:
        graph = neighbor_graph(embedding, _NEIGHBORS, seed)
        if config.method == "leiden":
            labels = leiden(graph, n_domains, embedding, seed)
        else:
            kmeans = KMeans(n_domains, n_init=config.n_init, random_state=seed, device=device)
            labels = kmeans.fit_predict(embedding)
        probabilities = neighbor_vote(graph, labels, n_domains)
    sizes = ranks().sum(np.bincount(labels, minlength=n_domains))
    if (sizes == 0).any():
        warn(
            f"{(sizes == 0).sum()} of {n_domains} domains have no spots. Set fewer domains (--n-domains) or "
            "more random restarts (--n-init)."
        )
    by_size = np.argsort(-sizes, kind="stable")
    if mixture is not None:
        mixture = mixture.reordered(by_size)
    return Domains(np.argsort(by_size)[labels], probabilities[:, by_size], evidence, mixture)
