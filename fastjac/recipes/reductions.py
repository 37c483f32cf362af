"""Recipes of pooling and reductions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastjac.gate_pool import PoolAxis, pool_axes
from fastjac.graph import Arc, Unsupported
from fastjac.recipes.elementwise import scale
from fastjac.recipes.shapes import reduced, signed
from fastjac.rules.activation import Gate
from fastjac.rules.base import Rule, Transposed
from fastjac.rules.pooling import Average, Choose, Route
from fastjac.rules.shape import Expand, Factor, Reshape
from fastjac.rules.softmax import LogSoftmax, Softmax


def route(
    spatial: int, windows: Callable[[Arc], list[PoolAxis]] | None = None
) -> Callable[[Arc], Rule]:
    """A max pool, by the indices that it saved, and its windows where known."""

    def rule(arc: Arc) -> Rule:
        axes = () if windows is None else windows(arc)
        return Route(arc.saved("result1"), arc.in_shape, spatial, axes)

    return rule


def fixed_windows(arc: Arc) -> list[PoolAxis]:
    """Return the windows of a max pool with a kernel."""
    kernel = arc.saved("kernel_size")
    return pool_axes(
        arc.in_shape[-len(kernel) :],
        arc.out_shape[-len(kernel) :],
        kernel,
        arc.saved("stride") or kernel,
        arc.saved("padding"),
        arc.saved("dilation"),
    )


def adaptive_windows(spatial: int) -> Callable[[Arc], list[PoolAxis]]:
    """Return the windows of an adaptive max pool."""
    return lambda arc: [
        PoolAxis(size, out)
        for size, out in zip(
            arc.in_shape[-spatial:], arc.out_shape[-spatial:], strict=True
        )
    ]


def avg_pool(forward: Any, backward: Any) -> Callable[[Arc], Rule]:
    """One of torch's average pools."""
    options = (
        "kernel_size",
        "stride",
        "padding",
        "ceil_mode",
        "count_include_pad",
        "divisor_override",
    )

    def rule(arc: Arc) -> Rule:
        args = [arc.saved(option) for option in options]
        kernel, stride, padding, ceil_mode, _, divisor = args
        apart = not stride or list(stride) == list(kernel)
        whole = apart and not ceil_mode and not any(padding)
        return Average(
            lambda u: forward(u, *args),
            lambda rows, like: backward(rows, like, *args),
            arc.in_shape,
            window=tuple(kernel) if whole else (),
            scale=1 / (divisor or math.prod(kernel)),
        )

    return rule


