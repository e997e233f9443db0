"""Devices, random numbers, threads, versions and memory."""

import threading
import time
from contextvars import ContextVar

import numpy as np
import pytest
import torch

from amilst_lite import runtime
from amilst_lite.errors import InputError


def test_auto_and_cpu():
    assert runtime.resolve_device("cpu") == torch.device("cpu")
    assert runtime.resolve_device("auto").type in ("cpu", "cuda")
    assert runtime.resolve_device(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "", "cpu:x", "meta", "mps", None])
def test_unknown_devices(name):
    with pytest.raises(InputError, match="device must be auto, cpu, cuda"):
        runtime.resolve_device(name)


def test_absent_devices():
    with pytest.raises(InputError, match="CUDA device"):
        runtime.resolve_device("cuda:99")


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


def test_beside_runs_in_a_thread_of_its_own():
    variable = ContextVar("variable", default="nothing")
    variable.set("of the caller")
    body = threading.Event()

    def function():
        assert body.wait(30)  # the body goes on meanwhile
        return threading.get_ident(), torch.get_num_threads(), torch.is_grad_enabled(), variable.get()

    before = torch.get_num_threads()
    with torch.no_grad(), runtime.beside(function) as result:
        assert torch.get_num_threads() == max(1, before - 1)
        body.set()
        thread, n, grad, value = result()
    assert torch.get_num_threads() == before
    assert thread != threading.get_ident() and (n, grad, value) == (1, True, "of the caller")


def test_errors_beside_the_body():
    def fail():
        raise ZeroDivisionError("beside")

    with pytest.raises(ZeroDivisionError, match="beside"), runtime.beside(fail) as result:
        result()
    ended = []
    with pytest.raises(KeyError, match="body"), runtime.beside(lambda: time.sleep(0.2) or ended.append(1)):
        raise KeyError("body")
    assert ended == [1]  # nothing goes on after the body

    def endless():
        while True:
            time.sleep(0.01)
            runtime.check_needed()

    with pytest.raises(KeyboardInterrupt), runtime.beside(endless):
        raise KeyboardInterrupt
    runtime.check_needed()  # of another function


def test_stages_have_different_seeds():
    seeds = [runtime.stage_seed(0, stage) for stage in ("filter", "train", "cluster", "prepare", "share")]
    assert len(set(seeds)) == 5
    assert runtime.stage_seed(0, "train") == seeds[1]


@pytest.mark.parametrize("seed", [0, 2**32 - 1, np.int64(5), np.uint32(7)])
def test_valid_seeds(seed):
    assert runtime.check_seed(seed) == int(seed) and type(runtime.check_seed(seed)) is int


@pytest.mark.parametrize("seed", [-1, 2**32, 2**70, 1.0, "0", None, True])
def test_invalid_seeds(seed):
    with pytest.raises(InputError, match=r"seed \(--seed\) must be an integer >= 0 and < 2\*\*32"):
        runtime.check_seed(seed)


def test_standard_math_undoes_and_restores_what_the_caller_set():
    dtype, precision = torch.get_default_dtype(), torch.get_float32_matmul_precision()
    torch.set_default_dtype(torch.float64)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.inference_mode(), torch.autocast("cpu"), runtime.standard_math():
            assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
            assert not torch.is_autocast_enabled("cpu")
            assert torch.empty(0).dtype == torch.float32
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_default_dtype() == torch.float64
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_default_dtype(dtype)
        torch.set_float32_matmul_precision(precision)


def test_standard_math_restores_the_precision_of_each_backend():
    matmul = torch.backends.cuda.matmul
    if not hasattr(matmul, "fp32_precision"):
        pytest.skip("this version of torch has one precision for all backends")
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32"
    try:
        with runtime.standard_math():
            assert matmul.fp32_precision == "ieee"
        assert matmul.fp32_precision == "tf32"
    finally:
        matmul.fp32_precision = before


def test_memory_limit(monkeypatch):
    monkeypatch.setattr(runtime, "total_memory", lambda: 2**40)
    limit, is_given = runtime.memory_limit()
    assert not is_given and 0 < limit <= 0.6 * 2**40
    monkeypatch.setattr(runtime, "total_memory", lambda: 1000)
    assert runtime.memory_limit() == (600, False)
    with runtime.limited_memory(2):
        assert runtime.memory_limit() == (2 * 2**30, True)
        with runtime.limited_memory(None):
            assert not runtime.memory_limit()[1]
    assert runtime.memory_limit() == (600, False)
