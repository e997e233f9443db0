"""Fits at once, in threads and in processes, give the results of single ones and leave the settings of the caller."""

import multiprocessing
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from fitting import bits_of_a_fit, fitted

from amilst_lite import KMeans
from amilst_lite.errors import TrainingDivergedError
from amilst_lite.runtime import n_threads, standard_math, threads_for, use_threads


@contextmanager
def torch_threads(n):
    """Within: n threads in the calling thread and in those that start later, as the caller sets it."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def in_new_thread(function, *arguments):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function, *arguments).result()


def fit_in_threads(n):
    """`n` threads that start at once, each with a seed of its own."""
    together = threading.Barrier(n)

    def fit(seed):
        together.wait()
        return bits_of_a_fit(seed), torch.get_num_threads()

    with ThreadPoolExecutor(n) as pool:
        return list(pool.map(fit, range(n)))


def check_threads(n):
    expected = [bits_of_a_fit(seed) for seed in range(n)]
    assert len(set(expected)) == n
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch_threads(2):
            found = fit_in_threads(n)
            assert torch.get_num_threads() == in_new_thread(torch.get_num_threads) == 2
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(dtype)
    assert [one for one, _ in found] == expected
    assert [threads for _, threads in found] == [2] * n
    return expected


def test_threads_give_the_results_of_single_fits():
    check_threads(2)


def test_forked_processes_give_the_results_of_single_fits():
    """In a process of its own, since the one of the tests may have threads, which a fork loses."""
    assert len(set(fit_in_forks(2))) == 2


def fit_in_forks(n):
    """Results of `n` forks, at once, of a new process that has fitted before."""
    code = """
import multiprocessing, sys, torch
sys.path.insert(0, sys.argv[1])
from fitting import bits_of_a_fit

def in_parallel():
    return float(torch.ones(10**6).exp().sum())

def child(seed):
    return bits_of_a_fit(seed), in_parallel(), torch.get_num_threads()

if __name__ == "__main__":
    torch.set_num_threads(2)
    in_parallel()  # starts threads, for which a fork would wait forever
    before = bits_of_a_fit(0)
    with multiprocessing.get_context("fork").Pool(int(sys.argv[2])) as pool:
        found = pool.map(child, range(int(sys.argv[2])), chunksize=1)
    assert found[0][0] == before and all(threads == 1 for _, _, threads in found)
    print(*(bits for bits, _, _ in found))
"""
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("this system does not fork")
    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent), str(n)],
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
    )
    return done.stdout.split()


@pytest.mark.slow
def test_twenty_threads_and_eight_processes():
    expected = check_threads(20)
    assert fit_in_forks(8) == expected[:8]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(8, mp_context=spawn) as pool:
        assert list(pool.map(bits_of_a_fit, range(8))) == expected[:8]


# --- settings of the process ----------------------------------------------------------------


def test_threads_are_restored_after_errors():
    def fail(*_):
        raise TrainingDivergedError("on purpose")

    with torch_threads(3):
        with pytest.raises(TrainingDivergedError, match="on purpose"):
            fitted(0, callback=fail)
        assert torch.get_num_threads() == in_new_thread(torch.get_num_threads) == 3
        assert torch.get_default_dtype() == torch.float32


def test_limits_of_threads_are_those_of_the_thread_that_sets_them():
    with torch_threads(3), threads_for(0):
        assert torch.get_num_threads() == 1
        assert in_new_thread(torch.get_num_threads) == 3  # not what this thread has limited itself to
        in_new_thread(use_threads, 2)
        assert in_new_thread(n_threads) == 3
    with torch_threads(3), threads_for(10**9):
        assert torch.get_num_threads() == 3


def test_limits_of_threads_that_overlap():
    """One begins while another is limited, and ends after it."""
    began, ended = threading.Event(), threading.Event()
    seen = []

    def other():
        with threads_for(0):
            seen.append(torch.get_num_threads())
            began.set()
            ended.wait()
        seen.append(torch.get_num_threads())

    with torch_threads(3):
        with threads_for(0):
            thread = threading.Thread(target=other)
            thread.start()
            began.wait()
        ended.set()
        thread.join()
        assert seen == [1, 3]
        assert torch.get_num_threads() == in_new_thread(torch.get_num_threads) == 3


def test_default_dtype_of_threads_that_overlap():
    """It is that of the process: float32 until the last thread has ended."""
    began, ended = threading.Event(), threading.Event()
    seen = []

    def other():
        with standard_math():
            began.set()
            ended.wait()
            seen.append((torch.get_default_dtype(), torch.get_float32_matmul_precision()))

    torch.set_default_dtype(torch.float64)
    torch.set_float32_matmul_precision("medium")
    try:
        with standard_math():
            thread = threading.Thread(target=other)
            thread.start()
            began.wait()
        ended.set()
        thread.join()
        assert seen == [(torch.float32, "highest")]
        assert torch.get_default_dtype() == torch.float64
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_float32_matmul_precision("highest")


def test_threads_that_process_blocks_do_not_limit_others():
    X = np.random.default_rng(0).normal(size=(3000, 4))
    with torch_threads(2):
        first = KMeans(3, random_state=0).fit(X).labels_
        assert in_new_thread(torch.get_num_threads) == 2
    with torch_threads(1):
        np.testing.assert_array_equal(KMeans(3, random_state=0).fit(X).labels_, first)
