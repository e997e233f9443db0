"""Adam without the compiler of torch, whose import takes as long as the training of a small section."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim.adam import adam

__all__ = ["Adam"]


class Adam:
    """Adam (Kingma and Ba 2015): the formulas and the bits of ``torch.optim.Adam`` with its defaults.

    That class imports ``torch._dynamo`` when it is made, the function it calls in each step does not.

    Parameters
    ----------
    parameters : iterable of Tensor
        Leaf tensors of one device.
    learning_rate : float
    weight_decay : float
        Added to the gradients, times the parameters.

    Attributes
    ----------
    parameters : list of Tensor
    learning_rate, weight_decay : float
    """

    def __init__(self, parameters: Iterable[Tensor], learning_rate: float, weight_decay: float = 0.0) -> None:
        self.parameters = list(parameters)
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self._state: dict[Tensor, tuple[Tensor, Tensor, Tensor]] = {}  # moments and number of steps

    def zero_grad(self) -> None:
        """Drop the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """One step of all parameters that have a gradient."""
        moved = [parameter for parameter in self.parameters if parameter.grad is not None]
        for parameter in moved:
            if parameter not in self._state:
                moments = torch.zeros_like(parameter), torch.zeros_like(parameter)
                self._state[parameter] = (*moments, torch.zeros((), dtype=torch.float32))
        state = [self._state[parameter] for parameter in moved]
        adam(
            moved,
            [parameter.grad for parameter in moved],  # type: ignore[misc]
            [mean for mean, _, _ in state],
            [square for _, square, _ in state],
            [],
            [steps for _, _, steps in state],
            # one operation for all parameters; torch does the same by itself on a GPU
            fused=True if moved[0].device.type == "cpu" else None,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=self.learning_rate,
            weight_decay=self.weight_decay,
            eps=1e-8,
            maximize=False,
        )
