"""Draw the figure of the README: the simulated section of `amilst demo`, its true layers, and the domains found.

python benchmarks/readme_figure.py [--seed 0] [--output benchmarks/readme_figure.png]
"""

from __future__ import annotations

from pathlib import Path

from common import make_parser, use_threads

import amilst_lite as amilst


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".png"))
    options = parser.parse_args()
    use_threads(options.threads)
    section = amilst.simulate_section(seed=options.seed)
    amilst.identify_domains(section, n_domains=7, seed=options.seed, device=options.device)
    figure = amilst.plot.domains(
        section,
        annotation="ground_truth",
        refined="amilst_domain_refined",
        micrometers_per_unit=1.0,  # of the simulation
    )
    amilst.plot.save(figure, options.output, dpi=120)


if __name__ == "__main__":
    main()
