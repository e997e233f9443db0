"""The stages of a run and how far each has come: to the log, and to a bar where one is shown.

What runs calls `begin` and `advance`; `show_progress` listens to them in its body, in the thread that entered it.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol, TextIO, TypeVar

__all__ = ["advance", "begin", "not_shown", "show_progress"]

T = TypeVar("T")

logger = logging.getLogger("amilst_lite")

_WIDTH = 30  # characters of a plain bar
_PERIOD = 0.1  # seconds between two drawings of it


class _Bars(Protocol):
    def begin(self, stage: str) -> None: ...

    def advance(self, done: int, total: int) -> None: ...

    def close(self) -> None: ...


_shown: ContextVar[_Bars | None] = ContextVar("amilst_lite_progress", default=None)


def begin(stage: str) -> None:
    """Say that a stage begins, and that the one before has ended."""
    logger.info("%s", stage)
    bars = _shown.get()
    if bars is not None:
        bars.begin(stage)


def advance(done: int, total: int) -> None:
    """Say that so many steps of the stage are done, of so many."""
    bars = _shown.get()
    if bars is not None:
        bars.advance(done, total)


def not_shown(function: Callable[[], T]) -> T:
    """The result of a function whose stages go to the log alone, such as one that runs beside another stage."""
    token = _shown.set(None)
    try:
        return function()
    finally:
        _shown.reset(token)


@contextmanager
def show_progress() -> Iterator[None]:
    """Show a bar for every stage of what runs in the body, on standard error or as a widget of a notebook.

    The bars are those of tqdm if it is installed, plain ones otherwise.

    Examples
    --------
    >>> with amilst_lite.show_progress():
    ...     amilst_lite.identify_domains(adata)
    """
    bars: _Bars
    try:
        from tqdm.auto import tqdm
    except ImportError:
        bars = _PlainBars(sys.stderr)
    else:
        bars = _TqdmBars(tqdm)
    token = _shown.set(bars)
    try:
        yield
    finally:
        _shown.reset(token)
        bars.close()


class _TqdmBars:
    """One bar of tqdm for each stage; a stage without steps shows the time that it takes."""

    def __init__(self, tqdm: Any) -> None:
        self.tqdm = tqdm
        self.bar: Any = None

    def begin(self, stage: str) -> None:
        self.close()
        self.bar = self.tqdm(desc=stage, total=1, bar_format="{desc}: {elapsed}")

    def advance(self, done: int, total: int) -> None:
        if self.bar is None:
            return
        if self.bar.bar_format is not None:  # the first step of the stage
            self.bar.bar_format = None
            self.bar.reset(total=total)
        self.bar.total, self.bar.n = total, done
        self.bar.refresh()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


class _PlainBars:
    """One line for each stage, rewritten while it runs."""

    def __init__(self, stream: TextIO | None) -> None:
        self.stream = stream
        self.stage: str | None = None
        self.started = self.drawn = 0.0
        self.longest = 0

    def begin(self, stage: str) -> None:
        self.close()
        self.stage, self.started, self.drawn = stage, time.monotonic(), 0.0
        self._write(stage)

    def advance(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self.stage is None or (done < total and now - self.drawn < _PERIOD):
            return
        self.drawn = now
        filled = _WIDTH * done // max(total, 1)
        self._write(f"{self.stage}  [{'#' * filled}{'.' * (_WIDTH - filled)}] {done}/{total}")

    def close(self) -> None:
        if self.stage is not None:
            self._write(f"{self.stage}  {time.monotonic() - self.started:.1f} s", end="\n")
            self.stage, self.longest = None, 0

    def _write(self, text: str, end: str = "") -> None:
        if self.stream is not None:
            self.stream.write(f"\r{text:{self.longest}}{end}")
            self.stream.flush()
        self.longest = len(text)
