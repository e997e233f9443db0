"""`AMILST`: features and coordinates in, embedding and domains out. No AnnData here."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClusterMixin

from .cluster.domains import find_domains
from .cluster.selection import Selection, select_n_domains
from .config import Config, FilterConfig, GraphConfig, preset
from .errors import InputError
from .estimate import limit_members
from .graph import SpatialGraph
from .nn.filters import wiener_filter
from .nn.sparse import SymmetricAdjacency
from .refine import majority_vote
from .runtime import resolve_device, spawn_seeds, synchronize, threads_for
from .train import Callback, train

__all__ = ["AMILST"]

logger = logging.getLogger("amilst_lite")

_LEAST_SIGNAL = 1e-6  # share of the variance below which a filtered section holds nothing


class AMILST(ClusterMixin, BaseEstimator):
    """Spatial domains from arrays.

    Parameters
    ----------
    n_domains : int or None
        Number of domains K, at least 2. None chooses it by the stability of the labels
        (`amilst_lite.cluster.select_n_domains`).
    seed : int
        Decides everything that is random. Same seed, same machine, same number of threads: the
        same bits. No global generator is touched.
    preset : str
        ``"default"`` or ``"published"``; see `amilst_lite.config.PRESETS`.
    settings : dict, optional
        Single settings that differ from the preset's, by name: ``{"n_neighbors": 6}``.
    device : str
        ``"auto"`` (CUDA when there is one), ``"cpu"``, ``"cuda"``, ``"cuda:N"`` or ``"mps"``.
    callback : callable, optional
        Called with (epoch, n_epochs, losses by name) in training.

    Attributes
    ----------
    labels_ : ndarray of int64, (N,)
        Domains 0..K-1, the largest first.
    refined_labels_ : ndarray of int64, (N,)
        The same after a majority vote among spatial neighbours.
    embedding_ : ndarray of float32, (N, C)
        Latent representation z.
    probabilities_ : ndarray of float32, (N, K)
        Probability of every domain; rows sum to one.
    confidence_ : ndarray of float32, (N,)
        Probability of the spot's own domain.
    history_ : dict of str to list of float
        Every term of the objective, epoch by epoch.
    graph_ : SpatialGraph
        The neighbour graph.
    network_ : AMILSTNetwork
        The trained network, in evaluation mode.
    config_ : Config
        The settings used.
    seconds_ : dict of str to float
        Wall-clock time of each stage.
    n_domains_ : int
        K, given or chosen.
    selection_ : Selection or None
        How it was chosen.
    n_features_in_ : int

    Examples
    --------
    >>> model = AMILST(n_domains=7, seed=0)
    >>> labels = model.fit_predict(X, coordinates)     # (N, C), (N, 2)
    """

    def __init__(
        self,
        n_domains: int | None = None,
        *,
        seed: int = 0,
        preset: str = "default",
        settings: dict[str, Any] | None = None,
        device: str = "auto",
        callback: Callback | None = None,
    ) -> None:
        self.n_domains = n_domains
        self.seed = seed
        self.preset = preset
        self.settings = settings
        self.device = device
        self.callback = callback

    def resolve_config(self) -> Config:
        """The preset with the settings applied.

        Raises
        ------
        InputError
            Unknown preset or setting, or a value out of range.
        """
        return preset(self.preset).replace(**(self.settings or {}))

    def fit(
        self,
        X: Any,
        coordinates: Any,
        sample: Sequence[Any] | None = None,
        *,
        graph: SpatialGraph | None = None,
    ) -> AMILST:
        """Find the domains.

        Parameters
        ----------
        X : array-like, (N, C)
            Features of the spots, for example principal components of log-normalised expression.
            Centred and scaled here.
        coordinates : array-like, (N, 2) or (N, 3)
            Positions, any unit.
        sample : sequence, (N,), optional
            Section of each spot; no edge crosses sections.
        graph : SpatialGraph, optional
            The neighbour graph of these coordinates, when it has been made already.

        Raises
        ------
        InputError
            Shapes that do not match, values that are not finite, K below 2 or above N, fewer spots
            than neighbours, an unknown setting.
        MissingExtraError
            Leiden was asked for and igraph is not installed.
        TrainingDivergedError
            A term of the objective is not finite.
        """
        config = self.resolve_config()
        features = self._check(X, coordinates)
        device = resolve_device(self.device)
        self.seconds_: dict[str, float] = {}
        filter_seed, train_seed, cluster_seed = spawn_seeds(self.seed, 3)

        if graph is None:
            with self._timed("graph", device):
                graph = build_graph(coordinates, config.graph, sample)
        with self._timed("filter", device):
            features = filter_features(features, graph, config.filter, filter_seed, device)
        with self._timed("train", device):
            result = train(
                features,
                graph,
                network_config=config.network,
                config=limit_members(config.train, len(features)),
                seed=train_seed,
                device=device,
                callback=self.callback,
            )
        with self._timed("cluster", device):
            if config.cluster.cluster_on == "consensus":
                # each member's z has coordinates of its own, but decoded they all speak of the features:
                # there they can be averaged, and what the start of one decided fades
                embedding = torch.lerp(features, result.reconstruction, config.cluster.network_share)
            else:
                embedding = result.latent.flatten(1)
            self.embedding_ = embedding.cpu().numpy()
            self.selection_: Selection | None = None
            if self.n_domains is None:
                self.selection_ = select_n_domains(
                    self.embedding_, config=config.cluster, seed=cluster_seed, device=device
                )
                runners_up = ", ".join(map(str, self.selection_.runners_up))
                logger.info("%d domains chosen; runners-up: %s", self.selection_.n_domains, runners_up)
            self.n_domains_: int = self.n_domains or self.selection_.n_domains  # type: ignore[union-attr]
            domains = find_domains(
                embedding, self.n_domains_, config.cluster, seed=cluster_seed, device=device
            )
        with self._timed("refine", device):
            self.refined_labels_ = majority_vote(
                domains.labels, coordinates, n_neighbors=config.cluster.refine_neighbors, sample=sample
            )
        self.labels_ = domains.labels
        self.probabilities_ = domains.probabilities
        self.confidence_ = domains.confidence
        self.history_ = result.history
        self.graph_, self.network_, self.config_ = graph, result.network, config
        self.n_features_in_ = features.shape[1]
        return self

    def fit_predict(self, X: Any, coordinates: Any, sample: Sequence[Any] | None = None) -> np.ndarray:
        """`fit`, then ``labels_``."""
        return self.fit(X, coordinates, sample).labels_

    def _check(self, X: Any, coordinates: Any) -> torch.Tensor:
        """X as a float32 tensor, where it is, once K and the shapes are known to fit."""
        array = X.detach() if isinstance(X, torch.Tensor) else np.asarray(X)
        if array.ndim != 2 or array.shape[1] == 0:
            raise InputError(
                f"expected features of shape (spots, features); found shape {tuple(array.shape)}."
            )
        if len(array) != len(coordinates):
            raise InputError(
                f"features and coordinates must have one row a spot; found {len(array)} and {len(coordinates)}."
            )
        try:
            features = torch.as_tensor(array if isinstance(array, torch.Tensor) else array.astype(np.float32))
        except (TypeError, ValueError) as error:
            raise InputError(f"features must be numbers; found dtype {array.dtype}.") from error
        features = features.to(torch.float32)
        finite = torch.isfinite(features).all(1)
        if not finite.all():
            rows = torch.nonzero(~finite).flatten()
            raise InputError(
                f"features must be finite; found NaN or infinity in {len(rows)} spot(s), first row {int(rows[0])}."
            )
        check_n_domains(self.n_domains, len(array))
        return features

    @contextmanager
    def _timed(self, stage: str, device: torch.device) -> Iterator[None]:
        logger.info("%s", stage)
        start = time.perf_counter()
        yield
        synchronize(device)
        self.seconds_[stage] = time.perf_counter() - start


def check_n_domains(n_domains: int | None, n_spots: int) -> None:
    """Raise `InputError` unless 2 ≤ K ≤ number of spots, or K is to be chosen."""
    if n_domains is None:
        return
    if isinstance(n_domains, bool) or not isinstance(n_domains, int | np.integer) or n_domains < 2:
        raise InputError(f"n_domains must be a whole number of at least 2; found {n_domains!r}.")
    if n_domains > n_spots:
        raise InputError(f"{n_domains} domains were asked for, but there are only {n_spots} spots.")


def build_graph(coordinates: Any, config: GraphConfig, sample: Sequence[Any] | None = None) -> SpatialGraph:
    """The neighbour graph that a configuration asks for."""
    return SpatialGraph.from_coordinates(
        coordinates, n_neighbors=config.n_neighbors, radius=config.radius, sample=sample
    )


def standardize(features: torch.Tensor) -> torch.Tensor:
    """Centre the columns and scale the whole to a total variance of one.

    The columns keep their relative scale: the first principal components stay the loudest.
    """
    centred = features - features.mean(0)
    total = centred.square().mean(0).sum()
    if not total > 0:
        raise InputError("all spots have the same features: there is nothing to tell domains apart by.")
    return centred / total.sqrt()


def filter_features(
    features: torch.Tensor, graph: SpatialGraph, config: FilterConfig, seed: int, device: torch.device
) -> torch.Tensor:
    """What the network sees of the features: filtered and standardised, on ``device``, in the caller's order.

    Where the filter finds nothing but noise in every column, the features pass unfiltered.
    """
    features = features.to(device)
    if config.noise_band is not None:
        # on a scale of one, so that float32 serves features of any unit
        with threads_for(len(features)):
            filtered, _ = wiener_filter(
                standardize(features)[torch.from_numpy(graph.order).to(device)],
                SymmetricAdjacency(graph.adjacency(device)),
                noise_band=config.noise_band,
                degree=config.filter_degree,
                seed=seed,
            )
        if filtered.var(0).sum() > _LEAST_SIGNAL:
            features = filtered[torch.from_numpy(graph.rank).to(device)]
    return standardize(features) if config.standardize else features
