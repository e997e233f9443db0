"""How much memory the content of a file may take, by the size of the file."""

from __future__ import annotations

import zlib

_LARGE = 2**28
_COMPRESSION = 1000


def most_memory(size: int) -> int:
    """Bytes of arrays that are plausible in a file or store of ``size`` bytes.

    gzip compresses to a thousandth at best; of files of less than a megabyte nothing is expected that takes more
    than 256.
    """
    return max(_LARGE, _COMPRESSION * (size - 2**20))


def longest_unchecked(size: int) -> int:
    """Bytes of a compressed part, in a file of ``size`` bytes, below which it cannot take much memory."""
    return min(max(size // 4, 2**18), 2**20)


def inflates_beyond(data: bytes, most: int, *, gzip: bool = False) -> bool:
    """Whether a zlib or gzip stream holds more than ``most`` bytes; takes about a megabyte to find out."""
    stream, length = zlib.decompressobj(31 if gzip else 15), 0
    for start in range(0, len(data), 2**16):
        piece = data[start : start + 2**16]
        while piece and not stream.eof:
            length += len(stream.decompress(piece, 2**20))
            if length > most:
                return True
            piece = stream.unconsumed_tail
        if stream.eof:
            break
    return False
