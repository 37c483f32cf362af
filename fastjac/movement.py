"""Chains of rules that only move elements, written shorter and sample by sample.

Attention takes queries, keys and values out of one tensor by permuting it and taking
one index of its first dimension, so that on the way the samples are not in dimension 0.
Index first and permute then, and they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from dataclasses import replace

import torch

from fastjac.edges import Edge
from fastjac.rules.base import Rule
from fastjac.rules.shape import Permute, Reshape, Slice


def views_at_readers(edges: list[Edge], keep: set[Hashable]) -> list[Edge]:
    """Move views at the end of a chain to the chains of those who read its value.

    There they meet the slices that the readers take.
    """
    into = Counter(edge.target for edge in edges)
    readers = Counter(edge.source for edge in edges)
    moved: dict[Hashable, list[Rule]] = {}
    for e, edge in enumerate(edges):
        if edge.target in keep or into[edge.target] > 1 or readers[edge.target] < 2:
            continue
        views = _views_at_end(edge.rules)
        if any(isinstance(rule, Permute) for rule in views):
            moved[edge.target] = views
            edges[e] = replace(edge, rules=edge.rules[: -len(views)])
    return [
        replace(edge, rules=shorter([*moved.get(edge.source, []), *edge.rules]))
        for edge in edges
    ]


def shorter(rules: list[Rule]) -> list[Rule]:
    """Return the same map with views merged, and slices before permutations."""
    done: list[Rule] = []
    for rule in rules:
        if type(rule) is Rule:
            continue
        done.append(rule)
        while _shorten(done):
            pass
    return done


def _shorten(rules: list[Rule]) -> bool:
    """Rewrite the end of a chain; say whether that did anything."""
    match rules[-3:]:
        case [*_, Reshape(in_shape=a), Reshape(out_shape=b)]:
            rules[-2:] = [] if a == b else [_like(rules[-2], Reshape(a, b))]
        case [Permute() as permute, Slice() as part, Reshape() as drop] if _takes_one(
            part, drop
        ):
            rules[-3:] = _slice_first(permute, part, drop)
        case _:
            return False
    return True


def _takes_one(part: Slice, drop: Reshape) -> bool:
    """Whether a slice takes one index, and its dimension is dropped then."""
    left = [*drop.in_shape[: part.dim], *drop.in_shape[part.dim + 1 :]]
    return part.stop - part.start == 1 and list(drop.out_shape) == left


def _slice_first(permute: Permute, part: Slice, drop: Reshape) -> list[Rule]:
    """Return ``permute, slice, drop`` as ``slice, drop, permute``."""
    dims = [dim - 1 for dim in permute.dims[1:]]
    taken = dims[part.dim]
    shape = [0] * len(dims)
    for position, dim in enumerate(dims):
        shape[dim] = drop.in_shape[position]
    kept = [size for dim, size in enumerate(shape) if dim != taken]
    order = [dim - (dim > taken) for dim in dims if dim != taken]
    return [
        _like(part, Slice(taken, part.start, part.stop, part.step, part.size)),
        _like(drop, Reshape(torch.Size(shape), torch.Size(kept))),
        _like(drop, Permute(order)),
    ]


def _views_at_end(rules: list[Rule]) -> list[Rule]:
    start = len(rules)
    while start > 0 and isinstance(rules[start - 1], Reshape | Permute):
        start -= 1
    return rules[start:]


def _like(rule: Rule, other: Rule) -> Rule:
    other.elements = rule.elements
    return other
