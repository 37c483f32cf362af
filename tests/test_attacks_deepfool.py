"""DeepFool against a per-sample one written from the paper, and against algebra."""

from __future__ import annotations

from dataclasses import dataclass

import attack_nets
import pytest
import torch
from attack_nets import mnist_net, mnist_test  # noqa: F401  fixtures
from torch import Tensor, nn

import fastjac
from fastjac import attacks, robustness


@dataclass
class Original:
    perturbation: Tensor
    iterations: int
    label: int
    adversarial_label: int


def original_deepfool(net, image, num_classes=10, overshoot=0.02, max_iter=50):
    """One image at a time, one backward pass a class, as in the paper's Algorithm 2."""
    order = net(image[None])[0].argsort(descending=True)[:num_classes].tolist()
    label, now, total, taken = order[0], order[0], torch.zeros_like(image), 0
    point = image.clone()
    while now == label and taken < max_iter:
        point = point.detach().requires_grad_()
        scores = net(point[None])[0]
        gradients = {
            k: torch.autograd.grad(scores[k], point, retain_graph=True)[0]
            for k in order
        }
        nearest, way = float("inf"), None
        for k in order[1:]:
            w = gradients[k] - gradients[label]
            distance = (scores[k] - scores[label]).abs().item() / w.norm().item()
            if distance < nearest:
                nearest, way = distance, w
        total = total + (nearest + 1e-4) * way / way.norm()
        point = image + (1 + overshoot) * total
        now = net(point[None])[0].argmax().item()
        taken += 1
    return Original((1 + overshoot) * total, taken, label, now)


def agree(net, x, result, **settings):
    for i, image in enumerate(x):
        want = original_deepfool(net, image, **settings)
        assert result.iterations[i].item() == want.iterations
        assert result.original_labels[i].item() == want.label
        assert result.labels[i].item() == want.adversarial_label
        assert result.success[i].item() == (want.adversarial_label != want.label)
        gap = (result.perturbation[i] - want.perturbation).norm()
        assert gap <= 1e-4 * want.perturbation.norm()
        assert torch.allclose(result.adversarial[i], image + want.perturbation)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("chunk", [None, 1, 7])
def test_equals_the_per_sample_original_on_random_nets(seed, chunk, path):
    net = attack_nets.mlp(seed)
    x = torch.randn(20, 12, dtype=torch.float64)
    agree(net, x, attacks.deepfool(net, x, chunk=chunk, backend="fused"))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("candidates", [2, 4, 100])
def test_equals_the_original_on_conv_nets(seed, candidates, path):
    net = attack_nets.conv(seed)
    x = torch.randn(9, 2, 6, 6, dtype=torch.float64)
    result = attacks.deepfool(net, x, candidates=candidates, overshoot=0.1, steps=5)
    agree(net, x, result, num_classes=candidates, overshoot=0.1, max_iter=5)


def test_equals_the_original_where_layers_have_no_fused_rule():
    net = nn.Sequential(nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 4)).double()
    x = torch.randn(12, 6, dtype=torch.float64)
    agree(net, x, attacks.deepfool(net, x, backend="autograd"))


def test_equals_the_original_on_200_mnist_digits(mnist_net, mnist_test):  # noqa: F811
    net, x = mnist_net.double(), mnist_test[0][:200].double()
    result = attacks.deepfool(net, x)
    agree(net, x, result)
    each = [original_deepfool(net, i).perturbation.norm() / i.norm() for i in x]
    expected = torch.stack(each).mean().item()
    assert robustness.rho_adv(result, x) == pytest.approx(expected, rel=1e-2)


