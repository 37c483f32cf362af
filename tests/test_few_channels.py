"""Convolutions with few input channels, whose vectors hold rows (gated_conv_rows.cpp).

The kernel cuts windows into tiles of columns, and images of few samples into bands that
threads share; both are exercised here, as is the frame of zeros around the image.
"""

from __future__ import annotations

import pytest
import torch
from checks import compare, leaf_and_logits, seeded_build
from torch import nn

import fastjac

# name: channels, kernel, stride, padding, dilation; inputs are (channels, 19, 14).
SHAPES = {
    "one tile": (1, 5, 1, 2, 1),
    "three tiles": (3, 5, 1, 0, 1),
    "strides beyond the kernel": (2, 2, 3, 1, 1),
    "dilated": (1, 3, 1, 2, 2),
    "one wide window": (3, (1, 7), (1, 2), (0, 3), 1),
    "taller than a band": (1, (9, 2), 1, (4, 0), 1),
}


def network(name: str, pool: bool) -> nn.Module:
    channels, kernel, stride, padding, dilation = SHAPES[name]
    convolution = nn.Conv2d(channels, 4, kernel, stride, padding, dilation)
    layers = [convolution, nn.ReLU(), *([nn.MaxPool2d(2)] if pool else [])]
    with torch.no_grad():
        out = nn.Sequential(*layers)(torch.rand(1, channels, 19, 14))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(out.numel(), 5))


def inputs(name: str, samples: int) -> torch.Tensor:
    return torch.randn(samples, SHAPES[name][0], 19, 14, dtype=torch.float64)


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("samples", [2, 17])
@pytest.mark.parametrize("name", SHAPES)
def test_equals_the_oracle(name: str, samples: int, pool: bool) -> None:
    build = seeded_build(lambda: network(name, pool))
    compare(build, inputs(name, samples), seed=5)


@pytest.mark.parametrize("samples", [1, 17])
@pytest.mark.parametrize("name", SHAPES)
def test_results_do_not_depend_on_the_number_of_threads(
    name: str, samples: int
) -> None:
    model, x = network(name, pool=True).double(), inputs(name, samples)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            leaf, logits = leaf_and_logits(model, x)
            rows = fastjac.pull(fastjac.linearize(logits, leaf), torch.eye(5).double())
            gradient = torch.autograd.grad(rows.square().sum(), model[0].weight)[0]
            found.append((rows.detach(), gradient))
    finally:
        torch.set_num_threads(before)
    for rows, gradient in found[1:]:
        torch.testing.assert_close(rows, found[0][0], rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(gradient, found[0][1], rtol=1e-12, atol=1e-12)
