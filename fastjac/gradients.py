"""The weight gradients of a sweep, added up chunk by chunk."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastjac.rules.base import Rule, Samples, Sum

#: Elements of weight gradients that may wait in parts (`Sum.parts`): 128 MiB of floats.
MOST_IN_PARTS = 32 << 20


@dataclass
class Gradients:
    """Running sums of the gradients with respect to weights."""

    #: Identities of the weights whose gradient is wanted.
    wanted: set[int]
    sums: dict[int, Sum] = field(default_factory=dict)

    def of(self, rule: Rule, samples: Samples | None) -> list[Sum | None]:
        """Return where the gradients of a rule's weights are to be added."""
        return [self._sum(rule, weight, samples) for weight in rule.weights]

    def of_biases(self, rule: Rule) -> list[Sum | None]:
        """Return where the gradients of a rule's biases are to be added."""
        return [
            None if bias is None else self._sum(rule, bias, None)
            for bias in rule.biases
        ]

    def _sum(self, rule: Rule, weight: Tensor, samples: Samples | None) -> Sum | None:
        if id(weight) not in self.wanted:
            return None
        total = self.sums.setdefault(id(weight), Sum())
        if not rule.per_sample_weights or samples is None:
            return total
        whole = total.value
        if whole is None:
            whole = torch.zeros_like(weight)
            total.add(whole)
        return Sum(samples.of(whole))

    def settle(self) -> None:
        """Add up what waits in parts, if that takes much memory."""
        waiting = (total.parts for total in self.sums.values())
        if sum(len(parts) for parts in waiting if parts is not None) > MOST_IN_PARTS:
            self.finish()

    def finish(self) -> None:
        """Add up what waits in parts, all of it at once."""
        waiting = [total for total in self.sums.values() if total.parts is not None]
        Sum.add_parts(waiting)

    def result(self, weight: Tensor) -> Tensor | None:
        """Return the gradient of one weight, None if it was not wanted."""
        total = self.sums.get(id(weight))
        return None if total is None else total.value
