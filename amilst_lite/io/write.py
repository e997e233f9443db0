"""Atomic writing: a file or a results folder appears under its name only once it is complete.

What is written has a temporary name beside its target, on the same file system: ``.OUT.amilst-new-HOST-1a2b3c4d`` for
``OUT``. It is flushed to the disk and then renamed. Meanwhile ``.OUT.amilst-lock`` is locked (``flock``), so that
a second process that writes the same target is refused. The system releases the lock of a process that was
killed, so whoever holds it knows that everything else with a temporary name of this target is left over, and
removes it.
"""

from __future__ import annotations

import ctypes
import errno
import io
import logging
import os
import re
import secrets
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, warn
from ..partial import HOST as _HOST
from .files import PathLike, checked_path, listing

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger("amilst_lite")

RECORD = "run.json"
"""The file by which a folder is recognized as the results of a run."""

_WITHOUT_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
_NO_FSYNC_OF_FOLDERS = {errno.EINVAL, errno.EOPNOTSUPP, errno.EBADF, errno.ENOSYS}
_WITHOUT_EXCHANGE = {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP}
_DISK_ERRORS = {errno.ENOSPC, errno.EFBIG, errno.EROFS, errno.EIO, getattr(errno, "EDQUOT", errno.ENOSPC)}
_SCRATCH = "amilst-scratch-"
_MOST_KEPT = 2**26
"""Bytes of a file on a full disk that are kept in memory so that HDF5 can close it."""

_ONE_AT_A_TIME = threading.Lock()

_unfinished: list[tuple[Callable[[Path], Any], Path]] = []
"""What is to be done, last first, to undo the writes in progress; see `discard_unfinished`."""


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
        ``target`` is empty, a folder or a device; it exists and ``overwrite`` is false; another process is
        writing it; its folder cannot be created or written; or the disk is full or fails.
    """
    target = _resolved(target)

    def check() -> None:
        if target.is_dir():
            raise InputError(f"{target} is a folder; expected the name of a file.")
        if target.exists():
            if not target.is_file():
                raise InputError(f"{target} is not a regular file. Choose another name.")
            if not overwrite:
                raise InputError(f"{target} exists. Choose another name, or overwrite it (--force).")

    check()
    with _parents(target), _locked(target):
        check()  # with the lock, nobody else changes it
        temporary = _temporary(target)
        with _undone(_remove, temporary), _storing(target, temporary, target.parent):
            yield temporary
            if temporary.exists():
                _sync(temporary)
            os.replace(temporary, target)
            _sync(target.parent)


@contextmanager
def atomic_folder(target: PathLike, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder next to ``target`` and rename it to ``target`` if the body succeeds.

    With ``overwrite`` an earlier run is replaced as a whole, so that no file of it remains. It is exchanged
    and deleted only once the new folder is complete and on the disk: if the body raises, ``target`` is unchanged. A
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
        ``target`` is empty, a file or a mount point; a folder with content (see ``overwrite``); another process
        is writing it; its place cannot be written; or the disk is full or fails.
    """
    target = _resolved(target)
    _check_replaceable(target, overwrite)
    with _parents(target), _locked(target):
        _check_replaceable(target, overwrite)  # results that were set aside may be back
        temporary = _temporary(target)
        with _undone(_remove, temporary) as keep:
            with _storing(target, temporary, temporary):
                temporary.mkdir()
                yield temporary
                for path in (*temporary.rglob("*"), temporary):
                    _sync(path)
            try:
                _check_replaceable(target, overwrite)  # somebody may have written there by other means
                _replace_folder(target, temporary)
            except (InputError, OSError) as error:
                keep()
                raise InputError(
                    f"The results are complete but could not be moved to {target} ({error}). "
                    f"They are in {_kept(target, temporary)}."
                ) from error


