"""The command line: parses arguments, calls `pipeline` and `results`, reports progress."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from . import keys
from ._version import __version__
from .config import PRESETS, Check, Config
from .errors import AmilstError, AmilstWarning, InputError

if TYPE_CHECKING:
    from anndata import AnnData

    from .estimator import AMILST

# Modules that load torch or anndata are imported by the commands that need them, so that --help, --version
# and mistyped flags are answered at once.

_SHOWN = ("n_neighbors", "n_components", "epochs", "method")  # settings listed by --help itself
_DEMO = {"n_spots": 2000, "n_genes": 500, "n_domains": 7}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line.

    Returns
    -------
    int
        0 on success, 1 if ``result.h5ad`` could not be written, 2 for input that cannot be used, 130 if
        interrupted.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal without Unicode shows escapes instead of failing
            stream.reconfigure(errors="backslashreplace")
    try:
        return _main(arguments)
    except BrokenPipeError:  # from the help of argparse, before Python 3.11
        return 0
    finally:
        _write(sys.stdout, "")


def _main(arguments: Sequence[str] | None) -> int:
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return 2
    console = _Console(quiet=options.quiet)
    with console.listening():
        try:
            return options.call(options, console) or 0
        except (AmilstError, OSError, MemoryError) as error:
            if options.debug:
                raise
            console.error(f"error: {' '.join(str(error).split()) or type(error).__name__}")
            return 2
        except KeyboardInterrupt:
            console.error("interrupted; nothing was written")
            return 130


# --- arguments --------------------------------------------------------------------------------


def build_parser() -> argparse.ArgumentParser:
    """All commands and flags; the flags of the settings are made from the dataclasses in `config`."""
    parser = argparse.ArgumentParser(
        prog="amilst", description="Spatial domains in spatial transcriptomics with AMIL-ST in plain PyTorch."
    )
    parser.add_argument("--version", action="version", version=f"amilst-lite {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("-q", "--quiet", action="store_true", help="show warnings and errors only")
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")

    run = _command(commands, "run", _run, "identify the domains of one or several sections", common)
    _add_input_flags(run)
    run.add_argument(
        "-k", "--n-domains", type=int, metavar="K", help="number of domains (default: by held-out spots)"
    )
    _add_method_flags(run)
    _add_run_flags(run)

    apply = _command(commands, "apply", _apply, "label new sections with the model of an earlier run", common)
    apply.add_argument("model", metavar="MODEL", help="model.h5 of an earlier run")
    _add_input_flags(apply)
    _add_run_flags(apply)

    demo = _command(commands, "demo", _demo, "simulate a section and identify its domains", common)
    demo.add_argument(
        "-o", "--output", type=_path, default="amilst_demo", metavar="OUT", help="(default: amilst_demo)"
    )
    _add_simulation_flags(demo)
    _add_method_flags(demo)
    _add_run_flags(demo)

    simulate = _command(commands, "simulate", _simulate, "write a simulated section as h5ad", common)
    simulate.add_argument("-o", "--output", type=_path, required=True, metavar="FILE", help="h5ad to write")
    simulate.add_argument("--seed", type=_seed, default=0, metavar="N", help="random seed (default: 0)")
    simulate.add_argument("--force", action="store_true", help="replace an existing file")
    _add_simulation_flags(simulate)

    score = _command(commands, "score", _score, "score domains against an annotation, as JSON", common)
    score.add_argument("input", metavar="RESULT", help="h5ad with domains, such as OUT/result.h5ad")
    score.add_argument(
        "--annotation", metavar="COLUMN|FILE", help="as for run (default: only what needs none)"
    )
    score.add_argument(
        "--domain", default="amilst_domain", metavar="COLUMN", help="to score (default: amilst_domain)"
    )
    score.add_argument("--sample-key", metavar="COLUMN", help="as for run (default: that of the run)")

    info = _command(commands, "info", _info, "describe an input; without one, this installation", common)
    info.add_argument("input", nargs="?", metavar="INPUT", help="as for run")
    _add_reading_flags(info)
    info.add_argument("--settings", action="store_true", help="list every setting with its default")
    return parser


def _command(commands: Any, name: str, call: Any, text: str, common: argparse.ArgumentParser) -> Any:
    parser = commands.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + ".", parents=[common]
    )
    parser.set_defaults(call=call)
    return parser


def _add_input_flags(parser: argparse.ArgumentParser) -> None:
    """What is read, and where the results go."""
    parser.add_argument(
        "input",
        nargs="+",
        metavar="INPUT",
        help="files or folder of a supported platform (README, Input); several: analyzed together",
    )
    parser.add_argument("-o", "--output", type=_path, required=True, metavar="OUT", help="results folder")
    _add_reading_flags(parser)
    parser.add_argument("--annotation", metavar="COLUMN|FILE", help="obs column or table to score against")
    parser.add_argument(
        "--sample-key",
        metavar="COLUMN",
        help="obs column with the section of each spot; with several INPUTs, the one to write (default: section)",
    )


def _add_run_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--force", action="store_true", help="replace the whole folder of an earlier run")
    parser.add_argument("--umap", action="store_true", help="draw a UMAP (extra umap; 10 s or more)")


_READ_OPTIONS = ("platform", "genome", "bin_size", "layer", "table")


def _add_reading_flags(parser: argparse.ArgumentParser) -> None:
    """How an input is read."""
    parser.add_argument(
        "--coordinates", metavar="TABLE", help="table of spots, x and y, for an input without coordinates"
    )
    parser.add_argument("--platform", metavar="NAME", help="of the input (default: recognized)")
    parser.add_argument("--genome", metavar="NAME", help="10x HDF5, Visium: one of several genomes")
    parser.add_argument(
        "--bin-size", type=int, metavar="N", help="Visium HD: µm; Stereo-seq: spots of the chip"
    )
    parser.add_argument("--layer", metavar="NAME", help="AnnData, SpatialData: layer with the counts, or raw")
    parser.add_argument("--table", metavar="NAME", help="SpatialData: one of several tables")
    parser.add_argument(
        "--backed",
        action="store_const",
        const=True,
        default="auto",
        help="read the counts from disk in blocks (h5ad, 10x h5; automatic from a third of the memory)",
    )


def _read_options(options: argparse.Namespace) -> dict[str, Any]:
    """Those that were given."""
    given = {name: getattr(options, name) for name in _READ_OPTIONS}
    return {name: value for name, value in given.items() if value is not None}


def _add_simulation_flags(parser: argparse.ArgumentParser) -> None:
    for name, value in _DEMO.items():
        flag = "--true-domains" if name == "n_domains" else _flag(name)
        parser.add_argument(flag, dest=name, type=int, default=value, metavar="N", help=f"(default: {value})")


def _add_method_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--preset", default="default", choices=tuple(PRESETS), help="named settings (default: default)"
    )
    parser.add_argument("--seed", type=_seed, default=0, metavar="N", help="random seed (default: 0)")
    settings = parser.add_argument_group("settings", "all of them, with defaults: amilst info --settings")
    for item, part in _settings():
        check = item.metadata["check"]
        settings.add_argument(
            _flag(item.name),
            type=_converter(check),
            default=argparse.SUPPRESS,
            choices=check.choices or None,
            metavar="NAME" if check.choices else "X",
            help=f"{item.metadata['help']} (default: {_default(part, item.name)})"
            if item.name in _SHOWN
            else argparse.SUPPRESS,
        )


def _settings() -> Iterator[tuple[dataclasses.Field[Any], Any]]:
    """Every field of every part of the configuration, with the default part that holds it."""
    default = Config()
    for group in dataclasses.fields(default):
        part = getattr(default, group.name)
        for item in dataclasses.fields(part):
            yield item, part


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _path(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("expected a name, found an empty string")
    return text


def _seed(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"expected an integer >= 0 and < 2**32, found {text!r}")
    return int(text)


def _converter(check: Check) -> Callable[[str], Any]:
    """The function that converts the text of a flag to the value of a field."""
    kinds: dict[str, Any] = {
        "integer": int, "number": float, "flag": _boolean, "integers": _integers, "choice": str,
    }  # fmt: skip
    kind = kinds[check.kind]

    def convert(text: str) -> Any:
        return None if check.optional and text.lower() == "none" else kind(text)

    convert.__name__ = check.kind  # argparse shows it in its message
    return convert


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split(","))


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false", "yes", "no", "1", "0"):
        raise argparse.ArgumentTypeError(f"expected true or false, found {text!r}")
    return text.lower() in ("true", "yes", "1")


def _default(part: Any, name: str) -> str:
    value = getattr(part, name)
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value).lower()


# --- commands ---------------------------------------------------------------------------------


def _run(options: argparse.Namespace, console: _Console) -> int:
    from . import io

    settings = _checked_settings(options)
    _check_input_flags(options)
    with io.atomic_folder(options.output, overwrite=options.force) as folder:
        adata, annotation = _read(options, console)
        model = _identify(adata, options, settings, console)
        summary = _write_results(adata, folder, options, console, annotation, options.input, model)
    return console.report(summary, options.output)


def _apply(options: argparse.Namespace, console: _Console) -> int:
    from . import io, pipeline, runtime
    from .estimator import AMILST

    runtime.resolve_device(options.device)
    _check_input_flags(options, options.model)
    model = AMILST.load(options.model)
    with io.atomic_folder(options.output, overwrite=options.force) as folder:
        adata, annotation = _read(options, console)
        pipeline.apply_model(adata, model, device=options.device, sample_key=options.sample_key)
        adata.uns[keys.DEFAULT_KEY]["model"] = Path(options.model).name
        summary = _write_results(adata, folder, options, console, annotation, options.input)
    return console.report(summary, options.output)


def _check_input_flags(options: argparse.Namespace, *others: str) -> None:
    """Refuse flags that do not go together; several inputs have a column with their sections."""
    from . import io

    _check_outside(options.output, *options.input, options.coordinates, options.annotation, *others)
    if len(options.input) == 1:
        return
    if options.coordinates is not None:
        raise InputError(
            "--coordinates applies to a single INPUT. Convert each input without coordinates to h5ad first: "
            "amilst_lite.read(INPUT, coordinates=TABLE).write_h5ad(FILE)."
        )
    if options.sample_key is None:
        options.sample_key = io.SECTION


def _read(options: argparse.Namespace, console: _Console) -> tuple[AnnData, str | None]:
    """The input or inputs, and the column with their annotation."""
    from . import io

    console.say(f"reading {', '.join(options.input)}")
    if len(options.input) > 1:
        adata = io.read_sections(
            options.input, sample_key=options.sample_key, backed=options.backed, **_read_options(options)
        )
        return adata, _annotate_sections(adata, options.annotation, options.sample_key, console)
    adata = io.read(
        options.input[0], coordinates=options.coordinates, backed=options.backed, **_read_options(options)
    )
    return adata, _annotate(adata, options.annotation)


def _demo(options: argparse.Namespace, console: _Console) -> int:
    from . import io, pipeline

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
    from . import runtime

    settings = {
        item.name: getattr(options, item.name) for item, _ in _settings() if hasattr(options, item.name)
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


def _identify(
    adata: AnnData, options: argparse.Namespace, settings: dict[str, Any], console: _Console
) -> AMILST:
    from . import pipeline

    return pipeline.identify_domains(
        adata,
        options.n_domains,
        seed=options.seed,
        preset=options.preset,
        device=options.device,
        sample_key=options.sample_key,
        callback=console.progress,
        **settings,
    )


def _write_results(
    adata: AnnData,
    folder: Path,
    options: argparse.Namespace,
    console: _Console,
    annotation: str | None,
    source: Sequence[str],
    model: AMILST | None = None,
) -> dict[str, Any]:
    from . import results

    # the run records its own warnings; those before it are the readers'
    recorded = [str(text) for text in adata.uns[keys.DEFAULT_KEY]["warnings"]]
    earlier = [text for text in console.warnings if text not in recorded]
    sizes = adata.obs[keys.ResultKeys().domain].value_counts(sort=False)
    console.say(f"{adata.n_obs} spots in {(sizes > 0).sum()} domains: {', '.join(map(str, sizes))} spots")
    return results.write_results(
        adata,
        folder,
        model=model,
        source=source if len(source) > 1 else source[0],
        annotation=annotation,
        umap=options.umap,
        earlier_warnings=earlier,
    )


def _simulate(options: argparse.Namespace, console: _Console) -> None:
    from . import io, pipeline

    with io.atomic_path(options.output, overwrite=options.force) as path:
        adata = pipeline.simulate_section(
            options.n_spots, options.n_genes, options.n_domains, seed=options.seed
        )
        adata.write_h5ad(path)
    console.say(
        f"{adata.n_obs} spots × {adata.n_vars} genes written to {options.output}, "
        "with the true domains in obs['ground_truth']"
    )


def _score(options: argparse.Namespace, console: _Console) -> None:
    from . import io, pipeline, results

    adata = io.read(options.input)
    annotation = _annotate(adata, options.annotation)
    scores = pipeline.score(adata, annotation, domain=options.domain, sample_key=options.sample_key)
    _write(sys.stdout, results.to_json(scores) + "\n")


def _info(options: argparse.Namespace, console: _Console) -> None:
    if options.settings:
        lines = [
            f"{_flag(item.name):30s} {item.metadata['help']} (default: {_default(part, item.name)})"
            for item, part in _settings()
        ]
    elif options.input is None:
        from . import runtime

        lines = [f"{package}: {version}" for package, version in runtime.versions().items()]
        lines.append(f"device: {runtime.resolve_device('auto')}")
    else:
        from . import io, pipeline

        adata = io.read(
            options.input, coordinates=options.coordinates, backed=options.backed, **_read_options(options)
        )
        lines = pipeline.describe(adata)
        lines.append(f"resources for a run with 7 domains: {pipeline.estimate_run(adata, 7)}")
    _write(sys.stdout, "\n".join(lines) + "\n")


def _annotate(adata: AnnData, annotation: str | None) -> str | None:
    """Name of the obs column with the annotation, joined from a table if a file was given."""
    if annotation is None or annotation in adata.obs:
        return annotation
    if not Path(annotation).is_file():
        columns = ", ".join(map(repr, adata.obs.columns)) or "none"
        raise InputError(
            f"--annotation {annotation!r} is neither a column of obs (there are: {columns}) nor a file."
        )
    from . import io

    return io.join_annotation(adata, annotation)


def _annotate_sections(
    adata: AnnData, annotation: str | None, sample_key: str, console: _Console
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


# --- output -----------------------------------------------------------------------------------


def _write(stream: TextIO | None, text: str) -> None:
    """Write and flush; what is written to a closed pipe (``| head``) is dropped and the work continues."""
    try:
        if stream is not None:
            stream.write(text)
            stream.flush()
    except BrokenPipeError:
        # what is still in the buffer, and all that follows, goes to the null device instead of failing
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())  # type: ignore[union-attr]
        os.close(null)


class _Console:
    """Progress on stderr: a bar on a terminal, plain lines elsewhere, nothing if quiet."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.stream = sys.stderr
        self.on_terminal = self.stream is not None and self.stream.isatty()
        self.open_line = False
        self.warnings: list[str] = []

    def say(self, text: str) -> None:
        if not self.quiet:
            self._line(text)

    def error(self, text: str) -> None:
        self._line(f"amilst: {text}")

    def _line(self, text: str) -> None:
        _write(self.stream, "\n" * self.open_line + text + "\n")
        self.open_line = False

    def progress(self, epoch: int, n_epochs: int, losses: dict[str, float]) -> None:
        if self.quiet:
            return
        if self.on_terminal:
            done = 30 * epoch // n_epochs
            bar = "#" * done + "." * (30 - done)
            _write(self.stream, f"\r  {bar} {epoch}/{n_epochs}  loss {losses['network']:.4f} ")
            self.open_line = True
        elif epoch % max(n_epochs // 4, 1) == 0:
            self.say(f"  epoch {epoch}/{n_epochs}: loss {losses['network']:.4f}")

    def report(self, summary: dict[str, Any], output: str) -> int:
        """Show scores, time and files of a run; return the exit status."""
        scores = summary["scores"]
        if "ari" in scores.get("domain", {}):
            values, refined = scores["domain"], scores["refined"]
            self.say(
                f"ARI {values['ari']:.3f}, NMI {values['nmi']:.3f} against {summary['annotation']} "
                f"({values['n_scored']:.0f} spots); refined: ARI {refined['ari']:.3f}, NMI {refined['nmi']:.3f}"
            )
        memory = summary["peak_memory"]["ram_bytes"]
        self.say(
            f"{summary['seconds']['total']:.1f} s on {summary['device']}"
            + ("" if memory in (None, "none") else f", peak memory {memory / 2**20:.0f} MiB")
        )
        self.say(f"Results written to {output}: {', '.join(summary['files'])}")
        return 0 if "result.h5ad" in summary["files"] else 1

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Show the package's log and its warnings, one line each; hide other packages' warnings."""
        logger = logging.getLogger("amilst_lite")
        handler = logging.Handler()
        handler.emit = lambda record: self.say(record.getMessage())  # type: ignore[method-assign]
        level = logger.level
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)

        def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
            if issubclass(category, AmilstWarning):
                self.warnings.append(" ".join(str(message).split()))
                self.error(f"warning: {self.warnings[-1]}")

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                warnings.simplefilter("always", AmilstWarning)
                warnings.showwarning = show
                yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)
