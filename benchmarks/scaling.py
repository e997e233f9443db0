"""Time and memory of a whole run, from an h5ad file to the written results, stage by stage.

    python benchmarks/scaling.py --cells 3000 10000 100000 1000000 --genes 300 [--json FILE]
    python benchmarks/scaling.py --cells 100000 1000000 10000000 --sections 40 --genes 300 --json FILE
    python benchmarks/scaling.py --cells 1000000 --sections 40 --processes 1 2 4 --json FILE

The tissue is simulated (single cells, 20 domains of irregular outline) and written to disk, section by section, each
with a technical effect of its own if there are several; ``amilst run`` then runs on it, each size in a process of its
own. Memory is the largest resident size seen in a stage, sampled every 20 ms, including the interpreter and the
imports; on a GPU also the peak of the allocator. ``estimate`` is the estimate made before the run. With several sizes,
the exponent with which time grows and the bytes of each further cell are those between the smallest and the largest.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from common import ANNOTATION, Json, Record, make_parser, markdown

from amilst_lite.metrics import adjusted_rand_index

N_DOMAINS = 20
SECTION = "section"
EFFECT = 0.3
"""Standard deviation of the logarithm of the factor by which a section changes the counts of a gene."""
AT_A_TIME = 2
"""Sections that are simulated at the same time."""
STAGES = [
    "import",
    "read",
    "graph",
    "prepare",
    "PCA",
    "network share",
    "filter",
    "correct",
    "train",
    "embed",
    "cluster",
    "refine",
    "analyze",
    "write",
    "score",
    "draw",
    "report",
]


class Sections:
    """An h5ad file to which sections are appended, so that one section at a time is in memory."""

    def __init__(self, file: Any, n_genes: int) -> None:
        self.file = file
        kinds = {
            "X/data": np.float32, "X/indices": np.int32, "X/indptr": np.int64, "obs/_index": _text(),
            f"obs/{ANNOTATION}/codes": np.int8, f"obs/{SECTION}/codes": np.int16,
        }  # fmt: skip
        for name, kind in kinds.items():
            file.create_dataset(name, (0,), kind, maxshape=(None,), chunks=(2**18,))
        file.create_dataset("obsm/spatial", (0, 2), np.float32, maxshape=(None, 2), chunks=(2**17, 2))
        file["X/indptr"].resize((1,))
        self.n_genes, self.n_cells = n_genes, 0

    def append(self, tissue: Any, section: int) -> None:
        """Write another section."""
        counts = tissue.counts
        self._extend("X/indptr", counts.indptr[1:] + self.file["X/data"].shape[0])
        self._extend("X/data", counts.data)
        self._extend("X/indices", counts.indices)
        self._extend("obsm/spatial", tissue.coordinates)
        names = (f"s{section + 1:02d}_" + tissue.spot_names.astype(object)).astype(object)
        self._extend("obs/_index", names)
        self._extend(f"obs/{ANNOTATION}/codes", tissue.domains)
        self._extend(f"obs/{SECTION}/codes", np.full(len(names), section))
        self.n_cells += len(names)
        self._names, self._genes, self._last = tissue.domain_names, tissue.gene_names, section

    def finish(self) -> None:
        """Write what makes the file an AnnData."""
        import pandas as pd
        from anndata.io import write_elem

        def describe(name: str, kind: str, version: str, **more: Any) -> None:
            self.file[name].attrs.update({"encoding-type": kind, "encoding-version": version, **more})

        for name in ("layers", "uns", "obsp", "varm", "varp"):
            write_elem(self.file, name, {})
        write_elem(self.file, "var", pd.DataFrame(index=pd.Index(self._genes, dtype=object)))
        for column, labels in (
            (ANNOTATION, self._names),
            (SECTION, [f"section {number + 1:02d}" for number in range(self._last + 1)]),
        ):
            write_elem(self.file, f"obs/{column}/categories", np.asarray(labels, dtype=object))
            describe(f"obs/{column}/codes", "array", "0.2.0")
            describe(f"obs/{column}", "categorical", "0.2.0", ordered=False)
        describe("obs/_index", "string-array", "0.2.0")
        columns = np.array([ANNOTATION, SECTION], dtype=_text())
        describe("obs", "dataframe", "0.2.0", **{"_index": "_index", "column-order": columns})
        describe("obsm/spatial", "array", "0.2.0")
        describe("obsm", "dict", "0.1.0")
        describe("X", "csr_matrix", "0.1.0", shape=np.array([self.n_cells, self.n_genes]))
        describe("/", "anndata", "0.1.0")

    def _extend(self, name: str, values: np.ndarray) -> None:
        dataset = self.file[name]
        start = dataset.shape[0]
        dataset.resize((start + len(values), *dataset.shape[1:]))
        dataset[start:] = values


def _text() -> Any:
    import h5py

    return h5py.string_dtype()


def simulate(path: Path, n_cells: int, n_genes: int, n_sections: int, seed: int) -> None:
    """Write an h5ad file of simulated sections of equal size."""
    import h5py

    from amilst_lite.simulate import simulate_tissue

    def section(number: int) -> Any:
        size = (number + 1) * n_cells // n_sections - number * n_cells // n_sections
        return simulate_tissue(
            size, n_genes, N_DOMAINS, layout="blobs", arrangement="cells", section=number,
            section_effect=EFFECT if n_sections > 1 else 0.0, seed=seed,
        )  # fmt: skip

    with h5py.File(path, "w") as file, ThreadPoolExecutor(AT_A_TIME) as pool:
        sections = Sections(file, n_genes)
        waiting = [pool.submit(section, number) for number in range(min(AT_A_TIME, n_sections))]
        for number in range(n_sections):
            tissue = waiting.pop(0).result()
            if number + AT_A_TIME < n_sections:
                waiting.append(pool.submit(section, number + AT_A_TIME))
            sections.append(tissue, number)
            del tissue
        sections.finish()


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
        """A message that names a stage starts it; what runs beside it in another thread is part of it."""
        if record.getMessage() in STAGES and record.thread == threading.main_thread().ident:
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


def run_once(path: Path, output: Path, seed: int, device: str, several: bool, settings: list[str]) -> None:
    """Read, identify and write in this process; print the measurements as JSON."""
    watch = Watch()
    from amilst_lite import io, pipeline
    from amilst_lite.cli import main

    logging.getLogger("amilst_lite").addHandler(watch)
    del io, pipeline
    watch.enter("read")
    command = [
        "run", str(path), "--n-domains", str(N_DOMAINS), "--seed", str(seed), "--device", device, "--annotation",
        ANNOTATION, "-o", str(output), "--quiet", *(["--sample-key", SECTION] if several else []), *settings,
    ]  # fmt: skip
    code = main(command)
    watch.enter("end")
    watch.over.set()
    if code:
        sys.exit(code)
    if os.environ.get("RANK", "0") != "0":
        return  # the first process writes the summary, and measures
    summary = json.loads((output / "run.json").read_text())
    several_ram = [int(ram) for ram in summary.get("processes", {}).get("ram_bytes", [])]
    print(
        json.dumps(
            {
                "ram_bytes_of_processes": several_ram,
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


def measure(n_cells: int, n_genes: int, options: argparse.Namespace) -> Iterator[Json]:
    """Simulate sections and run them, each in a process of its own, or in several that share a run."""
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path, output = Path(folder) / "sections.h5ad", Path(folder) / "out"
        common = [sys.executable, __file__, "--seed", str(options.seed), "--sections", str(options.sections)]
        made = ["--simulate", str(path), "--cells", str(n_cells), "--genes", str(n_genes)]
        start = time.perf_counter()
        subprocess.run([*common, *made], check=True)
        print(f"\n{n_cells:,} cells simulated in {time.perf_counter() - start:.0f} s", flush=True)
        first: pd.Series | None = None
        for n_processes in options.processes:
            command = [*common, "--once", str(path), "--output", str(output), "--device", options.device]
            environment = dict(os.environ)
            if n_processes > 1:
                launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(n_processes)]
                command = [sys.executable, *launch, *command[1:]]
                threads = int(environment.get("OMP_NUM_THREADS", os.cpu_count() or 1))
                environment["OMP_NUM_THREADS"] = str(max(1, threads // n_processes))
            done = subprocess.run(
                [*command, "--", *options.settings], capture_output=True, text=True, env=environment
            )
            if done.returncode:
                raise SystemExit(f"{n_cells} cells: {done.stderr.strip()[-2000:]}")
            size = {"cells": n_cells, "genes": n_genes, "sections": options.sections, "seed": options.seed}
            size |= {"processes": n_processes, "input_bytes": path.stat().st_size}
            size["output_bytes"] = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
            domains = pd.read_csv(output / "domains.csv", index_col="spot")["domain"]
            if first is None:
                first = domains
            size["ari_with_first"] = adjusted_rand_index(first, domains.loc[first.index])
            shutil.rmtree(output)
            yield size | json.loads(done.stdout.splitlines()[-1])


def growth(results: list[Json]) -> list[str]:
    """How time and memory grow, for each number of genes and sections."""
    lines = []
    for key in dict.fromkeys(
        (one["genes"], one.get("sections", 1), one.get("processes", 1)) for one in results
    ):
        own = [
            one for one in results if (one["genes"], one.get("sections", 1), one.get("processes", 1)) == key
        ]
        small, large = (choose(own, key=lambda one: one["cells"]) for choose in (min, max))
        if small["cells"] == large["cells"]:
            continue
        ratio = math.log(large["total_seconds"] / small["total_seconds"])
        exponent = ratio / math.log(large["cells"] / small["cells"])
        more = max(large["peak_bytes"].values()) - max(small["peak_bytes"].values())
        lines.append(
            f"{key[0]} genes in {key[1]} section(s), {key[2]} process(es), from {small['cells']:,} to "
            f"{large['cells']:,} cells: time grows with the power {exponent:.2f}; "
            f"{more / (large['cells'] - small['cells']):,.0f} bytes a cell"
        )
    return lines


def table(record: Json) -> str:
    """One row for each size."""
    rows = []
    several = any(one.get("sections", 1) > 1 for one in record["results"])
    shared = any(one.get("processes", 1) > 1 for one in record["results"])
    for one in record["results"]:
        vram = one["vram_bytes"]
        sections = [one.get("sections", 1)] if several else []
        if shared:
            sections.append(one.get("processes", 1))
        rows.append(
            [f"{one['cells']:,}", f"{one['genes']:,}", *sections, f"{one['total_seconds']:.0f}"]
            + [
                f"{max([one['ram_bytes'], *one.get('ram_bytes_of_processes', [])]) / 2**30:.1f}",
                f"{vram / 2**30:.1f}" if vram else "",
            ]
            + [f"{one['seconds'].get('train', 0.0):.0f}", f"{one['seconds'].get('cluster', 0.0):.0f}"]
        )
    names = ["cells", "genes", *(["sections"] if several else []), *(["processes"] if shared else [])]
    header = [*names, "seconds", "GiB", "GPU GiB", "of which training", "of which clustering"]
    return markdown(header, rows)


def show(one: Json) -> None:
    """Print one measurement, stage by stage."""
    print(
        f"\n{one['cells']:,} cells × {one['genes']} genes on {one['device']}, {one['processes']} process(es): ARI "
        f"{one['ari']:.3f}, with the first run {one['ari_with_first']:.4f}"
    )
    if one["estimate"]:
        estimate = one["estimate"]
        memory = f"{estimate['ram_bytes'] / 2**20:,.0f} MiB"
        print(f"  {'estimate':8s} {estimate['seconds']:8.2f} s  {memory:>8s}")
    for stage in STAGES:
        if stage in one["seconds"]:
            peak = one["peak_bytes"].get(stage)
            memory = f"{peak / 2**20:8,.0f} MiB" if peak else ""
            print(f"  {stage:8s} {one['seconds'][stage]:8.2f} s  {memory}", flush=True)


def main() -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--cells", type=int, nargs="+", default=[3000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--genes", type=int, nargs="+", default=[300])
    parser.add_argument("--sections", type=int, default=1, help="of equal size, in one file (default: 1)")
    parser.add_argument("--processes", type=int, nargs="+", default=[1], help="of each run (default: 1)")
    parser.add_argument("--folder", type=Path, help="for input and results (default: the temporary folder)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--simulate", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--once", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("settings", nargs="*", help="after --, passed to amilst run (--batch-size 20000)")
    options = parser.parse_args()
    if options.simulate:
        simulate(options.simulate, options.cells[0], options.genes[0], options.sections, options.seed)
        return 0
    if options.once:
        run_once(
            options.once, options.output, options.seed, options.device, options.sections > 1, options.settings
        )
        return 0
    if options.threads:
        os.environ["OMP_NUM_THREADS"] = str(options.threads)  # for the processes started below
    record = Record(options, "scaling")
    for n_genes in options.genes:
        for n_cells in options.cells:
            for one in measure(n_cells, n_genes, options):
                record.add_row(one)
                show(one)
    print(table(record.data))
    for line in growth(record.data["results"]):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
