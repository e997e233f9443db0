"""Simulated tissue sections with known domains.

The simulation includes what makes real sections difficult: domains differ only in the composition of cell
types and in a few marker genes; they share about half of their cells; expression varies within a domain;
gene abundances span orders of magnitude; and the depth of spots varies, in part smoothly over the section, as
with uneven permeabilization. Expression alone therefore recovers the domains only in part (hardly at all for
single cells), expression and coordinates together almost completely.

Counts are drawn in chunks of rows, each with its own random stream: time is linear in spots × genes, memory
in the number of nonzero counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from scipy.spatial import cKDTree

from .errors import InputError
from .runtime import check_seed
from .validation import check_number

__all__ = ["SimulatedTissue", "simulate_tissue"]

_LAYOUTS = ("layers", "blobs")
_ARRANGEMENTS = ("hexagonal", "cells")
_COMMON_TYPES = 4
_VISIUM_PITCH, _VISIUM_DIAMETER, _VISIUM_CELLS = 100.0, 55.0, 6.0  # µm, µm, cells under a spot
_CELL_PITCH, _CELL_DIAMETER = 15.0, 10.0
_CHUNK_ENTRIES = 2_000_000  # spots × genes in one dense chunk: a few arrays of 8 or 16 MB


@dataclass(frozen=True, kw_only=True, eq=False)
class SimulatedTissue:
    """A simulated section and its ground truth.

    Attributes
    ----------
    counts : scipy.sparse.csr_matrix, shape (n_spots, n_genes), float32
        Raw counts: non-negative integers.
    coordinates : ndarray, shape (n_spots, 2), float32
        Centers of the spots (or cells) in µm; y points downwards as in an image.
    domains : ndarray, shape (n_spots,), int64
        The true domain of each spot, 0..K-1; no domain is empty.
    domain_names : tuple of str, length K
        Names of the domains: "layer 1", "region 2", "nest".
    composition : ndarray, shape (n_spots, n_types), float32
        Proportion of each cell type in the spot; rows sum to 1 (one-hot for single cells).
    trend : ndarray, shape (n_spots,), float32
        Technical factor of the depth of each spot, smooth over the section, about 1.
    marker_genes : ndarray, shape (K, n_genes), bool
        Genes with increased expression in each domain, independent of cell type.
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
        """The name of the true domain of each spot, shape (n_spots,), str."""
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
    section: int = 0,
    section_effect: float = 0.0,
    seed: int = 0,
) -> SimulatedTissue:
    """Simulate a tissue section with known spatial domains.

    Parameters
    ----------
    n_spots, n_genes : int
        Size of the section; at least 20 spots and 5 genes per domain.
    n_domains : int
        Number of true domains, >= 2.
    layout : {"layers", "blobs"}
        Curved layers of different thickness, as in cortex; or irregular compartments, several per domain,
        as in a tumor.
    n_nests : int
        Number of small islands within the other domains, which together form the last domain.
    arrangement : {"hexagonal", "cells"}
        The grid of Visium (spots of 55 µm with a pitch of 100 µm and about six cells each), or single
        cells at irregular positions (about 15 µm apart).
    median_counts : float, optional
        Median total count of a spot, > 0. Default: 0.8 per gene on the grid, 1 per gene for cells.
    dispersion : float
        Negative-binomial dispersion φ of a typical gene, in [0, 10]: variance = mean + φ·mean². It is larger
        for rare genes. 0 gives Poisson counts.
    dropout : float
        Probability, in [0, 1), that a very low count is lost; it decreases with the expected count.
    signal : float
        Strength of the difference between domains, in [0, 10]; 0 means no difference.
    section : int
        Number of the section, >= 0. Sections of one seed have the same domains, cell types and genes; outline,
        arrangement of the domains and counts are their own.
    section_effect : float
        Strength of the technical effect of the section, in [0, 10]: the expected counts of each gene are multiplied
        by exp(section_effect · z), with z standard normal for each gene and section. 0: none.
    seed : int
        In [0, 2**32). The same seed gives the same section; the global generator is not used.

    Returns
    -------
    SimulatedTissue

    Raises
    ------
    InputError
        A parameter has the wrong type or is out of range.

    Notes
    -----
    The expected count of gene g in spot i of domain d is

        depth_i · trend_i · normalize_g( Σ_t c_it θ_tg · (1 + s_i (m_dg − 1)) · (1 + r_i l_g) )

    with c the cell types in the spot (drawn from the composition of the domain, which varies over the
    section), θ the expression profiles of the types, m the markers of the domain with a varying strength s,
    and r·l a technical trend with a different loading for each gene. Counts are negative binomial (a gamma
    mixture of Poisson distributions), as usual for UMI data: Grün et al., Nature Methods 2014.
    """
    seed = check_seed(seed)
    _check(
        n_spots, n_genes, n_domains, layout, n_nests, arrangement, median_counts, dispersion, dropout, signal,
        section, section_effect,
    )  # fmt: skip
    shape_seed, gene_seed, spot_seed, count_seed, *others = np.random.SeedSequence(seed).spawn(4 + section)
    if section:  # the genes are those of the first section
        shape_seed, spot_seed, count_seed = others[-1].spawn(3)
    rng = np.random.default_rng(shape_seed)
    cells = arrangement == "cells"
    coordinates = _place(rng, n_spots, cells)  # n×2, µm
    points = coordinates - coordinates.mean(axis=0)
    points /= np.abs(points).max()  # within [-1, 1] × [-1, 1], with the same aspect ratio
    n_base = n_domains - (n_nests > 0)
    base = _layers(rng, points, n_base) if layout == "layers" else _blobs(rng, points, n_base)
    domains = _add_nests(rng, points, base, n_nests) if n_nests else base
    if len(np.unique(domains)) < n_domains:
        raise InputError(
            f"The nests cover a whole domain with seed {seed}, {n_spots} spots and {n_domains} domains. "
            "Use more spots, fewer domains or another seed."
        )

    rng = np.random.default_rng(gene_seed)
    profiles = _type_profiles(rng, n_domains + _COMMON_TYPES, n_genes)
    markers = _domain_markers(rng, n_domains, n_genes, signal)
    trend_loading = (0.05 * rng.standard_normal(n_genes)).astype(np.float32)
    if section_effect > 0:
        (effect_seed,) = spot_seed.spawn(1)
        effect = np.exp(section_effect * np.random.default_rng(effect_seed).standard_normal(n_genes))
        profiles = profiles * effect.astype(np.float32)

    rng = np.random.default_rng(spot_seed)
    composition = _compose(rng, points, domains, n_domains, 1.0 if cells else _VISIUM_CELLS, signal, layout)
    strength = np.clip(1 + 0.2 * _smooth_field(rng, points), 0.2, 1.8).astype(np.float32)
    trend_field = np.clip(_smooth_field(rng, points), -2, 2).astype(np.float32)
    trend = np.exp(0.25 * trend_field).astype(np.float32)
    depth = trend * np.exp(0.35 * rng.standard_normal(n_spots, dtype=np.float32))
    target = median_counts if median_counts is not None else (1.0 if cells else 0.8) * n_genes
    # the median of the expected depth, before dropout
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
    section: int,
    section_effect: float,
) -> None:
    """Raise `InputError` unless the parameters are valid."""
    check_number("n_spots", n_spots, 1, integer=True)
    check_number("n_genes", n_genes, 1, integer=True)
    check_number("n_domains", n_domains, 2, integer=True)
    check_number("n_nests", n_nests, 0, integer=True)
    check_number("section", section, 0, integer=True)
    check_number("dropout", dropout, 0)
    if dropout >= 1:
        raise InputError(f"dropout must be < 1; found {dropout!r}.")
    for name, value in (("dispersion", dispersion), ("signal", signal), ("section_effect", section_effect)):
        check_number(name, value, 0)
        if value > 10:
            raise InputError(f"{name} must be <= 10; found {value!r}.")
    if median_counts is not None:
        check_number("median_counts", median_counts, 0, strict=True)
    if layout not in _LAYOUTS:
        raise InputError(f"layout must be one of {', '.join(_LAYOUTS)}; found {layout!r}.")
    if arrangement not in _ARRANGEMENTS:
        raise InputError(f"arrangement must be one of {', '.join(_ARRANGEMENTS)}; found {arrangement!r}.")
    if n_nests and n_domains < 3:
        raise InputError(
            f"n_nests > 0 needs n_domains >= 3, because the nests are one of the domains; found "
            f"n_nests={n_nests}, n_domains={n_domains}."
        )
    if n_spots < 20 * n_domains:
        raise InputError(f"{n_domains} domains need n_spots >= {20 * n_domains}; found {n_spots}.")
    if n_genes < 5 * n_domains:
        raise InputError(f"{n_domains} domains need n_genes >= {5 * n_domains}; found {n_genes}.")
    if n_nests * 10 * n_domains > n_spots:
        raise InputError(
            f"{n_nests} nests and {n_domains} domains need n_spots >= {10 * n_domains * n_nests}, so that "
            f"a nest has several spots; found {n_spots}."
        )


