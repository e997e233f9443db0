"""MERSCOPE, CosMx and seqFISH: text tables of counts and of cells."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .. import keys
from ..errors import InputError
from .coordinates import SpotTable
from .files import PathLike, TextTable, examples, existing
from .matrix import assemble, kinds_of, to_csr, without_rows
from .platform import FIELDS, Platform, find_pair, missing_files, recognizes_pair
from .tables import join_cells, read_numbers

if TYPE_CHECKING:
    from anndata import AnnData

_log = logging.getLogger("amilst_lite")


def _endings(*stems: str) -> tuple[str, ...]:
    return tuple(f"{stem}.csv{ending}" for stem in stems for ending in ("", ".gz"))


# --- MERSCOPE ---------------------------------------------------------------------------------

# the second part is that of Vizgen's first data release, as in cell_by_gene_S1R1.csv
_MERSCOPE_COUNTS = re.compile(r"cell_by_gene(|_S\d+R\d+)\.csv(?:\.gz)?$")


def _merscope_files(path: Path) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Endings of the names of counts and cells, of each section in a folder or of the one with these counts."""
    try:
        names = [entry.name for entry in path.iterdir()] if path.is_dir() else [path.name]
    except OSError:  # a folder that must not be read
        names = []
    sections = sorted({match[1] for name in names if (match := _MERSCOPE_COUNTS.search(name))})
    return [(_endings(f"cell_by_gene{one}"), _endings(f"cell_metadata{one}")) for one in sections or [""]]


def read_merscope(path: PathLike, *, vpt_outputs: PathLike | None = None) -> AnnData:
    """Read the cells of a MERSCOPE (MERFISH) section.

    Parameters
    ----------
    path
        Folder with ``cell_by_gene.csv`` and ``cell_metadata.csv``, or the first of them. Prefixes, ``.gz``, and
        names such as ``cell_by_gene_S1R1.csv`` are accepted.
    vpt_outputs
        Folder in which the two files of the Vizgen Postprocessing Tool lie, to use its segmentation.

    Returns
    -------
    AnnData
        n cells × d genes. ``X``: transcript counts, CSR, float32. ``obsm["spatial"]``: ``center_x`` and
        ``center_y``, (n, 2), float64, µm. ``obs``: the other columns of the cell table. Blank barcodes are
        left out and counted in ``uns["amilst_input"]``.

    Warns
    -----
    AmilstWarning
        Cells without a position or without counts, or names that repeat.

    Raises
    ------
    InputError
        A file is missing or broken, or the two belong to different sections.

    References
    ----------
    Vizgen, "MERSCOPE Instrument User Guide", output files; argument names as in spatialdata-io.
    """
    path = existing(path)
    folder = path if vpt_outputs is None else existing(vpt_outputs)
    sections = _merscope_files(folder)
    if len(sections) > 1:
        raise InputError(
            f"{folder} contains {len(sections)} sections of MERSCOPE; expected one. Give one of the tables of counts: "
            f"{examples((counts[0] for counts, _ in sections), 8)}."
        )
    counts, metadata = find_pair(folder, MERSCOPE, *sections[0])
    table = SpotTable.read_known(metadata, [0], ["center_x", "center_y"], "MERSCOPE's cell_metadata")
    adata, left_out = _read_cells(counts, table, {"blank barcodes": r"^blank[-_ ]?\d"}, n_names=1)
    return MERSCOPE.describe(adata, path, left_out=left_out)


# --- CosMx ------------------------------------------------------------------------------------

_COSMX = (_endings("exprMat_file"), _endings("metadata_file"))
_COSMX_NAMES = ["cell_ID", "fov"]
# that exports of AtoMx may have beside the names, before the genes
_COSMX_OTHERS = ("cell", "cell_id", "slide_ID", "version", "Run_Tissue_name", "Panel", "assay_type")
_MOST_UNEQUAL = 0.05
_COSMX_AXES = {place: [f"Center{axis}_{place}_px" for axis in "XY"] for place in ("global", "local")}
_COSMX_CONTROLS = {
    "negative probes": r"^(?:NegPrb|NegProbe|NegControlProbe|Negative\d)",
    "system controls": r"^SystemControl",
    "false codes": r"^(?:FalseCode|NegControlCodeword)",
}


