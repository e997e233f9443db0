"""`AMILST`: features and coordinates in, embedding and domains out. Never imports anndata."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from scipy import sparse
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.utils import estimator_html_repr

from .checkpoint import Checkpoint
from .cluster.domains import Domains, find_domains
from .cluster.selection import select_n_domains
from .config import Config, preset
from .distributed import ranks, sampled
from .errors import InputError, MissingExtraError, NotFittedError, warn
from .fitted_model import FittedModel, Prediction, arrays_of, network_of
from .html_repr import model_html
from .integration import SectionEffect, SectionReference, section_effect
from .metrics import normalized_mutual_info
from .nn.model import AMILSTNetwork
from .nn.sparse import SymmetricAdjacency
from .progress import advance, begin, not_shown
from .runtime import beside, check_seed, n_threads, resolve_device, stage_seed, standard_math, synchronize
from .spatial.graph import SpatialGraph
from .spatial.neighbors import check_coordinates, section_codes, typical_spacing
from .spatial.refine import majority_vote
from .spatial.spectral_filter import FittedFilter, fit_denoise
from .train import TRAINERS, Callback

__all__ = ["AMILST", "MOST_BESIDE", "validate"]

logger = logging.getLogger("amilst_lite")

_SECTIONS_AS_DOMAINS = 0.5
"""Normalized mutual information of domains and sections above which domains probably follow the sections."""
_EXTREME_SHARE = 0.5  # of the variance, in a single spot
_ROWS = 1 << 16  # of a block in float64
_MIN_SPOTS_TO_CHOOSE = 20  # below, subsamples are too small to compare numbers of domains
MOST_BESIDE = 20_000
"""Spots up to which clustering runs beside the training. With more, each has use for all cores."""
_STAGES = ("graph", "filter", "correct", "network share", "train", "cluster", "refine")


@dataclass(frozen=True)
class _Networks:
    """What training gives.

    Attributes
    ----------
    share : float
        Weight of the reconstruction in what is clustered.
    network : AMILSTNetwork
        On the CPU.
    history : dict of str to list of float
    latent : ndarray of float32, (N, M · (n_f + n_g))
    embedding : Tensor, (N, ·)
        What is to be clustered.
    """

    share: float
    network: AMILSTNetwork
    history: dict[str, list[float]]
    latent: np.ndarray
    embedding: torch.Tensor


class AMILST(ClusterMixin, BaseEstimator):
    """Spatial domains from arrays.

    Parameters
    ----------
    n_domains : int or None
        Number of domains K, at least 2. None chooses it by the likelihood of held-out blocks
        (`amilst_lite.cluster.select_n_domains`).
    seed : int
        In [0, 2**32). Decides everything that is random: same seed, machine and number of threads give the
        same bits. No global generator is touched.
    preset : str
        ``"default"`` or ``"published"``; see `amilst_lite.config.PRESETS`.
    settings : dict, optional
        Single settings that differ from the preset's, by name: ``{"n_neighbors": 6}``.
    device : str
        ``"auto"`` (CUDA where available), ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
    callback : callable, optional
        Called with (epoch, n_epochs, losses by name) in training. Clustering then waits for the training.

    Attributes
    ----------
    labels_ : ndarray of int64, (N,)
        Domains 0..K-1, the largest first.
    refined_labels_ : ndarray of int64, (N,)
        The same after a majority vote among spatial neighbors.
    embedding_ : ndarray of float32, (N, C)
        What is clustered.
    latent_ : ndarray of float32, (N, M · (n_f + n_g))
        Latent representations z of the M networks, side by side.
    probabilities_ : ndarray of float32, (N, K)
        Probability of every domain; rows sum to one.
    confidence_ : ndarray of float32, (N,)
        Probability of the spot's own domain.
    evidence_ : Evidence or None
        How the mixture's covariance was shrunken, and why; None for other clusterings.
    section_effect_ : SectionEffect
        What was removed from the features of each section (`amilst_lite.integration`).
    history_ : dict of str to list of float
        Every term of the objective, epoch by epoch.
    graph_ : SpatialGraph
        The neighbor graph.
    network_ : AMILSTNetwork
        The trained network, in evaluation mode, on the CPU.
    config_ : Config
        The settings that took effect. Those that are decided in the run are in ``evidence_``; ``network_share``
        is filled in.
    seconds_ : dict of str to float
        Wall-clock time of each stage. Of at most 20,000 spots, "cluster" runs at the same time as "network share" and
        "train" if no callback is given, the device is the CPU, and torch has several threads.
    n_domains_ : int
        K, given or chosen.
    selection_ : Selection or None
        How K was chosen.
    n_features_in_ : int
    fitted_ : FittedModel or None
        What `predict` uses and `save` writes. None where the clustering cannot label other spots (k-means, Leiden).

    Notes
    -----
    Settings of torch made by the caller (``no_grad``, ``autocast``, default dtype, precision of float32
    products) do not matter. ``torch.use_deterministic_algorithms(True)`` works; with CUDA it needs the
    environment variable ``CUBLAS_WORKSPACE_CONFIG=:4096:8`` (see the documentation of torch).

    Examples
    --------
    >>> model = AMILST(n_domains=7, seed=0)
    >>> labels = model.fit_predict(X, coordinates=coordinates)     # (N, C), (N, 2)
    >>> model.save("model.h5")
    >>> AMILST.load("model.h5").predict(X_new, coordinates=new)
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

    def _repr_html_(self) -> str:
        """What a notebook shows: of a fitted model its domains, otherwise scikit-learn's diagram."""
        return model_html(self) if hasattr(self, "config_") else estimator_html_repr(self)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return {"text/plain": repr(self), "text/html": self._repr_html_()}

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
        y: Any = None,
        *,
        coordinates: Any,
        sample: Sequence[Any] | None = None,
        graph: SpatialGraph | None = None,
        depth: Any = None,
        checkpoint: Checkpoint | None = None,
    ) -> AMILST:
        """Find the domains.

        Parameters
        ----------
        X : array-like or Tensor, (N, C)
            Features of the spots, for example principal components of log-normalized expression. Centered
            and scaled here.
        y : None
            Ignored; present for scikit-learn pipelines.
        coordinates : array-like or Tensor, (N, 2) or (N, 3)
            Positions, in any unit.
        sample : sequence, (N,), optional
            Section of each spot; no edge crosses sections, and section effects are corrected (setting
            ``batch_correction``).
        graph : SpatialGraph, optional
            The neighbor graph of these coordinates, if it has been made before.
        depth : array-like, (N,), optional
            Total counts of the spots. Spots of low depth are averaged with their neighbors (setting
            ``depth_floor``); without it, all spots count alike.
        checkpoint : Checkpoint, optional
            Results of long stages of the same fit, from which a fit that was killed continues.

        Raises
        ------
        InputError
            Shapes that do not match, values that are not finite, K below 2 or above N, fewer spots
            than neighbors, an unknown setting.
        MissingExtraError
            The setting ``method="leiden"`` and igraph is not installed.
        TrainingDivergedError
            A term of the objective is not finite.

        Warns
        -----
        AmilstWarning
            The domains largely follow the sections.
        """
        with standard_math():
            self._fit(X, coordinates, sample, graph, depth, checkpoint or Checkpoint())
        return self

    def fit_predict(
        self,
        X: Any,
        y: Any = None,
        *,
        coordinates: Any,
        sample: Sequence[Any] | None = None,
        graph: SpatialGraph | None = None,
        depth: Any = None,
    ) -> np.ndarray:
        """`fit`, then ``labels_``."""
        return self.fit(X, coordinates=coordinates, sample=sample, graph=graph, depth=depth).labels_

    def predict(
        self,
        X: Any,
        *,
        coordinates: Any,
        sample: Sequence[Any] | None = None,
        graph: SpatialGraph | None = None,
        depth: Any = None,
    ) -> np.ndarray:
        """Domains of sections that were not in training, (N,) int64; see `apply`."""
        return self.apply(X, coordinates=coordinates, sample=sample, graph=graph, depth=depth).labels

    def apply(
        self,
        X: Any,
        *,
        coordinates: Any,
        sample: Sequence[Any] | None = None,
        graph: SpatialGraph | None = None,
        depth: Any = None,
    ) -> Prediction:
        """Label sections that were not in training; the model does not change.

        Parameters
        ----------
        X : array-like or Tensor, (N, C)
            Features that were computed as those of training were, for example by the same PCA.
        coordinates, sample, graph
            As in `fit`. All sections given are new: the effect of each is estimated from itself, by the method that
            training used. A model of one section, which holds no evidence of section effects, corrects a shift
            if that makes held-out spots more likely.
        depth : array-like, (N,), optional
            Total counts of the spots, of the same genes as in training.

        Returns
        -------
        Prediction

        Raises
        ------
        NotFittedError
        InputError
            What cannot be used, as in `fit`; another number of features; or a clustering that cannot label
            other spots.
        """
        model = self._fitted()
        with standard_math():
            features, points, sections, depths = _check_input(X, coordinates, sample, graph, depth)
            if graph is None:
                graph = model.make_graph(points, sample, resolve_device(self.device))
            return model.apply(
                features, graph, points, sections, depth=depths, device=resolve_device(self.device)
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model to one HDF5 file of arrays and JSON; nothing in it is executed by `load`.

        Parameters
        ----------
        path : path-like
            Replaced once the new file is complete.

        Raises
        ------
        NotFittedError
        InputError
            The file cannot be written, or the clustering cannot label other spots.
        """
        self._fitted().save(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, device: str = "auto") -> AMILST:
        """Read a model that `save` or ``amilst run`` (``model.h5``) has written.

        It predicts the same bits as the model that was saved, on the same kind of device. What described the
        sections of training (``labels_``, ``embedding_``, ...) is not in the file.

        Raises
        ------
        InputError
            There is no such file, it is of another kind or version, or it is damaged.
        """
        return cls.of(FittedModel.load(path), device=device)

    @classmethod
    def of(cls, fitted: FittedModel, *, device: str = "auto") -> AMILST:
        """The estimator of a fitted model, without what described the sections of training."""
        default = preset(fitted.preset).to_dict()
        settings = {
            name: value
            for part, fields in fitted.config.to_dict().items()
            for name, value in fields.items()
            if value != default[part][name]
        }
        model = cls(
            fitted.n_domains, seed=fitted.seed, preset=fitted.preset, settings=settings, device=device
        )
        model.fitted_, model.config_, model.network_ = fitted, fitted.config, fitted.network
        model.n_domains_, model.n_features_in_ = fitted.n_domains, fitted.n_features
        return model

    def _fitted(self) -> FittedModel:
        """What `apply` and `save` need."""
        if not hasattr(self, "fitted_"):
            raise NotFittedError("This AMILST instance is not fitted yet. Call 'fit' first, or AMILST.load.")
        if self.fitted_ is None:
            raise InputError(
                f"method={self.config_.cluster.method!r} labels the spots of training only. Use method='gmm' "
                "(--method gmm) for a model that labels other sections."
            )
        return self.fitted_

    def _fit(
        self,
        X: Any,
        coordinates: Any,
        sample: Sequence[Any] | None,
        graph: SpatialGraph | None,
        depth: Any,
        checkpoint: Checkpoint,
        decide_share: Callable[[], float] | None = None,
    ) -> None:
        """`fit`, where ``decide_share``, called at most once, decides a share of the network that is left open."""
        config, device = self.resolve_config(), resolve_device(self.device)
        features, points, sections, depths = _check_input(X, coordinates, sample, graph, depth)
        group = ranks()
        _warn_of_features(features)
        validate(config, group.sum(len(features)), self.n_domains, self.seed)
        if group.size > 1:
            _check_distributed(config)
        sections = group.numbered(sections)
        n_sections = group.largest(int(sections.max()) + 1)
        self.seconds_: dict[str, float] = {}

        if graph is None:
            with self._timed("graph", device):
                graph = SpatialGraph.from_coordinates(
                    points,
                    n_neighbors=config.graph.n_neighbors,
                    radius=config.graph.radius,
                    sample=sample,
                    device=device,
                )
        depths = None if depths is None else depths[graph.order]
        ordered_sections = sections[graph.order]
        features = features[torch.from_numpy(graph.order).to(features.device)].to(device)
        # from here to the results, rows are in the graph's order
        normalized = graph.normalized(device)
        fitted_filter: FittedFilter | None = None
        if config.train.recipe == "default":
            unfiltered = [features]
            del features  # the filter lets go of them as soon as they are standardized
            features, fitted_filter = self._filtered(
                unfiltered, normalized, depths, config, device, checkpoint
            )
        adjacency = normalized if graph.n_spots <= config.train.batch_size else None  # tiles have their own
        del normalized
        features = self._without_section_effect(
            features, ordered_sections, n_sections, config, device, checkpoint
        )
        train = partial(self._trained, features, graph, adjacency, config, device, checkpoint, decide_share)
        if self._is_independent(config, group.size, len(features), device):
            with beside(partial(not_shown, train)) as trained:
                domains = self._clustered(features, config, device, checkpoint)
                networks = trained()
            if networks.share > 0:  # rare
                domains = self._clustered(networks.embedding, config, device, Checkpoint())
        else:
            networks = train()
            domains = self._clustered(networks.embedding, config, device, checkpoint)
        self.network_, self.history_ = networks.network, networks.history
        latent, array = networks.latent, networks.embedding.cpu().numpy()
        config = config.replace(network_share=networks.share)
        self.evidence_ = domains.evidence
        del train, networks, adjacency
        with self._timed("refine", device):
            refined = checkpoint.stage(
                "refine",
                partial(
                    majority_vote,
                    domains.labels,
                    points[graph.order],
                    n_neighbors=config.cluster.refine_neighbors,
                    sample=ordered_sections,
                    graph=graph,
                    device=device,
                ),
            )
        self._check_sections(domains.labels, ordered_sections, n_sections)
        self.fitted_: FittedModel | None = None
        if domains.mixture is not None:
            effect, asked = self.section_effect_, config.integration.batch_correction
            self.fitted_ = FittedModel(
                config,
                asked if asked != "auto" or n_sections == 1 else effect.method,
                fitted_filter,
                SectionReference.of(features.cpu().numpy(), domains.probabilities),
                self.network_,
                domains.mixture,
                features.shape[1],
                self.seed,
                self.preset,
                group.same(typical_spacing(points)),
            )
        # back to the caller's order, one array after the other, so that few of them are there twice
        rank = graph.rank
        self.labels_, self.refined_labels_ = domains.labels[rank], refined[rank]
        self.confidence_, self.probabilities_ = domains.confidence[rank], domains.probabilities[rank]
        del domains, features
        self.latent_ = latent[rank]
        del latent
        self.embedding_ = array[rank]
        self.graph_, self.config_ = graph, config
        self.seconds_ = {stage: self.seconds_[stage] for stage in _STAGES if stage in self.seconds_}
        self.n_features_in_ = np.shape(X)[1]

    def _is_independent(self, config: Config, n_ranks: int, n_spots: int, device: torch.device) -> bool:
        """Whether clustering runs beside the training: it needs nothing of it, and time is saved."""
        cluster = config.cluster
        return (
            config.train.recipe == "default"
            and cluster.cluster_on == "consensus"
            and not cluster.network_share  # open, or zero
            and self.callback is None
            and n_ranks == 1
            and n_spots <= MOST_BESIDE
            and device.type == "cpu"
            and n_threads() > 1
        )

    def _filtered(
        self,
        unfiltered: list[torch.Tensor],
        adjacency: SymmetricAdjacency,
        depths: np.ndarray | None,
        config: Config,
        device: torch.device,
        checkpoint: Checkpoint,
    ) -> tuple[torch.Tensor, FittedFilter]:
        """Features (N, C) after the filter, and the filter; ``unfiltered``, a list of one, is emptied."""
        with self._timed("filter", device):
            return checkpoint.stage(
                "filter",
                lambda: fit_denoise(
                    unfiltered.pop(),
                    adjacency,
                    config.filter.noise_band,
                    depth=None if depths is None else torch.from_numpy(depths),
                    depth_floor=config.filter.depth_floor,
                    seed=stage_seed(self.seed, "filter"),
                ),
                lambda done: {"features": done[0].cpu().numpy(), "filter": done[1].to_arrays()},
                lambda arrays: (
                    torch.from_numpy(arrays["features"]).to(device),
                    FittedFilter.from_arrays(arrays["filter"]),
                ),
            )

    def _trained(
        self,
        features: torch.Tensor,
        graph: SpatialGraph,
        adjacency: SymmetricAdjacency | None,
        config: Config,
        device: torch.device,
        checkpoint: Checkpoint,
        decide_share: Callable[[], float] | None,
    ) -> _Networks:
        """The share of the network, and the network."""
        share = config.cluster.network_share
        if share is None:
            share = 0.0
            if decide_share is not None:
                with self._timed("network share", device):
                    share = decide_share()
        with self._timed("train", device):
            return checkpoint.stage(
                "train",
                lambda: self._train(features, graph, adjacency, config, share, device),
                lambda done: {
                    "network": arrays_of(done.network),
                    "history": done.history,
                    "latent": done.latent,
                    "embedding": None if done.embedding is features else done.embedding.cpu().numpy(),
                },
                lambda arrays: _Networks(
                    share,
                    network_of(
                        arrays["network"],
                        features.shape[1],
                        config,
                        None if config.train.n_networks == 1 else config.train.n_networks,
                    ),
                    arrays["history"],
                    arrays["latent"],
                    features
                    if arrays["embedding"] is None
                    else torch.from_numpy(arrays["embedding"]).to(device),
                ),
            )

    def _train(
        self,
        features: torch.Tensor,
        graph: SpatialGraph,
        adjacency: SymmetricAdjacency | None,
        config: Config,
        share: float,
        device: torch.device,
    ) -> _Networks:
        trainer = TRAINERS[config.train.recipe](
            features,
            graph,
            adjacency=adjacency,
            network_config=config.network,
            config=config.train,
            seed=stage_seed(self.seed, "train"),
            device=device,
        )
        mixed = config.cluster.cluster_on == "consensus" and share > 0
        result = trainer.run(self.callback, reconstruct=mixed)
        latent = result.latent.flatten(1)
        embedding = latent if config.cluster.cluster_on == "latent" else features
        if result.reconstruction is not None:
            # the z of different networks have different axes, but their reconstructions can be averaged
            embedding = torch.lerp(features, result.reconstruction, share)
        return _Networks(share, result.network.cpu(), result.history, latent.cpu().numpy(), embedding)

    def _clustered(
        self, embedding: torch.Tensor, config: Config, device: torch.device, checkpoint: Checkpoint
    ) -> Domains:
        """The domains; sets their number and, if it was not given, how it was chosen."""
        with self._timed("cluster", device):
            seed = stage_seed(self.seed, "cluster")
            n_domains, self.selection_ = self.n_domains, None
            if n_domains is None:
                self.selection_ = select_n_domains(
                    embedding.cpu().numpy(),
                    config=config.cluster,
                    seed=seed,
                    device=device,
                    callback=_tried,
                    checkpoint=checkpoint,
                )
                n_domains = self.selection_.n_domains
                runners_up = ", ".join(map(str, self.selection_.runners_up))
                logger.info("%d domains chosen; runners-up: %s", n_domains, runners_up)
            self.n_domains_ = int(n_domains)
            return checkpoint.stage(
                "cluster",
                partial(
                    find_domains,
                    embedding,
                    self.n_domains_,
                    config.cluster,
                    seed=seed,
                    device=device,
                    checkpoint=checkpoint,
                ),
                unpack=Domains.from_fields,
            )

    def _without_section_effect(
        self,
        features: torch.Tensor,
        sections: np.ndarray,
        n_sections: int,
        config: Config,
        device: torch.device,
        checkpoint: Checkpoint,
    ) -> torch.Tensor:
        """The features, (N, C), less the effect of their sections."""
        if n_sections == 1:
            self.section_effect_ = SectionEffect.none(1, features.shape[1])
            return features
        with self._timed("correct", device):
            array = features.cpu().numpy()
            self.section_effect_ = checkpoint.stage(
                "correct",
                lambda: section_effect(
                    array,
                    sections,
                    self.n_domains,
                    method=config.integration.batch_correction,
                    seed=stage_seed(self.seed, "correct"),
                ),
                unpack=SectionEffect.from_fields,
            )
            return torch.from_numpy(self.section_effect_.remove(array, sections)).to(device)

    def _check_sections(self, labels: np.ndarray, sections: np.ndarray, n_sections: int) -> None:
        """Warn where the domains are the sections."""
        if n_sections == 1:
            return
        common = normalized_mutual_info(*sampled(sections, labels))
        if common > _SECTIONS_AS_DOMAINS:
            warn(
                f"the domains largely follow the sections (normalized mutual information {common:.2f}; section "
                f"effects: {self.section_effect_.method}). If the sections hold the same tissue, set "
                "batch_correction (--batch-correction) to shift or center; if not, analyze them one by one."
            )

    @contextmanager
    def _timed(self, stage: str, device: torch.device) -> Iterator[None]:
        begin(stage)
        start = time.perf_counter()
        yield
        synchronize(device)
        self.seconds_[stage] = self.seconds_.get(stage, 0.0) + time.perf_counter() - start


def _check_distributed(config: Config) -> None:
    """Refuse what has no distributed form."""
    if config.train.recipe != "default" or config.cluster.method != "gmm":
        raise InputError(
            "a run of several processes needs the default recipe and method='gmm'; found "
            f"recipe={config.train.recipe!r} and method={config.cluster.method!r}. Run it as one process."
        )


def _tried(done: int, total: int) -> None:
    """Called after each number of domains that is tried."""
    logger.info("number of domains: %d of %d tried", done, total)
    advance(done, total)


def validate(config: Config, n_spots: int, n_domains: int | None, seed: int) -> None:
    """Refuse what cannot be run, before any computation.

    Parameters
    ----------
    config : Config
    n_spots : int
    n_domains : int or None
        K; None to choose it.
    seed : int

    Raises
    ------
    InputError
        K is not an integer from 2 to the number of spots, there are too few spots to choose K, or the seed is
        out of range.
    MissingExtraError
        The setting ``method="leiden"`` and igraph is not installed.
    """
    check_seed(seed)
    if n_domains is None:
        if n_spots < _MIN_SPOTS_TO_CHOOSE:
            raise InputError(
                f"choosing the number of domains needs at least {_MIN_SPOTS_TO_CHOOSE} spots; found {n_spots}. "
                "Set n_domains (--n-domains)."
            )
    elif isinstance(n_domains, bool) or not isinstance(n_domains, int | np.integer) or n_domains < 2:
        raise InputError(f"n_domains (--n-domains) must be an integer >= 2 or None; found {n_domains!r}.")
    elif n_domains > n_spots:
        raise InputError(f"n_domains must not exceed the number of spots; found {n_domains} for {n_spots}.")
    if config.cluster.method == "leiden" and find_spec("igraph") is None:
        raise MissingExtraError.for_package("igraph", "leiden", "Leiden clustering")


def _check_input(
    X: Any, coordinates: Any, sample: Sequence[Any] | None, graph: SpatialGraph | None, depth: Any
) -> tuple[torch.Tensor, np.ndarray, np.ndarray, np.ndarray | None]:
    """Features (N, C), coordinates, codes of the sections (N,) and depths (N,), all of one number of spots."""
    features, points = _check_features(X), check_coordinates(coordinates)
    n_spots = len(features)
    if len(points) != n_spots or (graph is not None and graph.n_spots != n_spots):
        other = len(points) if graph is None else graph.n_spots
        raise InputError(
            "features, coordinates and graph must have one row per spot; "
            f"found {n_spots} rows of features and {other} spots."
        )
    sections, _ = section_codes(sample, n_spots)
    return features, points, sections, None if depth is None else _check_depth(depth, n_spots)


def _warn_of_features(features: torch.Tensor) -> None:
    """Warn of constant columns and of a single spot that outweighs all others, (N, C) features."""
    n_spots, n_columns = features.shape
    n_constant = int((features.amin(0) == features.amax(0)).sum())
    if n_constant == n_columns:  # refused where they are standardized
        return
    if n_constant:
        warn(
            f"{n_constant} of {n_columns} columns of the features are constant; they do not distinguish domains."
        )
    parts = features.split(_ROWS)
    mean = sum(part.double().sum(0) for part in parts) / n_spots
    squares = torch.cat([(part.double() - mean).square().sum(1) for part in parts])  # (N,)
    share = float(squares.max() / squares.sum())
    if share > _EXTREME_SHARE and n_spots >= _MIN_SPOTS_TO_CHOOSE:
        warn(
            f"spot {int(squares.argmax())} (counted from 0) alone has {share:.0%} of the variance of the features. "
            "The domains may describe this spot only. Check it for extreme values, or drop it."
        )


def _check_depth(depth: Any, n_spots: int) -> np.ndarray:
    """Total counts as float64, (N,)."""
    try:
        array = np.asarray(depth, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError("depth must be the total counts of the spots, numbers >= 0.") from error
    if array.shape != (n_spots,) or not np.isfinite(array).all() or (array < 0).any():
        raise InputError(
            f"depth must hold the total counts of the {n_spots} spots, finite and >= 0; found shape {array.shape} with "
            f"{np.sum(~(array >= 0) | ~np.isfinite(array))} other values."
        )
    return array


def _check_features(X: Any) -> torch.Tensor:
    """X as a float32 tensor (N, C) on its own device."""
    if sparse.issparse(X):
        raise InputError(
            "expected dense features, such as principal components; found a sparse matrix. "
            "Reduce counts first, for example with amilst_lite.PCA (it takes sparse input)."
        )
    array = X.detach() if isinstance(X, torch.Tensor) else np.asarray(X)
    if array.ndim != 2 or 0 in array.shape:
        raise InputError(f"expected features of shape (spots, features); found shape {tuple(array.shape)}.")
    try:
        given = array if isinstance(array, torch.Tensor) else array.astype(np.float32, copy=False)
        features = torch.as_tensor(given)
    except (TypeError, ValueError) as error:
        raise InputError(f"features must be numbers; found dtype {array.dtype}.") from error
    features = features.to(torch.float32)
    finite = torch.isfinite(features).all(1)
    if not finite.all():
        rows = torch.nonzero(~finite).flatten()
        raise InputError(
            f"features must be finite; found NaN or infinity in {len(rows)} spot(s), first row {int(rows[0])}."
        )
    return features
