"""Runs of `amilst demo` that start with everything imported, in processes of their own, and what they leave.

A run takes seconds, most of them for imports and training. Here one process does both once; each run is a fork of it,
which writes the same results over again through the command line.
"""

from __future__ import annotations

import argparse
import atexit
import ctypes
import gc
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import common  # noqa: E402
import pandas as pd  # noqa: E402

_SHIM = "AMILST_FAULTY_DISK"


def with_faulty_disk() -> ctypes.CDLL:
    """The loaded library of faulty_disk.c; starts this program again with it if necessary (Linux, gcc)."""
    library = os.environ.get(_SHIM)
    if library is None:
        library = os.path.join(tempfile.mkdtemp(prefix="amilst-faults-"), "faulty_disk.so")
        subprocess.run(
            ["gcc", "-shared", "-fPIC", "-O1", "-o", library, str(HERE / "faulty_disk.c"), "-ldl"], check=True
        )
        environment = {**os.environ, _SHIM: library, "LD_PRELOAD": library}
        done = subprocess.run([sys.executable, *sys.argv], env=environment, check=False)
        shutil.rmtree(Path(library).parent)
        sys.exit(done.returncode)
    loaded = ctypes.CDLL(library)
    loaded.fault_count.restype = ctypes.c_long
    loaded.fault_arm.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.c_int]
    return loaded


def prepare(n_spots: int, **training: Any) -> None:
    """Make `amilst demo` in this process and its forks quick: train once, or briefly each time.

    Parameters
    ----------
    n_spots
        Of the section.
    **training
        Settings with which each run trains; none: this process trains, and each run has the same results.
    """
    from amilst_lite import io, pipeline, plot, results  # noqa: F401

    draw_one_figure()
    adata = pipeline.simulate_section(n_spots, 100, 3, seed=0)
    identify = pipeline.identify_domains
    quick = training or {"epochs": 4, "n_networks": 1, "n_init": 4, "shrinkage": 0.2}
    finished = adata.copy()
    model = identify(finished, 3, **quick)
    pipeline.simulate_section = lambda *_, **__: (adata if training else finished).copy()  # type: ignore[assignment]
    pipeline.identify_domains = (  # type: ignore[assignment]
        lambda section, *_, **__: identify(section, 3, **quick) if training else model
    )


def draw_one_figure() -> None:
    """Let runs of this process and its forks draw no others: drawing takes most of the time of a small run."""
    from amilst_lite import results

    figures = results._figures
    results._figures = lambda *args: {name: draw for name, draw in figures(*args).items() if name == "losses"}


def keep_every_step() -> None:
    """Let runs of this process and its forks keep every step in their checkpoints, however short."""
    from amilst_lite.checkpoint import Checkpoint

    initialize = Checkpoint.__init__
    Checkpoint.__init__ = lambda self, *args, **options: initialize(
        self, *args, **{**options, "interval": 0.0}
    )


def import_everything() -> None:
    """By a run in this process, after which its forks import nothing; no thread may remain, which a fork would lose."""
    import amilst_lite as amilst

    adata = amilst.simulate_section(200, 50, 3, seed=0)
    model = amilst.identify_domains(adata, epochs=1, n_networks=1, n_init=1)
    with tempfile.TemporaryDirectory() as place:
        amilst.write_results(adata, place, model=model, annotation="ground_truth")
    draw_one_figure()
    threads = [one.read_text().strip() for one in Path("/proc/self/task").glob("*/comm")]
    others = [name for name in threads[1:] if not name.startswith("jemalloc")]  # which can be forked
    if others:
        raise RuntimeError(f"expected one thread before forks; found also {others}. Set OMP_NUM_THREADS=1.")


def write_input(folder: Path) -> Path:
    """Counts of a simulated section as text, in a new folder, with their coordinates beside them."""
    import amilst_lite as amilst

    folder.mkdir(parents=True, exist_ok=True)
    adata = amilst.simulate_section(300, 100, 3, seed=0)
    adata.to_df().astype(int).to_csv(folder / "counts.csv")
    places = pd.DataFrame(adata.obsm["spatial"], adata.obs_names, ["x", "y"])
    places.to_csv(folder / "places.csv", index_label="spot")
    return folder / "counts.csv"


def small_run(counts: Path, out: Path) -> list[str]:
    """The command of a run of two seconds that chooses the number of domains, and replaces what is there."""
    flags = ["--epochs", "4", "--n-networks", "1", "--n-init", "2", "--shrinkage", "0.2", "--force"]
    return ["run", str(counts), "--coordinates", str(counts.with_name("places.csv")), "-o", str(out), *flags]


