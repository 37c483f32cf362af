"""Softmax and its logarithm; the map is made of the probabilities."""

from __future__ import annotations

from copy import copy

import torch
from torch import Tensor

from fastjac.rules.base import Rule, Samples, Sums


class Softmax(Rule):
    """``v = softmax u`` along ``dim``: ``A t = p o (t - <p, t>)``, ``A^T = A``."""

    moves = False

    def __init__(self, result: Tensor, dim: int) -> None:
        self.weights = (result,)
        self.result, self.dim = result.detach(), dim
        self.samplewise = dim != 0
        self.per_sample_weights = True

    def pull(self, rows: Tensor) -> Tensor:
        pulled = rows * self.result
        total = pulled.sum(self.dim + 1, keepdim=True)
        return pulled.addcmul_(self.result, total, value=-1)

    def push(self, tangents: Tensor) -> Tensor:
        return self.pull(tangents)

    def weight_gradients(self, rows: Tensor, tangents: Tensor, sums: Sums) -> None:
        (total,) = sums
        if total is None:
            return
        term = rows * (tangents - self._mean(tangents))
        term.addcmul_(tangents, self._mean(rows), value=-1)
        total.add(term.sum(0))

    def narrow(self, samples: Samples) -> Softmax:
        narrowed = copy(self)
        narrowed.result = samples.of(self.result)
        return narrowed

    def _mean(self, tangents: Tensor) -> Tensor:
        return (tangents * self.result).sum(self.dim + 1, keepdim=True)


class LogSoftmax(Rule):
    """``v = log softmax u`` along ``dim``: ``A t = t - <p, t>`` with p the softmax."""

    moves = False

    def __init__(self, softmax: Tensor, dim: int) -> None:
        self.weights = (softmax,)
        self.softmax, self.dim = softmax.detach(), dim
        self.samplewise = dim != 0
        self.per_sample_weights = True

    def pull(self, rows: Tensor) -> Tensor:
        return torch.addcmul(rows, self.softmax, self._total(rows), value=-1)

    def push(self, tangents: Tensor) -> Tensor:
        return tangents - self._total(tangents * self.softmax)

    def weight_gradients(self, rows: Tensor, tangents: Tensor, sums: Sums) -> None:
        (total,) = sums
        if total is not None:
            total.add((tangents * self._total(rows)).sum(0).neg_())

    def narrow(self, samples: Samples) -> LogSoftmax:
        narrowed = copy(self)
        narrowed.softmax = samples.of(self.softmax)
        return narrowed

    def _total(self, tangents: Tensor) -> Tensor:
        return tangents.sum(self.dim + 1, keepdim=True)
