"""The edges of a linearised network, and how they are joined to longer chains."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, replace
from itertools import pairwise, takewhile

from fastjac.fusion import gates_at_end
from fastjac.rules.activation import Gate
from fastjac.rules.base import Rule
from fastjac.rules.gated import GatedLayer
from fastjac.rules.head import GatedHead
from fastjac.rules.linear import Linear
from fastjac.rules.outputs import Reader
from fastjac.rules.shape import Reshape


@dataclass(frozen=True)
class Edge:
    """A chain of rules from one value to another, in the order of the forward pass."""

    source: Hashable
    target: Hashable
    rules: list[Rule]


def joined(edges: list[Edge], keep: set[Hashable]) -> list[Edge]:
    """Join edges at values with one way in and one way out into longer chains."""
    into = Counter(edge.target for edge in edges)
    out_of = Counter(edge.source for edge in edges)
    by_source: dict[Hashable, int] = {}
    chains: list[Edge] = []
    for edge in edges:
        value = edge.target
        passing = value not in keep and into[value] == out_of[value] == 1
        if passing:
            position = by_source.pop(value)
            tail = chains[position]
            edge = Edge(edge.source, tail.target, edge.rules + tail.rules)
            chains[position] = edge
        else:
            position = len(chains)
            chains.append(edge)
        by_source[edge.source] = position
    return chains


def gates_at_terms(edges: list[Edge], keep: set[Hashable]) -> list[Edge]:
    """Move gates behind a sum to each of its terms, where a layer can join them.

    So the last convolution of a residual block, whose own output has no gate, is gated
    by the ReLU behind the shortcut's sum: ``g o (a + b) = g o a + g o b``.
    """
    for edge in list(edges):
        value, gates = edge.source, leading_gates(edge.rules)
        if value in keep or not gates:
            continue
        terms = [term for term in edges if term.target == value]
        readers = [reader for reader in edges if reader.source == value]
        if len(terms) < 2 or len(readers) > 1:
            continue
        if not any(gates_at_end(term.rules, gates) for term in terms):
            continue
        rest = replace(edge, rules=edge.rules[len(gates) :])
        for term in terms:
            edges[edges.index(term)] = Edge(
                term.source,
                value if rest.rules else edge.target,
                term.rules + gates,
            )
        position = edges.index(edge)
        edges[position : position + 1] = [rest] if rest.rules else []
    return edges


def leading_gates(rules: list[Rule]) -> list[Rule]:
    """Return the gates that a chain begins with."""
    return list(takewhile(lambda rule: isinstance(rule, Gate), rules))


def feed_gated_layers(edges: list[Edge]) -> None:
    """Tell every gated layer who reads its tangents, which decides their layout."""
    gated = {
        edge.source
        for edge in edges
        if edge.rules and isinstance(edge.rules[0], GatedLayer)
    }
    for edge in edges:
        at_end = Reader.GATED if edge.target in gated else Reader.OTHER
        for place, rule in enumerate(edge.rules):
            if isinstance(rule, GatedLayer):
                above = edge.rules[place + 1 :]
                rule.reader = _reader(rule, above) if above else at_end
        for lower, upper in pairwise(edge.rules):
            if isinstance(lower, GatedLayer) and isinstance(upper, GatedLayer):
                lower.held_above = upper.held_below = lower.held == upper.held


def _reader(layer: GatedLayer, above: list[Rule]) -> Reader:
    """Return what reads a layer's tangents, the first in the chain above it."""
    if isinstance(above[0], GatedLayer):
        convolves = not isinstance(above[0].layer, Linear)
        skips = convolves and above[0].below is layer.live
        return Reader.LIVE if skips else Reader.GATED
    behind = next((rule for rule in above if not isinstance(rule, Reshape)), None)
    flat = isinstance(behind, GatedHead) or (
        isinstance(behind, GatedLayer) and isinstance(behind.layer, Linear)
    )
    return Reader.FLAT if flat else Reader.OTHER
