"""`read`: recognition of formats, options, and errors common to all readers."""

import dataclasses
import gzip
import os
import warnings
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from input_files import (
    BARCODES,
    COUNTS,
    GENES,
    N_SPOTS,
    PIXELS,
    assert_is_section,
    positions_text,
    replace_dataset,
    truncate,
    write_10x_h5,
    write_coordinates,
    write_counts_table,
    write_legacy_h5,
    write_mtx,
    write_text,
    write_visium,
)

from amilst_lite import io
from amilst_lite.errors import InputError
from amilst_lite.io.files import examples, existing, open_text, reading


@pytest.mark.parametrize("write", [lambda p: write_10x_h5(p / "m.h5"), lambda p: write_mtx(p / "m")])
def test_10x_with_a_table_of_coordinates(tmp_path, write):
    path = write(tmp_path)
    with pytest.raises(InputError, match=r"counts but no coordinates.*--coordinates TABLE"):
        io.read(path)
    adata = io.read(path, coordinates=write_coordinates(tmp_path / "xy.csv"))
    assert_is_section(adata)
    assert adata.obsm["spatial"].shape == (N_SPOTS, 2)
    positions = write_text(tmp_path / "p.csv", positions_text(header=False))
    np.testing.assert_array_equal(io.read(path, coordinates=positions).obsm["spatial"], PIXELS)


def test_format_is_recognized_by_content_not_by_name(tmp_path):
    xy = write_coordinates(tmp_path / "xy.csv")
    path = write_10x_h5(tmp_path / "counts.h5ad")
    assert_is_section(io.read(path, coordinates=xy))
    anndata.AnnData(COUNTS, obs=pd.DataFrame(index=BARCODES), var=pd.DataFrame(index=GENES)).write_h5ad(
        tmp_path / "a.h5"
    )
    assert_is_section(io.read(tmp_path / "a.h5"))
    assert_is_section(io.read(write_mtx(tmp_path / "m") / "matrix.mtx.gz", coordinates=xy))
    assert_is_section(io.read(write_counts_table(tmp_path / "c.dat"), coordinates=xy))
    with pytest.raises(InputError, match="has counts but no coordinates"):
        io.read(tmp_path / "c.dat")


def test_given_coordinates_replace_those_in_the_input(tmp_path):
    folder = write_visium(tmp_path / "s")
    adata = io.read(folder, coordinates=write_coordinates(tmp_path / "xy.csv"))
    assert adata.obsm["spatial"][3].tolist() == [3.5, 6]
    assert adata.uns["spatial"]


def test_no_such_file_in_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "section.h5ad").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"folder xyz\. The current folder contains 'section\.h5ad'"):
        io.read("xyz")


def test_no_such_file(tmp_path):
    write_10x_h5(tmp_path / "151673.h5")
    with pytest.raises(InputError, match=r"no file or folder .*151637\.h5.*Did you mean '151673\.h5'\?"):
        io.read(tmp_path / "151637.h5")
    with pytest.raises(InputError, match=r"contains '151673\.h5'"):
        io.read(tmp_path / "something else")
    with pytest.raises(InputError, match=r"its folder .*nowhere does not exist"):
        io.read(str(tmp_path / "nowhere" / "x.h5"))
    with pytest.raises(InputError, match="no file or folder"):
        io.read(tmp_path / "151673.h5", coordinates=tmp_path / "none.csv")
    with pytest.raises(InputError, match="is a folder; expected a table"):
        io.read(tmp_path / "151673.h5", coordinates=tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04" + bytes(600), "an archive, which is not read: unpack it"),
        (gzip.compress(bytes(257) + b"ustar\x0000" + bytes(300)), "an archive, which is not read: unpack it"),
        (b"BZh91AY&SY" + bytes(range(256)), "compressed by another program than gzip: decompress it"),
        (gzip.compress(b"RDX3\nX\n\x00\x00\x00\x03" + bytes(90)), "a file of R objects.*as h5ad"),
    ],
)
def test_formats_of_other_programs(tmp_path, content, message):
    path = tmp_path / "section.bin"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"section\.bin is {message}"):
        io.read(path)


