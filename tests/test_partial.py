"""Files that are replaced once their new content is complete."""

import os
import subprocess
import sys

import pytest

import amilst_lite as amilst
from amilst_lite import partial
from amilst_lite.model_file import write_model
from amilst_lite.partial import replacing

KILLED = """
import os, sys
from pathlib import Path
from amilst_lite.partial import replacing
with replacing(Path(sys.argv[1])) as temporary:
    temporary.write_text("half of it")
    os.kill(os.getpid(), 9)
"""


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def leave_behind(target):
    """What a process that was killed has left; its name."""
    before = set(names(target.parent))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    assert (
        subprocess.run([sys.executable, "-c", KILLED, target], env=environment, check=False).returncode == -9
    )
    (name,) = set(names(target.parent)) - before
    return name


def test_the_file_is_replaced_at_the_end(tmp_path):
    target = tmp_path / "model.h5"
    target.write_text("old")
    with replacing(target) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old" and temporary.parent == tmp_path
    assert target.read_text() == "new" and names(tmp_path) == ["model.h5"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_errors_leave_nothing(tmp_path, error):
    target = tmp_path / "model.h5"
    target.write_text("old")
    with pytest.raises(error), replacing(target) as temporary:  # noqa: PT012
        temporary.write_text("half of it")
        raise error
    with pytest.raises(FileNotFoundError), replacing(target):
        pass  # nothing was written
    assert target.read_text() == "old" and names(tmp_path) == ["model.h5"]


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_what_killed_processes_have_left_is_removed(tmp_path):
    name = leave_behind(tmp_path / "model.h5")
    prefix, process, token = name.rsplit("-", 2)
    elsewhere = name.replace(partial.HOST, "elsewhere")
    others = [
        f"{prefix}-{os.getpid()}-{token}",  # of a process that runs
        elsewhere,
        name.replace("model.h5", "other.h5"),
        ".model.h5.0123abcd",
        f"{prefix}-{process}-mine",
    ]
    for other in others:
        (tmp_path / other).write_text("")
    write_model(tmp_path / "model.h5", {}, {})
    assert names(tmp_path) == sorted([*others, "model.h5"])


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_figures_remove_them_too(tmp_path):
    figure = pytest.importorskip("matplotlib.figure").Figure()
    leave_behind(tmp_path / "figure.png")
    amilst.plot.save(figure, tmp_path / "figure.png")
    assert names(tmp_path) == ["figure.png"]


def test_long_names(tmp_path):
    target = tmp_path / ("µ" * 120 + ".h5")  # 243 bytes
    with replacing(target) as temporary:
        temporary.write_text("new")
    assert target.read_text() == "new"
