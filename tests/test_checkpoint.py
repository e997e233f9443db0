"""Checkpoints: a run that was killed ends in the same bits; files that do not fit are not used."""

import os
import signal
import subprocess
import sys
import time

import anndata as ad
import numpy as np
import pytest

import amilst_lite as amilst
from amilst_lite import estimator, pipeline
from amilst_lite.checkpoint import Checkpoint, fingerprint
from amilst_lite.cli import main
from amilst_lite.errors import AmilstWarning, InputError

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
    """A stage whose result is a number."""
    computed = []

    def compute():
        computed.append(value)
        return value

    found = checkpoint.stage(
        name, compute, lambda n: {"deep": {"n": np.array(n)}}, lambda arrays: int(arrays["deep"]["n"])
    )
    return found, bool(computed)


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


def damage(path, how):
    if how == "cut":
        path.write_bytes(path.read_bytes()[:-50])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "compressed":
        with np.load(path) as file:
            np.savez_compressed(path, **{name: file[name] for name in file.files})
    elif how == "object":
        np.savez(path, fingerprint=np.array([object()]))
    else:
        path.write_bytes(b"\x80\x04not an archive")


@pytest.mark.parametrize("how", ["cut", "empty", "compressed", "object", "pickle"])
def test_damaged_files_are_computed_again(tmp_path, how, caplog):
    checkpoint = Checkpoint(tmp_path, interval=0.0)
    checkpoint.begin()
    number("one", checkpoint)
    damage(tmp_path / "one.npz", how)
    with caplog.at_level("INFO", logger="amilst_lite"):
        assert number("one", checkpoint, 8) == (8, True)
    assert "is computed again" in caplog.text


def test_short_runs_write_nothing(tmp_path):
    checkpoint = Checkpoint(tmp_path / "checkpoint", interval=100.0)
    checkpoint.begin()
    assert number("one", checkpoint) == (7, True)
    assert not (tmp_path / "checkpoint").exists()
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
    assert "no checkpoint was written (no space left" in caplog.text
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


JOINT = {"sample_key": "section", "n_networks": 2, "network_share": 0.4}


@pytest.mark.parametrize(
    ("stage", "n_domains", "settings"),
    [
        ("_train", 3, {}),
        ("section_effect", 3, JOINT),
        ("find_domains", 3, JOINT),
        ("find_domains", 3, {"cluster_on": "latent", "noise_band": None}),
        ("find_domains", None, {}),
    ],
)
@pytest.mark.filterwarnings("ignore::amilst_lite.errors.AmilstWarning")
def test_continued_run_ends_in_the_same_bits(tmp_path, monkeypatch, stage, n_domains, settings):
    options = {**QUICK, **settings, "n_domains": n_domains}
    expected = section()
    expected.X[0] = 0  # a spot without counts: a warning
    expected.X.eliminate_zeros()
    start = expected.copy()
    whole = amilst.identify_domains(expected, **options)

    def kill(*_, **__):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(estimator.AMILST if stage == "_train" else estimator, stage, kill)
        with pytest.raises(Killed):
            amilst.identify_domains(start.copy(), checkpoint=Checkpoint(tmp_path, interval=0.0), **options)
    written = {path.stem for path in tmp_path.glob("*.npz")}
    assert "prepare" in written and ("train" in written) == (stage == "find_domains")
    assert ("selection" in written) == (n_domains is None)

    def recompute(*_, **__):
        raise AssertionError("a stage of the checkpoint was computed again")

    monkeypatch.setattr(pipeline, "prepare", recompute)
    if "filter" in written:
        monkeypatch.setattr(estimator, "fit_denoise", recompute)
    if "train" in written:
        monkeypatch.setattr(estimator.AMILST, "_train", recompute)
    monkeypatch.setattr(estimator, "select_n_domains", recompute)
    found = start.copy()
    model = amilst.identify_domains(found, checkpoint=Checkpoint(tmp_path, interval=0.0), **options)
    same(found, expected)
    model.save(tmp_path / "one.h5")
    whole.save(tmp_path / "other.h5")
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "other.h5").read_bytes()


def test_other_counts_or_settings_are_not_continued(tmp_path):
    checkpoint = Checkpoint(tmp_path, interval=0.0, stamp="first")
    amilst.identify_domains(section(), 3, checkpoint=checkpoint, **QUICK)
    other = section()
    other.X = other.X[:, ::-1].tocsr()  # the same names, places and totals
    for start, changes, stamp in (
        (section(), {"n_components": 5}, "first"),
        (section(), {}, "second"),
        (other, {}, "second"),
    ):
        found, expected = start.copy(), start.copy()
        again = Checkpoint(tmp_path, interval=0.0, stamp=stamp)
        amilst.identify_domains(found, 3, checkpoint=again, **QUICK, **changes)
        amilst.identify_domains(expected, 3, **QUICK, **changes)
        same(found, expected)


@pytest.fixture
def always(monkeypatch):
    """Every stage is written, however short."""
    original = Checkpoint.__init__

    def init(self, folder=None, **options):
        original(self, folder, **{**options, "interval": 0.0})

    monkeypatch.setattr(Checkpoint, "__init__", init)


@pytest.mark.usefixtures("always")
def test_interrupted_command_is_continued(tmp_path, capsys, monkeypatch):
    section().write_h5ad(tmp_path / "section.h5ad")
    flags = ["--epochs", "4", "--n-init", "6", "--shrinkage", "0.2", "-k", "3"]
    command = ["run", str(tmp_path / "section.h5ad"), *flags, "-o"]
    assert main([*command, str(tmp_path / "expected")]) == 0
    assert not list(tmp_path.glob(".*"))

    def interrupt(*_, **__):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

    with monkeypatch.context() as patch:
        patch.setattr(estimator, "find_domains", interrupt)
        assert main([*command, str(tmp_path / "out")]) == 130
    assert "--resume continues this run" in capsys.readouterr().err
    assert [path.name for path in tmp_path.glob(".*")] == [".out.checkpoint"] and not (
        tmp_path / "out"
    ).exists()
    assert main([*command, str(tmp_path / "out"), "--resume"]) == 0
    assert "train: from the checkpoint" in capsys.readouterr().err
    found, expected = (ad.read_h5ad(tmp_path / name / "result.h5ad") for name in ("out", "expected"))
    same(found, expected)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.usefixtures("always")
def test_checkpoints_without_resume_are_deleted(tmp_path, monkeypatch):
    section().write_h5ad(tmp_path / "section.h5ad")
    command = ["run", str(tmp_path / "section.h5ad"), "--epochs", "4", "-k", "3", "-o", str(tmp_path / "out")]

    def fail(*_, **__):
        raise InputError("it cannot be done")

    with monkeypatch.context() as patch:
        patch.setattr(estimator, "find_domains", fail)
        assert main(command) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"section.h5ad"}
    (tmp_path / ".out.checkpoint").mkdir()
    (tmp_path / ".out.checkpoint" / "train.npz").write_bytes(b"of a run that was killed")
    assert main(command) == 0
    assert not list(tmp_path.glob(".*"))


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


def test_warnings_of_the_preparation_are_issued_again(tmp_path):
    adata = section()
    adata.X[0] = 0
    adata.X.eliminate_zeros()
    for _ in range(2):
        found = adata.copy()
        with pytest.warns(AmilstWarning, match="1 of 200 spots have no counts"):
            amilst.identify_domains(found, 3, checkpoint=Checkpoint(tmp_path, interval=0.0), **QUICK)
        assert len(found.uns["amilst"]["warnings"]) == 1
