"""The autograd Functions: what a sweep computes, with parameters as inputs.

A total is accumulated together with its gradients in one sweep, and backward only
scales them. Per-sample norms and the rows themselves need the upstream gradient first,
so their backward runs a second sweep.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from fastjac import native
from fastjac.checks import ChunkSize, check_chunk
from fastjac.eager import eager
from fastjac.linearization import Linearization
from fastjac.sweep import Sweep


def total_squared_norm(
    linearization: Linearization, seeds: Tensor, chunk: int | None = None
) -> Tensor:
    """Return ``sum_i sum_r ||row_r(x_i)||^2`` as a differentiable scalar."""
    sweep = Sweep(linearization, seeds, chunk)
    return _Total.apply(sweep, False, seeds, *linearization.weights)


def frobenius_norm(
    linearization: Linearization, seeds: Tensor, chunk: int | None = None
) -> Tensor:
    """Return the root of `total_squared_norm`; at 0 its gradient is 0."""
    sweep = Sweep(linearization, seeds, chunk)
    return _Total.apply(sweep, True, seeds, *linearization.weights)


def squared_norms(
    linearization: Linearization, seeds: Tensor, chunk: int | None = None
) -> Tensor:
    """Return ``sum_r ||row_r(x_i)||^2`` for each sample, (N,), differentiable."""
    sweep = Sweep(linearization, seeds, chunk)
    return _SquaredNorms.apply(sweep, seeds, *linearization.weights)


@eager
def pull(
    linearization: Linearization, seeds: Tensor, chunk: ChunkSize = None
) -> Tensor:
    """Return rows ``S J(x_i)``: the primitive that everything else is made of.

    Args:
        linearization: from `fastjac.linearize`.
        seeds: (R, K), shared by all samples, or (N, R, K). They may carry gradient.
        chunk: how many (sample, row) pairs to hold at once, or "auto".

    Returns:
        (N, R, *x.shape[1:]), differentiable with respect to weights and seeds.

    Raises:
        ValueError: the seeds' shape does not fit, or ``chunk`` is not positive.

    Example:
        >>> import torch, fastjac
        >>> model = torch.nn.Linear(3, 2)
        >>> x = torch.randn(4, 3, requires_grad=True)
        >>> rows = fastjac.pull(fastjac.linearize(model(x), x), torch.eye(2))
        >>> bool((rows == model.weight).all())
        True
    """
    sweep = Sweep(linearization, seeds, check_chunk(chunk))
    return _Pull.apply(sweep, seeds, *linearization.weights)


class Context(FunctionCtx):
    """What the Functions below keep between forward and backward."""

    sweep: Sweep
    saved_tensors: tuple[Tensor, ...]
    gradients: list[Tensor | None] | None
    inverse_root: Tensor | None
    needs_input_grad: tuple[bool, ...]


class _Total(torch.autograd.Function):
    """The sum of all squared norms, or its root."""

    @staticmethod
    def forward(
        ctx: Context, sweep: Sweep, root: bool, seeds: Tensor, *weights: Tensor
    ) -> Tensor:
        ctx.save_for_backward(seeds, *weights)
        wanted = _wanted(ctx, sweep)
        norms, found, seeds_gradient = sweep.squared_norms_and_gradients(
            wanted, ctx.needs_input_grad[2]
        )
        ctx.gradients = [
            seeds_gradient,
            *placed(ctx, sweep.linearization.weights, found),
        ]
        ctx.inverse_root = norms.inverse_root if root else None
        return norms.root if root else norms.total

    @staticmethod
    def backward(ctx: Context, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients, kept = taken(ctx)
        # What was kept is half the gradient of the sum, and that of the root is
        # 1 / (2 root) of the sum's.
        inverse = ctx.inverse_root
        factor = 2 * upstream if inverse is None else inverse * upstream
        return returned(ctx, [None, *scaled(gradients, factor, in_place=not kept)])


class _SquaredNorms(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, sweep: Sweep, seeds: Tensor, *weights: Tensor) -> Tensor:
        ctx.save_for_backward(seeds, *weights)
        ctx.sweep = sweep
        return sweep.squared_norms()

    @staticmethod
    def backward(ctx: Context, upstream: Tensor) -> tuple[Tensor | None, ...]:
        _ = ctx.saved_tensors  # raises if a weight was changed in place meanwhile
        sweep = ctx.sweep
        _, found, seeds_gradient = sweep.squared_norms_and_gradients(
            _wanted(ctx, sweep), ctx.needs_input_grad[1], scale=2 * upstream
        )
        return returned(
            ctx, [seeds_gradient, *placed(ctx, sweep.linearization.weights, found)]
        )


class _Pull(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, sweep: Sweep, seeds: Tensor, *weights: Tensor) -> Tensor:
        ctx.save_for_backward(seeds, *weights)
        ctx.sweep = sweep
        return sweep.pull()

    @staticmethod
    def backward(ctx: Context, upstream: Tensor) -> tuple[Tensor | None, ...]:
        _ = ctx.saved_tensors  # raises if a weight was changed in place meanwhile
        sweep = ctx.sweep
        found, seeds_gradient = sweep.row_gradients(
            upstream, _wanted(ctx, sweep), ctx.needs_input_grad[1]
        )
        return returned(
            ctx, [seeds_gradient, *placed(ctx, sweep.linearization.weights, found)]
        )


def taken(ctx: Context) -> tuple[list[Tensor | None], bool]:
    """Return the gradients made in forward, and whether they may be asked for again."""
    _ = ctx.saved_tensors  # raises if the graph has been freed
    gradients = ctx.gradients
    assert gradients is not None
    kept = _graph_is_kept()
    if not kept:
        ctx.gradients = None
    return gradients, kept


def scaled(
    gradients: list[Tensor | None], factor: Tensor, *, in_place: bool = False
) -> list[Tensor | None]:
    """Return gradients times a number on their device, by one kernel where possible.

    In place, they are changed where that is possible, and so must not be used again.
    Nobody else has them then, and they are no views, so autograd adds to them in place.
    """
    there = [g for g in gradients if g is not None]
    alike = all(type(g) is Tensor and g.dtype == factor.dtype for g in there)
    if there and alike and all(g.device == factor.device for g in there):
        if in_place:
            if native.waits(factor) or float(factor) != 1:
                torch._foreach_mul_(there, factor)
            return [None if g is None else g.data for g in gradients]
        products = iter(torch._foreach_mul(there, factor))
        return [None if g is None else next(products) for g in gradients]
    return [None if g is None else g * factor.to(g.dtype) for g in gradients]


def _graph_is_kept() -> bool:
    """Whether the backward pass that runs now may be run again."""
    kept = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return kept is None or torch.is_grad_enabled() or bool(kept())


def _wanted(ctx: Context, sweep: Sweep) -> list[Tensor]:
    return needed_of(ctx, sweep.linearization.weights)


def needed_of(ctx: Context, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return those of a Function's last inputs whose gradient is wanted."""
    wanted = ctx.needs_input_grad[len(ctx.needs_input_grad) - len(inputs) :]
    return [w for w, needs in zip(inputs, wanted, strict=True) if needs]


def placed(
    ctx: Context, weights: Sequence[Tensor], found: list[Tensor | None]
) -> list[Tensor | None]:
    """Put the gradients that were wanted at their weights' positions."""
    gradients = iter(found)
    wanted = ctx.needs_input_grad[len(ctx.needs_input_grad) - len(weights) :]
    return [next(gradients) if needs else None for needs in wanted]


def returned(ctx: Context, gradients: list[Tensor | None]) -> tuple[Tensor | None, ...]:
    """Return gradients from backward; differentiating them once more raises.

    They are tied to everything that they depend on, so that no route of a second
    differentiation can miss them and come back with a part of the answer.
    """
    if torch.is_grad_enabled():
        inputs = [t for t in ctx.saved_tensors if t.requires_grad]
        gradients = [None if g is None else _Final.apply(g, *inputs) for g in gradients]
    return (None, *gradients)


class _Final(torch.autograd.Function):
    """A gradient as a function of its inputs, which cannot be differentiated."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *inputs: Tensor) -> Tensor:
        return gradient.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[None, ...]:
        raise RuntimeError(
            "fastjac's gradients cannot be differentiated a second time "
            "(create_graph=True); use backend='autograd' for higher derivatives"
        )
