"""The linearised network: values joined by chains of rules, in pull order.

A value that several operations read receives the sum of their pulled rows, and a value
that is computed from several others receives the sum of their pushed tangents. So every
operation, a concatenation too, is a set of linear maps of one tensor each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import takewhile, zip_longest

import torch
from torch import Tensor

from fastjac.fusion import fused, gates_at_end
from fastjac.precision import wide
from fastjac.rules.activation import Gate
from fastjac.rules.base import Rule, Samples
from fastjac.rules.gated import GatedLayer


@dataclass(frozen=True)
class Edge:
    """A chain of rules from one value to another, in the order of the forward pass."""

    source: Hashable
    target: Hashable
    rules: list[Rule]
    #: Shapes of all values on the way, which say whether samples stay apart.
    shapes: list[torch.Size]


class Linearization:
    """The linear maps between an input ``x`` of (N, ...) and logits of (N, K)."""

    def __init__(
        self,
        edges: Iterable[Edge],
        *,
        source: Hashable,
        target: Hashable,
        x: Tensor,
        logits: Tensor,
        batch_statistics: str | None = None,
    ) -> None:
        #: Name of a BatchNorm node whose batch statistics are taken as constants.
        self.batch_statistics = batch_statistics
        self.source, self.target = source, target
        self.x_shape = x.shape
        self.x_dtype, self.dtype = x.dtype, wide(logits.dtype)
        self.device = logits.device
        self.samples, self.classes = logits.shape
        ends = {source, target}
        #: Makes a context in which the weights are in memory, where models free them.
        self.gathered: Callable[[], AbstractContextManager[None]] = nullcontext
        self.edges = [
            replace(edge, rules=fused(edge.rules, edge.target == target))
            for edge in gates_at_terms(joined(list(edges), keep=ends), keep=ends)
        ]
        feed_gated_layers(self.edges)
        self.weights = _unique(
            weight
            for rule in self.rules
            for weight in rule.weights
            if weight.requires_grad
        )

    @property
    def rules(self) -> list[Rule]:
        """All rules, those near the input first."""
        return [rule for edge in reversed(self.edges) for rule in edge.rules]

    @property
    def samplewise(self) -> bool:
        """Whether samples stay apart along dimension 0 everywhere."""
        return all(
            len(shape) > 0 and shape[0] > 0 and shape[0] % self.samples == 0
            for edge in self.edges
            for shape in edge.shapes
        ) and all(rule.samplewise for rule in self.rules)

    @property
    def row_elements(self) -> int:
        """Elements that one row of one sample holds below all rules together."""
        return max(1, sum(rule.elements for rule in self.rules) // self.samples)

    def narrowed(self, start: int, stop: int) -> list[Edge]:
        """Return the edges for samples ``start:stop`` only."""
        if (start, stop) == (0, self.samples):
            return self.edges
        samples = Samples(start, stop, self.samples)
        return [
            replace(edge, rules=[rule.narrow(samples) for rule in edge.rules])
            for edge in self.edges
        ]


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
            edge = Edge(
                edge.source,
                tail.target,
                edge.rules + tail.rules,
                edge.shapes + tail.shapes,
            )
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
        rest = replace(
            edge, rules=edge.rules[len(gates) :], shapes=edge.shapes[len(gates) :]
        )
        shapes = edge.shapes[: len(gates)]
        for term in terms:
            edges[edges.index(term)] = Edge(
                term.source,
                value if rest.rules else edge.target,
                term.rules + gates,
                term.shapes + shapes,
            )
        position = edges.index(edge)
        edges[position : position + 1] = [rest] if rest.rules else []
    return edges


def leading_gates(rules: list[Rule]) -> list[Rule]:
    """Return the gates that a chain begins with."""
    return list(takewhile(lambda rule: isinstance(rule, Gate), rules))


def feed_gated_layers(edges: list[Edge]) -> None:
    """Tell every gated layer whether a gated layer reads its tangents."""
    reads = {
        edge.source
        for edge in edges
        if edge.rules and isinstance(edge.rules[0], GatedLayer)
    }
    for edge in edges:
        for lower, upper in zip_longest(edge.rules, edge.rules[1:]):
            if isinstance(lower, GatedLayer):
                lower.feeds_gated = (
                    edge.target in reads
                    if upper is None
                    else isinstance(upper, GatedLayer)
                )


def _unique(tensors: Iterable[Tensor]) -> list[Tensor]:
    return list({id(tensor): tensor for tensor in tensors}.values())
