"""Sums of squared rows ``||S J(x_i)||_F^2``, which every penalty is, reduced."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fastjac import checks, parallel
from fastjac.forward import Model, Origin, forward
from fastjac.source import Rows, open_rows, root


@dataclass(frozen=True)
class Squares:
    """A penalty: which rows are squared, how they are added up, how it is computed.

    Args:
        seeds: makes the seeds S, (R, K) or (N, R, K), from the logits.
        reduction: "frobenius", "sum", "mean" or "none".
        chunk: how many (sample, row) pairs to hold at once, or "auto".
        backend: "auto", "fused" or "autograd".
        batch_statistics: "constant" or "error".
        process_group: the processes that hold the batch together; None for this one.

    Raises:
        TypeError, ValueError, RuntimeError: a bad field; the message names it.
    """

    seeds: Callable[[Tensor], Tensor]
    reduction: str
    chunk: checks.ChunkSize = None
    backend: str = "auto"
    batch_statistics: str = "constant"
    process_group: Any = None

    def __post_init__(self) -> None:
        checks.one_of("reduction", self.reduction, checks.REDUCTIONS)
        checks.one_of("backend", self.backend, checks.BACKENDS)
        checks.one_of(
            "batch_statistics", self.batch_statistics, checks.BATCH_STATISTICS
        )
        checks.check_chunk(self.chunk)
        parallel.resolved(self.process_group)

    def of_model(self, model: Model, x: Tensor, return_logits: bool) -> Any:
        """Return the penalty, or ``(penalty, logits)``, of a forward pass made here."""
        logits, leaf = forward(model, x, shared=return_logits, in_training=True)
        origin = Origin(model, leaf)
        with origin.gathered():
            rows = self.rows(logits, leaf, origin)
            penalty = self.reduced(rows, logits, self.seeds(logits))
        return (penalty, logits) if return_logits else penalty

    def of_graph(self, logits: Tensor, x: Tensor) -> Tensor:
        """Return the penalty of a forward pass that was made already."""
        checks.check_input(x)
        checks.check_logits(logits, x)
        rows = self.rows(logits, x, None)
        return self.reduced(rows, logits, self.seeds(logits))

    def rows(self, logits: Tensor, x: Tensor, origin: Origin | None) -> Rows:
        """Return the rows of logits with respect to x."""
        return open_rows(logits, x, self.backend, origin, self.batch_statistics)

    def reduced(self, rows: Rows, logits: Tensor, seeds: Tensor) -> Tensor:
        """Return the penalty for the rows of logits that seeds are pulled to."""
        chunk = checks.check_chunk(self.chunk)
        if self.reduction == "none":
            return parallel.tied(rows.squared_norms(seeds, chunk), logits)
        group = parallel.resolved(self.process_group)
        if self.reduction == "frobenius" and group is None:
            return parallel.tied(rows.frobenius(seeds, chunk), logits)
        total = parallel.tied(rows.total(seeds, chunk), logits)
        samples: Tensor | int = logits.shape[0]
        if group is not None:
            total, samples = parallel.sums(total, logits.shape[0], group)
        if self.reduction == "mean":
            return total / samples
        return total if self.reduction == "sum" else root(total)
