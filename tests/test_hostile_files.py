"""Files made to open others, to execute code or to fill the memory are refused by every reader, in bounded memory."""

import gzip
import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
import zlib
from functools import cache

import h5py
import numpy as np
import pytest

import amilst_lite as amilst
from amilst_lite.model_file import write_model

pytestmark = pytest.mark.slow

MOST_MEMORY = 500 * 2**20
READ = """
import json, resource, sys, time, traceback
from pathlib import Path
import amilst_lite as amilst
from amilst_lite.errors import AmilstError
from amilst_lite.checkpoint import Checkpoint
from amilst_lite.model_file import read_model
import anndata, scipy.sparse, sklearn  # so that their memory is not counted
try:
    import zarr
except ImportError:
    pass

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

def refuse():
    raise amilst.InputError("computed again")

spots = amilst.read(sys.argv[1])
_, limit = resource.getrlimit(resource.RLIMIT_DATA)
current = [int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmData")][0]
resource.setrlimit(resource.RLIMIT_DATA, (current + 500 * 2**20, limit))
for path in sys.argv[2:]:
    name = Path(path).name
    readers = {"model.h5": read_model, "a.10x.h5": amilst.io.read_10x_h5, "features": amilst.io.read_10x_mtx}
    before, started = peak(), time.perf_counter()
    try:
        if name.startswith("xy."):
            amilst.io.join_coordinates(spots, path)
        elif path.endswith(".npz"):
            checkpoint = Checkpoint(Path(path).parent)
            checkpoint.stage(Path(path).stem, refuse)
        else:
            readers.get(name, amilst.read)(path)
        found = "read"
    except AmilstError as error:
        found = f"refused: {error}"
    except BaseException as error:
        found = f"{type(error).__name__}: {traceback.format_exc()}"
    print(json.dumps([path, found, peak() - before, time.perf_counter() - started]), flush=True)
"""

KINDS = {  # an array of numbers that every file of the kind has
    "h5ad": "layers/counts/data",
    "10x.h5": "matrix/data",
    "loom": "matrix",
    "gef": "geneExp/bin1/expression",
    "model.h5": "arrays/weights",
}
TEXT = {"h5ad": "var/_index", "10x.h5": "matrix/features/name", "loom": "row_attrs/Gene"}
"""An array of strings of variable length."""


def make(path, kind):
    """A file of a kind that is not hostile, as far as it is needed."""
    rng = np.random.default_rng(0)
    if kind == "h5ad":
        adata = amilst.simulate_section(60, 20, 3, seed=1)
        adata.layers["counts"] = adata.X.copy()
        adata.write_h5ad(path)
    elif kind == "10x.h5":
        with h5py.File(path, "w") as file:
            group = file.create_group("matrix")
            group["data"], group["indices"] = np.ones(60, np.int32), np.zeros(60, np.int64)
            group["indptr"], group["shape"] = np.arange(61), np.array([20, 60])
            group["barcodes"] = [f"b{i}" for i in range(60)]
            for name in ("id", "name"):
                group[f"features/{name}"] = [f"g{i}" for i in range(20)]
            group["features/feature_type"] = ["Gene Expression"] * 20
            group["features/genome"] = ["mm10"] * 20
    elif kind == "loom":
        with h5py.File(path, "w") as file:
            file["matrix"] = rng.poisson(1, (20, 60)).astype(np.float32)
            file["row_attrs/Gene"] = [f"g{i}" for i in range(20)]
            file["col_attrs/X"], file["col_attrs/Y"] = rng.random(60), rng.random(60)
    elif kind == "gef":
        with h5py.File(path, "w") as file:
            dtype = [("x", "<i4"), ("y", "<i4"), ("count", "<u2")]
            file["geneExp/bin1/expression"] = np.array([(i, i, 1) for i in range(60)], dtype=dtype)
            fields = [("geneID", "S64"), ("geneName", "S64"), ("offset", "<u4"), ("count", "<u4")]
            file["geneExp/bin1/gene"] = np.array([(b"g", b"g", 0, 60)], dtype=fields)
            file.attrs["version"] = np.array([4], np.uint32)
    else:
        write_model(path, {"weights": np.arange(6.0)}, {"a": 1})
    return path


def replace(file, name, **storage):
    """Remove an array and return how a new one of that name is to be created."""
    dtype = file[name].dtype
    del file[name]
    return file.create_dataset(name, dtype=storage.pop("dtype", dtype), **storage)


def external_link(file, name, folder):
    del file[name]
    file[name] = h5py.ExternalLink(str(folder / "pipe"), "/numbers")  # to open it would wait without end


def external_storage(file, name, folder):
    replace(file, name, shape=(6,), external=[(str(folder / "pipe"), 0, h5py.h5f.UNLIMITED)])


def virtual(file, name, folder):
    dtype = file[name].dtype
    del file[name]
    layout = h5py.VirtualLayout(shape=(6,), dtype=dtype)
    layout[:] = h5py.VirtualSource(str(folder / "pipe"), "numbers", shape=(6,))
    file.create_virtual_dataset(name, layout)


