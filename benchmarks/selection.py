"""The number of domains chosen when none is given, compared with the number annotated.

    python benchmarks/selection.py DIR [--seeds 3] [--sections NAME ...] [--json FILE]

The ARI is that of the domains at the number chosen by the likelihood of held-out blocks
(`amilst_lite.cluster.select_n_domains`). The spleen section is left out unless named.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from common import (
    LARGE_SECTIONS,
    Json,
    ari,
    identify,
    make_section_parser,
    markdown,
    read_annotated,
    run_sections,
    spread,
)


def measure(path: Path, options: argparse.Namespace) -> Json | None:
    """Number chosen, ARI and table of the candidates, seed by seed; None without an annotation."""
    section = read_annotated(path)
    if section is None:
        return None
    adata, annotated = section
    result: Json = {"annotated": annotated, "chosen": [], "ari": [], "tables": []}
    for seed in range(options.seeds):
        found = identify(adata, None, seed, options)
        run = found.uns["amilst"]
        result["chosen"].append(int(run["n_domains"]))
        result["ari"].append(ari(found))
        result["tables"].append(
            {name: np.asarray(column).tolist() for name, column in run["selection"].items()}
        )
    return result


def table(record: Json) -> str:
    """One row for each section."""
    rows = []
    for name, one in record["sections"].items():
        first = one["tables"][0]
        order = np.argsort(-np.asarray(first["log_likelihood"]), kind="stable")
        others = [first["n_domains"][i] for i in order if first["n_domains"][i] != one["chosen"][0]][:3]
        rows.append(
            [name, one["annotated"], ", ".join(map(str, one["chosen"])), ", ".join(map(str, others)),
             spread(one["ari"])]
        )  # fmt: skip
    error = {
        name: float(np.mean(np.abs(np.array(one["chosen"]) - one["annotated"])))
        for name, one in record["sections"].items()
    }
    rows.append(["mean difference from the annotation", "", f"{np.mean(list(error.values())):.2f}", "", ""])
    return markdown(["section", "annotated", "chosen, by seed", "next best (seed 0)", "ARI"], rows)


def main() -> int:
    options = make_section_parser(__doc__, seeds=3).parse_args()
    run_sections(
        options,
        "selection",
        measure,
        lambda result: f"{result['annotated']} annotated, chosen {result['chosen']}",
        table,
        leave_out=LARGE_SECTIONS,
        seeds=options.seeds,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
