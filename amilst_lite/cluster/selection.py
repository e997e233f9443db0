"""The number of domains, chosen by the stability of the labels on subsamples.

Likelihood criteria do not choose it: neighboring spots are not independent observations, so that BIC and
ICL keep improving with K on real tissue (they are reported all the same). Stability tells whether a
division is a property of the tissue or of the sample: fit on subsamples, label all spots, and compare the
labels (Lange et al. 2004) by mutual information adjusted for chance (Vinh et al. 2010).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import adjusted_mutual_info_score

from ..config import ClusterConfig
from ..errors import AmilstWarning, InputError
from ..runtime import spawn_seeds
from .mixture import GaussianMixture

__all__ = ["Selection", "select_n_domains"]

_SLACK = 0.03
"""Loss of stability accepted for a finer division: the coarsest ones are stable because they are coarse."""
_MAX_SPOTS = 20_000
"""Spots that are compared; of more, a random subset."""


@dataclass(frozen=True)
class Selection:
    """The chosen number of domains K and the evidence for it.

    Attributes
    ----------
    n_domains : int
        The largest K whose stability is within 0.03, or one standard error, of the best.
    runners_up : tuple of int
        At most three other K, the most stable first.
    table : DataFrame
        One row per K: ``n_domains``, ``stability`` (mean adjusted mutual information between pairs of
        subsamples, at most 1), ``stability_error`` (its standard error over subsamples), ``bic`` and
        ``icl`` (lower is better).
    """

    n_domains: int
    runners_up: tuple[int, ...]
    table: pd.DataFrame


def select_n_domains(
    embedding: np.ndarray,
    candidates: Sequence[int] = tuple(range(2, 16)),
    config: ClusterConfig | None = None,
    *,
    n_subsamples: int = 6,
    fraction: float = 0.8,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> Selection:
    """Choose the number of domains by the stability of the mixture's labels.

    Parameters
    ----------
    embedding : ndarray, (N, C), float32
        The values that are clustered, one row per spot.
    candidates : sequence of int
        The K to compare, each >= 2; those above a tenth of the number of spots are skipped.
    config : ClusterConfig
        Settings of the mixture; the defaults if None.
    n_subsamples : int
        Subsamples per K, >= 3.
    fraction : float
        Share of the spots in a subsample, in (0, 1).
    seed : int
        In [0, 2**32).
    device : str or torch.device
        Device of the mixtures.

    Returns
    -------
    Selection

    Raises
    ------
    InputError
        No candidate is usable, or an option is out of range.
    """
    config = ClusterConfig() if config is None else config
    if n_subsamples < 3 or not 0 < fraction < 1:
        raise InputError(
            f"Expected n_subsamples >= 3 and 0 < fraction < 1; found {n_subsamples} and {fraction}."
        )
    n_spots = len(embedding)
    usable = sorted({int(k) for k in candidates if 2 <= k <= max(2, n_spots // 10)})
    if not usable or n_spots < 20:
        raise InputError(
            f"Expected at least 20 spots and candidates from 2 to a tenth of the number of spots; found {n_spots} "
            f"spots and the candidates {list(candidates)}. Set the number of domains (--n-domains)."
        )
    rng = np.random.default_rng(seed)
    if n_spots > _MAX_SPOTS:
        embedding = embedding[np.sort(rng.choice(n_spots, _MAX_SPOTS, replace=False))]
    size = int(fraction * len(embedding))
    subsamples = [np.sort(rng.choice(len(embedding), size, replace=False)) for _ in range(n_subsamples)]
    fit_seeds = spawn_seeds(seed, n_subsamples + 1)

    rows = []
    for k in usable:
        with warnings.catch_warnings():
            # an empty component at one of the K shows in its stability
            warnings.simplefilter("ignore", AmilstWarning)
            whole = _mixture(k, config, fit_seeds[0], device).fit(embedding)
            labels = [
                _mixture(k, config, fit_seed, device).fit(embedding[chosen]).predict(embedding)
                for chosen, fit_seed in zip(subsamples, fit_seeds[1:], strict=True)
            ]
        agreement = np.zeros((n_subsamples, n_subsamples))
        for first, second in combinations(range(n_subsamples), 2):
            value = adjusted_mutual_info_score(labels[first], labels[second])
            agreement[first, second] = agreement[second, first] = value
        per_subsample = agreement.sum(1) / (n_subsamples - 1)
        bic = whole.bic(embedding)
        # ICL: BIC plus a penalty for uncertain assignments (Biernacki et al. 2000)
        certainty = np.log(np.maximum(whole.predict_proba(embedding).max(1), 1e-12)).sum()
        rows.append(
            {
                "n_domains": k,
                "stability": per_subsample.mean(),
                "stability_error": per_subsample.std(ddof=1) / np.sqrt(n_subsamples),
                "bic": bic,
                "icl": bic - 2.0 * certainty,
            }
        )
    table = pd.DataFrame(rows)
    best = table.loc[table["stability"].idxmax()]
    enough = best["stability"] - max(best["stability_error"], _SLACK)
    chosen = int(table.loc[table["stability"] >= enough, "n_domains"].max())
    others = table[table["n_domains"] != chosen].sort_values("stability", ascending=False, kind="stable")
    return Selection(chosen, tuple(int(k) for k in others["n_domains"].head(3)), table)


def _mixture(k: int, config: ClusterConfig, seed: int, device: str | torch.device) -> GaussianMixture:
    return GaussianMixture(
        k,
        covariance_type=config.covariance_type,
        n_init=max(1, config.n_init // 4),
        covariance_prior=config.covariance_prior,
        random_state=seed,
        device=device,
    )
