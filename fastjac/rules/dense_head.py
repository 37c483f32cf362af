"""The last two linear layers of a classifier, by dense products on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from fastjac.rules.activation import Gate
from fastjac.rules.base import Rule, Samples, Sums
from fastjac.rules.linear import Linear, is_shared
from fastjac.thresholds import fewest_samples_of_head

#: Elements of M that exist at a time: 64 MB of floats.
BLOCK = 16 << 20


class DenseHead(Rule):
    """``logits = V (d o (W u))`` with N samples' gates ``d`` as a matrix D of (N, H).

    Where all samples have the same seeds S, and so the same rows ``B = S V`` at the
    gates, one dense product gives both weights' gradients from the tangents T below::

        M[r] = D^T T[r]                        (H, I), a block of units at a time
        dW[j, i] = sum_r B[r, j] M[r, j, i]
        dB[r, j] = sum_i W[j, i] M[r, j, i],   dV = S^T dB

    instead of two products of that size: nothing has to be pushed through W.
    """

    moves = False

    def __init__(self, hidden: Linear, gate: Gate, logits: Linear) -> None:
        self.hidden, self.gate, self.logits = hidden, gate, logits
        self.weights = (*hidden.weights, *logits.weights)
        self.elements = hidden.elements

    def pull(self, rows: Tensor) -> Tensor:
        return self.hidden.pull(self.gate.pull(self.logits.pull(rows)))

    def push(self, tangents: Tensor) -> Tensor:
        return self.logits.push(self.gate.push(self.hidden.push(tangents)))

    def weight_gradients(self, rows: Tensor, tangents: Tensor, sums: Sums) -> None:
        hidden_sum, logits_sum = sums
        enough = rows.shape[1] >= fewest_samples_of_head(rows)
        if enough and is_shared(rows) and hidden_sum is not None:
            seeds = rows[:, 0]
            gradient, behind = self._both(seeds @ self.logits.weight, tangents)
            hidden_sum.add(gradient)
            if logits_sum is not None:
                logits_sum.add_product(seeds.t(), behind)
            return
        if hidden_sum is not None:
            between = self.gate.pull(self.logits.pull(rows))
            self.hidden.weight_gradients(between, tangents, (hidden_sum,))
        if logits_sum is not None:
            pushed = self.gate.push(self.hidden.push(tangents))
            self.logits.weight_gradients(rows, pushed, (logits_sum,))

    def narrow(self, samples: Samples) -> DenseHead:
        return DenseHead(self.hidden, self.gate.narrow(samples), self.logits)

    @property
    def multiplications(self) -> int:
        return self.hidden.multiplications + self.logits.multiplications

    def describe(self) -> str:
        return "dense, matrix products"

    @property
    def name(self) -> str:
        return "Linear + Gate + Linear"

    def _both(self, behind: Tensor, tangents: Tensor) -> tuple[Tensor, Tensor]:
        """Return dW (H, I) and dB (R, H) for rows ``behind`` (R, H) at the gates."""
        count, samples, inputs = tangents.shape
        weight = self.hidden.weight
        gates = self.gate.factor(tangents.dtype).expand(samples, len(weight))
        gradient = torch.empty_like(weight)
        at_gates = torch.empty_like(behind)
        size = max(1, BLOCK // (count * inputs))
        for start in range(0, len(weight), size):
            units = slice(start, start + size)
            products = (gates[:, units].t() @ tangents).transpose(0, 1)  # (h, R, I)
            rows = behind[:, units].t().unsqueeze(1)
            gradient[units] = (rows @ products).squeeze(1)
            columns = weight[units].unsqueeze(2)
            at_gates[:, units] = (products @ columns).squeeze(2).t()
        return gradient, at_gates
