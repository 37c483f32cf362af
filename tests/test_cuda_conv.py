"""The gated convolution's CUDA kernels, run by the stand-in, against torch."""

from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from cuda_standin import device as standin
from cuda_standin.device import Buffer, Device
from gated_case import Arrays, Case, cases
from hypothesis import given, settings
from hypothesis import strategies as st

#: Enough to meet every kernel's every tile; more with the profile `thorough`.
EXAMPLES = settings(max_examples=max(40, settings().max_examples // 2))


@pytest.fixture(scope="module")
def module() -> ModuleType:
    return standin.load()


#: Types that rows are held in; None for that of the case.
HELD = [None, torch.float16, torch.bfloat16]
#: Half a unit in the last place of one.
ROUNDING = {None: 0.0, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


class Run:
    """A case's arrays on the device, as the kernels want them."""

    def __init__(
        self, module: ModuleType, case: Case, held: torch.dtype | None = None
    ) -> None:
        self.case, self.arrays = case, Arrays(case)
        self.held = held if case.dtype == np.float32 else None
        self.device = Device(module, case.seed, most_blocks=1 + case.seed % 7)
        self.module, self.geometry = module, case.geometry(module)
        names = {np.float32: module.DType.float32, np.float64: module.DType.float64}
        self.dtype = names[case.dtype]
        where = {"device": 0, "stream": 0}
        self.launch = {"dtype": self.dtype, **where}
        kind = self.dtype
        if self.held is not None:
            kind = getattr(module.DType, str(self.held).removeprefix("torch."))
        self.launch_rows = {"dtype": kind, **where}
        self.outputs = case.channels[1] * self.arrays.pooled
        self.stride = module.channel_stride(kind, case.channels[0])
        self.compact_stride = module.compact_stride(kind, case.rows)
        self.kept: list[list[tuple[int, int, int, float]]] = [
            self.arrays.entries(n) for n in range(case.samples)
        ]

    def rounded(self, values: np.ndarray) -> np.ndarray:
        """Values as the type that rows are held in represents them."""
        if self.held is None:
            return values
        return torch.from_numpy(values).to(self.held).float().numpy()

    def rows_input(self, name: str, values: np.ndarray) -> int:
        """Address of rows that kernels may only read."""
        if self.held is not None:
            held = torch.from_numpy(np.ascontiguousarray(values)).to(self.held)
            values = held.view(torch.int16).numpy()
        return self.device.input(name, values)

    def rows_output(self, name: str, shape: tuple[int, ...]) -> Buffer:
        """Poisoned memory for rows."""
        kind = self.case.dtype if self.held is None else np.int16
        return self.device.output(name, shape, kind)

    def read(self, values: np.ndarray) -> np.ndarray:
        """Rows that kernels wrote, as numbers."""
        if self.held is None:
            return values
        return torch.from_numpy(values.copy()).view(self.held).float().numpy()

    def live(self, **addresses: Any) -> Any:
        """The object that kernels take; arrays that are not given are null."""
        names = ("starts", "channels", "sources", "factors", "positions", "offsets")
        window = self.case.average or (1, 1)
        return self.module.LiveArrays(
            geometry=self.geometry,
            samples=self.case.samples,
            window_y=window[0],
            window_x=window[1],
            scale=self.arrays.scale,
            **{"route": 0, **dict.fromkeys(names, 0), **addresses},
        )

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
                expected["sources"][i, e] = arrays.source(q)
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
                place = self.arrays.source(q)
                rows = self.rounded(self.arrays.rows)[:, i, c, place]
                compact[i, e, : case.rows] = factor * rows
        return self.rounded(compact)

    def input_rows(self) -> np.ndarray:
        """Tangents as (N, H', W', R, stride), zeros beyond C'."""
        tangents = self.rounded(self.arrays.tangents)
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
            arrays=self.live(**self.addresses("starts", "channels", "offsets")),
            row_count=self.case.rows,
            weight=self.device.input("weight", self.weight()),
            compact=compact,
            input=input,
            **more,
            **self.launch_rows,
        )


def assert_close(
    got: np.ndarray, expected: np.ndarray, case: Case, rounding: float = 0.0
) -> None:
    tolerance = max(rounding, 1e-12 if case.dtype == np.float64 else 1e-5)
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
    shape = (case.samples, run.arrays.pixels, segments)
    arrays = run.live(
        route=run.optional("route"),
        gate=run.optional("gate"),
        step=case.gate == "step",
        pooled_gate=run.optional("pooled_gate"),
        pooled_step=case.pooled_gate == "step",
        **{name: buffer.address for name, buffer in buffers.items()},
    )
    module.live_list(
        arrays=arrays,
        cursors=run.device.workspace("cursors", shape, np.int32),
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
@given(case=cases(), held=st.sampled_from(HELD))
def test_live_rows_moves_rows_to_entries_and_back(
    module: ModuleType, case: Case, held: torch.dtype | None
) -> None:
    for last in (False, True):  # channels contiguous, or pixels
        run = Run(module, case, held)
        order = (1, 3, 0, 2) if last else (0, 1, 2, 3)
        rows = np.ascontiguousarray(run.rounded(run.arrays.rows).transpose(order))
        strides = np.array(rows.strides) // rows.itemsize
        stride = dict(zip(np.array(["row", "sample", "channel", "pixel"])[list(order)],
                          strides.tolist(), strict=True))  # fmt: skip
        sizes = {f"stride_{name}": value for name, value in stride.items()}
        sizes |= {"row_count": case.rows, "row_stride": run.compact_stride}
        arrays = run.live(**run.addresses("positions", "factors"))
        expected = run.compact()
        compact = run.rows_output("compact", expected.shape)
        given_rows = run.rows_input("rows", rows)
        place = module.RowsPlace(rows=given_rows, compact=compact.address, **sizes)
        module.live_rows(arrays=arrays, rows=place, gather=True, **run.launch_rows)
        for n, entries in enumerate(run.kept):
            alive = slice(len(entries))
            got = run.read(compact.array[n, alive])
            np.testing.assert_array_equal(got, expected[n, alive])

        back = run.rows_output("back", rows.shape)
        gathered = run.rows_input("gathered", expected)
        place = module.RowsPlace(rows=back.address, compact=gathered, **sizes)
        module.live_rows(arrays=arrays, rows=place, gather=False, **run.launch_rows)
        returned = run.read(run.device.result(back))
        scattered = np.zeros(run.arrays.rows.shape)
        for n, entries in enumerate(run.kept):
            for e, (_, c, q, factor) in enumerate(entries):
                moved = float(factor) * expected[n, e, : case.rows]
                scattered[:, n, c, run.arrays.source(q)] += moved
        expected = scattered.transpose(order)
        assert_close(returned, expected, case, ROUNDING[run.held])


@EXAMPLES
@given(case=cases(), held=st.sampled_from(HELD))
def test_pull_is_the_transposed_convolution(
    module: ModuleType, case: Case, held: torch.dtype | None
) -> None:
    run = Run(module, case, held)
    compact, shape = run.compact(), run.input_rows().shape
    out = run.rows_output("input", shape)
    run.conv("pull", run.rows_input("compact", compact), out.address)

    weight = torch.from_numpy(run.arrays.weight).double()
    zeros = torch.zeros(
        case.rows * case.samples, case.channels[0], *case.size, dtype=torch.float64
    ).requires_grad_()
    planes = run.arrays.planes_of(compact)
    convolved = run.arrays.convolved(zeros, weight)
    pulled = torch.autograd.grad(convolved, zeros, planes)[0]
    pulled = pulled.unflatten(0, (case.rows, case.samples)).numpy()
    got = run.read(run.device.result(out))
    assert (got[..., case.channels[0] :] == 0).all()
    got = np.moveaxis(got[..., : case.channels[0]], (3, 0, 4, 1, 2), (0, 1, 2, 3, 4))
    assert_close(got, pulled, case, ROUNDING[run.held])


@EXAMPLES
@given(case=cases(), held=st.sampled_from(HELD))
def test_push_is_the_convolution_where_it_lives(
    module: ModuleType, case: Case, held: torch.dtype | None
) -> None:
    run = Run(module, case, held)
    out = run.rows_output("compact", run.compact().shape)
    run.conv("push", out.address, run.rows_input("input", run.input_rows()))

    weight = torch.from_numpy(run.arrays.weight).double()
    tangents = torch.from_numpy(run.rounded(run.arrays.tangents)).double().flatten(0, 1)
    pushed = run.arrays.convolved(tangents, weight).flatten(2)
    pushed = pushed.unflatten(0, (case.rows, case.samples)).numpy()
    for n, entries in enumerate(run.kept):
        for e, (pixel, c, _, _) in enumerate(entries):
            got = run.read(out.array[n, e, : case.rows])
            assert_close(got, pushed[:, n, c, pixel], case, ROUNDING[run.held])


@EXAMPLES
@given(case=cases(), held=st.sampled_from(HELD))
def test_weight_gradient_is_that_of_the_convolution(
    module: ModuleType, case: Case, held: torch.dtype | None
) -> None:
    """Added to what parts hold already, and summed in float32 or wider: no rounding."""
    run = Run(module, case, held)
    compact, packed = run.compact(), run.weight()
    splits = module.weight_splits(run.dtype, run.geometry, case.samples)
    shape = (splits, *packed.shape)
    rng = np.random.default_rng(case.seed)
    begun = bool(case.seed % 2)
    before = rng.standard_normal(shape) if begun else np.zeros(shape)
    before[..., case.channels[0] :] = 0
    if begun:
        partials = run.device.inout("partials", before.astype(case.dtype))
    else:
        partials = run.device.output("partials", shape, case.dtype)
    run.conv(
        "weight",
        run.rows_input("compact", compact),
        run.rows_input("input", run.input_rows()),
        partials=partials.address,
        splits=splits,
        add=begun,
    )
    weight = torch.from_numpy(run.arrays.weight).double().requires_grad_()
    tangents = torch.from_numpy(run.rounded(run.arrays.tangents)).double().flatten(0, 1)
    convolved = run.arrays.convolved(tangents, weight)
    planes = run.arrays.planes_of(compact)
    (gradient,) = torch.autograd.grad(convolved, weight, planes)
    expected = gradient.flatten(2).permute(2, 0, 1).numpy()
    got = run.device.result(partials)[..., : case.channels[0]].astype(float).sum(0)
    assert_close(got, before.sum(0)[..., : case.channels[0]] + expected, case)


@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from([np.float32, np.float64]),
    layers=st.lists(
        st.tuples(*(st.integers(1, most) for most in (4, 9, 6, 9))), max_size=20
    ),
)
def test_sum_partials_lays_the_gradients_of_all_layers_out(
    module: ModuleType, seed: int, dtype: Any, layers: list[tuple[int, ...]]
) -> None:
    """More layers than a launch takes too."""
    device, rng = Device(module, seed), np.random.default_rng(seed)
    kind = module.DType.float32 if dtype == np.float32 else module.DType.float64
    waiting, expected = [], []
    for splits, taps, outputs, inputs in layers:
        stride = module.channel_stride(kind, inputs)
        parts = rng.standard_normal((splits, taps, outputs, stride)).astype(dtype)
        gradient = device.output(f"{len(waiting)}", (outputs, inputs, taps), dtype)
        address = device.input(f"parts {len(waiting)}", parts)
        sizes = (splits, taps, outputs, inputs)
        waiting.append((address, gradient.address, *sizes))
        total = parts[..., :inputs].astype(np.float64).sum(0)
        expected.append((gradient, total.transpose(1, 2, 0)))
    module.sum_partials(layers=waiting, dtype=kind, device=0, stream=0)
    for gradient, total in expected:
        got = device.result(gradient)
        np.testing.assert_allclose(got, total, rtol=1e-6, atol=1e-6)
