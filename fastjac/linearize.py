"""From the autograd graph of a forward pass to the linear maps that it consists of.

This is the one file that knows autograd's node names and what their nodes save. Each
line of `RULES` turns one kind of node into a rule, or into a chain of rules; adding a
layer means one class in ``rules/`` and one line here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastjac.graph import Arc, arcs, meta, metas, value_of
from fastjac.linearization import Edge, Linearization
from fastjac.rules.activation import Gate, Scale
from fastjac.rules.base import Rule, Transposed
from fastjac.rules.convolution import Convolution, Geometry
from fastjac.rules.linear import Linear, MatrixProduct, linear_weight
from fastjac.rules.node import Node
from fastjac.rules.pooling import Choose, Folded, Route
from fastjac.rules.shape import Cast, Expand, Factor, Pad, Permute, Reshape, Slice

aten = torch.ops.aten


class Unsupported(NotImplementedError):
    """A node of the graph has no rule; ``node`` is its name."""

    def __init__(self, node: Any, reason: str) -> None:
        self.node = node
        self.name = short_name(node)
        self.reason = reason
        super().__init__(f"{self.name}: {reason}")


def linearize(logits: Tensor, x: Tensor) -> Linearization:
    """Return the linear maps between an input and its logits.

    Args:
        logits: (N, K), computed from ``x`` with gradients enabled.
        x: (N, ...), requires grad.

    Returns:
        The linearisation at ``x``: a graph of rules that `fastjac.sweep` runs down
        (pull) and up (push). It holds the tensors that autograd saved anyway.

    Raises:
        Unsupported: a node between ``x`` and ``logits`` has no rule.
    """
    return Linearization(
        [
            Edge(arc.source, arc.target, _rules(arc), [arc.in_shape])
            for arc in arcs(logits, x)
        ],
        source=value_of(x),
        target=value_of(logits),
        x=x,
        logits=logits,
    )


def short_name(node: Any) -> str:
    """Return a node's name without its C++ namespace."""
    return node.name().rpartition("::")[2]


def _rules(arc: Arc) -> list[Rule]:
    """Return the rules of one arc in the order in which tangents pass them."""
    name = short_name(arc.node)
    make = RULES.get(name)
    if make is None:
        raise Unsupported(arc.node, "no rule for this operation")
    made = make(arc)
    rules = made if isinstance(made, list) else [made]
    if name in BROADCASTING and arc.in_shape != arc.out_shape:
        rules = [Expand(arc.in_shape, arc.out_shape), *rules]
    source, target = meta(arc.source), meta(arc.target)
    if (source.dtype, source.device) != (target.dtype, target.device):
        rules = [Cast(source, target), *rules]
    return rules


# --- Products -----------------------------------------------------------------


def _bilinear(arc: Arc, *arguments: int) -> None:
    if len(arc.varying.intersection(arguments)) > 1:
        raise Unsupported(arc.node, "a product of two tensors that both depend on x")


def _number(value: Any) -> float:
    return 1.0 if value is None else float(value)


def _addmm(arc: Arc) -> Rule | list[Rule]:
    if arc.argument == 0:
        scale = Factor(_number(arc.saved("beta")))
        return [Expand(arc.in_shape, arc.out_shape), scale]
    _bilinear(arc, 1, 2)
    scale = _number(arc.saved("alpha"))
    if arc.argument == 1:
        return Linear(linear_weight(arc.saved("mat2")), scale)
    return MatrixProduct(arc.saved("mat1"), "left", scale)


def _mm(arc: Arc) -> Rule:
    _bilinear(arc, 0, 1)
    if arc.argument == 0:
        return Linear(linear_weight(arc.saved("mat2")))
    return MatrixProduct(arc.saved("self"), "left")


def _bmm(arc: Arc) -> Rule:
    _bilinear(arc, 0, 1)
    if arc.argument == 0:
        return MatrixProduct(arc.saved("mat2"), "right")
    return MatrixProduct(arc.saved("self"), "left")


def _baddbmm(arc: Arc) -> Rule | list[Rule]:
    if arc.argument == 0:
        scale = Factor(_number(arc.saved("beta")))
        return [Expand(arc.in_shape, arc.out_shape), scale]
    _bilinear(arc, 1, 2)
    scale = _number(arc.saved("alpha"))
    if arc.argument == 1:
        return MatrixProduct(arc.saved("batch2"), "right", scale)
    return MatrixProduct(arc.saved("batch1"), "left", scale)


