"""The same seed gives the same bits, whatever has been set, seeded, imported or run before in the process."""

import os
import random
import subprocess
import sys
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest
import torch
from fitting import bits, fitted, tissue

import amilst_lite as amilst


@contextmanager
def changed(value, get, change):
    """Within: the setting that `get` returns and `change` sets is `value`."""
    before = get()
    change(value)
    try:
        yield
    finally:
        change(before)


@contextmanager
def seeded():
    """The global generators are somewhere else."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    torch.manual_seed(5)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])


@contextmanager
def flushed():
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        assert sys.float_info.min / 2 == 0, "not restored"
        torch.set_flush_denormal(False)


@contextmanager
def each_backend():
    """The precision of products, by the newer interface, which makes the older one unreadable."""
    backend = torch.backends.cuda.matmul
    if not hasattr(backend, "fp32_precision"):
        yield
        return
    with changed("tf32", lambda: backend.fp32_precision, lambda new: setattr(backend, "fp32_precision", new)):
        yield


STATES = {
    "second run in the process": ExitStack,
    "seeds": seeded,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu"),
    "float64": lambda: changed(torch.float64, torch.get_default_dtype, torch.set_default_dtype),
    "other device": lambda: torch.device("meta"),
    "precision of products": lambda: changed(
        "medium", torch.get_float32_matmul_precision, torch.set_float32_matmul_precision
    ),
    "precision of products by backend": each_backend,
    "deterministic algorithms": lambda: changed(
        True, torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms
    ),
    "invariants of sparse tensors": torch.sparse.check_sparse_tensor_invariants,
    "denormals flushed": flushed,
    "errors of numpy raised": lambda: np.errstate(all="raise"),
    "lines of numpy": lambda: np.printoptions(threshold=3, precision=1),
}


@pytest.fixture(scope="module")
def expected():
    adata, model = fitted(seed=0)
    new = tissue(seed=2)
    amilst.apply_model(new, model)
    return bits(adata), bits(new), model


def check(expected):
    """Fit and apply again."""
    adata, _ = fitted(seed=0)
    assert bits(adata) == expected[0]
    new = tissue(seed=2)
    amilst.apply_model(new, expected[2])
    assert bits(new) == expected[1]


def test_state_of_the_process_does_not_matter(expected):
    """All states at once; `-m slow` tries each of them, to find the one that does."""
    with ExitStack() as stack:
        for name, state in STATES.items():
            if name != "precision of products":  # which cannot be read once a backend has its own
                stack.enter_context(state())
        generators = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
        check(expected)
        assert random.getstate() == generators[0]
        assert np.random.get_state()[1].tolist() == generators[1]  # noqa: NPY002
        assert torch.equal(torch.get_rng_state(), generators[2])
        # and all of it is still as it was
        assert torch.get_default_dtype() == torch.float64 and torch.empty(0).device.type == "meta"
        assert torch.is_inference_mode_enabled() and not torch.is_grad_enabled()
        assert torch.is_autocast_enabled("cpu") and torch.are_deterministic_algorithms_enabled()
        assert np.geterr()["under"] == "raise"


@pytest.mark.slow
@pytest.mark.parametrize("name", STATES)
def test_each_state_of_the_process_does_not_matter(name, expected):
    with STATES[name]():
        check(expected)


@pytest.mark.slow
def test_imports_and_hashes_do_not_matter(expected):
    """In processes of their own: with other packages imported before, and other hashes of strings."""
    imports = "import matplotlib.pyplot, sklearn.mixture, scipy.optimize, numba, igraph, umap, pynndescent;"
    code = "import sys; sys.path.insert(0, sys.argv[1]); import fitting; print(fitting.bits(fitting.fitted(0)[0]))"
    for before, hashes in (("", "1"), (imports, "2")):
        done = subprocess.run(
            [sys.executable, "-c", before + code, __file__.rpartition("/")[0]],
            env={**os.environ, "PYTHONHASHSEED": hashes},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == expected[0]
