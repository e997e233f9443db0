"""Files of models: round trip, and refusal of whatever else may be found in a file."""

import json
import os
import pickle
import subprocess
import sys
import zipfile

import h5py
import numpy as np
import pytest

from amilst_lite import model_file as module
from amilst_lite._version import __version__
from amilst_lite.errors import InputError
from amilst_lite.model_file import FORMAT, FORMAT_VERSION, read_model, write_model

SETTINGS = {
    "n_domains": 7,
    "name": "Gehirn ü",
    "widths": [100, 20],
    "share": 0.1,
    "none": None,
    "nested": {"a": True},
}


def content(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "network": {
            "encoder.0.weight": rng.normal(size=(2, 3, 4)).astype(np.float32),
            "steps": np.int64(7),
            "deep": {"deeper": {"mask": rng.random(5) > 0.5}},
        },
        "filter": {},
        "empty": np.zeros((0, 3)),
        "half": rng.normal(size=3).astype(np.float16),
        "bytes": rng.integers(256, size=9).astype(np.uint8),
        "odd": np.array([np.nan, -np.nan, np.inf, -0.0, 5e-324]),
        "transposed": rng.normal(size=(4, 3)).T,
    }


def assert_same_bits(found, expected):
    assert isinstance(found, dict) and set(found) == set(expected)
    for name, value in expected.items():
        if isinstance(value, dict):
            assert_same_bits(found[name], value)
        else:
            assert found[name].dtype == value.dtype and found[name].shape == value.shape
            assert found[name].tobytes() == np.asarray(value).tobytes()


@pytest.fixture
def model(tmp_path):
    """A file of ours."""
    path = tmp_path / "model.h5"
    write_model(path, content(), SETTINGS)
    return path


def handmade(path, *, settings=b"{}", form=FORMAT, version=FORMAT_VERSION, **options):
    """An HDF5 file with the mark of ours, open for additions; its group of arrays is returned with it."""
    file = h5py.File(path, "w", **options)
    if form is not None:
        file.attrs["format"] = np.bytes_(form)
    if version is not None:
        file.attrs["format_version"] = np.int64(version)
    file["settings"] = np.frombuffer(settings, dtype=np.uint8)
    return file, file.create_group("arrays")


# --- what is written --------------------------------------------------------------------------


def test_round_trip_gives_the_same_bits(model):
    arrays, settings = read_model(model)
    assert_same_bits(arrays, content())
    assert settings == SETTINGS
    assert read_model(str(model))[1] == SETTINGS


def test_byte_order_of_another_machine_becomes_that_of_this_one(tmp_path):
    write_model(tmp_path / "m.h5", {"x": np.arange(5, dtype=">f8"), "n": np.arange(3, dtype=">i2")}, {})
    arrays, _ = read_model(tmp_path / "m.h5")
    assert arrays["x"].dtype == np.float64 and arrays["n"].dtype == np.int16
    assert arrays["x"].tolist() == [0, 1, 2, 3, 4] and arrays["n"].tolist() == [0, 1, 2]
    write_model(tmp_path / "same.h5", {"x": np.arange(5.0), "n": np.arange(3, dtype=np.int16)}, {})
    assert (tmp_path / "m.h5").read_bytes() == (tmp_path / "same.h5").read_bytes()


def test_same_content_gives_the_same_bytes(model, tmp_path):
    other = tmp_path / "other.h5"
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import time; time.sleep(1.1); import test_model_file as t\n"
        "t.write_model(sys.argv[2], dict(reversed(t.content().items())), dict(reversed(t.SETTINGS.items())))"
    )
    subprocess.run([sys.executable, "-c", code, os.path.dirname(__file__), str(other)], check=True)
    assert other.read_bytes() == model.read_bytes()
    write_model(other, content(1), SETTINGS)
    assert other.read_bytes() != model.read_bytes()