def _mv(arc: Arc) -> list[Rule]:
    if arc.argument != 0 or len(arc.varying) > 1:
        raise Unsupported(arc.node, "a vector that depends on x")
    with torch.enable_grad():
        weight = arc.saved("vec").unsqueeze(0)
    column = torch.Size([*arc.out_shape, 1])
    return [Linear(weight), Reshape(column, arc.out_shape)]


def _convolution(arc: Arc) -> Rule:
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
    return Convolution(arc.saved("weight"), geometry, arc.in_shape)


# --- Elementwise --------------------------------------------------------------


def _mul(arc: Arc) -> Rule:
    _bilinear(arc, 0, 1)
    other = arc.saved("other" if arc.argument == 0 else "self")
    return _scale(arc, other)


def _div(arc: Arc) -> Rule:
    if arc.argument == 1:
        raise Unsupported(arc.node, "a division by a tensor that depends on x")
    _bilinear(arc, 0, 1)
    with torch.enable_grad():
        reciprocal = 1 / arc.saved("other")
    return _scale(arc, reciprocal)


def _scale(arc: Arc, factor: Tensor) -> Rule:
    """Multiply by a tensor that broadcasts against the output, after expanding."""
    if factor.dim() == 0 and not factor.requires_grad:
        return Factor(float(factor))
    if factor.requires_grad:
        return Scale(factor, arc.out_shape)
    return Gate(factor, arc.out_shape)


def _batch_norm(arc: Arc) -> Rule:
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
    return _scale(arc, factor)


def _prelu(arc: Arc) -> Rule:
    if arc.argument != 0 or len(arc.varying) > 1:
        raise Unsupported(arc.node, "a slope that depends on x")
    with torch.enable_grad():
        factor = torch.where(arc.saved("self").detach() > 0, 1.0, arc.saved("weight"))
    return _scale(arc, factor)


def _gate(factor: Callable[[Arc], Tensor]) -> Callable[[Arc], Rule]:
    return lambda arc: Gate(factor(arc), arc.out_shape)


def _leaky(arc: Arc) -> Tensor:
    slope = arc.saved("negative_slope")
    kept = arc.saved("result" if hasattr(arc.node, "_saved_result") else "self")
    return torch.where(kept > 0, 1.0, slope).to(kept.dtype)


def _inside(arc: Arc) -> Tensor:
    kept = arc.saved("self")
    return (kept > arc.saved("min_val")) & (kept < arc.saved("max_val"))


def _clamp(arc: Arc) -> Tensor:
    kept, low, high = arc.saved("self"), arc.saved("min"), arc.saved("max")
    inside = torch.ones_like(kept, dtype=torch.bool)
    if low is not None:
        inside &= kept >= low
    if high is not None:
        inside &= kept <= high
    return inside


def _extremum(sign: int) -> Callable[[Arc], Rule]:
    def rule(arc: Arc) -> Rule:
        first, second = arc.saved("self"), arc.saved("other")
        difference = sign * (first - second).detach()
        if arc.argument == 1:
            difference = -difference
        return Gate((torch.sign(difference) + 1) / 2, arc.out_shape)

    return rule


def _where(arc: Arc) -> Rule:
    condition = arc.saved("condition")
    first = len(arc.node.next_functions) - 2
    return Gate(condition if arc.argument == first else ~condition, arc.out_shape)


# --- Pooling and reductions ---------------------------------------------------


def _route(spatial: int, saved: str = "result1") -> Callable[[Arc], Rule]:
    return lambda arc: Route(arc.saved(saved), arc.in_shape, spatial)


def _avg_pool(forward: Any, backward: Any) -> Callable[[Arc], Rule]:
    options = (
        "kernel_size",
        "stride",
        "padding",
        "ceil_mode",
        "count_include_pad",
        "divisor_override",
    )

    def rule(arc: Arc) -> Rule:
        args = [arc.saved(option) for option in options]
        return Folded(
            lambda u: forward(u, *args),
            lambda rows, like: backward(rows, like, *args),
            arc.in_shape,
            "average",
        )

    return rule


def _adaptive_avg_pool(forward: Any, backward: Any, spatial: int):
    def rule(arc: Arc) -> Rule:
        size = arc.out_shape[-spatial:]
        return Folded(lambda u: forward(u, size), backward, arc.in_shape, "average")

    return rule


def _dims(dims: Sequence[int] | int, rank: int) -> list[int]:
    """Return reduced dimensions as non-negative integers; none given means all."""
    listed = [dims] if isinstance(dims, int) else list(dims or range(rank))
    return [signed(dim) % max(rank, 1) for dim in listed]


def signed(integer: int) -> int:
    """Read an integer that autograd shows as unsigned 64-bit."""
    return integer - (1 << 64) if integer >= 1 << 63 else integer


