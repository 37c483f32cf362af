"""The part of an autograd graph that connects logits with their input.

A *value* is one tensor of the forward pass, named by the node that computed it and the
number of the output, ``(node, output)``. Only values that depend on ``x`` are visited.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastjac.checks import detached
from fastjac.precision import wide, widened

Value = tuple[Any, int]


class Unsupported(NotImplementedError):
    """A node of the graph has no rule; ``node`` is its name."""

    def __init__(self, node: Any, reason: str) -> None:
        self.node = node
        self.name = short_name(node)
        self.reason = reason
        super().__init__(f"{self.name}: {reason}")


@dataclass(frozen=True)
class Arc:
    """One step of the graph: ``target`` was computed from ``source``, among others."""

    node: Any
    #: Which argument of the operation ``source`` is (index into ``next_functions``).
    argument: int
    source: Value
    target: Value
    #: The arguments of the operation that depend on ``x``.
    varying: frozenset[int]
    #: What was read so far, of all arcs: a checkpoint gives a tensor only once.
    read: dict[tuple[Any, str], Any]
    #: The node's name without its C++ namespace.
    name: str
    #: Shape, dtype and device of ``source`` and of ``target``, as attributes.
    before: Any
    after: Any

    def saved(self, name: str) -> Any:
        """Return what the node saved under ``name``, in the precision of rows.

        Raises:
            RuntimeError: its memory was freed since.
        """
        key = self.node, name
        if key not in self.read:
            kept = getattr(self.node, f"_saved_{name}")
            _check_memory(self.node, kept)
            self.read[key] = widened(kept)
        return self.read[key]

    def saves(self, name: str) -> bool:
        """Whether the node saved something under ``name``, without reading it."""
        return f"_saved_{name}" in dir(self.node)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the rows at ``target``."""
        return wide(self.after.dtype)

    @property
    def in_shape(self) -> torch.Size:
        """Shape of ``source``."""
        return torch.Size(self.before.shape)

    @property
    def out_shape(self) -> torch.Size:
        """Shape of ``target``."""
        return torch.Size(self.after.shape)


def _check_memory(node: Any, saved: Any) -> None:
    """Raise for a tensor without memory, which must not be read."""
    if not isinstance(saved, Tensor) or saved.numel() == 0:
        return
    if saved.layout == torch.strided and saved.untyped_storage().size() == 0:
        raise RuntimeError(
            f"a tensor that {short_name(node)} saved has been freed after the forward "
            "pass, as FSDP frees weights. Use fastjac.jacobian_penalty(model, x, "
            "return_logits=True), which gathers the weights of fully_shard again, or "
            "fully_shard(..., reshard_after_forward=False). Inside a checkpoint no "
            "layer may be sharded by itself: shard the module that does the checkpoint"
        )


def recomputed_once() -> AbstractContextManager[Any]:
    """Return a context in which each checkpointed part is computed again once.

    Non-reentrant checkpoints compute what they did not save when it is read. Torch
    before this context existed does so once for each tensor.
    """
    module = sys.modules.get("torch.utils.checkpoint")
    group = getattr(module, "GraphExecGroup", None)
    if group is None or group._get_current_group() is not None:
        return nullcontext()
    return group()


def meta(value: Value) -> Any:
    """Return the shape, dtype and device of a value, as attributes."""
    return metas(value[0])[value[1]]


def metas(node: Any) -> list[Any]:
    """Return the shape, dtype and device of each output of the node's operation."""
    variable = getattr(node, "variable", None)
    return [variable] if variable is not None else list(node._input_metadata)


def value_of(tensor: Tensor) -> Value:
    """Return the value that a tensor is, for a tensor that requires grad."""
    edge = torch.autograd.graph.get_gradient_edge(tensor)
    return edge.node, edge.output_nr


def arcs(logits: Tensor, x: Tensor) -> list[Arc]:
    """Return every arc between ``x`` and ``logits``, those near the logits first.

    The order is topological: all arcs out of a value come before all arcs into it.
    An empty list says that ``logits`` do not depend on ``x``.
    """
    start, goal = value_of(logits), value_of(x)
    reads = _reads(start[0], goal[0])
    dependent = _dependent(reads, goal)
    reached: dict[Any, set[int]] = {start[0]: {start[1]}}
    found: list[Arc] = []
    read: dict[tuple[Any, str], Any] = {}
    for node, values in reversed(reads.items()):
        arguments = [i for i, value in enumerate(values) if value in dependent]
        if not arguments:
            continue
        varying, name = frozenset(arguments), short_name(node)
        for output in sorted(reached[node]):
            after = meta((node, output))
            for argument in arguments:
                source = values[argument]
                arc = Arc(
                    node,
                    argument,
                    source,
                    target=(node, output),
                    varying=varying,
                    read=read,
                    name=name,
                    before=meta(source),
                    after=after,
                )
                found.append(arc)
                reached.setdefault(source[0], set()).add(source[1])
    return found


def connecting_arcs(logits: Tensor, x: Tensor) -> list[Arc]:
    """Return `arcs`, of which there must be some.

    Raises:
        ValueError: ``x`` is detached from the logits.
    """
    if not (x.requires_grad and logits.requires_grad):
        raise detached()
    found = arcs(logits, x)
    if not found and value_of(logits) != value_of(x):
        raise detached()
    return found


def _reads(start: Any, goal: Any) -> dict[Any, tuple[Value, ...]]:
    """Return what each node behind ``start`` reads, after the nodes that it reads from.

    What is behind ``goal`` is left out.
    """
    reads: dict[Any, tuple[Value, ...]] = {}
    seen: set[Any] = set()
    stack: list[tuple[Any, tuple[Value, ...], Iterator[Value]]] = []

    def enter(node: Any) -> None:
        values = () if node is goal else node.next_functions
        seen.add(node)
        stack.append((node, values, iter(values)))

    enter(start)
    while stack:
        node, values, left = stack[-1]
        for parent, _ in left:
            if parent is not None and parent not in seen:
                enter(parent)
                break
        else:
            reads[node] = values
            stack.pop()
    return reads


def _dependent(reads: dict[Any, tuple[Value, ...]], goal: Value) -> set[Value]:
    """Return the values that depend on ``goal``, as edges that nodes may hold."""
    dependent = {goal}
    nodes: set[Any] = set()
    for node, values in reads.items():
        for value in values:
            if value == goal or value[0] in nodes:
                nodes.add(node)
                dependent.add(value)
    return dependent


def depends_on_others(value: Tensor, logits: Tensor) -> bool:
    """Whether a value has a gradient but for that which reaches it by the logits.

    It may have parameters of its own, or read another output of the model.
    """
    goal = value_of(logits)
    nodes = _reads(value.grad_fn, goal[0])
    if any(node is not goal[0] and hasattr(node, "variable") for node in nodes):
        return True
    read = {edge for node in nodes if node is not goal[0] for edge in nodes[node]}
    return {edge for edge in read if edge[0] is goal[0]} != {goal}


def sequence_number() -> int:
    """Return a number larger than those of all nodes that this thread has made."""
    with torch.enable_grad():
        node: Any = torch.zeros(1, requires_grad=True).neg().grad_fn
    return int(node._sequence_nr())


def find_node(logits: Tensor, name: str) -> Any:
    """Return a node behind ``logits`` by the end of its name, or None."""
    for node in reversed(_reads(logits.grad_fn, None)):
        if node.name().endswith(name):
            return node
    return None


def short_name(node: Any) -> str:
    """Return a node's name without its C++ namespace."""
    return node.name().rpartition("::")[2]
