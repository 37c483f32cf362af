"""Hypothesis strategies that draw piecewise-linear networks and their inputs.

A network is drawn as a tree of `Spec`s, so that a failing example prints as the module
it is, and is built from it twice with the same weights: once in float32, once in
float64. Weights are representable in float32, so both are the same function.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from hypothesis import strategies as st
from layers import (
    SHAPE_OPERATIONS,
    Absolute,
    Concatenate,
    Constant,
    Divide,
    Maxout,
    Normalise,
    Reduce,
    Residual,
    Scale,
    Shape,
    Siamese,
    Split,
    Stack,
    Twice,
)
from specs import Drawn, Spec, output_shape, spec, spectral_norm, weight_norm
from torch import nn

WIDTHS = st.sampled_from([1, 2, 3, 4, 5, 6, 8, 20])
CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
CONV_TRANSPOSE = {
    1: nn.ConvTranspose1d,
    2: nn.ConvTranspose2d,
    3: nn.ConvTranspose3d,
}
MAX_POOL = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
AVG_POOL = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
ADAPTIVE = {
    1: (nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d),
    2: (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d),
    3: (nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool3d),
}
BATCH_NORM = {
    0: nn.BatchNorm1d,
    1: nn.BatchNorm1d,
    2: nn.BatchNorm2d,
    3: nn.BatchNorm3d,
}
PAD = {1: nn.ConstantPad1d, 2: nn.ConstantPad2d, 3: nn.ConstantPad3d}


def axes(draw: st.DrawFn, dims: int, low: int, high: int) -> tuple[int, ...]:
    return tuple(draw(st.integers(low, high)) for _ in range(dims))


def draw_convolution(draw: st.DrawFn, shape: tuple[int, ...]) -> Spec:
    channels, dims = shape[0], len(shape) - 1
    groups = draw(st.sampled_from([g for g in (1, 1, 2, 3) if channels % g == 0]))
    out = groups * draw(WIDTHS) if groups > 1 else draw(WIDTHS)
    mode = draw(st.sampled_from(["zeros"] * 5 + ["reflect", "replicate", "circular"]))
    kwargs = {
        "kernel_size": axes(draw, dims, 1, 5 if dims < 3 else 2),
        "dilation": axes(draw, dims, 1, 2),
        "groups": groups,
        "bias": draw(st.booleans()),
        "padding_mode": mode,
    }
    if draw(st.integers(0, 5)) == 0:
        kwargs["padding"] = "same"
    else:
        kwargs["padding"] = axes(draw, dims, 0, 2)
        kwargs["stride"] = axes(draw, dims, 1, 3)
    return spec(CONV[dims], channels, out, **kwargs)


def draw_transposed(draw: st.DrawFn, shape: tuple[int, ...]) -> Spec:
    channels, dims = shape[0], len(shape) - 1
    groups = draw(st.sampled_from([g for g in (1, 2) if channels % g == 0]))
    stride = axes(draw, dims, 1, 2)
    return spec(
        CONV_TRANSPOSE[dims],
        channels,
        groups * draw(st.integers(1, 4)),
        kernel_size=axes(draw, dims, 1, 3),
        stride=stride,
        padding=axes(draw, dims, 0, 1),
        output_padding=tuple(draw(st.integers(0, s - 1)) for s in stride),
        dilation=axes(draw, dims, 1, 2),
        groups=groups,
        bias=draw(st.booleans()),
    )


def draw_linear(draw: st.DrawFn, shape: tuple[int, ...]) -> Spec:
    """Acts on the last axis, whatever the number of axes before it."""
    return spec(nn.Linear, shape[-1], draw(WIDTHS), bias=draw(st.booleans()))


def draw_pool(draw: st.DrawFn, shape: tuple[int, ...]) -> Spec:
    dims = len(shape) - 1
    kind = draw(st.sampled_from(["max", "max", "avg", "adaptive avg", "adaptive max"]))
    if kind.startswith("adaptive"):
        return spec(ADAPTIVE[dims][kind == "adaptive max"], axes(draw, dims, 1, 4))
    kernel = axes(draw, dims, 1, 3)
    kwargs: dict[str, Any] = {
        "kernel_size": kernel,
        "stride": axes(draw, dims, 1, 3),
        "padding": tuple(draw(st.integers(0, k // 2)) for k in kernel),
        "ceil_mode": draw(st.booleans()),
    }
    if kind == "avg":
        if dims > 1 and draw(st.booleans()):
            kwargs["divisor_override"] = draw(st.integers(1, 5))
        kwargs["count_include_pad"] = draw(st.booleans())
        return spec(AVG_POOL[dims], **kwargs)
    return spec(MAX_POOL[dims], dilation=axes(draw, dims, 1, 2), **kwargs)


def draw_activation(draw: st.DrawFn, shape: tuple[int, ...]) -> Spec:
    choices = [
        spec(nn.ReLU),
        spec(nn.ReLU),
        spec(nn.LeakyReLU, draw(st.sampled_from([0.01, 0.3]))),
        spec(nn.ReLU6),
        spec(nn.Hardtanh, -0.4, 0.6),
        spec(Absolute),
        spec(nn.Dropout, 0.4),
    ]
    choices += [
        spec(Maxout, pieces, op)
        for pieces, op in itertools.product((2, 3), ("max", "amax"))
        if shape[0] % pieces == 0
    ]
    if len(shape) > 1:
        choices.append(spec(nn.Dropout2d if len(shape) == 3 else nn.Dropout, 0.3))
    return draw(st.sampled_from(choices))


def draw_normalisation(draw: st.DrawFn, shape: tuple[int, ...]) -> Spec:
    channels, dims = shape[0], len(shape) - 1
    affine = draw(st.booleans())
    choices = [
        spec(BATCH_NORM[dims], channels, affine=affine),
        spec(Normalise, channels),
        spec(Scale, channels),
        spec(Divide, channels),
        spec(Constant, draw(st.sampled_from(["2 x + 1", "x / 3 - 1", "1 - x"]))),
    ]
    return draw(st.sampled_from(choices))


def draw_reshaping(draw: st.DrawFn, shape: tuple[int, ...]) -> Spec:
    dims = len(shape) - 1
    if dims == 0:
        return spec(nn.Unflatten, 1, (1, shape[0]))
    kind = draw(st.sampled_from(["shape", "shape", "pad", "upsample", "reduce"]))
    if kind == "pad":
        return spec(
            PAD[dims], axes(draw, 2 * dims, 0, 2), draw(st.sampled_from([0, 1]))
        )
    if kind == "upsample":
        return spec(nn.Upsample, scale_factor=2, mode="nearest")
    if kind == "reduce":
        dim = draw(st.integers(1, dims + 1))
        op = draw(st.sampled_from(["mean", "sum"]))
        return spec(Reduce, op, (dim,), draw(st.booleans()))
    return spec(Shape, draw(st.sampled_from(SHAPE_OPERATIONS)))


def draw_weighted(draw: st.DrawFn, shape: tuple[int, ...]) -> Spec:
    """A linear or convolution layer, its weight sometimes computed."""
    dims = len(shape) - 1
    if dims == 0 or draw(st.integers(0, 9)) == 0:
        layer = draw_linear(draw, shape)
    elif draw(st.integers(0, 3)) == 0:
        layer = draw_transposed(draw, shape)
    else:
        layer = draw_convolution(draw, shape)
    wraps = [None] * 6 + [weight_norm]
    if min(layer.build().weight.shape[:2]) > 1:
        # Of a weight of rank one the spectral norm leaves nothing that can be learnt.
        wraps.append(spectral_norm)
    wrap = draw(st.sampled_from(wraps))
    return spec(wrap, layer) if wrap else layer


def draw_preserving(draw: st.DrawFn, shape: tuple[int, ...]) -> Spec:
    """A branch whose output has the shape of its input."""
    channels, dims = shape[0], len(shape) - 1
    bias = draw(st.booleans())
    if dims == 0:
        layer = spec(nn.Linear, channels, channels, bias=bias)
    else:
        layer = spec(CONV[dims], channels, channels, 3, padding=1, bias=bias)
    form = draw(st.sampled_from(["linear", "relu", "in-place relu", "relu first"]))
    if form == "linear":
        return layer
    if form == "relu first":
        return spec(nn.Sequential, spec(nn.ReLU), layer)
    return spec(nn.Sequential, layer, spec(nn.ReLU, inplace=form == "in-place relu"))


def draw_branching(draw: st.DrawFn, shape: tuple[int, ...]) -> Spec:
    kind = draw(st.sampled_from(["residual", "cat", "split", "stack", "twice", "both"]))
    if kind == "split" and shape[0] > 1:
        first = draw(st.integers(1, shape[0] - 1))
        branch = draw_preserving(draw, (first, *shape[1:]))
        op = draw(st.sampled_from(["split", "tensor_split", "slice"]))
        return spec(Split, branch, first, op)
    branch = draw_preserving(draw, shape)
    if kind == "cat":
        return spec(Concatenate, branch, draw(st.integers(1, len(shape))))
    if kind == "stack":
        op = draw(st.sampled_from(["sum", "mean", "max", "amax"]))
        return spec(Stack, branch, draw(st.integers(1, len(shape) + 1)), op)
    if kind == "twice":
        return spec(Twice, branch)
    if kind == "both":
        return spec(Siamese, branch)
    forms = ["x + f", "x - f", "f - x", "x + 0.7 f", "x - 0.7 f"]
    return spec(Residual, branch, draw(st.sampled_from(forms)))


def draw_block(draw: st.DrawFn, shape: tuple[int, ...]) -> list[Spec]:
    """One to three layers that make sense together; the caller checks that they fit."""
    kind = draw(st.integers(0, 9))
    if kind <= 4:
        block = [draw_weighted(draw, shape)]
        after = output_shape(block[0], shape)
        if after is None:
            return []
        if draw(st.integers(0, 3)) == 0:
            block.append(spec(nn.ReLU, inplace=True))
        elif draw(st.booleans()):
            block.append(draw_activation(draw, after))
        if len(after) > 1 and draw(st.booleans()):
            block.append(draw_pool(draw, after))
        return block
    if kind == 5 and len(shape) > 1:
        return [draw_pool(draw, shape)]
    if kind == 6:
        return [draw_normalisation(draw, shape)]
    if kind == 7:
        return [draw_reshaping(draw, shape)]
    if kind == 8:
        return [draw_activation(draw, shape)]
    return [draw_branching(draw, shape)]


@st.composite
def drawn_shapes(draw: st.DrawFn) -> tuple[int, ...]:
    dims = draw(st.sampled_from([0, 0, 1, 2, 2, 2, 2, 3]))
    if dims == 0:
        return (draw(st.sampled_from([1, 2, 3, 7, 20, 33])),)
    channels = draw(st.sampled_from([1, 2, 3, 4]))
    longest = {1: 17, 2: 9, 3: 4}[dims]
    return (channels, *axes(draw, dims, 2, longest))


@st.composite
def networks(draw: st.DrawFn, max_blocks: int = 5) -> Drawn:
    """Any network that DESIGN section 8 lists, small."""
    shape = first = draw(drawn_shapes())
    layers: list[Spec] = []
    if draw(st.integers(0, 3)) == 0:
        layers.append(spec(Normalise, shape[0]))
    for _ in range(draw(st.integers(0, max_blocks))):
        for layer in draw_block(draw, shape):
            after = output_shape(layer, shape)
            if after is None or len(after) > 4:
                break
            layers.append(layer)
            shape = after
    classes = draw(st.sampled_from([1, 2, 3, 4, 5, 10]))
    layers += draw_head(draw, shape, classes)
    model = nn.Sequential(*[layer.build() for layer in layers])
    count = len(list(model.parameters()))
    frozen = draw(st.frozensets(st.integers(0, count - 1), max_size=min(2, count - 1)))
    samples = draw(st.integers(1, 4))
    seed = draw(st.integers(0, 2**20))
    return Drawn(tuple(layers), first, classes, samples, seed, frozen)


def draw_head(draw: st.DrawFn, shape: tuple[int, ...], classes: int) -> list[Spec]:
    layers = []
    if len(shape) > 1:
        if draw(st.integers(0, 3)) == 0:
            layers.append(spec(Reduce, "mean", tuple(range(2, len(shape) + 1))))
            shape = shape[:1]
        else:
            layers.append(spec(nn.Flatten))
            shape = (torch.Size(shape).numel(),)
    if draw(st.booleans()):
        hidden = draw(st.sampled_from([1, 5, 16, 33]))
        layers += [spec(nn.Linear, shape[0], hidden), spec(nn.ReLU)]
        shape = (hidden,)
    layers.append(spec(nn.Linear, shape[0], classes, bias=draw(st.booleans())))
    if classes > 2 and draw(st.integers(0, 5)) == 0:
        layers.append(spec(nn.ReLU))
    return layers
