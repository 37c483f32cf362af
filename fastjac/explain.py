"""What a penalty will do on a model: which operations run fused, how, and why not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from fastjac.eager import eager
from fastjac.forward import Origin, forward
from fastjac.graph import Unsupported
from fastjac.linearize import linearize
from fastjac.rules.base import Rule


@dataclass(frozen=True)
class Step:
    """One rule of the linearised network, in the order of the forward pass."""

    #: What it is: a class of fastjac.rules.
    rule: str
    #: How it runs, e.g. "gated, 14% of outputs live".
    runs: str
    #: Shapes of the weights that it holds.
    weights: list[tuple[int, ...]]
    #: Elements of those weights that get a gradient.
    trainable: int


@dataclass(frozen=True)
class Explanation:
    """What `explain` found; prints as text, `as_dict` gives data."""

    #: "fused", or "autograd" for the fallback.
    backend: str
    #: Why the fallback, and where in the model; None if fused.
    reason: str | None
    #: Shape (N, K) of the logits.
    logits: tuple[int, int]
    steps: list[Step]

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain Python data, e.g. for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        samples, classes = self.logits
        if self.reason is not None:
            return (
                f"falls back to autograd ({classes} backward passes) because "
                f"{self.reason}"
            )
        width = max((len(step.rule) for step in self.steps), default=0)
        lines = [
            f"fused: {classes} rows for each of {samples} samples through "
            f"{len(self.steps)} step{'s' * (len(self.steps) != 1)}, input first"
        ]
        for step in self.steps:
            weights = ", ".join("x".join(map(str, shape)) for shape in step.weights)
            frozen = " frozen" if step.weights and not step.trainable else ""
            note = f"  [weight {weights}{frozen}]" if weights else ""
            lines.append(f"  {step.rule:{width}}  {step.runs}{note}")
        return "\n".join(lines)


@eager
def explain(model: Callable[[Tensor], Tensor], x: Tensor) -> Explanation:
    """Say how penalties run on a model: layer by layer, or why they fall back.

    Args:
        model: maps x to logits of shape (N, K).
        x: (N, ...), a typical batch: densities of live outputs are measured on it.

    Returns:
        An `Explanation`; print it.

    Raises:
        TypeError, ValueError: as `fastjac.jacobian_penalty`.

    Example:
        >>> import torch, fastjac
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 3))
        >>> print(fastjac.explain(net, torch.randn(2, 4)))
        fused: 3 rows for each of 2 samples through 2 steps, input first
          Linear  dense, matrix product  [weight 8x4]
          Linear  dense, matrix product  [weight 3x8]
    """
    logits, leaf = forward(model, x)
    shape = (logits.shape[0], logits.shape[1])
    origin = Origin(model, leaf)
    try:
        with origin.gathered():
            linearization = linearize(logits, leaf)
    except Unsupported as missing:
        where = origin.locate(missing.name)
        reason = f"{missing.name} has no fused rule ({missing.reason}){where}"
        return Explanation("autograd", reason, shape, [])
    with torch.no_grad():
        steps = [_step(rule) for rule in linearization.rules]
    return Explanation("fused", None, shape, steps)


def _step(rule: Rule) -> Step:
    return Step(
        rule=rule.name,
        runs=rule.describe(),
        weights=[tuple(weight.shape) for weight in rule.weights],
        trainable=sum(w.numel() for w in rule.weights if w.requires_grad),
    )
