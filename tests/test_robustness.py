"""The paper's measures against their formulas, and the evaluation that runs them."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import signal
import subprocess
import sys

import attack_nets
import pytest
import torch
from torch import nn

import fastjac
from fastjac import attacks, robustness
from fastjac.robustness import figures


def jacobian(net, image):
    rows = torch.autograd.functional.jacobian(lambda v: net(v[None])[0], image)
    return rows.flatten(1)


@pytest.mark.parametrize("chunk", [None, 1, 4])
def test_geometry_is_its_formulas(chunk, path):
    net = attack_nets.conv(0)
    x = torch.randn(9, 2, 6, 6, dtype=torch.float64)
    near = robustness.geometry(net, x, chunk=chunk)
    for i, image in enumerate(x):
        z, rows = net(image[None])[0].detach(), jacobian(net, image)
        top = int(z.argmax())
        sizes = {
            k: float((z[top] - z[k]) / (rows[top] - rows[k]).norm())
            for k in range(7)
            if k != top
        }
        nearest = min(sizes, key=sizes.__getitem__)
        gap = float((z[top] - z[torch.arange(7) != top]).min())
        along = rows @ image.flatten()
        bound = float(rows.norm() ** 2 * image.norm() ** 2)
        assert near.labels[i] == top and near.nearest[i] == nearest
        assert near.distance[i].item() == pytest.approx(sizes[nearest])
        lower = gap / (2**0.5 * float(rows.norm()))
        assert near.lower_bound[i].item() == pytest.approx(lower)
        assert near.jacobian_norm[i].item() == pytest.approx(float(rows.norm()))
        curvature = float(along[top] ** 2 - along[nearest] ** 2)
        assert near.curvature[i].item() == pytest.approx(curvature)
        assert near.curvature_bound[i].item() == pytest.approx(bound)
    assert (near.lower_bound <= near.distance).all()
    assert (near.curvature <= near.curvature_bound).all()


def test_the_bound_of_eq_12_is_reached_where_two_rows_are_opposite():
    net = nn.Linear(5, 4, bias=False).double()
    net.weight.data[2:] = 0
    net.weight.data[1] = -net.weight.data[0]
    x = torch.randn(30, 5, dtype=torch.float64)
    z = net(x).detach()
    near = robustness.geometry(net, x)
    # |z_1 - z_2| = 2 |z_1| is the gap to the opposite row, |z_1| to the zero rows.
    steep = net.weight[0].norm().detach()
    torch.testing.assert_close(near.distance, z[:, 0].abs() / steep)
    torch.testing.assert_close(near.lower_bound, near.distance / 2)
    two = nn.Linear(5, 2, bias=False).double()
    two.weight.data = net.weight.data[:2]
    near = robustness.geometry(two, x)
    torch.testing.assert_close(near.lower_bound, near.distance)


def test_geometry_in_blocks_of_classes_is_the_same(monkeypatch):
    net, x = attack_nets.conv(1), torch.randn(3, 2, 6, 6, dtype=torch.float64)
    whole = robustness.geometry(net, x)
    monkeypatch.setitem(robustness.geometry.__globals__["_BUDGET"], "cpu", 2 * 72)
    for name, value in vars(robustness.geometry(net, x)).items():
        torch.testing.assert_close(value, getattr(whole, name))


def test_the_three_short_forms_are_fields_of_the_geometry():
    net, x = attack_nets.mlp(0), torch.randn(8, 12, dtype=torch.float64)
    near = robustness.geometry(net, x)
    assert torch.equal(robustness.distance_estimate(net, x), near.distance)
    assert torch.equal(robustness.distance_lower_bound(net, x), near.lower_bound)
    assert torch.equal(robustness.curvature_bound(net, x), near.curvature_bound)
    torch.testing.assert_close(fastjac.jacobian_norm(net, x), near.jacobian_norm)


def test_the_estimate_of_an_affine_classifier_is_what_deepfool_finds():
    net, x = nn.Linear(6, 4).double(), torch.randn(20, 6, dtype=torch.float64)
    found = attacks.deepfool(net, x, overshoot=0.0).norms
    torch.testing.assert_close(robustness.distance_estimate(net, x) + 1e-4, found)


def test_a_flat_model_has_no_boundary():
    net = nn.Linear(3, 2)
    nn.init.zeros_(net.weight)
    near = robustness.geometry(net, torch.rand(2, 3))
    assert near.distance.isinf().all() and near.lower_bound.isinf().all()
    assert not near.curvature_bound.any()


def test_rho_adv_leaves_out_zero_samples_and_says_so():
    net = nn.Linear(3, 2)
    x = torch.tensor([[0.0, 0, 0], [1, 2, 2]])
    found = attacks.deepfool(net, x)
    with pytest.warns(UserWarning, match="1 of 2 samples are all zero"):
        rho = robustness.rho_adv(found, x)
    assert rho == pytest.approx(found.norms[1].item() / 3)
    with pytest.raises(ValueError, match="`x` must have a nonzero sample"):
        robustness.rho_adv(attacks.deepfool(net, x[:1]), x[:1])


def case():
    net = attack_nets.conv(0).float()
    x = torch.rand(20, 2, 6, 6)
    y = net(x).argmax(1)
    y[::5] = (y[::5] + 1) % 7
    return net, [(x[i : i + 8], y[i : i + 8]) for i in (0, 8, 16)]


OPTIONS = {
    "fgsm_eps": (0.0, 0.1),
    "pgd_eps": (0.1,),
    "pgd_steps": 3,
    "jsma_steps": 4,
    "progress": False,
}


@pytest.fixture(scope="module")
def evaluated():
    torch.manual_seed(0)
    net, batches = case()
    return net, batches, robustness.evaluate(net, batches, **OPTIONS, notes=["A note."])


def test_an_evaluation_is_the_measures_taken_one_by_one(evaluated):
    net, batches, report = evaluated
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    found = attacks.deepfool(net, x)
    near = robustness.geometry(net, x)
    right = net(x).argmax(1) == y
    assert report.samples == 20 and report.accuracy == pytest.approx(0.8)
    assert report.rho_adv == pytest.approx(robustness.rho_adv(found, x), rel=1e-5)
    assert report.mean_distance == pytest.approx(found.norms.mean().item(), rel=1e-5)
    median = found.norms.double().median().item()
    assert report.median_distance == pytest.approx(median, rel=1e-5)
    assert report.fooled == found.success.float().mean()
    assert report.iterations == pytest.approx(found.iterations.float().mean().item())
    assert report.fgsm[0.0] == pytest.approx(right.float().mean().item())
    moved = attacks.fgsm(net, x, y, 0.1, (0, 1))
    left = (net(moved).argmax(1) == y).float().mean().item()
    assert report.fgsm[0.1] == pytest.approx(left)
    assert report.pgd[0.1] <= report.fgsm[0.0]
    jsma = attacks.jsma(net, x, (y + 1) % 7, steps=4)
    assert report.jsma == pytest.approx((jsma.labels == y).float().mean().item())
    assert report.jacobian_norm == pytest.approx(near.jacobian_norm.mean().item())
    after = fastjac.jacobian_norm(net, found.adversarial).mean().item()
    assert report.jacobian_norm_adversarial == pytest.approx(after, rel=1e-5)
    assert report.distance_estimate == pytest.approx(near.distance.mean().item())
    assert report.distance_lower_bound == pytest.approx(near.lower_bound.mean().item())
    assert report.curvature_bound == pytest.approx(near.curvature_bound.mean().item())


def test_an_interrupted_evaluation_continues_to_the_same_result(evaluated, tmp_path):
    net, batches, whole = evaluated
    file = tmp_path / "state.pt"

    def breaks():
        yield from batches[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        robustness.evaluate(net, breaks(), checkpoint=file, **OPTIONS)
    seen = []

    def counted(batch):
        seen.append(len(batch))
        return net(batch)

    # The plain callable has no weights to compare, so the module itself resumes.
    rest = robustness.evaluate(net, batches, checkpoint=file, **OPTIONS)
    assert rest.as_dict() == {**whole.as_dict(), "notes": []}
    for name in ("images", "perturbations", "fooled_into"):
        assert torch.equal(getattr(rest.examples, name), getattr(whole.examples, name))

    with pytest.raises(ValueError, match="is of another model"):
        robustness.evaluate(counted, batches, checkpoint=file, **OPTIONS)
    assert not seen
    with pytest.raises(ValueError, match="is of other settings"):
        robustness.evaluate(net, batches, checkpoint=file, progress=False)
    with pytest.raises(ValueError, match="is of other data: the labels of batch 0"):
        robustness.evaluate(net, batches[::-1], checkpoint=file, **OPTIONS)


# An evaluation whose process kills itself in the middle of a forward pass, or not (0).
JOB = """
import os, signal, sys
import attack_nets, torch
from fastjac import robustness

