"""What the benchmarks share: options, annotated sections, one process for each section, and JSON records."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from datetime import date
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

ANNOTATION = "ground_truth"

TISSUES: dict[str, tuple[str, ...]] = {
    "STARmap visual cortex": ("starmap_BY3",),
    "STARmap mPFC": ("starmap_mpfc_BZ5",),
    "mouse olfactory bulb": ("mOB",),
    "HER2+ breast tumor": ("her2st_A1", "her2st_B1", "her2st_C1", "her2st_D1"),
    "DLPFC": ("dlpfc151507_200", "dlpfc151508_200", "dlpfc151510_500", "dlpfc151676_8595"),
    "BaristaSeq visual cortex": ("baristaseq_visp_1", "baristaseq_visp_2", "baristaseq_visp_3"),
    "CODEX spleen": ("codex_spleen_1",),
}
"""Tissue → names of its sections. A section that is not listed counts as a tissue of its own."""

LARGE_SECTIONS = ("codex_spleen_1",)
"""Left out, unless named by --sections, where every section is run some hundred times."""

Json = dict[str, Any]
Measure = Callable[[Path, argparse.Namespace], Json | None]
Measure = Callable[[Path, argparse.Namespace], Json | None]


# --- options --------------------------------------------------------------------------------


def make_parser(description: str | None, *, seeds: int | None = None) -> argparse.ArgumentParser:
    """A parser with ``--device``, ``--threads`` and ``--json``, and with ``--seeds`` where it has a default."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:N or auto (default: cpu)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: as the libraries choose)")
    parser.add_argument("--json", type=Path, help="write the record to this file")
    if seeds is not None:
        parser.add_argument("--seeds", type=int, default=seeds, help=f"seeds 0, 1, ... (default: {seeds})")
    return parser


def make_section_parser(description: str | None, *, seeds: int | None = None) -> argparse.ArgumentParser:
    """`make_parser` with the folder of sections, ``--sections``, ``--jobs`` and ``--resume``."""
    parser = make_parser(description, seeds=seeds)
    parser.add_argument("folder", type=Path, help="h5ad files with raw counts and obsm['spatial']")
    parser.add_argument("--sections", nargs="+", metavar="NAME", help="file names without .h5ad")
    parser.add_argument("--jobs", type=int, default=1, help="sections run at the same time (default: 1)")
    parser.add_argument("--resume", action="store_true", help="keep the sections that --json already holds")
    return parser


def use_threads(threads: int | None) -> None:
    """Limit the threads of torch, BLAS and OpenMP in this process."""
    if threads is not None:
        import torch
        from threadpoolctl import threadpool_limits

        torch.set_num_threads(threads)
        threadpool_limits(threads)


# --- sections -------------------------------------------------------------------------------


def section_paths(
    folder: Path, names: Sequence[str] | None = None, *, leave_out: Sequence[str] = ()
) -> dict[str, Path]:
    """Section name → file, in the order of `TISSUES`, then by name.

    Parameters
    ----------
    names
        The sections wanted; all of the folder if None.
    leave_out
        Sections that are used only if ``names`` holds them.
    """
    found = {path.stem: path for path in sorted(folder.glob("*.h5ad"))}
    unknown = sorted(set(names or ()) - set(found))
    if unknown or not found:
        raise SystemExit(
            f"{folder} has no section {', '.join(unknown)}; it has: {', '.join(found) or 'none'}"
        )
    wanted = set(names) if names else set(found) - set(leave_out)
    return {name: found[name] for name in in_order(wanted)}


def in_order(names: Iterable[str]) -> list[str]:
    """Names of sections in the order of `TISSUES`, then alphabetically."""
    listed = [name for sections in TISSUES.values() for name in sections]
    rank = {name: i for i, name in enumerate(listed)}
    return sorted(names, key=lambda name: (rank.get(name, len(listed)), name))


def run_sections(
    options: argparse.Namespace,
    benchmark: str,
    measure: Measure,
    line: Callable[[Json], str],
    table: Callable[[Json], str],
    *,
    leave_out: Sequence[str] = (),
    **fixed: Any,
) -> Json:
    """Run ``measure`` on every section, print a line for each and the table, and write the record.

    Parameters
    ----------
    options
        From `make_section_parser`.
    benchmark, **fixed
        See `Record`.
    measure
        ``measure(path, options)``: the result of a section, None without an annotation.
    line
        A result in one line.
    table
        The record as Markdown.
    leave_out
        See `section_paths`.
    """
    record = Record(options, benchmark, **fixed)
    paths = section_paths(options.folder, options.sections, leave_out=leave_out)
    for name, result in over_sections(measure, record.remaining(paths), options):
        record.add_section(name, result)
        print(f"{name}: {line(result)}", flush=True)
    if not record.data.get("sections"):
        raise SystemExit(f"no annotated sections in {options.folder}")
    print(table(record.data))
    return record.data


def over_sections(
    measure: Measure, paths: Mapping[str, Path], options: argparse.Namespace
) -> Iterator[tuple[str, Json]]:
    """Call ``measure(path, options)`` for every section, each in a new process, and yield what it returns.

    A process of its own gives each section a peak memory of its own. Sections for which ``measure`` returns
    None (no annotation) are left out. The last sections, which take longest, are started first.
    """
    with ThreadPoolExecutor(options.jobs) as threads:
        futures = {
            threads.submit(_in_new_process, measure, paths[name], options): name for name in reversed(paths)
        }
        for future in as_completed(futures):
            name, result = futures[future], future.result()
            if result is None:
                print(f"{name}: no obs[{ANNOTATION!r}], left out", flush=True)
            else:
                yield name, result


