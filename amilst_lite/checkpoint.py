"""Results of long stages, kept in a folder, so that a run that was killed continues where it was.

Every stage is decided by its inputs, the settings and the seed alone. A run that takes the result of a stage from a
checkpoint therefore ends in the same bits as one that computes it.

A checkpoint is one file for each stage, ``STAGE.npz``: uncompressed arrays, and the fingerprint of input and settings.
A file that is incomplete, of another run or of another version counts as absent.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ._version import __version__
from .errors import InputError

__all__ = ["Checkpoint", "fingerprint"]

logger = logging.getLogger("amilst_lite")

T = TypeVar("T")

_FINGERPRINT = "fingerprint"
_SEPARATOR = "|"  # not in the names of arrays


def fingerprint(*parts: Any) -> str:
    """A digest of arrays, and of whatever JSON can hold; and of the version of this package."""
    digest = hashlib.blake2b(__version__.encode(), digest_size=16)
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype}{part.shape}".encode())
            digest.update(np.ascontiguousarray(part).data)
        else:
            digest.update(json.dumps(part, sort_keys=True, default=str).encode())
    return digest.hexdigest()


class Checkpoint:
    """Stages of one run.

    Parameters
    ----------
    folder : path-like or None
        Created when the first stage is written. None: nothing is kept.
    interval : float
        Seconds of work after which the result of a stage is written: what a killed run loses at most, besides
        the stage in progress. Shorter runs write nothing.
    stamp : str
        Identifies the input, for example by sizes and times of files; part of the fingerprint. Needed for counts on
        disk, whose content is not part of it.

    Raises
    ------
    InputError
        The folder is a file.
    """

    def __init__(
        self, folder: str | os.PathLike[str] | None = None, *, interval: float = 20.0, stamp: str = ""
    ) -> None:
        self.folder = None if folder is None else Path(folder)
        if self.folder is not None and self.folder.exists() and not self.folder.is_dir():
            raise InputError(
                f"{self.folder} is a file; expected a folder for checkpoints. Choose another name."
            )
        self.interval, self.stamp = interval, stamp
        self._fingerprint = ""
        self._last = time.perf_counter()

    def begin(self, *parts: Any) -> None:
        """Set what the stages depend on; see `fingerprint`."""
        if self.folder is not None:
            self._fingerprint = fingerprint(self.stamp, *parts)

    @property
    def exists(self) -> bool:
        """Whether a stage has been written."""
        return self.folder is not None and any(self.folder.glob("*.npz"))

    def stage(
        self,
        name: str,
        compute: Callable[[], T],
        pack: Callable[[T], Mapping[str, Any]],
        unpack: Callable[[dict[str, Any]], T],
    ) -> T:
        """The result of a stage, from the checkpoint or computed.

        Parameters
        ----------
        name : str
        compute : callable
            Computes the result.
        pack : callable
            Result → arrays, in nested mappings; without objects.
        unpack : callable
            The same arrays → result.
        """
        if self.folder is None:
            return compute()
        stored = self._read(name)
        if stored is not None:
            logger.info("%s: from the checkpoint", name)
            return unpack(stored)
        result = compute()
        if time.perf_counter() - self._last >= self.interval:
            self._write(name, pack(result))
            self._last = time.perf_counter()
        return result

    def clear(self) -> None:
        """Delete the folder, if nothing else is in it."""
        if self.folder is None or not self.folder.is_dir():
            return
        for path in [*self.folder.glob("*.npz"), *self.folder.glob(".*.part")]:
            path.unlink(missing_ok=True)
        try:
            self.folder.rmdir()
        except OSError:  # files that are not ours
            logger.info("%s is kept: it holds other files", self.folder)

    def _read(self, name: str) -> dict[str, Any] | None:
        path = self.folder / f"{name}.npz"  # type: ignore[operator]
        if not path.is_file():
            return None
        try:
            with zipfile.ZipFile(path) as archive:
                entries = archive.infolist()
                stored = sum(entry.file_size for entry in entries)
                # uncompressed, so that it takes no more memory than the file is long
                if any(entry.compress_type for entry in entries) or stored > path.stat().st_size:
                    raise ValueError("it is compressed")
            with np.load(path, allow_pickle=False) as file:
                if str(file[_FINGERPRINT]) != self._fingerprint:
                    logger.info("%s is of another input or other settings and is not used", path.name)
                    return None
                return _nested({key: file[key] for key in file.files if key != _FINGERPRINT})
        except Exception as error:  # numpy and zipfile raise many types on damaged files
            logger.info("%s cannot be used (%s) and is computed again", path.name, error)
            return None

    def _write(self, name: str, arrays: Mapping[str, Any]) -> None:
        folder: Path = self.folder  # type: ignore[assignment]
        temporary = folder / f".{name}.{os.getpid()}.part"
        try:
            folder.mkdir(exist_ok=True)
            with temporary.open("wb") as handle:
                content: dict[str, Any] = _flat(arrays) | {_FINGERPRINT: np.array(self._fingerprint)}
                np.savez(handle, **content)
                handle.flush()
                os.fsync(handle.fileno())
            os.replace(temporary, folder / f"{name}.npz")
        except OSError as error:  # the run goes on without
            logger.info("no checkpoint was written (%s)", error)
        finally:
            temporary.unlink(missing_ok=True)


def _flat(arrays: Mapping[str, Any], prefix: str = "") -> dict[str, np.ndarray]:
    flat: dict[str, np.ndarray] = {}
    for name, value in arrays.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}{_SEPARATOR}")
        else:
            flat[prefix + name] = np.asarray(value)
    return flat


def _nested(flat: Mapping[str, np.ndarray]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        *groups, last = name.split(_SEPARATOR)
        place = nested
        for group in groups:
            place = place.setdefault(group, {})
        place[last] = value
    return nested
