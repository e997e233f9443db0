"""Opening zarr stores, format 2 and 3, that may come from anywhere.

The metadata are read as JSON and checked before zarr sees them: among the codecs that zarr finds by name is pickle,
which executes what is stored, for the fill value of an array even when it is only opened.

Source: Zarr core specification, versions 2 and 3; Zstandard (RFC 8878) and Blosc header formats.
"""

from __future__ import annotations

import json
import math
import os
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from ..errors import InputError, MissingExtraError
from .bounds import inflated_length, longest_unchecked, most_memory

_CODECS = {
    "adler32", "blosc", "bytes", "crc32", "crc32c", "delta", "fletcher32", "gzip", "lz4", "sharding_indexed", "shuffle",
    "transpose", "vlen-bytes", "vlen-utf8", "zlib", "zstd",
}  # fmt: skip
"""Those that hold data only, and whose results are bounded or checked; bz2 and lzma are not."""
_METADATA = (".zarray", ".zgroup", ".zattrs", ".zmetadata", "zarr.json")
_MOST_METADATA = 2**24
_MOST_FILES = 5_000_000
_HEADER = 18  # bytes, of the longest header of a Zstandard frame


def is_zarr_group(path: Path) -> bool:
    """Whether ``path`` is the folder of a zarr group, format 2 or 3."""
    try:
        return any((path / name).is_file() for name in (".zgroup", "zarr.json"))
    except OSError:
        return False


def group_attributes(path: Path) -> dict[str, Any]:
    """The attributes of the zarr group in a folder, format 2 or 3; empty if it has none. zarr is not needed.

    Raises
    ------
    ValueError, TypeError
        They are no JSON object, too long, or in another place, to which a link leads.
    """
    for name in ("zarr.json", ".zattrs"):
        file = path / name
        if not file.exists():
            continue
        is_own = file.is_file() and file.resolve() == path.resolve() / name
        if not is_own or file.stat().st_size > _MOST_METADATA:
            raise ValueError(f"{name} is a link, a pipe, or too long for metadata")
        document = json.loads(file.read_text(encoding="utf-8"))
        found = document.get("attributes", {}) if name == "zarr.json" else document
        if not isinstance(found, dict):
            raise TypeError(f"the attributes in {name} are no JSON object")
        return found
    return {}


def open_zarr(path: Path, mode: str = "r") -> Any:
    """The zarr group in a folder or in a zip file, format 2 or 3, after `check_zarr`.

    Raises
    ------
    InputError
        See `check_zarr`.
    MissingExtraError
        zarr is not installed.
    """
    try:
        import zarr
    except ImportError as error:
        raise MissingExtraError.for_package("zarr", "zarr", f"reading {path}") from error
    check_zarr(path)
    if path.is_file():
        return zarr.open_group(zarr.storage.ZipStore(str(path), mode="r"), mode="r")
    return zarr.open_group(str(path), mode=mode)


def check_zarr(path: Path) -> None:
    """Refuse a store that leads to other files, executes code or takes more memory than its size explains.

    Parameters
    ----------
    path
        A folder, or a zip file that holds one.

    Raises
    ------
    InputError
        A file in it is a link to another place, a pipe or a device; an array has another codec than those that hold
        data; or shapes, chunks or metadata are larger than what is stored.
    """
    if path.is_file():
        with zipfile.ZipFile(path) as archive:
            entries = {
                item.filename: _Entry(item.file_size, lambda n, item=item: _head(archive.open(item), n))
                for item in archive.infolist()
                if not item.is_dir()
            }
            _Store(path, entries, path.stat().st_size).check()
    else:
        entries = dict(_files(path))
        _Store(path, entries, sum(entry.size for entry in entries.values())).check()


@dataclass(frozen=True)
class _Entry:
    """A file of a store: its size, and how to read its first bytes."""

    size: int
    head: Any


def _head(handle: Any, n: int) -> bytes:
    with handle:
        return bytes(handle.read(n))


def _files(root: Path) -> Iterator[tuple[str, _Entry]]:
    """Name below ``root`` → file; links within the store are what they refer to."""
    real = root.resolve()
    folders, n_files = [root], 0
    while folders:
        with os.scandir(folders.pop()) as listed:
            found = list(listed)
        for entry in found:
            place = Path(entry.path)
            if entry.is_symlink() and not place.resolve().is_relative_to(real):
                raise InputError(
                    f"{place} is a link to {place.resolve()}, outside the store, which is not followed. Copy the data "
                    "into the store."
                )
            if entry.is_dir(follow_symlinks=False):
                folders.append(place)
            elif entry.is_file():
                n_files += 1
                yield (
                    str(place.relative_to(root).as_posix()),
                    _Entry(entry.stat().st_size, lambda n, place=place: _head(place.open("rb"), n)),
                )
            elif not entry.is_dir():
                raise InputError(f"{place} is no regular file. Copy the store again.")
            if n_files > _MOST_FILES:
                raise InputError(f"{root} has more than {_MOST_FILES:,} files.")


