"""SIGINT, SIGTERM and SIGKILL at random moments of runs, which are then continued with --resume.

Each run replaces earlier results (--force), reads counts and coordinates from text, chooses the number of domains, and
keeps every step in its checkpoint, however short. Expected each time: SIGINT and SIGTERM end the run within a second
with one line, which says how to continue, and exit status 130 or 143; nothing but the checkpoint is left beside the
results, which are the earlier or the new ones, complete. The same command with --resume ends in the same bits as a run
that was not interrupted (all files; without times, memory and the command itself), and leaves nothing beside the
results, whatever SIGKILL has left.

    python benchmarks/faults/signals.py [--runs N] [--started N] [--seed S] [--json FILE]

The moments are uniform in the processor time of a run that is not interrupted, so that they do not depend on the
load of the machine. Most runs are forks of a process that has imported everything; some for each signal are started as
programs, and may be ended before they have imported anything. Linux. About five seconds of processor time for each.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
import harness

SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -signal.SIGKILL}
RESUME = "; the same command with --resume continues this run"
VARIES = ("seconds", "peak_memory")
"""Entries of the record that differ between two runs."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=50, help="runs for each signal (default: 50)")
    parser.add_argument(
        "--started", type=int, default=10, help="of these, how many are started as programs (default: 10)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--json", type=Path, help="file for the record")
    options = parser.parse_args()
    harness.import_everything()
    harness.keep_every_step()
    place = Path(tempfile.mkdtemp(prefix="amilst-signals-"))
    record = harness.record(options.json, "signals", seeds=1, started=options.started)
    tallies = {number: harness.Tally(number.name) for number in SIGNALS}
    try:
        trials = Trials(place, random.Random(options.seed))
        print(f"processor time of a run: {trials.seconds}", flush=True)
        for i in range(options.runs):
            for number, tally in tallies.items():
                trials.end_and_continue(number, "started" if i < options.started else "forked", tally)
            harness.write(record, list(tallies.values()))
    finally:
        shutil.rmtree(place)
    for tally in tallies.values():
        tally.show()
    return int(any(tally.failures for tally in tallies.values()))


class Trials:
    """Runs of one command in folders of their own, each with the same earlier results."""

    def __init__(self, place: Path, rng: random.Random) -> None:
        self.place, self.rng = place, rng
        self.input = harness.write_input(place)
        self.n = 0
        self.seconds: dict[str, float] = {}
        self.expected: dict[str, dict[str, object]] = {}
        for kind in ("forked", "started"):
            for _ in range(2):  # the second one has everything in the caches
                out, log = self.folder()
                process = self.start(out, log, kind)
                status, self.seconds[kind] = wait_with_time(process)
                assert status == 0, log.read_text()
            self.expected[kind] = content(out)
        other = differing(*self.expected.values())
        # forks draw one figure
        other = [name for name in other if name != "run.json" and not name.endswith(".png")]
        assert not other, f"forked and started runs differ in {other}"

    def folder(self) -> tuple[Path, Path]:
        """A folder with earlier results, and a file for what is shown."""
        self.n += 1
        out = self.place / str(self.n) / "OUT"
        out.mkdir(parents=True)
        (out / "run.json").write_text("{}")
        return out, self.place / f"log{self.n}"

    def start(self, out: Path, log: Path, kind: str, *flags: str) -> int:
        """Start a run; its process number."""
        command = [*harness.small_run(self.input, out), *flags]
        return (harness.fork if kind == "forked" else harness.spawn)(command, log)

    def end_and_continue(self, number: signal.Signals, kind: str, tally: harness.Tally) -> None:
        """End a run by a signal, and continue it."""
        moment = self.rng.uniform(0, 1.02 * self.seconds[kind])
        out, log = self.folder()
        before = harness.fingerprint(out)
        process = self.start(out, log, kind)
        wait_until(process, moment)
        sent = time.perf_counter()
        os.kill(process, number)
        status = harness.wait(process)
        taken = time.perf_counter() - sent
        text = log.read_text()
        facts = self.facts_of_end(tally, number, status, text, out, before)
        if "status" in facts:
            facts["within_a_second"] = taken < 1
            tally.details["slowest"] = max(tally.details.get("slowest", 0), round(taken, 2))
        reached = tally.details.setdefault("reached", {})
        reached[last_step(text)] = reached.get(last_step(text), 0) + 1
        again = log.with_suffix(".again")
        status = harness.wait(self.start(out, again, kind, "--resume"))
        found = content(out) if status == 0 else {}
        facts["resumed"] = status == 0
        facts["same_bits"] = found == self.expected[kind]
        facts["no_stray_file"] = {path.name for path in out.parent.iterdir()} == {"OUT"}
        tally.counts["continued"] += "from the checkpoint" in again.read_text()
        tally.add(
            f"{kind}, after {moment:.2f} s: ended in {taken:.2f} s, {text[-300:]!r}, "
            f"then {again.read_text()[-300:]!r}, differing {differing(found, self.expected[kind])}",
            **facts,
        )
        shutil.rmtree(out.parent)

    def facts_of_end(
        self,
        tally: harness.Tally,
        number: signal.Signals,
        status: int,
        text: str,
        out: Path,
        before: dict[str, str],
    ) -> dict[str, bool]:
        """What should hold after the signal."""
        found = harness.fingerprint(out)
        whole = found == before or set(found) == set(json.loads((out / "run.json").read_text())["files"])
        facts = {"intact": whole}
        beside = {path.name for path in out.parent.iterdir()} - {"OUT"}
        if "Results written" in text:  # it had ended
            return facts
        if number == signal.SIGKILL:
            return facts
        if (status == -number and not text) or text.endswith("\nKeyboardInterrupt\n"):
            # before the command line had begun, with what Python does then
            tally.counts["too_early"] += 1
            return {**facts, "nothing_left": not beside}
        kept = beside == {".OUT.checkpoint"}
        lines = text.splitlines()
        expected = f"amilst: interrupted ({number.name}); what was unfinished has been removed"
        return {
            **facts,
            "status": status == SIGNALS[number],
            "one_line": bool(lines) and lines[-1] == expected + (RESUME if kept else "") and "Traceback" not in text,
            "nothing_left": kept or not beside,
        }  # fmt: skip


