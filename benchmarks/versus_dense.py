"""The published formulation with its dense N × N arrays compared with ours: same objective, same epochs.

    python benchmarks/versus_dense.py [--spots 1000 3600 8000] [--epochs 10] [--json FILE]

Both sides train the published network on the same simulated section with the published two phases, from the same
weights and random numbers. The dense side computes as the published program does: every graph layer makes Â dense
and multiplies by it; the links are scored over all N² pairs (logits z·zᵀ times a mask, labels A + I, binary cross-
entropy); an epoch of the second phase makes five forward passes, of which two reach the result in the corrected
form. Ours multiplies by the sparse Â, computes the same loss from its edges, and makes the two passes. Each run is a
process of its own; its memory is the increase over the process before training. The ratio of times is that of a
whole training of 200 + 200 epochs.

Exit status 1 if any loss differs by more than 1e-4 of its largest value.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from common import Json, Record, make_parser, markdown, use_threads
from torch import Tensor
from torch.nn import functional

from amilst_lite.config import PRESETS
from amilst_lite.nn import layers, losses, model
from amilst_lite.preprocess import prepare
from amilst_lite.runtime import make_generator, peak_memory
from amilst_lite.simulate import simulate_tissue
from amilst_lite.spatial.graph import SpatialGraph
from amilst_lite.train.published import PublishedTrainer


def dense_convolve(adjacency: Any, x: Tensor) -> Tensor:
    """Â·x as the published layers compute it: one dense Â for each, μ and log σ apart."""
    layers_of = x.chunk(2, dim=1) if x.shape[1] == 2 * PRESETS["published"].network.graph_latent else (x,)
    return torch.cat([torch.mm(adjacency.coo.to_dense(), part) for part in layers_of], dim=1)


class DenseLinks:
    """The published link loss, over all pairs."""

    def __init__(self) -> None:
        self.labels: Tensor | None = None

    def __call__(self, z: Tensor, edges: Tensor) -> Tensor:
        """As `amilst_lite.nn.losses.masked_link_loss`."""
        n = len(z)
        if self.labels is None:
            self.labels = torch.eye(n)
            self.labels[edges[0], edges[1]] = self.labels[edges[1], edges[0]] = 1.0
        norm = n * n / (2.0 * (n * n - 2.0 * edges.shape[1]))
        logits = torch.mm(z, z.T) * self.labels
        return norm * functional.binary_cross_entropy_with_logits(
            logits, self.labels * self.labels, pos_weight=torch.tensor(1.0)
        )


class TimedTrainer(PublishedTrainer):
    """Measures every epoch, and starts the clustering term from evenly spaced spots.

    k-means could amplify differences of rounding between the two sides.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.taken: tuple[list[float], list[float]] = ([], [])

    def _timed(self, phase: int, step: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        start = time.perf_counter()
        terms = step()
        self.taken[phase].append(time.perf_counter() - start)
        return terms

    def _epoch(self) -> dict[str, Tensor]:
        return self._timed(0, super()._epoch)

    def _adversarial_epoch(self) -> dict[str, Tensor]:
        return self._timed(1, super()._adversarial_epoch)

    def _place_centers(self) -> None:
        latent = self._embed()
        with torch.no_grad():
            self.centers.copy_(latent[:: len(latent) // len(self.centers)][: len(self.centers)])


class DenseTrainer(TimedTrainer):
    """Makes the three further forward passes of the published second phase."""

    def _adversarial_epoch(self) -> dict[str, Tensor]:
        return self._timed(1, self._five_passes)

    def _five_passes(self) -> dict[str, Tensor]:
        terms = PublishedTrainer._adversarial_epoch(self)
        norms = [module for module in self.network.modules() if isinstance(module, layers.BatchNorm)]
        for norm in norms:
            norm.momentum = 0.0  # the running statistics stay those of the two passes that count
        for repeat in range(3):
            self.network(self.features, self.batches[0].adjacency, generator=make_generator(repeat))
        for norm in norms:
            norm.momentum = 0.01
        return terms


def run_once(n_spots: int, dense: bool, epochs: int, seed: int) -> Json:
    """Train one side in this process."""
    config = PRESETS["published"].replace(epochs=epochs)
    tissue = simulate_tissue(n_spots, 500, 7, seed=seed)
    graph = SpatialGraph.from_coordinates(tissue.coordinates, n_neighbors=config.graph.n_neighbors)
    features = torch.from_numpy(prepare(tissue.counts, config.preprocess).features[graph.order])
    trainer_class = TimedTrainer
    if dense:
        layers.graph_convolve = model.graph_convolve = dense_convolve
        losses.masked_link_loss = DenseLinks()
        trainer_class = DenseTrainer
    before = peak_memory()["ram_bytes"]
    trainer = trainer_class(features, graph, network_config=config.network, config=config.train, seed=seed)
    trainer.network.train()
    history = trainer._train(None)  # not run(), which would choose the number of threads
    first, second = (statistics.median(taken[1:]) for taken in trainer.taken)
    return {
        "epoch_seconds": [first, second],
        "training_seconds": 200 * (first + second),
        "bytes": peak_memory()["ram_bytes"] - before,
        "losses": {name: series for name, series in history.items() if name != "epoch"},
    }


def deviation(one: list[float], other: list[float]) -> float:
    """Largest difference relative to the largest value; epochs without a value are left out."""
    a, b = np.array(one), np.array(other)
    return float(np.nanmax(np.abs(a - b)) / np.nanmax(np.abs(a)))


def table(record: Json) -> str:
    """One row for each size."""
    rows = []
    for one in record["results"]:
        sides = [
            cell
            for side in (one["dense"], one["ours"])
            for cell in (
                " + ".join(f"{1e3 * seconds:.0f}" for seconds in side["epoch_seconds"]),
                f"{side['bytes'] / 2**20:,.0f}",
            )
        ]
        rows.append(
            [f"{one['spots']:,}", *sides, f"{one['time_ratio']:.1f}", f"{one['memory_ratio']:.1f}"]
            + [f"{one['deviation']:.0e}"]
        )
    header = ["spots", "dense, ms per epoch", "dense, MiB", "ours, ms per epoch", "ours, MiB"]
    return markdown([*header, "time ratio", "memory ratio", "largest difference of losses"], rows)


def main() -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--spots", type=int, nargs="+", default=[1000, 3600, 8000])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--once", choices=["dense", "ours"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    use_threads(options.threads)
    if options.once:
        done = run_once(options.spots[0], options.once == "dense", options.epochs, options.seed)
        print(json.dumps(done))
        return 0
    record = Record(options, "versus_dense", epochs=options.epochs)
    holds = True
    for n_spots in options.spots:
        sides = {}
        for side in ("dense", "ours"):
            command = [sys.executable, __file__, "--once", side, "--spots", str(n_spots)]
            command += ["--epochs", str(options.epochs), "--seed", str(options.seed)]
            if options.threads:
                command += ["--threads", str(options.threads)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{side}, {n_spots} spots: {done.stderr.strip()[-2000:]}")
            sides[side] = json.loads(done.stdout.splitlines()[-1])
        dense, ours = sides["dense"], sides["ours"]
        difference = max(deviation(dense["losses"][name], ours["losses"][name]) for name in ours["losses"])
        ratio = dense["training_seconds"] / ours["training_seconds"]
        holds &= difference <= 1e-4
        memory = dense["bytes"] / max(ours["bytes"], 1)
        record.add_row(
            {"spots": n_spots, **sides, "time_ratio": ratio, "memory_ratio": memory, "deviation": difference}
        )
        print(f"{n_spots:,} spots: {ratio:.1f} times faster", flush=True)
    print(table(record.data))
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
