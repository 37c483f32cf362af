"""A loss and the penalty from one sweep: what their sum gives by autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from checks import PATHS, path_missing, take_path
from hypothesis import event, given, settings
from hypothesis import strategies as st
from nets import images, mlp, small_conv
from networks import networks
from specs import Drawn
from torch import Tensor, nn

import fastjac
from fastjac import RegularizedLoss

DOUBLE = torch.float64
Y = torch.arange(5) % 4


def gradients(model: nn.Module, total: Tensor) -> list[Tensor]:
    if not list(model.parameters()):
        return []
    found = torch.autograd.grad(total, list(model.parameters()), allow_unused=True)
    return [
        torch.zeros_like(p) if g is None else g
        for p, g in zip(model.parameters(), found, strict=True)
    ]


def apart(
    model: nn.Module, x: Tensor, y: Any, lam: float, **options: Any
) -> tuple[Tensor, list[Tensor]]:
    """The total and its gradients by autograd, from two terms."""
    loss = options.pop("loss", F.cross_entropy)
    torch.manual_seed(1)
    penalty, logits = fastjac.jacobian_penalty(
        model, x, return_logits=True, **(options | {"backend": "autograd"})
    )
    total = loss(logits, y) + lam * penalty
    return total.detach(), gradients(model, total)


def in_one_sweep(step: RegularizedLoss) -> bool:
    return step.total.grad_fn is not None and "_Both" in step.total.grad_fn.name()


def assert_equal_to_apart(
    model: nn.Module, x: Tensor, y: Any = Y, lam: float = 0.3, **options: Any
) -> RegularizedLoss:
    total, expected = apart(model, x, y, lam, **options)
    torch.manual_seed(1)
    step = fastjac.regularized_loss(model, x, y, lam, **options)
    assert torch.allclose(step.total, total, rtol=1e-10)
    assert torch.allclose(step.loss + lam * step.penalty, total, rtol=1e-10)
    found = gradients(model, step.total)
    for parameter, expect in zip(found, expected, strict=True):
        scale = max(1e-12, expect.abs().max().item())
        assert (parameter - expect).abs().max().item() <= 1e-9 * scale
    return step


@pytest.mark.parametrize("reduction", ["frobenius", "sum", "mean"])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_sum_of_both_in_one_sweep(
    reduction: str, dropout: float, path: str
) -> None:
    model = small_conv(dropout=dropout).double()
    step = assert_equal_to_apart(model, images(), reduction=reduction)
    assert in_one_sweep(step)


class Residual(nn.Module):
    """Two branches that meet, and an activation behind their sum."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 3, 3, padding=1)
        self.left = nn.Conv2d(3, 3, 3, padding=1)
        self.right = nn.Conv2d(3, 3, 1)
        self.slope = nn.PReLU(3)
        self.last = nn.Linear(6 * 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        u = F.relu(self.first(x))
        u = self.slope(self.left(u) + self.right(u) * 2 - u)
        u = torch.cat([F.max_pool2d(u, 2), F.avg_pool2d(u, 2)], 1)
        return self.last(u.flatten(1))


def flat(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(4))


EXACT: dict[str, Callable[[], nn.Module]] = {
    "residual": Residual,
    "without biases": lambda: nn.Sequential(nn.Flatten(), mlp(128)),
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(128, 4)),
    "leaky": lambda: flat(nn.Conv2d(2, 3, 3), nn.LeakyReLU(0.2)),
    "groups, stride": lambda: flat(
        nn.Conv2d(2, 4, 3, groups=2, stride=2), nn.ReLU(), nn.Conv2d(4, 5, 2), nn.ReLU()
    ),
    "transposed": lambda: flat(nn.ConvTranspose2d(2, 3, 3, stride=2), nn.ReLU()),
    "gate behind the pool": lambda: flat(
        nn.Conv2d(2, 20, 3), nn.MaxPool2d(2), nn.ReLU(), nn.Dropout2d(0.3)
    ),
    "convolution without bias": lambda: flat(nn.Conv2d(2, 5, 3, bias=False), nn.ReLU()),
    "frozen weight": lambda: frozen("0.weight"),
}


