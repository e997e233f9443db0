"""Every AnnData slot that amilst_lite reads or writes."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import InputError

SPATIAL = "spatial"
"""``obsm``: coordinates, (N, 2) or (N, 3). ``uns``: images and scale factors, in scanpy's format."""

COUNTS = "counts"
"""``layers``: raw counts; preferred to ``X`` if present."""

CONNECTIVITIES = "spatial_connectivities"
"""``obsp``: squidpy's slot for the adjacency matrix of the neighbor graph."""

DISTANCES = "spatial_distances"
"""``obsp``: squidpy's slot for the edge lengths."""

NEIGHBORS = "spatial_neighbors"
"""``uns``: squidpy's slot for the parameters of the neighbor graph."""

INPUT = "amilst_input"
"""``uns``: what the readers know about the input: platform, coordinate unit, geometry, what was left out."""

DEFAULT_KEY = "amilst"


@dataclass(frozen=True)
class ResultKeys:
    """Names of the slots written by one run, all derived from ``key_added``.

    Raises
    ------
    InputError
        ``key_added`` is not a non-empty string, contains a slash (a separator in HDF5 files), or is
        ``"spatial"``, whose slots belong to scanpy and squidpy.
    """

    key_added: str = DEFAULT_KEY

    def __post_init__(self) -> None:
        key = self.key_added
        if not isinstance(key, str) or not key.strip() or "/" in key or key == SPATIAL:
            raise InputError(
                f"key_added must be a non-empty string without '/', other than {SPATIAL!r}; found {key!r}."
            )

    @property
    def embedding(self) -> str:
        """``obsm``: what is clustered, float32."""
        return f"X_{self.key_added}"

    @property
    def latent(self) -> str:
        """``obsm``: the latent representation z of every network, side by side, float32."""
        return f"X_{self.key_added}_latent"

    @property
    def pca(self) -> str:
        """``obsm``: principal components of the normalized expression, float32."""
        return f"X_{self.key_added}_pca"

    @property
    def umap(self) -> str:
        """``obsm``: UMAP of the embedding, (N, 2), float32."""
        return f"X_{self.key_added}_umap"

    @property
    def domain(self) -> str:
        """``obs``: categorical "1".."K"."""
        return f"{self.key_added}_domain"

    @property
    def refined(self) -> str:
        """``obs``: the domains after a majority vote among spatial neighbors."""
        return f"{self.key_added}_domain_refined"

    @property
    def confidence(self) -> str:
        """``obs``: probability of the assigned domain, in [0, 1]."""
        return f"{self.key_added}_confidence"

    @property
    def record(self) -> str:
        """``uns``: settings, seed, device, versions, losses."""
        return self.key_added

    @property
    def colors(self) -> str:
        """``uns``: colors of the categories of `domain`, as scanpy stores them."""
        return f"{self.domain}_colors"

    @property
    def refined_colors(self) -> str:
        """``uns``: the same colors for the categories of `refined`."""
        return f"{self.refined}_colors"

    @property
    def connectivities(self) -> str:
        """``obsp``: the adjacency matrix, where squidpy's slot is taken."""
        return f"{self.key_added}_connectivities"

    @property
    def distances(self) -> str:
        """``obsp``: the edge lengths, where squidpy's slot is taken."""
        return f"{self.key_added}_distances"

    @property
    def neighbors(self) -> str:
        """``uns``: the parameters of the neighbor graph, where squidpy's slot is taken."""
        return f"{self.key_added}_neighbors"

    @property
    def markers(self) -> str:
        """``uns``: table of marker genes."""
        return f"{self.key_added}_markers"

    @property
    def spatially_variable(self) -> str:
        """``uns``: table of Moran's I and Geary's C."""
        return f"{self.key_added}_spatially_variable"

    @property
    def enrichment(self) -> str:
        """``uns``: contacts between domains and their enrichment."""
        return f"{self.key_added}_enrichment"

    @property
    def border_distance(self) -> str:
        """``obsm``: table of the distance of every spot to the border of every domain."""
        return f"{self.key_added}_border_distance"

    @property
    def shapes(self) -> str:
        """``uns``: table of the size, parts and compactness of the domains."""
        return f"{self.key_added}_shapes"

    @property
    def composition(self) -> str:
        """``uns``: table of the domains of every section."""
        return f"{self.key_added}_composition"

    @property
    def comparison(self) -> str:
        """``uns``: tables of the comparison of two conditions."""
        return f"{self.key_added}_comparison"

    @property
    def connectivity(self) -> str:
        """``uns``: connectivity between domains."""
        return f"{self.key_added}_connectivity"

    @property
    def layer_depth(self) -> str:
        """``obs``: depth within layered tissue, in [0, 1]."""
        return f"{self.key_added}_layer_depth"

    @property
    def layers(self) -> str:
        """``uns``: table of the layers, in their order."""
        return f"{self.key_added}_layers"

    @property
    def denoised(self) -> str:
        """``layers``: denoised expression of chosen genes."""
        return f"{self.key_added}_denoised"

    @property
    def analysis_slots(self) -> dict[str, tuple[str, ...]]:
        """Attribute of AnnData → the names above that belong to it and that `amilst_lite.analysis` writes."""
        return {
            "obs": (self.layer_depth,),
            "obsm": (self.border_distance, self.umap),
            "uns": (
                self.markers,
                self.spatially_variable,
                self.enrichment,
                self.shapes,
                self.composition,
                self.comparison,
                self.connectivity,
                self.layers,
                f"{self.domain}_ordered_colors",
                f"{self.refined}_ordered_colors",
            ),
        }

    @property
    def slots(self) -> dict[str, tuple[str, ...]]:
        """Attribute of AnnData → the names above that belong to it."""
        return {
            "obs": (self.domain, self.refined, self.confidence),
            "obsm": (self.embedding, self.latent, self.pca),
            "obsp": (self.connectivities, self.distances),
            "uns": (self.record, self.colors, self.refined_colors, self.neighbors),
        }
