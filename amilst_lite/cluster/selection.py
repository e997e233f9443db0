"""How many domains? The number at which the labels come out the same on other spots.

A mixture's likelihood cannot say: neighbouring spots are no independent observations, so BIC and ICL
go on rising with K on real tissue (they are in the table all the same). What can be asked is whether a
number of domains is a property of the tissue or of the sample: fit on subsamples, label all spots, and
compare the labels (Lange et al. 2004; adjusted for chance by mutual information, Vinh et al. 2010).
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

# What stability may be given up for a finer division: the coarsest ones are stable for their coarseness.
_SLACK = 0.03
_MOST_SPOTS = 20_000  # spots compared; more would only cost time


@dataclass(frozen=True)
class Selection:
    """A choice of K and what it rests on.

    Attributes
    ----------
    n_domains : int
        The choice: the largest K whose stability is within 0.03, or one standard error, of the best.
    runners_up : tuple of int
        The other K, the most stable first, three at most.
    table : DataFrame
        One row a K: ``n_domains``, ``stability`` (mean adjusted mutual information between pairs of
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
        What will be clustered.
    candidates : sequence of int
        The K to try, each at least 2; those above a tenth of the spots are left out.
    config : ClusterConfig
        The mixture's settings.
    n_subsamples : int
        Fits for each K, at least 3.
    fraction : float
        Share of the spots in each, in (0, 1).
    seed : int
        Same seed, same table.
    device : str or torch.device
        Where the mixtures run.

    Raises
    ------
    InputError
        No candidate is left, or an option is out of range.
    """
    config = ClusterConfig() if config is None else config
    if n_subsamples < 3 or not 0 < fraction < 1:
        raise InputError(
            f"expected n_subsamples >= 3 and 0 < fraction < 1; found {n_subsamples} and {fraction}."
        )
    n_spots = len(embedding)
    usable = sorted({int(k) for k in candidates if 2 <= k <= max(2, n_spots // 10)})
    if not usable or n_spots < 20:
        raise InputError(
            f"expected numbers of domains from 2 to a tenth of the {n_spots} spots; found {list(candidates)}. "
            "Name the number of domains, or give more spots."
        )
    rng = np.random.default_rng(seed)
    if n_spots > _MOST_SPOTS:
        embedding = embedding[np.sort(rng.choice(n_spots, _MOST_SPOTS, replace=False))]
    size = int(fraction * len(embedding))
    subsamples = [np.sort(rng.choice(len(embedding), size, replace=False)) for _ in range(n_subsamples)]
    fit_seeds = spawn_seeds(seed, n_subsamples + 1)

    rows = []
    for k in usable:
        with warnings.catch_warnings():
            # an empty component at one K tried is no news; it shows in the stability
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
        # ICL: BIC with the entropy of the assignments against it (Biernacki et al. 2000)
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
