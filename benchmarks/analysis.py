"""The analyses after the domains: correctness on simulations, false-positive rates, seconds and memory.

    python benchmarks/analysis.py [--seeds 10] [--cohorts 1000] [--cells 10000 100000] [--genes 3000] [--json FILE]

* **Markers**: p-values below 0.05 in counts without any domain, naive and from counts set aside, with domains from
  `amilst_lite.identify_domains`; Poisson counts, and overdispersed ones, whose dispersion is estimated.
  On simulated tissue, the share of the true markers of a domain that are found at 5 % false discovery rate.
* **Spatially variable genes**: the same rates for genes whose counts are permuted over the spots of simulated tissue,
  and for the genes as they are.
* **Enrichment**: p-values below 0.05 for domains at random.
* **Conditions**: p-values at most 0.05 in cohorts of 4 + 4 sections without a difference. There are 35 possible
  values, so that the exact test can reject 1/35 = 2.9 % of them, and the mid-p test 2/35 = 5.7 %.
* **Depth**: correlation with the true depth of simulated layers, whose domains are the true ones or identified.
* **Seconds and memory** of each analysis on simulated single cells, 20 domains, with two threads, each size in a
  process of its own; in parentheses, seconds of the processor, summed over the threads. Memory is the largest resident
  size in the analysis, the data included. `--cells 1000000` takes 10 minutes and 6 GB.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from common import Json, Record, make_parser, markdown, spread, use_threads
from scaling import Watch
from scipy import sparse
from scipy.stats import pearsonr

import amilst_lite as amilst
from amilst_lite import analysis, simulate
from amilst_lite.analysis.composition import compare_groups, composition, contact_enrichment
from amilst_lite.analysis.neighborhood import contact_pairs, enrichment
from amilst_lite.analysis.spatially_variable import spatially_variable
from amilst_lite.preprocess import NormalizedCounts
from amilst_lite.spatial import SpatialGraph

LEVEL = 0.05
QUICK = {"n_networks": 2, "epochs": 50}  # the network changes little, and the test needs none


def rate(p: Any) -> float:
    """Share of the p-values, but for NaN, that are at most 0.05."""
    values = np.asarray(p, dtype=np.float64)
    return float(np.mean(values[~np.isnan(values)] <= LEVEL))


# --- correctness and false positives ----------------------------------------------------------


def with_domains(counts: sparse.csr_matrix, points: np.ndarray, k: int, seed: int) -> ad.AnnData:
    adata = ad.AnnData(counts, var=pd.DataFrame(index=[f"g{i}" for i in range(counts.shape[1])]))
    adata.obsm["spatial"] = points
    amilst.identify_domains(adata, k, seed=seed, device="cpu", **QUICK)
    return adata


def safe_markers(adata: ad.AnnData, k: int, seed: int) -> pd.DataFrame:
    def identify(half: ad.AnnData) -> None:
        amilst.identify_domains(half, k, seed=seed, device="cpu", **QUICK)

    return analysis.marker_genes(adata, identify=identify, seed=seed)


def markers_in_noise(dispersion: float, seed: int) -> tuple[float, float]:
    """Rates of naive p-values and those of counts set aside; 600 spots, 100 genes, no domains."""
    rng = np.random.default_rng(seed)
    rates = np.tile(rng.gamma(2.0, 1.0, size=100), (600, 1))
    if dispersion:
        rates *= rng.gamma(1 / dispersion, dispersion, size=rates.shape)
    counts = sparse.csr_matrix(rng.poisson(rates).astype(np.float32))
    table = safe_markers(with_domains(counts, rng.uniform(size=(600, 2)), 4, seed), 4, seed)
    return rate(table["p_naive"]), rate(table["p"])


def markers_in_tissue(seed: int) -> tuple[float, float, float]:
    """Shares of the true markers found, naively and in counts set aside, and the overlap of the domains."""
    tissue = simulate.simulate_tissue(1500, 300, 5, seed=seed)
    adata = with_domains(tissue.counts, tissue.coordinates, 5, seed)
    table = safe_markers(adata, 5, seed)
    truth = pd.crosstab(adata.obs["amilst_domain"].astype(str), tissue.domains)
    found = []
    for domain, own in table.groupby("domain"):
        best = int(truth.loc[domain].idxmax())
        true = own.set_index("gene").loc[list(adata.var_names[tissue.marker_genes[best]])]
        found.append(
            [np.mean((true["z"] > 0) & (true[f"p{name}_adjusted"] <= LEVEL)) for name in ("_naive", "")]
        )
    naive, safe = np.mean(found, axis=0)
    return float(naive), float(safe), float(table.groupby("domain")["overlap"].first().mean())


def variable_genes(seed: int) -> Json:
    """Rates of p-values for genes as they are, and permuted over the spots."""
    tissue = simulate.simulate_tissue(1500, 200, 5, seed=seed)
    rng = np.random.default_rng(seed)
    real = NormalizedCounts(tissue.counts)[:].toarray()
    permuted = rng.permuted(real, axis=0)
    graph = SpatialGraph.from_coordinates(tissue.coordinates, n_neighbors=6).connectivities()
    genes = [f"{kind}{i}" for kind in ("real", "permuted") for i in range(200)]
    result: Json = {}
    for moments in ("normality", "randomization"):
        table = spatially_variable(
            np.hstack([real, permuted]),
            graph,
            genes,
            moments=moments,
            n_permutations=200 if moments == "normality" else 0,
            seed=seed,
        )
        for kind in ("real", "permuted"):
            own = table[table.index.str.startswith(kind)]
            for column in own.columns[own.columns.str.endswith(("_p", "_p_permutation"))]:
                name = column if column.endswith("permutation") else f"{column} {moments}"
                result[f"{name}, {kind}"] = rate(own[column])
    return result


def random_enrichment(seed: int) -> float:
    rng = np.random.default_rng(seed)
    points = rng.uniform(size=(600, 2))
    sections = np.repeat([0, 1], 300)
    graph = SpatialGraph.from_coordinates(points, n_neighbors=6, sample=sections).connectivities()
    codes = rng.choice(5, size=600, p=[0.4, 0.3, 0.15, 0.1, 0.05])
    found = enrichment(contact_pairs(graph, sections), codes, 5, sections)
    return rate(found.p[np.triu_indices(5)])


def null_cohort(seed: int) -> Json:
    """Eight sections of 150 spots with 4 domains of varying sizes, in patches; four and four are compared."""
    rng = np.random.default_rng(seed)
    n, k = 150, 4
    sections = np.repeat(np.arange(8), n)
    points = rng.uniform(size=(8 * n, 2))
    codes = np.empty(8 * n, np.int64)
    share = rng.dirichlet(np.full(k, 3.0))
    for section in range(8):
        own = sections == section
        centers = rng.uniform(size=(12, 2))
        patch = ((points[own][:, None] - centers) ** 2).sum(axis=2).argmin(axis=1)
        codes[own] = rng.choice(k, size=12, p=rng.dirichlet(8 * share + 0.1))[patch]
    graph = SpatialGraph.from_coordinates(points, n_neighbors=5, sample=sections).connectivities()
    shares = composition(codes, k, sections) / n
    ratios = contact_enrichment(contact_pairs(graph, sections), codes, k, sections)
    second = np.isin(np.arange(8), rng.choice(8, 4, replace=False))
    result: Json = {}
    for name, values in (("composition", shares), ("contacts", ratios)):
        found = compare_groups(values, second)
        varying = values.std(axis=0) > 0
        result[f"{name}, p"] = rate(found.p[varying])
        result[f"{name}, mid-p"] = rate(found.p_mid[varying])
        result[f"{name}, any p_adjusted"] = rate([found.p_adjusted.min()])
    return result


def true_depth(seed: int, n_spots: int) -> tuple[simulate.SimulatedTissue, np.ndarray]:
    """Simulated layers with the depth that defines them, drawn once more from the same random numbers."""
    tissue = simulate.simulate_tissue(n_spots, 300, 6, seed=seed)
    rng = np.random.default_rng(np.random.SeedSequence(seed).spawn(4)[0])
    points = simulate._place(rng, n_spots, False)
    points = points - points.mean(axis=0)
    points /= np.abs(points).max()
    center = np.array([rng.uniform(-0.4, 0.4), rng.uniform(1.4, 2.0)])
    depth = -np.hypot(*(points - center).T) + 0.06 * simulate._smooth_field(rng, points)
    highest = pd.Series(depth).groupby(tissue.domains).max()
    lowest = pd.Series(depth).groupby(tissue.domains).min()
    assert (highest.to_numpy()[:-1] < lowest.to_numpy()[1:]).all(), "the depth is not that of the layers"
    return tissue, depth


def depth_of_layers(seed: int) -> tuple[float, float]:
    """Absolute correlation with the true depth: of the true domains, of identified ones."""
    tissue, depth = true_depth(seed, 2000)
    adata = with_domains(tissue.counts, tissue.coordinates, 6, seed)
    adata.obs["truth"] = pd.Categorical(tissue.annotation)
    found = []
    for domain in ("truth", None):
        analysis.tissue_depth(adata, domain=domain)
        own = adata.obs["amilst_layer_depth"].to_numpy()
        known = ~np.isnan(own)
        found.append(float(abs(pearsonr(own[known], depth[known])[0])))
    return found[0], found[1]


def correctness(options: argparse.Namespace) -> Json:
    seeds = range(options.seeds)
    result: Json = {}
    for name, dispersion in (("Poisson", 0.0), ("dispersion 0.1", 0.1), ("dispersion 0.5", 0.5)):
        naive, safe = zip(*(markers_in_noise(dispersion, seed) for seed in seeds), strict=True)
        result[f"markers, no domains, {name}: naive p <= 0.05"] = naive
        result[f"markers, no domains, {name}: p <= 0.05 in counts set aside"] = safe
    naive, safe, overlap = zip(*(markers_in_tissue(seed) for seed in seeds), strict=True)
    result["markers, tissue: true ones found naively"] = naive
    result["markers, tissue: true ones found in counts set aside"] = safe
    result["markers, tissue: overlap of the domains identified again"] = overlap
    runs = [variable_genes(seed) for seed in seeds]
    result |= {f"spatially variable, {name} <= 0.05": [run[name] for run in runs] for name in runs[0]}
    result["enrichment, random domains: p <= 0.05"] = [random_enrichment(seed) for seed in range(200)]
    cohorts = [null_cohort(seed) for seed in range(options.cohorts)]
    result |= {f"null cohorts, {name} <= 0.05": [one[name] for one in cohorts] for name in cohorts[0]}
    truth, own = zip(*(depth_of_layers(seed) for seed in seeds), strict=True)
    result["depth, true layers: correlation"] = truth
    result["depth, identified layers: correlation"] = own
    return {name: [float(value) for value in values] for name, values in result.items()}


# --- seconds and memory -----------------------------------------------------------------------


def cells(n_cells: int, n_genes: int) -> ad.AnnData:
    """Simulated cells with a twelfth of a count per gene; beyond 300 genes, the same genes repeat."""
    repeats = max(1, n_genes // 300)
    tissue = simulate.simulate_tissue(
        n_cells, n_genes // repeats, 20, layout="blobs", arrangement="cells", median_counts=n_genes / repeats / 12
    )  # fmt: skip
    counts = sparse.hstack([tissue.counts] * repeats, format="csr", dtype=np.float32)
    adata = ad.AnnData(counts, var=pd.DataFrame(index=[f"g{i}" for i in range(counts.shape[1])]))
    adata.obsm["spatial"] = tissue.coordinates
    names = [str(code + 1) for code in range(20)]
    for column in ("amilst_domain", "amilst_domain_refined"):
        adata.obs[column] = pd.Categorical.from_codes(tissue.domains, categories=names)
    graph = SpatialGraph.from_coordinates(tissue.coordinates, n_neighbors=6)
    adata.obsp["spatial_connectivities"] = graph.connectivities()
    # twelve sections, of two conditions, that share a tissue, and edges within sections
    stripe = pd.qcut(tissue.coordinates[:, 0], 12, labels=False)
    adata.obs["section"] = pd.Categorical(stripe.astype(str))
    adata.obs["condition"] = pd.Categorical(np.where(stripe % 2, "a", "b"))
    return adata


def times(n_cells: int, n_genes: int, threads: int) -> Json:
    """Seconds and peak memory of every analysis, in this process."""
    use_threads(threads)
    warnings.simplefilter("ignore")
    watch = Watch()
    watch.enter("simulate")
    processor: dict[str, float] = {}
    adata = cells(n_cells, n_genes)
    options: dict[str, Json] = {
        "comparison": {"condition_key": "condition", "sample_key": "section"},
        "composition": {"sample_key": "section"},
    }
    for name, function in analysis.ANALYSES.items():
        watch.enter(name)
        before = time.process_time()
        function(adata, **options.get(name, {}))
        processor[name] = time.process_time() - before
    watch.enter("end")
    watch.over.set()
    peak: dict[str, int] = {}
    resident = watch.peak["simulate"]
    for name in analysis.ANALYSES:  # the shortest end before the memory is looked at
        resident = peak[name] = watch.peak.get(name, resident)
    return {
        "cells": n_cells,
        "genes": n_genes,
        "counts": int(adata.X.nnz),
        "seconds": {name: watch.seconds[name] for name in analysis.ANALYSES},
        "processor_seconds": processor,
        "peak_bytes": peak,
    }


def table(record: Json) -> str:
    """Both tables as Markdown."""
    text = []
    if "correctness" in record:
        rows = [[name, spread(values), len(values)] for name, values in record["correctness"].items()]
        text.append(markdown(["quantity", "mean ± s.d.", "runs"], rows))
    if "results" in record:
        runs = record["results"]
        header = ["analysis", *(f"{run['cells']:,} cells × {run['genes']:,} genes" for run in runs)]
        rows = [[name, *(_cost(run, name) for run in runs)] for name in runs[0]["seconds"]]
        text.append(markdown(header, rows))
    return "\n\n".join(text)


def _cost(run: Json, name: str) -> str:
    seconds, processor, peak = (
        run[column][name] for column in ("seconds", "processor_seconds", "peak_bytes")
    )
    return f"{seconds:.1f} ({processor:.1f}) s, {peak / 2**30:.1f} GiB"


def main() -> int:
    parser = make_parser(__doc__, seeds=10)
    parser.add_argument("--cohorts", type=int, default=1000, help="null cohorts (default: 1000)")
    parser.add_argument(
        "--cells", type=int, nargs="*", default=[10_000, 100_000], help="sizes that are timed"
    )
    parser.add_argument("--genes", type=int, default=3000, help="genes of the timed data (default: 3000)")
    parser.add_argument("--skip-correctness", action="store_true", help="time the analyses only")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    record = Record(options, "analysis", seeds=options.seeds, cohorts=options.cohorts)
    if not options.skip_correctness:
        use_threads(options.threads)
        record.data["correctness"] = correctness(options)
        record.write()
    for n_cells in options.cells:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            row = pool.submit(times, n_cells, options.genes, options.threads or 2).result()
        record.add_row(row)
    print(table(record.data))
    return 0


if __name__ == "__main__":
    sys.exit(main())
