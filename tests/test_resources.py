"""Estimates of memory and time, and the refusal of runs that cannot fit."""

import anndata
import numpy as np
import pytest
import torch
from scipy import sparse

import amilst_lite as amilst
from amilst_lite import resources
from amilst_lite.config import Config
from amilst_lite.errors import AmilstError, InsufficientMemoryError
from amilst_lite.pipeline import estimate_run, simulate_section
from amilst_lite.resources import check_memory, estimate

CPU = torch.device("cpu")


def test_larger_runs_need_more():
    base = estimate(50_000, 5_000_000, n_domains=7)
    for more in (
        estimate(500_000, 5_000_000, n_domains=7),
        estimate(50_000, 500_000_000, n_domains=7),
        estimate(50_000, 5_000_000, Config().replace(n_components=200), n_domains=7),
        estimate(50_000, 5_000_000, n_domains=70),
    ):
        assert more.ram_bytes > base.ram_bytes and more.seconds >= base.seconds
    assert estimate(50_000, 5_000_000).seconds > base.seconds  # the number of domains has to be chosen
    assert estimate(10**6, 10**9, n_genes=20_000, on_disk=True).ram_bytes < estimate(10**6, 10**9).ram_bytes
    on_gpu = estimate(10**6, 10**8, n_domains=7, device="cuda")
    assert on_gpu.vram_bytes > 10**9 and on_gpu.seconds < estimate(10**6, 10**8, n_domains=7).seconds
    assert "GiB of GPU memory" in str(on_gpu) and base.vram_bytes is None


@pytest.mark.parametrize(
    ("n_spots", "n_entries", "measured_mib"),
    [(3000, 320_000, 628), (10_000, 1.07e6, 749), (100_000, 1.07e7, 1121), (1_000_000, 1.07e8, 3407)],
)
def test_memory_agrees_with_the_benchmark(n_spots, n_entries, measured_mib):
    """Peak memory of benchmarks/scaling.py, 300 genes, 20 domains, two cores."""
    estimated = estimate(n_spots, n_entries, n_domains=20, n_genes=300).ram_bytes / 2**20
    assert estimated == pytest.approx(measured_mib, rel=0.3)


def test_number_of_networks_and_batch_size_are_the_effective_ones():
    n_spots = 30_000
    chosen = estimate(n_spots, 10**6, n_domains=7)
    explicit = Config().replace(n_networks=1)
    assert chosen == estimate(n_spots, 10**6, explicit, n_domains=7)
    more = estimate(n_spots, 10**6, Config().replace(n_networks=8), n_domains=7)
    assert more.ram_bytes > chosen.ram_bytes
    smaller = Config().replace(n_networks=8, batch_size=2000)
    assert estimate(n_spots, 10**6, smaller, n_domains=7).ram_bytes < more.ram_bytes


def test_estimate_and_settings_do_not_depend_on_the_machine(monkeypatch):
    section = simulate_section(120, 30, 3, seed=0)
    quick = {"epochs": 2, "n_init": 2, "n_networks": 1}
    results = []
    for memory in (2**30, 2**40):
        monkeypatch.setattr(resources, "total_memory", lambda device=None, memory=memory: memory)
        adata = section.copy()
        amilst.identify_domains(adata, 3, **quick)
        results.append((adata.uns["amilst"]["config"]["train"], adata.uns["amilst"]["estimate"]))
    assert results[0] == results[1]
    assert results[0][0]["batch_size"] == Config().train.batch_size


def test_runs_that_cannot_fit_are_refused_first(monkeypatch):
    adata = simulate_section(200, 30, 3)
    monkeypatch.setattr(resources, "total_memory", lambda device=None: 2**27)
    with pytest.raises(
        InsufficientMemoryError,
        match=r"exceeds available memory.*needs about 0\.\d GiB of memory, 0\.1 GiB are.*--backed.*--batch-size",
    ) as error:
        amilst.identify_domains(adata, 3)
    assert isinstance(error.value, MemoryError) and isinstance(error.value, AmilstError)
    assert "amilst" not in adata.uns
    monkeypatch.setattr(resources, "total_memory", lambda device=None: None)
    check_memory(estimate(10**9, 10**12), CPU)  # the available memory is unknown


def test_estimate_of_an_anndata():
    counts = sparse.random(300, 50, 0.2, format="csr", random_state=0, dtype=np.float32)
    adata = anndata.AnnData(counts, obsm={"X_pca": np.zeros((300, 60), np.float32)})
    assert estimate_run(adata, 20) == estimate(300, counts.nnz, n_domains=20, n_genes=50)
    assert (
        estimate_run(adata, 20, use_rep="X_pca").ram_bytes
        == estimate(300, 0, Config().replace(n_components=60), n_domains=20).ram_bytes
    )
