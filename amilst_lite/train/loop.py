"""Training of the network by the default recipe: losses, order of the steps, and what is recorded.

A step sees the whole section or a tile of it (`batches`). In every epoch the network, the discriminator and
the generator take one step each. Rows are in the graph's space-filling order throughout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..config import NetworkConfig, TrainConfig
from ..distributed import ranks
from ..errors import TrainingDivergedError
from ..nn import losses
from ..nn.layers import BatchNorm
from ..nn.model import AMILSTNetwork, BilinearDiscriminator, Generator, NetworkOutput
from ..nn.sparse import SymmetricAdjacency
from ..progress import advance, begin
from ..runtime import check_needed, make_generator, spawn_seeds, threads_for
from ..spatial.graph import SpatialGraph
from .adam import Adam
from .batches import Batch, largest_core, make_batches

__all__ = ["Callback", "Trainer", "TrainingResult", "embed"]

Callback = Callable[[int, int, dict[str, float]], None]
"""Called with the epoch (from 1), the number of epochs and that epoch's losses by name."""


_RECORD_EVERY = 10  # epochs between two readings of the losses, each of which waits for the GPU
_ADVERSARY_RATE = 0.001  # learning rate of discriminators and generator


@dataclass(frozen=True)
class TrainingResult:
    """The trained network and what it computes.

    Attributes
    ----------
    network : AMILSTNetwork
        In evaluation mode, on the device of the training.
    latent : Tensor, (N, [M,] n_f + n_g)
        z = [f, g], the embeddings of the uncorrupted features, in the order of the features given.
    reconstruction : Tensor, (N, C), or None
        Output of the decoder, mean over the M networks; None if it was not asked for.
    history : dict of str to list of float
        One value per epoch (mean over networks) for every term; ``epoch`` counts from 1.
    """

    network: AMILSTNetwork
    latent: Tensor
    reconstruction: Tensor | None
    history: dict[str, list[float]]

    @property
    def f(self) -> Tensor:
        """(N, [M,] n_f), a part of ``latent``."""
        return self.latent[..., : self.network.n_f]

    @property
    def g(self) -> Tensor:
        """(N, [M,] n_g), a part of ``latent``."""
        return self.latent[..., self.network.n_f :]


