"""Files of fitted models: arrays and one JSON document in HDF5, read as data that anybody may have written.

The layout, format version 1::

    /                 attributes: format = "amilst_lite model", format_version = 1
    /settings         uint8 (n,), a JSON object in UTF-8
    /arrays/...       groups and arrays: boolean, integer or floating-point, contiguous, little-endian

Nothing in a file is executed, and no other file is opened for it. Every array has to lie in the file in full,
uncompressed, before memory for it is allocated, so that reading takes no more memory than the file is long.

Source: HDF5 File Format Specification, version 3.0.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ._version import __version__
from .errors import AmilstError, InputError
from .partial import replacing

__all__ = ["FORMAT", "FORMAT_VERSION", "read_model", "write_model"]

FORMAT = "amilst_lite model"
FORMAT_VERSION = 1

_MOST_BYTES = 1 << 30
"""Of a file and of its arrays. Models have a few MB."""
_MOST_ARRAYS = 10_000
_MOST_LEVELS = 4
"""Of names, from ``/arrays`` to an array."""
_MOST_DIMENSIONS = 8
_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
"""Of arrays and groups; dots as in the names of torch's parameters, but no "." or ".."."""
_LONGEST_NAME = 100
_EXPECTED = "a model written by AMILST.save or `amilst run` (model.h5)"
_HDF5 = b"\x89HDF\r\n\x1a\n"
_OTHER_KINDS = (
    (b"PK\x03\x04", "a zip file"),
    (b"\x1f\x8b", "a gzip file"),
    (b"\x80", "a pickle, which is never loaded"),
    (b"\x93NUMPY", "a numpy file"),
)


@dataclass
class _Tally:
    """Counts arrays and groups and their bytes, and refuses more than ``most`` bytes or `_MOST_ARRAYS` of them."""

    most: int
    n: int = 0
    n_bytes: int = 0

    def add(self, n_bytes: int, place: str) -> None:
        self.n += 1
        self.n_bytes += n_bytes
        if self.n > _MOST_ARRAYS:
            raise InputError(f"there are more than {_MOST_ARRAYS:,} arrays and groups.")
        if self.n_bytes > self.most:
            raise InputError(
                f"the arrays up to {place} have {self.n_bytes:,} bytes; expected at most {self.most:,}."
            )


