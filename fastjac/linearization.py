"""The linearised network: values joined by chains of rules, in pull order.

A value that several operations read receives the sum of their pulled rows, and a value
that is computed from several others receives the sum of their pushed tangents. So every
operation, a concatenation too, is a set of linear maps of one tensor each.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

from torch import Tensor

from fastjac.edges import Edge, feed_gated_layers, gates_at_terms, joined
from fastjac.fusion import fused
from fastjac.movement import views_at_readers
from fastjac.precision import wide
from fastjac.rules.base import Rule, Samples


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
        exact: bool = False,
    ) -> None:
        #: Name of a BatchNorm node whose batch statistics are taken as constants.
        self.batch_statistics = batch_statistics
        #: Whether every map with its bias gives what the network gave: the network is
        #: linear at ``x`` but for biases, and the rules have all of them.
        self.exact = exact
        self.source, self.target = source, target
        self.x_shape = x.shape
        self.x_dtype, self.dtype = x.dtype, wide(logits.dtype)
        self.device = logits.device
        self.logits = logits.detach()
        self.samples, self.classes = logits.shape
        ends = {source, target}
        #: Makes a context in which the weights are in memory, where models free them.
        self.gathered: Callable[[], AbstractContextManager[None]] = nullcontext
        self.edges = [
            replace(edge, rules=fused(edge.rules, edge.target == target))
            for edge in _prepared(list(edges), ends)
        ]
        feed_gated_layers(self.edges)
        #: Whether samples stay apart along dimension 0 everywhere.
        self.samplewise = all(rule.apart(self.samples) for rule in self.rules)
        self.weights = _unique(
            weight
            for rule in self.rules
            for weight in rule.weights
            if weight.requires_grad
        )

    @property
    def weights_and_biases(self) -> list[Tensor]:
        """`weights`, and the biases that may receive a gradient, each tensor once."""
        given = (bias for rule in self.rules for bias in rule.biases)
        biases = (b for b in given if b is not None and b.requires_grad)
        return _unique((*self.weights, *biases))

    @property
    def rules(self) -> list[Rule]:
        """All rules, those near the input first."""
        return [rule for edge in reversed(self.edges) for rule in edge.rules]

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


def _prepared(edges: list[Edge], ends: set[Hashable]) -> list[Edge]:
    """Join edges, and bring together what runs better as one."""
    edges = views_at_readers(joined(edges, keep=ends), keep=ends)
    return gates_at_terms(edges, keep=ends)


def _unique(tensors: Iterable[Tensor]) -> list[Tensor]:
    return list({id(tensor): tensor for tensor in tensors}.values())
