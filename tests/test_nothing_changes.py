"""Whatever happens, the model, the input and the random state stay as they were."""

from __future__ import annotations

import copy

import pytest
import torch
from layer_table import Function
from nets import images, small_conv
from torch import Tensor, nn

import fastjac

DOUBLE = torch.float64
REDUCTIONS = ["frobenius", "sum", "mean", "none"]


def state(model: nn.Module, x: Tensor) -> dict:
    return {
        "modes": [m.training for m in model.modules()],
        "flags": [p.requires_grad for p in model.parameters()],
        "grads": [p.grad for p in model.parameters()],
        "weights": copy.deepcopy(model.state_dict()),
        "hooks": [
            [
                list(hooks)
                for hooks in (m._forward_hooks, m._forward_pre_hooks, m._backward_hooks)
            ]
            for m in model.modules()
        ],
        "x": (x.requires_grad, x.grad, x.grad_fn, x._version, x.detach().clone()),
        "rng": torch.get_rng_state(),
        "grad mode": torch.is_grad_enabled(),
        "parameter hooks": [bool(p._backward_hooks) for p in model.parameters()],
    }  # fmt: skip


def assert_unchanged(before: dict, after: dict) -> None:
    for key, value in before.items():
        assert same(value, after[key]), f"{key} changed"


def same(one, other) -> bool:
    """Equality of nested containers whose leaves may be tensors."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


CALLS = {
    "jacobian_penalty": lambda m, x: fastjac.jacobian_penalty(m, x),
    "autograd": lambda m, x: fastjac.jacobian_penalty(m, x, backend="autograd"),
    "cross_lipschitz": lambda m, x: fastjac.cross_lipschitz_penalty(m, x),
    "input_gradient": lambda m, x: fastjac.input_gradient_penalty(
        m, x, torch.arange(len(x)) % 4
    ),
    "jacobian": lambda m, x: fastjac.jacobian(m, x),
    "jacobian_norm": lambda m, x: fastjac.jacobian_norm(m, x),
    "spectral_norm": lambda m, x: fastjac.spectral_norm(m, x),
    "explain": lambda m, x: fastjac.explain(m, x),
}


@pytest.mark.parametrize("call", CALLS)
def test_nothing_is_changed_by_a_call(call: str, path: str) -> None:
    model, x = small_conv().double(), images()
    model[4].eval()
    model[0].bias.requires_grad_(False)
    model.register_forward_hook(lambda *args: None)
    before = state(model, x)
    CALLS[call](model, x)
    assert_unchanged(before, state(model, x))


@pytest.mark.parametrize("call", CALLS)
def test_nothing_is_changed_by_an_error_in_the_forward_pass(call: str) -> None:
    model, x = small_conv().double(), images()
    model[4].eval()

    def fail(*args):
        raise ArithmeticError("from the user's own code")

    model[8].register_forward_hook(fail)
    before = state(model, x)
    with pytest.raises(ArithmeticError, match="the user's own code"):
        CALLS[call](model, x)
    assert_unchanged(before, state(model, x))


def test_nothing_is_changed_by_an_unsupported_layer() -> None:
    model = nn.Sequential(small_conv(), Function(lambda x: x.cumprod(1))).double()
    x = images()
    before = state(model, x)
    with pytest.raises(NotImplementedError):
        fastjac.jacobian_penalty(model, x, backend="fused")
    assert_unchanged(before, state(model, x))


def test_an_input_that_requires_grad_keeps_its_flag_and_gets_no_gradient() -> None:
    model = small_conv().double()
    x = images().requires_grad_()
    fastjac.jacobian_penalty(model, x).backward()
    assert x.requires_grad
    assert x.is_leaf
    assert x.grad is None or not x.grad.any()