def read_cosmx(path: PathLike, dataset_id: str | None = None) -> AnnData:
    """Read the cells of a CosMx section.

    Parameters
    ----------
    path
        Folder with ``*_exprMat_file.csv`` and ``*_metadata_file.csv``, or the first of them; ``.gz`` is accepted.
    dataset_id
        What precedes ``_exprMat_file.csv``, if the folder holds several sections.

    Returns
    -------
    AnnData
        n cells × d genes, named ``"{cell_ID}_{fov}"``. ``X``: transcript counts, CSR, float32.
        ``obsm["spatial"]``: ``CenterX_global_px`` and ``CenterY_global_px``, (n, 2), float64, pixels of the
        section; without them ``CenterX_local_px`` and ``CenterY_local_px``, see Notes. ``obs``: the other columns
        of the cell table, among them ``fov``, the field of view. Negative probes, system controls and counts
        outside cells (``cell_ID`` 0) are left out and counted in ``uns["amilst_input"]``; the size of a pixel is
        there, too, if the table has the area of cells in pixels and in µm² (AtoMx).

    Warns
    -----
    AmilstWarning
        As `read_merscope`.

    Raises
    ------
    InputError
        As `read_merscope`.

    Notes
    -----
    Local coordinates are those within fields of view, which are laid out in a row as by `read_seqfish`.

    References
    ----------
    NanoString, "CosMx SMI flat files"; argument names as in spatialdata-io.
    """
    path = existing(path)
    groups = _COSMX
    if dataset_id is not None:
        groups = tuple(tuple(f"{dataset_id}_{name}" for name in group) for group in _COSMX)  # type: ignore[assignment]
    counts, metadata = find_pair(path, COSMX, *groups)
    axes = _COSMX_AXES["global"]
    if set(axes).isdisjoint(header := TextTable.sniff(metadata).first) and set(_COSMX_AXES["local"]) <= set(
        header
    ):
        axes = _COSMX_AXES["local"]
    table = SpotTable.read_known(metadata, _COSMX_NAMES, axes, "CosMx's metadata")
    adata, left_out = _read_cells(
        counts, table, _COSMX_CONTROLS, names=_COSMX_NAMES, others=_COSMX_OTHERS, outside="0"
    )
    details: dict[str, Any] = {} if axes == _COSMX_AXES["global"] else _lay_out(adata, path)
    size = _pixel_size(adata.obs)
    if size is not None:
        details["micrometers_per_unit"] = size
    return COSMX.describe(adata, path, left_out=left_out, **details)


def _pixel_size(cells: pd.DataFrame) -> float | None:
    """Size of a pixel in µm, from the area of the cells; None if it is not in both units, or not consistent."""
    if not {"Area", "Area.um2"} <= set(cells):
        return None
    pixels, area = (pd.to_numeric(cells[name], errors="coerce") for name in ("Area", "Area.um2"))
    ratio = np.sqrt((area / pixels)[(pixels > 0) & (area > 0)])
    low, middle, high = ratio.quantile([0.1, 0.5, 0.9]) if len(ratio) else (0.0, 0.0, 0.0)
    return float(middle) if middle > 0 and high - low <= _MOST_UNEQUAL * middle else None


# --- seqFISH ----------------------------------------------------------------------------------

_GENEPS = re.compile(r"(.*_|)(?:CxG|CellxGene)(.*)\.csv(?:\.gz)?", re.IGNORECASE)
_CENTROIDS = _endings("cellcentroids")
_FIELD, _CELL = "Field of View", "Cell ID"


