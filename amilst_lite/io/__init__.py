"""Readers, one module per family of formats, and atomic writing.

`read` recognizes the format of an input; `read_sections` joins several inputs.
"""

from .anndata_store import read_h5ad, read_zarr
from .arrays import read_slideseq, read_st
from .coordinates import COORDINATE_COLUMNS, join_annotation, join_columns, join_coordinates
from .dispatch import PLATFORMS, input_table, read, recognize
from .h5ad import refuse_lazy
from .imaging import read_cosmx, read_merscope, read_seqfish
from .kept import read_once
from .long_table import read_long_table
from .loom import read_loom
from .platform import Platform, input_lines, micrometers_per_unit, recommended_command, unit_of
from .sections import SECTION, own_sections, read_sections
from .spatialdata import read_spatialdata, write_labels
from .stereoseq import read_stereoseq
from .tables import read_table
from .tenx import read_10x_h5, read_10x_mtx
from .visium import load_image, read_visium
from .visium_hd import read_visium_hd
from .write import RECORD, StorageError, atomic_files, atomic_folder, atomic_path, disk_error, write_h5ad
from .xenium import read_xenium

__all__ = [
    "COORDINATE_COLUMNS",
    "PLATFORMS",
    "RECORD",
    "SECTION",
    "Platform",
    "StorageError",
    "atomic_files",
    "atomic_folder",
    "atomic_path",
    "disk_error",
    "input_lines",
    "input_table",
    "join_annotation",
    "join_columns",
    "join_coordinates",
    "load_image",
    "micrometers_per_unit",
    "own_sections",
    "read",
    "read_10x_h5",
    "read_10x_mtx",
    "read_cosmx",
    "read_h5ad",
    "read_long_table",
    "read_loom",
    "read_merscope",
    "read_once",
    "read_sections",
    "read_seqfish",
    "read_slideseq",
    "read_spatialdata",
    "read_st",
    "read_stereoseq",
    "read_table",
    "read_visium",
    "read_visium_hd",
    "read_xenium",
    "read_zarr",
    "recognize",
    "recommended_command",
    "refuse_lazy",
    "unit_of",
    "write_h5ad",
    "write_labels",
]
