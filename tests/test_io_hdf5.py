"""HDF5 files that refer to other files, or declare what they do not hold."""

import zlib

import h5py
import numpy as np
import pytest

from amilst_lite.errors import InputError
from amilst_lite.io import hdf5
from amilst_lite.io.hdf5 import open_hdf5


def test_ordinary_files_are_opened(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["group/numbers"] = np.arange(3)
        file["alias"] = h5py.SoftLink("/group/numbers")
        file.create_dataset("empty", shape=(0,), maxshape=(None,), chunks=(10,), dtype="f4")
        file.create_dataset("zeros", data=np.zeros(10**6), compression="gzip")
    with open_hdf5(path, "a file") as file:
        assert list(file["alias"]) == [0, 1, 2]


def test_links_into_other_files(tmp_path):
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["numbers"] = np.arange(3)
    with h5py.File(tmp_path / "linked.h5", "w") as file:
        file["group/numbers"] = h5py.ExternalLink("secret.h5", "/numbers")
    with (
        pytest.raises(
            InputError, match=r"linked\.h5: /group/numbers is a link into another file \('secret\.h5'\)"
        ),
        open_hdf5(tmp_path / "linked.h5", "a file"),
    ):
        pass
    layout = h5py.VirtualLayout(shape=(3,), dtype=int)
    layout[:] = h5py.VirtualSource(tmp_path / "secret.h5", "numbers", shape=(3,))
    with h5py.File(tmp_path / "virtual.h5", "w") as file:
        file.create_virtual_dataset("numbers", layout)
    with h5py.File(tmp_path / "raw.h5", "w") as file:
        (tmp_path / "raw.bin").write_bytes(bytes(24))
        file.create_dataset("numbers", (3,), np.int64, external=[(str(tmp_path / "raw.bin"), 0, 24)])
    for name in ("virtual.h5", "raw.h5"):
        with (
            pytest.raises(InputError, match="the values of /numbers are in other files"),
            open_hdf5(tmp_path / name, "a file"),
        ):
            pass


def test_declared_sizes_are_checked(tmp_path):
    with h5py.File(tmp_path / "huge.h5", "w") as file:
        file.create_dataset("X", shape=(10**7, 10**6), chunks=(1000, 1000), dtype=np.float32)
    with (
        pytest.raises(
            InputError, match=r"/X declares an array of shape .*37,252.9 GiB, of which 0 bytes are stored"
        ),
        open_hdf5(tmp_path / "huge.h5", "a file"),
    ):
        pass


def test_broken_files_name_the_source(tmp_path):
    (tmp_path / "copy.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    with (
        pytest.raises(InputError, match=r"original\.h5 cannot be read as a file"),
        open_hdf5(tmp_path / "copy.h5", "a file", source=tmp_path / "original.h5"),
    ):
        pass


# --- chunks, codecs and strings -----------------------------------------------------------------


def inspected(path):
    with open_hdf5(path, "a file") as file:
        return file["numbers"][:] if "numbers" in file else None


def refused(path, match):
    with pytest.raises(InputError, match=match):
        inspected(path)


@pytest.mark.parametrize(
    ("filters", "stored"),
    [
        ({"compression": "gzip"}, zlib.compress(b"abcdefgh")),
        ({"compression": "gzip", "shuffle": True}, zlib.compress(bytes(300))),
        ({"compression": "lzf"}, b"\x02abc"),
        ({"shuffle": True}, b"abcdefgh"),
        ({"fletcher32": True}, b"abc"),  # HDF5 subtracts four bytes from the length
        ({"compression": "gzip", "fletcher32": True}, b"abc"),
    ],
)
def test_chunks_that_are_too_short(tmp_path, filters, stored):
    """HDF5 reads on in the memory behind them, and may end the interpreter."""
    path = tmp_path / "a.h5"
    values = np.random.default_rng(0).integers(0, 99, 100)
    with h5py.File(path, "w") as file:
        data = file.create_dataset("numbers", data=values, dtype="<i4", chunks=(100,), **filters)
        assert data.id.get_num_chunks() == 1
    np.testing.assert_array_equal(inspected(path), values)
    with h5py.File(path, "r+") as file:
        file["numbers"].id.write_direct_chunk((0,), stored)
    refused(path, r"a part of /numbers has \d+ bytes, where the file declares 400")


@pytest.mark.parametrize("filters", [{}, {"compression": "gzip", "fletcher32": True}])
def test_a_chunk_without_its_filter(tmp_path, filters):
    """Filters may have been left out for a chunk, as the mask of the chunk says."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        data = file.create_dataset("numbers", (4,), "<i4", chunks=(4,), **filters)
        data.id.write_direct_chunk((0,), np.arange(4, dtype="<i4").tobytes(), 2 ** len(filters) - 1)
    assert inspected(path).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(("code", "name"), [(32001, "blosc"), (32015, "zstd"), (4711, "an unknown method")])
def test_codecs_of_plugins_are_refused(tmp_path, code, name):
    path = tmp_path / "a.h5"
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_chunk((3,))
    creation.set_filter(code, h5py.h5z.FLAG_OPTIONAL, (3,))
    with h5py.File(path, "w") as file:
        h5py.h5d.create(file.id, b"a", h5py.h5t.NATIVE_INT32, h5py.h5s.create_simple((6,)), creation)
    refused(path, rf"/a is compressed by {name} \(HDF5 filter {code}\).*hdf5plugin.*gzip")


TEXTS = [f"{'x' * (i % 50)}{i}" for i in range(700)] + ["", "Ü" * 9]


@pytest.mark.parametrize("options", [{}, {"chunks": (100,)}, {"compression": "gzip"}, {"compression": "lzf"}])
@pytest.mark.parametrize("shape", [(702,), (6, 117)])
def test_lengths_of_strings_are_known_without_reading_them(tmp_path, options, shape):
    path = tmp_path / "a.h5"
    if "chunks" in options and len(shape) == 2:
        options = {"chunks": (4, 50)}
    with h5py.File(path, "w") as file:
        values = np.array(TEXTS, dtype=object).reshape(shape)
        file.create_dataset("a", data=values, dtype=h5py.string_dtype(), **options)
        file.create_dataset("v", shape=(2,), dtype=h5py.vlen_dtype("<f8"))[:] = [np.zeros(5), np.zeros(70)]
    inspection = hdf5._Inspection(path, path)
    with h5py.File(path, "r") as file:
        found = np.concatenate(list(inspection._lengths(file["a"].id)))
        assert found.sum() == sum(len(text.encode()) for text in TEXTS)
        assert np.concatenate(list(inspection._lengths(file["v"].id))).tolist() == [5, 70]
    inspected(path)


def repeat_first(path, offset, n):
    """The places of all strings are replaced by that of the first."""
    content = bytearray(path.read_bytes())
    content[offset : offset + 16 * n] = bytes(content[offset : offset + 16]) * n
    path.write_bytes(content)


@pytest.mark.parametrize("filler", [0, 2**24])
def test_strings_that_repeat_one_part_of_the_file(tmp_path, filler):
    path = tmp_path / "a.h5"
    values = ["x" * 300_000, *map(str, range(999))]
    with h5py.File(path, "w") as file:
        file["filler"] = np.zeros(filler, np.uint8)
        offset = file.create_dataset("a", data=np.array(values, dtype=object)).id.get_offset()
    inspected(path)
    repeat_first(path, offset, 1000)
    refused(path, r"/a declares an array of shape \(1000,\), [\d.]+ GiB, in a file of")


def test_strings_in_an_attribute_that_repeat_one_part_of_the_file(tmp_path):
    path = tmp_path / "a.h5"
    values = ["x" * 300_000, *map(str, range(1999))]
    with h5py.File(path, "w") as file:
        file["filler"] = np.zeros(300_000, np.uint8)
        file.create_group("group").attrs["names"] = np.array(["x" * 9, *values[1:]], dtype=object)
    inspected(path)
    with h5py.File(path, "r+") as file:
        file["group"].attrs["names"] = np.array(values, dtype=object)
    refused(path, r"an attribute of /group has 2,000 strings of up to 300,000 bytes")


def test_free_space_of_length_zero_in_the_heap(tmp_path):
    """HDF5 reads it again and again."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["a"] = np.array(["one", "two"], dtype=object)
    content = bytearray(path.read_bytes())
    at = content.index(b"GCOL") + 16
    for _ in range(2):
        at += 16 + -(-int.from_bytes(content[at + 8 : at + 16], "little") // 8) * 8
    assert content[at : at + 2] == b"\0\0"  # free space
    content[at + 8 : at + 16] = bytes(8)
    path.write_bytes(content)
    refused(path, "its heap of strings is broken")


def test_records_with_strings(tmp_path):
    path = tmp_path / "a.h5"
    dtype = np.dtype([("name", h5py.string_dtype()), ("n", "<i4")])
    with h5py.File(path, "w") as file:
        file["a"] = np.array([("one", 1), ("two", 2)], dtype=dtype)
    inspected(path)
    with h5py.File(path, "r+") as file:
        file.create_dataset("b", data=file["a"][:], chunks=(2,))
    refused(path, "/b holds records with strings")
