"""From the autograd graph of a forward pass to the linear maps that it consists of.

This is the one file that knows autograd's node names and what their nodes save. Each
line of `RULES` turns one kind of node into a rule, or into a chain of rules; adding a
layer means one class in ``rules/`` and one line here.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fastjac.eager import eager
from fastjac.edges import Edge
from fastjac.graph import (
    Arc,
    Unsupported,
    connecting_arcs,
    recomputed_once,
    value_of,
)
from fastjac.linearization import Linearization
from fastjac.precision import Place, without_autocast
from fastjac.recipes import (
    affine,
    attention,
    elementwise,
    normalization,
    products,
    reductions,
    shapes,
    slopes,
)
from fastjac.rules.activation import Gate
from fastjac.rules.base import Rule
from fastjac.rules.shape import Cast, Expand, Factor, Permute

aten = torch.ops.aten


@eager
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
        NotImplementedError: a node cannot be looked into, by autograd neither.
        ValueError: ``logits`` do not depend on ``x``.
    """
    found = connecting_arcs(logits, x)
    with recomputed_once(), without_autocast(logits.device):
        edges = [edge for arc in found for edge in _edges(arc)]
    return Linearization(
        edges,
        source=value_of(x),
        target=value_of(logits),
        x=x,
        logits=logits,
        batch_statistics=_with_batch_statistics(found),
        exact=all(affine.is_exact(arc, logits.shape[0]) for arc in found),
    )


def without_rule(logits: Tensor, x: Tensor) -> list[Unsupported]:
    """Return the operations between x and logits that have no rule, one of a kind."""
    found: dict[tuple[str, str], Unsupported] = {}
    with recomputed_once():
        for arc in connecting_arcs(logits, x):
            try:
                _edges(arc)
            except Unsupported as missing:
                found.setdefault((missing.name, missing.reason), missing)
    return list(found.values())


def batch_norm_in_training(logits: Tensor, x: Tensor) -> str | None:
    """Return the name of a BatchNorm node in training mode between x and logits."""
    return _with_batch_statistics(connecting_arcs(logits, x))


def refuse_autograd(logits: Tensor, x: Tensor) -> None:
    """Raise if autograd cannot differentiate the graph twice, as a fallback does.

    Raises:
        NotImplementedError: naming the node and what to do.
        ValueError: ``logits`` do not depend on ``x``.
    """
    hidden = OPAQUE | FREED | (ONCE if torch.is_grad_enabled() else {})
    for arc in connecting_arcs(logits, x):
        name = arc.name
        reason = hidden.get(name)
        if reason is not None:
            raise NotImplementedError(f"{name}: {reason}")


def _with_batch_statistics(found: list[Arc]) -> str | None:
    coupled = (arc.name for arc in found if normalization.has_batch_statistics(arc))
    return next(coupled, None)


def _edges(arc: Arc) -> list[Edge]:
    """Return what one arc contributes: mostly one edge, its rules in forward order."""
    name = arc.name
    if name in OPAQUE:
        raise NotImplementedError(f"{name}: {OPAQUE[name]}")
    if name in ATTENTION:
        return attention.attention(arc)
    return [Edge(arc.source, arc.target, _rules(arc, name))]


def _rules(arc: Arc, name: str) -> list[Rule]:
    """Return the rules of one arc in the order in which tangents pass them."""
    make = RULES.get(name)
    if make is None:
        raise Unsupported(arc.node, "no rule for this operation")
    made = make(arc)
    rules = made if isinstance(made, list) else [made]
    if name in BROADCASTING and arc.in_shape != arc.out_shape:
        rules = [Expand(arc.in_shape, arc.out_shape), *rules]
    for rule in rules:
        rule.elements = arc.in_shape.numel()
        rule.forward_dtype = arc.after.dtype
    source, target = Place.of(arc.before), Place.of(arc.after)
    if source != target:
        rules = [Cast(source, target), *rules]
    return rules


