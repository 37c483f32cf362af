"""Runs a linearisation down and up, in chunks, and hands autograd the result.

Any penalty here is ``P = sum_i a_i sum_r ||row_r(x_i)||^2`` with rows pulled from
seeds. Going down gives the rows; going up again from ``T_0 = dP/d rows / 2 = a_i rows``
gives, at each weight, ``dP/dW / 2 = <rows at its output, tangents at its input>``.
Both happen chunk by chunk, over samples and over rows, so the memory of a sweep is set
by the chunk and not by N or K.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator

import torch
from torch import Tensor

from fastjac import workspace
from fastjac.budget import shrunk
from fastjac.checks import check_seeds
from fastjac.chunks import Chunk, chunks
from fastjac.edges import Edge
from fastjac.gradients import Gradients
from fastjac.joins import Joins
from fastjac.linearization import Linearization
from fastjac.norms import Norms
from fastjac.retry import in_chunks
from fastjac.rules.base import (
    Rule,
    Samples,
    is_marked_identity,
    marked_identity,
    repeats,
)
from fastjac.seeds import is_identity

#: The rows at the output of each rule whose weights get a gradient, by edge and rule,
#: and whether nothing else holds their memory.
Kept = dict[tuple[int, int], tuple[Tensor, bool]]


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
            part = pulled[chunk.start : chunk.stop, chunk.first : chunk.last]
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
    def row_gradients(
        self, upstream: Tensor, wanted: list[Tensor], seeds_wanted: bool
    ) -> tuple[list[Tensor | None], Tensor | None]:
        """Return the gradient of ``<upstream, pull()>`` for weights and seeds."""

        def tangents(chunk: Chunk, rows: Tensor) -> Tensor:
            part = upstream[chunk.start : chunk.stop, chunk.first : chunk.last]
            return part.transpose(0, 1)

        return self._gradients(tangents, wanted, seeds_wanted)

    def _gradients(
        self,
        tangents: Callable[[Chunk, Tensor], Tensor],
        wanted: list[Tensor],
        seeds_wanted: bool,
    ) -> tuple[list[Tensor | None], Tensor | None]:
        ids = {id(weight) for weight in wanted}
        gradients = Gradients(ids)
        seeds_gradient = torch.zeros_like(self.seeds) if seeds_wanted else None
        for chunk, edges in self._pieces():
            rows, kept = self._pull(chunk, edges, ids)
            start = tangents(chunk, rows)
            top = self._push(chunk, edges, start, kept, gradients, seeds_wanted)
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
        """Pull a chunk's rows down; keep those that weight gradients will need."""
        lin = self.linearization
        joins = Joins(edge.target for edge in edges)
        joins.add(lin.target, self._chunk_seeds(chunk), own=False)
        kept: Kept = {}
        for e, edge in enumerate(edges):
            rows, own = joins.take(edge.target)
            if rows is None:
                continue
            for r in reversed(range(len(edge.rules))):
                rule = edge.rules[r]
                if _wants(rule, wanted):
                    kept[e, r] = rows, own
                    own = False
                total = joins.open(edge.source) if r == 0 else None
                if total is not None:
                    rule.pull_into(rows, total)
                    break
                # Rows pulled from the identity may be a weight itself.
                fresh = not rule.moves and not is_marked_identity(rows)
                rows = rule.overwrite(rows) if own else rule.pull(rows)
                own = own or fresh
            else:
                joins.add(edge.source, rows, own)
        return joins.get(lin.source), kept

    def _push(
        self,
        chunk: Chunk,
        edges: list[Edge],
        tangents: Tensor,
        kept: Kept,
        gradients: Gradients,
        to_top: bool,
    ) -> Tensor | None:
        """Push tangents up; add the weights' gradients; stop above the last of them."""
        lin = self.linearization
        samples = Samples(chunk.start, chunk.stop, lin.samples)
        whole = (chunk.start, chunk.stop) == (0, lin.samples)
        needed = _needed(edges, kept, lin.target, to_top)
        joins = Joins(edge.source for edge in edges)
        joins.add(lin.source, tangents, own=False)
        for e in reversed(range(len(edges))):
            edge = edges[e]
            current, own = joins.take(edge.source)
            if current is None:
                continue
            last = len(edge.rules) - 1
            for r, rule in enumerate(edge.rules[: needed[e]]):
                ends = needed[e] <= r + 1
                total = joins.open(edge.target) if r == last and not ends else None
                if (e, r) in kept:
                    rows, spare = kept.pop((e, r))
                    sums = gradients.of(rule, None if whole else samples)
                    if not ends and total is None:
                        current = rule.push_adding(current, rows, sums, own, spare)
                        own = own or not rule.moves
                        gradients.settle()
                        continue
                    rule.weight_gradients(rows, current, sums)
                    gradients.settle()
                if ends:
                    break
                if total is not None:
                    rule.push_into(current, total)
                    break
                current = (
                    rule.overwrite(current, up=True) if own else rule.push(current)
                )
                own = own or not rule.moves
            else:
                if needed[e] > len(edge.rules):
                    joins.add(edge.target, current, own)
        return joins.get(lin.target) if to_top else None

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


def _wants(rule: Rule, wanted: set[int]) -> bool:
    return any(id(weight) in wanted for weight in rule.weights)


def _needed(edges: list[Edge], kept: Kept, target: Hashable, to_top: bool) -> list[int]:
    """Return for each edge how many of its rules tangents must enter.

    One more than there are rules says that they must also leave the last one, because
    a weight further up, or the seeds, want them.
    """
    wanting: set[Hashable] = {target} if to_top else set()
    needed = []
    for e, edge in enumerate(edges):
        if edge.target in wanting:
            count = len(edge.rules) + 1
        else:
            count = max(
                (r + 1 for r in range(len(edge.rules)) if (e, r) in kept), default=0
            )
        if count:
            wanting.add(edge.source)
        needed.append(count)
    return needed
