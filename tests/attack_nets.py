"""Small networks for the tests of attacks, one of them trained on real digits.

A test module imports the fixtures `mnist_net` and `mnist_test` to use them.
"""

from __future__ import annotations

import copy
import functools
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from fastjac.data import idx


def mlp(seed: int, inputs: int = 12, hidden: int = 20, classes: int = 10) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(inputs, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, classes),
    ).double()


def conv(seed: int, classes: int = 7) -> nn.Module:
    """For (N, 2, 6, 6)."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(45, classes),
    ).double()


def with_dropout() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(12, 20), nn.ReLU(), nn.Dropout(0.5), nn.Linear(20, 10)
    ).train()


def digits_conv() -> nn.Sequential:
    """A small conv net for 28x28 images."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(784, 10),
    )


@functools.cache
def _trained(folder: Path) -> tuple[nn.Sequential, TensorDataset]:
    torch.manual_seed(0)
    mnist = idx(folder / "mnist")
    images, labels = mnist.train.tensors
    net = digits_conv()
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for batch in torch.randperm(len(images))[:12_800].split(64):
        optimizer.zero_grad()
        F.cross_entropy(net(images[batch]), labels[batch]).backward()
        optimizer.step()
    return net.eval(), mnist.test


@pytest.fixture
def mnist_net(data_folder: Path) -> nn.Sequential:
    """`digits_conv`, trained on real digits until it is right on most of them."""
    net, test = _trained(data_folder)
    images, labels = test.tensors
    assert (net(images[:500]).argmax(1) == labels[:500]).float().mean() > 0.93
    return copy.deepcopy(net)


@pytest.fixture
def mnist_test(data_folder: Path) -> tuple[Tensor, Tensor]:
    """The first 500 test images and their labels."""
    images, labels = _trained(data_folder)[1].tensors
    return images[:500], labels[:500]
