"""What each public function returns: the definitions, by another route."""

from __future__ import annotations

import math

import oracle
import pytest
import torch
import torch.nn.functional as F
from checks import assert_close, assert_same, grads, leaf_and_logits
from nets import images, small_conv
from torch import Tensor, nn

import fastjac

DOUBLE = torch.float64
REDUCTIONS = ["frobenius", "sum", "mean", "none"]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("backend", ["auto", "fused", "autograd"])
def test_jacobian_penalty_is_the_reduced_squared_norm(
    reduction: str, backend: str, path: str
) -> None:
    model, x = small_conv().double(), images()
    leaf, logits = leaf_and_logits(model, x)
    expected = oracle.reduce(oracle.jacobian_squares(logits, leaf), reduction)
    got = fastjac.jacobian_penalty(model, x, reduction=reduction, backend=backend)
    assert_same(got, expected, model)


def test_jacobian_penalty_defaults_to_equation_4(path: str) -> None:
    model, x = small_conv().double(), images()
    leaf, logits = leaf_and_logits(model, x)
    squares = oracle.jacobian_squares(logits, leaf)
    assert_same(fastjac.jacobian_penalty(model, x), squares.sum().sqrt(), model)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("backend", ["auto", "autograd"])
def test_cross_lipschitz_penalty_is_the_sum_over_ordered_pairs(
    reduction: str, backend: str, path: str
) -> None:
    model, x = small_conv().double(), images()
    leaf, logits = leaf_and_logits(model, x)
    expected = oracle.reduce(oracle.cross_lipschitz_squares(logits, leaf), reduction)
    got = fastjac.cross_lipschitz_penalty(
        model, x, reduction=reduction, backend=backend
    )
    assert_same(got, expected, model)


def test_cross_lipschitz_penalty_defaults_to_the_sum(path: str) -> None:
    model, x = small_conv().double(), images()
    leaf, logits = leaf_and_logits(model, x)
    expected = oracle.cross_lipschitz_squares(logits, leaf).sum()
    assert_same(fastjac.cross_lipschitz_penalty(model, x), expected, model)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("backend", ["auto", "autograd"])
def test_input_gradient_penalty_is_the_squared_gradient_of_the_loss(
    reduction: str, backend: str, path: str
) -> None:
    model, x = small_conv().double(), images()
    y = torch.arange(5) % 4
    leaf, logits = leaf_and_logits(model, x)
    squares = oracle.input_gradient_squares(logits, leaf, y)
    expected = oracle.reduce(squares, reduction)
    got = fastjac.input_gradient_penalty(
        model, x, y, reduction=reduction, backend=backend
    )
    assert_same(got, expected, model)


def test_input_gradient_penalty_reaches_biases_through_the_softmax(path: str) -> None:
    model, x = small_conv().double(), images()
    penalty = fastjac.input_gradient_penalty(model, x, torch.arange(5) % 4)
    penalty.backward()
    assert model[-1].bias.grad.abs().sum() > 0


def test_class_weights_weigh_the_squared_norm_of_each_class(path: str) -> None:
    model, x = small_conv().double(), images()
    weights = [0.5, 0.0, 2.0, 1.25]
    leaf, logits = leaf_and_logits(model, x)
    expected = oracle.jacobian_squares(logits, leaf, weights).sum()
    given = torch.tensor(weights, dtype=DOUBLE)
    got = fastjac.jacobian_penalty(model, x, reduction="sum", class_weights=given)
    assert_same(got, expected, model)


@pytest.mark.parametrize("chunk", [1, 2, 3, 4, 7, 20, 10**9])
def test_chunks_do_not_change_the_result(chunk: int, path: str) -> None:
    model, x = small_conv().double(), images()
    leaf, logits = leaf_and_logits(model, x)
    expected = oracle.jacobian_squares(logits, leaf).sum().sqrt()
    assert_same(fastjac.jacobian_penalty(model, x, chunk=chunk), expected, model)
    pairs = oracle.cross_lipschitz_squares(logits, leaf).sum()
    assert_same(fastjac.cross_lipschitz_penalty(model, x, chunk=chunk), pairs, model)


@pytest.mark.parametrize("backend", ["fused", "autograd"])
def test_return_logits_gives_the_very_logits_of_the_penalty(backend: str) -> None:
    model, x = small_conv(dropout=0.5).double(), images()
    penalty, logits = fastjac.jacobian_penalty(
        model, x, return_logits=True, backend=backend
    )
    loss = F.cross_entropy(logits, torch.arange(5) % 4) + penalty
    loss.backward()
    assert logits.shape == (5, 4)
    assert all(p.grad is not None for p in model.parameters())
    # The same mask: the penalty of these logits by autograd is the same number.
    torch.manual_seed(0)
    leaf, again = leaf_and_logits(model, x)
    torch.manual_seed(0)
    penalty, logits = fastjac.jacobian_penalty(
        model, x, return_logits=True, backend=backend
    )
    assert torch.equal(logits, again)
    expected = oracle.jacobian_squares(again, leaf).sum().sqrt()
    assert_close(penalty, expected, DOUBLE, "value")