@contextmanager
def atomic_files(folder: PathLike, names: Sequence[str]) -> Iterator[Path]:
    """Yield a temporary folder inside ``folder`` and move its files there if the body succeeds.

    If the body raises, ``folder`` is unchanged.

    Parameters
    ----------
    folder : path-like
        Created if missing, and removed again on failure.
    names : sequence of str
        Files of earlier results, which are removed if they are not written again. Other files are kept.

    Raises
    ------
    InputError
        ``folder`` is a file or cannot be written; another process is writing it; or the disk is full or fails.
    """
    target = _resolved(folder)
    if target.exists() and not target.is_dir():
        raise InputError(f"{target} is a file; expected the name of a folder.")
    inside = target / "results"  # only its place and name are used
    with _parents(inside), _locked(inside):
        temporary = _temporary(inside)
        with _undone(_remove, temporary), _storing(target, temporary, temporary):
            temporary.mkdir()
            yield temporary
            written = sorted(
                temporary.iterdir(), key=lambda path: path.name == RECORD
            )  # the record is the last
            for path in written:
                _sync(path)
            for name in {*names} - {path.name for path in written}:
                (target / name).unlink(missing_ok=True)
            for path in written:
                os.replace(path, target / path.name)
            _sync(target)


def write_h5ad(adata: AnnData, path: PathLike) -> None:
    """Write an AnnData as h5ad; an error of the disk is an OSError like that of any other file.

    HDF5 cannot close a file that it cannot write: on a full disk ``AnnData.write_h5ad`` prints pages of
    tracebacks, and the interpreter crashes at its end. Here HDF5 writes through Python, and does not see the
    error before the file is closed.

    Parameters
    ----------
    adata : AnnData
        Columns of strings become categorical, as with ``AnnData.write_h5ad``.
    path : path-like
        Replaced if it exists, in place; see `atomic_path`.

    Raises
    ------
    OSError
        The file cannot be written; what is there is incomplete.
    """
    import h5py
    from anndata.io import write_elem

    adata.strings_to_categoricals()
    if adata.raw is not None:
        adata.strings_to_categoricals(adata.raw.var)
    with Path(path).open("w+b", buffering=0) as handle:
        storage = _Storage(handle.fileno())
        try:
            with _signals_deferred(storage.stop), _strings_accepted(), h5py.File(storage, "w") as file:
                write_elem(file, "/", adata)
                if adata.raw is None and "raw" in file:
                    del file["raw"]  # that there is none, in a form that anndata 0.11 cannot read
        except Exception as error:
            if storage.error is not None:
                raise storage.error from error
            raise
        if storage.error is not None:
            raise storage.error


@contextmanager
def _strings_accepted() -> Iterator[None]:
    """Within: anndata before 0.13 writes strings of pandas, which it returns from later files but otherwise refuses."""
    import anndata

    if tuple(map(int, version("anndata").split(".")[:2])) >= (0, 13):
        yield
        return
    with _ONE_AT_A_TIME, anndata.settings.override(allow_write_nullable_strings=True):  # of the process
        yield


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder for temporary files, removed at the end; those that killed processes have left are removed, too.

    While a process uses its folder, it holds a lock on it.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{_SCRATCH}*"):
        with suppress(OSError), _opened(left) as descriptor:
            if left.stat().st_uid == os.getuid() and _try_lock(descriptor):
                _remove(left)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_SCRATCH))
        with _undone(_remove, folder), ExitStack() as stack:
            if os.name == "posix":
                descriptor = stack.enter_context(_opened(folder))
                with suppress(OSError):
                    _try_lock(descriptor)
                if not folder.exists():  # taken for one that was left, before it was locked
                    continue
            yield folder
            return


