"""Readers and loaders on files changed at random: right results and errors of the package, and nothing else.

Seeds are the small files of every platform that the tests write, a model, the checkpoints of a run, and tables of
coordinates and annotations. Each input is a seed with some of its files changed (mutations.py). It is read in a fork
of a process that has everything imported. A failure is any other exception than `AmilstError`, an interpreter that
ends, 5 s of processor time, 500 MB of memory, code of a pickle that is executed, or an accepted input with counts or
coordinates that are not what they should be. The same numbers give the same inputs. Linux.

    python benchmarks/faults/fuzz.py [READER ...] [--inputs N] [--seconds S] [--keep FOLDER] [--json FILE]
    python benchmarks/faults/fuzz.py READER --show I      read input I here, with its traceback
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import random
import re
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from mmap import mmap
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))  # the writers of the files

import anndata
import harness
import mutations
import numpy as np
import pandas as pd
import pyarrow.parquet  # noqa: F401
import scipy.sparse
import zarr  # noqa: F401

import amilst_lite as amilst
from amilst_lite import checkpoint, io, slots
from amilst_lite.errors import AmilstError
from amilst_lite.preprocess.counts import CountRows
from amilst_lite.spatial.neighbors import check_coordinates

PACKAGE = str(Path(amilst.__file__).parent) + os.sep
MOST_SECONDS = 5.0
MOST_MEMORY = 500 * 2**20
INPUTS_PER_PROCESS = 400
_OWN_ERROR = 70  # exit status
_TRACED = 25  # of so many inputs, the lines of one are recorded


@dataclass(frozen=True)
class Reader:
    """What reads an input, the files that are changed for it, and what its result should be."""

    name: str
    seeds: list[Path]
    read: Callable[[Path, random.Random], Any]
    verify: Callable[[Any], None]
    same: Callable[[Any, Any], bool] | None = None


@dataclass
class Tally:
    """What the inputs of one reader have led to."""

    counts: Counter[str] = field(default_factory=Counter)
    messages: set[str] = field(default_factory=set)
    causes: Counter[str] = field(default_factory=Counter)
    lines: set[str] = field(default_factory=set)
    own_lines: set[str] = field(default_factory=set)
    failures: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0


# --- seeds ----------------------------------------------------------------------------------


def write_seeds(root: Path) -> None:
    """Write all seeds; in a process of its own, as zarr and torch start threads."""
    import test_io_platform as vendors
    import test_io_spatialdata as stores
    from input_files import BARCODES, PIXELS, write_coordinates, write_legacy_h5, write_text, write_visium

    for name, write in vendors.WRITERS.items():
        (root / name / "0").mkdir(parents=True)
        written = write(root / name / "0")
        path, *options = written if isinstance(written, tuple) else (written,)
        given = {
            key.lstrip("-").replace("-", "_"): value
            for key, value in zip(options[::2], options[1::2], strict=True)
        }
        describe(root / name / "0", path, given)
    more: dict[str, Callable[[Path], Any]] = {
        "visium": partial(write_visium, counts="mtx", header=False),
        "slideseq": partial(vendors.write_slideseq, version=1),
        "h5ad": lambda folder: vendors.anndata_store.write(
            vendors.anndata_store.with_raw(), folder / "a.h5ad", "h5ad"
        ),
        "anndata_zarr": lambda folder: vendors.anndata_store.write(
            vendors.anndata_store.make(), folder / "a.zarr", 2
        ),
        "stereoseq": lambda folder: vendors.write_gem(
            folder / "a.gem", columns=("geneID", "x", "y", "MIDCount", "CellID")
        ),
        "stereoseq_gef": lambda folder: __import__("test_io_stereoseq").write_cell_gef(folder / "a.gef"),
        "10x_h5": lambda folder: write_legacy_h5(folder / "a.h5", {"mm10": np.eye(12, 7, dtype=np.float32)}),
    }
    for name, write in more.items():
        (root / name / "1").mkdir()
        path = write(root / name / "1")
        options = {"coordinates": write_coordinates(root / name / "1" / "xy.csv")} if name == "10x_h5" else {}
        describe(root / name / "1", path, options)
    store = root / "spatialdata" / "1"
    store.mkdir()
    stores.write_store(store / "s.zarr", 3, cells=stores.make_table())
    square = stores.polygon(stores.square(1.0, 2.0))
    stores.write_shapes(
        store / "s.zarr", "circles", [stores.point(*xy) for xy in PIXELS[1:]] + [square], stores.INSTANCES
    )
    describe(store, store / "s.zarr", {})

    for name, table in {
        "coordinates": "spot,x,y,z,layer,in_tissue\n"
        + "".join(f"{one},{i}.5,{2 * i},{i % 3},L{i % 2},1\n" for i, one in enumerate(BARCODES)),
        "annotation": "spot\tlayer\tn\n"
        + "".join(f"{one}\tL{i % 2}\t{i}\n" for i, one in enumerate(BARCODES)),
    }.items():
        (root / name / "0").mkdir(parents=True)
        describe(root / name / "0", write_text(root / name / "0" / "a.csv", table), {})
        (root / name / "1").mkdir()
        path = root / name / "1" / "a.parquet"
        pd.read_csv(root / name / "0" / "a.csv", sep=None, engine="python").to_parquet(path)
        describe(root / name / "1", path, {})

    adata = amilst.simulate_section(80, 30, 2, seed=1)
    for name, settings in {
        "0": {},
        "1": {"adversary": True, "cluster_on": "latent", "shrinkage": 0.2},
    }.items():
        (root / "model" / name).mkdir(parents=True)
        model = amilst.identify_domains(adata.copy(), 2, epochs=1, n_init=2, n_networks=1, **settings)
        model.save(root / "model" / name / "model.h5")
        describe(root / "model" / name, root / "model" / name / "model.h5", {})
    stages = root / "checkpoint" / "0"
    stages.mkdir(parents=True)
    kept = checkpoint.Checkpoint(stages / "kept", interval=0)
    amilst.identify_domains(adata.copy(), epochs=1, n_init=2, n_networks=1, checkpoint=kept, seed=3)
    describe(stages, stages / "kept", {})


def describe(folder: Path, path: Path, options: Mapping[str, Any]) -> None:
    """Store which file of a seed is read, and how."""
    given = {
        key: value if key == "bin_size" else str(Path(value).relative_to(folder))
        for key, value in options.items()
    }
    (folder.parent / f"{folder.name}.json").write_text(json.dumps([str(path.relative_to(folder)), given]))


# --- reading --------------------------------------------------------------------------------


def read_section(name: str, folder: Path, rng: random.Random) -> anndata.AnnData:
    """`amilst.read`, in half of the cases with the platform named, as `amilst run` does."""
    path, options = json.loads((folder.parent / f"{folder.name}.json").read_text())
    options = {
        key: int(value) if key == "bin_size" else folder / value if key == "coordinates" else value
        for key, value in options.items()
    }
    if rng.random() < 0.5:
        options["platform"] = re.sub("_(plus|cells|gef)$", "", name)
    return io.read(folder / path, **options)


def verify_section(adata: anndata.AnnData) -> None:
    """What every run relies on; coordinates and counts that a run would refuse raise its error."""
    slots.check_anndata(adata)
    points = check_coordinates(slots.coordinates_of(adata))
    assert len(points) == adata.n_obs and np.isfinite(points).all()
    for names in (adata.obs_names, adata.var_names):
        assert names.is_unique and all(isinstance(one, str) for one in names)
    assert adata.uns["amilst_input"]["platform"] in {one.name for one in io.PLATFORMS}
    for rows, block in CountRows(slots.counts_of(adata)):
        block.check_format(full_check=True)
        assert block.shape == (rows.stop - rows.start, adata.n_vars) and block.dtype == np.float32
        if not np.isfinite(block.data).all() or (block.data < 0).any():
            raise amilst.InputError("counts must be finite and not negative (found before a run)")
    io.input_lines(adata, 1.0)
    io.recommended_command(adata, "a", {})


def same_section(one: anndata.AnnData, other: anndata.AnnData) -> bool:
    """Whether two inputs have the same counts and coordinates."""
    first, second = (scipy.sparse.csr_matrix(slots.counts_of(adata)) for adata in (one, other))
    return (
        list(one.obs_names) == list(other.obs_names)
        and list(one.var_names) == list(other.var_names)
        and (first != second).nnz == 0
        and np.array_equal(one.obsm["spatial"], other.obsm["spatial"])
    )


def _spots() -> anndata.AnnData:
    from input_files import BARCODES, COUNTS, GENES

    return anndata.AnnData(
        scipy.sparse.csr_matrix(COUNTS), pd.DataFrame(index=BARCODES), pd.DataFrame(index=GENES)
    )


def read_coordinates(folder: Path, _: random.Random) -> anndata.AnnData:
    adata = io.join_coordinates(_spots(), _file_of(folder))
    return TABLE.describe(adata, folder)


def read_annotation(folder: Path, _: random.Random) -> pd.Series:
    adata = _spots()
    column = io.join_annotation(adata, _file_of(folder))
    return adata.obs[column]


def _file_of(folder: Path) -> Path:
    return folder / json.loads((folder.parent / f"{folder.name}.json").read_text())[0]


def verify_annotation(column: pd.Series) -> None:
    assert len(column) == 12 and column.notna().any()
    amilst.metrics.adjusted_rand_index(column.to_numpy()[column.notna()], np.arange(column.notna().sum()))


TABLE = next(one for one in io.PLATFORMS if one.name == "table")
_NEW = np.random.default_rng(0).poisson(2, (40, 30)).astype(np.float32)


def read_model(folder: Path, rng: random.Random) -> amilst.AMILST:
    """`AMILST.load` and, of one model in ten, the labels of a new section."""
    model = amilst.AMILST.load(_file_of(folder), device="cpu")
    if rng.random() < 0.1:
        adata = anndata.AnnData(_NEW.copy(), var=pd.DataFrame(index=[f"gene_{i}" for i in range(30)]))
        adata.obsm["spatial"] = np.stack(np.divmod(np.arange(40), 8), 1).astype(float)
        amilst.apply_model(adata, model, device="cpu")
        confidence = adata.obs["amilst_confidence"].to_numpy()
        assert np.isfinite(confidence).all() and (confidence >= 0).all() and (confidence <= 1 + 1e-6).all()
    return model


class Recomputed(AmilstError):
    """The checkpoint was not used."""


Stage = tuple[str, str, tuple[Any, ...], dict[str, Any]]
"""Name, fingerprint, and the further arguments of `Checkpoint.stage`."""


def record_stages(folder: Path) -> list[Stage]:
    """Names, fingerprints and functions of the stages of the run whose checkpoint is a seed."""
    recorded: list[Stage] = []
    original = checkpoint.Checkpoint.stage

    def stage(self: Any, name: str, compute: Any, *functions: Any, **more: Any) -> Any:
        recorded.append((name, self._fingerprint, functions, more))
        return original(self, name, compute, *functions, **more)

    checkpoint.Checkpoint.stage = stage  # type: ignore[method-assign,assignment]
    adata = amilst.simulate_section(80, 30, 2, seed=1)
    kept = checkpoint.Checkpoint(_file_of(folder), interval=0)
    amilst.identify_domains(adata, epochs=1, n_init=2, n_networks=1, checkpoint=kept, seed=3)
    checkpoint.Checkpoint.stage = original  # type: ignore[method-assign]
    return recorded


def read_checkpoint(stages: list[Stage], folder: Path, _: random.Random) -> list[Any]:
    """The results of all stages; refused if one is not used."""
    opened, found, missing = checkpoint.Checkpoint(_file_of(folder), interval=1e9), [], []
    for name, fingerprint, functions, more in stages:
        opened._fingerprint = fingerprint
        try:
            found.append(opened.stage(name, _recompute, *functions, **more))
        except Recomputed:
            missing.append(name)
    if missing:
        raise Recomputed("not used: " + ", ".join(missing))
    return found


def _recompute() -> Any:
    raise Recomputed


def readers(root: Path) -> dict[str, Reader]:
    """All readers by name."""
    found = {}
    for folder in sorted(root.iterdir()):
        seeds = sorted(one for one in folder.iterdir() if one.is_dir())
        name = folder.name
        read: Any = partial(read_section, name)
        verify: Any = verify_section
        same: Any = same_section
        if name == "coordinates":
            read = read_coordinates
        elif name == "annotation":
            read, verify, same = read_annotation, verify_annotation, pd.Series.equals
        elif name == "model":
            read, verify, same = read_model, lambda model: None, None
        elif name == "checkpoint":
            read, verify, same = None, lambda found: None, None  # see `fuzz`
        found[name] = Reader(name, seeds, read, verify, same)
    return found


# --- one input ------------------------------------------------------------------------------


def change(reader: Reader, number: int, seed: int, work: Path) -> tuple[Path, bool]:
    """Write input ``number`` below ``work``; its folder, and whether it means the same as its seed."""
    rng = random.Random(f"{seed} {reader.name} {number}")
    source = rng.choice(reader.seeds)
    folder = work / source.name
    if not folder.exists():
        shutil.copytree(source, folder, symlinks=True)
        shutil.copy(source.parent / f"{source.name}.json", work)
    files = sorted(path for path in source.rglob("*") if path.is_file())
    chosen = rng.sample(files, k=min(len(files), rng.choice((1, 1, 1, 1, 2))))
    same = True
    for path in chosen:
        target = folder / path.relative_to(source)
        if rng.random() < 0.01:
            _displace(target, rng)
            same = False
            continue
        content, equal = mutations.mutate(path.read_bytes(), rng, work / "scratch.h5")
        target.write_bytes(content)
        same &= equal
    return folder, same


def _displace(target: Path, rng: random.Random) -> None:
    """Remove a file, or put something else in its place."""
    target.unlink()
    match rng.randrange(4):
        case 0:
            pass
        case 1:
            target.mkdir()
        case 2:
            os.mkfifo(target)
        case 3:
            target.symlink_to(rng.choice((os.environ[mutations.PIPE], "/etc/passwd", "nothing", target.name)))


def prepare_traps(work: Path) -> None:
    """What an input must not reach: a pipe, which is never read, and a file that a pickle would create."""
    os.environ |= {mutations.CANARY: str(work / "canary"), mutations.PIPE: str(work / "pipe")}
    os.mkfifo(work / "pipe")


def restore(reader: Reader, folder: Path) -> None:
    """Make an input equal to its seed again."""
    source = next(one for one in reader.seeds if one.name == folder.name)
    for path in list(folder.rglob("*")):
        original = source / path.relative_to(folder)
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            path.unlink()
        elif path.exists() and (not original.exists() or path.is_dir() != original.is_dir()):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for original in source.rglob("*"):
        path = folder / original.relative_to(source)
        if original.is_dir():
            path.mkdir(exist_ok=True)
        elif not path.exists() or path.read_bytes() != original.read_bytes():
            shutil.copyfile(original, path)


def observe(reader: Reader, folder: Path, rng: random.Random, expected: Any) -> dict[str, Any]:
    """Read an input; what happened."""
    canary = Path(os.environ[mutations.CANARY])
    before = _peak()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = reader.read(folder, rng)
            reader.verify(result)
        found: dict[str, Any] = {"outcome": "accepted"}
        if expected is not None and not reader.same(result, expected):  # type: ignore[misc]
            found = {"outcome": "another result", "detail": "it means the same as its seed"}
    except AmilstError as error:
        found = {"outcome": "refused", "detail": _plain(str(error), folder), "cause": _cause(error)}
    except BaseException as error:
        found = {"outcome": type(error).__name__, "detail": traceback.format_exc()}
    if _peak() - before > MOST_MEMORY:
        found = {"outcome": "memory", "detail": f"{(_peak() - before) / 2**20:.0f} MiB; {found}"}
    if canary.exists():
        canary.unlink()
        found = {"outcome": "code executed", "detail": str(found)}
    return found


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _plain(message: str, folder: Path) -> str:
    """A message without what differs between inputs."""
    text = message.replace(str(folder), "INPUT")
    text = re.sub(r"'(?:[^'\\]|\\.)*'|\"[^\"]*\"", "'...'", text)
    return re.sub(r"-?\d[\d,.]*(?:e[-+]?\d+)?", "0", text)[:300]


def _cause(error: BaseException) -> str:
    """The error inside, if the package itself raised it by mistake: not one of ours, from a line of ours."""
    cause = error.__cause__
    if cause is None or isinstance(cause, AmilstError):
        return ""
    frames = traceback.extract_tb(cause.__traceback__)
    if not frames or not frames[-1].filename.startswith(PACKAGE):
        return ""
    return f"{type(cause).__name__} at {frames[-1].filename.removeprefix(PACKAGE)}:{frames[-1].lineno}"


@contextmanager
def traced(lines: set[str]) -> Iterator[None]:
    """Collect the lines of the package that are executed."""

    def local(frame: Any, event: str, _: Any) -> Any:
        if event == "line":
            lines.add(f"{frame.f_code.co_filename.removeprefix(PACKAGE)}:{frame.f_lineno}")
        return local

    def enter(frame: Any, _: str, __: Any) -> Any:
        return local if frame.f_code.co_filename.startswith(PACKAGE) else None

    sys.settrace(enter)
    try:
        yield
    finally:
        sys.settrace(None)


# --- processes ------------------------------------------------------------------------------


def fuzz(reader: Reader, work: Path, *, n_inputs: int, seconds: float, seed: int, keep: Path | None) -> Tally:
    """Read inputs 0, 1, ... until there are enough of them or the processor time is over."""
    tally, number = Tally(), 0
    current = mmap(-1, 16)  # the number of the input in progress, and whether it is being read
    while number < n_inputs and tally.seconds < seconds:
        place = work / reader.name
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        last = min(number + INPUTS_PER_PROCESS, n_inputs)
        current[:] = struct.pack("<qq", number - 1, 0)
        receive, send = os.pipe()
        process = os.fork()
        if process == 0:
            os.close(receive)
            left = seconds - tally.seconds
            _end_with(partial(_work, reader, range(number, last), seed, place, current, send, left))
        os.close(send)
        with os.fdopen(receive) as stream:
            for line in stream:
                _add(tally, json.loads(line), keep, reader)
        _, status, usage = os.wait4(process, 0)
        tally.seconds += usage.ru_utime + usage.ru_stime
        done, was_read = struct.unpack("<qq", current[:])
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == _OWN_ERROR:
            log = (work / f"{reader.name}.log").read_text(errors="replace")
            raise SystemExit(f"{reader.name}, input {done}: an error of this program:\n{log[-3000:]}")
        if status:
            how = {signal.SIGPROF: "hang", signal.SIGALRM: "wait", signal.SIGKILL: "killed"}.get(
                os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0,
                f"interpreter ended with status {status}",
            )
            if was_read:
                _add(tally, {"number": done, "outcome": how, "detail": ""}, keep, reader)
            else:  # HDF5 does not survive all changes
                tally.counts["not made"] += 1
        number = done + 1
    return tally


def _end_with(function: Callable[[], None]) -> None:
    """Call a function and end this process, a fork."""
    try:
        function()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(_OWN_ERROR)
    os._exit(0)


def _work(
    reader: Reader,
    numbers: range,
    seed: int,
    work: Path,
    current: mmap,
    results: int,
    seconds: float,
) -> None:
    """Read inputs; in a process of its own, which the kernel ends when one takes too long."""
    prepare_traps(work)
    with open(work.parent / f"{reader.name}.log", "a") as log:
        os.dup2(log.fileno(), 2)  # messages of HDF5 and of crashes
        os.dup2(log.fileno(), 1)
    faulthandler.enable()
    if reader.name == "checkpoint":
        reader = Reader(
            reader.name, reader.seeds, partial(read_checkpoint, record_stages(reader.seeds[0])), reader.verify
        )

    def send(found: dict[str, Any]) -> None:
        os.write(results, (json.dumps(found) + "\n").encode())

    expected, lines = {}, set()
    for source in reader.seeds:
        folder = work / source.name
        shutil.copytree(source, folder)
        shutil.copy(source.parent / f"{source.name}.json", work)
        with traced(lines), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected[source.name] = reader.read(folder, random.Random(0))
            reader.verify(expected[source.name])
    if numbers[0] == 0:
        send({"own lines": sorted(lines)})
    _limit_memory()
    started, lines = time.process_time(), set()
    for number in numbers:
        current[:] = struct.pack("<qq", number, 0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy's, of numbers that do not fit
            folder, same = change(reader, number, seed, work)
        current[:] = struct.pack("<qq", number, 1)
        # the default action of both signals ends the process, also inside a library
        signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
        signal.setitimer(signal.ITIMER_REAL, 20 * MOST_SECONDS)
        like = expected[folder.name] if same and reader.same is not None else None
        with traced(lines) if number % _TRACED == 0 else warnings.catch_warnings():
            found = observe(reader, folder, random.Random(number), like)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        send({"number": number, **found})
        restore(reader, folder)
        if found["outcome"] == "memory" or time.process_time() - started > seconds:
            break  # the peak would hide later ones
    send({"lines": sorted(lines)})


def _limit_memory() -> None:
    status = Path("/proc/self/status").read_text()
    current = int(re.search(r"VmData:\s+(\d+)", status)[1]) * 1024  # type: ignore[index]
    resource.setrlimit(resource.RLIMIT_DATA, (current + 2 * MOST_MEMORY, resource.RLIM_INFINITY))


def _add(tally: Tally, found: dict[str, Any], keep: Path | None, reader: Reader) -> None:
    if "outcome" not in found:
        tally.lines.update(found.get("lines", ()))
        tally.own_lines.update(found.get("own lines", ()))
        return
    outcome = found["outcome"]
    tally.counts["inputs"] += 1
    tally.counts[outcome if outcome in ("accepted", "refused") else "failures"] += 1
    if outcome == "refused":
        tally.messages.add(found["detail"])
        if found["cause"]:
            tally.causes[found["cause"]] += 1
    elif outcome != "accepted":
        tally.failures.append(found)
        last = (found["detail"].strip().splitlines() or [""])[-1]
        print(f"  {reader.name} {found['number']}: {outcome}: {last[:200]}", flush=True)
        if keep is not None:
            # the process goes on and restores the input; it is made again from its number
            target = keep / reader.name / str(found["number"])
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir(parents=True)
            (target / "outcome.txt").write_text(f"{outcome}\n{found['detail']}\n")


# --- main -----------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("readers", nargs="*", metavar="READER", help="default: all")
    parser.add_argument("--inputs", type=int, default=20_000, help="of each reader (default: 20000)")
    parser.add_argument("--seconds", type=float, default=1e9, help="of processor time for each reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the inputs that fail")
    parser.add_argument("--json", type=Path, help="write the record to this file")
    parser.add_argument(
        "--show", type=int, metavar="I", help="read input I of one reader, with its traceback"
    )
    options = parser.parse_args()
    # in memory, where there is such a folder
    root = Path(
        tempfile.mkdtemp(prefix="amilst-fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
    )
    try:
        (root / "seeds").mkdir()
        _in_a_fork(lambda: write_seeds(root / "seeds"))
        known = readers(root / "seeds")
        unknown = set(options.readers) - set(known)
        if unknown:
            parser.error(f"unknown readers {', '.join(sorted(unknown))}; there are {', '.join(known)}")
        chosen = {name: one for name, one in known.items() if not options.readers or name in options.readers}
        if options.show is not None:
            return _show(next(iter(chosen.values())), options.show, options.seed, root)
        return _run(chosen, root / "work", options)
    finally:
        shutil.rmtree(root)


def _run(chosen: Mapping[str, Reader], work: Path, options: argparse.Namespace) -> int:
    columns = ("inputs", "accepted", "refused", "failures", "per s", "messages", "lines")
    print(f"{'reader':16}" + "".join(f"{name:>10}" for name in columns))
    record = harness.record(options.json, "fuzz", seed=options.seed)
    failed = False
    for name, reader in chosen.items():
        tally = fuzz(
            reader,
            work,
            n_inputs=options.inputs,
            seconds=options.seconds,
            seed=options.seed,
            keep=options.keep,
        )
        if options.keep is not None:
            for failure in tally.failures:
                _in_a_fork(partial(_keep, reader, failure["number"], options, root=work))
        counts, more = tally.counts, len(tally.lines - tally.own_lines)
        shown = [counts[one] for one in columns[:4]]
        shown += [
            round(counts["inputs"] / max(tally.seconds, 1e-9)),
            len(tally.messages),
            len(tally.own_lines),
        ]
        print(f"{name:16}" + "".join(f"{one:10}" for one in shown) + f" +{more}", flush=True)
        failed |= bool(tally.failures)
        record.add_row(
            {
                "name": name,
                "counts": {
                    "runs": counts["inputs"],
                    "accepted": counts["accepted"],
                    "refused": counts["refused"],
                    "different_messages": len(tally.messages),
                },
                "failures": [
                    f"{one['number']}: {one['outcome']}: {one['detail'].strip()[-300:]}"
                    for one in tally.failures
                ],
                "seconds": round(tally.seconds, 1),
                "lines_of_seeds": len(tally.own_lines),
                "other_lines": more,
                "errors_inside": dict(tally.causes),
            }
        )
    return int(failed)


def _keep(reader: Reader, number: int, options: argparse.Namespace, root: Path) -> None:
    work = root / "again"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    prepare_traps(work)
    folder, _ = change(reader, number, options.seed, work)
    target = options.keep / reader.name / str(number) / "input"
    shutil.copytree(folder, target, symlinks=True, copy_function=_copy)


def _copy(source: str, target: str) -> None:
    """Copy a file, or make a pipe where the source is one."""
    shutil.copyfile(source, target) if os.path.isfile(source) else os.mkfifo(target)


def _show(reader: Reader, number: int, seed: int, root: Path) -> int:
    work = root / "shown"
    work.mkdir()
    prepare_traps(work)
    if reader.name == "checkpoint":
        reader = Reader(
            reader.name, reader.seeds, partial(read_checkpoint, record_stages(reader.seeds[0])), reader.verify
        )
    folder, same = change(reader, number, seed, work)
    print(f"{reader.name} {number}, {'the same as' if same else 'another input than'} its seed")
    try:
        result = reader.read(folder, random.Random(number))
        print(result)
        reader.verify(result)
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def _in_a_fork(function: Callable[[], None]) -> None:
    """Call a function in a fork of this process, which stays without threads."""
    process = os.fork()
    if process == 0:
        _end_with(function)
    if os.waitpid(process, 0)[1]:
        raise SystemExit("a process has failed")


if __name__ == "__main__":
    sys.exit(main())
