"""The last two linear layers of a classifier, with the gates between them."""

from __future__ import annotations

import torch
from torch import Tensor

from fastjac import native_conv, native_head
from fastjac.rules.activation import Gate
from fastjac.rules.base import Rule, Samples, Sums
from fastjac.rules.gated import GatedLayer
from fastjac.rules.linear import Linear, is_shared
from fastjac.rules.live import Live

#: The largest share of open gates at which both gradients go through a list of them
#: rather than through sums of subsets: where the additions counted are equal. Measured
#: with half of the gates open only (bench/NOTES.md).
MOST_LISTED = 0.25


class GatedHead(Rule):
    """``logits = V (d o (W u))``: a gated linear layer, then the logits' own layer.

    Where all samples have the same seeds S, so they have the rows ``B = S V`` at the
    gates, and one sum over live samples, M = D^T T, gives both weights' gradients
    (csrc/cpu/gated_head.h): nothing has to be pushed through W.
    """

    moves = False

    def __init__(self, hidden: GatedLayer, gate: Gate, logits: Linear) -> None:
        self.hidden, self.gate, self.logits = hidden, gate, logits
        self.weights = (*hidden.weights, *logits.weights)
        self.biases = (*hidden.biases, *logits.biases)
        self.elements = hidden.elements
        self._open_sums: Tensor | None = None

    def pull(self, rows: Tensor) -> Tensor:
        return self.hidden.pull(self.logits.pull(rows))

    def push(self, tangents: Tensor) -> Tensor:
        return self.logits.push(self.hidden.push(tangents))

    def weight_gradients(self, rows: Tensor, tangents: Tensor, sums: Sums) -> None:
        hidden_sum, logits_sum = sums
        layout = self.hidden.layout(rows.shape[0])
        if layout.lanes_are_rows or hidden_sum is None or not is_shared(rows):
            if hidden_sum is not None:
                between = self.logits.pull(rows)
                self.hidden.weight_gradients(between, tangents, (hidden_sum,))
            if logits_sum is not None:
                pushed = self.hidden.push(tangents)
                self.logits.weight_gradients(rows, pushed, (logits_sum,))
            return
        packed = self.hidden.packed
        weight, seeds = packed.weight(by_window=False), rows[:, 0]
        gradient = native_head.gated_head(
            self._gates(rows.shape[1]),
            weight=weight,
            rows=seeds @ self.logits.weight,
            input=layout.of(tangents),
            layout=layout,
            weight_gradient=hidden_sum.buffer(weight, packed.unpacked),
        )
        if logits_sum is not None:
            bias = self.biases[0]
            if self.ones is not None and bias is not None:
                gradient = gradient + bias.detach() * self._open_ones(rows)
            logits_sum.add_product(seeds.t(), gradient)

    def lift(self, ones: Tensor) -> None:
        super().lift(ones)
        self._open_sums = None
        self.hidden.lift(ones)
        self.logits.lift(ones)

    def bias_gradients(self, rows: Tensor, sums: Sums) -> None:
        hidden_sum, logits_sum = sums
        self.logits.bias_gradients(rows, (logits_sum,))
        if hidden_sum is None or self.ones is None:
            return
        between = self.logits.pull(rows)
        if is_shared(rows):
            hidden_sum.add((between[:, 0] * self._open_ones(rows)).sum(0))
        else:
            self.hidden.bias_gradients(between, (hidden_sum,))

    def _open_ones(self, rows: Tensor) -> Tensor:
        """Return ``ones`` times the gates, added up over samples, (R, H).

        Both biases ask for it; it is computed once.
        """
        if self._open_sums is None:
            assert self.ones is not None
            units = self.hidden.packed.shape[0]
            gates = self.gate.factor(rows.dtype).expand(rows.shape[1], units)
            self._open_sums = self.ones.t() @ gates
        return self._open_sums

    def narrow(self, samples: Samples) -> GatedHead:
        return GatedHead(
            self.hidden.narrow(samples), self.gate.narrow(samples), self.logits
        )

    def release(self) -> None:
        super().release()
        self._open_sums = None
        self.hidden.release()
        self.logits.release()

    @property
    def multiplications(self) -> int:
        return self.hidden.multiplications + self.logits.multiplications

    def density(self) -> float:
        return self.hidden.density()

    def describe(self) -> str:
        return f"{self.hidden.describe()}, both gradients in one product"

    @property
    def name(self) -> str:
        return f"{self.hidden.name} + Linear"

    def _gates(self, samples: int) -> Live | Tensor:
        """Return step gates as they are where many are open, else the live samples."""
        if self.gate.step and self.hidden.live.density() > MOST_LISTED:
            units = self.hidden.packed.shape[0]
            return self.gate.values.expand(samples, units).contiguous()
        return self._by_unit(samples)

    def _by_unit(self, samples: int) -> Live:
        """List the live samples of each hidden unit."""
        units = self.hidden.packed.shape[0]
        geometry = native_conv.conv_geometry(
            self.logits.weight,
            in_channels=1,
            out_channels=samples,
            in_size=(1, units),
            out_size=(1, units),
            pooled_pixels=units,
            kernel=(1, 1),
            stride=(1, 1),
            padding=(0, 0),
            dilation=(1, 1),
        )
        shape = torch.Size((1, samples, 1, units))
        values = self.gate.values.expand(samples, units).reshape(shape)
        gate = Gate(values, shape, self.gate.step)
        like = self.logits.weight
        return Live(geometry, shape, shape, gate, None, None, like, positions=False)
