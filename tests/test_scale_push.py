"""Tangents through a smooth activation, and its gradient, in one pass."""

from __future__ import annotations

import pytest
import torch
from checks import assert_same, leaf_and_logits
from torch import nn

import fastjac
from fastjac import native
from fastjac.native_scale import scale_push
from fastjac.recipes import slopes
from fastjac.rules.activation import Scale
from fastjac.rules.base import Sum

needs_native = pytest.mark.skipif(
    not native.available(), reason=f"no native kernels: {native.why_not()}"
)
DOUBLE = torch.float64


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("rows, shape", [(1, (3,)), (7, (5, 409)), (3, (2, 4, 1025))])
def test_kernel_equals_the_formula_whatever_the_threads(rows, shape, dtype) -> None:
    torch.manual_seed(0)
    g, t = (torch.randn(rows, *shape, dtype=dtype) for _ in range(2))
    factor, out = torch.randn(shape, dtype=dtype), torch.empty_like(t)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(scale_push(g, t, factor, out))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)
    assert torch.equal(out, factor * t)
    tolerance = {torch.float32: 1e-6, DOUBLE: 1e-14}[dtype]
    exact = (g.double() * t.double()).sum(0)
    torch.testing.assert_close(
        found[0].double(), exact, rtol=tolerance, atol=rows * tolerance
    )
    assert scale_push(g, t, factor, t) is not t and torch.equal(t, out)


@needs_native
def test_bad_shapes_are_refused_by_name() -> None:
    rows, factor = torch.ones(2, 3), torch.ones(3)
    with pytest.raises(ValueError, match=r"`tangents` must be \(2, 3\), R rows"):
        scale_push(rows, torch.ones(3, 3), factor, rows)
    with pytest.raises(ValueError, match=r"`out` must be \(2, 3\)"):
        scale_push(rows, rows, factor, torch.ones(2, 4))
    with pytest.raises(ValueError, match="contiguous"):
        scale_push(rows, torch.ones(3, 2).T, factor, rows)


@needs_native
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("layout", ["same", "channels last", "mixed"])
def test_rule_is_the_same_in_one_pass_whatever_the_layout(
    layout: str, own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    shape = (2, 3, 4, 5)
    rows, tangents = (torch.randn(6, *shape, dtype=DOUBLE) for _ in range(2))
    if layout != "same":
        tangents = tangents.movedim(2, -1).contiguous().movedim(-1, 2)
    if layout == "channels last":
        rows = rows.movedim(2, -1).contiguous().movedim(-1, 2)
    factor = torch.randn(shape, dtype=DOUBLE, requires_grad=True)
    calls = []
    monkeypatch.setattr(
        "fastjac.rules.activation.scale_push",
        lambda *tensors: calls.append(1) or scale_push(*tensors),
    )
    wanted = (rows * tangents).sum(0), factor.detach() * tangents
    given, total = tangents.clone(), Sum()
    pushed = Scale(factor, torch.Size(shape)).push_adding(
        given, rows, [total], own, spare=False
    )
    torch.testing.assert_close(total.value, wanted[0], rtol=1e-14, atol=1e-14)
    assert torch.equal(pushed, wanted[1])
    assert pushed.stride() == given.stride()
    assert (pushed.data_ptr() == given.data_ptr()) is own
    assert own or torch.equal(given, tangents)
    assert len(calls) == (layout != "mixed")


@pytest.mark.parametrize(
    "slope, options",
    [(slopes.gelu, {"approximate": "none"}), (slopes.gelu, {"approximate": "tanh"}),
     (slopes.silu, {})],
)  # fmt: skip
def test_written_out_slopes_are_those_of_autograd(slope, options) -> None:
    u = torch.linspace(-9, 9, 181, dtype=DOUBLE, requires_grad=True)
    function = getattr(torch.nn.functional, slope.__name__)
    got, expected = slope(u, **options), slopes.by_autograd(function, u, **options)
    torch.testing.assert_close(got, expected, rtol=1e-14, atol=1e-16)
    weights = torch.randn_like(u)
    got, expected = (torch.autograd.grad(s, u, weights)[0] for s in (got, expected))
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("activation", [nn.GELU, nn.SiLU])
def test_activation_whose_weights_are_frozen_below(activation) -> None:
    """Tangents then end at an activation, or nothing wants its gradient at all."""
    torch.manual_seed(2)
    model = nn.Sequential(
        nn.Linear(5, 7), activation(), nn.Linear(7, 7), activation(), nn.Linear(7, 3)
    ).double()
    for frozen in (model[0], model[2], model[4]):
        frozen.requires_grad_(False)
        x = torch.randn(4, 5, dtype=DOUBLE)
        leaf, logits = leaf_and_logits(model, x)
        if not any(p.requires_grad for p in model.parameters()):
            continue
        reference = fastjac.penalty_from_graph(logits, leaf, backend="autograd")
        fused = fastjac.penalty_from_graph(logits, leaf, backend="fused")
        assert_same(fused, reference, model)


@pytest.mark.parametrize("activation", [nn.GELU, nn.SiLU])
def test_a_second_differentiation_of_a_smooth_network_raises(activation) -> None:
    """By the slope's own derivative too, which is written out for one only."""
    model = nn.Sequential(nn.Linear(5, 7), activation(), nn.Linear(7, 3)).double()
    penalty = fastjac.jacobian_penalty(model, torch.randn(4, 5, dtype=DOUBLE))
    weights = [model[0].weight, model[0].bias, model[2].weight]
    first = torch.autograd.grad(penalty, weights, create_graph=True)
    for gradient in first:
        with pytest.raises(RuntimeError, match="second time"):
            torch.autograd.grad(gradient.square().sum(), weights, allow_unused=True,
                                retain_graph=True)  # fmt: skip
