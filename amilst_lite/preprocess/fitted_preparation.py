"""The preparation of a section, kept so that other sections get the same features."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..distributed import ranks
from ..errors import InputError, warn
from ..validation import check_model_arrays
from .counts import CountRows
from .normalize import NormalizedCounts, Preparation, chosen_counts, component_scores, survey, take_genes
from .pca import PCA

__all__ = ["FittedPreparation"]

logger = logging.getLogger("amilst_lite")

_MOST_MISSING, _MANY_MISSING = 0.5, 0.1
"""Shares of the components' variance on missing genes: above the first, refused; above the second, a warning."""


@dataclass(frozen=True)
class FittedPreparation:
    """Genes, normalization and principal components of the sections of training.

    Attributes
    ----------
    genes : tuple of str, G
        Names of the genes used, in the order of the columns below.
    normalization : str
        See `NormalizedCounts`.
    target : float
        Total to which every spot was scaled.
    depth_ratio : float
        Counts of all genes, as a multiple of those of the genes used, >= 1.
    abundance : ndarray of float64, (G,)
        Share of each gene in the counts of the genes used.
    mean, scale : ndarray of float64, (G,)
        Subtracted from the normalized expression, and divided by.
    components : ndarray of float32, (C, G)
        Principal components, orthonormal rows.
    variance : ndarray of float32, (C,)
        Of the scores, descending.
    """

    genes: tuple[str, ...]
    normalization: str
    target: float
    depth_ratio: float
    abundance: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    components: np.ndarray
    variance: np.ndarray

    @classmethod
    def of(cls, preparation: Preparation, genes: Sequence[str], normalization: str) -> FittedPreparation:
        """What `prepare` has learned; ``genes`` are the names of all genes, (n_genes,)."""
        pca, chosen = preparation.pca, preparation.gene_totals
        return cls(
            tuple(str(genes[int(place)]) for place in np.flatnonzero(preparation.genes)),
            normalization,
            preparation.target,
            max(1.0, float(ranks().sum(preparation.depth.sum()) / chosen.sum())),
            chosen / chosen.sum(),
            pca.mean_,
            pca.scale_,
            pca.components_,
            pca.explained_variance_,
        )

    def apply(
        self, counts: Any, genes: Sequence[str], *, device: str | torch.device = "cpu"
    ) -> tuple[np.ndarray, np.ndarray]:
        """Features of other sections.

        Genes in another order and genes unknown to the model make no difference. The expression of missing genes
        is predicted from the others, by the components as a factor model (Tipping & Bishop 1999): it is what the
        components and the genes that are there let expect.

        Parameters
        ----------
        counts : see `CountRows`, (N, n_genes)
            Raw counts, in memory or on disk; not changed.
        genes : sequence of str, (n_genes,)
            Their names.
        device : str or torch.device
            Where the scores are computed.

        Returns
        -------
        features : ndarray of float32, (N, C)
            Scores of the components.
        depth : ndarray of float64, (N,)
            Total counts of the spots, as if all genes of training had been counted.

        Raises
        ------
        InputError
            Unusable counts, see `survey`; a gene of the model is there more than once; or the genes that are missing
            have more than half of the components' variance.

        Warns
        -----
        AmilstWarning
            They have more than a tenth of it.
        """
        rows = CountRows(counts)
        places = self._places(genes)
        present = places >= 0
        self._check_missing(present, genes)
        found = survey(rows)
        mask = np.zeros(rows.shape[1], dtype=bool)
        mask[places[present]] = True
        n_entries = int(found.n_seen_here[mask].sum())
        columns = np.searchsorted(np.flatnonzero(mask), places[present])
        if np.array_equal(columns, np.arange(len(columns))):
            chosen = chosen_counts(rows, mask, n_entries)
        else:
            chosen = take_genes(rows, mask, n_entries)[:, columns]
        share = float(self.abundance[present].sum())
        target = self.target if self.normalization == "published" or present.all() else self.target * share
        normalized = NormalizedCounts(chosen, self.normalization, target)
        if not normalized.counts.totals().any():
            raise InputError(
                'the genes of the model have no counts in this input. Check that X or layers["counts"] holds the '
                "raw counts."
            )
        depth = normalized.counts.totals() * (self.depth_ratio / share)
        return component_scores(self._pca(present, device), normalized), depth

    def _places(self, genes: Sequence[str]) -> np.ndarray:
        """Where each gene of the model is among ``genes``, -1 where it is not: (G,) int64."""
        place: dict[str, int] = {}
        twice = set()
        for position, name in enumerate(map(str, genes)):
            if place.setdefault(name, position) != position:
                twice.add(name)
        repeated = sorted(twice & set(self.genes))
        if repeated or len(set(self.genes)) < len(self.genes):
            raise InputError(
                "every gene of the model must be there once, in the model and in the input; found "
                f"{', '.join(repeated[:5]) or 'a model with repeated names'} more than once. Make the names unique "
                "(adata.var_names_make_unique()), and train again if it is the model's."
            )
        return np.array([place.get(name, -1) for name in self.genes], dtype=np.int64)

    def _check_missing(self, present: np.ndarray, genes: Sequence[str]) -> None:
        """Refuse, warn or note, depending on the share of the variance on missing genes."""
        if present.all():
            return
        missing = self.missing_variance(present)
        n_missing = int((~present).sum())
        if missing > _MOST_MISSING or not present.any():
            advice = "Train on the genes in common."
            if not present.any():
                advice = (
                    f"They are named like {_some(self.genes)}, those of the input like {_some(genes)}: use the same "
                    "kind of names."
                )
            raise InputError(
                f"{n_missing} of the {len(present)} genes of the model are missing, with {missing:.0%} of the variance "
                f"of its components; expected at most {_MOST_MISSING:.0%}. {advice}"
            )
        text = (
            f"{n_missing} of the {len(present)} genes of the model are missing and predicted from the others; they "
            f"have {missing:.1%} of the variance of its components"
        )
        if missing > _MANY_MISSING:
            warn(f"{text}. Compare the domains with those of a run of their own.")
        else:
            logger.info("%s", text)

    def missing_variance(self, present: np.ndarray) -> float:
        """Share of the components' variance on the genes (G,) that are not ``present``."""
        weights = np.square(self.components, dtype=np.float64) * self.variance[:, None]
        return float(weights[:, ~present].sum() / weights.sum())

    def _pca(self, present: np.ndarray, device: str | torch.device) -> PCA:
        """The components for the genes that are there; those of training if all are."""
        components = self.components
        if not present.all():
            W, rest = (components[:, part].astype(np.float64) for part in (present, ~present))
            # the last component counts as noise: the mean of those left out is less, since they are the smallest
            noise = float(self.variance[-1])
            signal = np.maximum(self.variance.astype(np.float64) - noise, 1e-6 * self.variance[0])
            gram = W @ W.T + np.diag(noise / signal + 1e-9)
            components = (W + rest @ rest.T @ np.linalg.solve(gram, W)).astype(components.dtype)
        pca = PCA(len(components), scale=self.normalization == "published", device=device)
        pca.n_features_in_, pca.n_components_ = components.shape[1], len(components)
        pca.mean_, pca.scale_ = self.mean[present], self.scale[present]
        pca.clipped_mean_ = np.zeros_like(pca.mean_)
        pca.components_ = components
        return pca

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The state without names and normalization; see `from_arrays`."""
        return {
            "target": np.asarray(self.target),
            "depth_ratio": np.asarray(self.depth_ratio),
            "abundance": self.abundance,
            "mean": self.mean,
            "scale": self.scale,
            "components": self.components,
            "variance": self.variance,
        }

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, np.ndarray], genes: Sequence[str], normalization: str
    ) -> FittedPreparation:
        """The preparation of `to_arrays`.

        Raises
        ------
        InputError
            Names or shapes are not those of a preparation, or values are out of range.
        """
        shapes = {
            "target": "",
            "depth_ratio": "",
            "abundance": "G",
            "mean": "G",
            "scale": "G",
            "components": "C G",
            "variance": "C",
        }
        owner = "the preparation"
        lengths = check_model_arrays(arrays, shapes, owner)
        numbers = {name: float(arrays[name]) for name in ("target", "depth_ratio")}
        usable = (
            len(genes) == lengths["G"]
            and numbers["target"] > 0
            and numbers["depth_ratio"] >= 1
            and (arrays["abundance"] >= 0).all()
            and (arrays["scale"] > 0).all()
            and (arrays["variance"] >= 0).all()
            and arrays["variance"].max() > 0
        )
        if not usable:
            raise InputError(
                f"{owner} of the model must have one name for each of its {lengths['G']} genes, positive scales and "
                f"totals and variances >= 0; found others ({len(genes)} names). Save the model again."
            )
        return cls(
            tuple(genes),
            normalization,
            numbers["target"],
            numbers["depth_ratio"],
            *(arrays[name] for name in ("abundance", "mean", "scale", "components", "variance")),
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(repr(str(name)) for name in list(names)[:3]) or "nothing"
