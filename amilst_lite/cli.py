"""The command line. It parses, hands over to `pipeline` and says what happened."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, get_args, get_type_hints

from ._version import __version__
from .config import PRESETS, Config
from .errors import AmilstError, AmilstWarning, InputError

if TYPE_CHECKING:
    from anndata import AnnData

# Heavy rooms (torch, anndata) are imported by the commands that need them, so that --help,
# --version and a mistyped flag answer at once.

_SHOWN = ("n_neighbors", "n_components", "epochs", "method")  # settings listed by --help itself
_DEMO = {"n_spots": 2000, "n_genes": 500, "n_domains": 7}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line.

    Returns
    -------
    int
        0 when all went well, 2 for input that cannot be used, 130 when interrupted.
    """
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return 2
    console = _Console(quiet=getattr(options, "quiet", False))
    with console.listening():
        try:
            options.call(options, console)
        except (AmilstError, OSError, MemoryError) as error:
            if options.debug:
                raise
            console.end_line()
            text = " ".join(str(error).split()) or type(error).__name__
            sys.stderr.write(f"amilst: error: {text}\n")
            return 2
        except KeyboardInterrupt:
            console.end_line()
            sys.stderr.write("amilst: interrupted; nothing was written\n")
            return 130
    return 0


# --- what can be asked ------------------------------------------------------------------------


def build_parser() -> argparse.ArgumentParser:
    """All commands and flags; the settings' flags come from the dataclasses in `config`."""
    parser = argparse.ArgumentParser(
        prog="amilst", description="Spatial domains in spatial transcriptomics, by AMIL-ST on plain PyTorch."
    )
    parser.add_argument("--version", action="version", version=f"amilst-lite {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("-q", "--quiet", action="store_true", help="say only what went wrong")
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")

    run = _command(commands, "run", _run, "find the domains of a section", common)
    run.add_argument("input", metavar="INPUT", help="h5ad, Visium folder, 10x h5 or mtx, or table of counts")
    run.add_argument(
        "-k", "--n-domains", type=int, metavar="K", help="number of domains (default: chosen by stability)"
    )
    run.add_argument("-o", "--output", required=True, metavar="OUT", help="folder for the results")
    run.add_argument("--coordinates", metavar="TABLE", help="table of spots, x and y, for inputs without")
    run.add_argument(
        "--annotation", metavar="COLUMN|FILE", help="truth to score against: obs column or table"
    )
    _add_backed_flag(run)
    run.add_argument("--sample-key", metavar="COLUMN", help="obs column that tells sections apart")
    _add_method_flags(run)

    demo = _command(commands, "demo", _demo, "the whole job on a simulated section", common)
    demo.add_argument(
        "-o", "--output", default="amilst_demo", metavar="OUT", help="folder (default: amilst_demo)"
    )
    _add_simulation_flags(demo)
    _add_method_flags(demo)

    simulate = _command(commands, "simulate", _simulate, "write a simulated section as h5ad", common)
    simulate.add_argument("-o", "--output", required=True, metavar="FILE", help="h5ad to write")
    simulate.add_argument("--seed", type=int, default=0, help="(default: 0)")
    simulate.add_argument("--force", action="store_true", help="replace what is there")
    _add_simulation_flags(simulate)

    score = _command(commands, "score", _score, "score domains against an annotation, as JSON", common)
    score.add_argument("input", metavar="RESULT", help="h5ad with domains, such as OUT/result.h5ad")
    score.add_argument("--annotation", metavar="COLUMN|FILE", help="truth (without: continuity scores only)")
    score.add_argument(
        "--domain", default="amilst_domain", metavar="COLUMN", help="column to score (default: amilst_domain)"
    )

    info = _command(commands, "info", _info, "what an input holds; without one, this installation", common)
    info.add_argument("input", nargs="?", metavar="INPUT", help="as for run")
    info.add_argument("--coordinates", metavar="TABLE", help="as for run")
    _add_backed_flag(info)
    info.add_argument("--settings", action="store_true", help="list every setting with its default")
    return parser


def _add_backed_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--backed",
        action="store_const",
        const=True,
        default="auto",
        help="read the counts from disk in blocks (h5ad, 10x h5; by itself if they are a third of the memory)",
    )


