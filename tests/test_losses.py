"""Every term of the objective against its formula written out with dense arrays."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from amilst_lite.nn import losses

N, C = 40, 5


@pytest.fixture
def latent():
    return torch.randn(N, C, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def ring():
    """Each spot joined to the next: (2, N), each edge once."""
    nodes = torch.arange(N)
    return torch.stack([nodes, (nodes + 1) % N])


def dense_masked_loss(z, edges):
    """The published form: masked logits, masked labels, mean over N² pairs."""
    n = len(z)
    label = torch.eye(n, dtype=z.dtype)
    label[edges[0], edges[1]] = label[edges[1], edges[0]] = 1
    n_edges = label.sum() - n
    norm = n * n / (2 * (n * n - n_edges))
    return norm * F.binary_cross_entropy_with_logits(label * (z @ z.T), label)


def test_masked_link_loss_is_the_published_one_with_its_gradient(latent, ring):
    sparse, dense = latent.clone().requires_grad_(), latent.clone().requires_grad_()
    ours, theirs = losses.masked_link_loss(sparse, ring), dense_masked_loss(dense, ring)
    ours.backward()
    theirs.backward()
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-12)
    torch.testing.assert_close(sparse.grad, dense.grad, rtol=1e-10, atol=1e-14)


def test_sampled_link_losses(latent):
    first, second = torch.arange(N), torch.randperm(N, generator=torch.Generator().manual_seed(0))
    logits = (latent[first] * latent[second]).sum(1)
    expected = F.binary_cross_entropy_with_logits(logits, torch.ones_like(logits))
    torch.testing.assert_close(losses.positive_link_loss(latent, first, second), expected)
    expected = F.binary_cross_entropy_with_logits(logits, torch.zeros_like(logits))
    torch.testing.assert_close(losses.negative_link_loss(latent, first, second), expected)


def test_gather_adds_up_repeated_rows(latent):
    index = torch.tensor([3, 3, 3, 0])
    z = latent.clone().requires_grad_()
    losses.gather(z, index).sum().backward()
    assert z.grad[3].tolist() == [3.0] * C
    assert z.grad[0].tolist() == [1.0] * C
    assert z.grad[1:3].abs().sum() == 0
    assert torch.autograd.gradcheck(
        lambda x: losses.gather(x, index).square(), latent.clone().requires_grad_()
    )


def test_kl_vanishes_at_the_prior_and_follows_torch_elsewhere(latent):
    assert losses.gaussian_kl(torch.zeros(N, C), torch.zeros(N, C)).item() == 0
    log_sigma = 0.3 * latent.flip(0)
    exact = torch.distributions.kl_divergence(
        torch.distributions.Normal(latent, log_sigma.exp()), torch.distributions.Normal(0.0, 1.0)
    )
    expected = exact.sum(1).mean() / N
    torch.testing.assert_close(losses.gaussian_kl(latent, log_sigma), expected)


def test_reconstruction_broadcasts_a_target_without_members(latent):
    target = torch.zeros(N, C, dtype=torch.float64)
    members = torch.stack([latent, 2 * latent], dim=1)
    found = losses.reconstruction_error(members, target)
    assert found.tolist() == pytest.approx([latent.square().mean().item(), 4 * latent.square().mean().item()])


def test_soft_assignment_and_target(latent):
    centers = latent[:3].clone()
    q = losses.soft_assignment(latent, centers)
    distances = torch.cdist(latent, centers)
    expected = 1 / (1 + distances**2)
    torch.testing.assert_close(q, expected / expected.sum(1, keepdim=True))
    p = losses.target_distribution(q)
    weight = q**2 / q.sum(0)
    torch.testing.assert_close(p, weight / weight.sum(1, keepdim=True))
    assert not p.requires_grad
    expected = F.kl_div(q.log(), p, reduction="sum") / p.numel()
    torch.testing.assert_close(losses.clustering_divergence(p, q), expected)
    assert losses.clustering_divergence(q, q).item() == pytest.approx(0, abs=1e-15)


def test_jensen_shannon_for_known_logits():
    nothing = torch.zeros(N)
    assert losses.jensen_shannon(nothing, nothing).item() == pytest.approx(-2 * math.log(2))
    certain = torch.full((N,), 50.0)
    assert losses.jensen_shannon(certain, -certain).item() == pytest.approx(0, abs=1e-12)
    assert losses.jensen_shannon(-certain, certain).item() == pytest.approx(-100)


def test_each_member_has_its_own_loss_and_gradient(latent, ring):
    other = latent.flip(1) * 0.5
    both = torch.stack([latent, other], dim=1).requires_grad_()
    centers = torch.stack([latent[:3], other[:3]])
    terms = (
        losses.masked_link_loss(both, ring)
        + losses.gaussian_kl(both, 0.1 * both)
        + losses.clustering_divergence(
            losses.target_distribution(losses.soft_assignment(both, centers)),
            losses.soft_assignment(both, centers),
        )
    )
    terms.sum().backward()
    assert terms.shape == (2,)
    for member, alone in enumerate((latent, other)):
        z = alone.clone().requires_grad_()
        q = losses.soft_assignment(z, centers[member])
        term = (
            losses.masked_link_loss(z, ring)
            + losses.gaussian_kl(z, 0.1 * z)
            + losses.clustering_divergence(losses.target_distribution(q), q)
        )
        term.backward()
        torch.testing.assert_close(terms[member], term)
        torch.testing.assert_close(both.grad[:, member], z.grad)


def test_memory_of_the_link_loss_is_linear():
    n = 30_000  # N² floats would be 3.6 GB
    nodes = torch.arange(n)
    z = torch.ones(n, 4, requires_grad=True)
    loss = losses.masked_link_loss(z, torch.stack([nodes[:-1], nodes[1:]]))
    loss.backward()
    assert np.isfinite(loss.item())
