"""Layers, autoencoders, discriminators and the whole network against dense formulas."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from amilst_lite.config import NetworkConfig
from amilst_lite.nn import layers, model
from amilst_lite.nn.model import AMILSTNetwork
from amilst_lite.spatial.graph import SpatialGraph

N, C = 60, 6


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def graph():
    return SpatialGraph.from_coordinates(np.random.default_rng(0).random((N, 2)), n_neighbors=5)


@pytest.fixture(scope="module")
def adjacency(graph):
    return graph.adjacency()


@pytest.fixture
def x():
    return torch.randn(N, C, generator=generator(3))


def test_dropout_keeps_the_mean_and_the_global_generator():
    before = torch.get_rng_state()
    ones = torch.ones(200_000)
    dropped = layers.dropout(ones, 0.2, True, generator())
    assert torch.equal(torch.get_rng_state(), before)
    assert sorted(dropped.unique().tolist()) == [0.0, 1.25]
    assert dropped.mean().item() == pytest.approx(1, abs=0.01)
    assert layers.dropout(ones, 0.2, False) is ones
    assert torch.equal(dropped, layers.dropout(ones, 0.2, True, generator()))


def test_dense_follows_torch(x):
    dense = layers.Dense(C, 3, generator=generator())
    torch.testing.assert_close(dense(x), F.linear(x, dense.weight.T, dense.bias))
    plain = layers.Dense(C, 3, bias=False)
    torch.testing.assert_close(plain(x), x @ plain.weight)


def test_batch_norm_follows_torch_in_training_and_evaluation(x):
    ours, theirs = layers.BatchNorm(C), nn.BatchNorm1d(C, eps=1e-3, momentum=0.01)
    for _ in range(3):
        torch.testing.assert_close(ours(2 * x + 1), theirs(2 * x + 1))
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


def test_graph_convolution_is_the_dense_product_on_either_side(x, adjacency):
    dense = adjacency.to_dense()
    for width in (2, 12):  # narrower and wider than the input: two orders of the product
        convolution = layers.GraphConvolution(C, width, generator=generator())
        torch.testing.assert_close(
            convolution(adjacency, x), dense @ x @ convolution.weight, rtol=1e-5, atol=1e-6
        )


def test_xavier_bounds():
    weight = layers.xavier_uniform((40, 60), generator())
    bound = (6 / 100) ** 0.5
    assert weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)


def member_state(module, member):
    """State of one member of a module that holds several."""
    return {name: value[member] for name, value in module.state_dict().items()}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("decoder", ["linear", "graph", "block"])
def test_members_are_independent_networks(x, adjacency, decoder, training):
    config = NetworkConfig(
        feature_widths=(10, 4), graph_hidden=5, graph_latent=3, dropout=0.0, decoder=decoder
    )
    both = AMILSTNetwork(C, config, 2, generator=generator()).train(training)
    noise = generator(9)
    outputs = both(x, adjacency, generator=noise)
    for member in range(2):
        alone = AMILSTNetwork(C, config)
        alone.load_state_dict(member_state(both, member))
        # running statistics moved in the first pass; batch statistics are what training uses
        output = alone.train(training)(x, adjacency, generator=generator(9))
        torch.testing.assert_close(outputs.f[:, member], output.f, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(outputs.mean[:, member], output.mean, rtol=1e-4, atol=1e-5)
        if not training:
            torch.testing.assert_close(
                outputs.reconstruction[:, member], output.reconstruction, rtol=1e-4, atol=1e-5
            )


def test_members_of_the_adversaries_are_independent():
    f, g = torch.randn(N, 2, 4), torch.randn(N, 2, 3)
    for make, arguments in (
        (model.BilinearDiscriminator, (f, g)),
        (model.PairDiscriminator, (f, g)),
    ):
        both = make(4, 3, 2, generator=generator())
        for member in range(2):
            alone = make(4, 3)
            alone.load_state_dict(member_state(both, member))
            torch.testing.assert_close(both(*arguments)[:, member], alone(*(a[:, member] for a in arguments)))
    prior, made = model.PriorDiscriminator(4, 2), model.Generator(3, 4, 2)
    assert prior(f).shape == (N, 2)
    assert made(g).shape == (N, 2, 4)
    assert 0 < made(g).min() < made(g).max() < 1


def test_bilinear_discriminator_is_its_formula():
    f, g = torch.randn(N, 4), torch.randn(N, 3)
    discriminator = model.BilinearDiscriminator(4, 3)
    nn.init.constant_(discriminator.bias, 0.5)
    expected = torch.einsum("ni,ij,nj->n", f, discriminator.weight, g) + 0.5
    torch.testing.assert_close(discriminator(f, g), expected)


def test_adversaries_are_initialized_as_published():
    for module in (
        model.PairDiscriminator(20, 8, generator=generator()),
        model.Generator(8, 20, generator=generator()),
    ):
        weights = torch.cat(
            [p.flatten() for name, p in module.named_parameters() if "linear" in name or p.ndim > 1]
        )
        assert weights.std().item() == pytest.approx(0.02, rel=0.1)
    assert model.PriorDiscriminator(20).linear.bias.abs().max() == 0


def test_corruption_masks_entries(x):
    entries = model.corrupt(x, 0.4, generator=generator())
    assert set((entries == x).flatten().tolist()) == {True, False}
    assert (entries[entries != x] == 0).all()
    share = (entries == 0).float().mean().item()
    assert 0.25 < share < 0.55
    assert model.corrupt(x, 0.0) is x


def test_variational_encoder_is_its_equations(x, adjacency):
    encoder = model.VariationalGraphEncoder(C, 5, 3, generator=generator())
    dense = adjacency.to_dense()
    hidden = torch.relu(dense @ x @ encoder.hidden.weight)
    mean, log_sigma = dense @ hidden @ encoder.mean.weight, dense @ hidden @ encoder.log_sigma.weight
    posterior = encoder.eval()(adjacency, x)
    torch.testing.assert_close(posterior.mean, mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(posterior.log_sigma, log_sigma, rtol=1e-4, atol=1e-5)
    assert posterior.sample is posterior.mean
    draws = torch.stack([encoder.train()(adjacency, x, generator(s)).sample for s in range(1500)])
    torch.testing.assert_close(draws.mean(0), mean, rtol=0, atol=0.2)
    torch.testing.assert_close(draws.std(0), log_sigma.exp(), rtol=0.15, atol=0.02)


def test_network_in_a_plain_torch_loop(x, adjacency):
    """Someone else's training loop: default arguments, global generator, any optimizer."""
    network = AMILSTNetwork(C)
    output = network(x, adjacency, corruption=0.2)
    assert output.latent.shape == (N, 28)
    assert output.reconstruction.shape == (N, C)
    output.reconstruction.square().mean().backward()
    assert all(p.grad is not None for p in network.decoder.parameters())
    network.eval()
    torch.testing.assert_close(network(x, adjacency, corruption=0.9).latent, network(x, adjacency).latent)


