"""Figures: domains on the sections, composition of sections, training losses, choice of the settings, embedding.

matplotlib (extra ``plot``) and umap-learn (extra ``umap``) are imported when a figure is drawn. pyplot is
never imported: the backend, style and open figures of the caller do not change. Every function that draws
returns a `matplotlib.figure.Figure`, which a notebook displays and `save` writes to a file.

Labels, names and titles are drawn literally: text between ``$`` is not parsed as a formula, and labels that
begin with an underscore appear in legends.
"""

from .bars import composition
from .colors import domain_colors, palette, stored_colors
from .curves import losses, selection_curve, shrinkage_curve
from .embedding import umap
from .figure import save
from .sections import domains, draw_domains

__all__ = [
    "composition",
    "domain_colors",
    "domains",
    "draw_domains",
    "losses",
    "palette",
    "save",
    "selection_curve",
    "shrinkage_curve",
    "stored_colors",
    "umap",
]
