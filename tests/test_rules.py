"""One explicit test a rule: every layer that runs fused, in float64 and float32."""

from __future__ import annotations

import oracle
import pytest
import torch
import torch.nn.functional as F
from checks import PATHS, assert_same, compare, leaf_and_logits, seeded_build
from layer_table import LAYERS, Function
from torch import Tensor, nn

import fastjac

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")


class Between(nn.Module):
    """The layer under test with weights before it and behind it.

    So that rows must pass through its pull, tangents through its push, and the weights
    on both sides see the result.
    """

    def __init__(self, layer: nn.Module, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        channels = shape[0]
        if len(shape) == 1:
            self.before = nn.Linear(channels, channels)
        else:
            self.before = getattr(nn, f"Conv{len(shape) - 1}d")(channels, channels, 1)
        self.layer = layer
        with torch.no_grad():
            out = layer(self.before(torch.rand(3, *shape)))
        self.behind = nn.Linear(out[0].numel(), 8)
        self.head = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer(self.before(x)).flatten(1)
        return self.head(F.relu(self.behind(out)))


@pytest.mark.parametrize("name", LAYERS)
def test_layer_runs_fused_and_equals_the_oracle(name: str) -> None:
    make, shape = LAYERS[name]
    x = torch.randn(3, *shape).double()
    value = compare(seeded_build(lambda: Between(make(), shape, 4)), x, seed=3)
    assert value > 0, "a case whose penalty is zero shows nothing"


@pytest.mark.parametrize("chunk", [1, 2, 5])
@pytest.mark.parametrize("name", LAYERS)
def test_layer_is_the_same_in_chunks(name: str, chunk: int) -> None:
    make, shape = LAYERS[name]
    x = torch.randn(3, *shape).double()
    build = seeded_build(lambda: Between(make(), shape, 4))
    compare(build, x, seed=3, chunk=chunk, dtypes=[torch.float64])


@pytest.mark.parametrize("name", LAYERS)
def test_layer_runs_again_inside_the_backward_pass(name: str) -> None:
    """The gradients of (N,) norms need a second sweep, run by autograd's engine."""
    make, shape = LAYERS[name]
    x = torch.randn(3, *shape).double()
    build = seeded_build(lambda: Between(make(), shape, 4))
    compare(build, x, seed=3, reduction="none", dtypes=[torch.float64])


@pytest.mark.parametrize("name", LAYERS)
def test_layer_directly_at_the_input_of_a_single_sample(name: str) -> None:
    make, shape = LAYERS[name]

    def network() -> nn.Module:
        layer = make()
        with torch.no_grad():
            out = layer(torch.rand(3, *shape))
        return nn.Sequential(layer, nn.Flatten(), nn.Linear(out[0].numel(), 1))

    x = torch.randn(1, *shape).double()
    if name in {"squeeze", "one less dimension in place"}:
        x = torch.randn(2, *shape).double()
    compare(seeded_build(network), x, seed=3, paths=PATHS, dtypes=[torch.float64])


def test_hardsigmoid_equals_its_formula() -> None:
    """Torch cannot differentiate hardsigmoid twice, so the oracle gets relu6 / 6."""
    x = torch.randn(3, 5, dtype=torch.float64)
    fused = nn.Sequential(nn.Linear(5, 6), nn.Hardsigmoid(), nn.Linear(6, 3)).double()
    with torch.no_grad():
        fused[0].weight.mul_(6)
    formula = nn.Sequential(fused[0], Function(lambda u: F.relu6(u + 3) / 6), fused[2])
    leaf, logits = leaf_and_logits(formula, x)
    expected = oracle.jacobian_squares(logits, leaf).sum()
    got = fastjac.jacobian_penalty(fused, x, reduction="sum", backend="fused")
    assert_same(got, expected, fused)
