"""A section of arrays too large for most machines: from features and coordinates to domains.

    python benchmarks/large.py [--cells 10000000] [--features 50] [--device cuda] [--json FILE]

Cells lie at random in a square that 300 seeds divide into regions, each of one of 20 domains; a cell's
features are its domain's mean and noise three times as strong, so that a cell alone says little. They are
made on the device. Time is that of `AMILST.fit`, stage by stage; memory is the process's peak and the GPU's.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from record import circumstances

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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=10_000_000)
    parser.add_argument("--features", type=int, default=50)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = resolve_device(options.device)
    features, places, domains = simulate(options.cells, options.features, device, options.seed)
    coordinates, truth = places.cpu().numpy(), domains.cpu().numpy()
    start = time.perf_counter()
    model = AMILST(N_DOMAINS, seed=options.seed, device=str(device)).fit(features, coordinates)
    total = time.perf_counter() - start
    ari = adjusted_rand_index(truth, model.labels_)
    peak = peak_memory(device)
    print(f"{options.cells:,} cells × {options.features} features on {device}: {total:.1f} s, ARI {ari:.3f}")
    for stage, seconds in model.seconds_.items():
        print(f"  {stage:8s} {seconds:8.2f} s")
    for name, value in peak.items():
        print(f"  {name}: {(value or 0) / 2**20:,.0f} MiB")
    if options.json:
        record = {
            "benchmark": "large",
            **circumstances(device),
            "cells": options.cells,
            "features": options.features,
            "seed": options.seed,
            "total_seconds": total,
            "seconds": model.seconds_,
            "peak_memory": peak,
            "ari": ari,
        }
        options.json.write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
