"""The autograd Function of a loss plus a penalty, both from one sweep."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastjac.differentiable import Context, needed_of, placed, returned, scaled, taken
from fastjac.linearization import Linearization
from fastjac.norms import Norms
from fastjac.sweep import Sweep


@dataclass(frozen=True)
class Loss:
    """A loss of the logits that a penalty is added to: its value, and its gradient.

    ``slopes`` (N, R) times the penalty's seeds is ``d value / d logits``; the penalty
    has the weight ``lam``, and is a mean, a sum or a root of the sum of the squared
    norms of all rows.
    """

    value: Tensor
    slopes: Tensor
    lam: float
    reduction: str

    def penalty(self, norms: Norms) -> Tensor:
        """Return the penalty."""
        if self.reduction == "frobenius":
            return norms.root
        samples = len(self.slopes) if self.reduction == "mean" else 1
        return norms.total / samples

    def factor(self, norms: Norms) -> Tensor | float:
        """Return ``d (lam * penalty) / d (sum_i norms_i / 2)``."""
        if self.reduction == "frobenius":
            return self.lam * norms.inverse_root
        samples = len(self.slopes) if self.reduction == "mean" else 1
        return 2 * self.lam / samples


def loss_and_penalty(
    linearization: Linearization,
    seeds: Tensor,
    x: Tensor,
    loss: Loss,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor] | None:
    """Return ``loss + lam * penalty``, differentiable, and the penalty, which is not.

    Both gradients come from one sweep; see fastjac/sweep.py. The network must be
    `exact`, and the seeds (R, K) must carry no gradient. None says that the penalty
    needs all rows before any is pushed, and that they do not fit one chunk.
    """
    sweep = Sweep(linearization, seeds, chunk)
    if loss.reduction == "frobenius":
        if len(sweep.chunks) > 1:
            return None
        sweep.shrinkable = False
    inputs = linearization.weights_and_biases
    total, penalty = _Both.apply(sweep, x, loss, *inputs)
    return total, penalty


class _Both(torch.autograd.Function):
    """A loss plus a penalty, and the penalty."""

    @staticmethod
    def forward(
        ctx: Context, sweep: Sweep, x: Tensor, loss: Loss, *inputs: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(*inputs)
        norms, found = sweep.norms_and_loss_gradients(
            x, loss.slopes, loss.factor, needed_of(ctx, inputs)
        )
        ctx.gradients = placed(ctx, inputs, found)
        penalty = loss.penalty(norms)
        ctx.mark_non_differentiable(penalty)
        return loss.value + loss.lam * penalty, penalty

    @staticmethod
    def backward(
        ctx: Context, upstream: Tensor, _: Tensor
    ) -> tuple[Tensor | None, ...]:
        gradients, kept = taken(ctx)
        gradients = scaled(gradients, upstream, in_place=not kept)
        return returned(ctx, [None, None, *gradients])
