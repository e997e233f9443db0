"""A very large section from arrays: features and coordinates to domains.

    python benchmarks/large.py [--cells 10000000] [--features 50] [--device cuda] [--json FILE]

Cells lie at random in a square that 300 seeds divide into regions, each of one of 20 domains. A cell's features are
its domain's mean and noise three times as strong, so that a single cell says little. They are made on the device.
Time is that of `AMILST.fit`, stage by stage; memory is the peak of the process and of the GPU.
"""

from __future__ import annotations

import sys
import time

import torch
from common import Json, Record, make_parser, markdown, use_threads

from amilst_lite import AMILST
from amilst_lite.metrics import adjusted_rand_index
from amilst_lite.runtime import make_generator, peak_memory, resolve_device

N_DOMAINS, N_REGIONS, NOISE, ROWS = 20, 300, 3.0, 1_000_000


def simulate(n_cells: int, n_features: int, device: torch.device, seed: int) -> tuple[torch.Tensor, ...]:
    """Features (n, C) on the device, coordinates (n, 2) and true domains (n,)."""
    generator = make_generator(seed, device)
    places = torch.rand(n_cells, 2, device=device, generator=generator)
    seeds = torch.rand(N_REGIONS, 2, device=device, generator=generator)
    owner = torch.arange(N_REGIONS, device=device) % N_DOMAINS
    means = torch.randn(N_DOMAINS, n_features, device=device, generator=generator)
    domains = torch.cat([owner[torch.cdist(block, seeds).argmin(1)] for block in places.split(ROWS)])
    features = torch.empty(n_cells, n_features, device=device).normal_(0.0, NOISE, generator=generator)
    for rows in torch.arange(n_cells, device=device).split(ROWS):
        features[rows] += means[domains[rows]]
    return features, places, domains


def table(record: Json) -> str:
    """One row for each run."""
    rows = []
    for one in record["results"]:
        memory, device = one["peak_memory"]["ram_bytes"] or 0, one["peak_memory"].get("vram_bytes")
        rows.append(
            [f"{one['cells']:,}", one["features"], f"{one['total_seconds']:.0f}", f"{memory / 2**30:.1f}",
             f"{device / 2**30:.1f}" if device else "", f"{one['ari']:.3f}"]
        )  # fmt: skip
    return markdown(["cells", "features", "seconds", "GiB", "GPU GiB", "ARI"], rows)


def main() -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--cells", type=int, nargs="+", default=[10_000_000])
    parser.add_argument("--features", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    use_threads(options.threads)
    device = resolve_device(options.device)
    record = Record(options, "large")
    for n_cells in options.cells:
        features, places, domains = simulate(n_cells, options.features, device, options.seed)
        coordinates, truth = places.cpu().numpy(), domains.cpu().numpy()
        start = time.perf_counter()
        model = AMILST(N_DOMAINS, seed=options.seed, device=str(device))
        model.fit(features, coordinates=coordinates)
        record.add_row(
            {
                "cells": n_cells,
                "features": options.features,
                "seed": options.seed,
                "total_seconds": time.perf_counter() - start,
                "seconds": model.seconds_,
                "peak_memory": peak_memory(device),
                "ari": adjusted_rand_index(truth, model.labels_),
            }
        )
        for stage, seconds in model.seconds_.items():
            print(f"  {stage:8s} {seconds:8.2f} s", flush=True)
    print(table(record.data))
    return 0


if __name__ == "__main__":
    sys.exit(main())
