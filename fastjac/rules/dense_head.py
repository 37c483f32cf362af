"""The last two linear layers of a classifier, by dense products on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from fastjac.rules.activation import Gate
from fastjac.rules.base import Rule, Samples, Sums
from fastjac.rules.linear import Linear, is_shared
from fastjac.thresholds import fewest_samples_of_head

#: Elements of M that exist at a time: 128 MiB of floats.
BLOCK = 32 << 20


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
        self._pulled: tuple[Tensor, Tensor] | None = None

    def pull(self, rows: Tensor) -> Tensor:
        return self.hidden.pull(self._between(rows))

    def push(self, tangents: Tensor) -> Tensor:
        return self.logits.push(self.gate.push(self.hidden.push(tangents)))

    def weight_gradients(self, rows: Tensor, tangents: Tensor, sums: Sums) -> None:
        hidden_sum, logits_sum = sums
        enough = rows.shape[1] >= fewest_samples_of_head(rows)
        if enough and is_shared(rows) and hidden_sum is not None:
            behind = self.logits.pull(rows)[:, 0]
            gradient, summed = self._both(behind, tangents)
            hidden_sum.add(gradient)
            if logits_sum is not None:
                self.logits.add_shared(rows, summed, logits_sum)
            return
        if hidden_sum is not None:
            between = self._between(rows)
            self.hidden.weight_gradients(between, tangents, (hidden_sum,))
        if logits_sum is not None:
            pushed = self.hidden.push(tangents)
            if is_shared(rows):
                self.logits.add_shared(rows, self.gate.summed(pushed), logits_sum)
            else:
                pushed = self.gate.push(pushed)
                self.logits.weight_gradients(rows, pushed, (logits_sum,))

    def release(self) -> None:
        super().release()
        self._pulled = None

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

    def _between(self, rows: Tensor) -> Tensor:
        """Return the rows below the gates; pull's are kept for the gradient."""
        if self._pulled is not None and self._pulled[0] is rows:
            between = self._pulled[1]
            self._pulled = None
            return between
        between = self.gate.pull(self.logits.pull(rows))
        self._pulled = rows, between
        return between

    def _both(self, behind: Tensor, tangents: Tensor) -> tuple[Tensor, Tensor]:
        """Return dW (H, I) and dB (R, H) for rows ``behind`` (R, H) at the gates."""
        count, samples, inputs = tangents.shape
        weight = self.hidden.weight
        gates = self._gates(tangents).expand(samples, len(weight)).t()
        gradient = torch.empty_like(weight)
        at_gates = weight.new_empty(count, len(weight))
        size = max(1, BLOCK // (count * inputs))
        for start in range(0, len(weight), size):
            units = slice(start, start + size)
            gate = gates[units].expand(count, -1, -1)
            products = torch.bmm(gate, tangents).transpose(0, 1)  # (h, R, I)
            rows, columns = behind[:, units].t(), weight[units]
            torch.bmm(rows.unsqueeze(1), products, out=gradient[units].unsqueeze(1))
            torch.bmm(
                products, columns.unsqueeze(2), out=at_gates[:, units].t().unsqueeze(2)
            )
        return gradient, at_gates

    def _gates(self, like: Tensor) -> Tensor:
        """Return D, (N, H) or what broadcasts to it, by one kernel if it is a step."""
        values = self.gate.values
        if not self.gate.step or values.dtype == torch.bool:
            return self.gate.factor(like.dtype)
        gates = torch.empty(values.shape, dtype=like.dtype, device=like.device)
        return torch.gt(values, 0, out=gates)