def huge(file, name, folder):
    replace(file, name, shape=(2**40,), chunks=(2**10,))


def huge_with_few_chunks(file, name, folder):
    data = replace(file, name, shape=(2**30,), chunks=(2**16,), compression="gzip")
    data[:5] = np.zeros(5, data.dtype)


def huge_contiguous(file, name, folder):
    replace(file, name, shape=(2**33,))


def huge_chunk(file, name, folder):
    length = 2**29 // file[name].dtype.itemsize
    data = replace(file, name, shape=(3,), maxshape=(None,), chunks=(length,), compression="gzip")
    data.id.write_direct_chunk((0,), zeros(2**29))


def many_zeros(file, name, folder):
    """As well compressed as zeros are, to a thousandth of 600 MiB."""
    n = 2**22 // file[name].dtype.itemsize
    data = replace(file, name, shape=(150 * n,), chunks=(n,), compression="gzip")
    for i in range(150):
        data.id.write_direct_chunk((i * n,), zeros(2**22))


def chunk_bomb(file, name, folder):
    data = replace(file, name, shape=(6,), chunks=(6,), compression="gzip")
    data.id.write_direct_chunk((0,), zeros(2**29))


@cache
def zeros(length):
    stream = zlib.compressobj(9)
    pieces = [stream.compress(bytes(min(2**22, length - start))) for start in range(0, length, 2**22)]
    return b"".join([*pieces, stream.flush()])


def double_compression(file, name, folder):
    dtype = h5py.h5t.py_create(file[name].dtype)
    del file[name]
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_chunk((6,))
    creation.set_deflate(9)
    creation.set_deflate(9)
    h5py.h5d.create(file[name.rpartition("/")[0] or "/"].id, name.rpartition("/")[2].encode(), dtype,
                    h5py.h5s.create_simple((6,)), creation)  # fmt: skip


def recursion(file, name, folder):
    file["loop/a"] = file["/"]


def doubling(file, name, folder):
    """2^40 paths by hard links."""
    group = file.create_group("double0")
    for i in range(1, 28):
        below = file.create_group(f"double{i}")
        group["left"], group["right"] = below, below
        group = below


def soft_recursion(file, name, folder):
    file["uns/loop"] = h5py.SoftLink("/")


def many_groups(file, name, folder):
    for i in range(21_000):
        h5py.h5g.create(file.id, b"many%d" % i)


def deep(file, name, folder):
    group = file
    for _ in range(2000):
        group = group.create_group("a")


ATTACKS = [
    external_link, external_storage, virtual, huge, huge_with_few_chunks, huge_contiguous, huge_chunk, many_zeros,
    chunk_bomb, double_compression, recursion, doubling, soft_recursion, many_groups, deep,
]  # fmt: skip


def attacks_on(kind):
    """All; those that take a second only on two kinds, since all but models are inspected by the same code."""
    return [one for one in ATTACKS if kind in ("h5ad", "model.h5") or one not in (doubling, many_groups)]


def string_bomb(path, name):
    """All strings are the same 400 kB of the file: the places of all others are replaced by that of the first."""
    with h5py.File(path, "r+") as file:
        n = 2000
        where = name.rpartition("/")[0]
        del file[name]
        values = [f"MARK{i:08d}" for i in range(n)]
        values[0] = "x" * 400_000
        file.create_dataset(name, data=np.array(values, dtype=object), dtype=h5py.string_dtype())
        file[where].attrs["checked"] = 1
        dataset = file[name]
        offset = dataset.id.get_offset()
    content = bytearray(path.read_bytes())
    first = content[offset : offset + 16]
    content[offset : offset + 16 * n] = bytes(first) * n
    path.write_bytes(content)


class Executed:
    """Writes a file when it is unpickled."""

    def __reduce__(self):
        return eval, ("open(__import__('os').environ['AMILST_EXECUTED'], 'w')",)


def compressed(path, *parts):
    """A gzip file of parts (content, number of repetitions)."""
    with gzip.open(path, "wb", compresslevel=9) as stream:
        for content, n in parts:
            for _ in range(n):
                stream.write(content)
    return path


def saved(path, **arrays):
    np.savez_compressed(path, **arrays)
    return path


def pickled(path):
    path.write_bytes(pickle.dumps(Executed()))
    return path


def zipped(path, **members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name.replace("_", "."), content)
    return path