def test_median_distance_is_that_of_foolbox(mnist_net, mnist_test):  # noqa: F811
    foolbox = pytest.importorskip("foolbox", reason="the bench extra has foolbox")
    net, x = mnist_net.float(), mnist_test[0][:200]
    wide = foolbox.PyTorchModel(net, bounds=(-100, 100), device="cpu")
    peer = foolbox.attacks.L2DeepFoolAttack(steps=50)
    theirs, _, fooled = peer(wide, x, net(x).argmax(1), epsilons=None)
    assert fooled.all()
    median = (theirs - x).flatten(1).norm(dim=1).median().item()
    ours = attacks.deepfool(net, x, bounds=(-100, 100)).norms.median().item()
    assert ours == pytest.approx(median, rel=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_affine_classifiers_are_projected_exactly(dtype, path):
    net = nn.Linear(7, 4).to(dtype)
    x = torch.randn(30, 7, dtype=dtype)
    result = attacks.deepfool(net, x, overshoot=0.0)
    z, w = net(x), net.weight
    for i in range(len(x)):
        k0 = z[i].argmax()
        sizes = {
            k: ((z[i, k0] - z[i, k]) / (w[k] - w[k0]).norm()).item()
            for k in range(4)
            if k != k0
        }
        k = min(sizes, key=sizes.__getitem__)
        way = (w[k] - w[k0]) / (w[k] - w[k0]).norm()
        torch.testing.assert_close(result.perturbation[i], (sizes[k] + 1e-4) * way)
        assert result.iterations[i] == 1 and result.labels[i] == k


def test_linf_takes_the_smallest_largest_change(path):
    net = nn.Linear(7, 4).double()
    x = torch.randn(30, 7, dtype=torch.float64)
    result = attacks.deepfool(net, x, overshoot=0.0, norm="linf")
    z, w = net(x), net.weight
    top = z.argmax(1)
    for i in range(len(x)):
        sizes = torch.stack(
            [
                (z[i, top[i]] - z[i, k]) / (w[k] - w[top[i]]).abs().sum()
                for k in range(4)
                if k != top[i]
            ]
        )
        assert result.norms[i].item() == pytest.approx(sizes.min().item() + 1e-4)
        assert torch.allclose(result.perturbation[i].abs(), result.norms[i])
    assert result.success.all()


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_bounds_are_kept_and_the_perturbation_says_what_was_added(norm, path):
    net = attack_nets.conv(1)
    x = torch.rand(40, 2, 6, 6, dtype=torch.float64)
    result = attacks.deepfool(net, x, bounds=(0, 1), norm=norm)
    assert result.adversarial.min() >= 0 and result.adversarial.max() <= 1
    torch.testing.assert_close(result.adversarial, x + result.perturbation)
    assert result.success.float().mean() > 0.9
    fooled = net(result.adversarial).argmax(1) != net(x).argmax(1)
    assert torch.equal(fooled, result.success)


def test_wide_bounds_change_nothing():
    net, x = attack_nets.conv(2), torch.rand(9, 2, 6, 6, dtype=torch.float64)
    free, wide = (
        attacks.deepfool(net, x, bounds=bounds) for bounds in (None, (-1e6, 1e6))
    )
    torch.testing.assert_close(free.adversarial, wide.adversarial)


def test_targets_are_reached_and_a_reached_one_costs_nothing():
    net, x = attack_nets.mlp(3), torch.randn(30, 12, dtype=torch.float64)
    target = torch.arange(30) % 10
    result = attacks.deepfool(net, x, target=target, steps=200)
    assert result.success.float().mean() > 0.9
    assert torch.equal(result.success, result.labels == target)
    assert torch.equal(net(result.adversarial).argmax(1), result.labels)

    there = net(x).argmax(1)
    result = attacks.deepfool(net, x, target=there)
    assert result.success.all() and not result.iterations.any()
    assert torch.equal(result.adversarial, x) and not result.norms.any()


def test_a_target_of_an_affine_classifier_is_reached_by_its_own_boundary():
    net, x = nn.Linear(5, 2).double(), torch.randn(20, 5, dtype=torch.float64)
    target = 1 - net(x).argmax(1)
    one = attacks.deepfool(net, x, target=target)
    torch.testing.assert_close(one.adversarial, attacks.deepfool(net, x).adversarial)


def test_samples_misclassified_already_are_left_as_they_are():
    net, x = attack_nets.mlp(0), torch.randn(20, 12, dtype=torch.float64)
    y = net(x).argmax(1)
    wrong = torch.arange(20) < 7
    y[wrong] = (y[wrong] + 1) % 10
    result = attacks.deepfool(net, x, y)
    assert result.success[wrong].all() and not result.iterations[wrong].any()
    assert torch.equal(result.adversarial[wrong], x[wrong])
    without = attacks.deepfool(net, x)
    torch.testing.assert_close(result.adversarial[~wrong], without.adversarial[~wrong])


def test_dead_gradients_stop_a_sample_and_only_that_one(path):
    class Half(nn.Module):
        """Flat where the first entry is negative."""

        def forward(self, x):
            scores = torch.stack([x[:, 1], 0.5 - x[:, 1]], 1)
            return scores * (x[:, :1] > 0) + torch.tensor([1.0, 0.0])

    x = torch.tensor([[-1.0, 3.0], [1.0, 3.0], [-1.0, 1.0]])
    result = attacks.deepfool(Half(), x)
    assert result.success.tolist() == [False, True, False]
    assert result.iterations.tolist() == [0, 1, 0]
    assert torch.equal(result.adversarial[[0, 2]], x[[0, 2]])
    assert result.norms.isfinite().all()


def test_finished_samples_cost_nothing():
    net, x = attack_nets.mlp(1), torch.randn(64, 12, dtype=torch.float64)
    seen = []

    def counted(batch):
        seen.append(len(batch))
        return net(batch)

    result = attacks.deepfool(counted, x, chunk=16)
    assert result.iterations.max() > result.iterations.min()
    # One forward pass a step and one that sees the changed class; no other.
    assert sum(seen) == int((result.iterations + 1).sum())
    assert max(seen) == 16


def test_nothing_of_the_model_is_left_changed():
    net = attack_nets.with_dropout()
    net[1].eval()  # modes differ within the model
    x = torch.randn(5, 12, requires_grad=True)
    before = [m.training for m in net.modules()]
    with pytest.warns(UserWarning, match=r"training mode with Dropout"):
        found = attacks.deepfool(net, x)
    assert [m.training for m in net.modules()] == before
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert x.grad is None and x.requires_grad
    assert not found.adversarial.requires_grad
    again = attacks.deepfool(net.eval(), x)
    assert torch.equal(found.adversarial, again.adversarial)


def test_the_mode_is_restored_after_an_error():
    net = attack_nets.with_dropout()
    bad = torch.tensor([9])
    with (
        pytest.warns(UserWarning, match="training mode"),
        pytest.raises(ValueError, match=r"`target` must lie in 0\.\.9"),
    ):
        attacks.deepfool(net, torch.randn(1, 12), target=bad + 1)
    assert all(m.training for m in net.modules())


def test_a_trained_mode_that_changes_nothing_does_not_warn(recwarn):
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).train()
    attacks.deepfool(net, torch.randn(4, 3))
    assert not recwarn.list and net.training


