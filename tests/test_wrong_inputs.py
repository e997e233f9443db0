"""Wrong and strange inputs: each is refused with a message of its own that says what was expected or found.

One table. A row has a name, what is called (a function, or the arguments of a command line), and a regular expression
of the message. All rows are run once; the tests look at what came of them.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any
from unittest import mock

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from input_files import (
    BARCODES,
    truncate,
    write_10x_h5,
    write_coordinates,
    write_counts_table,
    write_legacy_h5,
    write_mtx,
    write_text,
    write_visium,
)
from scipy import sparse
from test_io_arrays import write_slideseq
from test_io_imaging import write_cosmx, write_merscope, write_seqfish_plus
from test_io_loom import write_loom
from test_io_stereoseq import write_gef, write_gem
from test_io_xenium import write_xenium

import amilst_lite as amilst
from amilst_lite import analysis, io, metrics, plot
from amilst_lite.cli import main
from amilst_lite.model_file import read_model, write_model

N = 60


class Place:
    """A folder for one row, the files that several rows need, and the sections they change."""

    def __init__(self, folder: Path, shared: Path) -> None:
        self.folder, self.shared = folder, shared
        self.section, self.result, self.model = (
            shared / one for one in ("a.h5ad", "result.h5ad", "model.h5")
        )
        self.out = folder / "out"
        self.held: Any = None  # the lock of an output folder

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def run(self, *more: Any, given: Any = None, k: Any = 3) -> list[Any]:
        """The arguments of a run on the section, or on what is given."""
        return ["run", given or self.section, "-o", self.out, *([] if k is None else ["-k", k]), *more]

    def read(self) -> ad.AnnData:
        return ad.read_h5ad(self.section)

    def read_result(self) -> ad.AnnData:
        return ad.read_h5ad(self.result)

    def changed(self, change: Callable[[ad.AnnData], Any], source: str = "section") -> Path:
        """An h5ad file of the section, after a change."""
        adata = ad.read_h5ad(getattr(self, source))
        change(adata)
        adata.write_h5ad(self / "changed.h5ad")
        return self / "changed.h5ad"

    def coordinates(self, text: str) -> list[Any]:
        """The arguments of a run on a table of counts, with a table of coordinates of this text."""
        counts = write_counts_table(self / "counts.csv")
        return self.run("--coordinates", write_text(self / "xy.csv", text), given=counts)

    def counts(self, change: Callable[[str], str]) -> list[Any]:
        """The arguments of a run on a table of counts after a change."""
        path = write_counts_table(self / "counts.csv", separator=",")
        write_text(path, change(path.read_text()))
        return self.run("--coordinates", write_coordinates(self / "xy.csv"), given=path)


@dataclass
class Row:
    name: str
    make: Callable[[Place], Any]  # calls the function, or returns the arguments of the command line
    message: str
    early: bool = False  # refused before an input is read


def cli(name: str, make: Callable[[Place], list[Any]], message: str, *, early: bool = False) -> Row:
    return Row(f"cli: {name}", make, message, early)


def flag(name: str, make: Callable[[Place], list[Any]], message: str) -> Row:
    return cli(name, make, message, early=True)


def api(name: str, call: Callable[[Place], Any], message: str) -> Row:
    return Row(f"api: {name}", call, message)


def sample(**values: Any) -> Callable[[ad.AnnData], None]:
    def change(adata: ad.AnnData) -> None:
        for name, value in values.items():
            adata.obs[name] = value

    return change


def _without_counts(adata: ad.AnnData) -> None:
    adata.X = None


def _linked(place: Place) -> Path:
    (place / "link.h5ad").symlink_to(place / "gone.h5ad")
    return place / "link.h5ad"


def _pipe(place: Place) -> Path:
    os.mkfifo(place / "pipe.h5ad")
    return place / "pipe.h5ad"


def _folder(path: Path, *files: str) -> Path:
    path.mkdir(parents=True)
    for name in files:
        (path / name).write_text("x")
    return path


def _two(place: Place) -> list[Any]:
    return [place.section, place.shared / "b.h5ad"]


def _copies(place: Place) -> Path:
    folder = _folder(place / "several")
    for name in ("one.h5ad", "two.h5ad"):
        shutil.copy(place.section, folder / name)
    return folder


def _cut(path: Path) -> Path:
    truncate(path)
    return path


def _cut_copy(place: Place, name: str, source: Path) -> Path:
    shutil.copy(source, place / name)
    return _cut(place / name)


def _without(folder: Path, name: str) -> Path:
    path = next(one for one in folder.rglob(name))
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    return folder


def _edited(path: Path, change: Callable[[str], str]) -> Path:
    path.write_text(change(path.read_text()))
    return path


def _h5(path: Path, **members: Any) -> Path:
    with h5py.File(path, "w") as file:
        for name, value in members.items():
            file[name] = value
    return path


def _model(place: Place, change: Callable[[dict[str, Any], dict[str, Any]], Any]) -> Path:
    arrays, settings = read_model(place.model)
    change(arrays, settings)
    write_model(place / "m.h5", arrays, settings)
    return place / "m.h5"


def _version(place: Place) -> Path:
    shutil.copy(place.model, place / "m.h5")
    with h5py.File(place / "m.h5", "r+") as file:
        file.attrs["format_version"] = np.array(99)
    return place / "m.h5"


def _locked(place: Place) -> list[Any]:
    place.held = io.atomic_folder(place.out)
    place.held.__enter__()
    return place.run()


POINTS = np.random.default_rng(0).random((N, 2))
FEATURES = np.random.default_rng(1).normal(size=(N, 4)).astype(np.float32)
FEW = "spot,x,y\n" + "".join(f"{name},{i},0\n" for i, name in enumerate(BARCODES[:3]))


def xy(*rows: str, header: str = "spot,x,y") -> str:
    """A table of coordinates of the spots, whose first rows are these."""
    others = [f"{name},{i}.5,{i}" + ",1" * (header.count(",") - 2) for i, name in enumerate(BARCODES)]
    return "\n".join([header, *rows, *others[len(rows) :]]) + "\n"


def identify(adata: ad.AnnData, *arguments: Any, **options: Any) -> None:
    amilst.identify_domains(adata, *(arguments or (3,)), **options)


FLAGS = [
    cli("no input", lambda p: ["run", "-o", p.out], "the following arguments are required: INPUT"),
    cli("no output", lambda p: ["run", p.section], "required: -o/--output"),
    cli("unknown command", lambda p: ["fly"], r"argument COMMAND: invalid choice: 'fly' \(choose from"),
    flag("unknown flag", lambda p: p.run("--fast"), "unrecognized arguments: --fast"),
    flag("flag without value", lambda p: p.run("--layer"), "argument --layer: expected one argument"),
    flag("word for K", lambda p: p.run(k="many"), "--n-domains: invalid int value: 'many'"),
    cli(
        "one domain",
        lambda p: p.run(k=1),
        r"n_domains \(--n-domains\) must be an integer >= 2 or None; found 1",
    ),
    cli(
        "more domains than spots",
        lambda p: p.run(k=61),
        "must not exceed the number of spots; found 61 for 60",
    ),
    cli(
        "too few spots to choose K",
        lambda p: p.run(k=None, given=p.changed(lambda a: a._inplace_subset_obs(slice(18)))),
        r"choosing the number of domains needs at least \d+ spots; found 18. Set n_domains",
    ),
    flag("negative seed", lambda p: p.run("--seed", "-1"), "argument --seed: expected"),
    flag("fractional seed", lambda p: p.run("--seed", "1.5"), "expected an integer >= 0 and .* found '1.5'"),
    flag(
        "seed in words",
        lambda p: ["demo", "-o", p.out, "--seed", "x"],
        r"amilst demo: error: argument --seed",
    ),
    flag(
        "seed beyond 2^32",
        lambda p: ["simulate", "-o", p.out, "--seed", 2**70],
        "simulate: error: argument --seed",
    ),
    flag("unknown device", lambda p: p.run("--device", "gpu"), "device must be auto, cpu, cuda.*found 'gpu'"),
    flag("device number", lambda p: p.run("--device", "cuda:x"), "found 'cuda:x'"),
    flag(
        "no epochs", lambda p: p.run("--epochs", "0"), r"epochs \(--epochs\) must be an integer >= 1; found 0"
    ),
    flag(
        "fractional epochs",
        lambda p: p.run("--epochs", "3.5"),
        "argument --epochs: invalid integer value: '3.5'",
    ),
    flag(
        "corruption beyond 1", lambda p: p.run("--corruption", "2"), "--corruption.*>= 0 and <= 0.99; found 2"
    ),
    flag("dropout is nan", lambda p: p.run("--dropout", "nan"), "--dropout.* found nan"),
    flag("no neighbors", lambda p: p.run("--n-neighbors", "0"), "--n-neighbors.*>= 1; found 0"),
    cli(
        "neighbors of all spots", lambda p: p.run("--n-neighbors", "60"), "at most n_neighbors=59 is possible"
    ),
    flag("negative radius", lambda p: p.run("--radius", "-1"), "--radius.*> 0 or None; found -1"),
    flag(
        "unknown covariance",
        lambda p: p.run("--covariance-type", "round"),
        "--covariance-type: invalid choice",
    ),
    flag(
        "unknown method", lambda p: p.run("--method", "magic"), "argument --method: invalid choice: 'magic'"
    ),
    flag("unknown preset", lambda p: p.run("--preset", "best"), "argument --preset: invalid choice: 'best'"),
    flag("shrinkage of 1", lambda p: p.run("--shrinkage", "1"), r"--shrinkage.*<= 0.999 or None; found 1"),
    flag("share beyond 1", lambda p: p.run("--network-share", "2"), "--network-share.*found 2"),
    flag(
        "word among widths",
        lambda p: p.run("--feature-widths", "12,x"),
        "--feature-widths: invalid integers value",
    ),
    flag(
        "width of 0",
        lambda p: p.run("--feature-widths", "0"),
        r"--feature-widths.* one or more integers >= 1; found",
    ),
    flag(
        "unclear flag",
        lambda p: p.run("--adversary", "maybe"),
        "--adversary: expected true or false, found 'maybe'",
    ),
    flag(
        "noise band of 1", lambda p: p.run("--noise-band", "1"), "--noise-band.*> 0 and < 1 or None; found 1"
    ),
    flag(
        "negative rate",
        lambda p: p.run("--learning-rate", "-1"),
        "--learning-rate.*a finite number >= 0; found -1",
    ),
    flag("no components", lambda p: p.run("--n-components", "0"), "--n-components.*found 0"),
    flag("tiny batches", lambda p: p.run("--batch-size", "2"), "--batch-size.*>= 4; found 2"),
    flag("no restarts", lambda p: p.run("--n-init", "0"), "--n-init.*found 0"),
    flag(
        "unknown normalization",
        lambda p: p.run("--normalization", "cpm"),
        "--normalization: invalid choice: 'cpm'",
    ),
    flag(
        "unknown correction",
        lambda p: p.run("--batch-correction", "combat"),
        "--batch-correction: invalid choice",
    ),
    flag(
        "unknown format",
        lambda p: ["plot", p.result, "-o", p.out, "--format", "gif"],
        "--format: invalid choice",
    ),
    flag(
        "simulated without spots",
        lambda p: ["simulate", "-o", p / "s.h5ad", "--n-spots", "0"],
        "n_spots must be an integer >= 1",
    ),
    flag(
        "more simulated domains than spots",
        lambda p: ["simulate", "-o", p / "s.h5ad", "--n-spots", "5", "--true-domains", "9"],
        "9 domains need n_spots >= 180; found 5",
    ),
]

OUTPUTS = [
    flag(
        "empty output",
        lambda p: ["run", p.section, "-o", ""],
        "-o/--output: expected a name, found an empty string",
    ),
    cli(
        "output is a file",
        lambda p: ["run", p.section, "-k", 3, "-o", write_text(p / "file", "x")],
        "file is a file; expected the name of a folder",
    ),
    cli(
        "output below a file",
        lambda p: ["run", p.section, "-o", write_text(p / "file", "x") / "out"],
        "out cannot be written .*another place",
    ),
    cli(
        "output is not empty",
        lambda p: p.run("-q", given=_folder(p.out, "run.json") and p.section),
        r"not empty .*--force",
    ),
    cli(
        "output is no run",
        lambda p: p.run("--force", given=_folder(p.out, "thesis.doc") and p.section),
        "'thesis.doc'. It is not",
    ),
    cli(
        "output holds the input",
        lambda p: p.run("--force", given=shutil.copy(p.section, _folder(p.out) / "a.h5ad")),
        "in the output folder .*, which --force replaces. Choose another OUT",
    ),
    *(
        [
            cli(
                "output in a locked folder",
                lambda p: _denied(p) and p.run(),
                "out cannot be written .*ermission",
            )
        ]
        if hasattr(os, "geteuid") and os.geteuid() != 0
        else []
    ),
    cli(
        "output holds one of two inputs",
        lambda p: [
            "run",
            p.section,
            shutil.copy(p.section, _folder(p.out) / "b.h5ad"),
            "-o",
            p.out,
            "--force",
        ],
        "b.h5ad is in the output folder",
        early=True,
    ),
    flag("output is locked", _locked, "out is being written by another run"),
    cli(
        "simulated file exists",
        lambda p: ["simulate", "-o", write_text(p / "s.h5ad", "x")],
        "s.h5ad .*--force",
    ),
    api(
        "figure of an unknown kind", lambda p: plot.save(_figure(), p / "a.gif"), "end in .png, .svg or .pdf"
    ),
    api(
        "figure without folder",
        lambda p: plot.save(_figure(), p / "no" / "a.png"),
        "folder .* does not exist",
    ),
]


def _denied(place: Place) -> Path:
    place.folder.chmod(0o555)
    return place.folder


def _figure() -> Any:
    from matplotlib.figure import Figure

    return Figure()


FILES = [
    cli(
        "missing file",
        lambda p: p.run(given=p / "none.h5ad"),
        "There is no file or folder .*none.h5ad. .* contains",
    ),
    cli("missing folder", lambda p: p.run(given=p / "no" / "a.h5ad"), "its folder .* does not exist"),
    cli("similar name", lambda p: p.run(given=p.shared / "a.h5a"), r"Did you mean 'a\.h5ad'"),
    cli("empty file", lambda p: p.run(given=write_text(p / "a.h5ad", "")), r"is empty \(0 bytes\)"),
    cli(
        "dead link",
        lambda p: p.run(given=_linked(p)),
        "is a symbolic link to .*gone.h5ad, which does not exist",
    ),
    cli("pipe", lambda p: p.run(given=_pipe(p)), "is a pipe, a socket or a device"),
    cli("device", lambda p: p.run(given="/dev/null"), "/dev/null is a pipe, a socket or a device"),
    cli(
        "empty folder",
        lambda p: p.run(given=_folder(p / "e")),
        "contains no input of a known format; found nothing",
    ),
    cli(
        "folder of other files",
        lambda p: p.run(given=_folder(p / "e", "a.doc")),
        "known format; found 'a.doc'",
    ),
    cli(
        "several inputs in a folder",
        lambda p: p.run(given=_copies(p)),
        "contains 2 inputs: 'one.h5ad', 'two.h5ad'",
    ),
    cli(
        "one level too low",
        lambda p: p.run(given=write_visium(p / "v") / "spatial"),
        "but no counts: expected .*, found 'scalefactors_json.json', .* Give the folder above",
    ),
    cli(
        "one level too low of Xenium",
        lambda p: p.run(given=_folder(write_xenium(p / "x") / "analysis")),
        r"The folder above is an input \(Xenium\): give .*x\.",
    ),
    cli(
        "unknown HDF5",
        lambda p: p.run(given=_h5(p / "a.h5", stuff=1)),
        "HDF5 file of an unknown format; .* 'stuff'",
    ),
    cli(
        "no text",
        lambda p: p.run(given=_bytes(p / "a.bin", bytes(range(256)))),
        "The format of .*a.bin is unknown",
    ),
    cli(
        "one line of text",
        lambda p: p.run("--coordinates", "x", given=write_text(p / "a.csv", "a,b\n")),
        "1 line",
    ),
    cli(
        "h5ad in two halves",
        lambda p: p.run(given=_cut_copy(p, "a.h5ad", p.section)),
        "cannot be read as an HDF5",
    ),
    cli(
        "truncated gzip",
        lambda p: [
            "info",
            _cut(write_counts_table(p / "c.tsv.gz")),
            "--coordinates",
            write_coordinates(p / "xy.csv"),
        ],
        r"c.tsv.gz cannot be read as text \(Compressed file ended before",
    ),
    cli(
        "unknown platform", lambda p: p.run("--platform", "xenon"), "platform must be one of .*found 'xenon'"
    ),
    cli("similar platform", lambda p: p.run("--platform", "Visium-HD"), "Did you mean 'visium_hd'"),
    cli("another platform", lambda p: p.run("--platform", "loom"), "is not a loom file: expected 'matrix'"),
    cli(
        "bin size of h5ad",
        lambda p: p.run("--bin-size", "8"),
        "bin_size=8 applies to Visium HD, Stereo-seq only",
    ),
    cli("genome of h5ad", lambda p: p.run("--genome", "mm10"), "genome='mm10' applies to"),
    cli("unknown layer", lambda p: p.run("--layer", "raw"), "has no layer 'raw'; it has nothing"),
    cli("table of h5ad", lambda p: p.run("--table", "t"), "table='t' applies to SpatialData only"),
    cli(
        "backed gzip",
        lambda p: p.run("--backed", given=_gzipped(p)),
        r"backed=True applies to AnnData, 10x HDF5 only; .*as AnnData \(gzip\)",
    ),
    api(
        "gzip on disk",
        lambda p: amilst.read_h5ad(_gzipped(p), backed=True),
        "cannot be left on disk. Decompress it",
    ),
    flag(
        "write back to h5ad",
        lambda p: p.run("--write-back"),
        "--write-back applies to a single SpatialData store",
    ),
    api("path is None", lambda p: amilst.read(None), "Expected the path of a file or folder; found None"),
    api("path is empty", lambda p: amilst.read(""), "Expected the path of a file or folder; found ''"),
    api("zarr is a folder", lambda p: amilst.read_zarr(_folder(p / "z")), "is not an AnnData in zarr format"),
    api(
        "store without tables", lambda p: amilst.read_spatialdata(_folder(p / "z")), "not a SpatialData store"
    ),
    api(
        "h5ad is a folder",
        lambda p: amilst.read_h5ad(_folder(p / "z", "b")),
        "is a folder; expected an h5ad file",
    ),
    api(
        "h5ad without X",
        lambda p: amilst.read_h5ad(_h5(p / "a.h5ad", obs=1)),
        "not an h5ad file: expected 'X'",
    ),
    api(
        "layer and backed",
        lambda p: amilst.read_h5ad(p.section, layer="a", backed=True),
        "exclude each other",
    ),
    api(
        "parquet is broken",
        lambda p: io.join_coordinates(p.read(), write_text(p / "a", "PAR1")),
        "parquet table",
    ),
    api("codec of a plugin", lambda p: amilst.read(_plugin(p)), r"compressed by zstd .* package hdf5plugin"),
]


def _bytes(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def _gzipped(place: Place) -> Path:
    import gzip

    return _bytes(place / "a.h5ad.gz", gzip.compress(place.section.read_bytes(), 1))


def _plugin(place: Place) -> Path:
    shutil.copy(place.section, place / "a.h5ad")
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_chunk((3,))
    creation.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, (3,))
    with h5py.File(place / "a.h5ad", "r+") as file:
        h5py.h5d.create(file.id, b"more", h5py.h5t.NATIVE_INT32, h5py.h5s.create_simple((6,)), creation)
    return place / "a.h5ad"


TABLES = [
    cli(
        "10x without coordinates",
        lambda p: p.run(given=write_10x_h5(p / "a.h5")),
        "a.h5 has counts but no coord",
    ),
    cli(
        "no coordinate columns",
        lambda p: p.coordinates(xy(header="spot,a,b")),
        "has no coordinates: expected columns",
    ),
    cli("other spots", lambda p: p.coordinates("spot,x,y\nA,1,2\nB,2,3\n"), "0 of 7 columns match"),
    cli(
        "barcodes without suffix",
        lambda p: p.coordinates(xy().replace("-1,", ",")),
        "12 would match without the suffix",
    ),
    cli("spot in two rows", lambda p: p.coordinates(xy() + f"{BARCODES[0]},1,1\n"), "more than one row"),
    cli("word for x", lambda p: p.coordinates(xy(f"{BARCODES[0]},left,1")), "column 'x' contains 'left'"),
    cli(
        "decimal comma",
        lambda p: p.coordinates(xy().replace(",", ";").replace(".", ",")),
        "column 'x' contains '0,5', .* '0,5' has a decimal comma; write '0.5'",
    ),
    cli(
        "no x of a spot", lambda p: p.coordinates(xy(f"{BARCODES[0]},,1")), f"1 of 12 spots .*'{BARCODES[0]}'"
    ),
    cli(
        "infinite y",
        lambda p: p.coordinates(xy().replace(".5,3\n", ".5,inf\n")),
        f"infinite.*'{BARCODES[3]}'",
    ),
    cli(
        "no spot in tissue",
        lambda p: p.coordinates(xy(header="spot,x,y,in_tissue").replace(",1\n", ",0\n")),
        "12 are marked 0 in 'in_tissue'. No spot remains",
    ),
    cli(
        "columns repeat",
        lambda p: p.coordinates(xy(header="spot,x,x")),
        "names of columns, each once; 'x' repeat",
    ),
    cli(
        "no header",
        lambda p: p.coordinates("A,1,2,3\nB,1,2,3\n"),
        "has no header, and which of its 4 columns",
    ),
    cli("table of one column", lambda p: p.coordinates("spot\nA\nB\n"), "is not a text table"),
    cli(
        "cut row",
        lambda p: p.counts(lambda t: t[:-3]),
        r"line 13: row .* has \d fields, the first line has 8",
    ),
    cli(
        "word among counts",
        lambda p: p.counts(lambda t: t.replace(",1", ",many", 1)),
        "counts must be numbers; row",
    ),
    cli(
        "decimal commas",
        lambda p: p.counts(lambda t: t.replace(",", ";").replace(";1", ";1,5", 1)),
        "counts must be .*write '1.5'",
    ),
    cli(
        "count of 1e9",
        lambda p: p.counts(lambda t: t.replace(",1", ",1000000000", 1)),
        "counts below 16,777,216",
    ),
    cli(
        "counts of other spots",
        lambda p: p.counts(lambda t: t.replace("GATTACA", "TTTTTTT")),
        "Neither the rows",
    ),
    cli(
        "only numbers",
        lambda p: p.counts(lambda t: "1,2,3\n4,5,6\n7,8,9\n"),
        "line 1: expected names, found numbers",
    ),
    cli(
        "annotation of nothing",
        lambda p: p.run("--annotation", "layer"),
        "'layer' is neither a column of obs",
    ),
    cli(
        "annotation is empty", lambda p: p.run("--annotation", write_text(p / "t.csv", "")), "t.csv is empty"
    ),
    cli(
        "two annotations",
        lambda p: p.run("--annotation", write_text(p / "t.csv", _labels(p, 2))),
        "expected one column of labels, found 'l0', 'l1'",
    ),
    cli(
        "annotation of others",
        lambda p: p.run("--annotation", write_text(p / "t.csv", "spot,l\na,b\nc,b\n")),
        "0 of 60 spots match one of its 2 rows",
    ),
    cli(
        "coordinates of others",
        lambda p: p.run("--coordinates", write_text(p / "xy.csv", "spot,x,y\nAAA-1,1,1\nCCC-1,2,2\n")),
        "0 of 60 spots match one of its 2 rows. Expected the same names in both; .* 'AAA-1', 'CCC-1' in column",
    ),
    api(
        "spots of a table repeat",
        lambda p: io.join_columns(p.read(), write_text(p / "t.csv", _labels(p, 1) + _labels(p, 1)[8:])),
        "60 spots have more than one row",
    ),
]


def _labels(place: Place, n: int) -> str:
    names = place.read().obs_names
    rows = ["spot," + ",".join(f"l{i}" for i in range(n)), *(one + ",a" * n for one in names)]
    return "".join(f"{row}\n" for row in rows)


PLATFORM_FILES = [
    cli(
        "visium without counts",
        lambda p: p.run(given=_without(write_visium(p / "v"), "*.h5")),
        "but no counts",
    ),
    cli(
        "visium without positions",
        lambda p: p.run(given=_without(write_visium(p / "v"), "tissue_positions.csv")),
        "has no positions of the spots: expected spatial/tissue_positions.csv",
    ),
    cli(
        "xenium without cells",
        lambda p: p.run("--platform", "xenium", given=_without(write_xenium(p / "x"), "cells.csv.gz")),
        "has no cells: expected cells.csv.gz",
    ),
    cli(
        "merscope without metadata",
        lambda p: p.run(
            "--platform", "merscope", given=_without(write_merscope(p / "m"), "cell_metadata.csv")
        ),
        "is no folder of MERSCOPE .*expected `cell_by_gene.csv` and",
    ),
    cli(
        "cosmx without counts",
        lambda p: p.run("--platform", "cosmx", given=_without(write_cosmx(p / "c"), "*exprMat_file.csv")),
        "is no folder of CosMx",
    ),
    cli(
        "beads without locations",
        lambda p: p.run("--platform", "slideseq", given=_without(write_slideseq(p / "s"), "*locations.csv")),
        "is no folder of Slide-seq",
    ),
    api(
        "centroids of fewer cells",
        lambda p: amilst.read(_shorter(write_seqfish_plus(p / "s"), "*cellcentroids.csv")),
        "has 12 cells, but .* has 11",
    ),
    api(
        "mtx without barcodes",
        lambda p: amilst.read_10x_mtx(_without(write_mtx(p / "m"), "barcodes*")),
        "there is no",
    ),
    api(
        "mtx beyond its shape",
        lambda p: amilst.read_10x_mtx(_mtx(p, lambda t: re.sub(r"\n7 12 ", "\n7 11 ", t))),
        "expected entries within 7 rows and 11 columns; found others",
    ),
    api(
        "mtx is cut",
        lambda p: amilst.read_10x_mtx(_mtx(p, lambda t: t[: t[:-1].rindex("\n") + 1])),
        "entries; found",
    ),
    api(
        "mtx of an array",
        lambda p: amilst.read_10x_mtx(_mtx(p, lambda t: t.replace("coordinate", "array"))),
        "general",
    ),
    api(
        "two genomes",
        lambda p: amilst.read_10x_h5(_genomes(p)),
        "contains the genome.* 'hg19', 'mm10'; choose one",
    ),
    api(
        "no such genome", lambda p: amilst.read_10x_h5(_genomes(p), genome="rn6"), "there is no genome='rn6'"
    ),
    api(
        "antibodies only",
        lambda p: amilst.read_10x_h5(_antibodies(p)),
        "no features of the type 'Gene Expression'",
    ),
    api(
        "no 10x file",
        lambda p: amilst.read_10x_h5(p.section),
        "is not a 10x matrix: expected a group 'matrix'",
    ),
    api(
        "loom without coordinates",
        lambda p: amilst.read(write_loom(p / "a.loom", x="u")),
        "expected X and Y in col_",
    ),
    api(
        "loom without genes",
        lambda p: amilst.read_loom(write_loom(p / "a.loom"), var_names="id"),
        "no names of genes",
    ),
    api(
        "negative place",
        lambda p: amilst.read(_gem(p, lambda t: re.sub(r"\t1\d\d\d\t", "\t-5\t", t, count=1))),
        "line 6",
    ),
    api(
        "fractional bins",
        lambda p: amilst.read_stereoseq(_gem(p), bin_size=0),
        "bin_size must be a positive integer",
    ),
    api(
        "gem without counts",
        lambda p: amilst.read_stereoseq(_gem(p, lambda t: t.replace("MID", "U"))),
        "MIDCount",
    ),
    api(
        "gef of the future",
        lambda p: amilst.read(write_gef(p / "a.gef", version=77)),
        "gef file of version 77; expected",
    ),
    api(
        "bins of other bins",
        lambda p: amilst.read(write_gef(p / "a.gef", bins=(20,)), bin_size=50),
        "bins of 20 DNBs",
    ),
    api(
        "st without places",
        lambda p: amilst.read_st(write_counts_table(p / "c.tsv")),
        "spots named by their places",
    ),
    api(
        "long table of two",
        lambda p: amilst.read_long_table(write_text(p / "l", "a\tb\n1\t2\n")),
        "long format",
    ),
    api(
        "spot at two places",
        lambda p: amilst.read(write_text(p / "l.csv", "spot,gene,count,x,y\na,g,1,0,0\na,h,1,0,1\n")),
        "spot 'a' has the positions .* and",
    ),
    api(
        "negative count",
        lambda p: amilst.read(write_text(p / "l.csv", "spot,gene,count,x,y\na,g,1,0,0\nb,g,-4,0,1\n")),
        "line 3: expected counts from 0 to 16,777,215; found .*count -4",
    ),
]


def _shorter(folder: Path, name: str) -> Path:
    path = next(folder.glob(name))
    _edited(path, lambda text: text[: text[:-1].rindex("\n") + 1])
    return folder


def _mtx(place: Place, change: Callable[[str], str]) -> Path:
    folder = write_mtx(place / "m", version=2)
    _edited(folder / "matrix.mtx", change)
    return folder


def _genomes(place: Place) -> Path:
    return write_legacy_h5(place / "a.h5", {one: np.ones((12, 7), np.float32) for one in ("hg19", "mm10")})


def _antibodies(place: Place) -> Path:
    return write_10x_h5(place / "a.h5", feature_type=["Antibody Capture"] * 7)


def _gem(place: Place, change: Callable[[str], str] = str) -> Path:
    return _edited(write_gem(place / "a.gem"), change)


SECTIONS = [
    cli(
        "no coordinates",
        lambda p: p.run(given=p.changed(lambda a: a.obsm.clear())),
        "no coordinates: expected obsm",
    ),
    cli(
        "coordinates of NaN",
        lambda p: p.run(given=p.changed(lambda a: a.obsm["spatial"].__setitem__((7, 0), np.nan))),
        r"1 of 60 spots have NaN or infinite coordinates \(first rows: 7\)",
    ),
    cli(
        "one place",
        lambda p: p.run(given=p.changed(lambda a: a.obsm["spatial"].fill(1.0))),
        "all 60 spots lie at one place",
    ),
    cli(
        "one coordinate",
        lambda p: p.run(given=p.changed(lambda a: a.obsm.update(spatial=a.obsm["spatial"][:, :1]))),
        r'obsm\["spatial"\] must have 2 or 3 columns; found shape \(60, 1\)',
    ),
    cli(
        "negative counts",
        lambda p: p.run(given=p.changed(lambda a: _fill(a, -1))),
        "counts must not be negative",
    ),
    cli(
        "counts of NaN",
        lambda p: p.run(given=p.changed(lambda a: _fill(a, np.nan))),
        "counts must be finite; found 1",
    ),
    cli(
        "counts of zeros",
        lambda p: p.run(given=p.changed(lambda a: a.X.data.fill(0))),
        "all counts are zero. Check that X",
    ),
    cli("no counts", lambda p: p.run(given=p.changed(_without_counts)), "has no expression matrix"),
    cli("no sections", lambda p: p.run("--sample-key", "slide"), "no column 'slide'"),
    cli(
        "spot without section",
        lambda p: p.run("--sample-key", "s", given=p.changed(sample(s=["a"] * 59 + [None]))),
        r"obs\['s'\] has no section for 1 spots",
    ),
    cli("section given twice", lambda p: ["run", p.section, p.section, "-o", p.out], "is given twice"),
    cli(
        "coordinates of two",
        lambda p: ["run", *_two(p), "-o", p.out, "--coordinates", p.section],
        "--coordinates applies to a single INPUT",
    ),
    cli(
        "column of the sections exists",
        lambda p: ["run", *_two(p), "-o", p.out, "--sample-key", "ground_truth"],
        r"obs\['ground_truth'\] exists already",
    ),
    cli(
        "other genes",
        lambda p: ["run", p.section, p.changed(_rename_genes), "-o", p.out],
        r"Only 0 gene\(s\) are in all 2 sections; expected at least 50",
    ),
    cli(
        "annotation that no section has",
        lambda p: ["run", *_two_large(p), "-o", p.out, "-k", 3, "--annotation", "layer"],
        "'layer' is neither a column of obs .*'section'",
    ),
    api("no paths", lambda p: amilst.read_sections([]), "Expected the path of at least one section"),
    api("one path", lambda p: amilst.read_sections(str(p.section)), "Expected a list of paths; found"),
    api(
        "names of fewer",
        lambda p: amilst.read_sections(_two(p), names=["a"]),
        "names must be 2 different non-empty strings",
    ),
    api(
        "key with a slash",
        lambda p: amilst.read_sections(_two(p), sample_key="a/b"),
        "without '/'; found 'a/b'",
    ),
    api("no adata", lambda p: identify(str(p.section)), "expected an AnnData, found str. Read a file first"),
    api("K is a flag", lambda p: identify(p.read(), True), "must be an integer >= 2 or None; found True"),
    api("K is a fraction", lambda p: identify(p.read(), 2.5), "found 2.5"),
    api(
        "setting of another name",
        lambda p: identify(p.read(), neighbors=6),
        "unknown setting 'neighbors'; the",
    ),
    api(
        "preset of another name",
        lambda p: identify(p.read(), preset="fast"),
        "unknown preset 'fast'; expected one of",
    ),
    api("text for a number", lambda p: identify(p.read(), epochs="many"), "epochs.* found 'many'"),
    api("seed of None", lambda p: identify(p.read(), seed=None), r"seed \(--seed\) must be .*found None"),
    api(
        "column of the user",
        lambda p: identify(_taken(p)),
        r"obs\['amilst_domain'\] exists already and is not",
    ),
    api(
        "no representation",
        lambda p: identify(p.read(), use_rep="X_pca"),
        "obsm has no 'X_pca'; it has 'spatial'",
    ),
    api(
        "representation of NaN",
        lambda p: identify(_rep(p, np.full((N, 2), np.nan)), use_rep="r"),
        "NaN or infinite val",
    ),
    api(
        "representation of words",
        lambda p: identify(_rep(p, _words()), use_rep="r"),
        "must be a dense numeric matrix",
    ),
    api(
        "view on disk",
        lambda p: identify(ad.read_h5ad(p.section, backed="r")[:20]),
        "is a view of an AnnData on disk",
    ),
]


def _two_large(place: Place) -> list[Path]:
    """Sections with enough genes in common."""
    paths = [place / "c.h5ad", place / "d.h5ad"]
    for path in paths:
        amilst.simulate_section(60, 60, 3, seed=1).write_h5ad(path)
    return paths


def _fill(adata: ad.AnnData, value: float) -> None:
    adata.X.data[0] = value


def _rename_genes(adata: ad.AnnData) -> None:
    adata.var_names = [f"x{i}" for i in range(adata.n_vars)]


def _taken(place: Place) -> ad.AnnData:
    adata = place.read()
    adata.obs["amilst_domain"] = "mine"
    return adata


def _rep(place: Place, values: Any) -> ad.AnnData:
    adata = place.read()
    adata.obsm["r"] = values
    return adata


def _words() -> np.ndarray:
    return np.full((N, 2), "a", dtype=object)


def model(**options: Any) -> amilst.AMILST:
    return amilst.AMILST(3, **options)


ARRAYS = [
    api(
        "sparse features",
        lambda p: model().fit(sparse.eye(N, format="csr"), coordinates=POINTS),
        "expected dense",
    ),
    api(
        "features of NaN",
        lambda p: model().fit(np.full((N, 2), np.nan), coordinates=POINTS),
        "features must be finite",
    ),
    api(
        "one feature axis",
        lambda p: model().fit(np.zeros(N), coordinates=POINTS),
        r"shape \(spots, features\); found",
    ),
    api(
        "words as features",
        lambda p: model().fit(_words(), coordinates=POINTS),
        "features must be numbers; found",
    ),
    api(
        "fewer coordinates",
        lambda p: model().fit(FEATURES, coordinates=POINTS[:9]),
        "one row per spot; found 60 rows",
    ),
    api(
        "words as coordinates",
        lambda p: model().fit(FEATURES, coordinates=_words()),
        "a numeric matrix with one row",
    ),
    api(
        "coordinates of one axis",
        lambda p: model().fit(FEATURES, coordinates=POINTS[:, :1]),
        "2 or 3 columns; found",
    ),
    api(
        "negative depth",
        lambda p: model().fit(FEATURES, coordinates=POINTS, depth=-np.ones(N)),
        "depth must hold .* 60 other values",
    ),
    api(
        "sections of fewer",
        lambda p: model().fit(FEATURES, coordinates=POINTS, sample=["a"]),
        "one section for each",
    ),
    api(
        "not fitted",
        lambda p: model().predict(FEATURES, coordinates=POINTS),
        "is not fitted yet. Call 'fit' first, or AMILST.load",
    ),
    api(
        "device of another name",
        lambda p: model(device="tpu").fit(FEATURES, coordinates=POINTS),
        "found 'tpu'",
    ),
    api("more clusters than rows", lambda p: amilst.KMeans(70).fit(FEATURES), "Set n_clusters to at most 60"),
    api(
        "mixture of another covariance",
        lambda p: amilst.GaussianMixture(2, covariance_type="x").fit(FEATURES),
        "'x'",
    ),
    api("no component", lambda p: amilst.PCA(0).fit(FEATURES), "n_components must be .*found 0"),
    api(
        "graph without points", lambda p: amilst.SpatialGraph.from_coordinates(np.zeros((0, 2))), r"\(0, 2\)"
    ),
    api(
        "graph of all",
        lambda p: amilst.SpatialGraph.from_coordinates(POINTS, n_neighbors=60),
        "60 spots are too few for 60 neighbors each",
    ),
    api(
        "labels of two lengths",
        lambda p: metrics.adjusted_rand_index([1, 2], [1, 2, 3]),
        "must describe the same spots; found 2 and 3",
    ),
    api(
        "labels of nothing",
        lambda p: metrics.agreement([None, None], [1, 2]),
        "at least 2 spots with both labels; found 0 of 2",
    ),
]

MODELS = [
    flag(
        "missing model",
        lambda p: ["apply", p / "m.h5", p.section, "-o", p.out],
        "there is no file .*m.h5; expected a",
    ),
    flag(
        "h5ad as model",
        lambda p: ["apply", p.section, p.section, "-o", p.out],
        "HDF5 file of another kind, such as",
    ),
    flag(
        "folder as model",
        lambda p: ["apply", p.shared, p.section, "-o", p.out],
        "is a folder; .*Did you mean .*model",
    ),
    flag(
        "pickle as model",
        lambda p: ["apply", _bytes(p / "m", b"\x80\x04."), p.section, "-o", p.out],
        "never loaded",
    ),
    flag(
        "zip as model",
        lambda p: ["apply", _bytes(p / "m", b"PK\x03\x04"), p.section, "-o", p.out],
        "is a zip file;",
    ),
    flag(
        "empty model",
        lambda p: ["apply", _bytes(p / "m", b""), p.section, "-o", p.out],
        r"m is empty \(0 bytes\)",
    ),
    flag(
        "cut model",
        lambda p: ["apply", _cut_copy(p, "m.h5", p.model), p.section, "-o", p.out],
        "incomplete, damaged",
    ),
    flag(
        "model of the future",
        lambda p: ["apply", _version(p), p.section, "-o", p.out],
        "version 99; .*Install a newer",
    ),
    flag(
        "model without its mixture",
        lambda p: ["apply", _model(p, lambda arrays, _: arrays.pop("mixture")), p.section, "-o", p.out],
        "expected the parts .*; found",
    ),
    flag(
        "model of NaN",
        lambda p: [
            "apply",
            _model(p, lambda a, _: _first(a["network"]).fill(np.nan)),
            p.section,
            "-o",
            p.out,
        ],
        "is not finite",
    ),
    flag(
        "model with another preset",
        lambda p: [
            "apply",
            _model(p, lambda _, settings: settings.update(preset="x")),
            p.section,
            "-o",
            p.out,
        ],
        "preset is unknown",
    ),
    cli(
        "model of other genes",
        lambda p: ["apply", p.model, p.changed(_rename_genes), "-o", p.out],
        "15 of the 15 genes of the model are missing.* use the same kind of names",
    ),
    api(
        "model applied to nothing",
        lambda p: amilst.apply_model(None, p.model),
        "expected an AnnData, found NoneType. Read a file first: amilst_lite.read",
    ),
    api("model is a number", lambda p: amilst.AMILST.load(7), "expected the path of a file; found 7"),
    api(
        "model without a folder",
        lambda p: amilst.AMILST.load(p.model).save(p / "no" / "m.h5"),
        "is not a folder. Create",
    ),
]


def _first(arrays: dict[str, Any]) -> np.ndarray:
    return next(one for one in arrays.values() if one.ndim == 2)


RESULTS = [
    cli("score without domains", lambda p: ["score", p.section], "obs has no column 'amilst_domain'"),
    cli("score of another column", lambda p: ["score", p.result, "--domain", "d"], "obs has no column 'd'"),
    cli(
        "score against nothing",
        lambda p: ["score", p.result, "--annotation", "x"],
        "--annotation 'x' is neither",
    ),
    cli("score of other sections", lambda p: ["score", p.result, "--sample-key", "s"], "no column 's'"),
    cli(
        "analysis without domains",
        lambda p: ["analyze", p.section, "shapes", "-o", p.out],
        "Run identify_domains",
    ),
    cli(
        "unknown analysis",
        lambda p: ["analyze", p.result, "magic", "-o", p.out],
        "there is no analysis 'magic'; choose",
    ),
    cli(
        "comparison of nothing",
        lambda p: ["analyze", p.result, "comparison", "-o", p.out],
        "needs condition_key",
    ),
    cli(
        "comparison of one condition",
        lambda p: ["analyze", p.result, "comparison", "--condition-key", "one", "-o", p.out],
        "must have two conditions; found 1",
    ),
    cli(
        "held-out without a run",
        lambda p: ["analyze", p.section, "markers", "--held-out", "--domain", "ground_truth", "-o", p.out],
        "could be repeated",
    ),
    cli("figures without a run", lambda p: ["plot", p.section, "-o", p.out], "no results under key_added"),
    cli(
        "figure with another annotation",
        lambda p: ["plot", p.result, "-o", p.out, "--annotation", "y"],
        "'y' is neither",
    ),
    api(
        "domains of a spot missing",
        lambda p: analysis.domain_shapes(_unlabeled(p)),
        "has no value for 1 of 60 spots",
    ),
    api(
        "one domain to compare",
        lambda p: analysis.marker_genes(p.read_result(), domain="one"),
        "at least 2 domains",
    ),
    api(
        "option of no analysis",
        lambda p: analysis.run(p.read_result(), ["shapes"], speed=2),
        "no option 'speed' of shapes; e",
    ),
    api(
        "no graph",
        lambda p: analysis.neighborhood_enrichment(p.read(), domain="ground_truth"),
        "obsp has no neighbor",
    ),
    api(
        "space of another name",
        lambda p: analysis.domain_connectivity(p.read_result(), space="x"),
        "space must be one",
    ),
    api(
        "no such layer",
        lambda p: analysis.tissue_depth(p.read_result(), layers=["1", "9"]),
        "there is no domain '9'",
    ),
    api("denoised without a run", lambda p: amilst.denoise(p.read()), "adata has no results under"),
    api(
        "denoised gene",
        lambda p: amilst.denoise(p.read_result(), ["none"]),
        "var_names has no 'none'; it has",
    ),
    api(
        "figure of a column",
        lambda p: plot.domains(p.read_result(), key="d"),
        r"obs\['d'\] is missing; found",
    ),
    api(
        "figure without coordinates",
        lambda p: plot.domains(_bare(p)),
        r"obsm\['spatial'\] with coordinates is missing",
    ),
    api(
        "figure with an image",
        lambda p: plot.domains(p.read_result(), image="yes"),
        "image must be 'auto', True or",
    ),
    api(
        "markers of another kind",
        lambda p: plot.marker_genes(p.read_result(), kind="x"),
        "kind must be 'dots' or",
    ),
    api(
        "markers of no gene",
        lambda p: plot.marker_genes(p.read_result(), genes=["none"]),
        "var_names lacks none; found gene_01, ",
    ),
    api("markers that are missing", lambda p: plot.marker_genes(_unmarked(p)), "uns has no table"),
    api(
        "order of another kind",
        lambda p: plot.order_domains(p.read_result(), by="x"),
        "by must be 'position' or",
    ),
    api("losses of nothing", lambda p: plot.losses({}), "at least one finite loss; found none"),
    api(
        "embedding of nothing",
        lambda p: plot.umap(p.read()),
        "obsm has no 'X_amilst.*'; it has 'spatial'. Run identify",
    ),
    api(
        "labels of another table",
        lambda p: amilst.write_labels(_folder(p / "s"), p.read(), ["a"]),
        "SpatialData store",
    ),
]


def _unlabeled(place: Place) -> ad.AnnData:
    adata = place.read_result()
    adata.obs["amilst_domain"] = adata.obs["amilst_domain"].astype(object).where(np.arange(N) > 0)
    return adata


def _bare(place: Place) -> ad.AnnData:
    adata = place.read_result()
    del adata.obsm["spatial"]
    return adata


def _unmarked(place: Place) -> ad.AnnData:
    adata = place.read_result()
    adata.uns.pop("amilst_markers", None)
    return adata


ROWS = [*FLAGS, *OUTPUTS, *FILES, *TABLES, *PLATFORM_FILES, *SECTIONS, *ARRAYS, *MODELS, *RESULTS]


@dataclass
class Outcome:
    """What a row has led to."""

    message: str = ""
    status: int | None = None
    lines: tuple[str, ...] = ()
    traceback: str = ""
    left: tuple[str, ...] = ()
    was_read: bool = False


def outcome_of(row: Row, folder: Path, shared: Path) -> Outcome:
    folder.mkdir()
    place = Place(folder, shared)
    found = Outcome()
    if row.name.startswith("api"):
        try:
            row.make(place)
        except amilst.AmilstError as error:
            found.message = str(error)
        except Exception as error:
            found.traceback = f"{type(error).__name__}: {error}"
        return found
    arguments = [str(one) for one in row.make(place)]
    before = set(folder.rglob("*"))
    shown = StringIO()
    with (
        redirect_stderr(shown),
        redirect_stdout(StringIO()),
        mock.patch("amilst_lite.io.read", wraps=io.read) as read,
    ):
        try:
            found.status = main([arguments[0], *arguments[1:], "-q"])
        except SystemExit as stop:  # argparse
            found.status = int(stop.code or 0)
        except Exception as error:
            found.traceback = f"{type(error).__name__}: {error}"
    found.left = tuple(str(one) for one in set(folder.rglob("*")) - before)
    found.was_read = read.called
    if place.held is not None:
        place.held.__exit__(None, None, None)
    lines = shown.getvalue().strip().splitlines()
    found.lines = tuple(one for one in lines if not one.startswith(("usage:", " ")))  # those of argparse
    found.message = lines[-1] if lines else ""
    return found


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    shared = tmp_path_factory.mktemp("shared")
    for name, seed in (("a", 1), ("b", 2)):
        amilst.simulate_section(N, 20, 3, seed=seed).write_h5ad(shared / f"{name}.h5ad")
    result = ad.read_h5ad(shared / "a.h5ad")
    fitted = amilst.identify_domains(
        result, 3, epochs=1, n_init=2, n_networks=1, shrinkage=0.2, network_share=0.0
    )
    result.obs["one"] = pd.Categorical(["same"] * N)
    result.write_h5ad(shared / "result.h5ad")
    fitted.save(shared / "model.h5")
    found = {}
    for number, row in enumerate(ROWS):
        folder = tmp_path_factory.mktemp("rows") / str(number)
        found[row.name] = outcome_of(row, folder, shared)
        found[row.name].message = found[row.name].message.replace(str(folder), "").replace(str(shared), "")
    return found


def test_there_are_at_least_120_and_no_name_repeats():
    assert len(ROWS) >= 120 and len({row.name for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_refused(outcomes, row):
    found = outcomes[row.name]
    assert not found.traceback
    assert re.search(row.message, found.message), found.message
    if row.name.startswith("cli"):
        assert found.status == 2
        assert len(found.lines) == 1, found.lines
        assert re.match(r"amilst( \w+)?: error: ", found.message)
        assert not found.left and not (row.early and found.was_read)


def test_messages_are_distinct(outcomes):
    messages: dict[str, list[str]] = {}
    for name, found in outcomes.items():
        messages.setdefault(found.message, []).append(name)
    assert [names for names in messages.values() if len(names) > 1] == []
