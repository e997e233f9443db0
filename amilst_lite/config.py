"""Every setting of a run, in frozen dataclasses that check themselves, and the two presets.

The command line's flags are made from these classes: a field's metadata holds its help. A
field exists only if some line reads it (a test sees to that).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from .errors import InputError

__all__ = [
    "PRESETS",
    "ClusterConfig",
    "Config",
    "FilterConfig",
    "GraphConfig",
    "NetworkConfig",
    "PreprocessConfig",
    "TrainConfig",
    "preset",
]


def _option(default: Any, text: str, **checks: Any) -> Any:
    """A field with its help and its checks: ``minimum``, ``below`` (exclusive) or ``choices``."""
    return field(default=default, metadata={"help": text, **checks})


class _Checked:
    """Checks every field against its metadata."""

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):  # type: ignore[arg-type]
            value, checks = getattr(self, item.name), item.metadata
            where = f"{type(self).__name__}.{item.name}"
            choices = checks.get("choices")
            if choices is not None and value not in choices:
                raise InputError(f"{where} must be one of {', '.join(map(repr, choices))}; found {value!r}.")
            if value is None:
                continue
            values = value if isinstance(value, tuple) else (value,)
            for one in values:
                if ("minimum" in checks or "below" in checks) and (
                    isinstance(one, bool) or not isinstance(one, int | float)
                ):
                    raise InputError(f"{where} must be a number; found {value!r}.")
                if "minimum" in checks and not one >= checks["minimum"]:
                    raise InputError(f"{where} must be at least {checks['minimum']}; found {value!r}.")
                if "below" in checks and not one < checks["below"]:
                    raise InputError(f"{where} must be below {checks['below']}; found {value!r}.")


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig(_Checked):
    """From counts to features."""

    min_spots: int = _option(3, "drop genes seen in fewer spots than this", minimum=0)
    n_top_genes: int | None = _option(
        3000, "keep so many genes, by variance of their Pearson residuals (none: all)", minimum=1
    )
    top_up: float = _option(
        0.5, "fill shallower spots from their neighbours up to this share of the median depth", minimum=0.0
    )
    target_sum: float | None = _option(
        None, "total to which each spot is scaled (none: the median total)", minimum=1e-12
    )
    max_fraction: float | None = _option(
        None, "leave genes above this share of any spot out of the totals", minimum=0.0
    )
    scale_genes: bool = _option(False, "scale each gene to unit variance")
    n_components: int = _option(30, "number of principal components", minimum=1)


@dataclass(frozen=True, kw_only=True)
class GraphConfig(_Checked):
    """From coordinates to the neighbour graph."""

    n_neighbors: int = _option(6, "nearest neighbours of each spot", minimum=1)
    radius: float | None = _option(
        None, "link spots closer than this, in the unit of the coordinates, instead", minimum=0.0
    )


@dataclass(frozen=True, kw_only=True)
class FilterConfig(_Checked):
    """From the features to what the network sees."""

    standardize: bool = _option(True, "scale the features to a total variance of one")
    noise_band: float | None = _option(
        0.1,
        "share of the roughest spatial frequencies taken for noise (none: no filter)",
        minimum=0.0,
        below=1.0,
    )
    filter_degree: int = _option(128, "degree of the filter's polynomials", minimum=4)


@dataclass(frozen=True, kw_only=True)
class NetworkConfig(_Checked):
    """Shape of the network."""

    feature_widths: tuple[int, ...] = _option(
        (100, 20), "widths of the denoising encoder; the last is f", minimum=1
    )
    graph_hidden: int = _option(32, "hidden width of the graph encoder", minimum=1)
    graph_latent: int = _option(8, "width of g (0: no graph encoder)", minimum=0)
    dropout: float = _option(0.0, "dropout rate", minimum=0.0, below=1.0)
    decoder: str = _option(
        "linear",
        "linear: affine map; graph: linear graph convolution; dense: the published block",
        choices=("linear", "graph", "dense"),
    )
    discriminator: str = _option(
        "bilinear", "form of the discriminator of (f, g)", choices=("bilinear", "published")
    )
    n_centers: int = _option(10, "centres of the clustering term", minimum=2)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(_Checked):
    """Objective and optimisation."""

    epochs: int = _option(100, "epochs of the first phase, each one step of optimisation", minimum=1)
    adversarial_epochs: int = _option(
        0, "epochs of the published second phase (clustering term, adversarial steps)", minimum=0
    )
    members: int = _option(
        8, "networks trained side by side from different starts (fewer above 2,500 spots)", minimum=1
    )
    batch_size: int | None = _option(
        None,
        "spots seen in one epoch; a larger section is trained in tiles (none: 40,000, or less by memory)",
        minimum=1,
    )
    learning_rate: float = _option(0.01, "Adam's rate for the network", minimum=0.0)
    weight_decay: float = _option(1e-4, "weight decay of the network", minimum=0.0)
    player_learning_rate: float = _option(0.001, "Adam's rate for discriminators and generator", minimum=0.0)
    corruption: float = _option(0.3, "share of the input that is masked", minimum=0.0, below=1.0)
    corrupt_per: str = _option("entry", "mask single entries or whole spots", choices=("entry", "spot"))
    reconstruction_weight: float = _option(100.0, "weight of the reconstruction", minimum=0.0)
    link_weight: float = _option(0.1, "weight of links and KL divergence", minimum=0.0)
    link_loss: str = _option(
        "sampled",
        "sampled: neighbours against random pairs; masked: the published form",
        choices=("sampled", "masked"),
    )
    mutual_information_weight: float = _option(0.1, "weight of the mutual information", minimum=0.0)
    adversary: bool = _option(True, "train a generator of false pairs against the discriminator")
    clustering_weight: float = _option(10.0, "weight of the clustering term (second phase)", minimum=0.0)
    record_every: int = _option(
        10, "epochs between two readings of the losses, each a wait for the GPU", minimum=1
    )


@dataclass(frozen=True, kw_only=True)
class ClusterConfig(_Checked):
    """From the embedding to domains."""

    method: str = _option("gmm", "gmm, kmeans or leiden", choices=("gmm", "kmeans", "leiden"))
    covariance_type: str = _option("tied", "covariances of the mixture, by scikit-learn's or mclust's names")
    covariance_prior: float = _option(
        500.0, "spots' worth of belief that the mixture's components are spherical", minimum=0.0
    )
    cluster_on: str = _option(
        "consensus",
        "consensus: what features and reconstructions agree on; latent: z itself",
        choices=("consensus", "latent"),
    )
    network_share: float = _option(
        0.1, "weight of the reconstructions in the consensus, the rest being the features'", minimum=0.0
    )
    n_init: int = _option(160, "random starts of the clustering", minimum=1)
    temperature: float = _option(
        5.0,
        "what the mixture's log odds are divided by, so that confidence is near to how often it is right",
        minimum=1.0,
    )
    leiden_neighbors: int = _option(20, "neighbours in the embedding for Leiden", minimum=1)
    refine_neighbors: int = _option(6, "spatial neighbours that vote in the refinement", minimum=1)


@dataclass(frozen=True, kw_only=True)
class Config:
    """All settings of a run. `preset` gives named ones; `replace` changes single fields."""

    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    graph: GraphConfig = field(default_factory=GraphConfig)
    filter: FilterConfig = field(default_factory=FilterConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def replace(self, **changes: Any) -> Config:
        """A copy with single fields changed, by their own names (``n_neighbors=6``).

        Field names are unique over the five parts, so no part need be named.

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


PRESETS: dict[str, Config] = {
    "default": Config(),
    # The published program's settings, so that results can be compared with its own.
    "published": Config(
        preprocess=PreprocessConfig(
            n_top_genes=None,
            top_up=0.0,
            target_sum=1.0,
            max_fraction=0.05,
            scale_genes=True,
            n_components=200,
        ),
        graph=GraphConfig(n_neighbors=12),
        filter=FilterConfig(standardize=False, noise_band=None),
        network=NetworkConfig(dropout=0.2, decoder="dense", discriminator="published"),
        train=TrainConfig(
            epochs=200,
            adversarial_epochs=200,
            members=1,
            reconstruction_weight=10.0,
            weight_decay=0.01,
            corruption=0.0,
            link_loss="masked",
            mutual_information_weight=0.01,
        ),
        cluster=ClusterConfig(method="leiden", covariance_prior=0.0, cluster_on="latent", temperature=1.0),
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
        raise InputError(f"unknown preset {name!r}; there are {', '.join(PRESETS)}.")
    return PRESETS[name]
