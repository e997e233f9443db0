"""Checkpoints: a run that was killed ends in the same bits; files that do not fit are not used."""

import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import amilst_lite as amilst
from amilst_lite import checkpoint as checkpoint_module
from amilst_lite import estimator, io
from amilst_lite.checkpoint import Checkpoint, fingerprint
from amilst_lite.cli import main
from amilst_lite.errors import AmilstWarning, InputError, recorded_warnings, warn

pytestmark = pytest.mark.usefixtures("light_figures_of_the_module")

QUICK = {"epochs": 4, "n_init": 6, "shrinkage": 0.2}


class Killed(BaseException):
    """Not an Exception, as KeyboardInterrupt."""


def section(n=200):
    adata = amilst.simulate_section(n, 60, 3, seed=1)
    adata.obs["section"] = np.where(
        adata.obsm["spatial"][:, 0] < adata.obsm["spatial"][:, 0].mean(), "a", "b"
    )
    return adata


def number(name, checkpoint, value=7):
    """A step whose result is a number, and whether it was computed."""
    computed = []

    def compute():
        computed.append(value)
        return value

    found = checkpoint.stage(
        name, compute, lambda n: {"deep": {"n": np.array(n)}}, lambda kept: int(kept["deep"]["n"])
    )
    return found, bool(computed)


class Clock:
    """In place of the module time."""

    now = 0.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(checkpoint_module, "time", clock)
    return clock


def takes(clock, seconds, result=None):
    """A function that takes so many seconds."""

    def compute():
        clock.now += seconds
        return result

    return compute


# --- the class --------------------------------------------------------------------------------


def test_a_stage_is_read_again(tmp_path):
    folder = tmp_path / "checkpoint"
    first = Checkpoint(folder, interval=0.0)
    first.begin("settings", np.arange(3))
    assert number("one", first) == (7, True) and first.exists
    again = Checkpoint(folder, interval=0.0)
    again.begin("settings", np.arange(3))
    assert number("one", again, 8) == (7, False)
    assert [path.name for path in folder.iterdir()] == ["one.npz"]
    again.clear()
    assert not folder.exists() and not again.exists


@pytest.mark.parametrize("parts", [("settings", np.arange(4)), ("others", np.arange(3)), ()])
def test_another_input_is_computed_again(tmp_path, parts, caplog):
    first = Checkpoint(tmp_path, interval=0.0)
    first.begin("settings", np.arange(3))
    number("one", first)
    other = Checkpoint(tmp_path, interval=0.0)
    other.begin(*parts)
    with caplog.at_level("INFO", logger="amilst_lite"):
        assert number("one", other, 8) == (8, True)
    assert "another input or other settings" in caplog.text


def test_stamp_and_version_belong_to_the_fingerprint(tmp_path, monkeypatch):
    for stamp in ("first", "second"):
        checkpoint = Checkpoint(tmp_path, interval=0.0, stamp=stamp)
        checkpoint.begin()
        assert number("one", checkpoint)[1]
    before = fingerprint("a", {"b": None}, np.ones(2))
    assert before == fingerprint("a", {"b": None}, np.ones(2))
    assert before != fingerprint("a", {"b": None}, np.ones(2, np.float32))
    monkeypatch.setattr("amilst_lite.checkpoint.__version__", "other")
    assert before != fingerprint("a", {"b": None}, np.ones(2))


@dataclasses.dataclass
class Pair:
    first: object
    second: tuple


def table():
    columns = {
        "category": pd.Categorical(["b", None, "a"], categories=["b", "a"], ordered=True),
        "number": [1.5, np.nan, -0.0],
        "flag": [True, False, True],
        "text": np.array(["x", None, "z"], dtype=object),
        "string": pd.array(["x", "y", "µ"], dtype="string"),
    }
    return pd.DataFrame(columns, index=pd.Index(["p", "q", "r"], dtype=object, name="spot"))


