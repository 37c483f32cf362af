"""Counts what a GPU would be given: kernels of torch's operators and of our own."""

from __future__ import annotations

from collections import Counter
from typing import Any

from cuda_standin import device as standin
from torch.utils._python_dispatch import TorchDispatchMode

#: Operators that start nothing on a device: they allocate, or look at what is there.
FREE = {
    "detach", "empty", "empty_like", "empty_strided", "new_empty", "expand", "view",
    "t", "transpose", "permute", "slice", "select", "split", "unbind", "alias",
    "as_strided", "unsqueeze", "squeeze", "_unsafe_view", "split_with_sizes",
    "is_same_size", "diagonal", "new_empty_strided", "promote_types",
}  # fmt: skip

#: Operators that make the host wait for a GPU: they read a value, or the shape of
#: their result depends on one.
WAITING = {
    "_local_scalar_dense", "item", "equal", "is_nonzero", "nonzero", "masked_select",
    "unique", "_unique2", "unique_consecutive", "unique_dim", "bincount", "histc",
    "repeat_interleave", "index_put", "nonzero_static", "_linalg_check_errors",
    "linalg_cholesky", "argwhere", "allclose", "tolist", "_pin_memory",
}  # fmt: skip


class Launches(TorchDispatchMode):
    """Counts, inside a stand-in, operators by name and launches of our kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: Counter[str] = Counter()
        self._module = standin.load()
        self._before = int(self._module.launch_count())
        #: Launches of our own kernels, known at the end.
        self.kernels = 0

    def __exit__(self, *raised: Any) -> None:
        self.kernels = int(self._module.launch_count()) - self._before
        super().__exit__(*raised)

    @property
    def total(self) -> int:
        return self.operators.total() + self.kernels

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if name not in FREE:
            self.operators[name] += 1
        return func(*args, **(kwargs or {}))
