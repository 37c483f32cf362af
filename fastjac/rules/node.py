"""Any linear operation without weights, through autograd's own node."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastjac.rules.base import Rule


class Node(Rule):
    """``pull`` calls the node that autograd recorded, ``push`` transposes that call.

    One call a row, of the whole batch, in the precision of the operation itself: exact
    for every linear operation (padding modes, interpolation, indexing, writes into
    slices), and the way for those that are too rare for a rule of their own.
    """

    moves = False
    samplewise = False

    def __init__(self, node: Any, output: int, argument: int, likes: list[Any]) -> None:
        self.node, self.output, self.argument = node, output, argument
        #: The shape and dtype of each output of the operation.
        self.likes = likes

    def pull(self, rows: Tensor) -> Tensor:
        return outside_backward(
            lambda: torch.stack([self._call(row) for row in rows.unbind(0)]), rows
        )

    def push(self, tangents: Tensor) -> Tensor:
        return outside_backward(lambda: self._push(tangents), tangents)

    def _push(self, tangents: Tensor) -> Tensor:
        like = self.likes[self.output]
        pushed = []
        for tangent in tangents.unbind(0):
            with torch.enable_grad():
                row = tangent.new_zeros(like.shape).requires_grad_()
                pulled = self._call(row)
            (column,) = torch.autograd.grad(
                pulled, row, tangent, materialize_grads=True
            )
            pushed.append(column)
        return torch.stack(pushed)

    def describe(self) -> str:
        return "autograd node, row by row"

    def _call(self, row: Tensor) -> Tensor:
        given = row.to(self.likes[self.output].dtype)
        outputs = [
            given if i == self.output else row.new_zeros(like.shape, dtype=like.dtype)
            for i, like in enumerate(self.likes)
        ]
        pulled = self.node(*outputs)
        if isinstance(pulled, tuple):
            pulled = pulled[self.argument]
        return pulled.to(row.dtype)


def outside_backward(function: Callable[[], Tensor], like: Tensor) -> Tensor:
    """Call a function that calls autograd nodes, also from within a backward pass.

    There a node computes only what that pass asks of it. A thread of its own knows
    nothing of the pass; on a GPU it is given the current stream.
    """
    if torch._C._current_graph_task_id() == -1:
        return function()
    stream = torch.cuda.current_stream(like.device) if like.is_cuda else None
    results: list[Tensor] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            with torch.no_grad(), torch.cuda.stream(stream):
                results.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="fastjac-node")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
