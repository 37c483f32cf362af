"""JSMA against a straightforward one, an image at a time, with every pair in a loop."""

from __future__ import annotations

import itertools

import attack_nets
import pytest
import torch
from torch import nn

from fastjac import attacks


def plain_jsma(net, image, target, *, steps, theta, pixels, bounds=(0.0, 1.0)):
    """The features changed, step by step, and the image at the end."""
    x = image.clone().flatten()
    low, high = bounds
    usable = [v < high if theta > 0 else v > low for v in x.tolist()]
    order = []
    while len(order) < steps:
        point = x.view_as(image)[None].requires_grad_()
        scores = net(point)[0]
        if scores.argmax() == target:
            break
        jacobian = [
            torch.autograd.grad(z, point, retain_graph=True)[0].flatten()
            for z in scores
        ]
        a = jacobian[target].tolist()
        b = sum(row for k, row in enumerate(jacobian) if k != target).tolist()
        best, choice = 0.0, None
        features = [i for i, ok in enumerate(usable) if ok]
        for group in itertools.combinations(features, pixels):
            alpha, beta = sum(a[i] for i in group), sum(b[i] for i in group)
            wanted = alpha > 0 > beta if theta > 0 else alpha < 0 < beta
            if wanted and -alpha * beta > best:
                best, choice = -alpha * beta, group
        if choice is None:
            break
        order.append(list(choice))
        x = x.detach().clone()
        for i in choice:
            x[i] = (x[i] + theta).clamp(low, high)
            usable[i] = bool(x[i] < high if theta > 0 else x[i] > low)
    return order, x.detach().view_as(image)


@pytest.mark.parametrize("pixels", [1, 2])
@pytest.mark.parametrize("theta", [1.0, 0.3, -1.0, -0.3])
@pytest.mark.parametrize("seed", range(2))
def test_changes_the_same_pixels_in_the_same_order(seed, theta, pixels, path):
    net = attack_nets.conv(seed)
    x = torch.rand(3, 2, 6, 6, dtype=torch.float64)
    target = torch.arange(3) + seed
    options = {"steps": 6, "theta": theta, "pixels": pixels}
    found = attacks.jsma(net, x, target, chunk=2, **options)
    for i in range(3):
        order, image = plain_jsma(net, x[i], int(target[i]), **options)
        assert found.iterations[i] == len(order)
        assert found.features[i, : len(order)].tolist() == order
        assert (found.features[i, len(order) :] == -1).all()
        torch.testing.assert_close(found.adversarial[i], image)


def test_says_what_it_reached():
    net, x = attack_nets.conv(3), torch.rand(20, 2, 6, 6, dtype=torch.float64)
    target = torch.arange(20) % 7
    found = attacks.jsma(net, x, target, steps=40, pixels=2)
    assert torch.equal(found.labels, net(found.adversarial).argmax(1))
    assert torch.equal(found.success, found.labels == target)
    assert found.success.any()
    assert found.adversarial.min() >= 0 and found.adversarial.max() <= 1
    there = attacks.jsma(net, x, net(x).argmax(1))
    assert there.success.all() and not there.iterations.any()
    assert torch.equal(there.adversarial, x)


def test_stops_where_no_feature_is_salient():
    dead = nn.Linear(4, 3).double()
    nn.init.zeros_(dead.weight)
    dead.bias.data = torch.tensor([1.0, 0.0, 0.0]).double()
    x = torch.rand(2, 4, dtype=torch.float64)
    found = attacks.jsma(dead, x, torch.tensor([0, 1]))
    assert found.success.tolist() == [True, False]
    assert not found.iterations.any() and torch.equal(found.adversarial, x)


X, Y = torch.rand(3, 4), torch.zeros(3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("x", "target", "options", "error", "message"),
    [
        (X, Y + 5, {}, ValueError, r"`target` must lie in 0\.\.2 .*5\.\.5"),
        (X, Y[:2], {}, ValueError, r"`target` must have shape \(3,\)"),
        (X, Y.float(), {}, TypeError, r"`target` must hold integers"),
        (X * 9, Y, {}, ValueError, r"`x` must lie within `bounds`"),
        (X, Y, {"pixels": 3}, ValueError, r"`pixels` must be 1 or 2; got 3"),
        (X, Y, {"theta": 0.0}, ValueError, r"`theta` must be a number other than 0"),
        (X, Y, {"theta": float("nan")}, ValueError, r"`theta` must be"),
        (X, Y, {"steps": -1}, ValueError, r"`steps` must be at least 0"),
        (X, Y, {"bounds": (1.0, 1.0)}, ValueError, r"`bounds` must be \(low, high\)"),
    ],
)
def test_bad_input_is_refused_by_name(x, target, options, error, message):
    with pytest.raises(error, match=message):
        attacks.jsma(nn.Linear(4, 3), x, target, **options)


def test_no_steps_change_nothing():
    found = attacks.jsma(nn.Linear(4, 3), X, Y, steps=0)
    assert torch.equal(found.adversarial, X) and found.features.shape == (3, 0, 1)
