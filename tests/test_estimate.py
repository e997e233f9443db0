"""What a run will need is said before it begins, and what cannot fit is refused."""

import anndata
import numpy as np
import pytest
import torch
from scipy import sparse

import amilst_lite as amilst
from amilst_lite import estimate as room
from amilst_lite.config import Config, TrainConfig
from amilst_lite.errors import AmilstError, InsufficientMemoryError
from amilst_lite.estimate import batch_size, check_memory, estimate, limit_members
from amilst_lite.pipeline import estimate_run, simulate_section

CPU = torch.device("cpu")


def test_members_are_limited_by_the_number_of_spots():
    config = TrainConfig(members=4)
    assert [limit_members(config, n).members for n in (100, 5000, 10_000, 10**6)] == [4, 4, 2, 1]


def test_batch_is_what_was_asked_for_or_what_the_machine_can_hold(monkeypatch):
    assert batch_size(TrainConfig(batch_size=123), CPU) == 123
    monkeypatch.setattr(room, "total_memory", lambda device: None)
    assert batch_size(TrainConfig(), CPU) == 40_000
    monkeypatch.setattr(room, "total_memory", lambda device: 2**30)
    small = batch_size(TrainConfig(), CPU)
    assert 1000 < small < 40_000
    monkeypatch.setattr(room, "total_memory", lambda device: 2**40)
    assert batch_size(TrainConfig(), CPU) == 40_000


def test_more_of_anything_needs_more():
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
    assert "GiB of the GPU's" in str(on_gpu) and base.vram_bytes is None


@pytest.mark.parametrize(
    ("n_spots", "n_entries", "measured_mib"),
    [(3000, 320_000, 628), (10_000, 1.07e6, 749), (100_000, 1.07e7, 1121), (1_000_000, 1.07e8, 3407)],
)
def test_memory_is_that_of_the_benchmark(n_spots, n_entries, measured_mib):
    """Peaks of benchmarks/scaling.py, 300 genes, 20 domains, two cores."""
    said = estimate(n_spots, n_entries, n_domains=20, n_genes=300).ram_bytes / 2**20
    assert said == pytest.approx(measured_mib, rel=0.3)


def test_what_cannot_fit_is_refused_before_it_begins(monkeypatch):
    adata = simulate_section(200, 30, 3)
    monkeypatch.setattr(room, "total_memory", lambda device=None: 2**27)
    with pytest.raises(
        InsufficientMemoryError, match=r"needs about 0\.\d GiB .* there are 0\.1 GiB.*--backed"
    ) as error:
        amilst.identify_domains(adata, 3)
    assert isinstance(error.value, MemoryError) and isinstance(error.value, AmilstError)
    assert "amilst" not in adata.uns
    monkeypatch.setattr(room, "total_memory", lambda device=None: None)
    check_memory(estimate(10**9, 10**12), CPU, "")  # nobody knows


def test_of_a_section():
    counts = sparse.random(300, 50, 0.2, format="csr", random_state=0, dtype=np.float32)
    adata = anndata.AnnData(counts, obsm={"X_pca": np.zeros((300, 60), np.float32)})
    said = estimate_run(adata, 20)
    assert said == estimate(300, counts.nnz, n_domains=20, n_genes=50)
    assert (
        estimate_run(adata, 20, use_rep="X_pca").ram_bytes
        == estimate(300, 0, Config().replace(n_components=60), n_domains=20).ram_bytes
    )