def test_no_steps_change_nothing():
    net, x = attack_nets.mlp(0), torch.randn(4, 12, dtype=torch.float64)
    result = attacks.deepfool(net, x, steps=0)
    assert torch.equal(result.adversarial, x) and not result.success.any()
    assert torch.equal(result.labels, result.original_labels)
    assert torch.equal(result.labels, net(x).argmax(1))


def test_the_result_is_frozen_and_shaped_as_it_says():
    net, x = attack_nets.conv(0), torch.randn(3, 2, 6, 6, dtype=torch.float64)
    result = attacks.deepfool(net, x)
    assert result.adversarial.shape == result.perturbation.shape == x.shape
    for field in ("norms", "iterations", "original_labels", "labels", "success"):
        assert getattr(result, field).shape == (3,)
    with pytest.raises(AttributeError):
        result.norms = None


def test_progress_counts_every_sample(capsys):
    attacks.deepfool(attack_nets.mlp(0).float(), torch.randn(6, 12), progress=True)
    assert "6/6" in capsys.readouterr().err


def test_a_compiled_model_and_an_inference_tensor_are_taken():
    net = nn.Linear(3, 2)
    with torch.inference_mode():
        x = torch.randn(4, 3)
        assert attacks.deepfool(net, x).success.all()
    assert attacks.deepfool(nn.DataParallel(net), torch.randn(4, 3)).success.all()


