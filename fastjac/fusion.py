"""Joins rules that run better together: gates with gates, layers with their gates."""

from __future__ import annotations

import math
from typing import TypeGuard

import torch

from fastjac import native
from fastjac.native_conv import MOST_TAPS
from fastjac.rules.activation import Gate, Scale
from fastjac.rules.base import Rule
from fastjac.rules.convolution import Convolution
from fastjac.rules.dense_head import DenseHead
from fastjac.rules.gated import GatedLayer, made_of
from fastjac.rules.gated_route import GatedRoute, joinable
from fastjac.rules.head import GatedHead
from fastjac.rules.layout import Packed
from fastjac.rules.linear import Linear
from fastjac.rules.live import Live
from fastjac.rules.pooling import Average, Route
from fastjac.rules.shape import Reshape
from fastjac.thresholds import held_in, most_live


def fused(rules: list[Rule], at_logits: bool = False) -> list[Rule]:
    """Return a chain of rules with the same map in fewer steps.

    The order is that of the forward pass. ``[layer, Gate..., Route, Gate...]`` becomes
    one `GatedLayer` where the native kernels can run it and enough outputs are dead;
    a chain that ends ``at_logits`` may end in one `GatedHead`, or on a GPU in one
    `DenseHead`.
    """
    rules = _absorbed([rule for rule in rules if type(rule) is not Rule])
    joined: list[Rule] = []
    position = 0
    while position < len(rules):
        rule, position = _next(rules, position, at_logits)
        joined.append(rule)
    _tell_what_is_live_below(joined)
    return joined


def _tell_what_is_live_below(rules: list[Rule]) -> None:
    """Let layers on a CPU know which of their inputs the layer below has alive."""
    below: GatedLayer | None = None
    flat = False
    for rule in rules:
        if isinstance(rule, Reshape):
            flat = True
            continue
        layer = rule.hidden if isinstance(rule, GatedHead) else rule
        if not isinstance(layer, GatedLayer):
            below = None
            continue
        if below is not None and not layer.packed.on_gpu:
            linear = isinstance(layer.layer, Linear)
            fits = _flat_outputs_are_inputs if linear else _outputs_are_inputs
            if fits(below, layer) and (linear or not flat):
                layer.below = below.live
        below, flat = layer, False


def _flat_outputs_are_inputs(below: GatedLayer, layer: GatedLayer) -> bool:
    """Whether a linear layer reads what is below, an entry for each output."""
    outputs = below.live.out_shape
    return (
        layer.live.out_shape[0] == outputs[0]
        and layer.packed.in_channels == outputs[1:].numel()
        and below.live.geometry.pooled_pixels == outputs[2:].numel()
    )


def _outputs_are_inputs(below: GatedLayer, layer: GatedLayer) -> bool:
    """Whether a convolution reads what is below, pixel by pixel: there is no pool."""
    return (
        below.live.pool is None
        and isinstance(below.layer, Convolution)
        and layer.live.out_shape[0] == below.live.out_shape[0]
    )


def gates_at_end(rules: list[Rule], gates: list[Rule]) -> bool:
    """Whether a chain ends in a layer that would run gated with ``gates`` behind it."""
    for layer in reversed(rules):
        if isinstance(layer, Convolution | Linear):
            gate, _ = _gates(gates, 0)
            return gate is not None and _gates_pay(layer, gate)
        if type(layer) is not Rule and not isinstance(layer, Scale | Gate):
            return False
    return False


def _gates_pay(layer: Convolution | Linear, gate: Gate) -> bool:
    return gateable(layer) and 0 < most_live(layer) >= _open_share(gate)


def _absorbed(rules: list[Rule]) -> list[Rule]:
    """Multiply scales a channel, such as BatchNorm's, into the layer before them.

    The product is a computed weight, through which autograd finds both factors.
    """
    joined: list[Rule] = []
    for rule in rules:
        layer = joined[-1] if joined else None
        if isinstance(layer, Convolution | Linear) and _is_channel_scale(rule, layer):
            factor = rule.weights[0] if isinstance(rule, Scale) else rule.values
            joined[-1] = layer.scaled(factor.flatten())
        else:
            joined.append(rule)
    return joined


def _is_channel_scale(
    rule: Rule, layer: Convolution | Linear
) -> TypeGuard[Scale | Gate]:
    """Whether a rule multiplies every output channel of a layer by one number."""
    if isinstance(rule, Scale) or (isinstance(rule, Gate) and not rule.step):
        factor = rule.values
    else:
        return False
    weight = layer.weight
    if isinstance(layer, Convolution) and layer.geometry.transposed:
        return False
    shape = (weight.shape[0], *(1,) * (weight.dim() - 2))
    return tuple(factor.shape) == shape and factor.dtype == weight.dtype


