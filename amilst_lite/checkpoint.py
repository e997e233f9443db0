"""Results of long steps, kept in a folder, so that a run that was killed continues where it was.

Every step is decided by its inputs, the settings and the seed alone. A run that takes the result of a step from a
checkpoint therefore ends in the same bits as one that computes it.

A checkpoint is one file for each step, ``STEP.npz``, of uncompressed arrays: those of the result, and ``document``, a
JSON object in UTF-8 with the fingerprint of input and settings, the warnings, and the result with the names of the
arrays in the place of arrays. Nothing in a file is executed. A file that is incomplete, of another run or of another
version counts as absent.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import shutil
import time
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from scipy import sparse

from ._version import __version__
from .distributed import ranks
from .errors import InputError, recorded_warnings, warn
from .partial import replacing

__all__ = ["Checkpoint", "fingerprint"]

logger = logging.getLogger("amilst_lite")

T = TypeVar("T")

_SHORT = 1 / 40
"""Share of the interval: shorter steps are not kept. All those of a run together take less than an interval."""
_BYTES = 4e8
"""In an interval: results of more bytes for the time they took, if that was less than an interval, are not kept. What
is read from a binary file, for example, is read again as fast as from a checkpoint."""
_FREE = 3
"""Times the size of a file that the disk has to have free: the results need space, too."""

_DOCUMENT = "document"
_PLAIN = (type(None), bool, int, float, str)
_KINDS = "biufcSUmM"  # of arrays that hold no objects


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


def _same(value: Any) -> Any:
    return value


class Checkpoint:
    """Steps of one run.

    Parameters
    ----------
    folder : path-like or None
        Created when the first result is written. None: nothing is kept.
    interval : float
        Seconds of work that a killed run loses at most, besides the step in progress: results that took less than a
        fortieth of it are not kept, nor those that took less than all of it and are large (400 MB in an interval).
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
        self.interval = interval
        self._fingerprint = fingerprint(stamp)
        self._last = time.perf_counter()

    def begin(self, *parts: Any) -> None:
        """Add to what the following steps depend on; see `fingerprint`."""
        if self.folder is not None:
            self._fingerprint = fingerprint(self._fingerprint, *parts)

    @property
    def exists(self) -> bool:
        """Whether a result has been written."""
        return self.folder is not None and any(self.folder.glob("*.npz"))

    def stage(
        self,
        name: str,
        compute: Callable[[], T],
        pack: Callable[[T], Any] = _same,
        unpack: Callable[[Any], T] = _same,
    ) -> T:
        """The result of a step, from the checkpoint or computed; its warnings are issued in both cases.

        Parameters
        ----------
        name : str
            Of a file; each step of a run has its own.
        compute : callable
            Computes the result. It may have steps of its own, which are kept as well.
        pack : callable
            Result → something made of dicts with names, lists, tuples, numbers, strings, None, arrays without
            objects other than these, CSR matrices, DataFrames, and dataclasses of all these. The result itself if not
            given.
        unpack : callable
            The same → result; a dataclass comes as the dict of its fields.
        """
        if self.folder is None:
            return compute()
        kept = self._read(name, unpack)
        # a stage is computed by all processes or by none
        if all(ranks().objects(kept is not None)) and kept is not None:
            logger.info("%s: from the checkpoint", name)
            for text in kept[1]:
                warn(text)
            self._last = time.perf_counter()
            return kept[0]
        started = time.perf_counter()
        with recorded_warnings() as issued:
            result = compute()
        # steps inside this one that have been kept will not be repeated
        seconds = time.perf_counter() - max(started, self._last)
        if seconds >= _SHORT * self.interval:
            self._write(name, lambda: pack(result), issued, seconds)
            self._last = time.perf_counter()
        return result

    def clear(self) -> None:
        """Delete the folder, if nothing else is in it."""
        if self.folder is None or not self.folder.is_dir():
            return
        for path in [*self.folder.glob("*.npz"), *self.folder.glob(".*.npz.amilst-part-*")]:
            with suppress(OSError):
                path.unlink()
        try:
            self.folder.rmdir()
        except OSError:  # files that are not ours
            logger.info("%s is kept: it holds other files", self.folder)

    def _read(self, name: str, unpack: Callable[[Any], T]) -> tuple[T, list[str]] | None:
        """The result of a step and its warnings."""
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
                document = json.loads(file[_DOCUMENT].tobytes())
                if document["fingerprint"] != self._fingerprint:
                    logger.info("%s is of another input or other settings and is not used", path.name)
                    return None
                return unpack(_decoded(document["result"], file)), [str(one) for one in document["warnings"]]
        except Exception as error:  # numpy and zipfile raise many types on damaged files
            logger.info("%s cannot be used (%s) and is computed again", path.name, error)
            return None

    def _write(self, name: str, pack: Callable[[], Any], issued: list[str], seconds: float) -> None:
        folder: Path = self.folder  # type: ignore[assignment]
        try:
            arrays: dict[str, np.ndarray] = {}
            result = _encoded(pack(), arrays)
            document = json.dumps({"fingerprint": self._fingerprint, "warnings": issued, "result": result})
            arrays[_DOCUMENT] = np.frombuffer(document.encode(), dtype=np.uint8)
            n_bytes = sum(array.nbytes for array in arrays.values())
            if seconds < self.interval and n_bytes * self.interval > _BYTES * seconds:
                return
            folder.mkdir(exist_ok=True)
            if shutil.disk_usage(folder).free < _FREE * n_bytes:
                logger.info("no checkpoint was written (too little space in %s)", folder.parent)
                return
            with replacing(folder / f"{name}.npz") as temporary, temporary.open("wb") as handle:
                np.savez(handle, **arrays)  # type: ignore[arg-type]
        except (OSError, TypeError) as error:  # the run goes on without
            logger.info("no checkpoint of %s was written (%s)", name, error)


