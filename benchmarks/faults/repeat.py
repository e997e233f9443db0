"""Thousands of fits in one process: memory, threads and open files should not grow.

Small sections through the functions on AnnData, with different seeds; every tenth fit is of several sections, saves and
applies a model, or fails in training. The first tenth of the fits is not counted, in which caches of the libraries
fill. The slope of the resident memory is that of a straight line; its error is that of ten segments of the fits, each
with a line of its own.

    python benchmarks/faults/repeat.py [--fits N] [--json FILE]

2,000 fits take some 15 minutes on one core. Linux.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

N_SPOTS, N_GENES, K = 200, 40, 3
QUICK = {"epochs": 3, "n_networks": 1, "n_init": 2, "shrinkage": 0.2, "network_share": 0.3}
SEGMENTS = 10
FLAT = 2048
"""Bytes of resident memory for each fit that count as none: 2 MB in a thousand fits."""


def main() -> int:
    parser = common.make_parser(__doc__)
    parser.add_argument("--fits", type=int, default=2000, help="number of fits (default: 2000)")
    options = parser.parse_args()
    import amilst_lite as amilst

    one = amilst.simulate_section(N_SPOTS, N_GENES, K, seed=0)
    two = one.copy()
    two.obs["slide"] = np.where(np.arange(N_SPOTS) % 2, "a", "b")
    samples = []
    with tempfile.TemporaryDirectory() as place:
        for i in range(options.fits):
            fit(amilst, one, two, i, Path(place) / "model.h5")
            samples.append(usage())
            if (i + 1) % max(1, options.fits // 20) == 0:
                print(f"{i + 1} fits: {samples[-1][0] / 2**20:.1f} MiB, {samples[-1][1:]}", flush=True)
    memory, tasks, python_threads, files = np.array(samples[options.fits // 10 :], dtype=float).T
    slope = float(np.polyfit(np.arange(len(memory)), memory, 1)[0])
    pieces = [np.polyfit(np.arange(len(part)), part, 1)[0] for part in np.array_split(memory, SEGMENTS)]
    error = float(np.std(pieces, ddof=1) / np.sqrt(SEGMENTS))
    result = {
        "fits": options.fits,
        "bytes_per_fit": slope,
        "error": error,
        "first_mib": float(memory[0] / 2**20),
        "last_mib": float(memory[-1] / 2**20),
        "threads": [int(tasks.min()), int(tasks.max())],
        "python_threads": [int(python_threads.min()), int(python_threads.max())],
        "open_files": [int(files.min()), int(files.max())],
    }
    print(result)
    common.Record(options, "repeat").add_row(result)
    is_flat = slope < FLAT + 2 * error
    grows = any(values[-100:].mean() > values[:100].mean() + 1 for values in (tasks, python_threads, files))
    print("flat" if is_flat and not grows else "NOT FLAT")
    return int(not is_flat or grows)


def fit(amilst, one, two, i: int, model_file: Path) -> None:
    """The i-th fit."""
    turn = i % 10
    if turn == 7:
        amilst.identify_domains(two.copy(), K, seed=i, sample_key="slide", batch_correction="center", **QUICK)
    elif turn == 8:
        model = amilst.identify_domains(one.copy(), K, seed=i, **QUICK)
        model.save(model_file)
        amilst.apply_model(one.copy(), model_file)
    elif turn == 9:
        try:
            amilst.identify_domains(one.copy(), K, seed=i, **QUICK, learning_rate=1e6)
        except amilst.AmilstError:
            return
        raise AssertionError("expected a training that diverges")
    else:
        amilst.identify_domains(one.copy(), K, seed=i, **QUICK)


def usage() -> tuple[int, int, int, int]:
    """Bytes of resident memory, threads of the process, those of Python, and open files."""
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return (
        resident,
        len(os.listdir("/proc/self/task")),
        threading.active_count(),
        len(os.listdir("/proc/self/fd")),
    )


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
