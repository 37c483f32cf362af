"""Linear layers pull to those inputs alone that the layer below has alive."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastjac import attacks, native, reference
from fastjac.attacks.expansion import Expansion
from fastjac.linearize import linearize
from fastjac.rules.gated import GatedLayer
from fastjac.rules.head import GatedHead
from fastjac.rules.layout import weights_kept
from fastjac.sweep import Sweep

pytestmark = pytest.mark.skipif(
    not native.available(), reason=f"no native kernels: {native.why_not()}"
)


def quiet(layer: nn.Module) -> nn.Module:
    """Most of what a ReLU behind the layer sees is negative."""
    nn.init.constant_(layer.bias, -1.0)
    return layer


def conv_net(width: int = 40) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        quiet(nn.Conv2d(6, 9, 3)),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(9 * 16, width),
        nn.ReLU(),
        nn.Linear(width, 7),
    )


def deep_mlp() -> nn.Sequential:
    return nn.Sequential(
        quiet(nn.Linear(30, 70)),
        nn.ReLU(),
        quiet(nn.Linear(70, 50)),
        nn.ReLU(),
        nn.Linear(50, 33),
        nn.ReLU(),
        nn.Linear(33, 5),
    )


def unpooled() -> nn.Sequential:
    return nn.Sequential(
        quiet(nn.Conv1d(3, 5, 3)),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(5 * 18, 25),
        nn.ReLU(),
        nn.Linear(25, 40),
    )


CASES = {
    "convolution and pool below": (conv_net, (2, 22, 22)),
    "linear layers below linear layers": (deep_mlp, (30,)),
    "convolution without a pool, more rows than lanes": (unpooled, (3, 20)),
}


def layers_below(linearization) -> int:
    rules = [getattr(rule, "hidden", rule) for rule in linearization.rules]
    return sum(isinstance(r, GatedLayer) and r.below is not None for r in rules)


@pytest.fixture
def calls(monkeypatch) -> list[int]:
    """How often the kernel runs."""
    module, seen = native.module(), []

    class Counted:
        def __getattr__(self, name):
            found = getattr(module, name)
            if name == "live_pull":
                seen.append(1)
            return found

    monkeypatch.setattr(native, "_module", Counted())
    return seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("chunk", [None, 13])
@pytest.mark.parametrize("name", CASES)
def test_rows_equal_autograd(name, dtype, chunk, calls):
    torch.manual_seed(0)
    make, shape = CASES[name]
    net = make().to(dtype)
    x = torch.randn(6, *shape, dtype=dtype, requires_grad=True)
    logits = net(x)
    linearization = linearize(logits, x)
    assert layers_below(linearization) > 0
    seeds = torch.eye(logits.shape[1], dtype=dtype)
    with weights_kept():
        rows = Sweep(linearization, seeds, chunk).pull()
    assert calls
    wide = net.double()
    exact = reference.pull(wide(x.double()), x, seeds.double(), create_graph=False)
    limit = 1e-10 if dtype == torch.float64 else 1e-5
    assert (rows - exact).norm() <= limit * exact.norm()


def test_without_a_loop_that_keeps_weights_nothing_is_transposed(calls):
    net, x = conv_net(), torch.randn(3, 2, 22, 22, requires_grad=True)
    linearization = linearize(net(x), x)
    Sweep(linearization, torch.eye(7)).pull()
    assert not calls


def test_weights_changed_in_place_are_seen():
    net, x = deep_mlp(), torch.randn(4, 30, requires_grad=True)
    with weights_kept():
        for _ in range(2):
            logits = net(x)
            rows = Sweep(linearize(logits, x), torch.eye(5)).pull()
            exact = reference.pull(logits, x, torch.eye(5), create_graph=False)
            torch.testing.assert_close(rows, exact, atol=1e-5, rtol=1e-4)
            with torch.no_grad():
                net[2].weight.mul_(torch.randn(70))
    assert sum(isinstance(r, GatedHead) for r in linearize(net(x), x).rules) == 1


def test_some_samples_of_a_batch(calls):
    net = conv_net().double()
    x = torch.randn(7, 2, 22, 22, dtype=torch.float64)
    keep, seeds = torch.tensor([1, 2, 5]), torch.eye(7).double().expand(3, -1, -1)
    with weights_kept():
        some = Expansion(net, x, "fused").rows(seeds, keep)
        each = [Expansion(net, x[i : i + 1], "fused").rows(seeds[:1]) for i in keep]
    torch.testing.assert_close(some, torch.cat(each))
    assert len(calls) == 4


def test_attacks_use_it_and_find_the_same(calls, monkeypatch):
    net, x = conv_net().double(), torch.randn(20, 2, 22, 22, dtype=torch.float64)
    found = attacks.deepfool(net, x)
    assert calls
    monkeypatch.setattr("fastjac.rules.gated.MOST_LIVE_BELOW", 0.0)
    calls.clear()
    without = attacks.deepfool(net, x)
    assert not calls
    torch.testing.assert_close(found.adversarial, without.adversarial)


def test_the_result_does_not_depend_on_threads():
    net, x = conv_net(), torch.randn(9, 2, 22, 22)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            with weights_kept():
                results.append(Expansion(net, x, "fused").rows(torch.eye(7)))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*results)
