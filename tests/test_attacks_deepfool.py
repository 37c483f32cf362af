"""DeepFool against a per-sample one written from the paper, and against algebra."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from fastjac import attacks, robustness


@dataclass
class Original:
    perturbation: torch.Tensor
    iterations: int
    label: int
    adversarial_label: int


def original_deepfool(net, image, num_classes=10, overshoot=0.02, max_iter=50):
    """One image at a time, one backward pass a class, as in the paper's Algorithm 2."""
    order = net(image[None])[0].argsort(descending=True)[:num_classes].tolist()
    label, now, total, taken = order[0], order[0], torch.zeros_like(image), 0
    point = image.clone()
    while now == label and taken < max_iter:
        point = point.detach().requires_grad_()
        scores = net(point[None])[0]
        gradients = {
            k: torch.autograd.grad(scores[k], point, retain_graph=True)[0]
            for k in order
        }
        nearest, way = float("inf"), None
        for k in order[1:]:
            w = gradients[k] - gradients[label]
            distance = (scores[k] - scores[label]).abs().item() / w.norm().item()
            if distance < nearest:
                nearest, way = distance, w
        total = total + (nearest + 1e-4) * way / way.norm()
        point = image + (1 + overshoot) * total
        now = net(point[None])[0].argmax().item()
        taken += 1
    return Original((1 + overshoot) * total, taken, label, now)


def random_net(seed, inputs=12, hidden=20, classes=10):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(),
        nn.Linear(hidden, classes),
    ).double()  # fmt: skip


def random_conv_net(seed):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(45, 7),
    ).double()  # fmt: skip


def agree(net, x, result, **settings):
    for i, image in enumerate(x):
        want = original_deepfool(net, image, **settings)
        assert result.iterations[i].item() == want.iterations
        assert result.original_labels[i].item() == want.label
        assert result.labels[i].item() == want.adversarial_label
        gap = (result.perturbation[i] - want.perturbation).norm()
        assert gap <= 1e-4 * want.perturbation.norm()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("chunk", [None, 1, 7])
def test_deepfool_equals_the_per_sample_original_on_random_nets(seed, chunk):
    net = random_net(seed)
    x = torch.randn(20, 12, dtype=torch.float64)
    agree(net, x, attacks.deepfool(net, x, chunk=chunk))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("candidates", [2, 4, 100])
def test_deepfool_equals_the_original_on_conv_nets(seed, candidates):
    net = random_conv_net(seed)
    x = torch.randn(9, 2, 6, 6, dtype=torch.float64)
    result = attacks.deepfool(net, x, candidates=candidates, overshoot=0.1, steps=5)
    agree(net, x, result, num_classes=candidates, overshoot=0.1, max_iter=5)


def test_rho_adv_is_the_mean_relative_norm():
    net = random_net(0)
    x = torch.randn(30, 12, dtype=torch.float64)
    each = [original_deepfool(net, i).perturbation.norm() / i.norm() for i in x]
    got = robustness.rho_adv(attacks.deepfool(net, x), x)
    assert got == pytest.approx(torch.stack(each).mean().item(), rel=1e-6)
