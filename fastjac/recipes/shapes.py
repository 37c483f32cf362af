"""Recipes of operations that move, copy and join elements."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from fastjac.graph import Arc, Unsupported, meta, metas, sequence_number
from fastjac.rules.base import Rule
from fastjac.rules.node import Node
from fastjac.rules.shape import Pad, Permute, Reshape, Slice


def signed(integer: int) -> int:
    """Read an integer that autograd shows as unsigned 64-bit."""
    return integer - (1 << 64) if integer >= 1 << 63 else integer


def reduced(shape: torch.Size, dims: list[int]) -> torch.Size:
    """Return a shape with size one in the given dimensions."""
    return torch.Size(1 if d in dims else size for d, size in enumerate(shape))


def reshape(arc: Arc) -> Rule:
    """The same elements in another shape."""
    return Reshape(arc.in_shape, arc.out_shape)


def transpose(arc: Arc) -> Rule:
    """Two dimensions swapped."""
    rank = len(arc.in_shape)
    dims = list(range(rank))
    a, b = (signed(arc.saved(name)) % rank for name in ("dim0", "dim1"))
    dims[a], dims[b] = b, a
    return Permute(dims)


def permute(arc: Arc) -> Rule:
    """All dimensions reordered."""
    rank = len(arc.in_shape)
    return Permute([signed(dim) % rank for dim in arc.saved("dims")])


def strided(arc: Arc) -> Rule:
    """A slice along one dimension."""
    dim = signed(arc.saved("dim")) % len(arc.in_shape)
    start, end, step = (signed(arc.saved(name)) for name in ("start", "end", "step"))
    return Slice(dim, start, end, step, arc.in_shape[dim])


def one(arc: Arc, dim: int, index: int) -> list[Rule]:
    """Take one index of a dimension and drop the dimension."""
    size = arc.in_shape[dim]
    return [
        Slice(dim, index % size, index % size + 1, 1, size),
        Reshape(reduced(arc.in_shape, [dim]), arc.out_shape),
    ]


def select(arc: Arc) -> list[Rule]:
    """One index of a dimension."""
    dim = signed(arc.saved("dim")) % len(arc.in_shape)
    return one(arc, dim, signed(arc.saved("index")))


def unbind(arc: Arc) -> list[Rule]:
    """One of the slices along a dimension."""
    dim = signed(arc.saved("dim")) % len(arc.in_shape)
    return one(arc, dim, arc.target[1])


def split(arc: Arc) -> Rule:
    """One of the parts of a dimension."""
    dim = signed(arc.saved("dim")) % len(arc.in_shape)
    start = sum(part.shape[dim] for part in metas(arc.node)[: arc.target[1]])
    stop = start + arc.out_shape[dim]
    return Slice(dim, start, stop, 1, arc.in_shape[dim])


def cat(arc: Arc) -> Rule:
    """One argument of a concatenation: zeros before and behind it."""
    rank = len(arc.out_shape)
    dim = signed(arc.saved("dim")) % rank
    before = cat_size(arc, dim, range(arc.argument))
    after = cat_size(arc, dim, range(arc.argument + 1, len(arc.node.next_functions)))
    rest = arc.out_shape[dim] - arc.in_shape[dim]
    if before is None:
        if after is None:
            return through_node(arc)
        before = rest - after
    return Pad([0, 0] * (rank - 1 - dim) + [before, rest - before], rank)


def cat_size(arc: Arc, dim: int, arguments: range) -> int | None:
    """Return the joint size of some arguments; None where one is a constant.

    Autograd does not save the size of a constant that was concatenated.
    """
    edges = [arc.node.next_functions[i] for i in arguments]
    if any(edge[0] is None for edge in edges):
        return None
    return sum(meta(edge).shape[dim] for edge in edges)


def stack(arc: Arc) -> list[Rule]:
    """One argument of a stack."""
    rank = len(arc.out_shape)
    dim = signed(arc.saved("dim")) % rank
    single = reduced(arc.out_shape, [dim])
    amounts = [arc.argument, arc.out_shape[dim] - arc.argument - 1]
    return [
        Reshape(arc.in_shape, single),
        Pad([0, 0] * (rank - 1 - dim) + amounts, rank),
    ]


def padded(arc: Arc) -> Rule:
    """Padding with a constant."""
    amounts = [signed(amount) for amount in arc.saved("pad")]
    rank = len(arc.in_shape)
    return Pad(amounts, rank)


def through_node(arc: Arc) -> Rule:
    """A linear operation without a rule of its own."""
    return Node(arc.node, arc.target[1], arc.argument, metas(arc.node))


def as_strided(arc: Arc) -> Rule:
    """A view by strides; where it only renames strides, as pools do, the identity.

    Adaptive pooling to one pixel says so of its channels-last results. The node is
    asked with numbers that are all different.
    """
    if arc.in_shape == arc.out_shape:
        like = metas(arc.node)[arc.target[1]]
        probe = torch.arange(arc.out_shape.numel(), dtype=torch.float64)
        probe = probe.reshape(arc.out_shape).to(like.device)
        if arc.node(probe).equal(probe):
            return Rule()
    return through_node(arc)


def write_into(arc: Arc) -> Rule:
    """A write into a view, ``y[...] = f(y[...])``: through the node if ``f`` is linear.

    Autograd does not show ``f``. Its derivative is probed: where that depends on a
    tensor that requires grad, ``f`` holds a weight or is smooth, and the node alone
    would miss their gradient.
    """
    now = sequence_number()
    with torch.enable_grad():
        rows = [
            torch.randn(m.shape, dtype=m.dtype, device=m.device)
            for m in metas(arc.node)
        ]
        pulled = arc.node(*rows)
    for part in pulled if isinstance(pulled, tuple) else (pulled,):
        if part is not None and part.requires_grad and _varies(part, now):
            raise Unsupported(
                arc.node, "an in-place operation on a view that is not piecewise linear"
            )
    return through_node(arc)


def _varies(part: Tensor, before: int) -> bool:
    """Whether a tensor depends on anything that was computed before, to first order."""
    edges = _edges_to_before(part, before)
    if not edges:
        return False
    gradients = torch.autograd.grad(
        part, edges, torch.randn_like(part), allow_unused=True, retain_graph=True
    )
    return any(g is not None and bool((g != 0).any()) for g in gradients)


def _edges_to_before(part: Tensor, before: int) -> list[GradientEdge]:
    """Return the edges from the graph of ``part`` into the graph that was there."""
    found: dict[tuple[Any, int], GradientEdge] = {}
    stack, seen = [part.grad_fn], set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        for parent, output in node.next_functions:
            if parent is None:
                continue
            if parent._sequence_nr() < before or hasattr(parent, "variable"):
                found[parent, output] = GradientEdge(parent, output)
            else:
                stack.append(parent)
    return list(found.values())


def identity(arc: Arc) -> Rule:
    """The same tensor."""
    return Rule()


def passed(arc: Arc) -> Rule:
    """Tensors passed through, each to the output of its own number."""
    if len(arc.varying) > 1 or arc.target[1] != arc.argument:
        raise Unsupported(arc.node, "several tensors that depend on x in one hook")
    return Rule()
