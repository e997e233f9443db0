"""Data and results that are probably not as intended: said in the log, in uns, in run.json and in the report."""

import html
import json

import numpy as np
import pytest
import torch

import amilst_lite as amilst
from amilst_lite.cluster import domains
from amilst_lite.errors import AmilstWarning, InputError, TrainingDivergedError
from amilst_lite.train.loop import Trainer

K = 3
QUICK = {"epochs": 2, "n_networks": 1, "n_init": 2, "shrinkage": 0.2}
WARNINGS = {
    "spots without neighbors": "1 of 120 spots have no neighbor. Use a larger radius",
    "constant columns": "1 of 5 columns of the features are constant",
    "an extreme value": "spot 7 (counted from 0) alone has 99% of the variance",
    "domains that collapsed": "domains have no spots. Set fewer domains",
    "domains that are sections": "the domains largely follow the sections",
}


@pytest.fixture(scope="module")
def suspicious(tmp_path_factory):
    """A run on data with every one of these, and the warnings that it has shown."""
    rng = np.random.default_rng(0)
    adata = amilst.simulate_section(120, 30, K, seed=0)
    adata.obs["slide"] = np.where(np.arange(120) == 7, "b", "a")
    adata.obsm["spatial"] = rng.random((120, 2))
    adata.obsm["spatial"][7] = 9.0
    adata.obsm["mine"] = rng.normal(size=(120, 5))
    adata.obsm["mine"][:, 2] = 4.0
    adata.obsm["mine"][7, 0] = 1e30
    out = tmp_path_factory.mktemp("suspicious")
    options = {"use_rep": "mine", "sample_key": "slide", "radius": 0.3, "batch_correction": "none", **QUICK}
    with pytest.warns(AmilstWarning) as shown:
        amilst.identify_domains(adata, K, **options)
    with pytest.MonkeyPatch.context() as patch:  # figures are another matter
        patch.setattr("amilst_lite.plot.save", lambda figure, path: path.write_bytes(b""))
        amilst.write_results(adata, out)
    return adata, out, [str(one.message) for one in shown]


@pytest.mark.parametrize("name", WARNINGS)
def test_warnings_are_everywhere(suspicious, name):
    adata, out, shown = suspicious
    text = WARNINGS[name]
    assert sum(text in one for one in shown) == 1
    assert sum(text in one for one in adata.uns["amilst"]["warnings"]) == 1
    assert sum(text in one for one in json.loads((out / "run.json").read_text())["warnings"]) == 1
    assert text in html.unescape((out / "report.html").read_text(encoding="utf-8"))


def features():
    """Of three layers, (120, 5), and coordinates."""
    rng = np.random.default_rng(0)
    coordinates = rng.random((120, 2))
    layer = np.floor(K * coordinates[:, 1]).astype(int)
    return 2 * np.eye(5)[layer] + rng.normal(0, 0.3, size=(120, 5)), coordinates


def diverging(name):
    """Arguments of a fit, and a patch, by which something is not finite."""
    X, coordinates = features()
    settings = dict(QUICK)
    replaced = []
    if name == "loss":
        settings |= {"learning_rate": 1e6}
    elif name == "activations":
        calibrate = Trainer._calibrate

        def spoiled(trainer):
            calibrate(trainer)
            next(trainer.network.decoder.parameters()).data.fill_(torch.nan)

        replaced = [(Trainer, "_calibrate", spoiled)]
        settings |= {"network_share": 0.5}
    elif name == "mixture":
        fit = domains.fit_average

        def fitted(*args, **options):
            found = fit(*args, **options)
            found.probabilities[0, 0] = np.nan
            return found

        replaced = [(domains, "fit_average", fitted)]
    elif name == "features":
        X[4, 1] = np.inf
    elif name == "equal features":
        X[:] = 3.0
    return X, coordinates, settings, replaced


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("loss", TrainingDivergedError, r"the term '\w+' became \w+ in epoch 2 of 2\. Check the features"),
        (
            "activations",
            TrainingDivergedError,
            r"output 'reconstruction' of the network is not finite after epoch 2",
        ),
        ("mixture", TrainingDivergedError, r"mixture of 3 domains has probabilities that are not finite"),
        ("features", InputError, r"found NaN or infinity in 1 spot\(s\), first row 4"),
        ("equal features", InputError, "all spots have the same features"),
    ],
)
@pytest.mark.filterwarnings("ignore:5 of 5 columns:amilst_lite.errors.AmilstWarning")
def test_what_is_not_finite_ends_the_run(name, error, message, monkeypatch):
    X, coordinates, settings, replaced = diverging(name)
    for place, attribute, value in replaced:
        monkeypatch.setattr(place, attribute, value)
    with pytest.raises(error, match=message):
        amilst.AMILST(K, settings=settings).fit(X, coordinates=coordinates)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_scale_of_the_features_does_not_matter(scale):
    """Squares of these are beyond float32."""
    X, coordinates = features()
    labels = [
        amilst.AMILST(K, settings={**QUICK, "method": "kmeans"}).fit_predict(values, coordinates=coordinates)
        for values in (X, X * scale)
    ]
    assert (labels[0] == labels[1]).mean() > 0.95