def _command(commands: Any, name: str, call: Any, text: str, common: argparse.ArgumentParser) -> Any:
    parser = commands.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + ".", parents=[common]
    )
    parser.set_defaults(call=call)
    return parser


def _add_simulation_flags(parser: argparse.ArgumentParser) -> None:
    for name, value in _DEMO.items():
        flag = "--true-domains" if name == "n_domains" else "--" + name.replace("_", "-")
        parser.add_argument(flag, dest=name, type=int, default=value, metavar="N", help=f"(default: {value})")


def _add_method_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--preset", default="default", choices=tuple(PRESETS), help="recipe (default: default)"
    )
    parser.add_argument("--seed", type=int, default=0, help="same seed, same result (default: 0)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    parser.add_argument("--force", action="store_true", help="replace files in OUT")
    parser.add_argument("--umap", action="store_true", help="draw a UMAP as well (extra umap, 10 s more)")
    settings = parser.add_argument_group("settings", "the rest, and their defaults: amilst info --settings")
    for item, part in _settings():
        settings.add_argument(
            "--" + item.name.replace("_", "-"),
            type=_kind(part, item.name),
            default=argparse.SUPPRESS,
            choices=item.metadata.get("choices"),
            metavar="NAME" if item.metadata.get("choices") else "X",
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


def _kind(part: Any, name: str) -> Any:
    """What turns a flag's text into the field's value."""
    hint = get_type_hints(type(part))[name]
    if hint == tuple[int, ...]:
        return _integers
    if hint is bool:
        return _boolean
    alternatives = get_args(hint)
    return _or_none(alternatives[0]) if alternatives else hint


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split(","))


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false", "yes", "no", "1", "0"):
        raise argparse.ArgumentTypeError(f"expected true or false, found {text!r}")
    return text.lower() in ("true", "yes", "1")


def _or_none(kind: Any) -> Any:
    def convert(text: str) -> Any:
        return None if text.lower() == "none" else kind(text)

    convert.__name__ = kind.__name__  # argparse names it in its message
    return convert


def _default(part: Any, name: str) -> str:
    value = getattr(part, name)
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value).lower()


# --- the commands -----------------------------------------------------------------------------


def _run(options: argparse.Namespace, console: _Console) -> None:
    from . import io

    with io.atomic_folder(options.output, overwrite=options.force) as folder:
        console.say(f"reading {options.input}")
        adata = io.read(options.input, coordinates=options.coordinates, backed=options.backed)
        annotation = _annotate(adata, options.annotation)
        _identify(adata, folder, options, console, annotation, source=str(options.input))
    console.say_files(Path(options.output))


def _demo(options: argparse.Namespace, console: _Console) -> None:
    from . import io, pipeline

    with io.atomic_folder(options.output, overwrite=options.force) as folder:
        console.say(
            "simulating {n_spots} spots × {n_genes} genes in {n_domains} domains".format(**vars(options))
        )
        adata = pipeline.simulate_section(
            options.n_spots, options.n_genes, options.n_domains, seed=options.seed
        )
        options.sample_key = None
        _identify(adata, folder, options, console, "ground_truth", source="simulated section")
    console.say_files(Path(options.output))


def _identify(
    adata: AnnData,
    folder: Path,
    options: argparse.Namespace,
    console: _Console,
    annotation: str | None,
    source: str,
) -> None:
    from . import pipeline

    settings = {
        item.name: getattr(options, item.name) for item, _ in _settings() if hasattr(options, item.name)
    }
    pipeline.identify_domains(
        adata,
        options.n_domains,
        seed=options.seed,
        preset=options.preset,
        device=options.device,
        sample_key=options.sample_key,
        callback=console.progress,
        **settings,
    )
    summary = pipeline.write_results(
        adata,
        folder,
        source=source,
        annotation=annotation,
        sample_key=options.sample_key,
        umap=options.umap,
    )
    sizes = adata.obs["amilst_domain"].value_counts(sort=False)
    console.say(f"{adata.n_obs} spots in {(sizes > 0).sum()} domains: {', '.join(map(str, sizes))} spots")
    scores, refined = summary["scores"]["domain"], summary["scores"]["refined"]
    if annotation is not None:
        console.say(
            f"ARI {scores['ari']:.3f}, NMI {scores['nmi']:.3f} against {annotation} "
            f"({scores['n_scored']:.0f} spots); refined: ARI {refined['ari']:.3f}, NMI {refined['nmi']:.3f}"
        )
    memory = summary["peak_memory"]["ram_bytes"]
    console.say(
        f"{summary['seconds']['total']:.1f} s on {summary['device']}"
        + (f", peak memory {memory / 2**20:.0f} MiB" if memory else "")
    )
    for left_out in summary["left_out"]:
        console.say(f"left out: {left_out}")


