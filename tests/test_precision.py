"""Half precision, autocast, GradScaler, channels-last models and inputs."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext

import oracle
import pytest
import torch
import torch.nn.functional as F
from checks import TOLERANCE
from torch import Tensor, nn

import fastjac

DOUBLE = torch.float64
HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def mlp() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 5)
    )


def conv() -> nn.Sequential:
    """BatchNorm, a residual sum, max pool and adaptive pool: what ResNets are of."""
    torch.manual_seed(4)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.MaxPool2d(2), Residual(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 5),
    )  # fmt: skip
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return net.eval()


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)) + x)


def images() -> Tensor:
    return torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(5))


def vectors() -> Tensor:
    return torch.randn(6, 12, generator=torch.Generator().manual_seed(5))


def autocast(dtype: torch.dtype, on: bool = True) -> AbstractContextManager[object]:
    return torch.autocast("cpu", dtype=dtype) if on else nullcontext()


# ---- half precision


def rounded(net: nn.Sequential, x: Tensor, dtype: torch.dtype, whole: bool):
    """Logits of a forward pass in half precision, and what it was made of.

    Returns logits and their leaf; the layers' weights as they were multiplied, in
    float64; and the gates that were open.
    """
    net = copy.deepcopy(net)
    if whole:
        net, x = net.to(dtype), x.to(dtype)
    leaf = x.clone().requires_grad_()
    gates: list[Tensor] = []
    hooks = [
        m.register_forward_hook(lambda m, i, out: gates.append((out > 0).double()))
        for m in net
        if isinstance(m, nn.ReLU)
    ]
    with autocast(dtype, on=not whole):
        logits = net(leaf)
    for hook in hooks:
        hook.remove()
    layers = [m for m in net if isinstance(m, nn.Linear)]
    weights = [m.weight.detach().to(dtype).double().requires_grad_() for m in layers]
    return net, logits, leaf, weights, gates


def expected(weights: list[Tensor], gates: list[Tensor]) -> Tensor:
    """The squared norm of W_3 D_2 W_2 D_1 W_1 at each sample, in float64."""
    squares = []
    for sample in range(len(gates[0])):
        product = weights[0]
        for weight, gate in zip(weights[1:], gates, strict=True):
            product = weight @ (gate[sample].unsqueeze(1) * product)
        squares.append(product.square().sum())
    return torch.stack(squares)


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "autocast"])
@pytest.mark.parametrize("name", HALF)
def test_a_half_precision_network_is_swept_in_float32(
    name: str, whole: bool, path: str
) -> None:
    """Its weights and gates as they are; everything computed from them in float32.

    Only the gradient is rounded, once, on its way through the half-precision copy.
    """
    dtype = HALF[name]
    net, logits, leaf, weights, gates = rounded(mlp(), vectors(), dtype, whole)
    assert logits.dtype == dtype
    penalty = fastjac.penalty_from_graph(logits, leaf, reduction="sum", backend="fused")
    truth = expected(weights, gates).sum()
    assert penalty.dtype == torch.float32
    assert oracle.error(penalty, truth) < TOLERANCE[torch.float32]
    penalty.backward()
    layers = [m for m in net if isinstance(m, nn.Linear)]
    for layer, gradient in zip(
        layers, torch.autograd.grad(truth, weights), strict=True
    ):
        assert layer.weight.grad.dtype == (dtype if whole else torch.float32)
        assert oracle.error(layer.weight.grad, gradient) < torch.finfo(dtype).eps
        assert layer.bias.grad is None or not layer.bias.grad.any()


@pytest.mark.parametrize("name", HALF)
def test_rows_neither_vanish_nor_overflow(name: str) -> None:
    """Products of weights that float16 cannot hold: the value scales as it should."""
    dtype = HALF[name]
    found = []
    for scale in (1.0, 2.0**-5, 2.0**3):
        net = mlp()
        for layer in net:
            if isinstance(layer, nn.Linear):
                layer.weight.data *= scale
                nn.init.zeros_(layer.bias)
        with autocast(dtype):
            squares = fastjac.jacobian_penalty(net, vectors(), reduction="sum")
        found.append(squares.item() / scale**6)
    assert found[1] == pytest.approx(found[0], rel=2e-2)
    assert found[2] == pytest.approx(found[0], rel=2e-2)


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "autocast"])
@pytest.mark.parametrize("name", HALF)
def test_every_penalty_runs_fused_in_half_precision(name: str, whole: bool) -> None:
    """A net with BatchNorm, whose scale is float32 under autocast, among them."""
    dtype = HALF[name]
    net, x = conv(), images()
    if whole:
        net, x = net.to(dtype), x.to(dtype)
    y = torch.tensor([0, 1, 2, 4])
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5])
    penalties = {
        "frobenius": lambda b: fastjac.jacobian_penalty(net, x, backend=b),
        "none": lambda b: fastjac.jacobian_penalty(
            net, x, reduction="none", backend=b, class_weights=weights
        ),
        "cross-lipschitz": lambda b: fastjac.cross_lipschitz_penalty(net, x, backend=b),
        "input-gradient": lambda b: fastjac.input_gradient_penalty(
            net, x, y, backend=b
        ),
        "spectral": lambda b: fastjac.spectral_norm(net, x, backend=b),
    }
    for penalty in penalties.values():
        with autocast(dtype, on=not whole):
            got, reference = penalty("fused"), penalty("autograd")
        assert got.dtype == torch.float32
        assert oracle.error(got, reference) < 4 * torch.finfo(dtype).eps
        (gradient,) = torch.autograd.grad(got.sum(), [net[0].weight])
        assert gradient.isfinite().all()
        assert gradient.any()
    with autocast(dtype, on=not whole):
        assert fastjac.jacobian(net, x).dtype == x.dtype


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
        lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
        lambda x: x.flip(2).roll(1, 3),
    ],
    ids=["reflect", "bilinear", "flip"],
)
def test_rare_operations_run_in_half_precision(operation) -> None:
    net = nn.Sequential(conv()[0], nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    net = nn.Sequential(net, nn.Linear(32, 5)).bfloat16()
    x = images().bfloat16()

    def penalty(backend: str) -> Tensor:
        return fastjac.jacobian_penalty(lambda u: net(operation(u)), x, backend=backend)

    assert oracle.error(penalty("fused"), penalty("autograd")) < 2e-2


# ---- GradScaler


@pytest.mark.parametrize("name", HALF)
def test_a_scaled_step_is_the_unscaled_step(name: str) -> None:
    """Scaled loss, unscale, step: as without a scaler, to the precision's rounding."""
    x, y = images(), torch.tensor([0, 1, 2, 4])
    steps = []
    for scaled in (False, True):
        net = conv()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=scaled)
        before = [p.detach().clone() for p in net.parameters()]
        with autocast(HALF[name]):
            penalty, logits = fastjac.jacobian_penalty(net, x, return_logits=True)
            loss = F.cross_entropy(logits, y) + 0.1 * penalty
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(net.parameters(), 10.0)
        scaler.step(optimizer)
        scaler.update()
        steps.append(
            [p.detach() - b for p, b in zip(net.parameters(), before, strict=True)]
        )
    for got, want in zip(*steps, strict=True):
        if want.any():
            assert oracle.error(got, want) < 8 * torch.finfo(HALF[name]).eps


