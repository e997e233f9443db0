"""Slide-seq and Spatial Transcriptomics: text tables of counts of an array of beads or spots."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from .. import keys
from ..errors import InputError
from .coordinates import SpotTable
from .files import PathLike, TextTable, examples, existing, existing_file, open_text, reading
from .matrix import assemble, to_csr
from .platform import Platform, find_pair, recognizes_pair
from .tables import is_table, read_numbers, read_table, read_with_spots

if TYPE_CHECKING:
    from anndata import AnnData

# --- Slide-seq --------------------------------------------------------------------------------

_COUNTS = tuple(
    f"{stem}{ending}" for stem in ("MappedDGEForR.csv", "digital_expression.txt") for ending in ("", ".gz")
)
_BEADS = tuple(
    f"{stem}{ending}"
    for stem in ("BeadLocationsForR.csv", "bead_locations.csv", "bead_locations.txt")
    for ending in ("", ".gz")
)
_MATCHED = "matched_bead_locations"


def read_slideseq(path: PathLike) -> AnnData:
    """Read the beads of a Slide-seq puck.

    Parameters
    ----------
    path
        Folder with ``MappedDGEForR.csv`` and ``BeadLocationsForR.csv`` (Slide-seq), or
        ``*digital_expression.txt`` and ``*bead_locations.csv`` (Slide-seqV2), or the first of them; ``.gz`` is
        accepted. Also ``*matched_bead_locations.txt``, which has the beads without their barcodes: these are in
        ``*matched_bead_barcodes.txt``, or those of the counts in the same order.

    Returns
    -------
    AnnData
        n beads × d genes. ``X``: counts, CSR, float32. ``obsm["spatial"]``: ``xcoord`` and ``ycoord``, (n, 2),
        float64, pixels of the bead image. Beads without counts are not in the result; their number is logged.

    Warns
    -----
    AmilstWarning
        Beads without a position, or names that repeat.

    Raises
    ------
    InputError
        A file is missing or broken, or the two belong to different pucks.

    References
    ----------
    Rodriques et al. (2019), Science 363:1463; Stickels et al. (2021), Nat. Biotechnol. 39:313.
    """
    path = existing(path)
    counts, beads = find_pair(path, SLIDESEQ, _COUNTS, _BEADS, same_prefix=False)
    table = _matched_beads(counts, beads) if _MATCHED in beads.name else SpotTable.read(beads)
    # the locations are those of all beads on the array
    return SLIDESEQ.describe(read_with_spots(counts, table, complete=False), path)


def _matched_beads(counts: Path, beads: Path) -> SpotTable:
    """The table of matched beads: distance of the barcodes, x and y, without names.

    Their names are the lines of a file beside it, or else the columns of the counts, in the same order.
    """
    beads = existing_file(beads, "a table of matched beads")
    name = beads.name.removesuffix(".gz").replace(_MATCHED, "matched_bead_barcodes")
    barcodes = next(
        (one for one in (beads.with_name(name), beads.with_name(f"{name}.gz")) if one.is_file()), None
    )
    with reading(beads, "a table of matched beads"), open_text(beads) as handle:
        frame = pd.read_csv(handle, sep="\t", header=None, names=["distance", "x", "y"], usecols=[0, 1, 2])
    if barcodes is None:
        names = TextTable.sniff(existing_file(counts, "a table of counts")).first[1:]
    else:
        with reading(barcodes, "barcodes of matched beads"), open_text(existing(barcodes)) as handle:
            names = handle.read().split()
    if len(names) != len(frame):
        raise InputError(
            f"{beads} has {len(frame)} beads, but {counts if barcodes is None else barcodes} names {len(names)}; "
            "expected the same beads in the same order. Download both again, or use BeadLocationsForR.csv."
        )
    return SpotTable(beads, frame, identifier=pd.Index(names, dtype=object, name="barcode"), axes=("x", "y"))


# --- Spatial Transcriptomics ------------------------------------------------------------------

_SPOT = r"^X?(-?\d+(?:\.\d+)?)x(-?\d+(?:\.\d+)?)$"


def read_st(path: PathLike, coordinates: PathLike | None = None) -> AnnData:
    """Read a section of Spatial Transcriptomics (2016 to 2021, the predecessor of Visium).

    Parameters
    ----------
    path
        Text table of counts, spots × genes or genes × spots, whose spots are named by their places on the
        array: ``"10x13"``, or ``"9.96x12.99"`` after alignment. R's ``"X10x13"`` is accepted, too.
    coordinates
        Table of spots (`read_table`); otherwise the names are the coordinates.

    Returns
    -------
    AnnData
        n spots × d genes. ``X``: counts, CSR, float32. ``obsm["spatial"]``: (n, 2), float64, x and y in spots of
        the array (200 µm apart on arrays of 1007 spots), or as in the table of coordinates.

    Warns
    -----
    AmilstWarning
        Names repeat, or those of `read_table`.

    Raises
    ------
    InputError
        The file is missing, broken or not a table; or a spot has another name.

    References
    ----------
    Ståhl et al. (2016), Science 353:78.
    """
    path = existing_file(path, "a table of counts")
    if coordinates is not None:
        adata = read_table(path, coordinates)
        return ST.describe(adata, path, coordinate_unit=adata.uns[keys.INPUT]["coordinate_unit"])
    table = TextTable.sniff(path)
    names, matrix = read_numbers(table)
    rows, columns = pd.Index(names[:, 0], dtype=object), pd.Index(table.first[1:], dtype=object)
    spots, genes = rows, columns
    if columns.str.match(_SPOT).mean() > rows.str.match(_SPOT).mean():
        spots, genes, matrix = columns, rows, matrix.T
    places = spots.to_series().str.extract(_SPOT).astype(np.float64).to_numpy()
    wrong = np.isnan(places).any(axis=1)
    if wrong.any():
        raise InputError(
            f"{path}: expected spots named by their places, such as '10x13'; found {examples(spots[wrong])} "
            f"({wrong.sum()} of {len(spots)} spots). Add a table of coordinates: coordinates=TABLE, on the "
            "command line --coordinates TABLE."
        )
    adata = assemble(to_csr(matrix), pd.DataFrame(index=spots), pd.DataFrame(index=genes), path)
    adata.obsm[keys.SPATIAL] = places
    return ST.describe(adata, path)


def _recognizes_st(path: Path) -> bool:
    """Whether the first spot, in the first column or the first line, is named by its place."""
    if not path.is_file() or not is_table(path):
        return False
    try:
        table = TextTable.sniff(path)
        with reading(path, "a table of counts"), table.body() as (handle, _):
            line = next((line for line in handle if line.strip()), "")
    except InputError:
        return False
    first_row = line.split(table.separator)[0].strip('"\r\n ')
    return bool(pd.Series([first_row, *table.first[1:2]], dtype=object).str.match(_SPOT).any())


SLIDESEQ = Platform(
    name="slideseq",
    title="Slide-seq v1, v2",
    files="`MappedDGEForR.csv` or `*digital_expression.txt`, and `BeadLocationsForR.csv` or `*bead_locations.csv`",
    read=read_slideseq,
    recognizes=recognizes_pair(_COUNTS, _BEADS),
    unit="pixel",
)
ST = Platform(
    name="st",
    title="Spatial Transcriptomics",
    files="table of counts with spots named `10x13`, or with `--coordinates TABLE`; `.gz` or not",
    read=read_st,
    recognizes=_recognizes_st,
    options=("coordinates",),
    unit="spot",
    geometry="square",
)
