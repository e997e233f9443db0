"""Time and memory of reading a section, in every large format, beside other readers where they are installed.

    python benchmarks/reading.py [--cells 100000] [--formats NAME ...] [--python PYTHON] [--json FILE]

The script writes the same simulated counts in each format, and reads each in a process of its own, after a small
file of the same format, so that imports do not count. Memory is the increase of the peak resident size. The least
memory is that of the result (matrix, coordinates and names) and, for text, of one chunk: its characters, and eight
bytes for each number in it. ``--python`` names an interpreter that has the other packages (scanpy, spatialdata,
which need not have ours). Use ``--cells 1000000`` for a million; the text formats then take some minutes.
"""

from __future__ import annotations

import argparse
import gc
import gzip
import json
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from common import Json, Record, make_parser, markdown

N_GENES = 500
ENTRIES = 100  # nonzero counts of a cell
BIN = 8
SMALL = 2_000  # cells of the file that is read before


# --- writing --------------------------------------------------------------------------------


def counts(n_cells: int) -> Any:
    """Counts (n_cells, N_GENES), CSR: ENTRIES genes of each cell, without order of position."""
    from scipy import sparse

    rng = np.random.default_rng(0)
    first = rng.integers(0, N_GENES, n_cells)
    step = rng.choice([step for step in range(1, N_GENES) if np.gcd(step, N_GENES) == 1], n_cells)
    indices = (first[:, None] + step[:, None] * np.arange(ENTRIES)) % N_GENES  # distinct in each row
    indices.sort(axis=1)
    data = rng.integers(1, 10, n_cells * ENTRIES).astype(np.float32)
    indptr = np.arange(n_cells + 1) * ENTRIES
    return sparse.csr_matrix((data, indices.ravel().astype(np.int32), indptr), shape=(n_cells, N_GENES))


