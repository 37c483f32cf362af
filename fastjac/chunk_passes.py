"""One chunk's way down and up through the linearised network."""

from __future__ import annotations

from collections.abc import Hashable

from torch import Tensor

from fastjac.edges import Edge
from fastjac.gradients import Gradients
from fastjac.joins import Joins
from fastjac.linearization import Linearization
from fastjac.rules.base import Rule, Samples, is_marked_identity

#: The rows at the output of each rule whose weights get a gradient, by edge and rule,
#: and whether nothing else holds their memory.
Kept = dict[tuple[int, int], tuple[Tensor, bool]]


def pull(
    linearization: Linearization, edges: list[Edge], seeds: Tensor, wanted: set[int]
) -> tuple[Tensor, Kept]:
    """Pull a chunk's rows down; keep those that weight gradients will need.

    Args:
        linearization: the network.
        edges: its edges for the samples of the chunk.
        seeds: the rows at the logits, (r, n, K).
        wanted: identities of the weights and biases whose gradient is wanted.
    """
    joins = Joins(edge.target for edge in edges)
    joins.add(linearization.target, seeds, own=False)
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
    return joins.get(linearization.source), kept


def push(
    linearization: Linearization,
    edges: list[Edge],
    samples: Samples,
    tangents: Tensor,
    kept: Kept,
    gradients: Gradients,
    to_top: bool,
) -> Tensor | None:
    """Push tangents up; add the weights' gradients; stop above the last of them.

    Args:
        linearization: the network.
        edges: its edges for the samples of the chunk.
        samples: those.
        tangents: at the input, (r, n, ...).
        kept: from `pull`.
        gradients: running sums.
        to_top: whether the tangents at the logits are wanted; they are returned.
    """
    target, source = linearization.target, linearization.source
    whole = samples.stop - samples.start == samples.total
    needed = _needed(edges, kept, target, to_top)
    joins = Joins(edge.source for edge in edges)
    joins.add(source, tangents, own=False)
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
                if rule.ones is not None:
                    rule.bias_gradients(rows, gradients.of_biases(rule))
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
            current = rule.overwrite(current, up=True) if own else rule.push(current)
            own = own or not rule.moves
        else:
            if needed[e] > len(edge.rules):
                joins.add(edge.target, current, own)
    return joins.get(target) if to_top else None


def _wants(rule: Rule, wanted: set[int]) -> bool:
    return any(id(tensor) in wanted for tensor in (*rule.weights, *rule.biases))


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
