"""Memory that is used again: nobody may see somebody else's."""

from __future__ import annotations

import gc
import threading

import pytest
import torch
from torch import nn

import fastjac
from fastjac import workspace
from fastjac.workspace import KEPT_BYTES, Arena, Pool


class Owner:
    """Something that borrows."""


def test_an_arena_hands_out_separate_memory_until_it_is_rewound() -> None:
    arena = Arena()
    first, second = arena.take(100), arena.take(100)
    first.fill_(1)
    second.fill_(2)
    assert bool((first == 1).all())
    arena.rewind()
    assert arena.take(200).numel() >= 200
    assert len(arena.blocks) == 1, "several blocks become one"


def test_lent_memory_comes_back_when_its_owner_is_gone() -> None:
    pool = Pool()
    owner, other = Owner(), Owner()
    block = pool.borrow(1000, owner)
    address = block.data_ptr()
    assert pool.borrow(1000, other).data_ptr() != address, "still lent"
    del owner, block
    gc.collect()
    assert pool.borrow(900, other).data_ptr() == address
    assert pool.free == []


def test_a_pool_does_not_lend_much_more_than_was_asked_for() -> None:
    pool = Pool()
    owner = Owner()
    pool.borrow(1 << 20, owner)
    del owner
    gc.collect()
    assert 100 <= pool.borrow(100, Owner()).numel() < 200


def test_a_lent_block_fits_chunks_of_a_sample_more() -> None:
    pool = Pool()
    owner = Owner()
    address = pool.borrow(83 * 1000, owner).data_ptr()
    del owner
    gc.collect()
    assert pool.borrow(84 * 1000, Owner()).data_ptr() == address


def test_a_pool_keeps_no_more_than_its_bound() -> None:
    pool = Pool()
    owners = [Owner() for _ in range(3)]
    for owner in owners:
        pool.borrow(KEPT_BYTES // 2, owner)
    owners.clear()
    del owner
    gc.collect()
    assert sum(block.numel() for block in pool.free) <= KEPT_BYTES
    assert len(pool.free) == 2


def test_threads_never_share_what_they_borrow() -> None:
    pool = Pool()
    clashes: list[int] = []

    def work(mark: int) -> None:
        for _ in range(200):
            owner = Owner()
            block = pool.borrow(4096, owner).fill_(mark)
            if not bool((block == mark).all()):
                clashes.append(mark)
            del block, owner

    threads = [threading.Thread(target=work, args=(mark,)) for mark in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert clashes == []


def test_memory_has_the_order_of_dimensions_that_it_was_asked_for() -> None:
    rows = torch.randn(2, 3, 4, 5, 6).permute(1, 3, 4, 0, 2)
    with workspace.sweeping():
        made = workspace.empty_as(rows)
    assert made.shape == rows.shape
    assert made.stride() == rows.stride()


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("classes", [1, 3])
def test_nothing_is_read_that_a_sweep_has_not_written(
    samples: int, classes: int
) -> None:
    """A dimension of size 1 may have any stride, and once had one too small."""
    model = nn.Sequential(
        nn.Conv2d(1, 2, 1, bias=False),
        nn.ReLU(),
        nn.Conv2d(2, 1, 1, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(28, 5),
        nn.ReLU(),
        nn.Linear(5, classes),
    )
    x = torch.rand(samples, 1, 4, 7)
    fastjac.jacobian_penalty(model, x).backward()  # makes the arena's memory
    gradients = {}
    for backend in ("fused", "autograd"):
        for block in workspace._local.arena.blocks:
            block.fill_(0xFF)  # NaN
        model.zero_grad()
        fastjac.jacobian_penalty(model, x, backend=backend).backward()
        gradients[backend] = [p.grad for p in model.parameters() if p.dim() > 1]
    for fused, expected in zip(*gradients.values(), strict=True):
        torch.testing.assert_close(fused, expected, rtol=1e-5, atol=1e-6)