def frozen(name: str) -> nn.Module:
    model = small_conv()
    model.get_parameter(name).requires_grad_(False)
    return model


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("chunk", [None, 4, 9])
def test_networks_that_are_linear_but_for_biases_take_one_sweep(
    name: str, chunk: int | None, path: str
) -> None:
    model = EXACT[name]().double()
    model(images())
    trained = nn.ParameterList(p for p in model.parameters() if p.requires_grad)
    total, expected = 0.0, []
    for run in (0, 1):
        torch.manual_seed(1)
        if run == 0:
            penalty, logits = fastjac.jacobian_penalty(
                model, images(), reduction="mean", return_logits=True
            )
            total = F.cross_entropy(logits, Y) + 0.3 * penalty
            expected = gradients(trained, total)
            continue
        step = fastjac.regularized_loss(
            model, images(), Y, 0.3, reduction="mean", chunk=chunk
        )
        assert in_one_sweep(step)
        assert torch.allclose(step.total, total)
        for found, expect in zip(gradients(trained, step.total), expected, strict=True):
            assert torch.allclose(found, expect, rtol=1e-9, atol=1e-12)


class Tied(nn.Module):
    """One vector is a bias twice and a factor once, one matrix is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(128, 4), nn.Linear(4, 4)
        self.last.bias = self.first.bias

    def forward(self, x: Tensor) -> Tensor:
        u = F.relu(self.first(x.flatten(1))) * self.first.bias
        return self.last(F.relu(self.last(u)))


def test_a_tensor_that_is_weight_and_bias_gets_its_gradient_once(path: str) -> None:
    assert_equal_to_apart(Tied().double(), images())


def shifted_unseen(u: Tensor) -> Tensor:
    u = 2 * u
    with torch.no_grad():
        u += 0.5
    return u


def clamped_unseen(u: Tensor) -> Tensor:
    u.data.clamp_(max=0.1)
    return u


@pytest.mark.parametrize("what", [shifted_unseen, clamped_unseen])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_what_autograd_does_not_see_is_noticed(
    what: Callable[[Tensor], Tensor], dtype: torch.dtype
) -> None:
    model, x = Shifted(what).to(dtype), images(dtype=dtype)
    _, expected = apart(model, x, Y, 0.3)
    step = fastjac.regularized_loss(model, x, Y, 0.3)
    assert not in_one_sweep(step)
    for found, expect in zip(gradients(model, step.total), expected, strict=True):
        assert torch.allclose(found, expect, rtol=1e-3, atol=1e-5)


class Frames(nn.Module):
    """A convolution and a linear layer that see several images of a sample."""

    def __init__(self, across: bool) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(1, 3, 3), nn.Linear(2 * 3 * 36, 4)
        self.across = across

    def forward(self, x: Tensor) -> Tensor:
        if self.across:  # dimension 0 is as long as the batch, and is not the batch
            x = x.flatten(2).permute(2, 1, 0).unflatten(0, (8, 8)).flatten(1, 3)
            x = F.relu(F.linear(x, torch.ones(4, x.shape[1]).to(x), self.last.bias))
            return x[: x.shape[0]] @ self.last.weight[:, :4].t()
        u = F.relu(self.conv(x.flatten(0, 1).unsqueeze(1)))
        return self.last(u.view(len(x), -1))


def test_a_bias_whose_entries_lie_apart(path: str) -> None:
    torch.manual_seed(0)
    model = small_conv().double()
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            apart_in_memory = torch.randn(len(layer.weight), 2).double()[:, 0]
            layer.bias = nn.Parameter(apart_in_memory)
    assert in_one_sweep(assert_equal_to_apart(model, images()))


@pytest.mark.parametrize("samples", [1, 2, 5])
def test_layers_that_see_several_images_of_a_sample(samples: int, path: str) -> None:
    step = assert_equal_to_apart(
        Frames(across=False).double(), images(samples), Y[:samples]
    )
    assert not in_one_sweep(step)


def test_samples_that_leave_dimension_zero() -> None:
    assert_equal_to_apart(Frames(across=True).double(), images(8), torch.arange(8) % 4)


class Shifted(nn.Module):
    """A network with one more constant, or another thing that no sweep carries."""

    def __init__(self, what: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(2, 3, 3), nn.Linear(3 * 36, 4)
        self.what = what

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.what(F.relu(self.first(x))).flatten(1))


def with_constant_channel(u: Tensor) -> Tensor:
    return torch.cat([u[:, 1:], torch.ones_like(u[:, :1])], 1)


class OneBias(nn.Module):
    """A linear layer whose bias is one number, and another that takes it whole."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(128, 7), nn.Linear(7, 4)
        self.first.bias = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.first(x.flatten(1))))


