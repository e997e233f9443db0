"""Device, generators, versions, memory."""

import pytest
import torch

from amilst_lite import runtime
from amilst_lite.errors import InputError


def test_auto_and_cpu():
    assert runtime.resolve_device("cpu") == torch.device("cpu")
    assert runtime.resolve_device("auto").type in ("cpu", "cuda")
    assert runtime.resolve_device(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "", "cpu:x", "meta", None])
def test_unknown_devices(name):
    with pytest.raises(InputError, match="device must be auto, cpu, cuda"):
        runtime.resolve_device(name)


def test_absent_devices():
    with pytest.raises(InputError, match="CUDA device"):
        runtime.resolve_device("cuda:99")
    if not torch.backends.mps.is_available():
        with pytest.raises(InputError, match="mps"):
            runtime.resolve_device("mps")


def test_generators_are_their_own():
    before = torch.get_rng_state()
    first = torch.rand(3, generator=runtime.make_generator(5))
    second = torch.rand(3, generator=runtime.make_generator(5))
    assert torch.equal(first, second)
    assert torch.equal(before, torch.get_rng_state())


def test_spawned_seeds_differ_and_repeat():
    seeds = runtime.spawn_seeds(0, 4)
    assert len(set(seeds)) == 4
    assert seeds == runtime.spawn_seeds(0, 4)
    assert runtime.spawn_seeds(1, 4) != seeds


def test_versions_name_every_runtime_package():
    found = runtime.versions()
    for package in (
        "python",
        "torch",
        "numpy",
        "scipy",
        "scikit-learn",
        "anndata",
        "h5py",
        "pandas",
        "pynndescent",
    ):
        assert found[package]


def test_peak_memory_counts_bytes():
    peak = runtime.peak_memory()["ram_bytes"]
    assert peak is None or peak > 50e6  # torch alone takes more


def test_synchronize_on_a_cpu_does_nothing():
    runtime.synchronize(torch.device("cpu"))


def test_small_work_gets_one_thread_and_the_number_comes_back():
    before = torch.get_num_threads()
    with runtime.threads_for(1000):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
    with runtime.threads_for(10**9):
        assert torch.get_num_threads() == before