def write_model(path: str | os.PathLike[str], arrays: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Write a model; an existing file is replaced once the new one is complete.

    The same content gives the same bytes (with one version of h5py), in whatever order the names come.

    Parameters
    ----------
    path : path-like
        In an existing folder. A symbolic link is followed: the file it refers to is replaced.
    arrays : mapping of str to ndarray or mapping
        Nested up to four levels. Boolean, integer or floating-point of up to 8 bytes; any shape of up to
        8 dimensions, numbers included. Names consist of letters, digits, ``_``, ``-`` and single dots.
    settings : mapping
        Of what JSON can hold, without NaN and infinity; tuples come back as lists.

    Raises
    ------
    InputError
        A name, an array or a setting cannot be stored, or the file cannot be written; nothing is left behind.
    """
    target = _target(path)
    try:
        document = json.dumps(dict(settings), sort_keys=True, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"the settings of a model must be JSON without NaN and infinity; found {error}."
        ) from error
    tally = _Tally(_MOST_BYTES)
    tally.add(len(document), "/settings")
    # the file is made in memory, so that an error of the disk is one of Python's and not one inside HDF5; the
    # oldest format stores no times
    with h5py.File(
        "model", "w", driver="core", backing_store=False, libver=("earliest", "v110"), track_order=False
    ) as file:
        file.attrs["format"] = np.bytes_(FORMAT)
        file.attrs["format_version"] = np.array(FORMAT_VERSION, dtype="<i8")
        _write_array(file, "settings", np.frombuffer(document, dtype=np.uint8))
        _write_group(file, "arrays", arrays, 0, tally)
        file.flush()
        image = file.id.get_file_image()
    if len(image) > _MOST_BYTES:
        raise InputError(f"the model has {len(image):,} bytes; expected at most {_MOST_BYTES:,}.")
    try:
        with replacing(target) as temporary:
            temporary.write_bytes(image)
    except OSError as error:
        raise InputError(f"{target} cannot be written ({error}). Choose another place.") from error


def _target(path: str | os.PathLike[str]) -> Path:
    """The file to write, links followed."""
    target = _checked(path)
    try:
        target = target.resolve()
        if not target.parent.is_dir():
            raise InputError(f"{target} cannot be written: {target.parent} is not a folder. Create it first.")
        if target.exists() and not target.is_file():
            raise InputError(f"{target} is not a regular file; expected the name of a file to write.")
    except (OSError, RuntimeError) as error:  # of a loop of links, before Python 3.13
        raise InputError(f"{target} cannot be written ({error}). Choose another place.") from error
    return target


def _checked(path: str | os.PathLike[str]) -> Path:
    if not isinstance(path, str | os.PathLike) or not os.fspath(path) or "\0" in os.fspath(path):
        raise InputError(f"expected the path of a file; found {path!r}.")
    return Path(path).expanduser()


def _write_group(
    parent: h5py.Group, name: str, content: Mapping[str, Any], level: int, tally: _Tally
) -> None:
    """Write ``content`` into the new group ``name``."""
    group = parent.create_group(name, track_order=False)
    for key in sorted(content, key=str):
        place = f"{group.name}/{key}"
        if not isinstance(key, str):
            raise InputError(f"names of a model's arrays must be strings; found {key!r} in {group.name}.")
        _check_name(key, place, level + 1)
        value = content[key]
        if isinstance(value, Mapping):
            tally.add(0, place)
            _write_group(group, key, value, level + 1, tally)
        elif isinstance(value, np.ndarray | np.generic):
            array = np.asarray(value)
            _check_array(array.dtype, array.shape, place)
            tally.add(array.nbytes, place)
            _write_array(group, key, array)
        else:
            raise InputError(
                f"{place} must be a numpy array or a dict of them; found {type(value).__name__}."
            )


def _write_array(group: h5py.Group, name: str, array: np.ndarray) -> None:
    little = np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")
    group.create_dataset(name, data=little, track_times=False)


def read_model(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read what `write_model` has written.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    arrays : dict of str to ndarray or dict
        The same bits, in the byte order of this machine; names in alphabetical order.
    settings : dict

    Raises
    ------
    InputError
        The file is missing, incomplete or of another kind; its format version is another one; or it holds
        what `write_model` does not write: other names, dtypes or storage, links, more than four levels, more
        than 1 GiB.
    """
    path = _checked(path)
    size = _check_kind(path)
    try:
        with h5py.File(path, "r") as file:
            _check_format(file, path)
            tally = _Tally(size)
            members = _members(file, path)
            if set(members) != {"settings", "arrays"}:
                raise _damaged(path, f"found {len(members)} entries at the top; expected settings and arrays")
            document = members["settings"]
            if not isinstance(document, h5py.Dataset) or not isinstance(members["arrays"], h5py.Group):
                raise _damaged(path, "settings is not an array or arrays is not a group")
            _check_stored(document, size, tally, path)
            if document.dtype != np.uint8 or document.ndim != 1:
                raise _damaged(path, f"settings has dtype {document.dtype} and shape {document.shape}")
            # first the checks of all arrays, then the memory for them
            datasets = _checked_group(members["arrays"], 0, size, tally, path)
            settings = json.loads(document[()].tobytes().decode())
            if not isinstance(settings, dict):
                raise _damaged(path, "its settings are not a JSON object")
            return _loaded(datasets, path), settings
    except (AmilstError, MemoryError):
        raise
    except Exception as error:  # h5py and json raise many types on damaged files
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise _damaged(path, reason) from error


def _check_kind(path: Path) -> int:
    """Size in bytes of an HDF5 file; an error that says what else is there."""
    try:
        if path.is_dir():
            inside = path / "model.h5"
            advice = f"Did you mean {inside}?" if inside.is_file() else "Give the file."
            raise InputError(f"{path} is a folder; expected {_EXPECTED}. {advice}")
        if not path.exists():
            raise InputError(f"there is no file {path}; expected {_EXPECTED}. Check the name.")
        if not path.is_file():  # opening a pipe would wait for its writer
            raise InputError(f"{path} is not a regular file; expected {_EXPECTED}.")
        with path.open("rb") as handle:
            head = handle.read(len(_HDF5))
            size = os.fstat(handle.fileno()).st_size
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error}); expected {_EXPECTED}. Check its permissions."
        ) from error
    if head != _HDF5:
        found = next((kind for start, kind in _OTHER_KINDS if head.startswith(start)), "no HDF5 file")
        raise InputError(
            f"{path} is {found if size else 'empty (0 bytes)'}; expected {_EXPECTED}. "
            "Give that file, or save the model again."
        )
    if size > _MOST_BYTES:
        raise InputError(
            f"{path} has {size:,} bytes; expected {_EXPECTED}, of at most {_MOST_BYTES:,} bytes. "
            "Check that it is the right file."
        )
    return size


def _check_format(file: h5py.File, path: Path) -> None:
    """Refuse other HDF5 files and other format versions."""
    if _attribute(file, b"format", h5py.h5t.STRING) != FORMAT.encode():
        raise InputError(
            f"{path} is an HDF5 file of another kind, such as .h5ad or a count matrix; expected {_EXPECTED}. "
            "Give that file, or save the model again."
        )
    version = _attribute(file, b"format_version", h5py.h5t.INTEGER)
    if version is None:
        raise _damaged(path, "its format version is missing")
    if version != FORMAT_VERSION:
        advice = "Install a newer amilst_lite" if version > FORMAT_VERSION else "Install an older amilst_lite"
        raise InputError(
            f"{path} has format version {version}; amilst_lite {__version__} reads format version "
            f"{FORMAT_VERSION}. {advice}, or fit and save the model again with this one."
        )


