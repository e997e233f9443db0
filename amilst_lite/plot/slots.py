"""What the figures read from an AnnData: columns, sections, and the record of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeGuard

import pandas as pd

from .. import keys
from ..errors import InputError, MissingKeyError

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["is_anndata", "obs_column", "record_of", "recorded_sections", "some"]


def is_anndata(value: object) -> TypeGuard[AnnData]:
    """Whether a value is an AnnData, without an import of anndata."""
    return hasattr(value, "obs") and hasattr(value, "uns")


def record_of(adata: AnnData, key_added: str) -> Mapping[str, Any]:
    """Return what a run recorded in ``uns``.

    Raises
    ------
    MissingKeyError
        There are no results.
    """
    record = adata.uns.get(keys.ResultKeys(key_added).record)
    if not isinstance(record, Mapping):
        raise MissingKeyError(
            f"adata has no results under key_added={key_added!r}. Run identify_domains first."
        )
    return record


def recorded_sections(adata: AnnData, key: str, sample_key: str | None) -> pd.Series | None:
    """The column with the sections: the given one, else that of the run that wrote the column ``key``, if any."""
    if sample_key is None:
        run = key.removesuffix("_ordered").removesuffix("_refined").removesuffix("_domain")
        record = adata.uns.get(run)
        recorded = record.get("sample_key") if isinstance(record, Mapping) else None
        # None, "none", or the name of a column that was removed since
        return adata.obs[recorded] if isinstance(recorded, str) and recorded in adata.obs else None
    return obs_column(adata, sample_key)


def obs_column(adata: AnnData, key: str) -> pd.Series:
    """A column of ``obs``."""
    if not is_anndata(adata):
        raise InputError(f"expected an AnnData; found {type(adata).__name__}.")
    if key not in adata.obs:
        raise MissingKeyError(f"obs[{key!r}] is missing; found {some(adata.obs)}.")
    return adata.obs[key]


def some(names: Any) -> str:
    """Return the first names, for a message."""
    names = [str(name) for name in names]
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "") if names else "none"