def test_a_file_is_replaced_and_a_link_followed(model, tmp_path):
    link = tmp_path / "link.h5"
    link.symlink_to(model)
    write_model(link, {"x": np.ones(2)}, {})
    assert link.is_symlink() and list(read_model(model)[0]) == ["x"]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["link.h5", "model.h5"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_failure_while_writing_leaves_the_old_file(model, tmp_path, monkeypatch, step, error):
    before = model.read_bytes()

    def failing(*_):
        assert len(list(tmp_path.iterdir())) == 2  # the temporary file is beside the target
        raise error

    monkeypatch.setattr(module.os, step, failing)
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else InputError) as caught:
        write_model(model, content(1), SETTINGS)
    if isinstance(error, OSError):
        assert "No space left" in str(caught.value) and "Choose another place" in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.h5"]
    assert model.read_bytes() == before


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.array(["a"])}, "/arrays/x has dtype <U1; expected bool, int or float"),
        ({"x": np.array([None])}, "has dtype object"),
        ({"x": np.ones(2, complex)}, "has dtype complex128"),
        ({"x": np.array([b"ab"])}, "has dtype |S2"),
        ({"x": np.array(["2020"], "M8[D]")}, "has dtype datetime64"),
        ({"x": np.zeros(2, [("a", "f4")])}, "dtype"),
        ({"x": [1.0, 2.0]}, "must be a numpy array or a dict of them; found list"),
        ({"x": np.ones((1,) * 9)}, "has 9 dimensions; expected at most 8"),
        ({"a": {"b": {"c": {"d": {"e": np.ones(1)}}}}}, "deeper than 4 levels"),
        ({"a/b": np.ones(1)}, "is no name of an array"),
        ({"..": np.ones(1)}, "is no name of an array"),
        ({"": np.ones(1)}, "is no name of an array"),
        ({"x" * 101: np.ones(1)}, "at most 100 characters"),
        ({3: np.ones(1)}, "must be strings; found 3"),
    ],
)
def test_arrays_that_cannot_be_stored(tmp_path, arrays, message):
    with pytest.raises(InputError) as caught:
        write_model(tmp_path / "m.h5", arrays, {})
    assert message in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("settings", [{"x": np.ones(2)}, {"x": float("nan")}, {"x": {1, 2}}, {("a",): 1}])
def test_settings_that_are_not_json(tmp_path, settings):
    with pytest.raises(InputError, match="must be JSON without NaN and infinity"):
        write_model(tmp_path / "m.h5", {}, settings)
    assert list(tmp_path.iterdir()) == []


def test_too_much_is_refused_before_it_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_MOST_BYTES", 1000)
    with pytest.raises(
        InputError, match="the arrays up to /arrays/y have 1,202 bytes; expected at most 1,000"
    ):
        write_model(tmp_path / "m.h5", {"x": np.ones(50), "y": np.ones(100)}, {})
    with pytest.raises(InputError, match="the model has .* bytes"):  # the headers
        write_model(tmp_path / "m.h5", {"x": np.ones(100)}, {})
    monkeypatch.setattr(module, "_MOST_ARRAYS", 3)
    with pytest.raises(InputError, match="more than 3 arrays"):
        write_model(tmp_path / "m.h5", {name: np.ones(1) for name in "abcd"}, {})
    assert list(tmp_path.iterdir()) == []


def test_targets_that_are_refused(tmp_path):
    for target, message in [
        (tmp_path, "is not a regular file"),
        (os.devnull, "is not a regular file"),
        (tmp_path / "missing" / "m.h5", "is not a folder. Create it first"),
        ("", "expected the path of a file"),
        ("a\0b", "expected the path of a file"),
        (3, "expected the path of a file"),
    ]:
        with pytest.raises(InputError, match=message):
            write_model(target, {}, {})
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(InputError, match="cannot be written"):
        write_model(tmp_path / "loop" / "m.h5", {}, {})


# --- what is not a model ----------------------------------------------------------------------


def test_files_of_other_kinds(tmp_path):
    path = tmp_path / "model.h5"
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(
        InputError, match="is a pickle, which is never loaded; expected a model written by AMILST"
    ):
        read_model(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.pkl", b"x")
    with pytest.raises(InputError, match="is a zip file"):
        read_model(path)
    path.write_bytes(b"")
    with pytest.raises(InputError, match="is empty"):
        read_model(path)
    path.write_text("gene,count\n")
    with pytest.raises(InputError, match="is no HDF5 file; expected .*save the model again"):
        read_model(path)


def test_places_without_a_file(tmp_path):
    with pytest.raises(InputError, match="there is no file .*; expected a model"):
        read_model(tmp_path / "model.h5")
    with pytest.raises(InputError, match="is a folder; expected .* Give the file"):
        read_model(tmp_path)
    (tmp_path / "model.h5").touch()
    with pytest.raises(InputError, match="Did you mean .*model.h5"):
        read_model(tmp_path)
    for path in ("", None, 3):
        with pytest.raises(InputError, match="expected the path of a file"):
            read_model(path)
    with pytest.raises(InputError, match="is not a regular file"):
        read_model(os.devnull)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "model.h5")
    with pytest.raises(InputError, match="is not a regular file"):
        read_model(tmp_path / "model.h5")


