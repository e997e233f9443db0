"""Whether the filter, and the network after it, predict counts that they have not seen.

    python benchmarks/denoising.py DIR [--seeds 3] [--sections NAME ...] [--json FILE]

Half of the counts of at most 1,000 neighboring spots are set aside by binomial thinning. From the other half,
principal components, filtered components and the network's reconstruction of these are computed; each predicts the
counts set aside (`amilst_lite.train.share`). The table shows the mean Poisson deviance per spot, lower is better. Each
seed draws its own thinning.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from common import Json, make_section_parser, markdown, read_annotated, run_sections, spread


def measure(path: Path, options: argparse.Namespace) -> Json | None:
    """Deviances and share, seed by seed; None without an annotation."""
    import amilst_lite as amilst
    from amilst_lite.train import network_share

    section = read_annotated(path)
    if section is None:
        return None
    adata, _ = section
    config = amilst.Config()
    graph = amilst.SpatialGraph.from_coordinates(
        np.asarray(adata.obsm["spatial"]), n_neighbors=config.graph.n_neighbors
    )
    result: Json = {"raw": [], "filter": [], "half network": [], "network": [], "error": [], "share": []}
    for seed in range(options.seeds):
        found = network_share(adata.X, graph, config, seed=seed, device=options.device)
        result["raw"].append(found.raw_deviance)
        for name, value in zip(("filter", "half network", "network"), found.deviance, strict=True):
            result[name].append(float(value))
        result["error"].append(float(found.error[1]))
        result["share"].append(found.share)
    return result


def table(record: Json) -> str:
    """One row for each section."""
    rows = [
        [name]
        + [spread(one[kind]) for kind in ("raw", "filter", "half network", "network")]
        + [f"{np.mean(one['error']):.3f}", f"{np.mean(one['share']):.4f}"]
        for name, one in record["sections"].items()
    ]
    header = ["section", "raw", "filter", "filter and network, half each", "network", "error", "share"]
    return markdown(header, rows)


def main() -> int:
    options = make_section_parser(__doc__, seeds=3).parse_args()
    run_sections(
        options,
        "denoising",
        measure,
        lambda result: f"filter {spread(result['filter'])}, network {spread(result['network'])}",
        table,
        seeds=options.seeds,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