LINEAR = nn.Linear(4, 3)
X = torch.rand(5, 4)


@pytest.mark.parametrize(
    ("x", "options", "error", "message"),
    [
        (X[0], {}, ValueError, r"`x` must be a batch"),
        (X.long(), {}, TypeError, r"`x` must be floating point"),
        (X / 0, {}, ValueError, r"`x` must be finite"),
        (X[:0], {}, ValueError, r"no samples"),
        (X + 1, {"bounds": (0, 1)}, ValueError, r"`x` must lie within `bounds`"),
        (X, {"bounds": (1, 0)}, ValueError, r"`bounds` must be \(low, high\)"),
        (X, {"steps": -1}, ValueError, r"`steps` must be at least 0; got -1"),
        (X, {"steps": 1.5}, TypeError, r"`steps` must be an int; got float"),
        (X, {"candidates": 1}, ValueError, r"`candidates` must be at least 2"),
        (X, {"overshoot": -0.1}, ValueError, r"`overshoot` must be a finite number"),
        (X, {"norm": "l1"}, ValueError, r"`norm` must be 'l2' or 'linf'; got 'l1'"),
        (X, {"chunk": 0}, ValueError, r"`chunk` must be at least 1; got 0"),
        (X, {"backend": "x"}, ValueError, r"`backend` must be one of"),
        (X, {"y": torch.full((5,), 3)}, ValueError, r"`y` must lie in 0\.\.2 .*3\.\.3"),
        (X, {"y": torch.full((5,), -1)}, ValueError, r"`y` must lie in 0\.\.2"),
        (X, {"y": torch.zeros(4).long()}, ValueError, r"`y` must have shape \(5,\)"),
        (X, {"y": torch.zeros(5)}, TypeError, r"`y` must hold integers"),
        (X, {"target": [1] * 5}, TypeError, r"`target` must be a torch.Tensor"),
        (X, {"target": torch.full((5,), 3)}, ValueError, r"`target` must lie in"),
        (
            X,
            {"y": torch.zeros(5).long(), "target": torch.zeros(5).long()},
            ValueError,
            r"`y` and `target` exclude each other",
        ),
    ],
)
def test_bad_input_is_refused_by_name(x, options, error, message):
    with pytest.raises(error, match=message):
        attacks.deepfool(LINEAR, x, **options)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(4, 1), r"at least 2 classes to attack; got K = 1"),
        (lambda x: x.sum(), r"logits of shape \(N, K\) with N = 5"),
        (lambda x: LINEAR(x)[:3], r"logits of shape \(N, K\) with N = 5"),
        (lambda x: LINEAR(x.detach()).detach(), r"`x` is detached"),
        (lambda x: LINEAR(x) / 0, r"finite logits; got NaN or infinity for 5 of 5"),
    ],
)
def test_bad_models_are_refused(model, message):
    with pytest.raises(ValueError, match=message):
        attacks.deepfool(model, X)


def test_more_candidates_than_classes_means_all_of_them():
    some, many = (attacks.deepfool(LINEAR, X, candidates=c) for c in (3, 50))
    assert torch.equal(some.adversarial, many.adversarial)


def test_a_sample_that_overflows_on_its_way_fails_alone():
    def net(x):
        steep = (x[:, :1] - 3).relu() * 3e38
        return torch.cat([2 - x[:, 1:], x[:, :1] - 8 + steep], 1)

    x = torch.tensor([[0.0, 0.0], [0.0, 9.0]])
    result = attacks.deepfool(net, x)
    assert result.success.tolist() == [False, True]


def test_rho_adv_names_what_does_not_fit():
    result = attacks.deepfool(LINEAR, X)
    assert fastjac.jacobian_norm(LINEAR, X).shape == (5,)
    with pytest.raises(ValueError, match=r"`x` must be what was attacked"):
        robustness.rho_adv(result, X[:2])
