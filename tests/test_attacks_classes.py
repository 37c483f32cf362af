"""Attack objects as scripts for torchattacks use them; adapters for foolbox and ART."""

from __future__ import annotations

import attack_nets
import numpy as np
import pytest
import torch
from torch import nn

from fastjac import attacks
from fastjac.attacks.adapters import art_attack, foolbox_attack

BENCH = "the bench extra has it"


@pytest.fixture
def case():
    net = attack_nets.conv(2).float()
    x = torch.rand(12, 2, 6, 6)
    return net, x, net(x).argmax(1)


@pytest.mark.parametrize("name", ["DeepFool", "FGSM", "PGD", "PGDL2", "JSMA"])
def test_an_attack_is_made_and_called_like_that_of_torchattacks(case, name):
    net, x, y = case
    attack = getattr(attacks, name)(net)
    adversarial = attack(x, y)
    assert adversarial.shape == x.shape and not torch.equal(adversarial, x)
    assert adversarial.min() >= 0 and adversarial.max() <= 1
    assert attack.get_mode() == "default" and attack.device == torch.device("cpu")
    assert name in repr(attack)


def test_deepfool_objects_leave_misclassified_images_alone(case):
    net, x, y = case
    wrong = (y + 1) % 7
    attack = attacks.DeepFool(net, steps=50, overshoot=0.02)
    assert torch.equal(attack(x, wrong), x)
    adversarial, labels = attack.forward_return_target_labels(x, y)
    direct = attacks.deepfool(net, x, bounds=(0, 1))
    assert torch.equal(adversarial, direct.adversarial)
    assert torch.equal(labels, direct.labels)
    with pytest.raises(ValueError, match="DeepFool has no targeted mode"):
        attack.set_mode_targeted_by_label()


def test_targeted_modes_reach_what_they_say(case):
    net, x, y = case
    attack = attacks.PGD(net, eps=1.0, alpha=0.1, steps=40, random_start=False)
    modes = {
        "targeted(label)": lambda: attack.set_mode_targeted_by_label(quiet=True),
        "targeted(custom)": lambda: attack.set_mode_targeted_by_function(
            lambda images, labels: (labels + 2) % 7
        ),
    }
    for mode, switch in modes.items():
        switch()
        target = y if mode == "targeted(label)" else (y + 2) % 7
        assert attack.get_mode() == mode
        same = attacks.pgd(
            net, x, target, 1.0, (0, 1), steps=40, step_size=0.1,
            random_start=False, targeted=True,
        )  # fmt: skip
        assert torch.equal(attack(x, y), same)
    attack.set_mode_default()
    assert not attack.targeted and attack.get_mode() == "default"


def test_random_and_least_likely_targets_are_never_the_label(case):
    net, x, y = case
    attack = attacks.FGSM(net)
    attack.set_mode_targeted_random()
    drawn = torch.stack([attack.target(x, y) for _ in range(60)])
    assert (drawn != y).all() and len(drawn.unique()) == 7
    attack.set_mode_targeted_least_likely()
    assert torch.equal(attack.target(x, y), net(x).argmin(1))
    attack.set_mode_targeted_least_likely(kth_min=2)
    assert torch.equal(attack.target(x, y), net(x).argsort(1)[:, 1])
    attack.set_mode_targeted_least_likely(kth_min=7)
    with pytest.raises(ValueError, match=r"`kth_min` must be below the number of"):
        attack(x, y)


def test_normalised_images_are_attacked_in_pixels(case):
    net, x, y = case
    mean, std = (0.4, 0.6), (0.2, 0.5)
    shift = [torch.tensor(v).view(1, 2, 1, 1) for v in (mean, std)]

    class Behind(nn.Module):
        def forward(self, normalised):
            return net(normalised * shift[1] + shift[0])

    attack = attacks.FGSM(Behind(), eps=0.1)
    attack.set_normalization_used(mean=mean, std=std)
    found = attack((x - shift[0]) / shift[1], y)
    want = attacks.fgsm(net, x, y, 0.1, (0, 1))
    torch.testing.assert_close(found * shift[1] + shift[0], want)