def _in_new_process(measure: Measure, path: Path, options: argparse.Namespace) -> Json | None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_measure, measure, path, options).result()


def _measure(measure: Measure, path: Path, options: argparse.Namespace) -> Json | None:
    warnings.simplefilter("ignore")
    use_threads(options.threads)
    return measure(path, options)


def read_annotated(path: Path) -> tuple[Any, int] | None:
    """The section and its number of annotated domains; None without an annotation."""
    import anndata

    adata = anndata.read_h5ad(path)
    if ANNOTATION not in adata.obs:
        return None
    return adata, int(adata.obs[ANNOTATION].nunique())


def identify(
    adata: Any, n_domains: int | None, seed: int, options: argparse.Namespace, **settings: Any
) -> Any:
    """`amilst_lite.identify_domains` on a copy without the annotation; returns the copy with it."""
    import amilst_lite as amilst

    copy = adata.copy()
    truth = copy.obs.pop(ANNOTATION) if ANNOTATION in copy.obs else None
    amilst.identify_domains(copy, n_domains, seed=seed, device=options.device, **settings)
    if truth is not None:
        copy.obs[ANNOTATION] = truth
    return copy


def ari(adata: Any, domain: str = "amilst_domain") -> float:
    """Adjusted Rand index of a column of domains with the annotation, over the annotated spots."""
    return _agreement(adata, domain, "adjusted_rand_score")


def nmi(adata: Any, domain: str = "amilst_domain") -> float:
    """Normalized mutual information, as `ari`."""
    return _agreement(adata, domain, "normalized_mutual_info_score")


def _agreement(adata: Any, domain: str, name: str) -> float:
    from sklearn import metrics

    labeled = adata.obs[adata.obs[ANNOTATION].notna()]
    return float(getattr(metrics, name)(labeled[ANNOTATION].astype(str), labeled[domain].astype(str)))


# --- summaries and tables -------------------------------------------------------------------


def tissue_means(values: Mapping[str, float]) -> dict[str, float]:
    """Mean over the sections of each tissue."""
    tissue_of = {name: tissue for tissue, names in TISSUES.items() for name in names}
    groups: dict[str, list[float]] = {}
    for name, value in values.items():
        groups.setdefault(tissue_of.get(name, name), []).append(value)
    return {tissue: float(np.mean(group)) for tissue, group in groups.items()}


def mean_over_tissues(values: Mapping[str, float]) -> float:
    """Mean over tissues of the mean over a tissue's sections."""
    return float(np.mean(list(tissue_means(values).values())))


def spread(values: Sequence[float]) -> str:
    """``mean ± standard deviation`` (population)."""
    return f"{np.mean(values):.3f} ± {np.std(values):.3f}"


def markdown(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


# --- records --------------------------------------------------------------------------------


class Record:
    """A JSON record that is written again after every addition, so that an interrupted run keeps what it has.

    Parameters
    ----------
    options
        With ``json``, ``device`` and, for sections, ``resume``.
    benchmark
        Name of the benchmark.
    **fixed
        What holds for the whole run, such as the number of seeds.
    """

    def __init__(self, options: argparse.Namespace, benchmark: str, **fixed: Any) -> None:
        self.path: Path | None = options.json
        self.data: Json = {"benchmark": benchmark, **circumstances(options.device), **fixed}
        if getattr(options, "resume", False) and self.path is not None and self.path.exists():
            earlier = json.loads(self.path.read_text())
            if any(earlier.get(name) != value for name, value in fixed.items()):
                raise SystemExit(f"{self.path} was written with other options; remove it or omit --resume")
            self.data["sections"] = earlier.get("sections", {})

    def remaining(self, paths: Mapping[str, Path]) -> dict[str, Path]:
        """The sections that the record does not hold yet."""
        return {name: path for name, path in paths.items() if name not in self.data.get("sections", {})}

    def add_section(self, name: str, result: Json) -> None:
        """Add a section's result and write the record."""
        sections = self.data.get("sections", {}) | {name: result}
        self.data["sections"] = {key: sections[key] for key in in_order(sections)}
        self.write()

    def add_row(self, row: Json) -> None:
        """Add a row to ``results`` and write the record."""
        self.data.setdefault("results", []).append(row)
        self.write()

    def write(self) -> None:
        """Write the record, replacing the file only when the new one is complete."""
        if self.path is not None:
            unfinished = self.path.with_name(self.path.name + ".part")
            unfinished.write_text(json.dumps(self.data, indent=1) + "\n")
            unfinished.replace(self.path)


def circumstances(device: str = "cpu") -> Json:
    """Date, machine, versions and commit."""
    import torch

    from amilst_lite.runtime import resolve_device, versions

    model = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    resolved = resolve_device(device)
    machine = {
        "processor": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "device": torch.cuda.get_device_name(resolved) if resolved.type == "cuda" else str(resolved),
    }
    return {"date": date.today().isoformat(), "machine": machine, "versions": versions(), "commit": commit()}


def commit() -> str:
    """The commit of this checkout, with "+" when files differ from it."""
    here = Path(__file__).parent
    try:
        run = [
            subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout
            for words in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain"])
        ]
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return run[0].strip() + ("+" if run[1].strip() else "")
