"""The training loop: players, their losses, their order, and what is recorded of each epoch.

A step sees the whole section or a tile of it (`batches`). An epoch is a step of every player.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from . import losses
from .batches import Batch, make_batches
from .cluster.kmeans import KMeans
from .config import NetworkConfig, TrainConfig
from .errors import TrainingDivergedError
from .estimate import batch_size
from .graph import SpatialGraph
from .nn.discriminators import BilinearDiscriminator, Generator, PairDiscriminator, PriorDiscriminator
from .nn.layers import BatchNorm
from .nn.network import AMILSTNetwork, NetworkOutput
from .runtime import make_generator, spawn_seeds, threads_for

__all__ = ["Callback", "Trainer", "TrainingResult", "train"]

Callback = Callable[[int, int, dict[str, float]], None]
"""Called with the epoch (from 1), the number of epochs and that epoch's losses by name."""

logger = logging.getLogger("amilst_lite")

_DEC_REFRESH = 20  # epochs between two targets of the clustering term (DESIGN, section 4)


@dataclass(frozen=True)
class TrainingResult:
    """What a training leaves.

    Attributes
    ----------
    network : AMILSTNetwork
        Trained, in evaluation mode, on the device of the training.
    f, g : Tensor, (N, [M,] ·)
        Embeddings of the uncorrupted features, in the order in which they were given.
    reconstruction : Tensor, (N, C)
        What the decoder makes of them, mean over members.
    history : dict of str to list of float
        One value an epoch (mean over members) for every term; ``epoch`` counts from 1.
    """

    network: AMILSTNetwork
    f: Tensor
    g: Tensor
    reconstruction: Tensor
    history: dict[str, list[float]]

    @property
    def latent(self) -> Tensor:
        """z = [f, g]."""
        return torch.cat([self.f, self.g], dim=-1)


def train(
    features: Tensor,
    graph: SpatialGraph,
    *,
    network_config: NetworkConfig | None = None,
    config: TrainConfig | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    callback: Callback | None = None,
) -> TrainingResult:
    """Train the network on one graph.

    Parameters
    ----------
    features : Tensor, (N, C)
        Centred features, rows in the order of the graph's coordinates.
    graph : SpatialGraph
        Spatial neighbours of the N spots.
    network_config, config
        Shape of the network; objective and optimisation.
    seed : int
        Decides initial weights, masks, noise and sampled pairs. No global generator is touched.
    device : torch.device or str
        Where to train.
    callback : callable, optional
        Progress, see `Callback`.

    Raises
    ------
    TrainingDivergedError
        A term is not finite.
    """
    trainer = Trainer(features, graph, network_config=network_config, config=config, seed=seed, device=device)
    return trainer.run(callback)