@pytest.mark.parametrize(
    ("decoder", "kind", "hops"),
    [("linear", layers.Dense, 2), ("graph", model.GraphDecoder, 3), ("block", layers.DenseBlock, 2)],
)
def test_every_decoder_is_the_one_named(x, adjacency, decoder, kind, hops):
    network = AMILSTNetwork(C, NetworkConfig(decoder=decoder), generator=generator()).eval()
    assert type(network.decoder) is kind and network.hops == hops
    z = network(x, adjacency).latent
    decoded = network.decode(z, adjacency)
    if decoder == "linear":
        torch.testing.assert_close(decoded, z @ network.decoder.weight + network.decoder.bias)
    elif decoder == "graph":
        torch.testing.assert_close(
            decoded,
            adjacency.to_dense() @ z @ network.decoder.convolution.weight + network.decoder.bias,
            rtol=1e-4,
            atol=1e-5,
        )
    else:
        assert decoded.min() > -1  # the lower bound of ELU, which an affine decoder does not have


def test_network_settings_are_wired(x, adjacency):
    config = NetworkConfig(feature_widths=(9, 5), graph_hidden=7, graph_latent=3, dropout=0.4)
    network = AMILSTNetwork(C, config)
    assert [block.linear.weight.shape[1] for block in network.encoder.blocks] == [9, 5]
    assert network.graph_encoder.hidden.weight.shape == (5, 7)
    assert network.graph_encoder.mean.weight.shape == (7, 3)
    assert {block.dropout for block in network.encoder.blocks} | {network.graph_encoder.dropout} == {0.4}
    assert network(x, adjacency).latent.shape == (N, 8)
