"""Opening HDF5 files that may come from anywhere.

A file is inspected before its values are read, so that reading it opens no other file and takes no more memory
than a file of its size can need.

Source: HDF5 File Format Specification, version 3.0; HDF5 registered filter plugins.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5d, h5o, h5t, h5z

from ..errors import InputError
from .bounds import inflates_beyond, longest_unchecked, most_memory
from .files import reading

_LARGE = 2**28  # bytes; below that a wrong size does no harm
_COMPRESSION = 2000  # gzip compresses to a thousandth at best
_MOST_OBJECTS = 20_000
"""Of groups and arrays; each column of a table is one, and each is opened once more to be inspected."""
_MOST_LEVELS = 32
_SMALL = 2**24
"""Bytes of a file in which strings are measured: these can repeat without taking space."""
_EXPANDING = {h5z.FILTER_NBIT, h5z.FILTER_SCALEOFFSET, h5z.FILTER_SZIP}
"""Filters that the field does not use, whose results have the length that the file says."""
_AFTER_DEFLATE = {h5z.FILTER_FLETCHER32}


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
        _Inspection(source or path, path.stat().st_size).inspect(file)
        yield file


def own_group(group: h5py.Group, name: str) -> h5py.Group | None:
    """The group ``name`` in ``group``; None if there is none, or a link, which may lead to another file."""
    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        return None
    found = group[name]
    return found if isinstance(found, h5py.Group) else None


class _Inspection:
    """Goes through all that a reader can reach in a file, and refuses what no file of this field has."""

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.size = size
        self.most = most_memory(size)
        self.declared = self.n_objects = 0
        self.soft_links: list[tuple[h5py.Group, str, int]] = []

    def inspect(self, file: h5py.File) -> None:
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
        shape, itemsize = dataset.shape or (), dataset.id.get_type().get_size()
        declared, stored = math.prod(shape) * itemsize, dataset.id.get_storage_size()
        if declared > _LARGE and declared > _COMPRESSION * stored:
            self._refuse_size(name, shape, declared, f"of which {stored:,} bytes are stored")
        chunk = math.prod(creation.get_chunk()) * itemsize if layout == h5d.CHUNKED and declared else 0
        self.declared += max(declared, chunk)
        if self.declared > self.most:
            self._refuse_size(name, shape, max(declared, chunk), f"in a file of {self.size:,} bytes")
        if chunk:
            self._check_filters(dataset.id, name, creation, chunk)
        if h5t.check_vlen_dtype(dataset.dtype) or dataset.dtype.hasobject:
            self._check_strings(dataset, name)

    def _refuse_size(self, name: str, shape: tuple[int, ...], declared: int, found: str) -> None:
        raise InputError(
            f"{self.path}: {name} declares an array of shape {shape}, {declared / 2**30:,.1f} GiB, {found}. The file "
            "is broken or incomplete; download it again, or store its counts as a sparse matrix."
        )

    def _check_filters(self, dataset: h5d.DatasetID, name: str, creation: Any, chunk: int) -> None:
        """Refuse compressed parts that are longer than ``chunk`` bytes; HDF5 finds out after decompressing them."""
        filters = [creation.get_filter(i)[0] for i in range(creation.get_nfilters())]
        deflate = filters.count(h5z.FILTER_DEFLATE)
        after = filters[filters.index(h5z.FILTER_DEFLATE) + 1 :] if deflate else []
        if _EXPANDING & set(filters) or deflate > 1 or not set(after) <= _AFTER_DEFLATE:
            raise InputError(
                f"{self.path}: {name} is compressed in an unusual way (HDF5 filters {filters}). Write it again "
                "with gzip, for example with h5repack -f SHUF -f GZIP=4."
            )
        longest = longest_unchecked(self.size)
        if not deflate or dataset.get_storage_size() <= longest:
            return
        for part in _chunks(dataset):
            if part.size > longest and inflates_beyond(
                dataset.read_direct_chunk(part.chunk_offset)[1], chunk
            ):
                raise InputError(
                    f"{self.path}: a compressed part of {name} is longer than the {chunk:,} bytes that the file "
                    "declares. The file is broken; download it again."
                )

    def _check_strings(self, dataset: h5py.Dataset, name: str) -> None:
        """Refuse strings that repeat one part of a small file so often that they fill the memory.

        Arrays of strings hold the places of the strings in the file; all may be the same.
        """
        n = math.prod(dataset.shape or ())
        if self.size > _SMALL or n * self.size <= self.most:
            return
        if n > self.size:  # each string takes a byte at least, or is empty
            self._refuse_size(name, dataset.shape, n * 16, f"in a file of {self.size:,} bytes")
        step, total = max(1, self.most // self.size), 0
        for index in np.ndindex(*dataset.shape[:-1]):
            for start in range(0, dataset.shape[-1], step):
                total += _length(dataset[(*index, slice(start, start + step))])
                if total > self.most:
                    self._refuse_size(name, dataset.shape, total, f"in a file of {self.size:,} bytes")


def _length(values: np.ndarray) -> int:
    """Bytes of the strings and arrays in an array of objects, or in the fields of a record array."""
    if values.dtype.names:
        return sum(_length(values[name]) for name in values.dtype.names)
    if values.dtype.kind != "O":
        return 0
    return sum(
        getattr(value, "nbytes", None) or len(value) for value in values.ravel() if hasattr(value, "__len__")
    )


def _chunks(dataset: h5d.DatasetID) -> list[Any]:
    """Where the chunks of a dataset are, and their stored sizes."""
    if hasattr(dataset, "chunk_iter"):  # not with HDF5 before 1.12.3
        found: list[Any] = []
        dataset.chunk_iter(lambda part: found.append(part))
        return found
    return [dataset.get_chunk_info(i) for i in range(min(dataset.get_num_chunks(), 1000))]
