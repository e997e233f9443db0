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


def most_text(size: int) -> int:
    """Bytes of text that are plausible in a compressed table of names and coordinates of ``size`` bytes."""
    return max(2**25, 30 * size)


def longest_unchecked(size: int) -> int:
    """Bytes of a compressed part, in a file of ``size`` bytes, below which it cannot take much memory."""
    return min(max(size // 4, 2**18), 2**20)


def inflated_length(data: bytes, most: int, *, gzip: bool = False) -> int:
    """Bytes that a zlib or gzip stream holds, or at most a megabyte more than ``most`` if it holds more than that.

    Takes about a megabyte to find out.

    Raises
    ------
    zlib.error
        The stream is broken.
    """
    stream, length = zlib.decompressobj(31 if gzip else 15), 0
    for start in range(0, len(data), 2**16):
        piece = data[start : start + 2**16]
        while not stream.eof:
            part = len(stream.decompress(piece, 2**20))
            length += part
            piece = stream.unconsumed_tail
            if length > most:
                return length
            if not piece and part < 2**20:  # what has been given is used up
                break
    return length


def lzf_length(data: bytes) -> int:
    """Bytes that data in the LZF format of Marc Lehmann's liblzf hold."""
    at, length, end = 0, 0, len(data)
    while at < end:
        control = data[at]
        if control < 32:  # so many bytes and one follow as they are
            length += control + 1
            at += control + 2
        else:  # bytes that came before, by number and distance
            n = control >> 5
            at += 2
            if n == 7:
                n += data[at - 1]
                at += 1
            length += n + 2
    return length
