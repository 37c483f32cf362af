"""The demo end to end, small: its files, and that all of them tell the same."""

import json

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from fastjac import attacks, data, demo, models

SMALL = demo.Settings(train_epochs=4, harden_epochs=3, test_images=60, eps=(0.0, 0.1))


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return demo.run(tmp_path_factory.mktemp("demo"), SMALL, progress=False)


def test_files_are_written(result):
    assert sorted(p.name for p in result.files.values()) == [
        "demo.json",
        "demo.png",
        "digits-hardened.pt",
        "digits.pt",
    ]
    picture = imread(result.files["figure"])
    assert picture.shape[0] > 800 and picture.shape[1] > 800
    assert len(np.unique(picture.reshape(-1, picture.shape[2]), axis=0)) > 100


def test_table_shows_the_numbers_of_the_json(result):
    numbers = json.loads(result.files["numbers"].read_text())
    table = result.table()
    columns = [list(column.cells) for column in table.columns]
    shown = {row[0]: row[1:] for row in zip(*columns, strict=True)}
    for i, part in enumerate(("before", "after")):
        values = numbers[part]
        assert shown["test accuracy"][i] == f"{values['accuracy']:.1%}"
        assert shown["mean Jacobian norm ‖J‖"][i] == f"{values['jacobian_norm']:.2f}"
        assert shown["rho_adv under DeepFool"][i] == f"{values['rho_adv']:.3f}"
        assert (
            shown["accuracy under FGSM, eps 0.1"][i]
            == f"{values['fgsm_accuracy'][1]:.1%}"
        )
    assert len(shown) == 4 and numbers["test_images"] == 60
    assert numbers["settings"]["lam"] == SMALL.lam


def test_numbers_are_those_of_the_saved_models(result):
    x, y = (part[:60] for part in data.digits().test.tensors)
    for name, measures in (("before", result.before), ("after", result.after)):
        model, _ = models.load(result.files[name])
        right = (model(x).argmax(1) == y).double().mean().item()
        assert measures.accuracy == pytest.approx(right)
        found = attacks.deepfool(model, x)
        sizes = [
            r.norm() / i.norm() for r, i in zip(found.perturbation, x, strict=True)
        ]
        assert measures.rho_adv == pytest.approx(float(sum(sizes)) / 60, rel=1e-5)
        inputs = x.clone().requires_grad_()
        rows = [
            torch.autograd.grad(model(inputs)[:, k].sum(), inputs)[0] for k in range(10)
        ]
        norms = torch.stack(rows).square().sum((0, 2, 3, 4)).sqrt()
        assert measures.jacobian_norm == pytest.approx(norms.mean().item(), rel=1e-4)


def test_hardening_lowers_the_jacobian_and_raises_rho_adv(result):
    assert result.after.jacobian_norm < 0.8 * result.before.jacobian_norm
    assert result.after.rho_adv > result.before.rho_adv
    assert result.after.accuracy > result.before.accuracy - 0.05


def test_same_seed_gives_the_same_numbers_and_leaves_the_state_alone(tmp_path):
    small = demo.Settings(train_epochs=1, harden_epochs=1, test_images=20, eps=(0.1,))
    threads = torch.get_num_threads()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first = demo.run(tmp_path / "a", small, progress=False)
    assert torch.rand(1) == expected and torch.get_num_threads() == threads
    second = demo.run(tmp_path / "b", small, progress=False)
    assert (first.before, first.after) == (second.before, second.after)