def test_penalty_from_graph_shares_the_forward_with_the_loss(path: str) -> None:
    model, x = small_conv(dropout=0.5).double(), images()
    leaf, logits = leaf_and_logits(model, x)
    y = torch.arange(5) % 4
    squares = oracle.jacobian_squares(logits, leaf)
    reference = F.cross_entropy(logits, y) + 0.3 * squares.sum().sqrt()
    expected = grads(reference, model)
    loss = F.cross_entropy(logits, y) + 0.3 * fastjac.penalty_from_graph(logits, leaf)
    loss.backward()
    for parameter, e in zip(model.parameters(), expected, strict=True):
        assert_close(parameter.grad, e, DOUBLE, "gradient")


def test_jacobian_is_the_rows_in_class_order(path: str) -> None:
    model, x = small_conv().double(), images()
    leaf, logits = leaf_and_logits(model, x)
    expected = torch.stack(oracle.rows(logits, leaf), 1)
    got = fastjac.jacobian(model, x)
    assert got.shape == (5, 4, 2, 8, 8)
    assert_close(got, expected, DOUBLE, "jacobian")
    weighting = torch.randn_like(expected)
    assert_same((weighting * got).sum(), (weighting * expected).sum(), model)


def test_norms_are_those_of_the_jacobian_matrix(path: str) -> None:
    model, x = small_conv().double(), images()
    leaf, logits = leaf_and_logits(model, x)
    matrices = torch.stack(oracle.rows(logits, leaf), 1).flatten(2).detach()
    frobenius = torch.linalg.matrix_norm(matrices)
    largest = torch.linalg.matrix_norm(matrices, ord=2)
    assert_close(fastjac.jacobian_norm(model, x), frobenius, DOUBLE, "frobenius")
    assert oracle.error(fastjac.spectral_norm(model, x), largest) < 1e-8


@pytest.mark.parametrize(
    "shape", [(3,), (2, 3), (1, 4, 5), (2, 3, 2, 2), (1, 1, 1, 2, 3)]
)
def test_input_may_have_any_batch_and_channel_shape(shape, path: str) -> None:
    size = math.prod(shape)
    model = nn.Sequential(nn.Flatten(), nn.Linear(size, 6), nn.ReLU(), nn.Linear(6, 3))
    model.double()
    x = torch.randn(2, *shape, dtype=DOUBLE)
    leaf, logits = leaf_and_logits(model, x)
    expected = oracle.jacobian_squares(logits, leaf).sum().sqrt()
    assert_same(fastjac.jacobian_penalty(model, x), expected, model)
    assert fastjac.jacobian(model, x).shape == (2, 3, *shape)


@pytest.mark.parametrize(
    "function, jacobian",
    [
        (lambda x: x, torch.eye(4)),
        (lambda x: 2 * x, 2 * torch.eye(4)),
        (lambda x: x[:, :1], torch.eye(4)[:1]),
        (lambda x: x.flip(1), torch.eye(4).flip(1)),
        (lambda x: x + x.sum(1, keepdim=True), torch.eye(4) + 1),
    ],
    ids=["identity", "twice", "one class", "flip", "sum"],
)
def test_any_callable_is_a_model(function, jacobian: Tensor) -> None:
    x = torch.randn(3, 4, dtype=DOUBLE)
    expected = jacobian.double().expand(3, -1, -1)
    assert_close(fastjac.jacobian(function, x), expected, DOUBLE, "jacobian")
    value = fastjac.jacobian_penalty(function, x, reduction="none")
    assert_close(value, expected.square().sum((1, 2)), DOUBLE, "value")


@pytest.mark.parametrize(
    "arrange",
    [
        lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
        lambda x: x.contiguous(memory_format=torch.channels_last),
        lambda x: x[:1].expand(5, -1, -1, -1),
        lambda x: torch.cat([x, x])[::2],
    ],
    ids=["transposed", "channels last", "expanded", "strided"],
)
def test_input_may_lie_in_memory_in_any_order(arrange, path: str) -> None:
    model = small_conv().double()
    x = arrange(images())
    leaf, logits = leaf_and_logits(model, x.contiguous())
    expected = oracle.jacobian_squares(logits, leaf).sum().sqrt()
    assert_same(fastjac.jacobian_penalty(model, x), expected, model)
