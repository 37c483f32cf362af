"""Recipes of normalisation layers, with statistics of a batch or of each sample."""

from __future__ import annotations

import torch
from torch import Tensor

from fastjac.graph import Arc, Unsupported, meta, short_name
from fastjac.recipes.elementwise import scale
from fastjac.rules.base import Rule
from fastjac.rules.shape import Reshape
from fastjac.rules.standardise import Standardise

#: Nodes of F.batch_norm, and the name under which each saves eps.
BATCH_NORMS = {
    "NativeBatchNormBackward0": "eps",
    "CudnnBatchNormBackward0": "epsilon",
    "MiopenBatchNormBackward0": "epsilon",
}


def layer_norm(arc: Arc) -> list[Rule]:
    """Each sample standardised over its last dimensions, then a learned scale."""
    return [*_standardised(arc, _last(arc), "result2"), *_scaled(arc)]


def rms_norm(arc: Arc) -> list[Rule]:
    """Each sample divided by its root mean square over the last dimensions."""
    rules = _standardised(arc, _last(arc), "result1", centred=False)
    return [*rules, *_scaled(arc)]


def group_norm(arc: Arc) -> list[Rule]:
    """Each group of channels of a sample standardised, then a scale a channel."""
    groups = int(arc.saved("group"))
    flat = torch.Size((arc.in_shape[0], groups, arc.in_shape[1:].numel() // groups))
    return [*_standardised(arc, flat, "result2"), *_scaled(arc, a_channel=True)]


def batch_norm(arc: Arc) -> Rule | list[Rule]:
    """A scale a channel, with gradient to its weight.

    In training mode the statistics of the batch are constants, in the Jacobian as in
    its gradient. Statistics of each sample (InstanceNorm) are differentiated.
    """
    if is_instance_norm(arc):
        return _instance_norm(arc)
    _only_input(arc)
    if arc.saved("training"):
        inverse = arc.saved("result2").detach()
    else:
        eps = arc.saved(BATCH_NORMS[arc.name])
        inverse = torch.rsqrt(arc.saved("running_var") + eps)
    weight = arc.saved("weight")
    with torch.enable_grad():
        factor = inverse if weight is None else weight * inverse
        return scale(arc, _of_channels(factor, arc))


def _instance_norm(arc: Arc) -> list[Rule]:
    """Each channel of a sample standardised and scaled, (N C) of them in a row."""
    planes = torch.Size((arc.in_shape[1], arc.in_shape[2:].numel()))
    inwards, rule, outwards = _standardised(arc, planes, "result2")
    weight = arc.saved("weight")
    if weight is None:
        return [inwards, rule, outwards]
    with torch.enable_grad():
        scaled = scale(arc, weight.unsqueeze(1), planes)
    return [inwards, rule, scaled, outwards]


def has_batch_statistics(arc: Arc) -> bool:
    """Whether an arc is a BatchNorm in training mode, which couples the samples."""
    return (
        arc.name in BATCH_NORMS
        and arc.argument == 0
        and arc.saved("training")
        and not is_instance_norm(arc)
    )


def is_instance_norm(arc: Arc) -> bool:
    """Whether a batch norm is what F.instance_norm makes of one with its statistics.

    It views (N, C, ...) as one sample of N C channels. For N = 1 this is a view that
    changes nothing, which nothing else puts before a batch norm.
    """
    if not arc.saved("training") or arc.in_shape[0] != 1:
        return False
    view = arc.source[0]
    if short_name(view) != "ViewBackward0":
        return False
    before = torch.Size(meta(view.next_functions[0]).shape)
    return (
        before[2:] == arc.in_shape[2:]
        and len(before) == len(arc.in_shape)
        and before[0] * before[1] == arc.in_shape[1]
    )


def _standardised(
    arc: Arc, flat: torch.Size, saved: str, centred: bool = True
) -> list[Rule]:
    """Standardise over the last dimension of ``flat``.

    The deviation's eps is not saved everywhere: it is what the saved deviation, which
    has it, differs by from the one without.
    """
    _only_input(arc)
    dtype = arc.saved("input").dtype
    with torch.enable_grad():
        values = arc.saved("input").reshape(flat)
        values = values.to(torch.promote_types(dtype, torch.float32))
        if centred:
            values = values - values.mean(-1, keepdim=True)
        variance = values.square().mean(-1, keepdim=True)
        inverse = arc.saved(saved).detach().to(values.dtype).reshape(variance.shape)
        eps = inverse.pow(-2) - variance.detach()
        inverse = torch.rsqrt(variance + eps)
        rule = Standardise((values * inverse).to(dtype), inverse.to(dtype), centred)
    if flat == arc.in_shape:
        return [rule]
    return [Reshape(arc.in_shape, flat), rule, Reshape(flat, arc.in_shape)]


def _scaled(arc: Arc, a_channel: bool = False) -> list[Rule]:
    """Multiply by the learned weight, if there is one."""
    weight = arc.saved("weight")
    if weight is None:
        return []
    with torch.enable_grad():
        return [scale(arc, _of_channels(weight, arc) if a_channel else weight)]


def _of_channels(factor: Tensor, arc: Arc) -> Tensor:
    """View a factor a channel so that it broadcasts against (N, C, ...)."""
    return factor.view(-1, *(1,) * (len(arc.out_shape) - 2))


def _last(arc: Arc) -> torch.Size:
    """Return the shape with the normalised dimensions joined to one."""
    shape = torch.Size(arc.saved("normalized_shape"))
    return torch.Size((*arc.in_shape[: -len(shape)], shape.numel()))


def _only_input(arc: Arc) -> None:
    if arc.argument != 0 or len(arc.varying) > 1:
        raise Unsupported(arc.node, "a scale or shift that depends on x")
