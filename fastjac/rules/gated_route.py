"""A max pool and the gate before it, by one kernel of a GPU each way."""

from __future__ import annotations

from torch import Tensor

from fastjac import gate_pool, native
from fastjac.rules.activation import Gate
from fastjac.rules.base import Rule, Samples
from fastjac.rules.pooling import Route


class GatedRoute(Rule):
    """``v[q] = (g o u)[index[q]]``: for layers before it that run dense.

    The unpooled rows are written once, gated already; tangents are read at the winners
    only.
    """

    moves = False

    def __init__(self, gate: Gate | None, route: Route) -> None:
        self.gate, self.route = gate, route
        self.elements = route.elements if gate is None else gate.elements
        self.samplewise = route.samplewise

    def pull(self, rows: Tensor) -> Tensor:
        if not self._runs_natively(rows):
            pulled = self.route.pull(rows)
            return pulled if self.gate is None else self.gate.pull(pulled)
        return gate_pool.unpool_rows(
            rows.contiguous(),
            self.route.index.contiguous(),
            self.route.axes,
            None if self.gate is None else self.gate.values.contiguous(),
            positive=self.gate is not None and self.gate.step,
        )

    def push(self, tangents: Tensor) -> Tensor:
        if not self._runs_natively(tangents):
            gated = tangents if self.gate is None else self.gate.push(tangents)
            return self.route.push(gated)
        return gate_pool.pool_tangents(
            tangents.contiguous(),
            self.route.index.contiguous(),
            self.route.spatial,
            None if self.gate is None else self.gate.values.contiguous(),
            positive=self.gate is not None and self.gate.step,
        )

    def narrow(self, samples: Samples) -> GatedRoute:
        gate = None if self.gate is None else self.gate.narrow(samples)
        return GatedRoute(gate, self.route.narrow(samples))

    @property
    def name(self) -> str:
        return "MaxPool" if self.gate is None else "Gate + MaxPool"

    def describe(self) -> str:
        return "gate and route, one kernel"

    def _runs_natively(self, rows: Tensor) -> bool:
        if not native.on_gpu(rows) or not native.has("unpool_rows", rows.new_empty(0)):
            return False
        return self.gate is None or self.gate.values.dtype == rows.dtype


def joinable(gate: Gate | None, route: Route) -> bool:
    """Whether kernels for a GPU take a pool and the gate before it."""
    if not route.axes or not native.on_gpu(route.index):
        return False
    return gate is None or (
        gate.values.shape == route.in_shape and gate.values.is_floating_point()
    )
