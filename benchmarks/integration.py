"""Several sections analyzed together, with each correction of section effects, against each section alone.

    python benchmarks/integration.py DIR [--groups NAME=a,b,c ...] [--seeds 5] [--json FILE]

DIR holds annotated sections, one h5ad each; a group lists those that are analyzed together, on their genes in common.
Without --groups, the groups of `GROUPS` that DIR has are run, and a simulated one: six pieces of one tissue, two of
them with a technical effect on every gene, one with a domain of its own. K is the number of annotated domains of the
group; of each section where it is analyzed alone.

*pooled* is the ARI over all spots, *per section* the mean of the ARI within sections, *mutual information* that of
domains and sections (in brackets: of annotation and sections). The other scores are those of
`amilst_lite.metrics.integration_scores`, in the embedding, for the annotated labels.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from common import (
    ANNOTATION,
    Json,
    Record,
    ari,
    identify,
    make_parser,
    markdown,
    over_sections,
    read_annotated,
    spread,
)

GROUPS = {
    "HER2ST A1-D1": ("her2st_A1", "her2st_B1", "her2st_C1", "her2st_D1"),
    "BaristaSeq 1-3": ("baristaseq_visp_1", "baristaseq_visp_2", "baristaseq_visp_3"),
    "DLPFC 151507, 151508": ("dlpfc151507_200", "dlpfc151508_200"),
}
SIMULATED = "simulated"
WITHOUT_EFFECT = "auto, tissue without technical effects"
"""The same pieces of the simulated tissue as they are: what the scores can reach."""
SECTION = "section"

VARIANTS: dict[str, dict[str, Any]] = {
    "auto": {},
    "none": {"batch_correction": "none"},
    "center": {"batch_correction": "center"},
    "shift": {"batch_correction": "shift"},
    "offsets": {"batch_correction": "offsets"},
    "auto, without the network": {"network_share": 0.0},
    "auto, network alone": {"network_share": 1.0},
}
SCORES = (
    "nmi_domain_section", "silhouette_label", "silhouette_batch", "ilisi_scaled", "clisi_scaled",
    "graph_connectivity", "isolated_labels_f1",
)  # fmt: skip


def simulated_group(
    seed: int,
    *,
    affected: tuple[int, ...] = (1, 4),
    n_spots: int = 9000,
    n_genes: int = 400,
    n_domains: int = 7,
) -> Any:
    """Six pieces of one simulated tissue; two thinned gene by gene, one with a domain of its own.

    The technical effect keeps each count of a gene with a probability of its own in the section: exp(0.5 z), z
    normal, relative to half of the largest.
    """
    import scipy.sparse as sp

    import amilst_lite as amilst

    adata = amilst.simulate_section(n_spots, n_genes, n_domains, seed=seed, layout="blobs")
    rng = np.random.default_rng(seed)
    x, y = np.asarray(adata.obsm["spatial"]).T
    column = np.searchsorted(np.quantile(x, [1 / 3, 2 / 3]), x)
    piece = 2 * column
    for place in range(3):
        rows = np.flatnonzero(column == place)
        piece[rows] += y[rows] > np.median(y[rows])
    counts = sp.csr_matrix(adata.X)
    for number in affected:
        kept = np.exp(0.5 * rng.normal(size=n_genes))
        kept = np.minimum(2 * kept / kept.max(), 1)
        for row in np.flatnonzero(piece == number):
            entries = slice(counts.indptr[row], counts.indptr[row + 1])
            drawn = rng.binomial(counts.data[entries].astype(np.int64), kept[counts.indices[entries]])
            counts.data[entries] = drawn
    counts.eliminate_zeros()
    adata.X = counts
    domain = adata.obs[ANNOTATION].astype(str).to_numpy()
    names = np.unique(domain)
    table = np.array([[((domain == name) & (piece == place)).sum() for place in range(6)] for name in names])
    # the domain that is most confined to one piece becomes private to it
    private, owner = np.unravel_index(
        np.argmax(np.where(table > 150, table / table.sum(1, keepdims=True), 0)), table.shape
    )
    adata.obs[SECTION] = [f"piece {place + 1}" for place in piece]
    return adata[~((domain == names[private]) & (piece != owner))].copy()


def joined(paths: list[Path]) -> Any:
    """The sections one after the other, on the genes in common."""
    import anndata

    parts = {}
    for path in paths:
        found = read_annotated(path)
        if found is None:
            raise SystemExit(f"{path} has no obs[{ANNOTATION!r}]")
        adata = found[0]
        adata.obs = adata.obs[[ANNOTATION]].astype(object)
        parts[path.stem] = anndata.AnnData(
            adata.X, obs=adata.obs, var=adata.var[[]], obsm={"spatial": adata.obsm["spatial"]}
        )
    return anndata.concat(parts, join="inner", label=SECTION, index_unique="-")


def measure(path: Path, options: argparse.Namespace) -> Json | None:
    """Every variant of a group, seed by seed, and its sections alone; ``path`` is named after the group."""
    import amilst_lite as amilst

    group = path.name
    result: Json = {"separate": [], "variants": {name: {} for name in options.variants}}
    for seed in range(options.seeds):
        if group == SIMULATED:
            adata = simulated_group(seed)
        else:
            adata = joined([options.folder / f"{name}.h5ad" for name in options.sections_of[group]])
        truth = adata.obs[ANNOTATION].dropna()
        n_domains = truth.nunique()
        result |= {"spots": adata.n_obs, "genes": adata.n_vars, "n_domains": n_domains}
        alone = []
        for name in adata.obs[SECTION].unique():
            part = adata[adata.obs[SECTION] == name].copy()
            k = part.obs[ANNOTATION].nunique()
            alone.append(ari(identify(part, k, seed, options)) if k > 1 else float("nan"))
        result["separate"].append(float(np.nanmean(alone)))
        runs = {name: (adata, VARIANTS[name]) for name in options.variants}
        if group == SIMULATED:
            runs[WITHOUT_EFFECT] = simulated_group(seed, affected=()), {}
        for name, (section, settings) in runs.items():
            began = time.perf_counter()
            found = identify(section, n_domains, seed, options, sample_key=SECTION, **settings)
            seconds = time.perf_counter() - began
            scores = amilst.score(found, ANNOTATION)
            parts = scores["integration"]
            row = {
                "pooled": scores["ari"],
                "per_section": parts["section_ari_mean"],
                "nmi_annotation_section": parts["nmi_annotation_section"],
                **{score: parts[score] for score in SCORES},
                "seconds": seconds,
                "correction": found.uns["amilst"]["integration"]["batch_correction"],
                "peak_memory": int(found.uns["amilst"]["peak_memory"]["ram_bytes"]),
            }
            for key, value in row.items():
                result["variants"].setdefault(name, {}).setdefault(key, []).append(value)
    return result


def table(record: Json) -> str:
    """One row for each group and variant."""
    rows = []
    for group, one in record["sections"].items():
        rows.append([group, "each section alone", "", spread(one["separate"]), *[""] * 9])
        for name, found in one["variants"].items():
            chosen = ", ".join(sorted(set(found["correction"])))
            common = f"{spread(found['nmi_domain_section'])} ({np.mean(found['nmi_annotation_section']):.2f})"
            rows.append(
                [
                    "",
                    f"{name} ({chosen})" if name == "auto" else name,
                    spread(found["pooled"]),
                    spread(found["per_section"]),
                    common,
                    *(f"{np.mean(found[score]):.3f}" for score in SCORES[1:]),
                    f"{np.median(found['seconds']):.1f}",
                    f"{max(found['peak_memory']) / 2**30:.1f}",
                ]
            )
    header = [
        "group", "section effects", "pooled", "per section", "mutual information", "silhouette, domains",
        "silhouette, sections", "iLISI", "cLISI", "connectivity", "isolated F1", "seconds", "GiB",
    ]  # fmt: skip
    return markdown(header, rows)


def group(text: str) -> tuple[str, tuple[str, ...]]:
    name, found, members = text.partition("=")
    if not found or not members:
        raise argparse.ArgumentTypeError(f"expected NAME=a,b,c, found {text!r}")
    return name, tuple(members.split(","))


def main() -> int:
    parser = make_parser(__doc__, seeds=5)
    parser.add_argument("folder", type=Path, help="annotated h5ad files")
    parser.add_argument(
        "--groups", nargs="+", type=group, metavar="NAME=a,b,c", help="sections to analyze together"
    )
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--jobs", type=int, default=1, help="groups run at the same time (default: 1)")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.groups:
        options.sections_of = dict(options.groups)
    else:
        present = {path.stem for path in options.folder.glob("*.h5ad")}
        options.sections_of = {name: members for name, members in GROUPS.items() if set(members) <= present}
        options.sections_of[SIMULATED] = ()
    missing = [
        name for members in options.sections_of.values() for name in members
        if not (options.folder / f"{name}.h5ad").exists()
    ]  # fmt: skip
    if missing:
        raise SystemExit(f"{options.folder} has no {', '.join(missing)}")
    record = Record(options, "integration", seeds=options.seeds)
    for name, result in over_sections(measure, {name: Path(name) for name in options.sections_of}, options):
        record.add_section(name, result)
        print(f"{name}: done", flush=True)
    print(table(record.data))
    return 0


if __name__ == "__main__":
    sys.exit(main())
