"""Zarr stores that lead to other files, execute code or take more memory than their size explains."""

import base64
import json
import os
import pickle
import shutil
import zipfile

import numpy as np
import pytest

import amilst_lite as amilst
from amilst_lite.io.zarr_store import open_zarr

pytestmark = [
    pytest.mark.filterwarnings("ignore:Writing zarr v2 data"),
    pytest.mark.filterwarnings("ignore:zarr v3 autosharding"),
    pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not part"),
]


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def v2(shape, chunks, dtype="<f4", compressor=None, filters=None, fill=0):
    return {
        "zarr_format": 2, "shape": shape, "chunks": chunks, "dtype": dtype, "compressor": compressor,
        "fill_value": fill, "order": "C", "filters": filters,
    }  # fmt: skip


def store(tmp_path, zarr_format=2):
    pytest.importorskip("zarr")
    import anndata

    path = tmp_path / "a.zarr"
    adata = amilst.simulate_section(60, 20, 3, seed=1)
    adata.obsm["dense"] = np.ones((60, 5), np.float32)
    if hasattr(anndata.settings, "zarr_write_format"):
        with anndata.settings.override(zarr_write_format=zarr_format):
            adata.write_zarr(path)
    elif zarr_format == 3:
        pytest.skip("this version of anndata writes format 2 only")
    else:
        adata.write_zarr(path)
    # without the summaries, which would be used instead of what the tests change
    (path / ".zmetadata").unlink(missing_ok=True)
    if zarr_format == 3:
        document = json.loads((path / "zarr.json").read_text())
        document.pop("consolidated_metadata", None)
        (path / "zarr.json").write_text(json.dumps(document))
    assert amilst.read(path).n_obs == 60
    return path


def refused(path, match):
    assert (path / "X").exists()
    with pytest.raises(amilst.InputError, match=match):
        amilst.read(path)


@pytest.mark.parametrize("place", ["chunk", "fill", "summary"])
def test_pickles_in_zarr_are_not_loaded(tmp_path, place):
    path, target = store(tmp_path), tmp_path / "executed"
    code = pickle.dumps(Bomb(str(target)))
    fill = base64.b64encode(code).decode() if place == "fill" else None
    document = v2([1], [1], "|O", None, [{"id": "pickle", "protocol": 5}], fill)
    array = path / "uns" / "code"
    array.mkdir()
    (array / "0").write_bytes(code)
    if place == "summary":
        (path / ".zmetadata").write_text(
            json.dumps({"zarr_consolidated_format": 1, "metadata": {"uns/code/.zarray": document}})
        )
    else:
        (array / ".zarray").write_text(json.dumps(document))
        (array / ".zattrs").write_text('{"encoding-type": "array", "encoding-version": "0.2.0"}')
    refused(path, "names the codec 'pickle', which is not used")
    assert not target.exists()


def change(path, zarr_format, **values):
    name = path / "obsm" / "dense" / (".zarray" if zarr_format == 2 else "zarr.json")
    document = json.loads(name.read_text())
    document.update(values)
    name.write_text(json.dumps(document))
    return name.parent


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_zarr_shapes_and_chunks(tmp_path, zarr_format):
    path = store(tmp_path, zarr_format)
    change(path, zarr_format, shape=[60, 2**40])
    refused(path, r"declares an array of shape \(60, 1099511627776\).* GiB, in a store of")
    chunks = {"chunks": [60, 2**24]} if zarr_format == 2 else {
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [60, 2**24]}}
    }  # fmt: skip
    change(path, zarr_format, shape=[60, 5], **chunks)
    refused(path, "in chunks of")
    for wrong in ([60, -1], [60, 5.0], [True, 5], "60", None, [1] * 99):
        change(path, zarr_format, shape=wrong)
        refused(path, "does not describe an array")


@pytest.mark.parametrize("codec", ["blosc", "lz4", "zstd", "gzip", "zlib", "bz2", "unknown"])
def test_zarr_chunks_that_are_longer_than_declared(tmp_path, codec):
    path = store(tmp_path)
    array = change(path, 2, compressor={"id": codec})
    numcodecs = pytest.importorskip("numcodecs")
    long = bytes(300 * 2**20)
    content = b""
    if codec not in ("bz2", "unknown"):
        content = numcodecs.get_codec({"id": codec}).encode(np.frombuffer(long, np.uint8))
    for name in ("0.0", "0/0"):
        if (array / name).exists():
            (array / name).write_bytes(content)
    refused(path, "names the codec" if codec in ("bz2", "unknown") else r"declares \d|is longer than")


