"""Flags that several commands share; those of the settings are made from the dataclasses in `config`."""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

from ..config import PRESETS, Check, Config

_SHOWN = ("n_neighbors", "n_components", "epochs", "method")
"""Settings listed by --help itself."""
DEMO = {"n_spots": 2000, "n_genes": 500, "n_domains": 7}
"""Size of the simulated section."""


def add_input_flags(parser: argparse.ArgumentParser) -> None:
    """What is read, and where the results go."""
    parser.add_argument(
        "input",
        nargs="+",
        metavar="INPUT",
        help="files or folder of a supported platform (README, Input); several: analyzed together",
    )
    parser.add_argument(
        "-o", "--output", type=checked_path, required=True, metavar="OUT", help="results folder"
    )
    add_reading_flags(parser)
    parser.add_argument("--annotation", metavar="COLUMN|FILE", help="obs column or table to score against")
    parser.add_argument(
        "--sample-key",
        metavar="COLUMN",
        help="obs column with the section of each spot; with several INPUTs, the one to write (default: section)",
    )
    parser.add_argument(
        "--write-back",
        action="store_true",
        help="SpatialData: write the domains into the table of the store, too",
    )


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """Where it runs, and what is written."""
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--force", action="store_true", help="replace the whole folder of an earlier run")
    parser.add_argument(
        "--umap", action="store_true", help="compute and draw a UMAP (extra umap; 10 s or more)"
    )


_READ_OPTIONS = ("platform", "genome", "bin_size", "layer", "table", "coordinate_system")


def add_reading_flags(parser: argparse.ArgumentParser) -> None:
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
    parser.add_argument(
        "--table",
        metavar="NAME",
        help="SpatialData: one of several tables; also --coordinate-system NAME",
    )
    parser.add_argument("--coordinate-system", metavar="NAME", help=argparse.SUPPRESS)  # it needs two lines
    parser.add_argument(
        "--backed",
        action="store_const",
        const=True,
        default="auto",
        help="read the counts from disk in blocks (h5ad, 10x h5; automatic from half of --memory)",
    )
    parser.add_argument(
        "--memory",
        type=checked_memory,
        metavar="GIB",
        help="memory that may be used; a run that needs more is refused (default: all of the machine)",
    )


def read_options(options: argparse.Namespace) -> dict[str, Any]:
    """Those that were given."""
    given = {name: getattr(options, name) for name in _READ_OPTIONS}
    return {name: value for name, value in given.items() if value is not None}


def add_simulation_flags(parser: argparse.ArgumentParser) -> None:
    """Size of the simulated section."""
    for name, value in DEMO.items():
        flag = "--true-domains" if name == "n_domains" else flag_of(name)
        parser.add_argument(flag, dest=name, type=int, default=value, metavar="N", help=f"(default: {value})")


def add_method_flags(parser: argparse.ArgumentParser) -> None:
    """Preset, seed, and a flag for every setting."""
    parser.add_argument(
        "--preset", default="default", choices=tuple(PRESETS), help="named settings (default: default)"
    )
    parser.add_argument("--seed", type=checked_seed, default=0, metavar="N", help="random seed (default: 0)")
    settings = parser.add_argument_group("settings", "all of them, with defaults: amilst info --settings")
    for item, part in setting_fields():
        check = item.metadata["check"]
        settings.add_argument(
            flag_of(item.name),
            type=_converter(check),
            default=argparse.SUPPRESS,
            choices=check.choices or None,
            metavar="NAME" if check.choices else "X",
            help=f"{item.metadata['help']} (default: {default_text(part, item.name)})"
            if item.name in _SHOWN
            else argparse.SUPPRESS,
        )


def setting_fields() -> Iterator[tuple[dataclasses.Field[Any], Any]]:
    """Every field of every part of the configuration, with the default part that holds it."""
    default = Config()
    for group in dataclasses.fields(default):
        part = getattr(default, group.name)
        for item in dataclasses.fields(part):
            yield item, part


def flag_of(name: str) -> str:
    """Name of the flag of a field."""
    return "--" + name.replace("_", "-")


def checked_path(text: str) -> str:
    """The converter of file names."""
    if not text.strip():
        raise argparse.ArgumentTypeError("expected a name, found an empty string")
    return text


def checked_memory(text: str) -> float:
    """The converter of amounts of memory."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number of GiB > 0, found {text!r}")
    return value


def checked_seed(text: str) -> int:
    """The converter of seeds."""
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


def default_text(part: Any, name: str) -> str:
    """The default of a field, as it is written on the command line."""
    value = getattr(part, name)
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value).lower()