# --- shape of the tissue ----------------------------------------------------------------------


def _place(rng: np.random.Generator, n_spots: int, cells: bool) -> np.ndarray:
    """Centers of exactly ``n_spots`` spots within a rounded outline, in µm, in random order; n×2."""
    pitch = _CELL_PITCH if cells else _VISIUM_PITCH
    # A hexagonal grid of 1.5 times the size needed. The tissue is the spots closest to the center in a
    # metric whose unit ball is a distorted rectangle with rounded corners.
    side = int(np.ceil(np.sqrt(1.5 * n_spots))) + 2
    n_rows = int(np.ceil(side / np.sqrt(0.75)))  # rows are closer to each other than columns
    row, column = np.divmod(np.arange(n_rows * side), side)
    grid = np.stack([(column + 0.5 * (row % 2)) * pitch, row * pitch * np.sqrt(0.75)], axis=1)
    if cells:
        grid += rng.normal(scale=0.25 * pitch, size=grid.shape)
        grid = grid[rng.random(len(grid)) < 0.9]  # the gaps between cells
    centered = (grid - grid.mean(axis=0)) / (0.5 * np.ptp(grid, axis=0))
    centered[:, 1] *= 1.15  # wider than high
    radius = np.power(np.abs(centered) ** 3.5 @ np.ones(2), 1 / 3.5)
    radius *= 1 + 0.05 * _smooth_field(rng, centered)
    inside = np.argsort(radius, kind="stable")[:n_spots]
    # in random order, because barcodes are not in spatial order in real files either
    coordinates = grid[rng.permutation(inside)]
    return coordinates - coordinates.min(axis=0) + pitch


