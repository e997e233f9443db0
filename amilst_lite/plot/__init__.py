"""Figures: domains on the sections, composition of sections, marker genes, losses, choice of the settings, embedding.

Every function takes an AnnData with the results of a run. Figures are made for a journal page: at most as wide as its
text (180 mm), with text of 6 to 9 points.

matplotlib (extra ``plot``) and umap-learn (extra ``umap``) are imported when a figure is drawn. pyplot is
never imported: the backend, style and open figures of the caller do not change. Every function that draws
returns a `matplotlib.figure.Figure`, which a notebook displays and `save` writes to a file.

Labels, names and titles are drawn literally: text between ``$`` is not parsed as a formula, and labels that
begin with an underscore appear in legends. Characters that the default font does not have are drawn in an installed
font that does (Noto, Source Han, and the fonts of Windows and macOS are looked into). Labels with characters that no
installed font has are drawn as ``label 1``, ``label 2``, ..., and a warning says which is which and what to
install; in other text such characters are written as an escape sequence such as ``\\u5927``.
"""

from .bars import composition
from .colors import domain_colors, palette, stored_colors
from .curves import losses, selection_curve, shrinkage_curve
from .embedding import umap
from .figure import save
from .markers import marker_genes
from .order import order_domains
from .sections import domains, draw_domains

__all__ = [
    "composition",
    "domain_colors",
    "domains",
    "draw_domains",
    "losses",
    "marker_genes",
    "order_domains",
    "palette",
    "save",
    "selection_curve",
    "shrinkage_curve",
    "stored_colors",
    "umap",
]


def __dir__() -> list[str]:
    return __all__