def _kept(shape: torch.Size, dims: list[int]) -> torch.Size:
    return torch.Size(1 if d in dims else size for d, size in enumerate(shape))


def _sum(arc: Arc, dims: Sequence[int] | int = ()) -> list[Rule]:
    shape = arc.in_shape
    kept = _kept(shape, _dims(dims, len(shape)))
    return [
        Transposed(Expand(kept, shape)),
        Reshape(kept, arc.out_shape),
    ]


def _mean(arc: Arc, dims: Sequence[int] | int = ()) -> list[Rule]:
    count = arc.in_shape.numel() / max(arc.out_shape.numel(), 1)
    return [*_sum(arc, dims), Factor(1 / count)]


def _max_dim(arc: Arc) -> list[Rule]:
    (dim,) = _dims(arc.saved("dim"), len(arc.in_shape))
    kept = _kept(arc.in_shape, [dim])
    index = arc.saved("indices").reshape(kept)
    return [
        Choose(index, dim, arc.in_shape[dim]),
        Reshape(kept, arc.out_shape),
    ]


def _amax(arc: Arc) -> list[Rule]:
    """Ties share the cotangent evenly, as autograd has it."""
    dims = _dims(arc.saved("dim"), len(arc.in_shape))
    kept = arc.saved("result").detach().reshape(_kept(arc.in_shape, dims))
    winners = (arc.saved("self").detach() == kept).to(kept.dtype)
    share = winners / winners.sum(dims, keepdim=True)
    return [Gate(share, arc.in_shape), *_sum(arc, dims)]


# --- Shape --------------------------------------------------------------------


def _reshape(arc: Arc) -> Rule:
    return Reshape(arc.in_shape, arc.out_shape)


def _transpose(arc: Arc) -> Rule:
    rank = len(arc.in_shape)
    dims = list(range(rank))
    a, b = (signed(arc.saved(name)) % rank for name in ("dim0", "dim1"))
    dims[a], dims[b] = b, a
    return Permute(dims)


def _permute(arc: Arc) -> Rule:
    rank = len(arc.in_shape)
    return Permute([signed(dim) % rank for dim in arc.saved("dims")])


def _slice(arc: Arc) -> Rule:
    dim = signed(arc.saved("dim")) % len(arc.in_shape)
    bounds = (signed(arc.saved(name)) for name in ("start", "end", "step"))
    return Slice(dim, *bounds, arc.in_shape[dim])


def _one(arc: Arc, dim: int, index: int) -> list[Rule]:
    """Take one index of a dimension and drop the dimension."""
    size = arc.in_shape[dim]
    return [
        Slice(dim, index % size, index % size + 1, 1, size),
        Reshape(_kept(arc.in_shape, [dim]), arc.out_shape),
    ]


def _select(arc: Arc) -> list[Rule]:
    dim = signed(arc.saved("dim")) % len(arc.in_shape)
    return _one(arc, dim, signed(arc.saved("index")))


def _unbind(arc: Arc) -> list[Rule]:
    dim = signed(arc.saved("dim")) % len(arc.in_shape)
    return _one(arc, dim, arc.target[1])


def _split(arc: Arc) -> Rule:
    dim = signed(arc.saved("dim")) % len(arc.in_shape)
    start = sum(part.shape[dim] for part in metas(arc.node)[: arc.target[1]])
    stop = start + arc.out_shape[dim]
    return Slice(dim, start, stop, 1, arc.in_shape[dim])


def _cat(arc: Arc) -> Rule:
    rank = len(arc.out_shape)
    dim = signed(arc.saved("dim")) % rank
    before = _cat_size(arc, dim, range(arc.argument))
    after = _cat_size(arc, dim, range(arc.argument + 1, len(arc.node.next_functions)))
    rest = arc.out_shape[dim] - arc.in_shape[dim]
    if before is None and after is None:
        return _node(arc)
    if before is None:
        before = rest - after
    return Pad([0, 0] * (rank - 1 - dim) + [before, rest - before], dim)


def _cat_size(arc: Arc, dim: int, arguments: range) -> int | None:
    """Return the joint size of some arguments; None where one is a constant.

    Autograd does not save the size of a constant that was concatenated.
    """
    edges = [arc.node.next_functions[i] for i in arguments]
    if any(edge[0] is None for edge in edges):
        return None
    return sum(meta(edge).shape[dim] for edge in edges)


def _stack(arc: Arc) -> list[Rule]:
    rank = len(arc.out_shape)
    dim = signed(arc.saved("dim")) % rank
    single = _kept(arc.out_shape, [dim])
    amounts = [arc.argument, arc.out_shape[dim] - arc.argument - 1]
    return [
        Reshape(arc.in_shape, single),
        Pad([0, 0] * (rank - 1 - dim) + amounts, dim),
    ]


