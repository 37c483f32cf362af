"""How a sweep's time is divided among its rules."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from fastjac.linearization import Linearization
from fastjac.rules.base import Rule
from fastjac.sweep import Sweep

PASSES = ("pull", "push", "weight_gradients")


def shares(linearization: Linearization, seeds: torch.Tensor) -> list[float]:
    """Return each rule's share of the time that all rules take in one sweep.

    Args:
        linearization: its rules are timed from then on: use it for nothing else.
        seeds: (R, K).

    Returns:
        A share for each of ``linearization.rules``, which add up to 1.
    """
    clocks = [[0.0] for _ in linearization.rules]
    for rule, clock in zip(linearization.rules, clocks, strict=True):
        _time(rule, clock, linearization.device)
    sweep = Sweep(linearization, seeds)
    sweep.squared_norms_and_gradients(linearization.weights, False)  # warms up
    for clock in clocks:
        clock[0] = 0.0
    sweep.squared_norms_and_gradients(linearization.weights, False)
    total = sum(clock[0] for clock in clocks) or 1.0
    return [clock[0] / total for clock in clocks]


def _time(rule: Rule, clock: list[float], device: torch.device) -> None:
    """Let a rule, and what it is narrowed to, add the time it takes to a clock."""

    def timed(run: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any) -> Any:
            start = _now(device)
            result = run(*args)
            clock[0] += _now(device) - start
            return result

        return wrapper

    narrow = rule.narrow

    def narrowed(*args: Any) -> Rule:
        part = narrow(*args)
        if part is not rule:
            _time(part, clock, device)
        return part

    passes = {name: timed(getattr(rule, name)) for name in PASSES}
    vars(rule).update(passes, narrow=narrowed)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
