"""One comparison for all tests: fused value and gradients against the oracle."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import oracle
import pytest
import torch
from cancellation import LeftOpen
from cuda_standin import device as standin
from specs import weight_of
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import fastjac
from fastjac import native

PATHS = ("native", "torch")
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def path_missing(path: str) -> str | None:
    """Why a path cannot be taken here; None if it can."""
    if path == "native" and not native.available():
        return f"native kernels are not there: {native.why_not()}"
    return None


@contextmanager
def take_path(path: str) -> Iterator[None]:
    """Run the body with the native kernels or with torch operators only.

    The path "standin" runs the CUDA kernels on CPU tensors, by the stand-in for a GPU.
    """
    with pytest.MonkeyPatch.context() as patch:
        if path == "standin":
            module = standin.load()
            standin.Device(module, most_blocks=1 << 30)
            gpu = native.Backend(module, on_gpu=True)
            patch.setitem(native.replaced, "cpu", gpu)
            with standin.any_memory(module):
                yield
            return
        if path == "torch":
            patch.setattr(native, "_module", None)
            patch.setattr(native, "_reason", "switched off by this test")
        yield


def assert_close(
    got: Tensor,
    expected: Tensor,
    dtype: torch.dtype,
    name: str,
    scale: float | None = None,
    left_open: Callable[[], float] | None = None,
) -> None:
    """Difference within tolerance of the largest entry expected, or of ``scale``.

    Or within what float32 leaves open, see tests/cancellation.py.
    """
    assert got.shape == expected.shape, f"{name}: {got.shape} != {expected.shape}"
    assert torch.isfinite(got).all(), f"{name} is not finite"
    measured = oracle.error(got, expected, scale)
    limit = TOLERANCE[dtype]
    if measured > limit and left_open is not None:
        difference = oracle.error(got, expected, 1.0)
        if difference <= left_open():
            return
    assert measured <= limit, f"{name}: error {measured:.2e} > {limit:.0e} ({dtype})"


def assert_gradients(
    found: Sequence[Tensor],
    expected: Sequence[Tensor],
    model: nn.Module,
    dtype: torch.dtype,
    path: str,
    left_open: LeftOpen | None = None,
) -> None:
    """Every gradient, relative to the largest entry of that parameter's own.

    The originals of one computed weight are measured together: for weight_norm's
    direction the exact gradient is often zero by cancellation, and what rounding leaves
    of it has no scale of its own.
    """
    named = [n for n, p in model.named_parameters() if p.requires_grad]
    weights = [weight_of(name) for name in named]
    largest: dict[str, float] = {}
    for weight, gradient in zip(weights, expected, strict=True):
        entry = gradient.abs().max().item()
        largest[weight] = max(largest.get(weight, 0.0), entry)
    for i, (g, e) in enumerate(zip(found, expected, strict=True)):
        name = f"{path} gradient of {named[i]}"
        slack = None if left_open is None else partial(left_open.gradient, i)
        assert_close(g, e, dtype, name, largest[weights[i]], slack)


def compare(
    build: Callable[[torch.dtype], nn.Module],
    x: Tensor,
    *,
    seed: int = 0,
    reduction: str = "sum",
    class_weights: Sequence[float] | None = None,
    dtypes: Sequence[torch.dtype] = (torch.float64, torch.float32),
    paths: Sequence[str] = PATHS,
    **options: Any,
) -> float:
    """Assert that penalty_from_graph equals the oracle in every dtype and path.

    Args:
        build: makes the network in a dtype, with weights that float32 represents.
        x: (N, ...) float64 input that float32 represents.
        seed: of dropout, so that every forward has the same mask.
        options: further keywords of `fastjac.penalty_from_graph`.

    Returns:
        The expected value, summed, so that a caller can see whether it is zero.
    """

    def exact(model: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        with sdpa_kernel(SDPBackend.MATH):  # which autograd differentiates twice
            logits, leaf = forward(model, x, seed)
        squares = oracle.jacobian_squares(logits, leaf, class_weights)
        value = oracle.reduce(squares, reduction)
        return value, oracle.gradients(value, oracle.trainable(model))

    truth = build(torch.float64)
    value, gradients = exact(truth, x)
    left_open = LeftOpen(build(torch.float64), x, seed, exact)
    for dtype in dtypes:
        model = build(dtype)
        if dtype == torch.float32 and not same_piece(truth, model, x, seed):
            continue
        for path in paths:
            if path_missing(path):
                continue
            with take_path(path):
                logits, leaf = forward(model, x.to(dtype), seed)
                got = fastjac.penalty_from_graph(
                    logits,
                    leaf,
                    reduction=reduction,
                    backend="fused",
                    **weights_option(class_weights, dtype),
                    **options,
                )
                found = oracle.gradients(got, oracle.trainable(model))
            assert got.dtype == dtype
            slack = left_open if dtype == torch.float32 else None
            of_value = None if slack is None else slack.value
            assert_close(got, value, dtype, f"{path} value", left_open=of_value)
            assert_gradients(found, gradients, model, dtype, path, slack)
    return value.sum().item()


def weights_option(weights: Sequence[float] | None, dtype: torch.dtype) -> dict:
    if weights is None:
        return {}
    return {"class_weights": torch.tensor(weights, dtype=dtype)}


def forward(model: nn.Module, x: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Logits and the leaf they were computed from, with the dropout mask of seed."""
    leaf = x.detach().clone().requires_grad_()
    torch.manual_seed(seed)
    return model(leaf), leaf


def same_piece(one: nn.Module, other: nn.Module, x: Tensor, seed: int) -> bool:
    """Whether float32 rounding left every kink on the side it has in float64."""
    torch.manual_seed(seed)
    pieces_one = oracle.pieces(one, x)
    torch.manual_seed(seed)
    pieces_other = oracle.pieces(other, x.float())
    return oracle.same_piece(pieces_one, pieces_other)


def seeded_build(
    make: Callable[[], nn.Module], prepare: Callable[[nn.Module], None] | None = None
) -> Callable[[torch.dtype], nn.Module]:
    """A build function for `compare` from a plain constructor."""

    @functools.wraps(make)
    def build(dtype: torch.dtype) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(7)
            model = make()
            if prepare is not None:
                prepare(model)
        return model.to(dtype)

    return build


def leaf_and_logits(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """A fresh leaf with the values of x, and the logits computed from it."""
    leaf = x.detach().clone().requires_grad_()
    return leaf, model(leaf)


def grads(value: Tensor, model: nn.Module) -> list[Tensor]:
    return oracle.gradients(value, oracle.trainable(model))


def assert_same(got: Tensor, expected: Tensor, model: nn.Module) -> None:
    """Equal values and equal gradients of every parameter, in float64."""
    assert_close(got, expected, torch.float64, "value")
    assert_gradients(
        grads(got, model), grads(expected, model), model, torch.float64, "this"
    )
