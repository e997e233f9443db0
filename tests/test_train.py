"""The training loop: losses fall, players play, bits repeat, failures are named."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from amilst_lite.config import PRESETS, NetworkConfig, TrainConfig
from amilst_lite.errors import TrainingDivergedError
from amilst_lite.graph import SpatialGraph
from amilst_lite.train import Trainer, train

N, C = 150, 10
SMALL = NetworkConfig(feature_widths=(16, 6), graph_hidden=8, graph_latent=4, n_centers=3)
PUBLISHED = NetworkConfig(
    feature_widths=(16, 6), graph_hidden=8, graph_latent=4, n_centers=3,
    dropout=0.2, decoder="dense", discriminator="published",
)  # fmt: skip


@pytest.fixture(scope="module")
def section():
    """Two halves that differ in their features."""
    rng = np.random.default_rng(0)
    coordinates = rng.random((N, 2))
    left = coordinates[:, :1] < 0.5
    features = rng.normal(0, 1, (N, C)) + np.where(left, 2.0, -2.0) * (np.arange(C) < 3)
    features = (features - features.mean(0)) / np.sqrt(features.var(0).sum())
    return torch.tensor(features, dtype=torch.float32), SpatialGraph.from_coordinates(
        coordinates, n_neighbors=6
    )


def short(**changes):
    return TrainConfig(**{"epochs": 8, "members": 2, **changes})


def published(**changes):
    config = PRESETS["published"].train
    return TrainConfig(
        **{
            name: getattr(config, name)
            for name in (
                "corruption",
                "link_loss",
                "weight_decay",
                "reconstruction_weight",
                "mutual_information_weight",
            )
        },
        **{"epochs": 4, "adversarial_epochs": 4, "members": 1, **changes},
    )


@pytest.mark.parametrize(
    ("network", "config"),
    [
        (SMALL, short()),
        (SMALL, short(members=1, corrupt_per="spot", link_loss="masked")),
        (PUBLISHED, published()),
    ],
)
def test_same_seed_same_bits_and_global_generators_untouched(section, network, config):
    features, graph = section
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    runs = [train(features, graph, network_config=network, config=config, seed=3) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    assert torch.equal(runs[0].latent, runs[1].latent)
    assert torch.equal(runs[0].reconstruction, runs[1].reconstruction)
    for name, series in runs[0].history.items():
        np.testing.assert_array_equal(series, runs[1].history[name])
    other = train(features, graph, network_config=network, config=config, seed=4)
    assert not torch.equal(runs[0].latent, other.latent)


def test_shapes_and_history(section):
    features, graph = section
    seen = []
    result = train(
        features, graph, network_config=SMALL, config=short(record_every=3),
        callback=lambda epoch, n, losses: seen.append((epoch, n, losses)),
    )  # fmt: skip
    assert result.f.shape == (N, 2, 6) and result.g.shape == (N, 2, 4) and result.latent.shape == (N, 2, 10)
    assert result.reconstruction.shape == (N, C)
    assert not result.network.training
    assert [epoch for epoch, _, _ in seen] == list(range(1, 9))
    assert {n for _, n, _ in seen} == {8}
    assert set(result.history) == {
        "epoch", "reconstruction", "links", "kl", "mutual_information", "network", "discriminator", "generator",
    }  # fmt: skip
    assert all(len(series) == 8 for series in result.history.values())
    assert seen[-1][2]["network"] == result.history["network"][-1]


def test_training_learns(section):
    features, graph = section
    history = train(features, graph, network_config=SMALL, config=short(epochs=120)).history
    assert history["reconstruction"][-1] < 0.6 * history["reconstruction"][0]
    assert history["links"][-1] < history["links"][0]
    assert history["mutual_information"][-1] > history["mutual_information"][0]


def test_mutual_information_needs_no_players_at_weight_zero(section):
    features, graph = section
    history = train(
        features, graph, network_config=SMALL, config=short(mutual_information_weight=0.0)
    ).history
    assert "discriminator" not in history


def test_ideas_can_be_left_out(section):
    features, graph = section
    history = train(features, graph, network_config=SMALL, config=short(adversary=False)).history
    assert "discriminator" in history and "generator" not in history
    bare = dataclasses.replace(SMALL, graph_latent=0)
    result = train(features, graph, network_config=bare, config=short())
    assert result.g.shape == (N, 2, 0) and torch.isfinite(result.reconstruction).all()


def test_published_second_phase_adds_its_terms(section):
    features, graph = section
    history = train(features, graph, network_config=PUBLISHED, config=published()).history
    for name in ("clustering", "adversarial", "prior", "discriminator", "generator"):
        assert all(math.isnan(value) for value in history[name][:4])
        assert all(math.isfinite(value) for value in history[name][4:])
    assert history["epoch"] == list(range(1, 9))


def test_results_come_back_in_the_order_given(section):
    """Renaming the spots changes nothing but the order of the rows."""
    features, graph = section
    config = short(members=1, corruption=0.0, epochs=3)
    shuffled = np.random.default_rng(1).permutation(N)
    coordinates = np.random.default_rng(0).random((N, 2))  # those of the fixture
    result = train(features, graph, network_config=SMALL, config=config)
    moved = train(
        features[shuffled],
        SpatialGraph.from_coordinates(coordinates[shuffled], n_neighbors=6),
        network_config=SMALL,
        config=config,
    )
    torch.testing.assert_close(moved.latent, result.latent[shuffled], rtol=1e-3, atol=1e-4)


def test_each_player_moves_only_itself(section):
    features, graph = section
    trainer = Trainer(features, graph, network_config=SMALL, config=short())
    output = trainer._forward(trainer.batches[0])
    before = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    generator = [p.clone() for p in trainer.generator.parameters()]
    trainer._player_steps(output.f.detach(), output.g.detach())
    for name, value in trainer.network.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert any(not torch.equal(p, q) for p, q in zip(trainer.generator.parameters(), generator, strict=True))


def test_evaluation_uses_the_statistics_of_the_whole_section(section):
    features, graph = section
    trainer = Trainer(features, graph, network_config=SMALL, config=short(epochs=2))
    trainer.run()
    block = trainer.network.encoder.blocks[0]
    activations = block.linear(trainer.features.unsqueeze(1).expand(-1, 2, -1))
    torch.testing.assert_close(block.norm.running_mean, activations.mean(0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("decoder", ["linear", "graph"])
def test_a_tile_gives_what_the_whole_graph_gives(section, decoder):
    """Embedding, reconstruction and the statistics of normalisation, in evaluation."""
    features, graph = section
    network = dataclasses.replace(SMALL, decoder=decoder)
    tiled = Trainer(features, graph, network_config=network, config=short(batch_size=40))
    whole = Trainer(features, graph, network_config=network, config=short())
    assert len(tiled.batches) == 4 and len(whole.batches) == 1
    tiled.run()
    whole.network.load_state_dict(tiled.network.state_dict())
    whole._calibrate()
    for name, value in whole.network.state_dict().items():
        torch.testing.assert_close(value, tiled.network.state_dict()[name], rtol=1e-5, atol=1e-6)
    whole.network.load_state_dict(tiled.network.state_dict())
    expected, found = whole._result({}), tiled._result({})
    for name in ("f", "g", "reconstruction"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("network", "config"),
    [(SMALL, short(batch_size=33)), (PUBLISHED, published(batch_size=50))],
)
def test_training_in_tiles(section, network, config):
    features, graph = section
    result, again = (train(features, graph, network_config=network, config=config) for _ in range(2))
    assert torch.equal(result.latent, again.latent)
    assert result.latent.shape[0] == N and torch.isfinite(result.latent).all()
    assert len(result.history["epoch"]) == 8


def test_every_sweep_sees_every_tile(section):
    trainer = Trainer(*section, network_config=SMALL, config=short(batch_size=40))
    seen = [trainer._next_batch().rows.start for _ in range(12)]
    assert all(len(set(seen[at : at + 4])) == 4 for at in (0, 4, 8))
    assert seen[:4] != seen[4:8] or seen[4:8] != seen[8:]


def test_divergence_names_term_and_epoch(section):
    features, graph = section
    spoiled = features.clone()
    spoiled[3, 2] = float("inf")
    with pytest.raises(TrainingDivergedError, match=r"'reconstruction' became .* in epoch 1 of 8"):
        train(spoiled, graph, network_config=SMALL, config=short())


def test_spots_without_neighbours_are_trained_too():
    coordinates = np.r_[np.random.default_rng(0).random((30, 2)), [[9.0, 9.0]]]
    with pytest.warns(UserWarning, match="neighbour"):
        graph = SpatialGraph.from_coordinates(coordinates, radius=0.3)
    features = torch.randn(31, 4, generator=torch.Generator().manual_seed(0))
    result = train(features, graph, network_config=SMALL, config=short(epochs=2))
    assert torch.isfinite(result.latent).all()