class Trainer:
    """State of one training: the network, its adversaries, and an optimizer for each.

    ============== =======================================================================
    network        reconstruction + links + KL − mutual information (f, g of one spot)
    discriminator  distinguishes (f_i, g_i) from (f_π(i), g_i) and from generated pairs (G(ε), ε)
    generator      makes pairs that the discriminator takes for joint ones
    ============== =======================================================================

    Parameters
    ----------
    features : Tensor, (N, C)
        Centered features, rows in the graph's internal order.
    graph : SpatialGraph
        Spatial neighbors of the N spots.
    adjacency : SymmetricAdjacency, optional
        Â of the graph on ``device``, if it has been made before.
    network_config, config
        Architecture of the network; objective and optimization.
    seed : int
        Decides initial weights, masks, noise and sampled pairs. No global generator is touched.
    device : torch.device or str
        Where to train.
    """

    weight_decay = 1e-4
    reconstruction_weight = 100.0

    def __init__(
        self,
        features: Tensor,
        graph: SpatialGraph,
        *,
        adjacency: SymmetricAdjacency | None = None,
        network_config: NetworkConfig | None = None,
        config: TrainConfig | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.config = TrainConfig() if config is None else config
        network_config = NetworkConfig() if network_config is None else network_config
        self.device = torch.device(device)
        self.seed = seed
        self.features = features.to(self.device, torch.float32)

        # weights are drawn on the CPU, so that every device starts from the same ones
        weight_seed, noise_seed, tile_seed = spawn_seeds(seed, 3)
        weights = make_generator(weight_seed)
        group = ranks()
        if group.size > 1:  # other masks and noise for other spots
            noise_seed = spawn_seeds(noise_seed, group.size)[group.rank]
        self.noise = make_generator(noise_seed, self.device)
        self.n_networks = self.config.n_networks
        self.members = None if self.n_networks == 1 else self.n_networks
        self.network = AMILSTNetwork(features.shape[1], network_config, self.members, generator=weights).to(
            self.device
        )
        with threads_for(0):  # small integer operations, which wait for their threads
            self.batches = make_batches(
                graph, self.config.batch_size, self.network.hops, self.device, adjacency
            )
        self._tiles = make_generator(tile_seed)
        self._sweep: list[int] = []
        self.optimizers = {
            "network": Adam(self.network.parameters(), self.config.learning_rate, self.weight_decay)
        }
        self._make_adversaries(weights)

    def _make_adversaries(self, weights: torch.Generator) -> None:
        n_f, n_g = self.network.n_f, self.network.n_g
        self.discriminator: nn.Module = self._adversary(
            "discriminator", BilinearDiscriminator(n_f, n_g, self.members, generator=weights)
        )
        self.generator = self._adversary("generator", Generator(n_g, n_f, self.members, generator=weights))

    def _adversary(self, name: str, module: nn.Module) -> nn.Module:
        """The module on the device, with an optimizer of its own."""
        module = module.to(self.device)
        self.optimizers[name] = Adam(module.parameters(), _ADVERSARY_RATE)
        return module

    # --- losses -----------------------------------------------------------------------------

    def _next_batch(self) -> Batch:
        """The tile of the next step; every sweep goes through all of them in a new order."""
        if len(self.batches) == 1:
            return self.batches[0]
        if not self._sweep:
            self._sweep = torch.randperm(len(self.batches), generator=self._tiles).tolist()
        return self.batches[self._sweep.pop()]

    def _forward(self, batch: Batch) -> NetworkOutput:
        """A pass over core and halo; the output is that of the core."""
        output = self.network(
            self.features[batch.nodes],
            batch.adjacency,
            corruption=self.config.corruption,
            generator=self.noise,
        )
        return output.of(batch.core)

    def _links(self, latent: Tensor, batch: Batch) -> Tensor:
        """Each spot with one of its neighbors against each spot with a random one."""
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
        """The autoencoders' terms, each a scalar or (M,)."""
        return {
            "reconstruction": losses.reconstruction_error(output.reconstruction, self.features[batch.rows]),
            "links": self._links(output.latent, batch),
            "kl": losses.gaussian_kl(output.mean, output.log_sigma),
        }

    def _weighted(self, terms: dict[str, Tensor], link_factor: float = 1.0) -> Tensor:
        link_weight = link_factor * self.config.link_weight
        return self.reconstruction_weight * terms["reconstruction"] + link_weight * (
            terms["links"] + terms["kl"]
        )

    def _shuffled(self, f: Tensor) -> Tensor:
        return losses.gather(f, torch.randperm(f.shape[0], device=self.device, generator=self.noise))

    def _draw_noise(self, like: Tensor) -> Tensor:
        return torch.empty_like(like).normal_(generator=self.noise)

    # --- one epoch --------------------------------------------------------------------------

    def _step(self, name: str, loss: Tensor) -> None:
        """One optimization step of one module; gradients of the other modules are left alone.

        With several ranks, each has a tile of its own, and the gradients are their mean.
        """
        optimizer = self.optimizers[name]
        optimizer.zero_grad()
        parameters = optimizer.parameters
        loss.sum().backward(inputs=parameters)
        group = ranks()
        if group.size > 1:
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            for gradient, total in zip(gradients, group.total(*gradients), strict=True):
                gradient.copy_(total / group.size)
        optimizer.step()

    def _epoch(self) -> dict[str, Tensor]:
        """One step of the network, then of the discriminator and of the generator."""
        batch = self._next_batch()
        output = self._forward(batch)
        terms = self._terms(output, batch)
        loss = self._weighted(terms)
        weight = self.config.mutual_information_weight
        if weight > 0:
            information = losses.jensen_shannon(
                self.discriminator(output.f, output.g),
                self.discriminator(self._shuffled(output.f), output.g),
            )
            terms["mutual_information"] = information
            loss = loss - weight * information
        self._step("network", loss)
        terms["network"] = loss
        if weight > 0:
            terms |= self._adversarial_steps(output.f.detach(), output.g.detach())
        return terms

    def _adversarial_steps(self, f: Tensor, g: Tensor) -> dict[str, Tensor]:
        """The discriminator against shuffled and generated pairs, then the generator against it."""
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

    # --- embedding --------------------------------------------------------------------------

    @torch.no_grad()
    def _calibrate(self) -> None:
        """Take the statistics of batch normalization from the whole, uncorrupted section.

        The running ones lag behind (momentum 0.01) and come from masked input, tile by tile: with them the
        network would compute something else in evaluation than in training. One pass for each normalization,
        from the input on, since each depends on those before it.
        """
        for norm in self.network.modules():
            if isinstance(norm, BatchNorm):
                moments = _Moments()
                hook = norm.register_forward_pre_hook(moments.update)
                for batch in self.batches:
                    moments.core = batch.core
                    self._evaluate(batch)
                hook.remove()
                moments.gather()
                norm.running_mean.copy_(moments.mean)
                norm.running_var.copy_(moments.variance)

    def _evaluate(self, batch: Batch) -> NetworkOutput:
        """Output of a batch's core, uncorrupted, in evaluation mode."""
        return _evaluate(self.network, self.features, batch)

    def run(self, callback: Callback | None = None, *, reconstruct: bool = True) -> TrainingResult:
        """Train, then embed every spot; the reconstruction is kept if asked for.

        Raises
        ------
        TrainingDivergedError
            A term, or what the network computes in the end, is not finite.
        """
        rows = largest_core(self.batches)
        with threads_for(rows * self.n_networks):
            self.network.train()
            history = self._train(callback)
            begin("embed")
            self.network.eval()
            found = embed(self.network, self.features, self.batches, reconstruct=reconstruct)
            for name, values in zip(("z", "reconstruction"), found, strict=True):
                if values is not None and not values.isfinite().all():
                    raise TrainingDivergedError(
                        f"the output {name!r} of the network is not finite after epoch {self.config.epochs} of "
                        f"{self.config.epochs}. Check the features for extreme values, or lower learning_rate."
                    )
            return TrainingResult(self.network, *found, history)

    def _train(self, callback: Callback | None) -> dict[str, list[float]]:
        recorder = Recorder(self.config.epochs, callback)
        for _ in range(self.config.epochs):
            check_needed()
            recorder.add(self._epoch())
        self._calibrate()
        return recorder.history


@torch.no_grad()
def _evaluate(network: AMILSTNetwork, features: Tensor, batch: Batch) -> NetworkOutput:
    """Output of a batch's core, uncorrupted, in evaluation mode."""
    training = network.training
    network.eval()
    output = network(features[batch.nodes], batch.adjacency)
    network.train(training)
    return output.of(batch.core)


def embed(
    network: AMILSTNetwork, features: Tensor, batches: Sequence[Batch], *, reconstruct: bool = True
) -> tuple[Tensor, Tensor | None]:
    """What a trained network computes of every spot.

    Parameters
    ----------
    network : AMILSTNetwork
        With M members or none.
    features : Tensor, (N, C)
        In the graph's order.
    batches : sequence of Batch
        See `make_batches`.
    reconstruct : bool
        Return the reconstruction, too.

    Returns
    -------
    latent : Tensor, (N, [M,] n_f + n_g)
        z = [f, g].
    reconstruction : Tensor, (N, C), or None
        Mean over the members.
    """
    # allocated once: no lists of parts beside their concatenation
    members = () if network.members is None else (network.members,)
    latent = features.new_empty((len(features), *members, network.n_f + network.n_g))
    reconstruction = torch.empty_like(features) if reconstruct else None
    for batch in batches:
        output = _evaluate(network, features, batch)
        latent[batch.rows] = output.latent
        if reconstruction is not None:
            decoded = output.reconstruction
            reconstruction[batch.rows] = decoded if decoded.ndim == 2 else decoded.mean(1)
    return latent, reconstruction


class _Moments:
    """Mean and variance of a layer's input over all spots, batch by batch.

    Attributes
    ----------
    core : slice
        Rows of the next input that count; the others are halo.
    """

    def __init__(self) -> None:
        self.core = slice(None)
        self.n = 0
        self.mean = self.squares = torch.zeros(())

    def update(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """A forward pre-hook: merges the moments of an input into the sums (Chan et al. 1979)."""
        x = inputs[0][self.core]
        n, mean = len(x), x.mean(0)
        total = self.n + n
        step = mean - self.mean
        self.squares = self.squares + (x - mean).square().sum(0) + step.square() * (self.n * n / total)
        self.mean = self.mean + step * (n / total)
        self.n = total

    def gather(self) -> None:
        """Merge the moments of all ranks."""
        group = ranks()
        if group.size > 1:
            n = group.sum(self.n)
            mean = group.total(self.mean * (self.n / n))[0].to(self.mean.dtype)
            squares = self.squares + self.n * (self.mean - mean).square()
            self.squares = group.total(squares)[0].to(self.mean.dtype)
            self.mean, self.n = mean, n

    @property
    def variance(self) -> Tensor:
        """Unbiased, as batch normalization stores it."""
        return self.squares / max(self.n - 1, 1)


class Recorder:
    """Keeps every epoch's terms on the device and reads them every few epochs, all at once.

    A read waits for the device; between reads nothing does.
    """

    def __init__(self, n_epochs: int, callback: Callback | None) -> None:
        self.n_epochs, self.callback = n_epochs, callback
        self.history: dict[str, list[float]] = {"epoch": []}
        self.pending: list[dict[str, Tensor]] = []

    def add(self, terms: dict[str, Tensor]) -> None:
        """Take the terms of the next epoch.

        Raises
        ------
        TrainingDivergedError
            A term that is read is not finite.
        """
        self.pending.append({name: term.detach().mean() for name, term in terms.items()})
        if (
            len(self.pending) >= _RECORD_EVERY
            or len(self.history["epoch"]) + len(self.pending) == self.n_epochs
        ):
            self._read()

    def _read(self) -> None:
        stacked = torch.stack([term for terms in self.pending for term in terms.values()])
        values = iter((ranks().total(stacked)[0] / ranks().size).tolist())
        for terms in self.pending:
            self._append({name: next(values) for name in terms})
        self.pending.clear()

    def _append(self, terms: dict[str, float]) -> None:
        epoch = len(self.history["epoch"]) + 1
        for name, value in terms.items():
            if not math.isfinite(value):
                raise TrainingDivergedError(
                    f"the term {name!r} became {value} in epoch {epoch} of {self.n_epochs}. "
                    "Check the features for extreme values, or lower learning_rate."
                )
        # a term of one phase only has no value in the other
        for name in terms:  # in their order, and not that of a set, which is another in each process
            self.history.setdefault(name, [math.nan] * (epoch - 1))
        for name, series in self.history.items():
            series.append(epoch if name == "epoch" else terms.get(name, math.nan))
        if self.callback is not None:
            self.callback(epoch, self.n_epochs, terms)
        advance(epoch, self.n_epochs)
