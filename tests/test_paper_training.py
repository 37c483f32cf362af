"""How the paper's rows are trained: dropout, and the penalty of a part of a batch."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import fastjac
from fastjac.paper.changes import Changes
from fastjac.paper.defences import PENALTIES, of_first
from fastjac.paper.presets import RECIPES
from fastjac.paper.recipes import Phase
from fastjac.paper.rows import rows


def network():
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(9, 12),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(12, 12),
        nn.ReLU(),
        nn.Linear(12, 4),
    )


@pytest.mark.parametrize("dropout", [True, False])
def test_a_phase_leaves_dropout_as_it_was(dropout):
    model = network().train()
    x = torch.rand(5, 3, 3)
    with Phase(1, 1, 1e-3, dropout=dropout).dropping(model):
        assert torch.equal(model(x), model(x)) is not dropout
    assert model[3].p == 0.5
    with (
        pytest.raises(KeyboardInterrupt),
        Phase(1, 1, 1e-3, dropout=dropout).dropping(model),
    ):
        raise KeyboardInterrupt
    assert model[3].p == 0.5


@pytest.mark.parametrize("name", sorted(set(PENALTIES) - {"projection"}))
def test_the_penalty_of_the_first_images_comes_with_the_logits_of_all(name):
    model, x = network().eval(), torch.rand(8, 1, 3, 3)
    y = torch.arange(8) % 4
    torch.manual_seed(0)
    expected, _ = PENALTIES[name](model, x[:2], y[:2])
    torch.manual_seed(0)
    penalty, logits = of_first(0.25, PENALTIES[name])(model, x, y)
    assert torch.equal(penalty, expected)
    assert torch.equal(logits, model(x))


def test_at_least_one_image_is_penalised_and_at_most_all():
    model, x = network().eval(), torch.rand(3, 1, 3, 3)
    y = torch.tensor([0, 1, 2])
    for share, count in ((0.01, 1), (0.7, 2), (1.0, 3)):
        penalty, _ = of_first(share, PENALTIES["jacobian"])(model, x, y)
        whole = fastjac.jacobian_penalty(model, x[:count])
        torch.testing.assert_close(penalty, whole / count**0.5)


@pytest.mark.parametrize(
    ("lam", "alone", "beside"), [(None, 0.4, 0.3), (0.7, 0.7, 0.7)]
)
def test_a_penalty_may_weigh_less_beside_adversarial_training(lam, alone, beside):
    quick = RECIPES["mnist", "quick"]
    lams = {**quick.lams, "jacobian": 0.4, "jacobian+adversarial": 0.3}
    recipe = Changes(lam=lam).applied(replace(quick, lams=lams))
    found = {row.key: row.lam for row in rows(recipe)}
    assert found["jacobian"] == alone
    assert found["jacobian+adversarial"] == beside
    assert found["cross-lipschitz"] == found["cross-lipschitz+adversarial"]
