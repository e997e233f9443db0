"""Every AnnData slot that amilst_lite reads or writes, in one place."""

from __future__ import annotations

from dataclasses import dataclass

SPATIAL = "spatial"
"""``obsm``: coordinates, n × 2 or n × 3. ``uns``: images and scale factors, as scanpy keeps them."""

COUNTS = "counts"
"""``layers``: raw counts, preferred to ``X`` when present."""

PCA = "X_pca"
"""``obsm``: principal components of the prepared expression."""

CONNECTIVITIES = "spatial_connectivities"
"""``obsp``: squidpy's slot for the neighbour graph, ones."""

DISTANCES = "spatial_distances"
"""``obsp``: squidpy's slot for the lengths of the edges."""

NEIGHBORS = "spatial_neighbors"
"""``uns``: squidpy's slot for how the graph was made."""

DEFAULT_KEY = "amilst"


@dataclass(frozen=True)
class ResultKeys:
    """Names of the slots written by one run, all derived from ``key_added``."""

    key_added: str = DEFAULT_KEY

    @property
    def embedding(self) -> str:
        """``obsm``: the latent representation, float32."""
        return f"X_{self.key_added}"

    @property
    def domain(self) -> str:
        """``obs``: categorical "1".."K"."""
        return f"{self.key_added}_domain"

    @property
    def refined(self) -> str:
        """``obs``: the domains after a majority vote among spatial neighbours."""
        return f"{self.key_added}_domain_refined"

    @property
    def confidence(self) -> str:
        """``obs``: probability of the spot's own domain, in [0, 1]."""
        return f"{self.key_added}_confidence"

    @property
    def record(self) -> str:
        """``uns``: configuration, seed, device, versions, losses."""
        return self.key_added