def _simulate(options: argparse.Namespace, console: _Console) -> None:
    from . import io, pipeline

    with io.atomic_path(options.output, overwrite=options.force) as path:
        adata = pipeline.simulate_section(
            options.n_spots, options.n_genes, options.n_domains, seed=options.seed
        )
        adata.write_h5ad(path)
    console.say(
        f"wrote {options.output}: {adata.n_obs} spots × {adata.n_vars} genes, truth in obs['ground_truth']"
    )


def _score(options: argparse.Namespace, console: _Console) -> None:
    from . import io, pipeline

    adata = io.read(options.input)
    annotation = _annotate(adata, options.annotation)
    scores = pipeline.score(adata, annotation, domain=options.domain)
    sys.stdout.write(json.dumps(scores, indent=2) + "\n")


def _info(options: argparse.Namespace, console: _Console) -> None:
    if options.settings:
        for item, part in _settings():
            flag = "--" + item.name.replace("_", "-")
            sys.stdout.write(f"{flag:30s} {item.metadata['help']} (default: {_default(part, item.name)})\n")
        return
    if options.input is None:
        from . import runtime

        for package, version in runtime.versions().items():
            sys.stdout.write(f"{package}: {version}\n")
        sys.stdout.write(f"device: {runtime.resolve_device('auto')}\n")
        return
    from . import io, pipeline

    adata = io.read(options.input, coordinates=options.coordinates, backed=options.backed)
    for line in pipeline.describe(adata):
        sys.stdout.write(line + "\n")
    sys.stdout.write(f"a run for 7 domains needs {pipeline.estimate_run(adata, 7)}\n")


def _annotate(adata: AnnData, annotation: str | None) -> str | None:
    """Name of the obs column with the truth, joined from a table when a file was given."""
    if annotation is None or annotation in adata.obs:
        return annotation
    if not Path(annotation).is_file():
        columns = ", ".join(map(repr, adata.obs.columns)) or "none"
        raise InputError(
            f"--annotation {annotation!r} is neither a column of obs (there are: {columns}) nor a file."
        )
    from . import io

    return io.join_annotation(adata, annotation)


# --- what is said -----------------------------------------------------------------------------


class _Console:
    """Progress on stderr: a bar on a terminal, plain lines elsewhere, nothing when quiet."""

    def __init__(self, quiet: bool, stream: TextIO | None = None) -> None:
        self.quiet = quiet
        self.stream = sys.stderr if stream is None else stream
        self.on_terminal = self.stream.isatty()
        self.open_line = False

    def say(self, text: str) -> None:
        if not self.quiet:
            self.end_line()
            self.stream.write(text + "\n")
            self.stream.flush()

    def say_files(self, folder: Path) -> None:
        names = ", ".join(json.loads((folder / "run.json").read_text())["files"])
        self.say(f"left in {folder}: {names}")

    def end_line(self) -> None:
        if self.open_line:
            self.stream.write("\n")
            self.open_line = False

    def progress(self, epoch: int, n_epochs: int, losses: dict[str, float]) -> None:
        if self.quiet:
            return
        if self.on_terminal:
            done = 30 * epoch // n_epochs
            bar = "█" * done + "░" * (30 - done)
            self.stream.write(f"\r  {bar} {epoch}/{n_epochs}  loss {losses['network']:.4f} ")
            self.open_line = True
            self.stream.flush()
        elif epoch % max(n_epochs // 4, 1) == 0:
            self.say(f"  epoch {epoch}/{n_epochs}: loss {losses['network']:.4f}")

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
                self.end_line()
                sys.stderr.write(f"amilst: warning: {' '.join(str(message).split())}\n")

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                warnings.simplefilter("always", AmilstWarning)
                warnings.showwarning = show
                yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)
