"""Parquet tables of spots, and those that stand for more than a file of their size can hold."""

import numpy as np
import pandas as pd
import pytest
from input_files import BARCODES, truncate

from amilst_lite.errors import InputError, MissingExtraError
from amilst_lite.io.coordinates import SpotTable
from amilst_lite.io.parquet import read_parquet, rows_at_once

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

FRAME = pd.DataFrame({"x": np.arange(12) + 0.5, "y": np.arange(12), "layer": ["a", "b"] * 6})


def write(path, frame, **options):
    frame.to_parquet(path, **options)
    return path


def test_a_table_is_read_as_pandas_reads_it(tmp_path, monkeypatch):
    path = write(tmp_path / "a.parquet", FRAME.assign(more=[[1, 2]] * 12))
    for rows in (2000, 5):
        monkeypatch.setattr("amilst_lite.io.parquet._ROWS", rows)
        frame = read_parquet(path, "a table")
        pd.testing.assert_frame_equal(frame.drop(columns="more"), pd.read_parquet(path).drop(columns="more"))
        assert rows_at_once(path, pq.ParquetFile(path).metadata) == rows


@pytest.mark.parametrize("name", [None, "spot"])
def test_names_in_the_index_of_pandas_are_the_names_of_the_spots(tmp_path, name):
    frame = FRAME.set_axis(pd.Index(BARCODES, name=name), axis=0)
    table = SpotTable.read(write(tmp_path / "a.parquet", frame))
    rows, column = table.locate(pd.Index(BARCODES[::-1]))
    assert rows.tolist() == list(range(12))[::-1] and column == (name or "0")
    assert table.columns_at(rows)["layer"].tolist() == ["b", "a"] * 6


def test_tables_that_are_refused(tmp_path, without_package):
    path = write(tmp_path / "a.parquet", FRAME.iloc[:0])
    with pytest.raises(InputError, match="has no rows; expected a header and one row per spot"):
        SpotTable.read(path)
    pq.write_table(pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["x", "x"]), path)
    with pytest.raises(
        InputError, match="names of columns, each once; 'x' repeat|cannot be read as a parquet table"
    ):
        SpotTable.read(path)
    truncate(write(path, FRAME))
    with pytest.raises(InputError, match=r"a\.parquet cannot be read as a parquet table"):
        SpotTable.read(path)
    without_package("pyarrow")
    with pytest.raises(MissingExtraError, match=r"a\.parquet needs the package 'pyarrow'"):
        SpotTable.read(path)


@pytest.mark.skipif(int(pa.__version__.split(".")[0]) < 20, reason="older pyarrow writes no such sizes")
def test_a_column_whose_description_contradicts_its_sizes(tmp_path):
    """pyarrow ends the interpreter when such a column is asked for its size (found by benchmarks/faults/fuzz.py)."""
    content = write(tmp_path / "a.parquet", FRAME).read_bytes()
    optional, unknown = b"%\x02\x18\x05layer", b"%\x03\x18\x05layer"
    assert content.count(optional) == 1
    (tmp_path / "b.parquet").write_bytes(content.replace(optional, unknown))
    with pytest.raises(InputError, match=r"b\.parquet cannot be read as a table"):
        read_parquet(tmp_path / "b.parquet", "a table")


def test_many_rows_in_a_few_bytes(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"x": np.zeros(40_000_000, np.int8)}), path)
    assert path.stat().st_size < 2**20
    with pytest.raises(InputError, match=r"declares 40,000,000 rows × 1 columns in [\d,]+ bytes"):
        read_parquet(path, "a table")


def test_a_long_string_that_is_repeated(tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    column = pa.DictionaryArray.from_arrays(np.zeros(200, np.int32), ["x" * 100_000])
    pq.write_table(pa.table({"name": column}), path, store_schema=False)  # else it would remain a dictionary
    assert path.stat().st_size < 2**20 and len(read_parquet(path, "a table")) == 200
    monkeypatch.setattr("amilst_lite.io.parquet.most_memory", lambda _: 5_000_000)
    assert rows_at_once(path, pq.ParquetFile(path).metadata) == 3
    with pytest.raises(InputError, match=r"declares 0\.0 GiB of values in [\d,]+ bytes"):
        read_parquet(path, "a table")


def test_bytes_that_are_not_text(tmp_path):
    table = SpotTable.read(write(tmp_path / "a.parquet", FRAME.assign(name=[b"\xff\xfea"] * 12)))
    assert table.frame["name"].iloc[0].endswith("a")
