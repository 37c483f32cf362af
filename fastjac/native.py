"""The native kernels: the only module that imports `fastjac._native`.

It loads the module, says what it can do, and checks what tensors its kernels take. The
wrappers, in the files ``native_*.py``, allocate results and pass addresses and
sizes down, and on a GPU the current stream. Layouts are part of each wrapper's
contract; a tensor that is not contiguous is refused, never silently copied.

Environment: `FASTJAC_DISABLE_NATIVE=1` uses torch operators only (for tests);
`FASTJAC_ISA=baseline|avx2|avx512` picks the instruction set of the CPU kernels.
"""

import os
import warnings
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

# Before _native: torch brings the OpenMP runtime whose threads the kernels share.
import torch
from torch import Tensor

from fastjac._version import __interface__, __version__
from fastjac.precision import HALF

_DTYPES = (torch.float32, torch.float64)


def _load() -> tuple[ModuleType | None, str | None]:
    """The native module, or None and the reason why there is none."""
    if os.environ.get("FASTJAC_DISABLE_NATIVE", "") not in ("", "0"):
        return None, "FASTJAC_DISABLE_NATIVE is set"
    try:
        loaded = import_module("fastjac._native")
        _check_same(loaded.build_config())
    except ImportError as error:
        reason = f"fastjac._native cannot be imported: {error}"
        warnings.warn(
            f"fastjac runs without its native kernels, on torch operators alone, which "
            f"is slower: {reason}. Reinstall with `pip install .`, or for development "
            f"run `python setup.py build_ext --inplace`.",
            RuntimeWarning,
            stacklevel=2,
        )
        return None, reason
    loaded.isa()  # raises now, not at the first kernel, if FASTJAC_ISA is impossible
    return loaded, None


def _check_same(built: dict[str, str]) -> None:
    """Raise unless the native module was built from this very source."""
    if built["version"] != __version__:
        raise ImportError(
            f"it was built from version {built['version']}, this is {__version__}"
        )
    if built.get("interface") != __interface__:
        raise ImportError(
            f"it is an old build of this version: its interface is number "
            f"{built.get('interface', '0')}, this source needs {__interface__}"
        )


_module, _reason = _load()


@dataclass(frozen=True)
class Backend:
    """The kernels for one kind of device."""

    #: What binds them: the native module, or its CUDA half.
    bindings: Any
    #: Whether they are written for a GPU: they take a device and a stream, want rows in
    #: the layouts of csrc/cuda, and nothing may wait for them.
    on_gpu: bool


#: Device type -> what takes the place of the native module's own kernels there. Tests
#: run the CUDA kernels on CPU tensors this way.
replaced: dict[str, Backend] = {}


def backend(tensor: Tensor) -> Backend | None:
    """The kernels for the device of a tensor; None if there are none."""
    kind = "cpu" if tensor.is_cpu else tensor.device.type
    if kind in replaced:
        return replaced[kind]
    if kind == "cuda" and cuda_why_not() is None:
        assert _module is not None
        return Backend(_module.cuda, on_gpu=True)
    return _on_cpu(_module) if kind == "cpu" else None


@cache
def _on_cpu(module: Any) -> Backend | None:
    return None if module is None else Backend(module, on_gpu=False)


def on_gpu(tensor: Tensor) -> bool:
    """Whether the kernels for a tensor are those for a GPU.

    Example:
        >>> on_gpu(torch.zeros(1))
        False
    """
    if tensor.is_cpu and not replaced:  # asked often
        return False
    found = backend(tensor)
    return found is not None and found.on_gpu


def bindings_of(tensor: Tensor) -> Any:
    """What binds the kernels for the device of a tensor, which must exist."""
    found = backend(tensor)
    assert found is not None
    return found.bindings


def waits(tensor: Tensor) -> bool:
    """Whether whoever reads a value of a tensor has to wait for its device.

    Example:
        >>> waits(torch.zeros(1))
        False
    """
    return not tensor.is_cpu or on_gpu(tensor)


def available() -> bool:
    """Whether the native CPU kernels are there.

    Example:
        >>> available() == (why_not() is None)
        True
    """
    return _module is not None


def why_not() -> str | None:
    """The reason why there are no native kernels, or None if there are."""
    return _reason


