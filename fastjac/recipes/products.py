"""Recipes of products: what autograd saved of them, as rules."""

from __future__ import annotations

from typing import Any

import torch

from fastjac.graph import Arc, Unsupported
from fastjac.recipes.affine import bias_of
from fastjac.rules.base import Rule
from fastjac.rules.convolution import Convolution, Geometry
from fastjac.rules.linear import Linear, MatrixProduct, linear_weight
from fastjac.rules.shape import Expand, Factor, Reshape


def number(value: Any) -> float:
    """Read a scalar argument; autograd saves none for one."""
    return 1.0 if value is None else float(value)


def addmm(arc: Arc) -> Rule | list[Rule]:
    """``beta * bias + alpha * mat1 @ mat2``, as nn.Linear."""
    if arc.argument == 0:
        beta = Factor(number(arc.saved("beta")))
        return [Expand(arc.in_shape, arc.out_shape), beta]
    scale = number(arc.saved("alpha"))
    if arc.argument == 1:
        return Linear(linear_weight(arc.saved("mat2")), scale, bias_of(arc, 0))
    return MatrixProduct(arc.saved("mat1"), "left", scale)


def mm(arc: Arc) -> Rule:
    """A matrix product."""
    if arc.argument == 0:
        return Linear(linear_weight(arc.saved("mat2")))
    return MatrixProduct(arc.saved("self"), "left")


def bmm(arc: Arc) -> Rule:
    """A batch of matrix products."""
    if arc.argument == 0:
        return MatrixProduct(arc.saved("mat2"), "right")
    return MatrixProduct(arc.saved("self"), "left")


def baddbmm(arc: Arc) -> Rule | list[Rule]:
    """A batch of matrix products, added to a tensor."""
    if arc.argument == 0:
        beta = Factor(number(arc.saved("beta")))
        return [Expand(arc.in_shape, arc.out_shape), beta]
    scale = number(arc.saved("alpha"))
    if arc.argument == 1:
        return MatrixProduct(arc.saved("batch2"), "right", scale)
    return MatrixProduct(arc.saved("batch1"), "left", scale)


def mv(arc: Arc) -> list[Rule]:
    """A matrix times a vector."""
    if arc.argument != 0 or len(arc.varying) > 1:
        raise Unsupported(arc.node, "a vector that depends on x")
    with torch.enable_grad():
        weight = arc.saved("vec").unsqueeze(0)
    column = torch.Size([*arc.out_shape, 1])
    return [Linear(weight), Reshape(column, arc.out_shape)]


def convolution(arc: Arc) -> Rule:
    """A convolution of any kind."""
    if arc.argument != 0 or len(arc.varying) > 1:
        raise Unsupported(arc.node, "a weight or bias that depends on x")
    geometry = Geometry(
        stride=tuple(arc.saved("stride")),
        padding=tuple(arc.saved("padding")),
        dilation=tuple(arc.saved("dilation")),
        transposed=arc.saved("transposed"),
        output_padding=tuple(arc.saved("output_padding")),
        groups=arc.saved("groups"),
    )
    return Convolution(arc.saved("weight"), geometry, arc.in_shape, bias_of(arc, 2))
