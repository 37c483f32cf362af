"""The classifier's head: both linear layers' gradients, by lists and by subset sums."""

from __future__ import annotations

import pytest
import torch
from checks import assert_same, compare, seeded_build
from torch import Tensor, nn

import fastjac
from fastjac import native, thresholds
from fastjac.rules import head
from fastjac.rules.linear import Linear

CASES = [
    # samples, inputs, hidden units, classes
    (1, 5, 4, 3),
    (2, 17, 7, 1),
    (3, 33, 9, 2),
    (9, 20, 13, 11),
    (97, 18, 6, 4),  # more samples than subset sums hold at once
    (230, 3, 5, 2),
    (5, 1024, 9, 3),  # rows are further apart than they are long
]


def network(inputs: int, hidden: int, classes: int, dtype: torch.dtype) -> nn.Module:
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, classes)
    ).to(dtype)


def penalty(model: nn.Module, x: Tensor, backend: str) -> Tensor:
    return fastjac.jacobian_penalty(model, x, reduction="sum", backend=backend)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("listed", [True, False], ids=["list", "subsets"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_both_ways_to_the_gradients_equal_the_oracle(
    case: tuple[int, int, int, int],
    listed: bool,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not native.available():
        pytest.skip(f"no native module: {native.why_not()}")
    samples, inputs, hidden, classes = case
    monkeypatch.setattr(head, "MOST_LISTED", 1.0 if listed else -1.0)
    monkeypatch.setitem(thresholds.MOST_LIVE["cpu"], Linear, 1.0)
    torch.manual_seed(sum(case))
    model = network(inputs, hidden, classes, dtype)
    x = torch.randn(samples, inputs, dtype=dtype)
    (step, *_) = fastjac.explain(model, x).steps
    assert "both gradients in one product" in step.runs
    reference = network(inputs, hidden, classes, torch.float64)
    reference.load_state_dict(model.state_dict())
    expected = penalty(reference, x.double(), "autograd")
    wanted = torch.autograd.grad(expected, [reference[0].weight, reference[2].weight])
    got = penalty(model, x, "fused")
    found = torch.autograd.grad(got, [model[0].weight, model[2].weight])
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    for mine, right in zip((got, *found), (expected, *wanted), strict=True):
        error = (mine.double() - right).norm() / right.norm()
        assert error <= tolerance


@pytest.mark.parametrize("features", [512, 1024])
def test_rows_that_would_share_a_set_of_the_caches(features: int) -> None:
    def make() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(2, features // 16, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            *network(features, 11, 4, torch.float64),
        )

    x = torch.randn(3, 2, 4, 4).double()
    compare(seeded_build(make), x, seed=1)


def test_chunks_of_samples_add_up() -> None:
    torch.manual_seed(0)
    model = network(12, 8, 3, torch.float64)
    x = torch.randn(11, 12, dtype=torch.float64)
    expected = penalty(model, x, "autograd")
    got = fastjac.jacobian_penalty(
        model, x, reduction="sum", backend="fused", chunk=3 * 4
    )
    assert_same(got, expected, model)