def _pad(arc: Arc) -> Rule:
    amounts = [signed(amount) for amount in arc.saved("pad")]
    rank = len(arc.in_shape)
    return Pad(amounts + [0] * (2 * rank - len(amounts)), 0)


def _node(arc: Arc) -> Rule:
    return Node(arc.node, arc.target[1], arc.argument, metas(arc.node))


def _identity(arc: Arc) -> Rule:
    return Rule()


def _signed(*signs: float) -> Callable[[Arc], Rule]:
    """A sum's argument: ``signs[i]`` times alpha, where alpha belongs to the second."""

    def rule(arc: Arc) -> Rule:
        factor = signs[arc.argument]
        if arc.argument == 1:
            factor *= _number(arc.saved("alpha"))
        return Rule() if factor == 1 else Factor(factor)

    return rule


def _smooth(function: Callable[..., Tensor], *options: str) -> Callable[[Arc], Rule]:
    """A smooth activation: its slope at u, which carries gradient back to u."""

    def rule(arc: Arc) -> Rule:
        u = arc.saved("self")
        keywords = {option: arc.saved(option) for option in options}
        with torch.enable_grad():
            value = function(u, **keywords).sum()
            (slope,) = torch.autograd.grad(value, u, create_graph=True)
        return _scale(arc, slope)

    return rule


def _smooth_result(slope: Callable[[Tensor], Tensor]) -> Callable[[Arc], Rule]:
    """A smooth function whose slope is known from its result."""

    def rule(arc: Arc) -> Rule:
        with torch.enable_grad():
            factor = slope(arc.saved("result"))
        return _scale(arc, factor)

    return rule


def _elu_in_place(arc: Arc) -> Rule:
    """ELU, CELU and SELU in place save their result, from which the slope follows."""
    alpha, scale, steepness = (
        float(arc.saved(name)) for name in ("alpha", "scale", "input_scale")
    )
    with torch.enable_grad():
        result = arc.saved("result")
        left = (result + alpha * scale) * steepness
        slope = torch.where(result > 0, scale, left)
    return _scale(arc, slope)


#: Operations whose arguments may be broadcast to the shape of the result.
BROADCASTING = frozenset(
    f"{name}Backward0"
    for name in ("Add", "Sub", "Mul", "Div", "Maximum", "Minimum", "Where", "Rsub")
)

