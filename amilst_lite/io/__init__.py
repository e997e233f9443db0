"""Readers, one module per family of formats, and atomic writing.

`read` recognizes the format of an input; `read_sections` joins several inputs.
"""

from .coordinates import COORDINATE_COLUMNS, join_annotation, join_columns, join_coordinates
from .dispatch import read
from .h5ad import read_h5ad
from .sections import SECTION, read_sections
from .tables import read_table
from .tenx import read_10x_h5, read_10x_mtx
from .visium import load_image, read_visium
from .write import atomic_folder, atomic_path

__all__ = [
    "COORDINATE_COLUMNS",
    "SECTION",
    "atomic_folder",
    "atomic_path",
    "join_annotation",
    "join_columns",
    "join_coordinates",
    "load_image",
    "read",
    "read_10x_h5",
    "read_10x_mtx",
    "read_h5ad",
    "read_sections",
    "read_table",
    "read_visium",
]
