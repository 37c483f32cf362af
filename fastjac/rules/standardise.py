"""Values standardised by their own mean and deviation: layer, group, instance norms.

The map depends on x through the result and the deviation of the forward pass, which
are handed to autograd as weights. So the second-order term is their gradient, N samples
and not N R.
"""

from __future__ import annotations

from copy import copy

import torch
from torch import Tensor

from fastjac.rules.base import Rule, Samples, Sums


class Standardise(Rule):
    """``v = (u - mean u) / std u`` over the last dimension of ``u``.

    With the result y and d = 1 / std, both shaped by the forward pass::

        A t = d (t - mean t - y mean(y t))        A^T = A

    ``centred=False`` is ``v = u / rms u``: the mean of t stays.
    """

    moves = False

    def __init__(self, result: Tensor, inverse: Tensor, centred: bool = True) -> None:
        self.weights = (result, inverse)
        self.result, self.inverse = result.detach(), inverse.detach()
        self.centred = centred
        self.per_sample_weights = True

    def pull(self, rows: Tensor) -> Tensor:
        return self._projected(rows).mul_(self.inverse)

    def push(self, tangents: Tensor) -> Tensor:
        return self.pull(tangents)

    def weight_gradients(self, rows: Tensor, tangents: Tensor, sums: Sums) -> None:
        of_result, of_inverse = sums
        if of_result is not None:
            share = self.inverse / -self.result.shape[-1]
            term = rows * _dot(tangents, self.result)
            term.addcmul_(tangents, _dot(rows, self.result))
            of_result.add(term.sum(0).mul_(share))
        if of_inverse is not None:
            of_inverse.add(_dot(rows, self._projected(tangents)).sum(0))

    def narrow(self, samples: Samples) -> Standardise:
        narrowed = copy(self)
        narrowed.result = samples.of(self.result)
        narrowed.inverse = samples.of(self.inverse)
        return narrowed

    def _projected(self, tangents: Tensor) -> Tensor:
        """Return ``t - mean t - y mean(y t)``."""
        share = _dot(tangents, self.result) / self.result.shape[-1]
        if not self.centred:
            return torch.addcmul(tangents, self.result, share, value=-1)
        centred = tangents - tangents.mean(-1, keepdim=True)
        return centred.addcmul_(self.result, share, value=-1)


def _dot(one: Tensor, other: Tensor) -> Tensor:
    """Return inner products along the last dimension, which is kept."""
    return (one * other).sum(-1, keepdim=True)
