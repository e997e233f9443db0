"""Time and quality of `GaussianMixture`, `KMeans` and `PCA` beside scikit-learn's, in one run.

    python benchmarks/clustering.py --json clustering.json [--sizes 10000,100000,1000000] [--repeats 3]

The data are simulated: 7 components of unequal size and a common, correlated covariance in 28 columns for
the clusterings; the same rows carried to 100 columns by a random map, with noise, for the PCA; float32.
Both sides get the same matrix, the same threads and the same settings:

mixture
    one start from k-means and exactly 30 EM steps over all rows (tol 0); ``tied`` and ``full``.
mixture, as it comes
    our default of 40 restarts against scikit-learn's default of one; tied; both to their own tolerance.
k-means
    10 starts, tol 1e-4.
PCA
    30 components, each side's own choice of solver.

``quality`` is the mean log-likelihood of a row, minus the inertia of a row, or the share of the variance
explained: higher is better. Times are the best of ``--repeats`` runs, which alternate between the sides.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from record import circumstances
from sklearn.cluster import KMeans as TheirKMeans
from sklearn.decomposition import PCA as TheirPCA
from sklearn.mixture import GaussianMixture as TheirMixture

from amilst_lite.cluster import GaussianMixture, KMeans
from amilst_lite.decomposition import PCA

K, D, GENES, COMPONENTS, STEPS = 7, 28, 100, 30, 30


def simulate(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a tied mixture (n, D), and the same as noisy genes (n, GENES); float32."""
    random = np.random.default_rng(seed)
    means = 1.5 * random.standard_normal((K, D))
    spread = random.standard_normal((D, D)) / np.sqrt(D) + 0.3 * np.eye(D)
    labels = random.choice(K, n, p=random.dirichlet(np.full(K, 5.0)))
    X = means[labels] + random.standard_normal((n, D)) @ spread
    genes = X @ random.standard_normal((D, GENES)) + random.standard_normal((n, GENES))
    return X.astype(np.float32), genes.astype(np.float32)


Contest = tuple[str, np.ndarray, Callable[[], Any], Callable[[], Any], Callable[[Any], float]]


def contests(X: np.ndarray, genes: np.ndarray) -> list[Contest]:
    """Name, data, our estimator, theirs, and the quality of either once it is fitted."""
    n = len(X)

    def mixture_quality(mixture: Any) -> float:
        return float(mixture.score(X))

    same = {"n_init": 1, "max_iter": STEPS, "tol": 0.0, "init_params": "kmeans", "random_state": 0}
    rows: list[Contest] = [
        (
            f"mixture {model}",
            X,
            lambda model=model: GaussianMixture(K, covariance_type=model, **same),
            lambda model=model: TheirMixture(K, covariance_type=model, **same),
            mixture_quality,
        )
        for model in ("tied", "full")
    ]
    rows.append(
        (
            "mixture tied, as it comes",
            X,
            lambda: GaussianMixture(K, covariance_type="tied", random_state=0),
            lambda: TheirMixture(K, covariance_type="tied", random_state=0),
            mixture_quality,
        )
    )
    rows.append(
        (
            "k-means",
            X,
            lambda: KMeans(K, n_init=10, random_state=0),
            lambda: TheirKMeans(K, n_init=10, random_state=0),
            lambda kmeans: -float(kmeans.inertia_) / n,
        )
    )
    rows.append(
        (
            "PCA",
            genes,
            lambda: PCA(COMPONENTS, random_state=0),
            lambda: TheirPCA(COMPONENTS, random_state=0),
            lambda pca: float(pca.explained_variance_ratio_.sum()),
        )
    )
    return rows


def race(contest: Contest, repeats: int) -> dict[str, Any]:
    """Best time of each side over alternating runs, and the quality of its last fit."""
    name, data, ours, theirs, quality = contest
    result: dict[str, Any] = {"what": name, "n": len(data), "columns": data.shape[1]}
    seconds: dict[str, list[float]] = {"ours": [], "sklearn": []}
    fitted = {}
    for _ in range(repeats):
        for side, make in (("ours", ours), ("sklearn", theirs)):
            estimator = make()
            began = time.perf_counter()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # neither side converges in a fixed number of steps
                estimator.fit(data)
            seconds[side].append(time.perf_counter() - began)
            fitted[side] = estimator
    for side in seconds:
        result[f"{side}_s"] = min(seconds[side])
        result[f"{side}_quality"] = quality(fitted[side])
    result["speedup"] = result["sklearn_s"] / result["ours_s"]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the results there")
    parser.add_argument("--sizes", default="10000,100000,1000000", help="numbers of rows, with commas")
    parser.add_argument("--repeats", type=int, default=3, help="runs of which the best counts")
    parser.add_argument("--only", default="", help="run only what has this in its name")
    options = parser.parse_args()
    print(f"{'what':26} {'n':>9} {'ours s':>8} {'sklearn s':>9} {'ratio':>6}  quality: ours, sklearn")
    results = []
    for size in options.sizes.split(","):
        for contest in contests(*simulate(int(float(size)))):
            if options.only not in contest[0]:
                continue
            result = race(contest, options.repeats if int(float(size)) < 500_000 else 1)
            results.append(result)
            print(
                f"{result['what']:26} {result['n']:9,} {result['ours_s']:8.3f} {result['sklearn_s']:9.3f} "
                f"{result['speedup']:6.1f}  {result['ours_quality']:.5f}, {result['sklearn_quality']:.5f}",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps({**circumstances(), "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
