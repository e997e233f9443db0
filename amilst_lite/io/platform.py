"""What a reader declares about its platform: how its files are recognized and what they yield."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy import sparse

from .. import keys
from .files import examples

if TYPE_CHECKING:
    from anndata import AnnData

_log = logging.getLogger("amilst_lite")


@dataclass(frozen=True, kw_only=True)
class Platform:
    """A platform and its reader, as registered in `dispatch`.

    Attributes
    ----------
    name : str
        Value of ``platform=`` and ``--platform``, in lower case.
    title : str
        Name in messages and tables.
    files : str
        The files that are expected, for messages and for the table of inputs in README.md.
    read : callable
        ``read(path, **options)``, which returns the AnnData.
    recognizes : callable
        Whether an existing file or folder is of this platform. Looks at names and first bytes only, and
        raises nothing on files that cannot be read.
    options : tuple of str
        Keyword options that ``read`` accepts.
    unit : str
        Unit of the coordinates: "micrometer", "pixel", "spot" (grid positions) or "unknown" (as in the file).
    geometry : {"hexagonal", "square", "free"}
        Arrangement of the spots: a hexagonal grid (6 neighbors), a square grid (8, ties included), or any.
    needs_coordinates : bool
        The files hold counts only: a table of coordinates has to be given.
    """

    name: str
    title: str
    files: str
    read: Callable[..., AnnData]
    recognizes: Callable[[Path], bool]
    options: tuple[str, ...] = ()
    unit: str = "unknown"
    geometry: Literal["hexagonal", "square", "free"] = "free"
    needs_coordinates: bool = False

    def describe(
        self, adata: AnnData, path: Path, *, left_out: Mapping[str, int] | None = None, **details: str
    ) -> AnnData:
        """Store what is known about the input in ``uns["amilst_input"]``; log what was left out, and empty spots.

        Parameters
        ----------
        adata
            Changed in place.
        path
            The input, for the message.
        left_out
            What was left out → how many, such as ``{"control probes": 41}``; zeros are dropped.
        **details
            Replace or add entries, such as ``coordinate_unit`` or ``geometry`` where they depend on the file.

        Returns
        -------
        AnnData
            ``adata``.
        """
        counted = {what: int(count) for what, count in (left_out or {}).items() if count}
        adata.uns[keys.INPUT] = {
            "platform": self.name,
            "coordinate_unit": self.unit,
            "geometry": self.geometry,
            **details,
            "left_out": counted,
        }
        if counted:
            parts = ", ".join(f"{count} {what}" for what, count in counted.items())
            _log.info("%s (%s): left out %s", path, self.title, parts)
        if sparse.issparse(adata.X):
            empty = np.diff(adata.X.tocsr(copy=False).indptr) == 0
            if empty.any():
                _log.info(
                    "%s: %d of %d spots have no counts and are kept: %s",
                    path,
                    empty.sum(),
                    len(empty),
                    examples(adata.obs_names[empty], 8),
                )
        return adata
