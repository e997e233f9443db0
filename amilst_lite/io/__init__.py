"""Readers, one module per family of formats, and atomic writing.

`read` recognizes the format of an input; `read_sections` joins several inputs.
"""

from .anndata_store import read_h5ad, read_zarr
from .arrays import read_slideseq, read_st
from .coordinates import COORDINATE_COLUMNS, join_annotation, join_columns, join_coordinates
from .dispatch import PLATFORMS, input_table, read, recognize
from .imaging import read_cosmx, read_merscope, read_seqfish
from .long_table import read_long_table
from .loom import read_loom
from .platform import Platform
from .sections import SECTION, read_sections
from .spatialdata import read_spatialdata, write_labels
from .stereoseq import read_stereoseq
from .tables import read_table
from .tenx import read_10x_h5, read_10x_mtx
from .visium import load_image, read_visium
from .visium_hd import read_visium_hd
from .write import atomic_folder, atomic_path
from .xenium import read_xenium

__all__ = [
    "COORDINATE_COLUMNS",
    "PLATFORMS",
    "SECTION",
    "Platform",
    "atomic_folder",
    "atomic_path",
    "input_table",
    "join_annotation",
    "join_columns",
    "join_coordinates",
    "load_image",
    "read",
    "read_10x_h5",
    "read_10x_mtx",
    "read_cosmx",
    "read_h5ad",
    "read_long_table",
    "read_loom",
    "read_merscope",
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
    "write_labels",
]