_PROGRAM = """
import sys
sys.path.insert(0, {here!r})
from amilst_lite import cli
build_parser = cli.build_parser
def build_patched():  # once signals are handled: this imports
    import harness
    harness.keep_every_step()
    return build_parser()
cli.build_parser = build_patched
sys.exit(cli.main())
"""


def spawn(command: list[str], log: Path) -> int:
    """Start `amilst` as a program that keeps every step; its process number. Its stderr goes to ``log``."""
    program = [sys.executable, "-c", _PROGRAM.format(here=str(HERE)), *command]
    to_log = (os.POSIX_SPAWN_OPEN, 2, str(log), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    return os.posix_spawn(sys.executable, program, os.environ, file_actions=[to_log])


def start(out: Path, log: Path, arm: Callable[[], None] = lambda: None) -> int:
    """Start `amilst demo -o OUT --force` in a fork; its process number. Its stderr goes to ``log``."""
    return fork(["demo", "-o", str(out), "--force"], log, arm)


def fork(command: list[str], log: Path, arm: Callable[[], None] = lambda: None) -> int:
    """Start `amilst` in a fork; its process number. Its stderr goes to ``log``."""
    log.touch()  # it may be killed before it opens it
    # until the child is in its own block, a signal would unwind what it has copied of the parent, which cleans up
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    process = os.fork()
    if process:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        return process
    status = 70
    try:
        try:
            with log.open("w") as stream:
                os.dup2(stream.fileno(), 2)
            sys.stderr = os.fdopen(2, "w")
            sys.argv = ["amilst", *command]
            # until the command listens, a signal ends it at once, as it does a process that still imports
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            arm()
            from amilst_lite.cli import main

            status = main()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            finish(status)
    finally:
        os._exit(status)


def finish(status: int) -> None:
    """End with the functions that Python and the libraries, as HDF5, call at the end, in which some crash."""
    atexit._run_exitfuncs()
    gc.collect()
    sys.stderr.flush()
    ctypes.CDLL(None).exit(status)


def wait(process: int) -> int:
    """Exit status of a process; negative for the signal that has ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def fingerprint(folder: Path) -> dict[str, str]:
    """Name → hash of all files below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@dataclass
class Tally:
    """Counts what runs have done, and keeps what was not expected."""

    name: str
    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)

    def add(self, what: str, **facts: bool) -> None:
        """One run, described for messages; the facts are those that should hold."""
        self.counts["runs"] += 1
        for name, holds in facts.items():
            self.counts[name] += bool(holds)
        wrong = [name for name, holds in facts.items() if not holds]
        if wrong:
            self.failures.append(f"{what}: not {', '.join(wrong)}")
            print(f"{self.name}: {self.failures[-1]}", flush=True)

    def show(self) -> None:
        """Print the counts."""
        print(f"{self.name}: " + ", ".join(f"{n} {name}" for name, n in self.counts.items()), flush=True)
        for name, value in self.details.items():
            print(f"  {name}: {value}", flush=True)


def record(path: Path | None, benchmark: str, **fixed: Any) -> common.Record:
    """A record of tallies, see `write`."""
    return common.Record(argparse.Namespace(json=path, device="cpu"), benchmark, **fixed)


def write(record: common.Record, tallies: list[Tally]) -> None:
    """Write what the tallies have counted so far."""
    record.data["results"] = [
        {"name": tally.name, "counts": dict(tally.counts), "failures": tally.failures, **tally.details}
        for tally in tallies
    ]
    record.write()


def table(record: common.Json) -> str:
    """The tallies of a record."""
    rows = []
    for one in record["results"]:
        counts = {name: n for name, n in one["counts"].items() if name != "runs"}
        texts = [f"{n} {name.replace('_', ' ')}" for name, n in counts.items()]
        if "slowest" in one:
            texts.append(f"slowest end {one['slowest']:.2f} s")
        rows.append([one["name"], one["counts"]["runs"], len(one["failures"]), ", ".join(texts)])
    return common.markdown(["check", "runs", "not as expected", "counts"], rows)


def facts_of_refusal(
    status: int, log: Path, out: Path, before: dict[str, str], n_beside: int = 1
) -> dict[str, bool]:
    """What should hold after a run that could not write: one line, status 2, earlier results intact, nothing left."""
    shown = log.read_text().splitlines()
    errors = [line for line in shown if line.startswith("amilst: error:")]
    noise = [line for line in shown if "Traceback" in line or "HDF5" in line or "Exception ignored" in line]
    return {
        "status_2": status == 2,
        "one_line": len(errors) == 1 and not noise and shown[-1] == errors[0],
        "intact": fingerprint(out) == before,
        "nothing_left": len(list(out.parent.iterdir())) == n_beside,
    }
