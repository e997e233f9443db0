"""HDF5 files that refer to other files, or declare what they do not hold."""

import h5py
import numpy as np
import pytest

from amilst_lite.errors import InputError
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
