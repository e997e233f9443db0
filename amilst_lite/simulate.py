"""Simulated tissue with known domains, to try, to teach and to measure with.

What makes a real section hard is kept: a domain differs from its neighbours in which cell types live
there and in a few marker genes, not in everything; domains share about half of their cells; expression
drifts within a domain; genes span orders of magnitude in abundance; spots differ in depth, some of it
smoothly over the section, as when the tissue was permeabilised unevenly. Plain expression therefore
recovers the domains in part (hardly at all where each spot is a single cell), expression and space
together nearly all of them.

The counts are drawn in chunks of rows, each with a random stream of its own: time is linear in
spots × genes, memory in the non-zero counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from scipy.spatial import cKDTree

from .errors import InputError

__all__ = ["SimulatedTissue", "simulate_tissue"]

_LAYOUTS = ("layers", "blobs")
_ARRANGEMENTS = ("hexagonal", "cells")
_COMMON_TYPES = 4
_VISIUM_PITCH, _VISIUM_DIAMETER, _VISIUM_CELLS = 100.0, 55.0, 6.0  # µm, µm, cells under a spot
_CELL_PITCH, _CELL_DIAMETER = 15.0, 10.0
_CHUNK_ENTRIES = 2_000_000  # spots × genes held dense at a time: a few arrays of 8 or 16 MB


@dataclass(frozen=True, kw_only=True, eq=False)
class SimulatedTissue:
    """A simulated section and the truth about it.

    Attributes
    ----------
    counts : scipy.sparse.csr_matrix, shape (n_spots, n_genes), float32
        Raw counts: non-negative integers.
    coordinates : ndarray, shape (n_spots, 2), float32
        Centres of the spots (or cells) in µm, y downwards as in an image.
    domains : ndarray, shape (n_spots,), int64
        The true domain of each spot, 0..K-1, every one of them present.
    domain_names : tuple of str, length K
        What to call them: "layer 1", "region 2", "nest".
    composition : ndarray, shape (n_spots, n_types), float32
        Share of each cell type in the spot; rows sum to 1 (one-hot for single cells).
    trend : ndarray, shape (n_spots,), float32
        Technical factor on a spot's depth, smooth over the section, around 1.
    marker_genes : ndarray, shape (K, n_genes), bool
        Genes raised in each domain whatever the cell type.
    gene_names : ndarray, shape (n_genes,), str
    spot_names : ndarray, shape (n_spots,), str
    spot_diameter : float
        In µm.
    """

    counts: sp.csr_matrix
    coordinates: np.ndarray
    domains: np.ndarray
    domain_names: tuple[str, ...]
    composition: np.ndarray
    trend: np.ndarray
    marker_genes: np.ndarray
    gene_names: np.ndarray
    spot_names: np.ndarray
    spot_diameter: float

    @property
    def annotation(self) -> np.ndarray:
        """The true domain of each spot by name, shape (n_spots,), str."""
        return np.asarray(self.domain_names)[self.domains]


def simulate_tissue(
    n_spots: int = 2000,
    n_genes: int = 500,
    n_domains: int = 7,
    *,
    layout: str = "layers",
    n_nests: int = 0,
    arrangement: str = "hexagonal",
    median_counts: float | None = None,
    dispersion: float = 0.5,
    dropout: float = 0.1,
    signal: float = 1.0,
    seed: int = 0,
) -> SimulatedTissue:
    """Simulate one section of tissue whose spatial domains are known.

    Parameters
    ----------
    n_spots, n_genes : int
        Size of the section; at least 20 spots a domain and 5 genes a domain.
    n_domains : int
        Number of true domains, at least 2.
    layout : {"layers", "blobs"}
        Curved layers of unequal thickness, as in cortex; or compartments of irregular outline, several
        islands to a domain, as in a tumour.
    n_nests : int
        Small islands strewn over the layout that together form the last of the domains.
    arrangement : {"hexagonal", "cells"}
        Visium's grid (100 µm apart, 55 µm wide, about six cells under a spot) or single cells at
        irregular places (about 15 µm apart).
    median_counts : float, optional
        Median total count of a spot. Default: 0.8 per gene on the grid, one per gene for cells.
    dispersion : float
        Negative-binomial dispersion φ of a typical gene, in [0, 10]: variance = mean + φ·mean².
        Rarer genes have more of it. 0 gives Poisson counts.
    dropout : float
        Chance in [0, 1) that a faint signal is lost altogether; falls off with the expected count.
    signal : float
        Strength of the difference between domains, in [0, 10]; 0 leaves none at all.
    seed : int
        The same seed gives the same section; numpy's global generator is neither read nor changed.

    Returns
    -------
    SimulatedTissue

    Raises
    ------
    InputError
        A parameter is out of its range.

    Notes
    -----
    The expected count of gene g in spot i of domain d is

        depth_i · trend_i · normalise_g( Σ_t c_it θ_tg · (1 + s_i (m_dg − 1)) · (1 + r_i l_g) )

    with c the cell types that fell under the spot (drawn from the domain's composition, which drifts
    over the section), θ the types' profiles, m the markers of the domain at a strength s that drifts,
    and r·l a technical trend that concerns some genes more than others. Counts are negative binomial
    around it (a gamma mixture of Poissons), as usual for UMI data: Grün et al., Nature Methods 2014.
    """
    _check(
        n_spots, n_genes, n_domains, layout, n_nests, arrangement, median_counts, dispersion, dropout, signal,
        seed,
    )  # fmt: skip
    shape_seed, gene_seed, spot_seed, count_seed = np.random.SeedSequence(seed).spawn(4)
    rng = np.random.default_rng(shape_seed)
    cells = arrangement == "cells"
    coordinates = _place(rng, n_spots, cells)  # n×2, µm
    points = coordinates - coordinates.mean(axis=0)
    points /= np.abs(points).max()  # the tissue now lies in [-1, 1] × [-1, 1], its shape unchanged
    n_base = n_domains - (n_nests > 0)
    base = _layers(rng, points, n_base) if layout == "layers" else _blobs(rng, points, n_base)
    domains = _add_nests(rng, points, base, n_nests) if n_nests else base
    if len(np.unique(domains)) < n_domains:
        raise InputError(
            f"The nests cover a whole domain at seed {seed} with {n_spots} spots and {n_domains} domains. "
            "Use more spots, fewer domains or another seed."
        )

    rng = np.random.default_rng(gene_seed)
    profiles = _type_profiles(rng, n_domains + _COMMON_TYPES, n_genes)
    markers = _domain_markers(rng, n_domains, n_genes, signal)
    trend_loading = (0.05 * rng.standard_normal(n_genes)).astype(np.float32)

    rng = np.random.default_rng(spot_seed)
    composition = _compose(rng, points, domains, n_domains, 1.0 if cells else _VISIUM_CELLS, signal, layout)
    strength = np.clip(1 + 0.2 * _smooth_field(rng, points), 0.2, 1.8).astype(np.float32)
    trend_field = np.clip(_smooth_field(rng, points), -2, 2).astype(np.float32)
    trend = np.exp(0.25 * trend_field).astype(np.float32)
    depth = trend * np.exp(0.35 * rng.standard_normal(n_spots, dtype=np.float32))
    target = median_counts if median_counts is not None else (1.0 if cells else 0.8) * n_genes
    # the exact median of what is expected; dropout takes its part afterwards
    depth *= np.float32(target) / np.median(depth)

    counts = _draw_counts(
        count_seed, depth, composition, profiles, strength, domains, markers, trend_field, trend_loading,
        dispersion, dropout,
    )  # fmt: skip
    names = [f"{'layer' if layout == 'layers' else 'region'} {k + 1}" for k in range(n_base)]
    return SimulatedTissue(
        counts=counts,
        coordinates=coordinates.astype(np.float32),
        domains=domains,
        domain_names=(*names, "nest") if n_nests else tuple(names),
        composition=composition,
        trend=trend,
        marker_genes=markers > 1,
        gene_names=_numbered("gene", n_genes),
        spot_names=_numbered("cell" if cells else "spot", n_spots),
        spot_diameter=_CELL_DIAMETER if cells else _VISIUM_DIAMETER,
    )


def _check(
    n_spots: int,
    n_genes: int,
    n_domains: int,
    layout: str,
    n_nests: int,
    arrangement: str,
    median_counts: float | None,
    dispersion: float,
    dropout: float,
    signal: float,
    seed: int,
) -> None:
    """Refuse what cannot be simulated, saying what can."""
    if layout not in _LAYOUTS:
        raise InputError(f"layout must be one of {', '.join(_LAYOUTS)}; found {layout!r}.")
    if arrangement not in _ARRANGEMENTS:
        raise InputError(f"arrangement must be one of {', '.join(_ARRANGEMENTS)}; found {arrangement!r}.")
    if n_domains < 2:
        raise InputError(f"n_domains must be at least 2; found {n_domains}.")
    if n_nests < 0 or (n_nests and n_domains < 3):
        raise InputError(
            f"n_nests must be 0, or positive with n_domains of 3 or more (the nests are one of the domains); "
            f"found n_nests={n_nests}, n_domains={n_domains}."
        )
    if n_spots < 20 * n_domains:
        raise InputError(
            f"{n_domains} domains need at least {20 * n_domains} spots; found n_spots={n_spots}."
        )
    if n_genes < 5 * n_domains:
        raise InputError(f"{n_domains} domains need at least {5 * n_domains} genes; found n_genes={n_genes}.")
    if n_nests * 10 * n_domains > n_spots:
        raise InputError(
            f"{n_nests} nests among {n_domains} domains need at least {10 * n_domains * n_nests} spots, "
            f"lest a nest be a spot or two; found n_spots={n_spots}."
        )
    for name, value in (("dispersion", dispersion), ("signal", signal)):
        if not 0 <= value <= 10:
            raise InputError(f"{name} must lie in [0, 10]; found {value}.")
    if not 0 <= dropout < 1:
        raise InputError(f"dropout must lie in [0, 1); found {dropout}.")
    if median_counts is not None and not (np.isfinite(median_counts) and median_counts > 0):
        raise InputError(f"median_counts must be positive; found {median_counts}.")
    if seed < 0:
        raise InputError(f"seed must be 0 or more; found {seed}.")


# ---------------------------------------------------------------------------------------- the tissue


def _place(rng: np.random.Generator, n_spots: int, cells: bool) -> np.ndarray:
    """Centres of exactly ``n_spots`` spots within a rounded outline, in µm, in random order; n×2."""
    pitch = _CELL_PITCH if cells else _VISIUM_PITCH
    # A hexagonal grid half as large again as needed; the spots nearest the middle, in a metric whose
    # unit ball is a warped, rounded rectangle, are the tissue.
    side = int(np.ceil(np.sqrt(1.5 * n_spots))) + 2
    n_rows = int(np.ceil(side / np.sqrt(0.75)))  # rows are closer together than columns
    row, column = np.divmod(np.arange(n_rows * side), side)
    grid = np.stack([(column + 0.5 * (row % 2)) * pitch, row * pitch * np.sqrt(0.75)], axis=1)
    if cells:
        grid += rng.normal(scale=0.25 * pitch, size=grid.shape)
        grid = grid[rng.random(len(grid)) < 0.9]  # the gaps between cells
    centred = (grid - grid.mean(axis=0)) / (0.5 * np.ptp(grid, axis=0))
    centred[:, 1] *= 1.15  # wider than high
    radius = np.power(np.abs(centred) ** 3.5 @ np.ones(2), 1 / 3.5)
    radius *= 1 + 0.05 * _smooth_field(rng, centred)
    inside = np.argsort(radius, kind="stable")[:n_spots]
    # Files list barcodes in no spatial order, and so do we
    coordinates = grid[rng.permutation(inside)]
    return coordinates - coordinates.min(axis=0) + pitch


def _smooth_field(
    rng: np.random.Generator, points: np.ndarray, n_waves: int = 6, frequency: float = 2.5
) -> np.ndarray:
    """A random function of place, smooth, of mean 0 and variance about 1; shape (n,).

    A sum of plane waves with random direction, length and phase: a Gaussian field in the limit of
    many waves (Rahimi and Recht, NIPS 2007), at a cost linear in the number of points.
    """
    waves = rng.normal(scale=frequency, size=(n_waves, 2))
    phases = rng.uniform(0, 2 * np.pi, size=n_waves)
    field = np.zeros(len(points))
    for wave, phase in zip(waves, phases, strict=True):  # one wave at a time: no n × waves array
        field += np.cos(points @ wave + phase)
    return field * np.sqrt(2 / n_waves)


def _layers(rng: np.random.Generator, points: np.ndarray, n_domains: int) -> np.ndarray:
    """Curved layers of unequal thickness, from the outer surface inwards; shape (n,), int64."""
    centre = np.array([rng.uniform(-0.4, 0.4), rng.uniform(1.4, 2.0)])
    depth = -np.hypot(*(points - centre).T) + 0.06 * _smooth_field(rng, points)
    share = rng.uniform(0.5, 1.5, size=n_domains)
    bounds = np.quantile(depth, np.cumsum(share / share.sum())[:-1])
    return np.searchsorted(bounds, depth, side="right").astype(np.int64)


def _blobs(rng: np.random.Generator, points: np.ndarray, n_domains: int) -> np.ndarray:
    """Compartments with irregular outlines, several islands to a domain; shape (n,), int64."""
    warped = points + 0.10 * np.stack([_smooth_field(rng, points, frequency=5.0) for _ in range(2)], axis=1)
    n_sites = 3 * n_domains
    # Each site is the candidate farthest from those before it (Mitchell 1991), so that no island is tiny
    sites = warped[rng.choice(len(warped), 1)]
    while len(sites) < n_sites:
        candidates = warped[rng.choice(len(warped), min(10, len(warped)), replace=False)]
        nearest, _ = cKDTree(sites).query(candidates)
        sites = np.vstack([sites, candidates[np.argmax(nearest)]])
    owner = np.concatenate([np.arange(n_domains), rng.integers(n_domains, size=n_sites - n_domains)])
    _, site = cKDTree(sites).query(warped)
    return owner[site].astype(np.int64)


def _add_nests(rng: np.random.Generator, points: np.ndarray, domains: np.ndarray, n_nests: int) -> np.ndarray:
    """Lay islands over the other domains; together they are one more domain of a fair share."""
    n_domains = int(domains.max()) + 2
    warped = points + 0.03 * np.stack([_smooth_field(rng, points, frequency=9.0) for _ in range(2)], axis=1)
    centres = warped[rng.choice(len(points), n_nests, replace=False)]
    size = rng.uniform(0.7, 1.3, size=n_nests)
    closeness = np.full(len(points), np.inf)
    for centre, radius in zip(centres, size, strict=True):
        closeness = np.minimum(closeness, np.hypot(*(warped - centre).T) / radius)
    n_inside = max(n_nests, round(0.7 * len(points) / n_domains))
    inside = np.argsort(closeness, kind="stable")[:n_inside]
    domains = domains.copy()
    domains[inside] = n_domains - 1
    return domains


# ------------------------------------------------------------------------------------- what is in it


def _type_profiles(rng: np.random.Generator, n_types: int, n_genes: int) -> np.ndarray:
    """Expression of each cell type, a long tail over the genes; (n_types, n_genes), rows sum to 1."""
    abundance = rng.normal(scale=1.3, size=n_genes)  # natural log: three orders of magnitude at 500 genes
    change = np.where(rng.random((n_types, n_genes)) < 0.12, rng.normal(0.3, 0.8, (n_types, n_genes)), 0)
    profiles = np.exp(abundance + change)
    return (profiles / profiles.sum(axis=1, keepdims=True)).astype(np.float32)


def _domain_markers(rng: np.random.Generator, n_domains: int, n_genes: int, signal: float) -> np.ndarray:
    """Factor on each gene in each domain, 1 for most; (n_domains, n_genes)."""
    per_domain = max(2, round(0.05 * n_genes))
    markers = np.ones((n_domains, n_genes), dtype=np.float32)
    for factors in markers:
        genes = rng.choice(n_genes, per_domain, replace=False)
        factors[genes] = np.exp(signal * rng.uniform(0.4, 1.1, size=per_domain))
    return markers


def _compose(
    rng: np.random.Generator,
    points: np.ndarray,
    domains: np.ndarray,
    n_domains: int,
    cells_per_spot: float,
    signal: float,
    layout: str,
) -> np.ndarray:
    """Draw the cells of every spot; their shares by type, (n, n_types), rows sum to 1."""
    n_types = n_domains + _COMMON_TYPES
    apart = np.abs(np.subtract.outer(np.arange(n_domains), np.arange(n_domains))).astype(float)
    if layout != "layers":  # layers shade into the next one, compartments have no order
        apart = np.minimum(apart, 2.0)
    # A domain's own type is the likeliest of the specific ones; the common types are the same everywhere
    preference = np.zeros((n_domains, n_types))
    preference[:, :n_domains] = -1.6 * signal * apart
    preference[:, n_domains:] = -1.2 + 0.4 * rng.standard_normal(_COMMON_TYPES)
    # drift: which types prevail changes slowly over the section, whatever the domain
    composition = np.empty((len(points), n_types), dtype=np.float32)
    for kind in range(n_types):
        composition[:, kind] = preference[domains, kind] + 0.1 * _smooth_field(rng, points)
    np.exp(composition, out=composition)
    n_cells = 1 + rng.poisson(cells_per_spot - 1, size=len(points))
    for start in range(0, len(points), 65_536):  # numpy's multinomial wants float64
        rows = slice(start, start + 65_536)
        chances = composition[rows].astype(np.float64)
        chances /= chances.sum(axis=1, keepdims=True)
        composition[rows] = rng.multinomial(n_cells[rows], chances) / n_cells[rows, None]
    return composition


def _draw_counts(
    seed: np.random.SeedSequence,
    depth: np.ndarray,
    composition: np.ndarray,
    profiles: np.ndarray,
    strength: np.ndarray,
    domains: np.ndarray,
    markers: np.ndarray,
    trend_field: np.ndarray,
    trend_loading: np.ndarray,
    dispersion: float,
    dropout: float,
) -> sp.csr_matrix:
    """Negative-binomial counts, a chunk of rows at a time; CSR float32 with int32 or int64 indices."""
    n_spots, n_genes = len(depth), profiles.shape[1]
    abundance = profiles.mean(axis=0) * n_genes
    gene_dispersion = (dispersion * np.clip(abundance**-0.3, 0.5, 3.0)).astype(np.float32)
    rows = max(1, _CHUNK_ENTRIES // n_genes)
    starts = range(0, n_spots, rows)
    data, indices, lengths = [], [], []
    for start, chunk_seed in zip(starts, seed.spawn(len(starts)), strict=True):
        rng = np.random.default_rng(chunk_seed)
        here = slice(start, start + rows)
        mean = composition[here] @ profiles  # c×G
        mean *= 1 + strength[here, None] * (markers - 1)[domains[here]]
        mean *= np.maximum(1 + np.outer(trend_field[here], trend_loading), 0.1)
        mean *= (depth[here] / mean.sum(axis=1))[:, None]
        rate = mean
        if dispersion > 0:
            rate = rng.standard_gamma(1 / gene_dispersion, size=mean.shape) * (mean * gene_dispersion)
        drawn = rng.poisson(rate)
        spot, gene = np.nonzero(drawn)
        value = drawn[spot, gene].astype(np.float32)
        if dropout > 0:
            kept = rng.random(len(value)) >= dropout * np.exp(-mean[spot, gene])
            spot, gene, value = spot[kept], gene[kept], value[kept]
        data.append(value)
        indices.append(gene.astype(np.int32))
        lengths.append(np.bincount(spot, minlength=len(drawn)))
    indptr = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
    return sp.csr_matrix((np.concatenate(data), np.concatenate(indices), indptr), shape=(n_spots, n_genes))


def _numbered(prefix: str, n: int) -> np.ndarray:
    """prefix_1 .. prefix_n with leading zeros, so that they sort."""
    width = len(str(n))
    return np.array([f"{prefix}_{i:0{width}d}" for i in range(1, n + 1)])
