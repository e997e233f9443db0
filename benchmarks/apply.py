"""Label a section with a model that was trained on the others, against training on all of them.

    python benchmarks/apply.py DIR [--groups NAME=a,b,c ...] [--seeds 3] [--json FILE]

Each section of a group is left out in turn: a model is trained on the rest, written to a file, loaded, and applied
to it (`amilst apply`). ARI is that of the section left out. *joint* is its ARI in a run on all sections of the group,
*alone* in a run of its own; *shuffled*: its genes in random order, with fifty unknown ones; *fewer genes*: a fifth of
them missing, drawn at random.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from common import ANNOTATION, Json, Record, ari, identify, make_parser, markdown, over_sections, spread
from integration import GROUPS, SECTION, group, joined

COLUMNS = ("joint", "alone", "applied", "shuffled", "fewer_genes")


def with_unknown_genes(adata: Any, rng: np.random.Generator) -> Any:
    """The genes in another order, among fifty with counts that the model does not know."""
    import anndata
    import pandas as pd
    import scipy.sparse as sp

    unknown = anndata.AnnData(
        sp.csr_matrix(rng.poisson(1.0, (adata.n_obs, 50)).astype(np.float32)),
        obs=pd.DataFrame(index=adata.obs_names),
        var=pd.DataFrame(index=[f"unknown {place}" for place in range(50)]),
    )
    both = anndata.concat([adata, unknown], axis=1, merge="first")
    return both[:, rng.permutation(both.n_vars)].copy()


def measure(path: Path, options: argparse.Namespace) -> Json | None:
    """Every section left out in turn, seed by seed; ``path`` is named after the group."""
    import amilst_lite as amilst

    names = options.sections_of[path.name]
    everything = joined([options.folder / f"{name}.h5ad" for name in names])
    n_domains = everything.obs[ANNOTATION].nunique()
    result: Json = {name: {column: [] for column in (*COLUMNS, "seconds", "correction")} for name in names}
    for seed in range(options.seeds):
        rng = np.random.default_rng(seed)
        joint = identify(everything, n_domains, seed, options, sample_key=SECTION)
        for name in names:
            left_out = everything.obs[SECTION] == name
            section, rest = everything[left_out].copy(), everything[~left_out].copy()
            model = amilst.identify_domains(
                rest, n_domains, seed=seed, device=options.device, sample_key=SECTION
            )
            with tempfile.TemporaryDirectory() as folder:
                model.save(Path(folder) / "model.h5")
                model = amilst.AMILST.load(Path(folder) / "model.h5")
            kept = np.sort(rng.permutation(section.n_vars)[: round(0.8 * section.n_vars)])
            variants = {
                "applied": section,
                "shuffled": with_unknown_genes(section, rng),
                "fewer_genes": section[:, kept].copy(),
            }
            row = result[name]
            row["joint"].append(ari(joint[left_out]))
            row["alone"].append(ari(identify(section, section.obs[ANNOTATION].nunique(), seed, options)))
            for variant, adata in variants.items():
                began = time.perf_counter()
                amilst.apply_model(adata, model, device=options.device)
                row[variant].append(ari(adata))
                if variant == "applied":
                    row["seconds"].append(time.perf_counter() - began)
                    row["correction"].append(adata.uns["amilst"]["integration"]["batch_correction"])
    return result


def table(record: Json) -> str:
    """One row for each group and section left out."""
    rows = []
    for name, sections in record["sections"].items():
        for place, (section, found) in enumerate(sections.items()):
            rows.append(
                [
                    name if place == 0 else "",
                    section,
                    *(spread(found[column]) for column in COLUMNS),
                    ", ".join(sorted(set(found["correction"]))),
                    f"{np.median(found['seconds']):.2f}",
                ]
            )
    header = [
        "group", "section left out", "joint", "alone", "applied", "shuffled", "fewer genes", "section effect",
        "seconds",
    ]  # fmt: skip
    return markdown(header, rows)


def main() -> int:
    parser = make_parser(__doc__, seeds=3)
    parser.add_argument("folder", type=Path, help="annotated h5ad files")
    parser.add_argument(
        "--groups", nargs="+", type=group, metavar="NAME=a,b,c", help="sections that belong together"
    )
    parser.add_argument("--jobs", type=int, default=1, help="groups run at the same time (default: 1)")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    present = {path.stem for path in options.folder.glob("*.h5ad")}
    options.sections_of = dict(options.groups or GROUPS.items())
    options.sections_of = {
        name: members for name, members in options.sections_of.items() if set(members) <= present
    }
    if not options.sections_of:
        raise SystemExit(f"{options.folder} has not all sections of any group")
    record = Record(options, "apply", seeds=options.seeds)
    for name, result in over_sections(measure, {name: Path(name) for name in options.sections_of}, options):
        record.add_section(name, result)
        print(f"{name}: done", flush=True)
    print(table(record.data))
    return 0


if __name__ == "__main__":
    sys.exit(main())
