"""Every setting of a run, in validated frozen dataclasses, and the two presets.

Command-line flags are made from these classes: the metadata of a field holds its kind, its bounds and its
help text. A value that no user would set is a constant of the module that uses it, not a field here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

import numpy as np

from .errors import InputError

__all__ = [
    "PRESETS",
    "ClusterConfig",
    "Config",
    "FilterConfig",
    "GraphConfig",
    "IntegrationConfig",
    "NetworkConfig",
    "PreprocessConfig",
    "TrainConfig",
    "preset",
]

COVARIANCE_TYPES = (
    "tied_spherical",
    "spherical",
    "tied_diag",
    "diag",
    "tied",
    "full",
    "EII",
    "VII",
    "EEI",
    "VVI",
    "EEE",
    "VVV",
)
"""Covariance models of the mixture: scikit-learn's names (extended), then mclust's, in the same order."""


@dataclass(frozen=True)
class Check:
    """What values a setting accepts.

    Attributes
    ----------
    kind : {"integer", "number", "flag", "choice", "integers"}
    minimum, maximum : float
        Inclusive bounds.
    strict : bool
        The bounds themselves are excluded.
    choices : tuple of str
        For the kind "choice".
    optional : bool
        None is accepted.
    """

    kind: str
    minimum: float = -math.inf
    maximum: float = math.inf
    strict: bool = False
    choices: tuple[str, ...] = ()
    optional: bool = False

    def __str__(self) -> str:
        if self.kind == "choice":
            text = "one of " + ", ".join(map(repr, self.choices))
        elif self.kind == "flag":
            text = "True or False"
        else:
            text = {"integer": "an integer", "number": "a finite number", "integers": "one or more integers"}[
                self.kind
            ]
            equal = "" if self.strict else "="
            bounds = [
                f"{sign}{equal} {bound:g}"
                for sign, bound in ((">", self.minimum), ("<", self.maximum))
                if math.isfinite(bound)
            ]
            if bounds:
                text += " " + " and ".join(bounds)
        return text + (" or None" if self.optional else "")

    def convert(self, name: str, value: Any) -> Any:
        """The value as a plain Python object.

        Raises
        ------
        InputError
            It is not what the check accepts.
        """
        if value is None and self.optional:
            return None
        if self.kind == "choice" and isinstance(value, str) and value in self.choices:
            return str(value)
        if self.kind == "flag" and isinstance(value, bool | np.bool_):
            return bool(value)
        if self.kind in ("integer", "number") and self._is_number(value):
            return int(value) if self.kind == "integer" else float(value)
        if (
            self.kind == "integers"
            and isinstance(value, tuple | list | np.ndarray)
            and len(value) > 0
            and all(map(self._is_number, value))
        ):
            return tuple(int(item) for item in value)
        flag = "--" + name.replace("_", "-")
        raise InputError(f"{name} ({flag}) must be {self}; found {value!r}.")

    def _is_number(self, value: Any) -> bool:
        wanted = Real if self.kind == "number" else Integral
        if isinstance(value, bool | np.bool_) or not isinstance(value, wanted):
            return False
        number = float(value)
        if self.strict:
            return self.minimum < number < self.maximum
        return self.minimum <= number <= self.maximum and math.isfinite(number)


def _option(
    default: Any, text: str, kind: str, minimum: float = -math.inf, maximum: float = math.inf, **checks: Any
) -> Any:
    """A field with its help text and its check."""
    return field(default=default, metadata={"help": text, "check": Check(kind, minimum, maximum, **checks)})


class _Checked:
    """Validates and converts every field."""

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):  # type: ignore[arg-type]
            value = item.metadata["check"].convert(item.name, getattr(self, item.name))
            object.__setattr__(self, item.name, value)


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig(_Checked):
    """From counts to principal components."""

    n_top_genes: int | None = _option(
        2000, "keep this many genes, by the variance of their Pearson residuals averaged over neighbors (none: all)",
        "integer", 1, optional=True,
    )  # fmt: skip
    normalization: str = _option(
        "median",
        "median: total counts scaled to the median, log1p; "
        "published: total 1 without dominant genes, log1p, unit variance",
        "choice",
        choices=("median", "published"),
    )
    n_components: int = _option(40, "number of principal components", "integer", 1)


@dataclass(frozen=True, kw_only=True)
class GraphConfig(_Checked):
    """From coordinates to the neighbor graph."""

    n_neighbors: int = _option(
        6, "nearest neighbors of each spot; all that tie with the last one are included", "integer", 1
    )
    radius: float | None = _option(
        None,
        "connect all spots within this distance, in the unit of the coordinates, instead of n_neighbors",
        "number",
        0,
        strict=True,
        optional=True,
    )


@dataclass(frozen=True, kw_only=True)
class FilterConfig(_Checked):
    """Spatial filter of the features."""

    depth_floor: float = _option(
        0.5,
        "share of the median depth below which spots are averaged with their neighbors before the filter (0: none)",
        "number",
        0,
    )
    noise_band: float | None = _option(
        0.1,
        "share of the highest spatial frequencies from which the noise is estimated (none: no filter)",
        "number",
        0,
        1,
        strict=True,
        optional=True,
    )


@dataclass(frozen=True, kw_only=True)
class IntegrationConfig(_Checked):
    """Several sections."""

    batch_correction: str = _option(
        "auto",
        "section effects: none; center: means of the sections; shift: estimated together with the domains; offsets: "
        "also for each domain; auto: by the likelihood of held-out blocks",
        "choice",
        choices=("auto", "none", "center", "shift", "offsets"),
    )


@dataclass(frozen=True, kw_only=True)
class NetworkConfig(_Checked):
    """Architecture of the network."""

    feature_widths: tuple[int, ...] = _option(
        (100, 20), "layer widths of the denoising encoder; the last is the width of f", "integers", 1
    )
    graph_hidden: int = _option(32, "hidden width of the graph encoder", "integer", 1)
    graph_latent: int = _option(8, "width of g (0: no graph encoder)", "integer", 0)
    decoder: str = _option(
        "linear",
        "linear: affine map; graph: linear graph convolution; block: the published block (batch norm, ELU)",
        "choice",
        choices=("linear", "graph", "block"),
    )
    dropout: float = _option(0.0, "dropout rate, < 1", "number", 0, 0.99)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(_Checked):
    """Objective and optimization."""

    recipe: str = _option(
        "default",
        "default: one phase with mutual information; published: the published two phases",
        "choice",
        choices=("default", "published"),
    )
    epochs: int = _option(50, "optimization steps of each phase", "integer", 1)
    n_networks: int = _option(
        1, "networks trained from different initializations, averaged in the consensus", "integer", 1
    )
    batch_size: int = _option(10_000, "spots in one step; a larger section is trained in tiles", "integer", 4)
    learning_rate: float = _option(0.01, "learning rate of the network", "number", 0)
    corruption: float = _option(0.3, "share of the input entries that are masked, < 1", "number", 0, 0.99)
    link_weight: float = _option(0.1, "weight of the link loss and the KL divergence", "number", 0)
    mutual_information_weight: float = _option(0.1, "weight of the mutual information", "number", 0)
    adversary: bool = _option(True, "train a generator of false pairs against the discriminator", "flag")


@dataclass(frozen=True, kw_only=True)
class ClusterConfig(_Checked):
    """From the embedding to domains."""

    method: str = _option("gmm", "clustering of the embedding", "choice", choices=("gmm", "kmeans", "leiden"))
    cluster_on: str = _option(
        "consensus",
        "consensus: weighted mean of filtered features and their reconstruction; latent: z",
        "choice",
        choices=("consensus", "latent"),
    )
    network_share: float | None = _option(
        None,
        "weight of the reconstruction in the consensus, from 0 to 1 (none: by the deviance of held-out counts)",
        "number",
        0,
        1,
        optional=True,
    )
    covariance_type: str = _option(
        "tied", "covariance model of the mixture, by scikit-learn's or mclust's name", "choice",
        choices=COVARIANCE_TYPES,
    )  # fmt: skip
    shrinkage: float | None = _option(
        None,
        "share of a spherical covariance in the mixture's, from 0 to < 1 (none: by the likelihood of held-out blocks)",
        "number",
        0,
        0.999,
        optional=True,
    )
    n_init: int = _option(32, "random restarts of the clustering", "integer", 1)
    refine_neighbors: int = _option(6, "spatial neighbors that vote in the refinement", "integer", 1)


@dataclass(frozen=True, kw_only=True)
class Config:
    """All settings of a run. `preset` returns named ones; `replace` changes single fields."""

    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    graph: GraphConfig = field(default_factory=GraphConfig)
    filter: FilterConfig = field(default_factory=FilterConfig)
    integration: IntegrationConfig = field(default_factory=IntegrationConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def replace(self, **changes: Any) -> Config:
        """A copy with single fields changed, by their own names (``n_neighbors=6``).

        Field names are unique over the seven parts, so the part need not be named.

        Raises
        ------
        InputError
            No part has such a field, or the value fails its check.
        """
        parts: dict[str, dict[str, Any]] = {}
        owners = self.owners()
        for name, value in changes.items():
            if name not in owners:
                raise InputError(f"unknown setting {name!r}; the settings are {', '.join(sorted(owners))}.")
            parts.setdefault(owners[name], {})[name] = value
        return dataclasses.replace(
            self,
            **{part: dataclasses.replace(getattr(self, part), **fields) for part, fields in parts.items()},
        )

    @classmethod
    def owners(cls) -> dict[str, str]:
        """Field name → name of the part that holds it."""
        default = cls()
        return {
            item.name: part.name
            for part in dataclasses.fields(cls)
            for item in dataclasses.fields(getattr(default, part.name))
        }

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Nested plain dictionaries, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, parts: Mapping[str, Any]) -> Config:
        """The configuration of `to_dict`; lists may stand for tuples.

        Raises
        ------
        InputError
            Parts or fields are missing or unknown, as in files of another version, or a value fails its check.
        """
        default = cls()
        found = {name: sorted(part) if isinstance(part, Mapping) else None for name, part in parts.items()}
        expected = {
            part.name: sorted(vars(getattr(default, part.name))) for part in dataclasses.fields(default)
        }
        if found != expected:
            raise InputError(
                "the settings are not those of this version of amilst_lite. Use the version that wrote them, or fit "
                "and save the model again."
            )
        return cls(**{name: type(getattr(default, name))(**part) for name, part in parts.items()})


PRESETS: dict[str, Config] = {
    "default": Config(),
    # The settings of the published program, so that results can be compared with its own.
    "published": Config(
        preprocess=PreprocessConfig(n_top_genes=None, normalization="published", n_components=200),
        graph=GraphConfig(n_neighbors=12),
        filter=FilterConfig(noise_band=None, depth_floor=0.0),
        integration=IntegrationConfig(batch_correction="none"),
        network=NetworkConfig(dropout=0.2, decoder="block"),
        train=TrainConfig(
            recipe="published", epochs=200, corruption=0.0, mutual_information_weight=0.01, batch_size=40_000
        ),
        cluster=ClusterConfig(method="leiden", shrinkage=0.0, cluster_on="latent"),
    ),
}
"""Named configurations: ``default``, and ``published`` for comparison with the paper's program."""


def preset(name: str) -> Config:
    """The configuration called ``name``.

    Raises
    ------
    InputError
        There is none of that name.
    """
    if name not in PRESETS:
        raise InputError(f"unknown preset {name!r}; expected one of {', '.join(PRESETS)}.")
    return PRESETS[name]
