"""Training of the network: the default recipe, the published one, and tiles of large sections."""

from __future__ import annotations

from .batches import make_batches
from .loop import Callback, Trainer, TrainingResult, embed
from .published import PublishedTrainer
from .share import ShareEvidence, network_share

__all__ = [
    "TRAINERS",
    "Callback",
    "PublishedTrainer",
    "ShareEvidence",
    "Trainer",
    "TrainingResult",
    "embed",
    "make_batches",
    "network_share",
]

TRAINERS: dict[str, type[Trainer]] = {"default": Trainer, "published": PublishedTrainer}
"""The trainer of each choice of the setting ``recipe``."""
