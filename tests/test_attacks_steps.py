"""The native steps of DeepFool and JSMA agree with their readable torch references."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastjac import native, native_steps
from fastjac.attacks.deepfool_step import deepfool_step, deepfool_step_reference
from fastjac.attacks.jsma_step import jsma_step, jsma_step_reference

needs_native = pytest.mark.skipif(
    not native.available(), reason=f"no native kernels: {native.why_not()}"
)
DTYPES = st.sampled_from([torch.float32, torch.float64])
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def deepfool_inputs(dtype, n, classes, shape, seed):
    draw = torch.Generator().manual_seed(seed)
    start = torch.rand(n, *shape, dtype=dtype, generator=draw)
    shift = 0.1 * torch.randn(n, *shape, dtype=dtype, generator=draw)
    pulled = torch.randn(n, classes - 1, *shape, dtype=dtype, generator=draw)
    # Some samples without any slope, some with one dead row.
    pulled[seed % n] = 0
    pulled[(seed + 1) % n, -1] = 0
    logits = torch.randn(n, classes, dtype=dtype, generator=draw)
    return pulled, logits, start, shift, start + shift


@needs_native
@settings(max_examples=60)
@given(
    dtype=DTYPES,
    n=st.integers(1, 9),
    classes=st.integers(2, 12),
    shape=st.sampled_from([(1,), (3,), (17,), (3, 5, 7), (1, 28, 28), (2500,)]),
    bounds=st.sampled_from([None, (0.0, 1.0), (-1.0, 0.5)]),
    norm=st.sampled_from(["l2", "linf"]),
    overshoot=st.sampled_from([0.0, 0.02, 0.5]),
    seed=st.integers(0, 2**30),
)
def test_deepfool_step_equals_its_reference(
    dtype, n, classes, shape, bounds, norm, overshoot, seed
):
    given = deepfool_inputs(dtype, n, classes, shape, seed)
    options = {"bounds": bounds, "norm": norm, "overshoot": overshoot}
    results = []
    for step in (deepfool_step, deepfool_step_reference):
        moved = [tensor.clone() for tensor in given]
        results.append((step(*moved, **options), moved[3], moved[4]))
    assert torch.equal(results[0][0], results[1][0])
    for ours, reference in zip(results[0][1:], results[1][1:], strict=True):
        scale = reference.abs().max().clamp_min(1)
        assert (ours - reference).abs().max() <= TOLERANCE[dtype] * scale


@pytest.mark.parametrize("step", [deepfool_step, deepfool_step_reference])
def test_deepfool_step_leaves_a_stuck_sample_alone(step):
    pulled, logits, start, shift, x = deepfool_inputs(torch.float64, 3, 4, (6,), 0)
    before = shift.clone(), x.clone()
    stuck = step(
        pulled, logits, start, shift, x, overshoot=0.02, bounds=None, norm="l2"
    )
    assert stuck.tolist() == [True, False, False]
    assert torch.equal(shift[0], before[0][0]) and torch.equal(x[0], before[1][0])
    assert not torch.equal(x[1], before[1][1])


@needs_native
@settings(max_examples=120)
@given(
    dtype=DTYPES,
    n=st.integers(1, 5),
    length=st.integers(1, 40),
    levels=st.sampled_from([2, 4, 1000]),
    theta=st.sampled_from([1.0, -1.0, 0.25, -0.25]),
    pixels=st.sampled_from([1, 2]),
    seed=st.integers(0, 2**30),
)
def test_jsma_step_chooses_what_the_reference_chooses(
    dtype, n, length, levels, theta, pixels, seed
):
    """Rows are small whole numbers, so that ties are common and exact."""
    draw = torch.Generator().manual_seed(seed)
    rows = torch.randint(-levels, levels + 1, (n, 2, length), generator=draw).to(dtype)
    x = torch.randint(0, 5, (n, length), generator=draw).to(dtype) / 4
    open_features = torch.rand(n, length, generator=draw) < 0.8
    results = []
    for step in (jsma_step, jsma_step_reference):
        moved = [x.clone(), open_features.clone()]
        options = {"theta": theta, "pixels": pixels, "bounds": (0.0, 1.0)}
        results.append([step(rows, *moved, **options), *moved])
    for ours, reference in zip(*results, strict=True):
        assert torch.equal(ours, reference)


def test_jsma_step_never_builds_a_square_of_features():
    """A million features: a D x D matrix of bytes alone would take a terabyte."""
    draw = torch.Generator().manual_seed(0)
    x = torch.full((1, 1_000_000), 0.5)
    rows = torch.randn(1, 2, 1_000_000, generator=draw)
    if not native.has("jsma_step", rows, x):
        pytest.skip(f"no native kernels: {native.why_not()}")
    everything = torch.ones_like(x, dtype=torch.bool)
    chosen = jsma_step(rows, x, everything, theta=0.5, pixels=2, bounds=(0.0, 1.0))
    p, q = chosen[0].tolist()
    u, v = rows[0, 0], -rows[0, 1]
    best = (u[p] + u[q]) * (v[p] + v[q])
    with_p = torch.where((u + u[p] > 0) & (v + v[p] > 0), (u + u[p]) * (v + v[p]), 0)
    with_p[p] = 0
    assert p < q and best == with_p.max()
    assert x[0, p] == x[0, q] == 1 and everything.sum() == 999_998


@needs_native
def test_the_steps_do_not_depend_on_threads():
    given = deepfool_inputs(torch.float32, 33, 10, (784,), 5)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            moved = [tensor.clone() for tensor in given]
            deepfool_step(*moved, overshoot=0.02, bounds=(0.0, 1.0), norm="l2")
            results.append(moved[4])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*results)


@needs_native
@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set_agrees_with_the_references(isa):
    if isa not in native.kernels(torch.zeros(1)).supported_isas():
        pytest.skip(f"this processor has no {isa}")
    code = (
        "import torch, test_attacks_steps as t; from fastjac import native;"
        f"assert native.isa() == {isa!r};"
        "t.test_deepfool_step_equals_its_reference();"
        "t.test_jsma_step_chooses_what_the_reference_chooses()"
    )
    places = os.pathsep.join(p for p in sys.path if p)
    environment = {**os.environ, "FASTJAC_ISA": isa, "PYTHONPATH": places}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


@needs_native
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: torch.zeros(2, 2, 4)}, r"`rows` must be \(2, 2, 5\)"),
        ({1: torch.zeros(2, 4)}, r"`rows` must be \(2, 3, 5\)"),
        ({1: torch.zeros(1, 3)}, r"`rows` must be \(1, 2, 5\)"),
        ({2: torch.zeros(1, 5)}, r"`start` must be \(2, 5\)"),
        ({3: torch.zeros(2, 4)}, r"`shift` must be \(2, 5\)"),
        ({4: torch.zeros(1, 5)}, r"`x` must be \(2, 5\)"),
        ({4: torch.zeros(2, 5).double()}, r"all float32 or all float64"),
        ({4: torch.zeros(5, 2).T}, r"not contiguous"),
    ],
)
def test_the_wrapper_refuses_tensors_that_do_not_fit(change, message):
    tensors = [
        torch.zeros(2, 2, 5),
        torch.zeros(2, 3),
        *(torch.zeros(2, 5) for _ in range(3)),
    ]
    for position, tensor in change.items():
        tensors[position] = tensor
    with pytest.raises(ValueError, match=message):
        native_steps.deepfool_step(
            *tensors, margin=0.0, overshoot=0.0, bounds=None, linf=False
        )


@needs_native
def test_one_class_or_three_pixels_are_refused():
    x, flags = torch.zeros(2, 5), torch.ones(2, 5, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"`class_count` \(=1\) must be >= 2"):
        native_steps.deepfool_step(
            torch.zeros(2, 0, 5),
            torch.zeros(2, 1),
            *(x.clone() for _ in range(3)),
            margin=0.0,
            overshoot=0.0,
            bounds=None,
            linf=False,
        )
    options = {"theta": 1.0, "bounds": (0.0, 1.0)}
    with pytest.raises(ValueError, match=r"`pixels` \(=3\) must be 1 or 2"):
        native_steps.jsma_step(torch.zeros(2, 2, 5), x, flags, pixels=3, **options)
    with pytest.raises(ValueError, match=r"`open_features` must be bool"):
        native_steps.jsma_step(torch.zeros(2, 2, 5), x, x.clone(), pixels=1, **options)
