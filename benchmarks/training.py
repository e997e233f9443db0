"""Time of a training step compared with a lower bound from its bytes and operations on this machine.

    python benchmarks/training.py [--spots 10000 40000] [--networks 1] [--device cpu] [--json FILE]

A step is one of the network, one of the discriminator and one of the generator, by the default recipe.

operations
    Floating-point operations of all matrix products, forward and backward, counted by torch
    (``torch.utils.flop_counter``) in one step. Their least time follows from the rate of a large product
    (1024 × 4096 by 4096 × 1024, float32) measured in the same run.
bytes
    Every activation that a step keeps (torch's list of what is saved for the backward pass, each array once) is
    written and read going forward, read going backward, and has a gradient that is written and read: five passes.
    Their least time follows from the rate of copying 256 MiB, measured in the same run.

The lower bound is the sum of both, since on a CPU the same cores do both. Random numbers, the optimizer and the
traffic of the sparse products are not part of it.
"""

from __future__ import annotations

import statistics
import sys
import time
from typing import Any

import torch
from common import Json, Record, make_parser, markdown, use_threads
from torch.utils.flop_counter import FlopCounterMode

from amilst_lite.config import TrainConfig
from amilst_lite.runtime import make_generator, resolve_device, synchronize, threads_for
from amilst_lite.spatial.graph import SpatialGraph
from amilst_lite.train.loop import Trainer


def seconds(function: Any, device: torch.device, repeats: int = 20) -> float:
    """Median time of a call, after three warm-up calls."""
    taken = []
    for _ in range(repeats + 3):
        synchronize(device)
        start = time.perf_counter()
        function()
        synchronize(device)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[3:])


def rates(device: torch.device) -> dict[str, float]:
    """Floating-point operations per second, and bytes per second read or written by a copy."""
    a, b = (torch.ones(1024, 4096, device=device), torch.ones(4096, 1024, device=device))
    source = torch.ones(2**26, device=device)
    target = torch.empty_like(source)
    return {
        "operations": 2 * 1024 * 4096 * 1024 / seconds(lambda: a @ b, device),
        "bytes": 2 * 4 * 2**26 / seconds(lambda: target.copy_(source), device),
    }


def demand(trainer: Trainer) -> dict[str, float]:
    """Operations and bytes of one step."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_floating_point() and tensor.layout == torch.strided:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)  # so that its memory is not reused
        return tensor

    alive: list[torch.Tensor] = []
    sparse = trainer.batches[0].adjacency
    product, sparse._csr = sparse._csr, None  # which the counter would count as a dense N × N matrix
    with (
        FlopCounterMode(display=False) as counter,
        torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t),
    ):
        trainer._epoch()
    sparse._csr = product
    return {"operations": counter.get_total_flops(), "bytes": 5 * sum(kept.values())}


def profile(trainer: Trainer, device: torch.device) -> list[tuple[str, float]]:
    """The twelve most expensive operations of a step, and their shares of its time."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(5):
            trainer._epoch()
        synchronize(device)
    own = {
        event.key: float(event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total)
        for event in profiler.key_averages()
    }
    total = sum(own.values())
    return [(name, t / total) for name, t in sorted(own.items(), key=lambda pair: -pair[1])[:12]]


def table(record: Json) -> str:
    """One row for each size."""
    rows = [
        [f"{one['spots']:,}", one["n_networks"], one["threads"], f"{1e3 * one['step_seconds']:.1f}"]
        + [f"{1e3 * one['floor_seconds']:.1f}", f"{one['step_seconds'] / one['floor_seconds']:.1f}"]
        for one in record["results"]
    ]
    return markdown(["spots", "networks", "threads", "ms per step", "lower bound, ms", "ratio"], rows)


def main() -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--spots", type=int, nargs="+", default=[3000, 10_000, 40_000])
    parser.add_argument("--networks", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--features", type=int, default=30)
    options = parser.parse_args()
    use_threads(options.threads)
    device = resolve_device(options.device)
    record = Record(options, "training")
    for n_spots in options.spots:
        generator = make_generator(0)
        graph = SpatialGraph.from_coordinates(
            torch.rand(n_spots, 2, generator=generator).numpy(), n_neighbors=6
        )
        features = torch.randn(n_spots, options.features, generator=generator) / options.features**0.5
        for n_networks in options.networks:
            config = TrainConfig(n_networks=n_networks, batch_size=n_spots)
            trainer = Trainer(features, graph, config=config, device=device)
            with threads_for(n_spots * n_networks):
                machine = rates(device)
                needs = demand(trainer)
                step = seconds(trainer._epoch, device)
                shares = profile(trainer, device)
                threads = torch.get_num_threads()
            by_operations = needs["operations"] / machine["operations"]
            by_bytes = needs["bytes"] / machine["bytes"]
            floor = by_operations + by_bytes
            print(
                f"\n{n_spots:,} spots × {n_networks} networks on {device}, {threads} threads: "
                f"{1e3 * step:.1f} ms per step, {step / floor:.1f}× the lower bound of {1e3 * floor:.1f} ms\n"
                f"  {needs['operations'] / 1e9:.2f} GFLOP at {machine['operations'] / 1e9:.0f} GFLOP/s: "
                f"{1e3 * by_operations:.1f} ms; {needs['bytes'] / 1e6:.0f} MB at {machine['bytes'] / 1e9:.1f} "
                f"GB/s: {1e3 * by_bytes:.1f} ms"
            )
            for name, share in shares:
                print(f"  {share:6.1%} {name}", flush=True)
            record.add_row(
                {
                    "spots": n_spots,
                    "n_networks": n_networks,
                    "threads": threads,
                    "step_seconds": step,
                    "floor_seconds": floor,
                    "demand": needs,
                    "rates": machine,
                    "profile": shares,
                }
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
