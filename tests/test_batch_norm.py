"""BatchNorm in training mode: batch statistics are constants, the model stays."""

from __future__ import annotations

import copy
import subprocess
import sys
import warnings
from collections.abc import Callable

import oracle
import pytest
import torch
import torch.nn.functional as F
from checks import assert_same, compare, leaf_and_logits
from layer_table import curved
from torch import Tensor, nn

import fastjac
from fastjac import checks

DOUBLE = torch.float64
pytestmark = pytest.mark.filterwarnings("ignore:.*batch statistics are taken")


class Block(nn.Module):
    """Two normalised convolutions with a shortcut; the activation is to be chosen."""

    def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.activation = activation
        self.first = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 2, 3, padding=1)
        self.second_norm = nn.BatchNorm2d(2, affine=False)
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(50, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)
        )
        for norm in (self.first_norm, self.head[2]):
            nn.init.uniform_(norm.weight, -1.5, 1.5)
            nn.init.normal_(norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        out = self.activation(self.first_norm(self.first(x)))
        out = self.second_norm(self.second(out))
        return self.head(self.activation(out + x))


def block(activation: Callable[[Tensor], Tensor] = F.relu) -> Block:
    return Block(activation).to(DOUBLE).train()


def images(samples: int = 5) -> Tensor:
    return torch.randn(samples, 2, 5, 5, dtype=DOUBLE)


def frozen_at(model: nn.Module, x: Tensor) -> nn.Module:
    """The network in eval mode with the statistics that it has on this batch."""
    frozen = copy.deepcopy(model)
    handles = []

    def keep(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        (u,) = inputs
        dims = [d for d in range(u.dim()) if d != 1]
        norm.running_mean = u.detach().mean(dims)
        norm.running_var = u.detach().var(dims, correction=0)
        norm.eval()

    for module in frozen.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            handles.append(module.register_forward_pre_hook(keep))
    frozen(x)
    for handle in handles:
        handle.remove()
    return frozen.eval()


def buffers(model: nn.Module) -> list[Tensor]:
    return [buffer.clone() for buffer in model.buffers()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(map(torch.equal, one, other))


@pytest.mark.parametrize("chunk", [None, 1, 7])
@pytest.mark.parametrize("activation", [F.relu, F.leaky_relu])
def test_statistics_are_constants_in_value_and_gradient(activation, chunk) -> None:
    """The penalty is that of the network frozen at the statistics of its batch."""
    model, x = block(activation), images()
    frozen = frozen_at(model, x)
    leaf, logits = leaf_and_logits(frozen, x)
    expected = oracle.jacobian_squares(logits, leaf).sum()
    got = fastjac.jacobian_penalty(
        model, x, reduction="sum", backend="fused", chunk=chunk
    )
    assert got.item() == pytest.approx(expected.item(), rel=1e-10)
    found = oracle.gradients(got, model.parameters())
    wanted = oracle.gradients(expected, frozen.parameters())
    for one, other in zip(found, wanted, strict=True):
        assert oracle.error(one, other) < 1e-10


class Tangential(nn.Module):
    """BatchNorm whose output at x is that of a forward pass that x does not reach.

    To first order around it, ``y + w / std (u - u')``, with constant statistics.
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm, self.kept = norm, None

    def forward(self, u: Tensor) -> Tensor:
        if self.kept is None:
            self.kept = u, self.norm(u)
            return self.kept[1]
        at, value = self.kept
        dims = [d for d in range(u.dim()) if d != 1]
        variance = at.detach().var(dims, correction=0)
        factor = torch.rsqrt(variance + self.norm.eps)
        if self.norm.affine:
            factor = factor * self.norm.weight
        shape = (-1, *[1] * (u.dim() - 2))
        return value + factor.view(shape) * (u - at)


def test_second_order_terms_pass_the_statistics_as_the_forward_pass_made_them() -> None:
    """Slopes are taken at the activations, which depend on the weights by way of them.

    The oracle's Jacobian has constant statistics at activations of a forward pass with
    gradient, through the statistics, to the weights only.
    """
    model, x = block(F.gelu), images()
    got = fastjac.jacobian_penalty(model, x, reduction="sum", backend="fused")
    found = oracle.gradients(got, model.parameters())
    parameters = list(model.parameters())
    model.first_norm = Tangential(model.first_norm)
    model.second_norm = Tangential(model.second_norm)
    model.head[2] = Tangential(model.head[2])
    model(x)
    leaf, logits = leaf_and_logits(model, x)
    expected = oracle.jacobian_squares(logits, leaf).sum()
    assert got.item() == pytest.approx(expected.item(), rel=1e-10)
    wanted = oracle.gradients(expected, parameters)
    largest = max(g.abs().max().item() for g in wanted)
    for one, other in zip(found, wanted, strict=True):
        assert oracle.error(one, other, largest) < 1e-10


CALLS = {
    "jacobian_penalty": lambda m, x, **kw: fastjac.jacobian_penalty(m, x, **kw),
    "cross_lipschitz": lambda m, x, **kw: fastjac.cross_lipschitz_penalty(m, x, **kw),
    "input_gradient": lambda m, x, **kw: fastjac.input_gradient_penalty(
        m, x, torch.zeros(len(x), dtype=torch.int64), **kw
    ),
    "jacobian": lambda m, x, **kw: fastjac.jacobian(m, x, **kw),
    "jacobian_norm": lambda m, x, **kw: fastjac.jacobian_norm(m, x, **kw),
    "spectral_norm": lambda m, x, **kw: fastjac.spectral_norm(m, x, **kw),
    "explain": lambda m, x: fastjac.explain(m, x),
}
PENALTIES = list(CALLS)[:3]


@pytest.mark.parametrize("backend", ["fused", "autograd"])
@pytest.mark.parametrize("call", CALLS)
def test_a_forward_pass_of_ours_leaves_running_statistics_alone(call, backend) -> None:
    model, x = block(), images()
    before, objects = buffers(model), list(model.buffers())
    keywords = {} if call == "explain" else {"backend": backend}
    result = CALLS[call](model, x, **keywords)
    assert same(before, buffers(model))
    assert all(a is b for a, b in zip(objects, model.buffers(), strict=True))
    if call in PENALTIES:
        result.backward()
        assert same(before, buffers(model))


@pytest.mark.parametrize("call", PENALTIES)
def test_a_shared_forward_pass_updates_running_statistics_once(call) -> None:
    model, x = block(), images()
    alone = copy.deepcopy(model)
    alone(x)
    penalty, logits = CALLS[call](model, x, return_logits=True)
    (penalty + logits.square().sum()).backward()
    assert same(buffers(alone), buffers(model))
    assert model.first_norm.num_batches_tracked == 1


def test_a_penalty_from_the_users_forward_pass_updates_nothing() -> None:
    model, x = block(), images().requires_grad_()
    alone = copy.deepcopy(model)
    alone(x)
    fastjac.penalty_from_graph(model(x), x).backward()
    assert same(buffers(alone), buffers(model))


def test_a_fallback_updates_nothing() -> None:
    model = nn.Sequential(block(), Cumprod())
    before = buffers(model)
    checks._said.clear()
    with pytest.warns(UserWarning, match="differentiates the batch statistics"):
        fastjac.jacobian_penalty(model, images()).backward()
    assert same(before, buffers(model))


class Cumprod(nn.Module):
    """An operation without a rule."""

    def forward(self, x: Tensor) -> Tensor:
        return x.cumprod(1)


class Averaged(nn.Module):
    """Divides by a running scale that it updates and then uses."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(3, dtype=DOUBLE))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.scale.mul_(0.5).add_(x.detach().abs().mean(0))
        return x / self.scale


def test_a_buffer_that_is_updated_and_used_is_put_back_without_harm() -> None:
    model = nn.Sequential(nn.Linear(4, 3), Averaged(), nn.Linear(3, 2)).to(DOUBLE)
    x = torch.randn(5, 4, dtype=DOUBLE)
    leaf, logits = leaf_and_logits(copy.deepcopy(model), x)
    expected = oracle.jacobian_squares(logits, leaf).sum()
    got = fastjac.jacobian_penalty(model, x, reduction="sum", backend="fused")
    assert model[1].scale.eq(1).all()
    assert got.item() == pytest.approx(expected.item(), rel=1e-10)
    got.backward()
    other = fastjac.jacobian_penalty(
        copy.deepcopy(model), x, reduction="sum", backend="autograd"
    )
    assert other.item() == pytest.approx(expected.item(), rel=1e-10)


@pytest.mark.parametrize("backend", ["auto", "fused", "autograd"])
@pytest.mark.parametrize("call", list(CALLS)[:-1])
def test_error_refuses_batch_statistics_and_names_the_module(call, backend) -> None:
    with pytest.raises(ValueError, match=r"batch_statistics.*first_norm|head\.2"):
        CALLS[call](block(), images(), batch_statistics="error", backend=backend)
    result = CALLS[call](
        block().eval(), images(), batch_statistics="error", backend=backend
    )
    assert torch.isfinite(result).all()


def test_an_unknown_way_with_batch_statistics() -> None:
    with pytest.raises(ValueError, match=r"`batch_statistics`.*'constant', 'error'"):
        fastjac.jacobian_penalty(block(), images(), batch_statistics="frozen")


def test_one_warning_a_process_names_the_module() -> None:
    program = (
        "import torch, warnings, fastjac\n"
        "from torch import nn\n"
        "warnings.simplefilter('always')\n"
        "for _ in range(2):\n"
        "    norm = nn.BatchNorm1d(4)\n"
        "    model = nn.Sequential(nn.Linear(5, 4), norm, nn.Linear(4, 2))\n"
        "    for _ in range(2):\n"
        "        fastjac.jacobian_penalty(model, torch.randn(3, 5))\n"
        "fastjac.jacobian_penalty(model.eval(), torch.randn(3, 5))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True)
    text = done.stderr.decode()
    assert done.returncode == 0, text
    assert text.count("batch statistics are taken as constants") == 1, text
    assert "module 1 (BatchNorm1d)" in text


def test_autograd_differentiates_the_statistics() -> None:
    """The one place where backends differ: its rows hold all samples' derivatives."""
    model, x = block(), images()
    leaf, logits = leaf_and_logits(model, x)
    coupled = oracle.jacobian_squares(logits, leaf).sum()
    got = fastjac.jacobian_penalty(model, x, reduction="sum", backend="autograd")
    assert_same(got, coupled, model)
    fused = fastjac.jacobian_penalty(model, x, reduction="sum")
    assert not torch.isclose(fused, coupled)


@pytest.mark.parametrize("samples", [1, 4])
@pytest.mark.parametrize("affine", [True, False])
def test_instance_norm_is_differentiated_and_says_nothing(samples, affine) -> None:
    """Its node is a batch norm's, but its statistics are those of each sample."""

    def build(dtype: torch.dtype) -> nn.Module:
        torch.manual_seed(1)
        norm = curved(nn.InstanceNorm2d(3, affine=affine, track_running_stats=True))
        layers = nn.Conv2d(2, 3, 3), norm, nn.Flatten(), nn.Linear(27, 4)
        return nn.Sequential(*layers).to(dtype).train()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compare(build, images(samples), dtypes=[DOUBLE], batch_statistics="error")
