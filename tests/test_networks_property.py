"""Any drawn network: fused value and every gradient equal the float64 oracle.

The measure is the largest absolute difference relative to the largest entry of the
oracle's value or of the oracle's gradient of that very parameter: 1e-10 in float64,
1e-5 in float32, or where terms cancel what tests/cancellation.py says. Both the native
kernels and the torch operators are held to it, with `backend="fused"`, so that a
fallback is an error and not a pass.
"""

from __future__ import annotations

import oracle
import pytest
import torch
from checks import (
    PATHS,
    assert_close,
    assert_gradients,
    compare,
    forward,
    path_missing,
    take_path,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import networks
from specs import Drawn

import fastjac

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")

REDUCTIONS = ["frobenius", "sum", "mean", "none"]
CHUNKS = [None, None, 1, 2, 3, 7, 1000]


@settings(max_examples=400)
@given(
    networks(),
    st.sampled_from(REDUCTIONS),
    st.sampled_from(CHUNKS),
    st.booleans(),
)
def test_jacobian_penalty_of_any_network_equals_the_oracle(
    drawn: Drawn, reduction: str, chunk: int | None, weighted: bool
) -> None:
    weights = [0.5 * (k % 3) + 0.25 for k in range(drawn.classes)] if weighted else None
    compare(
        drawn.build,
        drawn.x(torch.float64),
        seed=drawn.seed,
        reduction=reduction,
        class_weights=weights,
        chunk=chunk,
    )


def without_dropout(drawn: Drawn) -> bool:
    return "Dropout" not in repr(drawn)


@settings(max_examples=60)
@given(
    networks().filter(without_dropout),
    st.sampled_from(["cross-lipschitz", "input-gradient"]),
    st.sampled_from(REDUCTIONS),
)
def test_other_penalties_of_any_network_equal_the_oracle(
    drawn: Drawn, kind: str, reduction: str
) -> None:
    model = drawn.build(torch.float64)
    x = drawn.x(torch.float64)
    y = torch.arange(drawn.samples) % drawn.classes
    logits, leaf = forward(model, x, 0)
    if kind == "cross-lipschitz":
        squares = oracle.cross_lipschitz_squares(logits, leaf)
    else:
        squares = oracle.input_gradient_squares(logits, leaf, y)
    value = oracle.reduce(squares, reduction)
    expected = oracle.gradients(value, oracle.trainable(model))
    for path in PATHS:
        if path_missing(path):
            continue
        with take_path(path):
            options = {"reduction": reduction, "backend": "fused"}
            if kind == "cross-lipschitz":
                got = fastjac.cross_lipschitz_penalty(model, x, **options)
            else:
                got = fastjac.input_gradient_penalty(model, x, y, **options)
            found = oracle.gradients(got, oracle.trainable(model))
        assert_close(got, value, torch.float64, f"{path} value")
        assert_gradients(found, expected, model, torch.float64, path)


@settings(max_examples=40)
@given(networks().filter(without_dropout))
def test_jacobian_of_any_network_equals_the_oracle_and_is_differentiable(
    drawn: Drawn,
) -> None:
    model = drawn.build(torch.float64)
    x = drawn.x(torch.float64)
    logits, leaf = forward(model, x, 0)
    expected = torch.stack(oracle.rows(logits, leaf), 1)
    weighting = torch.randn_like(expected)
    wanted = oracle.gradients((weighting * expected).sum(), oracle.trainable(model))
    for path in PATHS:
        if path_missing(path):
            continue
        with take_path(path):
            got = fastjac.jacobian(model, x, backend="fused")
            found = oracle.gradients((weighting * got).sum(), oracle.trainable(model))
            norms = fastjac.jacobian_norm(model, x)
        assert_close(got, expected, torch.float64, f"{path} jacobian")
        frobenius = expected.flatten(1).norm(dim=1)
        assert_close(norms, frobenius, torch.float64, f"{path} norms")
        assert_gradients(found, wanted, model, torch.float64, path)
