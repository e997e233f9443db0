"""Compare `GaussianMixture` with the results of R's mclust on the same matrices.

    python benchmarks/check_mixture.py FILE.npz [FILE.npz ...] [--seeds 5]

A file holds ``X`` (n, d), ``G`` and, for each of mclust's models EII, VII, EEI, VVI, EEE and VVV,
``MODEL/loglik``, ``MODEL/labels``, ``MODEL/n_parameters`` and ``MODEL/bic`` (higher is better). For every
model and seed:

likelihood
    ours is at least that of R, less 0.1 % of its absolute value;
labels
    where the likelihoods agree to 1e-4, the adjusted Rand index with R's labels is at least 0.98;
parameters
    as many as mclust counts, and no empty component;
BIC
    ours, with the sign turned, is 2 log L − p log n to 1e-6.

Exit status 1 if any of these fails.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path

import numpy as np
from sklearn.metrics import adjusted_rand_score

from amilst_lite.cluster import GaussianMixture

MODELS = ("EII", "VII", "EEI", "VVI", "EEE", "VVV")


def compare(data: dict[str, np.ndarray], model: str, seed: int) -> tuple[str, bool]:
    """One line of the table, and whether all checks hold."""
    X, n_components = data["X"], int(data["G"])
    theirs = float(data[f"{model}/loglik"])
    began = time.perf_counter()
    mixture = GaussianMixture(n_components, covariance_type=model, random_state=seed)
    labels = mixture.fit_predict(X)
    seconds = time.perf_counter() - began

    difference = (mixture.log_likelihood_ - theirs) / abs(theirs)
    agreement = adjusted_rand_score(data[f"{model}/labels"], labels)
    n_parameters = int(data[f"{model}/n_parameters"])
    bic = 2 * mixture.log_likelihood_ - n_parameters * math.log(len(X))
    failures = []
    if difference < -1e-3:
        failures.append("likelihood")
    if abs(difference) <= 1e-4 and agreement < 0.98:
        failures.append("labels")
    if mixture.n_parameters_ != n_parameters or len(np.unique(labels)) != n_components:
        failures.append("parameters")
    if abs(-mixture.bic(X) - bic) > 1e-6 * abs(bic):
        failures.append("BIC")
    line = (
        f"{model:5} {seed:4} {theirs:12.2f} {mixture.log_likelihood_:12.2f} {difference:+10.1e} {agreement:7.3f} "
        f"{mixture.n_parameters_:6} {-mixture.bic(X):12.2f} {seconds:6.2f}  {', '.join(failures) or 'ok'}"
    )
    return line, not failures


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0, 1, ... (default: 5)")
    options = parser.parse_args(arguments)
    holds = True
    for path in options.files:
        with np.load(path) as archive:
            data = dict(archive)
        n, d = data["X"].shape
        print(f"{path.name}: {n} rows, {d} columns, {int(data['G'])} components")
        print("model seed     mclust's         ours difference     ARI params          BIC      s")
        for model in MODELS:
            for seed in range(options.seeds):
                line, ok = compare(data, model, seed)
                print(line, flush=True)
                holds &= ok
    print("all checks hold" if holds else "some checks fail")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
