"""The product Â·H against dense and scipy products, finite differences, and itself repeated."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from amilst_lite.errors import InputError
from amilst_lite.nn.sparse import SymmetricAdjacency, propagate
from amilst_lite.spatial.graph import SpatialGraph

WIDTHS = [1, 3, 8, 16, 17, 32, 100, 300]


def random_symmetric(n, density, seed, dtype=torch.float64):
    """A symmetric sparse matrix, some rows of it empty, as scipy CSR and coalesced COO."""
    half = sparse.random(n, n, density, format="csr", random_state=seed)
    matrix = (half + half.T).tocoo()
    coo = torch.sparse_coo_tensor(
        np.vstack([matrix.row, matrix.col]), matrix.data, (n, n), dtype=dtype, check_invariants=True
    )
    return matrix.tocsr(), coo.coalesce()


def normal(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def one_thread():
    """Thousands of tiny products: on a busy machine, two threads would mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tissue():
    graph = SpatialGraph.from_coordinates(np.random.default_rng(0).random((2000, 2)))
    return graph.adjacency()


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 40),
    columns=st.sampled_from(WIDTHS),
    density=st.floats(0, 0.5),
    seed=st.integers(0, 10_000),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_equals_scipys_product_and_gradient(n, columns, density, seed, dtype):
    matrix, coo = random_symmetric(n, density, seed, dtype)
    features = normal(n, columns, dtype=dtype, seed=seed).requires_grad_()
    weight = normal(n, columns, dtype=dtype, seed=seed + 1)
    result = propagate(coo, features)
    (gradient,) = torch.autograd.grad((result * weight).sum(), features)
    close = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-13}
    np.testing.assert_allclose(result.detach(), matrix @ features.detach().numpy(), **close)
    np.testing.assert_allclose(gradient, matrix.T @ weight.numpy(), **close)
    assert result.dtype == gradient.dtype == dtype


