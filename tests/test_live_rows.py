"""Rows on their way to live entries and back, where threads share a sample."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from checks import compare, seeded_build
from torch import nn

import fastjac

CLASSES = 40  # in groups of 16 rows: two full ones, and one that is not


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 20, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(180, 24),
        nn.ReLU(),
        nn.Linear(24, CLASSES),
    )


@pytest.mark.parametrize("samples", [1, 2, 5])
def test_equals_the_oracle(samples: int) -> None:
    torch.set_num_threads(4)
    x = torch.randn(samples, 1, 6, 6, dtype=torch.float64)
    compare(seeded_build(network), x, seed=3)


@pytest.mark.parametrize("samples", [1, 2])
def test_results_are_the_same_for_any_number_of_threads(samples: int) -> None:
    torch.manual_seed(0)
    model, x = network().double(), torch.randn(samples, 1, 6, 6).double()
    y = torch.randint(CLASSES, (samples,))

    def step(loss_in_sweep: bool) -> list[torch.Tensor]:
        model.zero_grad()
        if loss_in_sweep:
            fastjac.regularized_loss(model, x, y, 0.1).total.backward()
        else:
            penalty, logits = fastjac.jacobian_penalty(model, x, return_logits=True)
            (F.cross_entropy(logits, y) + 0.1 * penalty).backward()
        return [p.grad.clone() for p in model.parameters()]

    torch.set_num_threads(1)
    expected = step(loss_in_sweep=False)
    for count in (1, 2, 3, 7):
        torch.set_num_threads(count)
        for loss_in_sweep in (False, True):
            torch.testing.assert_close(
                step(loss_in_sweep), expected, rtol=1e-11, atol=1e-12
            )
