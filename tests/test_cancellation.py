"""Networks whose terms cancel: float32 is held to the size of the terms, not less."""

from __future__ import annotations

import cancellation
import oracle
import pytest
import torch
from checks import TOLERANCE, compare, forward, seeded_build
from layers import Normalise
from specs import Drawn, spec
from torch import nn

import fastjac

DOUBLE = torch.float64


def cancelling(units: int, left: float) -> nn.Sequential:
    """One input, one logit, J = sum_j v_j u_j = ``left`` of terms near 1."""
    model = nn.Sequential(nn.Linear(1, units), nn.ReLU(), nn.Linear(units, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.rand(units, 1) + 0.5)
        model[0].bias.fill_(3.0)
        model[2].weight.copy_(torch.rand(1, units) + 0.5)
        model[2].weight[0, ::2] *= -1
        rest = model[2].weight[0, :-1].double() @ model[0].weight[:-1, 0].double()
        model[2].weight[0, -1] = (left - rest) / model[0].weight[-1, 0].double()
    return model


BUILD = seeded_build(lambda: cancelling(8, 6.6e-5))
X = torch.tensor([[0.25]], dtype=DOUBLE)


def errors(backend: str) -> tuple[float, float]:
    """Of the value and of the worst gradient in float32."""
    exact, single = BUILD(DOUBLE), BUILD(torch.float32)
    logits, leaf = forward(exact, X, 0)
    value = oracle.jacobian_squares(logits, leaf).sum()
    logits, leaf = forward(single, X.float(), 0)
    got = fastjac.penalty_from_graph(logits, leaf, reduction="sum", backend=backend)
    pairs = zip(
        oracle.gradients(got, single.parameters()),
        oracle.gradients(value, exact.parameters()),
        strict=True,
    )
    worst = max(oracle.error(one, other) for one, other in pairs)
    return oracle.error(got, value), worst


@pytest.mark.parametrize("reduction", ["sum", "frobenius", "none"])
def test_a_1x1_jacobian_of_6_6e_5_whose_terms_are_near_1(reduction: str) -> None:
    """Found by the property test: no float32 result is right to 1e-5 of itself."""
    for backend in ("fused", "autograd"):
        assert max(errors(backend)) > TOLERANCE[torch.float32]
    compare(BUILD, X, reduction=reduction)


@pytest.mark.parametrize("reduction", ["sum", "frobenius"])
def test_a_drawn_network_whose_jacobian_of_2e_5_cancels(reduction: str) -> None:
    """Found by the property test: three hidden layers, one class, one sample."""
    layers = (
        spec(Normalise, 3),
        spec(nn.Linear, 3, 5, bias=False),
        spec(nn.ReLU, inplace=True),
        spec(nn.Linear, 5, 5),
        spec(nn.ReLU, inplace=True),
        spec(nn.Linear, 5, 33),
        spec(nn.ReLU),
        spec(nn.Linear, 33, 1, bias=False),
    )
    drawn = Drawn(layers, (3,), 1, 1, 2, frozenset())
    compare(drawn.build, drawn.x(DOUBLE), seed=drawn.seed, reduction=reduction)


def test_what_is_left_open_is_the_size_of_the_terms() -> None:
    model = BUILD(DOUBLE)

    def truth(model, x):
        logits, leaf = forward(model, x, 0)
        jacobian = oracle.rows(logits, leaf)[0].sum()
        return jacobian, oracle.gradients(jacobian, model.parameters())

    found = cancellation.LeftOpen(model, X, 0, truth)
    terms = (model[2].weight[0] * model[0].weight[:, 0]).abs().sum().item()
    assert 0.1 < found.value() / (cancellation.RELATIVE * terms) <= 2
    weights = model[2].weight.abs().max().item()
    assert found.gradient(0) == pytest.approx(cancellation.RELATIVE * weights)
    assert found.gradient(1) == 0, "the Jacobian does not depend on biases"


@pytest.mark.parametrize("wrong", [1 + 5e-5, 1 - 5e-5, 2.0])
def test_where_nothing_cancels_a_wrong_result_is_found(
    wrong: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a factor that is below what is left open where terms do cancel."""
    exact = fastjac.penalty_from_graph
    monkeypatch.setattr(
        fastjac, "penalty_from_graph", lambda *a, **k: wrong * exact(*a, **k)
    )
    build = seeded_build(lambda: cancelling(8, 1.5))
    with pytest.raises(AssertionError, match=r"error .* > 1e-05 \(torch.float32\)"):
        compare(build, X, dtypes=[torch.float32])


def test_float64_is_left_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = fastjac.penalty_from_graph
    monkeypatch.setattr(
        fastjac, "penalty_from_graph", lambda *a, **k: (1 + 1e-9) * exact(*a, **k)
    )
    with pytest.raises(AssertionError, match=r"> 1e-10 \(torch.float64\)"):
        compare(BUILD, X)


def test_a_change_that_crosses_a_kink_does_not_count() -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1)).double()
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].bias.fill_(-1.0)

    def truth(model, x):
        logits, leaf = forward(model, x, 0)
        return oracle.jacobian_squares(logits, leaf).sum(), []

    beyond = torch.full((1, 1), 1 + 1e-8, dtype=DOUBLE)
    value = truth(model, beyond)[0].item()
    found = cancellation.LeftOpen(model, beyond, 0, truth)
    assert value > 0
    assert found.value() <= 5 * cancellation.RELATIVE * value