def test_other_hdf5_files(tmp_path):
    path = tmp_path / "result.h5ad"
    for form in (None, "other", FORMAT + "2", "x" * 100):
        handmade(path, form=form)[0].close()
        with pytest.raises(InputError, match="an HDF5 file of another kind, such as .h5ad"):
            read_model(path)
    file, _ = handmade(path, form=None)
    with file:
        file.attrs["format"] = FORMAT  # a string of variable length lies elsewhere in the file
    with pytest.raises(InputError, match="an HDF5 file of another kind"):
        read_model(path)
    file, _ = handmade(path, form=None)
    with file:
        file.attrs["format"] = np.zeros(1000)
    with pytest.raises(InputError, match="an HDF5 file of another kind"):
        read_model(path)


@pytest.mark.parametrize(("version", "advice"), [(2, "Install a newer"), (0, "Install an older")])
def test_another_format_version(tmp_path, version, advice):
    handmade(tmp_path / "m.h5", version=version)[0].close()
    message = f"has format version {version}; amilst_lite {__version__} reads format version 1. {advice} amilst_lite"
    with pytest.raises(InputError, match=message):
        read_model(tmp_path / "m.h5")


def test_a_missing_format_version(tmp_path):
    handmade(tmp_path / "m.h5", version=None)[0].close()
    with pytest.raises(InputError, match="its format version is missing"):
        read_model(tmp_path / "m.h5")


