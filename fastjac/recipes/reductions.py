"""Recipes of pooling and reductions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fastjac.graph import Arc
from fastjac.recipes.shapes import reduced, signed
from fastjac.rules.activation import Gate
from fastjac.rules.base import Rule, Transposed
from fastjac.rules.pooling import Choose, Folded, Route
from fastjac.rules.shape import Expand, Factor, Reshape


def route(spatial: int, saved: str = "result1") -> Callable[[Arc], Rule]:
    """A max pool, by the indices that it saved."""
    return lambda arc: Route(arc.saved(saved), arc.in_shape, spatial)


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
        return Folded(
            lambda u: forward(u, *args),
            lambda rows, like: backward(rows, like, *args),
            arc.in_shape,
            "average",
        )

    return rule


def adaptive_avg_pool(
    forward: Any, backward: Any, spatial: int
) -> Callable[[Arc], Rule]:
    """One of torch's adaptive average pools."""

    def rule(arc: Arc) -> Rule:
        size = arc.out_shape[-spatial:]
        return Folded(lambda u: forward(u, size), backward, arc.in_shape, "average")

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
    """The maximum or minimum along a dimension, by its indices."""
    (dim,) = dimensions(arc.saved("dim"), len(arc.in_shape))
    kept = reduced(arc.in_shape, [dim])
    index = arc.saved("indices").reshape(kept)
    return [
        Choose(index, dim, arc.in_shape[dim]),
        Reshape(kept, arc.out_shape),
    ]


def amax(arc: Arc) -> list[Rule]:
    """Ties share the cotangent evenly, as autograd has it."""
    dims = dimensions(arc.saved("dim"), len(arc.in_shape))
    kept = arc.saved("result").detach().reshape(reduced(arc.in_shape, dims))
    winners = (arc.saved("self").detach() == kept).to(kept.dtype)
    share = winners / winners.sum(dims, keepdim=True)
    return [Gate(share, arc.in_shape), *total(arc, dims)]
