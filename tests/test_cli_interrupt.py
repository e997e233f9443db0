"""Signals that end a run."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from amilst_lite.cli.interrupt import Interrupted, advising, interruptible

SIGNALS = [signal.SIGINT, signal.SIGTERM]

IN_C = """
import hashlib, sys
from amilst_lite.cli.interrupt import interruptible
from amilst_lite.io.write import atomic_folder
with interruptible(lambda text: print(text, file=sys.stderr)), atomic_folder(sys.argv[1]) as folder:
    (folder / "a").write_text("incomplete")
    print("started", flush=True)
    hashlib.pbkdf2_hmac("sha512", b"one step of Python", b"that takes minutes", 500_000_000)
"""


IN_A_FINALIZER = """
import signal, sys, time
from amilst_lite.cli.interrupt import interruptible
class Finalized:
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)
with interruptible(lambda text: print(text, file=sys.stderr)):
    Finalized()
    time.sleep(60)
"""


AT_THE_END = """
import atexit, signal, sys
from amilst_lite.cli import main
atexit.register(signal.raise_signal, signal.SIGINT)
sys.argv = ["amilst"]
sys.exit(main())
"""


def start(*arguments):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
    )


def end(process, number):
    """Exit status, seconds and stderr after a signal."""
    started = time.perf_counter()
    process.send_signal(number)
    try:
        _, shown = process.communicate(timeout=30)
    finally:
        process.kill()
    return process.returncode, time.perf_counter() - started, shown


def test_a_run_ends_with_one_line_and_leaves_nothing(tmp_path):
    number = signal.SIGINT  # the others have the same handler, as the next test shows
    out = tmp_path / "deep" / "OUT"
    process = start("-m", "amilst_lite", "demo", "-o", out, "--n-spots", 3000)
    for line in process.stderr:
        if line.strip() == "PCA":
            break
    assert any(".amilst-new-" in path.name for path in out.parent.iterdir())
    status, seconds, shown = end(process, number)
    assert status == 128 + number
    assert shown.splitlines()[-1] == (
        f"amilst: interrupted ({number.name}); what was unfinished has been removed"
    )
    assert "Traceback" not in shown and seconds < 3  # 1 s on a machine that does nothing else
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", SIGNALS)
def test_a_single_long_step_is_ended_from_outside(tmp_path, number):
    process = start("-c", IN_C, tmp_path / "OUT")
    assert process.stdout.readline() == "started\n"
    time.sleep(0.5)  # until it is in C
    status, seconds, shown = end(process, number)
    assert status == 128 + number and 0.5 < seconds < 3
    assert shown == f"interrupted ({number.name}); what was unfinished has been removed\n"
    assert list(tmp_path.iterdir()) == []


def test_a_signal_in_a_finalizer_is_not_lost():
    """Python ignores exceptions there."""
    process = start("-c", IN_A_FINALIZER)
    _, shown = process.communicate(timeout=30)
    assert process.returncode == 143
    assert shown == "interrupted (SIGTERM); what was unfinished has been removed\n"


def test_a_signal_after_the_last_line_shows_no_traceback():
    process = start("-c", AT_THE_END)
    written, shown = process.communicate(timeout=30)
    assert process.returncode == 2 and "usage: amilst" in written and shown == ""  # as without the signal


def test_handlers_are_restored():
    before, hook = [signal.getsignal(number) for number in SIGNALS], sys.unraisablehook
    threads = threading.active_count()
    with pytest.raises(Interrupted) as caught, interruptible(print):
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.status == 143
    assert [signal.getsignal(number) for number in SIGNALS] == before and sys.unraisablehook is hook
    assert threading.active_count() == threads
    assert signal.set_wakeup_fd(-1) == -1


def test_a_second_signal_does_not_interrupt_the_removal(capsys):
    removed = []

    def body():
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
            removed.append(True)

    with pytest.raises(Interrupted, match="SIGINT"), interruptible(print):
        body()
    assert removed == [True]


def test_advice_is_part_of_the_message():
    def body(text):
        with advising(lambda: text):
            signal.raise_signal(signal.SIGTERM)

    for text, end in (("continue with --resume", "removed; continue with --resume$"), ("", "removed$")):
        with pytest.raises(Interrupted, match=end), interruptible(print):
            body(text)
    assert str(Interrupted(signal.SIGINT)).endswith("has been removed")


def test_ignored_signals_remain_ignored():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with interruptible(print):
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_other_threads_get_no_handlers():
    failures = []

    def body():
        try:
            with interruptible(print):
                pass
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert failures == []
