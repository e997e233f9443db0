"""Estimates of memory and time, and the refusal of runs that cannot fit."""

import anndata
import numpy as np
import pytest
import torch
from scipy import sparse

import amilst_lite as amilst
from amilst_lite import resources
from amilst_lite.config import Config
from amilst_lite.errors import AmilstError, InputError, InsufficientMemoryError
from amilst_lite.pipeline import estimate_run, simulate_section
from amilst_lite.resources import check_memory, estimate
from amilst_lite.runtime import limited_memory

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


@pytest.mark.parametrize(("n_spots", "measured_mib"), [(200_000, 1169), (1_000_000, 1763)])
def test_memory_of_sections_on_disk_agrees_with_the_benchmark(n_spots, measured_mib):
    """Peak memory of benchmarks/scaling.py --sections 40 ... -- --backed, 300 genes, one thread."""
    found = estimate(n_spots, 108 * n_spots, n_domains=20, n_genes=300, n_sections=40, on_disk=True)
    assert found.ram_bytes / 2**20 == pytest.approx(measured_mib, rel=0.15)


def test_memory_and_time_of_an_atlas():
    """Ten million cells in 40 sections: about a kilobyte a cell, and time that grows no faster than the cells."""
    small, large = (
        estimate(n, 108 * n, n_domains=20, n_genes=300, n_sections=40, on_disk=True) for n in (10**5, 10**7)
    )
    assert large.ram_bytes < 12e9 and (large.ram_bytes - small.ram_bytes) / (10**7 - 10**5) < 1200
    assert large.seconds < 1800 and large.seconds / small.seconds < 100**1.05
    assert 5e9 < large.disk_bytes < 2e10 and "GiB of disk space" in str(large)
    in_memory = estimate(10**7, 108 * 10**7, n_domains=20, n_genes=300, n_sections=40)
    assert in_memory.ram_bytes > large.ram_bytes + 8e9


def test_memory_that_is_given_is_the_limit(monkeypatch):
    monkeypatch.setattr(resources, "total_memory", lambda device=None: 2**50)
    needed = estimate(10**6, 10**8, n_domains=7)
    check_memory(needed, CPU)
    with limited_memory(needed.ram_bytes / 2**30 / 1.2):
        check_memory(needed, CPU)  # an estimate may be too high
    with limited_memory(0.5), pytest.raises(InsufficientMemoryError, match="0.5 GiB are available"):
        check_memory(needed, CPU)


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


def test_of_several_processes_each_needs_less():
    adata = simulate_section(3000, 60, 3)
    one, four = estimate_run(adata, 3), estimate_run(adata, 3, n_processes=4)
    assert four.ram_bytes < one.ram_bytes and four.seconds < one.seconds
    with pytest.raises(InputError, match="n_processes"):
        estimate_run(adata, 3, n_processes=0)
