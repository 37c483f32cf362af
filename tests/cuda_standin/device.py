"""Builds the stand-in, and gives tests its memory as NumPy arrays."""

import ctypes
import importlib.util
import os
import shlex
import subprocess
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType

import ninja
import numpy as np
import pybind11

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"
BUILT = HERE.parents[1] / "build" / "cuda_standin"


def build() -> Path:
    """Compile what has changed, with ninja, and return the module's path."""
    BUILT.mkdir(parents=True, exist_ok=True)
    module = BUILT / f"_cuda_standin{sysconfig.get_config_var('EXT_SUFFIX')}"
    includes = [HERE, CSRC, pybind11.get_include(), sysconfig.get_path("include")]
    command = [
        *shlex.split(os.environ.get("CXX", "g++")),
        *("-std=c++17", "-O1", "-g1", "-fPIC", "-fvisibility=hidden", "-Wall"),
        *("-Wextra", "-Wno-unknown-pragmas", "-DFASTJAC_CUDA_STANDIN"),
        *(f"-I{path}" for path in includes),
    ]
    lines = [
        "rule cxx",
        f"  command = {shlex.join(command)} $flags -MMD -MF $out.d "
        "-c -x c++ $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = {shlex.join(command[:1])} -shared $in -o $out",
    ]
    objects = []
    kernels = [*sorted(CSRC.glob("cuda/*.cu")), HERE / "planted.cu"]
    for source in [*kernels, *sorted(HERE.glob("*.cpp"))]:
        objects.append(f"{source.name}.o")
        lines.append(f"build {source.name}.o: cxx {source}")
        if source.suffix == ".cu":
            lines.append("  flags = -fsanitize=thread")
    lines.append(f"build {module.name}: link {' '.join(objects)}")
    (BUILT / "build.ninja").write_text("\n".join(lines) + "\n")
    done = subprocess.run(
        [str(Path(ninja.BIN_DIR) / "ninja"), "-C", str(BUILT)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the CUDA stand-in does not compile:\n{done.stdout}")
    return module


@cache
def load() -> ModuleType:
    """The compiled stand-in, one for the process."""
    spec = importlib.util.spec_from_file_location("_cuda_standin", build())
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Buffer:
    """An array in the device's memory: `array` for the test, `address` for kernels."""

    def __init__(self, address: int, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.address = address
        count = int(np.prod(shape))
        raw = (ctypes.c_uint8 * (count * dtype.itemsize)).from_address(address)
        self.array = np.frombuffer(raw, dtype, count).reshape(shape)


class Device:
    """The stand-in's memory and settings; every test starts with an empty one.

    Args:
        module: from `load`.
        seed: of the order in which blocks and threads run.
        most_blocks: the largest grid; small, so that the kernels' loops over what does
            not fit into the grid are run as well.
    """

    def __init__(self, module: ModuleType, seed: int = 0, most_blocks: int = 3) -> None:
        self.module = module
        self.outputs: dict[str, Buffer] = {}
        module.reset_memory()
        module.set_seed(seed)
        module.set_most_blocks(most_blocks)
        module.allow_any_memory(False)

    def _buffer(self, name, shape, dtype, mode, offset) -> Buffer:
        dtype = np.dtype(dtype)
        size = int(np.prod(shape)) * dtype.itemsize
        address = self.module.allocate(
            name, size, offset * dtype.itemsize, dtype.itemsize, mode
        )
        return Buffer(address, tuple(shape), dtype)

    def input(self, name: str, values: np.ndarray, offset: int = 0) -> int:
        """Address of a copy that kernels may only read.

        `offset` elements past a 256-byte boundary, to try every alignment.
        """
        mode = self.module.Mode.input
        buffer = self._buffer(name, values.shape, values.dtype, mode, offset)
        buffer.array[...] = values
        return buffer.address

    def inout(self, name: str, values: np.ndarray, offset: int = 0) -> Buffer:
        """A copy that kernels may read and write."""
        mode = self.module.Mode.inout
        buffer = self._buffer(name, values.shape, values.dtype, mode, offset)
        buffer.array[...] = values
        return buffer

    def output(self, name: str, shape, dtype, offset: int = 0) -> Buffer:
        """Poisoned memory that kernels must write in full; see `result`."""
        mode = self.module.Mode.output
        return self._buffer(name, shape, dtype, mode, offset)

    def workspace(self, name: str, shape, dtype) -> int:
        """Address of poisoned memory that kernels may write in part."""
        return self._buffer(name, shape, dtype, self.module.Mode.workspace, 0).address

    def result(self, buffer: Buffer) -> np.ndarray:
        """A copy of an output's values; fails if an element was never written."""
        if buffer.array.size:
            first = self.module.first_unwritten(buffer.address)
            if first >= 0:
                raise self.module.DeviceError(
                    f"unwritten: element {first} of {buffer.array.size}"
                )
        return buffer.array.copy()


@contextmanager
def any_memory(module: ModuleType) -> Iterator[None]:
    """Let kernels run on ordinary memory, such as torch's CPU tensors, unchecked."""
    module.allow_any_memory(True)
    try:
        yield
    finally:
        module.allow_any_memory(False)
