"""Write benchmarks/README.md and the summary in README.md from the records in benchmarks/results.

    python benchmarks/make_readme.py [--check]

No number in either text is written by hand. A record that does not exist gives a section that says so. ``--check``
writes nothing and exits with status 1 if a file would change.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import ablation
import accuracy
import analysis
import apply
import clustering
import denoising
import device
import integration
import invariance
import kernels
import numpy as np
import reading
import report
import robustness
import scaling
import selection
import training
import versus_dense
from common import TISSUES, Json, mean_over_tissues
from faults import harness as faults

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
BEGIN, END = "<!-- summary: written by benchmarks/make_readme.py -->", "<!-- end of summary -->"
NOT_MEASURED = "Not measured in this version."

INTRODUCTION = """\
# Benchmarks

Every table is written by `python benchmarks/make_readme.py` from the JSON records in `benchmarks/results/`; each
record holds the date, the machine, the versions, the commit, and every single run. Each script describes its question
and its method in its first lines and prints the same table that is shown here.

The annotated sections are: STARmap mouse visual cortex (BY3) and medial prefrontal cortex (BZ5) of Wang et al. 2018;
Spatial Transcriptomics of the mouse olfactory bulb (Ståhl et al. 2016) and of HER2+ breast tumors (Andersson et al.
2021); Visium of the human dorsolateral prefrontal cortex, with selected genes (DLPFC, Maynard et al. 2021);
BaristaSeq of the mouse visual cortex (SpaceTx); CODEX of the mouse spleen, cell types only (Goltsev et al. 2018).
Means are over tissues: the mean of a tissue's sections counts once. The default settings were chosen on some of these
sections, so expect somewhat lower accuracy on others; the second table shows by how much.

The adjusted Rand index (ARI) is 1 for identical partitions and 0 on average for random ones. Spreads are standard
deviations over seeds.
"""


@dataclass(frozen=True)
class Part:
    """A section of the text: its heading, the record's file names, what it shows, and its tables."""

    heading: str
    files: tuple[str, ...]
    command: str
    text: str
    tables: tuple[Callable[[Json], str], ...]


