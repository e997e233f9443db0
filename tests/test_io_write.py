"""Atomic writing of files and results folders."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from amilst_lite import io
from amilst_lite.errors import AmilstWarning, InputError
from amilst_lite.io import write


def write_and_fail(context, error):
    with context as path:
        (path / "a" if path.is_dir() else path).write_text("incomplete")
        raise error


def write_run(target, *, overwrite=False, **files):
    """Write files of a run, by name without extension, and its record."""
    with io.atomic_folder(target, overwrite=overwrite) as folder:
        for name, text in files.items():
            (folder / name).write_text(text)
        (folder / "run.json").write_text("{}")


def content(folder):
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


# --- files ------------------------------------------------------------------------------------


def test_file_appears_only_when_complete(tmp_path):
    target = tmp_path / "new" / "deep" / "a.csv"
    with pytest.raises(RuntimeError):
        write_and_fail(io.atomic_path(target), RuntimeError)
    assert list(tmp_path.iterdir()) == []
    with io.atomic_path(target) as path:
        assert path.suffix == ".csv"
        path.write_text("complete")
        assert not target.exists()
    assert [p.name for p in target.parent.iterdir()] == ["a.csv"]


def test_file_is_replaced_only_on_request(tmp_path):
    target = tmp_path / "a.csv"
    target.write_text("old")
    message = r"exists\. Choose another name, or overwrite it \(--force\)"
    with pytest.raises(InputError, match=message), io.atomic_path(target):
        pass
    with pytest.raises(KeyboardInterrupt):
        write_and_fail(io.atomic_path(target, overwrite=True), KeyboardInterrupt)
    assert content(tmp_path) == {"a.csv": "old"}
    with io.atomic_path(str(target), overwrite=True) as path:
        path.write_text("new")
    assert content(tmp_path) == {"a.csv": "new"}


def test_file_targets_that_are_refused(tmp_path):
    with pytest.raises(InputError, match="is a folder"), io.atomic_path(tmp_path):
        pass
    with (
        pytest.raises(InputError, match="is not a regular file"),
        io.atomic_path(os.devnull, overwrite=True),
    ):
        pass
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot be written"), io.atomic_path(tmp_path / "file" / "a.csv"):
        pass


# --- folders ----------------------------------------------------------------------------------


def test_folder_appears_only_when_complete(tmp_path):
    target = tmp_path / "new" / "OUT"
    with pytest.raises(RuntimeError):
        write_and_fail(io.atomic_folder(target), RuntimeError)
    assert list(tmp_path.iterdir()) == []
    with io.atomic_folder(target) as folder:
        (folder / "a").write_text("1")
        assert not target.exists()
    assert list(target.parent.iterdir()) == [target]
    with (
        pytest.raises(InputError, match=r"not empty \(it contains 'a'\)\. .* \(--force\)"),
        io.atomic_folder(target),
    ):
        pass


def test_empty_folder_is_accepted(tmp_path):
    (tmp_path / "OUT").mkdir()
    write_run(str(tmp_path / "OUT"), a="1")
    assert content(tmp_path / "OUT") == {"a": "1", "run.json": "{}"}


def test_no_file_of_an_earlier_run_remains(tmp_path):
    target = tmp_path / "OUT"
    write_run(target, a="old", umap="old")
    (target / "folder").mkdir()
    (target / "folder" / "b").write_text("old")
    write_run(target, overwrite=True, a="new")
    assert content(target) == {"a": "new", "run.json": "{}"}
    assert list(tmp_path.iterdir()) == [target]


def test_earlier_run_stays_until_the_new_one_is_complete(tmp_path):
    target = tmp_path / "OUT"
    write_run(target, a="old")
    with io.atomic_folder(target, overwrite=True) as folder:
        (folder / "a").write_text("new")
        assert content(target) == {"a": "old", "run.json": "{}"}
    write_run(target.with_name("again"), a="old")
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error):
            write_and_fail(io.atomic_folder(target.with_name("again"), overwrite=True), error)
    assert content(target.with_name("again")) == {"a": "old", "run.json": "{}"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["OUT", "again"]


@pytest.mark.parametrize("exchange", [True, False])
def test_failure_to_rename_keeps_both_results(tmp_path, monkeypatch, exchange):
    target = tmp_path / "OUT"
    write_run(target, a="old")
    rename = Path.rename

    def fail_once(path, destination):
        if destination == target and (path / "a").read_text() == "new":
            raise OSError("disk error")
        return rename(path, destination)

    def fail(*_):
        raise OSError("disk error")

    monkeypatch.setattr(Path, "rename", fail_once)
    monkeypatch.setattr(write, "_exchange", fail if exchange else lambda *_: False)
    with pytest.raises(
        InputError, match=r"complete but could not be moved to .*disk error.*They are in"
    ) as caught:
        write_run(target, overwrite=True, a="new")
    assert content(target)["a"] == "old"
    (remaining,) = set(tmp_path.iterdir()) - {target}
    assert str(remaining) in str(caught.value) and remaining.name.startswith("OUT-")
    assert content(remaining)["a"] == "new"
    monkeypatch.undo()
    write_run(target, overwrite=True, a="newer")
    assert content(target)["a"] == "newer" and content(remaining)["a"] == "new"  # is not taken for a leftover


@pytest.mark.parametrize("exchange", [True, False])
def test_earlier_results_are_exchanged(tmp_path, monkeypatch, exchange):
    if not exchange:
        monkeypatch.setattr(write, "_exchange", lambda *_: False)
    target = tmp_path / "OUT"
    write_run(target, a="old")
    write_run(target, overwrite=True, b="new")
    assert content(tmp_path) == {"OUT/b": "new", "OUT/run.json": "{}"}


@pytest.mark.parametrize("earlier", [True, False])
@pytest.mark.parametrize("exchange", [True, False])
def test_failing_fsync_of_the_parent_restores_the_earlier_results(tmp_path, monkeypatch, exchange, earlier):
    if not exchange:
        monkeypatch.setattr(write, "_exchange", lambda *_: False)
    target = tmp_path / "OUT"
    if earlier:
        write_run(target, a="old")
    sync = write._sync

    def fail(path):
        if path == tmp_path:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(path)

    monkeypatch.setattr(write, "_sync", fail)
    with pytest.raises(InputError, match="could not be moved to .*Input/output error"):
        write_run(target, overwrite=True, a="new")
    assert target.exists() == earlier
    assert not earlier or content(target)["a"] == "old"


def test_failing_fsync_is_one_message_and_leaves_nothing(tmp_path, monkeypatch):
    target = tmp_path / "OUT"
    write_run(target, a="old")

    def fail(descriptor):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    message = r"OUT cannot be written \(Input/output error\)\. Free some space, or choose another place\."
    with pytest.raises(InputError, match=message):
        write_run(target, overwrite=True, a="new")
    with (
        pytest.raises(InputError, match="a.csv cannot be written"),
        io.atomic_path(tmp_path / "a.csv") as path,
    ):
        path.write_text("1")
    assert content(tmp_path) == {"OUT/a": "old", "OUT/run.json": "{}"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["OUT"]


def test_folders_that_cannot_be_synchronized_are_accepted(tmp_path, monkeypatch):
    fsync = os.fsync

    def no_folders(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", no_folders)
    write_run(tmp_path / "OUT", a="1")
    assert content(tmp_path / "OUT")["a"] == "1"


def test_results_written_by_other_means_meanwhile_are_kept(tmp_path):
    target = tmp_path / "OUT"

    def run():
        with io.atomic_folder(target) as folder:
            (folder / "a").write_text("ours")
            target.mkdir()
            (target / "a").write_text("theirs")

    with pytest.raises(InputError, match=r"could not be moved to .*is not empty.*They are in"):
        run()
    assert content(target)["a"] == "theirs"
    (remaining,) = set(tmp_path.iterdir()) - {target}
    assert content(remaining) == {"a": "ours"}


def test_results_that_cannot_be_deleted_are_named(tmp_path, monkeypatch):
    target = tmp_path / "OUT"
    write_run(target, a="old")
    monkeypatch.setattr(shutil, "rmtree", lambda path, ignore_errors: None)
    with pytest.warns(AmilstWarning, match=r"could not be deleted completely; what remains is in .*\.OUT\."):
        write_run(target, overwrite=True, a="new")
    assert content(target)["a"] == "new"


@pytest.mark.parametrize("name", ["thesis.txt", ".hidden", "data"])
def test_folder_that_is_not_a_run_is_never_deleted(tmp_path, name):
    target = tmp_path / "OUT"
    target.mkdir()
    if name == "data":
        (target / name).mkdir()
    else:
        (target / name).write_text("important")
    with (
        pytest.raises(InputError, match=rf"not look like the results of a run: it has no run\.json.*{name}"),
        io.atomic_folder(target, overwrite=True),
    ):
        pass
    assert [p.name for p in target.iterdir()] == [name]


def test_symbolic_links_are_followed(tmp_path):
    (tmp_path / "disk").mkdir()
    link = tmp_path / "OUT"
    try:
        link.symlink_to(tmp_path / "disk" / "results")  # does not exist yet
    except OSError:
        pytest.skip("this system does not allow symbolic links")
    write_run(link, a="old")
    write_run(link, overwrite=True, b="new")
    assert link.is_symlink() and content(tmp_path / "disk" / "results") == {"b": "new", "run.json": "{}"}
    table = tmp_path / "a.csv"
    table.symlink_to(tmp_path / "disk" / "b.csv")
    with io.atomic_path(table) as path:
        path.write_text("1")
    assert table.is_symlink() and (tmp_path / "disk" / "b.csv").read_text() == "1"
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(InputError, match="loop"), io.atomic_folder(loop):
        pass


def test_folder_targets_that_are_refused(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a file; expected"), io.atomic_folder(tmp_path / "file"):
        pass
    with pytest.raises(InputError, match="cannot be written"), io.atomic_folder(tmp_path / "file" / "OUT"):
        pass
    with pytest.raises(InputError, match="is a mount point"), io.atomic_folder(os.sep, overwrite=True):
        pass
    # root, who may run the tests, has all permissions
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(InputError, match="no permission to write"), io.atomic_folder(tmp_path / "OUT"):
        pass


def test_errors_of_the_disk_name_the_target(tmp_path):
    for error in (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), OSError(errno.EDQUOT, "Quota exceeded")):
        with pytest.raises(InputError, match=rf"OUT cannot be written \({error.strerror}\)"):
            write_and_fail(io.atomic_folder(tmp_path / "OUT"), error)
    with pytest.raises(FileNotFoundError):  # of another file
        write_and_fail(io.atomic_folder(tmp_path / "OUT"), FileNotFoundError(errno.ENOENT, "no", "/data/a"))
    for removed in ("parent", "folder"):
        parent = tmp_path / "deep"

        def vanish(parent=parent, removed=removed):
            with io.atomic_folder(parent / "OUT") as folder:
                shutil.rmtree(parent if removed == "parent" else folder)
                (folder / "a").write_text("1")

        with pytest.raises(InputError, match=r"OUT cannot be written \(its folder has disappeared\)"):
            vanish()
    assert list(tmp_path.iterdir()) == []


# --- one process at a time --------------------------------------------------------------------

WRITER = """
import sys, time
from pathlib import Path
from amilst_lite.io.write import atomic_folder, atomic_path
writer, target = sys.argv[1:]
with (atomic_folder if writer == "folder" else atomic_path)(Path(target), overwrite=True) as path:
    if writer == "folder":
        (path / "a").write_text("new")
    print("writing", flush=True)
    time.sleep(60)
