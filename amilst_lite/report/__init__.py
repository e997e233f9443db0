"""The report of a run: one HTML file that needs neither a network nor another file.

`write_report` fetches the results of a run from an AnnData. Tables and curves are written as HTML and SVG, which
every browser shows and prints; the map of the spots is drawn by ``report.js`` on canvases from quantized arrays.
The JavaScript is plain, without a library and without a build step.

===============  ==============================================================================================
``markup``       elements of HTML and SVG; every text is escaped unless it was made by these functions
``charts``       curves and bars as SVG
``expression``   marker genes of the domains, and the leading genes of each spot, from the counts
``spots``        what the map draws: thinned, quantized, compressed
``tissue``       images below the spots, and the unit of the coordinates
``page``         the sections of the page, and the file
===============  ==============================================================================================
"""

from .page import write_report

__all__ = ["write_report"]
