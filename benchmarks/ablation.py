"""The default with one part removed or replaced at a time, on annotated sections, over seeds.

    python benchmarks/ablation.py DIR [--seeds 10] [--sections NAME ...] [--variants NAME ...] [--json FILE]

Each row is the default with the settings named. The change is the difference from the default on the same sections
and seeds; its standard error is over seeds, of the mean over tissues. A row whose settings do not show in the
effective configuration of a run stops the benchmark. The spleen section is left out unless named.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import (
    LARGE_SECTIONS,
    Json,
    ari,
    identify,
    make_section_parser,
    markdown,
    mean_over_tissues,
    read_annotated,
    run_sections,
)

VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "no network": {"network_share": 0.0},
    "a tenth of the network": {"network_share": 0.1},
    "network alone": {"network_share": 1.0},
    "network alone, no mutual information": {"network_share": 1.0, "mutual_information_weight": 0.0},
    "network alone, no graph encoder": {"network_share": 1.0, "graph_latent": 0},
    "network alone, block decoder (published)": {"network_share": 1.0, "decoder": "block"},
    "no spatial filter": {"noise_band": None},
    "shrinkage 0.1 (the best constant)": {"shrinkage": 0.1},
    "no shrinkage": {"shrinkage": 0.0},
    "one restart of the mixture": {"n_init": 1},
    "no depth floor": {"depth_floor": 0.0},
    "all genes": {"n_top_genes": None},
    "30 components": {"n_components": 30},
    "12 neighbors": {"n_neighbors": 12},
    "published normalization": {"normalization": "published"},
}


def measure(path: Path, options: argparse.Namespace) -> Json | None:
    """Every variant of one section, seed by seed; None without an annotation."""
    section = read_annotated(path)
    if section is None:
        return None
    adata, n_domains = section
    result: Json = {}
    effective: dict[str, dict[str, Any]] = {}
    for name in ["default", *(name for name in options.variants if name != "default")]:
        scores, began = [], time.perf_counter()
        for seed in range(options.seeds):
            found = identify(adata, n_domains, seed, options, **VARIANTS[name])
            scores.append(ari(found))
            if seed == 0:
                effective[name] = flatten(found.uns["amilst"]["config"])
                check_effective(name, effective, path.stem)
        result[name] = {"ari": scores, "seconds": (time.perf_counter() - began) / options.seeds}
    return result


def flatten(config: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Name of the setting → effective value, as text."""
    return {name: str(np.asarray(value).tolist()) for part in config.values() for name, value in part.items()}


def check_effective(name: str, effective: dict[str, dict[str, Any]], section: str) -> None:
    """Stop unless the settings named, and no others, differ from the default's effective ones.

    The share of the network is decided in the run, and may differ with anything.
    """
    one, default = effective[name], effective["default"]
    changed = {key for key in default if one[key] != default[key]} - {"network_share"}
    expected = set(VARIANTS[name]) - {"network_share"}
    given = VARIANTS[name].get("network_share")
    if given is not None and float(one["network_share"]) != given:
        changed.add("network_share")
    if changed != expected:
        raise AssertionError(
            f"{section}, {name!r}: the effective configuration differs from the default's in "
            f"{sorted(changed) or 'nothing'}; expected {sorted(expected)}."
        )


def table(record: Json) -> str:
    """One row for each variant: ARI, change from the default, spread over seeds, seconds."""
    sections = record["sections"]
    n_seeds = record["seeds"]

    def by_seed(variant: str) -> np.ndarray:
        return np.array(
            [
                mean_over_tissues({name: one[variant]["ari"][seed] for name, one in sections.items()})
                for seed in range(n_seeds)
            ]
        )

    default = by_seed("default")
    rows = []
    for variant in next(iter(sections.values())):
        scores = by_seed(variant)
        change = scores - default
        error = f" ± {change.std(ddof=1) / np.sqrt(n_seeds):.3f}" if n_seeds > 1 else ""
        sd = np.mean([np.std(one[variant]["ari"]) for one in sections.values()])
        seconds = sum(one[variant]["seconds"] for one in sections.values())
        settings = ", ".join(f"{key}={value}" for key, value in VARIANTS.get(variant, {}).items())
        rows.append(
            [variant, f"`{settings}`" if settings else "", f"{scores.mean():.3f}",
             f"{change.mean():+.3f}{error}" if settings else "", f"{sd:.3f}", f"{seconds:.0f}"]
        )  # fmt: skip
    return markdown(["variant", "settings", "ARI", "change", "sd within a section", "seconds"], rows)


def main() -> int:
    parser = make_section_parser(__doc__, seeds=10)
    parser.add_argument(
        "--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), metavar="NAME"
    )
    options = parser.parse_args()
    run_sections(
        options,
        "ablation",
        measure,
        lambda result: f"default {np.mean(result['default']['ari']):.3f}",
        table,
        leave_out=LARGE_SECTIONS,
        seeds=options.seeds,
        variants=options.variants,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
