"""Max pools of the attacks' forward passes are torch's, bit for bit, only faster."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastjac import attacks, max_pools, native
from fastjac.max_pools import native_max_pools

pytestmark = pytest.mark.skipif(
    not native.available(), reason=f"no native kernels: {native.why_not()}"
)


@pytest.fixture
def runs(monkeypatch) -> list[tuple[int, ...]]:
    """The shapes that the kernel has pooled."""
    seen: list[tuple[int, ...]] = []
    pool = max_pools._max_pool

    def counted(images: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(tuple(images.shape))
        return pool(images)

    monkeypatch.setattr(max_pools, "_max_pool", counted)
    return seen


def pooled(images: Tensor, *arguments, **options) -> tuple[Tensor, Tensor]:
    return F.max_pool2d(images, *arguments, return_indices=True, **options)


# Widths around the sixteen outputs that the kernel forms together.
@pytest.mark.parametrize("width", [2, 3, 5, 14, 28, 33, 34, 71])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_winners_are_those_of_torch(width, dtype, runs):
    torch.manual_seed(width)
    # Few different values, so that windows have ties; zeros of both signs among them.
    images = torch.randint(-2, 3, (3, 5, 7, width)).to(dtype) * 0.5
    images[0, 0] *= -1.0
    expected = pooled(images, 2)
    with native_max_pools():
        found = pooled(images, 2)
    assert runs == [(3, 5, 7, width)]
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one.signbit(), other.signbit())


def test_what_is_not_a_number_wins_as_in_torch(runs):
    images = torch.arange(64.0).view(1, 1, 8, 8).clone()
    for place in (0, 3, 9, 18, 26, 27, 63):
        images.view(-1)[place] = torch.nan
    images[0, 0, 4, 4] = torch.inf
    images[0, 0, 6:, :2] = -torch.inf
    expected = pooled(images, 2)
    with native_max_pools():
        found = pooled(images, 2)
    assert runs
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def test_the_graph_is_the_same(runs):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 9, requires_grad=True)
    with native_max_pools():
        values = F.max_pool2d(x, 2)
    assert runs and type(values.grad_fn).__name__ == "MaxPool2DWithIndicesBackward0"
    expected = F.max_pool2d(x, 2)
    weights = torch.randn_like(expected)
    (found,) = torch.autograd.grad(values, x, weights)
    (wanted,) = torch.autograd.grad(expected, x, weights)
    assert torch.equal(found, wanted)


OTHERS = {
    "overlapping": lambda x: pooled(x, 3, 2),
    "one stride for both": lambda x: pooled(x, 2, 1),
    "padded": lambda x: pooled(x, 2, padding=1),
    "dilated": lambda x: pooled(x, 2, dilation=2),
    "rounded up": lambda x: pooled(x, 2, ceil_mode=True),
    "oblong": lambda x: pooled(x, (2, 1)),
    "channels last": lambda x: pooled(x.to(memory_format=torch.channels_last), 2),
    "not contiguous": lambda x: pooled(x.transpose(2, 3), 2),
    "half precision": lambda x: pooled(x.bfloat16(), 2),
    "one dimension": lambda x: F.max_pool1d(x[0], 2, return_indices=True),
    "no samples": lambda x: pooled(x[:0], 2),
    "no batch": lambda x: pooled(x[0], 2),
}


@pytest.mark.parametrize("name", OTHERS)
def test_every_other_pool_is_that_of_torch_too(name):
    torch.manual_seed(0)
    images = torch.randn(2, 3, 9, 9)
    expected = OTHERS[name](images)
    with native_max_pools():
        found = OTHERS[name](images)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other) and one.stride() == other.stride()


def test_windows_that_fit_nowhere_are_refused_as_ever():
    with native_max_pools(), pytest.raises(RuntimeError, match="too small"):
        F.max_pool2d(torch.rand(1, 1, 1, 4), 2)


def test_attacks_pool_natively_and_find_what_they_find_without(runs, monkeypatch):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)
    )
    x = torch.rand(6, 1, 8, 8)
    found = attacks.deepfool(net, x)
    assert runs
    monkeypatch.setattr(max_pools, "_side_by_side", lambda *_: False)
    assert torch.equal(attacks.deepfool(net, x).adversarial, found.adversarial)


def test_the_number_of_threads_changes_nothing():
    torch.manual_seed(0)
    images = torch.randn(5, 3, 10, 38)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            with native_max_pools():
                found.append(pooled(images, 2))
    finally:
        torch.set_num_threads(before)
    for values, places in found[1:]:
        assert torch.equal(values, found[0][0]) and torch.equal(places, found[0][1])
