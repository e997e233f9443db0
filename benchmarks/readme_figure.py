"""Draw the figures of the README: the simulated section of `amilst demo`, its true layers, and the domains found.

    python benchmarks/readme_figure.py [--seed 0] [--output benchmarks/readme_figure.png]
                                       [--report benchmarks/readme_report.png]

The second is a picture of the report; it needs Chromium and the extra umap.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from common import make_parser, use_threads

import amilst_lite as amilst
from amilst_lite import analysis
from amilst_lite.report import write_report

WINDOW = (1300, 890)  # pixels


def photograph(page: Path, picture: Path) -> None:
    """Write what Chromium shows of a page when it has drawn the map."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        sys.exit("Chromium is not installed (Debian, Ubuntu: chromium)")
    options = [
        "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=5000",
        f"--window-size={WINDOW[0]},{WINDOW[1]}", f"--screenshot={picture.resolve()}",
    ]  # fmt: skip
    subprocess.run([browser, *options, page.resolve().as_uri()], check=True, capture_output=True, timeout=120)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".png"))
    parser.add_argument("--report", type=Path, help="also write a picture of the report")
    options = parser.parse_args()
    use_threads(options.threads)
    section = amilst.simulate_section(seed=options.seed)
    amilst.identify_domains(section, n_domains=7, seed=options.seed, device=options.device)
    figure = amilst.plot.domains(section, annotation="ground_truth", refined="amilst_domain_refined")
    amilst.plot.save(figure, options.output, dpi=120)
    if options.report:
        analysis.umap(section)
        tables = analysis.run(section)
        with tempfile.TemporaryDirectory() as folder:
            page = write_report(
                section, Path(folder) / "report.html", annotation="ground_truth", analyses=tables
            )
            photograph(page, options.report)


if __name__ == "__main__":
    main()