def module() -> Any:
    """The native module.

    Raises:
        RuntimeError: there is none; see `why_not`.
    """
    if _module is None:
        raise RuntimeError(f"there are no native kernels: {_reason}")
    return _module


def cuda_available() -> bool:
    """Whether the CUDA kernels were built and torch sees a GPU."""
    return cuda_why_not() is None


def cuda_why_not() -> str | None:
    """The reason why no CUDA kernel can run, or None if they can."""
    if _module is None:
        return _reason
    if not hasattr(_module, "cuda"):
        return f"built without CUDA: {_module.build_config()['cuda_why_not']}"
    if not torch.cuda.is_available():
        return "torch sees no GPU"
    return None


def build_config() -> dict[str, str]:
    """How the native module was built; empty if there is none."""
    return {} if _module is None else dict(_module.build_config())


def isa() -> str | None:
    """The instruction set in use: "baseline", "avx2" or "avx512"."""
    return None if _module is None else str(_module.isa())


def supported_isas() -> tuple[str, ...]:
    """The instruction sets that this machine can run, the least first."""
    return () if _module is None else tuple(_module.supported_isas())


def thread_count() -> int | None:
    """How many threads a CPU kernel runs on; `torch.set_num_threads` sets it."""
    return None if _module is None else int(_module.thread_count())


def usable(*tensors: Tensor) -> bool:
    """Whether the native kernels take these tensors together.

    They do if all are contiguous, on one device (CPU, or CUDA where it was built), and
    all floating-point ones are float32 or all float64.

    Example:
        >>> usable(torch.zeros(2, dtype=torch.bfloat16))
        False
    """
    device = tensors[0].device
    if backend(tensors[0]) is None:
        return False
    dtypes = {t.dtype for t in tensors if t.is_floating_point()}
    return (
        len(dtypes) <= 1
        and dtypes.issubset(_DTYPES)
        and all(
            t.device == device
            and t.layout == torch.strided
            and not t.is_complex()
            and t.is_contiguous()
            for t in tensors
        )
    )


def kernels(*tensors: Tensor) -> Any:
    """The bindings for the device of these tensors, after checking that they fit.

    Raises:
        RuntimeError: there are no native kernels for that device.
        ValueError: the tensors do not fit together; see `usable`.
    """
    found = backend(tensors[0])
    if found is None:
        device = tensors[0].device
        reason = cuda_why_not() if device.type == "cuda" else why_not()
        if device.type not in ("cpu", "cuda"):
            reason = "native kernels exist for cpu and cuda"
        raise RuntimeError(f"no native kernel for a tensor on {device}: {reason}")
    if not usable(*tensors):
        got = ", ".join(
            f"{tuple(t.shape)} {t.dtype} on {t.device}"
            f"{'' if t.is_contiguous() else ' (not contiguous)'}"
            for t in tensors
        )
        raise ValueError(
            f"native kernels take contiguous tensors on one device, all float32 or all "
            f"float64; got {got}"
        )
    return found.bindings


def launch_arguments(tensor: Tensor) -> dict[str, Any]:
    """The keywords that every kernel takes: element type and, on CUDA, where to run.

    Kernels run on the stream that is current for the tensor's device, as torch's own
    operators do, and nothing waits for them.
    """
    found = backend(tensor)
    assert found is not None
    dtype = _dtypes(found.bindings)[tensor.dtype]
    if not found.on_gpu:
        return {"dtype": dtype}
    if not tensor.is_cuda:
        return {"dtype": dtype, "device": 0, "stream": 0}
    stream = torch.cuda.current_stream(tensor.device).cuda_stream
    return {"dtype": dtype, "device": tensor.get_device(), "stream": stream}


def dtype_of(tensor: Tensor) -> Any:
    """The element type of a tensor, as its kernels call it."""
    return _dtypes(bindings_of(tensor))[tensor.dtype]


@cache
def _dtypes(bindings: Any) -> dict[torch.dtype, Any]:
    return {
        dtype: getattr(bindings.DType, str(dtype).removeprefix("torch."))
        for dtype in (*_DTYPES, *HALF)
    }


def has(kernel: str, *tensors: Tensor) -> bool:
    """Whether there is a native `kernel` of that name that takes these tensors.

    Example:
        >>> has("deepfool_step", torch.zeros(2, dtype=torch.bfloat16))
        False
    """
    return usable(*tensors) and hasattr(kernels(*tensors), kernel)
