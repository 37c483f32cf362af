"""The CUDA steps of DeepFool and JSMA, run by the stand-in, against references."""

from types import ModuleType

import numpy as np
import pytest
import torch
from cuda_standin import device as standin
from cuda_standin.device import Device
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_attacks_steps import TOLERANCE, deepfool_inputs
from test_cuda_kernels import launch_on

from fastjac.attacks.deepfool_step import MARGIN, deepfool_step_reference
from fastjac.attacks.jsma_step import jsma_step_reference

DTYPES = {torch.float32: np.float32, torch.float64: np.float64}


@pytest.fixture(scope="module")
def module() -> ModuleType:
    return standin.load()


def run_deepfool_step(
    module, seed, tensors, *, bounds, norm, overshoot, offset=0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The CUDA kernel on copies; returns stuck, shift and x."""
    rows, logits, start, shift, x = (t.numpy() for t in tensors)
    samples, classes = logits.shape
    device = Device(module, seed)
    moved = device.inout("shift", shift, offset), device.inout("x", x, offset)
    stuck = device.output("stuck", (samples,), np.bool_)
    module.deepfool_step(
        rows=device.input("rows", rows, offset),
        logits=device.input("logits", logits, offset),
        start=device.input("start", start, offset),
        shift=moved[0].address,
        x=moved[1].address,
        stuck=stuck.address,
        sizes=device.workspace("sizes", (samples, classes), np.float64),
        samples=samples,
        class_count=classes,
        row_length=start[0].size,
        margin=MARGIN,
        overshoot=overshoot,
        low=0.0 if bounds is None else bounds[0],
        high=0.0 if bounds is None else bounds[1],
        bounded=bounds is not None,
        linf=norm == "linf",
        **launch_on(module, rows.dtype.type),
    )
    return device.result(stuck), moved[0].array.copy(), moved[1].array.copy()


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**30),
    dtype=st.sampled_from(list(DTYPES)),
    n=st.integers(1, 6),
    classes=st.integers(2, 40),
    shape=st.sampled_from([(1,), (3,), (17,), (3, 5, 7), (300,), (1, 28, 28)]),
    bounds=st.sampled_from([None, (0.0, 1.0), (-1.0, 0.5)]),
    norm=st.sampled_from(["l2", "linf"]),
    overshoot=st.sampled_from([0.0, 0.02, 0.5]),
    offset=st.integers(0, 3),
)
def test_deepfool_step_equals_its_reference(
    module, seed, dtype, n, classes, shape, bounds, norm, overshoot, offset
) -> None:
    tensors = deepfool_inputs(dtype, n, classes, shape, seed)
    options = {"bounds": bounds, "norm": norm, "overshoot": overshoot}
    found = run_deepfool_step(module, seed, tensors, **options, offset=offset)
    expected = [tensor.clone() for tensor in tensors]
    stuck = deepfool_step_reference(*expected, **options)
    np.testing.assert_array_equal(found[0], stuck.numpy())
    for ours, reference in zip(found[1:], expected[3:], strict=True):
        scale = reference.abs().max().clamp_min(1).item()
        assert np.abs(ours - reference.numpy()).max() <= TOLERANCE[dtype] * scale


def test_deepfool_step_is_the_same_to_the_bit_in_every_order(module) -> None:
    tensors = deepfool_inputs(torch.float32, 3, 12, (700,), 1)
    options = {"bounds": (0.0, 1.0), "norm": "l2", "overshoot": 0.02}
    found = {
        run_deepfool_step(module, s, tensors, **options)[2].tobytes() for s in (1, 2, 3)
    }
    assert len(found) == 1


def test_of_equally_near_boundaries_the_first_is_crossed(module) -> None:
    """As on the CPU and in the reference: forty classes, all at the same distance."""
    rows = torch.zeros(1, 39, 64)
    rows[0, torch.arange(39), torch.arange(1, 40)] = 2.0
    start = torch.zeros(1, 64)
    tensors = rows, torch.ones(1, 40), start, start.clone(), start.clone()
    tensors[1][0, 0] = 2.0
    stuck, shift, _ = run_deepfool_step(
        module, 0, tensors, bounds=None, norm="l2", overshoot=0.0
    )
    assert not stuck[0] and np.flatnonzero(shift[0]).tolist() == [1]


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**30),
    dtype=st.sampled_from(list(DTYPES)),
    n=st.integers(1, 5),
    length=st.integers(1, 700),
    levels=st.sampled_from([2, 4, 1000]),
    theta=st.sampled_from([1.0, -1.0, 0.25, -0.25]),
    pixels=st.sampled_from([1, 2]),
    correlation=st.sampled_from([-1, 0, 1]),
    offset=st.integers(0, 3),
)
@example(
    seed=0, dtype=torch.float32, n=2, length=400, levels=1000, theta=1.0, pixels=2,
    correlation=-1, offset=0,
)  # fmt: skip
def test_jsma_step_chooses_what_the_reference_chooses(
    module, seed, dtype, n, length, levels, theta, pixels, correlation, offset
) -> None:
    """Rows are small whole numbers, so that ties are common and exact.

    Where the two rows rise together (correlation 1) no feature dominates another, and
    the lists are as long as they can be.
    """
    draw = torch.Generator().manual_seed(seed)
    rows = torch.randint(-levels, levels + 1, (n, 2, length), generator=draw).to(dtype)
    if correlation:
        rows[:, 1] = correlation * rows[:, 0]
    x = torch.randint(0, 5, (n, length), generator=draw).to(dtype) / 4
    open_features = torch.rand(n, length, generator=draw) < 0.8
    device = Device(module, seed)
    moved = (
        device.inout("x", x.numpy(), offset),
        device.inout("open", open_features.numpy()),
    )
    chosen = device.output("chosen", (n, pixels), np.int64)
    module.jsma_step(
        rows=device.input("rows", rows.numpy(), offset),
        x=moved[0].address,
        open=moved[1].address,
        chosen=chosen.address,
        strong=device.workspace(
            "strong", (n, length) if pixels == 2 else (0,), np.int64
        ),
        samples=n,
        row_length=length,
        pixels=pixels,
        theta=theta,
        low=0.0,
        high=1.0,
        **launch_on(module, DTYPES[dtype]),
    )
    expected = jsma_step_reference(
        rows, x, open_features, theta=theta, pixels=pixels, bounds=(0.0, 1.0)
    )
    np.testing.assert_array_equal(device.result(chosen), expected.numpy())
    np.testing.assert_array_equal(moved[0].array, x.numpy())
    np.testing.assert_array_equal(moved[1].array, open_features.numpy())


def test_the_bindings_refuse_what_the_cpu_ones_refuse(module) -> None:
    sizes = {"samples": 0, "row_length": 1, "low": 0.0, "high": 1.0}
    null = dict.fromkeys(("rows", "logits", "start", "shift", "x", "stuck", "sizes"), 0)
    options = {"margin": 0.0, "overshoot": 0.0, "bounded": False, "linf": False}
    where = launch_on(module, np.float32)
    with pytest.raises(ValueError, match=r"`class_count` \(=1\) must be >= 2"):
        module.deepfool_step(class_count=1, **sizes, **null, **options, **where)
    module.deepfool_step(class_count=2, **sizes, **null, **options, **where)
    with pytest.raises(ValueError, match=r"`start` is null but must hold elements"):
        sizes["samples"], null["rows"], null["logits"] = 1, 256, 256
        module.deepfool_step(class_count=2, **sizes, **null, **options, **where)
    null = dict.fromkeys(("rows", "x", "open", "chosen", "strong"), 0)
    with pytest.raises(ValueError, match=r"`pixels` \(=3\) must be 1 or 2"):
        module.jsma_step(pixels=3, theta=1.0, **sizes, **null, **where)
