"""What only a GPU can show: results there, graphs, launches, and that nothing waits."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import oracle
import pytest
import torch
import torch.nn.functional as F
from checks import assert_close, assert_gradients, forward, seeded_build
from gpu_nets import convolutional, step
from hypothesis import given, settings
from networks import networks
from specs import Drawn
from torch import nn

import fastjac
from fastjac import models, native

pytestmark = [
    pytest.mark.skipif(
        not native.cuda_available(), reason=f"no GPU: {native.cuda_why_not()}"
    ),
    pytest.mark.filterwarnings("ignore:Using padding='same'"),
]


@pytest.fixture(autouse=True)
def strict() -> Iterator[None]:
    """Strict float32 unless a test says otherwise."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32 = matmul.allow_tf32 = False
    yield
    cudnn.allow_tf32, matmul.allow_tf32 = before


def errors(build, x: torch.Tensor, dtype: torch.dtype) -> tuple[float, list[float]]:
    """Of the value and of every gradient on the GPU, relative to float64 on the CPU."""
    truth = build(torch.float64)
    logits, leaf = forward(truth, x, 0)
    value = oracle.jacobian_squares(logits, leaf).sum()
    gradients = oracle.gradients(value, oracle.trainable(truth))
    model = build(dtype).to("cuda")
    got = fastjac.jacobian_penalty(
        model, x.to("cuda", dtype), reduction="sum", backend="fused"
    )
    found = oracle.gradients(got, oracle.trainable(model))
    return oracle.error(got.cpu(), value), [
        oracle.error(f.cpu(), e) for f, e in zip(found, gradients, strict=True)
    ]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_penalty_on_a_gpu_equals_the_oracle(dtype: torch.dtype) -> None:
    build = seeded_build(convolutional)
    value, gradients = errors(build, torch.rand(3, 1, 10, 10).double(), dtype)
    limit = 1e-10 if dtype == torch.float64 else 1e-5
    assert max(value, *gradients) <= limit


def test_with_tf32_allowed_the_error_is_that_of_tf32() -> None:
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cuda.matmul.allow_tf32 = True
    build = seeded_build(lambda: models.create("mnist"))
    value, gradients = errors(build, torch.rand(4, 1, 28, 28).double(), torch.float32)
    assert max(value, *gradients) <= 2e-3


@settings(max_examples=60)
@given(networks())
def test_any_network_on_a_gpu_equals_the_oracle(drawn: Drawn) -> None:
    if "Dropout" in repr(drawn):  # masks of another generator
        return
    x = drawn.x(torch.float64)
    truth = drawn.build(torch.float64)
    logits, leaf = forward(truth, x, drawn.seed)
    value = oracle.jacobian_squares(logits, leaf).sum()
    gradients = oracle.gradients(value, oracle.trainable(truth))
    model = drawn.build(torch.float64).to("cuda")
    logits, leaf = forward(model, x.cuda(), drawn.seed)
    got = fastjac.penalty_from_graph(logits, leaf, reduction="sum", backend="fused")
    found = [g.cpu() for g in oracle.gradients(got, oracle.trainable(model))]
    assert_close(got.cpu(), value, torch.float64, "value")
    assert_gradients(found, gradients, truth, torch.float64, "GPU")


def mnist(samples: int) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    model = models.create("mnist").cuda().eval()
    x = torch.rand(samples, 1, 28, 28, device="cuda")
    return model, x, torch.randint(10, (samples,), device="cuda")


def test_nothing_in_a_step_waits_for_the_device() -> None:
    model, x, y = mnist(8)
    step(model, x, y)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(model, x, y)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_hardening_step_is_captured_as_a_graph_and_replayed() -> None:
    model, x, y = mnist(8)
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(parameters, lr=0.01)
    before = [p.detach().clone() for p in parameters]

    def train() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=False)
        loss = step(model, x, y)
        optimizer.step()
        return loss

    def restore() -> None:
        with torch.no_grad():
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            train()
    torch.cuda.current_stream().wait_stream(side)
    restore()
    expected = [train().clone() for _ in range(2)]
    wanted = [p.detach().clone() for p in parameters]

    restore()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = train()
    restore()
    for value in expected:
        graph.replay()
        torch.testing.assert_close(loss, value)
    for parameter, value in zip(parameters, wanted, strict=True):
        torch.testing.assert_close(parameter.detach(), value)


def test_a_step_of_the_mnist_network_takes_few_launches() -> None:
    """The penalty adds 33 to a plain step, of which torch's own may be two each."""
    model, x, y = mnist(8)

    def started(run: Callable[[], object]) -> list[str]:
        run()
        activities = [torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profile:
            run()
            torch.cuda.synchronize()
        on_gpu = torch.autograd.DeviceType.CUDA
        return [e.name for e in profile.events() if e.device_type == on_gpu]

    plain = started(lambda: F.cross_entropy(model(x), y).backward())
    whole = started(lambda: step(model, x, y))
    assert len(whole) - len(plain) < 45, "\n".join(whole)


def test_rows_in_bfloat16_are_close_to_those_in_float32() -> None:
    torch.backends.cudnn.allow_tf32 = True
    model, x, _ = mnist(8)
    found = []
    for tf32 in (True, False):
        torch.backends.cudnn.allow_tf32 = tf32
        with torch.autocast("cuda", dtype=torch.bfloat16):
            penalty = fastjac.jacobian_penalty(model, x, backend="fused")
        found.append([penalty, *oracle.gradients(penalty, oracle.trainable(model))])
    assert max(map(oracle.error, *found)) < 2.0**-7


def test_the_same_step_gives_the_same_bits() -> None:
    found = set()
    for _ in range(3):
        torch.manual_seed(0)
        model = convolutional().cuda()
        step(model, torch.rand(3, 1, 10, 10).cuda(), torch.tensor([0, 1, 2]).cuda())
        gradients = [p.grad.cpu() for p in model.parameters() if p.grad is not None]
        found.add(torch.cat([g.flatten() for g in gradients]).numpy().tobytes())
    assert len(found) == 1
