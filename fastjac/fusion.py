"""Joins rules that run better together: gates with gates, convolutions with both."""

from __future__ import annotations

import math

import torch

from fastjac import native
from fastjac.native_conv import MOST_TAPS
from fastjac.rules.activation import Gate
from fastjac.rules.base import Rule
from fastjac.rules.convolution import Convolution
from fastjac.rules.gated import GatedConvolution
from fastjac.rules.pooling import Route


def fused(rules: list[Rule]) -> list[Rule]:
    """Return a chain of rules with the same map in fewer steps.

    The order is that of the forward pass. ``[Convolution, Gate..., Route, Gate...]``
    becomes one `GatedConvolution` where the native kernels can run it.
    """
    rules = [rule for rule in rules if type(rule) is not Rule]
    joined: list[Rule] = []
    position = 0
    while position < len(rules):
        rule, position = _next(rules, position)
        joined.append(rule)
    for lower, upper in zip(joined, joined[1:], strict=False):
        if isinstance(lower, GatedConvolution):
            lower.feeds_gated = isinstance(upper, GatedConvolution)
    return joined


def _next(rules: list[Rule], start: int) -> tuple[Rule, int]:
    """Return the rule that begins at ``start``, and where the one behind it begins."""
    rule = rules[start]
    if isinstance(rule, Gate):
        return _gates(rules, start)
    if not isinstance(rule, Convolution) or not gateable(rule):
        return rule, start + 1
    gate, stop = _gates(rules, start + 1)
    route = rules[stop] if stop < len(rules) else None
    if not isinstance(route, Route):
        return rule, start + 1
    pooled_gate, stop = _gates(rules, stop + 1)
    out_shape = torch.Size((route.in_shape[0], *route.index.shape[1:]))
    return (
        GatedConvolution(rule, gate, route, pooled_gate, out_shape, feeds_gated=False),
        stop,
    )


def _gates(rules: list[Rule], start: int) -> tuple[Gate | None, int]:
    """Multiply the gates that begin at ``start`` into one."""
    stop = start
    while stop < len(rules) and isinstance(rules[stop], Gate):
        stop += 1
    gates = [rule for rule in rules[start:stop] if isinstance(rule, Gate)]
    if len(gates) < 2:
        return (gates[0] if gates else None), stop
    dtype = max((gate.values.dtype for gate in gates), key=_floating)
    factor = math.prod(
        (gate.factor(dtype) for gate in gates[1:]), start=gates[0].factor(dtype)
    )
    return Gate(factor, gates[0].shape), stop


def _floating(dtype: torch.dtype) -> int:
    return dtype.itemsize if dtype.is_floating_point else 0


def gateable(rule: Convolution) -> bool:
    """Whether the native kernels can run a convolution."""
    weight, geometry = rule.weight, rule.geometry
    return (
        weight.device.type == "cpu"
        and native.available()
        and weight.dtype in (torch.float32, torch.float64)
        and weight.dim() in (3, 4)
        and not geometry.transposed
        and geometry.groups == 1
        and weight.shape[2:].numel() <= MOST_TAPS
    )
