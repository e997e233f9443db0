"""Section effects: how expression differs between sections for technical reasons, estimated and removed.

A section effect is a shift δ_s of the features of all spots of section s. The mean of a section is a poor estimate
of it where sections hold different domains: a section without white matter would be moved towards white matter. So
the shift is estimated together with the domains, by a mixture x_i ~ Σ_k π_sk N(μ_k + δ_s, Σ) with means and
covariance in common: spots of the same component are compared. Where a section has few spots, or the components
follow the sections, the mean is the better estimate. Which it is, and whether to correct at all, is decided by the
likelihood of held-out blocks of spots, each evaluated with the shift and the mixture of the other blocks. It cannot
decide alone: a mixture whose components are the sections describes them as well as one that corrects their effect.
So leaving features as they are is not considered where the components would follow the sections.

``offsets`` adds an offset for each domain of each section, δ_sk ~ N(0, τ² Σ), shrunk to zero by the number of spots:
δ_sk = n_sk / (n_sk + 1/τ²) · (mean_sk − μ_k − δ_s); a closed form of what Harmony does (Korsunsky et al. 2019). It is
not chosen by itself: it can turn one domain into another, which the likelihood of held-out spots does not show.

A section that comes after training is compared with the domains found in training, whose means μ_k and covariance Σ
stay as they are: only its shift and its composition are estimated, see `SectionReference`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.special import logsumexp

from .cluster.averaging import PrincipalAxes
from .cluster.blocks import block_threads
from .cluster.shifted import Components, Spots, effects, em, log_composition, maximize, summed
from .cluster.starts import short_kmeans
from .distributed import alone, ranks
from .errors import InputError
from .metrics import normalized_mutual_info
from .runtime import make_generator, spawn_seeds
from .validation import check_model_arrays

__all__ = ["METHODS", "SectionEffect", "SectionReference", "section_effect"]

logger = logging.getLogger("amilst_lite")

METHODS = ("none", "center", "shift", "offsets")
"""Corrections, from none to the most flexible."""
_SLACK = 0.5
"""Nats a held-out spot by which a simpler correction may fall short of the best."""
_COLUMNS = 15
"""Leading principal axes that the mixture describes; the shift is then estimated in all columns."""
_MOST_ROWS, _BLOCK = 20_000, 100
"""Spots used, in blocks of neighboring ones."""
_RESTARTS, _RESTARTS_OF_HALF, _KEPT, _STEPS = 24, 9, 4, (12, 50)
"""Restarts on all spots and on half of the blocks; how many of them continue; EM steps of all and of those."""
_STEPS_OF_NEW = 200
"""EM steps for the shift of a new section."""
_OTHERWISE = 8
"""Components where the number of domains is not known yet."""
_FOLLOWS = 0.5
"""Normalized mutual information with the sections above which components follow them."""
_LEAST_PER_SECTION = 20
"""Spots of the smallest section from which a correction is considered."""


@dataclass(frozen=True)
class SectionEffect:
    """What was removed from each section, and why.

    Attributes
    ----------
    method : str
        One of `METHODS`.
    shift : ndarray of float32, (S, C)
        Subtracted from the features of every spot of a section. Their mean over all spots of training is zero;
        those of new sections are relative to the features of training after correction.
    offsets : ndarray of float32, (S, K, C), or None
        Subtracted in addition, weighted by the posteriors.
    strength : float
        Share of the total variance of the features that the shift and the offsets account for; for new sections,
        of their mean squared distance from the mean of training.
    log_likelihood : dict of str to float
        Mean log-likelihood (natural logarithm) of held-out spots with each correction that was compared.
    nmi : dict of str to float
        Normalized mutual information of the components of these spots and the sections.
    mixture : _Mixture or None
        The components behind the offsets.
    """

    method: str
    shift: np.ndarray
    offsets: np.ndarray | None = None
    strength: float = 0.0
    log_likelihood: dict[str, float] = field(default_factory=dict)
    nmi: dict[str, float] = field(default_factory=dict)
    mixture: _Mixture | None = field(default=None, repr=False)

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> SectionEffect:
        """The effect of which a `Checkpoint` has kept the fields."""
        mixture = fields["mixture"]
        if mixture is not None:
            mixture = _Mixture(PrincipalAxes(**mixture["axes"]), Components(**mixture["components"]))
        return cls(**{**fields, "mixture": mixture})

    @classmethod
    def none(cls, n_sections: int, n_columns: int) -> SectionEffect:
        """Nothing is removed."""
        return cls("none", np.zeros((n_sections, n_columns), np.float32))

    def remove(self, features: np.ndarray, sections: np.ndarray) -> np.ndarray:
        """The features (N, C) without the effect of their sections (N,), float32; themselves if there is none."""
        if self.method == "none":
            return features
        corrected = np.empty(features.shape, np.float32)
        for start in range(0, len(features), _MOST_ROWS):
            rows = slice(start, start + _MOST_ROWS)
            corrected[rows] = features[rows] - self.shift[sections[rows]]
            if self.offsets is not None and self.mixture is not None:
                posterior = self.mixture.posterior(features[rows], sections[rows]).astype(np.float32)
                corrected[rows] -= np.einsum("nk,nkc->nc", posterior, self.offsets[sections[rows]])
        return corrected


@dataclass(frozen=True)
class SectionReference:
    """The domains of training, with which new sections are compared.

    The features of domain k are N(μ_k, Σ) on the leading principal axes, after the correction of section effects.

    Attributes
    ----------
    axes : PrincipalAxes
        d axes of the features; their mean is that of all spots of training.
    domain_means : ndarray of float64, (K, C)
        In all columns; on the axes, they are the μ_k.
    covariance : ndarray of float64, (d, d)
        Σ, a tenth of it spherical.
    log_composition : ndarray of float64, (K,)
        Logarithm of the shares of the domains.
    """

    axes: PrincipalAxes
    domain_means: np.ndarray
    covariance: np.ndarray
    log_composition: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray, probabilities: np.ndarray) -> SectionReference:
        """The M step of a mixture with these posteriors.

        Parameters
        ----------
        features : ndarray, (N, C), float32
            Without the effects of their sections, in the order of `section_effect`. Of more than 20,000 spots,
            evenly spaced blocks are used.
        probabilities : ndarray, (N, K)
            Of the domains.

        Raises
        ------
        InputError
            Features and probabilities differ in the number of rows, or all spots have the same features.
        """
        if np.ndim(features) != 2 or np.ndim(probabilities) != 2 or len(features) != len(probabilities):
            raise InputError(
                "features and probabilities must be matrices with one row per spot; found shapes "
                f"{np.shape(features)} and {np.shape(probabilities)}."
            )
        group = ranks()
        n = group.sum(len(features))
        chosen = _evenly_spaced_blocks(n)
        X, weights = (group.take(array, chosen).astype(np.float64) for array in (features, probabilities))
        mean = group.sum(features.sum(0, dtype=np.float64)) / n
        with alone():
            axes = replace(PrincipalAxes.of(X, most=_COLUMNS), mean=mean)
        n_axes = axes.axes.shape[1]
        if n_axes == 0:
            raise InputError("all spots have the same features: there is nothing that distinguishes domains.")
        Z, section = axes.rotate(X), np.zeros(len(X), dtype=np.int64)
        fitted = maximize(*summed(Z, section, weights, 1), np.zeros((1, n_axes)), scatter=Z.T @ Z, fixed=True)
        domain_means, _, _ = effects(*summed(X, section, weights, 1), fixed=True)
        return cls(axes, domain_means, fitted.covariance, fitted.log_composition[0])

    def effect(self, features: np.ndarray, sections: np.ndarray, method: str = "auto") -> SectionEffect:
        """Estimate the effects of new sections; those of one section do not depend on the others.

        Parameters
        ----------
        features : ndarray, (N, C), float32
            As in training before the correction, in an order in which neighbors in space are near each other.
            Of more than 20,000 spots of a section, evenly spaced blocks are used.
        sections : ndarray of int, (N,)
            0..S-1.
        method : str
            ``"none"``: zero. ``"center"``: the mean of the section less that of training. ``"shift"``: EM with
            the domains as they are, in which the shift and the composition of the section are estimated, from
            no shift and from the centered one; the better likelihood counts. ``"offsets"``: the same as
            ``"shift"``, because offsets of domains would be estimated from labels that are not known yet.
            ``"auto"``, for models of one section, which hold no evidence of section effects: the shift, where it
            raises the mean log-likelihood of held-out blocks of the section by more than 0.5 nats, else zero.

        Returns
        -------
        SectionEffect
            Its method is ``"none"`` where no section is corrected. Sections of fewer than 20 spots are not.

        Raises
        ------
        InputError
            An unknown method, no rows, another number of columns than in training, or another number of sections
            than of rows.
        """
        if method not in ("auto", *METHODS):
            raise InputError(f"method must be one of {', '.join(('auto', *METHODS))}; found {method!r}.")
        shape, n_columns = np.shape(features), len(self.axes.mean)
        if len(shape) != 2 or shape[0] == 0 or shape[1] != n_columns or np.shape(sections) != shape[:1]:
            raise InputError(
                f"expected rows of {n_columns} features, as in training, and the section of each; found shapes "
                f"{shape} and {np.shape(sections)}."
            )
        n_sections = int(sections.max()) + 1
        if method == "none":
            return SectionEffect.none(n_sections, n_columns)
        shift = np.zeros((n_sections, n_columns))
        sizes = np.bincount(sections, minlength=n_sections)
        considered = np.flatnonzero(sizes >= _LEAST_PER_SECTION)
        corrected = np.zeros(n_sections, dtype=bool)
        evidence: dict[str, float] = {}
        squares = 0.0
        with block_threads():
            for section in considered:
                rows = np.flatnonzero(sections == section)
                X = features[rows[_evenly_spaced_blocks(len(rows))]].astype(np.float64)
                squares += sizes[section] * float(np.square(X - self.axes.mean).sum(1).mean())
                if method == "center":
                    shift[section] = features[rows].mean(0, dtype=np.float64) - self.axes.mean
                    corrected[section] = True
                    continue
                Z = self.axes.rotate(X)
                if method == "auto":
                    found = self._held_out(Z)
                    logger.info(
                        "section %d: log-likelihood of held-out spots %.2f without a correction, %.2f with a shift",
                        section, found["none"], found["shift"],
                    )  # fmt: skip
                    for name, value in found.items():
                        evidence[name] = evidence.get(name, 0.0) + value * sizes[section]
                    if found["shift"] <= found["none"] + _SLACK:
                        continue
                composition = self._fit(Spots(Z, np.zeros(len(Z), dtype=np.int64), 1))[1]
                shift[section] = X.mean(0) - composition @ self.domain_means
                corrected[section] = True
        return SectionEffect(
            ("center" if method == "center" else "shift") if corrected.any() else "none",
            shift.astype(np.float32),
            None,
            float((sizes @ np.square(shift).sum(1)) / squares) if squares > 0 else 0.0,
            {name: float(value / sizes[considered].sum()) for name, value in evidence.items()},
        )

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The state as arrays, from which `from_arrays` makes an equal reference."""
        return {
            "mean": self.axes.mean,
            "axes": self.axes.axes,
            "domain_means": self.domain_means,
            "covariance": self.covariance,
            "log_composition": self.log_composition,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> SectionReference:
        """The reference of `to_arrays`.

        Raises
        ------
        InputError
            Names or shapes are not those of a reference, or values are out of range.
        """
        owner = "the section reference"
        shapes = {
            "mean": "C",
            "axes": "C d",
            "domain_means": "K C",
            "covariance": "d d",
            "log_composition": "K",
        }
        check_model_arrays(arrays, shapes, owner)
        covariance = arrays["covariance"]
        symmetric = np.allclose(covariance, covariance.T, rtol=1e-6, atol=0)
        if not symmetric or np.linalg.eigvalsh(covariance)[0] <= 0:
            raise InputError(
                f"{owner} of the model must have a symmetric covariance with eigenvalues > 0; found another. "
                "Save the model again."
            )
        total = float(np.exp(np.minimum(arrays["log_composition"], 1.0)).sum())
        if abs(total - 1) > 1e-5:
            raise InputError(
                f"{owner} of the model must have shares of domains that sum to one; found {total:g}. "
                "Save the model again."
            )
        axes = PrincipalAxes(arrays["mean"], arrays["axes"])
        return cls(axes, arrays["domain_means"], covariance, arrays["log_composition"])

    def _held_out(self, Z: np.ndarray) -> dict[str, float]:
        """Mean log-likelihood of every other block of the section (n, d), with no shift and with that of the rest."""
        evidence = {"none": 0.0, "shift": 0.0}
        halves = _halves(len(Z), 4)
        parts = [
            Spots(rows, np.zeros(len(rows), dtype=np.int64), 1) for rows in (Z[halves == 0], Z[halves == 1])
        ]
        for used, rest in (parts, parts[::-1]):
            for name in evidence:
                fitted, _ = self._fit(used, shifted=name == "shift")
                evidence[name] += float(rest.expect(fitted)[2][0]) / len(Z)
        return evidence

    def _fit(self, spots: Spots, *, shifted: bool = True) -> tuple[Components, np.ndarray]:
        """Shift and composition of one section, the composition alone if not ``shifted``; and the latter, (K,)."""
        means, overall = self.axes.rotate(self.domain_means), np.exp(self.log_composition)

        def shifted_by(shift: np.ndarray, log_shares: np.ndarray) -> Components:
            covariance = np.broadcast_to(self.covariance, (len(shift), *self.covariance.shape))
            return Components(log_shares, means + shift[:, :, None], covariance, shift)

        def step(counts: np.ndarray, sums: np.ndarray, shift: np.ndarray) -> Components:
            if shifted:
                shift = (sums.sum(2) - counts @ means) / spots.n
            return shifted_by(shift, log_composition(counts, overall))

        starts = np.zeros((1 + shifted, 1, spots.d))
        starts[1:] = spots.mean
        fits = shifted_by(starts, np.tile(self.log_composition, (len(starts), 1, 1)))
        fits = em(spots, fits, step, _STEPS_OF_NEW, tol=1e-7)
        counts, _, log_likelihood = spots.expect(fits)
        best = int(log_likelihood.argmax())
        return fits[[best]], counts[best, 0] / spots.n


def section_effect(
    features: np.ndarray,
    sections: np.ndarray,
    n_domains: int | None = None,
    *,
    method: str = "auto",
    seed: int = 0,
) -> SectionEffect:
    """Estimate the section effect.

    Parameters
    ----------
    features : ndarray, (N, C), float32
        In an order in which neighbors in space are near each other (``SpatialGraph.order``).
    sections : ndarray of int, (N,)
        0..S-1.
    n_domains : int, optional
        Components of the mixture; 8 if not given.
    method : str
        ``"auto"``: none, center or shift, the simplest within 0.5 nats a spot of the best likelihood of held-out
        blocks; not none if the components would follow the sections. Or one of `METHODS`.
    seed : int
        In [0, 2**32).

    Returns
    -------
    SectionEffect
    """
    group = ranks()
    n_sections = group.largest(int(sections.max()) + 1)
    sizes = group.sum(np.bincount(sections, minlength=n_sections))
    nothing = SectionEffect.none(n_sections, features.shape[1])
    if n_sections < 2 or method == "none":
        return nothing
    if method == "auto" and sizes.min() < _LEAST_PER_SECTION:
        logger.info(
            "section effects are not corrected: the smallest section has %d spots, fewer than %d",
            sizes.min(), _LEAST_PER_SECTION,
        )  # fmt: skip
        return nothing
    with block_threads():
        return _estimate(features, sections, n_domains, method, seed)


def _estimate(
    features: np.ndarray, sections: np.ndarray, n_domains: int | None, method: str, seed: int
) -> SectionEffect:
    """`section_effect` of two or more sections."""
    group = ranks()
    n_sections = group.largest(int(sections.max()) + 1)
    chosen = _evenly_spaced_blocks(group.sum(len(features)))
    X, s = group.take(features, chosen).astype(np.float64), group.take(sections, chosen)
    centers = _section_means(features, sections, n_sections)
    with alone():  # every rank holds the sample
        return _estimate_from_sample(X, s, centers, n_domains, method, seed)


def _estimate_from_sample(
    X: np.ndarray, s: np.ndarray, centers: np.ndarray, n_domains: int | None, method: str, seed: int
) -> SectionEffect:
    """From spots X (n, C) of the sections s (n,), and the means (S, C) of the sections."""
    n_sections = len(centers)
    n_components = max(1, min(n_domains or _OTHERWISE, len(X) // 4))
    axes = PrincipalAxes.of(X, most=_COLUMNS)
    Z = axes.rotate(X)
    fit_seed, *half_seeds = spawn_seeds(seed, 3)
    evidence: dict[str, float] = {}
    common: dict[str, float] = {}
    if method == "auto":
        compared: tuple[str, ...] = ("none", "center", "shift")
        evidence = dict.fromkeys(compared, 0.0)
        common = dict.fromkeys(compared, 0.0)
        halves = _halves(len(X), 4 * n_sections)
        for half, half_seed in zip((0, 1), half_seeds, strict=True):
            used, rest = halves == half, halves != half
            spots = Spots(Z[used], s[used], n_sections)
            means = _section_means(Z[used], s[used], n_sections)
            for start, names in ((np.zeros_like(means), ("none",)), (means, ("center", "shift"))):
                labels = _starts(Z[used] - start[s[used]], n_components, _RESTARTS_OF_HALF, half_seed)
                for name in names:
                    fitted = _fit(spots, labels, n_components, start, fixed=name != "shift")
                    joint = fitted.log_joint(Z[rest], s[rest])
                    evidence[name] += float(logsumexp(joint, axis=1).sum()) / len(X)
                    common[name] += normalized_mutual_info(s[rest], joint.argmax(1)) / 2
        if common["none"] > _FOLLOWS:
            compared = compared[1:]
        best = max(evidence[name] for name in compared)
        method = next(name for name in compared if evidence[name] >= best - _SLACK)
        logger.info(
            "section effects: %s (log-likelihood of held-out spots, mutual information with the sections: %s)",
            method, ", ".join(f"{name} {value:.2f}, {common[name]:.2f}" for name, value in evidence.items()),
        )  # fmt: skip
    if method == "none":
        nothing = SectionEffect.none(n_sections, X.shape[1])
        return replace(nothing, log_likelihood=evidence, nmi=common)
    total = X.var(0).sum()
    if method == "center":
        strength = float((centers[s] ** 2).sum(1).mean() / total)
        return SectionEffect(method, centers.astype(np.float32), None, strength, evidence, common)
    spots, means = Spots(Z, s, n_sections), _section_means(Z, s, n_sections)
    labels = _starts(Z - means[s], n_components, _RESTARTS, fit_seed)
    fitted = _fit(spots, labels, n_components, means, fixed=False)
    if method == "offsets":  # continued from the shift, so that components keep their meaning
        step = partial(maximize, scatter=spots.scatter, fixed=False, offsets=True)
        fitted = em(spots, fitted[None], step, _STEPS[1])[0]
    posterior = fitted.posterior(Z, s)
    _, shift, offsets = effects(*summed(X, s, posterior, n_sections), offsets=method == "offsets")
    removed = shift[s] if offsets is None else shift[s] + np.einsum("nk,nkc->nc", posterior, offsets[s])
    return SectionEffect(
        method,
        shift.astype(np.float32),
        None if offsets is None else offsets.astype(np.float32),
        float((removed**2).sum(1).mean() / total),
        evidence,
        common,
        None if offsets is None else _Mixture(axes, fitted),
    )


@dataclass(frozen=True)
class _Mixture:
    """The components together with the axes in which they are given."""

    axes: PrincipalAxes
    components: Components

    def posterior(self, features: np.ndarray, sections: np.ndarray) -> np.ndarray:
        """(n, K); rows sum to one."""
        return self.components.posterior(self.axes.rotate(features), sections)


def _starts(X: np.ndarray, n_components: int, n_restarts: int, seed: int) -> torch.Tensor:
    """Labels from which EM starts, of rows (n, d) less the section effect: (n_restarts, n)."""
    deviation = np.where(X.std(0) > 0, X.std(0), 1.0)
    spaces = [X / deviation**power for power in (0.0, 1.0, 0.5)]
    return short_kmeans(spaces, n_components, n_restarts, torch.device("cpu"), make_generator(seed))


def _fit(
    spots: Spots, labels: torch.Tensor, n_components: int, shift: np.ndarray, *, fixed: bool
) -> Components:
    """The best mixture of several restarts of EM, from ``labels`` (R, n); the ``shift`` (S, d) stays if ``fixed``."""
    step = partial(maximize, scatter=spots.scatter, fixed=fixed)
    fits = step(*spots.of_labels(labels, n_components), np.tile(shift, (len(labels), 1, 1)))
    for steps, kept in zip(_STEPS, (_KEPT, 1), strict=True):
        fits = em(spots, fits, step, steps)
        log_likelihood = spots.expect(fits)[2]
        fits = fits[np.argsort(-log_likelihood, kind="stable")[:kept]]
    return fits[0]


def _section_means(X: np.ndarray, sections: np.ndarray, n_sections: int) -> np.ndarray:
    """Mean of each section less the mean of all spots, (S, C) float64; zero for a section without spots."""
    group = ranks()
    sums = np.zeros((n_sections, X.shape[1]))
    for section in np.unique(sections):
        sums[section] = X[sections == section].sum(0, dtype=np.float64)
    sums = group.sum(sums)
    sizes = group.sum(np.bincount(sections, minlength=n_sections))
    overall = group.sum(X.sum(0, dtype=np.float64)) / sizes.sum()
    means = sums / np.maximum(sizes, 1)[:, None] - overall
    means[sizes == 0] = 0
    return means


def _halves(n: int, least_blocks: int) -> np.ndarray:
    """0 or 1 for each of n rows, alternating between blocks of at most `_BLOCK` rows."""
    return np.arange(n) // max(1, min(_BLOCK, n // least_blocks)) % 2


def _evenly_spaced_blocks(n: int) -> np.ndarray:
    """At most `_MOST_ROWS` rows in blocks of consecutive ones, evenly spaced."""
    if n <= _MOST_ROWS:
        return np.arange(n)
    starts = np.linspace(0, n - _BLOCK, _MOST_ROWS // _BLOCK).astype(np.int64)
    return np.unique(starts[:, None] + np.arange(_BLOCK))