PARTS = (
    Part(
        "Accuracy",
        ("accuracy.json",),
        "python benchmarks/accuracy.py DIR --seeds 10 --json benchmarks/results/accuracy.json",
        "K is the annotated number of domains. *Refined* is the majority vote among spatial neighbors. The controls "
        "use no network: *PCs* is a mixture on 20 principal components, *PCs averaged* a mixture on 15 components "
        "averaged four times over 12 neighbors, *without the network* the method with `network_share=0`. Seconds are "
        "the median of a run, GiB the peak memory of the process.",
        (accuracy.table,),
    ),
    Part(
        "Leave one tissue out",
        ("accuracy.json",),
        "",
        "The constants that remain, varied one at a time, without the network. For each tissue, the variant that is "
        "best on the other tissues is taken; the leave-one-tissue-out mean is what these reach on the tissues left "
        "out.",
        (accuracy.constants_table,),
    ),
    Part(
        "Confidence",
        ("accuracy.json",),
        "",
        "Spots of each section are sorted by confidence and divided into tenths. A spot is correct if its annotation "
        "is the most frequent one of its domain. Mean over tissues, seed 0.",
        (accuracy.calibration_table,),
    ),
    Part(
        "Ablation",
        ("ablation.json",),
        "python benchmarks/ablation.py DIR --seeds 10 --json benchmarks/results/ablation.json",
        "The default with one setting changed at a time; the script verifies that the effective configuration of "
        "every run differs from the default's in that setting only. The change is on the same sections and seeds, "
        "with its standard error over seeds.",
        (ablation.table,),
    ),
    Part(
        "Invariance",
        ("invariance.json",),
        "python benchmarks/invariance.py DIR --json benchmarks/results/invariance.json",
        "ARI of the domains with those of the unmodified run, after changes of the coordinates or of the row order "
        "that must not matter. Seed 0; K as annotated, 7 without an annotation.",
        (invariance.table,),
    ),
    Part(
        "Robustness",
        ("robustness.json",),
        "python benchmarks/robustness.py DIR --seeds 3 --json benchmarks/results/robustness.json",
        "Poorer data and other settings. Each seed draws its own perturbation.",
        (robustness.table,),
    ),
    Part(
        "Number of domains",
        ("selection.json",),
        "python benchmarks/selection.py DIR --seeds 3 --json benchmarks/results/selection.json",
        "The number of domains chosen by the likelihood of held-out blocks when none is given.",
        (selection.table,),
    ),
    Part(
        "Several sections",
        ("integration.json",),
        "python benchmarks/integration.py DIR --seeds 5 --json benchmarks/results/integration.json",
        "Sections analyzed together, with each correction of section effects, against each section alone. *Pooled* is "
        "the ARI over all spots, *per section* the mean over sections; *mutual information* is that of domains and "
        "sections, in brackets that of annotation and sections. Silhouette, LISI, connectivity and isolated-label F1 "
        "are computed in the embedding for the annotated labels. The simulated group is six pieces of one tissue, two "
        "with a technical effect, one with a domain of its own.",
        (integration.table,),
    ),
    Part(
        "New sections",
        ("apply.json",),
        "python benchmarks/apply.py DIR --seeds 3 --json benchmarks/results/apply.json",
        "Each section of a group is left out in turn, and labeled by a model of the others (`amilst apply`). ARI of "
        "the section left out: *joint*, in a run on all sections; *alone*, in a run of its own; *applied*, by the "
        "model of the others; *shuffled*, the same with its genes in random order among unknown ones; *fewer genes*, "
        "with a fifth of its genes missing, drawn at random. Seconds are those of `apply_model`.",
        (apply.table,),
    ),
    Part(
        "Analyses",
        ("analysis.json",),
        "python benchmarks/analysis.py --threads 2 --cells 10000 100000 1000000 "
        "--json benchmarks/results/analysis.json",
        "Correctness and error rates of `amilst_lite.analysis` on simulated data, and time and memory.",
        (analysis.table,),
    ),
    Part(
        "Report",
        ("report.json",),
        "python benchmarks/report.py --json benchmarks/results/report.json",
        "`report.html` of simulated single cells with 300 genes and a UMAP, in headless Chromium without a GPU. Above "
        "200,000 cells the map draws a part of them, evenly chosen in space.",
        (report.table,),
    ),
    Part(
        "Reading files",
        (
            "reading_cpu.json",
            "reading_cpu_1000000.json",
            "reading_cpu_1000000_compressed.json",
            "reading_cpu_1000000_gef.json",
        ),
        "python benchmarks/reading.py --json benchmarks/results/reading_cpu.json",
        "The same simulated counts in every large format, read in a process of its own. Memory is the increase of "
        "the peak; the least is that of the result and one chunk of text.",
        (reading.table,),
    ),
    Part(
        "Held-out counts",
        ("denoising.json",),
        "python benchmarks/denoising.py DIR --seeds 3 --json benchmarks/results/denoising.json",
        "Half of the counts of at most 1,000 spots are set aside and predicted from principal components of the "
        "other half: raw, filtered, filtered and averaged with their reconstruction by the network, and the "
        "reconstruction alone. Mean Poisson deviance per spot, lower is better; the error is that of the difference "
        "between the second and the third, over spots. The share is the weight that the network receives in a run. "
        "Each seed draws its own thinning.",
        (denoising.table,),
    ),
    Part(
        "Scaling",
        ("scaling_cpu_300.json", "scaling_cpu_2000.json"),
        "python benchmarks/scaling.py --genes 300 --json benchmarks/results/scaling_cpu_300.json",
        "Simulated single cells in 20 domains, from an h5ad file on disk to the written results, including figures "
        "and scores. One run of each size. Up to 20,000 cells, training runs beside the clustering and is part of its "
        "time.",
        (scaling.table,),
    ),
    Part(
        "Atlas",
        ("scaling_sections.json",),
        "python benchmarks/scaling.py --cells 100000 1000000 10000000 --sections 40 --genes 300 "
        "--json benchmarks/results/scaling_sections.json",
        "The same in 40 sections, each with a technical effect of its own, in one h5ad file. Counts that would need "
        "more than half of the memory stay on disk.",
        (scaling.table,),
    ),
    Part(
        "Several processes",
        ("scaling_processes.json",),
        "python benchmarks/scaling.py --cells 1000000 --sections 40 --processes 1 2 "
        "--json benchmarks/results/scaling_processes.json",
        "The same as one process and as several that share the run (`torchrun`, gloo, on one machine whose cores "
        "they divide). Domains of two processes agree with those of "
        "one with an ARI of 1.000 here (one seed); a slow test asks for 0.999 with 24,000 spots in 4 sections.\n\n"
        "What a process sends does not depend on the number of cells. With 300 genes, 30 components and 20 "
        "domains, from the sizes of the arrays: counts of at most 20,000 spots on which genes are selected, 29 MB; "
        "covariance of the genes, 0.7 MB (2,000 genes: 32 MB); spectra of the filter, 33 kB; 20,000 spots for "
        "section effects, 2.4 MB; gradients, 77 kB an epoch, 3.8 MB; samples and moments of the mixture, 15 MB. In "
        "the end, the first process receives at most 200,000 spots for figures and report. Each process needs "
        "about 1 kB for each of its own cells, and 8 bytes for each of their counts.\n\n"
        "On paper, a billion cells in 2,000 sections on 64 such machines are 16 million cells each: 16 GB and 15 "
        "GB for the counts, and the time of 16 million cells on one. What would fail first is not the "
        "communication but what one process does for all: it joins the table of all domains, and a section larger "
        "than the memory of one machine cannot be divided.",
        (scaling.table,),
    ),
    Part(
        "Training step",
        ("training_cpu.json",),
        "python benchmarks/training.py --json benchmarks/results/training_cpu.json",
        "Time of a training step, and a lower bound from its floating-point operations and the memory it must move.",
        (training.table,),
    ),
    Part(
        "Sparse product",
        ("kernels_cpu.json",),
        "python benchmarks/kernels.py --json benchmarks/results/kernels_cpu.json",
        "Milliseconds of our product Â·H, and the time of other implementations divided by ours. The lower bound is "
        "a copy of as many bytes as the product must move.",
        (kernels.table,),
    ),
    Part(
        "Clustering and PCA",
        ("clustering_cpu.json",),
        "python benchmarks/clustering.py --json benchmarks/results/clustering_cpu.json",
        "The same data, settings and threads as scikit-learn; the ratio is scikit-learn's time divided by ours.",
        (clustering.table,),
    ),
    Part(
        "Dense formulation",
        ("versus_dense_cpu.json",),
        "python benchmarks/versus_dense.py --json benchmarks/results/versus_dense_cpu.json",
        "The published network and objective with dense N × N arrays, as in the published program, compared with the "
        "sparse computation. Milliseconds per epoch of phase one and phase two.",
        (versus_dense.table,),
    ),
    Part(
        "CUDA device",
        ("device_simulated.json",),
        "python benchmarks/device.py --json benchmarks/results/device_simulated.json",
        "Counted on a CUDA device that is simulated on the CPU (`tests/simulated_cuda.py`). The times are estimates "
        "for an H100 from these counts; no GPU has confirmed them. Training waits once in ten epochs, the mixture once "
        "in a step of EM, at its end. Not included is what the CPU does meanwhile.",
        (device.table,),
    ),
    Part(
        "Faults",
        ("faults_signals.json", "faults_disk.json", "faults_soak.json", "faults_fuzz.json"),
        "python benchmarks/faults/signals.py --json benchmarks/results/faults_signals.json\n"
        "python benchmarks/faults/disk.py --most 800 --json benchmarks/results/faults_disk.json\n"
        "python benchmarks/faults/soak.py --minutes 60 --seed 2 --json benchmarks/results/faults_soak.json\n"
        "python benchmarks/faults/fuzz.py --json benchmarks/results/faults_fuzz.json",
        "Runs that are ended at random moments and continued with `--resume`; disks that are full or fail; commands in "
        "random order with random faults; files changed at random, for each reader. The first lines of each script say "
        "what is expected. *Not as expected* counts the runs in which anything else happened.",
        (faults.table,),
    ),
)