def _smooth_field(
    rng: np.random.Generator, points: np.ndarray, n_waves: int = 6, frequency: float = 2.5
) -> np.ndarray:
    """A smooth random function of the position with mean 0 and variance about 1; shape (n,).

    A sum of plane waves with random direction, wavelength and phase, which converges to a Gaussian random
    field as the number of waves grows (Rahimi and Recht, NIPS 2007). Time is linear in the number of points.
    """
    waves = rng.normal(scale=frequency, size=(n_waves, 2))
    phases = rng.uniform(0, 2 * np.pi, size=n_waves)
    field = np.zeros(len(points))
    for wave, phase in zip(waves, phases, strict=True):  # in a loop to avoid an (n, n_waves) array
        field += np.cos(points @ wave + phase)
    return field * np.sqrt(2 / n_waves)


def _layers(rng: np.random.Generator, points: np.ndarray, n_domains: int) -> np.ndarray:
    """Curved layers of different thickness, from the outer surface inwards; shape (n,), int64."""
    center = np.array([rng.uniform(-0.4, 0.4), rng.uniform(1.4, 2.0)])
    depth = -np.hypot(*(points - center).T) + 0.06 * _smooth_field(rng, points)
    share = rng.uniform(0.5, 1.5, size=n_domains)
    bounds = np.quantile(depth, np.cumsum(share / share.sum())[:-1])
    return np.searchsorted(bounds, depth, side="right").astype(np.int64)


