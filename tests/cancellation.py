"""What float32 may leave open where large terms cancel.

A sum of terms near 1 that comes to 1e-4 has no float32 result to 1e-5 of itself, by any
algorithm: rounding is relative to the terms. How large they are is measured, in
float64, by what becomes of the exact result when each weight and input is changed by
`RELATIVE` of itself, sixteen roundings of float32, up or down at random. For a sum of
products of weights that is `RELATIVE` times the size of its terms; where nothing
cancels it is far below the usual tolerance and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import oracle
import torch
from torch import Tensor, nn

RELATIVE = 1e-6
DRAWS = 5

#: The value and the gradient of every trainable parameter, exact.
Truth = Callable[[nn.Module, Tensor], tuple[Tensor, list[Tensor]]]


class LeftOpen:
    """Largest change of the value and of each gradient; computed when it is asked for.

    Changes that put a ReLU or a max pool on another side do not count.
    """

    def __init__(self, model: nn.Module, x: Tensor, seed: int, truth: Truth) -> None:
        self.model, self.x, self.seed, self.truth = model, x, seed, truth

    @cached_property
    def _changes(self) -> tuple[float, list[float]]:
        value, gradients = self.truth(self.model, self.x)
        of_value, of_gradients = 0.0, [0.0] * len(gradients)
        before = self._pieces(self.x)
        kept = [p.detach().clone() for p in self.model.parameters()]
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(DRAWS):
            try:
                with torch.no_grad():
                    for p in self.model.parameters():
                        p.copy_(_changed(p, generator))
                x = _changed(self.x, generator)
                if not oracle.same_piece(before, self._pieces(x)):
                    continue
                other, others = self.truth(self.model, x)
            finally:
                with torch.no_grad():
                    for p, original in zip(self.model.parameters(), kept, strict=True):
                        p.copy_(original)
            of_value = max(of_value, _distance(value, other))
            pairs = zip(of_gradients, gradients, others, strict=True)
            of_gradients = [max(open, _distance(a, b)) for open, a, b in pairs]
        return of_value, of_gradients

    def value(self) -> float:
        """What is left open of the value."""
        return self._changes[0]

    def gradient(self, index: int) -> float:
        """What is left open of the gradient of one trainable parameter."""
        return self._changes[1][index]

    def _pieces(self, x: Tensor) -> list[Tensor]:
        torch.manual_seed(self.seed)
        return oracle.pieces(self.model, x)


def _changed(tensor: Tensor, generator: torch.Generator) -> Tensor:
    signs = torch.randint(2, tensor.shape, generator=generator) * 2 - 1
    return tensor * (1 + RELATIVE * signs.to(tensor.dtype))


def _distance(one: Tensor, other: Tensor) -> float:
    return (one - other).detach().abs().max().item() if one.numel() else 0.0