def test_zarr_links_pipes_and_paths_outside(tmp_path):
    path = store(tmp_path)
    array = path / "obsm" / "dense"
    (chunk,) = (p for p in array.rglob("*") if p.is_file() and not p.name.startswith("."))
    (tmp_path / "secret").write_bytes(chunk.read_bytes())
    chunk.unlink()
    chunk.symlink_to(tmp_path / "secret")
    refused(path, "outside the store, which is not followed")
    chunk.unlink()
    os.mkfifo(chunk)
    refused(path, "is no regular file")
    chunk.unlink()
    (path / ".zmetadata").write_text(
        json.dumps({"zarr_consolidated_format": 1, "metadata": {"../secret/.zarray": v2([1], [1])}})
    )
    refused(path, r"describes '\.\./secret/\.zarray', outside the store")
    for wrong in ("[]", "{", '{"metadata": {"a/.zarray": 3}}', "[" * 100_000):
        (path / ".zmetadata").write_text(wrong)
        refused(path, r"is no JSON|does not describe")


def test_zip_files_are_checked_and_opened(tmp_path):
    path = store(tmp_path)
    shutil.make_archive(str(tmp_path / "good"), "zip", path)
    group = open_zarr(tmp_path / "good.zip")
    np.testing.assert_array_equal(group["obsm/dense"][:], np.ones((60, 5)))
    change(path, 2, filters=[{"id": "pickle"}])
    shutil.make_archive(str(tmp_path / "bad"), "zip", path)
    with pytest.raises(amilst.InputError, match=r"bad\.zip: obsm/dense/\.zarray names the codec 'pickle'"):
        open_zarr(tmp_path / "bad.zip")


@pytest.mark.parametrize("codec", ["blosc", "lz4", "zstd", "gzip", "zlib"])
@pytest.mark.parametrize("length", [1, 200, 300, 2**16 + 5, 2**21])
def test_declared_lengths_are_those_of_the_codecs(tmp_path, codec, length):
    """A store of one array in one chunk is read, and refused if the chunk were a byte longer than declared."""
    numcodecs = pytest.importorskip("numcodecs")
    values = np.random.default_rng(0).integers(0, 255, length).astype(np.uint8)
    path = tmp_path / "a.zarr"
    (path / "x").mkdir(parents=True)
    (path / ".zgroup").write_text('{"zarr_format": 2}')
    (path / "x" / "0").write_bytes(numcodecs.get_codec({"id": codec}).encode(values))
    (path / "x" / ".zarray").write_text(json.dumps(v2([length], [length], "|u1", {"id": codec})))
    np.testing.assert_array_equal(open_zarr(path)["x"][:], values)
    if length > 1 and (codec not in ("gzip", "zlib") or length > 2**18):
        (path / "x" / ".zarray").write_text(json.dumps(v2([length - 1], [length - 1], "|u1", {"id": codec})))
        with pytest.raises(amilst.InputError, match="x/0"):
            open_zarr(path)


@pytest.mark.parametrize("codec", [None, "blosc", "lz4", "zstd", "gzip", "zlib"])
def test_a_chunk_that_declares_more_strings_than_its_array(tmp_path, codec):
    """numcodecs allocates memory for their number, up to 2^32, before it reads one."""
    numcodecs = pytest.importorskip("numcodecs")
    path = tmp_path / "a.zarr"
    (path / "x").mkdir(parents=True)
    (path / ".zgroup").write_text('{"zarr_format": 2}')
    compressor = None if codec is None else {"id": codec}
    (path / "x" / ".zarray").write_text(json.dumps(v2([3], [3], "|O", compressor, [{"id": "vlen-utf8"}], "")))
    encoded = bytes(numcodecs.VLenUTF8().encode(np.array(["a", "bcd", "Ü"], dtype=object)))

    def write(content):
        compressed = content if codec is None else numcodecs.get_codec({"id": codec}).encode(content)
        (path / "x" / "0").write_bytes(compressed)

    write(encoded)
    assert list(open_zarr(path)["x"][:]) == ["a", "bcd", "Ü"]
    write((2**32 - 1).to_bytes(4, "little") + encoded[4:])
    with pytest.raises(
        amilst.InputError, match="chunk x/0 declares 4,294,967,295 strings; expected at most 3"
    ):
        open_zarr(path)


def test_small_members_of_a_zip_file_that_are_long_metadata(tmp_path, monkeypatch):
    pytest.importorskip("zarr")
    monkeypatch.setattr("amilst_lite.io.zarr_store._MOST_METADATA", 2**16)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(9):
            archive.writestr(f"a{i}/.zattrs", b'{"a": "' + b" " * 2**15 + b'"}')
    with pytest.raises(amilst.InputError, match=r"a\.zip: its metadata have more than [\d,]+ bytes"):
        open_zarr(tmp_path / "a.zip")
