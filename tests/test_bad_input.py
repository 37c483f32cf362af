"""Bad input: each error names the argument, what was got, what was expected."""

from __future__ import annotations

import pytest
import torch
from nets import images, small_conv
from torch import Tensor, nn

import fastjac

PENALTIES = {
    "jacobian": fastjac.jacobian_penalty,
    "cross-lipschitz": fastjac.cross_lipschitz_penalty,
    "input-gradient": lambda m, x, **kw: fastjac.input_gradient_penalty(
        m, x, torch.zeros(len(x), dtype=torch.int64), **kw
    ),
    "jacobian rows": fastjac.jacobian,
    "jacobian norm": fastjac.jacobian_norm,
    "spectral norm": fastjac.spectral_norm,
}


@pytest.fixture(params=PENALTIES)
def penalty(request: pytest.FixtureRequest):
    return PENALTIES[request.param]


def linear(inputs: int = 3, classes: int = 2) -> nn.Module:
    return nn.Linear(inputs, classes)


def test_input_without_a_batch(penalty) -> None:
    with pytest.raises(ValueError, match=r"`x`.*\(3,\).*x\.unsqueeze\(0\)"):
        penalty(linear(), torch.randn(3))


def test_input_without_samples(penalty) -> None:
    with pytest.raises(ValueError, match=r"`x`.*\(0, 3\)"):
        penalty(linear(), torch.randn(0, 3))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_integer_input(penalty, dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=rf"`x`.*{dtype}.*x\.float\(\)"):
        penalty(linear(), torch.ones(2, 3).to(dtype))


def test_input_that_is_no_tensor(penalty) -> None:
    with pytest.raises(TypeError, match=r"`x`.*list"):
        penalty(linear(), [[1.0, 2.0, 3.0]])


def test_complex_input(penalty) -> None:
    with pytest.raises(TypeError, match=r"`x`.*complex64"):
        penalty(linear(), torch.zeros(2, 3, dtype=torch.complex64))


@pytest.mark.parametrize("reshape", [lambda z: z.flatten(), lambda z: z[..., None]])
def test_logits_that_are_not_two_dimensional(penalty, reshape) -> None:
    with pytest.raises(ValueError, match=r"`logits` must have shape \(N, K\)"):
        penalty(lambda x: reshape(2 * x), torch.randn(2, 3))


def test_logits_of_another_number_of_samples(penalty) -> None:
    with pytest.raises(ValueError, match=r"`logits`.*N = 4.*\(2, 3\)"):
        penalty(lambda x: 2 * x[:2], torch.randn(4, 3))


def test_a_model_that_returns_several_tensors(penalty) -> None:
    with pytest.raises(TypeError, match="logits as one tensor; got tuple"):
        penalty(lambda x: (x, x), torch.randn(2, 3))


@pytest.mark.parametrize(
    "cut",
    [
        lambda x: linear()(x.detach()),
        lambda x: torch.ones(len(x), 2, requires_grad=True) * 2,
        lambda x: torch.ones(len(x), 2),
    ],
    ids=["detached x", "parameters only", "constant"],
)
def test_logits_detached_from_the_input(penalty, cut) -> None:
    with pytest.raises(ValueError, match="`x` is detached from `logits`"):
        penalty(cut, torch.randn(2, 3))


def test_logits_that_torch_no_grad_cut_off(penalty) -> None:
    @torch.no_grad()
    def model(x: Tensor) -> Tensor:
        return 2 * x

    with pytest.raises(ValueError, match=r"detached from `logits`.*torch\.no_grad"):
        penalty(model, torch.randn(2, 3))


@pytest.mark.parametrize("backend", ["auto", "fused", "autograd"])
def test_a_graph_made_before_the_input_required_grad(backend: str) -> None:
    x = torch.randn(2, 3)
    logits = linear()(x)
    with pytest.raises(ValueError, match=r"x\.requires_grad_\(\) before"):
        fastjac.penalty_from_graph(logits, x, backend=backend)


@pytest.mark.parametrize("backend", ["auto", "fused", "autograd"])
def test_a_graph_from_another_input(backend: str) -> None:
    logits = linear()(torch.randn(2, 3, requires_grad=True))
    with pytest.raises(ValueError, match="detached"):
        fastjac.penalty_from_graph(
            logits, torch.randn(2, 3, requires_grad=True), backend=backend
        )