# --- results as JSON and arrays ---------------------------------------------------------------


def _encoded(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """What JSON can hold, with the names of the arrays that are added to ``arrays``."""
    if type(value) in _PLAIN:
        return value
    if isinstance(value, list):
        return [_encoded(item, arrays) for item in value]
    if isinstance(value, tuple):
        return {"tuple": [_encoded(item, arrays) for item in value]}
    if isinstance(value, Mapping):
        if not all(type(key) is str for key in value):
            raise TypeError(f"the names of a dict must be strings; found {list(value)[:3]}")
        return {"dict": {key: _encoded(item, arrays) for key, item in value.items()}}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        state = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return _encoded(state, arrays)
    if isinstance(value, np.generic):
        return {"scalar": _encoded(np.asarray(value), arrays)}
    if isinstance(value, np.ndarray) and value.dtype == object:
        return {"objects": _plain_items(value.ravel().tolist()), "shape": list(value.shape)}
    if type(value) in (np.ndarray, np.memmap) and value.dtype.kind in _KINDS:
        name = str(len(arrays))
        arrays[name] = value
        return {"array": name}
    if isinstance(value, sparse.csr_matrix):
        parts = [_encoded(part, arrays) for part in (value.data, value.indices, value.indptr)]
        return {"csr": parts, "shape": list(value.shape)}
    if isinstance(value, pd.DataFrame):
        if not value.columns.is_unique or not all(type(name) is str for name in value.columns):
            raise TypeError("the columns of a table must have different names")
        columns = [[name, _encoded_column(value[name], arrays)] for name in value.columns]
        return {"columns": columns, "index": _encoded_column(value.index, arrays), "name": _name_of(value)}
    raise TypeError(f"a {type(value).__name__} cannot be kept")


def _encoded_column(values: pd.Series | pd.Index, arrays: dict[str, np.ndarray]) -> Any:
    if isinstance(values, pd.RangeIndex):
        return {"range": [values.start, values.stop, values.step]}
    if isinstance(values.dtype, pd.CategoricalDtype):
        codes = np.asarray(pd.Categorical(values).codes)
        return {
            "codes": _encoded(codes, arrays),
            "categories": _encoded_column(values.dtype.categories, arrays),
            "ordered": bool(values.dtype.ordered),
        }
    if isinstance(values.dtype, pd.StringDtype):
        strings = values.to_numpy(dtype=object).tolist()
        return {"strings": _plain_items(strings), "dtype": str(values.dtype)}
    if not isinstance(values.dtype, np.dtype):
        raise TypeError(f"a column of type {values.dtype} cannot be kept")
    return _encoded(values.to_numpy(), arrays)


def _name_of(table: pd.DataFrame) -> str | None:
    if table.index.name is not None and type(table.index.name) is not str:
        raise TypeError("the name of an index must be a string")
    return table.index.name


def _plain_items(items: list[Any]) -> list[Any]:
    other = next((item for item in items if type(item) not in _PLAIN), None)
    if other is not None:
        raise TypeError(f"an array of {type(other).__name__} objects cannot be kept")
    return items


def _decoded(node: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """The value that `_encoded` has encoded."""
    if isinstance(node, list):
        return [_decoded(item, arrays) for item in node]
    if not isinstance(node, dict):
        return node
    if "tuple" in node:
        return tuple(_decoded(item, arrays) for item in node["tuple"])
    if "dict" in node:
        return {key: _decoded(item, arrays) for key, item in node["dict"].items()}
    if "scalar" in node:
        return _decoded(node["scalar"], arrays)[()]
    if "objects" in node:
        flat = np.empty(len(node["objects"]), dtype=object)
        flat[:] = _plain_items(node["objects"])
        return flat.reshape(node["shape"])
    if "array" in node:
        return arrays[node["array"]]
    if "csr" in node:
        data, indices, indptr = (_decoded(part, arrays) for part in node["csr"])
        if len(indptr) != node["shape"][0] + 1:
            raise ValueError("a matrix has another number of rows")
        matrix = sparse.csr_matrix(tuple(node["shape"]), dtype=data.dtype)
        # set, because scipy's constructor changes the type of indices
        matrix.data, matrix.indices, matrix.indptr = data, indices, indptr
        matrix.check_format(full_check=True)  # indices out of range would corrupt memory
        return matrix
    index = _decoded_index(node["index"], arrays).rename(node["name"])
    columns = {name: _decoded_column(column, arrays) for name, column in node["columns"]}
    return pd.DataFrame(
        {name: pd.Series(values, index=index, dtype=values.dtype) for name, values in columns.items()},
        index=index,
    )


def _decoded_index(node: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> pd.Index:
    if "range" in node:
        return pd.RangeIndex(*node["range"])
    values = _decoded_column(node, arrays)
    return pd.Index(values, dtype=values.dtype)  # without the type, pandas guesses that of strings


def _decoded_column(node: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> Any:
    if "codes" in node:
        categories = _decoded_index(node["categories"], arrays)
        return pd.Categorical.from_codes(
            _decoded(node["codes"], arrays), categories=categories, ordered=node["ordered"]
        )
    if "strings" in node:
        return pd.array(_plain_items(node["strings"]), dtype=node["dtype"])
    return _decoded(node, arrays)
