"""What a fit leaves behind to label other sections, and its file.

A new section passes the same stages as those of training, with everything that was learned there held fixed: filter,
correction of section effects, network, mixture. Only the effect of the new section is estimated from itself.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from .cluster.averaging import FittedAverage
from .config import PRESETS, Config
from .errors import InputError
from .integration import METHODS, SectionEffect, SectionReference
from .model_file import read_model, write_model
from .nn.model import AMILSTNetwork
from .preprocess import FittedPreparation
from .runtime import threads_for, versions
from .spatial.graph import SpatialGraph
from .spatial.neighbors import typical_spacing
from .spatial.refine import majority_vote
from .spatial.spectral_filter import FittedFilter
from .train import embed, make_batches
from .train.batches import largest_core

__all__ = ["FittedModel", "Prediction", "arrays_of", "network_of"]

_SAME_UNIT = 3.0
"""Ratio of the distances between spots from which the coordinates are taken to be in another unit."""
_CORRECTIONS = ("auto", *METHODS)


@dataclass(frozen=True)
class Prediction:
    """Domains of new sections, in the order of the rows given.

    Attributes
    ----------
    labels, refined_labels : ndarray of int64, (N,)
        Domains 0..K-1 of the model; the second after a majority vote among spatial neighbors.
    probabilities : ndarray of float32, (N, K)
        Rows sum to one.
    embedding : ndarray of float32, (N, C)
        What the mixture describes.
    latent : ndarray of float32, (N, M · (n_f + n_g))
        Latent representations z.
    section_effect : SectionEffect
        What was removed from the features of the new sections.
    graph : SpatialGraph
    """

    labels: np.ndarray
    refined_labels: np.ndarray
    probabilities: np.ndarray
    embedding: np.ndarray
    latent: np.ndarray
    section_effect: SectionEffect
    graph: SpatialGraph

    @property
    def confidence(self) -> np.ndarray:
        """Probability of the domain of each spot: (N,) float32."""
        return self.probabilities[np.arange(len(self.labels)), self.labels]


@dataclass(frozen=True)
class FittedModel:
    """Everything that is needed to label a section.

    Attributes
    ----------
    config : Config
        The settings that took effect.
    correction : str
        How the effect of a new section is estimated; see `SectionReference.effect`.
    filter : FittedFilter or None
        None for the recipe "published".
    reference : SectionReference
        The features of training by domain.
    network : AMILSTNetwork
        In evaluation mode, on the CPU.
    mixture : FittedAverage
        In the order of the domains.
    n_features : int
        C, the columns of the features of training.
    seed : int
        Of the fit, for the record.
    preset : str
        Likewise.
    spacing : float
        Median distance between nearest spots in training, in the unit of the coordinates.
    preparation : FittedPreparation or None
        How the features were computed from counts; None if they were given.
    use_rep : str or None
        Slot of ``obsm`` that they were given in.
    """

    config: Config
    correction: str
    filter: FittedFilter | None
    reference: SectionReference
    network: AMILSTNetwork
    mixture: FittedAverage
    n_features: int
    seed: int
    preset: str
    spacing: float
    preparation: FittedPreparation | None = None
    use_rep: str | None = None

    @property
    def n_domains(self) -> int:
        """K."""
        return len(self.mixture.order)

    def with_input(self, preparation: FittedPreparation | None, use_rep: str | None) -> FittedModel:
        """The same, with how the features were made."""
        return replace(self, preparation=preparation, use_rep=use_rep)

    def make_graph(
        self, points: np.ndarray, sample: Sequence[Any] | None, device: torch.device | str = "cpu"
    ) -> SpatialGraph:
        """The neighbor graph of new sections.

        Parameters
        ----------
        points : ndarray, (N, 2 or 3)
            Coordinates.
        sample : sequence, (N,), optional
            Section of each spot.
        device : torch.device or str
            Where neighbors are searched.

        Raises
        ------
        InputError
            Neighbors are those within a radius, and the distances between spots are of another magnitude than in
            training; or the graph cannot be made, see `SpatialGraph.from_coordinates`.
        """
        options = self.config.graph
        if options.radius is not None:
            spacing = typical_spacing(points)
            if not 1 / _SAME_UNIT < spacing / self.spacing < _SAME_UNIT:
                raise InputError(
                    f"the model connects spots within a radius of {options.radius:g}, at a median distance to the "
                    f"nearest spot of {self.spacing:g} in training; here it is {spacing:g}. Convert the coordinates to "
                    "the unit of training."
                )
        return SpatialGraph.from_coordinates(
            points, n_neighbors=options.n_neighbors, radius=options.radius, sample=sample, device=device
        )

    def apply(
        self,
        features: torch.Tensor,
        graph: SpatialGraph,
        points: np.ndarray,
        sections: np.ndarray,
        *,
        depth: np.ndarray | None = None,
        device: torch.device,
    ) -> Prediction:
        """Label sections.

        Parameters
        ----------
        features : Tensor, (N, C)
            Like those of training.
        graph : SpatialGraph
            Of the N spots.
        points : ndarray, (N, 2 or 3)
            Coordinates.
        sections : ndarray of int, (N,)
            0..S-1.
        depth : ndarray of float64, (N,), optional
            Total counts, like those of training.
        device : torch.device

        Raises
        ------
        InputError
            Another number of features than in training.
        """
        if features.shape[1] != self.n_features:
            raise InputError(
                f"the model was trained on {self.n_features} features; found {features.shape[1]}. Compute them as "
                "they were computed for training."
            )
        order = torch.from_numpy(graph.order)
        adjacency = graph.normalized(device)
        ordered = sections[graph.order]
        X = features[order.to(features.device)].to(device)
        if self.filter is not None:
            depths = None if depth is None else torch.from_numpy(depth)[order]
            X = self.filter.apply(X, adjacency, depth=depths)
        array = X.cpu().numpy()
        effect = self.reference.effect(array, ordered, self.correction)
        X = torch.from_numpy(effect.remove(array, ordered)).to(device)
        # a copy on the device: the model itself stays as it is, for other threads
        network = self.network if device.type == "cpu" else copy.deepcopy(self.network).to(device)
        rows = self.config.train.batch_size
        with threads_for(0):
            batches = make_batches(graph, rows, network.hops, device, adjacency)
        members = 1 if network.members is None else network.members
        with threads_for(largest_core(batches) * members):
            cluster = self.config.cluster
            wanted = cluster.cluster_on == "consensus" and bool(cluster.network_share)
            latent, reconstruction = embed(network, X, batches, reconstruct=wanted)
        latent = latent.flatten(1)
        embedding = latent if cluster.cluster_on == "latent" else X
        if reconstruction is not None:
            embedding = torch.lerp(X, reconstruction, cluster.network_share or 0.0)
        embedded = embedding.cpu().numpy()
        probabilities = self.mixture.predict_proba(embedded, device=device)
        if not np.isfinite(probabilities).all():
            raise InputError(
                "the model yields no finite probabilities for this input: its numbers, or the features, are too "
                "large. Check that it is the right model, or fit and save it again."
            )
        labels = probabilities.argmax(1)
        refined = majority_vote(
            labels,
            points[graph.order],
            n_neighbors=cluster.refine_neighbors,
            sample=ordered,
            graph=graph,
            device=device,
        )
        rank = graph.rank
        return Prediction(
            labels[rank],
            refined[rank],
            probabilities[rank],
            embedded[rank],
            latent.cpu().numpy()[rank],
            effect,
            graph,
        )

    # --- the file -----------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a file of arrays and JSON; see `model_file.write_model`."""
        arrays: dict[str, Any] = {
            "reference": self.reference.to_arrays(),
            "network": arrays_of(self.network),
            "mixture": self.mixture.to_arrays(),
        }
        if self.filter is not None:
            arrays["filter"] = self.filter.to_arrays()
        settings: dict[str, Any] = {
            "config": self.config.to_dict(),
            "correction": self.correction,
            "members": self.network.members,
            "n_features": self.n_features,
            "seed": int(self.seed),
            "preset": self.preset,
            "spacing": self.spacing,
            "use_rep": self.use_rep,
            "versions": versions(),
        }
        if self.preparation is not None:
            arrays["preparation"] = self.preparation.to_arrays()
            settings["genes"] = list(self.preparation.genes)
        write_model(path, arrays, settings)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> FittedModel:
        """Read what `save` has written.

        Raises
        ------
        InputError
            There is no such file, it is of another kind or version, or what is in it does not fit together.
        """
        arrays, settings = read_model(path)
        try:
            return cls._from_parts(arrays, settings)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error

    @classmethod
    def _from_parts(cls, arrays: Mapping[str, Any], settings: Mapping[str, Any]) -> FittedModel:
        expected = {
            "config": dict, "correction": str, "members": int | None, "n_features": int, "seed": int,
            "preset": str, "spacing": float, "use_rep": str | None, "versions": dict,
        }  # fmt: skip
        for name, kind in expected.items():
            if (
                name not in settings
                or isinstance(settings[name], bool)
                or not isinstance(settings[name], kind)
            ):
                raise _unfit(f"the setting {name!r} is missing or of another kind")
        config = Config.from_dict(settings["config"])
        parts = {name: part for name, part in arrays.items() if isinstance(part, Mapping)}
        required = {"reference", "network", "mixture"}
        optional = {"filter", "preparation"}
        if len(parts) < len(arrays) or not required <= set(parts) <= required | optional:
            raise _unfit(
                f"expected the parts {', '.join(sorted(required | optional))}; found {', '.join(arrays)}"
            )
        n_features, members = settings["n_features"], settings["members"]
        reference = SectionReference.from_arrays(parts["reference"])
        mixture = FittedAverage.from_arrays(parts["mixture"], config.cluster.covariance_type)
        fitted_filter = FittedFilter.from_arrays(parts["filter"]) if "filter" in parts else None
        network = network_of(parts["network"], n_features, config, members)
        preparation = None
        if "preparation" in parts:
            genes = settings.get("genes")
            if not isinstance(genes, list) or not all(isinstance(name, str) for name in genes):
                raise _unfit("the names of the genes are missing")
            preparation = FittedPreparation.from_arrays(
                parts["preparation"], genes, config.preprocess.normalization
            )
        widths = {
            "reference": len(reference.axes.mean),
            "filter": n_features if fitted_filter is None else len(fitted_filter.before.mean),
            "preparation": n_features if preparation is None else len(preparation.variance),
        }
        clustered = (members or 1) * (network.n_f + network.n_g)
        if config.cluster.cluster_on == "consensus":
            clustered = n_features
        if set(widths.values()) != {n_features} or len(mixture.axes.mean) != clustered:
            raise _unfit(f"its parts have different numbers of features ({widths})")
        if settings["correction"] not in _CORRECTIONS or settings["preset"] not in PRESETS:
            raise _unfit(f"the correction {settings['correction']!r} or the preset is unknown")
        if not settings["spacing"] > 0:
            raise _unfit("the distance between spots is not positive")
        return cls(
            config,
            settings["correction"],
            fitted_filter,
            reference,
            network,
            mixture,
            n_features,
            settings["seed"],
            settings["preset"],
            settings["spacing"],
            preparation,
            settings["use_rep"],
        )