def read_seqfish(path: PathLike) -> AnnData:
    """Read the cells of a seqFISH or seqFISH+ section.

    Parameters
    ----------
    path
        Folder with

        - ``*_CxG_section1.csv`` (or ``CellxGene``) and ``*_CellCoordinates_section1.csv`` of Spatial Genomics, or
        - ``*_counts.csv`` and ``*_cellcentroids.csv`` of seqFISH+, whose rows are the same cells in the same
          order;

        or the table of counts, if the folder holds several sections.

    Returns
    -------
    AnnData
        n cells × d genes. ``X``: transcript counts, CSR, float32. ``obsm["spatial"]``: cell centroids, (n, 2),
        float64, pixels. ``obs``: the other columns of the cell table; for seqFISH+ ``fov``, the field of view.

    Warns
    -----
    AmilstWarning
        As `read_merscope`.

    Raises
    ------
    InputError
        As `read_merscope`.

    Notes
    -----
    The centroids of seqFISH+ are pixels within their field of view. Where fields overlap for that reason, they are
    laid out in a row, in order, with a gap as wide as a field, so that cells of different fields are not neighbors
    by mistake; ``uns["amilst_input"]["fields"]`` says so. If the fields' true places are known, give them with
    ``coordinates=``.

    References
    ----------
    Eng et al. (2019), Nature 568:235, source data; Spatial Genomics, "seqFISH data".
    """
    path = existing(path)
    counts, cells = _find_seqfish(path)
    if not cells.name.endswith(_CENTROIDS):
        table = SpotTable.read_known(cells, [0], ["center_x", "center_y"], "seqFISH's CellCoordinates")
        adata, left_out = _read_cells(counts, table, {}, n_names=1)
        return SEQFISH.describe(adata, path, left_out=left_out)
    table = SpotTable.read_known(cells, [_CELL, _FIELD], ["X", "Y"], "seqFISH+'s cell centroids")
    adata, left_out = _read_cells(counts, table, {}, names=[_CELL, _FIELD], by_order=True)
    adata.obs = adata.obs.rename(columns={_FIELD: "fov", _CELL: "cell_ID"})
    return SEQFISH.describe(adata, path, left_out=left_out, **_lay_out(adata, path))


def _lay_out(adata: AnnData, path: Path) -> dict[str, str]:
    """Move the fields of view apart if their extents overlap; what to say of it in the description."""
    points, fields = adata.obsm[keys.SPATIAL], adata.obs["fov"]
    codes, names = pd.factorize(fields, sort=True)
    low = np.array([np.nanmin(points[codes == i], axis=0) for i in range(len(names))])
    high = np.array([np.nanmax(points[codes == i], axis=0) for i in range(len(names))])
    meet = ((low[:, None] <= high) & (low <= high[:, None])).all(axis=2)
    if meet.sum() == len(names):  # each with itself
        return {}
    step = 2 * (high - low)[:, 0].max()
    # the same corner for all fields, as their coordinates have the same origin
    adata.obsm[keys.SPATIAL] = points + np.column_stack([codes * step, np.zeros(len(codes))])
    _log.info(
        "%s: the coordinates are within fields of view, which overlap; the fields were laid out in a row. "
        "They can be analyzed as sections with sample_key='fov' (--sample-key fov).",
        path,
    )
    return {FIELDS: "laid out in a row; their true places are not in the files"}


def _find_seqfish(path: Path) -> tuple[Path, Path]:
    """The tables of counts and of cells."""
    folder = path if path.is_dir() else path.parent
    pairs = []
    for entry in [path] if path.is_file() else sorted(folder.iterdir()):
        partner = _seqfish_cells(entry)
        if partner is not None:
            pairs.append((entry, partner))
    if len(pairs) == 1:
        return pairs[0]
    if not pairs:
        raise missing_files(SEQFISH, folder)
    raise InputError(
        f"{folder} contains {len(pairs)} sections of seqFISH; expected one. Give one of the tables of counts: "
        f"{examples((counts.name for counts, _ in pairs), 8)}."
    )


def _seqfish_cells(counts: Path) -> Path | None:
    """The table of cells that belongs to a table of counts, or None."""
    found = _GENEPS.fullmatch(counts.name)
    if found:
        name = f"{found[1]}CellCoordinates{found[2]}"
    elif counts.name.removesuffix(".gz").endswith("counts.csv"):
        name = counts.name.removesuffix(".gz").removesuffix("counts.csv") + "cellcentroids"
    else:
        return None
    return next((counts.with_name(one) for one in _endings(name) if counts.with_name(one).is_file()), None)


# --- common -----------------------------------------------------------------------------------


