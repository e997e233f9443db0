"""Time of Â·H: ours, torch's COO and CSR products, scipy, index_add, and a copy of as many bytes.

    python benchmarks/kernels.py [--json FILE] [--sizes 10000 100000] [--columns 8 32 128]

For each number of nodes and of columns: forward (Y = Â·H) and forward with backward (∂/∂H), float32, on the
12-nearest-neighbor graph of uniformly scattered points, as ``SpatialGraph`` makes it. The candidates alternate, so
that all meet the same load of the machine; the first rounds are not counted. The lower bound is a copy that moves as
many bytes as the product must at least: H read and Y written once, the values, column indices and row offsets of Â
read once; with backward, twice that.

The table gives the milliseconds of ours and, for the others, their time divided by ours (above 1: ours is faster);
the JSON has medians and minima. If other programs use the same cores, see the load average in the JSON and use
``--statistic min`` or ``--threads 1``.
"""

from __future__ import annotations

import statistics
import sys
import time
import warnings
from collections.abc import Callable

import numpy as np
import torch
from common import Json, Record, make_parser, markdown, use_threads
from scipy import sparse

from amilst_lite.nn.sparse import SymmetricAdjacency, propagate
from amilst_lite.runtime import resolve_device, synchronize
from amilst_lite.spatial.graph import SpatialGraph

# index_add writes one row of H for each edge; above this size it only measures the memory
MOST_GATHERED_BYTES = 2 * 2**30


def contenders(adjacency: SymmetricAdjacency, features: torch.Tensor) -> dict[str, dict[str, Callable]]:
    """For each way to compute the product, a function for ``forward`` and one for ``both``."""
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
        # CSR has no fast gradient of its own: the product twice, by the symmetry of Â
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
    """Median and minimum milliseconds of each function, called alternately.

    Each is called at least 4 times, and until it has taken ``seconds`` or had 300 calls.
    """
    taken: dict[str, list[float]] = {name: [] for name in functions}
    waiting = list(functions)
    while waiting:
        for name in waiting:
            if taken[name] and taken[name][-1] < 50:
                functions[name]()  # so that the caches hold its own data
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


OTHERS = ("coo", "csr", "scipy", "index_add", "floor")


def table(record: Json, statistic: str = "median") -> str:
    """One row for each size, number of columns and direction."""
    rows = []
    for one in record["results"]:
        ratio = one["ratio_to_ours"][statistic]
        rows.append(
            [f"{one['nodes']:,}", one["columns"], one["what"]]
            + [f"{one['times']['ours'][f'{statistic}_ms']:.2f}"]
            + [f"{ratio[name]:.2f}" if name in ratio else "" for name in OTHERS]
        )
    header = ["nodes", "columns", "", "ours, ms", "COO", "CSR", "scipy", "index_add", "lower bound"]
    return markdown(header, rows)


def main() -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--columns", type=int, nargs="+", default=[8, 32, 128])
    parser.add_argument("--seconds", type=float, default=1.0, help="for one candidate and size, about")
    parser.add_argument("--statistic", choices=["median", "min"], default="median", help="in the table")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", "Sparse")
    device = resolve_device(options.device)
    use_threads(options.threads)
    record = Record(options, "kernels", seed=options.seed)
    for n_nodes in options.sizes:
        rng = np.random.default_rng(options.seed)
        graph = SpatialGraph.from_coordinates(rng.random((n_nodes, 2)), n_neighbors=12)
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
                record.add_row({**cell, "what": what, "times": times, "ratio_to_ours": ratio})
                print(
                    f"{n_nodes:,} nodes, {n_columns} columns, {what}: {ours['median_ms']:.3f} ms", flush=True
                )
    print(table(record.data, options.statistic))
    return 0


if __name__ == "__main__":
    sys.exit(main())
