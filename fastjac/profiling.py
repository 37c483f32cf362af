"""How a sweep's time is divided among its rules."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from fastjac.linearization import Linearization
from fastjac.rules.base import Rule
from fastjac.sweep import Sweep

#: What a sweep calls; one may call another, and the outermost is timed.
PASSES = (
    "pull",
    "pull_into",
    "push",
    "push_into",
    "push_adding",
    "overwrite",
    "weight_gradients",
)


def shares(linearization: Linearization, seeds: torch.Tensor) -> list[float]:
    """Return each rule's share of the time that all rules take in one sweep.

    Args:
        linearization: its rules are timed from then on: use it for nothing else.
        seeds: (R, K).

    Returns:
        A share for each of ``linearization.rules``, which add up to 1.
    """
    clocks = [_Clock(linearization.device) for _ in linearization.rules]
    for rule, clock in zip(linearization.rules, clocks, strict=True):
        _time(rule, clock)
    sweep = Sweep(linearization, seeds)
    sweep.squared_norms_and_gradients(linearization.weights, False)  # warms up
    for clock in clocks:
        clock.seconds = 0.0
    sweep.squared_norms_and_gradients(linearization.weights, False)
    total = sum(clock.seconds for clock in clocks) or 1.0
    return [clock.seconds / total for clock in clocks]


class _Clock:
    """Seconds that the outermost of the functions it times have taken."""

    def __init__(self, device: torch.device) -> None:
        self.seconds, self._device, self._runs = 0.0, device, False

    def timed(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that does the same and is timed."""

        def wrapper(*args: Any, **options: Any) -> Any:
            if self._runs:
                return run(*args, **options)
            self._runs, start = True, self._now()
            try:
                return run(*args, **options)
            finally:
                self._runs = False
                self.seconds += self._now() - start

        return wrapper

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def _time(rule: Rule, clock: _Clock) -> None:
    """Let a rule, and what it is narrowed to, add the time it takes to a clock."""
    narrow = rule.narrow

    def narrowed(*args: Any) -> Rule:
        part = narrow(*args)
        if part is not rule:
            _time(part, clock)
        return part

    passes = {name: clock.timed(getattr(rule, name)) for name in PASSES}
    vars(rule).update(passes, narrow=narrowed)
