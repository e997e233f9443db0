"""Agreement with the annotation of real sections, over seeds, compared with controls.

    python benchmarks/accuracy.py DIR [--seeds 10] [--sections NAME ...] [--set NAME=VALUE ...] [--json FILE]

DIR holds h5ad files with ``obs["ground_truth"]``. K is the number of its labels; spots without a label are left
out of the scores, not out of the run. The annotation is removed before the domains are identified.

Three controls, with the same K and the same number of mixture restarts:

PCs
    20 principal components and a mixture with one full covariance, not shrunken.
PCs averaged
    15 principal components, averaged four times over each spot and its 12 nearest neighbors, and the same mixture.
without the network
    The method as it is with ``network_share=0``: filtered features and our mixture.

Leave-one-tissue-out: the constants that remain are varied one at a time (`CONSTANTS`). For each tissue, the variant
that is best on the other tissues is taken; the mean of what it reaches on the tissue left out is what to expect of
constants chosen on a panel. The in-sample mean is that of the variant that is best on all tissues. The network is
left out there.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import (
    ANNOTATION,
    Json,
    ari,
    identify,
    make_section_parser,
    markdown,
    mean_over_tissues,
    nmi,
    read_annotated,
    run_sections,
    spread,
    tissue_means,
)

CONTROLS = ("PCs", "PCs averaged", "without the network")

CONSTANTS: dict[str, dict[str, Any]] = {
    "as they are": {},
    "1000 genes": {"n_top_genes": 1000},
    "3000 genes": {"n_top_genes": 3000},
    "depth floor 0.25": {"depth_floor": 0.25},
    "depth floor 1": {"depth_floor": 1.0},
    "noise band 0.05": {"noise_band": 0.05},
    "noise band 0.2": {"noise_band": 0.2},
    "4 neighbors": {"n_neighbors": 4},
    "8 neighbors": {"n_neighbors": 8},
    "30 components": {"n_components": 30},
    "50 components": {"n_components": 50},
    "slack 0.5": {"SLACK": 0.5},
    "slack 2": {"SLACK": 2.0},
    "blocks of 50": {"_BLOCK": 50},
    "blocks of 200": {"_BLOCK": 200},
}
"""Constants varied one at a time; names in capitals are of the module `amilst_lite.cluster.shrinkage`."""


def measure(path: Path, options: argparse.Namespace) -> Json | None:
    """All runs of one section; None without an annotation."""
    from amilst_lite.runtime import peak_memory

    section = read_annotated(path)
    if section is None:
        return None
    adata, n_domains = section
    result: Json = {"spots": adata.n_obs, "genes": adata.n_vars, "domains": n_domains}
    result |= {name: [] for name in ("ari", "nmi", "refined_ari", "seconds")}
    for seed in range(options.seeds):
        began = time.perf_counter()
        found = identify(adata, n_domains, seed, options, **options.settings)
        result["seconds"].append(time.perf_counter() - began)
        result["ari"].append(ari(found))
        result["nmi"].append(nmi(found))
        result["refined_ari"].append(ari(found, "amilst_domain_refined"))
        if seed == 0:
            result["calibration"] = calibration(found)
    result["peak_memory"] = peak_memory()
    result["controls"] = {
        name: [ari(predict(seed)) for seed in range(options.seeds)]
        for name, predict in controls(adata, n_domains, options).items()
    }
    result["constants"] = {
        name: [
            constant_ari(adata, n_domains, seed, options, changes) for seed in range(options.constant_seeds)
        ]
        for name, changes in CONSTANTS.items()
        if options.constant_seeds
    }
    return result


def constant_ari(
    adata: Any, n_domains: int, seed: int, options: argparse.Namespace, changes: dict[str, Any]
) -> float:
    """ARI with a setting, or a constant of the shrinkage, changed; without the network."""
    from contextlib import ExitStack
    from unittest import mock

    from amilst_lite.cluster import shrinkage

    constants = {name: value for name, value in changes.items() if name.lstrip("_").isupper()}
    settings = {name: value for name, value in changes.items() if name not in constants}
    with ExitStack() as stack:
        for name, value in constants.items():
            stack.enter_context(mock.patch.object(shrinkage, name, value))
        return ari(identify(adata, n_domains, seed, options, network_share=0.0, epochs=1, **settings))


def leave_one_tissue_out(record: Json) -> tuple[float, float, dict[str, str]]:
    """Mean left out, mean in sample, and the variant chosen for each tissue."""
    sections = record["sections"]
    by_tissue = {
        name: tissue_means(
            {section: float(np.mean(one["constants"][name])) for section, one in sections.items()}
        )
        for name in next(iter(sections.values()))["constants"]
    }
    tissues = list(next(iter(by_tissue.values())))
    chosen = {
        tissue: max(by_tissue, key=lambda name: np.mean([by_tissue[name][t] for t in tissues if t != tissue]))
        for tissue in tissues
    }
    left_out = float(np.mean([by_tissue[chosen[tissue]][tissue] for tissue in tissues]))
    return left_out, float(max(np.mean(list(one.values())) for one in by_tissue.values())), chosen


def constants_table(record: Json) -> str:
    """Mean over tissues of every variant of the constants, and the leave-one-tissue-out summary."""
    sections = record["sections"]
    rows = [
        [
            name,
            f"{mean_over_tissues({n: float(np.mean(one['constants'][name])) for n, one in sections.items()}):.3f}",
        ]
        for name in next(iter(sections.values()))["constants"]
    ]
    if not rows:
        return ""
    left_out, in_sample, chosen = leave_one_tissue_out(record)
    summary = (
        f"Leave-one-tissue-out mean **{left_out:.3f}**, in-sample mean {in_sample:.3f}. Chosen without each tissue: "
        + "; ".join(f"{tissue}: {name}" for tissue, name in chosen.items())
        + "."
    )
    return markdown(["constants", "ARI, mean over tissues"], rows) + "\n\n" + summary


def expected_calibration_error(record: Json) -> float:
    """Mean over tissues of Σ over tenths of |confidence − share correct| · share of the spots."""
    errors = {
        name: sum(abs(confidence - correct) * n for confidence, correct, n in one["calibration"])
        / sum(n for *_, n in one["calibration"])
        for name, one in record["sections"].items()
    }
    return mean_over_tissues(errors)


def calibration(adata: Any) -> list[tuple[float, float, int]]:
    """Mean confidence, share of correct spots, and number of spots, by tenths of the confidence.

    A spot is correct if its label is the most frequent one of its domain.
    """
    import pandas as pd

    labeled = adata.obs[adata.obs[ANNOTATION].notna()]
    domain, label = labeled["amilst_domain"].astype(str), labeled[ANNOTATION].astype(str)
    majority = pd.crosstab(domain, label).idxmax(axis=1)
    correct = (domain.map(majority) == label).to_numpy()
    confidence = labeled["amilst_confidence"].to_numpy()
    tenths = np.array_split(np.argsort(confidence, kind="stable"), 10)
    return [(float(confidence[rows].mean()), float(correct[rows].mean()), len(rows)) for rows in tenths]


def controls(adata: Any, n_domains: int, options: argparse.Namespace) -> dict[str, Callable[[int], Any]]:
    """Control → function that returns, for a seed, the section with the control's domains."""
    from scipy import sparse

    import amilst_lite as amilst
    from amilst_lite.preprocess import prepare

    config = amilst.Config()
    plain = config.replace(n_components=20)
    components = prepare(adata.X, plain.preprocess).features
    graph = amilst.SpatialGraph.from_coordinates(np.asarray(adata.obsm["spatial"]), n_neighbors=12)
    with_self = sparse.csr_matrix(graph.connectivities()) + sparse.identity(adata.n_obs, format="csr")
    mean = sparse.diags(1.0 / np.asarray(with_self.sum(axis=1)).ravel()) @ with_self
    averaged = components[:, :15]
    for _ in range(4):
        averaged = mean @ averaged

    def with_mixture(features: np.ndarray) -> Callable[[int], Any]:
        def predict(seed: int) -> Any:
            mixture = amilst.GaussianMixture(
                n_domains, n_init=config.cluster.n_init, covariance_prior=0.0, random_state=seed,
                device=options.device,
            )  # fmt: skip
            copy = adata.copy()
            copy.obs["amilst_domain"] = mixture.fit_predict(np.ascontiguousarray(features, dtype=np.float32))
            return copy

        return predict

    def without_network(seed: int) -> Any:
        return identify(adata, n_domains, seed, options, network_share=0.0, epochs=1)

    return dict(
        zip(CONTROLS, (with_mixture(components), with_mixture(averaged), without_network), strict=True)
    )