def _read_cells(
    counts: Path,
    table: SpotTable,
    controls: Mapping[str, str],
    *,
    n_names: int = 0,
    names: Sequence[str] = (),
    others: Sequence[str] = (),
    outside: str | None = None,
    by_order: bool = False,
) -> tuple[AnnData, dict[str, int]]:
    """Counts of cells × genes with the columns of the table of cells.

    Parameters
    ----------
    counts
        Text table.
    table
        With known names and coordinates.
    controls
        See `matrix.leave_out`.
    n_names
        Number of columns, at the left, with names; where ``names`` is empty.
    names
        The columns of ``counts`` that make up the name of a cell, wherever they are among the first.
    others
        Further columns that are no genes, if they follow ``names`` or are among them.
    outside
        Value of the first of ``names`` for counts outside cells.
    by_order
        The rows of both tables are the same cells if ``counts`` has no such columns.

    Returns
    -------
    tuple of (AnnData, dict)
        The cells, and what was left out.
    """
    table.coordinates()  # report errors in a small file before reading a large one
    text = TextTable.sniff(counts)
    if names:
        wanted = [text.first.index(name) for name in names if name in text.first]
        by_order = by_order and len(wanted) < len(names)
        n_names = int(text.first[0] == "") if by_order else max(wanted, default=-1) + 1
        while text.first[n_names : n_names + 1] and text.first[n_names] in others:
            n_names += 1
        if len(wanted) < len(names) and not by_order:
            raise InputError(
                f"{counts} has no column {examples(set(names) - set(text.first))}: expected a header with "
                f"{', '.join(names)} and the genes; found {examples(text.first, 6)}."
            )
    header = pd.Index(text.first[n_names:], dtype=object)
    kinds = kinds_of(header, controls)
    genes = kinds.isna().to_numpy()
    if not genes.any():
        raise InputError(
            f"{counts} has no genes: all {len(header)} columns are controls, e.g. {examples(header)}."
        )
    left_out = {str(kind): int(count) for kind, count in kinds.value_counts().items()}
    fields, matrix = read_numbers(text, n_names=n_names, kept=genes)
    if by_order:
        if table.identifier is None or len(fields) != len(table.identifier):
            raise InputError(
                f"{counts} has {len(fields)} cells, but {table.path} has {len(table.frame)}; expected the same "
                "cells in the same order. Download both again."
            )
        cells = table.identifier
    else:
        columns = [fields[:, i] for i in (wanted if names else range(n_names))]
        cells = pd.Index(["_".join(parts) for parts in zip(*columns, strict=True)], dtype=object)
        if outside is not None:
            is_outside = columns[0] == outside
            left_out["rows of counts outside cells"] = int(is_outside.sum())
            cells, matrix = cells[~is_outside], without_rows(matrix, is_outside)
    if not by_order:
        table.expect_match(cells)  # before millions of repeated names are made unique
    obs, var = pd.DataFrame(index=cells), pd.DataFrame(index=header[genes])
    return join_cells(assemble(to_csr(matrix), obs, var, counts), table, counts), left_out


def _recognizes_seqfish(path: Path) -> bool:
    try:
        entries = list(path.iterdir()) if path.is_dir() else [path]
    except OSError:
        return False
    return any(_seqfish_cells(entry) is not None for entry in entries)


MERSCOPE = Platform(
    name="merscope",
    title="MERSCOPE (MERFISH)",
    files="`cell_by_gene.csv` and `cell_metadata.csv`",
    read=read_merscope,
    recognizes=lambda path: any(recognizes_pair(*section)(path) for section in _merscope_files(path)),
    unit="micrometer",
)
COSMX = Platform(
    name="cosmx",
    title="CosMx",
    files="`*_exprMat_file.csv` and `*_metadata_file.csv`, `.gz` or not",
    read=read_cosmx,
    recognizes=recognizes_pair(*_COSMX),
    unit="pixel",
)
SEQFISH = Platform(
    name="seqfish",
    title="seqFISH, seqFISH+",
    files="`*_CxG_*.csv` and `*_CellCoordinates_*.csv`, or `*_counts.csv` and `*_cellcentroids.csv`",
    read=read_seqfish,
    recognizes=_recognizes_seqfish,
    unit="pixel",
)
