"""Which domains the sections consist of, and whether two conditions differ.

Spots of one section are not independent of each other: sections are, and only sections are permuted here.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations, pairwise
from math import comb

import anndata as ad
import numpy as np
import pandas as pd

from .. import keys
from ..errors import InputError, MissingKeyError
from ..runtime import check_seed
from ..slots import Labels, domains_of, graph_of, sections_of
from ..validation import check_number
from .neighborhood import contact_pairs, enrichment

__all__ = [
    "GroupDifference",
    "compare_conditions",
    "compare_groups",
    "composition",
    "contact_enrichment",
    "domain_composition",
]

_MIN_SECTIONS = 3
_MOST_EXACT = 20_000  # assignments of sections to groups that are all computed


@dataclass(frozen=True, eq=False)
class GroupDifference:
    """Difference between two groups of sections, for each of F quantities; arrays (F,), float64.

    Attributes
    ----------
    difference : ndarray
        Mean of the second group less that of the first.
    p : ndarray
        Share of the assignments of sections to groups, the observed one among them, whose difference is at least as
        large, in either direction. At most 5 % of null comparisons have p <= 0.05; fewer, where there are few sections.
    p_mid : ndarray
        The same with assignments of an equal difference counted half (Lancaster 1961), which is right on average.
    p_adjusted : ndarray
        p adjusted for F comparisons by the largest difference among them, in units of their standard deviations
        (Westfall and Young 1993): the probability of any such difference by chance.
    n_assignments : int
        Number of assignments compared.
    exact : bool
        They are all that exist, not a random sample.
    """

    difference: np.ndarray
    p: np.ndarray
    p_mid: np.ndarray
    p_adjusted: np.ndarray
    n_assignments: int
    exact: bool


# --- arrays ---------------------------------------------------------------------------------------


def composition(codes: np.ndarray, n_domains: int, sections: np.ndarray) -> np.ndarray:
    """Number of spots of every domain in every section: (n_sections, K) int64."""
    n_sections = int(sections.max()) + 1
    return np.bincount(sections * n_domains + codes, minlength=n_sections * n_domains).reshape(
        n_sections, n_domains
    )


def contact_enrichment(
    pairs: np.ndarray, codes: np.ndarray, n_domains: int, sections: np.ndarray
) -> np.ndarray:
    """log2 of observed to expected contacts of every pair of domains in every section.

    Parameters
    ----------
    pairs : ndarray of int, (2, n_pairs)
        Neighbors, see `amilst_lite.analysis.neighborhood.contact_pairs`.
    codes, sections : ndarray of int64, (n_spots,)
    n_domains : int
        K.

    Returns
    -------
    ndarray of float64, (n_sections, K (K + 1) / 2)
        The pairs as in ``numpy.triu_indices(K)``. Half a contact is added to both numbers, so that a pair of domains
        that a section does not contain is neither enriched nor depleted: 0.
    """
    upper = np.triu_indices(n_domains)
    own = np.argsort(sections, kind="stable")
    rank = np.empty_like(own)
    bounds = np.searchsorted(sections[own], np.arange(sections.max() + 2))
    rank[own] = np.arange(len(own)) - bounds[sections[own]]
    of_pair = sections[pairs[0]]
    rows = []
    for section, (start, stop) in enumerate(pairwise(bounds)):
        inside = rank[pairs[:, of_pair == section]]
        found = enrichment(inside, codes[own[start:stop]], n_domains, np.zeros(stop - start, np.int64))
        rows.append(np.log2((found.count[upper] + 0.5) / (found.expected[upper] + 0.5)))
    return np.stack(rows)


def compare_groups(
    values: np.ndarray, second: np.ndarray, *, n_permutations: int = 9999, seed: int = 0
) -> GroupDifference:
    """Compare two groups of sections by permuting sections.

    Parameters
    ----------
    values : ndarray of float64, (n_sections, F)
        One number per section for each of F quantities.
    second : ndarray of bool, (n_sections,)
        Sections of the second group.
    n_permutations : int
        Random assignments, where there are more than 20,000 in all; otherwise all are computed.
    seed : int
        Of the random assignments.

    Returns
    -------
    GroupDifference

    Raises
    ------
    InputError
        Fewer than 3 sections in a group.
    """
    check_number("n_permutations", n_permutations, 1, integer=True)
    n, n_second = len(second), int(second.sum())
    if min(n_second, n - n_second) < _MIN_SECTIONS:
        raise InputError(
            f"a comparison needs at least {_MIN_SECTIONS} sections in each group; found {n - n_second} and {n_second}. "
            "Spots are no replicates: add sections, or describe them without a test (domain_composition)."
        )
    exact = comb(n, n_second) <= _MOST_EXACT
    if exact:
        chosen = np.array(list(combinations(range(n), n_second)))
    else:
        rng = np.random.default_rng(check_seed(seed))
        order = np.argsort(rng.random((n_permutations, n)), axis=1)[:, :n_second]
        chosen = np.concatenate([np.flatnonzero(second)[None], order])
    assigned = np.zeros((len(chosen), n))
    np.put_along_axis(assigned, chosen, 1.0, axis=1)
    deviation = values.std(axis=0)
    scale = np.where(deviation > 1e-12 * np.abs(values).max(axis=0, initial=0), deviation, np.inf)
    scaled = (values - values.mean(axis=0)) / scale
    weights = assigned / n_second - (1 - assigned) / (n - n_second)  # mean of one less mean of the other
    every = np.abs(weights @ scaled)  # (assignments, F)
    observed = np.abs((second / n_second - ~second / (n - n_second)) @ scaled)
    margin = 1e-9  # equal differences must not differ by rounding
    larger, reached = (every > observed + margin).mean(axis=0), (every >= observed - margin).mean(axis=0)
    largest = every.max(axis=1)[:, None]
    return GroupDifference(
        difference=values[second].mean(axis=0) - values[~second].mean(axis=0),
        p=reached,
        p_mid=(larger + reached) / 2,
        p_adjusted=(largest >= observed - margin).mean(axis=0),
        n_assignments=len(chosen),
        exact=exact,
    )


# --- AnnData --------------------------------------------------------------------------------------


def domain_composition(
    adata: ad.AnnData,
    *,
    domain: str | None = None,
    sample_key: str | None = None,
    key_added: str = keys.DEFAULT_KEY,
) -> pd.DataFrame:
    """Spots of every domain in every section.

    Parameters
    ----------
    adata : AnnData
        With domains in ``obs``.
    domain : str, optional
        Column of ``obs`` with the domains. Default: that of the run ``key_added``.
    sample_key : str, optional
        Column of ``obs`` with the section of each spot. Default: that of the run.
    key_added : str
        Prefix of the slot written.

    Returns
    -------
    DataFrame
        Also written to ``uns["amilst_composition"]``: ``section``, ``domain``, ``n_spots`` and ``share`` of the
        section; one row for every section and domain.

    Raises
    ------
    MissingKeyError
        No such column.
    InputError
        Spots without a domain or section.
    """
    labels = domains_of(adata, key_added, domain)
    sections = sections_of(adata, key_added, sample_key)
    counts = composition(labels.codes, labels.n, sections.codes)
    table = pd.DataFrame(
        {
            "section": np.repeat(np.asarray(sections.names, dtype=object), labels.n),
            "domain": np.tile(np.asarray(labels.names, dtype=object), sections.n),
            "n_spots": counts.ravel(),
            "share": (counts / counts.sum(axis=1, keepdims=True)).ravel(),
        }
    )
    adata.uns[keys.ResultKeys(key_added).composition] = table
    return table


def compare_conditions(
    adata: ad.AnnData,
    condition_key: str,
    *,
    n_permutations: int = 9999,
    seed: int = 0,
    domain: str | None = None,
    connectivities_key: str | None = None,
    sample_key: str | None = None,
    key_added: str = keys.DEFAULT_KEY,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Compare composition and contacts of domains between two conditions, by permuting whole sections.

    Parameters
    ----------
    adata : AnnData
        Sections of two conditions, at least 3 of each, with common domains in ``obs`` and a neighbor graph in
        ``obsp``.
    condition_key : str
        Column of ``obs`` with the condition, one for all spots of a section.
    n_permutations : int
        Random assignments of sections to conditions, where there are more than 20,000; otherwise all are computed.
    seed : int
        Of the random assignments.
    domain, connectivities_key, sample_key, key_added
        As in `amilst_lite.analysis.neighborhood.neighborhood_enrichment`.

    Returns
    -------
    composition, contacts : DataFrame
        Also written to ``uns["amilst_comparison"]``, with ``conditions``, ``n_assignments`` and ``exact``.
        ``composition`` has one row per domain: ``domain``, ``first`` and ``second`` (mean share of the sections of
        either condition, in the order of the categories, else sorted), ``difference``, ``p``, ``p_mid``,
        ``p_adjusted`` (see `GroupDifference`). ``contacts`` has one row per pair of domains, ``domain`` and
        ``other``, with the same columns of log2 observed / expected contacts.

    Raises
    ------
    MissingKeyError
        No graph or no such column.
    InputError
        Not two conditions, a section with both or with none, or fewer than 3 sections of a condition.

    Notes
    -----
    With 4 + 4 sections there are 70 assignments, and as exchanging the conditions changes no difference in size, the
    smallest possible p is 1/35.
    """
    labels = domains_of(adata, key_added, domain, at_least=2)
    sections = sections_of(adata, key_added, sample_key)
    second, conditions = _conditions(adata, condition_key, sections)
    options = {"n_permutations": n_permutations, "seed": seed}
    counts = composition(labels.codes, labels.n, sections.codes)
    shares = counts / counts.sum(axis=1, keepdims=True)
    of_shares = compare_groups(shares, second, **options)  # refuses few sections before the graph is read
    pairs = contact_pairs(graph_of(adata, key_added, connectivities_key), sections.codes)
    ratios = contact_enrichment(pairs, labels.codes, labels.n, sections.codes)
    of_ratios = compare_groups(ratios, second, **options)
    names = np.asarray(labels.names, dtype=object)
    first_of_pair, second_of_pair = np.triu_indices(labels.n)
    tables = (
        _table({"domain": names}, shares, second, of_shares),
        _table({"domain": names[first_of_pair], "other": names[second_of_pair]}, ratios, second, of_ratios),
    )
    adata.uns[keys.ResultKeys(key_added).comparison] = {
        "composition": tables[0],
        "contacts": tables[1],
        "conditions": np.asarray(conditions, dtype=object),
        "condition_key": condition_key,
        "n_assignments": of_shares.n_assignments,
        "exact": of_shares.exact,
    }
    return tables


