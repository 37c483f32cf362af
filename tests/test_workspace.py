"""Memory that is used again: nobody may see somebody else's."""

from __future__ import annotations

import gc
import threading

import pytest
import torch
from nets import images, small_conv
from torch import nn

import fastjac
from fastjac import workspace
from fastjac.chunks import Chunk, chunks
from fastjac.sweep import Sweep
from fastjac.workspace import KEPT_BYTES, MANY_CHUNKS, Arena, Pool


class Owner:
    """Something that borrows."""


def test_an_arena_hands_out_separate_memory_until_it_is_rewound() -> None:
    arena = Arena()
    first, second = arena.take(100), arena.take(100)
    first.fill_(1)
    second.fill_(2)
    assert bool((first == 1).all())
    addresses = [first.data_ptr(), second.data_ptr()]
    arena.rewind()
    assert [arena.take(size).data_ptr() for size in (100, 80)] == addresses


def test_an_arena_makes_only_the_block_anew_that_is_too_small() -> None:
    arena = Arena()
    addresses = [arena.take(size).data_ptr() for size in (100, 100, 100)]
    arena.rewind()
    blocks = [arena.take(size) for size in (100, 1000, 100)]
    assert blocks[1].numel() >= 1000
    assert [blocks[0].data_ptr(), blocks[2].data_ptr()] == addresses[::2]


def test_blocks_joined_to_one_piece_of_memory_are_still_separate() -> None:
    arena = Arena()
    sizes = (100, 1, 1000)
    for size in sizes:
        arena.take(size)
    arena.join()
    arena.rewind()
    blocks = [arena.take(size) for size in sizes]
    assert len({block.untyped_storage().data_ptr() for block in blocks}) == 1
    for mark, block in enumerate(blocks):
        block.fill_(mark)
    for mark, block in enumerate(blocks):
        assert bool((block == mark).all())
        assert block.data_ptr() % workspace.ALIGNMENT == 0


def test_chunks_are_cut_the_longest_first() -> None:
    """So that no later chunk needs a larger block than the first one did."""
    x = images(7)
    linearization = fastjac.linearize(small_conv().double()(x.requires_grad_()), x)
    lengths = [each.stop - each.start for each in chunks(linearization, 4, chunk=12)]
    assert lengths == [3, 2, 2]


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


@pytest.mark.parametrize(("chunks", "kept"), [(1, True), (MANY_CHUNKS, False)])
def test_an_arena_is_kept_for_the_next_sweep_unless_it_had_many_chunks(
    chunks: int, kept: bool
) -> None:
    like = torch.empty(0)
    with workspace.sweeping():
        for _ in range(chunks):
            workspace.rewind()
            workspace.empty((10,), like)
    assert bool(workspace._local.arena.blocks) == kept


@pytest.mark.parametrize("method", ["pull", "squared_norms", "row_gradients"])
def test_a_chunk_leaves_nothing_behind_that_holds_its_memory(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a block that has to grow would be there twice."""
    x = images(7).requires_grad_()
    sweep = Sweep(fastjac.linearize(small_conv().double()(x), x), torch.eye(4))
    sweep.chunks = [Chunk(0, 1, 0, 4), Chunk(1, 3, 0, 4), Chunk(3, 7, 0, 4)]
    upstream = torch.randn(7, 4, *x.shape[1:]).double()
    arguments = (upstream, sweep.linearization.weights, True)
    users: list[int] = []
    rewind = Arena.rewind

    def counted(arena: Arena) -> None:
        users.extend(map(_users, arena.blocks))
        rewind(arena)

    monkeypatch.setattr(Arena, "rewind", counted)
    monkeypatch.setattr(workspace, "_local", workspace._Local())
    getattr(sweep, method)(*(arguments if method == "row_gradients" else ()))
    assert len(users) > 3, "blocks there were"
    assert set(users) == {_users(torch.empty(1))}


def _users(block: torch.Tensor) -> int:
    return int(torch._C._storage_Use_Count(block.untyped_storage()._cdata))


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


def test_a_sweep_begins_with_all_of_the_arena(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that takes memory before its first chunk."""
    monkeypatch.setattr(workspace, "_local", workspace._Local())
    like, addresses = torch.empty(0), set()
    for _ in range(3):
        with workspace.sweeping():
            addresses.add(workspace.empty((10,), like).data_ptr())
    assert len(workspace._local.arena.blocks) == 1
    assert len(addresses) <= 2, "made, then joined to one piece, then used again"