def test_a_graph_that_backward_has_freed() -> None:
    x = torch.randn(2, 3, requires_grad=True)
    logits = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))(x)
    logits.sum().backward()
    with pytest.raises(RuntimeError, match=r"backward|freed"):
        fastjac.penalty_from_graph(logits, x)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_input_that_is_not_finite(penalty, value: float) -> None:
    x = images(dtype=torch.float32)
    x[3, 0, 2, 2] = value
    with pytest.raises(ValueError, match=r"sample 3.*not finite.*x holds NaN"):
        penalty(lambda x: x.flatten(1)[:, :40] * 2, x)


def test_a_model_that_makes_nan(penalty) -> None:
    model = linear()
    with torch.no_grad():
        model.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"not finite.*weights or activations"):
        penalty(model, torch.randn(2, 3))


def test_model_and_input_on_two_devices(penalty) -> None:
    """The meta device stands in for a GPU."""
    with pytest.raises(ValueError, match="`x` is on cpu and `logits` are on meta"):
        penalty(lambda x: x.to("meta"), torch.randn(2, 3))


@pytest.mark.parametrize("name", ["jacobian", "cross-lipschitz", "input-gradient"])
def test_an_unknown_reduction(name: str) -> None:
    with pytest.raises(ValueError, match=r"`reduction` must be one of.*'l2'"):
        PENALTIES[name](linear(), torch.randn(2, 3), reduction="l2")


def test_an_unknown_backend(penalty) -> None:
    with pytest.raises(ValueError, match=r"`backend` must be one of.*'fast'"):
        penalty(linear(), torch.randn(2, 3), backend="fast")


@pytest.mark.parametrize("chunk", [0, -1, 2.5, "many", True])
def test_a_chunk_that_is_no_positive_integer(penalty, chunk) -> None:
    with pytest.raises(ValueError, match=f"`chunk` must be a positive.*{chunk!r}"):
        penalty(linear(), torch.randn(2, 3), chunk=chunk)


@pytest.mark.parametrize("projections", [0, -1, 3, 1.5, "one", True])
def test_projections_out_of_range(projections) -> None:
    with pytest.raises(ValueError, match=r"`projections`.*1 to K = 2.*got"):
        fastjac.jacobian_penalty(linear(), torch.randn(2, 3), projections=projections)


@pytest.mark.parametrize(
    "weights, expected",
    [
        ([1.0, -0.5], "not negative.*-0.5"),
        ([1.0, float("nan")], "finite.*nan"),
        ([1.0, 1.0, 1.0], r"shape \(2,\).*got \(3,\)"),
        ([[1.0, 1.0]], r"shape \(2,\).*got \(1, 2\)"),
        (1.0, r"shape \(2,\).*got \(\)"),
    ],
)
def test_class_weights_that_do_not_fit(weights, expected: str) -> None:
    with pytest.raises(ValueError, match=f"`class_weights`.*{expected}"):
        fastjac.jacobian_penalty(
            linear(), torch.randn(2, 3), class_weights=torch.tensor(weights)
        )


def test_class_weights_of_another_type() -> None:
    with pytest.raises((TypeError, ValueError), match="class_weights"):
        fastjac.jacobian_penalty(linear(), torch.randn(2, 3), class_weights="even")


@pytest.mark.parametrize(
    "y, error, expected",
    [
        (torch.tensor([0, 2]), ValueError, "0 to K - 1 = 1; got labels from 0 to 2"),
        (torch.tensor([-1, 1]), ValueError, "got labels from -1 to 1"),
        (torch.tensor([0]), ValueError, r"shape \(2,\); got \(1,\)"),
        (torch.tensor([[0, 1]]), ValueError, r"shape \(2,\); got \(1, 2\)"),
        (torch.tensor([0.0, 1.0]), TypeError, "integer.*float32"),
        ([0, 1], TypeError, "integer.*list"),
    ],
)
def test_labels_that_do_not_fit(y, error, expected: str) -> None:
    with pytest.raises(error, match=f"`y`.*{expected}"):
        fastjac.input_gradient_penalty(linear(), torch.randn(2, 3), y)


@pytest.mark.parametrize("n", [0, -2, 1.5, "one", None])
def test_hoffman_with_a_number_of_projections_that_is_none(n) -> None:
    with pytest.raises(ValueError, match=f"`n`.*{n!r}"):
        fastjac.JacobianReg(n)


def test_seeds_that_do_not_fit() -> None:
    x = torch.randn(2, 3, requires_grad=True)
    lin = fastjac.linearize(linear()(x), x)
    for shape in [(4, 3), (3, 1, 2), (2,)]:
        with pytest.raises(ValueError, match=r"`seeds`.*\(R, 2\)"):
            fastjac.pull(lin, torch.randn(shape))


def test_a_keyword_that_does_not_exist() -> None:
    with pytest.raises(TypeError, match="lam"):
        fastjac.jacobian_penalty(small_conv(), images(), lam=0.1)
