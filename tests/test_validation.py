"""Checks that the estimators share, and their independence of torch settings of the caller."""

import contextlib

import numpy as np
import pytest
import scipy.sparse
import torch

from amilst_lite.cluster import GaussianMixture, KMeans, blocks
from amilst_lite.errors import InputError, NotFittedError
from amilst_lite.preprocess.pca import PCA
from amilst_lite.validation import (
    check_array,
    check_fitted,
    check_model_arrays,
    check_number,
    check_random_state,
    check_tensor,
)


@contextlib.contextmanager
def torch_state(name):
    """A setting of torch by the caller."""
    dtype, precision = torch.get_default_dtype(), torch.get_float32_matmul_precision()
    contexts = {
        "no_grad": torch.no_grad,
        "inference_mode": torch.inference_mode,
        "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    }
    try:
        if name == "float64":
            torch.set_default_dtype(torch.float64)
        elif name == "matmul precision":
            torch.set_float32_matmul_precision("medium")
        with contexts.get(name, contextlib.nullcontext)():
            yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_float32_matmul_precision(precision)


ESTIMATORS = {
    "kmeans": lambda: KMeans(6, n_init=3),
    "tied": lambda: GaussianMixture(6, n_init=2, max_iter=10),
    "full": lambda: GaussianMixture(3, covariance_type="full", n_init=2, covariance_prior=5.0, max_iter=10),
    "exact PCA": lambda: PCA(4, solver="exact"),
    "randomized PCA": lambda: PCA(4, scale=True, solver="randomized"),
}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", list(ESTIMATORS))
def test_torch_settings_of_the_caller_do_not_change_results(monkeypatch, name, threads):
    monkeypatch.setattr(blocks, "_CPU_BLOCK", 1 << 12)  # several blocks, and so several threads
    random = np.random.default_rng(0)
    labels = random.integers(6, size=900)
    X = (2 * random.standard_normal((6, 10))[labels] + random.standard_normal((900, 10))).astype(np.float32)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        expected = ESTIMATORS[name]().fit(X)
        for state in ("no_grad", "inference_mode", "float64", "autocast", "matmul precision"):
            with torch_state(state):
                tensor = torch.from_numpy(X).clone()  # in inference mode, an inference tensor
                found = ESTIMATORS[name]().fit(tensor)
                if name.endswith("PCA"):
                    assert np.array_equal(found.components_, expected.components_), state
                    assert np.array_equal(found.transform(tensor), expected.transform(X)), state
                else:
                    assert np.array_equal(found.predict(tensor), expected.predict(X)), state
    finally:
        torch.set_num_threads(before)


def test_parameters_that_require_gradients_are_accepted():
    X = torch.randn(60, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert KMeans(2).fit_predict(X).shape == (60,)
    assert GaussianMixture(2).fit_predict(X).shape == (60,)
    assert PCA(2).fit_transform(X).shape == (60, 2)


@pytest.mark.parametrize("seed", [-1, 2**32, 2**70, True, 1.0, "0"])
@pytest.mark.parametrize("estimator", [KMeans, GaussianMixture, PCA])
def test_invalid_seeds_are_refused(estimator, seed):
    with pytest.raises(InputError, match=r"random_state must be None or an integer >= 0 and < 2\*\*32"):
        estimator(2, random_state=seed).fit(np.eye(5))


def test_check_random_state():
    assert check_random_state(np.int64(7)) == 7
    assert check_random_state(2**32 - 1) == 2**32 - 1
    assert 0 <= check_random_state(None) < 2**32
    assert check_random_state(None) != check_random_state(None)


@pytest.mark.parametrize(
    ("value", "options", "message"),
    [
        (0, {"integer": True}, "n must be an integer >= 1; found 0"),
        (1.0, {"integer": True}, "n must be an integer >= 1; found 1.0"),
        (True, {}, "n must be a finite number >= 1; found True"),
        (1, {"strict": True}, "n must be a finite number > 1; found 1"),
        (float("nan"), {}, "found nan"),
        (float("inf"), {}, "found inf"),
        ("2", {}, "found '2'"),
    ],
)
def test_check_number(value, options, message):
    with pytest.raises(InputError, match=message):
        check_number("n", value, 1, **options)
    check_number("n", np.int32(2), 1, **options)


def test_check_array_and_check_tensor_dtypes():
    for dtype, expected in ((np.float32, np.float32), (np.float64, np.float64), (np.int16, np.float64)):
        X = np.arange(6, dtype=dtype).reshape(3, 2)
        assert check_array(X).dtype == expected
        tensor = check_tensor(torch.from_numpy(X), KMeans(), reset=True)
        assert tensor.numpy().dtype == check_tensor(X, KMeans(), reset=True).numpy().dtype == expected
    assert check_array(torch.ones(2, 2, dtype=torch.bfloat16)).dtype == np.float64
    X = np.ones((3, 2), np.float32)
    assert np.shares_memory(check_tensor(X, KMeans(), reset=True).numpy(), X)
    X.flags.writeable = False
    assert not np.shares_memory(check_tensor(X, KMeans(), reset=True).numpy(), X)
    assert check_array(scipy.sparse.csc_matrix(X), accept_sparse="csr").format == "csr"


@pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor])
@pytest.mark.parametrize(
    ("X", "message"),
    [
        (np.array([[1.0, np.nan]]), "NaN"),
        (np.array([[1.0, np.inf]]), "infinity"),
        (np.ones(3), "2D"),
        (np.ones((0, 3)), "0 sample|one row"),
        (np.ones((3, 5)), "features"),
    ],
)
def test_invalid_matrices(convert, X, message):
    kmeans = KMeans(1).fit(np.eye(3))
    with pytest.raises(InputError, match=message):
        check_tensor(convert(X), kmeans, reset=False)


def test_check_fitted():
    with pytest.raises(NotFittedError, match="This KMeans instance is not fitted yet"):
        check_fitted(KMeans(), "labels_")


def test_arrays_of_a_model_have_the_lengths_of_their_dimensions():
    arrays = {
        "mean": np.ones(3, np.float32),
        "axes": np.ones((3, 2)),
        "scale": np.float64(2),
        "k": np.arange(2),
    }
    shapes = {"mean": "C", "axes": "C D", "scale": "", "k": "D"}
    assert check_model_arrays(arrays, shapes, "the part", integers=("k",)) == {"C": 3, "D": 2}
    for name, value, message in [
        ("mean", np.ones(4), "one length C >= 1 in all arrays; found 'axes' of shape \\(3, 2\\)"),
        ("axes", np.ones((3, 0)), "one length D >= 1"),
        ("axes", np.ones(3), "'axes' as an array of 2 dimensions; found shape \\(3,\\)"),
        ("scale", 2.0, "'scale' as an array of 0 dimensions; found float"),
        ("scale", np.array(np.nan), "finite numbers in 'scale'"),
        ("scale", np.array(2), "float32 or float64 in 'scale'; found int64"),
        ("k", np.ones(2), "integers in 'k'; found float64"),
        ("other", np.ones(2), "the arrays axes, k, mean, scale; found axes, k, mean, other, scale"),
    ]:
        with pytest.raises(InputError, match=f"the part of the model must have {message}"):
            check_model_arrays(arrays | {name: value}, shapes, "the part", integers=("k",))