def test_save_writes_what_it_found(case, tmp_path):
    net, x, y = case
    attack = attacks.DeepFool(net)
    loader = [(x[:5], y[:5]), (x[5:], y[5:])]
    accuracy, distance = attack.save(loader, save_path=tmp_path / "adv.pt")
    saved = torch.load(tmp_path / "adv.pt", weights_only=True)
    assert torch.equal(saved["labels"], y)
    right = net(saved["adv_inputs"]).argmax(1) == y
    assert accuracy == pytest.approx(100 * right.float().mean().item())
    norms = (saved["adv_inputs"] - x).flatten(1).norm(dim=1)[~right]
    assert distance == pytest.approx(norms.mean().item(), rel=1e-5)


def test_jsma_objects_change_the_pixels_that_torchattacks_changes(case):
    torchattacks = pytest.importorskip("torchattacks", reason=BENCH)
    net, x, y = case
    x = 0.98 * x  # theirs takes pixels from 0.99 on for saturated
    ours = attacks.JSMA(net, theta=1.0, gamma=0.1)
    theirs = torchattacks.JSMA(net, theta=1.0, gamma=0.1)
    for attack in (ours, theirs):
        attack.set_mode_targeted_by_label(quiet=True)
    target = (y + 1) % 7
    torch.testing.assert_close(ours(x.clone(), target), theirs(x.clone(), target))


def test_foolbox_calls_deepfool_and_measures_it(case):
    foolbox = pytest.importorskip("foolbox", reason=BENCH)
    net, x, y = case
    fmodel = foolbox.PyTorchModel(net.eval(), bounds=(0, 1), device="cpu")
    attack = foolbox_attack("deepfool", steps=50)
    assert isinstance(attack, foolbox.attacks.base.MinimizationAttack)
    raw, clipped, fooled = attack(fmodel, x, y, epsilons=[None, 0.01])
    direct = attacks.deepfool(net, x, y, bounds=(0, 1))
    assert torch.equal(raw[0], direct.adversarial)
    assert torch.equal(fooled[0], direct.success)
    assert (clipped[1] - x).flatten(1).norm(dim=1).max() <= 0.0101


@pytest.mark.parametrize("name", ["fgsm", "pgd"])
def test_foolbox_calls_fixed_epsilon_attacks(case, name):
    foolbox = pytest.importorskip("foolbox", reason=BENCH)
    net, x, y = case
    fmodel = foolbox.PyTorchModel(net.eval(), bounds=(0, 1), device="cpu")
    attack = foolbox_attack(name, norm="linf")
    _, clipped, fooled = attack(fmodel, x, y, epsilons=[0.0, 0.2])
    assert torch.equal(clipped[0], x) and not fooled[0].any()
    assert fooled[1].float().mean() > fooled[0].float().mean()
    criterion = foolbox.criteria.TargetedMisclassification((y + 1) % 7)
    _, clipped, _ = attack(fmodel, x, criterion, epsilons=0.2)
    before, after = (net(v).gather(1, ((y + 1) % 7)[:, None]) for v in (x, clipped))
    assert after.mean() > before.mean()
    with pytest.raises(ValueError, match="`criterion` of deepfool must be"):
        foolbox_attack("deepfool")(fmodel, x, criterion, epsilons=None)


@pytest.mark.parametrize("name", ["deepfool", "fgsm", "pgd"])
def test_art_calls_attacks_on_arrays(case, name):
    estimators = pytest.importorskip("art.estimators.classification", reason=BENCH)
    net, x, y = case
    classifier = estimators.PyTorchClassifier(
        model=net, loss=nn.CrossEntropyLoss(), input_shape=(2, 6, 6), nb_classes=7,
        clip_values=(0, 1), device_type="cpu",
    )  # fmt: skip
    attack = art_attack(name, classifier, norm="l2", eps=0.5)
    found = attack.generate(x.numpy())
    assert found.dtype == np.float32 and found.shape == x.shape
    if name == "deepfool":
        want = attacks.deepfool(net.eval(), x, bounds=(0, 1)).adversarial.numpy()
        np.testing.assert_allclose(found, want, atol=1e-6)
    one_hot = np.eye(7, dtype=np.float32)[y.numpy()]
    labelled = attack.generate(x.numpy(), one_hot)
    changed = classifier.predict(labelled).argmax(1) != y.numpy()
    assert changed.mean() > 0.5


@pytest.mark.parametrize("make", [foolbox_attack, lambda name: art_attack(name, None)])
def test_adapters_name_an_attack_that_they_do_not_have(make):
    with pytest.raises(ValueError, match="`name` must be 'deepfool', 'fgsm' or 'pgd'"):
        make("jsma")
