"""Training: losses decrease, adversaries are trained, bits repeat, divergence is reported."""

import dataclasses
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from amilst_lite.config import PRESETS, NetworkConfig, TrainConfig
from amilst_lite.errors import TrainingDivergedError
from amilst_lite.nn.model import (
    BilinearDiscriminator,
    Generator,
    PairDiscriminator,
    PriorDiscriminator,
)
from amilst_lite.spatial.graph import SpatialGraph
from amilst_lite.train import TRAINERS, PublishedTrainer, Trainer, embed
from amilst_lite.train.adam import Adam
from amilst_lite.train.loop import Recorder

N, C = 150, 10
SMALL = NetworkConfig(feature_widths=(16, 6), graph_hidden=8, graph_latent=4)
PUBLISHED = NetworkConfig(
    feature_widths=(16, 6), graph_hidden=8, graph_latent=4, dropout=0.2, decoder="block"
)


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
    return TrainConfig(**{"epochs": 8, "n_networks": 2, **changes})


def published(**changes):
    return dataclasses.replace(PRESETS["published"].train, **{"epochs": 4, **changes})


def train(features, graph, config, network_config=SMALL, seed=0, callback=None):
    """Features and results in the graph's order."""
    make = TRAINERS[config.recipe]
    return make(features, graph, network_config=network_config, config=config, seed=seed).run(callback)


@pytest.mark.parametrize(
    ("network", "config"),
    [
        (SMALL, short()),
        (SMALL, short(n_networks=1, corruption=0.0)),
        (PUBLISHED, published()),
    ],
)
def test_same_seed_same_bits_and_global_generators_untouched(section, network, config):
    features, graph = section
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    runs = [train(features, graph, config, network, seed=3) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    assert torch.equal(runs[0].latent, runs[1].latent)
    assert torch.equal(runs[0].reconstruction, runs[1].reconstruction)
    for name, series in runs[0].history.items():
        np.testing.assert_array_equal(series, runs[1].history[name])
    other = train(features, graph, config, network, seed=4)
    assert not torch.equal(runs[0].latent, other.latent)


def test_shapes_and_history(section):
    features, graph = section
    seen = []
    result = train(
        features, graph, short(epochs=13), callback=lambda epoch, n, losses: seen.append((epoch, n, losses))
    )
    assert result.f.shape == (N, 2, 6) and result.g.shape == (N, 2, 4) and result.latent.shape == (N, 2, 10)
    assert result.reconstruction.shape == (N, C)
    assert not result.network.training
    assert [epoch for epoch, _, _ in seen] == list(range(1, 14))
    assert {n for _, n, _ in seen} == {13}
    assert set(result.history) == {
        "epoch", "reconstruction", "links", "kl", "mutual_information", "network", "discriminator", "generator",
    }  # fmt: skip
    assert all(len(series) == 13 for series in result.history.values())
    assert seen[-1][2]["network"] == result.history["network"][-1]


def test_training_learns(section):
    features, graph = section
    history = train(features, graph, short(epochs=120), SMALL).history
    assert history["reconstruction"][-1] < 0.6 * history["reconstruction"][0]
    assert history["links"][-1] < history["links"][0]
    assert history["mutual_information"][-1] > history["mutual_information"][0]


def test_no_adversaries_are_trained_at_weight_zero(section):
    features, graph = section
    history = train(features, graph, short(mutual_information_weight=0.0)).history
    assert "discriminator" not in history


def test_adversary_and_graph_encoder_can_be_left_out(section):
    features, graph = section
    history = train(features, graph, short(adversary=False), SMALL).history
    assert "discriminator" in history and "generator" not in history
    bare = dataclasses.replace(SMALL, graph_latent=0)
    result = train(features, graph, short(), bare)
    assert result.g.shape == (N, 2, 0) and torch.isfinite(result.reconstruction).all()


def test_published_second_phase_adds_its_terms(section):
    features, graph = section
    history = train(features, graph, published(), PUBLISHED).history
    for name in ("clustering", "adversarial", "prior", "discriminator", "generator"):
        assert all(math.isnan(value) for value in history[name][:4])
        assert all(math.isfinite(value) for value in history[name][4:])
    assert history["epoch"] == list(range(1, 9))


def test_results_follow_the_order_of_the_graph():
    """Reordering, rotating and mirroring the spots changes nothing but the order of the rows."""
    rng = np.random.default_rng(0)
    coordinates = rng.random((N, 2)) * [1.0, 0.7]
    features = torch.from_numpy(rng.normal(0, 1, (N, C)).astype(np.float32))
    shuffled = rng.permutation(N)
    turned = coordinates[shuffled] @ [[0.8, 0.6], [0.6, -0.8]]
    latents = []
    for points, rows in ((coordinates, features), (turned, features[shuffled])):
        graph = SpatialGraph.from_coordinates(points, n_neighbors=6)
        latents.append(train(rows[graph.order], graph, short(epochs=3)).latent[graph.rank])
    torch.testing.assert_close(latents[1], latents[0][shuffled], rtol=1e-3, atol=1e-4)


def test_adversarial_steps_leave_the_network_unchanged(section):
    features, graph = section
    trainer = Trainer(features, graph, network_config=SMALL, config=short())
    output = trainer._forward(trainer.batches[0])
    before = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    generator = [p.clone() for p in trainer.generator.parameters()]
    trainer._adversarial_steps(output.f.detach(), output.g.detach())
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
    """Embedding, reconstruction and the statistics of normalization, in evaluation."""
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
    expected, found = (embed(each.network, each.features, each.batches) for each in (whole, tiled))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("network", "config"),
    [(SMALL, short(batch_size=33)), (PUBLISHED, published(batch_size=50))],
)
def test_training_in_tiles(section, network, config):
    features, graph = section
    result, again = (train(features, graph, config, network) for _ in range(2))
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


