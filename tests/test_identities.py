"""What must hold whatever the implementation: no oracle needed."""

from __future__ import annotations

import pytest
import torch
from checks import assert_close
from nets import images, mlp, small_conv
from torch import Tensor, nn

import fastjac

DOUBLE = torch.float64


def total(model: nn.Module, x: Tensor, **options) -> Tensor:
    return fastjac.jacobian_penalty(model, x, reduction="sum", **options)


def test_every_weight_of_a_stack_is_a_factor_of_degree_two(path: str) -> None:
    """P is quadratic in each W_l: sum(W_l * dP/dW_l) = 2 P at every layer (Euler)."""
    model = nn.Sequential(
        nn.Conv2d(2, 5, 3, bias=False, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(5, 6, 3, bias=False),
        nn.LeakyReLU(0.1),
        nn.Flatten(),
        nn.Linear(24, 9, bias=False),
        nn.ReLU(),
        nn.Linear(9, 4, bias=False),
    ).double()
    penalty = total(model, images())
    penalty.backward()
    for weight in model.parameters():
        product = (weight * weight.grad).sum()
        assert_close(product, 2 * penalty, DOUBLE, f"{tuple(weight.shape)}")


def test_one_hidden_layer_has_a_closed_form(path: str) -> None:
    """For z = V relu(U x): P = sum[(V^T V) o (S^T S) o (U U^T)], S the (N, H) gates."""
    model = nn.Sequential(nn.Linear(7, 11), nn.ReLU(), nn.Linear(11, 4)).double()
    x = torch.randn(6, 7, dtype=DOUBLE)
    u, v = model[0].weight, model[2].weight
    gates = (model[0](x) > 0).double()
    expected = ((v.t() @ v) * (gates.t() @ gates) * (u @ u.t())).sum()
    wanted = torch.autograd.grad(expected, [u, v])
    penalty = total(model, x)
    assert_close(penalty, expected, DOUBLE, "value")
    for got, e in zip(torch.autograd.grad(penalty, [u, v]), wanted, strict=True):
        assert_close(got, e, DOUBLE, "gradient")


def test_an_affine_classifier_has_its_weight_as_jacobian(path: str) -> None:
    model, x = nn.Linear(7, 4).double(), torch.randn(3, 7, dtype=DOUBLE)
    penalty = total(model, x)
    assert_close(penalty, 3 * model.weight.square().sum(), DOUBLE, "value")
    penalty.backward()
    assert_close(model.weight.grad, 6 * model.weight, DOUBLE, "gradient")
    assert_close(
        fastjac.spectral_norm(model, x),
        torch.linalg.matrix_norm(model.weight, 2).expand(3),
        DOUBLE,
        "spectral norm",
    )


def test_cross_lipschitz_is_the_closed_form_of_the_jacobian(path: str) -> None:
    """sum_{j,k} ||J_j - J_k||^2 = 2 K ||J||_F^2 - 2 ||sum_k J_k||^2."""
    model, x = small_conv().double(), images()
    jacobian = fastjac.jacobian(model, x).flatten(2)
    expected = 8 * jacobian.square().sum() - 2 * jacobian.sum(1).square().sum()
    got = fastjac.cross_lipschitz_penalty(model, x)
    assert_close(got, expected, DOUBLE, "value")


def test_cross_lipschitz_ignores_what_all_classes_share(path: str) -> None:
    model, x = small_conv().double(), images()
    before = fastjac.cross_lipschitz_penalty(model, x)
    shift = torch.randn(9, dtype=DOUBLE)
    with torch.no_grad():
        model[-1].weight += shift
    assert_close(fastjac.cross_lipschitz_penalty(model, x), before, DOUBLE, "value")


def test_cross_lipschitz_of_two_classes_is_twice_one_difference(path: str) -> None:
    model, x = small_conv(classes=2).double(), images()
    rows = fastjac.jacobian(model, x)
    expected = 2 * (rows[:, 0] - rows[:, 1]).square().sum()
    got = fastjac.cross_lipschitz_penalty(model, x)
    assert_close(got, expected, DOUBLE, "value")


def test_cross_lipschitz_of_one_class_is_zero(path: str) -> None:
    model = small_conv(classes=1).double()
    penalty = fastjac.cross_lipschitz_penalty(model, images())
    penalty.backward()
    assert penalty.item() == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_reductions_agree_with_each_other(path: str) -> None:
    model, x = small_conv().double(), images()
    none, mean, summed, root = (
        fastjac.jacobian_penalty(model, x, reduction=reduction)
        for reduction in ("none", "mean", "sum", "frobenius")
    )
    assert none.shape == (5,)
    assert_close(none.sum(), summed, DOUBLE, "sum")
    assert_close(none.mean(), mean, DOUBLE, "mean")
    assert_close(none.sum().sqrt(), root, DOUBLE, "frobenius")
    assert_close(none.sqrt(), fastjac.jacobian_norm(model, x), DOUBLE, "norm")


def test_samples_do_not_see_each_other(path: str) -> None:
    model, x = small_conv().double(), images()
    together = fastjac.jacobian_penalty(model, x, reduction="none")
    alone = [fastjac.jacobian_penalty(model, s[None], reduction="none") for s in x]
    assert_close(together, torch.cat(alone), DOUBLE, "value")


def test_a_rotation_of_the_classes_changes_nothing(path: str) -> None:
    model, x = small_conv().double(), images()
    before = total(model, x)
    rotation = torch.linalg.qr(torch.randn(4, 4, dtype=DOUBLE))[0]
    with torch.no_grad():
        model[-1].weight.copy_(rotation @ model[-1].weight)
    assert_close(total(model, x), before, DOUBLE, "value")


def test_class_weights_of_one_class_are_its_row(path: str) -> None:
    model, x = small_conv().double(), images()
    third = torch.tensor([0.0, 0.0, 1.0, 0.0], dtype=DOUBLE)
    expected = fastjac.jacobian(model, x)[:, 2].square().sum()
    assert_close(total(model, x, class_weights=third), expected, DOUBLE, "value")


def test_spectral_norm_lies_between_the_longest_row_and_frobenius(path: str) -> None:
    model, x = small_conv().double(), images()
    spectral = fastjac.spectral_norm(model, x)
    rows = fastjac.jacobian(model, x).flatten(2).norm(dim=2)
    assert (spectral >= rows.max(1).values * (1 - 1e-12)).all()
    assert (spectral <= fastjac.jacobian_norm(model, x) * (1 + 1e-12)).all()


def test_the_lower_bound_is_below_the_distance_estimate() -> None:
    """Eq. 12 bounds eq. 11 from below, sample by sample."""
    from fastjac import robustness

    model, x = small_conv().double().eval(), images(20)
    estimate = robustness.distance_estimate(model, x)
    bound = robustness.distance_lower_bound(model, x)
    assert (bound <= estimate * (1 + 1e-9)).all()
    assert (bound > 0).all()


PENALTIES = {
    "frobenius": lambda model, x: fastjac.jacobian_penalty(model, x),
    "sum": lambda model, x: fastjac.jacobian_penalty(model, x, reduction="sum"),
    "none": lambda model, x: fastjac.jacobian_penalty(model, x, reduction="none"),
    "class weights": lambda model, x: fastjac.jacobian_penalty(
        model, x, class_weights=torch.tensor([0.5, 2.0, 0.0, 1.0], dtype=DOUBLE)
    ),
    "projection": lambda model, x: fastjac.jacobian_penalty(
        model, x, projections=2, generator=torch.Generator().manual_seed(3)
    ),
    "chunks": lambda model, x: fastjac.jacobian_penalty(model, x, chunk=3),
    "cross-lipschitz": lambda model, x: fastjac.cross_lipschitz_penalty(model, x),
    "input-gradient": lambda model, x: fastjac.input_gradient_penalty(
        model, x, torch.arange(len(x)) % 4
    ),
    "input-gradient, each": lambda model, x: fastjac.input_gradient_penalty(
        model, x, torch.arange(len(x)) % 4, reduction="none"
    ),
    "jacobian": lambda model, x: fastjac.jacobian(model, x),
    "spectral norm": lambda model, x: fastjac.spectral_norm(model, x),
}


@pytest.mark.parametrize("network", ["mlp", "conv"])
@pytest.mark.parametrize("name", PENALTIES)
def test_gradients_are_finite_differences(name: str, network: str, path: str) -> None:
    """torch.autograd.gradcheck in a random direction, within one linear piece."""
    if network == "mlp":
        model, x = mlp().double(), torch.randn(3, 7, dtype=DOUBLE)
    else:
        model, x = small_conv().double(), images(2)
    names = [n for n, _ in model.named_parameters()]
    weights = [p.detach().clone().requires_grad_() for p in model.parameters()]

    def function(*values: Tensor) -> Tensor:
        given = dict(zip(names, values, strict=True))
        return PENALTIES[name](
            lambda u: torch.func.functional_call(model, given, (u,)), x
        )

    assert torch.autograd.gradcheck(
        function, weights, eps=1e-6, atol=1e-5, rtol=1e-4, fast_mode=True
    )