torch.manual_seed(0)
torch.set_num_threads(1)
state, report, dies_at = sys.argv[1], sys.argv[2], int(sys.argv[3])

class Mortal(torch.nn.Module):
    calls = 0

    def __init__(self):
        super().__init__()
        self.net = attack_nets.conv(0).float().eval()

    def forward(self, x):
        Mortal.calls += 1
        if Mortal.calls == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.net(x)

x = torch.rand(20, 2, 6, 6)
batches = [(part, torch.arange(len(part)) % 7) for part in x.split(4)]
options = {"pgd_eps": (0.1,), "pgd_steps": 3, "jsma_steps": 4, "progress": False}
found = robustness.evaluate(Mortal(), batches, checkpoint=state, **options)
found.save(report)
print(Mortal.calls)
"""


def test_an_evaluation_that_is_killed_goes_on_to_the_same_report(tmp_path):
    def run(state: str, report: str, dies_at: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", JOB, str(tmp_path / state), report, str(dies_at)],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )

    whole = run("whole.ckpt", "whole.json", 0)
    assert whole.returncode == 0, whole.stderr
    calls = int(whole.stdout)
    killed = run("state.ckpt", "rest.json", calls // 2)
    assert (
        killed.returncode == -signal.SIGKILL and not (tmp_path / "rest.json").exists()
    )
    rest = run("state.ckpt", "rest.json", 0)
    assert rest.returncode == 0, rest.stderr
    # It did not start over.
    assert int(rest.stdout) < 0.8 * calls
    assert (tmp_path / "rest.json").read_text() == (tmp_path / "whole.json").read_text()


def test_the_bar_ends_where_the_limit_does(capsys):
    net, x = attack_nets.conv(0).float(), torch.rand(20, 2, 6, 6)
    data = torch.utils.data.TensorDataset(x, torch.zeros(20, dtype=torch.int64))
    loader = torch.utils.data.DataLoader(data, batch_size=4)
    options = {**OPTIONS, "progress": True}
    assert robustness.evaluate(net, loader, limit=9, **options).samples == 9
    assert "3/3" in capsys.readouterr().err


def test_a_report_survives_its_json(evaluated, tmp_path):
    report = evaluated[2]
    report.save(tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())["samples"] == 20
    again = robustness.RobustnessReport.load(tmp_path / "report.json")
    assert again.as_dict() == report.as_dict()


def test_a_report_prints_as_a_table(evaluated):
    import rich.console

    report = evaluated[2]
    console = rich.console.Console(width=100, record=True, file=io.StringIO())
    console.print(report)
    for text in (str(report), console.export_text()):
        assert f"{report.rho_adv:.4f}" in text and "A note." in text
        assert "accuracy, FGSM eps 0.1" in text and f"{report.accuracy:.2%}" in text


def test_a_report_plots(evaluated, tmp_path):
    report = evaluated[2]
    assert [p.name for p in report.plot(tmp_path)] == ["curves.png", "distances.png"]
    first = report.examples
    assert len(first.images) == 8
    images = {
        name: value[:, :1] if value.ndim == 4 else value
        for name, value in vars(first).items()
    }
    grey = dataclasses.replace(report, examples=robustness.Examples(**images))
    assert grey.plot(tmp_path)[-1].name == "examples.png"
    figure = figures.grid(grey.examples)
    assert len(figure.axes) == 24
    assert figure.axes[0].get_title() == str(first.predicted[0].item())
    assert figure.axes[16].get_xlabel() == str(first.fooled_into[0].item())
    with pytest.raises(ValueError, match="a grid needs images"):
        figures.grid(first)
    lines = figures.curves({"a": report, "b": report}).axes[0].lines
    assert [list(line.get_ydata()) for line in lines[:1]] == [
        [100 * a for a in report.fgsm.values()]
    ]


def test_limits_samples_and_keeps_its_memory(evaluated):
    net, batches, _ = evaluated
    options = {**OPTIONS, "examples": 3}
    report = robustness.evaluate(net, batches, limit=10, **options)
    assert report.samples == 10 and len(report.examples.images) == 3
    assert all(len(v) == 10 for v in report.per_sample.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fgsm_eps": (-0.1,)}, r"`fgsm_eps` must be a finite number >= 0; got -0.1"),
        ({"limit": 0}, r"`limit` must be at least 1"),
        ({"examples": -1}, r"`examples` must be at least 0"),
        ({"steps": -1}, r"`steps` must be at least 0"),
    ],
)
def test_bad_settings_are_refused_by_name(evaluated, options, message):
    net, batches, _ = evaluated
    with pytest.raises(ValueError, match=message):
        robustness.evaluate(net, batches, progress=False, **options)


def test_samples_outside_the_bounds_are_refused_and_not_clamped(evaluated):
    """Clamped samples would have another accuracy, and nobody would be told."""
    net, batches, _ = evaluated
    wide = [(x + 1, y) for x, y in batches]
    ys = [y for _, y in wide]
    with pytest.raises(ValueError, match=r"`x` must lie within `bounds`"):
        robustness.evaluate(net, wide, **OPTIONS)
    free = {**OPTIONS, "bounds": None, "jsma_steps": None}
    assert robustness.evaluate(net, wide, **free).samples == sum(map(len, ys))


@pytest.mark.parametrize("batch", [torch.rand(3, 2), (torch.rand(3, 2),), {"x": 1}])
def test_a_loader_of_anything_but_pairs_is_refused(batch):
    with pytest.raises(TypeError, match=r"loader must give batches \(x, y\)"):
        robustness.evaluate(nn.Linear(2, 2), [batch], progress=False)


def test_an_empty_loader_is_refused():
    with pytest.raises(ValueError, match="`loader` must hold at least one batch"):
        robustness.evaluate(nn.Linear(2, 2), [], progress=False)
