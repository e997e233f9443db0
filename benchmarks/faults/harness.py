"""Runs of `amilst demo` that start with everything imported, in processes of their own, and what they leave.

A run takes seconds, most of them for imports and training. Here one process does both once; each run is a fork of it,
which writes the same results over again through the command line.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import hashlib
import os
import shutil
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

    adata = pipeline.simulate_section(n_spots, 100, 3, seed=0)
    identify = pipeline.identify_domains
    quick = training or {"epochs": 4, "n_networks": 1, "n_init": 4, "shrinkage": 0.2}
    finished = adata.copy()
    model = identify(finished, 3, **quick)
    pipeline.simulate_section = lambda *_, **__: (adata if training else finished).copy()  # type: ignore[assignment]
    pipeline.identify_domains = (  # type: ignore[assignment]
        lambda section, *_, **__: identify(section, 3, **quick) if training else model
    )


def start(out: Path, log: Path, arm: Callable[[], None] = lambda: None) -> int:
    """Start `amilst demo -o OUT --force` in a fork; its process number. Its stderr goes to ``log``."""
    process = os.fork()
    if process:
        return process
    status = 70
    try:
        with log.open("w") as stream:
            os.dup2(stream.fileno(), 2)
        sys.stderr = os.fdopen(2, "w")
        sys.argv = ["amilst", "demo", "-o", str(out), "--force"]
        arm()
        from amilst_lite.cli import main

        status = main()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        finish(status)
    raise AssertionError


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

    def add(self, what: str, **facts: bool) -> None:
        """One run, described for messages; the facts are those that should hold."""
        self.counts["runs"] += 1
        for name, holds in facts.items():
            self.counts[name] += bool(holds)
        wrong = [name for name, holds in facts.items() if not holds]
        if wrong:
            self.failures.append(f"{what}: not {', '.join(wrong)}")

    def show(self) -> None:
        """Print the counts and the first failures."""
        print(f"{self.name}: " + ", ".join(f"{n} {name}" for name, n in self.counts.items()), flush=True)
        for failure in self.failures[:10]:
            print(f"  {failure}", flush=True)


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
