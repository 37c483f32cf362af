"""Training with a fused penalty is training with the reference, step for step."""

from __future__ import annotations

import copy
import os
import socket
from collections.abc import Callable, Iterator

import oracle
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from checks import leaf_and_logits
from nets import images, small_conv
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrizations

import fastjac

DOUBLE = torch.float64
STEPS = 20

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


def fused_jacobian(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    penalty, logits = fastjac.jacobian_penalty(
        model, x, return_logits=True, backend="fused"
    )
    return F.cross_entropy(logits, y) + 0.3 * penalty


def plain_jacobian(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    leaf, logits = leaf_and_logits(model, x)
    squares = oracle.jacobian_squares(logits, leaf)
    return F.cross_entropy(logits, y) + 0.3 * squares.sum().sqrt()


def fused_cross_lipschitz(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    penalty, logits = fastjac.cross_lipschitz_penalty(
        model, x, return_logits=True, backend="fused"
    )
    return F.cross_entropy(logits, y) + 0.01 * penalty


def plain_cross_lipschitz(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    leaf, logits = leaf_and_logits(model, x)
    squares = oracle.cross_lipschitz_squares(logits, leaf)
    return F.cross_entropy(logits, y) + 0.01 * squares.sum()


def fused_input_gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    penalty, logits = fastjac.input_gradient_penalty(
        model, x, y, return_logits=True, backend="fused"
    )
    return F.cross_entropy(logits, y) + 0.5 * penalty


def plain_input_gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    leaf, logits = leaf_and_logits(model, x)
    squares = oracle.input_gradient_squares(logits, leaf, y)
    return F.cross_entropy(logits, y) + 0.5 * squares.sum()


LOSSES: dict[str, tuple[Loss, Loss]] = {
    "jacobian": (fused_jacobian, plain_jacobian),
    "cross-lipschitz": (fused_cross_lipschitz, plain_cross_lipschitz),
    "input-gradient": (fused_input_gradient, plain_input_gradient),
}


class Normed(nn.Module):
    """Batch norm, a residual, weight norm and dropout, as real models have them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4).eval()
        self.branch = parametrizations.weight_norm(nn.Conv2d(4, 4, 3, padding=1))
        self.head = nn.Linear(4 * 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        u = F.max_pool2d(F.relu(self.norm(self.stem(x))), 2)
        u = F.relu(u + self.branch(u), inplace=True)
        return self.head(F.dropout(u.flatten(1), 0.3))


NETWORKS = {"conv": lambda: small_conv(dropout=0.4), "normed": Normed}


def train(model: nn.Module, loss: Loss) -> list[Tensor]:
    """Weights after 20 steps of SGD with momentum and weight decay."""
    torch.manual_seed(5)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3
    )
    for step in range(STEPS):
        x, y = images(6 + step % 3), torch.arange(6 + step % 3) % 4
        optimizer.zero_grad()
        loss(model, x, y).backward()
        optimizer.step()
    return list(model.parameters())


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("kind", LOSSES)
def test_twenty_steps_end_at_the_reference_weights(
    kind: str, network: str, path: str
) -> None:
    first = NETWORKS[network]().double()
    second = copy.deepcopy(first)
    before = [p.detach().clone() for p in first.parameters()]
    fused, plain = LOSSES[kind]
    trained, expected = train(first, fused), train(second, plain)
    for got, e, start in zip(trained, expected, before, strict=True):
        assert oracle.error(got, e) < 1e-8
        assert not torch.equal(got, start)


def test_accumulated_micro_batches_are_one_batch(path: str) -> None:
    """Summed penalties of two halves have the gradient of the whole batch."""
    model, x = small_conv().double(), images(6)
    fastjac.jacobian_penalty(model, x, reduction="sum").backward()
    whole = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    for half in x.chunk(2):
        fastjac.jacobian_penalty(model, half, reduction="sum").backward()
    for p, g in zip(model.parameters(), whole, strict=True):
        if g is not None:
            assert oracle.error(p.grad, g) < 1e-10


def test_gradient_hooks_of_parameters_fire_once() -> None:
    model, calls = small_conv().double(), []
    model[0].weight.register_hook(lambda g: calls.append(g.shape))
    fused_jacobian(model, images(), torch.arange(5) % 4).backward()
    assert calls == [model[0].weight.shape]


def test_the_optimizer_may_step_between_penalty_and_its_backward_only_with_an_error(
    path: str,
) -> None:
    """Never a gradient at other weights than the value: an error instead."""
    model, x = small_conv().double(), images()
    expected = torch.autograd.grad(
        fastjac.jacobian_penalty(model, x, reduction="none").sum(), model[0].weight
    )[0]
    penalty = fastjac.jacobian_penalty(model, x, reduction="none").sum()
    with torch.no_grad():
        model[3].weight.mul_(2)
    try:
        (got,) = torch.autograd.grad(penalty, model[0].weight)
    except RuntimeError as error:
        assert "modified" in str(error)
    else:
        assert oracle.error(got, expected) < 1e-10


@pytest.fixture
def process_group() -> Iterator[None]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="no gloo here"
)
@pytest.mark.parametrize("kind", LOSSES)
def test_ddp_gives_the_gradients_of_the_bare_model(kind: str, process_group) -> None:
    bare = small_conv().double()
    wrapped = DistributedDataParallel(copy.deepcopy(bare))
    x, y = images(), torch.arange(5) % 4
    fused, plain = LOSSES[kind]
    plain(bare, x, y).backward()
    for _ in range(2):
        wrapped.zero_grad()
        fused(wrapped, x, y).backward()
    for p, e in zip(wrapped.module.parameters(), bare.parameters(), strict=True):
        assert oracle.error(p.grad, e.grad) < 1e-10


@pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="no gloo here"
)
def test_ddp_forward_once_then_penalty_from_graph(process_group) -> None:
    """DDP's own forward, so that its reducer sees the step; penalty on the graph."""
    bare = small_conv().double()
    wrapped = DistributedDataParallel(copy.deepcopy(bare))
    y = torch.arange(5) % 4
    plain_jacobian(bare, images(), y).backward()
    for _ in range(2):
        wrapped.zero_grad()
        leaf = images().requires_grad_()
        logits = wrapped(leaf)
        penalty = fastjac.penalty_from_graph(logits, leaf)
        (F.cross_entropy(logits, y) + 0.3 * penalty).backward()
    for p, e in zip(wrapped.module.parameters(), bare.parameters(), strict=True):
        assert oracle.error(p.grad, e.grad) < 1e-10


@pytest.mark.parametrize("how", ["module", "function"])
def test_a_compiled_model_is_looked_into(how: str) -> None:
    """torch.compile with the eager backend: no compiler is needed to wrap."""
    model = small_conv().double()
    expected = plain_jacobian(model, images(), torch.arange(5) % 4)
    gradients = oracle.gradients(expected, model.parameters())
    wrapped = torch.compile(
        model if how == "module" else model.forward, backend="eager"
    )
    got = fused_jacobian(wrapped, images(), torch.arange(5) % 4)
    assert oracle.error(got, expected) < 1e-10
    found = oracle.gradients(got, model.parameters())
    for g, e in zip(found, gradients, strict=True):
        assert oracle.error(g, e) < 1e-10


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_accumulates_the_norm_in_float32(dtype: torch.dtype) -> None:
    """J is all ones: in bfloat16 a running sum of ones stops at 256."""
    model = nn.Linear(5000, 3, bias=False).to(dtype)
    nn.init.ones_(model.weight)
    x = torch.zeros(2, 5000, dtype=dtype)
    penalty = fastjac.jacobian_penalty(model, x, reduction="sum")
    assert penalty.dtype == torch.float32
    assert penalty.item() == 30000
    penalty.backward()
    assert model.weight.grad.dtype == dtype
    assert (model.weight.grad == 4).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_are_near_their_float64_selves(dtype) -> None:
    model = small_conv().to(dtype)
    exact = copy.deepcopy(model).double()
    penalty = fastjac.jacobian_penalty(model, images(dtype=dtype), reduction="sum")
    leaf, logits = leaf_and_logits(exact, images(dtype=dtype).double())
    expected = oracle.jacobian_squares(logits, leaf).sum()
    assert penalty.dtype == torch.float32
    assert oracle.error(penalty, expected) < 0.1
    for g, e in zip(
        oracle.gradients(penalty, model.parameters()),
        oracle.gradients(expected, exact.parameters()),
        strict=True,
    ):
        norm = e.norm()
        assert norm == 0 or (g.double() - e).norm() / norm < 0.15


@pytest.mark.parametrize("backend", ["auto", "fused", "autograd"])
def test_under_autocast_the_norm_is_float32_and_masters_get_gradients(
    backend: str,
) -> None:
    model = small_conv()
    x = images(dtype=torch.float32)
    exact = copy.deepcopy(model).double()
    leaf, logits = leaf_and_logits(exact, x.double())
    expected = oracle.jacobian_squares(logits, leaf).sum()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        penalty = fastjac.jacobian_penalty(model, x, reduction="sum", backend=backend)
    assert penalty.dtype == torch.float32
    assert oracle.error(penalty, expected) < 0.1
    penalty.backward()
    wanted = oracle.gradients(expected, exact.parameters())
    for p, e in zip(model.parameters(), wanted, strict=True):
        if e.any():
            assert p.grad.dtype == torch.float32
            assert (p.grad.double() - e).norm() / e.norm() < 0.15


@pytest.mark.parametrize("threads", [1, 2])
def test_float32_gradients_repeat_bit_for_bit(threads: int, path: str) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        model, x = small_conv(), images(64, dtype=torch.float32)
        runs = [
            torch.autograd.grad(
                fastjac.jacobian_penalty(model, x), oracle.trainable(model)[0]
            )[0]
            for _ in range(3)
        ]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(runs[0], run) for run in runs[1:])
