"""How accuracy changes with poorer data and with other settings, on annotated sections.

    python benchmarks/robustness.py DIR [--seeds 3] [--sections NAME ...] [--json FILE]

Counts thinned binomially to 50, 25 and 10 %; 10 and 30 % of the spots removed; coordinates jittered by a quarter
and a half of the spot spacing; 4 to 12 neighbors; 15 to 50 components; one domain too few or too many; training in
tiles. Each seed draws its own perturbation. The spleen section is left out unless named.

With one domain too few, a perfect method would still have to join two annotated domains. What that costs, for the pair
that costs least and on average over pairs, is below the table.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from common import (
    ANNOTATION,
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

Perturb = Callable[[Any, np.random.Generator], Any]


def thin(share: float) -> Perturb:
    """Keep each count with this probability."""

    def change(adata: Any, rng: np.random.Generator) -> Any:
        adata.X.data = rng.binomial(adata.X.data.astype(np.int64), share).astype(np.float32)
        adata.X.eliminate_zeros()
        return adata

    return change


def drop(share: float) -> Perturb:
    """Remove this share of the spots."""

    def change(adata: Any, rng: np.random.Generator) -> Any:
        return adata[rng.random(adata.n_obs) >= share].copy()

    return change


def jitter(spacings: float) -> Perturb:
    """Move the spots by normal noise, its standard deviation in units of the spot spacing."""

    def change(adata: Any, rng: np.random.Generator) -> Any:
        from scipy.spatial import cKDTree

        points = np.asarray(adata.obsm["spatial"], dtype=np.float64)
        spacing = np.median(cKDTree(points).query(points, 2)[0][:, 1])
        adata.obsm["spatial"] = points + rng.normal(0, spacings * spacing, points.shape)
        return adata

    return change


def unchanged(adata: Any, rng: np.random.Generator) -> Any:
    """The section as it is."""
    return adata


CASES: dict[str, tuple[Perturb, dict[str, Any], int]] = {
    "unmodified": (unchanged, {}, 0),
    **{f"counts thinned to {share:.0%}": (thin(share), {}, 0) for share in (0.5, 0.25, 0.1)},
    **{f"{share:.0%} of the spots removed": (drop(share), {}, 0) for share in (0.1, 0.3)},
    **{f"coordinates jittered by {s} spacings": (jitter(s), {}, 0) for s in (0.25, 0.5)},
    **{f"{k} neighbors": (unchanged, {"n_neighbors": k}, 0) for k in (4, 8, 12)},
    **{f"{n} components": (unchanged, {"n_components": n}, 0) for n in (15, 20, 30, 50)},
    "one domain too few": (unchanged, {}, -1),
    "one domain too many": (unchanged, {}, +1),
    "trained in tiles of 150 spots": (unchanged, {"batch_size": 150}, 0),
}


def measure(path: Path, options: argparse.Namespace) -> Json | None:
    """ARI of every case, seed by seed; None without an annotation."""
    section = read_annotated(path)
    if section is None:
        return None
    original, n_domains = section
    result: Json = {"joined": joined(original.obs[ANNOTATION])}
    for case, (perturb, settings, shift) in CASES.items():
        result[case] = []
        for seed in range(options.seeds):
            adata = perturb(original.copy(), np.random.default_rng(seed))
            result[case].append(ari(identify(adata, max(2, n_domains + shift), seed, options, **settings)))
    return result


def joined(annotation: Any) -> list[float]:
    """What joining two annotated domains costs in ARI, for every pair of them."""
    from amilst_lite.metrics import adjusted_rand_index

    codes = annotation.dropna().astype("category").cat.codes.to_numpy()
    pairs = combinations(range(codes.max() + 1), 2)
    return [1 - adjusted_rand_index(codes, np.where(codes == b, a, codes)) for a, b in pairs]


def table(record: Json) -> str:
    """One row for each case: mean over tissues, change, sd within a section, and the lowest section."""
    sections = record["sections"]
    rows = []
    first = None
    for case in CASES:
        means = {name: float(np.mean(one[case])) for name, one in sections.items()}
        mean = mean_over_tissues(means)
        first = mean if first is None else first
        sd = np.mean([np.std(one[case]) for one in sections.values()])
        lowest = min(means, key=lambda name: means[name])
        rows.append(
            [case, f"{mean:.3f}", f"{mean - first:+.3f}", f"{sd:.3f}", f"{lowest} {means[lowest]:.3f}"]
        )
    least, mean = (
        mean_over_tissues({name: float(of(one["joined"])) for name, one in sections.items()})
        for of in (min, np.mean)
    )
    return (
        markdown(["case", "ARI", "change", "sd within a section", "lowest section"], rows)
        + "\n\nThe annotation with two of its domains joined, against itself: "
        + f"{-least:+.3f} for the pair that costs least, {-mean:+.3f} on average over pairs."
    )


def main() -> int:
    options = make_section_parser(__doc__, seeds=3).parse_args()
    run_sections(
        options,
        "robustness",
        measure,
        lambda result: f"unmodified {np.mean(result['unmodified']):.3f}",
        table,
        leave_out=LARGE_SECTIONS,
        seeds=options.seeds,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