def test_every_truncation_is_refused(model):
    whole = model.read_bytes()
    for length in [*range(0, len(whole), max(1, len(whole) // 40)), len(whole) - 1]:
        model.write_bytes(whole[:length])
        with pytest.raises(InputError, match="(incomplete, damaged or not written|is no HDF5|is empty)"):
            read_model(model)


def test_changed_bytes_are_refused_or_read(model):
    """No other error, whatever is changed."""
    whole = model.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        changed = bytearray(whole)
        for place in rng.integers(8, len(whole), size=4):
            changed[place] = rng.integers(256)
        model.write_bytes(changed)
        try:
            read_model(model)
        except InputError:
            refused += 1
    assert refused > 30


# --- what a model does not contain ------------------------------------------------------------


def refuse(path, message):
    with pytest.raises(InputError) as caught:
        read_model(path)
    assert message in str(caught.value)
    assert "is incomplete, damaged or not written by amilst_lite" in str(caught.value)
    assert "save the model again" in str(caught.value)


def add_huge(file, arrays):
    """Eight exabytes, of which nothing is stored: contiguous storage is reserved at the first write."""
    arrays.create_dataset("x", shape=(1 << 60,), dtype="f8")


def add_late(file, arrays):
    arrays.create_dataset("x", shape=(100,), dtype="f8")


def add_chunked(file, arrays):
    arrays.create_dataset("x", shape=(1 << 40,), dtype="f8", chunks=(1024,))


def add_compressed(file, arrays):
    arrays.create_dataset("x", data=np.zeros(1 << 20), compression="gzip")


def add_external(file, arrays):
    arrays.create_dataset("x", shape=(10,), dtype="u1", external=[("secret", 0, h5py.h5f.UNLIMITED)])


def add_virtual(file, arrays):
    layout = h5py.VirtualLayout((10,), "u1")
    layout[:] = h5py.VirtualSource("other.h5", "x", (10,))
    arrays.create_virtual_dataset("x", layout)


def add_external_link(file, arrays):
    arrays["x"] = h5py.ExternalLink("other.h5", "/x")


def add_soft_link(file, arrays):
    arrays["x"] = h5py.SoftLink("/settings")


def add_soft_link_at_the_top(file, arrays):
    del file["settings"]
    file["settings"] = h5py.SoftLink("/arrays")


def add_cycle(file, arrays):
    arrays["x"] = arrays


def add_depth(file, arrays):
    arrays["a/b/c/d/e"] = np.ones(1)


def add_repeated(file, arrays):
    arrays["x0"] = np.zeros(1000)
    for place in range(1, 40):
        arrays[f"x{place}"] = arrays["x0"]


def add_string(file, arrays):
    arrays["x"] = np.array([b"ab"])


def add_variable(file, arrays):
    arrays.create_dataset("x", data=["a", "b"], dtype=h5py.string_dtype())


def add_compound(file, arrays):
    arrays["x"] = np.zeros(2, [("a", "f4")])


def add_complex(file, arrays):
    arrays["x"] = np.ones(2, complex)


def add_enumeration(file, arrays):
    arrays.create_dataset("x", data=[0, 1], dtype=h5py.enum_dtype({"A": 0, "B": 1}, "i4"))


def add_reference(file, arrays):
    arrays.create_dataset("x", data=[arrays.ref], dtype=h5py.ref_dtype)


def add_null(file, arrays):
    arrays["x"] = h5py.Empty("f4")


def add_type(file, arrays):
    arrays["x"] = np.dtype("f4")


def add_name(file, arrays):
    arrays["a b"] = np.ones(1)


def add_dimensions(file, arrays):
    arrays["x"] = np.ones((1,) * 9)


def add_third(file, arrays):
    file["more"] = np.ones(1)


def add_truth(file, arrays):
    arrays["x"] = np.array([True, False])
    arrays["x"].id.write(
        h5py.h5s.ALL, h5py.h5s.ALL, np.array([7, 0], np.uint8).view(bool), arrays["x"].id.get_type()
    )


@pytest.mark.parametrize(
    ("add", "message"),
    [
        (add_huge, "bytes; expected at most"),
        (add_late, "declares 800 bytes, which the file does not hold"),
        (add_chunked, "stored in chunks, compressed or as a view"),
        (add_compressed, "stored in chunks, compressed or as a view"),
        (add_external, "is stored in another file"),
        (add_virtual, "stored in chunks, compressed or as a view"),
        (add_external_link, "'x' is a link to another place or file"),
        (add_soft_link, "'x' is a link to another place or file"),
        (add_soft_link_at_the_top, "'settings' is a link"),
        (add_cycle, "lies deeper than 4 levels"),
        (add_depth, "lies deeper than 4 levels"),
        (add_repeated, "bytes; expected at most"),
        (add_string, "has dtype |S2"),
        (add_variable, "has dtype object"),
        (add_compound, "expected bool, int or float"),
        (add_complex, "has dtype complex128"),
        (add_enumeration, "numpy does not have"),
        (add_reference, "has dtype object"),
        (add_null, "has no shape"),
        (add_type, "is neither an array nor a group"),
        (add_name, "is no name of an array"),
        (add_dimensions, "has 9 dimensions"),
        (add_third, "found 3 entries at the top"),
        (add_truth, "values other than true and false"),
    ],
)
def test_what_a_model_does_not_contain(tmp_path, monkeypatch, add, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret").write_bytes(b"0123456789")
    with h5py.File("other.h5", "w") as other:
        other["x"] = np.arange(10, dtype=np.uint8)
    file, arrays = handmade("model.h5")
    with file:
        add(file, arrays)
        arrays["y"] = np.ones(3)
    assert os.path.getsize("model.h5") < 1 << 16
    refuse("model.h5", message)


def test_such_a_file_without_additions_is_read(tmp_path):
    file, arrays = handmade(tmp_path / "m.h5", settings=b'{"a": 1}')
    with file:
        arrays["y"] = np.ones(3)
    assert read_model(tmp_path / "m.h5")[1] == {"a": 1}


def test_many_links_to_one_group_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_MOST_ARRAYS", 100)
    file, arrays = handmade(tmp_path / "m.h5")
    with file:
        below = file.create_group("arrays/x0")
        below.create_group("y0")
        for place in range(1, 40):
            arrays[f"x{place}"], below[f"y{place}"] = below, below["y0"]
    refuse(tmp_path / "m.h5", "more than 100 arrays and groups")
    monkeypatch.setattr(module, "_MOST_ARRAYS", 20)
    refuse(tmp_path / "m.h5", "40 entries in /arrays; expected at most 20")


def test_a_file_beyond_the_bound_is_not_opened(model, monkeypatch):
    monkeypatch.setattr(module, "_MOST_BYTES", 1000)
    with pytest.raises(InputError, match="bytes; expected .* of at most 1,000 bytes"):
        read_model(model)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (b"{", "Expecting property name"),
        (b"[1]", "not a JSON object"),
        (b"\xff\xfe", "codec can't decode"),
        (b"[" * 20_000, "recursion"),
    ],
)
def test_settings_that_are_no_json_object(tmp_path, settings, message):
    handmade(tmp_path / "m.h5", settings=settings)[0].close()
    refuse(tmp_path / "m.h5", message)


@pytest.mark.parametrize("kind", ["group", "floats"])
def test_settings_of_another_type(tmp_path, kind):
    file, _ = handmade(tmp_path / "m.h5")
    with file:
        del file["settings"]
        file["settings/a" if kind == "group" else "settings"] = np.ones(3)
    refuse(tmp_path / "m.h5", "settings is not an array" if kind == "group" else "settings has dtype float64")


def test_the_document_is_json(model):
    with h5py.File(model) as file:
        assert json.loads(file["settings"][()].tobytes().decode()) == SETTINGS
        assert file.attrs["format"] == FORMAT.encode() and file.attrs["format_version"] == 1
