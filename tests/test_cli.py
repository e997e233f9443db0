"""The command line: what it writes, what it prints, what it refuses."""

import errno
import gzip
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
from contextlib import redirect_stderr
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import amilst_lite as amilst
from amilst_lite import analysis
from amilst_lite.cli import main

QUICK = ["--epochs", "4", "--n-networks", "2", "--n-init", "6", "--shrinkage", "0.2"]
# In another process, which loads everything anew.
QUICKEST = "--epochs 1 --n-networks 1 --n-init 1 --shrinkage 0.2 --network-share 0.2"


@pytest.fixture(scope="module")
def section(tmp_path_factory):
    path = tmp_path_factory.mktemp("section") / "section.h5ad"
    amilst.simulate_section(250, 60, 3, seed=1).write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def finished(section, tmp_path_factory):
    """The folder of a run, and what the run has shown."""
    out = tmp_path_factory.mktemp("finished") / "deep" / "out"
    with redirect_stderr(io.StringIO()) as shown:
        assert run(section, out, "--annotation", "ground_truth", "--seed", 3) == 0
    return out, shown.getvalue()


def write(path, change):
    adata = amilst.simulate_section(200, 60, 3, seed=1)
    change(adata)
    adata.write_h5ad(path)
    return path


def run(section, out, *more):
    return main(["run", str(section), "--n-domains", "3", "-o", str(out), *QUICK, *map(str, more)])


def refused(capsys, *arguments):
    """The last line on stderr of a command that ends with status 2, without a traceback."""
    try:
        status = main([str(one) for one in arguments])
    except SystemExit as stop:  # argparse
        status = stop.code
    assert status == 2
    captured = capsys.readouterr()
    last = captured.err.strip().splitlines()[-1]
    assert re.match(r"amilst( \w+)?: error: ", last)
    assert "Traceback" not in captured.err
    return last


@pytest.fixture(autouse=True)
def no_checkpoints(monkeypatch):
    """On a busy machine, steps of a small run may take long enough to be kept; see test_checkpoint."""
    monkeypatch.setattr("amilst_lite.checkpoint._SHORT", math.inf)


@pytest.fixture
def no_reading(monkeypatch):
    """Fail if an input is read."""

    def fail(*_, **__):
        raise AssertionError("the input was read before the options were validated")

    monkeypatch.setattr("amilst_lite.io.read", fail)


def shell(command, **variables):
    """Run a command line of a shell with ``amilst`` in it."""
    program = f'"{sys.executable}" -m amilst_lite'
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **variables}
    return subprocess.run(
        ["bash", "-c", command.replace("amilst", program)], capture_output=True, env=environment, check=False
    )


# --- run --------------------------------------------------------------------------------------


@pytest.mark.parametrize("long", ["--preset published", "many spots"])
def test_long_training_shows_its_epochs(section, tmp_path, capsys, monkeypatch, long):
    if long == "many spots":
        monkeypatch.setattr("amilst_lite.estimator.MOST_BESIDE", 249)
    assert run(section, tmp_path / "out", *(long.split() if long.startswith("--") else [])) == 0
    assert re.search(r"^  epoch 4/\d: loss \d", capsys.readouterr().err, re.MULTILINE)


def test_run_writes_its_files_and_reports_them(finished):
    out, shown = finished
    assert {p.name for p in out.iterdir()} == {
        "result.h5ad", "domains.csv", "domains.png", "losses.png", "markers.png", "model.h5", "run.json", "report.html",
        "markers.csv", "enrichment.csv", "shapes.csv", "composition.csv", "connectivity.csv",
    }  # fmt: skip
    assert [p.name for p in out.parent.iterdir()] == ["out"]  # no temporary folder remains
    record = json.loads((out / "run.json").read_text())
    assert record["seed"] == 3 and record["config"]["train"]["epochs"] == 4
    assert f"ARI {record['scores']['domain']['ari']:.3f}" in shown
    assert f"Results written to {out}: result.h5ad, domains.csv" in shown and "epoch" not in shown
    assert "\r" not in shown  # plain lines if not on a terminal
    assert ad.read_h5ad(out / "result.h5ad").obs["amilst_domain"].nunique() == 3


