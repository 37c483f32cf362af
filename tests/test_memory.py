"""Chunks from a memory budget, and what happens where memory runs out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import peak
import pytest
import torch
from checks import compare, seeded_build
from nets import images, mlp, small_conv

import fastjac
from fastjac import budget, chunks, native
from fastjac.edges import Edge
from fastjac.rules.gated import GatedLayer
from fastjac.rules.head import GatedHead
from fastjac.sweep import Sweep

HERE = Path(__file__).parent


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "_budget", None)
    monkeypatch.setattr(budget, "_learned", {})


@pytest.fixture
def large_chunks(monkeypatch: pytest.MonkeyPatch, clean: None) -> None:
    """For speed everything at once, so that only the budget can make chunks."""
    for table in (chunks.CHUNK_BYTES, chunks.DENSE_CHUNK_BYTES):
        monkeypatch.setitem(table, "cpu", 1 << 40)


def sweep_of(rows: int = 4, chunk: int | None = None) -> Sweep:
    x = images(6).requires_grad_()
    linearization = fastjac.linearize(small_conv().double()(x), x)
    return Sweep(linearization, torch.randn(rows, 4).double(), chunk)


def largest(sweep: Sweep) -> int:
    return max(chunk.pairs for chunk in sweep.chunks)


# ---- the budget


def test_a_smaller_budget_makes_smaller_chunks(large_chunks: None) -> None:
    sizes = []
    for kibibytes in (10_000, 300, 100, 1):
        with fastjac.memory_budget(kibibytes << 10):
            sizes.append(largest(sweep_of()))
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 24
    assert 1 < sizes[1] < 24
    assert sizes[-1] == 1


def test_the_penalty_is_the_same_under_any_budget(large_chunks: None) -> None:
    build = seeded_build(small_conv)
    for kibibytes in (1, 150, 10_000):
        with fastjac.memory_budget(kibibytes << 10):
            compare(build, images(3), chunk="auto", dtypes=[torch.float64])


def test_auto_is_the_default(clean: None) -> None:
    x = torch.randn(4, 7).double()
    model = mlp().double()
    assert fastjac.jacobian_penalty(model, x, chunk="auto").equal(
        fastjac.jacobian_penalty(model, x)
    )


def test_a_budget_ends_with_its_block(clean: None) -> None:
    fastjac.memory_budget(1 << 30)
    with pytest.raises(KeyError), fastjac.memory_budget(1 << 20):
        assert budget._budget == 1 << 20
        raise KeyError
    assert budget._budget == 1 << 30
    fastjac.memory_budget(None)
    assert budget._budget is None


@pytest.mark.parametrize(
    ("limit", "error", "message"),
    [
        (0, ValueError, "`limit` must be at least 1 byte; got 0"),
        (-5, ValueError, "`limit` must be at least 1 byte; got -5"),
        (2e9, TypeError, r"whole number of bytes, such as 2 << 30.*got 2000000000\.0"),
        ("2GiB", TypeError, "whole number of bytes.*got '2GiB'"),
    ],
)
def test_a_budget_that_is_none(clean: None, limit, error, message: str) -> None:
    with pytest.raises(error, match=message):
        fastjac.memory_budget(limit)
    assert budget._budget is None


def test_without_a_budget_half_of_what_is_free_is_taken(
    large_chunks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "MODEST", 0)
    monkeypatch.setattr(budget, "free_bytes", lambda device: 600 << 10)
    without = largest(sweep_of())
    with fastjac.memory_budget(300 << 10):
        assert largest(sweep_of()) == without
    assert 1 < without < 24


def test_what_is_free_is_the_least_of_all_limits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cpu = torch.device("cpu")
    assert 0 < budget.free_bytes(cpu) < 1 << 50
    for name, left in (("_available", 3), ("_left_in_group", 2)):
        monkeypatch.setattr(budget, name, lambda left=left: left << 20)
        assert budget.free_bytes(cpu) <= left << 20
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("400000\n")
    monkeypatch.undo()
    assert budget._left_in_group(str(tmp_path)) == 600_000
    (tmp_path / "memory.max").write_text("max\n")
    assert budget._left_in_group(str(tmp_path)) is None


def test_a_chunk_lists_the_live_outputs_of_its_own_samples_alone() -> None:
    if not native.available():
        pytest.skip(f"no native kernels: {native.why_not()}")
    sweep = sweep_of(chunk=8)
    gated = [
        rule.hidden if isinstance(rule, GatedHead) else rule
        for rule in sweep.linearization.rules
        if isinstance(rule, GatedLayer | GatedHead)
    ]
    listed = []
    whole = [layer.live for layer in gated]
    narrowed = sweep.linearization.narrowed

    def watched(start: int, stop: int) -> list[Edge]:
        listed.append(stop - start)
        return narrowed(start, stop)

    sweep.linearization.narrowed = watched  # type: ignore[method-assign]
    sweep.squared_norms_and_gradients(sweep.linearization.weights, False)
    assert gated and listed == [2, 2, 2]
    assert all("listing" not in vars(live) for live in whole)


# ---- measured

CASE = {"width": 32, "shape": [3, 64, 64], "samples": 4}


def test_the_peak_is_within_the_budget() -> None:
    at_once = peak.of_penalty(**CASE, classes=32, best=100_000, budget=100_000)
    within = peak.of_penalty(**CASE, classes=32, best=100_000, budget=100)
    assert 30 < within <= 100 < at_once


def test_a_thousand_classes_take_what_a_hundred_take() -> None:
    hundred, thousand = (peak.of_penalty(**CASE, classes=k) for k in (100, 1000))
    assert thousand <= 1.2 * hundred


# ---- out of memory


def out_of_memory(**case: object) -> dict:
    """What `starved.py` found in a process whose address space is limited."""
    done = subprocess.run(
        [sys.executable, str(HERE / "starved.py"), json.dumps(case)],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "MALLOC_MMAP_THRESHOLD_": "65536",
        },
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("path", ["native", "torch"])
def test_a_failed_chunk_leaves_nothing_behind(path: str, reduction: str) -> None:
    """Memory runs out behind the first chunk's gradients: value and gradients hold."""
    found = out_of_memory(path=path, reduction=reduction, at=2)
    assert found["failures"] == 1
    assert found["value_error"] < 1e-10
    assert found["gradient_error"] < 1e-10
    assert found["grad_enabled"]
    (warning,) = found["warnings"]
    assert "ran out of memory on cpu with" in warning
    assert "fastjac.memory_budget(bytes)" in warning
    assert found["chunks"][1] <= found["chunks"][0] / 4


def test_later_steps_stay_at_the_smaller_chunks() -> None:
    found = out_of_memory(path="native", reduction="sum", at=1, steps=3)
    assert found["failures"] == 1
    assert len(found["warnings"]) == 1
    assert found["gradient_error"] < 1e-10


def test_a_chunk_that_was_asked_for_is_obeyed() -> None:
    found = out_of_memory(path="native", reduction="sum", at=2, chunk=64)
    assert "memory" in found["raised"]
    assert found["warnings"] == []
    assert found["grad_enabled"]


def test_other_errors_are_no_want_of_memory() -> None:
    assert budget.out_of_memory(MemoryError())
    assert budget.out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert not budget.out_of_memory(RuntimeError("shapes do not match"))
    assert not budget.out_of_memory(ValueError("out of memory"))


def test_an_error_leaves_autograd_on() -> None:
    """Also while the error, and with it the sweep's frames, is held."""
    sweep = sweep_of(chunk=3)
    sweep.seeds = sweep.seeds[:, :2]
    with pytest.raises(RuntimeError) as held:
        sweep.squared_norms()
    assert torch.is_grad_enabled()
    assert held.value is not None
