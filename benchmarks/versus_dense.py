"""The published formulation with its dense N × N arrays against ours: same objective, same epochs.

    python benchmarks/versus_dense.py [--spots 1000 3600 8000] [--epochs 20] [--json FILE]

Both sides train the published network on the same simulated section, from the same weights and the same
random numbers, with the objective of the published first phase, 10·reconstruction + 0.1·(links + KL). They
differ in two things only. The published program makes Â dense in every graph layer, and it scores all N²
pairs of spots: logits z·zᵀ, a mask and labels A + I, binary cross-entropy with a positive weight of one. Ours
multiplies by the sparse Â and computes the same loss from its edges. Each run is a process of its own; its
peak memory is what it holds beyond the process before training.

Exit status 1 if the losses differ by more than 1e-4 of their size, or the ratio of times at 3,600 spots is
below 30.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import circumstances
from torch import Tensor
from torch.nn import functional

from amilst_lite import losses
from amilst_lite.config import PRESETS
from amilst_lite.estimator import build_graph
from amilst_lite.nn import autoencoders, layers
from amilst_lite.pipeline import simulate_section
from amilst_lite.preprocess import prepare
from amilst_lite.runtime import peak_memory
from amilst_lite.train import train

TERMS = ("reconstruction", "links", "kl", "network")


def dense_convolve(adjacency: Any, x: Tensor) -> Tensor:
    """Â·x as the published layers do it."""
    return torch.mm(adjacency.coo.to_dense(), x)


class DenseLinks:
    """The published link loss, over all pairs."""

    def __init__(self) -> None:
        self.labels: Tensor | None = None

    def __call__(self, z: Tensor, edges: Tensor) -> Tensor:
        """As `amilst_lite.losses.masked_link_loss`."""
        n = len(z)
        if self.labels is None:
            self.labels = torch.eye(n)
            self.labels[edges[0], edges[1]] = self.labels[edges[1], edges[0]] = 1.0
        norm = n * n / (2.0 * (n * n - 2.0 * edges.shape[1]))
        logits = torch.mm(z, z.T) * self.labels
        return norm * functional.binary_cross_entropy_with_logits(
            logits, self.labels * self.labels, pos_weight=torch.tensor(1.0)
        )


def run_once(n_spots: int, dense: bool, epochs: int, seed: int) -> dict[str, Any]:
    """Train one side and say what it took."""
    config = PRESETS["published"].replace(epochs=epochs, adversarial_epochs=0)
    section = simulate_section(n_spots, 500, 7, seed=seed)
    features = torch.from_numpy(prepare(section.X, config.preprocess).features)
    graph = build_graph(section.obsm["spatial"], config.graph)
    if dense:
        layers.graph_convolve = autoencoders.graph_convolve = dense_convolve
        losses.masked_link_loss = DenseLinks()
    before = peak_memory()["ram_bytes"]
    at: list[float] = []
    result = train(
        features,
        graph,
        network_config=config.network,
        config=config.train,
        seed=seed,
        callback=lambda *_: at.append(time.perf_counter()),
    )
    return {
        "epoch_seconds": statistics.median(np.diff(at)),
        "bytes": peak_memory()["ram_bytes"] - before,
        "losses": {name: result.history[name] for name in TERMS},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--spots", type=int, nargs="+", default=[1000, 3600, 8000])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--once", choices=["dense", "ours"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        done = run_once(options.spots[0], options.once == "dense", options.epochs, options.seed)
        print(json.dumps(done))
        return 0
    results = []
    holds = True
    print(f"{'spots':>6} {'dense':>20} {'ours':>20} {'time':>6} {'memory':>7} {'losses differ by':>17}")
    for n_spots in options.spots:
        sides = {}
        for side in ("dense", "ours"):
            command = [sys.executable, __file__, "--once", side, "--spots", str(n_spots)]
            command += ["--epochs", str(options.epochs), "--seed", str(options.seed)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{side}, {n_spots} spots: {done.stderr.strip()[-2000:]}")
            sides[side] = json.loads(done.stdout.splitlines()[-1])
        dense, ours = sides["dense"], sides["ours"]
        deviation = max(
            float(np.max(np.abs(np.subtract(dense["losses"][name], ours["losses"][name]))))
            / float(np.max(np.abs(dense["losses"][name])))
            for name in TERMS
        )
        ratio = dense["epoch_seconds"] / ours["epoch_seconds"]
        memory = dense["bytes"] / max(ours["bytes"], 1)
        holds &= deviation <= 1e-4 and (n_spots != 3600 or ratio >= 30)
        shown = [f"{1e3 * s['epoch_seconds']:8.1f} ms {s['bytes'] / 2**20:5.0f} MiB" for s in (dense, ours)]
        print(
            f"{n_spots:6} {shown[0]:>20} {shown[1]:>20} {ratio:5.1f}× {memory:6.1f}× {deviation:17.1e}",
            flush=True,
        )
        results.append({"spots": n_spots, **sides, "time_ratio": ratio, "memory_ratio": memory})
    if options.json:
        record = {
            "benchmark": "versus_dense",
            **circumstances(),
            "epochs": options.epochs,
            "results": results,
        }
        options.json.write_text(json.dumps(record, indent=1) + "\n")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
