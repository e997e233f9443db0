"""The default with each of its ideas taken away, on annotated sections, over several seeds.

    python benchmarks/ablation.py DIR [--seeds 10] [--jobs 2] [--only SECTION ...] [--json FILE]

Each row is the default with one change; the difference is to the default on the same sections and
seeds. The standard error is of that difference over seeds, of the mean over tissues.
"""

from __future__ import annotations

import argparse
import json
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from accuracy import measure, tissue_means
from record import circumstances

VARIANTS: dict[str, dict[str, object]] = {
    "default": {},
    "no masking": {"corruption": 0.0},
    "no graph encoder (VGAE)": {"graph_latent": 0},
    "links and KL a hundredth": {"link_weight": 0.001},
    "no mutual information": {"mutual_information_weight": 0.0},
    "no adversary": {"adversary": False},
    "one network": {"members": 1},
    "network alone (no consensus with the features)": {"network_share": 1.0},
    "no network": {"network_share": 0.0, "epochs": 1, "members": 1},
    "no spatial filter": {"noise_band": None},
    "plain mixture (no spherical prior)": {"covariance_prior": 0.0},
    "one start of the mixture": {"n_init": 1},
    "no filling of shallow spots": {"top_up": 0.0},
    "all genes": {"n_top_genes": None},
    "genes scaled to unit variance": {"scale_genes": True},
    "12 neighbours": {"n_neighbors": 12},
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=1, help="sections at a time")
    parser.add_argument("--only", nargs="*", help="names of sections (default: all)")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    paths = [p for p in sorted(options.folder.glob("*.h5ad")) if not options.only or p.stem in options.only]
    record: dict[str, dict[str, object]] = {}
    by_seed: dict[str, np.ndarray] = {}
    print(f"{'variant':48s} {'ARI':>7s} {'change':>15s} {'sd':>7s} {'s':>7s}")
    for name, settings in VARIANTS.items():
        with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
            runs = {
                path: pool.submit(measure, path, options.seeds, "default", settings, False) for path in paths
            }
        found = {path.stem: run.result() for path, run in runs.items()}
        scored = {section: one for section, one in found.items() if one is not None}
        if not scored:
            print(f"no annotated sections in {options.folder}", file=sys.stderr)
            return 2
        by_seed[name] = np.array(
            [
                tissue_means({k: one["ari"][seed] for k, one in scored.items()})
                for seed in range(options.seeds)
            ]
        )
        change = by_seed[name] - by_seed["default"]
        error = change.std(ddof=1) / np.sqrt(len(change)) if len(change) > 1 else float("nan")
        sd = np.mean([np.std(one["ari"]) for one in scored.values()])
        seconds = np.sum([np.median(one["seconds"]) for one in scored.values()])
        print(
            f"{name:48s} {by_seed[name].mean():7.3f} {change.mean():+7.3f} ± {error:.3f} {sd:7.3f} {seconds:7.1f}",
            flush=True,
        )
        record[name] = {
            "settings": settings,
            "ari": float(by_seed[name].mean()),
            "change": float(change.mean()),
            "error": float(error),
            "sd": float(sd),
            "seconds": float(seconds),
            "sections": {k: one["ari"] for k, one in scored.items()},
        }
        if options.json:
            options.json.write_text(json.dumps({"variants": record, **circumstances()}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
