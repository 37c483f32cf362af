"""A penalty is an ordinary autograd value: frozen, shared, accumulated, no_grad."""

from __future__ import annotations

import oracle
import pytest
import torch
import torch.nn.functional as F
from checks import assert_close, assert_same, grads, leaf_and_logits
from nets import images, small_conv
from torch import nn

import fastjac

DOUBLE = torch.float64
REDUCTIONS = ["frobenius", "sum", "mean", "none"]


def test_frozen_parameters_get_no_gradient(path: str) -> None:
    model, x = small_conv().double(), images()
    model[3].weight.requires_grad_(False)
    leaf, logits = leaf_and_logits(model, x)
    expected = grads(oracle.jacobian_squares(logits, leaf).sum().sqrt(), model)
    fastjac.jacobian_penalty(model, x).backward()
    assert model[3].weight.grad is None
    for p, e in zip(oracle.trainable(model), expected, strict=True):
        got = torch.zeros_like(p) if p.grad is None else p.grad
        assert_close(got, e, DOUBLE, "gradient")


def test_a_wholly_frozen_model_gives_the_value_alone(path: str) -> None:
    model, x = small_conv().double(), images()
    expected = fastjac.jacobian_penalty(model, x).item()
    model.requires_grad_(False)
    penalty = fastjac.jacobian_penalty(model, x)
    assert not penalty.requires_grad
    assert penalty.item() == pytest.approx(expected, rel=1e-12)


def test_a_bias_gets_no_gradient_from_the_jacobian(path: str) -> None:
    model, x = small_conv().double(), images()
    fastjac.jacobian_penalty(model, x).backward()
    for name, parameter in model.named_parameters():
        none = parameter.grad is None or not parameter.grad.any()
        assert none == name.endswith("bias"), name


def test_shared_weights_get_the_sum_of_their_gradients(path: str) -> None:
    shared = nn.Linear(6, 6)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.ReLU(), nn.Linear(6, 3))
    model.double()
    x = torch.randn(4, 6, dtype=DOUBLE)
    leaf, logits = leaf_and_logits(model, x)
    expected = oracle.jacobian_squares(logits, leaf).sum()
    assert_same(fastjac.jacobian_penalty(model, x, reduction="sum"), expected, model)


def test_gradients_accumulate_like_any_others(path: str) -> None:
    model, x = small_conv().double(), images()
    fastjac.jacobian_penalty(model, x).backward()
    once = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    fastjac.jacobian_penalty(model, x).backward()
    for p, g in zip(model.parameters(), once, strict=True):
        if g is not None:
            assert_close(p.grad, 2 * g, DOUBLE, "gradient")


@pytest.mark.parametrize("backend", ["auto", "fused"])
@pytest.mark.parametrize(
    "penalty",
    [
        fastjac.jacobian_penalty,
        fastjac.cross_lipschitz_penalty,
        lambda m, x, **kw: fastjac.input_gradient_penalty(
            m, x, torch.arange(5) % 4, **kw
        ),
        lambda m, x, **kw: fastjac.jacobian(m, x, **kw).square().sum(),
    ],
    ids=["jacobian", "cross-lipschitz", "input-gradient", "jacobian rows"],
)
def test_a_second_differentiation_raises(penalty, backend: str) -> None:
    model, x = small_conv().double(), images()
    value = penalty(model, x, backend=backend)
    weights = [model[0].weight, model[3].weight]
    with pytest.raises(RuntimeError, match="second time"):
        first = torch.autograd.grad(value, weights, create_graph=True)
        torch.autograd.grad(sum(g.square().sum() for g in first), weights)


def test_a_second_differentiation_of_loss_and_penalty_raises() -> None:
    """The cross-entropy gives another path to the weights; it must not hide this."""
    model, x = small_conv().double(), images()
    penalty, logits = fastjac.jacobian_penalty(model, x, return_logits=True)
    loss = F.cross_entropy(logits, torch.arange(5) % 4) + penalty
    weights = [model[0].weight, model[3].weight]
    with pytest.raises(RuntimeError, match="second time"):
        first = torch.autograd.grad(loss, weights, create_graph=True)
        torch.autograd.grad(sum(g.square().sum() for g in first), weights)


def test_backward_twice_works_when_the_graph_is_retained(path: str) -> None:
    model, x = small_conv().double(), images()
    penalty = fastjac.jacobian_penalty(model, x)
    first = torch.autograd.grad(penalty, model[0].weight, retain_graph=True)[0]
    second = torch.autograd.grad(penalty, model[0].weight)[0]
    assert torch.equal(first, second)


def test_backward_twice_raises_when_the_graph_was_freed(path: str) -> None:
    """The first pass scales the gradients in place, so a second one must not run."""
    model, x = small_conv().double(), images()
    penalty = fastjac.jacobian_penalty(model, x, reduction="sum")
    penalty.backward(torch.tensor(2.0).double())
    expected = fastjac.jacobian_penalty(model, x, reduction="sum", backend="autograd")
    weight = model[0].weight
    gradient = torch.autograd.grad(2 * expected, weight)[0]
    assert_close(weight.grad, gradient, DOUBLE, "gradient")
    with pytest.raises(RuntimeError, match="second time"):
        penalty.backward()


FUNCTIONS = [
    "jacobian_penalty",
    "cross_lipschitz_penalty",
    "jacobian",
    "jacobian_norm",
    "spectral_norm",
]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_under_no_grad_the_value_is_the_same(function: str, path: str) -> None:
    model, x = small_conv().double(), images()
    expected = getattr(fastjac, function)(model, x)
    with torch.no_grad():
        got = getattr(fastjac, function)(model, x)
    assert not got.requires_grad
    assert_close(got, expected, DOUBLE, function)


def test_under_inference_mode_the_value_is_the_same_or_refused_by_name() -> None:
    model, x = small_conv().double(), images()
    expected = fastjac.jacobian_penalty(model, x)
    with torch.inference_mode():
        try:
            got = fastjac.jacobian_penalty(model, x)
        except RuntimeError as error:
            assert "inference" in str(error)
        else:
            assert_close(got.clone(), expected.detach(), DOUBLE, "value")


def test_at_a_zero_jacobian_value_and_gradients_are_zero(path: str) -> None:
    model, x = small_conv().double(), images()
    with torch.no_grad():
        model[-1].weight.zero_()
    penalty = fastjac.jacobian_penalty(model, x)
    penalty.backward()
    assert penalty.item() == 0
    for parameter in model.parameters():
        assert parameter.grad is None or not parameter.grad.any()


def test_an_input_computed_from_parameters_is_accepted(path: str) -> None:
    model = small_conv().double()
    stem = nn.Conv2d(2, 2, 1).double()
    x = stem(images())
    leaf, logits = leaf_and_logits(model, x)
    expected = oracle.jacobian_squares(logits, leaf).sum().sqrt()
    assert_same(fastjac.jacobian_penalty(model, x), expected, model)