def disk_error(error: BaseException, folder: Path) -> OSError | None:
    """The error of the disk behind ``error``, if ``folder`` is full, failing, read-only or gone; otherwise None."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _DISK_ERRORS:
            return cause
        cause = cause.__cause__ or cause.__context__
    if not folder.exists():
        return FileNotFoundError(errno.ENOENT, "its folder has disappeared", str(folder))
    return None


def discard_unfinished() -> None:
    """Undo the writes in progress in this process, which is about to end without unwinding."""
    while _unfinished:
        undo, path = _unfinished.pop()
        with suppress(OSError):
            undo(path)


# --- the disk ---------------------------------------------------------------------------------


class _Storage(io.RawIOBase):
    """A file for h5py's driver of Python files, which accepts everything also after a failed write.

    After the first error nothing more is written. Small blocks, of which the metadata of HDF5 consist, are kept
    in memory, so that HDF5 can read them again and close the file.
    """

    def __init__(self, descriptor: int) -> None:
        self.error: OSError | None = None
        self._descriptor = descriptor
        self._position = self._end = 0
        self._lost: list[tuple[int, bytes]] = []
        self._n_lost = 0

    def stop(self) -> None:
        """Write nothing more."""
        self.error = self.error or InterruptedError(errno.EINTR, os.strerror(errno.EINTR))

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + (0, self._position, self._end)[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def truncate(self, size: int | None = None) -> int:
        self._end = self._position if size is None else size
        if self.error is None:
            try:
                os.ftruncate(self._descriptor, self._end)
            except OSError as error:
                self.error = error
        return self._end

    def readinto(self, buffer: Any) -> int:
        # h5py 3.8 passes a view of its own, which takes no bytes for a slice
        buffer = memoryview(buffer).cast("B")
        os.lseek(self._descriptor, self._position, os.SEEK_SET)
        data = os.read(self._descriptor, len(buffer))
        buffer[: len(data)] = data
        buffer[len(data) :] = bytes(len(buffer) - len(data))
        for start, lost in self._lost:
            low, high = max(start, self._position), min(start + len(lost), self._position + len(buffer))
            if low < high:
                buffer[low - self._position : high - self._position] = lost[low - start : high - start]
        self._position += len(buffer)
        return len(buffer)

    def write(self, data: Any) -> int:
        data = memoryview(data).cast("B")
        if self.error is None:
            try:
                os.lseek(self._descriptor, self._position, os.SEEK_SET)
                rest = data
                while len(rest):
                    rest = rest[os.write(self._descriptor, rest) :]
            except OSError as error:
                self.error = error
        if self.error is not None and self._n_lost + len(data) < _MOST_KEPT:
            self._lost.append((self._position, bytes(data)))
            self._n_lost += len(data)
        self._position += len(data)
        self._end = max(self._end, self._position)
        return len(data)


@contextmanager
def _signals_deferred(stop: Callable[[], None]) -> Iterator[None]:
    """Within: a signal calls ``stop``, and its own handler afterwards.

    A handler that raises, as that of Ctrl-C does, would raise inside HDF5, which cannot close its file then.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # handlers run in the main thread
        return
    received: list[int] = []

    def defer(number: int, _: Any) -> None:
        received.append(number)
        stop()

    numbers = [one for one in (signal.SIGINT, signal.SIGTERM) if callable(signal.getsignal(one))]
    handlers: dict[int, Any] = {number: signal.signal(number, defer) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if received:
            handlers[received[0]](received[0], None)


def _sync(path: Path) -> None:
    """Wait until a file or folder is on the disk, where the file system can say so."""
    is_folder = path.is_dir()
    if os.name != "posix" and is_folder:
        return
    with _opened(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR) as descriptor:
        try:
            os.fsync(descriptor)
        except OSError as error:
            if not is_folder or error.errno not in _NO_FSYNC_OF_FOLDERS:
                raise


@contextmanager
def _storing(target: Path, temporary: Path, folder: Path) -> Iterator[None]:
    """Turn an error of the disk into one about ``target``; those of other files pass unchanged.

    ``temporary`` is what is written, and ``folder`` one that exists as long as it can be written.
    """
    try:
        yield
    except StorageError as error:  # of a write inside this one
        raise StorageError(target, error.reason) from error
    except OSError as error:
        found = disk_error(error, folder)
        if found is None and not str(error.filename or "").startswith(str(temporary)):
            raise
        raise StorageError(target, (found or error).strerror or str(error)) from error


class StorageError(InputError):
    """A target cannot be written."""

    def __init__(self, target: Path, reason: str) -> None:
        super().__init__(f"{target} cannot be written ({reason}). Free some space, or choose another place.")
        self.reason = reason


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"{target} cannot be written ({error}). Choose another place.") from error


