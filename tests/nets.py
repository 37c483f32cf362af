"""The few networks that tests share when any network will do."""

from __future__ import annotations

import torch
from torch import nn


def small_conv(classes: int = 4, dropout: float = 0.0) -> nn.Sequential:
    """Conv, ReLU, max pool, conv, ReLU, average pool, two linear layers."""
    return nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(5, 6, 3),
        nn.ReLU(inplace=True),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(6, 9),
        nn.ReLU(),
        nn.Linear(9, classes),
    )


def images(samples: int = 5, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Input of `small_conv`, (samples, 2, 8, 8)."""
    generator = torch.Generator().manual_seed(samples)
    return torch.randn(samples, 2, 8, 8, generator=generator).to(dtype)


def mlp(inputs: int = 7, hidden: int = 11, classes: int = 4) -> nn.Sequential:
    """Linear, ReLU, linear, ReLU, linear, without biases: a product of matrices."""
    return nn.Sequential(
        nn.Linear(inputs, hidden, bias=False),
        nn.ReLU(),
        nn.Linear(hidden, hidden, bias=False),
        nn.ReLU(),
        nn.Linear(hidden, classes, bias=False),
    )
