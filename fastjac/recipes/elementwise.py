"""Recipes of elementwise operations: gates, scales, smooth slopes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from fastjac.graph import Arc, Unsupported
from fastjac.recipes import slopes
from fastjac.recipes.products import number
from fastjac.recipes.shapes import reduced, signed
from fastjac.rules.activation import Gate, Scale
from fastjac.rules.base import Rule, Transposed
from fastjac.rules.shape import Expand, Factor, Reshape


def mul(arc: Arc) -> Rule:
    """A product: each factor is scaled by the other, which may depend on x too."""
    return scale(arc, arc.saved("other" if arc.argument == 0 else "self"))


def div(arc: Arc) -> Rule:
    """A quotient a / b: a is scaled by 1 / b, b by -a / b^2."""
    with torch.enable_grad():
        divisor = arc.saved("other").to(arc.dtype)
        if arc.argument == 0:
            return scale(arc, 1 / divisor)
        return scale(arc, -arc.saved("self") / divisor.square())


def addcmul(arc: Arc) -> Rule:
    """``a + value * b * c``."""
    if arc.argument == 0:
        return Rule()
    other = arc.saved("tensor2" if arc.argument == 1 else "tensor1")
    with torch.enable_grad():
        return scale(arc, other * float(arc.saved("value")))


def lerp(arc: Arc) -> Rule:
    """``a + w (b - a)`` for a number w."""
    weight = float(arc.saved("weight"))
    return Factor(weight if arc.argument else 1 - weight)


def scale(arc: Arc, factor: Tensor, shape: torch.Size | None = None) -> Rule:
    """Multiply by a tensor that broadcasts against the output, after expanding.

    ``shape`` is that of what is multiplied where it is not the output.
    """
    shape = arc.out_shape if shape is None else shape
    if factor.dim() == 0 and factor.device.type == "cpu" and not factor.requires_grad:
        return Factor(float(factor))
    if factor.requires_grad:
        return Scale(factor, shape)
    return Gate(factor, shape)


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
    kept = arc.saved("result" if arc.saves("result") else "self")
    slope = torch.full_like(kept, arc.saved("negative_slope"), requires_grad=False)
    return slope.masked_fill_(kept > 0, 1)


def randomly_leaky(arc: Arc) -> Tensor:
    """RReLU: the slopes that were drawn, or in eval mode the mean of their range."""
    noise = arc.saved("noise")
    if arc.saved("training"):
        return noise
    kept = arc.saved("result" if arc.saves("result") else "self")
    slope = (float(arc.saved("lower")) + float(arc.saved("upper"))) / 2
    return torch.full_like(kept, slope, requires_grad=False).masked_fill_(kept > 0, 1)


def dropped(arc: Arc) -> Tensor:
    """Dropout as one operation: the mask of what was kept, scaled up."""
    mask = arc.saved("result1").to(arc.dtype)
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
    return sloped(partial(slopes.by_autograd, function), *options)


def sloped(slope: Callable[..., Tensor], *options: str) -> Callable[[Arc], Rule]:
    """An activation whose slope at u, differentiable, is known."""

    def rule(arc: Arc) -> Rule:
        keywords = {option: arc.saved(option) for option in options}
        return scale(arc, slope(arc.saved("self"), **keywords))

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


def celu_in_place(arc: Arc) -> Rule:
    """CELU in place: slope 1, or result / alpha + 1 on the negative side."""
    alpha = float(arc.saved("alpha"))
    with torch.enable_grad():
        result = arc.saved("result")
        slope = torch.where(result > 0, 1.0, result / alpha + 1)
    return scale(arc, slope)


def term(*signs: float) -> Callable[[Arc], Rule]:
    """A sum's argument: ``signs[i]`` times alpha, where alpha belongs to the second."""

    def rule(arc: Arc) -> Rule:
        factor = signs[arc.argument]
        if arc.argument == 1:
            factor *= number(arc.saved("alpha"))
        return Rule() if factor == 1 else Factor(factor)

    return rule


def power(arc: Arc) -> Rule:
    """``u ** a`` for a number a: slope ``a u ** (a - 1)``."""
    exponent = arc.saved("exponent")
    with torch.enable_grad():
        slope = exponent * arc.saved("self").pow(exponent - 1)
        return scale(arc, slope)


def glu(arc: Arc) -> list[Rule]:
    """``a * sigmoid(b)`` of the two halves of a dimension: both scaled, then added."""
    dim = signed(arc.saved("dim")) % len(arc.in_shape)
    with torch.enable_grad():
        value, gate = arc.saved("self").chunk(2, dim)
        opened = gate.sigmoid()
        slopes = torch.cat([opened, value * opened * (1 - opened)], dim)
    half = (2, arc.in_shape[dim] // 2)
    split = torch.Size((*arc.in_shape[:dim], *half, *arc.in_shape[dim + 1 :]))
    summed = reduced(split, [dim])
    return [
        scale(arc, slopes, arc.in_shape),
        Reshape(arc.in_shape, split),
        Transposed(Expand(summed, split)),
        Reshape(summed, arc.out_shape),
    ]