RULES: dict[str, Callable[[Arc], Rule | list[Rule]]] = {
    # products
    "AddmmBackward0": _addmm,
    "MmBackward0": _mm,
    "BmmBackward0": _bmm,
    "BaddbmmBackward0": _baddbmm,
    "MvBackward0": _mv,
    "ConvolutionBackward0": _convolution,
    # sums and scales
    "AddBackward0": _signed(1, 1),
    "AddBackward1": _identity,
    "SubBackward0": _signed(1, -1),
    "SubBackward1": _identity,
    "RsubBackward0": lambda arc: Factor(
        1.0 if arc.argument else -_number(arc.saved("alpha"))
    ),
    "RsubBackward1": lambda arc: Factor(-_number(arc.saved("alpha"))),
    "NegBackward0": lambda arc: Factor(-1.0),
    "MulBackward0": _mul,
    "DivBackward0": _div,
    "NativeBatchNormBackward0": _batch_norm,
    "CudnnBatchNormBackward0": _batch_norm,
    "NativeDropoutBackward0": lambda arc: Gate(
        arc.saved("result1") / (1 - arc.saved("p")), arc.out_shape
    ),
    # piecewise-linear activations
    "ReluBackward0": lambda arc: Gate(arc.saved("result"), arc.out_shape, step=True),
    "LeakyReluBackward0": _gate(_leaky),
    "LeakyReluBackward1": _gate(_leaky),
    "PreluKernelBackward0": _prelu,
    "HardtanhBackward0": _gate(_inside),
    "HardtanhBackward1": _gate(_inside),
    "ThresholdBackward0": _gate(lambda a: a.saved("self") > a.saved("threshold")),
    "AbsBackward0": _gate(lambda arc: torch.sign(arc.saved("self"))),
    "ClampBackward1": _gate(_clamp),
    "ClampMinBackward0": _gate(lambda arc: arc.saved("self") >= arc.saved("min")),
    "ClampMaxBackward0": _gate(lambda arc: arc.saved("self") <= arc.saved("max")),
    "MaximumBackward0": _extremum(1),
    "MinimumBackward0": _extremum(-1),
    "WhereBackward0": _where,
    "MaskedFillBackward0": _gate(lambda arc: ~arc.saved("mask")),
    # smooth activations
    "GeluBackward0": _smooth(F.gelu, "approximate"),
    "SiluBackward0": _smooth(F.silu),
    "SoftplusBackward0": _smooth(F.softplus, "beta", "threshold"),
    "EluBackward0": _smooth(aten.elu, "alpha", "scale", "input_scale"),
    "EluBackward1": _elu_in_place,
    "CeluBackward0": _smooth(F.celu, "alpha"),
    "MishBackward0": _smooth(F.mish),
    "HardswishBackward0": _smooth(F.hardswish),
    "HardsigmoidBackward0": _smooth(F.hardsigmoid),
    "TanhBackward0": _smooth_result(lambda result: 1 - result * result),
    "SigmoidBackward0": _smooth_result(lambda result: result * (1 - result)),
    "ExpBackward0": _smooth_result(lambda result: result),
    # pooling and reductions
    "MaxPool2DWithIndicesBackward0": _route(2),
    "MaxPool3DWithIndicesBackward0": _route(3),
    "AdaptiveMaxPool2DBackward0": _route(2),
    "AdaptiveMaxPool3DBackward0": _route(3),
    "FractionalMaxPool2DBackward0": _route(2),
    "MaxBackward0": _max_dim,
    "MinBackward0": _max_dim,
    "AmaxBackward0": _amax,
    "AminBackward0": _amax,
    "AvgPool2DBackward0": _avg_pool(aten.avg_pool2d, aten.avg_pool2d_backward),
    "AvgPool3DBackward0": _avg_pool(aten.avg_pool3d, aten.avg_pool3d_backward),
    "AdaptiveAvgPool2DBackward0": _adaptive_avg_pool(
        aten._adaptive_avg_pool2d, aten._adaptive_avg_pool2d_backward, 2
    ),
    "AdaptiveAvgPool3DBackward0": _adaptive_avg_pool(
        aten._adaptive_avg_pool3d, aten._adaptive_avg_pool3d_backward, 3
    ),
    "SumBackward0": _sum,
    "SumBackward1": lambda arc: _sum(arc, arc.saved("dim")),
    "MeanBackward0": _mean,
    "MeanBackward1": lambda arc: _mean(arc, arc.saved("dim")),
    # shape
    **dict.fromkeys(
        (
            "ViewBackward0",
            "UnsafeViewBackward0",
            "ReshapeAliasBackward0",
            "SqueezeBackward0",
            "SqueezeBackward1",
            "SqueezeBackward2",
            "UnsqueezeBackward0",
        ),
        _reshape,
    ),
    **dict.fromkeys(("AliasBackward0", "CloneBackward0", "ToCopyBackward0"), _identity),
    "TBackward0": lambda arc: Permute([1, 0]),
    "TransposeBackward0": _transpose,
    "PermuteBackward0": _permute,
    "ExpandBackward0": lambda arc: Expand(arc.in_shape, arc.out_shape),
    "SliceBackward0": _slice,
    "SelectBackward0": _select,
    "UnbindBackward0": _unbind,
    "SplitBackward0": _split,
    "SplitWithSizesBackward0": _split,
    "CatBackward0": _cat,
    "StackBackward0": _stack,
    "ConstantPadNdBackward0": _pad,
    # linear, rare: through autograd's node
    **dict.fromkeys(
        (
            "CopySlices",
            "CopyBackwards",
            *(f"ReflectionPad{d}DBackward0" for d in (1, 2, 3)),
            *(f"ReplicationPad{d}DBackward0" for d in (1, 2, 3)),
            *(f"UpsampleNearest{d}DBackward0" for d in (1, 2, 3)),
            *(f"UpsampleNearestExact{d}DBackward0" for d in (1, 2, 3)),
            "UpsampleLinear1DBackward0",
            "UpsampleBilinear2DBackward0",
            "UpsampleBicubic2DBackward0",
            "UpsampleTrilinear3DBackward0",
            "IndexBackward0",
            "IndexSelectBackward0",
            "GatherBackward0",
            "FlipBackward0",
            "RollBackward0",
            "RepeatBackward0",
            "UnfoldBackward0",
            "Im2ColBackward0",
            "Col2ImBackward0",
            "PixelShuffleBackward0",
            "PixelUnshuffleBackward0",
            "ChannelShuffleBackward0",
            "CumsumBackward0",
            "DiagonalBackward0",
            "TrilBackward0",
            "TriuBackward0",
            "AsStridedBackward0",
        ),
        _node,
    ),
}
