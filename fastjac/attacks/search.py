"""The loop that iterative attacks share: a pool of samples, kept full, kept compact.

Samples enter the pool as others leave it, so the network always sees a full batch
and a sample that has finished costs nothing, however many the slowest one needs.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastjac import checks
from fastjac.attacks.arguments import Model
from fastjac.attacks.expansion import Expansion, evaluation_mode

Fields = dict[str, Tensor]


@dataclass
class Pool:
    """The samples at work, each field with the sample in front.

    Attributes:
        index: (n,) where each sample stands in the input.
        start: (n, ...) the clean samples.
        x: (n, ...) where they have come to.
        iterations: (n,) steps taken so far.
        stuck: (n,) no step can be taken any more.
        more: what the method at hand keeps for each sample.
    """

    index: Tensor
    start: Tensor
    x: Tensor
    iterations: Tensor
    stuck: Tensor
    more: Fields

    def select(self, keep: Tensor) -> "Pool":
        """The samples `keep` `(m,)`, in that order."""
        return Pool(
            index=self.index[keep],
            start=self.start[keep],
            x=self.x[keep],
            iterations=self.iterations[keep],
            stuck=self.stuck[keep],
            more={name: value[keep] for name, value in self.more.items()},
        )

    def join(self, other: "Pool") -> "Pool":
        """These samples and then the `other` ones."""
        if not len(other.index):
            return self
        if not len(self.index):
            return other
        return Pool(
            index=torch.cat([self.index, other.index]),
            start=torch.cat([self.start, other.start]),
            x=torch.cat([self.x, other.x]),
            iterations=torch.cat([self.iterations, other.iterations]),
            stuck=torch.cat([self.stuck, other.stuck]),
            more={k: torch.cat([v, other.more[k]]) for k, v in self.more.items()},
        )


class Method(ABC):
    """What distinguishes one iterative attack from another."""

    steps: int

    @abstractmethod
    def admit(self, index: Tensor, x: Tensor) -> Fields:
        """Fields of the samples that enter, `index` `(n,)` of them being `x`."""

    @abstractmethod
    def reached(self, pool: Pool, logits: Tensor) -> Tensor:
        """Look at the `logits` `(n, K)` of the pool: `(n,)`, which have arrived."""

    @abstractmethod
    def seeds(self, pool: Pool, logits: Tensor) -> Tensor:
        """Seeds `(n, R, K)` of the rows that the next step needs."""

    @abstractmethod
    def step(self, pool: Pool, logits: Tensor, rows: Tensor) -> None:
        """Move `pool.x` by `rows` `(n, R, ...)`, or mark samples as stuck."""


@dataclass
class Outcome:
    """What became of each sample, in the order of the input.

    Attributes:
        x: (N, ...) where it ended.
        labels: (N,) its class there.
        iterations: (N,) steps taken.
        success: (N,) whether it arrived.
        more: the method's own fields at the end.
    """

    x: Tensor
    labels: Tensor
    iterations: Tensor
    success: Tensor
    more: Fields


def search(
    model: Model,
    x: Tensor,
    method: Method,
    *,
    chunk: int | None,
    backend: str,
    progress: bool,
) -> Outcome:
    """Run `method` on every sample of `x` `(N, ...)`, `chunk` of them at a time."""
    checks.one_of("backend", backend, checks.BACKENDS)
    size = chunk or default_chunk(x)
    with evaluation_mode(model), bar(len(x), progress) as shown:
        x = x.detach()
        outcome = _blank(x)
        pool = _enter(method, x, 0, min(size, len(x)))
        entered = len(pool.index)
        while len(pool.index):
            before = len(pool.index)
            pool = _round(model, method, pool, outcome, backend)
            shown.update(before - len(pool.index))
            fresh = min(size - len(pool.index), len(x) - entered)
            pool = pool.join(_enter(method, x, entered, entered + fresh))
            entered += fresh
    return outcome


def default_chunk(x: Tensor) -> int:
    """Samples at a time: rows stay in a CPU's cache, a GPU is kept busy."""
    return 128 if x.device.type == "cpu" else 1024


def _round(
    model: Model, method: Method, pool: Pool, outcome: Outcome, backend: str
) -> Pool:
    """Look, let the finished ones go, and move the others one step."""
    expansion = Expansion(model, pool.x, backend)
    logits = expansion.logits
    broken = ~logits.isfinite().all(1)
    reached = method.reached(pool, logits) & ~broken
    done = reached | broken | pool.stuck | (pool.iterations >= method.steps)
    # Survivors first; the only moment at which the host waits for the device.
    order = done.to(torch.uint8).argsort(stable=True)
    unfit = (broken & (pool.iterations == 0)).sum()
    survivors, unfit = torch.stack([(~done).sum(), unfit]).tolist()
    if unfit:
        raise ValueError(
            f"the model must return finite logits; got NaN or infinity for {unfit} of "
            f"{len(logits)} samples of x"
        )
    keep, leave = order[:survivors], order[survivors:]
    if len(leave):
        _record(outcome, pool.select(leave), logits[leave], reached[leave])
        pool, logits = pool.select(keep), logits[keep]
    if not survivors:
        return pool
    rows = expansion.rows(method.seeds(pool, logits), keep)
    method.step(pool, logits, rows)
    pool.iterations += ~pool.stuck
    return pool


def _enter(method: Method, x: Tensor, first: int, last: int) -> Pool:
    index = torch.arange(first, last, device=x.device)
    start = x[first:last].contiguous()
    return Pool(
        index=index,
        start=start,
        x=start.clone(),
        iterations=torch.zeros_like(index),
        stuck=torch.zeros_like(index, dtype=torch.bool),
        more=method.admit(index, start),
    )


def _blank(x: Tensor) -> Outcome:
    counts = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    return Outcome(
        x=x.clone(memory_format=torch.contiguous_format),
        labels=counts.clone(),
        iterations=counts,
        success=counts.bool(),
        more={},
    )


def _record(outcome: Outcome, pool: Pool, logits: Tensor, reached: Tensor) -> None:
    outcome.x[pool.index] = pool.x
    outcome.labels[pool.index] = logits.argmax(1)
    outcome.iterations[pool.index] = pool.iterations
    outcome.success[pool.index] = reached
    for name, value in pool.more.items():
        if name not in outcome.more:
            outcome.more[name] = value.new_zeros(len(outcome.x), *value.shape[1:])
        outcome.more[name][pool.index] = value


class _Silent:
    """Stands in for a progress bar that nobody asked for."""

    def __enter__(self) -> "_Silent":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def update(self, n: int) -> None:
        """Count nothing."""


def bar(total: int | None, progress: bool, unit: str = "sample") -> Any:
    """A progress bar over `total` units, silent unless asked for."""
    if not progress:
        return _Silent()
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError(
            "progress=True needs the package tqdm: pip install tqdm, or leave progress "
            "out"
        ) from error
    return tqdm(total=total, unit=unit)
