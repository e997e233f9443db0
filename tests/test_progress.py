"""Bars for the stages of a run."""

import logging
import re
import sys
import threading
import types
from importlib.machinery import ModuleSpec

import pytest

import amilst_lite as amilst
from amilst_lite import estimator, progress

QUICK = {"epochs": 20, "n_networks": 1, "n_init": 4}


class Tqdm:
    """Records what is done with each bar."""

    def __init__(self, desc, total, bar_format):
        self.desc, self.total, self.n, self.bar_format = desc, total, 0, bar_format
        self.seen, self.closed = [], False
        BARS.append(self)

    def reset(self, total):
        self.total, self.n = total, 0

    def refresh(self):
        self.seen.append((self.n, self.total))

    def close(self):
        self.closed = True


BARS = []


@pytest.fixture
def bars(monkeypatch):
    BARS.clear()
    package = types.ModuleType("tqdm")
    package.__spec__ = ModuleSpec("tqdm", None)  # torch looks at it
    monkeypatch.setitem(sys.modules, "tqdm", package)
    monkeypatch.setitem(sys.modules, "tqdm.auto", types.SimpleNamespace(tqdm=Tqdm))
    return BARS


@pytest.fixture
def plain(monkeypatch, capsys):
    """What plain bars have written so far."""
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    written = []

    def so_far():
        written.append(capsys.readouterr().err)
        return "".join(written)

    return so_far


def test_every_stage_of_a_run_has_a_bar(bars, caplog, monkeypatch):
    monkeypatch.setattr(estimator, "n_threads", lambda: 1)
    adata = amilst.simulate_section(120, 30, 3, seed=1)
    with caplog.at_level(logging.INFO, logger="amilst_lite"), amilst.show_progress():
        model = amilst.identify_domains(adata, seed=0, **QUICK)
    stages = [bar.desc for bar in bars]
    expected = ["graph", "prepare", "PCA", "filter", "network share", "train", "embed", "cluster", "refine"]
    assert [stage for stage in expected if stage not in stages] == []
    assert all(bar.closed for bar in bars)
    train = next(bar for bar in bars if bar.desc == "train")
    assert train.seen[-1] == (20, 20) and train.bar_format is None
    tried = next(bar for bar in bars if bar.desc == "cluster").seen  # the choice of K, one after the other
    n_tried = len(adata.uns["amilst"]["selection"]["n_domains"])
    assert [done for done, _ in tried] == list(range(1, n_tried + 1)) and n_tried > 3
    assert tried[-1] == (n_tried, n_tried)
    # one line says what was found
    summary = caplog.records[-1].getMessage()
    assert summary.startswith(f"{model.n_domains_} domains of ") and "mean confidence 0." in summary
    assert "'amilst_domain'" in summary
    bars.clear()
    with amilst.show_progress():
        amilst.analysis.run(adata, ["spatially-variable", "shapes"])
    assert [bar.desc for bar in bars] == ["spatially-variable", "shapes"]
    n_before = len(bars)
    amilst.identify_domains(adata, 3, **QUICK)
    assert len(bars) == n_before  # only in the body


def test_training_beside_the_clustering_has_no_bar(bars, caplog, monkeypatch):
    monkeypatch.setattr(estimator, "n_threads", lambda: 2)
    adata = amilst.simulate_section(120, 30, 3, seed=1)
    with caplog.at_level(logging.INFO, logger="amilst_lite"), amilst.show_progress():
        amilst.identify_domains(adata, seed=0, **QUICK)
    assert [bar.desc for bar in bars] == ["graph", "prepare", "PCA", "filter", "cluster", "refine"]
    assert all(bar.closed for bar in bars)
    assert {"network share", "train", "embed"} <= set(caplog.messages)  # the log has all


def test_plain_bars_are_lines_that_are_rewritten(plain, monkeypatch):
    monkeypatch.setattr(progress, "_PERIOD", 0.0)
    with progress.show_progress():
        progress.advance(1, 2)  # of no stage
        progress.begin("train")
        progress.advance(1, 4)
        progress.advance(4, 4)
        progress.begin("refine")
    text = plain()
    assert re.sub(r"\d+\.\d s", "? s", text).split("\r") == [
        "",
        "train",
        "train  [#######.......................] 1/4",
        "train  [##############################] 4/4",
        f"{'train  ? s':41}\n",
        "refine",
        "refine  ? s\n",
    ]


def test_many_steps_are_drawn_rarely(plain):
    with progress.show_progress():
        progress.begin("train")
        for step in range(1, 1001):
            progress.advance(step, 1000)
    assert plain().count("\r") < 60 and "1000/1000" in plain()


def test_bars_end_with_an_error(plain):
    def fail():
        with progress.show_progress():
            progress.begin("filter")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert plain().endswith(" s\n")
    progress.begin("train")
    assert "train" not in plain()


def test_another_thread_has_no_bar(plain):
    with progress.show_progress():
        thread = threading.Thread(target=progress.begin, args=("elsewhere",))
        thread.start()
        thread.join()
    assert plain() == ""


def test_without_a_stream_nothing_is_written(monkeypatch):
    """As in a program without a console."""
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    monkeypatch.setattr(sys, "stderr", None)
    with progress.show_progress():
        progress.begin("graph")
        progress.advance(1, 1)
