"""How the ARI holds against poorer data and other settings, on annotated sections.

    python benchmarks/robustness.py DIR [--seeds 3] [--only SECTION ...] [--json FILE]

Counts thinned binomially to 50, 25 and 10 %; 10 and 30 % of the spots dropped; coordinates jittered by
a quarter and a half of the spacing; 4 to 12 neighbours; 15 to 50 components; K one too few or too many.
Each seed draws its own perturbation.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
from accuracy import tissue_means
from record import circumstances
from scipy.spatial import cKDTree

import amilst_lite as amilst

Perturb = Callable[[ad.AnnData, np.random.Generator], ad.AnnData]


def thin(share: float) -> Perturb:
    def change(adata: ad.AnnData, rng: np.random.Generator) -> ad.AnnData:
        adata.X.data = rng.binomial(adata.X.data.astype(np.int64), share).astype(np.float32)
        adata.X.eliminate_zeros()
        return adata

    return change


def drop(share: float) -> Perturb:
    def change(adata: ad.AnnData, rng: np.random.Generator) -> ad.AnnData:
        return adata[rng.random(adata.n_obs) >= share].copy()

    return change


def jitter(spacings: float) -> Perturb:
    def change(adata: ad.AnnData, rng: np.random.Generator) -> ad.AnnData:
        points = np.asarray(adata.obsm["spatial"], dtype=np.float64)
        spacing = np.median(cKDTree(points).query(points, 2)[0][:, 1])
        adata.obsm["spatial"] = points + rng.normal(0, spacings * spacing, points.shape)
        return adata

    return change


def as_it_is(adata: ad.AnnData, rng: np.random.Generator) -> ad.AnnData:
    return adata


CASES: dict[str, tuple[Perturb, dict[str, Any], int]] = {
    "as it is": (as_it_is, {}, 0),
    **{f"counts thinned to {share:.0%}": (thin(share), {}, 0) for share in (0.5, 0.25, 0.1)},
    **{f"{share:.0%} of the spots dropped": (drop(share), {}, 0) for share in (0.1, 0.3)},
    **{f"coordinates jittered by {s} spacings": (jitter(s), {}, 0) for s in (0.25, 0.5)},
    **{f"{k} neighbours": (as_it_is, {"n_neighbors": k}, 0) for k in (4, 8, 12)},
    **{f"{n} components": (as_it_is, {"n_components": n}, 0) for n in (15, 20, 50)},
    "K one too few": (as_it_is, {}, -1),
    "K one too many": (as_it_is, {}, +1),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", help="names of sections (default: all)")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    sections = {
        path.stem: adata
        for path in sorted(options.folder.glob("*.h5ad"))
        if (not options.only or path.stem in options.only)
        and "ground_truth" in (adata := ad.read_h5ad(path)).obs
    }
    if not sections:
        print(f"no annotated sections in {options.folder}", file=sys.stderr)
        return 2
    warnings.simplefilter("ignore")
    record: dict[str, Any] = {}
    print(f"{'case':36s} {'mean':>6s} " + " ".join(f"{name[-14:]:>14s}" for name in sections))
    for case, (perturb, settings, shift) in CASES.items():
        found: dict[str, list[float]] = {}
        for name, original in sections.items():
            found[name] = []
            n_domains = max(2, int(original.obs["ground_truth"].nunique()) + shift)
            for seed in range(options.seeds):
                adata = perturb(original.copy(), np.random.default_rng(seed))
                amilst.identify_domains(adata, n_domains, seed=seed, **settings)
                found[name].append(amilst.score(adata, "ground_truth")["ari"])
        mean = tissue_means({name: float(np.mean(values)) for name, values in found.items()})
        cells = " ".join(f"{np.mean(v):8.3f}±{np.std(v):.3f}" for v in found.values())
        print(f"{case:36s} {mean:6.3f} {cells}", flush=True)
        record[case] = {"mean": mean, "sections": found}
        if options.json:
            options.json.write_text(json.dumps({"cases": record, **circumstances()}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
