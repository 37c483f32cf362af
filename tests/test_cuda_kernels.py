"""The CUDA kernels that ship, run by the stand-in, against torch and NumPy."""

import math
from collections.abc import Iterator
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from checks import take_path
from cuda_standin import device as standin
from cuda_standin.device import Device
from hypothesis import given
from hypothesis import strategies as st

from fastjac import gate_pool, native, native_norms

DTYPES = [np.float32, np.float64]


@pytest.fixture(scope="module")
def module() -> ModuleType:
    return standin.load()


def launch_on(module: ModuleType, dtype: type) -> dict[str, object]:
    kind = module.DType.float32 if dtype == np.float32 else module.DType.float64
    return {"dtype": kind, "device": 0, "stream": 0}


def rng_from(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


# ---- the kernels that ship


@given(
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from(DTYPES),
    row_count=st.integers(1, 19),
    length=st.integers(1, 700),
    positive=st.booleans(),
    in_place=st.booleans(),
    samples=st.sampled_from([1, 1, 2, 5]),
    offset=st.integers(0, 5),
)
def test_gate_rows_is_the_product_with_the_shared_gate(
    module, seed, dtype, row_count, length, positive, in_place, samples, offset
) -> None:
    """Rows may be shared by samples, whose gates differ."""
    rng = rng_from(seed)
    rows = rng.standard_normal((row_count, length)).astype(dtype)
    length, in_place = length * samples, in_place and samples == 1
    gate = rng.standard_normal(length).astype(dtype) * rng.integers(0, 2, length)
    gate = gate.astype(dtype)
    device = Device(module, seed)
    if in_place:
        out = device.inout("out", rows, offset)
        address = out.address
    else:
        out = device.output("out", (row_count, length), dtype, offset)
        address = device.input("rows", rows, offset)
    module.gate_rows(
        rows=address,
        gate=device.input("gate", gate, offset),
        out=out.address,
        row_count=row_count,
        length=length,
        period=length // samples,
        positive=positive,
        **launch_on(module, dtype),
    )
    rows = np.tile(rows, samples)
    expected = np.where(gate > 0, rows, 0) if positive else rows * gate
    np.testing.assert_array_equal(device.result(out), expected)


@given(
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from(DTYPES),
    row_count=st.integers(1, 4),
    samples=st.integers(1, 20),
    length=st.integers(1, 70),
    positive=st.booleans(),
)
def test_gated_sum_adds_up_gated_tangents(
    module, seed, dtype, row_count, samples, length, positive
) -> None:
    rng = rng_from(seed)
    tangents = rng.standard_normal((row_count, samples, length)).astype(dtype)
    gate = rng.standard_normal((samples, length)).astype(dtype)
    device = Device(module, seed)
    out = device.output("out", (row_count, length), dtype)
    module.gated_sum(
        tangents=device.input("tangents", tangents),
        gate=device.input("gate", gate),
        out=out.address,
        row_count=row_count,
        samples=samples,
        length=length,
        positive=positive,
        **launch_on(module, dtype),
    )
    factor = (gate > 0) if positive else gate
    expected = (tangents.astype(np.float64) * factor).sum(1)
    close = 1e-12 if dtype == np.float64 else 1e-5
    np.testing.assert_allclose(device.result(out), expected, rtol=0, atol=20 * close)


@st.composite
def pools(draw) -> tuple[tuple[int, ...], tuple, list[gate_pool.PoolAxis]]:
    """An input (planes, *inputs), the pool's function, its axes."""
    spatial = draw(st.integers(1, 3))
    planes = draw(st.integers(1, 4))
    limit = {1: 40, 2: 12, 3: 6}[spatial]

    def each(low: int, high: int) -> list[int]:
        return [draw(st.integers(low, high)) for _ in range(spatial)]

    adaptive = [F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d]
    plain = [F.max_pool1d, F.max_pool2d, F.max_pool3d]
    if draw(st.booleans()):
        inputs, outputs = each(1, limit), each(1, limit)
        axes = list(map(gate_pool.PoolAxis, inputs, outputs))

        def pool(x: torch.Tensor):
            return adaptive[spatial - 1](x, outputs, return_indices=True)

        return (planes, *inputs), pool, axes
    kernel, stride, dilation = each(1, 4), each(1, 4), each(1, 2)
    padding = [draw(st.integers(0, k // 2)) for k in kernel]
    extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    inputs = [draw(st.integers(max(1, e), max(limit, e))) for e in extent]
    ceil = draw(st.booleans())

    def pool(x: torch.Tensor):
        return plain[spatial - 1](
            x, kernel, stride, padding, dilation, ceil, return_indices=True
        )

    outputs = pool(torch.zeros(1, *inputs))[0].shape[1:]
    axes = gate_pool.pool_axes(inputs, outputs, kernel, stride, padding, dilation)
    return (planes, *inputs), pool, axes


@given(
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from(DTYPES),
    row_count=st.integers(1, 11),
    pool=pools(),
    gate=st.sampled_from(["none", "positive", "factor"]),
    offset=st.integers(0, 3),
)
def test_unpool_rows_is_the_transpose_of_the_pool(
    module, seed, dtype, row_count, pool, gate, offset
) -> None:
    shape, function, axes = pool
    rng = rng_from(seed)
    # Few values, so that windows have ties and share winners.
    x = torch.from_numpy(rng.integers(0, 3, shape).astype(dtype))
    _, indices = function(x)
    planes, pooled, size = shape[0], indices[0].numel(), math.prod(shape[1:])
    rows = rng.standard_normal((row_count, planes, pooled)).astype(dtype)
    device = Device(module, seed)
    gates = rng.standard_normal((planes, size)).astype(dtype)
    out = device.output("out", (row_count, planes, size), dtype, offset)
    module.unpool_rows(
        rows=device.input("rows", rows, offset),
        indices=device.input("indices", indices.numpy()),
        gate=0 if gate == "none" else device.input("gate", gates, offset),
        positive=gate == "positive",
        out=out.address,
        axes=[gate_pool.PoolAxis(1, 1)] * (3 - len(axes)) + axes,
        row_count=row_count,
        planes=planes,
        **launch_on(module, dtype),
    )
    # One after the other in ascending p, which the kernel promises to the bit.
    expected = np.zeros((row_count, planes, size), dtype)
    flat = indices.reshape(planes, pooled).numpy()
    for plane in range(planes):
        for p in range(pooled):
            expected[:, plane, flat[plane, p]] += rows[:, plane, p]
    if gate != "none":
        expected *= (gates > 0).astype(dtype) if gate == "positive" else gates
    np.testing.assert_array_equal(device.result(out), expected)


@given(
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from(DTYPES),
    row_count=st.integers(1, 19),
    planes=st.integers(1, 5),
    pooled=st.integers(1, 150),
    size=st.integers(1, 300),
    gate=st.sampled_from(["none", "positive", "factor"]),
)
def test_pool_tangents_gathers_the_winners(
    module, seed, dtype, row_count, planes, pooled, size, gate
) -> None:
    rng = rng_from(seed)
    tangents = rng.standard_normal((row_count, planes, size)).astype(dtype)
    indices = rng.integers(0, size, (planes, pooled))
    device = Device(module, seed)
    gates = rng.standard_normal((planes, size)).astype(dtype)
    out = device.output("out", (row_count, planes, pooled), dtype)
    module.pool_tangents(
        tangents=device.input("tangents", tangents),
        indices=device.input("indices", indices),
        gate=0 if gate == "none" else device.input("gate", gates),
        positive=gate == "positive",
        out=out.address,
        row_count=row_count,
        planes=planes,
        pooled=pooled,
        input=size,
        **launch_on(module, dtype),
    )
    if gate != "none":
        tangents = tangents * (
            (gates > 0).astype(dtype) if gate == "positive" else gates
        )
    expected = np.take_along_axis(tangents, indices[None], axis=2)
    np.testing.assert_array_equal(device.result(out), expected)


@given(
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from(DTYPES),
    row_count=st.integers(1, 7),
    samples=st.integers(1, 5),
    row_length=st.one_of(st.integers(1, 100), st.integers(2040, 2060)),
    weighted=st.booleans(),
    offset=st.integers(0, 3),
)
def test_squared_norms_are_exact_in_double(
    module, seed, dtype, row_count, samples, row_length, weighted, offset
) -> None:
    rng = rng_from(seed)
    rows = rng.standard_normal((row_count, samples, row_length)).astype(dtype)
    weights = rng.random(row_count)
    pieces = -(-row_length // module.SQUARED_NORMS_PIECE)
    device = Device(module, seed)
    out = device.output("norms", (samples,), np.float64)
    module.squared_norms(
        rows=device.input("rows", rows, offset),
        weights=device.input("weights", weights) if weighted else 0,
        partials=device.workspace("partials", (row_count, samples, pieces), np.float64),
        norms=out.address,
        row_count=row_count,
        samples=samples,
        row_length=row_length,
        **launch_on(module, dtype),
    )
    factors = weights if weighted else np.ones(row_count)
    expected = np.einsum("r,rnm->n", factors, rows.astype(np.float64) ** 2)
    np.testing.assert_allclose(device.result(out), expected, rtol=1e-13)


WATCHED = {
    torch.float32: np.float32,
    torch.float64: np.float64,
    torch.float16: np.float16,
    torch.bfloat16: np.int16,
}


@given(
    seed=st.integers(0, 2**32 - 1),
    held=st.sampled_from(list(WATCHED)),
    row_count=st.integers(1, 4),
    samples=st.integers(1, 5),
    row_length=st.one_of(st.integers(1, 60), st.integers(2040, 2060)),
    watched=st.sampled_from(list(WATCHED)),
    bad=st.sampled_from([None, float("nan"), float("inf"), -float("inf")]),
    parts=st.integers(1, 2),
)
def test_norms_and_totals_in_several_parts(
    module, seed, held, row_count, samples, row_length, watched, bad, parts
) -> None:
    """Rows in every type; a logit that is not finite makes its sample's norm NaN."""
    rng = rng_from(seed)
    shape = (parts, row_count, samples, row_length)
    rows = torch.from_numpy(rng.standard_normal(shape)).to(held)
    logits = torch.from_numpy(rng.standard_normal((samples, 3))).to(watched)
    if bad is not None:
        logits[seed % samples, seed % 3] = bad
    device = Device(module, seed)

    def bits(values: torch.Tensor) -> np.ndarray:
        if values.dtype == torch.bfloat16:
            values = values.view(torch.int16)
        return values.numpy()

    kind = np.float64 if held == torch.float64 else np.float32
    norms = device.inout("norms", np.zeros(samples))
    totals = device.output("totals", (3,), kind)
    pieces = -(-row_length // module.SQUARED_NORMS_PIECE)
    size = (row_count, samples, pieces)
    names = {dtype: str(dtype).removeprefix("torch.") for dtype in WATCHED}
    watch = device.input("logits", bits(logits))
    for part in range(parts):
        module.squared_norms_and_totals(
            rows=device.input(f"rows {part}", bits(rows[part].contiguous())),
            partials=device.workspace(f"partials {part}", size, np.float64),
            norms=norms.address,
            row_count=row_count,
            first=0,
            samples=samples,
            all_samples=samples,
            row_length=row_length,
            add=True,
            watch=watch,
            watch_each=3,
            watch_dtype=getattr(module.DType, names[watched]),
            totals=totals.address,
            dtype=getattr(module.DType, names[held]),
            device=0,
            stream=0,
        )
    expected = rows.double().square().sum((0, 1, 3))
    if bad is not None:
        expected[seed % samples] = float("nan")
    total = expected.sum()
    np.testing.assert_allclose(norms.array, expected, rtol=1e-13)
    whole = torch.stack([total, total.sqrt(), total.rsqrt()])
    close = 1e-13 if kind == np.float64 else 1e-6
    np.testing.assert_allclose(device.result(totals), whole, rtol=close)


def test_one_over_the_root_of_nothing_is_zero(module: ModuleType) -> None:
    device = Device(module)
    totals = device.output("totals", (3,), np.float32)
    module.squared_norms_and_totals(
        rows=device.input("rows", np.zeros((1, 2, 3), np.float32)),
        partials=device.workspace("partials", (2,), np.float64),
        norms=device.workspace("norms", (2,), np.float64),
        row_count=1,
        first=0,
        samples=2,
        all_samples=2,
        row_length=3,
        add=False,
        watch=0,
        watch_each=0,
        watch_dtype=module.DType.float32,
        totals=totals.address,
        **launch_on(module, np.float32),
    )
    assert device.result(totals).tolist() == [0, 0, 0]


def test_the_result_is_the_same_to_the_bit_in_every_order(module: ModuleType) -> None:
    rows = rng_from(0).standard_normal((5, 3, 5000)).astype(np.float32)
    found = set()
    for seed in range(5):
        device = Device(module, seed, most_blocks=seed + 1)
        out = device.output("norms", (3,), np.float64)
        module.squared_norms(
            rows=device.input("rows", rows),
            weights=0,
            partials=device.workspace("partials", (5, 3, 3), np.float64),
            norms=out.address,
            row_count=5,
            samples=3,
            row_length=5000,
            **launch_on(module, np.float32),
        )
        found.add(device.result(out).tobytes())
    assert len(found) == 1


# ---- the wrappers, with the stand-in in place of the CUDA half


@pytest.fixture
def on_standin() -> Iterator[None]:
    """Wrappers take CPU tensors and run the CUDA kernels on them."""
    with take_path("standin"):
        yield


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wrappers_agree_with_torch(on_standin: None, dtype: torch.dtype) -> None:
    x = torch.randn(3, 4, 7, 9, dtype=dtype)
    pooled, indices = F.max_pool2d(x, 3, 2, 1, return_indices=True)
    axes = gate_pool.pool_axes((7, 9), pooled.shape[2:], (3, 3), (2, 2), (1, 1), (1, 1))
    rows = torch.randn(10, *pooled.shape, dtype=dtype)

    gated = gate_pool.gate_rows(rows, pooled, positive=True)
    torch.testing.assert_close(gated, rows * (pooled > 0))
    torch.testing.assert_close(
        gate_pool.gate_rows(rows, pooled, positive=False), rows * pooled
    )
    assert gate_pool.gate_rows(gated, pooled, positive=True, out=gated) is gated

    unpooled = gate_pool.unpool_rows(rows, indices, axes)
    index = indices.flatten(-2).expand(10, 3, 4, -1)
    expected = torch.zeros(10, 3, 4, 63, dtype=dtype)
    expected.scatter_add_(-1, index, rows.flatten(-2))
    torch.testing.assert_close(unpooled.flatten(-2), expected)

    tangents = torch.randn(10, *x.shape, dtype=dtype)
    pushed = gate_pool.pool_tangents(tangents, indices, spatial=2)
    torch.testing.assert_close(
        pushed.flatten(-2), tangents.flatten(-2).gather(-1, index)
    )
    # <unpool(rows), tangents> = <rows, pool(tangents)>
    torch.testing.assert_close((unpooled * tangents).sum(), (rows * pushed).sum())

    norms = native_norms.squared_norms(
        tangents, torch.arange(10.0, dtype=torch.float64)
    )
    squares = tangents.double().square().sum((2, 3, 4))
    torch.testing.assert_close(norms, torch.arange(10.0, dtype=torch.float64) @ squares)


def test_wrappers_take_empty_tensors(on_standin: None) -> None:
    rows = torch.randn(4, 0, 3)
    assert gate_pool.gate_rows(rows, rows[0], positive=True).shape == (4, 0, 3)
    assert native_norms.squared_norms(rows).shape == (0,)
    assert native_norms.squared_norms(torch.empty(0, 2, 3)).tolist() == [0, 0]


def test_wrappers_name_what_does_not_fit(on_standin: None) -> None:
    rows, indices = torch.zeros(2, 3, 4), torch.zeros(3, 4, dtype=torch.int64)
    axis = gate_pool.PoolAxis(8, 4, 2, 2)
    with pytest.raises(ValueError, match=r"`gate` \(4,\) must have the shape of a row"):
        gate_pool.gate_rows(rows, rows[0, 0], positive=True)
    with pytest.raises(ValueError, match="all float32 or all float64; got"):
        gate_pool.gate_rows(rows, rows[0].double(), positive=True)
    with pytest.raises(ValueError, match="not contiguous"):
        gate_pool.gate_rows(rows.mT, rows[0], positive=True)
    with pytest.raises(ValueError, match="`indices` must be int64, got torch.int32"):
        gate_pool.unpool_rows(rows, indices.int(), [axis])
    with pytest.raises(ValueError, match=r"`axes`: outputs \(5,\) must have the shape"):
        gate_pool.unpool_rows(rows, indices, [axis._replace(output=5)])
    with pytest.raises(ValueError, match="`axes` must be one to three PoolAxis, got 0"):
        gate_pool.unpool_rows(rows, indices, [])
    with pytest.raises(ValueError, match=r"input` \(=0\) must be > 0"):
        gate_pool.unpool_rows(rows, indices, [axis._replace(input=0)])
    with pytest.raises(ValueError, match=r"`spatial` \(=4\) must be 1, 2 or 3"):
        gate_pool.pool_tangents(rows, indices, 4)
    with pytest.raises(ValueError, match=r"`weights` must be \(2,\) float64"):
        native_norms.squared_norms(rows, torch.ones(3, dtype=torch.float64))


def test_without_a_gpu_the_cuda_wrappers_say_so() -> None:
    if native.cuda_available():
        pytest.skip("there is a GPU")
    rows = torch.zeros(2, 3)
    assert not native.has("gate_rows", rows, rows[0])
    assert native.cuda_why_not()
