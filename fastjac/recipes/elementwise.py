"""Recipes of elementwise operations: gates, scales, smooth slopes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastjac.graph import Arc, Unsupported, meta
from fastjac.recipes.products import bilinear, number
from fastjac.rules.activation import Gate, Scale
from fastjac.rules.base import Rule
from fastjac.rules.shape import Factor


def mul(arc: Arc) -> Rule:
    """A product with a tensor that does not depend on x."""
    bilinear(arc, 0, 1)
    other = arc.saved("other" if arc.argument == 0 else "self")
    return scale(arc, other)


def div(arc: Arc) -> Rule:
    """A division by a tensor that does not depend on x."""
    if arc.argument == 1:
        raise Unsupported(arc.node, "a division by a tensor that depends on x")
    bilinear(arc, 0, 1)
    with torch.enable_grad():
        divisor = arc.saved("other").to(meta(arc.target).dtype)
        return scale(arc, 1 / divisor)


def scale(arc: Arc, factor: Tensor) -> Rule:
    """Multiply by a tensor that broadcasts against the output, after expanding."""
    if factor.dim() == 0 and factor.device.type == "cpu" and not factor.requires_grad:
        return Factor(float(factor))
    if factor.requires_grad:
        return Scale(factor, arc.out_shape)
    return Gate(factor, arc.out_shape)


def batch_norm(arc: Arc) -> Rule:
    """BatchNorm in eval mode: a scale a channel, with gradient to its weight."""
    if arc.argument != 0:
        raise Unsupported(arc.node, "a scale or shift that depends on x")
    if arc.saved("training"):
        raise Unsupported(
            arc.node,
            "BatchNorm in training mode couples the samples of a batch; "
            "call model.eval(), or .eval() on its BatchNorm modules",
        )
    weight = arc.saved("weight")
    with torch.enable_grad():
        factor = torch.rsqrt(arc.saved("running_var") + arc.saved("eps"))
        if weight is not None:
            factor = weight * factor
        factor = factor.view(-1, *(1,) * (len(arc.out_shape) - 2))
    return scale(arc, factor)


def prelu(arc: Arc) -> Rule:
    """A learned slope on the negative side."""
    if arc.argument != 0 or len(arc.varying) > 1:
        raise Unsupported(arc.node, "a slope that depends on x")
    with torch.enable_grad():
        factor = torch.where(arc.saved("self").detach() > 0, 1.0, arc.saved("weight"))
    return scale(arc, factor)


def gate(factor: Callable[[Arc], Tensor]) -> Callable[[Arc], Rule]:
    """An activation whose slope is constant almost everywhere."""
    return lambda arc: Gate(factor(arc), arc.out_shape)


def leaky(arc: Arc) -> Tensor:
    """LeakyReLU: 1 or the negative slope."""
    kept = arc.saved("result" if hasattr(arc.node, "_saved_result") else "self")
    slope = torch.full_like(kept, arc.saved("negative_slope"), requires_grad=False)
    return slope.masked_fill_(kept > 0, 1)


def dropped(arc: Arc) -> Tensor:
    """Dropout as one operation: the mask of what was kept, scaled up."""
    mask = arc.saved("result1").to(meta(arc.target).dtype)
    keep = 1 - float(arc.saved("p"))
    return mask / keep if keep > 0 else mask


def hard_sigmoid(arc: Arc) -> Tensor:
    """Slope 1/6 strictly between -3 and 3."""
    kept = arc.saved("self")
    return (kept.abs() < 3).to(kept.dtype) / 6


def inside(arc: Arc) -> Tensor:
    """Hardtanh and ReLU6: 1 strictly between the bounds."""
    kept = arc.saved("self")
    return (kept > arc.saved("min_val")) & (kept < arc.saved("max_val"))


def clamped(arc: Arc) -> Tensor:
    """Clamp: 1 between the bounds and on them."""
    kept, low, high = arc.saved("self"), arc.saved("min"), arc.saved("max")
    inside = torch.ones_like(kept, dtype=torch.bool)
    if low is not None:
        inside &= kept >= low
    if high is not None:
        inside &= kept <= high
    return inside


def extremum(sign: int) -> Callable[[Arc], Rule]:
    """The larger (sign 1) or smaller (-1) of two; ties share evenly, as in autograd."""

    def rule(arc: Arc) -> Rule:
        first, second = arc.saved("self"), arc.saved("other")
        difference = sign * (first - second).detach()
        if arc.argument == 1:
            difference = -difference
        return Gate((torch.sign(difference) + 1) / 2, arc.out_shape)

    return rule


def where(arc: Arc) -> Rule:
    """One of two, by a condition."""
    condition = arc.saved("condition")
    first = len(arc.node.next_functions) - 2
    return Gate(condition if arc.argument == first else ~condition, arc.out_shape)


def smooth(function: Callable[..., Tensor], *options: str) -> Callable[[Arc], Rule]:
    """A smooth activation: its slope at u, which carries gradient back to u."""

    def rule(arc: Arc) -> Rule:
        u = arc.saved("self")
        keywords = {option: arc.saved(option) for option in options}
        with torch.enable_grad():
            value = function(u, **keywords).sum()
            (slope,) = torch.autograd.grad(value, u, create_graph=True)
        return scale(arc, slope)

    return rule


def smooth_result(slope: Callable[[Tensor], Tensor]) -> Callable[[Arc], Rule]:
    """A smooth function whose slope is known from its result."""

    def rule(arc: Arc) -> Rule:
        with torch.enable_grad():
            factor = slope(arc.saved("result"))
        return scale(arc, factor)

    return rule


def elu_in_place(arc: Arc) -> Rule:
    """ELU, CELU and SELU in place save their result, from which the slope follows."""
    alpha, height, steepness = (
        float(arc.saved(name)) for name in ("alpha", "scale", "input_scale")
    )
    with torch.enable_grad():
        result = arc.saved("result")
        left = (result + alpha * height) * steepness
        slope = torch.where(result > 0, height, left)
    return scale(arc, slope)


def term(*signs: float) -> Callable[[Arc], Rule]:
    """A sum's argument: ``signs[i]`` times alpha, where alpha belongs to the second."""

    def rule(arc: Arc) -> Rule:
        factor = signs[arc.argument]
        if arc.argument == 1:
            factor *= number(arc.saved("alpha"))
        return Rule() if factor == 1 else Factor(factor)

    return rule
