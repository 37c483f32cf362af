"""Autocast is for the model's own forward pass: nothing that fastjac computes obeys it.

Whether a penalty is called inside of the context or after it makes no difference.
"""

from __future__ import annotations

import oracle
import pytest
import torch
import torch.nn.functional as F
from specs import randomise_statistics
from test_zoo import images
from torch import Tensor, nn
from zoo import ZOO

import fastjac

pytestmark = pytest.mark.filterwarnings("ignore:.*batch statistics are taken")
NETS = ["vit", "convnext", "squeeze-excite", "resnet18 gelu", "mobilenet-v2"]
HALF = [torch.bfloat16, torch.float16]


def network(name: str) -> nn.Module:
    torch.manual_seed(3)
    model = ZOO[name][0](3)
    randomise_statistics(model)
    return model.eval()


def results(model: nn.Module, penalty: Tensor) -> list[Tensor]:
    return [penalty.detach(), *oracle.gradients(penalty, model.parameters())]


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", NETS)
def test_inside_of_autocast_and_after_it_are_one(name: str, dtype) -> None:
    model, x = network(name), images(name, 3).float().requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        logits = model(x)
        inside = fastjac.penalty_from_graph(logits, x, backend="fused")
    after = fastjac.penalty_from_graph(logits, x, backend="fused")
    assert inside.dtype == torch.float32
    pairs = zip(results(model, inside), results(model, after), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", ["vit", "convnext", "squeeze-excite"])
def test_a_training_step_under_autocast_is_near_the_one_in_float32(name, dtype) -> None:
    """As near as the forward pass in half precision lets it be."""
    model, x = network(name), images(name, 3).float()
    steps = []
    for on in (False, True):
        with torch.autocast("cpu", dtype=dtype, enabled=on):
            penalty, logits = fastjac.jacobian_penalty(
                model, x, return_logits=True, backend="fused"
            )
            loss = F.cross_entropy(logits, torch.arange(3)) + 0.1 * penalty
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        steps.append((penalty.detach(), torch.cat([g.flatten() for g in gradients])))
    (value, gradient), (half_value, half_gradient) = steps
    torch.testing.assert_close(half_value, value, rtol=0.02, atol=0)
    assert (half_gradient - gradient).norm() < 0.1 * gradient.norm()


@pytest.mark.parametrize("dtype", HALF)
def test_spectral_norm_is_exact_under_autocast(dtype) -> None:
    model, x = nn.Linear(6, 4), torch.randn(3, 6)
    rounded = model.weight.detach().to(dtype).float()
    with torch.autocast("cpu", dtype=dtype):
        found = fastjac.spectral_norm(model, x)
    expected = torch.linalg.matrix_norm(rounded, 2).expand(3)
    torch.testing.assert_close(found.detach(), expected)
