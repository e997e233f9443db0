"""Time and quality of `GaussianMixture`, `KMeans` and `PCA` compared with scikit-learn, in one run.

    python benchmarks/clustering.py [--sizes 10000 100000 1000000] [--repeats 3] [--json FILE]

The data are simulated: 7 components of unequal size and a common, correlated covariance in 28 columns for the
clusterings; the same rows mapped to 100 columns by a random matrix, with noise, for the PCA; float32. Both sides get
the same matrix, threads and settings:

mixture
    one start from k-means and exactly 30 EM steps over all rows (tol 0); ``tied`` and ``full``.
mixture, defaults
    our default of 40 restarts and scikit-learn's default of one; tied; each to its own tolerance.
k-means
    10 starts, tol 1e-4.
PCA
    30 components, each side's own choice of solver.

``quality`` is the mean log-likelihood of a row, minus the inertia per row, or the share of the variance explained:
higher is better. Times are the best of ``--repeats`` runs, which alternate between the sides.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from common import Json, Record, make_parser, markdown, use_threads
from sklearn.cluster import KMeans as TheirKMeans
from sklearn.decomposition import PCA as TheirPCA
from sklearn.mixture import GaussianMixture as TheirMixture

from amilst_lite.cluster import GaussianMixture, KMeans
from amilst_lite.preprocess.pca import PCA

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
            "mixture tied, defaults",
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


def table(record: Json) -> str:
    """One row for each estimator and size."""
    rows = [
        [one["what"], f"{one['n']:,}", f"{one['ours_s']:.2f}", f"{one['sklearn_s']:.2f}"]
        + [f"{one['speedup']:.1f}", f"{one['ours_quality']:.4f}", f"{one['sklearn_quality']:.4f}"]
        for one in record["results"]
    ]
    header = ["", "rows", "ours, s", "scikit-learn, s", "ratio", "our quality", "scikit-learn's quality"]
    return markdown(header, rows)


def main() -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--repeats", type=int, default=3, help="runs of which the best counts")
    parser.add_argument("--only", default="", help="run only what has this in its name")
    options = parser.parse_args()
    use_threads(options.threads)
    record = Record(options, "clustering")
    for size in options.sizes:
        for contest in contests(*simulate(size)):
            if options.only in contest[0]:
                result = race(contest, options.repeats if size < 500_000 else 1)
                record.add_row(result)
                print(f"{result['what']}, {size:,} rows: {result['ours_s']:.3f} s", flush=True)
    print(table(record.data))
    return 0


if __name__ == "__main__":
    sys.exit(main())
