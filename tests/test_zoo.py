"""Networks that people train run fused, in both modes, and equal the oracle."""

from __future__ import annotations

import oracle
import pytest
import torch
from checks import TOLERANCE
from specs import randomise_statistics
from test_batch_norm import frozen_at
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from zoo import ZOO

import fastjac

DOUBLE = torch.float64
pytestmark = pytest.mark.filterwarnings("ignore:.*batch statistics are taken")
#: Whose second-order term passes batch statistics, so that freezing them is no oracle.
CURVED = ["resnet18 gelu", "squeeze-excite"]
WITHOUT_BATCH_NORM = ["vit", "convnext"]
FLAT = [name for name in ZOO if name not in {*CURVED, *WITHOUT_BATCH_NORM}]


def network(name: str, training: bool) -> nn.Module:
    """With statistics of its own, and dropout of whole branches off."""
    torch.manual_seed(3)
    model = ZOO[name][0](3).to(DOUBLE)
    randomise_statistics(model)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.train(training)


def images(name: str, samples: int = 4) -> Tensor:
    size = ZOO[name][1]
    return torch.randn(samples, 3, size, size, dtype=DOUBLE)


def expected(model: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The oracle's value and gradients, attention from its parts."""
    torch.manual_seed(5)
    with sdpa_kernel(SDPBackend.MATH):
        leaf = x.clone().requires_grad_()
        value = oracle.jacobian_squares(model(leaf), leaf).sum()
    return value, oracle.gradients(value, model.parameters())


def assert_penalty(
    model: nn.Module, x: Tensor, truth: tuple[Tensor, list[Tensor]], **options
) -> None:
    """The fused penalty's value and gradients are the truth.

    Gradients are measured by the largest of all: those of a batch norm's weight before
    another norm are zero by cancellation.
    """
    torch.manual_seed(5)
    got = fastjac.jacobian_penalty(
        model, x, reduction="sum", backend="fused", **options
    )
    found = oracle.gradients(got, model.parameters())
    value, gradients = truth
    limit = TOLERANCE[DOUBLE]
    assert oracle.error(got, value) < limit
    largest = max(gradient.abs().max().item() for gradient in gradients)
    for one, other in zip(found, gradients, strict=True):
        assert oracle.error(one, other, largest) < limit


@pytest.mark.parametrize("name", ZOO)
def test_network_equals_the_oracle_whole_and_in_chunks(name: str) -> None:
    model, x = network(name, training=False), images(name)
    truth = expected(model, x)
    assert truth[0] > 0
    for chunk in (None, 3):
        assert_penalty(model, x, truth, chunk=chunk)


@pytest.mark.parametrize("name", ZOO)
def test_samples_stay_apart_so_that_chunks_hold_some_of_them(name: str) -> None:
    model, x = network(name, training=False), images(name, 2).requires_grad_()
    assert fastjac.linearize(model(x), x).samplewise


@pytest.mark.parametrize("name", FLAT)
def test_network_in_training_mode_has_the_statistics_of_its_batch(name: str) -> None:
    model, x = network(name, training=True), images(name, 8)
    truth = expected(frozen_at(model, x), x)
    assert_penalty(model, x, truth)


@pytest.mark.parametrize("name", CURVED)
def test_curved_network_in_training_mode_has_the_frozen_one_s_value(name: str) -> None:
    """Its gradient also passes the statistics: tests/test_batch_norm.py."""
    model, x = network(name, training=True), images(name, 8)
    value, _ = expected(frozen_at(model, x), x)
    got = fastjac.jacobian_penalty(model, x, reduction="sum", backend="fused")
    assert oracle.error(got, value) < TOLERANCE[DOUBLE]


@pytest.mark.parametrize("name", WITHOUT_BATCH_NORM)
def test_network_without_batch_norm_in_training_mode(name: str) -> None:
    """With stochastic depth: a factor a sample, the same for oracle and penalty."""
    model, x = network(name, training=True), images(name)
    assert_penalty(model, x, expected(model, x), chunk=5)


@pytest.mark.parametrize("name", ZOO)
def test_explain_names_every_step_fused(name: str) -> None:
    explanation = fastjac.explain(network(name, training=False), images(name, 2))
    assert explanation.backend == "fused" and explanation.reason is None
    assert "autograd node" not in str(explanation)
