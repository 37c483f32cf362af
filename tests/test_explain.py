"""What `explain` says: operations, bytes, time, and every operation without a rule."""

from __future__ import annotations

import io
import json
import time
from typing import Any

import pytest
import torch
from nets import images, small_conv
from torch import Tensor, nn

import fastjac
from fastjac import fewer_rows, native
from fastjac.cli import main
from fastjac.rules import gated
from fastjac.rules.gated import GatedLayer


def wide() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 5), nn.Linear(5, 20))


def deep() -> nn.Sequential:
    """Two gated convolutions, so that tangents are pushed through the first."""
    return nn.Sequential(
        nn.Conv2d(2, 16, 3),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 16, 4),
    )


def test_operations_and_bytes_are_those_of_the_products() -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.Flatten(), nn.Linear(48, 4)
    )
    model[2].weight.requires_grad_(False)
    steps = fastjac.explain(model, images(5, torch.float32)).steps
    conv, linear = steps[0], steps[-1]
    rows, samples = 4, 5
    assert conv.operations == 2 * 3 * rows * samples * (4 * 4) * (3 * 2 * 3 * 3)
    assert conv.bytes == 4 * rows * samples * 2 * 8 * 8
    assert linear.operations == 2 * 2 * rows * samples * 48 * 4, "frozen: two passes"
    assert linear.bytes == 4 * rows * samples * 48


def test_a_gated_layer_counts_what_is_live() -> None:
    if not native.available():
        pytest.skip(f"no native kernels: {native.why_not()}")
    (*_, head) = fastjac.explain(small_conv(), images(5, torch.float32)).steps
    assert head.density is not None
    assert 0 < head.density < 1
    assert f"gated, {head.density:.0%}" in head.runs


def test_profile_divides_the_time() -> None:
    model, x = small_conv(), images(5, torch.float32)
    steps = fastjac.explain(model, x, profile=True).steps
    times = [step.time for step in steps]
    assert sum(times) == pytest.approx(1)
    assert all(time >= 0 for time in times)
    assert "of time" in str(fastjac.explain(model, x, profile=True))
    assert all(step.time is None for step in fastjac.explain(model, x).steps)


@pytest.mark.parametrize(
    "of, slow", [(GatedLayer, "run_pass"), (gated, "room_for")], ids=["passes", "room"]
)
def test_profile_counts_a_push_that_comes_with_a_gradient(
    of: Any, slow: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not native.available():
        pytest.skip(f"no native kernels: {native.why_not()}")
    whole = getattr(of, slow)

    def slowly(*args: Any, **options: Any) -> Any:
        time.sleep(0.1)
        return whole(*args, **options)

    monkeypatch.setattr(of, slow, slowly)
    steps = fastjac.explain(deep(), images(5, torch.float32), profile=True).steps
    times = [step.time for step in steps if "gated" in step.runs and step.time]
    assert sum(times) > 0.8


def test_it_says_when_fewer_rows_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fewer_rows.PRICE, "cpu", 0.0)
    found = fastjac.explain(wide(), torch.randn(3, 6))
    assert found.rows == 5
    assert "5 rows instead of 20 for each of 3 samples" in str(found)


def test_every_operation_without_a_rule_is_listed() -> None:
    def model(x: Tensor) -> Tensor:
        return x.cumprod(1).sort(1).values.logcumsumexp(1)

    found = fastjac.explain(model, torch.rand(2, 5))
    names = {one.operation for one in found.missing}
    assert names >= {"CumprodBackward0", "LogcumsumexpBackward0"}
    for one in found.missing:
        assert one.advice
        assert f'File "{__file__}"' in one.where
        assert one.operation in str(found)
    assert found.backend == "autograd"
    assert found.reason is not None


class Normed(nn.Module):
    def __init__(self, last: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU())
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.body(x).flatten(1))[:, :3]


def test_it_says_that_batch_statistics_are_constants() -> None:
    console = pytest.importorskip("rich.console")
    model, x = Normed(nn.Identity()).train(), images(4, torch.float32)
    before = {name: b.clone() for name, b in model.named_buffers()}
    found = fastjac.explain(model, x)
    (note,) = found.notes
    assert "in module body.1 (BatchNorm2d)" in note
    assert "its batch statistics are taken as constants" in note
    assert "batch_statistics='error'" in note
    assert found.as_dict()["notes"] == [note]
    out = io.StringIO()
    console.Console(file=out, width=80).print(found)
    for text in (str(found), out.getvalue()):
        assert "taken as constants" in " ".join(text.split())
        assert "Note: NativeBatchNormBackward0" in text
    assert all(torch.equal(before[name], b) for name, b in model.named_buffers())
    assert fastjac.explain(model.eval(), x).notes == []


class Cumulated(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.cumprod(1)


def test_it_says_that_a_fallback_differentiates_batch_statistics() -> None:
    model, x = Normed(Cumulated()).train(), images(4, torch.float32)
    found = fastjac.explain(model, x)
    assert found.backend == "autograd"
    assert "differentiates the batch statistics" in " ".join(str(found).split())
    assert fastjac.explain(model.eval(), x).notes == []


def test_as_data_and_as_a_table() -> None:
    found = fastjac.explain(small_conv(), images(2, torch.float32))
    data = json.loads(json.dumps(found.as_dict()))
    assert data["rows"] == 4
    assert data["missing"] == []
    assert data["steps"][0]["operations"] == found.steps[0].operations
    console = pytest.importorskip("rich.console")
    out = io.StringIO()
    console.Console(file=out, width=80).print(found)
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert any("FLOP" in line for line in lines)


def test_the_command_fits_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "--model", "mnist", "--batch-size", "2", "--profile"]) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    assert "% of time" in printed
    assert main(["explain", "--model", "digits", "--batch-size", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["backend"] == "fused"
