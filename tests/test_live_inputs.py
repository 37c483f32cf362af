"""Convolutions whose rows exist at live inputs alone (gated_conv_live.cpp).

That is so for enough rows, where a gated layer without a pool stands right below. Dead
inputs hold anything then: every test fills lent memory with NaN.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from checks import compare, seeded_build
from torch import Tensor, nn

import fastjac
from fastjac import native, workspace
from fastjac.linearize import linearize
from fastjac.rules.gated import GatedLayer
from fastjac.rules.layout import InputLayout
from fastjac.rules.outputs import Reader

pytestmark = pytest.mark.skipif(
    not native.available(), reason=f"no native kernels: {native.why_not()}"
)

ROWS = 45  # not a multiple of any vector


def quiet(layer: nn.Module, bias: float = -0.1) -> nn.Module:
    """Less than half of what a ReLU behind the layer sees is positive."""
    nn.init.constant_(layer.bias, bias)
    return layer


def ends(shape: tuple[int, ...], *layers: nn.Module) -> nn.Sequential:
    with torch.no_grad():
        size = nn.Sequential(*layers)(torch.zeros(1, *shape)).numel()
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(size, ROWS))


def pair(
    below: int, above: int, *shape: object, pool: type[nn.Module] | None = None, **more
) -> Callable[[], nn.Module]:
    """A convolution to ``below`` channels, and one that reads it."""

    def make() -> nn.Module:
        lower = quiet(nn.Conv2d(2, below, 3, padding=1))
        upper = nn.Conv2d(below, above, *shape, **more)
        behind = [] if pool is None else [pool(2)]
        return ends((2, 9, 8), lower, nn.ReLU(), upper, nn.ReLU(), *behind)

    return make


def chain() -> nn.Module:
    """Three in a row, the second behind a LeakyReLU, whose outputs all live."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((2, 7), (7, 19), (19, 6)):
        layers += [quiet(nn.Conv2d(inputs, outputs, 3, padding=1)), nn.ReLU()]
    layers[3] = nn.LeakyReLU()
    layers += [nn.Conv2d(6, 5, 3), nn.ReLU()]
    return ends((2, 9, 8), *layers)


def signal() -> nn.Module:
    return ends(
        (3, 30),
        quiet(nn.Conv1d(3, 11, 5)),
        nn.ReLU(),
        nn.Conv1d(11, 9, 3, stride=2),
        nn.ReLU(),
    )


def dropped() -> nn.Module:
    """A factor at every live output, which is not 1."""
    return ends(
        (2, 9, 8),
        quiet(nn.Conv2d(2, 12, 3)),
        nn.ReLU(),
        nn.Dropout(0.4),
        nn.Conv2d(12, 9, 3),
        nn.ReLU(),
    )


CASES = {
    "wide below": pair(70, 5, 3, padding=1),
    "one channel below": pair(1, 5, 3, padding=1),
    "max pool above": pair(16, 13, 3, pool=nn.MaxPool2d),
    "average pool above": pair(16, 13, 5, pool=nn.AvgPool2d),
    "stride": pair(16, 7, 3, stride=(2, 3), padding=1),
    "dilation": pair(16, 7, (3, 2), dilation=(2, 3), padding=2),
    "one tap": pair(33, 20, 1),
    "pixels that nobody reads": pair(8, 6, 2, stride=3),
    "three in a row": chain,
    "one dimension": signal,
    "dropout below": dropped,
}


