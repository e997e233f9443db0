"""What is computed after the domains: markers, spatially variable genes, neighborhoods, composition, depth.

Every function takes an AnnData with domains in ``obs``, returns a table, and writes it into the slots named in
`amilst_lite.keys.ResultKeys`. The functions on arrays that they call are in the modules.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from typing import Any

import anndata as ad
import pandas as pd

from .. import keys
from ..errors import InputError
from ..progress import begin
from .composition import compare_conditions, domain_composition
from .connectivity import domain_connectivity, tissue_depth
from .embedding import umap
from .expression import denoise
from .markers import marker_genes
from .neighborhood import border_distances, domain_shapes, neighborhood_enrichment
from .spatially_variable import spatially_variable_genes

__all__ = [
    "ANALYSES",
    "CHEAP",
    "border_distances",
    "check",
    "compare_conditions",
    "denoise",
    "domain_composition",
    "domain_connectivity",
    "domain_shapes",
    "marker_genes",
    "neighborhood_enrichment",
    "run",
    "spatially_variable_genes",
    "tissue_depth",
    "umap",
]

ANALYSES: dict[str, Callable[..., Any]] = {
    "markers": marker_genes,
    "spatially-variable": spatially_variable_genes,
    "enrichment": neighborhood_enrichment,
    "border-distance": border_distances,
    "shapes": domain_shapes,
    "composition": domain_composition,
    "comparison": compare_conditions,
    "connectivity": domain_connectivity,
    "depth": tissue_depth,
}
"""Name of an analysis → the function on AnnData."""

CHEAP = ("markers", "enrichment", "shapes", "composition", "connectivity")
"""Analyses that take seconds for 1e5 spots and need nothing but the results of a run."""


def check(names: Sequence[str], options: Collection[str] = ()) -> None:
    """Refuse what `run` would refuse, before the data are read.

    Parameters
    ----------
    names, options
        As in `run`; of the options, their names.

    Raises
    ------
    InputError
    """
    unknown = [name for name in names if name not in ANALYSES]
    if unknown:
        raise InputError(
            f"there is no analysis {', '.join(map(repr, unknown))}; choose from {', '.join(ANALYSES)}."
        )
    accepted = set().union(*(inspect.signature(ANALYSES[name]).parameters for name in names))
    unused = set(options) - accepted
    if unused:
        raise InputError(
            f"no option {', '.join(map(repr, sorted(unused)))} of {', '.join(names) or 'no analysis'}; expected some "
            f"of {', '.join(sorted(accepted - {'adata', 'key_added'})) or 'none'}."
        )
    if "comparison" in names and "condition_key" not in options:
        raise InputError(
            "a comparison needs condition_key (--condition-key), the column of obs with the condition of each section."
        )


def run(
    adata: ad.AnnData,
    names: Sequence[str] = CHEAP,
    *,
    key_added: str = keys.DEFAULT_KEY,
    **options: Any,
) -> dict[str, pd.DataFrame]:
    """Run several analyses.

    Parameters
    ----------
    adata : AnnData
        With the results of `amilst_lite.identify_domains`, or other domains in ``obs``.
    names : sequence of str
        Names in `ANALYSES`.
    key_added : str
        Prefix of the slots read and written.
    **options
        Passed to every one of these analyses that has a parameter of that name.

    Returns
    -------
    dict of str to DataFrame
        Name of a table → the table. The tables have the names of the analyses, but the comparison of conditions has
        two: ``comparison-composition`` and ``comparison-contacts``. A table of spots or domains has them as its index.

    Raises
    ------
    InputError
        An unknown name, an option that none of the analyses has, or a comparison without ``condition_key``.
    """
    check(names, options)
    tables: dict[str, pd.DataFrame] = {}
    for name in names:
        begin(name)
        accepted = inspect.signature(ANALYSES[name]).parameters
        chosen = {option: value for option, value in options.items() if option in accepted}
        found = ANALYSES[name](adata, key_added=key_added, **chosen)
        if name == "comparison":
            tables["comparison-composition"], tables["comparison-contacts"] = found
        else:
            tables[name] = found
    return tables


def __dir__() -> list[str]:
    return __all__
