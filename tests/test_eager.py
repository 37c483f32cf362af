"""torch.compile, torch.func and activation checkpoints: right, or refused by name."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator

import oracle
import pytest
import torch
import torch._dynamo
import torch.nn.functional as F
from checks import assert_same
from nets import images, small_conv
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.utils.checkpoint import checkpoint

import fastjac

CLASSES = 4


def expected(model: nn.Module, x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    return oracle.reduce(oracle.jacobian_squares(model(leaf), leaf), "frobenius")


def labels(x: Tensor) -> Tensor:
    return torch.arange(len(x)) % CLASSES


@pytest.fixture
def compiler() -> Iterator[None]:
    """Nothing compiled, nothing counted; a second compilation of a frame raises."""
    torch._dynamo.reset()
    counters.clear()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield
    torch._dynamo.reset()


# The eager backend traces as all others do and needs no C++ compiler; aot_eager makes
# graphs whose nodes cannot be read, as inductor does.
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model_is_linearised_in_its_original(
    backend: str, compiler: None
) -> None:
    model, x = small_conv().double(), images()
    compiled = torch.compile(model, backend=backend)
    with torch.no_grad():
        compiled(x)  # compiled before, as in a validation loop
    got, logits = fastjac.jacobian_penalty(
        compiled, x, backend="fused", return_logits=True
    )
    assert "Compiled" not in logits.grad_fn.name()
    assert_same(got, expected(model, x), model)
    assert fastjac.explain(compiled, x).backend == "fused"


@pytest.mark.skipif(
    not hasattr(torch.compiler, "set_stance"), reason="set_stance is of torch 2.6"
)
def test_compiled_parts_of_a_model_run_in_their_original(compiler: None) -> None:
    model, x = small_conv().double(), images()
    parts = nn.Sequential(torch.compile(model[:4], backend="aot_eager"), model[4:])
    got = fastjac.jacobian_penalty(parts, x, backend="fused")
    assert_same(got, expected(model, x), model)


@pytest.mark.parametrize("backend", ["auto", "fused", "autograd"])
def test_logits_of_compiled_code_are_refused(backend: str, compiler: None) -> None:
    model, x = small_conv().double(), images().requires_grad_()
    logits = torch.compile(model, backend="aot_eager")(x)
    with pytest.raises(NotImplementedError, match=r"jacobian_penalty\(model, x"):
        fastjac.penalty_from_graph(logits, x, backend=backend)


def jacobian_loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    penalty, logits = fastjac.jacobian_penalty(model, x * 2 - 1, return_logits=True)
    return F.cross_entropy(logits, y) + 0.1 * penalty.abs()


def cross_lipschitz_loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    penalty, logits = fastjac.cross_lipschitz_penalty(
        model, x * 2 - 1, return_logits=True
    )
    return F.cross_entropy(logits, y) + 0.01 * penalty.abs()


def input_gradient_loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    penalty, logits = fastjac.input_gradient_penalty(
        model, x * 2 - 1, y, return_logits=True
    )
    return F.cross_entropy(logits, y) + 0.1 * penalty.abs()


@pytest.mark.parametrize(
    "loss", [jacobian_loss, cross_lipschitz_loss, input_gradient_loss]
)
def test_a_compiled_step_breaks_once_and_is_compiled_once(
    loss: Callable[..., Tensor], compiler: None
) -> None:
    model, plain = (small_conv().double() for _ in range(2))
    plain.load_state_dict(model.state_dict())
    sgd, plain_sgd = (
        torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9) for m in (model, plain)
    )
    compiled = torch.compile(loss, backend="eager")
    for step in range(4):
        x = images() + step
        for optimizer, value in (
            (sgd, compiled(model, x, labels(x))),
            (plain_sgd, loss(plain, x, labels(x))),
        ):
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        assert counters["stats"]["unique_graphs"] == 2, "before the penalty and behind"
    assert sum(counters["graph_break"].values()) == 1, counters["graph_break"]
    for got, wanted in zip(model.parameters(), plain.parameters(), strict=True):
        assert oracle.error(got, wanted) < 1e-10


def test_importing_fastjac_does_not_import_the_compiler() -> None:
    code = "import sys, fastjac; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


MODEL = nn.Linear(3, 2)

TRANSFORMS = {
    "grad": lambda f: torch.func.grad(f),
    "jacrev": lambda f: torch.func.jacrev(f),
    "vmap": lambda f: torch.func.vmap(f),
    "jvp": lambda f: lambda x: torch.func.jvp(f, (x,), (x,)),
}

CALLS = {
    "jacobian_penalty": lambda x: fastjac.jacobian_penalty(MODEL, x),
    "penalty_from_graph": lambda x: fastjac.penalty_from_graph(MODEL(x), x),
    "cross_lipschitz_penalty": lambda x: fastjac.cross_lipschitz_penalty(MODEL, x),
    "jacobian": lambda x: fastjac.jacobian(MODEL, x).sum(),
    "JacobianReg": lambda x: fastjac.JacobianReg()(x, MODEL(x)),
    "linearize": lambda x: fastjac.linearize(MODEL(x), x).samples,
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("call", CALLS)
def test_transforms_of_torch_func_are_refused(call: str, transform: str) -> None:
    x = torch.randn(2, 4, 3) if transform == "vmap" else torch.randn(4, 3)
    with pytest.raises(RuntimeError, match=f"{call} was called inside a transform"):
        TRANSFORMS[transform](CALLS[call])(x)


def test_weights_handed_over_by_functional_call_get_the_gradient() -> None:
    """It is no transform: the same model with other weights."""
    model, x = small_conv().double(), images()
    named = dict(model.named_parameters())
    weights = {k: (2 * p).detach().requires_grad_() for k, p in named.items()}
    got = fastjac.jacobian_penalty(
        lambda x: torch.func.functional_call(model, weights, (x,)), x, backend="fused"
    )
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2)
    wanted = expected(model, x)
    assert oracle.error(got, wanted) < 1e-10
    for g, e in zip(
        oracle.gradients(got, weights.values()),
        oracle.gradients(wanted, model.parameters()),
        strict=True,
    ):
        assert oracle.error(g, e) < 1e-10


class Checkpointed(nn.Module):
    """A network in parts that are computed again in the backward pass."""

    def __init__(self, act: nn.Module, reentrant: bool) -> None:
        super().__init__()
        self.reentrant, self.passes = reentrant, 0
        self.first = nn.Sequential(nn.Conv2d(2, 4, 3), act, nn.MaxPool2d(2))
        self.second = nn.Sequential(nn.Conv2d(4, 4, 3), act, nn.Dropout(0.4))
        self.head = nn.Linear(4, CLASSES)
        self.first.register_forward_pre_hook(self._count)

    def _count(self, *_: object) -> None:
        self.passes += 1

    def forward(self, x: Tensor) -> Tensor:
        for part in (self.first, self.second):
            x = checkpoint(part, x, use_reentrant=self.reentrant)
        return self.head(x.flatten(1))


ACTIVATIONS = {
    "relu": nn.ReLU(),
    "leaky": nn.LeakyReLU(0.1),
    "in place": nn.ReLU(inplace=True),
    "gelu": nn.GELU(),
    "tanh": nn.Tanh(),
}


@pytest.mark.parametrize("reduction", ["frobenius", "none"])
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_checkpoints_are_fused(act: str, reduction: str) -> None:
    model = Checkpointed(ACTIVATIONS[act], reentrant=False).double()
    x = images()
    torch.manual_seed(1)
    leaf = x.clone().requires_grad_()
    kept = model.second(model.first(leaf))
    squares = oracle.jacobian_squares(model.head(kept.flatten(1)), leaf)
    torch.manual_seed(1)
    got, logits = fastjac.jacobian_penalty(
        model, x, reduction=reduction, backend="fused", return_logits=True
    )
    assert_same(got, oracle.reduce(squares, reduction), model)
    logits.sum().backward()  # the graph is still whole


@pytest.mark.skipif(
    not hasattr(torch.utils.checkpoint, "GraphExecGroup"),
    reason="this torch recomputes for each tensor that is read",
)
def test_a_checkpoint_is_computed_again_once() -> None:
    model = Checkpointed(nn.ReLU(), reentrant=False)
    penalty = fastjac.jacobian_penalty(model, images(dtype=torch.float32))
    assert model.passes == 2
    penalty.backward()
    assert model.passes == 2  # the gradients are there already


@pytest.mark.parametrize("backend", ["auto", "fused", "autograd"])
def test_reentrant_checkpoints_are_refused(backend: str) -> None:
    model = Checkpointed(nn.ReLU(), reentrant=True)
    x = images(dtype=torch.float32)
    with pytest.raises(NotImplementedError, match="Pass use_reentrant=False"):
        fastjac.jacobian_penalty(model, x, backend=backend)