"""


def start_writer(writer, target):
    """Another process that is writing ``target``."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", WRITER, writer, str(target)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
    assert process.stdout.readline() == b"writing\n"
    return process


@pytest.mark.parametrize(("writer", "write"), [("folder", io.atomic_folder), ("path", io.atomic_path)])
def test_a_second_process_is_refused_and_a_killed_one_cleaned_up(tmp_path, writer, write):
    target = tmp_path / "OUT"
    process = start_writer(writer, target)
    try:
        owner = rf"OUT is being written by another run \(process {process.pid} on \w+\)"
        with pytest.raises(InputError, match=owner), write(target):
            pass
        assert process.poll() is None and any("amilst-lock" in p.name for p in tmp_path.iterdir())
    finally:
        process.kill()
        process.communicate()
    assert any("amilst-" in p.name for p in tmp_path.iterdir())  # nobody has cleaned up
    with write(target) as path:
        if writer == "folder":
            (path / "a").write_text("1")
        else:
            path.write_text("1")
    assert [p.name for p in tmp_path.iterdir()] == ["OUT"]


def test_a_second_write_of_the_same_process_is_refused(tmp_path):
    with io.atomic_folder(tmp_path / "OUT") as folder:
        with pytest.raises(InputError, match="is being written by another run"):
            write_run(tmp_path / "OUT")
        write_run(tmp_path / "OUT2")
        (folder / "a").write_text("1")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["OUT", "OUT2"]


