"""K classes behind a hidden layer of width H < K: H rows carry the same norms."""

from __future__ import annotations

import pytest
import torch
from checks import PATHS, assert_same, compare, path_missing, seeded_build, take_path
from hypothesis import given
from hypothesis import strategies as st
from nets import images
from torch import Tensor, nn

import fastjac
from fastjac import fewer_rows, sweep

DOUBLE = torch.float64
CLASSES, WIDTH = 12, 5


@pytest.fixture(autouse=True)
def at_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small networks too, although it does not pay for them."""
    monkeypatch.setitem(fewer_rows.PRICE, "cpu", 0.0)


@pytest.fixture
def swept(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of rows of each sweep that is run."""
    counts: list[int] = []
    original = sweep.Sweep.__init__

    def counted(self: sweep.Sweep, *args: object) -> None:
        original(self, *args)
        counts.append(self.rows)

    monkeypatch.setattr(sweep.Sweep, "__init__", counted)
    return counts


def low_rank(model: nn.Module) -> None:
    """Give the last layer rank 2, exactly: columns that repeat, one that is zero."""
    weight = model[-1].weight.data
    weight[:, 2:4] = weight[:, :2]
    weight[:, 4] = 0


def zero(model: nn.Module) -> None:
    model[-1].weight.data.zero_()


def frozen(model: nn.Module) -> None:
    model[-1].weight.requires_grad_(False)


def normed(model: nn.Module) -> None:
    model[-1] = nn.utils.parametrizations.weight_norm(model[-1])


def wide_mlp() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(7, 9), nn.ReLU(), nn.Linear(9, WIDTH), nn.ReLU(),
        nn.Linear(WIDTH, CLASSES),
    )  # fmt: skip


def wide_conv() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(36, WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES),
    )  # fmt: skip


def bottleneck() -> nn.Sequential:
    """Two linear layers without a gate between; the lower one is the narrowest."""
    return nn.Sequential(
        nn.Linear(7, 4), nn.ReLU(), nn.Linear(4, 8), nn.Linear(8, CLASSES)
    )


def smooth() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(7, WIDTH), nn.SiLU(), nn.Linear(WIDTH, CLASSES)
    )  # fmt: skip


NETS = {
    "mlp": (wide_mlp, WIDTH),
    "conv": (wide_conv, WIDTH),
    "two linear layers": (bottleneck, 4),
    "smooth": (smooth, WIDTH),
}


def batch(name: str) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    vector = torch.randn(6, 7, generator=generator).double()
    return images(3) if name == "conv" else vector


@pytest.mark.parametrize("reduction", ["frobenius", "none"])
@pytest.mark.parametrize("name", NETS)
def test_equals_the_oracle(name: str, reduction: str, swept: list[int]) -> None:
    make, width = NETS[name]
    compare(seeded_build(make), batch(name), reduction=reduction)
    assert set(swept) == {width}


@pytest.mark.parametrize("change", [low_rank, zero, frozen, normed])
def test_any_last_layer_will_do(change, swept: list[int]) -> None:
    """Gradients are right for a last layer of any rank, frozen, or reparametrised."""
    build = seeded_build(wide_mlp, change)
    value = compare(build, batch("mlp"))
    assert (value == 0) == (change is zero)
    assert set(swept) == {WIDTH}


@pytest.mark.parametrize("chunk", [1, 7])
def test_in_chunks(chunk: int) -> None:
    compare(seeded_build(wide_conv), batch("conv"), chunk=chunk)


def test_class_weights(swept: list[int]) -> None:
    weights = [float(k % 4) for k in range(CLASSES)]
    compare(seeded_build(wide_conv), batch("conv"), class_weights=weights)
    assert set(swept) == {WIDTH}


@pytest.mark.parametrize("path", PATHS)
def test_the_other_sums_of_squares(path: str, swept: list[int]) -> None:
    if reason := path_missing(path):
        pytest.skip(reason)
    model, x = seeded_build(wide_conv)(DOUBLE), batch("conv")
    with take_path(path):
        for penalty in (
            lambda backend: fastjac.cross_lipschitz_penalty(model, x, backend=backend),
            lambda backend: fastjac.jacobian_penalty(
                model, x, projections=9, backend=backend,
                generator=torch.Generator().manual_seed(4),
            ),
        ):  # fmt: skip
            assert_same(penalty("fused"), penalty("autograd"), model)
        norms = fastjac.jacobian_norm(model, x)
        expected = fastjac.jacobian_norm(model, x, backend="autograd")
        torch.testing.assert_close(norms, expected)
    # Projections differ between samples, and are taken as they are.
    assert set(swept) == {WIDTH, 9}


def test_not_where_the_rows_themselves_are_asked_for(swept: list[int]) -> None:
    model, x = seeded_build(wide_mlp)(DOUBLE), batch("mlp")
    assert fastjac.jacobian(model, x).shape == (6, CLASSES, 7)
    assert swept == [CLASSES]


def test_not_where_it_does_not_pay(monkeypatch) -> None:
    monkeypatch.undo()
    linearization = linearized(seeded_build(wide_mlp)(DOUBLE), batch("mlp"))
    seeds = torch.eye(CLASSES, dtype=DOUBLE)
    assert fewer_rows.fewer_rows(linearization, seeds) is seeds


def test_not_where_the_logits_are_no_product() -> None:
    """Gated logits, or two heads that are added, keep their K rows."""
    trunk = nn.Sequential(nn.Linear(7, WIDTH), nn.ReLU()).double()
    one, two = (nn.Linear(WIDTH, CLASSES).double() for _ in range(2))
    seeds = torch.eye(CLASSES, dtype=DOUBLE)
    for head in (
        lambda h: one(h) + two(h * 2),
        lambda h: one(h).abs(),
        lambda h: one(h).tanh(),
    ):
        linearization = linearized(lambda x, head=head: head(trunk(x)), batch("mlp"))
        assert fewer_rows.fewer_rows(linearization, seeds) is seeds


def linearized(model, x: Tensor) -> fastjac.linearization.Linearization:
    leaf = x.clone().requires_grad_()
    return fastjac.linearize(model(leaf), leaf)


@given(
    classes=st.integers(2, 9),
    width=st.integers(1, 9),
    rank=st.integers(0, 9),
    samples=st.integers(1, 3),
)
def test_any_width_and_rank(classes: int, width: int, rank: int, samples: int) -> None:
    def cut(model: nn.Module) -> None:
        u, s, v = torch.linalg.svd(model[-1].weight.data, full_matrices=False)
        model[-1].weight.data = u[:, :rank] * s[:rank] @ v[:rank]

    def make() -> nn.Sequential:
        return nn.Sequential(
            nn.Linear(4, width), nn.LeakyReLU(), nn.Linear(width, classes)
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(fewer_rows.PRICE, "cpu", 0.0)
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(samples, 4, generator=generator).double()
        compare(seeded_build(make, cut), x)
