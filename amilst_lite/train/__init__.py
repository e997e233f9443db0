"""Training of the network: the default recipe, the published one, and tiles of large sections."""

from __future__ import annotations

from .batches import default_n_networks
from .loop import Callback, Trainer, TrainingResult
from .published import PublishedTrainer

__all__ = ["TRAINERS", "Callback", "PublishedTrainer", "Trainer", "TrainingResult", "default_n_networks"]

TRAINERS: dict[str, type[Trainer]] = {"default": Trainer, "published": PublishedTrainer}
"""The trainer of each choice of the setting ``recipe``."""
