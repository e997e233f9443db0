"""Tables with one line for each spot and gene."""

import numpy as np
import pandas as pd
import pytest
from input_files import (
    BARCODES,
    COUNTS,
    GENES,
    N_SPOTS,
    truncate,
    write_coordinates,
    write_counts_table,
    write_text,
)

from amilst_lite import io
from amilst_lite.errors import InputError
from amilst_lite.io.long_table import LONG_TABLE

ROWS, COLUMNS = np.nonzero(COUNTS)
LINES = pd.DataFrame(
    {
        "spot": np.array(BARCODES)[ROWS],
        "gene": np.array(GENES)[COLUMNS],
        "count": COUNTS[ROWS, COLUMNS].astype(int),
        "x": ROWS + 0.5,
        "y": 2.0 * ROWS,
    }
).sample(frac=1, random_state=0)
POSITIONS = np.column_stack([np.arange(N_SPOTS) + 0.5, 2.0 * np.arange(N_SPOTS)])


def write(path, frame=LINES, separator="\t", **options):
    return write_text(path, frame.to_csv(sep=separator, index=False, **options), path.suffix == ".gz")


def assert_is_counts(adata):
    assert set(adata.obs_names) == set(LINES["spot"])
    np.testing.assert_array_equal(
        adata[np.unique(LINES["spot"])].to_df()[GENES],
        pd.DataFrame(COUNTS, BARCODES, GENES).loc[np.unique(LINES["spot"])],
    )
    assert adata.X.dtype == np.float32
    assert adata.X.has_canonical_format
    expected = pd.DataFrame(POSITIONS, BARCODES).loc[adata.obs_names]
    np.testing.assert_array_equal(adata.obsm["spatial"], expected)


@pytest.mark.parametrize("separator", ["\t", ",", ";", " "])
@pytest.mark.parametrize("name", ["long.txt", "long.csv.gz"])
def test_separators_and_chunks(tmp_path, monkeypatch, separator, name):
    monkeypatch.setattr("amilst_lite.io.entries.CHUNK_LINES", 5)
    adata = io.read(write(tmp_path / name, separator=separator))
    assert_is_counts(adata)
    assert adata.uns["amilst_input"]["platform"] == "long_table"
    assert list(adata.obs_names) == list(pd.unique(LINES["spot"]))


@pytest.mark.parametrize(
    "names",
    [
        ["barcode", "gene_name", "UMI", "x", "y"],
        ["cell_id", "feature_name", "counts", "x_centroid", "y_centroid"],
        ["Cell.ID", "Gene Symbol", "n", "X_coord", "Y_coord"],
    ],
)
def test_spellings_order_and_further_columns(tmp_path, names):
    frame = LINES.rename(columns=dict(zip(LINES, names, strict=True))).assign(note="a note")
    assert_is_counts(io.read(write(tmp_path / "long.csv", frame[frame.columns[::-1]], ",", quoting=2)))


def test_repeated_lines_are_summed_and_zeros_kept_as_spots(tmp_path):
    half = LINES.assign(count=LINES["count"] - (LINES["count"] > 1))
    rest = LINES[LINES["count"] > 1].assign(count=1)
    assert_is_counts(io.read(write(tmp_path / "long.tsv", pd.concat([half, rest]))))
    empty = LINES.assign(count=np.where(LINES["spot"] == BARCODES[0], 0, LINES["count"]))
    adata = io.read(write(tmp_path / "zeros.tsv", empty))
    assert adata[BARCODES[0]].X.nnz == 0


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_encodings_and_line_ends(tmp_path, encoding):
    path = tmp_path / "long.csv"
    path.write_bytes(LINES.to_csv(index=False, lineterminator="\r\n").encode(encoding))
    assert_is_counts(io.read(path))


def test_names_that_are_numbers_stay_as_they_are(tmp_path):
    frame = LINES.assign(spot=[f"00{code}" for code in pd.factorize(LINES["spot"])[0]])
    found = io.read(write(tmp_path / "a.tsv", frame))
    assert set(found.obs_names) == set(frame["spot"])


def test_coordinates_from_a_table(tmp_path):
    path = write(tmp_path / "long.csv", LINES[["spot", "gene", "count"]], ",")
    with pytest.raises(InputError, match="neither columns x and y nor a table of them.*--coordinates TABLE"):
        io.read(path)
    names = sorted(set(LINES["spot"]))
    adata = io.read(path, coordinates=write_coordinates(tmp_path / "xy.csv", names))
    assert list(adata.obs["layer"]) == [f"L{names.index(name) % 2}" for name in adata.obs_names]
    # a table is preferred to the columns
    moved = io.read(
        write(tmp_path / "xy.tsv"), coordinates=write_coordinates(tmp_path / "b.csv", names[::-1])
    )
    assert not np.array_equal(moved.obsm["spatial"], POSITIONS)


def test_recognition(tmp_path):
    assert LONG_TABLE.recognizes(write(tmp_path / "a.tsv"))
    assert not LONG_TABLE.recognizes(write(tmp_path / "b.tsv", LINES.drop(columns="count")))
    assert not LONG_TABLE.recognizes(write_counts_table(tmp_path / "c.tsv"))
    matrix = write_text(
        tmp_path / "d.tsv", "\t".join(["spot", "gene", "count", *(f"G{i}" for i in range(30))]) + "\n"
    )
    assert not LONG_TABLE.recognizes(matrix)
    with pytest.raises(InputError, match="not a table in long format: expected columns of the spot"):
        io.read(write_counts_table(tmp_path / "e.tsv"), platform="long_table")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": "1,5"}, "cannot be read as a table of counts .*1,5"),
        ({"count": -2}, "line 2: expected counts from 0 to 16,777,215; found .*count -2"),
        ({"count": 1e9}, "line 2: expected counts"),
        ({"count": "nan"}, "line 2: expected counts"),
        ({"count": ""}, "line 2: expected counts .*count nan"),
        (
            {"x": np.arange(len(LINES))},
            r"spot '\w+-1' has the positions .*expected one position for each spot",
        ),
        ({"y": "nan"}, "has the positions .*nan.*, and numbers"),
    ],
)
def test_wrong_values(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        io.read(write(tmp_path / "long.tsv", LINES.assign(**change)))


def test_broken_files(tmp_path):
    path = write(tmp_path / "long.tsv.gz", pd.concat([LINES] * 500))
    truncate(path)
    with pytest.raises(InputError, match=r"long\.tsv\.gz cannot be read as a table of counts"):
        io.read(path)
    text = write(tmp_path / "a.tsv").read_text()
    with pytest.raises(InputError, match="has the positions .*nan"):
        io.read(write_text(tmp_path / "b.tsv", text[: text.rindex("\t") - 1]))
    with pytest.raises(InputError, match="expected a header and at least one row"):
        io.read(write_text(tmp_path / "c.tsv", "spot\tgene\tcount\n"), platform="long_table")
