"""Sparse matrices from entries in chunks: dense sums as the oracle."""

import gzip
import tracemalloc

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import io as scipy_io
from scipy import sparse

from amilst_lite.errors import InputError
from amilst_lite.io import entries
from amilst_lite.io.entries import EntryMatrix, Names, check_counts, read_lines, read_matrix_market


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), pending=st.integers(1, 200), block=st.integers(1, 50))
def test_entries_are_summed_in_any_order(seed, pending, block):
    rng = np.random.default_rng(seed)
    row_keys = np.sort(rng.choice(2**43, 20, replace=False))
    expected = np.zeros((20, 15))
    matrix = EntryMatrix()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(entries, "_PENDING", pending)
        patch.setattr(entries, "_BLOCK", block)
        for n_entries in rng.integers(0, 60, 12):
            rows, columns = rng.integers(0, 20, n_entries), rng.integers(0, 15, n_entries)
            counts = rng.integers(0, 4, n_entries)
            np.add.at(expected, (rows, columns), counts)
            matrix.add(row_keys[rows], columns, counts)
        result = matrix.finish(15)
    seen = np.isin(row_keys, matrix.rows)
    assert not expected[~seen].any()
    np.testing.assert_array_equal(result.toarray(), expected[seen])
    result.check_format(full_check=True)
    assert result.dtype == np.float32
    assert (np.diff(result.indices) > 0).sum() >= result.nnz - result.shape[0]
    assert (result.data > 0).all()


def test_memory_is_that_of_the_result_and_a_batch(monkeypatch):
    monkeypatch.setattr(entries, "_PENDING", 20_000)
    monkeypatch.setattr(entries, "_BLOCK", 20_000)
    rng = np.random.default_rng(0)
    tracemalloc.start()
    matrix = EntryMatrix()
    for _ in range(100):
        matrix.add(rng.integers(0, 2000, 10_000), rng.integers(0, 5000, 10_000), np.ones(10_000))
    result = matrix.finish(5000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    least = 8 * result.nnz
    assert result.nnz > 900_000
    assert peak < 1.5 * (least + 60 * 20_000)


@pytest.mark.parametrize(("rows", "columns"), [([-1], [0]), ([0], [-1]), ([2**43], [0]), ([0], [2**20])])
def test_keys_out_of_range(rows, columns):
    with pytest.raises(ValueError, match="must lie between 0 and"):
        EntryMatrix().add(np.array(rows), np.array(columns), np.ones(1))


def test_sums_that_float32_cannot_hold():
    matrix = EntryMatrix()
    for _ in range(3):
        matrix.add(np.array([5]), np.array([1]), np.array([2**23]))
    with pytest.raises(ValueError, match="adds up to 16777216 or more"):
        matrix.finish(2)


def test_no_entries():
    assert EntryMatrix().finish(3).shape == (0, 3)


def test_names_keep_their_codes():
    names = Names()
    first = names.encode(pd.Series(["b", "a", "b"], dtype="category"))
    second = names.encode(pd.Series(["c", "a"], dtype="category"))
    assert list(names.index[first]) == ["b", "a", "b"]
    assert list(names.index[second]) == ["c", "a"]
    assert len(names) == 3


COLUMNS = {0: ("gene", "category"), 2: ("count", np.int64)}


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("gzipped", [False, True])
def test_lines_in_chunks(tmp_path, monkeypatch, ends, encoding, gzipped):
    monkeypatch.setattr(entries, "CHUNK_LINES", 3)
    lines = [
        "# ü",
        "gene,x,count",
        *(f"{name},1,{i}" for i, name in enumerate(["NA", "nan", "G1", '"a,b"', "G1"])),
    ]
    content = (ends.join(lines) + ends).encode(encoding)
    path = tmp_path / "lines"
    path.write_bytes(gzip.compress(content) if gzipped else content)
    seen = []
    chunks = list(
        read_lines(
            path, COLUMNS, separator=",", skip=2, progress=lambda done, size: seen.append((done, size))
        )
    )
    assert [chunk.first for chunk in chunks] == [3, 6]
    frame = pd.concat([chunk.frame.astype({"gene": str}) for chunk in chunks])
    assert list(frame["gene"]) == ["NA", "nan", "G1", "a,b", "G1"]
    assert list(frame["count"]) == [0, 1, 2, 3, 4]
    assert seen[-1] == (path.stat().st_size, path.stat().st_size)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("g,1,2\ng,1\n", "cannot be read as a table of counts"),  # cut within a line
        ("g,1,2\ng,1,x\n", "cannot be read as a table of counts .*x"),
        ("g,1,99999999999999999999999\n", "cannot be read as a table of counts"),  # more than int64
    ],
)
def test_broken_lines(tmp_path, text, message):
    (tmp_path / "lines").write_text("gene,x,count\n" + text)
    with pytest.raises(InputError, match=message):
        list(read_lines(tmp_path / "lines", COLUMNS, separator=",", skip=1))


