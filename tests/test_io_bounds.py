"""How much memory the content of a file may take."""

import gzip
import zlib

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
        assert not bounds.inflates_beyond(data, len(content), gzip=is_gzip)
        if content:
            assert bounds.inflates_beyond(data, len(content) - 1, gzip=is_gzip)
