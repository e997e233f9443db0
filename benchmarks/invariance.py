"""Do the domains depend on how the coordinates are written? They must not.

    python benchmarks/invariance.py DIR [--sections NAME ...] [--json FILE]

Every section of DIR is run as it is (K as annotated, 7 without an annotation; seed 0) and with its coordinates
rotated, reflected, scaled, translated or jittered by 1e-7 of the spot spacing, and with its rows shuffled. The
adjusted Rand index compares the domains of each with those of the unmodified run.

Exit status 1 if any is below 0.99.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import (
    ANNOTATION,
    Json,
    identify,
    make_section_parser,
    markdown,
    run_sections,
)

LEAST_ARI = 0.99
DEFAULT_DOMAINS = 7


def rotate(points: np.ndarray) -> np.ndarray:
    """By 30 degrees in the plane of the first two axes."""
    angle = math.radians(30)
    turned = points.copy()
    turned[:, 0] = math.cos(angle) * points[:, 0] - math.sin(angle) * points[:, 1]
    turned[:, 1] = math.sin(angle) * points[:, 0] + math.cos(angle) * points[:, 1]
    return turned


def reflect(points: np.ndarray) -> np.ndarray:
    """The first axis with its sign changed."""
    return points * np.array([-1.0] + [1.0] * (points.shape[1] - 1))


def jitter(points: np.ndarray) -> np.ndarray:
    """Normal noise of 1e-7 of the median distance to the nearest spot."""
    from scipy.spatial import cKDTree

    spacing = np.median(cKDTree(points).query(points, 2)[0][:, 1])
    return points + np.random.default_rng(0).normal(0.0, 1e-7 * spacing, points.shape)


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "rotated by 30°": rotate,
    "reflected": reflect,
    "scaled by 1000": lambda points: points * 1e3,
    "scaled by 0.001": lambda points: points * 1e-3,
    "translated": lambda points: points + 10.0 * np.ptp(points),
    "jittered by 1e-7": jitter,
}
SHUFFLED = "rows shuffled"


def measure(path: Path, options: argparse.Namespace) -> Json:
    """ARI with the unmodified run, for every change."""
    import anndata
    from sklearn.metrics import adjusted_rand_score

    adata = anndata.read_h5ad(path)
    n_domains = int(adata.obs[ANNOTATION].nunique()) if ANNOTATION in adata.obs else DEFAULT_DOMAINS
    points = np.asarray(adata.obsm["spatial"], dtype=np.float64)

    def domains(section: Any) -> Any:
        return identify(section, n_domains, 0, options).obs["amilst_domain"]

    unmodified = domains(adata)
    result: Json = {"spots": adata.n_obs, "domains": n_domains, "ari": {}}
    for name, change in CHANGES.items():
        changed = adata.copy()
        changed.obsm["spatial"] = change(points)
        result["ari"][name] = float(adjusted_rand_score(unmodified, domains(changed)))
    rows = np.random.default_rng(0).permutation(adata.n_obs)
    result["ari"][SHUFFLED] = float(adjusted_rand_score(unmodified.iloc[rows], domains(adata[rows].copy())))
    return result


def table(record: Json) -> str:
    """One row for each section."""
    changes = [*CHANGES, SHUFFLED]
    return markdown(
        ["section", "spots", "K", *changes],
        [
            [name, f"{one['spots']:,}", one["domains"], *(f"{one['ari'][change]:.3f}" for change in changes)]
            for name, one in record["sections"].items()
        ],
    )


def main() -> int:
    options = make_section_parser(__doc__).parse_args()
    record = run_sections(
        options, "invariance", measure, lambda result: f"least ARI {min(result['ari'].values()):.3f}", table
    )
    least = min(value for one in record["sections"].values() for value in one["ari"].values())
    return 0 if least >= LEAST_ARI else 1


if __name__ == "__main__":
    sys.exit(main())