def arrays_of(network: AMILSTNetwork) -> dict[str, np.ndarray]:
    """The weights by name; see `network_of`."""
    return {name: tensor.cpu().numpy() for name, tensor in network.state_dict().items()}


def network_of(
    arrays: Mapping[str, Any], n_features: int, config: Config, members: int | None
) -> AMILSTNetwork:
    """The network with the weights in ``arrays``, in evaluation mode.

    Raises
    ------
    InputError
        Names, shapes or dtypes are not those of a network of this configuration, or a weight is not finite.
    """
    if n_features < 1 or (members is not None and members < 1):
        raise _unfit("numbers of features and networks must be positive")
    with torch.device("meta"):  # shapes alone: what the settings declare takes no memory
        network = AMILSTNetwork(n_features, config.network, members)
    expected = network.state_dict()
    if set(arrays) != set(expected):
        raise _unfit("the network has other layers than its settings say")
    state = {}
    for name, like in expected.items():
        array = arrays[name]
        if not isinstance(array, np.ndarray | np.generic) or array.shape != tuple(like.shape):
            raise _unfit(f"the network's {name!r} has another shape than its settings say")
        tensor = torch.from_numpy(np.array(array))
        if tensor.dtype != like.dtype or not torch.isfinite(tensor).all():
            raise _unfit(f"the network's {name!r} is not finite or has dtype {tensor.dtype}")
        state[name] = tensor
    network.load_state_dict(state, assign=True)
    return network.eval()


def _unfit(reason: str) -> InputError:
    return InputError(
        f"the model is incomplete or was written by another version of amilst_lite: {reason}. Save it again."
    )
