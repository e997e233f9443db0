"""Warnings: issued, recorded and muted, in several threads at once."""

import threading
import warnings

import pytest

import amilst_lite.errors as errors
from amilst_lite.errors import AmilstWarning, muted_warnings, recorded_warnings, warn


def test_warnings_are_shown_every_time_and_recorded():
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("default")  # which shows a warning once for each line that issues it
        for _ in range(2):
            with recorded_warnings() as texts:
                warn("be\n  careful")
                warnings.warn("another package", UserWarning, stacklevel=1)
            assert texts == ["be careful"]
    assert [str(one.message) for one in shown if one.category is AmilstWarning] == ["be\n  careful"] * 2


def test_warnings_follow_the_filters_of_the_caller():
    with warnings.catch_warnings(), recorded_warnings() as texts:
        warnings.simplefilter("error")
        with pytest.raises(AmilstWarning, match="careful"):
            warn("careful")
        warnings.simplefilter("ignore")
        warn("again")
    assert texts == ["careful", "again"]  # recorded all the same


def test_warnings_name_the_line_outside_of_the_package(monkeypatch):
    with pytest.warns(AmilstWarning) as shown:
        warn("careful")
    assert shown[0].filename == __file__
    monkeypatch.setattr(errors, "_OURS", __file__)  # this file is now part of it
    with pytest.warns(AmilstWarning) as shown:
        warn("careful")
    assert shown[0].filename != __file__


def test_a_list_within_another_one():
    with recorded_warnings() as outer, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warn("one")
        with recorded_warnings() as inner:
            warn("two")
        warn("three")
    assert outer == ["one", "two", "three"] and inner == ["two"]


def test_muted_warnings_are_neither_shown_nor_recorded():
    with recorded_warnings() as texts, muted_warnings():
        warn("careful")  # an error otherwise, see the filters of pytest
    assert texts == []


@pytest.mark.filterwarnings("ignore::amilst_lite.errors.AmilstWarning")
def test_each_thread_records_its_own():
    together = threading.Barrier(4)
    found = {}

    def run(name):
        with recorded_warnings() as texts:
            together.wait()
            for _ in range(100):
                warn(name)
            with muted_warnings():
                together.wait()
                warn("muted")
            together.wait()
        found[name] = texts

    threads = [threading.Thread(target=run, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {name: [name] * 100 for name in "abcd"}
