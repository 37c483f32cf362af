"""FGSM and PGD against their formulas, and against torchattacks."""

from __future__ import annotations

import attack_nets
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastjac import attacks


def gradient(net, x, y):
    """Of the cross-entropy, by autograd."""
    x = x.detach().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(net(x), y, reduction="sum"), x)[0]


@pytest.fixture
def case():
    net = attack_nets.conv(4)
    return net, torch.rand(20, 2, 6, 6, dtype=torch.float64), torch.arange(20) % 7


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("chunk", [None, 3])
def test_fgsm_is_its_formula(case, targeted, chunk, path):
    net, x, y = case
    sign = -1 if targeted else 1
    want = (x + sign * 0.1 * gradient(net, x, y).sign()).clamp(0, 1)
    got = attacks.fgsm(net, x, y, 0.1, (0, 1), targeted=targeted, chunk=chunk)
    torch.testing.assert_close(got, want)


def test_fgsm_in_l2_takes_a_step_of_that_length(case, path):
    net, x, y = case
    g = gradient(net, x, y)
    want = x + 0.7 * g / g.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    torch.testing.assert_close(attacks.fgsm(net, x, y, 0.7, norm="l2"), want)


def test_fgsm_still_finds_its_way_where_the_loss_has_rounded_to_zero():
    net = nn.Linear(5, 3).double()
    x = torch.randn(8, 5, dtype=torch.float64)
    y = net(x).argmax(1)

    def sure(batch):
        return 1e6 * net(batch)

    assert not gradient(sure, x, y).any()
    moved = attacks.fgsm(sure, x, y, 0.1)
    assert (moved - x).abs().min() > 0.0999
    margin = [F.cross_entropy(net(v), y, reduction="none") for v in (x, moved)]
    assert (margin[1] > margin[0]).all()


def test_fgsm_leaves_a_sample_without_gradient_as_it_is():
    net = nn.Linear(4, 3)
    nn.init.zeros_(net.weight)
    x = torch.rand(2, 4)
    for norm in ("l2", "linf"):
        y = torch.zeros(2, dtype=torch.int64)
        assert torch.equal(attacks.fgsm(net, x, y, 0.1, norm=norm), x)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("targeted", [False, True])
def test_pgd_is_its_formula(case, norm, targeted, path):
    net, x, y = case
    want, eps, step = x.clone(), 0.15, 0.04
    for _ in range(7):
        g = gradient(net, want, y)
        size = g.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        direction = g.sign() if norm == "linf" else g / size
        shift = want + (-step if targeted else step) * direction - x
        if norm == "linf":
            shift = shift.clamp(-eps, eps)
        else:
            length = shift.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            shift = shift * (eps / length).clamp_max(1)
        want = (x + shift).clamp(0, 1)
    got = attacks.pgd(
        net, x, y, eps, (0, 1), steps=7, step_size=step, norm=norm,
        random_start=False, targeted=targeted,
    )  # fmt: skip
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_pgd_draws_its_start_from_the_whole_ball_and_repeats_by_seed(norm):
    net, x, y = nn.Linear(3, 2), torch.zeros(4000, 3), torch.zeros(4000).long()

    def start(seed):
        draws = torch.Generator().manual_seed(seed)
        return attacks.pgd(net, x, y, 2.0, steps=0, norm=norm, generator=draws)

    assert torch.equal(start(1), start(1)) and not torch.equal(start(1), start(2))
    size = start(1).norm(dim=1) if norm == "l2" else start(1).abs().amax(1)
    assert size.max() <= 2 + 1e-5
    # Uniform in 3 dimensions: (size / eps)^3 is uniform on [0, 1].
    cubes = (size / 2) ** 3
    assert abs(cubes.mean() - 0.5) < 5 / (12 * 4000) ** 0.5


def test_pgd_restarts_keep_what_has_fooled_the_model(case):
    net, x, y = case
    y = net(x).argmax(1)
    draws = [torch.Generator().manual_seed(3) for _ in range(2)]
    options = {"steps": 2, "step_size": 0.02}
    one = attacks.pgd(net, x, y, 0.1, (0, 1), generator=draws[0], **options)
    many = attacks.pgd(
        net, x, y, 0.1, (0, 1), generator=draws[1], restarts=6, **options
    )
    fooled = [net(v).argmax(1) != y for v in (one, many)]
    assert (fooled[1] | ~fooled[0]).all()
    assert torch.equal(many[fooled[0]], one[fooled[0]])


@pytest.mark.parametrize("name", ["FGSM", "PGD", "PGDL2"])
def test_the_classes_give_what_torchattacks_gives(case, name):
    torchattacks = pytest.importorskip(
        "torchattacks", reason="the bench extra has torchattacks"
    )
    net, x, y = case
    net, x = net.float(), x.float()
    options = {} if name == "FGSM" else {"random_start": False, "steps": 4}
    theirs = getattr(torchattacks, name)(net, eps=0.1, **options)(x, y)
    ours = getattr(attacks, name)(net, eps=0.1, **options)(x, y)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


NET, X = nn.Linear(4, 3), torch.rand(3, 4)
Y = torch.zeros(3, dtype=torch.int64)


@pytest.mark.parametrize("attack", [attacks.fgsm, attacks.pgd])
@pytest.mark.parametrize(
    ("x", "y", "eps", "options", "error", "message"),
    [
        (X, Y + 3, 0.1, {}, ValueError, r"`y` must lie in 0\.\.2 .*3\.\.3"),
        (X, Y[:1], 0.1, {}, ValueError, r"`y` must have shape \(3,\)"),
        (X, Y, -0.1, {}, ValueError, r"`eps` must be a finite number >= 0; got -0.1"),
        (X, Y, float("nan"), {}, ValueError, r"`eps` must be a finite number"),
        (X, Y, 0.1, {"norm": "l0"}, ValueError, r"`norm` must be 'l2' or 'linf'"),
        (X + 2, Y, 0.1, {"bounds": (0, 1)}, ValueError, r"`x` must lie within"),
        (X, Y, 0.1, {"chunk": 0}, ValueError, r"`chunk` must be at least 1"),
        (X, Y, 0.1, {"backend": "fast"}, ValueError, r"`backend` must be one of"),
    ],
)
def test_bad_input_is_refused_by_name(attack, x, y, eps, options, error, message):
    with pytest.raises(error, match=message):
        attack(NET, x, y, eps, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": -1}, r"`steps` must be at least 0"),
        ({"restarts": 0}, r"`restarts` must be at least 1"),
        ({"step_size": -1.0}, r"`step_size` must be a finite number"),
    ],
)
def test_pgd_refuses_bad_settings_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        attacks.pgd(NET, X, Y, 0.1, **options)


@pytest.mark.parametrize("attack", [attacks.fgsm, attacks.pgd])
def test_modes_are_restored_and_dropout_is_off(attack):
    net, x = attack_nets.with_dropout(), torch.randn(4, 12)
    y = torch.zeros(4, dtype=torch.int64)
    with pytest.warns(UserWarning, match="training mode"):
        first = attack(net, x, y, 0.1, **_still(attack))
    assert all(m.training for m in net.modules())
    assert torch.equal(first, attack(net.eval(), x, y, 0.1, **_still(attack)))


def _still(attack):
    return {"random_start": False} if attack is attacks.pgd else {}