def test_only_our_own_leftovers_of_this_machine_are_removed(tmp_path, caplog):
    ours = tmp_path / f".OUT.amilst-new-{write._HOST}-0123abcd"
    others = [
        ".OUT.amilst-new-elsewhere-0123abcd", ".OUT.0123abcd", f".OUT2.amilst-new-{write._HOST}-0123abcd",
        f".OUT.amilst-new-{write._HOST}-mine", "OUT-0123abcd",
    ]  # fmt: skip
    for folder in (ours, *(tmp_path / name for name in others)):
        folder.mkdir()
        (folder / "a").write_text("1")
    with caplog.at_level("INFO", logger="amilst_lite"):
        write_run(tmp_path / "OUT")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["OUT", *others])
    assert "a run on elsewhere has left" in caplog.text and f"removing {ours}" in caplog.text


def test_earlier_results_set_aside_by_a_killed_process_are_restored(tmp_path):
    target = tmp_path / "OUT"
    write_run(target, a="old")
    target.rename(write._temporary(target, "old"))  # between the two renames where names cannot be exchanged
    (write._temporary(target)).mkdir()
    with pytest.raises(InputError, match="is not empty"):
        write_run(target)
    assert content(tmp_path) == {"OUT/a": "old", "OUT/run.json": "{}"}


