"""The autograd Functions: what a sweep computes, with parameters as inputs.

A total is accumulated together with its gradients in one sweep, and backward only
scales them. Per-sample norms and the rows themselves need the upstream gradient first,
so their backward runs a second sweep.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from fastjac.linearization import Linearization
from fastjac.sweep import Sweep


def total_squared_norm(
    linearization: Linearization, seeds: Tensor, chunk: int | None = None
) -> Tensor:
    """Return ``sum_i sum_r ||row_r(x_i)||^2`` as a differentiable scalar."""
    sweep = Sweep(linearization, seeds, chunk)
    return _Total.apply(sweep, seeds, *linearization.weights)


def squared_norms(
    linearization: Linearization, seeds: Tensor, chunk: int | None = None
) -> Tensor:
    """Return ``sum_r ||row_r(x_i)||^2`` for each sample, (N,), differentiable."""
    sweep = Sweep(linearization, seeds, chunk)
    return _SquaredNorms.apply(sweep, seeds, *linearization.weights)


def pull(
    linearization: Linearization, seeds: Tensor, chunk: int | None = None
) -> Tensor:
    """Return the rows (N, R, *x.shape[1:]), differentiable in weights and seeds."""
    sweep = Sweep(linearization, seeds, chunk)
    return _Pull.apply(sweep, seeds, *linearization.weights)


class _Context(FunctionCtx):
    """What the Functions below keep between forward and backward."""

    sweep: Sweep
    versions: list[int]
    gradients: list[Tensor | None]
    needs_input_grad: tuple[bool, ...]


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Context, sweep: Sweep, seeds: Tensor, *weights: Tensor) -> Tensor:
        wanted = _wanted(ctx, sweep)
        if not wanted and not ctx.needs_input_grad[1]:
            return sweep.squared_norms().sum()
        norms, found, seeds_gradient = sweep.squared_norms_and_gradients(
            wanted, ctx.needs_input_grad[1]
        )
        ctx.gradients = [seeds_gradient, *_placed(ctx, found)]
        return norms.sum()

    @staticmethod
    def backward(ctx: _Context, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients = [
            None if gradient is None else gradient * upstream.to(gradient.dtype)
            for gradient in ctx.gradients
        ]
        return _returned(gradients)


class _SquaredNorms(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Context, sweep: Sweep, seeds: Tensor, *weights: Tensor) -> Tensor:
        _remember(ctx, sweep)
        return sweep.squared_norms()

    @staticmethod
    def backward(ctx: _Context, upstream: Tensor) -> tuple[Tensor | None, ...]:
        sweep = _recall(ctx)
        _, found, seeds_gradient = sweep.squared_norms_and_gradients(
            _wanted(ctx, sweep), ctx.needs_input_grad[1], scale=upstream
        )
        return _returned([seeds_gradient, *_placed(ctx, found)])


class _Pull(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Context, sweep: Sweep, seeds: Tensor, *weights: Tensor) -> Tensor:
        _remember(ctx, sweep)
        return sweep.pull()

    @staticmethod
    def backward(ctx: _Context, upstream: Tensor) -> tuple[Tensor | None, ...]:
        sweep = _recall(ctx)
        found, seeds_gradient = sweep.row_gradients(
            upstream, _wanted(ctx, sweep), ctx.needs_input_grad[1]
        )
        return _returned([seeds_gradient, *_placed(ctx, found)])


def _wanted(ctx: _Context, sweep: Sweep) -> list[Tensor]:
    weights = sweep.linearization.weights
    return [w for w, needs in zip(weights, ctx.needs_input_grad[2:]) if needs]


def _placed(ctx: _Context, found: list[Tensor | None]) -> list[Tensor | None]:
    """Put the gradients that were wanted at their weights' positions."""
    gradients = iter(found)
    return [next(gradients) if needs else None for needs in ctx.needs_input_grad[2:]]


def _remember(ctx: _Context, sweep: Sweep) -> None:
    ctx.sweep = sweep
    ctx.versions = [w._version for w in sweep.linearization.weights]


def _recall(ctx: _Context) -> Sweep:
    """Return the sweep, unless its weights have been changed since forward."""
    for weight, version in zip(ctx.sweep.linearization.weights, ctx.versions):
        if weight._version != version:
            raise RuntimeError(
                f"a weight of shape {tuple(weight.shape)} was modified in place after "
                "the penalty's forward pass; call backward() before optimizer.step()"
            )
    return ctx.sweep


def _returned(gradients: list[Tensor | None]) -> tuple[Tensor | None, ...]:
    """Return gradients from backward; differentiating them once more raises."""
    if torch.is_grad_enabled():
        gradients = [
            None if g is None else _Final.apply(g.detach().requires_grad_())
            for g in gradients
        ]
    return (None, *gradients)


class _Final(torch.autograd.Function):
    """The identity, which cannot be differentiated."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        raise RuntimeError(
            "fastjac's gradients cannot be differentiated a second time "
            "(create_graph=True); use backend='autograd' for higher derivatives"
        )
