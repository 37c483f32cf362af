"""The gated convolution's CUDA kernels, run by the stand-in, against torch."""

from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from cuda_standin import device as standin
from cuda_standin.device import Device
from gated_case import Arrays, Case, cases
from hypothesis import given, settings

#: Enough to meet every kernel's every tile; more with the profile `thorough`.
EXAMPLES = settings(max_examples=max(40, settings().max_examples // 2))


@pytest.fixture(scope="module")
def module() -> ModuleType:
    return standin.load()


class Run:
    """A case's arrays on the device, as the kernels want them."""

    def __init__(self, module: ModuleType, case: Case) -> None:
        self.case, self.arrays = case, Arrays(case)
        self.device = Device(module, case.seed, most_blocks=1 + case.seed % 7)
        self.module, self.geometry = module, case.geometry(module)
        names = {np.float32: module.DType.float32, np.float64: module.DType.float64}
        self.dtype = names[case.dtype]
        self.launch = {"dtype": self.dtype, "device": 0, "stream": 0}
        self.outputs = case.channels[1] * self.arrays.pooled
        self.stride = module.channel_stride(self.dtype, case.channels[0])
        self.compact_stride = module.compact_stride(self.dtype, case.rows)
        self.kept: list[list[tuple[int, int, int, float]]] = [
            self.arrays.entries(n) for n in range(case.samples)
        ]

    def optional(self, name: str) -> int:
        values = getattr(self.arrays, name)
        return 0 if values is None else self.device.input(name, values)

    def lists(self) -> dict[str, np.ndarray]:
        """What the list must hold; -7 where nothing is promised."""
        case, arrays = self.case, self.arrays
        n, whole = case.samples, (case.samples, self.outputs)
        expected: dict[str, np.ndarray] = {
            name: np.full(whole, -7, np.int32)
            for name in ("channels", "sources", "offsets")
        }
        expected["factors"] = np.full(whole, -7, case.dtype)
        expected["positions"] = np.full(whole, -1, np.int32)
        starts = np.zeros((n, arrays.pixels + 1), np.int32)
        step = case.stride[1] * case.channels[1]
        for i, entries in enumerate(self.kept):
            for e, (pixel, c, q, factor) in enumerate(entries):
                starts[i, pixel + 1 :] += 1
                expected["channels"][i, e] = c
                expected["sources"][i, e] = q
                expected["factors"][i, e] = factor
                expected["offsets"][i, e] = c - pixel % case.out_size[1] * step
                expected["positions"][i, c * arrays.pooled + q] = e
        return {"starts": starts, **expected}

    def addresses(self, *names: str) -> dict[str, int]:
        lists = self.lists()
        return {name: self.device.input(name, lists[name]) for name in names}

    def compact(self) -> np.ndarray:
        """Rows of the living, (N, C Q, stride); NaN where nothing lives."""
        case = self.case
        shape = (case.samples, self.outputs, self.compact_stride)
        compact = np.full(shape, np.nan, case.dtype)
        for i, entries in enumerate(self.kept):
            for e, (_, c, q, factor) in enumerate(entries):
                compact[i, e] = 0
                compact[i, e, : case.rows] = factor * self.arrays.rows[:, i, c, q]
        return compact

    def input_rows(self) -> np.ndarray:
        """Tangents as (N, H', W', R, stride), zeros beyond C'."""
        tangents = self.arrays.tangents
        rows = np.moveaxis(tangents, (1, 3, 4, 0, 2), (0, 1, 2, 3, 4))
        beyond = self.stride - self.case.channels[0]
        return np.pad(rows, [(0, 0)] * 4 + [(0, beyond)])

    def weight(self) -> np.ndarray:
        """(taps, C, stride), zeros beyond C'."""
        inputs, outputs = self.case.channels
        taps = self.arrays.weight.reshape(outputs, inputs, -1).transpose(2, 0, 1)
        return np.pad(taps, [(0, 0), (0, 0), (0, self.stride - inputs)])

    def conv(self, direction: str, compact: Any, input: Any, **more: int) -> None:
        getattr(self.module, f"gated_conv_{direction}")(
            geometry=self.geometry,
            samples=self.case.samples,
            row_count=self.case.rows,
            weight=self.device.input("weight", self.weight()),
            compact=compact,
            input=input,
            **self.addresses("starts", "channels", "offsets"),
            **more,
            **self.launch,
        )


def assert_close(got: np.ndarray, expected: np.ndarray, case: Case) -> None:
    tolerance = 1e-12 if case.dtype == np.float64 else 1e-5
    scale = max(1.0, np.abs(expected).max(initial=0))
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * scale)


@EXAMPLES
@given(case=cases())
def test_live_list_holds_the_living_in_order(module: ModuleType, case: Case) -> None:
    run = Run(module, case)
    expected = run.lists()
    buffers = {
        name: run.device.output(name, values.shape, values.dtype)
        for name, values in expected.items()
    }
    segments = module.live_segments(run.geometry, case.samples)
    counters = np.zeros((case.samples, run.arrays.pixels, segments), np.int32)
    module.live_list(
        geometry=run.geometry,
        samples=case.samples,
        route=run.optional("route"),
        gate=run.optional("gate"),
        step=case.gate == "step",
        pooled_gate=run.optional("pooled_gate"),
        pooled_step=case.pooled_gate == "step",
        cursors=run.device.inout("cursors", counters).address,
        **{name: buffer.address for name, buffer in buffers.items()},
        **run.launch,
    )
    for name in ("starts", "positions"):
        got = run.device.result(buffers[name])
        np.testing.assert_array_equal(got, expected[name], name)
    for name in ("channels", "sources", "offsets", "factors"):
        for n, entries in enumerate(run.kept):
            got = buffers[name].array[n, : len(entries)]
            np.testing.assert_array_equal(got, expected[name][n, : len(entries)], name)


@EXAMPLES
@given(case=cases())
def test_live_rows_moves_rows_to_entries_and_back(
    module: ModuleType, case: Case
) -> None:
    for last in (False, True):  # channels contiguous, or pixels
        run = Run(module, case)
        order = (1, 3, 0, 2) if last else (0, 1, 2, 3)
        rows = np.ascontiguousarray(run.arrays.rows.transpose(order))
        strides = np.array(rows.strides) // rows.itemsize
        stride = dict(zip(np.array(["row", "sample", "channel", "pixel"])[list(order)],
                          strides.tolist(), strict=True))  # fmt: skip
        arguments = {f"stride_{name}": value for name, value in stride.items()}
        arguments |= run.addresses("positions", "factors")
        arguments |= {"row_count": case.rows, "row_stride": run.compact_stride}
        expected = run.compact()
        compact = run.device.output("compact", expected.shape, case.dtype)
        module.live_rows(
            geometry=run.geometry,
            gather=True,
            samples=case.samples,
            rows=run.device.input("rows", rows),
            compact=compact.address,
            **arguments,
            **run.launch,
        )
        for n, entries in enumerate(run.kept):
            alive = slice(len(entries))
            np.testing.assert_array_equal(compact.array[n, alive], expected[n, alive])

        back = run.device.output("back", rows.shape, case.dtype)
        module.live_rows(
            geometry=run.geometry,
            gather=False,
            samples=case.samples,
            rows=back.address,
            compact=run.device.input("gathered", expected),
            **arguments,
            **run.launch,
        )
        returned = run.device.result(back)
        scattered = np.zeros_like(run.arrays.rows)
        for n, entries in enumerate(run.kept):
            for e, (_, c, q, factor) in enumerate(entries):
                scattered[:, n, c, q] = factor * expected[n, e, : case.rows]
        np.testing.assert_array_equal(returned, scattered.transpose(order))


@EXAMPLES
@given(case=cases())
def test_pull_is_the_transposed_convolution(module: ModuleType, case: Case) -> None:
    run = Run(module, case)
    shape = run.input_rows().shape
    out = run.device.output("input", shape, case.dtype)
    run.conv("pull", run.device.input("compact", run.compact()), out.address)

    weight = torch.from_numpy(run.arrays.weight).double()
    zeros = torch.zeros(
        case.rows * case.samples, case.channels[0], *case.size, dtype=torch.float64
    ).requires_grad_()
    pulled = torch.autograd.grad(
        run.arrays.convolved(zeros, weight),
        zeros,
        run.arrays.planes_of(run.arrays.rows),
    )[0]
    pulled = pulled.unflatten(0, (case.rows, case.samples)).numpy()
    got = run.device.result(out)
    assert (got[..., case.channels[0] :] == 0).all()
    got = np.moveaxis(got[..., : case.channels[0]], (3, 0, 4, 1, 2), (0, 1, 2, 3, 4))
    assert_close(got, pulled, case)


@EXAMPLES
@given(case=cases())
def test_push_is_the_convolution_where_it_lives(module: ModuleType, case: Case) -> None:
    run = Run(module, case)
    shape = (case.samples, run.outputs, run.compact_stride)
    out = run.device.output("compact", shape, case.dtype)
    run.conv("push", out.address, run.device.input("input", run.input_rows()))

    weight = torch.from_numpy(run.arrays.weight).double()
    tangents = torch.from_numpy(run.arrays.tangents).double().flatten(0, 1)
    pushed = run.arrays.convolved(tangents, weight).flatten(2)
    pushed = pushed.unflatten(0, (case.rows, case.samples)).numpy()
    for n, entries in enumerate(run.kept):
        for e, (pixel, c, _, _) in enumerate(entries):
            got = out.array[n, e, : case.rows]
            assert_close(got, pushed[:, n, c, pixel], case)


@EXAMPLES
@given(case=cases())
def test_weight_gradient_is_that_of_the_convolution(
    module: ModuleType, case: Case
) -> None:
    run = Run(module, case)
    before = np.random.default_rng(case.seed).standard_normal(run.weight().shape)
    before[..., case.channels[0] :] = 0
    total = run.device.inout("gradient", before.astype(case.dtype))
    splits = module.weight_splits(run.dtype, run.geometry, case.samples)
    run.conv(
        "weight",
        run.device.input("compact", run.compact()),
        run.device.input("input", run.input_rows()),
        weight_gradient=total.address,
        partials=run.device.workspace(
            "partials", (splits, *run.weight().shape), case.dtype
        ),
    )
    weight = torch.from_numpy(run.arrays.weight).double().requires_grad_()
    tangents = torch.from_numpy(run.arrays.tangents).double().flatten(0, 1)
    convolved = run.arrays.convolved(tangents, weight)
    planes = run.arrays.planes_of(run.arrays.rows)
    (gradient,) = torch.autograd.grad(convolved, weight, planes)
    expected = gradient.flatten(2).permute(2, 0, 1).numpy()
    got = run.device.result(total)[..., : case.channels[0]]
    assert_close(got, before[..., : case.channels[0]] + expected, case)
