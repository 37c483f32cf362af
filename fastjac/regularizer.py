"""The regularizer of Hoffman, Roberts and Yaida (2019), as a module."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from fastjac import seeds
from fastjac.eager import eager
from fastjac.squares import Squares


class JacobianReg(torch.nn.Module):
    """The regularizer of Hoffman, Roberts and Yaida (2019), call for call.

    ``JacobianReg(n)(x, logits) = 0.5 * mean_i ||J(x_i)||_F^2``, estimated from ``n``
    random unit vectors a sample as in their package (with the same random numbers), or
    exact for ``n=-1``, which costs about as much here as ``n=1`` does there.

    Args:
        n: the number of random projections, or -1 for the exact penalty.

    Example:
        >>> import torch, fastjac
        >>> x = torch.ones(2, 3, requires_grad=True)
        >>> logits = torch.stack([x.sum(1), 2 * x.sum(1)], dim=1)
        >>> float(fastjac.JacobianReg(n=-1)(x, logits))
        7.5
    """

    def __init__(self, n: int = 1) -> None:
        super().__init__()
        if not isinstance(n, int) or not (n == -1 or n > 0):
            raise ValueError(f"`n` must be -1 or a positive integer; got {n!r}")
        self.n = n

    @eager
    def forward(self, x: Tensor, logits: Tensor) -> Tensor:
        """Return the penalty, a scalar, for ``logits`` computed from ``x``."""
        if self.n == -1:
            chosen: Callable[[Tensor], Tensor] = seeds.jacobian
        else:
            chosen = partial(seeds.hoffman, self.n)
        return 0.5 * Squares(chosen, "mean").of_graph(logits, x)
