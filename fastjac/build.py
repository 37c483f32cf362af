"""What this installation of fastjac is made of: `fastjac.build_info()`."""

from dataclasses import asdict, dataclass
from typing import Any

import torch

from fastjac import native
from fastjac._version import __version__

__all__ = ["BuildInfo", "build_info"]


@dataclass(frozen=True)
class BuildInfo:
    """The parts of this installation. Print it for a report, or take `as_dict()`.

    Attributes:
        version: of fastjac.
        native: whether the native CPU kernels are loaded.
        native_why_not: the reason if they are not.
        compiler: that built the native module.
        flags: that every CPU source was compiled with.
        isas: instruction sets that the CPU kernels were compiled for.
        isa: the one in use, chosen at run time or by the variable FASTJAC_ISA.
        cuda_compiler: that built the CUDA kernels.
        cuda_architectures: compute capabilities that they were built for.
        cuda_why_not: the reason why they cannot run here, None if they can.
        torch: version of torch.
        torch_cuda: version of CUDA that torch was built with, None for a CPU torch.
        threads: that torch, and with it the native kernels, use.
    """

    version: str
    native: bool
    native_why_not: str | None
    compiler: str | None
    flags: str | None
    isas: tuple[str, ...]
    isa: str | None
    cuda_compiler: str | None
    cuda_architectures: tuple[str, ...]
    cuda_why_not: str | None
    torch: str
    torch_cuda: str | None
    threads: int

    def as_dict(self) -> dict[str, Any]:
        """The same as a dictionary that json can write."""
        return asdict(self)

    def __str__(self) -> str:
        isas = ", ".join(
            f"{isa} (in use)" if isa == self.isa else isa for isa in self.isas
        )
        architectures = " ".join(self.cuda_architectures)
        cuda = f"{architectures} by {self.cuda_compiler}" if architectures else "none"
        if self.cuda_why_not:
            cuda += f" ({self.cuda_why_not})"
        lines = {
            "fastjac": self.version,
            "native kernels": "yes" if self.native else f"no ({self.native_why_not})",
            "compiler": self.compiler or "none",
            "flags": self.flags or "none",
            "instruction sets": isas or "none",
            "CUDA": cuda,
            "torch": f"{self.torch}, {self.threads} threads",
        }
        return "\n".join(f"{name + ':':<18}{value}" for name, value in lines.items())


def build_info() -> BuildInfo:
    """Say what this installation is made of and what it runs on.

    Example:
        >>> import fastjac
        >>> info = fastjac.build_info()
        >>> info.version == fastjac.__version__
        True
        >>> print(info)  # doctest: +ELLIPSIS
        fastjac: ...
    """
    config: dict[str, str] = native.build_config()
    return BuildInfo(
        version=__version__,
        native=native.available(),
        native_why_not=native.why_not(),
        compiler=config.get("compiler"),
        flags=config.get("flags"),
        isas=tuple(config.get("isas", "").split()),
        isa=native.isa(),
        cuda_compiler=config.get("cuda_compiler") or None,
        cuda_architectures=tuple(config.get("cuda_architectures", "").split()),
        cuda_why_not=native.cuda_why_not(),
        torch=torch.__version__,
        torch_cuda=torch.version.cuda,
        threads=torch.get_num_threads(),
    )
