"""The training loop: players, their losses, their order, and what is recorded of each epoch."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from . import losses
from .cluster.kmeans import KMeans
from .config import NetworkConfig, TrainConfig
from .errors import TrainingDivergedError
from .graph import SpatialGraph
from .nn.discriminators import BilinearDiscriminator, Generator, PairDiscriminator, PriorDiscriminator
from .nn.layers import BatchNorm
from .nn.network import AMILSTNetwork, NetworkOutput
from .nn.sparse import SymmetricAdjacency
from .runtime import make_generator, spawn_seeds, threads_for

__all__ = ["Callback", "Trainer", "TrainingResult", "train"]

Callback = Callable[[int, int, dict[str, float]], None]
"""Called with the epoch (from 1), the number of epochs and that epoch's losses by name."""

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
    reconstruction : Tensor, (N, [M,] C)
        What the decoder makes of them.
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
        self.features = features[torch.from_numpy(graph.order)].to(self.device, torch.float32)
        self.adjacency = SymmetricAdjacency(graph.adjacency()).to(self.device)
        self._prepare_links(graph)

        # weights are drawn on the CPU, so that every device starts from the same ones
        weight_seed, noise_seed = spawn_seeds(seed, 2)
        weights = make_generator(weight_seed)
        self.noise = make_generator(noise_seed, self.device)
        members = None if self.config.members == 1 else self.config.members
        self.network = AMILSTNetwork(features.shape[1], network_config, members, generator=weights).to(
            self.device
        )
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

    def _prepare_links(self, graph: SpatialGraph) -> None:
        """Neighbour lists for the link terms, in the graph's own order."""
        edges = graph.edges
        if self.config.link_loss == "masked":
            self.upper = edges[:, edges[0] < edges[1]].to(self.device)
            return
        degrees = torch.bincount(edges[0], minlength=graph.n_spots)
        # a spot without neighbours is paired with itself
        self.start = (degrees.cumsum(0) - degrees).to(self.device)
        self.degree = degrees.to(self.device)
        self.neighbors = torch.cat([edges[1], edges.new_zeros(1)]).to(self.device)

    # --- the losses -------------------------------------------------------------------------

    def _forward(self) -> NetworkOutput:
        return self.network(
            self.features,
            self.adjacency,
            corruption=self.config.corruption,
            corrupt_per=self.config.corrupt_per,
            generator=self.noise,
        )

    def _links(self, latent: Tensor) -> Tensor:
        if self.config.link_loss == "masked":
            return losses.masked_link_loss(latent, self.upper)
        n = latent.shape[0]
        spots = torch.arange(n, device=self.device)
        draw = torch.rand(n, device=self.device, generator=self.noise)
        step = (draw * self.degree).long().clamp_max(self.degree.clamp_min(1) - 1)
        partners = torch.where(self.degree > 0, self.neighbors[self.start + step], spots)
        others = torch.randperm(n, device=self.device, generator=self.noise)
        return losses.positive_link_loss(latent, spots, partners) + losses.negative_link_loss(
            latent, spots, others
        )

    def _terms(self, output: NetworkOutput) -> dict[str, Tensor]:
        """The network's own terms, each a scalar or (M,)."""
        return {
            "reconstruction": losses.reconstruction_error(output.reconstruction, self.features),
            "links": self._links(output.latent),
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
        output = self._forward()
        terms = self._terms(output)
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
                losses.soft_assignment(self.evaluate().latent, self.network.centers)
            )
        output = self._forward()
        terms = self._clustered_terms(output)
        self._step("network", self._weighted(terms))

        f, g = output.f.detach(), output.g.detach()
        noise = self._draw_noise(g)
        made = self.generator(noise)
        fake = made.detach()
        prior_loss = -losses.jensen_shannon(self.prior(f), self.prior(fake))
        self._step("prior", prior_loss)
        discriminator_loss = -losses.jensen_shannon(self.discriminator(f, g), self.discriminator(fake, noise))
        self._step("discriminator", discriminator_loss)

        output = self._forward()
        terms = self._clustered_terms(output)
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

    def _clustered_terms(self, output: NetworkOutput) -> dict[str, Tensor]:
        terms = self._terms(output)
        q = losses.soft_assignment(output.latent, self.network.centers)
        terms["clustering"] = losses.clustering_divergence(self.target, q)
        return terms

    def _place_centers(self) -> None:
        """Start the clustering term from k-means on the embedding, member by member."""
        latent = self.evaluate().latent
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

        The running ones lag behind (momentum 0.01) and were gathered on masked input: with them
        the network would compute something else in evaluation than what it was trained for.
        """
        self.network.eval()
        with ExitStack() as stack:
            for module in self.network.modules():
                if isinstance(module, BatchNorm):
                    stack.enter_context(module.measuring())
            self.network(self.features, self.adjacency)
        self.network.train()

    # --- the whole --------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self) -> NetworkOutput:
        """A pass of the uncorrupted features in evaluation mode, in the graph's order."""
        self.network.eval()
        output = self.network(self.features, self.adjacency)
        self.network.train()
        return output

    def run(self, callback: Callback | None = None) -> TrainingResult:
        """All epochs, then the embeddings in the caller's order."""
        with threads_for(len(self.features) * self.config.members):
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
        if not self.published:
            self._calibrate()
        output = self.evaluate()
        self.network.eval()
        rank = self.rank.to(self.device)
        return TrainingResult(
            self.network, output.f[rank], output.g[rank], output.reconstruction[rank], recorder.history
        )


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
