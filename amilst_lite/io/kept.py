"""What a reader has returned, in a checkpoint: text of large sections takes minutes to read."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..checkpoint import Checkpoint

if TYPE_CHECKING:
    from anndata import AnnData


def read_once(read: Callable[[], AnnData], checkpoint: Checkpoint | None, name: str) -> AnnData:
    """What ``read`` returns, from the checkpoint if it is there.

    Parameters
    ----------
    read : callable
    checkpoint : Checkpoint, optional
        Its stamp identifies the files and the options.
    name : str
        Of the step.
    """
    return read() if checkpoint is None else checkpoint.stage(name, read, _parts, _assembled)


def _parts(adata: AnnData) -> dict[str, Any]:
    if adata.isbacked or adata.raw is not None or len(adata.obsp) or len(adata.varp):
        raise TypeError("only what is read from text is kept; other files are read again as fast")
    parts = {name: dict(getattr(adata, name)) for name in ("obsm", "varm", "layers", "uns")}
    parts["layers"].pop(None, None)  # X, since anndata 0.13
    return {"X": adata.X, "obs": adata.obs, "var": adata.var, **parts}


def _assembled(parts: dict[str, Any]) -> AnnData:
    from anndata import AnnData  # not at the top: it takes half a second to import

    return AnnData(**parts)