def load(name: str) -> Json | None:
    """The record of that file name, if there is one."""
    path = RESULTS / name
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def measured(record: Json) -> str:
    """Where and when a record was measured."""
    machine, versions = record["machine"], record["versions"]
    n_seeds = record.get("seeds")
    seeds = "" if n_seeds is None else "1 seed, " if n_seeds == 1 else f"{n_seeds} seeds, "
    note = f" {record['note']}" if "note" in record else ""
    if "sections" in record and record["benchmark"] not in ("integration", "apply"):
        left_out = [name for names in TISSUES.values() for name in names if name not in record["sections"]]
        note = f" Without {', '.join(left_out)}.{note}" if left_out else note
    return (
        f"*{seeds}{machine['device']}, {machine['cores']} cores ({machine['processor']}), torch {versions['torch']}; "
        f"{record['date']}, commit {record['commit'].rstrip('+')}.{note}*"
    )


def render(part: Part) -> str:
    """One section of benchmarks/README.md."""
    pieces = [f"## {part.heading}", part.text]
    if part.command:
        pieces.insert(1, f"```bash\n{part.command}\n```")
    records = [record for name in part.files if (record := load(name)) is not None]
    for record in records:
        pieces += [table(record) for table in part.tables] + [measured(record)]
    if not records:
        pieces.append(NOT_MEASURED)
    return "\n\n".join(pieces) + "\n"


