"""The stand-in for a GPU itself: sound kernels pass, every planted bug is found."""

from types import ModuleType

import numpy as np
import pytest
from cuda_standin import device as standin
from cuda_standin.device import Device


@pytest.fixture(scope="module")
def module() -> ModuleType:
    return standin.load()


def rng_from(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


SOUND = {
    "block_sums": lambda x: x.reshape(-1, 64).sum(1),
    "histogram": lambda x: np.bincount(x.astype(int), minlength=8),
    "warp_neighbours": lambda x: x.reshape(-1, 2)[:, ::-1].ravel(),
    "transpose": lambda x: x.reshape(8, 8).T.ravel(),
    "votes": lambda x: (
        np.repeat((x.reshape(2, 32) > 0).sum(1), 32)
        + np.hstack([x.reshape(2, 32)[:, 1:], x.reshape(2, 32)[:, -1:]]).ravel()
    ),
}

PLANTED = {
    "read_past_end": "out of bounds: thread 63 of block 0 reads 4 bytes at byte 256",
    "read_before_start": "out of bounds: thread 0 .* 4 bytes before `in`",
    "write_past_end": "out of bounds: .* writes 4 bytes at byte 256 of `out`",
    "shared_past_end": "out of bounds: .* at byte 252 of `tile`",
    "wild_address": "out of bounds: .* far from every buffer",
    "writes_input": "`in` is an input, but thread .* writes it",
    "leaves_unwritten": "unwritten: element 63 of 64",
    "reads_unwritten": "uninitialised: .* reads `out`",
    "shared_unwritten": r"uninitialised: .* shared `tile`\[0\]",
    "race_of_writes": "race on `out`",
    "race_of_blocks": r"race on `out`\[0\]: thread 0 of block . writes, thread 0",
    "missing_barrier": "race on shared `tile`|uninitialised: .* shared `tile`",
    "missing_second_barrier": "race on shared `tile`",
    "shuffle_is_no_barrier": "race on shared `tile`|uninitialised: .* shared `tile`",
    "syncwarp_is_no_barrier": "race on shared `tile`|uninitialised: .* shared `tile`",
    "atomic_and_plain": r"race on `out`\[0\]",
    "barrier_in_branch": "divergence: .* 32 threads wait at a barrier .* 32 have ended",
    "shuffle_in_branch": "divergence: .* 32 for lanes of their warp",
    "shuffle_from_absent_lane": "a shuffle reads lane 20, which takes no part",
    "misaligned": "misaligned: thread 0 .* 16 bytes at byte 4 of `in`",
    "too_much_shared": "shared arrays take 49160 bytes, a block has 49152",
}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", SOUND)
def test_a_sound_kernel_gives_its_result_without_complaint(
    module: ModuleType, name: str, seed: int
) -> None:
    device = Device(module, seed)
    values = rng_from(seed).integers(0, 8, 64).astype(np.float32)
    expected = SOUND[name](values)
    if name == "histogram":
        out = device.inout("out", np.zeros(8, np.float32))
    else:
        out = device.output("out", expected.shape, np.float32)
    module.run_planted(name, device.input("in", values), out.address, 64, 1)
    np.testing.assert_array_equal(device.result(out), expected)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bug_is_found_in_every_order(
    module: ModuleType, name: str, seed: int
) -> None:
    device = Device(module, seed)
    address = device.input("in", np.ones(64, np.float32))
    if name == "atomic_and_plain":
        out = device.inout("out", np.ones(64, np.float32))
    else:
        out = device.output("out", (64,), np.float32)
    blocks = 2 if name == "race_of_blocks" else 1
    with pytest.raises(module.DeviceError, match=PLANTED[name]):
        module.run_planted(name, address, out.address, 64, blocks)
        device.result(out)


def test_a_null_array_is_out_of_bounds(module: ModuleType) -> None:
    device = Device(module)
    address = device.input("in", np.ones(64, np.float32))
    with pytest.raises(module.DeviceError, match="out of bounds: .* far from every"):
        module.run_planted("leaves_unwritten", address, 0, 64, 1)


def test_threads_run_in_another_order_for_another_seed(module: ModuleType) -> None:
    found = set()
    for seed in range(8):
        device = Device(module, seed)
        out = device.output("out", (64,), np.float32)
        with pytest.raises(module.DeviceError) as error:
            module.run_planted("reads_unwritten", out.address, out.address, 64, 1)
        found.add(str(error.value))
    assert len(found) > 2