def positions(n_cells: int) -> np.ndarray:
    """Positions (n_cells, 2) on a square grid, integers."""
    side = int(np.ceil(np.sqrt(n_cells)))
    return np.column_stack([np.arange(n_cells) % side, np.arange(n_cells) // side])


def section(n_cells: int) -> Any:
    """An AnnData of `counts` and `positions`."""
    import anndata
    import pandas as pd

    obs = pd.DataFrame(index=[f"cell_{i:08d}-1" for i in range(n_cells)])
    var = pd.DataFrame(index=[f"Gene{j}" for j in range(N_GENES)])
    return anndata.AnnData(counts(n_cells), obs, var, obsm={"spatial": positions(n_cells).astype(np.float64)})


def write_h5ad(path: Path, n_cells: int) -> None:
    section(n_cells).write_h5ad(path)


def write_h5ad_gz(path: Path, n_cells: int) -> None:
    plain = path.with_suffix("")
    section(n_cells).write_h5ad(plain)
    with plain.open("rb") as source, gzip.open(path, "wb", compresslevel=1) as target:
        shutil.copyfileobj(source, target)
    plain.unlink()


def write_zarr(path: Path, n_cells: int) -> None:
    section(n_cells).write_zarr(path)


def write_spatialdata(path: Path, n_cells: int) -> None:
    """The table alone, with coordinates in obsm."""
    (path / "tables").mkdir(parents=True)
    for folder in (path, path / "tables"):
        (folder / ".zgroup").write_text('{"zarr_format": 2}')
    (path / ".zattrs").write_text('{"spatialdata_attrs": {"version": "0.1"}}')
    table = section(n_cells)
    attributes = {"region": "cells", "region_key": "region", "instance_key": "instance"}
    table.obs["region"], table.obs["instance"] = "cells", np.arange(n_cells)
    table.obs["region"] = table.obs["region"].astype("category")
    table.uns["spatialdata_attrs"] = attributes
    table.write_zarr(path / "tables" / "table")
    settings = path / "tables" / "table" / ".zattrs"
    kind = {"spatialdata-encoding-type": "ngff:regions_table", "version": "0.1", **attributes}
    settings.write_text(json.dumps(json.loads(settings.read_text()) | kind))


def write_10x(path: Path, n_cells: int, names: list[str]) -> None:
    """A 10x HDF5 matrix."""
    import h5py

    matrix = counts(n_cells)
    genes = np.array([f"Gene{j}" for j in range(N_GENES)], dtype="S")
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        group["barcodes"], group["shape"] = np.array(names, dtype="S"), matrix.shape[::-1]
        for name, values in (("data", matrix.data.astype(np.int32)), ("indices", matrix.indices)):
            group.create_dataset(name, data=values, compression="gzip", compression_opts=1)
        group["indptr"] = matrix.indptr
        group["features/name"] = group["features/id"] = genes
        for name, value in (("feature_type", b"Gene Expression"), ("genome", b"GRCh38")):
            group[f"features/{name}"] = np.array([value] * N_GENES)


def write_visium_hd(path: Path, n_cells: int) -> None:
    """One bin size; the chip has a tenth more bins than lie in tissue."""
    import pandas as pd

    (path / "spatial").mkdir(parents=True)
    grid = positions(n_cells + n_cells // 10)
    names = [f"s_008um_{row:05d}_{column:05d}-1" for column, row in grid.tolist()]
    write_10x(path / "filtered_feature_bc_matrix.h5", n_cells, names[:n_cells])
    table = pd.DataFrame({"barcode": names, "in_tissue": np.arange(len(grid)) < n_cells})
    table["in_tissue"] = table["in_tissue"].astype(int)
    table["array_row"], table["array_col"] = grid[:, 1], grid[:, 0]
    table["pxl_row_in_fullres"], table["pxl_col_in_fullres"] = grid[:, 1] * 29.3, grid[:, 0] * 29.3
    table.to_parquet(path / "spatial" / "tissue_positions.parquet", index=False)
    (path / "spatial" / "scalefactors_json.json").write_text(
        '{"bin_size_um": 8.0, "microns_per_pixel": 0.27}'
    )


def write_xenium(path: Path, n_cells: int) -> None:
    """Matrix in HDF5 and cells in gzipped text."""
    import pandas as pd

    path.mkdir()
    names = [f"aaaa{i:04x}-1" for i in range(n_cells)]
    write_10x(path / "cell_feature_matrix.h5", n_cells, names)
    grid = positions(n_cells)
    cells = pd.DataFrame({"cell_id": names, "x_centroid": grid[:, 0] + 0.25, "y_centroid": grid[:, 1] + 0.25})
    cells.to_csv(path / "cells.csv.gz", index=False, compression={"method": "gzip", "compresslevel": 1})


def lines(n_cells: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Cells, genes and counts of the entries in no order of the cells, half a million at a time."""
    matrix = counts(n_cells)
    order = np.random.default_rng(1).permutation(n_cells)
    step = max(1, 500_000 // ENTRIES)
    for start in range(0, n_cells, step):
        block = matrix[order[start : start + step]]
        cells = np.repeat(order[start : start + step], ENTRIES)
        yield cells, block.indices, block.data.astype(int)


def write_gem_gz(path: Path, n_cells: int) -> None:
    """Each cell is a bin of BIN × BIN DNBs, and its molecules lie at random in it."""
    rng, grid = np.random.default_rng(2), positions(n_cells) * BIN
    with gzip.open(path, "wt", compresslevel=1) as file:
        file.write("#FileFormat=GEMv0.1\n#BinSize=1\ngeneID\tx\ty\tMIDCount\tExonCount\n")
        for cells, genes, values in lines(n_cells):
            x, y = (grid[cells] + rng.integers(0, BIN, (len(cells), 2))).T
            rows = zip(genes.tolist(), x.tolist(), y.tolist(), values.tolist(), strict=True)
            file.write("".join([f"Gene{gene}\t{i}\t{j}\t{n}\t{n}\n" for gene, i, j, n in rows]))


def write_gef(path: Path, n_cells: int) -> None:
    """Square bins of single DNBs, by gene."""
    import h5py

    matrix = counts(n_cells).tocsc()
    per_gene = np.diff(matrix.indptr)
    grid = positions(n_cells)[matrix.indices] * BIN
    grid += np.random.default_rng(2).integers(0, BIN, grid.shape)
    records = np.zeros(matrix.nnz, dtype=[("x", "<u4"), ("y", "<u4"), ("count", "u1")])
    records["x"], records["y"], records["count"] = grid[:, 0], grid[:, 1], matrix.data
    gene = np.zeros(N_GENES, dtype=[("gene", "S64"), ("offset", "<u4"), ("count", "<u4")])
    gene["gene"] = [f"Gene{j}" for j in range(N_GENES)]
    gene["offset"], gene["count"] = matrix.indptr[:-1], per_gene
    with h5py.File(path, "w") as file:
        file.attrs["version"] = np.uint32([4])
        group = file.create_group("geneExp/bin1")
        group.create_dataset("expression", data=records, compression="gzip", compression_opts=1)
        group["gene"] = gene


def write_long(path: Path, n_cells: int) -> None:
    """Spot, gene, count, x, y."""
    grid = positions(n_cells)
    with gzip.open(path, "wt", compresslevel=1) as file:
        file.write("spot\tgene\tcount\tx\ty\n")
        for cells, genes, values in lines(n_cells):
            rows = zip(cells.tolist(), genes.tolist(), values.tolist(), *grid[cells].T.tolist(), strict=True)
            file.write(
                "".join([f"cell_{cell:08d}\tGene{gene}\t{n}\t{x}\t{y}\n" for cell, gene, n, x, y in rows])
            )


def write_matrix(path: Path, header: str, names: Iterator[str], matrix: Any) -> None:
    """A comma-separated table of all numbers of a matrix, after the names of its rows."""
    words = np.array([str(number) for number in range(int(matrix.data.max()) + 1)], dtype=object)
    with path.open("w") as file:
        file.write(header + "\n")
        for start in range(0, matrix.shape[0], 2000):
            block = words[matrix[start : start + 2000].toarray().astype(int)].tolist()
            file.write("".join([f"{next(names)},{','.join(row)}\n" for row in block]))


def write_merscope(path: Path, n_cells: int) -> None:
    """Cells × genes, and the cells; identifiers as of MERSCOPE, 19 digits."""
    import pandas as pd

    path.mkdir()
    names = [f"11106000{i:011d}" for i in range(n_cells)]
    header = ",".join(["cell", *(f"Gene{j}" for j in range(N_GENES))])
    write_matrix(path / "cell_by_gene.csv", header, iter(names), counts(n_cells))
    grid = positions(n_cells)
    cells = pd.DataFrame({"": names, "fov": 0, "volume": 812.5})
    cells["center_x"], cells["center_y"] = grid[:, 0] + 0.25, grid[:, 1] + 0.25
    cells.to_csv(path / "cell_metadata.csv", index=False)


def write_cosmx(path: Path, n_cells: int) -> None:
    """Fields of view of a thousand cells; a line of counts outside cells for each."""
    import pandas as pd

    path.mkdir()
    fov, cell = np.arange(n_cells) // 1000 + 1, np.arange(n_cells) % 1000 + 1
    names = (f"{one},{other}" for one, other in zip(fov.tolist(), cell.tolist(), strict=True))
    header = ",".join(["fov", "cell_ID", *(f"Gene{j}" for j in range(N_GENES))])
    write_matrix(path / "Run_exprMat_file.csv", header, names, counts(n_cells))
    with (path / "Run_exprMat_file.csv").open("a") as file:
        file.write("".join([f"{one},0{',1' * N_GENES}\n" for one in np.unique(fov)]))
    grid = positions(n_cells) * 50
    cells = pd.DataFrame({"fov": fov, "cell_ID": cell, "Area": 4321})
    cells["CenterX_global_px"], cells["CenterY_global_px"] = grid.T
    cells.to_csv(path / "Run_metadata_file.csv", index=False)


def write_slideseq(path: Path, n_cells: int) -> None:
    """Genes × beads, separated by tabs, and the beads."""
    import pandas as pd

    path.mkdir()
    names = [f"BEAD{i:010d}" for i in range(n_cells)]
    matrix = counts(n_cells).T.tocsr()
    with (path / "Puck.digital_expression.txt").open("w") as file:
        file.write("\t".join(["GENE", *names]) + "\n")
        for gene in range(N_GENES):
            row = matrix[gene].toarray()[0].astype(int).tolist()
            file.write(f"Gene{gene}\t" + "\t".join(map(str, row)) + "\n")
    grid = positions(n_cells)
    beads = pd.DataFrame({"barcode": names, "xcoord": grid[:, 0] + 0.5, "ycoord": grid[:, 1] + 0.5})
    beads.to_csv(path / "Puck_bead_locations.csv", index=False)


def write_mtx(path: Path, n_cells: int) -> None:
    """Matrix Market as of Cell Ranger 3, with the positions of Space Ranger 2 beside it."""
    path.mkdir()
    matrix, grid = counts(n_cells), positions(n_cells)
    names = [f"cell_{i:08d}-1" for i in range(n_cells)]
    with gzip.open(path / "matrix.mtx.gz", "wt", compresslevel=1) as file:
        file.write("%%MatrixMarket matrix coordinate integer general\n%\n")
        file.write(f"{N_GENES} {n_cells} {matrix.nnz}\n")
        for start in range(0, n_cells, 5000):
            block = matrix[start : start + 5000].tocoo()
            rows = zip(
                (block.col + 1).tolist(), (block.row + start + 1).tolist(), block.data.tolist(), strict=True
            )
            file.write("".join([f"{gene} {cell} {n:.0f}\n" for gene, cell, n in rows]))
    with gzip.open(path / "barcodes.tsv.gz", "wt", compresslevel=1) as file:
        file.write("\n".join(names) + "\n")
    with gzip.open(path / "features.tsv.gz", "wt", compresslevel=1) as file:
        file.write("".join(f"ENSG{j}\tGene{j}\tGene Expression\n" for j in range(N_GENES)))
    (path / "spatial").mkdir()
    with (path / "spatial" / "tissue_positions.csv").open("w") as file:
        file.write("barcode,in_tissue,array_row,array_col,pxl_row_in_fullres,pxl_col_in_fullres\n")
        file.write(
            "".join(
                [f"{name},1,{y},{x},{y},{x}\n" for name, (x, y) in zip(names, grid.tolist(), strict=True)]
            )
        )


# --- reading --------------------------------------------------------------------------------


def block_chunk(path: Path) -> int:
    """Bytes of a block of a table of counts: its characters, and eight for each number in it."""
    from amilst_lite.io.tables import _BLOCK

    table = max((one for one in path.iterdir() if one.is_file()), key=lambda one: one.stat().st_size)
    with table.open("rb") as file:
        file.readline()
        row = file.readline()
    n_rows = max(1, _BLOCK // len(row))
    return n_rows * (len(row) + 8 * (row.count(b",") + row.count(b"\t")))


def text_chunk(path: Path, n_numbers: int) -> int:
    """Bytes of a chunk of text and of the numbers in it."""
    from amilst_lite.io.entries import CHUNK_LINES

    with gzip.open(path, "rb") as file:
        head = file.read(2**20)
    return CHUNK_LINES * (len(head) // head.count(b"\n") + 8 * n_numbers)


def gef_chunk(path: Path) -> int:
    from amilst_lite.io import stereoseq

    del path
    return stereoseq._BLOCK * (9 + 8 * 4)  # a record, and x, y, gene and count


def nothing(path: Path) -> int:
    del path
    return 0


def usual_recipe(path: Path, rows: list[str], gene: str, count: str, bins: int) -> Any:
    """The whole table in pandas, and a sparse matrix of its codes."""
    import pandas as pd
    from scipy import sparse

    table = pd.read_csv(path, sep="\t", comment="#")
    if bins > 1:
        table[rows] //= bins
    of_row, of_gene = table.groupby(rows).ngroup(), table[gene].astype("category").cat.codes
    return sparse.csr_matrix((table[count], (of_row, of_gene)))


def dense_recipe(path: Path, *, transposed: bool) -> Any:
    """The whole table in pandas, and a sparse matrix of it, as squidpy and spatialdata-io read it."""
    import pandas as pd
    from scipy import sparse

    table = pd.read_csv(path, index_col=0, sep="\t" if transposed else ",")
    values = table.to_numpy()
    return sparse.csr_matrix(values.T if transposed else values)


def other_reader(name: str, path: Path) -> Callable[[], Any]:
    """The reader of another package for a format; its import counts no more than ours."""
    if name == "h5ad":
        import anndata

        return lambda: anndata.read_h5ad(path)
    if name == "zarr":
        import anndata

        return lambda: anndata.read_zarr(path)
    if name == "spatialdata":
        import spatialdata

        return lambda: spatialdata.read_zarr(path)
    if name in ("visium_hd", "xenium"):
        import scanpy

        file = "filtered_feature_bc_matrix.h5" if name == "visium_hd" else "cell_feature_matrix.h5"
        return lambda: scanpy.read_10x_h5(path / file)
    if name == "10x mtx":
        import scanpy

        return lambda: scanpy.read_10x_mtx(path)
    if name in ("merscope", "cosmx", "slideseq"):
        table = max(path.iterdir(), key=lambda one: one.stat().st_size)
        return lambda: dense_recipe(table, transposed=name == "slideseq")
    if name == "gem.gz":
        return lambda: usual_recipe(path, ["x", "y"], "geneID", "MIDCount", BIN)
    if name == "long table":
        return lambda: usual_recipe(path, ["spot"], "gene", "count", 1)
    raise SystemExit(f"no other reader of {name}")


OTHERS = {
    "h5ad": "anndata",
    "zarr": "anndata",
    "spatialdata": "spatialdata",
    "visium_hd": "scanpy (counts only)",
    "xenium": "scanpy (counts only)",
    "merscope": "pandas and scipy",
    "cosmx": "pandas and scipy",
    "slideseq": "pandas and scipy",
    "10x mtx": "scanpy (counts only)",
    "gem.gz": "pandas and scipy",
    "long table": "pandas and scipy",
}

FORMATS: dict[str, tuple[str, Callable[[Path, int], None], dict[str, Any], Callable[[Path], int]]] = {
    "h5ad": ("a.h5ad", write_h5ad, {}, nothing),
    "h5ad.gz": ("a.h5ad.gz", write_h5ad_gz, {}, nothing),
    "zarr": ("a.zarr", write_zarr, {}, nothing),
    "spatialdata": ("s.zarr", write_spatialdata, {}, nothing),
    "visium_hd": ("square_008um", write_visium_hd, {}, nothing),
    "xenium": ("xenium", write_xenium, {}, nothing),
    "merscope": ("merscope", write_merscope, {}, block_chunk),
    "cosmx": ("cosmx", write_cosmx, {}, block_chunk),
    "slideseq": ("slideseq", write_slideseq, {}, block_chunk),
    "10x mtx": ("mtx", write_mtx, {}, lambda path: text_chunk(path / "matrix.mtx.gz", 3)),
    "gem.gz": ("a.gem.gz", write_gem_gz, {"bin_size": BIN}, lambda path: text_chunk(path, 4)),
    "gef": ("a.gef", write_gef, {"bin_size": BIN}, gef_chunk),
    "long table": ("a.tsv.gz", write_long, {}, lambda path: text_chunk(path, 5)),
}
"""Format → name of the file or folder, its writer, options of `read`, and the bytes of a chunk."""


def read_once(name: str, reader: str, folder: Path) -> None:
    """Read the small file and then the large one in this process; print the measurements as JSON."""
    warnings.simplefilter("ignore")
    file, _, options, chunk = FORMATS[name]
    small, large = folder / "small" / file, folder / "large" / file
    if reader == "ours":
        from amilst_lite import io

        io.read(small, **options)
        call: Callable[[], Any] = lambda: io.read(large, **options)  # noqa: E731
    else:
        other_reader(name, small)()
        call = other_reader(name, large)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before, since = resident("VmRSS"), time.perf_counter()
    result = call()
    row = {"seconds": time.perf_counter() - since, "peak_bytes": resident("VmHWM") - before}
    if reader == "ours":
        X = result.X
        names = sum(sys.getsizeof(one) + 8 for one in result.obs_names)
        arrays = (X.data, X.indices, X.indptr, result.obsm["spatial"])
        row["result_bytes"] = names + sum(array.nbytes for array in arrays)
        row["chunk_bytes"] = chunk(large)
        row["entries"] = int(X.nnz)
    print(json.dumps(row))


def resident(field: str) -> int:
    """A field of /proc/self/status, in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def measure(name: str, n_cells: int, python: str) -> Json:
    """Write a format and read it with every reader there is."""
    file, write, _, _ = FORMATS[name]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for place, cells in (("small", SMALL), ("large", n_cells)):
            (folder / place).mkdir()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                write(folder / place / file, cells)
        large = folder / "large" / file
        size = sum(
            one.stat().st_size for one in ([large] if large.is_file() else large.rglob("*")) if one.is_file()
        )
        row: Json = {"format": name, "cells": n_cells, "file_bytes": size}
        for reader, interpreter in (("ours", sys.executable), ("other", python)):
            if reader == "other" and name not in OTHERS:
                continue
            command = [interpreter, __file__, "--once", name, reader, str(folder)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode == 0:
                row[reader] = json.loads(done.stdout.splitlines()[-1])
            elif reader == "ours":
                raise SystemExit(f"{name}: {done.stderr.strip()[-2000:]}")
            else:
                reason = (done.stderr.strip().splitlines() or ["no message"])[-1][:200]
                print(f"{name}: {OTHERS[name]} not measured ({reason})", flush=True)
    ours = row["ours"]
    row["ratio"] = ours["peak_bytes"] / (ours["result_bytes"] + ours["chunk_bytes"])
    return row


def table(record: Json) -> str:
    """One row for each format."""
    rows = []
    for one in record["results"]:
        ours, other = one["ours"], one.get("other")
        cells = [
            f"{one['cells']:,}",
            one["format"],
            f"{one['file_bytes'] / 2**20:,.0f}",
            f"{ours['seconds']:.1f}",
        ]
        cells += [
            f"{ours['peak_bytes'] / 2**20:,.0f}",
            f"{ours['result_bytes'] / 2**20:,.0f}",
            f"{one['ratio']:.2f}",
        ]
        if other:
            cells += [OTHERS[one["format"]], f"{other['seconds']:.1f}", f"{other['peak_bytes'] / 2**20:,.0f}"]
        rows.append(cells + [""] * (10 - len(cells)))
    header = ["cells", "format", "file, MiB", "seconds", "peak, MiB", "result, MiB", "peak / least"]
    return markdown([*header, "other reader", "seconds", "peak, MiB"], rows)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--cells", type=int, nargs="+", default=[100_000])
    parser.add_argument("--formats", nargs="+", choices=list(FORMATS), default=list(FORMATS))
    parser.add_argument(
        "--python", default=sys.executable, help="interpreter with the packages to compare with"
    )
    parser.add_argument("--once", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        read_once(options.once[0], options.once[1], Path(options.once[2]))
        return
    record = Record(options, "reading", genes=N_GENES, entries=ENTRIES)
    for n_cells in options.cells:
        for name in options.formats:
            record.add_row(measure(name, n_cells, options.python))
            print(table(record.data | {"results": record.data["results"][-1:]}).splitlines()[-1], flush=True)
    print(table(record.data))


if __name__ == "__main__":
    main()
