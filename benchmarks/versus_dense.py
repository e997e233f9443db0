"""The published formulation with its dense N × N arrays against ours: same objective, same epochs.

    python benchmarks/versus_dense.py [--spots 1000 3600 8000] [--epochs 10] [--json FILE]

Both sides train the published network on the same simulated section with the published two phases, from the
same weights and random numbers. The dense side computes as the published program does: every graph layer makes
Â dense and multiplies by it; the links are scored over all N² pairs (logits z·zᵀ times a mask, labels A + I,
binary cross-entropy with a positive weight); an epoch of the second phase makes five forward passes, of which
two reach the result in the repaired form. Ours multiplies by the sparse Â, computes the same loss from its
edges, and makes the two passes. Each run is a process of its own; its memory is what it takes beyond the
process before training. The ratio of times is that of a whole training of 200 + 200 epochs.

Exit status 1 if any loss differs by more than 1e-4 of its largest value, or the ratio of times at 3,600 spots
is below 30.
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
from amilst_lite.runtime import make_generator, peak_memory
from amilst_lite.train import Trainer


def dense_convolve(adjacency: Any, x: Tensor) -> Tensor:
    """Â·x as the published layers do it: one dense Â for each, μ and log σ apart."""
    layers_of = x.chunk(2, dim=1) if x.shape[1] == 2 * PRESETS["published"].network.graph_latent else (x,)
    return torch.cat([torch.mm(adjacency.coo.to_dense(), part) for part in layers_of], dim=1)


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


class FixedCenters(Trainer):
    """Starts the clustering term from spots at even distances: k-means may take rounding for a reason."""

    def _place_centers(self) -> None:
        latent = self._embed()
        n_centers = len(self.network.centers)
        with torch.no_grad():
            self.network.centers.copy_(latent[:: len(latent) // n_centers][:n_centers])


class DenseTrainer(FixedCenters):
    """Makes the three further forward passes of the published second phase."""

    def _published_adversarial_epoch(self, epoch: int) -> dict[str, Tensor]:
        terms = super()._published_adversarial_epoch(epoch)
        norms = [module for module in self.network.modules() if isinstance(module, layers.BatchNorm)]
        for norm in norms:
            norm.momentum = 0.0  # the running statistics stay those of the passes that count
        for _ in range(3):
            batch = self.batches[0]
            self.network(self.features, batch.adjacency, generator=make_generator(epoch))
        for norm in norms:
            norm.momentum = 0.01
        return terms


def run_once(n_spots: int, dense: bool, epochs: int, seed: int) -> dict[str, Any]:
    """Train one side and say what it took."""
    config = PRESETS["published"].replace(epochs=epochs, adversarial_epochs=epochs, record_every=1)
    section = simulate_section(n_spots, 500, 7, seed=seed)
    features = torch.from_numpy(prepare(section.X, config.preprocess).features)
    graph = build_graph(section.obsm["spatial"], config.graph)
    trainer_class = FixedCenters
    if dense:
        layers.graph_convolve = autoencoders.graph_convolve = dense_convolve
        losses.masked_link_loss = DenseLinks()
        trainer_class = DenseTrainer
    before = peak_memory()["ram_bytes"]
    at: list[float] = []
    trainer = trainer_class(features, graph, network_config=config.network, config=config.train, seed=seed)
    # torch's own number of threads for both
    result = trainer._run(lambda *_: at.append(time.perf_counter()))
    took = np.diff(at)
    first, second = statistics.median(took[: epochs - 1]), statistics.median(took[epochs:])
    return {
        "epoch_seconds": [first, second],
        "training_seconds": 200 * (first + second),
        "bytes": peak_memory()["ram_bytes"] - before,
        "losses": {name: series for name, series in result.history.items() if name != "epoch"},
    }


def deviation(one: list[float], other: list[float]) -> float:
    """Largest difference as a share of the largest value; epochs without a value left out."""
    a, b = np.array(one), np.array(other)
    return float(np.nanmax(np.abs(a - b)) / np.nanmax(np.abs(a)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--spots", type=int, nargs="+", default=[1000, 3600, 8000])
    parser.add_argument("--epochs", type=int, default=10)
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
    print(
        f"{'spots':>6} {'dense, both phases':>28} {'ours':>28} {'time':>6} {'memory':>7} {'losses differ by':>17}"
    )
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
        apart = max(deviation(dense["losses"][name], ours["losses"][name]) for name in ours["losses"])
        ratio = dense["training_seconds"] / ours["training_seconds"]
        memory = dense["bytes"] / max(ours["bytes"], 1)
        holds &= apart <= 1e-4 and (n_spots != 3600 or ratio >= 30)
        shown = [
            f"{1e3 * side['epoch_seconds'][0]:6.0f} + {1e3 * side['epoch_seconds'][1]:6.0f} ms "
            f"{side['bytes'] / 2**20:5.0f} MiB"
            for side in (dense, ours)
        ]
        print(
            f"{n_spots:6} {shown[0]:>28} {shown[1]:>28} {ratio:5.1f}× {memory:6.1f}× {apart:17.1e}",
            flush=True,
        )
        results.append(
            {"spots": n_spots, **sides, "time_ratio": ratio, "memory_ratio": memory, "deviation": apart}
        )
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
