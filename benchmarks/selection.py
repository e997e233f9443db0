"""The number of domains that is chosen when none is given, beside the number annotated.

    python benchmarks/selection.py DIR [--seeds 3] [--only SECTION ...] [--json FILE]

DIR as for accuracy.py. ARI is that of the domains at the number chosen. Stability is the mean adjusted mutual
information between labels of subsamples, by which the choice is made (`amilst_lite.cluster.select_n_domains`).
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
from record import circumstances

import amilst_lite as amilst


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", help="names of sections (default: all)")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    record: dict[str, Any] = {}
    print(f"{'section':22s} {'annotated':>9s} {'chosen':>12s} {'runners-up of seed 0':>20s} {'ARI':>15s}")
    for path in sorted(options.folder.glob("*.h5ad")):
        original = ad.read_h5ad(path)
        if (options.only and path.stem not in options.only) or "ground_truth" not in original.obs:
            continue
        chosen, scores, tables = [], [], []
        for seed in range(options.seeds):
            adata = original.copy()
            amilst.identify_domains(adata, seed=seed)
            found = adata.uns["amilst"]
            chosen.append(int(found["n_domains"]))
            scores.append(amilst.score(adata, "ground_truth")["ari"])
            tables.append({name: np.asarray(column).tolist() for name, column in found["selection"].items()})
        first = tables[0]
        order = np.argsort(-np.asarray(first["stability"]), kind="stable")
        others = [first["n_domains"][i] for i in order if first["n_domains"][i] != chosen[0]][:3]
        annotated = int(original.obs["ground_truth"].nunique())
        record[path.stem] = {"annotated": annotated, "chosen": chosen, "ari": scores, "tables": tables}
        print(
            f"{path.stem:22s} {annotated:9d} {', '.join(map(str, chosen)):>12s} "
            f"{', '.join(map(str, others)):>20s} {np.mean(scores):7.3f} ± {np.std(scores):.3f}",
            flush=True,
        )
        if options.json:
            options.json.write_text(json.dumps({**circumstances(), "sections": record}, indent=1) + "\n")
    if not record:
        print(f"no annotated sections in {options.folder}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