def _next(rules: list[Rule], start: int, at_logits: bool) -> tuple[Rule, int]:
    """Return the rule that begins at ``start``, and where the one behind it begins."""
    layer = rules[start]
    if isinstance(layer, Gate | Route):
        gate, stop = _gates(rules, start)
        route = rules[stop] if stop < len(rules) else None
        if isinstance(route, Route) and joinable(gate, route):
            return GatedRoute(gate, route), stop + 1
        return (layer, start + 1) if gate is None else (gate, stop)
    if not isinstance(layer, Convolution | Linear) or not gateable(layer):
        return layer, start + 1
    gate, stop = _gates(rules, start + 1)
    pool = _pool(layer, rules[stop]) if stop < len(rules) else None
    behind = None
    if isinstance(pool, Route):
        behind, stop = _gates(rules, stop + 1)
    elif pool is not None:
        stop += 1
    gated = _gated(layer, gate, pool, behind)
    last = rules[-1]
    if (
        at_logits
        and stop == len(rules) - 1
        and isinstance(layer, Linear)
        and isinstance(last, Linear)
        and last.scale == 1
        and gate is not None
    ):
        if gated is not None:
            return GatedHead(gated, gate, last), len(rules)
        if native.on_gpu(layer.weight):
            return DenseHead(layer, gate, last), len(rules)
    return (layer, start + 1) if gated is None else (gated, stop)


def _pool(layer: Convolution | Linear, rule: Rule) -> Route | Average | None:
    """Return a rule if it is a pool over the pixels of a convolution's channels.

    torch pools a (C, H, W) tensor too, so that a pool of more dimensions than the
    convolution has takes the channels for pixels. An average must have whole windows.
    """
    if not isinstance(layer, Convolution):
        return None
    spatial = layer.weight.dim() - 2
    if isinstance(rule, Route):
        return rule if rule.spatial == spatial else None
    if isinstance(rule, Average):
        return rule if len(rule.window) == spatial else None
    return None


def _gates(rules: list[Rule], start: int) -> tuple[Gate | None, int]:
    """Multiply the gates that begin at ``start`` into one; return where they end."""
    stop = start
    gates = []
    while stop < len(rules) and isinstance(gate := rules[stop], Gate):
        gates.append(gate)
        stop += 1
    if len(gates) < 2:
        return (gates[0] if gates else None), stop
    dtype = max((gate.values.dtype for gate in gates), key=_precision)
    factor = math.prod(
        (gate.factor(dtype) for gate in gates[1:]), start=gates[0].factor(dtype)
    )
    product = Gate(factor, gates[0].shape)
    product.expected = math.prod(gate.expected for gate in gates)
    product.elements = gates[0].elements
    return product, stop


def _precision(dtype: torch.dtype) -> int:
    return dtype.itemsize if dtype.is_floating_point else 0


def _gated(
    layer: Convolution | Linear,
    gate: Gate | None,
    pool: Route | Average | None,
    behind: Gate | None,
) -> GatedLayer | None:
    """Join a layer with what stands behind it; None if too much of it is live."""
    if gate is not None:
        planes = gate.shape
    elif pool is not None:
        planes = pool.in_shape
    else:
        return None
    out_shape = planes
    if isinstance(pool, Route):
        out_shape = torch.Size((planes[0], *pool.index.shape[1:]))
    elif pool is not None:
        sizes = zip(planes[2:], pool.window, strict=True)
        out_shape = torch.Size((*planes[:2], *(size // w for size, w in sizes)))
    most = most_live(layer)
    share = 1.0 if most == 0 else _share(gate, pool, behind, planes, out_shape)
    if share > most:
        return None
    entries = planes if isinstance(pool, Average) else out_shape
    packed = Packed(layer, planes, entries[2:].numel())
    live = Live(
        packed.geometry,
        planes,
        out_shape,
        gate,
        pool,
        behind,
        layer.weight,
        positions=packed.channels_leave_lanes or packed.on_gpu,
    )
    name = type(layer).__name__ + made_of(gate, pool, behind)
    gated = GatedLayer(layer, packed, live, name)
    gated.held = held_in(layer)
    return gated


def _share(
    gate: Gate | None,
    pool: Route | Average | None,
    behind: Gate | None,
    planes: torch.Size,
    out_shape: torch.Size,
) -> float:
    """Return the share of a layer's outputs that are live, at most.

    Behind a max pool the gate before it is left out: mostly winners are alive.
    """
    if not isinstance(pool, Route):
        return 1.0 if gate is None else _open_share(gate)
    pooled = out_shape.numel() / planes.numel()
    return pooled * (1.0 if behind is None else _open_share(behind))


def _open_share(gate: Gate) -> float:
    """Return the share of a gate that is open; a guess on a GPU: nobody waits."""
    return gate.expected if native.on_gpu(gate.values) else gate.share()


def gateable(layer: Convolution | Linear) -> bool:
    """Whether the native kernels can run a layer."""
    weight = layer.weight
    known = weight.dtype in (torch.float32, torch.float64)
    if not known or native.backend(weight) is None:
        return False
    if isinstance(layer, Linear):
        return layer.scale == 1
    geometry = layer.geometry
    return (
        weight.dim() in (3, 4)
        and not geometry.transposed
        and geometry.groups == 1
        and weight.shape[2:].numel() <= MOST_TAPS
    )