#: Nodes behind which nothing can be seen, and what to do.
OPAQUE = {
    "CompiledFunctionBackward": "these logits were computed by a compiled graph, which "
    "can neither be read nor differentiated twice. Use fastjac.jacobian_penalty(model, "
    "x, return_logits=True), which runs the model's original code, or compute the "
    "logits by that",
    "CheckpointFunctionBackward": "torch.utils.checkpoint with use_reentrant=True "
    "hides its part of the graph and cannot be differentiated twice. Pass "
    "use_reentrant=False",
}

#: Nodes that have a rule, but whose memory is gone when autograd comes, and what to do.
FREED = {
    "RegisterPostBackwardFunctionBackward": "FSDP frees weights between two passes, so "
    "that autograd cannot compute the penalty of a sharded model. Use layers that all "
    "have a fused rule (see fastjac.explain), or DistributedDataParallel",
}

#: Operations whose arguments may be broadcast to the shape of the result.
BROADCASTING = frozenset(
    f"{name}Backward0"
    for name in (
        "Add",
        "Sub",
        "Rsub",
        "Mul",
        "Div",
        "Addcmul",
        "Lerp",
        "Maximum",
        "Minimum",
        "Where",
    )
)

#: Attention as one operation; without it, it is made of products and a softmax.
ATTENTION = frozenset(
    f"ScaledDotProduct{name}Backward0"
    for name in (
        "FlashAttentionForCpu",
        "FlashAttention",
        "EfficientAttention",
        "CudnnAttention",
        "FusedAttentionOverrideable",
    )
)

#: Nodes that autograd differentiates once only, so that it can give rows, but not the
#: gradient of a penalty; and what to do.
ONCE = {
    **dict.fromkeys(
        ATTENTION,
        "torch cannot differentiate this kernel twice, as autograd's penalty has to. "
        "Run the model under torch.nn.attention.sdpa_kernel(SDPBackend.MATH), or let "
        "every operation have a fused rule (see fastjac.explain)",
    ),
    **dict.fromkeys(
        ("CudnnRnnBackward0", "MiopenRnnBackward0"),
        "torch cannot differentiate this kernel twice, as a penalty has to. Run the "
        "model under torch.backends.cudnn.flags(enabled=False)",
    ),
}

