"""Disks that are full or fail, at every write, fsync and rename in turn; small, read-only and vanishing places.

Every run replaces earlier results (--force). Expected each time: one line, exit status 2, nothing left, and the earlier
results unchanged. Runs with a checkpoint may leave that, and continue once there is space. Linux; the small and
read-only file systems need root.

    python benchmarks/faults/disk.py [--most N] [--json FILE]

Takes about half a second for each fault.
"""

from __future__ import annotations

import argparse
import errno
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import harness


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--most", type=int, default=60, help="faults of a kind; more are sampled (default: 60)"
    )
    parser.add_argument("--json", type=Path, help="file for the record")
    options = parser.parse_args()
    disk = harness.with_faulty_disk()
    record = harness.record(options.json, "disk", seeds=1)
    tallies: list[harness.Tally] = []
    place = Path(tempfile.mkdtemp())  # a TemporaryDirectory would be removed at the end of each fork
    try:
        checks = (
            lambda: small_disks_with_checkpoint(place / "continued"),
            lambda: harness.prepare(300),
            lambda: each_call(disk, "write", errno.ENOSPC, place / "write", options.most),
            lambda: each_call(disk, "fsync", errno.EIO, place / "fsync", options.most),
            lambda: each_call(disk, "rename", errno.EIO, place / "rename", options.most),
            lambda: small_disks(place / "small"),
            lambda: read_only(place / "read_only"),
            lambda: removed(place / "removed", min(options.most, 20)),
            lambda: two_at_once(place / "two", min(options.most, 20)),
        )
        for check in checks:
            tally = check()
            if tally is not None:
                tally.show()
                tallies.append(tally)
                harness.write(record, tallies)
    finally:
        shutil.rmtree(place)
    return int(any(tally.failures for tally in tallies))


