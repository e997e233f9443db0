"""README.md and benchmarks/README.md are true: commands and code run, files exist, tables come from the records."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

import amilst_lite as amilst
from amilst_lite.cli import build_parser, main
from amilst_lite.errors import AmilstWarning

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SECTION = "151673"


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


@pytest.fixture
def visium_folder(tmp_path, monkeypatch):
    """A small simulated section in the files that the tutorial downloads, in the current directory."""
    monkeypatch.chdir(tmp_path)
    section = amilst.simulate_section(240, 60, 7, seed=0)
    folder = tmp_path / SECTION
    (folder / "spatial").mkdir(parents=True)
    barcodes = [f"{name}-1" for name in section.obs_names]
    counts = section.X.tocsr()
    with h5py.File(folder / f"{SECTION}_filtered_feature_bc_matrix.h5", "w") as file:
        matrix = file.create_group("matrix")
        matrix["barcodes"] = np.array(barcodes, dtype="S")
        matrix["data"] = counts.data.astype(np.int32)
        matrix["indices"] = counts.indices.astype(np.int64)
        matrix["indptr"] = counts.indptr.astype(np.int64)
        matrix["shape"] = np.array(counts.shape[::-1], dtype=np.int32)
        for name, values in {
            "id": section.var_names,
            "name": section.var_names,
            "feature_type": ["Gene Expression"] * section.n_vars,
            "genome": ["simulated"] * section.n_vars,
        }.items():
            matrix[f"features/{name}"] = np.array(list(values), dtype="S")
    places = pd.DataFrame({"in_tissue": 1, "row": 0, "col": range(section.n_obs)}, index=barcodes)
    places[["y", "x"]] = section.obsm["spatial"][:, ::-1].round(3)
    places.to_csv(folder / "spatial/tissue_positions_list.csv", header=False)
    scale = {"spot_diameter_fullres": 55.0, "tissue_hires_scalef": 0.1}
    (folder / "spatial/scalefactors_json.json").write_text(json.dumps(scale))
    labels = pd.Series(section.obs["ground_truth"].to_numpy(), index=[f"{SECTION}_{b}" for b in barcodes])
    labels.iloc[0] = None
    labels.rename("ground_truth").rename_axis("key").to_csv(folder / f"cluster_labels_{SECTION}.csv")
    return folder


@pytest.fixture
def fast(monkeypatch):
    """identify_domains with three epochs and few restarts; the rest as in the README."""
    original = amilst.identify_domains

    def identify(adata, n_domains=None, **options):
        return original(adata, n_domains, **{"epochs": 3, "n_init": 5, **options})

    monkeypatch.setattr(amilst, "identify_domains", identify)


def test_commands_of_the_readme():
    assert [words[0] for words in amilst_commands()] == [
        "demo", "info", "run", "score", "analyze", "plot", "run", "apply", "run", "run", "info", "simulate",
    ]  # fmt: skip


@pytest.mark.parametrize("words", list(amilst_commands()), ids=" ".join)
def test_commands_parse(words):
    assert build_parser().parse_args(words).command == words[0]


def test_commands_run_as_written(tmp_path, monkeypatch, capsys, light_figures):
    """In the README's order, on a small section with the name used in the README."""
    monkeypatch.chdir(tmp_path)
    amilst.simulate_section(240, 60, 7, seed=0).write_h5ad("section.h5ad")
    amilst.simulate_section(240, 60, 7, seed=0).write_h5ad("first.h5ad")
    amilst.simulate_section(180, 60, 7, seed=0).write_h5ad("second.h5ad")
    amilst.simulate_section(200, 60, 7, seed=0).write_h5ad("third.h5ad")
    for words in amilst_commands():
        if words[0] == "demo":
            words = [*words, "--n-spots", "240", "--n-genes", "60"]
        if words[0] in ("demo", "run"):
            words = [*words, "--epochs", "3", "--n-init", "4"]
        assert main(words) == 0, words
    capsys.readouterr()
    for folder in ("amilst_demo", "results", "results_from_disk", "results_published"):
        model = set() if folder == "results_published" else {"model.h5"}  # Leiden has no model of other spots
        large = set() if folder == "results_from_disk" else {"markers.csv", "shapes.csv", "markers.png"}
        curve = set() if folder == "results_published" else {"shrinkage.png"}
        assert {p.name for p in Path(folder).iterdir()} == model | large | curve | {
            "result.h5ad", "domains.csv", "domains.png", "losses.png", "run.json", "report.html",
            "enrichment.csv", "composition.csv", "connectivity.csv",
        }  # fmt: skip
    record = json.loads(Path("results_joint/run.json").read_text())
    assert record["input"] == ["first.h5ad", "second.h5ad"] and record["sample_key"] == "section"
    assert Path("results_joint/composition.png").is_file()


def test_demo_finds_the_simulated_layers(tmp_path, light_figures):
    """With its defaults."""
    assert main(["demo", "-o", str(tmp_path / "demo"), "--quiet"]) == 0
    scores = json.loads((tmp_path / "demo/run.json").read_text())["scores"]
    assert scores["domain"]["ari"] >= 0.8


@pytest.mark.usefixtures("visium_folder", "fast")
def test_tutorial_runs_as_written(capsys):
    tutorial, *_ = blocks("python")
    names = {}
    exec(tutorial, names)
    adata = names["adata"]
    assert adata.obs["layer"].notna().sum() == adata.n_obs - 1
    assert "'ari'" in capsys.readouterr().out
    assert Path("151673_domains.png").is_file()
    assert Path("151673_domains.h5ad").is_file()


