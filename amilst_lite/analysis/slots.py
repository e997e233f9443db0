"""What the analyses read from an AnnData: domains, sections, neighbor graph, coordinates, counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from .. import keys
from ..errors import InputError, MissingKeyError
from ..spatial.neighbors import section_codes, space_filling_order

__all__ = [
    "Labels",
    "coordinates_of",
    "counts_of",
    "domains_of",
    "graph_of",
    "order_of",
    "record_of",
    "sections_of",
]


@dataclass(frozen=True, eq=False)
class Labels:
    """One label for every spot.

    Attributes
    ----------
    codes : ndarray of int64, (n_spots,)
    names : list of str, length K
        In the order of the categories; no name is without spots.
    """

    codes: np.ndarray
    names: list[str]

    @property
    def n(self) -> int:
        """Number of different labels, K."""
        return len(self.names)


def domains_of(adata: ad.AnnData, key_added: str, domain: str | None, *, at_least: int = 1) -> Labels:
    """The column ``domain`` of ``obs``, by default the domains of the run ``key_added``.

    Raises
    ------
    MissingKeyError
        There is no such column.
    InputError
        A spot has no domain, or fewer than ``at_least`` domains have spots.
    """
    name = keys.ResultKeys(key_added).domain if domain is None else domain
    if name not in adata.obs:
        raise MissingKeyError(
            f"obs has no column {name!r}; it has {_names(adata.obs)}. Run identify_domains first, or name the "
            "column that holds the domains (domain)."
        )
    column = pd.Categorical(adata.obs[name]).remove_unused_categories()
    missing = int((column.codes < 0).sum())
    if missing:
        raise InputError(
            f"obs[{name!r}] has no value for {missing} of {adata.n_obs} spots. Drop these spots: "
            f"adata[adata.obs[{name!r}].notna()].copy()"
        )
    if len(column.categories) < at_least:
        raise InputError(
            f"obs[{name!r}] must have at least {at_least} domains; found {len(column.categories)}."
        )
    return Labels(column.codes.astype(np.int64), [str(category) for category in column.categories])


def sections_of(adata: ad.AnnData, key_added: str, sample_key: str | None) -> Labels:
    """The column ``sample_key``, by default that of the run ``key_added``; one section, if it had none.

    Raises
    ------
    MissingKeyError
        There is no such column.
    InputError
        A spot has no section.
    """
    if sample_key is None:
        sample_key = record_of(adata, key_added).get("sample_key")
    if sample_key is None:
        return Labels(np.zeros(adata.n_obs, np.int64), ["all"])
    if sample_key not in adata.obs:
        raise MissingKeyError(f"obs has no column {sample_key!r}; it has {_names(adata.obs)}.")
    codes, names = section_codes(adata.obs[sample_key].to_numpy(), adata.n_obs)
    return Labels(codes.astype(np.int64), [str(name) for name in names])


def graph_of(adata: ad.AnnData, key_added: str, connectivities_key: str | None) -> sparse.csr_matrix:
    """The neighbor graph in ``obsp``, by default that of the run ``key_added``, otherwise squidpy's.

    Raises
    ------
    MissingKeyError
        There is none.
    """
    if connectivities_key is None:
        connectivities_key = record_of(adata, key_added).get("connectivities_key", keys.CONNECTIVITIES)
    if connectivities_key not in adata.obsp:
        raise MissingKeyError(
            f"obsp has no neighbor graph {connectivities_key!r}; it has {_names(adata.obsp)}. Run "
            "identify_domains or squidpy.gr.spatial_neighbors first, or name the graph (connectivities_key)."
        )
    return sparse.csr_matrix(adata.obsp[connectivities_key])


def coordinates_of(adata: ad.AnnData) -> np.ndarray:
    """``obsm["spatial"]`` as a float64 array, (N, 2) or (N, 3).

    Raises
    ------
    MissingKeyError
        There is none.
    InputError
        Another shape, or not numeric.
    """
    if keys.SPATIAL not in adata.obsm:
        raise MissingKeyError(
            f'no coordinates: expected obsm["{keys.SPATIAL}"] (spots × 2 or 3); obsm has {_names(adata.obsm)}. '
            "Add them, or read the file with a table of coordinates (on the command line: --coordinates)."
        )
    try:
        coordinates = np.asarray(adata.obsm[keys.SPATIAL], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f'obsm["{keys.SPATIAL}"] must be a numeric array: {error}') from error
    if coordinates.ndim != 2 or coordinates.shape[1] not in (2, 3):
        raise InputError(f'obsm["{keys.SPATIAL}"] must have 2 or 3 columns; found shape {coordinates.shape}.')
    return coordinates


def order_of(adata: ad.AnnData, sections: np.ndarray) -> np.ndarray:
    """The spots, (n_spots,) int64, section by section along a curve through their coordinates, if there are any.

    Random numbers are dealt out in this order, so that results do not depend on that of the rows.
    """
    if keys.SPATIAL not in adata.obsm:
        return np.argsort(sections, kind="stable")
    along = space_filling_order(coordinates_of(adata))
    return along[np.argsort(sections[along], kind="stable")]


def counts_of(adata: ad.AnnData) -> Any:
    """``layers["counts"]`` if present, otherwise ``X``; not a copy.

    Raises
    ------
    MissingKeyError
        Neither is present.
    """
    counts = adata.layers.get(keys.COUNTS, adata.X)
    if counts is None:
        raise MissingKeyError(
            f'no counts: expected raw counts in layers["{keys.COUNTS}"] or X, found neither.'
        )
    return counts


def record_of(adata: ad.AnnData, key_added: str) -> dict[str, Any]:
    """``uns[key_added]`` as a dictionary; empty if there is none."""
    record = adata.uns.get(keys.ResultKeys(key_added).record)
    return dict(record) if isinstance(record, Mapping) else {}


def _names(mapping: Any) -> str:
    return ", ".join(map(repr, mapping)) or "nothing"