def table(record: Json) -> str:
    """One row for each section, and the mean over tissues."""
    sections = record["sections"]
    rows: list[list[object]] = []
    for name, one in sections.items():
        memory = one["peak_memory"]["ram_bytes"] or 0
        rows.append(
            [name, f"{one['spots']:,}", one["domains"]]
            + [f"**{spread(one['ari'])}**", f"{np.mean(one['nmi']):.3f}", spread(one["refined_ari"])]
            + [spread(one["controls"][control]) for control in CONTROLS]
            + [f"{np.median(one['seconds']):.1f}", f"{memory / 2**30:.1f}"]
        )
    means = [mean_over_tissues({n: float(np.mean(one[k])) for n, one in sections.items()})
             for k in ("ari", "nmi", "refined_ari")]  # fmt: skip
    means += [
        mean_over_tissues({n: float(np.mean(one["controls"][control])) for n, one in sections.items()})
        for control in CONTROLS
    ]
    rows.append(["mean over tissues", "", "", *(f"{mean:.3f}" for mean in means), "", ""])
    header = ["section", "spots", "K", "default", "NMI", "refined", *CONTROLS, "seconds", "GiB"]
    return markdown(header, rows)


def calibration_table(record: Json) -> str:
    """Confidence and share of correct spots by tenths of the confidence, mean over tissues."""
    sections = record["sections"]

    def mean(tenth: int, column: int) -> str:
        values = {name: one["calibration"][tenth][column] for name, one in sections.items()}
        return f"{mean_over_tissues(values):.2f}"

    rows = [
        ["mean confidence", *(mean(k, 0) for k in range(10))],
        ["correct", *(mean(k, 1) for k in range(10))],
    ]
    error = f"Expected calibration error, mean over tissues: {expected_calibration_error(record):.3f}."
    return markdown(["tenth of the spots", *range(1, 11)], rows) + "\n\n" + error


def setting(text: str) -> tuple[str, Any]:
    """``NAME=VALUE`` as a pair; the value is JSON where it can be read as such."""
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def main() -> int:
    parser = make_section_parser(__doc__, seeds=10)
    parser.add_argument("--preset", default="default")
    parser.add_argument("--set", action="append", default=[], type=setting, metavar="NAME=VALUE")
    parser.add_argument(
        "--constant-seeds", type=int, default=2, help="seeds for each variant of the constants (0: none)"
    )
    options = parser.parse_args()
    options.settings = {"preset": options.preset, **dict(options.set)}
    record = run_sections(
        options,
        "accuracy",
        measure,
        lambda result: f"ARI {spread(result['ari'])}, {np.median(result['seconds']):.1f} s",
        table,
        seeds=options.seeds,
        settings=options.settings,
    )
    print("\n" + calibration_table(record))
    print("\n" + constants_table(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
