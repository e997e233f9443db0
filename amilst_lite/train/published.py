"""The published two-phase recipe, for comparison with the published program (DESIGN, section 4).

Phase one trains the autoencoders. Phase two adds the clustering term (DEC), the adversarial steps against
D(f, g) and D2(f), and an adversarial step of the encoder. Corrected relative to the published program: logits
instead of logarithms of a linear output (NaN); noise on the device; one forward pass for the main step and the
adversaries, one for the encoder's adversarial step (five before), whose f and g both come from that pass (the
published one joined f of an earlier pass with g of a later one).

Biases before batch normalization have zero true gradient, so that Adam, which divides gradients by their size,
turns their rounding into steps: results of this recipe agree between devices and kernels to a few thousandths of
the scale of f only.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..cluster.kmeans import KMeans
from ..nn import losses
from ..nn.layers import lead
from ..nn.model import Generator, NetworkOutput, PairDiscriminator, PriorDiscriminator
from .batches import Batch
from .loop import Callback, Recorder, Trainer

__all__ = ["PublishedTrainer"]

_N_CENTERS = 10
_CLUSTERING_WEIGHT = 10.0
_REFRESH = 20  # epochs between two targets of the clustering term
_ENCODER_SHARE, _LINK_FACTOR = 0.7, 1.1  # of the other terms in the encoder's adversarial step


class PublishedTrainer(Trainer):
    """`Trainer` by the published recipe; ``epochs`` is the length of each of its two phases."""

    weight_decay = 0.01
    reconstruction_weight = 10.0

    def _make_adversaries(self, weights: torch.Generator) -> None:
        n_f, n_g = self.network.n_f, self.network.n_g
        self.discriminator = self._adversary(
            "discriminator", PairDiscriminator(n_f, n_g, self.members, generator=weights)
        )
        self.prior = self._adversary("prior", PriorDiscriminator(n_f, self.members, generator=weights))
        self.generator = self._adversary("generator", Generator(n_g, n_f, self.members, generator=weights))
        # centers of the clustering term, trained with the network
        self.centers = nn.Parameter(
            torch.zeros(*lead(self.members), _N_CENTERS, n_f + n_g, device=self.device)
        )
        self.optimizers["network"].parameters.append(self.centers)
        self.target = torch.empty(0)

    def _links(self, latent: Tensor, batch: Batch) -> Tensor:
        return losses.masked_link_loss(latent, batch.upper)

    def _train(self, callback: Callback | None) -> dict[str, list[float]]:
        n_epochs = self.config.epochs
        recorder = Recorder(2 * n_epochs, callback)
        for _ in range(n_epochs):
            recorder.add(self._epoch())
        self._place_centers()
        for epoch in range(n_epochs):
            if epoch % _REFRESH == 0:
                q = losses.soft_assignment(self._embed(), self.centers.detach())
                self.target = losses.target_distribution(q)
            recorder.add(self._adversarial_epoch())
        return recorder.history

    def _epoch(self) -> dict[str, Tensor]:
        """Phase one: a step on the autoencoders' terms."""
        batch = self._next_batch()
        terms = self._terms(self._forward(batch), batch)
        loss = self._weighted(terms)
        self._step("network", loss)
        return {**terms, "network": loss}

    def _adversarial_epoch(self) -> dict[str, Tensor]:
        """Phase two: network, D2, D, the encoder against D, generator."""
        batch = self._next_batch()
        output = self._forward(batch)
        self._step("network", self._weighted(self._clustered_terms(output, batch)))

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
        adversarial = F.softplus(-self.discriminator(output.f, output.g)).mean(0)
        loss = self.config.mutual_information_weight * adversarial + _ENCODER_SHARE * self._weighted(
            terms, _LINK_FACTOR
        )
        self._step("network", loss)
        generator_loss = F.softplus(-self.discriminator(made, noise)).mean(0)
        generator_loss = generator_loss + F.softplus(-self.prior(made)).mean(0)
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
        q = losses.soft_assignment(output.latent, self.centers)
        terms["clustering"] = losses.clustering_divergence(self.target[batch.rows], q)
        return terms

    def _weighted(self, terms: dict[str, Tensor], link_factor: float = 1.0) -> Tensor:
        total = super()._weighted(terms, link_factor)
        return total + _CLUSTERING_WEIGHT * terms["clustering"] if "clustering" in terms else total

    def _embed(self) -> Tensor:
        """z of every spot, (N, [M,] n_f + n_g)."""
        return torch.cat([self._evaluate(batch).latent for batch in self.batches])

    def _place_centers(self) -> None:
        """Start the clustering term from k-means on the embedding, network by network."""
        latent = self._embed()
        columns = latent.unsqueeze(1) if self.members is None else latent
        centers = [
            KMeans(_N_CENTERS, n_init=2 * _N_CENTERS, random_state=self.seed, device=self.device)
            .fit(columns[:, member])
            .cluster_centers_
            for member in range(columns.shape[1])
        ]
        placed = torch.as_tensor(np.stack(centers), dtype=torch.float32)
        with torch.no_grad():
            self.centers.copy_(placed.view(self.centers.shape))
