"""Slopes of smooth activations, whose own derivative autograd asks for.

Autograd has the derivative of any slope, as a dozen operators each of which writes a
tensor of its own. For the activations that networks are mostly made of it is written
out here, in few passes over two tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

Curve = Callable[[Tensor], Tensor]


def by_autograd(function: Callable[..., Tensor], u: Tensor, **options: Any) -> Tensor:
    """Return the slope of ``function`` at u, differentiable once more."""
    with torch.enable_grad():
        value = function(u, **options).sum()
        (slope,) = torch.autograd.grad(value, u, create_graph=True)
    return slope


def gelu(u: Tensor, approximate: str) -> Tensor:
    """Slope of both forms of GELU."""
    backward = partial(torch.ops.aten.gelu_backward, approximate=approximate)
    curvature = tanh_gelu_curvature if approximate == "tanh" else gelu_curvature
    return _slope(u, lambda v: _at(backward, v), curvature)


def silu(u: Tensor) -> Tensor:
    """Slope of ``u sigmoid(u)``."""
    return _slope(u, lambda v: _at(torch.ops.aten.silu_backward, v), silu_curvature)


def gelu_curvature(u: Tensor) -> Tensor:
    """Second derivative of ``u Phi(u)``: ``phi(u) (2 - u^2)``."""
    square = u.square()
    density = square.mul(-0.5).exp_().mul_(1 / math.sqrt(2 * math.pi))
    return square.neg_().add_(2).mul_(density)


def tanh_gelu_curvature(u: Tensor) -> Tensor:
    """Second derivative of ``u (1 + t) / 2``, t = tanh(k u (1 + c u^2)).

    With w = k (1 + 3 c u^2) it is ``(1 - t^2) (w + 3 k c u^2 - u t w^2)``.
    """
    k, c = math.sqrt(2 / math.pi), 0.044715
    square = u.square()
    t = square.mul(c).add_(1).mul_(u).mul_(k).tanh_()
    w = square.mul(3 * c).add_(1).mul_(k)
    last = w.square().mul_(t).mul_(u)
    bracket = square.mul_(3 * k * c).add_(w).sub_(last)
    return t.square_().neg_().add_(1).mul_(bracket)


def silu_curvature(u: Tensor) -> Tensor:
    """Second derivative of ``u s``, s = sigmoid(u): ``s (1 - s) (2 + u (1 - 2 s))``."""
    s = u.sigmoid()
    factor = s.mul(-2).add_(1).mul_(u).add_(2)
    return factor.mul_(s).mul_(s.neg_().add_(1))


def _at(backward: Callable[[Tensor, Tensor], Tensor], u: Tensor) -> Tensor:
    return backward(torch.ones_like(u), u)


def _slope(u: Tensor, slope: Curve, curvature: Curve) -> Tensor:
    with torch.enable_grad():
        return _Slope.apply(u, slope, curvature)


class _Slope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, slope: Curve, curvature: Curve) -> Tensor:
        ctx.save_for_backward(u)
        ctx.curvature = curvature
        return slope(u)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        # Under create_graph the upstream, which comes from a sweep, depends on all
        # weights and raises where it is differentiated: a product with it does too.
        (u,) = ctx.saved_tensors
        with torch.no_grad():
            curvature = ctx.curvature(u)
        if torch.is_grad_enabled():
            return curvature * upstream, None, None
        return curvature.mul_(upstream), None, None
