"""The commands: each takes the parsed arguments and the console, and returns the exit status or None.

Modules that load torch or anndata are imported by the commands that need them, so that --help, --version and mistyped
flags are answered at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import keys
from ..config import PRESETS
from ..errors import InputError
from . import interrupt
from .console import Console, write
from .flags import default_text, flag_of, read_options, setting_fields

if TYPE_CHECKING:
    from anndata import AnnData

    from ..checkpoint import Checkpoint
    from ..estimator import AMILST

_MOST_STAMPS = 10_000
"""Files of a folder whose sizes and times identify an input."""


def run(options: argparse.Namespace, console: Console) -> int:
    """Identify the domains of one or several sections."""
    from .. import distributed, io

    if distributed.launched() > 1:
        return _run_together(options, console)
    settings = _checked_settings(options)
    _check_input_flags(options)
    checkpoint = _checkpoint(options)
    advice = "the same command with --resume continues this run"
    try:
        with (
            interrupt.advising(lambda: advice if checkpoint.exists else ""),
            io.atomic_folder(options.output, overwrite=options.force) as folder,
        ):
            if not options.resume:  # once the folder is locked: of an earlier run that nobody continues
                checkpoint.clear()
            try:
                adata, annotation = _read(options, console, checkpoint)
                model = _identify(adata, options, settings, console, checkpoint)
                summary = _write_results(
                    adata, folder, options, console, annotation, options.input, model, checkpoint
                )
            except Exception as error:
                # after a full disk, --resume helps; other errors come again
                if io.disk_error(error, folder) is None:
                    checkpoint.clear()
                raise
    except io.StorageError as error:
        raise InputError(f"{error} Afterwards {advice}." if checkpoint.exists else str(error)) from error
    checkpoint.clear()
    _write_back(adata, options, console)
    return console.report(summary, options.output)


def _run_together(options: argparse.Namespace, console: Console) -> int:
    """`run` as one of several processes: each has some of the sections, the first one writes what is in common."""
    from .. import distributed, io, results

    settings = _checked_settings(options)
    _check_input_flags(options)
    if options.sample_key is None:
        raise InputError(
            f"{distributed.launched()} processes need several sections: several INPUTs, or one with a column of their "
            "names (--sample-key). Run a single section as one process, without torchrun."
        )
    with distributed.together() as group:
        console.quiet |= group.rank > 0
        place = (
            io.atomic_folder(options.output, overwrite=options.force) if group.rank == 0 else nullcontext()
        )
        with place as own:
            folder = Path(group.same(str(own)))
            checkpoint = _checkpoint(options, f"-{group.rank + 1}-of-{group.size}")
            if not (options.resume or distributed.restarted()):
                checkpoint.clear()
            adata, annotation = _read(options, console, checkpoint)
            model = _identify(adata, options, settings, console, checkpoint)
            with results.gathered(adata, folder) as (together, n_spots):
                summary = None
                if together is not None:
                    summary = _write_results(
                        together,
                        folder,
                        options,
                        console,
                        annotation,
                        options.input,
                        model,
                        checkpoint,
                        n_spots,
                    )
            checkpoint.clear()
    return 0 if summary is None else console.report(summary, options.output)


def apply(options: argparse.Namespace, console: Console) -> int:
    """Label new sections with the model of an earlier run."""
    from .. import io, pipeline, runtime
    from ..estimator import AMILST

    runtime.resolve_device(options.device)
    _check_input_flags(options, options.model)
    model = AMILST.load(options.model)
    with io.atomic_folder(options.output, overwrite=options.force) as folder:
        adata, annotation = _read(options, console)
        pipeline.apply_model(adata, model, device=options.device, sample_key=options.sample_key)
        adata.uns[keys.DEFAULT_KEY]["model"] = Path(options.model).name
        summary = _write_results(adata, folder, options, console, annotation, options.input)
    _write_back(adata, options, console)
    return console.report(summary, options.output)


def _check_input_flags(options: argparse.Namespace, *others: str) -> None:
    """Refuse flags that do not go together; several inputs have a column with their sections."""
    from .. import io

    _check_outside(options.output, *options.input, options.coordinates, options.annotation, *others)
    if options.write_back and (
        len(options.input) > 1 or io.recognize(options.input[0], options.platform)[0].name != "spatialdata"
    ):
        raise InputError("--write-back applies to a single SpatialData store. Leave it out for other inputs.")
    if len(options.input) == 1:
        return
    if options.coordinates is not None:
        raise InputError(
            "--coordinates applies to a single INPUT. Convert each input without coordinates to h5ad first: "
            "amilst_lite.read(INPUT, coordinates=TABLE).write_h5ad(FILE)."
        )
    if options.sample_key is None:
        options.sample_key = io.SECTION


def _read(
    options: argparse.Namespace, console: Console, checkpoint: Checkpoint | None = None
) -> tuple[AnnData, str | None]:
    """The input or inputs, and the column with their annotation; of several processes, what this one has."""
    from .. import io
    from ..distributed import ranks

    console.say(f"reading {', '.join(options.input)}")
    if len(options.input) > 1:
        adata = io.read_sections(
            options.input,
            sample_key=options.sample_key,
            backed=options.backed,
            checkpoint=checkpoint,
            **read_options(options),
        )
        return adata, _annotate_sections(adata, options.annotation, options.sample_key, console)
    read = partial(
        io.read,
        options.input[0],
        coordinates=options.coordinates,
        backed=options.backed,
        **read_options(options),
    )
    several = ranks().size > 1
    adata = io.own_sections(read(), options.sample_key) if several else io.read_once(read, checkpoint, "read")
    return adata, _annotate(adata, options.annotation)


def _write_back(adata: AnnData, options: argparse.Namespace, console: Console) -> None:
    """Copy domains and confidence into the table of the SpatialData store that was read."""
    from .. import io

    if options.write_back:
        names = keys.ResultKeys()
        columns = [names.domain, names.refined, names.confidence]
        io.write_labels(options.input[0], adata, columns, table=options.table, overwrite=options.force)
        console.say(f"{', '.join(columns)} written to the table of {options.input[0]}")


def demo(options: argparse.Namespace, console: Console) -> int:
    """Simulate a section and identify its domains."""
    from .. import io, pipeline

    settings = _checked_settings(options)
    with io.atomic_folder(options.output, overwrite=options.force) as folder:
        console.say(
            "simulating {n_spots} spots × {n_genes} genes in {n_domains} domains".format(**vars(options))
        )
        adata = pipeline.simulate_section(
            options.n_spots, options.n_genes, options.n_domains, seed=options.seed
        )
        options.sample_key = None
        model = _identify(adata, options, settings, console)
        summary = _write_results(
            adata, folder, options, console, "ground_truth", ["simulated section"], model
        )
    return console.report(summary, options.output)


def _checked_settings(options: argparse.Namespace) -> dict[str, Any]:
    """The settings given as flags; they and the device are refused before anything is read."""
    from .. import runtime

    settings = {
        item.name: getattr(options, item.name) for item, _ in setting_fields() if hasattr(options, item.name)
    }
    PRESETS[options.preset].replace(**settings)
    runtime.resolve_device(options.device)
    return settings


def _check_outside(output: str, *inputs: str | None) -> None:
    """Refuse an output folder whose replacement would delete an input."""
    folder = Path(output).expanduser().resolve()
    for path in inputs:
        if path is not None and Path(path).expanduser().resolve().is_relative_to(folder):
            raise InputError(
                f"{path} is in the output folder {folder}, which --force replaces. Choose another OUT (-o)."
            )


def _checkpoint(options: argparse.Namespace, process: str = "") -> Checkpoint:
    """Of a run: beside its output folder, for these inputs as they are on disk."""
    from ..checkpoint import Checkpoint

    output = Path(options.output).expanduser()
    stamps = []
    for name in (*options.input, options.coordinates):
        if name is not None:
            path = Path(name).expanduser()
            files = sorted(path.rglob("*")) if path.is_dir() else [path]
            stats = [(str(one), one.stat()) for one in files[:_MOST_STAMPS] if one.is_file()]
            stamps += [f"{one} {stat.st_size} {stat.st_mtime_ns}" for one, stat in stats]
    stamps.append(str(read_options(options)))
    return Checkpoint(output.with_name(f".{output.name}.checkpoint{process}"), stamp="\n".join(stamps))


def _identify(
    adata: AnnData,
    options: argparse.Namespace,
    settings: dict[str, Any],
    console: Console,
    checkpoint: Checkpoint | None = None,
) -> AMILST | None:
    """Write the domains into ``adata``; the model, if it can label other sections, without a copy of them."""
    from .. import pipeline
    from ..estimator import AMILST, MOST_BESIDE

    # a training of a second needs no bar, and without one the clustering runs beside it
    quick = adata.n_obs <= MOST_BESIDE and options.preset == "default"
    model = pipeline.identify_domains(
        adata,
        options.n_domains,
        seed=options.seed,
        preset=options.preset,
        device=options.device,
        sample_key=options.sample_key,
        callback=None if quick else console.progress,
        checkpoint=checkpoint,
        **settings,
    )
    return None if model.fitted_ is None else AMILST.of(model.fitted_, device=options.device)


def _write_results(
    adata: AnnData,
    folder: Path,
    options: argparse.Namespace,
    console: Console,
    annotation: str | None,
    source: Sequence[str],
    model: AMILST | None = None,
    checkpoint: Checkpoint | None = None,
    n_spots: int | None = None,
) -> dict[str, Any]:
    from .. import results

    names = [Path(one).name for one in source]
    # the run records its own warnings; those before it are the readers'
    recorded = [str(text) for text in adata.uns[keys.DEFAULT_KEY]["warnings"]]
    earlier = [text for text in console.warnings if text not in recorded]
    sizes = adata.obs[keys.ResultKeys().domain].value_counts(sort=False)
    console.say(f"{adata.n_obs} spots in {(sizes > 0).sum()} domains: {', '.join(map(str, sizes))} spots")
    return results.write_results(
        adata,
        folder,
        model=model,
        source=names if len(names) > 1 else names[0],
        annotation=annotation,
        umap=options.umap,
        earlier_warnings=earlier,
        command=options.line,
        n_spots=n_spots,
        checkpoint=checkpoint,
    )


def simulate(options: argparse.Namespace, console: Console) -> None:
    """Write a simulated section."""
    from .. import io, pipeline

    with io.atomic_path(options.output, overwrite=options.force) as path:
        adata = pipeline.simulate_section(
            options.n_spots, options.n_genes, options.n_domains, seed=options.seed
        )
        io.write_h5ad(adata, path)
    console.say(
        f"{adata.n_obs} spots × {adata.n_vars} genes written to {options.output}, "
        "with the true domains in obs['ground_truth']"
    )


def score(options: argparse.Namespace, console: Console) -> None:
    """Print the scores of domains as JSON."""
    from .. import io, results, summary

    adata = io.read(options.input)
    annotation = _annotate(adata, options.annotation)
    scores = summary.score(adata, annotation, domain=options.domain, sample_key=options.sample_key)
    write(sys.stdout, results.to_json(scores) + "\n")


def analyze(options: argparse.Namespace, console: Console) -> None:
    """Write tables of what distinguishes the domains, and the AnnData with them."""
    from .. import analysis, io, pipeline, results

    _check_outside(options.output, options.input)
    names = options.analyses or (*analysis.CHEAP, *(["comparison"] if options.condition_key else []))
    given = {
        name: getattr(options, name)
        for name in ("domain", "sample_key", "condition_key", "seed")
        if getattr(options, name) is not None
    }
    analysis.check(names, [*given, "identify"] if options.held_out else given)
    with io.atomic_folder(options.output, overwrite=options.force) as folder:
        console.say(f"reading {options.input}")
        adata = io.read(options.input)
        if options.held_out:
            given["identify"] = pipeline.repeat_run(adata)
        tables = analysis.run(adata, names, **given)
        for name, table in tables.items():
            results.write_table(table, folder / f"{name}.csv")
        io.write_h5ad(adata, folder / "result.h5ad")
        _write_record(folder, options)
    console.say(f"Tables written to {options.output}: {', '.join(f'{name}.csv' for name in tables)}")


def plot(options: argparse.Namespace, console: Console) -> None:
    """Draw the figures of a result again, in another format or beside another annotation."""
    from .. import io, results

    _check_outside(options.output, options.input, options.annotation)
    with io.atomic_folder(options.output, overwrite=options.force) as folder:
        adata = io.read(options.input)
        annotation = _annotate(adata, options.annotation)
        names = results.write_figures(
            adata, folder, annotation=annotation, umap=options.umap, suffix=f".{options.format}"
        )
        _write_record(folder, options)
    console.say(f"Figures written to {options.output}: {', '.join(names)}")


def _write_record(folder: Path, options: argparse.Namespace) -> None:
    """Say what the other files of the folder are; without it, ``--force`` refuses to replace them."""
    from .. import io, results, runtime

    record = {
        "command": options.line,
        "input": Path(options.input).name,
        "versions": runtime.versions(),
        "files": sorted([*(path.name for path in folder.iterdir()), io.RECORD]),
    }
    (folder / io.RECORD).write_text(results.to_json(record) + "\n", encoding="utf-8")


def info(options: argparse.Namespace, console: Console) -> None:
    """Describe an input, the settings or the installation."""
    if options.settings:
        lines = [
            f"{flag_of(item.name):30s} {item.metadata['help']} (default: {default_text(part, item.name)})"
            for item, part in setting_fields()
        ]
    elif options.input is None:
        from .. import runtime

        lines = [f"{package}: {version}" for package, version in runtime.versions().items()]
        lines.append(f"device: {runtime.resolve_device('auto')}")
    else:
        from .. import io, pipeline, summary

        adata = io.read(
            options.input, coordinates=options.coordinates, backed=options.backed, **read_options(options)
        )
        lines = summary.describe(adata)
        needed = pipeline.estimate_run(adata, 7, n_processes=options.processes)
        each = f", each of {options.processes} processes" if options.processes > 1 else ""
        lines.append(f"resources for a run with 7 domains{each}: {needed}")
        given = {"coordinates": options.coordinates, **read_options(options)}
        lines.append(f"recommended: {io.recommended_command(adata, options.input, given)}")
    write(sys.stdout, "\n".join(lines) + "\n")


def _annotate(adata: AnnData, annotation: str | None) -> str | None:
    """Name of the obs column with the annotation, joined from a table if a file was given."""
    if annotation is None or annotation in adata.obs:
        return annotation
    if not Path(annotation).is_file():
        columns = ", ".join(map(repr, adata.obs.columns)) or "none"
        raise InputError(
            f"--annotation {annotation!r} is neither a column of obs (there are: {columns}) nor a file."
        )
    from .. import io

    return io.join_annotation(adata, annotation)


def _annotate_sections(
    adata: AnnData, annotation: str | None, sample_key: str, console: Console
) -> str | None:
    """As `_annotate`; the names of the sections are not replaced, and sections without annotation are named."""
    sections = adata.obs[sample_key]
    column = _annotate(adata, annotation)
    joined = adata.obs[sample_key]
    if list(joined.astype(str)) != list(sections.astype(str)):
        raise InputError(
            f"The column {sample_key!r} of {annotation} differs from the names of the sections "
            f"({', '.join(sections.cat.categories)}). Rename it, or choose another column for the names "
            "(--sample-key)."
        )
    adata.obs[sample_key] = sections
    if column is not None:
        annotated = set(sections[adata.obs[column].notna()])
        without = [name for name in sections.cat.categories if name not in annotated]
        if without:
            console.say(f"no annotation {column!r} in {', '.join(without)}")
    return column