def test_an_overflow_skips_the_step_and_lowers_the_scale() -> None:
    net, x = conv(), images()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    before = [p.detach().clone() for p in net.parameters()]
    with autocast(torch.float16):
        penalty = fastjac.jacobian_penalty(net, x)
    assert penalty.isfinite()
    scaler.scale(penalty).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**39
    for parameter, value in zip(net.parameters(), before, strict=True):
        assert parameter.equal(value)


def test_training_under_a_scaler_lowers_the_penalty() -> None:
    net, x = conv(), images()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02)
    scaler = torch.amp.GradScaler("cpu")
    values = []
    for _ in range(8):
        optimizer.zero_grad()
        with autocast(torch.float16):
            penalty = fastjac.jacobian_penalty(net, x, backend="fused")
        scaler.scale(penalty).backward()
        scaler.step(optimizer)
        scaler.update()
        values.append(penalty.item())
    assert values[-1] < 0.9 * values[0]


# ---- channels last


LAST = torch.channels_last


@pytest.mark.parametrize("inputs_last", [True, False], ids=["inputs last", "inputs"])
@pytest.mark.parametrize("model_last", [True, False], ids=["model last", "model"])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
def test_channels_last_changes_nothing(
    dtype: torch.dtype, model_last: bool, inputs_last: bool, path: str
) -> None:
    """No fallback, the same value and gradients, in every combination."""
    truth, x = conv().double(), images().double()
    net, given = conv().to(dtype), x.to(dtype)
    if model_last:
        net = net.to(memory_format=LAST)
    if inputs_last:
        given = given.contiguous(memory_format=LAST)
    want = fastjac.jacobian_penalty(truth, x, backend="autograd")
    got = fastjac.jacobian_penalty(net, given, backend="fused")
    assert oracle.error(got, want) < TOLERANCE[dtype]
    found = oracle.gradients(got, net.parameters())
    for g, e in zip(found, oracle.gradients(want, truth.parameters()), strict=True):
        assert oracle.error(g, e) < TOLERANCE[dtype]


def test_a_view_by_strides_that_moves_elements_is_no_identity() -> None:
    head = nn.Linear(4, 3).double()

    def model(x: Tensor) -> Tensor:
        return head((2 * x).as_strided((4, 4), (1, 4)))  # transposed

    x = torch.randn(4, 4, dtype=DOUBLE, requires_grad=True)
    logits = model(x)
    lin = fastjac.linearize(logits, x)
    seeds = torch.eye(3, dtype=DOUBLE)
    rows = fastjac.pull(lin, seeds)
    for k in range(3):
        (want,) = torch.autograd.grad(logits[:, k].sum(), x, retain_graph=True)
        torch.testing.assert_close(rows[:, k], want)
