"""What the command line prints: progress and messages on stderr, results on stdout."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO


def write(stream: TextIO | None, text: str) -> None:
    """Write and flush; what is written to a closed pipe (``| head``) is dropped and the work continues."""
    try:
        if stream is not None:
            stream.write(text)
            stream.flush()
    except BrokenPipeError:
        # what is still in the buffer, and all that follows, goes to the null device instead of failing
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())  # type: ignore[union-attr]
        os.close(null)


class Console:
    """Progress on stderr: a bar on a terminal, plain lines elsewhere, nothing if quiet."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.stream = sys.stderr
        self.on_terminal = self.stream is not None and self.stream.isatty()
        self.open_line = False
        self.warnings: list[str] = []

    def say(self, text: str) -> None:
        """Show a line, unless quiet."""
        if not self.quiet:
            self._line(text)

    def error(self, text: str) -> None:
        """Show a line that begins with the program's name."""
        self._line(f"amilst: {text}")

    def _line(self, text: str) -> None:
        write(self.stream, "\n" * self.open_line + text + "\n")
        self.open_line = False

    def progress(self, epoch: int, n_epochs: int, losses: dict[str, float]) -> None:
        """Show the progress of the training; a callback of `AMILST`."""
        if self.quiet:
            return
        if self.on_terminal:
            done = 30 * epoch // n_epochs
            bar = "#" * done + "." * (30 - done)
            write(self.stream, f"\r  {bar} {epoch}/{n_epochs}  loss {losses['network']:.4f} ")
            self.open_line = True
        elif epoch % max(n_epochs // 4, 1) == 0:
            self.say(f"  epoch {epoch}/{n_epochs}: loss {losses['network']:.4f}")

    def report(self, summary: dict[str, Any], output: str) -> int:
        """Show scores, time and files of a run; return the exit status."""
        scores = summary["scores"]
        if "ari" in scores.get("domain", {}):
            values, refined = scores["domain"], scores["refined"]
            self.say(
                f"ARI {values['ari']:.3f}, NMI {values['nmi']:.3f} against {summary['annotation']} "
                f"({values['n_scored']:.0f} spots); refined: ARI {refined['ari']:.3f}, NMI {refined['nmi']:.3f}"
            )
        memory = summary["peak_memory"]["ram_bytes"]
        self.say(
            f"{summary['seconds']['total']:.1f} s on {summary['device']}"
            + ("" if memory in (None, "none") else f", peak memory {memory / 2**20:.0f} MiB")
        )
        self.say(f"Results written to {output}: {', '.join(summary['files'])}")
        return 0 if "result.h5ad" in summary["files"] else 1

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Show the package's log and its warnings, one line each; hide other packages' warnings."""
        from ..errors import AmilstWarning  # which imports scikit-learn

        logger = logging.getLogger("amilst_lite")
        handler = logging.Handler()
        handler.emit = lambda record: self.say(record.getMessage())  # type: ignore[method-assign]
        level = logger.level
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)

        def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
            if issubclass(category, AmilstWarning):
                self.warnings.append(" ".join(str(message).split()))
                self.error(f"warning: {self.warnings[-1]}")

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                warnings.simplefilter("always", AmilstWarning)
                warnings.showwarning = show
                yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)