def test_results_of_every_kind_come_back(tmp_path):
    matrix = sparse.random(5, 4, 0.5, format="csr", dtype=np.float32, random_state=0)
    matrix.indices, matrix.indptr = matrix.indices.astype(np.int64), matrix.indptr.astype(np.int64)
    value = {
        "plain": [None, True, 2**70, 0.1, -np.inf, "µ"],
        "nested": {"empty": {}, "tuple": (1, [2.5], ())},
        "scalars": (np.float32(0.1), np.int8(3), np.str_("a")),
        "arrays": [np.zeros((0, 3)), np.array(2), np.array(["a", "bc"]), np.asfortranarray(np.eye(3) + 1)],
        "objects": np.array([["a", None], [1.5, "b"]], dtype=object),
        "pair": Pair(np.arange(3), (1, np.nan)),
    }
    tables = {"spots": table(), "counted": table().reset_index(drop=True), "none": table().iloc[:0]}
    for _ in range(2):  # computed, then read
        checkpoint = Checkpoint(tmp_path, interval=0.0)
        found = checkpoint.stage("value", lambda: value)
        frames, counts = checkpoint.stage("tables", lambda: (tables, matrix))
    value["pair"] = {"first": np.arange(3), "second": (1, np.nan)}
    assert repr(found) == repr(value)
    for mine, one in zip(found["arrays"], value["arrays"], strict=True):
        assert mine.dtype == one.dtype and mine.flags.f_contiguous == one.flags.f_contiguous
    for name, frame in tables.items():
        pd.testing.assert_frame_equal(frames[name], frame)
        assert type(frames[name].index) is type(frame.index)
    assert counts.indices.dtype == counts.indptr.dtype == np.int64 and (counts != matrix).nnz == 0


@pytest.mark.parametrize(
    "value",
    [object(), {1: 2}, np.array([object()]), pd.DataFrame([[1, 2]], columns=["a", "a"]), {"a"}, np.zeros(2, "i4,f4")],
)  # fmt: skip
def test_other_results_are_not_kept(tmp_path, value, caplog):
    checkpoint = Checkpoint(tmp_path, interval=0.0)
    with caplog.at_level("INFO", logger="amilst_lite"):
        assert checkpoint.stage("one", lambda: value) is value
    assert not checkpoint.exists and "no checkpoint of one" in caplog.text


def test_warnings_are_issued_again(tmp_path):
    def inner():
        warn("from inside")
        return 1

    def outer(checkpoint):
        def compute():
            warn("before")
            return checkpoint.stage("inner", inner)

        return compute

    for _ in range(2):
        checkpoint = Checkpoint(tmp_path, interval=0.0)
        with pytest.warns(AmilstWarning), recorded_warnings() as texts:
            assert checkpoint.stage("outer", outer(checkpoint)) == 1
        assert texts == ["before", "from inside"]


def damage(path, how):
    if how == "flipped":  # in the data of the last array
        content = bytearray(path.read_bytes())
        content[content.index(np.array(7).tobytes())] ^= 1
        path.write_bytes(content)
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-50])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "compressed":
        with np.load(path) as file:
            np.savez_compressed(path, **{name: file[name] for name in file.files})
    elif how == "object":
        np.savez(path, document=np.array([object()]))
    else:
        path.write_bytes(b"\x80\x04not an archive")


@pytest.mark.parametrize("how", ["flipped", "cut", "empty", "compressed", "object", "pickle"])
def test_damaged_files_are_computed_again(tmp_path, how, caplog):
    checkpoint = Checkpoint(tmp_path, interval=0.0)
    checkpoint.begin()
    number("one", checkpoint)
    damage(tmp_path / "one.npz", how)
    with caplog.at_level("INFO", logger="amilst_lite"):
        assert number("one", checkpoint, 8) == (8, True)
    assert "is computed again" in caplog.text


def kept(folder):
    return sorted(path.stem for path in folder.glob("*.npz"))


def test_short_steps_are_not_kept(tmp_path, clock):
    checkpoint = Checkpoint(tmp_path, interval=20.0)
    for name, seconds in (("a", 0.4), ("b", 0.6), ("c", 0.4), ("d", 30.0)):
        checkpoint.stage(name, takes(clock, seconds))
    assert kept(tmp_path) == ["b", "d"]


def test_large_results_of_short_steps_are_not_kept(tmp_path, clock, monkeypatch):
    monkeypatch.setattr(checkpoint_module, "_BYTES", 4e6)  # 200 kB a second
    checkpoint = Checkpoint(tmp_path, interval=20.0)
    for name, seconds, n_bytes in (
        ("small", 1.1, 200_000),
        ("large", 0.9, 200_000),
        ("long", 20.1, 5_000_000),
    ):
        checkpoint.stage(name, takes(clock, seconds, np.zeros(n_bytes, np.uint8)))
    assert kept(tmp_path) == ["long", "small"]