def test_file_systems_without_locks(tmp_path, monkeypatch, caplog):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", no_locks)
    with caplog.at_level("INFO", logger="amilst_lite"):
        write_run(tmp_path / "OUT", a="1")
    assert "file system without locks (No locks available): start no second run" in caplog.text
    assert [p.name for p in tmp_path.iterdir()] == ["OUT"]


def test_discard_unfinished(tmp_path):
    with suppress(InputError, OSError), io.atomic_folder(tmp_path / "new" / "OUT") as folder:
        (folder / "a").write_text("1")
        write.discard_unfinished()
        assert list(tmp_path.iterdir()) == []
        (folder / "b").write_text("1")
    assert list(tmp_path.iterdir()) == [] and write._unfinished == []


# --- several files of a folder ----------------------------------------------------------------


def test_files_are_moved_together(tmp_path):
    target = tmp_path / "new"
    with pytest.raises(KeyboardInterrupt):
        write_and_fail(io.atomic_files(target, ["a"]), KeyboardInterrupt)
    assert not target.exists()
    target.mkdir()
    for name in ("a", "b", "mine"):
        (target / name).write_text("old")
    with io.atomic_files(target, ["a", "b"]) as folder:
        (folder / "a").write_text("new")
        assert (target / "a").read_text() == "old"
    assert content(target) == {"a": "new", "mine": "old"}
    with pytest.raises(InputError, match="is a file"), io.atomic_files(target / "a", []):
        pass


def test_errors_of_a_write_inside_another_name_the_outer_target(tmp_path):
    def body():
        with io.atomic_folder(tmp_path / "OUT") as folder, io.atomic_files(folder, []):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(InputError, match=r"/OUT cannot be written \(No space left on device\)"):
        body()


# --- temporary files --------------------------------------------------------------------------


def test_scratch_folders_of_killed_processes_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    left, other = tmp_path / "amilst-scratch-left", tmp_path / "amilst-other"
    for folder in (left, other):
        folder.mkdir()
        (folder / "a").write_text("1")
    with write.scratch_folder() as used:
        (used / "a").write_text("1")
        assert {path.name for path in tmp_path.iterdir()} == {used.name, other.name}
        with write.scratch_folder() as second:  # `used` is locked
            assert second != used and used.exists()
    assert list(tmp_path.iterdir()) == [other]


