"""Files changed at random: bytes, text, JSON, HDF5, parquet, numpy and zip, inside and outside of their compression.

`mutate` looks at the content, not at the name. All changes follow from the generator that is given.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np

CANARY = "AMILST_FUZZ_CANARY"
"""Environment variable with the file that crafted pickles create when they are loaded."""

PIPE = "AMILST_FUZZ_PIPE"
"""Environment variable with a pipe, to which links lead: opening it waits without end."""

_NUMBERS = (
    "-1", "0", "-0", "1e9", "16777215", "16777216", "1e400", "-1e400", "9" * 40, "1e-400", "nan", "NaN", "inf",
    "-inf",
    "2147483648", "9223372036854775807", "9223372036854775808", "-9223372036854775809", "1_000", "0x10", "1e",
    "+5", "1.5",
    "1,5", "1.000,5", " 7 ", "٣", "1e16",
)  # fmt: skip
_WORDS = (
    "", " ", "NA", "None", "null", "true", "a", "Ü", "日本", "\x00", "\ufeff", "\x1a", '"', '""', "'", '"a', "=1+1",
    "#", "-",
    "%%", "\\", "\\n", "a\tb", "a,b", "a\nb", "x" * 300, "\ud7ff", "../../etc", "x",
)  # fmt: skip
_INTEGERS = (
    -1, 0, 1, 2, 7, 127, 128, 255, 256, 2**15, 2**16, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**62,
    2**63 - 1,
    -(2**31), -(2**63),
)  # fmt: skip
_ENCODINGS = ("utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "latin-1", "utf-32", "cp1252", "utf-7")


class _Pickled:
    """Creates a file when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, (os.environ.get(CANARY, os.devnull), "w")


def mutate(content: bytes, rng: random.Random, scratch: Path) -> tuple[bytes, bool]:
    """A changed copy of a file.

    Parameters
    ----------
    content
        Of the file.
    rng
        Decides everything.
    scratch
        Name of a file that may be written, for HDF5.

    Returns
    -------
    tuple of (bytes, bool)
        The copy, and whether it means the same as the original.
    """
    draw = rng.random()
    if draw < 0.02:
        return _foreign(rng), False
    if draw < 0.2:
        return _bytes(content, rng), False
    if content.startswith(b"\x1f\x8b"):
        return _gzip(content, rng, scratch)
    if content.startswith(b"\x89HDF"):
        return hdf5(content, rng, scratch), False
    if content.startswith(b"PAR1"):
        return _parquet(content, rng), False
    if content.startswith(b"PK\x03\x04"):
        return _zip(content, rng, scratch), False
    if content.startswith(b"\x93NUMPY"):
        return _numpy(content, rng), False
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return _bytes(content, rng), False
    if text.lstrip().startswith(("{", "[")) and rng.random() < 0.8:
        return _json(text, rng).encode("utf-8", "surrogatepass"), False
    return _text(text, rng)


# --- bytes ----------------------------------------------------------------------------------