def adaptive_avg_pool(
    forward: Any, backward: Any, spatial: int
) -> Callable[[Arc], Rule]:
    """One of torch's adaptive average pools."""

    def rule(arc: Arc) -> Rule:
        size = arc.out_shape[-spatial:]
        planes = arc.in_shape[-spatial:]
        whole = all(i % o == 0 and i for i, o in zip(planes, size, strict=True))
        window = tuple(i // o for i, o in zip(planes, size, strict=True))
        return Average(
            lambda u: forward(u, size),
            backward,
            arc.in_shape,
            window=window if whole else (),
            scale=1 / math.prod(window) if whole else 1.0,
        )

    return rule


def dimensions(dims: Sequence[int] | int, rank: int) -> list[int]:
    """Return reduced dimensions as non-negative integers; none given means all."""
    listed = [dims] if isinstance(dims, int) else list(dims or range(rank))
    return [signed(dim) % max(rank, 1) for dim in listed]


def total(arc: Arc, dims: Sequence[int] | int = ()) -> list[Rule]:
    """A sum over dimensions."""
    shape = arc.in_shape
    kept = reduced(shape, dimensions(dims, len(shape)))
    return [
        Transposed(Expand(kept, shape)),
        Reshape(kept, arc.out_shape),
    ]


def mean(arc: Arc, dims: Sequence[int] | int = ()) -> list[Rule]:
    """A mean over dimensions."""
    count = arc.in_shape.numel() / max(arc.out_shape.numel(), 1)
    return [*total(arc, dims), Factor(1 / count)]


def max_dim(arc: Arc) -> list[Rule]:
    """One element along a dimension, as the maximum or median, by its index."""
    (dim,) = dimensions(arc.saved("dim"), len(arc.in_shape))
    kept = reduced(arc.in_shape, [dim])
    index = arc.saved("indices").reshape(kept)
    return [
        Choose(index, dim, arc.in_shape[dim]),
        Reshape(kept, arc.out_shape),
    ]


def chosen(arc: Arc) -> Rule:
    """Elements of a dimension in another order, as sort and topk take them."""
    (dim,) = dimensions(arc.saved("dim"), len(arc.in_shape))
    return Choose(arc.saved("indices"), dim, arc.in_shape[dim])


def amax(arc: Arc) -> list[Rule]:
    """Ties share the cotangent evenly, as autograd has it."""
    dims = dimensions(arc.saved("dim"), len(arc.in_shape))
    kept = arc.saved("result").detach().reshape(reduced(arc.in_shape, dims))
    winners = (arc.saved("self").detach() == kept).to(kept.dtype)
    share = winners / winners.sum(dims, keepdim=True)
    return [Gate(share, arc.in_shape), *total(arc, dims)]


def softmax(arc: Arc) -> Rule:
    """Probabilities along a dimension."""
    (dim,) = dimensions(arc.saved("dim"), len(arc.in_shape))
    return Softmax(arc.saved("result"), dim)


def log_softmax(arc: Arc) -> Rule:
    """Their logarithm."""
    (dim,) = dimensions(arc.saved("dim"), len(arc.in_shape))
    with torch.enable_grad():
        return LogSoftmax(arc.saved("result").exp(), dim)


def log_sum_exp(arc: Arc) -> list[Rule]:
    """``log sum exp u``: its slopes are the probabilities."""
    dims = dimensions(arc.saved("dim"), len(arc.in_shape))
    kept = reduced(arc.in_shape, dims)
    with torch.enable_grad():
        slopes = (arc.saved("self") - arc.saved("result").reshape(kept)).exp()
    return [scale(arc, slopes, arc.in_shape), *total(arc, dims)]


def euclidean_norm(arc: Arc) -> list[Rule]:
    """The l2 norm over dimensions: slopes u / ||u||, and 0 at 0."""
    if float(arc.saved("ord")) != 2:
        raise Unsupported(arc.node, "a vector norm that is not Euclidean")
    dims = dimensions(arc.saved("dim") or (), len(arc.in_shape))
    kept = reduced(arc.in_shape, dims)
    with torch.enable_grad():
        norm = arc.saved("result").reshape(kept)
        slopes = arc.saved("self") / norm.masked_fill(norm == 0, 1)
    return [scale(arc, slopes, arc.in_shape), *total(arc, dims)]


def variance(arc: Arc) -> list[Rule]:
    """The variance over dimensions; the mean too, for var_mean."""
    dims = dimensions(arc.saved("dim") or (), len(arc.in_shape))
    if arc.target[1] == 1:
        return mean(arc, dims)
    with torch.enable_grad():
        slopes = _variance_slopes(arc, dims)
    return [scale(arc, slopes, arc.in_shape), *total(arc, dims)]


def deviation(arc: Arc) -> list[Rule]:
    """The standard deviation over dimensions; the mean too, for std_mean."""
    dims = dimensions(arc.saved("dim") or (), len(arc.in_shape))
    if arc.target[1] == 1:
        return mean(arc, dims)
    kept = reduced(arc.in_shape, dims)
    name = "result" if arc.saves("result") else "result0"
    with torch.enable_grad():
        slopes = _variance_slopes(arc, dims) / (2 * arc.saved(name).reshape(kept))
    return [scale(arc, slopes, arc.in_shape), *total(arc, dims)]


def _variance_slopes(arc: Arc, dims: list[int]) -> Tensor:
    """Return 2 (u - mean u) / (n - correction)."""
    values = arc.saved("self")
    correction = arc.saved("correction")
    count = arc.in_shape.numel() // max(1, arc.out_shape.numel())
    freedom = max(0.0, count - (1.0 if correction is None else float(correction)))
    return 2 * (values - values.mean(dims, keepdim=True)) / freedom