# --- h5ad on a full disk ----------------------------------------------------------------------


def example():
    counts = sparse.random(300, 50, 0.2, format="csr", dtype=np.float32, random_state=0)
    adata = ad.AnnData(
        counts, obs=pd.DataFrame({"a": list("xyz") * 100}, index=[f"s{i}" for i in range(300)])
    )
    adata.raw = adata.copy()
    adata.layers["dense"] = counts.toarray()
    adata.uns["nested"] = {"text": "µ", "numbers": np.arange(3)}
    return adata


def items(path):
    """Name → (attributes, values) of everything in an HDF5 file."""
    found = {}

    def add(name, item):
        values = np.asarray(item[()]).tolist() if isinstance(item, h5py.Dataset) else None
        found[name] = ({key: np.asarray(value).tolist() for key, value in item.attrs.items()}, values)

    with h5py.File(path) as file:
        add("/", file["/"])
        file.visititems(add)
    return found


@pytest.mark.parametrize("raw", [True, False])
def test_h5ad_is_that_of_anndata(tmp_path, raw):
    adata = example()
    if not raw:
        del adata.raw  # anndata 0.12 and later can write that there is none, and anndata 0.11 cannot read it
    io.write_h5ad(adata, tmp_path / "ours.h5ad")
    adata.write_h5ad(tmp_path / "theirs.h5ad")
    assert items(tmp_path / "ours.h5ad") == items(tmp_path / "theirs.h5ad")
    assert ad.read_h5ad(tmp_path / "ours.h5ad").obs["a"].dtype == "category"


def test_h5ad_with_the_strings_of_pandas(tmp_path):
    """As in files of later versions; ``AnnData.write_h5ad`` of anndata 0.11 and 0.12 refuses them."""
    text = [f"t{i}" for i in range(300)]
    adata = example()
    adata.obs["unique"] = pd.array(text, dtype="string")
    adata.var["id"] = pd.array(text[:50], dtype="string")
    adata.uns["table"] = pd.DataFrame({"text": pd.array([None, *text], dtype="string")})
    io.write_h5ad(adata, tmp_path / "a.h5ad")
    found = ad.read_h5ad(tmp_path / "a.h5ad")
    assert found.obs["unique"].tolist() == text and found.var["id"].tolist() == text[:50]
    assert found.uns["table"]["text"].dropna().tolist() == text and len(found.uns["table"]) == 301


def test_every_write_of_an_h5ad_may_fail(tmp_path, monkeypatch):
    """The first, second, ... write fails, and all after it; HDF5 closes the file all the same."""
    real, n_writes, limit = os.write, 0, 10**9

    def count(descriptor, data):
        nonlocal n_writes
        n_writes += 1
        if n_writes > limit:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, data)

    monkeypatch.setattr(write.os, "write", count)
    adata = example()
    io.write_h5ad(adata, tmp_path / "a.h5ad")
    for limit in range(n_writes):
        n_writes = 0
        with pytest.raises(OSError, match="No space left") as caught:
            io.write_h5ad(adata, tmp_path / "a.h5ad")
        assert caught.value.errno == errno.ENOSPC and n_writes == limit + 1
    assert limit > 50


def test_an_interrupt_waits_until_hdf5_has_closed_the_file(tmp_path, monkeypatch):
    real, n_writes = os.write, 0

    def interrupt(descriptor, data):
        nonlocal n_writes
        n_writes += 1
        if n_writes == 20:
            signal.raise_signal(signal.SIGINT)
        return real(descriptor, data)

    monkeypatch.setattr(write.os, "write", interrupt)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        io.write_h5ad(example(), tmp_path / "a.h5ad")
    assert n_writes <= 21 and signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("writer", [io.atomic_path, io.atomic_folder])
@pytest.mark.parametrize("target", ["", None])
def test_empty_target_does_not_mean_the_current_folder(tmp_path, monkeypatch, writer, target):
    monkeypatch.chdir(tmp_path)
    with (
        pytest.raises(InputError, match=f"Expected the path of a file or folder; found {target!r}"),
        writer(target, overwrite=True) as path,
    ):
        path.mkdir(exist_ok=True)
    assert list(tmp_path.iterdir()) == []
