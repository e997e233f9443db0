"""Fixtures that several test files use."""

from __future__ import annotations

import builtins
import os
import signal
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

# What runs in the background of a script ignores Ctrl-C, and under nohup the end of its terminal; the processes that
# tests start and end by these signals would inherit that.
for _name, _handler in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
    _number = getattr(signal, _name, None)
    if _number is not None and signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, _handler)

_BESIDE_THE_REPOSITORY = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The founders' folder of golden files and small data: beside the repository, or $AMILST_SHARED."""
    directory = Path(os.environ.get("AMILST_SHARED", _BESIDE_THE_REPOSITORY))
    if not directory.is_dir():
        pytest.skip(f"no shared folder at {directory}; set AMILST_SHARED to the folder that holds golden/")
    return directory


@pytest.fixture
def without_package(monkeypatch) -> Callable[[str], None]:
    """A function after which amilst_lite cannot import a package; pandas and anndata, which may need it, can."""
    original = builtins.__import__

    def remove(missing: str) -> None:
        def imported(name: str, importer: Any = None, *rest: Any) -> Any:
            package = (importer or {}).get("__name__", "").split(".")[0]
            if name.split(".")[0] == missing and package == "amilst_lite":
                raise ImportError(name)
            return original(name, importer, *rest)

        monkeypatch.setattr(builtins, "__import__", imported)

    return remove


@contextmanager
def _light_figures() -> Iterator[None]:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header, pixel = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0), zlib.compress(b"\0\0")
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixel) + chunk(b"IEND", b"")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("amilst_lite.plot.save", lambda figure, path: Path(path).write_bytes(png))
        yield


@pytest.fixture
def light_figures() -> Iterator[None]:
    """Files of figures hold a single pixel: drawing takes most of the time of a small `amilst run`.

    For tests of everything else; the figures are made all the same, and those of test_plot and test_results drawn.
    """
    with _light_figures():
        yield


@pytest.fixture(scope="module")
def light_figures_of_the_module() -> Iterator[None]:
    """The same for all tests of a file, and for its fixtures."""
    with _light_figures():
        yield
