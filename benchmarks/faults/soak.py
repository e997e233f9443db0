"""Commands in random order, with random faults, for as long as told: no earlier result is lost or corrupted.

`amilst` demo, run, apply, score, analyze and plot on small inputs, each in a fork of this process that writes over the
results of an earlier command. Half of the commands suffer a fault: SIGKILL, SIGTERM or SIGINT at a random moment; a
full or failing disk from a random write, fsync or rename on; a file system that becomes read-only; a second command
with the same OUT at the same time; an input with damaged bytes. Expected each time: the command ends with
status 0 and the bits that the same command has without faults, or with one line and status 2, 130 or 143 (without a
line if the signal comes before the command listens, in its first 0.1 s), and the earlier results are as they were;
afterwards OUT holds the earlier or the new results, and nothing is left beside it but what SIGKILL left, which the next
command with the same OUT removes. Linux, gcc; the read-only file system needs root.

    python benchmarks/faults/soak.py [--minutes M] [--seed S] [--json FILE]
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import harness

N_SPOTS, N_GENES, K = 150, 40, 3
QUICK = [
    "--epochs",
    "2",
    "--n-networks",
    "1",
    "--n-init",
    "2",
    "--shrinkage",
    "0.2",
    "--network-share",
    "0.3",
]
FAULTS = (
    "SIGKILL",
    "SIGTERM",
    "SIGINT",
    "write",
    "fsync",
    "rename",
    "read-only",
    "two at once",
    "damaged input",
)
SHARE_OF_FAULTS = 0.5
STARTING = 0.1
"""Seconds after the start in which SIGTERM and SIGINT may end a command without a line: it does not listen yet."""
PATIENCE = 600
"""Seconds after which a command counts as hanging; the machine may be busy."""


@dataclass(frozen=True)
class Operation:
    """A command of which each of several variants has a result of its own.

    Attributes
    ----------
    name : str
    arguments : tuple of str
        Without ``-o`` and ``--force``; ``IN`` and ``OUT`` stand for the folders of inputs and of results.
    slot : str or None
        Name of the folder of results; None: the command prints.
    needs : str or None
        Slot whose results the command reads.
    """

    name: str
    arguments: tuple[str, ...]
    slot: str | None
    needs: str | None = None


def operations() -> list[Operation]:
    found = [Operation("demo", ("demo", "--n-spots", str(N_SPOTS), "--n-genes", str(N_GENES), "--true-domains", str(K),
                                "--seed", seed, *QUICK), "demo") for seed in "01"]  # fmt: skip
    inputs = {
        "h5ad": ("a.h5ad",),
        "table": ("b.csv", "--coordinates", "IN/places.csv"),
        "two": ("a.h5ad", "c.h5ad"),
    }
    for slot, (first, *others) in inputs.items():
        files = [f"IN/{first}", *(f"IN/{one}" if one.endswith("h5ad") else one for one in others)]
        for seed in "01":
            arguments = ("run", *files, "-k", str(K), "--seed", seed, *QUICK)
            found.append(Operation("run", arguments, slot))
    for slot in ("demo", "h5ad"):
        result = f"OUT/{slot}/result.h5ad"
        found += [
            Operation("apply", ("apply", f"OUT/{slot}/model.h5", "IN/c.h5ad"), f"applied_{slot}", slot),
            Operation("score", ("score", result, "--annotation", "ground_truth"), None, slot),
            Operation("analyze", ("analyze", result, "enrichment", "shapes"), f"analyzed_{slot}", slot),
            Operation("plot", ("plot", result, "--format", "svg"), f"drawn_{slot}", slot),
        ]
    return found


def digest(folder: Path) -> str:
    """Hash of the results in a folder: tables, figures, and the arrays of HDF5 files, not times and versions."""
    import h5py
    import numpy as np

    found = hashlib.sha256()

    def add(name: str, item: Any) -> None:
        # uns holds times and memory; the model's record is JSON with versions
        if not isinstance(item, h5py.Dataset) or item.shape is None or name.startswith("uns/"):
            return
        if item.dtype.kind in "iuf":
            found.update(name.encode() + np.asarray(item[()]).tobytes())

    for path in sorted(folder.iterdir()):
        found.update(path.name.encode())
        if path.suffix in (".h5ad", ".h5"):
            with h5py.File(path) as file:
                file.visititems(add)
        elif path.suffix == ".csv":
            found.update(path.read_bytes())
        elif path.stat().st_size == 0:
            found.update(b"empty")
    return found.hexdigest()


class Soak:
    """The place, what is in it, and what should be in it."""

    def __init__(self, place: Path, seed: int, disk: Any) -> None:
        self.rng = random.Random(seed)
        self.disk = disk
        self.inputs, self.out, self.logs = place / "in", place / "out", place / "logs"
        for folder in (self.inputs, self.out, self.logs):
            folder.mkdir()
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", str(self.out)], check=False
        )
        self.is_mounted = mounted.returncode == 0
        self.operations = operations()
        self.expected: dict[tuple[Operation, str | None], str] = {}
        """Digest of the results, or what is printed, for each command and the results it reads."""
        self.held: dict[str, str] = {}
        """Digest of what each slot holds."""
        self.may_be_left: set[str] = set()
        """Slots of which SIGKILL may have left something that no command has removed yet."""
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []
        self.seconds = 1.0
        self.moment = 0.0
        """Seconds between the start of the last command and its signal."""
        self._write_inputs()

    def _write_inputs(self) -> None:
        import pandas as pd

        import amilst_lite as amilst

        for seed, name in enumerate("ac"):
            adata = amilst.simulate_section(N_SPOTS, N_GENES, K, seed=seed)
            adata.write_h5ad(self.inputs / f"{name}.h5ad")
        counts = pd.DataFrame(adata.X.toarray().astype(int), index=adata.obs_names, columns=adata.var_names)
        counts.to_csv(self.inputs / "b.csv")
        places = pd.DataFrame(adata.obsm["spatial"], index=adata.obs_names, columns=["x", "y"])
        places.to_csv(self.inputs / "places.csv")

    def close(self) -> None:
        """Unmount the folder of results."""
        if self.is_mounted:
            subprocess.run(["umount", str(self.out)], check=False)

    # --- one command ------------------------------------------------------------------------

    def command(self, operation: Operation, flags: list[str] | None = None) -> list[str]:
        """The command line."""
        words = [
            word.replace("IN/", f"{self.inputs}/", 1).replace("OUT/", f"{self.out}/", 1)
            for word in operation.arguments
        ]
        if operation.slot is not None:
            words += ["-o", str(self.out / operation.slot), "--force"]
        return words + (flags or [])

    def start(self, command: list[str], name: str, arm: Any = lambda: None) -> tuple[int, Path, Path]:
        """Start a command; its process number, and the files of its stderr and stdout."""
        log, printed = self.logs / f"{name}.err", self.logs / f"{name}.out"
        printed.touch()

        def prepare() -> None:
            os.dup2(os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
            arm()

        return harness.fork(command, log, prepare), log, printed

    def wait(self, process: int) -> int | None:
        """Exit status; None if the command hangs, which ends it."""
        limit = time.monotonic() + PATIENCE
        while time.monotonic() < limit:
            done, status = os.waitpid(process, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.005)
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        return None

    # --- expectations -----------------------------------------------------------------------

    def learn(self) -> None:
        """Results of every command without faults; those that read others' for each of these."""
        for maker in self.operations:
            if maker.needs is not None:
                continue
            made = self.expected[maker, None] = self._learned(maker)
            for operation in self.operations:
                if operation.needs == maker.slot:
                    self.expected[operation, made] = self._learned(operation)
        for slot in {one.slot for one in self.operations if one.needs is None}:
            found = {made for (one, _), made in self.expected.items() if one.slot == slot}
            if len(found) < 2:
                raise RuntimeError(f"{slot}: the seeds should give different results")

    def _learned(self, operation: Operation) -> str:
        """What a command without faults writes or prints."""
        started = time.monotonic()
        process, log, printed = self.start(self.command(operation), "learn")
        status = self.wait(process)
        if status != 0:
            raise RuntimeError(f"{self.command(operation)}: status {status}: {log.read_text()}")
        self.seconds = max(self.seconds, time.monotonic() - started)
        if operation.slot is None:
            return printed.read_text()
        self.held[operation.slot] = digest(self.out / operation.slot)
        return self.held[operation.slot]

    def beside(self) -> set[str]:
        """Names in the folder of results that are no slot."""
        return {path.name for path in self.out.iterdir()} - {one.slot for one in self.operations if one.slot}

    # --- the soak ---------------------------------------------------------------------------

    def step(self, number: int) -> None:
        """A random command, with or without a fault."""
        operation = self.rng.choice(self.operations)
        fault = self.rng.choice(FAULTS) if self.rng.random() < SHARE_OF_FAULTS else None
        if fault == "read-only" and not self.is_mounted:
            fault = None
        flags = ["--resume"] if operation.name == "run" and self.rng.random() < 0.5 else []
        self.counts["runs"] += 1
        self.counts[operation.name] += 1
        label = f"{number}: {operation.name} {operation.slot} {' '.join(flags)} with {fault}"
        if fault is not None:
            self.counts[f"fault: {fault}"] += 1
        if fault == "damaged input":
            self.damaged(operation, label)
            return
        before = self.held.get(operation.slot or "")
        source = None if operation.needs is None else self.held[operation.needs]
        new = self.expected[operation, source]
        command = self.command(operation, flags)
        if fault == "two at once":
            started = [self.start(command, f"{number}{one}") for one in "ab"]
            statuses = [self.wait(process) for process, _, _ in started]
            ends = [
                self.judge(operation, status, log, printed, before, new, label)
                for status, (_, log, printed) in zip(statuses, started, strict=True)
            ]
            if 0 not in ends:
                self.fail(label, f"neither was written: {statuses}")
        else:
            process, log, printed = self.start(command, str(number), self.armed(fault))
            status = self.disturbed(process, fault)
            end = self.judge(operation, status, log, printed, before, new, label)
            if fault is None and end != 0:
                self.fail(label, f"status {end} without a fault: {log.read_text()[-300:]}")
            if fault == "SIGKILL" and operation.slot is not None and end != 0:
                self.may_be_left.add(operation.slot)
            elif end == 0 and operation.slot is not None:
                self.may_be_left.discard(operation.slot)
        self.look(operation, label)

    def armed(self, fault: str | None) -> Any:
        """What a fork does before it runs: its disk will fail."""
        if fault not in ("write", "fsync", "rename"):
            return lambda: None
        n = self.rng.randrange({"write": 800, "fsync": 25, "rename": 3}[fault])
        number = self.rng.choice(
            (errno.ENOSPC, errno.EIO, errno.EDQUOT) if fault == "write" else (errno.EIO,)
        )
        return lambda: self.disk.fault_arm(fault.encode(), n, number, str(self.out).encode(), 1)

    def disturbed(self, process: int, fault: str | None) -> int | None:
        """Wait for a command and disturb it at a random moment."""
        if fault not in ("SIGKILL", "SIGTERM", "SIGINT", "read-only"):
            return self.wait(process)
        self.moment = self.rng.uniform(0, self.seconds)
        time.sleep(self.moment)
        if fault == "read-only":
            # busy while a file is open for writing, in which case nothing happens
            changed = subprocess.run(
                ["mount", "-o", "remount,ro", str(self.out)], check=False, capture_output=True
            )
            self.counts["became read-only"] += changed.returncode == 0
            status = self.wait(process)
            subprocess.run(["mount", "-o", "remount,rw", str(self.out)], check=True)
            return status
        os.kill(process, getattr(signal, fault))  # which has not been waited for: it is still ours
        return self.wait(process)

    def judge(
        self,
        operation: Operation,
        status: int | None,
        log: Path,
        printed: Path,
        before: str | None,
        new: str,
        label: str,
    ) -> int | None:
        """Count how a command has ended, and compare what it has left with what it should have."""
        self.counts[f"status {status}"] += 1
        text = log.read_text()
        lines = text.splitlines()
        too_early = (
            status in (-signal.SIGTERM, -signal.SIGINT)
            and self.moment < STARTING
            and not text + printed.read_text()
        )
        if status not in (0, 2, 130, 143, -signal.SIGKILL) and not too_early:
            self.fail(label, f"status {status}: {text[-400:]}")
        if "Traceback" in text or "HDF5-DIAG" in text:
            self.fail(label, f"traceback: {text[-400:]}")
        if status in (2, 130, 143):
            word = "amilst: error:" if status == 2 else "amilst: interrupted"
            if not lines or not lines[-1].startswith(word) or sum(one.startswith(word) for one in lines) != 1:
                self.fail(label, f"status {status} without its one line: {text[-400:]}")
        if status == 0 and operation.slot is None and printed.read_text() != new:
            self.fail(label, f"printed {printed.read_text()[:200]}")
        if operation.slot is None:
            return status
        folder = self.out / operation.slot
        if (
            "The results are complete" in text
        ):  # written, but not to be renamed: the message says where they are
            for path in [path for path in self.out.iterdir() if str(path) in lines[-1] and path != folder]:
                if digest(path) != new:
                    self.fail(label, f"kept results differ: {lines[-1]}")
                shutil.rmtree(path)
                self.counts["kept elsewhere"] += 1
        found = digest(folder) if folder.is_dir() else None
        allowed = {new} if status == 0 else {before} if status == 2 or too_early else {before, new}
        if label.endswith("two at once"):
            allowed = {new, before}
        if found not in allowed:
            self.fail(label, f"status {status}, results lost or others: {text[-400:]}")
        if found is not None:
            self.held[operation.slot] = found
        return status

    def look(self, operation: Operation, label: str) -> None:
        """Nothing may be left beside the results, except by SIGKILL until the next command with the same OUT."""
        left = {name for name in self.beside() if not any(slot in name for slot in self.may_be_left)}
        # checkpoints of interrupted runs are kept on purpose, for --resume
        left = {name for name in left if "checkpoint" not in name and "resume" not in name}
        if left:
            self.fail(label, f"left behind: {sorted(left)}")
            for name in left:
                path = self.out / name
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path in self.logs.iterdir():
            path.unlink()

    def damaged(self, operation: Operation, label: str) -> None:
        """The command on a copy of its input in which bytes are changed: refused in one line, or read; no traceback."""
        words = self.command(operation)
        places = [i for i, word in enumerate(words) if Path(word).is_file()]
        if not places:
            return
        place = self.rng.choice(places)
        content = bytearray(Path(words[place]).read_bytes())
        for _ in range(self.rng.randint(1, 20)):
            content[self.rng.randrange(len(content))] = self.rng.randrange(256)
        if self.rng.random() < 0.3:
            del content[self.rng.randrange(len(content)) :]
        copy = self.logs / f"damaged{Path(words[place]).suffix}"
        copy.write_bytes(content)
        words[place] = str(copy)
        if operation.slot is not None:
            words[words.index("-o") + 1] = str(self.logs / "OUT")
        process, log, _ = self.start(words, "damaged")
        status = self.wait(process)
        self.counts[f"damaged: status {status}"] += 1
        text = log.read_text()
        if status not in (0, 2) or "Traceback" in text or "HDF5-DIAG" in text:
            kept = Path(tempfile.gettempdir()) / f"soak_{label.split(':')[0]}_{copy.name}"
            shutil.copy(copy, kept)
            self.fail(label, f"status {status} on {kept}: {' '.join(words)}: {text[-400:]}")
        shutil.rmtree(self.logs)
        self.logs.mkdir()

    def fail(self, label: str, what: str) -> None:
        """Keep and show what was not expected."""
        self.failures.append(f"{label}: {what}")
        print(f"FAILURE {label}: {what}", flush=True)

    def finish(self) -> None:
        """After a last command on each slot nothing at all is left, and every result is right."""
        for operation in self.operations:
            if operation.slot is not None:
                self._learned(operation)
                source = None if operation.needs is None else self.held[operation.needs]
                if self.held[operation.slot] != self.expected[operation, source]:
                    self.fail("at the end", f"{operation.name} {operation.slot} has other bits")
        if self.beside():
            self.fail("at the end", f"left behind: {sorted(self.beside())}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=1.0, help="how long (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the commands and faults (default: 0)")
    parser.add_argument("--json", type=Path, help="file to write")
    options = parser.parse_args()
    disk = harness.with_faulty_disk()
    harness.import_everything()
    place = Path(tempfile.mkdtemp(prefix="amilst-soak-"))
    soak = Soak(place, options.seed, disk)
    try:
        soak.learn()
        print(f"the longest command takes {soak.seconds:.1f} s", flush=True)
        end, shown, number = time.monotonic() + 60 * options.minutes, 0.0, 0
        while time.monotonic() < end:
            number += 1
            soak.step(number)
            if time.monotonic() - shown > 300:
                shown = time.monotonic()
                print(dict(sorted(soak.counts.items())), len(soak.failures), "failures", flush=True)
        soak.finish()
    finally:
        soak.close()
        shutil.rmtree(place)
    n_faults = sum(n for name, n in soak.counts.items() if name.startswith("fault:"))
    tally = harness.Tally(
        f"soak of {options.minutes:g} minutes, seed {options.seed}",
        soak.counts + Counter(faults=n_faults),
        soak.failures,
    )
    tally.show()
    harness.write(harness.record(options.json, "soak", minutes=options.minutes, seed=options.seed), [tally])
    return int(bool(soak.failures))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
