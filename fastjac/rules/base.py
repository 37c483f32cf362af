"""What a rule is: one linear map of the linearised network.

At a fixed input a piecewise-linear network is a graph of linear maps ``v = A u``.
A rule is one such map. It moves batches of cotangents down and tangents up,

    pull(rows)     = A^T rows        (R, *v.shape) -> (R, *u.shape)
    push(tangents) = A tangents      (R, *u.shape) -> (R, *v.shape)

and, where ``A`` is made of weights ``W``, contracts both into

    weight_gradients(rows, tangents) = d <rows, A(W) tangents> / d W

which it adds to running sums over chunks.

A layer is affine, ``v = A u + b``. Rows do not see ``b``, but tangents may be *lifted*:
carry one coordinate more, ``ones``, which is what the constant 1 of ``b`` is multiplied
by. Then ``push`` adds ``b * ones``, and ``bias_gradients`` contracts rows with ``ones``
(see fastjac/sweep.py for what that is good for).

``R`` rows share one leading dimension; behind it stands the shape that the tensor has
in the user's model, so a rule never needs to know which dimension is the batch.
Rules hold tensors, never autograd nodes' names: those are known to linearize.py only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastjac.native_conv_gpu import Parts, summed


class Rule:
    """One linear map ``v = A u``; the default is the identity."""

    #: Tensors that ``A`` is made of and that may receive a gradient.
    weights: tuple[Tensor, ...] = ()

    #: ``b``, one for each of ``weights``, None where there is none.
    biases: tuple[Tensor | None, ...] = ()

    #: (n, R), the last coordinate of lifted tangents; None where they are not lifted.
    ones: Tensor | None = None

    #: Elements of ``u``, all samples together: what the memory of a row is made of.
    elements: int = 0

    #: The dtype that ``v`` had in the forward pass, if it is known.
    forward_dtype: torch.dtype | None = None

    #: Whether ``weights`` have a slice a sample, so that gradients are narrowed too.
    per_sample_weights: bool = False

    #: Whether ``A`` keeps samples apart along dimension 0, so that it can be narrowed.
    samplewise: bool = True

    #: Whether results may share memory with the argument.
    moves: bool = True

    def pull(self, rows: Tensor) -> Tensor:
        """Return ``A^T rows``."""
        return rows

    def push(self, tangents: Tensor) -> Tensor:
        """Return ``A tangents``."""
        return tangents

    def overwrite(self, rows: Tensor, up: bool = False) -> Tensor:
        """Return `pull`, or `push` if ``up``, of rows that nobody needs afterwards."""
        return self.push(rows) if up else self.pull(rows)

    def pull_into(self, rows: Tensor, total: Tensor) -> None:
        """Add ``A^T rows`` to ``total``."""
        total.add_(self.pull(rows))

    def push_into(self, tangents: Tensor, total: Tensor) -> None:
        """Add ``A tangents`` to ``total``."""
        total.add_(self.push(tangents))

    def weight_gradients(self, rows: Tensor, tangents: Tensor, sums: Sums) -> None:
        """Add the gradient of ``<rows, A tangents>`` for each of ``weights``.

        ``sums`` has one entry a weight; it is None for a weight that is frozen.
        """

    def push_adding(
        self, tangents: Tensor, rows: Tensor, sums: Sums, own: bool, spare: bool
    ) -> Tensor:
        """Add `weight_gradients` and return `push`, `overwrite` if they are ``own``.

        The result may take the memory of the rows if that is ``spare``.
        """
        self.weight_gradients(rows, tangents, sums)
        return self.overwrite(tangents, up=True) if own else self.push(tangents)

    def lift(self, ones: Tensor) -> None:
        """Take tangents to be lifted by ``ones`` (n, R) until `release`."""
        self.ones = ones

    def bias_gradients(self, rows: Tensor, sums: Sums) -> None:
        """Add ``sum_r <rows[r], ones[r]>`` for each of ``biases`` that has a sum."""

    def apart(self, samples: int) -> bool:
        """Whether ``A`` keeps this many samples apart along dimension 0."""
        return self.samplewise

    def narrow(self, samples: Samples) -> Rule:
        """Return the same map for a range of samples only."""
        return self

    def release(self) -> None:
        """Let go of what is kept from `pull` for `weight_gradients`, and of `ones`."""
        self.ones = None

    @property
    def multiplications(self) -> int:
        """Multiply-adds of ``A`` times one row, all samples together."""
        return self.elements

    def density(self) -> float | None:
        """Return the share of the outputs that are live where only they are touched."""
        return None

    @property
    def name(self) -> str:
        """What the rule is, for `explain`."""
        return type(self).__name__

    def describe(self) -> str:
        """Say in a few words how this rule runs, for `explain`."""
        return "torch"


def marked_identity(rows: Tensor) -> Tensor:
    """Mark rows that are the identity at the logits of every sample."""
    rows.identity = True  # type: ignore[attr-defined]
    return rows


def is_marked_identity(rows: Tensor) -> bool:
    """Whether rows are known to be the identity of every sample: nobody looks inside.

    The mark belongs to the very tensor, no view of it has one.
    """
    return getattr(rows, "identity", False)


def repeats(tensor: Tensor) -> bool:
    """Whether one element of memory stands for several of the tensor."""
    return any(
        stride == 0 and size > 1
        for stride, size in zip(tensor.stride(), tensor.shape, strict=True)
    )


class Samples:
    """A range ``start:stop`` out of ``total`` samples."""

    def __init__(self, start: int, stop: int, total: int) -> None:
        self.start, self.stop, self.total = start, stop, total

    def of(self, tensor: Tensor) -> Tensor:
        """Narrow a tensor whose dimension 0 holds the samples (m entries a sample)."""
        entries = tensor.shape[0] // self.total
        return tensor[self.start * entries : self.stop * entries]

    def of_broadcast(self, tensor: Tensor, dim: int) -> Tensor:
        """Narrow a tensor that broadcasts against one of ``dim`` dimensions."""
        if not is_per_sample(tensor, dim):
            return tensor
        return self.of(tensor)


def is_per_sample(tensor: Tensor, dim: int) -> bool:
    """Whether a tensor that broadcasts against ``dim`` dimensions varies along the 0th.

    A leading dimension of size one is shared by all samples.
    """
    return tensor.dim() == dim and tensor.shape[0] != 1


class Sum:
    """A sum over chunks whose first term needs no zeros to be added to."""

    def __init__(self, value: Tensor | None = None) -> None:
        self._value = value
        #: Terms that wait to be added up, for kernels of a GPU.
        self.parts: Parts | None = None
        self._scratch: tuple[Tensor, Callable[[Tensor], Tensor]] | None = None

    @property
    def value(self) -> Tensor | None:
        """The sum so far; None if nothing was added."""
        if self.parts is not None:
            self.add_parts([self])
        if self._scratch is not None:
            buffer, unpack = self._scratch
            self._scratch = None
            self.add(unpack(buffer))
        return self._value

    def add(self, term: Tensor) -> None:
        """Add ``term``, which the sum may keep."""
        if self._value is None:
            self._value = term
        else:
            self._value.add_(term)

    def add_product(self, left: Tensor, right: Tensor, scale: float = 1.0) -> None:
        """Add ``scale * left @ right``."""
        if self._value is None:
            product = left @ right
            self._value = product if scale == 1 else product.mul_(scale)
        else:
            self._value.addmm_(left, right, alpha=scale)

    def waiting(self, make: Callable[[], Parts]) -> tuple[Parts, bool]:
        """Return the parts that kernels add to, and whether they hold anything yet."""
        begun = self.parts is not None
        if self.parts is None:
            self.parts = make()
        return self.parts, begun

    @staticmethod
    def add_parts(sums: Sequence[Sum]) -> None:
        """Add up the parts of all these sums, by as few kernels as may be."""
        waiting = [(total, total.parts) for total in sums if total.parts is not None]
        for total, value in zip(
            (total for total, _ in waiting),
            summed([parts for _, parts in waiting]),
            strict=True,
        ):
            total.parts = None
            total.add(value)

    def buffer(self, like: Tensor, unpack: Callable[[Tensor], Tensor]) -> Tensor:
        """Return a tensor that starts as zeros, for kernels that add in place.

        Its layout is the kernel's own; ``unpack`` turns it into a term of the sum when
        the sum is asked for. A later call with another layout gets a buffer of its own.
        """
        if self._scratch is not None and self._scratch[0].shape != like.shape:
            self.value  # noqa: B018, flushes the other layout's buffer
        if self._scratch is None:
            self._scratch = torch.zeros_like(like), unpack
        return self._scratch[0]


Sums = Sequence[Sum | None]


class Transposed(Rule):
    """The map ``A^T`` of a rule without weights."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.samplewise, self.moves = rule.samplewise, rule.moves

    @property
    def name(self) -> str:
        return f"{self.rule.name}, transposed"

    def pull(self, rows: Tensor) -> Tensor:
        return self.rule.push(rows)

    def push(self, tangents: Tensor) -> Tensor:
        return self.rule.pull(tangents)

    def narrow(self, samples: Samples) -> Rule:
        return Transposed(self.rule.narrow(samples))
