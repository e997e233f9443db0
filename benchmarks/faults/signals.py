"""SIGINT, SIGTERM and SIGKILL at random moments of runs that replace earlier results.

Expected each time: SIGINT and SIGTERM end the run within a second with one line and exit status 130 or 143; nothing is
left beside the results, which are the earlier or the new ones, complete; what SIGKILL leaves is removed by the next
run with the same OUT.

    python benchmarks/faults/signals.py [--runs N] [--output FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import harness

TRAINING = {"epochs": 4, "n_networks": 1, "n_init": 4, "shrinkage": 0.2}
SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -signal.SIGKILL}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=50, help="runs for each signal (default: 50)")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    options = parser.parse_args()
    harness.prepare(300, **TRAINING)
    place = Path(tempfile.mkdtemp())
    rng = random.Random(0)
    tallies = []
    try:
        seconds = duration(place / "whole")
        print(f"a run takes {seconds:.1f} s", flush=True)
        for number in SIGNALS:
            tallies.append(killed(number, place / number.name, options.runs, seconds, rng))
            tallies[-1].show()
    finally:
        shutil.rmtree(place)
    if options.output:
        found = {tally.name: {**tally.counts, "failures": tally.failures} for tally in tallies}
        options.output.write_text(json.dumps(found, indent=2) + "\n")
    return int(any(tally.failures for tally in tallies))


def duration(place: Path) -> float:
    """Seconds of a run that is not interrupted, the second one."""
    place.mkdir()
    for _ in range(2):
        started = time.perf_counter()
        status = harness.wait(harness.start(place / "OUT", place / "log"))
        assert status == 0, (place / "log").read_text()
    return time.perf_counter() - started


def killed(number: signal.Signals, place: Path, n: int, seconds: float, rng: random.Random) -> harness.Tally:
    tally = harness.Tally(number.name)
    slowest = 0.0
    for i in range(n):
        out, log = place / str(i) / "OUT", place / f"log{i}"
        out.mkdir(parents=True)
        (out / "run.json").write_text("{}")
        before = harness.fingerprint(out)
        delay = rng.uniform(0, 1.05 * seconds)
        process = harness.start(out, log)
        time.sleep(delay)
        started = time.perf_counter()
        os.kill(process, number)
        status = harness.wait(process)
        taken = time.perf_counter() - started
        text = log.read_text()
        found = harness.fingerprint(out)
        is_whole = found == before or set(found) == set(json.loads((out / "run.json").read_text())["files"])
        beside = {path.name for path in out.parent.iterdir()} - {"OUT"}
        if "Results written" in text:  # it had ended
            facts = {"written": (out / "result.h5ad").exists(), "nothing_left": not beside}
        elif number == signal.SIGKILL:
            tally.counts["left_something"] += bool(beside)
            clean(out)
            facts = {"intact": is_whole, "cleaned": [path.name for path in out.parent.iterdir()] == ["OUT"]}
        else:
            slowest = max(slowest, taken)
            lines = text.splitlines()
            facts = {
                "status": status == SIGNALS[number],
                "one_line": bool(lines) and lines[-1].startswith(f"amilst: interrupted ({number.name})")
                and "Traceback" not in text,
                "within_a_second": taken < 1,
                "intact": is_whole,
                "nothing_left": not beside,
            }  # fmt: skip
        tally.add(
            f"after {delay:.2f} s: status {status} in {taken:.2f} s, {beside}, {text[-300:]!r}", **facts
        )
    if number != signal.SIGKILL:
        tally.name += f" (slowest {slowest:.2f} s)"
    return tally


def clean(out: Path) -> None:
    """Begin and abandon another run with the same OUT."""
    from amilst_lite import io

    try:
        with io.atomic_folder(out, overwrite=True):
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
