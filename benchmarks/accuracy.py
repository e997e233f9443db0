"""ARI and NMI on annotated sections, over several seeds, beside controls that train nothing.

    python benchmarks/accuracy.py DIR --seeds 10 [--preset NAME] [--set NAME=VALUE ...] [--json FILE]

DIR holds h5ad files with ``obs["ground_truth"]``; K is the number of its labels, spots without one are
left out of the scores only. A file without genes but with ``obsm["X_pca"]`` is used from there on. The
annotation is looked at after the domains are found, never before.

Three controls run beside each section, with the same seeds and the same number of mixture starts:
``PCs`` (20 components), ``PCs averaged`` (15 components, averaged four times over the 12-neighbour graph),
both clustered by the plain tied mixture; and ``filtered`` (our features and mixture without the network).

Each section runs in a process of its own, so that its peak memory is its own. The mean over tissues
counts the sections whose names share a prefix before ``_`` (such as her2st_A1, her2st_B1) as one tissue.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from record import circumstances

CONTROLS = ("PCs", "PCs averaged", "filtered")


def measure(
    path: Path, seeds: int, preset: str, settings: dict[str, Any], with_controls: bool = True
) -> dict[str, Any] | None:
    """All runs of one section; None when it has no annotation."""
    import anndata

    import amilst_lite as amilst
    from amilst_lite.runtime import peak_memory

    warnings.simplefilter("ignore")
    adata = anndata.read_h5ad(path)
    if "ground_truth" not in adata.obs:
        return None
    truth = adata.obs["ground_truth"]
    n_domains = int(truth.nunique())
    use_rep = "X_pca" if adata.n_vars == 0 and "X_pca" in adata.obsm else None
    result: dict[str, Any] = {"spots": adata.n_obs, "domains": n_domains}
    for name in ("ari", "nmi", "refined_ari", "seconds"):
        result[name] = []
    for seed in range(seeds):
        copy = adata.copy()
        start = time.perf_counter()
        amilst.identify_domains(copy, n_domains, seed=seed, preset=preset, use_rep=use_rep, **settings)
        result["seconds"].append(time.perf_counter() - start)
        scores = amilst.score(copy, "ground_truth")
        result["ari"].append(scores["ari"])
        result["nmi"].append(scores["nmi"])
        refined = amilst.score(copy, "ground_truth", domain="amilst_domain_refined")
        result["refined_ari"].append(refined["ari"])
        if seed == 0:
            result["calibration"] = calibration(copy)
    result["peak_bytes"] = peak_memory()["ram_bytes"]
    if with_controls:
        result["controls"] = controls(adata, n_domains, seeds, use_rep)
    return result


def calibration(adata: Any) -> list[tuple[float, float, int]]:
    """(mean confidence, share whose domain's majority label is theirs, spots) by decile of confidence."""
    import pandas as pd

    labelled = adata.obs[adata.obs["ground_truth"].notna()]
    domain = labelled["amilst_domain"].astype(str)
    label = labelled["ground_truth"].astype(str)
    majority = pd.crosstab(domain, label).idxmax(axis=1)
    right = (domain.map(majority) == label).to_numpy()
    confidence = labelled["amilst_confidence"].to_numpy()
    deciles = np.array_split(np.argsort(confidence, kind="stable"), 10)
    return [(float(confidence[rows].mean()), float(right[rows].mean()), len(rows)) for rows in deciles]


def controls(adata: Any, n_domains: int, seeds: int, use_rep: str | None) -> dict[str, list[float]]:
    """ARI of the three untrained controls, seed by seed."""
    import torch

    import amilst_lite as amilst
    from amilst_lite.config import Config
    from amilst_lite.estimator import build_graph, filter_features
    from amilst_lite.metrics import adjusted_rand_index
    from amilst_lite.nn.sparse import SymmetricAdjacency, propagate
    from amilst_lite.preprocess import prepare

    config = Config()
    coordinates = np.asarray(adata.obsm["spatial"], dtype=np.float64)
    truth = adata.obs["ground_truth"].to_numpy()
    near, wide = (build_graph(coordinates, config.replace(n_neighbors=k).graph) for k in (6, 12))
    if use_rep is None:
        plain = config.replace(n_top_genes=None, top_up=0.0, scale_genes=True, n_components=20)
        pcs = prepare(adata.X, plain.preprocess).features
        ours = prepare(adata.X, config.preprocess, near.connectivities()).features
    else:
        pcs = ours = np.asarray(adata.obsm[use_rep], dtype=np.float32)
    adjacency = SymmetricAdjacency(wide.adjacency())
    averaged = torch.from_numpy(pcs[:, :15])[torch.from_numpy(wide.order)]
    for _ in range(4):
        averaged = propagate(adjacency, averaged)
    cpu = torch.device("cpu")
    inputs = {
        "PCs": (pcs[:, :20], 0.0),
        "PCs averaged": (averaged[torch.from_numpy(wide.rank)].numpy(), 0.0),
        "filtered": (filter_features(torch.from_numpy(ours), near, config.filter, 0, cpu).numpy(),
                     config.cluster.covariance_prior),
    }  # fmt: skip
    found: dict[str, list[float]] = {}
    for name, (features, prior) in inputs.items():
        found[name] = []
        for seed in range(seeds):
            mixture = amilst.GaussianMixture(
                n_domains, n_init=config.cluster.n_init, covariance_prior=prior, random_state=seed
            )
            found[name].append(adjusted_rand_index(truth, mixture.fit_predict(features)))
    return found


def tissue_means(values: dict[str, float]) -> float:
    """Mean over tissues, sections of one tissue counted together."""
    tissues: dict[str, list[float]] = {}
    several = {name.rsplit("_", 1)[0] for name in values if "_" in name}
    for name, value in values.items():
        prefix = name.rsplit("_", 1)[0]
        siblings = [other for other in values if "_" in other and other.rsplit("_", 1)[0] == prefix]
        tissues.setdefault(prefix if prefix in several and len(siblings) > 1 else name, []).append(value)
    return float(np.mean([np.mean(one) for one in tissues.values()]))


def spread(values: list[float]) -> str:
    return f"{np.mean(values):.3f} ± {np.std(values):.3f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--preset", default="default")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="change a setting")
    parser.add_argument("--only", nargs="*", help="names of sections (default: all)")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    settings = {}
    for item in options.set:
        name, _, text = item.partition("=")
        try:
            settings[name] = json.loads(text)
        except json.JSONDecodeError:
            settings[name] = text
    paths = sorted(options.folder.glob("*.h5ad"))
    if options.only:
        paths = [path for path in paths if path.stem in options.only]
    if not paths:
        print(f"no h5ad files to score in {options.folder}", file=sys.stderr)
        return 2

    sections: dict[str, Any] = {}
    columns = ("ARI", "NMI", "refined ARI", *CONTROLS)
    print(
        f"{'section':22s} {'spots':>6s} {'K':>3s} "
        + " ".join(f"{c:>15s}" for c in columns)
        + "       s   MiB"
    )
    for path in paths:
        # a process for each section: peak memory is counted over a process's whole life
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            found = pool.submit(measure, path, options.seeds, options.preset, settings).result()
        if found is None:
            print(f"{path.stem:22s} has no obs['ground_truth']: left out")
            continue
        sections[path.stem] = found
        cells = [spread(found[key]) for key in ("ari", "nmi", "refined_ari")]
        cells += [spread(found["controls"][name]) for name in CONTROLS]
        print(
            f"{path.stem:22s} {found['spots']:6d} {found['domains']:3d} "
            + " ".join(f"{cell:>15s}" for cell in cells)
            + f" {np.median(found['seconds']):7.1f} {(found['peak_bytes'] or 0) / 2**20:5.0f}",
            flush=True,
        )
    if not sections:
        return 2
    summary = {
        "ari": tissue_means({name: float(np.mean(one["ari"])) for name, one in sections.items()}),
        "refined_ari": tissue_means({n: float(np.mean(one["refined_ari"])) for n, one in sections.items()}),
        "sd": float(np.mean([np.std(one["ari"]) for one in sections.values()])),
        "controls": {
            name: tissue_means({n: float(np.mean(one["controls"][name])) for n, one in sections.items()})
            for name in CONTROLS
        },
    }
    print(
        f"mean over tissues: ARI {summary['ari']:.3f} (mean sd within a section {summary['sd']:.3f}), "
        f"refined {summary['refined_ari']:.3f}; "
        + ", ".join(f"{name} {value:.3f}" for name, value in summary["controls"].items())
    )
    if options.json:
        record = {
            "sections": sections,
            "summary": summary,
            "preset": options.preset,
            "settings": settings,
            "seeds": options.seeds,
            **circumstances(),
        }
        options.json.write_text(json.dumps(record, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
