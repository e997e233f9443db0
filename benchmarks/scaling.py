"""Time and memory of a whole run, from an h5ad file to the written results, stage by stage.

    python benchmarks/scaling.py --cells 3000 10000 100000 1000000 --genes 300 [--json FILE]

The tissue is simulated (single cells, 20 domains of irregular outline) and written to disk; ``amilst run`` then
runs on it, each size in a process of its own. Memory is the largest resident size seen in a stage, sampled every
20 ms, including the interpreter and the imports; on a GPU also the peak of the allocator. ``estimate`` is the
estimate made before the run.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from common import Json, Record, make_parser, markdown

N_DOMAINS = 20
STAGES = [
    "import",
    "read",
    "graph",
    "prepare",
    "PCA",
    "filter",
    "train",
    "embed",
    "cluster",
    "refine",
    "score",
    "draw",
    "write",
]


class Watch(logging.Handler):
    """Seconds and peak memory of each stage, from the package's own log and the size of this process."""

    def __init__(self) -> None:
        super().__init__()
        self.stage = "import"
        self.seconds: dict[str, float] = {}
        self.peak: dict[str, int] = {}
        self.since = time.perf_counter()
        self.over = threading.Event()
        self.sampler = threading.Thread(target=self._sample, daemon=True)
        self.sampler.start()

    def emit(self, record: logging.LogRecord) -> None:
        """A message that names a stage starts it."""
        if record.getMessage() in STAGES:
            self.enter(record.getMessage())

    def enter(self, stage: str) -> None:
        """End the current stage and start another."""
        now = time.perf_counter()
        self.seconds[self.stage] = self.seconds.get(self.stage, 0.0) + now - self.since
        self.stage, self.since = stage, now

    def _sample(self) -> None:
        page = 4096
        while not self.over.wait(0.02):
            resident = int(Path("/proc/self/statm").read_text().split()[1]) * page
            self.peak[self.stage] = max(self.peak.get(self.stage, 0), resident)


def run_once(section: Path, seed: int, device: str, settings: list[str]) -> None:
    """Read, identify and write in this process; print the measurements as JSON."""
    watch = Watch()
    from amilst_lite import io, pipeline
    from amilst_lite.cli import main

    logging.getLogger("amilst_lite").addHandler(watch)
    del io, pipeline
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "out"
        watch.enter("read")
        command = [
            "run",
            str(section),
            "--n-domains",
            str(N_DOMAINS),
            "--seed",
            str(seed),
            "--device",
            device,
        ]
        code = main([*command, "--annotation", "ground_truth", "-o", str(output), "--quiet", *settings])
        watch.enter("end")
        watch.over.set()
        if code:
            sys.exit(code)
        summary = json.loads((output / "run.json").read_text())
    print(
        json.dumps(
            {
                "seconds": watch.seconds,
                "total_seconds": sum(watch.seconds.values()),
                "peak_bytes": watch.peak,
                "ram_bytes": summary["peak_memory"]["ram_bytes"],
                "vram_bytes": summary["peak_memory"].get("vram_bytes"),
                "estimate": summary.get("estimate"),
                "ari": summary["scores"]["domain"]["ari"],
                "refined_ari": summary["scores"]["refined"]["ari"],
                "device": summary["device"],
            }
        )
    )


def measure(n_cells: int, n_genes: int, seed: int, device: str, settings: list[str]) -> Json:
    """Simulate a section and run it, each in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        section = Path(folder) / "section.h5ad"
        simulate = (
            "from amilst_lite.pipeline import simulate_section as s; "
            f"s({n_cells}, {n_genes}, {N_DOMAINS}, layout='blobs', arrangement='cells', seed={seed})"
            f".write_h5ad({str(section)!r})"
        )
        subprocess.run([sys.executable, "-c", simulate], check=True)
        command = [sys.executable, __file__, "--once", str(section), "--seed", str(seed), "--device", device]
        done = subprocess.run([*command, "--", *settings], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{n_cells} cells: {done.stderr.strip()[-2000:]}")
        return {"cells": n_cells, "genes": n_genes, "seed": seed, **json.loads(done.stdout.splitlines()[-1])}


def table(record: Json) -> str:
    """One row for each size."""
    rows = []
    for one in record["results"]:
        vram = one["vram_bytes"]
        rows.append(
            [f"{one['cells']:,}", f"{one['genes']:,}", f"{one['total_seconds']:.0f}"]
            + [f"{one['ram_bytes'] / 2**30:.1f}", f"{vram / 2**30:.1f}" if vram else ""]
            + [f"{one['seconds'].get('train', 0.0):.0f}", f"{one['seconds'].get('cluster', 0.0):.0f}"]
        )
    header = ["cells", "genes", "seconds", "GiB", "GPU GiB", "of which training", "of which clustering"]
    return markdown(header, rows)


def main() -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--cells", type=int, nargs="+", default=[3000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--genes", type=int, nargs="+", default=[300])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--once", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("settings", nargs="*", help="after --, passed to amilst run (--batch-size 20000)")
    options = parser.parse_args()
    if options.once:
        run_once(options.once, options.seed, options.device, options.settings)
        return 0
    if options.threads:
        os.environ["OMP_NUM_THREADS"] = str(options.threads)  # for the processes started below
    record = Record(options, "scaling")
    for n_genes in options.genes:
        for n_cells in options.cells:
            one = measure(n_cells, n_genes, options.seed, options.device, options.settings)
            record.add_row(one)
            print(f"\n{n_cells:,} cells × {n_genes} genes on {one['device']}: ARI {one['ari']:.3f}")
            if one["estimate"]:
                estimate = one["estimate"]
                memory = f"{estimate['ram_bytes'] / 2**20:,.0f} MiB"
                print(f"  {'estimate':8s} {estimate['seconds']:8.2f} s  {memory:>8s}")
            for stage in STAGES:
                if stage in one["seconds"]:
                    peak = one["peak_bytes"].get(stage)
                    memory = f"{peak / 2**20:8,.0f} MiB" if peak else ""
                    print(f"  {stage:8s} {one['seconds'][stage]:8.2f} s  {memory}", flush=True)
    print(table(record.data))
    return 0


if __name__ == "__main__":
    sys.exit(main())
