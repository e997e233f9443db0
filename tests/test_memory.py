"""Peak memory is linear in the number of spots."""

import subprocess
import sys

import pytest

pytest.importorskip("resource", reason="this system does not report peak memory")

RUN = """
import numpy as np, resource, sys
from amilst_lite import AMILST
n = 50_000
rng = np.random.default_rng(0)
places = rng.random((n, 2))
features = rng.normal(0, 1, (n, 10)) + 3 * (places[:, :1] > 0.5)
model = AMILST(2, settings={"epochs": 2, "n_init": 2, **SETTINGS}).fit(features, coordinates=places)
assert model.labels_.shape == (n,)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(peak if sys.platform == "darwin" else 1024 * peak)
"""


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="default"),
        pytest.param(
            {"batch_size": 10**6, "decoder": "graph"}, id="one batch, graph decoder", marks=pytest.mark.slow
        ),
    ],
)
def test_fifty_thousand_spots(settings):
    """One bit for each pair of spots would take 0.3 GB, one byte 2.5 GB, one float 10 GB."""
    code = RUN.replace("SETTINGS", repr(settings))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1.5e9
