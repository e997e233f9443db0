"""The README is true: its commands run, its code runs, the files it names are there."""

import re
import shlex
from pathlib import Path

import pytest

import amilst_lite as amilst
from amilst_lite.cli import build_parser, main

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def amilst_commands():
    """Every `amilst …` command of the shell blocks, without comments."""
    for block in blocks("bash"):
        for line in block.splitlines():
            for part in line.split("&&"):
                words = shlex.split(part, comments=True)
                if words[:1] == ["amilst"]:
                    yield words[1:]


def test_there_are_commands_to_check():
    assert [words[0] for words in amilst_commands()] == [
        "demo", "run", "score", "info", "run", "info", "simulate",
    ]  # fmt: skip


@pytest.mark.parametrize("words", list(amilst_commands()), ids=" ".join)
def test_commands_parse(words):
    assert build_parser().parse_args(words).command == words[0]


def test_the_command_line_runs_as_written(tmp_path, monkeypatch, capsys):
    """All of them in the README's order, on a small section under the name that the README uses."""
    monkeypatch.chdir(tmp_path)
    amilst.simulate_section(240, 60, 7, seed=0).write_h5ad("section.h5ad")
    for words in amilst_commands():
        if words[0] == "demo":
            words = [*words, "--n-spots", "240", "--n-genes", "60", "--epochs", "3"]
        if words[0] == "run":
            words = [*words, "--epochs", "3"]
        assert main(words) == 0, words
    capsys.readouterr()
    for folder in ("amilst_demo", "results", "results_from_disk"):
        assert {p.name for p in Path(folder).iterdir()} == {
            "result.h5ad", "domains.csv", "domains.png", "losses.png", "run.json",
        }  # fmt: skip


def test_the_first_command_reaches_its_score(tmp_path):
    """The demo as it is, with its defaults."""
    import json

    assert main(["demo", "-o", str(tmp_path / "demo"), "--quiet"]) == 0
    scores = json.loads((tmp_path / "demo/run.json").read_text())["scores"]
    assert scores["domain"]["ari"] >= 0.8


def test_python_blocks_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    section = amilst.simulate_section(240, 60, 7, seed=0)
    section.obs["layer_guess"] = section.obs["ground_truth"]
    monkeypatch.setattr(amilst, "read", lambda path: section)
    notebook, toolkit = blocks("python")
    exec(notebook, {})
    names = re.findall(r'`((?:obs|obsm|obsp|uns)\["[^"]+"\])`', README)
    for name in {name for name in names if "counts" not in name and "layer" not in name}:
        assert eval(f"adata.{name}", {"adata": section}) is not None
    exec(toolkit, {"X": section.obsm["X_pca"], "coordinates": section.obsm["spatial"], "amilst": amilst})


def test_files_named_are_there():
    for name in re.findall(r"\(([\w/]+\.png)\)", README) + re.findall(r"(benchmarks/\w+\.py)", README):
        assert (ROOT / name).is_file(), name
    for name in re.findall(r"`(\w+\.py)`", README):
        assert (ROOT / "benchmarks" / name).is_file(), name


def test_extras_named_exist():
    tomllib = pytest.importorskip("tomllib")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name in re.findall(r'pip install "\.\[(\w+)\]"', README):
        assert name in extras