def test_spots_without_neighbors_are_trained_too():
    coordinates = np.r_[np.random.default_rng(0).random((30, 2)), [[9.0, 9.0]]]
    with pytest.warns(UserWarning, match="neighbor"):
        graph = SpatialGraph.from_coordinates(coordinates, radius=0.3)
    features = torch.randn(31, 4, generator=torch.Generator().manual_seed(0))
    result = train(features, graph, short(epochs=2), SMALL)
    assert torch.isfinite(result.latent).all()


def test_recipes_build_what_they_name(section):
    features, graph = section
    default = TRAINERS["default"](features, graph, config=short())
    assert type(default) is Trainer
    assert type(default.discriminator) is BilinearDiscriminator and type(default.generator) is Generator
    assert set(default.optimizers) == {"network", "discriminator", "generator"}
    assert default.optimizers["network"].weight_decay == 1e-4

    other = TRAINERS["published"](features, graph, config=published())
    assert type(other) is PublishedTrainer
    assert type(other.discriminator) is PairDiscriminator and type(other.prior) is PriorDiscriminator
    assert set(other.optimizers) == {"network", "discriminator", "prior", "generator"}
    assert other.optimizers["network"].weight_decay == 0.01
    trained = other.optimizers["network"].parameters
    assert any(parameter is other.centers for parameter in trained)


def test_number_of_networks_is_the_setting():
    features = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    graph = SpatialGraph.from_coordinates(np.random.default_rng(0).random((30, 2)), n_neighbors=4)
    assert Trainer(features, graph, config=TrainConfig(epochs=2)).n_networks == 1
    assert Trainer(features, graph, config=short(n_networks=3)).n_networks == 3


def test_losses_are_read_once_per_ten_epochs(section, monkeypatch):
    features, graph = section
    reads = []
    original = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: reads.append(len(self)) or original(self))
    result = train(features, graph, short(epochs=25))
    assert len(reads) == 3 and sum(reads) == 25 * (len(result.history) - 1)


def test_tiles_are_made_again_when_few_are_kept(section, monkeypatch):
    features, graph = section
    expected = train(features, graph, short(batch_size=33), SMALL)
    monkeypatch.setattr("amilst_lite.train.batches._KEPT_TILES", 2)
    trainer = Trainer(features, graph, network_config=SMALL, config=short(batch_size=33))
    found = trainer.run(reconstruct=False)
    assert torch.equal(found.latent, expected.latent) and found.reconstruction is None
    assert len(trainer.batches) > 2 and len(trainer.batches._kept) == 2
    assert trainer.batches.largest == max(batch.size for batch in trainer.batches)
    starts = [batch.rows.start for batch in trainer.batches]
    assert starts == sorted(starts) and [batch.rows.start for batch in trainer.batches[1:3]] == starts[1:3]


def test_losses_are_in_the_order_of_their_terms():
    """And not in that of a set, which is another one in each process."""
    recorder = Recorder(2, None)
    for names in ("hgf", "hgfedcba"):
        recorder.add({name: torch.tensor(1.0) for name in names})
    assert list(recorder.history) == ["epoch", *"hgfedcba"]
    assert recorder.history["e"] == pytest.approx([math.nan, 1.0], nan_ok=True)


def test_adam_takes_the_steps_of_torch():
    def trained(make):
        generator = torch.Generator().manual_seed(0)
        weight, bias = (torch.randn(shape, generator=generator).requires_grad_() for shape in ((5, 3), (3,)))
        unused = torch.ones(2, requires_grad=True)
        optimizer = make([weight, bias, unused])
        x = torch.randn(20, 5, generator=generator)
        for step in range(6):
            optimizer.zero_grad()
            loss = (x @ weight).tanh().square().sum()
            if step > 1:  # the others have moved before
                loss = loss + (x @ weight + bias).sin().sum()
            loss.backward()
            optimizer.step()
        return weight, bias, unused

    expected = trained(lambda parameters: torch.optim.Adam(parameters, 0.01, weight_decay=0.1, fused=True))
    found = trained(lambda parameters: Adam(parameters, 0.01, 0.1))
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))
    assert not torch.equal(found[1], found[1].detach() * 0) and torch.equal(found[2], torch.ones(2))


def test_training_does_not_import_the_compiler_of_torch():
    code = """
import sys, numpy as np, torch
from amilst_lite.config import TrainConfig
from amilst_lite.spatial.graph import SpatialGraph
from amilst_lite.train import Trainer
graph = SpatialGraph.from_coordinates(np.random.default_rng(0).random((30, 2)), n_neighbors=4)
Trainer(torch.randn(30, 4), graph, config=TrainConfig(epochs=2)).run()
print("torch._dynamo" in sys.modules)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
