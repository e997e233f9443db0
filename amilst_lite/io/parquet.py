"""Opening parquet tables that may come from anywhere.

A few bytes of a parquet file can stand for any number of rows, and for any number of copies of a long string. Tables
are therefore read in batches, and refused once they take more memory than a file of their size can need. Not checked:
the size that the header of a page declares, at most 2 GiB, which pyarrow allocates to decompress it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, MissingExtraError
from .bounds import most_memory
from .files import reading

if TYPE_CHECKING:
    import pandas as pd

_SMALL = 2**20  # bytes of a file; of larger ones, a batch is expected to fit
_ROWS = 2**16
_CELL = 8  # bytes that a value takes at least, in a data frame


@contextmanager
def open_parquet(path: Path, expected: str) -> Iterator[Any]:
    """A ``pyarrow.parquet.ParquetFile``; errors in the body become an InputError, see `files.reading`.

    Raises
    ------
    InputError
        The file is broken, or declares more rows than a file of its size can hold.
    MissingExtraError
        pyarrow is not installed.
    """
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise MissingExtraError.for_package("pyarrow", "parquet", f"reading {path}") from error
    pool = pyarrow.default_memory_pool()  # may keep what is released
    pyarrow.set_memory_pool(pyarrow.system_memory_pool())
    try:
        with reading(path, expected), path.open("rb") as source:
            file = ParquetFile(source)
            rows, columns = file.metadata.num_rows, max(1, file.metadata.num_columns)
            if rows * columns * _CELL > most_memory(path.stat().st_size):
                raise _too_large(path, f"{rows:,} rows × {columns:,} columns")
            yield file
    finally:
        pyarrow.set_memory_pool(pool)


def rows_at_once(path: Path, metadata: Any) -> int:
    """Rows of a batch, so few that they take bounded memory even if each has the longest value that the file may hold.

    Parameters
    ----------
    path
    metadata
        Of its ``ParquetFile``. A value is not longer than all columns of a group of rows, nor than a page that is not
        compressed. The columns are not asked for their own sizes: of a damaged file, that ends the interpreter.
    """
    size = path.stat().st_size
    if size > _SMALL:
        return _ROWS
    groups = (metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    longest = max(size, *groups, 1)
    return max(1, min(_ROWS, most_memory(size) // 16 // longest))


def read_parquet(path: Path, expected: str) -> pd.DataFrame:
    """The whole table.

    Raises
    ------
    InputError
        As `open_parquet`; or the values take more memory than a file of this size can need.
    MissingExtraError
        pyarrow is not installed.
    """
    with open_parquet(path, expected) as file:
        from pyarrow import Table

        most, taken = most_memory(path.stat().st_size), 0
        batches = []
        for batch in file.iter_batches(rows_at_once(path, file.metadata)):
            taken += batch.nbytes + _CELL * batch.num_rows * batch.num_columns
            if taken > most:
                raise _too_large(path, f"{taken / 2**30:,.1f} GiB of values")
            batches.append(batch)
        return Table.from_batches(batches, file.schema_arrow).to_pandas()


def _too_large(path: Path, found: str) -> InputError:
    return InputError(
        f"{path} declares {found} in {path.stat().st_size:,} bytes. The file is broken; download it again, or write "
        "the table as text (csv)."
    )