@pytest.mark.parametrize(
    "content", [b"\x89PNG\r\n\x1a\n\x00\x00", b"\xff\xfe\xfa", b"\xfa\x80", gzip.compress(b"PNG3\n\xff\x00")]
)
def test_unknown_format(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(InputError, match=r"is unknown\. Expected the files of one of: AnnData, .*--platform"):
        io.read(tmp_path / "file")


def test_hdf5_of_another_kind(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["layers/spliced"], file["row_attrs"] = 1, 2
    with pytest.raises(
        InputError, match=r"HDF5 file of an unknown format; it contains 'layers', 'row_attrs'"
    ):
        io.read(tmp_path / "x.h5")
    with pytest.raises(InputError, match=r"is not a 10x matrix.*found 'layers', 'row_attrs'"):
        io.read_10x_h5(tmp_path / "x.h5")


def test_truncated_files(tmp_path):
    path = write_10x_h5(tmp_path / "m.h5")
    truncate(path)
    with pytest.raises(InputError, match=r"m\.h5 cannot be read as an HDF5 file"):
        io.read(path)
    counts = write_counts_table(tmp_path / "c.tsv.gz")
    counts.write_bytes(counts.read_bytes()[:15])
    with pytest.raises(InputError, match=r"c\.tsv\.gz cannot be read as text"):
        io.read(counts)


def test_folder_without_input(tmp_path):
    with pytest.raises(InputError, match="no input of a known format; found nothing"):
        io.read(tmp_path)
    write_text(tmp_path / "notes.txt", "hello")
    with pytest.raises(InputError, match=r"found 'notes\.txt'\. Expected"):
        io.read(tmp_path)


def test_options_that_do_not_apply(tmp_path):
    anndata.AnnData(COUNTS).write_h5ad(tmp_path / "s.h5ad")
    with pytest.raises(InputError, match="genome='hg19' applies to .*10x HDF5 only; .* is read as AnnData"):
        io.read(tmp_path / "s.h5ad", genome="hg19")
    with pytest.raises(InputError, match=r"library_id='x' applies to Visium.* only"):
        io.read(tmp_path / "s.h5ad", library_id="x")
    path = write_legacy_h5(tmp_path / "m.h5", {"a": COUNTS, "b": 2 * COUNTS})
    assert_is_section(
        io.read(path, coordinates=write_coordinates(tmp_path / "xy.csv"), genome="b"), counts=2 * COUNTS
    )
    assert list(io.read(write_visium(tmp_path / "v"), library_id="x", genome="GRCh38").uns["spatial"]) == [
        "x"
    ]


READERS = (
    io.read,
    io.read_h5ad,
    io.read_10x_h5,
    io.read_10x_mtx,
    io.read_visium,
    lambda path: io.read_table(path, path),
    lambda path: io.read_table(write_counts_table(Path(path).parent / "counts.tsv"), path),
)


@pytest.mark.parametrize("reader", READERS)
def test_path_that_does_not_exist(tmp_path, reader):
    for path in (tmp_path / "none", str(tmp_path / "none")):
        with pytest.raises(InputError, match=r"There is no file or folder .*none"):
            reader(path)


@pytest.mark.parametrize("reader", READERS[:-1])
@pytest.mark.parametrize("path", ["", None, 3])
def test_what_is_not_a_path(tmp_path, monkeypatch, reader, path):
    monkeypatch.chdir(write_visium(tmp_path / "s"))
    with pytest.raises(InputError, match=f"Expected the path of a file or folder; found {path!r}"):
        reader(path)


@pytest.mark.parametrize("reader", READERS)
def test_folder_of_something_else(tmp_path, reader):
    write_text(tmp_path / "s" / "notes.txt", "hello")
    with pytest.raises(InputError, match=r"'notes\.txt'"):
        reader(tmp_path / "s")


@pytest.mark.parametrize("reader", READERS)
def test_file_of_another_format(tmp_path, reader):
    path = tmp_path / "image.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00")
    with pytest.raises(InputError, match=r"image\.png|has no positions"):
        reader(path)


def test_matrix_market_file_with_another_name(tmp_path):
    path = write_mtx(tmp_path / "m", version=2) / "matrix.mtx"
    path = path.rename(path.with_name("counts.mtx"))
    with pytest.raises(InputError, match=r"counts\.mtx .*expected a name ending in matrix\.mtx"):
        io.read(path, coordinates=write_coordinates(tmp_path / "xy.csv"))


def test_examples():
    assert examples([]) == "nothing"
    assert examples("abc") == "'a', 'b', 'c'"
    assert examples("abcd") == "'a', 'b', 'c', ..."


def test_memory_error_is_not_reported_as_a_broken_file(tmp_path):
    with pytest.raises(MemoryError), reading(tmp_path, "anything"):
        raise MemoryError
    with (
        pytest.raises(InputError, match=r"cannot be read as anything \(EOFError\)"),
        reading(tmp_path, "anything"),
    ):
        raise EOFError


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    write_text(tmp_path / "a.txt", "x")
    assert existing("~/a.txt") == tmp_path / "a.txt"


# --- platforms --------------------------------------------------------------------------------


def test_registry():
    names = [one.name for one in io.PLATFORMS]
    assert len(set(names)) == len(names)
    for one in io.PLATFORMS:
        assert set(one.options) <= set(io.read.__kwdefaults__)
        assert one.unit in ("micrometer", "pixel", "spot", "unknown")
        for path in (Path("/nowhere"), Path(__file__).parent):  # recognition raises nothing
            assert not one.recognizes(path)


def test_input_table_has_a_row_for_each_platform():
    header, line, *rows = io.input_table().splitlines()
    assert len(rows) == len(io.PLATFORMS)
    assert {row.count("|") for row in (header, line, *rows)} == {5}
    for row, one in zip(rows, io.PLATFORMS, strict=True):
        assert row.endswith(f"| `{one.name}` |") and one.title in row


def test_platform_by_name(tmp_path):
    folder = write_visium(tmp_path / "s")
    assert io.read(folder, platform="visium").uns["amilst_input"] == {
        "platform": "visium",
        "coordinate_unit": "pixel",
        "geometry": "hexagonal",
        "left_out": {},
    }
    assert io.read(tmp_path, platform="visium").n_obs == N_SPOTS  # the folder above
    xy = write_coordinates(tmp_path / "xy.csv")
    matrix = folder / "filtered_feature_bc_matrix.h5"
    adata = io.read(matrix, platform="10x_h5", coordinates=xy)
    assert adata.uns["amilst_input"]["platform"] == "10x_h5"
    assert adata.uns["amilst_input"]["coordinate_unit"] == "unknown"  # that of the table
    with pytest.raises(
        InputError, match=r"platform must be one of h5ad, .*; found 'Visum'\. Did you mean 'visium'"
    ):
        io.read(folder, platform="Visum")
    with pytest.raises(
        InputError, match=r"is no folder of CosMx: expected .*exprMat_file\.csv.*found 'filtered"
    ):
        io.read(folder, platform="cosmx")
    with pytest.raises(InputError, match=r"cannot be read as a 10x|is not a 10x"):
        io.read(xy, platform="10x_h5", coordinates=xy)


@pytest.mark.parametrize("name", ["bin_size", "layer", "table"])
def test_options_of_other_platforms(tmp_path, name):
    with pytest.raises(InputError, match=rf"{name}=.* only; .* is read as Visium\. Remove the option"):
        io.read(write_visium(tmp_path / "s"), **{name: 8})


def test_what_was_left_out_survives_in_h5ad(tmp_path):
    adata = io.read(write_visium(tmp_path / "s"))
    adata.write_h5ad(tmp_path / "s.h5ad")
    assert io.read(tmp_path / "s.h5ad").uns["amilst_input"]["platform"] == "visium"


def test_folder_below_the_input(tmp_path):
    folder = write_visium(tmp_path / "s")
    with pytest.raises(InputError, match=rf"Give the folder above, .*{folder.name}"):
        io.read(folder / "spatial")
    (folder / "web").mkdir()
    with pytest.raises(InputError, match=rf"The folder above is an input \(Visium\): give .*{folder.name}"):
        io.read(folder / "web")


def test_empty_matrices(tmp_path):
    path = write_10x_h5(tmp_path / "m.h5", COUNTS[:0], [])
    with pytest.raises(InputError, match=r"0 of 0 spots match|has 0 spots"):
        io.read(path, coordinates=write_coordinates(tmp_path / "xy.csv"))
    anndata.AnnData(COUNTS[:, :0]).write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(InputError, match=r"a\.h5ad has 12 spots and 0 genes"):
        io.read(tmp_path / "a.h5ad")


def test_folder_that_must_not_be_read(tmp_path, monkeypatch):
    """It does not prevent that the input beside it is found."""
    write_visium(tmp_path / "b")
    (tmp_path / "a").mkdir()

    def refuse(path):
        if path.parent == tmp_path / "a" or path == tmp_path / "a":
            raise PermissionError(path)
        return original(path)

    original = io.PLATFORMS[0].recognizes
    first = dataclasses.replace(io.PLATFORMS[0], recognizes=refuse)  # permissions do not bind the superuser
    monkeypatch.setattr("amilst_lite.io.dispatch.PLATFORMS", (first, *io.PLATFORMS[1:]))
    assert io.read(tmp_path).n_obs == N_SPOTS


# --- values and files that cannot be meant --------------------------------------------------


LARGE = COUNTS.copy()
LARGE[3, 2] = 1e9


@pytest.mark.parametrize("value", ["1000000000", "99999999999999999999", "1e40"])
def test_counts_in_text_that_cannot_be_counts(tmp_path, value):
    path = write_counts_table(tmp_path / "c.tsv")
    lines = [line.split("\t") for line in path.read_text().splitlines()]
    lines[4][3] = value
    write_text(path, "\n".join("\t".join(line) for line in lines) + "\n")
    with pytest.raises(
        InputError,
        match=rf"c\.tsv: expected counts below 16,777,216; found .* gene 'Gene2' in spot '{BARCODES[3]}'",
    ):
        io.read(path, coordinates=write_coordinates(tmp_path / "xy.csv"))


@pytest.mark.parametrize("value", [10**9, 2**63 - 1])
def test_counts_in_hdf5_that_cannot_be_counts(tmp_path, value):
    path = write_10x_h5(tmp_path / "m.h5")
    with h5py.File(path, "r") as file:
        data = file["matrix/data"][:].astype(np.int64)
    data[-1] = value
    replace_dataset(path, "matrix/data", data)
    with pytest.raises(
        InputError, match=r"m\.h5: expected counts below 16,777,216; found .* and 0 other such"
    ):
        io.read(path, coordinates=write_coordinates(tmp_path / "xy.csv"))


def test_largest_count(tmp_path):
    """Not refused, and exact."""
    counts = COUNTS.copy()
    counts[3, 2] = 2**24 - 1
    path = write_10x_h5(tmp_path / "m.h5", counts)
    assert_is_section(io.read(path, coordinates=write_coordinates(tmp_path / "xy.csv")), counts=counts)


def test_zarr_given_as_a_table(tmp_path):
    pytest.importorskip("zarr")
    path = tmp_path / "a.zarr"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anndata's, of defaults to come
        anndata.AnnData(COUNTS, obsm={"spatial": PIXELS}).write_zarr(path)
    counts, xy = write_counts_table(tmp_path / "c.tsv"), write_coordinates(tmp_path / "xy.csv")
    with pytest.raises(InputError, match=r"a\.zarr is a folder; expected a table of counts.*It contains 'X'"):
        io.read(path, platform="table", coordinates=xy)
    with pytest.raises(InputError, match=r"a\.zarr is a folder; expected a table \(csv, tsv or parquet\)"):
        io.read(counts, coordinates=path)
    for part in ("X", "obs"):
        with pytest.raises(
            InputError, match=r"The folder above is an input \(AnnData \(zarr\)\): give .*a\.zarr"
        ):
            io.read(path / part)


def test_unknown_separator(tmp_path):
    path = write_text(tmp_path / "c.csv", "|A|B\ns0|1|2\ns1|3|4\n")
    with pytest.raises(
        InputError, match="do not split into the same number of fields by tab, comma, semicolon"
    ):
        io.read(path, coordinates=write_coordinates(tmp_path / "xy.csv"))


# --- files that are none ----------------------------------------------------------------------


@pytest.mark.parametrize("reader", READERS)
def test_pipe_is_refused_at_once(tmp_path, reader):
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for ever
    with pytest.raises(InputError, match=r"pipe is a pipe, a socket or a device; expected a file"):
        reader(tmp_path / "pipe")


def test_device_is_refused():
    with pytest.raises(InputError, match="/dev/null is a pipe, a socket or a device"):
        io.read("/dev/null")


@pytest.mark.parametrize("reader", READERS)
def test_dead_link(tmp_path, reader):
    (tmp_path / "link").symlink_to(tmp_path / "gone.h5ad")
    with pytest.raises(InputError, match=r"link is a symbolic link to .*gone\.h5ad, which does not exist"):
        reader(tmp_path / "link")
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to(tmp_path / "link")
    with pytest.raises(InputError, match="symbolic link to .*link, which does not exist"):
        reader(tmp_path / "link")


def test_link_to_a_file_is_followed(tmp_path):
    write_visium(tmp_path / "s")
    (tmp_path / "link").symlink_to(tmp_path / "s")
    assert io.read(tmp_path / "link").n_obs == N_SPOTS


def test_unreadable_file(tmp_path, monkeypatch):
    path = write_10x_h5(tmp_path / "m.h5")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # permissions do not bind the superuser
    with pytest.raises(InputError, match=r"m\.h5 must not be read \(permission denied\)"):
        io.read(path)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_compressed_text_that_is_longer_than_a_file_of_its_size_should_hold(tmp_path, monkeypatch, mark):
    path = tmp_path / "xy.csv.gz"
    lines = "".join(f"{one},{i},{i}\n" for i, one in enumerate(BARCODES))
    path.write_bytes(gzip.compress(mark + b"spot,x,y\n" + lines.encode()))
    adata = io.read(write_10x_h5(tmp_path / "a.h5"), coordinates=path)
    assert adata.obsm["spatial"][:, 0].tolist() == list(range(N_SPOTS))
    monkeypatch.setattr("amilst_lite.io.files.most_text", lambda size: 100)
    with pytest.raises(
        InputError, match=r"xy\.csv\.gz cannot be read .*it holds more than 100 bytes of text"
    ):
        io.read(tmp_path / "a.h5", coordinates=path)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_without_end(tmp_path, monkeypatch, end):
    path = tmp_path / "a.txt.gz"
    lines = ["a" * 3000] * 20
    path.write_bytes(gzip.compress(end.join(lines).encode()))
    monkeypatch.setattr(
        "amilst_lite.io.files._LONGEST_LINE", 12_000
    )  # and no line ends within a piece that is read
    with open_text(path) as handle:
        assert handle.read() == "\n".join(lines)
    path.write_bytes(gzip.compress(b"a" * 30_000))
    with (
        open_text(path) as handle,
        pytest.raises(ValueError, match="it has a line of more than 12,000 bytes"),
    ):
        handle.read()


def test_text_is_closed_with_its_file(tmp_path):
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"a\n"))
    with open_text(path) as handle:
        raw = handle.buffer.fileobj
    assert raw.closed


def test_line_ends_that_pandas_does_not_survive(tmp_path):
    """Of "\\n\\r", its parser takes gigabytes."""
    lines = ["spot,x,y", *(f"{one},{i},0" for i, one in enumerate(BARCODES))]
    path = tmp_path / "xy.csv"
    path.write_bytes("\n\r".join([*lines, ""]).encode())
    adata = io.read(write_10x_h5(tmp_path / "a.h5"), coordinates=path)
    assert adata.obsm["spatial"][:, 0].tolist() == list(range(N_SPOTS))
