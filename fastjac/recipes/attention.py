"""Scaled dot-product attention, recomputed from what the fused operation saved.

``out = P V`` with ``P = softmax(S)`` and ``S = scale Q K^T + mask``. Each product is
linear in either factor, and the other factor, or P, is the weight of its rule.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastjac.edges import Edge
from fastjac.graph import Arc, Unsupported, Value, meta
from fastjac.rules.base import Rule
from fastjac.rules.linear import MatrixProduct
from fastjac.rules.shape import Expand, Permute
from fastjac.rules.softmax import Softmax

QUERY, KEY, VALUE, MASK = range(4)


def attention(arc: Arc) -> list[Edge]:
    """Return the edges of all arguments, by way of the scores S, at the first arc."""
    if arc.argument != min(arc.varying):
        return []
    query, key, value = (arc.saved(name) for name in ("query", "key", "value"))
    if arc.saved("dropout_p") > 0:
        raise Unsupported(arc.node, "dropout inside of fused attention")
    if key.shape[:-2] != query.shape[:-2]:
        raise Unsupported(arc.node, "fewer heads of keys than of queries")
    scale = _scale(arc, query)
    with torch.enable_grad():
        scores = query @ key.mT * scale + _mask(arc, query, key)
        probabilities, keys = scores.softmax(-1), key.mT
    shape, last = probabilities.shape, probabilities.dim() - 1
    between: Value = (arc.node, "scores")  # type: ignore[assignment]
    ways: dict[int, tuple[Value, list[Rule]]] = {
        QUERY: (between, [MatrixProduct(keys, "right", scale)]),
        KEY: (between, [_swap(last + 1), MatrixProduct(query, "left", scale)]),
        VALUE: (arc.target, [MatrixProduct(probabilities, "left")]),
        MASK: (between, []),
    }
    edges = []
    if arc.varying & {QUERY, KEY, MASK}:
        rules = [Softmax(probabilities, last), MatrixProduct(value, "right")]
        edges.append(_edge(between, arc.target, rules, shape))
    for argument in sorted(arc.varying):
        source = arc.node.next_functions[argument]
        target, rules = ways[argument]
        in_shape = torch.Size(meta(source).shape)
        if argument == MASK:
            rules = [Expand(in_shape, shape)]
        edges.append(_edge(source, target, rules, in_shape))
    return edges


def _edge(source: Value, target: Value, rules: list[Rule], shape: torch.Size) -> Edge:
    for rule in rules:
        rule.elements = shape.numel()
    return Edge(source, target, rules)


def _scale(arc: Arc, query: Tensor) -> float:
    scale = arc.saved("scale")
    return query.shape[-1] ** -0.5 if scale is None else float(scale)


def _mask(arc: Arc, query: Tensor, key: Tensor) -> Tensor | float:
    """Return what is added to the scores."""
    if arc.saved("is_causal"):
        future = query.new_full((query.shape[-2], key.shape[-2]), float("-inf"))
        return future.triu(1)
    for name in ("attn_mask", "attn_bias"):
        mask = arc.saved(name) if arc.saves(name) else None
        if mask is not None:
            return mask
    return 0.0


def _swap(rank: int) -> Permute:
    """Return the transposition of the last two of ``rank`` dimensions."""
    return Permute([*range(rank - 2), rank - 1, rank - 2])