def clock(process: int) -> float:
    """Seconds of processor time of another process, all its threads."""
    return time.clock_gettime((~process << 3) | 2)  # as the macro CPUCLOCK_SCHED of Linux has it


def wait_until(process: int, moment: float) -> None:
    """Until a process has used so many seconds of processor time, or has ended."""
    how = os.WEXITED | os.WNOHANG | os.WNOWAIT
    while not os.waitid(os.P_PID, process, how) and clock(process) < moment:
        time.sleep(0.002)


def wait_with_time(process: int) -> tuple[int, float]:
    """Exit status of a process, and the seconds of processor time it has used."""
    _, status, usage = os.wait4(process, 0)
    return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime


def last_step(text: str) -> str:
    """The last of the steps that a run says it has begun; "start" before the first."""
    names = "reading|graph|prepare|network share|filter|train|cluster|refine|analyze|write|score|draw|report"
    steps = re.findall(rf"^({names})\b", text, re.MULTILINE)
    return "end" if "Results written" in text else steps[-1] if steps else "start"


def content(out: Path) -> dict[str, object]:
    """File → what it holds apart from times and memory, as text or hash."""
    found: dict[str, object] = dict(harness.fingerprint(out))
    record = json.loads((out / "run.json").read_text())
    found["run.json"] = json.dumps(
        {name: value for name, value in record.items() if name not in VARIES and name != "command"}
    )
    with h5py.File(out / "result.h5ad") as file:
        items: list[str] = []

        def add(name: str, item: h5py.Group | h5py.Dataset) -> None:
            if not name.startswith(tuple(f"uns/amilst/{one}" for one in VARIES)):
                values = np.asarray(item[()]).tolist() if isinstance(item, h5py.Dataset) else ""
                items.append(
                    f"{name} {sorted((key, str(value)) for key, value in item.attrs.items())} {values!r}"
                )

        file.visititems(add)
    found["result.h5ad"] = "\n".join(sorted(items))
    found["report.html"] = without_times((out / "report.html").read_text())
    return found


def without_times(page: str) -> str:
    """A report without the command and the entries of the record that differ between two runs."""
    return re.sub(r"amilst run [^<]*|\((s|MB)\)</th><td>[^<]*", "", page)


def differing(one: dict[str, object], other: dict[str, object]) -> list[str]:
    return sorted(name for name in {*one, *other} if one.get(name) != other.get(name))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
