"""Whole penalties through the CUDA kernels, run by the stand-in, against the oracle.

Everything but the launch is what runs on a GPU: the choice of rules, the layouts, the
wrappers and the kernels.
"""

from __future__ import annotations

from collections.abc import Callable

import oracle
import pytest
import torch
from checks import compare, seeded_build, take_path
from gpu_nets import convolutional, step
from hypothesis import given, settings
from hypothesis import strategies as st
from launches import WAITING, Launches
from networks import networks
from specs import Drawn
from torch import nn
from torch.nn import functional

import fastjac
from fastjac import fusion, native, seeds, thresholds
from fastjac.rules import dense_head

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")


def of_one_dimension() -> nn.Module:
    """A signal, strided and dilated."""
    return nn.Sequential(
        nn.Conv1d(3, 5, 4, stride=2, padding=3, dilation=2),
        nn.MaxPool1d(3, 2, padding=1),
        nn.LeakyReLU(0.1),
        nn.Conv1d(5, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.LazyLinear(3),
    )


@pytest.fixture(params=[2, 1 << 30], ids=["one product", "two products"])
def head(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """From two samples on both gradients of a head in one product, or never."""
    monkeypatch.setitem(thresholds.SAMPLES_OF_HEAD, "strict", request.param)


@pytest.mark.parametrize("block", [1, dense_head.BLOCK])
def test_the_head_equals_the_oracle(
    head: None, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dense_head, "BLOCK", block)
    make = seeded_build(
        lambda: nn.Sequential(
            nn.Linear(6, 5), nn.ReLU(), nn.Dropout(0.3), nn.Linear(5, 4)
        )
    )
    for frozen in (None, 0, 3):

        def build(dtype: torch.dtype, frozen: int | None = frozen) -> nn.Module:
            model = make(dtype)
            if frozen is not None:
                model[frozen].weight.requires_grad_(False)
            return model

        compare(build, torch.rand(7, 6).double(), paths=["standin"])


@pytest.mark.parametrize("chunk", [None, 1, 5])
@pytest.mark.parametrize(
    "make, shape", [(convolutional, (3, 1, 10, 10)), (of_one_dimension, (2, 3, 19))]
)
def test_a_convolutional_network_equals_the_oracle(
    head: None,
    make: Callable[[], nn.Module],
    shape: tuple[int, ...],
    chunk: int | None,
) -> None:
    def complete() -> nn.Module:
        model = make()
        model(torch.zeros(shape))
        return model

    x = torch.rand(shape).double()
    compare(seeded_build(complete), x, paths=["standin"], chunk=chunk)


@settings(max_examples=60)
@given(networks(), st.sampled_from([None, None, 1, 3]))
def test_any_network_equals_the_oracle(drawn: Drawn, chunk: int | None) -> None:
    compare(
        drawn.build,
        drawn.x(torch.float64),
        seed=drawn.seed,
        chunk=chunk,
        paths=["standin"],
    )


@pytest.mark.parametrize(
    "pool",
    [nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1, dilation=2), nn.AdaptiveMaxPool2d((3, 2))],
)
def test_dense_convolutions_have_gate_and_pool_in_one_kernel(
    pool: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fusion, "most_live", lambda layer: 0.0)
    make = seeded_build(
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, 3), nn.ReLU(), pool, nn.Flatten(), nn.LazyLinear(4)
        )
    )

    def build(dtype: torch.dtype) -> nn.Module:
        torch.manual_seed(3)
        model = make(torch.float32)
        model(torch.zeros(1, 2, 9, 9))
        return model.to(dtype)

    x = torch.rand(3, 2, 9, 9).double()
    compare(build, x, paths=["standin"], chunk=2)
    with take_path("standin"):
        text = str(fastjac.explain(build(torch.float32), x.float()))
    assert "Gate + MaxPool" in text and "one kernel" in text


def test_pooled_convolutions_run_gated() -> None:
    model = convolutional()
    with take_path("standin"):
        text = str(fastjac.explain(model, torch.rand(2, 1, 10, 10)))
    assert text.count("gated") == 3
    assert "Linear + Gate + Linear" in text


def mnist_like() -> nn.Module:
    """The layers of the paper's MNIST network, small: what is launched is the same."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(24, 16),
        nn.ReLU(),
        nn.Linear(16, 10),
    )


def test_a_whole_step_starts_under_60_kernels(
    head: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward, cross-entropy, penalty and backward, as bench/NOTES.md counts them."""
    monkeypatch.setattr(seeds, "_kept", {})  # other tests may have filled it
    model, x, y = mnist_like(), torch.rand(2, 1, 8, 8), torch.tensor([1, 2])
    with take_path("standin"):
        step(model, x, y)  # the seeds are kept from the first step on
        model.zero_grad()
        with Launches() as plain:
            functional.cross_entropy(model(x), y).backward()
        model.zero_grad()
        with Launches() as whole:
            step(model, x, y)
    added = whole.operators - plain.operators
    assert whole.kernels <= 17, whole.kernels
    assert plain.total <= 27, plain.operators
    assert whole.total < 60, added