def test_apply_labels_another_input_with_the_model(section, finished, tmp_path, capsys, light_figures):
    out = finished[0]
    arguments = [
        "apply",
        out / "model.h5",
        section,
        "-o",
        tmp_path / "new",
        "--annotation",
        "ground_truth",
    ]
    assert main([str(one) for one in arguments]) == 0
    assert {p.name for p in out.iterdir()} - {p.name for p in (tmp_path / "new").iterdir()} == {
        "losses.png", "model.h5",
    }  # fmt: skip
    one, other = (pd.read_csv(folder / "domains.csv") for folder in (out, tmp_path / "new"))
    assert (one["domain"] == other["domain"]).mean() > 0.98
    record = json.loads((tmp_path / "new" / "run.json").read_text())
    assert record["model"] == "model.h5" and "ari" in record["scores"]["domain"]
    assert "ARI" in capsys.readouterr().err


def test_same_seed_same_files_and_quiet_prints_nothing(section, finished, tmp_path, capsys, light_figures):
    assert run(section, tmp_path / "out", "--quiet", "--seed", 3) == 0
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""
    folders = finished[0], tmp_path / "out"
    one, other = ((folder / "domains.csv").read_bytes() for folder in folders)
    assert one == other
    first, second = (ad.read_h5ad(folder / "result.h5ad") for folder in folders)
    np.testing.assert_array_equal(first.obsm["X_amilst"], second.obsm["X_amilst"])


def test_force_replaces_the_whole_folder_of_an_earlier_run(
    section, finished, tmp_path, capsys, light_figures
):
    out = tmp_path / "out"
    shutil.copytree(finished[0], out)
    (out / "umap.png").write_bytes(b"of other domains")
    assert "--force" in refused(capsys, "run", section, "-k", 3, "-o", out, *QUICK)
    assert (out / "umap.png").exists()
    assert run(section, out, "--force", "--quiet", "--seed", 1) == 0
    assert not (out / "umap.png").exists()
    assert json.loads((out / "run.json").read_text())["seed"] == 1