def _bytes(content: bytes, rng: random.Random) -> bytes:
    """Bytes flipped, cut, repeated, inserted or overwritten, once to four times."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at, n = rng.randrange(len(data) + 1), rng.choice((1, 2, 4, 8, 64, 1000))
        match rng.randrange(9):
            case 0 | 1:
                for _ in range(rng.choice((1, 1, 2, 16))):
                    if data:
                        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            case 2:
                del data[at:]
            case 3:
                del data[at : at + n]
            case 4:
                data[at:at] = data[at : at + n] * rng.choice((1, 2, 50))
            case 5:
                data[at:at] = rng.randbytes(n)
            case 6:
                data[at : at + n] = bytes([rng.choice((0, 255, 10, 44, 34))]) * len(data[at : at + n])
            case 7:
                width, form = rng.choice(((1, "B"), (2, "H"), (4, "I"), (8, "Q")))
                value = rng.choice(_INTEGERS) % 256**width
                data[at : at + width] = struct.pack("<" + form, value)[: len(data[at : at + width])]
            case 8:
                other = rng.randrange(len(data) + 1)
                data[at : at + n] = data[other : other + n]
    return bytes(data)


def _foreign(rng: random.Random) -> bytes:
    """A file of another kind: pickles, arrays of objects, bombs, nothing."""
    return rng.choice(_foreign_files())


@cache
def _foreign_files() -> list[bytes]:
    saved, bomb = [io.BytesIO() for _ in range(2)], io.BytesIO()
    np.save(saved[0], np.array([_Pickled()], dtype=object), allow_pickle=True)
    np.savez(saved[1], a=np.array([_Pickled()], dtype=object))
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", bytes(2**26))
    return [
        *(pickle.dumps(_Pickled(), protocol=protocol) for protocol in (0, 2, 4)),
        *(one.getvalue() for one in saved),
        bomb.getvalue(),
        gzip.compress(b"0,1\n" * 2**21),
        *(
            b"",
            b"\n",
            b"\x00" * 5000,
            b"\xff\xfe",
            b"\x1f\x8b",
            b"PAR1",
            b"\x89HDF\r\n\x1a\n",
            b"PK",
            b"{" * 5000,
        ),
        b"," * 200_000 + b"\n" + b"1," * 100_000,
    ]


# --- text -----------------------------------------------------------------------------------


def _text(text: str, rng: random.Random) -> tuple[bytes, bool]:
    """Cells, lines, separators, quotes, line ends and encoding."""
    same = rng.random() < 0.08
    lines = text.split("\n")
    for _ in range(0 if same else rng.choice((1, 1, 1, 2, 3))):
        lines = _change_lines(lines, rng)
    end = (
        rng.choice(("\n", "\n", "\n", "\r\n"))
        if same or rng.random() < 0.9
        else rng.choice(("\r", "\n\r", "\x0b", "\n\n"))
    )
    changed = end.join(lines)
    encoding = "utf-8"
    if same:
        encoding = rng.choice(("utf-8", "utf-8-sig", "utf-16"))
    elif rng.random() < 0.08:
        encoding = rng.choice(_ENCODINGS)
    content = changed.encode(encoding, "replace" if encoding != "utf-8" else "surrogatepass")
    return content, same and text.isascii()


def _separator(lines: list[str]) -> str:
    return max("\t,; ", key=lambda one: sum(line.count(one) for line in lines[:20]))


def _change_lines(lines: list[str], rng: random.Random) -> list[str]:
    lines = list(lines)
    at = rng.choice((0, rng.randrange(len(lines)), rng.randrange(len(lines))))
    separator = _separator(lines)
    fields = lines[at].split(separator)
    where = rng.randrange(len(fields))
    kind = rng.randrange(20)
    if kind <= 5:
        fields[where] = rng.choice((*_NUMBERS, *_NUMBERS, *_WORDS))
    elif kind == 6:
        fields[where] = (
            rng.choice(("9" * 100_000, "x" * 200_000, '"' + "y\n" * 50)) if rng.random() < 0.2 else "Ü" * 50
        )
    elif kind == 7:
        del fields[where]
    elif kind == 8:
        fields.insert(where, rng.choice(fields))
    elif kind == 9:
        other = rng.randrange(len(fields))
        fields[where], fields[other] = fields[other], fields[where]
    elif kind == 10:  # a whole column
        value = rng.choice((*_NUMBERS, *_WORDS, None))
        for i in range(rng.choice((0, 1)), len(lines)):
            parts = lines[i].split(separator)
            if where < len(parts):
                parts[where : where + 1] = [] if value is None else [value]
                lines[i] = separator.join(parts)
        return lines
    elif kind == 11:
        lines[at:] = lines[at : at + 1] if rng.random() < 0.5 else []
        return lines or [""]
    elif kind == 12:
        del lines[at : at + rng.choice((1, 1, 3))]
        return lines or [""]
    elif kind == 13:
        return lines[:at] + lines[at : at + 1] * rng.choice((2, 2, 1000)) + lines[at + 1 :]
    elif kind == 14:
        other = rng.choice("\t,; |:")
        chosen = range(len(lines)) if rng.random() < 0.5 else [at]
        for i in chosen:
            lines[i] = lines[i].replace(separator, other)
        return lines
    elif kind == 15:
        lines.insert(at, rng.choice(("", " ", "#", "# a comment", separator * 3, "\x00", "%", "a b c")))
        return lines
    elif kind == 16:
        lines[at] = lines[at][: rng.randrange(len(lines[at]) + 1)]
        return lines
    elif kind == 17:
        quote = rng.choice(('"', "'"))
        chosen = range(len(lines)) if rng.random() < 0.5 else [at]
        for i in chosen:
            lines[i] = separator.join(f"{quote}{one}{quote}" for one in lines[i].split(separator))
        return lines
    elif kind == 18:
        rng.shuffle(lines)
        return lines
    else:
        return (
            [line.upper() for line in lines]
            if rng.random() < 0.5
            else [line.replace("1", "1.0") for line in lines]
        )
    lines[at] = separator.join(fields)
    return lines


def _gzip(content: bytes, rng: random.Random, scratch: Path) -> tuple[bytes, bool]:
    """Inside the compression, or outside."""
    inside = gzip.decompress(content)
    draw = rng.random()
    if draw < 0.7:
        changed, same = mutate(inside, rng, scratch)
        return gzip.compress(changed, 1), same
    if draw < 0.8:
        return _bytes(content, rng), False
    match rng.randrange(6):
        case 0:
            return inside, True
        case 1:
            cut = rng.randrange(len(inside) + 1)
            return gzip.compress(inside[:cut], 1) + gzip.compress(inside[cut:], 1), True
        case 2:
            return gzip.compress(content, 1), False
        case 3:
            return content + rng.randbytes(20), False
        case 4:
            return content[:-8] + rng.randbytes(8), False
        case _:
            return gzip.compress(inside + rng.choice((b"\x00", b"\n", b"1\n")) * 2**21, 1), False


# --- JSON -----------------------------------------------------------------------------------


def _json_value(rng: random.Random) -> Any:
    return rng.choice((
        None, True, False, "", "a", [], {}, 1.5, -0.0, 1e308, float("nan"), float("inf"), "1", [1], [[1]],
        {"a": 1}, [None],
        2**70, "x" * 1000, *_INTEGERS,
        [-1], [2**40, 2**40], ["a"], "<f8", "|O", "|S0", "<U1000000", "<M8[ns]", "pickle", "bz2", "sharding_indexed",
    ))  # fmt: skip


def _json(text: str, rng: random.Random) -> str:
    """Values replaced, removed, repeated or moved."""
    try:
        document = json.loads(text)
    except ValueError:
        return _text(text, rng)[0].decode("utf-8", "replace")
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places: list[tuple[Any, Any]] = []
        pending = [document]
        while pending:
            node = pending.pop()
            keys: Any = (
                list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
            )
            for key in keys:
                places.append((node, key))
                pending.append(node[key])
        if not places:
            return json.dumps(_json_value(rng))
        node, key = rng.choice(places)
        match rng.randrange(6):
            case 0 | 1:
                node[key] = _json_value(rng)
            case 2:
                del node[key]
            case 3:
                node[key] = [node[key]] * rng.choice((1, 2, 1000))
            case 4:
                other, place = rng.choice(places)
                try:
                    node[key] = json.loads(json.dumps(other[place]))
                except (KeyError, IndexError, RecursionError):
                    continue
            case 5:
                if isinstance(node, dict):
                    node[rng.choice((*_WORDS, "a/b", ".."))] = node[key]
                elif isinstance(node[key], int | float):
                    node[key] = -node[key]
    return json.dumps(document)


# --- HDF5 -----------------------------------------------------------------------------------


def hdf5(content: bytes, rng: random.Random, scratch: Path) -> bytes:
    """Members, shapes, dtypes, values, storage, links and attributes changed through HDF5, or bytes."""
    if rng.random() < 0.25:
        return _bytes(content, rng)
    scratch.write_bytes(content)
    try:
        with h5py.File(scratch, "r+") as file:
            names: list[str] = []
            file.visit(names.append)
            for _ in range(rng.choice((1, 1, 1, 2, 3))):
                try:
                    _change_hdf5(file, rng.choice(names) if names else "/", rng)
                except (
                    ValueError,
                    TypeError,
                    KeyError,
                    OSError,
                    RuntimeError,
                    IndexError,
                    ArithmeticError,
                    MemoryError,
                ):
                    continue  # a change that does not apply to this member
        return scratch.read_bytes()
    finally:
        scratch.unlink()


def _change_hdf5(file: h5py.File, name: str, rng: random.Random) -> None:
    kind = rng.randrange(24)
    if kind <= 4:
        _change_attribute(file[name] if rng.random() < 0.8 else file, rng)
        return
    item = file[name]
    if kind == 5:
        del file[name]
    elif kind == 6:
        file.move(name, rng.choice(("renamed", name + "_", name.rpartition("/")[0] + "/X")))
    elif kind == 7:
        link = rng.choice((
            h5py.SoftLink("/"), h5py.SoftLink("/nothing"), h5py.SoftLink("/" + name),
            h5py.ExternalLink(os.environ[PIPE], "/a"),
            h5py.ExternalLink("", "/" + name),
        ))  # fmt: skip
        del file[name]
        file[name] = link
    elif kind == 8:
        file[f"{name}/loop" if isinstance(item, h5py.Group) else f"{name}_loop"] = rng.choice(
            (file["/"], item)
        )
    elif kind == 9:
        del file[name]
        file.create_group(name)["0" if rng.random() < 0.5 else "data"] = 1
    elif kind == 10:
        others: list[str] = []
        file.visititems(lambda one, found: others.append(one) if isinstance(found, h5py.Dataset) else None)
        other = rng.choice(others)
        del file[name]
        file[name] = file[other]  # the same array under two names
    elif not isinstance(item, h5py.Dataset):
        _change_attribute(item, rng)
    elif kind == 11:
        _replace(file, name, shape=rng.choice(((2**40,), (2**33,), (2**20, 2**20))), dtype=item.dtype,
                 chunks=rng.choice((None, True)))  # fmt: skip
    elif kind == 12:
        data, n = item[()], max(1, item.size)
        options: dict[str, Any] = rng.choice((
            {"compression": "gzip"}, {"compression": "lzf"}, {"shuffle": True}, {"fletcher32": True},
            {"scaleoffset": 0}, {"compression": "gzip", "shuffle": True, "fletcher32": True},
        ))  # fmt: skip
        _replace(file, name, data=data, chunks=tuple(min(n, 3) for _ in item.shape) or None, **options)
        if rng.random() < 0.5 and file[name].shape:
            file[name].id.write_direct_chunk((0,) * file[name].ndim, rng.randbytes(rng.choice((0, 3, 40))))
    elif kind == 13:
        _replace(file, name, shape=(6,), dtype=item.dtype, external=[("/dev/zero", 0, h5py.h5f.UNLIMITED)])
    elif kind == 14:
        creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        creation.set_chunk((3,))
        creation.set_filter(rng.choice((32001, 32004, 32015, 305, 5, 6)), h5py.h5z.FLAG_OPTIONAL, (1, 2, 3))
        dtype = h5py.h5t.py_create(item.dtype)
        del file[name]
        h5py.h5d.create(file.id, name.encode(), dtype, h5py.h5s.create_simple((6,)), creation)
    elif kind == 15:
        layout = h5py.VirtualLayout(shape=(6,), dtype=item.dtype)
        layout[:] = h5py.VirtualSource(rng.choice((".", "/dev/zero")), name, shape=(6,))
        del file[name]
        file.create_virtual_dataset(name, layout)
    elif kind <= 19:
        _replace(file, name, data=_other_array(item[()], rng))
    elif kind == 20 and item.dtype == np.uint8 and item.ndim == 1:  # a document
        changed = _json(item[()].tobytes().decode(), rng).encode("utf-8", "surrogatepass")
        _replace(file, name, data=np.frombuffer(changed, np.uint8))
    else:
        _change_values(item, rng)


def _replace(file: h5py.File, name: str, **options: Any) -> None:
    attributes = dict(file[name].attrs)
    del file[name]
    new = file.create_dataset(name, **options)
    for key, value in attributes.items():
        new.attrs[key] = value


def _change_attribute(item: Any, rng: random.Random) -> None:
    names = list(item.attrs)
    value = rng.choice((
        1, -1, 2**40, 1.5, "", "a", "csr_matrix", "dense", "categorical", "dataframe", b"\xff\xfe", np.zeros(0),
        np.arange(3),
        np.array(["a", "b"], dtype=object), h5py.Empty("f4"), "x" * 1000, np.array([2**40, 2**40]), np.bool_(True),
        np.array([-1, 5]), "string-array", "nullable-integer", "awkward-array", "0.2.0", "99.0.0", "anndata", "null",
    ))  # fmt: skip
    if not names or rng.random() < 0.1:
        item.attrs[rng.choice(("shape", "encoding-type", "_index", "column-order", "version", "new"))] = value
    elif rng.random() < 0.3:
        del item.attrs[rng.choice(names)]
    else:
        item.attrs[rng.choice(names)] = value


def _other_array(data: Any, rng: random.Random) -> Any:
    """Another shape or another dtype."""
    data = np.asarray(data)
    if rng.random() < 0.5:
        rows = np.atleast_1d(data)  # of a scalar, too
        shapes = [
            lambda: rows[:0], lambda: rows[:1], lambda: rows[:-1], lambda: np.concatenate([rows, rows]),
            lambda: data[..., None],
            lambda: data.ravel()[0], lambda: data[None], lambda: np.broadcast_to(data, (2, *data.shape)),
            lambda: data.ravel(),
            lambda: np.repeat(rows, 300, axis=0), lambda: h5py.Empty("f4"), lambda: data.T,
        ]  # fmt: skip
        return rng.choice(shapes)()
    n = data.shape
    kinds = [
        lambda: data.astype(rng.choice(("i1", "u1", "i4", ">i4", "u8", "i8", "?"))),
        lambda: data.astype(rng.choice(("f2", "f4", ">f8", "f8", "c8", "S3"))),
        lambda: np.full(n, "a", dtype=object), lambda: np.full(n, b"\xff\xfe\x00a"),
        lambda: np.full(n, "Ü" * 9, dtype=object),
        lambda: np.zeros(n, [("a", "i4"), ("b", "S4")]), lambda: np.zeros(n, "V4"),
        lambda: np.zeros(n, [("r", "f8"), ("i", "f8")]),
        lambda: np.array([f"n{i}" for i in range(data.size)], dtype=object).reshape(n), lambda: np.full(n, np.nan),
        lambda: np.array([np.arange(2)] * max(1, data.size), dtype=object), lambda: np.zeros(n, bool),
    ]  # fmt: skip
    return rng.choice(kinds)()


def _change_values(dataset: h5py.Dataset, rng: random.Random) -> None:
    data = np.array(dataset[()])
    fields = data.dtype.names
    part = data[rng.choice(fields)] if fields else data
    if part.size == 0:
        return
    chosen = slice(None) if rng.random() < 0.2 else rng.randrange(part.size)
    flat = part.reshape(-1) if part.ndim else part.reshape(1)
    match part.dtype.kind:
        case "i" | "u":
            limits = np.iinfo(part.dtype)
            flat[chosen] = rng.choice([one for one in _INTEGERS if limits.min <= one <= limits.max])
        case "f":
            flat[chosen] = rng.choice((np.nan, np.inf, -np.inf, -1, 0, 1.5, 1e30, 2.0**24, 1e300, -0.0))
        case "S":
            flat[chosen] = rng.choice((b"", b"a", b"\xff\xfe", b"\x00a", b"NA", b"x" * 64))
        case "O":
            flat[chosen] = rng.choice(("", "a", "NA", "Ü", "x" * 5000, "\x01", "1e400"))
        case _:
            return
    dataset[...] = data


# --- other containers -----------------------------------------------------------------------


def _zip(content: bytes, rng: random.Random, scratch: Path) -> bytes:
    """A member changed, removed, renamed or compressed, or bytes."""
    if rng.random() < 0.3:
        return _bytes(content, rng)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice(list(members))
    match rng.randrange(6):
        case 0:
            del members[name]
        case 1:
            members[rng.choice(("../up", "/abs", "a/../b", "x" * 300, name + "x"))] = members.pop(name)
        case 2:
            members[name] = bytes(2**22)
        case _:
            members[name] = mutate(members[name], rng, scratch)[0]
    buffer = io.BytesIO()
    method = rng.choice(
        (zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)
    )
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for one, data in members.items():
            archive.writestr(one, data)
    return buffer.getvalue()


def _numpy(content: bytes, rng: random.Random) -> bytes:
    """The header, with another shape or dtype, or the array."""
    array = np.load(io.BytesIO(content))
    buffer = io.BytesIO()
    match rng.randrange(5):
        case 0:
            np.save(buffer, np.array([_Pickled()], dtype=object), allow_pickle=True)
        case 1:
            np.save(buffer, _other_array(array, rng))
        case 2:
            header = {
                "descr": array.dtype.str,
                "fortran_order": False,
                "shape": rng.choice(((2**40,), (-1,), (2**20, 2**20))),
            }
            np.lib.format.write_array_header_1_0(buffer, header)
        case 3:
            start = content.index(b"{")
            text = content[start : start + 60].decode("latin-1")
            changed = text.replace("'", rng.choice(("", '"', "(")), 1).replace(
                "False", rng.choice(("None", "open", "-1"))
            )
            return content[:start] + changed.encode("latin-1") + content[start + 60 :]
        case _:
            return _bytes(content, rng)
    return buffer.getvalue()


def _parquet(content: bytes, rng: random.Random) -> bytes:
    """Columns renamed, dropped, repeated, of another type or with missing values; or bytes."""
    if rng.random() < 0.4:
        return _bytes(content, rng)
    import pandas as pd

    frame = pd.read_parquet(io.BytesIO(content))
    name = rng.choice(list(frame.columns))
    n = len(frame)
    values: list[Callable[[], Any]] = [
        lambda: None, lambda: "a", lambda: [[1, 2]] * n, lambda: [{"a": 1}] * n, lambda: [b"\xff\xfe"] * n,
        lambda: np.nan,
        lambda: np.inf, lambda: -1, lambda: 2**62, lambda: pd.Categorical(["a"] * n),
        lambda: pd.Timestamp("2020-01-01"),
        lambda: [True] * n, lambda: [str(i) for i in range(n)], lambda: np.arange(n) / 3, lambda: [b""] * n,
        lambda: [struct.pack("<BI", 1, rng.choice((1, 2, 3, 6, 7, 2**31)))] * n,
        lambda: [struct.pack("<BIII", 1, 3, rng.choice((1, 2**31)), rng.choice((0, 1, 2, 2**31)))] * n,
    ]  # fmt: skip
    match rng.randrange(7):
        case 0:
            frame = frame.drop(columns=name)
        case 1:
            frame = frame.rename(columns={name: rng.choice((*_WORDS, "x", "y", "barcode"))})
        case 2:
            frame = frame.iloc[: rng.choice((0, 1, n // 2))]
        case 3:
            frame = pd.concat([frame, frame])
        case 4:
            frame.index = pd.Index(rng.choice(([0] * n, list("a" * n), np.arange(n) / 2)))
        case _:
            frame[name] = rng.choice(values)()
    buffer = io.BytesIO()
    try:
        frame.to_parquet(buffer, compression=rng.choice((None, "snappy", "zstd", "gzip")))
    except Exception:  # pyarrow does not write such columns
        return _bytes(content, rng)
    return buffer.getvalue()
