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
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from scipy.special import logsumexp

from .cluster.starts import short_kmeans
from .metrics import normalized_mutual_info
from .runtime import make_generator, spawn_seeds

__all__ = ["METHODS", "SectionEffect", "section_effect"]

logger = logging.getLogger("amilst_lite")

METHODS = ("none", "center", "shift", "offsets")
"""Corrections, from none to the most flexible."""
_SLACK = 0.5
"""Nats a held-out spot by which a simpler correction may fall short of the best."""
_SHARE = 0.1
"""Share of the spherical covariance. The differences between corrections hardly depend on it."""
_COLUMNS = 15
"""Leading principal axes that the mixture describes; the shift is then estimated in all columns."""
_MOST_ROWS, _BLOCK = 20_000, 100
"""Spots used, in blocks of neighboring ones."""
_RESTARTS, _RESTARTS_OF_HALF, _KEPT, _STEPS = 24, 9, 4, (12, 50)
"""Restarts on all spots and on half of the blocks; how many of them continue; EM steps of all and of those."""
_PRIOR_SPOTS = 100.0
"""1/τ²: an offset is halved where a domain has this many spots in a section."""
_PRIOR_COMPOSITION = 5.0
"""Spots of the overall composition that are added to that of each section."""
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
        Subtracted from the features of every spot of a section; their mean over all spots is zero.
    offsets : ndarray of float32, (S, K, C), or None
        Subtracted in addition, weighted by the posteriors.
    strength : float
        Share of the total variance of the features that the shift and the offsets account for.
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
    def none(cls, n_sections: int, n_columns: int) -> SectionEffect:
        """Nothing is removed."""
        return cls("none", np.zeros((n_sections, n_columns), np.float32))

    def remove(self, features: np.ndarray, sections: np.ndarray) -> np.ndarray:
        """The features (N, C) without the effect of their sections (N,), float32; themselves if there is none."""
        if self.method == "none":
            return features
        corrected = features - self.shift[sections]
        if self.offsets is not None and self.mixture is not None:
            for start in range(0, len(features), _MOST_ROWS):
                rows = slice(start, start + _MOST_ROWS)
                posterior = self.mixture.posterior(features[rows], sections[rows]).astype(np.float32)
                corrected[rows] -= np.einsum("nk,nkc->nc", posterior, self.offsets[sections[rows]])
        return np.asarray(corrected, dtype=np.float32)


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
    n_sections = int(sections.max()) + 1
    nothing = SectionEffect.none(n_sections, features.shape[1])
    sizes = np.bincount(sections, minlength=n_sections)
    if n_sections < 2 or method == "none":
        return nothing
    if method == "auto" and sizes.min() < _LEAST_PER_SECTION:
        logger.info(
            "section effects are not corrected: the smallest section has %d spots, fewer than %d",
            sizes.min(), _LEAST_PER_SECTION,
        )  # fmt: skip
        return nothing
    chosen = _evenly_spaced_blocks(len(features))
    X, s = features[chosen].astype(np.float64), sections[chosen]
    n_components = max(1, min(n_domains or _OTHERWISE, len(X) // 4))
    axes = _Axes.of(X)
    fit_seed, *half_seeds = spawn_seeds(seed, 3)
    evidence: dict[str, float] = {}
    common: dict[str, float] = {}
    if method == "auto":
        compared: tuple[str, ...] = ("none", "center", "shift")
        evidence = dict.fromkeys(compared, 0.0)
        halves = np.arange(len(X)) // max(1, min(_BLOCK, len(X) // (4 * n_sections))) % 2
        Z = axes.rotate(X)
        common = dict.fromkeys(compared, 0.0)
        for half, half_seed in zip((0, 1), half_seeds, strict=True):
            used, rest = halves == half, halves != half
            for name in compared:
                fitted = _fit(Z[used], s[used], n_sections, n_components, name, half_seed, _RESTARTS_OF_HALF)
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
        return replace(nothing, log_likelihood=evidence, nmi=common)
    total = X.var(0).sum()
    if method == "center":
        shift = _section_means(features, sections, n_sections)
        strength = float((shift[s] ** 2).sum(1).mean() / total)
        return SectionEffect(method, shift.astype(np.float32), None, strength, evidence, common)
    fitted = _fit(axes.rotate(X), s, n_sections, n_components, "shift", fit_seed, _RESTARTS)
    if method == "offsets":  # continued from the shift, so that components keep their meaning
        fitted = _run(fitted, axes.rotate(X), s, _STEPS[1], offsets=True)
    posterior = np.exp(_normalized(fitted.log_joint(axes.rotate(X), s)))
    _, shift, offsets = _effects(X, s, posterior, n_sections, offsets=method == "offsets")
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


# --- the mixture ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Axes:
    """Leading principal axes of the features: mean (C,) and axes (C, d)."""

    mean: np.ndarray
    axes: np.ndarray

    @classmethod
    def of(cls, X: np.ndarray) -> _Axes:
        mean = X.mean(0)
        values, vectors = np.linalg.eigh(np.cov(X.T).reshape(X.shape[1], -1))
        kept = np.flatnonzero(values > 1e-7 * max(values[-1], 1e-300))[::-1][:_COLUMNS]
        return cls(mean, vectors[:, kept])

    def rotate(self, X: np.ndarray) -> np.ndarray:
        return np.asarray((X - self.mean) @ self.axes)


@dataclass(frozen=True)
class _Components:
    """Log composition (S, K), centers μ_k + δ_s + δ_sk (S, K, d), covariance (d, d), and the shift (S, d)."""

    log_composition: np.ndarray
    centers: np.ndarray
    covariance: np.ndarray
    shift: np.ndarray

    def log_joint(self, X: np.ndarray, sections: np.ndarray) -> np.ndarray:
        """log π_sk + log N(x | center_sk, Σ) for rows (n, d) of ``sections`` (n,): (n, K)."""
        factor = np.linalg.cholesky(np.linalg.inv(self.covariance))
        white = X @ factor
        constant = np.log(factor.diagonal()).sum() - 0.5 * X.shape[1] * np.log(2 * np.pi)
        joint = np.empty((len(X), self.centers.shape[1]))
        for section in np.unique(sections):
            rows = np.flatnonzero(sections == section)
            centers = self.centers[section] @ factor
            distance = (
                np.square(white[rows]).sum(1)[:, None]
                - 2 * white[rows] @ centers.T
                + np.square(centers).sum(1)
            )
            joint[rows] = self.log_composition[section] + constant - 0.5 * distance
        return joint


@dataclass(frozen=True)
class _Mixture:
    """The components together with the axes in which they are given."""

    axes: _Axes
    components: _Components

    def posterior(self, features: np.ndarray, sections: np.ndarray) -> np.ndarray:
        """(n, K); rows sum to one."""
        Z = self.axes.rotate(features.astype(np.float64))
        return np.asarray(np.exp(_normalized(self.components.log_joint(Z, sections))))


def _normalized(joint: np.ndarray) -> np.ndarray:
    return np.asarray(joint - logsumexp(joint, axis=1, keepdims=True))


def _fit(
    X: np.ndarray,
    sections: np.ndarray,
    n_sections: int,
    n_components: int,
    method: str,
    seed: int,
    n_restarts: int,
) -> _Components:
    """The best of several restarts of EM; the shift is zero for "none", the section's mean for "center"."""
    means = _section_means(X, sections, n_sections)
    start = np.zeros_like(means) if method == "none" else means
    centered = X - start[sections]
    deviation = np.where(centered.std(0) > 0, centered.std(0), 1.0)
    labels = short_kmeans(
        [centered / deviation**power for power in (0.0, 1.0, 0.5)],
        n_components, n_restarts, torch.device("cpu"), make_generator(seed),
    ).numpy()  # fmt: skip
    fixed = method != "shift"
    runs = []
    for row in labels:
        first = _maximize(X, sections, np.eye(n_components)[row], start, fixed=fixed)
        runs.append(_run(first, X, sections, _STEPS[0], fixed=fixed))
    scores = [logsumexp(each.log_joint(X, sections), axis=1).sum() for each in runs]
    kept = np.argsort(scores, kind="stable")[::-1][:_KEPT]
    finished = [_run(runs[place], X, sections, _STEPS[1], fixed=fixed) for place in kept]
    scores = [logsumexp(each.log_joint(X, sections), axis=1).sum() for each in finished]
    return finished[int(np.argmax(scores))]


def _run(
    components: _Components, X: np.ndarray, sections: np.ndarray, steps: int, *,
    fixed: bool = False, offsets: bool = False,
) -> _Components:  # fmt: skip
    """EM steps, until the log-likelihood rises by less than a millionth."""
    before = -np.inf
    for _ in range(steps):
        joint = components.log_joint(X, sections)
        norm = logsumexp(joint, axis=1)
        responsibilities = np.exp(joint - norm[:, None])
        components = _maximize(X, sections, responsibilities, components.shift, fixed=fixed, offsets=offsets)
        now = float(norm.sum())
        if abs(now - before) < 1e-6 * (1 + abs(now)):
            break
        before = now
    return components


def _maximize(
    X: np.ndarray, sections: np.ndarray, responsibilities: np.ndarray, shift: np.ndarray, *,
    fixed: bool, offsets: bool = False,
) -> _Components:  # fmt: skip
    n, d = X.shape
    n_sections = len(shift)
    means, moved, added = _effects(
        X, sections, responsibilities, n_sections, offsets=offsets, shift=shift, fixed=fixed
    )
    centers = means + moved[:, None]
    if added is not None:
        centers = centers + added
    counts = _counts(sections, responsibilities, n_sections)
    covariance = np.zeros((d, d))
    for section in range(n_sections):
        rows = np.flatnonzero(sections == section)
        cross = (responsibilities[rows].T @ X[rows]).T @ centers[section]
        weighted = (centers[section].T * counts[section]) @ centers[section]
        covariance += X[rows].T @ X[rows] - cross - cross.T + weighted
    if added is not None:  # the prior of the offsets is in units of Σ
        covariance += _PRIOR_SPOTS * np.einsum("skd,ske->de", added, added)
    covariance /= n
    sphere = np.trace(covariance) / d * np.eye(d)
    composition = counts + _PRIOR_COMPOSITION * counts.sum(0) / counts.sum()
    return _Components(
        np.log(composition / composition.sum(1, keepdims=True)),
        centers,
        (1 - _SHARE) * covariance + (_SHARE + 1e-6) * sphere,
        moved,
    )


def _effects(
    X: np.ndarray,
    sections: np.ndarray,
    responsibilities: np.ndarray,
    n_sections: int,
    *,
    offsets: bool,
    shift: np.ndarray | None = None,
    fixed: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Means μ_k (K, C), shift δ_s (S, C) and offsets δ_sk (S, K, C) given responsibilities (n, K).

    Alternates between the three, which share one least-squares problem; from the ``shift`` given, else from zero.
    """
    counts = _counts(sections, responsibilities, n_sections)
    sums = np.stack([responsibilities[sections == s].T @ X[sections == s] for s in range(n_sections)])
    moved = np.zeros((n_sections, X.shape[1])) if shift is None else shift
    added: np.ndarray | None = None
    for _ in range(5 if shift is not None else 50):
        effects = moved[:, None] if added is None else moved[:, None] + added
        means = (sums - counts[..., None] * effects).sum(0) / counts.sum(0)[:, None]
        rest = sums / counts[..., None] - means
        if not fixed:
            moved = (counts[..., None] * (rest if added is None else rest - added)).sum(1)
            moved = moved / counts.sum(1)[:, None]
            moved = moved - (counts.sum(1) / counts.sum()) @ moved
        if offsets:
            shrunk = (counts / (counts + _PRIOR_SPOTS))[..., None]
            added = shrunk * (rest - moved[:, None])
        elif fixed:
            break
    return means, moved, added


def _counts(sections: np.ndarray, responsibilities: np.ndarray, n_sections: int) -> np.ndarray:
    """Spots of each section and component, (S, K), never zero."""
    totals = [responsibilities[sections == section].sum(0) for section in range(n_sections)]
    return np.asarray(np.stack(totals) + 1e-9)


def _section_means(X: np.ndarray, sections: np.ndarray, n_sections: int) -> np.ndarray:
    """Mean of each section less the mean of all spots, (S, C) float64; zero for a section without spots."""
    means = np.zeros((n_sections, X.shape[1]))
    overall = X.mean(0, dtype=np.float64)
    for section in np.unique(sections):
        means[section] = X[sections == section].mean(0, dtype=np.float64) - overall
    return means


def _evenly_spaced_blocks(n: int) -> np.ndarray:
    """At most `_MOST_ROWS` rows in blocks of consecutive ones, evenly spaced."""
    if n <= _MOST_ROWS:
        return np.arange(n)
    starts = np.linspace(0, n - _BLOCK, _MOST_ROWS // _BLOCK).astype(np.int64)
    return np.unique(starts[:, None] + np.arange(_BLOCK))