@pytest.mark.parametrize("columns", WIDTHS)
def test_equals_the_dense_product(tissue, columns):
    features = normal(2000, columns)
    expected = tissue.to_dense().double() @ features.double()
    np.testing.assert_allclose(propagate(tissue, features), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("columns", [2, 17])
def test_first_and_second_derivatives(columns, one_thread):
    _, coo = random_symmetric(5, 0.5, seed=3)
    adjacency = SymmetricAdjacency(coo)
    features = normal(5, columns, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda h: propagate(adjacency, h), features)
    assert torch.autograd.gradgradcheck(lambda h: propagate(adjacency, h), features)
    # propagate is linear, so its own second derivative is nil; through a square it is not.
    assert torch.autograd.gradgradcheck(lambda h: propagate(adjacency, h).square().sum(), features)


def test_float64_is_summed_in_float64_on_every_path(monkeypatch):
    # Without MKL (other processors than Intel's and AMD's) all widths take the other kernel.
    matrix, coo = random_symmetric(30, 0.3, seed=5)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    for columns in (1, 32):
        features = normal(30, columns, dtype=torch.float64)
        np.testing.assert_allclose(
            propagate(coo, features), matrix @ features.numpy(), rtol=1e-12, atol=1e-13
        )


@pytest.mark.parametrize("columns", [8, 32])
def test_strides_do_not_matter(tissue, columns):
    whole = normal(columns * 2, 4000)
    apart = whole.t()[::2, ::2]
    assert apart.shape == (2000, columns) and not apart.is_contiguous()
    assert torch.equal(propagate(tissue, apart), propagate(tissue, apart.contiguous()))


@pytest.mark.parametrize("columns", [8, 32])
def test_expanded_gradients_are_accepted(tissue, columns):
    # sum() sends back an expanded scalar, strides 0
    features = normal(2000, columns).requires_grad_()
    propagate(tissue, features).sum().backward()
    expected = tissue.to_dense().sum(dim=1, keepdim=True).expand(-1, columns)
    torch.testing.assert_close(features.grad, expected)


def test_empty_matrices():
    coo = torch.sparse_coo_tensor(torch.empty((2, 0), dtype=torch.int64), torch.empty(0), (0, 0)).coalesce()
    assert propagate(coo, torch.empty(0, 4)).shape == (0, 4)
    coo = torch.sparse_coo_tensor(torch.empty((2, 0), dtype=torch.int64), torch.empty(0), (3, 3)).coalesce()
    for columns in (0, 4, 32):
        assert torch.equal(propagate(coo, torch.ones(3, columns)), torch.zeros(3, columns))


@pytest.mark.parametrize("columns", [8, 32])
@pytest.mark.parametrize("deterministic", [False, True])
def test_results_repeat_to_the_bit(tissue, columns, deterministic):
    def run():
        features = normal(2000, columns).requires_grad_()
        result = propagate(SymmetricAdjacency(tissue), features)
        return result.detach(), *torch.autograd.grad(result.square().sum(), features)

    before = torch.are_deterministic_algorithms_enabled()
    first = run()
    torch.use_deterministic_algorithms(deterministic)
    try:
        for _ in range(5):
            for one, other in zip(run(), first, strict=True):
                assert torch.equal(one, other)
    finally:
        torch.use_deterministic_algorithms(before)


@pytest.mark.parametrize("columns", [8, 32])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(tissue, columns, dtype):
    features = normal(2000, columns).to(dtype).requires_grad_()
    result = propagate(tissue, features)
    # Rounded once, at the end: exactly the float32 result in the narrow type.
    assert torch.equal(result, propagate(tissue, features.float()).to(dtype))
    (gradient,) = torch.autograd.grad(result.sum(), features)
    assert gradient.dtype == dtype


@pytest.mark.parametrize("columns", [8, 32])
def test_autocast_keeps_float32_sums(tissue, columns):
    linear = torch.nn.Linear(6, columns)
    features = normal(2000, 6)
    expected = propagate(tissue, normal(2000, columns))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(propagate(tissue, normal(2000, columns)), expected)
        hidden = linear(features)
        result = propagate(tissue, hidden)
    assert hidden.dtype == result.dtype == torch.bfloat16
    assert torch.equal(result, propagate(tissue, hidden.float()).bfloat16())
    result.float().square().mean().backward()
    assert torch.isfinite(linear.weight.grad).all()


def test_mixed_precisions(tissue):
    wide = SymmetricAdjacency(tissue.double())
    for columns in (8, 32):
        features = normal(2000, columns)
        torch.testing.assert_close(propagate(wide, features), propagate(tissue, features))
        assert propagate(tissue, features.double()).dtype == torch.float64


def test_no_gradient_is_recorded_without_need(tissue):
    assert not propagate(tissue, normal(2000, 3)).requires_grad
    with torch.no_grad():
        assert not propagate(tissue, normal(2000, 3).requires_grad_()).requires_grad


def test_wrapping_keeps_the_matrix(tissue):
    adjacency = SymmetricAdjacency(tissue)
    assert torch.equal(adjacency.coo.indices(), tissue.indices())
    assert torch.equal(adjacency.coo.values(), tissue.values())
    assert (
        adjacency.to("cpu") is adjacency
        and adjacency.n_nodes == 2000
        and adjacency.device == torch.device("cpu")
    )
    assert adjacency.to("cpu") is adjacency
    csr = tissue.to_sparse_csr()
    np.testing.assert_array_equal(adjacency.offsets, csr.crow_indices())
    np.testing.assert_array_equal(adjacency.columns, csr.col_indices())


def test_symmetry_is_checked_on_request(tissue):
    SymmetricAdjacency(tissue).check_symmetric()
    upper = torch.tensor([[1.0, 2.0], [0.0, 1.0]]).to_sparse().coalesce()
    with pytest.raises(InputError, match="differs from its mirror image by 2"):
        SymmetricAdjacency(upper).check_symmetric()
    infinite = torch.tensor([[float("nan"), 0.0], [0.0, 1.0]]).to_sparse().coalesce()
    with pytest.raises(InputError, match="not symmetric"):
        SymmetricAdjacency(infinite).check_symmetric()


def test_refuses_invalid_matrices(tissue):
    twice = torch.sparse_coo_tensor([[0, 0], [1, 1]], [1.0, 2.0], (2, 2))
    for matrix, message in [
        (torch.eye(3), "sparse COO"),
        (torch.sparse_coo_tensor(torch.zeros((2, 0)).long(), [], (2, 3)), r"shape \(2, 3\)"),
        (twice, "not coalesced"),
        (tissue.to(torch.complex64), "float32 or float64"),
    ]:
        with pytest.raises(InputError, match=message):
            SymmetricAdjacency(matrix)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (torch.ones(5, 2), "2000 nodes"),
        (torch.ones(2000), "2000 nodes"),
        (torch.ones(2000, 2, dtype=torch.int64), "floating"),
        (torch.ones(2000, 2, device="meta"), "are on meta"),
    ],
)
def test_refuses_invalid_features(tissue, features, message):
    with pytest.raises(InputError, match=message):
        propagate(tissue, features)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("columns", WIDTHS)
def test_cuda_equals_cpu_and_repeats_its_bits(tissue, columns):
    features = normal(2000, columns)
    adjacency = SymmetricAdjacency(tissue).to("cuda")
    results = []
    torch.use_deterministic_algorithms(True)
    try:
        for _ in range(5):
            leaf = features.cuda().requires_grad_()
            result = propagate(adjacency, leaf)
            results.append((result, *torch.autograd.grad(result.square().sum(), leaf)))
    finally:
        torch.use_deterministic_algorithms(False)
    for again in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(again, results[0], strict=True))
    torch.testing.assert_close(results[0][0].cpu(), propagate(tissue, features))
