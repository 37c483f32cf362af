"""Runs a linearisation down and up, in chunks, and hands autograd the result.

Any penalty here is ``P = sum_i a_i sum_r ||row_r(x_i)||^2`` with rows pulled from
seeds. Going down gives the rows; going up again from ``T_0 = dP/d rows / 2 = a_i rows``
gives, at each weight, ``dP/dW / 2 = <rows at its output, tangents at its input>``.
Both happen chunk by chunk, over samples and over rows, so the memory of a sweep is set
by the chunk and not by N or K.

The gradient of a loss L of the logits can come along. With ``g = dL/d z`` it is
``dL/dW = sum_r <row_r, g_r u>``, u the value below W, and where the network is linear
but for biases, u is the tangent that x has become. So from ``T_0 = dP/d rows + g x``,
lifted by ``g`` so that biases are added times g (see fastjac/rules/base.py), the same
push and the same products give ``dP/dW + dL/dW``: no backward pass is made for L.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fastjac import workspace
from fastjac.budget import shrunk
from fastjac.checks import check_seeds
from fastjac.chunk_passes import Kept, pull, push
from fastjac.chunks import Chunk, chunks
from fastjac.edges import Edge
from fastjac.gradients import Gradients
from fastjac.linearization import Linearization
from fastjac.norms import Norms
from fastjac.retry import in_chunks
from fastjac.rules.base import (
    Samples,
    marked_identity,
    repeats,
)
from fastjac.seeds import is_identity


class Sweep:
    """One pass down, and where wanted up, for given seeds.

    Args:
        linearization: the network at its input.
        seeds: (R, K) shared by all samples, or (N, R, K).
        chunk: how many (sample, row) pairs to hold at once; None to choose.
    """

    def __init__(
        self, linearization: Linearization, seeds: Tensor, chunk: int | None = None
    ) -> None:
        check_seeds(seeds, linearization.samples, linearization.classes)
        self.linearization = linearization
        self.seeds = seeds.detach().to(linearization.dtype)
        self.identity = is_identity(seeds)
        self.rows = seeds.shape[-2]
        self.chunks = chunks(linearization, self.rows, chunk)
        #: Whether the chunks may be made smaller where memory runs out.
        self.shrinkable = chunk is None

    @in_chunks
    def pull(self) -> Tensor:
        """Return the rows at the input, (N, R, *x.shape[1:])."""
        lin = self.linearization
        pulled = torch.empty(
            (lin.samples, self.rows, *lin.x_shape[1:]),
            dtype=lin.x_dtype,
            device=lin.device,
        )
        for chunk, edges in self._pieces():
            part = _part(pulled, chunk)
            part.copy_(self._pull(chunk, edges, set())[0].transpose(0, 1))
        return pulled

    @in_chunks
    def squared_norms(self) -> Tensor:
        """Return ``sum_r ||row_r(x_i)||^2``, (N,), in float32 or wider."""
        norms = self._norms()
        for chunk, edges in self._pieces():
            norms.add(chunk, self._pull(chunk, edges, set())[0])
        return norms.each

    @in_chunks
    def squared_norms_and_gradients(
        self, wanted: list[Tensor], seeds_wanted: bool, scale: Tensor | None = None
    ) -> tuple[Norms, list[Tensor | None], Tensor | None]:
        """Return the squared norms and half the gradient of ``sum_i scale_i norms_i``.

        Args:
            wanted: the weights whose gradient is wanted.
            seeds_wanted: whether the seeds' gradient is wanted too.
            scale: (N,); None for ones.

        Returns:
            Norms, half a gradient for each wanted weight (None where the rows do not
            depend on it), and the seeds' gradient, shaped like the seeds, or None.
        """
        norms = self._norms()

        def tangents(chunk: Chunk, rows: Tensor) -> Tensor:
            norms.add(chunk, rows)
            if scale is None:
                return rows
            factor = scale[chunk.start : chunk.stop].to(rows.dtype)
            factor = factor.view(-1, *(1,) * (rows.dim() - 2))
            # In place, so that the rows keep the layout that the lowest rule chose.
            return rows * factor if self._lent(rows) else rows.mul_(factor)

        return norms, *self._gradients(tangents, wanted, seeds_wanted)

    @in_chunks
    def norms_and_loss_gradients(
        self,
        x: Tensor,
        slopes: Tensor,
        factor: Callable[[Norms], Tensor | float],
        wanted: list[Tensor],
    ) -> tuple[Norms, list[Tensor | None], list[Tensor]]:
        """Return the squared norms and the gradients of a penalty plus a loss.

        And from each chunk ``slopes[n, r] * <row_r(x_n), x_n>``, (n, r).

        Args:
            x: (N, ...), where the network was linearised, which is `exact`.
            slopes: (N, R), what to multiply the seeds with to get the gradient of the
                loss at the logits.
            factor: makes the penalty's derivative with respect to
                ``sum_i norms_i / 2`` from the norms, for which the rows of all samples
                must be there if it looks at them: only in a single chunk.
            wanted: weights and biases.
        """
        norms, products = self._norms(), []

        def tangents(chunk: Chunk, rows: Tensor) -> Tensor:
            norms.add(chunk, rows)
            here, ones = x[chunk.start : chunk.stop], _part(slopes, chunk)
            inner = (rows * here).sum(tuple(range(2, rows.dim())))
            products.append(inner.t() * ones)
            times = factor(norms)
            start = rows * times if self._lent(rows) else rows.mul_(times)
            ones = ones.t().reshape(*rows.shape[:2], *(1,) * (rows.dim() - 2))
            return start.addcmul_(here.unsqueeze(0), ones)

        return norms, self._gradients(tangents, wanted, False, slopes)[0], products

    @in_chunks
    def row_gradients(
        self, upstream: Tensor, wanted: list[Tensor], seeds_wanted: bool
    ) -> tuple[list[Tensor | None], Tensor | None]:
        """Return the gradient of ``<upstream, pull()>`` for weights and seeds."""

        def tangents(chunk: Chunk, rows: Tensor) -> Tensor:
            return _part(upstream, chunk).transpose(0, 1)

        return self._gradients(tangents, wanted, seeds_wanted)

    def _gradients(
        self,
        tangents: Callable[[Chunk, Tensor], Tensor],
        wanted: list[Tensor],
        seeds_wanted: bool,
        lift: Tensor | None = None,
    ) -> tuple[list[Tensor | None], Tensor | None]:
        """Sweep down and, from ``tangents`` lifted by ``lift`` (N, R), up again."""
        ids = {id(weight) for weight in wanted}
        gradients = Gradients(ids)
        seeds_gradient = torch.zeros_like(self.seeds) if seeds_wanted else None
        for chunk, edges in self._pieces():
            if lift is not None:
                ones = _part(lift, chunk).contiguous()
                for rule in (rule for edge in edges for rule in edge.rules):
                    rule.lift(ones)
            rows, kept = self._pull(chunk, edges, ids)
            start = tangents(chunk, rows)
            samples = Samples(chunk.start, chunk.stop, self.linearization.samples)
            top = push(
                self.linearization, edges, samples, start, kept, gradients, seeds_wanted
            )
            if seeds_gradient is not None and top is not None:
                self._add_seeds_gradient(seeds_gradient, chunk, top)
            del rows, start, top
        gradients.finish()
        return [gradients.result(weight) for weight in wanted], seeds_gradient

    def _pieces(self) -> Iterator[tuple[Chunk, list[Edge]]]:
        """Yield each chunk with the edges of its samples; then its memory is reused.

        Nobody may hold on to it then: a block that has to grow is made anew.
        """
        previous = (-1, -1)
        edges: list[Edge] = []
        for chunk in self.chunks:
            workspace.rewind()
            if (chunk.start, chunk.stop) != previous:
                previous = (chunk.start, chunk.stop)
                edges = self.linearization.narrowed(*previous)
            yield chunk, edges
            for rule in (rule for edge in edges for rule in edge.rules):
                rule.release()

    def shrink(self) -> None:
        """Go on with smaller chunks, after memory has run out; say so."""
        self.shrinkable = False
        for rule in self.linearization.rules:
            rule.release()
        pairs = max(chunk.pairs for chunk in self.chunks)
        fewer = shrunk(self.linearization, pairs)
        self.chunks = chunks(self.linearization, self.rows, fewer)

    def _pull(
        self, chunk: Chunk, edges: list[Edge], wanted: set[int]
    ) -> tuple[Tensor, Kept]:
        return pull(self.linearization, edges, self._chunk_seeds(chunk), wanted)

    def _lent(self, rows: Tensor) -> bool:
        """Whether rows are a view of seeds or of a weight, or repeat an element."""
        if repeats(rows):
            return True
        weights = (w for rule in self.linearization.rules for w in rule.weights)
        storage = rows.untyped_storage().data_ptr()
        return any(
            storage == lender.untyped_storage().data_ptr()
            for lender in (self.seeds, *weights)
        )

    def _chunk_seeds(self, chunk: Chunk) -> Tensor:
        """Return the seeds of a chunk as rows at the logits, (r, n, K)."""
        rows = slice(chunk.first, chunk.last)
        if self.seeds.dim() == 2:
            shared = self.seeds[rows].unsqueeze(1)
            shared = shared.expand(-1, chunk.stop - chunk.start, -1)
            whole = (chunk.first, chunk.last) == (0, self.rows)
            return marked_identity(shared) if self.identity and whole else shared
        return self.seeds[chunk.start : chunk.stop, rows].transpose(0, 1)

    def _add_seeds_gradient(self, total: Tensor, chunk: Chunk, top: Tensor) -> None:
        rows = slice(chunk.first, chunk.last)
        if total.dim() == 2:
            total[rows] += top.sum(1)
        else:
            total[chunk.start : chunk.stop, rows] += top.transpose(0, 1)

    def _norms(self) -> Norms:
        return Norms(self.linearization, several=len(self.chunks) > 1)


def _part(of: Tensor, chunk: Chunk) -> Tensor:
    """Return what a tensor of (N, R, ...) has of a chunk."""
    return of[chunk.start : chunk.stop, chunk.first : chunk.last]
