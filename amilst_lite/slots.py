"""What is read from and written to an AnnData: coordinates, counts, domains, sections, graph, results of a run."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from . import io, keys, plot
from .config import Config
from .errors import InputError, MissingKeyError
from .fitted_model import Prediction
from .spatial.neighbors import section_codes, space_filling_order

__all__ = [
    "Labels",
    "check_anndata",
    "check_not_a_view_on_disk",
    "check_slots",
    "column_of",
    "coordinates_of",
    "counts_of",
    "domains_of",
    "graph_of",
    "order_of",
    "record_of",
    "representation_of",
    "run_of",
    "sections_column",
    "sections_of",
    "writable",
    "write_run",
]


# --- reading ----------------------------------------------------------------------------


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
        sample_key = (record_of(adata, key_added) or {}).get("sample_key")
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
        connectivities_key = (record_of(adata, key_added) or {}).get(
            "connectivities_key", keys.CONNECTIVITIES
        )
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


def record_of(adata: ad.AnnData, key_added: str = keys.DEFAULT_KEY) -> dict[str, Any] | None:
    """``uns[key_added]`` if a run wrote it, otherwise None."""
    record = adata.uns.get(key_added)
    ours = isinstance(record, Mapping) and "amilst-lite" in _mapping(record.get("versions"))
    return dict(record) if ours else None


def run_of(adata: ad.AnnData, domain: str) -> str | None:
    """``key_added`` of the run that wrote the column ``domain``."""
    for key in adata.uns:
        if record_of(adata, key) is not None:
            names = keys.ResultKeys(key)
            if domain in (names.domain, names.refined):
                return key
    return None


def check_anndata(adata: Any) -> None:
    """Refuse what is not an AnnData, or one that is read lazily."""
    if not isinstance(adata, ad.AnnData):
        advice = f"adata = amilst_lite.read({str(adata)!r})" if isinstance(adata, str) else "amilst_lite.read"
        raise InputError(f"expected an AnnData, found {type(adata).__name__}. Read a file first: {advice}")
    io.refuse_lazy(adata)


def check_not_a_view_on_disk(adata: ad.AnnData) -> None:
    """Refuse a view of an AnnData on disk."""
    if adata.is_view and adata.isbacked:
        raise InputError(
            "adata is a view of an AnnData on disk, to which results cannot be added. Load it into memory "
            "(adata = adata.to_memory()) or write it to a file of its own (adata.copy(filename))."
        )


def representation_of(adata: ad.AnnData, key: str) -> np.ndarray:
    """``obsm[key]`` as a finite float32 array, (n_spots, n_columns)."""
    if key not in adata.obsm:
        raise MissingKeyError(f"obsm has no {key!r}; it has {_names(adata.obsm)}.")
    try:
        matrix = np.asarray(adata.obsm[key], dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise InputError(f"obsm[{key!r}] must be a dense numeric matrix: {error}") from error
    if matrix.ndim != 2 or matrix.shape[1] == 0:
        raise InputError(f"obsm[{key!r}] must have at least one column; found shape {matrix.shape}.")
    bad = int((~np.isfinite(matrix)).any(axis=1).sum())
    if bad:
        raise InputError(f"obsm[{key!r}] has NaN or infinite values in {bad} spots. Drop these spots.")
    return matrix


def column_of(adata: ad.AnnData, name: Hashable) -> pd.Series:
    """A column of ``obs``."""
    if name not in adata.obs:
        raise MissingKeyError(f"obs has no column {name!r}; it has {_names(adata.obs)}.")
    return adata.obs[name]


def sections_column(adata: ad.AnnData, sample_key: str) -> np.ndarray:
    """A column of ``obs`` that has a section for every spot, (n_spots,)."""
    column = column_of(adata, sample_key)
    if column.isna().any():
        raise InputError(
            f"obs[{sample_key!r}] has no section for {column.isna().sum()} spots. Fill in the section or drop them."
        )
    return column.to_numpy()


# --- writing ----------------------------------------------------------------------------


def check_slots(adata: ad.AnnData, names: keys.ResultKeys) -> None:
    """Refuse to overwrite anything but the results of an earlier run with the same key."""
    if record_of(adata, names.key_added) is not None:
        return
    taken = [
        f"{place}[{name!r}]"
        for place, slots in names.slots.items()
        for name in slots
        if name in getattr(adata, place)
    ]
    if taken:
        raise InputError(
            f"{', '.join(taken)} exists already and is not the result of an earlier run with "
            f"key_added={names.key_added!r}. Choose another key_added, or delete it."
        )


def write_run(
    adata: ad.AnnData,
    names: keys.ResultKeys,
    config: Config,
    result: Prediction,
    record: dict[str, Any],
    components: np.ndarray | None,
) -> None:
    """Replace the results of an earlier run with the same key by those of ``result``."""
    categories = [str(k + 1) for k in range(record["n_domains"])]
    connectivities, distances, neighbors = _graph_slots(adata, names)
    where = {"connectivities_key": connectivities, "distances_key": distances}
    parameters = {name: value for name, value in vars(config.graph).items() if value is not None}
    parameters |= {"coord_type": "generic", "written_by": names.key_added}
    results: dict[str, dict[str, Any]] = {
        "obs": {
            names.domain: pd.Categorical.from_codes(result.labels, categories=categories),
            names.refined: pd.Categorical.from_codes(result.refined_labels, categories=categories),
            names.confidence: result.confidence,
        },
        "obsm": {names.embedding: result.embedding, names.latent: result.latent},
        "obsp": {
            connectivities: result.graph.connectivities(),
            distances: result.graph.distance_matrix(),
        },
        "uns": {
            names.record: record | where,
            names.colors: plot.domain_colors(categories),
            names.refined_colors: plot.domain_colors(categories),
            neighbors: where | {"params": parameters},
        },
    }
    if components is not None:
        results["obsm"][names.pca] = components
    # analyses of earlier domains are no longer true
    for slots in (names.slots, names.analysis_slots):
        for place, group in slots.items():
            for name in group:
                if name in getattr(adata, place):
                    del getattr(adata, place)[name]
    for place, values in results.items():
        for name, value in values.items():
            getattr(adata, place)[name] = value


def _graph_slots(adata: ad.AnnData, names: keys.ResultKeys) -> tuple[str, str, str]:
    """squidpy's slots if they are free or from an earlier run with the same key, otherwise our own."""
    parameters = _mapping(_mapping(adata.uns.get(keys.NEIGHBORS)).get("params"))
    free = not ({keys.CONNECTIVITIES, keys.DISTANCES} & set(adata.obsp) or keys.NEIGHBORS in adata.uns)
    if free or parameters.get("written_by") == names.key_added:
        return keys.CONNECTIVITIES, keys.DISTANCES, keys.NEIGHBORS
    return names.connectivities, names.distances, names.neighbors


def writable(value: Any) -> Any:
    """``value`` without what an h5ad file cannot hold: None becomes "none", tuples become arrays."""
    if isinstance(value, dict):
        return {name: writable(item) for name, item in value.items()}
    if isinstance(value, tuple):
        return np.asarray(value)
    return "none" if value is None else value


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _names(mapping: Any) -> str:
    return ", ".join(map(repr, mapping)) or "nothing"
