"""The report of many cells: size, seconds to write and to the first drawing, frames per second while panning.

    python benchmarks/report.py [--cells 5000 100000 1000000] [--genes 300] [--json FILE]

The tissue is simulated (single cells, 20 domains) with its true domains as those of a run, names of 32 characters, and
a UMAP. The page is opened from disk by headless Chromium without a GPU (Debian: chromium, chromium-driver), in a window
of 1300 × 900 pixels.

* **First drawing**: from the beginning of the navigation until both maps are drawn.
* **Frames**: those that the browser shows in three seconds in which the map, enlarged twice, moves with every frame.
  While it moves, the last drawing is shifted if a drawing takes longer than 12 ms.
* **Drawing**: of all spots in view, when the map has come to rest; median of five.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from common import Json, Record, make_parser, markdown, use_threads

import amilst_lite as amilst
from amilst_lite.report import write_report
from amilst_lite.simulate import simulate_tissue

N_DOMAINS = 20
PAN = """
const [plot] = report.plots;
plot.zoom(2);
let frames = 0;
const began = performance.now();
const step = (now) => {
  frames++;
  plot.shift(3 * Math.cos(now / 300), 3 * Math.sin(now / 300));
  if (now - began < 3000) requestAnimationFrame(step);
  else done(frames / ((now - began) / 1000));
};
requestAnimationFrame(step);
"""
DRAW = """
return Array.from({ length: 5 }, () => {
  const began = performance.now();
  report.plots[0].drawSpots();
  return performance.now() - began;
}).sort((a, b) => a - b)[2];
"""


def result(n_cells: int, n_genes: int) -> ad.AnnData:
    """A section with true domains, and the record of a run on a small one."""
    small = amilst.simulate_section(600, 60, 4, seed=0)
    amilst.identify_domains(small, 4, epochs=3, n_networks=1, n_init=4)
    tissue = simulate_tissue(n_cells, n_genes, N_DOMAINS, layout="blobs", arrangement="cells", seed=0)
    rng = np.random.default_rng(0)
    names = [f"{one:016x}{other:016x}" for one, other in rng.integers(0, 2**62, (n_cells, 2)).tolist()]
    domains = pd.Categorical(np.asarray(tissue.annotation))
    columns = {"amilst_domain": domains, "amilst_domain_refined": domains}
    adata = ad.AnnData(tissue.counts, obs=pd.DataFrame(columns, index=names))
    adata.obs["amilst_confidence"] = rng.random(n_cells, dtype=np.float32)
    adata.var_names = tissue.gene_names
    adata.obsm["spatial"] = tissue.coordinates
    adata.obsm["X_amilst_umap"] = rng.standard_normal((n_cells, 2), dtype=np.float32)
    adata.uns["amilst"] = small.uns["amilst"] | {"n_domains": N_DOMAINS}
    return adata


def measure(browser: Any, n_cells: int, n_genes: int, folder: Path) -> Json:
    adata = result(n_cells, n_genes)
    began, used = time.perf_counter(), time.process_time()
    page = write_report(adata, folder / "report.html", summary={"scores": {}})
    row: Json = {
        "cells": n_cells,
        "genes": n_genes,
        "bytes": page.stat().st_size,
        "write_seconds": time.perf_counter() - began,
        "write_processor_seconds": time.process_time() - used,
    }
    del adata
    browser.open(page)
    row["first_drawing_seconds"] = browser.run("return performance.now()") / 1000
    row["drawn"] = browser.run("return report.n")
    row["frames_per_second"] = browser.wait(PAN)
    browser.until("report.plots.every((plot) => !plot.moving && !plot.waiting)")
    row["drawing_milliseconds"] = browser.run(DRAW)
    return row


def table(record: Json) -> str:
    """One row for each number of cells."""
    header = [
        "cells",
        "drawn",
        "MB",
        "written, s",
        "(processor)",
        "first drawing, s",
        "frames/s",
        "drawing, ms",
    ]
    rows = [
        [
            f"{one['cells']:,}",
            f"{one['drawn']:,}",
            f"{one['bytes'] / 1e6:.1f}",
            f"{one['write_seconds']:.1f}",
            f"({one['write_processor_seconds']:.1f})",
            f"{one['first_drawing_seconds']:.1f}",
            f"{one['frames_per_second']:.0f}",
            f"{one['drawing_milliseconds']:.0f}",
        ]
        for one in record["results"]
    ]
    return markdown(header, rows)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--cells", type=int, nargs="+", default=[5000, 100_000, 1_000_000])
    parser.add_argument("--genes", type=int, default=300)
    options = parser.parse_args()
    use_threads(options.threads)
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    from chromium import Browser, installed

    if not all(installed()):
        sys.exit("Chromium and chromedriver are not installed (Debian, Ubuntu: chromium, chromium-driver)")
    record = Record(options, "report")
    with tempfile.TemporaryDirectory() as folder:
        browser = Browser(folder)
        try:
            for n_cells in options.cells:
                row = measure(browser, n_cells, options.genes, Path(folder))
                record.add_row(row)
                print(row, flush=True)
        finally:
            browser.close()
    print(table(record.data))


if __name__ == "__main__":
    main()
