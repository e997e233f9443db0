"""Launches, waits and bytes of a fit on a simulated CUDA device, and its time on an H100 estimated from them.

    python benchmarks/device.py [--sizes 800 2400] [--domains 7] [--json FILE]

Runs `AMILST.fit` with default settings on ``tests/simulated_cuda.py``, which counts what a GPU would do. Launches and
waits hardly depend on the number of spots. The bytes that the operations read and write, each operand once, are linear
in it: their slope follows from the two sizes. The estimate for N spots is

    launches × 7 µs + waits × 20 µs + bytes / (0.7 × 3.35 TB/s)

where training sees at most 10,000 spots in a step, and restarts of the mixture are compared on 20,000 spots. What
the CPU does meanwhile (sorting the edges, cutting tiles, reading and writing) is not part of it: see scaling.py. No
GPU has confirmed the estimate.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
from common import Json, Record, make_parser, markdown, use_threads

LAUNCH, WAIT, BANDWIDTH = 7e-6, 20e-6, 0.7 * 3.35e12
STAGES = ("graph", "filter", "train", "embed", "cluster", "refine")
MOST_SPOTS = {"train": 10_000, "cluster": 20_000}
ESTIMATED = (10**6, 10**7)
COLUMNS = 30


def tissue(n_spots: int, n_domains: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, 30) of domains in stripes, and coordinates (N, 2)."""
    rng = np.random.default_rng(seed)
    places = rng.random((n_spots, 2))
    means = rng.standard_normal((n_domains, COLUMNS))
    noise = rng.standard_normal((n_spots, COLUMNS))
    scale = np.linspace(3, 0.3, COLUMNS)
    return ((means[(places[:, 0] * n_domains).astype(int)] + noise) * scale).astype(np.float32), places


class _Stages(logging.Handler):
    """The state of the counters at the beginning of each stage, which the package logs."""

    def __init__(self, cuda: Any) -> None:
        super().__init__()
        self.cuda = cuda
        self.seen: list[tuple[str, int, int, int, int]] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage() in STAGES:
            self.note(record.getMessage())

    def note(self, stage: str) -> None:
        cuda = self.cuda
        self.seen.append((stage, cuda.launches.total(), cuda.waits.total(), cuda.moved, cuda.peak))
        cuda.peak = cuda.alive


def count(n_spots: int, n_domains: int, seed: int) -> Json:
    """Launches, waits, bytes moved and peak bytes of each stage of a fit."""
    from simulated_cuda import simulated_cuda

    from amilst_lite import AMILST

    features, places = tissue(n_spots, n_domains, seed)
    logger = logging.getLogger("amilst_lite")
    level = logger.level
    with simulated_cuda() as cuda:
        stages = _Stages(cuda)
        logger.addHandler(stages)
        logger.setLevel(logging.INFO)
        try:
            AMILST(n_domains, seed=seed, device="cuda").fit(features, coordinates=places)
        finally:
            logger.removeHandler(stages)
            logger.setLevel(level)
        stages.note("end")
    return {
        one[0]: {
            "launches": after[1] - one[1],
            "waits": after[2] - one[2],
            "moved": after[3] - one[3],
            "peak": after[4],
        }
        for one, after in zip(stages.seen, stages.seen[1:], strict=False)
    }


def seconds(stage: str, record: Json, n_spots: int) -> float:
    """The estimate for one stage; see the first lines."""
    small, large = record["results"][0], record["results"][-1]
    last = large["stages"][stage]
    slope = (last["moved"] - small["stages"][stage]["moved"]) / (large["spots"] - small["spots"])
    spots = min(n_spots, MOST_SPOTS.get(stage, n_spots))
    moved = last["moved"] + slope * (spots - large["spots"])
    if stage == "cluster" and n_spots > spots:  # 20 steps for each of three numbers of columns, on all spots
        moved += (n_spots - spots) * 60 * 4 * (COLUMNS + 6 * record["domains"])
    return float(last["launches"] * LAUNCH + last["waits"] * WAIT + moved / BANDWIDTH)


def table(record: Json) -> str:
    """One row for each stage."""
    large = record["results"][-1]
    rows = []
    for stage in STAGES:
        one = large["stages"][stage]
        estimates = [seconds(stage, record, n_spots) for n_spots in ESTIMATED]
        rows.append(
            [stage, f"{one['launches']:,}", f"{one['waits']:,}", f"{one['moved'] / large['spots']:,.0f}"]
            + [f"{one['peak'] / large['spots']:,.0f}", *(f"{estimate:.2f}" for estimate in estimates)]
        )
    header = ["stage", "launches", "waits", "bytes moved per spot", "peak bytes per spot"]
    return markdown([*header, *(f"H100, {n:,} spots, s (estimated)" for n in ESTIMATED)], rows)


def main() -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--sizes", type=int, nargs=2, default=[800, 2400])
    parser.add_argument("--domains", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    use_threads(1)
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    record = Record(options, "device", seed=options.seed, domains=options.domains)
    for n_spots in sorted(options.sizes):
        record.add_row({"spots": n_spots, "stages": count(n_spots, options.domains, options.seed)})
        print(f"{n_spots:,} spots counted", flush=True)
    print(table(record.data))
    return 0


if __name__ == "__main__":
    sys.exit(main())
