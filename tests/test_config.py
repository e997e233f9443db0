"""Settings check themselves, and each of them is read somewhere."""

import dataclasses
import re
from pathlib import Path

import pytest

import amilst_lite
from amilst_lite.config import PRESETS, Config, NetworkConfig, PreprocessConfig, TrainConfig, preset
from amilst_lite.errors import InputError

PACKAGE = Path(amilst_lite.__file__).parent


def test_every_field_is_read_somewhere():
    sources = "\n".join(
        path.read_text() for path in PACKAGE.rglob("*.py") if path.name not in ("config.py", "cli.py")
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
    ("part", "change"),
    [
        (TrainConfig, {"epochs": 0}),
        (TrainConfig, {"corruption": 1.0}),
        (TrainConfig, {"epochs": "many"}),
        (TrainConfig, {"epochs": True}),
        (TrainConfig, {"link_loss": "dense"}),
        (NetworkConfig, {"feature_widths": (100, 0)}),
        (PreprocessConfig, {"target_sum": -1.0}),
        (PreprocessConfig, {"n_components": float("nan")}),
    ],
)
def test_values_out_of_range_name_the_field(part, change):
    with pytest.raises(InputError, match=f"{part.__name__}.{next(iter(change))}"):
        part(**change)


def test_replace_finds_the_part():
    changed = Config().replace(n_neighbors=9, epochs=3)
    assert changed.graph.n_neighbors == 9
    assert changed.train.epochs == 3
    assert Config().graph.n_neighbors != 9
    with pytest.raises(InputError, match="unknown setting 'neighbours'.*n_neighbors"):
        Config().replace(neighbours=6)


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
    assert (config.train.epochs, config.train.adversarial_epochs) == (200, 200)
    assert config.train.link_loss == "masked"


def test_configs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().train.epochs = 3