# --- one process at a time --------------------------------------------------------------------


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Refuse a target that another process is writing; remove what killed processes have left.

    The lock file is removed before it is unlocked; whoever has opened it before that finds that its name is gone,
    and tries again.
    """
    path = target.with_name(f".{target.name}.amilst-lock")
    while True:
        with _writing(target):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            is_locked = _lock(descriptor, target)
            with suppress(OSError):  # gone, or another file of that name
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    break
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    try:
        with _undone(_remove, path):
            if is_locked:
                with suppress(OSError):  # on a full disk; the lock holds without it
                    os.ftruncate(descriptor, 0)
                    os.write(descriptor, f"process {os.getpid()} on {_HOST}".encode())
                with _writing(target):
                    _clean(target)
            yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, target: Path) -> bool:
    """Lock a file; False where the system or the file system has no locks."""
    try:
        if _try_lock(descriptor):
            return True
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            raise InputError(f"{target} cannot be locked ({error}). Choose another place.") from error
        logger.info(
            "%s is on a file system without locks (%s): start no second run that writes there.",
            target,
            error.strerror,
        )
        return False
    owner = os.read(descriptor, 200).decode(errors="replace") or "another process"
    raise InputError(
        f"{target} is being written by another run ({owner}). Wait until it has ended, or choose another place."
    )


def _try_lock(descriptor: int) -> bool:
    """Lock an open file or folder until it is closed; False if another process has locked it.

    Raises
    ------
    OSError
        There are no locks.
    """
    try:
        import fcntl
    except ImportError as error:  # Windows
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _opened(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    descriptor = os.open(path, flags, 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _temporary(target: Path, kind: str = "new") -> Path:
    """A new name beside ``target``, by which `_clean` finds it again."""
    return target.with_name(f".{target.stem}.amilst-{kind}-{_HOST}-{secrets.token_hex(4)}{target.suffix}")


def _clean(target: Path) -> None:
    """Remove what killed processes of this machine have left of ``target``; restore results set aside.

    On some clusters a lock does not reach other machines: what these have left may still be in use.
    """
    ours = re.compile(
        re.escape(f".{target.stem}.amilst-") + r"(new|old)-(\w+)-[0-9a-f]{8}" + re.escape(target.suffix)
    )
    for path in list(target.parent.iterdir()):
        found = ours.fullmatch(path.name)
        if not found:
            continue
        if found[1] == "old" and not target.exists():
            path.rename(target)
        elif found[2] == _HOST:
            logger.info("removing %s, which an interrupted run has left", path)
            _remove(path)
        else:
            logger.info("a run on %s has left %s; delete it if that run has ended", found[2], path)


# --- replacing and undoing --------------------------------------------------------------------


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
    old: Path | None = None
    if not target.exists():
        complete.rename(target)
    elif _exchange(target, complete):
        old = complete
    else:
        old = _temporary(target, "old")
        with _undone(lambda aside: target.exists() or aside.rename(target), old):
            target.rename(old)
            complete.rename(target)
    try:
        _sync(target.parent)
    except OSError:
        if old != complete or not _exchange(target, complete):
            target.rename(complete)
            if old is not None:
                old.rename(target)
        raise
    if old is None:
        return
    shutil.rmtree(old, ignore_errors=True)
    if old.exists():
        warn(f"The earlier results could not be deleted completely; what remains is in {old}.")


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; False where the system or the file system cannot (see renameat2(2))."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):  # not Linux
        return False
    here, exchange = -100, ctypes.c_uint(2)  # AT_FDCWD, RENAME_EXCHANGE
    if renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0:
        return True
    number = ctypes.get_errno()
    if number in _WITHOUT_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(one), None, str(other))


def _kept(target: Path, complete: Path) -> str:
    """Move complete results to a name that no later run removes, and say where they are."""
    kept = target.with_name(f"{target.name}-{secrets.token_hex(4)}")
    try:
        complete.rename(kept)
    except OSError:
        return f"{complete}; move them before you run again with this name, which deletes them"
    return str(kept)


@contextmanager
def _undone(undo: Callable[[Path], Any], path: Path) -> Iterator[Callable[[], None]]:
    """Call ``undo(path)`` at the end, unless what is yielded was called; `discard_unfinished` does so, too."""
    step = (undo, path)
    _unfinished.append(step)

    def keep() -> None:
        if step in _unfinished:
            _unfinished.remove(step)

    try:
        yield keep
    finally:
        if step in _unfinished:
            with suppress(OSError):
                undo(path)
            keep()


def _remove(path: Path) -> None:
    """Remove a file, or a folder with what is in it; nothing if there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _resolved(target: PathLike) -> Path:
    path = checked_path(target)
    with _writing(path):
        try:
            return path.resolve()
        except RuntimeError as error:  # a loop of symbolic links, before Python 3.13
            raise OSError(str(error)) from error


@contextmanager
def _parents(target: Path) -> Iterator[None]:
    """Create the missing parent folders of ``target``; remove them again unless it is there at the end."""
    missing = [folder for folder in target.parents if not folder.exists()]  # innermost first
    with _writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(target.parent, os.W_OK):
            raise PermissionError(f"no permission to write in {target.parent}")
    with ExitStack() as stack:
        for folder in reversed(missing):
            stack.enter_context(
                _undone(Path.rmdir, folder)
            )  # fails, as it should, if there is something inside
        yield
