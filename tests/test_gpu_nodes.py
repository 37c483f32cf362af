"""Operations whose autograd nodes a GPU names otherwise, without a GPU.

A CPU's forward pass is taken; its nodes are handed to the recipes as their counterparts
on a GPU would be: by their name, with those saved tensors only that the node's class,
which every torch has, says it saves.
"""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any

import oracle
import pytest
import torch
from checks import assert_same
from test_batch_norm import frozen_at
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from zoo import VisionTransformer

import fastjac
from fastjac.graph import connecting_arcs
from fastjac.recipes.normalization import BATCH_NORMS

linearize = importlib.import_module("fastjac.linearize")  # the function hides it
CLASSES = torch._C._functions
DOUBLE = torch.float64


class Renamed:
    """A node as a GPU would make it, with what a node of a CPU has saved."""

    def __init__(self, node: Any, name: str, saved: dict[str, str]) -> None:
        self._node, self._name = node, name
        self.next_functions = node.next_functions
        for attribute in dir(getattr(CLASSES, name)):
            if attribute.startswith("_saved_"):
                mine = attribute.removeprefix("_saved_")
                theirs = f"_saved_{saved.get(mine, mine)}"
                setattr(self, attribute, getattr(node, theirs, None))

    def name(self) -> str:
        return self._name


def on_gpu(monkeypatch, before: str, name: str, saved: dict[str, str]) -> list[str]:
    """Let nodes ``before`` appear as ``name``; return the list of those met."""
    met: list[str] = []

    def arcs(*arguments):
        found = []
        for arc in connecting_arcs(*arguments):
            if arc.name == before:
                arc = replace(arc, node=Renamed(arc.node, name, saved), name=name)
                met.append(name)
            found.append(arc)
        return found

    monkeypatch.setattr(linearize, "connecting_arcs", arcs)
    return met


def needs(name: str) -> None:
    if not hasattr(CLASSES, name):
        pytest.skip(f"torch {torch.__version__} has no {name}")


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", sorted(BATCH_NORMS))
@pytest.mark.filterwarnings("ignore:.*batch statistics are taken")
def test_batch_norm_of_cudnn_and_miopen(name: str, training: bool, monkeypatch) -> None:
    needs(name)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    )
    model = model.double().train(training)
    x = torch.randn(5, 2, 6, 6, dtype=DOUBLE)
    same = frozen_at(model, x) if training else model
    expected = fastjac.jacobian_penalty(same, x, backend="autograd")
    renamed = {"epsilon": "eps"} if BATCH_NORMS[name] == "epsilon" else {}
    met = on_gpu(monkeypatch, "NativeBatchNormBackward0", name, renamed)
    got = fastjac.jacobian_penalty(model, x, backend="fused")
    assert met
    found = oracle.gradients(got, model.parameters())
    wanted = oracle.gradients(expected, same.parameters())
    assert oracle.error(got, expected) < 1e-10
    largest = max(gradient.abs().max().item() for gradient in wanted)
    for one, other in zip(found, wanted, strict=True):
        assert oracle.error(one, other, largest) < 1e-10


@pytest.mark.parametrize("name", sorted(linearize.ATTENTION))
def test_attention_by_each_kernel(name: str, monkeypatch) -> None:
    needs(name)
    torch.manual_seed(1)
    model = VisionTransformer(12, 2, 16, 3).double()
    x = torch.randn(3, 3, 16, 16, dtype=DOUBLE)
    with sdpa_kernel(SDPBackend.MATH):
        expected = fastjac.jacobian_penalty(model, x, backend="autograd")
    cpu = "ScaledDotProductFlashAttentionForCpuBackward0"
    met = on_gpu(monkeypatch, cpu, name, {"attn_bias": "attn_mask"})
    got = fastjac.jacobian_penalty(model, x, backend="fused")
    assert met
    assert_same(got, expected, model)


def test_every_node_with_a_rule_is_one_of_torch_s() -> None:
    """But for those that only other versions of torch have, which are these."""
    others = {"FusedRmsNormBackward0"}
    made_by_hand = {
        "CopySlices",
        "CopyBackwards",
        "_DDPSinkBackward",
        "RegisterPostBackwardFunctionBackward",
    }
    known = {*linearize.RULES, *linearize.ATTENTION, *linearize.ONCE}
    unknown = {name for name in known - made_by_hand if not hasattr(CLASSES, name)}
    assert unknown <= others


#: Made on a GPU alone, with no rule: each falls back by its name.
FALL_BACK = {
    "CudnnAffineGridGeneratorBackward0",
    "CudnnConvolutionBackward0",  # torch.cudnn_convolution itself; F.conv2d has a rule
    "CudnnConvolutionTransposeBackward0",
    "CudnnAttentionBackward0",  # called by ScaledDotProduct..., which has a rule
    "EfficientAttentionBackward0",
    "FlashAttentionBackward0",
    "CudnnGridSamplerBackward0",
    "CudnnRnnBackward0",
    "FusedDropoutBackward0",  # F.dropout is NativeDropout, which has a rule
    "MiopenConvolutionBackward0",
    "MiopenConvolutionTransposeBackward0",
    "MiopenDepthwiseConvolutionBackward0",
    "MiopenRnnBackward0",
    "ThnnFusedGruCellBackward0",
    "ThnnFusedLstmCellBackward0",
}


def test_every_node_of_a_gpu_has_a_rule_or_is_known_to_have_none() -> None:
    parts = ("Cudnn", "Miopen", "FlashAttention", "EfficientAttention", "ThnnFused",
             "CudnnAttention", "NativeDropout", "FusedDropout")  # fmt: skip
    made = {
        name
        for name in dir(CLASSES)
        if any(part in name for part in parts)
        and "BackwardBackward" not in name
        and "CtcLoss" not in name
    }
    assert made
    assert made <= {*linearize.RULES, *linearize.ATTENTION, *FALL_BACK}


class Cumulated(nn.Module):
    """Attention, and behind it an operation without a rule."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = VisionTransformer(12, 1, 16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x).cumprod(1)


def test_attention_behind_a_fallback_is_refused_before_it_fails_in_backward() -> None:
    model, x = Cumulated(), torch.randn(2, 3, 16, 16)
    match = r"no fused rule for Cumprod.*cannot take its place.*sdpa_kernel"
    with pytest.raises(NotImplementedError, match=match):
        fastjac.jacobian_penalty(model, x)
    with pytest.raises(NotImplementedError, match="twice.*sdpa_kernel"):
        fastjac.jacobian_penalty(model, x, backend="autograd")
    (note,) = fastjac.explain(model, x).notes
    assert "Autograd cannot compute the penalty's gradient either" in note


@pytest.mark.filterwarnings("ignore:fastjac has no fused rule")
def test_without_gradient_or_from_its_parts_such_a_fallback_works() -> None:
    model, x = Cumulated(), torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        value = fastjac.jacobian_penalty(model, x)
    norms = fastjac.jacobian_norm(model, x)
    with sdpa_kernel(SDPBackend.MATH):
        from_parts = fastjac.jacobian_penalty(model, x)
        from_parts.backward()
    torch.testing.assert_close(value, from_parts.detach())
    torch.testing.assert_close(norms.square().sum().sqrt(), from_parts.detach())