def _conditions(adata: ad.AnnData, condition_key: str, sections: Labels) -> tuple[np.ndarray, list[str]]:
    """Which sections belong to the second condition, and the names of both."""
    if condition_key not in adata.obs:
        raise MissingKeyError(
            f"obs has no column {condition_key!r}; it has {', '.join(map(repr, adata.obs.columns))}."
        )
    column = pd.Categorical(adata.obs[condition_key]).remove_unused_categories()
    if len(column.categories) != 2:
        raise InputError(
            f"obs[{condition_key!r}] must have two conditions; found {len(column.categories)} "
            f"({', '.join(map(str, column.categories[:5]))}). Select the sections of two of them."
        )
    codes = np.asarray(column.codes)
    low = np.full(sections.n, 2)
    high = np.full(sections.n, -1)
    np.minimum.at(low, sections.codes, codes)
    np.maximum.at(high, sections.codes, codes)
    unclear = np.flatnonzero((low != high) | (low < 0))
    if len(unclear):
        raise InputError(
            f"every section must have one condition in obs[{condition_key!r}]; section "
            f"{sections.names[unclear[0]]!r} has several or none. Check condition_key and sample_key."
        )
    return high == 1, [str(name) for name in column.categories]


def _table(
    names: dict[str, np.ndarray], values: np.ndarray, second: np.ndarray, found: GroupDifference
) -> pd.DataFrame:
    return pd.DataFrame(
        {
            **names,
            "first": values[~second].mean(axis=0),
            "second": values[second].mean(axis=0),
            "difference": found.difference,
            "p": found.p,
            "p_mid": found.p_mid,
            "p_adjusted": found.p_adjusted,
        }
    )
