"""Draw the picture of the README: the simulated section, its truth, our domains.

    python benchmarks/readme_figure.py [--seed 0] [--output benchmarks/readme_figure.png]

The same section and settings as `amilst demo`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import amilst_lite as amilst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".png"))
    options = parser.parse_args()
    section = amilst.simulate_section(seed=options.seed)
    amilst.identify_domains(section, n_domains=7, seed=options.seed)
    figure = amilst.plot.domains(section, annotation="ground_truth", refined="amilst_domain_refined")
    amilst.plot.save(figure, options.output, dpi=80)


if __name__ == "__main__":
    main()