@pytest.mark.usefixtures("visium_folder", "fast")
def test_analyses_run_as_written(capsys):
    adata = amilst.read(SECTION)
    amilst.identify_domains(adata, 3)
    _, analyses, *_ = blocks("python")
    names = {"adata": adata, "amilst": amilst}
    exec(analyses, names)
    assert set(names["tables"]) == {"spatially-variable", "enrichment", "shapes", "depth"}
    assert "p_adjusted" in names["markers"] and "domain" in capsys.readouterr().out


@pytest.mark.usefixtures("visium_folder")
def test_slots_named_exist():
    """Those of the output table that every run writes, and those written if a graph exists already."""
    adata = amilst.read(SECTION)
    amilst.identify_domains(adata, 3, epochs=2, n_init=2)
    table = README[README.index("| slot of AnnData") : README.index("| file of OUT")]
    names = set(re.findall(r'(obs|obsm|obsp|uns)\["([^"]+)"\]', table)) - {
        ("obsm", "X_amilst_umap")
    }  # on request
    assert len(names) >= 10
    fallback = {("obsp", "amilst_connectivities"), ("obsp", "amilst_distances")}
    assert {(slot, key) for slot, key in names if key not in getattr(adata, slot)} == fallback
    with_graph = amilst.read(SECTION)
    with_graph.obsp["spatial_connectivities"] = with_graph.obsp["spatial_distances"] = np.eye(adata.n_obs)
    amilst.identify_domains(with_graph, 3, epochs=2, n_init=2)
    assert all(key in getattr(with_graph, slot) for slot, key in names)


@pytest.mark.usefixtures("visium_folder", "fast")
def test_next_steps_run_as_written():
    """Where scanpy and squidpy are installed."""
    pytest.importorskip("scanpy")
    pytest.importorskip("squidpy")
    adata = amilst.read(SECTION)
    amilst.identify_domains(adata, 3)
    _, _, steps, *_ = blocks("python")
    exec(steps, {"adata": adata})


@pytest.mark.usefixtures("fast")
def test_several_sections_run_as_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    *_, sections, new, _ = blocks("python")
    for seed, name in enumerate(("A1", "A2")):
        section = amilst.simulate_section(240, 60, 7, seed=seed)
        section.obs["layer"] = section.obs["ground_truth"]
        section.write_h5ad(f"{name}.h5ad")
    names = {"amilst": amilst}
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", AmilstWarning
        )  # the genes of the two simulations have nothing in common
        exec(sections, names)
        names["new"] = amilst.read("A1.h5ad")
        exec(new, names)
    assert "section_ari" in capsys.readouterr().out
    assert set(names["adata"].uns["amilst"]["integration"]["sections"]) == {"A1", "A2"}
    assert names["new"].uns["amilst"]["model"] == "model.h5" and Path("model.h5").is_file()


def test_array_interface_runs_as_written():
    *_, toolkit = blocks("python")
    section = amilst.simulate_section(240, 60, 7, seed=0)
    names = {"X": amilst.PCA(10).fit_transform(section.X), "coordinates": section.obsm["spatial"]}
    names["depth"] = np.asarray(section.X.sum(axis=1)).ravel()
    names |= {"X_other": names["X"][::2], "coordinates_other": names["coordinates"][::2]}
    exec(toolkit, names)
    assert names["embedding"].shape == names["X"].shape
    assert len(names["labels"]) == len(names["X"]) == 2 * len(names["labels_of_others"])


def test_input_table_is_that_of_the_readers():
    assert amilst.io.input_table() in README


def test_files_named_exist():
    text = README + (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for name in re.findall(r"\((\w[\w/]*\.(?:png|md))[)#]", text) + re.findall(r"(benchmarks/\w+\.py)", text):
        assert (ROOT / name).is_file(), name


def test_anchors_named_exist():
    headings = re.findall(
        r"^## (.+)$", (ROOT / "benchmarks/README.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    anchors = {heading.lower().replace(" ", "-") for heading in headings}
    assert set(re.findall(r"benchmarks/README\.md#([\w-]+)", README)) <= anchors


def test_messages_named_exist():
    """The messages of the troubleshooting table are those of the package."""
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "amilst_lite").rglob("*.py"))
    table = README[README.index("| message contains") : README.index("## Limits")]
    messages = re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)
    assert len(messages) >= 10
    assert [message for message in messages if message not in source] == []


def test_extras_named_exist():
    tomllib = pytest.importorskip("tomllib")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name in re.findall(r'pip install "\.\[(\w+)\]"', README):
        assert name in extras


def test_lower_bounds_are_those_tested():
    """.ci/oldest.txt pins the lower bounds of pyproject.toml, of everything but torch, the tools of dev and zarr."""
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    required = [
        *project["dependencies"],
        *(line for name in extras if name not in ("dev", "zarr") for line in extras[name]),
    ]
    bounds = dict(line.split(">=") for line in required if ">=" in line)
    pins = dict(
        line.split("==") for line in (ROOT / ".ci/oldest.txt").read_text().splitlines() if "==" in line
    )
    assert set(pins) == set(bounds) - {"torch"}
    for name, pin in pins.items():
        assert pin in (bounds[name], bounds[name] + ".0"), name


def test_pre_commit_uses_the_versions_of_the_extra_dev():
    tools = dict(re.findall(r'"(ruff|mypy)==([\d.]+)"', (ROOT / "pyproject.toml").read_text()))
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    assert dict(re.findall(r"(ruff|mypy)(?:-pre-commit)?\n\s+rev: v([\d.]+)", hooks)) == tools


def test_generated_tables_are_current():
    """benchmarks/README.md and the summary of README.md are what the script makes of the records."""
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks/make_readme.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