def benchmarks_readme() -> str:
    """The text of benchmarks/README.md."""
    return "\n".join([INTRODUCTION, *(render(part) for part in PARTS)])


def summary() -> str:
    """The short summary of README.md."""
    record, sizes = load("accuracy.json"), load("scaling_cpu_300.json")
    lines = []
    if record is None:
        lines.append(f"Accuracy: {NOT_MEASURED[0].lower()}{NOT_MEASURED[1:]}")
    else:
        sections = record["sections"]

        def mean(key: Callable[[Json], list[float]]) -> float:
            return mean_over_tissues({name: float(np.mean(key(one))) for name, one in sections.items()})

        controls = ", ".join(
            f"{name} {mean(lambda one, name=name: one['controls'][name]):.2f}" for name in accuracy.CONTROLS
        )
        sd = np.mean([np.std(one["ari"]) for one in sections.values()])
        dlpfc = [np.mean(one["ari"]) for name, one in sections.items() if name.startswith("dlpfc")]
        lines.append(
            f"Mean ARI with the annotation over {len(sections)} sections, averaged by tissue, {record['seeds']} seeds: "
            f"{mean(lambda one: one['ari']):.2f} (refined {mean(lambda one: one['refined_ari']):.2f}; mean standard "
            f"deviation over seeds {sd:.3f}). Controls: {controls}."
        )
        if all(one.get("constants") for one in sections.values()):
            left_out, in_sample, _ = accuracy.leave_one_tissue_out(record)
            lines.append(
                f"With constants chosen without the tissue they are applied to: {left_out:.2f} "
                f"(chosen on all: {in_sample:.2f})."
            )
        if dlpfc:
            lines.append(f"DLPFC sections: ARI {min(dlpfc):.2f} to {max(dlpfc):.2f}.")
    for found in (sizes, load("scaling_sections.json")):
        if found is None:
            continue
        largest = max(found["results"], key=lambda one: one["cells"])
        n_sections = largest.get("sections", 1)
        cells = f"{largest['cells']:,} simulated cells and {largest['genes']} genes"
        where = "one section" if n_sections == 1 else f"{n_sections} sections"
        lines.append(
            f"{cells} in {where} took {largest['total_seconds']:.0f} s and {largest['ram_bytes'] / 2**30:.1f} GiB on "
            f"{found['machine']['cores']} CPU cores ({found['date']}; ARI {largest['ari']:.2f})."
        )
    return "\n".join([BEGIN, *lines, END])


def project_readme(text: str) -> str:
    """README.md with a new summary."""
    start, stop = text.index(BEGIN), text.index(END) + len(END)
    return text[:start] + summary() + text[stop:]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a file would change")
    options = parser.parse_args()
    project = HERE.parent / "README.md"
    texts = {
        HERE / "README.md": benchmarks_readme(),
        project: project_readme(project.read_text(encoding="utf-8")),
    }
    changed = [
        path for path, text in texts.items() if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    if options.check:
        for path in changed:
            print(f"{path.relative_to(HERE.parent)} is out of date; run python benchmarks/make_readme.py")
        return 1 if changed else 0
    for path in changed:
        path.write_text(texts[path], encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