class Trainer:
    """State of one training: network, players, one optimiser each.

    The players and their losses:

    ============== =======================================================================
    network        reconstruction + links + KL − mutual information (f, g of one spot)
    discriminator  tells (f_i, g_i) from (f_π(i), g_i) and from generated pairs (G(ε), ε)
    prior          (published only) tells f from G(ε)
    generator      makes pairs that the discriminators take for real
    ============== =======================================================================
    """

    def __init__(
        self,
        features: Tensor,
        graph: SpatialGraph,
        *,
        network_config: NetworkConfig | None = None,
        config: TrainConfig | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.config = TrainConfig() if config is None else config
        network_config = NetworkConfig() if network_config is None else network_config
        self.device = torch.device(device)
        self.published = network_config.discriminator == "published"
        self.seed = seed
        self.rank = torch.from_numpy(graph.rank)
        # rows follow the graph's space-filling order while training: neighbours lie close in memory
        order = torch.from_numpy(graph.order).to(features.device)
        self.features = features[order].to(self.device, torch.float32)

        # weights are drawn on the CPU, so that every device starts from the same ones
        weight_seed, noise_seed, tile_seed = spawn_seeds(seed, 3)
        weights = make_generator(weight_seed)
        self.noise = make_generator(noise_seed, self.device)
        members = None if self.config.members == 1 else self.config.members
        self.network = AMILSTNetwork(features.shape[1], network_config, members, generator=weights).to(
            self.device
        )
        self.batches = make_batches(
            graph, batch_size(self.config, self.device), self.network.hops, self.device
        )
        self._tiles = make_generator(tile_seed)
        self._sweep: list[int] = []
        n_f, n_g = self.network.n_f, self.network.n_g
        self.discriminator: nn.Module = (
            PairDiscriminator(n_f, n_g, members, generator=weights)
            if self.published
            else BilinearDiscriminator(n_f, n_g, members, generator=weights)
        ).to(self.device)
        self.prior = PriorDiscriminator(n_f, members, generator=weights).to(self.device)
        self.generator = Generator(n_g, n_f, members, generator=weights).to(self.device)

        c = self.config
        self.optimisers = {
            "network": torch.optim.Adam(
                self.network.parameters(), c.learning_rate, weight_decay=c.weight_decay
            ),
            **{
                name: torch.optim.Adam(getattr(self, name).parameters(), c.player_learning_rate)
                for name in ("discriminator", "prior", "generator")
            },
        }
        self.target = torch.empty(0)  # of the clustering term, set when that begins

    # --- the losses -------------------------------------------------------------------------

    def _next_batch(self) -> Batch:
        """The tile of the next step; every sweep goes through all of them in a new order."""
        if len(self.batches) == 1:
            return self.batches[0]
        if not self._sweep:
            self._sweep = torch.randperm(len(self.batches), generator=self._tiles).tolist()
        return self.batches[self._sweep.pop()]

    def _forward(self, batch: Batch) -> NetworkOutput:
        """A pass over core and halo; what is returned is the core's."""
        output = self.network(
            self.features[batch.nodes],
            batch.adjacency,
            corruption=self.config.corruption,
            corrupt_per=self.config.corrupt_per,
            generator=self.noise,
        )
        return output.of(batch.core)

    def _links(self, latent: Tensor, batch: Batch) -> Tensor:
        if self.config.link_loss == "masked":
            return losses.masked_link_loss(latent, batch.upper)
        start, degree, neighbors = batch.lists
        spots = torch.arange(batch.size, device=self.device)
        draw = torch.rand(batch.size, device=self.device, generator=self.noise)
        step = (draw * degree).long().clamp_max(degree.clamp_min(1) - 1)
        partners = torch.where(degree > 0, neighbors[start + step], spots)
        others = torch.randperm(batch.size, device=self.device, generator=self.noise)
        return losses.positive_link_loss(latent, spots, partners) + losses.negative_link_loss(
            latent, spots, others
        )

    def _terms(self, output: NetworkOutput, batch: Batch) -> dict[str, Tensor]:
        """The network's own terms, each a scalar or (M,)."""
        return {
            "reconstruction": losses.reconstruction_error(output.reconstruction, self.features[batch.rows]),
            "links": self._links(output.latent, batch),
            "kl": losses.gaussian_kl(output.mean, output.log_sigma),
        }

    def _weighted(self, terms: dict[str, Tensor], link_factor: float = 1.0) -> Tensor:
        c = self.config
        total = c.reconstruction_weight * terms["reconstruction"]
        total = total + link_factor * c.link_weight * (terms["links"] + terms["kl"])
        if "clustering" in terms:
            total = total + c.clustering_weight * terms["clustering"]
        return total

    def _shuffled(self, f: Tensor) -> Tensor:
        return losses.gather(f, torch.randperm(f.shape[0], device=self.device, generator=self.noise))

    def _draw_noise(self, like: Tensor) -> Tensor:
        return torch.empty_like(like).normal_(generator=self.noise)

    # --- one epoch --------------------------------------------------------------------------

    def _step(self, name: str, loss: Tensor) -> None:
        """Move one player down its own loss; the other players' gradients are left alone."""
        optimiser = self.optimisers[name]
        optimiser.zero_grad(set_to_none=True)
        parameters = [p for group in optimiser.param_groups for p in group["params"]]
        loss.sum().backward(inputs=parameters)
        optimiser.step()

    def _epoch(self) -> dict[str, Tensor]:
        """One step of the network, then of the discriminator and the generator."""
        batch = self._next_batch()
        output = self._forward(batch)
        terms = self._terms(output, batch)
        loss = self._weighted(terms)
        weight = self.config.mutual_information_weight
        if weight > 0 and not self.published:
            information = losses.jensen_shannon(
                self.discriminator(output.f, output.g),
                self.discriminator(self._shuffled(output.f), output.g),
            )
            terms["mutual_information"] = information
            loss = loss - weight * information
        self._step("network", loss)
        terms["network"] = loss
        if "mutual_information" in terms:
            terms |= self._player_steps(output.f.detach(), output.g.detach())
        return terms

    def _player_steps(self, f: Tensor, g: Tensor) -> dict[str, Tensor]:
        """Discriminator against shuffled and generated pairs, then the generator against it."""
        joint = self.discriminator(f, g)
        discriminator_loss = -losses.jensen_shannon(joint, self.discriminator(self._shuffled(f), g))
        if not self.config.adversary:
            self._step("discriminator", discriminator_loss)
            return {"discriminator": discriminator_loss}
        noise = self._draw_noise(g)
        made = self.generator(noise)
        against_made = -losses.jensen_shannon(joint, self.discriminator(made.detach(), noise))
        discriminator_loss = 0.5 * (discriminator_loss + against_made)
        self._step("discriminator", discriminator_loss)
        generator_loss = nn.functional.softplus(-self.discriminator(made, noise)).mean(0)
        self._step("generator", generator_loss)
        return {"discriminator": discriminator_loss, "generator": generator_loss}

    def _published_adversarial_epoch(self, epoch: int) -> dict[str, Tensor]:
        """One epoch of the published second phase.

        Repaired against the published program: logits instead of logarithms of a linear output;
        noise on the device; one forward pass for the main step and the players, one for the
        encoder's adversarial step (five before), whose f and g are both of that pass (the
        published one joined f of an earlier pass with g of a later one).
        """
        if epoch % _DEC_REFRESH == 0:
            self.target = losses.target_distribution(
                losses.soft_assignment(self._embed(), self.network.centers.detach())
            )
        batch = self._next_batch()
        output = self._forward(batch)
        terms = self._clustered_terms(output, batch)
        self._step("network", self._weighted(terms))

        f, g = output.f.detach(), output.g.detach()
        noise = self._draw_noise(g)
        made = self.generator(noise)
        fake = made.detach()
        prior_loss = -losses.jensen_shannon(self.prior(f), self.prior(fake))
        self._step("prior", prior_loss)
        discriminator_loss = -losses.jensen_shannon(self.discriminator(f, g), self.discriminator(fake, noise))
        self._step("discriminator", discriminator_loss)

        output = self._forward(batch)
        terms = self._clustered_terms(output, batch)
        # −log D of a logit is softplus of its negative
        adversarial = nn.functional.softplus(-self.discriminator(output.f, output.g)).mean(0)
        loss = self.config.mutual_information_weight * adversarial + 0.7 * self._weighted(terms, 1.1)
        self._step("network", loss)
        generator_loss = nn.functional.softplus(-self.discriminator(made, noise)).mean(
            0
        ) + nn.functional.softplus(-self.prior(made)).mean(0)
        self._step("generator", generator_loss)
        return {
            **terms,
            "adversarial": adversarial,
            "network": loss,
            "prior": prior_loss,
            "discriminator": discriminator_loss,
            "generator": generator_loss,
        }

    def _clustered_terms(self, output: NetworkOutput, batch: Batch) -> dict[str, Tensor]:
        terms = self._terms(output, batch)
        q = losses.soft_assignment(output.latent, self.network.centers)
        terms["clustering"] = losses.clustering_divergence(self.target[batch.rows], q)
        return terms

    def _place_centers(self) -> None:
        """Start the clustering term from k-means on the embedding, member by member."""
        latent = self._embed()
        n_centers = self.network.centers.shape[-2]
        columns = latent.unsqueeze(1) if self.network.members is None else latent
        centers = [
            KMeans(n_centers, n_init=2 * n_centers, random_state=self.seed, device=self.device)
            .fit(columns[:, member])
            .cluster_centers_
            for member in range(columns.shape[1])
        ]
        placed = torch.as_tensor(np.stack(centers), dtype=torch.float32)
        with torch.no_grad():
            self.network.centers.copy_(placed.view(self.network.centers.shape))

    @torch.no_grad()
    def _calibrate(self) -> None:
        """Take the statistics of batch normalisation from the whole, uncorrupted section.

        The running ones lag behind (momentum 0.01) and were gathered on masked input, tile by tile: with
        them the network would compute something else in evaluation than what it was trained for. One pass
        for each normalisation, from the input on, since each sees what those before it make.
        """
        for norm in self.network.modules():
            if isinstance(norm, BatchNorm):
                moments = _Moments()
                hook = norm.register_forward_pre_hook(moments.take)
                for batch in self.batches:
                    moments.core = batch.core
                    self._evaluate(batch)
                hook.remove()
                norm.running_mean.copy_(moments.mean)
                norm.running_var.copy_(moments.variance)

    # --- the whole --------------------------------------------------------------------------

    @torch.no_grad()
    def _evaluate(self, batch: Batch) -> NetworkOutput:
        """What the network makes of a batch's core, uncorrupted, in evaluation mode."""
        training = self.network.training
        self.network.eval()
        output = self.network(self.features[batch.nodes], batch.adjacency)
        self.network.train(training)
        return output.of(batch.core)

    def _embed(self) -> Tensor:
        """z of every spot, (N, [M,] n_f + n_g), in the graph's order."""
        return torch.cat([self._evaluate(batch).latent for batch in self.batches])

    def run(self, callback: Callback | None = None) -> TrainingResult:
        """All epochs, then the embeddings in the caller's order."""
        rows = max(batch.size for batch in self.batches)
        with threads_for(rows * self.config.members):
            return self._run(callback)

    def _run(self, callback: Callback | None) -> TrainingResult:
        c = self.config
        n_epochs = c.epochs + c.adversarial_epochs
        recorder = _Recorder(n_epochs, c.record_every, callback)
        self.network.train()
        for epoch in range(c.epochs):
            recorder.add(epoch, self._epoch())
        if c.adversarial_epochs:
            self._place_centers()
        for epoch in range(c.adversarial_epochs):
            recorder.add(c.epochs + epoch, self._published_adversarial_epoch(epoch))
        logger.info("embed")
        if not self.published:
            self._calibrate()
        self.network.eval()
        return self._result(recorder.history)

    def _result(self, history: dict[str, list[float]]) -> TrainingResult:
        """Embeddings and mean reconstruction of every spot, in the caller's order."""
        parts = []
        for batch in self.batches:
            output = self._evaluate(batch)
            decoded = output.reconstruction
            parts.append((output.f, output.g, decoded if decoded.ndim == 2 else decoded.mean(1)))
        rank = self.rank.to(self.device)
        f, g, reconstruction = (torch.cat(part)[rank] for part in zip(*parts, strict=True))
        return TrainingResult(self.network, f, g, reconstruction, history)


class _Moments:
    """Mean and variance of a layer's input over all spots, gathered batch by batch.

    Attributes
    ----------
    core : slice
        Rows of the next input that count; the others are halo.
    """

    def __init__(self) -> None:
        self.core = slice(None)
        self.n = 0
        self.mean = torch.zeros(())
        self.squares = torch.zeros(())

    def take(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """A forward pre-hook: merges the moments of an input into the sums (Chan et al. 1979)."""
        x = inputs[0][self.core]
        n, mean = len(x), x.mean(0)
        total = self.n + n
        step = mean - self.mean
        self.squares = self.squares + (x - mean).square().sum(0) + step.square() * (self.n * n / total)
        self.mean = self.mean + step * (n / total)
        self.n = total

    @property
    def variance(self) -> Tensor:
        """Without bias, as batch normalisation keeps it."""
        return self.squares / max(self.n - 1, 1)


class _Recorder:
    """Keeps every epoch's terms on the device and reads them every few epochs.

    A read waits for the device; between reads nothing does.
    """

    def __init__(self, n_epochs: int, every: int, callback: Callback | None) -> None:
        self.n_epochs, self.every, self.callback = n_epochs, every, callback
        self.history: dict[str, list[float]] = {"epoch": []}
        self.pending: list[tuple[int, dict[str, Tensor]]] = []

    def add(self, epoch: int, terms: dict[str, Tensor]) -> None:
        self.pending.append((epoch, {name: term.detach().mean() for name, term in terms.items()}))
        if len(self.pending) >= self.every or epoch + 1 == self.n_epochs:
            self._read()

    def _read(self) -> None:
        for epoch, terms in self.pending:
            values = dict(zip(terms, torch.stack(list(terms.values())).tolist(), strict=True))
            for name, value in values.items():
                if not math.isfinite(value):
                    raise TrainingDivergedError(
                        f"the term {name!r} became {value} in epoch {epoch + 1} of {self.n_epochs}. "
                        "Check the features for extreme values, or lower learning_rate."
                    )
            # a term that takes part in one phase only has no value in the other
            for name in values.keys() - self.history.keys():
                self.history[name] = [math.nan] * len(self.history["epoch"])
            for name, series in self.history.items():
                series.append(epoch + 1 if name == "epoch" else values.get(name, math.nan))
            if self.callback is not None:
                self.callback(epoch + 1, self.n_epochs, values)
        self.pending.clear()
