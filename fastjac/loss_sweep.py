"""The autograd Function of a loss plus a penalty, both from one sweep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastjac.differentiable import Context, returned, scaled, taken
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
    needs all rows before any is pushed and that they do not fit one chunk, or that
    something in the network that autograd did not see breaks `_adds_up`.
    """
    sweep = Sweep(linearization, seeds, chunk)
    if loss.reduction == "frobenius":
        if len(sweep.chunks) > 1:
            return None
        sweep.shrinkable = False
    inputs = linearization.weights_and_biases
    norms, gradients, products = sweep.norms_and_loss_gradients(
        x, loss.slopes, loss.factor, inputs
    )
    first = len(linearization.weights)
    shifts = [
        (bias, gradient)
        for bias, gradient in zip(inputs[first:], gradients[first:], strict=True)
        if gradient is not None
    ]
    with torch.no_grad():
        slopes = loss.slopes @ sweep.seeds
        if not _adds_up(slopes * linearization.logits, products, shifts):
            return None
    penalty = loss.penalty(norms)
    total = _Both.apply(loss.value + loss.lam * penalty, gradients, *inputs)
    return total, penalty


def _adds_up(
    whole: Tensor, products: list[Tensor], shifts: list[tuple[Tensor, Tensor]]
) -> bool:
    """Whether parts of a slope of the loss add up to ``whole``, to half the digits.

    A network that is linear but for biases has, by Euler, ``z = J x + sum_l J_l b_l``,
    J_l the rows at the output of layer l. Times the loss's slopes g that is

        <g, z> = sum_r g_r <row_r, x> + sum_l <b_l, dL/db_l>

    and it fails where activations were changed behind autograd's back: in place under
    no_grad, or through ``.data``.

    Args:
        whole: ``g * z``, (N, K).
        products: ``g_r <row_r, x>``, of each chunk.
        shifts: each ``b_l`` with ``dL/db_l``, the gradient of the loss alone.
    """
    terms = [product.flatten() for product in products]
    if shifts:
        biases, gradients = zip(*shifts, strict=True)
        terms.append(_flat(biases) * _flat(gradients))
    parts = torch.cat(terms)
    size = parts.abs().sum() + whole.abs().sum()
    limit = torch.finfo(whole.dtype).eps ** 0.5 * size
    return bool((parts.sum() - whole.sum()).abs() <= limit)


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


class _Both(torch.autograd.Function):
    """A loss plus a penalty, whose gradients are known."""

    @staticmethod
    def forward(
        ctx: Context,
        value: Tensor,
        gradients: list[Tensor | None],
        *inputs: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(*inputs)
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Context, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients, kept = taken(ctx)
        return returned(ctx, [None, *scaled(gradients, upstream, in_place=not kept)])