def test_steps_inside_a_step(tmp_path, clock):
    """Their time is not that of the step around them if they are kept, and is if they are not."""

    def outer(checkpoint, seconds):
        def compute():
            for place in range(3):
                checkpoint.stage(f"inner-{place}", takes(clock, seconds))
            clock.now += 0.1

        return compute

    checkpoint = Checkpoint(tmp_path / "kept", interval=20.0)
    checkpoint.stage("outer", outer(checkpoint, 1.0))
    assert kept(tmp_path / "kept") == ["inner-0", "inner-1", "inner-2"]
    checkpoint = Checkpoint(tmp_path / "short", interval=20.0)
    checkpoint.stage("outer", outer(checkpoint, 0.2))
    assert kept(tmp_path / "short") == ["outer"]


def test_the_results_keep_their_space(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(checkpoint_module.shutil, "disk_usage", lambda _: SimpleNamespace(free=10_000))
    checkpoint = Checkpoint(tmp_path, interval=0.0)
    with caplog.at_level("INFO", logger="amilst_lite"):
        checkpoint.stage("large", lambda: np.zeros(1000))
    checkpoint.stage("small", lambda: np.zeros(100))
    assert kept(tmp_path) == ["small"] and "too little space" in caplog.text


def test_without_a_folder_nothing_is_kept():
    without = Checkpoint()
    without.begin(np.ones(3))
    assert number("one", without) == (7, True)
    without.clear()


def test_disk_errors_do_not_end_the_run(tmp_path, caplog, monkeypatch):
    def full(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez", full)
    checkpoint = Checkpoint(tmp_path, interval=0.0)
    checkpoint.begin()
    with caplog.at_level("INFO", logger="amilst_lite"):
        assert number("one", checkpoint) == (7, True)
    assert "no checkpoint of one was written (no space left" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_other_files_in_the_folder_are_kept(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    checkpoint = Checkpoint(tmp_path, interval=0.0)
    checkpoint.begin()
    number("one", checkpoint)
    checkpoint.clear()
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(InputError, match="is a file"):
        Checkpoint(tmp_path / "notes.txt")


# --- runs -------------------------------------------------------------------------------------


def same(found, expected):
    for place in ("obs", "obsm"):
        for name in getattr(expected, place):
            np.testing.assert_array_equal(
                np.asarray(getattr(found, place)[name]),
                np.asarray(getattr(expected, place)[name]),
                err_msg=name,
            )
    mine, other = found.uns["amilst"], expected.uns["amilst"]
    for name, series in other["losses"].items():
        np.testing.assert_array_equal(mine["losses"][name], series)
    assert list(mine["warnings"]) == list(other["warnings"]) and mine["n_domains"] == other["n_domains"]


QUICK_RUNS = {
    "chosen": {"n_domains": None, "shrinkage": None},
    "joint": {"n_domains": 3, "sample_key": "section", "n_networks": 2, "network_share": 0.4},
    "latent": {"n_domains": 3, "cluster_on": "latent", "noise_band": None},
}


@pytest.fixture(scope="module", autouse=True)
def one_after_the_other():
    """Steps in a fixed order: no clustering beside the training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimator, "n_threads", lambda: 1)
        yield


class Recorded(Checkpoint):
    """Keeps every step, and the names of those that were computed, in the order in which they ended."""

    def __init__(self, folder):
        super().__init__(folder, interval=0.0)
        self.computed = []

    def stage(self, name, compute, *functions, **named):
        def recorded():
            result = compute()
            self.computed.append(name)
            return result

        return super().stage(name, recorded, *functions, **named)


def run(adata, folder, settings, checkpoint):
    """A run with all its results, and what they hold."""
    model = amilst.identify_domains(adata, checkpoint=checkpoint, **{**QUICK, **settings})
    amilst.write_results(adata, folder, model=model, annotation="ground_truth", checkpoint=checkpoint)
    varying = ("run.json", "report.html", "result.h5ad")
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in varying}
    record = json.loads((folder / "run.json").read_text())
    return files | {name: value for name, value in record.items() if name not in ("seconds", "peak_memory")}


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory, light_figures_of_the_module):
    """By its name: the section before and after a run, what it wrote, its steps and its checkpoint."""
    runs = {}

    def of(name):
        if name not in runs:
            start = section()
            start.X.data[: start.X.indptr[1]] = 0  # a spot without counts: a warning
            start.X.eliminate_zeros()
            folder, finished = tmp_path_factory.mktemp(name), start.copy()
            checkpoint = Recorded(folder / "checkpoint")
            written = run(finished, folder / "out", QUICK_RUNS[name], checkpoint)
            runs[name] = start, finished, written, checkpoint.computed, folder / "checkpoint"
        return runs[name]

    return of


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("chosen", "selection-4"),
        ("chosen", "mixture"),
        ("chosen", "analysis-enrichment"),
        ("joint", "correct"),
        ("latent", "train"),
    ],
)
@pytest.mark.filterwarnings("ignore::amilst_lite.errors.AmilstWarning")
def test_continued_run_ends_in_the_same_bits(tmp_path, whole_run, name, last):
    """Killed after the step ``last``: that and those before it are not computed again."""
    start, expected, written, steps, complete = whole_run(name)
    done = steps[: steps.index(last) + 1]
    (tmp_path / "checkpoint").mkdir()
    for step in done:
        shutil.copy(complete / f"{step}.npz", tmp_path / "checkpoint")
    checkpoint, found = Recorded(tmp_path / "checkpoint"), start.copy()
    assert run(found, tmp_path / "out", QUICK_RUNS[name], checkpoint) == written
    same(found, expected)
    assert checkpoint.computed == [step for step in steps if step not in done]


@pytest.mark.filterwarnings("ignore::amilst_lite.errors.AmilstWarning")
def test_every_long_step_is_kept(whole_run):
    _, finished, _, steps, complete = whole_run("chosen")
    assert kept(complete) == sorted(steps)  # no two have the same name
    tried = [f"selection-{k}" for k in finished.uns["amilst"]["selection"]["n_domains"]]
    names = ["graph", "prepare", "filter", "share", "train", *tried, "cluster", "refine", "scores"]
    assert [step for step in steps if step in names] == names
    assert (
        {f"analysis-{name}" for name in amilst.analysis.CHEAP}
        < set(steps)
        < set(whole_run("joint")[3]) | set(steps)
    )
    assert sum(step.startswith("mixture-held-out-") for step in steps) == 3
    assert "correct" in whole_run("joint")[3]


@pytest.mark.parametrize("lost", [(), ("train",), ("share", "train"), ("mixture", "cluster")])
@pytest.mark.filterwarnings("ignore::amilst_lite.errors.AmilstWarning")
def test_run_with_clustering_beside_the_training_is_continued(tmp_path, whole_run, monkeypatch, lost):
    start, expected, _, _, complete = whole_run("chosen")
    monkeypatch.setattr(estimator, "n_threads", lambda: 2)
    shutil.copytree(complete, tmp_path / "checkpoint")
    for step in lost:
        (tmp_path / "checkpoint" / f"{step}.npz").unlink()
    checkpoint, found = Recorded(tmp_path / "checkpoint"), start.copy()
    amilst.identify_domains(found, checkpoint=checkpoint, **{**QUICK, **QUICK_RUNS["chosen"]})
    same(found, expected)
    assert sorted(checkpoint.computed) == sorted(lost)


class Stopped(Recorded):
    """Killed in the first step that is not in the checkpoint."""

    def stage(self, name, compute, *functions, **named):
        def kill():
            self.computed.append(name)
            raise Killed

        return super().stage(name, kill, *functions, **named)


@pytest.mark.filterwarnings("ignore::amilst_lite.errors.AmilstWarning")
def test_other_counts_or_settings_are_not_continued(tmp_path, whole_run):
    start, expected, _, _, complete = whole_run("joint")
    shutil.copytree(complete, tmp_path / "checkpoint")
    options = {**QUICK, **QUICK_RUNS["joint"]}
    other, found = start.copy(), start.copy()
    other.X = other.X[:, ::-1].tocsr()  # the same names, places and totals
    amilst.identify_domains(found, checkpoint=Stopped(tmp_path / "checkpoint"), **options)
    same(found, expected)
    for adata, changes in ((start, {"n_components": 5}), (start, {"seed": 1}), (other, {})):
        checkpoint = Stopped(tmp_path / "checkpoint")
        with pytest.raises(Killed):
            amilst.identify_domains(adata.copy(), checkpoint=checkpoint, **{**options, **changes})
        assert checkpoint.computed == ["graph"]


@pytest.fixture
def always(monkeypatch):
    """Every stage is written, however short."""
    original = Checkpoint.__init__

    def init(self, folder=None, **options):
        original(self, folder, **{**options, "interval": 0.0})

    monkeypatch.setattr(Checkpoint, "__init__", init)


@pytest.mark.usefixtures("always")
def test_interrupted_command_is_continued(tmp_path, capsys, monkeypatch):
    adata, places = section(), tmp_path / "places.csv"
    adata.to_df().to_csv(tmp_path / "counts.csv")
    pd.DataFrame(adata.obsm["spatial"], adata.obs_names, ["x", "y"]).to_csv(places, index_label="spot")
    flags = ["--epochs", "4", "--n-init", "6", "--shrinkage", "0.2", "-k", "3"]
    command = ["run", str(tmp_path / "counts.csv"), "--coordinates", str(places), *flags, "-o"]
    assert main([*command, str(tmp_path / "expected")]) == 0
    assert not list(tmp_path.glob(".*"))
    (tmp_path / ".out.checkpoint").mkdir()
    (tmp_path / ".out.checkpoint" / "old.npz").write_bytes(b"of a run that nobody continues")

    def interrupt(*_, **__):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

    with monkeypatch.context() as patch:
        patch.setattr(estimator, "find_domains", interrupt)
        assert main([*command, str(tmp_path / "out")]) == 130
    assert "--resume continues this run" in capsys.readouterr().err
    assert [path.name for path in tmp_path.glob(".*")] == [".out.checkpoint"]
    assert not (tmp_path / "out").exists() and "old" not in kept(tmp_path / ".out.checkpoint")
    with monkeypatch.context() as patch:
        patch.setattr(io, "read", interrupt)  # not called
        assert main([*command, str(tmp_path / "out"), "--resume"]) == 0
    shown = capsys.readouterr().err
    assert "read: from the checkpoint" in shown and "train: from the checkpoint" in shown
    found, expected = (ad.read_h5ad(tmp_path / name / "result.h5ad") for name in ("out", "expected"))
    same(found, expected)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.usefixtures("always")
def test_run_whose_disk_was_full_is_continued(tmp_path, capsys, monkeypatch):
    section().write_h5ad(tmp_path / "section.h5ad")
    command = ["run", str(tmp_path / "section.h5ad"), "--epochs", "4", "-k", "3", "-o", str(tmp_path / "out")]

    def fail(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(io, "write_h5ad", fail)
        assert main(command) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "(No space left on device). Free some space, or choose another place. Afterwards the same" in last
    assert last.endswith("command with --resume continues this run.") and not (tmp_path / "out").exists()
    assert main([*command, "--resume"]) == 0
    assert "train: from the checkpoint" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"section.h5ad", "out"}


@pytest.mark.usefixtures("always")
def test_errors_delete_the_checkpoint(tmp_path, monkeypatch):
    """They would come again."""
    section().write_h5ad(tmp_path / "section.h5ad")

    def fail(*_, **__):
        assert (tmp_path / ".out.checkpoint" / "train.npz").exists()
        raise InputError("it cannot be done")

    monkeypatch.setattr(estimator, "find_domains", fail)
    command = ["run", str(tmp_path / "section.h5ad"), "--epochs", "4", "-k", "3", "-o", str(tmp_path / "out")]
    assert main(command) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"section.h5ad"}


@pytest.mark.slow
def test_killed_command_is_continued(tmp_path):
    """kill -9 at random moments, then --resume: the same bits, no stray file."""
    section(1500).write_h5ad(tmp_path / "section.h5ad")
    program = (
        "import sys\n"
        "from amilst_lite import checkpoint, cli\n"
        "start = checkpoint.Checkpoint.__init__\n"
        "def init(self, folder=None, **options): start(self, folder, **{**options, 'interval': 0.0})\n"
        "checkpoint.Checkpoint.__init__ = init\n"
        "sys.exit(cli.main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", program, "run", str(tmp_path / "section.h5ad"), "-k", "3", "-q", "-o"]
    began = time.perf_counter()
    assert subprocess.run([*command, str(tmp_path / "expected")], check=False).returncode == 0
    whole = time.perf_counter() - began
    expected = ad.read_h5ad(tmp_path / "expected" / "result.h5ad")
    rng = np.random.default_rng(0)
    for moment in rng.uniform(0.1, 1.0, 10) * whole:
        out = tmp_path / "out"
        process = subprocess.Popen([*command, str(out)])
        time.sleep(moment)
        process.kill()
        process.wait()
        more = ["--force"] if out.exists() else []
        assert subprocess.run([*command, str(out), "--resume", *more], check=False).returncode == 0
        same(ad.read_h5ad(out / "result.h5ad"), expected)
        assert {path.name for path in tmp_path.iterdir()} == {"section.h5ad", "expected", "out"}
        for path in out.iterdir():
            path.unlink()
        out.rmdir()
