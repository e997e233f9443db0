"""Signals that end a run: within a second, with one line, leaving nothing behind.

Imports nothing that takes time, so that an interrupt is answered from the start.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_advice: list[Callable[[], str]] = []
_PATIENCE = 0.6
"""Seconds that the main thread has to end on its own."""


class Interrupted(KeyboardInterrupt):
    """A signal to end has arrived.

    Attributes
    ----------
    status : int
        Exit status by the convention of shells: 128 and the number of the signal.
    """

    def __init__(self, number: int) -> None:
        parts = [f"interrupted ({signal.Signals(number).name})", "what was unfinished has been removed"]
        super().__init__("; ".join(filter(None, [*parts, *(text() for text in _advice)])))
        self.status = 128 + number


@contextmanager
def advising(text: Callable[[], str]) -> Iterator[None]:
    """Within: the message of an interrupt ends with ``text()``, for example how to continue, unless it is empty."""
    _advice.append(text)
    try:
        yield
    finally:
        _advice.remove(text)


@contextmanager
def interruptible(show: Callable[[str], None], *, to_the_end: bool = False) -> Iterator[None]:
    """Within: signals to end raise `Interrupted`, once; if that has not ended the body soon, the process is ended.

    Python runs handlers of signals between two steps of the main thread, which may be far apart: matrix products
    and decompositions are one step. A second thread therefore waits for the signals as well. If the body does
    not end in time, it removes the unfinished files, shows the message and ends the process, with all its threads.

    Parameters
    ----------
    show
        Called by the second thread with the message.
    to_the_end
        The process ends after the body: the signals are then ignored, since nothing is left to interrupt and Python
        would show the traceback of its own end. Otherwise they are answered as before.
    """
    # handlers belong to the main thread; signals that the parent process ignores (nohup) remain ignored
    numbers = [
        number
        for number in _SIGNALS
        if threading.current_thread() is threading.main_thread()
        and callable(signal.getsignal(number)) | (signal.getsignal(number) == signal.SIG_DFL)
    ]
    if not numbers:
        yield
        return
    ended = threading.Event()
    incoming, outgoing = os.pipe()
    os.set_blocking(outgoing, False)

    def watch() -> None:
        while (received := os.read(incoming, 1)) and received[0] not in numbers:
            pass
        if received and not ended.wait(_PATIENCE):
            writing: Any = sys.modules.get("amilst_lite.io.write")
            if writing is not None:
                writing.discard_unfinished()
            show(str(Interrupted(received[0])))
            os._exit(128 + received[0])

    def interrupt(number: int, _: Any) -> None:
        for one in numbers:  # a second Ctrl-C would interrupt the removal of files
            signal.signal(one, signal.SIG_IGN)
        raise Interrupted(number)

    def unraisable(lost: Any) -> None:
        # In a finalizer or the callback of a weak reference, Python shows an exception and goes on; the second thread
        # then ends the process.
        if not isinstance(lost.exc_value, Interrupted):
            shown_otherwise(lost)

    shown_otherwise, sys.unraisablehook = sys.unraisablehook, unraisable
    earlier = {number: signal.signal(number, interrupt) for number in numbers}
    wakeup = signal.set_wakeup_fd(outgoing, warn_on_full_buffer=False)
    watcher = threading.Thread(target=watch, name="amilst-signals", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        signal.set_wakeup_fd(wakeup)
        os.close(outgoing)  # ends the watcher
        watcher.join()
        os.close(incoming)
        for number, handler in earlier.items():
            signal.signal(number, signal.SIG_IGN if to_the_end else handler)
        sys.unraisablehook = shown_otherwise
