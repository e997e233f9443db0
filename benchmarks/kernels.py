"""How fast is Â·H? Ours against COO, CSR, scipy and index_add, and against moving the bytes once.

    python benchmarks/kernels.py --json kernels.json [--sizes 10000 100000] [--columns 8 32 128]

For each number of nodes and of columns: forward (Y = Â·H) and forward with backward (∂/∂H), float32, on the
12-nearest-neighbour graph of uniformly scattered points, as ``SpatialGraph`` makes it. The contenders take
turns, round after round, so that all see the same machine; the first rounds are not counted. The floor is a
copy that moves as many bytes as the product must at the least: H read and Y written once, the values, column
indices and row offsets of Â read once; with backward, twice that.

The table gives the milliseconds of ours and, for all others, their time divided by ours (above 1: ours is
faster); the JSON has medians and minima. Where other programs want the same cores, two threads wait for the
slower one and medians measure the neighbours: then read the load average in the JSON, and use
``--statistic min`` or ``--threads 1``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from record import circumstances
from scipy import sparse

from amilst_lite.graph import SpatialGraph
from amilst_lite.nn.sparse import SymmetricAdjacency, propagate
from amilst_lite.runtime import resolve_device, synchronize

# index_add writes out one row of H for each edge; beyond this it only measures the memory.
MOST_GATHERED_BYTES = 2 * 2**30


def contenders(adjacency: SymmetricAdjacency, features: torch.Tensor) -> dict[str, dict[str, Callable]]:
    """For each way to take the product, a function for ``forward`` and one for ``both``."""
    coo = adjacency.coo
    offsets, columns, values = adjacency.offsets, adjacency.columns, adjacency.values
    csr = torch.sparse_csr_tensor(offsets, columns, values, coo.shape, check_invariants=False)
    row, column = coo.indices()
    plain = features.detach()
    upstream = torch.ones_like(plain)

    def differentiable(product: Callable) -> dict[str, Callable]:
        return {
            "forward": lambda: product(plain),
            "both": lambda: torch.autograd.grad(product(features), features, upstream),
        }

    ways = {
        "ours": differentiable(lambda h: propagate(adjacency, h)),
        "coo": differentiable(lambda h: torch.sparse.mm(coo, h)),
        # CSR has no fast gradient of its own: the product twice, which Â's symmetry allows anyone.
        "csr": {"forward": lambda: csr @ plain, "both": lambda: (csr @ plain, csr @ upstream)},
    }
    if len(values) * plain.shape[1] * plain.element_size() <= MOST_GATHERED_BYTES:
        ways["index_add"] = differentiable(
            lambda h: torch.zeros_like(h).index_add(0, row, h[column] * values[:, None])
        )
    if plain.device.type == "cpu":
        matrix = sparse.csr_matrix((values.numpy(), columns.numpy(), offsets.numpy()), shape=coo.shape)
        array, upstream_array = plain.numpy(), upstream.numpy()
        ways["scipy"] = {
            "forward": lambda: matrix @ array,
            "both": lambda: (matrix @ array, matrix @ upstream_array),
        }

    moved = 2 * plain.numel() * 4 + len(values) * (4 + columns.element_size())
    moved += len(offsets) * offsets.element_size()
    source = torch.ones(moved // 8, device=plain.device)  # a copy reads and writes: 8 bytes a float
    target = torch.empty_like(source)
    ways["floor"] = {
        "forward": lambda: target.copy_(source),
        "both": lambda: (target.copy_(source), target.copy_(source)),
    }
    return ways


def measure(functions: dict[str, Callable], device: torch.device, seconds: float) -> dict[str, dict]:
    """Median and least milliseconds of each function, called in turns.

    Each is called 4 times at least, and further until it has had ``seconds`` or 300 calls.
    """
    taken: dict[str, list[float]] = {name: [] for name in functions}
    waiting = list(functions)
    while waiting:
        for name in waiting:
            if taken[name] and taken[name][-1] < 50:
                functions[name]()  # so that it finds the caches as it left them, not as the one before did
            synchronize(device)
            start = time.perf_counter()
            functions[name]()
            synchronize(device)
            taken[name].append(1e3 * (time.perf_counter() - start))
        waiting = [
            name
            for name in waiting
            if len(taken[name]) < 4 or (sum(taken[name]) < 1e3 * seconds and len(taken[name]) < 300)
        ]
    kept = {name: times[min(2, len(times) // 4) :] for name, times in taken.items()}  # warm by then
    return {
        name: {"median_ms": statistics.median(times), "min_ms": min(times), "n": len(times)}
        for name, times in kept.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--columns", type=int, nargs="+", default=[8, 32, 128])
    parser.add_argument("--seconds", type=float, default=1.0, help="for one contender and cell, about")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, help="of torch on the CPU; default: as torch chooses")
    parser.add_argument("--statistic", choices=["median", "min"], default="median", help="in the table")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", "Sparse")
    device = resolve_device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    results = []
    names = ["coo", "csr", "scipy", "index_add", "floor"]
    print(f"{'nodes':>9} {'columns':>7} {'':8} {'ours ms':>9} " + " ".join(f"{name:>9}" for name in names))
    for n_nodes in options.sizes:
        rng = np.random.default_rng(options.seed)
        graph = SpatialGraph.from_coordinates(rng.random((n_nodes, 2)))
        adjacency = SymmetricAdjacency(graph.adjacency(device))
        for n_columns in options.columns:
            features = torch.from_numpy(rng.standard_normal((n_nodes, n_columns), dtype=np.float32))
            features = features.to(device).requires_grad_()
            ways = contenders(adjacency, features)
            for what in ("forward", "both"):
                times = measure({name: way[what] for name, way in ways.items()}, device, options.seconds)
                ours = times["ours"]
                ratio = {
                    kind: {name: t[f"{kind}_ms"] / ours[f"{kind}_ms"] for name, t in times.items()}
                    for kind in ("median", "min")
                }
                cell = {"nodes": n_nodes, "entries": len(adjacency.values), "columns": n_columns}
                results.append({**cell, "what": what, "times": times, "ratio_to_ours": ratio})
                shown = [
                    f"{ratio[options.statistic][name]:9.2f}" if name in times else f"{'-':>9}"
                    for name in names
                ]
                print(
                    f"{n_nodes:9} {n_columns:7} {what:8} {ours[options.statistic + '_ms']:9.3f} "
                    + " ".join(shown),
                    flush=True,
                )
    record = {
        "benchmark": "kernels",
        **circumstances(device),
        "seed": options.seed,
        "results": results,
    }
    if options.json:
        options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
