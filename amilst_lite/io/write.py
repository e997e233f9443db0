"""Atomic writing: a file or a results folder appears under its name only once it is complete."""

from __future__ import annotations

import os
import secrets
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import AmilstWarning, InputError
from .files import PathLike, checked_path, listing

RECORD = "run.json"
"""The file by which a folder is recognized as the results of a run."""


@contextmanager
def atomic_path(target: PathLike, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary path next to ``target`` and rename it to ``target`` if the body succeeds.

    If the body raises, the temporary file is removed and ``target`` is unchanged. Missing parent folders
    are created, and removed again on failure. A symbolic link is followed: the file it refers to is replaced.

    Parameters
    ----------
    target : path-like
        The file to write. The temporary name has the same extension, from which many writers infer the
        format.
    overwrite : bool
        Replace an existing file.

    Raises
    ------
    InputError
        ``target`` is empty, a folder or a device; it exists and ``overwrite`` is false; or its folder
        cannot be created or written.
    """
    target = _resolved(target)
    if target.is_dir():
        raise InputError(f"{target} is a folder; expected the name of a file.")
    if target.exists():
        if not target.is_file():
            raise InputError(f"{target} is not a regular file. Choose another name.")
        if not overwrite:
            raise InputError(f"{target} exists. Choose another name, or overwrite it (--force).")
    with _parents(target):
        temporary = _hidden_name(target)
        try:
            yield temporary
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(target: PathLike, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder next to ``target`` and rename it to ``target`` if the body succeeds.

    With ``overwrite`` an earlier run is replaced as a whole, so that no file of it remains. It is renamed
    and deleted only once the new folder is complete: if the body raises, ``target`` is unchanged. A
    symbolic link is followed: the folder it refers to is replaced.

    Parameters
    ----------
    target : path-like
        The folder to write. Missing parent folders are created, and removed again on failure.
    overwrite : bool
        Replace the results of an earlier run, that is, a folder that contains ``run.json``. Any other
        folder with content is never deleted.

    Warns
    -----
    AmilstWarning
        The earlier results could not be deleted; the message names the folder that remains.

    Raises
    ------
    InputError
        ``target`` is empty, a file or a mount point; a folder with content (see ``overwrite``); or its
        place cannot be written.
    """
    target = _resolved(target)
    _check_replaceable(target, overwrite)
    with _parents(target):
        temporary = _hidden_name(target)
        with _writing(temporary):
            temporary.mkdir()
        try:
            yield temporary
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        try:
            _check_replaceable(target, overwrite)  # another process may have written there in the meantime
            _replace_folder(target, temporary)
        except (InputError, OSError) as error:
            raise InputError(
                f"The results are complete but could not be moved to {target} ({error}). "
                f"They are in {temporary}."
            ) from error


def _check_replaceable(target: Path, overwrite: bool) -> None:
    """Refuse a folder target that cannot be replaced, or whose content must not be deleted."""
    if not target.exists():
        return
    if not target.is_dir():
        raise InputError(f"{target} is a file; expected the name of a folder.")
    if os.path.ismount(target):
        raise InputError(f"{target} is a mount point and cannot be replaced. Choose a folder inside it.")
    with _writing(target):
        is_empty = next(target.iterdir(), None) is None
    if is_empty:
        return
    if not overwrite:
        raise InputError(
            f"The folder {target} is not empty (it contains {listing(target)}). "
            "Choose another name, or replace the results of an earlier run (--force)."
        )
    if not (target / RECORD).is_file():
        raise InputError(
            f"The folder {target} does not look like the results of a run: it has no {RECORD} and contains "
            f"{listing(target)}. It is not deleted. Choose another name, or delete it yourself."
        )


def _replace_folder(target: Path, complete: Path) -> None:
    """Rename ``complete`` to ``target``; what was there is deleted afterwards, or restored on failure."""
    if not target.exists():
        complete.rename(target)
        return
    old = _hidden_name(target)
    target.rename(old)
    try:
        complete.rename(target)
    except BaseException:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)
    if old.exists():
        warnings.warn(
            f"The earlier results could not be deleted completely; what remains is in {old}.",
            AmilstWarning,
            stacklevel=4,
        )


def _resolved(target: PathLike) -> Path:
    path = checked_path(target)
    with _writing(path):
        try:
            return path.resolve()
        except RuntimeError as error:  # a loop of symbolic links, before Python 3.13
            raise OSError(str(error)) from error


def _hidden_name(target: Path) -> Path:
    return target.with_name(f".{target.stem}.{secrets.token_hex(4)}{target.suffix}")


@contextmanager
def _parents(target: Path) -> Iterator[None]:
    """Create the missing parent folders of ``target``; remove them again if the body raises."""
    missing = [folder for folder in target.parents if not folder.exists()]  # innermost first
    with _writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(target.parent, os.W_OK):
            raise PermissionError(f"no permission to write in {target.parent}")
    try:
        yield
    except BaseException:
        for folder in missing:
            with suppress(OSError):  # not empty
                folder.rmdir()
        raise


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"{target} cannot be written ({error}). Choose another place.") from error