def test_force_does_not_delete_an_input(finished, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(finished[0], out)
    line = refused(capsys, "run", out / "result.h5ad", "-k", 3, "-o", out, "--force", *QUICK)
    assert "in the output folder" in line and (out / "result.h5ad").exists()


def test_a_bar_on_a_terminal(capsys, monkeypatch):
    from amilst_lite.cli.console import Console

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    console = Console(quiet=False)
    console.progress(1, 2, {"network": 0.5})
    console.progress(2, 2, {"network": 0.25})
    console.say("done")
    shown = capsys.readouterr().err
    assert shown.count("\r") == 2 and "2/2  loss 0.2500 \ndone\n" in shown


def test_tables_of_counts_coordinates_and_annotation(section, finished, tmp_path, light_figures):
    adata = ad.read_h5ad(section)
    truth = tmp_path / "truth.csv"
    layers = adata.obs["ground_truth"].astype(str).rename("layer").rename_axis("spot")
    layers.sample(frac=1, random_state=0).to_csv(truth)
    with gzip.open(tmp_path / "counts.tsv.gz", "wt") as stream:
        adata.to_df().astype(int).to_csv(stream, sep="\t")
    # float64, so that the text holds every digit
    xy = adata.obsm["spatial"].astype(np.float64)
    pd.DataFrame(xy, index=adata.obs_names, columns=["x", "y"]).to_csv(tmp_path / "xy.csv")
    out = tmp_path / "out"
    tables = ["--coordinates", tmp_path / "xy.csv", "--annotation", truth]
    assert run(tmp_path / "counts.tsv.gz", out, "--quiet", "--seed", 3, *tables) == 0
    table, direct = (pd.read_csv(folder / "domains.csv").set_index("spot") for folder in (out, finished[0]))
    pd.testing.assert_series_equal(table["domain"], direct["domain"])
    record = json.loads((out / "run.json").read_text())
    assert record["annotation"] == "layer" and record["scores"]["domain"]["n_scored"] == 250


def test_settings_are_parsed_by_their_types(section, tmp_path, light_figures):
    out = tmp_path / "out"
    assert run(
        section, out, "--quiet", "--feature-widths", "12,5", "--n-top-genes", "none", "--adversary", "no"
    ) == 0  # fmt: skip
    config = json.loads((out / "run.json").read_text())["config"]
    assert config["network"]["feature_widths"] == [12, 5]
    assert config["train"]["adversary"] is False
    assert config["preprocess"]["n_top_genes"] == "none"


# --- run with several inputs ------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_sections(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    for name, seed in (("a", 1), ("b", 2)):
        adata = amilst.simulate_section(200, 60, 3, seed=seed)
        adata.obs["in_" + name] = adata.obs["ground_truth"]
        adata.write_h5ad(folder / f"{name}.h5ad")
    return [folder / "a.h5ad", folder / "b.h5ad"]


def test_run_of_several_sections(two_sections, tmp_path, capsys, light_figures):
    out = tmp_path / "out"
    arguments = [*two_sections, "-k", 3, "-o", out, "--epochs", 2, "--shrinkage", 0.2, "--n-init", 6]
    assert main(["run", *map(str, arguments), "--annotation", "in_a"]) == 0
    shown = capsys.readouterr().err.splitlines()
    assert f"reading {two_sections[0]}, {two_sections[1]}" in shown
    assert "60 genes are shared by all sections; a: 60, b: 60" in shown
    assert "no annotation 'in_a' in b" in shown
    record = json.loads((out / "run.json").read_text())
    assert record["input"] == [path.name for path in two_sections]
    assert record["sample_key"] == "section" and record["n_spots"] == 400
    assert record["annotation"] == "in_a" and record["scores"]["domain"]["n_scored"] == 200
    assert {"result.h5ad", "composition.png"} <= set(record["files"]) == {p.name for p in out.iterdir()}
    result = ad.read_h5ad(out / "result.h5ad")
    assert result.obs["section"].value_counts().to_dict() == {"a": 200, "b": 200}
    assert result.obs["in_a"].notna().tolist() == [True] * 200 + [False] * 200
    assert set(result.uns["spatial"]) == {"a", "b"}
    assert pd.read_csv(out / "domains.csv")["spot"].is_unique


def test_options_of_several_sections(two_sections, tmp_path, capsys, monkeypatch, light_figures):
    """What is given to `read_sections` and `identify_domains`; an annotation from a table."""
    given = {}
    original = amilst.identify_domains

    def identify(adata, n_domains, **options):
        given.update(options, columns=list(adata.obs.columns))
        return original(adata, n_domains, **options)

    monkeypatch.setattr("amilst_lite.pipeline.identify_domains", identify)
    table = tmp_path / "truth.csv"
    names = amilst.read_sections(two_sections).obs_names
    frame = pd.DataFrame({"slide": np.tile(["x", "y"], 200)}, index=names).rename_axis("spot")
    frame.to_csv(table)
    out = tmp_path / "out"
    options = ["--quiet", "--annotation", table, "--sample-key", "slide"]
    command = ["run", *two_sections, "-k", 3, "-o", out, *QUICK, *options]
    line = refused(capsys, *command)
    assert "The column 'slide' of " in line and "names of the sections (a, b)" in line
    frame.rename(columns={"slide": "layer"}).to_csv(table)
    assert main(list(map(str, command))) == 0
    assert given["sample_key"] == "slide"
    assert "slide" in given["columns"] and "section" not in given["columns"]
    assert json.loads((out / "run.json").read_text())["scores"]["domain"]["n_scored"] == 400


# --- what is refused --------------------------------------------------------------------------


def test_missing_igraph_and_too_few_spots_are_refused_before_training(section, tmp_path, capsys, monkeypatch):
    def fail(*_, **__):
        raise AssertionError("training began")

    monkeypatch.setattr("amilst_lite.estimator.AMILST.fit", fail)
    monkeypatch.setitem(sys.modules, "igraph", None)
    line = refused(capsys, "run", section, "-k", 3, "-o", tmp_path / "out", "--method", "leiden")
    assert "amilst-lite[leiden]" in line
    small = tmp_path / "small.h5ad"
    ad.read_h5ad(section)[:18].copy().write_h5ad(small)
    assert "--n-domains" in refused(capsys, "run", small, "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()


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


# --- a run is not lost ------------------------------------------------------------------------


def test_warnings_are_one_line_and_recorded(section, tmp_path, capsys, light_figures):
    path = write(tmp_path / "log.h5ad", lambda a: setattr(a, "X", a.X.log1p()))
    truth = ad.read_h5ad(path).obs["ground_truth"].astype(str)
    truth.rename("layer").rename_axis("spot").iloc[:150].to_csv(tmp_path / "truth.csv")
    assert run(path, tmp_path / "out", "--quiet", "--annotation", tmp_path / "truth.csv") == 0
    shown = capsys.readouterr().err.strip().splitlines()
    assert all(line.startswith("amilst: warning: ") for line in shown)
    assert "50 of 200 spots" in shown[0] and "integers" in shown[1]
    recorded = json.loads((tmp_path / "out/run.json").read_text())["warnings"]
    assert ["amilst: warning: " + text for text in recorded] == shown


def test_failed_figure_is_a_warning(section, tmp_path, capsys, monkeypatch, light_figures):
    def fail(*_, **__):
        raise RuntimeError("no ink")

    monkeypatch.setattr("amilst_lite.plot.domains", fail)
    assert run(section, tmp_path / "out") == 0
    shown = capsys.readouterr().err
    assert shown.count("domains.png was left out: no ink") == 1
    assert (tmp_path / "out/result.h5ad").exists()


def test_missing_result_is_an_exit_status(section, tmp_path, monkeypatch, light_figures):
    def fail(*_, **__):
        raise TypeError("no such type in HDF5")

    monkeypatch.setattr("amilst_lite.io.write_h5ad", fail)
    assert run(section, tmp_path / "out", "--quiet") == 1
    assert (tmp_path / "out/domains.csv").exists()


def test_full_disk_is_one_line_and_keeps_earlier_results(section, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "run.json").write_text("earlier")

    def fail(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("amilst_lite.io.write_h5ad", fail)
    line = refused(capsys, "run", section, "-k", 3, "-o", out, "--force", *QUICK)
    assert line.endswith(
        "out cannot be written (No space left on device). Free some space, or choose another place."
    )
    assert [p.name for p in out.iterdir()] == ["run.json"] and (out / "run.json").read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [out]


def test_output_that_another_run_writes_is_refused_before_reading(section, tmp_path, capsys, no_reading):
    with amilst.io.atomic_folder(tmp_path / "out"):
        line = refused(capsys, "run", section, "-k", 3, "-o", tmp_path / "out", *QUICK)
    assert "out is being written by another run" in line


@pytest.mark.skipif(os.name == "nt", reason="needs a shell with pipes")
def test_closed_pipe_does_not_end_a_run(section, tmp_path):
    out = tmp_path / "out"
    command = f'set -o pipefail; amilst run "{section}" -k 3 -o "{out}" {QUICKEST} 2>&1 | head -1'
    done = shell(command)
    assert done.returncode == 0 and done.stdout.count(b"\n") == 1
    assert b"Error" not in done.stdout + done.stderr
    assert {"result.h5ad", "domains.csv", "run.json"} <= {p.name for p in out.iterdir()}


@pytest.mark.skipif(os.name == "nt", reason="needs a shell with pipes")
@pytest.mark.parametrize("command", ["info", "--help"])
def test_output_into_a_closed_pipe_ends_without_an_error(command):
    # the reader has ended before anything is written
    done = shell(f"set -o pipefail; amilst {command} | true")
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(os.name == "nt", reason="needs a shell")
def test_closed_standard_streams(section, tmp_path):
    out = tmp_path / "out"
    command = f'amilst run "{section}" -k 3 -o "{out}" {QUICKEST} >&- 2>&-'
    assert shell(command).returncode == 0
    assert (out / "result.h5ad").exists()


def test_ascii_terminal_shows_escapes(section, monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert main(["info", str(section)]) == 0
    terminal.flush()
    assert rb"250 spots \xd7 60 genes" in terminal.buffer.getvalue()


# --- the other commands -----------------------------------------------------------------------


def test_demo_simulate_score_info(tmp_path, capsys):
    out = tmp_path / "demo"
    assert (
        main(["demo", "-o", str(out), "--n-spots", "300", "--n-genes", "60", "--true-domains", "3", *QUICK])
        == 0
    )
    shown = capsys.readouterr().err.strip().splitlines()
    assert any("ARI" in line and "ground_truth" in line for line in shown)
    assert shown[-1].startswith("Results written to") and "result.h5ad" in shown[-1]

    made = tmp_path / "made.h5ad"
    assert (
        main(["simulate", "-o", str(made), "--n-spots", "200", "--n-genes", "40", "--true-domains", "3"]) == 0
    )
    assert ad.read_h5ad(made).shape == (200, 40)
    assert "--force" in refused(capsys, "simulate", "-o", made)

    assert main(["score", str(out / "result.h5ad"), "--annotation", "ground_truth"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores == json.loads((out / "run.json").read_text())["scores"]["domain"]

    assert main(["info", str(made), "--processes", "4"]) == 0
    assert "with 7 domains, each of 4 processes: about" in capsys.readouterr().out
    assert main(["info", str(made)]) == 0
    assert "200 spots × 40 genes" in capsys.readouterr().out
    assert main(["info"]) == 0
    assert "torch: " in capsys.readouterr().out
    assert main(["info", "--settings"]) == 0
    listed = capsys.readouterr().out
    from amilst_lite.config import Config

    for name in Config.owners():
        assert "--" + name.replace("_", "-") in listed


def test_analyze_writes_tables_and_slots(section, finished, tmp_path, capsys):
    result = finished[0] / "result.h5ad"
    out = tmp_path / "analyses"
    arguments = ["analyze", str(result), "markers", "shapes", "-o", str(out), "--held-out", "--seed", "3"]
    assert main(arguments) == 0
    written = {"markers.csv", "shapes.csv", "result.h5ad", "run.json"}
    assert {p.name for p in out.iterdir()} == written
    record = json.loads((out / "run.json").read_text())
    assert (
        record["command"].startswith("amilst analyze result.h5ad markers") and set(record["files"]) == written
    )
    assert list(pd.read_csv(out / "markers.csv"))[:2] == ["domain", "gene"]
    assert "p_adjusted" in pd.read_csv(out / "markers.csv").columns
    assert "amilst_markers" in ad.read_h5ad(out / "result.h5ad").uns
    assert "Tables written to" in capsys.readouterr().err
    # the record tells that these are results, which may be replaced
    assert "--force" in refused(capsys, "analyze", result, "shapes", "-o", out)
    assert main(["analyze", str(result), "shapes", "-o", str(out), "--force"]) == 0
    assert {p.name for p in out.iterdir()} == written - {"markers.csv"}
    for wrong, said in (("unknown", "choose from markers"), ("comparison", "--condition-key")):
        message = refused(capsys, "analyze", result, wrong, "-o", tmp_path / "other")
        assert said in message and "reading" not in message  # before the file is read
    conditions = refused(capsys, "analyze", result, "--condition-key", "drug", "-o", tmp_path / "other")
    assert "'drug'" in conditions  # compared without being named
    assert "could be repeated" in refused(
        capsys,
        "analyze",
        section,
        "markers",
        "-o",
        tmp_path / "other",
        "--held-out",
        "--domain",
        "ground_truth",
    )
    assert not (tmp_path / "other").exists()


def test_analyze_lists_the_analyses(capsys):
    with pytest.raises(SystemExit):
        main(["analyze", "--help"])
    listed = dict(
        line.split(maxsplit=1) for line in capsys.readouterr().out.partition("analyses:\n")[2].splitlines()
    )
    assert list(listed) == list(analysis.ANALYSES)
    assert {name for name, text in listed.items() if text.startswith("*")} == set(analysis.CHEAP)


def test_plot_draws_the_figures_again(section, finished, tmp_path, capsys):
    result = finished[0] / "result.h5ad"
    arguments = [
        "plot",
        str(result),
        "-o",
        str(tmp_path / "svg"),
        "--format",
        "svg",
        "--annotation",
        "ground_truth",
    ]
    assert main(arguments) == 0
    written = {"domains.svg", "losses.svg", "markers.svg", "run.json"}
    assert {p.name for p in (tmp_path / "svg").iterdir()} == written
    assert main([*arguments[:-2], "--force"]) == 0  # in place of the earlier ones
    assert {p.name for p in (tmp_path / "svg").iterdir()} == written
    assert "<svg" in (tmp_path / "svg" / "domains.svg").read_text()[:2000]
    with_umap = ad.read_h5ad(result)
    with_umap.obsm["X_amilst_umap"] = with_umap.obsm["X_amilst"][:, :2]
    with_umap.write_h5ad(tmp_path / "umap.h5ad")
    assert main(["plot", str(tmp_path / "umap.h5ad"), "-o", str(tmp_path / "png")]) == 0
    assert (tmp_path / "png" / "umap.png").exists()
    assert "Run identify_domains" in refused(capsys, "plot", section, "-o", tmp_path / "none")


def test_score_of_sections_is_that_of_the_run(tmp_path, capsys, light_figures):
    def divide(adata):  # two sections at the same place: spots of the other one are no neighbors
        adata.obs["slide"] = np.where(np.arange(200) % 2, "a", "b")
        adata.obs["plain"] = adata.obs["ground_truth"]

    path = write(tmp_path / "two.h5ad", divide)
    out = tmp_path / "out"
    assert run(path, out, "--quiet", "--sample-key", "slide") == 0
    record = json.loads((out / "run.json").read_text())
    assert record["sample_key"] == "slide"

    def score(*options):
        assert main(["score", str(out / "result.h5ad"), *options]) == 0
        return json.loads(capsys.readouterr().out)

    assert score() == score("--sample-key", "slide") == record["scores"]["domain"]
    assert score("--domain", "amilst_domain_refined") == record["scores"]["refined"]
    plain = score("--domain", "plain")
    by_slide = score("--domain", "plain", "--sample-key", "slide")
    assert plain["chaos"] != by_slide["chaos"]
    assert "integration" not in plain and by_slide["integration"]["labels"] == "domains"
    annotated = score("--annotation", "ground_truth")["integration"]
    assert annotated["labels"] == "annotation" and set(annotated["section_ari"]) == {"a", "b"}


def test_undefined_scores_of_integration_are_null(tmp_path, capsys):
    def divide(adata):
        adata.obs["slide"] = np.where(np.arange(200) < 100, "a", "b")
        adata.obs["one"] = "everywhere"
        # annotated in one section only
        adata.obs["half"] = adata.obs["ground_truth"].astype(object).where(adata.obs["slide"] == "a")
        adata.obsm["X_amilst"] = np.random.default_rng(0).normal(size=(200, 4))

    path = write(tmp_path / "two.h5ad", divide)
    options = ["--domain", "one", "--annotation", "half", "--sample-key", "slide"]
    assert main(["score", str(path), *options]) == 0
    scores = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["integration"]
    assert scores["section_ari"] == {"a": 0, "b": None} and scores["section_ari_mean"] == 0
    assert scores["silhouette_batch"] is None and scores["silhouette_label"] is not None


@pytest.mark.parametrize("command", [[], ["run"], ["demo"], ["simulate"], ["score"], ["info"]])
def test_help_fits_the_screen(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) <= 45
    assert max(map(len, shown.splitlines())) <= 100


def test_no_command_prints_help(capsys):
    assert main([]) == 2
    assert "COMMAND" in capsys.readouterr().out


def test_version_of_the_module():
    done = subprocess.run(
        [sys.executable, "-m", "amilst_lite", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == f"amilst-lite {amilst.__version__}"


def test_on_a_real_section(shared_dir, tmp_path):
    path = Path(shared_dir) / "data" / "starmap_mpfc_BZ5.h5ad"
    if not path.exists():
        pytest.skip(f"no {path.name}")
    out = tmp_path / "out"
    assert main(["run", str(path), "-k", "4", "-o", str(out), "--annotation", "ground_truth", "--quiet"]) == 0
    assert json.loads((out / "run.json").read_text())["scores"]["domain"]["ari"] > 0.55