INEXACT: dict[str, Callable[[], nn.Module]] = {
    "gelu": lambda: Shifted(F.gelu),
    "relu6": lambda: Shifted(lambda u: F.relu6(4 * u)),
    "constant added": lambda: Shifted(lambda u: u + torch.full_like(u, 0.3)),
    "number added": lambda: Shifted(lambda u: u + 0.3),
    "constant in cat": lambda: Shifted(with_constant_channel),
    "constant in max": lambda: Shifted(
        lambda u: torch.maximum(u, u.new_full((1,), 0.2))
    ),
    "padded": lambda: Shifted(lambda u: F.pad(u, (1, -1), value=2.0)),
    "product of two": lambda: Shifted(lambda u: u * u.flip(1).abs()),
    "batch norm": lambda: Shifted(nn.BatchNorm2d(3).double().eval()),
    "sigmoid": lambda: Shifted(torch.sigmoid),
    "one number as a bias": OneBias,
    "frozen bias": lambda: frozen("0.bias"),
}


@pytest.mark.parametrize("name", INEXACT)
def test_other_networks_get_both_gradients_too(name: str, path: str) -> None:
    model = INEXACT[name]().double()
    trained = nn.ParameterList(p for p in model.parameters() if p.requires_grad)
    penalty, logits = fastjac.jacobian_penalty(
        model, images(), backend="autograd", return_logits=True
    )
    total = F.cross_entropy(logits, Y) + 0.3 * penalty
    expected = gradients(trained, total)
    step = fastjac.regularized_loss(model, images(), Y, 0.3)
    assert not in_one_sweep(step)
    assert torch.allclose(step.total, total)
    for found, expect in zip(gradients(trained, step.total), expected, strict=True):
        assert torch.allclose(found, expect, rtol=1e-8, atol=1e-10)


@pytest.mark.filterwarnings("ignore:NativeBatchNorm")
def test_batch_norm_in_training_keeps_the_gradient_of_its_statistics() -> None:
    model = Shifted(nn.BatchNorm2d(3)).double()
    penalty, logits = fastjac.jacobian_penalty(model, images(), return_logits=True)
    expected = gradients(model, F.cross_entropy(logits, Y) + 0.3 * penalty)
    step = fastjac.regularized_loss(model, images(), Y, 0.3)
    for found, expect in zip(gradients(model, step.total), expected, strict=True):
        assert torch.allclose(found, expect, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {"class_weights": torch.tensor([1.0, 2.0, 0.0, 1.0], dtype=DOUBLE)},
        {"backend": "autograd"},
        {"chunk": 4},  # "frobenius" needs all rows first
    ],
)
def test_options_that_need_two_passes(options: dict[str, Any]) -> None:
    step = assert_equal_to_apart(small_conv().double(), images(), **options)
    assert not in_one_sweep(step)


def test_projections_draw_what_the_penalty_draws() -> None:
    model = small_conv().double()
    drawn = [torch.Generator().manual_seed(3) for _ in range(2)]
    step = fastjac.regularized_loss(
        model, images(), Y, 0.1, projections=2, generator=drawn[0]
    )
    penalty = fastjac.jacobian_penalty(
        model, images(), projections=2, generator=drawn[1]
    )
    assert torch.equal(step.penalty, penalty)


def test_classes_of_other_weights_take_one_sweep(path: str) -> None:
    weights = torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=DOUBLE)
    step = assert_equal_to_apart(small_conv().double(), images(), class_weights=weights)
    assert in_one_sweep(step)


def squared(logits: Tensor, y: Tensor) -> Tensor:
    return logits.square().mean()


