"""All commands and their flags."""

from __future__ import annotations

import argparse
from typing import Any

from .._version import __version__
from . import commands
from .flags import (
    add_input_flags,
    add_method_flags,
    add_reading_flags,
    add_run_flags,
    add_simulation_flags,
    checked_path,
    checked_seed,
)

_ANALYSES = {
    "markers": "* marker genes of each domain",
    "spatially-variable": "genes by Moran's I and Geary's C",
    "enrichment": "* contacts between domains, against chance",
    "border-distance": "distance of every spot to the border of each domain",
    "shapes": "* size, parts and compactness of the domains",
    "composition": "* share of each domain in every section",
    "comparison": "of two conditions, by permuting sections; needs --condition-key",
    "connectivity": "* of the domains (PAGA)",
    "depth": "within layered tissue",
}
"""Those of `analysis.ANALYSES`, which takes long to import."""


def build_parser() -> argparse.ArgumentParser:
    """All commands and flags; the flags of the settings are made from the dataclasses in `config`."""
    parser = argparse.ArgumentParser(
        prog="amilst", description="Spatial domains in spatial transcriptomics with AMIL-ST in plain PyTorch."
    )
    parser.add_argument("--version", action="version", version=f"amilst-lite {__version__}")
    group = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("-q", "--quiet", action="store_true", help="show warnings and errors only")
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")

    run = _command(
        group, "run", commands.run, "identify the domains of one or several sections", common,
        "amilst run INPUT [INPUT ...] -o OUT [-k K] [options]",
    )  # fmt: skip
    add_input_flags(run)
    run.add_argument(
        "-k", "--n-domains", type=int, metavar="K", help="number of domains (default: by held-out spots)"
    )
    run.add_argument("--resume", action="store_true", help="continue the same run after it was killed")
    add_method_flags(run)
    add_run_flags(run)

    apply = _command(
        group, "apply", commands.apply, "label new sections with the model of an earlier run", common,
        "amilst apply MODEL INPUT [INPUT ...] -o OUT [options]",
    )  # fmt: skip
    apply.add_argument("model", metavar="MODEL", help="model.h5 of an earlier run")
    add_input_flags(apply)
    add_run_flags(apply)

    demo = _command(group, "demo", commands.demo, "simulate a section and identify its domains", common)
    demo.add_argument(
        "-o",
        "--output",
        type=checked_path,
        default="amilst_demo",
        metavar="OUT",
        help="(default: amilst_demo)",
    )
    add_simulation_flags(demo)
    add_method_flags(demo)
    add_run_flags(demo)

    simulate = _command(group, "simulate", commands.simulate, "write a simulated section as h5ad", common)
    simulate.add_argument(
        "-o", "--output", type=checked_path, required=True, metavar="FILE", help="h5ad to write"
    )
    simulate.add_argument(
        "--seed", type=checked_seed, default=0, metavar="N", help="random seed (default: 0)"
    )
    simulate.add_argument("--force", action="store_true", help="replace an existing file")
    add_simulation_flags(simulate)

    score = _command(group, "score", commands.score, "score domains against an annotation, as JSON", common)
    score.add_argument("input", metavar="RESULT", help="h5ad with domains, such as OUT/result.h5ad")
    score.add_argument(
        "--annotation", metavar="COLUMN|FILE", help="as for run (default: only what needs none)"
    )
    score.add_argument(
        "--domain", default="amilst_domain", metavar="COLUMN", help="to score (default: amilst_domain)"
    )
    score.add_argument("--sample-key", metavar="COLUMN", help="as for run (default: that of the run)")

    analyze = _command(
        group, "analyze", commands.analyze, "markers, neighborhoods and more of domains", common
    )
    analyze.add_argument("input", metavar="RESULT", help="h5ad with domains, such as OUT/result.h5ad")
    analyze.add_argument(
        "analyses", nargs="*", metavar="NAME",
        help="names of analyses, see below (default: those that take seconds, marked *, "
        "and comparison with --condition-key)",
    )  # fmt: skip
    analyze.epilog = "analyses:\n" + "\n".join(f"  {name:20s}{text}" for name, text in _ANALYSES.items())
    analyze.formatter_class = argparse.RawDescriptionHelpFormatter
    analyze.add_argument(
        "-o",
        "--output",
        type=checked_path,
        required=True,
        metavar="OUT",
        help="folder for tables and the h5ad",
    )
    analyze.add_argument(
        "--held-out", action="store_true",
        help="markers: test in counts that are set aside; repeats the run with the others",
    )  # fmt: skip
    analyze.add_argument(
        "--domain", metavar="COLUMN", help="obs column with the domains (default: of the run)"
    )
    analyze.add_argument("--sample-key", metavar="COLUMN", help="as for run (default: that of the run)")
    analyze.add_argument(
        "--condition-key", metavar="COLUMN", help="comparison: obs column with the condition of each section"
    )
    analyze.add_argument(
        "--seed", type=checked_seed, metavar="N", help="of permutations and thinning (default: 0)"
    )
    analyze.add_argument(
        "--force", action="store_true", help="replace the whole folder of an earlier analysis"
    )

    plot = _command(group, "plot", commands.plot, "draw the figures of a result", common)
    plot.add_argument("input", metavar="RESULT", help="OUT/result.h5ad of a run")
    plot.add_argument(
        "-o", "--output", type=checked_path, required=True, metavar="OUT", help="folder for figures"
    )
    plot.add_argument(
        "--annotation", metavar="COLUMN|FILE", help="obs column or table to draw beside the domains"
    )
    plot.add_argument("--format", default="png", choices=("png", "svg", "pdf"), help="(default: png)")
    plot.add_argument("--umap", action="store_true", help="draw a UMAP (extra umap; 10 s or more)")
    plot.add_argument("--force", action="store_true", help="replace the whole folder of earlier figures")

    info = _command(group, "info", commands.info, "describe an input; without one, this installation", common)
    info.add_argument("input", nargs="?", metavar="INPUT", help="as for run")
    add_reading_flags(info)
    info.add_argument(
        "--processes", type=int, default=1, metavar="N", help="estimate for N processes (torchrun)"
    )
    info.add_argument("--settings", action="store_true", help="list every setting with its default")
    return parser


def _command(
    group: Any, name: str, call: Any, text: str, common: argparse.ArgumentParser, usage: str | None = None
) -> Any:
    """A command; ``usage`` replaces a list of all its flags."""
    parser = group.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + ".", parents=[common], usage=usage
    )
    parser.set_defaults(call=call)
    return parser
