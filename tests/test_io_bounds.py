"""How much memory the content of a file may take."""

import gzip
import zlib

import h5py
import numpy as np
import pytest

from amilst_lite.io import bounds


def test_small_files_may_take_256_mib_and_large_ones_a_thousand_times_their_size():
    assert bounds.most_memory(0) == bounds.most_memory(2**20) == 2**28
    assert bounds.most_memory(2**30) == pytest.approx(1000 * 2**30, rel=1e-2)


@pytest.mark.parametrize("pack", [zlib.compress, gzip.compress])
@pytest.mark.parametrize("length", [0, 1, 2**16, 2**20 + 1, 3 * 2**20])
def test_length_of_a_compressed_stream(pack, length):
    for content in (bytes(length), bytes(range(256)) * (length // 256)):
        data = pack(content)
        is_gzip = pack is gzip.compress
        assert bounds.inflated_length(data, len(content), gzip=is_gzip) == len(content)
        if content:
            assert bounds.inflated_length(data, len(content) - 1, gzip=is_gzip) >= len(content)


def test_text_of_a_table_may_be_thirty_times_as_long_as_its_file():
    assert bounds.most_text(10) == 2**25 and bounds.most_text(2**30) == 30 * 2**30


@pytest.mark.parametrize("length", [1, 7, 300, 10_000, 70_000])
def test_length_of_lzf(tmp_path, length):
    rng = np.random.default_rng(length)
    for values in (np.zeros(length, np.uint8), rng.integers(0, 3, length), rng.integers(0, 256, length)):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            data = file.create_dataset("a", data=values, dtype="u1", chunks=(length,), compression="lzf")
            mask, content = data.id.read_direct_chunk((0,))
        if not mask:  # what does not become shorter is stored as it is
            assert bounds.lzf_length(content) == length