@dataclass
class _Store:
    path: Path
    entries: dict[str, _Entry]
    size: int
    most: int = field(init=False)
    metadata: int = 0

    def __post_init__(self) -> None:
        self.most = most_memory(self.size)

    def check(self) -> None:
        arrays: dict[str, _Array] = {}
        for name, entry in self.entries.items():
            folder, _, base = name.rpartition("/")
            if base not in _METADATA:
                continue
            self.metadata += entry.size
            if self.metadata > max(
                4 * _MOST_METADATA, 20 * self.size
            ):  # of a zip file, small entries may be large
                self._refuse(f"its metadata have more than {self.metadata:,} bytes")
            if entry.size > _MOST_METADATA:
                self._refuse(f"{name} has {entry.size:,} bytes, which metadata never have")
            try:
                document = json.loads(entry.head(_MOST_METADATA))
            except (ValueError, RecursionError) as error:
                raise InputError(
                    f"{self.path}: {name} is no JSON ({error}). Copy or download the store again."
                ) from error
            if not isinstance(document, dict):
                self._refuse(f"{name} is no JSON object")
            own, consolidated = self._arrays(name, base, document)
            self._check_sum(consolidated)
            if own is not None:
                arrays[folder] = own
        self._check_sum(arrays)
        self._check_chunks(arrays)

    def _arrays(
        self, name: str, base: str, document: dict[str, Any]
    ) -> tuple[_Array | None, dict[str, _Array]]:
        """The array that a document describes, and those of the summary of a group that it holds."""
        own = None
        if base == ".zarray" or (base == "zarr.json" and document.get("node_type") == "array"):
            own = self._array(name, document)
        summary = document if base == ".zmetadata" else document.get("consolidated_metadata")
        described: Any = summary.get("metadata") if isinstance(summary, dict) else None
        found = {}
        for key, one in described.items() if isinstance(described, dict) else ():
            if not isinstance(one, dict):
                self._refuse(f"the entry {key!r} of {name} is no JSON object")
            if ".." in key.split("/") or key.startswith("/"):
                self._refuse(f"{name} describes {key!r}, outside the store")
            if key.endswith(".zarray") or one.get("node_type") == "array":
                found[key] = self._array(f"{name}: {key}", one)
        return own, found

    def _array(self, name: str, document: dict[str, Any]) -> _Array:
        try:
            array = _Array.parse(document)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise InputError(
                f"{self.path}: {name} does not describe an array ({error!r}). Copy or download the store again."
            ) from error
        unknown = sorted(array.codecs - _CODECS)
        if unknown:
            self._refuse(
                f"{name} names the codec {unknown[0][:40]!r}, which is not used: it may execute code or fill the "
                f"memory. Expected {', '.join(sorted(_CODECS))}"
            )
        if max(array.n_bytes, array.chunk_bytes) > self.most:
            self._refuse_size(name, array)
        return array

    def _check_sum(self, arrays: dict[str, _Array]) -> None:
        if sum(array.n_bytes for array in arrays.values()) > self.most:
            name = max(arrays, key=lambda name: arrays[name].n_bytes)
            self._refuse_size(name, arrays[name])

    def _check_chunks(self, arrays: dict[str, _Array]) -> None:
        """Refuse chunks that are longer than their array says."""
        for name, entry in self.entries.items():
            folder, _, base = name.rpartition("/")
            if base in _METADATA:
                continue
            while folder not in arrays and folder:
                folder = folder.rpartition("/")[0]
            array = arrays.get(folder)
            if array is None:
                continue
            compressor = array.compressor
            if array.is_text and entry.size <= self.most:
                self._check_text(name, entry, array)
            if compressor is None:
                if entry.size > max(2 * array.chunk_bytes, self.most):
                    self._refuse(f"the chunk {name} has {entry.size:,} bytes")
                continue
            # strings have any length
            most = self.most if array.is_text else array.chunk_bytes
            if compressor in ("gzip", "zlib"):
                if entry.size > longest_unchecked(self.size) and most < inflated_length(
                    entry.head(entry.size), most, gzip=compressor == "gzip"
                ):
                    self._refuse(f"the chunk {name} is longer than the {most:,} bytes of its array")
                continue
            length = _DECLARED[compressor](entry.head(_HEADER))
            if length is None or length > most:
                self._refuse(
                    f"the chunk {name} declares {'no length' if length is None else f'{length:,} bytes'}; expected at "
                    f"most {most:,}"
                )

    def _check_text(self, name: str, entry: _Entry, array: _Array) -> None:
        """Refuse a chunk of strings with more of them than its array says: memory for them is allocated first."""
        if array.compressor is not None:
            length = _DECLARED.get(array.compressor, lambda _: 0)(entry.head(_HEADER))
            if length is None or length > self.most:
                return  # refused by the caller
        if array.is_sharded:
            return
        n = int.from_bytes(_decompressed(entry.head(entry.size), array.compressor)[:4], "little")
        if n > math.prod(array.chunks):
            self._refuse(
                f"the chunk {name} declares {n:,} strings; expected at most {math.prod(array.chunks):,}"
            )

    def _refuse(self, reason: str) -> NoReturn:
        raise InputError(f"{self.path}: {reason}. Copy or download the store again, or write it as h5ad.")

    def _refuse_size(self, name: str, array: _Array) -> NoReturn:
        self._refuse(
            f"{name} declares an array of shape {array.shape} in chunks of {array.chunks}, "
            f"{max(array.n_bytes, array.chunk_bytes) / 2**30:,.1f} GiB, in a store of {self.size:,} bytes"
        )