def _blobs(rng: np.random.Generator, points: np.ndarray, n_domains: int) -> np.ndarray:
    """Irregular compartments, several per domain; shape (n,), int64."""
    warped = points + 0.10 * np.stack([_smooth_field(rng, points, frequency=5.0) for _ in range(2)], axis=1)
    n_sites = 3 * n_domains
    # best-candidate sampling (Mitchell 1991): sites keep their distance, so that no compartment is tiny
    sites = warped[rng.choice(len(warped), 1)]
    while len(sites) < n_sites:
        candidates = warped[rng.choice(len(warped), min(10, len(warped)), replace=False)]
        nearest, _ = cKDTree(sites).query(candidates)
        sites = np.vstack([sites, candidates[np.argmax(nearest)]])
    owner = np.concatenate([np.arange(n_domains), rng.integers(n_domains, size=n_sites - n_domains)])
    _, site = cKDTree(sites).query(warped)
    return owner[site].astype(np.int64)


def _add_nests(rng: np.random.Generator, points: np.ndarray, domains: np.ndarray, n_nests: int) -> np.ndarray:
    """Add one more domain that consists of islands within the others; shape (n,), int64."""
    n_domains = int(domains.max()) + 2
    warped = points + 0.03 * np.stack([_smooth_field(rng, points, frequency=9.0) for _ in range(2)], axis=1)
    centers = warped[rng.choice(len(points), n_nests, replace=False)]
    size = rng.uniform(0.7, 1.3, size=n_nests)
    closeness = np.full(len(points), np.inf)
    for center, radius in zip(centers, size, strict=True):
        closeness = np.minimum(closeness, np.hypot(*(warped - center).T) / radius)
    n_inside = max(n_nests, round(0.7 * len(points) / n_domains))
    inside = np.argsort(closeness, kind="stable")[:n_inside]
    domains = domains.copy()
    domains[inside] = n_domains - 1
    return domains


# --- expression -------------------------------------------------------------------------------


def _type_profiles(rng: np.random.Generator, n_types: int, n_genes: int) -> np.ndarray:
    """Expression profile of each cell type, log-normal over genes; (n_types, n_genes), rows sum to 1."""
    abundance = rng.normal(scale=1.3, size=n_genes)  # natural log: three orders of magnitude at 500 genes
    change = np.where(rng.random((n_types, n_genes)) < 0.12, rng.normal(0.3, 0.8, (n_types, n_genes)), 0)
    profiles = np.exp(abundance + change)
    return (profiles / profiles.sum(axis=1, keepdims=True)).astype(np.float32)


def _domain_markers(rng: np.random.Generator, n_domains: int, n_genes: int, signal: float) -> np.ndarray:
    """Factor of each gene in each domain, 1 for most genes; (n_domains, n_genes)."""
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
    """Proportions of cell types among the cells drawn for each spot; (n, n_types), rows sum to 1."""
    n_types = n_domains + _COMMON_TYPES
    apart = np.abs(np.subtract.outer(np.arange(n_domains), np.arange(n_domains))).astype(float)
    if layout != "layers":  # adjacent layers are similar, compartments have no order
        apart = np.minimum(apart, 2.0)
    # Each domain has its own most frequent type; the common types have the same frequency in all domains.
    preference = np.zeros((n_domains, n_types))
    preference[:, :n_domains] = -1.6 * signal * apart
    preference[:, n_domains:] = -1.2 + 0.4 * rng.standard_normal(_COMMON_TYPES)
    # frequencies vary smoothly over the section, independent of domains
    composition = np.empty((len(points), n_types), dtype=np.float32)
    for kind in range(n_types):
        composition[:, kind] = preference[domains, kind] + 0.1 * _smooth_field(rng, points)
    np.exp(composition, out=composition)
    n_cells = 1 + rng.poisson(cells_per_spot - 1, size=len(points))
    for start in range(0, len(points), 65_536):  # in blocks: multinomial needs float64
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
    """Negative-binomial counts (n_spots, n_genes), drawn in chunks of rows; CSR, float32."""
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
    """prefix_1 .. prefix_n, with leading zeros so that the names sort."""
    width = len(str(n))
    return np.array([f"{prefix}_{i:0{width}d}" for i in range(1, n + 1)])
