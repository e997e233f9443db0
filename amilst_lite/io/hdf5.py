"""Opening HDF5 files that may come from anywhere.

A file is inspected before its values are read, so that reading it opens no other file and takes no more memory
than a file of its size can need.

Source: HDF5 File Format Specification, version 3.0; HDF5 registered filter plugins.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5d, h5o, h5p, h5s, h5t, h5z

from ..errors import InputError
from .bounds import inflated_length, longest_unchecked, lzf_length, most_memory
from .files import reading

_LARGE = 2**28  # bytes; below that a wrong size does no harm
_COMPRESSION = 2000  # gzip compresses to a thousandth at best
_MOST_OBJECTS = 20_000
"""Of groups and arrays; each column of a table is one, and each is opened once more to be inspected."""
_MOST_LEVELS = 32
_SMALL = 2**24
"""Bytes of a file in which all strings are looked at, to find the longest."""
_EXPANDING = {h5z.FILTER_NBIT, h5z.FILTER_SCALEOFFSET, h5z.FILTER_SZIP}
"""Filters that the field does not use, whose results have the length that the file says."""
_BUILT_IN = {h5z.FILTER_DEFLATE, h5z.FILTER_SHUFFLE, h5z.FILTER_FLETCHER32, h5z.FILTER_LZF, *_EXPANDING}
"""For others, HDF5 looks for a library in its folders of plugins, and loads it."""
_PLUGINS = {
    307: "bzip2", 32001: "blosc", 32004: "lz4", 32008: "bitshuffle", 32013: "zfp", 32015: "zstd", 32026: "blosc2",
}  # fmt: skip
_AFTER_DEFLATE = {h5z.FILTER_FLETCHER32}
_REFERENCE = np.dtype([("length", "<u4"), ("heap", "<u8"), ("index", "<u4")])
"""What a file stores in place of a string of variable length; many may refer to the same one."""
_BLOCK = 2**16  # references that are read at a time


@contextmanager
def open_hdf5(path: Path, expected: str, *, source: Path | None = None) -> Iterator[h5py.File]:
    """An HDF5 file, open for reading; errors in the body become an InputError, see `reading`.

    Parameters
    ----------
    path, expected
        See `reading`.
    source
        The file for messages, if ``path`` is a copy of it.

    Raises
    ------
    InputError
        The file is broken; it refers to other files (external links, external or virtual datasets), which
        would be opened in its place; it declares arrays that it is too small to hold, or whose compressed parts
        or strings are longer than they should be; or its groups are nested without end.
    """
    with reading(source or path, expected), h5py.File(path, "r") as file:
        _Inspection(source or path, path).inspect(file)
        yield file


def own_group(group: h5py.Group, name: str) -> h5py.Group | None:
    """The group ``name`` in ``group``; None if there is none, or a link, which may lead to another file."""
    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        return None
    found = group[name]
    return found if isinstance(found, h5py.Group) else None


class _Inspection:
    """Goes through all that a reader can reach in a file, and refuses what no file of this field has."""

    def __init__(self, path: Path, opened: Path) -> None:
        self.path, self.opened = path, opened
        self.size = size = opened.stat().st_size
        self.longest = self.size
        self.most = most_memory(size)
        self.declared = self.n_objects = 0
        self.soft_links: list[tuple[h5py.Group, str, int]] = []

    def inspect(self, file: h5py.File) -> None:
        if self.size <= _SMALL:
            self.longest = _longest_in_heap(self.opened.read_bytes(), self.path)
        self._check_attributes(file.id, "/")
        self._check_group(file, 0)
        # after everything else, since their paths may lead over a link into another file
        while self.soft_links:
            group, name, level = self.soft_links.pop()
            if group.get(name) is not None:  # a link to nothing
                self._check_item(group, name, level)

    def _check_group(self, group: h5py.Group, level: int) -> None:
        if level > _MOST_LEVELS:
            raise InputError(
                f"{self.path}: groups are nested in more than {_MOST_LEVELS} levels, perhaps without end "
                f"({group.name[:60]}...). The file is broken; download it again."
            )
        for name in group:
            link = group.get(name, getlink=True)
            if isinstance(link, h5py.ExternalLink):
                raise InputError(
                    f"{self.path}: {group.name.rstrip('/')}/{name} is a link into another file "
                    f"({link.filename!r}), which is not followed. Copy the data into this file, for example with "
                    "h5repack or h5copy."
                )
            if isinstance(link, h5py.SoftLink):
                self.soft_links.append((group, name, level))
            else:
                self._check_item(group, name, level)

    def _check_item(self, group: h5py.Group, name: str, level: int) -> None:
        self.n_objects += 1
        if self.n_objects > _MOST_OBJECTS:
            raise InputError(
                f"{self.path} has more than {_MOST_OBJECTS:,} groups and arrays, or links that repeat them. Is it the "
                "right file?"
            )
        item = h5o.open(group.id, name.encode("utf-8", "surrogateescape"))
        self._check_attributes(item, f"{group.name.rstrip('/')}/{name}")
        if isinstance(item, h5d.DatasetID):
            self._check_dataset(h5py.Dataset(item), f"{group.name.rstrip('/')}/{name}")
        elif isinstance(item, h5py.h5g.GroupID):
            self._check_group(h5py.Group(item), level + 1)

    def _check_dataset(self, dataset: h5py.Dataset, name: str) -> None:
        # first the storage: to give its shape, a view of other files would open them
        creation = dataset.id.get_create_plist()
        layout = creation.get_layout()
        if layout == h5d.VIRTUAL or creation.get_external_count():
            raise InputError(
                f"{self.path}: the values of {name} are in other files, which are not opened. Copy them into "
                "this file, for example with h5repack."
            )
        stored_type = dataset.id.get_type()
        any_length = _has_any_length(stored_type)
        shape = dataset.shape or ()
        itemsize = _REFERENCE.itemsize if any_length else stored_type.get_size()
        declared, stored = math.prod(shape) * itemsize, dataset.id.get_storage_size()
        if declared > _LARGE and declared > _COMPRESSION * stored:
            self._refuse_size(name, shape, declared, f"of which {stored:,} bytes are stored")
        chunk = math.prod(creation.get_chunk()) * itemsize if layout == h5d.CHUNKED and declared else 0
        self.declared += max(declared, chunk)
        if self.declared > self.most:
            self._refuse_size(name, shape, max(declared, chunk), f"in a file of {self.size:,} bytes")
        if any_length and layout == h5d.CHUNKED and dataset.dtype.names:
            raise InputError(
                f"{self.path}: {name} holds records with strings or arrays of any length, in parts. Write the file "
                "again with a newer version of the program that wrote it."
            )
        if chunk:
            self._check_filters(dataset.id, name, creation, chunk)
        if any_length:
            self._check_strings(dataset, name)

    def _refuse_size(self, name: str, shape: tuple[int, ...], declared: int, found: str) -> None:
        raise InputError(
            f"{self.path}: {name} declares an array of shape {shape}, {declared / 2**30:,.1f} GiB, {found}. The file "
            "is broken or incomplete; download it again, or store its counts as a sparse matrix."
        )

    def _check_filters(self, dataset: h5d.DatasetID, name: str, creation: Any, chunk: int) -> None:
        """Refuse parts of other lengths than ``chunk`` bytes, once they are decompressed.

        Of longer ones, HDF5 finds out after decompressing them; of shorter ones it does not, reads on in the memory
        behind them, and may crash.
        """
        filters = [creation.get_filter(i)[0] for i in range(creation.get_nfilters())]
        plugins = [code for code in filters if code not in _BUILT_IN]
        if plugins:
            raise InputError(
                f"{self.path}: {name} is compressed by {_PLUGINS.get(plugins[0], 'an unknown method')} (HDF5 filter "
                f"{plugins[0]}), for which HDF5 would load a plugin. Read the file where the package hdf5plugin is "
                "installed, and write it again with gzip (write_h5ad with compression='gzip')."
            )
        deflate = filters.count(h5z.FILTER_DEFLATE)
        after = filters[filters.index(h5z.FILTER_DEFLATE) + 1 :] if deflate else []
        if _EXPANDING & set(filters) or deflate > 1 or not set(after) <= _AFTER_DEFLATE:
            raise InputError(
                f"{self.path}: {name} is compressed in an unusual way (HDF5 filters {filters}). Write it again "
                "with gzip, for example with h5repack -f SHUF -f GZIP=4."
            )
        if dataset.get_type().get_class() == h5t.REFERENCE:
            return
        # of large files only what could fill the memory
        longest = longest_unchecked(self.size) if self.size > _LARGE else 0
        for part in _chunks(dataset):
            if part.size <= longest:
                continue
            mask, content = dataset.read_direct_chunk(part.chunk_offset)
            length = _length([code for i, code in enumerate(filters) if not mask >> i & 1], content, chunk)
            if length is not None and length != chunk:
                found = f"more than {chunk:,} bytes" if length > chunk else f"{length:,} bytes"
                raise InputError(
                    f"{self.path}: a part of {name} has {found}, where the file declares {chunk:,}. The file is "
                    "broken; download it again."
                )

    def _check_strings(self, dataset: h5py.Dataset, name: str) -> None:
        """Refuse strings that repeat one part of a file so often that they fill the memory.

        Arrays of strings hold the places of the strings in the file, which are never compressed; all may be the same.
        """
        shape = dataset.shape or ()
        n = math.prod(shape)
        base = h5t.check_vlen_dtype(dataset.dtype)
        if dataset.dtype.names or (base is not None and base not in (str, bytes) and base.hasobject):
            if n * self.size <= _LARGE:
                return
            raise InputError(
                f"{self.path}: {name} holds records with strings or arrays of any length, which may take any memory. "
                "Write the file again with a newer version of the program that wrote it."
            )
        width, total = 1 if base in (str, bytes, None) else base.itemsize, 0
        for lengths in self._lengths(dataset.id):
            total += int(lengths.sum(dtype=np.int64)) * width
            if total > self.size:
                self._refuse_size(name, shape, total, f"in a file of {self.size:,} bytes")

    def _lengths(self, dataset: h5d.DatasetID) -> Iterator[np.ndarray]:
        """The lengths that an array of strings of any length declares; without reading the strings."""
        creation = dataset.get_create_plist()
        layout = creation.get_layout()
        if layout == h5d.CHUNKED:
            for part in _chunks(dataset):
                mask, stored = dataset.read_direct_chunk(part.chunk_offset)
                yield _references(stored, mask, creation)["length"]
        elif layout == h5d.CONTIGUOUS and dataset.get_offset() is not None:
            with self.opened.open("rb") as handle:
                handle.seek(dataset.get_offset())
                left = dataset.get_storage_size()
                while left > 0:
                    block = handle.read(min(left, _BLOCK * _REFERENCE.itemsize))
                    if len(block) < _REFERENCE.itemsize:
                        raise ValueError("an array of strings lies outside of the file")
                    left -= len(block)
                    yield np.frombuffer(block, _REFERENCE, len(block) // _REFERENCE.itemsize)["length"]

    def _check_attributes(self, item: Any, name: str) -> None:
        """As `_check_strings`; what the attributes hold is limited to 64 kB, but not what it refers to."""
        for index in range(h5a.get_num_attrs(item)):
            attribute = h5a.open(item, index=index)
            n = math.prod(attribute.shape or ())
            if (
                _has_any_length(attribute.get_type())
                and n * self.size > _LARGE
                and n * self.longest > self.most
            ):
                raise InputError(
                    f"{self.path}: an attribute of {name} has {n:,} strings of up to {self.longest:,} bytes in a "
                    f"file of {self.size:,} bytes. The file is broken; download it again."
                )


def _length(filters: list[int], content: bytes, most: int) -> int | None:
    """Bytes of a part of an array without its filters, more than ``most`` if it has more; None if it is not known."""
    length = len(content)
    for code in reversed(filters):
        if code == h5z.FILTER_FLETCHER32:
            if length < 4:  # HDF5 takes the four bytes from it without looking
                return 0
            length -= 4
            content = content[:-4]
        elif code == h5z.FILTER_DEFLATE:
            length = inflated_length(content, most)
        elif code == h5z.FILTER_LZF:
            return lzf_length(content) if len(content) <= _SMALL else None
    return length


def _has_any_length(stored: Any) -> bool:
    """Whether values of a type are, or have in them, strings or arrays of variable length."""
    kind = stored.get_class()
    if kind == h5t.COMPOUND:
        return any(_has_any_length(stored.get_member_type(i)) for i in range(stored.get_nmembers()))
    if kind == h5t.ARRAY:
        return _has_any_length(stored.get_super())
    return kind == h5t.VLEN or (kind == h5t.STRING and stored.is_variable_str())


def _references(stored: bytes, mask: int, creation: Any) -> np.ndarray:
    """The references in a chunk, by HDF5 itself: as numbers in a file in memory with the filters of this chunk."""
    shape = creation.get_chunk()
    filters = [creation.get_filter(i) for i in range(creation.get_nfilters()) if not mask >> i & 1]
    kept = h5p.create(h5p.DATASET_CREATE)
    kept.set_chunk((*shape, _REFERENCE.itemsize))
    for code, flags, values, _ in filters:
        if code == h5z.FILTER_SHUFFLE:
            raise ValueError("references to strings are shuffled, which HDF5 does not do")
        kept.set_filter(code, flags, values)
    content = np.empty((*shape, _REFERENCE.itemsize), np.uint8)
    with h5py.File("references", "w", driver="core", backing_store=False) as file:
        copy = h5d.create(file.id, b"a", h5t.NATIVE_UINT8, h5s.create_simple(content.shape), kept)
        copy.write_direct_chunk((0,) * content.ndim, stored)
        copy.read(h5s.ALL, h5s.ALL, content)
    return content.reshape(-1).view(_REFERENCE)


def _longest_in_heap(content: bytes, path: Path) -> int:
    """Bytes of the longest string of any length in a file: of the objects in its global heap (III.E).

    Raises
    ------
    InputError
        Free space of length zero in the heap, at which HDF5 stops without end.
    """
    longest = 0
    for found in re.finditer(rb"GCOL\x01\0\0\0", content):
        at = found.end()
        end = min(found.start() + int.from_bytes(content[at : at + 8], "little"), len(content))
        at += 8
        while at + 16 <= end:
            index, size = struct.unpack_from("<H6xQ", content, at)
            if index == 0 and size == 0:
                raise InputError(f"{path}: its heap of strings is broken. Download it again.")
            longest = max(longest, min(size, len(content)) if index else 0)
            at += 16 + -(-size // 8) * 8 if index else size
    return longest


def _chunks(dataset: h5d.DatasetID) -> list[Any]:
    """Where the chunks of a dataset are, and their stored sizes."""
    if hasattr(dataset, "chunk_iter"):  # not with HDF5 before 1.12.3
        found: list[Any] = []
        dataset.chunk_iter(lambda part: found.append(part))
        return found
    return [dataset.get_chunk_info(i) for i in range(min(dataset.get_num_chunks(), 1000))]
