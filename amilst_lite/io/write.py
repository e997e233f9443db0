"""Writing so that a name never stands for a half-written file."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import InputError
from .files import PathLike, listing


@contextmanager
def atomic_path(target: PathLike, *, overwrite: bool = False) -> Iterator[Path]:
    """Hand out a temporary name beside ``target``; rename it to ``target`` when all went well.

    The temporary name keeps the ending, by which many writers choose the format. If the body raises,
    the temporary file goes and ``target`` stays as it was. Missing parent folders are made, and go again.

    Raises
    ------
    InputError
        ``target`` exists and ``overwrite`` is false, or its folder cannot be written.
    """
    target = Path(target).expanduser().resolve()
    if target.is_dir():
        raise InputError(f"{target} is a folder; expected the name of a file.")
    if target.exists() and not overwrite:
        raise InputError(f"{target} exists. Choose another name, or overwrite it (--force).")
    with _parents(target):
        temporary = _temporary_name(target)
        try:
            yield temporary
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(target: PathLike, *, overwrite: bool = False) -> Iterator[Path]:
    """Hand out a temporary folder beside ``target``; it becomes ``target`` when all went well.

    With ``overwrite`` into a folder that exists, its files are replaced one by one, each at a stroke;
    other files in it stay. If the body raises, nothing changes.

    Raises
    ------
    InputError
        ``target`` is a file, or a folder that is not empty while ``overwrite`` is false, or its place
        cannot be written.
    """
    target = Path(target).expanduser().resolve()
    if target.exists() and not target.is_dir():
        raise InputError(f"{target} is a file; expected the name of a folder.")
    if target.is_dir() and not overwrite and any(target.iterdir()):
        raise InputError(
            f"The folder {target} is not empty (it holds {listing(target)}). "
            "Choose another name, or overwrite its files (--force)."
        )
    if target.is_dir() and not os.access(target, os.W_OK):
        raise InputError(f"The folder {target} cannot be written. Choose another place.")
    with _parents(target):
        temporary = _temporary_name(target)
        with _writing(temporary):
            temporary.mkdir()
        try:
            yield temporary
            if target.is_dir():
                for file in sorted(path for path in temporary.rglob("*") if path.is_file()):
                    place = target / file.relative_to(temporary)
                    place.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(file, place)
            else:
                os.replace(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _temporary_name(target: Path) -> Path:
    return target.with_name(f".{target.stem}.{secrets.token_hex(4)}{target.suffix}")


@contextmanager
def _parents(target: Path) -> Iterator[None]:
    """Make the folders that lead to ``target``; take those made away again if the body raises."""
    missing = [folder for folder in target.parents if not folder.exists()]  # innermost first
    with _writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(target.parent, os.W_OK):
            raise PermissionError(f"no permission to write in {target.parent}")
    try:
        yield
    except BaseException:
        for folder in missing:
            with suppress(OSError):  # someone else has put something there
                folder.rmdir()
        raise


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"{target} cannot be written ({error}). Choose another place.") from error