def earlier(out: Path) -> dict[str, str]:
    """Write small earlier results, and return their fingerprint."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (out / "run.json").write_text("{}")
    (out / "domains.csv").write_text("spot,domain\n")
    return harness.fingerprint(out)


def each_call(disk, kind: str, number: int, place: Path, most: int) -> harness.Tally:
    """All calls from the n-th on fail, and: the n-th alone fails."""
    tally = harness.Tally(f"{kind} fails ({errno.errorcode[number]})")
    out, log = place / "in" / "OUT", place / "log"
    earlier(out)
    counted = place / "count"

    def count() -> None:
        disk.fault_arm(kind.encode(), 10**9, number, str(out.parent).encode(), 1)
        import atexit

        atexit.register(lambda: counted.write_text(str(disk.fault_count())))

    status = harness.wait(harness.start(out, log, count))
    assert status == 0, log.read_text()
    n_calls = int(counted.read_text())
    tally.counts["calls"] = n_calls
    step = max(1, -(-n_calls // most))
    for n in range(0, n_calls, step):
        for lasting in (1, 0):
            before = earlier(out)
            process = harness.start(
                out,
                log,
                lambda n=n, lasting=lasting: disk.fault_arm(
                    kind.encode(), n, number, str(out.parent).encode(), lasting
                ),
            )
            facts = harness.facts_of_refusal(harness.wait(process), log, out, before)
            text = log.read_text()
            if not lasting and facts["status_2"] is False and (out / "result.h5ad").exists():
                # a single failure that was harmless: the note of the owner in the lock file
                facts = {"harmless": "Results written" in text and len(list(out.parent.iterdir())) == 1}
            elif "The results are complete" in text:  # kept under the name that the message says
                kept = [path for path in out.parent.iterdir() if path != out]
                facts["nothing_left"] = len(kept) == 1 and str(kept[0]) in text
                facts["kept"] = all((path / "result.h5ad").exists() for path in kept)
                for path in kept:
                    shutil.rmtree(path)
            tally.add(
                f"{kind} {n} of {n_calls}{' and all after' if lasting else ''}: {text[-300:]!r}", **facts
            )
    return tally


@contextmanager
def mounted(place: Path, *options: str) -> Iterator[bool]:
    place.mkdir(parents=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(place)], check=False)
    try:
        yield done.returncode == 0
    finally:
        if done.returncode == 0:
            subprocess.run(["umount", str(place)], check=True)


def small_disks(place: Path) -> harness.Tally:
    tally = harness.Tally("file systems of 64 KiB to 8 MiB")
    for size in ("64k", "256k", "512k", "1m", "2m", "4m", "8m"):
        with mounted(place / size, f"size={size}") as is_mounted:
            if not is_mounted:
                continue
            out, log = place / size / "OUT", place.parent / f"log{size}"
            before = earlier(out)
            status = harness.wait(harness.start(out, log))
            if status == 0:
                facts = {"written": (out / "result.h5ad").exists() and len(list(out.parent.iterdir())) == 1}
            else:
                facts = harness.facts_of_refusal(status, log, out, before)
            tally.add(f"{size}: {log.read_text()[-300:]!r}", **facts)
    return tally


def small_disks_with_checkpoint(place: Path) -> harness.Tally:
    """Runs that keep every step on file systems without space for both; and those again, with more space."""
    tally = harness.Tally("file systems of 1 to 8 MiB, with checkpoints")
    harness.import_everything()
    counts = harness.write_input(place)
    for size in ("1m", "2m", "4m", "8m"):
        with mounted(place / size, f"size={size}") as is_mounted:
            if not is_mounted:
                continue
            out, log = place / size / "OUT", place / f"log{size}"
            before = earlier(out)
            command = harness.small_run(counts, out)
            status = harness.wait(harness.fork(command, log, harness.keep_every_step))
            kept = (out.parent / ".OUT.checkpoint").exists()
            if status == 0:
                facts = {"written": (out / "result.h5ad").exists() and not kept}
            else:
                facts = harness.facts_of_refusal(status, log, out, before, 1 + kept)
            tally.counts["continued"] += kept
            subprocess.run(["mount", "-o", "remount,size=64m", str(place / size)], check=True)
            again = harness.wait(harness.fork([*command, "--resume"], log, harness.keep_every_step))
            facts["completed"] = again == 0 and [path.name for path in out.parent.iterdir()] == ["OUT"]
            tally.add(f"{size}: {log.read_text()[-300:]!r}", **facts)
    return tally


def read_only(place: Path) -> harness.Tally:
    tally = harness.Tally("read-only file system")
    with mounted(place, "size=1m") as is_mounted:
        if is_mounted:
            before = earlier(place / "OUT")
            subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
            log = place.parent / "log_read_only"
            status = harness.wait(harness.start(place / "OUT", log))
            tally.add(log.read_text()[-300:], **harness.facts_of_refusal(status, log, place / "OUT", before))
    return tally


def removed(place: Path, n: int) -> harness.Tally:
    """The folder of OUT is removed at some moment of the run."""
    tally = harness.Tally("folder removed during the run")
    for i in range(n):
        out, log = place / str(i) / "OUT", place / f"log{i}"
        out.parent.mkdir(parents=True)
        process = harness.start(out, log)
        time.sleep(0.02 + 0.05 * i)
        shutil.rmtree(out.parent, ignore_errors=True)
        status = harness.wait(process)
        text = log.read_text()
        gone = not out.parent.exists()
        # removed before it was looked at, it is created; removed after the end, everything is
        facts = {"refused_or_written": (status == 2 and text.count("amilst: error:") == 1) or status == 0}
        facts["no_traceback"] = "Traceback" not in text
        facts["nothing_left"] = gone or {path.name for path in out.parent.iterdir()} <= {"OUT"}
        tally.add(f"after {0.02 + 0.05 * i:.2f} s: status {status}, {text[-300:]!r}", **facts)
        tally.counts["refused"] += status == 2
    return tally


def two_at_once(place: Path, n: int) -> harness.Tally:
    """Two runs on one OUT: one writes it, the other is refused before it reads anything."""
    tally = harness.Tally("two runs at once")
    for i in range(n):
        out = place / str(i) / "OUT"
        earlier(out)
        logs = [place / f"log{i}{name}" for name in "ab"]
        processes = [harness.start(out, log) for log in logs]
        statuses = [harness.wait(process) for process in processes]
        texts = [log.read_text() for log in logs]
        refused = [text for text in texts if "is being written by another run" in text]
        tally.add(
            f"statuses {statuses}, {[text[-200:] for text in texts]}",
            one_refused=sorted(statuses) == [0, 2] and len(refused) == 1,
            before_reading=all("simulating" not in text for text in refused),
            written=(out / "result.h5ad").exists(),
            nothing_left=len(list(out.parent.iterdir())) == 1,
        )
    return tally


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