def test_truncated_gzip(tmp_path):
    path = tmp_path / "lines.gz"
    rng = np.random.default_rng(0)
    text = "gene,x,count\n" + "".join(f"g,1,{i}\n" for i in rng.integers(0, 10**6, 20_000))
    path.write_bytes(gzip.compress(text.encode())[:-20_000])
    with pytest.raises(InputError, match=r"lines\.gz cannot be read .*download it again"):
        list(read_lines(path, COLUMNS, separator=",", skip=1))


def test_counts_and_coordinates_out_of_range(tmp_path):
    def lines(**columns):
        return entries.Lines(10, pd.DataFrame({"count": [1, 2], "x": [0, 3], **columns}))

    check_counts(tmp_path, lines(), positions=("x",))
    with pytest.raises(
        InputError, match="line 11: expected counts from 0 to 16,777,215; found count 1000000000, x 3"
    ):
        check_counts(tmp_path, lines(count=[1, 10**9]))
    with pytest.raises(InputError, match="line 10: expected counts"):
        check_counts(tmp_path, lines(count=[np.nan, -1]))
    with pytest.raises(
        InputError, match="line 11: expected coordinates that are not negative; found count 2, x -3"
    ):
        check_counts(tmp_path, lines(x=[0, -3]), positions=("x",))


# --- Matrix Market ----------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:The default value for `spmatrix`")  # of scipy's own reader
@pytest.mark.parametrize("gzipped", [False, True])
@pytest.mark.parametrize("field", ["integer", "real"])
def test_matrix_market_as_scipy_reads_it(tmp_path, monkeypatch, gzipped, field):
    monkeypatch.setattr(entries, "CHUNK_LINES", 7)
    rng = np.random.default_rng(0)
    counts = rng.poisson(0.4, (9, 23)) * (1 if field == "integer" else 0.5)
    counts[:, 5] = counts[3] = 0  # a column and a row without entries
    path = tmp_path / "m.mtx"
    scipy_io.mmwrite(path, sparse.coo_matrix(counts), comment=" a comment", field=field)
    written = path.read_text().splitlines()
    n_head = written.index(f"9 23 {np.count_nonzero(counts)}") + 1
    head, body = written[:n_head], written[n_head:]
    text = "\n".join([*head, *rng.permutation(body)]) + "\n"  # in any order
    path = tmp_path / f"again.mtx{'.gz' if gzipped else ''}"
    path.write_bytes(gzip.compress(text.encode()) if gzipped else text.encode())
    matrix = read_matrix_market(path)
    assert matrix.dtype == np.float32 and matrix.has_canonical_format
    np.testing.assert_array_equal(matrix.toarray(), scipy_io.mmread(path).toarray().T)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("coordinate", "array"), "expected a general matrix of coordinates"),
        (lambda text: text.replace("general", "symmetric"), "found '%%matrixmarket .* symmetric'"),
        (
            lambda text: text.replace("3 2 3", "3 2"),
            "expected the numbers of rows, columns and entries; found '3 2'",
        ),
        (lambda text: text.replace("3 2 3", "3 2 4"), "expected 4 entries; found 3"),
        (lambda text: text.replace("3 2 7", "4 2 7"), "expected entries within 3 rows and 2 columns"),
        (lambda text: text.replace("3 2 7", "0 2 7"), "expected entries within 3 rows"),
        (
            lambda text: text.replace("3 2 7", "3 2 -7"),
            "line 5: expected counts from 0 to .* found row 3.*column 2",
        ),
        (lambda text: text.replace("3 2 7", "3 2 x"), r"m\.mtx cannot be read"),
        (lambda text: text.replace("3 2 7", "3 2"), "expected counts"),
        (lambda text: "", r"m\.mtx cannot be read"),
    ],
)
def test_wrong_matrix_market(tmp_path, change, message):
    text = "%%MatrixMarket matrix coordinate integer general\n3 2 3\n1 1 5\n2 1 6\n3 2 7\n"
    path = tmp_path / "m.mtx"
    path.write_text(change(text))
    with pytest.raises(InputError, match=message):
        read_matrix_market(path)