@pytest.mark.parametrize("loss", [F.cross_entropy, squared])
@pytest.mark.parametrize("reduction", ["frobenius", "sum", "mean", None])
def test_cross_lipschitz_takes_one_sweep_if_the_loss_ignores_shifts(
    loss: Callable[..., Tensor], reduction: str | None, path: str
) -> None:
    model = small_conv().double()
    options = {} if reduction is None else {"reduction": reduction}
    penalty, logits = fastjac.cross_lipschitz_penalty(
        model, images(), backend="autograd", return_logits=True, **options
    )
    total = loss(logits, Y) + 0.3 * penalty
    step = fastjac.regularized_loss(
        model, images(), Y, 0.3, loss=loss, penalty="cross-lipschitz", **options
    )
    assert in_one_sweep(step) == (loss is not squared)
    assert torch.allclose(step.total, total)
    expected = gradients(model, total)
    for found, expect in zip(gradients(model, step.total), expected, strict=True):
        assert torch.allclose(found, expect, rtol=1e-9, atol=1e-12)


def smoothed(logits: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits, y, label_smoothing=0.1)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    return F.multi_margin_loss(logits, y, reduction="sum")


@pytest.mark.parametrize("loss", [smoothed, margin])
def test_any_loss_of_the_logits(loss: Callable[..., Tensor], path: str) -> None:
    step = assert_equal_to_apart(small_conv().double(), images(), loss=loss)
    assert in_one_sweep(step)