def _attribute(file: h5py.File, name: bytes, kind: int) -> Any:
    """A single number or fixed-length string of at most 64 bytes; None if there is none."""
    if not h5py.h5a.exists(file.id, name):
        return None
    attribute = h5py.h5a.open(file.id, name)
    stored = attribute.get_type()
    fits = stored.get_class() == kind and stored.get_size() <= 64 and attribute.shape == ()
    if not fits or (kind == h5py.h5t.STRING and stored.is_variable_str()):
        return None
    value = np.empty((), dtype=attribute.dtype)
    attribute.read(value)
    return value.item()


def _members(group: h5py.Group, path: Path) -> dict[str, Any]:
    """Datasets and groups by name; no link is followed out of the group or the file."""
    if len(group) > _MOST_ARRAYS:
        raise _damaged(path, f"{len(group)} entries in {group.name}; expected at most {_MOST_ARRAYS}")
    found = {}
    for name in sorted(group):
        link = group.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            raise _damaged(path, f"{name[:_LONGEST_NAME]!r} is a link to another place or file")
        found[name] = group[name]
    return found


def _checked_group(group: h5py.Group, level: int, size: int, tally: _Tally, path: Path) -> dict[str, Any]:
    """The datasets in ``group``, nested as they are, after all checks."""
    content: dict[str, Any] = {}
    for name, member in _members(group, path).items():
        place = f"{group.name}/{name}"
        with _refusing(path):
            _check_name(name, place, level + 1)
        if isinstance(member, h5py.Group):
            with _refusing(path):
                tally.add(0, place)  # hard links can repeat a group without end
            content[name] = _checked_group(member, level + 1, size, tally, path)
        elif isinstance(member, h5py.Dataset):
            _check_stored(member, size, tally, path)
            content[name] = member
        else:
            raise _damaged(path, f"{place} is neither an array nor a group")
    return content


def _check_stored(dataset: h5py.Dataset, size: int, tally: _Tally, path: Path) -> None:
    """Refuse arrays that are not in the file in full, without a filter."""
    place = str(dataset.name)
    # first the storage: to give its shape, a view of other files would open them
    creation = dataset.id.get_create_plist()
    if creation.get_layout() not in (h5py.h5d.CONTIGUOUS, h5py.h5d.COMPACT) or creation.get_nfilters():
        raise _damaged(path, f"{place} is stored in chunks, compressed or as a view of other arrays")
    if creation.get_external_count():
        raise _damaged(path, f"{place} is stored in another file")
    if dataset.shape is None:
        raise _damaged(path, f"{place} has no shape")
    stored, dtype = dataset.id.get_type(), dataset.dtype
    if stored.get_size() != dtype.itemsize or (dtype.kind != "b" and stored.get_class() == h5py.h5t.ENUM):
        raise _damaged(path, f"{place} is stored in a type that numpy does not have")
    n_bytes = math.prod(dataset.shape) * dtype.itemsize
    with _refusing(path):
        _check_array(dtype, dataset.shape, place)
        # the arrays do not overlap in the file, so that together they are no longer than it
        tally.add(n_bytes, place)
    start = dataset.id.get_offset()  # None where nothing is stored, and for small arrays within their header
    if dataset.id.get_storage_size() != n_bytes or (start is not None and start + n_bytes > size):
        raise _damaged(path, f"{place} declares {n_bytes:,} bytes, which the file does not hold")


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Turn the error of a check that writing has as well into one about the file."""
    try:
        yield
    except InputError as error:
        raise _damaged(path, str(error)) from error


def _loaded(datasets: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The arrays of datasets that have been checked."""
    loaded: dict[str, Any] = {}
    for name, dataset in datasets.items():
        if isinstance(dataset, Mapping):
            loaded[name] = _loaded(dataset, path)
            continue
        array = np.asarray(dataset[()])
        if array.dtype.kind == "b" and (array.view(np.uint8) > 1).any():
            raise _damaged(path, f"{dataset.name} holds values other than true and false")
        loaded[name] = array.astype(array.dtype.newbyteorder("="), copy=False)
    return loaded


def _check_name(name: str, place: str, level: int) -> None:
    if len(name) > _LONGEST_NAME or _NAME.fullmatch(name) is None:
        raise InputError(
            f"{place!r} is no name of an array: expected letters, digits, _, - and single dots, at most "
            f"{_LONGEST_NAME} characters."
        )
    if level > _MOST_LEVELS:
        raise InputError(f"{place} lies deeper than {_MOST_LEVELS} levels.")


def _check_array(dtype: np.dtype[Any], shape: tuple[int, ...], place: str) -> None:
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise InputError(f"{place} has dtype {dtype}; expected bool, int or float of at most 8 bytes.")
    if len(shape) > _MOST_DIMENSIONS:
        raise InputError(f"{place} has {len(shape)} dimensions; expected at most {_MOST_DIMENSIONS}.")


def _damaged(path: Path, reason: str) -> InputError:
    return InputError(
        f"{path} is incomplete, damaged or not written by amilst_lite ({reason.rstrip('.')}). "
        f"Expected {_EXPECTED}; copy it or save the model again."
    )