RULES: dict[str, Callable[[Arc], Rule | list[Rule]]] = {
    # products
    "AddmmBackward0": products.addmm,
    "MmBackward0": products.mm,
    "BmmBackward0": products.bmm,
    "BaddbmmBackward0": products.baddbmm,
    "MvBackward0": products.mv,
    "ConvolutionBackward0": products.convolution,
    # sums and scales
    "AddBackward0": elementwise.term(1, 1),
    "AddBackward1": shapes.identity,
    "SubBackward0": elementwise.term(1, -1),
    "SubBackward1": shapes.identity,
    "RsubBackward0": lambda arc: Factor(
        1.0 if arc.argument else -products.number(arc.saved("alpha"))
    ),
    "RsubBackward1": lambda arc: Factor(-products.number(arc.saved("alpha"))),
    "NegBackward0": lambda arc: Factor(-1.0),
    "MulBackward0": elementwise.mul,
    "MulBackward1": lambda arc: Factor(float(arc.saved("other"))),
    "DivBackward0": elementwise.div,
    "DivBackward1": lambda arc: Factor(1 / float(arc.saved("other"))),
    "AddcmulBackward0": elementwise.addcmul,
    "LerpBackward0": elementwise.lerp,
    "NativeDropoutBackward0": elementwise.gate(elementwise.dropped),
    # piecewise-linear activations
    "ReluBackward0": lambda arc: Gate(arc.saved("result"), arc.out_shape, step=True),
    "LeakyReluBackward0": elementwise.gate(elementwise.leaky),
    "LeakyReluBackward1": elementwise.gate(elementwise.leaky),
    "PreluKernelBackward0": elementwise.prelu,
    "HardtanhBackward0": elementwise.gate(elementwise.inside),
    "HardsigmoidBackward0": elementwise.gate(elementwise.hard_sigmoid),
    **dict.fromkeys(
        ("ThresholdBackward0", "ThresholdBackward1"),
        elementwise.gate(lambda a: a.saved("self") > a.saved("threshold")),
    ),
    **dict.fromkeys(
        ("RreluWithNoiseBackward0", "RreluWithNoiseBackward1"),
        elementwise.gate(elementwise.randomly_leaky),
    ),
    **dict.fromkeys(
        (f"{name}Backward0" for name in ("Sign", "Floor", "Ceil", "Round", "Trunc")),
        lambda arc: Factor(0.0),
    ),
    **dict.fromkeys(
        ("SoftshrinkBackward0", "HardshrinkBackward0"),
        elementwise.gate(lambda a: a.saved("self").abs() > float(a.saved("lambd"))),
    ),
    "AbsBackward0": elementwise.gate(lambda arc: torch.sign(arc.saved("self"))),
    "ClampBackward1": elementwise.gate(elementwise.clamped),
    "ClampMinBackward0": elementwise.gate(
        lambda arc: arc.saved("self") >= arc.saved("min")
    ),
    "ClampMaxBackward0": elementwise.gate(
        lambda arc: arc.saved("self") <= arc.saved("max")
    ),
    "MaximumBackward0": elementwise.extremum(1),
    "MinimumBackward0": elementwise.extremum(-1),
    "WhereBackward0": elementwise.where,
    "MaskedFillBackward0": elementwise.gate(lambda arc: ~arc.saved("mask")),
    # smooth activations
    "GeluBackward0": elementwise.sloped(slopes.gelu, "approximate"),
    "SiluBackward0": elementwise.sloped(slopes.silu),
    "SoftplusBackward0": elementwise.smooth(F.softplus, "beta", "threshold"),
    "EluBackward0": elementwise.smooth(aten.elu, "alpha", "scale", "input_scale"),
    "EluBackward1": elementwise.elu_in_place,
    "CeluBackward0": elementwise.smooth(F.celu, "alpha"),
    "CeluBackward1": elementwise.celu_in_place,
    "MishBackward0": elementwise.smooth(F.mish),
    "HardswishBackward0": elementwise.smooth(F.hardswish),
    "TanhBackward0": elementwise.smooth_result(lambda result: 1 - result * result),
    "SigmoidBackward0": elementwise.smooth_result(lambda result: result * (1 - result)),
    "ExpBackward0": elementwise.smooth_result(lambda result: result),
    "SqrtBackward0": elementwise.smooth_result(lambda result: 0.5 / result),
    "RsqrtBackward0": elementwise.smooth_result(lambda result: -0.5 * result.pow(3)),
    "ReciprocalBackward0": elementwise.smooth_result(lambda result: -result.square()),
    "Expm1Backward0": elementwise.smooth_result(lambda result: result + 1),
    "PowBackward0": elementwise.power,
    "GluBackward0": elementwise.glu,
    **{
        f"{name}Backward0": elementwise.smooth(function)
        for name, function in (
            ("LogSigmoid", F.logsigmoid),
            ("Log", torch.log),
            ("Log1P", torch.log1p),
            ("Sin", torch.sin),
            ("Cos", torch.cos),
            ("Atan", torch.atan),
            ("Asinh", torch.asinh),
            ("Sinh", torch.sinh),
            ("Cosh", torch.cosh),
            ("Log2", torch.log2),
            ("Log10", torch.log10),
            ("Erf", torch.erf),
        )
    },
    # normalisation
    **dict.fromkeys(normalization.BATCH_NORMS, normalization.batch_norm),
    "NativeLayerNormBackward0": normalization.layer_norm,
    "NativeGroupNormBackward0": normalization.group_norm,
    "FusedRmsNormBackward0": normalization.rms_norm,
    "SoftmaxBackward0": reductions.softmax,
    "SafeSoftmaxBackward0": reductions.softmax,
    "LogSoftmaxBackward0": reductions.log_softmax,
    # pooling and reductions
    "MaxPool2DWithIndicesBackward0": reductions.route(2, reductions.fixed_windows),
    "MaxPool3DWithIndicesBackward0": reductions.route(3, reductions.fixed_windows),
    "AdaptiveMaxPool2DBackward0": reductions.route(2, reductions.adaptive_windows(2)),
    "AdaptiveMaxPool3DBackward0": reductions.route(3, reductions.adaptive_windows(3)),
    "FractionalMaxPool2DBackward0": reductions.route(2),
    **dict.fromkeys(
        ("MaxBackward0", "MinBackward0", "MedianBackward1", "KthvalueBackward0"),
        reductions.max_dim,
    ),
    **dict.fromkeys(
        ("SortBackward0", "SortBackward1", "TopkBackward0"), reductions.chosen
    ),
    "AmaxBackward0": reductions.amax,
    "AminBackward0": reductions.amax,
    "AvgPool2DBackward0": reductions.avg_pool(
        aten.avg_pool2d, aten.avg_pool2d_backward
    ),
    "AvgPool3DBackward0": reductions.avg_pool(
        aten.avg_pool3d, aten.avg_pool3d_backward
    ),
    "AdaptiveAvgPool2DBackward0": reductions.adaptive_avg_pool(
        aten._adaptive_avg_pool2d, aten._adaptive_avg_pool2d_backward, 2
    ),
    "AdaptiveAvgPool3DBackward0": reductions.adaptive_avg_pool(
        aten._adaptive_avg_pool3d, aten._adaptive_avg_pool3d_backward, 3
    ),
    "SumBackward0": reductions.total,
    "SumBackward1": lambda arc: reductions.total(arc, arc.saved("dim")),
    "LogsumexpBackward0": reductions.log_sum_exp,
    "LinalgVectorNormBackward0": reductions.euclidean_norm,
    **dict.fromkeys(("VarBackward0", "VarMeanBackward0"), reductions.variance),
    **dict.fromkeys(("StdBackward0", "StdMeanBackward0"), reductions.deviation),
    "MeanBackward0": reductions.mean,
    "MeanBackward1": lambda arc: reductions.mean(arc, arc.saved("dim")),
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
            *(f"SqueezeBackward{i}" for i in (3, 4, 5)),  # in place
            "UnsqueezeBackward1",
        ),
        shapes.reshape,
    ),
    **dict.fromkeys(
        ("AliasBackward0", "CloneBackward0", "ToCopyBackward0"), shapes.identity
    ),
    **dict.fromkeys(("TBackward0", "TBackward1"), lambda arc: Permute([1, 0])),
    **dict.fromkeys(("TransposeBackward0", "TransposeBackward1"), shapes.transpose),
    "PermuteBackward0": shapes.permute,
    "ExpandBackward0": lambda arc: Expand(arc.in_shape, arc.out_shape),
    "SliceBackward0": shapes.strided,
    "SelectBackward0": shapes.select,
    "UnbindBackward0": shapes.unbind,
    **{
        f"{name}Backward0": shapes.split
        for name in ("Split", "SplitWithSizes", "UnsafeSplit", "UnsafeSplitWithSizes")
    },
    "CatBackward0": shapes.cat,
    "StackBackward0": shapes.stack,
    "ConstantPadNdBackward0": shapes.padded,
    "CopySlices": shapes.write_into,
    "AsStridedBackward0": shapes.as_strided,
    "AsStridedBackward1": shapes.as_strided,
    # hooks of DistributedDataParallel and FSDP
    "_DDPSinkBackward": shapes.passed,
    "RegisterPostBackwardFunctionBackward": shapes.passed,
    # linear, rare: through autograd's node
    **dict.fromkeys(
        (
            "CopyBackwards",
            *(f"ReflectionPad{d}DBackward0" for d in (1, 2, 3)),
            *(f"ReplicationPad{d}DBackward0" for d in (1, 2, 3)),
            *(f"UpsampleNearest{d}DBackward0" for d in (1, 2, 3)),
            *(f"UpsampleNearestExact{d}DBackward0" for d in (1, 2, 3)),
            "UpsampleLinear1DBackward0",
            "UpsampleBilinear2DBackward0",
            "UpsampleBicubic2DBackward0",
            "UpsampleTrilinear3DBackward0",
            "UpsampleBilinear2DAaBackward0",
            "UpsampleBicubic2DAaBackward0",
            "IndexBackward0",
            "IndexSelectBackward0",
            "GatherBackward0",
            "FlipBackward0",
            "RollBackward0",
            "Rot90Backward0",
            "ScatterAddBackward0",
            "IndexAddBackward0",
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
        ),
        shapes.through_node,
    ),
}