def test_a_loss_with_a_parameter_of_its_own_trains_it() -> None:
    model, heat = small_conv().double(), nn.Parameter(torch.tensor(2.0, dtype=DOUBLE))

    def tempered(logits: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(logits / heat, y)

    step = assert_equal_to_apart(model, images(), loss=tempered)
    (found,) = torch.autograd.grad(
        fastjac.regularized_loss(model, images(), Y, 0.3, loss=tempered).total, heat
    )
    (expected,) = torch.autograd.grad(tempered(model(images()), Y), heat)
    assert not in_one_sweep(step)
    assert torch.allclose(found, expected)


class TwoHeads(nn.Module):
    """Logits and another output of the same operation, which is kept aside."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.aside = nn.Linear(128, 8), torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        logits, self.aside = self.last(x.flatten(1)).view(-1, 2, 4).unbind(1)
        return logits


@pytest.mark.parametrize("both", [True, False])
def test_a_loss_that_reads_another_output_of_the_model(both: bool) -> None:
    model = TwoHeads().double()

    def aside(logits: Tensor, y: Tensor) -> Tensor:
        return model.aside.square().mean() + both * F.cross_entropy(logits, y)

    assert_equal_to_apart(model, images(), loss=aside)


def in_place(logits: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits.div_(2), y)


@pytest.mark.parametrize("backend", ["auto", "autograd"])
def test_a_loss_that_works_in_place_leaves_the_penalty_alone(backend: str) -> None:
    assert_equal_to_apart(
        small_conv().double(), images(), loss=in_place, backend=backend
    )


def test_a_loss_that_ignores_the_logits_adds_nothing() -> None:
    def none(logits: Tensor, y: Tensor) -> Tensor:
        return torch.zeros((), dtype=DOUBLE)

    assert_equal_to_apart(small_conv().double(), images(), loss=none)


def test_weight_zero_is_the_loss_alone(path: str) -> None:
    assert_equal_to_apart(small_conv().double(), images(), lam=0.0)


def test_the_smallest_weight_does_not_overflow() -> None:
    model, x = small_conv(), images(dtype=torch.float32)
    step = fastjac.regularized_loss(model, x, Y, 1e-38)
    step.total.backward()
    expected = gradients(model, F.cross_entropy(model(x), Y))
    for parameter, expect in zip(model.parameters(), expected, strict=True):
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, expect, rtol=1e-4, atol=1e-6)


def test_an_input_that_requires_grad_gets_it() -> None:
    model, x = small_conv().double(), images().requires_grad_()
    penalty, logits = fastjac.jacobian_penalty(model, x, return_logits=True)
    total = F.cross_entropy(logits, Y) + 0.3 * penalty
    (expected,) = torch.autograd.grad(total, x)
    (found,) = torch.autograd.grad(fastjac.regularized_loss(model, x, Y, 0.3).total, x)
    assert torch.allclose(found, expected)


def test_gradients_add_up_scale_and_pass_hooks_of_parameters() -> None:
    model, seen = small_conv().double(), []
    expected = gradients(model, fastjac.regularized_loss(model, images(), Y, 0.3).total)
    first = next(model.parameters())
    first.register_hook(lambda gradient: seen.append(gradient.clone()))
    for scale in (1.0, 2.0):
        (scale * fastjac.regularized_loss(model, images(), Y, 0.3).total).backward()
    assert len(seen) == 2 and torch.allclose(seen[1], 2 * expected[0])
    for parameter, expect in zip(model.parameters(), expected, strict=True):
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, 3 * expect)


def test_a_kept_graph_runs_twice_and_a_freed_one_raises() -> None:
    model = small_conv().double()
    total = fastjac.regularized_loss(model, images(), Y, 0.3).total
    total.backward(retain_graph=True)
    once = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    total.backward()
    for parameter, before in zip(model.parameters(), once, strict=True):
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, 2 * before)
    with pytest.raises(RuntimeError, match="second time"):
        total.backward()


def test_differentiating_twice_says_that_it_cannot() -> None:
    model = small_conv().double()
    total = fastjac.regularized_loss(model, images(), Y, 0.3).total
    parameters = list(model.parameters())
    found = torch.autograd.grad(total, parameters, create_graph=True)
    with pytest.raises(RuntimeError, match="second time"):
        found[0].sum().backward()


def test_without_grad_it_measures() -> None:
    model = small_conv().double()
    with torch.no_grad():
        step = fastjac.regularized_loss(model, images(), Y, 0.3)
    assert not step.total.requires_grad
    assert torch.equal(step.logits, model(images()))
    assert torch.allclose(step.penalty, fastjac.jacobian_penalty(model, images()))


def test_parts_are_detached_and_logits_those_of_the_same_pass() -> None:
    model = small_conv(dropout=0.5).double()
    step = fastjac.regularized_loss(model, images(), Y, 0.3)
    assert not any(part.requires_grad for part in step[1:])
    assert torch.equal(step.loss, F.cross_entropy(step.logits, Y))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"lam": -1.0}, ValueError, "`lam` must be finite and at least 0; got -1"),
        ({"lam": float("nan")}, ValueError, "`lam` must be finite"),
        ({"lam": "much"}, TypeError, "`lam` must be a number|`lam`"),
        ({"reduction": "none"}, ValueError, "`reduction` must be 'frobenius'"),
        ({"loss": lambda z, y: z.sum(1)}, ValueError, r"one number.*\(5,\)"),
        ({"loss": lambda z, y: 1.0}, TypeError, "`loss` must return a tensor"),
        ({"backend": "fast"}, ValueError, "`backend` must be one of"),
        ({"penalty": "hein"}, ValueError, "`penalty` must be one of 'jacobian'"),
        (
            {"penalty": "cross-lipschitz", "projections": 2},
            ValueError,
            "`projections` is for penalty='jacobian'",
        ),
    ],
)
def test_wrong_arguments_are_named(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    options = {"lam": 0.1} | arguments
    with pytest.raises(error, match=message):
        fastjac.regularized_loss(small_conv().double(), images(), Y, **options)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("route", PATHS)
@settings(max_examples=150)
@given(
    drawn=networks(),
    reduction=st.sampled_from(["frobenius", "sum", "mean"]),
    chunk=st.sampled_from([None, None, 1, 3, 7]),
)
def test_any_network_has_the_gradient_of_the_sum(
    route: str, drawn: Drawn, reduction: str, chunk: int | None
) -> None:
    if reason := path_missing(route):
        pytest.skip(reason)
    model, x = drawn.build(DOUBLE), drawn.x(DOUBLE)
    y = torch.arange(len(x)) % drawn.classes
    torch.manual_seed(drawn.seed)
    penalty, logits = fastjac.jacobian_penalty(
        model, x, reduction=reduction, backend="autograd", return_logits=True
    )
    total = F.cross_entropy(logits, y) + 0.3 * penalty
    trained = nn.ParameterList(p for p in model.parameters() if p.requires_grad)
    expected = gradients(trained, total)
    torch.manual_seed(drawn.seed)
    with take_path(route):
        step = fastjac.regularized_loss(
            model, x, y, 0.3, reduction=reduction, chunk=chunk
        )
        found = gradients(trained, step.total)
    event(f"in one sweep: {in_one_sweep(step)}")
    assert torch.allclose(step.total, total, rtol=1e-9)
    for got, expect in zip(found, expected, strict=True):
        scale = max(1e-6, expect.abs().max().item())
        assert (got - expect).abs().max().item() <= 1e-8 * scale