def huge_header(path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (2**33,)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("checkpoint.npy", header.getvalue())
    return path


def xenium_bomb(folder):
    """A zip file whose small members are long metadata."""
    with zipfile.ZipFile(folder / "cell_feature_matrix.zarr.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(200):
            archive.writestr(f"a{i}/.zattrs", b'{"a": "' + b" " * (2**24 - 100) + b'"}')
    (folder / "cells.csv").write_text("cell_id,x_centroid,y_centroid\na,1,2\nb,2,1\n")
    return folder


def mtx_bomb(folder):
    """Names of barcodes that are a gigabyte of text."""
    place = folder / "features"
    place.mkdir()
    (place / "matrix.mtx").write_text("%%MatrixMarket matrix coordinate integer general\n1 1 1\n1 1 1\n")
    (place / "genes.tsv").write_text("g\tg\n")
    compressed(place / "barcodes.tsv.gz", (b"a\n" * 2**19, 600))
    return place


def repeated_string(path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    names = pa.DictionaryArray.from_arrays(np.zeros(6000, np.int32), ["x" * 100_000])
    pq.write_table(pa.table({"spot": names}), path, store_schema=False)
    return path


OTHERS = {
    "pickle as h5ad": lambda folder: pickled(folder / "a.h5ad"),
    "pickle as a model": lambda folder: pickled(folder / "model.h5"),
    "pickle as a table": lambda folder: pickled(folder / "xy.csv"),
    "pickle as a checkpoint": lambda folder: pickled(folder / "prepare.npz"),
    "objects in a checkpoint": lambda folder: saved(
        folder / "prepare.npz", a=np.array([Executed()], dtype=object)
    ),
    "zeros in a checkpoint": lambda folder: saved(folder / "prepare.npz", a=np.zeros(2**27)),
    "header of a checkpoint": lambda folder: huge_header(folder / "prepare.npz"),
    "zip as a model": lambda folder: zipped(folder / "model.h5", a_npy=bytes(2**28)),
    "zeros as h5ad.gz": lambda folder: compressed(
        folder / "a.h5ad.gz", (b"\x89HDF\r\n\x1a\n", 1), (bytes(2**20), 600)
    ),
    "table of one line": lambda folder: compressed(folder / "xy.csv.gz", (b"spot,x,y," + b"a," * 2**19, 600)),
    "line of numbers": lambda folder: compressed(
        folder / "xy.csv.gz", (b"spot,x,y\na,1,2\nb,1,", 1), (b"1" * 2**20, 600)
    ),
    "table of a gigabyte": lambda folder: compressed(
        folder / "xy.csv.gz", (b"spot,x,y\n", 1), (b"a,1,2\n" * 2**17, 900)
    ),
    "long table of one line": lambda folder: compressed(
        folder / "a.csv.gz", (b"spot,gene,count,x,y\na,b,1,0,0\n", 1), (b"a" * 2**20, 600)
    ),
    "barcodes of a gigabyte": mtx_bomb,
    "metadata in a zip file": xenium_bomb,
    "strings of parquet": lambda folder: repeated_string(folder / "xy.parquet"),
}
"""Name → what writes a file, or a folder, below a folder, and returns its place."""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """(kind, attack) → what a reader says, how much memory it takes and how long, all in one process."""
    folder = tmp_path_factory.mktemp("hostile")
    os.mkfifo(folder / "pipe")
    paths = {}
    for kind, name in KINDS.items():
        for attack in attacks_on(kind):
            place = folder / f"{attack.__name__}-{kind.replace('.', '_')}"
            place.mkdir()
            path = make(place / f"a.{kind}" if kind != "model.h5" else place / kind, kind)
            with h5py.File(path, "r+") as file:
                attack(file, name, folder)
            paths[kind, attack.__name__] = path
    for kind, name in TEXT.items():
        paths[kind, "string_bomb"] = make(folder / f"string_bomb.{kind}", kind)
        string_bomb(paths[kind, "string_bomb"], name)
    for name, write in OTHERS.items():
        place = folder / name
        place.mkdir()
        paths["other", name] = write(place)
    usual = make(folder / "usual.h5ad", "h5ad")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "OMP_NUM_THREADS": "1",
        "AMILST_EXECUTED": str(folder / "executed"),
    }
    done = subprocess.run(
        [sys.executable, "-c", READ, str(usual), *map(str, paths.values())],
        capture_output=True, env=environment, text=True, timeout=240, check=False,
    )  # fmt: skip
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    found = {path: rest for path, *rest in lines}
    assert not (folder / "executed").exists()
    return {key: found.get(str(path), (done.stderr[-2000:], 0, 0)) for key, path in paths.items()}


CASES = [(kind, attack.__name__) for kind in KINDS for attack in attacks_on(kind)]
CASES += [(kind, "string_bomb") for kind in TEXT]
CASES += [("other", name) for name in OTHERS]


@pytest.mark.skipif(sys.platform != "linux", reason="measures memory as Linux reports it")
@pytest.mark.parametrize(("kind", "attack"), CASES)
def test_refused_in_bounded_memory(outcomes, kind, attack):
    message, memory, seconds = outcomes[kind, attack]
    assert message.startswith("refused: ")
    assert memory < MOST_MEMORY and seconds < 5


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_files_without_an_attack_are_read(tmp_path, kind):
    path = make(tmp_path / (f"a.{kind}" if kind != "model.h5" else kind), kind)
    if kind == "10x.h5":
        assert amilst.io.read_10x_h5(path).n_obs == 60
    elif kind == "model.h5":
        from amilst_lite.model_file import read_model

        assert read_model(path)[1] == {"a": 1}
    else:
        assert amilst.read(path).n_obs