def test_nothing_in_a_step_waits_for_the_device() -> None:
    """No value is read and no result's shape depends on one, in a step of each kind."""
    x, y = torch.rand(3, 1, 10, 10), torch.tensor([0, 1, 2])
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0])
    with take_path("standin"), Launches() as launched:
        model = convolutional()
        for options in (
            {},
            {"class_weights": weights},
            {"projections": 2},
            {"reduction": "none"},
            {"chunk": 5},
        ):
            penalty = fastjac.jacobian_penalty(model, x, backend="fused", **options)
            penalty.sum().backward()
        fastjac.cross_lipschitz_penalty(model, x, backend="fused").backward()
        fastjac.input_gradient_penalty(model, x, y, backend="fused").backward()
        fastjac.jacobian_norm(model, x)
    waiting = WAITING & launched.operators.keys()
    assert not waiting, waiting


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("reduction", ["frobenius", "sum", "none"])
def test_logits_that_are_not_finite_make_the_penalty_nan(
    bad: float, reduction: str
) -> None:
    model, x = convolutional(), torch.rand(3, 1, 10, 10)
    x[1, 0, 0, 0] = bad
    with take_path("standin"):
        penalty = fastjac.jacobian_penalty(
            model, x, reduction=reduction, backend="fused"
        )
    if reduction == "none":
        assert penalty.isnan().tolist() == [False, True, False]
    else:
        assert penalty.isnan()


def test_at_zero_the_norm_has_gradient_zero() -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    nn.init.zeros_(model[2].weight)
    with take_path("standin"):
        penalty = fastjac.jacobian_penalty(model, torch.rand(2, 5), backend="fused")
        penalty.backward()
    assert penalty == 0
    assert all((p.grad == 0).all() for p in (model[0].weight, model[2].weight))


def test_average_pools_are_joined_to_their_convolutions() -> None:
    """Windows that do not fill the plane too: pixels in no window carry nothing."""

    def make() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(2, 4, 3),
            nn.ReLU(),
            nn.AvgPool2d((2, 3)),
            nn.Conv2d(4, 5, 2),
            nn.Tanh(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(5, 4),
        )

    x = torch.rand(3, 2, 9, 12).double()
    compare(seeded_build(make), x, paths=["standin"])
    compare(seeded_build(make), x, paths=["standin"], chunk=4)
    with take_path("standin"):
        text = str(fastjac.explain(make(), x.float()))
    assert "Convolution + Gate + AveragePool: gated" in text


@pytest.mark.parametrize("chunk", [None, 7])
def test_rows_of_a_bfloat16_network_are_held_in_bfloat16(
    chunk: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where TF32 is allowed; strictly, and in float16, they are held in float32."""
    model, x = seeded_build(mnist_like)(torch.float32), torch.rand(4, 1, 8, 8)

    def penalty(dtype: torch.dtype, tf32: bool) -> tuple[torch.Tensor, list, str]:
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", tf32)
        with take_path("standin"), torch.autocast("cpu", dtype=dtype):
            text = str(fastjac.explain(model, x))
            value = fastjac.jacobian_penalty(
                model, x, reduction="sum", backend="fused", chunk=chunk
            )
            return value, oracle.gradients(value, oracle.trainable(model)), text

    strict, gradients, text = penalty(torch.bfloat16, tf32=False)
    assert "bfloat16" not in text
    assert "float16" not in penalty(torch.float16, tf32=True)[2]
    value, found, text = penalty(torch.bfloat16, tf32=True)
    assert text.count("rows in bfloat16") == 2
    assert value.dtype == torch.float32
    rounding = 2.0**-8
    assert 0 < oracle.error(value, strict) < rounding
    for gradient, expected in zip(found, gradients, strict=True):
        assert oracle.error(gradient, expected) < 2 * rounding


@pytest.mark.parametrize("groups", [2, 6])
def test_grouped_convolutions_run_dense_and_say_why(groups: int) -> None:
    """Depthwise ones too; bench/NOTES.md has the reason."""

    def make() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(6, 6, 3, padding=1, groups=groups),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(24, 3),
        )

    x = torch.rand(2, 6, 4, 4).double()
    compare(seeded_build(make), x, paths=["standin", "native"])
    for path in ("standin", "native"):
        with take_path(path):
            text = str(fastjac.explain(make(), x.float()))
        assert f"dense, torch convolution of {groups} groups" in text


def test_the_standin_is_put_back() -> None:
    with take_path("standin"):
        assert native.on_gpu(torch.zeros(1))
    assert not native.on_gpu(torch.zeros(1))