@dataclass(frozen=True)
class _Array:
    """What the metadata of an array say."""

    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    itemsize: int
    codecs: frozenset[str]
    compressor: str | None
    is_text: bool
    is_sharded: bool

    @classmethod
    def parse(cls, document: dict[str, Any]) -> _Array:
        if "data_type" in document:  # format 3
            chunks = document["chunk_grid"]["configuration"]["chunk_shape"]
            codecs = _codecs(document["codecs"])
            if document.get("storage_transformers"):
                raise ValueError("storage transformers")
            itemsize = _itemsize_3(document["data_type"])
        else:
            chunks = document["chunks"]
            listed = [*(document.get("filters") or ()), document.get("compressor")]
            codecs = [str(one["id"]) for one in listed if one is not None]
            dtype = document["dtype"]
            if isinstance(dtype, list):
                dtype = [tuple(one) for one in dtype]
            itemsize = np.dtype(dtype).itemsize
        shape, chunks = _sizes(document["shape"]), _sizes(chunks)
        if len(shape) != len(chunks):
            raise ValueError(f"shape {shape} and chunks {chunks} differ in length")
        compressors = [one for one in codecs if one in ("gzip", "zlib", *_DECLARED)]
        if len(compressors) > 1:
            raise ValueError(f"several compressors: {compressors}")
        # a shard holds many chunks behind an index
        compressor = None if "sharding_indexed" in codecs or not compressors else compressors[0]
        is_text = any(one.startswith("vlen") for one in codecs)
        return cls(
            shape, chunks, itemsize, frozenset(codecs), compressor, is_text, "sharding_indexed" in codecs
        )

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * self.itemsize

    @property
    def chunk_bytes(self) -> int:
        return math.prod(self.chunks) * self.itemsize


def _decompressed(content: bytes, compressor: str | None) -> bytes:
    """The beginning of a chunk, whose length has been checked, or nothing if it is broken."""
    if compressor is None:
        return content
    if compressor in ("gzip", "zlib"):
        try:
            return zlib.decompressobj(31 if compressor == "gzip" else 15).decompress(content, _HEADER)
        except zlib.error:
            return b""
    from numcodecs import get_codec  # of zarr

    try:
        return bytes(get_codec({"id": compressor}).decode(content))
    except (RuntimeError, ValueError):
        return b""


def _sizes(values: Any) -> tuple[int, ...]:
    if len(values) > 32 or any(type(one) is not int or one < 0 for one in values):
        raise ValueError(f"{str(values)[:100]} are no sizes")
    return tuple(values)


def _codecs(documents: Any) -> list[str]:
    """Names of codecs of format 3, and of those within shards."""
    names = []
    for one in documents:
        name = one if isinstance(one, str) else str(one["name"])
        names.append(name.removeprefix("numcodecs."))
        inner = {} if isinstance(one, str) else one.get("configuration") or {}
        for key in ("codecs", "index_codecs"):
            names += _codecs(inner.get(key, ()))
    return names


def _itemsize_3(data_type: Any) -> int:
    if isinstance(data_type, dict):
        return int(data_type.get("configuration", {}).get("length_bytes", 8))
    digits = "".join(one for one in str(data_type) if one.isdigit())
    return max(1, int(digits[:6]) // 8) if digits else 8


def _declared_by_blosc(header: bytes) -> int | None:
    return int.from_bytes(header[4:8], "little") if len(header) >= 8 else None


def _declared_by_lz4(header: bytes) -> int | None:
    return int.from_bytes(header[:4], "little") if len(header) >= 4 else None


def _declared_by_zstd(header: bytes) -> int | None:
    """Frame_Content_Size of the frame header, RFC 8878, 3.1.1.1."""
    if header[:4] != b"\x28\xb5\x2f\xfd" or len(header) < 6:
        return None
    descriptor = header[4]
    is_single = descriptor >> 5 & 1
    flag = descriptor >> 6
    width = (is_single, 2, 4, 8)[flag]
    start = 5 + (1 - is_single) + (0, 1, 2, 4)[descriptor & 3]
    if not width or len(header) < start + width:
        return None
    return int.from_bytes(header[start : start + width], "little") + (256 if width == 2 else 0)


_DECLARED = {"blosc": _declared_by_blosc, "lz4": _declared_by_lz4, "zstd": _declared_by_zstd}
"""Compressors whose data begin with the length of the result, and how to read it."""
