"""The command line: what it leaves, what it says, what it refuses."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest

import amilst_lite as amilst
from amilst_lite.cli import main

QUICK = ["--epochs", "4", "--members", "2", "--n-init", "6", "--filter-degree", "16"]


@pytest.fixture(scope="module")
def section(tmp_path_factory):
    path = tmp_path_factory.mktemp("section") / "section.h5ad"
    amilst.simulate_section(250, 60, 3, seed=1).write_h5ad(path)
    return path


def run(section, out, *more):
    return main(["run", str(section), "--n-domains", "3", "-o", str(out), *QUICK, *map(str, more)])


def refused(capsys, *arguments):
    """The one line of an error; nothing else may have been said, and no traceback."""
    assert main([str(one) for one in arguments]) == 2
    captured = capsys.readouterr()
    last = captured.err.strip().splitlines()[-1]
    assert last.startswith("amilst: error: ")
    assert "Traceback" not in captured.err
    return last


def test_run_leaves_its_files_and_says_so(section, tmp_path, capsys):
    out = tmp_path / "deep" / "out"
    assert run(section, out, "--annotation", "ground_truth", "--seed", 3) == 0
    said = capsys.readouterr().err
    assert {p.name for p in out.iterdir()} == {
        "result.h5ad", "domains.csv", "domains.png", "losses.png", "run.json",
    }  # fmt: skip
    assert [p.name for p in out.parent.iterdir()] == ["out"]  # no temporary folder left
    record = json.loads((out / "run.json").read_text())
    assert record["seed"] == 3 and record["config"]["train"]["epochs"] == 4
    assert f"ARI {record['scores']['domain']['ari']:.3f}" in said
    assert "domains.csv" in said and "epoch 4/4" in said
    assert "\r" not in said  # plain lines when not on a terminal
    assert ad.read_h5ad(out / "result.h5ad").obs["amilst_domain"].nunique() == 3


def test_same_seed_same_files(section, tmp_path):
    for name in ("a", "b"):
        assert run(section, tmp_path / name, "--quiet") == 0
    assert (tmp_path / "a/domains.csv").read_bytes() == (tmp_path / "b/domains.csv").read_bytes()
    first, second = (ad.read_h5ad(tmp_path / name / "result.h5ad") for name in ("a", "b"))
    np.testing.assert_array_equal(first.obsm["X_amilst"], second.obsm["X_amilst"])


def test_existing_output_is_kept_unless_forced(section, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    assert "--force" in refused(capsys, "run", section, "-k", 3, "-o", out, *QUICK)
    assert [p.name for p in out.iterdir()] == ["mine.txt"]
    assert run(section, out, "--force", "--quiet") == 0
    assert (out / "mine.txt").read_text() == "keep" and (out / "run.json").exists()


def test_quiet_says_nothing(section, tmp_path, capsys):
    assert run(section, tmp_path / "out", "--quiet") == 0
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_a_bar_on_a_terminal(capsys, monkeypatch):
    from amilst_lite.cli import _Console

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    console = _Console(quiet=False)
    console.progress(1, 2, {"network": 0.5})
    console.progress(2, 2, {"network": 0.25})
    console.say("done")
    said = capsys.readouterr().err
    assert said.count("\r") == 2 and "2/2  loss 0.2500 \ndone\n" in said


def test_annotation_from_a_table(section, tmp_path):
    truth = ad.read_h5ad(section).obs["ground_truth"].astype(str)
    table = tmp_path / "truth.csv"
    truth.rename("layer").rename_axis("spot").sample(frac=1, random_state=0).to_csv(table)
    assert run(section, tmp_path / "out", "--quiet", "--annotation", table) == 0
    record = json.loads((tmp_path / "out/run.json").read_text())
    assert record["annotation"] == "layer" and record["scores"]["domain"]["n_scored"] == 250


def test_a_counts_table_with_coordinates(section, tmp_path):
    adata = ad.read_h5ad(section)
    with gzip.open(tmp_path / "counts.tsv.gz", "wt") as stream:
        adata.to_df().astype(int).to_csv(stream, sep="\t")
    # float64, so that the text holds every digit: other digits would break ties between neighbours otherwise
    xy = adata.obsm["spatial"].astype(np.float64)
    pd.DataFrame(xy, index=adata.obs_names, columns=["x", "y"]).to_csv(tmp_path / "xy.csv")
    assert run(
        tmp_path / "counts.tsv.gz", tmp_path / "out", "--quiet", "--coordinates", tmp_path / "xy.csv"
    ) == 0  # fmt: skip
    assert run(section, tmp_path / "direct", "--quiet") == 0
    table, direct = (
        pd.read_csv(tmp_path / name / "domains.csv").set_index("spot") for name in ("out", "direct")
    )
    pd.testing.assert_series_equal(table["domain"], direct["domain"])


def write(path, change):
    adata = amilst.simulate_section(200, 60, 3, seed=1)
    change(adata)
    adata.write_h5ad(path)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.obsm.pop("spatial"), "no coordinates"),
        (lambda a: a.obsm["spatial"].__setitem__((0, 0), np.nan), "NaN|finite"),
        (lambda a: a.obsm["spatial"].__setitem__((0, 0), np.inf), "inf|finite"),
        (lambda a: a.obsm["spatial"].fill(1.0), "place"),
        (lambda a: a.X.data.__setitem__(0, -1), "negative"),
        (lambda a: a.X.data.__setitem__(0, np.nan), "finite"),
    ],
    ids=["no coordinates", "nan", "inf", "one place", "negative", "nan counts"],
)
def test_wrong_sections(tmp_path, capsys, change, message):
    import re

    path = write(tmp_path / "bad.h5ad", change)
    line = refused(capsys, "run", path, "-k", 3, "-o", tmp_path / "out", *QUICK)
    assert re.search(message, line)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.h5ad"]  # nothing half-written


def test_wrong_files(tmp_path, capsys):
    out = tmp_path / "out"
    assert "no file or folder" in refused(capsys, "run", tmp_path / "none.h5ad", "-k", 3, "-o", out)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["something"] = [1]
    assert "something" in refused(capsys, "run", tmp_path / "other.h5", "-k", 3, "-o", out)
    (tmp_path / "broken.h5ad").write_bytes(b"not hdf5 at all")
    assert "broken.h5ad" in refused(capsys, "run", tmp_path / "broken.h5ad", "-k", 3, "-o", out)
    assert not out.exists()


def test_wrong_options(section, tmp_path, capsys):
    out = tmp_path / "out"
    base = ("run", section, "-o", out)
    assert "at least 2" in refused(capsys, *base, "-k", 1)
    assert "only 250 spots" in refused(capsys, *base, "-k", 251)
    assert "250" in refused(capsys, *base, "-k", 3, "--n-neighbors", 250)
    assert "'layer'" in refused(capsys, *base, "-k", 3, "--annotation", "layer")
    assert "no column 'slide'" in refused(capsys, *base, "-k", 3, "--sample-key", "slide")
    assert "device" in refused(capsys, *base, "-k", 3, "--device", "gpu")
    assert "TrainConfig.corruption" in refused(capsys, *base, "-k", 3, "--corruption", 2)
    assert not out.exists()


def test_output_that_cannot_be_written(section, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert "file" in refused(capsys, "run", section, "-k", 3, "-o", tmp_path / "file")
    assert "written" in refused(capsys, "run", section, "-k", 3, "-o", tmp_path / "file" / "below")
    if os.geteuid() != 0:
        (tmp_path / "locked").mkdir(mode=0o555)
        assert "written" in refused(capsys, "run", section, "-k", 3, "-o", tmp_path / "locked" / "out")


def test_barcodes_that_do_not_match(section, tmp_path, capsys):
    table = tmp_path / "xy.csv"
    pd.DataFrame({"x": [1.0, 2.0], "y": [1.0, 2.0]}, index=["AAA-1", "CCC-1"]).to_csv(table)
    line = refused(capsys, "run", section, "-k", 3, "-o", tmp_path / "out", "--coordinates", table)
    assert "AAA-1" in line


def test_warnings_are_one_line(section, tmp_path, capsys):
    path = write(tmp_path / "log.h5ad", lambda a: setattr(a, "X", a.X.log1p()))
    assert run(path, tmp_path / "out", "--quiet") == 0
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and said[0].startswith("amilst: warning: ") and "whole numbers" in said[0]


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(amilst.InputError):
        main(["run", str(tmp_path / "none"), "-k", "3", "-o", str(tmp_path / "out"), "--debug"])


def test_interrupt_leaves_nothing(section, tmp_path, capsys, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("amilst_lite.pipeline.identify_domains", stop)
    assert run(section, tmp_path / "out") == 130
    assert "interrupted" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_demo_simulate_score_info(tmp_path, capsys):
    out = tmp_path / "demo"
    assert (
        main(["demo", "-o", str(out), "--n-spots", "300", "--n-genes", "60", "--true-domains", "3", *QUICK])
        == 0
    )
    said = capsys.readouterr().err.strip().splitlines()
    assert any("ARI" in line and "ground_truth" in line for line in said)
    assert said[-1].startswith("left in") and "result.h5ad" in said[-1]

    made = tmp_path / "made.h5ad"
    assert (
        main(["simulate", "-o", str(made), "--n-spots", "200", "--n-genes", "40", "--true-domains", "3"]) == 0
    )
    assert ad.read_h5ad(made).shape == (200, 40)
    assert "--force" in refused(capsys, "simulate", "-o", made)

    assert main(["score", str(out / "result.h5ad"), "--annotation", "ground_truth"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["ari"] == json.loads((out / "run.json").read_text())["scores"]["domain"]["ari"]

    assert main(["info", str(made)]) == 0
    assert "200 spots × 40 genes" in capsys.readouterr().out
    assert main(["info"]) == 0
    assert "torch: " in capsys.readouterr().out
    assert main(["info", "--settings"]) == 0
    listed = capsys.readouterr().out
    from amilst_lite.config import Config

    for name in Config.owners():
        assert "--" + name.replace("_", "-") in listed


@pytest.mark.parametrize("command", [[], ["run"], ["demo"], ["simulate"], ["score"], ["info"]])
def test_help_fits_the_screen(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert len(said.splitlines()) <= 45
    assert max(map(len, said.splitlines())) <= 100


def test_no_command_prints_help(capsys):
    assert main([]) == 2
    assert "COMMAND" in capsys.readouterr().out


def test_version_and_module_door():
    done = subprocess.run(
        [sys.executable, "-m", "amilst_lite", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == f"amilst-lite {amilst.__version__}"


def test_settings_are_parsed_by_their_types(section, tmp_path):
    out = tmp_path / "out"
    assert run(
        section, out, "--quiet", "--feature-widths", "12,5", "--n-top-genes", "none", "--scale-genes", "yes",
        "--link-loss", "masked",
    ) == 0  # fmt: skip
    config = json.loads((out / "run.json").read_text())["config"]
    assert config["network"]["feature_widths"] == [12, 5]
    assert config["preprocess"]["scale_genes"] is True
    assert config["preprocess"]["n_top_genes"] == "none"


def test_on_a_real_section(shared_dir, tmp_path):
    path = Path(shared_dir) / "data" / "starmap_mpfc_BZ5.h5ad"
    if not path.exists():
        pytest.skip(f"no {path.name}")
    out = tmp_path / "out"
    assert main(["run", str(path), "-k", "4", "-o", str(out), "--annotation", "ground_truth", "--quiet"]) == 0
    assert json.loads((out / "run.json").read_text())["scores"]["domain"]["ari"] > 0.55
