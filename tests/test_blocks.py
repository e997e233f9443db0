"""Reductions over blocks, and functions that run side by side."""

import threading

import pytest
import torch

from amilst_lite.cluster import blocks
from amilst_lite.cluster.blocks import block_threads, concurrently, over_blocks, sum_over_blocks
from amilst_lite.runtime import threads_for


@pytest.fixture
def two_threads(monkeypatch):
    monkeypatch.setattr(blocks, "n_threads", lambda: 2)


def test_functions_run_side_by_side_and_each_by_itself(two_threads):
    meeting = threading.Barrier(2, timeout=20)  # neither goes on without the other

    def part(number):
        meeting.wait()
        threads = {*over_blocks(lambda rows: threading.get_ident(), 10_000, 2**12)}
        return number, threads == {threading.get_ident()}

    with block_threads():
        found = concurrently([lambda: part(1), lambda: part(2)])
        assert blocks._POOL.get() is not None
    assert found == [(1, True), (2, True)]


def test_an_error_of_one_function_is_raised(two_threads):
    with block_threads(), pytest.raises(ZeroDivisionError):
        concurrently([lambda: 1, lambda: 1 // 0])


def test_without_threads_functions_run_in_turn():
    with threads_for(0), block_threads():
        assert concurrently([threading.get_ident] * 2) == [threading.get_ident()] * 2


def test_sums_do_not_depend_on_the_number_of_threads(monkeypatch):
    X = torch.randn(5000, 300, generator=torch.Generator().manual_seed(0))
    found = []
    for n in (1, 2):
        monkeypatch.setattr(blocks, "n_threads", lambda n=n: n)
        with block_threads():
            found.append(sum_over_blocks(lambda rows: (X[rows].sum(0),), len(X), X.shape[1])[0])
    assert torch.equal(*found)
    torch.testing.assert_close(found[0], X.double().sum(0), rtol=1e-4, atol=1e-3)
