"""Functions on AnnData that describe: scores of the domains, a summary of the input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

from . import io, keys, metrics
from .preprocess import CountRows
from .slots import (
    check_anndata,
    column_of,
    coordinates_of,
    counts_of,
    record_of,
    representation_of,
    run_of,
    sections_column,
)
from .spatial.neighbors import check_coordinates, typical_spacing

__all__ = ["describe", "score", "score_columns"]


def score(
    adata: ad.AnnData,
    annotation: str | None = None,
    *,
    domain: str = keys.ResultKeys().domain,
    sample_key: str | None = None,
) -> dict[str, Any]:
    """Agreement of the domains with an annotation, their spatial continuity, and the integration of sections.

    Parameters
    ----------
    adata : AnnData
        With domains in ``obs``.
    annotation : str, optional
        Column of ``obs`` with the annotation; spots without one are left out. If not given, the scores that
        need it are left out.
    domain : str
        Column of ``obs`` with the domains.
    sample_key : str, optional
        Column of ``obs`` with the section of each spot; continuity is computed within sections. Default: the
        column used by the run of `identify_domains` that wrote ``domain``, if there is one.

    Returns
    -------
    dict of str to float or dict
        ``ari``, ``nmi``, ``homogeneity``, ``completeness`` and ``n_scored`` (with an annotation);
        ``chaos``, ``pas`` (lower is better) and ``silhouette`` (higher is better); with two sections or more,
        ``integration``: the dict of `amilst_lite.metrics.integration_scores`, in the embedding of the run that
        wrote ``domain`` (``obsm["X_amilst"]`` if none did), without the scores that need it if there is none.

    Raises
    ------
    MissingKeyError
        A column or the coordinates are missing.
    InputError
        Fewer than two annotated spots; a spot without a section; an embedding with NaN.
    """
    return score_columns(adata, annotation, [domain], sample_key=sample_key)[0]


def score_columns(
    adata: ad.AnnData, annotation: str | None, domains: Sequence[str], *, sample_key: str | None = None
) -> list[dict[str, Any]]:
    """`score` of several columns of domains of one run, for which neighbors in the embedding are searched once."""
    check_anndata(adata)
    labelings = [column_of(adata, domain) for domain in domains]
    truth = None if annotation is None else column_of(adata, annotation)
    key_added = run_of(adata, domains[0])
    if sample_key is None and key_added is not None:
        sample_key = (record_of(adata, key_added) or {}).get("sample_key")
    sample = None if sample_key is None else sections_column(adata, sample_key)
    scores: list[dict[str, Any]] = [
        {} if truth is None else dict(metrics.agreement(truth, labels)) for labels in labelings
    ]
    compact = metrics.continuity_of_each(labelings, coordinates_of(adata), sample)
    for found, one in zip(scores, compact, strict=True):
        found |= one
    if sample is not None and pd.unique(sample).size > 1:
        embedding = keys.ResultKeys(key_added or keys.DEFAULT_KEY).embedding
        points = representation_of(adata, embedding) if embedding in adata.obsm else None
        integration = metrics.integration_scores_of_each(labelings, sample, points, truth)
        for found, one in zip(scores, integration, strict=True):
            found["integration"] = one
    return scores


def describe(adata: ad.AnnData) -> list[str]:
    """A summary of spots, genes, counts, coordinates and annotations, one line each."""
    check_anndata(adata)
    totals = CountRows(counts_of(adata)).totals()
    points = check_coordinates(coordinates_of(adata))
    extent = " × ".join(f"{length:g}" for length in np.ptp(points, axis=0))
    lines = [
        f"{adata.n_obs} spots × {adata.n_vars} genes",
        f"counts per spot: median {np.median(totals):g}, range {totals.min():g} to {totals.max():g}",
        (
            f"coordinates: {points.shape[1]}-D, extent {extent}, "
            f"median distance to the nearest spot {typical_spacing(points):g}"
        ),
    ]
    lines += io.input_lines(adata, typical_spacing(points))
    for name in adata.obs.columns:
        column = adata.obs[name]
        lines.append(f"obs[{name!r}]: {column.nunique()} values, {column.isna().sum()} missing")
    return lines
