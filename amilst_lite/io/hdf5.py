"""Opening HDF5 files that may come from anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from ..errors import InputError
from .files import reading

_LARGE = 2**28  # bytes; below that a wrong size does no harm
_COMPRESSION = 2000  # gzip compresses to a thousandth at best


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
        would be opened in its place; or it declares arrays that it is too small to hold.
    """
    with reading(source or path, expected), h5py.File(path, "r") as file:
        _check_group(file, source or path)
        yield file


def _check_group(group: h5py.Group, path: Path) -> None:
    for name in group:
        link = group.get(name, getlink=True)
        if isinstance(link, h5py.ExternalLink):
            raise InputError(
                f"{path}: {group.name.rstrip('/')}/{name} is a link into another file ({link.filename!r}), which "
                "is not followed. Copy the data into this file, for example with h5repack or h5copy."
            )
        if not isinstance(link, h5py.HardLink):
            continue  # a soft link leads to something in this file that is visited by its own name
        item = group[name]
        if isinstance(item, h5py.Group):
            _check_group(item, path)
        elif isinstance(item, h5py.Dataset):
            _check_dataset(item, path)


def _check_dataset(dataset: h5py.Dataset, path: Path) -> None:
    if dataset.external or dataset.is_virtual:
        raise InputError(
            f"{path}: the values of {dataset.name} are in other files, which are not opened. Copy them into "
            "this file, for example with h5repack."
        )
    declared, stored = dataset.nbytes, dataset.id.get_storage_size()
    if declared > _LARGE and declared > _COMPRESSION * stored:
        raise InputError(
            f"{path}: {dataset.name} declares an array of shape {dataset.shape}, {declared / 2**30:,.1f} GiB, of "
            f"which {stored:,} bytes are stored. The file is broken or incomplete; download it again."
        )
