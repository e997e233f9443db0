"""Settings are validated, and each of them is read somewhere."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

import amilst_lite
from amilst_lite.config import PRESETS, Config, preset
from amilst_lite.errors import InputError

PACKAGE = Path(amilst_lite.__file__).parent


def test_every_field_is_read_somewhere():
    sources = "\n".join(
        path.read_text()
        for path in PACKAGE.rglob("*.py")
        if path.name != "config.py" and path.parent.name != "cli"
    )
    unread = [name for name in Config.owners() if not re.search(rf"\.{name}\b", sources)]
    assert unread == []


def test_field_names_are_unique_over_the_parts():
    default = Config()
    names = [
        item.name
        for part in dataclasses.fields(default)
        for item in dataclasses.fields(getattr(default, part.name))
    ]
    assert len(names) == len(set(names))


def test_every_field_has_its_help():
    default = Config()
    for part in dataclasses.fields(default):
        for item in dataclasses.fields(getattr(default, part.name)):
            assert item.metadata["help"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"epochs": 0}, "an integer >= 1"),
        ({"epochs": 3.0}, "an integer >= 1"),
        ({"epochs": "many"}, "an integer >= 1"),
        ({"epochs": True}, "an integer >= 1"),
        ({"epochs": None}, "an integer >= 1"),
        ({"batch_size": 3}, "an integer >= 4"),
        ({"corruption": 1.0}, "a finite number >= 0 and <= 0.99"),
        ({"adversary": "false"}, "True or False"),
        ({"adversary": 1}, "True or False"),
        ({"decoder": "dense"}, "one of 'linear', 'graph', 'block'"),
        ({"recipe": ["default"]}, "one of 'default', 'published'"),
        ({"covariance_type": "eee"}, "one of 'tied_spherical'"),
        ({"feature_widths": ()}, "one or more integers >= 1"),
        ({"feature_widths": (100, 0)}, "one or more integers >= 1"),
        ({"feature_widths": 100}, "one or more integers >= 1"),
        ({"network_share": 2}, "a finite number >= 0 and <= 1"),
        ({"network_share": float("nan")}, "a finite number"),
        ({"network_share": -0.1}, "a finite number >= 0 and <= 1 or None"),
        ({"shrinkage": 1.0}, "a finite number >= 0 and <= 0.999 or None"),
        ({"shrinkage": -0.1}, "a finite number >= 0 and <= 0.999 or None"),
        ({"n_networks": None}, "an integer >= 1"),
        ({"depth_floor": None}, "a finite number >= 0"),
        ({"radius": 0}, "a finite number > 0 or None"),
        ({"noise_band": 1.0}, "a finite number > 0 and < 1 or None"),
        ({"n_top_genes": 0}, "an integer >= 1 or None"),
    ],
)
def test_invalid_values_are_refused_by_name_and_flag(change, expected):
    (name,) = change
    flag = "--" + name.replace("_", "-")
    with pytest.raises(InputError) as caught:
        Config().replace(**change)
    assert str(caught.value).startswith(f"{name} ({flag}) must be {expected}")
    assert repr(change[name]) in str(caught.value)


def test_numpy_scalars_are_accepted_and_converted():
    config = Config().replace(
        epochs=np.int64(7), network_share=np.float32(0.5), adversary=np.bool_(False),
        feature_widths=np.array([9, 4]), radius=np.int32(3), n_top_genes=None,
    )  # fmt: skip
    assert (config.train.epochs, config.cluster.network_share) == (7, 0.5)
    assert config.train.adversary is False and config.network.feature_widths == (9, 4)
    assert config.graph.radius == 3.0 and type(config.graph.radius) is float
    assert config.preprocess.n_top_genes is None
    for part in config.to_dict().values():
        assert all(type(value) in (int, float, bool, str, tuple, type(None)) for value in part.values())


def test_what_the_data_decide_may_be_given():
    default = Config()
    assert default.cluster.network_share is None and default.cluster.shrinkage is None
    given = default.replace(network_share=1, shrinkage=0.999)
    assert (given.cluster.network_share, given.cluster.shrinkage) == (1.0, 0.999)
    assert given.replace(network_share=None, shrinkage=None) == default


def test_default_sizes():
    config = Config()
    assert (config.train.epochs, config.train.n_networks, config.cluster.n_init) == (50, 1, 32)
    assert config.preprocess.n_top_genes == 2000


def test_removed_settings_are_unknown():
    with pytest.raises(InputError, match="unknown setting 'covariance_prior'"):
        Config().replace(covariance_prior=500.0)


def test_there_are_few_settings():
    assert len(Config.owners()) <= 29


def test_replace_finds_the_part():
    changed = Config().replace(n_neighbors=9, epochs=3)
    assert changed.graph.n_neighbors == 9
    assert changed.train.epochs == 3
    assert Config().graph.n_neighbors != 9
    with pytest.raises(InputError, match="unknown setting 'neighbors'.*n_neighbors"):
        Config().replace(neighbors=6)


def test_presets_by_name():
    assert preset("published") is PRESETS["published"]
    with pytest.raises(InputError, match="unknown preset 'fast'.*default"):
        preset("fast")


def test_published_preset_is_the_published_recipe():
    config = preset("published")
    assert (config.preprocess.n_components, config.graph.n_neighbors) == (200, 12)
    assert (config.network.feature_widths, config.network.graph_hidden, config.network.graph_latent) == (
        (100, 20), 32, 8,
    )  # fmt: skip
    assert (config.train.recipe, config.train.epochs, config.train.n_networks) == ("published", 200, 1)
    assert (config.network.decoder, config.network.dropout) == ("block", 0.2)
    assert (config.preprocess.normalization, config.cluster.method) == ("published", "leiden")
    assert (config.filter.noise_band, config.filter.depth_floor) == (None, 0.0)
    assert (config.cluster.shrinkage, config.cluster.cluster_on) == (0.0, "latent")


def test_configs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().train.epochs = 3
