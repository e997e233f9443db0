"""Atomic writing of files and results folders."""

import os
import shutil
from pathlib import Path

import pytest

from amilst_lite import io
from amilst_lite.errors import AmilstWarning, InputError


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


def test_failure_to_rename_keeps_both_results(tmp_path, monkeypatch):
    target = tmp_path / "OUT"
    write_run(target, a="old")
    rename = Path.rename

    def fail_once(path, destination):
        if destination == target and (path / "a").read_text() == "new":
            raise OSError("disk error")
        return rename(path, destination)

    monkeypatch.setattr(Path, "rename", fail_once)
    with pytest.raises(
        InputError, match=r"complete but could not be moved to .*disk error.*They are in"
    ) as caught:
        write_run(target, overwrite=True, a="new")
    assert content(target)["a"] == "old"
    (remaining,) = set(tmp_path.iterdir()) - {target}
    assert str(remaining) in str(caught.value)
    assert content(remaining)["a"] == "new"


def test_results_written_by_another_process_meanwhile_are_kept(tmp_path):
    target = tmp_path / "OUT"

    def run():
        with io.atomic_folder(target) as folder:
            (folder / "a").write_text("ours")
            write_run(target, a="theirs")

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