def image(make: Callable[[], nn.Module], samples: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    shape = (3, 30) if make is signal else (2, 9, 8)
    return torch.randn(samples, *shape, generator=generator).double()


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lent memory starts as NaN."""
    lent = workspace.empty

    def empty(shape: tuple[int, ...], like: Tensor) -> Tensor:
        return lent(shape, like).fill_(torch.nan)

    monkeypatch.setattr(workspace, "empty", empty)


@pytest.fixture
def directions(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The passes that have run between live outputs and live inputs."""
    module, seen = native.module(), set()

    class Watched:
        def __getattr__(self, name: str) -> object:
            found = getattr(module, name)
            if name != "gated_conv":
                return found

            def gated_conv(**given: object) -> None:
                if given["inputs"] is not None:
                    seen.add(given["direction"].name)  # type: ignore[attr-defined]
                found(**given)

            return gated_conv

    monkeypatch.setattr(native, "_module", Watched())
    return seen


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("name", CASES)
def test_equals_the_oracle(name: str, samples: int, directions: set[str]) -> None:
    x = image(CASES[name], samples)
    compare(seeded_build(CASES[name]), x, seed=5, paths=("native",))
    assert directions == {"pull", "push", "weight"}


@pytest.mark.parametrize("chunk", [20, 100])
def test_rows_in_several_chunks(chunk: int, directions: set[str]) -> None:
    """Of 20 rows at once float64 fills three vectors, and float32 too few."""
    x = image(CASES["three in a row"], 4)
    build = seeded_build(CASES["three in a row"])
    compare(build, x, seed=5, paths=("native",), chunk=chunk)
    assert directions == {"pull", "push", "weight"}


@pytest.mark.parametrize("name", ["three in a row", "dropout below", "stride"])
def test_with_the_gradient_of_a_loss(name: str, directions: set[str]) -> None:
    """Scattering lifts tangents by biases on their way to live inputs."""
    model, x = seeded_build(CASES[name])(torch.float64), image(CASES[name], 3)
    y, found = torch.tensor([0, 7, 44]), []
    for in_sweep in (True, False):
        model.zero_grad()
        torch.manual_seed(1)
        if in_sweep:
            fastjac.regularized_loss(model, x, y, 0.1, backend="fused").total.backward()
        else:
            penalty, logits = fastjac.jacobian_penalty(
                model, x, backend="autograd", return_logits=True
            )
            (F.cross_entropy(logits, y) + 0.1 * penalty).backward()
        found.append([p.grad for p in model.parameters()])
    assert directions == {"pull", "push", "weight"}
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-11)


def test_frozen_weights(directions: set[str]) -> None:
    """Tangents pass a layer whose own gradient nobody wants."""

    def make() -> nn.Module:
        model = CASES["three in a row"]()
        model[2].weight.requires_grad_(False)
        return model

    compare(seeded_build(make), image(make, 2), seed=5, paths=("native",))
    assert directions == {"pull", "push", "weight"}


@pytest.mark.parametrize("samples", [1, 3])
def test_results_are_the_same_for_any_number_of_threads(
    samples: int, directions: set[str]
) -> None:
    model = seeded_build(CASES["wide below"])(torch.float64)
    x, found = image(CASES["wide below"], samples), []
    for count in (1, 2, 3, 7):
        torch.set_num_threads(count)
        model.zero_grad()
        fastjac.jacobian_penalty(model, x, backend="fused").backward()
        found.append([p.grad.clone() for p in model.parameters() if p.dim() > 1])
    assert directions
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    "bias, chunk, alone", [(-0.1, None, True), (5.0, None, False), (-0.1, 10, False)]
)
def test_many_live_inputs_or_few_rows_go_with_the_dead(
    bias: float, chunk: int | None, alone: bool, directions: set[str]
) -> None:
    model, x = CASES["stride"](), image(CASES["stride"], 2).float()
    quiet(model[0], bias)
    fastjac.jacobian_penalty(model, x, backend="fused", chunk=chunk).backward()
    assert bool(directions) == alone


def test_layers_know_what_is_below_them() -> None:
    """Not behind a pool, nor behind a flatten, nor with a layer in between."""
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.ReLU(),
        nn.Conv2d(4, 5, 3),  # this one reads what is right below it
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(5, 6, 1),
        nn.ReLU(),
        nn.ConstantPad2d(1, 0.0),
        nn.Conv2d(6, 6, 3),
        nn.ReLU(),
    )
    model = ends((2, 10, 10), *model)
    x = torch.randn(2, 2, 10, 10, requires_grad=True)
    layers = [r for r in linearize(model(x), x).rules if isinstance(r, GatedLayer)]
    assert [layer.below is not None for layer in layers] == [False, True, False, False]
    assert [layer.reader is Reader.LIVE for layer in layers] == [True] + 3 * [False]


def test_the_list_of_inputs_must_fit() -> None:
    model = CASES["max pool above"]()
    x = torch.randn(2, 2, 9, 8, requires_grad=True)
    layers = [r for r in linearize(model(x), x).rules if isinstance(r, GatedLayer)]
    upper = layers[1]
    upper.below = upper.live
    layout = InputLayout(upper.packed, ROWS, live_only=True)
    compact = torch.zeros(upper.live.entries, layout.compact_stride)
    rows = layout.empty(torch.zeros(ROWS, 2, 1))
    with pytest.raises(ValueError, match="`inputs` must list the very inputs"):
        upper.run_pass("pull", layout, compact, rows)
